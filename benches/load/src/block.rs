//! Made-up blocks to mine on: the pool stub and the floors make the same ones from a number, so that every target
//! hashes a coinbase of the same size and a merkle path of the same length.
//!
//! The coinbase is a valid transaction, because some proxies parse it. Nothing here is ever a block of a real chain:
//! the network target is out of reach of everything that this program hashes.

use std::time::{SystemTime, UNIX_EPOCH};

use stratum::hash::{Hash, sha256d};
use stratum::sv2::messages::{NewExtendedMiningJob, SetNewPrevHash};
use stratum::{ChannelId, JobId};

/// Bytes of the coinbase without witness data, extranonce included: that of a pool which pays itself, with a
/// witness commitment and a merge-mining tag.
pub const COINBASE_SIZE: usize = 260;

/// Siblings of the coinbase on the way to the merkle root: a block of 2,049 to 4,096 transactions.
pub const MERKLE_LEVELS: usize = 12;

/// The compact network target: difficulty of about 1.3e14, as on the main chain.
pub const NBITS: u32 = 0x1702_3a04;

/// The version before rolling.
pub const VERSION: u32 = 0x2000_0000;

/// Extranonce bytes before those that the pool's peer fills: unique to each channel.
pub const EXTRANONCE_PREFIX_SIZE: usize = 8;

/// Extranonce bytes that the pool's peer fills.
pub const EXTRANONCE_SIZE: usize = 8;

/// The script of the coinbase's input: height, a pool's name, the extranonce.
const SCRIPT_SIZE: usize = 62;

/// A block to mine on.
#[derive(Clone, Debug)]
pub struct Block {
    /// Counts from 0; also the job id of its only job.
    pub number: u32,
    /// The hash of the block before, in internal byte order.
    pub previous_hash: Hash,
    /// The coinbase up to the pool's extranonce prefix.
    pub coinbase_prefix: Vec<u8>,
    /// The coinbase after the extranonce.
    pub coinbase_suffix: Vec<u8>,
    /// Siblings of the coinbase, lowest first, in internal byte order.
    pub merkle_path: Vec<Hash>,
    /// The time that miners start from, in unix seconds.
    pub ntime: u32,
}

impl Block {
    /// The block of a number. Only `ntime` depends on when it is made.
    pub fn new(number: u32) -> Self {
        let seeded = |salt: u8| {
            let mut bytes = [salt; 5];
            bytes[..4].copy_from_slice(&number.to_le_bytes());
            sha256d(&bytes)
        };
        Block {
            number,
            previous_hash: seeded(0xff),
            coinbase_prefix: coinbase_prefix(number),
            coinbase_suffix: coinbase_suffix(),
            merkle_path: (0..MERKLE_LEVELS as u8).map(seeded).collect(),
            ntime: unix_now(),
        }
    }

    /// The job for a channel or group, future until [`Block::tip_message`].
    pub fn job_message(&self, channel_id: ChannelId) -> NewExtendedMiningJob {
        NewExtendedMiningJob {
            channel_id,
            job_id: JobId(self.number),
            min_ntime: None,
            version: VERSION,
            version_rolling_allowed: true,
            merkle_path: self.merkle_path.clone(),
            coinbase_tx_prefix: self.coinbase_prefix.clone(),
            coinbase_tx_suffix: self.coinbase_suffix.clone(),
        }
    }

    /// What starts the job on a channel or group.
    pub fn tip_message(&self, channel_id: ChannelId) -> SetNewPrevHash {
        SetNewPrevHash {
            channel_id,
            job_id: JobId(self.number),
            prev_hash: self.previous_hash,
            min_ntime: self.ntime,
            nbits: NBITS,
        }
    }

    /// The previous block's hash as a `mining.notify` line shows it: the internal order with the bytes of each
    /// 32-bit word reversed, in lower-case hexadecimal.
    pub fn shown_previous_hash(&self) -> String {
        let words = self.previous_hash.as_chunks::<4>().0;
        words.iter().map(|word| format!("{:08x}", u32::from_le_bytes(*word))).collect()
    }
}

/// Seconds since 1970.
pub fn unix_now() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock shows a time after 1970");
    since.as_secs() as u32
}

fn coinbase_prefix(number: u32) -> Vec<u8> {
    // Version 1, one input, which spends nothing.
    let mut prefix = vec![1, 0, 0, 0, 1];
    prefix.extend_from_slice(&[0; 32]);
    prefix.extend_from_slice(&[0xff; 4]);
    prefix.push(SCRIPT_SIZE as u8);
    // BIP 34: the height, three bytes.
    let height = (900_000 + number).to_le_bytes();
    prefix.extend_from_slice(&[3, height[0], height[1], height[2]]);
    let name = SCRIPT_SIZE - 4 - EXTRANONCE_PREFIX_SIZE - EXTRANONCE_SIZE;
    prefix.extend(b"/a pool that only counts/".iter().copied().chain(std::iter::repeat(b' ')).take(name));
    prefix
}

fn coinbase_suffix() -> Vec<u8> {
    let mut suffix = vec![0xff; 4];
    suffix.push(4);
    // A witness key hash, a witness script hash, a witness commitment, a tag.
    output(&mut suffix, 312_500_000, &[0x00, 0x14], 20);
    output(&mut suffix, 1_000_000, &[0x00, 0x20], 32);
    output(&mut suffix, 0, &[0x6a, 0x24, 0xaa, 0x21, 0xa9, 0xed], 32);
    output(&mut suffix, 0, &[0x6a, 0x0f], 15);
    suffix.extend_from_slice(&[0; 4]);
    suffix
}

/// Appends an output that pays `satoshis` to a script: `opening`, then `filling` more bytes.
fn output(out: &mut Vec<u8>, satoshis: u64, opening: &[u8], filling: usize) {
    out.extend_from_slice(&satoshis.to_le_bytes());
    out.push((opening.len() + filling) as u8);
    out.extend_from_slice(opening);
    out.resize(out.len() + filling, 0x5a);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coinbase_is_as_long_as_it_says() {
        let block = Block::new(7);
        let size = block.coinbase_prefix.len()
            + EXTRANONCE_PREFIX_SIZE
            + EXTRANONCE_SIZE
            + block.coinbase_suffix.len();
        assert_eq!(size, COINBASE_SIZE);
        assert_eq!(block.merkle_path.len(), MERKLE_LEVELS);
    }

    #[test]
    fn the_shown_hash_is_what_our_own_lines_show() {
        let block = Block::new(3);
        let job = crate::floor::job_of(&block, 0);
        let line = stratum::sv1::render::NotifyLine::render(&job);
        let line = str::from_utf8(line.as_bytes()).expect("text");
        assert!(line.contains(&format!("\"{}\"", block.shown_previous_hash())));
    }
}
