//! Who is who, and who holds which extranonce: what the connections of one role share.
//!
//! Behind a lock, because it is asked only when a connection or channel opens or closes, never for a share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use accounting::DeviceRow;
use mining_server::Registry;
use stratum::extranonce::{Exhausted, ReservedExtranonces};
use stratum::job::RESERVED_SIZE;
use stratum::{DeviceId, JobNumber};

use crate::clock::Clock;
use crate::sink::RecordWriter;

/// Worker names that are told apart. Anybody can authorise under any name: beyond this many, new names share one
/// device, which is called [`OTHERS`].
pub const MAX_DEVICES: usize = 262_144;

/// The name of the device that stands for all names beyond [`MAX_DEVICES`].
pub const OTHERS: &str = "(others)";

/// The registry of one role. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SharedRegistry {
    tables: Arc<Mutex<Tables>>,
    /// The jobs for which a share would be accepted, kept by the owner of the work.
    live_jobs: Arc<LiveJobs>,
    clock: Clock,
}

#[derive(Debug, Default)]
struct LiveJobs {
    oldest: AtomicU64,
    newest: AtomicU64,
}

#[derive(Debug)]
struct Tables {
    devices: HashMap<Arc<str>, DeviceId>,
    names: Vec<Arc<str>>,
    reserved: ReservedExtranonces,
    /// Tells the sink which device a number stands for.
    writer: RecordWriter,
}

impl SharedRegistry {
    /// An empty registry that tells `writer` of every device.
    pub fn new(clock: Clock, writer: RecordWriter) -> Self {
        let reserved = ReservedExtranonces::new(1 << (8 * RESERVED_SIZE));
        SharedRegistry {
            tables: Arc::new(Mutex::new(Tables {
                devices: HashMap::new(),
                names: Vec::new(),
                reserved,
                writer,
            })),
            live_jobs: Arc::default(),
            clock,
        }
    }

    /// Takes the devices of the time before, so that each keeps its number for ever.
    pub fn restore(&self, rows: &[DeviceRow]) {
        let mut tables = self.tables();
        for row in rows {
            let index = row.id.0 as usize;
            if index >= MAX_DEVICES {
                continue;
            }
            if tables.names.len() <= index {
                tables.names.resize(index + 1, Arc::from(""));
            }
            tables.names[index] = Arc::clone(&row.name);
            if !row.name.is_empty() {
                tables.devices.insert(Arc::clone(&row.name), row.id);
            }
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

    /// The worker name of a device.
    pub fn name(&self, device: DeviceId) -> Arc<str> {
        self.tables().names.get(device.0 as usize).cloned().unwrap_or_else(|| Arc::from(OTHERS))
    }

    /// How many worker names were seen.
    pub fn devices(&self) -> usize {
        self.tables().names.len()
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

    /// As [`Registry::give_back_reserved`], on the way out of a panic: does nothing with a broken registry, because
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

impl Registry for SharedRegistry {
    fn device(&mut self, worker_name: &str) -> DeviceId {
        let now = self.clock.now();
        let mut tables = self.tables();
        let known = tables.devices.get(worker_name).copied();
        let is_full = tables.names.len() >= MAX_DEVICES;
        let name: Arc<str> = if known.is_none() && is_full { OTHERS.into() } else { worker_name.into() };
        let device = match known.or_else(|| tables.devices.get(&name).copied()) {
            Some(device) => device,
            None => {
                let device = DeviceId(tables.names.len() as u32);
                tables.names.push(Arc::clone(&name));
                tables.devices.insert(Arc::clone(&name), device);
                device
            }
        };
        tables.writer.device(device, &name, now);
        device
    }

    fn take_reserved(&mut self) -> Result<[u8; RESERVED_SIZE], Exhausted> {
        let oldest = JobNumber(self.live_jobs.oldest.load(Ordering::Relaxed));
        self.tables().reserved.take(oldest)
    }

    fn give_back_reserved(&mut self, reserved: [u8; RESERVED_SIZE]) {
        let newest_served = self.newest_served();
        self.tables().reserved.give_back(reserved, newest_served);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::RecordSink;

    #[tokio::test]
    async fn reserved_values_come_back_once_their_jobs_have_retired() {
        let (sink, _task) = RecordSink::start();
        let mut registry = SharedRegistry::new(Clock::start(), sink.writer());
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
        let mut registry = SharedRegistry::new(Clock::start(), sink.writer());
        let row = |id, name: &str| DeviceRow {
            id: DeviceId(id),
            name: name.into(),
            groups: Vec::new(),
            first_seen_us: 0,
            last_seen_us: 0,
            last_share_us: 0,
            best_difficulty: 0.0,
            address: String::new(),
            user_agent: String::new(),
        };
        registry.restore(&[row(2, "farm.two"), row(0, "farm.zero")]);
        assert_eq!(registry.device("farm.two"), DeviceId(2));
        assert_eq!(registry.device("farm.zero"), DeviceId(0));
        assert_eq!(registry.device("farm.new"), DeviceId(3), "numbers are never given out again");
        assert_eq!(&*registry.name(DeviceId(2)), "farm.two");
    }

    #[tokio::test]
    async fn a_worker_name_is_one_device() {
        let (sink, _task) = RecordSink::start();
        let mut registry = SharedRegistry::new(Clock::start(), sink.writer());
        let device = registry.device("farm.one");
        assert_ne!(registry.device("farm.two"), device);
        assert_eq!(registry.device("farm.one"), device);
        assert_eq!(&*registry.name(device), "farm.one");
        assert_eq!(registry.devices(), 2);
    }
}
