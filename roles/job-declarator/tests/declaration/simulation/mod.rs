//! Farms against a pool on a virtual clock: links that break and are slow, nodes that see blocks at other times, tips
//! that come in storms, a node that judges late or not at all.
//!
//! What must hold at every step: no share is sent for a job that the pool has not taken; no token is used twice;
//! miners always have work, and soon on the tip that their own node has. A failing seed is printed by its test.

mod farm;
mod pool;
mod world;

use std::time::Duration;

use job_declarator::server::Mode;

use world::{Faults, World};

const CALM: Faults = Faults {
    links_break_every: None,
    blocks_every: Duration::from_secs(60),
    bad_verdicts: 0.0,
    slow_verdicts: 0.0,
    known_transactions: 1.0,
    slow_links: 0.0,
};

const STORM: Faults = Faults {
    links_break_every: Some(Duration::from_secs(40)),
    blocks_every: Duration::from_secs(8),
    bad_verdicts: 0.03,
    slow_verdicts: 0.05,
    known_transactions: 0.9,
    slow_links: 0.1,
};

#[test]
fn on_a_calm_day_everything_is_taken_and_nothing_is_lost_but_to_new_tips() {
    for mode in [Mode::FullTemplate, Mode::CoinbaseOnly] {
        let mut world = World::new(1, 3, mode, CALM);
        world.run(Duration::from_secs(600));
        let sums = world.sums();
        assert!(sums.acknowledged > 20 && sums.released > 1000, "{sums:?}");
        assert_eq!((sums.solo_jobs, sums.asked_for_transactions), (0, 0), "{sums:?}");
        assert!(sums.dropped * 20 < sums.released, "{sums:?}");
    }
}

#[test]
fn solutions_arrive_as_blocks() {
    let mut world = World::new(7, 3, Mode::FullTemplate, CALM);
    world.run(Duration::from_secs(900));
    let sums = world.sums();
    assert!(sums.blocks_at_farms > 0 && sums.blocks_at_pool > 0, "{sums:?}");
}

#[test]
fn in_a_storm_the_invariants_hold() {
    for seed in 1..=30 {
        let mode = if seed % 3 == 0 { Mode::CoinbaseOnly } else { Mode::FullTemplate };
        let mut world = World::new(seed, 4, mode, STORM);
        world.run(Duration::from_secs(300));
        let sums = world.sums();
        assert!(sums.acknowledged > 0 && sums.released > 0, "seed {seed}: {sums:?}");
        assert!(sums.solo_jobs > 0, "seed {seed}: {sums:?}");
    }
}

/// A pool whose node never answers leaves farms on their own templates, and they come back when it is well.
#[test]
fn farms_go_solo_and_come_back() {
    let broken = Faults { slow_verdicts: 1.0, ..CALM };
    let mut world = World::new(5, 2, Mode::FullTemplate, broken);
    world.run(Duration::from_secs(120));
    assert!(world.all_solo());
    world.set_faults(CALM);
    world.run(Duration::from_secs(900));
    assert!(world.none_solo());
}
