//! The sums of an open minute, in little room while all that happens is what nearly always does: shares that are accepted,
//! and sent on or not, and acknowledged.
//!
//! A fleet has one of these for each device that mines, and each share changes three: whole sums are six times as large.
//! Nothing here is rounded or left out.

use crate::record::{Fate, ShareRecord, Verdict};
use crate::sums::{AnswerSums, Sums};
use stratum::Work;

/// The sums of an open minute.
#[derive(Debug, Default)]
pub(super) struct MinuteSums {
    accepted: u64,
    below_upstream_target: u64,
    forwarded: u64,
    kept: u64,
    acknowledged: u64,
    credited: Work,
    upstream_work: Work,
    forwarded_work: Work,
    acknowledged_work: Work,
    squared_work: f64,
    /// Everything else.
    rest: Option<Box<Sums>>,
}

impl MinuteSums {
    /// Reads what the next share will change, for the sake of the reading: see [`crate::Books::fetch`].
    pub(super) fn fetch(&self) -> u64 {
        let works = [self.credited, self.upstream_work, self.forwarded_work, self.acknowledged_work];
        works.iter().fold(self.accepted ^ self.squared_work.to_bits(), |read, work| read ^ work.0 as u64)
    }

    /// Counts a share, and that it was sent upstream if it was.
    pub(super) fn add_share(&mut self, share: &ShareRecord) {
        let is_usual = share.verdict == Verdict::Accepted;
        match share.fate {
            Fate::BelowUpstreamTarget if is_usual => self.below_upstream_target += 1,
            Fate::Forwarded if is_usual => {
                self.forwarded += 1;
                self.forwarded_work += share.upstream_work;
            }
            Fate::Kept if is_usual => self.kept += 1,
            _ => return self.add_rare_share(share),
        }
        self.accepted += 1;
        self.credited += share.submitted;
        self.upstream_work += share.upstream_work;
        let credited = share.submitted.0 as f64;
        self.squared_work += credited * credited;
    }

    fn add_rare_share(&mut self, share: &ShareRecord) {
        let rest = self.rest_mut();
        rest.shares.add_share(share);
        let credited = share.credited().0 as f64;
        rest.squared_work += credited * credited;
        if share.fate == Fate::Forwarded {
            rest.answers.add(&AnswerSums::of_forwarded(share.upstream_work));
        }
    }

    /// Adds what an upstream answered.
    pub(super) fn add_answers(&mut self, answers: &AnswerSums) {
        let AnswerSums { acknowledged, acknowledged_work, .. } = answers;
        let of_these = AnswerSums {
            acknowledged: *acknowledged,
            acknowledged_work: *acknowledged_work,
            ..AnswerSums::default()
        };
        if of_these == *answers {
            self.acknowledged += acknowledged;
            self.acknowledged_work += *acknowledged_work;
        } else {
            self.rest_mut().answers.add(answers);
        }
    }

    /// What is counted for everything else.
    pub(super) fn rest_mut(&mut self) -> &mut Sums {
        self.rest.get_or_insert_default()
    }

    /// Adds all of it to other sums.
    pub(super) fn add_to(&self, sums: &mut Sums) {
        let Sums { shares, answers, squared_work, .. } = sums;
        shares.submitted += self.accepted;
        shares.accepted += self.accepted;
        shares.below_upstream_target += self.below_upstream_target;
        shares.forwarded += self.forwarded;
        shares.kept += self.kept;
        shares.submitted_work += self.credited;
        shares.credited += self.credited;
        shares.upstream_work += self.upstream_work;
        shares.forwarded_work += self.forwarded_work;
        answers.forwarded += self.forwarded;
        answers.forwarded_work += self.forwarded_work;
        answers.acknowledged += self.acknowledged;
        answers.acknowledged_work += self.acknowledged_work;
        *squared_work += self.squared_work;
        if let Some(rest) = &self.rest {
            sums.add(rest);
        }
    }
}
