//! What drives job declaration: the connections to job declaration servers, templates of our own node, and the way of
//! blocks to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mining_proxy::output::FoundBlock;
use template::{BlockTemplate, CoinbaseConstraints};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Driver;
use super::link::{Connected, LinkEvent};
use crate::node::BlockSource;

/// How long submissions may still take when the program ends.
const LAST_SUBMISSIONS: Duration = Duration::from_secs(2);

/// How often a template is said again that the node still stands by: often enough for `OLDEST_TEMPLATE` of the
/// `mining-proxy` crate.
const REPEAT: Duration = Duration::from_secs(20);

/// Blocks that wait for our node's judgement. Only a test network has more than one at a time.
const MAX_SUBMISSIONS: usize = 1024;

/// Bytes that wait for a job declaration server: the transactions of a few whole blocks. One that leaves more unread is
/// given up.
const MAX_UNWRITTEN: usize = 16 * 1024 * 1024;

/// Blocks of our own templates, since the start.
#[derive(Debug, Default)]
pub struct OwnBlocks {
    /// Found by our miners.
    pub found: AtomicU64,
    /// Taken by our node.
    pub accepted: AtomicU64,
}

/// Our own node, where jobs are declared.
pub(super) struct OwnNode {
    source: BlockSource,
    templates: watch::Receiver<Option<Arc<BlockTemplate>>>,
    /// When the template that is there is said again, if the node still stands by it.
    repeat_at: Instant,
    /// The room that was asked for.
    asked: CoinbaseConstraints,
    submissions: JoinSet<()>,
}

impl OwnNode {
    pub(super) fn new(source: BlockSource) -> Self {
        let mut templates = source.templates();
        // The one that is there already is news, too.
        templates.mark_changed();
        OwnNode {
            source,
            templates,
            repeat_at: Instant::now() + REPEAT,
            asked: CoinbaseConstraints::default(),
            submissions: JoinSet::new(),
        }
    }

    /// Waits for the next template, or until it is time to repeat the one that is there: a node without new fees
    /// publishes none for long, and silence would mean that it is away. Never ends when its source has ended.
    pub(super) async fn next(&mut self) -> Option<Arc<BlockTemplate>> {
        loop {
            match tokio::time::timeout_at(self.repeat_at, self.templates.changed()).await {
                Ok(Ok(())) => break,
                Ok(Err(_)) => std::future::pending::<()>().await,
                Err(_) if self.source.is_live() => break,
                Err(_) => self.repeat_at = Instant::now() + REPEAT,
            }
        }
        self.repeat_at = Instant::now() + REPEAT;
        self.templates.borrow_and_update().clone()
    }

    /// Asks for templates with the room that pools want in coinbases. Pools want less again too rarely to give any back.
    pub(super) fn make_room(&mut self, wanted: CoinbaseConstraints) {
        if self.asked.largest(wanted) != self.asked {
            self.asked = self.asked.largest(wanted);
            self.source.raise_constraints(self.asked);
        }
    }

    /// Sends a block to the node, which also writes it to the disk. Waits for neither.
    fn submit(&mut self, block: FoundBlock, counts: Arc<OwnBlocks>) {
        while self.submissions.try_join_next().is_some() {}
        counts.found.fetch_add(1, Ordering::Relaxed);
        if self.submissions.len() >= MAX_SUBMISSIONS {
            tracing::error!(
                height = block.height,
                "too many blocks wait for our node: this one is lost to it"
            );
            return;
        }
        let source = self.source.clone();
        self.submissions.spawn(async move {
            let height = block.height;
            let (outcome, saved) = source.submit(height, block.bytes).await;
            if outcome.is_accepted() {
                counts.accepted.fetch_add(1, Ordering::Relaxed);
                tracing::info!(height, "a block of our own template is in the chain");
            } else {
                tracing::warn!(height, ?outcome, "our node did not take a block of its own template");
            }
            // The program must not end before the block is on the disk. What prevents that was logged.
            if let Some(saved) = saved {
                let _ = saved.await;
            }
        });
    }

    pub(super) async fn finish(&mut self) {
        let all = async { while self.submissions.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST_SUBMISSIONS, all).await.is_err() {
            tracing::error!(blocks = self.submissions.len(), "some blocks were not judged in time");
        }
    }
}

impl Driver {
    pub(super) fn handle_template(&mut self, template: Option<Arc<BlockTemplate>>) {
        if let Some(template) = template {
            let now = self.task.clock.now();
            self.upstreams.handle_template(&template, now, &mut self.outs);
        }
    }

    pub(super) fn handle_declaration(&mut self, place: usize, event: LinkEvent) {
        match event {
            LinkEvent::Read(Ok(0)) => {
                self.disconnect_declaration(place, "the job declaration server closed the connection");
            }
            LinkEvent::Read(Ok(length)) => self.read_declaration(place, length),
            LinkEvent::Read(Err(error)) | LinkEvent::Wrote(Err(error)) => {
                self.disconnect_declaration(place, &error.to_string());
            }
            LinkEvent::Wrote(Ok(length)) => {
                if let Some(link) = &mut self.declarations[place] {
                    link.unwritten.drain(..length);
                }
            }
            LinkEvent::Dialled(result) => self.dialled_declaration(place, result),
        }
    }

    fn read_declaration(&mut self, place: usize, length: usize) {
        let now = self.task.clock.now();
        let mut input = &self.buffer[..length];
        loop {
            let link = self.declarations[place].as_mut();
            let Some(decryptor) = link.and_then(|link| link.decryptor()) else { return };
            match decryptor.next_frame(&mut input) {
                Ok(None) => return,
                Ok(Some(frame)) => {
                    let (header, payload) = (frame.header, frame.payload);
                    self.upstreams.handle_declaration_frame(place, header, payload, now, &mut self.outs);
                }
                Err(error) => return self.disconnect_declaration(place, &error.to_string()),
            }
            if self.outs[place].close_declaration.is_some() {
                return;
            }
        }
    }

    fn disconnect_declaration(&mut self, place: usize, reason: &str) {
        let now = self.task.clock.now();
        self.upstreams.handle_declaration_disconnected(place, now, &mut self.outs);
        if let Some(link) = &mut self.declarations[place] {
            link.go_down(reason, now);
        }
    }

    fn dialled_declaration(&mut self, place: usize, result: Result<Box<Connected>, String>) {
        let now = self.task.clock.now();
        let Some(link) = &mut self.declarations[place] else { return };
        match result {
            Ok(connected) => {
                let endpoint = connected.endpoint.clone();
                link.go_up(connected, now);
                self.upstreams.handle_declaration_connected(place, &endpoint, now, &mut self.outs);
            }
            Err(reason) => link.go_down(&reason, now),
        }
    }

    /// Sends blocks to our node, and frames to the job declaration server.
    pub(super) fn settle_declaration(&mut self, place: usize) {
        let out = &mut self.outs[place];
        if let Some(node) = &mut self.node {
            for block in out.blocks.drain(..) {
                node.submit(block, Arc::clone(&self.task.status.own_blocks));
            }
        }
        let Some(link) = &mut self.declarations[place] else { return };
        if !out.declaration_bytes.is_empty() {
            let sent = link.send(&out.declaration_bytes);
            out.declaration_bytes.clear();
            if let Err(error) = sent {
                return self.disconnect_declaration(place, &error.to_string());
            }
            let waiting = link.unwritten.len();
            if waiting > MAX_UNWRITTEN {
                let what = format!("the job declaration server does not read: {waiting} bytes wait for it");
                return self.disconnect_declaration(place, &what);
            }
        }
        if let Some(reason) = out.close_declaration.take() {
            link.redirect = out.redirect_declaration.take();
            link.go_down(&reason.to_string(), self.task.clock.now());
        }
    }
}
