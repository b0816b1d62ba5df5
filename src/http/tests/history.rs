//! The accounts of a process and of the one after it, through the API, with a real ledger between them.

use std::path::Path;
use std::time::Duration;

use accounting::entry::{DeviceEntry, PowerEntry, microseconds};
use accounting::{
    Fate, LossReason, PowerSource, RejectReason, ShareRecord, Subject, UpstreamAnswer, UpstreamVerdict,
    Verdict,
};
use serde_json::{Value, json};
use stratum::job::{JobParts, Rolled};
use stratum::{
    ChannelId, ConnectionId, DeviceId, Difficulty, Epoch, Job, JobNumber, JobOrigin, Now, SequenceNumber,
    Target, Tip, TipNumber, UpstreamChannelId, UpstreamJobId, Work,
};

use super::*;
use crate::config::LedgerConfig;
use crate::http::view::History;
use crate::ledger::revival::{Revived, revive, started};
use crate::ledger::verify::verify;
use crate::ledger::{LedgerThreads, SqliteReader};
use crate::sink::{DeviceRules, RecordWriter};

/// A target that every second hash meets.
const EASY: u32 = 0x207f_ffff;

struct Process {
    sink: RecordSink,
    clock: Clock,
    address: SocketAddr,
    threads: LedgerThreads,
    _trigger: ShutdownTrigger,
}

impl Process {
    fn start(folder: &Path) -> Self {
        let clock = Clock::start();
        let config = LedgerConfig::in_folder(folder.to_owned());
        let revived = revive(&config, DeviceRules::default(), clock).expect("it opens");
        let Revived { to_ledger, threads, began_us, .. } = revived;
        let ledger_status = Arc::clone(to_ledger.writer.status());
        let history = History::new(folder.to_owned(), to_ledger.id, began_us, ledger_status);
        let (sink, _task) = RecordSink::start_with_ledger(to_ledger, clock);
        sink.writer().event(started(microseconds(clock.now().utc)));
        let status: Arc<dyn Fn() -> Status + Send + Sync> = Arc::new(|| status(true));
        let sources = Sources {
            sink: sink.clone(),
            clock,
            status: Arc::clone(&status),
            jobs: Arc::new(Vec::new),
            history: Some(history),
        };
        let view = Arc::new(RecordedView::new(sources));
        let served = Served { view, latencies: Arc::default(), clock, status, max_device_series: 10 };
        let (address, listener) = listener();
        let (trigger, end) = shutdown();
        let config = super::api::config(None, None, 60_000);
        tokio::spawn(async move { serve_api(listener, served, &config, end).await });
        Process { sink, clock, address, threads, _trigger: trigger }
    }

    async fn get(&self, path: &str) -> Value {
        let (head, body) = request(self.address, path).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{path}: {head} {body}");
        serde_json::from_str(&body).expect("JSON")
    }

    async fn end(self) {
        self.sink.finish().await.expect("it is there");
        let ended = tokio::task::spawn_blocking(|| self.threads.end(Duration::from_secs(10))).await;
        ended.expect("no panic").expect("everything is written");
    }
}

/// A job at height 925,000 whose coinbase pays 3.15 bitcoins.
fn job(now: Now) -> Job {
    let mut coinbase_prefix = vec![1, 0, 0, 0, 1];
    coinbase_prefix.extend_from_slice(&[0; 32]);
    coinbase_prefix.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 4 + 12, 3, 0x48, 0x1d, 0x0e]);
    let mut coinbase_suffix = vec![0xff, 0xff, 0xff, 0xff, 1];
    coinbase_suffix.extend_from_slice(&315_000_000_u64.to_le_bytes());
    coinbase_suffix.extend_from_slice(&[1, 0x51, 0, 0, 0, 0]);
    let tip = Tip {
        number: TipNumber(1),
        previous_hash: [7; 32],
        nbits: EASY,
        network_target: Target::from_compact(EASY),
    };
    let origin = JobOrigin {
        upstream: UpstreamId(0),
        channel: UpstreamChannelId(7),
        job: UpstreamJobId(1),
        template: None,
    };
    Job::new(JobParts {
        number: JobNumber(9),
        epoch: Epoch(1),
        origin,
        tip,
        clean: true,
        version: 0x2000_0000,
        version_rolling_allowed: false,
        min_ntime: 5,
        coinbase_prefix: coinbase_prefix.into(),
        coinbase_suffix: coinbase_suffix.into(),
        rollable_size: 12,
        merkle_path: [[1; 32], [2; 32]].into(),
        upstream_target: Target::MAX,
        received: now,
    })
}

/// A share of the job that is a block, and the block's hash as people write it.
fn block(job: &Job, judged: Now) -> (ShareRecord, String) {
    let reserved = [1, 2, 3, 4];
    let rolled = |nonce| Rolled { reserved, extranonce: &[5; 4], version: job.version, ntime: 5, nonce };
    let nonce = (0..).find(|nonce| job.tip.network_target.is_met_by(&job.hash(&rolled(*nonce))));
    let nonce = nonce.expect("every second hash is one");
    let mut hash = job.hash(&rolled(nonce));
    hash.reverse();
    let share = ShareRecord {
        judged,
        device: Some(DeviceId(0)),
        connection: ConnectionId(1),
        channel: ChannelId(0),
        upstream: Some(UpstreamId(0)),
        upstream_channel: Some(UpstreamChannelId(7)),
        job: Some(job.number),
        verdict: Verdict::BlockFound,
        fate: Fate::Forwarded,
        sequence_number: Some(SequenceNumber(1)),
        submitted: Work(1000),
        upstream_work: Work(1000),
        difficulty: Some(Difficulty(7.0)),
        job_age_ms: 0,
        version: job.version,
        ntime: 5,
        nonce,
        rollable: job.rollable_bytes(reserved, &[5; 4]),
    };
    (share, hex::encode(hash))
}

fn answer(writer: &mut RecordWriter, judged: Now, milliseconds: u64, verdict: UpstreamVerdict) {
    let wait = Duration::from_millis(milliseconds);
    let received = Now { monotonic: judged.monotonic + wait, utc: judged.utc + wait };
    writer.answer(UpstreamAnswer {
        received,
        upstream: UpstreamId(0),
        channel: UpstreamChannelId(7),
        verdict,
    });
}

/// A block that is taken, a share that is refused, one that is lost, one that is stale; and a meter.
fn mine(process: &Process) -> String {
    let now = process.clock.now();
    let mut writer = process.sink.writer();
    writer.device(DeviceEntry::named(DeviceId(0), "farm.one", microseconds(now.utc)));
    let (subject, source) = (Subject::Device(DeviceId(0)), PowerSource::Meter);
    let at_us = microseconds(now.utc);
    writer.power(PowerEntry { subject, at_us, valid_for_s: 3600, milliwatts: 3_000_000, source });
    let job = job(now);
    writer.job(&job);
    let (share, hash) = block(&job, now);
    let plain = ShareRecord { verdict: Verdict::Accepted, ..share.clone() };
    writer.share(share);
    for number in [2, 3] {
        writer.share(ShareRecord { sequence_number: Some(SequenceNumber(number)), ..plain.clone() });
    }
    let (verdict, fate, sequence_number) = (Verdict::Rejected(RejectReason::Stale), Fate::Refused, None);
    writer.share(ShareRecord { verdict, fate, sequence_number, upstream_work: Work(0), ..plain });
    let (last, work) = (SequenceNumber(1), Work(1000));
    let taken = UpstreamVerdict::Acknowledged { last, count: 1, claimed: 1, shares_sum: 1, work };
    answer(&mut writer, now, 80, taken);
    let (sequence_number, code) = (SequenceNumber(2), "stale-share".to_owned());
    answer(&mut writer, now, 120, UpstreamVerdict::Rejected { sequence_number, code, work });
    let (last, reason) = (SequenceNumber(3), LossReason::ConnectionEnded);
    answer(&mut writer, now, 130, UpstreamVerdict::Lost { last, count: 1, reason, work });
    hash
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_process_knew_the_next_one_shows() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = Process::start(folder.path());
    let hash = mine(&first);
    let block = json!({
        "number": 1, "device": "farm.one", "hash": hash, "height": 925_000, "difficulty": 7.0,
        "value_sats": 315_000_000, "upstream": "pool.example:34254",
    });
    let same = |answer: &Value| {
        let mut found = answer["blocks"][0].clone();
        found.as_object_mut().expect("an object").remove("found");
        assert_eq!((&found, &answer["is_complete"]), (&block, &json!(true)));
    };
    same(&first.get("/api/v1/blocks").await);
    let before = first.get("/api/v1/fleet").await;
    check_metrics(&first, 1).await;
    first.end().await;

    let second = Process::start(folder.path());
    same(&second.get("/api/v1/blocks").await);
    check_events(&second, &hash).await;
    let fleet = second.get("/api/v1/fleet").await;
    assert_eq!(fleet["rejected_by_upstream_code"], json!({ "stale-share": 1 }));
    assert_eq!(fleet["shares"], before["shares"]);
    assert_eq!(fleet["cost"]["value_sats"], before["cost"]["value_sats"]);
    assert!(
        fleet["energy"]["energy_j"].as_f64() > Some(0.0),
        "the minute that was open has its energy: {fleet}"
    );
    let causes: Vec<(&str, f64)> = fleet["cost"]["by_cause"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|cause| (cause["fate"].as_str().expect("a name"), cause["value_sats"].as_f64().expect("known")))
        .collect();
    // A block takes two hashes.
    let sats = 1000.0 * 315e6 / 2.0;
    assert_eq!(
        causes.iter().map(|(fate, _)| *fate).collect::<Vec<_>>(),
        ["rejected", "rejected_by_upstream", "lost"]
    );
    assert!(causes.iter().all(|(_, value)| (value / sats - 1.0).abs() < 1e-6), "{causes:?}");
    let upstreams = second.get("/api/v1/upstreams").await;
    let acks = &upstreams["upstreams"][0]["ack_latency"];
    assert_eq!((&acks["answers"], &acks["longest_seconds"]), (&json!(2), &json!(0.12)));
    assert_eq!(acks["mean_seconds"], json!(0.1));
    check_metrics(&second, 0).await;
    let upstream = &upstreams["upstreams"][0];
    assert_eq!(upstream["rejected_by_upstream_code"], json!({ "stale-share": 1 }));
    assert_eq!(upstream["shares"]["rejected"], before["shares"]["rejected"]);
    assert_eq!(upstream["work"], before["work"]);
    assert_eq!(upstream["cost"]["value_sats"], before["cost"]["value_sats"]);
    let device = second.get("/api/v1/devices/farm.one").await;
    assert_eq!(device["energy"]["power_w"], 3000.0, "the meter's word still stands");

    check_rejects(&second).await;
    second.end().await;

    let reader = SqliteReader::open(folder.path()).expect("it opens");
    let found = verify(&reader, |_, _| {}).expect("it can be read");
    assert_eq!((found.faults, found.points > 0), (Vec::new(), true));
}

/// Counters are those of one process: `times` what [`mine`] did.
async fn check_metrics(process: &Process, times: u32) {
    let page = request(process.address, "/metrics").await.1;
    let of_devices = request(process.address, "/metrics/devices").await.1;
    let upstream = "{upstream=\"pool.example:34254\"";
    for (sample, count) in [
        (format!("checkweigh_upstream_ack_seconds_bucket{upstream},le=\"0.1\"}}"), 1),
        (format!("checkweigh_upstream_refusals_total{upstream},code=\"stale-share\"}}"), 1),
        (format!("checkweigh_shares_forwarded_total{upstream}}}"), 3),
        ("checkweigh_shares_submitted_total".to_owned(), 4),
        ("checkweigh_blocks_found_total".to_owned(), 1),
        ("checkweigh_device_shares_submitted_total{device=\"farm.one\"}".to_owned(), 4),
    ] {
        let line = format!("{sample} {}\n", count * times);
        assert!(page.contains(&line) || of_devices.contains(&line), "{line}{page}{of_devices}");
    }
    assert!(page.contains("checkweigh_ledger_failing 0\n"), "{page}");
}

async fn check_events(second: &Process, hash: &str) {
    let events = second.get("/api/v1/events").await;
    let kinds: Vec<&str> = events["events"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|event| event["kind"].as_str().expect("a name"))
        .collect();
    assert_eq!(kinds, ["started", "ended", "block_found", "started"]);
    assert_eq!(events["events"][1]["number"], 3);
    let text = events["events"][2]["text"].as_str().expect("a text");
    assert!(text.contains("height 925000") && text.contains(hash), "{text}");
    let first_at = events["events"][3]["at"].as_str().expect("a time");
    let page = second.get(&format!("/api/v1/events?limit=1&before={first_at}")).await;
    assert_eq!(page["events"][0]["number"], 1);
}

async fn check_rejects(second: &Process) {
    // Over an hour around it, and over an hour long ago.
    let around = second.get("/api/v1/rejects?from=2020-01-01T00:00:00Z&to=2100-01-01T00:00:00Z").await;
    assert_eq!((&around["rejected"][0]["shares"], &around["lost"][1]["shares"]), (&json!(1), &json!(1)));
    assert_eq!(
        (&around["rejected_by_upstream"]["shares"], &around["period"]["to"]),
        (&json!(1), &json!("2100-01-01T00:00:00.000000Z"))
    );
    assert_eq!(around["rejected_by_upstream_code"], Value::Null);
    let before = second.get("/api/v1/rejects?from=2020-01-01T00:00:00Z&to=2020-01-01T01:00:00Z").await;
    assert_eq!((&before["rejected"][0]["shares"], &before["lost"][1]["shares"]), (&json!(0), &json!(0)));
}
