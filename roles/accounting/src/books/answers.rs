//! Whose share an upstream's answer is for: forwarded shares wait here for their answers, channel by channel.
//!
//! An upstream answers by sequence number and knows nothing of devices. What cannot be told apart any more, because
//! detail was lost, counts for nobody: the sums over all hold whatever happens here.

use stratum::{DeviceId, UpstreamId, Work};

use super::{Account, Books};
use crate::batch::BatchNumber;
use crate::entry::{Entry, EventKind, Gap, microseconds};
use crate::record::{Fate, HeldRelease, LossReason, ShareRecord, UpstreamAnswer, UpstreamVerdict};
use crate::rollup::Subject;
use crate::sums::{AnswerSums, add_refusals, clean_code};
use crate::waiting::part_of;

/// Whose share waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sender {
    device: Option<DeviceId>,
    /// When it was judged, or released, in unix microseconds.
    judged_us: u64,
    /// The batch that it is in.
    batch: BatchNumber,
}

impl Books {
    /// Notes that a share waits for its answer.
    pub(super) fn await_answer(&mut self, share: &ShareRecord, device: Option<DeviceId>) {
        let judged_us = microseconds(share.judged.utc);
        self.waiting.push(share, Sender { device, judged_us, batch: self.batch });
    }

    /// Notes that a share that was held waits for its answer now, if it was forwarded.
    pub(super) fn await_answer_to_released(&mut self, release: &HeldRelease) {
        let device = release.device.filter(|id| self.account(Subject::Device(*id)).is_some());
        let judged_us = microseconds(release.released.utc);
        self.waiting.push_released(release, Sender { device, judged_us, batch: self.batch });
    }

    /// Takes an entry that is in the sums already, but may be of a share that waits: see [`crate::RollUp::waiting_from`].
    pub fn recall(&mut self, entry: &Entry) {
        match entry {
            Entry::Share(share) if share.fate == Fate::Forwarded => {
                let device = share.device.filter(|id| self.account(Subject::Device(*id)).is_some());
                self.await_answer(share, device);
            }
            Entry::Release(release) => self.await_answer_to_released(release),
            Entry::Answer(answer) => drop(self.waiting.answered(answer)),
            Entry::Event(event) if event.kind == EventKind::Started => self.waiting.clear(),
            Entry::Job(job) => self.note_job(job),
            _ => {}
        }
    }

    /// The batch of the oldest share that waits.
    pub(super) fn oldest_waiting(&self) -> Option<BatchNumber> {
        self.waiting.oldest().map(|share| share.of.batch).min()
    }

    /// Takes what an upstream said.
    pub(super) fn apply_answer(&mut self, answer: &UpstreamAnswer) {
        let at_us = microseconds(answer.received.utc);
        self.turn_to(at_us);
        self.totals.add_answer(answer);
        let sums = AnswerSums::of_answer(&answer.verdict);
        let add = |account: &mut Account| account.minute_sums_mut().add_answers(&sums);
        self.touch(Subject::Fleet, &mut { add });
        self.touch(Subject::Upstream(answer.upstream), &mut { add });
        if let UpstreamVerdict::Rejected { code, .. } = &answer.verdict
            && let Some(upstream) = self.upstreams.get_mut(&answer.upstream)
        {
            add_refusals(&mut upstream.refused_by_code, &clean_code(code), 1);
        }
        let mut left = sums.clone();
        let is_answered = !matches!(answer.verdict, UpstreamVerdict::Lost { .. });
        let answered = self.waiting.answered(answer);
        self.fetch(answered.iter().filter_map(|share| share.of.device));
        for share in answered {
            if is_answered && let Some(upstream) = self.upstreams.get_mut(&answer.upstream) {
                upstream.acks.add(at_us.saturating_sub(share.of.judged_us));
            }
            let part = part_of(&answer.verdict, share.work);
            left.subtract(&part);
            self.touch_devices(share.of.device, &part);
        }
        if left != AnswerSums::default() {
            self.touch(Subject::Untracked, &mut |account| account.minute_sums_mut().add_answers(&left));
        }
    }

    /// The process that wrote the entries so far has ended: what waits will never be answered, and what is held
    /// never sent. Where it is known whose
    /// shares wait, they are theirs; where detail was lost, they are nobody's.
    pub(super) fn end_life(&mut self) {
        self.drop_held();
        let waiting = std::mem::take(&mut self.waiting);
        let reason = LossReason::ProcessEnded as usize;
        let upstreams: Vec<UpstreamId> = self.upstreams.keys().copied().collect();
        for id in upstreams {
            let answers = self.upstreams[&id].account.total().answers;
            let mut lost = AnswerSums::default();
            lost.lost[reason] = answers.pending();
            lost.lost_work[reason] = answers.pending_work();
            if lost == AnswerSums::default() {
                continue;
            }
            self.totals.answers.add(&lost);
            self.totals.upstreams.entry(id).or_default().add(&lost);
            let add = |account: &mut Account| account.minute_sums_mut().add_answers(&lost);
            self.touch(Subject::Fleet, &mut { add });
            self.touch(Subject::Upstream(id), &mut { add });
            let of_upstream = waiting.iter().filter(|(upstream, _)| *upstream == id);
            let shares: Vec<_> = of_upstream.map(|(_, share)| *share).collect();
            let work = Work(shares.iter().map(|share| share.work.0).sum());
            if (shares.len() as u64, work) != (lost.lost[reason], lost.lost_work[reason]) {
                self.touch(Subject::Untracked, &mut { add });
                continue;
            }
            for share in shares {
                let mut part = AnswerSums::default();
                part.lost[reason] = 1;
                part.lost_work[reason] = share.work;
                self.touch_devices(share.of.device, &part);
            }
        }
    }

    /// Adds the refusals of a gap. Whose codes they are is only known where one upstream alone refused something.
    pub(super) fn add_lost_refusals(&mut self, gap: &Gap) {
        let mut refusing = gap.upstreams.iter().filter(|(_, sums)| sums.answers.refused > 0);
        let upstream = match (refusing.next(), refusing.next()) {
            (Some((id, _)), None) => self.upstreams.get_mut(id),
            _ => None,
        };
        if let Some(upstream) = upstream {
            let counts = &mut upstream.refused_by_code;
            gap.refused_by_code.iter().for_each(|(code, count)| add_refusals(counts, code, *count));
        }
        gap.refused_by_code.iter().for_each(|(code, count)| self.totals.add_refusals(code, *count));
    }

    fn touch_devices(&mut self, device: Option<DeviceId>, part: &AnswerSums) {
        let add = |account: &mut Account| account.minute_sums_mut().add_answers(part);
        let Some(id) = device else { return self.touch(Subject::Untracked, &mut { add }) };
        self.touch(Subject::Device(id), &mut { add });
        for place in 0..self.groups_of(id).len() {
            let group = self.groups_of(id)[place];
            self.touch(Subject::Group(group), &mut { add });
        }
    }
}
