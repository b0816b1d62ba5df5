//! The devices behind one channel of a proxy, by the worker names that come with its shares (SV2 extension 2).
//!
//! They are devices for the ledger alone: difficulty and duplicates stay the channel's. Nothing here is asked for a
//! channel whose peer did not negotiate the extension.

use std::collections::BTreeMap;
use std::time::Duration;

use accounting::Introduction;
use stratum::{ChannelId, DeviceId, Now};

use crate::output::Registry;
use crate::settings::SIGN_OF_LIFE_INTERVAL;

/// Worker names of one channel that are told apart: more devices than any site has behind one proxy. The shares of one
/// more count for the channel's own device.
pub(super) const MAX_WORKERS: usize = 16_384;

/// The worker names that were seen on one channel; most have none.
#[derive(Debug, Default)]
pub(super) struct Workers(Option<Box<Known>>);

#[derive(Debug, Default)]
struct Known {
    places: BTreeMap<Box<str>, usize>,
    workers: Vec<Worker>,
}

/// Who brings shares, and is heard of from time to time.
#[derive(Debug)]
pub(super) struct Worker {
    device: DeviceId,
    next_sign: Duration,
}

impl Worker {
    pub(super) fn new(device: DeviceId) -> Self {
        Worker { device, next_sign: Duration::ZERO }
    }

    /// The device that its shares are of.
    pub(super) fn device(&self) -> DeviceId {
        self.device
    }

    /// Notes that a share of it was accepted.
    pub(super) fn note_share(&mut self, channel: ChannelId, now: Now, registry: &mut dyn Registry) {
        if now.monotonic >= self.next_sign {
            self.next_sign = now.monotonic + SIGN_OF_LIFE_INTERVAL;
            self.device = registry.note_share(channel, self.device, now);
        }
    }
}

impl Workers {
    /// A worker on the channel of `user_identity`: the device is the same that it would have with a channel of its own.
    /// `None` when there are too many, and for names that are empty or hold control characters.
    pub(super) fn find(
        &mut self,
        channel: ChannelId,
        user_identity: &str,
        worker: &str,
        registry: &mut dyn Registry,
    ) -> Option<&mut Worker> {
        let known = self.0.get_or_insert_default();
        if let Some(place) = known.places.get(worker) {
            return Some(&mut known.workers[*place]);
        }
        let is_name = !worker.is_empty() && !worker.chars().any(char::is_control);
        if !is_name || known.workers.len() >= MAX_WORKERS {
            return None;
        }
        // What the proxy says of itself is not the worker's.
        let worker_name = &*format!("{user_identity}.{worker}");
        let device = registry.join(channel, &Introduction { worker_name, ..Introduction::default() });
        known.places.insert(worker.into(), known.workers.len());
        known.workers.push(Worker::new(device));
        known.workers.last_mut()
    }

    /// The devices of all of them.
    pub(super) fn devices(&self) -> impl Iterator<Item = DeviceId> {
        self.0.iter().flat_map(|known| &known.workers).map(Worker::device)
    }
}
