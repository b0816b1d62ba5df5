//! The conversations of real miners, as files, with our proxy and our pool over real sockets.
//!
//! A trace is written from what the firmware was seen to send. One step a line:
//!
//! ```text
//! connect     dial, and forget the connection before
//! > TEXT      send a line; >> TEXT holds it back and sends it together with the next one
//! x HEX       send bytes
//! < JSON      the next answer must be this, with "*" for anything; notifications may come before it
//! <! JSON     the very next line must be this
//! job         a job must have come by now, or comes
//! again ID    send the last submission again under this id
//! closed      the server must close the connection
//! ```
//!
//! `$JOB`, `$EN2`, `$NTIME` (`$NTIME+SECONDS`), `$NONCE` and `$SHORT` (the nonce without leading zeros) stand for a
//! share that is found by hashing what the server sent; `$SESSION` for the session of the connection before.

#[path = "support/farm.rs"]
mod farm;

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use farm::{DEADLINE, chain, start_pool, start_proxy, vardiff};
use serde_json::Value;
use stratum::Target;
use stratum::sv1::client::{Notify, Response, RolledVersion, ServerLine, Solution};

/// 256 hashes a share.
const EXPONENT: i32 = -24;

/// Hashes for a block: none is found.
const HASHES_PER_BLOCK: u64 = 1 << 40;

macro_rules! traces {
    ($($name:ident: $file:literal,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                replay(include_str!(concat!("traces/", $file, ".txt"))).await;
            }
        )*
    };
}

traces! {
    minerd_2_5_1: "minerd-2.5.1",
    cpuminer_opt_26_1: "cpuminer-opt-26.1",
    bfgminer_5_5_0: "bfgminer-5.5.0",
    cgminer_4_11_1_with_vmask: "cgminer-4.11.1-vmask",
    cgminer_2_11_4: "cgminer-2.11.4",
    mujina_2026_08: "mujina-2026-08",
    esp_miner_2_15: "esp-miner-2.15",
    mining_device_sv1_2025_08: "mining_device_sv1-2025-08",
    nerdminer_1_8_3: "nerdminer-1.8.3",
    nerdqaxe_1_0: "nerdqaxe-1.0",
}

/// Plays a trace with a pool, and with proxies of both kinds before it.
async fn replay(trace: &'static str) {
    let pool = start_pool(&chain(HASHES_PER_BLOCK), vardiff(EXPONENT), None);
    let aggregated = start_proxy(pool.sv2, true, vardiff(EXPONENT));
    let per_device = start_proxy(pool.sv2, false, vardiff(EXPONENT));
    for server in [pool.sv1, aggregated.sv1, per_device.sv1] {
        let played = tokio::task::spawn_blocking(move || Player::new(server).play(trace));
        played.await.expect("the trace replays");
    }
    let shares = shares_of(trace);
    for role in [per_device, aggregated] {
        role.wait_for("every share is recorded", |totals| totals.shares.accepted == shares).await;
        role.stop().await;
    }
    pool.stop().await;
}

/// How many submissions a trace expects to be accepted: what is granted, less what is granted to other requests.
fn shares_of(trace: &str) -> u64 {
    let granted =
        trace.lines().filter(|line| line.starts_with('<') && line.contains("\"result\":true")).count();
    let others = ["mining.authorize", "mining.extranonce.subscribe", "mining.suggest_difficulty"];
    let is_other = |line: &&str| line.starts_with('>') && others.iter().any(|method| line.contains(method));
    (granted - trace.lines().filter(is_other).count()) as u64
}

/// A miner that does what its trace says.
struct Player {
    server: SocketAddr,
    stream: Option<BufReader<TcpStream>>,
    held_back: String,
    session: String,
    extranonce1: Vec<u8>,
    difficulty: f64,
    mask: u32,
    job: Option<(Notify, f64)>,
    /// Every job id that it was ever sent by this server.
    job_ids: HashSet<String>,
    next_extranonce2: u32,
    last_submission: String,
}

impl Player {
    fn new(server: SocketAddr) -> Self {
        Player {
            server,
            stream: None,
            held_back: String::new(),
            session: String::new(),
            extranonce1: Vec::new(),
            difficulty: f64::NAN,
            mask: 0,
            job: None,
            job_ids: HashSet::new(),
            next_extranonce2: 0,
            last_submission: String::new(),
        }
    }

    /// Plays every step.
    fn play(mut self, trace: &str) {
        for step in trace.lines().filter(|line| !line.starts_with('#')) {
            let (what, rest) = step.split_once(' ').unwrap_or((step, ""));
            match what {
                "connect" => self.connect(),
                ">>" => self.hold_back(rest),
                ">" => self.send(rest),
                "x" => self.write(&hex::decode(rest).expect("hexadecimal")),
                "<" => self.expect(rest, false),
                "<!" => self.expect(rest, true),
                "job" => self.wait_for_job(),
                "again" => self.send_again(rest),
                "closed" => self.expect_end(),
                _ => panic!("no step: {step}"),
            }
        }
    }

    fn connect(&mut self) {
        let stream = TcpStream::connect(self.server).expect("the server listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        self.stream = Some(BufReader::new(stream));
        (self.job, self.mask) = (None, 0);
    }

    fn hold_back(&mut self, text: &str) {
        let line = self.filled(text);
        self.held_back.push_str(&line);
        self.held_back.push('\n');
        if line.contains("mining.submit") {
            self.last_submission = line;
        }
    }

    fn send(&mut self, text: &str) {
        self.hold_back(text);
        let bytes = std::mem::take(&mut self.held_back);
        self.write(bytes.as_bytes());
    }

    fn send_again(&mut self, id: &str) {
        let mut line: Value = serde_json::from_str(&self.last_submission).expect("JSON");
        line["id"] = id.parse::<u64>().expect("a number").into();
        self.write(format!("{line}\n").as_bytes());
    }

    fn write(&mut self, bytes: &[u8]) {
        self.stream().get_mut().write_all(bytes).expect("the server reads");
    }

    fn stream(&mut self) -> &mut BufReader<TcpStream> {
        self.stream.as_mut().expect("a trace connects first")
    }

    /// Reads one line and does with it what a miner does.
    fn read(&mut self) -> String {
        let mut line = String::new();
        self.stream().read_line(&mut line).expect("the server says something in time");
        assert!(line.ends_with('\n'), "the server closed the connection");
        match ServerLine::parse(line.as_bytes()).expect("a line that miners understand") {
            ServerLine::Notify(notify) => {
                assert!(self.job_ids.insert(notify.job_id.clone()), "{} came twice", notify.job_id);
                self.job = Some((notify, self.difficulty));
            }
            ServerLine::SetDifficulty(difficulty) => self.difficulty = difficulty,
            ServerLine::SetVersionMask(mask) => self.mask = mask,
            ServerLine::Response(response) => self.understand(&response),
            other => panic!("nobody asked for {other:?}"),
        }
        line
    }

    fn understand(&mut self, response: &Response) {
        if let Some(mask) = response.granted_mask() {
            self.mask = mask;
        }
        if let Some(subscribed) = response.subscribed() {
            self.session = subscribed.session;
            self.extranonce1 = subscribed.extranonce.extranonce1;
        }
    }

    fn expect(&mut self, expected: &str, at_once: bool) {
        let expected: Value = serde_json::from_str(expected).expect("a trace expects JSON");
        loop {
            let line = self.read();
            let value: Value = serde_json::from_str(&line).expect("JSON");
            if at_once || value.get("method").is_none() {
                assert!(is_like(&value, &expected), "{line} is not {expected}");
                return;
            }
        }
    }

    fn wait_for_job(&mut self) {
        while self.job.is_none() {
            self.read();
        }
    }

    fn expect_end(&mut self) {
        let mut rest = Vec::new();
        let ended = self.stream().read_to_end(&mut rest);
        // What we sent and the server never read makes the end a reset.
        let is_end = ended
            .as_ref()
            .map_or_else(|error| error.kind() == std::io::ErrorKind::ConnectionReset, |length| *length == 0);
        assert!(is_end, "{ended:?}");
    }

    /// A line with its share found.
    fn filled(&mut self, text: &str) -> String {
        let text = text.replace("$SESSION", &self.session);
        if !text.contains('$') {
            return text;
        }
        let (job, difficulty) = self.job.clone().expect("a trace waits for a job");
        let later = match text.split_once("$NTIME+") {
            Some((_, rest)) => rest.split('"').next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0),
            None => 0,
        };
        let ntime = job.ntime + later;
        self.next_extranonce2 += 1;
        let extranonce2 = self.next_extranonce2.to_be_bytes();
        let rolled = self.rolled(&text);
        let nonce = self.found(&job, difficulty, &extranonce2, ntime, rolled);
        text.replace("$JOB", &job.job_id)
            .replace("$EN2", &hex::encode(extranonce2))
            .replace(&format!("$NTIME+{later}"), &format!("{ntime:08x}"))
            .replace("$NTIME", &format!("{ntime:08x}"))
            .replace("$NONCE", &format!("{nonce:08x}"))
            .replace("$SHORT", &format!("{nonce:x}"))
    }

    /// The version bits that a submission of six parameters names.
    fn rolled(&self, text: &str) -> Option<RolledVersion> {
        let submission: Value = serde_json::from_str(text).ok()?;
        let bits = u32::from_str_radix(submission["params"][5].as_str()?, 16).expect("hexadecimal");
        Some(RolledVersion { mask: self.mask, bits })
    }

    fn found(
        &self,
        job: &Notify,
        difficulty: f64,
        extranonce2: &[u8],
        ntime: u32,
        version_rolling: Option<RolledVersion>,
    ) -> u32 {
        let target = Target::from_difficulty_exponent(difficulty.log2() as i32);
        let is_share = |nonce: &u32| {
            let solution = Solution { extranonce2, ntime, nonce: *nonce, version_rolling };
            target.is_met_by(&job.hash(&self.extranonce1, &solution))
        };
        (0..).find(is_share).expect("the difficulty of these tests is low")
    }
}

/// Whether a value is what a trace expects, with `"*"` for anything.
fn is_like(value: &Value, expected: &Value) -> bool {
    match (value, expected) {
        (_, Value::String(any)) if any == "*" => true,
        (Value::Array(values), Value::Array(expected)) => {
            values.len() == expected.len()
                && values.iter().zip(expected).all(|(value, expected)| is_like(value, expected))
        }
        (Value::Object(values), Value::Object(expected)) => {
            values.len() == expected.len()
                && expected
                    .iter()
                    .all(|(key, expected)| values.get(key).is_some_and(|value| is_like(value, expected)))
        }
        _ => value == expected,
    }
}
