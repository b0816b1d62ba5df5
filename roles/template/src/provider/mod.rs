//! Template distribution (SV2 7) as state machines: [`server`] serves templates to others, [`client`] is served.
//!
//! The Noise transport is the driver's: plain frames come in and go out. Nothing here asks a node, or chooses what a
//! template holds.

pub mod client;
pub mod server;
mod whole;

#[cfg(test)]
mod tests;

pub use client::{ProviderClient, ProviderClientOutput};
pub use server::{ProviderConnection, ProviderOutput, SolvedBlock};
