//! From the first byte to the first job.

use crate::support::*;
use mining_server::settings::HANDSHAKE_DEADLINE;
use mining_server::{Event, Fault};
use stratum::HashRate;

/// What a connection says once a miner is ready, after its answers.
fn opening(rig: &Rig, mask: Option<u32>) -> Vec<String> {
    let mut lines = vec![set_difficulty(rig.exponent())];
    lines.extend(mask.map(set_version_mask));
    lines
}

#[test]
fn a_grant_has_the_keys_that_were_asked_for_and_no_others() {
    for (firmware, params, granted) in [
        (
            "cgminer 4.11.1 with vmask, base of Antminer, Avalon and Whatsminer firmware",
            r#"[["version-rolling"], {"version-rolling.mask": "ffffffff"}]"#,
            r#"{"version-rolling":true,"version-rolling.mask":"1fffe000"}"#,
        ),
        (
            "Mujina 2026-08",
            r#"[["version-rolling"],{"version-rolling.mask":"1fffe000"}]"#,
            r#"{"version-rolling":true,"version-rolling.mask":"1fffe000"}"#,
        ),
        (
            "AntPool firmware, the count as a number and before the mask",
            r#"[["version-rolling"],{"version-rolling.min-bit-count":2,"version-rolling.mask":"00c00000"}]"#,
            r#"{"version-rolling":true,"version-rolling.mask":"00c00000"}"#,
        ),
        (
            "old Braiins OS, the count as text",
            r#"[["version-rolling"],{"version-rolling.mask":"1fffe000","version-rolling.min-bit-count":"00000002"}]"#,
            r#"{"version-rolling":true,"version-rolling.mask":"1fffe000"}"#,
        ),
        (
            "BIP 310, more bits needed than there are",
            r#"[["version-rolling"],{"version-rolling.mask":"00006000","version-rolling.min-bit-count":16}]"#,
            r#"{"version-rolling":true,"version-rolling.mask":"00006000"}"#,
        ),
        (
            "BIP 310, no mask: all bits",
            r#"[["version-rolling"]]"#,
            r#"{"version-rolling":true,"version-rolling.mask":"1fffe000"}"#,
        ),
        (
            "bits that nobody may roll",
            r#"[["version-rolling"],{"version-rolling.mask":"e0001fff"}]"#,
            r#"{"version-rolling":true,"version-rolling.mask":"00000000"}"#,
        ),
        (
            "DATUM's list of extensions",
            r#"[["version-rolling","minimum-difficulty","subscribe-extranonce"],{"version-rolling.mask":"ffffffff","minimum-difficulty.value":2048}]"#,
            r#"{"version-rolling":true,"version-rolling.mask":"1fffe000","minimum-difficulty":true,"subscribe-extranonce":true}"#,
        ),
        (
            "a minimum difficulty without a value, and an extension that nobody knows",
            r#"[["minimum-difficulty","info"],{"info.hw-id":"1"}]"#,
            r#"{"minimum-difficulty":false,"info":false}"#,
        ),
        ("mining_device_sv1 2025-08", "[[],{}]", "{}"),
        ("no parameters", "[]", "{}"),
        ("null parameters", "null", "{}"),
    ] {
        let mut rig = Rig::with_work(settings());
        let line = format!(r#"{{"id": 1, "method": "mining.configure", "params": {params}}}"#);
        assert_eq!(rig.send(&line), [answer("1", granted)], "{firmware}");
    }
}

#[test]
fn a_mask_that_cannot_be_read_is_refused_and_still_answered() {
    let mut rig = Rig::with_work(settings());
    let line = r#"{"id":1,"method":"mining.configure","params":[["version-rolling"],{"version-rolling.mask":"none"}]}"#;
    let refused =
        r#"{"id":1,"result":null,"error":[20,"version-rolling.mask is missing or malformed",null]}"#;
    assert_eq!(rig.send(line), [refused]);
    assert_eq!(rig.closed, None);
}

#[test]
fn nothing_comes_between_configure_and_its_answer() {
    // cgminer 4.11.1 takes the next line for the answer: with work, without, and while new work comes.
    for has_work in [true, false] {
        let mut rig = if has_work { Rig::with_work(settings()) } else { Rig::new(settings()) };
        let (begin, end) = CONFIGURE.split_at(30);
        assert_eq!(rig.send_bytes(begin.as_bytes()), [""; 0]);
        assert_eq!(rig.job(), [""; 0]);
        assert_eq!(rig.wait(seconds(20)), [""; 0]);
        assert_eq!(rig.block(), [""; 0]);
        assert_eq!(
            rig.send(end),
            [answer("1", r#"{"version-rolling":true,"version-rolling.mask":"1fffe000"}"#)]
        );
    }
}

#[test]
fn any_order_in_one_write_byte_by_byte_and_in_separate_writes() {
    let granted = answer("1", r#"{"version-rolling":true,"version-rolling.mask":"1fffe000"}"#);
    let [subscribed, authorized] = [answer("2", SUBSCRIBED), answer("3", "true")];
    let steps = [(CONFIGURE, &granted), (SUBSCRIBE, &subscribed), (AUTHORIZE, &authorized)];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let answers: Vec<&str> = order.iter().map(|step| steps[*step].1.as_str()).collect();
        let text: String = order.iter().map(|step| format!("{}\r\n", steps[*step].0)).collect();

        // In one write, as ESP-Miner 2.15 and NerdQAxe++ do: all answers, then all else.
        let mut rig = Rig::with_work(settings());
        let lines = rig.send_bytes(text.as_bytes());
        assert_eq!(lines[..3], answers, "{order:?}");
        assert_eq!(lines[3..5], opening(&rig, Some(FULL_MASK)), "{order:?}");
        assert_eq!((lines.len(), rig.jobs.len()), (6, 1), "{order:?}");

        let mut bytes = Rig::with_work(settings());
        let single: Vec<String> = text.bytes().flat_map(|byte| bytes.send_bytes(&[byte])).collect();
        let mut separate = Rig::with_work(settings());
        let whole: Vec<String> = order.iter().flat_map(|step| separate.send(steps[*step].0)).collect();
        assert_eq!(single, whole, "{order:?}");
        let only_answers: Vec<&String> = whole.iter().filter(|line| line.contains("\"result\"")).collect();
        assert_eq!(only_answers, answers, "{order:?}");
        assert_eq!((bytes.jobs.len(), bytes.mask, bytes.closed), (1, FULL_MASK, None), "{order:?}");
    }
}

#[test]
fn a_burst_of_nerdqaxe_is_answered_in_its_order() {
    let mut rig = Rig::with_work(settings());
    let lines = rig.send_bytes(
        concat!(
            r#"{"id":1,"method":"mining.subscribe","params":["NerdQAxe++/BM1370/v1.0.35"]}"#,
            "\n",
            r#"{"id":2,"method":"mining.configure","params":[["version-rolling"],{"version-rolling.mask":"ffffffff"}]}"#,
            "\n",
            r#"{"id":3,"method":"mining.authorize","params":["u.nerdqaxe","x"]}"#,
            "\n",
            r#"{"id":4,"method":"mining.suggest_difficulty","params":[0.00000001]}"#,
            "\n",
            r#"{"id":5,"method":"mining.extranonce.subscribe","params":[]}"#,
            "\n",
        )
        .as_bytes(),
    );
    let granted = r#"{"version-rolling":true,"version-rolling.mask":"1fffe000"}"#;
    let answers = [
        answer("1", SUBSCRIBED),
        answer("2", granted),
        answer("3", "true"),
        answer("4", "true"),
        answer("5", "true"),
    ];
    assert_eq!(lines[..5], answers);
    // The suggestion came before the first job: 1e-8 rounds down to 2^-27.
    assert_eq!(lines[5..7], [set_difficulty(-27), set_version_mask(FULL_MASK)]);
    assert_eq!(rig.jobs.len(), 1);
}

#[test]
fn every_form_of_subscribing_is_granted() {
    for (firmware, params, user_agent) in [
        ("minerd 2.5.1", r#"["cpuminer/2.5.1"]"#, Some("cpuminer/2.5.1")),
        ("BFGMiner 5.5.0, resuming", r#"["bfgminer/5.5.0-unknown", "5f"]"#, Some("bfgminer/5.5.0-unknown")),
        ("cgminer 4.11.1, resuming", r#"["cgminer/4.11.1", "0000000000000007"]"#, Some("cgminer/4.11.1")),
        ("mining_device_sv1 2025-08", r#"["80","08000002"]"#, Some("80")),
        ("Whatsminer", r#"["whatsminer/v1.0","ae68"]"#, Some("whatsminer/v1.0")),
        ("with the pool's address", r#"["ua",null,"pool.example",3333]"#, Some("ua")),
        ("NiceHash", r#"["NiceHash/1.0.0",null]"#, Some("NiceHash/1.0.0")),
        ("no parameters", "[]", None),
        ("null parameters", "null", None),
        ("a null name", "[null]", None),
    ] {
        let mut rig = Rig::with_work(settings());
        let line = format!(r#"{{"id": 1, "method": "mining.subscribe", "params": {params}}}"#);
        assert_eq!(rig.send(&line), [answer("1", SUBSCRIBED)], "{firmware}");
        assert_eq!(rig.connection.user_agent(), user_agent, "{firmware}");
    }
}

#[test]
fn the_answer_to_subscribe_is_the_first_line_and_has_the_nested_pairs() {
    // NerdMiner 1.8.3 takes the first line for the answer and reads result[0][0][1]; others read positions 1, 2.
    let mut rig = Rig::with_work(settings());
    let lines = rig.send(r#"{"id": 1, "method": "mining.subscribe", "params": ["NerdMinerV2/V1.8.3"]}"#);
    assert_eq!(lines, [answer("1", SUBSCRIBED)]);
    let value: serde_json::Value = serde_json::from_str(&lines[0]).expect("JSON");
    assert_eq!(value["result"][0][0][1], "0000000000000007");
    assert!(value.as_object().is_some_and(|object| object.contains_key("error")));
    let extranonce1 = value["result"][1].as_str().expect("text");
    // An Apollo takes 16 bytes at most; NiceHash needs 4 of extranonce2 and cgminer takes no more than 8.
    assert_eq!((extranonce1.len(), value["result"][2].as_u64()), (8, Some(4)));
}

#[test]
fn subscribing_and_authorising_again_changes_nothing() {
    let mut rig = Rig::mining(settings());
    assert_eq!(rig.send(SUBSCRIBE), [answer("2", SUBSCRIBED)]);
    assert_eq!(rig.send(AUTHORIZE), [answer("3", "true")]);
    assert_eq!(
        rig.send(r#"{"id": 3, "method": "mining.authorize", "params": ["another", "x"]}"#),
        [answer("3", "true")]
    );
    assert_eq!((rig.connection.user(), rig.jobs.len()), (Some("account.rig"), 1));
    let found = rig.grind(&rig.newest(), INITIAL);
    assert_eq!(rig.submit(&found), 0);
}

#[test]
fn authorising_before_subscribing_waits_for_it() {
    let mut rig = Rig::with_work(settings());
    assert_eq!(rig.send(AUTHORIZE), [answer("3", "true")]);
    assert_eq!(rig.job(), [""; 0]);
    let lines = rig.send(SUBSCRIBE);
    assert_eq!(lines[0], answer("2", SUBSCRIBED));
    assert_eq!((lines.len(), rig.jobs.len()), (3, 1));
}

#[test]
fn every_worker_name_may_mine() {
    for (form, name) in [
        ("an address and a worker", "bc1qexample.rig"),
        ("an underscore", "account_rig"),
        ("a worker alone", ".rig"),
        ("a percent sign stays", "account%25.rig%2e1"),
        ("Avalon's 63 characters", "a123456789b123456789c123456789d123456789e123456789f123456789g12"),
    ] {
        let mut rig = Rig::with_work(settings());
        rig.send(SUBSCRIBE);
        let line = format!(r#"{{"id": "auth", "method": "mining.authorize", "params": ["{name}", "x"]}}"#);
        assert_eq!(rig.send(&line)[0], answer("\"auth\"", "true"), "{form}");
        assert_eq!((rig.connection.user(), rig.jobs.len()), (Some(name), 1), "{form}");
    }
    let mut rig = Rig::with_work(settings());
    rig.send(SUBSCRIBE);
    rig.send(r#"{"id":1,"method":"mining.authorize","params":["",""]}"#);
    assert_eq!((rig.connection.user(), rig.jobs.len()), (Some("(unnamed)"), 1));
    let line = format!(r#"{{"id":1,"method":"mining.authorize","params":["{}"]}}"#, "u".repeat(256));
    assert_eq!(
        Rig::new(settings()).send(&line),
        [r#"{"id":1,"result":null,"error":[20,"the user name is missing or malformed",null]}"#]
    );
}

#[test]
fn what_is_not_sv1_is_closed_at_its_first_byte() {
    for (who, bytes) in [
        ("BFGMiner 5.5.0 tries TLS first", b"\x16".as_slice()),
        ("a browser or probe", b"GET / HTTP/1.1\r\n"),
        ("an SV2 miner", b"\x00"),
        ("white space does not help", b" \r\n\x16"),
        ("a PROXY header that nobody configured", b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n"),
    ] {
        let mut rig = Rig::with_work(settings());
        assert_eq!(rig.send_bytes(bytes), [""; 0], "{who}");
        assert_eq!(rig.closed.map(|reason| reason.fault), Some(Fault::Downstream), "{who}");
    }
}

#[test]
fn line_ends_and_blanks_do_not_matter() {
    let mut rig = Rig::with_work(settings());
    let text = format!(" \r\n\n  {SUBSCRIBE}\r\n\t{AUTHORIZE}  \n\r\n");
    let lines = rig.send_bytes(text.as_bytes());
    assert_eq!(lines[..2], [answer("2", SUBSCRIBED), answer("3", "true")]);
    assert_eq!(rig.closed, None);
}

#[test]
fn junk_after_a_good_line_closes_and_the_good_line_counts() {
    for junk in ["nonsense", "{\"id\":1,", "[]", "{\"id\":\"\u{7}\"}"] {
        let mut rig = Rig::with_work(settings());
        assert_eq!(rig.send_bytes(format!("{SUBSCRIBE}\n{junk}\n").as_bytes()), [answer("2", SUBSCRIBED)]);
        assert_eq!(rig.closed.map(|reason| reason.fault), Some(Fault::Downstream), "{junk}");
    }
    let mut rig = Rig::with_work(settings());
    assert_eq!(rig.send_bytes(&[b'{'; 4097]), [""; 0]);
    assert!(rig.closed.is_some_and(|reason| reason.what.contains("longer than 4096 bytes")));
}

#[test]
fn behind_a_load_balancer_the_miner_is_who_the_header_names() {
    let mut settings = settings();
    settings.proxy_protocol = true;
    let mut rig = Rig::with_work(settings.clone());
    let text = format!("PROXY TCP4 192.0.2.7 198.51.100.1 12345 3333\r\n{SUBSCRIBE}\n");
    let lines: Vec<String> = text.bytes().flat_map(|byte| rig.send_bytes(&[byte])).collect();
    assert_eq!(lines, [answer("2", SUBSCRIBED)]);
    assert_eq!(rig.connection.proxied_source(), Some("192.0.2.7:12345".parse().expect("an address")));
    let mut rig = Rig::with_work(settings);
    assert_eq!(rig.send(SUBSCRIBE), [""; 0]);
    assert!(rig.closed.is_some(), "a header is needed where one is configured");
}

#[test]
fn a_connection_that_does_not_open_its_mining_is_closed_in_time() {
    for opening in [None, Some(SUBSCRIBE), Some(AUTHORIZE), Some(CONFIGURE)] {
        let mut rig = Rig::with_work(settings());
        rig.send(opening.unwrap_or(r#"{"id":1,"method":"mining.ping"}"#));
        rig.wait(HANDSHAKE_DEADLINE - seconds(1));
        assert_eq!(rig.closed, None, "{opening:?}");
        assert_eq!(rig.wait(seconds(1)), [""; 0]);
        assert_eq!(rig.closed.map(|reason| reason.fault), Some(Fault::Downstream), "{opening:?}");
    }
}

#[test]
fn methods_that_we_do_not_have_are_refused_and_the_connection_is_kept() {
    let mut rig = Rig::mining(settings());
    for (firmware, method, params) in [
        ("BFGMiner 5.5.0, after each job", "mining.get_transactions", "[\"1f\"]"),
        ("BFGMiner 5.5.0", "mining.capabilities", "[{}]"),
        ("old BTC.com firmware", "mining.multi_version", "[4]"),
        ("any", "mining.set_goal", "[\"x\"]"),
        ("any", "mining.term", "[]"),
        ("any", "eth_submitHashrate", "{}"),
        ("no method", "", "null"),
    ] {
        let line = format!(r#"{{"params": {params}, "id": "txlist1f", "method": "{method}"}}"#);
        let refused = r#"{"id":"txlist1f","result":null,"error":[20,"Unknown method",null]}"#;
        assert_eq!(rig.send(&line), [refused], "{firmware}");
        assert_eq!(rig.closed, None, "{firmware}");
    }
    let found = rig.grind(&rig.newest(), INITIAL);
    assert_eq!(rig.submit(&found), 0);
}

#[test]
fn a_verifier_of_nicehash_sees_its_order() {
    let mut rig = Rig::with_work(settings());
    let lines = rig.send(r#"{"id":1,"method":"mining.subscribe","params":["NiceHash/1.0.0",null]}"#);
    assert_eq!(lines, [answer("1", SUBSCRIBED)]);
    let lines = rig.send(r#"{"id":2,"method":"mining.authorize","params":["u.nicehash","x"]}"#);
    assert_eq!(lines[..2], [answer("2", "true"), set_difficulty(INITIAL)]);
    assert!(lines[2].contains("mining.notify") && lines.len() == 3);
}

#[test]
fn a_coinbase_that_firmware_is_not_known_to_take_is_reported_once() {
    for (user_agent, length, reported) in [
        ("NiceHash/1.0.0", 600, true),
        ("NiceHash/1.0.0", 400, false),
        ("cgminer/4.11.1", 800, true),
        ("Antminer S21/xyz", 800, false),
        ("bitaxe/BM1370/v2.15.0", 6000, false),
        ("whatsminer/v1.0", 6600, true),
        ("somebody", 6600, false),
    ] {
        let mut rig = Rig::new(settings());
        rig.source.coinbase_suffix = vec![0; length - 52];
        rig.job();
        rig.send(&format!(r#"{{"id":1,"method":"mining.subscribe","params":["{user_agent}"]}}"#));
        rig.send(AUTHORIZE);
        rig.job();
        assert_eq!(rig.notices().len(), usize::from(reported), "{user_agent}");
        let named = rig.notices().first().is_none_or(|notice| notice.contains(&format!("{length} bytes")));
        assert!(named, "{:?}", rig.notices());
    }
}

#[test]
fn a_device_with_an_upstream_channel_of_its_own_opens_and_closes_it() {
    for vardiff_enabled in [true, false] {
        let mut settings = settings();
        (settings.channel_per_device, settings.vardiff_enabled) = (true, vardiff_enabled);
        let mut rig = Rig::new(settings);
        rig.send(AUTHORIZE);
        assert!(rig.events.is_empty(), "it has not subscribed");
        rig.send(SUBSCRIBE);
        let Some(Event::OpenUpstream { user_identity, hash_rate, .. }) = rig.events.pop() else {
            panic!("no channel is asked for");
        };
        // 2^8 hashes a share and 8 shares a minute, whatever the upstream's target will be.
        let HashRate(rate) = hash_rate;
        assert!((rate - 256.0 * 8.0 / 60.0).abs() < 0.01, "{rate}");
        assert_eq!(user_identity, "account.rig");
        let mut out = mining_server::Output::default();
        rig.connection.handle_closed(&mut rig.registry, &mut out);
        assert!(matches!(out.events[..], [Event::CloseUpstream { .. }]));
        assert_eq!(rig.registry.given_back, [RESERVED]);
    }
}
