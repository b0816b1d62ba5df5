//! From readings of power to energy: what each device took while it mined.
//!
//! A reading stands until the next one of its source or until its time is over. The best source speaks for a device, at
//! every moment of its own; a reading of a group is shared out among those of its devices for which nobody better speaks,
//! by what they proved. Where nobody speaks nothing is counted, and the work of that time is in no efficiency.
//!
//! All of it is in integers. A power over a time is the difference of two whole energies since 1970, so that what is
//! rounded off one stretch is in the next one.

use std::collections::{BTreeMap, BTreeSet};

use crate::entry::PowerEntry;
use crate::power::PowerSource;
use crate::rollup::{PowerRow, Subject};

/// Readings at most: one for each device that is counted apart. Of further subjects none is taken.
pub(crate) const MAX_READINGS: usize = 262_144;

/// A hundred megawatts: more than any device takes, or any hall that one meter is for. A reading above is cut.
const MOST_MILLIWATTS: u64 = 100_000_000_000;

/// Readings of one source for one subject that are replaced within a minute and still count for it: one a second. A
/// further one stands from when the last of them began.
const MAX_REPLACED: usize = 60;

/// How often readings whose time is over are looked for when there is no room, in microseconds.
const PRUNE_INTERVAL_US: u64 = 60_000_000;

type Key = (Subject, PowerSource);

/// The latest readings, and those that they replaced in the part of a minute that is not counted yet.
#[derive(Debug, Default)]
pub(crate) struct Readings {
    latest: BTreeMap<Key, Reading>,
    replaced: BTreeMap<Key, Vec<Reading>>,
    /// Whose latest reading no rollup has told of.
    changed: BTreeSet<Key>,
    pruned_us: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reading {
    milliwatts: u64,
    from_us: u64,
    until_us: u64,
}

/// A time, and the power that is known for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) from_us: u64,
    pub(crate) to_us: u64,
    /// Milliwatts, and who says so; `None` where nobody does.
    pub(crate) power: Option<(u64, PowerSource)>,
}

impl Readings {
    /// Takes a reading. An older one than is known says nothing new. What it replaces still counts from `since_us` on.
    pub(crate) fn take(&mut self, entry: &PowerEntry, since_us: u64) {
        let key = (entry.subject, entry.source);
        let valid_us = u64::from(entry.valid_for_s) * 1_000_000;
        let mut reading = Reading {
            milliwatts: entry.milliwatts.min(MOST_MILLIWATTS),
            from_us: entry.at_us,
            until_us: entry.at_us.saturating_add(valid_us),
        };
        if let Some(known) = self.latest.get(&key) {
            if known.from_us > reading.from_us {
                return;
            }
            let past = known.within(since_us, reading.from_us);
            let replaced = self.replaced.get(&key).map_or(0, Vec::len);
            match past {
                Some(_) if replaced >= MAX_REPLACED => reading.from_us = known.from_us,
                Some(past) => self.replaced.entry(key).or_default().push(past),
                None => {}
            }
        } else if !self.has_room(entry.at_us) {
            return;
        }
        self.latest.insert(key, reading);
        self.changed.insert(key);
    }

    fn has_room(&mut self, now_us: u64) -> bool {
        if self.latest.len() >= MAX_READINGS && now_us >= self.pruned_us.saturating_add(PRUNE_INTERVAL_US) {
            self.pruned_us = now_us;
            let oldest = now_us.saturating_sub(PRUNE_INTERVAL_US);
            self.latest.retain(|_, reading| reading.until_us > oldest);
        }
        self.latest.len() < MAX_READINGS
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.latest.is_empty()
    }

    /// What the best source says of a subject that is heard at this moment: milliwatts, and the source.
    pub(crate) fn best(&self, subject: Subject, at_us: u64) -> Option<(u64, PowerSource)> {
        let of = self.latest.range((subject, PowerSource::Meter)..=(subject, PowerSource::Nameplate));
        let is_valid = |reading: &Reading| reading.from_us <= at_us && at_us < reading.until_us;
        of.filter(|(_, reading)| is_valid(reading))
            .map(|((_, source), reading)| (reading.milliwatts, *source))
            .next()
    }

    /// What one source says of a subject at this moment, in milliwatts.
    pub(crate) fn of_source(&self, subject: Subject, source: PowerSource, at_us: u64) -> Option<u64> {
        let reading = self.latest.get(&(subject, source))?;
        (reading.from_us <= at_us && at_us < reading.until_us).then_some(reading.milliwatts)
    }

    /// The time between two moments in stretches, each with what the best source says: all of it, in no order.
    pub(crate) fn stretches(&self, subject: Subject, from_us: u64, to_us: u64) -> Vec<Stretch> {
        let mut known = Vec::new();
        let mut open = vec![(from_us, to_us)];
        for source in PowerSource::ALL {
            let key = (subject, source);
            let replaced = self.replaced.get(&key).into_iter().flatten();
            for reading in replaced.chain(self.latest.get(&key)) {
                let mut rest = Vec::with_capacity(open.len());
                for (from, to) in open {
                    let Some(part) = reading.within(from, to) else {
                        rest.push((from, to));
                        continue;
                    };
                    let power = Some((reading.milliwatts, source));
                    known.push(Stretch { from_us: part.from_us, to_us: part.until_us, power });
                    rest.extend([(from, part.from_us), (part.until_us, to)].iter().filter(|(a, b)| a < b));
                }
                open = rest;
            }
            if open.is_empty() {
                break;
            }
        }
        known.extend(open.into_iter().map(|(from_us, to_us)| Stretch { from_us, to_us, power: None }));
        known
    }

    /// What was replaced has been counted.
    pub(crate) fn forget_replaced(&mut self) {
        self.replaced.clear();
    }

    /// The latest readings that changed since the last call.
    pub(crate) fn take_changed(&mut self) -> Vec<PowerRow> {
        let changed = std::mem::take(&mut self.changed).into_iter();
        changed.filter_map(|key| Some(row(key, *self.latest.get(&key)?))).collect()
    }

    /// What was replaced and still counts.
    pub(crate) fn replaced(&self) -> Vec<PowerRow> {
        let of = |(key, readings): (&Key, &Vec<Reading>)| {
            let key = *key;
            readings.clone().into_iter().map(move |reading| row(key, reading))
        };
        self.replaced.iter().flat_map(of).collect()
    }

    /// Readings as they were.
    pub(crate) fn restore(latest: &[PowerRow], replaced: &[PowerRow]) -> Self {
        let mut readings = Readings::default();
        for row in latest.iter().take(MAX_READINGS) {
            readings.latest.insert((row.subject, row.source), Reading::of(row));
        }
        for row in replaced {
            readings.replaced.entry((row.subject, row.source)).or_default().push(Reading::of(row));
        }
        readings
    }
}

impl Reading {
    fn of(row: &PowerRow) -> Self {
        Reading { milliwatts: row.milliwatts, from_us: row.from_us, until_us: row.until_us }
    }

    /// The part of it that lies between two moments, if any does.
    fn within(&self, from_us: u64, to_us: u64) -> Option<Reading> {
        let (from_us, until_us) = (self.from_us.max(from_us), self.until_us.min(to_us));
        (from_us < until_us).then_some(Reading { from_us, until_us, ..*self })
    }
}

fn row((subject, source): Key, reading: Reading) -> PowerRow {
    let Reading { milliwatts, from_us, until_us } = reading;
    PowerRow { subject, source, milliwatts, from_us, until_us }
}

/// The energy of a power between two moments, in millijoules.
pub(crate) fn energy(milliwatts: u64, from_us: u64, to_us: u64) -> u128 {
    let until = |us: u64| u128::from(milliwatts) * u128::from(us) / 1_000_000;
    until(to_us).saturating_sub(until(from_us))
}

/// The parts of an energy by weights, which add up to it exactly. The weights are not all 0.
pub(crate) fn share_out(energy: u128, weights: &[u128]) -> Vec<u128> {
    // Weights are cut to as many bits as leave room for the energy of any hall in any minute, which has 43.
    let sum = weights.iter().fold(0_u128, |sum, weight| sum.saturating_add(*weight));
    let surplus = (128 - sum.leading_zeros()).saturating_sub(80);
    let sum: u128 = weights.iter().map(|weight| weight >> surplus).sum::<u128>().max(1);
    let mut before = 0;
    let mut given = 0;
    let part = |weight: &u128| {
        before += weight >> surplus;
        let upto = energy * before / sum;
        upto - std::mem::replace(&mut given, upto)
    };
    weights.iter().map(part).collect()
}

/// How long some times last together, each moment counted once, and each with `value`.
pub(crate) fn over_union(mut times: Vec<(u64, u64)>, value: impl Fn(u64, u64) -> u128) -> u128 {
    times.sort_unstable();
    let mut sum = 0;
    let mut until = 0;
    for (from, to) in times {
        if to > until {
            sum += value(from.max(until), to);
            until = to;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use stratum::DeviceId;

    use super::*;

    const SUBJECT: Subject = Subject::Device(DeviceId(1));

    fn reading(at_us: u64, valid_for_s: u32, milliwatts: u64, source: PowerSource) -> PowerEntry {
        PowerEntry { subject: SUBJECT, at_us, valid_for_s, milliwatts, source }
    }

    fn sorted(readings: &Readings, from_us: u64, to_us: u64) -> Vec<(u64, u64, Option<u64>)> {
        let stretches = readings.stretches(SUBJECT, from_us, to_us).into_iter();
        let mut stretches: Vec<_> = stretches
            .map(|stretch| (stretch.from_us, stretch.to_us, stretch.power.map(|(power, _)| power)))
            .collect();
        stretches.sort_unstable();
        stretches
    }

    #[test]
    fn every_moment_has_what_the_best_source_said_then() {
        let mut readings = Readings::default();
        readings.take(&reading(10_000_000, 600, 5, PowerSource::Nameplate), 0);
        readings.take(&reading(20_000_000, 10, 7, PowerSource::Meter), 0);
        readings.take(&reading(40_000_000, 600, 8, PowerSource::Meter), 0);
        readings.take(&reading(50_000_000, 600, 9, PowerSource::Meter), 0);
        readings.take(&reading(45_000_000, 600, 1, PowerSource::Meter), 0);
        let expected = [
            (0, 10_000_000, None),
            (10_000_000, 20_000_000, Some(5)),
            (20_000_000, 30_000_000, Some(7)),
            (30_000_000, 40_000_000, Some(5)),
            (40_000_000, 50_000_000, Some(8)),
            (50_000_000, 60_000_000, Some(9)),
        ];
        assert_eq!(sorted(&readings, 0, 60_000_000), expected);
        let restored = Readings::restore(&readings.take_changed(), &readings.replaced());
        assert_eq!(sorted(&restored, 0, 60_000_000), expected);
        readings.forget_replaced();
        assert_eq!(sorted(&readings, 60_000_000, 70_000_000), [(60_000_000, 70_000_000, Some(9))]);
        assert_eq!(readings.best(SUBJECT, 49_999_999), Some((5, PowerSource::Nameplate)));
        assert_eq!(readings.best(SUBJECT, 50_000_000), Some((9, PowerSource::Meter)));
    }

    #[test]
    fn readings_that_come_too_fast_are_bounded() {
        let mut readings = Readings::default();
        for number in 0..1000 {
            readings.take(&reading(number * 1000, 600, number, PowerSource::Meter), 0);
        }
        assert_eq!(readings.replaced().len(), MAX_REPLACED);
        let stretches = sorted(&readings, 0, 2_000_000);
        assert_eq!(stretches.len(), MAX_REPLACED + 1);
        assert_eq!(stretches.last(), Some(&(60_000, 2_000_000, Some(999))));
    }

    #[test]
    fn a_constant_power_loses_nothing_however_time_is_cut() {
        let milliwatts = 3_333_333;
        let whole = energy(milliwatts, 1_795_645_000_000_001, 1_795_645_100_000_003);
        let mut parts = 0;
        let mut from = 1_795_645_000_000_001;
        for step in (1..).map(|number| number * 7919 % 100_003) {
            let to = (from + step).min(1_795_645_100_000_003);
            parts += energy(milliwatts, from, to);
            from = to;
            if to == 1_795_645_100_000_003 {
                break;
            }
        }
        assert_eq!(parts, whole);
        assert_eq!(energy(1000, 0, 60_000_000), 60_000);
    }

    #[test]
    fn parts_add_up_to_the_whole() {
        assert_eq!(share_out(100, &[1, 1, 1]), [33, 33, 34]);
        assert_eq!(share_out(36_000_000, &[16, 32]), [12_000_000, 24_000_000]);
        assert_eq!(share_out(7, &[0, 5, 0]), [0, 7, 0]);
        for weights in [vec![u128::MAX, u128::MAX, 1], vec![1 << 100; 1000], vec![3; 77]] {
            let parts = share_out(6_000_000_000_007, &weights);
            assert_eq!(parts.iter().sum::<u128>(), 6_000_000_000_007);
        }
        assert_eq!(over_union(vec![(5, 9), (0, 3), (2, 4), (6, 7)], |from, to| u128::from(to - from)), 8);
    }
}
