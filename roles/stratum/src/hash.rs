//! SHA-256 as Bitcoin uses it, with midstates.
//!
//! Hashes are in internal byte order, the order in which headers and merkle trees carry them.

use sha2::block_api::compress256;

#[cfg(target_arch = "x86_64")]
pub(crate) mod lanes;

/// What SHA-256 hashes at once.
pub(crate) type Block = [u8; 64];

/// A double SHA-256 digest in internal byte order.
pub type Hash = [u8; 32];

/// The padding of a message of 64 bytes, a block of its own.
const PADDING_OF_64: Block = padding(64, 0);

const INITIAL_STATE: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// Blocks of a coinbase that are hashed in one go: those of the longest that are usual.
pub(crate) const BLOCKS_AT_ONCE: usize = 6;

/// SHA-256 over a stream of slices, without allocation. `Copy`, so that a prefix hashed once serves many tails.
#[derive(Clone, Copy, Debug)]
pub struct Midstate {
    state: [u32; 8],
    /// Bytes hashed so far, the pending ones included.
    length: u64,
    pending: [u8; 64],
}

impl Default for Midstate {
    fn default() -> Self {
        Midstate { state: INITIAL_STATE, length: 0, pending: [0; 64] }
    }
}

impl Midstate {
    /// The state after hashing `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut midstate = Midstate::default();
        midstate.update(bytes);
        midstate
    }

    /// Hashes `bytes` after what came before.
    pub fn update(&mut self, mut bytes: &[u8]) {
        let filled = (self.length % 64) as usize;
        self.length += bytes.len() as u64;
        if filled > 0 {
            let taken = bytes.len().min(64 - filled);
            self.pending[filled..filled + taken].copy_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if filled + taken < 64 {
                return;
            }
            compress256(&mut self.state, &[self.pending]);
        }
        let (blocks, rest) = bytes.as_chunks::<64>();
        if !blocks.is_empty() {
            compress256(&mut self.state, blocks);
        }
        self.pending[..rest.len()].copy_from_slice(rest);
    }

    /// The single SHA-256 digest of everything hashed.
    pub fn finish(mut self) -> [u8; 32] {
        let filled = (self.length % 64) as usize;
        self.pending[filled] = 0x80;
        self.pending[filled + 1..].fill(0);
        if filled >= 56 {
            compress256(&mut self.state, &[self.pending]);
            self.pending.fill(0);
        }
        self.pending[56..].copy_from_slice(&(self.length * 8).to_be_bytes());
        compress256(&mut self.state, &[self.pending]);
        digest_of(self.state)
    }

    /// The double SHA-256 digest of everything hashed.
    pub fn finish_double(self) -> Hash {
        sha256_of_32(&self.finish())
    }
}

/// The state after the whole blocks of a prefix, which is hashed once for many messages. What follows the last whole
/// block stays with whoever has the prefix: thousands of devices may have one each.
#[derive(Clone, Copy, Debug)]
pub struct PrefixState([u32; 8]);

impl PrefixState {
    /// The state of a prefix.
    pub fn of(prefix: &[u8]) -> Self {
        let mut state = INITIAL_STATE;
        let (blocks, _) = prefix.as_chunks::<64>();
        if !blocks.is_empty() {
            compress256(&mut state, blocks);
        }
        PrefixState(state)
    }

    /// The state itself.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn words(&self) -> &[u32; 8] {
        &self.0
    }

    /// The double SHA-256 digest of `prefix`, which must be the one that this is of, then `length` bytes of `middle`, then
    /// `end`. In one go where it is short, as a coinbase is: each go loads and stores the state once more.
    pub fn finish_double<const N: usize>(
        &self,
        prefix: &[u8],
        middle: &[u8; N],
        length: usize,
        end: &[u8],
    ) -> Hash {
        let mut blocks = [[0; 64]; BLOCKS_AT_ONCE];
        let Some(count) = last_blocks(prefix, middle, length, end, &mut blocks) else {
            let pending = prefix.as_chunks::<64>().1;
            let hashed = (prefix.len() - pending.len()) as u64;
            let mut midstate = Midstate { state: self.0, length: hashed, pending: [0; 64] };
            midstate.update(pending);
            midstate.update(&middle[..length]);
            midstate.update(end);
            return midstate.finish_double();
        };
        let mut state = self.0;
        compress256(&mut state, &blocks[..count]);
        sha256_of_32(&digest_of(state))
    }
}

/// Fills `blocks`, which must be zero, with what follows the whole blocks of `prefix`, padded: the prefix's last bytes,
/// `length` bytes of `middle`, and `end`. Returns how many blocks these are; `None` where they do not fit.
pub(crate) fn last_blocks<const N: usize>(
    prefix: &[u8],
    middle: &[u8; N],
    length: usize,
    end: &[u8],
    blocks: &mut [Block; BLOCKS_AT_ONCE],
) -> Option<usize> {
    let pending = prefix.as_chunks::<64>().1;
    let filled = pending.len();
    let whole = filled + length + end.len();
    let bytes = blocks.as_flattened_mut();
    // The length at the end takes eight bytes, and the mark before it one.
    if length > N || whole + 9 > bytes.len() || filled + N > bytes.len() {
        return None;
    }
    bytes[..filled].copy_from_slice(pending);
    // All of it, because a length that is known is copied faster; what is too much is written over.
    bytes[filled..filled + N].copy_from_slice(middle);
    bytes[filled + length..filled + N].fill(0);
    bytes[filled + length..whole].copy_from_slice(end);
    bytes[whole] = 0x80;
    let count = (whole + 9).div_ceil(64);
    let bits = (prefix.len() + length + end.len()) as u64 * 8;
    blocks[count - 1][56..].copy_from_slice(&bits.to_be_bytes());
    Some(count)
}

/// A last block: `kept` bytes of message that the caller fills in, and the padding of a message of `length` bytes.
const fn padding(length: u64, kept: usize) -> Block {
    let mut block = [0; 64];
    block[kept] = 0x80;
    let bits = (length * 8).to_be_bytes();
    let mut index = 0;
    while index < bits.len() {
        block[56 + index] = bits[index];
        index += 1;
    }
    block
}

/// The hash of blocks that end with their padding.
fn sha256_of_blocks(blocks: &[[u8; 64]]) -> [u8; 32] {
    let mut state = INITIAL_STATE;
    compress256(&mut state, blocks);
    digest_of(state)
}

fn digest_of(state: [u32; 8]) -> [u8; 32] {
    let mut digest = [0; 32];
    for (bytes, word) in digest.as_chunks_mut::<4>().0.iter_mut().zip(state) {
        *bytes = word.to_be_bytes();
    }
    digest
}

/// SHA-256 of a digest.
fn sha256_of_32(digest: &[u8; 32]) -> [u8; 32] {
    let mut block = const { padding(32, 32) };
    block[..32].copy_from_slice(digest);
    sha256_of_blocks(&[block])
}

/// Double SHA-256 of a block header.
pub fn header_hash(header: &[u8; 80]) -> Hash {
    let mut blocks = const { [[0; 64], padding(80, 16)] };
    let (first, rest) = header.split_at(64);
    blocks[0].copy_from_slice(first);
    blocks[1][..16].copy_from_slice(rest);
    sha256_of_32(&sha256_of_blocks(&blocks))
}

/// Single SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Midstate::of(bytes).finish()
}

/// Double SHA-256.
pub fn sha256d(bytes: &[u8]) -> Hash {
    Midstate::of(bytes).finish_double()
}

/// The parent of two nodes of a merkle tree.
pub fn merkle_node(left: &Hash, right: &Hash) -> Hash {
    let mut blocks = [[0; 64], PADDING_OF_64];
    blocks[0][..32].copy_from_slice(left);
    blocks[0][32..].copy_from_slice(right);
    sha256_of_32(&sha256_of_blocks(&blocks))
}

/// The merkle root over a coinbase's txid and the siblings on its way up.
pub fn merkle_root(coinbase_txid: Hash, path: &[Hash]) -> Hash {
    path.iter().fold(coinbase_txid, |node, sibling| merkle_node(&node, sibling))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_lengths_hash_like_any_other() {
        let header: [u8; 80] = std::array::from_fn(|index| index as u8);
        assert_eq!(header_hash(&header), sha256d(&header));
        let (left, right) = ([3; 32], [0xf5; 32]);
        assert_eq!(merkle_node(&left, &right), sha256d(&[left, right].concat()));
        assert_eq!(sha256_of_32(&left), sha256(&left));
    }

    #[test]
    fn every_split_of_a_message_hashes_like_the_whole() {
        use sha2::{Digest, Sha256};
        let message: Vec<u8> = (0..200u8).collect();
        for length in 0..message.len() {
            let expected: [u8; 32] = Sha256::digest(&message[..length]).into();
            assert_eq!(sha256(&message[..length]), expected, "{length} bytes");
            for split in [0, 1, 55, 63, 64, 65, 127].into_iter().filter(|split| *split <= length) {
                let mut midstate = Midstate::of(&message[..split]);
                midstate.update(&message[split..length]);
                assert_eq!(midstate.finish(), expected, "{length} bytes split at {split}");
            }
        }
    }

    #[test]
    fn what_is_hashed_in_one_go_hashes_like_any_other() {
        let message: Vec<u8> = (0..500).map(|index| (index * 7) as u8).collect();
        for start in [0, 1, 40, 63, 64, 100, 130] {
            for length in [0, 1, 8, 31, 32] {
                for end in [0, 1, 20, 55, 56, 64, 150, 200] {
                    let middle: [u8; 32] = message[start..][..32].try_into().expect("32 bytes");
                    let whole = [&message[..start + length], &message[300..][..end]].concat();
                    let (prefix, end) = (&message[..start], &message[300..][..end]);
                    let hash = PrefixState::of(prefix).finish_double(prefix, &middle, length, end);
                    assert_eq!(hash, sha256d(&whole), "{start}, {length}, {}", end.len());
                }
            }
        }
        let long = PrefixState::of(&message).finish_double(&message, &[1; 8], 8, &message);
        assert_eq!(long, sha256d(&[&message[..], &[1; 8], &message].concat()));
    }
}
