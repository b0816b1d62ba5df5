//! Judges blocks as a node would, for the development chain and for tests of what is assembled.
//!
//! This module shares no code with `template` or `stratum`, so that a mistake there cannot hide here:
//! decoding, hashing, merkle trees and targets are those of the crate `bitcoin`. It never runs scripts, reads
//! no clock and keeps nothing between two blocks. Reasons are Bitcoin Core's words.

use std::collections::{HashMap, HashSet};

use bitcoin::consensus::deserialize;
use bitcoin::pow::CompactTarget;
use bitcoin::script::Builder;
use bitcoin::{Amount, Block, BlockHash, OutPoint, Transaction, Txid, Weight};

/// How far ahead of the clock a block's time may be (consensus); seconds.
const MAX_FUTURE: u32 = 2 * 60 * 60;

/// The most legacy signature operations of a block (consensus: 80,000 at a cost of 4 each).
const MAX_LEGACY_SIGOPS: usize = 20_000;

/// The lengths that the script of a coinbase's input may have (consensus).
const COINBASE_SCRIPT_LENGTHS: std::ops::RangeInclusive<usize> = 2..=100;

/// The length of the witness of a coinbase (BIP 141).
const WITNESS_RESERVED_SIZE: usize = 32;

/// The lowest block version since BIP 65.
const MIN_BLOCK_VERSION: i32 = 4;

/// Lock times below this are heights (BIP 65).
const LOCK_TIME_THRESHOLD: u32 = 500_000_000;

/// The chain that a block is to extend.
#[derive(Clone, Debug)]
pub struct ChainContext {
    /// The tip.
    pub previous: BlockHash,
    /// The height that the block will have.
    pub height: u32,
    /// The compact target that it must name and meet.
    pub nbits: CompactTarget,
    /// The median time of the last eleven blocks; unix seconds.
    pub median_time: u32,
    /// The time now; unix seconds.
    pub now: u32,
    /// Blocks between two halvings of the subsidy: 210,000, and 150 in regtest.
    pub halving_interval: u32,
}

/// A block that is the new tip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Valid {
    /// Its hash.
    pub hash: BlockHash,
    /// Its time; unix seconds.
    pub time: u32,
    /// Its transactions, the coinbase among them.
    pub transactions: Vec<Txid>,
}

/// A block that is not valid, or does not extend the tip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Invalid {
    /// Bitcoin Core's words.
    pub reason: &'static str,
}

/// Judges the bytes of a block. `coin` knows the values of the unspent outputs of the chain.
pub fn validate(
    bytes: &[u8],
    context: &ChainContext,
    coin: impl Fn(&OutPoint) -> Option<Amount>,
) -> Result<Valid, Invalid> {
    let block: Block = deserialize(bytes).map_err(|_| Invalid { reason: "Block decode failed" })?;
    check_place(&block, context)?;
    check_proof_of_work(&block, context)?;
    check_all_but_work(&block, context, coin)
}

/// Judges everything but the proof of work, as a node judges a proposal (BIP 23).
pub fn validate_proposal(
    bytes: &[u8],
    context: &ChainContext,
    coin: impl Fn(&OutPoint) -> Option<Amount>,
) -> Result<Valid, Invalid> {
    let block: Block = deserialize(bytes).map_err(|_| Invalid { reason: "Block decode failed" })?;
    check_place(&block, context)?;
    check_all_but_work(&block, context, coin)
}

fn check_all_but_work(
    block: &Block,
    context: &ChainContext,
    coin: impl Fn(&OutPoint) -> Option<Amount>,
) -> Result<Valid, Invalid> {
    require(block.header.bits == context.nbits, "bad-diffbits")?;
    check_header(block, context)?;
    let coinbase = check_structure(block)?;
    check_coinbase(coinbase, context)?;
    check_finality(block, context)?;
    check_witnesses(block, coinbase)?;
    require(block.weight() <= Weight::MAX_BLOCK, "bad-blk-weight")?;
    check_amounts(block, coinbase, context, coin)?;
    Ok(Valid {
        hash: block.block_hash(),
        time: block.header.time,
        transactions: block.txdata.iter().map(Transaction::compute_txid).collect(),
    })
}

fn require(holds: bool, reason: &'static str) -> Result<(), Invalid> {
    if holds { Ok(()) } else { Err(Invalid { reason }) }
}

fn check_place(block: &Block, context: &ChainContext) -> Result<(), Invalid> {
    require(block.header.prev_blockhash == context.previous, "inconclusive-not-best-prevblk")
}

fn check_proof_of_work(block: &Block, context: &ChainContext) -> Result<(), Invalid> {
    require(block.header.bits == context.nbits, "bad-diffbits")?;
    require(block.header.validate_pow(block.header.target()).is_ok(), "high-hash")
}

fn check_header(block: &Block, context: &ChainContext) -> Result<(), Invalid> {
    require(block.header.time > context.median_time, "time-too-old")?;
    require(block.header.time <= context.now.saturating_add(MAX_FUTURE), "time-too-new")?;
    require(block.header.version.to_consensus() >= MIN_BLOCK_VERSION, "bad-version")
}

fn check_structure(block: &Block) -> Result<&Transaction, Invalid> {
    require(block.check_merkle_root(), "bad-txnmrklroot")?;
    // A merkle tree hides a repeated end of the list (CVE-2012-2459).
    let txids: HashSet<Txid> = block.txdata.iter().map(Transaction::compute_txid).collect();
    require(txids.len() == block.txdata.len(), "bad-txns-duplicate")?;
    let (coinbase, others) = block.txdata.split_first().ok_or(Invalid { reason: "bad-blk-length" })?;
    require(coinbase.is_coinbase(), "bad-cb-missing")?;
    require(!others.iter().any(Transaction::is_coinbase), "bad-cb-multiple")?;
    let sigops: usize = block
        .txdata
        .iter()
        .flat_map(|transaction| {
            let inputs = transaction.input.iter().map(|input| input.script_sig.count_sigops_legacy());
            inputs.chain(transaction.output.iter().map(|output| output.script_pubkey.count_sigops_legacy()))
        })
        .sum();
    require(sigops <= MAX_LEGACY_SIGOPS, "bad-blk-sigops")?;
    Ok(coinbase)
}

fn check_coinbase(coinbase: &Transaction, context: &ChainContext) -> Result<(), Invalid> {
    let script = &coinbase.input[0].script_sig;
    require(COINBASE_SCRIPT_LENGTHS.contains(&script.len()), "bad-cb-length")?;
    let height = Builder::new().push_int(i64::from(context.height)).into_script();
    require(script.as_bytes().starts_with(height.as_bytes()), "bad-cb-height")
}

fn check_finality(block: &Block, context: &ChainContext) -> Result<(), Invalid> {
    let is_final = |transaction: &Transaction| {
        let lock_time = transaction.lock_time.to_consensus_u32();
        let limit = if lock_time < LOCK_TIME_THRESHOLD { context.height } else { context.median_time };
        lock_time < limit || transaction.input.iter().all(|input| input.sequence.is_final())
    };
    require(block.txdata.iter().all(is_final), "bad-txns-nonfinal")
}

fn check_witnesses(block: &Block, coinbase: &Transaction) -> Result<(), Invalid> {
    const MAGIC: [u8; 6] = [0x6a, 0x24, 0xaa, 0x21, 0xa9, 0xed];
    let commits = coinbase.output.iter().any(|output| {
        output.script_pubkey.len() >= MAGIC.len() + 32 && output.script_pubkey.as_bytes().starts_with(&MAGIC)
    });
    if !commits {
        let bare = block.txdata.iter().flat_map(|transaction| &transaction.input);
        return require(bare.clone().all(|input| input.witness.is_empty()), "unexpected-witness");
    }
    let witness = &coinbase.input[0].witness;
    let reserved = witness.iter().next().is_some_and(|item| item.len() == WITNESS_RESERVED_SIZE);
    require(witness.len() == 1 && reserved, "bad-witness-nonce-size")?;
    require(block.check_witness_commitment(), "bad-witness-merkle-match")
}

fn check_amounts(
    block: &Block,
    coinbase: &Transaction,
    context: &ChainContext,
    coin: impl Fn(&OutPoint) -> Option<Amount>,
) -> Result<(), Invalid> {
    let missing = Invalid { reason: "bad-txns-inputs-missingorspent" };
    let mut spent = HashSet::new();
    let mut made: HashMap<OutPoint, Amount> = HashMap::new();
    let mut fees = Amount::ZERO;
    for transaction in &block.txdata[1..] {
        let mut inputs = Amount::ZERO;
        for input in &transaction.input {
            let outpoint = input.previous_output;
            require(spent.insert(outpoint), missing.reason)?;
            let value = made.get(&outpoint).copied().or_else(|| coin(&outpoint)).ok_or(missing)?;
            inputs =
                inputs.checked_add(value).ok_or(Invalid { reason: "bad-txns-inputvalues-outofrange" })?;
        }
        let paid = paid(transaction)?;
        fees += inputs.checked_sub(paid).ok_or(Invalid { reason: "bad-txns-in-belowout" })?;
        let txid = transaction.compute_txid();
        let outputs = transaction.output.iter().enumerate();
        made.extend(outputs.map(|(place, output)| (OutPoint::new(txid, place as u32), output.value)));
    }
    let allowed = subsidy(context) + fees;
    require(paid(coinbase)? <= allowed, "bad-cb-amount")
}

/// What a transaction pays out: never more than there is, so that sums of it do not overflow.
fn paid(transaction: &Transaction) -> Result<Amount, Invalid> {
    let too_large = Invalid { reason: "bad-txns-txouttotal-toolarge" };
    transaction.output.iter().try_fold(Amount::ZERO, |sum, output| {
        let sum = sum.checked_add(output.value).ok_or(too_large)?;
        if sum > Amount::MAX_MONEY { Err(too_large) } else { Ok(sum) }
    })
}

fn subsidy(context: &ChainContext) -> Amount {
    let halvings = context.height / context.halving_interval.max(1);
    Amount::from_sat(Amount::from_int_btc(50).to_sat().checked_shr(halvings).unwrap_or(0))
}
