//! What a miner is sent to hash: job ids, their order, the shape of the line, and that it is never silent.

use std::collections::HashSet;
use std::time::Duration;

use crate::support::*;
use mining_server::record::RejectReason;
use mining_server::work::MAX_LIVE_JOBS;
use stratum::JobNumber;
use stratum::job::RESERVED_SIZE;

/// The longest time that any line of ours may keep a miner waiting.
const LONGEST_SILENCE: Duration = Duration::from_secs(60);

#[test]
fn no_job_id_ever_comes_twice() {
    // minerd 2.5.1 keeps its old work when it sees an id again, on another connection and another server too;
    // ESP-Miner 2.15 drops the job.
    let mut seen = HashSet::new();
    let mut first_job = FIRST_JOB;
    for _process in 0..3 {
        let mut source = Source::starting_at(first_job);
        let mut now = start_of_time();
        source.job(now);
        for connection in 0u32..20 {
            let mut rig = Rig::with(settings(), connection.to_be_bytes(), now);
            rig.work(&source.work());
            rig.send(SUBSCRIBE);
            rig.send(AUTHORIZE);
            // The first job of each connection, before the source has another one.
            let found = rig.grind(&rig.newest(), INITIAL);
            assert_eq!(rig.submit(&found), 0, "its own id is understood");
            for _ in 0..connection % 3 {
                now = now.plus(seconds(1));
                source.job(now);
                rig.now = now;
                rig.work(&source.work());
                let found = rig.grind(&rig.newest(), INITIAL);
                assert_eq!(rig.submit(&found), 0);
            }
            for (job, _) in &rig.jobs {
                assert!(seen.insert(job.job_id.clone()), "{} was sent before", job.job_id);
                assert!(job.job_id.len() <= 24 && job.job_id.bytes().all(|byte| byte.is_ascii_hexdigit()));
            }
        }
        // A restart a millisecond later, after far fewer jobs than fit into one.
        first_job = JobNumber(first_job.0 + (1 << 16));
    }
}

#[test]
fn two_processes_that_start_apart_never_share_an_id() {
    let started = start_of_time();
    let next = started.plus(Duration::from_millis(1));
    assert!(JobNumber::first(next).0 - JobNumber::first(started).0 >= 1 << 16);
}

#[test]
fn a_miner_hears_from_us_at_least_every_minute() {
    // cgminer 4.11.1 drops a pool that is silent for 90 seconds; minerd 2.5.1 for 120.
    for has_work in [true, false] {
        let mut rig = if has_work { Rig::mining(settings()) } else { Rig::new(settings()) };
        if !has_work {
            rig.send(SUBSCRIBE);
            rig.send(AUTHORIZE);
        }
        let mut silent = Duration::ZERO;
        for _ in 0..3600 {
            silent += seconds(1);
            if !rig.wait(seconds(1)).is_empty() {
                silent = Duration::ZERO;
            }
            assert!(silent < LONGEST_SILENCE);
        }
        assert_eq!(rig.closed, None);
    }
}

#[test]
fn a_miner_that_is_spoken_to_gets_no_keepalive() {
    let mut rig = Rig::mining(settings());
    for _ in 0..100 {
        assert_eq!(rig.wait(seconds(20)), [""; 0]);
        rig.send(r#"{"id":9,"method":"mining.ping"}"#);
    }
    assert_eq!(rig.wait(seconds(40)).len(), 1);
}

#[test]
fn a_job_has_nine_parameters_with_the_clean_flag_last() {
    let mut rig = Rig::with_work(settings());
    rig.send(SUBSCRIBE);
    let lines = rig.send(AUTHORIZE);
    let line: serde_json::Value = serde_json::from_str(&lines[2]).expect("JSON");
    let params = line["params"].as_array().expect("an array");
    assert_eq!((params.len(), params[8].as_bool()), (9, Some(true)));
    assert!(line["id"].is_null() && lines[2].len() < 4096, "NerdMiner 1.8.3 reads 4096 bytes");
    assert_eq!(params[4].as_array().map(Vec::len), Some(2));
}

#[test]
fn jobs_without_and_with_many_merkle_branches_make_shares() {
    for branches in [0, 1, 14, 20] {
        let mut rig = Rig::new(settings());
        rig.source.merkle_path = (0..branches).map(|branch| [branch; 32]).collect();
        rig.job();
        rig.send(SUBSCRIBE);
        rig.send(AUTHORIZE);
        let found = rig.grind(&rig.newest(), INITIAL);
        assert_eq!(rig.submit(&found), 0, "{branches} branches");
    }
}

#[test]
fn what_the_upstream_leaves_beyond_the_miners_bytes_is_zeros_in_coinb2() {
    for rollable_size in [8, 12, 20, 32] {
        let mut rig = Rig::new(settings());
        rig.source.rollable_size = rollable_size;
        rig.job();
        rig.send(SUBSCRIBE);
        rig.send(AUTHORIZE);
        let padding = rollable_size - RESERVED_SIZE - 4;
        assert_eq!(rig.newest().coinb2[..padding], vec![0; padding]);
        let found = rig.grind(&rig.newest(), INITIAL);
        assert_eq!(rig.submit(&found), 0, "{rollable_size} bytes");
    }
}

#[test]
fn only_the_newest_of_several_jobs_is_sent_and_it_is_clean_when_its_tip_is_new_here() {
    let mut rig = Rig::mining(settings());
    // A connection may see only the second job of a new tip: that one replaces everything all the same.
    rig.source.block(rig.now);
    let lines = rig.job();
    assert_eq!(lines.len(), 1);
    assert!(rig.newest().clean);
    // The same work again is no new job.
    let work = rig.source.work();
    assert_eq!(rig.work(&work), [""; 0]);
}

#[test]
fn miners_leave_jobs_that_the_upstream_voided_and_their_last_shares_are_good() {
    let mut rig = Rig::mining(settings());
    let found = rig.grind(&rig.newest(), INITIAL);
    let second = rig.grind_where(&rig.newest(), Grind { first_nonce: found.nonce + 1, ..Grind::default() });
    rig.source.voids_others = true;
    rig.job();
    assert!(rig.newest().clean);
    assert_eq!((rig.submit(&found), rig.submit(&found)), (0, 22), "honest work on the tip, once");
    // A connection that misses that job leaves the old ones all the same, and no more than once.
    rig.source.voids_others = true;
    rig.source.job(rig.now);
    rig.job();
    assert!(rig.newest().clean);
    assert_eq!(rig.submit(&second), 0);
    rig.job();
    assert!(!rig.newest().clean);
}

#[test]
fn a_job_that_too_many_came_after_is_refused() {
    let mut rig = Rig::mining(settings());
    let found = rig.grind(&rig.newest(), INITIAL);
    for _ in 0..MAX_LIVE_JOBS - 1 {
        rig.job();
    }
    assert_eq!(rig.submit(&found), 0);
    let later = rig.grind_where(&rig.jobs[0].0, Grind { first_nonce: found.nonce + 1, ..Grind::default() });
    rig.job();
    assert_eq!(rig.submit(&later), 21);
    let shares = rig.shares();
    assert!(shares[1].record.verdict == rejected(RejectReason::Stale));
}

#[test]
fn a_refused_upstream_channel_ends_the_connection() {
    let mut rig = Rig::mining(settings());
    let mut out = mining_server::Output::default();
    rig.connection.handle_open_failed("unknown-user", &mut out);
    assert!(out.close.is_some_and(|reason| reason.what.contains("unknown-user")));
}
