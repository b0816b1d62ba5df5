//! Templates, frames, and a server with one connection and a mempool.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::absolute::LockTime;
use bitcoin::consensus::serialize;
use bitcoin::hashes::Hash as _;
use bitcoin::transaction::Version;
use bitcoin::{Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Witness};
use job_declarator::server::{
    DeclarationId, DeclaredBlock, DeclaredJob, JobDeclarationServer, PoolTip, ServerAction, ServerConnection,
    ServerOutput, Verdict,
};
use stratum::hash::Hash;
use stratum::sv2::frame::HEADER_SIZE;
use stratum::sv2::messages::*;
use stratum::sv2::{FrameHeader, Message};
use stratum::{CloseReason, ConnectionId, Now, RequestId, TemplateId};
use template::block_template::witness_commitment;
use template::merkle::merkle_path;
use template::{BlockTemplate, JobTemplate, Output, RawTransaction, TemplateTransaction};

/// Half of all hashes are blocks.
pub(crate) const EASY_NBITS: u32 = 0x207f_ffff;

pub(crate) const SUBSIDY: u64 = 312_500_000;

pub(crate) const PAYOUT: &[u8] = &[0x51];

pub(crate) fn at(milliseconds: u64) -> Now {
    Now::simulated(Duration::from_secs(1_700_000_000), Duration::from_millis(milliseconds))
}

/// What the pool asks for: its payout, and something that it says.
pub(crate) fn pool_outputs() -> Vec<Output> {
    vec![Output { value: 0, script: PAYOUT.to_vec() }, Output { value: 0, script: vec![0x6a, 2, b'h', b'i'] }]
}

/// A transaction with a witness, another for each number.
pub(crate) fn transaction(number: u32) -> TemplateTransaction {
    let mut txid = [7; 32];
    txid[..4].copy_from_slice(&number.to_le_bytes());
    let transaction = Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: OutPoint { txid: Txid::from_byte_array(txid), vout: number },
            script_sig: ScriptBuf::new(),
            sequence: Sequence::MAX,
            witness: Witness::from_slice(&[[0x51u8]]),
        }],
        output: vec![TxOut { value: Amount::from_sat(1000), script_pubkey: ScriptBuf::from(vec![0x51]) }],
    };
    TemplateTransaction {
        txid: transaction.compute_txid().to_byte_array(),
        wtxid: transaction.compute_wtxid().to_byte_array(),
        raw: serialize(&transaction),
        fee: 10,
        weight: transaction.weight().to_wu(),
        sigops: 0,
        depends: vec![],
    }
}

/// A template of the block at `height` that builds on `tip`.
pub(crate) fn block_template(id: u64, height: u32, tip: Hash, transactions: &[u32]) -> BlockTemplate {
    let transactions: Vec<TemplateTransaction> =
        transactions.iter().map(|number| transaction(*number)).collect();
    let txids: Vec<Hash> = transactions.iter().map(|transaction| transaction.txid).collect();
    let wtxids: Vec<Hash> = transactions.iter().map(|transaction| transaction.wtxid).collect();
    BlockTemplate {
        id: TemplateId(id),
        height,
        previous_hash: tip,
        version: 0x2000_0000,
        nbits: EASY_NBITS,
        min_ntime: 1_699_999_000,
        current_time: 1_700_000_000,
        coinbase_value: SUBSIDY + 10 * transactions.len() as u64,
        witness_commitment: Some(witness_commitment(&wtxids)),
        merkle_path: merkle_path(&txids),
        transactions,
        weight_limit: 4_000_000,
        sigop_limit: 80_000,
        long_poll_id: None,
        received: at(0),
    }
}

pub(crate) fn raw_transactions(template: &BlockTemplate) -> Arc<[RawTransaction]> {
    template.transactions.iter().map(RawTransaction::from).collect()
}

pub(crate) fn frame(message: impl Into<Message>) -> Vec<u8> {
    let mut frame = Vec::new();
    let message: Message = message.into();
    message.encode_frame(&mut frame).expect("within the limits");
    frame
}

/// The frames of a stream of plain bytes.
pub(crate) fn frames(mut bytes: &[u8]) -> Vec<(FrameHeader, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk::<HEADER_SIZE>() {
        let header = FrameHeader::parse(*header);
        let (payload, rest) = rest.split_at(header.payload_length as usize);
        frames.push((header, payload.to_vec()));
        bytes = rest;
    }
    frames
}

pub(crate) fn messages(bytes: &[u8]) -> Vec<Message> {
    let decode = |(header, payload): (FrameHeader, Vec<u8>)| Message::decode(header, &payload);
    frames(bytes).into_iter().map(|frame| decode(frame).expect("a message")).collect()
}

pub(crate) fn setup(flags: u32) -> SetupConnection {
    SetupConnection {
        protocol: Protocol::JobDeclaration,
        min_version: 2,
        max_version: 2,
        flags,
        endpoint_host: "pool.example".into(),
        endpoint_port: 34_265,
        vendor: String::new(),
        hardware_version: String::new(),
        firmware: String::new(),
        device_id: String::new(),
    }
}

/// A pool's job declaration server with one connection.
pub(crate) struct Rig {
    pub(crate) server: JobDeclarationServer,
    pub(crate) connection: ServerConnection,
    pub(crate) mempool: BTreeMap<Hash, RawTransaction>,
    pub(crate) now: Now,
    /// What was asked of the driver and not answered yet.
    pub(crate) look_ups: Vec<(DeclarationId, Arc<[Hash]>)>,
    pub(crate) validations: Vec<(DeclarationId, Arc<DeclaredJob>)>,
    pub(crate) abandoned: Vec<DeclarationId>,
    pub(crate) blocks: Vec<DeclaredBlock>,
    pub(crate) closed: Option<CloseReason>,
    pub(crate) notices: Vec<String>,
    tokens: u64,
}

impl Rig {
    /// A server at height 900,000; nothing was said yet.
    pub(crate) fn new() -> Self {
        let mut server = JobDeclarationServer::new(pool_outputs(), false);
        server.set_tip(PoolTip::from(&block_template(1, 900_000, [9; 32], &[])));
        Rig {
            server,
            connection: ServerConnection::new(ConnectionId(1), at(0)),
            mempool: BTreeMap::new(),
            now: at(0),
            look_ups: Vec::new(),
            validations: Vec::new(),
            abandoned: Vec::new(),
            blocks: Vec::new(),
            closed: None,
            notices: Vec::new(),
            tokens: 0,
        }
    }

    /// Set up already: Full-Template mode with flag 1.
    pub(crate) fn set_up(flags: u32) -> Self {
        let mut rig = Rig::new();
        let answers = rig.send(setup(flags));
        assert_eq!(answers, [SetupConnectionSuccess { used_version: 2, flags: 0 }.into()]);
        rig
    }

    pub(crate) fn know(&mut self, template: &BlockTemplate) {
        self.mempool.extend(raw_transactions(template).iter().map(|known| (known.wtxid, known.clone())));
    }

    pub(crate) fn call(
        &mut self,
        act: impl FnOnce(
            &mut ServerConnection,
            &mut JobDeclarationServer,
            &mut dyn FnMut() -> [u8; 16],
            Now,
            &mut ServerOutput,
        ),
    ) -> Vec<Message> {
        let mut out = ServerOutput::default();
        let tokens = &mut self.tokens;
        let mut fresh = || {
            *tokens += 1;
            let mut token = [0xa5; 16];
            token[..8].copy_from_slice(&tokens.to_le_bytes());
            token
        };
        act(&mut self.connection, &mut self.server, &mut fresh, self.now, &mut out);
        for action in out.actions {
            match action {
                ServerAction::LookUp { declaration, wtxids } => self.look_ups.push((declaration, wtxids)),
                ServerAction::Validate { declaration, job } => self.validations.push((declaration, job)),
                ServerAction::Abandon { declaration } => {
                    self.look_ups.retain(|(other, _)| *other != declaration);
                    self.validations.retain(|(other, _)| *other != declaration);
                    self.abandoned.push(declaration);
                }
                ServerAction::Submit(block) => self.blocks.push(block),
            }
        }
        self.notices.extend(out.notices);
        self.closed = self.closed.take().or(out.close);
        messages(&out.bytes)
    }

    pub(crate) fn send(&mut self, message: impl Into<Message>) -> Vec<Message> {
        let mut answers = Vec::new();
        for (header, payload) in frames(&frame(message)) {
            answers.extend(self.call(|connection, server, fresh, now, out| {
                connection.handle_frame(header, &payload, now, server, fresh, out);
            }));
        }
        answers
    }

    pub(crate) fn allocate(&mut self, user: &str) -> MiningJobToken {
        let request = AllocateMiningJobToken { user_identifier: user.into(), request_id: RequestId(77) };
        let answers = self.send(request);
        let [Message::AllocateMiningJobTokenSuccess(answer)] = &answers[..] else { panic!("{answers:?}") };
        assert_eq!(answer.request_id, RequestId(77));
        assert_eq!(template::outputs::parse_outputs(&answer.coinbase_outputs), Ok(pool_outputs()));
        answer.mining_job_token.clone()
    }

    /// Answers the oldest look-up from the mempool.
    pub(crate) fn look_up(&mut self) -> Vec<Message> {
        let (declaration, wtxids) = self.look_ups.remove(0);
        let found = wtxids.iter().map(|wtxid| self.mempool.get(wtxid).cloned()).collect();
        self.call(|connection, server, _, now, out| {
            connection.handle_looked_up(declaration, found, now, server, out);
        })
    }

    pub(crate) fn validate(&mut self, verdict: Verdict) -> Vec<Message> {
        let (declaration, _) = self.validations.remove(0);
        self.call(|connection, server, fresh, now, out| {
            connection.handle_validated(declaration, verdict, now, server, fresh, out);
        })
    }

    pub(crate) fn tip(&mut self, tip: PoolTip) -> Vec<Message> {
        self.server.set_tip(tip);
        self.call(|connection, server, _, now, out| connection.handle_tip(now, server, out))
    }

    pub(crate) fn wait(&mut self, milliseconds: u64) -> Vec<Message> {
        self.now = self.now.plus(Duration::from_millis(milliseconds));
        self.call(|connection, server, fresh, now, out| connection.handle_timeout(now, server, fresh, out))
    }

    /// Declares the template, and has it found good. Returns the token for `SetCustomMiningJob`.
    pub(crate) fn declared(&mut self, template: &BlockTemplate) -> MiningJobToken {
        let token = self.allocate("farm.rig1");
        assert_eq!(self.send(declaration(5, &token, template)), []);
        assert_eq!(self.look_up(), []);
        let answers = self.validate(Verdict::Valid { revenue: Some(template.coinbase_value) });
        let [Message::DeclareMiningJobSuccess(answer)] = &answers[..] else { panic!("{answers:?}") };
        assert_eq!(answer.request_id, RequestId(5));
        assert_ne!(answer.new_mining_job_token, token);
        answer.new_mining_job_token.clone()
    }
}

/// The coinbase that a client declares for a template: an extranonce of 12 bytes.
pub(crate) fn coinbase(template: &BlockTemplate) -> template::Skeleton {
    JobTemplate::of_block_template(template).coinbase(&pool_outputs(), b"tag", 12).expect("it fits")
}

pub(crate) fn declaration(
    request: u32,
    token: &MiningJobToken,
    template: &BlockTemplate,
) -> DeclareMiningJob {
    let (coinbase_tx_prefix, coinbase_tx_suffix) = coinbase(template).declared_parts();
    DeclareMiningJob {
        request_id: RequestId(request),
        mining_job_token: token.clone(),
        version: template.version,
        coinbase_tx_prefix,
        coinbase_tx_suffix,
        wtxid_list: template.transactions.iter().map(|transaction| transaction.wtxid).collect(),
        excess_data: vec![],
    }
}

/// The one refusal among some answers: its code and its details.
pub(crate) fn refusal(answers: &[Message]) -> (String, String) {
    let [Message::DeclareMiningJobError(error)] = answers else { panic!("{answers:?}") };
    let details = String::from_utf8(error.error_details.clone()).expect("text");
    (error.error_code.clone(), details)
}
