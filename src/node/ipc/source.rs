//! Templates over the interprocess interface.
//!
//! The node is asked, one thing at a time, so that what comes later is newer: on a new tip, which it announces, for a
//! template without transactions, which is there first, and then for one with them; and now and then for one that pays
//! more. It makes no template that nobody asked for.
//!
//! This module never judges a template: its outlet does.

use std::collections::VecDeque;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;
use std::{cell::Cell, io};

use mining_proxy::Backoff;
use rand::RngCore;
use rand::rngs::OsRng;
use stratum::TemplateId;
use stratum::hash::Hash;
use template::{BlockTemplate, CoinbaseConstraints, SolvedBlock};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::connection::{Caller, Connection, NodeTemplate};
use super::start_thread;
use crate::clock::Clock;
use crate::node::client::SubmitAnswer;
use crate::node::error::NodeError;
use crate::node::source::{TemplateIds, TemplateOutlet};
use crate::node::submitter::{SourceBlock, SourceVerdict};
use crate::shutdown::Shutdown;

/// How long the node may wait before it says that its tip is the same still. What we leave behind when we go ends then.
const TIP_WAIT: Duration = Duration::from_secs(20);

/// The node is asked for more fees no more often than this: each time it makes a whole template to see.
const SHORTEST_FEE_INTERVAL: Duration = Duration::from_secs(1);

/// While the node catches up with the chain it is asked this often how far it is.
pub(super) const CATCH_UP_INTERVAL: Duration = Duration::from_secs(30);

/// Templates that the node keeps for us, so that solutions of them can be submitted: the miners' last and some before.
const KEPT_TEMPLATES: usize = 8;

/// How templates are asked for.
#[derive(Clone, Debug)]
pub struct IpcSourceSettings {
    /// The node's socket.
    pub socket: PathBuf,
    /// How many satoshis more a template of the same tip must pay.
    pub min_gain: u64,
    /// How often the node is asked for one that does.
    pub fee_interval: Duration,
    /// Whether miners get an empty template on a new tip until the node has made a full one.
    pub empty_first: bool,
}

/// Starts the thread that hands the node's templates to `outlet`, and `blocks` to the node, until the end is asked for.
pub fn start_ipc_source(
    settings: IpcSourceSettings,
    outlet: TemplateOutlet,
    blocks: mpsc::Receiver<SourceBlock>,
    mut shutdown: Shutdown,
) -> io::Result<()> {
    start_thread("ipc-templates", move || async move {
        let clock = outlet.clock();
        let ids = TemplateIds::new(clock);
        let mut source = Source { settings, outlet, blocks, clock, ids };
        tokio::select! {
            () = shutdown.requested() => {}
            () = source.run() => unreachable!("the source runs until it is stopped"),
        }
    })
}

struct Source {
    settings: IpcSourceSettings,
    outlet: TemplateOutlet,
    blocks: mpsc::Receiver<SourceBlock>,
    clock: Clock,
    ids: TemplateIds,
}

type Call<T> = Pin<Box<dyn Future<Output = Result<T, NodeError>>>>;

/// A template that was asked for.
struct Made {
    template: BlockTemplate,
    of_node: NodeTemplate,
    has_transactions: bool,
    room: CoinbaseConstraints,
}

/// A template that the node keeps.
struct Kept {
    of_node: NodeTemplate,
    previous_hash: Hash,
    merkle_path: Vec<Hash>,
}

/// One connection that gives templates.
struct Link {
    connection: Rc<Connection>,
    caller: Caller,
    tips: Caller,
    tip: Hash,
    new_tip: Call<Hash>,
    /// What is asked for now. `None` is the answer when no template pays more.
    asked: Option<Call<Option<Made>>>,
    wants_empty: bool,
    wants_full: bool,
    fees_at: Instant,
    /// The last with transactions, and the room that it has.
    base: NodeTemplate,
    room: CoinbaseConstraints,
    /// Newest last.
    kept: VecDeque<Kept>,
    /// Whether the node takes whole blocks, as far as we know.
    takes_blocks: Rc<Cell<bool>>,
}

enum Heard {
    Block(SourceBlock),
    Template(Result<Option<Made>, NodeError>),
    Tip(Result<Hash, NodeError>),
    FeesAreDue,
    Outlet,
}

impl Source {
    async fn run(&mut self) {
        let mut backoff = Backoff::new();
        loop {
            let failure = match self.connect().await {
                Ok((connection, caller, first)) => {
                    backoff.connected(self.clock.now());
                    self.follow(connection, caller, first).await
                }
                Err(failure) => failure,
            };
            self.outlet.failed();
            let delay = backoff.failed(self.clock.now(), OsRng.next_u32());
            let seconds = delay.as_secs_f32();
            tracing::warn!(
                socket = %self.settings.socket.display(),
                "no templates over IPC: {failure}; the last one stays in use; dialling again in {seconds:.1} s"
            );
            self.meanwhile(tokio::time::sleep(delay)).await;
        }
    }

    /// Refuses blocks and listens to users until `event` comes.
    async fn meanwhile<T>(&mut self, event: impl Future<Output = T>) -> T {
        tokio::pin!(event);
        loop {
            tokio::select! {
                event = &mut event => return event,
                () = self.outlet.work() => {}
                Some(block) = self.blocks.recv() => {
                    // Who no longer waits has the answer of the node itself.
                    let _ = block.answer.send(SourceVerdict::Away("the node is away"));
                }
            }
        }
    }

    /// Dials, and waits for the first template.
    async fn connect(&mut self) -> Result<(Rc<Connection>, Caller, Made), NodeError> {
        let socket = self.settings.socket.clone();
        let (room, id, clock) = (self.outlet.constraints(), self.ids.next_id(), self.clock);
        let connect = async move {
            let connection = Rc::new(Connection::dial(&socket).await?);
            tracing::info!(socket = %socket.display(), "connected to the node over IPC");
            let caller = connection.caller().await?;
            let watcher = connection.caller().await?;
            // On the chains of tests there may be nobody else who mines.
            let cooldown = !caller.is_test_chain().await?;
            let first = make(caller.clone(), true, room, cooldown, id, clock);
            tokio::select! {
                first = first => Ok((connection, caller, first?)),
                failure = tell_of_catching_up(&watcher) => Err(failure),
            }
        };
        self.meanwhile(connect).await
    }

    /// Hands on templates until the node fails.
    async fn follow(&mut self, connection: Rc<Connection>, caller: Caller, first: Made) -> NodeError {
        let tips = match connection.caller().await {
            Ok(tips) => tips,
            Err(failure) => return failure,
        };
        let (height, tip) = (first.template.height, first.template.previous_hash);
        tracing::info!(height, "the node gives templates over IPC");
        let mut link = Link {
            connection,
            caller,
            new_tip: next_tip(tips.clone(), tip),
            tips,
            tip,
            asked: None,
            wants_empty: false,
            wants_full: false,
            fees_at: Instant::now(),
            base: first.of_node.clone(),
            room: first.room,
            kept: VecDeque::new(),
            takes_blocks: Rc::new(Cell::new(true)),
        };
        self.take(first, &mut link);
        loop {
            if let Err(failure) = self.step(&mut link).await {
                return failure;
            }
        }
    }

    /// Waits for one thing and does what it asks for.
    async fn step(&mut self, link: &mut Link) -> Result<(), NodeError> {
        self.ask(link);
        match self.next(link).await {
            Heard::Block(block) => link.submit(block),
            Heard::Template(made) => {
                link.asked = None;
                match made? {
                    Some(made) => self.take(made, link),
                    None => {
                        self.outlet.heard();
                        link.fees_at = Instant::now() + self.fee_interval();
                    }
                }
            }
            Heard::Tip(tip) => {
                let tip = tip?;
                self.outlet.heard();
                link.new_tip = next_tip(link.tips.clone(), tip);
                if tip != link.tip {
                    link.tip = tip;
                    self.outlet.note_block_notice();
                    if !self.outlet.is_on(&tip) {
                        (link.wants_empty, link.wants_full) = (self.settings.empty_first, true);
                    }
                }
            }
            // The next step asks.
            Heard::FeesAreDue => {}
            Heard::Outlet => link.wants_full |= self.outlet.constraints() != link.room,
        }
        Ok(())
    }

    async fn next(&mut self, link: &mut Link) -> Heard {
        let is_asking = link.asked.is_some();
        tokio::select! {
            biased;
            Some(block) = self.blocks.recv() => Heard::Block(block),
            tip = &mut link.new_tip => Heard::Tip(tip),
            made = call(&mut link.asked) => Heard::Template(made),
            () = self.outlet.work() => Heard::Outlet,
            () = tokio::time::sleep_until(link.fees_at), if !is_asking => Heard::FeesAreDue,
        }
    }

    /// Asks for what is wanted most, unless something is asked for already.
    fn ask(&mut self, link: &mut Link) {
        if link.asked.is_some() {
            return;
        }
        let (room, clock) = (self.outlet.constraints(), self.clock);
        if std::mem::take(&mut link.wants_empty) {
            let made = make(link.caller.clone(), false, room, false, self.ids.next_id(), clock);
            link.asked = Some(Box::pin(async move { made.await.map(Some) }));
        } else if std::mem::take(&mut link.wants_full) {
            let made = make(link.caller.clone(), true, room, false, self.ids.next_id(), clock);
            link.asked = Some(Box::pin(async move { made.await.map(Some) }));
        } else if link.fees_at <= Instant::now() {
            let (caller, base, room) = (link.caller.clone(), link.base.clone(), link.room);
            let (gain, id) = (self.settings.min_gain, self.ids.next_id());
            link.asked = Some(Box::pin(async move {
                let Some(of_node) = caller.better_template(&base, gain).await? else { return Ok(None) };
                let template = caller.read(&of_node, id, clock).await?;
                Ok(Some(Made { template, of_node, has_transactions: true, room }))
            }));
        }
    }

    fn take(&mut self, made: Made, link: &mut Link) {
        let Made { template, of_node, has_transactions, room } = made;
        let height = template.height;
        link.keep(&template, &of_node);
        if has_transactions {
            (link.base, link.room) = (of_node, room);
            link.fees_at = Instant::now() + self.fee_interval();
            self.outlet.offer(template);
        } else {
            self.outlet.heard();
            if self.outlet.offer_empty(template) {
                tracing::debug!(height, "an empty first template on a new tip");
            }
        }
    }

    fn fee_interval(&self) -> Duration {
        self.settings.fee_interval.max(SHORTEST_FEE_INTERVAL)
    }
}

impl Link {
    fn keep(&mut self, template: &BlockTemplate, of_node: &NodeTemplate) {
        if self.kept.len() == KEPT_TEMPLATES {
            self.kept.pop_front();
        }
        let (previous_hash, merkle_path) = (template.previous_hash, template.merkle_path.clone());
        self.kept.push_back(Kept { of_node: of_node.clone(), previous_hash, merkle_path });
    }

    /// Takes a block to the node, beside all else.
    fn submit(&self, block: SourceBlock) {
        let SourceBlock { bytes, answer } = block;
        let (connection, takes_blocks) = (Rc::clone(&self.connection), Rc::clone(&self.takes_blocks));
        let solution = SolvedBlock::read(&bytes).and_then(|solution| {
            let known = |kept: &&Kept| solution.is_on(&kept.previous_hash, &kept.merkle_path);
            let of_node = self.kept.iter().rev().find(known)?.of_node.clone();
            Some((of_node, solution))
        });
        tokio::task::spawn_local(async move {
            let verdict = submit(&connection, &takes_blocks, &bytes, solution).await;
            let verdict = verdict.unwrap_or_else(|failure| {
                tracing::warn!("a block could not be submitted over IPC: {failure}");
                SourceVerdict::Away("the node cannot be asked over IPC")
            });
            // Who no longer waits has the answer of the node itself.
            let _ = answer.send(verdict);
        });
    }
}

/// Submits the whole block where the node takes one (Bitcoin Core 32), else the solution of its template.
async fn submit(
    connection: &Connection,
    takes_blocks: &Cell<bool>,
    block: &[u8],
    solution: Option<(NodeTemplate, SolvedBlock)>,
) -> Result<SourceVerdict, NodeError> {
    let caller = connection.caller().await?;
    if takes_blocks.get() {
        match caller.submit_block(block).await {
            Err(NodeError::Unknown { .. }) => takes_blocks.set(false),
            answer => return answer.map(SourceVerdict::Judged),
        }
    }
    let Some((template, solution)) = solution else {
        return Ok(SourceVerdict::NotSent("this node takes blocks of its own templates alone over IPC"));
    };
    Ok(match caller.submit_solution(&template, &solution).await? {
        true => SourceVerdict::Sent,
        false => SourceVerdict::Judged(SubmitAnswer::Rejected("the node gives no reason".to_owned())),
    })
}

async fn make(
    caller: Caller,
    has_transactions: bool,
    room: CoinbaseConstraints,
    cooldown: bool,
    id: TemplateId,
    clock: Clock,
) -> Result<Made, NodeError> {
    let of_node = caller.new_template(has_transactions, room, cooldown).await?;
    let template = caller.read(&of_node, id, clock).await?;
    Ok(Made { template, of_node, has_transactions, room })
}

/// Says that there will be no template for a while, where it is so. Returns when the node can no longer be asked.
async fn tell_of_catching_up(watcher: &Caller) -> NodeError {
    let mut was_told = false;
    loop {
        match watcher.is_catching_up().await {
            Ok(true) if !was_told => {
                tracing::warn!("the node still catches up with the chain: no templates until it has");
                was_told = true;
            }
            Ok(_) => {}
            Err(failure) => return failure,
        }
        tokio::time::sleep(CATCH_UP_INTERVAL).await;
    }
}

fn next_tip(tips: Caller, known: Hash) -> Call<Hash> {
    Box::pin(async move { tips.wait_for_tip(&known, TIP_WAIT).await })
}

async fn call<T>(call: &mut Option<Call<T>>) -> Result<T, NodeError> {
    match call {
        Some(call) => call.await,
        None => std::future::pending().await,
    }
}
