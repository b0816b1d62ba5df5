//! Transactions for a full block: two thousand, each with a fat witness and several outputs, and none signed.

use bitcoin::absolute::LockTime;
use bitcoin::consensus::serialize;
use bitcoin::transaction::Version;
use bitcoin::{Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Witness};
use checkweigh::clock::Clock;
use serde_json::{Value, json};
use stratum::TemplateId;
use template::BlockTemplate;
use template::block_template::witness_commitment;

use super::bitcoin_node::RegtestNode;

/// More than fit in a block.
const TRANSACTIONS: usize = 2050;

/// Bytes of each witness that mean nothing.
const FAT: usize = 380;

/// Outputs of each: with these and the witness, a transaction weighs some 2,000.
const OUTPUTS: usize = 8;

/// What each pays: the coins are many.
const FEE: Amount = Amount::from_sat(5000);

/// Drops some bytes, and is then true.
fn witness_script() -> ScriptBuf {
    let mut script = vec![0x4d, (FAT & 0xff) as u8, (FAT >> 8) as u8];
    script.extend_from_slice(&[0x5a; FAT]);
    script.extend_from_slice(&[0x75, 0x51]);
    ScriptBuf::from(script)
}

/// Puts more transactions than fit in a block into the node's mempool.
pub(crate) async fn fill(node: &RegtestNode) {
    node.generate(101).await;
    let hash = node.call("getblockhash", json!([1])).await;
    let block = node.call("getblock", json!([hash, 1])).await;
    let txid: Txid = block["tx"][0].as_str().and_then(|text| text.parse().ok()).expect("a txid");
    let each = (Amount::from_sat(50 * 100_000_000) - FEE * 100) / TRANSACTIONS as u64;
    let output = TxOut { value: each, script_pubkey: witness_script().to_p2wsh() };
    let funding = transaction(OutPoint::new(txid, 0), Witness::new(), vec![output; TRANSACTIONS]);
    let raw = hex::encode(serialize(&funding));
    let block = node.call("generateblock", json!(["raw(51)#8lvh9jxk", [raw]])).await;
    assert!(block["hash"].is_string(), "{block}");
    let funding_id = funding.compute_txid();
    let witness = Witness::from_slice(&[witness_script().as_bytes()]);
    let value = (each - FEE) / OUTPUTS as u64;
    let spends: Vec<Value> = (0..TRANSACTIONS as u32)
        .map(|place| {
            let output = TxOut { value, script_pubkey: witness_script().to_p2wsh() };
            let spend = transaction(OutPoint::new(funding_id, place), witness.clone(), vec![output; OUTPUTS]);
            json!([hex::encode(serialize(&spend))])
        })
        .collect();
    for some in spends.chunks(200) {
        let sent = node.client().call_each::<String>("sendrawtransaction", some).await;
        assert!(sent.expect("the node answers").iter().all(Option::is_some), "each is taken");
    }
}

fn transaction(spends: OutPoint, witness: Witness, output: Vec<TxOut>) -> Transaction {
    let script_sig = ScriptBuf::new();
    let input = TxIn { previous_output: spends, script_sig, sequence: Sequence::MAX, witness };
    Transaction { version: Version::TWO, lock_time: LockTime::ZERO, input: vec![input], output }
}

pub(crate) async fn template_of(node: &RegtestNode) -> BlockTemplate {
    let template = node.client().block_template(TemplateId(1), None, &Clock::start()).await;
    template.expect("the node has a template")
}

/// The same tip, and nothing to put in its block.
pub(crate) fn without_transactions(template: &BlockTemplate) -> BlockTemplate {
    let mut empty = template.clone();
    empty.coinbase_value -= empty.fees();
    empty.transactions.clear();
    empty.merkle_path.clear();
    empty.witness_commitment = Some(witness_commitment(&[]).to_vec());
    empty
}
