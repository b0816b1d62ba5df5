//! A declared job: all that a block needs but for what miners roll.
//!
//! This module checks that the parts of a job belong together. Whether a block of it would be valid is for the node.

use std::fmt;
use std::sync::Arc;

use stratum::Target;
use stratum::hash::{Hash, header_hash, merkle_root, sha256d};
use stratum::job::SV2_VERSION_MASK;
use stratum::sv2::codes::declare_mining_job as codes;
use stratum::sv2::messages::PushSolution;
use template::block_template::{MAX_TRANSACTION_BYTES, witness_commitment};
use template::merkle::merkle_path;
use template::{Output, RawTransaction, Skeleton, assemble_declared_block};

use super::PoolTip;
use super::output::DeclarationId;

/// Bytes of a witness commitment that count; what follows in its script has no meaning (BIP 141).
const COMMITMENT_SIZE: usize = 38;

/// Why a job is refused: what the peer is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// One of the specification's codes.
    pub code: String,
    /// What was wrong, in words.
    pub details: String,
}

impl Refusal {
    /// A refusal with one of [`stratum::sv2::codes`].
    pub fn new(code: impl Into<String>, details: impl Into<String>) -> Self {
        Refusal { code: code.into(), details: details.into() }
    }
}

/// A job whose parts fit together.
pub struct DeclaredJob {
    /// Our number of the declaration, unique on its connection; for logs.
    pub id: DeclarationId,
    /// The header's version.
    pub version: u32,
    /// The coinbase but for its extranonce.
    pub coinbase: Skeleton,
    /// The outputs that the pool asked for; the first is its payout.
    pub pool_outputs: Arc<[Output]>,
    /// The transactions after the coinbase, in block order.
    pub transactions: Vec<RawTransaction>,
    /// The siblings of the coinbase on its way to the merkle root.
    pub merkle_path: Vec<Hash>,
    /// The tip that it builds on.
    pub tip: PoolTip,
}

/// A block that a declared job made.
#[derive(Clone, PartialEq, Eq)]
pub struct DeclaredBlock {
    /// Its hash, in internal byte order.
    pub hash: Hash,
    /// Its height.
    pub height: u32,
    /// The whole block, as nodes take it.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for DeclaredBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hash = template::block_template::displayed(&self.hash);
        f.debug_struct("DeclaredBlock").field("hash", &hash).field("bytes", &self.bytes.len()).finish()
    }
}

/// What a miner rolled.
#[derive(Clone, Copy, Debug)]
pub struct Solution<'a> {
    /// The whole extranonce.
    pub extranonce: &'a [u8],
    /// The header's version.
    pub version: u32,
    /// The header's time.
    pub ntime: u32,
    /// The header's nonce.
    pub nonce: u32,
}

impl DeclaredJob {
    /// Puts a job together. Fails when it could be no block: too large, or committing to other witnesses.
    pub fn new(
        id: DeclarationId,
        version: u32,
        coinbase: Skeleton,
        pool_outputs: Arc<[Output]>,
        transactions: Vec<RawTransaction>,
        tip: PoolTip,
    ) -> Result<Self, Refusal> {
        let size: usize = transactions.iter().map(|transaction| transaction.raw.len()).sum();
        if size > MAX_TRANSACTION_BYTES {
            let details = format!("the transactions have {size} bytes, more than fit in a block");
            return Err(Refusal::new(codes::INVALID_JOB, details));
        }
        check_commitment(&coinbase, &transactions)?;
        let txids: Vec<Hash> = transactions.iter().map(|transaction| transaction.txid).collect();
        let merkle_path = merkle_path(&txids);
        Ok(DeclaredJob { id, version, coinbase, pool_outputs, transactions, merkle_path, tip })
    }

    /// The height of its block.
    pub fn height(&self) -> u32 {
        self.tip.height
    }

    /// The whole block with zeros for whatever is rolled and the time of `ntime`: what a node validates (BIP 23).
    pub fn proposal(&self, ntime: u32) -> Vec<u8> {
        let extranonce = vec![0; self.coinbase.extranonce_size];
        let solution = Solution { extranonce: &extranonce, version: self.version, ntime, nonce: 0 };
        self.assemble(&self.header(&solution), &extranonce)
    }

    /// The block that a pushed solution makes of this job; `None` when it makes none.
    pub fn pushed(&self, solution: &PushSolution) -> Option<DeclaredBlock> {
        if solution.prev_hash != self.tip.previous_hash || solution.nbits != self.tip.nbits {
            return None;
        }
        let PushSolution { extranonce, version, ntime, nonce, .. } = solution;
        self.solved(&Solution { extranonce, version: *version, ntime: *ntime, nonce: *nonce })
    }

    /// The block that a share makes of this job; `None` when it makes none.
    pub fn solved(&self, solution: &Solution<'_>) -> Option<DeclaredBlock> {
        let is_rolled = (solution.version ^ self.version) & !SV2_VERSION_MASK == 0;
        if solution.extranonce.len() != self.coinbase.extranonce_size || !is_rolled {
            return None;
        }
        let header = self.header(solution);
        let hash = header_hash(&header);
        let is_met = Target::from_compact(self.tip.nbits).is_met_by(&hash);
        is_met.then(|| {
            let bytes = self.assemble(&header, solution.extranonce);
            DeclaredBlock { hash, height: self.height(), bytes }
        })
    }

    fn assemble(&self, header: &[u8; 80], extranonce: &[u8]) -> Vec<u8> {
        assemble_declared_block(header, &self.coinbase, extranonce, &self.transactions)
    }

    fn header(&self, solution: &Solution<'_>) -> [u8; 80] {
        let coinbase = self.coinbase.parts().with_extranonce(solution.extranonce);
        let root = merkle_root(sha256d(&coinbase), &self.merkle_path);
        let mut header = [0; 80];
        header[0..4].copy_from_slice(&solution.version.to_le_bytes());
        header[4..36].copy_from_slice(&self.tip.previous_hash);
        header[36..68].copy_from_slice(&root);
        header[68..72].copy_from_slice(&solution.ntime.to_le_bytes());
        header[72..76].copy_from_slice(&self.tip.nbits.to_le_bytes());
        header[76..80].copy_from_slice(&solution.nonce.to_le_bytes());
        header
    }
}

/// Millions of bytes of transactions do not belong in a log.
impl fmt::Debug for DeclaredJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeclaredJob")
            .field("height", &self.height())
            .field("transactions", &self.transactions.len())
            .finish_non_exhaustive()
    }
}

fn check_commitment(coinbase: &Skeleton, transactions: &[RawTransaction]) -> Result<(), Refusal> {
    let wtxids: Vec<Hash> = transactions.iter().map(|transaction| transaction.wtxid).collect();
    match coinbase.witness_commitment() {
        Some(commitment) if commitment[..COMMITMENT_SIZE] == witness_commitment(&wtxids) => Ok(()),
        Some(_) => {
            let details = "the coinbase commits to the witnesses of other transactions";
            Err(Refusal::new(codes::INVALID_COINBASE_TX, details))
        }
        None if transactions.iter().all(|transaction| transaction.txid == transaction.wtxid) => Ok(()),
        None => {
            let details = "there are transactions with witnesses, and the coinbase commits to none";
            Err(Refusal::new(codes::INVALID_COINBASE_TX, details))
        }
    }
}

/// Whether a coinbase pays what it must (SV2 6.4.3): every output of the pool is there, and all that is paid goes to
/// the first. Returns what it pays, or what is wrong in words.
///
/// A pool may take jobs that pay others too, for smaller rewards; we do not, because a share would then be worth
/// something else with every job.
pub fn check_payout(coinbase: &Skeleton, pool_outputs: &[Output], least: u64) -> Result<u64, String> {
    let Some((payout, others)) = pool_outputs.split_first() else {
        return Err("the pool has no payout output".to_owned());
    };
    let paid = coinbase.payout(&payout.script).unwrap_or(0);
    let value = coinbase.value();
    if paid == 0 {
        return Err("the pool's payout output is missing or pays nothing".to_owned());
    }
    if paid != value {
        return Err(format!("of {value} satoshis only {paid} go to the pool's payout output"));
    }
    if paid < least {
        return Err(format!("the pool's payout output gets {paid} satoshis of {least}"));
    }
    // Each of the pool's outputs needs one of its own, also where two are the same.
    let mut unused: Vec<&Output> = coinbase.outputs.iter().filter(|output| output.value == 0).collect();
    for wanted in others {
        match unused.iter().position(|output| output.script == wanted.script) {
            Some(place) => {
                unused.swap_remove(place);
            }
            None => return Err("an output that the pool asked for is missing".to_owned()),
        }
    }
    Ok(paid)
}
