//! The sink's task: keeps the books, and hands what it took on to the ledger.
//!
//! It never waits for anything but its own queue, a question, and the clock.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use accounting::entry::{DeviceEntry, Entry, EventEntry, EventKind, MAX_GROUPS, PowerEntry, microseconds};
use accounting::pattern::matches;
use accounting::{
    BlockRow, Books, DeviceView, Level, PowerSource, ShareRecord, Subject, SubjectView, Sums, Verdict, Window,
};
use stratum::Now;
use tokio::sync::{Notify, mpsc};
use tokio::task::yield_now;

use super::fold::Fold;
use super::scribe::Scribe;
use super::{
    AtStart, Batch, DEVICES_AT_ONCE, DeviceAtStart, DeviceRules, Happened, Message, Overview, Piece, Record,
    SWEPT_AT_ONCE,
};

/// Records that the sink takes at once, between two looks at whether the sums hold.
const BATCH: usize = 1024;

/// How long the sink leaves its queue alone after somebody came or went and it has emptied it, unless somebody asks:
/// each of a storm of newcomers may wake its thread otherwise. A small part of [`super::QUEUE`] fills in this time.
/// Shares come in batches anyway, for which waiting cost more than it saved.
const GATHER: Duration = Duration::from_millis(1);

/// Devices whose minute is closed, or whose sums are looked at, between two turns of the other tasks of the thread: each is
/// less than half a millisecond's work.
pub(super) const CLOSED_AT_ONCE: usize = 64;
const CHECKED_AT_ONCE: usize = 512;

/// How long the end waits for a ledger that has no room, and how often it looks.
const FINISH_GRACE: Duration = Duration::from_secs(3);
const FINISH_TICK: Duration = Duration::from_millis(20);

/// How long to wait where there is no ledger whose batches are due.
const LONG: Duration = Duration::from_secs(3600);

/// How far the open minute may be ahead of the clock, and how often it is then handed over as it grows. The clock was set
/// forward and back: the minute ends when it has caught up, which can take for ever, and sums must come to rest meanwhile.
const AHEAD: Duration = Duration::from_secs(120);
const WHILE_AHEAD: Duration = Duration::from_secs(60);

/// The state of the sink's task.
pub(super) struct Keeper {
    books: Books,
    rules: DeviceRules,
    scribe: Option<Scribe>,
    orphans: Arc<Mutex<Fold>>,
    /// Told whenever somebody asks.
    asked: Arc<Notify>,
    has_ended: bool,
    /// Since when the open minute is ahead of the clock, or was handed over, on the monotonic clock.
    ahead_since: Option<Duration>,
}

impl Keeper {
    pub(super) fn new(
        books: Books,
        rules: DeviceRules,
        scribe: Option<Scribe>,
        orphans: Arc<Mutex<Fold>>,
        asked: Arc<Notify>,
    ) -> Self {
        let mut books = books;
        // The first rollup has them: entries have numbers alone.
        for (name, _) in &rules.groups {
            books.group(name);
        }
        Keeper { books, rules, scribe, orphans, asked, has_ended: false, ahead_since: None }
    }

    /// What the books have now.
    pub(super) fn at_start(&mut self) -> AtStart {
        let (overview, _) = self.overview_at(0);
        let devices = self.books.device_views(0, 0).filter(|device| device.sums.shares.submitted > 0);
        AtStart {
            overview,
            devices: devices.map(|device| (device.id, DeviceAtStart::of(&device.sums))).collect(),
        }
    }

    pub(super) async fn keep(mut self, mut inbox: mpsc::Receiver<Message>) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let patience = self.patience();
            let mut gathers = false;
            match tokio::time::timeout(patience, inbox.recv_many(&mut batch, BATCH)).await {
                Ok(0) => break,
                Ok(_) => {
                    let is_of_storm = |message: &Message| matches!(message, Message::Connection(_));
                    gathers = batch.iter().any(is_of_storm);
                    for message in batch.drain(..) {
                        self.handle(message).await;
                    }
                }
                Err(_) => {}
            }
            self.hand_over_if_due().await;
            if let Some(violation) = self.books.totals().violation() {
                panic!("the accounts do not add up: {violation}");
            }
            if gathers && inbox.is_empty() {
                // Ends by either; a question that came before is known, too.
                let _ = tokio::time::timeout(GATHER, self.asked.notified()).await;
            }
        }
        self.finish().await;
    }

    /// How long the open batch may wait for more.
    fn patience(&self) -> Duration {
        let Some(scribe) = &self.scribe else { return LONG };
        let now = scribe.clock.now().monotonic;
        scribe.due().map_or(Duration::from_secs(1), |due| due.saturating_sub(now))
    }

    async fn hand_over_if_due(&mut self) {
        let Some(scribe) = &mut self.scribe else { return };
        let now = scribe.clock.now();
        if scribe.due().is_some_and(|due| due <= now.monotonic) {
            let closed_gap = scribe.seal();
            self.books.begin_batch(scribe.open_batch());
            if closed_gap {
                scribe.roll_up(&mut self.books).await;
            }
        }
        self.turn_to(microseconds(now.utc)).await;
        self.hand_over_if_ahead(now).await;
    }

    async fn hand_over_if_ahead(&mut self, now: Now) {
        if !is_due_while_ahead(self.books.open_minute(), now, &mut self.ahead_since) {
            return;
        }
        if let Some(scribe) = &mut self.scribe {
            scribe.seal();
            self.books.begin_batch(scribe.open_batch());
            scribe.roll_up(&mut self.books).await;
        }
    }

    /// Closes the minute if `at_us` is in a later one: all before it is handed over, and its rollup with it. A few devices at
    /// a time, so that a great fleet keeps no other task of its thread waiting; records wait meanwhile.
    async fn turn_to(&mut self, at_us: u64) {
        if !self.books.is_in_later_minute(at_us) {
            return;
        }
        self.check_devices().await;
        let minute = self.books.minute_to_end();
        self.books.end_open_part();
        while self.books.close_some(CLOSED_AT_ONCE) {
            yield_now().await;
        }
        if let Some(scribe) = &mut self.scribe {
            // The stream says where the minute ends, so that whoever reads it counts as was counted here.
            if let Some(minute) = minute {
                let ended = Entry::MinuteEnded(minute);
                self.books.apply(&ended);
                scribe.entry(&ended);
            }
            scribe.seal();
            self.books.begin_batch(scribe.open_batch());
            self.books.turn_to(at_us);
            scribe.roll_up(&mut self.books).await;
        } else {
            self.books.turn_to(at_us);
            // Nobody keeps it: the time before is in the sums.
            let mut roll_up = self.books.begin_roll_up(accounting::BatchNumber(0));
            while self.books.roll_up_some(&mut roll_up, CLOSED_AT_ONCE) {
                yield_now().await;
            }
        }
    }

    async fn check_devices(&self) {
        let check = async {
            let mut check = self.books.begin_check()?;
            while self.books.check_some(&mut check, CHECKED_AT_ONCE) {
                yield_now().await;
            }
            self.books.end_check(&check).map_or(Ok(()), Err)
        };
        if let Err(violation) = check.await {
            panic!("the accounts of devices do not add up: {violation}");
        }
    }

    async fn handle(&mut self, message: Message) {
        match message {
            Message::Record(Record::Share(share)) => self.share(&share).await,
            Message::Record(Record::Release(release)) => self.entry(&Entry::Release(release)).await,
            Message::Record(Record::Answer(answer)) => self.entry(&Entry::Answer(answer)).await,
            // Its room is free once all of them are in the books.
            Message::Batch(Batch { shares, releases, answers }, _room) => {
                self.books.fetch(shares.iter().filter_map(|share| share.device));
                for share in &shares {
                    self.share(share).await;
                }
                for release in releases {
                    self.entry(&Entry::Release(release)).await;
                }
                for answer in answers {
                    self.entry(&Entry::Answer(answer)).await;
                }
            }
            Message::Device(entry) => self.device(entry).await,
            Message::Connection(entry) => self.entry(&Entry::Connection(entry)).await,
            Message::Entry(entry) => self.entry(&entry).await,
            Message::Folded(fold) => self.fold(*fold).await,
            // An asker that has gone away in the meantime needs no answer.
            Message::Overview(now, answer) => drop(answer.send(self.overview(now).await)),
            Message::Devices(now, first, answer) => drop(answer.send(self.devices(now, first).await)),
            Message::Some(now, ids, answer) => {
                let now_us = microseconds(now.utc);
                let views = ids.into_iter().filter_map(|id| self.books.device_view(id, now_us));
                drop(answer.send(views.collect()));
            }
            Message::NamesVersion(answer) => drop(answer.send(self.books.names_version())),
            Message::Names(first, answer) => {
                drop(answer.send(self.books.device_names(first).take(SWEPT_AT_ONCE).collect()));
            }
            Message::Marks(first, answer) => {
                drop(answer.send(self.books.device_marks(first).take(SWEPT_AT_ONCE).collect()));
            }
            Message::Happened(answer) => {
                let events = self.books.events().cloned().collect();
                let blocks = self.books.blocks().cloned().collect();
                drop(answer.send(Happened { events, blocks }));
            }
            Message::Finish(answer) => {
                self.finish().await;
                let _ = answer.send(());
            }
        }
    }

    async fn share(&mut self, share: &ShareRecord) {
        let at_us = microseconds(share.judged.utc);
        if self.books.is_in_later_minute(at_us) {
            self.turn_to(at_us).await;
        }
        self.tell_minute(at_us);
        self.books.apply_share(share);
        if let Some(scribe) = &mut self.scribe {
            scribe.share(share, at_us);
        }
        if share.verdict == Verdict::BlockFound {
            let text = self.books.blocks().next_back().map(words_of).unwrap_or_default();
            let (kind, device) = (EventKind::BlockFound, share.device);
            self.entry(&Entry::Event(EventEntry { at_us, kind, device, text })).await;
        }
        self.seal_if_full();
    }

    /// A device that authorises as it did before is no news for the ledger.
    async fn device(&mut self, mut entry: DeviceEntry) {
        // Where several machines share a worker name, a pattern for it is for all of them.
        let fits = |pattern: &str| matches(pattern, &entry.name) || matches(pattern, &entry.worker_name);
        let belongs = |(_, pattern): &&(String, String)| fits(pattern);
        let groups = self.rules.groups.iter().filter(belongs).take(MAX_GROUPS);
        entry.groups = groups.filter_map(|(name, _)| self.books.group(name)).collect();
        let (id, at_us) = (entry.id, entry.at_us);
        let nameplate = self.rules.nameplates.iter().find(|(pattern, _)| fits(pattern));
        let nameplate = nameplate.map(|(_, milliwatts)| *milliwatts);
        if !self.books.notes_device(&entry) {
            self.entry(&Entry::Device(entry)).await;
        }
        // What an earlier configuration said is in the stream: this one's word takes its place, also where it says nothing.
        if self.books.nameplate(id, at_us) != nameplate {
            let (subject, source) = (Subject::Device(id), PowerSource::Nameplate);
            let valid_for_s = if nameplate.is_some() { u32::MAX } else { 0 };
            let milliwatts = nameplate.unwrap_or(0);
            self.entry(&Entry::Power(PowerEntry { subject, at_us, valid_for_s, milliwatts, source })).await;
        }
    }

    async fn entry(&mut self, entry: &Entry) {
        if matches!(entry, Entry::Event(event) if event.kind == EventKind::Started) {
            return self.begin_life(entry).await;
        }
        self.turn_to(entry.at_us()).await;
        self.tell_minute(entry.at_us());
        self.books.apply(entry);
        if let Some(scribe) = &mut self.scribe {
            scribe.entry(entry);
        }
        self.seal_if_full();
    }

    /// What comes late counts for the open minute: the stream must say which one that is, if nothing else did.
    fn tell_minute(&mut self, at_us: u64) {
        let Some(scribe) = &mut self.scribe else { return };
        let minute = self.books.open_minute();
        let is_late = Level::Minute.start(at_us / 1_000_000) < minute;
        if is_late && scribe.told_minute() < minute {
            scribe.entry(&Entry::MinuteEnded(minute - Level::Minute.seconds()));
        }
    }

    /// The minute that an earlier process left open did not end as others do: the books see to it.
    async fn begin_life(&mut self, started: &Entry) {
        self.books.apply(started);
        if let Some(scribe) = &mut self.scribe {
            scribe.entry(started);
            scribe.seal();
            self.books.begin_batch(scribe.open_batch());
            scribe.roll_up(&mut self.books).await;
        }
    }

    fn seal_if_full(&mut self) {
        if let Some(scribe) = &mut self.scribe
            && scribe.is_full()
        {
            scribe.seal();
            self.books.begin_batch(scribe.open_batch());
        }
    }

    async fn fold(&mut self, fold: Fold) {
        for entry in fold.into_entries() {
            match entry {
                Entry::Device(device) => self.device(device).await,
                other => self.entry(&other).await,
            }
        }
    }

    async fn adopt_orphans(&mut self) {
        let orphans = std::mem::take(&mut *self.orphans.lock().unwrap_or_else(PoisonError::into_inner));
        if !orphans.is_empty() {
            self.fold(orphans).await;
        }
    }

    /// Hands over everything, sums included, because the program ends. Waits a moment for a ledger that has no room:
    /// what is not handed over by then is lost.
    async fn finish(&mut self) {
        self.adopt_orphans().await;
        if let Some(scribe) = &self.scribe
            && !std::mem::replace(&mut self.has_ended, true)
        {
            let at_us = microseconds(scribe.clock.now().utc);
            let (kind, device, text) = (EventKind::Ended, None, String::new());
            self.entry(&Entry::Event(EventEntry { at_us, kind, device, text })).await;
        }
        let Some(scribe) = &mut self.scribe else { return };
        let give_up = scribe.clock.now().monotonic + FINISH_GRACE;
        scribe.seal();
        while scribe.has_gap() && scribe.clock.now().monotonic < give_up {
            tokio::time::sleep(FINISH_TICK).await;
            scribe.seal();
        }
        if scribe.has_gap() {
            tracing::error!("the last records are lost: the ledger's disk took nothing in time");
        }
        self.books.begin_batch(scribe.open_batch());
        scribe.roll_up(&mut self.books).await;
    }

    async fn overview(&mut self, now: Now) -> (Overview, Sums) {
        self.adopt_orphans().await;
        self.overview_at(microseconds(now.utc))
    }

    fn overview_at(&self, now_us: u64) -> (Overview, Sums) {
        let untracked = self.view(Subject::Untracked, now_us).sums;
        let fleet = self.view(Subject::Fleet, now_us);
        let counts = self.books.devices_by_group();
        let groups = self.books.groups().map(|(id, name)| {
            let devices = counts.get(usize::from(id.0)).copied().unwrap_or(0);
            (id, name.clone(), devices, self.view(Subject::Group(id), now_us))
        });
        let upstreams = self.books.upstreams().map(|(id, name, account)| {
            (id, name.clone(), account.clone(), self.view(Subject::Upstream(id), now_us))
        });
        let overview = Overview {
            totals: self.books.totals().clone(),
            devices: self.books.device_count(),
            power_milliwatts: self.books.power_of_devices(now_us),
            worth: self.books.worth(None),
            acks: self.books.upstreams().map(|(id, ..)| (id, self.books.acks(id))).collect(),
            refusals: self.books.upstreams().map(|(id, ..)| (id, self.books.refused_by_code(id))).collect(),
            worths: self
                .books
                .upstreams()
                .filter_map(|(id, ..)| Some((id, self.books.worth(Some(id))?)))
                .collect(),
            groups: groups.collect(),
            upstreams: upstreams.collect(),
            hash_rate_1m: fleet.rates[Window::Minute as usize].accepted,
            hash_rate_10m: fleet.rates[Window::TenMinutes as usize].accepted,
            fleet,
        };
        (overview, untracked)
    }

    /// The next devices from a number on, and the rest of a copy when these are the last.
    async fn devices(&mut self, now: Now, first: usize) -> Piece {
        if first == 0 {
            self.adopt_orphans().await;
        }
        let views = self.books.device_views(first, microseconds(now.utc));
        let devices: Vec<DeviceView> = views.take(DEVICES_AT_ONCE).collect();
        let is_last = devices.len() < DEVICES_AT_ONCE;
        let rest = if is_last { Some(self.overview(now).await) } else { None };
        Piece { rest, devices }
    }

    fn view(&self, subject: Subject, now_us: u64) -> SubjectView {
        self.books.view(subject, now_us).expect("only known subjects are looked at")
    }
}

/// Whether the open minute (its start, in unix seconds) has been far ahead of the clock for a while, so that it is to be
/// handed over as it is.
fn is_due_while_ahead(minute: u64, now: Now, since: &mut Option<Duration>) -> bool {
    if Duration::from_secs(minute) <= now.utc.saturating_add(AHEAD) {
        *since = None;
        return false;
    }
    let began = *since.get_or_insert(now.monotonic);
    let is_due = now.monotonic.saturating_sub(began) >= WHILE_AHEAD;
    if is_due {
        *since = Some(now.monotonic);
    }
    is_due
}

/// A block in words, as far as its job is known.
fn words_of(block: &BlockRow) -> String {
    let hash = block.hash.map(|mut hash| {
        hash.reverse();
        hex::encode(hash)
    });
    match (block.height, hash) {
        (Some(height), Some(hash)) => format!("height {height}, {hash}"),
        (None, Some(hash)) => hash,
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clock that is set a year forward and back, and then looked at every second.
    #[test]
    fn a_minute_that_is_far_ahead_is_handed_over_every_minute() {
        let start = 1_800_000_000;
        let at = |second: u64| Now::simulated(Duration::from_secs(start), Duration::from_secs(second));
        let mut since = None;
        let mut due = |minute, seconds: std::ops::Range<u64>| -> Vec<u64> {
            seconds.filter(|second| is_due_while_ahead(minute, at(*second), &mut since)).collect()
        };
        let year = 365 * 86_400;
        assert_eq!(due(start + year, 0..200), [60, 120, 180]);
        assert_eq!(due(start + 200, 200..1000), [0; 0], "as usual: the clock ends it");
        assert_eq!(due(start + year, 1000..1100), [1060], "and again");
    }
}
