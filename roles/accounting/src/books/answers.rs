//! Whose share an upstream's answer is for: forwarded shares wait here for their answers, channel by channel.
//!
//! An upstream answers by sequence number and knows nothing of devices. What cannot be told apart any more, because
//! detail was lost, counts for nobody: the sums over all hold whatever happens here.

use std::collections::VecDeque;

use stratum::{DeviceId, SequenceNumber, UpstreamId, Work};

use super::{Account, Books};
use crate::batch::BatchNumber;
use crate::entry::{Entry, EventKind, microseconds};
use crate::record::{Fate, LossReason, ShareRecord, UpstreamAnswer, UpstreamVerdict};
use crate::rollup::Subject;
use crate::sums::AnswerSums;

/// Forwarded shares of one channel that wait at most: as many as an upstream's state machine lets wait. When one more
/// comes, the oldest counts for nobody.
const MAX_WAITING: usize = 65_536;

/// Channels with waiting shares at most: as many as an upstream has channels for devices.
const MAX_CHANNELS: usize = 16_384;

/// A forwarded share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    number: SequenceNumber,
    device: Option<DeviceId>,
    work: Work,
    /// When it was judged, in unix microseconds.
    judged_us: u64,
    /// The batch that it is in.
    batch: BatchNumber,
}

impl Books {
    /// Notes that a share waits for its answer.
    pub(super) fn await_answer(&mut self, share: &ShareRecord, device: Option<DeviceId>) {
        let (Some(upstream), Some(channel), Some(number)) =
            (share.upstream, share.upstream_channel, share.sequence_number)
        else {
            return;
        };
        let key = (upstream, channel);
        if self.waiting.len() >= MAX_CHANNELS && !self.waiting.contains_key(&key) {
            return;
        }
        let waiting = self.waiting.entry(key).or_default();
        if waiting.len() == MAX_WAITING {
            waiting.pop_front();
        }
        let judged_us = microseconds(share.judged.utc);
        let work = share.upstream_work;
        waiting.push_back(Waiting { number, device, work, judged_us, batch: self.batch });
    }

    /// Takes an entry that is in the sums already, but may be of a share that waits: see [`crate::RollUp::waiting_from`].
    pub fn recall(&mut self, entry: &Entry) {
        match entry {
            Entry::Share(share) if share.fate == Fate::Forwarded => {
                let device = share.device.filter(|id| self.account(Subject::Device(*id)).is_some());
                self.await_answer(share, device);
            }
            Entry::Answer(answer) => drop(self.answered(answer)),
            Entry::Event(event) if event.kind == EventKind::Started => self.waiting.clear(),
            Entry::Job(job) => self.note_job(job),
            _ => {}
        }
    }

    /// The batch of the oldest share that waits.
    pub(super) fn oldest_waiting(&self) -> Option<BatchNumber> {
        self.waiting.values().filter_map(|waiting| Some(waiting.front()?.batch)).min()
    }

    /// Takes what an upstream said.
    pub(super) fn apply_answer(&mut self, answer: &UpstreamAnswer) {
        let at_us = microseconds(answer.received.utc);
        self.turn_to(at_us);
        self.totals.add_answer(answer);
        let sums = AnswerSums::of_answer(&answer.verdict);
        let add = |account: &mut Account| account.minute_mut().answers.add(&sums);
        self.touch(Subject::Fleet, &mut { add });
        self.touch(Subject::Upstream(answer.upstream), &mut { add });
        let mut left = sums.clone();
        let is_answered = !matches!(answer.verdict, UpstreamVerdict::Lost { .. });
        for share in self.answered(answer) {
            if is_answered && let Some(upstream) = self.upstreams.get_mut(&answer.upstream) {
                upstream.acks.add(at_us.saturating_sub(share.judged_us));
            }
            let part = part_of(&answer.verdict, share.work);
            subtract(&mut left, &part);
            self.touch_devices(share.device, &part);
        }
        if left != AnswerSums::default() {
            self.touch(Subject::Untracked, &mut |account| account.minute_mut().answers.add(&left));
        }
    }

    /// The process that wrote the entries so far has ended: what waits will never be answered. Where it is known whose
    /// shares wait, they are theirs; where detail was lost, they are nobody's.
    pub(super) fn end_life(&mut self) {
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
            let add = |account: &mut Account| account.minute_mut().answers.add(&lost);
            self.touch(Subject::Fleet, &mut { add });
            self.touch(Subject::Upstream(id), &mut { add });
            let of_upstream = waiting.iter().filter(|((upstream, _), _)| *upstream == id);
            let shares: Vec<Waiting> = of_upstream.flat_map(|(_, shares)| shares).copied().collect();
            let work = Work(shares.iter().map(|share| share.work.0).sum());
            if (shares.len() as u64, work) != (lost.lost[reason], lost.lost_work[reason]) {
                self.touch(Subject::Untracked, &mut { add });
                continue;
            }
            for share in shares {
                let mut part = AnswerSums::default();
                part.lost[reason] = 1;
                part.lost_work[reason] = share.work;
                self.touch_devices(share.device, &part);
            }
        }
    }

    /// Takes the shares out that an answer is for.
    fn answered(&mut self, answer: &UpstreamAnswer) -> Vec<Waiting> {
        let key = (answer.upstream, answer.channel);
        let Some(waiting) = self.waiting.get_mut(&key) else { return Vec::new() };
        let shares = match &answer.verdict {
            UpstreamVerdict::Rejected { sequence_number, .. } => {
                let place = waiting.iter().position(|share| share.number == *sequence_number);
                place.and_then(|place| waiting.remove(place)).into_iter().collect()
            }
            UpstreamVerdict::Acknowledged { last, count, .. } | UpstreamVerdict::Lost { last, count, .. } => {
                up_to(waiting, *last, *count as usize)
            }
        };
        if waiting.is_empty() {
            self.waiting.remove(&key);
        }
        shares
    }

    fn touch_devices(&mut self, device: Option<DeviceId>, part: &AnswerSums) {
        let add = |account: &mut Account| account.minute_mut().answers.add(part);
        let Some(id) = device else { return self.touch(Subject::Untracked, &mut { add }) };
        self.touch(Subject::Device(id), &mut { add });
        for place in 0..self.groups_of(id).len() {
            let group = self.groups_of(id)[place];
            self.touch(Subject::Group(group), &mut { add });
        }
    }
}

/// Takes out the shares up to and with the number `last`, and returns the latest `count` of them. If more waited, the
/// answer to the others was lost with its detail.
fn up_to(waiting: &mut VecDeque<Waiting>, last: SequenceNumber, count: usize) -> Vec<Waiting> {
    // Numbers wrap: half of all numbers are behind one.
    let is_covered = |share: &Waiting| last.0.wrapping_sub(share.number.0) < u32::MAX / 2;
    let covered = waiting.iter().take_while(|share| is_covered(share)).count();
    let mut shares: Vec<Waiting> = waiting.drain(..covered).collect();
    shares.drain(..covered.saturating_sub(count));
    shares
}

/// What an answer says of one of its shares.
fn part_of(verdict: &UpstreamVerdict, work: Work) -> AnswerSums {
    let mut part = AnswerSums::default();
    match verdict {
        UpstreamVerdict::Acknowledged { .. } => {
            part.acknowledged = 1;
            part.acknowledged_work = work;
        }
        UpstreamVerdict::Rejected { .. } => {
            part.refused = 1;
            part.refused_work = work;
        }
        UpstreamVerdict::Lost { reason, .. } => {
            part.lost[*reason as usize] = 1;
            part.lost_work[*reason as usize] = work;
        }
    }
    part
}

fn subtract(sums: &mut AnswerSums, part: &AnswerSums) {
    let minus = |sum: &mut u64, part: u64| *sum = sum.saturating_sub(part);
    let minus_work = |sum: &mut Work, part: Work| sum.0 = sum.0.saturating_sub(part.0);
    minus(&mut sums.acknowledged, part.acknowledged);
    minus(&mut sums.refused, part.refused);
    sums.lost.iter_mut().zip(part.lost).for_each(|(sum, part)| minus(sum, part));
    minus_work(&mut sums.acknowledged_work, part.acknowledged_work);
    minus_work(&mut sums.refused_work, part.refused_work);
    sums.lost_work.iter_mut().zip(part.lost_work).for_each(|(sum, part)| minus_work(sum, part));
}
