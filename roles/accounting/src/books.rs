//! The books: sums and rates of every subject, made of the stream's entries and of nothing else.
//!
//! They are exact: what is forwarded, acknowledged, refused and lost adds up for the fleet, for each upstream and over
//! all devices, at every moment. They never read a clock, and never keep an entry: what must outlive the process is
//! handed out as rollups, and put back with [`Books::restore`].

mod account;
mod answers;
mod happened;
mod held;
mod identity;
mod minute;
mod minute_sums;
mod power;
mod restore;
#[cfg(test)]
mod tests;
mod views;

use std::collections::BTreeMap;
use std::sync::Arc;

use stratum::{DeviceId, UpstreamId, Work};

use self::account::Account;
use self::answers::Sender;
use self::happened::Happened;
pub use self::happened::{MAX_BLOCKS, MAX_EVENTS};
use self::identity::Odd;
pub use self::minute::DeviceCheck;
pub use self::restore::Restored;
pub use self::views::{DeviceMark, DeviceView, SubjectView};
use crate::acks::AckSums;
use crate::batch::BatchNumber;
use crate::cost::Worth;
use crate::energy::Readings;
use crate::entry::{DeviceEntry, Entry, EventEntry, EventKind, Gap, UpstreamEntry, microseconds};
use crate::rates::RecentWork;
use crate::record::{Fate, ShareRecord, Verdict};
use crate::rollup::{GroupId, Level, Point, Subject};
use crate::sums::Totals;
use crate::waiting::WaitingShares;

/// Devices that are counted apart: the greatest farms have some hundred thousand, and each takes two to three
/// kilobytes. Beyond, shares count for the fleet and for [`Subject::Untracked`].
pub const MAX_DEVICES: usize = 262_144;

/// Groups at most: what a configuration names. Beyond, names are left out.
pub const MAX_GROUPS: usize = 1024;

/// Points that wait for a rollup before minutes are left out: those of 10,000 devices over five minutes.
const MAX_POINTS: usize = 200_000;

/// Upstreams that are counted apart. A configuration has far fewer.
const MAX_UPSTREAMS: usize = 64;

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Books {
    totals: Totals,
    fleet: Account,
    untracked: Account,
    /// By their numbers, which are given without gaps.
    devices: Vec<Option<Box<Device>>>,
    known: usize,
    /// Counts what changed the list of devices or their names.
    names: u64,
    groups: Vec<Group>,
    upstreams: BTreeMap<UpstreamId, Upstream>,
    /// Forwarded shares that wait for an answer.
    waiting: WaitingShares<Sender>,
    /// What is known of power.
    readings: Readings,
    /// When the part of the open minute began whose energy is not counted yet, in unix microseconds.
    part_from_us: u64,
    /// The time of the latest entry, in unix microseconds.
    latest_us: u64,
    /// The devices that mined in that part, each once.
    mined: Vec<DeviceId>,
    /// Everything but sums.
    happened: Happened,
    /// The batch that the entries are in.
    batch: BatchNumber,
    /// The start of the open minute in unix seconds; 0 before the first entry.
    minute: u64,
    /// Subjects with something in the open minute, each once.
    touched: Vec<Subject>,
    /// Points of minutes that are closed and not handed out yet.
    points: Vec<Point>,
    /// Subjects whose sums or attributes changed since the last rollup, each once.
    changed: Vec<Subject>,
}

#[derive(Debug)]
struct Device {
    account: Account,
    name: Option<Arc<str>>,
    groups: Vec<GroupId>,
    address: Arc<str>,
    user_agent: Arc<str>,
    /// What only some devices have.
    odd: Option<Box<Odd>>,
    connections: u32,
    /// Whether it last mined on a channel, as SV2 devices do; `None` when no connection of it is known.
    has_channel: Option<bool>,
    first_seen_us: u64,
    last_seen_us: u64,
    last_share_us: u64,
    best_difficulty: f64,
    /// What its latest accepted share was credited; 0 before the first of this process.
    latest_work: Work,
    /// What it proved in the part of the open minute whose energy is not counted yet; `None` when it did not mine.
    part_work: Option<u128>,
}

#[derive(Debug)]
struct Group {
    name: Arc<str>,
    account: Account,
}

#[derive(Debug, Default)]
struct Upstream {
    name: Arc<str>,
    account_name: Arc<str>,
    account: Account,
    /// What its latest job says that work is worth.
    worth: Option<Worth>,
    acks: AckSums,
    /// Refused shares by its codes.
    refused_by_code: BTreeMap<String, u64>,
}

impl Books {
    /// Says which batch the next entries are in.
    pub fn begin_batch(&mut self, number: BatchNumber) {
        self.batch = number;
    }

    /// Takes the next entry of the stream.
    pub fn apply(&mut self, entry: &Entry) {
        match entry {
            Entry::Share(share) => self.apply_share(share),
            Entry::Release(release) => self.apply_release(release),
            Entry::Answer(answer) => self.apply_answer(answer),
            Entry::Device(device) => self.apply_device(device),
            Entry::Upstream(upstream) => self.apply_upstream(upstream),
            Entry::Gap(gap) => self.apply_gap(gap),
            Entry::Event(event) => self.apply_event(event),
            Entry::Power(power) => self.apply_power(power),
            Entry::Connection(connection) => self.apply_connection(connection),
            Entry::Job(job) => self.apply_job(job),
            Entry::MinuteEnded(start) => drop(self.turn_to(end_of_minute(*start))),
        }
        self.latest_us = self.latest_us.max(entry.at_us());
    }

    fn apply_event(&mut self, event: &EventEntry) {
        if event.kind == EventKind::Started {
            // The process that wrote what is before ran until its latest entry, as far as anybody knows.
            self.end_part(self.latest_us);
        }
        self.turn_to(event.at_us);
        match event.kind {
            EventKind::Started => {
                self.end_life();
                self.forget_connections();
                // A clock that was set back meanwhile must not make any time count twice.
                self.part_from_us = self.part_from_us.max(event.at_us);
            }
            EventKind::Ended => self.end_part(event.at_us),
            _ => {}
        }
        self.note_event(event);
    }

    /// As [`Books::apply`], for the entries that come by the thousand.
    ///
    /// # Panics
    /// When verdict and fate contradict each other, which is a bug of the caller.
    pub fn apply_share(&mut self, share: &ShareRecord) {
        assert!(crate::sums::is_consistent(share), "verdict and fate belong together: {share:?}");
        let at_us = microseconds(share.judged.utc);
        self.turn_to(at_us);
        self.latest_us = self.latest_us.max(at_us);
        self.totals.add_share(share);
        let work = share.submitted.0 as f64;
        let proved = RecentWork { work, squares: work * work };
        let is_refused = matches!(share.verdict, Verdict::Rejected(_));
        let add = |account: &mut Account| {
            account.minute_sums_mut().add_share(share);
            account.rates.add(at_us, proved, is_refused);
        };
        self.for_each_of(share.device, share.upstream, at_us, add);
        let tracked = share.device.filter(|id| self.note_device_share(*id, share, at_us));
        if share.verdict == Verdict::BlockFound {
            self.note_block(share);
        }
        if share.fate == Fate::Forwarded {
            self.await_answer(share, tracked);
        }
    }

    /// Reads what is about to be changed of some devices, and changes nothing.
    ///
    /// A great fleet's devices lie far away in memory. Where their sums are changed one after the other each is waited for;
    /// looked at beforehand, without anything in between, they are fetched at the same time.
    pub fn fetch(&self, ids: impl Iterator<Item = DeviceId>) {
        let devices = ids.filter_map(|id| self.devices.get(id.0 as usize)?.as_ref());
        std::hint::black_box(devices.fold(0, |read, device| {
            let part_work = device.part_work.unwrap_or(0) as u64;
            read ^ device.account.fetch() ^ device.last_seen_us ^ part_work
        }));
    }

    /// Whether a time is in a later minute than the one that is open.
    pub fn is_in_later_minute(&self, at_us: u64) -> bool {
        self.minute > 0 && Level::Minute.start(at_us / 1_000_000) > self.minute
    }

    /// Notes that a device was seen, if nothing else of the entry is new; if something is, does nothing and says so
    /// by false: the entry is then one for the stream.
    pub fn notes_device(&mut self, entry: &DeviceEntry) -> bool {
        let Some(Some(device)) = self.devices.get_mut(entry.id.0 as usize) else { return false };
        let is_known = device.name.as_deref() == Some(&*entry.name)
            && device.groups == entry.groups
            && (entry.address.is_empty() || *device.address == *entry.address)
            && (entry.user_agent.is_empty() || *device.user_agent == *entry.user_agent)
            && Odd::parts(&device.odd) == (&*entry.worker_name, &*entry.device_id);
        if is_known {
            device.last_seen_us = device.last_seen_us.max(entry.at_us);
            device.account.rates.begin(entry.at_us);
        }
        is_known
    }

    /// The start of the minute that is open, in unix seconds; 0 before the first entry.
    pub fn open_minute(&self) -> u64 {
        self.minute
    }

    /// The minute that is open and has something in it, which its end must be told of in the stream: see
    /// [`Entry::MinuteEnded`].
    pub fn minute_to_end(&self) -> Option<u64> {
        (!self.touched.is_empty() || !self.mined.is_empty()).then_some(self.minute)
    }

    /// Time has passed: closes the minutes that are over. True when there is something for a rollup.
    pub fn turn_to(&mut self, now_us: u64) -> bool {
        let minute = Level::Minute.start(now_us / 1_000_000);
        if self.minute == 0 {
            self.minute = minute;
            self.part_from_us = now_us;
        }
        // What comes late counts for the minute that is open: what was handed out stays true.
        if minute > self.minute {
            self.end_open_part();
            while self.close_some(usize::MAX) {}
            self.minute = minute;
            self.part_from_us = minute.saturating_mul(1_000_000);
        }
        !self.points.is_empty()
    }

    /// Keeps what waits for a rollup within bounds, when none can be made for long: minutes go first, and of every other
    /// span only the latest point stays, which holds the earlier ones.
    pub fn shed_points(&mut self) {
        if self.points.len() <= MAX_POINTS {
            return;
        }
        let points = std::mem::take(&mut self.points).into_iter();
        let points = points.filter(|point| point.level != Level::Minute);
        let points: BTreeMap<_, _> =
            points.map(|point| ((point.subject, point.level, point.start), point)).collect();
        self.points = points.into_values().collect();
    }

    /// The points of minutes that are over, for those who keep no rollups.
    pub fn take_points(&mut self) -> Vec<Point> {
        std::mem::take(&mut self.points)
    }

    /// The sums of shares and answers over the fleet.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// How many devices are known.
    pub fn device_count(&self) -> usize {
        self.known
    }

    /// Another number whenever a device is new, or has another name.
    pub fn names_version(&self) -> u64 {
        self.names
    }

    /// The number of a group of this name, which it gets now if it has none; `None` when there are too many.
    pub fn group(&mut self, name: &str) -> Option<GroupId> {
        if let Some(index) = self.groups.iter().position(|group| *group.name == *name) {
            return Some(GroupId(index as u16));
        }
        if self.groups.len() >= MAX_GROUPS {
            return None;
        }
        let id = GroupId(self.groups.len() as u16);
        self.groups.push(Group { name: name.into(), account: Account::default() });
        self.note_change(Subject::Group(id));
        Some(id)
    }

    /// The groups with their names, in the order of their numbers.
    pub fn groups(&self) -> impl Iterator<Item = (GroupId, &Arc<str>)> {
        self.groups.iter().enumerate().map(|(index, group)| (GroupId(index as u16), &group.name))
    }

    /// How many devices belong to each group, in the order of their numbers.
    pub fn devices_by_group(&self) -> Vec<usize> {
        let mut counts = vec![0; self.groups.len()];
        if counts.is_empty() {
            return counts;
        }
        let groups = self.devices.iter().flatten().flat_map(|device| &device.groups);
        groups.for_each(|group| counts[usize::from(group.0)] += 1);
        counts
    }

    /// The upstreams with name and account, in the order of their numbers.
    pub fn upstreams(&self) -> impl Iterator<Item = (UpstreamId, &Arc<str>, &Arc<str>)> {
        self.upstreams.iter().map(|(id, upstream)| (*id, &upstream.name, &upstream.account_name))
    }

    fn apply_device(&mut self, entry: &DeviceEntry) {
        self.turn_to(entry.at_us);
        let known = self.groups.len();
        let Some(device) = self.device_mut(entry.id, entry.at_us) else { return };
        let is_renamed = device.name.as_deref() != Some(&*entry.name);
        if is_renamed {
            device.name = Some(entry.name.as_str().into());
        }
        device.groups = entry.groups.iter().copied().filter(|group| usize::from(group.0) < known).collect();
        if !entry.address.is_empty() && *device.address != *entry.address {
            device.address = entry.address.as_str().into();
        }
        if !entry.user_agent.is_empty() && *device.user_agent != *entry.user_agent {
            device.user_agent = entry.user_agent.as_str().into();
        }
        device.odd = Odd::of(&entry.worker_name, &entry.device_id);
        device.last_seen_us = device.last_seen_us.max(entry.at_us);
        device.account.rates.begin(entry.at_us);
        self.names += u64::from(is_renamed);
        self.note_change(Subject::Device(entry.id));
    }

    fn apply_upstream(&mut self, entry: &UpstreamEntry) {
        self.turn_to(entry.at_us);
        if self.upstreams.len() >= MAX_UPSTREAMS && !self.upstreams.contains_key(&entry.id) {
            return;
        }
        let upstream = self.upstreams.entry(entry.id).or_default();
        upstream.name = entry.name.as_str().into();
        upstream.account_name = entry.account.as_str().into();
        self.note_change(Subject::Upstream(entry.id));
    }

    /// Adds sums whose records are lost. What upstreams answered in it belongs to nobody.
    fn apply_gap(&mut self, gap: &Gap) {
        self.turn_to(gap.to_us);
        self.totals.folded += gap.records;
        self.add_lost_refusals(gap);
        for (device, sums) in &gap.devices {
            let shares = &sums.shares;
            self.totals.shares.add(shares);
            // Their works count as equal.
            let recent = |work: u128, count: u64| {
                let work = work as f64;
                RecentWork { work, squares: if count == 0 { 0.0 } else { work * work / count as f64 } }
            };
            let accepted = recent(shares.credited.0, shares.accepted);
            let refused = shares.submitted_work.0.saturating_sub(shares.credited.0);
            let refused = recent(refused, shares.rejected_total());
            let add = |account: &mut Account| {
                let minute = account.minute_mut();
                minute.shares.add(shares);
                minute.squared_work += accepted.squares;
                account.rates.add(gap.to_us, accepted, false);
                account.rates.add(gap.to_us, refused, true);
            };
            self.for_each_of(*device, None, gap.to_us, add);
            if let (Some(id), true) = (device, shares.submitted > 0) {
                self.note_mined(*id, shares.credited.0);
            }
            if let Some(device) = device.and_then(|id| self.device_mut(id, gap.to_us)) {
                device.last_seen_us = device.last_seen_us.max(gap.to_us);
            }
        }
        for (id, sums) in &gap.upstreams {
            self.totals.answers.add(&sums.answers);
            self.totals.upstreams.entry(*id).or_default().add(&sums.answers);
            let add = |account: &mut Account| account.minute_sums_mut().add_answers(&sums.answers);
            self.for_each_of(None, Some(*id), gap.to_us, add);
            if let Some(account) = self.account_mut(Subject::Upstream(*id)) {
                account.minute_mut().shares.add(&sums.shares);
            }
        }
    }

    /// Shows every account that something of a device and of an upstream counts for: the fleet's, the device's or
    /// that of nobody, its groups', and the upstream's.
    fn for_each_of(
        &mut self,
        device: Option<DeviceId>,
        upstream: Option<UpstreamId>,
        at_us: u64,
        mut add: impl FnMut(&mut Account),
    ) {
        self.touch(Subject::Fleet, &mut add);
        let known = device.filter(|id| self.device_mut(*id, at_us).is_some());
        self.touch(known.map_or(Subject::Untracked, Subject::Device), &mut add);
        let groups = known.map_or(0, |id| self.groups_of(id).len());
        for place in 0..groups {
            let group = self.groups_of(known.expect("there are groups only of a known one"))[place];
            self.touch(Subject::Group(group), &mut add);
        }
        if let Some(id) = upstream {
            if self.upstreams.len() < MAX_UPSTREAMS {
                self.upstreams.entry(id).or_default();
            }
            self.touch(Subject::Upstream(id), &mut add);
        }
    }

    fn groups_of(&self, id: DeviceId) -> &[GroupId] {
        self.devices.get(id.0 as usize).and_then(Option::as_ref).map_or(&[], |device| &device.groups)
    }

    fn touch(&mut self, subject: Subject, add: &mut impl FnMut(&mut Account)) {
        let Some(account) = self.account_mut(subject) else { return };
        let is_new = account.minute.is_none();
        add(account);
        account.changes = account.changes.wrapping_add(1);
        let is_touched = is_new && account.minute.is_some();
        let was_changed = std::mem::replace(&mut account.is_changed, true);
        if is_touched {
            self.touched.push(subject);
        }
        if !was_changed {
            self.changed.push(subject);
        }
    }

    fn note_change(&mut self, subject: Subject) {
        if let Some(account) = self.account_mut(subject)
            && !std::mem::replace(&mut account.is_changed, true)
        {
            self.changed.push(subject);
        }
    }

    /// Notes what only a device has. False when it is not counted apart.
    fn note_device_share(&mut self, id: DeviceId, share: &ShareRecord, at_us: u64) -> bool {
        let Some(device) = self.device_mut(id, at_us) else { return false };
        device.last_seen_us = device.last_seen_us.max(at_us);
        if !matches!(share.verdict, Verdict::Rejected(_)) {
            device.last_share_us = device.last_share_us.max(at_us);
            let difficulty = share.difficulty.map_or(0.0, |difficulty| difficulty.0);
            device.best_difficulty = device.best_difficulty.max(difficulty);
            device.latest_work = share.credited();
        }
        self.note_mined(id, share.credited().0);
        true
    }

    fn account(&self, subject: Subject) -> Option<&Account> {
        match subject {
            Subject::Fleet => Some(&self.fleet),
            Subject::Untracked => Some(&self.untracked),
            Subject::Upstream(id) => self.upstreams.get(&id).map(|upstream| &upstream.account),
            Subject::Group(id) => self.groups.get(usize::from(id.0)).map(|group| &group.account),
            Subject::Device(id) => self.devices.get(id.0 as usize)?.as_ref().map(|device| &device.account),
        }
    }

    fn account_mut(&mut self, subject: Subject) -> Option<&mut Account> {
        match subject {
            Subject::Fleet => Some(&mut self.fleet),
            Subject::Untracked => Some(&mut self.untracked),
            Subject::Upstream(id) => self.upstreams.get_mut(&id).map(|upstream| &mut upstream.account),
            Subject::Group(id) => self.groups.get_mut(usize::from(id.0)).map(|group| &mut group.account),
            Subject::Device(id) => {
                self.devices.get_mut(id.0 as usize)?.as_mut().map(|device| &mut device.account)
            }
        }
    }

    /// A device, which is made if it is new; `None` beyond the bound.
    fn device_mut(&mut self, id: DeviceId, now_us: u64) -> Option<&mut Device> {
        let index = id.0 as usize;
        if index >= MAX_DEVICES {
            return None;
        }
        if index >= self.devices.len() {
            self.devices.resize_with(index + 1, || None);
        }
        let (known, names) = (&mut self.known, &mut self.names);
        Some(self.devices[index].get_or_insert_with(|| {
            *known += 1;
            *names += 1;
            Box::new(Device::new(now_us))
        }))
    }
}

impl Device {
    fn new(now_us: u64) -> Self {
        Device {
            account: Account::default(),
            name: None,
            groups: Vec::new(),
            address: Arc::default(),
            user_agent: Arc::default(),
            odd: None,
            connections: 0,
            has_channel: None,
            first_seen_us: now_us,
            last_seen_us: now_us,
            last_share_us: 0,
            best_difficulty: 0.0,
            latest_work: Work(0),
            part_work: None,
        }
    }
}

/// When the minute that starts at `start` is over, in unix microseconds.
fn end_of_minute(start: u64) -> u64 {
    start.saturating_add(60).saturating_mul(1_000_000)
}
