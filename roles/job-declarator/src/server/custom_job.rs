//! `SetCustomMiningJob`: whether a pool takes the job (SV2 5.3.18).
//!
//! This module never looks for a channel: the mining connection knows its own, and asks for one of them at a time.

use std::sync::Arc;

use stratum::Now;
use stratum::hash::Hash;
use stratum::job::MAX_MERKLE_PATH;
use stratum::sv2::codes::set_custom_mining_job as codes;
use stratum::sv2::messages::SetCustomMiningJob;
use template::outputs::parse_outputs;
use template::{CoinbaseParts, Output, Skeleton};

use super::declared::{DeclaredJob, Refusal, check_payout};
use super::tokens::{CustomJobToken, TokenRefusal, account_of};
use super::{JobDeclarationServer, PoolTip};

/// How far ahead of our clock a block's time may be (consensus); seconds.
const MAX_FUTURE_TIME: u32 = 2 * 3600;

/// Who sends a `SetCustomMiningJob`.
#[derive(Clone, Copy, Debug)]
pub struct Claimant<'a> {
    /// The user identity of the channel.
    pub user_identity: &'a str,
    /// Bytes of the channel's extranonce, prefix and rolled ones together.
    pub extranonce_size: usize,
}

/// A job that the pool takes, with all that it needs to check the job's shares.
#[derive(Clone, Debug)]
pub struct CustomJob {
    /// The header's version.
    pub version: u32,
    /// The tip that it builds on.
    pub tip: PoolTip,
    /// The lowest time that a share may carry.
    pub min_ntime: u32,
    /// The coinbase without witness, around the whole extranonce.
    pub coinbase: CoinbaseParts,
    /// The siblings of the coinbase on its way to the merkle root.
    pub merkle_path: Vec<Hash>,
    /// What the pool's payout output gets; satoshis.
    pub payout: u64,
    /// The declared job, from which a block can be made; none in Coinbase-only mode, where only the client can.
    pub declared: Option<Arc<DeclaredJob>>,
}

impl JobDeclarationServer {
    /// Decides over a `SetCustomMiningJob`. Its token is used up whenever it was the claimant's and its job had been
    /// looked at, whatever the answer.
    pub fn check_custom_job(
        &mut self,
        claimant: Claimant<'_>,
        message: &SetCustomMiningJob,
        now: Now,
    ) -> Result<CustomJob, Refusal> {
        let checked = self.look_at_custom_job(claimant, message, now);
        match &checked {
            Ok(_) => self.tally.custom_jobs += 1,
            Err(_) => self.tally.custom_jobs_refused += 1,
        }
        checked
    }

    fn look_at_custom_job(
        &mut self,
        claimant: Claimant<'_>,
        message: &SetCustomMiningJob,
        now: Now,
    ) -> Result<CustomJob, Refusal> {
        let account = account_of(claimant.user_identity);
        let token = self.tokens.take(&message.token, account, now).map_err(|refusal| match refusal {
            TokenRefusal::Invalid => {
                let details = "the token is not yours, was used, or has expired";
                Refusal::new(codes::INVALID_MINING_JOB_TOKEN, details)
            }
            TokenRefusal::NotYetValidated => {
                Refusal::new(codes::JOB_NOT_YET_VALIDATED, "the declared job is still being looked at")
            }
        })?;
        let tip = check_tip(self.tip, message, now)?;
        let coinbase = skeleton_of(message, claimant.extranonce_size)?;
        if message.merkle_path.len() > MAX_MERKLE_PATH {
            return Err(Refusal::new(codes::INVALID_MERKLE_PATH, "the path is longer than any block's"));
        }
        let (payout, declared) = match token {
            CustomJobToken::Declared(job) => {
                check_same(&job, message, &coinbase)?;
                (check_outputs(&coinbase, &job.pool_outputs, tip.subsidy)?, Some(job))
            }
            CustomJobToken::CoinbaseOnly(allocation) => {
                check_height(&coinbase, &tip)?;
                (check_outputs(&coinbase, &allocation.outputs, tip.subsidy)?, None)
            }
        };
        Ok(CustomJob {
            version: message.version,
            tip,
            min_ntime: message.min_ntime,
            coinbase: coinbase.parts(),
            merkle_path: message.merkle_path.clone(),
            payout,
            declared,
        })
    }
}

fn check_tip(tip: Option<PoolTip>, message: &SetCustomMiningJob, now: Now) -> Result<PoolTip, Refusal> {
    let Some(tip) = tip.filter(|tip| tip.previous_hash == message.prev_hash) else {
        return Err(Refusal::new(codes::STALE_CHAIN_TIP, "the job is for another chain tip than ours"));
    };
    if message.nbits != tip.nbits {
        let details = format!("nbits is {:08x}, and must be {:08x}", message.nbits, tip.nbits);
        return Err(Refusal::new(codes::INVALID_NBITS, details));
    }
    let latest = now.unix_seconds().saturating_add(MAX_FUTURE_TIME);
    if !(tip.min_ntime..=latest).contains(&message.min_ntime) {
        let details = format!("min_ntime is {}, of {} to {latest}", message.min_ntime, tip.min_ntime);
        return Err(Refusal::new(codes::INVALID_MIN_NTIME, details));
    }
    Ok(tip)
}

/// The script is the message's prefix and the channel's extranonce.
fn skeleton_of(message: &SetCustomMiningJob, extranonce_size: usize) -> Result<Skeleton, Refusal> {
    let outputs = parse_outputs(&message.coinbase_tx_outputs)
        .map_err(|error| Refusal::new(codes::INVALID_COINBASE_TX_OUTPUTS, error.to_string()))?;
    let skeleton = Skeleton {
        version: message.coinbase_tx_version,
        script_prefix: message.coinbase_prefix.clone(),
        extranonce_size,
        sequence: message.coinbase_tx_input_n_sequence,
        outputs,
        lock_time: message.coinbase_tx_locktime,
    };
    skeleton.check().map_err(|error| Refusal::new(codes::INVALID_COINBASE_PREFIX, error.to_string()))
}

fn check_height(coinbase: &Skeleton, tip: &PoolTip) -> Result<(), Refusal> {
    if coinbase.height() != Some(tip.height) {
        let details = format!("the script does not begin with height {} (BIP 34)", tip.height);
        return Err(Refusal::new(codes::INVALID_COINBASE_PREFIX, details));
    }
    Ok(())
}

/// The subsidy is the least that any job can pay: who pays less gives the rest away, and not to the pool.
fn check_outputs(coinbase: &Skeleton, pool_outputs: &[Output], least: u64) -> Result<u64, Refusal> {
    check_payout(coinbase, pool_outputs, least)
        .map_err(|details| Refusal::new(codes::INVALID_COINBASE_TX_OUTPUTS, details))
}

/// Whether the message names the job that was declared.
fn check_same(job: &DeclaredJob, message: &SetCustomMiningJob, coinbase: &Skeleton) -> Result<(), Refusal> {
    let declared = &job.coinbase;
    let checks = [
        (job.tip.previous_hash == message.prev_hash, codes::STALE_CHAIN_TIP),
        (job.version == message.version, codes::INVALID_VERSION),
        (declared.version == coinbase.version, codes::INVALID_COINBASE_TX_VERSION),
        (declared.script_prefix == coinbase.script_prefix, codes::INVALID_COINBASE_PREFIX),
        (declared.sequence == coinbase.sequence, codes::INVALID_COINBASE_TX_INPUT_N_SEQUENCE),
        (declared.outputs == coinbase.outputs, codes::INVALID_COINBASE_TX_OUTPUTS),
        (declared.lock_time == coinbase.lock_time, codes::INVALID_COINBASE_TX_LOCKTIME),
        (declared.extranonce_size == coinbase.extranonce_size, codes::INVALID_COINBASE_TX),
        (job.merkle_path == message.merkle_path, codes::INVALID_MERKLE_PATH),
    ];
    match checks.into_iter().find(|(is_same, _)| !is_same) {
        Some((_, code)) => Err(Refusal::new(code, "this is not the job that was declared")),
        None => Ok(()),
    }
}
