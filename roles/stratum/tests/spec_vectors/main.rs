//! Golden bytes of every SV2 message that is spoken here, written down by hand from the field tables of the
//! specification (SV2 3.6, 5.3, 6.4, 7, 8, extensions 1 and 2). Each is encoded, decoded, and read by the reference
//! implementation's parser, which must write the same bytes again.
//!
//! In every frame the first line is the header: extension type with the channel bit, message type, length.

mod declaration;
mod templates;

use stratum::sv2::messages::*;
use stratum::sv2::{FrameHeader, Message};
use stratum::{ChannelId, JobId, RequestId, SequenceNumber, Target};
use stratum_core::binary_sv2::GetSize;
use stratum_core::framing_sv2::header::Header;
use stratum_core::parsers_sv2::{self, AnyMessage, IsSv2Message};

/// 32 bytes as they stand in a header: 0x01, 0x02 ... 0x20.
const HASH: &str = "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20";

/// The target 2^224 - 1: difficulty 1, near enough. U256 is little-endian, so the zeros come last.
const TARGET: &str = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffff00000000";

fn hash() -> [u8; 32] {
    std::array::from_fn(|index| index as u8 + 1)
}

fn target() -> Target {
    let mut bytes = [0xff; 32];
    bytes[28..].fill(0);
    Target::from_le_bytes(bytes)
}

/// Joins the hexadecimal fields of a frame. Blanks separate lengths from what they count.
fn frame(fields: &[&str]) -> Vec<u8> {
    hex::decode(fields.concat().replace(' ', "")).expect("hexadecimal")
}

/// Both directions of our codec.
fn assert_is(message: impl Into<Message>, fields: &[&str]) {
    let message = message.into();
    let golden = frame(fields);
    let mut encoded = Vec::new();
    message.encode_frame(&mut encoded).expect("within the limits");
    assert_eq!(hex::encode(&encoded), hex::encode(&golden), "{}", message.name());
    assert_eq!(decode(&golden), message);
    assert_reference_agrees(&golden);
}

fn decode(frame: &[u8]) -> Message {
    let (header, payload) = frame.split_first_chunk::<6>().expect("a header");
    let header = FrameHeader::parse(*header);
    assert_eq!(header.payload_length as usize, payload.len(), "the header's length");
    Message::decode(header, payload).expect("a message of the specification")
}

/// The reference implementation reads the frame and means the same message, header and all.
fn assert_reference_agrees(frame: &[u8]) {
    let header = Header::from_bytes(frame).expect("a header");
    let mut payload = frame[6..].to_vec();
    let parsed = AnyMessage::try_from((header, payload.as_mut_slice())).expect("the reference reads it");
    assert_eq!(parsed.message_type(), header.msg_type());
    assert_eq!(parsed.extension_type(), header.ext_type_without_channel_msg());
    assert_eq!(parsed.channel_bit(), header.channel_msg());
    let size = parsed.get_size();
    let written = stratum_core::binary_sv2::to_bytes(parsed).expect("the reference writes it");
    assert_eq!(hex::encode(written), hex::encode(&frame[6..6 + size]));
}

#[test]
fn setup_connection() {
    assert_is(
        SetupConnection {
            protocol: Protocol::Mining,
            min_version: 2,
            max_version: 2,
            flags: 5,
            endpoint_host: "pool.example".into(),
            endpoint_port: 3336,
            vendor: "bitaxe".into(),
            hardware_version: "BM1370".into(),
            firmware: "".into(),
            device_id: "a1".into(),
        },
        &[
            "0000 00 2a0000",              // not for a channel, 42 bytes
            "00",                          // protocol: mining
            "0200",                        // min_version
            "0200",                        // max_version
            "05000000",                    // flags: standard jobs, version rolling
            "0c 706f6f6c2e6578616d706c65", // endpoint_host: "pool.example"
            "080d",                        // endpoint_port: 3336
            "06 626974617865",             // vendor: "bitaxe"
            "06 424d31333730",             // hardware_version: "BM1370"
            "00",                          // firmware: ""
            "02 6131",                     // device_id: "a1"
        ],
    );
    for (protocol, number) in [(Protocol::JobDeclaration, "01"), (Protocol::TemplateDistribution, "02")] {
        let nothing = String::new;
        assert_is(
            SetupConnection {
                protocol,
                min_version: 0x0102,
                max_version: 0x0304,
                flags: 0x0506_0708,
                endpoint_host: nothing(),
                endpoint_port: 0x090a,
                vendor: nothing(),
                hardware_version: nothing(),
                firmware: nothing(),
                device_id: nothing(),
            },
            &["0000 00 100000", number, "0201 0403 08070605 00 0a09 00 00 00 00"],
        );
    }
}

#[test]
fn answers_to_setup_connection() {
    assert_is(
        SetupConnectionSuccess { used_version: 2, flags: 3 },
        &[
            "0000 01 060000", // not for a channel, 6 bytes
            "0200",           // used_version
            "03000000",       // flags: fixed version, extended channels
        ],
    );
    assert_is(
        SetupConnectionError { flags: 2, error_code: "unsupported-feature-flags".into() },
        &[
            "0000 02 1e0000",                                        // not for a channel, 30 bytes
            "02000000",                                              // flags: work selection
            "19 756e737570706f727465642d666561747572652d666c616773", // error_code, 25 bytes
        ],
    );
}

#[test]
fn changes_of_the_connection() {
    assert_is(
        ChannelEndpointChanged { channel_id: ChannelId(0x0403_0201) },
        &[
            "0080 03 040000", // for a channel, 4 bytes
            "01020304",       // channel_id
        ],
    );
    assert_is(
        Reconnect { new_host: "b.example".into(), new_port: 34254 },
        &[
            "0000 04 0c0000",        // not for a channel, 12 bytes
            "09 622e6578616d706c65", // new_host: "b.example"
            "ce85",                  // new_port: 34254
        ],
    );
}

#[test]
fn open_standard_mining_channel() {
    assert_is(
        OpenStandardMiningChannel {
            request_id: RequestId(10),
            user_identity: "a.b".into(),
            nominal_hash_rate: 1e12,
            max_target: target(),
        },
        &[
            "0000 10 2c0000", // not for a channel, 44 bytes
            "0a000000",       // request_id
            "03 612e62",      // user_identity: "a.b"
            "a5d46853",       // nominal_hash_rate: 1e12 as IEEE 754, 0x5368d4a5
            TARGET,           // max_target
        ],
    );
    assert_is(
        OpenStandardMiningChannelSuccess {
            request_id: RequestId(10),
            channel_id: ChannelId(7),
            target: target(),
            extranonce_prefix: vec![0xe0, 0xe1, 0xe2],
            group_channel_id: ChannelId(1),
        },
        &[
            "0000 11 300000", // not for a channel, 48 bytes
            "0a000000",       // request_id
            "07000000",       // channel_id
            TARGET,           // target
            "03 e0e1e2",      // extranonce_prefix
            "01000000",       // group_channel_id
        ],
    );
}

#[test]
fn open_extended_mining_channel() {
    assert_is(
        OpenExtendedMiningChannel {
            request_id: RequestId(1),
            user_identity: "farm".into(),
            nominal_hash_rate: 0.0,
            max_target: Target::MAX,
            min_extranonce_size: 8,
        },
        &[
            "0000 13 2f0000", // not for a channel, 47 bytes
            "01000000",       // request_id
            "04 6661726d",    // user_identity: "farm"
            "00000000",       // nominal_hash_rate
            "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff", // max_target
            "0800",           // min_extranonce_size
        ],
    );
    assert_is(
        OpenExtendedMiningChannelSuccess {
            request_id: RequestId(1),
            channel_id: ChannelId(2),
            target: target(),
            extranonce_size: 0x0108,
            extranonce_prefix: (0..32).collect(),
            group_channel_id: ChannelId(3),
        },
        &[
            "0000 14 4f0000", // not for a channel, 79 bytes
            "01000000",       // request_id
            "02000000",       // channel_id
            TARGET,           // target
            "0801",           // extranonce_size, before the prefix
            "20 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f", // extranonce_prefix
            "03000000",       // group_channel_id
        ],
    );
    assert_is(
        OpenMiningChannelError { request_id: RequestId(1), error_code: "unknown-user".into() },
        &[
            "0000 12 110000",              // not for a channel, 17 bytes
            "01000000",                    // request_id
            "0c 756e6b6e6f776e2d75736572", // error_code: "unknown-user"
        ],
    );
}

#[test]
fn changes_of_a_channel() {
    assert_is(
        UpdateChannel { channel_id: ChannelId(2), nominal_hash_rate: 1.0, maximum_target: target() },
        &[
            "0080 16 280000", // for a channel, 40 bytes
            "02000000",       // channel_id
            "0000803f",       // nominal_hash_rate: 1.0, 0x3f800000
            TARGET,           // maximum_target
        ],
    );
    assert_is(
        UpdateChannelError { channel_id: ChannelId(2), error_code: "x".into() },
        &[
            "0080 17 060000", // for a channel, 6 bytes
            "02000000",       // channel_id
            "01 78",          // error_code: "x"
        ],
    );
    assert_is(
        CloseChannel { channel_id: ChannelId(2), reason_code: "bye".into() },
        &[
            "0080 18 080000", // for a channel, 8 bytes
            "02000000",       // channel_id
            "03 627965",      // reason_code: "bye"
        ],
    );
    assert_is(
        SetExtranoncePrefix { channel_id: ChannelId(2), extranonce_prefix: vec![0xaa, 0xbb] },
        &[
            "0080 19 070000", // for a channel, 7 bytes
            "02000000",       // channel_id
            "02 aabb",        // extranonce_prefix
        ],
    );
    assert_is(
        SetTarget { channel_id: ChannelId(2), maximum_target: target() },
        &[
            "0080 21 240000", // for a channel, 36 bytes
            "02000000",       // channel_id
            TARGET,           // maximum_target
        ],
    );
    assert_is(
        SetGroupChannel {
            group_channel_id: ChannelId(9),
            channel_ids: vec![ChannelId(1), ChannelId(0x0102_0304)],
        },
        &[
            "0000 25 0e0000", // not for a channel, 14 bytes
            "09000000",       // group_channel_id
            "0200",           // two channel_ids
            "01000000 04030201",
        ],
    );
}

#[test]
fn submit_shares() {
    assert_is(
        SubmitSharesStandard {
            channel_id: ChannelId(1),
            sequence_number: SequenceNumber(2),
            job_id: JobId(3),
            nonce: 0x0403_0201,
            ntime: 0x6b49_d200,
            version: 0x2000_e000,
        },
        &[
            "0080 1a 180000", // for a channel, 24 bytes
            "01000000",       // channel_id
            "02000000",       // sequence_number
            "03000000",       // job_id
            "01020304",       // nonce
            "00d2496b",       // ntime
            "00e00020",       // version
        ],
    );
    assert_is(extended_share(None), &EXTENDED_SHARE);
}

#[rustfmt::skip]
const EXTENDED_SHARE: [&str; 10] = [
    "0080", "1b", "1d0000", // for a channel, 29 bytes
    "01000000",             // channel_id
    "02000000",             // sequence_number
    "03000000",             // job_id
    "01020304",             // nonce
    "00d2496b",             // ntime
    "00e00020",             // version
    "04a0a1a2a3",           // extranonce
];

fn extended_share(user_identity: Option<&str>) -> SubmitSharesExtended {
    SubmitSharesExtended {
        channel_id: ChannelId(1),
        sequence_number: SequenceNumber(2),
        job_id: JobId(3),
        nonce: 0x0403_0201,
        ntime: 0x6b49_d200,
        version: 0x2000_e000,
        extranonce: vec![0xa0, 0xa1, 0xa2, 0xa3],
        user_identity: user_identity.map(Into::into),
    }
}

#[test]
fn submit_shares_with_the_worker_of_extension_2() {
    let mut fields = EXTENDED_SHARE.to_vec();
    fields[2] = "2c0000"; // 29 + 15 bytes
    fields.extend([
        "0200",                 // extension 2, little-endian as all data types
        "01",                   // field: user_identity
        "0a00",                 // 10 bytes
        "576f726b65725f303031", // "Worker_001"
    ]);
    assert_is(extended_share(Some("Worker_001")), &fields);

    let golden = frame(&fields);
    let header = Header::from_bytes(&golden).expect("a header");
    let mut payload = golden[6..].to_vec();
    let (_, fields_read) = parsers_sv2::parse_message_frame_with_tlvs(header, &mut payload, &[2])
        .expect("the reference reads it");
    let fields_read = fields_read.expect("the reference finds the field");
    assert_eq!(fields_read.len(), 1);
    assert_eq!(fields_read[0].value, b"Worker_001");

    // The example of SV2 3.4.3 is big-endian, and must be understood too.
    let count = fields.len();
    fields[count - 4..count - 1].copy_from_slice(&["0002", "01", "000a"]);
    assert_eq!(decode(&frame(&fields)), extended_share(Some("Worker_001")).into());

    // Fields of other extensions are skipped.
    fields[count - 4..count - 1].copy_from_slice(&["0300", "01", "0a00"]);
    assert_eq!(decode(&frame(&fields)), extended_share(None).into());
}

#[test]
fn answers_to_submit_shares() {
    assert_is(
        SubmitSharesSuccess {
            channel_id: ChannelId(1),
            last_sequence_number: SequenceNumber(9),
            new_submits_accepted_count: 3,
            new_shares_sum: 0x0102_0304_0506_0708,
        },
        &[
            "0080 1c 140000",   // for a channel, 20 bytes
            "01000000",         // channel_id
            "09000000",         // last_sequence_number
            "03000000",         // new_submits_accepted_count
            "0807060504030201", // new_shares_sum
        ],
    );
    assert_is(
        SubmitSharesError {
            channel_id: ChannelId(1),
            sequence_number: SequenceNumber(10),
            error_code: "stale-share".into(),
        },
        &[
            "0080 1d 140000",            // for a channel, 20 bytes
            "01000000",                  // channel_id
            "0a000000",                  // sequence_number
            "0b 7374616c652d7368617265", // error_code: "stale-share"
        ],
    );
}

#[test]
fn new_mining_job() {
    assert_is(
        NewMiningJob {
            channel_id: ChannelId(1),
            job_id: JobId(2),
            min_ntime: None,
            version: 0x2000_0000,
            merkle_root: hash(),
        },
        &[
            "0080 15 2d0000", // for a channel, 45 bytes
            "01000000",       // channel_id
            "02000000",       // job_id
            "00",             // min_ntime: a future job
            "00000020",       // version
            HASH,             // merkle_root
        ],
    );
    assert_is(
        NewMiningJob {
            channel_id: ChannelId(1),
            job_id: JobId(2),
            min_ntime: Some(0x6b49_d200),
            version: 0x2000_0000,
            merkle_root: hash(),
        },
        &[
            "0080 15 310000", // for a channel, 49 bytes
            "01000000",       // channel_id
            "02000000",       // job_id
            "01 00d2496b",    // min_ntime
            "00000020",       // version
            HASH,             // merkle_root
        ],
    );
}

#[test]
fn new_extended_mining_job() {
    assert_is(
        NewExtendedMiningJob {
            channel_id: ChannelId(1),
            job_id: JobId(2),
            min_ntime: Some(0x6b49_d200),
            version: 0x2000_0000,
            version_rolling_allowed: true,
            merkle_path: vec![hash(), [0xee; 32]],
            coinbase_tx_prefix: vec![0x01, 0x00, 0x00, 0x00],
            coinbase_tx_suffix: vec![0xff; 3],
        },
        &[
            "0080 1f 5e0000", // for a channel, 94 bytes
            "01000000",       // channel_id
            "02000000",       // job_id
            "01 00d2496b",    // min_ntime
            "00000020",       // version
            "01",             // version_rolling_allowed
            "02",
            HASH, // merkle_path of two
            "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee 0400 01000000", // coinbase_tx_prefix
            "0300 ffffff", // coinbase_tx_suffix
        ],
    );
    assert_is(
        NewExtendedMiningJob {
            channel_id: ChannelId(1),
            job_id: JobId(2),
            min_ntime: None,
            version: 0x2000_0000,
            version_rolling_allowed: false,
            merkle_path: vec![],
            coinbase_tx_prefix: vec![],
            coinbase_tx_suffix: vec![],
        },
        &[
            "0080 1f 130000", // for a channel, 19 bytes
            "01000000",       // channel_id
            "02000000",       // job_id
            "00",             // min_ntime: a future job
            "00000020",       // version
            "00",             // version_rolling_allowed
            "00",             // merkle_path
            "0000 0000",      // coinbase_tx_prefix, coinbase_tx_suffix
        ],
    );
}

/// Only the lowest bit of a BOOL counts (SV2 3.1).
#[test]
fn the_upper_bits_of_a_bool_mean_nothing() {
    let fields =
        ["0080", "1f", "130000", "01000000", "02000000", "00", "00000020", "fe", "00", "0000", "0000"];
    let Message::NewExtendedMiningJob(job) = decode(&frame(&fields)) else { panic!("another message") };
    assert!(!job.version_rolling_allowed);
    let fields =
        ["0080", "1f", "130000", "01000000", "02000000", "00", "00000020", "ff", "00", "0000", "0000"];
    let Message::NewExtendedMiningJob(job) = decode(&frame(&fields)) else { panic!("another message") };
    assert!(job.version_rolling_allowed);
}

#[test]
fn set_new_prev_hash() {
    assert_is(
        SetNewPrevHash {
            channel_id: ChannelId(1),
            job_id: JobId(2),
            prev_hash: hash(),
            min_ntime: 0x6b49_d200,
            nbits: 0x1703_4219,
        },
        &[
            "0080 20 300000", // for a channel, 48 bytes
            "01000000",       // channel_id
            "02000000",       // job_id
            HASH,             // prev_hash
            "00d2496b",       // min_ntime
            "19420317",       // nbits
        ],
    );
}

#[test]
fn set_custom_mining_job() {
    assert_is(
        SetCustomMiningJob {
            channel_id: ChannelId(1),
            request_id: RequestId(2),
            token: vec![0xaa, 0xbb].into(),
            version: 0x2000_0000,
            prev_hash: hash(),
            min_ntime: 0x6b49_d200,
            nbits: 0x1703_4219,
            coinbase_tx_version: 2,
            coinbase_prefix: vec![0x03, 0x01, 0x02, 0x03],
            coinbase_tx_input_n_sequence: 0xffff_fffe,
            coinbase_tx_outputs: vec![0x00],
            coinbase_tx_locktime: 0x000c_3500,
            merkle_path: vec![[0xee; 32]],
        },
        &[
            "0080 22 6c0000", // for a channel, 108 bytes
            "01000000",       // channel_id
            "02000000",       // request_id
            "02 aabb",        // mining_job_token
            "00000020",       // version
            HASH,             // prev_hash
            "00d2496b",       // min_ntime
            "19420317",       // nbits
            "02000000",       // coinbase_tx_version
            "04 03010203",    // coinbase_prefix
            "feffffff",       // coinbase_tx_input_nSequence
            "0100 00",        // coinbase_tx_outputs
            "00350c00",       // coinbase_tx_locktime
            "01",             // merkle_path of one
            "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee",
        ],
    );
}

#[test]
fn answers_to_set_custom_mining_job() {
    assert_is(
        SetCustomMiningJobSuccess { channel_id: ChannelId(1), request_id: RequestId(2), job_id: JobId(3) },
        &[
            "0080 23 0c0000", // for a channel, 12 bytes
            "01000000",       // channel_id
            "02000000",       // request_id
            "03000000",       // job_id
        ],
    );
    assert_is(
        SetCustomMiningJobError {
            channel_id: ChannelId(1),
            request_id: RequestId(2),
            error_code: "invalid-nbits".into(),
        },
        &[
            "0080 24 160000",                // for a channel, 22 bytes
            "01000000",                      // channel_id
            "02000000",                      // request_id
            "0d 696e76616c69642d6e62697473", // error_code: "invalid-nbits"
        ],
    );
}

#[test]
fn negotiation_of_extensions() {
    assert_is(
        RequestExtensions { request_id: ExtensionsRequestId(0x0102), requested_extensions: vec![2, 0x4003] },
        &[
            "0100 00 080000", // extension 1, not for a channel, 8 bytes
            "0201",           // request_id
            "0200 0200 0340", // requested_extensions
        ],
    );
    assert_is(
        RequestExtensionsSuccess { request_id: ExtensionsRequestId(1), supported_extensions: vec![2] },
        &[
            "0100 01 060000", // extension 1, not for a channel, 6 bytes
            "0100",           // request_id
            "0100 0200",      // supported_extensions
        ],
    );
    assert_is(
        RequestExtensionsError {
            request_id: ExtensionsRequestId(1),
            unsupported_extensions: vec![2, 3],
            required_extensions: vec![5],
        },
        &[
            "0100 02 0c0000", // extension 1, not for a channel, 12 bytes
            "0100",           // request_id
            "0200 0200 0300", // unsupported_extensions
            "0100 0500",      // required_extensions
        ],
    );
}

/// What nobody here knows keeps its bytes, so that it can be forwarded (SV2 3.4.1).
#[test]
fn unknown_messages() {
    let cases = [
        // An experimental extension, for a channel.
        (frame(&["0bc0", "07", "060000", "01020304", "aabb"]), 0x400b, Some(ChannelId(0x0403_0201)), 2),
        // A message type between those of two protocols.
        (frame(&["0000", "61", "030000", "aabbcc"]), 0, None, 3),
        // The message type that is reserved within the mining protocol.
        (frame(&["0080", "1e", "040000", "01000000"]), 0, Some(ChannelId(1)), 0),
    ];
    for (golden, extension_type, channel_id, length) in cases {
        let Message::Unknown(unknown) = decode(&golden) else { panic!("another message") };
        assert_eq!((unknown.extension_type, unknown.channel_id), (extension_type, channel_id));
        assert_eq!((unknown.message_type, unknown.payload.len()), (golden[2], length));
        let mut encoded = Vec::new();
        Message::Unknown(unknown).encode_frame(&mut encoded).expect("within the limits");
        assert_eq!(encoded, golden);
    }
}
