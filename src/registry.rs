//! Who is who, and who holds which extranonce: what the connections of one role share.
//!
//! Behind a lock, because it is asked only when a connection or channel opens or closes, never for a share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

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
    /// The oldest job for which a share would still be accepted, kept by the owner of the work.
    oldest_live_job: Arc<AtomicU64>,
    clock: Clock,
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
            oldest_live_job: Arc::new(AtomicU64::new(0)),
            clock,
        }
    }

    /// Notes the oldest job for which a share would still be accepted.
    pub fn set_oldest_live_job(&self, job: JobNumber) {
        self.oldest_live_job.store(job.0, Ordering::Relaxed);
    }

    /// The worker name of a device.
    pub fn name(&self, device: DeviceId) -> Arc<str> {
        self.tables().names.get(device.0 as usize).cloned().unwrap_or_else(|| Arc::from(OTHERS))
    }

    /// How many worker names were seen.
    pub fn devices(&self) -> usize {
        self.tables().names.len()
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
        let oldest = JobNumber(self.oldest_live_job.load(Ordering::Relaxed));
        self.tables().reserved.take(oldest)
    }

    fn give_back_reserved(&mut self, reserved: [u8; RESERVED_SIZE]) {
        // Job numbers grow with the wall clock, so that this is above every job that its holder was sent.
        let newest_served = JobNumber::first(self.clock.now());
        self.tables().reserved.give_back(reserved, newest_served);
    }
}
