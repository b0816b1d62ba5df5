//! SV1 as a miner sees it: what a server says, what to answer, and how a job becomes a header. For our own CPU
//! miners, load tests and simulations.
//!
//! The way from a `mining.notify` to a hash shares no code with [`Job`](crate::Job): where both agree, the wire
//! format is right and not only consistent.
//!
//! This module never keeps the state of a connection: which extranonce and which mask are in force is the
//! miner's to remember.

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{hexadecimal, json};

/// The longest line that a miner of ours takes from a server: a coinbase of 16 kB, as some rental firmware allows,
/// is 32 kB of hexadecimal digits.
pub const MAX_SERVER_LINE_BYTES: usize = 64 * 1024;

/// The longest coinbase part, and `extranonce1`, that is taken; a line has no room for more.
const MAX_COINBASE_BYTES: usize = MAX_SERVER_LINE_BYTES / 2;

/// The most siblings of the coinbase in a job that is taken: 2^32 transactions.
const MAX_BRANCHES: usize = 32;

/// One line of a server.
#[derive(Clone, Debug, PartialEq)]
pub enum ServerLine {
    /// A new job.
    Notify(Notify),
    /// The difficulty of the jobs that follow; above 0.
    SetDifficulty(f64),
    /// The version bits that may be rolled from the next job on.
    SetVersionMask(u32),
    /// Another extranonce for the jobs that follow.
    SetExtranonce(Extranonce),
    /// A wish that we connect again.
    Reconnect,
    /// A ping, to be answered with [`pong`].
    Ping {
        /// The id to answer with.
        id: Value,
    },
    /// A question for our software, to be answered with [`version`].
    GetVersion {
        /// The id to answer with.
        id: Value,
    },
    /// An answer to a request of ours.
    Response(Response),
    /// A notification that we do not know.
    Other(String),
}

/// An answer to a request of ours.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// The id of our request; `None` when the server sends none or another one than a number.
    pub id: Option<u64>,
    /// The result, null when absent.
    pub result: Value,
    /// The error, when there is one.
    pub error: Option<ResponseError>,
}

/// The error in an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseError {
    /// Its number, 0 when the server gives none.
    pub code: i64,
    /// Its text, or the error as it came.
    pub message: String,
}

/// What the server gives a miner to tell its coinbases from others'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extranonce {
    /// Fixed bytes.
    pub extranonce1: Vec<u8>,
    /// How many bytes the miner rolls after them; at most 32.
    pub extranonce2_size: usize,
}

/// The answer to `mining.subscribe`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribed {
    /// The session to resume after a lost connection: the id of the `mining.notify` subscription.
    pub session: String,
    /// The extranonce of the connection.
    pub extranonce: Extranonce,
}

/// A line that a server must not send.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServerLineError {
    /// It is no JSON object.
    #[error("the line is no JSON object")]
    NotJson,
    /// Parameters are missing or malformed.
    #[error("malformed {0}")]
    Malformed(&'static str),
}

impl ServerLine {
    /// Reads one line.
    pub fn parse(line: &[u8]) -> Result<Self, ServerLineError> {
        let value: Value = serde_json::from_slice(line).map_err(|_| ServerLineError::NotJson)?;
        let Value::Object(object) = &value else { return Err(ServerLineError::NotJson) };
        let Some(method) = object.get("method").and_then(Value::as_str) else {
            return Ok(ServerLine::Response(Response::of(&value)));
        };
        let params = &value["params"];
        let id = value["id"].clone();
        Ok(match method {
            "mining.notify" => {
                ServerLine::Notify(Notify::of(params).ok_or(ServerLineError::Malformed("mining.notify"))?)
            }
            "mining.set_difficulty" => ServerLine::SetDifficulty(
                params[0]
                    .as_f64()
                    .filter(|difficulty| *difficulty > 0.0)
                    .ok_or(ServerLineError::Malformed("mining.set_difficulty"))?,
            ),
            "mining.set_version_mask" => ServerLine::SetVersionMask(
                hex_number(&params[0]).ok_or(ServerLineError::Malformed("mining.set_version_mask"))?,
            ),
            "mining.set_extranonce" => ServerLine::SetExtranonce(
                Extranonce::of(&params[0], &params[1])
                    .ok_or(ServerLineError::Malformed("mining.set_extranonce"))?,
            ),
            "client.reconnect" => ServerLine::Reconnect,
            "mining.ping" => ServerLine::Ping { id },
            "client.get_version" => ServerLine::GetVersion { id },
            other => ServerLine::Other(other.to_owned()),
        })
    }
}

impl Response {
    fn of(value: &Value) -> Self {
        let error = match &value["error"] {
            Value::Null => None,
            Value::Array(parts) => Some(ResponseError {
                code: parts.first().and_then(Value::as_i64).unwrap_or(0),
                message: parts.get(1).and_then(Value::as_str).unwrap_or_default().to_owned(),
            }),
            other => Some(ResponseError { code: 0, message: other.to_string() }),
        };
        Response { id: value["id"].as_u64(), result: value["result"].clone(), error }
    }

    /// True when the request was granted.
    pub fn accepted(&self) -> bool {
        self.error.is_none() && self.result == Value::Bool(true)
    }

    /// The answer to `mining.subscribe`; `None` when it is none.
    pub fn subscribed(&self) -> Option<Subscribed> {
        let subscriptions = self.result.get(0)?.as_array()?;
        let session = subscriptions
            .iter()
            .find(|pair| pair.get(0).and_then(Value::as_str) == Some("mining.notify"))
            .and_then(|pair| pair.get(1))
            .and_then(Value::as_str);
        Some(Subscribed {
            session: session.unwrap_or_default().to_owned(),
            extranonce: Extranonce::of(self.result.get(1)?, self.result.get(2)?)?,
        })
    }

    /// The mask in an answer to `mining.configure`; `None` when version rolling was refused.
    pub fn granted_mask(&self) -> Option<u32> {
        if self.result.get("version-rolling")? != &Value::Bool(true) {
            return None;
        }
        hex_number(self.result.get("version-rolling.mask")?)
    }
}

impl Extranonce {
    fn of(extranonce1: &Value, size: &Value) -> Option<Self> {
        let extranonce2_size = usize::try_from(size.as_u64()?).ok().filter(|size| *size <= 32)?;
        Some(Extranonce { extranonce1: hex_bytes(extranonce1)?, extranonce2_size })
    }
}

/// A job as `mining.notify` carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notify {
    /// What a share names it by.
    pub job_id: String,
    /// The previous block's hash, in internal byte order.
    pub previous_hash: [u8; 32],
    /// The coinbase before the extranonce.
    pub coinb1: Vec<u8>,
    /// The coinbase after the extranonce.
    pub coinb2: Vec<u8>,
    /// Siblings of the coinbase, lowest first, in internal byte order.
    pub merkle_branches: Vec<[u8; 32]>,
    /// The version before rolling.
    pub version: u32,
    /// The compact network target.
    pub nbits: u32,
    /// The time to start from.
    pub ntime: u32,
    /// True when earlier jobs must be dropped.
    pub clean: bool,
}

/// What a miner adds to a [`Notify`] to make a share of it.
#[derive(Clone, Copy, Debug)]
pub struct Solution<'a> {
    /// The rolled bytes.
    pub extranonce2: &'a [u8],
    /// The header's time.
    pub ntime: u32,
    /// The header's nonce.
    pub nonce: u32,
    /// The rolled version bits with the mask that they were rolled under; `None` without version rolling.
    pub version_rolling: Option<RolledVersion>,
}

/// Version bits, and the mask that they were rolled under.
#[derive(Clone, Copy, Debug)]
pub struct RolledVersion {
    /// The bits that may be rolled.
    pub mask: u32,
    /// The rolled bits; those outside the mask count for nothing (BIP 310).
    pub bits: u32,
}

impl Notify {
    fn of(params: &Value) -> Option<Self> {
        let params = params.as_array().filter(|params| params.len() >= 9)?;
        let branches = params[4].as_array().filter(|branches| branches.len() <= MAX_BRANCHES)?;
        let mut previous_hash = hash(&params[1])?;
        for word in previous_hash.chunks_exact_mut(4) {
            word.swap(0, 3);
            word.swap(1, 2);
        }
        Some(Notify {
            job_id: params[0].as_str()?.to_owned(),
            previous_hash,
            coinb1: hex_bytes(&params[2])?,
            coinb2: hex_bytes(&params[3])?,
            merkle_branches: branches.iter().map(hash).collect::<Option<_>>()?,
            version: hex_number(&params[5])?,
            nbits: hex_number(&params[6])?,
            ntime: hex_number(&params[7])?,
            clean: params.last()?.as_bool()?,
        })
    }

    /// The 80-byte header of a solution.
    pub fn header(&self, extranonce1: &[u8], solution: &Solution<'_>) -> [u8; 80] {
        let coinbase = [&self.coinb1, extranonce1, solution.extranonce2, &self.coinb2].concat();
        let mut root = twice_sha256(&coinbase);
        for branch in &self.merkle_branches {
            root = twice_sha256(&[root, *branch].concat());
        }
        let version = match solution.version_rolling {
            Some(rolled) => (self.version & !rolled.mask) | (rolled.bits & rolled.mask),
            None => self.version,
        };
        let mut header = Vec::with_capacity(80);
        header.extend_from_slice(&version.to_le_bytes());
        header.extend_from_slice(&self.previous_hash);
        header.extend_from_slice(&root);
        header.extend_from_slice(&solution.ntime.to_le_bytes());
        header.extend_from_slice(&self.nbits.to_le_bytes());
        header.extend_from_slice(&solution.nonce.to_le_bytes());
        header.try_into().expect("4 + 32 + 32 + 4 + 4 + 4 bytes are 80")
    }

    /// The block hash of a solution, in internal byte order.
    pub fn hash(&self, extranonce1: &[u8], solution: &Solution<'_>) -> [u8; 32] {
        twice_sha256(&self.header(extranonce1, solution))
    }
}

/// Writes `mining.configure`; no mask asks for no extension.
pub fn configure(out: &mut Vec<u8>, id: u64, mask: Option<u32>) {
    match mask {
        Some(mask) => request(
            out,
            id,
            "mining.configure",
            format_args!("[\"version-rolling\"],{{\"version-rolling.mask\":\"{mask:08x}\"}}"),
        ),
        None => request(out, id, "mining.configure", format_args!("[],{{}}")),
    }
}

/// Writes `mining.subscribe`, with a session to resume where there is one.
pub fn subscribe(out: &mut Vec<u8>, id: u64, user_agent: &str, session: Option<&str>) {
    begin(out, id, "mining.subscribe");
    json::write_text(out, user_agent);
    if let Some(session) = session {
        out.push(b',');
        json::write_text(out, session);
    }
    out.extend_from_slice(b"]}\n");
}

/// Writes `mining.authorize`.
pub fn authorize(out: &mut Vec<u8>, id: u64, user: &str, password: &str) {
    begin(out, id, "mining.authorize");
    json::write_text(out, user);
    out.push(b',');
    json::write_text(out, password);
    out.extend_from_slice(b"]}\n");
}

/// Writes `mining.suggest_difficulty`.
pub fn suggest_difficulty(out: &mut Vec<u8>, id: u64, difficulty: f64) {
    request(out, id, "mining.suggest_difficulty", format_args!("{difficulty}"));
}

/// Writes `mining.extranonce.subscribe`.
pub fn extranonce_subscribe(out: &mut Vec<u8>, id: u64) {
    request(out, id, "mining.extranonce.subscribe", format_args!(""));
}

/// Writes `mining.submit`: six parameters with version rolling, five without.
pub fn submit(out: &mut Vec<u8>, id: u64, user: &str, job_id: &str, solution: &Solution<'_>) {
    begin(out, id, "mining.submit");
    json::write_text(out, user);
    out.push(b',');
    json::write_text(out, job_id);
    out.extend_from_slice(b",\"");
    hexadecimal::write(out, solution.extranonce2);
    json::write_plain(out, format_args!("\",\"{:08x}\",\"{:08x}\"", solution.ntime, solution.nonce));
    if let Some(rolled) = solution.version_rolling {
        json::write_plain(out, format_args!(",\"{:08x}\"", rolled.bits & rolled.mask));
    }
    out.extend_from_slice(b"]}\n");
}

/// Answers a ping.
pub fn pong(out: &mut Vec<u8>, id: &Value) {
    json::write_plain(out, format_args!("{{\"id\":{id},\"result\":\"pong\",\"error\":null}}\n"));
}

/// Answers `client.get_version`.
pub fn version(out: &mut Vec<u8>, id: &Value, software: &str) {
    json::write_plain(out, format_args!("{{\"id\":{id},\"result\":"));
    json::write_text(out, software);
    out.extend_from_slice(b",\"error\":null}\n");
}

fn request(out: &mut Vec<u8>, id: u64, method: &str, params: std::fmt::Arguments<'_>) {
    begin(out, id, method);
    json::write_plain(out, params);
    out.extend_from_slice(b"]}\n");
}

fn begin(out: &mut Vec<u8>, id: u64, method: &str) {
    json::write_plain(out, format_args!("{{\"id\":{id},\"method\":\"{method}\",\"params\":["));
}

fn twice_sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(Sha256::digest(bytes)).into()
}

fn hash(value: &Value) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(value.as_str()?, &mut bytes).ok()?;
    Some(bytes)
}

fn hex_bytes(value: &Value) -> Option<Vec<u8>> {
    let text = value.as_str().filter(|text| text.len() <= 2 * MAX_COINBASE_BYTES)?;
    hex::decode(text).ok()
}

fn hex_number(value: &Value) -> Option<u32> {
    hexadecimal::number(value.as_str()?.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::render::{self, NotifyLine};
    use super::super::request::{Call, Request};
    use super::*;
    use crate::job::{JobParts, Rolled};
    use crate::{
        Difficulty, Epoch, Job, JobNumber, JobOrigin, Now, Target, Tip, TipNumber, UpstreamChannelId,
        UpstreamId, UpstreamJobId,
    };
    use std::time::Duration;

    /// Block 1 of the main chain as a pool would have sent it: eight bytes of its coinbase's public key stand in
    /// for the extranonce, because its input script is too short to be cut.
    const BLOCK_1_NOTIFY: &str = concat!(
        r#"{"id":null,"method":"mining.notify","params":["1f","#,
        r#""0a8ce26f72b3f1b646a2a6c14ff763ae65831e939c085ae10019d66800000000","#,
        r#""01000000010000000000000000000000000000000000000000000000000000000000000000ffffffff0704ffff001d0104"#,
        r#"ffffffff0100f2052a01000000434104","#,
        r#""6a2c91e61ec11600ae1390813a627c66fb8be7947be63c52da7589379515d4e0a604f8141781e62294721166bf621e73a8"#,
        r#"2cbf2342c858eeac00000000",[],"00000001","1d00ffff","4966bc61",true]}"#
    );

    /// The coinbase of block 1, cut into what comes before the extranonce, the extranonce, and what follows.
    const COINB1: &str = concat!(
        "01000000010000000000000000000000000000000000000000000000000000000000000000ffffffff0704ffff001d0104",
        "ffffffff0100f2052a01000000434104"
    );
    const EXTRANONCE: &str = "96b538e853519c72";
    const COINB2: &str = concat!(
        "6a2c91e61ec11600ae1390813a627c66fb8be7947be63c52da7589379515d4e0a604f8141781e62294721166bf621e73a8",
        "2cbf2342c858eeac00000000"
    );
    const GENESIS_HASH: &str = "000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f";
    const BLOCK_1_HASH: &str = "00000000839a8e6886ab5951d76f411475428afc90947ee320161bbf18eb6048";
    const BLOCK_1_NONCE: u32 = 0x9962_e301;

    fn bytes(text: &str) -> Vec<u8> {
        hex::decode(text).expect("hexadecimal")
    }

    fn reversed(text: &str) -> [u8; 32] {
        let mut bytes: [u8; 32] = bytes(text).try_into().expect("32 bytes");
        bytes.reverse();
        bytes
    }

    fn notify(line: &str) -> Notify {
        match ServerLine::parse(line.as_bytes()) {
            Ok(ServerLine::Notify(notify)) => notify,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn job(
        coinb1: &[u8],
        coinb2: &[u8],
        rollable_size: usize,
        merkle_path: Vec<[u8; 32]>,
        version: u32,
    ) -> Job {
        let nbits = 0x1d00_ffff;
        Job::new(JobParts {
            number: JobNumber(0x1f),
            epoch: Epoch(1),
            origin: JobOrigin {
                upstream: UpstreamId(0),
                channel: UpstreamChannelId(0),
                job: UpstreamJobId(0),
                template: None,
            },
            tip: Tip {
                number: TipNumber(1),
                previous_hash: reversed(GENESIS_HASH),
                nbits,
                network_target: Target::from_compact(nbits),
            },
            clean: true,
            version,
            version_rolling_allowed: true,
            min_ntime: 0x4966_bc61,
            coinbase_prefix: coinb1.into(),
            coinbase_suffix: coinb2.into(),
            rollable_size,
            merkle_path: merkle_path.into(),
            upstream_target: Target::MAX,
            received: Now { monotonic: Duration::ZERO, utc: Duration::ZERO },
        })
    }

    #[test]
    fn a_real_block_comes_out_of_its_notify() {
        let notify = notify(BLOCK_1_NOTIFY);
        let extranonce = bytes(EXTRANONCE);
        let solution = Solution {
            extranonce2: &extranonce[4..],
            ntime: notify.ntime,
            nonce: BLOCK_1_NONCE,
            version_rolling: None,
        };
        assert_eq!(notify.previous_hash, reversed(GENESIS_HASH));
        assert_eq!(notify.hash(&extranonce[..4], &solution), reversed(BLOCK_1_HASH));
    }

    #[test]
    fn a_real_block_is_rendered_as_its_notify() {
        let job = job(&bytes(COINB1), &bytes(COINB2), 8, Vec::new(), 1);
        let line = NotifyLine::render(&job);
        assert_eq!(core::str::from_utf8(line.as_bytes()), Ok(format!("{BLOCK_1_NOTIFY}\n").as_str()));
        assert_eq!(line.job_id(), "1f");
        let mut out = Vec::new();
        line.write_with("20abcdef", false, &mut out);
        let mut once = Vec::new();
        NotifyLine::write_once(&job, Some("20abcdef"), false, &mut once);
        assert_eq!(once, out, "a line for one miner alone is the same");
        once.clear();
        NotifyLine::write_once(&job, None, job.clean, &mut once);
        assert_eq!(once, line.as_bytes());
        let expected = BLOCK_1_NOTIFY.replace("\"1f\"", "\"20abcdef\"").replace("true]", "false]");
        assert_eq!(String::from_utf8(out), Ok(expected + "\n"));
    }

    #[test]
    fn both_ways_from_a_job_to_a_hash_agree() {
        for (rollable_size, branches) in [(8, 0), (8, 1), (12, 12), (28, 20)] {
            let path = (0..branches).map(|index| [index; 32]).collect();
            let job = job(&[1; 77], &[2; 133], rollable_size, path, 0x3fff_ffff);
            let notify = notify(core::str::from_utf8(NotifyLine::render(&job).as_bytes()).expect("text"));
            let (reserved, extranonce2) = ([9, 8, 7, 6], [5, 4, 3, 2]);
            let (ntime, nonce, mask, bits) = (0x4966_bc70, 77, crate::job::SV1_VERSION_MASK, 0x0abc_e000);
            let version = (job.version & !mask) | bits;
            let rolled = Rolled { reserved, extranonce: &extranonce2, version, ntime, nonce };
            let version_rolling = Some(RolledVersion { mask, bits });
            let solution = Solution { extranonce2: &extranonce2, ntime, nonce, version_rolling };
            assert_eq!(job.header(&rolled), notify.header(&reserved, &solution));
            assert_eq!(job.hash(&rolled), notify.hash(&reserved, &solution));
        }
    }

    #[test]
    #[should_panic(expected = "a job has room")]
    fn a_job_without_room_is_a_fault_of_ours() {
        NotifyLine::render(&job(&[], &[], 7, Vec::new(), 1));
    }

    fn rendered(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out);
        out
    }

    fn server_line(write: impl FnOnce(&mut Vec<u8>)) -> ServerLine {
        ServerLine::parse(&rendered(write)).expect("a line of ours")
    }

    #[test]
    fn what_a_server_renders_reads_back() {
        let extranonce = Extranonce { extranonce1: vec![8, 0, 0, 2], extranonce2_size: 4 };
        for (line, expected) in [
            (
                server_line(|out| render::set_difficulty(out, Difficulty(0.25))),
                ServerLine::SetDifficulty(0.25),
            ),
            (
                server_line(|out| render::set_version_mask(out, 0x1fff_e000)),
                ServerLine::SetVersionMask(0x1fff_e000),
            ),
            (
                server_line(|out| render::set_extranonce(out, &[8, 0, 0, 2], 4)),
                ServerLine::SetExtranonce(extranonce.clone()),
            ),
            (server_line(render::reconnect), ServerLine::Reconnect),
            (server_line(|out| render::ping(out, 3)), ServerLine::Ping { id: 3.into() }),
            (server_line(|out| render::get_version(out, 4)), ServerLine::GetVersion { id: 4.into() }),
            (
                server_line(|out| render::show_message(out, "hello")),
                ServerLine::Other("client.show_message".into()),
            ),
        ] {
            assert_eq!(line, expected);
        }
        let request = rendered(|out| subscribe(out, 7, "miner/1", None));
        let id = Request::parse(&request).expect("a request").id;
        let ServerLine::Response(response) =
            server_line(|out| render::subscribe(out, id, "5f", &[8, 0, 0, 2], 4))
        else {
            panic!("no response")
        };
        assert_eq!(response.id, Some(7));
        assert_eq!(response.subscribed(), Some(Subscribed { session: "5f".into(), extranonce }));
        let ServerLine::Response(response) =
            server_line(|out| render::error(out, id, render::ErrorCode::Duplicate))
        else {
            panic!("no response")
        };
        assert!(!response.accepted());
        assert_eq!(response.error, Some(ResponseError { code: 22, message: "Duplicate share".into() }));
    }

    #[test]
    fn what_a_miner_renders_reads_back() {
        let request = rendered(|out| configure(out, 1, Some(0x1fff_e000)));
        let request = Request::parse(&request).expect("a request");
        let Call::Configure(asked) = &request.call else { panic!("no configure") };
        let grant = render::Grant { version_mask: Some(0x00c0_0000), ..Default::default() };
        let ServerLine::Response(response) =
            server_line(|out| render::configure(out, request.id, asked, grant))
        else {
            panic!("no response")
        };
        assert_eq!(response.granted_mask(), Some(0x00c0_0000));

        let solution = Solution {
            extranonce2: &[0, 0, 0, 9],
            ntime: 0x4966_bc61,
            nonce: 0xab,
            version_rolling: Some(RolledVersion { mask: 0x1fff_e000, bits: 0x2000_2000 }),
        };
        for (line, expected) in [
            (
                rendered(|out| configure(out, 1, None)),
                r#"{"id":1,"method":"mining.configure","params":[[],{}]}"#,
            ),
            (
                rendered(|out| subscribe(out, 2, "miner/1", Some("5f"))),
                r#"{"id":2,"method":"mining.subscribe","params":["miner/1","5f"]}"#,
            ),
            (
                rendered(|out| authorize(out, 3, "a.\"b\"", "x")),
                r#"{"id":3,"method":"mining.authorize","params":["a.\"b\"","x"]}"#,
            ),
            (
                rendered(|out| suggest_difficulty(out, 4, 0.00075)),
                r#"{"id":4,"method":"mining.suggest_difficulty","params":[0.00075]}"#,
            ),
            (
                rendered(|out| extranonce_subscribe(out, 5)),
                r#"{"id":5,"method":"mining.extranonce.subscribe","params":[]}"#,
            ),
            (
                rendered(|out| submit(out, 6, "u", "1f", &solution)),
                r#"{"id":6,"method":"mining.submit","params":["u","1f","00000009","4966bc61","000000ab","00002000"]}"#,
            ),
            (rendered(|out| pong(out, &7.into())), r#"{"id":7,"result":"pong","error":null}"#),
            (rendered(|out| version(out, &8.into(), "m/1")), r#"{"id":8,"result":"m/1","error":null}"#),
        ] {
            assert_eq!(core::str::from_utf8(&line), Ok(format!("{expected}\n").as_str()));
            Request::parse(&line).expect("a line that our server reads");
        }
    }

    #[test]
    fn malformed_lines_of_a_server_are_errors() {
        for line in [
            "",
            "[]",
            r#"{"method":"mining.notify","params":[]}"#,
            r#"{"method":"mining.notify"}"#,
            r#"{"method":"mining.set_difficulty","params":[0]}"#,
            r#"{"method":"mining.set_difficulty","params":{}}"#,
            r#"{"method":"mining.set_extranonce","params":["08",33]}"#,
            r#"{"method":"mining.set_extranonce","params":["0",4]}"#,
            r#"{"method":"mining.set_version_mask","params":[1]}"#,
        ] {
            assert!(ServerLine::parse(line.as_bytes()).is_err(), "{line}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_line_makes_it_panic(line in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = ServerLine::parse(&line);
        }

        #[test]
        fn no_result_makes_it_panic(result in "(\\[(\\[\\]|[0-9]|\"[0-9a-f]{0,4}\"|\\{\\}|null)(,(\\[\\]|[0-9]|\"a\")){0,3}\\]|null|[0-9])") {
            let line = format!("{{\"id\":1,\"result\":{result},\"error\":{result}}}");
            if let Ok(ServerLine::Response(response)) = ServerLine::parse(line.as_bytes()) {
                response.subscribed();
                response.granted_mask();
                response.accepted();
            }
        }
    }
}
