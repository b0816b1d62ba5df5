//! The ledger's rules: what is written down of every share, who did how much work, and sums that always hold.
//!
//! This crate never opens a file or a socket, reads a clock, or decides about a share: records come in, sums come out.
//!
//! - [`record`]: one record for each verdict, and a later one for what the upstream said.
//! - [`power`]: energy, and how well it is known.
//! - [`sums`]: sums over records, exact whatever happens to the records themselves.

pub mod power;
pub mod record;
pub mod sums;

pub use power::{EnergySums, PowerSource};
pub use record::{
    DropReason, Fate, LossReason, RejectReason, ShareRecord, UpstreamAnswer, UpstreamVerdict, Verdict,
};
pub use sums::{AnswerSums, OTHER_CODES, ShareSums, Sums, Totals};
