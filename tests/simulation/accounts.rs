//! Sums over what a role recorded, and the rules that hold between them at any moment.

use std::collections::BTreeMap;

use accounting::{Books, Entry, ShareSums, Subject};
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
    /// The ledger's books over the same records: this module is the reference that they must agree with.
    books: Books,
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
            Fate::Held(_) => unreachable!("nothing is declared here"),
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
        self.books.apply_share(record);
        self.total.add(record);
        self.devices.entry(record.device).or_default().add(record);
    }

    pub(crate) fn answer(&mut self, answer: &UpstreamAnswer) {
        self.books.apply(&Entry::Answer(answer.clone()));
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
        self.check_books();
    }

    /// The ledger's books say the same, for the fleet and for each device.
    fn check_books(&self) {
        let totals = self.books.totals();
        assert_eq!(totals.violation(), None);
        assert_eq!(self.total, sums_of(&totals.shares), "the books' totals are those of the records");
        let answers = &totals.answers;
        assert_eq!(
            (answers.acknowledged, answers.refused, answers.lost_total()),
            (self.acknowledged, self.refused, self.lost)
        );
    }

    /// The same for every device, and that nothing is missing between them; at the end, because it looks at all.
    pub(crate) fn check_devices(&self) {
        assert_eq!(self.books.violation(), None);
        for (device, sums) in &self.devices {
            let subject = device.map_or(Subject::Untracked, Subject::Device);
            let view = self.books.view(subject, 0).expect("it has records");
            assert_eq!(*sums, sums_of(&view.sums.shares), "{subject:?}");
        }
    }
}

fn sums_of(shares: &ShareSums) -> Sums {
    Sums {
        submitted: shares.submitted,
        accepted: shares.accepted,
        rejected: shares.rejected_total(),
        below: shares.below_upstream_target,
        forwarded: shares.forwarded,
        dropped: shares.dropped_total(),
        kept: shares.kept,
        blocks: shares.blocks,
        credited: shares.credited,
    }
}
