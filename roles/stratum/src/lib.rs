//! Stratum V1 and V2 as data and pure rules: messages, jobs, extranonce, share check, targets, vardiff.
//!
//! This crate never reads a clock, a socket, a file or a random source: time, bytes and seeds are arguments.
//! It is also the only crate that names a type of the SV2 wire crates (`stratum-core`).

pub mod close;
pub mod coinbase;
pub mod extranonce;
pub mod hash;
pub mod ids;
pub mod job;
pub mod sv1;
pub mod sv2;
pub mod target;
pub mod time;
pub mod vardiff;

pub use close::{CloseReason, Fault};
pub use ids::*;
pub use job::{Job, JobOrigin, Tip};
pub use target::{Difficulty, HashRate, Target, Work};
pub use time::Now;
