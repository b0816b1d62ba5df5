//! The threads against stores that fail as they are told.

use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::sync::mpsc;

use accounting::{LedgerId, Level, NO_BATCH, Point, Subject, Sums};

use super::*;
use crate::ledger::store::{Appended, Removed};

/// Until something happens that must happen.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Disk {
    is_full: bool,
    is_buggy: bool,
    appended: Vec<u64>,
    rolled_up: Vec<RollUp>,
}

/// Both halves of a store in memory. Says whenever it was asked for something.
#[derive(Clone)]
struct Fake {
    disk: Arc<Mutex<Disk>>,
    asked: mpsc::Sender<&'static str>,
}

fn full() -> StoreError {
    StoreError::disk(std::path::Path::new("ledger"), "append a batch")("no space left on device")
}

impl Store for Fake {
    fn append(&mut self, batch: &SealedBatch) -> Result<Appended, StoreError> {
        let mut disk = self.disk.lock().expect("not poisoned");
        let _ = self.asked.send("append");
        let is_buggy = disk.is_buggy;
        if disk.is_full {
            return Err(full());
        }
        disk.appended.push(batch.number.0);
        drop(disk);
        assert!(!is_buggy, "as it was told");
        Ok(Appended::Written)
    }
}

impl Views for Fake {
    fn roll_up(&mut self, roll_up: &RollUp) -> Result<(), StoreError> {
        let mut disk = self.disk.lock().expect("not poisoned");
        let _ = self.asked.send("roll up");
        if disk.is_full {
            return Err(full());
        }
        assert!(
            disk.appended.last().is_some_and(|last| *last >= roll_up.watermark.0),
            "its batches come first"
        );
        disk.rolled_up.push(roll_up.clone());
        Ok(())
    }

    fn tidy(&mut self) -> Result<bool, StoreError> {
        Ok(false)
    }

    fn retain(&mut self, _now: u64) -> Result<Removed, StoreError> {
        Ok(Removed::default())
    }
}

struct Rig {
    disk: Arc<Mutex<Disk>>,
    asked: mpsc::Receiver<&'static str>,
    writer: LedgerWriter,
    threads: LedgerThreads,
}

impl Rig {
    fn start() -> Rig {
        let (sender, asked) = mpsc::channel();
        let disk = Arc::new(Mutex::new(Disk::default()));
        let fake = Fake { disk: Arc::clone(&disk), asked: sender };
        let (writer, threads) =
            LedgerWriter::start(fake.clone(), fake, BatchNumber(0), Clock::start()).expect("threads");
        Rig { disk, asked, writer, threads }
    }

    fn fill_disk(&self, is_full: bool) {
        self.disk.lock().expect("not poisoned").is_full = is_full;
    }

    fn wait_for(&self, wanted: &str) {
        while self.asked.recv_timeout(PATIENCE).expect("it is asked in time") != wanted {}
    }

    fn batch(&self, number: u64, bytes: usize) -> Result<(), SealedBatch> {
        let payload = vec![0; bytes];
        let batch = SealedBatch::seal(LedgerId([1; 16]), BatchNumber(number), (1, 2), 5, payload, NO_BATCH);
        self.writer.send(Outgoing::Batch(batch))
    }

    fn roll_up(&self, watermark: u64, starts: &[u64]) {
        let point = |start: &u64| Point {
            subject: Subject::Fleet,
            level: Level::Minute,
            start: *start,
            sums: Sums { squared_work: watermark as f64, ..Sums::default() }.into(),
        };
        let points = starts.iter().map(point).collect();
        let roll_up = RollUp { watermark: BatchNumber(watermark), points, ..RollUp::default() };
        self.writer.send(Outgoing::RollUp(Box::new(roll_up))).expect("always taken");
    }
}

#[test]
fn all_is_written_in_order_and_the_end_waits_for_it() {
    let rig = Rig::start();
    for number in 1..=50 {
        rig.batch(number, 100).expect("there is room");
        if number % 20 == 0 {
            rig.roll_up(number, &[number]);
        }
    }
    let status = Arc::clone(rig.writer.status());
    rig.threads.end(PATIENCE).expect("all is written");
    let disk = rig.disk.lock().expect("not poisoned");
    assert_eq!(disk.appended, (1..=50).collect::<Vec<u64>>());
    assert_eq!(disk.rolled_up.last().map(|roll_up| roll_up.watermark), Some(BatchNumber(40)));
    assert_eq!(status.batches_written.load(Ordering::Relaxed), 50);
    assert_eq!(status.entries_written.load(Ordering::Relaxed), 250);
    assert_eq!(status.durable_batch.load(Ordering::Relaxed), 50);
    assert_eq!(status.waiting_bytes.load(Ordering::Relaxed), 0);
    assert!(rig.writer.send(Outgoing::RollUp(Box::default())).is_ok());
    let late = SealedBatch::seal(LedgerId([1; 16]), BatchNumber(51), (1, 2), 5, vec![], NO_BATCH);
    assert!(rig.writer.send(Outgoing::Batch(late)).is_err(), "nobody would write it");
}

#[test]
fn a_full_disk_is_waited_for_with_bounded_memory() {
    let rig = Rig::start();
    rig.fill_disk(true);
    let megabyte = 1024 * 1024;
    let mut number = 0;
    loop {
        match rig.batch(number + 1, megabyte) {
            Ok(()) => number += 1,
            Err(batch) => break assert_eq!(batch.number.0, number + 1, "it comes back"),
        }
    }
    assert!(!rig.writer.has_room());
    let waiting = rig.writer.status().waiting_bytes.load(Ordering::Relaxed) as usize;
    assert!((MAX_UNWRITTEN..MAX_UNWRITTEN + 2 * megabyte).contains(&waiting), "{waiting}");
    for _ in 0..3 {
        rig.wait_for("append");
    }
    assert!(rig.writer.status().is_failing.load(Ordering::Relaxed));
    let error = rig.writer.status().last_error().expect("it fails");
    assert!(error.contains("no space left on device"), "{error}");
    // Two rollups that wait become one, with the later figures.
    rig.roll_up(1, &[60, 120]);
    rig.roll_up(2, &[120, 180]);
    rig.fill_disk(false);
    let (disk, status) = (Arc::clone(&rig.disk), Arc::clone(rig.writer.status()));
    rig.threads.end(PATIENCE).expect("all is written");
    let disk = disk.lock().expect("not poisoned");
    assert_eq!(disk.appended, (1..=number).collect::<Vec<u64>>(), "each once, in order");
    let [roll_up] = disk.rolled_up.as_slice() else { panic!("one: {:?}", disk.rolled_up) };
    let mut points: Vec<(u64, f64)> =
        roll_up.points.iter().map(|point| (point.start, point.sums.sums().squared_work)).collect();
    points.sort_by_key(|(start, _)| *start);
    assert_eq!(points, [(60, 1.0), (120, 2.0), (180, 2.0)]);
    assert!(!status.is_failing.load(Ordering::Relaxed) && status.last_error().is_none());
    assert!(status.failures_total.load(Ordering::Relaxed) >= 3);
}

#[test]
fn what_cannot_be_written_before_the_end_is_said() {
    let rig = Rig::start();
    rig.fill_disk(true);
    rig.batch(1, 1000).expect("there is room");
    rig.batch(2, 1000).expect("there is room");
    rig.roll_up(2, &[60]);
    rig.wait_for("append");
    let unwritten = rig.threads.end(Duration::from_millis(120)).expect_err("the disk is full");
    assert_eq!((unwritten.batches, unwritten.roll_up), (2, true));
    assert!(unwritten.bytes >= 2000);
    let text = unwritten.to_string();
    assert!(text.contains("2 batches") && text.contains("no space left on device"), "{text}");
}

#[test]
fn pauses_grow_up_to_a_limit() {
    assert_eq!(pause_after(1), FIRST_PAUSE);
    assert_eq!(pause_after(2), FIRST_PAUSE * 2);
    assert_eq!(pause_after(100), LONGEST_PAUSE);
}

#[test]
#[should_panic(expected = "a thread of the ledger ended by a bug of ours")]
fn a_bug_is_not_taken_for_a_slow_disk() {
    let rig = Rig::start();
    rig.disk.lock().expect("not poisoned").is_buggy = true;
    rig.batch(1, 10).expect("there is room");
    rig.wait_for("append");
    while !rig.threads.has_ended() {
        std::thread::yield_now();
    }
    let _ = rig.batch(2, 10);
}
