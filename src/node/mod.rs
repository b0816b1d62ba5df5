//! Where templates come from and where blocks go: a Bitcoin Core node over JSON-RPC, or the development
//! chain.
//!
//! Nothing here decides what a block holds: `template` does. Versions and transports of nodes differ only
//! here.

pub mod client;
pub mod error;
#[cfg(test)]
mod fake;
mod rpc;
pub mod submitter;
pub mod template_source;

use std::sync::Arc;

use template::BlockTemplate;
use tokio::sync::watch;

pub use client::{NodeAuth, NodeClient, NodeClientSettings, SubmitAnswer};
pub use error::NodeError;
pub use submitter::{BlockSubmitter, SavedBlock, SubmitReport, SubmitterSettings};
pub use template_source::{TemplateSourceSettings, run_template_source};

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
    /// A node; its templates come from a task that [`run_template_source`] runs.
    Node {
        /// The newest template of the node; none before the first.
        templates: watch::Receiver<Option<Arc<BlockTemplate>>>,
        /// Takes blocks to the node and to the disk.
        submitter: Arc<BlockSubmitter>,
    },
    /// The development chain in this process.
    Development(DevChain),
}

impl BlockSource {
    /// The newest template; none before the first. It changes with every tip, and with fresher transactions.
    pub fn templates(&self) -> watch::Receiver<Option<Arc<BlockTemplate>>> {
        match self {
            BlockSource::Node { templates, .. } => templates.clone(),
            BlockSource::Development(chain) => chain.templates(),
        }
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
