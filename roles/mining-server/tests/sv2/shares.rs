//! How shares are judged, answered and handed on, and what the peer can change of a channel.

use std::time::Duration;

use mining_server::judge::{MAX_SEEN_SHARES, NEW_JOB_WANTED_AFTER};
use mining_server::settings::VARDIFF_INTERVAL;
use mining_server::{Event, Fate, RejectReason, Settings, Verdict};
use stratum::sv2::Message;
use stratum::sv2::messages::*;
use stratum::{ChannelId, JobId, SequenceNumber, Target};

use crate::support::*;

fn one_channel(settings: Settings, source: &mut Source) -> (Driver, Opened) {
    let mut driver = Driver::set_up(settings, 0);
    driver.work(&source.job(driver.now));
    let (opened, _) = driver.open_extended(extended(1));
    driver.events.clear();
    (driver, opened)
}

fn success(opened: &Opened, last: u32, count: u32, sum: u64) -> Message {
    SubmitSharesSuccess {
        channel_id: opened.channel,
        last_sequence_number: SequenceNumber(last),
        new_submits_accepted_count: count,
        new_shares_sum: sum,
    }
    .into()
}

fn error(opened: &Opened, sequence: u32, code: &str) -> Message {
    SubmitSharesError {
        channel_id: opened.channel,
        sequence_number: SequenceNumber(sequence),
        error_code: code.to_owned(),
    }
    .into()
}

#[test]
fn accepted_shares_are_acknowledged_together() {
    let mut source = Source::new();
    let (mut driver, opened) = one_channel(settings(), &mut source);
    let job = &source.work().active().job.clone();
    let share = |sequence: u32| find_share(&opened, job, opened.target, u64::from(sequence), sequence);
    assert_eq!(driver.send(share(0)), []);
    assert_eq!(driver.send(share(1)), []);
    assert_eq!(driver.send(share(2)), [success(&opened, 2, 3, 0)]);
    // A fourth waits for a second and no longer.
    assert_eq!(driver.send(share(7)), []);
    assert_eq!(driver.wait(Duration::from_millis(999)), []);
    assert_eq!(driver.wait(Duration::from_millis(1)), [success(&opened, 7, 1, 0)]);
    assert_eq!(verdicts(&driver.shares()), [Verdict::Accepted; 4]);
}

#[test]
fn refusals_come_at_once_and_after_what_was_accepted_before() {
    let mut source = Source::new();
    let (mut driver, opened) = one_channel(settings(), &mut source);
    let job = &source.work().active().job.clone();
    let good = find_share(&opened, job, opened.target, 1, 10);
    assert_eq!(driver.send(good.clone()), []);
    let again = SubmitSharesExtended { sequence_number: SequenceNumber(11), ..good.clone() };
    assert_eq!(driver.send(again), [success(&opened, 10, 1, 0), error(&opened, 11, "duplicate-share")]);
    let miss = SubmitSharesExtended { nonce: good.nonce.wrapping_add(1), ..good.clone() };
    let cases = [
        (miss, "difficulty-too-low", RejectReason::LowDifficulty),
        (
            SubmitSharesExtended { job_id: JobId(good.job_id.0 + 1), ..good.clone() },
            "invalid-job-id",
            RejectReason::JobNotFound,
        ),
        (
            SubmitSharesExtended { extranonce: vec![0; 4], ..good.clone() },
            "bad-extranonce-size",
            RejectReason::BadExtranonce,
        ),
        (
            SubmitSharesExtended { version: good.version ^ 1, ..good.clone() },
            "invalid-non-rollable-version-bit",
            RejectReason::BadVersionBits,
        ),
        (
            SubmitSharesExtended { ntime: good.ntime - 1, ..good.clone() },
            "invalid-share",
            RejectReason::BadNtime,
        ),
        (
            SubmitSharesExtended { ntime: good.ntime + 7201, ..good.clone() },
            "invalid-share",
            RejectReason::BadNtime,
        ),
    ];
    driver.shares();
    for (share, code, reason) in cases {
        assert_eq!(driver.send(share), [error(&opened, 10, code)]);
        assert_eq!(verdicts(&driver.shares()), [Verdict::Rejected(reason)]);
    }
    driver.work(&source.block(driver.now));
    assert_eq!(driver.send(good), [error(&opened, 10, "stale-share")]);
    assert!(driver.closed.is_none());
}

#[test]
fn version_bits_roll_within_bip_323_and_only_where_allowed() {
    let mut source = Source::new();
    let (mut driver, opened) = one_channel(settings(), &mut source);
    let mut job = source.work().active().job.clone();
    // A share whose lowest and highest bits that may be rolled are rolled.
    job.version ^= 0x1000_0020;
    assert_eq!(driver.send(find_share(&opened, &job, opened.target, 1, 1)), []);
    assert_eq!(verdicts(&driver.shares()), [Verdict::Accepted]);

    source.version_rolling_allowed = false;
    let work = source.job(driver.now);
    driver.work(&work);
    let share = find_share(&opened, &work.active().job, opened.target, 2, 2);
    let rolled = SubmitSharesExtended { version: share.version ^ 0x2000, ..share };
    assert_eq!(driver.send(rolled).last(), Some(&error(&opened, 2, "version-rolling-not-allowed")));
}

#[test]
fn a_share_on_a_channel_that_does_not_exist_is_recorded() {
    let mut source = Source::new();
    let (mut driver, opened) = one_channel(settings(), &mut source);
    let job = &source.work().active().job.clone();
    let nowhere = Opened { channel: ChannelId(77), ..opened.clone() };
    let share = find_share(&nowhere, job, Target::MAX, 1, 5);
    assert_eq!(driver.send(share), [error(&nowhere, 5, "invalid-channel-id")]);
    let group = Opened { channel: opened.group, ..opened };
    let share = find_share(&group, job, Target::MAX, 1, 6);
    assert_eq!(driver.send(share), [error(&group, 6, "invalid-channel-id")], "nobody mines on a group");
    let shares = driver.shares();
    assert_eq!(verdicts(&shares), [Verdict::Rejected(RejectReason::NotSubscribed); 2]);
    assert_eq!((shares[0].record.device, shares[0].record.channel), (None, ChannelId(77)));
}

#[test]
fn a_standard_share_on_an_extended_channel_is_refused() {
    let mut source = Source::new();
    let (mut driver, opened) = one_channel(settings(), &mut source);
    let share = SubmitSharesStandard {
        channel_id: opened.channel,
        sequence_number: SequenceNumber(1),
        job_id: source.work().active().job.number.job_id(),
        nonce: 0,
        ntime: driver.now.unix_seconds(),
        version: 0x2000_0000,
    };
    assert_eq!(driver.send(share), [error(&opened, 1, "bad-extranonce-size")]);
}

#[test]
fn a_share_that_meets_the_upstreams_target_is_forwarded_as_the_upstream_counts_it() {
    let mut source = Source::new();
    source.rollable_size = 16;
    let (mut driver, _) = one_channel(settings(), &mut source);
    source.upstream_target = difficulty(-20);
    // Four bytes of padding after the channel's twenty would not fit: the later upstream has more room.
    let work = source.redialled(b"a longer prefix than before", 24, driver.now);
    driver.work(&work);
    let (opened, _) = driver.open_extended(extended(2));
    let job = &work.active().job;
    driver.send(find_share(&opened, job, difficulty(-20), 0x0102_0304_0506_0708, 1));
    let shares = driver.shares();
    let record = &shares[0].record;
    let forward = shares[0].forward.as_ref().expect("forwarded");
    assert_eq!(record.fate, Fate::Forwarded);
    assert_eq!(record.rollable.len(), 24);
    let coinbase = [&job.coinbase_prefix[..], &record.rollable, &job.coinbase_suffix].concat();
    let root = folded(&coinbase, &job.merkle_path);
    let hash =
        header_hash(record.version, &job.tip.previous_hash, &root, record.ntime, job.tip.nbits, record.nonce);
    assert_eq!(forward.hash, hash);
    assert!(difficulty(-20).is_met_by(&hash));
}

#[test]
fn difficulty_follows_the_shares_and_is_told_with_the_next_job() {
    let mut source = Source::new();
    let (mut driver, opened) = one_channel(settings(), &mut source);
    let job = &source.work().active().job.clone();
    // Four shares a second, where eight a minute are wanted.
    for sequence in 0..120 {
        let told = driver.send(find_share(&opened, job, opened.target, u64::from(sequence), sequence));
        assert!(told.iter().all(|message| matches!(message, Message::SubmitSharesSuccess(_))));
        driver.wait(Duration::from_millis(250));
    }
    assert_eq!(verdicts(&driver.shares()), [Verdict::Accepted; 120]);
    let rates = driver.rates();
    let (_, last) = rates.last().expect("it was noticed");
    let wanted = 4.0 * 256.0;
    assert!((wanted / 2.0..wanted * 2.0).contains(last), "{last} hashes a second, not {wanted}");
    let work = source.job(driver.now);
    let messages = driver.work(&work);
    let Message::SetTarget(told) = &messages[0] else { panic!("{messages:?}") };
    assert!(told.maximum_target <= difficulty(INITIAL + 3), "{:?}", told.maximum_target);
    assert_eq!(messages[1..], job_messages(&opened, opened.channel, &work.active().job, false));
    // The old job is still worth its own difficulty, the new one is not.
    driver.wait(seconds(1));
    assert_eq!(driver.send(find_share(&opened, job, opened.target, 1000, 1000)), []);
    let easy = (1000..)
        .map(|extranonce| find_share(&opened, &work.active().job, opened.target, extranonce, 1001))
        .find(|share| !told.maximum_target.is_met_by(&hash_of(&opened, &work.active().job, share)))
        .expect("most are easy");
    assert_eq!(driver.send(easy).last(), Some(&error(&opened, 1001, "difficulty-too-low")));
    driver.close();
    assert_eq!(driver.rates(), [(opened.channel, 0.0)]);
}

fn hash_of(opened: &Opened, job: &stratum::Job, share: &SubmitSharesExtended) -> stratum::hash::Hash {
    let coinbase =
        [&job.coinbase_prefix[..], &opened.prefix, &share.extranonce, &job.coinbase_suffix].concat();
    let root = folded(&coinbase, &job.merkle_path);
    header_hash(share.version, &job.tip.previous_hash, &root, share.ntime, job.tip.nbits, share.nonce)
}

#[test]
fn a_silent_device_is_given_an_easier_difficulty() {
    let mut source = Source::new();
    let (mut driver, opened) = one_channel(settings(), &mut source);
    driver.wait(seconds(600));
    let messages = driver.work(&source.job(driver.now));
    let Message::SetTarget(told) = &messages[0] else { panic!("{messages:?}") };
    assert!(told.maximum_target > opened.target);
}

fn flooding() -> (Source, Driver, Opened) {
    let mut source = Source::new();
    source.upstream_target = Target::MAX;
    let settings = Settings { vardiff_enabled: false, share_batch_size: 1000, ..settings() };
    let (driver, opened) = one_channel(settings, &mut source);
    assert_eq!(opened.target, Target::MAX);
    (source, driver, opened)
}

/// Submits `count` different shares of the active job. Returns the last one.
fn flood(source: &Source, driver: &mut Driver, opened: &Opened, count: usize) -> SubmitSharesExtended {
    let job = source.work().active().job.clone();
    let mut share = find_share(opened, &job, Target::MAX, 0, 0);
    // Rolled ahead, so that the next jobs' lowest times do not rule it out.
    share.ntime += 600;
    for nonce in 0..count as u32 {
        share.nonce = nonce;
        driver.send(share.clone());
    }
    share
}

fn jobs_wanted(driver: &Driver) -> usize {
    driver.events.iter().filter(|event| matches!(event, Event::NewJobWanted { .. })).count()
}

#[test]
fn a_flood_asks_for_new_jobs_and_loses_no_share() {
    let (mut source, mut driver, opened) = flooding();
    let mut floods = Vec::new();
    for generation in 1..=3 {
        let share = flood(&source, &mut driver, &opened, NEW_JOB_WANTED_AFTER + 100);
        assert_eq!(jobs_wanted(&driver), generation);
        assert_eq!(driver.send(share.clone()).last(), Some(&error(&opened, 0, "duplicate-share")));
        let refused =
            driver.shares().iter().filter(|share| share.record.verdict != Verdict::Accepted).count();
        assert_eq!(refused, 1, "nothing but the duplicate");
        driver.wait(seconds(2));
        let work = source.job(driver.now);
        driver.work(&work);
        // What was on its way when the job came still counts, and what a proxy's miners make until it has passed the job
        // on, which can be as long as the next one takes to come.
        for earlier in floods.iter().rev().take(1).chain([&share]) {
            let late = SubmitSharesExtended { nonce: share.nonce + generation as u32, ..earlier.clone() };
            driver.send(late);
            assert_eq!(driver.shares().last().expect("judged").record.verdict, Verdict::Accepted);
        }
        floods.push(share);
    }
    // A job that was left two generations ago is over, and its shares do not count again under a later job.
    let mut again = floods.remove(0);
    let over = error(&opened, 0, "stale-share");
    assert_eq!(driver.send(again.clone()).last(), Some(&over));
    again.job_id = JobId(source.work().active().job.number.0 as u32);
    driver.send(again);
    let verdicts = driver.shares().into_iter().map(|share| share.record.verdict).collect::<Vec<_>>();
    assert_eq!(verdicts, [RejectReason::Stale, RejectReason::BadNtime].map(Verdict::Rejected));
}

#[test]
fn a_full_memory_retires_its_jobs() {
    let (mut source, mut driver, opened) = flooding();
    let share = flood(&source, &mut driver, &opened, MAX_SEEN_SHARES);
    assert_eq!(driver.shares().len(), MAX_SEEN_SHARES);
    assert_eq!(jobs_wanted(&driver), 2);
    // Nothing is accepted twice: the job is over for this channel.
    assert_eq!(driver.send(share).last(), Some(&error(&opened, 0, "stale-share")));
    driver.wait(seconds(2));
    let work = source.job(driver.now);
    driver.work(&work);
    // A time that the forgotten shares may have had tells nothing; a later one does.
    let mut next = find_share(&opened, &work.active().job, Target::MAX, 0, 1);
    driver.send(next.clone());
    next.ntime += 600;
    driver.send(next);
    let verdicts = verdicts(&driver.shares());
    let refused = Verdict::Rejected(RejectReason::BadNtime);
    assert_eq!(verdicts[verdicts.len() - 2..], [refused, Verdict::Accepted]);
}

fn update(opened: &Opened, nominal_hash_rate: f32, maximum_target: Target) -> UpdateChannel {
    UpdateChannel { channel_id: opened.channel, nominal_hash_rate, maximum_target }
}

#[test]
fn an_update_is_refused_when_it_makes_no_sense() {
    let mut source = Source::new();
    let (mut driver, opened) = one_channel(settings(), &mut source);
    let nowhere = Opened { channel: ChannelId(77), ..opened.clone() };
    let zero = Target::from_le_bytes([0; 32]);
    let cases = [
        (update(&nowhere, 1.0, Target::MAX), "invalid-channel-id"),
        (update(&opened, -1.0, Target::MAX), "invalid-nominal-hashrate"),
        (update(&opened, f32::NAN, Target::MAX), "invalid-nominal-hashrate"),
        (update(&opened, f32::INFINITY, Target::MAX), "invalid-nominal-hashrate"),
        (update(&opened, 1.0, difficulty(-9)), "max-target-out-of-range"),
        (update(&opened, 1.0, zero), "max-target-out-of-range"),
    ];
    for (message, code) in cases {
        let refusal = UpdateChannelError { channel_id: message.channel_id, error_code: code.to_owned() };
        assert_eq!(driver.send(message), [refusal.into()]);
    }
    assert!(driver.rates().is_empty());
    assert_eq!(driver.work(&source.job(driver.now)).len(), 1, "the target is as it was");
}

#[test]
fn a_smaller_maximum_target_is_reflected_with_the_next_job() {
    let mut source = Source::new();
    let (mut driver, opened) = one_channel(settings(), &mut source);
    assert_eq!(driver.send(update(&opened, 0.0, difficulty(-15))), []);
    let messages = driver.work(&source.job(driver.now));
    let told = SetTarget { channel_id: opened.channel, maximum_target: difficulty(-15) };
    assert_eq!(messages[0], told.into());
}

#[test]
fn a_declared_hash_rate_counts_until_shares_speak() {
    let mut source = Source::new();
    let (mut driver, opened) = one_channel(settings(), &mut source);
    let rate = 2f32.powi(-20) * 4_295_032_833.0 / 7.5 * 1.5;
    // However often it changes its mind, others hear of it only when rates are looked at.
    for attempt in 2..100 {
        assert_eq!(driver.send(update(&opened, rate * attempt as f32, Target::MAX)), []);
    }
    assert_eq!(driver.send(update(&opened, rate, Target::MAX)), []);
    assert_eq!(driver.rates(), []);
    driver.wait(VARDIFF_INTERVAL);
    assert_eq!(driver.rates(), [(opened.channel, f64::from(rate))]);
    let messages = driver.work(&source.job(driver.now));
    let Message::SetTarget(told) = &messages[0] else { panic!("{messages:?}") };
    assert_eq!(told.maximum_target, difficulty(-20));

    // Shares as fast as declared: from now on a declaration is not believed.
    let job = &source.work().active().job.clone();
    for sequence in 0..8 {
        driver.wait(seconds(7));
        driver.send(find_share(&opened, job, told.maximum_target, sequence.into(), sequence));
    }
    assert!(driver.connection.hash_rate(driver.now).is_some());
    driver.rates();
    assert_eq!(driver.send(update(&opened, 1e9, Target::MAX)), []);
    assert!(driver.rates().is_empty());
    assert_eq!(driver.work(&source.job(driver.now)).len(), 1);
}

#[test]
fn channels_close_one_by_one_or_by_group() {
    let mut source = Source::new();
    let (mut driver, first) = one_channel(settings(), &mut source);
    let (second, _) = driver.open_extended(extended(2));
    let (third, _) = driver.open_standard(standard(3));
    let close = |channel_id| CloseChannel { channel_id, reason_code: "done".to_owned() };
    assert_eq!(driver.send(close(ChannelId(77))), []);
    assert_eq!(driver.send(close(second.channel)), []);
    assert_eq!((driver.connection.channel_count(), driver.registry.held.len()), (2, 2));
    let share = find_share(&second, &source.work().active().job, Target::MAX, 1, 1);
    assert_eq!(driver.send(share), [error(&second, 1, "invalid-channel-id")]);
    assert_eq!(driver.send(close(third.group)), []);
    assert_eq!((driver.connection.channel_count(), driver.registry.held.len()), (0, 0));
    assert_eq!(driver.work(&source.block(driver.now)), []);
    let (again, _) = driver.open_extended(extended(4));
    assert!(![first.channel, second.channel, third.channel].contains(&again.channel), "ids are used once");
}

#[test]
fn a_worker_behind_a_proxy_is_a_device_once_names_were_negotiated() {
    let mut source = Source::new();
    let (mut driver, opened) = one_channel(settings(), &mut source);
    let job = &source.work().active().job.clone();
    let mut sequence = 0;
    let mut mine = |driver: &mut Driver, worker: Option<&str>| {
        sequence += 1;
        let share = find_share(&opened, job, opened.target, u64::from(sequence), sequence);
        driver.send(SubmitSharesExtended { user_identity: worker.map(str::to_owned), ..share });
        let share = driver.shares().pop().expect("it was judged");
        assert_eq!(share.record.verdict, Verdict::Accepted);
        share.record.device
    };
    let own = mine(&mut driver, None);
    assert_eq!(mine(&mut driver, Some("rig1")), own, "nothing was negotiated");
    let request_id = ExtensionsRequestId(1);
    driver.send(RequestExtensions { request_id, requested_extensions: vec![2] });
    let first = mine(&mut driver, Some("rig1"));
    let second = mine(&mut driver, Some("rig2"));
    assert!(first != own && second != own && first != second);
    assert_eq!(mine(&mut driver, Some("rig1")), first);
    for strange in [None, Some(""), Some("rig\n1")] {
        assert_eq!(mine(&mut driver, strange), own);
    }
}
