//! Everything that a scenario plays with: the target, its pool, the swarm, and how blocks come.

use std::io;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::block::Block;
use crate::in_flight::InFlight;
use crate::pool_stub::{PoolFigures, PoolStub, PoolStubOptions};
use crate::swarm::{Swarm, SwarmOptions};
use crate::target::{Mode, Target, TargetKind, TargetOptions};
use crate::usage::{self, Usage};

/// How long everything but connecting may take until a run is given up.
const DEADLINE: Duration = Duration::from_secs(60);

/// How long all miners together may take to connect.
const CONNECT_DEADLINE: Duration = Duration::from_secs(180);

/// How long the slowest miner is waited for with a new block.
const BLOCK_DEADLINE: Duration = Duration::from_secs(30);

/// How often conditions are looked at that no event tells of.
const LOOK: Duration = Duration::from_millis(2);

/// What to set up.
#[derive(Clone, Debug)]
pub struct StageOptions {
    /// What is measured.
    pub kind: TargetKind,
    /// How a proxy opens channels.
    pub mode: Mode,
    /// The target's program, where it is not the usual one.
    pub binary: Option<PathBuf>,
    /// Miners of both classes.
    pub miners: usize,
    /// How many of them flood.
    pub flooders: usize,
    /// Threads of the swarm.
    pub swarm_threads: NonZeroUsize,
    /// Threads of a floor.
    pub floor_threads: NonZeroUsize,
    /// The difficulty of shares is two to the power of this.
    pub difficulty_exponent: i32,
    /// Jobs go to a group channel.
    pub grouped: bool,
    /// The pool hashes every share.
    pub verify: bool,
    /// The target has an API.
    pub with_api: bool,
}

/// A moment's reading of every meter.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// When.
    pub at: Instant,
    /// The target.
    pub target: Usage,
    /// Processor time of the swarm.
    pub swarm_cpu: Duration,
    /// Processor time of the pool stub.
    pub pool_cpu: Duration,
    /// Shares that were accepted.
    pub acknowledged: u64,
    /// Shares that the pool received.
    pub forwarded: u64,
}

/// When a block was where.
#[derive(Clone, Copy, Debug)]
pub struct BlockTimes {
    /// From its start to the first miner.
    pub first: Duration,
    /// From its start to the last miner.
    pub last: Duration,
    /// Miners that never had it.
    pub missing: usize,
}

/// What a scenario plays with. The target ends first: its end closes every connection, and whoever closes first
/// waits with the port.
#[derive(Debug)]
pub struct Stage {
    /// The process that is measured.
    pub target: Target,
    /// The miners.
    pub swarm: Swarm,
    /// The pool; floors have none.
    pub pool: Option<PoolStub>,
    /// Shares on their way to the pool.
    pub in_flight: Arc<InFlight>,
    blocks: u32,
}

impl Drop for Stage {
    fn drop(&mut self) {
        // The target is killed next. A swarm that has ended already has nothing to say either.
        let _ = self.swarm.hush();
    }
}

impl Stage {
    /// Starts pool and target, and makes the miners, which do not connect yet.
    pub fn set(options: &StageOptions) -> io::Result<Self> {
        let in_flight = Arc::<InFlight>::default();
        let pool_options = PoolStubOptions {
            target: stratum::Target::from_difficulty_exponent(options.difficulty_exponent),
            grouped: options.grouped,
            verify: options.verify,
        };
        let pool = match options.kind.floor() {
            Some(_) => None,
            None => Some(PoolStub::start(pool_options, Arc::clone(&in_flight))?),
        };
        let target = Target::start(&TargetOptions {
            kind: options.kind,
            mode: options.mode,
            binary: options.binary.clone(),
            miners: options.miners,
            threads: options.floor_threads,
            difficulty_exponent: options.difficulty_exponent,
            with_api: options.with_api,
            pool: pool.as_ref().map(|pool| (pool.address, pool.authority)),
        })?;
        let swarm = SwarmOptions {
            server: target.address,
            miners: options.miners,
            flooders: options.flooders,
            threads: options.swarm_threads,
        };
        let swarm = Swarm::start(swarm, &in_flight)?;
        let stage = Stage { target, swarm, pool, in_flight, blocks: 0 };
        stage.wait(DEADLINE, "its pool", || stage.pool_figures().is_none_or(|pool| pool.set_up > 0))?;
        Ok(stage)
    }

    /// All miners connect. Returns how long it took until the last one had its first job.
    pub fn connect(&self) -> io::Result<Duration> {
        let started = Instant::now();
        self.swarm.connect()?;
        let is_done = || {
            let counts = self.swarm.counts();
            (counts.ready + counts.lost) as usize >= self.swarm.miners
        };
        self.wait(CONNECT_DEADLINE, "a job for every miner", is_done)?;
        Ok(started.elapsed())
    }

    /// Sends the job of the next block ahead, as pools do.
    pub fn prepare_block(&self) -> io::Result<()> {
        self.pool.as_ref().map_or(Ok(()), PoolStub::prepare_block)
    }

    /// Starts a new block, and waits until every connected miner has it.
    pub fn new_block(&mut self) -> io::Result<BlockTimes> {
        self.blocks += 1;
        self.swarm.watch(&Block::new(self.blocks).shown_previous_hash())?;
        let started = match &self.pool {
            Some(pool) => pool.start_block()?,
            None => self.target.order_block()?,
        };
        let connected = || self.swarm.miners - self.swarm.counts().lost as usize;
        let deadline = started + BLOCK_DEADLINE;
        while (self.swarm.counts().arrivals as usize) < connected() && Instant::now() < deadline {
            sleep(LOOK);
        }
        let arrivals = self.swarm.arrivals(started)?;
        let since = |moment: Option<&Instant>| moment.map_or(BLOCK_DEADLINE, |moment| *moment - started);
        Ok(BlockTimes {
            first: since(arrivals.iter().min()),
            last: since(arrivals.iter().max()),
            missing: connected().saturating_sub(arrivals.len()),
        })
    }

    /// What the pool has seen; `None` for floors.
    pub fn pool_figures(&self) -> Option<PoolFigures> {
        self.pool.as_ref().map(PoolStub::figures)
    }

    /// Reads every meter.
    pub fn read(&self) -> io::Result<Reading> {
        Ok(Reading {
            at: Instant::now(),
            target: self.target.usage()?,
            swarm_cpu: usage::own_threads("swarm-"),
            pool_cpu: usage::own_threads("pool-stub"),
            acknowledged: self.swarm.counts().accepted,
            forwarded: self.pool_figures().map_or(0, |pool| pool.received),
        })
    }

    /// Waits for a condition, or fails with what was waited for. Returns how long it took.
    pub fn wait(&self, limit: Duration, what: &str, is_met: impl Fn() -> bool) -> io::Result<Duration> {
        let started = Instant::now();
        while !is_met() {
            if started.elapsed() > limit {
                let counts = self.swarm.counts();
                return Err(self.target.failed(&format!("gave up waiting for {what}: {counts:?}")));
            }
            sleep(LOOK);
        }
        Ok(started.elapsed())
    }
}
