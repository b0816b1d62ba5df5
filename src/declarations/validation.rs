//! Our node's judgement of declared jobs (BIP 23), a few at a time and each only once.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bitcoin::Script;
use job_declarator::server::{DeclaredJob, Verdict};
use stratum::ConnectionId;
use stratum::hash::sha256d;
use template::outputs::write_outputs;

use super::task::Place;
use crate::node::judge::OTHER_TIP;
use crate::node::{BlockJudge, Rejection};

/// Blocks that the node judges for us at once: each holds the lock of its chain for as long as a block takes.
const MAX_AT_ONCE: usize = 4;

/// How long the node may take for a block, waiting for its turn not included. A second is long for a node at rest.
const DEADLINE: Duration = Duration::from_secs(20);

/// Verdicts that are remembered: one for each job that the clients of a tip declare.
const MAX_REMEMBERED: usize = 256;

/// Of these, how many may be for jobs of one connection: nobody has all turns.
const MAX_AT_ONCE_FOR_ONE: usize = 2;

/// What a verdict is of: all of a block that decides over its validity. That is everything but header time, nonce, and
/// the bytes that follow the height in the coinbase's script, of which only the length and the signature operations
/// count: farms with the same transactions and tags of their own share a verdict. The merkle path commits to the
/// transactions, and one of the outputs to their witnesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct JobHash([u8; 32]);

impl JobHash {
    pub(super) fn of(job: &DeclaredJob) -> Self {
        let coinbase = &job.coinbase;
        let mut script = coinbase.script_prefix.clone();
        script.resize(script.len() + coinbase.extranonce_size, 0);
        let sigops = Script::from_bytes(&script).count_sigops_legacy();
        let mut bytes = job.tip.previous_hash.to_vec();
        for number in [job.version, coinbase.version, coinbase.sequence, coinbase.lock_time] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for number in [coinbase.height().map_or(u64::MAX, u64::from), script.len() as u64, sigops as u64] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        // These begin with their number, so that nothing can be taken for another's.
        bytes.extend_from_slice(&write_outputs(&coinbase.outputs));
        bytes.extend_from_slice(job.merkle_path.as_flattened());
        JobHash(sha256d(&bytes))
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

/// A job that waits for its verdict, or is being judged.
#[derive(Debug)]
struct Judging {
    job: Arc<DeclaredJob>,
    /// Who waits, the first one first. Nobody when all have gone: the node goes on, so its turn is not free yet.
    waiting: Vec<Place>,
    /// Whose turn it takes.
    taken_by: ConnectionId,
    is_started: bool,
}

/// Jobs that are judged or wait for a turn, each once however many have declared it. As many as there are declarations
/// on their way, of which each connection has a few.
#[derive(Debug, Default)]
pub(super) struct Turns {
    judging: HashMap<JobHash, Judging>,
    /// Those that were not started, oldest first.
    queue: VecDeque<JobHash>,
}

impl Turns {
    /// One more waits for the verdict over a job.
    pub(super) fn join(&mut self, hash: JobHash, place: Place, job: Arc<DeclaredJob>) {
        let judging = self.judging.entry(hash).or_insert_with(|| {
            self.queue.push_back(hash);
            Judging { job, waiting: Vec::new(), taken_by: place.0, is_started: false }
        });
        judging.waiting.push(place);
    }

    /// One waits no more. What was started goes on: the node is at work whoever waits.
    pub(super) fn leave(&mut self, hash: JobHash, place: Place) {
        let Some(judging) = self.judging.get_mut(&hash) else { return };
        judging.waiting.retain(|waiting| *waiting != place);
        match judging.waiting.first() {
            _ if judging.is_started => {}
            Some(next) => judging.taken_by = next.0,
            None => {
                self.judging.remove(&hash);
                self.queue.retain(|queued| *queued != hash);
            }
        }
    }

    /// The next job whose turn it is, in the order in which they came, but for connections that have their share of
    /// turns. It is started with this.
    pub(super) fn next(&mut self) -> Option<(JobHash, Arc<DeclaredJob>)> {
        let started: Vec<ConnectionId> =
            self.judging.values().filter(|one| one.is_started).map(|one| one.taken_by).collect();
        if started.len() >= MAX_AT_ONCE {
            return None;
        }
        let place = self.queue.iter().position(|hash| {
            let of_one = started.iter().filter(|id| **id == self.judging[hash].taken_by).count();
            of_one < MAX_AT_ONCE_FOR_ONE
        })?;
        let hash = self.queue.remove(place)?;
        let judging = self.judging.get_mut(&hash)?;
        judging.is_started = true;
        Some((hash, Arc::clone(&judging.job)))
    }

    /// A verdict is there: who waits for it.
    pub(super) fn end(&mut self, hash: JobHash) -> Vec<Place> {
        self.judging.remove(&hash).map(|judging| judging.waiting).unwrap_or_default()
    }
}

/// Asks a node. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Validator {
    judge: BlockJudge,
}

impl Validator {
    pub(super) fn new(judge: BlockJudge) -> Self {
        Validator { judge }
    }

    /// What the node says of a block of this job with the time `unix_seconds`. A node that does not answer accepts
    /// nothing.
    pub(super) async fn judge(&self, job: &DeclaredJob, unix_seconds: u32) -> Verdict {
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

#[cfg(test)]
mod tests {
    use job_declarator::server::{DeclarationId, PoolTip};
    use template::{Output, Skeleton};

    use super::*;

    fn job(version: u32, tag: &[u8; 4], value: u64) -> Arc<DeclaredJob> {
        let coinbase = Skeleton {
            version: 2,
            // Height 900,000 and a tag.
            script_prefix: [&[3, 0xa0, 0xbb, 0x0d, 4][..], tag].concat(),
            extranonce_size: 16,
            sequence: 0,
            outputs: vec![Output { value, script: vec![0x51] }],
            lock_time: 0,
        };
        let tip = PoolTip {
            previous_hash: [7; 32],
            height: 900_000,
            nbits: 0x207f_ffff,
            min_ntime: 1,
            block_time: 1,
            subsidy: 100,
        };
        let outputs: Arc<[Output]> = coinbase.outputs.clone().into();
        Arc::new(
            DeclaredJob::new(DeclarationId(1), version, coinbase, outputs, Vec::new(), tip).expect("fits"),
        )
    }

    fn place(connection: u64, declaration: u64) -> Place {
        (ConnectionId(connection), DeclarationId(declaration))
    }

    #[test]
    fn a_tag_alone_makes_no_other_verdict() {
        let hash = |version, tag, value| JobHash::of(&job(version, tag, value));
        let first = hash(4, b"/aa/", 100);
        assert_eq!(hash(4, b"/bb/", 100), first);
        assert_ne!(hash(5, b"/aa/", 100), first);
        assert_ne!(hash(4, b"/aa/", 99), first);
        // The last byte checks a signature where a script runs, and counts as one here.
        assert_eq!(JobHash::of(&job(4, b"aaa\xac", 100)), first, "inside of what is pushed it does not");
    }

    #[test]
    fn a_job_is_judged_once_for_all_who_declared_it() {
        let (mut turns, job) = (Turns::default(), job(4, b"/aa/", 100));
        let hash = JobHash::of(&job);
        for connection in 1..=3 {
            turns.join(hash, place(connection, 0), Arc::clone(&job));
        }
        assert_eq!(turns.next().map(|(hash, _)| hash), Some(hash));
        assert!(turns.next().is_none());
        turns.leave(hash, place(1, 0));
        assert_eq!(turns.end(hash), [place(2, 0), place(3, 0)]);
        assert!(turns.judging.is_empty() && turns.queue.is_empty());
    }

    #[test]
    fn no_connection_has_all_turns() {
        let mut turns = Turns::default();
        let hashes: Vec<JobHash> = (0..6)
            .map(|number| {
                let (connection, job) = (1 + u64::from(number / 4), job(number, b"/aa/", 100));
                let hash = JobHash::of(&job);
                turns.join(hash, place(connection, u64::from(number)), job);
                hash
            })
            .collect();
        let mut next = || turns.next().map(|(hash, _)| hash);
        let started = [next(), next(), next(), next(), next()];
        assert_eq!(started, [Some(hashes[0]), Some(hashes[1]), Some(hashes[4]), Some(hashes[5]), None]);
        // What has started keeps its turn until the node has answered, even when nobody waits any more.
        turns.leave(hashes[0], place(1, 0));
        turns.leave(hashes[2], place(1, 2));
        assert!(turns.next().is_none());
        assert_eq!(turns.end(hashes[0]), []);
        assert_eq!(turns.next().map(|(hash, _)| hash), Some(hashes[3]), "nobody waits for the third");
    }
}
