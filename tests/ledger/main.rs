//! The durable ledger against what happens to real processes and disks: killed at any moment, a full disk, a disk
//! that cannot be written to.

mod chain;
mod disk;
mod killed;
