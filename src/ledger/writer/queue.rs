//! What waits for the ledger's threads. The lock is held for the time of a push or a pop; no share's path takes it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use accounting::{BatchNumber, Facts, Level, RollUp, SealedBatch, Subject};

use super::MAX_UNWRITTEN;
use crate::clock::Clock;

/// Points of rollups that wait. A fleet of 20,000 devices makes 80,000 in the worst minute. Beyond, minutes are left
/// out: their hours and days are there, and `verify` says what a minute should be.
const MAX_WAITING_POINTS: usize = 400_000;

/// Events and blocks of rollups that wait. Beyond, the oldest are in the stream alone.
const MAX_WAITING_NEWS: usize = 65_536;

/// Bytes that a batch takes besides its payload.
const OVERHEAD: usize = size_of::<SealedBatch>();

/// What the thread of sums does next.
pub(super) enum Step {
    RollUp(Box<RollUp>),
    /// Nothing came in time.
    Idle,
    End,
}

#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// The first one is being written.
    batches: VecDeque<Arc<SealedBatch>>,
    bytes: usize,
    roll_up: Option<RollUp>,
    durable: BatchNumber,
    /// No more comes; until when the rest can be written, in monotonic time.
    end_by: Option<Duration>,
    /// The thread of batches has ended.
    batches_ended: bool,
    is_broken: bool,
}

/// Sets the alarm when a thread panics, and says that the thread has ended.
pub(super) struct Alarm<'q>(&'q Queue);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if let Ok(mut state) = self.0.state.lock() {
            state.batches_ended = true;
            state.is_broken |= std::thread::panicking();
        }
        self.0.changed.notify_all();
    }
}

impl Queue {
    pub(super) fn new(durable: BatchNumber) -> Self {
        let (batches, bytes, roll_up, end_by) = Default::default();
        let (batches_ended, is_broken) = (false, false);
        let state = State { batches, bytes, roll_up, durable, end_by, batches_ended, is_broken };
        Queue { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let state = self.state.lock().expect("nothing panics while it holds the queue");
        assert!(!state.is_broken, "a thread of the ledger ended by a bug of ours");
        state
    }

    pub(super) fn has_room(&self) -> bool {
        self.state().has_room()
    }

    pub(super) fn waiting(&self) -> usize {
        self.state().bytes
    }

    pub(super) fn push(&self, batch: SealedBatch) -> Result<(), SealedBatch> {
        let mut state = self.state();
        if !state.has_room() {
            return Err(batch);
        }
        state.bytes += size_of_batch(&batch);
        state.batches.push_back(Arc::new(batch));
        self.changed.notify_all();
        Ok(())
    }

    pub(super) fn roll_up(&self, roll_up: RollUp) {
        let mut state = self.state();
        let roll_up = match state.roll_up.take() {
            Some(earlier) => merged(earlier, roll_up),
            None => roll_up,
        };
        state.roll_up = Some(roll_up);
        self.changed.notify_all();
    }

    /// Takes back a rollup that could not be written; what came meanwhile goes over it.
    pub(super) fn put_back(&self, roll_up: RollUp) {
        let mut state = self.state();
        let roll_up = match state.roll_up.take() {
            Some(later) => merged(roll_up, later),
            None => roll_up,
        };
        state.roll_up = Some(roll_up);
    }

    /// Waits for the next batch, which stays in the queue until it is durable; `None` at the end.
    pub(super) fn next_batch(&self) -> Option<Arc<SealedBatch>> {
        let mut state = self.state();
        loop {
            if let Some(batch) = state.batches.front() {
                return Some(Arc::clone(batch));
            }
            if state.end_by.is_some() {
                return None;
            }
            state = self.changed.wait(state).expect("nothing panics while it holds the queue");
        }
    }

    pub(super) fn written(&self, batch: &SealedBatch) {
        let mut state = self.state();
        state.batches.pop_front();
        state.bytes -= size_of_batch(batch);
        state.durable = batch.number;
        self.changed.notify_all();
    }

    /// Waits for a rollup whose batches are durable, but not longer than `patience`.
    pub(super) fn next_step(&self, patience: Duration) -> Step {
        let state = self.state();
        let (mut state, _) = self
            .changed
            .wait_timeout_while(state, patience, |state| !state.has_roll_up() && !state.is_over())
            .expect("nothing panics while it holds the queue");
        if state.has_roll_up() {
            return Step::RollUp(Box::new(state.roll_up.take().expect("it was just seen")));
        }
        if state.is_over() { Step::End } else { Step::Idle }
    }

    /// Pauses; false when there is no time left to try again.
    pub(super) fn pause(&self, pause: Duration, clock: Clock) -> bool {
        let ends_in = |state: &State| state.end_by.map(|end| end.saturating_sub(clock.now().monotonic));
        let mut state = self.state();
        let until = clock.now().monotonic + pause;
        loop {
            if ends_in(&state).is_some_and(|rest| rest.is_zero()) {
                return false;
            }
            let rest = until.saturating_sub(clock.now().monotonic);
            if rest.is_zero() {
                return true;
            }
            let wait = rest.min(ends_in(&state).unwrap_or(rest));
            let waited = self.changed.wait_timeout(state, wait);
            state = waited.expect("nothing panics while it holds the queue").0;
        }
    }

    pub(super) fn end_by(&self, monotonic: Duration) {
        if let Ok(mut state) = self.state.lock() {
            state.end_by = Some(monotonic);
        }
        self.changed.notify_all();
    }

    /// For the life of the thread that calls it.
    pub(super) fn alarm(&self) -> Alarm<'_> {
        Alarm(self)
    }

    /// Batches, their bytes, and whether there is a rollup.
    pub(super) fn left(&self) -> (usize, usize, bool) {
        self.state
            .lock()
            .map_or((0, 0, true), |state| (state.batches.len(), state.bytes, state.roll_up.is_some()))
    }
}

impl State {
    fn has_room(&self) -> bool {
        self.bytes < MAX_UNWRITTEN && self.end_by.is_none()
    }

    fn has_roll_up(&self) -> bool {
        self.roll_up.as_ref().is_some_and(|roll_up| roll_up.watermark <= self.durable)
    }

    fn is_over(&self) -> bool {
        self.end_by.is_some() && self.batches_ended
    }
}

fn size_of_batch(batch: &SealedBatch) -> usize {
    batch.payload.len() + OVERHEAD
}

/// One rollup in place of two: the later one's figures where both have some.
fn merged(earlier: RollUp, later: RollUp) -> RollUp {
    let RollUp { watermark, waiting_from, points, sums, devices, groups, upstreams, facts } = later;
    let mut merged = RollUp { watermark, waiting_from, ..RollUp::default() };
    let key = |point: &accounting::Point| (point.level, point.start, point.subject);
    merged.points = latest(earlier.points, points, key);
    if merged.points.len() > MAX_WAITING_POINTS {
        tracing::warn!(
            points = merged.points.len(),
            "sums of minutes are left out of the ledger, because too many wait for the disk"
        );
        // The latest minute stays: it says at a restart which points were still growing.
        let minutes = merged.points.iter().filter(|point| point.level == Level::Minute);
        let latest = minutes.map(|point| point.start).max();
        merged.points.retain(|point| point.level != Level::Minute || Some(point.start) == latest);
    }
    merged.sums = latest(earlier.sums, sums, |(subject, _): &(Subject, _)| *subject);
    merged.devices = latest(earlier.devices, devices, |device| device.id);
    merged.groups = latest(earlier.groups, groups, |(group, _)| *group);
    merged.upstreams = latest(earlier.upstreams, upstreams, |(upstream, ..)| *upstream);
    merged.facts = merged_facts(earlier.facts, facts);
    merged
}

/// What a later rollup says as a whole is in it; of readings, events and blocks it has only the new ones.
fn merged_facts(earlier: Facts, later: Facts) -> Facts {
    let power = latest(earlier.power, later.power, |row| (row.subject, row.source));
    let mut events = earlier.events;
    events.extend(later.events);
    events.drain(..events.len().saturating_sub(MAX_WAITING_NEWS));
    let mut blocks = earlier.blocks;
    blocks.extend(later.blocks);
    blocks.drain(..blocks.len().saturating_sub(MAX_WAITING_NEWS));
    Facts { power, events, blocks, ..later }
}

fn latest<T, K: std::hash::Hash + Eq>(earlier: Vec<T>, later: Vec<T>, key: impl Fn(&T) -> K) -> Vec<T> {
    let all = earlier.into_iter().chain(later);
    let all: HashMap<K, T> = all.map(|value| (key(&value), value)).collect();
    all.into_values().collect()
}
