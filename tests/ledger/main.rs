//! The durable ledger against what happens to real processes and disks: killed at any moment, a full disk, a disk
//! that cannot be written to; and the commands that look into it.

#[path = "../support/farm.rs"]
mod farm;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/small_disk.rs"]
mod small_disk;
#[path = "../support/sv1_miner.rs"]
mod sv1_miner;

mod chain;
mod commands;
mod disk;
mod gap;
mod held;
mod history;
mod killed;
mod statement;
mod verified;
mod year;
