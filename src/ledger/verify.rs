//! Whether a ledger is sound: every hash, the chain of batches, and numbers without gaps.
//!
//! Nothing is repaired here, and nothing is believed: whatever can be computed again is.

use accounting::{BatchNumber, LedgerId, SealedBatch};

use super::store::{Head, Opening, Reader, StoreError};

/// Faults that are told apart; beyond, they are only counted. A broken disk makes millions.
pub const MAX_FAULTS: usize = 100;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Batches that were read.
    pub batches: u64,
    /// Entries in them.
    pub entries: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Stored sums that were compared.
    pub sums: u64,
    /// Stored points that were compared.
    pub points: u64,
    /// What is wrong, at most [`MAX_FAULTS`] of it.
    pub faults: Vec<String>,
    /// How much is wrong.
    pub faults_total: u64,
    /// What could not be checked, and why.
    pub notes: Vec<String>,
}

impl Findings {
    /// Adds a fault.
    pub fn fault(&mut self, what: impl Into<String>) {
        self.faults_total += 1;
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(what.into());
        }
    }
}

/// Reads the whole ledger. `progress` hears how many of how many batches are read.
pub fn verify(reader: &dyn Reader, mut progress: impl FnMut(u64, u64)) -> Result<Findings, StoreError> {
    let mut findings = Findings::default();
    let opening = reader.opening()?;
    for damage in &opening.damage {
        let lost = match damage.last_lost {
            Some(last) => format!("batches {} to {} are lost", damage.first_lost.0, last.0),
            None => format!("batches from {} on were lost, and are in no sum", damage.first_lost.0),
        };
        findings.fault(format!("{lost}: {} ({})", damage.set_aside.display(), damage.what));
    }
    if opening.removed.number > BatchNumber(0) {
        findings.notes.push(format!(
            "batches up to {} were removed by age or size: sums over them cannot be computed again",
            opening.removed.number.0
        ));
    }
    let mut chain = Chain { ledger: opening.ledger, last: opening.removed };
    let total = opening.head.number.0 - opening.removed.number.0;
    for batch in reader.batches(opening.removed.number.next())? {
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => {
                findings.fault(format!("after batch {}: {error}", chain.last.number.0));
                break;
            }
        };
        findings.batches += 1;
        findings.entries += u64::from(batch.count);
        findings.bytes += batch.payload.len() as u64;
        chain.follow(&batch, &opening, &mut findings);
        progress(findings.batches, total);
    }
    if chain.last.number < opening.head.number {
        let (from, to) = (chain.last.number.next().0, opening.head.number.0);
        findings.fault(format!("batches {from} to {to} are missing"));
    }
    Ok(findings)
}

/// Follows the chain of hashes.
struct Chain {
    ledger: LedgerId,
    last: Head,
}

impl Chain {
    fn follow(&mut self, batch: &SealedBatch, opening: &Opening, findings: &mut Findings) {
        let number = batch.number.0;
        let expected = self.last.number.next();
        let is_lost = |number: BatchNumber| {
            opening.damage.iter().any(|damage| {
                damage.last_lost.is_some_and(|last| (damage.first_lost..=last).contains(&number))
            })
        };
        if batch.number != expected {
            // What is known to be lost was said already.
            if !(expected.0..number).map(BatchNumber).all(is_lost) {
                findings.fault(format!("batches {} to {} are missing", expected.0, number - 1));
            }
        } else if batch.previous != self.last.hash {
            findings
                .fault(format!("batch {number} does not follow batch {}: the chain is broken", number - 1));
        }
        if batch.computed_hash(self.ledger) != batch.hash {
            findings.fault(format!("batch {number} has not the hash that it was written with"));
        }
        self.last = Head { number: batch.number, hash: batch.hash };
    }
}
