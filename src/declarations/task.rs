//! The owner of all that job declaration connections share.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use job_declarator::server::{
    Claimant, DeclarationId, DeclaredBlock, DeclaredJob, JobDeclarationServer, ServerAction,
    ServerConnection, ServerOutput, TOKEN_SIZE, Verdict,
};
use rand::RngCore;
use rand::rngs::OsRng;
use stratum::hash::Hash;
use stratum::{CloseReason, ConnectionId, Now};
use template::block_template::displayed;
use template::{BlockTemplate, RawTransaction};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::connection::{Event, Line};
use super::mempool::MempoolView;
use super::validation::{JobHash, Turns, Validator, Verdicts};
use super::{CustomJobOrder, DeclarationFigures, DeclarationsInbox, TipNews};
use crate::clock::Clock;
use crate::node::BlockSource;
use crate::shutdown::Shutdown;

/// Expired tokens are forgotten this often; they are not taken in any case.
const TIDY_INTERVAL: Duration = Duration::from_secs(60);

/// Templates of the pool whose transactions are at hand: what a client chose a moment ago is in one of them.
const KEPT_TEMPLATES: u64 = 3;

/// How long blocks have to be judged by the node and written to the disk, after the end was asked for.
const END_GRACE: Duration = Duration::from_secs(3);

/// One connection.
struct Live {
    connection: ServerConnection,
    line: Line,
}

/// What ran beside the owner and has ended.
enum Answer {
    LookedUp { of: Place, found: Vec<Option<RawTransaction>> },
    Validated { job: JobHash, previous_hash: Hash, verdict: Verdict },
    Refreshed,
}

/// A declaration of a connection.
pub(super) type Place = (ConnectionId, DeclarationId);

/// What a declaration waits for.
enum Running {
    LookUp(AbortHandle),
    Validation(JobHash),
}

/// The owner.
pub(super) struct DeclarationTask {
    server: JobDeclarationServer,
    connections: HashMap<ConnectionId, Live>,
    transactions: Transactions,
    verdicts: Verdicts,
    mempool: Arc<MempoolView>,
    validator: Validator,
    /// At most some for each connection, because each has at most some declarations, and one refresh.
    work: JoinSet<Answer>,
    running: HashMap<Place, Running>,
    turns: Turns,
    is_refreshing: bool,
    submissions: JoinSet<()>,
    blocks: Destinations,
    clock: Clock,
    figures: watch::Sender<DeclarationFigures>,
}

/// Where blocks go.
pub(super) struct Destinations {
    /// Our node, and the disk.
    pub(super) source: BlockSource,
    /// Somebody else.
    pub(super) other: Option<mpsc::Sender<DeclaredBlock>>,
}

/// The transactions of the last templates, by their hashes with witness.
#[derive(Default)]
struct Transactions {
    known: HashMap<Hash, (RawTransaction, u64)>,
    templates: u64,
}

impl Transactions {
    fn learn(&mut self, template: &BlockTemplate) {
        self.templates += 1;
        let newest = self.templates;
        for transaction in &template.transactions {
            let known = self.known.entry(transaction.wtxid);
            known.or_insert_with(|| (RawTransaction::from(transaction), newest)).1 = newest;
        }
        self.known.retain(|_, (_, last)| *last + KEPT_TEMPLATES > newest);
    }

    fn look_up(&self, wtxids: &[Hash]) -> Vec<Option<RawTransaction>> {
        wtxids.iter().map(|wtxid| self.known.get(wtxid).map(|(known, _)| known.clone())).collect()
    }
}

impl DeclarationTask {
    pub(super) fn new(
        server: JobDeclarationServer,
        mempool: MempoolView,
        validator: Validator,
        blocks: Destinations,
        clock: Clock,
        figures: watch::Sender<DeclarationFigures>,
    ) -> Self {
        DeclarationTask {
            server,
            connections: HashMap::new(),
            transactions: Transactions::default(),
            verdicts: Verdicts::default(),
            mempool: Arc::new(mempool),
            validator,
            work: JoinSet::new(),
            running: HashMap::new(),
            turns: Turns::default(),
            is_refreshing: false,
            submissions: JoinSet::new(),
            blocks,
            clock,
            figures,
        }
    }

    /// Serves until the end is asked for.
    pub(super) async fn run(
        mut self,
        mut inbox: DeclarationsInbox,
        mut events: mpsc::Receiver<Event>,
        mut shutdown: Shutdown,
    ) {
        let mut tidy_at = self.clock.now().monotonic + TIDY_INTERVAL;
        loop {
            let next = self.connections.values().map(|live| live.connection.next_timeout()).min();
            let timeout = self.clock.instant(next.map_or(tidy_at, |next| next.min(tidy_at)));
            tokio::select! {
                biased;
                () = shutdown.requested() => break,
                // Before custom jobs, which are for this tip.
                Ok(()) = inbox.tip.changed() => {
                    let news = inbox.tip.borrow_and_update().clone();
                    if let Some(news) = news {
                        self.take_tip(&news);
                    }
                }
                Some(order) = inbox.custom_jobs.recv() => self.take_custom_job(order),
                Some(event) = events.recv() => self.take_event(event),
                Some(answer) = self.work.join_next() => match answer {
                    Ok(answer) => self.take_answer(answer),
                    Err(error) => note_panic(&error),
                },
                Some(ended) = self.submissions.join_next() => {
                    ended.unwrap_or_else(|error| note_panic(&error));
                }
                () = tokio::time::sleep_until(timeout) => {
                    let now = self.clock.now();
                    if tidy_at <= now.monotonic {
                        tidy_at = now.monotonic + TIDY_INTERVAL;
                        self.tidy(now);
                    }
                    self.take_timeouts(now);
                }
            }
            self.publish_figures();
        }
        self.finish(events).await;
    }

    fn take_tip(&mut self, news: &TipNews) {
        let TipNews { tip, template } = news;
        let tip = *tip;
        if self.server.tip().is_none_or(|last| last.previous_hash != tip.previous_hash) {
            self.verdicts.forget();
        }
        self.server.set_tip(tip);
        if let Some(template) = template {
            self.transactions.learn(template);
        }
        let ids: Vec<ConnectionId> = self.connections.keys().copied().collect();
        for id in ids {
            self.call(id, |connection, server, now, out| connection.handle_tip(now, server, out));
        }
        if !self.is_refreshing {
            self.is_refreshing = true;
            let mempool = Arc::clone(&self.mempool);
            self.work.spawn(async move {
                mempool.refresh().await;
                Answer::Refreshed
            });
        }
    }

    fn take_custom_job(&mut self, order: CustomJobOrder) {
        let CustomJobOrder { user_identity, extranonce_size, message, answer } = order;
        let claimant = Claimant { user_identity: &user_identity, extranonce_size };
        // Nobody waits when the connection has gone meanwhile.
        let _ = answer.send(self.server.check_custom_job(claimant, &message, self.clock.now()));
    }

    fn take_event(&mut self, event: Event) {
        match event {
            Event::Arrived { id, line } => {
                let connection = ServerConnection::new(id, self.clock.now());
                self.connections.insert(id, Live { connection, line });
            }
            Event::Frame { id, header, payload, taken } => {
                self.call(id, |connection, server, now, out| {
                    connection.handle_frame(header, &payload, now, server, &mut fresh, out);
                });
                if self.connections.contains_key(&id) {
                    // Fails when the connection has just ended, which it says itself.
                    let _ = taken.send(());
                }
            }
            Event::Gone { id } => self.forget(id),
        }
    }

    fn take_answer(&mut self, answer: Answer) {
        match answer {
            Answer::LookedUp { of, found } => {
                self.running.remove(&of);
                self.call(of.0, |connection, server, now, out| {
                    connection.handle_looked_up(of.1, found, now, server, out);
                });
            }
            Answer::Validated { job, previous_hash, verdict } => {
                if self.server.tip().is_some_and(|tip| tip.previous_hash == previous_hash) {
                    self.verdicts.remember(job, &verdict);
                }
                for of in self.turns.end(job) {
                    self.running.remove(&of);
                    let verdict = verdict.clone();
                    self.call(of.0, |connection, server, now, out| {
                        connection.handle_validated(of.1, verdict, now, server, &mut fresh, out);
                    });
                }
                self.start_validations();
            }
            Answer::Refreshed => self.is_refreshing = false,
        }
    }

    fn take_timeouts(&mut self, now: Now) {
        let is_due = |live: &Live| live.connection.next_timeout() <= now.monotonic;
        let due: Vec<ConnectionId> =
            self.connections.iter().filter(|(_, live)| is_due(live)).map(|(id, _)| *id).collect();
        for id in due {
            self.call(id, |connection, server, now, out| {
                connection.handle_timeout(now, server, &mut fresh, out);
            });
        }
    }

    /// Forgets expired tokens, and connections whose tasks ended without a word.
    fn tidy(&mut self, now: Now) {
        self.server.handle_timeout(now);
        let is_closed = |live: &Live| live.line.is_closed();
        let closed: Vec<ConnectionId> =
            self.connections.iter().filter(|(_, live)| is_closed(live)).map(|(id, _)| *id).collect();
        closed.into_iter().for_each(|id| self.forget(id));
    }

    /// Calls a connection, if it is still there, and does what comes of it.
    fn call(
        &mut self,
        id: ConnectionId,
        call: impl FnOnce(&mut ServerConnection, &mut JobDeclarationServer, Now, &mut ServerOutput),
    ) {
        let Some(live) = self.connections.get_mut(&id) else { return };
        let mut out = ServerOutput::default();
        call(&mut live.connection, &mut self.server, self.clock.now(), &mut out);
        while !out.actions.is_empty() {
            for action in std::mem::take(&mut out.actions) {
                self.act(id, action, &mut out);
            }
        }
        self.deliver(id, out);
    }

    fn act(&mut self, id: ConnectionId, action: ServerAction, out: &mut ServerOutput) {
        let now = self.clock.now();
        match action {
            ServerAction::LookUp { declaration, wtxids } => {
                let found = self.transactions.look_up(&wtxids);
                if found.iter().any(Option::is_none) {
                    return self.look_up((id, declaration), wtxids, found);
                }
                if let Some(live) = self.connections.get_mut(&id) {
                    live.connection.handle_looked_up(declaration, found, now, &mut self.server, out);
                }
            }
            ServerAction::Validate { declaration, job } => {
                let hash = JobHash::of(&job);
                let Some(verdict) = self.verdicts.get(hash) else {
                    return self.validate((id, declaration), hash, job);
                };
                if let Some(live) = self.connections.get_mut(&id) {
                    let server = &mut self.server;
                    live.connection.handle_validated(declaration, verdict, now, server, &mut fresh, out);
                }
            }
            ServerAction::Abandon { declaration } => {
                let place = (id, declaration);
                match self.running.remove(&place) {
                    Some(Running::LookUp(task)) => task.abort(),
                    Some(Running::Validation(hash)) => self.turns.leave(hash, place),
                    None => {}
                }
            }
            ServerAction::Submit(block) => self.submit(id, block),
        }
    }

    fn look_up(&mut self, of: Place, wtxids: Arc<[Hash]>, mut found: Vec<Option<RawTransaction>>) {
        let mempool = Arc::clone(&self.mempool);
        let running = self.work.spawn(async move {
            mempool.look_up(&wtxids, &mut found).await;
            Answer::LookedUp { of, found }
        });
        self.running.insert(of, Running::LookUp(running));
    }

    fn validate(&mut self, of: Place, hash: JobHash, job: Arc<DeclaredJob>) {
        self.running.insert(of, Running::Validation(hash));
        self.turns.join(hash, of, job);
        self.start_validations();
    }

    fn start_validations(&mut self) {
        let unix_seconds = self.clock.now().unix_seconds();
        while let Some((hash, job)) = self.turns.next() {
            let validator = self.validator.clone();
            let previous_hash = job.tip.previous_hash;
            self.work.spawn(async move {
                // A task of its own, so that its turn ends with it whatever happens in it.
                let judged = tokio::spawn(async move { validator.judge(&job, unix_seconds).await }).await;
                let verdict = judged.unwrap_or_else(|error| {
                    note_panic(&error);
                    Verdict::Unknown("our look at the job failed".to_owned())
                });
                Answer::Validated { job: hash, previous_hash, verdict }
            });
        }
    }

    /// Nothing comes before this: the block is on its way, and on its way to the disk, when the next message is read.
    fn submit(&mut self, id: ConnectionId, block: DeclaredBlock) {
        if let Some(other) = &self.blocks.other {
            // Whoever is behind by so many blocks has its own way to most of them.
            let _ = other.try_send(block.clone());
        }
        let source = self.blocks.source.clone();
        let DeclaredBlock { hash, height, bytes } = block;
        let hash = displayed(&hash);
        tracing::info!(connection = id.0, height, hash, "a job declaration client has found a block");
        self.submissions.spawn(async move {
            let (outcome, saved) = source.submit(height, bytes).await;
            if outcome.is_accepted() {
                tracing::info!(height, hash, "declared block accepted");
            } else {
                tracing::warn!(height, hash, ?outcome, "declared block not accepted");
            }
            if let Some(saved) = saved {
                // What prevents it was logged.
                let _ = saved.await;
            }
        });
    }

    fn deliver(&mut self, id: ConnectionId, out: ServerOutput) {
        let Some(live) = self.connections.get(&id) else { return };
        for notice in out.notices {
            tracing::info!(connection = id.0, "{notice}");
        }
        live.line.set_max_payload(live.connection.max_payload(self.clock.now()));
        let is_written = out.bytes.is_empty() || live.line.send(out.bytes).is_ok();
        let stuck = (!is_written).then(|| CloseReason::downstream("it does not read what it is answered"));
        if let Some(reason) = out.close.or(stuck) {
            tracing::info!(connection = id.0, "closed a job declaration connection: {reason}");
            self.forget(id);
        }
    }

    fn forget(&mut self, id: ConnectionId) {
        let Some(mut live) = self.connections.remove(&id) else { return };
        let mut out = ServerOutput::default();
        live.connection.handle_closed(&mut self.server, &mut out);
        for action in out.actions {
            self.act(id, action, &mut ServerOutput::default());
        }
    }

    fn publish_figures(&self) {
        let figures = DeclarationFigures {
            connections: self.connections.len(),
            tokens: self.server.token_count(),
            tally: self.server.tally(),
        };
        self.figures.send_if_modified(|last| std::mem::replace(last, figures) != figures);
    }

    /// Takes what clients had sent before the end, because a block may be among it, and waits for blocks.
    async fn finish(mut self, mut events: mpsc::Receiver<Event>) {
        events.close();
        while let Ok(event) = events.try_recv() {
            self.take_event(event);
        }
        self.connections.clear();
        self.work.shutdown().await;
        let ended = tokio::time::timeout(END_GRACE, async {
            while let Some(ended) = self.submissions.join_next().await {
                ended.unwrap_or_else(|error| note_panic(&error));
            }
        });
        if ended.await.is_err() {
            let blocks = self.submissions.len();
            tracing::error!(blocks, "ended before declared blocks were judged and known to be on the disk");
        }
    }
}

fn note_panic(error: &tokio::task::JoinError) {
    if error.is_panic() {
        tracing::error!("a look at a declared job ended by a bug of ours; please report it: {error}");
    }
}

fn fresh() -> [u8; TOKEN_SIZE] {
    let mut token = [0; TOKEN_SIZE];
    OsRng.fill_bytes(&mut token);
    token
}
