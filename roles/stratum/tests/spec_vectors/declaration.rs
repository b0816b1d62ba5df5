//! The job declaration protocol (SV2 6.4).

use super::*;

#[test]
fn tokens() {
    assert_is(
        AllocateMiningJobToken { user_identifier: "farm".into(), request_id: RequestId(0x0102_0304) },
        &[
            "0000 50 090000", // not for a channel, 9 bytes
            "04 6661726d",    // user_identifier: "farm"
            "04030201",       // request_id
        ],
    );
    assert_is(
        AllocateMiningJobTokenSuccess {
            request_id: RequestId(1),
            mining_job_token: vec![0xaa, 0xbb].into(),
            coinbase_outputs: vec![0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0x01, 0x51],
        },
        &[
            "0000 51 140000",                 // not for a channel, 20 bytes
            "01000000",                       // request_id
            "02 aabb",                        // mining_job_token
            "0b00 01 0000000000000000 01 51", // coinbase_tx_outputs: one
        ],
    );
}

#[test]
fn declare_mining_job() {
    assert_is(
        DeclareMiningJob {
            request_id: RequestId(1),
            mining_job_token: vec![0xaa].into(),
            version: 0x2000_0000,
            coinbase_tx_prefix: vec![0x02, 0x00, 0x00, 0x00, 0x00, 0x01],
            coinbase_tx_suffix: vec![0xff; 3],
            wtxid_list: vec![hash(), [0xee; 32]],
            excess_data: vec![0xdd],
        },
        &[
            "0000 57 5c0000",    // not for a channel, 92 bytes
            "01000000",          // request_id
            "01 aa",             // mining_job_token
            "00000020",          // version
            "0600 020000000001", // coinbase_tx_prefix
            "0300 ffffff",       // coinbase_tx_suffix
            "0200",
            HASH, // wtxid_list of two
            "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee",
            "0100 dd", // excess_data
        ],
    );
}

#[test]
fn answers_to_declare_mining_job() {
    assert_is(
        DeclareMiningJobSuccess { request_id: RequestId(1), new_mining_job_token: vec![0xaa, 0xbb].into() },
        &[
            "0000 58 070000", // not for a channel, 7 bytes
            "01000000",       // request_id
            "02 aabb",        // new_mining_job_token
        ],
    );
    assert_is(
        DeclareMiningJobError {
            request_id: RequestId(1),
            error_code: "stale-chain-tip".into(),
            error_details: b"no".to_vec(),
        },
        &[
            "0000 59 180000",                    // not for a channel, 24 bytes
            "01000000",                          // request_id
            "0f 7374616c652d636861696e2d746970", // error_code: "stale-chain-tip"
            "0200 6e6f",                         // error_details
        ],
    );
}

#[test]
fn missing_transactions() {
    assert_is(
        ProvideMissingTransactions { request_id: RequestId(1), unknown_tx_position_list: vec![0, 0x0102] },
        &[
            "0000 55 0a0000", // not for a channel, 10 bytes
            "01000000",       // request_id
            "0200 0000 0201", // unknown_tx_position_list of two
        ],
    );
    assert_is(
        ProvideMissingTransactionsSuccess {
            request_id: RequestId(1),
            transaction_list: vec![vec![0xaa], vec![], vec![0xbb, 0xcc]],
        },
        &[
            "0000 56 120000",                  // not for a channel, 18 bytes
            "01000000",                        // request_id
            "0300 010000aa 000000 020000bbcc", // transaction_list of three
        ],
    );
}

/// The older reference implementations swap nonce and time; nothing else would tell.
#[test]
fn push_solution() {
    assert_is(
        PushSolution {
            extranonce: vec![0xe0, 0xe1],
            prev_hash: hash(),
            nonce: 0x0403_0201,
            ntime: 0x6b49_d200,
            nbits: 0x1703_4219,
            version: 0x2000_e000,
        },
        &[
            "0000 60 330000", // not for a channel, 51 bytes
            "02 e0e1",        // extranonce
            HASH,             // prev_hash
            "01020304",       // nonce
            "00d2496b",       // ntime
            "19420317",       // nbits
            "00e00020",       // version
        ],
    );
}
