//! One declaration on its way from `DeclareMiningJob` to its answer.
//!
//! This module never sends anything: its connection does.

use std::sync::Arc;
use std::time::Duration;

use stratum::RequestId;
use stratum::hash::Hash;
use stratum::sv2::codes::declare_mining_job as codes;
use stratum::sv2::messages::{DeclareMiningJob, MiningJobToken};
use template::block_template::MAX_TRANSACTIONS;
use template::{Output, RawTransaction, Skeleton, SkeletonError};

use super::PoolTip;
use super::declared::{DeclaredJob, Refusal, check_payout};
use super::output::DeclarationId;

/// A declaration that was not answered yet.
#[derive(Debug)]
pub(super) struct Declaration {
    pub(super) id: DeclarationId,
    pub(super) request_id: RequestId,
    /// The token that it used.
    pub(super) token: MiningJobToken,
    pub(super) version: u32,
    pub(super) coinbase: Skeleton,
    pub(super) pool_outputs: Arc<[Output]>,
    /// The height of its block.
    pub(super) height: u32,
    pub(super) wtxids: Arc<[Hash]>,
    pub(super) stage: Stage,
    /// When it is given up, on the monotonic clock.
    pub(super) deadline: Duration,
}

/// What a declaration waits for.
#[derive(Debug)]
pub(super) enum Stage {
    /// Our view of the mempool.
    LookingUp,
    /// The client, for the transactions at these places.
    Missing { found: Vec<Option<RawTransaction>>, places: Vec<u16> },
    /// Our node, which has not seen the block that the job builds on.
    AwaitingTip(Vec<RawTransaction>),
    /// Our node's verdict.
    Validating(Arc<DeclaredJob>),
}

/// How the height of a job compares with our node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is for the block that our node looks for.
    Current,
    /// It is for a block that was found.
    Stale,
    /// It is for the block after the one that our node looks for, as far as our node knows.
    Ahead,
}

impl Declaration {
    /// Reads a declaration. The token was used for it, whatever comes of it.
    pub(super) fn read(
        id: DeclarationId,
        message: DeclareMiningJob,
        pool_outputs: Arc<[Output]>,
        deadline: Duration,
    ) -> Result<Self, (RequestId, MiningJobToken, Refusal)> {
        let (request_id, token) = (message.request_id, message.mining_job_token.clone());
        match read_parts(&message, &pool_outputs) {
            Ok((coinbase, height)) => Ok(Declaration {
                id,
                request_id,
                token,
                version: message.version,
                coinbase,
                pool_outputs,
                height,
                wtxids: message.wtxid_list.into(),
                stage: Stage::LookingUp,
                deadline,
            }),
            Err(refusal) => Err((request_id, token, refusal)),
        }
    }

    pub(super) fn standing(&self, tip: Option<PoolTip>) -> Standing {
        match tip {
            Some(tip) if self.height == tip.height => Standing::Current,
            Some(tip) if self.height == tip.height.saturating_add(1) => Standing::Ahead,
            // Our node has just been started, and says something soon.
            None => Standing::Ahead,
            Some(_) => Standing::Stale,
        }
    }

    /// The job, once every transaction is here and our node has the tip.
    pub(super) fn job(
        &self,
        transactions: Vec<RawTransaction>,
        tip: PoolTip,
    ) -> Result<DeclaredJob, Refusal> {
        let (coinbase, outputs) = (self.coinbase.clone(), Arc::clone(&self.pool_outputs));
        DeclaredJob::new(self.id, self.version, coinbase, outputs, transactions, tip)
    }

    /// Takes the transactions that the client was asked for. Returns all of the job's.
    pub(super) fn complete(
        found: Vec<Option<RawTransaction>>,
        places: &[u16],
        wtxids: &[Hash],
        sent: &[Vec<u8>],
    ) -> Result<Vec<RawTransaction>, Refusal> {
        let refuse = |details: String| Err(Refusal::new(codes::MISSING_TXS, details));
        if sent.len() != places.len() {
            return refuse(format!("{} transactions were asked for, and {} came", places.len(), sent.len()));
        }
        let mut found = found;
        for (place, raw) in places.iter().zip(sent) {
            let at = usize::from(*place);
            match RawTransaction::parse(raw) {
                Ok(transaction) if transaction.wtxid == wtxids[at] => found[at] = Some(transaction),
                Ok(_) => return refuse(format!("the transaction for place {place} is another one")),
                Err(error) => return refuse(format!("place {place}: {error}")),
            }
        }
        Ok(found.into_iter().map(|found| found.expect("what was not found was asked for")).collect())
    }
}

/// The coinbase and the height of the block.
fn read_parts(message: &DeclareMiningJob, pool_outputs: &[Output]) -> Result<(Skeleton, u32), Refusal> {
    check_list(&message.wtxid_list)?;
    let coinbase = Skeleton::parse(&message.coinbase_tx_prefix, &message.coinbase_tx_suffix);
    let coinbase = coinbase.map_err(|error| {
        let code = match error {
            SkeletonError::Prefix | SkeletonError::Suffix | SkeletonError::Outputs(_) => {
                codes::INVALID_COINBASE_TX
            }
            SkeletonError::Input | SkeletonError::ScriptSize(_) | SkeletonError::ExtranonceSize(_) => {
                codes::INVALID_COINBASE_TX_INPUT
            }
        };
        Refusal::new(code, error.to_string())
    })?;
    let Some(height) = coinbase.height() else {
        let details = "the script does not begin with the height (BIP 34)";
        return Err(Refusal::new(codes::INVALID_COINBASE_TX_INPUT, details));
    };
    // What it must pay at least is checked when the tip is known.
    check_payout(&coinbase, pool_outputs, 0)
        .map_err(|details| Refusal::new(codes::INVALID_COINBASE_TX, details))?;
    Ok((coinbase, height))
}

fn check_list(wtxids: &[Hash]) -> Result<(), Refusal> {
    let refuse = |details: String| {
        let code = format!("{}wtxid_list", codes::INVALID_JOB_PARAM_VALUE);
        Err(Refusal::new(code, details))
    };
    if wtxids.len() > MAX_TRANSACTIONS {
        return refuse(format!("{} transactions are more than fit in a block", wtxids.len()));
    }
    let mut sorted: Vec<&Hash> = wtxids.iter().collect();
    sorted.sort_unstable();
    if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
        return refuse("a transaction is in the list twice".to_owned());
    }
    Ok(())
}
