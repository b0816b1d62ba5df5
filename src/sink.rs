//! Where records go: one queue, one task that sums them up, and no lock on the way of a share.
//!
//! Whoever makes records holds a [`RecordWriter`]. A record goes into a bounded queue; if that is full, the writer
//! adds it to sums of its own and sends those as soon as there is room. So detail can be lost, which is counted, and
//! totals cannot. Nothing here waits for a disk, and nothing here decides about a share.

mod devices;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use mining_server::{ShareRecord, UpstreamAnswer};
use stratum::{DeviceId, Now};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

pub use accounting::sums::is_consistent;
pub use accounting::{AnswerSums, OTHER_CODES, ShareSums, Totals};
use devices::DeviceTable;
pub use devices::{DeviceSummary, MAX_DEVICES, RateEstimate};

/// Records that wait for the sink: almost a second of the fastest stream that one process is built for, in four
/// megabytes. When it is full, writers fold.
pub const QUEUE: usize = 16_384;

/// Records that the sink takes at once, between two looks at whether the sums hold.
const BATCH: usize = 1024;

/// The latest records that the sink keeps, for those who ask what happened just now.
pub const RECENT: usize = 4096;

/// Devices that a writer's folded sums keep apart. A connection has one or a few; the task of an upstream has many,
/// and those beyond lose their name but not their work.
const MAX_FOLDED_DEVICES: usize = 256;

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A share and what we decided.
    Share(ShareRecord),
    /// What an upstream said of shares.
    Answer(UpstreamAnswer),
}

/// All that the sink knows at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Sums over the whole fleet.
    pub totals: Totals,
    /// The devices in the order of their numbers.
    pub devices: Vec<DeviceSummary>,
    /// Shares of devices beyond [`MAX_DEVICES`]; part of `totals`.
    pub untracked: ShareSums,
    /// What the fleet proved in the last minute or so.
    pub hash_rate_1m: Option<RateEstimate>,
    /// What the fleet proved in the last ten minutes or so.
    pub hash_rate_10m: Option<RateEstimate>,
}

/// The part of a [`Snapshot`] that does not grow with the fleet.
#[derive(Clone, Debug)]
pub struct Overview {
    /// Sums over the whole fleet.
    pub totals: Totals,
    /// How many devices are known.
    pub devices: usize,
    /// What the fleet proved in the last minute or so.
    pub hash_rate_1m: Option<RateEstimate>,
    /// What the fleet proved in the last ten minutes or so.
    pub hash_rate_10m: Option<RateEstimate>,
}

/// The sink's task has ended: it panicked, or the program is going down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the record sink has ended")]
pub struct SinkEnded;

/// A handle of the sink, to make writers from and to ask.
#[derive(Clone, Debug)]
pub struct RecordSink {
    queue: mpsc::Sender<Message>,
    orphans: Arc<Mutex<Fold>>,
}

#[derive(Debug)]
enum Message {
    Record(Record),
    Device(DeviceId, Arc<str>, Now),
    Folded(Box<Fold>),
    Overview(Now, oneshot::Sender<Overview>),
    Snapshot(Now, oneshot::Sender<Snapshot>),
    Recent(oneshot::Sender<Vec<Record>>),
}

impl RecordSink {
    /// Starts the sink's task in the current runtime. It ends when all handles and writers are gone; supervise it,
    /// because it panics when its sums do not hold.
    pub fn start() -> (RecordSink, JoinHandle<()>) {
        let (queue, inbox) = mpsc::channel(QUEUE);
        let orphans = Arc::new(Mutex::new(Fold::default()));
        let books = Books { orphans: orphans.clone(), ..Books::default() };
        (RecordSink { queue, orphans }, tokio::spawn(books.keep(inbox)))
    }

    /// A writer for one connection or task.
    pub fn writer(&self) -> RecordWriter {
        RecordWriter { sink: self.clone(), fold: None }
    }

    /// Sums and rates, at a cost that does not grow with the fleet. Covers every record that was queued before.
    pub async fn overview(&self, now: Now) -> Result<Overview, SinkEnded> {
        self.ask(|answer| Message::Overview(now, answer)).await
    }

    /// Everything, all devices included. Covers every record that was queued before.
    pub async fn snapshot(&self, now: Now) -> Result<Snapshot, SinkEnded> {
        self.ask(|answer| Message::Snapshot(now, answer)).await
    }

    /// The latest [`RECENT`] records, oldest first.
    pub async fn recent(&self) -> Result<Vec<Record>, SinkEnded> {
        self.ask(Message::Recent).await
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Message) -> Result<T, SinkEnded> {
        let (answer, answered) = oneshot::channel();
        self.queue.send(question(answer)).await.map_err(|_| SinkEnded)?;
        answered.await.map_err(|_| SinkEnded)
    }
}

/// Writes the records of one connection or task. Never waits.
#[derive(Debug)]
pub struct RecordWriter {
    sink: RecordSink,
    /// Sums of records that found the queue full.
    fold: Option<Box<Fold>>,
}

impl RecordWriter {
    /// Records a share whose fate is decided.
    ///
    /// # Panics
    /// When verdict and fate contradict each other, which is a bug of the caller: the sums would never hold again.
    pub fn share(&mut self, share: ShareRecord) {
        assert!(
            is_consistent(&share),
            "the fate {:?} does not go with the verdict {:?}",
            share.fate,
            share.verdict
        );
        self.write(Message::Record(Record::Share(share)));
    }

    /// Records what an upstream said.
    pub fn answer(&mut self, answer: UpstreamAnswer) {
        self.write(Message::Record(Record::Answer(answer)));
    }

    /// Says which device a number stands for; at least whenever a device authorises.
    pub fn device(&mut self, id: DeviceId, name: &str, now: Now) {
        self.write(Message::Device(id, name.into(), now));
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
        self.fold.get_or_insert_default().add(message);
    }
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

/// Sums in place of records. Bounded: by devices, upstreams and codes, not by records.
#[derive(Debug, Default)]
struct Fold {
    totals: Totals,
    devices: BTreeMap<Option<DeviceId>, ShareSums>,
    names: BTreeMap<DeviceId, (Arc<str>, Now)>,
    /// When the latest of the shares was judged.
    latest: Option<Now>,
}

impl Fold {
    fn add(&mut self, message: Message) {
        match message {
            Message::Record(Record::Share(share)) => {
                self.totals.folded += 1;
                self.totals.add_share(&share);
                self.device(share.device).add_share(&share);
                self.latest = self.latest.max(Some(share.judged));
            }
            Message::Record(Record::Answer(answer)) => {
                self.totals.folded += 1;
                self.totals.add_answer(&answer);
            }
            Message::Device(id, name, now) => self.name(id, name, now),
            Message::Folded(_) | Message::Overview(..) | Message::Snapshot(..) | Message::Recent(_) => {
                unreachable!("writers fold only what they write")
            }
        }
    }

    fn merge(&mut self, other: Fold) {
        self.totals.add(&other.totals);
        for (device, sums) in other.devices {
            self.device(device).add(&sums);
        }
        for (id, (name, now)) in other.names {
            self.name(id, name, now);
        }
        self.latest = self.latest.max(other.latest);
    }

    /// The sums of a device, or those of nobody when there are too many.
    fn device(&mut self, id: Option<DeviceId>) -> &mut ShareSums {
        let has_room = self.devices.len() < MAX_FOLDED_DEVICES || self.devices.contains_key(&id);
        self.devices.entry(if has_room { id } else { None }).or_default()
    }

    /// A name beyond the bound is forgotten: the device shows by its number until it authorises again.
    fn name(&mut self, id: DeviceId, name: Arc<str>, now: Now) {
        if self.names.len() < MAX_FOLDED_DEVICES || self.names.contains_key(&id) {
            self.names.insert(id, (name, now));
        }
    }
}

/// The state of the sink's task.
#[derive(Default)]
struct Books {
    totals: Totals,
    devices: DeviceTable,
    recent: VecDeque<Record>,
    orphans: Arc<Mutex<Fold>>,
}

impl Books {
    async fn keep(mut self, mut inbox: mpsc::Receiver<Message>) {
        let mut batch = Vec::with_capacity(BATCH);
        while inbox.recv_many(&mut batch, BATCH).await > 0 {
            for message in batch.drain(..) {
                self.handle(message);
            }
            if let Some(violation) = self.totals.violation() {
                panic!("the accounts do not add up: {violation}");
            }
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Record(record) => self.add(record),
            Message::Device(id, name, now) => self.devices.announce(id, name, now),
            Message::Folded(fold) => self.add_fold(*fold),
            // An asker that has gone away in the meantime needs no answer.
            Message::Overview(now, answer) => drop(answer.send(self.overview(now))),
            Message::Snapshot(now, answer) => drop(answer.send(self.snapshot(now))),
            Message::Recent(answer) => drop(answer.send(self.recent.iter().cloned().collect())),
        }
    }

    fn add(&mut self, record: Record) {
        match &record {
            Record::Share(share) => {
                self.totals.add_share(share);
                self.devices.add_share(share);
            }
            Record::Answer(answer) => self.totals.add_answer(answer),
        }
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(record);
    }

    fn add_fold(&mut self, fold: Fold) {
        self.totals.add(&fold.totals);
        for (id, (name, now)) in fold.names {
            self.devices.announce(id, name, now);
        }
        for (device, sums) in fold.devices {
            let latest = fold.latest.expect("a fold with shares has the time of the latest");
            self.devices.add_sums(device, &sums, latest);
        }
    }

    fn adopt_orphans(&mut self) {
        let orphans = std::mem::take(&mut *self.orphans.lock().unwrap_or_else(PoisonError::into_inner));
        self.add_fold(orphans);
    }

    fn overview(&mut self, now: Now) -> Overview {
        self.adopt_orphans();
        let [hash_rate_1m, hash_rate_10m] = self.devices.fleet_rates(now);
        Overview { totals: self.totals.clone(), devices: self.devices.len(), hash_rate_1m, hash_rate_10m }
    }

    fn snapshot(&mut self, now: Now) -> Snapshot {
        let Overview { totals, hash_rate_1m, hash_rate_10m, .. } = self.overview(now);
        let devices = self.devices.summaries(now);
        Snapshot { totals, devices, untracked: self.devices.untracked.clone(), hash_rate_1m, hash_rate_10m }
    }
}

#[cfg(test)]
mod tests;
