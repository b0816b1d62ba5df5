//! From readings of power to energy: what each device took while it mined, minute by minute.
//!
//! A reading stands until the next one of its source or until its time is over. The best source speaks for a device; a
//! reading of a group is shared out among those of its devices for which nobody better speaks, by what they proved.
//! Where nobody speaks nothing is counted, and the work of that time is in no efficiency. Readings live in memory: after
//! a restart they count from the next one on.

use std::collections::BTreeMap;

use crate::entry::PowerEntry;
use crate::power::PowerSource;
use crate::rollup::Subject;

/// Readings at most: one for each device that is counted apart. Of further subjects none is taken.
pub(crate) const MAX_READINGS: usize = 262_144;

/// A hundred megawatts: a reading above is cut, so that no sum of years can overflow.
const MOST_MILLIWATTS: u64 = 100_000_000_000;

/// The latest readings.
#[derive(Debug, Default)]
pub(crate) struct Readings(BTreeMap<(Subject, PowerSource), Reading>);

#[derive(Clone, Copy, Debug)]
struct Reading {
    milliwatts: u64,
    from_us: u64,
    until_us: u64,
}

impl Readings {
    /// Takes a reading. An older one than is known says nothing new.
    pub(crate) fn take(&mut self, entry: &PowerEntry) {
        let key = (entry.subject, entry.source);
        let known = self.0.get(&key);
        if known.is_some_and(|known| known.from_us > entry.at_us) {
            return;
        }
        if known.is_none() && self.0.len() >= MAX_READINGS {
            return;
        }
        let valid_us = u64::from(entry.valid_for_s) * 1_000_000;
        let until_us = entry.at_us.saturating_add(valid_us);
        let milliwatts = entry.milliwatts.min(MOST_MILLIWATTS);
        self.0.insert(key, Reading { milliwatts, from_us: entry.at_us, until_us });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What the best source says of a subject that is heard at some time between two moments: milliwatts, and the
    /// source.
    pub(crate) fn best(&self, subject: Subject, from_us: u64, to_us: u64) -> Option<(u64, PowerSource)> {
        let of = self.0.range((subject, PowerSource::Meter)..=(subject, PowerSource::Nameplate));
        let valid = |reading: &Reading| reading.from_us < to_us && reading.until_us > from_us;
        of.filter(|(_, reading)| valid(reading))
            .map(|((_, source), reading)| (reading.milliwatts, *source))
            .next()
    }

    /// Whether a source has ever spoken for a subject.
    pub(crate) fn has(&self, subject: Subject, source: PowerSource) -> bool {
        self.0.contains_key(&(subject, source))
    }
}

/// The energy of a minute at a power, in millijoules.
pub(crate) fn of_minute(milliwatts: u64) -> u64 {
    milliwatts.saturating_mul(60)
}

/// A part of an energy by work, in millijoules; equal parts where nobody has proved anything.
pub(crate) fn part(millijoules: u64, work: u128, all: u128, count: usize) -> u64 {
    if all == 0 {
        return millijoules / count.max(1) as u64;
    }
    (millijoules as f64 * (work as f64 / all as f64)) as u64
}
