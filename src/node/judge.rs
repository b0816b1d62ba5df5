//! A node's judgement of a block that somebody may mine.
//!
//! Both ways to ask for it mean the same: everything but the proof of work, on the node's tip (BIP 23).

use std::sync::Arc;

use stratum::hash::Hash;

use super::client::NodeClient;
use super::error::NodeError;

/// What a node says of a block that builds on another tip than its own (BIP 22).
pub const OTHER_TIP: &str = "inconclusive-not-best-prevblk";

/// Why a block would not be valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The node's short reason (BIP 22).
    pub reason: String,
    /// What it says more; empty where it says no more.
    pub details: String,
}

/// Whoever judges blocks that somebody may mine. Cheap to clone.
#[derive(Clone, Debug)]
pub enum BlockJudge {
    /// `getblocktemplate` in proposal mode, over JSON-RPC.
    Rpc(Arc<NodeClient>),
    /// `checkBlock`, over the interprocess interface.
    #[cfg(feature = "ipc")]
    Ipc(super::ipc::IpcNode),
}

impl BlockJudge {
    /// What the node has against `block`; `None` when nothing.
    pub async fn judge(&self, block: Vec<u8>) -> Result<Option<Rejection>, NodeError> {
        match self {
            BlockJudge::Rpc(client) => {
                let reason = client.propose_block(&block).await?;
                Ok(reason.map(|reason| Rejection { reason, details: String::new() }))
            }
            #[cfg(feature = "ipc")]
            BlockJudge::Ipc(node) => node.judge(block).await,
        }
    }

    /// Whether it may know transactions by their hashes with witness.
    pub fn knows_transactions(&self) -> bool {
        !matches!(self, BlockJudge::Rpc(_))
    }

    /// The transactions of the mempool with these hashes with witness, in this order. The caller bounds how many. Where
    /// the node does not know how, the error is [`NodeError::Unknown`].
    pub async fn transactions(&self, wtxids: Vec<Hash>) -> Result<Vec<Option<Vec<u8>>>, NodeError> {
        match self {
            BlockJudge::Rpc(_) => {
                drop(wtxids);
                Err(NodeError::Unknown { method: "getTransactionsByWitnessID".to_owned() })
            }
            #[cfg(feature = "ipc")]
            BlockJudge::Ipc(node) => node.transactions(wtxids).await,
        }
    }
}
