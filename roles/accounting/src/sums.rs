//! Sums over records. Sums of shares hold exactly, whatever happens to the records themselves.
//!
//! Nothing here samples, estimates or forgets.

use std::collections::BTreeMap;

use stratum::{UpstreamId, Work};

use crate::power::EnergySums;
use crate::record::{
    DropReason, Fate, HeldRelease, LossReason, RejectReason, ReleaseFate, ShareRecord, UpstreamAnswer,
    UpstreamVerdict, Verdict,
};

/// Different error codes of upstreams that are counted apart. The specification has about ten; what an upstream
/// makes up beyond this many counts as [`OTHER_CODES`].
pub(crate) const MAX_REFUSAL_CODES: usize = 32;

/// Bytes of an upstream's error code that are kept.
const MAX_CODE_LENGTH: usize = 48;

/// The name under which the codes beyond [`MAX_REFUSAL_CODES`] are counted.
pub const OTHER_CODES: &str = "other";

/// Upstreams that are counted apart. A configuration has far fewer; beyond, only the fleet's sums count.
const MAX_UPSTREAMS: usize = 64;

/// What became of a number of shares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShareSums {
    /// Shares that were judged.
    pub submitted: u64,
    /// Those that met the target they were judged by, blocks included.
    pub accepted: u64,
    /// Accepted ones that met the network's target.
    pub blocks: u64,
    /// Refused ones, in the order of [`RejectReason::ALL`].
    pub rejected: [u64; RejectReason::ALL.len()],
    /// Accepted ones that were worth nothing at the upstream's target.
    pub below_upstream_target: u64,
    /// Accepted ones that were sent upstream, at once or when they were released.
    pub forwarded: u64,
    /// Accepted ones that were worth forwarding but not sent, in the order of [`DropReason::ALL`].
    pub dropped: [u64; DropReason::ALL.len()],
    /// Accepted ones, where we are the pool.
    pub kept: u64,
    /// Accepted ones that had to wait for the upstream's answer to their job, whatever became of them.
    pub held: u64,
    /// Held ones of which it is known since what became of them: they are in the sums of that, too. So for any span of time accepted +
    /// released = below the upstream's target + forwarded + dropped + kept + held.
    pub released: u64,
    /// What the devices claimed, good or not: `credited` and all of `rejected_work`.
    pub submitted_work: Work,
    /// What the refused ones would have been credited, in the order of [`RejectReason::ALL`].
    pub rejected_work: [Work; RejectReason::ALL.len()],
    /// What the devices were credited.
    pub credited: Work,
    /// What the accepted shares were worth at the upstream's target, forwarded or not.
    pub upstream_work: Work,
    /// What the forwarded ones of them were worth.
    pub forwarded_work: Work,
    /// What those were worth that were not sent, in the order of [`DropReason::ALL`].
    pub dropped_work: [Work; DropReason::ALL.len()],
    /// What the held ones were worth.
    pub held_work: Work,
    /// What the released ones of them were worth when they were held.
    pub released_work: Work,
}

impl ShareSums {
    /// Adds one share. Verdict and fate must belong together ([`is_consistent`]).
    pub fn add_share(&mut self, share: &ShareRecord) {
        self.submitted += 1;
        match share.verdict {
            Verdict::Accepted => self.accepted += 1,
            Verdict::BlockFound => {
                self.accepted += 1;
                self.blocks += 1;
            }
            Verdict::Rejected(reason) => {
                self.rejected[reason as usize] += 1;
                self.rejected_work[reason as usize] += share.submitted;
            }
        }
        match share.fate {
            Fate::Refused => {}
            Fate::BelowUpstreamTarget => self.below_upstream_target += 1,
            Fate::Forwarded => {
                self.forwarded += 1;
                self.forwarded_work += share.upstream_work;
            }
            Fate::Dropped(reason) => {
                self.dropped[reason as usize] += 1;
                self.dropped_work[reason as usize] += share.upstream_work;
            }
            Fate::Kept => self.kept += 1,
            Fate::Held(_) => {
                self.held += 1;
                self.held_work += share.upstream_work;
            }
        }
        self.submitted_work += share.submitted;
        self.credited += share.credited();
        self.upstream_work += share.upstream_work;
    }

    /// Adds what became of a share that was held.
    pub fn add_release(&mut self, release: &HeldRelease) {
        self.add_released(release.fate, 1, release.held_work, release.work);
    }

    /// Adds what became of so many held shares, which were worth `held_work` then and are worth `work` now.
    pub(crate) fn add_released(&mut self, fate: ReleaseFate, count: u64, held_work: Work, work: Work) {
        self.released += count;
        self.released_work += held_work;
        match fate {
            ReleaseFate::BelowUpstreamTarget => self.below_upstream_target += count,
            ReleaseFate::Forwarded(_) => {
                self.forwarded += count;
                self.forwarded_work += work;
            }
            ReleaseFate::Dropped(reason) => {
                self.dropped[reason as usize] += count;
                self.dropped_work[reason as usize] += work;
            }
        }
    }

    /// Adds other sums.
    pub fn add(&mut self, other: &ShareSums) {
        self.submitted += other.submitted;
        self.accepted += other.accepted;
        self.blocks += other.blocks;
        self.rejected.iter_mut().zip(other.rejected).for_each(|(sum, count)| *sum += count);
        self.below_upstream_target += other.below_upstream_target;
        self.forwarded += other.forwarded;
        self.dropped.iter_mut().zip(other.dropped).for_each(|(sum, count)| *sum += count);
        self.kept += other.kept;
        self.held += other.held;
        self.released += other.released;
        self.submitted_work += other.submitted_work;
        self.rejected_work.iter_mut().zip(other.rejected_work).for_each(|(sum, work)| *sum += work);
        self.credited += other.credited;
        self.upstream_work += other.upstream_work;
        self.forwarded_work += other.forwarded_work;
        self.dropped_work.iter_mut().zip(other.dropped_work).for_each(|(sum, work)| *sum += work);
        self.held_work += other.held_work;
        self.released_work += other.released_work;
    }

    /// Takes earlier sums of the same shares out of these; what would be below zero is zero.
    pub fn subtract(&mut self, earlier: &ShareSums) {
        less(&mut self.submitted, earlier.submitted);
        less(&mut self.accepted, earlier.accepted);
        less(&mut self.blocks, earlier.blocks);
        each_less(&mut self.rejected, earlier.rejected);
        less(&mut self.below_upstream_target, earlier.below_upstream_target);
        less(&mut self.forwarded, earlier.forwarded);
        each_less(&mut self.dropped, earlier.dropped);
        less(&mut self.kept, earlier.kept);
        less(&mut self.held, earlier.held);
        less(&mut self.released, earlier.released);
        less_work(&mut self.submitted_work, earlier.submitted_work);
        each_less_work(&mut self.rejected_work, earlier.rejected_work);
        less_work(&mut self.credited, earlier.credited);
        less_work(&mut self.upstream_work, earlier.upstream_work);
        less_work(&mut self.forwarded_work, earlier.forwarded_work);
        each_less_work(&mut self.dropped_work, earlier.dropped_work);
        less_work(&mut self.held_work, earlier.held_work);
        less_work(&mut self.released_work, earlier.released_work);
    }

    /// All refused shares.
    pub fn rejected_total(&self) -> u64 {
        self.rejected.iter().sum()
    }

    /// Refused shares by reason, those that never occurred with 0.
    pub fn rejected_by_reason(&self) -> impl Iterator<Item = (RejectReason, u64)> {
        RejectReason::ALL.into_iter().zip(self.rejected)
    }

    /// All shares that were worth forwarding but not sent.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().sum()
    }

    /// Those shares by reason, with 0 for reasons that never occurred.
    pub fn dropped_by_reason(&self) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL.into_iter().zip(self.dropped)
    }

    /// Shares that wait for the answer to their job. 0 where more was released than held, as in a span that a share waited
    /// into.
    pub fn waiting(&self) -> u64 {
        self.held.saturating_sub(self.released)
    }

    /// What the shares that wait for the answer to their job are worth.
    pub fn waiting_work(&self) -> Work {
        Work(self.held_work.0.saturating_sub(self.released_work.0))
    }

    /// Whether more was released than was held: true of no sums since the ledger began but those of a device or group
    /// whose detail was lost, or of a group that a device with waiting shares came to.
    fn is_released_in_excess(&self) -> bool {
        self.released > self.held || self.released_work.0 > self.held_work.0
    }

    /// The first of the sums that must hold and does not, over any span of time.
    pub fn violation(&self) -> Option<String> {
        if self.submitted != self.accepted + self.rejected_total() {
            return Some(format!("submitted is not accepted + rejected: {self:?}"));
        }
        let fates =
            self.below_upstream_target + self.forwarded + self.dropped_total() + self.kept + self.held;
        if self.accepted + self.released != fates {
            return Some(format!(
                "accepted + released is not below upstream target + forwarded + dropped + kept + held: {self:?}"
            ));
        }
        if self.submitted_work.0 != self.credited.0 + total_of(&self.rejected_work) {
            return Some(format!("submitted work is not credited + rejected work: {self:?}"));
        }
        if self.blocks > self.accepted
            || self.forwarded_work.0 + total_of(&self.dropped_work) + self.held_work.0
                > self.upstream_work.0 + self.released_work.0
        {
            return Some(format!("a part exceeds its whole: {self:?}"));
        }
        None
    }
}

fn less(sum: &mut u64, part: u64) {
    *sum = sum.saturating_sub(part);
}

fn less_work(sum: &mut Work, part: Work) {
    sum.0 = sum.0.saturating_sub(part.0);
}

fn each_less<const N: usize>(sums: &mut [u64; N], parts: [u64; N]) {
    sums.iter_mut().zip(parts).for_each(|(sum, part)| less(sum, part));
}

fn each_less_work<const N: usize>(sums: &mut [Work; N], parts: [Work; N]) {
    sums.iter_mut().zip(parts).for_each(|(sum, part)| less_work(sum, part));
}

fn total_of(works: &[Work]) -> u128 {
    works.iter().map(|work| work.0).sum()
}

/// Whether a record's verdict and fate belong together: refused shares have no other fate, accepted
/// ones have one.
pub fn is_consistent(share: &ShareRecord) -> bool {
    matches!(share.verdict, Verdict::Rejected(_)) == matches!(share.fate, Fate::Refused)
}

/// What upstreams were sent and answered: one of them, all, or all for one device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnswerSums {
    /// Shares sent.
    pub forwarded: u64,
    /// What those were worth at the upstream's target.
    pub forwarded_work: Work,
    /// Shares that waited for an answer and that the upstream took, whatever number it claims.
    pub acknowledged: u64,
    /// What those were worth.
    pub acknowledged_work: Work,
    /// Shares that the upstream refused.
    pub refused: u64,
    /// What those were worth.
    pub refused_work: Work,
    /// Shares that were never answered, in the order of [`LossReason::ALL`].
    pub lost: [u64; LossReason::ALL.len()],
    /// What those were worth.
    pub lost_work: [Work; LossReason::ALL.len()],
}

impl AnswerSums {
    /// The sums of one forwarded share.
    pub fn of_forwarded(work: Work) -> Self {
        AnswerSums { forwarded: 1, forwarded_work: work, ..AnswerSums::default() }
    }

    /// The sums of one answer.
    pub fn of_answer(verdict: &UpstreamVerdict) -> Self {
        let mut sums = AnswerSums::default();
        match verdict {
            UpstreamVerdict::Acknowledged { count, work, .. } => {
                sums.acknowledged = u64::from(*count);
                sums.acknowledged_work = *work;
            }
            UpstreamVerdict::Rejected { work, .. } => {
                sums.refused = 1;
                sums.refused_work = *work;
            }
            UpstreamVerdict::Lost { count, reason, work, .. } => {
                sums.lost[*reason as usize] = u64::from(*count);
                sums.lost_work[*reason as usize] = *work;
            }
        }
        sums
    }

    /// Adds other sums.
    pub fn add(&mut self, other: &AnswerSums) {
        self.forwarded += other.forwarded;
        self.forwarded_work += other.forwarded_work;
        self.acknowledged += other.acknowledged;
        self.acknowledged_work += other.acknowledged_work;
        self.refused += other.refused;
        self.refused_work += other.refused_work;
        self.lost.iter_mut().zip(other.lost).for_each(|(sum, count)| *sum += count);
        self.lost_work.iter_mut().zip(other.lost_work).for_each(|(sum, work)| *sum += work);
    }

    /// Takes earlier sums, or those of a part, out of these; what would be below zero is zero.
    pub fn subtract(&mut self, earlier: &AnswerSums) {
        less(&mut self.forwarded, earlier.forwarded);
        less_work(&mut self.forwarded_work, earlier.forwarded_work);
        less(&mut self.acknowledged, earlier.acknowledged);
        less_work(&mut self.acknowledged_work, earlier.acknowledged_work);
        less(&mut self.refused, earlier.refused);
        less_work(&mut self.refused_work, earlier.refused_work);
        each_less(&mut self.lost, earlier.lost);
        each_less_work(&mut self.lost_work, earlier.lost_work);
    }

    /// All shares that were never answered.
    pub fn lost_total(&self) -> u64 {
        self.lost.iter().sum()
    }

    /// Those shares by reason, with 0 for reasons that never occurred.
    pub fn lost_by_reason(&self) -> impl Iterator<Item = (LossReason, u64)> {
        LossReason::ALL.into_iter().zip(self.lost)
    }

    /// Shares that wait for an answer: forwarded, and neither acknowledged nor refused nor lost. 0 where more was
    /// answered than sent, which [`AnswerSums::is_excessive`] tells.
    pub fn pending(&self) -> u64 {
        self.forwarded.saturating_sub(self.acknowledged + self.refused + self.lost_total())
    }

    /// What the shares that wait for an answer are worth.
    pub fn pending_work(&self) -> Work {
        let answered = self.acknowledged_work.0 + self.refused_work.0 + total_of(&self.lost_work);
        Work(self.forwarded_work.0.saturating_sub(answered))
    }

    /// Whether more was answered than was sent. The task of an upstream writes both, a share before its answer, so
    /// that not even what is folded can show an answer first.
    pub fn is_excessive(&self) -> bool {
        let answered_work = self.acknowledged_work.0 + self.refused_work.0 + total_of(&self.lost_work);
        self.acknowledged + self.refused + self.lost_total() > self.forwarded
            || answered_work > self.forwarded_work.0
    }
}

/// Everything that is summed for one subject: a device, a group, an upstream or the fleet, over any time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sums {
    /// Shares, as we judged them.
    pub shares: ShareSums,
    /// Forwarded shares, as upstreams answered them.
    pub answers: AnswerSums,
    /// Energy, where it is known.
    pub energy: EnergySums,
    /// The sum of the squared works of the accepted shares, for the uncertainty of a hash rate.
    pub squared_work: f64,
}

impl Sums {
    /// Adds other sums.
    pub fn add(&mut self, other: &Sums) {
        self.shares.add(&other.shares);
        self.answers.add(&other.answers);
        self.energy.add(&other.energy);
        self.squared_work += other.squared_work;
    }

    /// Takes earlier sums of the same subject out of these; what would be below zero is zero.
    pub fn subtract(&mut self, earlier: &Sums) {
        self.shares.subtract(&earlier.shares);
        self.answers.subtract(&earlier.answers);
        self.energy.subtract(&earlier.energy);
        self.squared_work = (self.squared_work - earlier.squared_work).max(0.0);
    }

    /// The relative standard error of a hash rate made of these shares: the square root of the sum of squared works
    /// over the sum of works. `None` without accepted work.
    pub fn uncertainty(&self) -> Option<f64> {
        let work = self.shares.credited.0 as f64;
        (work > 0.0).then(|| self.squared_work.sqrt() / work)
    }
}

/// The sums over everything that was recorded since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Shares, as we judged them.
    pub shares: ShareSums,
    /// Shares, as all upstreams answered them. `forwarded` equals that of `shares`.
    pub answers: AnswerSums,
    /// The same for each upstream that a record named.
    pub upstreams: BTreeMap<UpstreamId, AnswerSums>,
    /// Refused ones by the upstreams' error codes; bounded, see [`OTHER_CODES`].
    pub refused_by_code: BTreeMap<String, u64>,
    /// Records whose detail was lost because the queue was full. Their sums are in all the others.
    pub folded: u64,
}

impl Totals {
    /// Adds one share.
    pub fn add_share(&mut self, share: &ShareRecord) {
        self.shares.add_share(share);
        if share.fate != Fate::Forwarded {
            return;
        }
        let sums = AnswerSums::of_forwarded(share.upstream_work);
        self.answers.add(&sums);
        if let Some(upstream) = share.upstream {
            self.add_upstream(upstream, &sums);
        }
    }

    /// Adds what became of a share that was held.
    pub fn add_release(&mut self, release: &HeldRelease) {
        self.shares.add_release(release);
        if matches!(release.fate, ReleaseFate::Forwarded(_)) {
            let sums = AnswerSums::of_forwarded(release.work);
            self.answers.add(&sums);
            self.add_upstream(release.upstream, &sums);
        }
    }

    /// Adds what an upstream said.
    pub fn add_answer(&mut self, answer: &UpstreamAnswer) {
        let sums = AnswerSums::of_answer(&answer.verdict);
        if let UpstreamVerdict::Rejected { code, .. } = &answer.verdict {
            self.add_refusals(&clean_code(code), 1);
        }
        self.answers.add(&sums);
        self.add_upstream(answer.upstream, &sums);
    }

    /// Adds other sums.
    pub fn add(&mut self, other: &Totals) {
        self.shares.add(&other.shares);
        self.answers.add(&other.answers);
        for (upstream, sums) in &other.upstreams {
            self.add_upstream(*upstream, sums);
        }
        for (code, count) in &other.refused_by_code {
            self.add_refusals(code, *count);
        }
        self.folded += other.folded;
    }

    /// Takes earlier totals out of these; what would be below zero is zero.
    pub fn subtract(&mut self, earlier: &Totals) {
        self.shares.subtract(&earlier.shares);
        self.answers.subtract(&earlier.answers);
        for (upstream, sums) in &mut self.upstreams {
            sums.subtract(earlier.upstreams.get(upstream).unwrap_or(&AnswerSums::default()));
        }
        subtract_codes(&mut self.refused_by_code, &earlier.refused_by_code);
        less(&mut self.folded, earlier.folded);
    }

    fn add_upstream(&mut self, upstream: UpstreamId, sums: &AnswerSums) {
        if let Some(known) = self.upstreams.get_mut(&upstream) {
            known.add(sums);
        } else if self.upstreams.len() < MAX_UPSTREAMS {
            self.upstreams.insert(upstream, sums.clone());
        }
    }

    pub(crate) fn add_refusals(&mut self, code: &str, count: u64) {
        add_refusals(&mut self.refused_by_code, code, count);
    }

    /// The first of the sums that must hold and does not. They hold at every moment, whatever an upstream claims.
    pub fn violation(&self) -> Option<String> {
        if self.answers.forwarded != self.shares.forwarded {
            return Some(format!("the upstreams were sent other than what was forwarded: {self:?}"));
        }
        let mut all = std::iter::once(&self.answers).chain(self.upstreams.values());
        if let Some(sums) = all.find(|sums| sums.is_excessive()) {
            return Some(format!("more answers than forwarded shares: {sums:?}"));
        }
        if self.shares.is_released_in_excess() {
            return Some(format!("more shares were released than held: {:?}", self.shares));
        }
        self.shares.violation()
    }
}

/// Adds to counts by code, which are bounded: see [`OTHER_CODES`].
pub(crate) fn add_refusals(counts: &mut BTreeMap<String, u64>, code: &str, count: u64) {
    let has_room = counts.len() < MAX_REFUSAL_CODES || counts.contains_key(code);
    let code = if has_room { code } else { OTHER_CODES };
    *counts.entry(code.to_owned()).or_default() += count;
}

/// Takes earlier counts by code out of these.
pub fn subtract_codes(counts: &mut BTreeMap<String, u64>, earlier: &BTreeMap<String, u64>) {
    for (code, count) in counts {
        less(count, earlier.get(code).copied().unwrap_or(0));
    }
}

/// An upstream's words as a label: short, lower case, and of the characters of the specification's codes.
pub(crate) fn clean_code(code: &str) -> String {
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.');
    let cleaned = code.chars().take(MAX_CODE_LENGTH);
    let cleaned: String =
        cleaned.map(|letter| if allowed(letter) { letter.to_ascii_lowercase() } else { '_' }).collect();
    if cleaned.is_empty() { "none".to_owned() } else { cleaned }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_indexed_in_the_order_of_their_lists() {
        for (index, reason) in RejectReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }

    #[test]
    fn an_upstream_cannot_make_up_labels_without_end() {
        let mut totals = Totals::default();
        for number in 0..1000 {
            totals.add_refusals(&clean_code(&format!("Code \"{number}\"\n")), 2);
        }
        assert_eq!(totals.refused_by_code.len(), MAX_REFUSAL_CODES + 1);
        assert_eq!(totals.refused_by_code[OTHER_CODES], 2 * (1000 - MAX_REFUSAL_CODES as u64));
        assert_eq!(totals.refused_by_code["code__7__"], 2);
        assert_eq!(clean_code(""), "none");
        assert_eq!(clean_code(&"x".repeat(1000)).len(), MAX_CODE_LENGTH);
    }
}
