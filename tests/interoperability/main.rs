//! The reference implementation and we, in every pair that its programs allow: its idea of a share, a job and a block is
//! code that is not ours.
//!
//! The programs are those that `scripts/reference-peers.sh` installs.

#[path = "../support/bitcoin_node.rs"]
mod bitcoin_node;
mod declaration_client;
mod declaration_server;
mod farm;
mod peer;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/sv1_miner.rs"]
mod sv1_miner;
mod translator;
