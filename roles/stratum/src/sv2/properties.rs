//! Properties of the message codec, for arbitrary messages and arbitrary bytes.

use proptest::prelude::*;

use super::codes;
use super::frame::{FrameHeader, HEADER_SIZE};
use super::messages::*;
use super::{DecodeError, EncodeError};
use crate::{ChannelId, JobId, RequestId, SequenceNumber, Target, TemplateId};

/// Every (extension, type) that is a message of ours, and some that are not.
fn kinds() -> impl Strategy<Value = (u16, u8)> {
    prop_oneof![
        8 => (Just(0), 0x00u8..=0x26),
        4 => (Just(0), 0x50u8..=0x60),
        4 => (Just(0), 0x70u8..=0x77),
        2 => (Just(1), 0x00u8..=0x03),
        1 => (0u16..0x8000, any::<u8>()),
    ]
}

fn channel() -> impl Strategy<Value = ChannelId> {
    any::<u32>().prop_map(ChannelId)
}

fn request() -> impl Strategy<Value = RequestId> {
    any::<u32>().prop_map(RequestId)
}

fn job() -> impl Strategy<Value = JobId> {
    any::<u32>().prop_map(JobId)
}

fn sequence() -> impl Strategy<Value = SequenceNumber> {
    any::<u32>().prop_map(SequenceNumber)
}

fn target() -> impl Strategy<Value = Target> {
    any::<[u8; 32]>().prop_map(Target::from_le_bytes)
}

/// Texts of at most 255 bytes.
fn text() -> impl Strategy<Value = String> {
    "\\PC{0,60}"
}

fn bytes(longest: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..=longest)
}

fn path() -> impl Strategy<Value = Vec<[u8; 32]>> {
    prop::collection::vec(any::<[u8; 32]>(), 0..=255)
}

fn extensions() -> impl Strategy<Value = Vec<u16>> {
    prop::collection::vec(any::<u16>(), 0..300)
}

fn identity() -> impl Strategy<Value = Option<String>> {
    prop::option::of("[a-zA-Z0-9._\u{e4}]{0,16}")
}

fn common() -> impl Strategy<Value = Message> {
    let protocol = prop_oneof![
        Just(Protocol::Mining),
        Just(Protocol::JobDeclaration),
        Just(Protocol::TemplateDistribution)
    ];
    let numbers = (protocol, any::<u16>(), any::<u16>(), any::<u32>(), any::<u16>());
    let setup = (numbers, text(), text(), text(), text(), text()).prop_map(
        |(numbers, endpoint_host, vendor, hardware_version, firmware, device_id)| {
            let (protocol, min_version, max_version, flags, endpoint_port) = numbers;
            Message::SetupConnection(SetupConnection {
                protocol,
                min_version,
                max_version,
                flags,
                endpoint_host,
                endpoint_port,
                vendor,
                hardware_version,
                firmware,
                device_id,
            })
        },
    );
    prop_oneof![
        setup,
        (any::<u16>(), any::<u32>()).prop_map(|(used_version, flags)| SetupConnectionSuccess {
            used_version,
            flags
        }
        .into()),
        (any::<u32>(), text())
            .prop_map(|(flags, error_code)| SetupConnectionError { flags, error_code }.into()),
        channel().prop_map(|channel_id| ChannelEndpointChanged { channel_id }.into()),
        (text(), any::<u16>()).prop_map(|(new_host, new_port)| Reconnect { new_host, new_port }.into()),
        (any::<u16>(), extensions()).prop_map(|(id, requested_extensions)| {
            RequestExtensions { request_id: ExtensionsRequestId(id), requested_extensions }.into()
        }),
        (any::<u16>(), extensions()).prop_map(|(id, supported_extensions)| {
            RequestExtensionsSuccess { request_id: ExtensionsRequestId(id), supported_extensions }.into()
        }),
        (any::<u16>(), extensions(), extensions()).prop_map(
            |(id, unsupported_extensions, required_extensions)| {
                let request_id = ExtensionsRequestId(id);
                RequestExtensionsError { request_id, unsupported_extensions, required_extensions }.into()
            }
        ),
        (2u16..0x8000, any::<u8>(), prop::option::of(channel()), bytes(100)).prop_map(
            |(extension_type, message_type, channel_id, payload)| {
                Unknown { extension_type, message_type, channel_id, payload }.into()
            }
        ),
    ]
}

fn channels() -> impl Strategy<Value = Message> {
    let rate = -1e20f32..1e20;
    prop_oneof![
        (request(), text(), rate.clone(), target()).prop_map(
            |(request_id, user_identity, nominal_hash_rate, max_target)| {
                OpenStandardMiningChannel { request_id, user_identity, nominal_hash_rate, max_target }.into()
            }
        ),
        (request(), text(), rate.clone(), target(), any::<u16>()).prop_map(
            |(request_id, user_identity, nominal_hash_rate, max_target, min_extranonce_size)| {
                OpenExtendedMiningChannel {
                    request_id,
                    user_identity,
                    nominal_hash_rate,
                    max_target,
                    min_extranonce_size,
                }
                .into()
            }
        ),
        (request(), channel(), target(), bytes(32), channel()).prop_map(
            |(request_id, channel_id, target, extranonce_prefix, group_channel_id)| {
                OpenStandardMiningChannelSuccess {
                    request_id,
                    channel_id,
                    target,
                    extranonce_prefix,
                    group_channel_id,
                }
                .into()
            }
        ),
        (request(), channel(), target(), any::<u16>(), bytes(32), channel()).prop_map(
            |(request_id, channel_id, target, extranonce_size, extranonce_prefix, group_channel_id)| {
                OpenExtendedMiningChannelSuccess {
                    request_id,
                    channel_id,
                    target,
                    extranonce_size,
                    extranonce_prefix,
                    group_channel_id,
                }
                .into()
            }
        ),
        (request(), text()).prop_map(|(request_id, error_code)| OpenMiningChannelError {
            request_id,
            error_code
        }
        .into()),
        (channel(), rate, target()).prop_map(|(channel_id, nominal_hash_rate, maximum_target)| {
            UpdateChannel { channel_id, nominal_hash_rate, maximum_target }.into()
        }),
        (channel(), text()).prop_map(|(channel_id, error_code)| UpdateChannelError {
            channel_id,
            error_code
        }
        .into()),
        (channel(), text())
            .prop_map(|(channel_id, reason_code)| CloseChannel { channel_id, reason_code }.into()),
        (channel(), bytes(32)).prop_map(|(channel_id, extranonce_prefix)| {
            SetExtranoncePrefix { channel_id, extranonce_prefix }.into()
        }),
        (channel(), prop::collection::vec(channel(), 0..300)).prop_map(|(group_channel_id, channel_ids)| {
            SetGroupChannel { group_channel_id, channel_ids }.into()
        }),
    ]
}

fn jobs() -> impl Strategy<Value = Message> {
    let ntime = || prop::option::of(any::<u32>());
    let coinbase = (bytes(400), bytes(400));
    let custom = (bytes(255), bytes(255), bytes(400), path());
    prop_oneof![
        (channel(), job(), ntime(), any::<u32>(), any::<[u8; 32]>()).prop_map(
            |(channel_id, job_id, min_ntime, version, merkle_root)| {
                NewMiningJob { channel_id, job_id, min_ntime, version, merkle_root }.into()
            }
        ),
        (channel(), job(), ntime(), any::<u32>(), any::<bool>(), path(), coinbase).prop_map(
            |(channel_id, job_id, min_ntime, version, version_rolling_allowed, merkle_path, coinbase)| {
                NewExtendedMiningJob {
                    channel_id,
                    job_id,
                    min_ntime,
                    version,
                    version_rolling_allowed,
                    merkle_path,
                    coinbase_tx_prefix: coinbase.0,
                    coinbase_tx_suffix: coinbase.1,
                }
                .into()
            }
        ),
        (channel(), job(), any::<[u8; 32]>(), any::<u32>(), any::<u32>()).prop_map(
            |(channel_id, job_id, prev_hash, min_ntime, nbits)| {
                SetNewPrevHash { channel_id, job_id, prev_hash, min_ntime, nbits }.into()
            }
        ),
        (channel(), target()).prop_map(|(channel_id, maximum_target)| SetTarget {
            channel_id,
            maximum_target
        }
        .into()),
        (channel(), request(), any::<[u32; 6]>(), any::<[u8; 32]>(), custom).prop_map(
            |(channel_id, request_id, numbers, prev_hash, custom)| {
                SetCustomMiningJob {
                    channel_id,
                    request_id,
                    token: custom.0.into(),
                    version: numbers[0],
                    prev_hash,
                    min_ntime: numbers[1],
                    nbits: numbers[2],
                    coinbase_tx_version: numbers[3],
                    coinbase_prefix: custom.1,
                    coinbase_tx_input_n_sequence: numbers[4],
                    coinbase_tx_outputs: custom.2,
                    coinbase_tx_locktime: numbers[5],
                    merkle_path: custom.3,
                }
                .into()
            }
        ),
        (channel(), request(), job()).prop_map(|(channel_id, request_id, job_id)| {
            SetCustomMiningJobSuccess { channel_id, request_id, job_id }.into()
        }),
        (channel(), request(), text()).prop_map(|(channel_id, request_id, error_code)| {
            SetCustomMiningJobError { channel_id, request_id, error_code }.into()
        }),
    ]
}

fn shares() -> impl Strategy<Value = Message> {
    prop_oneof![
        (channel(), sequence(), job(), any::<[u32; 3]>()).prop_map(
            |(channel_id, sequence_number, job_id, [nonce, ntime, version])| {
                SubmitSharesStandard { channel_id, sequence_number, job_id, nonce, ntime, version }.into()
            }
        ),
        (channel(), sequence(), job(), any::<[u32; 3]>(), bytes(32), identity()).prop_map(
            |(channel_id, sequence_number, job_id, [nonce, ntime, version], extranonce, user_identity)| {
                SubmitSharesExtended {
                    channel_id,
                    sequence_number,
                    job_id,
                    nonce,
                    ntime,
                    version,
                    extranonce,
                    user_identity,
                }
                .into()
            }
        ),
        (channel(), sequence(), any::<u32>(), any::<u64>()).prop_map(
            |(channel_id, last_sequence_number, new_submits_accepted_count, new_shares_sum)| {
                SubmitSharesSuccess {
                    channel_id,
                    last_sequence_number,
                    new_submits_accepted_count,
                    new_shares_sum,
                }
                .into()
            }
        ),
        (channel(), sequence(), text()).prop_map(|(channel_id, sequence_number, error_code)| {
            SubmitSharesError { channel_id, sequence_number, error_code }.into()
        }),
    ]
}

fn token() -> impl Strategy<Value = MiningJobToken> {
    bytes(255).prop_map(MiningJobToken)
}

fn hashes() -> impl Strategy<Value = Vec<[u8; 32]>> {
    prop::collection::vec(any::<[u8; 32]>(), 0..=400)
}

fn transactions() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(bytes(300), 0..=20)
}

fn template() -> impl Strategy<Value = TemplateId> {
    any::<u64>().prop_map(TemplateId)
}

fn declarations() -> impl Strategy<Value = Message> {
    prop_oneof![
        (text(), request()).prop_map(|(user_identifier, request_id)| {
            AllocateMiningJobToken { user_identifier, request_id }.into()
        }),
        (request(), token(), bytes(400)).prop_map(|(request_id, mining_job_token, coinbase_outputs)| {
            AllocateMiningJobTokenSuccess { request_id, mining_job_token, coinbase_outputs }.into()
        }),
        (request(), token(), any::<u32>(), bytes(300), bytes(300), hashes(), bytes(300)).prop_map(
            |(
                request_id,
                mining_job_token,
                version,
                coinbase_tx_prefix,
                coinbase_tx_suffix,
                wtxid_list,
                excess_data,
            )| {
                DeclareMiningJob {
                    request_id,
                    mining_job_token,
                    version,
                    coinbase_tx_prefix,
                    coinbase_tx_suffix,
                    wtxid_list,
                    excess_data,
                }
                .into()
            }
        ),
        (request(), token()).prop_map(|(request_id, new_mining_job_token)| {
            DeclareMiningJobSuccess { request_id, new_mining_job_token }.into()
        }),
        (request(), text(), bytes(300)).prop_map(|(request_id, error_code, error_details)| {
            DeclareMiningJobError { request_id, error_code, error_details }.into()
        }),
    ]
}

fn solutions() -> impl Strategy<Value = Message> {
    prop_oneof![
        (request(), prop::collection::vec(any::<u16>(), 0..400)).prop_map(
            |(request_id, unknown_tx_position_list)| {
                ProvideMissingTransactions { request_id, unknown_tx_position_list }.into()
            }
        ),
        (request(), transactions()).prop_map(|(request_id, transaction_list)| {
            ProvideMissingTransactionsSuccess { request_id, transaction_list }.into()
        }),
        (bytes(32), any::<[u8; 32]>(), any::<[u32; 4]>()).prop_map(
            |(extranonce, prev_hash, [nonce, ntime, nbits, version])| {
                PushSolution { extranonce, prev_hash, nonce, ntime, nbits, version }.into()
            }
        ),
        (template(), any::<[u32; 3]>(), bytes(400)).prop_map(
            |(template_id, [version, header_timestamp, header_nonce], coinbase_tx)| {
                SubmitSolution { template_id, version, header_timestamp, header_nonce, coinbase_tx }.into()
            }
        ),
    ]
}

fn templates() -> impl Strategy<Value = Message> {
    let new_template = (template(), any::<bool>(), any::<[u32; 5]>(), any::<u64>(), bytes(255), bytes(400));
    prop_oneof![
        (any::<u32>(), any::<u16>()).prop_map(|(size, sigops)| {
            let coinbase_output_max_additional_size = size;
            let coinbase_output_max_additional_sigops = sigops;
            CoinbaseOutputConstraints {
                coinbase_output_max_additional_size,
                coinbase_output_max_additional_sigops,
            }
            .into()
        }),
        (new_template, path()).prop_map(|((template_id, future, numbers, value, prefix, outputs), path)| {
            NewTemplate {
                template_id,
                future_template: future,
                version: numbers[0],
                coinbase_tx_version: numbers[1],
                coinbase_prefix: prefix,
                coinbase_tx_input_sequence: numbers[2],
                coinbase_tx_value_remaining: value,
                coinbase_tx_outputs_count: numbers[3],
                coinbase_tx_outputs: outputs,
                coinbase_tx_locktime: numbers[4],
                merkle_path: path,
            }
            .into()
        }),
        (template(), any::<[u8; 32]>(), any::<u32>(), any::<u32>(), target()).prop_map(
            |(template_id, prev_hash, header_timestamp, n_bits, target)| {
                TemplateSetNewPrevHash { template_id, prev_hash, header_timestamp, n_bits, target }.into()
            }
        ),
        template().prop_map(|template_id| RequestTransactionData { template_id }.into()),
        (template(), bytes(300), transactions()).prop_map(|(template_id, excess_data, transaction_list)| {
            RequestTransactionDataSuccess { template_id, excess_data, transaction_list }.into()
        }),
        (template(), text()).prop_map(|(template_id, error_code)| {
            RequestTransactionDataError { template_id, error_code }.into()
        }),
    ]
}

fn decode_frame(frame: &[u8]) -> Result<Message, DecodeError> {
    let (header, payload) = frame.split_first_chunk::<HEADER_SIZE>().expect("a header");
    let header = FrameHeader::parse(*header);
    assert_eq!(header.payload_length as usize, payload.len());
    Message::decode(header, payload)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_encoded_decodes_to_the_same(
        message in prop_oneof![
            common(), channels(), jobs(), shares(), declarations(), solutions(), templates()
        ],
        cut in any::<prop::sample::Index>(),
    ) {
        let mut frame = b"kept".to_vec();
        message.encode_frame(&mut frame).expect("within the limits");
        prop_assert_eq!(&frame[..4], b"kept");
        prop_assert_eq!(decode_frame(&frame[4..]), Ok(message.clone()));

        // Cut anywhere, it is no message or, when extension fields were cut off, the same one without them.
        let header = FrameHeader::parse(frame[4..10].try_into().expect("six bytes"));
        let payload = &frame[10..];
        let is_unknown = matches!(message, Message::Unknown(_));
        if !payload.is_empty() && !is_unknown {
            match (Message::decode(header, &payload[..cut.index(payload.len())]), message) {
                (Err(_), _) => {}
                (Ok(Message::SubmitSharesExtended(read)), Message::SubmitSharesExtended(sent)) => {
                    prop_assert_eq!(read, SubmitSharesExtended { user_identity: None, ..sent });
                }
                (Ok(read), _) => prop_assert!(false, "{:?}", read),
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        (extension_type, message_type) in kinds(),
        channel_msg in any::<bool>(),
        payload in bytes(600),
    ) {
        let payload_length = payload.len() as u32;
        let header = FrameHeader { extension_type, channel_msg, message_type, payload_length };
        if let Ok(message) = Message::decode(header, &payload) {
            message.encode_frame(&mut Vec::new()).expect("what was read can be written");
        }
    }

    /// Lengths that a hostile peer would choose: bytes that are mostly 0, 1 or 255.
    #[test]
    fn hostile_lengths_never_panic(
        (extension_type, message_type) in kinds(),
        payload in prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(255), any::<u8>()], 0..600),
    ) {
        let payload_length = payload.len() as u32;
        let header = FrameHeader { extension_type, channel_msg: true, message_type, payload_length };
        let _ = Message::decode(header, &payload);
    }
}

#[test]
fn values_too_long_for_their_fields_are_named() {
    let mut out = b"kept".to_vec();
    let mut refused = |message: Message| {
        let error = message.encode_frame(&mut out).expect_err("too long");
        assert_eq!(out, b"kept");
        error
    };
    let channel_id = ChannelId(1);
    let close = CloseChannel { channel_id, reason_code: "x".repeat(256) };
    let expected = EncodeError { message: "CloseChannel", field: "reason_code", length: 256, limit: 255 };
    assert_eq!(refused(close.into()), expected);
    let prefix = SetExtranoncePrefix { channel_id, extranonce_prefix: vec![0; 33] };
    assert_eq!(refused(prefix.into()).limit, 32);
    let group = SetGroupChannel { group_channel_id: channel_id, channel_ids: vec![channel_id; 65_536] };
    assert_eq!(refused(group.into()).limit, 65_535);
    let extensions = vec![1; 65_536];
    let request = RequestExtensions { request_id: ExtensionsRequestId(1), requested_extensions: extensions };
    assert_eq!(refused(request.into()).limit, 65_535);
    let share = SubmitSharesExtended {
        channel_id,
        sequence_number: SequenceNumber(1),
        job_id: JobId(1),
        nonce: 0,
        ntime: 0,
        version: 0,
        extranonce: vec![],
        user_identity: Some("w".repeat(33)),
    };
    assert_eq!(refused(share.into()).field, "user_identity");
    let job = NewExtendedMiningJob {
        channel_id,
        job_id: JobId(1),
        min_ntime: None,
        version: 0,
        version_rolling_allowed: true,
        merkle_path: vec![[0; 32]; 256],
        coinbase_tx_prefix: vec![],
        coinbase_tx_suffix: vec![0; 65_536],
    };
    assert_eq!(refused(job.clone().into()).limit, 255);
    assert_eq!(refused(NewExtendedMiningJob { merkle_path: vec![], ..job }.into()).limit, 65_535);
    let declared = DeclareMiningJob {
        request_id: RequestId(1),
        mining_job_token: vec![0; 256].into(),
        version: 0,
        coinbase_tx_prefix: vec![],
        coinbase_tx_suffix: vec![],
        wtxid_list: vec![[0; 32]; 65_536],
        excess_data: vec![],
    };
    assert_eq!(refused(declared.clone().into()).field, "mining_job_token");
    let mining_job_token = vec![].into();
    assert_eq!(refused(DeclareMiningJob { mining_job_token, ..declared }.into()).field, "wtxid_list");
    let lists = [vec![vec![0; 1 << 24]], vec![vec![]; 65_536], vec![vec![0; 1 << 23]; 2]];
    let limits = lists.map(|transaction_list| {
        refused(ProvideMissingTransactionsSuccess { request_id: RequestId(1), transaction_list }.into()).limit
    });
    assert_eq!(limits, [(1 << 24) - 1, 65_535, (1 << 24) - 1]);
    let payload = vec![0; 1 << 24];
    let unknown = Unknown { extension_type: 9, message_type: 1, channel_id: None, payload };
    assert_eq!(refused(unknown.into()).limit, (1 << 24) - 1);
}

#[test]
fn wrong_messages_say_what_is_wrong() {
    let decode = |extension_type, message_type, payload: &[u8]| {
        let payload_length = payload.len() as u32;
        let header = FrameHeader { extension_type, channel_msg: true, message_type, payload_length };
        Message::decode(header, payload).expect_err("a wrong message").to_string()
    };
    let setup = [&[3u8, 2, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0][..], &[0; 4]].concat();
    assert_eq!(decode(0, 0x00, &setup), "SetupConnection.protocol 3 is unknown");
    assert_eq!(decode(0, 0x18, &[1, 0, 0, 0, 1, 255]), "CloseChannel.reason_code is not UTF-8");
    assert_eq!(decode(0, 0x18, &[1, 0, 0, 0, 2, 65]), "CloseChannel of 6 bytes: it ends within its fields");
    let too_long = [&[1u8, 0, 0, 0, 33][..], &[0; 33]].concat();
    let announced = "SetExtranoncePrefix of 38 bytes: a field announces more than it may hold";
    assert_eq!(decode(0, 0x19, &too_long), announced);
    let two_times = [&[0u8; 8][..], &[2], &[0; 44]].concat();
    assert_eq!(decode(0, 0x15, &two_times), "NewMiningJob of 53 bytes: an option holds more than one value");
    let trailing = [&[0u8; 12][..], &[1, 2]].concat();
    let expected = "SetCustomMiningJob.Success is followed by 2 bytes that are no extension fields";
    assert_eq!(decode(0, 0x23, &trailing), expected);
    assert_eq!(decode(7, 0, &[1, 2, 3]), "an unknown message of 3 bytes: it ends within its channel id");
    let long_name = [&[0u8; 25][..], &[2, 0, 1, 33, 0], &[b'w'; 33]].concat();
    assert_eq!(decode(0, 0x1b, &long_name), "SubmitSharesExtended.user_identity is longer than 32 bytes");
    let bad_name = [&[0u8; 25][..], &[2, 0, 1, 1, 0, 255]].concat();
    assert_eq!(decode(0, 0x1b, &bad_name), "SubmitSharesExtended.user_identity is not UTF-8");
}

/// Whoever reads a log must not be able to use a token.
#[test]
fn tokens_are_not_shown() {
    let message =
        DeclareMiningJobSuccess { request_id: RequestId(1), new_mining_job_token: vec![7; 16].into() };
    assert!(format!("{message:?}").contains("MiningJobToken(16 bytes)"));
}

/// The channel bit says nothing new about a known message, and implementations differ on it.
#[test]
fn the_channel_bit_of_known_messages_is_not_checked() {
    let message = Message::from(SetCustomMiningJobSuccess {
        channel_id: ChannelId(1),
        request_id: RequestId(2),
        job_id: JobId(3),
    });
    let mut frame = Vec::new();
    message.encode_frame(&mut frame).expect("within the limits");
    frame[1] ^= 0x80;
    assert_eq!(decode_frame(&frame), Ok(message));
    assert_eq!(codes::setup_flags::ALL, 7);
}
