//! A pool that takes jobs of ours, and another one behind it, in virtual time.

use mining_proxy::upstream::OLDEST_TEMPLATE;
use mining_proxy::{Feed, Standing, SwitchReason};
use mining_server::record::{HoldNumber, ReleaseFate};
use mining_server::{DropReason, Fate};
use stratum::sv2::messages::SetTarget;
use stratum::{Target, Work};

use crate::rig;
use crate::stage::{Manner, Stage};

/// Miners on a declared job that the pool has taken.
fn mining() -> Stage {
    let mut stage = Stage::declaring();
    stage.connect(0);
    stage.connect(1);
    stage.connect_server();
    assert_eq!(stage.upstreams.serving(), None, "there is no template");
    stage.template(1, 1);
    assert_eq!((stage.upstreams.serving(), stage.source(Feed::Shared)), (Some(0), 0));
    stage
}

fn switches(stage: &Stage, reason: SwitchReason) -> u64 {
    stage.upstreams.switches()[reason as usize]
}

#[test]
fn shares_go_out_under_the_pools_number_of_their_job() {
    let mut stage = mining();
    let job = stage.job(Feed::Shared);
    assert_eq!(job.tip.previous_hash, [1; 32]);
    assert_eq!(stage.submit(&job, 1, false), Fate::Forwarded);
    assert_eq!(stage.releases, []);
    let share = stage.pools[0].channels.values().flatten().next().expect("it was sent");
    assert!(share.job_id.0 > 0x7000_0000, "{share:?}");
    stage.new_block(0);
    assert_eq!(
        stage.job(Feed::Shared).number,
        job.number,
        "what the pool itself would have mined is no matter"
    );
}

#[test]
fn shares_wait_for_the_pool_and_a_block_for_nobody() {
    let mut stage = mining();
    stage.pools[0].manner = Manner::Mute;
    stage.template(2, 2);
    let job = stage.job(Feed::Shared);
    assert_eq!(job.tip.previous_hash, [2; 32], "it is mined at once");
    let held = [1, 2].map(|number| Fate::Held(HoldNumber::new(number)));
    assert_eq!([stage.submit(&job, 1, false), stage.submit(&job, 2, true)], held, "recorded at once");
    assert_eq!(stage.blocks.len(), 1);
    assert_eq!(stage.upstreams.declarations().1, 2);
    assert_eq!(stage.pools[0].shares, 0);
    let custom = stage.waiting.pop().expect("the pool was told");
    stage.take_custom_job(0, &custom);
    let released: Vec<_> =
        stage.releases.iter().map(|release| (release.number, release.fate.of_share())).collect();
    let forwarded = [1, 2].map(|number| (HoldNumber::new(number), Fate::Forwarded));
    assert_eq!((&released[..], stage.pools[0].shares), (&forwarded[..], 2));
    for (record, release) in stage.records.iter().zip(&stage.releases) {
        assert_eq!((release.device, release.held_work), (record.device, record.upstream_work));
        assert_eq!((release.upstream, release.upstream_channel), (job.origin.upstream, job.origin.channel));
    }
    assert_eq!(stage.submit(&job, 3, false), Fate::Forwarded, "what comes later does not wait");
}

/// Miners have a job before the pool does, and pools often harden the target with the new tip that it is for.
#[test]
fn a_target_that_comes_before_the_pool_takes_a_job_is_for_its_shares() {
    let mut stage = mining();
    let before = stage.job(Feed::Shared);
    assert_eq!(stage.submit(&before, 1, false), Fate::Forwarded);
    stage.pools[0].manner = Manner::Mute;
    stage.template(2, 2);
    let job = stage.job(Feed::Shared);
    assert_ne!(job.number, before.number);
    assert_eq!(stage.submit(&job, 1, false), Fate::Held(HoldNumber::new(1)));
    assert_eq!(stage.submit(&job, 4, true), Fate::Held(HoldNumber::new(2)));
    let custom = stage.waiting.pop().expect("the pool was told");
    let maximum_target = Target::HARDEST;
    stage.receive(0, SetTarget { channel_id: custom.channel_id, maximum_target });
    stage.take_custom_job(0, &custom);
    assert_eq!(stage.submit(&job, 2, false), Fate::BelowUpstreamTarget);
    let released: Vec<_> =
        stage.releases.iter().map(|release| (release.fate.of_share(), release.work)).collect();
    let nothing = Work(0);
    let expected = [(Fate::BelowUpstreamTarget, nothing), (Fate::Forwarded, nothing)];
    assert_eq!(released, expected, "a block goes out in any case");
    assert_eq!(stage.submit(&job, 3, true), Fate::Forwarded);
    assert_eq!((stage.records.len(), stage.pools[0].shares), (5, 3), "each share has one record");
    for release in &stage.releases {
        let held = stage.records.iter().find(|record| record.fate == Fate::Held(release.number));
        assert_eq!(release.held_work, held.expect("it was recorded").upstream_work);
    }
}

/// A share that meets a harder target, too, is worth no more than what is written of it already.
#[test]
fn a_share_that_waited_is_never_worth_more_than_its_record_says() {
    let mut stage = mining();
    stage.pools[0].manner = Manner::Mute;
    stage.template(2, 2);
    let job = stage.job(Feed::Shared);
    let now = stage.now;
    let with_target = |nonce| {
        let mut share = rig::share(&job, nonce, false, now);
        // As under the easiest of targets.
        share.record.upstream_work = Work(1);
        let target = Target::from_le_bytes(share.forward.as_ref().expect("it is worth forwarding").hash);
        (share, target)
    };
    // Half of all hashes meet a target of more work than that.
    let nonce = (1..).find(|nonce| with_target(*nonce).1.work() > Work(1)).expect("half of them are");
    let (share, harder) = with_target(nonce);
    assert_eq!(stage.submit_share(share), Fate::Held(HoldNumber::new(1)));
    let custom = stage.waiting.pop().expect("the pool was told");
    stage.receive(0, SetTarget { channel_id: custom.channel_id, maximum_target: harder });
    stage.take_custom_job(0, &custom);
    let release = &stage.releases[0];
    assert!(matches!(release.fate, ReleaseFate::Forwarded(_)), "{release:?}");
    assert_eq!((release.held_work, release.work), (Work(1), Work(1)));
    assert_eq!(stage.submit_share(with_target(nonce).0), Fate::Forwarded);
    assert_eq!(
        stage.records[1].upstream_work,
        harder.work(),
        "what did not wait is worth what the pool counts"
    );
}

#[test]
fn shares_that_wait_when_the_pool_goes_are_dropped_and_recorded() {
    let mut stage = mining();
    stage.pools[0].manner = Manner::Mute;
    stage.template(2, 2);
    let job = stage.job(Feed::Shared);
    assert_eq!(stage.submit(&job, 1, false), Fate::Held(HoldNumber::new(1)));
    stage.disconnect(0);
    let dropped = ReleaseFate::Dropped(DropReason::EpochEnded);
    assert_eq!(stage.releases.iter().map(|release| release.fate).collect::<Vec<_>>(), [dropped]);
    assert_eq!(stage.source(Feed::Shared), 1);
    assert_eq!(stage.submit(&job, 2, true), Fate::Dropped(DropReason::EpochEnded));
    assert_eq!(stage.blocks.len(), 1, "our node takes a block from whomever we mined for");
}

#[test]
fn a_pool_that_says_nothing_to_a_custom_job_is_left_and_its_work_goes_on_until_then() {
    let mut stage = mining();
    stage.pools[0].manner = Manner::Mute;
    stage.template(2, 1);
    stage.advance(14);
    assert_eq!(stage.source(Feed::Shared), 0);
    stage.advance(2);
    assert_eq!(stage.source(Feed::Shared), 1);
    assert_eq!(switches(&stage, SwitchReason::DeclarationUnanswered), 1);
    stage.pools[0].manner = Manner::Well;
    for round in 0..4 {
        stage.template(3 + round, 1);
        stage.advance(30);
    }
    assert_eq!(stage.source(Feed::Shared), 0);
    assert_eq!(switches(&stage, SwitchReason::FailBack), 1);
}

#[test]
fn without_its_server_a_pool_is_left() {
    let mut stage = mining();
    stage.disconnect_server();
    assert_eq!((stage.source(Feed::Shared), stage.standing(0)), (1, Standing::Away));
    stage.connect_server();
    for round in 0..3 {
        stage.advance(30);
        stage.template(2 + round, 1);
    }
    assert_eq!(stage.source(Feed::Shared), 0);
}

#[test]
fn when_our_node_is_away_the_pools_of_others_have_the_work() {
    let mut stage = mining();
    stage.advance(OLDEST_TEMPLATE.as_secs() - 1);
    assert_eq!(stage.source(Feed::Shared), 0);
    stage.advance(1);
    assert_eq!(stage.source(Feed::Shared), 1);
    assert_eq!(switches(&stage, SwitchReason::NoWork), 1);
    for round in 0..3 {
        stage.template(2 + round, 5);
        stage.advance(30);
    }
    assert_eq!(stage.source(Feed::Shared), 0);
    assert_eq!(stage.job(Feed::Shared).tip.previous_hash, [5; 32]);
}

/// What is left of a reward without transactions of which nobody knows the fees is unknown, too.
#[test]
fn a_full_template_whose_fees_are_unknown_is_not_pruned() {
    let mut stage = mining();
    assert!(stage.upstreams.constraints().max_additional_size > 0, "its templates must have room");
    stage.full_template(2, 2, 0);
    assert_eq!(stage.job(Feed::Shared).tip.previous_hash, [1; 32], "it waits for one that has room");
    stage.full_template(3, 2, 700);
    assert_eq!(stage.job(Feed::Shared).tip.previous_hash, [2; 32]);
}
