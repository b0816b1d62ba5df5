//! Bitcoin Core over its interprocess interface: templates, blocks and judgement, on a real node.

#[path = "support/bitcoin_node.rs"]
mod bitcoin_node;

use std::sync::Arc;
use std::time::Duration;

use bitcoin_node::{FEE, RegtestNode, block, with_nonce};
use checkweigh::clock::Clock;
use checkweigh::node::ipc::{IpcSourceSettings, start_ipc_node, start_ipc_source};
use checkweigh::node::judge::OTHER_TIP;
use checkweigh::node::source::SourceFigures;
use checkweigh::node::{
    BlockJudge, BlockSource, BlockSubmitter, SourceKind, SourcePath, SubmitOutcome, SubmitterSettings,
    template_source,
};
use checkweigh::shutdown::{ShutdownTrigger, shutdown};
use stratum::TemplateId;
use stratum::hash::sha256d;
use template::block_template::displayed;
use template::{BlockTemplate, CoinbaseConstraints, PublishPolicy};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

/// Far more than a node needs for anything here.
const DEADLINE: Duration = Duration::from_secs(60);

/// Whatever pays more is published at once.
const EAGER: PublishPolicy = PublishPolicy { min_gain: 1, min_interval: Duration::ZERO };

/// Never, for these tests.
const LATER: Duration = Duration::from_secs(3600);

async fn node() -> RegtestNode {
    RegtestNode::start_with(&["-ipcbind=unix"]).await
}

async fn template_over_rpc(node: &RegtestNode) -> BlockTemplate {
    let template = node.client().block_template(TemplateId(1), None, &Clock::start()).await;
    template.expect("the node gives templates")
}

/// A source that has nothing but the socket.
struct Source {
    source: BlockSource,
    templates: watch::Receiver<Option<Arc<BlockTemplate>>>,
    directory: tempfile::TempDir,
    _trigger: ShutdownTrigger,
}

impl Source {
    fn start(node: &RegtestNode, fee_interval: Duration, empty_first: bool) -> Self {
        let (outlet, source) = template_source(SourceKind::Ipc, EAGER, Clock::start());
        let (trigger, waits) = shutdown();
        let (queue, blocks) = mpsc::channel(8);
        let socket = node.ipc_socket();
        let settings = IpcSourceSettings { socket, min_gain: 1, fee_interval, empty_first };
        start_ipc_source(settings, outlet, blocks, waits).expect("a thread starts");
        let directory = tempfile::tempdir().expect("a folder");
        let settings = SubmitterSettings { directory: directory.path().join("blocks"), deadline: DEADLINE };
        let path = SourcePath { blocks: queue, templates: source.templates() };
        let submitter = Arc::new(BlockSubmitter::through_source(None, path, settings));
        let templates = source.templates();
        Source { source: BlockSource::Node { source, submitter }, templates, directory, _trigger: trigger }
    }

    async fn wait_for(&mut self, is_it: impl Fn(&BlockTemplate) -> bool) -> Arc<BlockTemplate> {
        let found = self.templates.wait_for(|template| template.as_deref().is_some_and(&is_it));
        let found = timeout(DEADLINE, found).await;
        found.expect("in time").expect("the source runs").clone().expect("there is one")
    }

    fn figures(&self) -> SourceFigures {
        self.source.status().expect("a source").figures()
    }
}

#[tokio::test]
async fn a_template_says_what_that_of_getblocktemplate_says() {
    let mut node = node().await;
    node.fill_mempool(5).await;
    let mut source = Source::start(&node, LATER, true);
    let ours = source.wait_for(|template| template.transactions.len() == 5).await;
    let theirs = template_over_rpc(&node).await;
    // What is not said over IPC, and what is of the moment.
    let (min_ntime, current_time) = (ours.min_ntime, ours.current_time);
    assert!(current_time <= theirs.current_time && min_ntime == current_time - 600);
    let expected = BlockTemplate {
        id: ours.id,
        min_ntime,
        current_time,
        long_poll_id: None,
        received: ours.received,
        ..theirs
    };
    assert_eq!(ours.transactions, expected.transactions);
    assert_eq!(*ours, expected);
    assert_eq!(ours.fees(), 5 * FEE.to_sat());
    let figures = source.figures();
    assert!(figures.is_live && figures.kind == SourceKind::Ipc && figures.transactions == 5);
}

#[tokio::test]
async fn a_new_tip_brings_an_empty_template_and_then_the_full_one() {
    let mut node = node().await;
    node.fill_mempool(20).await;
    let mut source = Source::start(&node, LATER, true);
    let first = source.wait_for(|template| template.transactions.len() == 20).await;
    let empty = node.call("generateblock", serde_json::json!(["raw(51)#8lvh9jxk", []])).await;
    let full = source.wait_for(|it| it.height == first.height + 1 && it.transactions.len() == 20).await;
    assert_eq!(Some(displayed(&full.previous_hash).as_str()), empty["hash"].as_str());
    assert!(full.id > first.id);
    let figures = source.figures();
    assert_eq!((figures.new_tips, figures.empty_first, figures.block_notices), (2, 1, 1));
    assert_eq!(figures.published, 3, "the first, the empty one, and the full one");
    // A block on it is a block.
    let block = with_nonce(block(&full, 1), &full, true);
    assert_eq!(source.source.submit(full.height, block).await.0, SubmitOutcome::Accepted);
    assert_eq!(node.client().chain_info().await.expect("answers").blocks, full.height);
}

#[tokio::test]
async fn fees_bring_a_template_and_room_is_made() {
    let mut node = node().await;
    let spends = node.fill_mempool(3).await;
    let mut source = Source::start(&node, Duration::from_secs(1), true);
    source.wait_for(|template| template.transactions.len() == 3).await;
    let raw = hex::encode(bitcoin::consensus::serialize(&child(&spends[0])));
    node.call("sendrawtransaction", serde_json::json!([raw])).await;
    let with_child = source.wait_for(|template| template.transactions.len() == 4).await;
    let of_child = with_child.transactions.iter().find(|one| !one.depends.is_empty());
    let parent = of_child.expect("the child").depends[0] as usize;
    assert_eq!(
        displayed(&with_child.transactions[parent].txid),
        spends[0].transaction.compute_txid().to_string()
    );

    // So much room that no two transactions fit beside it: the node itself makes it.
    let size = (4_000_000 - 1_168 - 700) / 4;
    let room = CoinbaseConstraints { max_additional_size: size, max_additional_sigops: 4 };
    source.source.set_constraints(room);
    let small = source.wait_for(|template| template.transactions.len() < 3).await;
    let weight: u64 = small.transactions.iter().map(|transaction| transaction.weight).sum();
    assert!(weight + room.reserved_weight() <= small.weight_limit);
    assert_eq!(small.height, with_child.height);

    // More than any block has, and then none: the node is not asked for what it refuses.
    let all = CoinbaseConstraints { max_additional_size: u32::MAX, max_additional_sigops: u16::MAX };
    source.source.set_constraints(all);
    source.source.set_constraints(CoinbaseConstraints::default());
    source.wait_for(|template| template.transactions.len() == 4).await;
    assert_eq!(source.figures().failures, 0);
}

/// A transaction that spends one of the mempool's.
fn child(parent: &bitcoin_node::WitnessSpend) -> bitcoin::Transaction {
    let mut child = parent.transaction.clone();
    child.input[0].previous_output = bitcoin::OutPoint::new(parent.transaction.compute_txid(), 0);
    child.output[0].value -= FEE * 2;
    child
}

#[tokio::test]
async fn what_the_node_says_of_blocks_is_told() {
    let mut node = node().await;
    node.fill_mempool(2).await;
    let mut source = Source::start(&node, LATER, false);
    let template = source.wait_for(|template| template.transactions.len() == 2).await;
    let unsolved = with_nonce(block(&template, 1), &template, false);
    let (outcome, _) = source.source.submit(template.height, unsolved).await;
    assert_eq!(outcome, SubmitOutcome::Rejected("high-hash".to_owned()));
    let found = with_nonce(block(&template, 2), &template, true);
    let (outcome, saved) = source.source.submit(template.height, found.clone()).await;
    assert_eq!(outcome, SubmitOutcome::Accepted);
    assert_eq!(node.tip().await, displayed(&sha256d(&found[..80])));
    let path = saved.expect("written").await.expect("no panic").expect("on the disk");
    assert_eq!(std::fs::read_to_string(path).expect("on the disk"), hex::encode(&found));
    assert_eq!(source.source.submit(template.height, found).await.0, SubmitOutcome::AlreadyKnown);
    let late = with_nonce(block(&template, 3), &template, true);
    let (outcome, _) = source.source.submit(template.height, late).await;
    assert_eq!(outcome, SubmitOutcome::Rejected("inconclusive".to_owned()), "another one came first");
    assert!(source.directory.path().join("blocks").is_dir());
}

#[tokio::test]
async fn a_restarted_node_is_found_again_and_gets_what_was_found_meanwhile() {
    let mut node = node().await;
    node.generate(1).await;
    let mut source = Source::start(&node, LATER, true);
    let before = source.wait_for(|template| template.height == 2).await;
    node.stop().await;
    let last = source.templates.borrow().clone().expect("the last template stays");
    assert!(last.same_tip(&before));
    let block = with_nonce(block(&before, 3), &before, true);
    let hash = displayed(&sha256d(&block[..80]));
    let submission = {
        let source = source.source.clone();
        tokio::spawn(async move { source.submit(2, block).await })
    };
    node.start_again().await;
    let (outcome, _) = timeout(DEADLINE, submission).await.expect("in time").expect("no panic");
    assert_eq!(outcome, SubmitOutcome::Accepted);
    let after = source.wait_for(|template| template.height == 3).await;
    assert_eq!(displayed(&after.previous_hash), hash);
    let figures = source.figures();
    assert!(figures.is_live && figures.failures >= 1, "{figures:?}");
}

/// What waits at the node for us when we go must do it no harm, now or when it ends.
#[tokio::test]
async fn a_node_outlasts_those_who_come_and_go() {
    let mut node = node().await;
    node.fill_mempool(2).await;
    for _ in 0..10 {
        let mut source = Source::start(&node, Duration::from_secs(1), true);
        source.wait_for(|template| template.transactions.len() == 2).await;
    }
    node.generate(1).await;
    let mut source = Source::start(&node, LATER, true);
    source.wait_for(|template| template.transactions.is_empty()).await;
    let ended = timeout(DEADLINE / 2, node.stop()).await;
    assert!(ended.is_ok(), "it ends in order while somebody waits for its tip");
}

#[tokio::test]
async fn blocks_are_judged_as_in_a_proposal() {
    let mut node = node().await;
    node.fill_mempool(2).await;
    let (_trigger, end) = shutdown();
    let over_ipc = BlockJudge::Ipc(start_ipc_node(node.ipc_socket(), end).expect("a thread starts"));
    let template = template_over_rpc(&node).await;
    let sound = with_nonce(block(&template, 1), &template, false);
    assert_eq!(over_ipc.judge(sound.clone()).await.expect("answers"), None, "all but the proof of work");

    let greedy = BlockTemplate { coinbase_value: template.coinbase_value + 1, ..template.clone() };
    let rejection = over_ipc.judge(block(&greedy, 2)).await.expect("answers").expect("refused");
    assert_eq!(rejection.reason, "bad-cb-amount");
    assert!(rejection.details.contains("coinbase pays too much"), "{rejection:?}");
    let mut twice = template.clone();
    twice.transactions.push(twice.transactions[1].clone());
    let repeated = over_ipc.judge(block(&twice, 3)).await.expect("answers").expect("refused");
    assert_eq!(repeated.reason, "bad-txns-duplicate");

    node.restart().await;
    assert_eq!(over_ipc.judge(sound.clone()).await.expect("answers again"), None);
    node.generate(1).await;
    let stale = over_ipc.judge(sound.clone()).await.expect("answers").expect("refused");
    assert_eq!(stale.reason, OTHER_TIP);
    node.stop().await;
    let failure = over_ipc.judge(sound).await.expect_err("nobody is there");
    assert!(failure.to_string().contains("cannot be reached"), "{failure}");
}
