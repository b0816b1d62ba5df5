//! Templates over JSON-RPC, from any Bitcoin Core that has `getblocktemplate`.
//!
//! Three ways lead to a new template: a long poll, which the node answers at a new tip; a poll now and then, for fees
//! and for nodes whose long polls fail; and the news of a new tip, which comes before the node has made its template
//! for it: from ZeroMQ's `hashblock` where that is configured, else from the call `waitforblockheight`. On such news
//! miners get an empty first template.
//!
//! This module never judges a template: its outlet does.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::Network;
use rand::Rng;
use stratum::hash::Hash;
use template::{BlockTemplate, ValidatedTip};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::{TemplateIds, TemplateOutlet};
use crate::clock::Clock;
use crate::node::client::NodeClient;
use crate::node::error::NodeError;
use crate::shutdown::Shutdown;

/// How long to wait after the first failure; doubled after each further one.
const FIRST_BACK_OFF: Duration = Duration::from_millis(250);

/// The longest wait between two attempts: a node that returns must not stay unnoticed.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(10);

/// The shortest time between two asks of a node whose long polls return at once.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);

/// The long poll brings the full template of a tip that was announced. If it has not by then it is asked for.
const ANNOUNCED_GRACE: Duration = Duration::from_millis(500);

/// An empty first template is worth nothing when the node takes longer than this to describe its tip.
const HEADER_DEADLINE: Duration = Duration::from_secs(2);

/// Blocks between two changes of the network's target.
const RETARGET_INTERVAL: u32 = 2016;

/// How templates are kept fresh.
#[derive(Clone, Debug)]
pub struct RpcSourceSettings {
    /// How often the node is asked even though it announces nothing.
    pub poll: Duration,
    /// Whether miners get an empty template on a new tip until the node has made a full one.
    pub empty_first: bool,
    /// The newest block that the node announced by ZeroMQ, where that is configured.
    pub announced: Option<watch::Receiver<Option<Hash>>>,
}

impl Default for RpcSourceSettings {
    fn default() -> Self {
        RpcSourceSettings { poll: Duration::from_secs(30), empty_first: true, announced: None }
    }
}

/// Hands the node's templates to `outlet` until the end is asked for: the first at once, then at every new tip and at
/// least every [`RpcSourceSettings::poll`].
///
/// A node that goes away is asked again with growing, jittered pauses, and logged once; so is its return.
pub async fn run_rpc_source(
    client: Arc<NodeClient>,
    settings: RpcSourceSettings,
    outlet: TemplateOutlet,
    mut shutdown: Shutdown,
) {
    let clock = outlet.clock();
    let ids = TemplateIds::new(clock);
    let mut source = Source { client, settings, outlet, clock, ids, state: State::Starting };
    tokio::select! {
        () = shutdown.requested() => {}
        () = source.run() => unreachable!("the source runs until it is stopped"),
    }
}

/// What was logged last, so that each change is logged once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Starting,
    Serving,
    Away,
}

type Call<T> = Pin<Box<dyn Future<Output = Result<T, NodeError>> + Send>>;

/// What a source waits for while it follows a node.
struct Waits {
    long_poll: Option<Call<BlockTemplate>>,
    poll: Option<Call<BlockTemplate>>,
    poll_at: Instant,
    new_tip: Option<Call<Hash>>,
}

enum Heard {
    LongPoll(Result<BlockTemplate, NodeError>),
    Poll(Result<BlockTemplate, NodeError>),
    NewTip(Result<Hash, NodeError>),
    PollIsDue,
    Outlet,
}

struct Source {
    client: Arc<NodeClient>,
    settings: RpcSourceSettings,
    outlet: TemplateOutlet,
    clock: Clock,
    ids: TemplateIds,
    state: State,
}

impl Source {
    async fn run(&mut self) {
        let mut back_off = FIRST_BACK_OFF;
        loop {
            let (failure, served) = self.follow().await;
            self.node_lost(&failure);
            if served {
                back_off = FIRST_BACK_OFF;
            }
            // Users may ask for other room meanwhile.
            let until = Instant::now() + jittered(back_off);
            while tokio::time::timeout_at(until, self.outlet.work()).await.is_ok() {}
            back_off = (back_off * 2).min(LONGEST_BACK_OFF);
        }
    }

    /// Hands on templates until the node fails. Says whether there was one.
    async fn follow(&mut self) -> (NodeError, bool) {
        let template = match self.ask(None).await {
            Ok(template) => template,
            Err(failure) => return (failure, false),
        };
        // Only empty templates need it: a user of the node that may not ask has none.
        let network = self.network().await.unwrap_or(None);
        let mut waits = Waits {
            long_poll: None,
            poll: None,
            poll_at: Instant::now() + self.settings.poll,
            new_tip: None,
        };
        self.take(template, &mut waits, true);
        loop {
            if let Err(failure) = self.step(&mut waits, network).await {
                return (failure, true);
            }
        }
    }

    /// Waits for one thing and does what it asks for.
    async fn step(&mut self, waits: &mut Waits, network: Option<Network>) -> Result<(), NodeError> {
        match self.next(waits).await {
            Heard::Outlet => {}
            Heard::LongPoll(Err(NodeError::Timeout { .. })) => {
                // Nothing happened on the chain for very long; the next poll asks anew.
                waits.long_poll = None;
                waits.poll_at = Instant::now();
            }
            Heard::LongPoll(answer) => {
                waits.long_poll = None;
                self.take(answer?, waits, true);
                // A node whose long polls return at once must not be kept busy by us.
                tokio::time::sleep(SHORTEST_PAUSE).await;
            }
            Heard::PollIsDue => {
                waits.poll_at = Instant::now() + self.settings.poll;
                waits.poll = Some(Box::pin(self.ask(None)));
            }
            Heard::Poll(answer) => {
                waits.poll = None;
                let renew = waits.long_poll.is_none();
                self.take(answer?, waits, renew);
            }
            Heard::NewTip(answer) => {
                waits.new_tip = None;
                self.handle_new_tip(answer, waits, network).await;
            }
        }
        Ok(())
    }

    async fn next(&mut self, waits: &mut Waits) -> Heard {
        let announced = self.settings.announced.as_mut();
        tokio::select! {
            // An announced template goes first: it may be that of a new tip.
            biased;
            answer = call(&mut waits.long_poll) => Heard::LongPoll(answer),
            answer = call(&mut waits.new_tip) => Heard::NewTip(answer),
            hash = next_announced(announced) => {
                self.outlet.note_block_notice();
                Heard::NewTip(Ok(hash))
            }
            answer = call(&mut waits.poll) => Heard::Poll(answer),
            () = self.outlet.work() => Heard::Outlet,
            () = tokio::time::sleep_until(waits.poll_at), if waits.poll.is_none() => Heard::PollIsDue,
        }
    }

    /// Hands a template on, and waits for the one after it. The long poll stays open during a mere refresh: Bitcoin
    /// Core does not notice that a caller left, and keeps a thread waiting for each one.
    fn take(&mut self, template: BlockTemplate, waits: &mut Waits, renew_long_poll: bool) {
        if self.state != State::Serving {
            info!(node = self.client.url(), height = template.height, "the node serves templates");
            self.state = State::Serving;
        }
        if renew_long_poll {
            let id = template.long_poll_id.clone();
            waits.long_poll = id.map(|id| -> Call<_> { Box::pin(self.ask(Some(id))) });
        }
        let asks_for_tips = self.settings.empty_first && self.settings.announced.is_none();
        if asks_for_tips && waits.new_tip.is_none() {
            let (client, height) = (Arc::clone(&self.client), template.height);
            waits.new_tip = Some(Box::pin(async move { client.tip_of_height(height).await }));
        }
        self.outlet.offer(template);
    }

    /// A new tip was announced before the node has made its template.
    async fn handle_new_tip(
        &mut self,
        answer: Result<Hash, NodeError>,
        waits: &mut Waits,
        network: Option<Network>,
    ) {
        let hash = match answer {
            Ok(hash) => hash,
            Err(failure) => {
                // It costs nothing but an empty template. The next full one asks for news again.
                debug!(node = self.client.url(), "no news of new tips: {failure}");
                return;
            }
        };
        if self.outlet.is_on(&hash) {
            return;
        }
        waits.poll_at = waits.poll_at.min(Instant::now() + ANNOUNCED_GRACE);
        if let (true, Some(network)) = (self.settings.empty_first, network) {
            let described = tokio::time::timeout(HEADER_DEADLINE, self.describe(&hash, network));
            if let Ok(Ok(Some(tip))) = described.await {
                self.offer_empty(&tip, network);
            }
        }
    }

    fn offer_empty(&mut self, tip: &ValidatedTip, network: Network) {
        let Some(previous) = self.outlet.newest().cloned() else { return };
        let id = self.ids.next_id();
        if let Some(template) = tip.first_template(id, &previous, network, self.clock.now())
            && self.outlet.offer_empty(template)
        {
            debug!(height = tip.height + 1, "an empty first template on a new tip");
        }
    }

    /// What the node says of a block that it announced; `None` when that is not its tip (any more).
    async fn describe(&self, hash: &Hash, network: Network) -> Result<Option<ValidatedTip>, NodeError> {
        let header = self.client.block_header(hash).await?;
        if header.confirmations != 1 {
            return Ok(None);
        }
        let is_retarget = (header.height + 1).is_multiple_of(RETARGET_INTERVAL);
        let period_start = match is_retarget && network != Network::Regtest {
            true => {
                let first = self.client.block_hash(header.height + 1 - RETARGET_INTERVAL).await?;
                Some(self.client.block_header(&first).await?.time)
            }
            false => None,
        };
        Ok(Some(ValidatedTip {
            hash: *hash,
            height: header.height,
            nbits: header.nbits,
            time: header.time,
            median_time: header.median_time,
            period_start,
        }))
    }

    async fn network(&self) -> Result<Option<Network>, NodeError> {
        let info = self.client.chain_info().await?;
        Ok(Network::from_core_arg(&info.chain).ok())
    }

    fn ask(
        &mut self,
        long_poll_id: Option<String>,
    ) -> impl Future<Output = Result<BlockTemplate, NodeError>> + Send + use<> {
        let (client, clock, id) = (Arc::clone(&self.client), self.clock, self.ids.next_id());
        async move { client.block_template(id, long_poll_id.as_deref(), &clock).await }
    }

    fn node_lost(&mut self, failure: &NodeError) {
        self.outlet.failed();
        if self.state == State::Away {
            return;
        }
        self.state = State::Away;
        if failure.is_config() {
            error!(node = self.client.url(), "no templates: {failure}");
        } else {
            warn!(node = self.client.url(), "no templates: {failure}; the last one stays in use");
        }
    }
}

async fn call<T>(call: &mut Option<Call<T>>) -> Result<T, NodeError> {
    match call {
        Some(call) => call.await,
        None => std::future::pending().await,
    }
}

async fn next_announced(announced: Option<&mut watch::Receiver<Option<Hash>>>) -> Hash {
    if let Some(announced) = announced {
        while announced.changed().await.is_ok() {
            let newest = *announced.borrow_and_update();
            if let Some(hash) = newest {
                return hash;
            }
        }
    }
    std::future::pending().await
}

/// Between half of `duration` and one and a half: proxies that lost the same node must not return together.
pub(crate) fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(rand::thread_rng().gen_range(0.5..1.5))
}

#[cfg(test)]
mod tests;
