//! The entries of a period, read from the ledger as often as they are needed, and jobs wherever they are.

use std::collections::BTreeMap;

use accounting::entry::{JobEntry, microseconds};
use accounting::statement::StatedBatch;
use accounting::statement::collect::Picked;
use accounting::statement::forms::{Count, Hex};
use accounting::{BatchNumber, Entry, SealedBatch, codec};
use stratum::JobNumber;

use super::{LedgerFailure, refused};
use crate::cli::ledger::Progress;
use crate::ledger::{Opening, Reader, SqliteReader};

/// A job is written down when it comes: where clocks were not set meanwhile, within so many microseconds.
const NEAR_US: u64 = 5_000_000;

/// Where it is looked for when it is not there.
const FAR_US: u64 = 3600 * 1_000_000;

/// See the module's documentation.
pub(super) struct Source<'a> {
    reader: &'a SqliteReader,
    opening: &'a Opening,
    /// The last batch that was read: later ones came meanwhile, and are of no period that has ended.
    last: Option<BatchNumber>,
}

/// The batches that a period spans.
pub(super) struct Spanned {
    pub(super) first: Option<StatedBatch>,
    pub(super) last: Option<StatedBatch>,
    /// Those between them that were lost with a disk.
    pub(super) lost: u64,
}

impl<'a> Source<'a> {
    pub(super) fn new(reader: &'a SqliteReader, opening: &'a Opening) -> Self {
        Source { reader, opening, last: None }
    }

    /// Shows every entry of the batches with entries from `from_us` on and before `until_us`, and says which of them
    /// began before `to_us`. Fails on what is damaged: nobody should sign that.
    pub(super) fn each(
        &mut self,
        from_us: u64,
        until_us: u64,
        to_us: u64,
        mut visit: impl FnMut(&Entry) -> Result<(), LedgerFailure>,
    ) -> Result<Spanned, LedgerFailure> {
        let mut progress = Progress::new("batches");
        let mut spanned = Spanned { first: None, last: None, lost: 0 };
        let head = self.opening.head.number.0;
        let (mut first, mut last) = (None, self.last);
        for batch in self.reader.batches_between(from_us, until_us)? {
            let batch = batch?;
            if self.last.is_some_and(|last| batch.number > last) {
                break;
            }
            self.check(&batch)?;
            if batch.first_us < to_us {
                let stated = StatedBatch { number: Count(batch.number.0), hash: Hex(batch.hash) };
                spanned.first.get_or_insert(stated);
                spanned.last = Some(stated);
            }
            for (place, entry) in codec::entries(&batch.payload).enumerate() {
                visit(&entry.map_err(|error| self.damaged(&batch, &format!("entry {place}: {error}")))?)?;
            }
            last = last.max(Some(batch.number));
            let first = *first.get_or_insert(batch.number.0);
            progress.at(batch.number.0 + 1 - first, head.max(batch.number.0) + 1 - first);
        }
        self.last = last;
        spanned.lost = self.lost_between(&spanned);
        Ok(spanned)
    }

    fn check(&self, batch: &SealedBatch) -> Result<(), LedgerFailure> {
        if batch.computed_hash(self.opening.ledger) == batch.hash {
            return Ok(());
        }
        Err(self.damaged(batch, "it has not the hash that it was written with"))
    }

    fn damaged(&self, batch: &SealedBatch, what: &str) -> LedgerFailure {
        refused(format!("batch {} is damaged: {what}; `ledger verify` says more", batch.number.0))
    }

    fn lost_between(&self, spanned: &Spanned) -> u64 {
        let (Some(first), Some(last)) = (spanned.first, spanned.last) else { return 0 };
        let (first, last) = (first.number.0, last.number.0);
        let lost = self.opening.damage.iter().filter_map(|damage| {
            let (from, to) = (damage.first_lost.0.max(first), damage.last_lost?.0.min(last));
            (to + 1).checked_sub(from)
        });
        lost.sum()
    }

    /// The jobs of these shares, as far as the ledger has them.
    pub(super) fn jobs(&self, picked: &[Picked]) -> Result<BTreeMap<JobNumber, JobEntry>, LedgerFailure> {
        let mut jobs = BTreeMap::new();
        for Picked { share, .. } in picked {
            let Some(number) = share.job.filter(|number| !jobs.contains_key(number)) else { continue };
            let judged = microseconds(share.judged.utc);
            let came = judged.saturating_sub(u64::from(share.job_age_ms) * 1000);
            let near = (came.saturating_sub(NEAR_US), came.saturating_add(NEAR_US));
            let far = (came.saturating_sub(FAR_US), judged.saturating_add(NEAR_US));
            for (from_us, to_us) in [near, far] {
                if let Some(job) = self.job(number, from_us, to_us)? {
                    jobs.insert(number, job);
                    break;
                }
            }
        }
        Ok(jobs)
    }

    fn job(&self, number: JobNumber, from_us: u64, to_us: u64) -> Result<Option<JobEntry>, LedgerFailure> {
        for batch in self.reader.batches_between(from_us, to_us)? {
            // What cannot be read here is no job that could be shown.
            for entry in codec::entries(&batch?.payload).flatten() {
                if let Entry::Job(job) = entry
                    && job.number == number
                {
                    return Ok(Some(job));
                }
            }
        }
        Ok(None)
    }
}
