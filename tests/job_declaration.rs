//! SV1 miners on a proxy that declares jobs of its own node to a pool, over real sockets; and every way down from
//! there, with the way back.

#[path = "support/declaring_pool.rs"]
mod declaring_pool;
#[path = "support/farm.rs"]
mod farm;
#[path = "support/sv1_miner.rs"]
mod sv1_miner;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bitcoin::ScriptBuf;
use checkweigh::config::{
    CoinbaseOutput, HttpConfig, JobDeclarationConfig, LogConfig, NodeConfig, ProxyConfig, TemplatesConfig,
    UpstreamConfig,
};
use checkweigh::dev_chain::DevChain;
use checkweigh::node::BlockSource;
use checkweigh::shutdown::{ShutdownTrigger, shutdown};
use declaring_pool::{DeclaringPool, Seen};
use farm::{DEADLINE, Running, chain, downstream, fixed, key, open_api, run_proxy};
use job_declarator::server::Mode;
use mining_proxy::Patience;
use serde_json::Value;
use stratum::Target;
use stratum::sv2::PoolUrl;
use sv1_miner::{Miner, MinerOptions};
use tokio::time::{Instant, interval};

const EXPONENT: i32 = -22;

/// No block is found with these.
const NO_BLOCKS: u64 = 1 << 40;

/// A block every few seconds: tokens are rationed.
const HASHES_PER_BLOCK: u64 = 200_000;

const MINERS: usize = 3;

const PATIENCE: Patience = Patience {
    hold_down: Duration::from_secs(1),
    longest_hold_down: Duration::from_secs(2),
    steady: Duration::from_secs(1),
    start_grace: Duration::from_secs(20),
};

/// Places of upstreams in a proxy with one pool, its own templates, and solo.
const DECLARED: usize = 0;
const TEMPLATES: usize = 1;
const SOLO: usize = 2;

fn url(address: SocketAddr) -> PoolUrl {
    PoolUrl { host: address.ip().to_string(), port: address.port(), authority: Some(key().public()) }
}

fn declaration(mode: Mode) -> JobDeclarationConfig {
    JobDeclarationConfig {
        templates: TemplatesConfig::default(),
        node: NodeConfig::from_url("http://nobody:nothing@127.0.0.1:1").expect("a URL"),
        mode,
        coinbase_tag: "/farm/".to_owned(),
        pool_templates: true,
        solo: Some(CoinbaseOutput::Script(ScriptBuf::from_bytes(vec![0x52]))),
        blocks_dir: "blocks".into(),
    }
}

fn start_proxy(pools: &[&DeclaringPool], declaration: JobDeclarationConfig, chain: &DevChain) -> Running {
    let upstreams = pools.iter().map(|pool| UpstreamConfig {
        url: url(pool.mining),
        user_identity: "account.farm".to_owned(),
        job_declaration_url: Some(url(pool.declaration)),
        forward_worker_names: false,
    });
    let config = ProxyConfig {
        downstream: downstream(),
        upstreams: upstreams.collect(),
        job_declaration: Some(declaration),
        patience: PATIENCE,
        aggregate: true,
        vardiff: fixed(EXPONENT),
        ledger: None,
        rules: Default::default(),
        metrics_listen: None,
        http: HttpConfig { api: Some(open_api()), max_device_series: 0 },
        log: LogConfig::default(),
    };
    run_proxy(&config, Some(BlockSource::Development(chain.clone())))
}

fn start_pool(chain: &DevChain) -> DeclaringPool {
    DeclaringPool::start(chain.templates(), Target::from_difficulty_exponent(EXPONENT))
}

fn start_miners(server: SocketAddr) -> (Vec<Miner>, ShutdownTrigger) {
    let (stop, end) = shutdown();
    let miners = (0..MINERS).map(|number| {
        let pause = Some(Duration::from_millis(10));
        let options = MinerOptions { server, user: format!("farm.m{number}"), window: 1, pause };
        Miner::start(options, end.clone())
    });
    (miners.collect(), stop)
}

/// Waits until something is so.
async fn wait_until<T: std::fmt::Debug>(
    what: &str,
    mut look: impl AsyncFnMut() -> T,
    is_met: impl Fn(&T) -> bool,
) -> T {
    let deadline = Instant::now() + DEADLINE;
    let mut poll = interval(Duration::from_millis(20));
    loop {
        let seen = look().await;
        if is_met(&seen) {
            return seen;
        }
        assert!(Instant::now() < deadline, "not in time: {what}; {seen:?}");
        poll.tick().await;
    }
}

async fn wait_for(pool: &DeclaringPool, what: &str, is_met: impl Fn(&Seen) -> bool) -> Seen {
    wait_until(what, async || pool.seen(), is_met).await
}

async fn upstreams(proxy: &Running) -> Value {
    let api = proxy.api.expect("it serves its API");
    let text = reqwest::get(format!("http://{api}/api/v1/upstreams")).await.expect("the API answers");
    serde_json::from_str(&text.text().await.expect("text")).expect("JSON")
}

/// Waits until work comes from one of the upstreams and it has taken shares since.
async fn wait_for_work(proxy: &Running, place: usize) -> Value {
    let acknowledged =
        |seen: &Value| seen["upstreams"][place]["shares"]["acknowledged"].as_u64().expect("a number");
    let serves = |seen: &Value| seen["upstreams"][place]["standing"] == "serving";
    let seen = wait_until("it serves", async || upstreams(proxy).await, serves).await;
    let before = acknowledged(&seen);
    let has_taken = |seen: &Value| serves(seen) && acknowledged(seen) >= before + 10;
    wait_until("it takes shares", async || upstreams(proxy).await, has_taken).await
}

/// One figure of the proxy's metrics page.
async fn metric(proxy: &Running, name: &str) -> f64 {
    let metrics = proxy.metrics.expect("it serves metrics");
    let page = reqwest::get(format!("http://{metrics}/metrics")).await.expect("the page is served");
    let page = page.text().await.expect("text");
    let line = page.lines().find(|line| line.starts_with(name) && line[name.len()..].starts_with(' '));
    let line = line.unwrap_or_else(|| panic!("no {name} in {page}"));
    line[name.len() + 1..].parse().expect("a number")
}

/// Ends the miners and the proxy, and checks what they say of the same shares.
async fn finish(proxy: Running, mut miners: Vec<Miner>, stop: ShutdownTrigger, pool: &DeclaringPool) {
    stop.trigger();
    let mut submitted = 0;
    for miner in &mut miners {
        let seen = miner.stopped(DEADLINE).await;
        assert_eq!((&seen.ended, &seen.wrong), (&None, &Vec::new()), "no connection is lost");
        submitted += seen.submitted;
    }
    let counts = &proxy.observed.counts;
    assert_eq!(counts.accepted.load(Ordering::Relaxed), MINERS as u64, "nobody had to come back");
    let totals = proxy
        .wait_for("every share has its record", |totals| {
            let answers = &totals.answers;
            totals.shares.submitted == submitted
                && answers.forwarded == answers.acknowledged + answers.refused + answers.lost_total()
        })
        .await;
    assert_eq!(totals.violation(), None);
    assert_eq!(pool.seen().wrong, [""; 0], "no share is sent for a job that the pool has not taken");
    proxy.stop().await;
}

async fn blocks_reach_the_node_and_the_pool(mode: Mode) {
    let chain = chain(HASHES_PER_BLOCK);
    let pool = start_pool(&chain);
    let proxy = start_proxy(&[&pool], declaration(mode), &chain);
    let (miners, stop) = start_miners(proxy.sv1);
    wait_for_work(&proxy, DECLARED).await;
    let chain_grows = async || chain.summary();
    let summary = wait_until("blocks", chain_grows, |summary| summary.accepted >= 3).await;
    assert!(summary.rejected <= summary.accepted, "what it does not take came late: {summary:?}");
    let is_full = mode == Mode::FullTemplate;
    wait_for(&pool, "blocks reach the pool", |seen| {
        seen.solved > 0 && (!is_full || seen.pushed > 0 && seen.asked_for_transactions > 0)
    })
    .await;
    let declared = metric(&proxy, "checkweigh_job_declaration_jobs_total{state=\"declared\"}").await;
    assert_eq!(declared > 0.0, is_full);
    assert!(metric(&proxy, "checkweigh_job_declaration_jobs_total{state=\"acknowledged\"}").await >= 1.0);
    assert!(metric(&proxy, "checkweigh_job_declaration_blocks_total{state=\"accepted\"}").await >= 3.0);
    let pushed = metric(&proxy, "checkweigh_job_declaration_solutions_pushed_total").await;
    assert_eq!(pushed > 0.0, is_full);
    finish(proxy, miners, stop, &pool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_of_declared_templates_reach_our_node_and_the_pool() {
    blocks_reach_the_node_and_the_pool(Mode::FullTemplate).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_of_jobs_that_show_the_coinbase_alone_reach_our_node() {
    blocks_reach_the_node_and_the_pool(Mode::CoinbaseOnly).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_wait_until_the_pool_has_taken_their_job() {
    let chain = chain(NO_BLOCKS);
    let pool = start_pool(&chain);
    pool.set(|manners| manners.holds_custom_jobs = true);
    let proxy = start_proxy(&[&pool], declaration(Mode::FullTemplate), &chain);
    let (mut miners, stop) = start_miners(proxy.sv1);
    let accepted = |seen: &sv1_miner::Seen| seen.accepted >= 5;
    miners[0].wait_for("shares are answered at once", DEADLINE, accepted).await;
    let held = async || metric(&proxy, "checkweigh_job_declaration_shares_held").await;
    wait_until("shares wait", held, |held| *held >= 5.0).await;
    assert_eq!(pool.seen().declared_shares, 0, "none is sent");
    let totals = proxy.wait_for("they are recorded", |totals| totals.shares.waiting() >= 5).await;
    assert_eq!((totals.shares.forwarded, totals.violation()), (0, None));
    pool.set(|manners| manners.holds_custom_jobs = false);
    wait_for(&pool, "they are sent then", |seen| seen.declared_shares >= 15).await;
    assert!(metric(&proxy, "checkweigh_job_declaration_held_shares_total{fate=\"released\"}").await >= 5.0);
    let totals = proxy.wait_for("they are released", |totals| totals.shares.waiting() == 0).await;
    assert!(totals.shares.released >= 5 && totals.shares.dropped_total() == 0, "{totals:?}");
    finish(proxy, miners, stop, &pool).await;
}

/// A pool with trouble of one kind; how work goes on; and the way back.
async fn goes_down_and_back(trouble: impl Fn(&mut DeclaringPool, bool), fallback: usize, reason: &str) {
    let chain = chain(NO_BLOCKS);
    let mut pool = start_pool(&chain);
    let proxy = start_proxy(&[&pool], declaration(Mode::FullTemplate), &chain);
    let (miners, stop) = start_miners(proxy.sv1);
    wait_for_work(&proxy, DECLARED).await;
    trouble(&mut pool, true);
    // What is wrong with jobs shows with the next one.
    chain.refresh();
    let seen = wait_for_work(&proxy, fallback).await;
    assert!(seen["switches"][reason].as_u64() >= Some(1), "{seen}");
    trouble(&mut pool, false);
    let seen = wait_for_work(&proxy, DECLARED).await;
    assert!(seen["switches"]["fail_back"].as_u64() >= Some(1), "{seen}");
    finish(proxy, miners, stop, &pool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declaration_server_that_is_gone_leads_to_the_pools_templates() {
    let trouble = |pool: &mut DeclaringPool, is_on| match is_on {
        true => pool.stop_declaring(),
        false => pool.start_declaring(),
    };
    goes_down_and_back(trouble, TEMPLATES, "connection_lost").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_declaration_leads_to_the_pools_templates() {
    let trouble = |pool: &mut DeclaringPool, is_on| pool.set(|it| it.refuses_declarations = is_on);
    goes_down_and_back(trouble, TEMPLATES, "declaration_refused").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declaration_that_nobody_answers_leads_to_the_pools_templates() {
    let trouble = |pool: &mut DeclaringPool, is_on| pool.set(|it| it.ignores_declarations = is_on);
    goes_down_and_back(trouble, TEMPLATES, "declaration_unanswered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_custom_job_that_nobody_answers_leads_to_the_pools_templates() {
    let trouble = |pool: &mut DeclaringPool, is_on| pool.set(|it| it.holds_custom_jobs = is_on);
    goes_down_and_back(trouble, TEMPLATES, "declaration_unanswered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_custom_job_leads_to_the_pools_templates() {
    let trouble = |pool: &mut DeclaringPool, is_on| pool.set(|it| it.refuses_custom_jobs = is_on);
    goes_down_and_back(trouble, TEMPLATES, "custom_job_refused").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_shares_of_jobs_that_were_taken_lead_to_the_pools_templates() {
    let trouble = |pool: &mut DeclaringPool, is_on| pool.set(|it| it.refuses_shares = is_on);
    goes_down_and_back(trouble, TEMPLATES, "shares_refused").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_gone_leads_to_solo_mining_on_our_own_templates() {
    let trouble = |pool: &mut DeclaringPool, is_on| match is_on {
        true => {
            pool.stop_mining();
            pool.stop_declaring();
        }
        false => {
            pool.start_mining();
            pool.start_declaring();
        }
    };
    goes_down_and_back(trouble, SOLO, "connection_lost").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_pool_and_its_declaration_server_come_before_all_else() {
    let chain = chain(NO_BLOCKS);
    let (mut first, second) = (start_pool(&chain), start_pool(&chain));
    let proxy = start_proxy(&[&first, &second], declaration(Mode::FullTemplate), &chain);
    let (miners, stop) = start_miners(proxy.sv1);
    wait_for_work(&proxy, 0).await;
    first.stop_mining();
    wait_for_work(&proxy, 1).await;
    assert!(second.seen().declared_shares >= 10);
    first.start_mining();
    wait_for_work(&proxy, 0).await;
    assert_eq!(second.seen().wrong, [""; 0]);
    finish(proxy, miners, stop, &first).await;
}

/// Solo mining finds blocks, too.
#[tokio::test(flavor = "multi_thread")]
async fn blocks_are_found_without_any_pool() {
    let chain = chain(HASHES_PER_BLOCK);
    let mut pool = start_pool(&chain);
    pool.stop_mining();
    pool.stop_declaring();
    let proxy = start_proxy(&[&pool], declaration(Mode::FullTemplate), &chain);
    let (miners, stop) = start_miners(proxy.sv1);
    wait_until("blocks", async || chain.summary(), |summary| summary.accepted >= 2).await;
    wait_for_work(&proxy, SOLO).await;
    finish(proxy, miners, stop, &pool).await;
}
