//! The client's side, message by message.

use std::sync::Arc;

use job_declarator::client::{
    ChannelTerms, Client, ClientConfig, ClientOutput, CustomJobId, Dropped, FoundSolution, HeldDrop,
    MAX_HELD, MAX_JOBS, REFUSALS_IN_A_ROW, Released, Trouble,
};
use job_declarator::server::Mode;
use stratum::sv2::Message;
use stratum::sv2::messages::*;
use stratum::{ChannelId, JobId, Now, RequestId, UpstreamJobId};
use template::outputs::{parse_outputs, write_outputs};
use template::{BlockTemplate, CoinbaseConstraints, JobTemplate, Output, Skeleton};

use super::support::*;

pub(crate) fn config(mode: Mode) -> ClientConfig {
    ClientConfig {
        user_identifier: "farm.site".to_owned(),
        mode,
        tag: b"tag".to_vec(),
        vendor: "Checkweigh".to_owned(),
        hardware_version: "mining-proxy".to_owned(),
        firmware: "0".to_owned(),
    }
}

pub(crate) fn channel(id: u32) -> ChannelTerms {
    ChannelTerms { channel_id: ChannelId(id), extranonce_prefix: vec![0xab; 4], extranonce_size: 8 }
}

/// A client, and everything that it said since it was last asked.
struct Rig {
    client: Client<u32>,
    now: Now,
    out: ClientOutput<u32>,
    tokens: u8,
    outputs: Vec<Output>,
}

impl Rig {
    fn new(mode: Mode) -> Self {
        let client = Client::new(config(mode), CustomJobId(1));
        Rig { client, now: at(0), out: ClientOutput::default(), tokens: 0, outputs: pool_outputs() }
    }

    /// Connected to both sides, with two tokens in stock.
    fn ready(mode: Mode) -> Self {
        let mut rig = Rig::new(mode);
        rig.connect();
        rig.channel(1);
        rig.give_tokens();
        assert!(rig.client.is_ready());
        rig.out.constraints = None;
        rig
    }

    fn connect(&mut self) {
        self.client.handle_connected("pool.example", 34_265, self.now, &mut self.out);
        let setup = self.said();
        let [Message::SetupConnection(setup)] = &setup[..] else { panic!("{setup:?}") };
        let flags = u32::from(self.client.config().mode == Mode::FullTemplate);
        assert_eq!((setup.protocol, setup.flags), (Protocol::JobDeclaration, flags));
        self.hear(SetupConnectionSuccess { used_version: 2, flags: 0 });
    }

    fn channel(&mut self, id: u32) {
        self.client.handle_channel(channel(id), self.now, &mut self.out);
    }

    fn template(&mut self, template: &BlockTemplate) {
        self.client.handle_template(JobTemplate::of_block_template(template), self.now, &mut self.out);
        self.client.handle_transactions(template.id, raw_transactions(template), self.now, &mut self.out);
    }

    fn hear(&mut self, message: impl Into<Message>) {
        for (header, payload) in frames(&frame(message)) {
            self.client.handle_frame(header, &payload, self.now, &mut self.out);
        }
    }

    fn said(&mut self) -> Vec<Message> {
        messages(&std::mem::take(&mut self.out.bytes))
    }

    fn wait(&mut self, milliseconds: u64) {
        self.now = self.now.plus(std::time::Duration::from_millis(milliseconds));
        self.client.handle_timeout(self.now, &mut self.out);
    }

    /// Answers every request for a token, and returns the other messages.
    fn give_tokens(&mut self) -> Vec<Message> {
        let mut others = Vec::new();
        loop {
            let said = self.said();
            if said.is_empty() {
                return others;
            }
            for message in said {
                let Message::AllocateMiningJobToken(request) = message else {
                    others.push(message);
                    continue;
                };
                assert_eq!(request.user_identifier, "farm.site");
                self.tokens += 1;
                self.hear(AllocateMiningJobTokenSuccess {
                    request_id: request.request_id,
                    mining_job_token: vec![self.tokens].into(),
                    coinbase_outputs: write_outputs(&self.outputs.clone()),
                });
            }
        }
    }

    fn declared(&mut self) -> DeclareMiningJob {
        let mut others = self.give_tokens();
        let Some(Message::DeclareMiningJob(declared)) = others.pop() else { panic!("{others:?}") };
        assert!(others.is_empty());
        declared
    }

    fn set(&mut self) -> SetCustomMiningJob {
        assert_eq!(self.out.custom_jobs.len(), 1);
        self.out.custom_jobs.remove(0)
    }

    fn take(&mut self, message: &SetCustomMiningJob, job: u32) {
        let (channel_id, request_id) = (message.channel_id, message.request_id);
        let success = SetCustomMiningJobSuccess { channel_id, request_id, job_id: JobId(job) };
        self.client.handle_custom_job_success(&success, self.now, &mut self.out);
    }

    fn refuse(&mut self, message: &SetCustomMiningJob, code: &str) {
        let (channel_id, request_id) = (message.channel_id, message.request_id);
        let error = SetCustomMiningJobError { channel_id, request_id, error_code: code.to_owned() };
        self.client.handle_custom_job_error(&error, self.now, &mut self.out);
    }

    fn refuse_declaration(&mut self, declared: &DeclareMiningJob, code: &str) {
        let (request_id, error_code) = (declared.request_id, code.to_owned());
        self.hear(DeclareMiningJobError { request_id, error_code, error_details: b"why\n".to_vec() });
    }

    fn share(&mut self, job: u32, share: u32) {
        self.client.handle_share(CustomJobId(job), share, None, &mut self.out);
    }

    /// What was released and dropped since.
    fn fates(&mut self) -> (Vec<Released<u32>>, Vec<Dropped<u32>>) {
        (std::mem::take(&mut self.out.released), std::mem::take(&mut self.out.dropped))
    }

    fn trouble(&mut self) -> Vec<Trouble> {
        std::mem::take(&mut self.out.trouble)
    }
}

fn template(id: u64) -> BlockTemplate {
    block_template(id, 900_000, [9; 32], &[1, 2, 3])
}

fn released(job: u32, shares: &[u32]) -> Vec<Released<u32>> {
    shares.iter().map(|share| Released { job: UpstreamJobId(job), share: *share }).collect()
}

fn dropped(reason: HeldDrop, shares: &[u32]) -> Vec<Dropped<u32>> {
    shares.iter().map(|share| Dropped { share: *share, reason }).collect()
}

#[test]
fn a_job_is_hashed_at_once_and_its_shares_wait_for_the_pool() {
    let mut rig = Rig::ready(Mode::FullTemplate);
    rig.template(&template(3));
    let job = rig.out.jobs.pop().expect("published");
    assert_eq!((job.id, job.clean), (CustomJobId(1), true));
    assert!(job.coinbase.prefix.ends_with(&[0xab; 4]));
    assert_eq!(job.coinbase.extranonce_size, 8);
    rig.share(1, 10);
    let declared = rig.declared();
    let skeleton = Skeleton::parse(&declared.coinbase_tx_prefix, &declared.coinbase_tx_suffix);
    assert_eq!(skeleton, Ok(coinbase(&template(3))));
    assert_eq!(declared.wtxid_list.len(), 3);
    rig.share(1, 11);
    rig.hear(DeclareMiningJobSuccess {
        request_id: declared.request_id,
        new_mining_job_token: vec![99].into(),
    });
    let set = rig.set();
    assert_eq!((set.token.clone(), set.channel_id, set.prev_hash), (vec![99].into(), ChannelId(1), [9; 32]));
    assert_eq!(parse_outputs(&set.coinbase_tx_outputs), Ok(coinbase(&template(3)).outputs));
    rig.share(1, 12);
    assert_eq!(rig.fates(), (vec![], vec![]));
    assert_eq!(rig.client.acknowledged(), None);
    rig.take(&set, 500);
    assert_eq!(rig.fates().0, released(500, &[10, 11, 12]));
    rig.share(1, 13);
    assert_eq!(rig.fates().0, released(500, &[13]));
    assert_eq!(rig.client.acknowledged(), Some(CustomJobId(1)));
    let tally = rig.client.tally();
    assert_eq!((tally.published, tally.declared, tally.acknowledged, tally.released), (1, 1, 1, 3));
}

#[test]
fn in_coinbase_only_mode_nothing_is_declared() {
    let mut rig = Rig::ready(Mode::CoinbaseOnly);
    rig.template(&template(3));
    assert_eq!(rig.give_tokens(), []);
    let set = rig.set();
    assert_eq!(set.token, vec![1].into());
    assert_eq!(set.coinbase_prefix, coinbase(&template(3)).script_prefix);
    rig.share(1, 5);
    rig.take(&set, 7);
    assert_eq!(rig.fates().0, released(7, &[5]));
}

#[test]
fn a_template_waits_for_what_it_needs_and_for_no_more() {
    let mut rig = Rig::new(Mode::FullTemplate);
    rig.template(&template(3));
    rig.channel(1);
    assert!(rig.out.jobs.is_empty());
    rig.connect();
    assert!(rig.out.jobs.is_empty());
    let others = rig.give_tokens();
    assert_eq!(rig.out.jobs.len(), 1);
    assert!(matches!(others[..], [Message::DeclareMiningJob(_)]));
    let expected = CoinbaseConstraints::of(&pool_outputs());
    assert_eq!(rig.out.constraints, Some(expected));

    // The transactions of an external provider's template come later; hashing does not wait.
    let mut rig = Rig::ready(Mode::FullTemplate);
    rig.client.handle_template(JobTemplate::of_block_template(&template(3)), rig.now, &mut rig.out);
    assert_eq!(rig.out.jobs.len(), 1);
    assert_eq!(rig.give_tokens(), []);
    rig.client.handle_transactions(template(4).id, raw_transactions(&template(4)), rig.now, &mut rig.out);
    assert_eq!(rig.give_tokens(), [], "another template's");
    rig.client.handle_transactions(template(3).id, raw_transactions(&template(3)), rig.now, &mut rig.out);
    rig.declared();
}

#[test]
fn the_server_is_given_what_it_lacks_once() {
    let mut rig = Rig::ready(Mode::FullTemplate);
    rig.template(&template(3));
    let declared = rig.declared();
    let ask = |places: &[u16]| ProvideMissingTransactions {
        request_id: declared.request_id,
        unknown_tx_position_list: places.to_vec(),
    };
    rig.hear(ask(&[2, 0]));
    let raw = raw_transactions(&template(3));
    let transaction_list = vec![raw[2].raw.to_vec(), raw[0].raw.to_vec()];
    let expected = ProvideMissingTransactionsSuccess { request_id: declared.request_id, transaction_list };
    assert_eq!(rig.said(), [expected.into()]);
    rig.hear(ask(&[1]));
    assert!(rig.out.close.take().expect("closed").what.contains("twice"));
    for places in [&[3][..], &[0, 0], &[0, 1, 2, 0]] {
        let mut rig = Rig::ready(Mode::FullTemplate);
        rig.template(&template(3));
        let request_id = rig.declared().request_id;
        let unknown_tx_position_list = places.to_vec();
        rig.hear(ProvideMissingTransactions { request_id, unknown_tx_position_list });
        assert!(rig.out.close.is_some());
        assert_eq!(rig.trouble(), [Trouble::Disconnected]);
    }
}

#[test]
fn refusals_drop_what_waits_and_are_trouble() {
    let mut rig = Rig::ready(Mode::FullTemplate);
    rig.template(&template(3));
    let declared = rig.declared();
    rig.share(1, 10);
    rig.refuse_declaration(&declared, "invalid-job");
    assert_eq!(rig.fates().1, dropped(HeldDrop::JobRefused, &[10]));
    let expected = Trouble::DeclarationRefused { code: "invalid-job".into(), details: "why".into() };
    assert_eq!(rig.trouble(), [expected]);
    rig.share(1, 11);
    assert_eq!(rig.fates().1, dropped(HeldDrop::JobRefused, &[11]));

    let mut rig = Rig::ready(Mode::CoinbaseOnly);
    rig.template(&template(3));
    rig.share(1, 10);
    let set = rig.set();
    rig.refuse(&set, "invalid-coinbase-tx-outputs");
    assert_eq!(rig.fates().1, dropped(HeldDrop::JobRefused, &[10]));
    assert_eq!(rig.trouble(), [Trouble::CustomJobRefused { code: "invalid-coinbase-tx-outputs".into() }]);
    rig.template(&template(4));
    assert_eq!(rig.set().token, vec![2].into(), "the next template is tried");
}

#[test]
fn a_side_that_lacks_our_tip_is_tried_again_with_another_token() {
    let mut rig = Rig::ready(Mode::FullTemplate);
    rig.template(&template(3));
    rig.share(1, 10);
    let mut tokens = Vec::new();
    for wait in [500, 1000, 2000, 4000, 8000] {
        let declared = rig.declared();
        tokens.push(declared.mining_job_token.clone());
        rig.refuse_declaration(&declared, "stale-chain-tip");
        rig.wait(wait - 1);
        assert_eq!(rig.give_tokens(), []);
        rig.wait(1);
    }
    assert_eq!((rig.trouble(), rig.fates()), (vec![], (vec![], vec![])));
    let declared = rig.declared();
    tokens.push(declared.mining_job_token.clone());
    rig.refuse_declaration(&declared, "stale-chain-tip");
    assert!(matches!(rig.trouble()[..], [Trouble::DeclarationRefused { .. }]));
    assert_eq!(rig.fates().1, dropped(HeldDrop::JobRefused, &[10]));
    tokens.dedup();
    assert_eq!(tokens.len(), 6);
    assert_eq!(rig.out.jobs.len(), 1, "miners were told once");
}

#[test]
fn a_pool_that_has_not_heard_of_the_job_is_asked_again_with_the_same_token() {
    let mut rig = Rig::ready(Mode::CoinbaseOnly);
    rig.template(&template(3));
    let set = rig.set();
    rig.refuse(&set, "job-not-yet-validated");
    rig.wait(500);
    let again = rig.set();
    assert_eq!(again.token, set.token);
    assert_ne!(again.request_id, set.request_id);
    rig.take(&set, 6);
    assert_eq!(rig.client.acknowledged(), None, "that request was answered");
    rig.take(&again, 7);
    assert_eq!(rig.client.acknowledged(), Some(CustomJobId(1)));
}

#[test]
fn a_new_tip_voids_what_was_not_taken() {
    let mut rig = Rig::ready(Mode::FullTemplate);
    rig.template(&template(3));
    let declared = rig.declared();
    rig.share(1, 10);
    rig.template(&block_template(4, 900_001, [8; 32], &[4]));
    assert_eq!(rig.fates().1, dropped(HeldDrop::TipChanged, &[10]));
    let jobs: Vec<_> = rig.out.jobs.drain(..).map(|job| (job.id.0, job.clean)).collect();
    assert_eq!(jobs, [(1, true), (2, true)]);
    rig.share(1, 11);
    assert_eq!(rig.fates().1, dropped(HeldDrop::JobRetired, &[11]));
    rig.hear(DeclareMiningJobSuccess {
        request_id: declared.request_id,
        new_mining_job_token: vec![9].into(),
    });
    assert!(rig.out.custom_jobs.is_empty(), "nobody mines on it any more");
    rig.template(&block_template(5, 900_001, [8; 32], &[4, 5]));
    let job = rig.out.jobs.pop().expect("published");
    assert_eq!((job.id.0, job.clean), (3, false), "the same tip");
}

#[test]
fn a_channel_that_changes_voids_everything() {
    let mut rig = Rig::ready(Mode::CoinbaseOnly);
    rig.template(&template(3));
    let set = rig.set();
    rig.take(&set, 7);
    rig.give_tokens();
    rig.template(&template(4));
    rig.share(2, 10);
    rig.channel(2);
    assert_eq!(rig.fates().1, dropped(HeldDrop::ChannelChanged, &[10]));
    let job = rig.out.jobs.pop().expect("published anew");
    assert_eq!((job.id.0, job.clean, job.template.id), (3, true, template(4).id));
    assert_eq!(rig.client.acknowledged(), None);
    rig.client.handle_channel_closed(&mut rig.out);
    rig.template(&template(5));
    assert_eq!(rig.out.jobs.len(), 2, "without a channel there is no job");
}

#[test]
fn a_lost_server_costs_tokens_and_nothing_that_was_taken() {
    let mut rig = Rig::ready(Mode::FullTemplate);
    rig.template(&template(3));
    let declared = rig.declared();
    rig.share(1, 10);
    rig.client.handle_disconnected(rig.now, &mut rig.out);
    assert_eq!((rig.trouble(), rig.client.is_ready()), (vec![Trouble::Disconnected], false));
    rig.client.handle_disconnected(rig.now, &mut rig.out);
    assert_eq!(rig.trouble(), [], "said once");
    rig.connect();
    let again = rig.declared();
    assert_eq!(again.wtxid_list, declared.wtxid_list);
    assert_ne!(again.mining_job_token, declared.mining_job_token);
    rig.hear(DeclareMiningJobSuccess { request_id: again.request_id, new_mining_job_token: vec![9].into() });
    let set = rig.set();
    rig.client.handle_disconnected(rig.now, &mut rig.out);
    rig.take(&set, 7);
    assert_eq!(rig.fates().0, released(7, &[10]));
    assert_eq!(rig.out.jobs.len(), 1, "miners were told once");
}

#[test]
fn a_pool_that_changes_its_outputs_gets_another_job() {
    let mut rig = Rig::ready(Mode::FullTemplate);
    rig.template(&template(3));
    rig.declared();
    rig.share(1, 10);
    rig.client.handle_disconnected(rig.now, &mut rig.out);
    rig.outputs[0].script = vec![0x52];
    rig.connect();
    let declared = rig.declared();
    assert_eq!(rig.fates().1, dropped(HeldDrop::JobRefused, &[10]));
    let skeleton = Skeleton::parse(&declared.coinbase_tx_prefix, &declared.coinbase_tx_suffix);
    assert_eq!(skeleton.expect("a coinbase").payout(&[0x52]), Some(template(3).coinbase_value));
    assert_eq!(rig.out.jobs.iter().map(|job| job.id.0).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn a_job_that_starts_over_keeps_no_other_from_its_turn() {
    let mut rig = Rig::ready(Mode::CoinbaseOnly);
    for id in [3, 4, 3] {
        rig.template(&template(id));
        rig.give_tokens();
    }
    rig.client.handle_disconnected(rig.now, &mut rig.out);
    rig.outputs[0].script = vec![0x52];
    rig.connect();
    rig.give_tokens();
    for custom_job in std::mem::take(&mut rig.out.custom_jobs) {
        rig.refuse(&custom_job, "stale-chain-tip");
    }
    // Both are due at once, and the older is the newest template's: it starts over behind the other.
    rig.wait(500);
    assert_eq!(rig.out.jobs.iter().map(|job| job.id.0).collect::<Vec<_>>(), [1, 2, 3]);
    let next = rig.client.next_timeout();
    assert!(next.is_none_or(|next| next > rig.now.monotonic), "{next:?} is due already");
}

#[test]
fn outputs_that_are_of_no_use_are_trouble_and_not_asked_for_again_at_once() {
    let mut rig = Rig::new(Mode::FullTemplate);
    rig.outputs = vec![];
    rig.connect();
    rig.channel(1);
    rig.template(&template(3));
    rig.give_tokens();
    let trouble = rig.trouble();
    assert!(!trouble.is_empty() && trouble.iter().all(|one| matches!(one, Trouble::UnusableOutputs(_))));
    assert_eq!(rig.said(), []);
    rig.outputs = pool_outputs();
    rig.wait(30_000);
    rig.give_tokens();
    assert_eq!(rig.out.jobs.len(), 1);
}

#[test]
fn silence_is_trouble_once_and_an_answer_is_still_welcome() {
    let mut rig = Rig::ready(Mode::FullTemplate);
    rig.template(&template(3));
    let declared = rig.declared();
    rig.share(1, 10);
    rig.wait(30_000);
    rig.wait(30_000);
    assert_eq!(rig.trouble(), [Trouble::DeclarationUnanswered]);
    rig.hear(DeclareMiningJobSuccess {
        request_id: declared.request_id,
        new_mining_job_token: vec![9].into(),
    });
    let set = rig.set();
    rig.wait(15_000);
    assert_eq!(rig.trouble(), [Trouble::CustomJobUnanswered]);
    rig.take(&set, 7);
    assert_eq!(rig.fates().0, released(7, &[10]));

    let mut rig = Rig::new(Mode::FullTemplate);
    rig.connect();
    rig.said();
    rig.wait(10_000);
    assert_eq!(rig.trouble(), [Trouble::NoToken]);
    let mut rig = Rig::new(Mode::FullTemplate);
    rig.client.handle_connected("pool.example", 1, rig.now, &mut rig.out);
    rig.wait(20_000);
    assert!(rig.out.close.is_some());
}

#[test]
fn what_waits_has_a_bound() {
    let mut rig = Rig::ready(Mode::FullTemplate);
    rig.template(&template(3));
    (0..=MAX_HELD as u32).for_each(|share| rig.share(1, share));
    assert_eq!(rig.fates().1, dropped(HeldDrop::TooMany, &[MAX_HELD as u32]));
    for id in 0..MAX_JOBS as u64 {
        rig.give_tokens();
        rig.template(&template(4 + id));
    }
    assert_eq!(rig.client.held_count(), 0, "the oldest job made room");
    assert_eq!(rig.fates().1.len(), MAX_HELD);
}

#[test]
fn a_block_goes_to_our_node_at_once_and_to_the_server_when_it_knows_the_job() {
    let mut rig = Rig::ready(Mode::FullTemplate);
    rig.template(&template(3));
    let declared = rig.declared();
    let found = FoundSolution { extranonce: vec![7; 8], version: 0x2000_0000, ntime: 5, nonce: 6 };
    rig.client.handle_share(CustomJobId(1), 10, Some(&found), &mut rig.out);
    let solution = rig.out.solutions.pop().expect("at once");
    let extranonce = [&[0xab; 4][..], &[7; 8]].concat();
    assert_eq!(solution.coinbase, coinbase(&template(3)).with_witness(&extranonce));
    assert_eq!((solution.template, solution.nonce), (template(3).id, 6));
    assert_eq!(rig.said(), []);
    rig.hear(DeclareMiningJobSuccess {
        request_id: declared.request_id,
        new_mining_job_token: vec![9].into(),
    });
    let push = |nonce| PushSolution {
        extranonce: extranonce.clone(),
        prev_hash: [9; 32],
        nonce,
        ntime: 5,
        nbits: EASY_NBITS,
        version: 0x2000_0000,
    };
    assert_eq!(rig.said(), [push(6).into()]);
    // A new tip has come, and the block may still win.
    rig.template(&block_template(4, 900_001, [8; 32], &[]));
    rig.give_tokens();
    let late = FoundSolution { nonce: 8, ..found.clone() };
    rig.client.handle_share(CustomJobId(1), 11, Some(&late), &mut rig.out);
    assert_eq!((rig.out.solutions.len(), rig.said()), (1, vec![push(8).into()]));
    let short = FoundSolution { extranonce: vec![], ..found };
    rig.client.handle_share(CustomJobId(1), 12, Some(&short), &mut rig.out);
    assert_eq!((rig.out.solutions.len(), rig.out.notices.len()), (1, 1));
}

#[test]
fn shares_that_are_refused_in_a_row_are_trouble() {
    let mut rig = Rig::ready(Mode::CoinbaseOnly);
    rig.template(&template(3));
    let set = rig.set();
    rig.take(&set, 7);
    let job = UpstreamJobId(7);
    for _ in 1..REFUSALS_IN_A_ROW {
        rig.client.handle_share_refused(job, "invalid-share", &mut rig.out);
    }
    rig.client.handle_share_accepted(job);
    rig.client.handle_share_refused(UpstreamJobId(8), "invalid-share", &mut rig.out);
    assert_eq!(rig.trouble(), []);
    for _ in 0..2 * REFUSALS_IN_A_ROW {
        rig.client.handle_share_refused(job, "invalid-share", &mut rig.out);
    }
    assert_eq!(rig.trouble(), [Trouble::SharesRefused { code: "invalid-share".into() }]);
}

#[test]
fn shares_are_given_back_as_they_came() {
    let mut client: Client<Arc<str>> = Client::new(config(Mode::FullTemplate), CustomJobId(1));
    let mut out = ClientOutput::default();
    client.handle_share(CustomJobId(1), "share".into(), None, &mut out);
    assert_eq!(out.dropped, [Dropped { share: "share".into(), reason: HeldDrop::JobRetired }]);
}

#[test]
fn a_redirect_of_the_server_names_the_whole_endpoint() {
    let cases = [
        (("", 0), Some(("pool.example", 34_265))),
        (("other.example", 0), Some(("other.example", 34_265))),
        (("[::1]", 6), Some(("[::1]", 6))),
        (("evil host\n", 1), None),
    ];
    for ((host, port), expected) in cases {
        let mut rig = Rig::ready(Mode::FullTemplate);
        rig.hear(Reconnect { new_host: host.to_owned(), new_port: port });
        assert_eq!(rig.out.reconnect_to, expected.map(|(host, port)| (host.to_owned(), port)));
        assert_eq!(rig.out.close.is_some(), expected.is_some());
        assert_eq!(rig.client.is_ready(), expected.is_none());
        assert_eq!(rig.out.notices.len(), usize::from(expected.is_none()));
    }
}

#[test]
fn a_server_that_refuses_us_or_says_what_no_server_says_is_left() {
    let request_id = ExtensionsRequestId(1);
    let early = SetupConnectionError { flags: 1, error_code: "unsupported-feature-flags".into() };
    let setups: [(Message, &str); 3] = [
        (early.into(), "unsupported-feature-flags (flags 0x1)"),
        (SetupConnectionSuccess { used_version: 3, flags: 0 }.into(), "version 3"),
        (
            ProvideMissingTransactions { request_id: RequestId(1), unknown_tx_position_list: vec![] }.into(),
            "early",
        ),
    ];
    for (answer, words) in setups {
        let mut rig = Rig::new(Mode::FullTemplate);
        rig.client.handle_connected("pool.example", 34_265, rig.now, &mut rig.out);
        rig.hear(answer);
        assert!(rig.out.close.take().expect("closed").what.contains(words));
        assert_eq!(rig.trouble(), [Trouble::Disconnected]);
    }
    let strange: [Message; 5] = [
        SetupConnectionSuccess { used_version: 2, flags: 0 }.into(),
        AllocateMiningJobToken { user_identifier: "farm".into(), request_id: RequestId(1) }.into(),
        PushSolution { extranonce: vec![], prev_hash: [0; 32], nonce: 0, ntime: 0, nbits: 0, version: 0 }
            .into(),
        RequestExtensionsSuccess { request_id, supported_extensions: vec![2] }.into(),
        RequestExtensionsError { request_id, unsupported_extensions: vec![], required_extensions: vec![2] }
            .into(),
    ];
    for message in strange {
        let mut rig = Rig::ready(Mode::FullTemplate);
        rig.hear(message);
        assert!(rig.out.close.is_some());
    }
    // Of channels there are none here, and unknown messages are nobody's fault.
    let mut rig = Rig::ready(Mode::FullTemplate);
    rig.hear(ChannelEndpointChanged { channel_id: ChannelId(1) });
    rig.hear(Unknown { extension_type: 99, message_type: 1, channel_id: None, payload: vec![1] });
    assert!(rig.out.close.is_none() && rig.client.is_ready());
}
