//! The accounts of a real sink, through the API, and what a great fleet costs.

use std::time::{Duration, Instant};

use accounting::entry::{DeviceEntry, microseconds};
use accounting::{Fate, RejectReason, ShareRecord, Verdict};
use serde_json::{Value, json};
use stratum::{ChannelId, ConnectionId, DeviceId, Difficulty, Now, UpstreamChannelId, Work};

use super::*;
use crate::http::view::{Span, Subject, Unanswered};

/// As many as the largest site that is promised.
const GREAT_FLEET: u32 = 20_000;

pub(super) fn share(device: u32, judged: Now, verdict: Verdict) -> ShareRecord {
    let is_refused = matches!(verdict, Verdict::Rejected(_));
    ShareRecord {
        judged,
        device: Some(DeviceId(device)),
        connection: ConnectionId(1),
        channel: ChannelId(0),
        upstream: Some(UpstreamId(0)),
        upstream_channel: Some(UpstreamChannelId(7)),
        job: None,
        verdict,
        fate: if is_refused { Fate::Refused } else { Fate::Forwarded },
        sequence_number: None,
        submitted: Work(1000),
        upstream_work: Work(if is_refused { 0 } else { 5000 }),
        difficulty: Some(Difficulty(7.0)),
        job_age_ms: 0,
        version: 0,
        ntime: 0,
        nonce: 0,
        rollable: Default::default(),
    }
}

pub(super) struct Running {
    pub(super) sink: RecordSink,
    view: Arc<RecordedView>,
    pub(super) clock: Clock,
    pub(super) address: SocketAddr,
    _trigger: ShutdownTrigger,
}

fn running() -> Running {
    running_with(None)
}

fn running_with(admin: Option<&str>) -> Running {
    running_on(RecordSink::start().0, admin)
}

/// Serves what a sink has.
pub(super) fn running_on(sink: RecordSink, admin: Option<&str>) -> Running {
    let clock = Clock::start();
    let status: Arc<dyn Fn() -> Status + Send + Sync> = Arc::new(|| status(true));
    let sources = Sources {
        sink: sink.clone(),
        clock,
        status: Arc::clone(&status),
        jobs: Arc::new(Vec::new),
        history: None,
    };
    let view = Arc::new(RecordedView::new(sources));
    let served = Served {
        view: view.clone(),
        latencies: Arc::default(),
        clock,
        status,
        max_device_series: GREAT_FLEET,
    };
    let (address, listener) = listener();
    let (trigger, end) = shutdown();
    let config = super::api::config(None, admin, 60_000);
    tokio::spawn(async move { serve_api(listener, served, &config, end).await });
    Running { sink, view, clock, address, _trigger: trigger }
}

#[tokio::test]
async fn what_the_sink_counts_is_what_the_api_shows() {
    let running = running();
    let now = running.clock.now();
    let mut writer = running.sink.writer();
    writer.device(DeviceEntry::named(DeviceId(0), "farm.one", microseconds(now.utc)));
    writer.share(share(0, now, Verdict::Accepted));
    writer.share(share(0, now, Verdict::BlockFound));
    writer.share(share(0, now, Verdict::Rejected(RejectReason::Stale)));
    let get = async |path: &str| -> Value {
        serde_json::from_str(&request(running.address, path).await.1).expect("JSON")
    };
    let device = get("/api/v1/devices/farm.one").await;
    assert_eq!(device["shares"]["submitted"], 3);
    assert_eq!(
        (&device["shares"]["accepted"], &device["shares"]["rejected"]["stale"]),
        (&json!(2), &json!(1))
    );
    assert_eq!(device["work"]["device_difficulty"]["accepted_hashes"], 2000);
    assert_eq!(device["work"]["upstream_target"]["forwarded_hashes"], 10_000);
    assert_eq!(device["shares"]["acknowledged"], 0, "nothing was answered yet");
    let fleet = get("/api/v1/fleet").await;
    assert_eq!((&fleet["shares"]["pending"], &fleet["devices"]), (&json!(2), &json!(1)));
    let upstreams = get("/api/v1/upstreams").await;
    assert_eq!(upstreams["upstreams"][0]["shares"]["forwarded"], 2);
    let blocks = get("/api/v1/blocks").await;
    assert_eq!((&blocks["is_complete"], &blocks["blocks"][0]["device"]), (&json!(true), &json!("farm.one")));
    let (head, body) = request(running.address, "/api/v1/devices/farm.one/series").await;
    assert!(head.starts_with("HTTP/1.1 501") && body.contains("no-ledger"), "{head}");
}

/// What is said of power comes back as energy and efficiency, and as what bad work cost.
#[tokio::test]
async fn power_that_is_posted_comes_back_as_joules_for_each_terahash() {
    let running = running_with(Some(super::api::ADMIN));
    let token = format!("Authorization: Bearer {}\r\n", super::api::ADMIN);
    let ask = async |method: &str, path: &str, body: &str| {
        super::api::ask_at(running.address, method, path, &token, body).await
    };
    let mut writer = running.sink.writer();
    writer.device(DeviceEntry::named(DeviceId(0), "farm.one", microseconds(running.clock.now().utc)));
    let body =
        json!([{ "device": "farm.one", "power_w": 3000.0, "source": "meter", "valid_for_seconds": 3600 }]);
    let answer = ask("post", "/api/v1/power", &body.to_string()).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let now = running.clock.now();
    let mut good = share(0, now, Verdict::Accepted);
    good.submitted = Work(300_000_000_000_000_000);
    let mut stale = share(0, now, Verdict::Rejected(RejectReason::Stale));
    stale.submitted = Work(30_000_000_000_000_000);
    writer.share(good);
    writer.share(stale);
    // The minute ends with the first share of a later one.
    let later = Duration::from_secs(120);
    let later = Now { monotonic: now.monotonic + later, utc: now.utc + later };
    writer.share(share(0, later, Verdict::Accepted));
    // Figures are up to a second old.
    let device = loop {
        let answer = ask("get", "/api/v1/devices/farm.one", "").await;
        let device: Value = serde_json::from_str(&answer.body).expect("JSON");
        if !device["energy"]["energy_j"].is_null() {
            break device;
        }
        tokio::task::yield_now().await;
    };
    let energy = &device["energy"];
    assert_eq!((&energy["power_w"], &energy["power_source"]), (&json!(3000.0), &json!("meter")));
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("a number: {device}"));
    let (joules, efficiency) = (number(&energy["energy_j"]), number(&energy["efficiency_j_per_th"]));
    let covered = number(&energy["covered_hashes"]) / 1e12;
    assert!(joules > 0.0 && joules <= 180_000.0 && covered <= 300_000.0, "{energy}");
    assert_eq!(&energy["energy_j_by_source"]["meter"], &energy["energy_j"]);
    assert!((efficiency - joules / covered).abs() < 1e-9 * efficiency, "{energy}");
    let cost = &device["cost"];
    assert_eq!((&cost["by_cause"][0]["reason"], &cost["shares"]), (&json!("stale"), &json!(1)));
    let kwh = number(&cost["energy_kwh"]);
    assert!((kwh - 30_000.0 * efficiency / 3.6e6).abs() < 1e-9 * kwh, "{cost} at {efficiency}");
    assert_eq!(cost["value_sats"], Value::Null, "no job was seen");
}

/// However many ask at once, the sink makes one copy.
#[tokio::test]
async fn askers_share_one_snapshot() {
    let running = running();
    let (first, second) = tokio::join!(running.view.fleet(), running.view.fleet());
    assert!(Arc::ptr_eq(&first.expect("it runs"), &second.expect("it runs")));
    let span = Span { from_us: 0, to_us: 1 };
    assert!(matches!(running.view.period(span).await, Err(Unanswered::NoLedger)));
    let points = running.view.points(Subject::Fleet, accounting::Level::Hour, span).await;
    assert!(matches!(points, Err(Unanswered::NoLedger)));
}

/// Prints what a fleet of twenty thousand costs:
/// `cargo test -p checkweigh --lib great_fleet -- --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_great_fleet_costs() {
    let running = running();
    let mut writer = running.sink.writer();
    for device in 0..GREAT_FLEET {
        let now = running.clock.now();
        let name = format!("account.hall{}.rig{device}", device % 20);
        writer.device(DeviceEntry::named(DeviceId(device), name, microseconds(now.utc)));
        writer.share(share(device, now, Verdict::Accepted));
        while writer.is_behind() {
            tokio::task::yield_now().await;
            writer.flush();
        }
    }
    let began = Instant::now();
    running.sink.snapshot(running.clock.now()).await.expect("it runs");
    println!("a copy by the sink: {:?}", began.elapsed());
    for path in [
        "/metrics",
        "/metrics",
        "/api/v1/devices?limit=1000",
        "/api/v1/devices?limit=1000&sort=accepted_work&order=desc",
        "/api/v1/devices?filter=rig19999",
        "/metrics/devices",
        "/interop/miningos/workers",
    ] {
        let began = Instant::now();
        let (head, body) = request(running.address, path).await;
        println!("{path}: {:?}, {} bytes", began.elapsed(), body.len());
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    }
}
