//! Energy in the books: when a minute is over, who mined in it took so much.

use stratum::{DeviceId, Work};

use super::Books;
use crate::energy::{of_minute, part};
use crate::entry::PowerEntry;
use crate::power::{EnergySums, PowerSource};
use crate::rollup::{GroupId, Subject};

/// A device that mined in a minute.
struct Mined {
    id: DeviceId,
    /// What it proved, in expected hashes.
    work: u128,
    /// What is said of itself: milliwatts, and who says so.
    own: Option<(u64, PowerSource)>,
}

impl Books {
    /// What the readings of single devices add up to now, in milliwatts; `None` when there are none.
    pub fn power_of_devices(&self, now_us: u64) -> Option<u64> {
        if self.readings.is_empty() {
            return None;
        }
        let all = (0..self.devices.len()).map(|index| Subject::Device(DeviceId(index as u32)));
        let known = all.filter_map(|subject| self.power(subject, now_us));
        known.map(|(milliwatts, _)| milliwatts).reduce(u64::saturating_add)
    }

    /// Takes a reading of a device or a group that is known; others mean nothing here.
    pub(super) fn apply_power(&mut self, entry: &PowerEntry) {
        self.turn_to(entry.at_us);
        let is_known = match entry.subject {
            Subject::Device(_) | Subject::Group(_) => self.account(entry.subject).is_some(),
            Subject::Fleet | Subject::Untracked | Subject::Upstream(_) => false,
        };
        if is_known {
            self.readings.take(entry);
        }
    }

    /// The power of a device or a group now, in milliwatts, and who says so; `None` when nobody does.
    pub fn power(&self, subject: Subject, now_us: u64) -> Option<(u64, PowerSource)> {
        self.readings.best(subject, now_us, now_us.saturating_add(1))
    }

    /// Whether the nameplate of a device is known.
    pub fn has_nameplate(&self, id: DeviceId) -> bool {
        self.readings.has(Subject::Device(id), PowerSource::Nameplate)
    }

    /// Counts what the devices took that have something in the open minute, which is over.
    pub(super) fn count_energy(&mut self) {
        if self.readings.is_empty() {
            return;
        }
        let (from_us, to_us) = (self.minute * 1_000_000, (self.minute + 60) * 1_000_000);
        let minute = self.minute;
        let mut left: Vec<Mined> = self
            .touched
            .iter()
            .filter_map(|subject| {
                let Subject::Device(id) = subject else { return None };
                let shares = self.account(*subject)?.minute_shares(minute);
                let own = self.readings.best(*subject, from_us, to_us);
                (shares.submitted > 0).then_some(Mined { id: *id, work: shares.credited.0, own })
            })
            .collect();
        let mut counted: Vec<(DeviceId, u64, PowerSource, u128)> = Vec::new();
        for group in 0..self.groups.len() {
            let group = GroupId(group as u16);
            let reading = self.readings.best(Subject::Group(group), from_us, to_us);
            let Some((milliwatts, source)) = reading else { continue };
            // Sources are in their order, the best one first.
            let is_for = |one: &Mined| {
                one.own.is_none_or(|(_, own)| source < own) && self.groups_of(one.id).contains(&group)
            };
            let (members, others): (Vec<_>, Vec<_>) = left.into_iter().partition(is_for);
            left = others;
            let all = members.iter().map(|one| one.work).sum();
            let (energy, count) = (of_minute(milliwatts), members.len());
            counted.extend(
                members.iter().map(|one| (one.id, part(energy, one.work, all, count), source, one.work)),
            );
        }
        counted.extend(left.into_iter().filter_map(|one| {
            let (milliwatts, source) = one.own?;
            Some((one.id, of_minute(milliwatts), source, one.work))
        }));
        for (id, millijoules, source, work) in counted {
            let mut energy = EnergySums { covered_work: Work(work), ..EnergySums::default() };
            energy.millijoules[source as usize] = millijoules;
            let add = |account: &mut super::Account| account.minute_mut().energy.add(&energy);
            self.for_each_of(Some(id), None, from_us, add);
        }
    }
}
