//! The node of a simulation: templates with transactions, and a validator that shares no code with what
//! assembles blocks.

use std::sync::Arc;

use bitcoin::BlockHash;
use bitcoin::hashes::Hash as _;
use bitcoin::pow::CompactTarget;
use checkweigh::dev_chain::mempool::Mempool;
use checkweigh::dev_chain::validator::{ChainContext, validate};
use stratum::{Now, TemplateId};
use template::BlockTemplate;
use template::block_template::witness_commitment;
use template::merkle::merkle_path;

use crate::hashing::{Hash, twice};

const HALVING_INTERVAL: u32 = 210_000;

#[derive(Debug)]
pub(crate) struct Chain {
    tip: Hash,
    height: u32,
    nbits: u32,
    mempool: Mempool,
    templates: u64,
    time: u32,
    /// Blocks of ours that became the tip.
    pub(crate) accepted: u64,
    /// Blocks of ours that came too late.
    pub(crate) stale: u64,
}

impl Chain {
    pub(crate) fn new(seed: u64, nbits: u32, now: Now) -> Self {
        Chain {
            tip: twice(&seed.to_le_bytes()),
            height: 900_000,
            nbits,
            mempool: Mempool::new(seed),
            templates: 0,
            time: now.unix_seconds() - 600,
            accepted: 0,
            stale: 0,
        }
    }

    pub(crate) fn template(&mut self, now: Now) -> Arc<BlockTemplate> {
        self.mempool.fill(5);
        self.templates += 1;
        let transactions = self.mempool.transactions();
        let txids: Vec<Hash> = transactions.iter().map(|transaction| transaction.txid).collect();
        let wtxids: Vec<Hash> = transactions.iter().map(|transaction| transaction.wtxid).collect();
        let fees: u64 = transactions.iter().map(|transaction| transaction.fee).sum();
        let height = self.height + 1;
        let min_ntime = self.time + 1;
        Arc::new(BlockTemplate {
            id: TemplateId(self.templates),
            height,
            previous_hash: self.tip,
            version: 0x2000_0000,
            nbits: self.nbits,
            min_ntime,
            current_time: now.unix_seconds().max(min_ntime),
            coinbase_value: (5_000_000_000 >> (height / HALVING_INTERVAL)) + fees,
            witness_commitment: Some(witness_commitment(&wtxids)),
            merkle_path: merkle_path(&txids),
            transactions,
            weight_limit: 4_000_000,
            sigop_limit: 80_000,
            long_poll_id: None,
            received: now,
        })
    }

    /// Other transactions for the next template.
    pub(crate) fn refresh(&mut self) {
        self.mempool.replace_oldest();
    }

    /// Somebody else found a block.
    pub(crate) fn foreign_block(&mut self, now: Now) {
        self.height += 1;
        self.tip = twice(&[self.tip.as_slice(), b"theirs"].concat());
        self.time = self.time.max(now.unix_seconds() - 600);
    }

    /// A block of ours. True when it is the new tip.
    pub(crate) fn submit(&mut self, block: &[u8], now: Now) -> bool {
        if block[4..36] != self.tip {
            self.stale += 1;
            return false;
        }
        let context = ChainContext {
            previous: BlockHash::from_byte_array(self.tip),
            height: self.height + 1,
            nbits: CompactTarget::from_consensus(self.nbits),
            median_time: self.time,
            now: now.unix_seconds(),
            halving_interval: HALVING_INTERVAL,
        };
        let valid = match validate(block, &context, |coin| self.mempool.coin(coin)) {
            Ok(valid) => valid,
            Err(invalid) => panic!("every block on the tip is valid, but: {invalid}"),
        };
        self.height += 1;
        self.tip = valid.hash.to_byte_array();
        self.time = self.time.max(valid.time - 600);
        self.mempool.remove(&valid.transactions);
        self.accepted += 1;
        true
    }
}
