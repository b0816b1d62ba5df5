//! Where templates come from and where blocks go: a Bitcoin Core node, or the development chain.
//!
//! [`BlockSource`] is the handle that everybody else holds. How templates reach it ([`source`]) is chosen in the
//! configuration, and nobody else can tell: a template is always whole, with its transactions.
//!
//! Nothing here decides what a block holds: `template` does. Versions and transports of nodes differ only
//! here.

pub mod client;
pub mod error;
#[cfg(test)]
mod fake;
#[cfg(feature = "ipc")]
pub mod ipc;
pub mod judge;
mod rpc;
pub mod source;
pub mod submitter;

use std::sync::Arc;

use template::{BlockTemplate, CoinbaseConstraints};
use tokio::sync::watch;

pub use client::{NodeAuth, NodeClient, NodeClientSettings, SubmitAnswer};
pub use error::NodeError;
pub use judge::{BlockJudge, Rejection};
pub use source::{
    RpcSourceSettings, SourceHandle, SourceKind, SourceStatus, TemplateOutlet, default_policy,
    run_rpc_source, run_sv2_source, template_source,
};
pub use submitter::{
    BlockSubmitter, SavedBlock, SourceBlock, SourcePath, SourceVerdict, SubmitReport, SubmitterSettings,
};

use crate::dev_chain::DevChain;

/// What became of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubmitOutcome {
    /// The block is the new tip.
    Accepted,
    /// The block had been accepted before: an earlier submission of it got through.
    AlreadyKnown,
    /// The block was judged and is not the new tip; the reason is the node's.
    Rejected(String),
    /// No judgement could be had in time; the reason is that of the last attempt.
    Failed(String),
}

impl SubmitOutcome {
    /// Whether the block is in the chain.
    pub fn is_accepted(&self) -> bool {
        matches!(self, SubmitOutcome::Accepted | SubmitOutcome::AlreadyKnown)
    }
}

/// One source of templates, which also takes the blocks made from them. Cheap to clone.
#[derive(Clone, Debug)]
pub enum BlockSource {
    /// A node, through the task of one of [`source`]'s kinds.
    Node {
        /// Its templates.
        source: SourceHandle,
        /// Takes blocks to the node and to the disk.
        submitter: Arc<BlockSubmitter>,
    },
    /// The development chain in this process.
    Development(DevChain),
}

impl BlockSource {
    /// The newest template; none before the first. It changes with every tip, and when it gains enough fees.
    pub fn templates(&self) -> watch::Receiver<Option<Arc<BlockTemplate>>> {
        match self {
            BlockSource::Node { source, .. } => source.templates(),
            BlockSource::Development(chain) => chain.templates(),
        }
    }

    /// Asks for room in the coinbase besides what the template itself puts there. The last call counts. The
    /// development chain always has room.
    pub fn set_constraints(&self, constraints: CoinbaseConstraints) {
        if let BlockSource::Node { source, .. } = self {
            source.set_constraints(constraints);
        }
    }

    /// The same, never for less room than before: for one of several users.
    pub fn raise_constraints(&self, constraints: CoinbaseConstraints) {
        if let BlockSource::Node { source, .. } = self {
            source.raise_constraints(constraints);
        }
    }

    /// What the source is doing; the development chain has nothing to tell.
    pub fn status(&self) -> Option<&Arc<SourceStatus>> {
        match self {
            BlockSource::Node { source, .. } => Some(source.status()),
            BlockSource::Development(_) => None,
        }
    }

    /// Whether templates come now. The last one stays published while they do not.
    pub fn is_live(&self) -> bool {
        self.status().is_none_or(|status| status.is_live())
    }

    /// Submits the block of this height and returns what became of it, and what ends when it is on the disk. Never
    /// waits for the disk. The development chain has none.
    pub async fn submit(&self, height: u32, block: Vec<u8>) -> (SubmitOutcome, Option<SavedBlock>) {
        match self {
            BlockSource::Node { submitter, .. } => {
                let SubmitReport { outcome, saved } = submitter.submit(height, block).await;
                (outcome, Some(saved))
            }
            BlockSource::Development(chain) => (chain.submit(&block), None),
        }
    }
}
