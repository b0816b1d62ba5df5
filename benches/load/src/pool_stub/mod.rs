//! An SV2 pool that counts: it opens every channel that it is asked for, gives jobs of made-up blocks, and
//! acknowledges every share, in a thread of its own with as little of the machine as it can.
//!
//! It never refuses a share. Whether shares are right is looked at where that was asked for, and counted.

mod link;
mod share;

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token, Waker};
use rand::RngCore;
use rand::rngs::OsRng;
use stratum::Target;
use stratum::sv2::{AuthorityPublicKey, AuthoritySecretKey};

use crate::block::Block;
use crate::in_flight::InFlight;
use link::Link;
use share::{Fault, Share, Verifier};

/// Bytes read at once.
const READ_BUFFER: usize = 256 * 1024;

/// Events taken at once: there are few connections.
const EVENTS: usize = 64;

const LISTENER: Token = Token(usize::MAX);
const COMMANDS: Token = Token(usize::MAX - 1);

/// How the pool stub behaves.
#[derive(Clone, Copy, Debug)]
pub struct PoolStubOptions {
    /// The target of every channel.
    pub target: Target,
    /// One message for all channels with every new block, instead of one for each.
    pub grouped: bool,
    /// Hash every share.
    pub verify: bool,
}

/// What the pool stub has seen. All only grow, but for the open channels.
#[derive(Debug, Default)]
pub struct PoolCounts {
    received: AtomicU64,
    bad: AtomicU64,
    duplicates: AtomicU64,
    without_channel: AtomicU64,
    set_up: AtomicU64,
    opened: AtomicU64,
    closed: AtomicU64,
}

/// One look at [`PoolCounts`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolFigures {
    /// Shares.
    pub received: u64,
    /// Shares that miss their target, or are for no job; 0 where nothing is verified.
    pub bad: u64,
    /// Shares that came before; 0 where nothing is verified.
    pub duplicates: u64,
    /// Shares for channels that are not open.
    pub without_channel: u64,
    /// Connections that were set up.
    pub set_up: u64,
    /// Channels that are open.
    pub channels: u64,
}

impl PoolCounts {
    fn received(&self) {
        self.received.fetch_add(1, Ordering::Relaxed);
    }

    fn on_no_channel(&self) {
        self.without_channel.fetch_add(1, Ordering::Relaxed);
    }

    fn set_up(&self) {
        self.set_up.fetch_add(1, Ordering::Relaxed);
    }

    fn channel_opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    fn channel_closed(&self) {
        self.closed.fetch_add(1, Ordering::Relaxed);
    }

    fn figures(&self) -> PoolFigures {
        let [received, bad, duplicates, without_channel, set_up, opened, closed] = [
            &self.received,
            &self.bad,
            &self.duplicates,
            &self.without_channel,
            &self.set_up,
            &self.opened,
            &self.closed,
        ]
        .map(|count| count.load(Ordering::Relaxed));
        let channels = opened.saturating_sub(closed);
        PoolFigures { received, bad, duplicates, without_channel, set_up, channels }
    }
}

enum Command {
    /// Send the job of the next block, as a future one.
    Prepare,
    /// Start the next block, and say when its first byte was written.
    Start(Sender<Instant>),
    End,
}

/// A running pool; ends when dropped.
#[derive(Debug)]
pub struct PoolStub {
    /// Where it listens.
    pub address: SocketAddr,
    /// The key that proxies are told to trust.
    pub authority: AuthorityPublicKey,
    counts: Arc<PoolCounts>,
    commands: Sender<Command>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

impl PoolStub {
    /// Starts a pool on a free port of this machine.
    pub fn start(options: PoolStubOptions, in_flight: Arc<InFlight>) -> io::Result<Self> {
        let mut secret = [0; 32];
        OsRng.fill_bytes(&mut secret);
        let authority = AuthoritySecretKey::from_bytes(secret).map_err(io::Error::other)?;
        let poll = Poll::new()?;
        let mut listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let waker = Arc::new(Waker::new(poll.registry(), COMMANDS)?);
        let (commands, inbox) = mpsc::channel();
        let (address, public) = (listener.local_addr()?, authority.public());
        let counts = Arc::<PoolCounts>::default();
        let pool = Pool::new(options, Arc::clone(&counts), in_flight);
        let server = Server { poll, listener, links: HashMap::new(), next_link: 0, authority, inbox, pool };
        let thread = thread::Builder::new().name("pool-stub".to_owned()).spawn(move || {
            if let Err(error) = server.serve() {
                eprintln!("the pool stub ended: {error}");
            }
        })?;
        Ok(PoolStub { address, authority: public, counts, commands, waker, thread: Some(thread) })
    }

    /// What it has seen so far.
    pub fn figures(&self) -> PoolFigures {
        self.counts.figures()
    }

    /// Sends every channel the job of the next block, as a future one.
    pub fn prepare_block(&self) -> io::Result<()> {
        self.order(Command::Prepare)
    }

    /// Starts the next block on every channel; with its job, where that was not prepared. Returns when the first
    /// byte was written.
    pub fn start_block(&self) -> io::Result<Instant> {
        let (reply, answer) = mpsc::channel();
        self.order(Command::Start(reply))?;
        answer.recv().map_err(io::Error::other)
    }

    fn order(&self, command: Command) -> io::Result<()> {
        self.commands.send(command).map_err(|_| io::Error::other("the pool stub has ended"))?;
        self.waker.wake()
    }
}

impl Drop for PoolStub {
    fn drop(&mut self) {
        // A pool stub that has ended already does not hear it.
        let _ = self.order(Command::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What all connections have in common.
struct Pool {
    target: Target,
    grouped: bool,
    verifier: Option<Verifier>,
    counts: Arc<PoolCounts>,
    in_flight: Arc<InFlight>,
    /// The block that is mined on.
    block: Arc<Block>,
    /// The one after it, where it was prepared.
    next: Option<Arc<Block>>,
    prefixes: u64,
}

impl Pool {
    fn new(options: PoolStubOptions, counts: Arc<PoolCounts>, in_flight: Arc<InFlight>) -> Self {
        let block = Arc::new(Block::new(0));
        let mut verifier = options.verify.then(|| Verifier::new(options.target));
        verifier.iter_mut().for_each(|verifier| verifier.add(Arc::clone(&block)));
        let PoolStubOptions { target, grouped, .. } = options;
        Pool { target, grouped, verifier, counts, in_flight, block, next: None, prefixes: 0 }
    }

    /// The extranonce prefix of another channel.
    const fn next_prefix(&mut self) -> [u8; 8] {
        self.prefixes += 1;
        self.prefixes.to_be_bytes()
    }

    /// The block after the one that is mined on.
    fn next_block(&mut self) -> Arc<Block> {
        let number = self.block.number + 1;
        let next = self.next.get_or_insert_with(|| {
            let block = Arc::new(Block::new(number));
            self.verifier.iter_mut().for_each(|verifier| verifier.add(Arc::clone(&block)));
            block
        });
        Arc::clone(next)
    }

    fn verify(&mut self, share: &Share<'_>, prefix: &[u8]) {
        let Some(verifier) = &mut self.verifier else { return };
        match verifier.check(share, prefix) {
            Ok(()) => {}
            Err(Fault::Duplicate) => _ = self.counts.duplicates.fetch_add(1, Ordering::Relaxed),
            Err(Fault::UnknownJob | Fault::Target) => _ = self.counts.bad.fetch_add(1, Ordering::Relaxed),
        }
    }
}

/// The thread's state.
struct Server {
    poll: Poll,
    listener: TcpListener,
    links: HashMap<Token, Link>,
    next_link: usize,
    authority: AuthoritySecretKey,
    inbox: Receiver<Command>,
    pool: Pool,
}

impl Server {
    fn serve(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        let mut buffer = vec![0; READ_BUFFER];
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                polled => polled?,
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept()?,
                    COMMANDS => {
                        if !self.obey() {
                            return Ok(());
                        }
                    }
                    token => self.on_link(token, |link, pool| {
                        if event.is_writable() {
                            link.flush()?;
                        }
                        link.read(pool, &mut buffer)
                    }),
                }
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            stream.set_nodelay(true)?;
            let token = Token(self.next_link);
            self.next_link += 1;
            self.poll.registry().register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
            self.links.insert(token, Link::new(stream, &self.authority));
        }
    }

    /// False when it shall end.
    fn obey(&mut self) -> bool {
        while let Ok(command) = self.inbox.try_recv() {
            match command {
                Command::Prepare => {
                    let block = self.pool.next_block();
                    self.on_links(|link, pool| {
                        link.send_job(pool, &block)?;
                        link.flush()
                    });
                }
                Command::Start(reply) => {
                    let block = self.pool.next_block();
                    self.on_links(|link, pool| {
                        link.send_job(pool, &block)?;
                        link.send_tip(pool, &block)
                    });
                    self.pool.next = None;
                    self.pool.block = block;
                    // Whoever asked may be gone.
                    let _ = reply.send(Instant::now());
                    self.on_links(|link, _| link.flush());
                }
                Command::End => return false,
            }
        }
        true
    }

    fn on_links(&mut self, mut act: impl FnMut(&mut Link, &mut Pool) -> io::Result<()>) {
        let tokens: Vec<Token> = self.links.keys().copied().collect();
        for token in tokens {
            self.on_link(token, &mut act);
        }
    }

    /// Acts on a link, and forgets it when that fails.
    fn on_link(&mut self, token: Token, act: impl FnOnce(&mut Link, &mut Pool) -> io::Result<()>) {
        let Some(link) = self.links.get_mut(&token) else { return };
        if let Err(error) = act(link, &mut self.pool) {
            // When the target is killed at the end, this is how it looks from here.
            if error.kind() != io::ErrorKind::UnexpectedEof && error.kind() != io::ErrorKind::ConnectionReset
            {
                eprintln!("a proxy left the pool stub: {error}");
            }
            // The socket is closed with it, whatever the registry says.
            let _ = self.poll.registry().deregister(link.stream_mut());
            self.links.remove(&token);
        }
    }
}
