//! The hashes of a few shares at once, on x86-64 processors with SHA extensions.
//!
//! Each round of SHA-256 waits for the one before, which leaves most of a processor idle: a few shares that take turns
//! fill it, and hash in less time together than one after the other. It never decides what is hashed, and gives nothing
//! but what the rest of [`crate::hash`] gives.

use std::arch::x86_64::{
    __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_extract_epi64, _mm_set_epi32, _mm_set_epi64x,
    _mm_setzero_si128, _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi8,
    _mm_shuffle_epi32, _mm_unpackhi_epi64, _mm_unpacklo_epi64,
};

use super::{Block, Hash, INITIAL_STATE, PADDING_OF_64};

/// The round constants (FIPS 180-4, 4.2.2).
const CONSTANTS: [u32; 64] = [
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
];

/// The schedule of the last block of every message of 64 bytes, its constants added: half of what a merkle path takes.
const SCHEDULE_OF_PADDING: [u32; 64] = schedule(&PADDING_OF_64);

/// A processor that has the instructions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lanes(());

/// What one share is hashed from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lane<'a> {
    /// The state after the whole blocks of the coinbase's prefix.
    pub(crate) state: &'a [u32; 8],
    /// The rest of the coinbase, padded.
    pub(crate) blocks: &'a [Block],
    /// The siblings of the coinbase.
    pub(crate) path: &'a [Hash],
    /// The header, with nothing where its merkle root goes.
    pub(crate) header: [u8; 80],
}

/// As many messages at the same step: one vector of each.
type Vectors<const N: usize> = [__m128i; N];

/// States in the order in which the instructions have them.
type States<const N: usize> = (Vectors<N>, Vectors<N>);

/// Blocks as words, four in a vector.
type Words<const N: usize> = [[__m128i; 4]; N];

impl Lanes {
    /// None where the processor lacks an instruction.
    pub(crate) fn detect() -> Option<Self> {
        let has_them = is_x86_feature_detected!("sha")
            && is_x86_feature_detected!("ssse3")
            && is_x86_feature_detected!("sse4.1");
        has_them.then_some(Lanes(()))
    }

    /// The block hashes of shares whose coinbases have as many blocks, and whose paths are as long. None for others.
    pub(crate) fn header_hashes<const N: usize>(self, lanes: &[Lane<'_>; N]) -> Option<[Hash; N]> {
        let is_alike = |lane: &Lane<'_>| {
            (lane.blocks.len(), lane.path.len()) == (lanes[0].blocks.len(), lanes[0].path.len())
        };
        if !lanes.iter().all(is_alike) {
            return None;
        }
        #[expect(
            unsafe_code,
            reason = "a call of instructions that are known to be there; `cargo bench --bench parts` \
                                        shows what they bring"
        )]
        // SAFETY: whoever has a `Lanes` has it from `detect`, which found every feature that the function needs.
        Some(unsafe { header_hashes(lanes) })
    }
}

#[target_feature(enable = "sha,ssse3,sse4.1")]
fn header_hashes<const N: usize>(lanes: &[Lane<'_>; N]) -> [Hash; N] {
    let mut states = of_states(lanes.each_ref().map(|lane| *lane.state));
    for index in 0..lanes[0].blocks.len() {
        states = compress(states, words_of(lanes.each_ref().map(|lane| &lane.blocks[index])));
    }
    let mut nodes = hash_again(states);
    for level in 0..lanes[0].path.len() {
        let mut words = nodes;
        for (words, lane) in words.iter_mut().zip(lanes) {
            let (halves, _) = lane.path[level].as_chunks::<16>();
            words[2] = big_endian(&halves[0]);
            words[3] = big_endian(&halves[1]);
        }
        nodes = hash_again(compress_padding(compress(initial(), words)));
    }
    let mut headers = lanes.each_ref().map(|lane| [padded(&lane.header, 0), padded(&lane.header, 64)]);
    for (header, node) in headers.iter_mut().zip(&nodes) {
        let root = bytes_of(node);
        header[0][36..].copy_from_slice(&root[..28]);
        header[1][..4].copy_from_slice(&root[28..]);
    }
    let first = compress(initial(), words_of(headers.each_ref().map(|header| &header[0])));
    let second = compress(first, words_of(headers.each_ref().map(|header| &header[1])));
    hash_again(second).each_ref().map(|words| bytes_of(words))
}

/// The blocks of a header: the first 64 bytes, or the rest with its padding.
fn padded(header: &[u8; 80], from: usize) -> Block {
    let mut block = const { super::padding(80, 16) };
    let part = &header[from..(from + 64).min(80)];
    block[..part.len()].copy_from_slice(part);
    block
}

/// The states before the first block.
#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn initial<const N: usize>() -> States<N> {
    of_states([INITIAL_STATE; N])
}

#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn of_states<const N: usize>(states: [[u32; 8]; N]) -> States<N> {
    let signed = states.map(|state| state.map(u32::cast_signed));
    (
        signed.map(|[a, b, _, _, e, f, _, _]| _mm_set_epi32(a, b, e, f)),
        signed.map(|[_, _, c, d, _, _, g, h]| _mm_set_epi32(c, d, g, h)),
    )
}

/// Sixteen bytes as four words.
#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn big_endian(bytes: &[u8; 16]) -> __m128i {
    let whole = u128::from_le_bytes(*bytes);
    let vector = _mm_set_epi64x((whole >> 64) as i64, whole as i64);
    _mm_shuffle_epi8(vector, _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203))
}

#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn words_of<const N: usize>(blocks: [&Block; N]) -> Words<N> {
    blocks.map(|block| {
        let (quarters, _) = block.as_chunks::<16>();
        [0, 1, 2, 3].map(|quarter| big_endian(&quarters[quarter]))
    })
}

/// The hash that the first two vectors of some words are.
#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn bytes_of(words: &[__m128i; 4]) -> Hash {
    let mut hash = [0; 32];
    for (bytes, word) in hash.as_chunks_mut::<16>().0.iter_mut().zip(words) {
        let pairs = [_mm_extract_epi64::<0>(*word), _mm_extract_epi64::<1>(*word)];
        for (bytes, pair) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(pairs) {
            // The first of the two words is the lower half.
            *bytes = (pair as u64).rotate_left(32).to_be_bytes();
        }
    }
    hash
}

/// The second hash of a double one, as the first two vectors of words; the others are its padding's.
#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn hash_again<const N: usize>(states: States<N>) -> Words<N> {
    let end = [_mm_set_epi32(0, 0, 0, i32::MIN), _mm_set_epi32(256, 0, 0, 0)];
    let words_of = |(abef, cdgh): States<N>| {
        let mut words = [[_mm_setzero_si128(); 4]; N];
        for lane in 0..N {
            let abcd = _mm_shuffle_epi32::<0b10_11_00_01>(_mm_unpackhi_epi64(abef[lane], cdgh[lane]));
            let efgh = _mm_shuffle_epi32::<0b10_11_00_01>(_mm_unpacklo_epi64(abef[lane], cdgh[lane]));
            words[lane] = [abcd, efgh, end[0], end[1]];
        }
        words
    };
    words_of(compress(initial(), words_of(states)))
}

/// One block of each message.
#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn compress<const N: usize>(states: States<N>, mut words: Words<N>) -> States<N> {
    let (mut abef, mut cdgh) = states;
    for quarter in 0..16 {
        let constants = four(&CONSTANTS, quarter);
        let mut rounds = [_mm_setzero_si128(); N];
        for lane in 0..N {
            let [w0, w1, w2, w3] = [0, 1, 2, 3].map(|next| words[lane][(quarter + next) % 4]);
            if quarter >= 4 {
                let sum = _mm_add_epi32(_mm_sha256msg1_epu32(w0, w1), _mm_alignr_epi8::<4>(w3, w2));
                words[lane][quarter % 4] = _mm_sha256msg2_epu32(sum, w3);
            }
            rounds[lane] = _mm_add_epi32(words[lane][quarter % 4], constants);
        }
        for lane in 0..N {
            cdgh[lane] = _mm_sha256rnds2_epu32(cdgh[lane], abef[lane], rounds[lane]);
        }
        for lane in 0..N {
            let rounds = _mm_shuffle_epi32::<0b00_00_11_10>(rounds[lane]);
            abef[lane] = _mm_sha256rnds2_epu32(abef[lane], cdgh[lane], rounds);
        }
    }
    sums(states, (abef, cdgh))
}

/// The last block of a message of 64 bytes.
#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn compress_padding<const N: usize>(states: States<N>) -> States<N> {
    let (mut abef, mut cdgh) = states;
    for quarter in 0..16 {
        let rounds = four(&SCHEDULE_OF_PADDING, quarter);
        for lane in 0..N {
            cdgh[lane] = _mm_sha256rnds2_epu32(cdgh[lane], abef[lane], rounds);
        }
        let rounds = _mm_shuffle_epi32::<0b00_00_11_10>(rounds);
        for lane in 0..N {
            abef[lane] = _mm_sha256rnds2_epu32(abef[lane], cdgh[lane], rounds);
        }
    }
    sums(states, (abef, cdgh))
}

#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn sums<const N: usize>(before: States<N>, after: States<N>) -> States<N> {
    let (mut abef, mut cdgh) = after;
    for lane in 0..N {
        abef[lane] = _mm_add_epi32(abef[lane], before.0[lane]);
        cdgh[lane] = _mm_add_epi32(cdgh[lane], before.1[lane]);
    }
    (abef, cdgh)
}

/// Four numbers of a table.
#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn four(table: &[u32; 64], quarter: usize) -> __m128i {
    let numbers = table.as_chunks::<4>().0[quarter].map(u32::cast_signed);
    _mm_set_epi32(numbers[3], numbers[2], numbers[1], numbers[0])
}

/// The schedule of a block, the round constants added (FIPS 180-4, 6.2.2).
const fn schedule(block: &Block) -> [u32; 64] {
    let mut words = [0u32; 64];
    let mut index = 0;
    while index < 16 {
        let at = 4 * index;
        words[index] = u32::from_be_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
        index += 1;
    }
    while index < 64 {
        let (two, fifteen) = (words[index - 2], words[index - 15]);
        let low = fifteen.rotate_right(7) ^ fifteen.rotate_right(18) ^ (fifteen >> 3);
        let high = two.rotate_right(17) ^ two.rotate_right(19) ^ (two >> 10);
        words[index] = words[index - 16].wrapping_add(low).wrapping_add(words[index - 7]).wrapping_add(high);
        index += 1;
    }
    index = 0;
    while index < 64 {
        words[index] = words[index].wrapping_add(CONSTANTS[index]);
        index += 1;
    }
    words
}
