//! The template distribution protocol (SV2 7).

use stratum::TemplateId;

use super::*;

#[test]
fn coinbase_output_constraints() {
    assert_is(
        CoinbaseOutputConstraints {
            coinbase_output_max_additional_size: 0x0102_0304,
            coinbase_output_max_additional_sigops: 0x0506,
        },
        &[
            "0000 70 060000", // not for a channel, 6 bytes
            "04030201",       // coinbase_output_max_additional_size
            "0605",           // coinbase_output_max_additional_sigops
        ],
    );
}

#[test]
fn new_template() {
    assert_is(
        NewTemplate {
            template_id: TemplateId(0x0102_0304_0506_0708),
            future_template: true,
            version: 0x2000_0000,
            coinbase_tx_version: 2,
            coinbase_prefix: vec![0x03, 0x01, 0x02, 0x03],
            coinbase_tx_input_sequence: 0xffff_fffe,
            coinbase_tx_value_remaining: 625_000_000,
            coinbase_tx_outputs_count: 1,
            coinbase_tx_outputs: vec![0x00, 0x51],
            coinbase_tx_locktime: 9,
            merkle_path: vec![hash()],
        },
        &[
            "0000 71 4f0000",   // not for a channel, 79 bytes
            "0807060504030201", // template_id
            "01",               // future_template
            "00000020",         // version
            "02000000",         // coinbase_tx_version
            "04 03010203",      // coinbase_prefix
            "feffffff",         // coinbase_tx_input_sequence
            "40be402500000000", // coinbase_tx_value_remaining
            "01000000",         // coinbase_tx_outputs_count
            "0200 0051",        // coinbase_tx_outputs
            "09000000",         // coinbase_tx_locktime
            "01",
            HASH, // merkle_path of one
        ],
    );
}

#[test]
fn set_new_prev_hash_of_templates() {
    assert_is(
        TemplateSetNewPrevHash {
            template_id: TemplateId(5),
            prev_hash: hash(),
            header_timestamp: 0x6b49_d200,
            n_bits: 0x1703_4219,
            target: target(),
        },
        &[
            "0000 72 500000",   // not for a channel, 80 bytes
            "0500000000000000", // template_id
            HASH,               // prev_hash
            "00d2496b",         // header_timestamp
            "19420317",         // nBits
            TARGET,             // target
        ],
    );
}

#[test]
fn transaction_data() {
    assert_is(
        RequestTransactionData { template_id: TemplateId(5) },
        &[
            "0000 73 080000",   // not for a channel, 8 bytes
            "0500000000000000", // template_id
        ],
    );
    assert_is(
        RequestTransactionDataSuccess {
            template_id: TemplateId(5),
            excess_data: vec![0xdd],
            transaction_list: vec![vec![0xaa, 0xbb], vec![]],
        },
        &[
            "0000 74 150000",          // not for a channel, 21 bytes
            "0500000000000000",        // template_id
            "0100 dd",                 // excess_data
            "0200 020000 aabb 000000", // transaction_list of two
        ],
    );
    assert_is(
        RequestTransactionDataError { template_id: TemplateId(5), error_code: "stale-template-id".into() },
        &[
            "0000 75 1a0000",                        // not for a channel, 26 bytes
            "0500000000000000",                      // template_id
            "11 7374616c652d74656d706c6174652d6964", // error_code: "stale-template-id"
        ],
    );
}

#[test]
fn submit_solution() {
    assert_is(
        SubmitSolution {
            template_id: TemplateId(5),
            version: 0x2000_e000,
            header_timestamp: 0x6b49_d200,
            header_nonce: 0x0403_0201,
            coinbase_tx: vec![0x02, 0x00],
        },
        &[
            "0000 76 180000",   // not for a channel, 24 bytes
            "0500000000000000", // template_id
            "00e00020",         // version
            "00d2496b",         // header_timestamp
            "01020304",         // header_nonce
            "0200 0200",        // coinbase_tx
        ],
    );
}
