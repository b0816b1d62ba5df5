//! What a connection must know of the configuration. Never changes while the connection lives.

use std::time::Duration;

use stratum::vardiff::VardiffConfig;

/// What becomes of accepted shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShareUse {
    /// We are a proxy: shares that meet the upstream's target are forwarded.
    Forward,
    /// We are the pool: shares are kept, and blocks are forwarded to the node.
    Keep,
}

/// One for all connections of a listener.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What becomes of accepted shares.
    pub share_use: ShareUse,
    /// Whether difficulties follow the shares that a device submits. If not, it gets the upstream's target.
    pub vardiff_enabled: bool,
    /// How they do. Hash rates are estimated with it either way.
    pub vardiff: VardiffConfig,
    /// Whether the minimum of `vardiff` holds even where the upstream's target is easier. If not, the upstream's
    /// target is the hardest that a miner is given, so that no share that the upstream wants is missed.
    pub minimum_is_firm: bool,
    /// Whether every device has an upstream channel of its own.
    pub channel_per_device: bool,
    /// Whether SV1 connections may open with a PROXY protocol header.
    pub proxy_protocol: bool,
    /// Shares after which an SV2 channel's accepted ones are acknowledged together; at least 1.
    pub share_batch_size: u32,
}

/// A connection that has not opened its mining within this time is closed: half-open and silent peers hold a slot.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(60);

/// An SV1 connection is never silent for longer: cgminer drops a pool that says nothing for 90 seconds, and
/// half of the field's limit of 60 seconds leaves room for a slow network.
pub const KEEPALIVE: Duration = Duration::from_secs(30);

/// How often a connection looks at its difficulty when no share makes it look.
pub const VARDIFF_INTERVAL: Duration = Duration::from_secs(10);

/// How often the registry hears that a device's shares are accepted: often enough to find out within a minute that two
/// machines mine under one name.
pub(crate) const SIGN_OF_LIFE_INTERVAL: Duration = Duration::from_secs(10);
