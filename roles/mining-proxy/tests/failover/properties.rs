//! Pools that come, go, fall silent, refuse and find blocks, in any order.

use mining_proxy::{Feed, Standing};
use mining_server::Fate;
use proptest::prelude::*;

use crate::rig;
use crate::stage::{Manner, Stage};

const POOLS: usize = 3;

#[derive(Clone, Copy, Debug)]
enum Step {
    Connect(usize),
    Disconnect(usize),
    Manner(usize, Manner),
    Block(usize),
    /// A share of a device, on its newest job or on one that it had before.
    Share {
        device: u64,
        is_old: bool,
    },
    Answer(usize),
    Open(u64),
    Close(u64),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let manner = prop_oneof![
        4 => Just(Manner::Well),
        1 => Just(Manner::Mute),
        1 => Just(Manner::Refusing),
        1 => Just(Manner::Closed),
    ];
    let one = prop_oneof![
        4 => (0..POOLS).prop_map(Step::Connect),
        3 => (0..POOLS).prop_map(Step::Disconnect),
        2 => (0..POOLS, manner).prop_map(|(pool, manner)| Step::Manner(pool, manner)),
        2 => (0..POOLS).prop_map(Step::Block),
        6 => (1..5u64, any::<bool>()).prop_map(|(device, is_old)| Step::Share { device, is_old }),
        3 => (0..POOLS).prop_map(Step::Answer),
        2 => (1..5u64).prop_map(Step::Open),
        1 => (1..5u64).prop_map(Step::Close),
        3 => (0..100u64).prop_map(Step::Wait),
    ];
    prop::collection::vec(one, 1..120)
}

fn run(aggregate: bool, steps: Vec<Step>) {
    let mut stage = Stage::new(POOLS, aggregate);
    let mut old = std::collections::BTreeMap::new();
    for (nonce, step) in (0..).zip(steps) {
        match step {
            Step::Connect(pool) => stage.connect(pool),
            Step::Disconnect(pool) => stage.disconnect(pool),
            Step::Manner(pool, manner) => stage.pools[pool].manner = manner,
            Step::Block(pool) => stage.new_block(pool),
            Step::Share { device, is_old } => {
                let feed = if aggregate { Feed::Shared } else { Feed::Device(rig::key(device)) };
                let Some(work) = stage.work.get(&feed) else { continue };
                let (live, job) = (work.live, work.active().job.clone());
                let job = if is_old { old.get(&feed).unwrap_or(&job).clone() } else { job };
                let sent: Vec<u64> = stage.pools.iter().map(|pool| pool.shares).collect();
                let fate = stage.share(&job, nonce);
                for (place, (pool, before)) in stage.pools.iter().zip(sent).enumerate() {
                    let is_its = place == usize::from(job.origin.upstream.0);
                    assert!(is_its || pool.shares == before, "a share goes where its job came from");
                }
                assert!(
                    is_old || !live || fate == Fate::Forwarded,
                    "live work is worth its shares: {fate:?}"
                );
                old.insert(feed, job);
            }
            Step::Answer(pool) => stage.answer(pool),
            Step::Open(device) => stage.open_device(device),
            Step::Close(device) => stage.close_device(device),
            Step::Wait(seconds) => stage.advance(seconds),
        }
    }
    settle_down(&mut stage);
}

/// When all is well again, the preferred one gives all the work, and the others have no channels.
fn settle_down(stage: &mut Stage) {
    (0..POOLS).for_each(|place| stage.pools[place].manner = Manner::Well);
    (0..POOLS).for_each(|place| stage.connect(place));
    for _ in 0..30 {
        stage.advance(60);
        (0..POOLS).for_each(|place| stage.connect(place));
        (0..POOLS).for_each(|place| stage.new_block(place));
        (0..POOLS).for_each(|place| stage.answer(place));
    }
    assert_eq!(stage.upstreams.serving(), Some(0));
    assert_eq!(stage.standing(0), Standing::Serving);
    assert!(stage.upstreams.gives_work());
    for (feed, work) in &stage.work {
        assert!(work.live && work.active().job.origin.upstream.0 == 0, "{feed:?} is served by the best");
    }
    assert_eq!([1, 2].map(|place| stage.pools[place].channels.len()), [0, 0]);
    assert_eq!(stage.upstreams.tally().pending, 0);
}

#[derive(Clone, Copy, Debug)]
enum Turn {
    Pool(Step),
    Server(bool),
    /// A template of our node; true for one on another block.
    Template(bool),
    /// A share of the newest job, which may be a block.
    Share(bool),
    /// The pool takes what it had left unanswered.
    Take,
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let manner = prop_oneof![3 => Just(Manner::Well), 2 => Just(Manner::Mute), 1 => Just(Manner::Closed)];
    let pool = prop_oneof![
        3 => (0..2usize).prop_map(Step::Connect),
        2 => (0..2usize).prop_map(Step::Disconnect),
        2 => (0..2usize, manner).prop_map(|(pool, manner)| Step::Manner(pool, manner)),
        1 => (0..2usize).prop_map(Step::Block),
        2 => (0..2usize).prop_map(Step::Answer),
        2 => (0..50u64).prop_map(Step::Wait),
    ];
    let one = prop_oneof![
        6 => pool.prop_map(Turn::Pool),
        2 => any::<bool>().prop_map(Turn::Server),
        4 => any::<bool>().prop_map(Turn::Template),
        6 => any::<bool>().prop_map(Turn::Share),
        2 => Just(Turn::Take),
    ];
    prop::collection::vec(one, 1..120)
}

fn declare(turns: Vec<Turn>) {
    let mut stage = Stage::declaring();
    let (mut templates, mut block) = (0, 1);
    for (nonce, turn) in (0..).zip(turns) {
        match turn {
            Turn::Pool(Step::Connect(pool)) => stage.connect(pool),
            Turn::Pool(Step::Disconnect(pool)) => stage.disconnect(pool),
            Turn::Pool(Step::Manner(pool, manner)) => stage.pools[pool].manner = manner,
            Turn::Pool(Step::Block(pool)) => stage.new_block(pool),
            Turn::Pool(Step::Answer(pool)) => stage.answer(pool),
            Turn::Pool(Step::Wait(seconds)) => stage.advance(seconds),
            Turn::Pool(_) => unreachable!("no other steps are drawn"),
            Turn::Server(true) => stage.connect_server(),
            Turn::Server(false) => stage.disconnect_server(),
            Turn::Template(is_new_block) => {
                templates += 1;
                block += u8::from(is_new_block);
                stage.template(templates, block);
            }
            Turn::Share(is_block) => {
                let Some(work) = stage.work.get(&Feed::Shared) else { continue };
                let job = work.active().job.clone();
                let blocks = stage.blocks.len();
                stage.submit(&job, nonce, is_block);
                let is_ours = is_block && job.origin.upstream.0 == 0;
                assert_eq!(stage.blocks.len(), blocks + usize::from(is_ours), "no block of ours is lost");
            }
            Turn::Take => {
                for custom in std::mem::take(&mut stage.waiting) {
                    stage.take_custom_job(0, &custom);
                }
            }
        }
    }
    (0..2).for_each(|pool| stage.pools[pool].manner = Manner::Well);
    for _ in 0..60 {
        (0..2).for_each(|pool| stage.connect(pool));
        stage.connect_server();
        stage.advance(30);
        templates += 1;
        stage.template(templates, block);
        (0..2).for_each(|pool| stage.new_block(pool));
        (0..2).for_each(|pool| stage.answer(pool));
    }
    assert_eq!((stage.upstreams.serving(), stage.source(Feed::Shared)), (Some(0), 0));
    assert_eq!((stage.upstreams.declarations().1, stage.upstreams.tally().pending), (0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_shared_channel_survives_whatever_pools_do(steps in steps()) {
        run(true, steps);
    }

    /// No share goes out for a job that the pool has not taken, none is forgotten, and no block of ours is lost.
    #[test]
    fn declared_jobs_survive_whatever_anybody_does(turns in turns()) {
        declare(turns);
    }

    #[test]
    fn channels_of_devices_survive_whatever_pools_do(steps in steps()) {
        run(false, steps);
    }
}
