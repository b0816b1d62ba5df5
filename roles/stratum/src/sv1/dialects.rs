//! The lines of real miners, byte for byte as they send them, and what must be understood of each. The firmware
//! is named beside each; forms without a version are documented by pools that met them.

use arrayvec::ArrayVec;

use super::line::{LineBuffer, LineError};
use super::request::{
    Call, Configure, Parameter, Request, RequestError, Response, Submit, VersionRolling, password_options,
};
use crate::Target;

fn parse(line: &str) -> Request<'_> {
    Request::parse(line.as_bytes()).unwrap_or_else(|error| panic!("{line}: {error}"))
}

fn call(line: &str) -> Call<'_> {
    parse(line).call
}

fn rolling(mask: u32, min_bit_count: Option<u32>) -> Call<'static> {
    let version_rolling = Some(VersionRolling { mask, min_bit_count });
    Call::Configure(Box::new(Configure { version_rolling, ..Configure::default() }))
}

fn subscribe<'a>(user_agent: &'a str, session: Option<&'a str>) -> Call<'a> {
    Call::Subscribe { user_agent: user_agent.into(), session: session.map(Into::into) }
}

fn authorize<'a>(user: &'a str, password: &'a str) -> Call<'a> {
    Call::Authorize { user: user.into(), password: password.into() }
}

/// A submission by `u` for job `1f` with `ntime` 0x4966bc61.
fn submit(extranonce2: &[u8], nonce: u32, version_bits: Option<u32>) -> Call<'static> {
    Call::Submit(Submit {
        user: "u".into(),
        job_id: "1f".into(),
        extranonce2: extranonce2.iter().copied().collect(),
        ntime: 0x4966_bc61,
        nonce,
        version_bits,
    })
}

fn check(table: &[(&str, &str, Call<'_>)]) {
    for (firmware, line, expected) in table {
        assert_eq!(&call(line), expected, "{firmware}: {line}");
    }
}

#[test]
fn configure() {
    check(&[
        (
            "cgminer 4.11.1 with vmask, base of Antminer, Avalon and Whatsminer firmware",
            r#"{"id": 1, "method": "mining.configure", "params": [["version-rolling"], {"version-rolling.mask": "ffffffff"}]}"#,
            rolling(u32::MAX, None),
        ),
        (
            "Mujina 2026-08",
            r#"{"id":1,"method":"mining.configure","params":[["version-rolling"],{"version-rolling.mask":"1fffe000"}]}"#,
            rolling(0x1fff_e000, None),
        ),
        (
            "AntPool firmware, the count as a number",
            r#"{"params":[["version-rolling"],{"version-rolling.min-bit-count":2,"version-rolling.mask":"00c00000"}],"id":0,"method":"mining.configure"}"#,
            rolling(0x00c0_0000, Some(2)),
        ),
        (
            "BIP 310, the count as hexadecimal text",
            r#"{"method":"mining.configure","id":1,"params":[["version-rolling"],{"version-rolling.mask":"1fffe000","version-rolling.min-bit-count":"00000010"}]}"#,
            rolling(0x1fff_e000, Some(16)),
        ),
        (
            "BIP 310, no mask: all bits",
            r#"{"method":"mining.configure","id":1,"params":[["version-rolling"]]}"#,
            rolling(u32::MAX, None),
        ),
        (
            "mining_device_sv1 2025-08",
            r#"{"id":1700000000,"method":"mining.configure","params":[[],{}]}"#,
            Call::Configure(Box::default()),
        ),
        (
            "NiceHash, every extension and one that nobody knows",
            r#"{"id":1,"method":"mining.configure","params":[["minimum-difficulty","version-rolling","subscribe-extranonce","info"],{"minimum-difficulty.value":2048,"version-rolling.mask":"ffffffff","info.sw-version":"1"}]}"#,
            Call::Configure(Box::new(Configure {
                version_rolling: Some(VersionRolling { mask: u32::MAX, min_bit_count: None }),
                minimum_difficulty: Some(Some(2048.0)),
                subscribe_extranonce: true,
                others: ArrayVec::from_iter(["info".into()]),
            })),
        ),
        (
            "a minimum difficulty without a value",
            r#"{"id":1,"method":"mining.configure","params":[["minimum-difficulty"],{}]}"#,
            Call::Configure(Box::new(Configure { minimum_difficulty: Some(None), ..Configure::default() })),
        ),
    ]);
    let line = r#"{"id":1,"method":"mining.configure","params":[["version-rolling"],{"version-rolling.mask":"zz"}]}"#;
    assert!(matches!(
        Request::parse(line.as_bytes()),
        Err(RequestError::BadParams { parameter: Parameter::VersionMask, id, .. }) if id.token() == Some("1")
    ));
}

#[test]
fn subscribing() {
    check(&[
        (
            "minerd (cpuminer 2.5.1)",
            r#"{"id": 1, "method": "mining.subscribe", "params": ["cpuminer/2.5.1"]}"#,
            subscribe("cpuminer/2.5.1", None),
        ),
        (
            "cpuminer-opt 26.1",
            r#"{"id": 1, "method": "mining.subscribe", "params": ["cpuminer-opt-26.1-x64L"]}"#,
            subscribe("cpuminer-opt-26.1-x64L", None),
        ),
        (
            "BFGMiner 5.5.0, resuming",
            r#"{"id": 0, "method": "mining.subscribe", "params": ["bfgminer/5.5.0-unknown", "5f"]}"#,
            subscribe("bfgminer/5.5.0-unknown", Some("5f")),
        ),
        (
            "ESP-Miner 2.15",
            r#"{"id": 2, "method": "mining.subscribe", "params": ["bitaxe/BM1370/v2.15.0"]}"#,
            subscribe("bitaxe/BM1370/v2.15.0", None),
        ),
        (
            "NerdMiner 1.8.3",
            r#"{"id": 1, "method": "mining.subscribe", "params": ["NerdMinerV2/V1.8.3"]}"#,
            subscribe("NerdMinerV2/V1.8.3", None),
        ),
        (
            "mining_device_sv1 2025-08",
            r#"{"id":1700000000,"method":"mining.subscribe","params":["80","08000002"]}"#,
            subscribe("80", Some("08000002")),
        ),
        (
            "Whatsminer",
            r#"{"id":2,"method":"mining.subscribe","params":["whatsminer/v1.0","ae68"]}"#,
            subscribe("whatsminer/v1.0", Some("ae68")),
        ),
        (
            "with the pool's address",
            r#"{"id":1,"method":"mining.subscribe","params":["ua",null,"pool.example",3333]}"#,
            subscribe("ua", None),
        ),
        (
            "NiceHash",
            r#"{"id":1,"method":"mining.subscribe","params":["NiceHash/1.0.0",null]}"#,
            subscribe("NiceHash/1.0.0", None),
        ),
        ("no parameters", r#"{"id":1,"method":"mining.subscribe","params":[]}"#, subscribe("", None)),
        ("null parameters", r#"{"id":1,"method":"mining.subscribe","params":null}"#, subscribe("", None)),
        ("absent parameters", r#"{"id":1,"method":"mining.subscribe"}"#, subscribe("", None)),
    ]);
}

#[test]
fn authorizing() {
    check(&[
        (
            "NerdMiner 1.8.3, parameters first",
            r#"{"params": ["bc1qexample.nerd", "x"], "id": 2, "method": "mining.authorize"}"#,
            authorize("bc1qexample.nerd", "x"),
        ),
        (
            "BFGMiner 5.5.0",
            r#"{"id": "auth", "method": "mining.authorize", "params": ["u", "p"]}"#,
            authorize("u", "p"),
        ),
        (
            "an underscore and a percent sign, which stays",
            r#"{"id":3,"method":"mining.authorize","params":["account_1%25.rig%2e1","d=1024"]}"#,
            authorize("account_1%25.rig%2e1", "d=1024"),
        ),
        (
            "a worker alone",
            r#"{"id":3,"method":"mining.authorize","params":[".worker"]}"#,
            authorize(".worker", ""),
        ),
        ("no password", r#"{"id":3,"method":"mining.authorize","params":["u",null]}"#, authorize("u", "")),
        (
            "a number as password",
            r#"{"id":3,"method":"mining.authorize","params":["u",123]}"#,
            authorize("u", "123"),
        ),
        (
            "escapes",
            r#"{"id":3,"method":"mining.authorize","params":["a\/b\u00e9","\"x\""]}"#,
            authorize("a/bé", "\"x\""),
        ),
    ]);
}

#[test]
fn submitting() {
    check(&[
        (
            "minerd (cpuminer 2.5.1): its key order, always id 4",
            r#"{"method": "mining.submit", "params": ["u", "1f", "00000001", "4966bc61", "9962e301"], "id":4}"#,
            submit(&[0, 0, 0, 1], 0x9962_e301, None),
        ),
        (
            "cgminer 4.11.1",
            r#"{"params": ["u", "1f", "00000001", "4966bc61", "9962e301"], "id": 5, "method": "mining.submit"}"#,
            submit(&[0, 0, 0, 1], 0x9962_e301, None),
        ),
        (
            "cgminer 4.11.1 with vmask",
            r#"{"params": ["u", "1f", "01000000", "4966bc61", "9962e301", "00002000"], "id": 5, "method": "mining.submit"}"#,
            submit(&[1, 0, 0, 0], 0x9962_e301, Some(0x2000)),
        ),
        (
            "ESP-Miner 2.15: six parameters without a mask too",
            r#"{"id": 6, "method": "mining.submit", "params": ["u", "1f", "0000000000000002", "4966bc61", "9962e301", "00000000"]}"#,
            submit(&[0, 0, 0, 0, 0, 0, 0, 2], 0x9962_e301, Some(0)),
        ),
        (
            "NerdMiner 1.8.3: the nonce without leading zeros",
            r#"{"id":7,"method":"mining.submit","params":["u","1f","00000001","4966bc61","1a2b3"]}"#,
            submit(&[0, 0, 0, 1], 0x1a2b3, None),
        ),
        (
            "prefixes, upper case and odd spaces",
            r#" {  "id" :7 , "method":"mining.submit" ,"params" :[ "u","1f" , "000000AB","0x4966BC61","0X9962E301" ] }"#,
            submit(&[0, 0, 0, 0xab], 0x9962_e301, None),
        ),
        (
            "bmminer: bits outside every mask, for the connection to refuse",
            r#"{"id":7,"method":"mining.submit","params":["u","1f","00000001","4966bc61","9962e301","c0000000"]}"#,
            submit(&[0, 0, 0, 1], 0x9962_e301, Some(0xc000_0000)),
        ),
        (
            "an extranonce2 of the wrong length, for the connection to refuse",
            r#"{"id":7,"method":"mining.submit","params":["u","1f","00","4966bc61","9962e301",null]}"#,
            submit(&[0], 0x9962_e301, None),
        ),
        (
            "other keys",
            r#"{"jsonrpc":"2.0","id":7,"worker":"rig","method":"mining.submit","params":["u","1f","00000001","4966bc61","1"],"error":null}"#,
            submit(&[0, 0, 0, 1], 1, None),
        ),
    ]);
}

#[test]
fn suggesting() {
    check(&[
        (
            "cgminer 4.11.1",
            r#"{"id":4,"method":"mining.suggest_difficulty","params":[1000]}"#,
            Call::SuggestDifficulty(1000.0),
        ),
        (
            "Mujina 2026-08",
            r#"{"id":4,"method":"mining.suggest_difficulty","params":[0.00075]}"#,
            Call::SuggestDifficulty(0.00075),
        ),
        (
            "NerdMiner 1.8.3",
            r#"{"id": 3, "method": "mining.suggest_difficulty", "params": [0.00015]}"#,
            Call::SuggestDifficulty(0.00015),
        ),
        (
            "a whole float",
            r#"{"id":4,"method":"mining.suggest_difficulty","params":[65536.0]}"#,
            Call::SuggestDifficulty(65536.0),
        ),
        (
            "an exponent",
            r#"{"id":4,"method":"mining.suggest_difficulty","params":[1.5e-4]}"#,
            Call::SuggestDifficulty(0.00015),
        ),
        (
            "text",
            r#"{"id":4,"method":"mining.suggest_difficulty","params":["512"]}"#,
            Call::SuggestDifficulty(512.0),
        ),
        (
            "the call as the method",
            r#"{"id":4,"method":"mining.suggest_difficulty(0.5","params":[]}"#,
            Call::SuggestDifficulty(0.5),
        ),
        (
            "the closed call as the method",
            r#"{"id":4,"method":"mining.suggest_difficulty(64)"}"#,
            Call::SuggestDifficulty(64.0),
        ),
        (
            "BFGMiner 5.5.0, before subscribing, and not to be answered",
            r#"{"id": null, "method": "mining.suggest_target", "params": ["00000000ffff0000000000000000000000000000000000000000000000000000"]}"#,
            Call::SuggestTarget(Target::DIFFICULTY_1),
        ),
    ]);
    for params in ["[0]", "[-1]", "[1e999]", "[\"NaN\"]", "[\"inf\"]", "[null]", "[]", "{}", "[{}]"] {
        let line = format!(r#"{{"id":4,"method":"mining.suggest_difficulty","params":{params}}}"#);
        let error = Request::parse(line.as_bytes()).expect_err("no difficulty");
        assert!(matches!(error, RequestError::BadParams { parameter: Parameter::Difficulty, .. }), "{line}");
    }
}

#[test]
fn answers_of_miners() {
    let version = r#"{"id": 8, "result": "cgminer/4.11.1", "error": null}"#;
    let Call::Response(response) = call(version) else { panic!("no response") };
    assert_eq!(response.result_text().as_deref(), Some("cgminer/4.11.1"));
    check(&[
        (
            "cpuminer-opt 26.1: a pong as a result",
            r#"{"id":9,"result":"pong","error":null}"#,
            Call::Response(Response { result: Some("\"pong\""), error: None }),
        ),
        ("ESP-Miner 2.15: a pong as a method", r#"{"id":9,"method":"pong","params":[]}"#, Call::Pong),
        (
            "an error",
            r#"{"id":9,"result":null,"error":[-3,"no",null]}"#,
            Call::Response(Response { result: None, error: Some("[-3,\"no\",null]") }),
        ),
        (
            "an answer with an empty method",
            r#"{"id":9,"method":null,"result":true}"#,
            Call::Response(Response { result: Some("true"), error: None }),
        ),
    ]);
}

#[test]
fn other_methods_are_told_apart_and_keep_their_id() {
    check(&[
        (
            "cpuminer-opt 26.1",
            r#"{"id":3,"method":"mining.extranonce.subscribe","params":[]}"#,
            Call::ExtranonceSubscribe,
        ),
        ("any", r#"{"id":3,"method":"mining.ping","params":[]}"#, Call::Ping),
        ("BFGMiner 5.5.0", r#"{"id":3,"method":"mining.capabilities","params":[{}]}"#, Call::Capabilities),
        (
            "old BTC.com firmware",
            r#"{"id":3,"method":"mining.multi_version","params":[4]}"#,
            Call::MultiVersion,
        ),
        (
            "any",
            r#"{"id":3,"method":"mining.set_goal","params":["x"]}"#,
            Call::Unknown("mining.set_goal".into()),
        ),
        ("any", r#"{"id":3,"method":"mining.term"}"#, Call::Unknown("mining.term".into())),
        ("nothing asked", r#"{"id":3}"#, Call::Unknown("".into())),
        ("a method that is no text", r#"{"id":3,"method":7}"#, Call::Unknown("".into())),
    ]);
    let line = r#"{"params": ["1f"], "id": "txlist1f", "method": "mining.get_transactions"}"#;
    let request = parse(line);
    assert_eq!((request.id.token(), request.call), (Some("\"txlist1f\""), Call::GetTransactions));
}

#[test]
fn ids_of_miners_are_kept_as_they_came() {
    for (firmware, line, token) in [
        (
            "BFGMiner 5.5.0",
            r#"{"id": "auth", "method": "mining.authorize", "params": ["u", "p"]}"#,
            Some("\"auth\""),
        ),
        (
            "BFGMiner 5.5.0",
            r#"{"id":"xnsub","method":"mining.extranonce.subscribe","params":[]}"#,
            Some("\"xnsub\""),
        ),
        ("BFGMiner 5.5.0", r#"{"id": null, "method": "mining.suggest_target", "params": ["ffff"]}"#, None),
        ("mining_device_sv1 2025-08", r#"{"id":0,"method":"mining.ping","params":[]}"#, Some("0")),
        ("beyond 53 bits", r#"{"id":9007199254740993,"method":"mining.ping"}"#, Some("9007199254740993")),
        (
            "beyond 64 bits",
            r#"{"id":99999999999999999999,"method":"mining.ping"}"#,
            Some("99999999999999999999"),
        ),
        ("absent", r#"{"method":"mining.ping"}"#, None),
    ] {
        assert_eq!(parse(line).id.token(), token, "{firmware}");
    }
}

#[test]
fn options_in_passwords() {
    for (password, difficulty) in [
        ("x", None),
        ("", None),
        ("d=1024", Some(1024.0)),
        ("diff=200", Some(200.0)),
        ("x,d=0.01", Some(0.01)),
        ("x,d=1024,diff=0.01", Some(0.01)),
        ("x;D=64", Some(64.0)),
        ("x DIFF=64", Some(64.0)),
        ("h=13.5T", None),
        ("md=5", None),
        ("d=5,d=x", Some(5.0)),
        ("d=0", None),
        ("d=-4", None),
        ("d=inf", None),
        ("d=nan", None),
        ("d==5", None),
        ("d", None),
    ] {
        assert_eq!(password_options(password).difficulty, difficulty, "{password}");
    }
}

#[test]
fn a_burst_comes_out_in_the_order_it_came() {
    // NerdQAxe++ and ESP-Miner 2.15 send everything at once.
    let burst = concat!(
        r#"{"id": 1, "method": "mining.configure", "params": [["version-rolling"], {"version-rolling.mask": "ffffffff"}]}"#,
        "\n",
        r#"{"id": 2, "method": "mining.subscribe", "params": ["bitaxe/BM1370/v2.15.0"]}"#,
        "\n",
        r#"{"id": 3, "method": "mining.authorize", "params": ["u", "x"]}"#,
        "\r\n",
        r#"{"id": 4, "method": "mining.suggest_difficulty", "params": [1000]}"#,
        "\n",
        r#"{"id": 5, "method": "mining.extranonce.subscribe", "params": []}"#,
        "\n",
    );
    let mut buffer = LineBuffer::default();
    let mut input = burst.as_bytes();
    for id in ["1", "2", "3", "4", "5"] {
        let line = buffer.next_line(&mut input).expect("JSON").expect("a line");
        assert_eq!(Request::parse(line).expect("a request").id.token(), Some(id));
    }
    assert_eq!(buffer.next_line(&mut input), Ok(None));
}

#[test]
fn a_tls_hello_is_turned_away_before_it_is_complete() {
    // BFGMiner 5.5.0 tries TLS first on every port.
    let mut buffer = LineBuffer::default();
    assert_eq!(buffer.next_line(&mut &[0x16][..]), Err(LineError::NotJson(0x16)));
}
