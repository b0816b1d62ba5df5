//! The accounts as the record sink has them: what happened since the process started.
//!
//! The sink is asked at most once a second, however many ask here.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use accounting::{Level, Sums, Verdict};
use stratum::{DeviceId, Now};
use tokio::sync::Mutex;

use super::{
    Answer, Block, Device, Event, Fleet, Job, Known, Ledger, Overview, Period, Point, PowerReading, Rate,
    Rates, Span, Subject, Unanswered, Upstream, View,
};
use crate::clock::Clock;
use crate::http::Sources;
use crate::sink::{self, DeviceSummary, RateEstimate, Record, SinkEnded};

/// How old figures may be. A copy of a fleet of twenty thousand costs the sink some milliseconds, and no page
/// changes faster than once a second.
pub(crate) const MAX_AGE: Duration = Duration::from_secs(1);

/// A [`View`] over a record sink.
pub struct RecordedView {
    sources: Sources,
    started: Now,
    /// The latest answers. The lock is held while the sink is asked, so that all who come meanwhile share one answer.
    overview: Mutex<Cached<Overview>>,
    fleet: Mutex<Cached<Fleet>>,
    blocks: Mutex<Cached<Vec<Block>>>,
}

type Cached<T> = Option<(Duration, Arc<T>)>;

impl RecordedView {
    /// Reads from these sources.
    pub fn new(sources: Sources) -> Self {
        let started = sources.clock.now();
        RecordedView {
            sources,
            started,
            overview: Mutex::default(),
            fleet: Mutex::default(),
            blocks: Mutex::default(),
        }
    }

    fn overview_of(&self, overview: sink::Overview, now: Now) -> Overview {
        let upstreams = (self.sources.status)().upstreams;
        let upstreams = upstreams.into_iter().enumerate().map(|(id, upstream)| {
            let known = overview.totals.upstreams.iter().find(|(known, _)| usize::from(known.0) == id);
            Upstream {
                name: upstream.name.into(),
                account: upstream.account,
                is_live: upstream.is_live,
                answers: known.map(|(_, sums)| sums.clone()).unwrap_or_default(),
            }
        });
        Overview {
            taken_us: micros(now),
            since_us: micros(self.started),
            started_us: micros(self.started),
            upstreams: upstreams.collect(),
            totals: overview.totals,
            rates: rates(&overview.hash_rate_1m, &overview.hash_rate_10m),
            devices: overview.devices,
            ..Overview::default()
        }
    }

    async fn ask_blocks(&self) -> Result<Vec<Block>, Unanswered> {
        let recent = self.sources.sink.recent().await?;
        let fleet = self.fleet().await?;
        let names: HashMap<DeviceId, &Arc<str>> = fleet.devices.iter().map(|d| (d.id, &d.name)).collect();
        let blocks = recent.iter().rev().filter_map(|record| match record {
            Record::Share(share) if share.verdict == Verdict::BlockFound => Some(share),
            _ => None,
        });
        Ok(blocks
            .map(|share| Block {
                found_us: micros(share.judged),
                device: share.device.and_then(|id| names.get(&id)).map(|name| Arc::clone(name)),
                upstream: share
                    .upstream
                    .and_then(|id| fleet.overview.upstreams.get(usize::from(id.0)))
                    .map(|upstream| Arc::clone(&upstream.name)),
                hash: None,
                height: None,
                difficulty: share.difficulty.map(|difficulty| difficulty.0),
                value_sats: None,
            })
            .collect())
    }
}

impl From<SinkEnded> for Unanswered {
    fn from(_: SinkEnded) -> Self {
        Unanswered::Closed
    }
}

impl View for RecordedView {
    fn overview(&self) -> Answer<'_, Arc<Overview>> {
        Box::pin(cached(&self.overview, self.sources.clock, async || {
            let now = self.sources.clock.now();
            Ok(self.overview_of(self.sources.sink.overview(now).await?, now))
        }))
    }

    fn fleet(&self) -> Answer<'_, Arc<Fleet>> {
        Box::pin(cached(&self.fleet, self.sources.clock, async || {
            let now = self.sources.clock.now();
            let sink::Snapshot { totals, devices, hash_rate_1m, hash_rate_10m, .. } =
                self.sources.sink.snapshot(now).await?;
            let overview = sink::Overview { totals, devices: devices.len(), hash_rate_1m, hash_rate_10m };
            let overview = self.overview_of(overview, now);
            let devices = devices.into_iter().map(device).collect();
            Ok(Fleet { overview, devices, has_answers_by_device: false })
        }))
    }

    fn period(&self, _: Span) -> Answer<'_, Period> {
        Box::pin(async { Err(Unanswered::NoLedger) })
    }

    fn points(&self, _: Subject, _: Level, _: Span) -> Answer<'_, Vec<Point>> {
        Box::pin(async { Err(Unanswered::NoLedger) })
    }

    fn jobs(&self) -> Answer<'_, Vec<Job>> {
        let jobs = (self.sources.jobs)();
        Box::pin(async { Ok(jobs) })
    }

    fn blocks(&self, limit: usize) -> Answer<'_, Known<Block>> {
        Box::pin(async move {
            let blocks = cached(&self.blocks, self.sources.clock, || self.ask_blocks()).await?;
            let found = self.overview().await?.totals.shares.blocks;
            let is_complete = blocks.len() as u64 >= found && blocks.len() <= limit;
            Ok(Known { items: blocks.iter().take(limit).cloned().collect(), is_complete })
        })
    }

    fn events(&self, _: usize, _: Option<u64>) -> Answer<'_, Known<Event>> {
        Box::pin(async { Ok(Known { items: Vec::new(), is_complete: false }) })
    }

    fn ledger(&self) -> Answer<'_, Ledger> {
        Box::pin(async {
            let records_without_detail = self.overview().await?.totals.folded;
            Ok(Ledger { records_without_detail, ..Ledger::default() })
        })
    }

    fn set_power(&self, _: Vec<PowerReading>) -> Answer<'_, ()> {
        Box::pin(async { Err(Unanswered::NoLedger) })
    }
}

/// The value in the cache while it is young, and else what `ask` gives.
async fn cached<T>(
    cache: &Mutex<Cached<T>>,
    clock: Clock,
    ask: impl AsyncFnOnce() -> Result<T, Unanswered>,
) -> Result<Arc<T>, Unanswered> {
    let mut cache = cache.lock().await;
    let now = clock.now().monotonic;
    if let Some((taken, value)) = &*cache
        && now.saturating_sub(*taken) < MAX_AGE
    {
        return Ok(Arc::clone(value));
    }
    let value = Arc::new(ask().await?);
    *cache = Some((now, Arc::clone(&value)));
    Ok(value)
}

fn device(summary: DeviceSummary) -> Device {
    Device {
        id: summary.id,
        name: summary.name.unwrap_or_else(|| format!("(device {})", summary.id.0).into()),
        groups: Vec::new(),
        address: None,
        user_agent: None,
        protocol: None,
        first_seen_us: micros(summary.first_seen),
        last_seen_us: micros(summary.last_seen),
        last_share_us: summary.last_share.map(micros),
        best_difficulty: summary.best_difficulty.map(|difficulty| difficulty.0),
        sums: Sums { shares: summary.shares, ..Sums::default() },
        power_w: None,
        rates: rates(&summary.hash_rate_1m, &summary.hash_rate_10m),
    }
}

fn rates(one_minute: &Option<RateEstimate>, ten_minutes: &Option<RateEstimate>) -> Rates {
    let rate = |estimate: &Option<RateEstimate>| {
        estimate.map(|estimate| Rate {
            hash_rate_hs: estimate.rate.0,
            window_seconds: estimate.window.as_secs_f64(),
            uncertainty: estimate.uncertainty,
        })
    };
    Rates { accepted: [rate(one_minute), rate(ten_minutes), None, None], ..Rates::default() }
}

fn micros(now: Now) -> u64 {
    u64::try_from(now.utc.as_micros()).unwrap_or(u64::MAX)
}
