//! The account of one subject: sums since the ledger began, the open minute, and the points that still grow.
//!
//! An account never knows whose it is.

use crate::codec::{decode_sums, encode_sums};
use crate::rates::Rates;
use crate::rollup::Level;
use crate::sums::Sums;

#[derive(Debug, Default)]
pub(super) struct Account {
    /// The sums since the ledger began, but for the open minute: as bytes, which take a tenth of the room. Empty while
    /// they are nothing.
    sums: Vec<u8>,
    /// What the open minute has since it was looked at last; `None` while that is nothing.
    pub(super) minute: Option<Box<Sums>>,
    /// The latest point of each level: its start, and its sums as bytes. A minute is
    /// among them, because it can be looked at before it is over.
    growing: [(u64, Vec<u8>); Level::ALL.len()],
    pub(super) rates: Rates,
    /// Counts what was added, round and round, for those who look for changes.
    pub(super) changes: u32,
    /// Whether the next rollup has to tell of it.
    pub(super) is_changed: bool,
}

impl Account {
    pub(super) fn minute_mut(&mut self) -> &mut Sums {
        self.minute.get_or_insert_default()
    }

    /// Everything since the ledger began, but for the open minute.
    pub(super) fn sums(&self) -> Sums {
        decoded(&self.sums)
    }

    /// Sets what [`Account::sums`] gives.
    pub(super) fn set_sums(&mut self, sums: &Sums) {
        self.sums.clear();
        encode_sums(sums, &mut self.sums);
        self.sums.shrink_to_fit();
    }

    /// Everything since the ledger began.
    pub(super) fn total(&self) -> Sums {
        let mut total = self.sums();
        if let Some(minute) = &self.minute {
            total.add(minute);
        }
        total
    }

    /// Takes what the minute that starts at `minute` has into sums and points, and returns the points, each whole.
    pub(super) fn close(&mut self, minute: u64) -> impl Iterator<Item = (Level, u64, Sums)> {
        let news = self.minute.take().unwrap_or_default();
        let mut all = self.sums();
        all.add(&news);
        self.set_sums(&all);
        let growing = self.growing.iter_mut().zip(Level::ALL);
        growing.map(move |((start, bytes), level)| {
            let mut sums = Sums::default();
            if *start == level.start(minute) {
                sums = decoded(bytes);
            }
            sums.add(&news);
            *start = level.start(minute);
            bytes.clear();
            encode_sums(&sums, bytes);
            (level, *start, sums)
        })
    }

    /// Puts a point back that may go on growing.
    pub(super) fn restore_point(&mut self, level: Level, start: u64, sums: &Sums) {
        let (own_start, bytes) = &mut self.growing[level as usize];
        *own_start = start;
        bytes.clear();
        encode_sums(sums, bytes);
    }
}

fn decoded(bytes: &[u8]) -> Sums {
    if bytes.is_empty() { Sums::default() } else { decode_sums(bytes).expect("they were encoded here") }
}
