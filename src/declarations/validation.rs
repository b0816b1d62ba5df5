//! Our node's judgement of declared jobs (BIP 23), a few at a time and each only once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use job_declarator::server::{DeclaredJob, Verdict};
use stratum::hash::{Hash, merkle_root, sha256d};
use tokio::sync::Semaphore;

use crate::node::judge::OTHER_TIP;
use crate::node::{BlockJudge, Rejection};

/// Blocks that the node judges for us at once: each holds the lock of its chain for as long as a block takes.
const MAX_AT_ONCE: usize = 4;

/// How long the node may take for a block, waiting for its turn not included. A second is long for a node at rest.
const DEADLINE: Duration = Duration::from_secs(20);

/// Verdicts that are remembered: one for each job that the clients of a tip declare.
const MAX_REMEMBERED: usize = 256;

/// What a verdict is of: version, tip and the merkle root with zeros for what is rolled. The coinbase is under the root,
/// and in it the commitment to all witnesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct JobHash([u8; 32]);

impl JobHash {
    pub(super) fn of(job: &DeclaredJob) -> Self {
        let coinbase = job.coinbase.parts().with_extranonce(&vec![0; job.coinbase.extranonce_size]);
        let root: Hash = merkle_root(sha256d(&coinbase), &job.merkle_path);
        let version = job.version.to_le_bytes();
        JobHash(sha256d(&[&version[..], &job.tip.previous_hash, &root].concat()))
    }
}

/// Verdicts of the tip; oldest first.
#[derive(Debug, Default)]
pub(super) struct Verdicts(VecDeque<(JobHash, Verdict)>);

impl Verdicts {
    pub(super) fn get(&self, job: JobHash) -> Option<Verdict> {
        self.0.iter().find(|(known, _)| *known == job).map(|(_, verdict)| verdict.clone())
    }

    /// Remembers what will be the same when it is asked again.
    pub(super) fn remember(&mut self, job: JobHash, verdict: &Verdict) {
        if !matches!(verdict, Verdict::Valid { .. } | Verdict::Invalid(_)) || self.get(job).is_some() {
            return;
        }
        if self.0.len() == MAX_REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back((job, verdict.clone()));
    }

    /// The tip is another.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}

/// Asks a node. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Validator {
    judge: BlockJudge,
    turns: Arc<Semaphore>,
}

impl Validator {
    pub(super) fn new(judge: BlockJudge) -> Self {
        Validator { judge, turns: Arc::new(Semaphore::new(MAX_AT_ONCE)) }
    }

    /// What the node says of a block of this job with the time `unix_seconds`. A node that does not answer accepts
    /// nothing.
    pub(super) async fn judge(&self, job: &DeclaredJob, unix_seconds: u32) -> Verdict {
        let _turn = self.turns.acquire().await.expect("nobody closes it");
        let proposal = job.proposal(unix_seconds.max(job.tip.block_time));
        match tokio::time::timeout(DEADLINE, self.judge.judge(proposal)).await {
            // The node judges the coinbase's value with all else, but only from above.
            Ok(Ok(None)) => Verdict::Valid { revenue: None },
            Ok(Ok(Some(Rejection { reason, .. }))) if reason == OTHER_TIP => Verdict::StaleTip,
            Ok(Ok(Some(Rejection { reason, details }))) if details.is_empty() => Verdict::Invalid(reason),
            Ok(Ok(Some(Rejection { reason, details }))) => Verdict::Invalid(format!("{reason} ({details})")),
            Ok(Err(error)) => {
                tracing::warn!("a declared job is not judged: {error}");
                Verdict::Unknown("our node could not judge the job".to_owned())
            }
            Err(_) => Verdict::Unknown("our node did not answer in time".to_owned()),
        }
    }
}
