//! The program: the only code of Checkweigh that touches the world.
//!
//! Roles decide, this crate does: sockets, clocks, files, signals and HTTP are here, and no rule of mining is. One
//! module per thing that the program talks to; [`cli`] is where a process starts.

pub mod background;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod declarations;
pub mod demo;
pub mod dev_chain;
pub mod downstream;
pub mod error;
pub mod http;
pub mod jd_server;
pub mod latency;
pub mod ledger;
pub mod logging;
pub mod miner;
pub mod node;
pub mod owner;
pub mod pool;
pub mod proxy;
pub mod registry;
pub mod role;
pub mod shutdown;
pub mod sink;
mod sv2_transport;
pub mod template_provider;
pub mod templates;
pub mod upstream;
