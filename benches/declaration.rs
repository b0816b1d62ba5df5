//! What a declared job costs a pool, with a real Bitcoin Core: `cargo bench --bench declaration`.
//!
//! First one client and a full block: from `DeclareMiningJob` to its answer, split into the node's time and what is
//! left, ours. Then a thousand connected clients that all declare again at once on a new tip. A forwarder before the
//! node takes the times; its own, microseconds, count as ours. Everything is in this one process, clients too, so what
//! is ours holds their share; processor time is of the server's threads alone. Takes some minutes; `--declarers N`
//! makes it shorter.

#[path = "../tests/support/bitcoin_node.rs"]
mod bitcoin_node;
#[path = "declaration/clients.rs"]
mod clients;
#[path = "declaration/forwarder.rs"]
mod forwarder;
#[path = "declaration/full_block.rs"]
mod full_block;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bitcoin_node::RegtestNode;
use checkweigh::clock::Clock;
use checkweigh::declarations::{DeclarationParts, Declarations, declarations};
use checkweigh::dev_chain::{DevChain, DevChainSettings, nbits_for_hashes};
use checkweigh::node::{BlockJudge, BlockSource, NodeAuth, NodeClient, NodeClientSettings};
use checkweigh::shutdown::{ShutdownTrigger, shutdown};
use clients::{Declarer, key};
use forwarder::Forwarder;
use full_block::template_of;
use serde_json::json;
use stratum::sv2::Message;
use template::{BlockTemplate, Output};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

/// Declarations of one client that are timed in each way.
const ROUNDS: usize = 15;

/// Clients that declare at once.
const DECLARERS: usize = 1000;

/// What the pool's payout output pays to.
const PAYOUT: [u8; 2] = [0x51, 0x75];

/// Numbers servers: the threads of each have a name of their own, because those of the last one end slowly.
static SERVERS: AtomicUsize = AtomicUsize::new(0);

/// A server on threads of its own, and the forwarder between it and the node.
struct Server {
    address: std::net::SocketAddr,
    declarations: Declarations,
    /// The name of its threads.
    name: String,
    forwarder: Forwarder,
    _trigger: ShutdownTrigger,
    runtime: Option<Runtime>,
}

/// A runtime may not be waited for inside of another.
impl Drop for Server {
    fn drop(&mut self) {
        self.runtime.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

fn main() {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--declarers").skip(1);
    let declarers = arguments.next().map_or(DECLARERS, |number| number.parse().expect("a number of clients"));
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
    runtime.block_on(async {
        let node = RegtestNode::start().await;
        full_block::fill(&node).await;
        let template = Arc::new(template_of(&node).await);
        let bytes: usize = template.transactions.iter().map(|one| one.raw.len()).sum();
        let weight: u64 = template.transactions.iter().map(|one| one.weight).sum();
        let count = template.transactions.len();
        println!("a block of {count} transactions, {weight} WU, {bytes} bytes");
        one_client(&node, &template, true).await;
        one_client(&node, &template, false).await;
        many_clients(&node, declarers, true).await;
        many_clients(&node, declarers, false).await;
    });
}

fn server(node: &RegtestNode, max_connections: usize, template: &Arc<BlockTemplate>) -> Server {
    let name = format!("bench-{}", SERVERS.fetch_add(1, Ordering::Relaxed));
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(&name)
        .enable_all()
        .build()
        .expect("threads");
    let forwarder = Forwarder::start(node.url().trim_start_matches("http://").parse().expect("an address"));
    let auth = NodeAuth::CookieFile(node.cookie_file());
    let client = NodeClient::new(NodeClientSettings { url: forwarder.url(), auth }).expect("a URL");
    let settings = DevChainSettings { seed: 7, nbits: nbits_for_hashes(1 << 40), transactions: 0 };
    let client = Arc::new(client);
    let parts = DeclarationParts {
        outputs: vec![Output { value: 0, script: PAYOUT.to_vec() }],
        requires_transactions: false,
        max_connections,
        key: key(),
        node: Arc::clone(&client),
        judge: BlockJudge::Rpc(client),
        source: BlockSource::Development(DevChain::new(settings, Clock::start())),
        blocks: None,
    };
    let (trigger, end) = shutdown();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback can be bound");
    listener.set_nonblocking(true).expect("a socket");
    let address = listener.local_addr().expect("bound");
    let declarations = {
        let _inside = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
        let (declarations, running) = declarations(parts, listener, Clock::start(), end);
        runtime.spawn(running);
        declarations
    };
    declarations.set_tip(template);
    Server { address, declarations, name, forwarder, _trigger: trigger, runtime: Some(runtime) }
}

/// Full blocks one after the other, each another job, because each leaves one more satoshi to nobody.
async fn one_client(node: &RegtestNode, template: &Arc<BlockTemplate>, is_known: bool) {
    // The pool's own template has all transactions of the job, or none: then they are looked up in the node's mempool.
    let empty = Arc::new(full_block::without_transactions(template));
    let server = server(node, 8, if is_known { template } else { &empty });
    let mut declarer = Declarer::set_up(server.address).await;
    let (mut all, mut of_node) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        // What was looked up is looked up again: only templates are remembered.
        let (token, outputs) = declarer.token().await;
        let mut job = (**template).clone();
        job.coinbase_value -= round as u64;
        let frame = declarer.declaration(&job, token, &outputs, b"/farm/");
        let before = server.forwarder.seen();
        let began = Instant::now();
        declarer.send_frame(&frame).await;
        let answer = declarer.next().await;
        let took = began.elapsed();
        assert!(matches!(answer, Message::DeclareMiningJobSuccess(_)), "{answer:?}");
        // The first one warms the node's caches of scripts.
        if round > 0 {
            all.push(took);
            of_node.push(server.forwarder.seen().waited - before.waited);
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let ours: Vec<Duration> = all.iter().zip(&of_node).map(|(all, node)| all.saturating_sub(*node)).collect();
    let what = if is_known { "in the pool's template" } else { "in the node's mempool" };
    println!("one client, transactions {what}, median and longest of {ROUNDS}, ms:");
    println!("  answer {}  the node {}  ours {}", spread(all), spread(of_node), spread(ours));
}

fn spread(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    format!("{:.1} ({:.1})", milliseconds(times[times.len() / 2]), milliseconds(times[times.len() - 1]))
}

/// All clients declare at once on a new tip, the same transactions, under a tag of their own or all under one.
async fn many_clients(node: &RegtestNode, count: usize, one_tag: bool) {
    let template = Arc::new(template_of(node).await);
    let server = server(node, count, &template);
    let resident = |what: &str| println!("  resident {what}: {} MiB", status("VmRSS:") / 1024);
    println!("{count} clients, {}:", if one_tag { "one tag" } else { "a tag each" });
    resident("before they connect");
    let mut declarers = Vec::new();
    let cpu = cpu_of(&server.name);
    for number in 0..count {
        let mut declarer = Declarer::set_up(server.address).await;
        declarer.tag = if one_tag { "/farm/".to_owned() } else { format!("/farm{number:05}/") };
        declarers.push(declarer);
    }
    let per_client = cpu_of(&server.name).saturating_sub(cpu).as_secs_f64() * 1e6 / count as f64;
    println!("  connecting: {per_client:.0} µs of processor time each");
    for declarer in &mut declarers {
        let (token, outputs) = declarer.token().await;
        declarer.kept = Some((token, outputs));
    }
    resident("connected");

    node.call("generateblock", json!(["raw(51)#8lvh9jxk", []])).await;
    let template = Arc::new(template_of(node).await);
    server.declarations.set_tip(&template);
    // Until the server has it, and has read the mempool again.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (before, cpu) = (server.forwarder.seen(), cpu_of(&server.name));
    let began = Instant::now();
    let mut answering = JoinSet::new();
    for mut declarer in declarers {
        let (token, outputs) = declarer.kept.take().expect("each has a token");
        let tag = declarer.tag.clone();
        let frame = declarer.declaration(&template, token, &outputs, tag.as_bytes());
        answering.spawn(async move {
            declarer.send_frame(&frame).await;
            let answer = declarer.next().await;
            (matches!(answer, Message::DeclareMiningJobSuccess(_)), began.elapsed(), declarer)
        });
    }
    let made = began.elapsed();
    let (mut last, mut acknowledged, mut done) = (Duration::ZERO, 0, Vec::new());
    while let Some(answer) = answering.join_next().await {
        let (is_success, at, declarer) = answer.expect("no client panics");
        acknowledged += usize::from(is_success);
        last = last.max(at);
        done.push(declarer);
    }
    let cpu = cpu_of(&server.name).saturating_sub(cpu).as_secs_f64();
    let seen = server.forwarder.seen();
    println!("  acknowledged: {acknowledged}; the last answer after {:.2} s", last.as_secs_f64());
    println!("  of which the clients' declarations were made in {:.2} s", made.as_secs_f64());
    let each = cpu * 1e6 / count as f64;
    println!("  processor time of the server: {cpu:.2} s, {each:.0} µs a declaration");
    let proposals = seen.long_requests - before.long_requests;
    println!("  validations by the node: {proposals}; waited for it: {:?}", seen.waited - before.waited);
    resident("after the last answer");
    println!("  most resident so far: {} MiB", status("VmHWM:") / 1024);
}

/// Processor time of the threads of this name that still run.
fn cpu_of(name: &str) -> Duration {
    let mut nanoseconds = 0;
    for task in std::fs::read_dir("/proc/self/task").expect("Linux").flatten() {
        let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        if read("comm").trim_end() == name {
            let used = read("schedstat");
            nanoseconds += used.split_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or(0);
        }
    }
    Duration::from_nanos(nanoseconds)
}

/// A figure of this process, KiB.
fn status(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("Linux says it");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
