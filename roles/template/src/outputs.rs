//! Outputs of a coinbase: as messages carry them, and what they must hold.
//!
//! This module never judges a script: who may spend an output is its owner's business.

use bitcoin::Script;

use crate::block_template::MAX_MONEY;
use crate::bytes::{Broken, Reader, push_compact_size};

/// The most outputs that a coinbase may have: as many of the shortest (nine bytes) as fit into the 65,535 bytes of a
/// message.
pub const MAX_OUTPUTS: usize = 65_535 / 9;

/// One output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// What it pays; satoshis.
    pub value: u64,
    /// Who may spend it.
    pub script: Vec<u8>,
}

/// Outputs that are none. Always the fault of who sent them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutputsError {
    /// The bytes end within an output, go on after the last, or hold a count that is not in its shortest form.
    #[error("the outputs are no serialised outputs")]
    Broken,
    /// There are more than [`MAX_OUTPUTS`].
    #[error("there are more outputs than a message can hold")]
    TooMany,
    /// They pay more than there is.
    #[error("the outputs pay more than all the bitcoins that there will ever be")]
    TooMuch,
}

impl From<Broken> for OutputsError {
    fn from(_: Broken) -> Self {
        OutputsError::Broken
    }
}

/// Reads outputs that follow their count, as `AllocateMiningJobToken.Success` and `SetCustomMiningJob` carry them.
pub fn parse_outputs(bytes: &[u8]) -> Result<Vec<Output>, OutputsError> {
    let mut reader = Reader(bytes);
    let outputs = read_outputs(&mut reader)?;
    reader.end()?;
    Ok(outputs)
}

/// Reads `count` outputs without a count before them, as `NewTemplate` carries them.
pub fn parse_outputs_without_count(bytes: &[u8], count: u32) -> Result<Vec<Output>, OutputsError> {
    let mut reader = Reader(bytes);
    let outputs = read_counted(&mut reader, u64::from(count))?;
    reader.end()?;
    Ok(outputs)
}

/// Writes outputs with their count.
pub fn write_outputs(outputs: &[Output]) -> Vec<u8> {
    let mut bytes = Vec::new();
    push_compact_size(&mut bytes, outputs.len());
    bytes.extend_from_slice(&write_outputs_without_count(outputs));
    bytes
}

/// Writes outputs one after the other.
pub fn write_outputs_without_count(outputs: &[Output]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(outputs.iter().map(Output::size).sum());
    for output in outputs {
        bytes.extend_from_slice(&output.value.to_le_bytes());
        push_compact_size(&mut bytes, output.script.len());
        bytes.extend_from_slice(&output.script);
    }
    bytes
}

/// What outputs pay together; satoshis. Outputs that were parsed never overflow.
pub fn sum(outputs: &[Output]) -> u64 {
    outputs.iter().fold(0, |sum, output| sum.saturating_add(output.value))
}

pub(crate) fn read_outputs(reader: &mut Reader<'_>) -> Result<Vec<Output>, OutputsError> {
    let count = reader.compact_size()?;
    read_counted(reader, count)
}

fn read_counted(reader: &mut Reader<'_>, count: u64) -> Result<Vec<Output>, OutputsError> {
    if count > MAX_OUTPUTS as u64 {
        return Err(OutputsError::TooMany);
    }
    // The vector grows with what is there, and not with what is announced.
    let mut outputs = Vec::new();
    let mut paid = 0;
    for _ in 0..count {
        let value = reader.u64()?;
        if value > MAX_MONEY {
            return Err(OutputsError::TooMuch);
        }
        paid += value;
        if paid > MAX_MONEY {
            return Err(OutputsError::TooMuch);
        }
        let length = reader.length()?;
        outputs.push(Output { value, script: reader.take(length)?.to_vec() });
    }
    Ok(outputs)
}

impl Output {
    /// Its bytes in a transaction.
    pub fn size(&self) -> usize {
        let length_size = match self.script.len() {
            0..=0xfc => 1,
            0xfd..=0xffff => 3,
            _ => 5,
        };
        8 + length_size + self.script.len()
    }

    /// Its cost of signature operations (BIP 141): outside witnesses each counts four times.
    pub fn sigops(&self) -> u64 {
        4 * Script::from_bytes(&self.script).count_sigops_legacy() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn outputs_are_read_to_the_last_byte_and_no_further() {
        let outputs =
            vec![Output { value: 5, script: vec![0x51] }, Output { value: 0, script: vec![0x6a; 300] }];
        let bytes = write_outputs(&outputs);
        assert_eq!(parse_outputs(&bytes), Ok(outputs.clone()));
        assert_eq!(parse_outputs_without_count(&bytes[1..], 2), Ok(outputs.clone()));
        assert_eq!(parse_outputs_without_count(&bytes[1..], 1), Err(OutputsError::Broken));
        assert_eq!(parse_outputs_without_count(&bytes[1..], 3), Err(OutputsError::Broken));
        for length in 0..bytes.len() {
            assert_eq!(parse_outputs(&bytes[..length]), Err(OutputsError::Broken), "{length}");
        }
        assert_eq!(outputs.iter().map(Output::size).sum::<usize>(), bytes.len() - 1);
        let bitcoins: Vec<bitcoin::TxOut> = bitcoin::consensus::deserialize(&bytes).expect("outputs");
        assert_eq!(bitcoins.len(), 2);
        assert_eq!(bitcoins[1].script_pubkey.len(), 300);
    }

    #[test]
    fn more_than_there_is_is_refused() {
        let paying =
            |value| write_outputs(&[Output { value, script: vec![] }, Output { value, script: vec![] }]);
        assert!(parse_outputs(&paying(MAX_MONEY / 2)).is_ok());
        for value in [MAX_MONEY / 2 + 1, MAX_MONEY + 1, u64::MAX] {
            assert_eq!(parse_outputs(&paying(value)), Err(OutputsError::TooMuch));
        }
        let mut many = Vec::new();
        push_compact_size(&mut many, MAX_OUTPUTS + 1);
        assert_eq!(parse_outputs(&many), Err(OutputsError::TooMany));
        assert_eq!(parse_outputs(&[0xff; 9]), Err(OutputsError::TooMany));
        // A count of one in three bytes.
        assert_eq!(parse_outputs(&[0xfd, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Err(OutputsError::Broken));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_is_read_is_written_the_same(
            bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(2), any::<u8>()], 0..200),
            count in 0..5u32,
        ) {
            if let Ok(outputs) = parse_outputs(&bytes) {
                prop_assert_eq!(write_outputs(&outputs), bytes.clone());
                prop_assert!(sum(&outputs) <= MAX_MONEY);
            }
            if let Ok(outputs) = parse_outputs_without_count(&bytes, count) {
                prop_assert_eq!(write_outputs_without_count(&outputs), bytes);
            }
        }
    }
}
