//! One line of a miner, as what it asks for.
//!
//! The shapes are those that firmware really sends, which is more than any document allows. Whatever can be
//! understood is; what cannot is an error that carries the id, so that it can be answered: a miner that is not
//! answered may wait for ever.
//!
//! This module never judges a request: limits on who may ask for what belong to the connection.

use std::borrow::Cow;

use arrayvec::ArrayVec;
use serde_json::value::RawValue;

use super::json::{Elements, Envelope, text};
use super::{hexadecimal, scan};
use crate::Target;

/// The longest id that is echoed, as written. The longest seen is a job id with a prefix (BFGMiner 5.5.0); a
/// longer one closes the connection, because it could not be answered.
pub const MAX_ID_BYTES: usize = 256;

/// The longest user name, after JSON's escapes are resolved: SV2 carries it upstream in a string of at most 255
/// bytes. It is any text, kept as it came: an address, `account.worker`, `.worker` alone, `%25` unresolved.
pub const MAX_USER_BYTES: usize = 255;

/// The longest password, and the longest name of the miner's software, that is kept; more is an error for the
/// one and cut from the other. Passwords carry options, which are short.
pub const MAX_TEXT_BYTES: usize = 255;

/// The longest job id that can be one of ours (16 digits), with room to spare; a longer one is malformed.
pub const MAX_JOB_ID_BYTES: usize = 64;

/// The most bytes of an `extranonce2` that are decoded: SV1 firmware rolls 8 at most. More is malformed.
pub const MAX_EXTRANONCE2_BYTES: usize = 16;

/// Unknown extensions of `mining.configure` that are remembered to be answered `false`; further ones are not
/// answered. BIP 310 has four in all.
pub const MAX_OTHER_EXTENSIONS: usize = 8;

/// A request's id as it was written: a number of any size, a string, an object. It is echoed and never
/// interpreted: firmware repeats ids, also while a request waits for its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawId<'a>(Option<&'a str>);

impl<'a> RawId<'a> {
    /// No id, or a null one: the request is processed and never answered. BFGMiner 5.5.0 takes an answer to a
    /// null id for the answer to its next request.
    pub const NONE: RawId<'static> = RawId(None);

    /// The id as it was written, for the answer; `None` when nothing may be answered.
    pub const fn token(self) -> Option<&'a str> {
        self.0
    }

    /// The id that is written as `token`, which is JSON and not `null`.
    pub(super) const fn from_token(token: &'a str) -> Self {
        RawId(Some(token))
    }
}

/// One line of a miner.
#[derive(Clone, Debug, PartialEq)]
pub struct Request<'a> {
    /// What the answer carries.
    pub id: RawId<'a>,
    /// What is asked.
    pub call: Call<'a>,
}

/// What a miner asks for or answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Call<'a> {
    /// `mining.configure` (BIP 310). Elsewhere, because it takes twice the room of any other call and is rare.
    Configure(Box<Configure<'a>>),
    /// `mining.subscribe`.
    Subscribe {
        /// The miner's software, empty when it says nothing; cut at [`MAX_TEXT_BYTES`].
        user_agent: Cow<'a, str>,
        /// The session that it wants to resume.
        session: Option<Cow<'a, str>>,
    },
    /// `mining.authorize`.
    Authorize {
        /// The worker name.
        user: Cow<'a, str>,
        /// The password, empty when there is none. See [`password_options`].
        password: Cow<'a, str>,
    },
    /// `mining.suggest_difficulty`: finite and above 0.
    SuggestDifficulty(f64),
    /// `mining.suggest_target`, as the miner wrote it: most significant digit first.
    SuggestTarget(Target),
    /// `mining.extranonce.subscribe`: only those who ask can be sent `mining.set_extranonce`.
    ExtranonceSubscribe,
    /// `mining.submit`.
    Submit(Submit<'a>),
    /// `mining.ping`.
    Ping,
    /// A pong as a method of its own (ESP-Miner 2.15); never answered.
    Pong,
    /// `mining.get_transactions` (BFGMiner 5.5.0, after each job).
    GetTransactions,
    /// `mining.capabilities`.
    Capabilities,
    /// `mining.multi_version`.
    MultiVersion,
    /// An answer to a request of ours; never answered.
    Response(Response<'a>),
    /// Another method, or none at all (empty).
    Unknown(Cow<'a, str>),
}

/// What `mining.configure` asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Configure<'a> {
    /// Version rolling.
    pub version_rolling: Option<VersionRolling>,
    /// A minimum difficulty; the value is `None` when it is absent or no number above 0.
    pub minimum_difficulty: Option<Option<f64>>,
    /// The same as `mining.extranonce.subscribe`.
    pub subscribe_extranonce: bool,
    /// Extensions that we do not know, to be answered `false`; at most [`MAX_OTHER_EXTENSIONS`].
    pub others: ArrayVec<Cow<'a, str>, MAX_OTHER_EXTENSIONS>,
}

/// The version rolling that a miner asks for (BIP 310).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionRolling {
    /// Bits that it can roll; all of them when it does not say.
    pub mask: u32,
    /// How many bits it needs, when it says.
    pub min_bit_count: Option<u32>,
}

/// A share as `mining.submit` carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submit<'a> {
    /// The worker name, which need not be the one that was authorised.
    pub user: Cow<'a, str>,
    /// The job as the miner was sent it.
    pub job_id: Cow<'a, str>,
    /// The rolled bytes, of whatever length the miner sent.
    pub extranonce2: ArrayVec<u8, MAX_EXTRANONCE2_BYTES>,
    /// The header's time.
    pub ntime: u32,
    /// The header's nonce.
    pub nonce: u32,
    /// The sixth parameter, where there is one: the version bits that were rolled.
    pub version_bits: Option<u32>,
}

/// An answer of the miner, as raw JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Response<'a> {
    /// The result as it was written; `None` when absent or null.
    pub result: Option<&'a str>,
    /// The error as it was written; `None` when absent or null.
    pub error: Option<&'a str>,
}

impl<'a> Response<'a> {
    /// The result when it is a string: the answer to `client.get_version`, or `pong`.
    pub fn result_text(&self) -> Option<Cow<'a, str>> {
        serde_json::from_str::<&RawValue>(self.result?).ok().and_then(text)
    }
}

/// Why a line is no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError<'a> {
    /// The line is no JSON object: nothing after it can be trusted.
    #[error("the line is no JSON object")]
    NotJson,
    /// The id is longer than [`MAX_ID_BYTES`].
    #[error("the id is longer than {MAX_ID_BYTES} bytes")]
    IdTooLong,
    /// A parameter is missing or malformed: to be answered with code 20, the connection is kept.
    #[error("{method}: {parameter} is missing or malformed")]
    BadParams {
        /// What the answer carries.
        id: RawId<'a>,
        /// The method that was asked.
        method: &'static str,
        /// The parameter that is wrong.
        parameter: Parameter,
    },
}

/// A parameter that can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Parameter {
    /// The worker name.
    #[error("the user name")]
    User,
    /// The password.
    #[error("the password")]
    Password,
    /// The job of a share.
    #[error("the job id")]
    JobId,
    /// The rolled bytes of a share.
    #[error("extranonce2")]
    Extranonce2,
    /// The time of a share.
    #[error("ntime")]
    NTime,
    /// The nonce of a share.
    #[error("the nonce")]
    Nonce,
    /// The version bits of a share.
    #[error("the version bits")]
    VersionBits,
    /// A suggested difficulty.
    #[error("the difficulty")]
    Difficulty,
    /// A suggested target.
    #[error("the target")]
    Target,
    /// The mask of version rolling.
    #[error("version-rolling.mask")]
    VersionMask,
}

impl<'a> Request<'a> {
    /// Reads one line, as [`LineBuffer`](super::line::LineBuffer) cuts them. Allocates only for strings with
    /// escapes.
    pub fn parse(line: &'a [u8]) -> Result<Self, RequestError<'a>> {
        match scan::submit(line) {
            Some(submission) => Ok(submission),
            None => Request::parse_any(line),
        }
    }

    /// Reads a line that is plainly a submission; `None` for every other line, and for a submission that is only
    /// [`Request::parse`]'s. Never calls the JSON parser.
    pub fn parse_plain_submission(line: &'a [u8]) -> Option<Self> {
        scan::submit(line)
    }

    /// The same without the short way for submissions, for those who compare the two.
    pub fn parse_any(line: &'a [u8]) -> Result<Self, RequestError<'a>> {
        let envelope: Envelope<'a> = serde_json::from_slice(line).map_err(|_| RequestError::NotJson)?;
        let id = match envelope.id.map(RawValue::get) {
            None | Some("null") => RawId::NONE,
            Some(token) if token.len() > MAX_ID_BYTES => return Err(RequestError::IdTooLong),
            token => RawId(token),
        };
        let call = Call::parse(&envelope).map_err(|(method, parameter)| RequestError::BadParams {
            id,
            method,
            parameter,
        })?;
        Ok(Request { id, call })
    }
}

type CallError = (&'static str, Parameter);

impl<'a> Call<'a> {
    fn parse(envelope: &Envelope<'a>) -> Result<Self, CallError> {
        let Some(method) = envelope.method.and_then(text) else {
            return Ok(Call::without_method(envelope));
        };
        let params = Elements::of(envelope.params);
        Ok(match method.as_ref() {
            "mining.submit" => {
                Call::Submit(Submit::parse(&params).map_err(|wrong| ("mining.submit", wrong))?)
            }
            "mining.configure" => {
                let configure = Configure::parse(&params).map_err(|wrong| ("mining.configure", wrong))?;
                Call::Configure(Box::new(configure))
            }
            "mining.subscribe" => Call::Subscribe {
                user_agent: cut(params.text(0).unwrap_or_default(), MAX_TEXT_BYTES),
                session: params.text(1),
            },
            "mining.authorize" => authorize(&params).map_err(|wrong| ("mining.authorize", wrong))?,
            "mining.suggest_difficulty" => Call::SuggestDifficulty(
                params
                    .get(0)
                    .and_then(difficulty)
                    .ok_or(("mining.suggest_difficulty", Parameter::Difficulty))?,
            ),
            "mining.suggest_target" => Call::SuggestTarget(
                params
                    .text(0)
                    .and_then(|text| target(&text))
                    .ok_or(("mining.suggest_target", Parameter::Target))?,
            ),
            "mining.extranonce.subscribe" => Call::ExtranonceSubscribe,
            "mining.ping" => Call::Ping,
            "pong" | "mining.pong" => Call::Pong,
            "mining.get_transactions" => Call::GetTransactions,
            "mining.capabilities" => Call::Capabilities,
            "mining.multi_version" => Call::MultiVersion,
            other => match other.strip_prefix("mining.suggest_difficulty(") {
                // Some firmware writes the call itself as the method, as the protocol's first description did.
                Some(argument) => Call::SuggestDifficulty(
                    leading_difficulty(argument)
                        .ok_or(("mining.suggest_difficulty", Parameter::Difficulty))?,
                ),
                None => Call::Unknown(method),
            },
        })
    }

    fn without_method(envelope: &Envelope<'a>) -> Self {
        let present = |value: Option<&'a RawValue>| value.map(RawValue::get).filter(|raw| *raw != "null");
        let answers = envelope.result.is_some() || envelope.error.is_some();
        if answers && envelope.method.is_none_or(|method| method.get() == "null") {
            return Call::Response(Response {
                result: present(envelope.result),
                error: present(envelope.error),
            });
        }
        Call::Unknown(Cow::Borrowed(""))
    }
}

impl<'a> Submit<'a> {
    fn parse(params: &Elements<'a>) -> Result<Self, Parameter> {
        let number = |index: usize| params.text(index).and_then(|text| hexadecimal::number(text.as_bytes()));
        let bounded = |index: usize, limit: usize| params.text(index).filter(|text| text.len() <= limit);
        Ok(Submit {
            user: bounded(0, MAX_USER_BYTES).ok_or(Parameter::User)?,
            job_id: bounded(1, MAX_JOB_ID_BYTES).ok_or(Parameter::JobId)?,
            extranonce2: params
                .text(2)
                .and_then(|text| hexadecimal::bytes(hexadecimal::without_prefix(text.as_bytes())))
                .ok_or(Parameter::Extranonce2)?,
            ntime: number(3).ok_or(Parameter::NTime)?,
            nonce: number(4).ok_or(Parameter::Nonce)?,
            version_bits: match params.get(5) {
                None => None,
                Some(_) => Some(number(5).ok_or(Parameter::VersionBits)?),
            },
        })
    }
}

impl<'a> Configure<'a> {
    fn parse(params: &Elements<'a>) -> Result<Self, Parameter> {
        let mut configure = Configure::default();
        let names = Elements::of(params.get(0));
        for name in names.iter().filter_map(text) {
            match name.as_ref() {
                "version-rolling" => configure.version_rolling = Some(VersionRolling::parse(params.get(1))?),
                "minimum-difficulty" => {
                    let value = member(params.get(1), "minimum-difficulty.value");
                    configure.minimum_difficulty = Some(value.and_then(difficulty));
                }
                "subscribe-extranonce" => configure.subscribe_extranonce = true,
                // The elements of one array are bounded by as many as fit here.
                _ if configure.others.is_full() => {}
                _ => configure.others.push(name),
            }
        }
        Ok(configure)
    }
}

impl VersionRolling {
    fn parse(options: Option<&RawValue>) -> Result<Self, Parameter> {
        let mask = match member(options, "version-rolling.mask") {
            None => u32::MAX,
            Some(value) => text(value)
                .and_then(|text| hexadecimal::number(text.as_bytes()))
                .ok_or(Parameter::VersionMask)?,
        };
        // The count comes as a number or as hexadecimal text; one that is neither asks for nothing.
        let min_bit_count =
            member(options, "version-rolling.min-bit-count").and_then(|value| match text(value) {
                Some(text) => hexadecimal::number(text.as_bytes()),
                None => value.get().parse().ok(),
            });
        Ok(VersionRolling { mask, min_bit_count })
    }
}

fn authorize<'a>(params: &Elements<'a>) -> Result<Call<'a>, Parameter> {
    let user = params.text(0).filter(|user| user.len() <= MAX_USER_BYTES).ok_or(Parameter::User)?;
    let password = match params.get(1) {
        None => Cow::Borrowed(""),
        // Some firmware sends a numeric password as a number.
        Some(value) => text(value).unwrap_or(Cow::Borrowed(value.get())),
    };
    if password.len() > MAX_TEXT_BYTES {
        return Err(Parameter::Password);
    }
    Ok(Call::Authorize { user, password })
}

/// The member `name` of an object, unless it is missing or null.
fn member<'a>(object: Option<&'a RawValue>, name: &str) -> Option<&'a RawValue> {
    super::json::member(object?, name).filter(|value| value.get() != "null")
}

/// A difficulty as a number or as text: finite and above 0.
fn difficulty(value: &RawValue) -> Option<f64> {
    let written = text(value).unwrap_or(Cow::Borrowed(value.get()));
    let number: f64 = written.trim().parse().ok()?;
    (number.is_finite() && number > 0.0).then_some(number)
}

/// The difficulty that `text` begins with.
fn leading_difficulty(text: &str) -> Option<f64> {
    let text = text.trim_start();
    let end = text.find(|character: char| !matches!(character, '0'..='9' | '.' | 'e' | 'E' | '-' | '+'));
    let number: f64 = text[..end.unwrap_or(text.len())].parse().ok()?;
    (number.is_finite() && number > 0.0).then_some(number)
}

/// A target written as a number of up to 64 hexadecimal digits.
fn target(text: &str) -> Option<Target> {
    let digits = hexadecimal::without_prefix(text.as_bytes());
    let written = hexadecimal::bytes::<32>(digits)?;
    if written.is_empty() {
        return None;
    }
    let mut bytes = [0; 32];
    bytes[32 - written.len()..].copy_from_slice(&written);
    bytes.reverse();
    Some(Target::from_le_bytes(bytes))
}

/// At most `limit` bytes of `text`, whole characters.
fn cut(text: Cow<'_, str>, limit: usize) -> Cow<'_, str> {
    let end = text.floor_char_boundary(limit);
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(&text[..end]),
        Cow::Owned(mut text) => {
            text.truncate(end);
            Cow::Owned(text)
        }
    }
}

/// What a password asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PasswordOptions {
    /// A suggested difficulty: finite and above 0.
    pub difficulty: Option<f64>,
}

/// Reads the options in a password: `key=value`, separated by commas, semicolons or spaces. `d` and `diff`
/// suggest a difficulty; the last one that can be read counts. Everything else (`x`, `h=...`) is no option.
pub fn password_options(password: &str) -> PasswordOptions {
    let mut options = PasswordOptions::default();
    for option in password.split([',', ';', ' ']) {
        let Some((key, value)) = option.split_once('=') else { continue };
        if ["d", "diff"].iter().any(|name| key.eq_ignore_ascii_case(name)) {
            let number = value.parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0);
            options.difficulty = number.or(options.difficulty);
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(line: &str) -> Request<'_> {
        Request::parse(line.as_bytes()).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    #[test]
    fn ids_are_kept_as_written() {
        for token in
            ["1", "-1", "1.50", "1e3", "18446744073709551617", "\"auth\"", "\"a\\u0062\"", "{\"a\":[1]}"]
        {
            let line = format!("{{\"method\":\"mining.ping\",\"id\": {token} }}");
            assert_eq!(parse(&line).id.token(), Some(token));
        }
        for line in ["{\"method\":\"mining.ping\",\"id\":null}", "{\"method\":\"mining.ping\"}"] {
            assert_eq!(parse(line).id, RawId::NONE);
        }
        let long = format!("{{\"id\":\"{}\",\"method\":\"mining.ping\"}}", "x".repeat(MAX_ID_BYTES));
        assert_eq!(Request::parse(long.as_bytes()), Err(RequestError::IdTooLong));
    }

    #[test]
    fn what_is_no_json_object_is_no_request() {
        let deep = format!("{{\"id\":{}", "[".repeat(4000));
        for line in ["", "[]", "1", "{", "{}x", "{\"id\":1,}", "{id:1}", "{\"id\":1}{\"id\":2}", &deep] {
            assert_eq!(Request::parse(line.as_bytes()), Err(RequestError::NotJson), "{line}");
        }
        assert_eq!(Request::parse(b"{\"id\":\"\xff\"}"), Err(RequestError::NotJson));
        // Deep nesting is skipped without recursion.
        let nested = format!("{{\"id\":1,\"method\":\"a\",\"x\":{}{}}}", "[".repeat(100), "]".repeat(100));
        assert_eq!(parse(&nested).call, Call::Unknown("a".into()));
    }

    #[test]
    fn a_repeated_key_counts_once_and_strange_keys_not_at_all() {
        let line = r#"{"jsonrpc":"2.0","id":1,"params":[],"id":2,"method":"x","\u006dethod":"mining.ping"}"#;
        let request = parse(line);
        assert_eq!((request.id.token(), request.call), (Some("2"), Call::Ping));
    }

    #[test]
    fn malformed_submissions_name_their_parameter_and_keep_their_id() {
        let good = ["\"u\"", "\"1f\"", "\"00000001\"", "\"4966bc61\"", "\"9962e301\"", "\"00002000\""];
        let long_user = format!("\"{}\"", "u".repeat(MAX_USER_BYTES + 1));
        let long_job = format!("\"{}\"", "1".repeat(MAX_JOB_ID_BYTES + 1));
        for (index, value, parameter) in [
            (0, "7", Parameter::User),
            (0, &long_user, Parameter::User),
            (1, "null", Parameter::JobId),
            (1, &long_job, Parameter::JobId),
            (2, "\"000\"", Parameter::Extranonce2),
            (2, "\"0g\"", Parameter::Extranonce2),
            (2, "\"0000000000000000000000000000000000\"", Parameter::Extranonce2),
            (3, "\"\"", Parameter::NTime),
            (3, "1234", Parameter::NTime),
            (4, "\"123456789\"", Parameter::Nonce),
            (5, "\"x\"", Parameter::VersionBits),
        ] {
            let mut params = good;
            params[index] = value;
            let line = format!(r#"{{"id":4,"method":"mining.submit","params":[{}]}}"#, params.join(","));
            let error = RequestError::BadParams { id: RawId(Some("4")), method: "mining.submit", parameter };
            assert_eq!(Request::parse(line.as_bytes()), Err(error), "{line}");
        }
        for (params, parameter) in
            [("[]", Parameter::User), ("{}", Parameter::User), ("[\"u\",\"1\"]", Parameter::Extranonce2)]
        {
            let line = format!(r#"{{"id":4,"method":"mining.submit","params":{params}}}"#);
            let error = RequestError::BadParams { id: RawId(Some("4")), method: "mining.submit", parameter };
            assert_eq!(Request::parse(line.as_bytes()), Err(error), "{line}");
        }
    }

    #[test]
    fn the_longest_user_name_passes_and_one_more_byte_does_not() {
        let line = |length: usize| {
            format!(r#"{{"id":2,"method":"mining.authorize","params":["{}"]}}"#, "u".repeat(length))
        };
        let longest = line(MAX_USER_BYTES);
        let Call::Authorize { user, password } = parse(&longest).call else { panic!("no authorize") };
        assert_eq!((user.len(), password.as_ref()), (MAX_USER_BYTES, ""));
        let longer = line(MAX_USER_BYTES + 1);
        assert!(matches!(
            Request::parse(longer.as_bytes()),
            Err(RequestError::BadParams { parameter: Parameter::User, .. })
        ));
    }

    #[test]
    fn a_long_user_agent_is_cut_at_a_character() {
        let line = format!(r#"{{"id":1,"method":"mining.subscribe","params":["{}"]}}"#, "é".repeat(200));
        let Call::Subscribe { user_agent, .. } = parse(&line).call else { panic!("no subscribe") };
        assert_eq!(user_agent, "é".repeat(MAX_TEXT_BYTES / 2));
    }

    #[test]
    fn extensions_are_bounded() {
        let names: Vec<String> = (0..100).map(|number| format!("\"x{number}\"")).collect();
        let line = format!(r#"{{"id":1,"method":"mining.configure","params":[[{}],{{}}]}}"#, names.join(","));
        let Call::Configure(configure) = parse(&line).call else { panic!("no configure") };
        assert_eq!(configure.others.len(), MAX_OTHER_EXTENSIONS);
    }

    #[test]
    fn targets_are_read_from_the_most_significant_digit() {
        let text = format!("00000000ffff{}", "0".repeat(52));
        assert_eq!(target(&text), Some(Target::DIFFICULTY_1));
        assert_eq!(
            target("0001"),
            Some(Target::from_le_bytes({
                let mut bytes = [0; 32];
                bytes[0] = 1;
                bytes
            }))
        );
        assert_eq!(target(""), None);
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Request::parse(&line);
        }

        #[test]
        fn no_object_makes_it_panic(
            id in "(null|[0-9]{1,30}|\"[a-z\\\\\"]{0,5}\"|\\{\\})",
            method in "(mining\\.(submit|configure|subscribe|authorize|suggest_difficulty\\(?|suggest_target)|[a-z]*)",
            params in "(\\[((\"[0-9a-fx\\\\u]{0,9}\"|null|-?[0-9]{1,9}|\\[\"version-rolling\"\\]|\\{\\}),){0,6}1\\]|\\{\\})",
        ) {
            let line = format!(r#"{{"id":{id},"method":"{method}","params":{params}}}"#);
            let _ = Request::parse(line.as_bytes());
        }

        #[test]
        fn every_good_submission_reads_back(
            user in "[a-zA-Z0-9._%-]{0,80}",
            job_id in "[0-9a-f]{1,16}",
            extranonce2 in proptest::collection::vec(any::<u8>(), 0..=MAX_EXTRANONCE2_BYTES),
            ntime: u32,
            nonce: u32,
            version_bits: Option<u32>,
        ) {
            let sixth = version_bits.map(|bits| format!(",\"{bits:08x}\"")).unwrap_or_default();
            let line = format!(
                r#"{{"params":["{user}","{job_id}","{}","{ntime:x}","{nonce:08X}"{sixth}],"id":4,"method":"mining.submit"}}"#,
                hex::encode(&extranonce2)
            );
            let extranonce2 = extranonce2.iter().copied().collect();
            let (user, job_id) = (user.into(), job_id.into());
            let submit = Submit { user, job_id, extranonce2, ntime, nonce, version_bits };
            prop_assert_eq!(parse(&line).call, Call::Submit(submit));
        }
    }
}
