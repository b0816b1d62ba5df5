//! Templates keep coming: at a new tip, at a refresh, and after the node was away.

use super::*;
use crate::node::fake::{Answer, FakeNode, empty_template};
use crate::node::source::{SourceKind, SourceStatus, template_source};
use crate::shutdown::{ShutdownTrigger, shutdown};
use serde_json::Value;
use std::sync::atomic::{AtomicU32, Ordering};
use template::PublishPolicy;
use tokio::task::JoinHandle;

struct Running {
    status: Arc<SourceStatus>,
    templates: watch::Receiver<Option<Arc<BlockTemplate>>>,
    trigger: ShutdownTrigger,
    task: JoinHandle<()>,
}

fn run(client: NodeClient, refresh: Duration) -> Running {
    run_with(client, RpcSourceSettings { poll: refresh, empty_first: true, announced: None })
}

fn run_with(client: NodeClient, settings: RpcSourceSettings) -> Running {
    let policy = PublishPolicy { min_gain: 0, min_interval: Duration::ZERO };
    let (outlet, handle) = template_source(SourceKind::Rpc, policy, Clock::start());
    let (trigger, waits) = shutdown();
    let task = tokio::spawn(run_rpc_source(Arc::new(client), settings, outlet, waits));
    Running { templates: handle.templates(), status: Arc::clone(handle.status()), trigger, task }
}

impl Running {
    async fn height(&mut self, height: u32) -> Arc<BlockTemplate> {
        let is_there =
            |template: &Option<Arc<BlockTemplate>>| template.as_ref().is_some_and(|it| it.height == height);
        let found = tokio::time::timeout(Duration::from_secs(20), self.templates.wait_for(is_there)).await;
        found.expect("in time").expect("still running").clone().expect("there is one")
    }

    async fn stop(self) {
        self.trigger.trigger();
        tokio::time::timeout(Duration::from_secs(5), self.task).await.expect("in time").expect("no panic");
    }
}

/// A node that knows nothing but templates.
async fn start(behaviour: impl Fn(&Value) -> Answer + Send + Sync + 'static) -> FakeNode {
    FakeNode::start(move |method, params| match method {
        "getblocktemplate" => behaviour(params),
        _ => Answer::Error(-32601, "Method not found"),
    })
    .await
}

const NO_REFRESH: Duration = Duration::from_secs(3600);

fn is_long_poll(params: &Value) -> bool {
    params[0]["longpollid"].is_string()
}

#[tokio::test]
async fn a_long_poll_brings_the_next_tip() {
    let polls = AtomicU32::new(0);
    let node = start(move |params| {
        if !is_long_poll(params) {
            return Answer::Result(empty_template(1, 1, "1"));
        }
        match polls.fetch_add(1, Ordering::Relaxed) {
            0 => Answer::Result(empty_template(2, 2, "2")),
            _ => Answer::Never,
        }
    })
    .await;
    let mut running = run(node.client(), NO_REFRESH);
    let second = running.height(2).await;
    assert_eq!(second.previous_hash, [2; 32]);
    running.stop().await;
}

#[tokio::test]
async fn a_silent_long_poll_does_not_stop_refreshes_and_is_not_repeated() {
    let asks = AtomicU32::new(0);
    let polls = Arc::new(AtomicU32::new(0));
    let counted = polls.clone();
    let node = start(move |params| {
        if is_long_poll(params) {
            counted.fetch_add(1, Ordering::Relaxed);
            return Answer::Never;
        }
        let height = 1 + asks.fetch_add(1, Ordering::Relaxed);
        Answer::Result(empty_template(height, height as u8, "1"))
    })
    .await;
    let mut running = run(node.client(), Duration::from_millis(10));
    running.height(6).await;
    assert_eq!(polls.load(Ordering::Relaxed), 1);
    running.stop().await;
}

#[tokio::test]
async fn a_node_that_returns_is_found_and_the_last_template_stays_meanwhile() {
    let refusals = AtomicU32::new(0);
    let node = start(move |params| match refusals.load(Ordering::Relaxed) {
        0 if !is_long_poll(params) => Answer::Result(empty_template(1, 1, "1")),
        0..=2 => {
            refusals.fetch_add(1, Ordering::Relaxed);
            Answer::Error(-9, "Bitcoin Core is not connected!")
        }
        _ if is_long_poll(params) => Answer::Never,
        _ => Answer::Result(empty_template(9, 9, "9")),
    })
    .await;
    let mut running = run(node.client(), NO_REFRESH);
    running.height(1).await;
    assert!(running.status.is_live());
    // Three failures later there is a template again; the first one was there until then.
    running.height(9).await;
    let figures = running.status.figures();
    assert_eq!((figures.is_live, figures.height, figures.new_tips), (true, 9, 2));
    assert!(figures.failures >= 1);
    running.stop().await;
}

#[tokio::test]
async fn templates_have_growing_ids() {
    // Each pays more than the one before: others are not published.
    let asks = AtomicU32::new(0);
    let node = start(move |_| {
        let mut template = empty_template(1, 1, "1");
        template["coinbasevalue"] =
            (5_000_000_000u64 + u64::from(asks.fetch_add(1, Ordering::Relaxed))).into();
        Answer::Result(template)
    })
    .await;
    let mut running = run(node.client(), NO_REFRESH);
    let mut last = running.height(1).await.id;
    for _ in 0..3 {
        let changed = tokio::time::timeout(Duration::from_secs(20), running.templates.changed()).await;
        changed.expect("in time").expect("still running");
        let id = running.templates.borrow_and_update().clone().expect("there is one").id;
        assert!(id > last);
        last = id;
    }
    running.stop().await;
}

/// The node announces a block and has not made its template yet: miners get an empty one meanwhile.
#[tokio::test]
async fn an_announced_tip_gives_an_empty_template_until_the_full_one_is_there() {
    let node = FakeNode::start(|method, params| match method {
        "getblocktemplate" if is_long_poll(params) => Answer::Never,
        "getblocktemplate" => Answer::Result(empty_template(1, 1, "1")),
        "getblockchaininfo" => Answer::Result(serde_json::json!({
            "chain": "regtest", "blocks": 0, "bestblockhash": "00", "initialblockdownload": false,
        })),
        "getblockheader" => Answer::Result(serde_json::json!({
            "hash": params[0], "confirmations": 1, "height": 1, "bits": "207fffff", "time": 1_700_000_050,
            "mediantime": 1_700_000_000, "previousblockhash": hex::encode([1; 32]),
        })),
        _ => Answer::Error(-32601, "Method not found"),
    })
    .await;
    let (announce, announced) = watch::channel(None);
    let settings = RpcSourceSettings { poll: NO_REFRESH, empty_first: true, announced: Some(announced) };
    let mut running = run_with(node.client(), settings);
    running.height(1).await;
    announce.send_replace(Some([2; 32]));
    let empty = running.height(2).await;
    assert_eq!((empty.previous_hash, empty.transactions.len()), ([2; 32], 0));
    let figures = running.status.figures();
    assert_eq!((figures.empty_first, figures.block_notices, figures.new_tips), (1, 1, 2));
    running.stop().await;
}
