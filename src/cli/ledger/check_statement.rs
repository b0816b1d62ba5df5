//! `checkweigh ledger check-statement`: whether a statement of work is what it says, and what that proves.
//!
//! Needs nothing but the file, the signer's public key and, for the chain, the statement before.

use std::io::Write;
use std::path::PathBuf;

use accounting::statement::check::{Checked, Drawn, Following, check};
use accounting::statement::forms::{Amount, ForReason, Hex};
use accounting::statement::sums::StatedSums;
use accounting::statement::{SignedStatement, StatedSubject, Statement};
use clap::Args;
use serde_json::{Value, json};
use stratum::Work;
use stratum::sv2::AuthorityPublicKey;

use super::figures::terahashes;
use super::statement::read_statement;
use super::table::plain;
use super::{LedgerFailure, Output};
use crate::ledger::times;

/// Blocks that are listed.
const MAX_TIPS: usize = 10;

/// Fractions of made-up work, in per cent, that the conclusion is told for.
const FRACTIONS: [f64; 3] = [1.0, 5.0, 10.0];

/// Arguments of `ledger check-statement`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  checkweigh ledger check-statement rig7-1.json --key 9auqWEzQDVyd2oe1JVGFLMLHZtCo2FFqZwtKA5gd9xbuEu7PH72
  checkweigh ledger check-statement rig7-2.json --key PUBLIC_KEY --previous rig7-1.json
  checkweigh ledger check-statement rig7-2.json --key PUBLIC_KEY --challenge 'what I asked for' --json

No ledger is needed. It says in words what is proved and what is not. Exit code 0 when nothing is wrong and every share
that was drawn was hashed again, 1 otherwise.")]
pub struct CheckStatementArgs {
    /// The statement.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The public key of whoever is to have signed it, as `keygen` prints it.
    #[arg(long, value_name = "PUBLIC_KEY")]
    pub key: AuthorityPublicKey,
    /// The statement before this one.
    #[arg(long, value_name = "FILE")]
    pub previous: Option<PathBuf>,
    /// The word that the sample is to be drawn with.
    #[arg(long, value_name = "WORD")]
    pub challenge: Option<String>,
    /// One JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(args: &CheckStatementArgs, output: &mut Output<'_>) -> Result<(), LedgerFailure> {
    let signed = read_statement("the statement", &args.file)?;
    let previous = args.previous.as_deref().map(|path| read_statement("--previous", path)).transpose()?;
    let wrong = |what: String| LedgerFailure::Refused(format!("{}: {what}", args.file.display()));
    let checked = check(&signed, &args.key, previous.as_ref()).map_err(|fault| wrong(fault.to_string()))?;
    if args.challenge.as_ref().is_some_and(|challenge| *challenge != signed.sample.challenge) {
        return Err(wrong("the sample was drawn with another challenge".to_owned()));
    }
    if args.json {
        writeln!(output, "{}", page(&signed, &checked))?;
    } else {
        print(&signed, &checked, output)?;
    }
    if checked.credited.fits_too_well() || checked.upstream.fits_too_well() {
        output.flush()?;
        return Err(wrong(
            "its targets seem to have been chosen after hashing: luck was sold as work".to_owned(),
        ));
    }
    let unproved = |drawn: Drawn| drawn.draws - drawn.proved;
    let unproved = unproved(checked.credited) + unproved(checked.upstream);
    if unproved == 0 {
        return Ok(());
    }
    let draws = checked.credited.draws + checked.upstream.draws;
    output.flush()?;
    Err(wrong(format!(
        "nothing in it is wrong, but {unproved} of {draws} draws fell on shares that could not be proved"
    )))
}

fn page(signed: &SignedStatement, checked: &Checked) -> Value {
    let drawn = |drawn: Drawn| {
        json!({
            "draws": drawn.draws,
            "proved": drawn.proved,
            "shares_proved": drawn.shares,
            "mean_of_hash_over_target": drawn.mean_part(),
            "fits_too_well": drawn.fits_too_well(),
        })
    };
    let gap_us = if let Following::Previous { gap_us } = checked.following { Some(gap_us) } else { None };
    json!({
        "hash": Hex(checked.hash),
        "statement": signed.statement,
        "challenge": signed.sample.challenge,
        "chain": match checked.following {
            Following::First => "first",
            Following::Previous { .. } => "follows",
            Following::NotShown => "not_shown",
        },
        "gap_us": gap_us,
        "draws_from_accepted_work": drawn(checked.credited),
        "draws_from_work_at_upstream_target": drawn(checked.upstream),
        "shares_hashed": checked.hashed,
        "shares_without_job": checked.without_job,
        "shares_not_alone": checked.not_alone,
        "shares_untimely": checked.untimely,
        "blocks": tips(checked).map(|(hash, shares)| json!({ "hash": hash, "shares": shares })).collect::<Vec<_>>(),
        "proves": proves(signed, checked),
        "does_not_prove": does_not_prove(&signed.statement, checked),
    })
}

/// The blocks that the shares build on, as explorers write them, those with most shares first.
fn tips(checked: &Checked) -> impl Iterator<Item = (String, u64)> {
    let mut tips: Vec<_> = checked.tips.iter().collect();
    tips.sort_by_key(|(_, shares)| std::cmp::Reverse(**shares));
    tips.into_iter().map(|(hash, shares)| {
        let mut shown = *hash;
        shown.reverse();
        (hex::encode(shown), *shares)
    })
}

fn print(signed: &SignedStatement, checked: &Checked, output: &mut Output<'_>) -> std::io::Result<()> {
    let statement = &signed.statement;
    let time = times::microseconds;
    writeln!(output, "statement {} of {}", statement.number.0, subject(statement))?;
    writeln!(output, "  shares judged from    {}", time(statement.from_unix_us.0))?;
    writeln!(output, "  and before            {}", time(statement.to_unix_us.0))?;
    writeln!(output, "  answers until         {}", time(statement.answers_until_unix_us.0))?;
    writeln!(output, "  hash                  {}", Hex(checked.hash))?;
    writeln!(output, "  ledger                {}", statement.ledger)?;
    print_sums(&statement.sums, output)?;
    if statement.without_detail.submitted.shares.0 > 0 {
        writeln!(output, "On top of that, shares whose records were lost, by the signer's word alone:")?;
        print_sums(&statement.without_detail, output)?;
    }
    if checked.hashed > 0 {
        writeln!(output, "\nShares of the sample build on these blocks, which an explorer should know:")?;
        for (hash, shares) in tips(checked).take(MAX_TIPS) {
            writeln!(output, "  {hash}  {shares} shares")?;
        }
        let more = checked.tips.len().saturating_sub(MAX_TIPS);
        if more > 0 {
            writeln!(output, "  and {more} more")?;
        }
    }
    for (title, lines) in [
        ("What this proves:", proves(signed, checked)),
        ("What it does not prove:", does_not_prove(statement, checked)),
    ] {
        writeln!(output, "\n{title}")?;
        for line in lines {
            writeln!(output, "- {line}")?;
        }
    }
    Ok(())
}

fn subject(statement: &Statement) -> String {
    let members = statement.members.0;
    match &statement.subject {
        StatedSubject::Device(name) => format!("the device {}", plain(name)),
        StatedSubject::Group(name) => format!("the group {} ({members} devices)", plain(name)),
        StatedSubject::Account(name) => format!("the account {} ({members} upstreams)", plain(name)),
    }
}

fn print_sums(sums: &StatedSums, output: &mut Output<'_>) -> std::io::Result<()> {
    let mut line = |name: String, amount: Amount, at: &str| {
        let (shares, work) = (amount.shares.0, work(amount.hashes.0));
        writeln!(output, "  {name:<24}{shares:>14} shares  {work:>20} {at}")
    };
    let device = "at the device's difficulty";
    let upstream = "at the upstream's target";
    let reasons = |what: &str, list: &[ForReason]| -> Vec<(String, Amount)> {
        let of = |reason: &ForReason| Amount { shares: reason.shares, hashes: reason.hashes };
        list.iter().map(|reason| (format!("{what}, {}", reason.reason), of(reason))).collect()
    };
    line("submitted".to_owned(), sums.submitted, device)?;
    line("accepted".to_owned(), sums.accepted, device)?;
    for (name, amount) in reasons("rejected", &sums.rejected) {
        line(name, amount, device)?;
    }
    let worth = Amount { shares: sums.accepted.shares, hashes: sums.accepted_at_upstream_target_hashes };
    line("accepted".to_owned(), worth, upstream)?;
    for (name, amount) in reasons("not sent", &sums.dropped) {
        line(name, amount, upstream)?;
    }
    if sums.held.shares.0 > 0 || sums.released.shares.0 > 0 {
        line("held for their job".to_owned(), sums.held, upstream)?;
        line("of them released".to_owned(), sums.released, upstream)?;
    }
    line("forwarded".to_owned(), sums.forwarded, upstream)?;
    line("acknowledged".to_owned(), sums.acknowledged, upstream)?;
    line("refused by the upstream".to_owned(), sums.refused, upstream)?;
    for (name, amount) in reasons("lost", &sums.lost) {
        line(name, amount, upstream)?;
    }
    line("unanswered".to_owned(), sums.unanswered, upstream)
}

/// Work for people; small work, as in tests and demonstrations, exactly.
fn work(work: Work) -> String {
    if work.0 < 1_000_000_000 { format!("{} hashes", work.0) } else { format!("{} TH", terahashes(work)) }
}

fn proves(signed: &SignedStatement, checked: &Checked) -> Vec<String> {
    let statement = &signed.statement;
    let mut lines = vec![format!("The owner of {} signed exactly this.", statement.signed_by)];
    lines.push(match checked.following {
        Following::First => "It is the first of its chain.".to_owned(),
        Following::Previous { gap_us: 0 } => {
            "It follows the statement before it without a gap, and no time is in both.".to_owned()
        }
        Following::Previous { gap_us } => format!(
            "It follows the statement before it, and no time is in both; {} seconds between them are in neither.",
            gap_us / 1_000_000
        ),
        Following::NotShown => {
            "It names a statement before it, which was not shown (--previous): the chain was not checked.".to_owned()
        }
    });
    lines.push(
        "Its sums add up, and the accepted work is the work of its Merkle root, in both columns.".to_owned(),
    );
    for (drawn, column) in [
        (checked.credited, "accepted work at the device's difficulty"),
        (checked.upstream, "work at the upstream's target"),
    ] {
        if drawn.draws == 0 {
            lines.push(format!("There is no {column}, so nothing was drawn from it."));
            continue;
        }
        if drawn.proved == 0 {
            lines.push(format!("Of the {column} nothing: none of {} draws could be proved.", drawn.draws));
            continue;
        }
        let missed = FRACTIONS.map(|percent| {
            let missed = 100.0 * (1.0 - percent / 100.0).powi(drawn.proved.min(10_000) as i32);
            format!("{percent} % would be missed with a probability of {missed:.2} %")
        });
        lines.push(format!(
            "{} of {} draws from the {column} fell on shares that really were hashed, meet the target that they were \
             credited for, and are counted once here. If a part of this work was made up, counted twice or of another time: {}.",
            drawn.proved,
            drawn.draws,
            missed.join("; ")
        ));
        lines.extend(drawn.mean_part().filter(|_| !drawn.fits_too_well()).map(|mean| {
            format!(
                "The hashes of those {} shares are {mean:.2} of their targets on average; about 0.5 is what targets give that \
                 were set before hashing, and targets that were fitted to hashes give more.",
                drawn.shares
            )
        }));
    }
    lines
}

fn does_not_prove(statement: &Statement, checked: &Checked) -> Vec<String> {
    let mut lines = Vec::new();
    if checked.credited.fits_too_well() || checked.upstream.fits_too_well() {
        lines.push(
            "That the targets were set before hashing: the hashes lie nearer to them than chance has it, as if each had been \
             chosen to fit. Then the work is far less than the sums say."
                .to_owned(),
        );
    }
    if checked.without_job > 0 {
        lines.push(format!(
            "{} shares of the sample have no job in the file, so that nobody can hash them: they may be made up.",
            checked.without_job
        ));
    }
    if checked.not_alone > 0 {
        lines.push(format!(
            "{} shares of the sample may be counted twice: others have the same nonce, time and version, and are not shown.",
            checked.not_alone
        ));
    }
    if checked.untimely > 0 {
        lines.push(format!(
            "{} shares of the sample carry a time in their header that is more than a day from when they are said to have \
             come: they may be of another period.",
            checked.untimely
        ));
    }
    if statement.lost_batches.0 > 0 {
        lines.push(format!(
            "{} batches of the ledger were lost with a disk: what was in them is in no sum.",
            statement.lost_batches.0
        ));
    }
    let fixed = [
        "That the draw was left to chance: it follows from the statement's hash, and a signer who makes up many \
         statements, at a million hashes each, can keep the one whose sample suits. Against that, say a word now, and have \
         the same statement (the same hash) made again with --challenge WORD.",
        "That the same shares are in no other statement, of another signer, subject or chain or of a time next to this one, \
         or were not sold elsewhere.",
        "When a share was made, beyond that its header says so within a day, and that it is younger than the block that it \
         builds on, if an explorer knows that block; nor that nothing was left out.",
        "Which machine made it: names are the signer's. Nor whom a block would have paid: that is in the coinbase.",
        "How many shares the work is made of, refused shares, and what upstreams answered: their sums are the signer's word, and only bound, not shown. A pool \
         knows what it acknowledged.",
    ];
    lines.extend(fixed.map(str::to_owned));
    lines
}
