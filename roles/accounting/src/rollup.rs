//! Rollups: sums for spans of time, for one subject each, that answer what happened without a look at every record.
//!
//! They are views of the stream: whatever is here can be computed again from the batches.

use std::collections::BTreeMap;
use std::sync::Arc;

use stratum::hash::Hash;
use stratum::{DeviceId, JobNumber, UpstreamId, Work};

use crate::acks::AckSums;
use crate::batch::BatchNumber;
use crate::codec::PackedSums;
use crate::cost::Worth;
use crate::entry::EventEntry;
use crate::power::PowerSource;

/// The number of a group of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub u16);

/// Whose sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// All devices together.
    Fleet,
    /// What belongs to no device: shares of connections that had not authorised, and of devices beyond the bound.
    Untracked,
    /// One upstream.
    Upstream(UpstreamId),
    /// One group of devices.
    Group(GroupId),
    /// One device.
    Device(DeviceId),
}

/// How long a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// One minute.
    Minute,
    /// Ten minutes.
    TenMinutes,
    /// One hour.
    Hour,
    /// One day (UTC).
    Day,
}

impl Level {
    /// All levels, shortest first.
    pub const ALL: [Level; 4] = [Level::Minute, Level::TenMinutes, Level::Hour, Level::Day];

    /// Its length in seconds.
    pub const fn seconds(self) -> u64 {
        match self {
            Level::Minute => 60,
            Level::TenMinutes => 600,
            Level::Hour => 3600,
            Level::Day => 86_400,
        }
    }

    /// The length in seconds of the page that a store packs its points into: an hour, a day, a week, 28 days.
    pub const fn page_seconds(self) -> u64 {
        match self {
            Level::Minute => 3600,
            Level::TenMinutes => 86_400,
            Level::Hour => 7 * 86_400,
            Level::Day => 28 * 86_400,
        }
    }

    /// The name in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Minute => "minute",
            Level::TenMinutes => "ten_minutes",
            Level::Hour => "hour",
            Level::Day => "day",
        }
    }

    /// The start of the span that this unix second lies in.
    pub const fn start(self, unix_seconds: u64) -> u64 {
        unix_seconds - unix_seconds % self.seconds()
    }
}

/// The sums of one subject over one span.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Whose.
    pub subject: Subject,
    /// How long the span is.
    pub level: Level,
    /// When it starts: unix seconds, a multiple of the level's length.
    pub start: u64,
    /// The sums. A later point of the same subject, level and start takes this one's place.
    pub sums: PackedSums,
}

/// What is known of a device besides its sums.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceRow {
    /// Its number.
    pub id: DeviceId,
    /// Its name: the worker name, with a number where several machines share it, or what a rule made of it.
    pub name: Arc<str>,
    /// The worker name, where the name is another; empty where it is the name.
    pub worker_name: Arc<str>,
    /// Its groups.
    pub groups: Vec<GroupId>,
    /// When it was first seen, in unix microseconds.
    pub first_seen_us: u64,
    /// When it was last seen, in unix microseconds.
    pub last_seen_us: u64,
    /// When its latest accepted share came, in unix microseconds; 0 when none came.
    pub last_share_us: u64,
    /// The hardest difficulty that a hash of its accepted shares reached; 0 when none came.
    pub best_difficulty: f64,
    /// The address that it last came from; empty when unknown.
    pub address: String,
    /// What it last called itself (SV1 user agent; SV2 vendor, hardware and firmware); empty when unknown.
    pub user_agent: String,
    /// What it last sent as SV2's `device_id`; empty when unknown.
    pub device_id: String,
}

/// A reading of power: from when, and until when it stands unless another one of its source comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerRow {
    /// The device or group.
    pub subject: Subject,
    /// Who says so.
    pub source: PowerSource,
    /// Milliwatts.
    pub milliwatts: u64,
    /// When it was read, in unix microseconds.
    pub from_us: u64,
    /// When its time is over, in unix microseconds.
    pub until_us: u64,
}

/// The part of a minute whose energy is not counted yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenPart {
    /// The start of the minute, in unix seconds; 0 before the first entry.
    pub minute: u64,
    /// When the part began, in unix microseconds.
    pub from_us: u64,
    /// The time of the latest entry, in unix microseconds.
    pub latest_us: u64,
    /// The devices that mined in it, and what they proved.
    pub mined: Vec<(DeviceId, Work)>,
    /// Readings that were replaced since, and still count for it.
    pub replaced: Vec<PowerRow>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRow {
    /// Counts the events of the ledger, from 1.
    pub number: u64,
    /// What happened.
    pub event: EventEntry,
}

/// A share that was a block. What only its job says is unknown where the job is.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockRow {
    /// Counts the blocks of the ledger, from 1.
    pub number: u64,
    /// When it was found, in unix microseconds.
    pub found_us: u64,
    /// Who found it.
    pub device: Option<DeviceId>,
    /// Whose job it solves.
    pub upstream: Option<UpstreamId>,
    /// Our number of that job.
    pub job: Option<JobNumber>,
    /// The difficulty that its hash reached.
    pub difficulty: Option<f64>,
    /// Its hash, in internal byte order.
    pub hash: Option<Hash>,
    /// Its height (BIP 34).
    pub height: Option<u32>,
    /// What its coinbase pays, in satoshis.
    pub value_sats: Option<u64>,
}

/// What is kept besides sums and names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// What work is worth, by the latest job of each upstream.
    pub worths: Vec<Worth>,
    /// How fast each upstream answers.
    pub acks: Vec<(UpstreamId, AckSums)>,
    /// Refused shares by the upstreams' codes, since the ledger began.
    pub refused_by_code: BTreeMap<String, u64>,
    /// The same by upstream. A code whose upstream is not known, because detail was lost, is in none of them.
    pub refused_by_upstream: BTreeMap<UpstreamId, BTreeMap<String, u64>>,
    /// Records without detail, since the ledger began.
    pub folded: u64,
    /// Readings of power: those that changed, or all of them.
    pub power: Vec<PowerRow>,
    /// The part of a minute whose energy is not in the sums yet.
    pub part: OpenPart,
    /// Events in their order: those that are new, or the latest.
    pub events: Vec<EventRow>,
    /// Blocks in their order: those that are new, or the latest.
    pub blocks: Vec<BlockRow>,
}

/// What a store keeps beside the batches. All of it holds for the stream up to and with the batch `watermark`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RollUp {
    /// The last batch that is in the sums.
    pub watermark: BatchNumber,
    /// The batch of the oldest forwarded share that still waits for its answer, or the one after the watermark: from
    /// there on shares and answers are read again after a restart, so that each answer finds its share.
    pub waiting_from: BatchNumber,
    /// Points that changed, each whole.
    pub points: Vec<Point>,
    /// Sums since the ledger began of the subjects that changed, each whole.
    pub sums: Vec<(Subject, PackedSums)>,
    /// Devices that changed.
    pub devices: Vec<DeviceRow>,
    /// Groups that are new, with their names.
    pub groups: Vec<(GroupId, Arc<str>)>,
    /// Upstreams that are new or changed: number, name (host and port), account.
    pub upstreams: Vec<(UpstreamId, Arc<str>, Arc<str>)>,
    /// Everything else; of readings, events and blocks what is new.
    pub facts: Facts,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_pages_nest() {
        for pair in Level::ALL.windows(2) {
            assert_eq!(pair[1].seconds() % pair[0].seconds(), 0);
        }
        for level in Level::ALL {
            assert_eq!(level.page_seconds() % level.seconds(), 0);
            let start = level.start(1_795_645_123);
            assert!(start <= 1_795_645_123 && start + level.seconds() > 1_795_645_123);
            assert_eq!(level.start(start), start);
        }
    }
}
