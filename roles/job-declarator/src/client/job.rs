//! One custom job on its way from a template to the pool's number for it.
//!
//! This module never sends anything: the client does.

use std::sync::Arc;
use std::time::Duration;

use stratum::hash::Hash;
use stratum::sv2::messages::{
    DeclareMiningJob, MiningJobToken, ProvideMissingTransactions, ProvideMissingTransactionsSuccess,
    PushSolution, SetCustomMiningJob,
};
use stratum::{RequestId, UpstreamJobId};
use template::outputs::write_outputs;
use template::{JobTemplate, Output, RawTransaction, Skeleton};

use super::output::CustomJobId;
use super::{ChannelTerms, MAX_PUSHES};

/// How far a job has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It has a token, and its transactions are not here yet (Full-Template mode).
    AwaitingTransactions(MiningJobToken),
    /// The server has it. True once it was sent the transactions that it lacked.
    Declaring { request: RequestId, provided: bool },
    /// It needs another token, not before this time.
    AwaitingToken { not_before: Duration },
    /// The pool has it.
    Setting { request: RequestId, token: MiningJobToken },
    /// The pool wants it again, not before this time: it did not know the token yet.
    SettingAgain { token: MiningJobToken, not_before: Duration },
    /// The pool has taken it.
    Acknowledged(UpstreamJobId),
    /// It is not taken.
    Refused,
}

#[derive(Debug)]
pub(super) struct Job {
    pub(super) id: CustomJobId,
    pub(super) template: Arc<JobTemplate>,
    pub(super) coinbase: Skeleton,
    /// The pool's part of the extranonce.
    pub(super) extranonce_prefix: Vec<u8>,
    /// What the pool asked for with the token.
    pub(super) pool_outputs: Arc<[Output]>,
    pub(super) stage: Stage,
    /// Since when it is at its stage.
    pub(super) since: Duration,
    /// How often it was started anew.
    pub(super) tries: u32,
    /// Whether the ladder was told that nobody answers.
    pub(super) told: bool,
    /// Whether the server has taken it: only then is a solution any use to it.
    pub(super) is_declared: bool,
    /// Solutions that wait for that; at most [`MAX_PUSHES`].
    pub(super) pushes: Vec<PushSolution>,
    pub(super) refused_in_a_row: u32,
}

impl Job {
    pub(super) fn enter(&mut self, stage: Stage, now: Duration) {
        self.stage = stage;
        self.since = now;
        self.told = false;
    }

    pub(super) fn wait_to_push(&mut self, solution: PushSolution) {
        if self.pushes.len() < MAX_PUSHES {
            self.pushes.push(solution);
        }
    }

    pub(super) fn declaration(
        &self,
        request_id: RequestId,
        token: MiningJobToken,
        transactions: &[RawTransaction],
    ) -> DeclareMiningJob {
        let (coinbase_tx_prefix, coinbase_tx_suffix) = self.coinbase.declared_parts();
        let wtxid_list: Vec<Hash> = transactions.iter().map(|transaction| transaction.wtxid).collect();
        DeclareMiningJob {
            request_id,
            mining_job_token: token,
            version: self.template.version,
            coinbase_tx_prefix,
            coinbase_tx_suffix,
            wtxid_list,
            excess_data: Vec::new(),
        }
    }

    pub(super) fn custom_job(
        &self,
        request_id: RequestId,
        token: MiningJobToken,
        channel: &ChannelTerms,
    ) -> SetCustomMiningJob {
        SetCustomMiningJob {
            channel_id: channel.channel_id,
            request_id,
            token,
            version: self.template.version,
            prev_hash: self.template.previous_hash,
            min_ntime: self.template.start_time,
            nbits: self.template.nbits,
            coinbase_tx_version: self.coinbase.version,
            coinbase_prefix: self.coinbase.script_prefix.clone(),
            coinbase_tx_input_n_sequence: self.coinbase.sequence,
            coinbase_tx_outputs: write_outputs(&self.coinbase.outputs),
            coinbase_tx_locktime: self.coinbase.lock_time,
            merkle_path: self.template.merkle_path.clone(),
        }
    }
}

/// What the server lacks of a job's transactions; `None` when it names some that are not there.
pub(super) fn provide(
    message: &ProvideMissingTransactions,
    transactions: &[RawTransaction],
) -> Option<ProvideMissingTransactionsSuccess> {
    let places = &message.unknown_tx_position_list;
    // No more than there are: a server that repeats a place would be sent many times the block.
    if places.len() > transactions.len() {
        return None;
    }
    let transaction = |place: &u16| Some(transactions.get(usize::from(*place))?.raw.to_vec());
    let transaction_list: Option<Vec<Vec<u8>>> = places.iter().map(transaction).collect();
    let mut sorted = places.clone();
    sorted.sort_unstable();
    sorted.dedup();
    let is_sane = sorted.len() == places.len();
    let request_id = message.request_id;
    transaction_list
        .filter(|_| is_sane)
        .map(|transaction_list| ProvideMissingTransactionsSuccess { request_id, transaction_list })
}
