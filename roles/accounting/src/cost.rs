//! What bad work costs: rejected, dropped, refused and lost work by cause, in terahashes, kWh and satoshis.
//!
//! Nothing here is counted: a cost is sums of some time, valued. Energy is at the efficiency of the same sums, and value
//! at what a job pays; where either is unknown, it stays unknown.

use stratum::{Target, UpstreamId, Work, coinbase};

use crate::entry::JobEntry;
use crate::power::EnergySums;
use crate::record::{DropReason, LossReason, RejectReason};
use crate::sums::Sums;

/// What work is worth, as one job says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worth {
    /// When the job came, in unix microseconds.
    pub at_us: u64,
    /// Whose job it is.
    pub upstream: UpstreamId,
    /// What its block would pay, in satoshis: the reward and all fees, before anybody's share of it.
    pub value_sats: u64,
    /// The height of its block (BIP 34), where the coinbase says it.
    pub height: Option<u32>,
    /// The compact network target.
    pub nbits: u32,
}

impl Worth {
    /// What a job says; `None` when its coinbase cannot be read.
    pub fn of_job(job: &JobEntry) -> Option<Self> {
        let facts =
            coinbase::read(&job.coinbase_prefix, usize::from(job.rollable_size), &job.coinbase_suffix)?;
        Some(Worth {
            at_us: job.at_us,
            upstream: job.upstream,
            value_sats: facts.value_sats,
            height: facts.height,
            nbits: job.nbits,
        })
    }

    /// What one expected hash is worth, in satoshis: the block's value over the work of a block.
    pub fn sats_per_hash(&self) -> f64 {
        sats_per_hash(self.value_sats, self.nbits)
    }
}

/// What one expected hash is worth, in satoshis, where a block pays `value_sats` and must meet `nbits`.
pub fn sats_per_hash(value_sats: u64, nbits: u32) -> f64 {
    // No target asks for less than one hash.
    value_sats as f64 / Target::from_compact(nbits).work().0.max(1) as f64
}

/// Why work came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// We refused the share. Its work is at the device's difficulty.
    Rejected(RejectReason),
    /// It was worth forwarding, but not sent. Its work, as all that follow, is at the upstream's target.
    Dropped(DropReason),
    /// The upstream refused it.
    RefusedByUpstream,
    /// The upstream never answered.
    Lost(LossReason),
}

impl Cause {
    /// Every cause, once.
    pub fn all() -> impl Iterator<Item = Cause> {
        let rejected = RejectReason::ALL.into_iter().map(Cause::Rejected);
        let dropped = DropReason::ALL.into_iter().map(Cause::Dropped);
        let lost = LossReason::ALL.into_iter().map(Cause::Lost);
        rejected.chain(dropped).chain([Cause::RefusedByUpstream]).chain(lost)
    }

    /// What became of such work, as a name for the API.
    pub const fn fate(self) -> &'static str {
        match self {
            Cause::Rejected(_) => "rejected",
            Cause::Dropped(_) => "dropped",
            Cause::RefusedByUpstream => "rejected_by_upstream",
            Cause::Lost(_) => "lost",
        }
    }

    /// Why, as a name for the API; `None` where only the upstream knows.
    pub const fn reason(self) -> Option<&'static str> {
        match self {
            Cause::Rejected(reason) => Some(reason.name()),
            Cause::Dropped(reason) => Some(reason.name()),
            Cause::RefusedByUpstream => None,
            Cause::Lost(reason) => Some(reason.name()),
        }
    }

    /// Shares of this cause, and what they would have been worth.
    pub fn of(self, sums: &Sums) -> (u64, Work) {
        let (shares, answers) = (&sums.shares, &sums.answers);
        match self {
            Cause::Rejected(reason) => {
                (shares.rejected[reason as usize], shares.rejected_work[reason as usize])
            }
            Cause::Dropped(reason) => (shares.dropped[reason as usize], shares.dropped_work[reason as usize]),
            Cause::RefusedByUpstream => (answers.refused, answers.refused_work),
            Cause::Lost(reason) => (answers.lost[reason as usize], answers.lost_work[reason as usize]),
        }
    }
}

/// What work was, took and would have earned.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Shares.
    pub shares: u64,
    /// Expected hashes.
    pub work: Work,
    /// The energy that it took; `None` while the efficiency is unknown.
    pub kilowatt_hours: Option<f64>,
    /// What it would have earned; `None` while that is unknown.
    pub sats: Option<f64>,
}

impl Cost {
    /// Values work at an efficiency, in joules for each hash, and a price, in satoshis for each hash.
    pub fn of(shares: u64, work: Work, joules_per_hash: Option<f64>, sats_per_hash: Option<f64>) -> Self {
        let hashes = work.0 as f64;
        Cost {
            shares,
            work,
            kilowatt_hours: joules_per_hash.map(|joules| hashes * joules / 3.6e6),
            sats: sats_per_hash.map(|sats| hashes * sats),
        }
    }

    /// The work in terahashes.
    pub fn terahashes(&self) -> f64 {
        self.work.0 as f64 / 1e12
    }
}

/// What all bad work of one subject over one time cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Costs {
    /// All causes together.
    pub total: Cost,
    /// The causes that occurred, in the order of [`Cause::all`].
    pub by_cause: Vec<(Cause, Cost)>,
}

impl Costs {
    /// The costs in some sums: energy at the efficiency of these sums, value at a price in satoshis for each hash.
    pub fn of(sums: &Sums, sats_per_hash: Option<f64>) -> Self {
        let joules_per_hash = joules_per_hash(&sums.energy);
        let cost = |shares, work| Cost::of(shares, work, joules_per_hash, sats_per_hash);
        let by_cause: Vec<(Cause, Cost)> = Cause::all()
            .map(|cause| (cause, cause.of(sums)))
            .filter(|(_, (shares, _))| *shares > 0)
            .map(|(cause, (shares, work))| (cause, cost(shares, work)))
            .collect();
        let shares = by_cause.iter().map(|(_, cost)| cost.shares).sum();
        // Claims are a peer's: they are added without an overflow.
        let work = by_cause.iter().fold(0_u128, |work, (_, cost)| work.saturating_add(cost.work.0));
        Costs { total: cost(shares, Work(work)), by_cause }
    }
}

/// Joules for each hash that was proved while energy was known; `None` while no energy or no work is known.
pub fn joules_per_hash(energy: &EnergySums) -> Option<f64> {
    energy.joules_per_terahash().map(|joules| joules / 1e12)
}

#[cfg(test)]
mod tests {
    use stratum::hash::Hash;
    use stratum::{JobNumber, TemplateId, UpstreamChannelId, UpstreamJobId};

    use super::*;

    /// A job at height 925,000 that pays 3.13 bitcoins to a pool and 0.02 to somebody else, and commits to witnesses.
    fn job() -> JobEntry {
        let previous_hash: Hash = [7; 32];
        let mut prefix = vec![1, 0, 0, 0, 1];
        prefix.extend_from_slice(&[0; 32]);
        prefix.extend_from_slice(&[0xff; 4]);
        prefix.extend_from_slice(&[4 + 20, 3, 0x48, 0x1d, 0x0e]);
        let mut suffix = vec![0xff, 0xff, 0xff, 0xff, 3];
        for (value, script) in [(313_000_000_u64, &[0x51][..]), (2_000_000, &[]), (0, &[0x6a, 1, 2])] {
            suffix.extend_from_slice(&value.to_le_bytes());
            suffix.push(script.len() as u8);
            suffix.extend_from_slice(script);
        }
        suffix.extend_from_slice(&[0; 4]);
        JobEntry {
            number: JobNumber(1),
            at_us: 9,
            upstream: UpstreamId(3),
            upstream_channel: UpstreamChannelId(0),
            upstream_job: UpstreamJobId(0),
            template: Some(TemplateId(1)),
            previous_hash,
            nbits: 0x1d00_ffff,
            upstream_target: Target::MAX,
            coinbase_prefix: prefix,
            rollable_size: 20,
            coinbase_suffix: suffix,
            merkle_path: Vec::new(),
        }
    }

    #[test]
    fn a_job_says_what_work_is_worth() {
        let worth = Worth::of_job(&job()).expect("a coinbase");
        let expected = Worth {
            at_us: 9,
            upstream: UpstreamId(3),
            value_sats: 315_000_000,
            height: Some(925_000),
            nbits: 0x1d00_ffff,
        };
        assert_eq!(worth, expected);
        // A block of difficulty 1 takes 2^32 hashes and a few.
        assert!((worth.sats_per_hash() - 315e6 / 4_295_032_833.0).abs() < 1e-12);
        assert_eq!(Worth::of_job(&JobEntry { rollable_size: 19, ..job() }), None, "another layout");
    }

    #[test]
    fn each_cause_is_valued_and_none_is_missing() {
        let mut sums = Sums::default();
        for (index, work) in sums.shares.rejected_work.iter_mut().enumerate() {
            *work = Work(1 << index);
        }
        sums.shares.rejected = [1; 10];
        sums.shares.dropped = [2; DropReason::ALL.len()];
        sums.shares.dropped_work = [1 << 10, 1 << 11, 1 << 12, 1 << 13].map(Work);
        (sums.answers.refused, sums.answers.refused_work) = (3, Work(1 << 14));
        sums.answers.lost = [4; 4];
        sums.answers.lost_work = [1 << 15, 1 << 16, 1 << 17, 1 << 18].map(Work);
        let costs = Costs::of(&sums, None);
        assert_eq!((costs.total.shares, costs.total.work), (10 + 8 + 3 + 16, Work((1 << 19) - 1)));
        assert_eq!(costs.by_cause.len(), Cause::all().count());
        assert!(costs.by_cause.iter().all(|(_, cost)| (cost.kilowatt_hours, cost.sats) == (None, None)));
        assert_eq!(Costs::of(&Sums::default(), Some(1.0)).by_cause, []);
    }

    #[test]
    fn energy_is_at_the_efficiency_of_the_same_sums() {
        let mut sums = Sums::default();
        let stale = RejectReason::Stale as usize;
        (sums.shares.rejected[stale], sums.shares.rejected_work[stale]) = (1, Work(200_000_000_000_000));
        // 20 J/TH over what is covered; the rest of the accepted work says nothing.
        sums.energy.millijoules[0] = 2_000_000;
        sums.energy.covered_work = Work(100_000_000_000_000);
        sums.shares.credited = Work(900_000_000_000_000);
        let costs = Costs::of(&sums, Some(1e-12));
        let [(cause, cost)] = costs.by_cause[..] else { panic!("one cause: {costs:?}") };
        assert_eq!((cause.fate(), cause.reason()), ("rejected", Some("stale")));
        assert_eq!(cost.terahashes(), 200.0);
        assert!((cost.kilowatt_hours.expect("known") - 4000.0 / 3.6e6).abs() < 1e-15);
        assert_eq!(cost.sats, Some(200.0));
        assert_eq!(costs.total, cost);
    }
}
