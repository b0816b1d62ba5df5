//! A chain in this process, for demonstrations: it gives templates and takes blocks as a node does.
//!
//! Nothing here is simulated on the miners' side: blocks are assembled from real templates, hashed for real,
//! and judged by [`validator`], which shares no code with what assembles them. What is simulated is the rest
//! of the world: the tip that the chain starts from, the coins that its transactions spend, and their
//! signatures.
//!
//! A chain may have several nodes. They differ in the transactions that they have; a block that one of them takes is
//! the tip of all at the same moment, so that no two of them ever disagree. [`rpc`] serves a node as Bitcoin Core does.

pub mod mempool;
pub mod rpc;
pub mod validator;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bitcoin::BlockHash;
use bitcoin::hashes::Hash as _;
use bitcoin::pow::{CompactTarget, Target};
use stratum::hash::{Hash, sha256d};
use stratum::{Now, TemplateId};
use template::block_template::{displayed, witness_commitment};
use template::merkle::merkle_path;
use template::{BlockTemplate, TemplateTransaction};
use tokio::sync::watch;

use crate::clock::Clock;
use crate::node::SubmitOutcome;
use crate::shutdown::Shutdown;
use mempool::Mempool;
use validator::{ChainContext, Invalid};

/// The made-up tip that every chain starts on. A height of our days: heights, subsidies and scripts then have
/// the sizes that they have on the main chain, and the subsidy halves where it should.
pub const FIRST_TIP_HEIGHT: u32 = 900_000;

/// The blocks whose times decide the lowest time of the next block (consensus).
const MEDIAN_TIME_SPAN: usize = 11;

/// Hashes of accepted blocks that are remembered, to tell a block that is sent again from one that is stale.
const REMEMBERED_BLOCKS: usize = 1000;

/// The version of block headers: BIP 9 without any signal.
const BLOCK_VERSION: u32 = 0x2000_0000;

/// The subsidy of the first blocks; satoshis.
const FIRST_SUBSIDY: u64 = 50 * 100_000_000;

/// Blocks between two halvings of the subsidy.
const HALVING_INTERVAL: u32 = 210_000;

/// What a chain is made with.
#[derive(Clone, Copy, Debug)]
pub struct DevChainSettings {
    /// Decides the transactions, and the hash of the first tip.
    pub seed: u64,
    /// The compact target of the first blocks; [`nbits_for_hashes`] computes it.
    pub nbits: u32,
    /// How many transactions a template holds besides the coinbase.
    pub transactions: usize,
}

/// What happened on a chain so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevChainSummary {
    /// The height of the tip.
    pub height: u32,
    /// The tip, in internal byte order.
    pub tip: Hash,
    /// How many blocks were accepted.
    pub accepted: u64,
    /// How many were rejected, stale ones among them.
    pub rejected: u64,
    /// Why the last rejected one was.
    pub last_rejection: Option<String>,
}

/// A node of a development chain. Clones are the same node.
#[derive(Clone, Debug)]
pub struct DevChain {
    clock: Clock,
    node: Node,
    chain: Arc<Mutex<Chain>>,
}

/// What is a node's own.
#[derive(Clone, Debug)]
struct Node {
    templates: watch::Sender<Option<Arc<BlockTemplate>>>,
    transactions: Known,
}

/// The transactions that a node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// All of the chain's.
    All,
    /// Those that its neighbour passed on.
    Relayed,
}

/// Locked for microseconds at a time, once per block or fresh template: never on the path of a share.
#[derive(Debug)]
struct Chain {
    height: u32,
    tip: Hash,
    /// The compact target of the block after the tip.
    nbits: u32,
    /// The compact target of the blocks after that one.
    later_nbits: u32,
    transactions: usize,
    mempool: Mempool,
    /// Everybody who mines on this chain: one, and as many as were asked for.
    nodes: Vec<Node>,
    /// The times of the newest blocks, oldest first; at most [`MEDIAN_TIME_SPAN`].
    times: VecDeque<u32>,
    /// The newest accepted blocks, oldest first; at most [`REMEMBERED_BLOCKS`].
    known: VecDeque<Hash>,
    last_template: u64,
    accepted: u64,
    rejected: u64,
    last_rejection: Option<String>,
}

impl DevChain {
    /// A chain of which the first template is ready.
    pub fn new(settings: DevChainSettings, clock: Clock) -> Self {
        let now = clock.now();
        let mut chain = Chain {
            height: FIRST_TIP_HEIGHT,
            tip: sha256d(&settings.seed.to_le_bytes()),
            nbits: settings.nbits,
            later_nbits: settings.nbits,
            transactions: settings.transactions.min(mempool::MAX_TRANSACTIONS),
            mempool: Mempool::new(settings.seed),
            nodes: Vec::new(),
            times: VecDeque::from([now.unix_seconds().saturating_sub(600)]),
            known: VecDeque::new(),
            last_template: 0,
            accepted: 0,
            rejected: 0,
            last_rejection: None,
        };
        let node = chain.add_node(Known::All, now);
        DevChain { clock, node, chain: Arc::new(Mutex::new(chain)) }
    }

    /// Another node on the same chain, connected to this one: of every ten transactions it hears of about nine.
    pub fn neighbour(&self) -> DevChain {
        let node = self.lock().add_node(Known::Relayed, self.clock.now());
        DevChain { clock: self.clock, node, chain: Arc::clone(&self.chain) }
    }

    /// The node's newest template: always there, and new with every tip and every refresh.
    pub fn templates(&self) -> watch::Receiver<Option<Arc<BlockTemplate>>> {
        self.node.templates.subscribe()
    }

    /// Judges a block and, when it is valid, makes it the tip and publishes the next templates.
    pub fn submit(&self, block: &[u8]) -> SubmitOutcome {
        let now = self.clock.now();
        let mut chain = self.lock();
        let outcome = chain.submit(block, now);
        if outcome == SubmitOutcome::Accepted {
            // Published under the lock: templates must not overtake each other.
            chain.publish(now);
        }
        outcome
    }

    /// Judges everything of a block but its proof of work (BIP 23).
    pub fn propose(&self, block: &[u8]) -> Result<(), Invalid> {
        let now = self.clock.now();
        let chain = self.lock();
        validator::validate_proposal(block, &chain.context(now), |coin| chain.mempool.coin(coin)).map(|_| ())
    }

    /// Publishes fresh templates on the same tip, with one more transaction's fee and a later time.
    pub fn refresh(&self) {
        let mut chain = self.lock();
        chain.mempool.replace_oldest();
        chain.publish(self.clock.now());
    }

    /// The transactions that the node has and that wait for a block.
    fn waiting(&self) -> Vec<TemplateTransaction> {
        self.lock().known(self.node.transactions)
    }

    /// The time of the tip, and the median time of the newest blocks; unix seconds.
    fn times(&self) -> (u32, u32) {
        let chain = self.lock();
        (*chain.times.back().expect("the first tip has a time"), chain.median_time())
    }

    /// Sets the compact target of the blocks after the next one: the jobs of the current tip stay valid.
    pub fn set_nbits(&self, nbits: u32) {
        self.lock().later_nbits = nbits;
    }

    /// What happened so far.
    pub fn summary(&self) -> DevChainSummary {
        let chain = self.lock();
        DevChainSummary {
            height: chain.height,
            tip: chain.tip,
            accepted: chain.accepted,
            rejected: chain.rejected,
            last_rejection: chain.last_rejection.clone(),
        }
    }

    /// Refreshes the template at this interval until the end is asked for.
    pub async fn keep_fresh(self, interval: Duration, mut shutdown: Shutdown) {
        loop {
            tokio::select! {
                () = shutdown.requested() => return,
                () = tokio::time::sleep(interval) => self.refresh(),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Chain> {
        self.chain.lock().expect("nothing panics while it holds the development chain")
    }
}

impl Chain {
    fn add_node(&mut self, transactions: Known, now: Now) -> Node {
        let template = Arc::new(self.template(transactions, now));
        let node = Node { templates: watch::Sender::new(Some(template)), transactions };
        self.nodes.push(node.clone());
        node
    }

    /// Gives every node its next template.
    fn publish(&mut self, now: Now) {
        for node in self.nodes.clone() {
            let template = self.template(node.transactions, now);
            node.templates.send_replace(Some(Arc::new(template)));
        }
    }

    fn known(&self, transactions: Known) -> Vec<TemplateTransaction> {
        match transactions {
            Known::All => self.mempool.transactions(),
            Known::Relayed => self.mempool.relayed(),
        }
    }

    fn template(&mut self, transactions: Known, now: Now) -> BlockTemplate {
        self.mempool.fill(self.transactions);
        self.last_template += 1;
        let transactions = self.known(transactions);
        let txids: Vec<Hash> = transactions.iter().map(|transaction| transaction.txid).collect();
        let wtxids: Vec<Hash> = transactions.iter().map(|transaction| transaction.wtxid).collect();
        let fees: u64 = transactions.iter().map(|transaction| transaction.fee).sum();
        let height = self.height + 1;
        let min_ntime = self.median_time() + 1;
        BlockTemplate {
            id: TemplateId(self.last_template),
            height,
            previous_hash: self.tip,
            version: BLOCK_VERSION,
            nbits: self.nbits,
            min_ntime,
            current_time: now.unix_seconds().max(min_ntime),
            coinbase_value: (FIRST_SUBSIDY >> (height / HALVING_INTERVAL)) + fees,
            witness_commitment: Some(witness_commitment(&wtxids)),
            transactions,
            merkle_path: merkle_path(&txids),
            weight_limit: 4_000_000,
            sigop_limit: 80_000,
            long_poll_id: None,
            received: now,
        }
    }

    fn submit(&mut self, block: &[u8], now: Now) -> SubmitOutcome {
        if block.len() >= 80 && self.known.contains(&sha256d(&block[..80])) {
            return SubmitOutcome::AlreadyKnown;
        }
        match validator::validate(block, &self.context(now), |coin| self.mempool.coin(coin)) {
            Ok(valid) => {
                self.accept(valid);
                SubmitOutcome::Accepted
            }
            Err(Invalid { reason }) => {
                self.rejected += 1;
                self.last_rejection = Some(reason.to_owned());
                SubmitOutcome::Rejected(reason.to_owned())
            }
        }
    }

    fn context(&self, now: Now) -> ChainContext {
        ChainContext {
            previous: BlockHash::from_byte_array(self.tip),
            height: self.height + 1,
            nbits: CompactTarget::from_consensus(self.nbits),
            median_time: self.median_time(),
            now: now.unix_seconds(),
            halving_interval: HALVING_INTERVAL,
        }
    }

    fn accept(&mut self, block: validator::Valid) {
        self.height += 1;
        self.tip = block.hash.to_byte_array();
        self.nbits = self.later_nbits;
        self.accepted += 1;
        self.mempool.remove(&block.transactions);
        push_bounded(&mut self.times, block.time, MEDIAN_TIME_SPAN);
        push_bounded(&mut self.known, self.tip, REMEMBERED_BLOCKS);
        tracing::debug!(
            height = self.height,
            hash = displayed(&self.tip),
            "the development chain has a new tip"
        );
    }

    fn median_time(&self) -> u32 {
        let mut times: Vec<u32> = self.times.iter().copied().collect();
        times.sort_unstable();
        times[times.len() / 2]
    }
}

/// What is oldest goes when there is no room.
fn push_bounded<T>(queue: &mut VecDeque<T>, item: T, limit: usize) {
    if queue.len() == limit {
        queue.pop_front();
    }
    queue.push_back(item);
}

/// The compact target at which about one of `hashes` hashes is a block; at least 2, the easiest of regtest.
/// Exact to 16 bits.
pub fn nbits_for_hashes(hashes: u64) -> u32 {
    let divisor = u128::from(hashes.max(2));
    // Long division of 2^256 - 1, 32 bits at a time, most significant first.
    let mut bytes = [0; 32];
    let mut remainder = 0u128;
    for digits in bytes.chunks_exact_mut(4) {
        let dividend = remainder << 32 | u128::from(u32::MAX);
        digits.copy_from_slice(&((dividend / divisor) as u32).to_be_bytes());
        remainder = dividend % divisor;
    }
    Target::from_be_bytes(bytes).to_compact_lossy().to_consensus()
}

#[cfg(test)]
mod tests;
