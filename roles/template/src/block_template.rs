//! A block template as a node describes it, and the reading of `getblocktemplate` answers (BIP 22, 23, 145).
//!
//! This module never asks a node and never judges transactions: the node has done that. It only refuses
//! answers from which no block could be built, and says so as the node's fault.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use stratum::hash::{Hash, merkle_node};
use stratum::{Now, Target, TemplateId};

use crate::merkle::merkle_path;

/// Most transactions besides the coinbase: a transaction has at least 60 bytes without witness, 240 of the
/// 4,000,000 weight units of a block (BIP 141). An answer with more is refused, so that no path is longer
/// than a native SV2 miner can take.
pub const MAX_TRANSACTIONS: usize = 4_000_000 / 240;

/// Most bytes of all transactions together: weight counts each byte at least once (BIP 141).
pub const MAX_TRANSACTION_BYTES: usize = 4_000_000;

/// All the satoshis that there will ever be.
pub const MAX_MONEY: u64 = 21_000_000 * 100_000_000;

/// How far before its own time a source that does not say the lowest time of the next block is taken to allow: two
/// nodes' clocks differ by less, and others' jobs are judged by it. The median of eleven blocks lies nearly always
/// further back; who goes below it makes a block that no node takes.
pub(crate) const CLOCK_TOLERANCE: u32 = 600;

/// Longest identifier of a long poll that is kept; Bitcoin Core's are 65 to 75 bytes.
pub const MAX_LONG_POLL_ID: usize = 256;

/// How a witness commitment begins: OP_RETURN, a push of 36 bytes, the magic of BIP 141.
pub(crate) const COMMITMENT_START: [u8; 6] = [0x6a, 0x24, 0xaa, 0x21, 0xa9, 0xed];

/// Bytes of a witness commitment (BIP 141), the 32-byte hash included.
pub(crate) const COMMITMENT_SIZE: usize = 38;

/// What a block may be made of: everything but the coinbase, the time and the nonce.
#[derive(Clone, PartialEq, Eq)]
pub struct BlockTemplate {
    /// Our number of this template.
    pub id: TemplateId,
    /// The height of the block to find.
    pub height: u32,
    /// The hash of the block to build on.
    pub previous_hash: Hash,
    /// The header's version.
    pub version: u32,
    /// The compact target of the block to find.
    pub nbits: u32,
    /// The lowest time that the header may carry; unix seconds.
    pub min_ntime: u32,
    /// The node's time when it made the template, never below `min_ntime`; unix seconds.
    pub current_time: u32,
    /// What the coinbase may pay, subsidy and fees; satoshis.
    pub coinbase_value: u64,
    /// The script of the output that commits to the witnesses (BIP 141) of these transactions and of a
    /// coinbase whose witness is 32 zero bytes. Absent where segregated witness is not active.
    pub witness_commitment: Option<Vec<u8>>,
    /// The transactions after the coinbase, in block order.
    pub transactions: Vec<TemplateTransaction>,
    /// The siblings of the coinbase on its way to the merkle root, lowest first.
    pub merkle_path: Vec<Hash>,
    /// Most weight of the whole block.
    pub weight_limit: u64,
    /// Highest cost of signature operations in the whole block (BIP 141).
    pub sigop_limit: u64,
    /// What to show the node to be told when this template is outdated. Absent where the node offers none.
    pub long_poll_id: Option<String>,
    /// When the last byte of the answer was read.
    pub received: Now,
}

/// One transaction of a template.
#[derive(Clone, PartialEq, Eq)]
pub struct TemplateTransaction {
    /// The hash without witness.
    pub txid: Hash,
    /// The hash with witness.
    pub wtxid: Hash,
    /// The whole transaction as it goes into the block, witness included.
    pub raw: Vec<u8>,
    /// What it pays; satoshis.
    pub fee: u64,
    /// Its weight (BIP 141).
    pub weight: u64,
    /// Its cost of signature operations (BIP 141).
    pub sigops: u64,
    /// The places in [`BlockTemplate::transactions`] of those that must come before it.
    pub depends: Vec<u32>,
}

/// Why a node's answer is no template. Always the node's fault, or that of something between it and us.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Not JSON, or not of the shape that BIP 22 describes.
    #[error("the node's block template cannot be read: {0}")]
    Unreadable(String),
    /// A value that no block could have.
    #[error("the node's block template is wrong: {field} {problem}")]
    Wrong {
        /// The field of the answer.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl BlockTemplate {
    /// Reads the `result` of a `getblocktemplate` answer that was asked for with the rule `segwit`.
    ///
    /// The caller bounds the length of `json`. Nothing in it is hashed again: the node is trusted with txids.
    pub fn from_json(id: TemplateId, json: &[u8], received: Now) -> Result<Self, TemplateError> {
        let answer: Answer<'_> =
            serde_json::from_slice(json).map_err(|error| TemplateError::Unreadable(error.to_string()))?;
        answer.check_limits()?;
        let transactions = transactions(&answer.transactions)?;
        let txids: Vec<Hash> = transactions.iter().map(|transaction| transaction.txid).collect();
        Ok(BlockTemplate {
            id,
            height: answer.height,
            previous_hash: hash("previousblockhash", answer.previousblockhash)?,
            version: answer.version as u32,
            nbits: nbits(answer.bits)?,
            min_ntime: answer.mintime,
            current_time: answer.curtime.max(answer.mintime),
            coinbase_value: answer.coinbasevalue,
            witness_commitment: answer.default_witness_commitment.map(commitment).transpose()?,
            merkle_path: merkle_path(&txids),
            transactions,
            weight_limit: answer.weightlimit,
            sigop_limit: answer.sigoplimit,
            long_poll_id: answer.longpollid.map(Cow::into_owned),
            received,
        })
    }

    /// `nbits` unpacked: a block hash must not exceed it.
    pub fn network_target(&self) -> Target {
        Target::from_compact(self.nbits)
    }

    /// Whether both build on the same block.
    pub fn same_tip(&self, other: &BlockTemplate) -> bool {
        self.previous_hash == other.previous_hash
    }

    /// What the transactions pay together; satoshis.
    pub fn fees(&self) -> u64 {
        self.transactions.iter().map(|transaction| transaction.fee).sum()
    }

    /// The 80-byte header of a block on this template.
    pub fn header(&self, version: u32, merkle_root: &Hash, ntime: u32, nonce: u32) -> [u8; 80] {
        let mut header = [0; 80];
        header[0..4].copy_from_slice(&version.to_le_bytes());
        header[4..36].copy_from_slice(&self.previous_hash);
        header[36..68].copy_from_slice(merkle_root);
        header[68..72].copy_from_slice(&ntime.to_le_bytes());
        header[72..76].copy_from_slice(&self.nbits.to_le_bytes());
        header[76..80].copy_from_slice(&nonce.to_le_bytes());
        header
    }
}

/// The script that commits to witnesses (BIP 141), for transactions with these wtxids and a coinbase whose
/// witness is 32 zero bytes. For those who change a template; a node's own template brings its commitment.
pub fn witness_commitment(wtxids: &[Hash]) -> Vec<u8> {
    // The coinbase counts with a wtxid of zeros, and so does the reserved value in its witness.
    let root = stratum::hash::merkle_root([0; 32], &merkle_path(wtxids));
    let mut script = COMMITMENT_START.to_vec();
    script.extend_from_slice(&merkle_node(&root, &[0; 32]));
    script
}

/// Millions of bytes of transactions do not belong in a log.
impl fmt::Debug for BlockTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockTemplate")
            .field("id", &self.id)
            .field("height", &self.height)
            .field("nbits", &format_args!("{:08x}", self.nbits))
            .field("coinbase_value", &self.coinbase_value)
            .field("transactions", &self.transactions.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for TemplateTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TemplateTransaction")
            .field("txid", &displayed(&self.txid))
            .field("bytes", &self.raw.len())
            .field("fee", &self.fee)
            .finish_non_exhaustive()
    }
}

/// The fields of an answer that we use. Unknown ones, and rules that came after this program, are left alone.
#[derive(Deserialize)]
struct Answer<'a> {
    version: i32,
    previousblockhash: &'a str,
    #[serde(borrow)]
    transactions: Vec<AnswerTransaction<'a>>,
    coinbasevalue: u64,
    #[serde(borrow, default)]
    longpollid: Option<Cow<'a, str>>,
    mintime: u32,
    curtime: u32,
    bits: &'a str,
    height: u32,
    #[serde(default = "default_weight_limit")]
    weightlimit: u64,
    #[serde(default = "default_sigop_limit")]
    sigoplimit: u64,
    #[serde(default)]
    default_witness_commitment: Option<&'a str>,
}

#[derive(Deserialize)]
struct AnswerTransaction<'a> {
    data: &'a str,
    txid: &'a str,
    hash: &'a str,
    fee: u64,
    sigops: u64,
    weight: u64,
    #[serde(default)]
    depends: Vec<u32>,
}

/// The consensus limit (BIP 141), for a node that names none.
fn default_weight_limit() -> u64 {
    4_000_000
}

/// The consensus limit (BIP 141), for a node that names none.
fn default_sigop_limit() -> u64 {
    80_000
}

impl Answer<'_> {
    fn check_limits(&self) -> Result<(), TemplateError> {
        if self.height == 0 || self.height > i32::MAX as u32 {
            return wrong("height", format!("is {}", self.height));
        }
        if self.coinbasevalue > MAX_MONEY {
            return wrong(
                "coinbasevalue",
                format!("is {} satoshis, more than there are", self.coinbasevalue),
            );
        }
        if self.transactions.len() > MAX_TRANSACTIONS {
            return wrong(
                "transactions",
                format!("are {}, more than fit in a block", self.transactions.len()),
            );
        }
        if self.longpollid.as_ref().is_some_and(|id| id.len() > MAX_LONG_POLL_ID) {
            return wrong("longpollid", format!("is longer than {MAX_LONG_POLL_ID} bytes"));
        }
        let bytes: usize = self.transactions.iter().map(|transaction| transaction.data.len() / 2).sum();
        if bytes > MAX_TRANSACTION_BYTES {
            return wrong("transactions", format!("have {bytes} bytes, more than fit in a block"));
        }
        let fees =
            self.transactions.iter().try_fold(0u64, |sum, transaction| sum.checked_add(transaction.fee));
        match fees {
            Some(fees) if fees <= self.coinbasevalue => Ok(()),
            _ => wrong("coinbasevalue", "is less than the fees of the transactions".to_owned()),
        }
    }
}

fn transactions(answers: &[AnswerTransaction<'_>]) -> Result<Vec<TemplateTransaction>, TemplateError> {
    answers.iter().enumerate().map(|(place, answer)| transaction(place, answer)).collect()
}

fn transaction(place: usize, answer: &AnswerTransaction<'_>) -> Result<TemplateTransaction, TemplateError> {
    /// A transaction of no input and no output: version, two counts, lock time.
    const MIN_TRANSACTION: usize = 10;
    let raw = bytes("transactions.data", answer.data)?;
    if raw.len() < MIN_TRANSACTION {
        return wrong("transactions.data", format!("has {} bytes", raw.len()));
    }
    // Sums over a template must not overflow.
    if answer.weight > default_weight_limit() || answer.sigops > default_sigop_limit() {
        return wrong("transactions", format!("number {} takes more than a whole block has", place + 1));
    }
    // BIP 22 counts from 1.
    let depends: Option<Vec<u32>> = answer
        .depends
        .iter()
        .map(|number| number.checked_sub(1).filter(|earlier| (*earlier as usize) < place))
        .collect();
    let Some(depends) = depends else {
        return wrong("transactions.depends", format!("of transaction {} names no earlier one", place + 1));
    };
    Ok(TemplateTransaction {
        txid: hash("transactions.txid", answer.txid)?,
        wtxid: hash("transactions.hash", answer.hash)?,
        raw,
        fee: answer.fee,
        weight: answer.weight,
        sigops: answer.sigops,
        depends,
    })
}

fn commitment(text: &str) -> Result<Vec<u8>, TemplateError> {
    let script = bytes("default_witness_commitment", text)?;
    if script.len() != COMMITMENT_SIZE || !script.starts_with(&COMMITMENT_START) {
        return wrong("default_witness_commitment", "is not the script of BIP 141".to_owned());
    }
    Ok(script)
}

fn nbits(text: &str) -> Result<u32, TemplateError> {
    let mut bytes = [0; 4];
    match hex::decode_to_slice(text, &mut bytes) {
        Ok(()) => Ok(u32::from_be_bytes(bytes)),
        Err(_) => wrong("bits", "is not four bytes in hexadecimal".to_owned()),
    }
}

/// A hash as nodes print it: reversed.
fn hash(field: &'static str, text: &str) -> Result<Hash, TemplateError> {
    let mut hash = [0; 32];
    match hex::decode_to_slice(text, &mut hash) {
        Ok(()) => {
            hash.reverse();
            Ok(hash)
        }
        Err(_) => wrong(field, "is not a hash of 64 hexadecimal digits".to_owned()),
    }
}

fn bytes(field: &'static str, text: &str) -> Result<Vec<u8>, TemplateError> {
    hex::decode(text).or_else(|error| wrong(field, format!("is not hexadecimal: {error}")))
}

pub(crate) fn wrong<T>(field: &'static str, problem: String) -> Result<T, TemplateError> {
    Err(TemplateError::Wrong { field, problem })
}

/// A hash as people and nodes write it: reversed hexadecimal.
pub fn displayed(hash: &Hash) -> String {
    let mut reversed = *hash;
    reversed.reverse();
    hex::encode(reversed)
}

#[cfg(test)]
pub(crate) mod tests;
