//! What happens when one upstream is in trouble, step by step.

use mining_proxy::upstream::REFUSALS_ARE_TROUBLE;
use mining_proxy::{Feed, Standing, SwitchReason};
use mining_server::{DropReason, Fate, LossReason, UpstreamVerdict};

use crate::rig;
use crate::stage::{Manner, Stage};

fn losses(stage: &Stage) -> Vec<(u16, LossReason, u32)> {
    let lost = stage.answers.iter().filter_map(|answer| match answer.verdict {
        UpstreamVerdict::Lost { reason, count, .. } => Some((answer.upstream.0, reason, count)),
        _ => None,
    });
    lost.collect()
}

fn switches(stage: &Stage, reason: SwitchReason) -> u64 {
    stage.upstreams.switches()[reason as usize]
}

#[test]
fn the_preferred_upstream_serves_and_the_others_stand_by_without_channels() {
    let mut stage = Stage::new(3, true);
    stage.connect(1);
    assert_eq!(stage.upstreams.serving(), None, "the preferred one has its grace");
    stage.connect(0);
    stage.connect(2);
    assert_eq!([0, 1, 2].map(|place| stage.pools[place].channels.len()), [1, 0, 0]);
    let standings: Vec<Standing> = stage.upstreams.standings(stage.now).collect();
    assert_eq!(standings, [Standing::Serving, Standing::Standby, Standing::Standby]);
    for _ in 0..12 {
        stage.advance(300);
        stage.new_block(0);
    }
    assert!(stage.pools[1].is_connected, "one that stands by may be silent");
    assert_eq!(stage.upstreams.switches(), [0; SwitchReason::ALL.len()]);
}

#[test]
fn without_the_preferred_upstream_the_next_one_serves_after_the_grace() {
    let mut stage = Stage::new(2, true);
    stage.connect(1);
    stage.advance(9);
    assert!(stage.work.is_empty());
    stage.advance(1);
    assert_eq!(stage.source(Feed::Shared), 1);
    assert_eq!(stage.upstreams.switches(), [0; SwitchReason::ALL.len()], "the first choice is no switch");
    stage.connect(0);
    stage.advance(29);
    assert_eq!(stage.source(Feed::Shared), 1);
    stage.advance(1);
    assert_eq!(stage.source(Feed::Shared), 0);
}

#[test]
fn a_pool_that_goes_is_followed_by_the_next_at_once_and_what_was_on_its_way_is_lost() {
    let mut stage = Stage::mining(2);
    let before = stage.job(Feed::Shared);
    assert_eq!([1, 2].map(|nonce| stage.share(&before, nonce)), [Fate::Forwarded; 2]);
    stage.disconnect(0);
    assert_eq!(losses(&stage), [(0, LossReason::Failover, 2)]);
    assert_eq!(stage.source(Feed::Shared), 1);
    let job = stage.job(Feed::Shared);
    assert!(job.clean && job.number > before.number && job.epoch != before.epoch);
    assert_eq!(stage.share(&before, 3), Fate::Dropped(DropReason::UpstreamLost), "no share crosses epochs");
    assert_eq!(stage.share(&job, 1), Fate::Forwarded);
    assert_eq!((stage.pools[0].shares, stage.pools[1].shares), (2, 1));
    assert_eq!(switches(&stage, SwitchReason::ConnectionLost), 1);
}

#[test]
fn it_goes_back_when_the_preferred_one_has_been_well_and_shares_on_their_way_still_arrive() {
    let mut stage = Stage::mining(2);
    stage.disconnect(0);
    stage.connect(0);
    assert_eq!(stage.standing(0), Standing::HeldDown);
    stage.advance(59);
    assert_eq!((stage.source(Feed::Shared), stage.standing(0)), (1, Standing::Standby));
    let before = stage.job(Feed::Shared);
    assert_eq!(stage.share(&before, 1), Fate::Forwarded);
    stage.advance(1);
    assert_eq!(stage.source(Feed::Shared), 0);
    assert_eq!(switches(&stage, SwitchReason::FailBack), 1);
    assert_eq!(stage.share(&before, 2), Fate::Forwarded, "its channel is still open");
    stage.answer(1);
    assert_eq!(stage.upstreams.tally().acknowledged, 2);
    assert_eq!(stage.share(&before, 3), Fate::Forwarded);
    stage.advance(10);
    assert_eq!(stage.pools[1].channels.len(), 0, "it stands by");
    assert_eq!(losses(&stage), [(1, LossReason::Failover, 1)]);
    assert_eq!(stage.share(&before, 4), Fate::Dropped(DropReason::UpstreamLost));
    assert!(stage.pools[1].is_connected);
}

#[test]
fn a_pool_that_comes_and_goes_is_left_alone_for_longer_each_time() {
    let mut stage = Stage::mining(2);
    let mut waited = Vec::new();
    for _ in 0..4 {
        stage.disconnect(0);
        assert_eq!(stage.source(Feed::Shared), 1);
        stage.connect(0);
        let mut seconds = 0;
        while stage.source(Feed::Shared) == 1 {
            stage.advance(1);
            seconds += 1;
        }
        waited.push(seconds);
    }
    assert_eq!(waited, [60, 90, 150, 270]);
}

#[test]
fn miners_go_on_with_what_they_have_while_nobody_is_there() {
    let mut stage = Stage::mining(2);
    stage.disconnect(1);
    stage.disconnect(0);
    let before = stage.job(Feed::Shared);
    assert!(!stage.work[&Feed::Shared].live);
    stage.advance(45);
    let refreshed = stage.job(Feed::Shared);
    assert!(refreshed.number > before.number, "jobs are still refreshed");
    assert_eq!(stage.share(&refreshed, 1), Fate::Dropped(DropReason::UpstreamLost));
    stage.connect(1);
    assert_eq!(stage.source(Feed::Shared), 1);
    assert!(stage.work[&Feed::Shared].live);
}

#[test]
fn one_that_is_there_and_gives_no_work_is_left_and_its_work_goes_on_until_then() {
    let mut stage = Stage::mining(3);
    stage.pools[1].manner = Manner::Mute;
    stage.disconnect(0);
    assert_eq!(stage.source(Feed::Shared), 0, "there is nothing else to hash");
    stage.advance(24);
    assert_eq!((stage.upstreams.serving(), stage.source(Feed::Shared)), (Some(1), 0));
    stage.advance(1);
    assert_eq!((stage.upstreams.serving(), stage.source(Feed::Shared)), (Some(2), 2));
    assert_eq!(switches(&stage, SwitchReason::NoWork), 1);
    stage.new_block(1);
    assert_eq!(stage.source(Feed::Shared), 2, "it is too late");
}

#[test]
fn one_that_opens_no_channel_is_left() {
    let mut stage = Stage::mining(2);
    stage.pools[0].manner = Manner::Closed;
    stage.disconnect(0);
    stage.advance(5);
    stage.connect(0);
    stage.disconnect(1);
    assert_eq!(stage.source(Feed::Shared), 1, "it goes on");
    assert!(!stage.pools[0].is_connected, "it was asked, and left");
    stage.connect(1);
    assert!(stage.work[&Feed::Shared].live);
}

#[test]
fn one_that_refuses_every_good_share_is_left_and_its_work_goes_on_until_there_is_other() {
    let mut stage = Stage::mining(2);
    stage.pools[0].manner = Manner::Refusing;
    for nonce in 0..REFUSALS_ARE_TROUBLE {
        assert_eq!(stage.source(Feed::Shared), 0);
        let job = stage.job(Feed::Shared);
        stage.share(&job, nonce);
        stage.answer(0);
        stage.advance(1);
    }
    stage.advance(1);
    assert_eq!(stage.source(Feed::Shared), 1);
    assert_eq!(switches(&stage, SwitchReason::SharesRefused), 1);
    assert_eq!(stage.standing(0), Standing::HeldDown);
    assert!(stage.pools[0].is_connected);
}

#[test]
fn stale_shares_are_no_trouble() {
    let mut stage = Stage::mining(2);
    let job = stage.job(Feed::Shared);
    for nonce in 1..=3 * REFUSALS_ARE_TROUBLE {
        stage.share(&job, nonce);
        let channel = *stage.pools[0].channels.keys().next().expect("it is open");
        stage.receive(0, rig::refused(channel, nonce));
        stage.advance(1);
    }
    assert_eq!(stage.upstreams.serving(), Some(0));
}

#[test]
fn devices_with_channels_of_their_own_move_one_by_one() {
    let mut stage = Stage::new(2, false);
    stage.connect(0);
    stage.connect(1);
    let feeds = [1, 2, 3].map(|number| Feed::Device(rig::key(number)));
    (1..=3).for_each(|number| stage.open_device(number));
    assert_eq!(feeds.map(|feed| stage.source(feed)), [0; 3]);
    stage.disconnect(0);
    assert_eq!(feeds.map(|feed| stage.source(feed)), [1; 3]);
    stage.connect(0);
    stage.close_device(2);
    stage.open_device(4);
    assert_eq!(stage.source(Feed::Device(rig::key(4))), 1);
    stage.advance(60);
    let feeds = [1, 3, 4].map(|number| Feed::Device(rig::key(number)));
    assert_eq!(feeds.map(|feed| stage.source(feed)), [0; 3]);
    assert_eq!((stage.pools[0].channels.len(), stage.pools[1].channels.len()), (3, 3));
    stage.advance(10);
    assert_eq!((stage.pools[0].channels.len(), stage.pools[1].channels.len()), (3, 0));
}

#[test]
fn a_device_is_not_sent_away_while_another_upstream_has_work_for_it() {
    let mut stage = Stage::new(2, false);
    stage.connect(0);
    stage.connect(1);
    stage.open_device(1);
    stage.pools[1].manner = Manner::Closed;
    stage.disconnect(0);
    assert_eq!(stage.open_failed, []);
    let feed = Feed::Device(rig::key(1));
    assert_eq!(stage.source(feed), 0, "it goes on with what it has");
    stage.pools[1].manner = Manner::Well;
    stage.advance(5);
    assert_eq!(stage.source(feed), 1, "it was asked for again");
}

#[test]
fn one_that_is_left_and_needed_again_goes_on_with_its_channels() {
    let mut stage = Stage::mining(2);
    stage.disconnect(0);
    stage.connect(0);
    stage.pools[0].manner = Manner::Mute;
    stage.advance(60);
    assert_eq!((stage.upstreams.serving(), stage.source(Feed::Shared)), (Some(0), 1));
    let job = stage.job(Feed::Shared);
    stage.disconnect(0);
    assert_eq!(stage.upstreams.serving(), Some(1));
    assert_eq!(stage.pools[1].channels.len(), 1);
    assert_eq!(stage.share(&job, 1), Fate::Forwarded);
    stage.new_block(1);
    assert_eq!(stage.source(Feed::Shared), 1);
}
