//! Whether a statement is what it says, as far as a stranger can tell from the file.
//!
//! A check shows that the key's owner signed exactly this; that it follows the statement before it; that its sums add up;
//! that the shares in the sample are those that had to be drawn; that each of them, hashed again, meets the target that it
//! was credited for; that it is in the tree once; and that its header's time is near the one that the record says, so that
//! it cannot be stated again another week. Targets that were chosen after hashing, to fit each hash, would make work of mere
//! luck: then hashes lie nearer to their targets than chance has it, which is looked for. Of `n` draws, none falls on work that is made up or counted twice
//! with probability `(1 - f)^n`, if that is a fraction `f` of all.
//!
//! It does not show that the same shares are in no other statement and were not sold elsewhere, which machine made them, or
//! when, beyond the block that they build on. Sums that the root does not carry (refused shares, answers) are the signer's
//! word.

use std::collections::{BTreeMap, BTreeSet};

use stratum::hash::{Hash, header_hash, merkle_root, sha256d};
use stratum::job::MAX_MERKLE_PATH;
use stratum::sv2::AuthorityPublicKey;
use stratum::{DeviceId, Difficulty, Target, Work};

use super::collect::{MAX_NEIGHBOURS, Period};
use super::draw::{Draws, Seed};
use super::forms::Hashes;
use super::{
    MAX_DRAWS, MAX_TEXT, Sample, SampledJob, SampledShare, SignedStatement, StatedSubject, Statement,
};
use crate::codec::{MAX_COINBASE, entries, write_share};
use crate::entry::{Entry, microseconds};
use crate::merkle::{Key, Node, Proof, Proved, Works};
use crate::record::{ShareRecord, Verdict};

/// How far a header's time may be from when the share was judged, in seconds: consensus lets it be two hours ahead, and
/// jobs begin at a median of blocks that is hours behind when blocks are slow.
const MAX_TIME_APART_S: u64 = 86_400;

/// Standard deviations above the mean that are still believed to be chance: a normal deviate is above 5 once in 3.5 million.
const MAX_DEVIATIONS: f64 = 5.0;

/// What is wrong with a statement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Somebody else signed it.
    #[error("it is signed by another key: {0}")]
    OtherKey(String),
    /// The signature is not of what the file holds.
    #[error("the signature is wrong: the file was changed, or another key signed it")]
    Signature,
    /// The statement contradicts itself.
    #[error("the statement contradicts itself: {0}")]
    Statement(String),
    /// It does not follow the statement before.
    #[error("it does not follow the statement before it: {0}")]
    Chain(String),
    /// The sample is not the one that had to be drawn.
    #[error("the sample is not the one that follows from the statement: {0}")]
    Draw(String),
    /// A share of the sample is not what it is said to be.
    #[error("record {index}: {what}")]
    Share {
        /// Its place.
        index: u64,
        /// What is wrong.
        what: String,
    },
}

/// How a statement follows the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Following {
    /// It is the first of its chain.
    First,
    /// It follows the one that was shown, so many microseconds after that one's end.
    Previous {
        /// Time that neither is about.
        gap_us: u64,
    },
    /// It names one before, which was not shown.
    NotShown,
}

/// The draws from one column.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drawn {
    /// How many points were drawn.
    pub draws: u64,
    /// How many of them fell on shares that were hashed again, are counted once and are of the period.
    pub proved: u64,
    /// How many different shares those are.
    pub shares: u64,
    /// Their hashes as parts of the targets that they are counted for, summed up, in millionths.
    pub parts_ppm: u64,
}

impl Drawn {
    /// The mean of hash over target. Targets that were set before hashing give every value from 0 to 1 equally often, and
    /// 0.5 on average. `None` without proved shares.
    pub fn mean_part(&self) -> Option<f64> {
        (self.shares > 0).then(|| self.parts_ppm as f64 / 1e6 / self.shares as f64)
    }

    /// Whether hashes lie so near to their targets as chance has it once in three million statements.
    pub fn fits_too_well(&self) -> bool {
        // The standard deviation of a uniform value is 1/sqrt(12).
        let deviation = 1.0 / (12.0 * self.shares as f64).sqrt();
        self.mean_part().is_some_and(|mean| mean > 0.5 + MAX_DEVIATIONS * deviation)
    }
}

/// What a check showed of a statement without a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The statement's hash.
    pub hash: [u8; 32],
    /// How it follows the one before.
    pub following: Following,
    /// Draws from what devices were credited.
    pub credited: Drawn,
    /// Draws from what shares were worth at the upstream's target.
    pub upstream: Drawn,
    /// Different shares that were hashed again.
    pub hashed: u64,
    /// Different shares whose job is missing, so that they could not be hashed.
    pub without_job: u64,
    /// Different shares that were hashed, and may still be counted twice, because not all that have the key of them are shown.
    pub not_alone: u64,
    /// Different shares that were hashed, and whose header's time is more than a day from when they are said to have been
    /// judged: they may be of another period.
    pub untimely: u64,
    /// The blocks that the shares build on, in internal byte order, and how many shares of the sample do.
    pub tips: BTreeMap<Hash, u64>,
}

/// Checks everything. The first fault ends it.
pub fn check(
    signed: &SignedStatement,
    key: &AuthorityPublicKey,
    previous: Option<&SignedStatement>,
) -> Result<Checked, Fault> {
    if signed.statement.signed_by != key.to_string() {
        return Err(Fault::OtherKey(signed.statement.signed_by.chars().take(MAX_TEXT).collect()));
    }
    if !signed.is_signed_by(key) {
        return Err(Fault::Signature);
    }
    if let Some(previous) = previous
        && !previous.is_signed_by(key)
    {
        return Err(Fault::Chain("the one before is not signed by this key".to_owned()));
    }
    check_contents(signed, previous.map(|previous| &previous.statement))
}

/// Checks everything but the signatures.
pub fn check_contents(signed: &SignedStatement, previous: Option<&Statement>) -> Result<Checked, Fault> {
    let statement = &signed.statement;
    check_sums(statement)?;
    let following = follow(statement, previous)?;
    let mut checked = Checked {
        hash: statement.hash(),
        following,
        credited: Drawn::default(),
        upstream: Drawn::default(),
        hashed: 0,
        without_job: 0,
        not_alone: 0,
        untimely: 0,
        tips: BTreeMap::new(),
    };
    let shown = check_shares(signed, &mut checked)?;
    check_draws(signed, &shown, &mut checked)?;
    Ok(checked)
}

fn check_sums(statement: &Statement) -> Result<(), Fault> {
    let contradiction = |what: &str| Err(Fault::Statement(what.to_owned()));
    let (StatedSubject::Device(name) | StatedSubject::Group(name) | StatedSubject::Account(name)) =
        &statement.subject;
    if name.len() > MAX_TEXT {
        return contradiction("the subject's name is too long");
    }
    if statement.from_unix_us >= statement.to_unix_us
        || statement.answers_until_unix_us < statement.from_unix_us
    {
        return contradiction("the period ends before it begins");
    }
    for sums in [&statement.sums, &statement.without_detail] {
        if let Some(violation) = sums.violation() {
            return Err(Fault::Statement(violation));
        }
    }
    let sums = &statement.sums;
    let refused = sums.submitted.shares.0.checked_sub(sums.accepted.shares.0);
    if statement.root.records != sums.accepted.shares || Some(statement.refused_root.records.0) != refused {
        return contradiction("the roots are over other records than the sums");
    }
    let stated = (sums.accepted.hashes, sums.accepted_at_upstream_target_hashes);
    if stated != (statement.root.accepted_hashes, statement.root.upstream_hashes) {
        return contradiction("the root carries other work than the sums");
    }
    let roots = [
        (statement.root.records, statement.root.hash),
        (statement.refused_root.records, statement.refused_root.hash),
    ];
    if roots.iter().any(|(records, hash)| (records.0 == 0) != (hash.0 == Node::empty().hash)) {
        return contradiction("a root is over nothing, and there are records, or the reverse");
    }
    Ok(())
}

fn follow(statement: &Statement, previous: Option<&Statement>) -> Result<Following, Fault> {
    if (statement.number.0 == 1) != statement.previous.is_none() || statement.number.0 == 0 {
        return Err(Fault::Statement("only the first of a chain names none before it".to_owned()));
    }
    let Some(previous) = previous else {
        let is_first = statement.previous.is_none();
        return Ok(if is_first { Following::First } else { Following::NotShown });
    };
    let broken = |what: &str| Err(Fault::Chain(what.to_owned()));
    if statement.previous.is_none() {
        return broken("it is the first of its chain, and names none");
    }
    if statement.previous.map(|hash| hash.0) != Some(previous.hash()) {
        return broken("it names another one");
    }
    if statement.ledger != previous.ledger || statement.subject != previous.subject {
        return broken("that one is about another ledger or subject");
    }
    if statement.number.0 != previous.number.0 + 1 {
        return broken("their numbers do not follow each other");
    }
    match statement.from_unix_us.0.checked_sub(previous.to_unix_us.0) {
        Some(gap_us) => Ok(Following::Previous { gap_us }),
        None => broken("their periods overlap, so that work counts in both"),
    }
}

/// A share of the sample whose proof leads to the root.
struct Shown {
    proved: Proved,
    key: Key,
    after: Works,
    /// What was hashed; none without its job.
    header: Option<[u8; 80]>,
    /// Its hash as a part of the target that it is counted for, in each column.
    parts: [f64; 2],
    /// Its header's time is near the one that it is said to have been judged at.
    is_timely: bool,
    /// It is in the tree once.
    is_alone: bool,
}

impl Shown {
    fn is_proved(&self) -> bool {
        self.header.is_some() && self.is_timely && self.is_alone
    }
}

fn check_shares(signed: &SignedStatement, checked: &mut Checked) -> Result<Vec<Shown>, Fault> {
    let sample = &signed.sample;
    if sample.draws == 0 || sample.draws > MAX_DRAWS {
        return Err(Fault::Draw(format!("{} draws; 1 to {MAX_DRAWS} are possible", sample.draws)));
    }
    let most = 2 * sample.draws as usize * MAX_NEIGHBOURS;
    if sample.shares.len() > most {
        return Err(Fault::Draw(format!("it has {} shares; {most} are possible", sample.shares.len())));
    }
    if sample.challenge.len() > MAX_TEXT {
        return Err(Fault::Draw("the challenge is too long".to_owned()));
    }
    if !sample.shares.is_sorted_by(|one, next| one.index < next.index) {
        return Err(Fault::Draw("its shares are not in order".to_owned()));
    }
    let mut shown = Vec::with_capacity(sample.shares.len());
    let mut devices = BTreeSet::new();
    for share in &sample.shares {
        let fault = |what: String| Fault::Share { index: share.index.0, what };
        let record = check_record(share, &signed.statement).map_err(fault)?;
        devices.extend(record.device);
        let (proved, after) = check_proof(share, &record, &signed.statement).map_err(fault)?;
        let job =
            share.job.map(|place| sample.jobs.get(place as usize).ok_or("its job is not in the sample"));
        let (mut header, mut parts) = (None, [0.0; 2]);
        if let Some(job) = job.transpose().map_err(|what| fault(what.to_owned()))? {
            let bytes = header_of(share, job).map_err(fault)?;
            let hash = header_hash(&bytes);
            check_hash(&hash, &record, job.nbits).map_err(fault)?;
            header = Some(bytes);
            parts = [record.credited(), record.upstream_work].map(|work| part_of_target(&hash, work));
            *checked.tips.entry(job.previous_hash.0).or_default() += 1;
        }
        let judged_s = microseconds(record.judged.utc) / 1_000_000;
        let is_timely = judged_s.abs_diff(record.ntime.into()) <= MAX_TIME_APART_S;
        shown.push(Shown { proved, key: Key::of(&record), after, header, parts, is_timely, is_alone: false });
    }
    check_devices(&devices, &signed.statement)?;
    check_alone(sample, &mut shown)?;
    let count = |is_so: fn(&Shown) -> bool| shown.iter().filter(|share| is_so(share)).count() as u64;
    checked.hashed = count(|share| share.header.is_some());
    checked.without_job = count(|share| share.header.is_none());
    checked.not_alone = count(|share| share.header.is_some() && !share.is_alone);
    checked.untimely = count(|share| share.header.is_some() && !share.is_timely);
    Ok(shown)
}

/// Looks at shares that have the same key, which are neighbours in the tree: when all of them are there, each must have
/// a header of its own.
fn check_alone(sample: &Sample, shown: &mut [Shown]) -> Result<(), Fault> {
    let mut start = 0;
    for run in shown.chunk_by_mut(|one, next| one.key == next.key) {
        let shares = &sample.shares[start..start + run.len()];
        start += run.len();
        let mut headers = BTreeSet::new();
        for (share, shown) in shares.iter().zip(&*run) {
            if shown.header.is_some_and(|header| !headers.insert(header)) {
                let what = "the same share is another record too: it was counted twice".to_owned();
                return Err(Fault::Share { index: share.index.0, what });
            }
        }
        let are_all = run.first().is_some_and(|share| share.proved.is_first_of_key)
            && run.last().is_some_and(|share| share.proved.is_last_of_key)
            && shares.windows(2).all(|pair| pair[0].index.0 + 1 == pair[1].index.0)
            && headers.len() == run.len();
        run.iter_mut().for_each(|share| share.is_alone = are_all);
    }
    Ok(())
}

/// A statement of one device has shares of one device.
fn check_devices(devices: &BTreeSet<DeviceId>, statement: &Statement) -> Result<(), Fault> {
    let is_one = matches!(statement.subject, StatedSubject::Device(_));
    if is_one && devices.len() > 1 {
        return Err(Fault::Statement("it is about one device, and its shares are of several".to_owned()));
    }
    Ok(())
}

/// The record of a share of the sample, which says what the sample says, and is one of the statement.
fn check_record(share: &SampledShare, statement: &Statement) -> Result<ShareRecord, String> {
    let mut read = entries(&share.record.0);
    let (Some(Ok(Entry::Share(record))), None) = (read.next(), read.next()) else {
        return Err("its record cannot be read".to_owned());
    };
    let mut again = Vec::with_capacity(share.record.0.len());
    write_share(&mut again, &record);
    if again != share.record.0 {
        return Err("its record is not written as records are".to_owned());
    }
    let said = (share.version, share.ntime, share.nonce, share.rollable.0.as_slice());
    let works = (share.accepted_hashes, share.upstream_hashes);
    if said != (record.version, record.ntime, record.nonce, &record.rollable)
        || works != (Hashes(record.credited()), Hashes(record.upstream_work))
    {
        return Err("the sample says other things of it than its record".to_owned());
    }
    if matches!(record.verdict, Verdict::Rejected(_)) {
        return Err("it was refused, and cannot have been drawn".to_owned());
    }
    let period = Period {
        from_us: statement.from_unix_us.0,
        to_us: statement.to_unix_us.0,
        answers_until_us: statement.answers_until_unix_us.0,
    };
    if !period.has(&record) {
        return Err("it was judged outside the period".to_owned());
    }
    if share.job.is_some() && record.job.is_none() {
        return Err("its record knows no job, and the sample does".to_owned());
    }
    Ok(record)
}

/// Where the proof of a share leads, and the work up to and with it, if that is to the root.
fn check_proof(
    share: &SampledShare,
    record: &ShareRecord,
    statement: &Statement,
) -> Result<(Proved, Works), String> {
    let leaf = Node::leaf(&share.record.0, Works::of(record), Key::of(record));
    let path = share.path.iter().map(super::PathNode::node).collect();
    let proof = Proof { index: share.index.0, path };
    let root = (statement.root.hash.0, statement.works());
    let proved = proof.walk(leaf, statement.root.records.0);
    let proved = proved.filter(|proved| (proved.root.hash, proved.root.works) == root);
    let proved = proved.ok_or("its proof does not lead to the root")?;
    let after = proved.before.plus(leaf.works).map_err(|error| error.to_string())?;
    Ok((proved, after))
}

/// The header that a share and its job make.
fn header_of(share: &SampledShare, job: &SampledJob) -> Result<[u8; 80], String> {
    if job.merkle_path.len() > MAX_MERKLE_PATH {
        return Err("the merkle path of its job is too long".to_owned());
    }
    if job.coinbase_prefix.0.len().max(job.coinbase_suffix.0.len()) > MAX_COINBASE {
        return Err("the coinbase of its job is too long".to_owned());
    }
    let coinbase = [&*job.coinbase_prefix.0, &*share.rollable.0, &*job.coinbase_suffix.0].concat();
    let path: Vec<Hash> = job.merkle_path.iter().map(|hash| hash.0).collect();
    let mut header = [0; 80];
    header[..4].copy_from_slice(&share.version.to_le_bytes());
    header[4..36].copy_from_slice(&job.previous_hash.0);
    header[36..68].copy_from_slice(&merkle_root(sha256d(&coinbase), &path));
    header[68..72].copy_from_slice(&share.ntime.to_le_bytes());
    header[72..76].copy_from_slice(&job.nbits.to_le_bytes());
    header[76..].copy_from_slice(&share.nonce.to_le_bytes());
    Ok(header)
}

/// Whether a hash is worth what its share was credited, in both columns. A hash meets a target exactly when the work of
/// the hash, taken as a target, is no less than the target's.
fn check_hash(hash: &Hash, record: &ShareRecord, nbits: u32) -> Result<(), String> {
    let proved = Target::from_le_bytes(*hash).work();
    for (claimed, column) in
        [(record.credited(), "credited"), (record.upstream_work, "counted for the upstream")]
    {
        if proved < claimed {
            return Err(format!(
                "hashed again, it proves {} hashes, and {} were {column}",
                proved.0, claimed.0
            ));
        }
    }
    if record.verdict == Verdict::BlockFound && !Target::from_compact(nbits).is_met_by(hash) {
        return Err("it is said to be a block, and is none".to_owned());
    }
    Ok(())
}

/// A hash as a part of the target of this work: over 2^256, times the work.
fn part_of_target(hash: &Hash, work: Work) -> f64 {
    // The hash is difficulty 1 over its difficulty, and difficulty 1 is 0xffff * 2^208.
    let hash = 65_535.0 / 2f64.powi(48) / Difficulty::of_hash(hash).0;
    (hash * work.0 as f64).min(1.0)
}

/// Every point that follows from the statement lies on a share of the sample, and every share has one.
fn check_draws(signed: &SignedStatement, shown: &[Shown], checked: &mut Checked) -> Result<(), Fault> {
    let (sample, total) = (&signed.sample, signed.statement.works());
    let seed = Seed::of(&checked.hash, &sample.challenge);
    let draws = Draws::of(seed, sample.draws, total);
    let mut is_drawn = vec![false; shown.len()];
    let mut cover = |points: &[u128], place_of: usize, column: fn(&Works) -> u128| {
        let mut drawn = Drawn { draws: points.len() as u64, ..Drawn::default() };
        let mut last = None;
        for point in points {
            let place = shown.partition_point(|share| column(&share.after) <= *point);
            let share = shown.get(place).filter(|share| column(&share.proved.before) <= *point);
            let share = share.ok_or_else(|| Fault::Draw(format!("it has no share at work {point}")))?;
            is_drawn[place] = true;
            if share.is_proved() {
                drawn.proved += 1;
                // Points are in order: those on one share follow each other.
                if last.replace(place) != Some(place) {
                    drawn.shares += 1;
                    drawn.parts_ppm += (share.parts[place_of] * 1e6) as u64;
                }
            }
        }
        Ok(drawn)
    };
    checked.credited = cover(&draws.credited, 0, |works| works.credited.0)?;
    checked.upstream = cover(&draws.upstream, 1, |works| works.upstream.0)?;
    let mut start = 0;
    for run in shown.chunk_by(|one, next| one.key == next.key) {
        if !is_drawn[start..start + run.len()].contains(&true) {
            let index = sample.shares[start].index.0;
            return Err(Fault::Draw(format!("record {index} was not drawn")));
        }
        start += run.len();
    }
    Ok(())
}
