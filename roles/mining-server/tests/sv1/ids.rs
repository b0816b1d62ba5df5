//! Ids are echoed as they came, key nothing, and order nothing.

use crate::support::*;
use mining_server::record::Verdict;

#[test]
fn an_id_is_echoed_as_it_was_written() {
    let mut rig = Rig::with_work(settings());
    for (firmware, id) in [
        ("minerd 2.5.1", "1"),
        ("mining_device_sv1 2025-08: unix time", "1700000000"),
        ("BFGMiner 5.5.0", "\"auth\""),
        ("BFGMiner 5.5.0", "\"xnsub\""),
        ("an escape stays an escape", r#""a\u0062\"c""#),
        ("beyond 53 bits", "9007199254740993"),
        ("beyond 64 bits", "99999999999999999999"),
        ("negative", "-1"),
        ("a fraction", "1.50"),
        ("an exponent", "1e3"),
        ("a boolean", "false"),
        ("an array", "[1]"),
        ("an object", "{\"a\":[1]}"),
    ] {
        let line = format!(r#"{{"id": {id}, "method": "mining.ping", "params": []}}"#);
        assert_eq!(rig.send(&line), [answer(id, "\"pong\"")], "{firmware}");
    }
}

#[test]
fn every_submission_of_minerd_2_5_1_has_the_id_4_and_each_is_answered_in_order() {
    let mut rig = Rig::mining(settings());
    let job = rig.newest();
    let first = rig.grind(&job, INITIAL);
    let second = rig.grind_where(&job, Grind { first_nonce: first.nonce + 1, ..Grind::default() });
    let line = |found: &Found| {
        let Found { job_id, ntime, nonce, .. } = found;
        format!(
            r#"{{"method": "mining.submit", "params": ["account.rig", "{job_id}", "00000001", "{ntime:08x}", "{nonce:08x}"], "id":4}}"#
        )
    };
    // A good one, the same again, and another: all in one write.
    let bytes = [line(&first), line(&first), line(&second), String::new()].join("\n");
    let refused = r#"{"id":4,"result":null,"error":[22,"Duplicate share",null]}"#;
    assert_eq!(rig.send_bytes(bytes.as_bytes()), [&answer("4", "true"), refused, &answer("4", "true")]);
}

#[test]
fn mining_device_sv1_2025_08_uses_one_id_for_everything_and_0_for_shares() {
    let mut rig = Rig::with_work(settings());
    let id = "1763800000";
    let answers = rig.send_bytes(
        concat!(
            r#"{"id":1763800000,"method":"mining.configure","params":[[],{}]}"#,
            "\n",
            r#"{"id":1763800000,"method":"mining.subscribe","params":["80","08000002"]}"#,
            "\n",
            r#"{"id":1763800000,"method":"mining.authorize","params":["user","password"]}"#,
            "\n",
        )
        .as_bytes(),
    );
    assert_eq!(answers[..3], [answer(id, "{}"), answer(id, SUBSCRIBED), answer(id, "true")]);
    let found = rig.grind(&rig.newest(), INITIAL);
    assert_eq!(rig.send(&found.line("0")), [answer("0", "true")]);
    assert_eq!(rig.send(&found.line("0")).len(), 1);
}

#[test]
fn a_request_with_a_null_id_or_none_is_done_and_never_answered() {
    for id in ["\"id\":null,", ""] {
        let mut rig = Rig::with_work(settings());
        // BFGMiner 5.5.0 takes an answer to its suggestion for the answer to its subscription.
        for line in [
            format!(
                r#"{{{id}"method":"mining.suggest_target","params":["00000000ffff0000000000000000000000000000000000000000000000000000"]}}"#
            ),
            format!(
                r#"{{{id}"method":"mining.configure","params":[["version-rolling"],{{"version-rolling.mask":"00c00000"}}]}}"#
            ),
            format!(
                r#"{{{id}"method":"mining.configure","params":[["version-rolling"],{{"version-rolling.mask":"zz"}}]}}"#
            ),
            format!(r#"{{{id}"method":"mining.subscribe","params":[]}}"#),
            format!(r#"{{{id}"method":"mining.ping"}}"#),
            format!(r#"{{{id}"method":"mining.suggest_difficulty","params":["none"]}}"#),
            format!(r#"{{{id}"method":"mining.extranonce.subscribe"}}"#),
            format!(r#"{{{id}"method":"nobody.knows"}}"#),
            format!(r#"{{{id}"method":"mining.submit","params":[]}}"#),
        ] {
            assert_eq!(rig.send(&line), [""; 0], "{line}");
        }
        rig.shares();
        // Done all the same: subscribed, the mask asked for, and the difficulty of the target, as far as the
        // upstream's permits.
        let lines = rig.send(&format!(r#"{{{id}"method":"mining.authorize","params":["u"]}}"#));
        assert_eq!(lines[..2], [set_difficulty(UPSTREAM), set_version_mask(0x00c0_0000)]);
        assert_eq!((lines.len(), rig.jobs.len()), (3, 1));
        let found = rig.grind(&rig.newest(), UPSTREAM);
        let line = found.line("null");
        assert_eq!(rig.send(&line), [""; 0]);
        assert_eq!(rig.record().verdict, Verdict::Accepted);
        assert_eq!(rig.send(&line), [""; 0]);
        assert!(matches!(rig.record().verdict, Verdict::Rejected(_)));
    }
}

#[test]
fn an_id_that_cannot_be_echoed_ends_the_connection() {
    let mut rig = Rig::with_work(settings());
    let line = format!(r#"{{"id":"{}","method":"mining.ping"}}"#, "x".repeat(256));
    assert_eq!(rig.send(&line), [""; 0]);
    assert!(rig.closed.is_some());
}

#[test]
fn answers_of_the_miner_are_not_answered() {
    let mut rig = Rig::mining(settings());
    for (firmware, line) in [
        ("cgminer 4.11.1, to client.get_version", r#"{"id": 8, "result": "cgminer/4.11.1", "error": null}"#),
        ("ESP-Miner 2.15, to client.get_version", r#"{"id":8,"error":null,"result":"v2.15.0"}"#),
        ("cpuminer-opt 26.1, to mining.ping", r#"{"id":9,"result":"pong","error":null}"#),
        ("ESP-Miner 2.15, to mining.ping", r#"{"id":9,"method":"pong","params":[]}"#),
        ("an error", r#"{"id":9,"result":null,"error":[-3,"no",null]}"#),
    ] {
        assert_eq!(rig.send(line), [""; 0], "{firmware}");
        assert_eq!(rig.closed, None, "{firmware}");
    }
}
