//! Takes found blocks to the node, and to the disk at the same moment.
//!
//! This module never changes a block and never waits for the disk before the node has it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use template::block_template::displayed;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use super::SubmitOutcome;
use super::client::{NodeClient, SubmitAnswer};
use super::error::NodeError;
use super::source::rpc::jittered;

/// The wait after the first attempt that failed; doubled after each further one.
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);

/// The longest wait between two attempts: another miner's block may come at any time.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(2);

/// Most attempts for one block; with the waits above they last longer than [`DEFAULT_DEADLINE`] allows.
const MAX_ATTEMPTS: u32 = 60;

/// After this long a block that the node never saw is most likely stale. It is on the disk still.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(120);

/// What Bitcoin Core says of a valid block that is not on its best chain (BIP 22).
const LOST_RACE: &str = "inconclusive";

/// How blocks are submitted.
#[derive(Clone, Debug)]
pub struct SubmitterSettings {
    /// The folder that found blocks are written to; it is made when it is missing.
    pub directory: PathBuf,
    /// For how long attempts that got no judgement are repeated.
    pub deadline: Duration,
}

/// Submits blocks to one node.
#[derive(Debug)]
pub struct BlockSubmitter {
    client: Arc<NodeClient>,
    settings: SubmitterSettings,
}

/// Ends when a block is on the disk, with its path, or with what prevented that (which is logged, too).
pub type SavedBlock = JoinHandle<std::io::Result<PathBuf>>;

/// What became of a block.
#[derive(Debug)]
pub struct SubmitReport {
    /// What the node says.
    pub outcome: SubmitOutcome,
    /// Ends when the block is on the disk.
    pub saved: SavedBlock,
}

impl BlockSubmitter {
    /// Submits to the node of `client`. Nothing happens before the first block.
    pub fn new(client: Arc<NodeClient>, settings: SubmitterSettings) -> Self {
        BlockSubmitter { client, settings }
    }

    /// Submits a block of this height, again and again until it is accepted, refused for good, or too old.
    /// Writes its hexadecimal to `HEIGHT-HASH.block` meanwhile.
    ///
    /// Panics when `block` is shorter than a header: it is one that we made.
    pub async fn submit(&self, height: u32, block: Vec<u8>) -> SubmitReport {
        let hash = displayed(&stratum::hash::sha256d(&block[..80]));
        let block: Arc<str> = hex::encode(block).into();
        let path = self.settings.directory.join(format!("{height}-{hash}.block"));
        let saved = tokio::spawn(save(path, block.clone()));
        let outcome = self.submit_until_judged(&block).await;
        match &outcome {
            SubmitOutcome::Accepted => info!(height, hash, "the node accepted our block"),
            SubmitOutcome::AlreadyKnown => info!(height, hash, "the node has our block"),
            SubmitOutcome::Rejected(reason) if reason == LOST_RACE => {
                warn!(height, hash, "our block is valid, but another one of its height came first");
            }
            SubmitOutcome::Rejected(reason) => error!(height, hash, reason, "the node rejected our block"),
            SubmitOutcome::Failed(reason) => error!(height, hash, reason, "the node never judged our block"),
        }
        SubmitReport { outcome, saved }
    }

    async fn submit_until_judged(&self, block: &str) -> SubmitOutcome {
        let last_moment = tokio::time::Instant::now() + self.settings.deadline;
        let mut back_off = FIRST_BACK_OFF;
        let mut last_failure = String::from("the time was over at once");
        for attempt in 1..=MAX_ATTEMPTS {
            match tokio::time::timeout_at(last_moment, self.client.submit_block_hex(block)).await {
                Ok(Ok(answer)) => return judged(answer),
                Ok(Err(failure)) if failure.is_final() => {
                    return SubmitOutcome::Rejected(failure.to_string());
                }
                Ok(Err(failure)) => last_failure = self.failed(attempt, &failure),
                Err(_) => return SubmitOutcome::Failed(last_failure),
            }
            let next = tokio::time::Instant::now() + jittered(back_off);
            if next >= last_moment {
                break;
            }
            tokio::time::sleep_until(next).await;
            back_off = (back_off * 2).min(LONGEST_BACK_OFF);
        }
        SubmitOutcome::Failed(last_failure)
    }

    fn failed(&self, attempt: u32, failure: &NodeError) -> String {
        warn!(node = self.client.url(), attempt, "a block could not be submitted: {failure}");
        failure.to_string()
    }
}

fn judged(answer: SubmitAnswer) -> SubmitOutcome {
    let rejected = |reason: &str| SubmitOutcome::Rejected(reason.to_owned());
    match answer {
        SubmitAnswer::Accepted => SubmitOutcome::Accepted,
        SubmitAnswer::Duplicate => SubmitOutcome::AlreadyKnown,
        SubmitAnswer::DuplicateInvalid => rejected("duplicate-invalid"),
        SubmitAnswer::DuplicateInconclusive => rejected("duplicate-inconclusive"),
        SubmitAnswer::Inconclusive => rejected("inconclusive"),
        SubmitAnswer::Rejected(reason) => rejected(&reason),
    }
}

async fn save(path: PathBuf, block: Arc<str>) -> std::io::Result<PathBuf> {
    match write(&path, &block).await {
        Ok(()) => Ok(path),
        Err(failure) => {
            error!(path = %path.display(), "a found block could not be written to the disk: {failure}");
            Err(failure)
        }
    }
}

async fn write(path: &Path, block: &str) -> std::io::Result<()> {
    if let Some(directory) = path.parent() {
        tokio::fs::create_dir_all(directory).await?;
    }
    let mut file = tokio::fs::File::create(path).await?;
    file.write_all(block.as_bytes()).await?;
    file.sync_all().await
}

#[cfg(test)]
mod tests;
