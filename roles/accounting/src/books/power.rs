//! Energy in the books: when a part of a minute is over, who mined in it took so much.
//!
//! A part is the minute, less what the process did not run of it. Who mined in it is taken to have run for all of it, and
//! to have proved its work evenly: the stream has no finer measure.

use stratum::{DeviceId, Work};

use super::{Account, Books};
use crate::energy::{Stretch, energy, over_union, share_out};
use crate::entry::PowerEntry;
use crate::power::{EnergySums, PowerSource};
use crate::rollup::{GroupId, OpenPart, Subject};

/// A device that mined in a part.
struct Mined {
    id: DeviceId,
    /// What it proved, in expected hashes.
    work: u128,
    /// The time of the part that is not counted yet, with what is said of itself.
    open: Vec<Stretch>,
    /// What it took, in millijoules.
    millijoules: [u128; PowerSource::ALL.len()],
    /// The time for which that is known.
    covered_us: u64,
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
            self.readings.take(entry, self.part_from_us);
        }
    }

    /// The power of a device or a group now, in milliwatts, and who says so; `None` when nobody does.
    pub fn power(&self, subject: Subject, now_us: u64) -> Option<(u64, PowerSource)> {
        self.readings.best(subject, now_us)
    }

    /// The power on a device's nameplate, in milliwatts, where one is said.
    pub fn nameplate(&self, id: DeviceId, now_us: u64) -> Option<u64> {
        self.readings.of_source(Subject::Device(id), PowerSource::Nameplate, now_us)
    }

    /// Notes what a device proved in the part that is open.
    pub(super) fn note_mined(&mut self, id: DeviceId, work: u128) {
        let Some(Some(device)) = self.devices.get_mut(id.0 as usize) else { return };
        if device.part_work.is_none() {
            self.mined.push(id);
        }
        let part_work = device.part_work.get_or_insert_default();
        *part_work = part_work.saturating_add(work);
    }

    /// Counts what the devices took that mined in the part that ends now, and begins the next one.
    pub(super) fn end_part(&mut self, to_us: u64) {
        let from_us = self.part_from_us;
        self.part_from_us = from_us.max(to_us);
        let ids = std::mem::take(&mut self.mined);
        let mut mined = Vec::with_capacity(ids.len());
        for id in ids {
            let device = self.devices.get_mut(id.0 as usize).and_then(Option::as_mut);
            let work = device.and_then(|device| device.part_work.take()).unwrap_or(0);
            if from_us < to_us && !self.readings.is_empty() {
                let open = self.readings.stretches(Subject::Device(id), from_us, to_us);
                mined.push(Mined { id, work, open, millijoules: Default::default(), covered_us: 0 });
            }
        }
        for group in 0..self.groups.len() {
            self.share_group(GroupId(group as u16), &mut mined, (from_us, to_us));
        }
        mined.iter_mut().for_each(Mined::count_own);
        for one in mined.into_iter().filter(|one| one.covered_us > 0) {
            let covered_work = Work(part_of(one.work, one.covered_us, to_us - from_us));
            let sums = EnergySums { millijoules: one.millijoules, covered_work };
            let add = |account: &mut Account| account.minute_mut().energy.add(&sums);
            self.for_each_of(Some(one.id), None, from_us, add);
        }
        self.readings.forget_replaced();
    }

    /// Shares out what a group took among those of its devices for which nobody better speaks.
    fn share_group(&self, group: GroupId, mined: &mut [Mined], (from_us, to_us): (u64, u64)) {
        for stretch in self.readings.stretches(Subject::Group(group), from_us, to_us) {
            let Some((milliwatts, source)) = stretch.power else { continue };
            let mut times = Vec::new();
            let mut takers = Vec::new();
            for (place, one) in mined.iter_mut().enumerate() {
                if !self.groups_of(one.id).contains(&group) {
                    continue;
                }
                let taken_us = one.give(&stretch, source, &mut times);
                if taken_us > 0 {
                    takers.push((place, taken_us));
                }
            }
            let all = over_union(times, |from_us, to_us| energy(milliwatts, from_us, to_us));
            let weights = weights(mined, &takers);
            for ((place, taken_us), part) in takers.into_iter().zip(share_out(all, &weights)) {
                mined[place].millijoules[source as usize] += part;
                mined[place].covered_us += taken_us;
            }
        }
    }

    /// What a rollup must say of the part that is open.
    pub(super) fn open_part(&self) -> OpenPart {
        let work = |id: &DeviceId| {
            let device = self.devices.get(id.0 as usize)?.as_ref()?;
            Some((*id, Work(device.part_work?)))
        };
        OpenPart {
            minute: self.minute,
            from_us: self.part_from_us,
            latest_us: self.latest_us,
            mined: self.mined.iter().filter_map(work).collect(),
            replaced: self.readings.replaced(),
        }
    }

    /// Goes on with a part as a rollup said it.
    pub(super) fn restore_part(&mut self, part: &OpenPart) {
        self.minute = self.minute.max(part.minute);
        (self.part_from_us, self.latest_us) = (part.from_us, part.latest_us);
        part.mined.iter().for_each(|(id, work)| self.note_mined(*id, work.0));
    }
}

impl Mined {
    /// Gives the time of a group's reading away in which nobody better speaks. Returns how long it is.
    fn give(&mut self, of_group: &Stretch, source: PowerSource, times: &mut Vec<(u64, u64)>) -> u64 {
        let mut taken_us = 0;
        let mut kept = Vec::with_capacity(self.open.len());
        for own in self.open.drain(..) {
            let (from_us, to_us) = (own.from_us.max(of_group.from_us), own.to_us.min(of_group.to_us));
            // Sources are in their order, the best one first.
            if from_us >= to_us || own.power.is_some_and(|(_, own)| own <= source) {
                kept.push(own);
                continue;
            }
            taken_us += to_us - from_us;
            times.push((from_us, to_us));
            let rest =
                [(own.from_us, from_us), (to_us, own.to_us)].into_iter().filter(|(from, to)| from < to);
            kept.extend(rest.map(|(from_us, to_us)| Stretch { from_us, to_us, ..own }));
        }
        self.open = kept;
        taken_us
    }

    /// Counts what is said of itself, for the time that no group took.
    fn count_own(&mut self) {
        for own in self.open.drain(..) {
            let Some((milliwatts, source)) = own.power else { continue };
            self.millijoules[source as usize] += energy(milliwatts, own.from_us, own.to_us);
            self.covered_us += own.to_us - own.from_us;
        }
    }
}

/// By what the energy of a group is shared out: work and time; time alone where nobody has proved anything.
fn weights(mined: &[Mined], takers: &[(usize, u64)]) -> Vec<u128> {
    let has_work = takers.iter().any(|(place, _)| mined[*place].work > 0);
    let weight = |(place, taken_us): &(usize, u64)| {
        let work = if has_work { mined[*place].work } else { 1 };
        work.saturating_mul(u128::from(*taken_us))
    };
    takers.iter().map(weight).collect()
}

/// The part of a work that falls into a part of its time, rounded down.
fn part_of(work: u128, part_us: u64, all_us: u64) -> u128 {
    let (part, all) = (u128::from(part_us), u128::from(all_us.max(1)));
    // What is above 2^102 is nobody's: the order of the two does not matter there.
    work.checked_mul(part).map_or_else(|| work / all * part, |product| product / all)
}
