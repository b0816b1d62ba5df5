//! Batches: the ledger's stream in pieces that are written at once, each chained to the one before by its hash.
//!
//! A batch is written once and never changed. Its number and its ledger's id name it wherever it goes, so that a
//! stream can be sent twice and counted once, and streams of several ledgers can lie side by side.

use sha2::{Digest, Sha256};

/// Names one ledger folder for ever: random bytes from the day it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LedgerId(pub [u8; 16]);

/// The number of a batch in its ledger: 1, 2, 3 and so on, without gaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchNumber(pub u64);

impl BatchNumber {
    /// The next number.
    pub fn next(self) -> Self {
        BatchNumber(self.0 + 1)
    }
}

/// SHA-256 of a batch and, through the one before, of the whole stream up to it.
pub type BatchHash = [u8; 32];

/// What stands for the hash before the first batch.
pub const NO_BATCH: BatchHash = [0; 32];

/// What goes into each hash first, so that it is a hash of nothing else.
const TAG: &[u8] = b"checkweigh ledger batch 1";

/// A number of entries, encoded, with its place in the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedBatch {
    /// Its number.
    pub number: BatchNumber,
    /// The time of its earliest entry, in unix microseconds (UTC).
    pub first_us: u64,
    /// The time of its latest entry, in unix microseconds (UTC).
    pub last_us: u64,
    /// How many entries it has.
    pub count: u32,
    /// The entries.
    pub payload: Vec<u8>,
    /// The hash of the batch before, or [`NO_BATCH`].
    pub previous: BatchHash,
    /// Its own hash: see [`SealedBatch::computed_hash`].
    pub hash: BatchHash,
}

impl SealedBatch {
    /// Seals entries: computes the hash that chains them to the batch before.
    pub fn seal(
        ledger: LedgerId,
        number: BatchNumber,
        times_us: (u64, u64),
        count: u32,
        payload: Vec<u8>,
        previous: BatchHash,
    ) -> Self {
        let (first_us, last_us) = times_us;
        let mut batch = SealedBatch { number, first_us, last_us, count, payload, previous, hash: NO_BATCH };
        batch.hash = batch.computed_hash(ledger);
        batch
    }

    /// The hash that its contents have. It is whole if that equals `hash`.
    pub fn computed_hash(&self, ledger: LedgerId) -> BatchHash {
        let mut hash = Sha256::new();
        hash.update(TAG);
        hash.update(ledger.0);
        hash.update(self.previous);
        hash.update(self.number.0.to_le_bytes());
        hash.update(self.first_us.to_le_bytes());
        hash.update(self.last_us.to_le_bytes());
        hash.update(self.count.to_le_bytes());
        hash.update(&self.payload);
        hash.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_batch_is_in_its_hash() {
        let ledger = LedgerId([7; 16]);
        let batch = SealedBatch::seal(ledger, BatchNumber(3), (5, 9), 2, vec![1, 2, 3], [4; 32]);
        assert_eq!(batch.hash, batch.computed_hash(ledger));
        let changes: [fn(&mut SealedBatch); 6] = [
            |batch| batch.number = batch.number.next(),
            |batch| batch.first_us += 1,
            |batch| batch.last_us += 1,
            |batch| batch.count += 1,
            |batch| batch.payload.push(0),
            |batch| batch.previous[31] ^= 1,
        ];
        for change in changes {
            let mut other = batch.clone();
            change(&mut other);
            assert_ne!(other.computed_hash(ledger), batch.hash);
        }
        assert_ne!(batch.computed_hash(LedgerId([8; 16])), batch.hash);
    }
}
