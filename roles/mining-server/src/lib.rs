//! The side that faces miners: an SV1 or SV2 connection as a state machine, used by the proxy and the pool alike.
//!
//! This crate never opens a socket, reads a clock or spawns a task. Bytes, frames, work and time come in as
//! arguments; bytes and [`Event`]s go out through an [`Output`]. It knows nothing of where work comes from: a
//! pool's own templates and an upstream's jobs look the same.
//!
//! - [`work`]: what a source of work publishes to its connections, and the book that numbers its jobs.
//! - [`judge`]: the verdict over one share, and the difficulty of one channel.
//! - [`record`]: what is written down of every share; it belongs to the ledger.
//! - [`sv1`], [`sv2`]: the two protocols.

pub mod judge;
pub mod output;
mod seen;
pub mod settings;
pub mod sv1;
pub mod sv2;
pub mod work;

pub use accounting::record;
pub use accounting::{
    DropReason, Fate, Introduction, LossReason, RejectReason, ShareRecord, UpstreamAnswer, UpstreamVerdict,
    Verdict,
};
pub use output::{
    CloseReason, CustomJobRequest, Event, Fault, ForwardShare, Output, Registry, ShareEvent, VersionRolling,
};
pub use settings::{Settings, ShareUse};
pub use work::{JobBook, PublishedJob, Work};
