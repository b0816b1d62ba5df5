//! What can be measured: each scenario sets a stage, plays on it, and reports.

use std::io;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::readers::{self, Readers};
use crate::report::{
    Blocks, Connections, Latency, ReaderCount, ReaderReport, Report, Shares, Slice, Verified,
};
use crate::stage::{BlockTimes, Reading, Stage, StageOptions};
use crate::swarm::{Class, Pace};
use crate::target::{Mode, TargetKind};

/// How long miners mine before anything is measured.
const WARM_UP: Duration = Duration::from_secs(3);

/// How many seconds longer that is at most where miners have few shares.
const MAX_WARM_UP: f64 = 60.0;

/// How long a target with idle miners is left alone, so that its memory has settled.
const SETTLE: Duration = Duration::from_secs(5);

/// How long the pool waits for accepted shares after the miners have stopped.
const DRAIN: Duration = Duration::from_secs(30);

/// How long the pool may receive nothing until what is missing counts as never forwarded.
const STALLED: Duration = Duration::from_secs(5);

/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// How long a job is known before its block, as pools send the next one ahead.
const AHEAD: Duration = Duration::from_millis(500);

/// How long idle miners mine so that the accounting state of their devices counts as memory: at
/// [`SETTLING_IN_RATE`] all but one in four hundred have a share.
const SETTLING_IN: Duration = Duration::from_secs(12);

/// Shares a second of each of them.
const SETTLING_IN_RATE: f64 = 0.5;

/// Shares of a flooding miner that wait for their answer.
const FLOOD_OUTSTANDING: usize = 256;

/// Blocks in each half of the flood.
const FLOOD_BLOCKS: usize = 5;

/// The name of the swarm's first miner, which readers ask for.
const FIRST_DEVICE: &str = "farm.m000000";

/// What to play.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Scenario {
    /// Every miner submits as soon as one of its outstanding shares is answered
    Shares,
    /// All miners together submit a given number of shares a second by chance, however many they are
    Steady,
    /// Idle miners, and new blocks
    Fanout,
    /// All miners connect as fast as they can, and then idle
    Connect,
    /// Every miner submits eight shares a minute by chance, with a new block every ten seconds
    Farm,
    /// Every miner submits one share a second by chance; then some of them flood
    Flood,
    /// As steady, in slices without and with readers of the API in turn
    Readers,
}

/// How to play it.
#[derive(Clone, Debug, clap::Args)]
pub struct RunOptions {
    /// What to play
    #[arg(long, value_enum)]
    pub scenario: Scenario,
    /// What to measure
    #[arg(long, value_enum)]
    pub target: TargetKind,
    /// How a proxy opens channels
    #[arg(long, value_enum, default_value = "aggregated")]
    pub mode: Mode,
    /// Miners, those that flood among them
    #[arg(long, default_value_t = 1000)]
    pub miners: usize,
    /// Shares that each miner has outstanding (shares)
    #[arg(long, default_value_t = 1)]
    pub outstanding: usize,
    /// Shares a second of all miners together (steady, readers)
    #[arg(long, default_value_t = 6000)]
    pub rate: u32,
    /// Seconds that are measured (shares, steady, farm, flood); of each slice (readers)
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// New blocks (fanout)
    #[arg(long, default_value_t = 20)]
    pub blocks: usize,
    /// Seconds from one block to the next (fanout)
    #[arg(long, default_value_t = 1.5)]
    pub block_interval: f64,
    /// Miners that flood (flood)
    #[arg(long, default_value_t = 1)]
    pub flooders: usize,
    /// Readers of the API, every fourth of which follows live changes (readers)
    #[arg(long, default_value_t = 8)]
    pub readers: usize,
    /// Milliseconds in which each of the others asks once (readers)
    #[arg(long, default_value_t = 200)]
    pub reader_pace_ms: u64,
    /// Pairs of slices, one without and one with readers (readers)
    #[arg(long, default_value_t = 5)]
    pub slices: usize,
    /// The difficulty of shares is two to the power of this: one hash in 2^(32 + EXPONENT) is a share
    #[arg(long, default_value_t = -28, allow_hyphen_values = true, value_parser = clap::value_parser!(i32).range(-32..=0))]
    pub exponent: i32,
    /// The pool hashes every share, and looks for duplicates
    #[arg(long)]
    pub verify: bool,
    /// The pool puts all channels into one group with `SetGroupChannel`, and sends jobs to the group instead of to
    /// each channel. Figures per device are taken without it
    #[arg(long)]
    pub group_channels: bool,
    /// Threads of the swarm
    #[arg(long, default_value = "1")]
    pub swarm_threads: NonZeroUsize,
    /// Threads of a floor
    #[arg(long, default_value = "2")]
    pub floor_threads: NonZeroUsize,
    /// The target's program, where it is not the usual one
    #[arg(long)]
    pub binary: Option<PathBuf>,
}

/// Plays a scenario to its end.
pub fn run(options: &RunOptions) -> io::Result<Report> {
    let flooders = if options.scenario == Scenario::Flood { options.flooders.min(options.miners) } else { 0 };
    let mut stage = Stage::set(&StageOptions {
        kind: options.target,
        mode: options.mode,
        binary: options.binary.clone(),
        miners: options.miners,
        flooders,
        swarm_threads: options.swarm_threads,
        floor_threads: options.floor_threads,
        difficulty_exponent: options.exponent,
        grouped: options.group_channels,
        verify: options.verify,
        // Where it costs nothing that is measured.
        with_api: options.target == TargetKind::Checkweigh
            && matches!(options.scenario, Scenario::Shares | Scenario::Steady | Scenario::Readers),
    })?;
    let before = stage.read()?;
    let connect_time = stage.connect()?;
    eprintln!("{} miners connected in {:.3} s", options.miners, connect_time.as_secs_f64());
    let connected = stage.read()?;
    let mut report = Report {
        scenario: format!("{:?}", options.scenario).to_lowercase(),
        target: options.target,
        mode: stage.pool.is_some().then_some(options.mode),
        miners: options.miners,
        lost_connections: 0,
        records_folded: None,
        connect_seconds: connect_time.as_secs_f64(),
        shares: None,
        shares_before_flood: None,
        readers: None,
        blocks: None,
        blocks_before_flood: None,
        connections: None,
        verified: None,
    };
    match options.scenario {
        Scenario::Shares => report.shares = Some(shares(&mut stage, options)?),
        Scenario::Steady => report.shares = Some(steady(&mut stage, options)?),
        Scenario::Fanout => report.blocks = Some(fanout(&mut stage, options)?),
        Scenario::Connect => report.connections = Some(connections(&mut stage, &before, &connected)?),
        Scenario::Farm => farm(&mut stage, options, &mut report)?,
        Scenario::Readers => report.readers = Some(with_readers(&mut stage, options)?),
        Scenario::Flood => flood(&mut stage, options, &mut report)?,
    }
    report.lost_connections = stage.swarm.counts().lost;
    report.records_folded = stage.target.api.map(readers::records_folded).transpose()?;
    report.verified = stage.pool_figures().filter(|_| options.verify).map(|pool| Verified {
        shares: pool.received,
        bad: pool.bad,
        duplicates: pool.duplicates,
        without_channel: pool.without_channel,
    });
    Ok(report)
}

fn shares(stage: &mut Stage, options: &RunOptions) -> io::Result<Shares> {
    let before = stage.read()?;
    let pace = Pace::Closed { outstanding: options.outstanding };
    stage.swarm.set_pace(Class::Ordinary, pace)?;
    sleep(WARM_UP);
    let mut shares = measure(stage, |_| {
        sleep(Duration::from_secs(options.seconds));
        Ok(())
    })?;
    shares.outstanding = Some(options.outstanding);
    drain(stage, &mut shares)?;
    if stage.pool.is_some() {
        // The shares that waited longest arrive only now, and count too.
        shares.forwarding = Some(Latency::of(&stage.in_flight.forwarding()));
    }
    // A target that answers first and forwards later has not paid for its shares yet when the time is over.
    shares.cpu_us_per_share = Shares::cost(&before, &stage.read()?, stage.pool.is_some());
    Ok(shares)
}

/// The same number of shares a second from any number of miners, so that only the number of miners differs.
fn steady(stage: &mut Stage, options: &RunOptions) -> io::Result<Shares> {
    let pace = Pace::Poisson { rate: f64::from(options.rate) / options.miners as f64 };
    stage.swarm.set_pace(Class::Ordinary, pace)?;
    sleep(WARM_UP);
    // A miner's first share costs more than the others. After three shares each on average, only one miner in
    // twenty has had none.
    sleep(Duration::from_secs_f64((3.0 * options.miners as f64 / f64::from(options.rate)).min(MAX_WARM_UP)));
    measure(stage, |_| {
        sleep(Duration::from_secs(options.seconds));
        Ok(())
    })
}

/// Slices without and with readers in turn, so that whatever else the machine does hits both alike.
fn with_readers(stage: &mut Stage, options: &RunOptions) -> io::Result<ReaderReport> {
    let api = stage.target.api.ok_or_else(|| io::Error::other("only this project's proxy has an API"))?;
    let pace = Duration::from_millis(options.reader_pace_ms);
    // A warm-up as that of the other scenario, and as long as it measures.
    steady(stage, options)?;
    let mut report = ReaderCount::default();
    for _ in 0..options.slices {
        report.without.add(slice(stage, options)?);
        let readers = Readers::start(api, options.readers, pace, FIRST_DEVICE)?;
        report.with.add(slice(stage, options)?);
        report.waited(readers.end()?);
    }
    Ok(report.report(options.readers))
}

/// What was measured for a time: the swarm's figures, and the readings before and after.
fn slice(stage: &mut Stage, options: &RunOptions) -> io::Result<Slice> {
    stage.swarm.reset()?;
    stage.in_flight.reset();
    let before = stage.read()?;
    sleep(Duration::from_secs(options.seconds));
    let after = stage.read()?;
    let answered = stage.swarm.figures()?.ordinary.answered;
    Ok(Slice { before, after, answered, forwarding: stage.in_flight.forwarding() })
}

/// Measures what is submitted while `play` goes on.
fn measure(stage: &mut Stage, play: impl FnOnce(&mut Stage) -> io::Result<()>) -> io::Result<Shares> {
    stage.swarm.reset()?;
    stage.in_flight.reset();
    let before = stage.read()?;
    play(stage)?;
    let after = stage.read()?;
    let figures = stage.swarm.figures()?;
    let shares = Shares::between(&before, &after, &figures.ordinary);
    Ok(match stage.pool {
        Some(_) => shares.with_pool(&before, &after, &stage.in_flight.forwarding()),
        None => shares,
    })
}

/// Stops mining, and waits until the pool has what was accepted.
fn drain(stage: &Stage, shares: &mut Shares) -> io::Result<()> {
    stage.swarm.set_pace(Class::Ordinary, Pace::Idle)?;
    stage.swarm.set_pace(Class::Flooder, Pace::Idle)?;
    let started = Instant::now();
    let is_answered = || {
        let counts = stage.swarm.counts();
        // A share of a lost connection is never answered.
        counts.accepted + counts.refused >= counts.submitted || counts.lost > 0
    };
    if stage.wait(DRAIN, "the last answers", is_answered).is_err() {
        eprintln!("some shares were not answered within {DRAIN:?}");
    }
    if stage.pool.is_none() {
        return Ok(());
    }
    let behind = || {
        let forwarded = stage.pool_figures().map_or(0, |pool| pool.received);
        stage.swarm.counts().accepted.saturating_sub(forwarded)
    };
    shares.backlog = behind();
    let (mut left, mut progress) = (shares.backlog, Instant::now());
    while left > 0 && started.elapsed() < DRAIN && progress.elapsed() < STALLED {
        sleep(LOOK);
        let now_left = behind();
        if now_left != left {
            (left, progress) = (now_left, Instant::now());
        }
    }
    shares.never_forwarded = left;
    if left == 0 {
        shares.drain_seconds = Some(started.elapsed().as_secs_f64());
    } else {
        eprintln!("{left} accepted shares never reached the pool");
    }
    Ok(())
}

fn fanout(stage: &mut Stage, options: &RunOptions) -> io::Result<Blocks> {
    // What the target does when nothing happens is not the price of a block.
    let idle = [stage.read()?, {
        sleep(SETTLE);
        stage.read()?
    }];
    let idle_cpu = cpu_between(&idle[0], &idle[1]).as_secs_f64() / (idle[1].at - idle[0].at).as_secs_f64();
    let interval = Duration::from_secs_f64(options.block_interval);
    stage.swarm.reset()?;
    let before = stage.read()?;
    let times = blocks(stage, options.blocks, interval)?;
    let after = stage.read()?;
    let seconds = (after.at - before.at).as_secs_f64();
    let cpu = cpu_between(&before, &after).as_secs_f64() - idle_cpu * seconds;
    let figures = stage.swarm.figures()?;
    let mut blocks = Blocks::of(&times, &figures.ordinary.block_arrived);
    blocks.cpu_us_per_miner = Some(cpu * 1e6 / (options.miners * options.blocks) as f64);
    Ok(blocks)
}

/// Starts blocks, each an interval after the one before or when that has reached everybody.
fn blocks(stage: &mut Stage, count: usize, interval: Duration) -> io::Result<Vec<BlockTimes>> {
    let mut times = Vec::new();
    for _ in 0..count {
        let begun = Instant::now();
        stage.prepare_block()?;
        sleep(AHEAD.min(interval / 2));
        let block = stage.new_block()?;
        eprintln!("a block reached the last miner after {:.1} ms", block.last.as_secs_f64() * 1e3);
        times.push(block);
        sleep(interval.saturating_sub(begun.elapsed()));
    }
    Ok(times)
}

fn connections(stage: &mut Stage, before: &Reading, connected: &Reading) -> io::Result<Connections> {
    sleep(SETTLE);
    let after = stage.read()?;
    let idle = cpu_between(connected, &after).as_secs_f64() / (after.at - connected.at).as_secs_f64();
    // What is kept of a device once it has mined is a part of what an idle miner takes.
    stage.swarm.set_pace(Class::Ordinary, Pace::Poisson { rate: SETTLING_IN_RATE })?;
    sleep(SETTLING_IN);
    stage.swarm.set_pace(Class::Ordinary, Pace::Idle)?;
    sleep(SETTLE);
    let mined = stage.read()?;
    let miners = stage.swarm.miners as f64;
    let growth = |after: u64, before: u64| (after as f64 - before as f64) * 1024.0 / miners;
    Ok(Connections {
        cpu_us_per_connection: cpu_between(before, connected).as_secs_f64() * 1e6 / miners,
        resident_kib_before: before.target.resident_kib,
        resident_kib_after: after.target.resident_kib,
        resident_bytes_per_miner: growth(after.target.resident_kib, before.target.resident_kib),
        anonymous_bytes_per_miner: growth(after.target.anonymous_kib, before.target.anonymous_kib),
        resident_bytes_per_miner_after_shares: growth(mined.target.resident_kib, before.target.resident_kib),
        shares_mined: mined.acknowledged,
        idle_cpu_percent: 100.0 * idle,
    })
}

fn farm(stage: &mut Stage, options: &RunOptions, report: &mut Report) -> io::Result<()> {
    const SHARES_PER_SECOND: f64 = 8.0 / 60.0;
    const BLOCK_INTERVAL: Duration = Duration::from_secs(10);
    let count = (options.seconds / BLOCK_INTERVAL.as_secs()).max(1) as usize;
    stage.swarm.set_pace(Class::Ordinary, Pace::Poisson { rate: SHARES_PER_SECOND })?;
    sleep(WARM_UP);
    let (shares, blocks) = shares_and_blocks(stage, count, BLOCK_INTERVAL)?;
    report.shares = Some(shares);
    report.blocks = Some(blocks);
    Ok(())
}

fn flood(stage: &mut Stage, options: &RunOptions, report: &mut Report) -> io::Result<()> {
    let interval = Duration::from_secs(options.seconds) / FLOOD_BLOCKS as u32;
    stage.swarm.set_pace(Class::Ordinary, Pace::Poisson { rate: 1.0 })?;
    sleep(WARM_UP);
    let (before, blocks_before) = shares_and_blocks(stage, FLOOD_BLOCKS, interval)?;
    eprintln!(
        "without a flood: the last miner has a block after {:.1} ms",
        blocks_before.last_miner_ms_median
    );
    stage.swarm.set_pace(Class::Flooder, Pace::Closed { outstanding: FLOOD_OUTSTANDING })?;
    sleep(WARM_UP);
    let (mut during, blocks) = shares_and_blocks(stage, FLOOD_BLOCKS, interval)?;
    drain(stage, &mut during)?;
    report.shares_before_flood = Some(before);
    report.shares = Some(during);
    report.blocks_before_flood = Some(blocks_before);
    report.blocks = Some(blocks);
    Ok(())
}

fn shares_and_blocks(stage: &mut Stage, count: usize, interval: Duration) -> io::Result<(Shares, Blocks)> {
    let mut times = Vec::new();
    let shares = measure(stage, |stage| {
        times = blocks(stage, count, interval)?;
        Ok(())
    })?;
    let figures = stage.swarm.figures()?;
    Ok((shares, Blocks::of(&times, &figures.ordinary.block_arrived)))
}

fn cpu_between(before: &Reading, after: &Reading) -> Duration {
    after.target.cpu.saturating_sub(before.target.cpu)
}
