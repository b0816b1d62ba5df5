//! Peers that are silent, slow, or read nothing, on listeners with little patience.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use checkweigh::clock::Clock;
use checkweigh::downstream::{self, ConnectionCounts, Context, Patience, Protocol};
use checkweigh::owner::{OwnerInbox, owner};
use checkweigh::role::Role;
use checkweigh::shutdown::{ShutdownTrigger, shutdown};
use mining_server::{Settings, ShareUse};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use crate::attack::{encrypted, read_to_close};
use crate::farm::{self, DEADLINE};

/// Long enough for any peer that reads, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(2);

const PING: &[u8] = b"{\"id\":1,\"method\":\"mining.ping\",\"params\":[]}\n";

/// Listeners of both protocols without any work behind them.
struct Bench {
    sv1: SocketAddr,
    sv2: SocketAddr,
    counts: Arc<ConnectionCounts>,
    _inbox: OwnerInbox,
    _stop: ShutdownTrigger,
}

impl Bench {
    async fn start(max_connections: usize) -> Self {
        let (stop, end) = shutdown();
        let role =
            Role::start(Clock::start(), end.clone(), None, Default::default()).expect("nothing is kept");
        let (owner, inbox) = owner();
        let context = Context {
            settings: Arc::new(Settings {
                share_use: ShareUse::Keep,
                vardiff_enabled: true,
                vardiff: farm::vardiff(0).config,
                minimum_is_firm: false,
                channel_per_device: false,
                proxy_protocol: false,
                share_batch_size: 1,
            }),
            registry: role.observed.registry.clone(),
            owner,
            sink: role.observed.sink.clone(),
            clock: role.observed.clock,
            latencies: Arc::clone(&role.observed.latencies),
            counts: Arc::clone(&role.observed.counts),
            slots: Arc::new(Semaphore::new(max_connections)),
            patience: Patience { write: PATIENCE, handshake: PATIENCE },
        };
        let counts = Arc::clone(&context.counts);
        let mut addresses = Vec::new();
        for protocol in [Protocol::Sv1, Protocol::Sv2(Arc::new(farm::key()))] {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            addresses.push(listener.local_addr().expect("bound"));
            tokio::spawn(downstream::serve(listener, protocol, context.clone(), end.clone()));
        }
        tokio::spawn(role.run());
        Bench { sv1: addresses[0], sv2: addresses[1], counts, _inbox: inbox, _stop: stop }
    }

    fn faults(&self) -> u64 {
        self.counts.closed_for_fault.load(Ordering::Relaxed)
    }
}

/// A miner that is answered at once, whatever the others do.
async fn answered_at_once(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).await.expect("the listener accepts");
    for _ in 0..20 {
        let asked = Instant::now();
        stream.write_all(PING).await.expect("it is open");
        let mut answer = [0; 128];
        let length = timeout(DEADLINE, stream.read(&mut answer)).await.expect("in time").expect("it is open");
        assert!(answer[..length].starts_with(b"{\"id\":1,"), "{}", answer[..length].escape_ascii());
        assert!(asked.elapsed() < PATIENCE, "a neighbour held it up");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_reads_nothing_is_closed_and_holds_nobody_up() {
    let bench = Bench::start(100).await;
    let mut deaf = TcpStream::connect(bench.sv1).await.expect("the listener accepts");
    let pings = PING.repeat(1000);
    let writes = async {
        // Its answers fill every buffer between us; then ours fill up too, and in the end it is closed.
        while deaf.write_all(&pings).await.is_ok() {}
    };
    let (closed, ()) = tokio::join!(timeout(DEADLINE, writes), answered_at_once(bench.sv1));
    closed.expect("it is closed");
    assert_eq!(bench.faults(), 1);
    answered_at_once(bench.sv1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_peers_are_closed_after_the_time_for_the_handshake() {
    let bench = Bench::start(100).await;
    let started = Instant::now();
    let mut silent = TcpStream::connect(bench.sv2).await.expect("the listener accepts");
    let mut slow = TcpStream::connect(bench.sv2).await.expect("the listener accepts");
    slow.write_all(&[7; 63]).await.expect("it is open");
    let drip = async {
        // One byte short, then silence: every byte before it bought no time.
        assert!(read_to_close(&mut slow).await.is_empty());
    };
    let (silence, ()) = tokio::join!(read_to_close(&mut silent), drip);
    assert!(silence.is_empty());
    assert!(started.elapsed() >= PATIENCE, "a slow network has its time");
    assert_eq!(bench.counts.sv2.load(Ordering::Relaxed), 0, "none of them counts as a miner");
    assert_eq!(bench.faults(), 2);
    let (stream, _) = encrypted(bench.sv2).await;
    drop(stream);
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_limit_newcomers_are_closed_and_a_free_slot_serves_the_next() {
    let bench = Bench::start(3).await;
    let mut inside = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(bench.sv1).await.expect("the listener accepts");
        stream.write_all(PING).await.expect("it is open");
        let mut answer = [0; 128];
        assert!(stream.read(&mut answer).await.expect("it is open") > 0);
        inside.push(stream);
    }
    for _ in 0..50 {
        let mut outside = TcpStream::connect(bench.sv1).await.expect("the system accepts");
        assert!(read_to_close(&mut outside).await.is_empty());
    }
    assert_eq!(bench.counts.refused.load(Ordering::Relaxed), 50);
    for stream in &mut inside {
        stream.write_all(PING).await.expect("those inside noticed nothing");
        let mut answer = [0; 128];
        assert!(stream.read(&mut answer).await.expect("it is open") > 0);
    }
    inside.clear();
    let served = async {
        loop {
            let mut next = TcpStream::connect(bench.sv1).await.expect("the system accepts");
            let mut answer = [0; 128];
            if next.write_all(PING).await.is_ok()
                && next.read(&mut answer).await.is_ok_and(|length| length > 0)
            {
                return;
            }
        }
    };
    timeout(DEADLINE, served).await.expect("free slots are used again");
}
