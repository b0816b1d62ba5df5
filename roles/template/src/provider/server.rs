//! One connection of a client that is served templates.
//!
//! This module never talks to a node: templates are handed in, and solved blocks are handed out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::consensus::deserialize;
use bitcoin::hashes::Hash as _;
use stratum::hash::{Hash, merkle_root, sha256d};
use stratum::sv2::codes::{self, request_transaction_data};
use stratum::sv2::frame::{MAX_PAYLOAD_FROM_MINER, MAX_PAYLOAD_FROM_TEMPLATE_CLIENT};
use stratum::sv2::messages::{
    CoinbaseOutputConstraints, Protocol, RequestExtensionsError, RequestExtensionsSuccess,
    RequestTransactionData, RequestTransactionDataError, RequestTransactionDataSuccess, SetupConnection,
    SetupConnectionError, SetupConnectionSuccess, SubmitSolution,
};
use stratum::sv2::{DecodeError, FrameHeader, Message};
use stratum::{CloseReason, Now, TemplateId};

use crate::bytes::push_compact_size;
use crate::{BlockTemplate, CoinbaseConstraints, JobTemplate};

/// A connection that has not set itself up and said what it adds to the coinbase in this time is closed.
pub const SETUP_DEADLINE: Duration = Duration::from_secs(20);

/// Templates that a solution may still come for. At one in ten seconds that is minutes of one tip, and nobody mines on
/// an old one for longer. Each may hold the transactions of a block, which connections mostly share.
pub const MAX_SERVED: usize = 16;

/// How long the templates of a tip that was left are kept: a solution that was on its way may still win.
pub const RETIRED_FOR: Duration = Duration::from_secs(30);

/// How often the transactions of one template are asked for at most. Each answer takes megabytes; a client that did
/// not keep them asks once more after a reconnection, which has templates of its own.
pub const MAX_REQUESTS: u32 = 4;

/// Blocks that were submitted and are not submitted again when a client repeats itself. Nobody finds as many.
const MAX_SUBMITTED: usize = 16;

/// Notices of one connection; further ones are not told.
const MAX_NOTICES: u32 = 20;

/// What a connection hands back to its driver.
#[derive(Debug, Default)]
pub struct ProviderOutput {
    /// Blocks to submit by every path there is, before anything is written.
    pub blocks: Vec<SolvedBlock>,
    /// Plain SV2 frames for the client.
    pub bytes: Vec<u8>,
    /// Set when the connection must be closed once the bytes are written. No further call may follow.
    pub close: Option<CloseReason>,
    /// What the operator should see. At most a few for each connection.
    pub notices: Vec<String>,
}

/// A block that a client solved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SolvedBlock {
    /// Its height.
    pub height: u32,
    /// Its hash.
    pub hash: Hash,
    /// The whole block, as nodes take it.
    pub bytes: Vec<u8>,
}

/// A template that the client knows.
#[derive(Debug)]
struct Served {
    id: TemplateId,
    template: Arc<BlockTemplate>,
    requests: u32,
    /// When it goes, once its tip was left.
    retires_at: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Nothing came yet.
    Opening,
    /// Set up, but it has not said what it adds to the coinbase.
    Unconstrained,
    Serving(CoinbaseConstraints),
}

/// One client of a template provider.
#[derive(Debug)]
pub struct ProviderConnection {
    stage: Stage,
    setup_deadline: Duration,
    /// Whether transactions may be dropped for room: not where their fees are unknown.
    may_drop: bool,
    last_id: u64,
    /// Oldest first; at most [`MAX_SERVED`].
    served: VecDeque<Served>,
    submitted: VecDeque<Hash>,
    notices: u32,
    closed: bool,
}

impl ProviderConnection {
    /// A connection whose transport is up and that has said nothing yet. `may_drop` says whether room in the coinbase
    /// may be made by dropping transactions; where it may not, a template that has no room is not served.
    pub fn new(may_drop: bool, now: Now) -> Self {
        ProviderConnection {
            stage: Stage::Opening,
            setup_deadline: now.monotonic + SETUP_DEADLINE,
            may_drop,
            // The specification's own proposal: numbers grow over reconnections, too.
            last_id: u64::try_from(now.utc.as_micros()).unwrap_or(0),
            served: VecDeque::new(),
            submitted: VecDeque::new(),
            notices: 0,
            closed: false,
        }
    }

    /// The longest payload that the transport should accept now.
    pub fn max_payload(&self) -> usize {
        match self.stage {
            Stage::Opening => MAX_PAYLOAD_FROM_MINER,
            Stage::Unconstrained | Stage::Serving(_) => MAX_PAYLOAD_FROM_TEMPLATE_CLIENT,
        }
    }

    /// What the client adds to the coinbase, once it has said so.
    pub fn constraints(&self) -> Option<CoinbaseConstraints> {
        match self.stage {
            Stage::Serving(constraints) => Some(constraints),
            Stage::Opening | Stage::Unconstrained => None,
        }
    }

    /// Takes one frame of the client. `newest` is the newest template of the source.
    pub fn handle_frame(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        newest: Option<&Arc<BlockTemplate>>,
        now: Now,
        out: &mut ProviderOutput,
    ) {
        if self.closed {
            return;
        }
        let limit = self.max_payload();
        if payload.len() > limit {
            let what = format!("a frame of {} bytes came, and {limit} are accepted now", payload.len());
            return self.close(CloseReason::downstream(what), out);
        }
        match Message::decode(header, payload) {
            Ok(message) => self.handle_message(message, newest, now, out),
            Err(DecodeError::UnsupportedProtocol(protocol)) if matches!(self.stage, Stage::Opening) => {
                let what = format!("protocol {protocol} is none of SV2's");
                self.refuse_setup(0, codes::setup_connection::UNSUPPORTED_PROTOCOL, what, out);
            }
            Err(error) => self.close(CloseReason::downstream(error.to_string()), out),
        }
    }

    /// The source has a new template.
    pub fn handle_template(&mut self, template: &Arc<BlockTemplate>, now: Now, out: &mut ProviderOutput) {
        if let (false, Stage::Serving(constraints)) = (self.closed, self.stage) {
            self.serve(template, constraints, now, out);
        }
    }

    /// When [`ProviderConnection::handle_timeout`] is due, on the monotonic clock.
    pub fn next_timeout(&self) -> Duration {
        let setup = match self.stage {
            Stage::Opening | Stage::Unconstrained => self.setup_deadline,
            Stage::Serving(_) => Duration::MAX,
        };
        self.served.iter().filter_map(|served| served.retires_at).min().unwrap_or(Duration::MAX).min(setup)
    }

    /// Does what is due at `now`. Early and late calls do no harm.
    pub fn handle_timeout(&mut self, now: Now, out: &mut ProviderOutput) {
        self.served.retain(|served| served.retires_at.is_none_or(|at| at > now.monotonic));
        if !self.closed && self.constraints().is_none() && self.setup_deadline <= now.monotonic {
            let what = format!("it did not set itself up within {} seconds", SETUP_DEADLINE.as_secs());
            self.close(CloseReason::downstream(what), out);
        }
    }

    fn handle_message(
        &mut self,
        message: Message,
        newest: Option<&Arc<BlockTemplate>>,
        now: Now,
        out: &mut ProviderOutput,
    ) {
        match (self.stage, message) {
            (Stage::Opening, Message::SetupConnection(setup)) => self.set_up(&setup, out),
            (Stage::Opening, other) => self.out_of_order(&other, "before SetupConnection", out),
            (_, Message::SetupConnection(_)) => {
                self.close(CloseReason::downstream("a second SetupConnection came"), out);
            }
            (_, Message::RequestExtensions(request)) => refuse_extensions(request, out),
            (_, Message::CoinbaseOutputConstraints(constraints)) => {
                self.constrain(&constraints, newest, now, out);
            }
            (
                Stage::Unconstrained,
                other @ (Message::RequestTransactionData(_) | Message::SubmitSolution(_)),
            ) => {
                self.out_of_order(&other, "before CoinbaseOutputConstraints", out);
            }
            (_, Message::RequestTransactionData(request)) => self.bring_transactions(&request, out),
            (_, Message::SubmitSolution(solution)) => self.take_solution(&solution, out),
            // Of another protocol, or of a later version (SV2 3.4.1).
            (_, Message::Unknown(_)) => {}
            (_, other) => self.out_of_order(&other, "on a template distribution connection", out),
        }
    }

    fn set_up(&mut self, setup: &SetupConnection, out: &mut ProviderOutput) {
        use codes::setup_connection::*;
        if setup.protocol != Protocol::TemplateDistribution {
            let what = format!("it asks for {:?}, and this is template distribution", setup.protocol);
            return self.refuse_setup(0, UNSUPPORTED_PROTOCOL, what, out);
        }
        if !(setup.min_version..=setup.max_version).contains(&codes::PROTOCOL_VERSION) {
            let what = format!("it speaks versions {} to {}", setup.min_version, setup.max_version);
            return self.refuse_setup(0, PROTOCOL_VERSION_MISMATCH, what, out);
        }
        // Template distribution has no flags.
        if setup.flags != 0 {
            let what = format!("it requires features that nobody has: {:#x}", setup.flags);
            return self.refuse_setup(setup.flags, UNSUPPORTED_FEATURE_FLAGS, what, out);
        }
        self.stage = Stage::Unconstrained;
        send(SetupConnectionSuccess { used_version: codes::PROTOCOL_VERSION, flags: 0 }, out);
    }

    fn refuse_setup(&mut self, flags: u32, code: &str, what: String, out: &mut ProviderOutput) {
        send(SetupConnectionError { flags, error_code: code.to_owned() }, out);
        self.close(CloseReason::downstream(what), out);
    }

    fn constrain(
        &mut self,
        message: &CoinbaseOutputConstraints,
        newest: Option<&Arc<BlockTemplate>>,
        now: Now,
        out: &mut ProviderOutput,
    ) {
        let constraints = CoinbaseConstraints {
            max_additional_size: message.coinbase_output_max_additional_size,
            max_additional_sigops: message.coinbase_output_max_additional_sigops,
        };
        // Who repeats itself is not served the same again, at the cost of room for those that solutions come for.
        let is_new = self.constraints() != Some(constraints);
        if let (true, Some(newest)) = (is_new, newest) {
            self.serve(newest, constraints, now, out);
        }
        // What no template has room for is nobody's demand: whoever asks a source for room must not hear of it.
        if !self.closed {
            self.stage = Stage::Serving(constraints);
        }
    }

    fn serve(
        &mut self,
        template: &Arc<BlockTemplate>,
        constraints: CoinbaseConstraints,
        now: Now,
        out: &mut ProviderOutput,
    ) {
        let constrained = match constraints.apply(Arc::clone(template)) {
            Ok(constrained) => constrained,
            Err(error) => return self.close(CloseReason::downstream(error.to_string()), out),
        };
        if constrained.dropped > 0 && !self.may_drop {
            return;
        }
        let template = constrained.template;
        let is_new_tip = self.served.back().is_none_or(|last| !last.template.same_tip(&template));
        if is_new_tip {
            let at = now.monotonic + RETIRED_FOR;
            self.served.iter_mut().for_each(|served| served.retires_at = served.retires_at.or(Some(at)));
        }
        if self.served.len() == MAX_SERVED {
            self.served.pop_front();
        }
        self.last_id += 1;
        let id = TemplateId(self.last_id);
        let job = JobTemplate { id, ..JobTemplate::of_block_template(&template) };
        let (new_template, new_prev_hash) = job.to_messages(is_new_tip);
        send(new_template, out);
        if is_new_tip {
            send(new_prev_hash, out);
        }
        self.served.push_back(Served { id, template, requests: 0, retires_at: None });
    }

    fn bring_transactions(&mut self, request: &RequestTransactionData, out: &mut ProviderOutput) {
        let template_id = request.template_id;
        let refuse = |code: &str, out: &mut ProviderOutput| {
            send(RequestTransactionDataError { template_id, error_code: code.to_owned() }, out);
        };
        let Some(served) = self.served.iter_mut().find(|served| served.id == template_id) else {
            return refuse(request_transaction_data::TEMPLATE_ID_NOT_FOUND, out);
        };
        if served.retires_at.is_some() {
            return refuse(request_transaction_data::STALE_TEMPLATE_ID, out);
        }
        served.requests += 1;
        if served.requests > MAX_REQUESTS {
            let what = format!("it asks for the transactions of template {template_id} again and again");
            return self.close(CloseReason::downstream(what), out);
        }
        let transaction_list = served.template.transactions.iter().map(|one| one.raw.clone()).collect();
        send(RequestTransactionDataSuccess { template_id, excess_data: Vec::new(), transaction_list }, out);
    }

    fn take_solution(&mut self, solution: &SubmitSolution, out: &mut ProviderOutput) {
        let id = solution.template_id;
        let Some(served) = self.served.iter().find(|served| served.id == id) else {
            return self.tell(&format!("solved template {id}, which is unknown or long stale"), out);
        };
        let Ok(coinbase) = deserialize::<bitcoin::Transaction>(&solution.coinbase_tx) else {
            return self
                .close(CloseReason::downstream("the coinbase of its solution is no transaction"), out);
        };
        let template = &served.template;
        let root = merkle_root(coinbase.compute_txid().to_byte_array(), &template.merkle_path);
        let header =
            template.header(solution.version, &root, solution.header_timestamp, solution.header_nonce);
        let hash = sha256d(&header);
        if !template.network_target().is_met_by(&hash) {
            return self.tell(&format!("solved template {id} with a hash above its target"), out);
        }
        if self.submitted.contains(&hash) {
            return;
        }
        if self.submitted.len() == MAX_SUBMITTED {
            self.submitted.pop_front();
        }
        self.submitted.push_back(hash);
        let bytes = assemble(template, &solution.coinbase_tx, &header);
        out.blocks.push(SolvedBlock { height: template.height, hash, bytes });
    }

    fn out_of_order(&mut self, message: &Message, when: &str, out: &mut ProviderOutput) {
        self.close(CloseReason::downstream(format!("{} came {when}", message.name())), out);
    }

    fn close(&mut self, reason: CloseReason, out: &mut ProviderOutput) {
        self.closed = true;
        out.close = Some(reason);
    }

    fn tell(&mut self, what: &str, out: &mut ProviderOutput) {
        if self.notices < MAX_NOTICES {
            self.notices += 1;
            out.notices.push(format!("a client of the template provider {what}"));
        }
    }
}

/// The whole block; the coinbase as the client sent it, witness included.
fn assemble(template: &BlockTemplate, coinbase: &[u8], header: &[u8; 80]) -> Vec<u8> {
    let size: usize = template.transactions.iter().map(|transaction| transaction.raw.len()).sum();
    let mut block = Vec::with_capacity(80 + 5 + coinbase.len() + size);
    block.extend_from_slice(header);
    push_compact_size(&mut block, 1 + template.transactions.len());
    block.extend_from_slice(coinbase);
    for transaction in &template.transactions {
        block.extend_from_slice(&transaction.raw);
    }
    block
}

/// No extension is supported on these connections.
fn refuse_extensions(request: stratum::sv2::messages::RequestExtensions, out: &mut ProviderOutput) {
    let request_id = request.request_id;
    if request.requested_extensions.is_empty() {
        return send(RequestExtensionsSuccess { request_id, supported_extensions: Vec::new() }, out);
    }
    let unsupported_extensions = request.requested_extensions;
    send(RequestExtensionsError { request_id, unsupported_extensions, required_extensions: Vec::new() }, out);
}

fn send(message: impl Into<Message>, out: &mut ProviderOutput) {
    // Templates are bounded where they are read: at most 16,666 transactions, of four megabytes together.
    message.into().encode_frame(&mut out.bytes).expect("what we send fits its fields");
}
