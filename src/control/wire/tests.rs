//! What one end means arrives at the other, and nothing else does.

use proptest::prelude::*;
use serde_json::json;
use template::block_template::witness_commitment;

use super::*;

fn tip() -> PoolTip {
    PoolTip {
        previous_hash: [7; 32],
        height: 900_001,
        nbits: 0x1d00_ffff,
        min_ntime: 5,
        block_time: 7,
        subsidy: 312_500_000,
    }
}

/// A job with one transaction, which has a witness.
fn declared() -> DeclaredJob {
    let input = format!("{}00000000", "ab".repeat(32));
    let raw = format!("02000000000101{input}00ffffffff01e8030000000000000151010151{}", "00".repeat(4));
    let transaction = RawTransaction::parse(&hex::decode(raw).expect("hexadecimal")).expect("a transaction");
    let commitment = witness_commitment(&[transaction.wtxid]);
    let outputs =
        vec![Output { value: 312_501_000, script: vec![0x51] }, Output { value: 0, script: commitment }];
    let coinbase = Skeleton {
        version: 2,
        script_prefix: vec![0x03, 0xa1, 0xbb, 0x0d],
        extranonce_size: 16,
        sequence: u32::MAX,
        outputs,
        lock_time: 0,
    };
    let pool_outputs = vec![Output { value: 0, script: vec![0x51] }].into();
    DeclaredJob::new(DeclarationId(3), 0x2000_0000, coinbase, pool_outputs, vec![transaction], tip())
        .expect("its parts fit together")
}

fn job() -> CustomJob {
    let declared = declared();
    CustomJob {
        version: declared.version,
        tip: tip(),
        min_ntime: 6,
        coinbase: declared.coinbase.parts(),
        merkle_path: declared.merkle_path.clone(),
        payout: 312_501_000,
        declared: Some(Arc::new(declared)),
    }
}

#[test]
fn a_job_arrives_whole() {
    let sent = job();
    let text =
        serde_json::to_string(&ToPool::Taken { id: 5, job: Box::new(Job::from(&sent)) }).expect("JSON");
    let Ok(ToPool::Taken { id: 5, job }) = serde_json::from_str(&text) else { panic!("{text}") };
    let read = job.read(16).expect("it is whole");
    assert_eq!((read.version, read.tip, read.min_ntime), (sent.version, sent.tip, sent.min_ntime));
    assert_eq!((read.coinbase, read.payout), (sent.coinbase, sent.payout));
    assert_eq!(read.merkle_path, sent.merkle_path);
    let (read, sent) = (read.declared.expect("it is there"), sent.declared.expect("it is there"));
    assert_eq!(read.proposal(9), sent.proposal(9), "the same block comes of it");
    assert_eq!(read.pool_outputs, sent.pool_outputs);
    assert!(matches!(job.read(17), Err(Wrong("extranonce_size"))));
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let change = |path: &str, value: serde_json::Value| {
        let mut text = serde_json::to_value(Job::from(&job())).expect("JSON");
        *text.pointer_mut(path).expect("it is there") = value;
        serde_json::from_value::<Job>(text).expect("its form is right").read(16).map(|_| ())
    };
    for (path, value, field) in [
        ("/tip/previous_hash", json!("00"), "previous_hash"),
        ("/coinbase_prefix", json!("zz"), "coinbase_prefix"),
        ("/merkle_path/0", json!(""), "merkle_path"),
        ("/declared/coinbase_suffix", json!("00"), "declared coinbase"),
        ("/declared/transactions/0", json!("00"), "declared.transactions"),
        ("/declared/transactions", json!([]), "declared job"),
        ("/declared/outputs", json!([]), "outputs"),
    ] {
        assert_eq!(change(path, value), Err(Wrong(field)), "{path}");
    }
}

#[test]
fn the_interface_is_as_it_is_written_down() {
    let written = include_str!("../../../ARCHITECTURE.md");
    let hello = serde_json::to_string(&ToPool::Server { protocol: super::super::PROTOCOL }).expect("JSON");
    let outputs = vec!["0014".to_owned()];
    let pool = ToServer::Pool { protocol: super::super::PROTOCOL, outputs };
    let refused = ToPool::Refused { id: 7, code: "stale-chain-tip".to_owned(), details: "...".to_owned() };
    for line in
        [hello, serde_json::to_string(&pool).expect("JSON"), serde_json::to_string(&refused).expect("JSON")]
    {
        assert!(written.contains(&line), "{line} is not in ARCHITECTURE.md");
    }
    let named = |value: serde_json::Value| {
        for (field, _) in value.as_object().expect("an object") {
            assert!(written.contains(&format!("\"{field}\"")), "{field} is not in ARCHITECTURE.md");
        }
    };
    let job = Job::from(&job());
    named(serde_json::to_value(job.declared.clone()).expect("JSON"));
    named(serde_json::to_value(job.tip.clone()).expect("JSON"));
    named(serde_json::to_value(job).expect("JSON"));
    named(serde_json::to_value(ToPool::Block { height: 1, block: String::new() }).expect("JSON"));
    let (user_identity, message) = (String::new(), String::new());
    named(
        serde_json::to_value(ToServer::Check { id: 1, user_identity, extranonce_size: 16, message })
            .expect("JSON"),
    );
}

proptest! {
    #[test]
    fn any_line_is_read_or_refused(text in ".{0,200}") {
        let _ = serde_json::from_str::<ToPool>(&text).map(|message| match message {
            ToPool::Taken { job, .. } => job.read(16).is_ok(),
            _ => true,
        });
        let _ = message_of(&text);
        let _ = outputs_of(&[text]);
    }
}
