//! Sums over what a role recorded, and the rules that hold between them at any moment.

use std::collections::BTreeMap;

use mining_proxy::Tally;
use mining_server::{Fate, ShareRecord, UpstreamAnswer, UpstreamVerdict, Verdict};
use stratum::{DeviceId, Work};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) submitted: u64,
    pub(crate) accepted: u64,
    pub(crate) rejected: u64,
    pub(crate) below: u64,
    pub(crate) forwarded: u64,
    pub(crate) dropped: u64,
    pub(crate) kept: u64,
    pub(crate) blocks: u64,
    credited: Work,
}

#[derive(Debug, Default)]
pub(crate) struct Accounts {
    pub(crate) total: Sums,
    devices: BTreeMap<Option<DeviceId>, Sums>,
    /// Shares that connections judged, recorded or on their way.
    pub(crate) judged: u64,
    pub(crate) acknowledged: u64,
    pub(crate) refused: u64,
    pub(crate) lost: u64,
}

impl Sums {
    fn add(&mut self, record: &ShareRecord) {
        self.submitted += 1;
        self.credited += record.credited();
        match record.verdict {
            Verdict::Accepted => self.accepted += 1,
            Verdict::BlockFound => {
                self.accepted += 1;
                self.blocks += 1;
            }
            Verdict::Rejected(_) => self.rejected += 1,
        }
        match record.fate {
            Fate::Refused => (),
            Fate::BelowUpstreamTarget => self.below += 1,
            Fate::Forwarded => self.forwarded += 1,
            Fate::Dropped(_) => self.dropped += 1,
            Fate::Kept => self.kept += 1,
        }
    }

    fn sum(mut self, other: &Sums) -> Sums {
        self.submitted += other.submitted;
        self.accepted += other.accepted;
        self.rejected += other.rejected;
        self.below += other.below;
        self.forwarded += other.forwarded;
        self.dropped += other.dropped;
        self.kept += other.kept;
        self.blocks += other.blocks;
        self.credited += other.credited;
        self
    }
}

impl Accounts {
    pub(crate) fn record(&mut self, record: &ShareRecord) {
        let refused = matches!(record.verdict, Verdict::Rejected(_));
        assert_eq!(refused, record.fate == Fate::Refused, "what is refused goes nowhere: {record:?}");
        assert_eq!(refused, record.credited() == Work(0), "what is accepted is credited: {record:?}");
        assert_eq!(
            record.fate == Fate::Forwarded,
            record.sequence_number.is_some(),
            "what is forwarded has a number: {record:?}"
        );
        self.total.add(record);
        self.devices.entry(record.device).or_default().add(record);
    }

    pub(crate) fn answer(&mut self, answer: &UpstreamAnswer) {
        match &answer.verdict {
            UpstreamVerdict::Acknowledged { count, .. } => self.acknowledged += u64::from(*count),
            UpstreamVerdict::Rejected { .. } => self.refused += 1,
            UpstreamVerdict::Lost { count, .. } => self.lost += u64::from(*count),
        }
    }

    /// `queued` shares are on their way to the owner of the work.
    pub(crate) fn check(&self, queued: usize, tally: Option<Tally>) {
        let total = &self.total;
        assert_eq!(self.judged, total.submitted + queued as u64, "every share is recorded once: {self:?}");
        assert_eq!(
            total.submitted,
            total.accepted + total.rejected,
            "submitted = accepted + rejected: {self:?}"
        );
        assert_eq!(
            total.accepted,
            total.below + total.forwarded + total.dropped + total.kept,
            "accepted = below target + forwarded + dropped + kept: {self:?}"
        );
        let sum = self.devices.values().fold(Sums::default(), Sums::sum);
        assert_eq!(sum, *total, "the sums of the devices are the totals: {self:?}");
        let tally = tally.unwrap_or_default();
        assert_eq!(
            total.forwarded,
            self.acknowledged + self.refused + self.lost + tally.pending,
            "forwarded = acknowledged + rejected upstream + pending + lost: {self:?}, {tally:?}"
        );
        let own = Tally {
            forwarded: total.forwarded,
            acknowledged: self.acknowledged,
            rejected: self.refused,
            pending: tally.pending,
            lost: self.lost,
        };
        assert_eq!(own, tally, "the records say what the upstream's tally says");
    }
}
