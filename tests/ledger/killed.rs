//! A process that appends without a pause is killed at random moments, dozens of times on one ledger.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;

use checkweigh::ledger::{Appended, Head, SqliteReader, SqliteStore, Store, Views};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::chain;

/// Lives of the ledger. Each ends with SIGKILL.
const LIVES: usize = 48;

/// What tells a process of this test program that it is the one to be killed, and where its ledger is.
const FOLDER: &str = "CHECKWEIGH_TEST_LEDGER";

/// Not a test but the process that the test below starts: appends until it is killed, and prints the number of each
/// batch once it is durable.
#[test]
fn append_until_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let (mut store, mut views, opening) =
        SqliteStore::open(Path::new(&folder), chain::KEEP_ALL).expect("it opens");
    let (sender, numbers) = mpsc::sync_channel(4);
    std::thread::spawn(move || {
        for number in numbers {
            views.roll_up(&chain::roll_up(number)).expect("it is kept");
            views.tidy().expect("it is packed");
        }
    });
    // What was appended and not summed up before the end of the last life.
    for number in opening.watermark.0..opening.head.number.0 {
        sender.send(accounting::BatchNumber(number + 1)).expect("the other thread lives");
    }
    let mut head = opening.head;
    let mut output = std::io::stdout().lock();
    loop {
        let batch = chain::next(opening.ledger, head);
        assert_eq!(store.append(&batch).expect("it is appended"), Appended::Written);
        writeln!(output, "durable {}", batch.number.0).expect("somebody reads");
        head = Head { number: batch.number, hash: batch.hash };
        sender.send(batch.number).expect("the other thread lives");
    }
}

/// Runs one life up to its `lines`th durable batch, and kills it. Returns the last number that it said was durable.
fn live(folder: &Path, lines: usize) -> u64 {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "killed::append_until_killed", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let output = BufReader::new(child.stdout.take().expect("it is piped"));
    let mut last = 0;
    let mut seen = 0;
    for line in output.lines() {
        let line = line.expect("text");
        // The test harness puts its own words before the first.
        let Some((_, number)) = line.split_once("durable ") else { continue };
        last = number.parse().expect("a number");
        seen += 1;
        if seen == lines {
            // What it writes until it is dead is read as well: it was durable.
            child.kill().expect("it runs");
        }
    }
    assert!(!child.wait().expect("it ended").success());
    assert!(seen >= lines, "it ended by itself");
    last
}

#[test]
fn what_was_durable_is_there_after_any_kill_and_nothing_twice() {
    let folder = tempfile::tempdir().expect("a folder");
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut last_watermark = 0;
    for life in 0..LIVES {
        let durable = live(folder.path(), random.gen_range(1..120));
        // As others find it before anybody has opened it again, and as the next life does.
        let before = chain::check(&SqliteReader::open(folder.path()).expect("it can be read"));
        let (_store, _views, opening) =
            SqliteStore::open(folder.path(), chain::KEEP_ALL).expect("it opens again");
        assert_eq!((opening.head, opening.watermark), (before.head, before.watermark));
        let head = opening.head.number.0;
        assert!(head >= durable, "life {life}: {durable} was durable, {head} is there");
        assert!(head <= durable + 1, "life {life}: {durable} was durable, {head} is there");
        assert!(opening.watermark.0 >= last_watermark, "sums do not go back");
        last_watermark = opening.watermark.0;
    }
    assert!(last_watermark > 0, "something was summed up");
}
