//! A whole template, from the block that a node made and what it says of it: Bitcoin Core's interprocess interface
//! (`mining.capnp`, `BlockTemplate`) gives templates so.
//!
//! This module never hashes the witness commitment again and never judges a transaction: the node has done that.

use bitcoin::consensus::{deserialize, serialize};
use bitcoin::hashes::Hash as _;
use bitcoin::{Block, Transaction};
use stratum::hash::Hash;
use stratum::{Now, TemplateId};

use crate::block_template::{
    BlockTemplate, CLOCK_TOLERANCE, COMMITMENT_SIZE, COMMITMENT_START, MAX_MONEY, MAX_TRANSACTIONS,
    TemplateError, wrong,
};
use crate::coinbase::{SEQUENCE, height_push};
use crate::merkle::merkle_path;
use crate::outputs::Output;
use crate::skeleton::pushed_height;
use crate::transaction::TransactionList;

/// The consensus limit of weight (BIP 141): a node that keeps blocks smaller has left out transactions already.
const WEIGHT_LIMIT: u64 = 4_000_000;

/// The consensus limit of the cost of signature operations (BIP 141).
const SIGOP_LIMIT: u64 = 80_000;

/// What a node says of a template beside its block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeBlock {
    /// Our number of the template.
    pub id: TemplateId,
    /// What each transaction after the coinbase pays, in block order; satoshis.
    pub fees: Vec<i64>,
    /// The cost of signature operations of each (BIP 141).
    pub sigops: Vec<i64>,
    /// What the coinbase must look like.
    pub coinbase: NodeCoinbase,
    /// When the last byte of it was read.
    pub received: Now,
}

/// What a node asks of the coinbase (`mining.capnp`, `CoinbaseTx`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCoinbase {
    /// What its input's script begins with.
    pub script_start: Vec<u8>,
    /// The sequence of its input.
    pub sequence: u32,
    /// Its lock time.
    pub lock_time: u32,
    /// What it may pay, subsidy and fees; satoshis.
    pub value: i64,
    /// Outputs that it must have, serialised.
    pub outputs: Vec<Vec<u8>>,
}

impl BlockTemplate {
    /// The template of a block that a node made, the coinbase of which is a dummy.
    ///
    /// The lowest time is ten minutes before that of the block: the node does not say the median time before it. Fails
    /// where the parts do not fit each other, and where the coinbase must have another form than all of ours have.
    pub fn of_node_block(block: &[u8], of: NodeBlock) -> Result<Self, TemplateError> {
        let Block { header, txdata } = deserialize(block)
            .map_err(|error| TemplateError::Unreadable(format!("it is no block: {error}")))?;
        let count = txdata.len().saturating_sub(1);
        if txdata.is_empty() || count > MAX_TRANSACTIONS {
            return wrong("block", format!("has {} transactions", txdata.len()));
        }
        if (of.fees.len(), of.sigops.len()) != (count, count) {
            let (fees, sigops) = (of.fees.len(), of.sigops.len());
            return wrong("block", format!("has {count} transactions, {fees} fees and {sigops} costs"));
        }
        let height = of.coinbase.height()?;
        let mut list = TransactionList::with_capacity(count);
        for ((transaction, fee), sigops) in txdata.iter().skip(1).zip(&of.fees).zip(&of.sigops) {
            let (Ok(fee), Ok(sigops)) = (u64::try_from(*fee), u64::try_from(*sigops)) else {
                return wrong("block", "has a transaction of negative cost or fee".to_owned());
            };
            if sigops > SIGOP_LIMIT {
                return wrong("block", "has a transaction that takes more than a whole block has".to_owned());
            }
            list.push(transaction, serialize(transaction), fee, sigops);
        }
        let transactions = list.finish();
        let txids: Vec<Hash> = transactions.iter().map(|transaction| transaction.txid).collect();
        Ok(BlockTemplate {
            id: of.id,
            height,
            previous_hash: header.prev_blockhash.to_byte_array(),
            version: header.version.to_consensus() as u32,
            nbits: header.bits.to_consensus(),
            min_ntime: header.time.saturating_sub(CLOCK_TOLERANCE),
            current_time: header.time,
            coinbase_value: of.coinbase.value(&of.fees)?,
            witness_commitment: of.coinbase.commitment()?,
            merkle_path: merkle_path(&txids),
            transactions,
            weight_limit: WEIGHT_LIMIT,
            sigop_limit: SIGOP_LIMIT,
            long_poll_id: None,
            received: of.received,
        })
    }
}

impl NodeCoinbase {
    /// What a whole coinbase asks for: Bitcoin Core 30 gives one as an example (`mining.capnp` of that version,
    /// `getCoinbaseTx`). Its first output takes the whole reward, the others have to be there, and its script is to be
    /// gone on with after the height, where it has a zero of its own.
    pub fn of_example(coinbase: &[u8]) -> Result<Self, TemplateError> {
        let example: Transaction = deserialize(coinbase)
            .map_err(|error| TemplateError::Unreadable(format!("its coinbase is no transaction: {error}")))?;
        let ([input], [reward, required @ ..]) = (example.input.as_slice(), example.output.as_slice()) else {
            return wrong("coinbase", "has no reward, or more than one input".to_owned());
        };
        let Some(script_start) = input.script_sig.as_bytes().strip_suffix(&[0]) else {
            return wrong("coinbase", "has a script that does not end as Bitcoin Core 30's".to_owned());
        };
        let Ok(value) = i64::try_from(reward.value.to_sat()) else {
            return wrong("coinbase", "pays more than there is".to_owned());
        };
        Ok(NodeCoinbase {
            script_start: script_start.to_vec(),
            sequence: input.sequence.to_consensus_u32(),
            lock_time: example.lock_time.to_consensus_u32(),
            value,
            outputs: required.iter().map(serialize).collect(),
        })
    }

    /// The height that it names, once its form is known to be that of our coinbases.
    fn height(&self) -> Result<u32, TemplateError> {
        let height = pushed_height(&self.script_start).filter(|height| *height <= i32::MAX as u32);
        let Some(height) = height else {
            return wrong("coinbase", "begins with no height".to_owned());
        };
        let is_ours = self.script_start == height_push(height)
            && self.sequence == SEQUENCE
            && self.lock_time == height - 1;
        match is_ours {
            true => Ok(height),
            false => {
                wrong("coinbase", "must have another script, sequence or lock time than BIP 54's".into())
            }
        }
    }

    fn value(&self, fees: &[i64]) -> Result<u64, TemplateError> {
        let value = u64::try_from(self.value).ok().filter(|value| *value <= MAX_MONEY);
        let fees = fees.iter().try_fold(0i64, |sum, fee| sum.checked_add(*fee));
        match (value, fees) {
            (Some(value), Some(fees)) if fees <= self.value => Ok(value),
            _ => wrong("coinbase", format!("pays {} satoshis with these fees", self.value)),
        }
    }

    /// The script of the one output that may be asked for.
    fn commitment(&self) -> Result<Option<Vec<u8>>, TemplateError> {
        let refused =
            || wrong("coinbase", "must have outputs besides that of the witness commitment".to_owned());
        let [output] = self.outputs.as_slice() else {
            return if self.outputs.is_empty() { Ok(None) } else { refused() };
        };
        let Ok(output) = deserialize::<bitcoin::TxOut>(output) else {
            return wrong("coinbase", "has an output that cannot be read".to_owned());
        };
        let Output { value, script } =
            Output { value: output.value.to_sat(), script: output.script_pubkey.into_bytes() };
        match value == 0 && script.len() == COMMITMENT_SIZE && script.starts_with(&COMMITMENT_START) {
            true => Ok(Some(script)),
            false => refused(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CoinbaseRules;
    use crate::block::assemble_block;
    use crate::block_template::tests::{small_template, with_transactions};
    use proptest::prelude::*;

    const NOW: Now = Now::simulated(std::time::Duration::ZERO, std::time::Duration::ZERO);

    /// A template, its block with a coinbase of ours, and what a node would say of it.
    fn of_node(transactions: usize) -> (BlockTemplate, Vec<u8>, NodeBlock) {
        let mut template = with_transactions(small_template(900_000), transactions);
        template.min_ntime = template.current_time - 600;
        (template.weight_limit, template.sigop_limit) = (WEIGHT_LIMIT, SIGOP_LIMIT);
        template.long_poll_id = None;
        template.received = NOW;
        let rules = CoinbaseRules::new(vec![0x51], vec![], 4).expect("fits");
        let coinbase = rules.parts(&template).expect("fits").with_extranonce(&[1; 4]);
        let header = template.header(template.version, &[7; 32], template.current_time, 0);
        let block = assemble_block(&template, &coinbase, &header);
        let commitment = template.witness_commitment.clone().map(|script| {
            let output = bitcoin::TxOut { value: bitcoin::Amount::ZERO, script_pubkey: script.into() };
            serialize(&output)
        });
        let of = NodeBlock {
            id: template.id,
            fees: template.transactions.iter().map(|transaction| transaction.fee as i64).collect(),
            sigops: template.transactions.iter().map(|transaction| transaction.sigops as i64).collect(),
            coinbase: NodeCoinbase {
                script_start: height_push(900_000),
                sequence: SEQUENCE,
                lock_time: 899_999,
                value: template.coinbase_value as i64,
                outputs: commitment.into_iter().collect(),
            },
            received: NOW,
        };
        (template, block, of)
    }

    #[test]
    fn a_block_and_what_is_said_of_it_are_a_template() {
        for count in [0, 1, 5] {
            let (template, block, of) = of_node(count);
            assert_eq!(BlockTemplate::of_node_block(&block, of), Ok(template));
        }
    }

    /// What a node could say that no template is made of.
    type Fault = fn(&mut NodeBlock);

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let faults: [Fault; 12] = [
            |of| of.fees.truncate(2),
            |of| of.sigops.push(1),
            |of| of.fees[0] = -1,
            |of| of.sigops[0] = -1,
            |of| of.sigops[0] = 80_001,
            |of| of.coinbase.script_start = vec![],
            |of| of.coinbase.script_start.push(0),
            |of| of.coinbase.sequence = u32::MAX,
            |of| of.coinbase.lock_time += 1,
            |of| of.coinbase.value = of.fees[0] - 1,
            |of| of.coinbase.value = i64::MAX,
            |of| of.coinbase.outputs.push(of.coinbase.outputs[0].clone()),
        ];
        for (number, fault) in faults.iter().enumerate() {
            let (_, block, mut of) = of_node(3);
            fault(&mut of);
            assert!(BlockTemplate::of_node_block(&block, of).is_err(), "fault {number}");
        }
    }

    /// The coinbase that Bitcoin Core 30 makes, for what its successors say of it.
    fn example(of: &NodeCoinbase) -> Vec<u8> {
        let mut script = of.script_start.clone();
        script.push(0);
        let mut example = [&2u32.to_le_bytes()[..], &[0, 1, 1], &[0; 32], &[0xff; 4]].concat();
        example.push(script.len() as u8);
        example.extend(&script);
        example.extend(of.sequence.to_le_bytes());
        example.push(1 + of.outputs.len() as u8);
        example.extend(of.value.to_le_bytes());
        example.extend([1, 0x51]);
        example.extend(of.outputs.concat());
        example.extend([&[1, 32][..], &[0; 32]].concat());
        example.extend(of.lock_time.to_le_bytes());
        example
    }

    #[test]
    fn an_example_of_a_coinbase_says_all_of_it() {
        // The second height's push ends with a zero of its own.
        for height in [900_000, 0x8000] {
            let of = NodeCoinbase {
                script_start: height_push(height),
                lock_time: height - 1,
                ..of_node(2).2.coinbase
            };
            assert_eq!(NodeCoinbase::of_example(&example(&of)), Ok(of.clone()));
            let mut bare = example(&of);
            // Its script begins after the version, marker, flag, count, outpoint and its own length.
            let end = 44 + of.script_start.len();
            bare[43] -= 1;
            bare.remove(end);
            bare[end - 1] = 1;
            assert!(NodeCoinbase::of_example(&bare).is_err());
        }
        assert!(NodeCoinbase::of_example(&[]).is_err());
    }

    #[test]
    fn a_chain_without_witnesses_has_no_commitment() {
        let (mut template, block, mut of) = of_node(0);
        of.coinbase.outputs.clear();
        template.witness_commitment = None;
        assert_eq!(BlockTemplate::of_node_block(&block, of), Ok(template));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn broken_blocks_never_panic(place in any::<usize>(), byte in any::<u8>(), length in any::<usize>()) {
            let (_, mut block, of) = of_node(3);
            let place = place % block.len();
            block[place] = byte;
            let _ = BlockTemplate::of_node_block(&block, of.clone());
            block.truncate(length % block.len());
            let _ = BlockTemplate::of_node_block(&block, of);
        }

        #[test]
        fn broken_examples_never_panic(place in any::<usize>(), byte in any::<u8>(), length in any::<usize>()) {
            let mut example = example(&of_node(3).2.coinbase);
            let place = place % example.len();
            example[place] = byte;
            let _ = NodeCoinbase::of_example(&example);
            example.truncate(length % example.len());
            let _ = NodeCoinbase::of_example(&example);
        }
    }
}
