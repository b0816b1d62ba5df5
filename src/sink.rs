//! Where records go: one queue, one task that sums them up, and no lock on the way of a share.
//!
//! Whoever makes records holds a [`RecordWriter`]. A record goes into a bounded queue; if that is full, the writer
//! adds it to sums of its own and sends those as soon as there is room. So detail can be lost, which is counted, and
//! totals cannot. With a ledger, the task also hands everything on to the disk, in batches. Nothing here waits for a
//! disk, and nothing here decides about a share.

mod fold;
mod keeper;
mod scribe;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use accounting::entry::{
    ConnectionEntry, DeviceEntry, Entry, EventEntry, JobEntry, PowerEntry, UpstreamEntry, microseconds,
};
use accounting::identity::IdentityRule;
use accounting::{
    AckSums, BlockRow, DeviceMark, EventRow, GroupId, HeldRelease, LedgerId, ShareRecord, Sums,
    UpstreamAnswer, Worth,
};
use stratum::{DeviceId, Job, Now, UpstreamId, Work};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use fold::{Fold, MAX_FOLDED_DEVICES};
use keeper::Keeper;
use scribe::Scribe;

pub use accounting::books::{MAX_BLOCKS, MAX_DEVICES, MAX_EVENTS};
pub use accounting::sums::is_consistent;
pub use accounting::{
    AnswerSums, Books, DeviceView, OTHER_CODES, RateEstimate, ShareSums, SubjectView, Totals,
};

use crate::clock::Clock;
use crate::ledger::{Head, LedgerWriter};

/// Records that wait for the sink: almost a second of the fastest stream that one process is built for, in four
/// megabytes. When it is full, writers fold. As many again may wait in batches, of which each is one message.
pub const QUEUE: usize = 16_384;

/// Devices that are copied between two looks at the queue: a fraction of a millisecond's work, so that records hardly
/// wait.
const DEVICES_AT_ONCE: usize = 64;

/// Devices of which a name or a mark is taken between two looks at the queue: not more work.
const SWEPT_AT_ONCE: usize = 512;

/// Pieces of devices that are taken in a row, and how long everything else has its turn then: a copy of a great fleet
/// takes a tenth of a thread's time while it is made, and no more.
const PIECES_IN_A_ROW: usize = 4;
const PAUSE: Duration = Duration::from_millis(2);

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A share and what we decided.
    Share(ShareRecord),
    /// What became of a share that was held.
    Release(HeldRelease),
    /// What an upstream said of shares.
    Answer(UpstreamAnswer),
}

/// All that the sink knows.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// What does not grow with the fleet.
    pub overview: Overview,
    /// The devices in the order of their numbers.
    pub devices: Vec<DeviceView>,
    /// What belongs to no device, or to devices beyond [`MAX_DEVICES`]; part of the totals.
    pub untracked: Sums,
}

/// The part of a [`Snapshot`] that does not grow with the fleet.
#[derive(Clone, Debug)]
pub struct Overview {
    /// Sums over the whole fleet.
    pub totals: Totals,
    /// How many devices are known.
    pub devices: usize,
    /// What the power of single devices adds up to, in milliwatts, where any is known.
    pub power_milliwatts: Option<u64>,
    /// The fleet, with its rates.
    pub fleet: SubjectView,
    /// The groups, with their names and how many devices belong to each.
    pub groups: Vec<(GroupId, Arc<str>, usize, SubjectView)>,
    /// The upstreams, with name and account.
    pub upstreams: Vec<(UpstreamId, Arc<str>, Arc<str>, SubjectView)>,
    /// What work is worth, by the latest job that was recorded.
    pub worth: Option<Worth>,
    /// How fast each upstream answers.
    pub acks: BTreeMap<UpstreamId, AckSums>,
    /// What each upstream refused, by its codes.
    pub refusals: BTreeMap<UpstreamId, BTreeMap<String, u64>>,
    /// What work is worth, by the latest job of each upstream.
    pub worths: BTreeMap<UpstreamId, Worth>,
    /// What the fleet proved in the last minute or so.
    pub hash_rate_1m: Option<RateEstimate>,
    /// What the fleet proved in the last ten minutes or so.
    pub hash_rate_10m: Option<RateEstimate>,
}

/// What happened, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Happened {
    /// The latest [`MAX_EVENTS`] events of the ledger, or of the process where none is kept.
    pub events: Vec<EventRow>,
    /// The latest [`MAX_BLOCKS`] blocks.
    pub blocks: Vec<BlockRow>,
}

/// The sink's task has ended: it panicked, or the program is going down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the record sink has ended")]
pub struct SinkEnded;

/// What the configuration says of devices by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceRules {
    /// Groups: the name, and the pattern of those that belong to it.
    pub groups: Vec<(String, String)>,
    /// Nameplates: a pattern, and the power of those that match it, in milliwatts. The first that matches counts.
    pub nameplates: Vec<(String, u64)>,
    /// Which device a machine is, where the worker name does not say it. The registry's business.
    pub identities: Vec<IdentityRule>,
}

/// The way from the sink to the disk.
#[derive(Debug)]
pub struct ToLedger {
    /// Which ledger.
    pub id: LedgerId,
    /// The last batch that is in it.
    pub head: Head,
    /// What it holds so far.
    pub books: Books,
    /// Who writes it.
    pub writer: LedgerWriter,
    /// What the configuration says of devices.
    pub rules: DeviceRules,
    /// The longest time that a record waits before its batch is handed over.
    pub commit_interval: Duration,
}

/// A handle of the sink, to make writers from and to ask.
#[derive(Clone, Debug)]
pub struct RecordSink {
    queue: mpsc::Sender<Message>,
    /// Told of every question, for which the sink does not wait for more records.
    asked: Arc<Notify>,
    /// For records in batches: one for each, until the sink has taken it.
    room: Arc<Semaphore>,
    orphans: Arc<Mutex<Fold>>,
    /// Whether jobs are wanted: only a ledger has use for them.
    keeps_jobs: bool,
    at_start: Arc<AtStart>,
}

/// What was known when the sink began: a ledger's sums, or nothing.
#[derive(Clone, Debug)]
pub struct AtStart {
    /// What does not grow with the fleet.
    pub overview: Overview,
    /// Shares and energy of those devices that had any.
    pub devices: HashMap<DeviceId, DeviceAtStart>,
}

/// The part of a device's sums that there are series of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeviceAtStart {
    /// Shares judged.
    pub submitted: u64,
    /// Shares that met their target.
    pub accepted: u64,
    /// Shares refused.
    pub rejected: u64,
    /// Work at the device's difficulty, that of accepted shares at the upstream's target, and what of it was acknowledged.
    pub works: [Work; 3],
    /// Millijoules.
    pub millijoules: u128,
}

impl DeviceAtStart {
    /// That part of some sums.
    pub fn of(sums: &Sums) -> Self {
        let (shares, answers) = (&sums.shares, &sums.answers);
        DeviceAtStart {
            submitted: shares.submitted,
            accepted: shares.accepted,
            rejected: shares.rejected_total(),
            works: [shares.credited, shares.upstream_work, answers.acknowledged_work],
            millijoules: sums.energy.millijoules.iter().sum(),
        }
    }
}

#[derive(Debug)]
enum Message {
    Record(Record),
    /// Records that were written together, and the room that they hold. One message for all of them, because each may
    /// wake the sink on another core, which would then take them one by one.
    Batch(Batch, OwnedSemaphorePermit),
    Device(DeviceEntry),
    Connection(ConnectionEntry),
    /// What is rare: jobs, upstreams, power, events.
    Entry(Box<Entry>),
    Folded(Box<Fold>),
    /// What does not grow with the fleet, and the sums of nobody.
    Overview(Now, oneshot::Sender<(Overview, Sums)>),
    /// The next devices from this number on.
    Devices(Now, usize, oneshot::Sender<Piece>),
    /// These devices, a few.
    Some(Now, Vec<DeviceId>, oneshot::Sender<Vec<DeviceView>>),
    /// Another number whenever a device is new, or has another name.
    NamesVersion(oneshot::Sender<u64>),
    /// The next names from this device on.
    Names(usize, oneshot::Sender<Vec<(DeviceId, Option<Arc<str>>)>>),
    /// The next marks from this device on.
    Marks(usize, oneshot::Sender<Vec<(DeviceId, DeviceMark)>>),
    Happened(oneshot::Sender<Happened>),
    Finish(oneshot::Sender<()>),
}

/// Records that were written together, in the order in which they count.
#[derive(Debug)]
struct Batch {
    shares: Vec<ShareRecord>,
    releases: Vec<HeldRelease>,
    answers: Vec<UpstreamAnswer>,
}

impl Batch {
    /// Takes what the lists hold, and leaves them with room for as much: a record is a few hundred bytes, of which each
    /// copy costs as much as a sum.
    fn take(
        shares: &mut Vec<ShareRecord>,
        releases: &mut Vec<HeldRelease>,
        answers: &mut Vec<UpstreamAnswer>,
    ) -> Self {
        fn take<T>(list: &mut Vec<T>) -> Vec<T> {
            let room = Vec::with_capacity(list.len());
            std::mem::replace(list, room)
        }
        Batch { shares: take(shares), releases: take(releases), answers: take(answers) }
    }
}

/// Some devices, and with the last of them what does not grow with the fleet, and the sums of nobody.
#[derive(Debug)]
struct Piece {
    devices: Vec<DeviceView>,
    rest: Option<(Overview, Sums)>,
}

impl RecordSink {
    /// Starts the sink's task in the current runtime, which keeps everything in memory alone. It ends when all handles
    /// and writers are gone; supervise it, because it panics when its sums do not hold.
    pub fn start() -> (RecordSink, JoinHandle<()>) {
        Self::start_in_memory(DeviceRules::default())
    }

    /// As [`RecordSink::start`], with what the configuration says of devices.
    pub fn start_in_memory(rules: DeviceRules) -> (RecordSink, JoinHandle<()>) {
        Self::start_with(Books::default(), rules, None)
    }

    /// As [`RecordSink::start`], with a ledger behind it.
    pub fn start_with_ledger(ledger: ToLedger, clock: Clock) -> (RecordSink, JoinHandle<()>) {
        let ToLedger { id, head, books, writer, rules, commit_interval } = ledger;
        Self::start_with(books, rules, Some(Scribe::new(id, head, writer, commit_interval, clock)))
    }

    fn start_with(books: Books, rules: DeviceRules, scribe: Option<Scribe>) -> (RecordSink, JoinHandle<()>) {
        let (queue, inbox) = mpsc::channel(QUEUE);
        let orphans = Arc::new(Mutex::new(Fold::default()));
        let keeps_jobs = scribe.is_some();
        let asked = Arc::new(Notify::new());
        let mut keeper = Keeper::new(books, rules, scribe, orphans.clone(), Arc::clone(&asked));
        let at_start = Arc::new(keeper.at_start());
        let room = Arc::new(Semaphore::new(QUEUE));
        (RecordSink { queue, asked, room, orphans, keeps_jobs, at_start }, tokio::spawn(keeper.keep(inbox)))
    }

    /// What was known when the sink began, for those who count from there.
    pub fn at_start(&self) -> &AtStart {
        &self.at_start
    }

    /// A writer for one connection or task.
    pub fn writer(&self) -> RecordWriter {
        self.writer_of(MAX_FOLDED_DEVICES)
    }

    /// A writer for whoever speaks of all devices.
    pub fn writer_of_devices(&self) -> RecordWriter {
        self.writer_of(MAX_DEVICES)
    }

    fn writer_of(&self, most_devices: usize) -> RecordWriter {
        RecordWriter { sink: self.clone(), fold: None, most_devices }
    }

    /// Sums and rates, at a cost that does not grow with the fleet. Covers every record that was queued before.
    pub async fn overview(&self, now: Now) -> Result<Overview, SinkEnded> {
        Ok(self.ask(|answer| Message::Overview(now, answer)).await?.0)
    }

    /// Everything, all devices included. Covers every record that was queued before.
    ///
    /// Devices come a few at a time, so that a great fleet holds up no record for longer than a small one. Each is as
    /// it was at one moment, and the rest is as it was with the last of them: the fleet is never behind its devices, and
    /// a fleet of fewer than 64 is all of one moment.
    pub async fn snapshot(&self, now: Now) -> Result<Snapshot, SinkEnded> {
        let mut devices: Vec<DeviceView> = Vec::new();
        loop {
            pause_after(devices.len() / DEVICES_AT_ONCE).await;
            let first = devices.last().map_or(0, |device| device.id.0 as usize + 1);
            let mut piece = self.ask(|answer| Message::Devices(now, first, answer)).await?;
            devices.append(&mut piece.devices);
            if let Some((overview, untracked)) = piece.rest {
                return Ok(Snapshot { overview, devices, untracked });
            }
        }
    }

    /// Some devices, as they are now; those that are not known are left out. Costs nothing for the others.
    pub async fn devices(&self, now: Now, ids: &[DeviceId]) -> Result<Vec<DeviceView>, SinkEnded> {
        let mut devices = Vec::with_capacity(ids.len());
        for (number, some) in ids.chunks(DEVICES_AT_ONCE).enumerate() {
            pause_after(number).await;
            devices.append(&mut self.ask(|answer| Message::Some(now, some.to_vec(), answer)).await?);
        }
        Ok(devices)
    }

    /// Another number whenever a device is new, or has another name.
    pub async fn names_version(&self) -> Result<u64, SinkEnded> {
        self.ask(Message::NamesVersion).await
    }

    /// The names of all devices, in the order of their numbers; `None` for those that none was said of.
    pub async fn names(&self) -> Result<Vec<(DeviceId, Option<Arc<str>>)>, SinkEnded> {
        self.sweep(Message::Names).await
    }

    /// What differs whenever something was counted for a device, or it was seen: of all devices, in the order of their
    /// numbers.
    pub async fn marks(&self) -> Result<Vec<(DeviceId, DeviceMark)>, SinkEnded> {
        self.sweep(Message::Marks).await
    }

    /// Something small of all devices, some hundred at a time.
    async fn sweep<T>(
        &self,
        question: impl Fn(usize, oneshot::Sender<Vec<(DeviceId, T)>>) -> Message,
    ) -> Result<Vec<(DeviceId, T)>, SinkEnded> {
        let mut all: Vec<(DeviceId, T)> = Vec::new();
        loop {
            pause_after(all.len() / SWEPT_AT_ONCE).await;
            let first = all.last().map_or(0, |(id, _)| id.0 as usize + 1);
            let mut piece = self.ask(|answer| question(first, answer)).await?;
            let is_last = piece.len() < SWEPT_AT_ONCE;
            all.append(&mut piece);
            if is_last {
                return Ok(all);
            }
        }
    }

    /// What happened, as far as it is kept in memory.
    pub async fn happened(&self) -> Result<Happened, SinkEnded> {
        self.ask(Message::Happened).await
    }

    /// Hands everything that was queued before over to the ledger, before the program ends.
    pub async fn finish(&self) -> Result<(), SinkEnded> {
        self.ask(Message::Finish).await
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Message) -> Result<T, SinkEnded> {
        let (answer, answered) = oneshot::channel();
        self.queue.send(question(answer)).await.map_err(|_| SinkEnded)?;
        self.asked.notify_one();
        answered.await.map_err(|_| SinkEnded)
    }
}

/// Lets records have their turn after every few pieces of a great fleet: whoever asks can wait, and shares cannot.
async fn pause_after(pieces: usize) {
    if pieces > 0 && pieces.is_multiple_of(PIECES_IN_A_ROW) {
        tokio::time::sleep(PAUSE).await;
    }
}

/// Writes the records of one connection or task. Never waits.
#[derive(Debug)]
pub struct RecordWriter {
    sink: RecordSink,
    /// Sums of records that found the queue full.
    fold: Option<Box<Fold>>,
    /// Devices that these keep apart.
    most_devices: usize,
}

impl RecordWriter {
    /// Records a share whose fate is decided.
    ///
    /// # Panics
    /// When verdict and fate contradict each other, which is a bug of the caller: the sums would never hold again.
    pub fn share(&mut self, share: ShareRecord) {
        assert_consistent(&share);
        self.write(Message::Record(Record::Share(share)));
    }

    /// Records shares, then what became of held ones, then answers, and empties the lists: the same as one after the
    /// other, but cheaper.
    ///
    /// # Panics
    /// As [`RecordWriter::share`].
    pub fn batch(
        &mut self,
        shares: &mut Vec<ShareRecord>,
        releases: &mut Vec<HeldRelease>,
        answers: &mut Vec<UpstreamAnswer>,
    ) {
        shares.iter().for_each(assert_consistent);
        let records = shares.len() + releases.len() + answers.len();
        // What does not fit into the room at all goes one by one, as without room.
        let room = u32::try_from(records)
            .ok()
            .filter(|records| *records > 1)
            .and_then(|records| Arc::clone(&self.sink.room).try_acquire_many_owned(records).ok());
        if let Some(room) = room {
            return self.write(Message::Batch(Batch::take(shares, releases, answers), room));
        }
        let shares = shares.drain(..).map(Record::Share);
        let releases = releases.drain(..).map(Record::Release);
        let all = shares.chain(releases).chain(answers.drain(..).map(Record::Answer));
        all.for_each(|record| self.write(Message::Record(record)));
    }

    /// Records what became of a share that was held.
    pub fn release(&mut self, release: HeldRelease) {
        self.write(Message::Record(Record::Release(release)));
    }

    /// Records what an upstream said.
    pub fn answer(&mut self, answer: UpstreamAnswer) {
        self.write(Message::Record(Record::Answer(answer)));
    }

    /// Says what is known of a device; at least whenever a machine of it begins to mine.
    pub fn device(&mut self, entry: DeviceEntry) {
        self.write(Message::Device(entry));
    }

    /// Says that a device has one connection more, or less.
    pub fn connection(&mut self, entry: ConnectionEntry) {
        self.write(Message::Connection(entry));
    }

    /// Says what shares of a job are hashed again from, before the first of them. Costs nothing without a ledger.
    pub fn job(&mut self, job: &Job) {
        if self.sink.keeps_jobs {
            self.write(Message::Entry(Box::new(Entry::Job(JobEntry::of(job)))));
        }
    }

    /// Says where an upstream is, and the account that its shares are for.
    pub fn upstream(&mut self, id: UpstreamId, name: &str, account: &str, now: Now) {
        let (name, account) = (name.to_owned(), account.to_owned());
        let entry = UpstreamEntry { id, at_us: microseconds(now.utc), name, account };
        self.write(Message::Entry(Box::new(Entry::Upstream(entry))));
    }

    /// Says how much power a device or a group takes.
    pub fn power(&mut self, power: PowerEntry) {
        self.write(Message::Entry(Box::new(Entry::Power(power))));
    }

    /// Says that something happened.
    pub fn event(&mut self, event: EventEntry) {
        self.write(Message::Entry(Box::new(Entry::Event(event))));
    }

    /// Sends folded sums, if there are any and the queue has room. Whoever holds a writer calls it from time to
    /// time, because no further record may come that would take them along.
    pub fn flush(&mut self) {
        let Some(fold) = self.fold.take() else { return };
        if let Err(error) = self.sink.queue.try_send(Message::Folded(fold)) {
            let Message::Folded(fold) = error.into_inner() else { unreachable!("the message that was sent") };
            self.fold = Some(fold);
        }
    }

    /// Whether there are folded sums that [`RecordWriter::flush`] has yet to send.
    pub fn is_behind(&self) -> bool {
        self.fold.is_some()
    }

    fn write(&mut self, message: Message) {
        // Older records first, so that an answer does not overtake its share.
        self.flush();
        let message = match &self.fold {
            Some(_) => message,
            None => match self.sink.queue.try_send(message) {
                Ok(()) => return,
                Err(error) => error.into_inner(),
            },
        };
        let most_devices = self.most_devices;
        self.fold.get_or_insert_with(|| Box::new(Fold::of(most_devices))).add(message);
    }
}

fn assert_consistent(share: &ShareRecord) {
    let (fate, verdict) = (share.fate, share.verdict);
    assert!(is_consistent(share), "the fate {fate:?} does not go with the verdict {verdict:?}");
}

/// What a writer leaves behind is not lost. The lock is taken by dropped writers and by the sink, never for a share.
impl Drop for RecordWriter {
    fn drop(&mut self) {
        self.flush();
        if let Some(fold) = self.fold.take() {
            self.sink.orphans.lock().unwrap_or_else(PoisonError::into_inner).merge(*fold);
        }
    }
}

#[cfg(test)]
mod tests;
