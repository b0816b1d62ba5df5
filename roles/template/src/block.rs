//! A whole block, from a template, a coinbase and a solved header.
//!
//! This module never checks that the header is solved or that it names this coinbase: who found it did that.

use bitcoin::hashes::Hash as _;
use stratum::hash::{Hash, merkle_root};

use crate::BlockTemplate;
use crate::bytes::push_compact_size;
use crate::skeleton::{Skeleton, WITNESS};
use crate::transaction::RawTransaction;

/// Bytes of a transaction before its inputs.
const VERSION_SIZE: usize = 4;

/// Bytes of a transaction after its outputs.
const LOCK_TIME_SIZE: usize = 4;

/// The block of `header` on `template`, as nodes take it. `coinbase` is the coinbase without witness, exactly
/// as it was hashed; the witness is added when the template commits to witnesses.
///
/// Panics when `coinbase` is shorter than any transaction: it is one that we made.
pub fn assemble_block(template: &BlockTemplate, coinbase: &[u8], header: &[u8; 80]) -> Vec<u8> {
    assert!(coinbase.len() > VERSION_SIZE + LOCK_TIME_SIZE, "{} bytes are no coinbase", coinbase.len());
    let transactions: usize = template.transactions.iter().map(|transaction| transaction.raw.len()).sum();
    let mut block = Vec::with_capacity(80 + 5 + coinbase.len() + 2 + WITNESS.len() + transactions);
    block.extend_from_slice(header);
    push_compact_size(&mut block, 1 + template.transactions.len());
    if template.witness_commitment.is_some() {
        let (version, rest) = coinbase.split_at(VERSION_SIZE);
        let (inputs_and_outputs, lock_time) = rest.split_at(rest.len() - LOCK_TIME_SIZE);
        block.extend_from_slice(version);
        // Marker and flag (BIP 144).
        block.extend_from_slice(&[0, 1]);
        block.extend_from_slice(inputs_and_outputs);
        block.extend_from_slice(&WITNESS);
        block.extend_from_slice(lock_time);
    } else {
        block.extend_from_slice(coinbase);
    }
    for transaction in &template.transactions {
        block.extend_from_slice(&transaction.raw);
    }
    block
}

/// The block of `header` on a declared job: the coinbase with `extranonce`, and `transactions` after it.
///
/// Panics when `extranonce` has another length than [`Skeleton::extranonce_size`].
pub fn assemble_declared_block(
    header: &[u8; 80],
    coinbase: &Skeleton,
    extranonce: &[u8],
    transactions: &[RawTransaction],
) -> Vec<u8> {
    let coinbase = coinbase.with_witness(extranonce);
    let size: usize = transactions.iter().map(|transaction| transaction.raw.len()).sum();
    let mut block = Vec::with_capacity(80 + 5 + coinbase.len() + size);
    block.extend_from_slice(header);
    push_compact_size(&mut block, 1 + transactions.len());
    block.extend_from_slice(&coinbase);
    for transaction in transactions {
        block.extend_from_slice(&transaction.raw);
    }
    block
}

/// What a block says of itself: what a solution of its template is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SolvedBlock {
    /// The header's version.
    pub version: u32,
    /// The header's time; unix seconds.
    pub time: u32,
    /// The header's nonce.
    pub nonce: u32,
    /// The coinbase with its witness.
    pub coinbase: Vec<u8>,
    previous_hash: Hash,
    merkle_root: Hash,
    coinbase_txid: Hash,
}

impl SolvedBlock {
    /// Reads the header and the coinbase of a block; the rest is its template's. `None` where there are none.
    pub fn read(block: &[u8]) -> Option<Self> {
        let (header, mut rest) = block.split_first_chunk::<80>()?;
        let number = |at: usize| Some(u32::from_le_bytes(header.get(at..at + 4)?.try_into().ok()?));
        let hash = |at: usize| header.get(at..at + 32)?.try_into().ok();
        let count_size = match rest.first()? {
            0xff => 9,
            0xfe => 5,
            0xfd => 3,
            _ => 1,
        };
        rest = rest.get(count_size..)?;
        let (coinbase, size) = bitcoin::consensus::deserialize_partial::<bitcoin::Transaction>(rest).ok()?;
        Some(SolvedBlock {
            version: number(0)?,
            previous_hash: hash(4)?,
            merkle_root: hash(36)?,
            time: number(68)?,
            nonce: number(76)?,
            coinbase_txid: coinbase.compute_txid().to_byte_array(),
            coinbase: rest[..size].to_vec(),
        })
    }

    /// Whether it is a block on the template with this tip and this way from the coinbase to the merkle root.
    pub fn is_on(&self, previous_hash: &Hash, merkle_path: &[Hash]) -> bool {
        self.previous_hash == *previous_hash
            && merkle_root(self.coinbase_txid, merkle_path) == self.merkle_root
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CoinbaseRules;
    use crate::block_template::tests::{small_template, with_transactions};
    use bitcoin::Block;
    use bitcoin::consensus::deserialize;
    use stratum::hash::{merkle_root, sha256d};

    #[test]
    fn blocks_of_any_size_hold_together() {
        for transactions in [0, 1, 2, 3, 20, 252, 253] {
            let template = with_transactions(small_template(900_001), transactions);
            let rules = CoinbaseRules::new(vec![0x51], b"tag".to_vec(), 12).expect("fits");
            let coinbase = rules.parts(&template).expect("fits").with_extranonce(&[3; 12]);
            let root = merkle_root(sha256d(&coinbase), &template.merkle_path);
            let header = template.header(template.version, &root, template.current_time, 5);
            let block: Block =
                deserialize(&assemble_block(&template, &coinbase, &header)).expect("is a block");
            assert_eq!(block.txdata.len(), 1 + transactions);
            assert!(block.check_merkle_root(), "{transactions} transactions");
            assert!(block.check_witness_commitment(), "{transactions} transactions");
            assert_eq!(block.bip34_block_height(), Ok(900_001));
            assert_eq!(block.header.block_hash().to_byte_array(), sha256d(&header));
            assert_eq!(block.txdata[0].compute_txid().to_byte_array(), sha256d(&coinbase));
        }
    }

    #[test]
    fn a_declared_block_is_the_one_that_its_template_makes() {
        for transactions in [0, 1, 300] {
            let template = with_transactions(small_template(900_001), transactions);
            let rules = CoinbaseRules::new(vec![0x51], b"tag".to_vec(), 12).expect("fits");
            let parts = rules.parts(&template).expect("fits");
            let skeleton = Skeleton::parse(&parts.prefix, &parts.suffix).expect("a coinbase");
            let header = template.header(template.version, &[5; 32], template.current_time, 5);
            let raw: Vec<_> = template.transactions.iter().map(RawTransaction::from).collect();
            assert_eq!(
                assemble_declared_block(&header, &skeleton, &[3; 12], &raw),
                assemble_block(&template, &parts.with_extranonce(&[3; 12]), &header)
            );
        }
    }

    #[test]
    fn without_a_commitment_the_coinbase_has_no_witness() {
        let mut template = small_template(3);
        template.witness_commitment = None;
        let rules = CoinbaseRules::new(vec![0x51], vec![], 4).expect("fits");
        let coinbase = rules.parts(&template).expect("fits").with_extranonce(&[3; 4]);
        let root = merkle_root(sha256d(&coinbase), &[]);
        let block: Block =
            deserialize(&assemble_block(&template, &coinbase, &template.header(4, &root, 9, 9)))
                .expect("is a block");
        assert!(block.txdata[0].input[0].witness.is_empty());
        assert!(block.check_merkle_root());
    }
}
