//! From a request for a channel to its first job.
//!
//! The answer waits until there is work, because devices want their first job with it and because the target
//! and the extranonce depend on it. Nothing is sent in between: ESP-Miner 2.15 takes the next frame for the
//! answer.

use std::sync::Arc;
use std::time::Duration;

use accounting::Introduction;
use stratum::job::{MAX_EXTRANONCE_SIZE, RESERVED_SIZE};
use stratum::sv2::codes::{close_channel, open_channel, setup_flags};
use stratum::sv2::messages::{
    CloseChannel, OpenExtendedMiningChannel, OpenExtendedMiningChannelSuccess, OpenMiningChannelError,
    OpenStandardMiningChannel, OpenStandardMiningChannelSuccess,
};
use stratum::vardiff::HARDEST_EXPONENT;
use stratum::{ChannelId, DeviceId, HashRate, Now, RequestId, Target};

use super::channel::{Channel, Group, Unacknowledged};
use super::workers::{Worker, Workers};
use super::{MAX_CHANNELS, MAX_PENDING_OPENS, OPEN_DEADLINE, Sv2Connection, printable, send};
use crate::judge::Judge;
use crate::output::{CloseReason, Event, Output, Registry};
use crate::settings::{HANDSHAKE_DEADLINE, Settings, ShareUse, VARDIFF_INTERVAL};
use crate::work::Work;

/// The group of all channels that share their work.
const SHARED_GROUP: ChannelId = ChannelId(1);

/// Bytes of a channel's extranonce at most, the reserved ones included. Sixteen to roll are enough for two
/// proxies one behind the other, and a later upstream may give less room than the present one: what was
/// promised to a channel must still fit then.
const MAX_FULL_SIZE: usize = RESERVED_SIZE + 16;

/// No device or site hashes more (1 ZH/s, about the whole network): a higher claim says nothing.
const HIGHEST_PLAUSIBLE_RATE: f32 = 1e21;

/// `OpenMiningChannel.Error` when the upstream gave us nothing to mine on in time. The specification leaves
/// the list of codes open.
pub(super) const NO_WORK: &str = "no-work-available";

/// A request for a channel, of either kind.
#[derive(Debug)]
pub(super) struct OpenRequest {
    request_id: RequestId,
    user_identity: String,
    nominal_hash_rate: f32,
    max_target: Target,
    kind: ChannelKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChannelKind {
    Standard,
    Extended { min_extranonce_size: usize },
}

/// A request that waits for work. Holds its reserved value already.
#[derive(Debug)]
pub(super) struct PendingOpen {
    pub(super) deadline: Duration,
    channel: ChannelId,
    /// The id of its group, where the channel does not share its work.
    own_group: ChannelId,
    request_id: RequestId,
    user_identity: String,
    device: DeviceId,
    reserved: [u8; RESERVED_SIZE],
    declared: Declared,
    minimum_exponent: i32,
    kind: ChannelKind,
}

/// What a peer's nominal hash rate tells us.
#[derive(Clone, Copy, Debug)]
pub(super) struct Declared {
    /// The rate to publish: as declared, or our guess.
    pub(super) rate: HashRate,
    /// The difficulty exponent to start at, where the declared rate says one.
    pub(super) exponent: Option<i32>,
}

impl From<OpenStandardMiningChannel> for OpenRequest {
    fn from(open: OpenStandardMiningChannel) -> Self {
        OpenRequest {
            request_id: open.request_id,
            user_identity: open.user_identity,
            nominal_hash_rate: open.nominal_hash_rate,
            max_target: open.max_target,
            kind: ChannelKind::Standard,
        }
    }
}

impl From<OpenExtendedMiningChannel> for OpenRequest {
    fn from(open: OpenExtendedMiningChannel) -> Self {
        OpenRequest {
            request_id: open.request_id,
            user_identity: open.user_identity,
            nominal_hash_rate: open.nominal_hash_rate,
            max_target: open.max_target,
            kind: ChannelKind::Extended { min_extranonce_size: usize::from(open.min_extranonce_size) },
        }
    }
}

impl Declared {
    /// Zero means that a proxy has no devices yet (SV2 5.3.2); anything that is no rate means nothing.
    pub(super) fn of(nominal: f32, settings: &Settings) -> Self {
        let config = &settings.vardiff;
        if nominal > 0.0 && nominal <= HIGHEST_PLAUSIBLE_RATE {
            let rate = HashRate(f64::from(nominal));
            Declared { rate, exponent: Some(rate.difficulty_exponent(config.shares_per_minute)) }
        } else if nominal == 0.0 {
            Declared { rate: HashRate(0.0), exponent: None }
        } else {
            let work = Target::from_difficulty_exponent(config.initial_exponent).work();
            Declared { rate: HashRate::of_shares(work, config.shares_per_minute), exponent: None }
        }
    }
}

/// The exponent of the easiest power-of-two difficulty whose target is within a peer's maximum; `None` when
/// even the hardest is not.
pub(super) fn minimum_exponent(max_target: Target) -> Option<i32> {
    let floor = max_target.difficulty_exponent_floor();
    let fits = Target::from_difficulty_exponent(floor) <= max_target;
    Some(if fits { floor } else { floor + 1 }).filter(|exponent| *exponent <= HARDEST_EXPONENT)
}

/// Whether a channel can be held to difficulties from 2^`minimum` up. In a proxy it cannot when shares that
/// the upstream wants would be missed.
pub(super) fn is_servable(minimum: i32, settings: &Settings, work: &Work) -> bool {
    settings.share_use == ShareUse::Keep || minimum <= work.upstream_target.difficulty_exponent_floor()
}

impl Sv2Connection {
    /// Takes a request for a channel: refuses it, answers it, or lets it wait for work.
    pub(super) fn open(
        &mut self,
        request: OpenRequest,
        now: Now,
        registry: &mut dyn Registry,
        out: &mut Output,
    ) {
        let request_id = request.request_id;
        let pending = match self.admit(request, now, registry) {
            Ok(pending) => pending,
            Err(code) => {
                if code == open_channel::CHANNEL_CAPACITY_EXHAUSTED {
                    self.notice_capacity(out);
                }
                return refuse(request_id, code, out);
            }
        };
        if self.settings.channel_per_device {
            let (channel, user_identity) = (pending.channel, pending.user_identity.clone());
            out.events.push(Event::OpenUpstream { channel, user_identity, hash_rate: pending.declared.rate });
            self.pending.push_back(pending);
        } else if let Some(work) = self.work.clone() {
            self.complete(pending, &work, now, out);
        } else {
            self.pending.push_back(pending);
        }
        self.give_back_released(registry);
    }

    /// The upstream refused a device's channel or closed it (only with a channel per device). A request is
    /// answered with `reason`. An open channel ends; where it is the only one the connection ends with it,
    /// because ESP-Miner 2.15 ignores `CloseChannel`.
    pub fn handle_open_failed(&mut self, channel: ChannelId, reason: &str, now: Now, out: &mut Output) {
        if self.closed {
            return;
        }
        if let Some(index) = self.pending.iter().position(|open| open.channel == channel) {
            let open = self.pending.remove(index).expect("the index is of an element");
            refuse(open.request_id, &error_text(reason), out);
            // The upstream's side asks again for whoever has not gone, and what it got would serve nobody.
            self.abandon(&open, now, out);
        } else if self.channels.contains_key(&channel) {
            if self.channels.len() == 1 {
                let what = format!("the upstream closed the device's channel: {}", printable(reason));
                out.close = Some(CloseReason::upstream(what));
            } else {
                self.remove_channel(channel, now, out);
                let reason_code = close_channel::UPSTREAM_CHANGED.to_owned();
                send(CloseChannel { channel_id: channel, reason_code }, out);
            }
        }
        self.closed |= out.close.is_some();
    }

    /// Answers a request for which there is work now, and sends the first job.
    pub(super) fn complete(&mut self, open: PendingOpen, work: &Arc<Work>, now: Now, out: &mut Output) {
        if !self.can_be_served(work, out) {
            return self.pending.push_front(open);
        }
        if !is_servable(open.minimum_exponent, &self.settings, work) {
            refuse(open.request_id, open_channel::MAX_TARGET_OUT_OF_RANGE, out);
            return self.abandon(&open, now, out);
        }
        let group = self.group_for(open.own_group, work);
        let rolled_size = match open.kind {
            ChannelKind::Standard => 0,
            ChannelKind::Extended { min_extranonce_size } => {
                let size = group.full_size - RESERVED_SIZE;
                if size < min_extranonce_size {
                    refuse(open.request_id, open_channel::MIN_EXTRANONCE_SIZE_TOO_LARGE, out);
                    return self.abandon(&open, now, out);
                }
                size
            }
        };
        let mut judge = Judge::new(open.reserved, rolled_size, &self.settings, now);
        judge.set_minimum_exponent(&self.settings, open.minimum_exponent);
        if let Some(exponent) = open.declared.exponent {
            judge.suggest(&self.settings, exponent, now);
        }
        let exponent = judge.send_job(&self.settings, work, &work.active().job);
        let target =
            Target::from_difficulty_exponent(exponent.expect("the first job's difficulty is always new"));
        send_success(&open, group, target, out);
        if self.channels.is_empty() {
            self.check_at = now.monotonic + VARDIFF_INTERVAL;
        }
        let mut channel = Channel {
            id: open.channel,
            group,
            is_standard: open.kind == ChannelKind::Standard,
            user_identity: open.user_identity,
            own: Worker::new(open.device),
            workers: Workers::default(),
            judge,
            work: Arc::clone(work),
            // With a channel per device, opening it has said the rate already.
            published_rate: if self.settings.channel_per_device { open.declared.rate } else { HashRate(0.0) },
            declared_rate: None,
            unacknowledged: Unacknowledged::default(),
        };
        channel.set_published_rate(open.declared.rate, out);
        self.send_first_job(&channel, out);
        self.channels.insert(channel.id, channel);
    }

    /// Refuses what has waited too long for work.
    pub(super) fn refuse_overdue(&mut self, now: Now, out: &mut Output) {
        while self.pending.front().is_some_and(|open| open.deadline <= now.monotonic) {
            let open = self.pending.pop_front().expect("the queue has a front");
            refuse(open.request_id, NO_WORK, out);
            self.abandon(&open, now, out);
        }
    }

    /// Lets go of what a request held. A peer that was refused has its time to ask again, however long it waited: it
    /// is not to blame when there is no work.
    pub(super) fn abandon(&mut self, open: &PendingOpen, now: Now, out: &mut Output) {
        self.idle_deadline = now.monotonic + HANDSHAKE_DEADLINE;
        self.released.push(open.reserved);
        self.left.push((open.channel, open.device));
        if self.settings.channel_per_device {
            out.events.push(Event::CloseUpstream { channel: open.channel });
        }
    }

    /// Takes the request for work that waits for a device's own work, if there is one.
    pub(super) fn take_pending(&mut self, channel: ChannelId) -> Option<PendingOpen> {
        let index = self.pending.iter().position(|open| open.channel == channel)?;
        self.pending.remove(index)
    }

    /// Checks what can be checked without work, and reserves what the channel needs. Fails with an error
    /// code.
    fn admit(
        &mut self,
        request: OpenRequest,
        now: Now,
        registry: &mut dyn Registry,
    ) -> Result<PendingOpen, &'static str> {
        if let ChannelKind::Extended { min_extranonce_size } = request.kind {
            if self.requires(setup_flags::REQUIRES_STANDARD_JOBS) {
                return Err(open_channel::EXTENDED_CHANNELS_NOT_SUPPORTED_FOR_STANDARD_JOBS);
            }
            if min_extranonce_size > MAX_EXTRANONCE_SIZE {
                return Err(open_channel::MIN_EXTRANONCE_SIZE_TOO_LARGE);
            }
        }
        if request.user_identity.chars().any(char::is_control) {
            return Err(open_channel::INVALID_USER_IDENTITY);
        }
        let Some(minimum_exponent) = minimum_exponent(request.max_target) else {
            return Err(open_channel::MAX_TARGET_OUT_OF_RANGE);
        };
        let is_full = self.pending.len() >= MAX_PENDING_OPENS
            || self.channels.len() + self.pending.len() >= MAX_CHANNELS;
        let Some(next_id) = self.next_id.checked_add(2).filter(|_| !is_full) else {
            return Err(open_channel::CHANNEL_CAPACITY_EXHAUSTED);
        };
        let Ok(reserved) = registry.take_reserved() else {
            return Err(open_channel::CHANNEL_CAPACITY_EXHAUSTED);
        };
        let channel = ChannelId(self.next_id);
        self.next_id = next_id;
        let introduction = Introduction {
            worker_name: &request.user_identity,
            address: None,
            device_id: &self.device_id,
            user_agent: &self.user_agent,
        };
        Ok(PendingOpen {
            deadline: now.monotonic + OPEN_DEADLINE,
            channel,
            own_group: ChannelId(channel.0 + 1),
            request_id: request.request_id,
            device: registry.join(channel, &introduction),
            user_identity: request.user_identity,
            reserved,
            declared: Declared::of(request.nominal_hash_rate, &self.settings),
            minimum_exponent,
            kind: request.kind,
        })
    }

    /// The group for a new channel. Its size is that of the first member, which is all that the others may
    /// have.
    fn group_for(&mut self, own: ChannelId, work: &Work) -> Group {
        let full_size = work.active().job.rollable_size.min(MAX_FULL_SIZE);
        if self.settings.channel_per_device {
            Group { id: own, full_size }
        } else {
            *self.group.get_or_insert(Group { id: SHARED_GROUP, full_size })
        }
    }

    fn notice_capacity(&mut self, out: &mut Output) {
        if !std::mem::replace(&mut self.noticed.capacity, true) {
            let open = self.channels.len() + self.pending.len();
            let what = format!(
                "refused a channel: {open} of {MAX_CHANNELS} are open, or no extranonce value is free"
            );
            out.events.push(Event::Notice(what));
        }
    }
}

fn send_success(open: &PendingOpen, group: Group, target: Target, out: &mut Output) {
    let (request_id, channel_id, group_channel_id) = (open.request_id, open.channel, group.id);
    let mut extranonce_prefix = open.reserved.to_vec();
    match open.kind {
        ChannelKind::Standard => {
            extranonce_prefix.resize(group.full_size, 0);
            send(
                OpenStandardMiningChannelSuccess {
                    request_id,
                    channel_id,
                    target,
                    extranonce_prefix,
                    group_channel_id,
                },
                out,
            );
        }
        ChannelKind::Extended { .. } => send(
            OpenExtendedMiningChannelSuccess {
                request_id,
                channel_id,
                target,
                extranonce_size: (group.full_size - RESERVED_SIZE) as u16,
                extranonce_prefix,
                group_channel_id,
            },
            out,
        ),
    }
}

fn refuse(request_id: RequestId, code: &str, out: &mut Output) {
    send(OpenMiningChannelError { request_id, error_code: code.to_owned() }, out);
}

/// An upstream's words as an error code: printable, and no longer than the field holds.
fn error_text(reason: &str) -> String {
    let mut text = printable(reason);
    text.truncate(text.floor_char_boundary(255));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minimum_exponent_stays_within_the_maximum_target() {
        assert_eq!(minimum_exponent(Target::MAX), Some(-32));
        assert_eq!(minimum_exponent(Target::DIFFICULTY_1), Some(0));
        assert_eq!(minimum_exponent(Target::from_le_bytes([0; 32])), None);
        let mut just_below = Target::DIFFICULTY_1.to_le_bytes();
        just_below[26] = 0xfe;
        assert_eq!(minimum_exponent(Target::from_le_bytes(just_below)), Some(1));
    }

    #[test]
    fn an_upstreams_words_fit_the_field() {
        assert_eq!(error_text("no\nentry"), "no?entry");
        assert_eq!(error_text(&"é".repeat(200)).len(), 254);
    }
}
