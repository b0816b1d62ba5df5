//! Our pool on a simulated node: its miners' side, its jobs, and the driver between them.

use std::sync::Arc;
use std::time::Duration;

use checkweigh::pool::jobs::{EXTRANONCE_SIZE, PoolJobs};
use mining_server::{Settings, ShareUse};
use stratum::{JobNumber, Now};
use template::CoinbaseRules;

use crate::chain::Chain;
use crate::net::{Net, Place, What};
use crate::server::{Command, Server};

const REFRESH_INTERVAL: Duration = Duration::from_secs(20);
const WANTED_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) server: Server,
    pub(crate) chain: Chain,
    jobs: PoolJobs,
    last_job: Duration,
    /// Blocks whose job had retired when they came.
    pub(crate) blocks_late: u64,
}

impl Pool {
    pub(crate) fn new(settings: Settings, seed: u64, nbits: u32, now: Now) -> Self {
        assert_eq!(settings.share_use, ShareUse::Keep, "a pool keeps its shares");
        let script = vec![0x51];
        let rules =
            CoinbaseRules::new(script, b"/simulated/".to_vec(), EXTRANONCE_SIZE).expect("a short tag");
        Pool {
            server: Server::new(Place::Pool, settings, now),
            chain: Chain::new(seed, nbits, now),
            jobs: PoolJobs::new(rules, JobNumber::first(now)),
            last_job: now.monotonic,
            blocks_late: 0,
        }
    }

    /// The node has a new template.
    pub(crate) fn take_template(&mut self, net: &mut Net) {
        let template = self.chain.template(net.now);
        self.jobs.handle_template(template).expect("a template with room for our coinbase");
        self.publish(net);
    }

    pub(crate) fn wake(&mut self, net: &mut Net) {
        self.server.owner_wakes = false;
        while self.server.has_news() {
            // A block that comes while the owner looks at its queues is seen after the news behind it.
            let is_seen = self.server.commands.is_empty() || net.dice.chance(0.7);
            if is_seen && let Some(share) = self.server.blocks.pop_front() {
                self.take_block(share, net);
                continue;
            }
            let Some(command) = self.server.commands.pop_front() else { continue };
            match command {
                Command::NewJobWanted { .. } => {
                    if net.now.monotonic >= self.last_job + WANTED_INTERVAL {
                        self.refresh(net);
                    }
                }
                Command::Open { .. } => panic!("a pool opens no upstream channels"),
                Command::Close { .. } | Command::HashRate { .. } => {}
            }
        }
        if net.now.monotonic >= self.last_job + REFRESH_INTERVAL {
            self.refresh(net);
        }
    }

    pub(crate) fn check(&self) {
        self.server.accounts.check(self.server.blocks.len(), None);
        assert!(self.server.shares.is_empty(), "a pool keeps its shares, and forwards blocks only");
    }

    fn take_block(&mut self, share: mining_server::ShareEvent, net: &mut Net) {
        self.server.accounts.record(&share.record);
        assert!(share.forward.is_some(), "a block is forwarded to the node");
        match self.jobs.block(&share) {
            None => self.blocks_late += 1,
            Some(block) => {
                if self.chain.submit(&block.bytes, net.now) {
                    self.take_template(net);
                }
            }
        }
    }

    fn refresh(&mut self, net: &mut Net) {
        if self.jobs.refresh(net.now) {
            self.publish(net);
        } else {
            self.schedule(net);
        }
    }

    fn publish(&mut self, net: &mut Net) {
        let work = self.jobs.work().expect("a job was just made");
        self.server.publish(Arc::new(work), net);
        self.schedule(net);
    }

    fn schedule(&mut self, net: &mut Net) {
        self.last_job = net.now.monotonic;
        net.after(REFRESH_INTERVAL, What::Owner(Place::Pool));
    }
}
