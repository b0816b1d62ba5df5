//! Energy in the books: when a minute is over, who mined in it took so much.

use stratum::{DeviceId, Work};

use super::Books;
use crate::energy::{of_minute, part};
use crate::entry::PowerEntry;
use crate::power::{EnergySums, PowerSource};
use crate::rollup::{GroupId, Subject};

impl Books {
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
        let mined: Vec<(DeviceId, u128)> = self
            .touched
            .iter()
            .filter_map(|subject| {
                let Subject::Device(id) = subject else { return None };
                let shares = self.account(*subject)?.minute_shares(minute);
                (shares.submitted > 0).then_some((*id, shares.credited.0))
            })
            .collect();
        let mut counted: Vec<(DeviceId, u64, PowerSource, u128)> = Vec::new();
        let mut left = Vec::new();
        for (id, work) in mined {
            match self.readings.best(Subject::Device(id), from_us, to_us) {
                Some((milliwatts, source)) => counted.push((id, of_minute(milliwatts), source, work)),
                None => left.push((id, work)),
            }
        }
        for group in 0..self.groups.len() {
            let group = GroupId(group as u16);
            let reading = self.readings.best(Subject::Group(group), from_us, to_us);
            let Some((milliwatts, source)) = reading else { continue };
            let of_group = |id: &DeviceId| self.groups_of(*id).contains(&group);
            let (members, others): (Vec<_>, Vec<_>) = left.into_iter().partition(|(id, _)| of_group(id));
            left = others;
            let all = members.iter().map(|(_, work)| work).sum();
            let energy = of_minute(milliwatts);
            let count = members.len();
            counted.extend(
                members.into_iter().map(|(id, work)| (id, part(energy, work, all, count), source, work)),
            );
        }
        for (id, millijoules, source, work) in counted {
            let mut energy = EnergySums { covered_work: Work(work), ..EnergySums::default() };
            energy.millijoules[source as usize] = millijoules;
            let add = |account: &mut super::Account| account.minute_mut().energy.add(&energy);
            self.for_each_of(Some(id), None, from_us, add);
        }
    }
}
