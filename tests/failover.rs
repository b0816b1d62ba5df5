//! Two pools and a proxy before them, over real sockets: the preferred pool goes and comes back, and no miner notices
//! more than a clean job.

#[path = "support/farm.rs"]
mod farm;
#[path = "support/sv1_miner.rs"]
mod sv1_miner;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use checkweigh::shutdown::{ShutdownTrigger, shutdown};
use checkweigh::sink::Totals;
use farm::{DEADLINE, Running, chain, fixed, start_pool, start_proxy_before};
use mining_proxy::Patience;
use mining_server::LossReason;
use serde_json::Value;
use stratum::UpstreamId;
use sv1_miner::{Miner, MinerOptions};
use tokio::time::{Instant, interval};

const EXPONENT: i32 = -22;

/// No block is found here.
const HASHES_PER_BLOCK: u64 = 1 << 40;

const MINERS: usize = 4;

/// Short, so that the test is; everything else about it is as ever.
const PATIENCE: Patience = Patience {
    hold_down: Duration::from_secs(1),
    longest_hold_down: Duration::from_secs(4),
    steady: Duration::from_secs(1),
    start_grace: Duration::from_secs(5),
};

/// What the API says of upstreams.
async fn upstreams(proxy: &Running) -> Value {
    let api = proxy.api.expect("it serves its API");
    let text = reqwest::get(format!("http://{api}/api/v1/upstreams")).await.expect("the API answers");
    serde_json::from_str(&text.text().await.expect("text")).expect("JSON")
}

async fn wait_for_standings(proxy: &Running, standings: [&str; 2]) -> Value {
    let deadline = Instant::now() + DEADLINE;
    let mut poll = interval(Duration::from_millis(20));
    loop {
        let seen = upstreams(proxy).await;
        if [0, 1].map(|place: usize| seen["upstreams"][place]["standing"].clone()) == standings {
            return seen;
        }
        assert!(Instant::now() < deadline, "not in time: {standings:?}; {seen}");
        poll.tick().await;
    }
}

/// Waits until one pool has taken so many more shares than it had.
async fn wait_for_work(proxy: &Running, upstream: u16, more: u64) -> Totals {
    let taken = |totals: &Totals| {
        totals.upstreams.get(&UpstreamId(upstream)).map_or(0, |answers| answers.acknowledged)
    };
    let before = taken(&proxy.totals().await);
    let what = format!("shares reach upstream {upstream}");
    proxy.wait_for(&what, |totals| taken(totals) >= before + more).await
}

fn start_miners(server: SocketAddr) -> (Vec<Miner>, ShutdownTrigger) {
    let (stop, end) = shutdown();
    let miners = (0..MINERS).map(|number| {
        let pause = Some(Duration::from_millis(5));
        let options = MinerOptions { server, user: format!("farm.m{number}"), window: 1, pause };
        Miner::start(options, end.clone())
    });
    (miners.collect(), stop)
}

async fn fails_over_and_back(aggregate: bool) {
    let chain = chain(HASHES_PER_BLOCK);
    let first = start_pool(&chain, fixed(EXPONENT), None);
    let second = start_pool(&chain, fixed(EXPONENT), None);
    let (first_address, second_address) = (first.sv2, second.sv2);
    let proxy = start_proxy_before(&[first_address, second_address], PATIENCE, aggregate, fixed(EXPONENT));
    let (mut miners, stop_miners) = start_miners(proxy.sv1);
    wait_for_work(&proxy, 0, 40).await;
    let seen = wait_for_standings(&proxy, ["serving", "standby"]).await;
    assert_eq!(seen["upstreams"][1]["account"], "other.farm");

    first.stop().await;
    wait_for_standings(&proxy, ["away", "serving"]).await;
    wait_for_work(&proxy, 1, 40).await;

    let first = start_pool(&chain, fixed(EXPONENT), Some(first_address));
    let seen = wait_for_standings(&proxy, ["serving", "standby"]).await;
    assert_eq!(
        (&seen["switches"]["connection_lost"], &seen["switches"]["fail_back"]),
        (&1.into(), &1.into())
    );
    wait_for_work(&proxy, 0, 40).await;

    let counts = &proxy.observed.counts;
    assert_eq!(counts.accepted.load(Ordering::Relaxed), MINERS as u64, "nobody had to come back");
    stop_miners.trigger();
    let mut submitted = 0;
    for miner in &mut miners {
        let seen = miner.stopped(DEADLINE).await;
        assert_eq!((&seen.ended, seen.wrong), (&None, Vec::new()), "no connection is lost");
        assert_eq!(seen.submitted, seen.accepted + seen.stale);
        assert!(seen.clean_jobs >= 3, "each upstream's first job is a clean one: {}", seen.clean_jobs);
        submitted += seen.submitted;
    }
    let totals = accounts_hold(&proxy, submitted).await;
    // A device that ends takes its own channel with it.
    let lost_in_failover = totals.answers.lost[LossReason::Failover as usize];
    assert!(!aggregate || totals.answers.lost_total() == lost_in_failover, "{:?}", totals.answers);
    proxy.stop().await;
    first.stop().await;
    second.stop().await;
}

/// Every share is somewhere, and those of each upstream are its own.
async fn accounts_hold(proxy: &Running, submitted: u64) -> Totals {
    let totals = proxy
        .wait_for("every forwarded share is answered", |totals| {
            let answers = &totals.answers;
            totals.shares.submitted == submitted
                && answers.forwarded == answers.acknowledged + answers.refused + answers.lost_total()
        })
        .await;
    assert_eq!(totals.violation(), None);
    let shares = &totals.shares;
    assert_eq!(shares.accepted, shares.below_upstream_target + shares.forwarded + shares.dropped_total());
    let of = [0, 1].map(|id| totals.upstreams[&UpstreamId(id)].clone());
    assert_eq!(of[0].forwarded + of[1].forwarded, totals.answers.forwarded);
    assert_eq!(of[0].lost_total() + of[1].lost_total(), totals.answers.lost_total());
    totals
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_channel_goes_over_and_back_and_miners_stay_connected() {
    fails_over_and_back(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_of_devices_go_over_and_back_and_miners_stay_connected() {
    fails_over_and_back(false).await;
}
