//! A thousand SV1 miners at full speed, and miners that flood: nothing is refused that could have been accepted, no
//! connection is lost, every sum holds, and memory stays where it is.
//!
//! Difficulties are the easiest there are, so that the machine's time goes to the program and not to hashing.

#[path = "support/farm.rs"]
mod farm;
#[path = "support/sv1_miner.rs"]
mod sv1_miner;

use std::sync::atomic::Ordering;
use std::time::Duration;

use checkweigh::shutdown::shutdown;
use farm::{DEADLINE, Running, chain, fixed, start_pool, start_pool_with_status, start_proxy};
use mining_server::RejectReason;
use sv1_miner::{Miner, MinerOptions, Seen, mine};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

const MINERS: usize = 1000;

/// How long the thousand mine, in seconds, unless `CHECKWEIGH_THOUSAND_SECONDS` says otherwise.
const SECONDS: u64 = 60;

/// Two for each miner, and room for everything else.
const OPEN_FILES: u64 = 4096;

/// Every hash is a share.
const EASIEST: i32 = -32;

/// Hashes, and so shares, for a block: one every few seconds.
const SHARES_PER_BLOCK: u64 = 30_000;

/// Memory that may come and go: buffers of the sockets' tasks, and the sink's queue.
const MEMORY_NOISE_KIB: u64 = 64 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_miners_lose_nothing() {
    let limit = rlimit::increase_nofile_limit(OPEN_FILES).expect("the limit of open files can be read");
    assert!(limit >= OPEN_FILES, "this test needs {OPEN_FILES} open files, and {limit} are allowed");
    let chain = chain(SHARES_PER_BLOCK);
    let (pool, status) = start_pool_with_status(&chain, fixed(EASIEST), None);
    let proxy = start_proxy(pool.sv2, true, fixed(EASIEST));
    let (stop, end) = shutdown();
    let mut miners = JoinSet::new();
    for number in 0..MINERS {
        let options =
            MinerOptions { server: proxy.sv1, user: format!("farm.m{number:04}"), window: 1, pause: None };
        let end = end.clone();
        miners.spawn(async move { mine(&options, end, None).await });
    }
    let (started, seconds) = (Instant::now(), seconds());
    // Let by half of the time, everything that grows to its size has done so.
    sleep_until(started + seconds / 2).await;
    let memory_before = resident_kib();
    sleep_until(started + seconds).await;
    let memory_after = resident_kib();
    stop.trigger();
    let mut sum = Seen::default();
    while let Some(ended) = miners.join_next().await {
        let (seen, ended) = ended.expect("miners do not panic");
        assert_eq!(ended, Ok(()), "no connection is lost");
        assert_eq!(seen.wrong, [""; 0]);
        assert!(seen.accepted > 0, "every miner mines");
        add(&mut sum, &seen);
    }
    println!("{} shares, {} stale; {memory_before} KiB, {memory_after} KiB", sum.submitted, sum.stale);
    assert_eq!(sum.submitted, sum.accepted + sum.stale);
    assert!(memory_after <= memory_before + memory_before / 2 + MEMORY_NOISE_KIB, "memory grows");
    accounts_hold(&pool, &proxy, &sum).await;
    let found = status.blocks_found.load(Ordering::Relaxed);
    let accepted = status.blocks_accepted.load(Ordering::Relaxed);
    println!("{found} blocks found, {accepted} accepted");
    assert!(accepted > 0 && accepted == chain.summary().accepted);
    let counts = &proxy.observed.counts;
    assert_eq!(counts.accepted.load(Ordering::Relaxed), MINERS as u64, "nobody had to come back");
    assert_eq!(counts.panicked.load(Ordering::Relaxed) + counts.closed_for_fault.load(Ordering::Relaxed), 0);
    proxy.stop().await;
    pool.stop().await;
}

/// What the miners, the proxy and the pool say of the same shares.
async fn accounts_hold(pool: &Running, proxy: &Running, seen: &Seen) {
    let ours = proxy
        .wait_for("every forwarded share is answered", |totals| {
            let answers = &totals.answers;
            // A share that was answered may still be in the upstream's queue, and has no record yet.
            totals.shares.submitted == seen.submitted
                && answers.forwarded == answers.acknowledged + answers.refused + answers.lost_total()
        })
        .await;
    assert_eq!(ours.violation(), None);
    assert_eq!((ours.shares.submitted, ours.shares.accepted), (seen.submitted, seen.accepted));
    assert_eq!(ours.shares.rejected[RejectReason::Stale as usize], seen.stale);
    assert_eq!(ours.shares.rejected_total(), seen.stale);
    assert_eq!((ours.shares.dropped_total(), ours.answers.lost_total()), (0, 0));
    assert_eq!(ours.shares.forwarded, ours.shares.accepted, "every share is worth forwarding");
    // A share that is a block is answered first, and recorded by the owner of the pool's work only then.
    let theirs = pool
        .wait_for("the pool has recorded what it answered", |totals| {
            totals.shares.submitted == ours.shares.forwarded
        })
        .await;
    println!(
        "forwarded {}, folded {}, stale at the pool {}",
        ours.answers.forwarded, ours.folded, ours.answers.refused
    );
    assert_eq!(theirs.violation(), None);
    assert_eq!(theirs.shares.accepted, ours.answers.acknowledged);
    assert_eq!(theirs.shares.rejected_total(), ours.answers.refused);
    assert_eq!(theirs.shares.rejected[RejectReason::Stale as usize], ours.answers.refused, "{theirs:?}");
    assert_eq!(ours.refused_by_code.get("stale-share").copied().unwrap_or(0), ours.answers.refused);
}

/// Miners that never wait outgrow what a connection remembers of one tip. New jobs come in time for them, and not a
/// single share is refused: there is no other tip that could make one stale.
#[tokio::test(flavor = "multi_thread")]
async fn floods_are_answered_with_new_jobs_and_not_with_refusals() {
    const SHARES_OF_EACH: u64 = 200_000;
    let chain = chain(u64::MAX);
    let pool = start_pool(&chain, fixed(EASIEST), None);
    let proxy = start_proxy(pool.sv2, true, fixed(EASIEST));
    let (stop, end) = shutdown();
    let mut miners = Vec::new();
    for (name, server) in [("direct", pool.sv1), ("behind", proxy.sv1)] {
        // Few at once: a job can be renewed once a second, and with a larger window an idle machine makes more shares in
        // that time than are remembered, which are refused then, as they should be.
        let options = MinerOptions { server, user: format!("farm.{name}"), window: 4, pause: None };
        miners.push(Miner::start(options, end.clone()));
    }
    for miner in &mut miners {
        miner.wait_for("a flood", DEADLINE * 2, |seen| seen.accepted >= SHARES_OF_EACH).await;
    }
    stop.trigger();
    let mut sums = Vec::new();
    for miner in &mut miners {
        let seen = miner.stopped(DEADLINE).await;
        assert!(seen.jobs >= 3, "new jobs came: {seen:?}");
        assert_eq!((seen.clean_jobs, seen.stale), (1, 0));
        sums.push(seen);
    }
    // A share that was answered may still be in the upstream's queue, and has no record yet.
    let submitted = sums[1].submitted;
    let ours = proxy
        .wait_for("all answered", |sums| {
            sums.shares.submitted == submitted && sums.answers.acknowledged == sums.answers.forwarded
        })
        .await;
    assert_eq!(ours.shares.rejected_total() + ours.shares.dropped_total() + ours.answers.refused, 0);
    let shares = ours.shares.forwarded + sums[0].accepted;
    let theirs = pool.wait_for("all recorded", |sums| sums.shares.submitted == shares).await;
    assert_eq!((theirs.shares.rejected_total(), theirs.shares.accepted), (0, shares));
    proxy.stop().await;
    pool.stop().await;
}

fn add(sum: &mut Seen, seen: &Seen) {
    sum.submitted += seen.submitted;
    sum.accepted += seen.accepted;
    sum.stale += seen.stale;
    sum.jobs += seen.jobs;
}

fn seconds() -> Duration {
    let set = std::env::var("CHECKWEIGH_THOUSAND_SECONDS").ok();
    Duration::from_secs(set.map_or(SECONDS, |text| text.parse().expect("a number of seconds")))
}

/// Memory of this process, which is that of pool, proxy and miners together.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux says what a process uses");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("it says how much is resident");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number of KiB")
}
