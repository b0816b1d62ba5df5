//! One transaction by its bytes: what it is called with and without its witness.
//!
//! This module never judges what a transaction spends: the node does that.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use bitcoin::consensus::deserialize;
use bitcoin::hashes::Hash as _;
use stratum::hash::{Hash, sha256d};

use crate::block_template::{MAX_TRANSACTION_BYTES, TemplateTransaction};

/// A transaction that somebody may have declared.
#[derive(Clone, PartialEq, Eq)]
pub struct RawTransaction {
    /// The hash without witness.
    pub txid: Hash,
    /// The hash with witness.
    pub wtxid: Hash,
    /// The whole transaction, witness included; shared, because many jobs hold the same transactions.
    pub raw: Arc<[u8]>,
}

/// Bytes that are no transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are no transaction")]
pub struct NoTransaction;

impl RawTransaction {
    /// Reads a peer's bytes, all of which must be the transaction.
    pub fn parse(raw: &[u8]) -> Result<Self, NoTransaction> {
        if raw.len() > MAX_TRANSACTION_BYTES {
            return Err(NoTransaction);
        }
        let transaction: bitcoin::Transaction = deserialize(raw).map_err(|_| NoTransaction)?;
        // A second coinbase is in no block, and a job's own is not among its transactions.
        if transaction.is_coinbase() || transaction.input.is_empty() {
            return Err(NoTransaction);
        }
        let txid = transaction.compute_txid().to_byte_array();
        // The bytes are hashed as they came: a node that reads them hashes the same.
        Ok(RawTransaction { txid, wtxid: sha256d(raw), raw: raw.into() })
    }
}

impl From<&TemplateTransaction> for RawTransaction {
    fn from(transaction: &TemplateTransaction) -> Self {
        let TemplateTransaction { txid, wtxid, raw, .. } = transaction;
        RawTransaction { txid: *txid, wtxid: *wtxid, raw: raw.as_slice().into() }
    }
}

/// The transactions of a template, as they are read one after the other.
#[derive(Debug)]
pub(crate) struct TransactionList {
    places: HashMap<Hash, u32>,
    transactions: Vec<TemplateTransaction>,
}

impl TransactionList {
    pub(crate) fn with_capacity(count: usize) -> Self {
        TransactionList { places: HashMap::with_capacity(count), transactions: Vec::with_capacity(count) }
    }

    /// Adds the next one, of which `raw` are the bytes. A list is bounded by who calls, far below the numbers of a
    /// place.
    pub(crate) fn push(&mut self, transaction: &bitcoin::Transaction, raw: Vec<u8>, fee: u64, sigops: u64) {
        let txid = transaction.compute_txid().to_byte_array();
        let spent = transaction.input.iter().map(|input| input.previous_output.txid.to_byte_array());
        let mut depends: Vec<u32> = spent.filter_map(|txid| self.places.get(&txid).copied()).collect();
        depends.sort_unstable();
        depends.dedup();
        self.places.insert(txid, self.transactions.len() as u32);
        let (wtxid, weight) = (sha256d(&raw), transaction.weight().to_wu());
        self.transactions.push(TemplateTransaction { txid, wtxid, raw, fee, weight, sigops, depends });
    }

    pub(crate) fn finish(self) -> Vec<TemplateTransaction> {
        self.transactions
    }
}

/// Megabytes do not belong in a log.
impl fmt::Debug for RawTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wtxid = crate::block_template::displayed(&self.wtxid);
        f.debug_struct("RawTransaction").field("wtxid", &wtxid).field("bytes", &self.raw.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block_template::tests::{small_template, with_transactions};
    use proptest::prelude::*;

    #[test]
    fn a_transaction_has_two_names() {
        let template = with_transactions(small_template(5), 3);
        for transaction in &template.transactions {
            let read = RawTransaction::parse(&transaction.raw).expect("a transaction");
            assert_eq!(read, RawTransaction::from(transaction));
            assert_ne!(read.txid, read.wtxid);
            for length in 0..transaction.raw.len() {
                assert!(RawTransaction::parse(&transaction.raw[..length]).is_err());
            }
            let long = [&transaction.raw[..], &[0]].concat();
            assert!(RawTransaction::parse(&long).is_err());
        }
    }

    #[test]
    fn a_coinbase_is_none_of_a_jobs_transactions() {
        let rules = crate::CoinbaseRules::new(vec![0x51], vec![], 4).expect("fits");
        let coinbase = rules.parts(&small_template(9)).expect("fits").with_extranonce(&[1; 4]);
        assert_eq!(RawTransaction::parse(&coinbase), Err(NoTransaction));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn hostile_bytes_never_panic(
            bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(0xff), any::<u8>()], 0..300),
        ) {
            let _ = RawTransaction::parse(&bytes);
        }
    }
}
