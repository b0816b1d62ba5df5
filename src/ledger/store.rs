//! What an engine must do to keep a ledger, and how it fails. Another engine takes SQLite's place here.
//!
//! Writing is in two halves, because they have different owners: batches must be durable within milliseconds, and
//! must never wait for the rollup of a whole fleet. Reading is apart from both, and never blocks them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use accounting::{
    BatchHash, BatchNumber, BlockRow, DeviceRow, EventRow, Facts, GroupId, LedgerId, Level, NO_BATCH,
    PackedSums, Point, RollUp, SealedBatch, Subject, Sums,
};
use stratum::UpstreamId;

/// The last batch of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its number; 0 before the first.
    pub number: BatchNumber,
    /// Its hash; [`NO_BATCH`] before the first.
    pub hash: BatchHash,
}

impl Head {
    /// Before the first batch.
    pub const NONE: Head = Head { number: BatchNumber(0), hash: NO_BATCH };
}

/// What a ledger knows when it is opened.
#[derive(Clone, Debug)]
pub struct Opening {
    /// Which ledger it is.
    pub ledger: LedgerId,
    /// The last batch that is there: the next one follows it.
    pub head: Head,
    /// The last batch that has been removed by age or size; none of those up to it is there any more.
    pub removed: Head,
    /// The last batch that is in what follows. Those after it must be added to it again.
    pub watermark: BatchNumber,
    /// The batch of the oldest share that waits for its answer: see [`RollUp::waiting_from`].
    pub waiting_from: BatchNumber,
    /// Sums since the ledger began.
    pub sums: Vec<(Subject, PackedSums)>,
    /// Devices, in the order of their numbers.
    pub devices: Vec<DeviceRow>,
    /// Groups, in the order of their numbers.
    pub groups: Vec<(GroupId, Arc<str>)>,
    /// Upstreams with name and account, in the order of their numbers.
    pub upstreams: Vec<(UpstreamId, Arc<str>, Arc<str>)>,
    /// At each level, the points of the span that the latest point of all lies in: they may go on growing.
    pub open_points: Vec<Point>,
    /// Everything else up to the watermark: all readings of power, and the latest events and blocks, oldest first.
    pub facts: Facts,
    /// What was found damaged, now and in earlier lives.
    pub damage: Vec<Damage>,
}

/// A record file that could not be read to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where the damaged file is now; what is whole of it was copied into a new one.
    pub set_aside: PathBuf,
    /// The first batch that is lost.
    pub first_lost: BatchNumber,
    /// The last batch that is known to be lost: the watermark, if that is at or after `first_lost`. Later ones, if
    /// there were any, are not in the sums either, and their numbers are given out again.
    pub last_lost: Option<BatchNumber>,
    /// What the system or the engine said.
    pub what: String,
}

/// What became of a batch that was handed to a store. It is durable in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It is there now.
    Written,
    /// It was there before, with the same hash.
    Already,
}

/// What retention removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Record files.
    pub files: Vec<PathBuf>,
    /// Their bytes.
    pub bytes: u64,
    /// Pages and points of rollups.
    pub points: u64,
    /// There is more to remove: it is done in steps, so that nothing waits for long.
    pub is_incomplete: bool,
}

/// How long what is kept. Days are 86,400 seconds, counted back from now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Days of batches.
    pub records_days: u32,
    /// Bytes of batches; the oldest days go first. The last day stays.
    pub records_bytes: u64,
    /// Days of minute points.
    pub minutes_days: u32,
    /// Days of ten-minute points.
    pub ten_minutes_days: u32,
    /// Days of hour points, events and blocks. Day points are kept for ever.
    pub hours_days: u32,
}

impl Retention {
    /// Days that points of a level are kept; `None` for ever.
    pub const fn days(&self, level: Level) -> Option<u32> {
        match level {
            Level::Minute => Some(self.minutes_days),
            Level::TenMinutes => Some(self.ten_minutes_days),
            Level::Hour => Some(self.hours_days),
            Level::Day => None,
        }
    }
}

/// Why a ledger could not be read or written. Each text names the path, and says whose fault it is.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process writes this ledger.
    #[error("{path}: another process writes this ledger; one folder belongs to one process")]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// There is no ledger.
    #[error(
        "{path}: there is no ledger here (no ledger.db); [ledger] path of the configuration names its folder"
    )]
    Absent {
        /// The folder.
        path: PathBuf,
    },
    /// It was written by a later version.
    #[error(
        "{path}: written by a later version of checkweigh (layout {found}; this one knows {known}): update it"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The layout that it has.
        found: u32,
        /// The latest layout that is known.
        known: u32,
    },
    /// A file is from another ledger.
    #[error("{path}: belongs to another ledger than the ledger.db beside it; it was put here by hand")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The system or the engine failed: disk full, no permission, a broken disk.
    #[error("{path}: cannot {what}: {source}")]
    Disk {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as in "append a batch".
        what: &'static str,
        /// What was said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What is stored has not the form that it was written in.
    #[error("{path}: damaged: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// Ours: a batch does not follow the last one.
    #[error(
        "{path}: a bug of ours: batch {} does not follow batch {}{}", number.0, head.0,
        if *number == head.next() { ", because its previous hash is another" } else { "" }
    )]
    Gap {
        /// The folder.
        path: PathBuf,
        /// The number that came.
        number: BatchNumber,
        /// The last number that is there.
        head: BatchNumber,
    },
    /// Ours: a number was given to two batches.
    #[error("{path}: a bug of ours: there is another batch {} already", number.0)]
    Conflict {
        /// The folder.
        path: PathBuf,
        /// The number.
        number: BatchNumber,
    },
    /// A batch whose number has been removed by retention, so that nobody can say whether it is the same.
    #[error("{path}: batch {} was removed by age or size before", number.0)]
    Gone {
        /// The folder.
        path: PathBuf,
        /// The number.
        number: BatchNumber,
    },
}

impl StoreError {
    /// For `map_err` behind a call to the system or the engine; `what` continues "cannot".
    pub fn disk<E>(path: &Path, what: &'static str) -> impl FnOnce(E) -> StoreError
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        move |source| StoreError::Disk { path: path.to_owned(), what, source: source.into() }
    }

    /// For what does not fit.
    pub fn damaged(path: &Path, what: impl Into<String>) -> StoreError {
        StoreError::Damaged { path: path.to_owned(), what: what.into() }
    }
}

/// The half that takes batches.
pub trait Store: Send {
    /// Appends the batch that follows the head. It is durable when this returns: it survives a power failure. The
    /// same batch again is fine; another one with its number, or one that leaves a gap, is an error.
    fn append(&mut self, batch: &SealedBatch) -> Result<Appended, StoreError>;
}

/// The half that takes what was summed up over batches.
pub trait Views: Send {
    /// Takes a rollup, whole or not at all. Points, sums and devices take the place of earlier ones. The batches up
    /// to its watermark must have been appended.
    fn roll_up(&mut self, roll_up: &RollUp) -> Result<(), StoreError>;

    /// Does a bounded piece of the work that waits for a quiet moment, such as packing points. True when there is
    /// more to do.
    fn tidy(&mut self) -> Result<bool, StoreError>;

    /// Removes what is older or larger than wanted. `now` is in unix seconds.
    fn retain(&mut self, now: u64) -> Result<Removed, StoreError>;
}

/// Reads a ledger, also while another process writes it. Never blocks the writer, and never writes.
pub trait Reader: Send {
    /// Whatever `read` asks for, batches apart, is of one moment, also while another process writes. It should not
    /// take minutes: meanwhile, the writer's log grows.
    fn at_once(&self, read: &mut dyn FnMut(&dyn Reader) -> Result<(), StoreError>) -> Result<(), StoreError>;

    /// What the ledger knows.
    fn opening(&self) -> Result<Opening, StoreError>;

    /// The batches from a number on, in order, as far as they are there.
    fn batches(&self, from: BatchNumber) -> Result<Batches<'_>, StoreError>;

    /// The batches with entries from `from_us` on and before `to_us`, in unix microseconds, in order. They may have
    /// entries outside as well.
    fn batches_between(&self, from_us: u64, to_us: u64) -> Result<Batches<'_>, StoreError>;

    /// The points of one subject that start from `from` on and before `to`, in unix seconds, in order. Spans without
    /// a point had nothing to sum.
    fn points(
        &self,
        subject: Subject,
        level: Level,
        from: u64,
        to: u64,
    ) -> Result<Vec<(u64, Sums)>, StoreError>;

    /// The points of all subjects, as [`Reader::points`] has those of one, in no order.
    fn all_points(&self, level: Level, from: u64, to: u64) -> Result<Vec<Point>, StoreError>;

    /// Devices, in the order of their numbers.
    fn devices(&self) -> Result<Vec<DeviceRow>, StoreError>;

    /// The latest events up to the watermark that are not later than `before_us` (unix microseconds), latest first. Old
    /// ones are removed with the points of hours.
    fn events(&self, before_us: Option<u64>, limit: usize) -> Result<Vec<EventRow>, StoreError>;

    /// The latest blocks up to the watermark that were not found later than `before_us`, latest first. Old ones are
    /// removed with the points of hours.
    fn blocks(&self, before_us: Option<u64>, limit: usize) -> Result<Vec<BlockRow>, StoreError>;

    /// Sums since the ledger began up to the watermark, in the order of the subjects.
    fn sums(&self) -> Result<Vec<(Subject, PackedSums)>, StoreError>;
}

/// Batches as they come from a store. After an error comes nothing more.
pub type Batches<'r> = Box<dyn Iterator<Item = Result<SealedBatch, StoreError>> + 'r>;
