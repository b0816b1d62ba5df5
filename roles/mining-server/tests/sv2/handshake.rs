//! The first messages of a connection, and messages that have no place on it.

use mining_server::Fault;
use stratum::sv2::Message;
use stratum::sv2::messages::*;
use stratum::{ChannelId, JobId, RequestId, SequenceNumber, Target, TemplateId};

use crate::support::*;

fn setup_error(flags: u32, code: &str) -> Message {
    SetupConnectionError { flags, error_code: code.to_owned() }.into()
}

#[test]
fn supported_flags_are_accepted_and_never_echoed() {
    for flags in [0, 1, 4, 5] {
        let driver = Driver::set_up(settings(), flags);
        assert!(driver.closed.is_none());
        assert_eq!(driver.connection.vendor(), "vendor");
        assert_eq!(driver.connection.hardware_version(), "hardware");
    }
}

#[test]
fn unsupported_setups_are_answered_and_closed() {
    let cases: [(SetupConnection, Message); 6] = [
        (
            SetupConnection { protocol: Protocol::JobDeclaration, ..setup_connection(0) },
            setup_error(0, "unsupported-protocol"),
        ),
        (
            SetupConnection { protocol: Protocol::TemplateDistribution, ..setup_connection(0) },
            setup_error(0, "unsupported-protocol"),
        ),
        (
            SetupConnection { min_version: 3, max_version: 9, ..setup_connection(0) },
            setup_error(0, "protocol-version-mismatch"),
        ),
        (
            SetupConnection { min_version: 2, max_version: 1, ..setup_connection(0) },
            setup_error(0, "protocol-version-mismatch"),
        ),
        (setup_connection(REQUIRES_WORK_SELECTION | 1), setup_error(2, "unsupported-feature-flags")),
        (setup_connection(u32::MAX), setup_error(0xffff_fffa, "unsupported-feature-flags")),
    ];
    for (setup, answer) in cases {
        let mut driver = Driver::new(settings());
        assert_eq!(driver.send(setup), [answer]);
        assert_eq!(driver.closed.expect("closed").fault, Fault::Downstream);
    }
}

#[test]
fn a_protocol_that_does_not_exist_is_answered() {
    let mut frame = Vec::new();
    Message::from(setup_connection(0)).encode_frame(&mut frame).expect("it fits");
    frame[6] = 9;
    let mut driver = Driver::new(settings());
    assert_eq!(driver.send_frame(&frame), [setup_error(0, "unsupported-protocol")]);
    assert!(driver.closed.is_some());
}

#[test]
fn the_first_message_is_setup_connection_and_it_comes_once() {
    let mut driver = Driver::new(settings());
    assert_eq!(driver.send(standard(1)), []);
    assert_eq!(driver.closed.as_ref().expect("closed").fault, Fault::Downstream);
    assert_eq!(driver.send(setup_connection(0)), [], "nothing is heard after the end");

    let mut driver = Driver::set_up(settings(), 0);
    assert_eq!(driver.send(setup_connection(0)), []);
    assert!(driver.closed.is_some());
}

/// What a mining server sends on an open channel, and messages of other protocols.
fn messages_of_open_channels(channel_id: ChannelId) -> Vec<Message> {
    let (request_id, extensions) = (RequestId(1), ExtensionsRequestId(1));
    vec![
        SetupConnectionError { flags: 0, error_code: String::new() }.into(),
        OpenExtendedMiningChannelSuccess {
            request_id,
            channel_id,
            target: Target::MAX,
            extranonce_size: 8,
            extranonce_prefix: vec![1],
            group_channel_id: channel_id,
        }
        .into(),
        OpenStandardMiningChannelSuccess {
            request_id,
            channel_id,
            target: Target::MAX,
            extranonce_prefix: vec![1],
            group_channel_id: channel_id,
        }
        .into(),
        UpdateChannelError { channel_id, error_code: String::new() }.into(),
        NewMiningJob { channel_id, job_id: JobId(1), min_ntime: None, version: 2, merkle_root: [0; 32] }
            .into(),
        NewExtendedMiningJob {
            channel_id,
            job_id: JobId(1),
            min_ntime: None,
            version: 2,
            version_rolling_allowed: true,
            merkle_path: Vec::new(),
            coinbase_tx_prefix: Vec::new(),
            coinbase_tx_suffix: Vec::new(),
        }
        .into(),
        SubmitSharesSuccess {
            channel_id,
            last_sequence_number: SequenceNumber(1),
            new_submits_accepted_count: 1,
            new_shares_sum: 1,
        }
        .into(),
        SubmitSharesError { channel_id, sequence_number: SequenceNumber(1), error_code: String::new() }
            .into(),
        SetCustomMiningJobSuccess { channel_id, request_id, job_id: JobId(1) }.into(),
        SetCustomMiningJobError { channel_id, request_id, error_code: String::new() }.into(),
        RequestExtensionsSuccess { request_id: extensions, supported_extensions: Vec::new() }.into(),
        RequestExtensionsError {
            request_id: extensions,
            unsupported_extensions: Vec::new(),
            required_extensions: Vec::new(),
        }
        .into(),
        AllocateMiningJobToken { user_identifier: String::new(), request_id }.into(),
        RequestTransactionData { template_id: TemplateId(1) }.into(),
    ]
}

#[test]
fn messages_of_servers_close_the_connection() {
    let channel_id = ChannelId(2);
    let mut messages: Vec<Message> = vec![
        SetupConnectionSuccess { used_version: 2, flags: 0 }.into(),
        Reconnect { new_host: String::new(), new_port: 0 }.into(),
        ChannelEndpointChanged { channel_id }.into(),
        SetTarget { channel_id, maximum_target: Target::MAX }.into(),
        SetExtranoncePrefix { channel_id, extranonce_prefix: vec![1] }.into(),
        SetGroupChannel { group_channel_id: channel_id, channel_ids: Vec::new() }.into(),
        SetNewPrevHash { channel_id, job_id: JobId(1), prev_hash: [0; 32], min_ntime: 0, nbits: 0 }.into(),
        refused(1, "unknown-user"),
    ];
    messages.extend(messages_of_open_channels(channel_id));
    for message in messages {
        let mut driver = Driver::set_up(settings(), 0);
        driver.work(&Source::new().job(driver.now));
        driver.open_extended(extended(1));
        assert_eq!(driver.send(message), []);
        assert_eq!(driver.closed.as_ref().expect("closed").fault, Fault::Downstream);
        driver.close();
        assert!(driver.registry.held.is_empty());
    }
}

#[test]
fn malformed_and_oversized_frames_close_the_connection() {
    // SubmitSharesStandard of one byte.
    let mut driver = Driver::set_up(settings(), 0);
    assert_eq!(driver.send_frame(&[0, 0x80, 0x1a, 1, 0, 0, 7]), []);
    assert_eq!(driver.closed.expect("closed").fault, Fault::Downstream);

    let mut driver = Driver::set_up(settings(), 0);
    let mut frame = vec![0, 0, 0xee, 0x01, 0x08, 0];
    frame.resize(6 + 0x801, 0);
    assert_eq!(driver.send_frame(&frame), []);
    assert_eq!(driver.closed.expect("closed").fault, Fault::Downstream);
}

#[test]
fn unknown_messages_are_ignored_and_noticed_once() {
    let mut driver = Driver::set_up(settings(), 0);
    for _ in 0..3 {
        assert_eq!(driver.send_frame(&[0, 0, 0xee, 2, 0, 0, 1, 2]), []);
        assert_eq!(driver.send_frame(&[7, 0x80, 0, 4, 0, 0, 1, 0, 0, 0]), []);
    }
    assert_eq!(driver.notices(), 1);
    assert!(driver.closed.is_none());
}

#[test]
fn unknown_extensions_and_custom_jobs_are_refused() {
    let mut driver = Driver::set_up(settings(), 0);
    let request_id = ExtensionsRequestId(5);
    let answer = driver.send(RequestExtensions { request_id, requested_extensions: vec![3, 9] });
    let refusal = RequestExtensionsError {
        request_id,
        unsupported_extensions: vec![3, 9],
        required_extensions: Vec::new(),
    };
    assert_eq!(answer, [refusal.into()]);
    let answer = driver.send(RequestExtensions { request_id, requested_extensions: vec![2, 9] });
    assert_eq!(answer, [RequestExtensionsSuccess { request_id, supported_extensions: vec![2] }.into()]);
    let answer = driver.send(RequestExtensions { request_id, requested_extensions: Vec::new() });
    assert_eq!(answer, [RequestExtensionsSuccess { request_id, supported_extensions: Vec::new() }.into()]);

    let answer = driver.send(SetCustomMiningJob {
        channel_id: ChannelId(2),
        request_id: RequestId(8),
        token: vec![1].into(),
        version: 2,
        prev_hash: [0; 32],
        min_ntime: 0,
        nbits: 0,
        coinbase_tx_version: 2,
        coinbase_prefix: Vec::new(),
        coinbase_tx_input_n_sequence: 0,
        coinbase_tx_outputs: Vec::new(),
        coinbase_tx_locktime: 0,
        merkle_path: Vec::new(),
    });
    let refusal = SetCustomMiningJobError {
        channel_id: ChannelId(2),
        request_id: RequestId(8),
        error_code: "jd-not-supported".to_owned(),
    };
    assert_eq!(answer, [refusal.into()]);
    assert!(driver.closed.is_none());
}

#[test]
fn silent_and_half_open_connections_are_closed() {
    let mut driver = Driver::new(settings());
    driver.wait(seconds(59));
    assert!(driver.closed.is_none());
    driver.wait(seconds(1));
    assert_eq!(driver.closed.expect("closed").fault, Fault::Downstream);

    let mut driver = Driver::set_up(settings(), 0);
    driver.work(&Source::new().job(driver.now));
    driver.wait(seconds(60));
    assert!(driver.closed.is_some(), "a channel must be opened too");
}

#[test]
fn an_open_channel_keeps_the_connection_and_its_end_starts_the_deadline_anew() {
    let mut driver = Driver::set_up(settings(), 0);
    driver.work(&Source::new().job(driver.now));
    let (opened, _) = driver.open_extended(extended(1));
    driver.wait(seconds(3600));
    assert!(driver.closed.is_none());
    driver.send(CloseChannel { channel_id: opened.channel, reason_code: String::new() });
    driver.wait(seconds(59));
    assert!(driver.closed.is_none());
    driver.wait(seconds(1));
    assert!(driver.closed.is_some());
}

#[test]
fn what_a_peer_says_of_itself_is_safe_to_log() {
    let mut driver = Driver::new(settings());
    driver.send(SetupConnection { vendor: "a\nb\u{1b}[2J".to_owned(), ..setup_connection(0) });
    assert_eq!(driver.connection.vendor(), "a?b?[2J");
}
