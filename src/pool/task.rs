//! The owner of a pool's work: turns templates into jobs, and shares that are blocks into submissions.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mining_server::{PublishedJob, ShareEvent};
use stratum::Now;
use template::BlockTemplate;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::custom_jobs::{Checked, CustomJobs};
use super::jobs::{FoundBlock, PoolJobs, Solved};
use crate::clock::Clock;
use crate::node::BlockSource;
use crate::owner::{COMMAND_BATCH, Command, DRAIN_GRACE, OwnerInbox};
use crate::registry::SharedRegistry;
use crate::shutdown::Shutdown;
use crate::sink::RecordWriter;

/// Miners get fresh work at least this often: some drop a pool that says nothing for 90 seconds, and a difficulty
/// change waits for the next job.
pub const REFRESH_INTERVAL: Duration = Duration::from_secs(20);

/// A connection that needs a new job gets one for everybody, but not more often than this.
const WANTED_INTERVAL: Duration = Duration::from_secs(1);

/// How long the pool has to end from when it is asked to: within [`DRAIN_GRACE`] its connections do, and submissions
/// have all the time that is left. Below what a role has to end, so that it can still say what did not.
const END_GRACE: Duration = Duration::from_millis(3500);

/// What the rest of the program may know of a pool.
#[derive(Debug, Default)]
pub struct PoolStatus {
    /// The height of the block that is being mined.
    pub height: AtomicU64,
    /// Shares that were blocks.
    pub blocks_found: AtomicU64,
    /// Blocks that the node took.
    pub blocks_accepted: AtomicU64,
    /// Blocks that the node refused, or never judged.
    pub blocks_lost: AtomicU64,
    /// Blocks on custom jobs whose transactions only their miners have: they come by their miners' own nodes.
    pub blocks_at_miners: AtomicU64,
}

/// What a pool's task needs.
pub struct PoolTask {
    /// Makes the jobs.
    pub jobs: PoolJobs,
    /// Where templates come from and blocks go.
    pub source: BlockSource,
    /// The queues of the connections.
    pub inbox: OwnerInbox,
    /// Where custom jobs are asked for and checked, which is told of every template once miners have the work made of it;
    /// `None` in a pool that takes none.
    pub custom_jobs: Option<CustomJobs>,
    /// Where records go.
    pub writer: RecordWriter,
    /// The clocks.
    pub clock: Clock,
    /// Told which job is the oldest that counts.
    pub registry: SharedRegistry,
    /// Told how it goes.
    pub status: Arc<PoolStatus>,
}

/// Serves until the end is asked for.
pub async fn run(mut task: PoolTask, mut shutdown: Shutdown) {
    let mut templates = task.source.templates();
    let mut commands = Vec::with_capacity(COMMAND_BATCH);
    let mut submissions = JoinSet::new();
    let mut last_job = task.clock.now();
    // Somebody waits for a new job: it comes as soon as the interval permits.
    let mut wanted = false;
    if let Some(template) = newest(&mut templates) {
        task.handle_template(template);
    }
    loop {
        let interval = if wanted { WANTED_INTERVAL } else { REFRESH_INTERVAL };
        let refresh_at = task.clock.instant(last_job.monotonic + interval);
        tokio::select! {
            biased;
            () = shutdown.requested() => break,
            share = task.inbox.blocks.recv() => match share {
                None => break,
                Some(share) => task.handle_block(share, &mut submissions),
            },
            changed = templates.changed() => {
                if changed.is_err() {
                    tracing::error!("the source of templates has ended");
                    break;
                }
                if let Some(template) = newest(&mut templates) {
                    task.handle_template(template);
                    last_job = task.clock.now();
                }
            }
            _ = task.inbox.commands.recv_many(&mut commands, COMMAND_BATCH) => {
                // Channels and hash rates matter to those who have an upstream.
                wanted |= commands.drain(..).any(|command| matches!(command, Command::NewJobWanted { .. }));
            }
            checked = next_checked(&mut task.custom_jobs) => task.handle_checked(checked),
            shares = task.inbox.shares.recv() => {
                // A pool keeps its shares: only blocks come here, and they have their own queue.
                for share in shares.into_iter().flatten() {
                    task.writer.share(share.record);
                }
            }
            Some(ended) = submissions.join_next() => note_panic(&ended, &task.status),
            () = tokio::time::sleep_until(refresh_at) => {
                last_job = task.clock.now();
                task.refresh(last_job);
                wanted = false;
            }
        }
    }
    task.finish(submissions).await;
}

/// Whether a block that was submitted is on the disk, where its source has blocks written.
type Saved = Option<bool>;

impl PoolTask {
    fn handle_template(&mut self, template: Arc<BlockTemplate>) {
        let height = template.height;
        match self.jobs.handle_template(Arc::clone(&template)) {
            Ok(()) => {
                self.status.height.store(u64::from(height), Ordering::Relaxed);
                self.publish();
                if let Some(custom_jobs) = &self.custom_jobs {
                    custom_jobs.set_tip(&template);
                }
            }
            Err(error) => tracing::error!(height, "no job from this template: {error}"),
        }
    }

    fn refresh(&mut self, now: Now) {
        if self.jobs.refresh(now) {
            self.publish();
        }
    }

    fn publish(&mut self) {
        let work = self.jobs.work().expect("a job was just made");
        let oldest = work.oldest();
        self.registry.set_newest_job(work.active().job.number);
        self.writer.job(&work.active().job);
        self.inbox.work.publish(Arc::new(work));
        self.registry.set_oldest_live_job(oldest);
        self.writer.flush();
    }

    /// Answers who asked for a custom job. The entry of the job is in the ledger's queue before its first share can be.
    fn handle_checked(&mut self, checked: Checked) {
        let Checked { order, result } = checked;
        let now = self.clock.now();
        let answer = result.map_err(|refusal| {
            // Peers can cause as many as they like.
            tracing::debug!(code = refusal.code, "a custom job was refused: {}", refusal.details);
            refusal.code
        });
        order.answer(answer.and_then(|custom| {
            let job: Arc<PublishedJob> = self.jobs.handle_custom_job(custom, now)?;
            self.registry.set_newest_job(job.job.number);
            self.writer.job(&job.job);
            self.writer.flush();
            Ok(job)
        }));
    }

    fn handle_block(&mut self, share: ShareEvent, submissions: &mut JoinSet<Saved>) {
        if let Some(block) = self.solved_by(share) {
            submissions.spawn(submit(self.source.clone(), Arc::clone(&self.status), block));
        }
    }

    /// Takes the blocks of connections that are still there, and waits for the node's judgement of them.
    async fn finish(mut self, mut submissions: JoinSet<Saved>) {
        // Nobody reads them any more, and who waits for room in their queue would never end.
        self.inbox.commands.close();
        let deadline = Instant::now() + END_GRACE;
        let drained = tokio::time::timeout(DRAIN_GRACE, async {
            while let Some(share) = self.inbox.blocks.recv().await {
                self.handle_block(share, &mut submissions);
            }
        });
        if drained.await.is_err() {
            tracing::warn!("connections were still open at the end");
        }
        self.inbox.close();
        while let Ok(share) = self.inbox.blocks.try_recv() {
            self.handle_block(share, &mut submissions);
        }
        while let Ok(shares) = self.inbox.shares.try_recv() {
            shares.into_iter().for_each(|share| self.writer.share(share.record));
        }
        let ended = tokio::time::timeout_at(deadline, async {
            while let Some(submitted) = submissions.join_next().await {
                note_panic(&submitted, &self.status);
                if let Ok(Some(false)) = submitted {
                    tracing::error!("a block that was found at the end is not on the disk");
                }
            }
        });
        if ended.await.is_err() {
            let blocks = submissions.len();
            tracing::error!(
                blocks,
                "ended before blocks were judged by the node and known to be on the disk"
            );
        }
    }

    fn solved_by(&mut self, share: ShareEvent) -> Option<FoundBlock> {
        self.status.blocks_found.fetch_add(1, Ordering::Relaxed);
        let solved = self.jobs.solved(&share);
        self.writer.share(share.record);
        match solved {
            Solved::Block(block) => Some(block),
            Solved::AtItsMiner(height) => {
                self.status.blocks_at_miners.fetch_add(1, Ordering::Relaxed);
                tracing::info!(height, "a block was found whose miner alone has its transactions");
                None
            }
            Solved::Retired => {
                self.status.blocks_lost.fetch_add(1, Ordering::Relaxed);
                tracing::warn!("a block came for a job that had just retired");
                None
            }
        }
    }
}

async fn next_checked(custom_jobs: &mut Option<CustomJobs>) -> Checked {
    match custom_jobs {
        Some(custom_jobs) => custom_jobs.next().await,
        None => std::future::pending().await,
    }
}

async fn submit(source: BlockSource, status: Arc<PoolStatus>, block: FoundBlock) -> Saved {
    let hash = template::block_template::displayed(&block.hash);
    let (outcome, saved) = source.submit(block.height, block.bytes).await;
    if outcome.is_accepted() {
        status.blocks_accepted.fetch_add(1, Ordering::Relaxed);
        tracing::info!(height = block.height, hash, "block accepted");
    } else {
        status.blocks_lost.fetch_add(1, Ordering::Relaxed);
        // Why is in the node's own line; for the development chain this is the only one.
        tracing::warn!(height = block.height, hash, ?outcome, "block not accepted");
    }
    // The program must not end before the block is on the disk, either. What prevents that was logged.
    match saved {
        Some(saved) => Some(matches!(saved.await, Ok(Ok(_)))),
        None => None,
    }
}

/// A submission that panicked never judged its block, and nothing else would say so.
fn note_panic(ended: &Result<Saved, tokio::task::JoinError>, status: &PoolStatus) {
    if let Err(error) = ended {
        status.blocks_lost.fetch_add(1, Ordering::Relaxed);
        tracing::error!(%error, "submitting a block ended by a bug of ours; please report it");
    }
}

fn newest(templates: &mut watch::Receiver<Option<Arc<BlockTemplate>>>) -> Option<Arc<BlockTemplate>> {
    templates.borrow_and_update().clone()
}

#[cfg(test)]
mod tests;
