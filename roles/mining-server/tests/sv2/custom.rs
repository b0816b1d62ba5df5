//! Custom jobs: who may ask for them, how they are answered, and what their shares are worth.

use mining_server::sv2::{
    MAX_CUSTOM_JOB_PAYLOAD, MAX_CUSTOM_JOBS, MAX_WAITING_CUSTOM_JOBS, Sv2Connection, TOO_MANY_WAITING,
};
use mining_server::{Fate, RejectReason, Settings, ShareUse, Verdict};
use stratum::sv2::Message;
use stratum::sv2::frame::MAX_PAYLOAD_FROM_MINER;
use stratum::sv2::messages::*;
use stratum::{ChannelId, JobId, RequestId, SequenceNumber};

use crate::support::*;

fn pool_settings() -> Settings {
    Settings { share_use: ShareUse::Keep, ..settings() }
}

fn request(channel_id: ChannelId, request_id: u32) -> SetCustomMiningJob {
    SetCustomMiningJob {
        channel_id,
        request_id: RequestId(request_id),
        token: vec![1; 16].into(),
        version: 0x2000_0000,
        prev_hash: [1; 32],
        min_ntime: 0,
        nbits: 0x1d00_ffff,
        coinbase_tx_version: 2,
        coinbase_prefix: vec![1, 7],
        coinbase_tx_input_n_sequence: 0,
        coinbase_tx_outputs: vec![0],
        coinbase_tx_locktime: 0,
        merkle_path: Vec::new(),
    }
}

fn taken(channel_id: ChannelId, request_id: u32, job_id: JobId) -> Message {
    SetCustomMiningJobSuccess { channel_id, request_id: RequestId(request_id), job_id }.into()
}

fn refused(channel_id: ChannelId, request_id: u32, code: &str) -> Message {
    let error_code = code.to_owned();
    SetCustomMiningJobError { channel_id, request_id: RequestId(request_id), error_code }.into()
}

fn error(share: &SubmitSharesExtended, code: &str) -> Message {
    let (channel_id, sequence_number) = (share.channel_id, share.sequence_number);
    SubmitSharesError { channel_id, sequence_number, error_code: code.to_owned() }.into()
}

/// A client that selects its own work, with one channel.
fn declarer(source: &mut Source) -> (Driver, Opened) {
    let settings = Settings { share_batch_size: 1000, ..pool_settings() };
    let mut driver = Driver::taking_custom_jobs(settings, REQUIRES_WORK_SELECTION);
    driver.work(&source.job(driver.now));
    let (opened, _) = driver.open_extended(extended(1));
    (driver, opened)
}

#[test]
fn shares_of_a_custom_job_are_judged_on_its_own_coinbase_and_kept() {
    let mut source = Source::new();
    let (mut driver, opened) = declarer(&mut source);
    assert_eq!(driver.send(request(opened.channel, 5)), []);
    let asked = driver.custom_jobs.pop().expect("the owner is asked");
    assert_eq!(asked.message, request(opened.channel, 5));
    assert_eq!(asked.user_identity, "account.1");
    assert_eq!(asked.extranonce_size, opened.prefix.len() + opened.size);

    let custom = source.custom_job(asked.extranonce_size, driver.now);
    let job_id = custom.job.number.job_id();
    let before = find_share(&opened, &custom.job, opened.target, 0, 0);
    assert_eq!(driver.send(before.clone()), [error(&before, "invalid-job-id")], "it is not acknowledged");
    let answer = driver.answer_custom_job(opened.channel, 5, Ok(custom.clone()));
    assert_eq!(answer, [taken(opened.channel, 5, job_id)]);
    driver.shares();

    let good = find_share(&opened, &custom.job, opened.target, 1, 1);
    assert_eq!(driver.send(good.clone()), []);
    let again = SubmitSharesExtended { sequence_number: SequenceNumber(2), ..good };
    assert_eq!(driver.send(again.clone()).last(), Some(&error(&again, "duplicate-share")));
    // The pool's own job is worth as much as before, and so is the custom one after it was refreshed.
    let ours = source.work().active().job.clone();
    assert_eq!(driver.send(find_share(&opened, &ours, opened.target, 2, 3)), []);
    let refreshed = source.job(driver.now.plus(seconds(20)));
    assert!(!driver.work(&refreshed).is_empty(), "jobs of the pool still come");
    assert_eq!(driver.send(find_share(&opened, &custom.job, opened.target, 3, 4)), []);

    let shares = driver.shares();
    let (accepted, twice) = (Verdict::Accepted, Verdict::Rejected(RejectReason::Duplicate));
    assert_eq!(verdicts(&shares), [accepted, twice, accepted, accepted]);
    let record = &shares[0].record;
    assert_eq!((record.job, record.fate), (Some(custom.job.number), Fate::Kept));
    assert_eq!(record.credited(), opened.target.work());
    assert!(shares[0].forward.is_none());
}

#[test]
fn a_block_on_a_custom_job_is_handed_on_with_its_job() {
    let mut source = Source::new();
    source.nbits = 0x207f_ffff;
    let (mut driver, opened) = declarer(&mut source);
    driver.send(request(opened.channel, 5));
    let custom = source.custom_job(opened.prefix.len() + opened.size, driver.now);
    driver.answer_custom_job(opened.channel, 5, Ok(custom.clone()));
    driver.send(find_share(&opened, &custom.job, opened.target, 1, 1));
    let shares = driver.shares();
    assert_eq!(verdicts(&shares), [Verdict::BlockFound]);
    assert_eq!(shares[0].record.job, Some(custom.job.number));
    assert!(shares[0].forward.is_some_and(|forward| forward.is_block && forward.origin == custom.job.origin));
}

#[test]
fn a_new_tip_voids_custom_jobs_and_those_that_are_under_way() {
    let mut source = Source::new();
    let (mut driver, opened) = declarer(&mut source);
    let size = opened.prefix.len() + opened.size;
    for id in [5, 6] {
        driver.send(request(opened.channel, id));
    }
    let (custom, late) = (source.custom_job(size, driver.now), source.custom_job(size, driver.now));
    driver.answer_custom_job(opened.channel, 5, Ok(custom.clone()));
    let share = find_share(&opened, &custom.job, opened.target, 1, 1);
    driver.work(&source.block(driver.now));
    assert_eq!(driver.send(share.clone()), [error(&share, "stale-share")]);
    let answer = driver.answer_custom_job(opened.channel, 6, Ok(late.clone()));
    assert_eq!(answer, [refused(opened.channel, 6, "stale-chain-tip")]);
    let share = find_share(&opened, &late.job, opened.target, 1, 2);
    assert_eq!(driver.send(share.clone()), [error(&share, "stale-share")]);
}

#[test]
fn only_who_selects_work_is_served_and_only_on_extended_channels() {
    // Where nobody takes custom jobs the flag is refused.
    let mut driver = Driver::new(pool_settings());
    let answer = driver.send(setup_connection(REQUIRES_WORK_SELECTION));
    assert!(matches!(&answer[..], [Message::SetupConnectionError(error)] if error.flags == 2), "{answer:?}");

    let mut source = Source::new();
    let mut driver = Driver::taking_custom_jobs(pool_settings(), 0);
    driver.work(&source.job(driver.now));
    let (opened, _) = driver.open_extended(extended(1));
    let answer = driver.send(request(opened.channel, 5));
    assert_eq!(answer, [refused(opened.channel, 5, "jd-not-supported")]);

    let (mut driver, _) = declarer(&mut source);
    let (standard, _) = driver.open_standard(standard(2));
    for channel in [standard.channel, ChannelId(99)] {
        assert_eq!(driver.send(request(channel, 5)), [refused(channel, 5, "invalid-channel-id")]);
    }
    assert!(driver.custom_jobs.is_empty() && driver.closed.is_none());
}

#[test]
fn the_owners_refusal_is_passed_on_and_a_channel_may_go_meanwhile() {
    let mut source = Source::new();
    let (mut driver, opened) = declarer(&mut source);
    driver.send(request(opened.channel, 5));
    let answer = driver.answer_custom_job(opened.channel, 5, Err("invalid-mining-job-token"));
    assert_eq!(answer, [refused(opened.channel, 5, "invalid-mining-job-token")]);
    driver.send(request(opened.channel, 6));
    driver.send(CloseChannel { channel_id: opened.channel, reason_code: String::new() });
    let custom = source.custom_job(opened.prefix.len() + opened.size, driver.now);
    let answer = driver.answer_custom_job(opened.channel, 6, Ok(custom));
    assert_eq!(answer, [refused(opened.channel, 6, "invalid-channel-id")]);
}

#[test]
fn a_custom_job_of_a_group_is_for_its_extended_channels() {
    let mut source = Source::new();
    let (mut driver, first) = declarer(&mut source);
    let (second, _) = driver.open_extended(extended(2));
    let (standard, _) = driver.open_standard(standard(3));
    driver.send(request(first.group, 5));
    let custom = source.custom_job(first.prefix.len() + first.size, driver.now);
    let answer = driver.answer_custom_job(first.group, 5, Ok(custom.clone()));
    assert_eq!(answer, [taken(first.group, 5, custom.job.number.job_id())]);
    for opened in [&first, &second] {
        assert_eq!(driver.send(find_share(opened, &custom.job, opened.target, 1, 1)), []);
    }
    assert_eq!(verdicts(&driver.shares()), [Verdict::Accepted; 2]);
    let share = SubmitSharesStandard {
        channel_id: standard.channel,
        sequence_number: SequenceNumber(0),
        job_id: custom.job.number.job_id(),
        nonce: 0,
        ntime: custom.job.min_ntime,
        version: custom.job.version,
    };
    driver.send(share);
    let [refused] = &driver.shares()[..] else { panic!("one share") };
    assert!(matches!(refused.record.verdict, Verdict::Rejected(_)) && refused.record.job.is_none());
}

#[test]
fn requests_jobs_and_messages_are_bounded() {
    let mut source = Source::new();
    let (mut driver, opened) = declarer(&mut source);
    let size = opened.prefix.len() + opened.size;
    for id in 0..MAX_WAITING_CUSTOM_JOBS as u32 {
        assert_eq!(driver.send(request(opened.channel, id)), []);
    }
    assert_eq!(driver.send(request(opened.channel, 99)), [refused(opened.channel, 99, TOO_MANY_WAITING)]);
    driver.answer_custom_job(opened.channel, 0, Err("invalid-nbits"));
    assert_eq!(driver.send(request(opened.channel, 100)), [], "there is room again");

    let oldest = source.custom_job(size, driver.now);
    let mut newest = oldest.clone();
    driver.answer_custom_job(opened.channel, 1, Ok(oldest.clone()));
    for _ in 0..MAX_CUSTOM_JOBS {
        newest = source.custom_job(size, driver.now);
        assert_eq!(driver.send(request(opened.channel, 1)), []);
        driver.answer_custom_job(opened.channel, 1, Ok(newest.clone()));
    }
    driver.work(&source.job(driver.now.plus(seconds(1))));
    let share = find_share(&opened, &oldest.job, opened.target, 1, 1);
    assert_eq!(driver.send(share.clone()), [error(&share, "stale-share")]);
    assert_eq!(driver.send(find_share(&opened, &newest.job, opened.target, 1, 2)), []);

    assert_eq!(driver.connection.max_payload(), MAX_CUSTOM_JOB_PAYLOAD);
    let outputs = SetCustomMiningJob { coinbase_tx_outputs: vec![0; 8192], ..request(opened.channel, 7) };
    assert_eq!(driver.send(outputs.clone()), []);
    assert_eq!(driver.custom_jobs.last().map(|asked| &asked.message), Some(&outputs));
    let id = stratum::ConnectionId(8);
    let other = Sv2Connection::new(pool_settings().into(), id, driver.now).taking_custom_jobs();
    assert_eq!(other.max_payload(), MAX_PAYLOAD_FROM_MINER, "nobody said yet that there will be custom jobs");
    driver.send(SetCustomMiningJob { coinbase_tx_outputs: vec![0; 25_000], ..request(opened.channel, 8) });
    assert!(driver.closed.is_some());
}
