//! A disk that takes nothing for longer than memory lasts: mining goes on, detail is lost and said, totals are not.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use accounting::codec;
use accounting::entry::Entry;
use accounting::{
    BatchNumber, Books, Fate, LedgerId, RollUp, SealedBatch, ShareRecord, Subject, UpstreamAnswer,
    UpstreamVerdict, Verdict,
};
use checkweigh::clock::Clock;
use checkweigh::ledger::{Appended, Head, LedgerWriter, Removed, Store, StoreError, Views};
use checkweigh::sink::{DeviceRules, RecordSink, ToLedger};
use stratum::{
    ChannelId, ConnectionId, DeviceId, Difficulty, Now, SequenceNumber, UpstreamChannelId, UpstreamId, Work,
};

/// Shares that are written: a third more than wait for a disk at most, in batches of some eighty bytes each.
const SHARES: u32 = 1_200_000;

const LEDGER: LedgerId = LedgerId([7; 16]);

/// A disk that fails until it is mended, and what was written to it.
#[derive(Clone, Default)]
struct Disk {
    is_mended: Arc<AtomicBool>,
    batches: Arc<Mutex<Vec<SealedBatch>>>,
    roll_ups: Arc<Mutex<Vec<RollUp>>>,
}

impl Disk {
    fn check(&self) -> Result<(), StoreError> {
        if self.is_mended.load(Ordering::Relaxed) {
            return Ok(());
        }
        let full = std::io::Error::other("no space left on device");
        Err(StoreError::disk("ledger".as_ref(), "append a batch")(full))
    }
}

impl Store for Disk {
    fn append(&mut self, batch: &SealedBatch) -> Result<Appended, StoreError> {
        self.check()?;
        let mut batches = self.batches.lock().expect("nobody panicked");
        assert_eq!(batch.number.0, batches.len() as u64 + 1, "batches come in order");
        assert_eq!(batch.hash, batch.computed_hash(LEDGER));
        batches.push(batch.clone());
        Ok(Appended::Written)
    }
}

impl Views for Disk {
    fn roll_up(&mut self, roll_up: &RollUp) -> Result<(), StoreError> {
        self.check()?;
        self.roll_ups.lock().expect("nobody panicked").push(roll_up.clone());
        Ok(())
    }

    fn tidy(&mut self) -> Result<bool, StoreError> {
        Ok(false)
    }

    fn retain(&mut self, _: u64) -> Result<Removed, StoreError> {
        Ok(Removed::default())
    }
}

fn share(number: u32, now: Now) -> ShareRecord {
    let is_forwarded = number.is_multiple_of(4);
    ShareRecord {
        judged: now,
        device: Some(DeviceId(number % 50)),
        connection: ConnectionId(1),
        channel: ChannelId(0),
        upstream: Some(UpstreamId(0)),
        upstream_channel: Some(UpstreamChannelId(7)),
        job: None,
        verdict: Verdict::Accepted,
        fate: if is_forwarded { Fate::Forwarded } else { Fate::BelowUpstreamTarget },
        sequence_number: is_forwarded.then_some(SequenceNumber(number)),
        submitted: Work(1000),
        upstream_work: Work(if is_forwarded { 4000 } else { 0 }),
        difficulty: Some(Difficulty(1.0)),
        job_age_ms: 5,
        version: 0,
        ntime: number,
        nonce: number,
        rollable: [1; 12].into_iter().collect(),
    }
}

fn acknowledged(last: u32, now: Now) -> UpstreamAnswer {
    let (last, work) = (SequenceNumber(last), Work(4000));
    let verdict = UpstreamVerdict::Acknowledged { last, count: 1, claimed: 1, shares_sum: 1, work };
    UpstreamAnswer { received: now, upstream: UpstreamId(0), channel: UpstreamChannelId(7), verdict }
}

/// The books that the batches on the disk make.
fn books_of(disk: &Disk) -> Books {
    let mut books = Books::default();
    for batch in disk.batches.lock().expect("nobody panicked").iter() {
        books.begin_batch(batch.number);
        codec::entries(&batch.payload).for_each(|entry| books.apply(&entry.expect("it was written by us")));
    }
    books
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_full_disk_could_not_take_is_in_the_totals_and_said() {
    let (clock, disk) = (Clock::start(), Disk::default());
    let (writer, threads) =
        LedgerWriter::start(disk.clone(), disk.clone(), BatchNumber(0), clock).expect("threads");
    let status = Arc::clone(writer.status());
    let to_ledger = ToLedger {
        id: LEDGER,
        head: Head::NONE,
        books: Books::default(),
        writer,
        rules: DeviceRules::default(),
        commit_interval: Duration::from_millis(10),
    };
    let (sink, _task) = RecordSink::start_with_ledger(to_ledger, clock);
    let mut records = sink.writer();
    for number in 0..SHARES {
        let now = clock.now();
        records.share(share(number, now));
        if number.is_multiple_of(4) {
            records.answer(acknowledged(number, now));
        }
        while records.is_behind() {
            tokio::task::yield_now().await;
            records.flush();
        }
    }
    let totals = sink.overview(clock.now()).await.expect("mining goes on").totals;
    assert_eq!((totals.shares.submitted, totals.violation()), (SHARES.into(), None));
    assert!(status.is_failing.load(Ordering::Relaxed), "there is an alarm");
    assert_eq!(disk.batches.lock().expect("nobody panicked").len(), 0);

    disk.is_mended.store(true, Ordering::Relaxed);
    sink.finish().await.expect("the sink runs");
    let end = tokio::task::spawn_blocking(move || threads.end(Duration::from_secs(60)));
    // What waited has been written by then, or the end itself writes it.
    end.await.expect("no panic").expect("everything is written");

    let books = books_of(&disk);
    assert_eq!(books.violation(), None);
    let kept = books.totals();
    assert!(kept.folded > 0, "detail was lost, and the stream says how much");
    let batches = disk.batches.lock().expect("nobody panicked");
    let detail = batches.iter().flat_map(|batch| codec::entries(&batch.payload).map(Result::unwrap));
    let detail = detail.filter(|entry| matches!(entry, Entry::Share(_) | Entry::Answer(_))).count() as u64;
    assert_eq!(
        detail + kept.folded,
        u64::from(SHARES) + u64::from(SHARES / 4),
        "nothing is missing or twice"
    );
    assert_eq!((&kept.shares, &kept.answers), (&totals.shares, &totals.answers));
    for device in 0..50 {
        let subject = Subject::Device(DeviceId(device));
        let sums = books.view(subject, 0).expect("it is known by its number").sums;
        assert_eq!(sums.shares.submitted, u64::from(SHARES / 50));
    }
    // No rollup says more than the batches up to its watermark do.
    let last = disk.roll_ups.lock().expect("nobody panicked").last().cloned().expect("the end makes one");
    assert_eq!(last.watermark, batches.last().expect("there are batches").number);
}
