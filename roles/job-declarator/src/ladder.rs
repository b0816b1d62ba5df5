//! Which source of work to use now, when some of them are in trouble.
//!
//! Sources stand in the order in which the operator prefers them: a pool with its job declaration server, the next
//! pool with its own, a pool's own templates, solo on our own templates. We go down at once and climb slowly: a
//! source that was in trouble must be well for a while before it is used again, longer each time. This module never
//! dials and never judges what trouble is.

use std::time::Duration;

use stratum::Now;

/// A source that served this long without trouble starts over with the first hold-down.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(900);

/// How patient a ladder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// How long a source is left alone after its first trouble. Each further trouble doubles it.
    pub hold_down: Duration,
    /// The longest time that a source is left alone, however often it was in trouble: an operator who repairs
    /// something should see the effect soon.
    pub longest_hold_down: Duration,
    /// How long a better source must have been well before we climb back to it.
    pub steady: Duration,
    /// How long the most preferred source is waited for at the start, while others are ready.
    pub start_grace: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            hold_down: Duration::from_secs(30),
            longest_hold_down: Duration::from_secs(600),
            steady: Duration::from_secs(30),
            start_grace: Duration::from_secs(10),
        }
    }
}

/// The most sources: more than any config lists.
pub const MAX_SOURCES: usize = 64;

/// A source by its place in the order of preference, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rung(pub usize);

/// The sources and how they are.
#[derive(Debug)]
pub struct Ladder {
    patience: Patience,
    sources: Vec<Source>,
    current: Option<Rung>,
    /// Since when the current one is used.
    since: Duration,
    started: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
struct Source {
    /// Since when it could serve; `None` while it cannot.
    up_since: Option<Duration>,
    barred_until: Duration,
    troubles: u32,
}

impl Source {
    fn is_usable(&self, now: Duration) -> bool {
        self.up_since.is_some() && self.barred_until <= now
    }

    /// From when on we may climb to it, if it must have been well for `steady`.
    fn steady_at(&self, steady: Duration) -> Option<Duration> {
        self.up_since.map(|up| up.max(self.barred_until) + steady)
    }
}

impl Ladder {
    /// `count` sources, none of which is up yet. Panics when there is none, or more than [`MAX_SOURCES`].
    pub fn new(count: usize, patience: Patience, now: Now) -> Self {
        assert!((1..=MAX_SOURCES).contains(&count), "{count} sources of work");
        Ladder {
            patience,
            sources: vec![Source::default(); count],
            current: None,
            since: now.monotonic,
            started: now.monotonic,
        }
    }

    /// The source to use. While none can serve it is the one that was used last: its jobs go on being hashed. `None`
    /// until the first one is up.
    pub fn current(&self) -> Option<Rung> {
        self.current
    }

    /// Whether a source can serve, left alone for its troubles or not.
    pub fn is_up(&self, rung: Rung) -> bool {
        self.sources.get(rung.0).is_some_and(|source| source.up_since.is_some())
    }

    /// Until when a source is left alone, on the monotonic clock; in the past when it is not.
    pub fn barred_until(&self, rung: Rung) -> Duration {
        self.sources.get(rung.0).map_or(Duration::ZERO, |source| source.barred_until)
    }

    /// Whether the current source can serve.
    pub fn is_serving(&self, now: Now) -> bool {
        self.current.is_some_and(|rung| self.sources[rung.0].is_usable(now.monotonic))
    }

    /// A source can serve: its connections are up, and it has work. Returns the source to use from now on, if it is
    /// another.
    pub fn handle_up(&mut self, rung: Rung, now: Now) -> Option<Rung> {
        let source = self.sources.get_mut(rung.0)?;
        source.up_since.get_or_insert(now.monotonic);
        self.choose(now)
    }

    /// A source cannot serve: its connection is gone, its node is. Like [`Ladder::handle_trouble`] until it is up.
    pub fn handle_down(&mut self, rung: Rung, now: Now) -> Option<Rung> {
        let source = self.sources.get_mut(rung.0)?;
        if source.up_since.take().is_some() {
            self.bar(rung, now);
        }
        self.choose(now)
    }

    /// A source is up and does us wrong: it refuses a job, or shares of a job that it has acknowledged, or is slow.
    pub fn handle_trouble(&mut self, rung: Rung, now: Now) -> Option<Rung> {
        let source = self.sources.get(rung.0)?;
        if source.is_usable(now.monotonic) {
            self.bar(rung, now);
        }
        self.choose(now)
    }

    /// When [`Ladder::handle_timeout`] is due, on the monotonic clock.
    pub fn next_timeout(&self, now: Now) -> Option<Duration> {
        let better = self.current.map_or(self.sources.len(), |rung| rung.0);
        let steady =
            self.sources[..better].iter().filter_map(|source| source.steady_at(self.patience.steady));
        let is_up = |source: &&Source| source.up_since.is_some();
        let barred = self.sources.iter().filter(is_up).map(|source| source.barred_until);
        let grace = self.current.is_none().then_some(self.started + self.patience.start_grace);
        steady.chain(barred).chain(grace).filter(|at| *at > now.monotonic).min()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Now) -> Option<Rung> {
        self.choose(now)
    }

    fn bar(&mut self, rung: Rung, now: Now) {
        let served = now.monotonic.saturating_sub(self.since);
        let is_healthy = self.current == Some(rung) && served >= HEALTHY_AFTER;
        let source = &mut self.sources[rung.0];
        if is_healthy {
            source.troubles = 0;
        }
        // Eight doublings pass the longest where that is what it should be: some minutes.
        let longest = self.patience.longest_hold_down;
        let hold_down = (self.patience.hold_down * (1 << source.troubles.min(8))).min(longest);
        source.troubles = source.troubles.saturating_add(1);
        source.barred_until = now.monotonic + hold_down;
    }

    fn choose(&mut self, now: Now) -> Option<Rung> {
        let at = now.monotonic;
        let usable = self.sources.iter().position(|source| source.is_usable(at)).map(Rung);
        let chosen = match self.current {
            Some(current) if self.sources[current.0].is_usable(at) => {
                let is_steady = |source: &Source| {
                    source.is_usable(at)
                        && source.steady_at(self.patience.steady).is_some_and(|steady| steady <= at)
                };
                self.sources[..current.0].iter().position(is_steady).map(Rung)
            }
            // One that is left alone for its troubles is still better than one that is not there.
            Some(current) if !self.is_up(current) => usable.or_else(|| self.first_up()),
            Some(_) => usable,
            None if at < self.started + self.patience.start_grace => usable.filter(|rung| *rung == Rung(0)),
            None => usable,
        };
        let chosen = chosen.filter(|chosen| Some(*chosen) != self.current)?;
        self.current = Some(chosen);
        self.since = at;
        Some(chosen)
    }

    fn first_up(&self) -> Option<Rung> {
        self.sources.iter().position(|source| source.up_since.is_some()).map(Rung)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POOL: Rung = Rung(0);
    const NEXT: Rung = Rung(1);
    const SOLO: Rung = Rung(2);

    /// The one that the config has when it says nothing.
    const PATIENCE: Patience = Patience {
        hold_down: Duration::from_secs(30),
        longest_hold_down: Duration::from_secs(600),
        steady: Duration::from_secs(30),
        start_grace: Duration::from_secs(10),
    };

    fn at(seconds: u64) -> Now {
        Now::simulated(Duration::from_secs(1_700_000_000), Duration::from_secs(seconds))
    }

    fn all_up() -> Ladder {
        let mut ladder = Ladder::new(3, PATIENCE, at(0));
        assert_eq!(ladder.handle_up(SOLO, at(0)), None, "the preferred one has its grace");
        assert_eq!(ladder.handle_up(NEXT, at(1)), None);
        assert_eq!(ladder.handle_up(POOL, at(2)), Some(POOL));
        ladder
    }

    #[test]
    fn the_preferred_source_is_waited_for_and_not_for_ever() {
        let mut ladder = Ladder::new(3, PATIENCE, at(0));
        assert_eq!(ladder.handle_up(SOLO, at(1)), None);
        assert_eq!(ladder.next_timeout(at(1)), Some(at(10).monotonic));
        assert_eq!(ladder.handle_timeout(at(10)), Some(SOLO));
        assert_eq!(ladder.handle_up(NEXT, at(11)), None, "it is not steady");
        assert_eq!(ladder.next_timeout(at(11)), Some(at(41).monotonic));
        assert_eq!(ladder.handle_timeout(at(41)), Some(NEXT));
    }

    #[test]
    fn trouble_leads_down_at_once_and_up_after_a_while() {
        let mut ladder = all_up();
        assert_eq!(ladder.handle_trouble(POOL, at(100)), Some(NEXT));
        assert_eq!(ladder.handle_down(NEXT, at(101)), Some(SOLO));
        assert_eq!(ladder.handle_timeout(at(130)), None, "the hold-down is over, and it is not steady yet");
        assert_eq!(ladder.next_timeout(at(130)), Some(at(160).monotonic));
        assert_eq!(ladder.handle_timeout(at(160)), Some(POOL));
        assert_eq!(ladder.handle_trouble(POOL, at(161)), Some(SOLO), "the next pool is down");
        assert_eq!(ladder.handle_timeout(at(221)), None);
        assert_eq!(ladder.handle_timeout(at(251)), Some(POOL), "after twice the time");
    }

    #[test]
    fn a_long_service_is_remembered() {
        let mut ladder = all_up();
        for _ in 0..5 {
            ladder.handle_trouble(POOL, at(100));
        }
        assert_eq!(ladder.sources[0].troubles, 1, "trouble while it is barred is no news");
        assert_eq!(ladder.handle_timeout(at(160)), Some(POOL));
        assert_eq!(ladder.handle_trouble(POOL, at(160 + 900)), Some(NEXT));
        assert_eq!(ladder.handle_timeout(at(160 + 900 + 60)), Some(POOL));
    }

    #[test]
    fn when_none_can_serve_the_last_one_goes_on() {
        let mut ladder = Ladder::new(1, PATIENCE, at(0));
        ladder.handle_up(POOL, at(0));
        assert_eq!(ladder.handle_trouble(POOL, at(5)), None);
        assert_eq!((ladder.current(), ladder.is_serving(at(5))), (Some(POOL), false));
        assert!(ladder.is_serving(at(35)));
        assert_eq!(ladder.handle_up(Rung(7), at(40)), None, "there is no such source");
    }

    #[test]
    fn one_that_is_in_trouble_is_better_than_one_that_is_away() {
        let mut ladder = all_up();
        ladder.handle_down(SOLO, at(3));
        assert_eq!(ladder.handle_trouble(POOL, at(100)), Some(NEXT));
        assert_eq!(ladder.handle_down(NEXT, at(101)), Some(POOL), "it is there, if nothing else");
        assert_eq!(ladder.handle_up(NEXT, at(102)), None);
        assert_eq!(ladder.handle_timeout(at(130)), None);
        assert!(ladder.is_serving(at(130)), "its time is over");
    }

    #[derive(Clone, Copy, Debug)]
    enum Operation {
        Up(usize),
        Down(usize),
        Trouble(usize),
        Wait(u64),
    }

    fn operations() -> impl Strategy<Value = Vec<Operation>> {
        let one = prop_oneof![
            (0..4usize).prop_map(Operation::Up),
            (0..4usize).prop_map(Operation::Down),
            (0..4usize).prop_map(Operation::Trouble),
            (0..700u64).prop_map(Operation::Wait),
        ];
        prop::collection::vec(one, 0..120)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// While any source can serve, one that can is used, but for the grace at the start; and nothing climbs
        /// twice within the hold-down.
        #[test]
        fn a_source_that_can_serve_is_used_and_none_flaps(operations in operations()) {
            let mut ladder = Ladder::new(4, PATIENCE, at(0));
            let mut seconds = 0;
            let mut climbs: [Option<u64>; 4] = [None; 4];
            for operation in operations {
                let before = ladder.current();
                let changed = match operation {
                    Operation::Up(rung) => ladder.handle_up(Rung(rung), at(seconds)),
                    Operation::Down(rung) => ladder.handle_down(Rung(rung), at(seconds)),
                    Operation::Trouble(rung) => ladder.handle_trouble(Rung(rung), at(seconds)),
                    Operation::Wait(wait) => {
                        seconds += wait;
                        ladder.handle_timeout(at(seconds))
                    }
                };
                prop_assert_eq!(changed.is_some(), ladder.current() != before);
                let can_serve = ladder.sources.iter().any(|source| source.is_usable(at(seconds).monotonic));
                if can_serve && seconds >= PATIENCE.start_grace.as_secs() {
                    prop_assert!(ladder.is_serving(at(seconds)));
                }
                if let (Some(to), Some(from)) = (changed, before)
                    && to < from
                    && ladder.sources[from.0].is_usable(at(seconds).monotonic)
                {
                    let last = climbs[to.0].replace(seconds);
                    prop_assert!(last.is_none_or(|last| seconds - last >= PATIENCE.steady.as_secs()));
                }
                if let Some(next) = ladder.next_timeout(at(seconds)) {
                    prop_assert!(next > at(seconds).monotonic);
                }
            }
        }
    }
}
