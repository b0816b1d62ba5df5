//! A coinbase without its extranonce, taken apart: one that a peer declared, and one that we declare.
//!
//! The script of a custom job's coinbase is a prefix and the whole extranonce, nothing else (SV2 5.3.18), so the
//! extranonce reaches to its end. This module never chooses what is paid; see [`Skeleton::payout`] for who asks.

use crate::block_template::{COMMITMENT_SIZE, COMMITMENT_START};
use crate::bytes::{Broken, Reader};
use crate::coinbase::{CoinbaseParts, MAX_EXTRANONCE_SIZE, MAX_SCRIPT_SIG};
use crate::outputs::{self, Output, OutputsError, read_outputs, write_outputs};

/// The witness of a coinbase (BIP 141): one item of 32 zero bytes, as templates assume (SV2 7.2).
pub(crate) const WITNESS: [u8; 34] = {
    let mut witness = [0; 34];
    witness[0] = 1;
    witness[1] = 32;
    witness
};

/// Marker and flag of a transaction with witness (BIP 144).
const MARKER_AND_FLAG: [u8; 2] = [0, 1];

/// The shortest script of a coinbase that consensus allows.
const MIN_SCRIPT_SIG: usize = 2;

/// A coinbase but for its extranonce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skeleton {
    /// The transaction's version.
    pub version: u32,
    /// The script before the extranonce.
    pub script_prefix: Vec<u8>,
    /// Bytes of the extranonce, which ends the script.
    pub extranonce_size: usize,
    /// The input's sequence.
    pub sequence: u32,
    /// The outputs.
    pub outputs: Vec<Output>,
    /// The lock time.
    pub lock_time: u32,
}

/// Why bytes are no coinbase. Always the fault of who declared it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SkeletonError {
    /// The prefix ends before the script, or is not that of a transaction with one input.
    #[error("the prefix does not begin a coinbase")]
    Prefix,
    /// The input spends something.
    #[error("the input is not that of a coinbase")]
    Input,
    /// The script is too short or too long for consensus.
    #[error("the script has {0} bytes; {MIN_SCRIPT_SIG} to {MAX_SCRIPT_SIG} are allowed")]
    ScriptSize(u64),
    /// The script leaves no room for an extranonce, or more than there can be.
    #[error("the script leaves {0} bytes for the extranonce; 1 to {MAX_EXTRANONCE_SIZE} are possible")]
    ExtranonceSize(i64),
    /// The outputs are none.
    #[error("{0}")]
    Outputs(#[from] OutputsError),
    /// The suffix ends early, goes on, or has another witness than a coinbase's.
    #[error("the suffix does not end a coinbase")]
    Suffix,
}

impl Skeleton {
    /// Reads the two halves of a declared coinbase (SV2 6.4.4), with the fields of BIP 141 in both or in neither.
    pub fn parse(prefix: &[u8], suffix: &[u8]) -> Result<Self, SkeletonError> {
        let (version, has_witness, script_size, script_prefix) = parse_prefix(prefix)?;
        let extranonce_size = script_size as i64 - script_prefix.len() as i64;
        if !(1..=MAX_EXTRANONCE_SIZE as i64).contains(&extranonce_size) {
            return Err(SkeletonError::ExtranonceSize(extranonce_size));
        }
        let mut reader = Reader(suffix);
        let sequence = reader.u32().map_err(|Broken| SkeletonError::Suffix)?;
        let outputs = read_outputs(&mut reader)?;
        let lock_time = parse_end(reader, has_witness).map_err(|Broken| SkeletonError::Suffix)?;
        Ok(Skeleton {
            version,
            script_prefix: script_prefix.to_vec(),
            extranonce_size: extranonce_size as usize,
            sequence,
            outputs,
            lock_time,
        })
    }

    /// Checks what consensus wants of the script, for a skeleton that was put together of a message's fields.
    pub fn check(self) -> Result<Self, SkeletonError> {
        if !(1..=MAX_EXTRANONCE_SIZE).contains(&self.extranonce_size) {
            return Err(SkeletonError::ExtranonceSize(self.extranonce_size as i64));
        }
        let script_size = self.script_prefix.len() + self.extranonce_size;
        if !(MIN_SCRIPT_SIG..=MAX_SCRIPT_SIG).contains(&script_size) {
            return Err(SkeletonError::ScriptSize(script_size as u64));
        }
        Ok(self)
    }

    /// The height that the script begins with (BIP 34); `None` when it begins with none in its shortest form.
    pub fn height(&self) -> Option<u32> {
        pushed_height(&self.script_prefix)
    }

    /// What the outputs with this script pay together; `None` when there is none.
    pub fn payout(&self, script: &[u8]) -> Option<u64> {
        let paying = self.outputs.iter().filter(|output| output.script == script);
        paying.map(|output| output.value).reduce(u64::saturating_add)
    }

    /// What all outputs pay; satoshis.
    pub fn value(&self) -> u64 {
        outputs::sum(&self.outputs)
    }

    /// The script that commits to the witnesses: of several the last counts (BIP 141).
    pub fn witness_commitment(&self) -> Option<&[u8]> {
        let commits = |output: &&Output| {
            output.script.len() >= COMMITMENT_SIZE && output.script.starts_with(&COMMITMENT_START)
        };
        self.outputs.iter().rfind(commits).map(|output| output.script.as_slice())
    }

    /// The two halves without witness: what miners hash.
    pub fn parts(&self) -> CoinbaseParts {
        let mut prefix = self.version.to_le_bytes().to_vec();
        self.push_input(&mut prefix);
        let mut suffix = self.sequence.to_le_bytes().to_vec();
        suffix.extend_from_slice(&write_outputs(&self.outputs));
        suffix.extend_from_slice(&self.lock_time.to_le_bytes());
        CoinbaseParts { prefix, extranonce_size: self.extranonce_size, suffix }
    }

    /// The two halves as `DeclareMiningJob` wants them: with the fields of BIP 141 if there is a commitment.
    pub fn declared_parts(&self) -> (Vec<u8>, Vec<u8>) {
        let CoinbaseParts { prefix, suffix, .. } = self.parts();
        if self.witness_commitment().is_none() {
            return (prefix, suffix);
        }
        let (version, input) = prefix.split_at(4);
        let (outputs, lock_time) = suffix.split_at(suffix.len() - 4);
        ([version, &MARKER_AND_FLAG, input].concat(), [outputs, &WITNESS, lock_time].concat())
    }

    /// The whole coinbase with its witness, as it goes into a block.
    ///
    /// Panics when `extranonce` has another length than [`Skeleton::extranonce_size`].
    pub fn with_witness(&self, extranonce: &[u8]) -> Vec<u8> {
        assert_eq!(extranonce.len(), self.extranonce_size, "the coinbase was made for another extranonce");
        let (prefix, suffix) = self.declared_parts();
        [&prefix, extranonce, &suffix].concat()
    }

    fn push_input(&self, bytes: &mut Vec<u8>) {
        bytes.push(1);
        bytes.extend_from_slice(&[0; 32]);
        bytes.extend_from_slice(&u32::MAX.to_le_bytes());
        bytes.push((self.script_prefix.len() + self.extranonce_size) as u8);
        bytes.extend_from_slice(&self.script_prefix);
    }
}

/// Version, whether there is a witness, the script's size, and the script up to the extranonce.
fn parse_prefix(prefix: &[u8]) -> Result<(u32, bool, u64, &[u8]), SkeletonError> {
    let broken = |Broken| SkeletonError::Prefix;
    let mut reader = Reader(prefix);
    let version = reader.u32().map_err(broken)?;
    // No transaction has no inputs, so a zero here is the marker.
    let has_witness = reader.0.starts_with(&MARKER_AND_FLAG);
    if has_witness {
        reader.take(MARKER_AND_FLAG.len()).map_err(broken)?;
    }
    if reader.u8().map_err(broken)? != 1 {
        return Err(SkeletonError::Input);
    }
    let previous = reader.take(32).map_err(broken)?;
    let index = reader.u32().map_err(broken)?;
    if previous != [0; 32] || index != u32::MAX {
        return Err(SkeletonError::Input);
    }
    let script_size = reader.compact_size().map_err(broken)?;
    if !(MIN_SCRIPT_SIG as u64..=MAX_SCRIPT_SIG as u64).contains(&script_size) {
        return Err(SkeletonError::ScriptSize(script_size));
    }
    Ok((version, has_witness, script_size, reader.0))
}

/// What follows the outputs. Returns the lock time.
fn parse_end(mut reader: Reader<'_>, has_witness: bool) -> Result<u32, Broken> {
    if has_witness && reader.take(WITNESS.len())? != WITNESS {
        return Err(Broken);
    }
    let lock_time = reader.u32()?;
    reader.end()?;
    Ok(lock_time)
}

/// The height that a coinbase's script begins with (BIP 34); `None` when it begins with none in its shortest form.
pub(crate) fn pushed_height(script: &[u8]) -> Option<u32> {
    let (first, rest) = script.split_first()?;
    match *first {
        0x51..=0x60 => Some(u32::from(first - 0x50)),
        length @ 1..=5 => {
            let number = rest.get(..usize::from(length))?;
            let (last, before) = number.split_last()?;
            // Negative, or a number that fits a byte less, or one of those that have an opcode.
            let superfluous = *last == 0 && before.last().is_none_or(|byte| byte & 0x80 == 0);
            if last & 0x80 != 0 || superfluous {
                return None;
            }
            let height = number.iter().rev().fold(0u64, |height, byte| height << 8 | u64::from(*byte));
            u32::try_from(height).ok().filter(|height| *height > 16)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::Transaction;
    use bitcoin::consensus::deserialize;
    use proptest::prelude::*;
    use stratum::hash::sha256d;

    fn skeleton() -> Skeleton {
        let commitment = crate::block_template::witness_commitment(&[]);
        Skeleton {
            version: 2,
            script_prefix: vec![0x03, 0xa0, 0xbb, 0x0d, 0x02, b'h', b'i', 0x08],
            extranonce_size: 8,
            sequence: 0xffff_fffe,
            outputs: vec![
                Output { value: 625_000_000, script: vec![0x51] },
                Output { value: 0, script: commitment },
            ],
            lock_time: 899_999,
        }
    }

    #[test]
    fn halves_with_and_without_witness_are_the_same_coinbase() {
        let ours = skeleton();
        let (prefix, suffix) = ours.declared_parts();
        assert_eq!(prefix[4..6], MARKER_AND_FLAG);
        assert_eq!(Skeleton::parse(&prefix, &suffix), Ok(ours.clone()));
        let parts = ours.parts();
        assert_eq!(Skeleton::parse(&parts.prefix, &parts.suffix), Ok(ours.clone()));
        assert_eq!(Skeleton::parse(&prefix, &parts.suffix), Err(SkeletonError::Suffix));
        assert_eq!(Skeleton::parse(&parts.prefix, &suffix), Err(SkeletonError::Suffix));

        let whole: Transaction = deserialize(&ours.with_witness(&[7; 8])).expect("a transaction");
        assert!(whole.is_coinbase());
        assert_eq!(whole.input[0].witness.to_vec(), [vec![0; 32]]);
        let txid = bitcoin::hashes::Hash::to_byte_array(whole.compute_txid());
        assert_eq!(txid, sha256d(&parts.with_extranonce(&[7; 8])));
        assert_eq!(ours.value(), 625_000_000);
        assert_eq!((ours.payout(&[0x51]), ours.payout(&[0x52])), (Some(625_000_000), None));
    }

    #[test]
    fn without_a_commitment_there_is_no_witness() {
        let mut ours = skeleton();
        ours.outputs.pop();
        let (prefix, suffix) = ours.declared_parts();
        assert_eq!(CoinbaseParts { prefix, extranonce_size: 8, suffix }, ours.parts());
    }

    #[test]
    fn each_length_is_checked() {
        let parts = skeleton().parts();
        let with = |at: usize, byte: u8| {
            let mut prefix = parts.prefix.clone();
            prefix[at] = byte;
            Skeleton::parse(&prefix, &parts.suffix)
        };
        assert_eq!(with(4, 2), Err(SkeletonError::Input), "two inputs");
        assert_eq!(with(5, 1), Err(SkeletonError::Input), "it spends something");
        assert_eq!(with(37, 0), Err(SkeletonError::Input), "another index");
        assert_eq!(with(41, 1), Err(SkeletonError::ScriptSize(1)));
        assert_eq!(with(41, 101), Err(SkeletonError::ScriptSize(101)));
        assert_eq!(with(41, 8), Err(SkeletonError::ExtranonceSize(0)));
        assert_eq!(with(41, 2), Err(SkeletonError::ExtranonceSize(-6)));
        assert_eq!(with(41, 41), Err(SkeletonError::ExtranonceSize(33)));
        for length in 0..42 {
            let cut = Skeleton::parse(&parts.prefix[..length], &parts.suffix);
            assert_eq!(cut, Err(SkeletonError::Prefix), "{length}");
        }
        for length in 0..parts.suffix.len() {
            assert!(Skeleton::parse(&parts.prefix, &parts.suffix[..length]).is_err(), "{length}");
        }
        let long = [&parts.suffix[..], &[0]].concat();
        assert_eq!(Skeleton::parse(&parts.prefix, &long), Err(SkeletonError::Suffix));
    }

    #[test]
    fn heights_are_those_of_bip_34() {
        for height in [1u32, 16, 17, 127, 128, 255, 256, 32_767, 32_768, 900_000, 8_388_608, i32::MAX as u32]
        {
            let script_prefix = crate::coinbase::height_push(height);
            assert_eq!(Skeleton { script_prefix, ..skeleton() }.height(), Some(height));
        }
        // Cut, negative, longer than need be, a small number spelled out, no push, nothing.
        let wrong: [&[u8]; 6] = [&[3, 1, 2], &[1, 0x81], &[2, 17, 0], &[1, 16], &[0x61], &[]];
        for script in wrong {
            assert_eq!(
                Skeleton { script_prefix: script.to_vec(), ..skeleton() }.height(),
                None,
                "{script:?}"
            );
        }
    }

    #[test]
    fn the_last_commitment_counts() {
        let mut ours = skeleton();
        let mut other = crate::block_template::witness_commitment(&[[1; 32]]);
        other.push(0x51);
        ours.outputs.push(Output { value: 0, script: other.clone() });
        ours.outputs.push(Output { value: 0, script: other[..37].to_vec() });
        assert_eq!(ours.witness_commitment(), Some(&other[..]));
    }

    fn hostile() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![Just(0u8), Just(1), Just(0xfd), Just(0xff), any::<u8>()];
        prop::collection::vec(byte, 0..120)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn hostile_halves_never_panic(prefix in hostile(), suffix in hostile()) {
            let _ = Skeleton::parse(&prefix, &suffix);
        }

        /// One byte of a good coinbase is changed, and it is cut somewhere.
        #[test]
        fn whatever_is_read_is_written_the_same(
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            cut in any::<prop::sample::Index>(),
            stripped in any::<bool>(),
        ) {
            let ours = skeleton();
            let parts = ours.parts();
            let (prefix, suffix) = if stripped { (parts.prefix, parts.suffix) } else { ours.declared_parts() };
            let mut bytes = [prefix, suffix].concat();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let (prefix, suffix) = bytes.split_at(cut.index(bytes.len()));
            if let Ok(read) = Skeleton::parse(prefix, suffix) {
                let extranonce = vec![7; read.extranonce_size];
                let whole: Transaction = deserialize(&read.parts().with_extranonce(&extranonce)).expect("one");
                prop_assert!(whole.is_coinbase());
                let _ = read.height();
                prop_assert!(read.value() <= crate::block_template::MAX_MONEY);
            }
        }
    }
}
