//! A process that is killed while shares wait for their job: none is forgotten, and none counts as forwarded.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use accounting::codec;
use accounting::entry::{DeviceEntry, Entry, microseconds};
use accounting::{
    BatchNumber, Books, DropReason, Fate, HeldRelease, HoldNumber, ReleaseFate, ShareRecord, Subject,
    UpstreamAnswer, UpstreamVerdict, Verdict,
};
use checkweigh::clock::Clock;
use checkweigh::config::LedgerConfig;
use checkweigh::ledger::verify::verify;
use checkweigh::ledger::{Reader, SqliteReader, revival, times};
use checkweigh::sink::{DeviceRules, RecordSink, RecordWriter};
use stratum::{DeviceId, Now, SequenceNumber, UpstreamChannelId, UpstreamId, Work};

use crate::{chain, commands};

/// What tells a process of this test program that it is the one to be killed, and where its ledger is.
const FOLDER: &str = "CHECKWEIGH_TEST_HELD";

const UPSTREAM: UpstreamId = UpstreamId(0);
const CHANNEL: UpstreamChannelId = UpstreamChannelId(7);

fn share(number: u16, now: Now) -> ShareRecord {
    let mut share = chain::share(now, DeviceId(0), Verdict::Accepted, Work(5));
    (share.upstream, share.upstream_channel) = (Some(UPSTREAM), Some(CHANNEL));
    (share.fate, share.upstream_work) = (Fate::Held(HoldNumber::new(number)), Work(9));
    share
}

/// Five shares wait; one of them is forwarded and acknowledged, and one is dropped.
fn hold(records: &mut RecordWriter, now: Now) {
    (1..=5).for_each(|number| records.share(share(number, now)));
    let release = |number: u16, fate| HeldRelease {
        released: now.plus(Duration::from_millis(250)),
        device: Some(DeviceId(0)),
        upstream: UPSTREAM,
        upstream_channel: CHANNEL,
        number: HoldNumber::new(number),
        fate,
        held_work: Work(9),
        work: Work(9),
    };
    let last = SequenceNumber(1);
    records.release(release(2, ReleaseFate::Forwarded(last)));
    records.release(release(3, ReleaseFate::Dropped(DropReason::EpochEnded)));
    let verdict = UpstreamVerdict::Acknowledged { last, count: 1, claimed: 1, shares_sum: 1, work: Work(9) };
    // Always in another minute: the stream has the end of the first before the answer.
    let received = now.plus(Duration::from_millis(61_250));
    records.answer(UpstreamAnswer { received, upstream: UPSTREAM, channel: CHANNEL, verdict });
}

/// Whether the last word of [`hold`] is on disk, after this batch. It is looked for, and entries are not counted: the end
/// of a minute in their midst is one more.
fn is_durable(reader: &dyn Reader, after: BatchNumber) -> bool {
    let batches = reader.batches(after.next()).expect("they can be read");
    let is_answer = |entry: Result<Entry, _>| matches!(entry, Ok(Entry::Answer(_)));
    batches.map_while(Result::ok).any(|batch| codec::entries(&batch.payload).any(is_answer))
}

/// Not a test but the process that the test below starts: has shares wait, and prints a word once they are durable.
#[tokio::test]
async fn hold_until_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let clock = Clock::start();
    let config = LedgerConfig::in_folder(PathBuf::from(&folder));
    let revived = revival::revive(&config, DeviceRules::default(), clock).expect("it opens");
    let before = revived.to_ledger.head.number;
    let reader = SqliteReader::open(Path::new(&folder)).expect("it is there");
    let (sink, _task) = RecordSink::start_with_ledger(revived.to_ledger, clock);
    let (mut records, now) = (sink.writer(), clock.now());
    records.event(revival::started(microseconds(now.utc)));
    records.device(DeviceEntry::named(DeviceId(0), "farm.one", microseconds(now.utc)));
    hold(&mut records, now);
    let mut look = tokio::time::interval(Duration::from_millis(5));
    while !is_durable(&reader, before) {
        look.tick().await;
    }
    println!("durable");
    std::future::pending().await
}

/// Runs a life, and kills it when its shares are durable.
fn live(folder: &Path) {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "held::hold_until_killed", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut output = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let is_durable = output.any(|line| line.expect("text").contains("durable"));
    child.kill().expect("it runs");
    assert!(!child.wait().expect("it ended").success() && is_durable);
}

/// What the ledger says now, in which everything must add up.
fn books(folder: &Path) -> Books {
    let reader = SqliteReader::open(folder).expect("there is a ledger");
    let (books, _) = revival::books(&reader.opening().expect("it can be opened"), &reader).expect("whole");
    assert_eq!(books.violation(), None);
    let findings = verify(&reader, |_, _| ()).expect("it can be read");
    assert_eq!(findings.faults, [""; 0], "after a kill everything adds up");
    books
}

/// A start after a kill, and an orderly end.
async fn start_and_end(folder: &Path) {
    let clock = Clock::start();
    let config = LedgerConfig::in_folder(folder.to_owned());
    let revived = revival::revive(&config, DeviceRules::default(), clock).expect("it opens");
    let (sink, _task) = RecordSink::start_with_ledger(revived.to_ledger, clock);
    sink.writer().event(revival::started(microseconds(clock.now().utc)));
    sink.finish().await.expect("the sink runs");
    let threads = revived.threads;
    let end = tokio::task::spawn_blocking(move || threads.end(Duration::from_secs(60)));
    end.await.expect("no panic").expect("everything is written");
}

#[tokio::test]
async fn shares_that_were_held_when_the_process_was_killed_are_accounted_for() {
    let folder = tempfile::tempdir().expect("a folder");
    live(folder.path());
    let shares = &books(folder.path()).totals().shares.clone();
    assert_eq!((shares.accepted, shares.held, shares.released, shares.forwarded), (5, 5, 2, 1));
    assert_eq!(
        (shares.waiting(), shares.waiting_work()),
        (3, Work(27)),
        "they are on disk before their fate is"
    );

    live(folder.path());
    start_and_end(folder.path()).await;
    let books = books(folder.path());
    let shares = &books.totals().shares;
    let ended = DropReason::ProcessEnded as usize;
    assert_eq!((shares.accepted, shares.held, shares.waiting(), shares.forwarded), (10, 10, 0, 2));
    assert_eq!((shares.dropped[ended], shares.dropped_work[ended], shares.dropped_total()), (6, Work(54), 8));
    let device = books.view(Subject::Device(DeviceId(0)), 0).expect("it is known");
    assert_eq!(device.sums.shares, *shares);
    assert_eq!(device.sums.answers.acknowledged, 2);
    exported(folder.path());
}

/// Each share is exported with its last fate.
fn exported(folder: &Path) {
    let now = Clock::start().now().utc.as_secs();
    let (from, to) = (times::seconds(now - 86_400), times::seconds(now + 86_400));
    let arguments = ["export", "--format", "csv", "--of", "shares", "--from", &from, "--to", &to];
    let csv = commands::succeeds(folder, &arguments);
    let mut lines = csv.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let header = lines.next().expect("a header");
    let rows: Vec<_> = lines.collect();
    let column = |name: &str| {
        let place = header.iter().position(|known| *known == name).expect("it is there");
        rows.iter().map(|row| row[place]).collect::<Vec<_>>()
    };
    let life = ["dropped", "forwarded", "dropped", "dropped", "dropped"];
    assert_eq!(column("fate"), life.repeat(2), "{csv}");
    let ended = "process_ended";
    assert_eq!(column("dropped_for"), [ended, "", "epoch_ended", ended, ended].repeat(2), "{csv}");
    assert_eq!(column("sequence_number"), ["", "1", "", "", ""].repeat(2), "{csv}");
    assert_eq!(column("answer"), ["", "acknowledged", "", "", ""].repeat(2), "{csv}");
    assert_eq!(column("ack_ms"), ["", "61000", "", "", ""].repeat(2), "{csv}");
    let held = column("held_ms");
    assert_eq!([held[1], held[2], held[6], held[7]], ["250"; 4], "{csv}");
    assert!(held.iter().all(|held| !held.is_empty()), "{csv}");
}
