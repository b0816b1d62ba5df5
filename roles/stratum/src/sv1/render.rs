//! What a server says: answers and notifications, written into the caller's buffer.
//!
//! The shapes are narrow on purpose: firmware reads fixed positions, breaks on keys that it did not ask for and
//! stops at what it does not know. Every line ends with a line feed.
//!
//! This module never answers a request without an id ([`RawId::NONE`]): for those every answer writes nothing.

use std::ops::Range;

use super::request::{Configure, RawId};
use super::{hexadecimal, json};
use crate::job::{EXTRANONCE2_SIZE, RESERVED_SIZE};
use crate::{Difficulty, Job};

/// Why a request is refused, by the numbers that SV1 pools agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// 20: anything without a number of its own, malformed parameters and unknown methods among it.
    Other,
    /// 21: the job is not known, or its tip is no longer the tip.
    JobNotFound,
    /// 22: the share was accepted before.
    Duplicate,
    /// 23: the share's hash misses the target.
    LowDifficulty,
    /// 24: the worker is not authorised.
    Unauthorized,
    /// 25: the connection has not subscribed.
    NotSubscribed,
}

impl ErrorCode {
    /// The number on the wire.
    pub const fn number(self) -> u8 {
        match self {
            ErrorCode::Other => 20,
            ErrorCode::JobNotFound => 21,
            ErrorCode::Duplicate => 22,
            ErrorCode::LowDifficulty => 23,
            ErrorCode::Unauthorized => 24,
            ErrorCode::NotSubscribed => 25,
        }
    }

    /// The usual text for the number.
    pub const fn message(self) -> &'static str {
        match self {
            ErrorCode::Other => "Other/Unknown",
            ErrorCode::JobNotFound => "Job not found",
            ErrorCode::Duplicate => "Duplicate share",
            ErrorCode::LowDifficulty => "Low difficulty share",
            ErrorCode::Unauthorized => "Unauthorized worker",
            ErrorCode::NotSubscribed => "Not subscribed",
        }
    }
}

/// What a miner is granted of what it asked for with `mining.configure`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// The mask of version rolling; `None` refuses it. Miners of the cgminer family leave when it is refused, a
    /// mask of zero keeps them where nothing may be rolled.
    pub version_mask: Option<u32>,
    /// Whether the minimum difficulty is kept to.
    pub minimum_difficulty: bool,
    /// Whether `mining.set_extranonce` will be sent.
    pub subscribe_extranonce: bool,
}

/// Answers `true` or `false`.
pub fn boolean(out: &mut Vec<u8>, id: RawId<'_>, value: bool) {
    answer(out, id, |out| out.extend_from_slice(if value { b"true" } else { b"false" }));
}

/// Answers `mining.ping` of a miner.
pub fn pong(out: &mut Vec<u8>, id: RawId<'_>) {
    answer(out, id, |out| json::write_text(out, "pong"));
}

/// Answers `mining.subscribe`. The subscriptions are nested pairs (NerdMiner 1.8.3 reads `result[0][0][1]`), and
/// `session` is what the miner sends back when it wants to resume.
pub fn subscribe(
    out: &mut Vec<u8>,
    id: RawId<'_>,
    session: &str,
    extranonce1: &[u8],
    extranonce2_size: usize,
) {
    answer(out, id, |out| {
        out.extend_from_slice(b"[[[\"mining.set_difficulty\",");
        json::write_text(out, session);
        out.extend_from_slice(b"],[\"mining.notify\",");
        json::write_text(out, session);
        out.extend_from_slice(b"]],\"");
        hexadecimal::write(out, extranonce1);
        json::write_plain(out, format_args!("\",{extranonce2_size}]"));
    });
}

/// Answers `mining.configure` with the keys that were asked for and no others: Whatsminer firmware reconnects for
/// ever on an unknown key, `version-rolling.min-bit-count` among them.
pub fn configure(out: &mut Vec<u8>, id: RawId<'_>, asked: &Configure<'_>, grant: Grant) {
    answer(out, id, |out| {
        out.push(b'{');
        if asked.version_rolling.is_some() {
            flag(out, "version-rolling", grant.version_mask.is_some());
            if let Some(mask) = grant.version_mask {
                json::write_plain(out, format_args!("\"version-rolling.mask\":\"{mask:08x}\","));
            }
        }
        if asked.minimum_difficulty.is_some() {
            flag(out, "minimum-difficulty", grant.minimum_difficulty);
        }
        if asked.subscribe_extranonce {
            flag(out, "subscribe-extranonce", grant.subscribe_extranonce);
        }
        for other in &asked.others {
            flag(out, other, false);
        }
        if out.last() == Some(&b',') {
            out.pop();
        }
        out.push(b'}');
    });
}

/// Refuses a request with the usual text.
pub fn error(out: &mut Vec<u8>, id: RawId<'_>, code: ErrorCode) {
    error_with(out, id, code, code.message());
}

/// Refuses a request with a text that says more.
pub fn error_with(out: &mut Vec<u8>, id: RawId<'_>, code: ErrorCode, message: &str) {
    let Some(token) = id.token() else { return };
    json::write_plain(out, format_args!("{{\"id\":{token},\"result\":null,\"error\":[{},", code.number()));
    json::write_text(out, message);
    out.extend_from_slice(b",null]}\n");
}

/// `mining.set_difficulty`: whole numbers without a fraction, smaller ones than 1 as decimals without an
/// exponent. A difficulty that is no number is sent as the greatest one.
pub fn set_difficulty(out: &mut Vec<u8>, difficulty: Difficulty) {
    let hardest = Difficulty::from_exponent(223);
    let difficulty = if difficulty.0.is_finite() { difficulty } else { hardest };
    notification(out, "mining.set_difficulty", |out| json::write_plain(out, format_args!("{difficulty}")));
}

/// `mining.set_version_mask`, for miners that were granted version rolling and have authorised.
pub fn set_version_mask(out: &mut Vec<u8>, mask: u32) {
    notification(out, "mining.set_version_mask", |out| {
        json::write_plain(out, format_args!("\"{mask:08x}\""))
    });
}

/// `mining.set_extranonce`, only for miners that subscribed to it; a clean job must follow at once.
pub fn set_extranonce(out: &mut Vec<u8>, extranonce1: &[u8], extranonce2_size: usize) {
    notification(out, "mining.set_extranonce", |out| {
        out.push(b'"');
        hexadecimal::write(out, extranonce1);
        json::write_plain(out, format_args!("\",{extranonce2_size}"));
    });
}

/// `client.reconnect` without an address: cgminer refuses other hosts than its own.
pub fn reconnect(out: &mut Vec<u8>) {
    notification(out, "client.reconnect", |_| {});
}

/// `client.show_message`.
pub fn show_message(out: &mut Vec<u8>, message: &str) {
    notification(out, "client.show_message", |out| json::write_text(out, message));
}

/// `mining.ping`, which breaks a silence. Answered as a result or as a method `pong`, or not at all.
pub fn ping(out: &mut Vec<u8>, id: u64) {
    json::write_plain(out, format_args!("{{\"id\":{id},\"method\":\"mining.ping\",\"params\":[]}}\n"));
}

/// `client.get_version`. Answered with the name of the miner's software, or not at all.
pub fn get_version(out: &mut Vec<u8>, id: u64) {
    json::write_plain(out, format_args!("{{\"id\":{id},\"method\":\"client.get_version\",\"params\":[]}}\n"));
}

fn answer(out: &mut Vec<u8>, id: RawId<'_>, result: impl FnOnce(&mut Vec<u8>)) {
    let Some(token) = id.token() else { return };
    // Written piece by piece: every share is answered with it.
    out.extend_from_slice(b"{\"id\":");
    out.extend_from_slice(token.as_bytes());
    out.extend_from_slice(b",\"result\":");
    result(out);
    out.extend_from_slice(b",\"error\":null}\n");
}

fn notification(out: &mut Vec<u8>, method: &str, params: impl FnOnce(&mut Vec<u8>)) {
    json::write_plain(out, format_args!("{{\"id\":null,\"method\":\"{method}\",\"params\":["));
    params(out);
    out.extend_from_slice(b"]}\n");
}

fn flag(out: &mut Vec<u8>, name: &str, value: bool) {
    json::write_text(out, name);
    json::write_plain(out, format_args!(":{value},"));
}

/// The `mining.notify` line of a job, rendered once and written to every miner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotifyLine {
    bytes: Box<[u8]>,
    job_id: Range<usize>,
    clean: Range<usize>,
}

impl NotifyLine {
    /// Renders a job under its own number (in hexadecimal) and with its own clean flag, which is the last
    /// parameter, where ESP-Miner 2.15 looks for it. The upstream's extranonce prefix is the end of coinb1 and
    /// the zeros between `extranonce2` and the suffix are the start of coinb2.
    ///
    /// Panics when the job leaves less room than `extranonce1` and `extranonce2` need: such a job is never made.
    pub fn render(job: &Job) -> Self {
        let mut out = Vec::new();
        let (job_id, clean) = write_notify(job, format_args!("{:x}", job.number.0), job.clean, &mut out);
        NotifyLine { bytes: out.into_boxed_slice(), job_id, clean }
    }

    /// Appends the line of a job that is for one miner alone, as [`NotifyLine::render`] and
    /// [`NotifyLine::write_with`] would; `None` for the job's own number. Panics as [`NotifyLine::render`] does.
    pub fn write_once(job: &Job, job_id: Option<&str>, clean: bool, out: &mut Vec<u8>) {
        match job_id {
            Some(job_id) => write_notify(job, format_args!("{job_id}"), clean, out),
            None => write_notify(job, format_args!("{:x}", job.number.0), clean, out),
        };
    }

    /// The line, its line feed included.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The job id in the line.
    pub fn job_id(&self) -> &str {
        core::str::from_utf8(&self.bytes[self.job_id.clone()]).expect("it was written as digits")
    }

    /// Appends the line with another job id, which must need no escapes, and clean flag: the first job of a
    /// connection needs an id that the miner never saw, because minerd 2.5.1 keeps its old work under an old id
    /// even on a new connection.
    pub fn write_with(&self, job_id: &str, clean: bool, out: &mut Vec<u8>) {
        out.reserve(self.bytes.len() + job_id.len());
        out.extend_from_slice(&self.bytes[..self.job_id.start]);
        out.extend_from_slice(job_id.as_bytes());
        out.extend_from_slice(&self.bytes[self.job_id.end..self.clean.start]);
        out.extend_from_slice(if clean { b"true" } else { b"false" });
        out.extend_from_slice(&self.bytes[self.clean.end..]);
    }
}

/// Appends a job's `mining.notify` line. Returns where the job id and the clean flag are in `out`.
fn write_notify(
    job: &Job,
    job_id: std::fmt::Arguments<'_>,
    clean: bool,
    out: &mut Vec<u8>,
) -> (Range<usize>, Range<usize>) {
    let padding = job
        .rollable_size
        .checked_sub(RESERVED_SIZE + EXTRANONCE2_SIZE)
        .expect("a job has room for extranonce1 and extranonce2");
    let coinbase = job.coinbase_prefix.len() + padding + job.coinbase_suffix.len();
    out.reserve(256 + 2 * coinbase + 67 * job.merkle_path.len());
    out.extend_from_slice(b"{\"id\":null,\"method\":\"mining.notify\",\"params\":[\"");
    let start = out.len();
    json::write_plain(out, job_id);
    let job_id_at = start..out.len();
    out.extend_from_slice(b"\",\"");
    hexadecimal::write(out, &in_sv1_order(job.tip.previous_hash));
    out.extend_from_slice(b"\",\"");
    hexadecimal::write(out, &job.coinbase_prefix);
    out.extend_from_slice(b"\",\"");
    out.resize(out.len() + 2 * padding, b'0');
    hexadecimal::write(out, &job.coinbase_suffix);
    out.extend_from_slice(b"\",[");
    for (index, sibling) in job.merkle_path.iter().enumerate() {
        out.extend_from_slice(if index == 0 { b"\"" } else { b",\"" });
        hexadecimal::write(out, sibling);
        out.push(b'"');
    }
    let (version, nbits, ntime) = (job.version, job.tip.nbits, job.min_ntime);
    json::write_plain(out, format_args!("],\"{version:08x}\",\"{nbits:08x}\",\"{ntime:08x}\","));
    let start = out.len();
    json::write_plain(out, format_args!("{clean}"));
    let clean_at = start..out.len();
    out.extend_from_slice(b"]}\n");
    (job_id_at, clean_at)
}

/// A hash in the order of `mining.notify`: the internal order with the bytes of each 32-bit word reversed.
fn in_sv1_order(hash: [u8; 32]) -> [u8; 32] {
    let mut bytes = hash;
    for word in bytes.as_chunks_mut::<4>().0 {
        word.reverse();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::request::Request;
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        let text = String::from_utf8(out).expect("text");
        if !text.is_empty() {
            assert!(text.ends_with('\n'));
            serde_json::from_str::<serde_json::Value>(&text).expect("JSON");
        }
        text
    }

    fn id(token: &str) -> String {
        format!("{{\"id\":{token},\"method\":\"x\"}}")
    }

    #[test]
    fn answers_word_for_word() {
        let line = id("\"auth\"");
        let id = Request::parse(line.as_bytes()).expect("a request").id;
        for (text, expected) in [
            (written(|out| boolean(out, id, true)), r#"{"id":"auth","result":true,"error":null}"#),
            (written(|out| boolean(out, id, false)), r#"{"id":"auth","result":false,"error":null}"#),
            (written(|out| pong(out, id)), r#"{"id":"auth","result":"pong","error":null}"#),
            (
                written(|out| error(out, id, ErrorCode::LowDifficulty)),
                r#"{"id":"auth","result":null,"error":[23,"Low difficulty share",null]}"#,
            ),
            (
                written(|out| error_with(out, id, ErrorCode::Other, "no \"such\"\tmethod \\ é")),
                r#"{"id":"auth","result":null,"error":[20,"no \"such\"\u0009method \\ é",null]}"#,
            ),
            (
                written(|out| subscribe(out, id, "5f", &[8, 0, 0, 2], 4)),
                r#"{"id":"auth","result":[[["mining.set_difficulty","5f"],["mining.notify","5f"]],"08000002",4],"error":null}"#,
            ),
        ] {
            assert_eq!(text.trim_end(), expected);
        }
    }

    #[test]
    fn a_request_without_id_is_not_answered() {
        let none = RawId::NONE;
        let text = written(|out| {
            boolean(out, none, true);
            pong(out, none);
            subscribe(out, none, "5f", &[8, 0, 0, 2], 4);
            configure(out, none, &Configure::default(), Grant::default());
            error(out, none, ErrorCode::Other);
        });
        assert_eq!(text, "");
    }

    #[test]
    fn notifications_word_for_word() {
        for (text, expected) in [
            (
                written(|out| set_version_mask(out, 0x1fff_e000)),
                r#"{"id":null,"method":"mining.set_version_mask","params":["1fffe000"]}"#,
            ),
            (
                written(|out| set_version_mask(out, 0)),
                r#"{"id":null,"method":"mining.set_version_mask","params":["00000000"]}"#,
            ),
            (
                written(|out| set_extranonce(out, &[8, 0, 0, 2], 4)),
                r#"{"id":null,"method":"mining.set_extranonce","params":["08000002",4]}"#,
            ),
            (written(reconnect), r#"{"id":null,"method":"client.reconnect","params":[]}"#),
            (
                written(|out| show_message(out, "a\nb")),
                r#"{"id":null,"method":"client.show_message","params":["a\u000ab"]}"#,
            ),
            (written(|out| ping(out, 7)), r#"{"id":7,"method":"mining.ping","params":[]}"#),
            (written(|out| get_version(out, 8)), r#"{"id":8,"method":"client.get_version","params":[]}"#),
        ] {
            assert_eq!(text.trim_end(), expected);
        }
    }

    #[test]
    fn difficulties_are_whole_or_plain_decimals() {
        for (difficulty, expected) in [
            (65536.0, "65536"),
            (1.0, "1"),
            (0.5, "0.5"),
            (2f64.powi(-12), "0.000244140625"),
            (2f64.powi(50), "1125899906842624"),
        ] {
            let text = written(|out| set_difficulty(out, Difficulty(difficulty)));
            let line = format!(r#"{{"id":null,"method":"mining.set_difficulty","params":[{expected}]}}"#);
            assert_eq!(text.trim_end(), line);
        }
        for exponent in -32..0 {
            let text = written(|out| set_difficulty(out, Difficulty::from_exponent(exponent)));
            let number = text.split(['[', ']']).nth(1).expect("a parameter");
            assert!(!number.contains(['e', 'E']), "{number}");
        }
        written(|out| set_difficulty(out, Difficulty(f64::INFINITY)));
        written(|out| set_difficulty(out, Difficulty(f64::NAN)));
    }

    #[test]
    fn only_what_was_asked_for_is_configured() {
        for (params, mask, expected) in [
            (
                r#"[["version-rolling"],{"version-rolling.mask":"ffffffff"}]"#,
                Some(0x1fff_e000),
                r#"{"version-rolling":true,"version-rolling.mask":"1fffe000"}"#,
            ),
            (
                r#"[["version-rolling"],{"version-rolling.mask":"ffffffff","version-rolling.min-bit-count":16}]"#,
                Some(0),
                r#"{"version-rolling":true,"version-rolling.mask":"00000000"}"#,
            ),
            (r#"[["version-rolling"]]"#, None, r#"{"version-rolling":false}"#),
            ("[[],{}]", Some(0x1fff_e000), "{}"),
            (
                r#"[["minimum-difficulty","subscribe-extranonce","in\"fo"],{"minimum-difficulty.value":2048}]"#,
                Some(0x1fff_e000),
                r#"{"minimum-difficulty":true,"subscribe-extranonce":true,"in\"fo":false}"#,
            ),
        ] {
            let line = format!(r#"{{"id":1,"method":"mining.configure","params":{params}}}"#);
            let request = Request::parse(line.as_bytes()).expect("a request");
            let super::super::request::Call::Configure(asked) = &request.call else { panic!("{line}") };
            let grant = Grant { version_mask: mask, minimum_difficulty: true, subscribe_extranonce: true };
            let text = written(|out| configure(out, request.id, asked, grant));
            assert_eq!(text.trim_end(), format!(r#"{{"id":1,"result":{expected},"error":null}}"#));
        }
    }

    #[test]
    fn each_code_has_its_number() {
        for (code, number) in [
            (ErrorCode::Other, 20),
            (ErrorCode::JobNotFound, 21),
            (ErrorCode::Duplicate, 22),
            (ErrorCode::LowDifficulty, 23),
            (ErrorCode::Unauthorized, 24),
            (ErrorCode::NotSubscribed, 25),
        ] {
            assert_eq!(code.number(), number);
        }
    }
}
