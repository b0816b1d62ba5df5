//! How books come back after a restart: from what their rollups said, and then from the entries since.
//!
//! Rates start anew, because a rate of the time before would say nothing of the time between.

use std::sync::Arc;

use stratum::UpstreamId;

use super::identity::Odd;
use super::{Books, Device, Group, MAX_DEVICES, MAX_GROUPS};
use crate::codec::PackedSums;
use crate::rollup::{DeviceRow, Facts, GroupId, Level, Point, Subject};

/// What a store kept of the rollups.
#[derive(Clone, Copy, Debug)]
pub struct Restored<'a> {
    /// Sums since the ledger began.
    pub sums: &'a [(Subject, PackedSums)],
    /// Devices.
    pub devices: &'a [DeviceRow],
    /// Groups, in the order of their numbers.
    pub groups: &'a [(GroupId, Arc<str>)],
    /// Upstreams: number, name, account.
    pub upstreams: &'a [(UpstreamId, Arc<str>, Arc<str>)],
    /// The latest point of each level for every subject that has one in the span.
    pub open_points: &'a [Point],
    /// Everything else: all readings of power, and the latest events and blocks.
    pub facts: &'a Facts,
}

impl Books {
    /// Books as they were at a rollup. The entries of later batches are to be applied next.
    pub fn restore(from: Restored<'_>) -> Self {
        let mut books = Books::default();
        for (id, name) in from.groups {
            if usize::from(id.0) == books.groups.len() && books.groups.len() < MAX_GROUPS {
                books.groups.push(Group { name: name.clone(), account: Default::default() });
            }
        }
        for (id, name, account) in from.upstreams {
            let upstream = books.upstreams.entry(*id).or_default();
            upstream.name = name.clone();
            upstream.account_name = account.clone();
        }
        from.devices.iter().for_each(|row| books.restore_device(row));
        for (subject, sums) in from.sums {
            if let Some(account) = books.account_mut(*subject) {
                account.set_sums(sums.clone());
            }
        }
        let fleet = books.fleet.packed_sums().sums();
        books.totals.shares = fleet.shares;
        books.totals.answers = fleet.answers;
        for (id, upstream) in &books.upstreams {
            books.totals.upstreams.insert(*id, upstream.account.packed_sums().sums().answers);
        }
        for point in from.open_points {
            if point.level == Level::Minute {
                books.minute = books.minute.max(point.start);
            }
            if let Some(account) = books.account_mut(point.subject) {
                account.restore_point(point.level, point.start, point.sums.clone());
            }
        }
        books.restore_facts(from.facts);
        books
    }

    fn restore_device(&mut self, row: &DeviceRow) {
        let index = row.id.0 as usize;
        if index >= MAX_DEVICES {
            return;
        }
        if index >= self.devices.len() {
            self.devices.resize_with(index + 1, || None);
        }
        let device = Device {
            name: Some(row.name.clone()).filter(|name| !name.is_empty()),
            groups: row.groups.clone(),
            address: row.address.as_str().into(),
            user_agent: row.user_agent.as_str().into(),
            odd: Odd::of(&row.worker_name, &row.device_id),
            last_seen_us: row.last_seen_us,
            last_share_us: row.last_share_us,
            best_difficulty: row.best_difficulty,
            ..Device::new(row.first_seen_us)
        };
        self.known += usize::from(self.devices[index].is_none());
        self.devices[index] = Some(Box::new(device));
    }
}
