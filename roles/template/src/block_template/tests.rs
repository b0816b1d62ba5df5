//! Tests of the reading of templates, and the templates that other tests of this crate use.

use super::*;
use bitcoin::absolute::LockTime;
use bitcoin::consensus::serialize;
use bitcoin::hashes::Hash as _;
use bitcoin::transaction::Version;
use bitcoin::{Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Witness};
use std::time::Duration;

const NOW: Now = Now { monotonic: Duration::from_secs(5), utc: Duration::from_secs(1_700_000_000) };

/// A template without transactions.
pub(crate) fn small_template(height: u32) -> BlockTemplate {
    BlockTemplate {
        id: TemplateId(1),
        height,
        previous_hash: [9; 32],
        version: 0x2000_0000,
        nbits: 0x207f_ffff,
        min_ntime: 1_699_999_000,
        current_time: 1_700_000_000,
        coinbase_value: 625_000_000,
        witness_commitment: Some(witness_commitment(&[])),
        transactions: vec![],
        merkle_path: vec![],
        weight_limit: 4_000_000,
        sigop_limit: 80_000,
        long_poll_id: None,
        received: NOW,
    }
}

/// The same template with transactions that carry witnesses.
pub(crate) fn with_transactions(mut template: BlockTemplate, count: usize) -> BlockTemplate {
    template.transactions = (0..count).map(witness_transaction).collect();
    let txids: Vec<Hash> = template.transactions.iter().map(|transaction| transaction.txid).collect();
    let wtxids: Vec<Hash> = template.transactions.iter().map(|transaction| transaction.wtxid).collect();
    template.merkle_path = merkle_path(&txids);
    template.witness_commitment = Some(witness_commitment(&wtxids));
    template
}

fn witness_transaction(number: usize) -> TemplateTransaction {
    let transaction = Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: OutPoint {
                txid: Txid::from_byte_array([number as u8; 32]),
                vout: number as u32,
            },
            script_sig: ScriptBuf::new(),
            sequence: Sequence::MAX,
            witness: Witness::from_slice(&[[0x51u8]]),
        }],
        output: vec![TxOut { value: Amount::from_sat(1000), script_pubkey: ScriptBuf::from(vec![0x51]) }],
    };
    TemplateTransaction {
        txid: transaction.compute_txid().to_byte_array(),
        wtxid: transaction.compute_wtxid().to_byte_array(),
        raw: serialize(&transaction),
        fee: 10,
        weight: transaction.weight().to_wu(),
        sigops: 0,
        depends: vec![],
    }
}

/// An answer of Bitcoin Core 31 in regtest, shortened, with one transaction put in twice: once as it is, once
/// with a witness and a dependency.
fn answer() -> serde_json::Value {
    let first = witness_transaction(1);
    let second = witness_transaction(2);
    let entry = |transaction: &TemplateTransaction, depends: &[u32]| {
        serde_json::json!({
            "data": hex::encode(&transaction.raw),
            "txid": displayed(&transaction.txid),
            "hash": displayed(&transaction.wtxid),
            "depends": depends,
            "fee": transaction.fee,
            "sigops": transaction.sigops,
            "weight": transaction.weight,
        })
    };
    serde_json::json!({
        "capabilities": ["proposal"],
        "version": 536870912,
        "rules": ["csv", "!segwit", "taproot", "a-rule-of-the-future"],
        "vbavailable": {},
        "vbrequired": 0,
        "previousblockhash": "0f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206",
        "transactions": [entry(&first, &[]), entry(&second, &[1])],
        "coinbaseaux": {},
        "coinbasevalue": 5_000_000_020u64,
        "longpollid": "0f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e22063",
        "target": "7fffff0000000000000000000000000000000000000000000000000000000000",
        "mintime": 1296688603,
        "mutable": ["time", "transactions", "prevblock"],
        "noncerange": "00000000ffffffff",
        "sigoplimit": 80000,
        "sizelimit": 4000000,
        "weightlimit": 4000000,
        "curtime": 1700000000,
        "bits": "207fffff",
        "height": 1,
        "default_witness_commitment":
            hex::encode(witness_commitment(&[first.wtxid, second.wtxid])),
    })
}

fn read(answer: &serde_json::Value) -> Result<BlockTemplate, TemplateError> {
    BlockTemplate::from_json(TemplateId(7), answer.to_string().as_bytes(), NOW)
}

#[test]
fn an_answer_becomes_a_template() {
    let template = read(&answer()).expect("is a template");
    assert_eq!(template.id, TemplateId(7));
    assert_eq!(template.height, 1);
    // The first block of regtest, as nodes print it and as headers carry it.
    assert_eq!(template.previous_hash[..4], [0x06, 0x22, 0x6e, 0x46]);
    assert_eq!(template.version, 0x2000_0000);
    assert_eq!(template.nbits, 0x207f_ffff);
    assert_eq!(template.min_ntime, 1_296_688_603);
    assert_eq!(template.current_time, 1_700_000_000);
    assert_eq!(template.coinbase_value, 5_000_000_020);
    assert_eq!(template.fees(), 20);
    assert_eq!(template.transactions[0], witness_transaction(1));
    assert_eq!(template.transactions[1].depends, [0]);
    assert_ne!(template.transactions[0].txid, template.transactions[0].wtxid);
    assert_eq!(
        template.merkle_path,
        [template.transactions[0].txid, {
            let last = template.transactions[1].txid;
            merkle_node(&last, &last)
        }]
    );
    assert!(template.long_poll_id.as_ref().is_some_and(|id| id.ends_with("22063")));
    assert_eq!(template.received, NOW);
}

#[test]
fn a_log_line_holds_no_transactions() {
    let template = with_transactions(small_template(5), 200);
    assert!(format!("{template:?}").len() < 300);
}

#[test]
fn wrong_answers_are_the_nodes_fault() {
    let cases: [(&str, serde_json::Value); 13] = [
        ("height", 0.into()),
        ("height", 0x8000_0000u32.into()),
        ("height", "one".into()),
        ("previousblockhash", "0f91".into()),
        ("bits", "207fff".into()),
        ("bits", "zzzzzzzz".into()),
        ("coinbasevalue", 5.into()),
        ("coinbasevalue", (MAX_MONEY + 1).into()),
        ("coinbasevalue", (-1).into()),
        ("default_witness_commitment", "6a24aa21a9ed00".into()),
        ("default_witness_commitment", "00".repeat(38).into()),
        ("longpollid", "x".repeat(MAX_LONG_POLL_ID + 1).into()),
        ("transactions", 5.into()),
    ];
    for (field, value) in cases {
        let mut answer = answer();
        answer[field] = value.clone();
        let error = read(&answer).expect_err(field);
        assert!(error.to_string().starts_with("the node's block template"), "{error}");
    }
    for (field, value) in [
        ("data", serde_json::json!("00")),
        ("data", serde_json::json!("0")),
        ("txid", serde_json::json!("00")),
        ("hash", serde_json::json!("ab".repeat(33))),
        ("depends", serde_json::json!([0])),
        ("depends", serde_json::json!([2])),
        ("fee", serde_json::json!(u64::MAX)),
        ("weight", serde_json::json!(-4)),
        ("weight", serde_json::json!(u64::MAX)),
        ("sigops", serde_json::json!(u64::MAX)),
    ] {
        let mut answer = answer();
        answer["transactions"][1][field] = value;
        assert!(read(&answer).is_err(), "{field}");
    }
}

#[test]
fn an_answer_cut_anywhere_is_refused() {
    let text = answer().to_string();
    for length in 0..text.len() {
        assert!(BlockTemplate::from_json(TemplateId(1), &text.as_bytes()[..length], NOW).is_err());
    }
}

#[test]
fn too_many_transactions_are_refused() {
    let mut answer = answer();
    let one = answer["transactions"][0].clone();
    answer["transactions"] = vec![one; MAX_TRANSACTIONS + 1].into();
    assert!(matches!(read(&answer), Err(TemplateError::Wrong { field: "transactions", .. })));
}

#[test]
fn commitments_agree_with_bitcoins() {
    let template = with_transactions(small_template(5), 7);
    let wtxids = template.transactions.iter().map(|transaction| transaction.wtxid);
    let leaves = std::iter::once([0; 32]).chain(wtxids);
    let root =
        bitcoin::merkle_tree::calculate_root(leaves.map(bitcoin::hashes::sha256d::Hash::from_byte_array));
    let root = bitcoin::WitnessMerkleNode::from_byte_array(root.expect("there is a leaf").to_byte_array());
    let expected = bitcoin::Block::compute_witness_commitment(&root, &[0; 32]);
    assert_eq!(template.witness_commitment.expect("segwit")[6..], expected.to_byte_array());
}
