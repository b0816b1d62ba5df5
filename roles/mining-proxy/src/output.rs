//! What an upstream hands back to the program that drives it.

use std::sync::Arc;

use mining_server::record::HeldRelease;
use mining_server::{CloseReason, ShareRecord, UpstreamAnswer, Work};
use stratum::{ChannelId, ConnectionId};

use crate::config::Endpoint;

/// One downstream channel among all connections; [`ChannelId`] 0 on SV1 connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DownstreamKey {
    /// The connection.
    pub connection: ConnectionId,
    /// Its channel.
    pub channel: ChannelId,
}

/// For whom a [`Work`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feed {
    /// Every device: the upstream's channel is shared.
    Shared,
    /// One device, which has an upstream channel of its own.
    Device(DownstreamKey),
}

/// Collects what one or more calls into an upstream produced. The driver publishes the work and writes the bytes
/// before it looks at anything else.
#[derive(Debug, Default)]
pub struct UpstreamOutput {
    /// Plain SV2 frames for the upstream, which the driver encrypts and writes in one go.
    pub bytes: Vec<u8>,
    /// Work to publish, oldest first.
    pub publish: Vec<(Feed, Arc<Work>)>,
    /// Devices for which the upstream opened no channel, and why. It is asked again after a while; the driver need
    /// not do anything.
    pub open_failed: Vec<(DownstreamKey, String)>,
    /// Records of the shares that were handed in, completed with what became of them.
    pub records: Vec<ShareRecord>,
    /// What became of shares that were recorded as held, in these `records` or before. To be recorded after `records`
    /// and before `answers`.
    pub releases: Vec<HeldRelease>,
    /// What the upstream said of earlier shares.
    pub answers: Vec<UpstreamAnswer>,
    /// Set when the connection must be closed once the bytes are written. The upstream takes it as closed already.
    pub close: Option<CloseReason>,
    /// Set together with `close` when the upstream named another endpoint to dial. The driver must expect the same
    /// authority key there (SV2 3.6.5), and goes back to the configured endpoint when it cannot connect.
    pub reconnect_to: Option<Endpoint>,
    /// Plain SV2 frames for the job declaration server, where jobs are declared.
    pub declaration_bytes: Vec<u8>,
    /// Set when the connection to the job declaration server must be closed once its bytes are written.
    pub close_declaration: Option<CloseReason>,
    /// Set together with `close_declaration` when that server named another endpoint; as `reconnect_to` is.
    pub redirect_declaration: Option<Endpoint>,
    /// Blocks of our own templates, for our node: before everything else.
    pub blocks: Vec<FoundBlock>,
    /// What the operator should see, at the log level of information. At most a few a minute.
    pub notices: Vec<String>,
}

/// A block of one of our own templates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundBlock {
    /// Its height.
    pub height: u32,
    /// The whole block, as nodes take it.
    pub bytes: Vec<u8>,
}

/// What became of the shares that were forwarded, over the life of the process. At any time `forwarded` is the sum
/// of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Sent upstream.
    pub forwarded: u64,
    /// Covered by a SubmitShares.Success.
    pub acknowledged: u64,
    /// Refused with a SubmitShares.Error.
    pub rejected: u64,
    /// Not answered yet.
    pub pending: u64,
    /// Never answered: their channel ended before, or too many newer ones came.
    pub lost: u64,
}
