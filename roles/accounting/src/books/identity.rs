//! What the books know of a device's identity besides its name, and of its connections.
//!
//! Nothing here decides which device a machine is.

use std::sync::Arc;

use super::Books;
use crate::entry::ConnectionEntry;

/// What is known of a device whose worker name is not its name, or that sends a `device_id`. Most have neither.
#[derive(Debug)]
pub(super) struct Odd {
    worker_name: Arc<str>,
    device_id: Box<str>,
}

impl Odd {
    pub(super) fn of(worker_name: &str, device_id: &str) -> Option<Box<Odd>> {
        let is_odd = !worker_name.is_empty() || !device_id.is_empty();
        is_odd.then(|| Box::new(Odd { worker_name: worker_name.into(), device_id: device_id.into() }))
    }

    /// The worker name and the `device_id`, empty where there is nothing to say.
    pub(super) fn parts(odd: &Option<Box<Odd>>) -> (&str, &str) {
        odd.as_ref().map_or(("", ""), |odd| (&odd.worker_name, &odd.device_id))
    }

    pub(super) fn worker_name(odd: &Option<Box<Odd>>) -> Arc<str> {
        odd.as_ref().map_or_else(Arc::default, |odd| Arc::clone(&odd.worker_name))
    }
}

impl Books {
    /// Takes how many connections a device has. A device that comes and goes is no news for a rollup.
    pub(super) fn apply_connection(&mut self, entry: &ConnectionEntry) {
        self.turn_to(entry.at_us);
        if let Some(device) = self.device_mut(entry.device, entry.at_us) {
            device.connections = entry.connections;
            if entry.is_open {
                device.has_channel = Some(entry.channel.0 != 0);
            }
            device.last_seen_us = device.last_seen_us.max(entry.at_us);
        }
    }

    /// A process has no connections when it starts.
    pub(super) fn forget_connections(&mut self) {
        self.devices.iter_mut().flatten().for_each(|device| device.connections = 0);
    }
}
