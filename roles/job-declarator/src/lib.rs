//! Job declaration (SV2 6): the pool's side and the miner's side, each as state machines.
//!
//! This crate never opens a socket, asks a node, reads a clock or makes a random number: frames, templates,
//! transactions, verdicts, random bytes and the time come in as arguments; frames and actions go out through an
//! output. It does not know how a mining connection works: custom jobs and shares pass through the program that
//! drives both.
//!
//! - [`server`]: tokens, declared jobs, and the answer to `SetCustomMiningJob`.
//! - [`client`]: from a template and a token to a job that miners hash, and what becomes of its shares.
//! - [`ladder`]: which source of work to use, while some of them are in trouble.

pub mod client;
pub mod ladder;
pub mod server;
mod text;
