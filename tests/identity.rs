//! Who is who, over real sockets: two miners under one worker name from two addresses, their reconnections, and a restart.

#[path = "support/farm.rs"]
mod farm;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use accounting::codec::entries;
use accounting::entry::{ConnectionEntry, EventKind};
use accounting::identity::{IdentityBy, IdentityRule};
use accounting::{BatchNumber, Entry};
use checkweigh::clock::Clock;
use checkweigh::config::{ApiConfig, DownstreamConfig, HttpConfig, LedgerConfig, Listeners};
use checkweigh::error::RunError;
use checkweigh::ledger::{Reader, SqliteReader};
use checkweigh::node::BlockSource;
use checkweigh::pool::{self, PoolParts};
use checkweigh::role::Observed;
use checkweigh::shutdown::{ShutdownTrigger, shutdown};
use checkweigh::sink::{DeviceRules, DeviceView};
use farm::{DEADLINE, chain, fixed, listen};
use serde_json::Value;
use stratum::sv1::client::{self, Notify, ServerLine, Solution};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, timeout};

/// So easy that every hash is a share.
const EXPONENT: i32 = -32;

const ONE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

const NAME: &str = "farm.rig7";

/// A pool with a ledger.
struct Running {
    sv1: SocketAddr,
    api: SocketAddr,
    observed: Observed,
    stop: ShutdownTrigger,
    ended: JoinHandle<Result<(), RunError>>,
}

impl Running {
    fn start(folder: &Path, identities: Vec<IdentityRule>) -> Self {
        let (stop, end) = shutdown();
        let api = ApiConfig {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            read_tokens: None,
            admin_tokens: None,
            cors_origins: Vec::new(),
            requests_per_minute: 6000,
        };
        let parts = PoolParts {
            source: BlockSource::Development(chain(1 << 40)),
            source_name: "development chain".to_owned(),
            rules: pool::coinbase_rules(vec![0x51], "tests").expect("rules"),
            downstream: DownstreamConfig {
                sv1_listen: None,
                sv1_profiles: Vec::new(),
                sv2_listen: None,
                authority: None,
                proxy_protocol: false,
                max_connections: 100,
            },
            vardiff: fixed(EXPONENT),
            share_batch_size: 10,
            job_declaration: None,
            ledger: Some(LedgerConfig::in_folder(folder.to_owned())),
            device_rules: DeviceRules { identities, ..DeviceRules::default() },
            http: HttpConfig { api: Some(api), ..HttpConfig::default() },
        };
        let listeners =
            Listeners { sv1: Some(listen(None)), api: Some(listen(None)), ..Listeners::default() };
        let pool = pool::start(parts, listeners, Clock::start(), end).expect("the pool starts");
        let role = pool.role;
        Running {
            sv1: role.sv1_address.expect("it has a listener"),
            api: role.api_address.expect("it has one"),
            observed: role.observed.clone(),
            stop,
            ended: tokio::spawn(role.run()),
        }
    }

    async fn stop(self) {
        self.stop.trigger();
        let ended = timeout(DEADLINE, self.ended).await.expect("it ends in time").expect("it does not panic");
        ended.expect("it ends as it should");
    }

    /// Waits until the devices are as `wanted`: name, address, connections, accepted shares.
    async fn wait_for(&self, wanted: &[(&str, Ipv4Addr, u32, u64)]) {
        let deadline = Instant::now() + DEADLINE;
        let mut poll = interval(Duration::from_millis(20));
        let wanted: Vec<_> = wanted
            .iter()
            .map(|(name, address, connections, accepted)| {
                ((*name).to_owned(), address.to_string(), *connections, *accepted)
            })
            .collect();
        loop {
            let now = self.observed.clock.now();
            let devices = self.observed.sink.snapshot(now).await.expect("the sink runs").devices;
            let found: Vec<_> = devices.iter().map(figures).collect();
            if found == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "not in time: {wanted:?}; {found:?}");
            poll.tick().await;
        }
    }

    async fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.api).await.expect("it listens");
        let question = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
        stream.write_all(question.as_bytes()).await.expect("it is open");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        body.to_owned()
    }
}

fn figures(device: &DeviceView) -> (String, String, u32, u64) {
    let name = device.name.as_deref().unwrap_or_default().to_owned();
    (name, device.address.to_string(), device.connections, device.sums.shares.accepted)
}

/// An SV1 miner that hashes nothing.
struct Miner {
    stream: BufReader<TcpStream>,
    job: Notify,
    shares: u32,
}

impl Miner {
    /// Dials in, and returns once it has a job.
    async fn connect(server: SocketAddr, from: Ipv4Addr) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind((from, 0).into()).expect("all of 127/8 is ours");
        let mut stream = BufReader::new(socket.connect(server).await.expect("it listens"));
        let mut hello = Vec::new();
        client::subscribe(&mut hello, 1, "bmminer/2.0.0", None);
        client::authorize(&mut hello, 2, NAME, "x");
        stream.write_all(&hello).await.expect("it is open");
        loop {
            if let ServerLine::Notify(job) = line(&mut stream).await {
                return Miner { stream, job, shares: 0 };
            }
        }
    }

    /// Submits so many shares, each of which is accepted.
    async fn mine(&mut self, shares: u32) {
        for _ in 0..shares {
            self.shares += 1;
            let nonce = self.shares;
            let ntime = self.job.ntime;
            let solution = Solution { extranonce2: &[0; 4], ntime, nonce, version_rolling: None };
            let mut out = Vec::new();
            client::submit(&mut out, 9, NAME, &self.job.job_id, &solution);
            self.stream.write_all(&out).await.expect("it is open");
            loop {
                match line(&mut self.stream).await {
                    ServerLine::Response(answer) if answer.id == Some(9) => {
                        assert_eq!(answer.result, Value::Bool(true), "{answer:?}");
                        break;
                    }
                    ServerLine::Notify(job) => self.job = job,
                    _ => {}
                }
            }
        }
    }
}

async fn line(stream: &mut BufReader<TcpStream>) -> ServerLine {
    let mut line = Vec::new();
    let read = timeout(DEADLINE, stream.read_until(b'\n', &mut line)).await.expect("a line in time");
    assert!(read.expect("it is open") > 0, "it was closed");
    ServerLine::parse(&line).expect("a line that miners understand")
}

#[tokio::test(flavor = "multi_thread")]
async fn two_machines_under_one_name_are_two_devices_and_stay_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let pool = Running::start(folder.path(), Vec::new());
    let mut one = Miner::connect(pool.sv1, ONE).await;
    one.mine(3).await;
    let mut other = Miner::connect(pool.sv1, OTHER).await;
    other.mine(2).await;
    pool.wait_for(&[(NAME, ONE, 1, 3), ("farm.rig7~2", OTHER, 1, 2)]).await;

    // It is told in every way there is.
    let events: Value = serde_json::from_str(&pool.get("/api/v1/events").await).expect("JSON");
    let events = events["events"].as_array().expect("a list");
    let shared: Vec<&Value> = events.iter().filter(|event| event["kind"] == "shared_name").collect();
    let [event] = shared[..] else { panic!("it is said once: {events:?}") };
    let text = event["text"].as_str().expect("a text");
    assert!([NAME, "127.0.0.1", "127.0.0.2"].iter().all(|part| text.contains(part)), "{text}");
    let device: Value = serde_json::from_str(&pool.get("/api/v1/devices/farm.rig7~2").await).expect("JSON");
    assert_eq!((&device["worker_name"], &device["connections"]), (&NAME.into(), &1.into()));
    assert!(pool.get("/metrics").await.contains("\ncheckweigh_shared_worker_names 1\n"));

    // They come back in the other order.
    drop((one, other));
    pool.wait_for(&[(NAME, ONE, 0, 3), ("farm.rig7~2", OTHER, 0, 2)]).await;
    let mut other = Miner::connect(pool.sv1, OTHER).await;
    other.mine(1).await;
    pool.wait_for(&[(NAME, ONE, 0, 3), ("farm.rig7~2", OTHER, 1, 3)]).await;
    pool.stop().await;

    // And after a restart.
    let pool = Running::start(folder.path(), Vec::new());
    pool.wait_for(&[(NAME, ONE, 0, 3), ("farm.rig7~2", OTHER, 0, 3)]).await;
    let mut other = Miner::connect(pool.sv1, OTHER).await;
    other.mine(1).await;
    let mut one = Miner::connect(pool.sv1, ONE).await;
    one.mine(1).await;
    pool.wait_for(&[(NAME, ONE, 1, 4), ("farm.rig7~2", OTHER, 1, 4)]).await;
    pool.stop().await;
    drop((one, other));
    check_stream(folder.path());
}

/// The stream has every connection with its beginning and its end, and both processes' reports.
fn check_stream(folder: &Path) {
    let reader = SqliteReader::open(folder).expect("it is there");
    let mut connections: Vec<ConnectionEntry> = Vec::new();
    let mut reports = 0;
    for batch in reader.batches(BatchNumber(1)).expect("they can be read") {
        for entry in entries(&batch.expect("it is whole").payload) {
            match entry.expect("it can be read") {
                Entry::Connection(connection) => connections.push(connection),
                Entry::Event(event) => reports += usize::from(event.kind == EventKind::SharedName),
                _ => {}
            }
        }
    }
    let opened = connections.iter().filter(|connection| connection.is_open).count();
    assert_eq!((opened, connections.len(), reports), (5, 10, 2), "{connections:?}");
    let left =
        |device: u32| connections.iter().rfind(|entry| entry.device.0 == device).expect("it connected");
    assert_eq!([left(0).connections, left(1).connections], [0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_makes_a_device_of_each_address() {
    let folder = tempfile::tempdir().expect("a folder");
    let by = IdentityBy::Address;
    let rule = IdentityRule { workers: "farm.*".to_owned(), by, name: by.usual_name(), tells_apart: false };
    let pool = Running::start(folder.path(), vec![rule]);
    let mut miners = Vec::new();
    for from in [ONE, OTHER, ONE] {
        let mut miner = Miner::connect(pool.sv1, from).await;
        miner.mine(1).await;
        miners.push(miner);
    }
    pool.wait_for(&[("farm.rig7@127.0.0.1", ONE, 2, 2), ("farm.rig7@127.0.0.2", OTHER, 1, 1)]).await;
    let events = pool.observed.sink.happened().await.expect("the sink runs").events;
    assert!(events.iter().all(|event| event.event.kind != EventKind::SharedName), "{events:?}");
    pool.stop().await;
}
