//! The API as its askers meet it: pages, tokens, limits, live changes and errors.

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::*;
use crate::config::Tokens;
use crate::http::view::{Fleet, PowerOf};

pub(super) const READ: &str = "a-token-that-may-read";
pub(super) const ADMIN: &str = "a-token-that-may-write";

pub(super) fn config(read: Option<&str>, admin: Option<&str>, requests_per_minute: u32) -> ApiConfig {
    let tokens = |token: Option<&str>| {
        token.map(|token| (std::path::PathBuf::new(), Tokens::parse(token).expect("a good token")))
    };
    ApiConfig {
        listen: "127.0.0.1:0".parse().expect("an address"),
        read_tokens: tokens(read),
        admin_tokens: tokens(admin),
        cors_origins: vec!["https://farm.example".to_owned()],
        requests_per_minute,
    }
}

pub(super) struct Server {
    address: SocketAddr,
    view: Arc<FakeView>,
    _trigger: ShutdownTrigger,
}

pub(super) async fn start_api(read: Option<&str>, admin: Option<&str>, requests_per_minute: u32) -> Server {
    start_with(fleet(12), config(read, admin, requests_per_minute))
}

fn start_with(fleet: Fleet, config: ApiConfig) -> Server {
    let (address, listener) = listener();
    let view = Arc::new(FakeView::new(fleet));
    let served = Served {
        view: view.clone(),
        latencies: Arc::default(),
        clock: Clock::start(),
        status: Arc::new(|| status(true)),
        max_device_series: 10,
    };
    let (trigger, end) = shutdown();
    tokio::spawn(async move { serve_api(listener, served, &config, end).await });
    Server { address, view, _trigger: trigger }
}

#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) kind: String,
    pub(super) head: String,
    pub(super) body: String,
}

/// Asks once. Of a stream of events, the body is the data of the first.
pub(super) async fn ask(server: &Server, method: &str, uri: &str, token: Option<&str>, body: &str) -> Reply {
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    ask_with(server, method, uri, &token, body).await
}

async fn ask_with(server: &Server, method: &str, uri: &str, headers: &str, body: &str) -> Reply {
    ask_at(server.address, method, uri, headers, body).await
}

/// Asks whoever serves at an address.
pub(super) async fn ask_at(address: SocketAddr, method: &str, uri: &str, headers: &str, body: &str) -> Reply {
    let method = method.to_uppercase();
    let length = body.len();
    let host = if headers.contains("Host:") { "" } else { "Host: 127.0.0.1\r\n" };
    let request = format!(
        "{method} {uri} HTTP/1.1\r\n{host}Connection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    );
    let mut stream = BufReader::new(TcpStream::connect(address).await.expect("it listens"));
    stream.write_all(request.as_bytes()).await.expect("open");
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(stream.read_line(&mut head).await.expect("text") > 0, "the head ends: {head}");
    }
    let head = head.to_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let kind = header_of(&head, "content-type").unwrap_or_default();
    let body = if kind.starts_with("text/event-stream") {
        next_event(&mut stream).await
    } else {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.expect("it ends");
        let is_chunked = header_of(&head, "transfer-encoding").is_some_and(|coding| coding == "chunked");
        String::from_utf8(if is_chunked { unchunk(&bytes) } else { bytes }).expect("text")
    };
    Reply { status, kind, head, body }
}

fn header_of(head: &str, name: &str) -> Option<String> {
    let line = head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    line.map(str::to_owned)
}

fn unchunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    loop {
        let end = bytes.windows(2).position(|pair| pair == b"\r\n").expect("a length");
        let length = std::str::from_utf8(&bytes[..end]).expect("text");
        let length = usize::from_str_radix(length, 16).expect("a length");
        if length == 0 {
            return whole;
        }
        whole.extend_from_slice(&bytes[end + 2..end + 2 + length]);
        bytes = &bytes[end + 4 + length..];
    }
}

async fn next_event(stream: &mut BufReader<TcpStream>) -> String {
    loop {
        let mut line = String::new();
        assert!(stream.read_line(&mut line).await.expect("text") > 0, "the stream goes on");
        if let Some(data) = line.strip_prefix("data: ") {
            return data.trim_end().to_owned();
        }
    }
}

async fn get(server: &Server, uri: &str) -> Value {
    let answer = ask(server, "get", uri, None, "").await;
    assert_eq!(answer.status, 200, "{uri}: {}", answer.body);
    serde_json::from_str(&answer.body).expect("JSON")
}

async fn refused(server: &Server, uri: &str) -> u16 {
    ask(server, "get", uri, None, "").await.status
}

/// Walks all pages; the names in their order.
async fn walk(server: &Server, query: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = get(server, &format!("/api/v1/devices?{query}{cursor}")).await;
        let devices = page["devices"].as_array().expect("a list");
        names.extend(devices.iter().map(|device| device["name"].as_str().expect("a name").to_owned()));
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return names,
        }
        assert!(names.len() <= 100, "the walk ends");
    }
}

#[tokio::test]
async fn pages_meet_every_device_once_in_every_order() {
    let server = start_with(fleet(25), config(None, None, 60_000));
    let all: BTreeSet<String> = (0..25).map(|number| format!("farm.rig{number}")).collect();
    for sort in ["name", "number", "accepted", "hash_rate_1m", "last_share", "best_difficulty", "efficiency"]
    {
        for order in ["asc", "desc"] {
            for limit in [1, 4, 25, 1000] {
                let names = walk(&server, &format!("sort={sort}&order={order}&limit={limit}")).await;
                assert_eq!(names.len(), 25, "{sort} {order} {limit}");
                assert_eq!(names.iter().cloned().collect::<BTreeSet<_>>(), all);
            }
        }
    }
    let ascending = walk(&server, "sort=accepted_work&limit=4").await;
    let mut descending = walk(&server, "sort=accepted_work&order=desc&limit=7").await;
    descending.reverse();
    assert_eq!(ascending, descending);
    assert_eq!(ascending[24], "farm.rig24");
    assert_eq!(walk(&server, "group=hall%20a/1&limit=5").await.len(), 13);
    assert_eq!(walk(&server, "filter=RIG1").await.len(), 11);
    assert_eq!(walk(&server, "filter=nobody").await.len(), 0);
}

#[tokio::test]
async fn a_cursor_of_another_order_is_refused() {
    let server = start_with(fleet(5), config(None, None, 60_000));
    let page = get(&server, "/api/v1/devices?limit=2").await;
    let next = page["next"].as_str().expect("there are more");
    assert_eq!(refused(&server, &format!("/api/v1/devices?limit=2&cursor={next}")).await, 200);
    for wrong in ["sort=accepted", "order=desc"] {
        assert_eq!(refused(&server, &format!("/api/v1/devices?{wrong}&cursor={next}")).await, 400);
    }
    for wrong in
        ["cursor=x", "cursor=00", "limit=0", "limit=1001", "sort=colour", "from=yesterday", "limit=1&limit=2"]
    {
        assert_eq!(refused(&server, &format!("/api/v1/devices?{wrong}")).await, 400, "{wrong}");
    }
}

#[tokio::test]
async fn figures_are_exact_and_the_unknown_is_null() {
    let server = start_api(None, None, 60_000).await;
    let answer = ask(&server, "get", "/api/v1/devices/farm.rig2", None, "").await;
    // 18 times 2^70, digit by digit: beyond what a float holds.
    assert!(answer.body.contains("\"accepted_hashes\":21250649172913403461632"), "{}", answer.body);
    let device: Value = serde_json::from_str(&answer.body).expect("JSON");
    assert_eq!(device["shares"]["submitted"], 20);
    assert_eq!(device["shares"]["rejected"]["stale"], 2);
    assert_eq!(device["shares"]["rejected"]["duplicate"], 0);
    assert_eq!(device["hash_rate"]["accepted"]["1h"], Value::Null);
    assert_eq!(device["energy"]["energy_j"], 7200.0);
    assert_eq!(device["last_seen"], "2026-11-25T11:59:59.000000Z");
    let other = get(&server, "/api/v1/devices/farm.rig1").await;
    assert_eq!(other["last_share"], Value::Null);
    assert_eq!(other["energy"]["energy_j"], Value::Null);
    assert_eq!(other["shares"]["submitted"], 0);
    let of_period =
        get(&server, "/api/v1/devices/farm.rig0?from=2026-11-25T11:00:00Z&to=2026-11-25T12:00:00Z").await;
    assert_eq!(of_period["shares"]["submitted"], 70);
    assert_eq!(of_period["period_hash_rate"]["window_seconds"], 3600.0);
    assert_eq!(refused(&server, "/api/v1/devices/nobody").await, 404);
    assert_eq!(refused(&server, "/api/v1/devices/nobody/series").await, 404);
    assert_eq!(refused(&server, "/api/v1/fleet/series?level=minute&from=2026-01-01T00:00:00Z").await, 400);
}

#[tokio::test]
async fn rejects_say_what_they_cost() {
    let server = start_with(fleet(3), config(None, None, 60_000));
    let rejects = get(&server, "/api/v1/rejects").await;
    let stale = &rejects["rejected"][0];
    assert_eq!((&stale["reason"], &stale["shares"]), (&json!("stale"), &json!(2)));
    let terahashes = 2.0 * 2f64.powi(70) / 1e12;
    let close = |value: &Value, wanted: f64| (value.as_f64().expect("known") / wanted - 1.0).abs() < 1e-9;
    assert!(close(&stale["work_th"], terahashes), "{stale}");
    // 7200 joules for 18 times 2^70 hashes.
    assert!(close(&stale["energy_kwh"], 7200.0 / 9.0 / 3.6e6), "{stale}");
    assert!(close(&stale["value_sats"], terahashes * 0.5), "{stale}");
    assert_eq!(rejects["rejected_by_upstream_code"][0]["work_th"], Value::Null);
}

#[tokio::test]
async fn tokens_are_asked_for_and_roles_are_kept() {
    let server = start_api(Some(READ), None, 60_000).await;
    let answer = ask(&server, "get", "/api/v1/fleet", None, "").await;
    assert_eq!((answer.status, &*answer.kind), (401, "application/problem+json"));
    assert!(answer.head.contains("www-authenticate: bearer"), "{}", answer.head);
    assert_eq!(ask(&server, "get", "/api/v1/fleet", Some(READ), "").await.status, 200);
    assert_eq!(
        ask_with(&server, "get", "/api/v1/fleet", &format!("Authorization: {READ}\r\n"), "").await.status,
        401
    );
    let prefix = &READ[..READ.len() - 1];
    assert_eq!(ask(&server, "get", "/metrics", Some(prefix), "").await.status, 401);
    assert_eq!(ask(&server, "post", "/api/v1/power", Some(READ), "[]").await.status, 403);
}

/// A web page that calls itself by our address (DNS rebinding) must not read along, and nobody may write.
#[tokio::test]
async fn without_a_token_only_this_machine_reads() {
    let server = start_api(None, None, 60_000).await;
    for host in ["127.0.0.1:9850", "localhost", "LOCALHOST:1", "[::1]:9850", "127.0.0.9"] {
        let answer = ask_with(&server, "get", "/api/v1/fleet", &format!("Host: {host}\r\n"), "").await;
        assert_eq!(answer.status, 200, "{host}");
    }
    for host in ["evil.example", "localhost.evil.example", "192.0.2.1", ""] {
        let answer = ask_with(&server, "get", "/api/v1/fleet", &format!("Host: {host}\r\n"), "").await;
        assert_eq!(answer.status, 403, "{host}");
    }
    let reading = r#"[{"device":"farm.rig0","power_w":1.0,"source":"meter"}]"#;
    assert_eq!(ask(&server, "post", "/api/v1/power", None, reading).await.status, 403);
    assert!(server.view.readings.lock().expect("nobody panicked").is_empty());
}

#[tokio::test]
async fn power_readings_are_taken_all_or_none() {
    let server = start_api(None, Some(ADMIN), 60_000).await;
    let post = async |body: &str| ask(&server, "post", "/api/v1/power", Some(ADMIN), body).await;
    let good = r#"{"device":"farm.rig0","power_w":3250.5,"source":"meter","at":"1970-01-01T00:00:01Z"}"#;
    for (wrong, why) in [
        (r#"{"power_w":1,"source":"meter"}"#, "device or group"),
        (r#"{"device":"a","group":"b","power_w":1,"source":"meter"}"#, "device or group"),
        (r#"{"device":"a","power_w":-1,"source":"meter"}"#, "power_w"),
        (r#"{"device":"a","power_w":1,"source":"nameplate"}"#, "source"),
        (r#"{"device":"a","power_w":1,"source":"meter","at":"now"}"#, "at must"),
        (r#"{"device":"a","power_w":1,"source":"meter","valid_for_seconds":0}"#, "valid_for_seconds"),
        (r#"{"device":"a","power_w":1,"source":"meter","colour":1}"#, "colour"),
        (r#"{"device":"a","power_w":1e999,"source":"meter"}"#, "body"),
    ] {
        let answer = post(&format!("[{good},{wrong}]")).await;
        assert_eq!(answer.status, 400, "{wrong}");
        assert!(answer.body.contains(why), "{wrong}: {}", answer.body);
    }
    assert_eq!(post("[]").await.status, 400);
    assert_eq!(post(&format!("[{good},{}]", good.replace("farm.rig0", "nobody"))).await.status, 404);
    assert_eq!(post(&" ".repeat(2 * 1024 * 1024)).await.status, 413);
    assert!(server.view.readings.lock().expect("nobody panicked").is_empty());
    let answer = post(&format!("[{good}]")).await;
    assert_eq!((answer.status, &*answer.body), (200, "{\"readings\":1}"));
    let readings = server.view.readings.lock().expect("nobody panicked");
    assert_eq!(readings[0].of, PowerOf::Device("farm.rig0".to_owned()));
    assert_eq!(
        (readings[0].power_w, readings[0].at_us, readings[0].valid_for_seconds),
        (3250.5, 1_000_000, 300)
    );
}

#[tokio::test]
async fn who_asks_too_often_is_told_when_to_come_back() {
    let server = start_api(None, None, 3).await;
    for _ in 0..3 {
        assert_eq!(refused(&server, "/api/v1/ledger").await, 200);
    }
    let answer = ask(&server, "get", "/api/v1/ledger", None, "").await;
    assert_eq!((answer.status, &*answer.kind), (429, "application/problem+json"));
    let after: u64 =
        header_of(&answer.head, "retry-after").and_then(|after| after.parse().ok()).expect("seconds");
    assert!((1..=20).contains(&after), "{after}");
}

#[tokio::test]
async fn only_named_origins_may_ask_from_a_browser() {
    let server = start_api(None, None, 60_000).await;
    for method in ["get", "options"] {
        let named = "Origin: https://farm.example\r\n";
        let answer = ask_with(&server, method, "/api/v1/fleet", named, "").await;
        assert!(answer.head.contains("access-control-allow-origin: https://farm.example"), "{}", answer.head);
        for origin in ["https://evil.example", "null"] {
            let other = format!("Origin: {origin}\r\n");
            let answer = ask_with(&server, method, "/api/v1/fleet", &other, "").await;
            assert!(!answer.head.contains("access-control"), "{}", answer.head);
        }
    }
}

#[tokio::test]
async fn every_error_is_a_problem() {
    let server = start_api(None, None, 60_000).await;
    let long = format!("/api/v1/devices?filter={}", "x".repeat(5000));
    for (method, uri, status) in [
        ("get", "/", 404),
        ("get", "/api/v2/devices", 404),
        ("delete", "/api/v1/devices", 405),
        ("get", "/api/v1/power", 405),
        ("get", &long, 414),
        ("get", "/api/v1/clients/x", 404),
    ] {
        let answer = ask(&server, method, uri, None, "").await;
        assert_eq!((answer.status, &*answer.kind), (status, "application/problem+json"), "{method} {uri}");
        let problem: Value = serde_json::from_str(&answer.body).expect("JSON");
        assert_eq!(problem["status"], status);
    }
}

#[tokio::test]
async fn a_stream_shows_changes_and_streams_are_bounded() {
    let server = start_api(None, None, 60_000).await;
    let mut streams = Vec::new();
    for _ in 0..crate::http::live::MAX_STREAMS {
        let mut stream = BufReader::new(TcpStream::connect(server.address).await.expect("it listens"));
        stream.write_all(b"GET /api/v1/live HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("open");
        let first: Value = serde_json::from_str(&next_event(&mut stream).await).expect("JSON");
        assert_eq!((&first["devices"], &first["has_more"]), (&json!([]), &json!(false)));
        streams.push(stream);
    }
    let answer = ask(&server, "get", "/api/v1/live", None, "").await;
    assert_eq!((answer.status, &*answer.kind), (503, "application/problem+json"));
    let mut changed = fleet(12);
    changed.devices[3].sums.shares.submitted += 1;
    *server.view.fleet.lock().expect("nobody panicked") = Arc::new(changed);
    let mut stream = streams.pop().expect("there are some");
    loop {
        let change: Value = serde_json::from_str(&next_event(&mut stream).await).expect("JSON");
        if change["devices"] != json!([]) {
            assert_eq!(change["devices"].as_array().map(Vec::len), Some(1));
            assert_eq!(change["devices"][0]["name"], "farm.rig3");
            break;
        }
    }
}

/// As a dashboard of the reference implementation asks.
#[tokio::test]
async fn devices_of_each_protocol_are_clients_of_theirs() {
    let server = start_with(fleet(60), config(None, None, 60_000));
    let global = get(&server, "/api/v1/global").await;
    assert_eq!(
        (&global["sv1_clients"]["total_clients"], &global["sv2_clients"]["total_clients"]),
        (&json!(20), &json!(20)),
        "the other twenty are not connected"
    );
    let page = get(&server, "/api/v1/sv1/clients?offset=10&limit=25").await;
    assert_eq!((&page["total"], page["items"].as_array().map(Vec::len)), (&json!(20), Some(10)));
    let client = get(&server, "/api/v1/sv1/clients/4").await;
    assert_eq!((&client["connection_ip"], &client["sv1_worker_name"]), (&json!("10.0.0.7"), &json!("rig4")));
    // Work of 2^40 is a target of 2^216 - 1.
    assert_eq!(client["target_hex"], format!("{}{}", "0".repeat(10), "f".repeat(54)));
    assert_eq!(client["extranonce2_len"], 4);
    assert_eq!(refused(&server, "/api/v1/sv1/clients/2").await, 404, "that one is not connected");
    let channel = &get(&server, "/api/v1/server/channels").await["extended_channels"][0];
    assert_eq!(
        (&channel["version_rolling"], &channel["rollable_extranonce_size"]),
        (&json!(true), &json!(16))
    );
    assert_eq!(channel["target_hex"].as_str().map(str::len), Some(64));
    assert_eq!(channel["shares_rejected_by_reason"]["stale-share"], channel["shares_rejected"]);
    assert_eq!(refused(&server, "/api/v1/sv1/clients/0").await, 404, "that one speaks SV2");
    assert_eq!(get(&server, "/api/v1/clients?limit=5000").await["limit"], 1000);
    let items = page["items"].as_array().expect("a list");
    let powered =
        items.iter().find(|client| !client["miner_telemetry"].is_null()).expect("some have a meter");
    assert_eq!(powered["miner_telemetry_status"], "matched");
    assert!(powered["miner_telemetry"]["power_consumption_w"].as_f64().is_some_and(|watts| watts > 0.0));
}
