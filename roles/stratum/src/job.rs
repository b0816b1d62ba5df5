//! A job: everything that a share is hashed from, but for what the miner rolls.

use std::sync::Arc;

use arrayvec::ArrayVec;

use crate::hash::{self, Hash, PrefixState};
use crate::{
    Epoch, JobNumber, Now, Target, TemplateId, TipNumber, UpstreamChannelId, UpstreamId, UpstreamJobId, Work,
};

/// Bytes of every coinbase that tell our downstreams apart. They follow the upstream's extranonce prefix and
/// are the `extranonce1` of an SV1 miner; four bytes never run out (SV1 firmware accepts 4 to 8).
pub const RESERVED_SIZE: usize = 4;

/// Bytes that an SV1 miner rolls (`extranonce2_size`). Four work with every known firmware, and last for 2^64
/// hashes a job even without version rolling.
pub const EXTRANONCE2_SIZE: usize = 4;

/// The longest extranonce that SV2 allows, the upstream's prefix included (SV2 5.1.1).
pub const MAX_EXTRANONCE_SIZE: usize = 32;

/// The longest merkle path of a job: 2^20 transactions do not fit in a block, and native SV2 firmware stops at 20
/// (ESP-Miner 2.15).
pub const MAX_MERKLE_PATH: usize = 20;

/// Version bits that SV1 miners may roll (BIP 320). They are cleared in every version that we send where rolling
/// is allowed, because clients combine bits that are already set in three different ways.
pub const SV1_VERSION_MASK: u32 = 0x1fff_e000;

/// Version bits that SV2 miners may roll (BIP 323).
pub const SV2_VERSION_MASK: u32 = 0x1fff_ffe0;

/// The chain tip that a job builds on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tip {
    /// Counts the tips that the source of this job has shown.
    pub number: TipNumber,
    /// The hash of the block to build on, in internal byte order.
    pub previous_hash: Hash,
    /// The compact network target of the block to find.
    pub nbits: u32,
    /// `nbits` unpacked: a hash that meets it is a block.
    pub network_target: Target,
}

/// Where a job came from, for those who forward its shares or turn them into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobOrigin {
    /// The upstream that the job is from, or 0 for our own templates.
    pub upstream: UpstreamId,
    /// The upstream's channel; 0 for our own templates.
    pub channel: UpstreamChannelId,
    /// The upstream's job; 0 for our own templates.
    pub job: UpstreamJobId,
    /// The template, for jobs of our own templates.
    pub template: Option<TemplateId>,
}

/// An immutable job, the same for every miner of its source.
///
/// The coinbase that a miner hashes is `coinbase_prefix`, the miner's reserved bytes, the bytes that it rolls,
/// zeros up to `rollable_size`, and `coinbase_suffix`. The upstream's own extranonce prefix is the end of
/// `coinbase_prefix`: when it changes, a new job is all that miners need.
#[derive(Clone, Debug)]
pub struct Job {
    /// Our number of this job.
    pub number: JobNumber,
    /// The life of the upstream channel that this job belongs to.
    pub epoch: Epoch,
    /// Where its shares go.
    pub origin: JobOrigin,
    /// The tip that it builds on.
    pub tip: Tip,
    /// True when miners must drop every earlier job at once: with a new tip, with a new epoch, and when the upstream
    /// takes no share of them any more.
    pub clean: bool,
    /// The version as every miner is sent it: where rolling is allowed, without the bits of [`SV1_VERSION_MASK`].
    pub version: u32,
    /// Whether version bits may be rolled.
    pub version_rolling_allowed: bool,
    /// The lowest `ntime` that a share may carry, and the one that miners start from; unix seconds.
    pub min_ntime: u32,
    /// The coinbase without witness data, up to and with the upstream's extranonce prefix. Shared, because a job that is
    /// made anew has it too.
    pub coinbase_prefix: Arc<[u8]>,
    /// The coinbase without witness data, after the extranonce. Shared, because a pool that sends every channel jobs of
    /// its own sends the same one to all of them.
    pub coinbase_suffix: Arc<[u8]>,
    /// Bytes between prefix and suffix: our reserved ones, the rolled ones and the padding.
    pub rollable_size: usize,
    /// Siblings of the coinbase on the way to the merkle root, lowest first, in internal byte order. Shared, as the
    /// suffix is.
    pub merkle_path: Arc<[Hash]>,
    /// The target that a share for this job must meet to be worth something to the upstream.
    pub upstream_target: Target,
    /// The work of `upstream_target`: what such a share is worth.
    pub upstream_work: Work,
    /// When the job reached us.
    pub received: Now,
    prefix_state: PrefixState,
}

/// What a job is made from; [`Job::new`] adds what can be computed.
#[derive(Clone, Debug)]
pub struct JobParts {
    /// See [`Job::number`].
    pub number: JobNumber,
    /// See [`Job::epoch`].
    pub epoch: Epoch,
    /// See [`Job::origin`].
    pub origin: JobOrigin,
    /// See [`Job::tip`].
    pub tip: Tip,
    /// See [`Job::clean`].
    pub clean: bool,
    /// The version as the source gave it.
    pub version: u32,
    /// See [`Job::version_rolling_allowed`].
    pub version_rolling_allowed: bool,
    /// See [`Job::min_ntime`].
    pub min_ntime: u32,
    /// See [`Job::coinbase_prefix`].
    pub coinbase_prefix: Arc<[u8]>,
    /// See [`Job::coinbase_suffix`].
    pub coinbase_suffix: Arc<[u8]>,
    /// See [`Job::rollable_size`].
    pub rollable_size: usize,
    /// See [`Job::merkle_path`].
    pub merkle_path: Arc<[Hash]>,
    /// See [`Job::upstream_target`].
    pub upstream_target: Target,
    /// See [`Job::received`].
    pub received: Now,
}

/// What a miner adds to a job to make a header.
#[derive(Clone, Copy, Debug)]
pub struct Rolled<'a> {
    /// The bytes that tell this miner from others.
    pub reserved: [u8; RESERVED_SIZE],
    /// The bytes that it rolled; at most `rollable_size - RESERVED_SIZE`, the rest is zeros.
    pub extranonce: &'a [u8],
    /// The header's version.
    pub version: u32,
    /// The header's time.
    pub ntime: u32,
    /// The header's nonce.
    pub nonce: u32,
}

impl Job {
    /// Makes a job, with the midstate of its coinbase prefix computed once for all miners.
    ///
    /// Panics when `rollable_size` is not between [`RESERVED_SIZE`] and [`MAX_EXTRANONCE_SIZE`]: the source of the
    /// job checks what its peer said.
    pub fn new(parts: JobParts) -> Self {
        assert!(
            (RESERVED_SIZE..=MAX_EXTRANONCE_SIZE).contains(&parts.rollable_size),
            "rollable size out of range"
        );
        let version =
            if parts.version_rolling_allowed { parts.version & !SV1_VERSION_MASK } else { parts.version };
        Job {
            prefix_state: PrefixState::of(&parts.coinbase_prefix),
            number: parts.number,
            epoch: parts.epoch,
            origin: parts.origin,
            tip: parts.tip,
            clean: parts.clean,
            version,
            version_rolling_allowed: parts.version_rolling_allowed,
            min_ntime: parts.min_ntime,
            coinbase_prefix: parts.coinbase_prefix,
            coinbase_suffix: parts.coinbase_suffix,
            rollable_size: parts.rollable_size,
            merkle_path: parts.merkle_path,
            upstream_target: parts.upstream_target,
            upstream_work: parts.upstream_target.work(),
            received: parts.received,
        }
    }

    /// The same work as a new job: another number, a later `min_ntime`, so that no header is hashed twice.
    pub fn refreshed(&self, number: JobNumber, min_ntime: u32, received: Now) -> Self {
        Job { number, min_ntime, received, clean: false, ..self.clone() }
    }

    /// Whether miners would hash the headers of `other`, but for the time: its number and target may differ.
    pub fn is_same_work(&self, other: &Job) -> bool {
        (self.epoch, self.tip) == (other.epoch, other.tip)
            && (self.version, self.version_rolling_allowed) == (other.version, other.version_rolling_allowed)
            && self.rollable_size == other.rollable_size
            && self.coinbase_prefix == other.coinbase_prefix
            && self.coinbase_suffix == other.coinbase_suffix
            && self.merkle_path == other.merkle_path
    }

    /// The block hash of a share, in internal byte order. Allocates nothing.
    ///
    /// Panics when `rolled.extranonce` is longer than the room that the job leaves for it.
    pub fn hash(&self, rolled: &Rolled<'_>) -> Hash {
        hash::header_hash(&self.header(rolled))
    }

    /// The 80-byte header of a share. See [`Job::hash`].
    pub fn header(&self, rolled: &Rolled<'_>) -> [u8; 80] {
        self.header_with_root(&self.merkle_root(rolled.reserved, rolled.extranonce), rolled)
    }

    /// The merkle root for one value of the extranonce.
    pub fn merkle_root(&self, reserved: [u8; RESERVED_SIZE], extranonce: &[u8]) -> Hash {
        let rollable = self.rollable(reserved, extranonce);
        let (prefix, suffix) = (&self.coinbase_prefix, &self.coinbase_suffix);
        let txid = self.prefix_state.finish_double(prefix, &rollable, self.rollable_size, suffix);
        hash::merkle_root(txid, &self.merkle_path)
    }

    /// The block hashes of a few shares, as [`Job::hash`] gives each, appended to `hashes`. Faster than one by one where the
    /// processor has SHA extensions, and allocates nothing.
    ///
    /// Panics as [`Job::hash`] does, and when `hashes` has no room.
    pub fn hash_together<const N: usize>(shares: &[(&Job, Rolled<'_>)], hashes: &mut ArrayVec<Hash, N>) {
        let mut rest = shares;
        while let Some((first, others)) = rest.split_first() {
            let found = match rest {
                [a, b, c, d, ..] => together(&[a, b, c, d], hashes),
                [a, b, c] => together(&[a, b, c], hashes),
                [a, b] => together(&[a, b], hashes),
                _ => 0,
            };
            if found == 0 {
                hashes.push(first.0.hash(&first.1));
                rest = others;
            } else {
                rest = &rest[found..];
            }
        }
    }

    fn header_with_root(&self, merkle_root: &Hash, rolled: &Rolled<'_>) -> [u8; 80] {
        let mut header = [0; 80];
        header[0..4].copy_from_slice(&rolled.version.to_le_bytes());
        header[4..36].copy_from_slice(&self.tip.previous_hash);
        header[36..68].copy_from_slice(merkle_root);
        header[68..72].copy_from_slice(&rolled.ntime.to_le_bytes());
        header[72..76].copy_from_slice(&self.tip.nbits.to_le_bytes());
        header[76..80].copy_from_slice(&rolled.nonce.to_le_bytes());
        header
    }

    /// The rollable part and zeros after it.
    fn rollable(&self, reserved: [u8; RESERVED_SIZE], extranonce: &[u8]) -> [u8; MAX_EXTRANONCE_SIZE] {
        assert!(
            RESERVED_SIZE + extranonce.len() <= self.rollable_size,
            "there is no room for the extranonce"
        );
        let mut rollable = [0; MAX_EXTRANONCE_SIZE];
        rollable[..RESERVED_SIZE].copy_from_slice(&reserved);
        rollable[RESERVED_SIZE..][..extranonce.len()].copy_from_slice(extranonce);
        rollable
    }

    /// The whole rollable part as a share fills it: reserved, rolled, padding. `rollable_size` is at most
    /// [`MAX_EXTRANONCE_SIZE`]. Panics when `extranonce` has no room within that.
    pub fn rollable_bytes(
        &self,
        reserved: [u8; RESERVED_SIZE],
        extranonce: &[u8],
    ) -> ArrayVec<u8, MAX_EXTRANONCE_SIZE> {
        let mut bytes = ArrayVec::from([0; MAX_EXTRANONCE_SIZE]);
        bytes[..RESERVED_SIZE].copy_from_slice(&reserved);
        bytes[RESERVED_SIZE..][..extranonce.len()].copy_from_slice(extranonce);
        bytes.truncate(self.rollable_size);
        bytes
    }
}

/// Hashes shares at once, if the processor can and they are alike. Returns how many were hashed: all or none.
#[cfg(target_arch = "x86_64")]
fn together<const N: usize, const M: usize>(
    shares: &[&(&Job, Rolled<'_>); N],
    hashes: &mut ArrayVec<Hash, M>,
) -> usize {
    let Some(lanes) = hash::lanes::Lanes::detect() else { return 0 };
    let mut blocks = [[[0; 64]; hash::BLOCKS_AT_ONCE]; N];
    let mut counts = [0; N];
    for (((job, rolled), blocks), count) in shares.iter().zip(&mut blocks).zip(&mut counts) {
        let rollable = job.rollable(rolled.reserved, rolled.extranonce);
        let (prefix, suffix) = (&job.coinbase_prefix, &job.coinbase_suffix);
        match hash::last_blocks(prefix, &rollable, job.rollable_size, suffix, blocks) {
            Some(blocks) => *count = blocks,
            None => return 0,
        }
    }
    let of = |index: usize| {
        let (job, rolled) = shares[index];
        hash::lanes::Lane {
            state: job.prefix_state.words(),
            blocks: &blocks[index][..counts[index]],
            path: &job.merkle_path,
            header: job.header_with_root(&[0; 32], rolled),
        }
    };
    let Some(found) = lanes.header_hashes::<N>(&std::array::from_fn(of)) else { return 0 };
    hashes.extend(found);
    N
}

/// Other processors hash one after the other.
#[cfg(not(target_arch = "x86_64"))]
fn together<const N: usize, const M: usize>(
    _shares: &[&(&Job, Rolled<'_>); N],
    _hashes: &mut ArrayVec<Hash, M>,
) -> usize {
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Block 125552 of the main chain, whose coinbase is cut so that eight of its bytes are the extranonce.
    #[test]
    fn a_real_block_hashes_to_its_hash() {
        let coinbase = hex::decode(concat!(
            "01000000010000000000000000000000000000000000000000000000000000000000000000ffffffff",
            "07044c86041b0120ffffffff0100f2052a0100000043410496b538e853519c726a2c91e61ec11600ae1390813a627c66fb8be7947be63c52da7589379515d4e0a604f8141781e62294721166bf621e73a82cbf2342c858eeac00000000"
        ));
        // Any coinbase serves: the root is compared with an independent computation.
        let coinbase = coinbase.expect("hexadecimal");
        let (prefix, rest) = coinbase.split_at(43);
        let (extranonce, suffix) = rest.split_at(8);
        let job = job_of(prefix, suffix, &[[1; 32], [2; 32]]);
        assert_eq!(job.version, 0x2000_1fff);
        let reserved = extranonce[..4].try_into().expect("four bytes");
        let txid = hash::sha256d(&coinbase);
        let mut expected = txid;
        for sibling in &*job.merkle_path {
            expected = hash::sha256d(&[expected, *sibling].concat());
        }
        assert_eq!(job.merkle_root(reserved, &extranonce[4..]), expected);
        let header =
            job.header(&Rolled { reserved, extranonce: &extranonce[4..], version: 3, ntime: 9, nonce: 11 });
        assert_eq!(&header[36..68], &expected);
        assert_eq!(header[68..72], [9, 0, 0, 0]);
    }

    /// With room for our four bytes and four that miners roll.
    fn job_of(prefix: &[u8], suffix: &[u8], merkle_path: &[Hash]) -> Job {
        Job::new(JobParts {
            number: JobNumber(1),
            epoch: Epoch(1),
            origin: JobOrigin {
                upstream: UpstreamId(0),
                channel: UpstreamChannelId(0),
                job: UpstreamJobId(0),
                template: None,
            },
            tip: Tip {
                number: TipNumber(1),
                previous_hash: [7; 32],
                nbits: 0x1d00_ffff,
                network_target: Target::from_compact(0x1d00_ffff),
            },
            clean: true,
            version: 0x3fff_ffff,
            version_rolling_allowed: true,
            min_ntime: 5,
            coinbase_prefix: prefix.into(),
            coinbase_suffix: suffix.into(),
            rollable_size: 8,
            merkle_path: merkle_path.into(),
            upstream_target: Target::MAX,
            received: Now { monotonic: Duration::ZERO, utc: Duration::ZERO },
        })
    }

    /// Alike or not, long and short, of one job or several: every number of them.
    #[test]
    fn shares_hash_together_as_they_do_alone() {
        let sizes = [(60, 120, 12), (64, 120, 12), (60, 120, 12), (1, 0, 0), (130, 9, 1), (700, 900, 20)];
        let bytes: Vec<u8> = (0..1000).map(|index| (index * 7) as u8).collect();
        let path: Vec<Hash> = (3..23).map(|index| [index; 32]).collect();
        let jobs = sizes.map(|(prefix, suffix, siblings)| {
            job_of(&bytes[..prefix], &bytes[100..][..suffix], &path[..siblings])
        });
        let mut nonce = 0;
        for picks in [vec![0; 9], vec![5; 4], vec![3; 3], vec![0, 1, 2, 0, 3, 3, 4, 5, 5], vec![4, 4], vec![]]
        {
            for count in 0..=picks.len() {
                let shares: Vec<(&Job, Rolled<'_>)> = picks[..count]
                    .iter()
                    .map(|pick| {
                        nonce += 0x0101_0107;
                        let reserved = u32::to_be_bytes(nonce / 3);
                        let extranonce: &[u8] = if nonce.is_multiple_of(2) { &[1, 2, 3, 4] } else { &[5; 2] };
                        let (version, ntime) = (0x2000_e000, nonce / 7);
                        (&jobs[*pick], Rolled { reserved, extranonce, version, ntime, nonce })
                    })
                    .collect();
                let mut together = ArrayVec::<_, 9>::new();
                Job::hash_together(&shares, &mut together);
                let alone: Vec<Hash> = shares.iter().map(|(job, rolled)| job.hash(rolled)).collect();
                assert_eq!(*together, *alone, "{count} of {picks:?}");
            }
        }
    }
}
