//! The ledger's rules: what is written down of every share, who did how much work, and sums that always hold.
//!
//! This crate never opens a file or a socket, reads a clock, or decides about a share: records come in, sums come out.
//!
//! - [`record`]: one record for each verdict, and later ones for what became of a share that waited, and for what the
//!   upstream said.
//! - [`acks`]: how long upstreams take to answer.
//! - [`batch`]: the stream in pieces, chained by hashes.
//! - [`books`], [`rates`]: what the entries add up to.
//! - [`entry`], [`codec`]: what the stream is made of, and its bytes.
//! - [`cost`]: what bad work costs.
//! - [`identity`]: which device a machine is.
//! - [`power`]: energy, and how well it is known.
//! - [`rollup`]: sums for spans of time.
//! - [`statement`], [`merkle`]: signed statements of work, with a sample that strangers can hash again.
//! - [`sums`]: sums over records, exact whatever happens to the records themselves.

pub mod acks;
pub mod batch;
pub mod books;
pub mod codec;
pub mod cost;
mod energy;
pub mod entry;
pub mod identity;
pub mod merkle;
pub mod pattern;
pub mod power;
pub mod rates;
pub mod record;
pub mod rollup;
pub mod statement;
pub mod sums;
mod waiting;

pub use acks::{ACK_LIMITS_US, AckSums};
pub use batch::{BatchHash, BatchNumber, LedgerId, NO_BATCH, SealedBatch};
pub use books::{Books, DeviceMark, DeviceView, Restored, SubjectView};
pub use codec::{
    CodecError, PackedSums, decode_acks, decode_part, decode_sums, encode_acks, encode_part, encode_sums,
};
pub use cost::{Cause, Cost, Costs, Worth};
pub use entry::Entry;
pub use identity::{Identities, Introduction, Seat};
pub use power::{EnergySums, PowerSource};
pub use rates::{RateEstimate, RatePair, Window};
pub use record::{
    DropReason, Fate, HeldRelease, HoldNumber, LossReason, RejectReason, ReleaseFate, ShareRecord,
    UpstreamAnswer, UpstreamVerdict, Verdict,
};
pub use rollup::{
    BlockRow, DeviceRow, EventRow, Facts, GroupId, Level, OpenPart, Point, PowerRow, RollUp, Subject,
};
pub use sums::{AnswerSums, OTHER_CODES, ShareSums, Sums, Totals};
