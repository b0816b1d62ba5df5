//! The reference implementation's job declaration client mines for our pool: `jd_client_sv2` 0.6.0 on the farm's side,
//! `checkweigh pool` with its job declaration server on the pool's.
//!
//! Miners come to it through a proxy that knows nothing of job declaration: `checkweigh mining-proxy`, or `translator_sv2`.

use std::net::SocketAddr;

use checkweigh::shutdown::shutdown;
use tokio::process::Child;

use crate::bitcoin_node::wait_for_height;
use crate::farm::{Nodes, PAYOUT, SlowMiner, VARDIFF, counts, end, key, start_provider};
use crate::peer::{Peer, private_address};
use crate::translator::{DIFFICULTY_OF_THE_POOL, Translator, mine};

/// Practically every hash is a share to our pool. Their client gives miners the easiest target there is until it knows
/// their hash rate, and keeps what does not meet ours to itself, blocks of regtest included.
const EASIEST_SHARES: &str = "[vardiff]\nenabled = false\nminimum_difficulty = 0.00000000023283064365386963\n\
                              initial_difficulty = 0.00000000023283064365386963\n";

/// Our pool's process and where it is.
struct OurPool {
    process: Child,
    mining: SocketAddr,
    declaration: SocketAddr,
    metrics: SocketAddr,
}

impl OurPool {
    async fn start(nodes: &Nodes) -> Self {
        let config = format!(
            "[downstream]\nsv2_listen = \"127.0.0.1:0\"\nauthority_secret_key_file = \"authority.key\"\n\
             [node]\n{}[pool]\ncoinbase_script = \"{PAYOUT}\"\nshare_batch_size = 1\n\
             [job_declaration]\nlisten = \"127.0.0.1:0\"\n[metrics]\nlisten = \"127.0.0.1:0\"\n{EASIEST_SHARES}",
            nodes.pool.config_keys()
        );
        let mut pool = nodes.run("pool", &config);
        let declaration = pool.address("job declaration clients may connect").await;
        let mining = pool.address("SV2 miners may connect").await;
        let metrics = pool.address("metrics at /metrics").await;
        OurPool { process: pool.detach_log(), mining, declaration, metrics }
    }

    async fn counts_jobs(&self, state: &str, least: u64) {
        let series = format!("checkweigh_job_declaration_server_jobs_total{{state=\"{state}\"}}");
        counts(self.metrics, &series, least).await;
    }
}

/// How their client is told of the farm's node.
fn node_section(nodes: &Nodes) -> String {
    format!(
        "[template_provider_type.BitcoinCoreIpc]\nversion = 31\nnetwork = \"regtest\"\n\
         data_dir = \"{}\"\nfee_threshold = 100\nmin_interval = 1\n",
        nodes.farm.folder().display()
    )
}

fn client_config(listen: SocketAddr, pool: &OurPool, mode: &str, templates: &str) -> String {
    let (public, secret) = (key().public(), key().secret_text());
    let (mining, declaration) = (pool.mining, pool.declaration);
    format!(
        "listening_address = \"{listen}\"\nmax_supported_version = 2\nmin_supported_version = 2\n\
         authority_public_key = \"{public}\"\nauthority_secret_key = \"{secret}\"\n\
         cert_validity_sec = 3600\nshares_per_minute = 60.0\nshare_batch_size = 1\n\
         mode = \"{mode}\"\njdc_signature = \"farm\"\ncoinbase_reward_script = \"raw(5152)\"\n\
         [[upstreams]]\nauthority_pubkey = \"{public}\"\n\
         pool_address = \"{}\"\npool_port = {}\njds_address = \"{}\"\njds_port = {}\n\
         user_identity = \"account.farm\"\n{templates}",
        mining.ip(),
        mining.port(),
        declaration.ip(),
        declaration.port(),
    )
}

/// Starts their client and says where it is a pool to proxies.
async fn start_client(pool: &OurPool, mode: &str, templates: &str) -> (Peer, SocketAddr) {
    let listen = private_address();
    let mut client = Peer::start("jd_client_sv2", &client_config(listen, pool, mode, templates)).await;
    client.says("ready to accept connections", 1).await;
    (client, listen)
}

/// What their client may not say: it never leaves our pool, and nothing of it is refused but what is late.
fn is_complaint(line: &str) -> bool {
    let refused = ["DeclareMiningJobError(", "SetCustomMiningJobError(", "SubmitSharesError("];
    let late = ["stale-chain-tip", "stale-share"];
    let failed = ["panic", "fallback", "solo mining"];
    refused.iter().any(|text| line.contains(text)) && !late.iter().any(|text| line.contains(text))
        || failed.iter().any(|text| line.contains(text))
}

/// Starts a proxy of ours before their client, and says where miners connect.
async fn start_proxy(nodes: &Nodes, client: SocketAddr) -> (Child, SocketAddr) {
    let config = format!(
        "[downstream]\nsv1_listen = \"127.0.0.1:0\"\n\
         [[upstream]]\nurl = \"stratum2+tcp://{client}/{}\"\nuser_identity = \"farm.proxy\"\n{VARDIFF}",
        key().public()
    );
    let mut proxy = nodes.run("mining-proxy", &config);
    let server = proxy.address("SV1 miners may connect").await;
    (proxy.detach_log(), server)
}

/// Waits until blocks were found on jobs that their client declared, and our pool knows all of it.
async fn wait_for_blocks(nodes: &Nodes, pool: &OurPool) {
    wait_for_height(&nodes.farm, nodes.start + 2).await;
    pool.counts_jobs("acknowledged", 2).await;
    pool.counts_jobs("custom_taken", 2).await;
    counts(pool.metrics, "checkweigh_shares_accepted_total", 2).await;
    counts(pool.metrics, "checkweigh_job_declaration_server_solutions_total", 2).await;
}

/// Looks at what was found, when nobody mines any more.
async fn check_blocks(nodes: &Nodes) {
    nodes.check_block(nodes.start + 1).await;
    nodes.agree().await;
    assert!(nodes.saved("pool") >= 2, "the pool can make the blocks, and has them on its disk");
}

/// Our template provider, their client, our pool, our proxy. The tip moves under a job that the pool has taken.
#[tokio::test(flavor = "multi_thread")]
async fn the_reference_client_declares_templates_of_our_provider_to_our_pool() {
    let mut nodes = Nodes::start().await;
    let pool = OurPool::start(&nodes).await;
    let (provider, section) = start_provider(&nodes).await;
    let (mut client, listen) = start_client(&pool, "FULLTEMPLATE", &section).await;
    let (proxy, server) = start_proxy(&nodes, listen).await;
    client.says("Received: SetCustomMiningJobSuccess(", 1).await;
    nodes.move_tip().await;
    client.says("Received: SetCustomMiningJobSuccess(", 2).await;
    let miner = SlowMiner::start(server);
    wait_for_blocks(&nodes, &pool).await;
    miner.stop().await;
    check_blocks(&nodes).await;
    client.check(is_complaint);
    end([proxy]).await;
    client.stop().await;
    end([pool.process, provider]).await;
}

/// All of it theirs but the pool.
#[tokio::test(flavor = "multi_thread")]
async fn the_reference_client_declares_templates_of_its_node_to_our_pool() {
    let nodes = Nodes::start().await;
    let pool = OurPool::start(&nodes).await;
    let (client, listen) = start_client(&pool, "FULLTEMPLATE", &node_section(&nodes)).await;
    let translator = Translator::start("aggregate_channels = true", DIFFICULTY_OF_THE_POOL, listen).await;
    let (stop, end_of_mining) = shutdown();
    let miner = tokio::spawn(mine(1, translator.address, end_of_mining));
    wait_for_blocks(&nodes, &pool).await;
    stop.trigger();
    miner.await.expect("it does not panic");
    check_blocks(&nodes).await;
    client.check(is_complaint);
    translator.check();
    translator.stop().await;
    client.stop().await;
    end([pool.process]).await;
}

/// In this mode their client asks for a custom job only when there is a better template for the same tip: never for the
/// first template, nor for the first one of a new tip.
#[tokio::test(flavor = "multi_thread")]
async fn the_reference_client_shows_our_pool_its_coinbase_alone() {
    let mut nodes = Nodes::start().await;
    let pool = OurPool::start(&nodes).await;
    let (provider, section) = start_provider(&nodes).await;
    let (mut client, listen) = start_client(&pool, "COINBASEONLY", &section).await;
    let (proxy, server) = start_proxy(&nodes, listen).await;
    client.says("Extended mining channel successfully initialized", 1).await;
    nodes.raise_fees().await;
    client.says("Received: SetCustomMiningJobSuccess(", 1).await;

    let miner = SlowMiner::start(server);
    wait_for_height(&nodes.farm, nodes.start + 1).await;
    pool.counts_jobs("custom_taken", 1).await;
    counts(pool.metrics, "checkweigh_shares_accepted_total", 1).await;
    counts(pool.metrics, "checkweigh_blocks_found_total", 1).await;
    miner.stop().await;

    nodes.check_block(nodes.start + 1).await;
    nodes.agree().await;
    client.check(is_complaint);
    end([proxy]).await;
    client.stop().await;
    end([pool.process, provider]).await;
}
