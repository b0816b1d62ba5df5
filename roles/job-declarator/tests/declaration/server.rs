//! The server's side, message by message.

use bitcoin::consensus::deserialize;
use bitcoin::hashes::Hash as _;
use job_declarator::server::connection::{VAIN_SOLUTION_INTERVAL, VAIN_SOLUTIONS};
use job_declarator::server::{Mode, PoolTip, Verdict};
use stratum::Fault;
use stratum::sv2::frame::{
    MAX_PAYLOAD_FROM_DECLARING_CLIENT, MAX_PAYLOAD_FROM_MINER, MAX_PAYLOAD_WITH_TRANSACTIONS,
};
use template::block_template::MAX_TRANSACTIONS;

use super::support::*;
use stratum::sv2::Message;
use stratum::sv2::messages::*;
use stratum::{ChannelId, ConnectionId, RequestId};

fn tip(height: u32, hash: u8) -> PoolTip {
    PoolTip::from(&block_template(1, height, [hash; 32], &[]))
}

fn template() -> template::BlockTemplate {
    block_template(3, 900_000, [9; 32], &[1, 2, 3, 4, 5])
}

const VALID: Verdict = Verdict::Valid { revenue: None };

#[test]
fn a_connection_is_set_up_in_one_of_two_modes() {
    for (flags, mode) in [(0, Mode::CoinbaseOnly), (1, Mode::FullTemplate)] {
        assert_eq!(Rig::set_up(flags).connection.mode(), Some(mode));
    }
    let wrong = [
        (SetupConnection { protocol: Protocol::Mining, ..setup(1) }, 0, "unsupported-protocol"),
        (SetupConnection { max_version: 1, min_version: 1, ..setup(1) }, 0, "protocol-version-mismatch"),
        (setup(7), 6, "unsupported-feature-flags"),
    ];
    for (setup, flags, code) in wrong {
        let mut rig = Rig::new();
        let error = SetupConnectionError { flags, error_code: code.into() };
        assert_eq!(rig.send(setup), [error.into()]);
        assert_eq!(rig.closed.map(|reason| reason.fault), Some(Fault::Downstream));
    }
}

#[test]
fn a_pool_may_want_to_see_transactions() {
    let mut rig = Rig::new();
    rig.server = job_declarator::server::JobDeclarationServer::new(pool_outputs(), true);
    let error = SetupConnectionError { flags: 1, error_code: "missing-declare-tx-data-flag".into() };
    assert_eq!(rig.send(setup(0)), [error.into()]);
    assert!(rig.closed.is_some());
}

#[test]
fn whoever_says_nothing_or_something_else_is_closed() {
    let mut rig = Rig::new();
    rig.wait(19_999);
    assert_eq!(rig.closed, None);
    rig.wait(1);
    assert!(rig.closed.is_some());
    let mut rig = Rig::new();
    rig.send(AllocateMiningJobToken { user_identifier: "farm".into(), request_id: RequestId(1) });
    assert!(rig.closed.expect("closed").what.contains("before SetupConnection"));
    let mut rig = Rig::set_up(1);
    rig.send(DeclareMiningJobSuccess { request_id: RequestId(1), new_mining_job_token: vec![].into() });
    assert!(rig.closed.expect("closed").what.contains("not for a job declaration server"));
}

#[test]
fn a_template_of_known_transactions_is_declared_without_a_question() {
    let mut rig = Rig::set_up(1);
    rig.know(&template());
    rig.declared(&template());
    let tally = rig.server.tally();
    assert_eq!((tally.declared, tally.acknowledged, tally.refused), (1, 1, 0));
    assert_eq!(tally.asked_for_transactions, 0);
}

/// What the node is shown is a whole block, with everything that its rules look at.
#[test]
fn what_is_validated_is_a_block() {
    let mut rig = Rig::set_up(1);
    rig.know(&template());
    let token = rig.allocate("farm");
    rig.send(declaration(1, &token, &template()));
    rig.look_up();
    let (_, job) = &rig.validations[0];
    let block: bitcoin::Block = deserialize(&job.proposal(1_700_000_000)).expect("a block");
    assert!(block.check_merkle_root() && block.check_witness_commitment());
    assert_eq!(block.bip34_block_height(), Ok(900_000));
    assert_eq!(block.header.prev_blockhash.to_byte_array(), [9; 32]);
    assert_eq!(block.txdata.len(), 6);
}

#[test]
fn what_is_missing_is_asked_for_once() {
    let mut rig = Rig::set_up(1);
    rig.know(&template());
    let raw = raw_transactions(&template());
    for missing in [1, 3] {
        rig.mempool.remove(&raw[missing].wtxid);
    }
    let token = rig.allocate("farm");
    assert_eq!(rig.connection.max_payload(rig.now), MAX_PAYLOAD_FROM_DECLARING_CLIENT);
    rig.send(declaration(8, &token, &template()));
    let asked = rig.look_up();
    let expected =
        ProvideMissingTransactions { request_id: RequestId(8), unknown_tx_position_list: vec![1, 3] };
    assert_eq!(asked, [expected.into()]);
    assert_eq!(rig.connection.max_payload(rig.now), MAX_PAYLOAD_WITH_TRANSACTIONS);
    let transaction_list = vec![raw[1].raw.to_vec(), raw[3].raw.to_vec()];
    let answer = ProvideMissingTransactionsSuccess { request_id: RequestId(8), transaction_list };
    assert_eq!(rig.send(answer.clone()), []);
    assert_eq!(rig.validations[0].1.transactions[..], raw[..]);
    assert_eq!(rig.send(answer), [], "nobody waits for them any more");
    assert_eq!(rig.notices.len(), 1);
    assert!(matches!(rig.validate(VALID)[..], [Message::DeclareMiningJobSuccess(_)]));
    rig.wait(120_000);
    assert_eq!(rig.connection.max_payload(rig.now), MAX_PAYLOAD_FROM_DECLARING_CLIENT);
}

#[test]
fn other_transactions_than_those_asked_for_are_refused() {
    let raw = raw_transactions(&template());
    let mut garbage = raw[1].raw.to_vec();
    garbage.pop();
    let wrong: [(Vec<Vec<u8>>, &str); 4] = [
        (vec![raw[1].raw.to_vec()], "2 transactions were asked for, and 1 came"),
        (vec![raw[3].raw.to_vec(), raw[1].raw.to_vec()], "the transaction for place 1 is another one"),
        (vec![garbage, raw[3].raw.to_vec()], "place 1: the bytes are no transaction"),
        (vec![vec![]; 3], "2 transactions were asked for, and 3 came"),
    ];
    for (transaction_list, expected) in wrong {
        let mut rig = Rig::set_up(1);
        rig.know(&template());
        rig.mempool.remove(&raw[1].wtxid);
        rig.mempool.remove(&raw[3].wtxid);
        let token = rig.allocate("farm");
        rig.send(declaration(8, &token, &template()));
        rig.look_up();
        let answers =
            rig.send(ProvideMissingTransactionsSuccess { request_id: RequestId(8), transaction_list });
        assert_eq!(refusal(&answers), ("missing-txs".into(), expected.into()));
        assert_eq!(rig.server.token_count(), 0, "the token was used");
    }
}

#[test]
fn transactions_that_do_not_come_are_not_waited_for() {
    let mut rig = Rig::set_up(1);
    let token = rig.allocate("farm");
    rig.send(declaration(8, &token, &template()));
    rig.look_up();
    assert_eq!(rig.wait(29_999), []);
    assert_eq!(refusal(&rig.wait(1)).0, "missing-txs");
}

#[test]
fn nobody_burns_or_uses_anothers_token() {
    let mut rig = Rig::set_up(1);
    rig.know(&template());
    let token = rig.allocate("farm");
    let stranger = job_declarator::server::ServerConnection::new(ConnectionId(2), rig.now);
    let owner = std::mem::replace(&mut rig.connection, stranger);
    rig.send(setup(1));
    let mut guess = token.clone();
    for attempt in [token.clone(), vec![].into(), vec![0; 300 - 45].into(), {
        guess.0[15] ^= 1;
        guess
    }] {
        let answers = rig.send(declaration(1, &attempt, &template()));
        assert_eq!(refusal(&answers).0, "invalid-mining-job-token");
    }
    rig.connection = owner;
    assert_eq!(rig.send(declaration(1, &token, &template())), [], "it is as good as before");
    let again = rig.send(declaration(2, &token, &template()));
    assert_eq!(refusal(&again).0, "invalid-mining-job-token", "it serves once");
}

#[test]
fn tokens_end() {
    let mut rig = Rig::set_up(1);
    let token = rig.allocate("farm");
    rig.wait(2 * 3_600_000);
    assert_eq!(refusal(&rig.send(declaration(1, &token, &template()))).0, "invalid-mining-job-token");
    let oldest = rig.allocate("farm");
    for _ in 0..job_declarator::server::tokens::MAX_ALLOCATED {
        rig.wait(2000);
        rig.allocate("farm");
    }
    assert_eq!(refusal(&rig.send(declaration(1, &oldest, &template()))).0, "invalid-mining-job-token");
    assert_eq!(rig.server.token_count(), job_declarator::server::tokens::MAX_ALLOCATED);
    rig.call(|connection, server, _, _, out| connection.handle_closed(server, out));
    assert_eq!(rig.server.token_count(), 0);
}

#[test]
fn tokens_come_at_a_slow_rate_and_whoever_floods_is_closed() {
    let mut rig = Rig::set_up(1);
    let request = || AllocateMiningJobToken { user_identifier: "farm".into(), request_id: RequestId(1) };
    let at_once: usize = (0..12).map(|_| rig.send(request()).len()).sum();
    assert_eq!(at_once, 10);
    assert_eq!(rig.wait(1_999).len(), 0);
    assert_eq!(rig.wait(1).len(), 1);
    assert_eq!(rig.wait(2_000).len(), 1);
    for _ in 0..16 {
        rig.send(request());
    }
    assert_eq!(rig.closed, None);
    rig.send(request());
    assert!(rig.closed.expect("closed").what.contains("tokens"));
}

#[test]
fn a_list_that_is_no_blocks_is_refused() {
    let mut rig = Rig::set_up(1);
    let token = rig.allocate("farm");
    let twice = DeclareMiningJob { wtxid_list: vec![[1; 32]; 2], ..declaration(1, &token, &template()) };
    let (code, details) = refusal(&rig.send(twice));
    assert_eq!(code, "invalid-job-param-value-wtxid_list");
    assert_eq!(details, "a transaction is in the list twice");
    let token = rig.allocate("farm");
    let hash = |number: usize| {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&number.to_le_bytes());
        hash
    };
    let wtxid_list = (0..=MAX_TRANSACTIONS).map(hash).collect();
    let many = DeclareMiningJob { wtxid_list, ..declaration(1, &token, &template()) };
    assert_eq!(refusal(&rig.send(many)).0, "invalid-job-param-value-wtxid_list");
}

/// Every coinbase that is none, or does not pay the pool.
#[test]
fn a_coinbase_must_be_one_and_pay_the_pool() {
    let good = coinbase(&template());
    let paying = |values: [u64; 2]| {
        let mut skeleton = good.clone();
        skeleton.outputs[0].value = values[0];
        skeleton.outputs.push(template::Output { value: values[1], script: vec![0x52] });
        skeleton
    };
    let without_output = |place: usize| {
        let mut skeleton = good.clone();
        skeleton.outputs.remove(place);
        skeleton
    };
    let other_height = template::Skeleton { script_prefix: vec![0x61, 0x61], ..good.clone() };
    let cases = [
        (paying([SUBSIDY, 1]), "invalid-coinbase-tx", "only"),
        (paying([0, SUBSIDY]), "invalid-coinbase-tx", "missing or pays nothing"),
        (without_output(0), "invalid-coinbase-tx", "missing or pays nothing"),
        (without_output(1), "invalid-coinbase-tx", "an output that the pool asked for is missing"),
        (other_height, "invalid-coinbase-tx-input", "height"),
    ];
    for (skeleton, code, words) in cases {
        let mut rig = Rig::set_up(1);
        let token = rig.allocate("farm");
        let (coinbase_tx_prefix, coinbase_tx_suffix) = skeleton.declared_parts();
        let message = DeclareMiningJob {
            coinbase_tx_prefix,
            coinbase_tx_suffix,
            ..declaration(1, &token, &template())
        };
        let answer = refusal(&rig.send(message));
        assert!(answer.0 == code && answer.1.contains(words), "{answer:?}, expected {code} and {words}");
    }
    let mut rig = Rig::set_up(1);
    let token = rig.allocate("farm");
    let short = DeclareMiningJob { coinbase_tx_prefix: vec![2, 0], ..declaration(1, &token, &template()) };
    assert_eq!(refusal(&rig.send(short)).0, "invalid-coinbase-tx");
}

#[test]
fn a_job_that_burns_its_reward_or_lies_about_its_witnesses_is_refused() {
    let mut rig = Rig::set_up(1);
    rig.know(&template());
    let token = rig.allocate("farm");
    let mut poor = coinbase(&template());
    poor.outputs[0].value = SUBSIDY - 1;
    let (coinbase_tx_prefix, coinbase_tx_suffix) = poor.declared_parts();
    let message =
        DeclareMiningJob { coinbase_tx_prefix, coinbase_tx_suffix, ..declaration(1, &token, &template()) };
    rig.send(message);
    assert_eq!(refusal(&rig.look_up()).0, "invalid-coinbase-tx");

    let token = rig.allocate("farm");
    let mut wtxid_list = declaration(2, &token, &template()).wtxid_list;
    wtxid_list.reverse();
    rig.send(DeclareMiningJob { wtxid_list, ..declaration(2, &token, &template()) });
    let (code, details) = refusal(&rig.look_up());
    assert_eq!(code, "invalid-coinbase-tx");
    assert!(details.contains("commits to the witnesses of other transactions"));

    let token = rig.allocate("farm");
    rig.send(declaration(3, &token, &template()));
    rig.look_up();
    let answers = rig.validate(Verdict::Valid { revenue: Some(template().coinbase_value + 1) });
    assert!(refusal(&answers).1.contains("can be paid"));
}

#[test]
fn verdicts_have_their_own_codes() {
    let cases = [
        (Verdict::StaleTip, "stale-chain-tip", "our node looks for block 900000"),
        (Verdict::Invalid("bad-txns-inputs-missingorspent".into()), "invalid-job", "bad-txns"),
        (Verdict::Unknown("the node is away".into()), "internal-error", "the node is away"),
    ];
    for (verdict, code, words) in cases {
        let mut rig = Rig::set_up(1);
        rig.know(&template());
        let token = rig.allocate("farm");
        rig.send(declaration(1, &token, &template()));
        rig.look_up();
        let answer = refusal(&rig.validate(verdict));
        assert!(answer.0 == code && answer.1.contains(words), "{answer:?}");
        assert_eq!(rig.server.token_count(), 0);
    }
}

#[test]
fn a_tip_that_moves_ends_what_is_older_and_lets_go_on_what_is_newer() {
    let mut rig = Rig::set_up(1);
    let next = block_template(4, 900_001, [8; 32], &[1, 2]);
    rig.know(&template());
    rig.know(&next);
    let tokens: Vec<MiningJobToken> = (0..4).map(|_| rig.allocate("farm")).collect();
    rig.send(declaration(1, &tokens[0], &template()));
    rig.look_up();
    rig.send(declaration(2, &tokens[1], &next));
    assert_eq!(rig.look_up(), [], "our node will see the block in a moment");
    assert_eq!(rig.validations.len(), 1);

    let answers = rig.tip(tip(900_001, 8));
    assert_eq!(refusal(&answers).0, "stale-chain-tip");
    assert_eq!((rig.validations.len(), rig.abandoned.len()), (1, 1));
    assert!(matches!(rig.validate(VALID)[..], [Message::DeclareMiningJobSuccess(_)]));

    // Another block of the same height, while the node looks at the job.
    rig.send(declaration(3, &tokens[2], &next));
    rig.look_up();
    rig.tip(tip(900_001, 7));
    assert_eq!(refusal(&rig.validate(VALID)).0, "stale-chain-tip");

    rig.send(declaration(4, &tokens[3], &block_template(5, 900_002, [6; 32], &[1])));
    rig.look_up();
    assert_eq!(rig.wait(4_999), []);
    assert_eq!(refusal(&rig.wait(1)).0, "stale-chain-tip", "our node does not see that block");
    let token = rig.allocate("farm");
    assert_eq!(refusal(&rig.send(declaration(5, &token, &template()))).0, "stale-chain-tip");
}

#[test]
fn a_slow_node_delays_nobody_and_is_given_up() {
    let mut rig = Rig::set_up(1);
    rig.know(&template());
    let tokens: Vec<MiningJobToken> = (0..6).map(|_| rig.allocate("farm")).collect();
    for (request, token) in (1..=4).zip(&tokens) {
        rig.send(declaration(request, token, &template()));
        rig.look_up();
    }
    // The second is judged first.
    rig.validations.swap(0, 1);
    let answers = rig.validate(VALID);
    assert!(
        matches!(&answers[..], [Message::DeclareMiningJobSuccess(one)] if one.request_id == RequestId(2))
    );
    rig.send(declaration(5, &tokens[4], &template()));
    let pushed_out = rig.send(declaration(6, &tokens[5], &template()));
    assert_eq!(refusal(&pushed_out).0, "internal-error", "four at a time");
    let late = rig.wait(60_000);
    let codes: Vec<&str> = late
        .iter()
        .map(|answer| match answer {
            Message::DeclareMiningJobError(error) => error.error_code.as_str(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(codes, ["internal-error"; 4]);
    let tally = rig.server.tally();
    assert_eq!(tally.declared, tally.acknowledged + tally.refused + tally.abandoned);
}

/// Grinds a solution of the template's job.
fn solution(template: &template::BlockTemplate, extranonce: [u8; 12]) -> PushSolution {
    let coinbase = coinbase(template).parts().with_extranonce(&extranonce);
    let root = stratum::hash::merkle_root(stratum::hash::sha256d(&coinbase), &template.merkle_path);
    let hash =
        |nonce| stratum::hash::header_hash(&template.header(template.version, &root, 1_700_000_001, nonce));
    let nonce = (0..).find(|nonce| template.network_target().is_met_by(&hash(*nonce))).expect("endless");
    PushSolution {
        extranonce: extranonce.to_vec(),
        prev_hash: template.previous_hash,
        nonce,
        ntime: 1_700_000_001,
        nbits: template.nbits,
        version: template.version,
    }
}

#[test]
fn a_pushed_solution_becomes_a_whole_block_once() {
    let mut rig = Rig::set_up(1);
    let later = block_template(4, 900_000, [9; 32], &[1, 2, 3, 4, 5, 6]);
    for (count, template) in [(6, template()), (7, later)] {
        rig.know(&template);
        rig.declared(&template);
        let solution = solution(&template, [3; 12]);
        rig.send(solution.clone());
        rig.send(solution.clone());
        let block: bitcoin::Block =
            deserialize(&rig.blocks.pop().expect("submitted").bytes).expect("a block");
        assert!(rig.blocks.is_empty(), "once");
        assert_eq!(block.txdata.len(), count);
        assert!(block.check_merkle_root() && block.check_witness_commitment());
        assert!(block.header.validate_pow(block.header.target()).is_ok());
        let wrong = [
            PushSolution { extranonce: vec![3; 11], ..solution.clone() },
            PushSolution { extranonce: vec![], ..solution.clone() },
            PushSolution { prev_hash: [1; 32], ..solution.clone() },
            PushSolution { nbits: 0x207f_fffe, ..solution.clone() },
            PushSolution { version: 0x6000_0000, ..solution },
        ];
        for wrong in wrong {
            rig.send(wrong);
        }
        assert!(rig.blocks.is_empty());
    }
    assert_eq!(rig.server.tally().solutions_pushed, 2);
    assert_eq!(rig.notices.len(), 10);
    // An older job's, which solves nothing else: on this network half of all hashes solve something.
    let blocks = (0..20).map(|first| {
        rig.send(solution(&template(), [first; 12]));
        rig.blocks
            .pop()
            .map(|block| deserialize::<bitcoin::Block>(&block.bytes).expect("a block").txdata.len())
    });
    assert!(blocks.collect::<Vec<_>>().contains(&Some(6)));
}

#[test]
fn coinbase_only_connections_show_no_transactions() {
    let mut rig = Rig::set_up(0);
    rig.know(&template());
    let token = rig.allocate("farm");
    assert_eq!(rig.connection.max_payload(rig.now), MAX_PAYLOAD_FROM_MINER);
    let message = DeclareMiningJob { wtxid_list: vec![], ..declaration(1, &token, &template()) };
    assert_eq!(refusal(&rig.send(message)).0, "invalid-mining-job-token");
    rig.send(solution(&template(), [3; 12]));
    assert!(rig.blocks.is_empty() && rig.notices.len() == 1);
}

#[test]
fn a_closed_connection_abandons_what_it_waits_for() {
    let mut rig = Rig::set_up(1);
    rig.know(&template());
    let good = rig.declared(&template());
    let token = rig.allocate("farm");
    rig.send(declaration(1, &token, &template()));
    rig.call(|connection, server, _, _, out| connection.handle_closed(server, out));
    assert_eq!(rig.abandoned.len(), 1);
    assert_eq!(rig.server.tally().abandoned, 1);
    assert_eq!(rig.server.token_count(), 1, "that of the job that was found good");
    assert_eq!(good.0.len(), 16);
}

/// Each costs a look at every recent job, while others wait.
#[test]
fn whoever_pushes_what_solves_nothing_again_and_again_is_closed() {
    let mut rig = Rig::set_up(1);
    rig.know(&template());
    rig.declared(&template());
    let good = solution(&template(), [3; 12]);
    let vain = PushSolution { prev_hash: [1; 32], ..good.clone() };
    rig.send(good.clone());
    assert_eq!(rig.blocks.len(), 1);
    for _ in 0..VAIN_SOLUTIONS / 2 {
        rig.send(vain.clone());
        rig.send(good.clone());
    }
    for _ in 0..3 {
        rig.wait(VAIN_SOLUTION_INTERVAL.as_millis() as u64);
        rig.send(vain.clone());
    }
    assert_eq!((rig.closed.take(), rig.notices.len()), (None, 20), "the rest is not told");
    rig.send(solution(&template(), [4; 12]));
    assert_eq!(rig.blocks.len(), 2, "one that solves something costs nothing");
    rig.send(vain);
    assert!(rig.closed.expect("closed").what.contains("solution"));
}

#[test]
fn extensions_are_refused_and_messages_of_servers_close_the_connection() {
    let mut rig = Rig::set_up(1);
    let request_id = ExtensionsRequestId(5);
    let refusal = RequestExtensionsError {
        request_id,
        unsupported_extensions: vec![2, 9],
        required_extensions: Vec::new(),
    };
    let request =
        |extensions: &[u16]| RequestExtensions { request_id, requested_extensions: extensions.to_vec() };
    assert_eq!(rig.send(request(&[2, 9])), [refusal.into()]);
    let nothing = RequestExtensionsSuccess { request_id, supported_extensions: Vec::new() };
    assert_eq!(rig.send(request(&[])), [nothing.into()]);
    rig.send(Unknown { extension_type: 99, message_type: 1, channel_id: None, payload: vec![1] });
    assert_eq!(rig.closed, None);

    let request_id = RequestId(1);
    let messages: [Message; 7] = [
        setup(1).into(),
        Reconnect { new_host: String::new(), new_port: 0 }.into(),
        ChannelEndpointChanged { channel_id: ChannelId(1) }.into(),
        AllocateMiningJobTokenSuccess {
            request_id,
            mining_job_token: vec![1].into(),
            coinbase_outputs: vec![0],
        }
        .into(),
        DeclareMiningJobError { request_id, error_code: String::new(), error_details: vec![] }.into(),
        ProvideMissingTransactions { request_id, unknown_tx_position_list: vec![] }.into(),
        CloseChannel { channel_id: ChannelId(1), reason_code: String::new() }.into(),
    ];
    for message in messages {
        let mut rig = Rig::set_up(1);
        assert_eq!(rig.send(message), []);
        assert_eq!(rig.closed.map(|reason| reason.fault), Some(Fault::Downstream));
    }
}
