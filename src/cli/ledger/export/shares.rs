//! Rows of single shares: all that was written down of each.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use accounting::entry::{EventKind, microseconds};
use accounting::{
    BatchNumber, DeviceRow, DropReason, Entry, Fate, HeldRelease, HoldNumber, LossReason, ReleaseFate,
    ShareRecord, UpstreamAnswer, UpstreamVerdict, Verdict, codec,
};
use stratum::{DeviceId, SequenceNumber, UpstreamChannelId, UpstreamId};

use super::{Cell, ExportArgs, Row, Rows};
use crate::cli::ledger::{LedgerFailure, Progress};
use crate::ledger::{Reader, SqliteReader};

/// Shares that are kept back for their answers at most, and that wait in one channel or for their jobs: as many as an
/// upstream lets wait. Beyond, the oldest are written without.
const MAX_KEPT: usize = 65_536;

/// How long after the period answers are looked for, in microseconds.
const LONGEST_WAIT_US: u64 = 60_000_000;

/// Writes the shares of the period, in the order of the stream; those of one device if one is asked for.
pub(super) fn write(
    reader: &SqliteReader,
    args: &ExportArgs,
    devices: &[DeviceRow],
    rows: &mut dyn Rows,
) -> Result<u64, LedgerFailure> {
    let names: HashMap<DeviceId, Arc<str>> =
        devices.iter().map(|device| (device.id, Arc::clone(&device.name))).collect();
    let head = reader.opening()?.head.number.0;
    let (from_us, to_us) = (args.from.saturating_mul(1_000_000), args.to.saturating_mul(1_000_000));
    let mut progress = Progress::new("batches");
    let mut first = None;
    let mut joined = Joined::default();
    for batch in reader.batches_between(from_us, to_us.saturating_add(LONGEST_WAIT_US))? {
        let batch = batch?;
        if batch.first_us >= to_us && !joined.is_waiting() {
            break;
        }
        for (place, entry) in codec::entries(&batch.payload).enumerate() {
            let entry = entry.map_err(|error| {
                LedgerFailure::Refused(format!(
                    "entry {place} of batch {} cannot be read: {error}",
                    batch.number.0
                ))
            })?;
            match entry {
                Entry::Share(share) => {
                    let is_device =
                        args.device.is_none() || share.device.is_some_and(|id| names.contains_key(&id));
                    let is_wanted = is_device && (from_us..to_us).contains(&microseconds(share.judged.utc));
                    joined.share(batch.number, place, share, is_wanted);
                }
                Entry::Release(release) => joined.release(&release),
                Entry::Answer(answer) => joined.answer(&answer),
                Entry::Event(event) if event.kind == EventKind::Started => joined.end_life(event.at_us),
                _ => {}
            }
        }
        joined.write(&names, rows, MAX_KEPT)?;
        let number = batch.number.0;
        let first = *first.get_or_insert(number);
        progress.at(number + 1 - first, head.max(number) + 1 - first);
    }
    joined.write(&names, rows, 0)?;
    Ok(joined.written)
}

/// Shares with what became of them, in the order of the stream: each is kept back until its answer is read.
#[derive(Default)]
struct Joined {
    kept: VecDeque<Kept>,
    /// How many shares left `kept` at its front, so that the others can be found.
    written: u64,
    /// Forwarded shares that wait for their answers, by the upstream's channel: number, when it was judged, and the share
    /// itself if it is wanted.
    waiting: HashMap<(UpstreamId, UpstreamChannelId), VecDeque<Waiting>>,
    /// Held shares that wait for their job, by upstream and number; at most [`MAX_KEPT`].
    held: BTreeMap<(UpstreamId, HoldNumber), Waiting>,
    /// How many of both are wanted.
    wanted: usize,
}

struct Kept {
    batch: BatchNumber,
    place: usize,
    share: ShareRecord,
    is_waiting: bool,
    /// How long it was held, in microseconds, once that is over.
    held_us: Option<u64>,
    answer: Option<Answer>,
}

/// What an upstream said of a forwarded share, or what stands for that.
#[derive(Clone)]
struct Answer {
    /// `acknowledged`, `refused` or `lost`.
    kind: &'static str,
    /// The upstream's code, or what ended the wait.
    reason: Arc<str>,
    /// What an upstream's answer took, in microseconds.
    ack_us: Option<u64>,
}

impl Answer {
    fn lost(reason: LossReason) -> Self {
        Answer { kind: "lost", reason: reason.name().into(), ack_us: None }
    }
}

struct Waiting {
    /// On the upstream's channel; 0 while it is held.
    number: SequenceNumber,
    /// When it was judged, or released.
    judged_us: u64,
    /// The share's number among those that are written, if it is one of them.
    wanted: Option<u64>,
}

impl Joined {
    fn is_waiting(&self) -> bool {
        self.wanted > 0
    }

    fn share(&mut self, batch: BatchNumber, place: usize, share: ShareRecord, is_wanted: bool) {
        let number = share.sequence_number.unwrap_or(SequenceNumber(0));
        let wanted = is_wanted.then_some(self.written + self.kept.len() as u64);
        let waiting = Waiting { number, judged_us: microseconds(share.judged.utc), wanted };
        let is_waiting = match (share.fate, share.upstream.zip(share.upstream_channel)) {
            (Fate::Forwarded, Some(key)) if share.sequence_number.is_some() => {
                self.await_answer(key, waiting);
                true
            }
            (Fate::Held(number), Some((upstream, _))) => {
                let first = if self.held.len() == MAX_KEPT { self.held.pop_first() } else { None };
                first.into_iter().for_each(|(_, share)| self.settle(&share, None));
                self.held.insert((upstream, number), waiting);
                true
            }
            _ => false,
        };
        if is_wanted {
            self.wanted += usize::from(is_waiting);
            self.kept.push_back(Kept { batch, place, share, is_waiting, held_us: None, answer: None });
        }
    }

    fn await_answer(&mut self, key: (UpstreamId, UpstreamChannelId), share: Waiting) {
        let waiting = self.waiting.entry(key).or_default();
        // What an upstream never answers waits no longer than it does in the accounts.
        let oldest = if waiting.len() == MAX_KEPT { waiting.pop_front() } else { None };
        waiting.push_back(share);
        oldest.into_iter().for_each(|share| self.settle(&share, None));
    }

    fn release(&mut self, release: &HeldRelease) {
        let Some(share) = self.held.remove(&(release.upstream, release.number)) else { return };
        let released_us = microseconds(release.released.utc);
        self.set_fate(&share, release.fate, released_us);
        match release.fate {
            ReleaseFate::Forwarded(number) => {
                let key = (release.upstream, release.upstream_channel);
                self.await_answer(key, Waiting { number, judged_us: released_us, ..share });
            }
            ReleaseFate::Dropped(_) | ReleaseFate::BelowUpstreamTarget => self.settle(&share, None),
        }
    }

    fn set_fate(&mut self, share: &Waiting, fate: ReleaseFate, at_us: u64) {
        if let Some(kept) = self.kept_mut(share) {
            (kept.share.fate, kept.share.sequence_number) = (fate.of_share(), fate.sequence_number());
            kept.held_us = Some(at_us.saturating_sub(share.judged_us));
        }
    }

    fn answer(&mut self, answer: &UpstreamAnswer) {
        let Some(waiting) = self.waiting.get_mut(&(answer.upstream, answer.channel)) else { return };
        let covered: Vec<Waiting> = match &answer.verdict {
            UpstreamVerdict::Rejected { sequence_number, .. } => {
                let place = waiting.iter().position(|share| share.number == *sequence_number);
                place.and_then(|place| waiting.remove(place)).into_iter().collect()
            }
            UpstreamVerdict::Acknowledged { last, .. } | UpstreamVerdict::Lost { last, .. } => {
                // Numbers wrap: half of all numbers are behind one.
                let is_covered = |share: &Waiting| last.0.wrapping_sub(share.number.0) < u32::MAX / 2;
                let count = waiting.iter().take_while(|share| is_covered(share)).count();
                waiting.drain(..count).collect()
            }
        };
        let said = match &answer.verdict {
            UpstreamVerdict::Acknowledged { .. } => {
                Answer { kind: "acknowledged", reason: "".into(), ack_us: None }
            }
            UpstreamVerdict::Rejected { code, .. } => {
                Answer { kind: "refused", reason: code.as_str().into(), ack_us: None }
            }
            UpstreamVerdict::Lost { reason, .. } => Answer::lost(*reason),
        };
        let is_lost = matches!(answer.verdict, UpstreamVerdict::Lost { .. });
        let received_us = microseconds(answer.received.utc);
        for share in covered {
            let ack_us = (!is_lost).then(|| received_us.saturating_sub(share.judged_us));
            self.settle(&share, Some(Answer { ack_us, ..said.clone() }));
        }
    }

    /// A process has ended: what was held is never sent, and what waited never answered.
    fn end_life(&mut self, at_us: u64) {
        for share in std::mem::take(&mut self.held).into_values() {
            self.set_fate(&share, ReleaseFate::Dropped(DropReason::ProcessEnded), at_us);
            self.settle(&share, None);
        }
        let waiting = std::mem::take(&mut self.waiting);
        waiting.into_values().flatten().for_each(|share| {
            self.settle(&share, Some(Answer::lost(LossReason::ProcessEnded)));
        });
    }

    fn settle(&mut self, share: &Waiting, answer: Option<Answer>) {
        self.wanted -= usize::from(share.wanted.is_some());
        if let Some(kept) = self.kept_mut(share) {
            (kept.is_waiting, kept.answer) = (false, answer);
        }
    }

    /// The share itself, if it is wanted; one that was written without its answer is gone.
    fn kept_mut(&mut self, share: &Waiting) -> Option<&mut Kept> {
        let place = share.wanted?.checked_sub(self.written)?;
        self.kept.get_mut(place as usize)
    }

    /// Writes what waits for nothing, and as much more as leaves `most`.
    fn write(
        &mut self,
        names: &HashMap<DeviceId, Arc<str>>,
        rows: &mut dyn Rows,
        most: usize,
    ) -> std::io::Result<()> {
        while let Some(kept) = self.kept.front()
            && (!kept.is_waiting || self.kept.len() > most)
        {
            rows.row(row(kept, names))?;
            self.kept.pop_front();
            self.written += 1;
        }
        Ok(())
    }
}

fn row(kept: &Kept, names: &HashMap<DeviceId, Arc<str>>) -> Row {
    let Kept { batch, place, share, held_us, answer, .. } = kept;
    let (answered, answer_reason, ack_us) = match answer {
        Some(answer) => (answer.kind, &*answer.reason, answer.ack_us),
        None => ("", "", None),
    };
    let name = share.device.and_then(|id| names.get(&id));
    let (verdict, reason) = match share.verdict {
        Verdict::Accepted => ("accepted", ""),
        Verdict::BlockFound => ("block_found", ""),
        Verdict::Rejected(reason) => ("rejected", reason.name()),
    };
    let text = |text: &str| Cell::Text(text.to_owned());
    let number = |number: u32| Cell::Count(number.into());
    let cells = [
        ("batch", Cell::Count(batch.0)),
        ("entry", Cell::Count(*place as u64)),
        ("time", Cell::Moment(share.judged.utc.as_micros() as u64)),
        ("device", text(name.map_or("", |name| name))),
        ("device_number", Cell::Maybe(share.device.map(|id| id.0.into()))),
        ("connection", Cell::Count(share.connection.0)),
        ("channel", number(share.channel.0)),
        ("upstream", Cell::Maybe(share.upstream.map(|id| id.0.into()))),
        ("upstream_channel", Cell::Maybe(share.upstream_channel.map(|id| id.0.into()))),
        ("job", Cell::Maybe(share.job.map(|job| job.0))),
        ("verdict", text(verdict)),
        ("rejected_for", text(reason)),
        ("fate", text(fate_name(share.fate))),
        ("dropped_for", text(if let Fate::Dropped(reason) = share.fate { reason.name() } else { "" })),
        ("held_ms", Cell::Number(held_us.map(|held| held as f64 / 1e3))),
        ("sequence_number", Cell::Maybe(share.sequence_number.map(|number| number.0.into()))),
        ("answer", text(answered)),
        ("answer_reason", text(answer_reason)),
        ("ack_ms", Cell::Number(ack_us.map(|latency| latency as f64 / 1e3))),
        ("submitted_hashes", Cell::Hashes(share.submitted.0)),
        ("accepted_hashes", Cell::Hashes(share.credited().0)),
        ("upstream_hashes", Cell::Hashes(share.upstream_work.0)),
        ("share_difficulty", Cell::Number(share.difficulty.map(|difficulty| difficulty.0))),
        ("job_age_ms", number(share.job_age_ms)),
        ("version", number(share.version)),
        ("ntime", number(share.ntime)),
        ("nonce", number(share.nonce)),
        ("rollable_extranonce", Cell::Text(hex::encode(&share.rollable))),
    ];
    cells.into_iter().map(|(name, cell)| (name.to_owned(), cell)).collect()
}

const fn fate_name(fate: Fate) -> &'static str {
    match fate {
        Fate::Refused => "refused",
        Fate::BelowUpstreamTarget => "below_upstream_target",
        Fate::Forwarded => "forwarded",
        Fate::Dropped(_) => "dropped",
        Fate::Kept => "kept",
        Fate::Held(_) => "held",
    }
}
