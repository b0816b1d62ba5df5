//! Floors: the least that a server for SV1 miners can do, to compare proxies with. They read a line, hash the share
//! with the product's own code, compare, and answer.
//!
//! They keep no accounts, find no duplicates, change no difficulty and have no upstream: what a proxy costs above
//! its floor is the price of those. Nothing is left out that every server has to do for a share or for a new block.

mod epoll;
mod judge;
mod tasks;

use std::io::{self, BufRead, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use stratum::job::{JobParts, RESERVED_SIZE};
use stratum::{
    Epoch, Job, JobNumber, JobOrigin, Now, Target, Tip, TipNumber, UpstreamChannelId, UpstreamId,
    UpstreamJobId,
};

use crate::block::{Block, EXTRANONCE_PREFIX_SIZE, EXTRANONCE_SIZE, NBITS, VERSION, unix_now};
use judge::FloorJob;

/// Connections that may wait to be accepted. The system cuts it to its own limit (net.core.somaxconn).
const BACKLOG: i32 = 65_535;

/// The line on standard input that asks for a new block.
pub const NEW_BLOCK: &str = "block";

/// What the line on standard output begins with that says where a floor listens.
pub const LISTENING: &str = "listening on ";

/// How a floor waits for its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum FloorKind {
    /// Threads that share nothing, each with a listener and an epoll instance of its own
    Epoll,
    /// Tokio's multi-threaded runtime with a task for each connection
    Tokio,
}

/// How a floor runs.
#[derive(Clone, Copy, Debug)]
pub struct FloorOptions {
    /// Which one.
    pub kind: FloorKind,
    /// Threads that serve connections.
    pub threads: NonZeroUsize,
    /// The difficulty of every share is two to the power of this.
    pub difficulty_exponent: i32,
}

/// Hands new jobs to whoever serves connections.
trait Publish {
    fn publish(&self, job: Arc<FloorJob>) -> io::Result<()>;
}

/// Serves until standard input ends.
pub fn run(options: FloorOptions) -> io::Result<()> {
    let job = |number| Arc::new(FloorJob::new(&Block::new(number), options.difficulty_exponent));
    let (address, publisher): (SocketAddr, Box<dyn Publish>) = match options.kind {
        FloorKind::Epoll => {
            let (address, servers) = epoll::start(options.threads, &job(0))?;
            (address, Box::new(servers))
        }
        FloorKind::Tokio => {
            let (address, runtime) = tasks::start(options.threads, job(0))?;
            (address, Box::new(runtime))
        }
    };
    println!("{LISTENING}{address}");
    io::stdout().flush()?;
    let mut number = 0;
    for line in io::stdin().lock().lines() {
        if line? == NEW_BLOCK {
            number += 1;
            publisher.publish(job(number))?;
        }
    }
    Ok(())
}

/// A block as a job of the product, so that floors hash shares with the product's code. The coinbase prefix of
/// `block` must end with the pool's extranonce prefix, where there is one.
pub fn job_of(block: &Block, difficulty_exponent: i32) -> Job {
    let parts = JobParts {
        number: JobNumber(u64::from(block.number)),
        epoch: Epoch(0),
        origin: JobOrigin {
            upstream: UpstreamId(0),
            channel: UpstreamChannelId(0),
            job: UpstreamJobId(block.number),
            template: None,
        },
        tip: Tip {
            number: TipNumber(u64::from(block.number)),
            previous_hash: block.previous_hash,
            nbits: NBITS,
            network_target: Target::from_compact(NBITS),
        },
        clean: true,
        version: VERSION,
        version_rolling_allowed: true,
        min_ntime: block.ntime,
        coinbase_prefix: block.coinbase_prefix.as_slice().into(),
        coinbase_suffix: block.coinbase_suffix.as_slice().into(),
        rollable_size: EXTRANONCE_SIZE,
        merkle_path: block.merkle_path.as_slice().into(),
        upstream_target: Target::from_difficulty_exponent(difficulty_exponent),
        received: Now::simulated(Duration::from_secs(u64::from(unix_now())), Duration::ZERO),
    };
    Job::new(parts)
}

/// The coinbase prefix of a block with an extranonce prefix, as a proxy has it.
fn with_extranonce_prefix(block: &Block) -> Block {
    let mut block = block.clone();
    block.coinbase_prefix.extend_from_slice(&[0; EXTRANONCE_PREFIX_SIZE]);
    block
}

/// Hands out the bytes that tell connections apart.
#[derive(Debug, Default)]
struct Reserved(AtomicU32);

impl Reserved {
    fn take(&self) -> [u8; RESERVED_SIZE] {
        self.0.fetch_add(1, Ordering::Relaxed).to_be_bytes()
    }
}

/// A listener with a deep backlog; several may share an address.
fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Any free port of this machine.
const fn any_port() -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0)
}
