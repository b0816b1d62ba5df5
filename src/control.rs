//! The local interface between a pool and a job declaration server that is a process of its own: a Unix socket that the
//! pool listens on, and JSON, a message on each line. ARCHITECTURE.md has every message.
//!
//! - [`wire`]: the messages.
//! - [`lines`]: lines on a socket, each with a bound.
//! - [`pool`]: the pool's end.
//!
//! The other end is [`crate::jd_server`]. Nothing here knows a token, judges a job, or speaks to a farm.

pub(crate) mod lines;
pub mod pool;
pub(crate) mod wire;

/// The version of the interface. Ends of different versions do not speak with each other.
pub(crate) const PROTOCOL: u32 = 1;

/// The longest line to a job declaration server: a `SetCustomMiningJob` with many outputs, in hexadecimal.
pub(crate) const MAX_LINE_TO_SERVER: usize = 512 * 1024;

/// The longest line to a pool: the transactions of a whole block, in hexadecimal, and what else there is of a job.
pub(crate) const MAX_LINE_TO_POOL: usize = 10 * 1024 * 1024;
