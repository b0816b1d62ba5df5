//! Whether a ledger is sound: every hash, the chain of batches, numbers without gaps, every entry, and sums that add up
//! and that come out again when all entries are counted anew.
//!
//! Nothing is repaired here, and nothing is believed: whatever can be computed again is.

mod points;

use std::collections::BTreeMap;

use accounting::sums::is_consistent;
use accounting::{
    BatchNumber, BlockRow, Books, Entry, LedgerId, Level, PackedSums, SealedBatch, Subject, Sums, codec,
};
use stratum::UpstreamId;

use self::points::PointCheck;
use super::store::{Head, Opening, Reader, StoreError};

/// Faults that are told apart; beyond, they are only counted. A broken disk makes millions.
pub const MAX_FAULTS: usize = 100;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Batches that were read.
    pub batches: u64,
    /// Entries in them.
    pub entries: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Stored sums that were compared.
    pub sums: u64,
    /// Stored points that were compared.
    pub points: u64,
    /// What is wrong, at most [`MAX_FAULTS`] of it.
    pub faults: Vec<String>,
    /// How much is wrong.
    pub faults_total: u64,
    /// What could not be checked, and why.
    pub notes: Vec<String>,
}

impl Findings {
    /// Adds a fault.
    pub fn fault(&mut self, what: impl Into<String>) {
        self.faults_total += 1;
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(what.into());
        }
    }
}

/// Reads the whole ledger. `progress` hears how many of how many batches are read.
pub fn verify(reader: &dyn Reader, mut progress: impl FnMut(u64, u64)) -> Result<Findings, StoreError> {
    let mut findings = Findings::default();
    let opening = reader.opening()?;
    for damage in &opening.damage {
        let lost = match damage.last_lost {
            Some(last) => format!("batches {} to {} are lost", damage.first_lost.0, last.0),
            None => format!("batches from {} on were lost, and are in no sum", damage.first_lost.0),
        };
        findings.fault(format!("{lost}: {} ({})", damage.set_aside.display(), damage.what));
    }
    if opening.removed.number > BatchNumber(0) {
        findings.notes.push(format!(
            "batches up to {} were removed by age or size: sums over them cannot be computed again",
            opening.removed.number.0
        ));
    }
    let mut recount = Recount::new(&opening);
    let mut chain = Chain { ledger: opening.ledger, last: opening.removed };
    let total = opening.head.number.0 - opening.removed.number.0;
    for batch in reader.batches(opening.removed.number.next())? {
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => {
                findings.fault(format!("after batch {}: {error}", chain.last.number.0));
                break;
            }
        };
        findings.batches += 1;
        findings.entries += u64::from(batch.count);
        findings.bytes += batch.payload.len() as u64;
        chain.follow(&batch, &opening, &mut findings);
        recount.add(&batch, &opening, reader, &mut findings)?;
        progress(findings.batches, total);
    }
    if chain.last.number < opening.head.number {
        let (from, to) = (chain.last.number.next().0, opening.head.number.0);
        findings.fault(format!("batches {from} to {to} are missing"));
    }
    // Of what is not there, nobody knows what upstreams answered.
    let is_whole = opening.removed.number == BatchNumber(0) && opening.damage.is_empty();
    let has_gaps = recount.has_gaps || !is_whole;
    reader.at_once(&mut |reader| check_sums(reader, has_gaps, &mut findings))?;
    Ok(findings)
}

/// Whether the stored sums add up: each in itself, all devices to the fleet, and the days of each to its whole.
fn check_sums(reader: &dyn Reader, has_gaps: bool, findings: &mut Findings) -> Result<(), StoreError> {
    let stored = reader.sums()?;
    let mut parts = Sums::default();
    for (subject, sums) in &stored {
        let sums = &sums.sums();
        findings.sums += 1;
        let name = subject_name(*subject);
        if let Some(violation) = sums.shares.violation() {
            findings.fault(format!("the sums of {name}: {violation}"));
        }
        let days = reader.points(*subject, Level::Day, 0, u64::MAX)?;
        findings.points += days.len() as u64;
        let mut all = Sums::default();
        days.iter().for_each(|(_, day)| all.add(day));
        if !is_same(&all, sums) {
            findings.fault(format!(
                "the days of {name} are not its sums: {} shares of {} hashes beside {} of {}",
                all.shares.submitted,
                all.shares.submitted_work.0,
                sums.shares.submitted,
                sums.shares.submitted_work.0
            ));
        }
        if matches!(subject, Subject::Device(_) | Subject::Untracked) {
            parts.add(sums);
        }
    }
    let fleet = stored.iter().find(|(subject, _)| *subject == Subject::Fleet).map(|(_, sums)| sums.sums());
    // Where detail was lost, what upstreams answered is known of the fleet and not of each device.
    if has_gaps && let Some(fleet) = &fleet {
        parts.answers.clone_from(&fleet.answers);
    }
    if !fleet.is_none_or(|fleet| is_same(&parts, &fleet)) {
        findings.fault(format!(
            "the devices do not add up to the fleet: {} shares of {} hashes",
            parts.shares.submitted, parts.shares.submitted_work.0
        ));
    }
    Ok(())
}

/// Whether all that is summed exactly is the same. The squares are not: they depend on the order.
fn is_same(one: &Sums, other: &Sums) -> bool {
    (&one.shares, &one.answers, &one.energy) == (&other.shares, &other.answers, &other.energy)
}

fn subject_name(subject: Subject) -> String {
    match subject {
        Subject::Fleet => "the fleet".to_owned(),
        Subject::Untracked => "no device".to_owned(),
        Subject::Upstream(upstream) => format!("upstream {upstream}"),
        Subject::Group(group) => format!("group {}", group.0),
        Subject::Device(device) => format!("device {device}"),
    }
}

/// Follows the chain of hashes.
struct Chain {
    ledger: LedgerId,
    last: Head,
}

impl Chain {
    fn follow(&mut self, batch: &SealedBatch, opening: &Opening, findings: &mut Findings) {
        let number = batch.number.0;
        let expected = self.last.number.next();
        let is_lost = |number: BatchNumber| {
            opening.damage.iter().any(|damage| {
                damage.last_lost.is_some_and(|last| (damage.first_lost..=last).contains(&number))
            })
        };
        if batch.number != expected {
            // What is known to be lost was said already.
            if !(expected.0..number).map(BatchNumber).all(is_lost) {
                findings.fault(format!("batches {} to {} are missing", expected.0, number - 1));
            }
        } else if batch.previous != self.last.hash {
            findings
                .fault(format!("batch {number} does not follow batch {}: the chain is broken", number - 1));
        }
        if batch.computed_hash(self.ledger) != batch.hash {
            findings.fault(format!("batch {number} has not the hash that it was written with"));
        }
        self.last = Head { number: batch.number, hash: batch.hash };
    }
}

/// Counts all entries anew, and compares with what is stored.
struct Recount {
    books: Books,
    points: PointCheck,
    /// Answers whose shares' detail was lost.
    has_gaps: bool,
    /// Something could not be counted: a comparison would say nothing.
    is_partial: bool,
    /// Something is wrong with the batches themselves.
    is_broken: bool,
    /// The time of the latest entry, in unix microseconds.
    latest_us: u64,
}

impl Recount {
    fn new(opening: &Opening) -> Self {
        let mut books = Books::default();
        // The stream has the numbers of groups alone.
        for (_, name) in &opening.groups {
            books.group(name);
        }
        let is_partial = opening.removed.number > BatchNumber(0);
        let points = PointCheck::new(!is_partial);
        let (has_gaps, is_broken, latest_us) = Default::default();
        Recount { books, points, has_gaps, is_partial, is_broken, latest_us }
    }

    fn add(
        &mut self,
        batch: &SealedBatch,
        opening: &Opening,
        reader: &dyn Reader,
        findings: &mut Findings,
    ) -> Result<(), StoreError> {
        let number = batch.number;
        self.is_broken |= findings.faults_total > 0;
        self.books.begin_batch(number);
        let mut count = 0;
        for entry in codec::entries(&batch.payload) {
            match entry {
                Ok(entry) => self.apply(&entry, number, findings),
                Err(error) => findings.fault(format!("entry {count} of batch {}: {error}", number.0)),
            }
            count += 1;
        }
        if count != batch.count {
            findings.fault(format!("batch {} has {count} entries, not {}", number.0, batch.count));
        }
        if self.is_broken || number > opening.watermark {
            drop(self.books.take_points());
            return Ok(());
        }
        if number < opening.watermark {
            return self.points.add(self.books.take_points(), reader);
        }
        let roll_up = self.books.roll_up(opening.watermark);
        self.points.add(roll_up.points, reader)?;
        if !self.is_partial {
            self.compare(roll_up.sums, opening, findings);
            self.compare_facts(opening, findings);
        }
        self.points.finish(opening, reader, findings)
    }

    fn apply(&mut self, entry: &Entry, number: BatchNumber, findings: &mut Findings) {
        self.latest_us = self.latest_us.max(entry.at_us());
        match entry {
            Entry::Share(share) if !is_consistent(share) => {
                let (verdict, fate) = (share.verdict, share.fate);
                findings.fault(format!("batch {}: a share that is {verdict:?} and {fate:?}", number.0));
                return;
            }
            Entry::Gap(gap) => {
                self.has_gaps |= !gap.upstreams.is_empty();
                self.points.gap(gap, self.latest_us);
            }
            Entry::MinuteEnded(start) => self.points.minute_ended(*start),
            _ => {}
        }
        self.books.apply(entry);
    }

    /// Refusals by code, and the latest events and blocks.
    fn compare_facts(&self, opening: &Opening, findings: &mut Findings) {
        let facts = &opening.facts;
        let by_upstream = |id: &UpstreamId| self.books.refused_by_code(*id);
        if facts.refused_by_code != self.books.totals().refused_by_code
            || facts.refused_by_upstream.iter().any(|(id, counts)| *counts != by_upstream(id))
        {
            findings.fault("the refusals by code are not those of the entries");
        }
        for (counted, stored) in self.books.events().rev().zip(facts.events.iter().rev()) {
            if counted != stored {
                findings.fault(format!("event {} is not that of the entries", stored.number));
            }
        }
        for (counted, stored) in self.books.blocks().rev().zip(facts.blocks.iter().rev()) {
            // The job of a block may have been known to one process and not to another one.
            let is_other = counted.hash.is_some() && stored.hash.is_some() && counted != stored;
            let key = |block: &BlockRow| (block.number, block.found_us, block.device, block.job);
            if is_other || key(counted) != key(stored) {
                findings.fault(format!("block {} is not that of the entries", stored.number));
            }
        }
    }

    fn compare(&self, counted: Vec<(Subject, PackedSums)>, opening: &Opening, findings: &mut Findings) {
        let counted: BTreeMap<Subject, PackedSums> = counted.into_iter().collect();
        let stored: BTreeMap<Subject, &PackedSums> =
            opening.sums.iter().map(|(subject, sums)| (*subject, sums)).collect();
        let subjects = counted.keys().chain(stored.keys().filter(|subject| !counted.contains_key(*subject)));
        for subject in subjects {
            let counted = counted.get(subject).map(PackedSums::sums).unwrap_or_default();
            let stored = stored.get(subject).map(|stored| stored.sums()).unwrap_or_default();
            findings.sums += 1;
            // Whose share an answer in a gap was for is not in the stream, but was known when it was counted.
            let has_answers = !self.has_gaps || matches!(subject, Subject::Fleet | Subject::Upstream(_));
            let is_answered = !has_answers || counted.answers == stored.answers;
            // Who mined in which minute is not known where detail was lost.
            let is_energy_same = self.has_gaps || counted.energy == stored.energy;
            if counted.shares != stored.shares || !is_answered || !is_energy_same {
                findings.fault(format!(
                    "the sums of {} are not those of the entries: {} shares of {} hashes beside {} of {}",
                    subject_name(*subject),
                    stored.shares.submitted,
                    stored.shares.submitted_work.0,
                    counted.shares.submitted,
                    counted.shares.submitted_work.0
                ));
            }
        }
    }
}
