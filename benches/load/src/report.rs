//! What a run measured, as one JSON object. Keys say their units.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::in_flight::latencies;
use crate::readers::Waited;
use crate::stage::{BlockTimes, Reading};
use crate::swarm::ClassFigures;
use crate::target::{Mode, TargetKind};

/// One run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The scenario.
    pub scenario: String,
    /// What was measured.
    pub target: TargetKind,
    /// How the proxy opened channels; absent for floors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Miners, those that flood among them.
    pub miners: usize,
    /// Miners whose connection failed or ended.
    pub lost_connections: u64,
    /// Records of which the target, one of ours, kept sums alone, because they came too fast.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub records_folded: Option<u64>,
    /// From the first connection begun to the last miner's first job, in seconds.
    pub connect_seconds: f64,
    /// Shares over a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shares: Option<Shares>,
    /// The same without those that flood, measured before them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shares_before_flood: Option<Shares>,
    /// Shares without and with readers of the API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readers: Option<ReaderReport>,
    /// New blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocks: Option<Blocks>,
    /// The same before there were miners that flood.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocks_before_flood: Option<Blocks>,
    /// What connections cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<Connections>,
    /// What the pool found wrong, where it looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified: Option<Verified>,
}

/// Shares over a time.
#[derive(Clone, Debug, Serialize)]
pub struct Shares {
    /// How long was measured.
    pub seconds: f64,
    /// Shares outstanding for each miner, where they were as fast as they could.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outstanding: Option<usize>,
    /// Shares that were accepted, a second.
    pub acknowledged_per_second: f64,
    /// Shares that the pool received, a second; absent for floors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forwarded_per_second: Option<f64>,
    /// Processor time of the target for each share that was both accepted and forwarded, whichever were fewer;
    /// for floors, accepted. In microseconds. With all miners as fast as they can, from their first share until
    /// the pool has the last one: forwarding later does not make a share cheaper or dearer. At a given pace, over
    /// the measured time.
    pub cpu_us_per_share: f64,
    /// Processors that the target kept busy, in per cent of one.
    pub cpu_percent: f64,
    /// The same of the swarm: near 100 for each of its threads, it and not the target was measured.
    pub swarm_cpu_percent: f64,
    /// The same of the pool stub.
    pub pool_cpu_percent: f64,
    /// From a submission to its answer.
    pub answered: Latency,
    /// From a submission to its arrival at the pool; absent for floors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forwarding: Option<Latency>,
    /// Refused shares that had crossed with a new block.
    pub stale_crossing: u64,
    /// Other refused shares by reason.
    pub refused: BTreeMap<String, u64>,
    /// Shares that were accepted and had not reached the pool when mining stopped.
    pub backlog: u64,
    /// Those of them that never did: the target said yes to a miner and kept the share from the pool.
    pub never_forwarded: u64,
    /// How long it took until they had, in seconds; absent when some never did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_seconds: Option<f64>,
    /// Memory of the target at the end, in KiB.
    pub resident_kib: u64,
}

/// Shares without and with readers of the API, in slices that took turns.
#[derive(Clone, Debug, Serialize)]
pub struct ReaderReport {
    /// Readers.
    pub readers: usize,
    /// Without them.
    pub without: SliceReport,
    /// With them.
    pub with: SliceReport,
    /// From a submission to its answer: what readers add to the 99th percentile, in per cent of it.
    pub answered_p99_added_percent: f64,
    /// The same to the arrival at the pool.
    pub forwarding_p99_added_percent: f64,
    /// What readers waited for, by path; of live changes, for the next event.
    pub waited: BTreeMap<String, Latency>,
}

/// All slices of one kind.
#[derive(Clone, Debug, Serialize)]
pub struct SliceReport {
    /// How long was measured.
    pub seconds: f64,
    /// Shares that were accepted, a second.
    pub acknowledged_per_second: f64,
    /// Processors that the target kept busy, in per cent of one.
    pub cpu_percent: f64,
    /// From a submission to its answer, all slices together.
    pub answered: Latency,
    /// From a submission to its arrival at the pool, all slices together.
    pub forwarding: Latency,
    /// The 99th percentile of the answers of each slice, in microseconds.
    pub answered_p99_us_by_slice: Vec<f64>,
}

/// What was measured for a time.
#[derive(Clone, Debug)]
pub struct Slice {
    /// Before.
    pub before: Reading,
    /// After.
    pub after: Reading,
    /// From a submission to its answer, in nanoseconds.
    pub answered: Histogram<u64>,
    /// From a submission to its arrival at the pool, in nanoseconds.
    pub forwarding: Histogram<u64>,
}

/// Slices as they come.
#[derive(Debug, Default)]
pub struct ReaderCount {
    /// Without readers.
    pub without: Slices,
    /// With them.
    pub with: Slices,
    waited: Waited,
}

/// Slices of one kind, added up.
#[derive(Debug, Default)]
pub struct Slices {
    seconds: f64,
    acknowledged: u64,
    cpu: Duration,
    histograms: Option<[Histogram<u64>; 2]>,
    p99s: Vec<f64>,
}

impl Slices {
    /// Adds one.
    pub fn add(&mut self, slice: Slice) {
        self.seconds += (slice.after.at - slice.before.at).as_secs_f64();
        self.acknowledged += slice.after.acknowledged - slice.before.acknowledged;
        self.cpu += slice.after.target.cpu - slice.before.target.cpu;
        self.p99s.push(Latency::of(&slice.answered).p99_us);
        match &mut self.histograms {
            None => self.histograms = Some([slice.answered, slice.forwarding]),
            Some([answered, forwarding]) => {
                answered.add(&slice.answered).expect("all histograms have the same bounds");
                forwarding.add(&slice.forwarding).expect("all histograms have the same bounds");
            }
        }
    }

    fn report(self) -> SliceReport {
        let [answered, forwarding] = self.histograms.unwrap_or_else(|| [latencies(), latencies()]);
        SliceReport {
            seconds: self.seconds,
            acknowledged_per_second: self.acknowledged as f64 / self.seconds,
            cpu_percent: 100.0 * self.cpu.as_secs_f64() / self.seconds,
            answered: Latency::of(&answered),
            forwarding: Latency::of(&forwarding),
            answered_p99_us_by_slice: self.p99s,
        }
    }
}

impl ReaderCount {
    /// Adds what readers waited for.
    pub fn waited(&mut self, waited: Waited) {
        for (path, more) in waited {
            let sum = self.waited.entry(path).or_insert_with(latencies);
            sum.add(&more).expect("all histograms have the same bounds");
        }
    }

    /// All of it.
    pub fn report(self, readers: usize) -> ReaderReport {
        let (without, with) = (self.without.report(), self.with.report());
        let added = |of: fn(&SliceReport) -> &Latency| 100.0 * (of(&with).p99_us / of(&without).p99_us - 1.0);
        ReaderReport {
            readers,
            answered_p99_added_percent: added(|slices| &slices.answered),
            forwarding_p99_added_percent: added(|slices| &slices.forwarding),
            waited: self.waited.iter().map(|(path, waited)| (path.clone(), Latency::of(waited))).collect(),
            without,
            with,
        }
    }
}

/// New blocks.
#[derive(Clone, Debug, Serialize)]
pub struct Blocks {
    /// How many.
    pub count: usize,
    /// Processor time of the target for each miner and block, less what it uses when there are none, in
    /// microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_us_per_miner: Option<f64>,
    /// From the block's first byte written by the pool (or the floor's order) to the first miner, median over the
    /// blocks, in milliseconds.
    pub first_miner_ms_median: f64,
    /// To the last miner.
    pub last_miner_ms_median: f64,
    /// To the last miner, the slowest block.
    pub last_miner_ms_max: f64,
    /// To each ordinary miner.
    pub miner: Latency,
    /// Miners that never had a block, over all blocks.
    pub missing: usize,
}

/// What connections cost.
#[derive(Clone, Debug, Serialize)]
pub struct Connections {
    /// Processor time of the target for each connection up to its first job, in microseconds.
    pub cpu_us_per_connection: f64,
    /// Memory of the target before, in KiB.
    pub resident_kib_before: u64,
    /// Memory of the target with all miners idle that never mined, in KiB.
    pub resident_kib_after: u64,
    /// The growth for each miner, in bytes.
    pub resident_bytes_per_miner: f64,
    /// The growth of memory that is no file's for each miner, in bytes.
    pub anonymous_bytes_per_miner: f64,
    /// The growth for each miner when nearly all have mined and are idle again, with the accounting state of their
    /// devices, in bytes.
    pub resident_bytes_per_miner_after_shares: f64,
    /// The shares that they mined between.
    pub shares_mined: u64,
    /// Processors that the target keeps busy with idle miners, in per cent of one.
    pub idle_cpu_percent: f64,
}

/// What the pool found wrong.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Verified {
    /// Shares that were hashed.
    pub shares: u64,
    /// Those that missed their target, or were for no job.
    pub bad: u64,
    /// Those that had come before.
    pub duplicates: u64,
    /// Those for channels that were not open.
    pub without_channel: u64,
}

/// A distribution of times, in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    /// How many were measured.
    pub count: u64,
    /// Half were faster.
    pub p50_us: f64,
    /// One in a hundred was slower.
    pub p99_us: f64,
    /// The slowest.
    pub max_us: f64,
}

impl Latency {
    /// Of a histogram of nanoseconds.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let us = |nanoseconds: u64| nanoseconds as f64 / 1e3;
        Latency {
            count: histogram.len(),
            p50_us: us(histogram.value_at_quantile(0.5)),
            p99_us: us(histogram.value_at_quantile(0.99)),
            max_us: us(histogram.max()),
        }
    }
}

impl Shares {
    /// What happened between two readings.
    pub fn between(before: &Reading, after: &Reading, figures: &ClassFigures) -> Self {
        let time = after.at - before.at;
        let seconds = time.as_secs_f64();
        let acknowledged = after.acknowledged - before.acknowledged;
        let cpu = after.target.cpu - before.target.cpu;
        let percent = |cpu: Duration| 100.0 * cpu.as_secs_f64() / seconds;
        Shares {
            seconds,
            outstanding: None,
            acknowledged_per_second: acknowledged as f64 / seconds,
            forwarded_per_second: None,
            cpu_us_per_share: Shares::cost(before, after, false),
            cpu_percent: percent(cpu),
            swarm_cpu_percent: percent(after.swarm_cpu - before.swarm_cpu),
            pool_cpu_percent: percent(after.pool_cpu - before.pool_cpu),
            answered: Latency::of(&figures.answered),
            forwarding: None,
            stale_crossing: figures.stale_crossing,
            refused: figures.refused.clone(),
            backlog: 0,
            never_forwarded: 0,
            drain_seconds: None,
            resident_kib: after.target.resident_kib,
        }
    }

    /// Processor time of the target for each share between two readings, in microseconds; not finite when there was
    /// none. Shares that must be forwarded count when they are.
    pub fn cost(before: &Reading, after: &Reading, is_forwarding: bool) -> f64 {
        let acknowledged = after.acknowledged - before.acknowledged;
        let forwarded = after.forwarded - before.forwarded;
        let counted = if is_forwarding { acknowledged.min(forwarded) } else { acknowledged };
        (after.target.cpu - before.target.cpu).as_secs_f64() * 1e6 / counted as f64
    }

    /// Adds what the pool received between the same readings.
    pub fn with_pool(mut self, before: &Reading, after: &Reading, forwarding: &Histogram<u64>) -> Self {
        let forwarded = after.forwarded - before.forwarded;
        self.forwarded_per_second = Some(forwarded as f64 / self.seconds);
        self.cpu_us_per_share = Shares::cost(before, after, true);
        self.forwarding = Some(Latency::of(forwarding));
        self
    }
}

impl Blocks {
    /// Of blocks, and of what each miner measured.
    pub fn of(times: &[BlockTimes], miner: &Histogram<u64>) -> Self {
        let milliseconds = |of: fn(&BlockTimes) -> Duration| -> Vec<f64> {
            times.iter().map(|times| of(times).as_secs_f64() * 1e3).collect()
        };
        let last = milliseconds(|times| times.last);
        Blocks {
            count: times.len(),
            cpu_us_per_miner: None,
            first_miner_ms_median: median(milliseconds(|times| times.first)),
            last_miner_ms_max: last.iter().copied().fold(0.0, f64::max),
            last_miner_ms_median: median(last),
            miner: Latency::of(miner),
            missing: times.iter().map(|times| times.missing).sum(),
        }
    }
}

/// The middle of some numbers, or the mean of the two in the middle; not a number when there are none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[odd / 2],
        even => f64::midpoint(values[even / 2 - 1], values[even / 2]),
    }
}
