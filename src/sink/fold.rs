//! Sums in place of records, where a queue or a disk had no room for them. Bounded: by devices, upstreams and codes, not
//! by records.
//!
//! Nothing here is ever sent back into detail.

use std::collections::BTreeMap;

use accounting::entry::{ConnectionEntry, DeviceEntry, Entry, Gap, MAX_GAP_SUBJECTS, microseconds};
use accounting::{ShareSums, Sums, Totals};
use stratum::{DeviceId, UpstreamId};

use super::{Batch, Message, Record};

/// Devices that folded sums keep apart. A connection has one or a few; the task of an upstream has many, and those
/// beyond lose their name but not their work.
pub(super) const MAX_FOLDED_DEVICES: usize = 256;

/// Entries that are kept as they are, because they cannot be summed: jobs and the like. Further ones are lost: shares
/// of such a job cannot be hashed again.
const MAX_FOLDED_ENTRIES: usize = 256;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Fold {
    pub(super) totals: Totals,
    devices: BTreeMap<Option<DeviceId>, ShareSums>,
    /// What upstreams had to do with it.
    upstream_shares: BTreeMap<UpstreamId, ShareSums>,
    named: BTreeMap<DeviceId, DeviceEntry>,
    /// The latest of each device, which says how many it has.
    connections: BTreeMap<DeviceId, ConnectionEntry>,
    entries: Vec<Entry>,
    /// The times of the first and the last record, in unix microseconds; none yet while the first is the later.
    times_us: (u64, u64),
    most_devices: usize,
}

impl Default for Fold {
    fn default() -> Self {
        Fold::of(MAX_FOLDED_DEVICES)
    }
}

impl Fold {
    /// An empty fold that keeps so many devices apart.
    pub(super) fn of(most_devices: usize) -> Self {
        Fold {
            totals: Totals::default(),
            devices: BTreeMap::new(),
            upstream_shares: BTreeMap::new(),
            named: BTreeMap::new(),
            connections: BTreeMap::new(),
            entries: Vec::new(),
            times_us: (u64::MAX, 0),
            most_devices,
        }
    }

    pub(super) fn add(&mut self, message: Message) {
        match message {
            Message::Record(record) => self.add_record(&record),
            Message::Batch(Batch { shares, releases, answers }, _) => {
                let shares = shares.into_iter().map(Record::Share);
                let releases = releases.into_iter().map(Record::Release);
                let all = shares.chain(releases).chain(answers.into_iter().map(Record::Answer));
                all.for_each(|record| self.add_record(&record));
            }
            Message::Device(entry) => self.name(entry),
            Message::Connection(entry) => self.add_connection(entry),
            Message::Entry(entry) => {
                if self.entries.len() < MAX_FOLDED_ENTRIES {
                    self.entries.push(*entry);
                }
            }
            Message::Folded(_)
            | Message::Overview(..)
            | Message::Devices(..)
            | Message::Some(..)
            | Message::NamesVersion(_)
            | Message::Names(..)
            | Message::Marks(..)
            | Message::Happened(_)
            | Message::Finish(..) => {
                unreachable!("writers fold only what they write")
            }
        }
    }

    pub(super) fn add_record(&mut self, record: &Record) {
        self.totals.folded += 1;
        match record {
            Record::Share(share) => {
                self.totals.add_share(share);
                self.device(share.device).add_share(share);
                if let Some(upstream) = share.upstream {
                    self.upstream_shares.entry(upstream).or_default().add_share(share);
                }
                self.note(microseconds(share.judged.utc));
            }
            Record::Release(release) => {
                self.totals.add_release(release);
                self.device(release.device).add_release(release);
                self.upstream_shares.entry(release.upstream).or_default().add_release(release);
                self.note(microseconds(release.released.utc));
            }
            Record::Answer(answer) => {
                self.totals.add_answer(answer);
                self.note(microseconds(answer.received.utc));
            }
        }
    }

    /// Adds sums that were folded before.
    pub(super) fn add_gap(&mut self, gap: &Gap) {
        self.totals.folded += gap.records;
        for (device, sums) in &gap.devices {
            self.totals.shares.add(&sums.shares);
            self.device(*device).add(&sums.shares);
        }
        for (code, count) in &gap.refused_by_code {
            *self.totals.refused_by_code.entry(code.clone()).or_default() += count;
        }
        for (upstream, sums) in &gap.upstreams {
            self.totals.answers.add(&sums.answers);
            self.totals.upstreams.entry(*upstream).or_default().add(&sums.answers);
            self.upstream_shares.entry(*upstream).or_default().add(&sums.shares);
        }
        self.note(gap.from_us);
        self.note(gap.to_us);
    }

    pub(super) fn merge(&mut self, other: Fold) {
        self.totals.add(&other.totals);
        for (device, sums) in other.devices {
            self.device(device).add(&sums);
        }
        for (upstream, sums) in other.upstream_shares {
            self.upstream_shares.entry(upstream).or_default().add(&sums);
        }
        other.named.into_values().for_each(|entry| self.name(entry));
        other.connections.into_values().for_each(|entry| self.add_connection(entry));
        let room = MAX_FOLDED_ENTRIES.saturating_sub(self.entries.len());
        self.entries.extend(other.entries.into_iter().take(room));
        self.times_us.0 = self.times_us.0.min(other.times_us.0);
        self.times_us.1 = self.times_us.1.max(other.times_us.1);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.totals.folded == 0
            && self.named.is_empty()
            && self.connections.is_empty()
            && self.entries.is_empty()
    }

    /// What is to be applied and written in its stead, in this order.
    pub(super) fn into_entries(self) -> Vec<Entry> {
        let mut entries: Vec<Entry> = self.named.into_values().map(Entry::Device).collect();
        entries.extend(self.connections.into_values().map(Entry::Connection));
        entries.extend(self.entries);
        if self.totals.folded == 0 {
            return entries;
        }
        let (from_us, to_us) = self.times_us;
        let mut devices =
            self.devices.into_iter().map(|(device, shares)| (device, Sums { shares, ..Sums::default() }));
        let mut upstream_shares = self.upstream_shares;
        let upstreams = self.totals.upstreams.into_iter().map(|(id, answers)| {
            let shares = upstream_shares.remove(&id).unwrap_or_default();
            (id, Sums { shares, answers, ..Sums::default() })
        });
        let mut upstreams: Vec<_> = upstreams.collect();
        // Those that were sent nothing in it.
        let others = upstream_shares.into_iter();
        upstreams.extend(others.map(|(id, shares)| (id, Sums { shares, ..Sums::default() })));
        let mut records = self.totals.folded;
        let mut codes: Vec<_> = self.totals.refused_by_code.into_iter().collect();
        loop {
            let devices: Vec<_> = devices.by_ref().take(MAX_GAP_SUBJECTS).collect();
            if devices.is_empty() && upstreams.is_empty() {
                return entries;
            }
            let upstreams = std::mem::take(&mut upstreams);
            let (records, refused_by_code) = (std::mem::take(&mut records), std::mem::take(&mut codes));
            entries.push(Entry::Gap(Gap { from_us, to_us, records, devices, upstreams, refused_by_code }));
        }
    }

    fn note(&mut self, at_us: u64) {
        self.times_us = (self.times_us.0.min(at_us), self.times_us.1.max(at_us));
    }

    /// The sums of a device, or those of nobody when there are too many.
    fn device(&mut self, id: Option<DeviceId>) -> &mut ShareSums {
        let has_room = self.devices.len() < self.most_devices || self.devices.contains_key(&id);
        self.devices.entry(if has_room { id } else { None }).or_default()
    }

    /// A machine that comes and goes a thousand times while there is no room is one entry.
    pub(super) fn add_connection(&mut self, entry: ConnectionEntry) {
        if self.connections.len() < self.most_devices || self.connections.contains_key(&entry.device) {
            self.connections.insert(entry.device, entry);
        }
    }

    /// A name beyond the bound is forgotten: the device shows by its number until it authorises again.
    fn name(&mut self, entry: DeviceEntry) {
        if self.named.len() < self.most_devices || self.named.contains_key(&entry.id) {
            self.named.insert(entry.id, entry);
        }
    }
}
