//! Which transactions our node has, by their hashes with witness: clients name transactions so, and Bitcoin Core does
//! not, but for its interprocess interface from version 32.
//!
//! What is not found here is asked of the client. This module never judges a transaction.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Deserialize;
use stratum::hash::Hash;
use template::RawTransaction;
use template::block_template::{MAX_TRANSACTION_BYTES, displayed};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::node::{BlockJudge, NodeClient, NodeError};

/// Transactions whose names are kept, of 64 bytes each: more than full mempools of 300 MB have had. Those beyond are
/// not known here.
const MAX_KNOWN: usize = 500_000;

/// Calls in one request to the node that names transactions.
const NAMES_AT_ONCE: usize = 1000;

/// New transactions that one refresh names: two seconds of a node's work. The rest comes with the next.
const MAX_NEW_NAMES: usize = 20_000;

/// Transactions that are fetched with one request: of 100 kB each, the most that nodes relay, their hexadecimal stays
/// within the longest answer that is read.
const FETCHED_AT_ONCE: usize = 100;

/// The mempool is not read more often than this for the sake of what is missing.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// A view of a node's mempool. Shared by look-ups, which take turns at it and so wait for one refresh together.
#[derive(Debug)]
pub(super) struct MempoolView {
    node: Arc<NodeClient>,
    names: Mutex<Names>,
    judge: BlockJudge,
    /// Whether the judge knows transactions by the names that clients use, as far as we know.
    is_asked_directly: AtomicBool,
}

/// The txid of each wtxid, both as nodes print them.
#[derive(Debug, Default)]
struct Names {
    txids: HashMap<String, String>,
    /// When clients last had it read: they must not keep the node busy.
    refreshed_for_missing: Option<Instant>,
}

#[derive(Deserialize)]
struct Entry {
    wtxid: String,
}

impl MempoolView {
    pub(super) fn new(node: Arc<NodeClient>, judge: BlockJudge) -> Self {
        let is_asked_directly = AtomicBool::new(judge.knows_transactions());
        MempoolView { node, names: Mutex::default(), judge, is_asked_directly }
    }

    /// Learns what came in and forgets what is gone. For each template of the pool, which are seconds apart.
    pub(super) async fn refresh(&self) {
        if !self.is_asked_directly.load(Ordering::Relaxed) {
            self.names.lock().await.refresh(&self.node).await;
        }
    }

    /// Fills what is `None` in `found`, in the order of `wtxids`, as far as the node has it. Stops where all together
    /// are more than fits in a block.
    pub(super) async fn look_up(&self, wtxids: &[Hash], found: &mut [Option<RawTransaction>]) {
        if self.is_asked_directly.load(Ordering::Relaxed) {
            match self.look_up_directly(wtxids, found).await {
                Ok(()) => return,
                Err(NodeError::Unknown { .. }) => self.is_asked_directly.store(false, Ordering::Relaxed),
                Err(error) => tracing::debug!("transactions are asked for over JSON-RPC: {error}"),
            }
        }
        self.look_up_by_names(wtxids, found).await;
    }

    async fn look_up_directly(
        &self,
        wtxids: &[Hash],
        found: &mut [Option<RawTransaction>],
    ) -> Result<(), NodeError> {
        let missing: Vec<usize> = (0..wtxids.len()).filter(|place| found[*place].is_none()).collect();
        let mut bytes: usize = found.iter().flatten().map(|transaction| transaction.raw.len()).sum();
        for places in missing.chunks(FETCHED_AT_ONCE) {
            let names = places.iter().map(|place| wtxids[*place]).collect();
            let fetched = self.judge.transactions(names).await?;
            for (place, raw) in places.iter().zip(fetched) {
                let transaction = raw.and_then(|raw| RawTransaction::parse(&raw).ok());
                let transaction = transaction.filter(|one| one.wtxid == wtxids[*place]);
                bytes += transaction.as_ref().map_or(0, |one| one.raw.len());
                if bytes > MAX_TRANSACTION_BYTES {
                    return Ok(());
                }
                found[*place] = transaction;
            }
        }
        Ok(())
    }

    async fn look_up_by_names(&self, wtxids: &[Hash], found: &mut [Option<RawTransaction>]) {
        let mut missing: Vec<(usize, String)> = Vec::new();
        {
            let mut names = self.names.lock().await;
            let is_missing = |names: &Names, place: usize| {
                found[place].is_none() && !names.txids.contains_key(&displayed(&wtxids[place]))
            };
            if (0..wtxids.len()).any(|place| is_missing(&names, place)) {
                names.refresh_for_missing(&self.node).await;
            }
            for (place, wtxid) in wtxids.iter().enumerate().filter(|(place, _)| found[*place].is_none()) {
                missing.extend(names.txids.get(&displayed(wtxid)).map(|txid| (place, txid.clone())));
            }
        }
        let mut bytes: usize = found.iter().flatten().map(|transaction| transaction.raw.len()).sum();
        for some in missing.chunks(FETCHED_AT_ONCE) {
            let params: Vec<_> = some.iter().map(|(_, txid)| serde_json::json!([txid, false])).collect();
            let fetched = match self.node.call_each::<String>("getrawtransaction", &params).await {
                Ok(fetched) => fetched,
                Err(error) => {
                    tracing::debug!("transactions are asked of the client: {error}");
                    return;
                }
            };
            for ((place, _), hexadecimal) in some.iter().zip(fetched) {
                let raw = hexadecimal.and_then(|text| hex::decode(text).ok());
                let transaction = raw.and_then(|raw| RawTransaction::parse(&raw).ok());
                // Another witness may have come for the same txid since the mempool was read.
                let transaction = transaction.filter(|one| one.wtxid == wtxids[*place]);
                bytes += transaction.as_ref().map_or(0, |one| one.raw.len());
                if bytes > MAX_TRANSACTION_BYTES {
                    return;
                }
                found[*place] = transaction;
            }
        }
    }
}

impl Names {
    async fn refresh_for_missing(&mut self, node: &NodeClient) {
        let now = Instant::now();
        if self.refreshed_for_missing.is_none_or(|last| last + REFRESH_INTERVAL <= now) {
            self.refreshed_for_missing = Some(now);
            self.refresh(node).await;
        }
    }

    async fn refresh(&mut self, node: &NodeClient) {
        if let Err(error) = self.read(node).await {
            tracing::debug!("the mempool cannot be read: {error}");
        }
    }

    async fn read(&mut self, node: &NodeClient) -> Result<(), NodeError> {
        let listed: Vec<String> = node.call("getrawmempool", serde_json::json!([false])).await?;
        let mut new: HashSet<String> = listed.into_iter().take(MAX_KNOWN).collect();
        self.txids.retain(|_, txid| new.remove(txid));
        let new: Vec<String> = new.into_iter().take(MAX_NEW_NAMES).collect();
        for some in new.chunks(NAMES_AT_ONCE) {
            let params: Vec<_> = some.iter().map(|txid| serde_json::json!([txid])).collect();
            let entries = node.call_each::<Entry>("getmempoolentry", &params).await?;
            for (txid, entry) in some.iter().zip(entries) {
                self.txids.extend(entry.map(|entry| (entry.wtxid, txid.clone())));
            }
        }
        Ok(())
    }
}
