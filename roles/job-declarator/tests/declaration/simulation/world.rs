//! The world between farms and pool: time, chance, links and blocks.

use std::collections::BTreeMap;
use std::time::Duration;

use job_declarator::server::{Mode, PoolTip, ServerAction};
use stratum::hash::Hash;
use stratum::sv2::FrameHeader;
use stratum::sv2::messages::{SetCustomMiningJob, SetCustomMiningJobError, SetCustomMiningJobSuccess};
use stratum::{Now, Target, UpstreamJobId};
use template::RawTransaction;

use super::super::client::channel;
use super::super::support::*;
use super::farm::Farm;
use super::pool::{Answered, Pool};

/// How bad it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Faults {
    pub(super) links_break_every: Option<Duration>,
    pub(super) blocks_every: Duration,
    /// Of ten verdicts this part is bad, or does not come within a minute.
    pub(super) bad_verdicts: f64,
    pub(super) slow_verdicts: f64,
    /// The part of transactions that the pool's node knows.
    pub(super) known_transactions: f64,
    /// The part of messages that take seconds.
    pub(super) slow_links: f64,
}

enum Event {
    ToServer {
        link: u64,
        header: FrameHeader,
        payload: Vec<u8>,
    },
    ToClient {
        farm: usize,
        link: u64,
        header: FrameHeader,
        payload: Vec<u8>,
    },
    Answer {
        link: u64,
        action: ServerAction,
        is_bad: bool,
    },
    ToPool {
        farm: usize,
        message: Box<SetCustomMiningJob>,
    },
    Taken {
        farm: usize,
        message: SetCustomMiningJobSuccess,
        tip: Hash,
    },
    Refused {
        farm: usize,
        message: SetCustomMiningJobError,
    },
    Dial {
        farm: usize,
    },
    OpenChannel {
        farm: usize,
    },
    /// The farm's end of a link learns that it is gone.
    LinkLost {
        farm: usize,
        link: u64,
    },
    ServerLost {
        link: u64,
    },
    BreakLink {
        farm: usize,
    },
    BreakChannel {
        farm: usize,
    },
    Block,
    FarmSees {
        farm: usize,
        height: u32,
        fees: u32,
    },
    PoolSees {
        height: u32,
    },
    Fees {
        farm: usize,
    },
    Share {
        farm: usize,
    },
    Tick,
}

/// What happened in all.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    pub(super) acknowledged: u64,
    pub(super) released: u64,
    pub(super) dropped: u64,
    pub(super) solo_jobs: u64,
    pub(super) asked_for_transactions: u64,
    pub(super) blocks_at_farms: u64,
    pub(super) blocks_at_pool: u64,
}

pub(super) struct World {
    faults: Faults,
    dice: u64,
    now: Duration,
    queue: BTreeMap<(Duration, u64), Event>,
    next_event: u64,
    /// When the last message of each direction arrives: none overtakes another on its link.
    arrivals: BTreeMap<(u64, bool), Duration>,
    farms: Vec<Farm>,
    farm_of: BTreeMap<u64, usize>,
    pool: Pool,
    height: u32,
    /// The height that each farm's node has, and how often its fees grew.
    seen: Vec<(u32, u32)>,
    next_link: u64,
    next_channel: u32,
    next_template: u64,
    /// Which blocks are real: one of a few hundred hashes.
    rarity: u8,
}

impl World {
    pub(super) fn new(seed: u64, farms: usize, mode: Mode, faults: Faults) -> Self {
        let start = at(0);
        let mut world = World {
            faults,
            dice: seed,
            now: Duration::ZERO,
            queue: BTreeMap::new(),
            next_event: 0,
            arrivals: BTreeMap::new(),
            farms: (0..farms).map(|_| Farm::new(mode, start)).collect(),
            farm_of: BTreeMap::new(),
            pool: Pool::new(),
            height: 900_000,
            seen: vec![(0, 0); farms],
            next_link: 1,
            next_channel: 1,
            next_template: 1,
            rarity: 0,
        };
        world.at(Duration::ZERO, Event::PoolSees { height: 900_000 });
        for farm in 0..farms {
            world.at(Duration::ZERO, Event::Dial { farm });
            world.at(Duration::ZERO, Event::OpenChannel { farm });
            world.at(Duration::from_millis(10), Event::FarmSees { farm, height: 900_000, fees: 0 });
            world.at(Duration::from_secs(15), Event::Fees { farm });
            world.at(Duration::from_millis(500), Event::Share { farm });
            if let Some(every) = faults.links_break_every {
                world.later(every, Event::BreakLink { farm });
                world.later(every * 2, Event::BreakChannel { farm });
            }
        }
        world.later(faults.blocks_every, Event::Block);
        world.at(Duration::from_millis(100), Event::Tick);
        world
    }

    pub(super) fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((at, _), event) = entry.remove_entry();
            self.now = at;
            self.happen(event);
            for farm in 0..self.farms.len() {
                self.drain(farm);
            }
        }
        self.now = end;
    }

    pub(super) fn all_solo(&self) -> bool {
        self.farms.iter().all(Farm::is_solo)
    }

    pub(super) fn none_solo(&self) -> bool {
        !self.farms.iter().any(Farm::is_solo)
    }

    pub(super) fn sums(&self) -> Sums {
        let of = |sum: fn(&Farm) -> u64| self.farms.iter().map(sum).sum();
        Sums {
            acknowledged: of(|farm| farm.client.tally().acknowledged),
            released: of(|farm| farm.released),
            dropped: of(|farm| farm.client.tally().dropped),
            solo_jobs: of(|farm| farm.solo_jobs),
            asked_for_transactions: self.pool.server.tally().asked_for_transactions,
            blocks_at_farms: of(|farm| farm.solutions),
            blocks_at_pool: self.pool.blocks.len() as u64,
        }
    }

    fn happen(&mut self, event: Event) {
        let now = self.clock();
        match event {
            Event::ToServer { link, header, payload } => {
                let answered = self.pool.frame(link, header, &payload, now);
                self.answered(link, answered);
            }
            Event::ToClient { farm, link, header, payload } => {
                let farm = &mut self.farms[farm];
                if farm.link == Some(link) {
                    farm.client.handle_frame(header, &payload, now, &mut farm.out);
                }
            }
            Event::Answer { link, action, is_bad } => {
                let answered = match action {
                    ServerAction::LookUp { .. } => self.pool.looked_up(link, &action, now),
                    _ => self.pool.validated(link, &action, is_bad, now),
                };
                self.answered(link, answered);
            }
            Event::ToPool { farm, message } => self.custom_job(farm, &message, now),
            Event::Taken { farm, message, tip } => {
                let farm = &mut self.farms[farm];
                if farm.channel == Some(message.channel_id.0) {
                    farm.note_taken(UpstreamJobId(message.job_id.0), tip);
                    farm.client.handle_custom_job_success(&message, now, &mut farm.out);
                }
            }
            Event::Refused { farm, message } => {
                let farm = &mut self.farms[farm];
                farm.client.handle_custom_job_error(&message, now, &mut farm.out);
            }
            Event::Block | Event::FarmSees { .. } | Event::PoolSees { .. } | Event::Fees { .. } => {
                self.chain(event, now);
            }
            Event::Share { farm } => {
                let rarity = self.rarity;
                self.farms[farm]
                    .share(|hash| Target::from_compact(EASY_NBITS).is_met_by(hash) && hash[0] == rarity);
                let wait = self.between(100, 500);
                self.at(wait, Event::Share { farm });
            }
            Event::Tick => {
                self.farms.iter_mut().for_each(|farm| farm.tick(now));
                for (link, answered) in self.pool.tick(now) {
                    self.answered(link, answered);
                }
                self.at(Duration::from_millis(100), Event::Tick);
            }
            other => self.network(other, now),
        }
    }

    fn network(&mut self, event: Event, now: Now) {
        match event {
            Event::Dial { farm } => {
                let link = self.next_link;
                self.next_link += 1;
                self.pool.accept(link, now);
                self.farm_of.insert(link, farm);
                let farm = &mut self.farms[farm];
                farm.link = Some(link);
                farm.client.handle_connected("pool.example", 34_265, now, &mut farm.out);
            }
            Event::OpenChannel { farm } => {
                let id = self.next_channel;
                self.next_channel += 1;
                let farm = &mut self.farms[farm];
                farm.channel = Some(id);
                farm.client.handle_channel(channel(id), now, &mut farm.out);
            }
            Event::LinkLost { farm, link } => {
                let one = &mut self.farms[farm];
                if one.link == Some(link) {
                    one.link = None;
                    one.client.handle_disconnected(now, &mut one.out);
                }
                let wait = self.between(500, 30_000);
                self.at(wait, Event::Dial { farm });
            }
            Event::ServerLost { link } => {
                self.farm_of.remove(&link);
                self.pool.close(link);
            }
            Event::BreakLink { farm } => {
                if let Some(link) = self.farms[farm].link {
                    self.break_link(farm, link);
                }
                let every = self.faults.links_break_every.unwrap_or(Duration::from_secs(3600));
                self.later(every, Event::BreakLink { farm });
            }
            Event::BreakChannel { farm } => {
                self.farms[farm].channel_closed(now);
                let wait = self.between(500, 30_000);
                self.at(wait, Event::OpenChannel { farm });
                let every = self.faults.links_break_every.unwrap_or(Duration::from_secs(3600));
                self.later(every * 2, Event::BreakChannel { farm });
            }
            _ => unreachable!("handled before"),
        }
    }

    /// Whatever is on its way is lost, and the two ends learn of it at times of their own.
    fn break_link(&mut self, farm: usize, link: u64) {
        let is_of_it = |event: &Event| match event {
            Event::ToServer { link: of, .. } | Event::ToClient { link: of, .. } => *of == link,
            _ => false,
        };
        self.queue.retain(|_, event| !is_of_it(event));
        let (ours, theirs) = (self.between(0, 3_000), self.between(0, 3_000));
        self.at(ours, Event::LinkLost { farm, link });
        self.at(theirs, Event::ServerLost { link });
        self.arrivals.insert((link, true), Duration::MAX);
        self.arrivals.insert((link, false), Duration::MAX);
    }

    fn chain(&mut self, event: Event, now: Now) {
        match event {
            Event::Block => {
                self.height += 1;
                for farm in 0..self.farms.len() {
                    let wait = self.between(0, 3_000);
                    self.at(wait, Event::FarmSees { farm, height: self.height, fees: 0 });
                }
                let wait = self.between(0, 3_000);
                self.at(wait, Event::PoolSees { height: self.height });
                // Storms: sometimes the next block comes within a second.
                let next = if self.chance(0.2) {
                    self.between(10, 1_000)
                } else {
                    self.wait(self.faults.blocks_every)
                };
                self.at(next, Event::Block);
            }
            Event::FarmSees { farm, height, fees } => {
                if (height, fees) >= self.seen[farm] {
                    self.seen[farm] = (height, fees);
                    self.template(farm, now);
                }
            }
            Event::PoolSees { height } => {
                if self.pool.server.tip().is_none_or(|tip| tip.height < height) {
                    let tip = PoolTip::from(&block_template(0, height, tip_of(height), &[]));
                    for (link, answered) in self.pool.tip(tip, now) {
                        self.answered(link, answered);
                    }
                }
            }
            Event::Fees { farm } => {
                let (height, fees) = self.seen[farm];
                self.at(Duration::ZERO, Event::FarmSees { farm, height, fees: fees + 1 });
                let wait = self.between(10_000, 30_000);
                self.at(wait, Event::Fees { farm });
            }
            _ => unreachable!("handled before"),
        }
    }

    fn template(&mut self, farm: usize, now: Now) {
        let (height, fees) = self.seen[farm];
        let id = self.next_template;
        self.next_template += 1;
        let transactions: Vec<u32> = (0..3 + fees.min(20)).map(|number| height * 100 + number).collect();
        let template = block_template(id, height, tip_of(height), &transactions);
        for transaction in &template.transactions {
            if self.chance(self.faults.known_transactions) {
                let known = RawTransaction::from(transaction);
                self.pool.mempool.insert(known.wtxid, known);
            }
        }
        self.farms[farm].template(template, now);
    }

    fn custom_job(&mut self, farm: usize, message: &SetCustomMiningJob, now: Now) {
        if self.farms[farm].channel != Some(message.channel_id.0) {
            return;
        }
        let event = match self.pool.custom_job(message, now) {
            Ok(success) => Event::Taken { farm, message: success, tip: message.prev_hash },
            Err(error) => Event::Refused { farm, message: error },
        };
        let wait = self.delay();
        self.at(wait, event);
    }

    /// What the pool put out starts on its way.
    fn answered(&mut self, link: u64, answered: Answered) {
        for action in answered.actions {
            let is_slow =
                matches!(action, ServerAction::Validate { .. }) && self.chance(self.faults.slow_verdicts);
            let wait = if is_slow { self.between(40_000, 90_000) } else { self.between(1, 1_500) };
            let is_bad = self.chance(self.faults.bad_verdicts);
            self.at(wait, Event::Answer { link, action, is_bad });
        }
        let Some(farm) = self.farm_of.get(&link).copied() else { return };
        for (header, payload) in frames(&answered.bytes) {
            let arrival = self.arrival(link, true);
            self.push(arrival, Event::ToClient { farm, link, header, payload });
        }
        if answered.closed {
            self.break_link(farm, link);
        }
    }

    fn drain(&mut self, farm: usize) {
        let had = self.farms[farm].link;
        let now = self.clock();
        let (bytes, custom_jobs, _) = self.farms[farm].drain(now);
        if let Some(link) = had {
            for (header, payload) in frames(&bytes) {
                let arrival = self.arrival(link, false);
                self.push(arrival, Event::ToServer { link, header, payload });
            }
            if self.farms[farm].link.is_none() {
                self.break_link(farm, link);
            }
        }
        for message in custom_jobs {
            let wait = self.delay();
            self.at(wait, Event::ToPool { farm, message: Box::new(message) });
        }
    }

    fn arrival(&mut self, link: u64, to_client: bool) -> Duration {
        let arrival = self.now + self.delay();
        let last = self.arrivals.entry((link, to_client)).or_default();
        *last = arrival.max(*last);
        *last
    }

    fn delay(&mut self) -> Duration {
        if self.chance(self.faults.slow_links) { self.between(1_000, 8_000) } else { self.between(5, 200) }
    }

    fn push(&mut self, at: Duration, event: Event) {
        // A link that is broken brings nothing any more.
        if at < Duration::MAX {
            self.next_event += 1;
            self.queue.insert((at, self.next_event), event);
        }
    }

    fn at(&mut self, wait: Duration, event: Event) {
        self.push(self.now + wait, event);
    }

    fn later(&mut self, mean: Duration, event: Event) {
        let wait = self.wait(mean);
        self.at(wait, event);
    }

    fn clock(&self) -> Now {
        at(self.now.as_millis() as u64)
    }

    fn next(&mut self) -> u64 {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.dice;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn chance(&mut self, probability: f64) -> bool {
        self.fraction() < probability
    }

    fn between(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.next() % (most - least + 1))
    }

    /// The wait for what comes every `mean` on average.
    fn wait(&mut self, mean: Duration) -> Duration {
        mean.mul_f64(-(1.0 - self.fraction()).ln())
    }
}

fn tip_of(height: u32) -> Hash {
    let mut hash = [0x11; 32];
    hash[..4].copy_from_slice(&height.to_le_bytes());
    hash
}
