//! A thread of the swarm: thousands of miners on one epoll instance, one read buffer, one write buffer.
//!
//! A lost connection stays lost and is counted: a load program that dials again would hide what it measures.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Protocol, Socket, Type};

use super::figures::{Class, SwarmFigures, add};
use super::miner::{Desk, Miner, Unusable, Watch};

/// Events taken at once.
const EVENTS: usize = 1024;

/// Bytes read at once.
const READ_BUFFER: usize = 64 * 1024;

/// Connections that are begun before events are looked at again.
const CONNECT_BATCH: usize = 64;

/// Unanswered shares of a miner whose shares come by chance. With more it waits, as a firmware's queue would.
const MAX_UNANSWERED: usize = 64;

/// Reasons of lost connections that are printed at most.
const MAX_COMPLAINTS: usize = 5;

/// The token that commands wake the thread with.
pub(super) const COMMANDS: Token = Token(usize::MAX);

/// How often miners submit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// Not at all.
    Idle,
    /// As soon as one of so many outstanding shares is answered.
    Closed {
        /// Shares that wait for their answer at any time.
        outstanding: usize,
    },
    /// By chance, so many times a second on average.
    Poisson {
        /// Shares a second.
        rate: f64,
    },
}

/// What a thread can be told.
pub(super) enum Command {
    Connect,
    Pace(Class, Pace),
    /// Wait for a block with this previous hash; answered when the thread does.
    Watch {
        previous_hash: Vec<u8>,
        ready: Sender<()>,
    },
    /// When miners had the block that is watched for. Those who had it since `started` are measured.
    Arrivals {
        started: Instant,
        reply: Sender<Vec<Instant>>,
    },
    Reset,
    Figures(Sender<SwarmFigures>),
    /// Say nothing of connections that end: the target is about to be killed.
    Hush,
    End,
}

/// A connection with its miner.
struct Connection {
    stream: Option<TcpStream>,
    is_greeted: bool,
    unsent: Vec<u8>,
    miner: Miner,
}

pub(super) struct Worker {
    poll: Poll,
    address: SocketAddr,
    inbox: Receiver<Command>,
    desk: Desk,
    connections: Vec<Connection>,
    to_connect: Range<usize>,
    ordinary: Pace,
    flooders: Pace,
    /// When each miner whose shares come by chance submits next.
    due: BinaryHeap<Reverse<(Instant, usize)>>,
    dice: Dice,
    out: Vec<u8>,
    complaints: usize,
}

impl Worker {
    pub(super) fn new(
        poll: Poll,
        address: SocketAddr,
        inbox: Receiver<Command>,
        desk: Desk,
        miners: Vec<Miner>,
    ) -> Self {
        let dice = Dice(u64::from(desk.extranonce2) ^ 0x5eed);
        let connection = |miner| Connection { stream: None, is_greeted: false, unsent: Vec::new(), miner };
        Worker {
            poll,
            address,
            inbox,
            desk,
            connections: miners.into_iter().map(connection).collect(),
            to_connect: 0..0,
            ordinary: Pace::Idle,
            flooders: Pace::Idle,
            due: BinaryHeap::new(),
            dice,
            out: Vec::with_capacity(READ_BUFFER),
            complaints: 0,
        }
    }

    pub(super) fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        let mut buffer = vec![0; READ_BUFFER];
        loop {
            match self.poll.poll(&mut events, self.patience()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                polled => polled?,
            }
            for event in &events {
                match event.token() {
                    COMMANDS => {
                        if !self.obey() {
                            return Ok(());
                        }
                    }
                    Token(index) => self.attend(index, |worker| {
                        if event.is_writable() {
                            worker.on_writable(index)?;
                        }
                        if event.is_readable() { worker.on_readable(index, &mut buffer) } else { Ok(()) }
                    }),
                }
            }
            self.connect_some();
            self.submit_due();
        }
    }

    /// How long the thread may wait for events.
    fn patience(&self) -> Option<Duration> {
        if !self.to_connect.is_empty() {
            return Some(Duration::ZERO);
        }
        let Reverse((due, _)) = self.due.peek()?;
        Some(due.saturating_duration_since(Instant::now()))
    }

    /// False when the thread shall end.
    fn obey(&mut self) -> bool {
        while let Ok(command) = self.inbox.try_recv() {
            match command {
                Command::Connect => self.to_connect = 0..self.connections.len(),
                Command::Pace(class, pace) => self.set_pace(class, pace),
                Command::Watch { previous_hash, ready } => {
                    let number = self.desk.watch.as_ref().map_or(1, |watch| watch.number + 1);
                    self.desk.watch = Some(Watch { number, previous_hash, arrivals: Vec::new() });
                    self.desk.counts.arrivals.store(0, std::sync::atomic::Ordering::Relaxed);
                    // Whoever asked may be gone, here and below.
                    let _ = ready.send(());
                }
                Command::Arrivals { started, reply } => {
                    let arrivals = self
                        .desk
                        .watch
                        .as_mut()
                        .map_or(Vec::new(), |watch| std::mem::take(&mut watch.arrivals));
                    let latencies = &mut self.desk.figures.of(Class::Ordinary).block_arrived;
                    for arrival in &arrivals {
                        latencies.saturating_record(crate::in_flight::nanoseconds(started, *arrival));
                    }
                    let _ = reply.send(arrivals);
                }
                Command::Reset => self.desk.figures = SwarmFigures::default(),
                Command::Figures(reply) => _ = reply.send(self.desk.figures.clone()),
                Command::Hush => self.complaints = MAX_COMPLAINTS,
                Command::End => return false,
            }
        }
        true
    }

    fn set_pace(&mut self, class: Class, pace: Pace) {
        match class {
            Class::Ordinary => self.ordinary = pace,
            Class::Flooder => self.flooders = pace,
        }
        let connections = &self.connections;
        self.due.retain(|Reverse((_, index))| connections[*index].miner.class != class);
        let now = Instant::now();
        for index in 0..self.connections.len() {
            if self.connections[index].miner.class != class {
                continue;
            }
            match pace {
                Pace::Idle => {}
                Pace::Closed { .. } => self.attend(index, |worker| worker.fill(index)),
                Pace::Poisson { rate } => {
                    self.due.push(Reverse((now + self.dice.wait(rate), index)));
                }
            }
        }
    }

    fn pace(&self, class: Class) -> Pace {
        match class {
            Class::Ordinary => self.ordinary,
            Class::Flooder => self.flooders,
        }
    }

    fn connect_some(&mut self) {
        for _ in 0..CONNECT_BATCH {
            let Some(index) = self.to_connect.next() else { return };
            self.attend(index, |worker| {
                let mut stream = dial(worker.address).map_err(in_words)?;
                let interest = Interest::READABLE | Interest::WRITABLE;
                worker.poll.registry().register(&mut stream, Token(index), interest).map_err(in_words)?;
                worker.connections[index].stream = Some(stream);
                Ok(())
            });
        }
    }

    fn submit_due(&mut self) {
        if self.due.is_empty() {
            return;
        }
        let now = Instant::now();
        while let Some(Reverse((due, index))) = self.due.peek().copied()
            && due <= now
        {
            self.due.pop();
            let Pace::Poisson { rate } = self.pace(self.connections[index].miner.class) else { continue };
            self.due.push(Reverse((due + self.dice.wait(rate), index)));
            self.attend(index, |worker| {
                let Worker { connections, desk, out, .. } = worker;
                let connection = &mut connections[index];
                let is_up = connection.stream.is_some() && connection.miner.unanswered() < MAX_UNANSWERED;
                out.clear();
                if is_up && connection.miner.submit(desk, out) { connection.send(out) } else { Ok(()) }
            });
        }
    }

    /// Does something for a connection, and drops it when that fails.
    fn attend(&mut self, index: usize, act: impl FnOnce(&mut Self) -> Result<(), Unusable>) {
        let Err(Unusable(reason)) = act(self) else { return };
        if self.complaints < MAX_COMPLAINTS {
            self.complaints += 1;
            eprintln!("a miner lost its connection: {reason}");
        }
        // A closed socket leaves its epoll instance by itself.
        self.connections[index].stream = None;
        add(&self.desk.counts.lost, 1);
    }

    fn on_writable(&mut self, index: usize) -> Result<(), Unusable> {
        let connection = &mut self.connections[index];
        let Some(stream) = &connection.stream else { return Ok(()) };
        if !connection.is_greeted {
            if let Some(error) = stream.take_error().map_err(in_words)? {
                return Err(in_words(error));
            }
            connection.is_greeted = true;
            self.out.clear();
            connection.miner.write_greeting(&mut self.out);
            return connection.send(&self.out);
        }
        if connection.unsent.is_empty() { Ok(()) } else { connection.send(&[]) }
    }

    fn on_readable(&mut self, index: usize, buffer: &mut [u8]) -> Result<(), Unusable> {
        loop {
            let Some(stream) = &mut self.connections[index].stream else { return Ok(()) };
            let length = match stream.read(buffer) {
                Ok(0) => return Err(Unusable("the server closed it".to_owned())),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(in_words(error)),
            };
            let now = Instant::now();
            self.connections[index].miner.handle_bytes(&buffer[..length], now, &mut self.desk)?;
            self.fill(index)?;
            // A short read has emptied the socket, and what comes later is a new event.
            if length < buffer.len() {
                return Ok(());
            }
        }
    }

    /// Submits until as many shares are outstanding as the pace asks for, in one write.
    fn fill(&mut self, index: usize) -> Result<(), Unusable> {
        let Pace::Closed { outstanding } = self.pace(self.connections[index].miner.class) else {
            return Ok(());
        };
        let Worker { connections, desk, out, .. } = self;
        let connection = &mut connections[index];
        out.clear();
        while connection.miner.unanswered() < outstanding && connection.miner.submit(desk, out) {}
        if out.is_empty() { Ok(()) } else { connection.send(out) }
    }
}

impl Connection {
    /// Writes what waits and then `bytes`, and keeps what the socket does not take: no more than the unanswered
    /// shares of one miner.
    fn send(&mut self, bytes: &[u8]) -> Result<(), Unusable> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        self.unsent.extend_from_slice(bytes);
        let mut written = 0;
        while written < self.unsent.len() {
            match stream.write(&self.unsent[written..]) {
                Ok(length) => written += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(in_words(error)),
            }
        }
        self.unsent.drain(..written);
        Ok(())
    }
}

/// Begins to connect.
fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&address.into()) {
        // Linux: EINPROGRESS.
        Err(error) if error.raw_os_error() != Some(115) => Err(error),
        _ => Ok(TcpStream::from_std(socket.into())),
    }
}

fn in_words(error: io::Error) -> Unusable {
    Unusable(error.to_string())
}

/// A small generator of chance (splitmix64): the same swarm mines in the same rhythm every time.
struct Dice(u64);

impl Dice {
    /// The time to the next of events that come `rate` times a second on average.
    fn wait(&mut self, rate: f64) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        // Uniform over (0, 1].
        let chance = ((bits >> 11) + 1) as f64 / (1u64 << 53) as f64;
        Duration::from_secs_f64(-chance.ln() / rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_keeps_its_rate() {
        let mut dice = Dice(1);
        let whole: Duration = (0..10_000).map(|_| dice.wait(8.0 / 60.0)).sum();
        let rate = 10_000.0 / whole.as_secs_f64();
        assert!((rate - 8.0 / 60.0).abs() < 0.01, "{rate} a second");
    }
}
