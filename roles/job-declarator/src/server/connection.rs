//! One connection of a job declaration client as a state machine.
//!
//! The Noise transport is the driver's: plain frames come in and go out. This module never asks a node and never
//! waits for one: it says what is to be done, and the answer comes back as a call. A declaration that takes long
//! delays no other, nor any token.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use stratum::hash::Hash;
use stratum::sv2::codes::{self, declare_mining_job, job_declaration_flags as flags};
use stratum::sv2::frame::{
    MAX_PAYLOAD_FROM_DECLARING_CLIENT, MAX_PAYLOAD_FROM_MINER, MAX_PAYLOAD_WITH_TRANSACTIONS,
};
use stratum::sv2::messages::{
    AllocateMiningJobToken, AllocateMiningJobTokenSuccess, DeclareMiningJob, DeclareMiningJobError,
    DeclareMiningJobSuccess, MiningJobToken, Protocol, ProvideMissingTransactions,
    ProvideMissingTransactionsSuccess, PushSolution, RequestExtensionsError, RequestExtensionsSuccess,
    SetupConnection, SetupConnectionError, SetupConnectionSuccess,
};
use stratum::sv2::{DecodeError, FrameHeader, Message};
use stratum::{CloseReason, ConnectionId, Now, RequestId};
use template::RawTransaction;
use template::outputs::write_outputs;

use super::declaration::{Declaration, Stage, Standing};
use super::declared::{DeclaredJob, Refusal, check_payout};
use super::output::{DeclarationId, ServerAction, ServerOutput, Verdict};
use super::tokens::{Mode, NoToken, Owner, TokenBytes, account_of};
use super::{JobDeclarationServer, PoolTip};

/// Declarations of one connection that are on their way at a time: the templates of a few tips in a row. One more
/// ends the oldest, which the newer ones have made moot.
pub const MAX_DECLARATIONS: usize = 4;

/// Declared jobs whose solutions are still submitted, besides the last (SV2 6.4.9 leaves their number open). Each may
/// hold the transactions of a block.
pub const MAX_RECENT_JOBS: usize = 4;

/// Tokens that a connection may ask for at once, after a while of silence: a new client fills its stock, and a few
/// tips come in a row.
pub const ALLOCATION_BURST: u32 = 10;

/// One more token may be asked for after this time. A client needs one for each template.
pub const ALLOCATION_INTERVAL: Duration = Duration::from_secs(2);

/// Requests for a token that wait until they may be answered. A client that has more is no client, and is closed.
pub const MAX_WAITING_ALLOCATIONS: usize = 16;

/// A connection that has not set itself up in this time is closed.
pub const SETUP_DEADLINE: Duration = Duration::from_secs(20);

/// Looking transactions up takes milliseconds; a view of the mempool that takes this long is stuck.
pub const LOOK_UP_DEADLINE: Duration = Duration::from_secs(30);

/// The client has this long to bring transactions: four megabytes over a slow line.
pub const MISSING_DEADLINE: Duration = Duration::from_secs(30);

/// How long a job that is one block ahead of our node waits for it. Blocks travel the network in a few seconds.
pub const TIP_DEADLINE: Duration = Duration::from_secs(5);

/// A node that takes this long to judge a block is stuck.
pub const VALIDATION_DEADLINE: Duration = Duration::from_secs(60);

/// Transactions may still be on their way this long after they were asked for: frames are not refused for their
/// length until then.
const LARGE_FRAMES_FOR: Duration = Duration::from_secs(120);

/// Blocks that were submitted and are not submitted again when a client repeats itself. Nobody finds as many.
const MAX_SUBMITTED: usize = 16;

/// Solutions that solve nothing, or repeat another, which a connection may push at once: each costs a look at every
/// recent job, up to a few hundred thousand bytes to hash. A client whose tip is behind pushes a handful. One that
/// pushes more is closed.
pub const VAIN_SOLUTIONS: u32 = 64;

/// One more such solution may be pushed after this time.
pub const VAIN_SOLUTION_INTERVAL: Duration = Duration::from_millis(100);

/// The longest details that a refusal carries, in bytes.
const MAX_DETAILS: usize = 1024;

/// Notices of one connection; further ones are not told.
const MAX_NOTICES: u32 = 20;

/// One job declaration connection.
#[derive(Debug)]
pub struct ServerConnection {
    id: ConnectionId,
    /// Set by SetupConnection.
    mode: Option<Mode>,
    setup_deadline: Duration,
    next_declaration: u64,
    /// Oldest first; at most [`MAX_DECLARATIONS`].
    declarations: VecDeque<Declaration>,
    /// Newest last; at most [`MAX_RECENT_JOBS`].
    recent: VecDeque<Arc<DeclaredJob>>,
    submitted: VecDeque<Hash>,
    /// Requests for a token, with the account.
    waiting: VecDeque<(RequestId, Arc<str>)>,
    /// When the allowance of tokens is whole again.
    allowance_whole_at: Duration,
    /// When the allowance of solutions that solve nothing is whole again.
    vain_solutions_whole_at: Duration,
    large_frames_until: Duration,
    notices: u32,
    closed: bool,
}

impl ServerConnection {
    /// A connection whose transport is up and that has said nothing yet.
    pub fn new(id: ConnectionId, now: Now) -> Self {
        ServerConnection {
            id,
            mode: None,
            setup_deadline: now.monotonic + SETUP_DEADLINE,
            next_declaration: 0,
            declarations: VecDeque::new(),
            recent: VecDeque::new(),
            submitted: VecDeque::new(),
            waiting: VecDeque::new(),
            allowance_whole_at: now.monotonic,
            vain_solutions_whole_at: now.monotonic,
            large_frames_until: Duration::ZERO,
            notices: 0,
            closed: false,
        }
    }

    /// The longest payload that the transport should accept now: long ones only where transactions were asked for.
    pub fn max_payload(&self, now: Now) -> usize {
        match self.mode {
            Some(Mode::FullTemplate) if now.monotonic < self.large_frames_until => {
                MAX_PAYLOAD_WITH_TRANSACTIONS
            }
            Some(Mode::FullTemplate) => MAX_PAYLOAD_FROM_DECLARING_CLIENT,
            Some(Mode::CoinbaseOnly) | None => MAX_PAYLOAD_FROM_MINER,
        }
    }

    /// How it declares jobs; `None` before SetupConnection.
    pub fn mode(&self) -> Option<Mode> {
        self.mode
    }

    /// Takes one frame of the client. `fresh` brings random bytes for tokens.
    pub fn handle_frame(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        now: Now,
        server: &mut JobDeclarationServer,
        fresh: &mut dyn FnMut() -> TokenBytes,
        out: &mut ServerOutput,
    ) {
        if self.closed {
            return;
        }
        let limit = self.max_payload(now);
        if payload.len() > limit {
            let what = format!("a frame of {} bytes came, and {limit} are accepted now", payload.len());
            return self.close(CloseReason::downstream(what), out);
        }
        match Message::decode(header, payload) {
            Ok(message) => self.handle_message(message, now, server, fresh, out),
            Err(DecodeError::UnsupportedProtocol(protocol)) if self.mode.is_none() => {
                let what = format!("protocol {protocol} is none of SV2's");
                self.refuse_setup(0, codes::setup_connection::UNSUPPORTED_PROTOCOL, what, out);
            }
            Err(error) => self.close(CloseReason::downstream(error.to_string()), out),
        }
    }

    /// Our view of the mempool answers: for each transaction of a [`ServerAction::LookUp`], in its order, the
    /// transaction if it is known.
    pub fn handle_looked_up(
        &mut self,
        declaration: DeclarationId,
        found: Vec<Option<RawTransaction>>,
        now: Now,
        server: &mut JobDeclarationServer,
        out: &mut ServerOutput,
    ) {
        let Some(place) = self.place(declaration, |stage| matches!(stage, Stage::LookingUp)) else { return };
        let waiting = &mut self.declarations[place];
        assert_eq!(found.len(), waiting.wtxids.len(), "each transaction is answered for");
        let missing = |(place, found): (usize, &Option<RawTransaction>)| {
            // A list is never longer than a block's, so that places fit.
            found.is_none().then_some(place as u16)
        };
        let places: Vec<u16> = found.iter().enumerate().filter_map(missing).collect();
        if places.is_empty() {
            let transactions = found.into_iter().flatten().collect();
            return self.complete(place, transactions, now, server, out);
        }
        server.tally.asked_for_transactions += 1;
        self.large_frames_until = now.monotonic + LARGE_FRAMES_FOR;
        waiting.deadline = now.monotonic + MISSING_DEADLINE;
        let (request_id, unknown_tx_position_list) = (waiting.request_id, places.clone());
        waiting.stage = Stage::Missing { found, places };
        send(ProvideMissingTransactions { request_id, unknown_tx_position_list }, out);
    }

    /// Our node's verdict over a [`ServerAction::Validate`].
    pub fn handle_validated(
        &mut self,
        declaration: DeclarationId,
        verdict: Verdict,
        now: Now,
        server: &mut JobDeclarationServer,
        fresh: &mut dyn FnMut() -> TokenBytes,
        out: &mut ServerOutput,
    ) {
        let is_validating = |stage: &Stage| matches!(stage, Stage::Validating(_));
        let Some(place) = self.place(declaration, is_validating) else { return };
        let waiting = self.declarations.remove(place).expect("it was just found");
        let Declaration { stage: Stage::Validating(job), token, request_id, .. } = waiting else {
            unreachable!("it was found for this stage")
        };
        match judge(&job, verdict, server.tip) {
            Ok(()) => self.acknowledge(request_id, &token, job, now, server, fresh, out),
            Err(refusal) => refuse(request_id, &token, &refusal, now, server, out),
        }
    }

    /// The server's tip has changed: declarations for it go on, and those of older tips end.
    pub fn handle_tip(&mut self, now: Now, server: &mut JobDeclarationServer, out: &mut ServerOutput) {
        if self.closed {
            return;
        }
        let ids: Vec<DeclarationId> = self.declarations.iter().map(|waiting| waiting.id).collect();
        for id in ids {
            let Some(place) = self.place(id, |_| true) else { continue };
            let waiting = &mut self.declarations[place];
            match (waiting.standing(server.tip), &mut waiting.stage) {
                (Standing::Stale, _) => {
                    let refusal = stale(server.tip);
                    self.refuse_at(place, &refusal, now, server, out);
                }
                (Standing::Current, Stage::AwaitingTip(transactions)) => {
                    let transactions = std::mem::take(transactions);
                    self.complete(place, transactions, now, server, out);
                }
                (Standing::Current | Standing::Ahead, _) => (),
            }
        }
    }

    /// When [`ServerConnection::handle_timeout`] is due, on the monotonic clock.
    pub fn next_timeout(&self) -> Duration {
        let setup = if self.mode.is_none() { self.setup_deadline } else { Duration::MAX };
        let waiting = if self.waiting.is_empty() { Duration::MAX } else { self.next_allowance() };
        let declarations = self.declarations.iter().map(|waiting| waiting.deadline);
        declarations.min().unwrap_or(Duration::MAX).min(setup).min(waiting)
    }

    /// Does what is due at `now`. Early and late calls do no harm.
    pub fn handle_timeout(
        &mut self,
        now: Now,
        server: &mut JobDeclarationServer,
        fresh: &mut dyn FnMut() -> TokenBytes,
        out: &mut ServerOutput,
    ) {
        if self.closed {
            return;
        }
        if self.mode.is_none() && self.setup_deadline <= now.monotonic {
            let what = format!("no SetupConnection came within {} seconds", SETUP_DEADLINE.as_secs());
            return self.close(CloseReason::downstream(what), out);
        }
        self.allocate_waiting(now, server, fresh, out);
        while let Some(place) = self.declarations.iter().position(|one| one.deadline <= now.monotonic) {
            let refusal = match &self.declarations[place].stage {
                Stage::LookingUp => internal("our view of the mempool did not answer"),
                Stage::Missing { .. } => {
                    Refusal::new(declare_mining_job::MISSING_TXS, "the transactions did not come in time")
                }
                Stage::AwaitingTip(_) => stale(server.tip),
                Stage::Validating(_) => internal("our node did not answer"),
            };
            self.refuse_at(place, &refusal, now, server, out);
        }
    }

    /// The transport is gone, whoever ended it. The last call. Jobs that were found good keep their tokens.
    pub fn handle_closed(&mut self, server: &mut JobDeclarationServer, out: &mut ServerOutput) {
        self.closed = true;
        for waiting in self.declarations.drain(..) {
            server.tally.abandoned += 1;
            out.actions.push(ServerAction::Abandon { declaration: waiting.id });
        }
        self.waiting.clear();
        self.recent.clear();
        server.tokens.close(self.id);
    }

    fn handle_message(
        &mut self,
        message: Message,
        now: Now,
        server: &mut JobDeclarationServer,
        fresh: &mut dyn FnMut() -> TokenBytes,
        out: &mut ServerOutput,
    ) {
        let Some(mode) = self.mode else {
            return match message {
                Message::SetupConnection(setup) => self.set_up(&setup, server, out),
                other => {
                    let what = format!("{} came before SetupConnection", other.name());
                    self.close(CloseReason::downstream(what), out);
                }
            };
        };
        match message {
            Message::AllocateMiningJobToken(request) => self.allocate(&request, now, server, fresh, out),
            Message::DeclareMiningJob(declaration) => self.declare(declaration, now, server, out),
            Message::ProvideMissingTransactionsSuccess(message) => {
                self.take_transactions(&message, now, server, out);
            }
            Message::PushSolution(solution) if mode == Mode::FullTemplate => {
                self.push(&solution, now, server, out);
            }
            Message::PushSolution(_) => {
                self.tell("pushed a solution of a job that it never showed us", out);
            }
            Message::RequestExtensions(request) => {
                // None is supported on these connections.
                let request_id = request.request_id;
                if request.requested_extensions.is_empty() {
                    send(RequestExtensionsSuccess { request_id, supported_extensions: Vec::new() }, out);
                } else {
                    let unsupported_extensions = request.requested_extensions;
                    let required_extensions = Vec::new();
                    send(
                        RequestExtensionsError { request_id, unsupported_extensions, required_extensions },
                        out,
                    );
                }
            }
            Message::Unknown(_) => (),
            other => {
                let what = format!("{} is not for a job declaration server, or not now", other.name());
                self.close(CloseReason::downstream(what), out);
            }
        }
    }

    fn set_up(&mut self, setup: &SetupConnection, server: &JobDeclarationServer, out: &mut ServerOutput) {
        use codes::setup_connection as refusal;
        let unsupported = setup.flags & !flags::ALL;
        let versions = setup.min_version..=setup.max_version;
        let reveals = setup.flags & flags::DECLARE_TX_DATA != 0;
        if setup.protocol != Protocol::JobDeclaration {
            let what = "asks for another protocol than job declaration";
            self.refuse_setup(0, refusal::UNSUPPORTED_PROTOCOL, what, out);
        } else if !versions.contains(&codes::PROTOCOL_VERSION) {
            let what = format!("speaks versions {} to {}", setup.min_version, setup.max_version);
            self.refuse_setup(0, refusal::PROTOCOL_VERSION_MISMATCH, what, out);
        } else if unsupported != 0 {
            let what = format!("requires flags {unsupported:#x}, which are not supported");
            self.refuse_setup(unsupported, refusal::UNSUPPORTED_FEATURE_FLAGS, what, out);
        } else if server.requires_transactions && !reveals {
            let what = "does not reveal its transactions, and this pool wants to see them";
            self.refuse_setup(flags::DECLARE_TX_DATA, refusal::MISSING_DECLARE_TX_DATA_FLAG, what, out);
        } else {
            self.mode = Some(if reveals { Mode::FullTemplate } else { Mode::CoinbaseOnly });
            // No flags are defined for this answer (SV2 6.4.1).
            send(SetupConnectionSuccess { used_version: codes::PROTOCOL_VERSION, flags: 0 }, out);
        }
    }

    fn allocate(
        &mut self,
        request: &AllocateMiningJobToken,
        now: Now,
        server: &mut JobDeclarationServer,
        fresh: &mut dyn FnMut() -> TokenBytes,
        out: &mut ServerOutput,
    ) {
        if self.waiting.len() >= MAX_WAITING_ALLOCATIONS {
            let what =
                format!("asks for more than {MAX_WAITING_ALLOCATIONS} tokens that it may not have yet");
            return self.close(CloseReason::downstream(what), out);
        }
        self.waiting.push_back((request.request_id, account_of(&request.user_identifier).into()));
        self.allocate_waiting(now, server, fresh, out);
    }

    /// Answers the requests that the allowance covers. There is no message to refuse one, so the others wait.
    fn allocate_waiting(
        &mut self,
        now: Now,
        server: &mut JobDeclarationServer,
        fresh: &mut dyn FnMut() -> TokenBytes,
        out: &mut ServerOutput,
    ) {
        let Some(mode) = self.mode else { return };
        while self.next_allowance() <= now.monotonic {
            let Some((request_id, account)) = self.waiting.pop_front() else { return };
            let owner = Owner { connection: self.id, account };
            let outputs = Arc::clone(&server.outputs);
            match server.tokens.allocate(owner, mode, Arc::clone(&outputs), fresh, now) {
                Ok(mining_job_token) => {
                    self.allowance_whole_at =
                        self.allowance_whole_at.max(now.monotonic) + ALLOCATION_INTERVAL;
                    let coinbase_outputs = write_outputs(&outputs);
                    send(
                        AllocateMiningJobTokenSuccess { request_id, mining_job_token, coinbase_outputs },
                        out,
                    );
                }
                Err(error) => return self.close(CloseReason::ours(error.to_string()), out),
            }
        }
    }

    /// When one more token may be given out.
    fn next_allowance(&self) -> Duration {
        self.allowance_whole_at.saturating_sub(ALLOCATION_INTERVAL * (ALLOCATION_BURST - 1))
    }

    fn declare(
        &mut self,
        message: DeclareMiningJob,
        now: Now,
        server: &mut JobDeclarationServer,
        out: &mut ServerOutput,
    ) {
        server.tally.declared += 1;
        let allocation = match server.tokens.declare(&message.mining_job_token, self.id, now) {
            Ok(allocation) => allocation,
            Err(_) => {
                let details = "the token is not yours, was used, has expired, or is for Coinbase-only mode";
                let refusal = Refusal::new(declare_mining_job::INVALID_MINING_JOB_TOKEN, details);
                // The token is not this declaration's, so it is left as it is.
                server.tally.refused += 1;
                return send_refusal(message.request_id, &refusal, out);
            }
        };
        let id = DeclarationId(self.next_declaration);
        self.next_declaration += 1;
        let deadline = now.monotonic + LOOK_UP_DEADLINE;
        let declaration = match Declaration::read(id, message, allocation.outputs, deadline) {
            Ok(declaration) => declaration,
            Err((request_id, token, refusal)) => {
                return refuse(request_id, &token, &refusal, now, server, out);
            }
        };
        if declaration.standing(server.tip) == Standing::Stale {
            let refusal = stale(server.tip);
            return refuse(declaration.request_id, &declaration.token, &refusal, now, server, out);
        }
        if self.declarations.len() >= MAX_DECLARATIONS {
            self.refuse_at(0, &internal("newer declarations have taken its place"), now, server, out);
        }
        let wtxids = Arc::clone(&declaration.wtxids);
        self.declarations.push_back(declaration);
        out.actions.push(ServerAction::LookUp { declaration: id, wtxids });
    }

    /// The transactions that were asked for. What comes too late, or was never asked for, is ignored.
    fn take_transactions(
        &mut self,
        message: &ProvideMissingTransactionsSuccess,
        now: Now,
        server: &mut JobDeclarationServer,
        out: &mut ServerOutput,
    ) {
        let is_for = |waiting: &Declaration| {
            waiting.request_id == message.request_id && matches!(waiting.stage, Stage::Missing { .. })
        };
        let Some(place) = self.declarations.iter().position(is_for) else {
            return self.tell("brought transactions that nobody waits for", out);
        };
        let waiting = &mut self.declarations[place];
        let Stage::Missing { found, places } = std::mem::replace(&mut waiting.stage, Stage::LookingUp) else {
            unreachable!("it was found for this stage")
        };
        match Declaration::complete(found, &places, &waiting.wtxids, &message.transaction_list) {
            Ok(transactions) => self.complete(place, transactions, now, server, out),
            Err(refusal) => self.refuse_at(place, &refusal, now, server, out),
        }
    }

    /// All transactions are here: the job goes to our node, once it has the tip.
    fn complete(
        &mut self,
        place: usize,
        transactions: Vec<RawTransaction>,
        now: Now,
        server: &mut JobDeclarationServer,
        out: &mut ServerOutput,
    ) {
        let waiting = &mut self.declarations[place];
        let tip = match (waiting.standing(server.tip), server.tip) {
            (Standing::Current, Some(tip)) => tip,
            (Standing::Ahead, _) => {
                waiting.deadline = now.monotonic + TIP_DEADLINE;
                waiting.stage = Stage::AwaitingTip(transactions);
                return;
            }
            (Standing::Current | Standing::Stale, tip) => {
                return self.refuse_at(place, &stale(tip), now, server, out);
            }
        };
        let payout = check_payout(&waiting.coinbase, &waiting.pool_outputs, tip.subsidy)
            .map_err(|details| Refusal::new(declare_mining_job::INVALID_COINBASE_TX, details));
        match payout.and_then(|_| waiting.job(transactions, tip)) {
            Ok(job) => {
                let (job, declaration) = (Arc::new(job), waiting.id);
                waiting.deadline = now.monotonic + VALIDATION_DEADLINE;
                waiting.stage = Stage::Validating(Arc::clone(&job));
                out.actions.push(ServerAction::Validate { declaration, job });
            }
            Err(refusal) => self.refuse_at(place, &refusal, now, server, out),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what a declaration is made of, and what every call has")]
    fn acknowledge(
        &mut self,
        request_id: RequestId,
        token: &MiningJobToken,
        job: Arc<DeclaredJob>,
        now: Now,
        server: &mut JobDeclarationServer,
        fresh: &mut dyn FnMut() -> TokenBytes,
        out: &mut ServerOutput,
    ) {
        let fresh_token = server.tokens.finish(token, Some(Arc::clone(&job)), fresh, now);
        let refusal = match fresh_token {
            Ok(Some(new_mining_job_token)) => {
                server.tally.acknowledged += 1;
                if self.recent.len() == MAX_RECENT_JOBS {
                    self.recent.pop_front();
                }
                self.recent.push_back(job);
                return send(DeclareMiningJobSuccess { request_id, new_mining_job_token }, out);
            }
            // It expired while it was being looked at.
            Ok(None) => Refusal::new(declare_mining_job::INVALID_MINING_JOB_TOKEN, "the token has expired"),
            Err(error @ (NoToken::Full | NoToken::NotRandom)) => internal(&error.to_string()),
        };
        server.tally.refused += 1;
        send_refusal(request_id, &refusal, out);
    }

    /// A solution is for the newest job that it solves.
    fn push(
        &mut self,
        solution: &PushSolution,
        now: Now,
        server: &mut JobDeclarationServer,
        out: &mut ServerOutput,
    ) {
        let Some(block) = self.recent.iter().rev().find_map(|job| job.pushed(solution)) else {
            self.tell("pushed a solution that solves none of its jobs", out);
            return self.count_vain_solution(now, out);
        };
        if self.submitted.contains(&block.hash) {
            return self.count_vain_solution(now, out);
        }
        if self.submitted.len() == MAX_SUBMITTED {
            self.submitted.pop_front();
        }
        self.submitted.push_back(block.hash);
        server.tally.solutions_pushed += 1;
        out.actions.push(ServerAction::Submit(block));
    }

    /// Closes a connection that pushes one thing after another that is no new block: the others wait meanwhile.
    fn count_vain_solution(&mut self, now: Now, out: &mut ServerOutput) {
        self.vain_solutions_whole_at =
            self.vain_solutions_whole_at.max(now.monotonic) + VAIN_SOLUTION_INTERVAL;
        if self.vain_solutions_whole_at > now.monotonic + VAIN_SOLUTION_INTERVAL * VAIN_SOLUTIONS {
            let what =
                "pushes one solution after another that solves none of its jobs, or that it pushed before";
            self.close(CloseReason::downstream(what), out);
        }
    }

    fn place(&self, id: DeclarationId, is_at: impl Fn(&Stage) -> bool) -> Option<usize> {
        self.declarations.iter().position(|waiting| waiting.id == id && is_at(&waiting.stage))
    }

    /// Ends a declaration with a refusal.
    fn refuse_at(
        &mut self,
        place: usize,
        refusal: &Refusal,
        now: Now,
        server: &mut JobDeclarationServer,
        out: &mut ServerOutput,
    ) {
        let Some(waiting) = self.declarations.remove(place) else { return };
        if matches!(waiting.stage, Stage::LookingUp | Stage::Validating(_)) {
            out.actions.push(ServerAction::Abandon { declaration: waiting.id });
        }
        refuse(waiting.request_id, &waiting.token, refusal, now, server, out);
    }

    fn refuse_setup(&mut self, flags: u32, code: &str, what: impl Into<String>, out: &mut ServerOutput) {
        send(SetupConnectionError { flags, error_code: code.to_owned() }, out);
        self.close(CloseReason::downstream(what), out);
    }

    fn close(&mut self, reason: CloseReason, out: &mut ServerOutput) {
        self.closed = true;
        out.close = Some(reason);
    }

    fn tell(&mut self, what: &str, out: &mut ServerOutput) {
        if self.notices < MAX_NOTICES {
            self.notices += 1;
            out.notices.push(format!("the job declaration client {what}"));
        }
    }
}

/// Whether a job that our node has judged is acknowledged.
fn judge(job: &DeclaredJob, verdict: Verdict, tip: Option<PoolTip>) -> Result<(), Refusal> {
    let revenue = match verdict {
        Verdict::Valid { revenue } => revenue,
        Verdict::StaleTip => return Err(stale(tip)),
        Verdict::Invalid(reason) => return Err(Refusal::new(declare_mining_job::INVALID_JOB, reason)),
        Verdict::Unknown(reason) => return Err(internal(&reason)),
    };
    if tip.is_none_or(|tip| tip.previous_hash != job.tip.previous_hash) {
        return Err(stale(tip));
    }
    let value = job.coinbase.value();
    match revenue {
        Some(revenue) if value != revenue => {
            let details = format!("the coinbase pays {value} satoshis where {revenue} can be paid");
            Err(Refusal::new(declare_mining_job::INVALID_COINBASE_TX, details))
        }
        _ => Ok(()),
    }
}

fn stale(tip: Option<PoolTip>) -> Refusal {
    let details = match tip {
        Some(tip) => format!("our node looks for block {}", tip.height),
        None => "our node has no chain tip yet".to_owned(),
    };
    Refusal::new(declare_mining_job::STALE_CHAIN_TIP, details)
}

fn internal(details: &str) -> Refusal {
    Refusal::new(declare_mining_job::INTERNAL_ERROR, details)
}

/// Ends a declaration whose token was used.
fn refuse(
    request_id: RequestId,
    token: &MiningJobToken,
    refusal: &Refusal,
    now: Now,
    server: &mut JobDeclarationServer,
    out: &mut ServerOutput,
) {
    server.tally.refused += 1;
    let nothing = server.tokens.finish(token, None, &mut || [0; 16], now);
    debug_assert_eq!(nothing, Ok(None), "no token comes of a refusal");
    send_refusal(request_id, refusal, out);
}

fn send_refusal(request_id: RequestId, refusal: &Refusal, out: &mut ServerOutput) {
    let details = &refusal.details[..refusal.details.floor_char_boundary(MAX_DETAILS)];
    let (error_code, error_details) = (refusal.code.clone(), details.as_bytes().to_vec());
    send(DeclareMiningJobError { request_id, error_code, error_details }, out);
}

fn send(message: impl Into<Message>, out: &mut ServerOutput) {
    let message: Message = message.into();
    message.encode_frame(&mut out.bytes).expect("what a server says fits its fields");
}
