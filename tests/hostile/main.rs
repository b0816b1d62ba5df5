//! What strangers, broken peers and floods do to a running proxy and pool: nothing, to anybody but themselves.
//!
//! Over real sockets. What is about memory, and the end by SIGTERM, is tested on the real binary.

#[path = "../support/bitcoin_node.rs"]
mod bitcoin_node;
#[path = "../support/farm.rs"]
mod farm;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/sv1_miner.rs"]
mod sv1_miner;

mod attack;
mod patience;
mod processes;
mod strangers;
