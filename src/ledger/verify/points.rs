//! Points counted anew from the batches, and held against those that are stored.
//!
//! What is stored may go on growing while this reads: spans that are over are read as they come, and the others as they
//! were at the watermark.

use std::collections::{BTreeMap, BTreeSet};

use accounting::entry::Gap;
use accounting::{Level, PackedSums, Point, Subject, Sums};

use super::{Findings, MAX_FAULTS, Opening, is_same, subject_name};
use crate::ledger::store::{Reader, StoreError};
use crate::ledger::times;

/// Spans of lost detail that are told apart; beyond, the last one goes on to the end.
const MAX_GAPS: usize = 1024;

/// Counted points, until they are compared.
pub(super) struct PointCheck {
    levels: [Counted; Level::ALL.len()],
    /// Of whom a point was found: what is missing later is not too old.
    found: BTreeSet<(Level, Subject)>,
    /// From when to when detail was lost, in unix seconds: the records of that time are in the points in which they came,
    /// and in the stream where the detail came back.
    gaps: Vec<(u64, u64)>,
    /// From when on every share is counted here, in unix seconds; `None` while that is not known.
    whole_from: Option<u64>,
    /// What upstreams answered and what energy was taken follows from earlier batches, which are gone.
    has_shares_only: bool,
    missing_minutes: u64,
    faults: Vec<String>,
    faults_total: u64,
    compared: u64,
}

/// The points of one level that are not compared yet.
struct Counted {
    level: Level,
    /// When the stretch that is compared next starts, in unix seconds.
    from: u64,
    points: BTreeMap<(Subject, u64), PackedSums>,
}

impl PointCheck {
    /// Nothing counted yet. `is_whole` says that the first batch of all is there.
    pub(super) fn new(is_whole: bool) -> Self {
        let counted = |level| Counted { level, from: 0, points: BTreeMap::new() };
        PointCheck {
            levels: Level::ALL.map(counted),
            found: BTreeSet::new(),
            gaps: Vec::new(),
            whole_from: is_whole.then_some(0),
            has_shares_only: !is_whole,
            missing_minutes: 0,
            faults: Vec::new(),
            faults_total: 0,
            compared: 0,
        }
    }

    /// A minute has ended: from then on, the open minute is known here as well.
    pub(super) fn minute_ended(&mut self, start: u64) {
        self.whole_from.get_or_insert(start.saturating_add(Level::Minute.seconds()));
    }

    /// Detail was lost, and came back with an entry of this time.
    pub(super) fn gap(&mut self, gap: &Gap, latest_us: u64) {
        let to = latest_us.max(gap.to_us) / 1_000_000;
        if self.gaps.len() < MAX_GAPS {
            self.gaps.push((gap.from_us / 1_000_000, to));
        } else if let Some(last) = self.gaps.last_mut() {
            last.1 = u64::MAX;
        }
    }

    /// Takes points of minutes that are over, each whole. Compares what can no longer change.
    pub(super) fn add(&mut self, points: Vec<Point>, reader: &dyn Reader) -> Result<(), StoreError> {
        for Point { subject, level, start, sums } in points {
            let stretch = start - start % stretch_of(level);
            let counted = &mut self.levels[level as usize];
            if stretch > counted.from {
                let (from, done) = (counted.from, std::mem::take(&mut counted.points));
                counted.from = stretch;
                self.compare(level, (from, stretch), done, reader, &[])?;
            }
            self.levels[level as usize].points.insert((subject, start), sums);
        }
        Ok(())
    }

    /// Compares the rest, which ends at the watermark.
    pub(super) fn finish(
        &mut self,
        opening: &Opening,
        reader: &dyn Reader,
        findings: &mut Findings,
    ) -> Result<(), StoreError> {
        for place in 0..self.levels.len() {
            let Counted { level, from, points } = &mut self.levels[place];
            let (level, from, counted) = (*level, *from, std::mem::take(points));
            let open: Vec<&Point> = opening.open_points.iter().filter(|point| point.level == level).collect();
            let last = open.iter().map(|point| point.start).max().unwrap_or(u64::MAX);
            self.compare(level, (from, last.max(from)), counted, reader, &open)?;
        }
        findings.points += self.compared;
        findings.faults_total += self.faults_total;
        let room = MAX_FAULTS.saturating_sub(findings.faults.len());
        findings.faults.extend(self.faults.drain(..).take(room));
        if self.missing_minutes > 0 {
            findings.notes.push(format!(
                "{} minutes are not stored: they were removed by age, or left out while the disk was slow",
                self.missing_minutes
            ));
        }
        if self.has_shares_only {
            findings.notes.push(
                "of points, only shares were counted anew: answers and energy follow from earlier batches"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// Compares a stretch of one level; `open` are the points at its end and later, as they were at the watermark.
    fn compare(
        &mut self,
        level: Level,
        (from, to): (u64, u64),
        counted: BTreeMap<(Subject, u64), PackedSums>,
        reader: &dyn Reader,
        open: &[&Point],
    ) -> Result<(), StoreError> {
        if self.whole_from.is_none() {
            return Ok(());
        }
        let stored = reader.all_points(level, from, to)?.into_iter();
        let stored = stored.chain(open.iter().copied().cloned());
        let stored = stored.filter(|point| point.start >= from);
        let stored: BTreeMap<_, _> = stored.map(|point| ((point.subject, point.start), point.sums)).collect();
        let keys: BTreeSet<(Subject, u64)> = stored.keys().chain(counted.keys()).copied().collect();
        for key @ (subject, start) in keys {
            let (counted, stored) = (counted.get(&key), stored.get(&key));
            let (counted, stored) = (counted.map(PackedSums::sums), stored.map(PackedSums::sums));
            self.compare_one(level, subject, start, counted, stored);
        }
        Ok(())
    }

    fn compare_one(
        &mut self,
        level: Level,
        subject: Subject,
        start: u64,
        counted: Option<Sums>,
        stored: Option<Sums>,
    ) {
        let end = start + level.seconds();
        let mut overlapping = self.gaps.iter().filter(|(from, to)| *from < end && *to >= start);
        let has_gap = overlapping.clone().next().is_some();
        let is_cut = overlapping.any(|(from, to)| *from < start || *to >= end);
        // Which devices a group had is not known without the batches that said it.
        let is_unknown = self.has_shares_only && matches!(subject, Subject::Group(_));
        if is_cut || is_unknown || self.whole_from.is_none_or(|whole_from| start < whole_from) {
            return;
        }
        let (stored, counted) = match (stored, counted) {
            (None, Some(_)) if level == Level::Minute => {
                self.missing_minutes += 1;
                return;
            }
            // Old points are removed: what comes before the first that is found was one of those.
            (None, _) if !self.found.contains(&(level, subject)) => return,
            (stored, counted) => (stored.unwrap_or_default(), counted.unwrap_or_default()),
        };
        self.found.insert((level, subject));
        self.compared += 1;
        let mut expected = counted.clone();
        // Whose share an answer was for is not known where its detail was lost, nor afterwards.
        let has_answers = self.gaps.is_empty() || matches!(subject, Subject::Fleet | Subject::Upstream(_));
        if self.has_shares_only || !has_answers {
            expected.answers.clone_from(&stored.answers);
        }
        if self.has_shares_only || has_gap {
            expected.energy.clone_from(&stored.energy);
        }
        if is_same(&expected, &stored) {
            return;
        }
        self.faults_total += 1;
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(format!(
                "the {} of {} from {} is not that of the entries: {} shares of {} hashes beside {} of {}",
                level.name(),
                subject_name(subject),
                times::seconds(start),
                stored.shares.submitted,
                stored.shares.submitted_work.0,
                counted.shares.submitted,
                counted.shares.submitted_work.0
            ));
        }
    }
}

/// How much is compared at once, in seconds: some tens of points of each subject, which is what fits in memory with a
/// great fleet, and not much less than a store reads at once anyway.
const fn stretch_of(level: Level) -> u64 {
    match level {
        Level::Minute => 3600,
        Level::TenMinutes => 6 * 3600,
        Level::Hour | Level::Day => times::DAY,
    }
}
