//! The miner's side of job declaration: templates become custom jobs, and shares wait until the pool has taken them.
//!
//! A job goes to the miners as soon as there is a template, a token and a mining channel; declaring it and having
//! the pool take it go on meanwhile (SV2 6.3, optimistic mining). Its shares wait here, and are sent only when the
//! pool has a number for it.
//!
//! The client owns the conversation with one job declaration server. The mining connection to the pool belongs to
//! others: what must be said there goes out, and what is answered there comes in. It survives redials of both. It
//! never judges a share, never chooses transactions, and never says where to go in trouble: that is the ladder's.
//!
//! - [`output`]: what it hands back.
//! - `link`: the server's messages.
//! - `stock`: tokens kept ahead.
//! - `job`: one custom job.

mod job;
mod link;
pub mod output;
mod stock;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use stratum::sv2::Message;
use stratum::sv2::codes::set_custom_mining_job;
use stratum::sv2::messages::{
    MiningJobToken, PushSolution, SetCustomMiningJobError, SetCustomMiningJobSuccess,
};
use stratum::{ChannelId, Now, RequestId, TemplateId, UpstreamJobId};
use template::{CoinbaseConstraints, CoinbaseParts, JobTemplate, RawTransaction};

use crate::server::Mode;
use crate::text::quoted;

use job::{Job, Stage};
use link::Link;
pub use output::{
    ClientJob, ClientOutput, ClientTally, CustomJobId, Dropped, HeldDrop, NodeSolution, Released, Trouble,
};
pub use stock::{STOCK, TOKEN_DEADLINE};
use stock::{Stocked, TokenStock};

/// Jobs of one tip that shares may still be for: miners work on the newest one or two. The oldest retires when one
/// more comes.
pub const MAX_JOBS: usize = 8;

/// Shares that wait for their jobs to be taken. At ten a second for the half minute that a slow server takes these
/// are plenty; a newer one is dropped.
pub const MAX_HELD: usize = 4096;

/// Solutions of one job that wait until the server has taken it. The first is the one that counts.
pub const MAX_PUSHES: usize = 4;

/// A server that does not answer a declaration in this time is in trouble: its node may have to look at a whole block.
pub const DECLARATION_DEADLINE: Duration = Duration::from_secs(30);

/// A pool that does not answer a `SetCustomMiningJob` in this time is in trouble.
pub const CUSTOM_JOB_DEADLINE: Duration = Duration::from_secs(15);

/// How often a job is started anew when the other side lacks our tip, or our token, before that is trouble.
pub const MAX_TRIES: u32 = 5;

/// The wait before that, doubled each time.
pub const FIRST_RETRY: Duration = Duration::from_millis(500);

/// Refused shares in a row, of a job that the pool had taken, that are trouble. One or two can be an accident of
/// timing.
pub const REFUSALS_IN_A_ROW: u32 = 10;

/// What a client must be told. Never changes while the process runs.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Who we are to the pool, as on the mining connection.
    pub user_identifier: String,
    /// Whether transactions are shown.
    pub mode: Mode,
    /// What our coinbases carry beside height and extranonce; empty for nothing.
    pub tag: Vec<u8>,
    /// Who made this program (SV2 `SetupConnection.vendor`).
    pub vendor: String,
    /// What it is.
    pub hardware_version: String,
    /// Its version.
    pub firmware: String,
}

/// The extended channel on the mining connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelTerms {
    /// As the pool numbers it.
    pub channel_id: ChannelId,
    /// The pool's part of the extranonce.
    pub extranonce_prefix: Vec<u8>,
    /// Bytes after it that we roll.
    pub extranonce_size: usize,
}

/// What a miner rolled to find a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundSolution {
    /// The bytes after the pool's prefix, as many as the channel has.
    pub extranonce: Vec<u8>,
    /// The header's version.
    pub version: u32,
    /// The header's time.
    pub ntime: u32,
    /// The header's nonce.
    pub nonce: u32,
}

/// The job declaration client for one pool. `S` is a share, which is kept and given back as it came.
#[derive(Debug)]
pub struct Client<S> {
    config: ClientConfig,
    link: Link,
    /// Host and port that the connection leads to, or the last one led to.
    endpoint: (String, u16),
    stock: TokenStock,
    channel: Option<ChannelTerms>,
    /// The template to mine on.
    newest: Option<Arc<JobTemplate>>,
    /// Transactions of the templates that live jobs are made of, and of the newest.
    transactions: BTreeMap<TemplateId, Arc<[RawTransaction]>>,
    /// Jobs of the present tip, oldest first; at most [`MAX_JOBS`].
    jobs: VecDeque<Job>,
    /// Jobs that are over, but for a block that was on its way and may still win; at most [`MAX_JOBS`].
    past: VecDeque<Job>,
    /// Shares of jobs that are not taken yet, oldest first; at most [`MAX_HELD`].
    held: VecDeque<(CustomJobId, S)>,
    next_job: CustomJobId,
    next_request: RequestId,
    /// The most room that any token asked for.
    constraints: CoinbaseConstraints,
    /// Whether the next job is the first of its tip or channel.
    clean: bool,
    tally: ClientTally,
}

impl<S> Client<S> {
    /// A client that is not connected. `first` is the number of its first job; a client that takes another's place
    /// goes on where that one ended.
    pub fn new(config: ClientConfig, first: CustomJobId) -> Self {
        Client {
            config,
            link: Link::Away,
            endpoint: (String::new(), 0),
            stock: TokenStock::default(),
            channel: None,
            newest: None,
            transactions: BTreeMap::new(),
            jobs: VecDeque::new(),
            past: VecDeque::new(),
            held: VecDeque::new(),
            next_job: first,
            next_request: RequestId(1),
            constraints: CoinbaseConstraints::default(),
            clean: true,
            tally: ClientTally::default(),
        }
    }

    /// What it was made from.
    pub fn config(&self) -> &ClientConfig {
        &self.config
    }

    /// What became of all jobs.
    pub fn tally(&self) -> ClientTally {
        self.tally
    }

    /// The number that the next job will have.
    pub fn next_job(&self) -> CustomJobId {
        self.next_job
    }

    /// How many shares wait.
    pub fn held_count(&self) -> usize {
        self.held.len()
    }

    /// Whether a new template would find all that it needs: the server, the channel, and a token.
    pub fn is_ready(&self) -> bool {
        matches!(self.link, Link::Ready) && self.channel.is_some() && !self.stock.is_empty()
    }

    /// Whether the conversation with the server is set up.
    pub fn is_connected(&self) -> bool {
        self.link.is_ready()
    }

    /// Whether there is a token for the next job.
    pub fn has_token(&self) -> bool {
        !self.stock.is_empty()
    }

    /// The newest job that the pool has taken, for the ladder: a source is up when it has one on the present tip.
    pub fn acknowledged(&self) -> Option<CustomJobId> {
        let taken = |job: &&Job| matches!(job.stage, Stage::Acknowledged(_));
        self.jobs.iter().rfind(taken).map(|job| job.id)
    }

    /// A template came. One of another tip voids the jobs of the tip before, and their waiting shares.
    pub fn handle_template(&mut self, template: JobTemplate, now: Now, out: &mut ClientOutput<S>) {
        let is_new_tip =
            self.newest.as_ref().is_none_or(|newest| newest.previous_hash != template.previous_hash);
        if is_new_tip {
            self.retire_all(HeldDrop::TipChanged, out);
            self.clean = true;
        }
        self.newest = Some(Arc::new(template));
        self.forget_transactions();
        self.advance(now, out);
    }

    /// The transactions of a template came, in block order. Only for Full-Template mode; those of a template that is
    /// neither the newest nor that of a live job are let go.
    pub fn handle_transactions(
        &mut self,
        template: TemplateId,
        transactions: Arc<[RawTransaction]>,
        now: Now,
        out: &mut ClientOutput<S>,
    ) {
        if self.config.mode == Mode::FullTemplate && self.is_known(template) {
            self.transactions.insert(template, transactions);
            self.advance(now, out);
        }
    }

    /// The mining channel is open, or has another prefix. What was mined for the one before is void.
    pub fn handle_channel(&mut self, channel: ChannelTerms, now: Now, out: &mut ClientOutput<S>) {
        if self.channel.as_ref() == Some(&channel) {
            return;
        }
        self.retire_all(HeldDrop::ChannelChanged, out);
        self.clean = true;
        self.channel = Some(channel);
        self.advance(now, out);
    }

    /// The mining channel is gone, and with it everything that the pool had taken.
    pub fn handle_channel_closed(&mut self, out: &mut ClientOutput<S>) {
        self.channel = None;
        self.retire_all(HeldDrop::ChannelChanged, out);
        self.clean = true;
    }

    /// The pool has taken a custom job: its shares leave.
    pub fn handle_custom_job_success(
        &mut self,
        message: &SetCustomMiningJobSuccess,
        now: Now,
        out: &mut ClientOutput<S>,
    ) {
        let Some(place) = self.setting(message.channel_id, message.request_id) else { return };
        let taken = UpstreamJobId(message.job_id.0);
        let job = &mut self.jobs[place];
        job.enter(Stage::Acknowledged(taken), now.monotonic);
        self.tally.acknowledged += 1;
        let id = job.id;
        let (of_job, others) = std::mem::take(&mut self.held).into_iter().partition(|(held, _)| *held == id);
        self.held = others;
        let of_job: VecDeque<(CustomJobId, S)> = of_job;
        self.tally.released += of_job.len() as u64;
        out.released.extend(of_job.into_iter().map(|(_, share)| Released { job: taken, share }));
    }

    /// The pool refuses a custom job.
    pub fn handle_custom_job_error(
        &mut self,
        message: &SetCustomMiningJobError,
        now: Now,
        out: &mut ClientOutput<S>,
    ) {
        let Some(place) = self.setting(message.channel_id, message.request_id) else { return };
        let code = quoted(&message.error_code);
        self.tally.refused += 1;
        if message.error_code == set_custom_mining_job::JOB_NOT_YET_VALIDATED && self.set_later(place, now) {
            return;
        }
        let may_pass =
            [set_custom_mining_job::STALE_CHAIN_TIP, set_custom_mining_job::INVALID_MINING_JOB_TOKEN];
        if may_pass.contains(&message.error_code.as_str()) && self.try_again(place, now) {
            return self.advance(now, out);
        }
        self.refuse(place, Trouble::CustomJobRefused { code }, now, out);
    }

    /// Whether a share of this job would wait now until the pool has taken it: what [`Client::handle_share`] does not hand
    /// back at once, released or dropped.
    pub fn would_hold(&self, id: CustomJobId) -> bool {
        let job = self.jobs.iter().find(|job| job.id == id);
        let waits = |job: &Job| !matches!(job.stage, Stage::Acknowledged(_) | Stage::Refused);
        self.held.len() < MAX_HELD && job.is_some_and(waits)
    }

    /// A share of a custom job was judged and is worth sending. `solution` is there when it is a block: that goes to
    /// our node and to the server at once, whatever has become of its job.
    pub fn handle_share(
        &mut self,
        id: CustomJobId,
        share: S,
        solution: Option<&FoundSolution>,
        out: &mut ClientOutput<S>,
    ) {
        if let Some(solution) = solution {
            self.solve(id, solution, out);
        }
        let stage = self.jobs.iter().find(|job| job.id == id).map(|job| &job.stage);
        match stage {
            None => self.drop_share(share, HeldDrop::JobRetired, out),
            Some(Stage::Acknowledged(job)) => out.released.push(Released { job: *job, share }),
            Some(Stage::Refused) => self.drop_share(share, HeldDrop::JobRefused, out),
            _ if self.held.len() >= MAX_HELD => self.drop_share(share, HeldDrop::TooMany, out),
            _ => self.held.push_back((id, share)),
        }
    }

    /// The pool has accepted a share of a custom job.
    pub fn handle_share_accepted(&mut self, job: UpstreamJobId) {
        if let Some(job) = self.taken(job) {
            job.refused_in_a_row = 0;
        }
    }

    /// The pool has refused a share of a job that it had taken. Several in a row are trouble: told once.
    pub fn handle_share_refused(&mut self, job: UpstreamJobId, code: &str, out: &mut ClientOutput<S>) {
        let Some(job) = self.taken(job) else { return };
        job.refused_in_a_row = job.refused_in_a_row.saturating_add(1);
        if job.refused_in_a_row == REFUSALS_IN_A_ROW {
            out.trouble.push(Trouble::SharesRefused { code: quoted(code) });
        }
    }

    /// When [`Client::handle_timeout`] is due, on the monotonic clock.
    pub fn next_timeout(&self) -> Option<Duration> {
        let jobs = self.jobs.iter().filter_map(|job| match job.stage {
            Stage::AwaitingToken { not_before: Duration::ZERO } => None,
            Stage::AwaitingToken { not_before } | Stage::SettingAgain { not_before, .. } => Some(not_before),
            _ if job.told => None,
            Stage::Declaring { .. } => Some(job.since + DECLARATION_DEADLINE),
            Stage::Setting { .. } => Some(job.since + CUSTOM_JOB_DEADLINE),
            Stage::AwaitingTransactions(_) | Stage::Acknowledged(_) | Stage::Refused => None,
        });
        let stock = if self.link.is_ready() { self.stock.next_timeout() } else { None };
        jobs.chain(stock).chain(self.link.next_timeout()).min()
    }

    /// Does what is due at `now`. Early and late calls do no harm.
    pub fn handle_timeout(&mut self, now: Now, out: &mut ClientOutput<S>) {
        self.check_link(now, out);
        if self.link.is_ready() && self.stock.give_up(now.monotonic) {
            out.trouble.push(Trouble::NoToken);
        }
        for job in self.jobs.iter_mut().filter(|job| !job.told) {
            let (deadline, trouble) = match job.stage {
                Stage::Declaring { .. } => (DECLARATION_DEADLINE, Trouble::DeclarationUnanswered),
                Stage::Setting { .. } => (CUSTOM_JOB_DEADLINE, Trouble::CustomJobUnanswered),
                _ => continue,
            };
            if job.since + deadline <= now.monotonic {
                // The answer is still welcome: there may be nowhere else to go.
                job.told = true;
                out.trouble.push(trouble);
            }
        }
        self.advance(now, out);
    }

    /// Starts what can be started: the newest template, jobs that wait for a token or for transactions.
    fn advance(&mut self, now: Now, out: &mut ClientOutput<S>) {
        self.start_newest(now, out);
        let mut place = 0;
        while let Some(id) = self.jobs.get(place).map(|job| job.id) {
            self.advance_job(place, now, out);
            // A job that starts over leaves its place to the next.
            if self.jobs.get(place).is_some_and(|job| job.id == id) {
                place += 1;
            }
        }
        self.ask_for_tokens(now, out);
    }

    fn start_newest(&mut self, now: Now, out: &mut ClientOutput<S>) {
        let (Some(template), Some(channel)) = (self.newest.clone(), self.channel.clone()) else { return };
        let is_started = |job: &Job| {
            job.template.id == template.id && job.template.previous_hash == template.previous_hash
        };
        if self.jobs.iter().any(is_started) {
            return;
        }
        let Some(Stocked { token, outputs }) = self.stock.take() else { return };
        let extranonce_size = channel.extranonce_prefix.len() + channel.extranonce_size;
        let coinbase = match template.coinbase(&outputs, &self.config.tag, extranonce_size) {
            Ok(coinbase) => coinbase,
            // The token is let go: one that comes later may have better outputs.
            Err(error) => {
                self.stock.hold(now.monotonic);
                return out.trouble.push(Trouble::UnusableOutputs(error.to_string()));
            }
        };
        self.make_room(out);
        let id = self.next_job;
        self.next_job = CustomJobId(id.0.wrapping_add(1));
        let CoinbaseParts { mut prefix, suffix, .. } = coinbase.parts();
        prefix.extend_from_slice(&channel.extranonce_prefix);
        let coinbase_parts = CoinbaseParts { prefix, extranonce_size: channel.extranonce_size, suffix };
        let clean = std::mem::take(&mut self.clean);
        out.jobs.push(ClientJob { id, template: Arc::clone(&template), clean, coinbase: coinbase_parts });
        self.tally.published += 1;
        self.jobs.push_back(Job {
            id,
            template,
            coinbase,
            extranonce_prefix: channel.extranonce_prefix,
            pool_outputs: outputs,
            stage: Stage::AwaitingTransactions(token),
            since: now.monotonic,
            tries: 0,
            told: false,
            is_declared: false,
            pushes: Vec::new(),
            refused_in_a_row: 0,
        });
    }

    fn advance_job(&mut self, place: usize, now: Now, out: &mut ClientOutput<S>) {
        match self.jobs[place].stage.clone() {
            Stage::AwaitingToken { not_before } if not_before <= now.monotonic => {
                let Some(Stocked { token, outputs }) = self.stock.take() else {
                    // The next token is the next event.
                    self.jobs[place].stage = Stage::AwaitingToken { not_before: Duration::ZERO };
                    return;
                };
                if outputs != self.jobs[place].pool_outputs {
                    // Its coinbase would be another: the pool has changed its mind since.
                    return self.start_over(place, token, outputs, now, out);
                }
                self.use_token(place, token, now, out);
            }
            Stage::AwaitingTransactions(token) => self.use_token(place, token, now, out),
            Stage::SettingAgain { token, not_before } if not_before <= now.monotonic => {
                self.set(place, token, now, out);
            }
            _ => (),
        }
    }

    /// Declares a job, or has the pool take it as it is in Coinbase-only mode.
    fn use_token(&mut self, place: usize, token: MiningJobToken, now: Now, out: &mut ClientOutput<S>) {
        if self.config.mode == Mode::CoinbaseOnly {
            return self.set(place, token, now, out);
        }
        let job = &mut self.jobs[place];
        let Some(transactions) = self.transactions.get(&job.template.id) else {
            return job.enter(Stage::AwaitingTransactions(token), now.monotonic);
        };
        let request = self.next_request;
        self.next_request = RequestId(request.0.wrapping_add(1));
        let message = Message::from(job.declaration(request, token, transactions));
        if message.encode_frame(&mut out.bytes).is_err() {
            // Outputs and transactions that fit in a block fit in the message; a provider may send more.
            let what = "a declaration is longer than its message".to_owned();
            return self.refuse(place, Trouble::UnusableOutputs(what), now, out);
        }
        job.enter(Stage::Declaring { request, provided: false }, now.monotonic);
        self.tally.declared += 1;
    }

    fn set(&mut self, place: usize, token: MiningJobToken, now: Now, out: &mut ClientOutput<S>) {
        // Jobs are retired with their channel.
        let Some(channel) = &self.channel else { return };
        let request = self.next_request;
        self.next_request = RequestId(request.0.wrapping_add(1));
        let job = &mut self.jobs[place];
        out.custom_jobs.push(job.custom_job(request, token.clone(), channel));
        job.enter(Stage::Setting { request, token }, now.monotonic);
    }

    /// The pool wants other outputs than a job has: the job ends, and its template is started again.
    fn start_over(
        &mut self,
        place: usize,
        token: MiningJobToken,
        outputs: Arc<[template::Output]>,
        now: Now,
        out: &mut ClientOutput<S>,
    ) {
        self.stock.put_back(Stocked { token, outputs });
        self.jobs[place].enter(Stage::Refused, now.monotonic);
        let job = self.jobs[place].id;
        self.drop_held(HeldDrop::JobRefused, Some(job), out);
        let is_newest = self.newest.as_ref().is_some_and(|newest| newest.id == self.jobs[place].template.id);
        if is_newest {
            self.jobs.remove(place);
            self.start_newest(now, out);
        }
    }

    /// The other side may lack our tip or our token for a moment. False when it has lacked it for too long, or when
    /// the job is not worth it any more.
    fn try_again(&mut self, place: usize, now: Now) -> bool {
        let job = &mut self.jobs[place];
        if job.tries >= MAX_TRIES {
            return false;
        }
        let wait = FIRST_RETRY * (1 << job.tries);
        job.tries += 1;
        job.is_declared = false;
        job.enter(Stage::AwaitingToken { not_before: now.monotonic + wait }, now.monotonic);
        true
    }

    /// The pool did not hear yet that the job is good; the token still is. False when that takes too long.
    fn set_later(&mut self, place: usize, now: Now) -> bool {
        let job = &mut self.jobs[place];
        let Stage::Setting { token, .. } = &job.stage else { return false };
        if job.tries >= MAX_TRIES {
            return false;
        }
        let not_before = now.monotonic + FIRST_RETRY * (1 << job.tries);
        job.tries += 1;
        let token = token.clone();
        job.enter(Stage::SettingAgain { token, not_before }, now.monotonic);
        true
    }

    fn refuse(&mut self, place: usize, trouble: Trouble, now: Now, out: &mut ClientOutput<S>) {
        let job = &mut self.jobs[place];
        job.enter(Stage::Refused, now.monotonic);
        let id = job.id;
        self.drop_held(HeldDrop::JobRefused, Some(id), out);
        out.trouble.push(trouble);
    }

    fn solve(&mut self, id: CustomJobId, found: &FoundSolution, out: &mut ClientOutput<S>) {
        let Some(job) = self.jobs.iter_mut().chain(&mut self.past).find(|job| job.id == id) else { return };
        let FoundSolution { version, ntime, nonce, .. } = *found;
        let extranonce = [&job.extranonce_prefix[..], &found.extranonce].concat();
        if extranonce.len() != job.coinbase.extranonce_size {
            out.notices.push("a block does not have its channel's extranonce, and is lost".to_owned());
            return;
        }
        let coinbase = job.coinbase.with_witness(&extranonce);
        out.solutions.push(NodeSolution { template: job.template.id, version, ntime, nonce, coinbase });
        if self.config.mode == Mode::FullTemplate {
            let (prev_hash, nbits) = (job.template.previous_hash, job.template.nbits);
            job.wait_to_push(PushSolution { extranonce, prev_hash, nonce, ntime, nbits, version });
            push_solutions(job, self.link, &mut self.tally, out);
        }
    }

    fn make_room(&mut self, out: &mut ClientOutput<S>) {
        if self.jobs.len() >= MAX_JOBS
            && let Some(oldest) = self.jobs.pop_front()
        {
            self.drop_held(HeldDrop::JobRetired, Some(oldest.id), out);
            self.remember(oldest);
        }
        self.forget_transactions();
    }

    fn remember(&mut self, job: Job) {
        if self.past.len() == MAX_JOBS {
            self.past.pop_front();
        }
        self.past.push_back(job);
    }

    fn retire_all(&mut self, reason: HeldDrop, out: &mut ClientOutput<S>) {
        for mut job in std::mem::take(&mut self.jobs) {
            // A token that was not used yet is as good as it was.
            if let Stage::AwaitingTransactions(token) = &job.stage {
                let outputs = Arc::clone(&job.pool_outputs);
                self.stock.put_back(Stocked { token: token.clone(), outputs });
                job.stage = Stage::Refused;
            }
            self.remember(job);
        }
        self.drop_held(reason, None, out);
    }

    /// Drops the waiting shares of one job, or of all.
    fn drop_held(&mut self, reason: HeldDrop, of: Option<CustomJobId>, out: &mut ClientOutput<S>) {
        for (id, share) in std::mem::take(&mut self.held) {
            if of.is_none_or(|of| of == id) {
                self.drop_share(share, reason, out);
            } else {
                self.held.push_back((id, share));
            }
        }
    }

    fn drop_share(&mut self, share: S, reason: HeldDrop, out: &mut ClientOutput<S>) {
        self.tally.dropped += 1;
        out.dropped.push(Dropped { share, reason });
    }

    fn forget_transactions(&mut self) {
        let known = |id: &TemplateId| {
            self.newest.as_ref().is_some_and(|newest| newest.id == *id)
                || self.jobs.iter().any(|job| job.template.id == *id)
        };
        let forgotten: Vec<TemplateId> = self.transactions.keys().filter(|id| !known(id)).copied().collect();
        forgotten.iter().for_each(|id| drop(self.transactions.remove(id)));
    }

    fn is_known(&self, template: TemplateId) -> bool {
        let newest = self.newest.as_ref().map(|newest| newest.id);
        newest == Some(template) || self.jobs.iter().any(|job| job.template.id == template)
    }

    /// The job that an answer of the pool is for.
    fn setting(&self, channel: ChannelId, request_id: RequestId) -> Option<usize> {
        self.channel.as_ref().filter(|ours| ours.channel_id == channel)?;
        let is_setting =
            |job: &Job| matches!(job.stage, Stage::Setting { request, .. } if request == request_id);
        self.jobs.iter().position(is_setting)
    }

    fn taken(&mut self, job: UpstreamJobId) -> Option<&mut Job> {
        self.jobs.iter_mut().find(|ours| ours.stage == Stage::Acknowledged(job))
    }

    /// Whether the newest template has no job yet for want of a token.
    fn newest_waits(&self) -> bool {
        let Some(newest) = self.newest.as_ref().filter(|_| self.channel.is_some()) else { return false };
        !self.jobs.iter().any(|job| job.template.id == newest.id)
    }
}

/// Pushes what waits, if the server knows the job.
fn push_solutions<S>(job: &mut Job, link: Link, tally: &mut ClientTally, out: &mut ClientOutput<S>) {
    if !job.is_declared || !link.is_ready() {
        return;
    }
    for solution in job.pushes.drain(..) {
        let message = Message::from(solution);
        message.encode_frame(&mut out.bytes).expect("an extranonce fits its field");
        tally.solutions_pushed += 1;
    }
}
