//! One simulation: the loop over everything that happens, the faults of the world, and the rules that are checked
//! after every step.

use std::time::Duration;

use stratum::Now;

use crate::dice::Dice;
use crate::foreign::{ACKNOWLEDGE_EVERY, Foreign};
use crate::miner::{Kind, Miner};
use crate::net::{End, LinkId, Net, Place, What};
use crate::plan::Plan;
use crate::pool::Pool;
use crate::proxy::Proxy;

/// The length of a simulation.
pub(crate) const LENGTH: Duration = Duration::from_secs(600);

/// How long anybody waits for a job at most, once there is one and the network is well.
const PATIENCE: Duration = Duration::from_secs(15);

const START: Duration = Duration::from_secs(1000);
const EPOCH: Duration = Duration::from_secs(1_700_000_000);

/// What a simulation saw, to tell that it tested something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) seeds: u64,
    pub(crate) steps: u64,
    pub(crate) shares: u64,
    pub(crate) accepted: u64,
    pub(crate) stale: u64,
    pub(crate) repeated: u64,
    pub(crate) below: u64,
    pub(crate) forwarded: u64,
    pub(crate) acknowledged: u64,
    pub(crate) refused_upstream: u64,
    pub(crate) dropped: u64,
    pub(crate) lost: u64,
    pub(crate) switches: u64,
    pub(crate) lost_in_failover: u64,
    pub(crate) blocks: u64,
    pub(crate) blocks_accepted: u64,
    pub(crate) dials: u64,
    pub(crate) prefixes: u64,
    pub(crate) slow: u64,
}

#[derive(Debug)]
enum Upper {
    Ours(Box<Pool>),
    Foreign(Box<Foreign>),
}

#[derive(Debug)]
struct World {
    net: Net,
    upper: Upper,
    /// The proxy's second pool, which it turns to when it must.
    second: Option<Box<Foreign>>,
    proxy: Proxy,
    miners: Vec<Miner>,
    calm: f64,
    acknowledge_at: Duration,
    steps: u64,
}

/// Runs one seed. Panics, naming the rule, when one is broken.
pub(crate) fn run(seed: u64) -> Figures {
    let mut world = World::new(seed);
    let end = START + LENGTH;
    while let Some(what) = world.net.step(end) {
        world.steps += 1;
        world.act(what);
        world.check();
    }
    world.finish()
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let plan = Plan::new(&mut dice);
        let now = Now::simulated(EPOCH, START);
        let mut net = Net::new(dice, EPOCH, START);
        let upper = if plan.is_foreign {
            let batch = 1 + net.dice.below(20) as u32;
            let foreign = Foreign::new(plan.upstream_exponent, plan.may_fix_version, plan.nbits, batch);
            Upper::Foreign(Box::new(foreign))
        } else {
            let mut pool = Pool::new(plan.pool, seed, plan.nbits, now);
            pool.take_template(&mut net);
            Upper::Ours(Box::new(pool))
        };
        for miner in &plan.miners {
            let wait = net.dice.between(Duration::ZERO, Duration::from_secs(20));
            net.after(wait, What::Connect(miner.index));
        }
        let second = plan.has_second.then(|| {
            let batch = 1 + net.dice.below(20) as u32;
            Box::new(Foreign::new(plan.upstream_exponent, plan.may_fix_version, plan.nbits, batch))
        });
        let pools = 1 + usize::from(second.is_some());
        for place in 0..pools {
            net.after(Duration::from_millis(10), What::Dial(place));
        }
        net.after(Duration::from_secs(5), What::Weather);
        net.after(Duration::from_secs(1), What::Look);
        let proxy = Proxy::new(plan.proxy, pools, now);
        let acknowledge_at = START;
        World { net, upper, second, proxy, miners: plan.miners, calm: plan.calm, acknowledge_at, steps: 0 }
    }

    fn act(&mut self, what: What) {
        let net = &mut self.net;
        match what {
            What::Readable(link, End::Client) => self.client_reads(link),
            What::Readable(link, End::Server) => self.server_reads(link),
            What::Gone(link, end) => self.gone(link, end),
            What::Wake(link) => match net.links.get(&link).map(|link| link.server) {
                Some(Place::Proxy) => self.proxy.server.wake(link, net),
                Some(Place::Pool) => {
                    if let Upper::Ours(pool) = &mut self.upper {
                        pool.server.wake(link, net);
                    }
                }
                Some(Place::Second) | None => (),
            },
            What::Owner(Place::Second) => (),
            What::Owner(Place::Proxy) => self.proxy.wake(net),
            What::Owner(Place::Pool) => {
                if let Upper::Ours(pool) = &mut self.upper {
                    pool.wake(net);
                }
            }
            What::Dial(place) => self.proxy.dial(place, net),
            What::Dialled(place) => {
                if let Some(link) = self.proxy.dialled(place, net) {
                    match &mut self.upper {
                        _ if place > 0 => self.second.as_mut().expect("it was dialled").accept(link),
                        Upper::Ours(pool) => pool.server.accept(link, false, net),
                        Upper::Foreign(foreign) => foreign.accept(link),
                    }
                }
            }
            What::Connect(miner) => self.connect(miner),
            What::Share(miner, count) => self.miners[miner].mine(count, net),
            What::Weather => self.weather(),
            What::ForeignBlock => self.foreign_block(),
            What::Reachable(place) => self.proxy.set_reachable(place, true),
            What::Look => self.look(),
        }
    }

    fn client_reads(&mut self, link: LinkId) {
        let net = &mut self.net;
        let Some((miner, server)) = net.links.get(&link).map(|link| (link.miner, link.server)) else {
            return;
        };
        match miner {
            Some(miner) => self.miners[miner].readable(link, net),
            None => self.proxy.readable(link, net),
        }
        // Who waited to write may have room now.
        match (server, &mut self.upper) {
            (Place::Proxy, _) if self.proxy.server.is_blocked(link) => self.proxy.server.wake(link, net),
            (Place::Pool, Upper::Ours(pool)) if pool.server.is_blocked(link) => pool.server.wake(link, net),
            _ => (),
        }
    }

    fn server_reads(&mut self, link: LinkId) {
        let net = &mut self.net;
        match (net.links.get(&link).map(|link| link.server), &mut self.upper) {
            (Some(Place::Proxy), _) => self.proxy.server.readable(link, net),
            (Some(Place::Pool), Upper::Ours(pool)) => pool.server.readable(link, net),
            (Some(Place::Pool), Upper::Foreign(foreign)) => foreign.readable(link, net),
            (Some(Place::Second), _) => self.second.as_mut().expect("it was dialled").readable(link, net),
            (None, _) => (),
        }
        if let Some(place) = self.proxy.place_of(link) {
            self.proxy.flush(place, net);
        }
    }

    fn gone(&mut self, id: LinkId, end: End) {
        let net = &mut self.net;
        let Some(link) = net.links.get(&id) else { return };
        match (end, link.miner, link.server, &mut self.upper) {
            (End::Client, Some(miner), _, _) => self.miners[miner].gone(id, net),
            (End::Client, None, _, _) => self.proxy.gone(id, net),
            (End::Server, _, Place::Proxy, _) => self.proxy.server.gone(id, net),
            (End::Server, _, Place::Pool, Upper::Ours(pool)) => pool.server.gone(id, net),
            (End::Server, _, Place::Pool, Upper::Foreign(foreign)) => foreign.gone(id, net),
            (End::Server, _, Place::Second, _) => {
                self.second.as_mut().expect("it was dialled").gone(id, net);
            }
        }
    }

    fn connect(&mut self, miner: usize) {
        let net = &mut self.net;
        let Some(link) = self.miners[miner].connect(net) else { return };
        let is_sv1 = matches!(self.miners[miner].kind, Kind::Sv1(_));
        match (self.miners[miner].place, &mut self.upper) {
            (Place::Proxy, _) => self.proxy.server.accept(link, is_sv1, net),
            (Place::Pool, Upper::Ours(pool)) => pool.server.accept(link, is_sv1, net),
            (Place::Pool | Place::Second, _) => panic!("nobody connects to somebody else's pool"),
        }
    }

    /// Something that the world does on its own.
    fn weather(&mut self) {
        let net = &mut self.net;
        let wait = net.dice.wait(Duration::from_secs_f64(self.calm));
        net.after(wait, What::Weather);
        let miner = net.dice.below(self.miners.len() as u64) as usize;
        match net.dice.below(20) {
            0..4 => self.foreign_block(),
            4 => {
                for _ in 0..2 + net.dice.below(8) {
                    let wait = net.dice.between(Duration::ZERO, Duration::from_secs(2));
                    net.after(wait, What::ForeignBlock);
                }
            }
            5..8 => self.fresh_job(),
            8 => self.miners[miner].leave(net),
            9 => {
                if let Some(link) = self.miners[miner].link {
                    net.cut(link);
                }
            }
            10..13 => self.stall(miner),
            13 => {
                let place = net.dice.below(self.proxy.pool_count() as u64) as usize;
                if let Some(link) = self.proxy.link(place) {
                    net.cut(link);
                }
            }
            14 => self.outage(),
            15 => {
                let factor = net.dice.pick(&[8.0, 0.25, 2.0, 0.5]);
                let rate = (self.miners[miner].rate * factor).clamp(2.0, 300.0);
                self.miners[miner].set_rate(rate, net);
            }
            other => self.whim(other),
        }
    }

    /// What only somebody else's pool does.
    fn whim(&mut self, which: u64) {
        let net = &mut self.net;
        let foreign = match (&mut self.second, &mut self.upper) {
            (Some(second), _) if net.dice.chance(0.5) => second,
            (_, Upper::Foreign(foreign)) => foreign,
            (_, Upper::Ours(_)) => return,
        };
        match which {
            16 => foreign.change_prefix(net),
            17 => foreign.change_target(net),
            18 => foreign.close_one(net),
            _ => foreign.send_elsewhere(net),
        }
    }

    fn foreign_block(&mut self) {
        match &mut self.upper {
            Upper::Ours(pool) => {
                pool.chain.foreign_block(self.net.now);
                pool.take_template(&mut self.net);
            }
            Upper::Foreign(foreign) => foreign.new_tip(&mut self.net),
        }
        if let Some(second) = &mut self.second {
            second.new_tip(&mut self.net);
        }
    }

    fn fresh_job(&mut self) {
        match &mut self.upper {
            Upper::Ours(pool) => {
                pool.chain.refresh();
                pool.take_template(&mut self.net);
            }
            Upper::Foreign(foreign) => foreign.new_job(&mut self.net),
        }
        if let Some(second) = &mut self.second {
            second.new_job(&mut self.net);
        }
    }

    fn stall(&mut self, miner: usize) {
        let net = &mut self.net;
        let place = net.dice.below(self.proxy.pool_count() as u64) as usize;
        let link = if net.dice.chance(0.3) { self.proxy.link(place) } else { self.miners[miner].link };
        let end = if net.dice.chance(0.6) { End::Client } else { End::Server };
        let wait = net.dice.between(Duration::from_millis(200), Duration::from_secs(40));
        if let Some(link) = link {
            net.stall(link, end, wait);
        }
    }

    fn outage(&mut self) {
        let net = &mut self.net;
        let place = net.dice.below(self.proxy.pool_count() as u64) as usize;
        self.proxy.set_reachable(place, false);
        let wait = net.dice.between(Duration::from_secs(1), Duration::from_secs(70));
        net.after(wait, What::Reachable(place));
        if let Some(link) = self.proxy.link(place) {
            net.cut(link);
        }
    }

    /// What holds after every step.
    fn check(&self) {
        self.proxy.check();
        if let Upper::Ours(pool) = &self.upper {
            pool.check();
        }
    }

    /// What is looked at every second.
    fn look(&mut self) {
        self.net.after(Duration::from_secs(1), What::Look);
        let now = self.net.now.monotonic;
        if now >= self.acknowledge_at {
            self.acknowledge_at = now + ACKNOWLEDGE_EVERY;
            if let Upper::Foreign(foreign) = &mut self.upper {
                foreign.acknowledge(&mut self.net);
            }
            if let Some(second) = &mut self.second {
                second.acknowledge(&mut self.net);
            }
        }
        self.proxy.server.check_silence(&self.net);
        if let Upper::Ours(pool) = &self.upper {
            pool.server.check_silence(&self.net);
        }
        for miner in &self.miners {
            self.check_patience(miner);
        }
        self.check_channels();
        let gone: Vec<LinkId> = self
            .net
            .links
            .iter()
            .filter(|(_, link)| link.is_cut && link.to_client.is_empty() && link.to_server.is_empty())
            .map(|(id, _)| *id)
            .filter(|id| !self.is_in_use(*id))
            .collect();
        gone.iter().for_each(|id| drop(self.net.links.remove(id)));
    }

    fn is_in_use(&self, link: LinkId) -> bool {
        let at_pool = matches!(&self.upper, Upper::Ours(pool) if pool.server.is_serving(link));
        at_pool
            || self.proxy.server.is_serving(link)
            || self.proxy.place_of(link).is_some()
            || self.miners.iter().any(|miner| miner.link == Some(link))
            || self.second.is_some()
            || matches!(&self.upper, Upper::Foreign(_))
    }

    /// Who is connected, where there is work and the network is well, has a job before long.
    fn check_patience(&self, miner: &Miner) {
        let now = self.net.now.monotonic;
        let Some(id) = miner.link else { return };
        let Some(link) = self.net.links.get(&id) else { return };
        let work_since = match (miner.place, &self.upper) {
            (Place::Pool, Upper::Ours(pool)) => pool.server.work_since,
            _ => self.proxy.server.work_since.or_else(|| {
                let own = self.proxy.served.iter().filter(|(key, _)| key.connection.0 == id);
                own.map(|(_, since)| *since).max()
            }),
        };
        let Some(work_since) = work_since else { return };
        let since = work_since.max(miner.connected_at).max(link.disturbed_until);
        assert!(
            link.is_cut || miner.has_job() || now <= since + PATIENCE,
            "a job comes soon after connecting: {:?} on link {id}, connected at {:?}, now {now:?}",
            miner.kind,
            miner.connected_at
        );
    }

    /// Who wants a channel of its own gets one before long.
    fn check_channels(&self) {
        let now = self.net.now.monotonic;
        // Somebody else's pool may refuse them for long.
        if self.second.is_some() {
            return;
        }
        let (Upper::Ours(_), Some(up_since)) = (&self.upper, self.proxy.up_since(0)) else { return };
        let Some(link) = self.proxy.link(0).and_then(|link| self.net.links.get(&link)) else { return };
        for (key, wanted) in &self.proxy.wanted {
            let since = up_since.max(*wanted).max(link.disturbed_until);
            let is_served =
                self.proxy.served.contains_key(key) || self.proxy.upstreams.get(0).config().aggregate;
            assert!(
                is_served || link.is_cut || now <= since + PATIENCE,
                "a device gets its channel soon: {key:?} at {now:?}"
            );
        }
    }

    fn finish(self) -> Figures {
        self.proxy.server.check_end();
        let accounts = &self.proxy.server.accounts;
        accounts.check_devices();
        let mut faults = self.proxy.server.closed_for_fault.clone();
        let mut figures = Figures {
            seeds: 1,
            steps: self.steps,
            shares: self.miners.iter().map(|miner| miner.shares).sum(),
            stale: self.net.witness.stale,
            repeated: self.net.witness.repeated,
            below: accounts.total.below,
            forwarded: accounts.total.forwarded,
            acknowledged: accounts.acknowledged,
            refused_upstream: accounts.refused,
            dropped: accounts.total.dropped,
            lost: accounts.lost,
            switches: self.proxy.upstreams.switches().iter().sum(),
            lost_in_failover: self.proxy.lost_in_failover,
            blocks: accounts.total.blocks,
            accepted: accounts.total.accepted,
            dials: self.proxy.dials,
            slow: self.proxy.server.closed_slow,
            ..Figures::default()
        };
        match &self.upper {
            Upper::Ours(pool) => {
                pool.server.check_end();
                faults.extend(pool.server.closed_for_fault.clone());
                figures.blocks += pool.server.accounts.total.blocks;
                figures.blocks_accepted = pool.chain.accepted;
                figures.slow += pool.server.closed_slow;
                figures.accepted += pool.server.accounts.total.accepted;
            }
            Upper::Foreign(foreign) => figures.prefixes = foreign.seen.prefixes,
        }
        let faults: Vec<&String> =
            faults.iter().filter(|fault| !fault.contains("within 60 seconds")).collect();
        assert!(faults.is_empty(), "no honest miner is closed for a fault of its own: {faults:?}");
        figures
    }
}

impl std::ops::AddAssign for Figures {
    fn add_assign(&mut self, other: Figures) {
        self.seeds += other.seeds;
        self.steps += other.steps;
        self.shares += other.shares;
        self.accepted += other.accepted;
        self.stale += other.stale;
        self.repeated += other.repeated;
        self.below += other.below;
        self.forwarded += other.forwarded;
        self.acknowledged += other.acknowledged;
        self.refused_upstream += other.refused_upstream;
        self.dropped += other.dropped;
        self.lost += other.lost;
        self.switches += other.switches;
        self.lost_in_failover += other.lost_in_failover;
        self.blocks += other.blocks;
        self.blocks_accepted += other.blocks_accepted;
        self.dials += other.dials;
        self.prefixes += other.prefixes;
        self.slow += other.slow;
    }
}
