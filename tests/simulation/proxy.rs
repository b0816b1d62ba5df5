//! The proxy: its miners' side, its upstreams, and the driver between them, as the program has it. Work is published
//! before frames are sent, frames are sent before anything is recorded, and who writes slowly loses shares.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use mining_proxy::{
    Backoff, DownstreamKey, Endpoint, Feed, LinkState, Patience, UpstreamConfig, UpstreamOutput, Upstreams,
};
use mining_server::{DropReason, Fate, LossReason, Settings, ShareRecord, UpstreamVerdict};
use stratum::sv2::{Message, codes};
use stratum::{ChannelId, HashRate, JobNumber, Now, Target, UpstreamId};

use crate::frames::{Frames, messages};
use crate::net::{End, LinkId, Net, Place, What};
use crate::server::{Command, Delivery, Server};
use crate::witness::Submission;

/// Bytes that wait for a slow pool. With more, no further shares are taken from their queue.
const MAX_UNWRITTEN: usize = 4 * 1024;

/// Bytes with blocks among them, which are taken whatever waits. With more the connection is given up.
const MAX_UNWRITTEN_WITH_BLOCKS: usize = 16 * MAX_UNWRITTEN;

/// Shares that are forwarded together at most.
const SHARE_BATCH: usize = 16;

/// Shorter than usual, so that a simulation of minutes sees many changes.
const PATIENCE: Patience = Patience {
    hold_down: Duration::from_secs(5),
    longest_hold_down: Duration::from_secs(40),
    steady: Duration::from_secs(5),
    start_grace: Duration::from_secs(2),
};

#[derive(Debug)]
enum State {
    Down,
    Dialling,
    Up(LinkId),
}

/// The way to one upstream.
#[derive(Debug)]
struct Leg {
    state: State,
    frames: Frames,
    unwritten: Vec<u8>,
    backoff: Backoff,
    /// Since when there has been a session, if there is one.
    up_since: Option<Duration>,
    /// False while the pool cannot be reached.
    can_reach: bool,
}

impl Leg {
    fn new() -> Self {
        Leg {
            state: State::Down,
            frames: Frames::default(),
            unwritten: Vec::new(),
            backoff: Backoff::new(),
            up_since: None,
            can_reach: true,
        }
    }

    fn link(&self) -> Option<LinkId> {
        match self.state {
            State::Up(link) => Some(link),
            _ => None,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) server: Server,
    pub(crate) upstreams: Upstreams,
    outs: Vec<UpstreamOutput>,
    legs: Vec<Leg>,
    timer: Duration,
    mailboxes: BTreeSet<DownstreamKey>,
    shares_taken: u64,
    /// Devices that have gone, each with the count of taken shares at which its last one is among them.
    closes: VecDeque<(u64, DownstreamKey)>,
    /// The channels that were closed because their device had gone, each with its session.
    closed: BTreeSet<(LinkId, ChannelId)>,
    /// Since when each device wants a channel of its own, and since when it has had work.
    pub(crate) wanted: BTreeMap<DownstreamKey, Duration>,
    pub(crate) served: BTreeMap<DownstreamKey, Duration>,
    /// During which session with the upstream each job was published first.
    lives: BTreeMap<JobNumber, Option<LinkId>>,
    pub(crate) dials: u64,
    pub(crate) lost_in_failover: u64,
}

impl Proxy {
    /// A proxy before so many pools.
    pub(crate) fn new(settings: Settings, pools: usize, now: Now) -> Self {
        let config = |id| UpstreamConfig {
            id: UpstreamId(id),
            user_identity: "account.farm".to_owned(),
            aggregate: !settings.channel_per_device,
            forward_worker_names: false,
            vendor: "Checkweigh".to_owned(),
            hardware_version: "mining-proxy".to_owned(),
            firmware: "simulated".to_owned(),
            refresh_interval: Duration::from_secs(20),
            job_declaration: None,
        };
        let configs: Vec<UpstreamConfig> = (0..pools as u16).map(config).collect();
        let is_apart = settings.channel_per_device;
        let mut server = Server::new(Place::Proxy, settings, now);
        if is_apart {
            server.registry.oldest_live_job = JobNumber(u64::MAX);
        }
        Proxy {
            server,
            upstreams: Upstreams::new(configs, PATIENCE, JobNumber::first(now), now),
            outs: (0..pools).map(|_| UpstreamOutput::default()).collect(),
            legs: (0..pools).map(|_| Leg::new()).collect(),
            timer: Duration::MAX,
            mailboxes: BTreeSet::new(),
            shares_taken: 0,
            closes: VecDeque::new(),
            closed: BTreeSet::new(),
            wanted: BTreeMap::new(),
            served: BTreeMap::new(),
            lives: BTreeMap::new(),
            dials: 0,
            lost_in_failover: 0,
        }
    }

    /// The session with this upstream.
    pub(crate) fn link(&self, place: usize) -> Option<LinkId> {
        self.legs.get(place).and_then(Leg::link)
    }

    /// Since when there has been a session with this upstream.
    pub(crate) fn up_since(&self, place: usize) -> Option<Duration> {
        self.legs[place].up_since
    }

    pub(crate) fn set_reachable(&mut self, place: usize, can_reach: bool) {
        self.legs[place].can_reach = can_reach;
    }

    pub(crate) fn pool_count(&self) -> usize {
        self.legs.len()
    }

    /// Which upstream a session is with.
    pub(crate) fn place_of(&self, link: LinkId) -> Option<usize> {
        self.legs.iter().position(|leg| leg.link() == Some(link))
    }

    pub(crate) fn dial(&mut self, place: usize, net: &mut Net) {
        self.legs[place].state = State::Dialling;
        self.dials += 1;
        let wait = net.dice.between(Duration::from_millis(5), Duration::from_millis(600));
        net.after(wait, What::Dialled(place));
    }

    /// Returns the new session for the pool to accept.
    pub(crate) fn dialled(&mut self, place: usize, net: &mut Net) -> Option<LinkId> {
        if !self.legs[place].can_reach {
            self.go_down(place, net);
            return None;
        }
        let link = net.open(if place == 0 { Place::Pool } else { Place::Second }, None);
        let leg = &mut self.legs[place];
        leg.state = State::Up(link);
        leg.up_since = Some(net.now.monotonic);
        leg.frames = Frames::default();
        leg.backoff.connected(net.now);
        let endpoint = Endpoint { host: "pool.example".to_owned(), port: 34254 };
        self.upstreams.handle_connected(place, &endpoint, net.now, &mut self.outs);
        self.settle(net);
        Some(link)
    }

    pub(crate) fn readable(&mut self, link: LinkId, net: &mut Net) {
        let Some(piece) = net.read(link, End::Client) else { return };
        let Some(place) = self.place_of(link) else { return };
        self.legs[place].frames.push(&piece);
        while let Some((header, payload)) = self.legs[place].frames.next() {
            let message = Message::decode(header, &payload).expect("pools of simulations are well-formed");
            note_answer(link, &message, net);
            self.upstreams.handle_frame(place, header, &payload, net.now, &mut self.outs);
            if self.outs[place].close.is_some() {
                break;
            }
        }
        self.settle(net);
    }

    pub(crate) fn gone(&mut self, link: LinkId, net: &mut Net) {
        if let Some(place) = self.place_of(link) {
            self.upstreams.handle_disconnected(place, net.now, &mut self.outs);
            self.go_down(place, net);
            self.settle(net);
        }
    }

    /// Takes a few turns, then looks at the time.
    pub(crate) fn wake(&mut self, net: &mut Net) {
        self.server.owner_wakes = false;
        for _ in 0..1 + net.dice.below(8) {
            self.turn(net);
        }
        self.upstreams.handle_timeout(net.now, &mut self.outs);
        let next = self.upstreams.next_timeout(net.now);
        assert!(next.is_none_or(|at| at > net.now.monotonic), "what was due was done: {next:?}");
        self.settle(net);
        if self.server.has_news() {
            self.server.wake_owner(net);
        }
    }

    /// Takes from the first of its queues that is not empty. What comes while it looks at one after the other is there
    /// for those that it has not looked at yet: so any of them may seem to be empty.
    fn turn(&mut self, net: &mut Net) {
        let mut is_seen = || net.dice.chance(0.7);
        if is_seen() && !self.server.blocks.is_empty() {
            self.take_blocks(1, net);
        } else if is_seen() && !self.server.commands.is_empty() {
            self.take_commands(net);
        } else if is_seen() && self.has_room() {
            self.take_share_batch(net);
        }
        for place in 0..self.legs.len() {
            if self.legs[place].unwritten.len() > MAX_UNWRITTEN_WITH_BLOCKS {
                self.upstreams.handle_disconnected(place, net.now, &mut self.outs);
                self.hang_up(place, net);
                self.settle(net);
            }
        }
    }

    /// Takes a few commands, after the blocks and shares that their connections sent before them.
    fn take_commands(&mut self, net: &mut Net) {
        self.take_blocks(usize::MAX, net);
        while self.has_room() && !self.server.shares.is_empty() {
            self.take_share_batch(net);
        }
        let last = self.shares_taken + self.server.shares.len() as u64;
        for _ in 0..1 + net.dice.below(8) {
            let Some(command) = self.server.commands.pop_front() else { break };
            match command {
                Command::Close { key } if last > self.shares_taken => {
                    self.wanted.remove(&key);
                    self.closes.push_back((last, key));
                }
                command => self.handle_command(command, net),
            }
            self.settle(net);
        }
    }

    fn take_blocks(&mut self, most: usize, net: &mut Net) {
        for _ in 0..most {
            let Some(share) = self.server.blocks.pop_front() else { break };
            self.upstreams.handle_share(share, net.now, &mut self.outs);
        }
        self.settle(net);
    }

    fn take_share_batch(&mut self, net: &mut Net) {
        for _ in 0..SHARE_BATCH {
            let Some(share) = self.server.shares.pop_front() else { break };
            self.shares_taken += 1;
            self.upstreams.handle_share(share, net.now, &mut self.outs);
        }
        while let Some((_, key)) = self.closes.pop_front_if(|(last, _)| *last <= self.shares_taken) {
            self.handle_command(Command::Close { key }, net);
        }
        self.settle(net);
    }

    fn has_room(&self) -> bool {
        self.legs[self.upstreams.serving().unwrap_or(0)].unwritten.len() < MAX_UNWRITTEN
    }

    pub(crate) fn check(&self) {
        let queued = self.server.shares.len() + self.server.blocks.len();
        self.server.accounts.check(queued, Some(self.upstreams.tally()));
        if !self.upstreams.get(0).config().aggregate && self.server.commands.is_empty() {
            let needed = self.server.needed_channels();
            let going = self.closes.len();
            for place in 0..self.legs.len() {
                let asked = self.upstreams.get(place).device_count();
                assert_eq!(asked, needed + going, "every channel with an upstream is some device's");
            }
        }
        self.check_serving();
        assert!(self.server.shares.len() <= crate::server::SHARE_QUEUE, "the queue of shares is bounded");
        let unwritten = self.legs.iter().map(|leg| leg.unwritten.len()).max().unwrap_or(0);
        assert!(unwritten <= MAX_UNWRITTEN_WITH_BLOCKS, "what waits for a slow pool is bounded: {unwritten}");
    }

    /// One that is there serves, if any is.
    fn check_serving(&self) {
        let Some(serving) = self.upstreams.serving() else { return };
        let is_ready = |place: usize| self.upstreams.get(place).link() == LinkState::Ready;
        let others = (0..self.legs.len()).filter(|place| *place != serving).any(is_ready);
        assert!(is_ready(serving) || !others, "an upstream that is there serves");
    }

    fn handle_command(&mut self, command: Command, net: &mut Net) {
        let now = net.now;
        let (upstreams, outs) = (&mut self.upstreams, &mut self.outs);
        match command {
            Command::Open { key, user_identity, rate } => {
                self.mailboxes.insert(key);
                self.wanted.insert(key, now.monotonic);
                upstreams.handle_open(key, &user_identity, rate, now, outs);
            }
            Command::Close { key } => {
                self.mailboxes.remove(&key);
                self.wanted.remove(&key);
                self.served.remove(&key);
                upstreams.handle_close(key, now, outs);
            }
            Command::HashRate { key, rate } => {
                let rate = Some(rate).filter(|rate| *rate > HashRate(0.0));
                upstreams.handle_hash_rate(key, rate, now, outs);
            }
            Command::NewJobWanted { key } => {
                let feed = if upstreams.get(0).config().aggregate { Feed::Shared } else { Feed::Device(key) };
                upstreams.handle_new_job_wanted(feed);
            }
        }
    }

    fn settle(&mut self, net: &mut Net) {
        for place in 0..self.legs.len() {
            self.settle_one(place, net);
        }
        self.schedule(net);
    }

    fn settle_one(&mut self, place: usize, net: &mut Net) {
        let link = self.link(place);
        let mut out = std::mem::take(&mut self.outs[place]);
        for (feed, work) in out.publish.drain(..) {
            for published in &work.jobs {
                self.lives.entry(published.job.number).or_insert(link);
            }
            match feed {
                Feed::Shared => {
                    self.server.publish(work, net);
                }
                Feed::Device(key) => {
                    if self.mailboxes.contains(&key) {
                        self.served.entry(key).or_insert(net.now.monotonic);
                        self.server.deliver(key, Delivery::Work(work), net);
                    }
                }
            }
        }
        self.note_forwarded(place, &out.bytes, &out.records, net);
        self.check_dropped(place, &out.bytes, &out.records);
        self.legs[place].unwritten.extend_from_slice(&out.bytes);
        self.flush(place, net);
        for (key, reason) in out.open_failed {
            if self.mailboxes.contains(&key) {
                self.server.deliver(key, Delivery::OpenFailed(reason), net);
            }
        }
        out.records.iter().for_each(|record| self.server.accounts.record(record));
        for answer in &out.answers {
            if let UpstreamVerdict::Lost { reason: LossReason::Failover, count, .. } = answer.verdict {
                self.lost_in_failover += u64::from(count);
            }
            self.server.accounts.answer(answer);
        }
        if out.close.is_some() {
            self.hang_up(place, net);
        }
    }

    fn hang_up(&mut self, place: usize, net: &mut Net) {
        if let Some(link) = self.link(place) {
            net.close(link, End::Client);
        }
        self.go_down(place, net);
    }

    /// Writes what the pool's side takes. Called again when it has read something.
    pub(crate) fn flush(&mut self, place: usize, net: &mut Net) {
        let leg = &mut self.legs[place];
        let State::Up(link) = leg.state else {
            leg.unwritten.clear();
            return;
        };
        let written = net.write(link, End::Server, &leg.unwritten);
        let was_full = leg.unwritten.len() >= MAX_UNWRITTEN;
        leg.unwritten.drain(..written);
        if was_full && !self.server.shares.is_empty() {
            self.server.wake_owner(net);
        }
    }

    /// Every forwarded share goes out in the session that its job came in, as it was judged.
    fn note_forwarded(&mut self, place: usize, bytes: &[u8], records: &[ShareRecord], net: &mut Net) {
        let mut forwarded = records.iter().filter(|record| record.fate == Fate::Forwarded);
        for message in messages(bytes) {
            let Message::SubmitSharesExtended(share) = message else { continue };
            let record = forwarded.next().expect("what is sent is recorded");
            let link = self.link(place).expect("shares are sent to an upstream that is there");
            let number = record.job.expect("the job of an accepted share is known");
            assert_eq!(
                self.lives.get(&number),
                Some(&Some(link)),
                "a share never crosses epochs: job {number} in session {link}"
            );
            assert_eq!(
                (record.sequence_number, record.upstream_channel.map(|channel| channel.0)),
                (Some(share.sequence_number), Some(share.channel_id.0)),
                "a record says what was sent: {record:?}"
            );
            assert_eq!(
                record.rollable.as_slice(),
                share.extranonce,
                "a record says what was sent: {record:?}"
            );
            let submission = Submission {
                channel: share.channel_id.0,
                number: u64::from(share.sequence_number.0),
                job: share.job_id.0,
                newest: None,
                version: share.version,
                ntime: share.ntime,
                nonce: share.nonce,
                difficulty: record.difficulty.expect("an accepted share was hashed"),
                hash: None,
                target: Target::HARDEST,
                is_repeated: false,
            };
            net.witness.submitted(link, submission);
        }
        assert!(forwarded.next().is_none(), "what is recorded as forwarded is sent");
    }

    /// No share is dropped because the device that submitted it has gone since.
    fn check_dropped(&mut self, place: usize, bytes: &[u8], records: &[ShareRecord]) {
        let Some(link) = self.link(place) else { return };
        for message in messages(bytes) {
            if let Message::CloseChannel(close) = message
                && close.reason_code == codes::close_channel::DOWNSTREAM_DISCONNECTED
            {
                self.closed.insert((link, close.channel_id));
            }
        }
        let dropped = |record: &&ShareRecord| record.fate == Fate::Dropped(DropReason::UpstreamLost);
        for record in records.iter().filter(dropped) {
            let live = record.job.and_then(|job| self.lives.get(&job)) == Some(&Some(link));
            let channel = record.upstream_channel.map(|channel| (link, ChannelId(channel.0)));
            assert!(
                !live || channel.is_none_or(|channel| !self.closed.contains(&channel)),
                "the end of a device does not overtake its shares: {record:?}"
            );
        }
    }

    fn go_down(&mut self, place: usize, net: &mut Net) {
        let leg = &mut self.legs[place];
        leg.state = State::Down;
        leg.unwritten.clear();
        leg.up_since = None;
        let random = net.dice.next() as u32;
        let wait = leg.backoff.failed(net.now, random);
        net.after(wait, What::Dial(place));
    }

    fn schedule(&mut self, net: &mut Net) {
        let Some(due) = self.upstreams.next_timeout(net.now) else { return };
        let due = due.max(net.now.monotonic + Duration::from_micros(1));
        if self.timer <= net.now.monotonic || due < self.timer {
            self.timer = due;
            net.at(self.timer, What::Owner(Place::Proxy));
        }
    }
}

/// What the proxy is told of its shares, seen by the observer.
fn note_answer(link: LinkId, message: &Message, net: &mut Net) {
    match message {
        Message::SubmitSharesSuccess(success) => net.witness.acknowledged(
            link,
            success.channel_id.0,
            u64::from(success.last_sequence_number.0),
            success.new_submits_accepted_count,
        ),
        Message::SubmitSharesError(error) => {
            net.witness.refused(link, error.channel_id.0, u64::from(error.sequence_number.0));
        }
        _ => (),
    }
}
