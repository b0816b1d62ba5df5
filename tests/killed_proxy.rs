//! A proxy under load that is killed at random moments, dozens of times: what its miners were told is in the ledger
//! afterwards, but for the last quarter of a second, and nothing is in it twice.

#[path = "support/farm.rs"]
mod farm;
#[path = "support/process.rs"]
mod process;
#[path = "support/sv1_miner.rs"]
mod sv1_miner;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use accounting::{Books, Subject};
use checkweigh::ledger::verify::verify;
use checkweigh::ledger::{Reader, SqliteReader, revival};
use checkweigh::shutdown::shutdown;
use farm::DEADLINE;
use process::Checkweigh;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sv1_miner::{Miner, MinerOptions};
use tokio::time::{Instant, interval};

/// How often the proxy is killed.
const LIVES: u64 = 30;

/// Miners, and shares that each has on the way at once.
const MINERS: usize = 3;
const WINDOW: usize = 4;

/// What may be lost when the process is killed: verdicts of the last quarter of a second.
const AT_RISK: Duration = Duration::from_millis(250);

const SHARE_EXPONENT: i32 = -20;

fn config(pool: SocketAddr) -> String {
    format!(
        "[downstream]\nsv1_listen = \"127.0.0.1:0\"\n\
         [[upstream]]\nurl = \"stratum2+tcp://{pool}/{}\"\nuser_identity = \"account.farm\"\n\
         [vardiff]\nenabled = false\n[ledger]\npath = \"ledger\"\n",
        farm::key().public()
    )
}

/// What the ledger says now, by reading it as a restarted program would.
fn books(folder: &Path) -> Books {
    let reader = SqliteReader::open(folder).expect("there is a ledger");
    let opening = reader.opening().expect("it can be opened");
    assert_eq!(opening.damage, [], "nothing is damaged by a kill");
    let (books, _) = revival::books(&opening, &reader).expect("its batches can be read");
    let findings = verify(&reader, |_, _| ()).expect("it can be read");
    assert_eq!(findings.faults, [""; 0], "after a kill everything adds up");
    books
}

/// Lets the proxy live until its miners were told of `shares` accepted ones, and kills it. Returns how many were accepted
/// at least a quarter of a second before the end, and how many were submitted.
async fn live(folder: &Path, pool: SocketAddr, shares: u64) -> (u64, u64) {
    let mut proxy = Checkweigh::start("mining-proxy", &config(pool), folder);
    let server = proxy.address("SV1 miners may connect").await;
    let mut child = proxy.detach_log();
    let (_stop, end) = shutdown();
    let miners: Vec<Miner> = (0..MINERS)
        .map(|number| {
            let (user, pause) = (format!("killed.miner{number}"), Some(Duration::from_millis(5)));
            Miner::start(MinerOptions { server, user, window: WINDOW, pause }, end.clone())
        })
        .collect();
    let accepted = || miners.iter().map(|miner| miner.seen().accepted).sum::<u64>();
    let started = Instant::now();
    // The count at each look, so that the one of a quarter of a second before the end is known.
    let mut looks = VecDeque::from([(started, 0)]);
    let mut look = interval(Duration::from_millis(5));
    while accepted() < shares {
        look.tick().await;
        looks.push_back((Instant::now(), accepted()));
        assert!(started.elapsed() < DEADLINE, "miners are served after every kill");
    }
    let killed = Instant::now();
    child.kill().await.expect("it runs");
    let safe = looks.iter().take_while(|(time, _)| *time + AT_RISK <= killed).last();
    let told = safe.map_or(0, |(_, count)| *count);
    // The last answers may be on their way to the miners still; their submissions are counted without them.
    let submitted = miners.iter().map(|miner| miner.seen().submitted).sum::<u64>() + (MINERS * WINDOW) as u64;
    (told, submitted)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_miners_were_told_is_in_the_ledger_after_every_kill() {
    let folder = tempfile::tempdir().expect("a folder");
    let chain = farm::chain(1 << 40);
    let pool = farm::start_pool(&chain, farm::fixed(SHARE_EXPONENT), None);
    let mut random = StdRng::seed_from_u64(7);
    let mut before = (0, 0);
    for life in 0..LIVES {
        let shares = random.gen_range(1..400);
        let (told, submitted) = live(folder.path(), pool.sv2, shares).await;
        let books = books(&folder.path().join("ledger"));
        assert_eq!(books.violation(), None);
        let fleet = books.view(Subject::Fleet, 0).expect("it is always there").sums;
        let kept = fleet.shares.accepted - before.0;
        assert!(kept >= told, "life {life}: miners were told of {told} shares, and {kept} were kept");
        let counted = fleet.shares.submitted - before.1;
        assert!(counted <= submitted, "life {life}: {submitted} were submitted, and {counted} counted");
        before = (fleet.shares.accepted, fleet.shares.submitted);
    }
    assert_eq!(books(&folder.path().join("ledger")).device_count(), MINERS, "devices keep their numbers");
    pool.stop().await;
}
