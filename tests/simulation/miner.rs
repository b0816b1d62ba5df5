//! What all miners have in common: they connect, find shares at the pace of their hash rate, and come back.
//!
//! A share's arrival is drawn (hashing is a Poisson process); its nonce is found by hashing.

use std::time::Duration;

use stratum::Target;

use crate::net::{End, LinkId, Net, Place, What};
use crate::sv1_miner::{Dialect, Sv1Miner};
use crate::sv2_miner::{Model, Sv2Miner};

/// What a miner is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Sv1(Dialect),
    Sv2(Model),
}

#[derive(Debug)]
enum Session {
    Sv1(Box<Sv1Miner>),
    Sv2(Box<Sv2Miner>),
}

#[derive(Debug)]
pub(crate) struct Miner {
    pub(crate) index: usize,
    pub(crate) place: Place,
    pub(crate) kind: Kind,
    /// Hashes a second.
    pub(crate) rate: f64,
    session: Option<Session>,
    pub(crate) link: Option<LinkId>,
    /// Changes whenever the wait for the next share must be drawn anew.
    count: u64,
    pub(crate) connected_at: Duration,
    pub(crate) shares: u64,
    connections: u64,
}

impl Miner {
    pub(crate) fn new(index: usize, place: Place, kind: Kind, rate: f64) -> Self {
        Miner {
            index,
            place,
            kind,
            rate,
            session: None,
            link: None,
            count: 0,
            connected_at: Duration::ZERO,
            shares: 0,
            connections: 0,
        }
    }

    /// Returns the new session for the server to accept.
    pub(crate) fn connect(&mut self, net: &mut Net) -> Option<LinkId> {
        if self.link.is_some() {
            return None;
        }
        let link = net.open(self.place, Some(self.index));
        self.link = Some(link);
        self.connected_at = net.now.monotonic;
        self.connections += 1;
        let name = format!("account.miner{}", self.index);
        let mut out = Vec::new();
        self.session = Some(match self.kind {
            Kind::Sv1(dialect) => {
                let sv1 = Sv1Miner::connect(dialect, link, self.index, &name, &mut out);
                Session::Sv1(Box::new(sv1))
            }
            Kind::Sv2(model) => Session::Sv2(Box::new(Sv2Miner::connect(model, link, &name, &mut out))),
        });
        net.write(link, End::Server, &out);
        Some(link)
    }

    pub(crate) fn readable(&mut self, link: LinkId, net: &mut Net) {
        let Some(piece) = net.read(link, End::Client) else { return };
        if self.link != Some(link) {
            return;
        }
        let mut out = Vec::new();
        let stays = match self.session.as_mut() {
            Some(Session::Sv1(sv1)) => sv1.read(&piece, net, &mut out),
            Some(Session::Sv2(sv2)) => sv2.read(&piece, net, &mut out),
            None => true,
        };
        net.write(link, End::Server, &out);
        if !stays {
            self.leave(net);
            return;
        }
        self.draw(net);
    }

    /// The connection is gone, and the miner comes back after a while.
    pub(crate) fn gone(&mut self, link: LinkId, net: &mut Net) {
        if self.link == Some(link) {
            self.forget(net);
        }
    }

    /// The miner ends the connection itself.
    pub(crate) fn leave(&mut self, net: &mut Net) {
        if let Some(link) = self.link {
            net.close(link, End::Client);
            self.forget(net);
        }
    }

    /// A share's time has come.
    pub(crate) fn mine(&mut self, count: u64, net: &mut Net) {
        if self.count != count {
            return;
        }
        let Some(link) = self.link else { return };
        let mut out = Vec::new();
        match self.session.as_mut() {
            Some(Session::Sv1(sv1)) => sv1.mine(net, &mut out),
            Some(Session::Sv2(sv2)) => sv2.mine(net, &mut out),
            None => (),
        }
        self.shares += 1;
        net.write(link, End::Server, &out);
        self.draw(net);
    }

    pub(crate) fn has_job(&self) -> bool {
        self.target().is_some()
    }

    /// It hashes faster or slower from now on.
    pub(crate) fn set_rate(&mut self, rate: f64, net: &mut Net) {
        self.rate = rate;
        self.draw(net);
    }

    /// Draws the wait for the next share anew, which changes nothing where nothing has changed: the process
    /// has no memory.
    fn draw(&mut self, net: &mut Net) {
        self.count += 1;
        if let Some(target) = self.target() {
            let mean = target.work().0 as f64 / self.rate;
            let wait = net.dice.wait(Duration::from_secs_f64(mean.min(1e6)));
            net.after(wait.max(Duration::from_millis(1)), What::Share(self.index, self.count));
        }
    }

    fn target(&self) -> Option<Target> {
        match self.session.as_ref()? {
            Session::Sv1(sv1) => sv1.target(),
            Session::Sv2(sv2) => sv2.target(),
        }
    }

    fn forget(&mut self, net: &mut Net) {
        self.link = None;
        self.session = None;
        self.count += 1;
        let wait = net.dice.between(Duration::from_millis(300), Duration::from_secs(8));
        net.after(wait, What::Connect(self.index));
    }
}
