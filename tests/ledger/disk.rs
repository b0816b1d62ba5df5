//! Disks that fail: a small one in memory that is filled, and one that cannot be written to any more.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use accounting::BatchNumber;
use checkweigh::clock::Clock;
use checkweigh::ledger::verify::verify;
use checkweigh::ledger::{
    Head, LedgerWriter, Outgoing, Reader, SqliteReader, SqliteStore, Store, StoreError, revival,
};
use checkweigh::shutdown::shutdown;
use std::sync::atomic::Ordering;
use tokio::time::interval;

use crate::chain;
use crate::farm;
use crate::process::{self, Checkweigh};
use crate::small_disk::SmallDisk;
use crate::sv1_miner::{Miner, MinerOptions};

/// Until something happens that must happen.
const PATIENCE: Duration = Duration::from_secs(30);

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen in time");
        std::thread::yield_now();
    }
}

fn head_of(batch: &accounting::SealedBatch) -> Head {
    Head { number: batch.number, hash: batch.hash }
}

#[test]
fn a_full_disk_raises_an_alarm_and_is_caught_up_with() {
    let Some(disk) = SmallDisk::mount("3m") else { return };
    let (store, views, opening) = SqliteStore::open(&disk.ledger(), chain::KEEP_ALL).expect("it opens");
    let (writer, threads) =
        LedgerWriter::start(store, views, opening.head.number, Clock::start()).expect("threads");
    let mut head = Head::NONE;
    let send = |head: &mut Head| {
        let batch = chain::next(opening.ledger, *head);
        *head = head_of(&batch);
        writer.send(Outgoing::Batch(batch)).expect("there is room");
    };
    let status = writer.status();
    send(&mut head);
    wait_until("the first batch", || status.durable_batch.load(Ordering::Relaxed) == 1);
    let ballast = disk.fill_up(100_000);
    while !status.is_failing.load(Ordering::Relaxed) {
        send(&mut head);
        let number = head.number.0;
        wait_until("an answer of the disk", || {
            status.durable_batch.load(Ordering::Relaxed) == number
                || status.is_failing.load(Ordering::Relaxed)
        });
    }
    let error = status.last_error().expect("it fails");
    assert!(error.contains("full") && error.contains("records-2026-11-"), "{error}");
    let durable = status.durable_batch.load(Ordering::Relaxed);
    assert!(durable > 1 && durable < head.number.0, "{durable}");
    for _ in 0..20 {
        send(&mut head);
    }
    // What is there can be read meanwhile.
    let reader = SqliteReader::open(&disk.ledger()).expect("it can be read");
    assert_eq!(chain::check(&reader).head.number.0, durable);
    fs::remove_file(ballast).expect("it is there");
    wait_until("the rest", || status.durable_batch.load(Ordering::Relaxed) == head.number.0);
    threads.end(PATIENCE).expect("all is written");
    assert_eq!(chain::check(&reader).head, head);
    assert!(!status.is_failing.load(Ordering::Relaxed));
}

#[test]
fn a_rollup_that_finds_no_room_leaves_the_last_one_as_it_was() {
    use checkweigh::ledger::Views;
    let Some(disk) = SmallDisk::mount("3m") else { return };
    let (mut store, mut views, opening) =
        SqliteStore::open(&disk.ledger(), chain::KEEP_ALL).expect("it opens");
    let mut head = Head::NONE;
    for _ in 0..20 {
        let batch = chain::next(opening.ledger, head);
        store.append(&batch).expect("there is room");
        head = head_of(&batch);
    }
    for number in 1..=10 {
        views.roll_up(&chain::roll_up(BatchNumber(number))).expect("there is room");
    }
    let ballast = disk.fill_up(0);
    let failed = (11..=20).find_map(|number| views.roll_up(&chain::roll_up(BatchNumber(number))).err());
    let error = failed.expect("there is no room").to_string();
    assert!(error.contains("ledger.db") && error.contains("full"), "{error}");
    let reader = SqliteReader::open(&disk.ledger()).expect("it can be read");
    let watermark = chain::check(&reader).watermark.0;
    assert!((10..20).contains(&watermark), "{watermark}");
    fs::remove_file(ballast).expect("it is there");
    for number in watermark + 1..=20 {
        views.roll_up(&chain::roll_up(BatchNumber(number))).expect("there is room again");
    }
    assert_eq!(chain::check(&reader).watermark.0, 20);
}

#[test]
fn a_disk_that_cannot_be_written_to_is_named_and_can_be_read() {
    let Some(disk) = SmallDisk::mount("3m") else { return };
    let (mut store, mut views, opening) =
        SqliteStore::open(&disk.ledger(), chain::KEEP_ALL).expect("it opens");
    let batch = chain::next(opening.ledger, Head::NONE);
    store.append(&batch).expect("there is room");
    checkweigh::ledger::Views::roll_up(&mut views, &chain::roll_up(batch.number)).expect("there is room");
    drop((store, views));
    if let Err(why) = disk.run(&["-o", "remount,ro"]) {
        println!("SKIPPED: the disk cannot be made read-only here, so nothing was tested: {why}");
        return;
    }
    let error = SqliteStore::open(&disk.ledger(), chain::KEEP_ALL).expect_err("it cannot be written to");
    let is_named = |path: &Path| path.starts_with(disk.ledger());
    assert!(matches!(&error, StoreError::Disk { path, .. } if is_named(path)), "{error}");
    assert!(error.to_string().contains("Read-only"), "{error}");
    let reader = SqliteReader::open(&disk.ledger()).expect("it can be read");
    assert_eq!(chain::check(&reader).head, head_of(&batch));
    assert_eq!(reader.devices().expect("there are none"), []);
}

#[test]
fn a_ledger_opens_as_the_configuration_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = checkweigh::config::LedgerConfig {
        path: folder.path().join("deep").join("ledger"),
        commit_interval: Duration::from_millis(100),
        retention: chain::KEEP_ALL,
        signing_key_file: None,
    };
    let mut head = Head::NONE;
    for life in 0..2 {
        let open = checkweigh::ledger::open(&config, Clock::start()).expect("it opens");
        assert_eq!(open.opening.head, head);
        assert_eq!(
            open.reader.batches(open.opening.watermark.next()).expect("they can be read").count(),
            life
        );
        let batch = chain::next(open.opening.ledger, head);
        head = head_of(&batch);
        open.writer.send(Outgoing::Batch(batch)).expect("there is room");
        let taken = checkweigh::ledger::open(&config, Clock::start()).expect_err("it is taken");
        assert!(taken.to_string().starts_with("ledger.path: "), "{taken}");
        open.threads.end(PATIENCE).expect("all is written");
    }
    assert_eq!(chain::check(&SqliteReader::open(&config.path).expect("it can be read")).head, head);
}

/// A proxy whose ledger's disk is full: miners notice nothing, the metrics say so, and what was not written is, later.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_keeps_nobody_from_mining() {
    let Some(disk) = SmallDisk::mount("8m") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let chain = farm::chain(1 << 40);
    let pool = farm::start_pool(&chain, farm::fixed(-20), None);
    let config = format!(
        "[downstream]\nsv1_listen = \"127.0.0.1:0\"\n\
         [[upstream]]\nurl = \"stratum2+tcp://{}/{}\"\nuser_identity = \"account.farm\"\n\
         [vardiff]\nenabled = false\n[metrics]\nlisten = \"127.0.0.1:0\"\n[ledger]\npath = \"{}\"\n",
        pool.sv2,
        farm::key().public(),
        disk.ledger().display()
    );
    let mut proxy = Checkweigh::start("mining-proxy", &config, folder.path());
    // In the order of the log.
    let server = proxy.address("SV1 miners may connect").await;
    let metrics = proxy.address("metrics at").await;
    let mut child = proxy.detach_log();
    let (stop, end) = shutdown();
    let pause = Some(Duration::from_millis(5));
    let miner = Miner::start(MinerOptions { server, user: "full.disk".to_owned(), window: 4, pause }, end);
    let mut look = interval(Duration::from_millis(20));
    let mut until = async |what: &str, sample: &str, more: u64| {
        let (deadline, before) = (tokio::time::Instant::now() + farm::DEADLINE, miner.seen().accepted);
        loop {
            look.tick().await;
            let page = reqwest::get(format!("http://{metrics}/metrics")).await.expect("it is served");
            let page = page.text().await.expect("text");
            if page.contains(sample) && miner.seen().accepted >= before + more {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{what} not in time: {page}");
        }
    };
    until("it mines", "checkweigh_ledger_failing 0\n", 50).await;
    let ballast = disk.fill_up(0);
    until("the alarm", "checkweigh_ledger_failing 1\n", 0).await;
    until("mining goes on", "checkweigh_ledger_failing 1\n", 200).await;
    fs::remove_file(ballast).expect("it is there");
    until("the ledger goes on", "checkweigh_ledger_failing 0\n", 50).await;
    stop.trigger();
    let ended = process::terminate(&mut child, farm::DEADLINE).await;
    assert!(ended.success(), "{ended}");
    let reader = SqliteReader::open(&disk.ledger()).expect("it can be read");
    let opening = reader.opening().expect("it can be opened");
    let (books, _) = revival::books(&opening, &reader).expect("its batches can be read");
    assert_eq!(verify(&reader, |_, _| ()).expect("it can be read").faults, [""; 0]);
    let shares = books.totals().shares.clone();
    let seen = miner.seen();
    assert!((seen.accepted..=seen.submitted + 4).contains(&shares.accepted), "{seen:?} and {shares:?}");
    assert_eq!(books.totals().folded, 0, "no detail was lost");
    pool.stop().await;
}
