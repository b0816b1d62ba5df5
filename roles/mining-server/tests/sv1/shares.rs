//! The verdict over each share, its answer and its record.

use crate::support::*;
use mining_server::record::{Fate, RejectReason, Verdict};
use mining_server::{DropReason, Event, ShareUse};
use stratum::{ChannelId, ConnectionId, DeviceId, Target, UpstreamChannelId, UpstreamId, Work};

#[test]
fn a_good_share_has_a_complete_record() {
    let mut rig = Rig::rolling(settings());
    rig.now = rig.now.plus(seconds(3));
    let found =
        rig.grind_where(&rig.newest(), Grind { missing: Some(UPSTREAM), seconds: 2, ..Grind::default() });
    assert_eq!(rig.submit(&found), 0);
    let mut shares = rig.shares();
    assert_eq!(shares.len(), 1);
    let share = shares.remove(0);
    let record = share.record;
    assert!(share.forward.is_none());
    assert_eq!((record.verdict, record.fate), (Verdict::Accepted, Fate::BelowUpstreamTarget));
    assert_eq!((record.judged, record.device), (rig.now, Some(DeviceId(40))));
    assert_eq!((record.connection, record.channel), (ConnectionId(7), ChannelId(0)));
    assert_eq!((record.upstream, record.upstream_channel), (Some(UpstreamId(3)), Some(UpstreamChannelId(4))));
    assert_eq!((record.job, record.job_age_ms), (Some(FIRST_JOB), 3000));
    assert_eq!(
        (record.credited(), record.upstream_work),
        (Target::from_difficulty_exponent(INITIAL).work(), Work(0))
    );
    assert_eq!((record.ntime, record.nonce, record.version), (found.ntime, found.nonce, 0x2000_0000));
    // Ours, the miner's, and zeros up to what the job leaves room for.
    assert_eq!(&record.rollable[..], [8, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0]);
    let difficulty = record.difficulty.expect("it was hashed").0;
    assert!(difficulty >= 2f64.powi(INITIAL) && difficulty < 2f64.powi(UPSTREAM), "{difficulty}");
}

#[test]
fn a_share_for_the_upstream_goes_there_as_long_as_it_can() {
    let mut rig = Rig::mining(settings());
    let found = rig.grind(&rig.newest(), UPSTREAM);
    assert_eq!(rig.submit(&found), 0);
    let share = rig.shares().remove(0);
    let (record, forward) = (share.record, share.forward.expect("it goes upstream"));
    assert_eq!((record.fate, record.job, record.nonce), (Fate::Forwarded, Some(FIRST_JOB), found.nonce));
    assert_eq!(record.upstream_work, Target::from_difficulty_exponent(UPSTREAM).work());
    assert_eq!((record.connection, forward.is_block), (ConnectionId(7), false));

    rig.source.book.set_live(false);
    let work = rig.source.work();
    assert_eq!(rig.work(&work), [""; 0], "that the upstream is away changes nothing for miners");
    let found = rig.grind_where(
        &rig.newest(),
        Grind { exponent: UPSTREAM, first_nonce: found.nonce + 1, ..Grind::default() },
    );
    assert_eq!(rig.submit(&found), 0);
    let share = rig.shares().remove(0);
    assert!(share.forward.is_none());
    assert_eq!(share.record.fate, Fate::Dropped(DropReason::UpstreamLost));
}

#[test]
fn a_block_is_forwarded_by_a_pool_and_accepted_whatever_its_difficulty() {
    let mut settings = settings();
    settings.share_use = ShareUse::Keep;
    let mut rig = Rig::new(settings);
    // As on regtest: the network's target is easier than any share's.
    rig.source.nbits = 0x207f_ffff;
    rig.job();
    rig.send(SUBSCRIBE);
    rig.send(AUTHORIZE);
    let found =
        rig.grind_where(&rig.newest(), Grind { exponent: -31, missing: Some(INITIAL), ..Grind::default() });
    assert_eq!(rig.submit(&found), 0);
    let share = rig.shares().remove(0);
    assert_eq!((share.record.verdict, share.record.fate), (Verdict::BlockFound, Fate::Kept));
    assert!(share.forward.is_some_and(|forward| forward.is_block));
}

#[test]
fn every_refusal_has_its_code_and_its_record() {
    let mut rig = Rig::mining(settings());
    let job = rig.newest();
    let good = rig.grind(&job, INITIAL);
    assert_eq!(rig.submit(&good), 0);
    rig.shares();
    let low = rig.grind_where(&job, Grind { exponent: -32, missing: Some(INITIAL), ..Grind::default() });
    let unknown = Found { job_id: "ffffffffffffffff".to_owned(), ..good.clone() };
    let ntime = format!("{:08x}", good.ntime);
    let nonce = format!("{:08x}", good.nonce);
    for (what, line, code, reason) in [
        ("the same again", good.line("4"), 22, RejectReason::Duplicate),
        ("too easy", low.line("4"), 23, RejectReason::LowDifficulty),
        ("a job that never was", unknown.line("4"), 21, RejectReason::JobNotFound),
        ("no job id of ours", good.line("4").replace(&good.job_id, "job one"), 21, RejectReason::JobNotFound),
        ("one byte too short", good.with_texts(&["000000", &ntime, &nonce]), 20, RejectReason::BadExtranonce),
        (
            "one byte too long",
            good.with_texts(&["0000000001", &ntime, &nonce]),
            20,
            RejectReason::BadExtranonce,
        ),
        (
            "a size of 8",
            good.with_texts(&["0000000000000001", &ntime, &nonce]),
            20,
            RejectReason::BadExtranonce,
        ),
        ("empty", good.with_texts(&["", &ntime, &nonce]), 20, RejectReason::BadExtranonce),
        ("half a byte", good.with_texts(&["0000001", &ntime, &nonce]), 20, RejectReason::Malformed),
        ("no nonce", good.with_texts(&["00000001", &ntime]), 20, RejectReason::Malformed),
        ("no time", good.with_texts(&["00000001", "", &nonce]), 20, RejectReason::Malformed),
    ] {
        assert_eq!(rig.submit_line(&line), code, "{what}");
        let record = rig.record();
        assert_eq!((record.verdict, record.fate), (rejected(reason), Fate::Refused), "{what}");
        assert_eq!((record.credited(), record.upstream_work), (Work(0), Work(0)), "{what}");
        assert_eq!(record.device, Some(DeviceId(40)), "{what}");
        assert_eq!(rig.closed, None, "{what}");
    }
}

#[test]
fn before_subscribing_and_authorising_shares_are_refused_with_25_and_24() {
    let line = r#"{"id":4,"method":"mining.submit","params":["u","1f","00000001","65534100","00000001"]}"#;
    let mut rig = Rig::with_work(settings());
    assert_eq!(rig.submit_line(line), 25);
    assert_eq!(rig.record().verdict, rejected(RejectReason::NotSubscribed));
    rig.send(SUBSCRIBE);
    assert_eq!(rig.submit_line(line), 24);
    let record = rig.record();
    assert_eq!((record.verdict, record.device), (rejected(RejectReason::Unauthorised), None));
    let mut rig = Rig::new(settings());
    rig.send(SUBSCRIBE);
    rig.send(AUTHORIZE);
    assert_eq!(rig.submit_line(line), 21, "there is no job yet");
    assert_eq!(rig.record().verdict, rejected(RejectReason::JobNotFound));
}

#[test]
fn a_share_of_an_older_job_of_this_tip_counts_and_one_of_an_older_tip_is_stale() {
    let mut rig = Rig::mining(settings());
    let first = rig.newest();
    let mut shares = vec![];
    for nonce in [0, 1 << 20] {
        shares.push(rig.grind_where(&first, Grind { first_nonce: nonce, ..Grind::default() }));
    }
    for _ in 0..5 {
        rig.now = rig.now.plus(seconds(20));
        rig.job();
        assert!(!rig.newest().clean);
    }
    assert_eq!(rig.submit(&shares[0]), 0);
    rig.shares();
    let last = rig.newest();
    let late = rig.grind(&last, INITIAL);
    rig.block();
    assert!(rig.newest().clean);
    for found in [&shares[1], &late] {
        assert_eq!(rig.submit(found), 21);
        let record = rig.record();
        assert_eq!(record.verdict, rejected(RejectReason::Stale));
        // By then vardiff has come down, because this miner was silent.
        let lost = Target::from_difficulty_exponent(INITIAL - 3).work();
        assert_eq!((record.submitted, record.credited()), (lost, Work(0)));
    }
}

#[test]
fn an_upstream_that_came_back_gives_clean_work_on_the_same_tip() {
    let mut rig = Rig::mining(settings());
    let old = rig.grind(&rig.newest(), INITIAL);
    let work = rig.source.redialled(rig.now);
    rig.work(&work);
    assert!(rig.newest().clean);
    assert_eq!(rig.submit(&old), 21);
    let found = rig.grind(&rig.newest(), INITIAL);
    assert_eq!(rig.submit(&found), 0);
}

#[test]
fn ntime_may_run_ahead_for_two_hours_and_never_behind_its_job() {
    for (firmware, seconds, code) in [
        ("minerd 2.5.1: as given", 0, 0),
        ("Mujina 2026-08: by the clock", 27, 0),
        ("mining_device_sv1 2025-08", 60, 0),
        ("the latest of all", 7200, 0),
        ("one more", 7201, 20),
        ("before the job", 0u32.wrapping_sub(1), 20),
    ] {
        let mut rig = Rig::mining(settings());
        let found = rig.grind_where(&rig.newest(), Grind { seconds, ..Grind::default() });
        assert_eq!(rig.submit(&found), code, "{firmware}");
        let verdict = if code == 0 { Verdict::Accepted } else { rejected(RejectReason::BadNtime) };
        assert_eq!(rig.record().verdict, verdict, "{firmware}");
    }
}

#[test]
fn numbers_in_every_form_that_firmware_writes_are_the_same_share() {
    let mut rig = Rig::mining(settings());
    // A nonce below 2^20 has leading zeros, which NerdMiner 1.8.3 does not write.
    let found = rig.grind_where(&rig.newest(), Grind { extranonce2: [0, 0, 0, 0xab], ..Grind::default() });
    assert!(found.nonce < 1 << 20);
    let Found { job_id, ntime, nonce, .. } = &found;
    let params_first = format!(
        r#"{{"params": ["account.rig", "{job_id}", "000000ab", "{ntime:08x}", "{nonce:08x}"], "id": 4, "method": "mining.submit"}}"#
    );
    assert_eq!(rig.submit_line(&params_first), 0, "cgminer 4.11.1: parameters first, spaces after colons");
    for (firmware, texts) in [
        ("NerdMiner 1.8.3", ["000000ab", &format!("{ntime:08x}"), &format!("{nonce:x}")]),
        ("upper case", ["000000AB", &format!("{ntime:08X}"), &format!("{nonce:08X}")]),
        ("with prefixes", ["0x000000ab", &format!("0x{ntime:08x}"), &format!("0X{nonce:08X}")]),
    ] {
        assert_eq!(rig.submit_line(&found.with_texts(&texts)), 22, "{firmware}: the share is understood");
    }
    let spaces = params_first.replace(':', " : ").replace(',', " , ").replace("{\"", " { \"");
    assert_eq!(rig.submit_line(&spaces), 22);
}

#[test]
fn a_nonce_without_leading_zeros_is_accepted() {
    // NerdMiner 1.8.3: String(nonce, HEX), and an extranonce2 that never changes.
    let mut rig = Rig::mining(settings());
    let found = rig.grind(&rig.newest(), INITIAL);
    let texts = ["00000001", &format!("{:08x}", found.ntime), &format!("{:x}", found.nonce)];
    assert!(texts[2].len() < 8);
    assert_eq!(rig.submit_line(&found.with_texts(&texts)), 0);
}

#[test]
fn another_user_in_a_submission_is_the_connections_own_device() {
    let mut rig = Rig::mining(settings());
    let found = rig.grind(&rig.newest(), INITIAL);
    assert_eq!(rig.submit_line(&found.line("4").replace("account.rig", "somebody.else")), 0);
    assert_eq!(rig.record().device, Some(DeviceId(40)));
}

#[test]
fn duplicates_are_refused_and_nobody_is_banned() {
    // ESP-Miner 2.15 does its first work twice after each connect; cgminer 4.11.1 sends again what it could not.
    let mut rig = Rig::mining(settings());
    let found = rig.grind(&rig.newest(), INITIAL);
    assert_eq!(rig.submit(&found), 0);
    for _ in 0..1000 {
        assert_eq!(rig.submit(&found), 22);
    }
    assert_eq!((rig.closed.clone(), rig.shares().len()), (None, 1001));
    let next = rig.grind_where(&rig.newest(), Grind { first_nonce: found.nonce + 1, ..Grind::default() });
    assert_eq!(rig.submit(&next), 0);
}

#[test]
fn before_no_more_shares_can_be_remembered_a_new_job_is_asked_for() {
    let mut settings = settings();
    settings.vardiff_enabled = false;
    let mut rig = Rig::new(settings);
    rig.source.upstream_exponent = -32;
    rig.job();
    rig.send(SUBSCRIBE);
    rig.send(AUTHORIZE);
    let job = rig.newest();
    let share = |nonce| Found { nonce, ..rig_share(&job) };
    let wanted = |rig: &mut Rig| {
        let events = std::mem::take(&mut rig.events);
        events.iter().filter(|event| matches!(event, Event::NewJobWanted { .. })).count()
    };
    let flood = mining_server::judge::NEW_JOB_WANTED_AFTER as u32;
    for nonce in 0..flood {
        assert_eq!(wanted(&mut rig), 0);
        assert_eq!(rig.submit(&share(nonce)), 0);
    }
    assert_eq!(wanted(&mut rig), 1);
    assert_eq!(rig.submit(&share(flood)), 0);
    assert_eq!(wanted(&mut rig), 0, "it is asked for once");
    rig.now = rig.now.plus(seconds(1));
    rig.job();
    for nonce in [0, flood] {
        assert_eq!(rig.submit(&share(nonce)), 22, "nothing is accepted twice");
    }
    let found = Found { job_id: rig.newest().job_id, ntime: job.ntime + 1, ..share(0) };
    assert_eq!(rig.submit(&found), 0);
}

fn rig_share(job: &stratum::sv1::client::Notify) -> Found {
    Found { job_id: job.job_id.clone(), extranonce2: [0; 4], ntime: job.ntime, nonce: 0, rolled: None }
}
