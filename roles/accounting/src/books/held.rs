//! Shares that wait for their job, and what becomes of them.
//!
//! A release says by itself whom it counts for: no list of what waits is kept here, and the sums say how much that is.

use stratum::{DeviceId, UpstreamId, Work};

use super::{Account, Books};
use crate::entry::microseconds;
use crate::record::{DropReason, HeldRelease, ReleaseFate};
use crate::rollup::{GroupId, Subject};
use crate::sums::{AnswerSums, ShareSums};

impl Books {
    /// Takes what became of a share that was held.
    pub(super) fn apply_release(&mut self, release: &HeldRelease) {
        let at_us = microseconds(release.released.utc);
        self.turn_to(at_us);
        self.totals.add_release(release);
        let is_forwarded = matches!(release.fate, ReleaseFate::Forwarded(_));
        let add = |account: &mut Account| {
            let minute = account.minute_mut();
            minute.shares.add_release(release);
            if is_forwarded {
                minute.answers.add(&AnswerSums::of_forwarded(release.work));
            }
        };
        self.for_each_of(release.device, Some(release.upstream), at_us, add);
        self.await_answer_to_released(release);
    }

    /// The process that held shares has ended: they are dropped. What cannot be told apart any more, because detail was
    /// lost, counts for nobody, so that the devices add up to the fleet.
    pub(super) fn drop_held(&mut self) {
        let of_fleet = waiting(&self.totals.shares);
        if of_fleet == (0, Work(0)) {
            return;
        }
        self.totals.shares.add_released(FATE, of_fleet.0, of_fleet.1, of_fleet.1);
        self.drop_of(Subject::Fleet, of_fleet);
        let upstreams: Vec<UpstreamId> = self.upstreams.keys().copied().collect();
        upstreams.into_iter().for_each(|id| self.drop_all_of(Subject::Upstream(id)));
        let groups = 0..self.groups.len();
        groups.for_each(|place| self.drop_all_of(Subject::Group(GroupId(place as u16))));
        let mut left = of_fleet;
        for place in 0..self.devices.len() {
            let subject = Subject::Device(DeviceId(place as u32));
            let (count, work) = self.held_by(subject);
            let part = (count.min(left.0), work.min(left.1));
            left = (left.0 - part.0, Work(left.1.0 - part.1.0));
            self.drop_of(subject, part);
        }
        self.drop_of(Subject::Untracked, left);
    }

    fn drop_all_of(&mut self, subject: Subject) {
        let held = self.held_by(subject);
        self.drop_of(subject, held);
    }

    fn drop_of(&mut self, subject: Subject, (count, work): (u64, Work)) {
        if (count, work) != (0, Work(0)) {
            let add =
                |account: &mut Account| account.minute_mut().shares.add_released(FATE, count, work, work);
            self.touch(subject, &mut { add });
        }
    }

    fn held_by(&self, subject: Subject) -> (u64, Work) {
        self.account(subject).map_or((0, Work(0)), |account| waiting(&account.total().shares))
    }
}

const FATE: ReleaseFate = ReleaseFate::Dropped(DropReason::ProcessEnded);

/// How many shares wait for their job, and what they are worth.
fn waiting(shares: &ShareSums) -> (u64, Work) {
    (shares.waiting(), shares.waiting_work())
}
