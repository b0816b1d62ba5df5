//! Which extensions are on for a connection (SV2 extension 1), and the one that we use: worker names beside shares
//! (extension 2), so that a pool can tell the devices of a shared channel apart.
//!
//! A pool that does not know how to negotiate says nothing, or ends the connection. Neither may cost more than a
//! moment: after either, nothing is asked of it again. Nothing here sends a name that was not negotiated.

use std::time::Duration;

use stratum::sv2::codes;
use stratum::sv2::messages::{
    ExtensionsRequestId, MAX_WORKER_IDENTITY, RequestExtensions, RequestExtensionsError,
    RequestExtensionsSuccess,
};
use stratum::{DeviceId, Now};

use super::messages::Handled;
use super::{LinkState, Upstream, send};
use crate::output::UpstreamOutput;

/// How long to wait for an answer to RequestExtensions: a pool that knows the message answers in a round trip.
pub const NEGOTIATION_DEADLINE: Duration = Duration::from_secs(3);

/// Devices whose worker names are kept: as many as are told apart at all. The shares of one more go without a name.
pub const MAX_NAMED_DEVICES: usize = 262_144;

/// Pairs the one request of a connection with its answer.
const REQUEST: ExtensionsRequestId = ExtensionsRequestId(1);

/// What was negotiated, and the names that go with it.
#[derive(Debug, Default)]
pub(super) struct WorkerNames {
    /// Whether the upstream takes them on this connection.
    pub(super) are_on: bool,
    /// It did not answer, or left when it was asked: it is not asked again.
    pub(super) is_unanswered: bool,
    /// By the devices' numbers; empty where the name is not known yet.
    names: Vec<Option<Box<str>>>,
}

impl WorkerNames {
    /// The name to send with a share; empty for none.
    pub(super) fn of(&self, device: Option<DeviceId>) -> &str {
        if !self.are_on {
            return "";
        }
        let known = device.and_then(|device| self.names.get(device.0 as usize)?.as_deref());
        known.unwrap_or("")
    }
}

impl Upstream {
    /// Whether the upstream wants worker names and does not have this device's yet: the driver then says it with
    /// [`Upstream::note_worker_name`] before it hands in a share of the device.
    pub fn lacks_name_of(&self, device: DeviceId) -> bool {
        let index = device.0 as usize;
        self.workers.are_on
            && index < MAX_NAMED_DEVICES
            && !self.workers.names.get(index).is_some_and(Option::is_some)
    }

    /// Says what a device is called. Of `account.worker` the part after the first dot is sent, as it is with a channel
    /// per device, and no more than 32 bytes of it (extension 2).
    pub fn note_worker_name(&mut self, device: DeviceId, worker_name: &str) {
        let index = device.0 as usize;
        if index >= MAX_NAMED_DEVICES {
            return;
        }
        if self.workers.names.len() <= index {
            self.workers.names.resize(index + 1, None);
        }
        let worker = worker_name.split_once('.').map_or(worker_name, |(_, worker)| worker);
        let worker: String =
            worker.chars().filter(char::is_ascii_graphic).take(MAX_WORKER_IDENTITY).collect();
        self.workers.names[index] = Some(worker.into());
    }

    /// The connection was accepted: asks for what we would use, or goes on at once. True when it asked.
    pub(super) fn negotiate(&mut self, now: Now, out: &mut UpstreamOutput) -> bool {
        self.workers.are_on = false;
        // A device with a channel of its own has its name on the channel.
        let is_wanted = self.config.forward_worker_names && self.config.aggregate;
        if !is_wanted || self.workers.is_unanswered {
            return false;
        }
        self.link = LinkState::Negotiating;
        let requested_extensions = vec![codes::WORKER_HASHRATE_TRACKING];
        send(RequestExtensions { request_id: REQUEST, requested_extensions }, out);
        self.schedule(now.monotonic + NEGOTIATION_DEADLINE);
        true
    }

    pub(super) fn handle_extensions(
        &mut self,
        message: &RequestExtensionsSuccess,
        now: Now,
        out: &mut UpstreamOutput,
    ) -> Handled {
        if self.link == LinkState::Negotiating && message.request_id == REQUEST {
            self.workers.are_on = message.supported_extensions.contains(&codes::WORKER_HASHRATE_TRACKING);
            self.begin(now, out);
        }
        Ok(())
    }

    pub(super) fn handle_no_extensions(
        &mut self,
        message: &RequestExtensionsError,
        now: Now,
        out: &mut UpstreamOutput,
    ) -> Handled {
        if self.link != LinkState::Negotiating || message.request_id != REQUEST {
            return Ok(());
        }
        let mut required = message.required_extensions.iter();
        if let Some(required) = required.find(|required| **required != codes::WORKER_HASHRATE_TRACKING) {
            return Err(format!("the upstream requires extension {required:#06x}, which is not known here"));
        }
        self.begin(now, out);
        Ok(())
    }

    /// Goes on without extensions when the upstream has had its time to answer.
    pub(super) fn end_negotiation_if_overdue(&mut self, now: Now, out: &mut UpstreamOutput) {
        let waited = now.monotonic.saturating_sub(self.heard);
        if self.link == LinkState::Negotiating && waited >= NEGOTIATION_DEADLINE {
            self.workers.is_unanswered = true;
            self.notices.tell(now, out, || {
                "the upstream does not answer RequestExtensions: worker names are not sent to it".to_owned()
            });
            self.begin(now, out);
        }
    }
}
