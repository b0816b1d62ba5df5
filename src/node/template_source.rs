//! Keeps the newest template of a node published.
//!
//! This module never judges a template and never takes one back: while the node is away the last one stays.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use stratum::TemplateId;
use template::BlockTemplate;
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::client::NodeClient;
use super::error::NodeError;
use crate::clock::Clock;
use crate::shutdown::Shutdown;

/// How long to wait after the first failure; doubled after each further one.
const FIRST_BACK_OFF: Duration = Duration::from_millis(250);

/// The longest wait between two attempts: a node that returns must not stay unnoticed.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(10);

/// The shortest time between two asks of a node whose long polls return at once.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);

/// How templates are kept fresh.
#[derive(Clone, Copy, Debug)]
pub struct TemplateSourceSettings {
    /// How old a template may get before a fresh one is fetched even though the node announces nothing.
    pub refresh: Duration,
}

impl Default for TemplateSourceSettings {
    fn default() -> Self {
        TemplateSourceSettings { refresh: Duration::from_secs(30) }
    }
}

/// Publishes the node's newest template until the end is asked for: the first at once, then at every new tip
/// and at least every [`TemplateSourceSettings::refresh`].
///
/// A node that goes away is asked again with growing, jittered pauses, and logged once; so is its return.
pub async fn run_template_source(
    client: Arc<NodeClient>,
    settings: TemplateSourceSettings,
    clock: Clock,
    publish: watch::Sender<Option<Arc<BlockTemplate>>>,
    mut shutdown: Shutdown,
) {
    let mut source = Source { client, settings, clock, publish, last_id: 0, state: State::Starting };
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

struct Source {
    client: Arc<NodeClient>,
    settings: TemplateSourceSettings,
    clock: Clock,
    publish: watch::Sender<Option<Arc<BlockTemplate>>>,
    last_id: u64,
    state: State,
}

impl Source {
    async fn run(&mut self) {
        let mut back_off = FIRST_BACK_OFF;
        loop {
            match self.ask().await {
                Ok(template) => {
                    back_off = FIRST_BACK_OFF;
                    let failure = self.follow(template).await;
                    self.node_lost(&failure);
                }
                Err(failure) => self.node_lost(&failure),
            }
            tokio::time::sleep(jittered(back_off)).await;
            back_off = (back_off * 2).min(LONGEST_BACK_OFF);
        }
    }

    /// Publishes `template` and everything after it, until the node fails.
    async fn follow(&mut self, template: BlockTemplate) -> NodeError {
        let mut long_poll_id = self.publish(template);
        loop {
            let started = tokio::time::Instant::now();
            match self.next(long_poll_id).await {
                Ok(template) => long_poll_id = self.publish(template),
                Err(failure) => return failure,
            }
            tokio::time::sleep_until(started + SHORTEST_PAUSE).await;
        }
    }

    /// Waits for the template after the one with this identifier; publishes refreshed ones meanwhile.
    ///
    /// The long poll stays open during a refresh: Bitcoin Core does not notice that a caller left, and keeps
    /// a thread waiting for each one.
    async fn next(&mut self, long_poll_id: Option<String>) -> Result<BlockTemplate, NodeError> {
        let Some(long_poll_id) = long_poll_id else {
            tokio::time::sleep(self.settings.refresh).await;
            return self.ask().await;
        };
        let (client, clock) = (self.client.clone(), self.clock);
        let id = self.next_id();
        let long_poll = client.block_template(id, Some(&long_poll_id), &clock);
        tokio::pin!(long_poll);
        loop {
            tokio::select! {
                // An announced template goes first: it may be that of a new tip.
                biased;
                announced = &mut long_poll => match announced {
                    // Nothing happened on the chain for very long; the next poll asks anew.
                    Err(NodeError::Timeout { .. }) => return self.ask().await,
                    announced => return announced,
                },
                refreshed = self.refreshed() => {
                    self.publish(refreshed?);
                }
            }
        }
    }

    async fn refreshed(&mut self) -> Result<BlockTemplate, NodeError> {
        tokio::time::sleep(self.settings.refresh).await;
        self.ask().await
    }

    async fn ask(&mut self) -> Result<BlockTemplate, NodeError> {
        let id = self.next_id();
        self.client.block_template(id, None, &self.clock).await
    }

    fn next_id(&mut self) -> TemplateId {
        self.last_id += 1;
        TemplateId(self.last_id)
    }

    fn publish(&mut self, template: BlockTemplate) -> Option<String> {
        if self.state != State::Serving {
            info!(node = self.client.url(), height = template.height, "the node serves templates");
            self.state = State::Serving;
        }
        let long_poll_id = template.long_poll_id.clone();
        self.publish.send_replace(Some(Arc::new(template)));
        long_poll_id
    }

    fn node_lost(&mut self, failure: &NodeError) {
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

/// Between half of `duration` and one and a half: proxies that lost the same node must not return together.
pub(crate) fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(rand::thread_rng().gen_range(0.5..1.5))
}

#[cfg(test)]
mod tests;
