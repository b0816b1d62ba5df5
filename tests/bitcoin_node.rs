//! What we build from a real Bitcoin Core's templates is what it accepts, and it may come and go.

#[path = "support/bitcoin_node.rs"]
mod bitcoin_node;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::consensus::{deserialize, serialize};
use bitcoin::hashes::Hash as _;
use bitcoin::{Amount, Block, BlockHash, CompactTarget, OutPoint, ScriptBuf, TxMerkleNode, Witness};
use bitcoin_node::{FEE, RegtestNode, WitnessSpend, block, with_nonce};
use checkweigh::clock::Clock;
use checkweigh::dev_chain::validator::{ChainContext, validate, validate_proposal};
use checkweigh::node::{
    BlockSource, BlockSubmitter, NodeClient, RpcSourceSettings, SourceKind, SubmitAnswer, SubmitOutcome,
    SubmitterSettings, default_policy, run_rpc_source, template_source,
};
use checkweigh::shutdown::{ShutdownTrigger, shutdown};
use stratum::TemplateId;
use stratum::hash::sha256d;
use template::BlockTemplate;
use template::block_template::displayed;
use tokio::sync::watch;
use tokio::time::timeout;

/// Far more than a node needs for anything here.
const DEADLINE: Duration = Duration::from_secs(60);

/// Blocks between two halvings in regtest.
const HALVING_INTERVAL: u32 = 150;

async fn newest_template(node: &RegtestNode) -> BlockTemplate {
    node.client()
        .block_template(TemplateId(1), None, &Clock::start())
        .await
        .expect("the node gives templates")
}

#[tokio::test]
async fn a_block_with_witnesses_becomes_the_tip() {
    let mut node = RegtestNode::start().await;
    let spends = node.fill_mempool(5).await;
    let template = newest_template(&node).await;
    assert_eq!(template.transactions.len(), 5);
    assert!(template.transactions.iter().all(|transaction| transaction.txid != transaction.wtxid));
    assert_eq!(template.fees(), 5 * FEE.to_sat());
    assert!(spends.iter().all(|spend| {
        let txid = spend.transaction.compute_txid().to_byte_array();
        template.transactions.iter().any(|transaction| transaction.txid == txid)
    }));

    let block = with_nonce(block(&template, 1), &template, true);
    let client = node.client();
    assert_eq!(client.submit_block(&block).await.expect("answers"), SubmitAnswer::Accepted);
    assert_eq!(node.tip().await, displayed(&sha256d(&block[..80])));
    assert_eq!(client.submit_block(&block).await.expect("answers"), SubmitAnswer::Duplicate);
    assert_eq!(newest_template(&node).await.height, template.height + 1);
}

#[tokio::test]
async fn the_first_blocks_of_a_chain_are_taken() {
    // Heights up to 16 are pushed with opcodes of their own, and 17 is the first that is not.
    let node = RegtestNode::start().await;
    for height in 1..=18 {
        let template = newest_template(&node).await;
        assert_eq!(template.height, height);
        let block = with_nonce(block(&template, 1), &template, true);
        assert_eq!(node.client().submit_block(&block).await.expect("answers"), SubmitAnswer::Accepted);
    }
    assert_eq!(node.height().await, 18);
}

struct Source {
    source: BlockSource,
    templates: watch::Receiver<Option<Arc<BlockTemplate>>>,
    trigger: ShutdownTrigger,
    task: tokio::task::JoinHandle<()>,
    directory: tempfile::TempDir,
}

impl Source {
    /// Never refreshes by itself: what comes is what the node announced.
    fn start(client: NodeClient) -> Self {
        let poll = Duration::from_secs(3600);
        Source::start_with(client, RpcSourceSettings { poll, ..RpcSourceSettings::default() })
    }

    fn start_with(client: NodeClient, settings: RpcSourceSettings) -> Self {
        let client = Arc::new(client);
        let (outlet, source) = template_source(SourceKind::Rpc, default_policy(), Clock::start());
        let (trigger, waits) = shutdown();
        let run = run_rpc_source(client.clone(), settings, outlet, waits);
        let directory = tempfile::tempdir().expect("a folder");
        let settings = SubmitterSettings { directory: directory.path().join("blocks"), deadline: DEADLINE };
        let submitter = Arc::new(BlockSubmitter::new(client, settings));
        let source = BlockSource::Node { source, submitter };
        Source { templates: source.templates(), source, trigger, task: tokio::spawn(run), directory }
    }

    async fn template_of_height(&mut self, height: u32) -> Arc<BlockTemplate> {
        let is_there =
            |template: &Option<Arc<BlockTemplate>>| template.as_ref().is_some_and(|it| it.height == height);
        let found = timeout(DEADLINE, self.templates.wait_for(is_there)).await;
        found.expect("in time").expect("the source runs").clone().expect("there is one")
    }

    async fn stop(self) {
        self.trigger.trigger();
        timeout(DEADLINE, self.task).await.expect("in time").expect("no panic");
    }
}

#[tokio::test]
async fn a_long_poll_wakes_on_a_new_tip() {
    let node = RegtestNode::start().await;
    node.generate(1).await;
    let mut source = Source::start(node.client());
    let first = source.template_of_height(2).await;
    let hash = node.generate(1).await.remove(0);
    let second = source.template_of_height(3).await;
    assert_eq!(displayed(&second.previous_hash), hash);
    assert!(!first.same_tip(&second));
    assert!(second.id > first.id);
    source.stop().await;
}

#[tokio::test]
async fn a_restarted_node_is_found_again() {
    let mut node = RegtestNode::start().await;
    node.generate(1).await;
    let mut source = Source::start(node.client());
    let before = source.template_of_height(2).await;
    let cookie = std::fs::read(node.cookie_file()).expect("there is a cookie");

    node.stop().await;
    let last = source.templates.borrow().clone().expect("the last template stays");
    assert!(last.same_tip(&before));
    // Found while the node is away: it is submitted until the node is back.
    let block = with_nonce(block(&before, 3), &before, true);
    let hash = displayed(&sha256d(&block[..80]));
    let submission = {
        let (source, block) = (source.source.clone(), block.clone());
        tokio::spawn(async move { source.submit(2, block).await })
    };
    node.start_again().await;
    assert_ne!(std::fs::read(node.cookie_file()).expect("there is a cookie"), cookie);
    let (outcome, _) = timeout(DEADLINE, submission).await.expect("in time").expect("no panic");
    assert_eq!(outcome, SubmitOutcome::Accepted);
    assert_eq!(node.tip().await, hash);
    let after = source.template_of_height(3).await;
    assert_eq!(displayed(&after.previous_hash), hash);

    let saved = source.directory.path().join("blocks").join(format!("2-{hash}.block"));
    assert_eq!(std::fs::read_to_string(saved).expect("on the disk"), hex::encode(block));
    source.stop().await;
}

/// What is published, one after the other, until there is a template of this height with transactions.
async fn published_until(source: &mut Source, height: u32) -> Vec<Arc<BlockTemplate>> {
    let mut seen = Vec::new();
    loop {
        timeout(DEADLINE, source.templates.changed()).await.expect("in time").expect("the source runs");
        let template = source.templates.borrow_and_update().clone().expect("there is one");
        let is_last = template.height == height && !template.transactions.is_empty();
        seen.push(template);
        if is_last {
            return seen;
        }
    }
}

/// A block empties the mempool only of what it holds: an empty one leaves all of it for the next template.
async fn empty_block(node: &RegtestNode) -> String {
    let answer = node.call("generateblock", serde_json::json!(["raw(51)#8lvh9jxk", []])).await;
    answer["hash"].as_str().expect("a hash").to_owned()
}

#[tokio::test]
async fn a_new_tip_brings_a_template_at_once_and_never_a_worse_one_after_it() {
    let mut node = RegtestNode::start().await;
    node.fill_mempool(20).await;
    let mut source = Source::start(node.client());
    let height = node.height().await + 1;
    published_until(&mut source, height).await;
    let tip = empty_block(&node).await;
    let seen = published_until(&mut source, height + 1).await;
    assert!(seen.iter().all(|template| displayed(&template.previous_hash) == tip));
    assert!(seen.len() <= 2 && seen.iter().rev().skip(1).all(|first| first.transactions.is_empty()));
    source.stop().await;
}

/// The empty first template is a whole one: it says what the node's own says, and a block that carries nothing is taken.
/// That the source publishes one is for its unit tests: here the full template can be faster.
#[tokio::test]
async fn a_block_on_an_empty_first_template_is_taken() {
    let mut node = RegtestNode::start().await;
    node.fill_mempool(3).await;
    let (announce, announced) = watch::channel(None);
    let settings =
        RpcSourceSettings { poll: Duration::from_secs(3600), empty_first: true, announced: Some(announced) };
    let before = newest_template(&node).await;
    let tip = empty_block(&node).await;
    let mut hash = [0; 32];
    hex::decode_to_slice(&tip, &mut hash).expect("a hash");
    hash.reverse();
    // The same two steps as the source takes them, so that the full template cannot be faster.
    let client = node.client();
    let header = client.block_header(&hash).await.expect("the node has it");
    assert_eq!((header.confirmations, header.height), (1, before.height));
    let tip = template::ValidatedTip {
        hash,
        height: header.height,
        nbits: header.nbits,
        time: header.time,
        median_time: header.median_time,
        period_start: None,
    };
    let now = Clock::start().now();
    let empty = tip.first_template(TemplateId(9), &before, bitcoin::Network::Regtest, now).expect("follows");
    let full = newest_template(&node).await;
    assert_eq!((empty.height, empty.nbits, empty.version), (full.height, full.nbits, full.version));
    assert_eq!((empty.min_ntime, empty.coinbase_value), (full.min_ntime, full.coinbase_value - full.fees()));

    let mut source = Source::start_with(node.client(), settings);
    source.template_of_height(full.height).await;
    let sound = with_nonce(block(&empty, 1), &empty, true);
    assert_eq!(client.submit_block(&sound).await.expect("answers"), SubmitAnswer::Accepted);
    announce.send_replace(Some(sha256d(&sound[..80])));
    source.template_of_height(full.height + 1).await;
    let figures = source.source.status().expect("a source").figures();
    assert!(figures.is_live && figures.block_notices <= 1);
    source.stop().await;
}

/// How a block can be broken.
type Fault = (&'static str, fn(&mut Block));

fn repair_root(block: &mut Block) {
    block.header.merkle_root = block.compute_merkle_root().expect("there are transactions");
}

/// Changes the coinbase and makes the merkle root fit again.
fn with_coinbase(block: &mut Block, change: impl Fn(&mut bitcoin::Transaction)) {
    change(&mut block.txdata[0]);
    repair_root(block);
}

const FAULTS: [Fault; 16] = [
    ("bad-txnmrklroot", |block| block.header.merkle_root = TxMerkleNode::all_zeros()),
    ("bad-witness-merkle-match", |block| {
        with_coinbase(block, |coinbase| {
            let commitment = coinbase.output.last_mut().expect("the commitment is the last output");
            let mut script = commitment.script_pubkey.to_bytes();
            script[20] ^= 1;
            commitment.script_pubkey = ScriptBuf::from(script);
        });
    }),
    ("bad-witness-merkle-match", |block| block.txdata[1].input[0].witness = Witness::from_slice(&[[0x52]])),
    ("bad-witness-nonce-size", |block| {
        block.txdata[0].input[0].witness = Witness::from_slice(&[[0; 31]]);
    }),
    ("unexpected-witness", |block| with_coinbase(block, |coinbase| drop(coinbase.output.pop()))),
    ("bad-cb-height", |block| {
        with_coinbase(block, |coinbase| {
            let mut script = coinbase.input[0].script_sig.to_bytes();
            script[1] ^= 1;
            coinbase.input[0].script_sig = ScriptBuf::from(script);
        });
    }),
    ("bad-cb-length", |block| {
        with_coinbase(block, |coinbase| coinbase.input[0].script_sig = ScriptBuf::from(vec![0; 101]));
    }),
    ("bad-cb-amount", |block| {
        with_coinbase(block, |coinbase| coinbase.output[0].value += Amount::ONE_SAT);
    }),
    ("bad-cb-missing", |block| {
        block.txdata.remove(0);
        repair_root(block);
    }),
    ("bad-cb-multiple", |block| {
        let mut second = block.txdata[0].clone();
        second.output[0].value = Amount::ONE_SAT;
        block.txdata.push(second);
        repair_root(block);
    }),
    ("bad-txns-duplicate", |block| {
        // The repeated end of a list with an odd number of transactions leaves the root as it was.
        block.txdata.push(block.txdata.last().expect("there are transactions").clone());
    }),
    ("bad-txns-nonfinal", |block| {
        let height = u32::try_from(block.bip34_block_height().expect("above 16")).expect("small");
        let lock_time = bitcoin::absolute::LockTime::from_consensus(height);
        with_coinbase(block, |coinbase| coinbase.lock_time = lock_time);
    }),
    ("time-too-old", |block| block.header.time = 1_300_000_000),
    ("time-too-new", |block| block.header.time += 2 * 60 * 60 + 600),
    ("bad-diffbits", |block| block.header.bits = CompactTarget::from_consensus(0x207f_fffe)),
    ("inconclusive-not-best-prevblk", |block| block.header.prev_blockhash = BlockHash::all_zeros()),
];

/// What our validator needs to know about the chain, from the template and from what we funded.
fn context(template: &BlockTemplate) -> ChainContext {
    ChainContext {
        previous: BlockHash::from_byte_array(template.previous_hash),
        height: template.height,
        nbits: CompactTarget::from_consensus(template.nbits),
        median_time: template.min_ntime - 1,
        now: template.current_time,
        halving_interval: HALVING_INTERVAL,
    }
}

fn coins(spends: &[WitnessSpend]) -> HashMap<OutPoint, Amount> {
    spends.iter().map(|spend| (spend.spends, spend.value)).collect()
}

#[tokio::test]
async fn our_validator_and_bitcoin_core_agree() {
    let mut node = RegtestNode::start().await;
    let coins = coins(&node.fill_mempool(4).await);
    let coin = |outpoint: &OutPoint| coins.get(outpoint).copied();
    let template = newest_template(&node).await;
    assert_eq!(template.transactions.len(), 4);
    let context = context(&template);
    let client = node.client();

    for (number, (reason, fault)) in (0u8..).zip(FAULTS) {
        // Each has a header of its own: a node remembers what it was shown.
        let mut broken: Block = deserialize(&block(&template, number)).expect("is a block");
        fault(&mut broken);
        let broken = serialize(&broken);
        let ours = validate_proposal(&broken, &context, coin).expect_err(reason).reason;
        let theirs = client.propose_block(&broken).await.expect("answers");
        assert_eq!((ours, theirs.as_deref()), (reason, Some(reason)), "as a proposal");

        let broken = with_nonce(broken, &template, true);
        assert_eq!(validate(&broken, &context, coin).expect_err(reason).reason, reason);
        let submitted = client.submit_block(&broken).await.expect("answers");
        if reason != "inconclusive-not-best-prevblk" {
            assert_eq!(submitted, SubmitAnswer::Rejected(reason.to_owned()));
        }
        assert_ne!(submitted, SubmitAnswer::Accepted, "{reason}");
    }

    // A sound block that is not solved is a good proposal, and nothing else.
    let unsolved = (1..)
        .map(|extranonce| block(&template, extranonce))
        .find(|candidate| !template.network_target().is_met_by(&sha256d(&candidate[..80])));
    let unsolved = unsolved.expect("every other one");
    assert_eq!(client.propose_block(&unsolved).await.expect("answers"), None);
    assert!(validate_proposal(&unsolved, &context, coin).is_ok());
    assert_eq!(validate(&unsolved, &context, coin).expect_err("unsolved").reason, "high-hash");
    let refused = SubmitAnswer::Rejected("high-hash".to_owned());
    assert_eq!(client.submit_block(&unsolved).await.expect("answers"), refused);

    let sound = with_nonce(block(&template, 99), &template, true);
    let valid = validate(&sound, &context, coin).expect("is valid");
    assert_eq!(valid.transactions.len(), 5);
    assert_eq!(client.submit_block(&sound).await.expect("answers"), SubmitAnswer::Accepted);
    assert_eq!(node.tip().await, valid.hash.to_string());
}
