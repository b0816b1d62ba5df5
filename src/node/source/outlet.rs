//! The source's end of the interface: what becomes of a template that was heard of.
//!
//! The rules that are the same for all sources are applied here, and only here.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use stratum::hash::Hash;
use template::{BlockTemplate, CoinbaseConstraints, Publication, PublishPolicy, Publisher};
use tokio::sync::watch;
use tokio::time::Instant;

use super::SourceKind;
use super::status::{SourceStatus, add, set};
use crate::clock::Clock;

/// What a source publishes through.
#[derive(Debug)]
pub struct TemplateOutlet {
    publisher: Publisher,
    publish: watch::Sender<Option<Arc<BlockTemplate>>>,
    constraints: watch::Receiver<CoinbaseConstraints>,
    /// The newest template as it came, before room was made in it.
    newest: Option<Arc<BlockTemplate>>,
    status: Arc<SourceStatus>,
    policy: PublishPolicy,
    clock: Clock,
}

impl TemplateOutlet {
    pub(super) fn new(
        policy: PublishPolicy,
        publish: watch::Sender<Option<Arc<BlockTemplate>>>,
        constraints: watch::Receiver<CoinbaseConstraints>,
        status: Arc<SourceStatus>,
        clock: Clock,
    ) -> Self {
        let publisher = Publisher::new(policy);
        TemplateOutlet { publisher, publish, constraints, newest: None, status, policy, clock }
    }

    /// The clocks.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// The newest template as the source brought it.
    pub fn newest(&self) -> Option<&Arc<BlockTemplate>> {
        self.newest.as_ref()
    }

    /// A template of the source's came; it is for the best tip that the source knows.
    pub fn offer(&mut self, template: BlockTemplate) {
        add(&self.status.heard, 1);
        let template = Arc::new(template);
        self.newest = Some(Arc::clone(&template));
        self.heard();
        if let Some(template) = self.with_room(template) {
            let publication = self.publisher.handle_template(template, self.clock.now());
            self.send(publication);
        }
    }

    /// An empty template of our own came, for a tip that our node has validated. True when it was published: nothing
    /// else of that tip was there yet.
    pub fn offer_empty(&mut self, template: BlockTemplate) -> bool {
        let publication = self.publisher.handle_stopgap(Arc::new(template), self.clock.now());
        let published = publication.is_some();
        add(&self.status.empty_first, u64::from(published));
        self.send(publication);
        published
    }

    /// Whether the template that was published last builds on this block.
    pub fn is_on(&self, tip: &Hash) -> bool {
        self.publisher.last().is_some_and(|last| last.previous_hash == *tip)
    }

    /// The source gives templates, or says that nothing is new.
    pub fn heard(&self) {
        self.status.live.store(true, Ordering::Relaxed);
        set(&self.status.heard_us, self.clock.now().utc.as_micros() as u64);
    }

    /// The source gives no templates now. The last one stays in use.
    pub fn failed(&self) {
        self.status.live.store(false, Ordering::Relaxed);
        add(&self.status.failures, 1);
    }

    /// The node announced a block out of turn.
    pub fn note_block_notice(&self) {
        add(&self.status.block_notices, 1);
    }

    /// The room that users ask for now.
    pub fn constraints(&self) -> CoinbaseConstraints {
        *self.constraints.borrow()
    }

    /// Waits until the outlet itself has something to do, and does it: a template that was held back is due, or users
    /// ask for other room. Returns after each time; never loses anything when it is dropped.
    pub async fn work(&mut self) {
        let due = self.publisher.next_timeout().map(|at| self.clock.instant(at));
        tokio::select! {
            changed = self.constraints.changed() => match changed {
                Ok(()) => self.make_room(),
                // No user is left who could ask for anything.
                Err(_) => wait_until(due).await,
            },
            () = wait_until(due) => {}
        }
        let publication = self.publisher.handle_timeout(self.clock.now());
        self.send(publication);
    }

    /// Users ask for other room: the newest template is published anew, whatever it gains.
    fn make_room(&mut self) {
        self.constraints.mark_unchanged();
        let Some(template) = self.newest.clone() else { return };
        if self.publisher.last().is_some_and(|last| !last.same_tip(&template)) {
            // An empty first one has all the room there is.
            return;
        }
        let Some(template) = self.with_room(template) else { return };
        if self.publisher.last() != Some(&template) {
            self.publisher = Publisher::new(self.policy);
            let publication = self.publisher.handle_template(template, self.clock.now());
            self.send(publication);
        }
    }

    fn with_room(&self, template: Arc<BlockTemplate>) -> Option<Arc<BlockTemplate>> {
        let height = template.height;
        match self.constraints().apply(template) {
            // A provider makes the room itself: nobody else knows the fees that would go.
            Ok(constrained) if constrained.dropped > 0 && self.status.kind() == SourceKind::Sv2 => None,
            Ok(constrained) => {
                add(&self.status.dropped_transactions, constrained.dropped as u64);
                add(&self.status.dropped_fees, constrained.lost_fees);
                Some(constrained.template)
            }
            Err(error) => {
                tracing::error!(height, "no template for the coinbase that is wanted: {error}");
                None
            }
        }
    }

    fn send(&self, publication: Option<Publication>) {
        let Some(Publication { template, new_tip }) = publication else { return };
        let status = &self.status;
        set(&status.height, template.height.into());
        set(&status.fees, template.fees());
        set(&status.transactions, template.transactions.len() as u64);
        set(&status.received_us, template.received.utc.as_micros() as u64);
        add(&status.published, 1);
        add(&status.new_tips, u64::from(new_tip));
        tracing::debug!(
            source = status.kind().name(),
            height = template.height,
            fees = template.fees(),
            transactions = template.transactions.len(),
            new_tip,
            "a template"
        );
        self.publish.send_replace(Some(template));
    }
}

async fn wait_until(due: Option<Instant>) {
    match due {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
