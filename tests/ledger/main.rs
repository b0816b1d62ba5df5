//! The durable ledger against what happens to real processes and disks: killed at any moment, a full disk, a disk
//! that cannot be written to; and the commands that look into it.

mod chain;
mod commands;
mod disk;
mod gap;
mod history;
mod killed;
mod verified;
mod year;
