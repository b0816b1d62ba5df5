//! Both state machines driven by bytes: each byte is an operation or a part of one. Whoever makes the bytes, chance or
//! a fuzzer, the same must hold: nothing panics, no token serves twice, every share has one fate, every clock moves
//! on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use job_declarator::client::{
    ChannelTerms, Client, ClientConfig, ClientOutput, CustomJobId, FoundSolution, MAX_HELD,
};
use job_declarator::server::connection::MAX_DECLARATIONS;
use job_declarator::server::tokens::{MAX_ALLOCATED, MAX_DECLARED};
use job_declarator::server::{Claimant, Mode, PoolTip, ServerConnection, Verdict};
use stratum::sv2::messages::*;
use stratum::sv2::{FrameHeader, Message};
use stratum::{ChannelId, ConnectionId, JobId, Now, RequestId, UpstreamJobId};
use template::outputs::write_outputs;
use template::{BlockTemplate, JobTemplate, Output};

use super::support::*;

/// Takes decisions from the front of some bytes; zeros when they are used up.
struct Dice<'a>(&'a [u8]);

impl Dice<'_> {
    fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::from(self.next()) % limit.max(1)
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken.to_vec()
    }

    fn pick<T: Clone>(&mut self, items: &[T]) -> Option<T> {
        let place = self.below(items.len());
        items.get(place).cloned()
    }
}

/// A frame of any of the messages that may come on such a connection, of junk.
fn junk(dice: &mut Dice<'_>) -> (FrameHeader, Vec<u8>) {
    let message_type = match dice.next() {
        byte @ ..=0x7f => 0x50 + byte % 0x11,
        byte => byte,
    };
    let length = usize::from(dice.next());
    let payload = dice.bytes(length);
    let payload_length = payload.len() as u32;
    (FrameHeader { extension_type: 0, channel_msg: false, message_type, payload_length }, payload)
}

fn variant(number: usize) -> BlockTemplate {
    let (height, tip) = [(900_000, 9), (900_001, 8), (900_000, 7), (899_999, 6)][number % 4];
    let transactions: Vec<u32> = (0..(number / 4 % 4) as u32).collect();
    block_template(number as u64 + 1, height, [tip; 32], &transactions)
}

/// What the pool's side was asked and has answered, as the outside sees it.
#[derive(Default)]
struct Asked {
    /// Every token that was given out.
    tokens: Vec<MiningJobToken>,
    declared: u64,
    answered: u64,
    taken: BTreeSet<Vec<u8>>,
}

impl Asked {
    fn note(&mut self, answers: &[Message]) {
        for answer in answers {
            match answer {
                Message::AllocateMiningJobTokenSuccess(given) => self.token(&given.mining_job_token),
                Message::DeclareMiningJobSuccess(given) => {
                    self.answered += 1;
                    self.token(&given.new_mining_job_token);
                }
                Message::DeclareMiningJobError(_) => self.answered += 1,
                _ => (),
            }
        }
    }

    fn token(&mut self, token: &MiningJobToken) {
        assert!(!self.tokens.contains(token), "a token was given out twice");
        self.tokens.push(token.clone());
    }
}

/// The pool's side: two connections, one node.
pub(crate) fn run_server(data: &[u8]) {
    let mut dice = Dice(data);
    let mut rig = Rig::set_up(u32::from(dice.next() & 1));
    rig.know(&variant(dice.below(16)));
    let mut other = (ServerConnection::new(ConnectionId(2), rig.now), None);
    let mut asked = Asked::default();
    let mut next_connection = 3;
    while !dice.0.is_empty() {
        let answers = match dice.below(12) {
            10 => {
                // Answers of the driver's are for the connection that asked.
                if rig.look_ups.is_empty() && rig.validations.is_empty() {
                    std::mem::swap(&mut rig.connection, &mut other.0);
                    std::mem::swap(&mut rig.closed, &mut other.1);
                }
                vec![]
            }
            11 => {
                rig.call(|connection, server, _, _, out| connection.handle_closed(server, out));
                assert!(rig.look_ups.is_empty() && rig.validations.is_empty(), "nobody waits any more");
                rig.connection = ServerConnection::new(ConnectionId(next_connection), rig.now);
                (next_connection, rig.closed) = (next_connection + 1, None);
                rig.send(setup(u32::from(dice.next() & 1)))
            }
            operation => operate(&mut rig, operation, &mut dice, &mut asked),
        };
        asked.note(&answers);
        check_server(&rig, &asked, next_connection);
    }
}

fn operate(rig: &mut Rig, operation: usize, dice: &mut Dice<'_>, asked: &mut Asked) -> Vec<Message> {
    let is_open = rig.closed.is_none();
    match operation {
        0 => {
            let (header, payload) = junk(dice);
            let is_declaration = header.message_type == 0x57
                && is_open
                && rig.connection.mode().is_some()
                && Message::decode(header, &payload).is_ok();
            asked.declared += u64::from(is_declaration);
            rig.call(|connection, server, fresh, now, out| {
                connection.handle_frame(header, &payload, now, server, fresh, out);
            })
        }
        1 => {
            let user_identifier = ["farm.1", "farm.2", "other"][dice.below(3)].to_owned();
            rig.send(AllocateMiningJobToken { user_identifier, request_id: RequestId(1) })
        }
        2 => {
            let token = dice.pick(&asked.tokens).unwrap_or(MiningJobToken(vec![0; 16]));
            let template = variant(dice.below(16));
            let mut message = declaration(u32::from(dice.next() % 4), &token, &template);
            let place = usize::from(dice.next());
            if let Some(byte) = message.coinbase_tx_prefix.get_mut(place) {
                *byte = dice.next();
            }
            if let Some(byte) = message.coinbase_tx_suffix.get_mut(place.wrapping_sub(128)) {
                *byte = dice.next();
            }
            asked.declared += u64::from(is_open && rig.connection.mode().is_some());
            rig.send(message)
        }
        3 => {
            let raw = raw_transactions(&variant(dice.below(16)));
            let count = dice.below(5);
            let transaction_list = raw.iter().take(count).map(|one| one.raw.to_vec()).collect();
            let request_id = RequestId(u32::from(dice.next() % 4));
            rig.send(ProvideMissingTransactionsSuccess { request_id, transaction_list })
        }
        4 if !rig.look_ups.is_empty() => rig.look_up(),
        5 if !rig.validations.is_empty() => {
            let verdicts = [
                Verdict::Valid { revenue: None },
                Verdict::Valid { revenue: Some(SUBSIDY) },
                Verdict::StaleTip,
                Verdict::Invalid("bad".to_owned()),
                Verdict::Unknown("away".to_owned()),
            ];
            let verdict = dice.pick(&verdicts).expect("there are five");
            let last = dice.below(rig.validations.len());
            rig.validations.swap(0, last);
            rig.validate(verdict)
        }
        6 => rig.tip(PoolTip::from(&variant(dice.below(4)))),
        7 => rig.wait([10, 1_000, 6_000, 70_000, 400_000][dice.below(5)]),
        8 => {
            let template = variant(dice.below(16));
            let extranonce = vec![dice.next(); 12 - dice.below(2)];
            let (prev_hash, nbits, version) = (template.previous_hash, template.nbits, template.version);
            let nonce = u32::from(dice.next());
            rig.send(PushSolution { extranonce, prev_hash, nonce, ntime: 1_700_000_001, nbits, version })
        }
        9 => {
            custom_job(rig, dice, asked);
            vec![]
        }
        _ => vec![],
    }
}

fn custom_job(rig: &mut Rig, dice: &mut Dice<'_>, asked: &mut Asked) {
    let token = dice.pick(&asked.tokens).unwrap_or(MiningJobToken(vec![]));
    let template = variant(dice.below(16));
    let coinbase = coinbase(&template);
    let message = SetCustomMiningJob {
        channel_id: ChannelId(2),
        request_id: RequestId(1),
        token: token.clone(),
        version: template.version,
        prev_hash: template.previous_hash,
        min_ntime: template.current_time,
        nbits: template.nbits,
        coinbase_tx_version: coinbase.version,
        coinbase_prefix: coinbase.script_prefix,
        coinbase_tx_input_n_sequence: coinbase.sequence,
        coinbase_tx_outputs: write_outputs(&coinbase.outputs),
        coinbase_tx_locktime: coinbase.lock_time,
        merkle_path: template.merkle_path.clone(),
    };
    let user_identity = ["farm.9", "other.9", ""][dice.below(3)];
    let claimant = Claimant { user_identity, extranonce_size: 12 + dice.below(2) };
    if rig.server.check_custom_job(claimant, &message, rig.now).is_ok() {
        assert!(asked.taken.insert(token.0), "a token was taken twice");
    }
}

fn check_server(rig: &Rig, asked: &Asked, connections: u64) {
    let tally = rig.server.tally();
    assert_eq!((tally.declared, tally.acknowledged + tally.refused), (asked.declared, asked.answered));
    let open = tally.declared - asked.answered - tally.abandoned;
    assert!(open <= 2 * MAX_DECLARATIONS as u64, "{open} declarations are open");
    let most = (MAX_ALLOCATED + MAX_DECLARATIONS + MAX_DECLARED) * connections as usize;
    assert!(rig.server.token_count() <= most);
}

/// What the miner's side was told, as the outside sees it.
struct Farm {
    client: Client<u32>,
    out: ClientOutput<u32>,
    now: Now,
    asked_tokens: Vec<RequestId>,
    declared: Vec<RequestId>,
    custom: Vec<SetCustomMiningJob>,
    channel: Option<u32>,
    terms: Option<ChannelTerms>,
    /// The pool's numbers of this channel's jobs.
    taken: BTreeSet<u32>,
    tokens_given: u32,
    /// How often each token may still be sent.
    tokens: BTreeMap<Vec<u8>, u32>,
    last_job: Option<CustomJobId>,
    submitted: u32,
    fates: usize,
}

/// The miner's side: one server, one channel.
pub(crate) fn run_client(data: &[u8]) {
    let mut dice = Dice(data);
    let mode = if dice.next() & 1 == 1 { Mode::FullTemplate } else { Mode::CoinbaseOnly };
    let config = ClientConfig {
        user_identifier: "farm".to_owned(),
        mode,
        tag: dice.bytes(3),
        vendor: String::new(),
        hardware_version: String::new(),
        firmware: String::new(),
    };
    let mut farm = Farm {
        client: Client::new(config, CustomJobId(1)),
        out: ClientOutput::default(),
        now: at(0),
        asked_tokens: Vec::new(),
        declared: Vec::new(),
        custom: Vec::new(),
        channel: None,
        terms: None,
        taken: BTreeSet::new(),
        tokens_given: 0,
        tokens: BTreeMap::new(),
        last_job: None,
        submitted: 0,
        fates: 0,
    };
    while !dice.0.is_empty() {
        let operation = dice.below(16);
        farm.operate(operation, &mut dice);
        farm.drain();
    }
}

impl Farm {
    fn hear(&mut self, message: impl Into<Message>) {
        for (header, payload) in frames(&frame(message)) {
            self.client.handle_frame(header, &payload, self.now, &mut self.out);
        }
    }

    fn operate(&mut self, operation: usize, dice: &mut Dice<'_>) {
        let (now, out) = (self.now, &mut self.out);
        match operation {
            0 => {
                let (header, payload) = junk(dice);
                self.client.handle_frame(header, &payload, now, out);
            }
            1 => {
                let template = variant(dice.below(16));
                self.client.handle_template(JobTemplate::of_block_template(&template), now, out);
            }
            2 => {
                let template = variant(dice.below(16));
                self.client.handle_transactions(template.id, raw_transactions(&template), now, out);
            }
            3 => {
                let id = u32::from(dice.next() % 3);
                let terms = ChannelTerms {
                    channel_id: ChannelId(id),
                    extranonce_prefix: vec![dice.next(); dice.below(30)],
                    extranonce_size: 8,
                };
                // The same terms again are the same channel: what the pool took of it stays taken.
                if self.terms.as_ref() != Some(&terms) {
                    self.taken.clear();
                }
                self.channel = Some(id);
                self.terms = Some(terms.clone());
                self.client.handle_channel(terms, now, out);
            }
            4 => {
                self.channel = None;
                self.terms = None;
                self.taken.clear();
                self.client.handle_channel_closed(out);
            }
            5 => {
                self.forget_connection();
                self.client.handle_connected("host", 1, now, &mut self.out);
            }
            6 => self.hear(SetupConnectionSuccess { used_version: 2, flags: 0 }),
            7 => {
                self.forget_connection();
                self.client.handle_disconnected(now, &mut self.out);
            }
            8 | 9 => self.give_token(dice),
            10 => self.answer_declaration(dice),
            11 | 12 => self.answer_custom_job(dice),
            13 | 14 => self.submit(dice),
            _ => {
                let wait = [10, 500, 5_000, 20_000, 40_000][dice.below(5)];
                self.now = self.now.plus(Duration::from_millis(wait));
                self.client.handle_timeout(self.now, &mut self.out);
                let next = self.client.next_timeout();
                assert!(next.is_none_or(|next| next > self.now.monotonic), "the clock stands still");
            }
        }
    }

    fn forget_connection(&mut self) {
        self.asked_tokens.clear();
        self.declared.clear();
    }

    fn give_token(&mut self, dice: &mut Dice<'_>) {
        let Some(request_id) = dice.pick(&self.asked_tokens) else { return };
        self.asked_tokens.retain(|asked| *asked != request_id);
        let outputs = match dice.below(8) {
            0 => vec![],
            1 => vec![Output { value: 0, script: vec![0x52; dice.below(256)] }],
            _ => pool_outputs(),
        };
        let (mining_job_token, coinbase_outputs) = (self.fresh_token(), write_outputs(&outputs));
        self.hear(AllocateMiningJobTokenSuccess { request_id, mining_job_token, coinbase_outputs });
    }

    fn fresh_token(&mut self) -> MiningJobToken {
        self.tokens_given += 1;
        let token = self.tokens_given.to_le_bytes().to_vec();
        self.tokens.insert(token.clone(), 1);
        MiningJobToken(token)
    }

    fn answer_declaration(&mut self, dice: &mut Dice<'_>) {
        let Some(request_id) = dice.pick(&self.declared) else { return };
        match dice.below(4) {
            0 => {
                let unknown_tx_position_list =
                    (0..dice.below(4)).map(|_| u16::from(dice.next() % 4)).collect();
                self.hear(ProvideMissingTransactions { request_id, unknown_tx_position_list });
            }
            1 => {
                self.declared.retain(|declared| *declared != request_id);
                let codes = ["stale-chain-tip", "invalid-mining-job-token", "invalid-job"];
                let error_code = codes[dice.below(3)].to_owned();
                self.hear(DeclareMiningJobError { request_id, error_code, error_details: dice.bytes(3) });
            }
            _ => {
                self.declared.retain(|declared| *declared != request_id);
                let new_mining_job_token = self.fresh_token();
                self.hear(DeclareMiningJobSuccess { request_id, new_mining_job_token });
            }
        }
    }

    fn answer_custom_job(&mut self, dice: &mut Dice<'_>) {
        let Some(message) = dice.pick(&self.custom) else { return };
        self.custom.retain(|custom| custom.request_id != message.request_id);
        let (channel_id, request_id) = (message.channel_id, message.request_id);
        if dice.below(3) > 0 {
            // Numbers that shares do not have.
            let job_id = JobId(1_000_000 + request_id.0);
            if self.channel == Some(channel_id.0) {
                self.taken.insert(job_id.0);
            }
            let success = SetCustomMiningJobSuccess { channel_id, request_id, job_id };
            return self.client.handle_custom_job_success(&success, self.now, &mut self.out);
        }
        let codes = ["stale-chain-tip", "job-not-yet-validated", "invalid-nbits"];
        let error_code = codes[dice.below(3)].to_owned();
        if error_code == "job-not-yet-validated" {
            *self.tokens.get_mut(&message.token.0).expect("we gave it") += 1;
        }
        let error = SetCustomMiningJobError { channel_id, request_id, error_code };
        self.client.handle_custom_job_error(&error, self.now, &mut self.out);
    }

    fn submit(&mut self, dice: &mut Dice<'_>) {
        let newest = self.client.next_job().0;
        let job = CustomJobId(newest.wrapping_sub(u32::from(dice.next() % 12)));
        let found = FoundSolution {
            extranonce: vec![1; 8 - dice.below(2)],
            version: 0x2000_0000,
            ntime: 5,
            nonce: u32::from(dice.next()),
        };
        let solution = (dice.below(4) == 0).then_some(&found);
        self.submitted += 1;
        self.client.handle_share(job, self.submitted, solution, &mut self.out);
        let taken: Vec<u32> = self.taken.iter().copied().collect();
        if let Some(job) = dice.pick(&taken) {
            self.client.handle_share_refused(UpstreamJobId(job), "x", &mut self.out);
        }
    }

    fn drain(&mut self) {
        let out = std::mem::take(&mut self.out);
        for job in out.jobs {
            assert!(self.last_job.is_none_or(|last| last < job.id), "a number was used twice");
            self.last_job = Some(job.id);
        }
        for message in messages(&out.bytes) {
            match message {
                Message::AllocateMiningJobToken(request) => self.asked_tokens.push(request.request_id),
                Message::DeclareMiningJob(declared) => {
                    self.use_token(&declared.mining_job_token);
                    self.declared.push(declared.request_id);
                }
                _ => (),
            }
        }
        for custom in out.custom_jobs {
            self.use_token(&custom.token);
            self.custom.push(custom);
        }
        if out.close.is_some() {
            self.forget_connection();
        }
        for released in &out.released {
            assert!(self.taken.contains(&released.job.0), "a share for a job that the pool has not taken");
        }
        self.fates += out.released.len() + out.dropped.len();
        assert!(self.client.held_count() <= MAX_HELD);
        assert_eq!(
            self.fates + self.client.held_count(),
            self.submitted as usize,
            "every share has one fate"
        );
    }

    fn use_token(&mut self, token: &MiningJobToken) {
        // Junk may bring tokens of its own.
        if let Some(left) = self.tokens.get_mut(&token.0) {
            *left = left.checked_sub(1).expect("a token was used twice");
        }
    }
}
