//! Which work is sampled: points on the line of all work, drawn by a number that nobody chooses freely.
//!
//! The seed is SHA-256 of a tag, the statement's hash and the challenge, hashed again [`STRETCH`] times. The statement's
//! hash covers the ledger, the subject, the period, the statement before, the root and the signer, so a sample is good for
//! one statement alone. A signer can still make up many statements and keep the one whose sample suits: the stretching is
//! what each try costs. Whoever wants more than that names a challenge after the root was signed.

use sha2::{Digest, Sha256};
use stratum::Work;
use stratum::hash::sha256;

use crate::merkle::Works;

/// How often the seed is hashed: a tenth of a second, once for a checker, and again for each try of a forger.
pub const STRETCH: u32 = 1 << 20;

/// What goes into the seed first, so that it is a hash of nothing else.
const TAG: &[u8] = b"checkweigh statement 2 draw";

/// The two columns of work, each of which is drawn from by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Column {
    /// What devices were credited.
    Credited,
    /// What the accepted shares were worth at the upstream's target.
    Upstream,
}

/// What the points follow from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed([u8; 32]);

impl Seed {
    /// See the module's documentation. Takes a tenth of a second.
    pub fn of(statement: &[u8; 32], challenge: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update(TAG);
        hash.update(statement);
        hash.update(challenge.as_bytes());
        let first: [u8; 32] = hash.finalize().into();
        Seed((0..STRETCH).fold(first, |seed, _| sha256(&seed)))
    }

    /// So many points from 0 up to and without `total`, in rising order; none when there is no work. Each is the first 128
    /// bits of SHA-256 over the seed, the column's number and a counter (64 bits, big-endian), cut to as many bits as
    /// `total - 1` has; those that are too great are left out, so that all are equally likely.
    pub fn points(&self, column: Column, draws: u32, total: u128) -> Vec<u128> {
        let Some(greatest) = total.checked_sub(1) else { return Vec::new() };
        let mask = u128::MAX.checked_shr(greatest.leading_zeros()).unwrap_or(0);
        let candidates = (0_u64..).map(|counter| {
            let mut hash = Sha256::new();
            hash.update(self.0);
            hash.update([column as u8]);
            hash.update(counter.to_be_bytes());
            let digest: [u8; 32] = hash.finalize().into();
            let (first, _) = digest.split_first_chunk().expect("16 of 32 bytes");
            u128::from_be_bytes(*first) & mask
        });
        let mut points: Vec<u128> = candidates.filter(|point| *point < total).take(draws as usize).collect();
        points.sort_unstable();
        points
    }
}

/// The points of both columns, in rising order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Draws {
    /// On the line of what devices were credited.
    pub credited: Vec<u128>,
    /// On the line of what the shares were worth at the upstream's target.
    pub upstream: Vec<u128>,
}

impl Draws {
    /// So many points of each column that has work.
    pub fn of(seed: Seed, draws: u32, total: Works) -> Self {
        Draws {
            credited: seed.points(Column::Credited, draws, total.credited.0),
            upstream: seed.points(Column::Upstream, draws, total.upstream.0),
        }
    }

    /// Takes the points out that lie below these works, which only ever grow. True when there were any.
    pub(crate) fn take_below(&mut self, works: Works) -> bool {
        let take = |points: &mut Vec<u128>, work: Work| {
            let count = points.iter().take_while(|point| **point < work.0).count();
            points.drain(..count);
            count > 0
        };
        let credited = take(&mut self.credited, works.credited);
        take(&mut self.upstream, works.upstream) || credited
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_within_and_spread_evenly() {
        let seed = Seed([7; 32]);
        assert_eq!(seed.points(Column::Credited, 5, 0), Vec::<u128>::new());
        assert_eq!(seed.points(Column::Credited, 3, 1), [0, 0, 0]);
        for total in [2, 3, 1000, 1 << 64, u128::MAX] {
            let points = seed.points(Column::Credited, 3000, total);
            assert_eq!(points.len(), 3000);
            assert!(points.iter().all(|point| *point < total) && points.is_sorted());
            let low = points.iter().filter(|point| **point < total / 2).count();
            let expected = 3000.0 * (total / 2) as f64 / total as f64;
            assert!((low as f64 - expected).abs() < 150.0, "{low} of 3000 in the lower half of {total}");
        }
        let other = seed.points(Column::Upstream, 3000, u128::MAX);
        assert_ne!(other, seed.points(Column::Credited, 3000, u128::MAX));
    }

    #[test]
    fn the_seed_follows_from_the_statement_and_the_challenge() {
        let seed = Seed::of(&[1; 32], "");
        assert_eq!(hex::encode(seed.0), "3b50d8d8621259376eb3bb6bf6b66b4176ea46000d85298870b6a5848d4ad82f");
        assert_ne!(seed, Seed::of(&[2; 32], ""));
        assert_ne!(seed, Seed::of(&[1; 32], "x"));
        assert_eq!(seed.points(Column::Credited, 2, 1000), [385, 724]);
    }
}
