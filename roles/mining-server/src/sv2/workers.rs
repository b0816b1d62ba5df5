//! The devices behind one channel of a proxy, by the worker names that come with its shares (SV2 extension 2).
//!
//! They are devices for the ledger alone: difficulty and duplicates stay the channel's. Nothing here is asked for a
//! channel whose peer did not negotiate the extension.

use std::collections::BTreeMap;

use stratum::DeviceId;

use crate::output::Registry;

/// Worker names of one channel that are told apart: more devices than any site has behind one proxy. The shares of one
/// more count for the channel's own device.
pub(super) const MAX_WORKERS: usize = 16_384;

/// The worker names that were seen on one channel.
#[derive(Debug, Default)]
pub(super) struct Workers(BTreeMap<Box<str>, DeviceId>);

impl Workers {
    /// The device of a worker on the channel of `user_identity`: the same that it would have with a channel of its own.
    /// `None` when there are too many, and for names that are empty or hold control characters.
    pub(super) fn device(
        &mut self,
        user_identity: &str,
        worker: &str,
        registry: &mut dyn Registry,
    ) -> Option<DeviceId> {
        if let Some(device) = self.0.get(worker) {
            return Some(*device);
        }
        let is_name = !worker.is_empty() && !worker.chars().any(char::is_control);
        if !is_name || self.0.len() >= MAX_WORKERS {
            return None;
        }
        let device = registry.device(&format!("{user_identity}.{worker}"));
        self.0.insert(worker.into(), device);
        Some(device)
    }
}
