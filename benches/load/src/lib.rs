//! Measures SV1 proxies from both ends: a swarm of miners that hash real shares, an SV2 pool that counts what
//! arrives, and the processor time and memory of the process between them.
//!
//! The swarm and the pool stub are in one process, so that the way of a share through a proxy is measured by one
//! clock; what they cost is reported beside every figure. Floors are the least servers that can do a proxy's work
//! downstream, to tell what a proxy costs from what the system costs.
//!
//! Nothing here decides what is good: the program prints what it measured.

pub mod block;
pub mod compare;
pub mod floor;
pub mod in_flight;
pub mod pool_stub;
pub mod readers;
pub mod report;
pub mod scan;
pub mod scenario;
pub mod stage;
pub mod swarm;
pub mod target;
pub mod usage;
