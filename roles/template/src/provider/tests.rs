//! Server and client against each other, and against peers that nobody wants.

use std::sync::Arc;
use std::time::Duration;

use stratum::hash::{merkle_root, sha256d};
use stratum::sv2::codes::{self, request_transaction_data, setup_connection};
use stratum::sv2::frame::HEADER_SIZE;
use stratum::sv2::messages::{
    ChannelEndpointChanged, CloseChannel, CoinbaseOutputConstraints, ExtensionsRequestId, NewTemplate,
    Protocol, Reconnect, RequestExtensions, RequestExtensionsError, RequestExtensionsSuccess,
    RequestTransactionData, RequestTransactionDataError, SetupConnection, SetupConnectionError,
    SetupConnectionSuccess, SubmitSolution, TemplateSetNewPrevHash, Unknown,
};
use stratum::sv2::{FrameHeader, Message};
use stratum::{ChannelId, Fault, Now, TemplateId};

use super::client::{ProviderClient, ProviderClientOutput};
use super::server::{
    MAX_REQUESTS, MAX_SERVED, ProviderConnection, ProviderOutput, RETIRED_FOR, SETUP_DEADLINE,
};
use crate::block_template::tests::{small_template, with_transactions};
use crate::{BlockTemplate, CoinbaseConstraints, CoinbaseRules, assemble_block};

fn at(seconds: u64) -> Now {
    Now::simulated(Duration::from_secs(1_700_000_000 + seconds), Duration::from_secs(seconds))
}

fn on_tip(tip: u8, transactions: usize) -> Arc<BlockTemplate> {
    let template = BlockTemplate { previous_hash: [tip; 32], ..small_template(900_000) };
    let mut template = with_transactions(template, transactions);
    template.coinbase_value = 312_500_000 + template.fees();
    Arc::new(template)
}

/// The frames of some bytes.
fn frames(mut bytes: &[u8]) -> Vec<(FrameHeader, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk::<HEADER_SIZE>() {
        let header = FrameHeader::parse(*header);
        let (payload, rest) = rest.split_at(header.payload_length as usize);
        frames.push((header, payload.to_vec()));
        bytes = rest;
    }
    frames
}

fn messages(bytes: &[u8]) -> Vec<Message> {
    frames(bytes).iter().map(|(header, payload)| Message::decode(*header, payload).expect("ours")).collect()
}

fn setup() -> SetupConnection {
    SetupConnection {
        protocol: Protocol::TemplateDistribution,
        min_version: 2,
        max_version: 2,
        flags: 0,
        endpoint_host: String::new(),
        endpoint_port: 1,
        vendor: String::new(),
        hardware_version: String::new(),
        firmware: String::new(),
        device_id: String::new(),
    }
}

fn room(size: u32) -> CoinbaseOutputConstraints {
    CoinbaseOutputConstraints {
        coinbase_output_max_additional_size: size,
        coinbase_output_max_additional_sigops: 0,
    }
}

/// A server's connection, and what came out of it.
struct Server {
    connection: ProviderConnection,
    newest: Arc<BlockTemplate>,
    out: ProviderOutput,
}

impl Server {
    fn new(newest: Arc<BlockTemplate>) -> Self {
        let connection = ProviderConnection::new(true, at(0));
        Server { connection, newest, out: ProviderOutput::default() }
    }

    fn serving(newest: Arc<BlockTemplate>) -> Self {
        let mut server = Server::new(newest);
        server.take(setup());
        server.take(room(100));
        server
    }

    /// Takes a message at second 1 and returns the answers.
    fn take(&mut self, message: impl Into<Message>) -> Vec<Message> {
        let mut bytes = Vec::new();
        message.into().encode_frame(&mut bytes).expect("fits");
        let (header, payload) = frames(&bytes).remove(0);
        self.connection.handle_frame(header, &payload, Some(&self.newest), at(1), &mut self.out);
        messages(&std::mem::take(&mut self.out.bytes))
    }

    fn offer(&mut self, template: Arc<BlockTemplate>, now: Now) -> Vec<Message> {
        self.newest = template;
        self.connection.handle_template(&self.newest, now, &mut self.out);
        messages(&std::mem::take(&mut self.out.bytes))
    }

    fn close_fault(&self) -> Option<Fault> {
        self.out.close.as_ref().map(|reason| reason.fault)
    }
}

fn template_and_tip(messages: &[Message]) -> (NewTemplate, Option<TemplateSetNewPrevHash>) {
    match messages {
        [Message::NewTemplate(template)] => (template.clone(), None),
        [Message::NewTemplate(template), Message::TemplateSetNewPrevHash(tip)] => {
            (template.clone(), Some(tip.clone()))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn constraints_are_answered_with_the_best_template_and_a_tip() {
    let mut server = Server::new(on_tip(1, 3));
    assert!(matches!(server.take(setup())[..], [Message::SetupConnectionSuccess(_)]));
    let (first, tip) = template_and_tip(&server.take(room(100)));
    let tip = tip.expect("the first tip");
    assert!(first.future_template && tip.template_id == first.template_id);
    assert_eq!((tip.prev_hash, tip.n_bits), ([1; 32], 0x207f_ffff));
    assert_eq!(first.coinbase_tx_value_remaining, 312_500_030);

    let (second, tip) = template_and_tip(&server.offer(on_tip(1, 4), at(2)));
    assert!(tip.is_none() && !second.future_template && second.template_id > first.template_id);
    let (third, tip) = template_and_tip(&server.offer(on_tip(2, 0), at(3)));
    assert!(third.future_template && tip.expect("another tip").template_id == third.template_id);

    assert!(server.take(room(100)).is_empty(), "nothing new was asked for");
    let (fourth, tip) = template_and_tip(&server.take(room(200)));
    assert!(tip.is_none() && fourth.template_id > third.template_id);
    assert_eq!(server.out.close, None);
}

#[test]
fn room_is_made_by_dropping_and_never_where_fees_are_unknown() {
    let mut tight = (*on_tip(1, 3)).clone();
    let weight: u64 = tight.transactions.iter().map(|transaction| transaction.weight).sum();
    tight.weight_limit = weight + 1_168 + 400;
    let mut server = Server::serving(Arc::new(tight.clone()));
    let (pruned, _) = template_and_tip(&server.take(room(101)));
    assert_eq!(pruned.coinbase_tx_value_remaining, 312_500_020);
    server.connection = ProviderConnection::new(false, at(0));
    server.take(setup());
    assert!(server.take(room(101)).is_empty());
    assert_eq!(server.take(room(100)).len(), 2);
    server.take(room(u32::MAX));
    assert_eq!(server.close_fault(), Some(Fault::Downstream));
}

#[test]
fn transactions_are_brought_for_templates_of_this_tip() {
    let mut server = Server::new(on_tip(1, 3));
    server.take(setup());
    let (first, _) = template_and_tip(&server.take(room(100)));
    let ask = |id| RequestTransactionData { template_id: id };
    let answers = server.take(ask(first.template_id));
    let Message::RequestTransactionDataSuccess(answer) = &answers[0] else { panic!("{answers:?}") };
    let raw: Vec<_> = server.newest.transactions.iter().map(|one| one.raw.clone()).collect();
    assert_eq!((&answer.transaction_list, answer.excess_data.len()), (&raw, 0));

    let refused = |answers: Vec<Message>| match &answers[..] {
        [Message::RequestTransactionDataError(error)] => error.error_code.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(server.take(ask(TemplateId(7)))), request_transaction_data::TEMPLATE_ID_NOT_FOUND);
    server.offer(on_tip(2, 0), at(3));
    assert_eq!(refused(server.take(ask(first.template_id))), request_transaction_data::STALE_TEMPLATE_ID);
    let retired = Now { monotonic: at(3).monotonic + RETIRED_FOR, ..at(3) };
    assert_eq!(server.connection.next_timeout(), retired.monotonic);
    server.connection.handle_timeout(retired, &mut server.out);
    assert_eq!(refused(server.take(ask(first.template_id))), request_transaction_data::TEMPLATE_ID_NOT_FOUND);
    assert_eq!(server.out.close, None);
}

#[test]
fn a_demand_that_no_template_has_room_for_is_not_kept() {
    let mut server = Server::new(on_tip(1, 1));
    server.take(setup());
    assert_eq!(server.take(room(4_000_000)), []);
    assert_eq!((server.close_fault(), server.connection.constraints()), (Some(Fault::Downstream), None));
    let mut server = Server::serving(on_tip(1, 1));
    let kept = server.connection.constraints();
    server.take(room(4_000_000));
    assert_eq!((server.close_fault(), server.connection.constraints()), (Some(Fault::Downstream), kept));
}

#[test]
fn a_client_that_asks_without_end_is_closed() {
    let mut server = Server::new(on_tip(1, 3));
    server.take(setup());
    let (first, _) = template_and_tip(&server.take(room(100)));
    for _ in 0..MAX_REQUESTS {
        assert_eq!(server.take(RequestTransactionData { template_id: first.template_id }).len(), 1);
    }
    assert!(server.take(RequestTransactionData { template_id: first.template_id }).is_empty());
    assert_eq!(server.close_fault(), Some(Fault::Downstream));
}

#[test]
fn whoever_breaks_the_order_is_closed_and_setup_has_its_errors() {
    let ask = || RequestTransactionData { template_id: TemplateId(1) };
    let mut server = Server::new(on_tip(1, 0));
    server.take(ask());
    assert_eq!(server.close_fault(), Some(Fault::Downstream));
    let mut server = Server::new(on_tip(1, 0));
    server.take(setup());
    server.take(ask());
    assert_eq!(server.close_fault(), Some(Fault::Downstream));
    let refusals = [
        (SetupConnection { protocol: Protocol::Mining, ..setup() }, setup_connection::UNSUPPORTED_PROTOCOL),
        (
            SetupConnection { min_version: 3, max_version: 9, ..setup() },
            setup_connection::PROTOCOL_VERSION_MISMATCH,
        ),
        (SetupConnection { flags: 5, ..setup() }, setup_connection::UNSUPPORTED_FEATURE_FLAGS),
    ];
    for (setup, code) in refusals {
        let mut server = Server::new(on_tip(1, 0));
        let answers = server.take(setup);
        let [Message::SetupConnectionError(error)] = &answers[..] else { panic!("{answers:?}") };
        let flags = if code == setup_connection::UNSUPPORTED_FEATURE_FLAGS { 5 } else { 0 };
        assert_eq!((error.error_code.as_str(), error.flags), (code, flags));
        assert_eq!(server.close_fault(), Some(Fault::Downstream));
    }
    let mut server = Server::new(on_tip(1, 0));
    let late = Now { monotonic: SETUP_DEADLINE, ..at(0) };
    server.connection.handle_timeout(late, &mut server.out);
    assert_eq!(server.close_fault(), Some(Fault::Downstream));
}

#[test]
fn templates_are_bounded_and_the_newest_stay() {
    let mut server = Server::serving(on_tip(1, 0));
    let mut last = TemplateId(0);
    for transactions in 1..=MAX_SERVED + 3 {
        last = template_and_tip(&server.offer(on_tip(1, transactions), at(2))).0.template_id;
    }
    let known = |server: &mut Server, id| {
        let answers = server.take(RequestTransactionData { template_id: TemplateId(id) });
        matches!(answers[..], [Message::RequestTransactionDataSuccess(_)])
    };
    assert!(known(&mut server, last.0));
    assert!(known(&mut server, last.0 + 1 - MAX_SERVED as u64));
    assert!(!known(&mut server, last.0 - MAX_SERVED as u64));
}

/// A client of ours on a connection of ours, with one template through both of them.
fn linked(template: Arc<BlockTemplate>) -> (Server, ProviderClient, ProviderClientOutput) {
    let mut server = Server::new(template);
    let mut out = ProviderClientOutput::default();
    let constraints = CoinbaseConstraints { max_additional_size: 100, max_additional_sigops: 4 };
    let mut client = ProviderClient::connected("provider.example", 8442, constraints, &mut out);
    exchange(&mut server, &mut client, &mut out);
    (server, client, out)
}

/// Carries frames both ways until there are none.
fn exchange(server: &mut Server, client: &mut ProviderClient, out: &mut ProviderClientOutput) {
    loop {
        for (header, payload) in frames(&std::mem::take(&mut out.bytes)) {
            let newest = Arc::clone(&server.newest);
            server.connection.handle_frame(header, &payload, Some(&newest), at(1), &mut server.out);
        }
        if server.out.bytes.is_empty() {
            return;
        }
        for (header, payload) in frames(&std::mem::take(&mut server.out.bytes)) {
            assert!(payload.len() <= client.max_payload());
            client.handle_frame(header, &payload, at(1), out);
        }
    }
}

#[test]
fn a_template_comes_out_as_it_went_in_and_its_block_goes_back() {
    let template = on_tip(1, 5);
    let (mut server, mut client, mut out) = linked(Arc::clone(&template));
    let [got] = &out.templates[..] else { panic!("{:?}", out.templates) };
    assert_eq!((got.height, got.coinbase_value), (900_000, template.coinbase_value));
    assert_eq!(got.witness_commitment, template.witness_commitment);
    let raw = |template: &BlockTemplate| -> Vec<_> {
        template.transactions.iter().map(|one| (one.txid, one.wtxid, one.raw.clone(), one.weight)).collect()
    };
    assert_eq!(raw(got), raw(&template));
    let fits = |size| CoinbaseConstraints { max_additional_size: size, max_additional_sigops: 4 };
    assert_eq!(fits(100).apply(Arc::new(got.clone())).expect("room").dropped, 0);
    assert_ne!(fits(101).apply(Arc::new(got.clone())).expect("room").dropped, 0, "nobody promised that");

    let rules = CoinbaseRules::new(vec![0x51], b"tag".to_vec(), 12).expect("fits");
    let coinbase = rules.parts(got).expect("fits").with_extranonce(&[3; 12]);
    let root = merkle_root(sha256d(&coinbase), &got.merkle_path);
    let nonce = (0u32..)
        .find(|nonce| {
            let header = got.header(got.version, &root, got.current_time, *nonce);
            got.network_target().is_met_by(&sha256d(&header))
        })
        .expect("every second one");
    let header = got.header(got.version, &root, got.current_time, nonce);
    let block = assemble_block(got, &coinbase, &header);
    out.templates.clear();
    assert!(client.submit(&block, &mut out));
    exchange(&mut server, &mut client, &mut out);
    let [solved] = &server.out.blocks[..] else { panic!("{:?}", server.out) };
    assert_eq!((solved.height, solved.hash, &solved.bytes), (900_000, sha256d(&header), &block));
    // Once is enough.
    assert!(client.submit(&block, &mut out));
    exchange(&mut server, &mut client, &mut out);
    assert_eq!(server.out.blocks.len(), 1);
    let mut foreign = block.clone();
    foreign[36] ^= 1;
    assert!(!client.submit(&foreign, &mut out) && !client.submit(&block[..90], &mut out));
}

#[test]
fn a_solution_that_is_none_is_not_submitted() {
    let mut server = Server::new(on_tip(1, 0));
    server.take(setup());
    let (first, _) = template_and_tip(&server.take(room(100)));
    let rules = CoinbaseRules::new(vec![0x51], vec![], 12).expect("fits");
    let coinbase_tx = rules.parts(&server.newest).expect("fits").with_extranonce(&[3; 12]);
    let solution = |template_id, header_nonce| SubmitSolution {
        template_id,
        version: 0x2000_0000,
        header_timestamp: 1_700_000_000,
        header_nonce,
        coinbase_tx: coinbase_tx.clone(),
    };
    server.take(solution(TemplateId(5), 0));
    assert_eq!((server.out.blocks.len(), server.out.notices.len()), (0, 1));
    for nonce in 0..20 {
        server.take(solution(first.template_id, nonce));
    }
    let target = server.newest.network_target();
    assert!(!server.out.blocks.is_empty() && server.out.blocks.len() < 20);
    assert!(server.out.blocks.iter().all(|block| target.is_met_by(&block.hash)));
    server.take(SubmitSolution { coinbase_tx: vec![1, 2, 3], ..solution(first.template_id, 0) });
    assert_eq!(server.close_fault(), Some(Fault::Downstream));
}

#[test]
fn a_provider_that_lies_or_dies_is_left() {
    let answer = |list: Vec<Vec<u8>>, id| {
        Message::from(stratum::sv2::messages::RequestTransactionDataSuccess {
            template_id: id,
            excess_data: vec![],
            transaction_list: list,
        })
    };
    let template = on_tip(1, 2);
    let raw: Vec<_> = template.transactions.iter().map(|one| one.raw.clone()).collect();
    let lists = [vec![], vec![raw[1].clone(), raw[0].clone()], vec![raw[0].clone(), vec![1; 9]]];
    for list in lists {
        let mut server = Server::new(Arc::clone(&template));
        let mut out = ProviderClientOutput::default();
        let mut client = ProviderClient::connected("h", 1, CoinbaseConstraints::default(), &mut out);
        for message in [setup().into(), room(0).into()] {
            let message: Message = message;
            let mut bytes = Vec::new();
            server.take(message).into_iter().for_each(|one| one.encode_frame(&mut bytes).expect("fits"));
            frames(&bytes).iter().for_each(|(header, payload)| {
                client.handle_frame(*header, payload, at(1), &mut out);
            });
        }
        assert_eq!(out.close, None);
        let asked = messages(&out.bytes);
        let Some(Message::RequestTransactionData(request)) = asked.last() else { panic!("{asked:?}") };
        let mut bytes = Vec::new();
        answer(list, request.template_id).encode_frame(&mut bytes).expect("fits");
        let (header, payload) = frames(&bytes).remove(0);
        client.handle_frame(header, &payload, at(1), &mut out);
        assert_eq!(out.close.as_ref().map(|reason| reason.fault), Some(Fault::Upstream));
        assert!(out.templates.is_empty());
    }
    assert_eq!(codes::PROTOCOL_VERSION, 2);
}

/// A client that has been set up, and what it has said since.
fn set_up_client() -> (ProviderClient, ProviderClientOutput) {
    let mut out = ProviderClientOutput::default();
    let constraints = CoinbaseConstraints::default();
    let mut client = ProviderClient::connected("provider.example", 8442, constraints, &mut out);
    hear(&mut client, SetupConnectionSuccess { used_version: 2, flags: 0 }, &mut out);
    (client, out)
}

fn hear(client: &mut ProviderClient, message: impl Into<Message>, out: &mut ProviderClientOutput) {
    let mut bytes = Vec::new();
    message.into().encode_frame(&mut bytes).expect("fits");
    let (header, payload) = frames(&bytes).remove(0);
    client.handle_frame(header, &payload, at(1), out);
}

fn closed_for(out: &ProviderClientOutput) -> Option<&str> {
    out.close.as_ref().map(|reason| reason.what.as_str())
}

#[test]
fn a_template_without_transactions_is_let_go_where_it_is_stale_and_nowhere_else() {
    let error = |template_id, code: &str| RequestTransactionDataError {
        template_id: TemplateId(template_id),
        error_code: code.to_owned(),
    };
    let (mut client, mut out) = set_up_client();
    hear(&mut client, error(1, request_transaction_data::STALE_TEMPLATE_ID), &mut out);
    assert_eq!(out.close, None);
    hear(&mut client, error(1, request_transaction_data::TEMPLATE_ID_NOT_FOUND), &mut out);
    assert_eq!(
        closed_for(&out),
        Some("the provider has no transactions for template 1: template-id-not-found")
    );
}

#[test]
fn a_redirect_of_the_provider_names_the_whole_endpoint() {
    let cases = [
        (("", 0), Some(("provider.example", 8442))),
        (("other.example", 0), Some(("other.example", 8442))),
        (("", 5), Some(("provider.example", 5))),
        (("a/b", 1), None),
    ];
    for ((host, port), expected) in cases {
        let (mut client, mut out) = set_up_client();
        hear(&mut client, Reconnect { new_host: host.to_owned(), new_port: port }, &mut out);
        assert_eq!(out.reconnect_to, expected.map(|(host, port)| (host.to_owned(), port)));
        assert_eq!(out.close.map(|reason| reason.fault), Some(Fault::Upstream));
    }
}

#[test]
fn a_provider_that_refuses_us_or_says_what_no_provider_says_is_left() {
    let refusal = SetupConnectionError { flags: 0, error_code: "unsupported-protocol".to_owned() };
    let setups: [(Message, &str); 3] = [
        (refusal.into(), "the provider refuses us: unsupported-protocol"),
        (SetupConnectionSuccess { used_version: 3, flags: 0 }.into(), "the provider wants version 3"),
        (room(1).into(), "CoinbaseOutputConstraints came before SetupConnection.Success"),
    ];
    for (answer, words) in setups {
        let mut out = ProviderClientOutput::default();
        let mut client = ProviderClient::connected("h", 1, CoinbaseConstraints::default(), &mut out);
        hear(&mut client, answer, &mut out);
        assert_eq!(closed_for(&out), Some(words));
    }
    let (mut client, mut out) = set_up_client();
    hear(&mut client, ChannelEndpointChanged { channel_id: ChannelId(1) }, &mut out);
    hear(&mut client, unknown(), &mut out);
    assert_eq!(out.close, None);
    hear(&mut client, CloseChannel { channel_id: ChannelId(1), reason_code: String::new() }, &mut out);
    assert_eq!(closed_for(&out), Some("CloseChannel came from a template provider"));
}

fn unknown() -> Unknown {
    Unknown { extension_type: 99, message_type: 1, channel_id: None, payload: vec![1] }
}

#[test]
fn a_client_is_refused_extensions_and_closed_for_messages_of_servers() {
    let mut server = Server::serving(on_tip(1, 0));
    let request_id = ExtensionsRequestId(5);
    let request =
        |extensions: &[u16]| RequestExtensions { request_id, requested_extensions: extensions.to_vec() };
    let refusal = RequestExtensionsError {
        request_id,
        unsupported_extensions: vec![2],
        required_extensions: Vec::new(),
    };
    assert_eq!(server.take(request(&[2])), [refusal.into()]);
    let nothing = RequestExtensionsSuccess { request_id, supported_extensions: Vec::new() };
    assert_eq!(server.take(request(&[])), [nothing.into()]);
    server.take(unknown());
    assert_eq!(server.out.close, None);
    let template_id = TemplateId(1);
    let messages: [Message; 4] = [
        setup().into(),
        Reconnect { new_host: String::new(), new_port: 0 }.into(),
        RequestTransactionDataError { template_id, error_code: String::new() }.into(),
        CloseChannel { channel_id: ChannelId(1), reason_code: String::new() }.into(),
    ];
    for message in messages {
        let mut server = Server::serving(on_tip(1, 0));
        assert_eq!(server.take(message), []);
        assert_eq!(server.close_fault(), Some(Fault::Downstream));
    }
}
