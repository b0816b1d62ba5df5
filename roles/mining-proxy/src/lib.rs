//! The side that faces pools: one configured upstream as a state machine, and when to dial it again.
//!
//! This crate never opens a socket, encrypts a frame, reads a clock or makes a random number: connections, frames,
//! shares, time and randomness come in as arguments; frames, work and records go out through an
//! [`UpstreamOutput`]. It knows nothing of the protocol that a miner speaks, and nothing in it assumes that there
//! is one upstream only: each [`Upstream`] stands alone.
//!
//! - [`upstream`]: the state machine, which survives redials.
//! - [`upstreams`]: all of them, and which gives the work.
//! - [`backoff`]: how long to wait before dialling again.
//! - [`config`]: what an upstream must be told, and who a device is to it.
//! - [`output`]: what an upstream hands back.

pub mod backoff;
mod channel;
pub mod config;
mod feed;
mod notices;
pub mod output;
mod pending;
pub mod upstream;
pub mod upstreams;

pub use backoff::Backoff;
pub use config::{Endpoint, UpstreamConfig};
pub use job_declarator::ladder::Patience;
pub use output::{DownstreamKey, Feed, Tally, UpstreamOutput};
pub use upstream::{LinkState, Upstream};
pub use upstreams::{Standing, SwitchReason, Upstreams};
