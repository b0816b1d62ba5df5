//! Statements of work over a ledger that a real proxy wrote, made and checked by the real binary.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use accounting::entry::{DeviceEntry, Entry, Gap, JobEntry};
use accounting::statement::{SignedStatement, StatedSubject};
use accounting::{Books, LedgerId, SealedBatch, Subject, Sums, Verdict, codec};
use checkweigh::ledger::{Head, Reader, Retention, SqliteReader, SqliteStore, Store, Views, revival, times};
use checkweigh::shutdown::shutdown;
use serde_json::Value;
use stratum::{DeviceId, JobNumber, Now, Target, UpstreamChannelId, UpstreamId, UpstreamJobId, Work};
use tokio::time::{Instant, interval};

use crate::chain;
use crate::farm::{self, DEADLINE};
use crate::process::{Checkweigh, terminate};
use crate::sv1_miner::{Miner, MinerOptions};

const MINERS: usize = 3;

/// Shares that all of them have accepted before it ends.
const SHARES: u64 = 400;

/// Runs a pool, a proxy with a ledger in `folder`, and miners.
async fn mine(folder: &Path) {
    let chain = farm::chain(1 << 40);
    let pool = farm::start_pool(&chain, farm::fixed(-20), None);
    let config = format!(
        "[downstream]\nsv1_listen = \"127.0.0.1:0\"\n\
         [[upstream]]\nurl = \"stratum2+tcp://{}/{}\"\nuser_identity = \"account.farm\"\n\
         [vardiff]\nenabled = false\n[ledger]\npath = \"ledger\"\n\
         [[ledger.group]]\nname = \"hall\"\ndevices = \"farm.miner*\"\n",
        pool.sv2,
        farm::key().public()
    );
    let mut proxy = Checkweigh::start("mining-proxy", &config, folder);
    let server = proxy.address("SV1 miners may connect").await;
    let mut child = proxy.detach_log();
    let (_stop, end) = shutdown();
    let miners: Vec<Miner> = (0..MINERS)
        .map(|number| {
            let (user, pause) = (format!("farm.miner{number}"), Some(Duration::from_millis(2)));
            Miner::start(MinerOptions { server, user, window: 4, pause }, end.clone())
        })
        .collect();
    let started = Instant::now();
    let mut look = interval(Duration::from_millis(5));
    while miners.iter().any(|miner| miner.seen().accepted < SHARES / MINERS as u64) {
        look.tick().await;
        assert!(started.elapsed() < DEADLINE, "miners are served");
    }
    assert!(terminate(&mut child, DEADLINE).await.success());
    pool.stop().await;
}

/// What the ledger says now, and the times of its first and its last entry.
fn ledger_of(folder: &Path) -> (Books, u64, u64) {
    let reader = SqliteReader::open(&folder.join("ledger")).expect("there is a ledger");
    let opening = reader.opening().expect("it can be opened");
    let (books, _) = revival::books(&opening, &reader).expect("its batches can be read");
    let batches: Vec<_> =
        reader.batches(accounting::BatchNumber(1)).expect("they are there").map(Result::unwrap).collect();
    let first = batches.iter().map(|batch| batch.first_us).min().expect("there are some");
    (books, first, batches.iter().map(|batch| batch.last_us).max().expect("there are some"))
}

/// The folder of a test, and what is run in it.
struct Bench<'a> {
    folder: &'a Path,
    key: String,
}

impl Bench<'_> {
    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_checkweigh"))
            .args(arguments)
            .current_dir(self.folder)
            .env_remove("RUST_LOG")
            .output()
            .expect("the binary runs")
    }

    fn succeeds(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {told}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// What it says when it fails.
    fn fails(&self, arguments: &[&str], code: i32) -> String {
        let output = self.run(arguments);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
        told
    }

    fn statement<'s>(&self, of: [&'s str; 2], from: &'s str, to: &'s str, more: &[&'s str]) -> Vec<&'s str> {
        let whose =
            [&["ledger", "--path", "ledger", "statement"][..], &of, &["--from", from, "--to", to]].concat();
        [&whose[..], &["--key", "ledger.key"], more].concat()
    }

    fn check(&self, file: &str, more: &[&str]) -> Value {
        let arguments = [&["ledger", "check-statement", file, "--key", &self.key, "--json"], more].concat();
        serde_json::from_str(&self.succeeds(&arguments)).expect("JSON")
    }

    fn read(&self, file: &str) -> SignedStatement {
        SignedStatement::read(&fs::read(self.folder.join(file)).expect("it was made")).expect("it is one")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_a_proxy_recorded_is_stated_and_checked() {
    let folder = tempfile::tempdir().expect("a folder");
    mine(folder.path()).await;
    let (books, first_us, last_us) = ledger_of(folder.path());
    let mut bench = Bench { folder: folder.path(), key: String::new() };
    bench.key = bench.succeeds(&["keygen", "--out", "ledger.key"]).trim().to_owned();
    let (from, to) = (times::microseconds(first_us), times::microseconds(last_us));
    let middle = times::microseconds(first_us.midpoint(last_us));
    let device = ["--device", "farm.miner1"];

    bench.succeeds(&bench.statement(device, &from, &middle, &["--out", "one.json"]));
    let follows = ["--previous", "one.json", "--out", "two.json"];
    bench.succeeds(&bench.statement(device, &middle, &to, &follows));
    let (one, two) = (bench.check("one.json", &[]), bench.check("two.json", &["--previous", "one.json"]));
    assert_eq!(
        (&one["chain"], &two["chain"], &two["gap_us"]),
        (&"first".into(), &"follows".into(), &0.into())
    );
    assert_eq!(bench.check("two.json", &[])["chain"], "not_shown");
    for draws in ["draws_from_accepted_work", "draws_from_work_at_upstream_target"] {
        assert_eq!((&one[draws]["draws"], &one[draws]["proved"]), (&64.into(), &64.into()), "{one}");
    }
    let id = books.device_rows().find(|row| &*row.name == "farm.miner1").expect("it mined").id;
    let known = books.view(Subject::Device(id), 0).expect("it mined").sums;
    let accepted = |page: &Value| page["statement"]["sums"]["accepted"]["shares"].as_u64().expect("a number");
    assert_eq!(accepted(&one) + accepted(&two), known.shares.accepted, "every share is in one of them");

    others_are_whole(&bench, &books, &from, &to);
    what_is_wrong_is_told(&bench, &from, &middle);
    a_challenge_draws_again(&bench, &from, &middle);
    let text = bench.succeeds(&["ledger", "check-statement", "one.json", "--key", &bench.key]);
    for part in ["the device farm.miner1", "What this proves:", "What it does not prove:", "3.75 %"] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
}

/// 2025-11-25T10:00:00Z, in microseconds.
const TEN: u64 = 1_764_064_800_000_000;

const DAY: u64 = 86_400_000_000;

/// A batch with a device, a job of its own day, so many shares that meet it, and sums of records that were lost.
fn day(ledger: LedgerId, head: Head, day: u64, shares: u32) -> SealedBatch {
    let mut payload = Vec::new();
    let at_us = TEN + day * DAY;
    let (id, number) = (DeviceId(1), JobNumber(day + 1));
    let device = DeviceEntry::named(id, "farm.rig7", at_us);
    let job = JobEntry {
        number,
        at_us,
        upstream: UpstreamId(0),
        upstream_channel: UpstreamChannelId(0),
        upstream_job: UpstreamJobId(0),
        template: None,
        previous_hash: [7; 32],
        nbits: 0x1d00_ffff,
        upstream_target: Target::HARDEST,
        coinbase_prefix: vec![1; 40],
        rollable_size: 8,
        coinbase_suffix: vec![2; 50],
        merkle_path: vec![[3; 32]],
    };
    let mut lost = Sums::default();
    (lost.shares.submitted, lost.shares.accepted, lost.shares.kept) = (9, 9, 9);
    let devices = vec![(Some(id), lost)];
    let gap = Gap { from_us: at_us, to_us: at_us, records: 9, devices, ..Gap::default() };
    for entry in [Entry::Device(device), Entry::Job(job), Entry::Gap(gap)] {
        codec::write_entry(&mut payload, &entry);
    }
    for place in 0..shares {
        let utc = Duration::from_micros(at_us + u64::from(place) * 1000);
        let mut share = chain::share(Now { monotonic: utc, utc }, id, Verdict::Accepted, Work(1));
        // Every hash is worth one.
        (share.job, share.nonce, share.job_age_ms) = (Some(number), place, place);
        codec::write_entry(&mut payload, &Entry::Share(share));
    }
    SealedBatch::seal(ledger, head.number.next(), (at_us, at_us + 1_000_000), shares + 3, payload, head.hash)
}

#[test]
fn what_retention_took_away_is_not_stated() {
    let folder = tempfile::tempdir().expect("a folder");
    let little = Retention { records_bytes: 1, ..chain::KEEP_ALL };
    let (mut store, mut views, opening) =
        SqliteStore::open(&folder.path().join("ledger"), little).expect("it opens");
    let (mut head, mut books) = (Head::NONE, Books::default());
    for number in 0..2 {
        let batch = day(opening.ledger, head, number, 50);
        store.append(&batch).expect("it is appended");
        codec::entries(&batch.payload).for_each(|entry| books.apply(&entry.expect("it was written")));
        head = Head { number: batch.number, hash: batch.hash };
    }
    views.roll_up(&books.roll_up(head.number)).expect("it is kept");
    let mut bench = Bench { folder: folder.path(), key: String::new() };
    bench.key = bench.succeeds(&["keygen", "--out", "ledger.key"]).trim().to_owned();
    let device = ["--device", "farm.rig7"];
    let both = bench.statement(device, "2025-11-25", "2025-11-27", &["--out", "both.json"]);
    bench.succeeds(&both);
    assert_eq!(bench.check("both.json", &[])["draws_from_accepted_work"]["proved"], 64);
    let statement = bench.read("both.json").statement;
    assert_eq!((statement.sums.accepted.shares.0, statement.without_detail.accepted.shares.0), (100, 18));
    assert_eq!((statement.first_batch.map(|batch| batch.number.0), statement.lost_batches.0), (Some(1), 0));
    // Made again, it is the same statement with the same sample: only the signature has chance in it.
    bench.succeeds(&bench.statement(device, "2025-11-25", "2025-11-27", &["--out", "again.json"]));
    let again = bench.read("again.json");
    assert_eq!((again.statement, again.sample), (statement, bench.read("both.json").sample));

    assert_eq!(views.retain(TEN / 1_000_000 + 864_000).expect("it can be removed").files.len(), 1);
    let told = bench.fails(&both[..both.len() - 2], 1);
    assert!(told.contains("the records before 2025-11-26T00:00:00Z were removed"), "{told}");
    let kept = bench.statement(device, "2025-11-26", "2025-11-27", &["--out", "kept.json"]);
    bench.succeeds(&kept);
    assert_eq!(bench.read("kept.json").statement.sums.accepted.shares.0, 50);
    assert_eq!(bench.check("kept.json", &[])["shares_without_job"], 0);
}

/// Statements of the group and of the account say what the books say.
fn others_are_whole(bench: &Bench<'_>, books: &Books, from: &str, to: &str) {
    bench.succeeds(&bench.statement(["--group", "hall"], from, to, &["--out", "hall.json"]));
    bench.succeeds(&bench.statement(["--account", "account.farm"], from, to, &["--out", "account.json"]));
    let fleet = books.view(Subject::Fleet, 0).expect("it is always there").sums;
    for (file, subject, members) in [
        ("hall.json", StatedSubject::Group("hall".to_owned()), MINERS as u64),
        ("account.json", StatedSubject::Account("account.farm".to_owned()), 1),
    ] {
        bench.check(file, &[]);
        let statement = bench.read(file).statement;
        assert_eq!((&statement.subject, statement.members.0), (&subject, members));
        let sums = statement.sums;
        assert_eq!(
            (sums.accepted.shares.0, sums.accepted.hashes.0),
            (fleet.shares.accepted, fleet.shares.credited)
        );
        assert_eq!(sums.forwarded.shares.0, fleet.shares.forwarded);
        assert_eq!(sums.acknowledged.shares.0, fleet.answers.acknowledged);
        assert_eq!(sums.submitted.shares.0, fleet.shares.submitted);
    }
}

fn what_is_wrong_is_told(bench: &Bench<'_>, from: &str, middle: &str) {
    let check = |file: &str, key: &str, more: &[&str]| {
        bench.fails(&[&["ledger", "check-statement", file, "--key", key], more].concat(), 1)
    };
    let other = bench.succeeds(&["keygen", "--out", "other.key"]);
    assert!(check("one.json", other.trim(), &[]).contains("signed by another key"));
    assert!(check("two.json", &bench.key, &["--previous", "hall.json"]).contains("names another one"));
    assert!(check("one.json", &bench.key, &["--previous", "two.json"]).contains("names none"));
    assert!(check("one.json", &bench.key, &["--challenge", "x"]).contains("another challenge"));
    let text = fs::read_to_string(bench.folder.join("one.json")).expect("it was made");
    let place = text.find("\"nonce\": ").expect("there is a share") + 9;
    let mut changed = text.into_bytes();
    changed[place] = if changed[place] == b'9' { b'8' } else { b'9' };
    fs::write(bench.folder.join("changed.json"), changed).expect("the folder can be written to");
    assert!(check("changed.json", &bench.key, &[]).contains("the signature is wrong"));

    let state = |of, from, to, more: &[&str]| bench.fails(&bench.statement(of, from, to, more), 1);
    let device = ["--device", "farm.miner1"];
    assert!(state(["--device", "farm.minr1"], from, middle, &[]).contains("did you mean"));
    assert!(state(["--group", "hell"], from, middle, &[]).contains("it knows hall"));
    assert!(state(["--account", "a"], from, middle, &[]).contains("it knows account.farm"));
    assert!(state(device, middle, from, &[]).contains("--from is not before --to"));
    assert!(state(device, from, "2099-01-01", &[]).contains("has not ended"));
    assert!(state(device, from, middle, &["--out", "one.json"]).contains("exists already"));
    assert!(state(device, from, middle, &["--previous", "one.json"]).contains("count in both"));
    assert!(state(["--group", "hall"], middle, middle, &[]).contains("--from is not before --to"));
    let both = bench.statement(device, from, middle, &["--group", "hall"]);
    bench.fails(&both, 2);
    assert!(bench.fails(&["ledger", "devices"], 2).contains("--path"));
}

fn a_challenge_draws_again(bench: &Bench<'_>, from: &str, middle: &str) {
    let more = ["--challenge", "tomorrow's word", "--sample", "7", "--out", "again.json"];
    bench.succeeds(&bench.statement(["--device", "farm.miner1"], from, middle, &more));
    let again = bench.check("again.json", &["--challenge", "tomorrow's word"]);
    assert_eq!(again["hash"], bench.check("one.json", &[])["hash"], "it is the same statement");
    assert_eq!(again["draws_from_accepted_work"]["proved"], 7);
}
