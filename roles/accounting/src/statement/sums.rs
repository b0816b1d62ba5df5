//! The sums of a statement as its file has them, and whether they add up.

use serde::{Deserialize, Serialize};

use super::forms::{Amount, Count, ForReason, Hashes, by_reason, reasons};
use crate::record::{DropReason, LossReason, RejectReason};
use crate::sums::{AnswerSums, ShareSums};

/// Shares of a period by what became of them. Works named `hashes` are expected hashes: at the target that the device
/// was given for what is submitted, accepted and rejected, and at the upstream's target for what is forwarded, dropped
/// and answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatedSums {
    /// All that were judged: accepted and rejected.
    pub submitted: Amount,
    /// Those that met the device's target, blocks included.
    pub accepted: Amount,
    /// Accepted ones that met the network's target.
    pub blocks: Count,
    /// Refused ones, and what they would have been worth.
    pub rejected: Vec<ForReason>,
    /// What the accepted ones are worth at the upstream's target, forwarded or not.
    pub accepted_at_upstream_target_hashes: Hashes,
    /// Accepted ones that are worth nothing at the upstream's target.
    pub below_upstream_target: Count,
    /// Accepted ones where this ledger is the pool's.
    pub kept: Count,
    /// Accepted ones that were worth forwarding and not sent.
    pub dropped: Vec<ForReason>,
    /// Accepted ones that had to wait for the upstream's answer to their job, whatever became of them.
    pub held: Amount,
    /// Held ones of which it was known in time what became of them: they are in the sums of that, too. The others of them still waited.
    pub released: Amount,
    /// Accepted ones that were sent upstream.
    pub forwarded: Amount,
    /// Forwarded ones that the upstream took.
    pub acknowledged: Amount,
    /// Forwarded ones that the upstream refused.
    pub refused: Amount,
    /// Forwarded ones that can have no answer any more.
    pub lost: Vec<ForReason>,
    /// Forwarded ones of which no answer is known: none came in time, or its detail was lost.
    pub unanswered: Amount,
}

impl StatedSums {
    /// Sums as the books have them.
    pub fn of(shares: &ShareSums, answers: &AnswerSums) -> Self {
        StatedSums {
            submitted: Amount::of(shares.submitted, shares.submitted_work),
            accepted: Amount::of(shares.accepted, shares.credited),
            blocks: Count(shares.blocks),
            rejected: reasons(
                &RejectReason::ALL,
                RejectReason::name,
                &shares.rejected,
                &shares.rejected_work,
            ),
            accepted_at_upstream_target_hashes: Hashes(shares.upstream_work),
            below_upstream_target: Count(shares.below_upstream_target),
            kept: Count(shares.kept),
            dropped: reasons(&DropReason::ALL, DropReason::name, &shares.dropped, &shares.dropped_work),
            held: Amount::of(shares.held, shares.held_work),
            released: Amount::of(shares.released, shares.released_work),
            forwarded: Amount::of(shares.forwarded, shares.forwarded_work),
            acknowledged: Amount::of(answers.acknowledged, answers.acknowledged_work),
            refused: Amount::of(answers.refused, answers.refused_work),
            lost: reasons(&LossReason::ALL, LossReason::name, &answers.lost, &answers.lost_work),
            unanswered: Amount::of(answers.pending(), answers.pending_work()),
        }
    }

    /// The first of the sums that must hold and does not.
    pub fn violation(&self) -> Option<String> {
        let unknown = || Some("a reason is not known here, or is there twice".to_owned());
        let Some((rejected, rejected_work)) =
            by_reason(&self.rejected, &RejectReason::ALL, RejectReason::name)
        else {
            return unknown();
        };
        let Some((dropped, dropped_work)) = by_reason(&self.dropped, &DropReason::ALL, DropReason::name)
        else {
            return unknown();
        };
        let Some((lost, lost_work)) = by_reason(&self.lost, &LossReason::ALL, LossReason::name) else {
            return unknown();
        };
        let shares = ShareSums {
            submitted: self.submitted.shares.0,
            accepted: self.accepted.shares.0,
            blocks: self.blocks.0,
            rejected,
            below_upstream_target: self.below_upstream_target.0,
            forwarded: self.forwarded.shares.0,
            dropped,
            kept: self.kept.0,
            held: self.held.shares.0,
            released: self.released.shares.0,
            submitted_work: self.submitted.hashes.0,
            rejected_work,
            credited: self.accepted.hashes.0,
            upstream_work: self.accepted_at_upstream_target_hashes.0,
            forwarded_work: self.forwarded.hashes.0,
            dropped_work,
            held_work: self.held.hashes.0,
            released_work: self.released.hashes.0,
        };
        let answers = AnswerSums {
            forwarded: self.forwarded.shares.0,
            forwarded_work: self.forwarded.hashes.0,
            acknowledged: self.acknowledged.shares.0,
            acknowledged_work: self.acknowledged.hashes.0,
            refused: self.refused.shares.0,
            refused_work: self.refused.hashes.0,
            lost,
            lost_work,
        };
        if let Some(violation) = shares.violation() {
            return Some(violation);
        }
        let unanswered = Amount::of(answers.pending(), answers.pending_work());
        (answers.is_excessive() || unanswered != self.unanswered).then(|| {
            format!(
                "forwarded is not acknowledged + refused + lost + unanswered: {answers:?}, {unanswered:?}"
            )
        })
    }
}
