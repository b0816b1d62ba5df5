//! Every message of the pool, well-formed and hostile, by example.

use std::time::Duration;

use super::rig::*;
use mining_proxy::upstream::{ANSWER_DEADLINE, MAX_FUTURE_JOBS, MAX_OPENING, MAX_PENDING_SHARES};
use mining_proxy::{Endpoint, Feed, LinkState};
use mining_server::record::UpstreamVerdict;
use mining_server::{DropReason, Fate, Fault, LossReason};
use sha2::{Digest, Sha256};
use stratum::hash::Hash;
use stratum::sv2::Message;
use stratum::sv2::messages::*;
use stratum::{
    ChannelId, Epoch, Job, JobId, RequestId, SequenceNumber, Target, TipNumber, UpstreamJobId, Work,
};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_connection_is_set_up_and_opens_one_shared_channel() {
    let mut rig = Rig::new(true);
    rig.connect();
    let Message::SetupConnection(setup) = &rig.sent[0] else { panic!("{:?}", rig.sent) };
    assert_eq!(
        (setup.protocol, setup.min_version, setup.max_version, setup.flags),
        (Protocol::Mining, 2, 2, 0)
    );
    assert_eq!((setup.endpoint_host.as_str(), setup.endpoint_port), ("pool.example", 34254));
    assert_eq!(rig.sent.len(), 1);
    rig.receive(SetupConnectionSuccess { used_version: 2, flags: 2 });
    let open = &rig.requests()[0];
    assert_eq!(open.user_identity, "account.farm");
    assert_eq!((open.nominal_hash_rate, open.max_target, open.min_extranonce_size), (0.0, Target::MAX, 8));
    assert!(open.nominal_hash_rate.is_sign_positive(), "-0 would be a negative rate");
    assert_eq!(rig.requests().len(), 1);
    rig.receive(opened(open.request_id, CHANNEL));
    assert_eq!((rig.upstream.link(), rig.upstream.open_channels()), (LinkState::Ready, 1));
    assert!(rig.work.is_empty(), "there is no job yet");
}

#[test]
fn a_future_job_becomes_active_with_its_previous_hash() {
    let mut rig = Rig::open();
    rig.receive(job(CHANNEL, 1, None));
    assert!(rig.work.is_empty());
    rig.receive(tip(CHANNEL, 1, 9));
    let work = &rig.work[&Feed::Shared];
    assert!(work.live);
    let active = rig.active();
    assert_eq!((active.epoch, active.tip.number, active.clean), (Epoch(1), TipNumber(1), true));
    assert_eq!((active.tip.previous_hash, active.tip.nbits, active.min_ntime), ([9; 32], NBITS, NTIME));
    assert_eq!(*active.coinbase_prefix, *[&[1; 60][..], &PREFIX].concat());
    assert_eq!((active.rollable_size, active.origin.job), (12, UpstreamJobId(1)));
    assert_eq!(active.upstream_target, Target::from_difficulty_exponent(10));

    rig.receive(job(CHANNEL, 2, Some(NTIME + 3)));
    let active = rig.active();
    assert_eq!((active.clean, active.tip.number, active.min_ntime), (false, TipNumber(1), NTIME + 3));
    assert_eq!(rig.work[&Feed::Shared].jobs.len(), 2);

    rig.receive(job(CHANNEL, 3, None));
    rig.receive(job(CHANNEL, 4, None));
    rig.receive(tip(CHANNEL, 3, 10));
    assert_eq!((rig.active().tip.number, rig.active().clean), (TipNumber(2), true));
    assert_eq!(rig.work[&Feed::Shared].jobs.len(), 1);
    // The other future job is void now.
    rig.receive(tip(CHANNEL, 4, 11));
    assert_eq!(rig.active().origin.job, UpstreamJobId(3));
    assert_eq!(rig.out.notices.len(), 1, "{:?}", rig.out.notices);
    assert_eq!(rig.closed(), None);
}

#[test]
fn a_previous_hash_that_is_repeated_makes_no_share_stale() {
    let mut rig = Rig::mining();
    let old = rig.active();
    rig.receive(job(CHANNEL, 2, None));
    rig.receive(tip(CHANNEL, 2, 1));
    let new = rig.active();
    assert_eq!((new.origin.job, new.clean, new.tip), (UpstreamJobId(2), true, old.tip));
    let numbers = |rig: &Rig| -> Vec<_> {
        rig.work[&Feed::Shared].jobs.iter().map(|published| published.job.number).collect()
    };
    assert_eq!(numbers(&rig), [old.number, new.number], "miners leave the old one, and its shares are taken");
    assert_eq!(rig.share(&old, 1, false).fate, Fate::Forwarded);

    // Another difficulty of the network is another tip, like another block.
    rig.receive(job(CHANNEL, 3, None));
    rig.receive(SetNewPrevHash { nbits: NBITS - 1, ..tip(CHANNEL, 3, 1) });
    assert_eq!((rig.active().clean, rig.active().tip.number), (true, TipNumber(2)));
    // So it is when its own job never came, and the next job is the first on it.
    rig.receive(tip(CHANNEL, 99, 2));
    rig.receive(job(CHANNEL, 4, Some(NTIME)));
    assert_eq!((rig.active().clean, rig.active().tip.number), (true, TipNumber(3)));
    assert_eq!(numbers(&rig), [rig.active().number]);
}

#[test]
fn a_job_that_its_previous_hash_activates_is_mined_on_at_once_even_if_it_is_the_same_work() {
    let mut rig = Rig::mining();
    // Only its id tells the second job from the first.
    let same = |id: u32| NewExtendedMiningJob { job_id: JobId(id), ..job(CHANNEL, 1, None) };
    for id in 2..8 {
        rig.advance(10 * SECOND);
        let old = rig.active();
        rig.receive(same(id));
        rig.receive(tip(CHANNEL, id, 1));
        let new = rig.active();
        assert_eq!(
            (new.origin.job, new.clean),
            (UpstreamJobId(id), true),
            "all other jobs are void upstream"
        );
        assert_eq!(new.min_ntime, old.min_ntime + 10, "no header is hashed twice");
        // Who has not heard of it yet mined what we had said: the upstream may refuse that, and we do not.
        assert_eq!(rig.work[&Feed::Shared].jobs.len(), id as usize);
        assert_eq!(rig.share(&old, id, false).fate, Fate::Forwarded);
    }
}

#[test]
fn a_repeated_previous_hash_is_held_back_for_a_second_at_most() {
    let mut rig = Rig::mining();
    let first = rig.active();
    let same = |id: u32| NewExtendedMiningJob { job_id: JobId(id), ..job(CHANNEL, 1, None) };
    // Within one second there is no later time to hash; repetitions must not put it off.
    for id in 2..=20 {
        rig.receive(same(id));
        rig.receive(tip(CHANNEL, id, 1));
        rig.advance(SECOND / 20);
    }
    assert_eq!(rig.active().number, first.number, "there is nothing fresh to hash yet");
    // A job that is not for a previous hash voids none, and does not take back what was voided before it.
    rig.receive(NewExtendedMiningJob { min_ntime: Some(NTIME), ..same(21) });
    rig.advance(SECOND);
    let second = rig.active();
    assert_eq!((second.origin.job, second.clean, second.min_ntime), (UpstreamJobId(21), true, NTIME + 1));
    assert_eq!(second.number, first.number.next());
    // A job of other work takes its place when it comes first.
    rig.receive(same(22));
    rig.receive(tip(CHANNEL, 22, 1));
    assert_eq!(rig.active().number, second.number);
    rig.receive(job(CHANNEL, 23, Some(NTIME)));
    assert_eq!((rig.active().origin.job, rig.active().clean), (UpstreamJobId(23), true));
    rig.receive(job(CHANNEL, 24, Some(NTIME)));
    assert!(!rig.active().clean, "told once");
}

#[test]
fn the_same_job_again_does_not_put_a_wanted_one_off() {
    let mut rig = Rig::mining();
    for id in 2..20 {
        rig.upstream.handle_new_job_wanted(Feed::Shared);
        rig.receive(NewExtendedMiningJob { job_id: JobId(id), ..job(CHANNEL, 1, Some(NTIME)) });
        rig.advance(SECOND / 2);
    }
    assert!((7..=9).contains(&(rig.active().min_ntime - NTIME)), "{}", rig.active().min_ntime - NTIME);
}

#[test]
fn a_job_before_any_previous_hash_is_told_and_not_mined_on() {
    let mut rig = Rig::open();
    rig.receive(job(CHANNEL, 1, Some(NTIME)));
    assert!(rig.work.is_empty());
    assert_eq!(rig.out.notices.len(), 1);
    // The tip is known from a previous hash whose job never came, and the next job uses it.
    rig.receive(tip(CHANNEL, 5, 1));
    rig.receive(job(CHANNEL, 6, Some(NTIME)));
    assert!(rig.active().clean, "the first job of an epoch is clean");
}

#[test]
fn future_jobs_are_bounded_and_the_oldest_goes() {
    let mut rig = Rig::mining();
    for id in 10..=10 + MAX_FUTURE_JOBS as u32 {
        rig.receive(job(CHANNEL, id, None));
    }
    rig.receive(tip(CHANNEL, 10, 2));
    assert_eq!(rig.active().origin.job, UpstreamJobId(1));
    rig.receive(job(CHANNEL, 40, None));
    rig.receive(job(CHANNEL, 40, None));
    rig.receive(tip(CHANNEL, 40, 3));
    assert_eq!(rig.active().origin.job, UpstreamJobId(40));
}

#[test]
fn a_forwarded_share_hashes_to_ours_from_what_the_pool_knows() {
    let mut rig = Rig::mining();
    let record = rig.share(&rig.active(), 77, false);
    assert_eq!((record.fate, record.sequence_number), (Fate::Forwarded, Some(SequenceNumber(1))));
    let submit = &rig.submits()[0];
    assert_eq!((submit.channel_id, submit.job_id), (CHANNEL, JobId(1)));
    let expected = share(&rig.active(), 77, false, rig.now).forward.expect("forwarded").hash;
    assert_eq!(pool_hash(&job(CHANNEL, 1, None), &PREFIX, &tip(CHANNEL, 1, 1), submit), expected);
}

/// The hash of a share as SV2 5.3.16 tells a pool to compute it.
fn pool_hash(
    job: &NewExtendedMiningJob,
    prefix: &[u8],
    tip: &SetNewPrevHash,
    share: &SubmitSharesExtended,
) -> Hash {
    let coinbase = [&job.coinbase_tx_prefix, prefix, &share.extranonce, &job.coinbase_tx_suffix].concat();
    let mut root = double_sha(&coinbase);
    for sibling in &job.merkle_path {
        root = double_sha(&[root, *sibling].concat());
    }
    let mut header = share.version.to_le_bytes().to_vec();
    header.extend(tip.prev_hash);
    header.extend(root);
    header.extend(share.ntime.to_le_bytes());
    header.extend(tip.nbits.to_le_bytes());
    header.extend(share.nonce.to_le_bytes());
    double_sha(&header)
}

fn double_sha(bytes: &[u8]) -> Hash {
    Sha256::digest(Sha256::digest(bytes)).into()
}

#[test]
fn a_new_prefix_is_for_jobs_that_come_after_it() {
    let mut rig = Rig::mining();
    rig.receive(job(CHANNEL, 2, None));
    let prefix = [0xb0; 8];
    rig.receive(SetExtranoncePrefix { channel_id: CHANNEL, extranonce_prefix: prefix.to_vec() });
    assert_eq!(rig.active().origin.job, UpstreamJobId(1));
    rig.receive(tip(CHANNEL, 2, 2));
    assert!(rig.active().coinbase_prefix.ends_with(&PREFIX), "the future job came before the prefix");
    rig.receive(job(CHANNEL, 3, Some(NTIME)));
    assert!(rig.active().coinbase_prefix.ends_with(&prefix));
    rig.share(&rig.active(), 5, false);
    let expected = share(&rig.active(), 5, false, rig.now).forward.expect("forwarded").hash;
    assert_eq!(pool_hash(&job(CHANNEL, 3, None), &prefix, &tip(CHANNEL, 2, 2), &rig.submits()[0]), expected);

    rig.receive(SetExtranoncePrefix { channel_id: ChannelId(99), extranonce_prefix: vec![] });
    assert_eq!(rig.out.notices.len(), 1);
    rig.receive(SetExtranoncePrefix { channel_id: CHANNEL, extranonce_prefix: vec![1; 21] });
    assert!(rig.closed().is_some_and(|what| what.contains("at most 32")), "{:?}", rig.closed());
}

#[test]
fn a_new_target_is_for_new_jobs_and_waiting_ones() {
    let mut rig = Rig::mining();
    let (old, new) = (Target::from_difficulty_exponent(10), Target::from_difficulty_exponent(14));
    rig.receive(job(CHANNEL, 2, None));
    rig.receive(SetTarget { channel_id: CHANNEL, maximum_target: new });
    assert_eq!((rig.active().upstream_target, rig.work[&Feed::Shared].upstream_target), (old, old));
    rig.advance(25 * SECOND);
    assert_eq!(rig.active().origin.job, UpstreamJobId(1));
    assert_eq!(rig.active().upstream_target, old, "a refreshed job is still the upstream's old one");
    rig.receive(tip(CHANNEL, 2, 2));
    assert_eq!((rig.active().upstream_target, rig.work[&Feed::Shared].upstream_target), (new, new));
    rig.receive(SetTarget { channel_id: GROUP, maximum_target: old });
    rig.receive(job(CHANNEL, 3, Some(NTIME)));
    assert_eq!(rig.active().upstream_target, old);
    rig.receive(SetTarget { channel_id: CHANNEL, maximum_target: Target::from_le_bytes([0; 32]) });
    assert!(rig.closed().is_some_and(|what| what.contains("zero")));
}

#[test]
fn group_messages_reach_every_channel_of_the_group() {
    let mut rig = Rig::new(false);
    rig.set_up(0);
    for device in 1..=3 {
        rig.open_device(key(device), &format!("x.rig{device}"), 1e14);
    }
    for (request, channel) in rig.requests().iter().zip([11, 12, 13]) {
        let prefix = vec![channel as u8; 8];
        let opened = opened(request.request_id, ChannelId(channel));
        rig.receive(OpenExtendedMiningChannelSuccess { extranonce_prefix: prefix, ..opened });
    }
    let other = ChannelId(4);
    rig.receive(SetGroupChannel { group_channel_id: other, channel_ids: vec![ChannelId(13), ChannelId(99)] });
    rig.receive(job(GROUP, 1, None));
    rig.receive(tip(GROUP, 1, 1));
    let has_job = |rig: &Rig, device| rig.work.contains_key(&Feed::Device(key(device)));
    assert_eq!((has_job(&rig, 1), has_job(&rig, 2), has_job(&rig, 3)), (true, true, false));
    rig.receive(job(other, 2, None));
    rig.receive(tip(other, 2, 1));
    for (device, channel) in [(1, 11), (2, 12), (3, 13)] {
        let job = rig.active_of(Feed::Device(key(device)));
        assert!(job.coinbase_prefix.ends_with(&[channel; 8]));
        let record = rig.share(&job, 1, false);
        assert_eq!(record.sequence_number, Some(SequenceNumber(1)), "each channel counts for itself");
        assert_eq!(rig.submits().last().map(|submit| submit.channel_id.0), Some(channel.into()));
    }
    rig.receive(CloseChannel { channel_id: GROUP, reason_code: "bye".to_owned() });
    assert_eq!(rig.upstream.open_channels(), 1);
    assert!(!rig.work[&Feed::Device(key(1))].live && rig.work[&Feed::Device(key(3))].live);
}

#[test]
fn shares_are_acknowledged_in_batches_and_refused_one_by_one() {
    let mut rig = Rig::mining();
    for nonce in 0..6 {
        rig.share(&rig.active(), nonce, false);
        rig.advance(SECOND);
    }
    let numbers: Vec<u32> = rig.submits().iter().map(|submit| submit.sequence_number.0).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6]);
    rig.receive(refused(CHANNEL, 2));
    rig.receive(success(CHANNEL, 4, 3));
    let out = rig.take();
    assert!(out.notices.is_empty(), "{:?}", out.notices);
    assert_eq!(
        out.answers[0].verdict,
        UpstreamVerdict::Rejected {
            sequence_number: SequenceNumber(2),
            code: "stale-share".to_owned(),
            work: SHARE_WORK
        }
    );
    assert_eq!(
        out.answers[1].verdict,
        UpstreamVerdict::Acknowledged {
            last: SequenceNumber(4),
            count: 3,
            claimed: 3,
            shares_sum: 3072,
            work: Work(3 * SHARE_WORK.0)
        }
    );
    // What was answered, or never sent, is not answered again.
    rig.receive(refused(CHANNEL, 2));
    rig.receive(success(CHANNEL, 4, 1));
    rig.receive(success(CHANNEL, 7, 1));
    rig.receive(success(ChannelId(99), 1, 1));
    let out = rig.take();
    assert!(out.answers.is_empty());
    assert_eq!(out.notices.len(), 4);
    rig.disconnect();
    assert_eq!(rig.out.answers[0].verdict, lost(6, 2, LossReason::ConnectionEnded));
    let tally = rig.upstream.tally();
    assert_eq!((tally.forwarded, tally.acknowledged, tally.rejected), (6, 3, 1));
    assert_eq!((tally.pending, tally.lost), (0, 2));
}

#[test]
fn an_upstream_that_miscounts_is_told_and_only_what_waited_counts() {
    let mut rig = Rig::mining();
    for nonce in 0..5 {
        rig.share(&rig.active(), nonce, false);
    }
    let counts = [(2, u32::MAX, 2), (4, 0, 2), (5, 2, 1)];
    for (last, claimed, count) in counts {
        rig.receive(success(CHANNEL, last, claimed));
        let out = rig.take();
        let shares_sum = u64::from(claimed) * 1024;
        let last = SequenceNumber(last);
        let work = Work(SHARE_WORK.0 * u128::from(count));
        let verdict = UpstreamVerdict::Acknowledged { last, count, claimed, shares_sum, work };
        assert_eq!(out.answers.iter().map(|answer| &answer.verdict).collect::<Vec<_>>(), [&verdict]);
        assert_eq!(out.notices.len(), 1, "{:?}", out.notices);
    }
    let tally = rig.upstream.tally();
    assert_eq!((tally.forwarded, tally.acknowledged, tally.pending), (5, 5, 0));
}

#[test]
fn an_upstream_that_refuses_everything_is_told_once() {
    let mut rig = Rig::mining();
    let job = rig.active();
    for nonce in 0..250 {
        rig.share(&job, nonce, false);
        rig.receive(refused(CHANNEL, nonce + 1));
    }
    assert_eq!(rig.out.notices.len(), 1, "{:?}", rig.out.notices);
    assert!(rig.out.notices[0].contains("stale-share"));
}

#[test]
fn shares_beyond_the_queue_are_dropped_but_blocks_go_out() {
    let mut rig = Rig::mining();
    let job = rig.active();
    for nonce in 0..MAX_PENDING_SHARES as u32 {
        assert_eq!(rig.share(&job, nonce, false).fate, Fate::Forwarded);
    }
    assert_eq!(rig.share(&job, 1, false).fate, Fate::Dropped(DropReason::QueueFull));
    let record = rig.share(&job, 2, true);
    assert_eq!(record.sequence_number, Some(SequenceNumber(MAX_PENDING_SHARES as u32 + 1)));
    assert_eq!(rig.out.answers[0].verdict, lost(1, 1, LossReason::NeverAnswered));
    // An upstream that goes on saying things, but never answers shares, is dialled again.
    for _ in 0..10 {
        assert_eq!(rig.closed(), None);
        rig.advance(60 * SECOND);
        rig.receive(SetTarget { channel_id: CHANNEL, maximum_target: Target::MAX });
        rig.share(&job, 3, false);
    }
    assert!(rig.closed().is_some_and(|what| what.contains("unanswered")));
}

#[test]
fn a_lost_upstream_keeps_its_jobs_and_comes_back_in_a_new_epoch() {
    let mut rig = Rig::mining();
    let old = rig.active();
    rig.share(&old, 1, false);
    rig.disconnect();
    assert!(!rig.work[&Feed::Shared].live);
    assert_eq!(rig.active().number, old.number);
    assert_eq!(rig.share(&old, 2, false).fate, Fate::Dropped(DropReason::UpstreamLost));
    rig.advance(21 * SECOND);
    let refreshed = rig.active();
    assert_eq!((refreshed.min_ntime, refreshed.clean), (old.min_ntime + 20, false), "miners hear something");

    rig.set_up(0);
    assert_eq!(rig.share(&old, 3, false).fate, Fate::Dropped(DropReason::UpstreamLost));
    let request = rig.requests().last().expect("asked again").request_id;
    rig.receive(opened(request, CHANNEL));
    assert!(!rig.work[&Feed::Shared].live, "there is no job of the new life yet");
    assert_eq!(rig.share(&old, 4, false).fate, Fate::Dropped(DropReason::EpochEnded));
    rig.receive(job(CHANNEL, 1, None));
    rig.receive(tip(CHANNEL, 1, 1));
    let work = &rig.work[&Feed::Shared];
    assert_eq!((work.live, work.epoch, work.jobs.len()), (true, Epoch(2), 1));
    let new = rig.active();
    assert_eq!((new.clean, new.tip.number), (true, TipNumber(1)));
    assert!(new.number > refreshed.number);
    assert_eq!(rig.share(&old, 5, false).fate, Fate::Dropped(DropReason::EpochEnded));
    assert_eq!(rig.share(&new, 6, false).sequence_number, Some(SequenceNumber(1)));
}

#[test]
fn jobs_are_refreshed_when_none_comes_and_on_demand() {
    let mut rig = Rig::mining();
    rig.advance(19 * SECOND);
    assert_eq!(rig.published, 0);
    rig.advance(2 * SECOND);
    assert_eq!((rig.published, rig.active().min_ntime), (1, NTIME + 20));
    rig.receive(job(CHANNEL, 2, Some(NTIME)));
    rig.advance(19 * SECOND);
    assert_eq!(rig.published, 2, "a job of the upstream puts it off");
    // A thousand wishes in a few seconds make one job a second.
    for _ in 0..1000 {
        rig.upstream.handle_new_job_wanted(Feed::Shared);
        rig.advance(Duration::from_millis(5));
    }
    assert!((7..=8).contains(&rig.published), "{}", rig.published);
    rig.upstream.handle_new_job_wanted(Feed::Device(key(1)));
}

#[test]
fn the_sum_of_hash_rates_is_told_when_it_changes() {
    let mut rig = Rig::new(true);
    rig.rate(key(1), Some(1e14));
    rig.set_up(0);
    assert_eq!(rig.requests()[0].nominal_hash_rate, 1e14);
    rig.receive(opened(rig.requests()[0].request_id, CHANNEL));
    for device in 2..=100 {
        rig.rate(key(device), Some(1e14));
        rig.advance(Duration::from_millis(20));
    }
    rig.advance(10 * SECOND);
    assert_eq!(rig.updates(), [1e16]);
    rig.rate(key(1), Some(2e14));
    rig.advance(60 * SECOND);
    assert_eq!(rig.updates().len(), 1, "one per cent is no news");
    rig.rate(key(2), Some(5e14));
    rig.rate(key(3), Some(5e14));
    rig.advance(60 * SECOND);
    rig.rate(key(4), None);
    rig.rate(key(5), Some(f64::NAN));
    rig.advance(60 * SECOND);
    assert_eq!(rig.updates(), [1e16, 1.09e16, 1.07e16]);
    for device in 1..=100 {
        rig.rate(key(device), None);
    }
    rig.advance(60 * SECOND);
    assert_eq!(rig.updates().last(), Some(&0.0));
    rig.rate(key(1), Some(f64::MAX));
    rig.advance(6 * SECOND);
    assert_eq!(rig.updates().last(), Some(&f32::MAX));
}

#[test]
fn every_device_has_its_channel_and_its_own_fate() {
    let mut rig = Rig::new(false);
    rig.open_device(key(1), "x.rig1", 2e14);
    assert!(rig.sent.is_empty());
    rig.set_up(0);
    rig.open_device(key(2), "rig2", 1e14);
    rig.open_device(key(2), "rig2", 1e14);
    let requests = rig.requests();
    let asked: Vec<_> =
        requests.iter().map(|open| (open.user_identity.as_str(), open.nominal_hash_rate)).collect();
    assert_eq!(asked, [("account.farm.rig1", 2e14), ("account.farm.rig2", 1e14)]);
    let code = "unknown-user".to_owned();
    rig.receive(OpenMiningChannelError { request_id: requests[0].request_id, error_code: code.clone() });
    assert_eq!(rig.out.open_failed, [(key(1), code)]);
    rig.receive(opened(requests[1].request_id, CHANNEL));
    rig.receive(job(CHANNEL, 1, None));
    rig.receive(tip(CHANNEL, 1, 1));
    assert!(rig.work.contains_key(&Feed::Device(key(2))) && !rig.work.contains_key(&Feed::Device(key(1))));
    rig.advance(2 * SECOND);
    let again = rig.requests()[2].clone();
    assert_eq!(again.user_identity, "account.farm.rig1", "the refused device asks again");

    rig.rate(key(2), Some(3e14));
    rig.rate(key(2), None);
    rig.advance(6 * SECOND);
    assert_eq!(rig.updates(), [3e14]);
    let job = rig.active_of(Feed::Device(key(2)));
    rig.share(&job, 1, false);
    rig.close_device(key(2));
    assert_eq!(rig.closes(), [CHANNEL]);
    assert_eq!(rig.out.answers[0].verdict, lost(1, 1, LossReason::ConnectionEnded));
    assert_eq!(rig.share(&job, 2, false).fate, Fate::Dropped(DropReason::UpstreamLost));
    // An answer that crosses the end of the channel is no surprise.
    rig.receive(success(CHANNEL, 1, 1));
    assert!(rig.out.notices.is_empty(), "{:?}", rig.out.notices);
    // A device that goes while its request is on its way leaves no channel behind.
    rig.close_device(key(1));
    rig.receive(opened(again.request_id, ChannelId(8)));
    assert_eq!(rig.closes(), [CHANNEL, ChannelId(8)]);
    assert_eq!(rig.upstream.open_channels(), 0);
    // Its job numbers never come again.
    rig.open_device(key(2), "rig2", 1e14);
    rig.receive(opened(rig.requests().last().expect("asked").request_id, ChannelId(9)));
    rig.receive(super::rig::job(ChannelId(9), 1, None));
    rig.receive(tip(ChannelId(9), 1, 1));
    assert!(rig.active_of(Feed::Device(key(2))).number > job.number);
}

#[test]
fn channels_are_asked_for_a_few_at_a_time() {
    let mut rig = Rig::new(false);
    for device in 0..200 {
        rig.open_device(key(device), "x", 1e12);
    }
    rig.set_up(0);
    assert_eq!(rig.requests().len(), MAX_OPENING);
    let mut answered = 0;
    while let Some(request) = rig.requests().get(answered).cloned() {
        answered += 1;
        rig.receive(opened(request.request_id, ChannelId(1000 + answered as u32)));
        assert!(rig.requests().len() - answered <= MAX_OPENING);
    }
    assert_eq!((answered, rig.upstream.open_channels()), (200, 200));
}

#[test]
fn a_channel_that_the_upstream_closes_is_opened_anew() {
    let mut rig = Rig::mining();
    let old = rig.active();
    rig.receive(CloseChannel { channel_id: CHANNEL, reason_code: "moved\u{1b}[0m".to_owned() });
    assert!(!rig.work[&Feed::Shared].live);
    assert_eq!(rig.out.notices, ["the upstream closed channel 7 (1 in all): moved[0m"]);
    assert_eq!(rig.share(&old, 1, false).fate, Fate::Dropped(DropReason::UpstreamLost));
    rig.advance(2 * SECOND);
    rig.receive(opened(rig.requests()[0].request_id, ChannelId(8)));
    rig.receive(job(ChannelId(8), 1, None));
    rig.receive(tip(ChannelId(8), 1, 1));
    assert_eq!((rig.active().epoch, rig.active().clean), (Epoch(2), true));
    assert_eq!(rig.closed(), None);
}

#[test]
fn a_refused_shared_channel_ends_the_connection() {
    let mut rig = Rig::new(true);
    rig.set_up(0);
    let request_id = rig.requests()[0].request_id;
    rig.receive(OpenMiningChannelError { request_id, error_code: "unknown-user".to_owned() });
    assert_eq!(rig.closed(), Some("the upstream opened no channel: unknown-user"));
    assert_eq!(rig.out.close.as_ref().map(|reason| reason.fault), Some(Fault::Upstream));
    assert_eq!(rig.upstream.link(), LinkState::Away);
}

#[test]
fn channels_without_room_for_miners_are_refused_in_words() {
    for (size, prefix) in [(7, 0), (0, 32), (9, 24), (33, 0), (u16::MAX, 0)] {
        let mut rig = Rig::new(true);
        rig.set_up(0);
        let message = opened(rig.requests()[0].request_id, CHANNEL);
        rig.receive(OpenExtendedMiningChannelSuccess {
            extranonce_size: size,
            extranonce_prefix: vec![0; prefix],
            ..message
        });
        assert!(rig.closed().is_some_and(|what| what.contains("at least 8")), "{size} after {prefix}");
    }
}

#[test]
fn a_fixed_version_forbids_rolling_in_every_job() {
    let mut rig = Rig::new(true);
    rig.set_up(1);
    rig.receive(opened(rig.requests()[0].request_id, CHANNEL));
    rig.receive(NewExtendedMiningJob { version: 0x2000_e000, ..job(CHANNEL, 1, None) });
    rig.receive(tip(CHANNEL, 1, 1));
    assert_eq!((rig.active().version_rolling_allowed, rig.active().version), (false, 0x2000_e000));
}

#[test]
fn the_setup_has_to_succeed_first() {
    let refusal = SetupConnectionError { flags: 4, error_code: "unsupported-feature-flags".to_owned() };
    let answers: [(Message, &str); 5] = [
        (refusal.into(), "unsupported-feature-flags (flags 0x4)"),
        (SetupConnectionSuccess { used_version: 3, flags: 0 }.into(), "version 3"),
        (opened(RequestId(1), CHANNEL).into(), "before"),
        (job(CHANNEL, 1, None).into(), "before"),
        (success(CHANNEL, 1, 1).into(), "before"),
    ];
    for (answer, words) in answers {
        let mut rig = Rig::new(true);
        rig.connect();
        rig.receive(answer);
        assert!(rig.closed().is_some_and(|what| what.contains(words)), "{:?}", rig.closed());
    }
}

#[test]
fn a_redirect_names_the_whole_endpoint() {
    let cases = [
        (("", 0), Some(("pool.example", 34254))),
        (("other.example", 0), Some(("other.example", 34254))),
        (("", 5), Some(("pool.example", 5))),
        (("[::1]", 6), Some(("[::1]", 6))),
        (("evil host\n", 1), None),
        (("a/b", 1), None),
    ];
    for ((host, port), expected) in cases {
        let mut rig = Rig::mining();
        rig.receive(Reconnect { new_host: host.to_owned(), new_port: port });
        let expected = expected.map(|(host, port)| Endpoint { host: host.to_owned(), port });
        assert_eq!(rig.out.reconnect_to, expected);
        assert_eq!(rig.closed().is_some(), expected.is_some());
        assert_eq!(rig.work[&Feed::Shared].live, expected.is_none());
    }
}

#[test]
fn silence_ends_the_connection() {
    let mut rig = Rig::new(true);
    rig.connect();
    rig.advance(ANSWER_DEADLINE);
    assert!(rig.closed().is_some_and(|what| what.contains("SetupConnection")));
    rig.take();
    rig.set_up(0);
    rig.advance(ANSWER_DEADLINE + SECOND);
    assert!(rig.closed().is_some_and(|what| what.contains("request")));
    let mut rig = Rig::mining();
    rig.advance(599 * SECOND);
    assert_eq!(rig.closed(), None);
    rig.advance(2 * SECOND);
    assert!(rig.closed().is_some_and(|what| what.contains("silent")));
    let refreshed: Job = rig.active();
    rig.advance(60 * SECOND);
    assert!(rig.active().number > refreshed.number, "miners still hear something");
}

#[test]
fn impossible_jobs_and_tips_end_the_connection() {
    let good = || job(CHANNEL, 2, None);
    let messages: [Message; 6] = [
        NewExtendedMiningJob { merkle_path: vec![[0; 32]; 21], ..good() }.into(),
        NewExtendedMiningJob { coinbase_tx_prefix: vec![0; 1025], ..good() }.into(),
        NewExtendedMiningJob { coinbase_tx_suffix: vec![0; 32 * 1024 + 1], ..good() }.into(),
        SetNewPrevHash { nbits: 0, ..tip(CHANNEL, 1, 1) }.into(),
        SetNewPrevHash { nbits: 0x1d80_0000, ..tip(CHANNEL, 1, 1) }.into(),
        SetNewPrevHash { nbits: 0xff00_ffff, ..tip(CHANNEL, 1, 1) }.into(),
    ];
    for message in messages {
        let mut rig = Rig::mining();
        rig.receive(message);
        assert!(rig.closed().is_some());
        assert!(!rig.work[&Feed::Shared].live);
    }
}

#[test]
fn what_cannot_be_read_ends_the_connection() {
    let mut rig = Rig::mining();
    rig.receive_frame(&[0, 0x80, 0x1f, 3, 0, 0, 1, 2, 3]);
    assert!(rig.closed().is_some_and(|what| what.contains("NewExtendedMiningJob")), "{:?}", rig.closed());
    // What comes after is not looked at.
    rig.receive(job(CHANNEL, 9, Some(NTIME)));
    assert_eq!(rig.active().origin.job, UpstreamJobId(1));
}

#[test]
fn a_channel_opened_twice_ends_the_connection() {
    let mut rig = Rig::mining();
    rig.receive(opened(RequestId(50), ChannelId(8)));
    assert_eq!(rig.closes(), [ChannelId(8)], "nobody asked for it");
    rig.receive(OpenMiningChannelError { request_id: RequestId(50), error_code: String::new() });
    assert_eq!(rig.closed(), None);
    rig.receive(opened(RequestId(51), CHANNEL));
    assert_eq!(rig.closed(), Some("the upstream opened channel 7 twice"));
}

#[test]
fn other_messages_change_nothing() {
    let mut rig = Rig::mining();
    let before = rig.active().number;
    let request_id = ExtensionsRequestId(1);
    let silent: [Message; 4] = [
        ChannelEndpointChanged { channel_id: CHANNEL }.into(),
        RequestExtensionsSuccess { request_id, supported_extensions: vec![2] }.into(),
        RequestExtensionsError { request_id, unsupported_extensions: vec![], required_extensions: vec![] }
            .into(),
        Unknown { extension_type: 99, message_type: 1, channel_id: Some(CHANNEL), payload: vec![1] }.into(),
    ];
    for message in silent {
        rig.receive(message);
    }
    assert!(rig.out.notices.is_empty());
    let told: [Message; 9] = [
        NewMiningJob {
            channel_id: CHANNEL,
            job_id: JobId(1),
            min_ntime: None,
            version: 0,
            merkle_root: [0; 32],
        }
        .into(),
        UpdateChannelError { channel_id: CHANNEL, error_code: "invalid-channel-id".to_owned() }.into(),
        SetupConnectionSuccess { used_version: 2, flags: 0 }.into(),
        OpenStandardMiningChannelSuccess {
            request_id: RequestId(1),
            channel_id: ChannelId(9),
            target: Target::MAX,
            extranonce_prefix: vec![],
            group_channel_id: GROUP,
        }
        .into(),
        SetCustomMiningJobError {
            channel_id: CHANNEL,
            request_id: RequestId(1),
            error_code: "jd-not-supported".to_owned(),
        }
        .into(),
        RequestExtensions { request_id, requested_extensions: vec![] }.into(),
        UpdateChannel { channel_id: CHANNEL, nominal_hash_rate: f32::NAN, maximum_target: Target::MAX }
            .into(),
        job(ChannelId(99), 1, None).into(),
        tip(ChannelId(99), 1, 1).into(),
    ];
    for message in told {
        rig.receive(message);
    }
    assert_eq!(rig.out.notices.len(), 9, "{:?}", rig.out.notices);
    assert_eq!((rig.closed(), rig.active().number, rig.sent.len()), (None, before, 0));
}

#[test]
fn a_share_of_another_upstream_never_crosses() {
    let mut rig = Rig::mining();
    let mut job = rig.active();
    job.origin.upstream = stratum::UpstreamId(2);
    assert_eq!(rig.share(&job, 1, false).fate, Fate::Dropped(DropReason::EpochEnded));
    assert!(rig.submits().is_empty());
}

#[test]
fn a_shutdown_closes_every_channel() {
    let mut rig = Rig::mining();
    rig.upstream.handle_shutdown(rig.now, &mut rig.out);
    rig.disconnect();
    assert_eq!(rig.closes(), [CHANNEL]);
    assert_eq!((rig.upstream.link(), rig.upstream.open_channels()), (LinkState::Away, 0));
}
