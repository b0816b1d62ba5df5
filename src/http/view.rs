//! What the API asks of the program, as plain values: the one door between those who answer over HTTP and those who
//! keep the accounts.
//!
//! Nothing here knows of HTTP, and whoever answers through [`View`] must not make a share wait: figures are taken at
//! most once a second, less often where that costs more, and shared by all who ask meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use accounting::sums::subtract_codes;
use accounting::{DeviceMark, Level, PowerSource, Sums, Totals};
use stratum::{DeviceId, Target, Work};

use crate::sink::DeviceAtStart;
use crate::upstream::DeclarationView;

/// What a [`View`] answers with, later.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Unanswered>> + Send + 'a>>;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// The accounts are gone: the program is going down.
    #[error("the accounts are closed: the program is going down")]
    Closed,
    /// It would take a ledger, and none is kept.
    #[error("this needs a ledger, and none is kept")]
    NoLedger,
    /// Nobody has this name.
    #[error("there is no {0} of this name")]
    Unknown(&'static str),
    /// The ledger could not be read; the text is for the operator and holds no path.
    #[error("the ledger could not be read: {0}")]
    Failed(String),
}

/// All that the API asks.
pub trait View: Send + Sync + 'static {
    /// Sums of the fleet, its groups and its upstreams. Costs the same for any number of devices.
    fn overview(&self) -> Answer<'_, Arc<Overview>>;
    /// All devices, at most a second old; of a great fleet, at most five. Whoever needs a few devices asks for those.
    fn fleet(&self) -> Answer<'_, Arc<Fleet>>;
    /// The names of all devices.
    fn names(&self) -> Answer<'_, Arc<Names>>;
    /// A fleet of these devices alone, in this order and as they are now; those that are not known are left out.
    fn some(&self, devices: Vec<DeviceId>) -> Answer<'_, Fleet>;
    /// What shows which devices changed, at most a second old, in the order of their numbers.
    fn marks(&self) -> Answer<'_, Arc<Vec<(DeviceId, DeviceMark)>>>;
    /// Sums of all devices over a time.
    fn period(&self, span: Span) -> Answer<'_, Period>;
    /// Sums of one subject, span by span, oldest first; spans in which nothing happened may be left out.
    fn points(&self, subject: Subject, level: Level, span: Span) -> Answer<'_, Vec<Point>>;
    /// The jobs that miners work on.
    fn jobs(&self) -> Answer<'_, Vec<Job>>;
    /// Sums of one subject over a time, and the time that they cover: the one that was asked for, widened to whole spans of
    /// what is kept.
    fn sums(&self, subject: Subject, span: Span) -> Answer<'_, (Span, Sums)>;
    /// Blocks found, latest first, at most `limit`, none later than `before_us`.
    fn blocks(&self, limit: usize, before_us: Option<u64>) -> Answer<'_, Known<Block>>;
    /// What happened, latest first, at most `limit`, none later than `before_us`.
    fn events(&self, limit: usize, before_us: Option<u64>) -> Answer<'_, Known<Event>>;
    /// What was known when the process started, for those who count from there.
    fn at_start(&self) -> Arc<AtStart>;
    /// How the ledger is.
    fn ledger(&self) -> Answer<'_, Ledger>;
    /// Takes power readings, all of them or none.
    fn set_power(&self, readings: Vec<PowerReading>) -> Answer<'_, ()>;
}

/// Sums and rates that do not grow with the fleet.
#[derive(Clone, Debug, Default)]
pub struct Overview {
    /// When they were taken; unix microseconds.
    pub taken_us: u64,
    /// When counting began: with the ledger, or with the process where none is kept; unix microseconds.
    pub since_us: u64,
    /// When the process started; unix microseconds.
    pub started_us: u64,
    /// The whole fleet.
    pub totals: Totals,
    /// Energy of the whole fleet.
    pub energy: accounting::EnergySums,
    /// Power of the whole fleet, in watts, where any is known.
    pub power_w: Option<f64>,
    /// Rates of the whole fleet.
    pub rates: Rates,
    /// Devices that were ever seen.
    pub devices: usize,
    /// Names of groups by their numbers.
    pub group_names: Vec<Arc<str>>,
    /// Groups in the order of their names.
    pub groups: Vec<Group>,
    /// Upstreams, or the node of a pool, in the order of their numbers.
    pub upstreams: Vec<Upstream>,
    /// How often work came to be from another upstream since the start, by reason; empty for a pool.
    pub switches: Vec<(&'static str, u64)>,
    /// How job declaration goes, where jobs are declared.
    pub declarations: Option<DeclarationView>,
    /// What a terahash is worth at the current template, in satoshis.
    pub sats_per_terahash: Option<f64>,
}

impl Overview {
    /// What an expected hash is worth at the current template, in satoshis.
    pub fn sats_per_hash(&self) -> Option<f64> {
        self.sats_per_terahash.map(|sats| sats / 1e12)
    }

    /// The same, but for what was before: counts of one process, which a crash takes nothing back of.
    pub fn since(&self, earlier: &Overview) -> Overview {
        let mut since = self.clone();
        since.totals.subtract(&earlier.totals);
        since.energy.subtract(&earlier.energy);
        for group in &mut since.groups {
            let before = earlier.groups.iter().find(|before| before.name == group.name);
            before.iter().for_each(|before| group.sums.subtract(&before.sums));
        }
        for upstream in &mut since.upstreams {
            let Some(before) = earlier.upstreams.iter().find(|before| before.name == upstream.name) else {
                continue;
            };
            upstream.sums.subtract(&before.sums);
            subtract_codes(&mut upstream.refused_by_code, &before.refused_by_code);
            upstream.acks.subtract(&before.acks);
        }
        since
    }

    /// All sums of the fleet.
    pub fn sums(&self) -> Sums {
        let (shares, answers) = (self.totals.shares.clone(), self.totals.answers.clone());
        Sums { shares, answers, energy: self.energy.clone(), ..Sums::default() }
    }
}

/// What was known when the process started: a ledger's sums, or nothing.
#[derive(Clone, Debug, Default)]
pub struct AtStart {
    /// What does not grow with the fleet.
    pub overview: Overview,
    /// The devices that had shares.
    pub devices: HashMap<DeviceId, DeviceAtStart>,
}

/// An overview and all devices.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    /// The fleet as a whole.
    pub overview: Overview,
    /// Devices in the order of their numbers.
    pub devices: Vec<Device>,
    /// Whether the devices' sums have what upstreams answered.
    pub has_answers_by_device: bool,
}

/// The names of all devices.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// In the order of their numbers.
    devices: Vec<(DeviceId, Arc<str>)>,
    /// Places in that list, in the order of the names.
    order: Vec<u32>,
}

impl Names {
    /// Names in the order of the devices' numbers.
    pub fn new(devices: Vec<(DeviceId, Arc<str>)>) -> Self {
        let mut order: Vec<u32> = (0..devices.len() as u32).collect();
        order.sort_unstable_by(|a, b| {
            let name = |place: u32| (&devices[place as usize].1, place);
            name(*a).cmp(&name(*b))
        });
        Names { devices, order }
    }

    /// All devices, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (DeviceId, &Arc<str>)> {
        self.devices.iter().map(|(id, name)| (*id, name))
    }

    /// The devices in the order of their names, and of their numbers where those are the same.
    pub fn by_name(&self) -> impl DoubleEndedIterator<Item = (DeviceId, &Arc<str>)> {
        self.order.iter().map(|place| {
            let (id, name) = &self.devices[*place as usize];
            (*id, name)
        })
    }

    /// The name of a device.
    pub fn of(&self, id: DeviceId) -> Option<&Arc<str>> {
        let place = self.devices.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(&self.devices[place].1)
    }

    /// The device of a name.
    pub fn device(&self, name: &str) -> Option<DeviceId> {
        let of = |place: &u32| &self.devices[*place as usize];
        let place = self.order.binary_search_by(|place| (*of(place).1).cmp(name)).ok()?;
        Some(of(&self.order[place]).0)
    }
}

/// Devices that are freed at once; more are freed on a thread that may wait, and not where shares are awaited.
const FREED_AT_ONCE: usize = 1000;

impl Drop for Fleet {
    fn drop(&mut self) {
        if self.devices.len() > FREED_AT_ONCE
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let devices = std::mem::take(&mut self.devices);
            drop(runtime.spawn_blocking(|| drop(devices)));
        }
    }
}

/// One device.
#[derive(Clone, Debug)]
pub struct Device {
    /// Its number.
    pub id: DeviceId,
    /// Its name.
    pub name: Arc<str>,
    /// The worker name that it last mined under: nearly always its name.
    pub worker_name: Arc<str>,
    /// How many connections it has.
    pub connections: u32,
    /// Names of its groups.
    pub groups: Vec<Arc<str>>,
    /// The address that it last came from.
    pub address: Option<Arc<str>>,
    /// What it last called itself.
    pub user_agent: Option<Arc<str>>,
    /// What it last sent as SV2's `device_id`.
    pub device_id: Option<Arc<str>>,
    /// What it last spoke.
    pub protocol: Option<Protocol>,
    /// When it was first seen; unix microseconds.
    pub first_seen_us: u64,
    /// When it was last seen; unix microseconds.
    pub last_seen_us: u64,
    /// When its latest accepted share came; unix microseconds.
    pub last_share_us: Option<u64>,
    /// The hardest difficulty that a hash of its accepted shares reached.
    pub best_difficulty: Option<f64>,
    /// The work of the target that its latest accepted share was judged by.
    pub latest_work: Option<Work>,
    /// Everything that is summed.
    pub sums: Sums,
    /// Its power now, in watts, and where that comes from.
    pub power_w: Option<(f64, PowerSource)>,
    /// Its rates.
    pub rates: Rates,
}

/// What a device speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Stratum V1.
    Sv1,
    /// Stratum V2.
    Sv2,
}

/// A group of devices.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its name.
    pub name: Arc<str>,
    /// How many devices belong to it.
    pub devices: usize,
    /// Everything that is summed.
    pub sums: Sums,
    /// Its rates.
    pub rates: Rates,
}

/// An upstream, or the node of a pool.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Host and port, without credentials or keys.
    pub name: Arc<str>,
    /// The account that work is done for, where it is known.
    pub account: Option<Arc<str>>,
    /// Whether it gives work.
    pub is_live: bool,
    /// What it is used for: `serving`, `standby`, `held_down` or `away`.
    pub standing: &'static str,
    /// Everything that is summed of shares of its jobs, and of what it was sent and answered.
    pub sums: Sums,
    /// The rates of the shares of its jobs.
    pub rates: Rates,
    /// Refused shares by its codes. Where detail was lost, codes can be missing.
    pub refused_by_code: BTreeMap<String, u64>,
    /// What an expected hash is worth by its latest job, in satoshis.
    pub sats_per_hash: Option<f64>,
    /// How long its answers took.
    pub acks: accounting::AckSums,
}

impl Upstream {
    /// Its sums, with the energy of the fleet, so that work can be told in energy: no meter knows of upstreams.
    pub fn sums_at(&self, energy: &accounting::EnergySums) -> Sums {
        Sums { energy: energy.clone(), ..self.sums.clone() }
    }
}

/// Windows of hash rates, in the order in which [`Rates`] has them: the name in the API, and seconds.
pub const WINDOWS: [(&str, u64); 4] = [("1m", 60), ("10m", 600), ("1h", 3600), ("24h", 86_400)];

/// The three hash rates; what is unknown is `None`.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    /// What accepted shares proved.
    pub accepted: [Option<Rate>; WINDOWS.len()],
    /// What all shares claimed, refused ones included.
    pub submitted: [Option<Rate>; WINDOWS.len()],
    /// What the device says of itself, in hashes a second.
    pub reported_hs: Option<f64>,
}

/// One hash rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Hashes a second.
    pub hash_rate_hs: f64,
    /// The seconds that were looked at; fewer than the window's while a device is young.
    pub window_seconds: f64,
    /// The relative standard error.
    pub uncertainty: f64,
}

/// From one moment up to and without another; unix microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first moment in it.
    pub from_us: u64,
    /// The first moment after it.
    pub to_us: u64,
}

/// Whose points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// All devices together.
    Fleet,
    /// The device of this name.
    Device(String),
    /// The group of this name.
    Group(String),
    /// The upstream of this name.
    Upstream(String),
}

/// The sums of one span of one subject.
#[derive(Clone, Debug)]
pub struct Point {
    /// Its start; unix seconds.
    pub start: u64,
    /// What happened in it.
    pub sums: Sums,
}

/// Sums of devices over a time.
#[derive(Clone, Debug)]
pub struct Period {
    /// The time that they cover: the one that was asked for, widened to whole spans of what is kept.
    pub span: Span,
    /// The devices with anything in it.
    pub devices: Vec<(DeviceId, Sums)>,
}

/// What miners work on.
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// The upstream, or the node of a pool, that it comes from.
    pub upstream: Arc<str>,
    /// Our number of it.
    pub number: Option<u64>,
    /// When the template or the upstream's job came; unix microseconds.
    pub received_us: Option<u64>,
    /// The block that it builds on, in the usual byte order.
    pub previous_hash: Option<String>,
    /// The height of the block to find.
    pub height: Option<u32>,
    /// The header's version, before miners roll it.
    pub version: Option<u32>,
    /// The compact target of the block to find.
    pub nbits: Option<u32>,
    /// What the coinbase may pay, in satoshis.
    pub value_sats: Option<u64>,
    /// Transactions besides the coinbase.
    pub transactions: Option<u64>,
    /// Whether version bits may be rolled.
    pub version_rolling: Option<bool>,
    /// The target that a share must meet to be worth something to the upstream.
    pub upstream_target: Option<Target>,
    /// Bytes of the coinbase that are ours to choose, the reserved ones included.
    pub rollable_size: Option<usize>,
}

/// A list, and whether it goes back to the beginning.
#[derive(Clone, Debug)]
pub struct Known<T> {
    /// Latest first.
    pub items: Vec<T>,
    /// Whether nothing older is missing for want of a ledger.
    pub is_complete: bool,
}

/// A share that met the network's target.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// Counts the blocks since counting began, from 1.
    pub number: u64,
    /// When it was found; unix microseconds.
    pub found_us: u64,
    /// Who found it.
    pub device: Option<Arc<str>>,
    /// Whose job it solves.
    pub upstream: Option<Arc<str>>,
    /// Its hash in the usual byte order.
    pub hash: Option<String>,
    /// Its height.
    pub height: Option<u32>,
    /// The difficulty that its hash reached.
    pub difficulty: Option<f64>,
    /// What its coinbase pays, in satoshis.
    pub value_sats: Option<u64>,
}

/// Something that an operator may want to know of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Counts the events since counting began, from 1.
    pub number: u64,
    /// When; unix microseconds.
    pub at_us: u64,
    /// Which kind of event, as `disk_alarm`.
    pub kind: &'static str,
    /// Whom it is about.
    pub subject: Option<Arc<str>>,
    /// What happened, in words.
    pub text: String,
}

/// How the ledger is. Everything is unknown where none is kept.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Whether one is kept.
    pub is_kept: bool,
    /// Its identity, in hexadecimal.
    pub id: Option<String>,
    /// When it began; unix microseconds.
    pub since_us: Option<u64>,
    /// The last batch that is on disk.
    pub head_batch: Option<u64>,
    /// Its hash, in hexadecimal.
    pub head_hash: Option<String>,
    /// The last batch that is in the rollups.
    pub watermark_batch: Option<u64>,
    /// Bytes that wait to be written.
    pub unwritten_bytes: Option<u64>,
    /// Records whose detail was lost; their sums are not.
    pub records_without_detail: u64,
    /// Why it cannot be written right now.
    pub alarm: Option<String>,
}

/// Whose power.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PowerOf {
    /// The device of this name.
    Device(String),
    /// The group of this name, whose devices share it.
    Group(String),
}

/// One power reading.
#[derive(Clone, Debug, PartialEq)]
pub struct PowerReading {
    /// Whose.
    pub of: PowerOf,
    /// Watts.
    pub power_w: f64,
    /// Where it comes from.
    pub source: PowerSource,
    /// From when it holds; unix microseconds.
    pub at_us: u64,
    /// For how many seconds it holds, unless another comes.
    pub valid_for_seconds: u32,
}

mod history;
mod recorded;

pub use history::History;
pub use recorded::RecordedView;

#[cfg(test)]
pub(crate) mod fake;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_by_number_and_by_name() {
        let names = ["b", "a", "d", "c"].into_iter().zip([0, 2, 3, 9]);
        let names = Names::new(names.map(|(name, id)| (DeviceId(id), name.into())).collect());
        let by_name: Vec<&str> = names.by_name().map(|(_, name)| &**name).collect();
        assert_eq!(by_name, ["a", "b", "c", "d"]);
        assert_eq!(
            ["a", "c", "x", ""].map(|name| names.device(name).map(|id| id.0)),
            [Some(2), Some(9), None, None]
        );
        assert_eq!(
            [0, 1, 9].map(|id| names.of(DeviceId(id)).map(|name| name.to_string())),
            [Some("b".to_owned()), None, Some("c".to_owned())]
        );
        assert_eq!(names.iter().map(|(id, _)| id.0).collect::<Vec<_>>(), [0, 2, 3, 9]);
    }
}
