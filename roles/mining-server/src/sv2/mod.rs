//! One miner-facing SV2 connection as a state machine, for devices and for proxies that speak for many of
//! them.
//!
//! The Noise transport is the driver's: plain frames come in and go out. This module never touches a socket
//! or a clock, never decides where work comes from, and never sends `SetExtranoncePrefix` or
//! `SetGroupChannel`: the upstream's prefix is part of every job's coinbase, so a new job is all that a
//! change of it needs. Devices that ignore those messages (ESP-Miner 2.15) therefore miss nothing.
//!
//! - `opening`: from a request for a channel to its first job.
//! - `jobs`: how work reaches channels.
//! - `shares`: how shares are answered.
//! - `channel`: the state of one channel.
//! - `custom`: jobs that the peer made.
//! - `workers`: the devices behind the channel of a proxy.

mod channel;
mod custom;
mod jobs;
mod opening;
mod shares;
mod workers;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use stratum::job::RESERVED_SIZE;
use stratum::sv2::codes::{self, setup_flags};
use stratum::sv2::messages::{
    CloseChannel, Protocol, RequestExtensions, RequestExtensionsError, RequestExtensionsSuccess,
    SetupConnection, SetupConnectionError, SetupConnectionSuccess, UpdateChannel, UpdateChannelError,
};
use stratum::sv2::{DecodeError, FrameHeader, Message};
use stratum::{ChannelId, ConnectionId, DeviceId, HashRate, Now};

use crate::output::{CloseReason, Event, Output, Registry};
use crate::settings::{HANDSHAKE_DEADLINE, Settings, VARDIFF_INTERVAL};
use crate::work::Work;

use channel::{Channel, Group};
use custom::CustomJobs;
pub use custom::{MAX_CUSTOM_JOB_PAYLOAD, MAX_CUSTOM_JOBS, MAX_WAITING_CUSTOM_JOBS, TOO_MANY_WAITING};
use opening::{OpenRequest, PendingOpen};
use shares::Submit;

/// Channels of one connection: more devices than any site has behind one proxy, and about 16 MiB when a peer
/// opens them all. One more is refused with `channel-capacity-exhausted`.
pub const MAX_CHANNELS: usize = 16_384;

/// Requests for channels that wait for work on one connection: a proxy that asks for a channel per device
/// while the upstream is away, within 2 MiB. One more is refused with `channel-capacity-exhausted`.
pub const MAX_PENDING_OPENS: usize = 4096;

/// How long a request for a channel waits for work. Longer than an upstream takes to come back from a
/// restart, shorter than devices take to think that we are gone.
pub const OPEN_DEADLINE: Duration = Duration::from_secs(20);

/// Accepted shares are acknowledged no later than this after the first of them.
pub const ACKNOWLEDGE_AFTER: Duration = Duration::from_secs(1);

/// The longest frame that ESP-Miner 2.15 reads.
const ESP_MINER_FRAME: usize = 8192;

/// What a downstream may require of us; custom jobs only where they are taken.
const SUPPORTED_FLAGS: u32 = setup_flags::REQUIRES_STANDARD_JOBS | setup_flags::REQUIRES_VERSION_ROLLING;

/// One SV2 connection with a miner or a proxy.
#[derive(Debug)]
pub struct Sv2Connection {
    settings: Arc<Settings>,
    id: ConnectionId,
    /// The flags of `SetupConnection`, once it was accepted.
    flags: Option<u32>,
    vendor: String,
    hardware_version: String,
    /// Vendor, hardware and firmware: what SV1 calls the user agent.
    user_agent: String,
    /// What the peer calls itself among others of its kind.
    device_id: String,
    /// The next channel's id. Channels have even ids and groups odd ones, so that the two never meet.
    next_id: u32,
    /// The one group of all channels while they share their work; made with the first channel.
    group: Option<Group>,
    channels: BTreeMap<ChannelId, Channel>,
    /// Requests that wait for work, oldest first.
    pending: VecDeque<PendingOpen>,
    /// Reserved values of channels that ended while the registry was out of reach. At most one for each
    /// request or channel, because the next frame gives them back before it is read.
    released: Vec<[u8; RESERVED_SIZE]>,
    /// Devices that left their channels meanwhile, which the registry is told then.
    left: Vec<(ChannelId, DeviceId)>,
    /// The work that all channels share.
    work: Option<Arc<Work>>,
    /// When the connection is closed unless a channel is open or wanted by then.
    idle_deadline: Duration,
    /// When accepted shares are acknowledged that still wait for it.
    acknowledge_at: Option<Duration>,
    /// When difficulties and hash rates are looked at.
    check_at: Duration,
    /// Whether shares come with worker names (extension 2).
    worker_names: bool,
    custom_jobs: CustomJobs,
    noticed: Noticed,
    closed: bool,
}

/// What the operator was told, so that a peer cannot have it told again and again.
#[derive(Debug, Default)]
struct Noticed {
    unknown_message: bool,
    capacity: bool,
    long_frame: bool,
    fixed_version: bool,
}

impl Sv2Connection {
    /// A connection whose transport is up and that has said nothing yet.
    pub fn new(settings: Arc<Settings>, id: ConnectionId, now: Now) -> Self {
        Sv2Connection {
            settings,
            id,
            flags: None,
            vendor: String::new(),
            hardware_version: String::new(),
            user_agent: String::new(),
            device_id: String::new(),
            next_id: 2,
            group: None,
            channels: BTreeMap::new(),
            pending: VecDeque::new(),
            released: Vec::new(),
            left: Vec::new(),
            work: None,
            idle_deadline: now.monotonic + HANDSHAKE_DEADLINE,
            acknowledge_at: None,
            check_at: now.monotonic + VARDIFF_INTERVAL,
            worker_names: false,
            custom_jobs: CustomJobs::default(),
            noticed: Noticed::default(),
            closed: false,
        }
    }

    /// Takes one frame of the peer. A frame that no miner sends closes the connection as the peer's fault.
    pub fn handle_frame(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        now: Now,
        registry: &mut dyn Registry,
        out: &mut Output,
    ) {
        if self.closed {
            return;
        }
        self.give_back_released(registry);
        let most = self.max_payload();
        if payload.len() > most {
            let what =
                format!("a frame of {} bytes, of which a miner sends no more than {most}", payload.len());
            out.close = Some(CloseReason::downstream(what));
        } else {
            match Message::decode(header, payload) {
                Ok(message) => self.handle_message(message, now, registry, out),
                Err(DecodeError::UnsupportedProtocol(protocol)) if self.flags.is_none() => {
                    let what = format!("protocol {protocol} is none of SV2's");
                    refuse_setup(0, codes::setup_connection::UNSUPPORTED_PROTOCOL, what, out);
                }
                Err(error) => out.close = Some(CloseReason::downstream(error.to_string())),
            }
        }
        self.closed |= out.close.is_some();
    }

    /// When [`Sv2Connection::handle_timeout`] is due, on the monotonic clock.
    pub fn next_timeout(&self) -> Duration {
        let idle = if self.is_idle() { self.idle_deadline } else { Duration::MAX };
        let check = if self.channels.is_empty() { Duration::MAX } else { self.check_at };
        let pending = self.pending.front().map_or(Duration::MAX, |open| open.deadline);
        let acknowledge = self.acknowledge_at.unwrap_or(Duration::MAX);
        idle.min(check).min(pending).min(acknowledge)
    }

    /// Does what is due at `now`. Early and late calls do no harm.
    pub fn handle_timeout(&mut self, now: Now, out: &mut Output) {
        if self.closed {
            return;
        }
        if self.acknowledge_at.is_some_and(|at| at <= now.monotonic) {
            self.acknowledge_at = None;
            self.channels.values_mut().for_each(|channel| channel.acknowledge(out));
        }
        if self.check_at <= now.monotonic {
            self.check_at = now.monotonic + VARDIFF_INTERVAL;
            for channel in self.channels.values_mut() {
                channel.judge.check_difficulty(&self.settings, now);
                channel.publish_hash_rate(now, out);
            }
        }
        self.refuse_overdue(now, out);
        if self.is_idle() && self.idle_deadline <= now.monotonic {
            let what = match self.flags {
                None => "no SetupConnection came",
                Some(_) => "no channel was open",
            };
            let what = format!("{what} within {} seconds", HANDSHAKE_DEADLINE.as_secs());
            out.close = Some(CloseReason::downstream(what));
        }
        self.closed |= out.close.is_some();
    }

    /// The transport is gone, whoever ended it: gives every reserved extranonce value back and says which
    /// devices are no longer there. The last call.
    pub fn handle_closed(&mut self, now: Now, registry: &mut dyn Registry, out: &mut Output) {
        let channels: Vec<_> = self.channels.keys().copied().collect();
        channels.into_iter().for_each(|channel| self.remove_channel(channel, now, out));
        for open in std::mem::take(&mut self.pending) {
            self.abandon(&open, now, out);
        }
        self.give_back_released(registry);
        self.closed = true;
    }

    /// What the peer calls its maker, without control characters; empty before `SetupConnection`.
    pub fn vendor(&self) -> &str {
        &self.vendor
    }

    /// What the peer calls its hardware, without control characters; empty before `SetupConnection`.
    pub fn hardware_version(&self) -> &str {
        &self.hardware_version
    }

    /// The user identities of the open channels, in the order in which they were opened.
    pub fn user_identities(&self) -> impl Iterator<Item = &str> {
        self.channels.values().map(|channel| channel.user_identity.as_str())
    }

    /// How many channels are open.
    pub fn channel_count(&self) -> usize {
        self.channels.len()
    }

    /// How many requests for a channel wait for work.
    pub fn waiting_count(&self) -> usize {
        self.pending.len()
    }

    /// The sum of what is estimated of the channels' hash rates; `None` while nothing is known of any.
    pub fn hash_rate(&self, now: Now) -> Option<HashRate> {
        let known = self.channels.values().filter_map(|channel| channel.judge.hash_rate(now));
        known.reduce(|sum, rate| HashRate(sum.0 + rate.0))
    }

    fn handle_message(&mut self, message: Message, now: Now, registry: &mut dyn Registry, out: &mut Output) {
        if self.flags.is_none() {
            return match message {
                Message::SetupConnection(setup) => self.set_up(&setup, out),
                other => {
                    let what = format!("{} came before SetupConnection", other.name());
                    out.close = Some(CloseReason::downstream(what));
                }
            };
        }
        match message {
            Message::OpenStandardMiningChannel(open) => {
                self.open(OpenRequest::from(open), now, registry, out)
            }
            Message::OpenExtendedMiningChannel(open) => {
                self.open(OpenRequest::from(open), now, registry, out)
            }
            Message::UpdateChannel(update) => self.update_channel(&update, now, out),
            Message::CloseChannel(close) => self.close_channel(&close, now, registry, out),
            Message::SubmitSharesStandard(share) => self.submit(&Submit::from(&share), now, registry, out),
            Message::SubmitSharesExtended(share) => self.submit(&Submit::from(&share), now, registry, out),
            Message::SetCustomMiningJob(job) => self.ask_for_custom_job(job, out),
            Message::RequestExtensions(request) => self.answer_extensions(request, out),
            Message::Unknown(unknown) => {
                if !std::mem::replace(&mut self.noticed.unknown_message, true) {
                    out.events.push(Event::Notice(format!(
                        "ignored message {:#04x} of extension {:#06x}, which is not known",
                        unknown.message_type, unknown.extension_type
                    )));
                }
            }
            other => {
                let what = format!("{} is not for a server, or not now", other.name());
                out.close = Some(CloseReason::downstream(what));
            }
        }
    }

    fn set_up(&mut self, setup: &SetupConnection, out: &mut Output) {
        let selection = if self.custom_jobs.are_taken { setup_flags::REQUIRES_WORK_SELECTION } else { 0 };
        let unsupported = setup.flags & !(SUPPORTED_FLAGS | selection);
        let versions = setup.min_version..=setup.max_version;
        if setup.protocol != Protocol::Mining {
            let what = "asks for another protocol than mining";
            refuse_setup(0, codes::setup_connection::UNSUPPORTED_PROTOCOL, what, out);
        } else if !versions.contains(&codes::PROTOCOL_VERSION) {
            let what = format!("speaks versions {} to {}", setup.min_version, setup.max_version);
            refuse_setup(0, codes::setup_connection::PROTOCOL_VERSION_MISMATCH, what, out);
        } else if unsupported != 0 {
            let what = format!("requires flags {unsupported:#x}, which are not supported");
            refuse_setup(unsupported, codes::setup_connection::UNSUPPORTED_FEATURE_FLAGS, what, out);
        } else {
            self.flags = Some(setup.flags);
            self.vendor = printable(&setup.vendor);
            self.hardware_version = printable(&setup.hardware_version);
            let said = format!("{} {} {}", self.vendor, self.hardware_version, printable(&setup.firmware));
            // Many leave some of it out.
            self.user_agent = said.split_whitespace().collect::<Vec<_>>().join(" ");
            self.device_id = printable(&setup.device_id);
            // The answer's flags are what we require, not an echo: bit 0 would forbid version rolling.
            send(SetupConnectionSuccess { used_version: codes::PROTOCOL_VERSION, flags: 0 }, out);
        }
    }

    /// Worker names beside shares are the one extension that is supported. A request succeeds if it is among those
    /// asked for, or if none was.
    fn answer_extensions(&mut self, request: RequestExtensions, out: &mut Output) {
        let request_id = request.request_id;
        self.worker_names = request.requested_extensions.contains(&codes::WORKER_HASHRATE_TRACKING);
        if self.worker_names {
            let supported_extensions = vec![codes::WORKER_HASHRATE_TRACKING];
            send(RequestExtensionsSuccess { request_id, supported_extensions }, out);
        } else if request.requested_extensions.is_empty() {
            send(RequestExtensionsSuccess { request_id, supported_extensions: Vec::new() }, out);
        } else {
            let unsupported_extensions = request.requested_extensions;
            let required_extensions = Vec::new();
            send(RequestExtensionsError { request_id, unsupported_extensions, required_extensions }, out);
        }
    }

    /// The declared hash rate sets the difficulty only while nothing better is known: until a channel has
    /// shown a few shares, or once it has gone silent.
    fn update_channel(&mut self, update: &UpdateChannel, now: Now, out: &mut Output) {
        let channel_id = update.channel_id;
        let refuse = |code: &str, out: &mut Output| {
            send(UpdateChannelError { channel_id, error_code: code.to_owned() }, out);
        };
        let Some(channel) = self.channels.get_mut(&channel_id) else {
            return refuse(codes::update_channel::INVALID_CHANNEL_ID, out);
        };
        if !update.nominal_hash_rate.is_finite() || update.nominal_hash_rate < 0.0 {
            return refuse(codes::update_channel::INVALID_NOMINAL_HASHRATE, out);
        }
        let Some(minimum) = opening::minimum_exponent(update.maximum_target)
            .filter(|minimum| opening::is_servable(*minimum, &self.settings, &channel.work))
        else {
            return refuse(codes::update_channel::MAX_TARGET_OUT_OF_RANGE, out);
        };
        // Takes effect, and is told with SetTarget, before the next job.
        channel.judge.set_minimum_exponent(&self.settings, minimum);
        if channel.judge.hash_rate(now).is_none() {
            let declared = opening::Declared::of(update.nominal_hash_rate, &self.settings);
            if let Some(exponent) = declared.exponent {
                channel.judge.suggest(&self.settings, exponent, now);
            }
            // Published at the next look at hash rates: a peer may declare another one with every message.
            channel.declared_rate = Some(declared.rate);
        }
    }

    fn close_channel(
        &mut self,
        close: &CloseChannel,
        now: Now,
        registry: &mut dyn Registry,
        out: &mut Output,
    ) {
        let addressed = close.channel_id;
        if self.channels.contains_key(&addressed) {
            self.remove_channel(addressed, now, out);
        } else {
            let in_group = |channel: &&Channel| channel.group.id == addressed;
            let members: Vec<_> = self.channels.values().filter(in_group).map(|channel| channel.id).collect();
            members.into_iter().for_each(|channel| self.remove_channel(channel, now, out));
        }
        self.give_back_released(registry);
    }

    /// Forgets a channel. Its reserved value goes back with the next [`Sv2Connection::give_back_released`].
    fn remove_channel(&mut self, id: ChannelId, now: Now, out: &mut Output) {
        let Some(mut channel) = self.channels.remove(&id) else { return };
        self.released.push(channel.judge.reserved());
        let devices = std::iter::once(channel.own.device()).chain(channel.workers.devices());
        self.left.extend(devices.map(|device| (id, device)));
        if self.settings.channel_per_device {
            out.events.push(Event::CloseUpstream { channel: id });
        } else {
            channel.set_published_rate(HashRate(0.0), out);
        }
        if self.channels.is_empty() {
            self.group = None;
            self.idle_deadline = now.monotonic + HANDSHAKE_DEADLINE;
        }
    }

    fn give_back_released(&mut self, registry: &mut dyn Registry) {
        self.released.drain(..).for_each(|reserved| registry.give_back_reserved(reserved));
        self.left.drain(..).for_each(|(channel, device)| registry.leave(channel, device));
    }

    fn is_idle(&self) -> bool {
        self.channels.is_empty() && self.pending.is_empty()
    }

    /// Whether the peer set a flag that `SetupConnection` was accepted with.
    fn requires(&self, flag: u32) -> bool {
        self.flags.is_some_and(|flags| flags & flag != 0)
    }
}

/// Appends a frame. What does not fit in its message can only be a job of the upstream's.
fn send(message: impl Into<Message>, out: &mut Output) {
    if let Err(error) = message.into().encode_frame(&mut out.bytes) {
        out.close = Some(CloseReason::upstream(error.to_string()));
    }
}

fn refuse_setup(flags: u32, code: &str, what: impl Into<String>, out: &mut Output) {
    send(SetupConnectionError { flags, error_code: code.to_owned() }, out);
    out.close = Some(CloseReason::downstream(what));
}

/// A peer's text as it may stand in a log: control characters are replaced.
fn printable(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { '?' } else { char }).collect()
}
