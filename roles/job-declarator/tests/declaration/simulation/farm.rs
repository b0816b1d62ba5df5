//! A farm: its client, its ladder, and the work that its miners have.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use job_declarator::client::{
    Client, ClientJob, ClientOutput, CustomJobId, FoundSolution, NodeSolution, TOKEN_DEADLINE,
};
use job_declarator::ladder::{Ladder, Patience, Rung};
use job_declarator::server::Mode;
use stratum::hash::{Hash, header_hash, merkle_root, sha256d};
use stratum::sv2::Message;
use stratum::sv2::messages::{MiningJobToken, SetCustomMiningJob};
use stratum::{Now, UpstreamJobId};
use template::{BlockTemplate, JobTemplate};

use super::super::client::config;
use super::super::support::*;

const DECLARED: Rung = Rung(0);
const SOLO: Rung = Rung(1);

/// A share: the job that it is for, and the tip of that job.
pub(super) type Share = (CustomJobId, Hash);

/// What the miners hash.
enum Work {
    Custom(Box<ClientJob>),
    Solo(Hash),
}

impl Work {
    fn tip(&self) -> Hash {
        match self {
            Work::Custom(job) => job.template.previous_hash,
            Work::Solo(tip) => *tip,
        }
    }
}

pub(super) struct Farm {
    pub(super) client: Client<Share>,
    pub(super) out: ClientOutput<Share>,
    ladder: Ladder,
    /// The connections that are up: job declaration, and the mining channel.
    pub(super) link: Option<u64>,
    pub(super) channel: Option<u32>,
    newest: Option<BlockTemplate>,
    tip_since: Duration,
    last_job: Option<ClientJob>,
    work: Option<Work>,
    /// What the pool is known here to have taken: its number, and the tip.
    taken: BTreeMap<UpstreamJobId, Hash>,
    tokens_used: BTreeSet<Vec<u8>>,
    pub(super) solo_jobs: u64,
    pub(super) solutions: u64,
    pub(super) released: u64,
    next_nonce: u32,
}

impl Farm {
    pub(super) fn new(mode: Mode, now: Now) -> Self {
        let mut ladder = Ladder::new(2, Patience::default(), now);
        ladder.handle_up(SOLO, now);
        Farm {
            client: Client::new(config(mode), CustomJobId(1)),
            out: ClientOutput::default(),
            ladder,
            link: None,
            channel: None,
            newest: None,
            tip_since: Duration::ZERO,
            last_job: None,
            work: None,
            taken: BTreeMap::new(),
            tokens_used: BTreeSet::new(),
            solo_jobs: 0,
            solutions: 0,
            released: 0,
            next_nonce: 0,
        }
    }

    pub(super) fn is_solo(&self) -> bool {
        self.ladder.current() == Some(SOLO)
    }

    pub(super) fn template(&mut self, template: BlockTemplate, now: Now) {
        let is_new_tip = self.newest.as_ref().is_none_or(|newest| !newest.same_tip(&template));
        if is_new_tip {
            self.tip_since = now.monotonic;
        }
        self.client.handle_template(JobTemplate::of_block_template(&template), now, &mut self.out);
        self.client.handle_transactions(template.id, raw_transactions(&template), now, &mut self.out);
        self.newest = Some(template);
        if self.is_solo() {
            self.go_solo();
        }
    }

    pub(super) fn channel_closed(&mut self, now: Now) {
        self.channel = None;
        self.taken.clear();
        self.client.handle_channel_closed(&mut self.out);
        self.turn(|ladder| ladder.handle_down(DECLARED, now));
    }

    pub(super) fn note_taken(&mut self, job: UpstreamJobId, tip: Hash) {
        self.taken.insert(job, tip);
    }

    /// One share of the miners. The solution is there when it happens to be a block.
    pub(super) fn share(&mut self, nbits_met_by: impl Fn(&Hash) -> bool) {
        let Some(Work::Custom(job)) = &self.work else { return };
        self.next_nonce += 1;
        let found = FoundSolution {
            extranonce: vec![7; 8],
            version: 0x2000_0000,
            ntime: 1_700_000_100,
            nonce: self.next_nonce,
        };
        let coinbase = job.coinbase.with_extranonce(&found.extranonce);
        let root = merkle_root(sha256d(&coinbase), &job.template.merkle_path);
        let header = self.newest.as_ref().map(|newest| {
            let mut template = newest.clone();
            template.previous_hash = job.template.previous_hash;
            template.header(found.version, &root, found.ntime, found.nonce)
        });
        let is_block = header.is_some_and(|header| nbits_met_by(&header_hash(&header)));
        let share = (job.id, job.template.previous_hash);
        let solution = is_block.then_some(&found);
        self.client.handle_share(job.id, share, solution, &mut self.out);
    }

    /// Takes what the client put out: frames for the server, messages for the pool, blocks for our node.
    pub(super) fn drain(&mut self, now: Now) -> (Vec<u8>, Vec<SetCustomMiningJob>, Vec<NodeSolution>) {
        let out = std::mem::take(&mut self.out);
        for job in out.jobs {
            self.last_job = Some(job);
            if self.ladder.current() == Some(DECLARED) {
                self.work_on_custom();
            }
        }
        for released in out.released {
            let tip = self.taken.get(&released.job);
            assert_eq!(tip, Some(&released.share.1), "a share for a job that the pool has not taken");
            self.released += 1;
        }
        if out.close.is_some() {
            self.link = None;
        }
        for _ in out.trouble {
            self.turn(|ladder| ladder.handle_trouble(DECLARED, now));
        }
        for message in messages(&out.bytes) {
            if let Message::DeclareMiningJob(declared) = message {
                self.use_token(&declared.mining_job_token);
            }
        }
        for custom in &out.custom_jobs {
            self.use_token(&custom.token);
        }
        self.solutions += out.solutions.len() as u64;
        (out.bytes, out.custom_jobs, out.solutions)
    }

    /// The client and the ladder look at the clock, and the miners' work at the tip.
    pub(super) fn tick(&mut self, now: Now) {
        if self.client.next_timeout().is_some_and(|due| due <= now.monotonic) {
            self.client.handle_timeout(now, &mut self.out);
            let next = self.client.next_timeout();
            assert!(next.is_none_or(|next| next > now.monotonic), "the client's clock stands still");
        }
        if self.link.is_none() || self.channel.is_none() {
            self.turn(|ladder| ladder.handle_down(DECLARED, now));
        } else if self.client.is_ready() {
            self.turn(|ladder| ladder.handle_up(DECLARED, now));
        }
        self.turn(|ladder| ladder.handle_timeout(now));
        self.check_work(now);
    }

    fn check_work(&self, now: Now) {
        let Some(newest) = &self.newest else { return };
        // The ladder waits for its preferred source at the start.
        if self.ladder.current().is_none() {
            assert!(now.monotonic <= Duration::from_millis(10_100), "nothing is used");
            return;
        }
        let late = now.monotonic.saturating_sub(self.tip_since) > TOKEN_DEADLINE + Duration::from_millis(200);
        let work = self.work.as_ref().map(Work::tip);
        assert!(work.is_some() || !late, "miners have no work");
        assert!(work == Some(newest.previous_hash) || !late, "miners work on a tip that is over");
    }

    /// Each token is sent once for each of its uses.
    fn use_token(&mut self, token: &MiningJobToken) {
        assert!(self.tokens_used.insert(token.0.clone()), "a token was used twice");
    }

    fn turn(&mut self, act: impl FnOnce(&mut Ladder) -> Option<Rung>) {
        match act(&mut self.ladder) {
            Some(SOLO) => self.go_solo(),
            Some(_) => self.work_on_custom(),
            None => (),
        }
    }

    fn go_solo(&mut self) {
        if let Some(newest) = &self.newest {
            self.solo_jobs += 1;
            self.work = Some(Work::Solo(newest.previous_hash));
        }
    }

    /// The last custom job, unless it is for an older tip than what the miners have.
    fn work_on_custom(&mut self) {
        let tip = self.newest.as_ref().map(|newest| newest.previous_hash);
        if let Some(job) = self.last_job.clone().filter(|job| Some(job.template.previous_hash) == tip) {
            self.work = Some(Work::Custom(Box::new(job)));
        }
    }
}
