//! Sums over records. Sums of shares hold exactly, whatever happens to the records themselves.
//!
//! Nothing here samples, estimates or forgets.

use std::collections::BTreeMap;

use mining_server::{DropReason, Fate, RejectReason, ShareRecord, UpstreamAnswer, UpstreamVerdict, Verdict};
use stratum::{UpstreamId, Work};

/// Different error codes of upstreams that are counted apart. The specification has about ten; what an upstream
/// makes up beyond this many counts as [`OTHER_CODES`].
const MAX_REFUSAL_CODES: usize = 32;

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
    /// Accepted ones that were sent upstream.
    pub forwarded: u64,
    /// Accepted ones that were worth forwarding but not sent, in the order of [`DropReason::ALL`].
    pub dropped: [u64; DropReason::ALL.len()],
    /// Accepted ones, where we are the pool.
    pub kept: u64,
    /// What the devices were credited.
    pub credited: Work,
    /// What the accepted shares were worth at the upstream's target, forwarded or not.
    pub upstream_work: Work,
    /// What the forwarded ones of them were worth.
    pub forwarded_work: Work,
}

impl ShareSums {
    /// Adds one share. Verdict and fate must belong together ([`is_consistent`]).
    pub(super) fn add_share(&mut self, share: &ShareRecord) {
        self.submitted += 1;
        match share.verdict {
            Verdict::Accepted => self.accepted += 1,
            Verdict::BlockFound => {
                self.accepted += 1;
                self.blocks += 1;
            }
            Verdict::Rejected(reason) => self.rejected[reason as usize] += 1,
        }
        match share.fate {
            Fate::Refused => {}
            Fate::BelowUpstreamTarget => self.below_upstream_target += 1,
            Fate::Forwarded => {
                self.forwarded += 1;
                self.forwarded_work += share.upstream_work;
            }
            Fate::Dropped(reason) => self.dropped[reason as usize] += 1,
            Fate::Kept => self.kept += 1,
        }
        self.credited += share.credited;
        self.upstream_work += share.upstream_work;
    }

    /// Adds other sums.
    pub(super) fn add(&mut self, other: &ShareSums) {
        self.submitted += other.submitted;
        self.accepted += other.accepted;
        self.blocks += other.blocks;
        self.rejected.iter_mut().zip(other.rejected).for_each(|(sum, count)| *sum += count);
        self.below_upstream_target += other.below_upstream_target;
        self.forwarded += other.forwarded;
        self.dropped.iter_mut().zip(other.dropped).for_each(|(sum, count)| *sum += count);
        self.kept += other.kept;
        self.credited += other.credited;
        self.upstream_work += other.upstream_work;
        self.forwarded_work += other.forwarded_work;
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

    /// The first of the sums that must hold and does not.
    pub fn violation(&self) -> Option<String> {
        if self.submitted != self.accepted + self.rejected_total() {
            return Some(format!("submitted is not accepted + rejected: {self:?}"));
        }
        if self.accepted != self.below_upstream_target + self.forwarded + self.dropped_total() + self.kept {
            return Some(format!(
                "accepted is not below upstream target + forwarded + dropped + kept: {self:?}"
            ));
        }
        if self.blocks > self.accepted || self.forwarded_work > self.upstream_work {
            return Some(format!("a part exceeds its whole: {self:?}"));
        }
        None
    }
}

/// Whether a record's verdict and fate belong together: refused shares have no other fate, accepted ones have one.
pub(super) fn is_consistent(share: &ShareRecord) -> bool {
    matches!(share.verdict, Verdict::Rejected(_)) == matches!(share.fate, Fate::Refused)
}

/// What one upstream was sent and answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamSums {
    /// Shares sent to it.
    pub forwarded: u64,
    /// What those were worth at its target.
    pub forwarded_work: Work,
    /// Shares that waited for its answer and that it took, whatever number it claims.
    pub acknowledged: u64,
    /// Shares that it refused.
    pub refused: u64,
    /// Shares that it never answered, because its connection or channel ended.
    pub lost: u64,
}

impl UpstreamSums {
    fn add(&mut self, other: &UpstreamSums) {
        self.forwarded += other.forwarded;
        self.forwarded_work += other.forwarded_work;
        self.acknowledged += other.acknowledged;
        self.refused += other.refused;
        self.lost += other.lost;
    }

    /// Whether more was answered than was sent. The task of an upstream writes both, a share before its answer, so
    /// that not even what is folded can show an answer first.
    fn is_excessive(&self) -> bool {
        self.acknowledged + self.refused + self.lost > self.forwarded
    }
}

/// The sums over everything that was recorded since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Shares, as we judged them.
    pub shares: ShareSums,
    /// Shares, as all upstreams answered them. `forwarded` equals that of `shares`.
    pub answers: UpstreamSums,
    /// The same for each upstream that a record named.
    pub upstreams: BTreeMap<UpstreamId, UpstreamSums>,
    /// Refused ones by the upstreams' error codes; bounded, see [`OTHER_CODES`].
    pub refused_by_code: BTreeMap<String, u64>,
    /// Records whose detail was lost because the queue was full. Their sums are in all the others.
    pub folded: u64,
}

impl Totals {
    pub(super) fn add_share(&mut self, share: &ShareRecord) {
        self.shares.add_share(share);
        if share.fate != Fate::Forwarded {
            return;
        }
        let sums =
            UpstreamSums { forwarded: 1, forwarded_work: share.upstream_work, ..UpstreamSums::default() };
        self.answers.add(&sums);
        if let Some(upstream) = share.upstream {
            self.add_upstream(upstream, &sums);
        }
    }

    pub(super) fn add_answer(&mut self, answer: &UpstreamAnswer) {
        let mut sums = UpstreamSums::default();
        match &answer.verdict {
            UpstreamVerdict::Acknowledged { count, .. } => sums.acknowledged = u64::from(*count),
            UpstreamVerdict::Lost { count } => sums.lost = u64::from(*count),
            UpstreamVerdict::Rejected { code, .. } => {
                sums.refused = 1;
                self.add_refusals(&clean_code(code), 1);
            }
        }
        self.answers.add(&sums);
        self.add_upstream(answer.upstream, &sums);
    }

    pub(super) fn add(&mut self, other: &Totals) {
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

    fn add_upstream(&mut self, upstream: UpstreamId, sums: &UpstreamSums) {
        if let Some(known) = self.upstreams.get_mut(&upstream) {
            known.add(sums);
        } else if self.upstreams.len() < MAX_UPSTREAMS {
            self.upstreams.insert(upstream, sums.clone());
        }
    }

    fn add_refusals(&mut self, code: &str, count: u64) {
        let has_room =
            self.refused_by_code.len() < MAX_REFUSAL_CODES || self.refused_by_code.contains_key(code);
        let code = if has_room { code } else { OTHER_CODES };
        *self.refused_by_code.entry(code.to_owned()).or_default() += count;
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
        self.shares.violation()
    }
}

/// An upstream's words as a label: short, lower case, and of the characters of the specification's codes.
fn clean_code(code: &str) -> String {
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
