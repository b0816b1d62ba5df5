//! What a job declaration client sends that is long: a declared coinbase, a whole `DeclareMiningJob`, and the
//! transactions of `ProvideMissingTransactions.Success`.
//!
//! The first byte of an input chooses which of the three the rest is for.

#![no_main]

use libfuzzer_sys::fuzz_target;
use stratum::sv2::{FrameHeader, Message};
use template::outputs::{parse_outputs, write_outputs};
use template::{RawTransaction, Skeleton};

fuzz_target!(|data: &[u8]| {
    let Some((mode, bytes)) = data.split_first() else { return };
    match mode % 4 {
        0 => {
            let cut = bytes.first().map_or(0, |cut| usize::from(*cut).min(bytes.len()));
            let (prefix, suffix) = bytes.split_at(cut);
            coinbase(prefix, suffix);
        }
        1 => message(0x57, bytes),
        2 => message(0x56, bytes),
        _ => outputs(bytes),
    }
});

/// Whatever is read is a coinbase, and is read the same when it is written.
fn coinbase(prefix: &[u8], suffix: &[u8]) {
    let Ok(skeleton) = Skeleton::parse(prefix, suffix) else { return };
    let parts = skeleton.parts();
    assert_eq!(Skeleton::parse(&parts.prefix, &parts.suffix).as_ref(), Ok(&skeleton));
    let (prefix, suffix) = skeleton.declared_parts();
    assert_eq!(Skeleton::parse(&prefix, &suffix).as_ref(), Ok(&skeleton));
    assert_eq!(skeleton.clone().check().as_ref(), Ok(&skeleton));
    let extranonce = vec![0; skeleton.extranonce_size];
    let whole = skeleton.with_witness(&extranonce);
    assert!(whole.len() >= parts.with_extranonce(&extranonce).len());
    assert!(skeleton.height().is_none_or(|height| height > 0));
    for output in &skeleton.outputs {
        assert!(skeleton.payout(&output.script).is_some_and(|paid| paid >= output.value));
    }
    assert!(skeleton.outputs.iter().map(|output| output.value).sum::<u64>() == skeleton.value());
}

fn message(message_type: u8, payload: &[u8]) {
    let payload_length = payload.len() as u32;
    let header = FrameHeader { extension_type: 0, channel_msg: false, message_type, payload_length };
    match Message::decode(header, payload) {
        Ok(Message::DeclareMiningJob(declared)) => {
            coinbase(&declared.coinbase_tx_prefix, &declared.coinbase_tx_suffix);
            assert!(declared.wtxid_list.len() * 32 <= payload.len());
        }
        Ok(Message::ProvideMissingTransactionsSuccess(provided)) => {
            for raw in &provided.transaction_list {
                if let Ok(transaction) = RawTransaction::parse(raw) {
                    assert_eq!(transaction.raw[..], raw[..]);
                    assert_eq!(transaction.wtxid, stratum::hash::sha256d(raw));
                }
            }
        }
        Ok(other) => panic!("another message: {}", other.name()),
        Err(_) => (),
    }
}

fn outputs(bytes: &[u8]) {
    if let Ok(outputs) = parse_outputs(bytes) {
        assert_eq!(write_outputs(&outputs), bytes);
    }
}
