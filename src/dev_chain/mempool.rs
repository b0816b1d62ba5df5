//! Made-up transactions for the development chain, the same for the same seed.
//!
//! They spend made-up coins and carry witnesses, so that txid and wtxid differ and a mistake between the two
//! is seen. No signature is in them, and nobody checks one.

use std::collections::HashMap;

use bitcoin::absolute::LockTime;
use bitcoin::consensus::serialize;
use bitcoin::hashes::Hash as _;
use bitcoin::transaction::Version;
use bitcoin::{Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Witness};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use template::TemplateTransaction;

/// Most transactions of a template: enough for a merkle path as long as that of a full block.
pub const MAX_TRANSACTIONS: usize = 5000;

/// Most transactions that are dropped on one tip; then the mempool stays as it is until there is a block.
const MAX_DROPPED: usize = 1000;

/// Every so many transactions one spends the transaction before it, so that their order matters.
const CHAINED_EVERY: u64 = 4;

/// Of so many transactions one never reaches a neighbour, and neither does what spends it. No multiple of
/// [`CHAINED_EVERY`], so that both kinds of transactions are kept back.
const PRIVATE_EVERY: u64 = 10;

/// The script that all coins are locked with: anybody may spend them.
const OP_TRUE: u8 = 0x51;

/// Transactions that wait for a block.
#[derive(Debug)]
pub struct Mempool {
    random: StdRng,
    /// In block order: a transaction comes after the one that it spends. At most [`MAX_TRANSACTIONS`].
    waiting: Vec<Waiting>,
    /// The made-up coins that the waiting transactions spend, and those of `dropped`.
    coins: HashMap<OutPoint, Amount>,
    /// Coins whose transactions were dropped since the last tip: a job that holds them may still become a
    /// block. At most [`MAX_DROPPED`].
    dropped: Vec<OutPoint>,
    made: u64,
}

#[derive(Clone, Debug)]
struct Waiting {
    entry: TemplateTransaction,
    spends: OutPoint,
    /// The value of its only output.
    value: Amount,
    /// Whether it spends the one before it in `waiting`.
    chained: bool,
    /// Whether it is kept from neighbours.
    is_private: bool,
}

impl Mempool {
    /// An empty one.
    pub fn new(seed: u64) -> Self {
        Mempool {
            random: StdRng::seed_from_u64(seed),
            waiting: vec![],
            coins: HashMap::new(),
            dropped: vec![],
            made: 0,
        }
    }

    /// Makes transactions until `count` wait, at most [`MAX_TRANSACTIONS`].
    pub fn fill(&mut self, count: usize) {
        while self.waiting.len() < count.min(MAX_TRANSACTIONS) {
            self.make();
        }
    }

    /// The waiting transactions, as a node lists them.
    pub fn transactions(&self) -> Vec<TemplateTransaction> {
        listed(self.waiting.iter())
    }

    /// Those that a neighbour has heard of: about nine in ten.
    pub fn relayed(&self) -> Vec<TemplateTransaction> {
        // What spends a transaction that is kept back is of no use without it.
        let mut is_kept_back = false;
        listed(self.waiting.iter().filter(|waiting| {
            is_kept_back = waiting.is_private || (waiting.chained && is_kept_back);
            !is_kept_back
        }))
    }

    /// The value of a made-up coin that was not spent yet.
    pub fn coin(&self, outpoint: &OutPoint) -> Option<Amount> {
        self.coins.get(outpoint).copied()
    }

    /// Takes out what is in a block that became the tip.
    pub fn remove(&mut self, confirmed: &[Txid]) {
        for coin in self.dropped.drain(..) {
            self.coins.remove(&coin);
        }
        let confirmed: std::collections::HashSet<[u8; 32]> =
            confirmed.iter().map(|txid| txid.to_byte_array()).collect();
        let (gone, mut stay): (Vec<_>, Vec<_>) =
            self.waiting.drain(..).partition(|waiting| confirmed.contains(&waiting.entry.txid));
        // What spends an output of a confirmed transaction now spends a coin like any other.
        for waiting in &mut stay {
            if let Some(parent) =
                gone.iter().find(|parent| waiting.spends.txid.to_byte_array() == parent.entry.txid)
            {
                self.coins.insert(waiting.spends, parent.value);
                waiting.chained = false;
            }
        }
        for waiting in gone {
            self.coins.remove(&waiting.spends);
        }
        self.waiting = stay;
    }

    /// Drops the oldest transaction and what spends it, so that the next template differs. Does nothing when
    /// that happened very often without a block.
    pub fn replace_oldest(&mut self) {
        let chained = self.waiting.iter().skip(1).take_while(|waiting| waiting.chained).count();
        if self.dropped.len() + 1 + chained > MAX_DROPPED {
            return;
        }
        let oldest = self.waiting.drain(..(1 + chained).min(self.waiting.len()));
        self.dropped.extend(oldest.map(|waiting| waiting.spends));
    }

    fn make(&mut self) {
        self.made += 1;
        let parent = if self.made.is_multiple_of(CHAINED_EVERY) { self.waiting.last() } else { None };
        let chained = parent.is_some();
        let (spends, available) = match parent {
            Some(parent) => (OutPoint::new(Txid::from_byte_array(parent.entry.txid), 0), parent.value),
            None => {
                let outpoint = OutPoint::new(Txid::from_byte_array(self.random.r#gen()), 0);
                let value = Amount::from_sat(self.random.gen_range(1_000_000..100_000_000));
                self.coins.insert(outpoint, value);
                (outpoint, value)
            }
        };
        let fee = Amount::from_sat(self.random.gen_range(200..5_000));
        let value = available - fee;
        let entry = entry(&transaction(spends, value, self.random.r#gen()), fee);
        let is_private = self.made % PRIVATE_EVERY == 1;
        self.waiting.push(Waiting { entry, spends, value, chained, is_private });
    }
}

/// With the places of what they spend in this very list.
fn listed<'a>(waiting: impl Iterator<Item = &'a Waiting>) -> Vec<TemplateTransaction> {
    let with_place = |(place, waiting): (usize, &Waiting)| TemplateTransaction {
        depends: if waiting.chained { vec![place as u32 - 1] } else { vec![] },
        ..waiting.entry.clone()
    };
    waiting.enumerate().map(with_place).collect()
}

fn transaction(spends: OutPoint, value: Amount, witness: [u8; 32]) -> Transaction {
    let script = ScriptBuf::from(vec![OP_TRUE]);
    Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: spends,
            script_sig: ScriptBuf::new(),
            sequence: Sequence::MAX,
            witness: Witness::from_slice(&[&witness[..], script.as_bytes()]),
        }],
        output: vec![TxOut { value, script_pubkey: script.to_p2wsh() }],
    }
}

fn entry(transaction: &Transaction, fee: Amount) -> TemplateTransaction {
    TemplateTransaction {
        txid: transaction.compute_txid().to_byte_array(),
        wtxid: transaction.compute_wtxid().to_byte_array(),
        raw: serialize(transaction),
        fee: fee.to_sat(),
        weight: transaction.weight().to_wu(),
        sigops: 0,
        depends: vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_transactions() {
        let filled = |seed| {
            let mut mempool = Mempool::new(seed);
            mempool.fill(30);
            mempool.transactions()
        };
        assert_eq!(filled(1), filled(1));
        assert_ne!(filled(1), filled(2));
        assert!(filled(1).iter().all(|transaction| transaction.txid != transaction.wtxid));
        assert!(filled(1).iter().any(|transaction| !transaction.depends.is_empty()));
    }

    #[test]
    fn a_neighbour_hears_of_most_and_of_all_that_they_spend() {
        let mut mempool = Mempool::new(5);
        mempool.fill(400);
        let (all, heard) = (mempool.transactions(), mempool.relayed());
        assert!((320..=380).contains(&heard.len()), "{} of {}", heard.len(), all.len());
        assert!(heard.iter().any(|transaction| !transaction.depends.is_empty()));
        for transaction in &heard {
            let raw: Transaction = bitcoin::consensus::deserialize(&transaction.raw).expect("is one");
            let parent = raw.input[0].previous_output.txid.to_byte_array();
            let named = transaction.depends.first().map(|place| heard[*place as usize].txid);
            let spends_one = all.iter().any(|other| other.txid == parent);
            assert_eq!(named, spends_one.then_some(parent));
        }
    }

    #[test]
    fn no_coin_outlives_its_transaction() {
        let mut mempool = Mempool::new(3);
        for _ in 0..50 {
            mempool.fill(40);
            let half: Vec<Txid> = mempool
                .transactions()
                .iter()
                .take(21)
                .map(|transaction| Txid::from_byte_array(transaction.txid))
                .collect();
            mempool.replace_oldest();
            mempool.remove(&half);
            assert!(mempool.coins.len() <= mempool.waiting.len());
            for transaction in mempool.transactions() {
                let spent = bitcoin::consensus::deserialize::<Transaction>(&transaction.raw).expect("is one");
                let spent = spent.input[0].previous_output;
                assert_eq!(mempool.coin(&spent).is_some(), transaction.depends.is_empty());
            }
        }
    }
}
