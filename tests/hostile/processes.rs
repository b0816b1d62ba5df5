//! The real binary: its memory under attack, and its end.

use std::net::SocketAddr;
use std::time::Duration;

use checkweigh::shutdown::shutdown;
use tempfile::tempdir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::attack::{HELLO, read_to_close};
use crate::bitcoin_node::RegtestNode;
use crate::farm::{self, DEADLINE};
use crate::process::{Checkweigh, terminate};
use crate::sv1_miner::{Miner, MinerOptions};

/// Connections that the proxy under attack accepts.
const MAX_CONNECTIONS: usize = 100;

/// Connections of one wave, and waves: thousands in all, and never more open files than any system allows.
const WAVE: usize = 300;
const WAVES: usize = 10;

/// What the attacks may add to the memory: a few kilobytes for each connection, and what the allocator keeps.
const MOST_GROWTH: u64 = 24 << 20;

const SHARE_EXPONENT: i32 = -20;

fn proxy_config(pool: SocketAddr) -> String {
    format!(
        "[downstream]\nsv1_listen = \"127.0.0.1:0\"\nmax_connections = {MAX_CONNECTIONS}\n\
         [[upstream]]\nurl = \"stratum2+tcp://{pool}/{}\"\nuser_identity = \"account.farm\"\n\
         [vardiff]\nenabled = false\n[metrics]\nlisten = \"127.0.0.1:0\"\n",
        farm::key().public()
    )
}

/// Bytes of memory that a process has.
fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the system says it");
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kilobytes * 1024
}

async fn metric(address: SocketAddr, name: &str) -> f64 {
    let page = reqwest::get(format!("http://{address}/metrics")).await.expect("the page is served");
    let page = page.text().await.expect("the page is text");
    let line =
        page.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in:\n{page}"));
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number follows")
}

fn honest(server: SocketAddr, end: &checkweigh::shutdown::Shutdown) -> Miner {
    let pause = Some(Duration::from_millis(20));
    Miner::start(MinerOptions { server, user: "honest.miner".to_owned(), window: 4, pause }, end.clone())
}

async fn goes_on(miner: &mut Miner) {
    let before = miner.seen().accepted;
    let seen = miner.wait_for("honest shares", DEADLINE, |seen| seen.accepted >= before + 10).await;
    assert_eq!(seen.stale, 0, "there was no new block");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_bounded_under_thousands_of_connections() {
    let chain = farm::chain(1 << 50);
    let pool = farm::start_pool(&chain, farm::fixed(SHARE_EXPONENT), None);
    let folder = tempdir().expect("a folder");
    let mut proxy = Checkweigh::start("mining-proxy", &proxy_config(pool.sv2), folder.path());
    let address = proxy.address("SV1 miners may connect").await;
    let metrics = proxy.address("metrics").await;
    let process = proxy.id();
    let mut child = proxy.detach_log();
    let (_stop, end) = shutdown();
    let mut miner = honest(address, &end);
    goes_on(&mut miner).await;
    let before = resident(process);

    let mut turned_away = 0;
    for _ in 0..WAVES {
        turned_away += wave(address).await;
    }
    assert!(turned_away >= WAVES * (WAVE - MAX_CONNECTIONS), "{turned_away} were turned away");
    assert!(metric(metrics, "checkweigh_connections_refused_total").await >= turned_away as f64);
    goes_on(&mut miner).await;
    let after_waves = resident(process);
    let deaf = deaf_peers(address).await;
    goes_on(&mut miner).await;
    let after_deaf = resident(process);
    drop(deaf);
    println!("resident bytes: {before}, after waves {after_waves}, with deaf peers {after_deaf}");
    assert!(after_waves < before + MOST_GROWTH, "from {before} to {after_waves}");
    assert!(after_deaf < before + MOST_GROWTH, "from {before} to {after_deaf}");
    assert!(metric(metrics, "checkweigh_connections_accepted_total").await >= MAX_CONNECTIONS as f64);
    assert!(metric(metrics, "checkweigh_connections_panicked_total").await == 0.0);
    assert!(terminate(&mut child, Duration::from_secs(5)).await.success());
}

/// Opens many connections at once, each with an unfinished line. Returns how many were turned away.
async fn wave(address: SocketAddr) -> usize {
    let unfinished = [b"{\"params\":[\"".as_slice(), &[b'x'; 4000]].concat();
    let mut streams = Vec::new();
    for _ in 0..WAVE {
        let mut stream = TcpStream::connect(address).await.expect("the system accepts");
        let _ = stream.write_all(&unfinished).await;
        streams.push(stream);
    }
    // Those inside wait for the rest of their line, and are answered once it has come.
    let mut inside = 0;
    for stream in &mut streams {
        let _ = stream.write_all(b"\"],\"id\":1,\"method\":\"mining.ping\"}\n").await;
        let mut answer = [0; 64];
        let read = timeout(DEADLINE, stream.read(&mut answer)).await.expect("answered or closed");
        inside += usize::from(read.is_ok_and(|length| length > 0));
    }
    WAVE - inside
}

/// Peers that ask much and read nothing, up to what the kernel's buffers take.
async fn deaf_peers(address: SocketAddr) -> Vec<TcpStream> {
    let pings = b"{\"id\":1,\"method\":\"mining.ping\",\"params\":[]}\n".repeat(500);
    let mut streams = Vec::new();
    for _ in 0..MAX_CONNECTIONS / 2 {
        let mut stream = TcpStream::connect(address).await.expect("the system accepts");
        let _ = stream.write_all(HELLO).await;
        streams.push(stream);
    }
    for stream in &mut streams {
        for _ in 0..100 {
            let Ok(Ok(())) = timeout(Duration::from_millis(100), stream.write_all(&pings)).await else {
                break;
            };
        }
    }
    streams
}

/// SIGTERM while miners are connected and shares are on their way.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_both_roles_in_order_while_miners_mine() {
    let node = RegtestNode::start().await;
    node.generate(101).await;
    let folder = tempdir().expect("a folder");
    std::fs::write(folder.path().join("authority.key"), farm::key().secret_text()).expect("a file");
    let config = format!(
        "[downstream]\nsv1_listen = \"127.0.0.1:0\"\nsv2_listen = \"127.0.0.1:0\"\n\
         authority_secret_key_file = \"authority.key\"\n\
         [node]\nrpc_url = \"{}\"\ncookie_file = \"{}\"\n[pool]\ncoinbase_script = \"51\"\n\
         [vardiff]\nminimum_difficulty = 0.0000002\ninitial_difficulty = 0.000001\n",
        node.url(),
        node.cookie_file().display()
    );
    let mut pool = Checkweigh::start("pool", &config, folder.path());
    let pool_sv1 = pool.address("SV1 miners may connect").await;
    let pool_sv2 = pool.address("SV2 miners may connect").await;
    let mut proxy = Checkweigh::start("mining-proxy", &proxy_config(pool_sv2), folder.path());
    let address = proxy.address("SV1 miners may connect").await;
    let mut proxy = proxy.detach_log();
    let (_stop, end) = shutdown();
    let mut miners = [honest(address, &end), honest(address, &end), honest(pool_sv1, &end)];
    for miner in &mut miners {
        miner.wait_for("shares are accepted", DEADLINE, |seen| seen.accepted >= 3).await;
    }
    let status = terminate(&mut proxy, Duration::from_secs(5)).await;
    assert_eq!(status.code(), Some(0), "the proxy ends in order");
    // The pool names the first channel of a connection that ends with channels open: this one had closed its own.
    let closed = pool.line("closed: ").await;
    assert_eq!(closed["who"], "(no channel) Checkweigh mining-proxy", "{closed}");
    let mut pool = pool.detach_log();
    let before = miners[2].seen().accepted;
    miners[2].wait_for("the pool goes on", DEADLINE, |seen| seen.accepted > before).await;
    let status = terminate(&mut pool, Duration::from_secs(5)).await;
    assert_eq!(status.code(), Some(0), "the pool ends in order");
    let mut refused = TcpStream::connect(pool_sv1).await.is_err();
    if !refused {
        // The system may take a moment to forget the port.
        let mut stream = TcpStream::connect(pool_sv1).await.expect("it was accepted before");
        refused = read_to_close(&mut stream).await.is_empty();
    }
    assert!(refused, "nobody is served any more");
}
