//! An upstream that is given jobs of ours (SV2 6): the job declaration client, and what it shares with the mining
//! connection.
//!
//! There is one shared channel. What the pool itself would have us mine is not looked at. A share of a custom job
//! waits in the client until the pool has a number for its job: it is recorded as held at once, and what becomes of it is
//! a record of its own.
//!
//! This module never chooses transactions, and never sends anything to a node.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use job_declarator::client::{
    ChannelTerms, Client, ClientJob, ClientOutput, ClientTally, CustomJobId, Dropped, FoundSolution,
    HeldDrop, MAX_JOBS, Released, Trouble,
};
use mining_server::record::{HeldRelease, HoldNumber, ReleaseFate};
use mining_server::{DropReason, Fate, ShareEvent, ShareRecord, Verdict};
use stratum::hash::{merkle_root, sha256d};
use stratum::sv2::{FrameHeader, Message};
use stratum::{JobId, Now, Target, UpstreamJobId, Work};
use template::{BlockTemplate, CoinbaseConstraints, JobTemplate, RawTransaction, assemble_block};

use super::{LinkState, Upstream, send};
use crate::config::Endpoint;
use crate::output::{Feed, FoundBlock, UpstreamOutput};
use crate::upstreams::SwitchReason;

/// Jobs that a block may still be found on: those of this tip and of the one before. The client forgets the same ones.
const MAX_SOLVABLE: usize = 2 * MAX_JOBS;

/// A template that was not repeated for so long means that our node is away: its driver repeats it every 20 seconds while
/// the node answers. What is made of it may be on a tip that is long over.
pub const OLDEST_TEMPLATE: Duration = Duration::from_secs(75);

/// The job declaration of one upstream.
#[derive(Debug)]
pub(super) struct Declaring {
    client: Client<ShareEvent>,
    out: ClientOutput<ShareEvent>,
    /// The room that coinbases need.
    constraints: CoinbaseConstraints,
    /// The template that came last, as the node made it.
    newest: Option<Arc<BlockTemplate>>,
    /// When it came.
    newest_since: Duration,
    /// The same, with room for the pool's outputs: what the client was given.
    given: Option<Arc<BlockTemplate>>,
    /// What blocks are made of, by the job; at most [`MAX_SOLVABLE`].
    solvable: BTreeMap<CustomJobId, (ClientJob, Arc<BlockTemplate>)>,
    /// The target of the channel when the pool took each job, oldest first; at most [`MAX_SOLVABLE`]. Miners had the job
    /// before, and a SetTarget between is for it, too (SV2 5.3.21).
    targets: VecDeque<(UpstreamJobId, Target)>,
    /// Whether it had all that it needs since both connections are up.
    was_ready: bool,
    /// The number of the share that was held last.
    last_hold: HoldNumber,
    trouble: Option<SwitchReason>,
}

impl Declaring {
    pub(super) fn new(config: job_declarator::client::ClientConfig) -> Self {
        Declaring {
            client: Client::new(config, CustomJobId(1)),
            out: ClientOutput::default(),
            constraints: CoinbaseConstraints::default(),
            newest: None,
            newest_since: Duration::ZERO,
            given: None,
            solvable: BTreeMap::new(),
            targets: VecDeque::new(),
            was_ready: false,
            last_hold: HoldNumber::new(0),
            trouble: None,
        }
    }

    pub(super) fn next_timeout(&self) -> Option<Duration> {
        let stale = self.stale_at().filter(|_| self.was_ready);
        stale.into_iter().chain(self.client.next_timeout()).min()
    }

    /// When the newest template is too old, on the monotonic clock.
    fn stale_at(&self) -> Option<Duration> {
        self.newest.as_ref().map(|_| self.newest_since + OLDEST_TEMPLATE)
    }

    /// Whether all is there that a job needs: the server, a template, and at first a token.
    fn look_whether_ready(&mut self, now: Now) {
        let is_connected = self.client.is_connected();
        let is_fresh = self.stale_at().is_some_and(|stale| now.monotonic < stale);
        if self.was_ready && is_connected && !is_fresh {
            self.trouble = Some(SwitchReason::NoWork);
        }
        self.was_ready = is_connected && is_fresh && (self.was_ready || self.client.has_token());
    }

    /// Gives the client the newest template, with the room that coinbases need.
    fn give_template(&mut self, now: Now) {
        let Some(newest) = &self.newest else { return };
        match self.constraints.apply(Arc::clone(newest)) {
            // A template provider does not say what single transactions pay (SV2 7): what is left of the reward without
            // some of them is unknown, and a coinbase that claims too much makes no block. It has been asked for room.
            Ok(constrained) if constrained.dropped > 0 && newest.fees() == 0 => {}
            Ok(constrained) => {
                let template = constrained.template;
                let transactions: Arc<[RawTransaction]> =
                    template.transactions.iter().map(RawTransaction::from).collect();
                self.given = Some(Arc::clone(&template));
                let job = JobTemplate::of_block_template(&template);
                self.client.handle_template(job, now, &mut self.out);
                self.client.handle_transactions(template.id, transactions, now, &mut self.out);
            }
            Err(error) => self.out.trouble.push(Trouble::UnusableOutputs(error.to_string())),
        }
    }

    fn block(&self, id: CustomJobId, record: &ShareRecord) -> Option<FoundBlock> {
        let (job, template) = self.solvable.get(&id)?;
        let coinbase = job.coinbase.with_extranonce(&record.rollable);
        let root = merkle_root(sha256d(&coinbase), &template.merkle_path);
        let header = template.header(record.version, &root, record.ntime, record.nonce);
        Some(FoundBlock { height: template.height, bytes: assemble_block(template, &coinbase, &header) })
    }

    /// The pool has taken a job while the channel had this target.
    fn remember_target(&mut self, job: UpstreamJobId, target: Target) {
        if self.targets.len() == MAX_SOLVABLE {
            self.targets.pop_front();
        }
        self.targets.push_back((job, target));
    }

    /// Values a share of a job that the pool took by the target that the job has there. False when it is worth nothing
    /// to the pool; a block is sent whatever it is worth. One that was held is never worth more than its record says.
    fn appraise(&self, job: UpstreamJobId, event: &mut ShareEvent) -> bool {
        let taken = self.targets.iter().rev().find(|(taken, _)| *taken == job);
        let (Some((_, target)), Some(forward)) = (taken, &event.forward) else { return true };
        let is_met = target.is_met_by(&forward.hash);
        let work = if is_met { target.work() } else { Work(0) };
        let record = &mut event.record;
        let is_held = matches!(record.fate, Fate::Held(_));
        record.upstream_work = if is_held { work.min(record.upstream_work) } else { work };
        is_met || forward.is_block
    }

    fn remember(&mut self, job: &ClientJob) {
        if let Some(template) = self.given.as_ref().filter(|given| given.id == job.template.id) {
            self.solvable.insert(job.id, (job.clone(), Arc::clone(template)));
            while self.solvable.len() > MAX_SOLVABLE {
                self.solvable.pop_first();
            }
        }
    }
}

impl Upstream {
    /// Whether it is given jobs of ours.
    pub fn is_declaring(&self) -> bool {
        self.declaring.is_some()
    }

    /// What became of all jobs that were declared to it.
    pub fn declaration_tally(&self) -> ClientTally {
        self.declaring.as_ref().map(|declaring| declaring.client.tally()).unwrap_or_default()
    }

    /// The room that coinbases of jobs that are declared to it need in a template.
    pub fn constraints(&self) -> CoinbaseConstraints {
        self.declaring.as_ref().map(|declaring| declaring.constraints).unwrap_or_default()
    }

    /// How many shares wait until the pool has taken their job.
    pub fn held_count(&self) -> usize {
        self.declaring.as_ref().map_or(0, |declaring| declaring.client.held_count())
    }

    /// Whether it could serve: the connection is set up, and where jobs are declared, so is the one to the job
    /// declaration server, there is a template, and there was a token.
    pub fn is_up(&self) -> bool {
        self.link == LinkState::Ready && self.declaring.as_ref().is_none_or(|declaring| declaring.was_ready)
    }

    /// What went wrong with a declaration since this was asked last.
    pub(crate) fn take_trouble(&mut self) -> Option<SwitchReason> {
        self.declaring.as_mut()?.trouble.take()
    }

    /// Our node has a template, or stands by the one that it gave before. Does nothing where the pool's own jobs are
    /// mined.
    pub fn handle_template(&mut self, template: &Arc<BlockTemplate>, now: Now, out: &mut UpstreamOutput) {
        self.declare(now, out, |declaring| {
            declaring.newest_since = now.monotonic;
            let is_known = declaring.newest.as_ref().is_some_and(|newest| Arc::ptr_eq(newest, template));
            if !is_known {
                declaring.newest = Some(Arc::clone(template));
                declaring.give_template(now);
            }
        });
    }

    /// The transport to the job declaration server is up.
    pub fn handle_declaration_connected(&mut self, endpoint: &Endpoint, now: Now, out: &mut UpstreamOutput) {
        self.declare(now, out, |declaring| {
            let Declaring { client, out, .. } = declaring;
            client.handle_connected(&endpoint.host, endpoint.port, now, out);
        });
    }

    /// The transport to the job declaration server is gone. Does nothing when it was given up here before.
    pub fn handle_declaration_disconnected(&mut self, now: Now, out: &mut UpstreamOutput) {
        self.declare(now, out, |declaring| declaring.client.handle_disconnected(now, &mut declaring.out));
    }

    /// A frame came from the job declaration server.
    pub fn handle_declaration_frame(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        now: Now,
        out: &mut UpstreamOutput,
    ) {
        self.declare(now, out, |declaring| {
            declaring.client.handle_frame(header, payload, now, &mut declaring.out);
        });
    }

    /// The shared channel is open, or has another prefix.
    pub(super) fn declare_channel(&mut self, now: Now, out: &mut UpstreamOutput) {
        let channel = self.feeds.get(&Feed::Shared).and_then(|state| state.channel());
        let terms = channel.map(|channel| ChannelTerms {
            channel_id: stratum::ChannelId(channel.id.0),
            extranonce_prefix: channel.prefix.to_vec(),
            extranonce_size: channel.rollable_size,
        });
        self.declare(now, out, |declaring| match terms {
            Some(terms) => declaring.client.handle_channel(terms, now, &mut declaring.out),
            None => declaring.client.handle_channel_closed(&mut declaring.out),
        });
    }

    /// The pool's answer to a custom job. False when the message is none.
    pub(super) fn declare_answer(&mut self, message: &Message, now: Now, out: &mut UpstreamOutput) -> bool {
        let is_answer =
            matches!(message, Message::SetCustomMiningJobSuccess(_) | Message::SetCustomMiningJobError(_));
        if is_answer && self.is_declaring() {
            let channel = self.feeds.get(&Feed::Shared).and_then(|state| state.channel());
            let target = channel.map(|channel| channel.target);
            self.declare(now, out, |declaring| match (message, target) {
                (Message::SetCustomMiningJobSuccess(success), Some(target)) => {
                    declaring.remember_target(UpstreamJobId(success.job_id.0), target);
                    declaring.client.handle_custom_job_success(success, now, &mut declaring.out);
                }
                (Message::SetCustomMiningJobError(error), _) => {
                    declaring.client.handle_custom_job_error(error, now, &mut declaring.out);
                }
                // Without a channel there is nothing that it could be the answer to.
                _ => (),
            });
            return true;
        }
        false
    }

    /// A share of a custom job was judged: it leaves, or waits, or is dropped. A block goes to our node and to the
    /// job declaration server whatever becomes of the share.
    pub(super) fn declare_share(&mut self, mut event: ShareEvent, now: Now, out: &mut UpstreamOutput) {
        let Some(forward) = event.forward.as_ref().filter(|forward| {
            // Numbers of custom jobs are those of this upstream's client.
            forward.origin.upstream == self.config.id
        }) else {
            let mut record = event.record;
            record.fate = Fate::Dropped(DropReason::EpochEnded);
            return out.records.push(record);
        };
        let id = CustomJobId(forward.origin.job.0);
        let record = &event.record;
        let solution = forward.is_block.then(|| FoundSolution {
            extranonce: record.rollable.to_vec(),
            version: record.version,
            ntime: record.ntime,
            nonce: record.nonce,
        });
        let declaring = self.declaring.as_mut().filter(|declaring| declaring.client.would_hold(id));
        if let Some(declaring) = declaring {
            declaring.last_hold = declaring.last_hold.next();
            event.record.fate = Fate::Held(declaring.last_hold);
            // The one copy of a share's record, and only of one that waits.
            out.records.push(event.record.clone());
        }
        self.declare(now, out, |declaring| {
            declaring.client.handle_share(id, event, solution.as_ref(), &mut declaring.out);
        });
    }

    /// The block of a share of a custom job, if it is one that our node may still take.
    pub(super) fn declared_block(&self, event: &ShareEvent) -> Option<FoundBlock> {
        let forward = event
            .forward
            .as_ref()
            .filter(|forward| forward.is_block && forward.origin.upstream == self.config.id)?;
        self.declaring.as_ref()?.block(CustomJobId(forward.origin.job.0), &event.record)
    }

    pub(super) fn declare_timeout(&mut self, now: Now, out: &mut UpstreamOutput) {
        let due = self.declaring.as_ref().and_then(|declaring| declaring.next_timeout());
        if due.is_some_and(|due| due <= now.monotonic) {
            self.declare(now, out, |declaring| declaring.client.handle_timeout(now, &mut declaring.out));
        }
    }

    /// Calls into the client, and does what it put out. Does nothing where no jobs are declared.
    fn declare(&mut self, now: Now, out: &mut UpstreamOutput, act: impl FnOnce(&mut Declaring)) {
        let Some(mut declaring) = self.declaring.take() else { return };
        act(&mut declaring);
        if let Some(constraints) = declaring.out.constraints.take() {
            declaring.constraints = constraints;
            declaring.give_template(now);
        }
        let done = std::mem::take(&mut declaring.out);
        for job in done.jobs {
            declaring.remember(&job);
            self.take_custom_job(&job, now, out);
        }
        for message in done.custom_jobs {
            send(message, out);
        }
        out.declaration_bytes.extend_from_slice(&done.bytes);
        for Released { job, mut share } in done.released {
            let held_work = share.record.upstream_work;
            let fate = match declaring.appraise(job, &mut share) {
                true => self.forward_as(&share, JobId(job.0), now, out),
                false => ReleaseFate::BelowUpstreamTarget,
            };
            self.record(share, held_work, fate, now, out);
        }
        for Dropped { share, reason } in done.dropped {
            let held_work = share.record.upstream_work;
            self.record(share, held_work, ReleaseFate::Dropped(drop_reason(reason)), now, out);
        }
        if let Some(trouble) = done.trouble.last() {
            declaring.trouble = Some(switch_reason(trouble));
            for trouble in &done.trouble {
                let words = words(trouble);
                self.notices.tell(now, out, || words);
            }
        }
        if done.close.is_some() {
            out.close_declaration = done.close;
            out.redirect_declaration = done.reconnect_to.map(|(host, port)| Endpoint { host, port });
        }
        for notice in done.notices {
            self.notices.tell(now, out, || notice);
        }
        declaring.look_whether_ready(now);
        self.declaring = Some(declaring);
    }

    fn take_custom_job(&mut self, job: &ClientJob, now: Now, out: &mut UpstreamOutput) {
        let (upstream, interval) = (self.config.id, self.config.refresh_interval);
        let Some(state) = self.feeds.get_mut(&Feed::Shared) else { return };
        if state.take_custom_job(upstream, interval, job, now) {
            out.publish.extend(state.work().map(|work| (Feed::Shared, work)));
            let due = state.next_timeout();
            self.schedule_if(due);
        }
    }

    /// Sends a share under the number that the pool has for its job. Returns what became of it.
    fn forward_as(
        &mut self,
        event: &ShareEvent,
        job: JobId,
        now: Now,
        out: &mut UpstreamOutput,
    ) -> ReleaseFate {
        let share = event.forward.as_ref().expect("only what is worth forwarding came here");
        match self.forward(&event.record, share, job, now, out) {
            Ok(sequence_number) => ReleaseFate::Forwarded(sequence_number),
            Err(reason) => ReleaseFate::Dropped(reason),
        }
    }

    /// Writes down what became of a share: in its record, or if that is written already, because the share was held when
    /// it was worth `held_work`, in one of its own.
    fn record(
        &mut self,
        event: ShareEvent,
        held_work: Work,
        fate: ReleaseFate,
        now: Now,
        out: &mut UpstreamOutput,
    ) {
        let ShareEvent { mut record, forward } = event;
        let origin = forward.as_ref().map(|forward| &forward.origin);
        if let (Fate::Held(number), Some(origin)) = (record.fate, origin) {
            if record.verdict == Verdict::BlockFound && matches!(fate, ReleaseFate::Dropped(_)) {
                self.notices
                    .tell(now, out, || "a block was not forwarded: the pool never took its job".to_owned());
            }
            out.releases.push(HeldRelease {
                released: now,
                device: record.device,
                upstream: origin.upstream,
                upstream_channel: origin.channel,
                number,
                fate,
                held_work,
                work: record.upstream_work,
            });
            return;
        }
        record.fate = fate.of_share();
        record.sequence_number = fate.sequence_number();
        out.records.push(record);
    }
}

fn drop_reason(reason: HeldDrop) -> DropReason {
    match reason {
        HeldDrop::TooMany => DropReason::QueueFull,
        HeldDrop::JobRefused | HeldDrop::TipChanged | HeldDrop::ChannelChanged | HeldDrop::JobRetired => {
            DropReason::EpochEnded
        }
    }
}

fn switch_reason(trouble: &Trouble) -> SwitchReason {
    match trouble {
        Trouble::Disconnected => SwitchReason::ConnectionLost,
        Trouble::NoToken | Trouble::DeclarationUnanswered | Trouble::CustomJobUnanswered => {
            SwitchReason::DeclarationUnanswered
        }
        Trouble::DeclarationRefused { .. } | Trouble::UnusableOutputs(_) => SwitchReason::DeclarationRefused,
        Trouble::CustomJobRefused { .. } => SwitchReason::CustomJobRefused,
        Trouble::SharesRefused { .. } => SwitchReason::SharesRefused,
    }
}

fn words(trouble: &Trouble) -> String {
    match trouble {
        Trouble::Disconnected => "the connection to the job declaration server is gone".to_owned(),
        Trouble::NoToken => "the job declaration server gives no token".to_owned(),
        Trouble::DeclarationUnanswered => "a declared job was not answered in time".to_owned(),
        Trouble::DeclarationRefused { code, details } => {
            format!("a declared job was refused: {code}: {details}")
        }
        Trouble::CustomJobUnanswered => "the pool did not answer a custom job in time".to_owned(),
        Trouble::CustomJobRefused { code } => format!("the pool refused a custom job: {code}"),
        Trouble::SharesRefused { code } => {
            format!("the pool refuses shares of a job that it took, at last with: {code}")
        }
        Trouble::UnusableOutputs(what) => format!("the pool's outputs cannot be used: {what}"),
    }
}
