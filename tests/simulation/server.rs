//! The driver of connections with miners, as the program has it: events are passed on before bytes are written,
//! new work comes before what was read, and who does not read makes only its own connection wait.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use accounting::{Identities, Introduction, Seat};
use mining_proxy::DownstreamKey;
use mining_server::sv1::{SV1_CHANNEL, Sv1Connection};
use mining_server::sv2::Sv2Connection;
use mining_server::work::MAX_LIVE_JOBS;
use mining_server::{DropReason, Event, Fate, Fault, Output, Registry, Settings, ShareEvent, ShareUse, Work};
use stratum::extranonce::{Exhausted, ReservedExtranonces};
use stratum::job::RESERVED_SIZE;
use stratum::{ChannelId, ConnectionId, DeviceId, HashRate, JobNumber, Now};

use crate::accounts::Accounts;
use crate::frames::Frames;
use crate::net::{End, LinkId, Net, Place, What};

/// Small, so that simulations fill it; the program's has the same policy.
pub(crate) const SHARE_QUEUE: usize = 64;

/// A peer that takes longer to accept what we write is closed.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a connection tells the owner of its work.
#[derive(Debug)]
pub(crate) enum Command {
    Open { key: DownstreamKey, user_identity: String, rate: HashRate },
    Close { key: DownstreamKey },
    HashRate { key: DownstreamKey, rate: HashRate },
    NewJobWanted { key: DownstreamKey },
}

#[derive(Debug)]
pub(crate) enum Delivery {
    Work(Arc<Work>),
    OpenFailed(String),
}

/// Who is who and holds which reserved extranonce, checked a second time by plain sets.
#[derive(Debug)]
pub(crate) struct TestRegistry {
    reserved: ReservedExtranonces,
    held: BTreeSet<[u8; RESERVED_SIZE]>,
    identities: Identities,
    /// Who mines where.
    seats: BTreeSet<(Seat, DeviceId)>,
    /// When the last good share of each came, in seconds.
    last_shares: BTreeMap<DeviceId, u32>,
    names: BTreeSet<String>,
    /// Whose turn it is.
    link: LinkId,
    pub(crate) oldest_live_job: JobNumber,
    now: Now,
}

impl Registry for TestRegistry {
    fn join(&mut self, channel: ChannelId, introduction: &Introduction<'_>) -> DeviceId {
        let seat = self.seat(channel);
        self.names.insert(introduction.worker_name.to_owned());
        let last_share = |id| self.last_shares.get(&id).copied().unwrap_or(0);
        let now = self.now.monotonic.as_secs() as u32;
        let device = self.identities.join(introduction, seat, now, last_share).device;
        assert!(self.seats.insert((seat, device)), "a machine joins once: {seat:?}");
        device
    }

    fn note_share(&mut self, channel: ChannelId, device: DeviceId, now: Now) -> DeviceId {
        let (seat, now) = (self.seat(channel), now.monotonic.as_secs() as u32);
        assert!(self.seats.contains(&(seat, device)), "who mines has joined: {seat:?}");
        self.last_shares.insert(device, now);
        let last_share = |id| self.last_shares.get(&id).copied().unwrap_or(0);
        let Some(parted) = self.identities.note_share(device, seat, now, last_share) else { return device };
        self.seats.remove(&(seat, device));
        self.seats.insert((seat, parted.joined.device));
        parted.joined.device
    }

    fn leave(&mut self, channel: ChannelId, device: DeviceId) {
        let seat = self.seat(channel);
        assert!(self.seats.remove(&(seat, device)), "who leaves has joined: {seat:?}");
        self.identities.leave(device, seat);
    }

    fn take_reserved(&mut self) -> Result<[u8; RESERVED_SIZE], Exhausted> {
        let reserved = self.reserved.take(self.oldest_live_job)?;
        assert!(
            self.held.insert(reserved),
            "no two live downstreams share a reserved extranonce: {reserved:?}"
        );
        Ok(reserved)
    }

    fn give_back_reserved(&mut self, reserved: [u8; RESERVED_SIZE]) {
        assert!(self.held.remove(&reserved), "who gives an extranonce back held it: {reserved:?}");
        self.reserved.give_back(reserved, JobNumber::first(self.now));
    }
}

impl TestRegistry {
    fn seat(&self, channel: ChannelId) -> Seat {
        Seat { connection: ConnectionId(self.link), channel }
    }
}

#[derive(Debug)]
enum Machine {
    Sv1(Box<Sv1Connection>),
    Sv2(Box<Sv2Connection>, Frames),
}

#[derive(Debug)]
struct Conn {
    machine: Machine,
    out: Output,
    has_new_work: bool,
    mailbox: BTreeMap<ChannelId, Delivery>,
    inbox: VecDeque<Vec<u8>>,
    unsent: Vec<u8>,
    /// Since when the peer takes nothing of what is written.
    blocked_since: Option<Duration>,
    closing: bool,
    timer: Duration,
    last_sent: Duration,
}

#[derive(Debug)]
pub(crate) struct Server {
    place: Place,
    settings: Arc<Settings>,
    pub(crate) registry: TestRegistry,
    conns: BTreeMap<LinkId, Conn>,
    /// The work that all connections share.
    pub(crate) work: Option<Arc<Work>>,
    /// Since when there has been work.
    pub(crate) work_since: Option<Duration>,
    /// Shares that are blocks, which have a queue of their own.
    pub(crate) blocks: VecDeque<ShareEvent>,
    pub(crate) commands: VecDeque<Command>,
    pub(crate) shares: VecDeque<ShareEvent>,
    pub(crate) accounts: Accounts,
    pub(crate) owner_wakes: bool,
    /// Connections that were closed, by whose fault.
    pub(crate) closed_for_fault: Vec<String>,
    pub(crate) closed_slow: u64,
}

impl Server {
    pub(crate) fn new(place: Place, settings: Settings, now: Now) -> Self {
        Server {
            place,
            settings: Arc::new(settings),
            registry: TestRegistry {
                reserved: ReservedExtranonces::new(1 << 32),
                held: BTreeSet::new(),
                identities: Identities::default(),
                seats: BTreeSet::new(),
                last_shares: BTreeMap::new(),
                names: BTreeSet::new(),
                link: 0,
                oldest_live_job: JobNumber(0),
                now,
            },
            conns: BTreeMap::new(),
            work: None,
            work_since: None,
            blocks: VecDeque::new(),
            commands: VecDeque::new(),
            shares: VecDeque::new(),
            accounts: Accounts::default(),
            owner_wakes: false,
            closed_for_fault: Vec::new(),
            closed_slow: 0,
        }
    }

    pub(crate) fn accept(&mut self, link: LinkId, is_sv1: bool, net: &mut Net) {
        self.registry.now = net.now;
        let id = ConnectionId(link);
        let machine = if is_sv1 {
            let reserved = self.registry.take_reserved().expect("2^32 values are enough");
            Machine::Sv1(Box::new(Sv1Connection::new(Arc::clone(&self.settings), id, reserved, net.now)))
        } else {
            let connection = Sv2Connection::new(Arc::clone(&self.settings), id, net.now);
            Machine::Sv2(Box::new(connection), Frames::default())
        };
        let conn = Conn {
            machine,
            out: Output::default(),
            has_new_work: self.work.is_some(),
            mailbox: BTreeMap::new(),
            inbox: VecDeque::new(),
            unsent: Vec::new(),
            blocked_since: None,
            closing: false,
            timer: Duration::MAX,
            last_sent: net.now.monotonic,
        };
        self.conns.insert(link, conn);
        if let Some(work) = &self.work {
            net.witness.published(link, work);
        }
        self.wake(link, net);
    }

    /// Publishes work to all connections. Each hears of it in its own time.
    pub(crate) fn publish(&mut self, work: Arc<Work>, net: &mut Net) {
        assert!(work.jobs.len() <= MAX_LIVE_JOBS, "live jobs are bounded");
        self.registry.oldest_live_job = work.oldest();
        for (link, conn) in &mut self.conns {
            conn.has_new_work = true;
            net.witness.published(*link, &work);
            let wait = task_delay(net);
            net.after(wait, What::Wake(*link));
        }
        self.work = Some(work);
        self.work_since.get_or_insert(net.now.monotonic);
    }

    /// Leaves something in a connection's mailbox, in the place of what is there for the same channel.
    pub(crate) fn deliver(&mut self, key: DownstreamKey, delivery: Delivery, net: &mut Net) {
        let link = key.connection.0;
        let Some(conn) = self.conns.get_mut(&link) else { return };
        match &delivery {
            Delivery::Work(work) => {
                assert!(work.jobs.len() <= MAX_LIVE_JOBS, "live jobs are bounded");
                net.witness.published(link, work);
            }
            Delivery::OpenFailed(_) => net.witness.ended(link, key.channel.0),
        }
        conn.mailbox.insert(key.channel, delivery);
        let wait = task_delay(net);
        net.after(wait, What::Wake(link));
    }

    pub(crate) fn readable(&mut self, link: LinkId, net: &mut Net) {
        let Some(conn) = self.conns.get_mut(&link) else { return };
        if let Some(piece) = net.read(link, End::Server) {
            conn.inbox.push_back(piece);
        }
        self.wake(link, net);
    }

    pub(crate) fn gone(&mut self, link: LinkId, net: &mut Net) {
        self.finish(link, net);
    }

    /// One turn of a connection's loop, or as many as there is something to do for.
    pub(crate) fn wake(&mut self, link: LinkId, net: &mut Net) {
        self.registry.now = net.now;
        self.registry.link = link;
        loop {
            if !self.write(link, net) {
                return;
            }
            let Some(conn) = self.conns.get_mut(&link) else { return };
            if !conn.turn(self.work.as_ref(), &mut self.registry, net.now) {
                break;
            }
            self.dispatch(link, net);
        }
        let Some(conn) = self.conns.get_mut(&link) else { return };
        let due = conn.next_timeout();
        assert!(due > net.now.monotonic, "what was due was done: link {link}");
        if conn.timer <= net.now.monotonic || due < conn.timer {
            conn.timer = due;
            net.at(due, What::Wake(link));
        }
    }

    /// The longest silence of any SV1 connection that waits for nothing but us.
    pub(crate) fn check_silence(&self, net: &Net) {
        for (link, conn) in &self.conns {
            let is_ready = matches!(&conn.machine, Machine::Sv1(sv1) if sv1.device().is_some());
            let silent = net.now.monotonic.saturating_sub(conn.last_sent);
            assert!(
                !is_ready || conn.blocked_since.is_some() || silent <= Duration::from_secs(60),
                "nobody is silent for 60 seconds: link {link} at {:?}",
                self.place
            );
        }
    }

    /// The channels with an upstream that live downstreams need, where each has its own.
    pub(crate) fn needed_channels(&self) -> usize {
        let needed = self.conns.values().map(|conn| match &conn.machine {
            Machine::Sv1(sv1) => usize::from(sv1.device().is_some()),
            Machine::Sv2(sv2, _) => sv2.channel_count() + sv2.waiting_count(),
        });
        needed.sum()
    }

    pub(crate) fn is_serving(&self, link: LinkId) -> bool {
        self.conns.contains_key(&link)
    }

    /// Whether the connection's last turn of writing is stuck.
    pub(crate) fn is_blocked(&self, link: LinkId) -> bool {
        self.conns.get(&link).is_some_and(|conn| conn.blocked_since.is_some())
    }

    pub(crate) fn wake_owner(&mut self, net: &mut Net) {
        if !std::mem::replace(&mut self.owner_wakes, true) {
            let wait = task_delay(net);
            net.after(wait, What::Owner(self.place));
        }
    }

    /// At the end nothing is held by who has gone.
    pub(crate) fn check_end(&self) {
        let held = self.registry.held.len();
        let live = self.conns.values().map(|conn| match &conn.machine {
            Machine::Sv1(_) => 1,
            Machine::Sv2(sv2, _) => sv2.channel_count(),
        });
        let live: usize = live.sum();
        assert!(held >= live, "every live downstream holds an extranonce: {held} held by {live}");
        let TestRegistry { identities, seats, names, .. } = &self.registry;
        let gone = seats.iter().find(|(seat, _)| !self.conns.contains_key(&seat.connection.0));
        assert_eq!(gone, None, "who has gone mines no more");
        assert_eq!(identities.len(), names.len(), "however often machines come back, each is one device");
        assert_eq!(identities.shared_names(), 0);
    }

    /// True when the connection may go on: everything was written, and it lives.
    fn write(&mut self, link: LinkId, net: &mut Net) -> bool {
        let Some(conn) = self.conns.get_mut(&link) else { return false };
        let now = net.now.monotonic;
        if !conn.unsent.is_empty() {
            let written = net.write(link, End::Client, &conn.unsent);
            conn.unsent.drain(..written);
            conn.last_sent = now;
        }
        if conn.unsent.is_empty() {
            conn.blocked_since = None;
            if conn.closing {
                self.finish(link, net);
                return false;
            }
            return true;
        }
        let since = *conn.blocked_since.get_or_insert(now);
        if now >= since + WRITE_TIMEOUT {
            self.closed_slow += 1;
            self.finish(link, net);
        } else if conn.timer <= now || since + WRITE_TIMEOUT < conn.timer {
            conn.timer = since + WRITE_TIMEOUT;
            net.at(conn.timer, What::Wake(link));
        }
        false
    }

    /// Passes the events on, and only then makes the bytes ready.
    fn dispatch(&mut self, link: LinkId, net: &mut Net) {
        let Some(conn) = self.conns.get_mut(&link) else { return };
        let shares = std::mem::take(&mut conn.out.shares);
        let events = std::mem::take(&mut conn.out.events);
        conn.unsent.append(&mut conn.out.bytes);
        if let Some(reason) = conn.out.close.take() {
            conn.closing = true;
            if reason.fault == Fault::Downstream {
                self.closed_for_fault.push(format!("link {link}: {reason}"));
            }
        }
        self.pass_on(link, shares, events, net);
    }

    fn pass_on(&mut self, link: LinkId, shares: Vec<ShareEvent>, events: Vec<Event>, net: &mut Net) {
        let key = |channel| DownstreamKey { connection: ConnectionId(link), channel };
        for share in shares {
            self.accounts.judged += 1;
            net.witness.judged(link, &share.record);
            self.pass_share(share);
        }
        for event in events {
            let command = match event {
                Event::OpenUpstream { channel, user_identity, hash_rate } => {
                    Command::Open { key: key(channel), user_identity, rate: hash_rate }
                }
                Event::CloseUpstream { channel } => Command::Close { key: key(channel) },
                Event::HashRate { channel, rate } => Command::HashRate { key: key(channel), rate },
                Event::NewJobWanted { channel } => Command::NewJobWanted { key: key(channel) },
                Event::VersionRolling(_) | Event::RolledOutsideMask | Event::Notice(_) => continue,
            };
            self.commands.push_back(command);
        }
        assert!(self.commands.len() < checkweigh::owner::COMMAND_QUEUE, "the queue of commands is bounded");
        assert!(self.blocks.len() < checkweigh::owner::BLOCK_QUEUE, "the queue of blocks is bounded");
        if self.has_news() {
            self.wake_owner(net);
        }
    }

    /// Whether the owner has something to take.
    pub(crate) fn has_news(&self) -> bool {
        !(self.blocks.is_empty() && self.commands.is_empty() && self.shares.is_empty())
    }

    fn pass_share(&mut self, mut share: ShareEvent) {
        match &share.forward {
            None => self.accounts.record(&share.record),
            Some(forward) if forward.is_block => self.blocks.push_back(share),
            Some(_) if self.shares.len() < SHARE_QUEUE => {
                assert_eq!(self.settings.share_use, ShareUse::Forward, "a pool forwards blocks only");
                self.shares.push_back(share);
            }
            Some(_) => {
                share.record.fate = Fate::Dropped(DropReason::QueueFull);
                self.accounts.record(&share.record);
            }
        }
    }

    fn finish(&mut self, link: LinkId, net: &mut Net) {
        self.registry.now = net.now;
        self.registry.link = link;
        let Some(mut conn) = self.conns.remove(&link) else { return };
        let mut out = Output::default();
        match &mut conn.machine {
            Machine::Sv1(sv1) => sv1.handle_closed(&mut self.registry, &mut out),
            Machine::Sv2(sv2, _) => sv2.handle_closed(net.now, &mut self.registry, &mut out),
        }
        assert!(out.bytes.is_empty(), "nothing is said to who has gone");
        self.pass_on(link, out.shares, out.events, net);
        net.close(link, End::Server);
    }
}

impl Conn {
    /// Does the next thing that there is to do, most urgent first. False when there was none.
    fn turn(&mut self, work: Option<&Arc<Work>>, registry: &mut TestRegistry, now: Now) -> bool {
        if self.closing {
            return false;
        }
        if std::mem::take(&mut self.has_new_work) {
            let work = work.expect("it was published");
            match &mut self.machine {
                Machine::Sv1(sv1) => sv1.handle_work(work, now, &mut self.out),
                Machine::Sv2(sv2, _) => sv2.handle_work(None, work, now, &mut self.out),
            }
            return true;
        }
        if !self.mailbox.is_empty() {
            for (channel, delivery) in std::mem::take(&mut self.mailbox) {
                self.take_delivery(channel, &delivery, now);
            }
            return true;
        }
        if let Some(bytes) = self.inbox.pop_front() {
            self.take_bytes(&bytes, registry, now);
            return true;
        }
        if self.next_timeout() <= now.monotonic {
            match &mut self.machine {
                Machine::Sv1(sv1) => sv1.handle_timeout(now, &mut self.out),
                Machine::Sv2(sv2, _) => sv2.handle_timeout(now, &mut self.out),
            }
            return true;
        }
        false
    }

    fn take_delivery(&mut self, channel: ChannelId, delivery: &Delivery, now: Now) {
        match (&mut self.machine, delivery) {
            (Machine::Sv1(sv1), Delivery::Work(work)) => {
                assert_eq!(channel, SV1_CHANNEL, "an SV1 connection opens one channel");
                sv1.handle_work(work, now, &mut self.out);
            }
            (Machine::Sv1(sv1), Delivery::OpenFailed(reason)) => {
                sv1.handle_open_failed(reason, &mut self.out)
            }
            (Machine::Sv2(sv2, _), Delivery::Work(work)) => {
                sv2.handle_work(Some(channel), work, now, &mut self.out);
            }
            (Machine::Sv2(sv2, _), Delivery::OpenFailed(reason)) => {
                sv2.handle_open_failed(channel, reason, now, &mut self.out);
            }
        }
    }

    fn take_bytes(&mut self, bytes: &[u8], registry: &mut TestRegistry, now: Now) {
        match &mut self.machine {
            Machine::Sv1(sv1) => sv1.handle_bytes(bytes, now, registry, &mut self.out),
            Machine::Sv2(sv2, frames) => {
                frames.push(bytes);
                while self.out.close.is_none()
                    && let Some((header, payload)) = frames.next()
                {
                    sv2.handle_frame(header, &payload, now, registry, &mut self.out);
                }
            }
        }
    }

    fn next_timeout(&self) -> Duration {
        match &self.machine {
            Machine::Sv1(sv1) => sv1.next_timeout(),
            Machine::Sv2(sv2, _) => sv2.next_timeout(),
        }
    }
}

/// How long a task waits for its turn: mostly nothing, at times long enough for others to overtake it.
pub(crate) fn task_delay(net: &mut Net) -> Duration {
    let most = if net.dice.chance(0.02) { Duration::from_millis(500) } else { Duration::from_millis(3) };
    net.dice.between(Duration::ZERO, most)
}
