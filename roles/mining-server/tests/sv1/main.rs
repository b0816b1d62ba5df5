//! SV1 connections in virtual time, played with the exact bytes of the firmware that is named beside them.

mod ahead;
mod difficulty;
mod handshake;
mod identity;
mod ids;
mod jobs;
mod minimum;
mod shares;
mod support;
mod version_rolling;
