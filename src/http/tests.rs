//! The page as Prometheus reads it, and the answers as a supervisor gets them.

use std::collections::{BTreeMap, BTreeSet};

use mining_server::{DropReason, RejectReason};
use stratum::UpstreamId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::config::listen::bind;
use crate::shutdown::{ShutdownTrigger, shutdown};
use crate::sink::{AnswerSums, Totals};

fn status(is_live: bool) -> Status {
    let upstream = |name: &str, is_live| UpstreamState { name: name.to_owned(), is_live };
    let upstreams = vec![upstream("pool.example:34254", is_live), upstream("other.example:1", false)];
    Status { sv1_connections: 3, rolling_withheld: 2, rolled_outside_mask: 1, upstreams, ..Status::default() }
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
    Overview { totals, devices: 2, hash_rate_1m: None, hash_rate_10m: None }
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
    let (samples, types) = parse(&render(&overview(), &latencies, &status(true)));
    assert_eq!(samples["checkweigh_shares_accepted_total"], 10.0);
    assert_eq!(samples["checkweigh_shares_rejected_total{reason=\"stale\"}"], 2.0);
    assert_eq!(samples["checkweigh_shares_forwarded_total{upstream=\"pool.example:34254\"}"], 10.0);
    assert_eq!(samples["checkweigh_shares_forwarded_total{upstream=\"other.example:1\"}"], 0.0);
    assert_eq!(samples["checkweigh_shares_refused_upstream_total{code=\"stale-share\"}"], 1.0);
    assert_eq!(samples["checkweigh_work_accepted_hashes_total"], 2f64.powi(100));
    assert_eq!(samples["checkweigh_upstream_up{upstream=\"pool.example:34254\"}"], 1.0);
    assert_eq!(samples["checkweigh_connections{protocol=\"sv1\"}"], 3.0);
    assert_eq!(samples["checkweigh_sv1_version_rolling_connections{state=\"granted\"}"], 0.0);
    assert_eq!(samples["checkweigh_sv1_version_rolling_connections{state=\"withheld\"}"], 2.0);
    assert_eq!(samples["checkweigh_sv1_version_rolling_withheld_total"], 0.0);
    assert_eq!(samples["checkweigh_sv1_rolled_outside_mask_connections_total"], 1.0);
    let version = format!("checkweigh_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
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
    let mut status = status(true);
    status.upstreams[0].name = "evil\"} 1\n# TYPE x counter\\".to_owned();
    parse(&render(&overview(), &Latencies::default(), &status));
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

async fn start(is_live: bool) -> (SocketAddr, Ending) {
    let listener = bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    let listener = TcpListener::from_std(listener).expect("in a runtime");
    let address = listener.local_addr().expect("bound");
    let (sink, _task) = RecordSink::start();
    let sources = Sources {
        sink,
        latencies: Arc::default(),
        clock: Clock::start(),
        status: Arc::new(move || status(is_live)),
    };
    let (trigger, end) = shutdown();
    (address, Ending { trigger, task: tokio::spawn(serve(listener, sources, end)) })
}

/// The head and the body of the answer.
async fn request(address: SocketAddr, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("open");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_owned(), body.to_owned())
}
