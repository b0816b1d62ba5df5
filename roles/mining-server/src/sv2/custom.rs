//! Custom jobs: `SetCustomMiningJob` and its answers (SV2 5.3.18 to 5.3.20).
//!
//! The owner of the work decides whether a job is taken, and makes it. This module never looks at a token or at a
//! coinbase, and never makes a job: it passes requests on, answers them, and finds the job that a share is for.

use std::collections::VecDeque;
use std::sync::Arc;

use stratum::sv2::codes::{set_custom_mining_job as codes, setup_flags};
use stratum::sv2::frame::MAX_PAYLOAD_FROM_MINER;
use stratum::sv2::messages::{SetCustomMiningJob, SetCustomMiningJobError, SetCustomMiningJobSuccess};
use stratum::{ChannelId, JobId, RequestId};

use super::channel::Channel;
use super::{Sv2Connection, send};
use crate::output::{CustomJobRequest, Output};
use crate::work::PublishedJob;

/// The longest payload of a peer that selects its own work: 8 KiB of outputs, as many of merkle path (255 hashes),
/// and the rest of `SetCustomMiningJob`. What has more outputs pays them in block space, and is refused with the frame.
pub const MAX_CUSTOM_JOB_PAYLOAD: usize = 24 * 1024;

/// Requests of one connection that wait for their answers: in 1.5 MiB. A proxy declares a few jobs at once after a new
/// tip, and has an answer within milliseconds. One more is refused with [`TOO_MANY_WAITING`].
pub const MAX_WAITING_CUSTOM_JOBS: usize = 64;

/// Custom jobs of one connection that shares may be for: in 6 MiB when each is as long as its message may be. At one
/// job in twenty seconds these last for more than an hour, or a few minutes where dozens of channels have their own;
/// the oldest retires when one more comes.
pub const MAX_CUSTOM_JOBS: usize = 256;

/// The code for a request beyond [`MAX_WAITING_CUSTOM_JOBS`]. The specification establishes none.
pub const TOO_MANY_WAITING: &str = "too-many-requests-waiting";

/// What a connection knows of custom jobs.
#[derive(Debug, Default)]
pub(super) struct CustomJobs {
    /// Whether the owner of the work takes any.
    pub(super) are_taken: bool,
    waiting: usize,
    /// The jobs that were taken, oldest first, with the channel or group that each is for.
    live: VecDeque<(ChannelId, Arc<PublishedJob>)>,
}

impl CustomJobs {
    /// The job that a share on a channel is for, if it is a custom one.
    pub(super) fn find(&self, channel: &Channel, id: JobId) -> Option<&Arc<PublishedJob>> {
        // Nearly every share is for one of the newest.
        let mut newest_first = self.live.iter().rev();
        let found = newest_first.find(|(address, published)| {
            is_addressed(channel, *address) && published.job.number.job_id() == id
        });
        found.map(|(_, published)| published)
    }

    /// Forgets the jobs of other tips and epochs than that of `active`.
    pub(super) fn retire_others(&mut self, active: &PublishedJob) {
        let place = (active.job.epoch, active.job.tip.number);
        self.live.retain(|(_, published)| (published.job.epoch, published.job.tip.number) == place);
    }
}

impl Sv2Connection {
    /// Takes custom jobs: its driver asks the owner of the work about each of [`Output::custom_jobs`]. Not where every
    /// device has a channel of its own upstream: there is no one tip that a job could be for.
    #[must_use]
    pub fn taking_custom_jobs(mut self) -> Self {
        self.custom_jobs.are_taken = !self.settings.channel_per_device;
        self
    }

    /// The longest payload that the peer may send now, in bytes.
    pub fn max_payload(&self) -> usize {
        if self.selects_work() { MAX_CUSTOM_JOB_PAYLOAD } else { MAX_PAYLOAD_FROM_MINER }
    }

    /// The owner's answer to a [`CustomJobRequest`]: the job that it made, or one of
    /// [`stratum::sv2::codes::set_custom_mining_job`]. Each request is answered once.
    ///
    /// The driver hands on the newest work before this: an answer that is for another tip than the channel's work is
    /// refused as stale.
    pub fn handle_custom_job(
        &mut self,
        channel_id: ChannelId,
        request_id: RequestId,
        answer: Result<Arc<PublishedJob>, &str>,
        out: &mut Output,
    ) {
        if self.closed {
            return;
        }
        self.custom_jobs.waiting = self.custom_jobs.waiting.saturating_sub(1);
        match answer.and_then(|job| self.take_custom_job(channel_id, job)) {
            Ok(job_id) => send(SetCustomMiningJobSuccess { channel_id, request_id, job_id }, out),
            Err(code) => refuse(channel_id, request_id, code, out),
        }
        self.closed |= out.close.is_some();
    }

    /// Asks the owner for a custom job, or refuses it where the owner need not be asked.
    pub(super) fn ask_for_custom_job(&mut self, message: SetCustomMiningJob, out: &mut Output) {
        let (address, request_id) = (message.channel_id, message.request_id);
        let mut addressed = self.channels.values().filter(|channel| is_addressed(channel, address));
        let code = match addressed.next() {
            // Who did not say that it would send these may not (SV2 5.3.18).
            _ if !self.selects_work() => codes::JD_NOT_SUPPORTED,
            None => codes::INVALID_CHANNEL_ID,
            Some(_) if self.custom_jobs.waiting == MAX_WAITING_CUSTOM_JOBS => TOO_MANY_WAITING,
            Some(channel) => {
                let user_identity = channel.user_identity.clone();
                let extranonce_size = channel.group.full_size;
                self.custom_jobs.waiting += 1;
                return out.custom_jobs.push(CustomJobRequest { user_identity, extranonce_size, message });
            }
        };
        refuse(address, request_id, code, out);
    }

    /// Whether the peer said that it will send custom jobs, and they are taken.
    fn selects_work(&self) -> bool {
        self.custom_jobs.are_taken && self.requires(setup_flags::REQUIRES_WORK_SELECTION)
    }

    fn take_custom_job(&mut self, address: ChannelId, job: Arc<PublishedJob>) -> Result<JobId, &'static str> {
        let addressed = self.channels.values_mut().filter(|channel| is_addressed(channel, address));
        // The channel may have gone while its request was on the way.
        let mut is_for_nobody = true;
        for channel in addressed {
            if !channel.judge.take_custom_job(&job.job) {
                return Err(codes::STALE_CHAIN_TIP);
            }
            is_for_nobody = false;
        }
        if is_for_nobody {
            return Err(codes::INVALID_CHANNEL_ID);
        }
        if self.custom_jobs.live.len() == MAX_CUSTOM_JOBS {
            self.custom_jobs.live.pop_front();
        }
        let job_id = job.job.number.job_id();
        self.custom_jobs.live.push_back((address, job));
        Ok(job_id)
    }
}

/// Whether a custom job for a channel or a group is this channel's. Standard channels have none, not even in a group
/// (SV2 5.3.18).
fn is_addressed(channel: &Channel, address: ChannelId) -> bool {
    !channel.is_standard && (channel.id == address || channel.group.id == address)
}

fn refuse(channel_id: ChannelId, request_id: RequestId, code: &str, out: &mut Output) {
    send(SetCustomMiningJobError { channel_id, request_id, error_code: code.to_owned() }, out);
}
