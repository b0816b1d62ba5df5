//! One transaction by its bytes: what it is called with and without its witness.
//!
//! This module never judges what a transaction spends: the node does that.

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
