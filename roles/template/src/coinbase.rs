//! The coinbase transaction, cut in two around the extranonce.
//!
//! This module never adds the witness: miners hash a coinbase without it, and [`crate::assemble_block`] puts
//! it back. Nor does it choose what goes into the extranonce.

use bitcoin::Script;

use crate::BlockTemplate;
use crate::bytes::push_compact_size;
use crate::constraints::CoinbaseConstraints;
use crate::outputs::Output;

/// The longest extranonce that SV2 allows (SV2 5.1.1).
pub const MAX_EXTRANONCE_SIZE: usize = 32;

/// The longest scriptSig of a coinbase that consensus allows.
pub const MAX_SCRIPT_SIG: usize = 100;

/// The longest push of a height (BIP 34): one byte of length and four of number, up to height 2^31 - 1.
const MAX_HEIGHT_PUSH: usize = 5;

/// The longest tag that leaves room for every extranonce and every height, with a byte of length for each of
/// the two pushes.
pub const MAX_TAG_SIZE: usize = MAX_SCRIPT_SIG - MAX_HEIGHT_PUSH - 1 - (1 + MAX_EXTRANONCE_SIZE);

/// Not final, so that the lock time counts: what the templates of Bitcoin Core 31 ask for (BIP 54).
pub(crate) const SEQUENCE: u32 = 0xffff_fffe;

/// The version of our coinbases.
pub(crate) const TRANSACTION_VERSION: u32 = 2;

/// The weight of what is in a block besides transactions: 80 bytes of header and at most three of count.
const BLOCK_OVERHEAD_WEIGHT: u64 = 4 * (80 + 3);

/// The weight of the witness of a coinbase (BIP 141): marker, flag, two counts and 32 zero bytes.
const WITNESS_WEIGHT: u64 = 2 + 2 + 32;

/// Bytes of coinbase around the scriptSig and the outputs: version, count of inputs, outpoint, length of
/// script, sequence, lock time.
const FIXED_SIZE: usize = 4 + 1 + 36 + 1 + 4 + 4;

/// What every coinbase of ours carries, whatever the template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoinbaseRules {
    payout_script: Vec<u8>,
    tag: Vec<u8>,
    extranonce_size: usize,
}

/// A coinbase without witness for one template: `prefix`, the extranonce, `suffix`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoinbaseParts {
    /// Everything before the extranonce.
    pub prefix: Vec<u8>,
    /// How many bytes of extranonce belong between the two.
    pub extranonce_size: usize,
    /// Everything after the extranonce.
    pub suffix: Vec<u8>,
}

/// Why a coinbase cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CoinbaseError {
    /// The extranonce is not 1 to [`MAX_EXTRANONCE_SIZE`] bytes.
    #[error("an extranonce of {0} bytes is asked for; 1 to {MAX_EXTRANONCE_SIZE} are possible")]
    ExtranonceSize(usize),
    /// The tag is longer than [`MAX_TAG_SIZE`].
    #[error(
        "the coinbase tag has {0} bytes; at most {MAX_TAG_SIZE} fit beside the height and the extranonce"
    )]
    TagTooLong(usize),
    /// The node left less room for the coinbase than ours takes.
    #[error(
        "the block would have a weight of {weight}, but the node allows {limit}: raise its blockreservedweight"
    )]
    TooHeavy {
        /// The weight of the whole block.
        weight: u64,
        /// The node's limit.
        limit: u64,
    },
    /// The payout script has more signature operations than the node left room for.
    #[error("the block would have a signature operation cost of {cost}, but the node allows {limit}")]
    TooManySigops {
        /// The cost of the whole block.
        cost: u64,
        /// The node's limit.
        limit: u64,
    },
}

impl CoinbaseRules {
    /// Coinbases that pay all to `payout_script`, carry `tag` and leave `extranonce_size` bytes for the
    /// extranonce, every prefix and rolled byte included.
    ///
    /// An empty tag is left out. Errors are faults of the config.
    pub fn new(payout_script: Vec<u8>, tag: Vec<u8>, extranonce_size: usize) -> Result<Self, CoinbaseError> {
        if !(1..=MAX_EXTRANONCE_SIZE).contains(&extranonce_size) {
            return Err(CoinbaseError::ExtranonceSize(extranonce_size));
        }
        if tag.len() > MAX_TAG_SIZE {
            return Err(CoinbaseError::TagTooLong(tag.len()));
        }
        Ok(CoinbaseRules { payout_script, tag, extranonce_size })
    }

    /// What the payout output pays to.
    pub fn payout_script(&self) -> &[u8] {
        &self.payout_script
    }

    /// How many bytes of extranonce the coinbases leave room for.
    pub fn extranonce_size(&self) -> usize {
        self.extranonce_size
    }

    /// The room that the payout takes in the coinbase, beside what templates put there themselves.
    pub fn constraints(&self) -> CoinbaseConstraints {
        CoinbaseConstraints::of(&[Output { value: 0, script: self.payout_script.clone() }])
    }

    /// The coinbase for one template. Lock time and sequence are those that make it unique (BIP 54); the
    /// witness commitment is the last output.
    pub fn parts(&self, template: &BlockTemplate) -> Result<CoinbaseParts, CoinbaseError> {
        let mut script_sig = height_push(template.height);
        if !self.tag.is_empty() {
            push_length(&mut script_sig, self.tag.len());
            script_sig.extend_from_slice(&self.tag);
        }
        push_length(&mut script_sig, self.extranonce_size);
        let outputs = self.outputs(template);
        self.check_room(template, script_sig.len() + self.extranonce_size, outputs.len())?;

        let mut prefix = Vec::with_capacity(FIXED_SIZE + script_sig.len());
        prefix.extend_from_slice(&TRANSACTION_VERSION.to_le_bytes());
        prefix.push(1);
        prefix.extend_from_slice(&[0; 32]);
        prefix.extend_from_slice(&u32::MAX.to_le_bytes());
        prefix.push((script_sig.len() + self.extranonce_size) as u8);
        prefix.extend_from_slice(&script_sig);

        let mut suffix = Vec::with_capacity(outputs.len() + 8);
        suffix.extend_from_slice(&SEQUENCE.to_le_bytes());
        suffix.extend_from_slice(&outputs);
        suffix.extend_from_slice(&(template.height - 1).to_le_bytes());
        Ok(CoinbaseParts { prefix, extranonce_size: self.extranonce_size, suffix })
    }

    fn outputs(&self, template: &BlockTemplate) -> Vec<u8> {
        let mut outputs = vec![1 + u8::from(template.witness_commitment.is_some())];
        push_output(&mut outputs, template.coinbase_value, &self.payout_script);
        if let Some(commitment) = &template.witness_commitment {
            push_output(&mut outputs, 0, commitment);
        }
        outputs
    }

    fn check_room(
        &self,
        template: &BlockTemplate,
        script_sig: usize,
        outputs: usize,
    ) -> Result<(), CoinbaseError> {
        let coinbase = 4 * (FIXED_SIZE + script_sig + outputs) as u64 + WITNESS_WEIGHT;
        let transactions: u64 = template.transactions.iter().map(|transaction| transaction.weight).sum();
        let weight = BLOCK_OVERHEAD_WEIGHT + coinbase + transactions;
        if weight > template.weight_limit {
            return Err(CoinbaseError::TooHeavy { weight, limit: template.weight_limit });
        }
        // Signature operations outside witnesses count four times (BIP 141).
        let payout = 4 * Script::from_bytes(&self.payout_script).count_sigops_legacy() as u64;
        let cost = payout + template.transactions.iter().map(|transaction| transaction.sigops).sum::<u64>();
        if cost > template.sigop_limit {
            return Err(CoinbaseError::TooManySigops { cost, limit: template.sigop_limit });
        }
        Ok(())
    }
}

impl CoinbaseParts {
    /// The coinbase without witness for one extranonce.
    ///
    /// Panics when `extranonce` has another length than [`CoinbaseParts::extranonce_size`].
    pub fn with_extranonce(&self, extranonce: &[u8]) -> Vec<u8> {
        assert_eq!(extranonce.len(), self.extranonce_size, "the coinbase was made for another extranonce");
        [&self.prefix, extranonce, &self.suffix].concat()
    }
}

/// The push of a height that BIP 34 asks for, as Bitcoin Core encodes it: small numbers have opcodes of their
/// own, others are minimal little-endian numbers with a sign bit.
pub(crate) fn height_push(height: u32) -> Vec<u8> {
    const OP_1: u8 = 0x51;
    match height {
        0 => vec![0],
        1..=16 => vec![OP_1 + height as u8 - 1],
        _ => {
            let mut number = height.to_le_bytes().to_vec();
            while number.last() == Some(&0) {
                number.pop();
            }
            if number.last().is_some_and(|byte| byte & 0x80 != 0) {
                number.push(0);
            }
            let mut push = vec![number.len() as u8];
            push.extend_from_slice(&number);
            push
        }
    }
}

/// Lengths of up to 75 bytes are their own opcode; [`MAX_TAG_SIZE`] and [`MAX_EXTRANONCE_SIZE`] are below
/// that.
pub(crate) fn push_length(script: &mut Vec<u8>, length: usize) {
    debug_assert!(length <= 75, "longer pushes have another opcode");
    script.push(length as u8);
}

fn push_output(outputs: &mut Vec<u8>, satoshis: u64, script: &[u8]) {
    outputs.extend_from_slice(&satoshis.to_le_bytes());
    push_compact_size(outputs, script.len());
    outputs.extend_from_slice(script);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block_template::tests::small_template;
    use bitcoin::consensus::deserialize;
    use bitcoin::script::Builder;
    use bitcoin::{Sequence, Transaction};

    #[test]
    fn a_coinbase_has_the_bytes_it_must_have() {
        let template = small_template(900_000);
        let rules = CoinbaseRules::new(vec![0x51], b"/tag/".to_vec(), 8).expect("fits");
        let parts = rules.parts(&template).expect("fits");
        let expected_prefix = [
            "02000000",                                                         // version
            "01",                                                               // one input
            "0000000000000000000000000000000000000000000000000000000000000000", // of no transaction
            "ffffffff",                                                         // and no output
            "13",                                                               // 19 bytes of scriptSig
            "03a0bb0d",                                                         // height 900000
            "052f7461672f",                                                     // the tag
            "08",                                                               // the extranonce
        ];
        assert_eq!(hex::encode(&parts.prefix), expected_prefix.concat());
        let commitment = hex::encode(template.witness_commitment.as_ref().expect("segwit"));
        let expected_suffix = [
            "feffffff", // sequence
            "02",       // two outputs
            "40be402500000000",
            "0151", // 6.25 bitcoins
            "000000000000000026",
            &commitment,
            "9fbb0d00", // lock time 899999
        ];
        assert_eq!(hex::encode(&parts.suffix), expected_suffix.concat());
    }

    #[test]
    fn every_height_is_pushed_as_bip_34_asks() {
        let heights = [1u32, 16, 17, 100, 127, 128, 255, 256, 32_767, 32_768, 500_000, 8_388_607, 8_388_608];
        for height in heights.into_iter().chain([i32::MAX as u32]) {
            let expected = Builder::new().push_int(i64::from(height)).into_bytes();
            assert_eq!(height_push(height), expected, "{height}");
            let rules = CoinbaseRules::new(vec![0x51; 100], vec![b'x'; MAX_TAG_SIZE], 32).expect("fits");
            let parts = rules.parts(&small_template(height)).expect("fits");
            let coinbase: Transaction =
                deserialize(&parts.with_extranonce(&[7; 32])).expect("is a transaction");
            assert!(coinbase.is_coinbase());
            let input = &coinbase.input[0];
            assert!(input.script_sig.as_bytes().starts_with(&expected));
            assert!(input.script_sig.as_bytes().ends_with(&[7; 32]));
            assert!((2..=MAX_SCRIPT_SIG).contains(&input.script_sig.len()));
            assert_eq!(input.sequence, Sequence::ENABLE_LOCKTIME_NO_RBF);
            assert_eq!(coinbase.lock_time.to_consensus_u32(), height - 1);
            assert_eq!(coinbase.output.len(), 2);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let too_long = CoinbaseRules::new(vec![], vec![0; MAX_TAG_SIZE + 1], 8);
        assert_eq!(too_long, Err(CoinbaseError::TagTooLong(MAX_TAG_SIZE + 1)));
        for size in [0, 33] {
            assert_eq!(CoinbaseRules::new(vec![], vec![], size), Err(CoinbaseError::ExtranonceSize(size)));
        }
        let rules = CoinbaseRules::new(vec![0xac; 10], vec![], 8).expect("fits");
        let mut template = small_template(5);
        template.sigop_limit = 39;
        assert_eq!(rules.parts(&template), Err(CoinbaseError::TooManySigops { cost: 40, limit: 39 }));
        template.sigop_limit = 40;
        let parts = rules.parts(&template).expect("fits");
        let coinbase: Transaction = deserialize(&parts.with_extranonce(&[0; 8])).expect("is a transaction");
        let weight = coinbase.weight().to_wu() + WITNESS_WEIGHT + BLOCK_OVERHEAD_WEIGHT;
        template.weight_limit = weight;
        assert!(rules.parts(&template).is_ok());
        template.weight_limit = weight - 1;
        assert_eq!(rules.parts(&template), Err(CoinbaseError::TooHeavy { weight, limit: weight - 1 }));
    }

    #[test]
    fn without_segregated_witness_there_is_one_output() {
        let mut template = small_template(200);
        template.witness_commitment = None;
        let parts = CoinbaseRules::new(vec![0x51], vec![], 4).expect("fits").parts(&template).expect("fits");
        let coinbase: Transaction = deserialize(&parts.with_extranonce(&[0; 4])).expect("is a transaction");
        assert_eq!(coinbase.output.len(), 1);
        assert_eq!(coinbase.output[0].value.to_sat(), template.coinbase_value);
    }
}
