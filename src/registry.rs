//! Who is who, and who holds which extranonce: what the connections of one role share.
//!
//! Behind a lock, because it is asked only when a connection or channel opens or closes, never for a share. That a device
//! is alive is left here without one; which device a machine is is decided in [`accounting::identity`].

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use accounting::entry::{ConnectionEntry, EventEntry, EventKind, microseconds};
use accounting::identity::{IdentityRule, Joined, MAX_MACHINES, OTHERS, Seat, SharedName};
use accounting::{DeviceRow, Identities, Introduction};
use stratum::extranonce::{Exhausted, ReservedExtranonces};
use stratum::job::RESERVED_SIZE;
use stratum::{DeviceId, JobNumber, Now};

use crate::clock::Clock;
use crate::sink::{MAX_DEVICES, RecordWriter};

/// The registry of one role. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SharedRegistry {
    tables: Arc<Mutex<Tables>>,
    /// The jobs for which a share would be accepted, kept by the owner of the work.
    live_jobs: Arc<LiveJobs>,
    signs: Arc<Signs>,
    clock: Clock,
}

#[derive(Debug, Default)]
struct LiveJobs {
    oldest: AtomicU64,
    newest: AtomicU64,
}

/// What connections leave here of their devices without a lock, from time to time.
#[derive(Debug)]
struct Signs {
    /// When each device's last good share came, in seconds of the monotonic clock: a megabyte for all there can be.
    last_shares: Box<[AtomicU32]>,
    /// A bit for each device: whether several connections are taken for its machine.
    contested: Box<[AtomicU64]>,
}

impl Signs {
    fn new() -> Self {
        let last_shares = (0..MAX_DEVICES).map(|_| AtomicU32::new(0)).collect();
        let contested = (0..MAX_DEVICES.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Signs { last_shares, contested }
    }

    fn last_share(&self, device: DeviceId) -> u32 {
        self.last_shares.get(device.0 as usize).map_or(0, |last| last.load(Ordering::Relaxed))
    }

    /// Notes a share. True when it must be looked at whose it is.
    fn note_share(&self, device: DeviceId, seconds: u32) -> bool {
        let Some(last) = self.last_shares.get(device.0 as usize) else { return false };
        last.store(seconds, Ordering::Relaxed);
        self.contested[device.0 as usize / 64].load(Ordering::Relaxed) & 1 << (device.0 % 64) != 0
    }

    /// Called by whoever holds the tables.
    fn set_contested(&self, device: DeviceId, is_contested: bool) {
        let Some(bits) = self.contested.get(device.0 as usize / 64) else { return };
        let bit = 1 << (device.0 % 64);
        match is_contested {
            true => bits.fetch_or(bit, Ordering::Relaxed),
            false => bits.fetch_and(!bit, Ordering::Relaxed),
        };
    }
}

#[derive(Debug)]
struct Tables {
    identities: Identities,
    reserved: ReservedExtranonces,
    /// Tells the sink which device a number stands for.
    writer: RecordWriter,
}

impl SharedRegistry {
    /// An empty registry that tells `writer` of every device.
    pub fn new(clock: Clock, writer: RecordWriter) -> Self {
        Self::with_rules(Vec::new(), clock, writer)
    }

    /// As [`SharedRegistry::new`], with rules for which the worker name is not all that counts.
    pub fn with_rules(rules: Vec<IdentityRule>, clock: Clock, writer: RecordWriter) -> Self {
        let reserved = ReservedExtranonces::new(1 << (8 * RESERVED_SIZE));
        let identities = Identities::new(rules);
        SharedRegistry {
            tables: Arc::new(Mutex::new(Tables { identities, reserved, writer })),
            live_jobs: Arc::default(),
            signs: Arc::new(Signs::new()),
            clock,
        }
    }

    /// Takes the devices of the time before, so that each keeps its number for ever.
    pub fn restore(&self, rows: &[DeviceRow]) {
        self.tables().identities.restore(rows);
    }

    /// The device that a machine is which begins to mine.
    pub fn join(&self, seat: Seat, introduction: &Introduction<'_>) -> DeviceId {
        let now = self.clock.now();
        let mut tables = self.tables();
        let joined = tables.identities.join(introduction, seat, seconds(now), |id| self.signs.last_share(id));
        let device = joined.device;
        self.signs.set_contested(device, tables.identities.is_contested(device));
        let warning = tables.tell(seat, joined, now);
        drop(tables);
        // Nobody waits for the registry while a line is written.
        warning.iter().for_each(Warning::log);
        device
    }

    /// A share of a device was accepted. Returns the device that later ones on this seat are of.
    pub fn note_share(&self, seat: Seat, device: DeviceId, now: Now) -> DeviceId {
        if !self.signs.note_share(device, seconds(now)) {
            return device;
        }
        let mut tables = self.tables();
        let last_share = |id| self.signs.last_share(id);
        let Some(parted) = tables.identities.note_share(device, seat, seconds(now), last_share) else {
            return device;
        };
        let (connections, other) = (parted.left, parted.joined.device);
        for id in [device, other] {
            self.signs.set_contested(id, tables.identities.is_contested(id));
        }
        tables.writer.connection(connection(seat, device, false, connections, now));
        // What it had said of itself is no longer the other one's.
        let entry = tables.identities.entry(device, microseconds(now.utc));
        tables.writer.device(entry);
        let warning = tables.tell(seat, parted.joined, now);
        drop(tables);
        warning.iter().for_each(Warning::log);
        other
    }

    /// A device no longer mines on this seat.
    pub fn leave(&self, seat: Seat, device: DeviceId) {
        leave(&mut self.tables(), &self.signs, seat, device, self.clock.now());
    }

    /// As [`SharedRegistry::leave`], on the way out of a panic.
    pub fn recover_seat(&self, seat: Seat, device: DeviceId) {
        if let Ok(mut tables) = self.tables.lock() {
            leave(&mut tables, &self.signs, seat, device, self.clock.now());
        }
    }

    /// Worker names under which several machines mine now; none where the registry is broken, which others see to.
    pub fn shared_names(&self) -> usize {
        self.tables.lock().map_or(0, |tables| tables.identities.shared_names())
    }

    /// Sends on what the sink had no room for. Called from time to time.
    pub fn flush(&self) {
        if let Ok(mut tables) = self.tables.lock() {
            tables.writer.flush();
        }
    }

    /// Notes the newest job, before connections hear of it: whoever gives a value back may have been sent it.
    pub fn set_newest_job(&self, newest: JobNumber) {
        self.live_jobs.newest.store(newest.0, Ordering::Relaxed);
    }

    /// Notes the oldest job for which a share is accepted, after connections could hear of it: who gets a value
    /// again must not get older jobs with it.
    pub fn set_oldest_live_job(&self, oldest: JobNumber) {
        self.live_jobs.oldest.store(oldest.0, Ordering::Relaxed);
    }

    /// The name of a device.
    pub fn name(&self, device: DeviceId) -> Arc<str> {
        self.tables().identities.name(device).cloned().unwrap_or_else(|| Arc::from(OTHERS))
    }

    /// The worker name that a device mines under.
    pub fn worker_name(&self, device: DeviceId) -> Arc<str> {
        self.tables().identities.worker_name(device).cloned().unwrap_or_else(|| Arc::from(OTHERS))
    }

    /// How many devices were seen.
    pub fn devices(&self) -> usize {
        self.tables().identities.len()
    }

    /// How many reserved values are held.
    pub fn live_reserved(&self) -> usize {
        self.tables().reserved.live()
    }

    /// Whether something panicked while it held the registry: that two devices hold one extranonce, for example. It
    /// cannot be trusted any more, and whoever asks it panics in turn.
    pub fn is_broken(&self) -> bool {
        self.tables.is_poisoned()
    }

    /// As [`SharedRegistry::give_back_reserved`], on the way out of a panic: does nothing with a broken registry, because
    /// a second panic there would abort the process without its goodbyes.
    pub fn recover_reserved(&self, reserved: [u8; RESERVED_SIZE]) {
        if let Ok(mut tables) = self.tables.lock() {
            tables.reserved.give_back(reserved, self.newest_served());
        }
    }

    fn newest_served(&self) -> JobNumber {
        JobNumber(self.live_jobs.newest.load(Ordering::Relaxed))
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables
            .lock()
            .expect("nothing panics while it holds the registry, unless an extranonce is held twice")
    }
}

impl SharedRegistry {
    /// A reserved extranonce value that no other live downstream holds.
    pub fn take_reserved(&self) -> Result<[u8; RESERVED_SIZE], Exhausted> {
        let oldest = JobNumber(self.live_jobs.oldest.load(Ordering::Relaxed));
        self.tables().reserved.take(oldest)
    }

    /// Gives back a value that [`SharedRegistry::take_reserved`] handed out.
    pub fn give_back_reserved(&self, reserved: [u8; RESERVED_SIZE]) {
        let newest_served = self.newest_served();
        self.tables().reserved.give_back(reserved, newest_served);
    }
}

impl Tables {
    /// Tells the sink where a machine was found to belong. Returns what the operator should hear of it.
    fn tell(&mut self, seat: Seat, joined: Joined, now: Now) -> Option<Warning> {
        let Joined { device, connections, report } = joined;
        let entry = self.identities.entry(device, microseconds(now.utc));
        self.writer.device(entry);
        self.writer.connection(connection(seat, device, true, connections, now));
        let shared = report?;
        let warning = Warning::of(&shared, &self.identities);
        self.writer.event(EventEntry {
            at_us: microseconds(now.utc),
            kind: EventKind::SharedName,
            device: Some(shared.other.0),
            text: warning.to_string(),
        });
        Some(warning)
    }
}

/// Several machines mine under one worker name, in words.
struct Warning {
    worker: Arc<str>,
    /// The name of the device of the machine that came.
    device: Arc<str>,
    /// The addresses of a machine that was there and of the one that came.
    addresses: [String; 2],
    is_overfull: bool,
}

impl Warning {
    fn of(shared: &SharedName, identities: &Identities) -> Self {
        let addresses = [shared.one.1, shared.other.1];
        let unknown = || "an unknown address".to_owned();
        Warning {
            worker: Arc::clone(&shared.name),
            device: identities.name(shared.other.0).cloned().unwrap_or_else(|| Arc::from(OTHERS)),
            addresses: addresses.map(|at| at.map_or_else(unknown, |at| at.to_string())),
            is_overfull: shared.is_overfull,
        }
    }

    fn log(&self) {
        let (worker, device, is_overfull) = (&*self.worker, &*self.device, self.is_overfull);
        let [one, other] = &self.addresses;
        tracing::warn!(
            worker,
            one,
            other,
            device,
            is_overfull,
            "several machines mine under one worker name"
        );
    }
}

/// Addresses first: a long name must not push them out of what an event holds.
impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Warning { worker, device, addresses: [one, other], is_overfull } = self;
        match is_overfull {
            true => {
                write!(f, "{other} counts for {device}: more than {MAX_MACHINES} machines mine as {worker}")
            }
            false => write!(f, "{one} and {other} both mine as {worker}; the second is {device}"),
        }
    }
}

fn leave(tables: &mut Tables, signs: &Signs, seat: Seat, device: DeviceId, now: Now) {
    let connections = tables.identities.leave(device, seat);
    signs.set_contested(device, tables.identities.is_contested(device));
    tables.writer.connection(connection(seat, device, false, connections, now));
}

fn connection(seat: Seat, device: DeviceId, is_open: bool, connections: u32, now: Now) -> ConnectionEntry {
    let at_us = microseconds(now.utc);
    ConnectionEntry { id: seat.connection, channel: seat.channel, device, at_us, is_open, connections }
}

/// Seconds of the monotonic clock, for as long as any process runs.
fn seconds(now: Now) -> u32 {
    u32::try_from(now.monotonic.as_secs()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use stratum::{ChannelId, ConnectionId};

    use super::*;
    use crate::sink::RecordSink;

    fn seat(connection: u64) -> Seat {
        Seat { connection: ConnectionId(connection), channel: ChannelId(0) }
    }

    fn from<'a>(worker_name: &'a str, address: &str) -> Introduction<'a> {
        Introduction { worker_name, address: address.parse().ok(), ..Introduction::default() }
    }

    #[tokio::test]
    async fn reserved_values_come_back_once_their_jobs_have_retired() {
        let (sink, _task) = RecordSink::start();
        let registry = SharedRegistry::new(Clock::start(), sink.writer());
        registry.set_oldest_live_job(JobNumber(5));
        registry.set_newest_job(JobNumber(7));
        let first = registry.take_reserved().expect("there is room");
        registry.give_back_reserved(first);
        let second = registry.take_reserved().expect("there is room");
        assert_ne!(second, first, "a share for job 7 may still come");
        registry.set_newest_job(JobNumber(8));
        registry.set_oldest_live_job(JobNumber(8));
        assert_eq!(
            registry.take_reserved(),
            Ok(first),
            "otherwise what was given back would pile up for ever"
        );
    }

    #[tokio::test]
    async fn a_device_keeps_its_number_over_a_restart() {
        let (sink, _task) = RecordSink::start();
        let registry = SharedRegistry::new(Clock::start(), sink.writer());
        let row = |id, name: &str| DeviceRow {
            id: DeviceId(id),
            name: name.into(),
            worker_name: "".into(),
            groups: Vec::new(),
            first_seen_us: 0,
            last_seen_us: 0,
            last_share_us: 0,
            best_difficulty: 0.0,
            address: String::new(),
            user_agent: String::new(),
            device_id: String::new(),
        };
        registry.restore(&[row(2, "farm.two"), row(0, "farm.zero")]);
        let address = "10.0.0.1";
        assert_eq!(registry.join(seat(1), &from("farm.two", address)), DeviceId(2));
        assert_eq!(registry.join(seat(2), &from("farm.zero", address)), DeviceId(0));
        let new = registry.join(seat(3), &from("farm.new", address));
        assert_eq!(new, DeviceId(3), "numbers are never given out again");
        assert_eq!(&*registry.name(DeviceId(2)), "farm.two");
        assert_eq!(registry.devices(), 4);
    }

    #[tokio::test]
    async fn connections_are_counted_and_shared_names_reported() {
        let (sink, _task) = RecordSink::start();
        let clock = Clock::start();
        let registry = SharedRegistry::new(clock, sink.writer());
        let one = registry.join(seat(1), &from("farm.one", "10.0.0.1"));
        assert_eq!(registry.join(seat(2), &from("farm.one", "10.0.0.1")), one, "it came back");
        let other = registry.join(seat(3), &from("farm.one", "10.0.0.2"));
        assert_eq!((&*registry.name(other), &*registry.worker_name(other)), ("farm.one~2", "farm.one"));
        assert_eq!(registry.shared_names(), 1);
        let connections = async || {
            let devices = sink.snapshot(clock.now()).await.expect("the sink runs").devices;
            devices.iter().map(|device| device.connections).collect::<Vec<_>>()
        };
        assert_eq!(connections().await, [2, 1]);
        registry.leave(seat(1), one);
        registry.leave(seat(3), other);
        assert_eq!((connections().await, registry.shared_names()), (vec![1, 0], 0));
        let events = sink.happened().await.expect("the sink runs").events;
        let [event] = &events[..] else { panic!("one is said of it: {events:?}") };
        assert_eq!((event.event.kind, event.event.device), (EventKind::SharedName, Some(other)));
        let text = "10.0.0.1 and 10.0.0.2 both mine as farm.one; the second is farm.one~2";
        assert_eq!(event.event.text, text);
    }

    #[tokio::test]
    async fn two_that_were_taken_for_one_are_parted_by_their_shares() {
        let (sink, _task) = RecordSink::start();
        let registry = SharedRegistry::new(Clock::start(), sink.writer());
        let at = |seconds| Now::simulated(Duration::from_secs(1_800_000_000), Duration::from_secs(seconds));
        let nat = from("farm.one", "203.0.113.5");
        let one = registry.join(seat(1), &nat);
        assert_eq!(registry.note_share(seat(1), one, at(1)), one);
        assert_eq!(registry.join(seat(2), &nat), one);
        for seconds in [5, 20, 60] {
            assert_eq!(registry.note_share(seat(1), one, at(seconds)), one, "the first stays what it is");
        }
        let other = registry.note_share(seat(2), one, at(61));
        assert_eq!(&*registry.name(other), "farm.one~2");
        assert_eq!(registry.note_share(seat(2), other, at(90)), other);
        assert_eq!(registry.note_share(seat(1), one, at(90)), one);
        registry.leave(seat(2), other);
        registry.leave(seat(1), one);
        let devices = sink.snapshot(at(100)).await.expect("the sink runs").devices;
        assert!(devices.iter().all(|device| device.connections == 0));
        assert_eq!(sink.happened().await.expect("the sink runs").events.len(), 1);
    }
}
