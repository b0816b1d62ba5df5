//! A farm and a pool, all of it ours and as processes: an SV1 miner, `checkweigh mining-proxy` on the farm's Bitcoin
//! Core, `checkweigh pool` with its job declaration server on the pool's, and both nodes connected. Both are configured as
//! the README says, with other ports and paths.
//!
//! On regtest practically every share is a block.

#[path = "support/bitcoin_node.rs"]
mod bitcoin_node;
#[path = "support/process.rs"]
mod process;
#[path = "support/readme.rs"]
mod readme;
#[path = "support/sv1_miner.rs"]
mod sv1_miner;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bitcoin::{Address, Amount, Network, ScriptBuf, Txid};
use bitcoin_node::{FEE, RegtestNode, block_of_height, two_nodes_with, wait_for_height};
use checkweigh::shutdown::{ShutdownTrigger, shutdown};
use process::{Checkweigh, make_key, pool_and_farm, terminate};
use readme::shown;
use serde_json::Value;
use sv1_miner::{Miner, MinerOptions};
use tokio::process::Child;

const DEADLINE: Duration = Duration::from_secs(120);

/// Transactions that only the farm's node has in its mempool, all with witnesses.
const TRANSACTIONS: u32 = 5;

/// What a block of the first halving period of regtest creates.
const SUBSIDY: Amount = Amount::from_sat(50 * 100_000_000);

/// Who the pool pays.
fn payout() -> Address {
    Address::p2wsh(ScriptBuf::from(vec![0x51, 0x75]).as_script(), Network::Regtest)
}

/// Who is paid when there is no pool: never, here.
fn nobody() -> Address {
    Address::p2wsh(ScriptBuf::from(vec![0x6a]).as_script(), Network::Regtest)
}

/// Where the README has a node, and its cookie.
const SHOWN_NODE: &str = "rpc_url = \"http://127.0.0.1:8332\"\ncookie_file = \"/var/lib/bitcoind/.cookie\"\n";

const VARDIFF: &str = "[vardiff]\nenabled = false\nminimum_difficulty = 0.00000095367431640625\n\
                       initial_difficulty = 0.00000095367431640625\n";

/// Where a farm's templates come from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Templates {
    Node,
    Provider,
    /// The pool's too, and its judgement.
    #[cfg(feature = "ipc")]
    Ipc,
}

impl Templates {
    fn are_over_ipc(self) -> bool {
        !matches!(self, Templates::Node | Templates::Provider)
    }
}

/// The keys of templates over IPC, under `section`.
fn over_ipc(section: &str, node: &RegtestNode) -> String {
    let socket = Value::from(node.ipc_socket().display().to_string());
    format!("[{section}]\nsource = \"ipc\"\nipc_socket = {socket}\n")
}

fn pool_config(node: &RegtestNode) -> String {
    let shown = shown(
        "pool.toml",
        &[
            (SHOWN_NODE, &node.config_keys()),
            ("0.0.0.0:3336", "127.0.0.1:0"),
            ("0.0.0.0:3337", "127.0.0.1:0"),
            ("bc1q...", &payout().to_string()),
        ],
    );
    format!("{shown}[metrics]\nlisten = \"127.0.0.1:0\"\n{VARDIFF}")
}

fn provider_config(node: &RegtestNode) -> String {
    format!(
        "[template_provider]\nlisten = \"127.0.0.1:0\"\nauthority_secret_key_file = \"authority.key\"\n\
         [node]\n{}",
        node.config_keys()
    )
}

/// `templates` is the section of that name.
fn proxy_config(
    (mining, declaration, key): (SocketAddr, SocketAddr, &str),
    node: &RegtestNode,
    mode: &str,
    templates: &str,
) -> String {
    let shown = shown(
        "mining-proxy.toml",
        &[
            (SHOWN_NODE, &node.config_keys()),
            ("0.0.0.0:3333", "127.0.0.1:0"),
            ("pool.example:3336/POOL_KEY", &format!("{mining}/{key}")),
            ("pool.example:3337/POOL_KEY", &format!("{declaration}/{key}")),
            ("mode = \"full-template\"", &format!("mode = \"{mode}\"")),
            // A block of anybody else's template would be no block of the farm's.
            ("pool_templates = true", "pool_templates = false"),
            ("bc1q...", &nobody().to_string()),
        ],
    );
    format!("{shown}{templates}{VARDIFF}")
}

fn address(line: &Value) -> SocketAddr {
    line["address"].as_str().and_then(|text| text.parse().ok()).expect("the line names an address")
}

/// A template provider on the farm's node, and what the proxy is told of it.
async fn start_provider(node: &RegtestNode, folder: &Path) -> (Child, String) {
    let folder = folder.join("provider");
    std::fs::create_dir(&folder).expect("the folder is ours");
    make_key(&folder);
    let mut provider = Checkweigh::start("template-provider", &provider_config(node), &folder);
    let line = provider.line("template clients may connect").await;
    let (address, key) = (address(&line), line["authority_key"].as_str().expect("a key"));
    let templates = format!(
        "[job_declaration.templates]\nsource = \"sv2\"\nsv2_url = \"stratum2+tcp://{address}/{key}\"\n"
    );
    (provider.detach_log(), templates)
}

/// A miner finds three blocks on jobs that the farm declared to the pool.
async fn blocks_of_the_farm_pay_the_pool(mode: &str, templates: Templates) {
    let extra: &[&str] = if templates.are_over_ipc() { &["-ipcbind=unix"] } else { &[] };
    let (mut farm, pool_node) = two_nodes_with(extra).await;
    let wanted = farm.fill_mempool(TRANSACTIONS).await;
    let start = farm.height().await;
    wait_for_height(&pool_node, start).await;
    let (folder, of_pool, of_farm) = pool_and_farm();

    let of_ipc = |section: &str, node: &RegtestNode| match templates.are_over_ipc() {
        true => over_ipc(section, node),
        false => String::new(),
    };
    let config = pool_config(&pool_node) + &of_ipc("templates", &pool_node);
    let mut pool = Checkweigh::start("pool", &config, &of_pool);
    let line = pool.line("job declaration clients may connect").await;
    let (declaration, key) = (address(&line), line["authority_key"].as_str().expect("a key").to_owned());
    let mining = pool.address("SV2 miners may connect").await;
    let metrics = pool.address("metrics at /metrics").await;
    let mut pool = pool.detach_log();
    let provider = match templates {
        Templates::Provider => Some(start_provider(&farm, folder.path()).await),
        _ => None,
    };
    let section = provider.as_ref().map(|(_, section)| section.clone());
    let section = section.unwrap_or_else(|| of_ipc("job_declaration.templates", &farm));
    let config = proxy_config((mining, declaration, &key), &farm, mode, &section);
    let mut proxy = Checkweigh::start("mining-proxy", &config, &of_farm);
    let server = proxy.address("SV1 miners may connect").await;
    let mut proxy = proxy.detach_log();
    let (stop_miner, end) = shutdown();
    let pause = Some(Duration::from_millis(300));
    let options = MinerOptions { server, user: "farm.rig".to_owned(), window: 1, pause };
    let mut miner = Miner::start(options, end);
    wait_for_height(&farm, start + 3).await;
    stop_miner.trigger();
    miner.stopped(DEADLINE).await;

    let found = block_of_height(&farm, start + 1).await;
    let theirs: BTreeSet<Txid> = found.txdata[1..].iter().map(bitcoin::Transaction::compute_txid).collect();
    let ours: BTreeSet<Txid> = wanted.iter().map(|spend| spend.transaction.compute_txid()).collect();
    assert_eq!(theirs, ours, "the block has what the farm's node chose");
    let payout = &found.txdata[0].output[0];
    assert_eq!(payout.script_pubkey, self::payout().script_pubkey());
    assert_eq!(payout.value, SUBSIDY + FEE * u64::from(TRANSACTIONS), "the pool has the whole reward");
    let height = farm.height().await;
    wait_for_height(&pool_node, height).await;
    assert_eq!(pool_node.tip().await, farm.tip().await, "both nodes end on one tip");
    let saved = |folder: &Path| std::fs::read_dir(folder.join("blocks")).map_or(0, Iterator::count);
    assert!(saved(&of_farm) >= 3, "every block is on the farm's disk");
    if mode == "full-template" {
        // The first can be found before its job is declared.
        assert!(saved(&of_pool) >= 2, "and on that of the pool, which can make it");
    }
    let page = reqwest::get(format!("http://{metrics}/metrics")).await.expect("served");
    let page = page.text().await.expect("text");
    let kind = if templates.are_over_ipc() { "ipc" } else { "rpc" };
    let live = format!("checkweigh_template_source_up{{source=\"{kind}\"}} 1");
    assert!(page.lines().any(|line| line == live), "{live} is not in\n{page}");
    let mut provider = provider.map(|(provider, _)| provider);
    for child in [&mut proxy, &mut pool].into_iter().chain(&mut provider) {
        let status = terminate(child, Duration::from_secs(5)).await;
        assert_eq!(status.code(), Some(0), "SIGTERM ends it in order");
    }
}

/// The pool with its job declaration server in another process; `mining` is where SV2 miners come in.
fn apart_pool_config(node: &RegtestNode, mining: &str) -> String {
    let here = "listen = \"127.0.0.1:0\"                      # where farms declare\n\
                modes = [\"full-template\", \"coinbase-only\"]   # without the second, farms must show their transactions\n";
    let config = pool_config(node);
    assert!(config.contains(here), "{config}");
    config.replace(here, "control_socket = \"pool.sock\"\n").replace(
        "sv2_listen = \"127.0.0.1:0\"",
        &format!("sv1_listen = \"127.0.0.1:0\"\nsv2_listen = \"{mining}\""),
    )
}

fn server_config(node: &RegtestNode, listen: &str) -> String {
    shown("jd-server.toml", &[(SHOWN_NODE, &node.config_keys()), ("0.0.0.0:3337", listen)])
}

fn start_miner(server: SocketAddr) -> (Miner, ShutdownTrigger) {
    let (stop, end) = shutdown();
    let pause = Some(Duration::from_millis(300));
    let options = MinerOptions { server, user: "farm.rig".to_owned(), window: 1, pause };
    (Miner::start(options, end), stop)
}

/// Waits until a job of the farm, declared to this server, has made a block that the pool's node has.
async fn a_declared_block(server: &mut Checkweigh, node: &RegtestNode) {
    let found = server.line("a job declaration client has found a block").await;
    let height = found["height"].as_u64().expect("a height") as u32;
    wait_for_height(node, height).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farm_declares_to_a_server_of_its_own_and_each_process_may_restart() {
    let (mut farm, pool_node) = two_nodes_with(&[]).await;
    let wanted = farm.fill_mempool(TRANSACTIONS).await;
    let start = farm.height().await;
    wait_for_height(&pool_node, start).await;
    let (_folder, of_pool, of_farm) = pool_and_farm();

    // The server is there first, and waits for its pool.
    let mut server = Checkweigh::start("jd-server", &server_config(&pool_node, "127.0.0.1:0"), &of_pool);
    server.line("it is dialled until it is there").await;
    let mut pool = Checkweigh::start("pool", &apart_pool_config(&pool_node, "127.0.0.1:0"), &of_pool);
    let at_pool = pool.address("SV1 miners may connect").await;
    let mining = pool.address("SV2 miners may connect").await;
    let line = server.line("job declaration clients may connect").await;
    let (declaration, key) = (address(&line), line["authority_key"].as_str().expect("a key").to_owned());
    server.line("the pool is there").await;
    let mut pool = pool.detach_log();
    let failover = "[failover]\nhold_down_s = 1\nlongest_hold_down_s = 2\nsteady_s = 1\n";
    let config = proxy_config((mining, declaration, &key), &farm, "full-template", failover);
    let mut proxy = Checkweigh::start("mining-proxy", &config, &of_farm);
    let at_farm = proxy.address("SV1 miners may connect").await;
    let mut proxy = proxy.detach_log();
    let (mut miner, stop_miner) = start_miner(at_farm);
    a_declared_block(&mut server, &pool_node).await;
    let found = block_of_height(&pool_node, start + 1).await;
    let theirs: BTreeSet<Txid> = found.txdata[1..].iter().map(bitcoin::Transaction::compute_txid).collect();
    let ours: BTreeSet<Txid> = wanted.iter().map(|spend| spend.transaction.compute_txid()).collect();
    assert_eq!(theirs, ours, "the block has what the farm's node chose");
    assert_eq!(found.txdata[0].output[0].script_pubkey, payout().script_pubkey());

    // Without its server the pool mines on for its own miners.
    let mut gone = server.detach_log();
    gone.kill().await.expect("it was ours to kill");
    let (mut other, stop_other) = start_miner(at_pool);
    let paid_to_pool = async {
        for height in pool_node.height().await + 1.. {
            wait_for_height(&pool_node, height).await;
            let tag = block_of_height(&pool_node, height).await.txdata[0].input[0].script_sig.clone();
            if tag.as_bytes().windows(6).any(|some| some == b"/pool/") {
                return;
            }
        }
    };
    tokio::time::timeout(DEADLINE, paid_to_pool).await.expect("the pool finds a block of its own");
    stop_other.trigger();
    other.stopped(DEADLINE).await;

    // The server is back, and then the pool is another one.
    let config = server_config(&pool_node, &declaration.to_string());
    let mut server = Checkweigh::start("jd-server", &config, &of_pool);
    a_declared_block(&mut server, &pool_node).await;
    assert_eq!(terminate(&mut pool, Duration::from_secs(5)).await.code(), Some(0), "it ends in order");
    server.line("the pool is gone").await;
    let pool = Checkweigh::start("pool", &apart_pool_config(&pool_node, &mining.to_string()), &of_pool);
    let mut pool = pool.detach_log();
    server.line("the pool is there").await;
    a_declared_block(&mut server, &pool_node).await;
    stop_miner.trigger();
    miner.stopped(DEADLINE).await;
    let mut server = server.detach_log();
    for child in [&mut proxy, &mut server, &mut pool] {
        let status = terminate(child, Duration::from_secs(5)).await;
        assert_eq!(status.code(), Some(0), "SIGTERM ends it in order");
    }
    assert!(!of_pool.join("pool.sock").exists(), "the socket goes with the pool");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farm_declares_its_blocks_to_our_pool_and_finds_them() {
    blocks_of_the_farm_pay_the_pool("full-template", Templates::Node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farm_takes_its_templates_from_a_provider_and_declares_them_to_our_pool() {
    blocks_of_the_farm_pay_the_pool("full-template", Templates::Provider).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farm_that_shows_its_coinbase_alone_finds_blocks_for_our_pool() {
    blocks_of_the_farm_pay_the_pool("coinbase-only", Templates::Node).await;
}

#[cfg(feature = "ipc")]
#[tokio::test(flavor = "multi_thread")]
async fn a_farm_and_a_pool_over_ipc_find_blocks_together() {
    blocks_of_the_farm_pay_the_pool("full-template", Templates::Ipc).await;
}
