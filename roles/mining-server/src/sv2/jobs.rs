//! How work reaches channels.
//!
//! A job that must replace all others is sent as a future job and its `SetNewPrevHash`, any other with the
//! time to start from: devices exit on a job that builds on nothing (`mining_device` 0.6). Job ids are never
//! used again.

use std::sync::Arc;

use stratum::sv2::codes::setup_flags;
use stratum::sv2::messages::{NewExtendedMiningJob, NewMiningJob, SetNewPrevHash, SetTarget};
use stratum::{ChannelId, Job, Now, Target};

use super::channel::Channel;
use super::{ESP_MINER_FRAME, Sv2Connection, send};
use crate::output::{CloseReason, Event, Output};
use crate::work::Work;

impl Sv2Connection {
    /// Takes new work: for all channels, or with a channel per device for `channel` alone.
    ///
    /// Work whose active job a channel has is kept and not sent again, so that a change of its liveness alone
    /// disturbs nobody. Panics when `channel` does not go with the settings: the driver mixed up its own
    /// work.
    pub fn handle_work(&mut self, channel: Option<ChannelId>, work: &Arc<Work>, now: Now, out: &mut Output) {
        assert_eq!(channel.is_some(), self.settings.channel_per_device, "work is a device's own or for all");
        if self.closed {
            return;
        }
        self.custom_jobs.retire_others(work.active());
        match channel {
            Some(channel) => self.handle_own_work(channel, work, now, out),
            None => self.handle_shared_work(work, now, out),
        }
        self.closed |= out.close.is_some();
    }

    /// The first job of a channel, which is not in the map yet.
    pub(super) fn send_first_job(&mut self, channel: &Channel, out: &mut Output) {
        let job = &channel.work.active().job;
        let length = send_job_to_channel(channel, job, true, out);
        self.look_at_job(job, length, channel.is_standard, out);
    }

    /// Whether this connection can mine on the work at all; if not, it is closed. Another connection can have
    /// what this one cannot be told.
    pub(super) fn can_be_served(&self, work: &Work, out: &mut Output) -> bool {
        let job = &work.active().job;
        if self.requires(setup_flags::REQUIRES_VERSION_ROLLING) && !job.version_rolling_allowed {
            let what = "the upstream forbids version rolling, which this downstream requires";
            out.close = Some(CloseReason::upstream(what));
            return false;
        }
        true
    }

    fn handle_own_work(&mut self, id: ChannelId, work: &Arc<Work>, now: Now, out: &mut Output) {
        if let Some(open) = self.take_pending(id) {
            return self.complete(open, work, now, out);
        }
        // The device may have gone while its work was on the way.
        let Some(channel) = self.channels.get_mut(&id) else { return };
        channel.work = Arc::clone(work);
        if self.wants(id, work) && self.can_be_served(work, out) && self.has_room(work, id, out) {
            self.send_work_to_each(&[id], work, out);
        }
    }

    fn handle_shared_work(&mut self, work: &Arc<Work>, now: Now, out: &mut Output) {
        self.work = Some(Arc::clone(work));
        self.channels.values_mut().for_each(|channel| channel.work = Arc::clone(work));
        let ids: Vec<_> = self.channels.keys().copied().filter(|id| self.wants(*id, work)).collect();
        if let Some(first) = ids.first() {
            if !self.can_be_served(work, out) || !self.has_room(work, *first, out) {
                return;
            }
            if self.channels.len() > 1 && !self.requires(setup_flags::REQUIRES_STANDARD_JOBS) {
                self.send_work_to_group(&ids, work, out);
            } else {
                self.send_work_to_each(&ids, work, out);
            }
        }
        while out.close.is_none()
            && let Some(open) = self.pending.pop_front()
        {
            self.complete(open, work, now, out);
        }
    }

    /// Whether the channel lacks the work's active job. Work that was overtaken by what it has is not sent.
    fn wants(&self, id: ChannelId, work: &Work) -> bool {
        let job = &work.active().job;
        self.channels.get(&id).is_some_and(|channel| {
            job.number > channel.judge.newest_sent()
                || (job.number != channel.judge.newest_sent() && channel.judge.is_clean(work))
        })
    }

    /// Whether the job has room for the extranonce that the channel was promised; if not, the connection is
    /// closed. Only the merkle root of a standard job reaches the device, and so anything fits it.
    fn has_room(&self, work: &Work, id: ChannelId, out: &mut Output) -> bool {
        let room = work.active().job.rollable_size;
        let promised = self.channels.get(&id).map_or(0, |channel| channel.group.full_size);
        if promised <= room || self.requires(setup_flags::REQUIRES_STANDARD_JOBS) {
            return true;
        }
        let what = format!("the upstream has room for {room} extranonce bytes, and {promised} were promised");
        out.close = Some(CloseReason::upstream(what));
        false
    }

    fn send_work_to_each(&mut self, ids: &[ChannelId], work: &Work, out: &mut Output) {
        let job = &work.active().job;
        for id in ids {
            let Some(channel) = self.channels.get_mut(id) else { continue };
            let clean = prepare(channel, &self.settings, work, out);
            let length = send_job_to_channel(channel, job, clean, out);
            let is_standard = channel.is_standard;
            self.look_at_job(job, length, is_standard, out);
        }
    }

    /// Tells every channel its target and then sends the job once for all of them.
    fn send_work_to_group(&mut self, ids: &[ChannelId], work: &Work, out: &mut Output) {
        let group = self.group.expect("channels that share their work are in a group");
        let job = &work.active().job;
        let mut clean = false;
        for id in ids {
            let Some(channel) = self.channels.get_mut(id) else { continue };
            clean |= prepare(channel, &self.settings, work, out);
        }
        send(extended_job(group.id, group.full_size, job, clean), out);
        send_prev_hash(group.id, job, clean, out);
    }

    /// Tells the operator, once, of jobs that a device will not be able to use.
    fn look_at_job(&mut self, job: &Job, length: usize, is_standard: bool, out: &mut Output) {
        if length > ESP_MINER_FRAME && self.vendor == "bitaxe" && !self.noticed.long_frame {
            self.noticed.long_frame = true;
            let what =
                format!("jobs of {length} bytes, and this firmware reads no more than {ESP_MINER_FRAME}");
            out.events.push(Event::Notice(what));
        }
        if is_standard && !job.version_rolling_allowed && !self.noticed.fixed_version {
            self.noticed.fixed_version = true;
            let what = "the upstream forbids version rolling, which a standard job cannot say: \
                        shares of a device that rolls it will be refused";
            out.events.push(Event::Notice(what.to_owned()));
        }
    }
}

/// Notes that the work's active job goes to the channel, and tells the channel its target where that is
/// another than before. Returns whether the job replaces all others.
fn prepare(channel: &mut Channel, settings: &crate::Settings, work: &Work, out: &mut Output) -> bool {
    let job = &work.active().job;
    let clean = channel.judge.is_clean(work);
    if let Some(exponent) = channel.judge.send_job(settings, work, job) {
        let maximum_target = Target::from_difficulty_exponent(exponent);
        send(SetTarget { channel_id: channel.id, maximum_target }, out);
    }
    clean
}

/// Returns the length of the job's frame.
fn send_job_to_channel(channel: &Channel, job: &Job, clean: bool, out: &mut Output) -> usize {
    let start = out.bytes.len();
    if channel.is_standard {
        let message = NewMiningJob {
            channel_id: channel.id,
            job_id: job.number.job_id(),
            min_ntime: (!clean).then_some(job.min_ntime),
            version: job.version,
            merkle_root: channel.merkle_root(job),
        };
        send(message, out);
    } else {
        send(extended_job(channel.id, channel.group.full_size, job, clean), out);
    }
    let length = out.bytes.len() - start;
    send_prev_hash(channel.id, job, clean, out);
    length
}

/// The job for an extranonce of `full_size` bytes. What the job has room for beyond that is zeros, at the
/// start of the suffix, as [`Job::hash`] has them too.
fn extended_job(address: ChannelId, full_size: usize, job: &Job, clean: bool) -> NewExtendedMiningJob {
    let padding = job.rollable_size.saturating_sub(full_size);
    let mut coinbase_tx_suffix = vec![0; padding];
    coinbase_tx_suffix.extend_from_slice(&job.coinbase_suffix);
    NewExtendedMiningJob {
        channel_id: address,
        job_id: job.number.job_id(),
        min_ntime: (!clean).then_some(job.min_ntime),
        version: job.version,
        version_rolling_allowed: job.version_rolling_allowed,
        merkle_path: job.merkle_path.to_vec(),
        coinbase_tx_prefix: job.coinbase_prefix.to_vec(),
        coinbase_tx_suffix,
    }
}

fn send_prev_hash(address: ChannelId, job: &Job, clean: bool, out: &mut Output) {
    if clean {
        let message = SetNewPrevHash {
            channel_id: address,
            job_id: job.number.job_id(),
            prev_hash: job.tip.previous_hash,
            min_ntime: job.min_ntime,
            nbits: job.tip.nbits,
        };
        send(message, out);
    }
}
