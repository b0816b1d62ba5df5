//! Which difficulty a miner is told, when it counts, and what its shares are worth across a change.

use crate::support::*;
use mining_server::record::{RejectReason, Verdict};
use stratum::{Target, Work};

fn suggest(rig: &mut Rig, difficulty: &str) -> Vec<String> {
    rig.send(&format!(r#"{{"id":4,"method":"mining.suggest_difficulty","params":[{difficulty}]}}"#))
}

fn worth(exponent: i32) -> Work {
    Target::from_difficulty_exponent(exponent).work()
}

#[test]
fn difficulties_are_powers_of_two_and_whole_from_1_up() {
    for (suggested, told) in [
        ("65536.0", "65536"),
        ("1000", "512"),
        ("1", "1"),
        ("1.999", "1"),
        ("0.75", "0.5"),
        ("0.00024414", "0.0001220703125"),
    ] {
        let mut rig = Rig::new(settings());
        rig.source.upstream_exponent = 40;
        rig.job();
        suggest(&mut rig, suggested);
        rig.send(SUBSCRIBE);
        let lines = rig.send(AUTHORIZE);
        let expected = format!(r#"{{"id":null,"method":"mining.set_difficulty","params":[{told}]}}"#);
        assert_eq!(lines[1], expected, "{suggested}");
    }
}

#[test]
fn every_form_of_a_suggestion_counts_from_the_next_job_on() {
    let wanted = 2f64.powi(-20);
    for (firmware, line) in [
        ("cgminer 4.11.1", r#"{"id":4,"method":"mining.suggest_difficulty","params":[1000]}"#.to_owned()),
        ("Mujina 2026-08", format!(r#"{{"id":4,"method":"mining.suggest_difficulty","params":[{wanted}]}}"#)),
        ("an exponent", format!(r#"{{"id":4,"method":"mining.suggest_difficulty","params":[{wanted:e}]}}"#)),
        ("text", format!(r#"{{"id":4,"method":"mining.suggest_difficulty","params":["{wanted}"]}}"#)),
        ("the call as the method", format!(r#"{{"id":4,"method":"mining.suggest_difficulty({wanted}"}}"#)),
        (
            "BFGMiner 5.5.0",
            format!(r#"{{"id":4,"method":"mining.suggest_target","params":["000ffff{}"]}}"#, "0".repeat(57)),
        ),
    ] {
        let mut rig = Rig::mining(settings());
        assert_eq!(rig.send(&line), [answer("4", "true")], "{firmware}");
        let easy = rig.grind_where(&rig.newest(), Grind { missing: Some(-20), ..Grind::default() });
        assert_eq!(rig.submit(&easy), 0, "{firmware}: the old difficulty counts until the next job");
        let lines = rig.job();
        // A thousand is more than the upstream's target asks for; the others are 2^-20.
        let exponent = if firmware.starts_with("cgminer") { UPSTREAM } else { -20 };
        assert_eq!((lines.len(), &lines[0]), (2, &set_difficulty(exponent)), "{firmware}");
    }
}

#[test]
fn a_suggestion_that_is_none_is_refused() {
    let mut rig = Rig::mining(settings());
    for params in ["0", "-1", "1e999", "\"NaN\"", "null", ""] {
        let refused = r#"{"id":4,"result":null,"error":[20,"the difficulty is missing or malformed",null]}"#;
        assert_eq!(suggest(&mut rig, params), [refused], "{params}");
    }
    assert_eq!(rig.closed, None);
    assert_eq!(rig.job().len(), 1, "no difficulty changed");
}

#[test]
fn a_keepalive_suggestion_of_nerdminer_1_8_3_does_not_undo_vardiff() {
    let mut rig = Rig::mining(settings());
    suggest(&mut rig, "0.0000000037252903"); // 2^-28
    rig.job();
    assert_eq!(rig.exponent(), -28);
    // A flood shows that it is faster.
    flood(&mut rig, 64);
    rig.job();
    let found = rig.exponent();
    assert!(found > -28);
    for _ in 0..10 {
        rig.now = rig.now.plus(seconds(1));
        assert_eq!(suggest(&mut rig, "0.0000000037252903"), [answer("4", "true")]);
    }
    rig.job();
    assert_eq!(rig.exponent(), found);
}

/// Submits this many shares of the newest job within a second of each other.
fn flood(rig: &mut Rig, shares: u32) {
    let job = rig.newest();
    let exponent = rig.exponent();
    let mut first_nonce = 0;
    for _ in 0..shares {
        let found = rig.grind_where(&job, Grind { exponent, first_nonce, ..Grind::default() });
        first_nonce = found.nonce + 1;
        rig.now = rig.now.plus(std::time::Duration::from_millis(100));
        assert_eq!(rig.submit(&found), 0);
    }
}

#[test]
fn a_miner_that_always_suggests_something_new_does_not_hold_vardiff_still() {
    let mut rig = Rig::mining(settings());
    for round in 0..8 {
        suggest(&mut rig, ["0.0000000037252903", "0.0000000074505806"][round % 2]);
        flood(&mut rig, 16);
        rig.job();
    }
    assert!(rig.exponent() > -27, "{}", rig.exponent());
    // A minute after the last one that counted, the next one counts again.
    rig.wait(seconds(60));
    suggest(&mut rig, "0.0000000018626452");
    rig.job();
    assert_eq!(rig.exponent(), -29);
}

#[test]
fn a_password_suggests_a_difficulty() {
    for (password, exponent) in [
        ("x", INITIAL),
        ("d=0.000001", -20),
        ("x,d=0.000001", -20),
        ("diff=0.000001;x", -20),
        ("d=0", INITIAL),
    ] {
        let mut rig = Rig::with_work(settings());
        rig.send(SUBSCRIBE);
        let line = format!(r#"{{"id":3,"method":"mining.authorize","params":["account.rig","{password}"]}}"#);
        assert_eq!(rig.send(&line)[..2], [answer("3", "true"), set_difficulty(exponent)], "{password}");
    }
}

#[test]
fn a_minimum_that_a_miner_names_is_never_undercut() {
    let mut rig = Rig::with_work(settings());
    let line = r#"{"id":1,"method":"mining.configure","params":[["minimum-difficulty"],{"minimum-difficulty.value":3000}]}"#;
    assert_eq!(rig.send(line), [answer("1", r#"{"minimum-difficulty":true}"#)]);
    rig.send(SUBSCRIBE);
    assert_eq!(rig.send(AUTHORIZE)[1], set_difficulty(12));
}

#[test]
fn after_a_rise_shares_of_the_old_job_keep_their_difficulty() {
    let mut rig = Rig::mining(settings());
    let old = rig.newest();
    suggest(&mut rig, "0.000001");
    rig.job();
    assert_eq!(rig.exponent(), -20);
    let easy = Grind { missing: Some(-20), ..Grind::default() };
    let found = rig.grind_where(&old, easy);
    assert_eq!(rig.submit(&found), 0);
    assert_eq!(rig.record().credited(), worth(INITIAL));
    // Even one that meets the new difficulty is worth the one that it was given out at.
    let found = rig.grind_where(&old, Grind { exponent: -20, first_nonce: 1 << 24, ..Grind::default() });
    assert_eq!(rig.submit(&found), 0);
    assert_eq!(rig.record().credited(), worth(INITIAL));
    let found = rig.grind_where(&rig.newest(), easy);
    assert_eq!(rig.submit(&found), 23);
    let record = rig.record();
    assert_eq!((record.verdict, record.credited()), (rejected(RejectReason::LowDifficulty), Work(0)));
    assert!(record.submitted > Work(0), "what it claimed is known");
    let found = rig.grind(&rig.newest(), -20);
    assert_eq!(rig.submit(&found), 0);
    assert_eq!(rig.record().credited(), worth(-20));
}

#[test]
fn after_a_drop_shares_of_the_old_job_are_judged_by_the_easier_difficulty() {
    // BFGMiner 5.5.0 and NerdMiner 1.8.3 apply a new difficulty to the job that they have.
    let mut rig = Rig::mining(settings());
    let old = rig.newest();
    suggest(&mut rig, "0.0000000037252903");
    let found = rig.grind_where(&old, Grind { exponent: -28, missing: Some(INITIAL), ..Grind::default() });
    assert_eq!(rig.submit(&found), 23, "not before it was told");
    rig.shares();
    rig.job();
    assert_eq!(rig.exponent(), -28);
    assert_eq!(rig.submit(&found), 0, "it was not remembered when it was refused");
    let record = rig.record();
    assert_eq!((record.verdict, record.credited()), (Verdict::Accepted, worth(-28)));
    let found =
        rig.grind_where(&rig.newest(), Grind { exponent: -28, missing: Some(INITIAL), ..Grind::default() });
    assert_eq!(rig.submit(&found), 0);
    assert_eq!(rig.record().credited(), worth(-28));
}

#[test]
fn a_job_on_the_way_through_several_difficulties_is_judged_by_the_easiest_since() {
    let mut rig = Rig::mining(settings());
    let first = rig.newest();
    for suggestion in ["0.000001", "0.0000000037252903", "0.00000095367432"] {
        rig.wait(seconds(60));
        suggest(&mut rig, suggestion);
        rig.job();
    }
    assert_eq!(rig.exponent(), -20);
    let found = rig.grind_where(&first, Grind { exponent: -28, missing: Some(INITIAL), ..Grind::default() });
    assert_eq!(rig.submit(&found), 0);
    assert_eq!(rig.record().credited(), worth(-28));
}

#[test]
fn without_vardiff_miners_get_the_upstreams_target() {
    let mut settings = settings();
    settings.vardiff_enabled = false;
    let mut rig = Rig::mining(settings);
    assert_eq!(rig.exponent(), UPSTREAM);
    suggest(&mut rig, "0.0000000037252903");
    assert_eq!(rig.job().len(), 1, "nothing is suggested to a fixed difficulty");
    rig.source.upstream_exponent = -20;
    assert_eq!(rig.job()[0], set_difficulty(-20));
}

#[test]
fn a_miner_that_waited_for_work_starts_where_a_new_one_does() {
    let mut rig = Rig::new(settings());
    rig.send(SUBSCRIBE);
    rig.send(AUTHORIZE);
    let lines = rig.wait(seconds(3600));
    assert!(lines.iter().all(|line| *line == set_difficulty(INITIAL)));
    rig.job();
    assert_eq!(rig.exponent(), INITIAL);
}

#[test]
fn a_keepalive_tells_no_difficulty_that_does_not_count_yet() {
    let mut rig = Rig::mining(settings());
    let job = rig.newest();
    suggest(&mut rig, "0.0000000037252903");
    let lines = rig.wait(seconds(31));
    assert_eq!(lines, [set_difficulty(INITIAL)]);
    let found = rig.grind(&job, INITIAL);
    assert_eq!(rig.submit(&found), 0);
}

#[test]
fn before_work_comes_a_keepalive_has_a_difficulty_that_a_miner_can_read() {
    let mut settings = settings();
    settings.vardiff_enabled = false;
    let mut rig = Rig::new(settings);
    rig.send(SUBSCRIBE);
    rig.send(AUTHORIZE);
    assert_eq!(rig.wait(seconds(31)), [set_difficulty(INITIAL)]);
}
