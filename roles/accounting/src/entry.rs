//! What the ledger's stream is made of: everything that happened, one entry each.
//!
//! Entries are facts: nothing here is summed, and nothing is ever changed afterwards. What an upstream said of a share
//! is a later entry than the share.

use stratum::hash::{self, Hash};
use stratum::{
    ChannelId, ConnectionId, DeviceId, Job, JobNumber, Target, TemplateId, UpstreamChannelId, UpstreamId,
    UpstreamJobId,
};

use crate::power::PowerSource;
use crate::record::{HeldRelease, ShareRecord, UpstreamAnswer};
use crate::rollup::{GroupId, Subject};
use crate::sums::Sums;

/// The longest text of an entry, in bytes: names, user agents, addresses, what an event says. Longer ones are cut.
pub const MAX_TEXT: usize = 255;

/// Groups of one device at most; further ones are left out.
pub const MAX_GROUPS: usize = 16;

/// Subjects of one [`Gap`] at most. A gap with more is written as several.
pub const MAX_GAP_SUBJECTS: usize = 4096;

/// Codes of one [`Gap`] at most: as many as are counted apart.
pub const MAX_GAP_CODES: usize = crate::sums::MAX_REFUSAL_CODES + 1;

/// One entry of the stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// A share, and what we decided.
    Share(ShareRecord),
    /// What became of a share that was held.
    Release(HeldRelease),
    /// What an upstream said of shares.
    Answer(UpstreamAnswer),
    /// A job, before the first share of it.
    Job(JobEntry),
    /// A device, whenever something of it is new.
    Device(DeviceEntry),
    /// A connection that a device mines on.
    Connection(ConnectionEntry),
    /// An upstream, whenever something of it is new.
    Upstream(UpstreamEntry),
    /// How much power something takes.
    Power(PowerEntry),
    /// Something that an operator may want to know later.
    Event(EventEntry),
    /// Sums of records whose detail was lost.
    Gap(Gap),
    /// A minute in which something happened is over: its start, in unix seconds. What comes later counts for later ones.
    MinuteEnded(u64),
}

/// All that a share of a job is hashed again from, but for what its miner rolled. See [`Job`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobEntry {
    /// Our number of the job.
    pub number: JobNumber,
    /// When it reached us, in unix microseconds.
    pub at_us: u64,
    /// The upstream that it is from.
    pub upstream: UpstreamId,
    /// The upstream's channel.
    pub upstream_channel: UpstreamChannelId,
    /// The upstream's number of the job.
    pub upstream_job: UpstreamJobId,
    /// The template, for jobs of our own templates.
    pub template: Option<TemplateId>,
    /// The block to build on, in internal byte order.
    pub previous_hash: Hash,
    /// The compact network target.
    pub nbits: u32,
    /// The target that a share must meet to be worth something to the upstream.
    pub upstream_target: Target,
    /// The coinbase up to the rollable bytes.
    pub coinbase_prefix: Vec<u8>,
    /// How many rollable bytes there are.
    pub rollable_size: u8,
    /// The coinbase after them.
    pub coinbase_suffix: Vec<u8>,
    /// Siblings of the coinbase on the way to the merkle root, lowest first.
    pub merkle_path: Vec<Hash>,
}

impl JobEntry {
    /// The entry of a job.
    pub fn of(job: &Job) -> Self {
        JobEntry {
            number: job.number,
            at_us: microseconds(job.received.utc),
            upstream: job.origin.upstream,
            upstream_channel: job.origin.channel,
            upstream_job: job.origin.job,
            template: job.origin.template,
            previous_hash: job.tip.previous_hash,
            nbits: job.tip.nbits,
            upstream_target: job.upstream_target,
            coinbase_prefix: job.coinbase_prefix.to_vec(),
            rollable_size: job.rollable_size as u8,
            coinbase_suffix: job.coinbase_suffix.to_vec(),
            merkle_path: job.merkle_path.to_vec(),
        }
    }

    /// The hash of the block that a share of this job is, in internal byte order; `None` when it is none.
    pub fn block_hash(&self, share: &ShareRecord) -> Option<Hash> {
        let coinbase = [&self.coinbase_prefix, share.rollable.as_slice(), &self.coinbase_suffix].concat();
        let root = hash::merkle_root(hash::sha256d(&coinbase), &self.merkle_path);
        let mut header = [0; 80];
        header[0..4].copy_from_slice(&share.version.to_le_bytes());
        header[4..36].copy_from_slice(&self.previous_hash);
        header[36..68].copy_from_slice(&root);
        header[68..72].copy_from_slice(&share.ntime.to_le_bytes());
        header[72..76].copy_from_slice(&self.nbits.to_le_bytes());
        header[76..80].copy_from_slice(&share.nonce.to_le_bytes());
        let hash = hash::header_hash(&header);
        Target::from_compact(self.nbits).is_met_by(&hash).then_some(hash)
    }
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceEntry {
    /// Its number, for ever.
    pub id: DeviceId,
    /// When this was known, in unix microseconds.
    pub at_us: u64,
    /// Its name: the worker name, with a number where several machines share it, or what a rule made of it.
    pub name: String,
    /// The worker name, where the name is another; empty where it is the name.
    pub worker_name: String,
    /// Its groups; at most [`MAX_GROUPS`].
    pub groups: Vec<GroupId>,
    /// The address that it comes from; empty when unknown.
    pub address: String,
    /// What it calls itself; empty when it does not say.
    pub user_agent: String,
    /// `device_id` of SV2's `SetupConnection`; empty when it does not say.
    pub device_id: String,
}

impl DeviceEntry {
    /// A device of which nothing but its name is known.
    pub fn named(id: DeviceId, name: impl Into<String>, at_us: u64) -> Self {
        let (worker_name, address, user_agent, device_id) = Default::default();
        let (name, groups) = (name.into(), Vec::new());
        DeviceEntry { id, at_us, name, worker_name, groups, address, user_agent, device_id }
    }
}

/// The start of a connection's mining for a device, or its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionEntry {
    /// The connection. Numbers begin again with each process.
    pub id: ConnectionId,
    /// Its channel; 0 on SV1 connections.
    pub channel: ChannelId,
    /// The device.
    pub device: DeviceId,
    /// When, in unix microseconds.
    pub at_us: u64,
    /// False when it ended, or goes on for another device.
    pub is_open: bool,
    /// How many the device has from then on: a later entry makes good for one that was lost.
    pub connections: u32,
}

/// An upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamEntry {
    /// Its number.
    pub id: UpstreamId,
    /// When this was known, in unix microseconds.
    pub at_us: u64,
    /// Host and port.
    pub name: String,
    /// The account that shares are for.
    pub account: String,
}

/// A reading of power.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PowerEntry {
    /// The device or group.
    pub subject: Subject,
    /// When it was read, in unix microseconds.
    pub at_us: u64,
    /// For how long it stands unless another one comes, in seconds.
    pub valid_for_s: u32,
    /// Milliwatts.
    pub milliwatts: u64,
    /// Who says so.
    pub source: PowerSource,
}

/// What happened, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventEntry {
    /// When, in unix microseconds.
    pub at_us: u64,
    /// What kind.
    pub kind: EventKind,
    /// The device that it is about.
    pub device: Option<DeviceId>,
    /// More words, at most [`MAX_TEXT`] bytes.
    pub text: String,
}

/// Kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EventKind {
    /// The process started to write this ledger.
    Started,
    /// The process ended in order.
    Ended,
    /// A block was found.
    BlockFound,
    /// Two machines mine under one worker name.
    SharedName,
    /// The ledger could not be written for a while.
    DiskFailed,
    /// Records were damaged or lost.
    Damaged,
}

impl EventKind {
    /// All kinds.
    pub const ALL: [EventKind; 6] = [
        EventKind::Started,
        EventKind::Ended,
        EventKind::BlockFound,
        EventKind::SharedName,
        EventKind::DiskFailed,
        EventKind::Damaged,
    ];

    /// The name in the API.
    pub const fn name(self) -> &'static str {
        match self {
            EventKind::Started => "started",
            EventKind::Ended => "ended",
            EventKind::BlockFound => "block_found",
            EventKind::SharedName => "shared_name",
            EventKind::DiskFailed => "disk_failed",
            EventKind::Damaged => "damaged",
        }
    }
}

/// Records that were counted and not kept: a queue was full, or the disk took nothing for too long.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gap {
    /// The time of the earliest, in unix microseconds.
    pub from_us: u64,
    /// The time of the latest, in unix microseconds.
    pub to_us: u64,
    /// How many records.
    pub records: u64,
    /// Their sums by device; `None` for shares of no device. At most [`MAX_GAP_SUBJECTS`].
    pub devices: Vec<(Option<DeviceId>, Sums)>,
    /// What upstreams were sent and answered in them. Already in the sums of the devices, or of no device.
    pub upstreams: Vec<(UpstreamId, Sums)>,
    /// Refusals among those answers, by the upstreams' codes. At most [`MAX_GAP_CODES`].
    pub refused_by_code: Vec<(String, u64)>,
}

impl Entry {
    /// When it happened, in unix microseconds.
    pub fn at_us(&self) -> u64 {
        match self {
            Entry::Share(share) => microseconds(share.judged.utc),
            Entry::Release(release) => microseconds(release.released.utc),
            Entry::Answer(answer) => microseconds(answer.received.utc),
            Entry::Job(job) => job.at_us,
            Entry::Device(device) => device.at_us,
            Entry::Connection(connection) => connection.at_us,
            Entry::Upstream(upstream) => upstream.at_us,
            Entry::Power(power) => power.at_us,
            Entry::Event(event) => event.at_us,
            Entry::Gap(gap) => gap.to_us,
            // Its last moment, so that it is the last of its day as well.
            Entry::MinuteEnded(start) => start.saturating_add(60).saturating_mul(1_000_000).saturating_sub(1),
        }
    }
}

/// A time as entries carry it.
pub fn microseconds(time: std::time::Duration) -> u64 {
    time.as_micros() as u64
}
