//! The account of one subject: sums since the ledger began, the open minute, and the points that still grow.
//!
//! An account never knows whose it is.

use super::minute_sums::MinuteSums;
use crate::codec::PackedSums;
use crate::rates::Rates;
use crate::rollup::Level;
use crate::sums::Sums;

#[derive(Debug, Default)]
pub(super) struct Account {
    /// The sums since the ledger began, but for the open minute.
    sums: PackedSums,
    /// What the open minute has since it was looked at last; `None` while that is nothing.
    pub(super) minute: Option<Box<MinuteSums>>,
    /// The latest point of each level: its start, and its sums. A minute is among them, because it can be looked at before
    /// it is over.
    growing: [(u64, PackedSums); Level::ALL.len()],
    pub(super) rates: Rates,
    /// Counts what was added, round and round, for those who look for changes.
    pub(super) changes: u32,
    /// Whether the next rollup has to tell of it.
    pub(super) is_changed: bool,
}

impl Account {
    /// Reads what the next share will change, for the sake of the reading: see [`crate::Books::fetch`].
    pub(super) fn fetch(&self) -> u64 {
        let minute = self.minute.as_ref().map_or(0, |minute| minute.fetch());
        minute ^ self.rates.fetch() ^ u64::from(self.changes)
    }

    pub(super) fn minute_sums_mut(&mut self) -> &mut MinuteSums {
        self.minute.get_or_insert_default()
    }

    /// For what is rare.
    pub(super) fn minute_mut(&mut self) -> &mut Sums {
        self.minute_sums_mut().rest_mut()
    }

    /// Everything since the ledger began, but for the open minute.
    pub(super) fn packed_sums(&self) -> PackedSums {
        self.sums.clone()
    }

    /// Sets what [`Account::packed_sums`] gives.
    pub(super) fn set_sums(&mut self, sums: PackedSums) {
        self.sums = sums;
    }

    /// Everything since the ledger began.
    pub(super) fn total(&self) -> Sums {
        let mut total = Sums::default();
        self.add_total_to(&mut total);
        total
    }

    /// Adds [`Account::total`] to other sums.
    pub(super) fn add_total_to(&self, sums: &mut Sums) {
        self.sums.add_to(sums);
        if let Some(minute) = &self.minute {
            minute.add_to(sums);
        }
    }

    /// Takes what the minute that starts at `minute` has into sums and points, and returns the points, each whole. `room` is
    /// to work in.
    pub(super) fn close<'a>(
        &'a mut self,
        minute: u64,
        room: &'a mut Vec<u8>,
    ) -> impl Iterator<Item = (Level, u64, PackedSums)> + use<'a> {
        let mut news = Sums::default();
        if let Some(minute) = self.minute.take() {
            minute.add_to(&mut news);
        }
        let mut all = news.clone();
        self.sums.add_to(&mut all);
        self.sums = PackedSums::of_with(&all, room);
        let growing = self.growing.iter_mut().zip(Level::ALL);
        growing.map(move |((start, grown), level)| {
            let mut sums = news.clone();
            if *start == level.start(minute) {
                grown.add_to(&mut sums);
            }
            *start = level.start(minute);
            *grown = PackedSums::of_with(&sums, room);
            (level, *start, grown.clone())
        })
    }

    /// Puts a point back that may go on growing.
    pub(super) fn restore_point(&mut self, level: Level, start: u64, sums: PackedSums) {
        self.growing[level as usize] = (start, sums);
    }
}
