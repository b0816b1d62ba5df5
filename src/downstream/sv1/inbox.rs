//! What other threads leave for a worker, and how they wake it.
//!
//! Nobody waits here: what is left replaces what was there, or is bounded by the connections that exist.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use mining_server::sv1::SV1_CHANNEL;
use mio::Waker;
use stratum::{ChannelId, ConnectionId};

use super::connection::Newcomer;
use crate::owner::{Delivery, Mailbox};

/// Where a connection is found: its place among those of its worker, and its id, because places are used again.
pub(super) type Place = (usize, ConnectionId);

/// A worker's inbox. Locked for moments, and never for a share.
#[derive(Debug)]
pub(super) struct Inbox {
    waker: Waker,
    news: Mutex<News>,
}

/// What has come since a worker looked last.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Work for connections that have an upstream channel of their own: the newest for each.
    pub(super) deliveries: HashMap<Place, Delivery>,
    /// Connections that another worker accepted, and that are to be served here.
    pub(super) newcomers: Vec<Newcomer>,
    /// The end was asked for.
    pub(super) end: bool,
}

impl Inbox {
    pub(super) fn new(waker: Waker) -> Self {
        Inbox { waker, news: Mutex::default() }
    }

    /// Has the worker look at its inbox and at the shared work.
    pub(super) fn wake(&self) {
        self.waker.wake().expect("a worker's own file descriptor can be written to");
    }

    /// Takes everything: it is in `emptied` then, whose room for deliveries the inbox goes on with.
    pub(super) fn take(&self, emptied: &mut News) {
        std::mem::swap(&mut *self.news(), emptied);
    }

    /// Leaves a connection that was accepted elsewhere.
    pub(super) fn hand_over(&self, newcomer: Newcomer) {
        self.news().newcomers.push(newcomer);
        self.wake();
    }

    /// Asks the worker to end.
    pub(super) fn end(&self) {
        self.news().end = true;
        self.wake();
    }

    fn deliver(&self, place: Place, delivery: Delivery) {
        let mut news = self.news();
        let is_first = news.deliveries.is_empty();
        news.deliveries.insert(place, delivery);
        drop(news);
        if is_first {
            self.wake();
        }
    }

    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().expect("nothing panics while it holds an inbox")
    }
}

/// The mailbox of one connection: a slip in its worker's inbox.
#[derive(Debug)]
pub(super) struct Slip {
    pub(super) inbox: Arc<Inbox>,
    pub(super) place: Place,
}

impl Mailbox for Slip {
    fn put(&self, channel: ChannelId, delivery: Delivery) {
        assert_eq!(channel, SV1_CHANNEL, "an SV1 connection opens one channel");
        self.inbox.deliver(self.place, delivery);
    }
}
