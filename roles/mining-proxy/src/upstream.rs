//! One configured upstream as a state machine: its connection, its channels, and the shares that go there.
//!
//! It survives redials: the driver owns the transport and says when it is up ([`Upstream::handle_connected`]) and
//! when it is gone ([`Upstream::handle_disconnected`]). In between, and after, feeds keep their jobs, so that miners
//! go on hashing. Frames are plain here; encryption is the driver's.
//!
//! Devices share one extended channel, or have one each. Every time that a channel is opened a new epoch starts, and
//! a share is only ever sent on the channel, and in the epoch, that its job came from. Shares leave in the order in
//! which they are handed in: those of one batch leave in one write, where an order would gain a block nothing.
//!
//! This module never dials, never waits, and never judges a share. What an upstream does wrong ends the connection
//! to it and nothing else.

mod declaring;
mod extensions;
mod messages;
mod serving;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use mining_server::record::UpstreamVerdict;
use mining_server::{
    CloseReason, DropReason, Fate, ForwardShare, JobBook, LossReason, ShareEvent, ShareRecord, UpstreamAnswer,
};
use stratum::sv2::codes;
use stratum::sv2::jobs::ExtendedJob;
use stratum::sv2::messages::{
    CloseChannel, OpenExtendedMiningChannel, Protocol, SetupConnection, UpdateChannel,
};
use stratum::sv2::shares::ExtendedShare;
use stratum::sv2::{FrameHeader, Message};
use stratum::{
    ChannelId, Epoch, HashRate, JobId, JobNumber, Now, RequestId, SequenceNumber, Target, UpstreamChannelId,
};

use self::declaring::Declaring;
use self::extensions::WorkerNames;
use self::serving::{Part, Refusals};
use crate::channel::{Channel, LatestParts};
use crate::config::{Endpoint, UpstreamConfig, cut};
use crate::feed::{FeedState, Nominal, Standing};
use crate::notices::Notices;
use crate::output::{DownstreamKey, Feed, Tally, UpstreamOutput};

pub use self::declaring::OLDEST_TEMPLATE;
pub use self::extensions::{MAX_NAMED_DEVICES, NEGOTIATION_DEADLINE};
pub use self::messages::REFUSALS_WORTH_TELLING;
pub use self::serving::{REFUSALS_ARE_TROUBLE, REFUSED_FOR};
pub use crate::channel::{MAX_COINBASE_PREFIX, MAX_COINBASE_SUFFIX, MAX_FUTURE_JOBS, MIN_ROLLABLE_SIZE};
pub use crate::pending::MAX_PENDING_SHARES;

/// Devices that may have a channel of their own on one upstream. Each holds the jobs of a whole channel; who has more
/// devices aggregates them. One more is refused.
pub const MAX_DEVICE_CHANNELS: usize = 16_384;

/// Devices whose hash rates are summed up for a shared channel. The rate of one more is left out; its work is not
/// touched.
pub const MAX_RATED_DEVICES: usize = 65_536;

/// Requests for a channel that may be unanswered at a time: enough to hide the network's delay, few enough that a
/// slow pool answers each of them in time after a redial.
pub const MAX_OPENING: usize = 64;

/// An upstream that does not answer SetupConnection or a request for a channel in this time is taken for dead.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(20);

/// An upstream that says nothing at all in this time is taken for dead: a new block comes as often, and pools send
/// a job every minute or so.
pub const SILENCE_DEADLINE: Duration = Duration::from_secs(600);

/// Channels whose end is remembered, so that what crosses it is no surprise: more than end within a second or two.
/// The oldest is forgotten first, which costs a needless notice.
const MAX_CLOSED_LATELY: usize = 64;

/// Timers are rounded up to this grid, so that thousands of channels cause four looks at them a second and no more.
const TICK: Duration = Duration::from_millis(250);

/// Job numbers that lie between the first ones of two feeds that begin in the same millisecond.
const NUMBERS_APART: u64 = 1 << 16;

/// How far an upstream's connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// There is none.
    Away,
    /// SetupConnection is sent.
    SettingUp,
    /// RequestExtensions is sent.
    Negotiating,
    /// Channels can be opened.
    Ready,
}

/// One configured upstream. See the module's documentation.
#[derive(Debug)]
pub struct Upstream {
    config: UpstreamConfig,
    link: LinkState,
    part: Part,
    /// Boxed, because most upstreams have none.
    declaring: Option<Box<Declaring>>,
    refusals: Refusals,
    /// Where the connection leads, or the last one led.
    endpoint: Endpoint,
    /// When SetupConnection was sent; later, when the upstream was last heard.
    heard: Duration,
    fixed_version: bool,
    /// Boxed, because a tree moves its entries.
    feeds: BTreeMap<Feed, Box<FeedState>>,
    /// The feeds that have a channel, by it.
    channels: BTreeMap<UpstreamChannelId, Feed>,
    /// Unanswered requests for a channel, oldest first; at most [`MAX_OPENING`].
    requests: BTreeMap<RequestId, Request>,
    /// Feeds that wait for their turn to ask; each at most once.
    to_open: VecDeque<Feed>,
    /// The channels that we closed last on this connection: messages for them may still be on their way.
    closed_lately: VecDeque<UpstreamChannelId>,
    next_request: RequestId,
    epoch: Epoch,
    next_first: JobNumber,
    /// What each device hashes; at most [`MAX_RATED_DEVICES`].
    rates: BTreeMap<DownstreamKey, HashRate>,
    latest_parts: LatestParts,
    tally: Tally,
    workers: WorkerNames,
    notices: Notices,
    wake: Option<Duration>,
}

#[derive(Debug)]
struct Request {
    /// For whom; `None` when it has gone since.
    feed: Option<Feed>,
    sent: Duration,
}

impl Upstream {
    /// An upstream that is not connected. `first` is the number of its shared feed's first job; other sources of
    /// work of the process need first numbers of their own (see [`mining_server::JobBook`]).
    pub fn new(config: UpstreamConfig, first: JobNumber, now: Now) -> Self {
        let mut feeds = BTreeMap::new();
        let id = config.id;
        let declaring = config.job_declaration.clone().map(|config| Box::new(Declaring::new(config)));
        if config.aggregate {
            feeds.insert(
                Feed::Shared,
                Box::new(FeedState::new(cut(&config.user_identity).to_owned(), JobBook::new(first))),
            );
        }
        Upstream {
            config,
            link: LinkState::Away,
            part: Part::Serving,
            declaring,
            refusals: Refusals::default(),
            endpoint: Endpoint { host: String::new(), port: 0 },
            heard: now.monotonic,
            fixed_version: false,
            feeds,
            channels: BTreeMap::new(),
            requests: BTreeMap::new(),
            to_open: VecDeque::new(),
            closed_lately: VecDeque::new(),
            next_request: RequestId(1),
            epoch: serving::first_epoch(id),
            next_first: JobNumber(first.0.saturating_add(NUMBERS_APART)),
            rates: BTreeMap::new(),
            latest_parts: LatestParts::new(),
            tally: Tally::default(),
            workers: WorkerNames::default(),
            notices: Notices::new(now),
            wake: None,
        }
    }

    /// What it was made from.
    pub fn config(&self) -> &UpstreamConfig {
        &self.config
    }

    /// How far the connection has come.
    pub fn link(&self) -> LinkState {
        self.link
    }

    /// How many channels are open.
    pub fn open_channels(&self) -> usize {
        self.channels.len()
    }

    /// How many devices are to have a channel of their own, whether it is open or not.
    pub fn device_count(&self) -> usize {
        self.feeds.len() - usize::from(self.config.aggregate)
    }

    /// What became of all forwarded shares.
    pub fn tally(&self) -> Tally {
        let pending = self.feeds.values().filter_map(|state| state.channel());
        let pending = pending.map(|channel| u64::from(channel.pending.unanswered())).sum();
        Tally { pending, ..self.tally }
    }

    /// When [`Upstream::handle_timeout`] is due, on the monotonic clock. May have changed after every call.
    pub fn next_timeout(&self) -> Option<Duration> {
        let declaring = self.declaring.as_ref().and_then(|declaring| declaring.next_timeout());
        self.wake.into_iter().chain(declaring).min()
    }

    /// The transport to `endpoint` is up: introduces us.
    ///
    /// Only where jobs are declared is a flag set: jobs that forbid version rolling are served too.
    pub fn handle_connected(&mut self, endpoint: &Endpoint, now: Now, out: &mut UpstreamOutput) {
        self.lose(now, out);
        self.link = LinkState::SettingUp;
        self.endpoint = endpoint.clone();
        self.heard = now.monotonic;
        self.fixed_version = false;
        let flags = if self.is_declaring() { codes::setup_flags::REQUIRES_WORK_SELECTION } else { 0 };
        let setup = SetupConnection {
            protocol: Protocol::Mining,
            min_version: codes::PROTOCOL_VERSION,
            max_version: codes::PROTOCOL_VERSION,
            flags,
            endpoint_host: cut(&endpoint.host).to_owned(),
            endpoint_port: endpoint.port,
            vendor: cut(&self.config.vendor).to_owned(),
            hardware_version: cut(&self.config.hardware_version).to_owned(),
            firmware: cut(&self.config.firmware).to_owned(),
            device_id: String::new(),
        };
        send(setup, out);
        self.schedule(now.monotonic + ANSWER_DEADLINE);
    }

    /// The transport is gone. Jobs stay; shares are dropped until a channel is open again. Does nothing when the
    /// connection was given up here before.
    pub fn handle_disconnected(&mut self, now: Now, out: &mut UpstreamOutput) {
        self.lose(now, out);
    }

    /// A frame came from the upstream. `payload` must be as long as `header` says.
    pub fn handle_frame(&mut self, header: FrameHeader, payload: &[u8], now: Now, out: &mut UpstreamOutput) {
        if self.link == LinkState::Away {
            return;
        }
        self.heard = now.monotonic;
        if let Err(what) = self.handle_payload(header, payload, now, out) {
            self.give_up(what, now, out);
        }
    }

    fn handle_payload(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        now: Now,
        out: &mut UpstreamOutput,
    ) -> Result<(), String> {
        // The longest message, and the one that comes for every channel at once.
        if self.link != LinkState::SettingUp
            && let Some(job) = ExtendedJob::read(header, payload)
        {
            return self.handle_job(job, now, out);
        }
        match Message::decode(header, payload) {
            Ok(message) => self.handle_message(message, now, out),
            Err(error) => Err(format!("the upstream sent a message that cannot be read: {error}")),
        }
    }

    /// A share was judged. Forwards it if it is worth forwarding and can be, and completes its record.
    pub fn handle_share(&mut self, event: ShareEvent, now: Now, out: &mut UpstreamOutput) {
        if self.declaring.is_some() {
            out.blocks.extend(self.declared_block(&event));
            return self.declare_share(event, now, out);
        }
        let ShareEvent { mut record, forward } = event;
        if let Some(share) = forward {
            let job = JobId(share.origin.job.0);
            match self.forward(&record, &share, job, now, out) {
                Ok(sequence_number) => {
                    record.fate = Fate::Forwarded;
                    record.sequence_number = Some(sequence_number);
                }
                Err(reason) => record.fate = Fate::Dropped(reason),
            }
        }
        out.records.push(record);
    }

    /// A device needs a channel of its own. `worker_name` is what it authorised with: see
    /// [`UpstreamConfig::device_identity`]. Does nothing for an aggregating upstream, or a device that has asked
    /// before.
    pub fn handle_open(
        &mut self,
        key: DownstreamKey,
        worker_name: &str,
        rate: HashRate,
        now: Now,
        out: &mut UpstreamOutput,
    ) {
        let feed = Feed::Device(key);
        if self.config.aggregate || self.feeds.contains_key(&feed) {
            return;
        }
        if self.feeds.len() >= MAX_DEVICE_CHANNELS {
            let what = format!("all {MAX_DEVICE_CHANNELS} upstream channels are in use");
            out.open_failed.push((key, what));
            return;
        }
        let first = JobNumber::first(now).max(self.next_first);
        self.next_first = JobNumber(first.0.saturating_add(NUMBERS_APART));
        let identity = self.config.device_identity(worker_name);
        let mut state = Box::new(FeedState::new(identity, JobBook::private(first)));
        if self.part != Part::Serving {
            state.retire();
        }
        self.feeds.insert(feed, state);
        self.rates.insert(key, sane(rate));
        if self.link == LinkState::Ready {
            self.enqueue(feed);
            self.open_waiting(now, out);
        }
    }

    /// A device with a channel of its own is gone.
    pub fn handle_close(&mut self, key: DownstreamKey, now: Now, out: &mut UpstreamOutput) {
        self.rates.remove(&key);
        let feed = Feed::Device(key);
        let Some(mut state) = self.feeds.remove(&feed) else { return };
        // A device that comes back must not see its old job numbers again.
        self.next_first = self.next_first.max(state.next_number());
        for request in self.requests.values_mut().filter(|request| request.feed == Some(feed)) {
            request.feed = None;
        }
        if let (Some(channel), _) = state.end(Standing::Idle) {
            self.channels.remove(&channel.id);
            close(channel.id, codes::close_channel::DOWNSTREAM_DISCONNECTED, out);
            self.note_closed(channel.id);
            self.count_lost(&channel, LossReason::ConnectionEnded, now, out);
        }
    }

    /// A device's hash rate changed; `None`: it is gone. The upstream is told after a few seconds, if the change is
    /// worth it. For a device with a channel of its own only [`Upstream::handle_close`] says that it is gone.
    pub fn handle_hash_rate(
        &mut self,
        key: DownstreamKey,
        rate: Option<HashRate>,
        now: Now,
        out: &mut UpstreamOutput,
    ) {
        let feed = if self.config.aggregate { Feed::Shared } else { Feed::Device(key) };
        let Some(state) = self.feeds.get_mut(&feed) else { return };
        match rate {
            Some(rate) => {
                if self.rates.len() >= MAX_RATED_DEVICES && !self.rates.contains_key(&key) {
                    let what = || format!("hash rates beyond {MAX_RATED_DEVICES} devices are not reported");
                    self.notices.tell(now, out, what);
                    return;
                }
                self.rates.insert(key, sane(rate));
            }
            None if self.config.aggregate => {
                self.rates.remove(&key);
            }
            None => return,
        }
        state.touch_rate();
        let due = state.next_timeout();
        self.schedule_if(due);
    }

    /// A connection wants a new job, because it cannot remember more shares of those that it has. It comes with
    /// [`Upstream::handle_timeout`], at most once a second.
    pub fn handle_new_job_wanted(&mut self, feed: Feed) {
        if let Some(state) = self.feeds.get_mut(&feed) {
            state.want_job();
            let due = state.next_timeout();
            self.schedule_if(due);
        }
    }

    /// The process is ending: closes every channel. The driver writes the bytes and closes the connection.
    pub fn handle_shutdown(&mut self, now: Now, out: &mut UpstreamOutput) {
        for channel in self.channels.keys() {
            close(*channel, codes::close_channel::SHUTTING_DOWN, out);
        }
        self.lose(now, out);
    }

    /// Time has passed. May be called at any time; does nothing before [`Upstream::next_timeout`].
    pub fn handle_timeout(&mut self, now: Now, out: &mut UpstreamOutput) {
        self.declare_timeout(now, out);
        if self.wake.is_none_or(|wake| now.monotonic < wake) {
            return;
        }
        self.end_negotiation_if_overdue(now, out);
        if let Some(what) = self.overdue(now) {
            self.give_up(what, now, out);
        }
        let mut awake = Vec::new();
        for (feed, state) in &mut self.feeds {
            if state.refresh(self.config.refresh_interval, now) {
                out.publish.extend(state.work().map(|work| (*feed, work)));
            }
            if let Standing::Resting(until) = state.standing
                && until <= now.monotonic
            {
                state.standing = Standing::Idle;
                awake.push(*feed);
            }
            if state.rate_is_due(now) {
                let rate = nominal(&self.rates, *feed);
                if state.rate_is_news(rate) {
                    update(state, rate, now, out);
                }
            }
        }
        for feed in awake {
            self.enqueue(feed);
        }
        self.open_waiting(now, out);
        self.wake = None;
        let due = self.feeds.values().filter_map(|state| state.next_timeout()).chain(self.deadline()).min();
        self.schedule_if(due);
    }

    /// Why the connection must be given up, if it must.
    fn overdue(&self, now: Now) -> Option<String> {
        if self.link == LinkState::Away {
            return None;
        }
        let silence = now.monotonic.saturating_sub(self.heard);
        if self.link == LinkState::SettingUp && silence >= ANSWER_DEADLINE {
            return Some("the upstream did not answer SetupConnection".to_owned());
        }
        let oldest = self.requests.values().next();
        if oldest.is_some_and(|request| now.monotonic.saturating_sub(request.sent) >= ANSWER_DEADLINE) {
            return Some("the upstream did not answer a request for a channel".to_owned());
        }
        // Who has no channel is told nothing, and may be silent.
        if silence >= SILENCE_DEADLINE && !self.channels.is_empty() {
            return Some(format!("the upstream was silent for {} seconds", silence.as_secs()));
        }
        let stuck = self.feeds.values().filter_map(|state| state.channel()).any(|channel| {
            let oldest = channel.pending.oldest().unwrap_or(now.monotonic);
            channel.pending.is_full() && now.monotonic.saturating_sub(oldest) >= SILENCE_DEADLINE
        });
        stuck.then(|| format!("the upstream left {MAX_PENDING_SHARES} shares unanswered"))
    }

    /// When the connection must be looked at next.
    fn deadline(&self) -> Option<Duration> {
        let request = self.requests.values().next().map(|request| request.sent + ANSWER_DEADLINE);
        match self.link {
            LinkState::Away => None,
            LinkState::SettingUp => Some(self.heard + ANSWER_DEADLINE),
            LinkState::Negotiating => Some(self.heard + NEGOTIATION_DEADLINE),
            LinkState::Ready => {
                let silence = (!self.channels.is_empty()).then_some(self.heard + SILENCE_DEADLINE);
                [silence, request].into_iter().flatten().min()
            }
        }
    }

    fn forward(
        &mut self,
        record: &ShareRecord,
        share: &ForwardShare,
        job_id: JobId,
        now: Now,
        out: &mut UpstreamOutput,
    ) -> Result<SequenceNumber, DropReason> {
        if share.origin.upstream != self.config.id {
            return Err(DropReason::EpochEnded);
        }
        let feed = self.channels.get(&share.origin.channel).ok_or(DropReason::UpstreamLost)?;
        let channel = self.feeds.get_mut(feed).and_then(|state| state.channel_mut());
        let channel = channel.ok_or(DropReason::UpstreamLost)?;
        if channel.epoch != share.epoch {
            return Err(DropReason::EpochEnded);
        }
        if channel.pending.is_full() {
            if !share.is_block {
                self.schedule(now.monotonic);
                return Err(DropReason::QueueFull);
            }
            // A block goes out whatever the books say.
            if let Some((last, work)) = channel.pending.forget_oldest() {
                self.tally.lost += 1;
                let reason = LossReason::NeverAnswered;
                let verdict = UpstreamVerdict::Lost { last, count: 1, reason, work };
                let (upstream, channel) = (self.config.id, channel.id);
                out.answers.push(UpstreamAnswer { received: now, upstream, channel, verdict });
            }
        }
        let sequence_number = channel.pending.push(now.monotonic, record.upstream_work);
        self.tally.forwarded += 1;
        let submit = ExtendedShare {
            channel_id: ChannelId(channel.id.0),
            sequence_number,
            job_id,
            nonce: record.nonce,
            ntime: record.ntime,
            version: record.version,
            extranonce: &record.rollable,
            worker_name: self.workers.of(record.device),
        };
        submit
            .encode_frame(&mut out.bytes)
            .expect("neither a record nor a name holds more bytes than its field");
        Ok(sequence_number)
    }

    /// Gives the connection up for `what` the upstream did.
    fn give_up(&mut self, what: String, now: Now, out: &mut UpstreamOutput) {
        out.close = Some(CloseReason::upstream(what));
        self.lose(now, out);
    }

    /// Everything that ends with a connection.
    fn lose(&mut self, now: Now, out: &mut UpstreamOutput) {
        // An upstream that leaves when it is asked for extensions is not asked again.
        self.workers.is_unanswered |= self.link == LinkState::Negotiating;
        self.link = LinkState::Away;
        self.channels.clear();
        self.requests.clear();
        self.to_open.clear();
        self.closed_lately.clear();
        let mut feeds = std::mem::take(&mut self.feeds);
        for (feed, state) in &mut feeds {
            let (channel, publish) = state.end(Standing::Idle);
            if let Some(channel) = channel {
                self.count_lost(&channel, LossReason::ConnectionEnded, now, out);
            }
            if publish {
                out.publish.extend(state.work().map(|work| (*feed, work)));
            }
        }
        self.feeds = feeds;
        self.declare_channel(now, out);
    }

    fn count_lost(&mut self, channel: &Channel, reason: LossReason, now: Now, out: &mut UpstreamOutput) {
        let count = channel.pending.unanswered();
        if count > 0 {
            self.tally.lost += u64::from(count);
            let (last, work) = (channel.pending.last(), channel.pending.work());
            let verdict = UpstreamVerdict::Lost { last, count, reason, work };
            let (upstream, channel) = (self.config.id, channel.id);
            out.answers.push(UpstreamAnswer { received: now, upstream, channel, verdict });
        }
    }

    fn note_closed(&mut self, channel: UpstreamChannelId) {
        if self.closed_lately.len() == MAX_CLOSED_LATELY {
            self.closed_lately.pop_front();
        }
        self.closed_lately.push_back(channel);
    }

    /// Has a feed wait for its turn to ask for a channel.
    fn enqueue(&mut self, feed: Feed) {
        if self.part == Part::Serving
            && let Some(state) = self.feeds.get_mut(&feed)
            && !matches!(state.standing, Standing::Queued | Standing::Requested | Standing::Open(_))
        {
            state.standing = Standing::Queued;
            self.to_open.push_back(feed);
        }
    }

    /// Asks for as many channels as may be asked for now.
    fn open_waiting(&mut self, now: Now, out: &mut UpstreamOutput) {
        while self.link == LinkState::Ready && self.requests.len() < MAX_OPENING {
            let Some(feed) = self.to_open.pop_front() else { return };
            let Some(state) = self.feeds.get_mut(&feed) else { continue };
            if !matches!(state.standing, Standing::Queued) {
                continue;
            }
            let rate = nominal(&self.rates, feed);
            state.standing = Standing::Requested;
            state.rate_told(rate, now);
            let request_id = self.next_request;
            self.next_request = RequestId(request_id.0.wrapping_add(1));
            let open = OpenExtendedMiningChannel {
                request_id,
                user_identity: state.user_identity.clone(),
                nominal_hash_rate: rate.to_wire(),
                max_target: Target::MAX,
                min_extranonce_size: MIN_ROLLABLE_SIZE as u16,
            };
            send(open, out);
            self.requests.insert(request_id, Request { feed: Some(feed), sent: now.monotonic });
            self.schedule(now.monotonic + ANSWER_DEADLINE);
        }
    }

    fn schedule_if(&mut self, at: Option<Duration>) {
        if let Some(at) = at {
            self.schedule(at);
        }
    }

    fn schedule(&mut self, at: Duration) {
        // Never down, not by a nanosecond: a timer that rings too early has nothing to do and rings again at once.
        let ticks = at.as_nanos().div_ceil(TICK.as_nanos()).min(u128::from(u32::MAX)) as u32;
        let at = TICK.saturating_mul(ticks);
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}

/// Appends a message as a frame.
fn send(message: impl Into<Message>, out: &mut UpstreamOutput) {
    message
        .into()
        .encode_frame(&mut out.bytes)
        .expect("every text was cut to its field, an extranonce is 32 bytes");
}

fn close(channel: UpstreamChannelId, reason: &str, out: &mut UpstreamOutput) {
    send(CloseChannel { channel_id: ChannelId(channel.0), reason_code: reason.to_owned() }, out);
}

/// Tells the upstream a feed's hash rate.
fn update(state: &mut FeedState, rate: Nominal, now: Now, out: &mut UpstreamOutput) {
    let Some(channel) = state.channel() else { return };
    let channel_id = ChannelId(channel.id.0);
    send(UpdateChannel { channel_id, nominal_hash_rate: rate.to_wire(), maximum_target: Target::MAX }, out);
    state.rate_told(rate, now);
}

/// The hash rate behind a feed.
fn nominal(rates: &BTreeMap<DownstreamKey, HashRate>, feed: Feed) -> Nominal {
    match feed {
        Feed::Shared => {
            Nominal { hashes_per_second: rates.values().map(|rate| rate.0).sum(), devices: rates.len() }
        }
        Feed::Device(key) => {
            Nominal { hashes_per_second: rates.get(&key).map_or(0.0, |rate| rate.0), devices: 1 }
        }
    }
}

/// Estimates of a device that cannot be added up are none.
fn sane(rate: HashRate) -> HashRate {
    if rate.0.is_finite() && rate.0 > 0.0 { rate } else { HashRate(0.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_never_rings_before_it_is_due() {
        let config = UpstreamConfig {
            id: stratum::UpstreamId(0),
            user_identity: String::new(),
            aggregate: true,
            forward_worker_names: false,
            vendor: String::new(),
            hardware_version: String::new(),
            firmware: String::new(),
            refresh_interval: Duration::from_secs(20),
            job_declaration: None,
        };
        let now = Now::simulated(Duration::ZERO, Duration::ZERO);
        let mut upstream = Upstream::new(config, JobNumber(1), now);
        upstream.schedule(Duration::new(20, 1));
        assert_eq!(upstream.next_timeout(), Some(Duration::from_millis(20_250)));
        upstream.schedule(Duration::from_secs(20));
        assert_eq!(upstream.next_timeout(), Some(Duration::from_secs(20)));
    }
}
