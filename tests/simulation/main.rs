//! Proxy and pool under virtual time: many miners, our roles, and a pool and a node that are simulated, in one thread,
//! under a network with faults. A seed decides everything; the rules of `witness`, `accounts` and `world` are checked
//! after every step.
//!
//! A failing seed is named by the panic, and replays:
//!
//! ```text
//! CHECKWEIGH_SIMULATION_SEED=123 cargo nextest run --test simulation one_seed
//! ```
//!
//! More seeds than CI runs: `CHECKWEIGH_SIMULATION_SEEDS=1000..3000` with the same test.
//!
//! Nothing here opens a socket, waits, or reads a clock.

mod accounts;
mod chain;
mod dice;
mod foreign;
mod frames;
mod hashing;
mod miner;
mod net;
mod plan;
mod pool;
mod proxy;
mod server;
mod sv1_miner;
mod sv2_miner;
mod witness;
mod world;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use world::Figures;

fn run(seeds: Range<u64>) -> Figures {
    let mut figures = Figures::default();
    for seed in seeds {
        match catch_unwind(AssertUnwindSafe(|| world::run(seed))) {
            Ok(seen) => figures += seen,
            Err(panic) => {
                eprintln!("seed {seed} failed: CHECKWEIGH_SIMULATION_SEED={seed} replays it");
                resume_unwind(panic);
            }
        }
    }
    println!("{figures:?}");
    figures
}

/// Runs a block of seeds, and makes sure that they have tested what they are for.
fn block(seeds: Range<u64>) {
    let figures = run(seeds);
    let least = figures.seeds;
    assert!(figures.accepted > 200 * least, "miners mine: {figures:?}");
    assert!(figures.forwarded > 50 * least, "shares are forwarded: {figures:?}");
    assert!(figures.acknowledged > figures.forwarded / 2, "shares are acknowledged: {figures:?}");
    assert!(figures.below > 10 * least, "shares below the upstream's target occur: {figures:?}");
    assert!(figures.stale > least, "shares cross new tips: {figures:?}");
    assert!(figures.refused_upstream > least / 10, "and so they do upstream: {figures:?}");
    assert!(figures.dropped > least, "shares of outages are dropped: {figures:?}");
    assert!(figures.lost > least / 10, "shares are lost with their session: {figures:?}");
    assert!(figures.blocks_accepted > least / 4, "blocks are found: {figures:?}");
    assert!(figures.dials > 2 * least, "the upstream is redialled: {figures:?}");
    assert!(
        figures.prefixes > 0 && figures.repeated > 0,
        "prefixes change, and shares are repeated: {figures:?}"
    );
    assert!(figures.switches > least, "upstreams are changed: {figures:?}");
    assert!(figures.lost_in_failover > 0, "which costs what was on its way: {figures:?}");
    assert!(figures.slow > 0, "slow readers are cut: {figures:?}");
}

#[test]
fn seeds_0_to_50() {
    block(0..50);
}

#[test]
fn seeds_50_to_100() {
    block(50..100);
}

#[test]
fn seeds_100_to_150() {
    block(100..150);
}

#[test]
fn seeds_150_to_200() {
    block(150..200);
}

/// A seed runs the same way every time: otherwise a failure could not be replayed.
#[test]
fn a_seed_replays() {
    assert_eq!(run(7..8), run(7..8));
}

/// The seed, or the range of seeds, that the environment names; one of our choice without.
#[test]
fn one_seed() {
    let number = |text: &str| text.parse().expect("a seed is a number");
    if let Ok(seeds) = std::env::var("CHECKWEIGH_SIMULATION_SEEDS") {
        let (first, end) = seeds.split_once("..").expect("seeds are named FIRST..END");
        run(number(first)..number(end));
        return;
    }
    let seed = std::env::var("CHECKWEIGH_SIMULATION_SEED").map_or(1, |seed| number(&seed));
    assert!(run(seed..seed + 1).steps > 1000, "something happens");
}
