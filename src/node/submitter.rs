//! Takes found blocks to the node, and to the disk at the same moment.
//!
//! This module never changes a block and never waits for the disk before the node has it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use template::BlockTemplate;
use template::block_template::displayed;
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, oneshot, watch};
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

/// Blocks that wait for a source to take them. Several at once come only where blocks are as easy as on regtest; with
/// more, a block goes to the node alone.
pub const SOURCE_QUEUE: usize = 64;

/// A source that moves to our block takes it for the best. One that has not after this long probably lost it.
const SOURCE_DEADLINE: Duration = Duration::from_secs(30);

/// A block for a source of templates that takes blocks itself.
#[derive(Debug)]
pub struct SourceBlock {
    /// The whole block.
    pub bytes: Arc<[u8]>,
    /// What the source can say at once.
    pub answer: oneshot::Sender<SourceVerdict>,
}

/// What a source says of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceVerdict {
    /// It is on its way; the source never says more (SV2 7.7).
    Sent,
    /// The node judged it.
    Judged(SubmitAnswer),
    /// It could not be sent; why.
    NotSent(&'static str),
    /// It could not be sent now, and may be later; why.
    Away(&'static str),
}

/// The way to a node through the source of its templates.
#[derive(Clone, Debug)]
pub struct SourcePath {
    /// Takes the blocks.
    pub blocks: mpsc::Sender<SourceBlock>,
    /// Tells when the source's node has moved to one.
    pub templates: watch::Receiver<Option<Arc<BlockTemplate>>>,
}

/// Submits blocks to one node, by every way to it that there is.
#[derive(Debug)]
pub struct BlockSubmitter {
    client: Option<Arc<NodeClient>>,
    source: Option<SourcePath>,
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
        BlockSubmitter { client: Some(client), source: None, settings }
    }

    /// Submits through `source`, and to the node of `client` where there is one: then its judgement counts.
    pub fn through_source(
        client: Option<Arc<NodeClient>>,
        source: SourcePath,
        settings: SubmitterSettings,
    ) -> Self {
        BlockSubmitter { client, source: Some(source), settings }
    }

    /// Submits a block of this height, again and again until it is accepted, refused for good, or too old.
    /// Writes its hexadecimal to `HEIGHT-HASH.block` meanwhile.
    ///
    /// Panics when `block` is shorter than a header: it is one that we made.
    pub async fn submit(&self, height: u32, block: Vec<u8>) -> SubmitReport {
        let hash = displayed(&stratum::hash::sha256d(&block[..80]));
        let raw: Arc<[u8]> = block.into();
        let block: Arc<str> = hex::encode(&raw).into();
        let path = self.settings.directory.join(format!("{height}-{hash}.block"));
        let saved = tokio::spawn(save(path, block.clone()));
        let outcome = match (&self.client, &self.source) {
            (Some(client), None) => self.submit_until_judged(client, &block).await,
            (Some(client), Some(source)) => {
                let (outcome, by_source) =
                    tokio::join!(self.submit_until_judged(client, &block), submit_through(source, raw));
                let by_source = by_source.unwrap_or_else(SubmitOutcome::Failed);
                if by_source.is_accepted() && !outcome.is_accepted() { by_source } else { outcome }
            }
            (None, Some(source)) => self.submit_until_taken(source, &raw).await,
            (None, None) => SubmitOutcome::Failed("there is nowhere to submit blocks".to_owned()),
        };
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

    async fn submit_until_judged(&self, client: &NodeClient, block: &str) -> SubmitOutcome {
        let last_moment = tokio::time::Instant::now() + self.settings.deadline;
        let mut back_off = FIRST_BACK_OFF;
        let mut last_failure = String::from("the time was over at once");
        for attempt in 1..=MAX_ATTEMPTS {
            match tokio::time::timeout_at(last_moment, client.submit_block_hex(block)).await {
                Ok(Ok(answer)) => return judged(answer),
                Ok(Err(failure)) if failure.is_final() => {
                    return SubmitOutcome::Rejected(failure.to_string());
                }
                Ok(Err(failure)) => last_failure = failed(client, attempt, &failure),
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

    /// Submits through the source alone, which may be away.
    async fn submit_until_taken(&self, source: &SourcePath, block: &Arc<[u8]>) -> SubmitOutcome {
        let last_moment = tokio::time::Instant::now() + self.settings.deadline;
        let mut back_off = FIRST_BACK_OFF;
        let mut attempt = 1;
        loop {
            let reason = match submit_through(source, Arc::clone(block)).await {
                Ok(outcome) => return outcome,
                Err(reason) => reason,
            };
            warn!(attempt, "a block could not be submitted: {reason}");
            let next = tokio::time::Instant::now() + jittered(back_off);
            if attempt == MAX_ATTEMPTS || next >= last_moment {
                return SubmitOutcome::Failed(reason);
            }
            tokio::time::sleep_until(next).await;
            back_off = (back_off * 2).min(LONGEST_BACK_OFF);
            attempt += 1;
        }
    }
}

fn failed(client: &NodeClient, attempt: u32, failure: &NodeError) -> String {
    warn!(node = client.url(), attempt, "a block could not be submitted: {failure}");
    failure.to_string()
}

/// Submits a block through the source of its template. The error is why it cannot be sent now, where it may be later.
async fn submit_through(source: &SourcePath, block: Arc<[u8]>) -> Result<SubmitOutcome, String> {
    let failed = |reason: &str| Ok(SubmitOutcome::Failed(reason.to_owned()));
    let hash = stratum::hash::sha256d(&block[..80]);
    let mut templates = source.templates.clone();
    let (answer, verdict) = oneshot::channel();
    if source.blocks.try_send(SourceBlock { bytes: block, answer }).is_err() {
        return failed("the source of templates takes no more blocks");
    }
    match tokio::time::timeout(SOURCE_DEADLINE, verdict).await {
        Ok(Ok(SourceVerdict::Sent)) => {}
        Ok(Ok(SourceVerdict::Judged(answer))) => return Ok(judged(answer)),
        Ok(Ok(SourceVerdict::NotSent(reason))) => return failed(reason),
        Ok(Ok(SourceVerdict::Away(reason))) => return Err(reason.to_owned()),
        Ok(Err(_)) | Err(_) => return failed("the source of templates said nothing"),
    }
    let is_on_it = |template: &Option<Arc<BlockTemplate>>| {
        template.as_ref().is_some_and(|template| template.previous_hash == hash)
    };
    match tokio::time::timeout(SOURCE_DEADLINE, templates.wait_for(is_on_it)).await {
        Ok(Ok(_)) => Ok(SubmitOutcome::Accepted),
        Ok(Err(_)) | Err(_) => failed("the source of templates has not moved to it"),
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
