//! The tasks that own work, a proxy's upstream and a pool, where the machines in them cannot be asked: how they end,
//! and what supervisors hear of them.

#[path = "support/farm.rs"]
mod farm;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use checkweigh::clock::Clock;
use checkweigh::node::BlockSource;
use checkweigh::owner::{Owner, owner};
use checkweigh::pool::jobs::PoolJobs;
use checkweigh::pool::task::{PoolStatus, PoolTask};
use checkweigh::registry::SharedRegistry;
use checkweigh::shutdown::shutdown;
use checkweigh::sink::{RecordSink, Totals};
use checkweigh::upstream::{UpstreamEntry, UpstreamStatus, UpstreamTask};
use checkweigh::{pool, upstream};
use farm::{DEADLINE, Running, chain, fixed, listen, start_pool, start_proxy};
use mining_proxy::{Patience, UpstreamConfig};
use mining_server::{DropReason, Fate, ForwardShare, ShareEvent, ShareRecord, Verdict};
use stratum::sv2::PoolUrl;
use stratum::{
    ChannelId, ConnectionId, DeviceId, Difficulty, Epoch, JobNumber, JobOrigin, Now, UpstreamChannelId,
    UpstreamId, UpstreamJobId, Work,
};
use tokio::time::{interval, timeout};

const EXPONENT: i32 = -22;

/// Nothing here is hashed, and no block found.
const HASHES_PER_BLOCK: u64 = 1 << 40;

/// A block for a job that nobody knows: enough to see whether its owner takes it.
fn block(fate: Fate, now: Now) -> ShareEvent {
    let record = ShareRecord {
        judged: now,
        device: Some(DeviceId(1)),
        connection: ConnectionId(1),
        channel: ChannelId(0),
        upstream: Some(UpstreamId(0)),
        upstream_channel: Some(UpstreamChannelId(1)),
        job: Some(JobNumber(1)),
        verdict: Verdict::BlockFound,
        fate,
        sequence_number: None,
        submitted: Work(1000),
        upstream_work: Work(1000),
        difficulty: Some(Difficulty(1.0)),
        job_age_ms: 0,
        version: 0,
        ntime: 0,
        nonce: 0,
        rollable: Default::default(),
    };
    let channel = UpstreamChannelId(1);
    let forward = ForwardShare {
        epoch: Epoch(1),
        origin: JobOrigin { upstream: UpstreamId(0), channel, job: UpstreamJobId(1), template: None },
        hash: [0; 32],
        is_block: true,
    };
    ShareEvent { record, forward: Some(forward) }
}

/// Hands an owner a block that its connection found after the end was asked for, and sees the owner end.
async fn end_with_a_block(owner: Owner, fate: Fate, clock: Clock, task: impl Future<Output = ()>) {
    let connection = async move {
        owner.blocks.send(block(fate, clock.now())).await.expect("the owner still takes blocks");
        assert!(!owner.blocks.is_closed(), "the owner waits for its connections");
    };
    timeout(DEADLINE, async { tokio::join!(task, connection) }).await.expect("the owner ends in time");
}

async fn totals(sink: &RecordSink, clock: Clock) -> Totals {
    let totals = sink.overview(clock.now()).await.expect("the sink runs").totals;
    assert_eq!(totals.violation(), None);
    totals
}

#[tokio::test]
async fn a_pool_takes_blocks_until_its_connections_are_gone() {
    let clock = Clock::start();
    let (sink, _task) = RecordSink::start();
    let (owner, inbox) = owner();
    let status = Arc::new(PoolStatus::default());
    let rules = pool::coinbase_rules(vec![0x51], "tests").expect("rules");
    let task = PoolTask {
        jobs: PoolJobs::new(rules, JobNumber::first(clock.now())),
        source: BlockSource::Development(chain(HASHES_PER_BLOCK)),
        inbox,
        custom_jobs: None,
        writer: sink.writer(),
        clock,
        registry: SharedRegistry::new(clock, sink.writer()),
        status: Arc::clone(&status),
    };
    let (stop, end) = shutdown();
    stop.trigger();
    end_with_a_block(owner, Fate::Kept, clock, pool::task::run(task, end)).await;
    assert_eq!(status.blocks_found.load(Ordering::Relaxed), 1);
    assert_eq!(totals(&sink, clock).await.shares.accepted, 1);
}

#[tokio::test]
async fn an_upstream_takes_blocks_until_its_connections_are_gone() {
    let clock = Clock::start();
    let (sink, _task) = RecordSink::start();
    let (owner, inbox) = owner();
    let nobody = listen(None).local_addr().expect("it was bound");
    let config = UpstreamConfig {
        id: UpstreamId(0),
        user_identity: "account.farm".to_owned(),
        aggregate: true,
        forward_worker_names: false,
        vendor: "Checkweigh".to_owned(),
        hardware_version: "mining-proxy".to_owned(),
        firmware: "tests".to_owned(),
        refresh_interval: Duration::from_secs(20),
        job_declaration: None,
    };
    let url = PoolUrl { host: nobody.ip().to_string(), port: nobody.port(), authority: None };
    let task = UpstreamTask {
        upstreams: vec![UpstreamEntry { config, url, declaration: None }],
        node: None,
        patience: Patience::default(),
        inbox,
        writer: sink.writer(),
        clock,
        latencies: Arc::default(),
        registry: SharedRegistry::new(clock, sink.writer()),
        status: Arc::new(UpstreamStatus::new(1)),
    };
    let (stop, end) = shutdown();
    stop.trigger();
    end_with_a_block(owner, Fate::Forwarded, clock, upstream::run(task, end)).await;
    let shares = totals(&sink, clock).await.shares;
    assert_eq!(shares.dropped[DropReason::UpstreamLost as usize], 1, "it is recorded, although it is lost");
}

async fn is_healthy(address: SocketAddr) -> bool {
    let answer = reqwest::get(format!("http://{address}/healthz")).await.expect("the page is served");
    answer.status().is_success()
}

async fn wait_for_health(proxy: &Running, healthy: bool) {
    let address = proxy.metrics.expect("a proxy has a listener for metrics");
    let mut poll = interval(Duration::from_millis(20));
    let wanted = async {
        while is_healthy(address).await != healthy {
            poll.tick().await;
        }
    };
    timeout(DEADLINE, wanted).await.expect("its health changes in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_healthy_while_it_has_its_upstream() {
    let pool = start_pool(&chain(HASHES_PER_BLOCK), fixed(EXPONENT), None);
    let proxies = [true, false].map(|aggregate| start_proxy(pool.sv2, aggregate, fixed(EXPONENT)));
    for proxy in &proxies {
        wait_for_health(proxy, true).await;
    }
    pool.stop().await;
    for proxy in proxies {
        wait_for_health(&proxy, false).await;
        proxy.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_shows_the_job_that_devices_work_on() {
    let pool = start_pool(&chain(HASHES_PER_BLOCK), fixed(EXPONENT), None);
    let proxy = start_proxy(pool.sv2, true, fixed(EXPONENT));
    wait_for_health(&proxy, true).await;
    let address = proxy.api.expect("a proxy has a listener for its API");
    let answer = reqwest::get(format!("http://{address}/api/v1/jobs")).await.expect("it is served");
    let answer: serde_json::Value =
        serde_json::from_slice(&answer.bytes().await.expect("it ends")).expect("JSON");
    let job = &answer["jobs"][0];
    assert_eq!(job["upstream"], pool.sv2.to_string());
    assert_eq!(job["previous_hash"].as_str().map(str::len), Some(64), "{job}");
    assert!(job["number"].is_u64() && job["received"].is_string(), "{job}");
    // Both are read off the coinbase that the pool sent.
    assert!(job["height"].as_u64() > Some(0) && job["value_sats"].as_u64() > Some(0), "{job}");
    proxy.stop().await;
    pool.stop().await;
}
