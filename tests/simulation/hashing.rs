//! Headers and their hashes as a miner computes them, without the code under test.

use sha2::{Digest, Sha256};
use stratum::Target;

pub(crate) type Hash = [u8; 32];

pub(crate) fn twice(bytes: &[u8]) -> Hash {
    Sha256::digest(Sha256::digest(bytes)).into()
}

/// The merkle root over a whole coinbase.
pub(crate) fn root(coinbase: &[u8], path: &[Hash]) -> Hash {
    path.iter().fold(twice(coinbase), |node, sibling| twice(&[node, *sibling].concat()))
}

pub(crate) fn header(version: u32, previous: &Hash, root: &Hash, ntime: u32, nbits: u32) -> [u8; 80] {
    let mut header = [0; 80];
    header[..4].copy_from_slice(&version.to_le_bytes());
    header[4..36].copy_from_slice(previous);
    header[36..68].copy_from_slice(root);
    header[68..72].copy_from_slice(&ntime.to_le_bytes());
    header[72..76].copy_from_slice(&nbits.to_le_bytes());
    header
}

/// The first nonce from `start` on whose hash meets the target.
pub(crate) fn grind(header: &[u8; 80], start: u32, target: Target) -> (u32, Hash) {
    let mut prefix = Sha256::new();
    prefix.update(&header[..64]);
    let mut nonce = start;
    loop {
        let mut first = prefix.clone();
        first.update(&header[64..76]);
        first.update(nonce.to_le_bytes());
        let hash: Hash = Sha256::digest(first.finalize()).into();
        if target.is_met_by(&hash) {
            return (nonce, hash);
        }
        nonce = nonce.wrapping_add(1);
    }
}
