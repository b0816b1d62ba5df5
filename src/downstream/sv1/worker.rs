//! A thread that serves the SV1 connections that it accepted.
//!
//! Each turn does what is most urgent first: a new block to all miners, then what other threads left, newcomers, the
//! connections with something to read, each once, and last what is due. Those that have something to read are served a few
//! at a time, so that their shares are hashed together; before each few it looks whether there is a new block. So a
//! miner that floods us gets one read in a turn, like everybody else.
//!
//! It never decides what a miner is told, and never waits for one.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arrayvec::ArrayVec;
use mining_server::sv1::Ahead;
use mining_server::{CloseReason, Work};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use slab::Slab;
use stratum::{ConnectionId, JobNumber, Now};

use super::super::limiter::LineKind;
use super::super::{ACCEPT_PAUSE, Context, READ_BUFFER};
use super::connection::{Connection, Newcomer};
use super::desk::{Desk, HELD_UP_TICK};
use super::fan_out::FanOut;
use super::inbox::{Inbox, News};

/// Events that the system hands over at once. More of them wait for the next turn.
const EVENTS: usize = 1024;

/// Connections accepted in one turn, so that a storm of newcomers does not hold up those who mine.
const ACCEPT_BATCH: usize = 64;

/// Connections that get a job in one turn when it is no new block: shares need not wait for a mere refresh.
const FAN_OUT_BATCH: usize = 64;

/// Connections that are read before the first of them is answered: their shares are hashed together.
const SERVED_TOGETHER: usize = 4;

/// Timers are looked at this often at most, so that thousands of connections do not wake the thread for each.
const TICK: Duration = Duration::from_millis(10);

/// A worker may have this many connections more than the one with the fewest: beyond, it hands newcomers over. A
/// new block is written by all cores only if each has its part of the miners.
const MAX_IMBALANCE: usize = 16;

/// When to offer records again to a sink that had no room for them.
const RECORDS_RETRY: Duration = Duration::from_secs(1);

const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);

/// How many connections each worker has.
pub(super) type Loads = Arc<[AtomicUsize]>;

/// See the module's documentation.
pub(super) struct Worker {
    poll: Poll,
    events: Events,
    listener: TcpListener,
    /// When to accept again; `None` while nobody knocks.
    accept_at: Option<Duration>,
    connections: Slab<Connection>,
    /// Connections with something to do, in the order of their turn; each at most once.
    ready: VecDeque<usize>,
    /// When each connection is looked at next.
    timers: BTreeSet<(Duration, usize)>,
    fan_out: Option<FanOut>,
    /// What other threads left, on its way; empty between turns.
    news: News,
    /// The newest job that was handed out, or is being.
    newest_job: JobNumber,
    /// Where connections are read to that are served together.
    buffers: Vec<[u8; READ_BUFFER]>,
    /// Whether their shares are hashed together.
    looks_ahead: bool,
    desk: Desk,
    context: Context,
}

impl Worker {
    pub(super) fn new(listener: std::net::TcpListener, context: &Context) -> std::io::Result<Self> {
        let poll = Poll::new()?;
        let mut listener = TcpListener::from_std(listener);
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let inbox = Arc::new(Inbox::new(Waker::new(poll.registry(), WAKER)?));
        let waker = Arc::clone(&inbox);
        context.owner.wake_with(move || waker.wake());
        Ok(Worker {
            poll,
            events: Events::with_capacity(EVENTS),
            listener,
            // Whoever came before the listener was polled is no event.
            accept_at: Some(Duration::ZERO),
            connections: Slab::new(),
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
            fan_out: None,
            news: News::default(),
            newest_job: JobNumber(0),
            buffers: vec![[0; READ_BUFFER]; SERVED_TOGETHER],
            looks_ahead: true,
            desk: Desk::new(context, inbox),
            context: context.clone(),
        })
    }

    /// Where other threads leave things for it.
    pub(super) fn inbox(&self) -> Arc<Inbox> {
        Arc::clone(&self.desk.inbox)
    }

    /// Serves until the end is asked for. `team` are the inboxes of all workers of the listener, in the order of
    /// `loads`, and this one is at `own`.
    pub(super) fn run(mut self, team: &[Arc<Inbox>], loads: &Loads, own: usize) {
        while self.turn(team, loads, own) {}
        self.end();
    }

    /// Waits for something to do and does it. False when the end was asked for.
    fn turn(&mut self, team: &[Arc<Inbox>], loads: &Loads, own: usize) -> bool {
        self.wait();
        self.desk.inbox.take(&mut self.news);
        if self.news.end {
            return false;
        }
        self.take_new_work();
        self.take_news();
        self.hand_out(FAN_OUT_BATCH);
        self.accept(team, loads, own);
        self.serve_ready();
        self.serve_timers();
        self.desk.forward_if_due();
        self.desk.writer.flush();
        loads[own].store(self.connections.len(), Ordering::Relaxed);
        true
    }

    /// Waits for the system, unless there is something to do already, and notes who has something to do.
    fn wait(&mut self) {
        let patience = self.patience();
        if let Err(error) = self.poll.poll(&mut self.events, patience) {
            assert!(error.kind() == std::io::ErrorKind::Interrupted, "the system polls sockets: {error}");
            return;
        }
        for event in &self.events {
            match event.token() {
                // A pause after a failure is not cut short: everybody who knocks meanwhile still waits.
                LISTENER => drop(self.accept_at.get_or_insert(Duration::ZERO)),
                WAKER => {}
                Token(place) => {
                    let Some(connection) = self.connections.get_mut(place) else { continue };
                    if event.is_readable() {
                        connection.note_readable();
                    }
                    if event.is_read_closed() || event.is_error() {
                        connection.note_ended();
                    }
                    if !std::mem::replace(&mut connection.is_ready, true) {
                        self.ready.push_back(place);
                    }
                }
            }
        }
    }

    /// How long to wait at most; `None`: for ever.
    fn patience(&self) -> Option<Duration> {
        if self.desk.is_held_up() {
            return Some(HELD_UP_TICK);
        }
        if !self.ready.is_empty() || self.fan_out.is_some() {
            return Some(Duration::ZERO);
        }
        let now = self.desk.clock.monotonic();
        let timer = self.timers.first().map(|(at, _)| *at);
        let records = self.desk.writer.is_behind().then_some(now + RECORDS_RETRY);
        let next = [timer, self.accept_at, records].into_iter().flatten().min();
        let next = next.map(|next| if next <= now { Duration::ZERO } else { (next - now).max(TICK) });
        let forward = self.desk.forward_at().map(|at| at.saturating_sub(now));
        [next, forward].into_iter().flatten().min()
    }

    /// Starts to hand out the newest shared work, if it is new; a new block goes to everybody at once.
    fn take_new_work(&mut self) {
        if !self.desk.work.has_changed().unwrap_or(false) {
            return;
        }
        let Some(work) = self.desk.work.borrow_and_update().clone() else { return };
        let rates = self.connections.iter().map(|(place, connection)| (place, connection.rate));
        // What an earlier job has not reached yet, this one reaches in its stead.
        // An unfinished one may have been of a new block, too.
        let was_urgent = self.fan_out.as_ref().is_some_and(FanOut::is_urgent);
        let is_urgent = was_urgent || work.clean_job_after(self.newest_job).is_some();
        self.newest_job = work.active().job.number;
        let fan_out = self.fan_out.insert(FanOut::new(work, is_urgent, rates));
        if fan_out.is_urgent() {
            self.hand_out(usize::MAX);
        }
    }

    fn hand_out(&mut self, limit: usize) {
        let Some(mut fan_out) = self.fan_out.take() else { return };
        for _ in 0..limit {
            let Some((place, work)) = fan_out.next() else { break };
            self.give_work(place, work);
        }
        if !fan_out.is_done() {
            self.fan_out = Some(fan_out);
        }
    }

    fn give_work(&mut self, place: usize, work: &Arc<Work>) {
        self.with(place, |connection, desk| connection.take_work(work, desk));
    }

    fn take_news(&mut self) {
        let mut deliveries: Vec<_> = self.news.deliveries.drain().collect();
        let rate = |place: usize| self.connections.get(place).map_or(0.0, |connection| connection.rate.0);
        deliveries.sort_unstable_by(|((a, _), _), ((b, _), _)| rate(*b).total_cmp(&rate(*a)));
        for ((place, id), delivery) in deliveries {
            if self.connections.get(place).is_some_and(|connection| connection.id == id) {
                self.with(place, |connection, desk| connection.take_delivery(&delivery, desk));
            }
        }
        for newcomer in std::mem::take(&mut self.news.newcomers) {
            self.welcome(newcomer);
        }
    }

    fn accept(&mut self, team: &[Arc<Inbox>], loads: &Loads, own: usize) {
        if self.accept_at.is_none_or(|at| at > self.desk.clock.monotonic()) {
            return;
        }
        for _ in 0..ACCEPT_BATCH {
            match self.listener.accept() {
                Ok((stream, peer)) => {
                    let Some(newcomer) = self.admit(stream, peer) else { continue };
                    match least_loaded(loads, own, self.connections.len()) {
                        Some(other) => {
                            loads[other].fetch_add(1, Ordering::Relaxed);
                            team[other].hand_over(newcomer);
                        }
                        None => self.welcome(newcomer),
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    self.accept_at = None;
                    return;
                }
                // The peer was gone before it was served, or a signal came: there may be others.
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections");
                    self.accept_at = Some(self.desk.clock.monotonic() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    /// Takes one of the role's slots for a connection that was accepted, or turns it away.
    fn admit(&self, stream: TcpStream, peer: SocketAddr) -> Option<Newcomer> {
        let counts = &self.context.counts;
        let Ok(slot) = Arc::clone(&self.context.slots).try_acquire_owned() else {
            counts.refused.fetch_add(1, Ordering::Relaxed);
            if counts.log.admit(LineKind::TurnedAway, self.desk.clock.monotonic()) {
                tracing::warn!(%peer, "turned a connection away: downstream.max_connections is reached");
            }
            return None;
        };
        counts.accepted.fetch_add(1, Ordering::Relaxed);
        let id = ConnectionId(counts.next_id.fetch_add(1, Ordering::Relaxed) + 1);
        Some(Newcomer { stream, peer, id, slot })
    }

    /// Begins to serve a connection.
    fn welcome(&mut self, newcomer: Newcomer) {
        let entry = self.connections.vacant_entry();
        let place = entry.key();
        let now = self.desk.clock.now();
        let made = catch_unwind(AssertUnwindSafe(|| Connection::new(newcomer, place, &self.context, now)));
        let mut connection = match made {
            Ok(Ok(connection)) => connection,
            Ok(Err(_)) => return,
            Err(_) => return self.note_panic(),
        };
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(&mut connection.stream, Token(place), interest) {
            let reason = CloseReason::ours(format!("the system cannot poll it: {error}"));
            connection.finish(&reason, &mut self.desk, &self.context);
            return;
        }
        entry.insert(connection);
        let work = self.desk.work.borrow().clone();
        match work {
            Some(work) => self.give_work(place, &work),
            None => self.with(place, |_, _| Ok(())),
        }
    }

    /// Gives every connection that is ready its turn.
    fn serve_ready(&mut self) {
        let mut left = self.ready.len();
        while left > 0 && !self.desk.is_held_up() {
            let few = left.min(SERVED_TOGETHER);
            let places: ArrayVec<usize, SERVED_TOGETHER> = self.ready.drain(..few).collect();
            left -= few;
            self.take_new_work();
            let mut buffers = std::mem::take(&mut self.buffers);
            self.serve(&places, &mut buffers);
            self.buffers = buffers;
        }
    }

    /// Reads some connections, and answers them.
    fn serve(&mut self, places: &[usize], buffers: &mut [[u8; READ_BUFFER]]) {
        let mut reads = Reads::new();
        for (place, buffer) in places.iter().zip(buffers) {
            let Some(connection) = self.connections.get_mut(*place) else { continue };
            connection.is_ready = false;
            let mut length = 0;
            self.with(*place, |connection, desk| {
                length = connection.receive(buffer, desk)?;
                Ok(())
            });
            reads.push((*place, &buffer[..length], self.desk.clock.now()));
        }
        let mut ahead = Ahead::default();
        let counts = self.look_ahead(&reads, &mut ahead);
        let mut foreseen = ahead.shares();
        for ((place, bytes, now), count) in reads.into_iter().zip(counts) {
            let (own, rest) = foreseen.split_at(count);
            foreseen = rest;
            if !bytes.is_empty() {
                self.with(place, |connection, desk| connection.answer(bytes, own, now, desk));
            }
            if let Some(connection) = self.connections.get_mut(place)
                && connection.has_more()
                && !std::mem::replace(&mut connection.is_ready, true)
            {
                self.ready.push_back(place);
            }
        }
    }

    /// Looks for shares in what was read, and hashes them together. Returns how many each connection has. If that panics,
    /// nobody is closed and nothing is looked at ahead any more: everything is done without it as well.
    fn look_ahead<'a>(&mut self, reads: &Reads<'a>, ahead: &mut Ahead<'a>) -> [usize; SERVED_TOGETHER] {
        if !self.looks_ahead {
            return [0; SERVED_TOGETHER];
        }
        let looked = catch_unwind(AssertUnwindSafe(|| look_ahead(&self.connections, reads, ahead)));
        looked.unwrap_or_else(|_| {
            self.looks_ahead = false;
            tracing::error!("shares are no longer hashed together, by a bug of ours; please report it");
            [0; SERVED_TOGETHER]
        })
    }

    fn serve_timers(&mut self) {
        let now = self.desk.clock.monotonic();
        while let Some((at, place)) = self.timers.first().copied() {
            if at > now {
                return;
            }
            self.timers.pop_first();
            self.connections[place].timer = Duration::MAX;
            self.with(place, |connection, desk| connection.handle_timeout(desk));
        }
    }

    /// Does something with a connection. Closes it if that fails, and sets its timer if that must ring earlier; a
    /// timer that rings too early is set anew then.
    fn with(
        &mut self,
        place: usize,
        act: impl FnOnce(&mut Connection, &mut Desk) -> Result<(), CloseReason>,
    ) {
        let Some(connection) = self.connections.get_mut(place) else { return };
        let desk = &mut self.desk;
        match catch_unwind(AssertUnwindSafe(|| act(connection, desk))) {
            Ok(Ok(())) => {
                let due = connection.next_timeout(desk);
                if due < connection.timer {
                    // One that rang, or was never set, is not among them, and need not be looked for.
                    if connection.timer < Duration::MAX {
                        self.timers.remove(&(connection.timer, place));
                    }
                    self.timers.insert((due, place));
                    connection.timer = due;
                }
            }
            Ok(Err(reason)) => {
                let connection = self.remove(place);
                let (desk, context) = (&mut self.desk, &self.context);
                let finished = AssertUnwindSafe(|| connection.finish(&reason, desk, context));
                if catch_unwind(finished).is_err() {
                    self.note_panic();
                }
            }
            Err(_) => {
                drop(self.remove(place));
                self.note_panic();
            }
        }
    }

    /// Takes a connection out of everything but the queue of those that are ready, which skips it.
    fn remove(&mut self, place: usize) -> Connection {
        let mut connection = self.connections.remove(place);
        self.timers.remove(&(connection.timer, place));
        // Its file descriptor is closed with it, and polled no more.
        let _ = self.poll.registry().deregister(&mut connection.stream);
        connection
    }

    fn note_panic(&mut self) {
        self.desk.forget_output();
        self.context.note_panic(&"a panic of its state machine");
    }

    /// Closes everything.
    fn end(mut self) {
        let reason = CloseReason::ours("the program is ending");
        let places: Vec<usize> = self.connections.iter().map(|(place, _)| place).collect();
        for place in places {
            self.with(place, |_, _| Err(reason.clone()));
        }
        self.desk.forward_now();
    }
}

/// What was read, of which connections, and when.
type Reads<'a> = ArrayVec<(usize, &'a [u8], Now), SERVED_TOGETHER>;

/// See [`Worker::look_ahead`].
fn look_ahead<'a>(
    connections: &Slab<Connection>,
    reads: &Reads<'a>,
    ahead: &mut Ahead<'a>,
) -> [usize; SERVED_TOGETHER] {
    let mut counts = [0; SERVED_TOGETHER];
    let of = |place: &usize| connections.get(*place);
    for ((place, bytes, _), count) in reads.iter().zip(&mut counts) {
        *count = of(place).map_or(0, |connection| connection.look_ahead(bytes, ahead));
    }
    // A share that is alone gains nothing.
    if ahead.shares().len() > 1 {
        let of_each = reads.iter().zip(counts).filter_map(|((place, ..), count)| Some((of(place)?, count)));
        ahead.hash(of_each.map(|(connection, count)| (connection.machine(), count)));
    }
    counts
}

/// The worker that a newcomer is handed over to, if there is one that has clearly fewer connections.
fn least_loaded(loads: &Loads, own: usize, connections: usize) -> Option<usize> {
    let (other, least) = loads
        .iter()
        .map(|load| load.load(Ordering::Relaxed))
        .enumerate()
        .filter(|(index, _)| *index != own)
        .min_by_key(|(_, load)| *load)?;
    (connections > least + MAX_IMBALANCE).then_some(other)
}

fn is_of_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

/// What tests need to drive a worker without a thread.
#[cfg(test)]
impl Worker {
    pub(super) fn connections(&self) -> usize {
        self.connections.len()
    }

    /// One turn that never waits.
    pub(super) fn turn_alone(&mut self) {
        self.desk.inbox.wake();
        let loads: Loads = [AtomicUsize::new(0)].into();
        assert!(self.turn(&[], &loads, 0));
    }

    pub(super) fn panic_in(&mut self, place: usize) {
        self.with(place, |_, _| panic!("a bug of ours"));
    }

    pub(super) fn is_held_up(&self, place: usize) -> bool {
        self.connections[place].is_held_up()
    }
}
