//! A share as it stands in a frame, read without a copy, and the check of it by nobody's code but the hash function.
//!
//! The fast way exists so that the pool stub takes no more of the machine than it must; a test holds it to the
//! message codec.

use std::collections::HashSet;
use std::sync::Arc;

use stratum::Target;
use stratum::hash::{Hash, Midstate, merkle_root, sha256d};

use crate::block::{Block, NBITS};

/// The message type of `SubmitSharesExtended`.
pub(super) const SUBMIT_SHARES_EXTENDED: u8 = 0x1b;

/// Shares whose hashes are remembered at most, to find duplicates; about 1.5 GB. Later ones are not looked for.
const MAX_REMEMBERED: usize = 1 << 26;

/// Blocks whose shares can be checked: the one that is mined on, the one that is prepared, and those before.
const BLOCKS: usize = 4;

/// The fields of `SubmitSharesExtended` (SV2 5.3.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share<'a> {
    /// The channel.
    pub(super) channel: u32,
    /// The submission within its channel.
    pub(super) sequence_number: u32,
    /// The job, which is the number of its block.
    pub(super) job: u32,
    /// The header's nonce.
    pub(super) nonce: u32,
    /// The header's time.
    pub(super) ntime: u32,
    /// The header's version.
    pub(super) version: u32,
    /// What the proxy and the miner filled of the extranonce.
    pub(super) extranonce: &'a [u8],
}

impl<'a> Share<'a> {
    /// Reads a payload; `None` when it is too short.
    pub(super) fn read(payload: &'a [u8]) -> Option<Self> {
        let (numbers, rest) = payload.split_first_chunk::<24>()?;
        let number = |index: usize| u32::from_le_bytes(numbers.as_chunks::<4>().0[index]);
        let (length, rest) = rest.split_first()?;
        Some(Share {
            channel: number(0),
            sequence_number: number(1),
            job: number(2),
            nonce: number(3),
            ntime: number(4),
            version: number(5),
            extranonce: rest.get(..usize::from(*length))?,
        })
    }

    /// The last four bytes of the extranonce, which are those that the miner rolls behind every proxy.
    pub(super) fn extranonce2(&self) -> u32 {
        self.extranonce.last_chunk::<4>().map_or(0, |bytes| u32::from_be_bytes(*bytes))
    }

    /// The block hash of this share.
    fn hash(&self, block: &Block, prefix: &[u8]) -> Hash {
        let mut coinbase = Midstate::of(&block.coinbase_prefix);
        coinbase.update(prefix);
        coinbase.update(self.extranonce);
        coinbase.update(&block.coinbase_suffix);
        let root = merkle_root(coinbase.finish_double(), &block.merkle_path);
        let mut header = [0; 80];
        header[0..4].copy_from_slice(&self.version.to_le_bytes());
        header[4..36].copy_from_slice(&block.previous_hash);
        header[36..68].copy_from_slice(&root);
        header[68..72].copy_from_slice(&self.ntime.to_le_bytes());
        header[72..76].copy_from_slice(&NBITS.to_le_bytes());
        header[76..80].copy_from_slice(&self.nonce.to_le_bytes());
        sha256d(&header)
    }
}

/// What is wrong with a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is for a block that was never mined on, or long ago.
    UnknownJob,
    /// Its hash misses the channel's target.
    Target,
    /// It came before.
    Duplicate,
}

/// Hashes every share that the pool receives.
#[derive(Debug)]
pub(super) struct Verifier {
    target: Target,
    blocks: Vec<Arc<Block>>,
    seen: HashSet<[u8; 16]>,
}

impl Verifier {
    /// For channels that all have one target.
    pub(super) fn new(target: Target) -> Self {
        Verifier { target, blocks: Vec::new(), seen: HashSet::new() }
    }

    /// From now on there are shares of this block.
    pub(super) fn add(&mut self, block: Arc<Block>) {
        self.blocks.insert(0, block);
        self.blocks.truncate(BLOCKS);
    }

    /// Checks a share of a channel with this extranonce prefix.
    pub(super) fn check(&mut self, share: &Share<'_>, prefix: &[u8]) -> Result<(), Fault> {
        let block = self.blocks.iter().find(|block| block.number == share.job).ok_or(Fault::UnknownJob)?;
        let hash = share.hash(block, prefix);
        if !self.target.is_met_by(&hash) {
            return Err(Fault::Target);
        }
        let short = *hash.first_chunk::<16>().expect("a hash has 32 bytes");
        if self.seen.len() < MAX_REMEMBERED && !self.seen.insert(short) {
            return Err(Fault::Duplicate);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use stratum::job::Rolled;
    use stratum::sv2::messages::{Message, SubmitSharesExtended};
    use stratum::{ChannelId, JobId, SequenceNumber};

    use super::*;

    fn message() -> SubmitSharesExtended {
        SubmitSharesExtended {
            channel_id: ChannelId(5),
            sequence_number: SequenceNumber(6),
            job_id: JobId(2),
            nonce: 0,
            ntime: 1_790_000_000,
            version: 0x2000_2000,
            extranonce: vec![1, 2, 3, 4, 5, 6, 7, 8],
            user_identity: None,
        }
    }

    fn payload(message: SubmitSharesExtended) -> Vec<u8> {
        let mut frame = Vec::new();
        Message::from(message).encode_frame(&mut frame).expect("short enough");
        assert_eq!(frame[2], SUBMIT_SHARES_EXTENDED);
        frame.split_off(6)
    }

    #[test]
    fn a_share_reads_as_the_codec_writes_it() {
        let message = message();
        let payload = payload(message.clone());
        let share = Share::read(&payload).expect("whole");
        assert_eq!((share.channel, share.sequence_number, share.job), (5, 6, 2));
        assert_eq!(
            (share.nonce, share.ntime, share.version),
            (message.nonce, message.ntime, message.version)
        );
        assert_eq!((share.extranonce, share.extranonce2()), (&message.extranonce[..], 0x0506_0708));
        for length in 0..payload.len() {
            assert_eq!(Share::read(&payload[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn a_share_hashes_as_the_job_of_the_product_does() {
        let (block, prefix) = (Block::new(2), [9; 8]);
        let job = crate::floor::job_of(
            &Block { coinbase_prefix: [&block.coinbase_prefix[..], &prefix].concat(), ..block.clone() },
            0,
        );
        for nonce in 0..50 {
            let payload = payload(SubmitSharesExtended { nonce, ..message() });
            let share = Share::read(&payload).expect("whole");
            let rolled = Rolled {
                reserved: [1, 2, 3, 4],
                extranonce: &[5, 6, 7, 8],
                version: share.version,
                ntime: share.ntime,
                nonce,
            };
            assert_eq!(share.hash(&block, &prefix), job.hash(&rolled));
        }
    }

    #[test]
    fn bad_shares_are_found() {
        let block = Arc::new(Block::new(2));
        let mut verifier = Verifier::new(Target::from_difficulty_exponent(-29));
        let first = payload(message());
        let first = Share::read(&first).expect("whole");
        assert_eq!(verifier.check(&first, &[9; 8]), Err(Fault::UnknownJob));
        verifier.add(block);
        let verdicts: Vec<_> =
            (0..200).map(|nonce| verifier.check(&Share { nonce, ..first }, &[9; 8])).collect();
        // One hash in eight meets the target.
        let good = (0..200).filter(|nonce| verdicts[*nonce as usize].is_ok()).collect::<Vec<u32>>();
        assert!((10..50).contains(&good.len()), "{} of 200", good.len());
        assert!(verdicts.iter().all(|verdict| matches!(verdict, Ok(()) | Err(Fault::Target))));
        let again = Share { nonce: good[0], ..first };
        assert_eq!(verifier.check(&again, &[9; 8]), Err(Fault::Duplicate));
    }
}
