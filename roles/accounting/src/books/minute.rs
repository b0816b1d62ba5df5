//! What takes a look at every device, some at a time: whether the sums hold, the end of a minute, a rollup.
//!
//! Of a great fleet each takes long enough that others notice. Between two pieces of one of them no entry may be applied:
//! the pieces belong to one moment. Nothing here waits, or decides how large a piece is.

use super::{Books, end_of_minute};
use crate::batch::BatchNumber;
use crate::rollup::{Level, Point, RollUp, Subject};
use crate::sums::Sums;

/// How far a look at the sums of all devices has come.
#[derive(Debug)]
pub struct DeviceCheck {
    next: usize,
    /// The sums of those that were looked at, and of what belongs to none.
    parts: Sums,
}

impl Books {
    /// The first of the sums that must hold and does not. Looks at every device: not for every batch.
    pub fn violation(&self) -> Option<String> {
        let mut check = match self.begin_check() {
            Ok(check) => check,
            Err(violation) => return Some(violation),
        };
        while self.check_some(&mut check, usize::MAX) {}
        self.end_check(&check)
    }

    /// Begins [`Books::violation`] in pieces. Fails where the fleet's own sums do not hold.
    pub fn begin_check(&self) -> Result<DeviceCheck, String> {
        if let Some(violation) = self.totals.violation() {
            return Err(violation);
        }
        let fleet = self.fleet.total();
        if fleet.shares != self.totals.shares || fleet.answers != self.totals.answers {
            return Err(format!("the fleet's sums are not the totals: {fleet:?}, {:?}", self.totals));
        }
        Ok(DeviceCheck { next: 0, parts: self.untracked.total() })
    }

    /// Looks at `most` further devices; false when there are no more.
    pub fn check_some(&self, check: &mut DeviceCheck, most: usize) -> bool {
        let end = self.devices.len().min(check.next.saturating_add(most));
        let devices = self.devices[check.next..end].iter().flatten();
        devices.for_each(|device| device.account.add_total_to(&mut check.parts));
        check.next = end;
        end < self.devices.len()
    }

    /// What does not hold, after all devices were looked at.
    pub fn end_check(&self, check: &DeviceCheck) -> Option<String> {
        let (parts, fleet) = (&check.parts, self.fleet.total());
        if parts.shares != fleet.shares {
            return Some(format!("the devices' shares are not the fleet's: {parts:?}, {fleet:?}"));
        }
        if parts.energy != fleet.energy || parts.answers != fleet.answers {
            return Some(format!("the devices' answers are not the fleet's: {parts:?}, {fleet:?}"));
        }
        None
    }

    /// Begins the end of the open minute in pieces: what the devices took in it is counted. Then comes
    /// [`Books::close_some`] until it has no more, and then [`Books::turn_to`] a time after the minute.
    pub fn end_open_part(&mut self) {
        self.end_part(end_of_minute(self.minute));
    }

    /// Closes the open minute for `most` further subjects that have something in it; false when there are no more.
    pub fn close_some(&mut self, most: usize) -> bool {
        let minute = self.minute;
        let from = self.touched.len().saturating_sub(most);
        let mut points = std::mem::take(&mut self.points);
        // At once: to grow it by and by would move it again and again.
        points.reserve(self.touched.len() * Level::ALL.len());
        let mut room = Vec::new();
        for subject in self.touched.split_off(from) {
            let Some(account) = self.account_mut(subject) else { continue };
            let closed = account.close(minute, &mut room);
            points.extend(closed.map(|(level, start, sums)| Point { subject, level, start, sums }));
        }
        self.points = points;
        from > 0
    }

    /// What is to be kept of everything up to and with the batch `watermark`, which must be the last that was made of
    /// the entries that were applied. Whole values of what changed since the last call.
    pub fn roll_up(&mut self, watermark: BatchNumber) -> RollUp {
        while self.close_some(usize::MAX) {}
        let mut roll_up = self.begin_roll_up(watermark);
        while self.roll_up_some(&mut roll_up, usize::MAX) {}
        roll_up
    }

    /// Begins [`Books::roll_up`] in pieces, after [`Books::close_some`] had no more: a minute that goes on grows by what
    /// comes later.
    pub fn begin_roll_up(&mut self, watermark: BatchNumber) -> RollUp {
        let waiting_from = self.oldest_waiting().unwrap_or(watermark.next());
        let points = std::mem::take(&mut self.points);
        // At once: to grow them by and by would move them again and again.
        let (sums, devices) =
            (Vec::with_capacity(self.changed.len()), Vec::with_capacity(self.changed.len()));
        let facts = self.take_facts();
        RollUp { watermark, waiting_from, points, sums, devices, facts, ..RollUp::default() }
    }

    /// Adds `most` further subjects that changed to a rollup; false when there are no more.
    pub fn roll_up_some(&mut self, roll_up: &mut RollUp, most: usize) -> bool {
        let from = self.changed.len().saturating_sub(most);
        for subject in self.changed.split_off(from) {
            let Some(account) = self.account_mut(subject) else { continue };
            account.is_changed = false;
            roll_up.sums.push((subject, account.packed_sums()));
            match subject {
                Subject::Device(id) => roll_up.devices.extend(self.device_row(id)),
                Subject::Group(id) => roll_up.groups.push((id, self.groups[usize::from(id.0)].name.clone())),
                Subject::Upstream(id) => {
                    let upstream = &self.upstreams[&id];
                    roll_up.upstreams.push((id, upstream.name.clone(), upstream.account_name.clone()));
                }
                Subject::Fleet | Subject::Untracked => {}
            }
        }
        from > 0
    }
}
