//! The listeners for SV1 miners, over real sockets: what each gives its miners, and what is counted of them.

#[path = "support/farm.rs"]
mod farm;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use checkweigh::clock::Clock;
use checkweigh::config::{
    DownstreamConfig, HttpConfig, Listeners, LogConfig, ProxyConfig, Sv1Profile, UpstreamConfig,
};
use checkweigh::downstream::ConnectionCounts;
use checkweigh::node::BlockSource;
use checkweigh::pool::{self, PoolParts};
use checkweigh::proxy;
use checkweigh::role::Role;
use checkweigh::shutdown::{ShutdownTrigger, shutdown};
use farm::{DEADLINE, chain, key, listen, start_pool, vardiff};
use stratum::sv1::client::{self, ServerLine};
use stratum::sv2::PoolUrl;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, interval, timeout};

/// What miners start at where no profile says otherwise: far easier than any market wants.
const EXPONENT: i32 = -22;

/// Nothing here is hashed, and no block found.
const HASHES_PER_BLOCK: u64 = 1 << 40;

/// What NiceHash asks for.
const NICEHASH: f64 = 524_288.0;

/// A port without and one with a profile.
fn listeners() -> Listeners {
    Listeners { sv1: Some(listen(None)), sv1_profiles: vec![listen(None)], ..Listeners::default() }
}

fn downstream() -> DownstreamConfig {
    let profile = Sv1Profile {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        minimum_exponent: 19,
        initial_exponent: 19,
    };
    DownstreamConfig {
        sv1_listen: None,
        sv1_profiles: vec![profile],
        sv2_listen: None,
        authority: None,
        proxy_protocol: false,
        max_connections: 100,
    }
}

fn pool_with_profile() -> (Role, ShutdownTrigger) {
    let (stop, end) = shutdown();
    let parts = PoolParts {
        source: BlockSource::Development(chain(HASHES_PER_BLOCK)),
        source_name: "development chain".to_owned(),
        rules: pool::coinbase_rules(vec![0x51], "tests").expect("rules"),
        downstream: downstream(),
        vardiff: vardiff(EXPONENT),
        share_batch_size: 10,
        job_declaration: None,
        ledger: None,
        device_rules: Default::default(),
        http: HttpConfig::default(),
    };
    let pool = pool::start(parts, listeners(), Clock::start(), end).expect("the pool starts");
    (pool.role, stop)
}

fn proxy_with_profile(pool: SocketAddr) -> (Role, ShutdownTrigger) {
    let (stop, end) = shutdown();
    let url = PoolUrl { host: pool.ip().to_string(), port: pool.port(), authority: Some(key().public()) };
    let config = ProxyConfig {
        downstream: downstream(),
        upstreams: vec![UpstreamConfig {
            url,
            user_identity: "account.farm".to_owned(),
            job_declaration_url: None,
            forward_worker_names: true,
        }],
        job_declaration: None,
        patience: Default::default(),
        aggregate: true,
        vardiff: vardiff(EXPONENT),
        ledger: None,
        rules: Default::default(),
        metrics_listen: None,
        http: HttpConfig::default(),
        log: LogConfig::default(),
    };
    (proxy::start(&config, listeners(), Clock::start(), end).expect("the proxy starts").role, stop)
}

/// Dials in as NiceHash does, but with version rolling. Returns once the first job is there, with the difficulty that
/// it came with.
async fn first_job(server: SocketAddr, password: &str) -> (TcpStream, f64) {
    let mut stream = TcpStream::connect(server).await.expect("it listens");
    let mut hello = Vec::new();
    client::configure(&mut hello, 1, Some(0xffff_ffff));
    client::subscribe(&mut hello, 2, "NiceHash/1.0.0", None);
    client::authorize(&mut hello, 3, "account.rented", password);
    stream.write_all(&hello).await.expect("it is open");
    let mut lines = BufReader::new(&mut stream);
    let mut difficulty = f64::NAN;
    let read = async {
        let mut line = Vec::new();
        loop {
            line.clear();
            assert!(lines.read_until(b'\n', &mut line).await.expect("it is open") > 0, "it was closed");
            match ServerLine::parse(&line).expect("a line that miners understand") {
                ServerLine::SetDifficulty(told) => difficulty = told,
                ServerLine::Notify(_) => return,
                _ => {}
            }
        }
    };
    timeout(DEADLINE, read).await.expect("a first job in time");
    (stream, difficulty)
}

/// Both ports of one role, whichever it is.
async fn each_port_has_its_own_difficulties(role: &Role) {
    let [rental] = role.sv1_profile_addresses[..] else { panic!("one profile has one port") };
    let main = role.sv1_address.expect("it has a listener");
    // On the proxy the first of them is alone: its upstream's target is far easier then.
    for password in ["x", "d=1"] {
        assert_eq!(first_job(rental, password).await.1, NICEHASH, "{password}");
    }
    assert!(first_job(main, "x").await.1 <= 2f64.powi(EXPONENT));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rental_market_has_its_minimum_on_its_port_of_a_pool() {
    let (role, _stop) = pool_with_profile();
    each_port_has_its_own_difficulties(&role).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rental_market_has_its_minimum_on_its_port_of_a_proxy() {
    let pool = start_pool(&chain(HASHES_PER_BLOCK), vardiff(EXPONENT), None);
    let (role, stop) = proxy_with_profile(pool.sv2);
    each_port_has_its_own_difficulties(&role).await;
    stop.trigger();
    pool.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_all_ports_are_counted_together_and_with_their_masks() {
    let (role, _stop) = pool_with_profile();
    let counts = &role.observed.counts;
    let (main, _) = first_job(role.sv1_address.expect("it has a listener"), "x").await;
    let (rental, _) = first_job(role.sv1_profile_addresses[0], "x").await;
    wait_for("two miners", counts, [2, 2]).await;
    drop(main);
    wait_for("one miner", counts, [1, 1]).await;
    drop(rental);
    wait_for("none", counts, [0, 0]).await;
}

/// Waits until there are as many connections, and as many that may roll versions.
async fn wait_for(what: &str, counts: &ConnectionCounts, wanted: [u64; 2]) {
    let deadline = Instant::now() + DEADLINE;
    let mut poll = interval(Duration::from_millis(20));
    loop {
        let counted = [&counts.sv1, &counts.rolling_granted].map(|gauge| gauge.load(Ordering::Relaxed));
        if counted == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "not in time: {what}; {counted:?}");
        poll.tick().await;
    }
}
