//! How a pool's task ends, and that nothing it holds is forgotten.

use mining_proxy::DownstreamKey;
use mining_server::judge::{Submission, Submitter, refusal};
use mining_server::work::JobLookup;
use mining_server::{RejectReason, ShareRecord};
use stratum::{ChannelId, ConnectionId, HashRate, JobNumber};

use super::*;
use crate::dev_chain::{DevChain, DevChainSettings, nbits_for_hashes};
use crate::owner::{COMMAND_QUEUE, Owner, owner};
use crate::shutdown::shutdown;
use crate::sink::RecordSink;

fn pool_task(clock: Clock, sink: &RecordSink) -> (PoolTask, Owner) {
    let (owner, inbox) = owner();
    let rules = crate::pool::coinbase_rules(vec![0x51], "tests").expect("rules");
    let settings = DevChainSettings { seed: 7, nbits: nbits_for_hashes(1 << 40), transactions: 0 };
    let task = PoolTask {
        jobs: PoolJobs::new(rules, JobNumber::first(clock.now())),
        source: BlockSource::Development(DevChain::new(settings, clock)),
        inbox,
        custom_jobs: None,
        writer: sink.writer(),
        clock,
        registry: SharedRegistry::new(clock, sink.writer()),
        status: Arc::default(),
    };
    (task, owner)
}

#[tokio::test]
async fn a_submission_that_panics_is_a_lost_block() {
    let status = PoolStatus::default();
    note_panic(&tokio::spawn(async { Some(true) }).await, &status);
    assert_eq!(status.blocks_lost.load(Ordering::Relaxed), 0);
    note_panic(&tokio::spawn(async { panic!("a bug of ours") }).await, &status);
    assert_eq!(status.blocks_lost.load(Ordering::Relaxed), 1);
}

/// More connections end at once than their queue of news holds.
#[tokio::test]
async fn a_pool_ends_with_its_connections_however_many_there_are() {
    let clock = Clock::start();
    let (sink, _task) = RecordSink::start();
    let (task, owner) = pool_task(clock, &sink);
    let connections: JoinSet<()> = (0..COMMAND_QUEUE as u64 + 100)
        .map(|connection| {
            let owner = owner.clone();
            async move {
                let key = DownstreamKey { connection: ConnectionId(connection), channel: ChannelId(0) };
                // Whether it still takes them is its affair, but nobody may wait for ever.
                let _ = owner.commands.send(Command::HashRate { key, rate: HashRate(0.0) }).await;
                drop(owner);
            }
        })
        .collect();
    drop(owner);
    let start = Instant::now();
    tokio::join!(task.finish(JoinSet::new()), connections.join_all());
    assert!(start.elapsed() < DRAIN_GRACE, "it does not wait for who waits for it");
}

fn record(now: Now) -> ShareRecord {
    let submission = Submission {
        job: JobLookup::Unknown,
        extranonce: &[],
        version: 0,
        version_mask: 0,
        ntime: 0,
        nonce: 0,
        known: None,
    };
    let submitter = Submitter { connection: ConnectionId(1), channel: ChannelId(0), device: None };
    refusal(submitter, &submission, RejectReason::Stale, now).record
}

#[tokio::test]
async fn records_that_found_the_sink_busy_follow_within_a_refresh() {
    let clock = Clock::start();
    let (sink, _task) = RecordSink::start();
    let (mut task, owner) = pool_task(clock, &sink);
    // The sink's task does not run while this one does not wait.
    let written = crate::sink::QUEUE as u64 + 100;
    for _ in 0..written {
        task.writer.share(record(clock.now()));
    }
    // A wish for a new job brings the refresh forward.
    let key = DownstreamKey { connection: ConnectionId(1), channel: ChannelId(0) };
    owner.commands.send(Command::NewJobWanted { key }).await.expect("the queue is open");
    let (_stop, end) = shutdown();
    let _running = tokio::spawn(run(task, end));
    let all = async {
        let mut poll = tokio::time::interval(Duration::from_millis(20));
        while sink.overview(clock.now()).await.expect("the sink runs").totals.shares.submitted < written {
            poll.tick().await;
        }
    };
    tokio::time::timeout(REFRESH_INTERVAL, all).await.expect("nothing is kept back");
}

/// Ends a pool whose connections have gone, while a submission takes so long. Returns whether that was waited for, and
/// for how long.
async fn end_with_submission(length: Duration) -> (bool, Duration) {
    let clock = Clock::start();
    let (sink, _task) = RecordSink::start();
    let (task, owner) = pool_task(clock, &sink);
    let mut submissions = JoinSet::new();
    let (judged, was_judged) = tokio::sync::oneshot::channel();
    submissions.spawn(async move {
        tokio::time::sleep(length).await;
        judged.send(()).expect("somebody waits");
        None
    });
    drop(owner);
    let start = Instant::now();
    task.finish(submissions).await;
    (was_judged.await.is_ok(), start.elapsed())
}

#[tokio::test]
async fn submissions_have_the_time_that_connections_leave_them() {
    let (slow, endless) = tokio::join!(
        end_with_submission(DRAIN_GRACE - Duration::from_millis(500)),
        end_with_submission(Duration::from_secs(60))
    );
    assert!(slow.0, "it ends well before the role must");
    assert!(!endless.0 && endless.1 >= END_GRACE, "{endless:?}");
}
