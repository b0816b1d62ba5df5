//! The accounts as the record sink has them now, and as the ledger has them, where one is kept.
//!
//! The sink is asked at most once a second, and less often for a great fleet, however many ask here.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use accounting::cost::sats_per_hash;
use accounting::entry::PowerEntry;
use accounting::{BlockRow, DeviceMark, EventRow, Level, RatePair, Sums};
use stratum::{DeviceId, Now, UpstreamId};
use tokio::sync::Mutex;

use super::{
    Answer, AtStart, Block, Device, Event, Fleet, Group, Job, Known, Ledger, Names, Overview, Period, Point,
    PowerOf, PowerReading, Protocol, Rate, Rates, Span, Subject, Unanswered, Upstream, View,
};
use crate::clock::Clock;
use crate::http::Sources;
use crate::sink::{self, DeviceView, SinkEnded, Snapshot};

/// How old figures may be: no page changes faster than once a second.
pub(crate) const MAX_AGE: Duration = Duration::from_secs(1);

/// How many times as long as it took to take figures they are kept at least, so that readers, however many, take no
/// more than two per cent of a processor's time for them: a copy of twenty thousand devices takes some eighty
/// milliseconds.
const AGE_OF_COST: u32 = 50;

/// How old figures are at most, whatever they cost.
const LONGEST_AGE: Duration = Duration::from_secs(5);

/// A [`View`] over a record sink.
pub struct RecordedView {
    sources: Sources,
    started: Now,
    /// The latest answers. The lock is held while the sink is asked, so that all who come meanwhile share one answer.
    overview: Mutex<Cached<Overview>>,
    fleet: Mutex<Cached<Fleet>>,
    marks: Mutex<Cached<Vec<(DeviceId, DeviceMark)>>>,
    /// The names, and the version that they were when they were taken.
    names: Mutex<Option<(u64, Arc<Names>)>>,
    /// Made when it is first asked for: names of upstreams come with the first look at them.
    at_start: OnceLock<Arc<AtStart>>,
}

/// A value, and until when it serves.
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
            marks: Mutex::default(),
            names: Mutex::default(),
            at_start: OnceLock::new(),
        }
    }

    fn overview_of(&self, overview: sink::Overview, now: Now) -> Overview {
        let sink::Overview { totals, devices, fleet, groups, upstreams: summed, worth, .. } = overview;
        let sink::Overview { power_milliwatts, mut acks, mut refusals, worths, .. } = overview;
        let worth = worth.map(|worth| worth.sats_per_hash()).or_else(|| self.worth_of_jobs());
        let status = (self.sources.status)();
        let upstreams = status.upstreams.into_iter().enumerate().map(|(id, upstream)| {
            let id = UpstreamId(u16::try_from(id).unwrap_or(u16::MAX));
            let known = summed.iter().find(|(known, ..)| *known == id).map(|(.., view)| view);
            let own_worth = worths.get(&id).map(|worth| worth.sats_per_hash());
            Upstream {
                name: upstream.name.into(),
                account: upstream.account,
                is_live: upstream.is_live,
                standing: upstream.standing,
                sums: known.map(|view| view.sums.clone()).unwrap_or_default(),
                rates: known.map(|view| rates(&view.rates)).unwrap_or_default(),
                refused_by_code: refusals.remove(&id).unwrap_or_default(),
                sats_per_hash: own_worth.or(worth),
                acks: acks.remove(&id).unwrap_or_default(),
            }
        });
        let group_names = groups.iter().map(|(_, name, ..)| Arc::clone(name)).collect();
        let groups = groups.into_iter().map(|(_, name, devices, view)| {
            let rates = rates(&view.rates);
            Group { name, devices, sums: view.sums, rates }
        });
        let began = self.sources.history.as_ref().map(|history| history.began_us());
        Overview {
            taken_us: micros(now),
            since_us: began.unwrap_or(micros(self.started)),
            started_us: micros(self.started),
            upstreams: upstreams.collect(),
            switches: status.switches,
            declarations: status.declarations,
            totals,
            energy: fleet.sums.energy.clone(),
            power_w: power_milliwatts.map(|milliwatts| milliwatts as f64 / 1e3),
            rates: rates(&fleet.rates),
            devices,
            group_names,
            groups: groups.collect(),
            sats_per_terahash: worth.map(|sats| sats * 1e12),
        }
    }

    /// What a hash is worth by the job that miners work on: without a ledger, no job is recorded.
    fn worth_of_jobs(&self) -> Option<f64> {
        let worth = |job: &Job| Some(sats_per_hash(job.value_sats?, job.nbits?));
        (self.sources.jobs)().iter().find_map(worth)
    }

    async fn ask_fleet(&self) -> Result<Fleet, Unanswered> {
        let now = self.sources.clock.now();
        let Snapshot { overview, devices, .. } = self.sources.sink.snapshot(now).await?;
        let names: Vec<Arc<str>> = overview.groups.iter().map(|(_, name, ..)| Arc::clone(name)).collect();
        let shapes = move || devices.into_iter().map(|view| device(view, &names)).collect();
        // Not where shares are awaited: a great fleet takes a while.
        let devices = tokio::task::spawn_blocking(shapes).await.map_err(|_| Unanswered::Closed)?;
        Ok(Fleet { overview: self.overview_of(overview, now), devices, has_answers_by_device: true })
    }

    /// The names, taken again only when one of them is new.
    async fn ask_names(&self) -> Result<Arc<Names>, Unanswered> {
        let mut names = self.names.lock().await;
        let version = self.sources.sink.names_version().await?;
        if let Some((known, names)) = &*names
            && *known == version
        {
            return Ok(Arc::clone(names));
        }
        let taken = self.sources.sink.names().await?;
        let taken = move || {
            let named = |id: DeviceId, name: Option<Arc<str>>| (id, name_of(id, name));
            Names::new(taken.into_iter().map(|(id, name)| named(id, name)).collect())
        };
        let taken = tokio::task::spawn_blocking(taken).await.map_err(|_| Unanswered::Closed)?;
        let taken = Arc::new(taken);
        // What came to be new meanwhile is in the next version.
        *names = Some((version, Arc::clone(&taken)));
        Ok(taken)
    }

    async fn ask_some(&self, devices: Vec<DeviceId>) -> Result<Fleet, Unanswered> {
        let now = self.sources.clock.now();
        let views = self.sources.sink.devices(now, &devices).await?;
        let overview = self.overview().await?;
        let groups: Vec<Arc<str>> = overview.group_names.clone();
        let devices = views.into_iter().map(|view| device(view, &groups)).collect();
        let overview = Overview { taken_us: micros(now), ..Overview::clone(&overview) };
        Ok(Fleet { overview, devices, has_answers_by_device: true })
    }

    /// The subject of this name, as the ledger knows it.
    async fn subject(&self, subject: &Subject) -> Result<accounting::Subject, Unanswered> {
        if *subject == Subject::Fleet {
            return Ok(accounting::Subject::Fleet);
        }
        let now = self.sources.clock.now();
        match subject {
            Subject::Fleet => Ok(accounting::Subject::Fleet),
            Subject::Device(name) => {
                let device = self.names().await?.device(name).ok_or(Unanswered::Unknown("device"))?;
                Ok(accounting::Subject::Device(device))
            }
            Subject::Group(name) => {
                let overview = self.sources.sink.overview(now).await?;
                let group = overview.groups.iter().find(|(_, known, ..)| **known == **name);
                group.map(|(id, ..)| accounting::Subject::Group(*id)).ok_or(Unanswered::Unknown("group"))
            }
            Subject::Upstream(name) => {
                let overview = self.overview().await?;
                let place = overview.upstreams.iter().position(|known| *known.name == **name);
                let id = place.and_then(|place| u16::try_from(place).ok());
                let id = id.ok_or(Unanswered::Unknown("upstream"))?;
                Ok(accounting::Subject::Upstream(stratum::UpstreamId(id)))
            }
        }
    }

    /// The latest blocks, those in memory before those on the disk, and whether they go back to the first.
    async fn ask_blocks(
        &self,
        limit: usize,
        before_us: Option<u64>,
    ) -> Result<(Vec<BlockRow>, bool), Unanswered> {
        let is_wanted = |row: &BlockRow| before_us.is_none_or(|before| row.found_us <= before);
        let recent = self.sources.sink.happened().await?.blocks;
        let mut rows: Vec<BlockRow> = recent.into_iter().rev().filter(is_wanted).take(limit).collect();
        if rows.len() < limit
            && rows.last().is_none_or(|row| row.number > 1)
            && let Some(history) = &self.sources.history
        {
            rows.extend(history.blocks(limit, before_us).await?);
        }
        Ok(latest(rows, limit, |row| (row.found_us, row.number)))
    }

    /// As [`RecordedView::ask_blocks`], for events.
    async fn ask_events(
        &self,
        limit: usize,
        before_us: Option<u64>,
    ) -> Result<(Vec<EventRow>, bool), Unanswered> {
        let is_wanted = |row: &EventRow| before_us.is_none_or(|before| row.event.at_us <= before);
        let recent = self.sources.sink.happened().await?.events;
        let mut rows: Vec<EventRow> = recent.into_iter().rev().filter(is_wanted).take(limit).collect();
        if rows.len() < limit
            && rows.last().is_none_or(|row| row.number > 1)
            && let Some(history) = &self.sources.history
        {
            rows.extend(history.events(limit, before_us).await?);
        }
        Ok(latest(rows, limit, |row| (row.event.at_us, row.number)))
    }
}

/// Rows that may come twice, latest first, at most `limit`; and whether they go back to the first one.
fn latest<T>(mut rows: Vec<T>, limit: usize, key: impl Fn(&T) -> (u64, u64)) -> (Vec<T>, bool) {
    rows.sort_by_key(|row| std::cmp::Reverse(key(row)));
    rows.dedup_by_key(|row| key(row).1);
    rows.truncate(limit);
    let has_first = rows.iter().any(|row| key(row).1 == 1);
    (rows, has_first)
}

fn block(row: BlockRow, overview: &Overview, names: &Names) -> Block {
    let upstream = row.upstream.and_then(|id| overview.upstreams.get(usize::from(id.0)));
    let hash = row.hash.map(|mut hash| {
        hash.reverse();
        hex::encode(hash)
    });
    Block {
        number: row.number,
        found_us: row.found_us,
        device: row.device.and_then(|id| names.of(id)).cloned(),
        upstream: upstream.map(|upstream| Arc::clone(&upstream.name)),
        hash,
        height: row.height,
        difficulty: row.difficulty,
        value_sats: row.value_sats,
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
        Box::pin(cached(&self.fleet, self.sources.clock, async || self.ask_fleet().await))
    }

    fn names(&self) -> Answer<'_, Arc<Names>> {
        Box::pin(self.ask_names())
    }

    fn some(&self, devices: Vec<DeviceId>) -> Answer<'_, Fleet> {
        Box::pin(self.ask_some(devices))
    }

    fn marks(&self) -> Answer<'_, Arc<Vec<(DeviceId, DeviceMark)>>> {
        Box::pin(cached(&self.marks, self.sources.clock, async || Ok(self.sources.sink.marks().await?)))
    }

    fn period(&self, span: Span) -> Answer<'_, Period> {
        Box::pin(async move {
            let history = self.sources.history.as_ref().ok_or(Unanswered::NoLedger)?;
            let devices = self.names().await?.iter().map(|(id, _)| id).collect();
            history.period(devices, span).await
        })
    }

    fn points(&self, subject: Subject, level: Level, span: Span) -> Answer<'_, Vec<Point>> {
        Box::pin(async move {
            let history = self.sources.history.as_ref().ok_or(Unanswered::NoLedger)?;
            history.points(self.subject(&subject).await?, level, span).await
        })
    }

    fn jobs(&self) -> Answer<'_, Vec<Job>> {
        let jobs = (self.sources.jobs)();
        Box::pin(async { Ok(jobs) })
    }

    fn sums(&self, subject: Subject, span: Span) -> Answer<'_, (Span, Sums)> {
        Box::pin(async move {
            let history = self.sources.history.as_ref().ok_or(Unanswered::NoLedger)?;
            history.sums(self.subject(&subject).await?, span).await
        })
    }

    fn blocks(&self, limit: usize, before_us: Option<u64>) -> Answer<'_, Known<Block>> {
        Box::pin(async move {
            let (rows, has_first) = self.ask_blocks(limit, before_us).await?;
            let (overview, names) = (self.overview().await?, self.names().await?);
            let is_complete = has_first || (rows.is_empty() && overview.totals.shares.blocks == 0);
            let items = rows.into_iter().map(|row| block(row, &overview, &names)).collect();
            Ok(Known { items, is_complete })
        })
    }

    fn events(&self, limit: usize, before_us: Option<u64>) -> Answer<'_, Known<Event>> {
        Box::pin(async move {
            let (rows, is_complete) = self.ask_events(limit, before_us).await?;
            let names = self.names().await?;
            let items = rows.into_iter().map(|EventRow { number, event }| Event {
                number,
                at_us: event.at_us,
                kind: event.kind.name(),
                subject: event.device.and_then(|id| names.of(id)).cloned(),
                text: event.text,
            });
            Ok(Known { items: items.collect(), is_complete })
        })
    }

    fn at_start(&self) -> Arc<AtStart> {
        let at_start = self.at_start.get_or_init(|| {
            let sink::AtStart { overview, devices } = self.sources.sink.at_start();
            let overview = self.overview_of(overview.clone(), self.started);
            Arc::new(AtStart { overview, devices: devices.clone() })
        });
        Arc::clone(at_start)
    }

    fn ledger(&self) -> Answer<'_, Ledger> {
        Box::pin(async {
            let records_without_detail = self.overview().await?.totals.folded;
            Ok(match &self.sources.history {
                Some(history) => history.ledger(records_without_detail),
                None => Ledger { records_without_detail, ..Ledger::default() },
            })
        })
    }

    fn set_power(&self, readings: Vec<PowerReading>) -> Answer<'_, ()> {
        Box::pin(async move {
            // All of them or none: names are looked up before anything is said.
            let mut entries = Vec::with_capacity(readings.len());
            let now_us = micros(self.sources.clock.now());
            for reading in readings {
                let subject = match reading.of {
                    PowerOf::Device(name) => self.subject(&Subject::Device(name)).await?,
                    PowerOf::Group(name) => self.subject(&Subject::Group(name)).await?,
                };
                // A reading is an entry of the moment in which it came: somebody's wrong clock must not move ours.
                let until_us = reading.at_us.min(now_us) + u64::from(reading.valid_for_seconds) * 1_000_000;
                let left = until_us.saturating_sub(now_us) / 1_000_000;
                entries.push(PowerEntry {
                    subject,
                    at_us: now_us,
                    valid_for_s: u32::try_from(left).unwrap_or(u32::MAX),
                    milliwatts: (reading.power_w * 1e3).round() as u64,
                    source: reading.source,
                });
            }
            let mut writer = self.sources.sink.writer();
            entries.into_iter().for_each(|entry| writer.power(entry));
            Ok(())
        })
    }
}

/// The value in the cache while it is young, and else what `ask` gives.
async fn cached<T>(
    cache: &Mutex<Cached<T>>,
    clock: Clock,
    ask: impl AsyncFnOnce() -> Result<T, Unanswered>,
) -> Result<Arc<T>, Unanswered> {
    let mut cache = cache.lock().await;
    let began = clock.now().monotonic;
    if let Some((until, value)) = &*cache
        && began < *until
    {
        return Ok(Arc::clone(value));
    }
    let value = Arc::new(ask().await?);
    let cost = clock.now().monotonic.saturating_sub(began);
    *cache = Some((began + age_after(cost), Arc::clone(&value)));
    Ok(value)
}

/// How long a value serves that took so long to take.
fn age_after(cost: Duration) -> Duration {
    (cost * AGE_OF_COST).clamp(MAX_AGE, LONGEST_AGE)
}

/// A device's name, or what stands for it.
fn name_of(id: DeviceId, name: Option<Arc<str>>) -> Arc<str> {
    name.unwrap_or_else(|| format!("(device {})", id.0).into())
}

fn device(view: DeviceView, groups: &[Arc<str>]) -> Device {
    let names = view.groups.iter().filter_map(|id| groups.get(usize::from(id.0)).cloned());
    let known = |text: Arc<str>| Some(text).filter(|text| !text.is_empty());
    let name = name_of(view.id, view.name);
    Device {
        id: view.id,
        worker_name: known(view.worker_name).unwrap_or_else(|| Arc::clone(&name)),
        name,
        connections: view.connections,
        groups: names.collect(),
        address: known(view.address),
        user_agent: known(view.user_agent),
        device_id: known(view.device_id.into()),
        protocol: view.has_channel.map(|has| if has { Protocol::Sv2 } else { Protocol::Sv1 }),
        first_seen_us: view.first_seen_us,
        last_seen_us: view.last_seen_us,
        last_share_us: view.last_share_us,
        best_difficulty: view.best_difficulty,
        latest_work: view.latest_work,
        sums: view.sums,
        power_w: view.power.map(|(milliwatts, source)| (milliwatts as f64 / 1e3, source)),
        rates: rates(&view.rates),
    }
}

fn rates(pairs: &[RatePair; 4]) -> Rates {
    let rate = |estimate: Option<sink::RateEstimate>| {
        estimate.map(|estimate| Rate {
            hash_rate_hs: estimate.rate.0,
            window_seconds: estimate.window_seconds,
            uncertainty: estimate.uncertainty,
        })
    };
    Rates {
        accepted: pairs.map(|pair| rate(pair.accepted)),
        submitted: pairs.map(|pair| rate(pair.submitted)),
        reported_hs: None,
    }
}

fn micros(now: Now) -> u64 {
    u64::try_from(now.utc.as_micros()).unwrap_or(u64::MAX)
}
