//! The messages between a pool and its job declaration server, and what they stand for.
//!
//! Bytes are hexadecimal and hashes are in internal byte order. What comes in is checked here as if a stranger had sent
//! it: the parts of a job must fit together.

use std::sync::Arc;

use job_declarator::server::{CustomJob, DeclarationId, DeclaredJob, PoolTip, Refusal};
use serde::{Deserialize, Serialize};
use stratum::hash::Hash;
use stratum::sv2::frame::HEADER_SIZE;
use stratum::sv2::messages::SetCustomMiningJob;
use stratum::sv2::{FrameHeader, Message};
use template::{CoinbaseParts, Output, RawTransaction, Skeleton};

/// What a pool says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum ToServer {
    /// First of all: the scripts of the outputs that coinbases must have, the payout first.
    Pool { protocol: u32, outputs: Vec<String> },
    /// Miners have the work on this tip, or the node says something else of it.
    Tip(Tip),
    /// May this custom job be mined? `message` is the whole `SetCustomMiningJob` frame.
    Check { id: u64, user_identity: String, extranonce_size: usize, message: String },
}

/// What a job declaration server says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum ToPool {
    /// First of all.
    Server { protocol: u32 },
    /// The job of this check is good.
    Taken { id: u64, job: Box<Job> },
    /// It is not: one of the specification's codes, and words.
    Refused { id: u64, code: String, details: String },
    /// A client has found this block on a declared job.
    Block { height: u32, block: String },
}

/// See [`PoolTip`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Tip {
    previous_hash: String,
    height: u32,
    nbits: u32,
    min_ntime: u32,
    block_time: u32,
    subsidy: u64,
}

/// See [`CustomJob`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    version: u32,
    tip: Tip,
    min_ntime: u32,
    coinbase_prefix: String,
    extranonce_size: usize,
    coinbase_suffix: String,
    merkle_path: Vec<String>,
    payout: u64,
    /// None in Coinbase-only mode.
    declared: Option<Declared>,
}

/// See [`DeclaredJob`]. The coinbase is in two halves as `DeclareMiningJob` has it (SV2 6.4.4).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Declared {
    version: u32,
    coinbase_prefix: String,
    coinbase_suffix: String,
    outputs: Vec<String>,
    transactions: Vec<String>,
}

/// A field that is not what it should be; which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its {0} is wrong")]
pub(crate) struct Wrong(pub(crate) &'static str);

/// Bytes of a field.
pub(crate) fn bytes_of(text: &str, field: &'static str) -> Result<Vec<u8>, Wrong> {
    hex::decode(text).map_err(|_| Wrong(field))
}

fn hash_of(text: &str, field: &'static str) -> Result<Hash, Wrong> {
    let mut hash = [0; 32];
    hex::decode_to_slice(text, &mut hash).map_err(|_| Wrong(field))?;
    Ok(hash)
}

/// Outputs without value, by their scripts.
pub(crate) fn outputs_of(scripts: &[String]) -> Result<Vec<Output>, Wrong> {
    let output = |script: &String| Ok(Output { value: 0, script: bytes_of(script, "outputs")? });
    let outputs: Vec<Output> = scripts.iter().map(output).collect::<Result<_, Wrong>>()?;
    if outputs.is_empty() { Err(Wrong("outputs")) } else { Ok(outputs) }
}

/// The scripts of outputs.
pub(crate) fn scripts_of(outputs: &[Output]) -> Vec<String> {
    outputs.iter().map(|output| hex::encode(&output.script)).collect()
}

/// A `SetCustomMiningJob` as its frame.
pub(crate) fn frame_of(message: &SetCustomMiningJob) -> String {
    let mut frame = Vec::new();
    let message = Message::SetCustomMiningJob(message.clone());
    message.encode_frame(&mut frame).expect("it was a frame when it came");
    hex::encode(frame)
}

/// The `SetCustomMiningJob` of a frame.
pub(crate) fn message_of(frame: &str) -> Result<SetCustomMiningJob, Wrong> {
    let wrong = Wrong("message");
    let frame = bytes_of(frame, "message")?;
    let (header, payload) = frame.split_first_chunk::<HEADER_SIZE>().ok_or(wrong)?;
    match Message::decode(FrameHeader::parse(*header), payload) {
        Ok(Message::SetCustomMiningJob(message)) => Ok(message),
        _ => Err(wrong),
    }
}

impl From<PoolTip> for Tip {
    fn from(tip: PoolTip) -> Self {
        let PoolTip { previous_hash, height, nbits, min_ntime, block_time, subsidy } = tip;
        Tip { previous_hash: hex::encode(previous_hash), height, nbits, min_ntime, block_time, subsidy }
    }
}

impl Tip {
    pub(crate) fn read(&self) -> Result<PoolTip, Wrong> {
        let Tip { height, nbits, min_ntime, block_time, subsidy, .. } = *self;
        let previous_hash = hash_of(&self.previous_hash, "previous_hash")?;
        Ok(PoolTip { previous_hash, height, nbits, min_ntime, block_time, subsidy })
    }
}

impl From<&CustomJob> for Job {
    fn from(job: &CustomJob) -> Self {
        Job {
            version: job.version,
            tip: job.tip.into(),
            min_ntime: job.min_ntime,
            coinbase_prefix: hex::encode(&job.coinbase.prefix),
            extranonce_size: job.coinbase.extranonce_size,
            coinbase_suffix: hex::encode(&job.coinbase.suffix),
            merkle_path: job.merkle_path.iter().map(hex::encode).collect(),
            payout: job.payout,
            declared: job.declared.as_deref().map(Declared::from),
        }
    }
}

impl From<&DeclaredJob> for Declared {
    fn from(job: &DeclaredJob) -> Self {
        let (prefix, suffix) = job.coinbase.declared_parts();
        Declared {
            version: job.version,
            coinbase_prefix: hex::encode(prefix),
            coinbase_suffix: hex::encode(suffix),
            outputs: scripts_of(&job.pool_outputs),
            transactions: job.transactions.iter().map(|one| hex::encode(&one.raw)).collect(),
        }
    }
}

impl Job {
    /// Checks that all fits together, and a channel with this many bytes of extranonce.
    pub(crate) fn read(&self, extranonce_size: usize) -> Result<CustomJob, Wrong> {
        if self.extranonce_size != extranonce_size {
            return Err(Wrong("extranonce_size"));
        }
        let tip = self.tip.read()?;
        let path = self.merkle_path.iter().map(|hash| hash_of(hash, "merkle_path"));
        let declared = self.declared.as_ref().map(|declared| declared.read(tip)).transpose()?;
        Ok(CustomJob {
            version: self.version,
            tip,
            min_ntime: self.min_ntime,
            coinbase: CoinbaseParts {
                prefix: bytes_of(&self.coinbase_prefix, "coinbase_prefix")?,
                extranonce_size,
                suffix: bytes_of(&self.coinbase_suffix, "coinbase_suffix")?,
            },
            merkle_path: path.collect::<Result<_, Wrong>>()?,
            payout: self.payout,
            declared: declared.map(Arc::new),
        })
    }
}

impl Declared {
    fn read(&self, tip: PoolTip) -> Result<DeclaredJob, Wrong> {
        let prefix = bytes_of(&self.coinbase_prefix, "declared.coinbase_prefix")?;
        let suffix = bytes_of(&self.coinbase_suffix, "declared.coinbase_suffix")?;
        let coinbase = Skeleton::parse(&prefix, &suffix).map_err(|_| Wrong("declared coinbase"))?;
        let transaction = |text: &String| {
            let raw = bytes_of(text, "declared.transactions")?;
            RawTransaction::parse(&raw).map_err(|_| Wrong("declared.transactions"))
        };
        let transactions = self.transactions.iter().map(transaction).collect::<Result<_, Wrong>>()?;
        let outputs = outputs_of(&self.outputs)?.into();
        DeclaredJob::new(DeclarationId(0), self.version, coinbase, outputs, transactions, tip)
            .map_err(|Refusal { .. }| Wrong("declared job"))
    }
}

#[cfg(test)]
mod tests;
