//! The upstreams, the pools, and what holds at all times.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use job_declarator::client::ClientConfig;
use job_declarator::server::Mode;
use mining_proxy::output::FoundBlock;
use mining_proxy::{
    DownstreamKey, Endpoint, Feed, LinkState, Patience, Standing, UpstreamConfig, UpstreamOutput, Upstreams,
};
use mining_server::record::{HeldRelease, ReleaseFate};
use mining_server::{Fate, ShareEvent, ShareRecord, UpstreamAnswer, UpstreamVerdict, Work};
use stratum::sv2::frame::HEADER_SIZE;
use stratum::sv2::messages::*;
use stratum::sv2::{FrameHeader, Message};
use stratum::{ChannelId, HashRate, Job, JobId, JobNumber, Now, Target, TemplateId, UpstreamId};
use template::constraints::FIXED_WEIGHT;
use template::outputs::write_outputs;
use template::{BlockTemplate, Output, TemplateTransaction};

use crate::rig::{self, NTIME};

pub(crate) const PATIENCE: Patience = Patience {
    hold_down: Duration::from_secs(30),
    longest_hold_down: Duration::from_secs(600),
    steady: Duration::from_secs(30),
    start_grace: Duration::from_secs(10),
};

/// In the place of a pool: the first one's job declaration server.
const SERVER: usize = usize::MAX;

/// What a pool does on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// It opens channels and sends jobs.
    Well,
    /// It opens channels, and sends no job.
    Mute,
    /// It refuses every share.
    Refusing,
    /// It opens no channel.
    Closed,
}

#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) manner: Manner,
    pub(crate) is_connected: bool,
    next_channel: u32,
    /// The channels that are open, each with the shares that it was sent and has not answered.
    pub(crate) channels: BTreeMap<ChannelId, Vec<SubmitSharesExtended>>,
    pub(crate) shares: u64,
}

pub(crate) struct Stage {
    pub(crate) upstreams: Upstreams,
    pub(crate) outs: Vec<UpstreamOutput>,
    pub(crate) pools: Vec<Pool>,
    pub(crate) now: Now,
    /// What was published last, for each feed.
    pub(crate) work: BTreeMap<Feed, Arc<Work>>,
    pub(crate) numbers: BTreeSet<JobNumber>,
    pub(crate) records: Vec<ShareRecord>,
    pub(crate) releases: Vec<HeldRelease>,
    pub(crate) answers: Vec<UpstreamAnswer>,
    pub(crate) open_failed: Vec<DownstreamKey>,
    pub(crate) blocks: Vec<FoundBlock>,
    /// Custom jobs that a mute pool leaves unanswered.
    pub(crate) waiting: Vec<SetCustomMiningJob>,
    /// The custom jobs that the first pool has taken on its present connection.
    taken: BTreeSet<JobId>,
    declares: bool,
    server_is_connected: bool,
    submitted: u64,
    block: u8,
}

impl Stage {
    pub(crate) fn new(count: usize, aggregate: bool) -> Self {
        let now = Now::simulated(Duration::from_secs(NTIME.into()), Duration::from_secs(100));
        let config = |place| UpstreamConfig { id: UpstreamId(place as u16), ..rig::config(aggregate) };
        Stage::with_configs((0..count).map(config).collect(), now)
    }

    /// Two pools, of which jobs are declared to the first, as coinbases alone.
    pub(crate) fn declaring() -> Self {
        let now = Now::simulated(Duration::from_secs(NTIME.into()), Duration::from_secs(100));
        let client = ClientConfig {
            user_identifier: "account.farm".to_owned(),
            mode: Mode::CoinbaseOnly,
            tag: b"/tests/".to_vec(),
            vendor: "Checkweigh".to_owned(),
            hardware_version: "mining-proxy".to_owned(),
            firmware: "tests".to_owned(),
        };
        let first = UpstreamConfig { job_declaration: Some(client), ..rig::config(true) };
        let second = UpstreamConfig { id: UpstreamId(1), ..rig::config(true) };
        Stage::with_configs(vec![first, second], now)
    }

    fn with_configs(configs: Vec<UpstreamConfig>, now: Now) -> Self {
        let count = configs.len();
        let declares = configs[0].job_declaration.is_some();
        let pool = || Pool {
            manner: Manner::Well,
            is_connected: false,
            next_channel: 1,
            channels: BTreeMap::new(),
            shares: 0,
        };
        Stage {
            upstreams: Upstreams::new(configs, PATIENCE, JobNumber::first(now), now),
            outs: (0..count).map(|_| UpstreamOutput::default()).collect(),
            pools: (0..count).map(|_| pool()).collect(),
            now,
            work: BTreeMap::new(),
            numbers: BTreeSet::new(),
            records: Vec::new(),
            releases: Vec::new(),
            answers: Vec::new(),
            open_failed: Vec::new(),
            blocks: Vec::new(),
            waiting: Vec::new(),
            taken: BTreeSet::new(),
            declares,
            server_is_connected: false,
            submitted: 0,
            block: 1,
        }
    }

    /// All pools connected, and miners on the work of the first.
    pub(crate) fn mining(count: usize) -> Self {
        let mut stage = Stage::new(count, true);
        (0..count).for_each(|place| stage.connect(place));
        assert_eq!(stage.source(Feed::Shared), 0);
        stage
    }

    pub(crate) fn connect(&mut self, place: usize) {
        if self.pools[place].is_connected {
            return;
        }
        self.pools[place].is_connected = true;
        let endpoint = Endpoint { host: "pool.example".to_owned(), port: 34254 };
        self.upstreams.handle_connected(place, &endpoint, self.now, &mut self.outs);
        self.settle();
    }

    pub(crate) fn disconnect(&mut self, place: usize) {
        let pool = &mut self.pools[place];
        pool.is_connected = false;
        pool.channels.clear();
        self.forget(place);
        self.upstreams.handle_disconnected(place, self.now, &mut self.outs);
        self.settle();
    }

    pub(crate) fn receive(&mut self, place: usize, message: impl Into<Message>) {
        let mut frame = Vec::new();
        message.into().encode_frame(&mut frame).expect("encodable");
        let (header, payload) = frame.split_first_chunk::<HEADER_SIZE>().expect("a header");
        self.upstreams.handle_frame(place, FrameHeader::parse(*header), payload, self.now, &mut self.outs);
        self.settle();
    }

    /// Has a pool send every channel a job on a new block.
    pub(crate) fn new_block(&mut self, place: usize) {
        self.block = self.block.wrapping_add(1).max(1);
        let channels: Vec<ChannelId> = self.pools[place].channels.keys().copied().collect();
        channels.into_iter().for_each(|channel| self.send_job(place, channel));
    }

    fn send_job(&mut self, place: usize, channel: ChannelId) {
        let block = self.block;
        self.receive(place, rig::job(channel, u32::from(block), None));
        self.receive(place, rig::tip(channel, u32::from(block), block));
    }

    pub(crate) fn open_device(&mut self, number: u64) {
        let rate = HashRate(1e12);
        self.upstreams.handle_open(rig::key(number), "account.rig", rate, self.now, &mut self.outs);
        self.settle();
    }

    pub(crate) fn close_device(&mut self, number: u64) {
        self.upstreams.handle_close(rig::key(number), self.now, &mut self.outs);
        self.work.remove(&Feed::Device(rig::key(number)));
        self.settle();
    }

    /// Lets time pass, calling the upstreams whenever they want to be.
    pub(crate) fn advance(&mut self, seconds: u64) {
        let end = self.now.plus(Duration::from_secs(seconds));
        while let Some(wake) = self.upstreams.next_timeout(self.now).filter(|wake| *wake <= end.monotonic) {
            self.now = self.now.plus(wake.saturating_sub(self.now.monotonic));
            self.upstreams.handle_timeout(self.now, &mut self.outs);
            let next = self.upstreams.next_timeout(self.now);
            assert!(next.is_none_or(|next| next > self.now.monotonic), "the timer must move on: {next:?}");
            self.settle();
        }
        self.now = self.now.plus(end.since(self.now));
    }

    /// A miner's share on what was published last, or on a job that it kept.
    pub(crate) fn share(&mut self, job: &Job, nonce: u32) -> Fate {
        self.submitted += 1;
        self.upstreams.handle_share(rig::share(job, nonce, false, self.now), self.now, &mut self.outs);
        self.settle();
        self.records.last().expect("every share has a record").fate
    }

    pub(crate) fn job(&self, feed: Feed) -> Job {
        self.work[&feed].active().job.clone()
    }

    /// A share that may have to wait.
    pub(crate) fn submit(&mut self, job: &Job, nonce: u32, is_block: bool) -> Fate {
        self.submit_share(rig::share(job, nonce, is_block, self.now))
    }

    /// The same with a share that is made already.
    pub(crate) fn submit_share(&mut self, share: ShareEvent) -> Fate {
        let before = self.records.len();
        self.submitted += 1;
        self.upstreams.handle_share(share, self.now, &mut self.outs);
        self.settle();
        self.records[before].fate
    }

    /// Our node has a template on this block.
    pub(crate) fn template(&mut self, id: u64, block: u8) {
        let template = self.template_on(id, block);
        self.take_template(template);
    }

    /// The same, without room for any output: its one transaction, which pays `fee`, fills the block.
    pub(crate) fn full_template(&mut self, id: u64, block: u8, fee: u64) {
        let weight = 400;
        let transaction = TemplateTransaction {
            raw: Vec::new(),
            txid: [9; 32],
            wtxid: [9; 32],
            fee,
            weight,
            sigops: 0,
            depends: Vec::new(),
        };
        let template = self.template_on(id, block);
        self.take_template(BlockTemplate {
            weight_limit: FIXED_WEIGHT + weight,
            transactions: vec![transaction],
            ..template
        });
    }

    fn take_template(&mut self, template: BlockTemplate) {
        self.upstreams.handle_template(&Arc::new(template), self.now, &mut self.outs);
        self.settle();
    }

    fn template_on(&self, id: u64, block: u8) -> BlockTemplate {
        BlockTemplate {
            id: TemplateId(id),
            height: 800_000 + u32::from(block),
            previous_hash: [block; 32],
            version: 0x2000_0000,
            nbits: rig::NBITS,
            min_ntime: NTIME - 1000,
            current_time: NTIME,
            coinbase_value: 312_500_000,
            witness_commitment: None,
            merkle_path: Vec::new(),
            transactions: Vec::new(),
            weight_limit: 4_000_000,
            sigop_limit: 80_000,
            long_poll_id: None,
            received: self.now,
        }
    }

    /// What the first pool had taken, and had not answered, is over with its connection.
    fn forget(&mut self, place: usize) {
        if place == 0 {
            self.taken.clear();
            self.waiting.clear();
        }
    }

    pub(crate) fn connect_server(&mut self) {
        if std::mem::replace(&mut self.server_is_connected, true) {
            return;
        }
        let endpoint = Endpoint { host: "pool.example".to_owned(), port: 34264 };
        self.upstreams.handle_declaration_connected(0, &endpoint, self.now, &mut self.outs);
        self.settle();
    }

    pub(crate) fn disconnect_server(&mut self) {
        self.server_is_connected = false;
        self.upstreams.handle_declaration_disconnected(0, self.now, &mut self.outs);
        self.settle();
    }

    fn receive_from_server(&mut self, message: impl Into<Message>) {
        let mut frame = Vec::new();
        message.into().encode_frame(&mut frame).expect("encodable");
        let (header, payload) = frame.split_first_chunk::<HEADER_SIZE>().expect("a header");
        let header = FrameHeader::parse(*header);
        self.upstreams.handle_declaration_frame(0, header, payload, self.now, &mut self.outs);
        self.settle();
    }

    /// What the job declaration server does with a message.
    fn at_server(&mut self, message: Message) {
        match message {
            Message::SetupConnection(_) => {
                self.receive_from_server(SetupConnectionSuccess { used_version: 2, flags: 0 });
            }
            Message::AllocateMiningJobToken(request) => {
                let outputs = [Output { value: 0, script: vec![0x51] }];
                self.receive_from_server(AllocateMiningJobTokenSuccess {
                    request_id: request.request_id,
                    mining_job_token: request.request_id.0.to_le_bytes().to_vec().into(),
                    coinbase_outputs: write_outputs(&outputs),
                });
            }
            other => panic!("to a server that is shown the coinbase alone: {other:?}"),
        }
    }

    /// The pool takes a custom job.
    pub(crate) fn take_custom_job(&mut self, place: usize, custom: &SetCustomMiningJob) {
        let (channel_id, request_id) = (custom.channel_id, custom.request_id);
        let job_id = JobId(0x7000_0000 + request_id.0);
        self.taken.insert(job_id);
        self.receive(place, SetCustomMiningJobSuccess { channel_id, request_id, job_id });
    }

    /// Whose work is published.
    pub(crate) fn source(&self, feed: Feed) -> usize {
        usize::from(self.job(feed).origin.upstream.0)
    }

    pub(crate) fn standing(&self, place: usize) -> Standing {
        self.upstreams.standings(self.now).nth(place).expect("there is one")
    }

    /// Answers whatever the shares of a pool wait for.
    pub(crate) fn answer(&mut self, place: usize) {
        let pool = &mut self.pools[place];
        let refuses = pool.manner == Manner::Refusing;
        let channels: Vec<_> =
            pool.channels.iter_mut().map(|(id, shares)| (*id, shares.split_off(0))).collect();
        for (channel_id, shares) in channels {
            for share in shares {
                let sequence_number = share.sequence_number;
                if refuses {
                    let error_code = "invalid-share".to_owned();
                    self.receive(place, SubmitSharesError { channel_id, sequence_number, error_code });
                } else {
                    self.receive(place, rig::success(channel_id, sequence_number.0, 1));
                }
            }
        }
    }

    /// Carries everything to where it goes, until nothing is left to carry.
    fn settle(&mut self) {
        loop {
            let mut sent = Vec::new();
            for place in 0..self.outs.len() {
                let mut out = std::mem::take(&mut self.outs[place]);
                self.publish(place, &mut out);
                sent.extend(messages(&out.bytes).into_iter().map(|message| (place, message)));
                let to_server = messages(&out.declaration_bytes).into_iter();
                sent.extend(to_server.map(|message| (SERVER, message)));
                self.blocks.append(&mut out.blocks);
                self.open_failed.extend(out.open_failed.iter().map(|(key, _)| *key));
                self.records.append(&mut out.records);
                self.releases.append(&mut out.releases);
                self.answers.append(&mut out.answers);
                if out.close.is_some() {
                    self.pools[place].is_connected = false;
                    self.pools[place].channels.clear();
                    self.forget(place);
                }
                self.server_is_connected &= out.close_declaration.is_none();
            }
            self.check();
            if sent.is_empty() {
                return;
            }
            for (place, message) in sent {
                match place {
                    SERVER => self.at_server(message),
                    place => self.at_pool(place, message),
                }
            }
        }
    }

    fn publish(&mut self, place: usize, out: &mut UpstreamOutput) {
        for (feed, work) in out.publish.drain(..) {
            let job = &work.active().job;
            assert_eq!(usize::from(job.origin.upstream.0), place, "an upstream publishes its own work");
            if let Some(before) = self.work.get(&feed) {
                let before = &before.active().job;
                assert!(job.number >= before.number, "job numbers rise");
                assert!(job.number.0 - before.number.0 < 1 << 31, "and so do their lower halves");
                let is_other = before.origin.upstream != job.origin.upstream;
                assert!(!is_other || job.clean, "another upstream's first job is a clean one");
                assert!(!is_other || work.live, "nobody is given work of an upstream that is away");
                let known = matches!(work.job(before.number), mining_server::work::JobLookup::Unknown);
                assert!(!known, "what was ours is retired, and not unknown");
            }
            if self.work.get(&feed).is_none_or(|before| before.active().job.number != job.number) {
                assert!(self.numbers.insert(job.number), "no number is used twice: {}", job.number);
            }
            self.work.insert(feed, work);
        }
    }

    /// What a pool does with a message.
    fn at_pool(&mut self, place: usize, message: Message) {
        let pool = &mut self.pools[place];
        if !pool.is_connected {
            return;
        }
        match message {
            Message::SetupConnection(_) => {
                self.receive(place, SetupConnectionSuccess { used_version: 2, flags: 0 });
            }
            Message::OpenExtendedMiningChannel(request) => {
                let request_id = request.request_id;
                if pool.manner == Manner::Closed {
                    let error_code = "unknown-user".to_owned();
                    self.receive(place, OpenMiningChannelError { request_id, error_code });
                    return;
                }
                let channel = ChannelId(pool.next_channel);
                pool.next_channel += 1;
                pool.channels.insert(channel, Vec::new());
                let is_mute = pool.manner == Manner::Mute;
                let opened = rig::opened(request_id, channel);
                // Where jobs are declared, shares are weighed again when the pool takes their job.
                let target = if self.declares { Target::MAX } else { opened.target };
                self.receive(place, OpenExtendedMiningChannelSuccess { target, ..opened });
                if !is_mute {
                    self.send_job(place, channel);
                }
            }
            Message::SubmitSharesExtended(share) => {
                pool.shares += 1;
                let is_taken = !self.declares || place > 0 || self.taken.contains(&share.job_id);
                assert!(is_taken, "a share of a job that the pool has not taken: {share:?}");
                pool.channels.get_mut(&share.channel_id).expect("a channel that is open").push(share);
            }
            Message::SetCustomMiningJob(custom) if pool.manner == Manner::Mute => self.waiting.push(custom),
            Message::SetCustomMiningJob(custom) => self.take_custom_job(place, &custom),
            Message::CloseChannel(close) => drop(pool.channels.remove(&close.channel_id)),
            _ => (),
        }
    }

    /// What holds at all times.
    fn check(&self) {
        let tally = self.upstreams.tally();
        assert_eq!(tally.forwarded, tally.acknowledged + tally.rejected + tally.pending + tally.lost);
        let forwarded = self.records.iter().filter(|record| record.fate == Fate::Forwarded).count();
        let is_forwarded = |release: &&HeldRelease| matches!(release.fate, ReleaseFate::Forwarded(_));
        let released = self.releases.iter().filter(is_forwarded).count();
        assert_eq!(tally.forwarded, (forwarded + released) as u64);
        let answered: u64 = self
            .answers
            .iter()
            .map(|answer| match &answer.verdict {
                UpstreamVerdict::Acknowledged { count, .. } | UpstreamVerdict::Lost { count, .. } => {
                    u64::from(*count)
                }
                UpstreamVerdict::Rejected { .. } => 1,
            })
            .sum();
        assert_eq!(answered, tally.acknowledged + tally.rejected + tally.lost);
        assert_eq!(self.submitted, self.records.len() as u64, "every share is recorded at once");
        let is_held = |record: &&ShareRecord| matches!(record.fate, Fate::Held(_));
        let mut waiting: HashSet<Fate> =
            self.records.iter().filter(is_held).map(|record| record.fate).collect();
        for release in &self.releases {
            assert!(
                waiting.remove(&Fate::Held(release.number)),
                "a held share is released once: {release:?}"
            );
        }
        assert_eq!(waiting.len() as u64, self.upstreams.declarations().1, "and waits until then");
        let received: u64 = self.pools.iter().map(|pool| pool.shares).sum();
        assert!(received <= tally.forwarded, "nothing arrives that was not sent");
        if let Some(serving) = self.upstreams.serving()
            && self.upstreams.get(serving).link() != LinkState::Ready
        {
            let others = self.upstreams.standings(self.now).enumerate();
            let better = others.filter(|(place, standing)| *place != serving && *standing != Standing::Away);
            assert_eq!(better.count(), 0, "one that is there serves: {:?}", self.pools);
        }
    }
}

fn messages(bytes: &[u8]) -> Vec<Message> {
    let (mut rest, mut messages) = (bytes, Vec::new());
    while let Some((header, after)) = rest.split_first_chunk::<HEADER_SIZE>() {
        let header = FrameHeader::parse(*header);
        let (payload, after) = after.split_at(header.payload_length as usize);
        messages.push(Message::decode(header, payload).expect("we send what can be read"));
        rest = after;
    }
    messages
}
