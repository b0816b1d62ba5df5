//! The page as Prometheus reads it, and the answers as a supervisor gets them.

mod api;
mod contract;
mod history;
mod model;
mod recorded;
mod schema;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use accounting::{AckSums, AnswerSums, Sums, Totals};
use mining_server::{DropReason, RejectReason};
use stratum::UpstreamId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::metrics::{COMMIT, device_pieces, render};
use super::view::fake::{FakeView, fleet};
use super::view::{Ledger, Overview, RecordedView, Upstream};
use super::*;
use crate::config::listen::bind;
use crate::shutdown::{ShutdownTrigger, shutdown};

fn status(is_live: bool) -> Status {
    let upstream = |name: &str, is_live| {
        let standing = if is_live { "serving" } else { "standby" };
        UpstreamState { name: name.to_owned(), account: None, is_live, standing }
    };
    let upstreams = vec![upstream("pool.example:34254", is_live), upstream("other.example:1", false)];
    Status {
        sv1_connections: 3,
        rolling_withheld: 2,
        rolled_outside_mask: 1,
        upstreams,
        switches: vec![("fail_back", 4)],
        ..Status::default()
    }
}

fn overview() -> Overview {
    let mut totals = Totals::default();
    totals.shares.submitted = 12;
    totals.shares.accepted = 10;
    totals.shares.rejected[RejectReason::Stale as usize] = 2;
    totals.shares.forwarded = 10;
    totals.shares.credited = stratum::Work(1 << 100);
    totals.answers = AnswerSums { forwarded: 10, refused: 1, ..AnswerSums::default() };
    totals.upstreams.insert(UpstreamId(0), totals.answers.clone());
    totals.refused_by_code.insert("stale-share".to_owned(), 1);
    let mut acks = AckSums::default();
    acks.add(3_000);
    let upstream = |name: &str, is_live, answers| {
        let standing = if is_live { "serving" } else { "standby" };
        let acks = acks.clone();
        let sums = Sums { answers, ..Sums::default() };
        let refused_by_code = [("stale-share".to_owned(), 1)].into();
        let (rates, sats_per_hash) = Default::default();
        Upstream {
            name: name.into(),
            account: None,
            is_live,
            standing,
            sums,
            rates,
            refused_by_code,
            sats_per_hash,
            acks,
        }
    };
    let upstreams = vec![
        upstream("pool.example:34254", true, totals.answers.clone()),
        upstream("other.example:1", false, AnswerSums::default()),
    ];
    Overview { totals, devices: 2, upstreams, ..Overview::default() }
}

fn kept() -> Ledger {
    let alarm = Some("the disk is full".to_owned());
    Ledger { is_kept: true, head_batch: Some(9), unwritten_bytes: Some(7), alarm, ..Ledger::default() }
}

/// One line with a value: name and labels as they are written, and the value.
type Samples = BTreeMap<String, f64>;

/// Reads the text format, version 0.0.4, and refuses what a strict reader would.
fn parse(page: &str) -> (Samples, BTreeMap<String, String>) {
    let (mut samples, mut types, mut helped) = (Samples::new(), BTreeMap::new(), BTreeSet::new());
    for line in page.lines().filter(|line| !line.is_empty()) {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').expect("a text");
            assert!(!text.is_empty() && helped.insert(name.to_owned()), "{name} is explained once");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a type");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} has one type");
        } else {
            let (sample, value) = line.rsplit_once(' ').expect("a value");
            let value: f64 = value.parse().expect("a number");
            let name = sample.split('{').next().expect("a name");
            assert!(
                name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
            );
            assert!(name.starts_with("checkweigh_"), "{line}");
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| {
                name.strip_suffix(suffix)
                    .filter(|family| types.get(*family).is_some_and(|kind| kind == "histogram"))
            });
            let kind =
                types.get(family.unwrap_or(name)).unwrap_or_else(|| panic!("{line} comes after its type"));
            assert_eq!(
                kind == "counter",
                name.ends_with("_total"),
                "{line}: counters and only they end in _total"
            );
            assert!(samples.insert(sample.to_owned(), value).is_none(), "{sample} is there once");
        }
    }
    assert_eq!(helped, types.keys().cloned().collect(), "every family has a type and an explanation");
    (samples, types)
}

#[test]
fn the_page_follows_the_text_format() {
    let latencies = Latencies::default();
    for micros in [50, 900, 900, 3000] {
        latencies.share_ack.record(Duration::from_micros(micros));
    }
    let (samples, types) = parse(&render(&overview(), &kept(), &latencies, &status(true)));
    assert_eq!(samples["checkweigh_shares_accepted_total"], 10.0);
    assert_eq!(samples["checkweigh_shares_rejected_total{reason=\"stale\"}"], 2.0);
    assert_eq!(samples["checkweigh_shares_forwarded_total{upstream=\"pool.example:34254\"}"], 10.0);
    assert_eq!(samples["checkweigh_shares_forwarded_total{upstream=\"other.example:1\"}"], 0.0);
    assert_eq!(samples["checkweigh_shares_refused_upstream_total{code=\"stale-share\"}"], 1.0);
    assert_eq!(samples["checkweigh_work_accepted_hashes_total"], 2f64.powi(100));
    let refusals = "checkweigh_upstream_refusals_total{upstream=\"pool.example:34254\",code=\"stale-share\"}";
    assert_eq!((samples[refusals], samples["checkweigh_ledger_failing"]), (1.0, 1.0));
    assert_eq!(
        (samples["checkweigh_ledger_unwritten_bytes"], samples["checkweigh_ledger_durable_batch"]),
        (7.0, 9.0)
    );
    assert_eq!(samples["checkweigh_upstream_up{upstream=\"pool.example:34254\"}"], 1.0);
    let standing = |name: &str, standing: &str| {
        samples[&format!("checkweigh_upstream_standing{{upstream=\"{name}\",standing=\"{standing}\"}}")]
    };
    assert_eq!(standing("pool.example:34254", "serving"), 1.0);
    assert_eq!((standing("other.example:1", "serving"), standing("other.example:1", "standby")), (0.0, 1.0));
    assert_eq!(samples["checkweigh_upstream_switches_total{reason=\"fail_back\"}"], 4.0);
    assert_eq!(samples["checkweigh_connections{protocol=\"sv1\"}"], 3.0);
    assert_eq!(samples["checkweigh_sv1_version_rolling_connections{state=\"granted\"}"], 0.0);
    assert_eq!(samples["checkweigh_sv1_version_rolling_connections{state=\"withheld\"}"], 2.0);
    assert_eq!(samples["checkweigh_sv1_version_rolling_withheld_total"], 0.0);
    assert_eq!(samples["checkweigh_sv1_rolled_outside_mask_connections_total"], 1.0);
    let version = env!("CARGO_PKG_VERSION");
    let version = format!("checkweigh_build_info{{version=\"{version}\",commit=\"{COMMIT}\"}}");
    assert_eq!(samples[&version], 1.0);
    for reason in RejectReason::ALL {
        let sample = format!("checkweigh_shares_rejected_total{{reason=\"{}\"}}", reason.name());
        assert!(samples.contains_key(&sample), "{sample} is exported before it occurs");
    }
    for reason in DropReason::ALL {
        let sample = format!("checkweigh_shares_dropped_total{{reason=\"{}\"}}", reason.name());
        assert!(samples.contains_key(&sample), "{sample} is exported before it occurs");
    }
    assert_eq!(types["checkweigh_share_ack_latency_seconds"], "histogram");
    assert_eq!(samples["checkweigh_share_ack_latency_seconds_bucket{le=\"0.000064\"}"], 1.0);
    assert_eq!(samples["checkweigh_share_ack_latency_seconds_bucket{le=\"0.001024\"}"], 3.0);
    assert_eq!(samples["checkweigh_share_ack_latency_seconds_bucket{le=\"+Inf\"}"], 4.0);
    assert_eq!(samples["checkweigh_share_ack_latency_seconds_count"], 4.0);
    assert_eq!(samples["checkweigh_share_ack_latency_seconds_sum"], 0.00485);
    assert!(!samples.keys().any(|sample| sample.starts_with("checkweigh_hash_rate")), "unknown is absent");
}

#[test]
fn labels_cannot_break_the_page() {
    let evil = "evil\"} 1\n# TYPE x counter\\";
    let mut fleet = fleet(4);
    fleet.overview.upstreams[0].name = evil.into();
    fleet.overview.groups[0].name = evil.into();
    fleet.devices[2].name = evil.into();
    parse(&render(&fleet.overview, &kept(), &Latencies::default(), &status(true)));
    parse(&device_pieces(Arc::new(fleet), Arc::default(), 4).collect::<String>());
}

/// Two servers in one process: neither knows of the other.
#[tokio::test]
async fn the_server_answers_scrapers_and_supervisors() {
    let (healthy, ending) = start(true).await;
    let (ailing, _other) = start(false).await;
    let (head, page) = request(healthy, "/metrics").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    parse(&page);
    assert_eq!(request(healthy, "/healthz").await.1, "ok\n");
    let (head, reason) = request(ailing, "/healthz").await;
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    assert_eq!(reason, "no work: not connected to pool.example:34254, other.example:1\n");
    assert!(request(healthy, "/").await.0.starts_with("HTTP/1.1 404"));

    // A scraper that keeps its connection open does not hold up the end.
    let _idle = TcpStream::connect(healthy).await.expect("it listens");
    ending.trigger.trigger();
    ending.task.await.expect("no panic").expect("no error");
}

struct Ending {
    trigger: ShutdownTrigger,
    task: tokio::task::JoinHandle<io::Result<()>>,
}

fn listener() -> (SocketAddr, TcpListener) {
    let listener = bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    let listener = TcpListener::from_std(listener).expect("in a runtime");
    (listener.local_addr().expect("bound"), listener)
}

async fn start(is_live: bool) -> (SocketAddr, Ending) {
    let (address, listener) = listener();
    let (sink, _task) = RecordSink::start();
    let clock = Clock::start();
    let status: Arc<dyn Fn() -> Status + Send + Sync> = Arc::new(move || status(is_live));
    let sources =
        Sources { sink, clock, status: Arc::clone(&status), jobs: Arc::new(Vec::new), history: None };
    let view = Arc::new(RecordedView::new(sources));
    let served = Served { view, latencies: Arc::default(), clock, status, max_device_series: 0 };
    let (trigger, end) = shutdown();
    (address, Ending { trigger, task: tokio::spawn(serve_metrics(listener, served, end)) })
}

/// The head and the body of the answer.
async fn request(address: SocketAddr, path: &str) -> (String, String) {
    send(address, &format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")).await
}

async fn send(address: SocketAddr, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(request.as_bytes()).await.expect("open");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_owned(), body.to_owned())
}

#[test]
fn devices_have_series_up_to_the_bound() {
    let fleet = Arc::new(fleet(600));
    let whole: String = device_pieces(Arc::clone(&fleet), Arc::default(), 1000).collect();
    let (samples, _) = parse(&whole);
    assert_eq!(samples["checkweigh_device_series_omitted"], 0.0);
    assert_eq!(samples["checkweigh_device_shares_accepted_total{device=\"farm.rig598\"}"], 9.0 * 598.0);
    assert!(
        !samples.contains_key("checkweigh_device_hash_rate_hashes_per_second{device=\"farm.rig1\"}"),
        "unknown"
    );
    let (samples, types) = parse(&device_pieces(Arc::clone(&fleet), Arc::default(), 10).collect::<String>());
    assert_eq!(samples["checkweigh_device_series_omitted"], 590.0);
    let shown = samples.keys().filter(|sample| sample.starts_with("checkweigh_device_shares_accepted_total"));
    assert_eq!(shown.count(), 10);
    assert_eq!(types.len(), 10);
    assert!(
        device_pieces(fleet, Arc::default(), 1000).all(|piece| piece.len() < 100_000),
        "no piece is the whole page"
    );
}

/// What the dashboard asks for is what there is.
#[test]
fn the_dashboard_asks_only_for_metrics_that_exist() {
    let dashboard = include_str!("../../config/grafana-dashboard.json");
    let dashboard: serde_json::Value = serde_json::from_str(dashboard).expect("it is JSON");
    let mut expressions = Vec::new();
    expressions_in(&dashboard, &mut expressions);
    assert!(expressions.len() > 15, "{expressions:?}");
    let page = render(&fleet(2).overview, &kept(), &Latencies::default(), &status(true));
    let (_, types) = parse(&page);
    let mut asked = BTreeSet::new();
    for expression in &expressions {
        let is_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
        for word in expression.split(|letter: char| !is_name(letter)) {
            if word.starts_with("checkweigh_") {
                let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end));
                let family = family.filter(|family| types.contains_key(*family)).unwrap_or(word);
                assert!(types.contains_key(family), "{word} in {expression}");
                if types[family] == "counter" {
                    assert!(expression.contains("rate(") || expression.contains("increase("), "{expression}");
                }
                asked.insert(family.to_owned());
            }
        }
    }
    assert!(asked.len() > 15, "{asked:?}");
}

fn expressions_in(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(entries) => {
            for (key, value) in entries {
                match value.as_str() {
                    Some(text) if key == "expr" => found.push(text.to_owned()),
                    _ => expressions_in(value, found),
                }
            }
        }
        serde_json::Value::Array(entries) => entries.iter().for_each(|value| expressions_in(value, found)),
        _ => {}
    }
}
