//! The development chain takes what is assembled from its own templates, and refuses what is broken on
//! purpose.

use super::*;
use bitcoin::consensus::{deserialize, serialize};
use bitcoin::{Amount, Block, ScriptBuf, TxOut};
use stratum::hash::merkle_root;
use template::{CoinbaseRules, assemble_block};

fn chain(hashes: u64) -> DevChain {
    let settings = DevChainSettings { seed: 11, nbits: nbits_for_hashes(hashes), transactions: 25 };
    DevChain::new(settings, Clock::start())
}

fn newest(chain: &DevChain) -> Arc<BlockTemplate> {
    chain.templates().borrow().clone().expect("a chain always has a template")
}

/// A block on `template` that only needs a nonce.
fn block(template: &BlockTemplate, extranonce: u8) -> Vec<u8> {
    let rules = CoinbaseRules::new(vec![0x51], b"/dev/".to_vec(), 8).expect("fits");
    let coinbase = rules.parts(template).expect("fits").with_extranonce(&[extranonce; 8]);
    let root = merkle_root(sha256d(&coinbase), &template.merkle_path);
    let header = template.header(template.version, &root, template.current_time, 0);
    assemble_block(template, &coinbase, &header)
}

/// The same block with a nonce that solves it.
fn solved(template: &BlockTemplate, mut block: Vec<u8>) -> Vec<u8> {
    for nonce in 0u32.. {
        block[76..80].copy_from_slice(&nonce.to_le_bytes());
        if template.network_target().is_met_by(&sha256d(&block[..80])) {
            break;
        }
    }
    block
}

#[test]
fn blocks_of_its_templates_become_tips() {
    let chain = chain(50);
    for count in 1..=30u8 {
        let template = newest(&chain);
        assert_eq!(template.height, FIRST_TIP_HEIGHT + u32::from(count));
        assert_eq!(template.transactions.len(), 25);
        let block = solved(&template, block(&template, count));
        assert_eq!(chain.submit(&block), SubmitOutcome::Accepted);
        assert_eq!(chain.submit(&block), SubmitOutcome::AlreadyKnown);
        assert_eq!(newest(&chain).previous_hash, sha256d(&block[..80]));
        assert!(newest(&chain).id > template.id);
    }
    let summary = chain.summary();
    assert_eq!((summary.accepted, summary.rejected), (30, 0));
}

#[test]
fn a_refreshed_template_is_as_good_as_the_one_before() {
    let chain = chain(2);
    let first = newest(&chain);
    chain.refresh();
    let second = newest(&chain);
    assert!(first.same_tip(&second));
    assert_ne!(first.transactions, second.transactions);
    // A job of the first template is still mined on: that its oldest transaction was dropped must not matter.
    assert_eq!(chain.submit(&solved(&first, block(&first, 1))), SubmitOutcome::Accepted);
    let third = newest(&chain);
    assert_eq!(chain.submit(&solved(&third, block(&third, 1))), SubmitOutcome::Accepted);
}

#[test]
fn a_block_of_an_older_tip_is_refused() {
    let chain = chain(2);
    let template = newest(&chain);
    let late = solved(&template, block(&template, 2));
    assert_eq!(chain.submit(&solved(&template, block(&template, 1))), SubmitOutcome::Accepted);
    let refused = SubmitOutcome::Rejected("inconclusive-not-best-prevblk".to_owned());
    assert_eq!(chain.submit(&late), refused);
    assert_eq!(chain.summary().rejected, 1);
}

#[test]
fn the_difficulty_changes_with_the_tip_after() {
    let chain = chain(2);
    let easy = newest(&chain).nbits;
    chain.set_nbits(nbits_for_hashes(100));
    let template = newest(&chain);
    assert_eq!(template.nbits, easy);
    assert_eq!(chain.submit(&solved(&template, block(&template, 1))), SubmitOutcome::Accepted);
    assert_eq!(newest(&chain).nbits, nbits_for_hashes(100));
}

/// How a block can be broken, and what must be said to it.
type Fault = (&'static str, fn(&mut Block));

const FAULTS: [Fault; 14] = [
    ("bad-txnmrklroot", |block| block.header.merkle_root = bitcoin::TxMerkleNode::all_zeros()),
    ("bad-cb-amount", |block| {
        block.txdata[0].output[0].value += Amount::ONE_SAT;
        repair_root(block);
    }),
    ("bad-witness-merkle-match", |block| {
        let last = block.txdata[0].output.len() - 1;
        let mut script = block.txdata[0].output[last].script_pubkey.to_bytes();
        script[20] ^= 1;
        block.txdata[0].output[last].script_pubkey = ScriptBuf::from(script);
        repair_root(block);
    }),
    ("bad-witness-nonce-size", |block| {
        block.txdata[0].input[0].witness = bitcoin::Witness::from_slice(&[[0u8; 31]]);
    }),
    ("unexpected-witness", |block| {
        block.txdata[0].output.pop();
        repair_root(block);
    }),
    ("bad-cb-height", |block| {
        let mut script = block.txdata[0].input[0].script_sig.to_bytes();
        script[1] ^= 1;
        block.txdata[0].input[0].script_sig = ScriptBuf::from(script);
        repair_root(block);
    }),
    ("bad-cb-length", |block| {
        block.txdata[0].input[0].script_sig = ScriptBuf::from(vec![0; 101]);
        repair_root(block);
    }),
    ("bad-txns-nonfinal", |block| {
        block.txdata[0].lock_time = bitcoin::absolute::LockTime::from_consensus(FIRST_TIP_HEIGHT + 1);
        repair_root(block);
    }),
    ("bad-cb-missing", |block| {
        block.txdata.remove(0);
        repair_root(block);
    }),
    ("bad-cb-multiple", |block| {
        let mut second = block.txdata[0].clone();
        second.output.push(TxOut { value: Amount::ZERO, script_pubkey: ScriptBuf::new() });
        block.txdata.push(second);
        repair_root(block);
    }),
    ("time-too-old", |block| block.header.time -= 600),
    ("time-too-new", |block| block.header.time += MAX_DRIFT),
    ("bad-diffbits", |block| block.header.bits = CompactTarget::from_consensus(0x1f7f_ffff)),
    ("inconclusive-not-best-prevblk", |block| block.header.prev_blockhash = BlockHash::all_zeros()),
];

/// More than two hours.
const MAX_DRIFT: u32 = 7300;

fn repair_root(block: &mut Block) {
    block.header.merkle_root = block.compute_merkle_root().expect("there are transactions");
}

#[test]
fn every_fault_has_its_reason() {
    let chain = chain(2);
    let template = newest(&chain);
    let sound = block(&template, 1);
    for (reason, fault) in FAULTS {
        let mut broken: Block = deserialize(&sound).expect("is a block");
        fault(&mut broken);
        let broken = solved(&template, serialize(&broken));
        assert_eq!(chain.submit(&broken), SubmitOutcome::Rejected(reason.to_owned()));
    }
    let missing = chain.lock().mempool.transactions()[0].txid;
    let mut without: Block = deserialize(&sound).expect("is a block");
    without.txdata.retain(|transaction| transaction.compute_txid().to_byte_array() != missing);
    repair_root(&mut without);
    let outcome = chain.submit(&solved(&template, serialize(&without)));
    assert_eq!(outcome, SubmitOutcome::Rejected("bad-witness-merkle-match".to_owned()));
    assert_eq!(chain.submit(&sound[..200]), SubmitOutcome::Rejected("Block decode failed".to_owned()));
    assert_eq!(chain.submit(&solved(&template, sound)), SubmitOutcome::Accepted);
}

#[test]
fn an_unsolved_block_is_refused() {
    let chain = chain(1 << 40);
    let template = newest(&chain);
    let refused = SubmitOutcome::Rejected("high-hash".to_owned());
    assert_eq!(chain.submit(&block(&template, 1)), refused);
}

#[test]
fn targets_are_as_easy_as_asked_for() {
    assert_eq!(nbits_for_hashes(0), 0x207f_ffff);
    assert_eq!(nbits_for_hashes(2), 0x207f_ffff);
    for hashes in [3u64, 500, 70_000, 1 << 32, 123_456_789_012] {
        let work = stratum::Target::from_compact(nbits_for_hashes(hashes)).work().0 as f64;
        assert!((work / hashes as f64 - 1.0).abs() < 0.0002, "{hashes}: {work}");
    }
}
