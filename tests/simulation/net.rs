//! The virtual network and clock: links that carry bytes in order, late, in pieces of any size, or not at all.
//!
//! Nothing here knows what the bytes mean.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Duration;

use stratum::Now;

use crate::dice::Dice;
use crate::witness::Witness;

/// What a kernel takes of one direction before a writer must wait. Small, so that slow miners are felt...
const MINER_BUFFER: usize = 2 * 1024;

/// ...and larger between proxy and pool, where jobs for many channels come at once.
const POOL_BUFFER: usize = 64 * 1024;

/// A transport session, numbered like the connection of the server at its end.
pub(crate) type LinkId = u64;

/// The two ends of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    Client,
    Server,
}

/// What can happen next.
#[derive(Clone, Debug)]
pub(crate) enum What {
    /// The next piece may have come to this end.
    Readable(LinkId, End),
    /// This end learns that the other has gone.
    Gone(LinkId, End),
    /// A server's connection looks at its work, its mailbox and its timers.
    Wake(LinkId),
    /// The owner of the proxy's, or the pool's, work looks at its queues and its timers.
    Owner(Place),
    /// The proxy dials this upstream.
    Dial(usize),
    /// The connection to this upstream that was dialled is up or has failed.
    Dialled(usize),
    /// A miner connects.
    Connect(usize),
    /// A miner finds a share, unless its work has changed since: then its count has moved on.
    Share(usize, u64),
    /// The world does something on its own.
    Weather,
    /// Somebody else found a block.
    ForeignBlock,
    /// This upstream can be reached again.
    Reachable(usize),
    /// Slow invariants are looked at.
    Look,
}

/// The two roles that miners can connect to, and the second pool of the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Pool,
    Second,
    Proxy,
}

/// One direction of a link.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    pieces: VecDeque<(Duration, Vec<u8>)>,
    queued: usize,
    buffer: usize,
    last: Duration,
    stalled_until: Duration,
    scheduled: Option<Duration>,
}

/// A transport session.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) to_server: Pipe,
    pub(crate) to_client: Pipe,
    /// Which miner is at the client's end; `None` when it is the proxy.
    pub(crate) miner: Option<usize>,
    /// Who is at the server's end.
    pub(crate) server: Place,
    latency: Duration,
    jitter: Duration,
    /// Until when a fault of the network explains a silence.
    pub(crate) disturbed_until: Duration,
    /// Neither end can send any more.
    pub(crate) is_cut: bool,
}

/// The network, the clock, the dice, and what an observer of the network saw.
#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) now: Now,
    pub(crate) dice: Dice,
    pub(crate) links: BTreeMap<LinkId, Link>,
    pub(crate) witness: Witness,
    agenda: BinaryHeap<Reverse<(Duration, u64)>>,
    what: BTreeMap<u64, What>,
    next: u64,
    next_link: LinkId,
}

impl Pipe {
    /// Bytes that a writer may still write without waiting.
    pub(crate) fn room(&self) -> usize {
        self.buffer.saturating_sub(self.queued)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    fn due(&self) -> Option<Duration> {
        self.pieces.front().map(|(at, _)| (*at).max(self.stalled_until))
    }

    /// When the last byte arrives.
    fn end(&self) -> Duration {
        self.last.max(self.stalled_until)
    }
}

impl Net {
    pub(crate) fn new(dice: Dice, utc: Duration, start: Duration) -> Self {
        Net {
            now: Now::simulated(utc, start),
            dice,
            links: BTreeMap::new(),
            witness: Witness::default(),
            agenda: BinaryHeap::new(),
            what: BTreeMap::new(),
            next: 0,
            next_link: 1,
        }
    }

    pub(crate) fn at(&mut self, at: Duration, what: What) {
        let at = at.max(self.now.monotonic);
        self.next += 1;
        self.agenda.push(Reverse((at, self.next)));
        self.what.insert(self.next, what);
    }

    pub(crate) fn after(&mut self, wait: Duration, what: What) {
        self.at(self.now.monotonic + wait, what);
    }

    /// Moves the clock to what happens next; `None` when that is after `end`.
    pub(crate) fn step(&mut self, end: Duration) -> Option<What> {
        let Reverse((at, key)) = self.agenda.pop().filter(|Reverse((at, _))| *at <= end)?;
        self.now = self.now.plus(at.saturating_sub(self.now.monotonic));
        self.what.remove(&key)
    }

    /// A new transport session: both ends may send at once.
    pub(crate) fn open(&mut self, server: Place, miner: Option<usize>) -> LinkId {
        let id = self.next_link;
        self.next_link += 1;
        let latency = self.dice.between(Duration::from_micros(100), Duration::from_millis(120));
        let jitter = self.dice.between(Duration::ZERO, Duration::from_millis(80));
        // What a miner writes always fits: how a firmware waits is not what is tested.
        let (up, down) =
            if miner.is_some() { (usize::MAX, MINER_BUFFER) } else { (POOL_BUFFER, POOL_BUFFER) };
        let link = Link {
            to_server: Pipe { buffer: up, ..Pipe::default() },
            to_client: Pipe { buffer: down, ..Pipe::default() },
            miner,
            server,
            latency,
            jitter,
            disturbed_until: Duration::ZERO,
            is_cut: false,
        };
        self.links.insert(id, link);
        id
    }

    /// Writes as much as fits at once, and returns how much. What is written arrives in order, late and in
    /// pieces.
    pub(crate) fn write(&mut self, id: LinkId, to: End, bytes: &[u8]) -> usize {
        let now = self.now.monotonic;
        let Some(link) = self.links.get_mut(&id).filter(|link| !link.is_cut) else { return bytes.len() };
        let (latency, jitter) = (link.latency, link.jitter);
        let pipe = link.pipe(to);
        let length = bytes.len().min(pipe.room());
        let mut rest = &bytes[..length];
        while !rest.is_empty() {
            // One in four writes comes in small pieces, down to single bytes.
            let most = if self.dice.chance(0.25) { 1 + self.dice.below(100) as usize } else { rest.len() };
            let (piece, later) = rest.split_at(most.min(rest.len()));
            let at = (now + latency + self.dice.between(Duration::ZERO, jitter)).max(pipe.last);
            pipe.last = at;
            pipe.queued += piece.len();
            pipe.pieces.push_back((at, piece.to_vec()));
            rest = later;
        }
        self.schedule(id, to);
        length
    }

    /// The next piece that has come to this end.
    pub(crate) fn read(&mut self, id: LinkId, to: End) -> Option<Vec<u8>> {
        let now = self.now.monotonic;
        let pipe = self.links.get_mut(&id)?.pipe(to);
        if pipe.scheduled.is_some_and(|at| at <= now) {
            pipe.scheduled = None;
        }
        let piece = match pipe.due() {
            Some(at) if at <= now => pipe.pieces.pop_front(),
            _ => None,
        };
        if let Some((_, piece)) = &piece {
            pipe.queued -= piece.len();
        }
        self.schedule(id, to);
        piece.map(|(_, piece)| piece)
    }

    /// Nothing arrives at this end for a while.
    pub(crate) fn stall(&mut self, id: LinkId, to: End, wait: Duration) {
        let until = self.now.monotonic + wait;
        let Some(link) = self.links.get_mut(&id) else { return };
        link.disturbed_until = link.disturbed_until.max(until + Duration::from_secs(1));
        link.pipe(to).stalled_until = until;
    }

    /// One end closes: what it wrote still arrives, then the other end learns of it. What was on its way to
    /// the one that closes is lost.
    pub(crate) fn close(&mut self, id: LinkId, by: End) {
        let Some(link) = self.links.get_mut(&id) else { return };
        if link.is_cut {
            return;
        }
        link.is_cut = true;
        let other = if by == End::Client { End::Server } else { End::Client };
        link.pipe(by).pieces.clear();
        let at = link.pipe(other).end();
        self.at(at, What::Gone(id, other));
    }

    /// The network ends a session: everything on its way is lost, and both ends learn of it in their own time.
    pub(crate) fn cut(&mut self, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        if std::mem::replace(&mut link.is_cut, true) {
            return;
        }
        link.to_client.pieces.clear();
        link.to_server.pieces.clear();
        for end in [End::Client, End::Server] {
            let wait = self.dice.between(Duration::ZERO, Duration::from_secs(3));
            self.after(wait, What::Gone(id, end));
        }
    }

    fn schedule(&mut self, id: LinkId, to: End) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let pipe = link.pipe(to);
        if let Some(at) = pipe.due()
            && pipe.scheduled.is_none()
        {
            pipe.scheduled = Some(at);
            self.at(at, What::Readable(id, to));
        }
    }
}

impl Link {
    fn pipe(&mut self, to: End) -> &mut Pipe {
        match to {
            End::Client => &mut self.to_client,
            End::Server => &mut self.to_server,
        }
    }
}
