//! Native SV2 devices on the pool and on the proxy, through everything that an upstream does to them. Their
//! connections stay open, and no share of theirs is refused but those of an old block.

#[path = "support/farm.rs"]
mod farm;
#[path = "support/scripted_pool.rs"]
mod scripted_pool;
#[path = "support/sv1_miner.rs"]
mod sv1_miner;
#[path = "support/sv2_device.rs"]
mod sv2_device;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use checkweigh::shutdown::{ShutdownTrigger, shutdown};
use farm::{DEADLINE, Running, chain, fixed, key, start_pool, start_proxy, vardiff};
use mining_server::{DropReason, RejectReason};
use scripted_pool::{Link, ScriptedPool};
use stratum::sv2::messages::Reconnect;
use stratum::{ChannelId, Target};
use sv1_miner::{Miner, MinerOptions};
use sv2_device::{Device, DeviceOptions, KINDS, Kind, Seen};

/// A share in about a thousand hashes.
const EXPONENT: i32 = -22;

/// About as many hashes as the devices of a test make in two seconds.
const HASHES_PER_BLOCK: u64 = 500_000;

/// What a device claims to hash. The firmware's own 1e12 starts a difficulty that no processor meets.
const NOMINAL: f32 = 1e5;

/// Blocks that devices mine through.
const BLOCKS: u64 = 3;

/// Shares that each device must have accepted wherever it is.
const SHARES: u64 = 10;

fn start_devices(server: SocketAddr) -> Vec<Device> {
    let start = |kind| {
        // mining_device is not told a key.
        let authority = (kind != Kind::MiningDevice).then(|| key().public());
        let user = format!("account.{kind:?}");
        Device::start(DeviceOptions { kind, server, authority, user, nominal: NOMINAL })
    };
    KINDS.into_iter().map(start).collect()
}

async fn mine(devices: &mut [Device]) -> Vec<Seen> {
    let mut seen = Vec::new();
    for device in devices {
        seen.push(device.mine(SHARES).await);
    }
    seen
}

async fn mine_on_clean_work(devices: &mut [Device], before: &[Seen]) {
    for (device, before) in devices.iter_mut().zip(before) {
        device.mine_on_clean_work(before).await;
    }
}

async fn mine_through_blocks(devices: &mut [Device]) {
    for device in devices {
        device.mine(SHARES).await;
        device.wait_for("blocks", |seen| seen.clean_jobs > BLOCKS).await;
        device.mine(SHARES).await;
    }
}

/// No connection was lost, and nothing was refused that was not stale.
async fn nobody_was_wronged(role: &Running, connections: u64) {
    let counts = &role.observed.counts;
    assert_eq!(counts.accepted.load(Ordering::Relaxed), connections, "nobody had to come back");
    assert_eq!(counts.panicked.load(Ordering::Relaxed) + counts.closed_for_fault.load(Ordering::Relaxed), 0);
    let totals = role.totals().await;
    assert_eq!(totals.violation(), None);
    assert_eq!(
        totals.shares.rejected_total(),
        totals.shares.rejected[RejectReason::Stale as usize],
        "{totals:?}"
    );
    assert!(totals.refused_by_code.keys().all(|code| code == "stale-share"), "{totals:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_mine_on_the_pool() {
    let pool = start_pool(&chain(HASHES_PER_BLOCK), vardiff(EXPONENT), None);
    let mut devices = start_devices(pool.sv2);
    mine_through_blocks(&mut devices).await;
    nobody_was_wronged(&pool, 3).await;
    let now = pool.observed.clock.now();
    let known = pool.observed.sink.snapshot(now).await.expect("the sink runs").devices;
    let said: Vec<(&str, u32)> = known.iter().map(|view| (&*view.user_agent, view.connections)).collect();
    assert!(said.contains(&("bitaxe BM1370 v2.15", 1)) && said.contains(&("v2.15", 1)), "{said:?}");
    assert!(known.iter().all(|view| &*view.address == "127.0.0.1"), "{known:?}");
    drop(devices);
    pool.stop().await;
}

async fn devices_mine_through_the_proxy(aggregate: bool) {
    let pool = start_pool(&chain(HASHES_PER_BLOCK), vardiff(EXPONENT), None);
    let proxy = start_proxy(pool.sv2, aggregate, vardiff(EXPONENT));
    let mut devices = start_devices(proxy.sv2);
    mine_through_blocks(&mut devices).await;
    nobody_was_wronged(&proxy, 3).await;
    nobody_was_wronged(&pool, 1).await;
    drop(devices);
    let totals = proxy.totals().await;
    assert!(totals.answers.acknowledged > 0 && totals.shares.dropped_total() == 0, "{totals:?}");
    proxy.stop().await;
    pool.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_mine_through_the_proxy_on_one_channel() {
    devices_mine_through_the_proxy(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_mine_through_the_proxy_on_a_channel_each() {
    devices_mine_through_the_proxy(false).await;
}

/// The firmware claims a terahash whatever it is: that is a difficulty to start from, and the device mines on.
#[tokio::test(flavor = "multi_thread")]
async fn the_firmwares_own_claim_sets_the_first_target() {
    let pool = start_pool(&chain(u64::MAX), vardiff(EXPONENT), None);
    let mut device = Device::start(DeviceOptions {
        kind: Kind::BitaxeExtended,
        server: pool.sv2,
        authority: Some(key().public()),
        user: "account.bitaxe".to_owned(),
        nominal: 1e12,
    });
    let seen = device.wait_for("its first job", |seen| seen.clean_jobs == 1).await;
    // 1e12 hashes a second are 2^4.54 times difficulty 1 in each of 600 shares a minute.
    assert_eq!(seen.target, Some(Target::from_difficulty_exponent(4)));
    drop(device);
    pool.stop().await;
}

const GROUP: ChannelId = ChannelId(1000);
const OTHER_GROUP: ChannelId = ChannelId(2000);

/// Starts every channel of a link: a future job on a block.
async fn begin(link: &mut Link, group: ChannelId, job: u32, block: u8) {
    link.job(group, job, true).await;
    link.tip(group, job, block).await;
}

async fn devices_mine_through_what_an_upstream_does(aggregate: bool) {
    let (pool, elsewhere) = (ScriptedPool::start(key()).await, ScriptedPool::start(key()).await);
    let proxy = start_proxy(pool.address(), aggregate, fixed(EXPONENT));
    let mut link = pool.accept().await;
    let mut devices = start_devices(proxy.sv2);
    let channels = if aggregate { 1 } else { 3 };
    let target = Target::from_difficulty_exponent(EXPONENT);
    link.open(channels, 1, GROUP, b"first", target).await;
    begin(&mut link, GROUP, 1, 1).await;
    link.wait_for_shares(1, 5).await;
    let before = mine(&mut devices).await;

    // A new job on the same block, another target, and the prefix changed: each with the next job.
    link.job(GROUP, 2, false).await;
    link.wait_for_shares(2, 5).await;
    link.set_target(GROUP, Target::from_difficulty_exponent(EXPONENT + 1)).await;
    link.job(GROUP, 3, false).await;
    link.wait_for_shares(3, 5).await;
    link.set_prefixes(b"second").await;
    link.job(GROUP, 4, false).await;
    link.wait_for_shares(4, 5).await;
    let mut after = mine(&mut devices).await;
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before.clean_jobs, after.clean_jobs, "the same block all the time");
    }

    // Another group, and a future job from before a change of the prefix: it keeps the old one.
    link.regroup(OTHER_GROUP).await;
    link.job(OTHER_GROUP, 5, true).await;
    link.set_prefixes(b"a third").await;
    link.job(OTHER_GROUP, 6, true).await;
    link.tip(OTHER_GROUP, 5, 2).await;
    link.wait_for_shares(5, 5).await;
    mine_on_clean_work(&mut devices, &after).await;
    begin(&mut link, OTHER_GROUP, 7, 3).await;
    link.wait_for_shares(7, 5).await;

    // All channels closed: they are asked for again, and nobody was disconnected in between.
    link.close(OTHER_GROUP).await;
    proxy.wait_for("shares without a channel", |totals| totals.shares.dropped_total() > 0).await;
    after = mine(&mut devices).await;
    link.open(channels, 11, GROUP, b"fourth", target).await;
    begin(&mut link, GROUP, 8, 3).await;
    link.wait_for_shares(8, 5).await;
    mine_on_clean_work(&mut devices, &after).await;

    // Sent elsewhere.
    after = devices.iter().map(Device::seen).collect();
    let new_port = elsewhere.address().port();
    link.send(Reconnect { new_host: String::new(), new_port }).await;
    let mut link = elsewhere.accept().await;
    link.open(channels, 21, GROUP, b"fifth", target).await;
    begin(&mut link, GROUP, 1, 4).await;
    link.wait_for_shares(1, 5).await;
    mine_on_clean_work(&mut devices, &after).await;
    nobody_was_wronged(&proxy, 3).await;
    for device in &devices {
        assert_eq!(device.seen().ignored, [""; 0], "nothing that a device must ignore is sent to it");
    }
    drop(devices);
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_mine_through_what_an_upstream_does_on_one_channel() {
    devices_mine_through_what_an_upstream_does(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_mine_through_what_an_upstream_does_on_a_channel_each() {
    devices_mine_through_what_an_upstream_does(false).await;
}

fn start_miners(server: SocketAddr) -> (Vec<Miner>, ShutdownTrigger) {
    let (stop, end) = shutdown();
    let start = |number| {
        let user = format!("account.sv1-{number}");
        let pause = Some(Duration::from_millis(15));
        Miner::start(MinerOptions { server, user, window: 1, pause }, end.clone())
    };
    ((0..2).map(start).collect(), stop)
}

async fn everybody_outlives_the_pool(aggregate: bool) {
    let chain = chain(HASHES_PER_BLOCK);
    let mut pool = start_pool(&chain, fixed(EXPONENT), None);
    let address = pool.sv2;
    let proxy = start_proxy(address, aggregate, fixed(EXPONENT));
    let mut devices = start_devices(proxy.sv2);
    let (mut miners, _stop_miners) = start_miners(proxy.sv1);
    mine(&mut devices).await;
    for miner in &mut miners {
        miner.wait_for("shares", DEADLINE, |seen| seen.accepted >= SHARES).await;
    }
    for _ in 0..2 {
        pool.stop().await;
        let (devices_before, miners_before) = live_without_pool(&proxy, &mut devices, &mut miners).await;
        let forwarded = proxy.totals().await.answers.acknowledged;
        chain.refresh();
        pool = start_pool(&chain, fixed(EXPONENT), Some(address));
        mine_on_clean_work(&mut devices, &devices_before).await;
        for (miner, before) in miners.iter_mut().zip(&miners_before) {
            let clean = before.clean_jobs;
            miner.wait_for("clean work", DEADLINE, |seen| seen.clean_jobs > clean).await;
        }
        proxy
            .wait_for("shares at the new pool", |totals| totals.answers.acknowledged > forwarded + SHARES)
            .await;
        nobody_was_wronged(&pool, 1).await;
    }
    nobody_was_wronged(&proxy, 5).await;
    drop(devices);
    let totals = proxy
        .wait_for("every forwarded share is accounted for", |totals| {
            let answers = &totals.answers;
            answers.forwarded == answers.acknowledged + answers.refused + answers.lost_total()
        })
        .await;
    assert_eq!(totals.shares.accepted, totals.shares.forwarded + totals.shares.dropped_total());
    proxy.stop().await;
    pool.stop().await;
}

/// Mines while there is no pool: shares are accepted, and counted as dropped before forwarding.
async fn live_without_pool(
    proxy: &Running,
    devices: &mut [Device],
    miners: &mut [Miner],
) -> (Vec<Seen>, Vec<sv1_miner::Seen>) {
    let lost = DropReason::UpstreamLost as usize;
    let dropped = proxy.totals().await.shares.dropped[lost];
    let before = proxy.wait_for("the outage", |totals| totals.shares.dropped[lost] > dropped).await;
    mine(devices).await;
    let mut seen = Vec::new();
    for miner in miners {
        let goal = miner.seen().accepted + SHARES;
        seen.push(miner.wait_for("shares without pool", DEADLINE, |seen| seen.accepted >= goal).await);
    }
    let after = proxy.totals().await;
    assert_eq!(after.shares.forwarded, before.shares.forwarded, "there is nowhere to forward to");
    assert!(after.shares.dropped[lost] >= before.shares.dropped[lost] + SHARES, "{after:?}");
    (devices.iter().map(Device::seen).collect(), seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_outlives_the_pool_on_one_channel() {
    everybody_outlives_the_pool(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_outlives_the_pool_on_a_channel_each() {
    everybody_outlives_the_pool(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_sends_everybody_on_is_not_dialled_without_pause() {
    let pool = ScriptedPool::start(key()).await;
    let proxy = start_proxy(pool.address(), true, fixed(EXPONENT));
    let started = Instant::now();
    let mut links = Vec::new();
    for _ in 0..3 {
        let mut link = pool.accept().await;
        link.send(Reconnect { new_host: String::new(), new_port: pool.address().port() }).await;
        links.push(link);
    }
    // Half of one second and half of two, which is as much as chance takes away.
    assert!(started.elapsed() >= Duration::from_millis(1500), "{:?}", started.elapsed());
    proxy.stop().await;
}
