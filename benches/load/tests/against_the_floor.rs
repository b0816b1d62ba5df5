//! The swarm against a floor, over real sockets: what the miners hash is what a server of ours accepts.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use load::stage::{Stage, StageOptions};
use load::swarm::{Class, Pace};
use load::target::{Mode, TargetKind};

const MINERS: usize = 20;
const SHARES: u64 = 200;
const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn every_share_is_accepted_before_and_after_a_block() {
    let mut stage = Stage::set(&StageOptions {
        kind: TargetKind::FloorEpoll,
        mode: Mode::Aggregated,
        binary: Some(PathBuf::from(env!("CARGO_BIN_EXE_load"))),
        miners: MINERS,
        flooders: 0,
        swarm_threads: NonZeroUsize::MIN,
        floor_threads: NonZeroUsize::new(2).expect("two"),
        difficulty_exponent: -28,
        grouped: false,
        verify: false,
        with_api: false,
    })
    .expect("the floor starts");
    stage.connect().expect("every miner gets a job");
    assert_eq!(stage.new_block().expect("a floor makes blocks").missing, 0);

    stage.swarm.set_pace(Class::Ordinary, Pace::Closed { outstanding: 4 }).expect("the swarm runs");
    stage.wait(DEADLINE, "shares", || stage.swarm.counts().accepted >= SHARES).expect("shares are accepted");
    assert_eq!(stage.new_block().expect("a floor makes blocks").missing, 0);
    let before = stage.swarm.counts().accepted;
    let more = || stage.swarm.counts().accepted >= before + SHARES;
    stage.wait(DEADLINE, "shares of the new block", more).expect("shares are accepted");

    stage.swarm.set_pace(Class::Ordinary, Pace::Idle).expect("the swarm runs");
    let is_answered = || {
        let counts = stage.swarm.counts();
        counts.accepted + counts.refused == counts.submitted
    };
    stage.wait(DEADLINE, "the last answers", is_answered).expect("every share is answered");
    let figures = stage.swarm.figures().expect("the swarm runs").ordinary;
    assert_eq!(stage.swarm.counts().lost, 0);
    // Shares that crossed with the new block are the only ones that may be refused.
    assert!(figures.refused.is_empty(), "{:?}", figures.refused);
    assert_eq!(figures.accepted, stage.swarm.counts().accepted);
}
