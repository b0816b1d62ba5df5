//! `checkweigh ledger statement`: a signed statement of the work of a device, a group or an account.
//!
//! The ledger is read twice: to count, and to find the records that were drawn. What is stated and how it is signed is
//! `accounting`'s part.

mod order;
mod source;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use accounting::merkle::TooMuchWork;
use accounting::statement::check::{Fault, check};
use accounting::statement::collect::{Counting, Finding, Members, Period, Picking, Scope};
use accounting::statement::draw::{Draws, Seed};
use accounting::statement::forms::{Count, Hex};
use accounting::statement::sums::StatedSums;
use accounting::statement::{
    DEFAULT_DRAWS, MAX_DRAWS, MAX_FILE_BYTES, MAX_TEXT, RefusedRoot, Sample, SignedStatement, StatedRoot,
    StatedSubject, Statement,
};
use accounting::{AnswerSums, Books, Level};
use clap::{ArgGroup, Args};
use rand::RngCore;
use rand::rngs::OsRng;
use stratum::sv2::AuthoritySecretKey;

use self::order::{MAX_LEAVES, Order};
use self::source::{Source, Spanned};
use super::table::plain;
use super::{LedgerFailure, Output, show};
use crate::clock::Clock;
use crate::config;
use crate::ledger::{Opening, Reader, SqliteReader, revival, times};

/// Answers that come later after the end of a period are not waited for: pools answer within seconds, slow ones within
/// minutes.
const ANSWERS_US: u64 = 3600 * 1_000_000;

/// So long after the end of a period its last shares are on disk, even if nothing comes after them.
const SETTLED_US: u64 = 10 * 1_000_000;

/// Arguments of `ledger statement`.
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("subject").required(true).args(["device", "group", "account"]),
    after_help = "\
Examples:
  checkweigh keygen --out ledger.key                  once; tell its public key to whoever will check
  checkweigh ledger --path ledger statement --device farm.rig7 --from 2026-11-01 --to 2026-11-08 \\
    --key ledger.key --out rig7-1.json
  checkweigh ledger --path ledger statement --device farm.rig7 --from 2026-11-08 --to 2026-11-15 \\
    --key ledger.key --previous rig7-1.json --out rig7-2.json
  checkweigh ledger check-statement rig7-2.json --key PUBLIC_KEY --previous rig7-1.json

A statement binds every share of the period by a Merkle root, says the sums, and shows some shares, drawn by its own
hash, with all that they are hashed from. An hour after the end of its period it comes out the same whenever it is made,
as long as its records are kept and the same devices are in the group.

Whoever doubts that the draw was left to chance says a word when they have the statement; make it again with --challenge
WORD and the same --previous. It has the same hash, and a sample that nobody could know."
)]
pub struct StatementArgs {
    /// The work of this device, as `devices` lists it.
    #[arg(long, value_name = "NAME")]
    pub device: Option<String>,
    /// The work of the devices that are in this group now.
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,
    /// The work for this account of an upstream.
    #[arg(long, value_name = "NAME")]
    pub account: Option<String>,
    /// Shares that were judged at this time or later.
    #[arg(long, value_name = "TIME", value_parser = times::parse)]
    pub from: u64,
    /// And before this time.
    #[arg(long, value_name = "TIME", value_parser = times::parse)]
    pub to: u64,
    /// The secret key to sign with, a file as `keygen` writes it: [ledger] signing_key_file of the configuration.
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// The statement before this one; without it, this is the first of its chain.
    #[arg(long, value_name = "FILE")]
    pub previous: Option<PathBuf>,
    /// The file, which must not exist yet; standard output when not given.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// How many draws there are from each of the two columns of work.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_DRAWS)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_DRAWS)))]
    pub sample: u32,
    /// A word of whoever will check, said after the statement was made: it changes the sample and nothing else.
    #[arg(long, value_name = "WORD", default_value = "", hide_default_value = true)]
    pub challenge: String,
}

pub(super) fn run(
    reader: &SqliteReader,
    args: StatementArgs,
    output: &mut Output<'_>,
) -> Result<(), LedgerFailure> {
    if args.challenge.len() > MAX_TEXT {
        return Err(refused(format!("--challenge is longer than {MAX_TEXT} bytes")));
    }
    let key = config::read_key(&args.key).map_err(|what| refused(format!("--key: {what}")))?;
    if config::is_readable_by_others(&args.key) {
        eprintln!("note: {} can be read by others; chmod 600 it", args.key.display());
    }
    let previous = args.previous.as_deref().map(|path| read_statement("--previous", path)).transpose()?;
    if let Some(out) = &args.out
        && out.exists()
    {
        return Err(refused(format!("{} exists already", out.display())));
    }
    let opening = reader.opening()?;
    let (books, _) = revival::books(&opening, reader)?;
    let (subject, members) = find_subject(&args, &books)?;
    let period = period_of(reader, &opening, &args)?;
    check_previous(previous.as_ref(), &opening, &subject, &period, &key)?;
    let scope = Scope { members, period };
    let draft = Draft { opening: &opening, scope, subject, previous: previous.as_ref(), key: &key };
    let temporary = args.out.as_ref().map_or_else(
        || std::env::temp_dir().join(format!("checkweigh-statement-{}", std::process::id())),
        |out| out.with_added_extension("leaves"),
    );
    let signed = draft.sign(reader, &args, temporary)?;
    write(&signed, args.out.as_deref(), output)
}

fn refused(what: String) -> LedgerFailure {
    LedgerFailure::Refused(what)
}

impl From<TooMuchWork> for LedgerFailure {
    fn from(error: TooMuchWork) -> Self {
        LedgerFailure::Refused(format!("{error}: `ledger verify` says whether its records are sound"))
    }
}

/// A statement from a file, whatever it says.
pub(super) fn read_statement(what: &str, path: &Path) -> Result<SignedStatement, LedgerFailure> {
    let text =
        config::read_text(path, MAX_FILE_BYTES).map_err(|error| refused(format!("{what}: {error}")))?;
    SignedStatement::read(text.as_bytes())
        .map_err(|error| refused(format!("{what}: {}: {error}", path.display())))
}

/// Whose work, by what the ledger knows now.
fn find_subject(args: &StatementArgs, books: &Books) -> Result<(StatedSubject, Members), LedgerFailure> {
    if let Some(name) = &args.device {
        let device = show::find(books.device_rows().collect(), name)?;
        return Ok((StatedSubject::Device(name.clone()), Members::Devices([device.id].into())));
    }
    if let Some(name) = &args.group {
        let Some((group, _)) = books.groups().find(|(_, known)| ***known == **name) else {
            return Err(none_of("group", name, books.groups().map(|(_, name)| plain(name)).collect()));
        };
        let devices = books.device_rows().filter(|row| row.groups.contains(&group)).map(|row| row.id);
        return Ok((StatedSubject::Group(name.clone()), Members::Devices(devices.collect())));
    }
    let name = args.account.clone().expect("one of the three is required");
    let upstreams = books.upstreams().filter(|(_, _, account)| ***account == *name).map(|(id, ..)| id);
    let upstreams = Members::Upstreams(upstreams.collect());
    if upstreams == Members::Upstreams([].into()) {
        let known = books.upstreams().map(|(_, _, account)| plain(account)).collect();
        return Err(none_of("account", &name, known));
    }
    Ok((StatedSubject::Account(name), upstreams))
}

fn none_of(what: &str, name: &str, mut known: Vec<String>) -> LedgerFailure {
    known.sort_unstable();
    known.dedup();
    let (name, known) = (plain(name), known.join(", "));
    let known = if known.is_empty() { "it knows none".to_owned() } else { format!("it knows {known}") };
    refused(format!("there is no {what} {name:?} in this ledger; {known}"))
}

/// The period, when all its records are there.
fn period_of(
    reader: &SqliteReader,
    opening: &Opening,
    args: &StatementArgs,
) -> Result<Period, LedgerFailure> {
    let (from_us, to_us) = (args.from, args.to);
    if from_us >= to_us {
        return Err(refused("--from is not before --to".to_owned()));
    }
    if opening.removed.number.0 > 0 {
        // Whole days are removed: of the day that the first batch is in, nothing was.
        let first = reader.batches(opening.removed.number.next())?.next().transpose()?;
        let kept_from = first.map_or(u64::MAX, |batch| Level::Day.start(batch.last_us / 1_000_000));
        if from_us / 1_000_000 < kept_from {
            let since = times::seconds(kept_from);
            return Err(refused(format!(
                "the records before {since} were removed by age or size ([ledger] keep_records_days, \
                 max_records_gib): the period can begin there"
            )));
        }
    }
    let head = reader.batches(opening.head.number)?.next().transpose()?;
    let known_until = head.map_or(0, |batch| batch.last_us);
    let now_us = Clock::start().now().utc.as_micros() as u64;
    if to_us > known_until.max(now_us.saturating_sub(SETTLED_US)) {
        return Err(refused(
            "the period has not ended: shares of it may still come, and need some seconds to the disk"
                .to_owned(),
        ));
    }
    let answers_until_us = to_us.saturating_add(ANSWERS_US);
    if now_us < answers_until_us {
        eprintln!(
            "note: answers of the pool that come until {} count as unanswered now; made after that, this will be \
             another statement",
            times::microseconds(answers_until_us)
        );
    }
    Ok(Period { from_us, to_us, answers_until_us })
}

/// Whether this statement can follow that one.
fn check_previous(
    previous: Option<&SignedStatement>,
    opening: &Opening,
    subject: &StatedSubject,
    period: &Period,
    key: &AuthoritySecretKey,
) -> Result<(), LedgerFailure> {
    let Some(signed) = previous else { return Ok(()) };
    let wrong = |what: &str| Err(refused(format!("--previous: {what}")));
    match check(signed, &key.public(), None) {
        Ok(_) => {}
        Err(Fault::OtherKey(_)) => return wrong("another key signed it: a chain has one signer"),
        Err(fault) => return wrong(&fault.to_string()),
    }
    let previous = &signed.statement;
    if previous.ledger.0 != opening.ledger.0 || previous.subject != *subject {
        return wrong("it is about another ledger or subject");
    }
    if previous.to_unix_us.0 > period.from_us {
        let end = times::microseconds(previous.to_unix_us.0);
        return wrong(&format!("its period ends at {end}, after --from: work would count in both"));
    }
    Ok(())
}

/// What is known before the ledger is read.
struct Draft<'a> {
    opening: &'a Opening,
    scope: Scope,
    subject: StatedSubject,
    previous: Option<&'a SignedStatement>,
    key: &'a AuthoritySecretKey,
}

impl Draft<'_> {
    fn sign(
        self,
        reader: &SqliteReader,
        args: &StatementArgs,
        temporary: PathBuf,
    ) -> Result<SignedStatement, LedgerFailure> {
        let mut source = Source::new(reader, self.opening);
        let Period { from_us, to_us, answers_until_us } = self.scope.period;
        let mut order = Order::new(temporary);
        let mut counting = Counting::new(self.scope.clone());
        let spanned = source.each(from_us, answers_until_us, to_us, |entry| {
            let Some(leaf) = counting.apply(entry)? else { return Ok(()) };
            if order.push(leaf)? {
                return Ok(());
            }
            Err(refused(format!("more than {MAX_LEAVES} accepted shares: divide the period")))
        })?;
        let mut picking = Picking::new(Draws::default());
        order.each(|leaf| Ok::<(), LedgerFailure>(picking.push(leaf)?))?;
        let grown = picking.finish()?;
        let root = StatedRoot::of(grown.records, &grown.root);
        let statement = self.statement(root, counting, spanned)?;
        let draws = Draws::of(Seed::of(&statement.hash(), &args.challenge), args.sample, statement.works());
        let mut picking = Picking::new(draws);
        order.each(|leaf| Ok::<(), LedgerFailure>(picking.push(leaf)?))?;
        let drawn = picking.finish()?.drawn;
        drop(order);
        let mut finding = Finding::new(self.scope.clone(), drawn);
        source.each(from_us, to_us, to_us, |entry| {
            finding.apply(entry);
            Ok(())
        })?;
        let picked = finding.finish().ok_or_else(|| {
            refused("records were removed by age or size meanwhile: make it again".to_owned())
        })?;
        let jobs = source.jobs(&picked)?;
        let sample = Sample::of(args.challenge.clone(), args.sample, picked, &jobs);
        let mut aux = [0; 32];
        OsRng.fill_bytes(&mut aux);
        Ok(SignedStatement::sign(statement, sample, self.key, &aux))
    }

    fn statement(
        &self,
        root: StatedRoot,
        counting: Counting,
        spanned: Spanned,
    ) -> Result<Statement, LedgerFailure> {
        let (refused_records, refused_root, counted) = counting.finish()?;
        let Period { from_us, to_us, answers_until_us } = self.scope.period;
        let previous = self.previous.map(|previous| &previous.statement);
        let unanswered = AnswerSums {
            forwarded: counted.without_detail.forwarded,
            forwarded_work: counted.without_detail.forwarded_work,
            ..AnswerSums::default()
        };
        let members = match &self.scope.members {
            Members::Devices(devices) => devices.len(),
            Members::Upstreams(upstreams) => upstreams.len(),
        };
        Ok(Statement {
            ledger: Hex(self.opening.ledger.0),
            subject: self.subject.clone(),
            members: Count(members as u64),
            number: Count(previous.map_or(0, |previous| previous.number.0) + 1),
            previous: previous.map(|previous| Hex(previous.hash())),
            from_unix_us: Count(from_us),
            to_unix_us: Count(to_us),
            answers_until_unix_us: Count(answers_until_us),
            first_batch: spanned.first,
            last_batch: spanned.last,
            lost_batches: Count(spanned.lost),
            root,
            refused_root: RefusedRoot { records: Count(refused_records), hash: Hex(refused_root.hash) },
            sums: StatedSums::of(&counted.shares, &counted.answers),
            without_detail: StatedSums::of(&counted.without_detail, &unanswered),
            signed_by: self.key.public().to_string(),
        })
    }
}

fn write(signed: &SignedStatement, out: Option<&Path>, output: &mut Output<'_>) -> Result<(), LedgerFailure> {
    let text = signed.to_text();
    match out {
        None => output.write_all(text.as_bytes())?,
        Some(path) => {
            let file = File::create_new(path)
                .map_err(|error| refused(format!("cannot make {}: {error}", path.display())))?;
            let written = (&file).write_all(text.as_bytes()).and_then(|()| file.sync_all());
            if let Err(error) = written {
                // Half a file would be taken for a whole one.
                let _ = fs::remove_file(path);
                return Err(refused(format!("cannot write {}: {error}", path.display())));
            }
        }
    }
    let statement = &signed.statement;
    eprintln!(
        "statement {} over {} accepted shares, {} of them shown: {}",
        statement.number.0,
        statement.root.records.0,
        signed.sample.shares.len(),
        Hex(statement.hash())
    );
    let missing = signed.sample.shares.iter().filter(|share| share.job.is_none()).count();
    if missing > 0 {
        eprintln!(
            "note: the jobs of {missing} of them are not in the ledger any more: nobody can hash those again"
        );
    }
    if statement.lost_batches.0 > 0 {
        eprintln!("note: {} batches of the period were lost with a disk", statement.lost_batches.0);
    }
    Ok(())
}
