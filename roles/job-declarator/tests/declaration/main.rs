//! Job declaration: both state machines alone, and one against the other.

mod client;
mod custom_job;
mod operations;
mod properties;
mod server;
mod simulation;
mod support;
