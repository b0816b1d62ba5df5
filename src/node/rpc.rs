//! JSON-RPC over HTTP as Bitcoin Core speaks it: one call, one bounded answer.
//!
//! This module never retries and knows no method by name.

use std::error::Error;
use std::time::Duration;

use reqwest::{Client, StatusCode, Url, redirect};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::error::NodeError;

/// Longest answer that is read: a template of the heaviest block has about 8 MB of hexadecimal besides the
/// fields of its transactions. A longer answer is refused.
pub(crate) const MAX_ANSWER: usize = 32 * 1024 * 1024;

/// How long a connection to the node may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Bitcoin Core closes connections that were idle for 30 seconds; a call must not run into that.
const POOL_IDLE: Duration = Duration::from_secs(20);

/// How often the system asks whether a silent node is still there: a long poll is silent for minutes.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// The longest piece of an answer that an error shows.
const SHOWN_ANSWER: usize = 200;

/// User and password of one call.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) user: String,
    pub(crate) password: SecretString,
}

/// One node's address and the connections to it.
#[derive(Clone)]
pub(crate) struct Endpoint {
    http: Client,
    url: Url,
}

impl Endpoint {
    /// Checks the URL; nothing is dialled.
    pub(crate) fn new(url: &str) -> Result<Self, NodeError> {
        let wrong =
            |url: &str, reason: &str| NodeError::Url { url: url.to_owned(), reason: reason.to_owned() };
        let parsed = Url::parse(url).map_err(|error| wrong("(not shown)", &error.to_string()))?;
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err(wrong("(not shown)", "user and password have keys of their own"));
        }
        if parsed.scheme() != "http" {
            return Err(wrong(url, "Bitcoin Core's JSON-RPC is plain http"));
        }
        if parsed.host_str().is_none() {
            return Err(wrong(url, "it names no host"));
        }
        // A proxy of the environment must never see the cookie, and a redirect would take it elsewhere.
        let http = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(POOL_IDLE)
            .tcp_keepalive(KEEPALIVE)
            .tcp_keepalive_interval(KEEPALIVE)
            .build()
            .map_err(|error| wrong(url, &error.to_string()))?;
        Ok(Endpoint { http, url: parsed })
    }

    /// The address, for logs: it holds no secret.
    pub(crate) fn url(&self) -> &str {
        self.url.as_str()
    }

    /// Posts a [`request`] or a [`batch`] of them and returns the bytes of the answer, whatever it says.
    pub(crate) async fn call(
        &self,
        method: &str,
        body: &str,
        credentials: Option<&Credentials>,
        timeout: Duration,
    ) -> Result<Vec<u8>, NodeError> {
        let mut request = self
            .http
            .post(self.url.clone())
            .header("content-type", "application/json")
            .timeout(timeout)
            .body(body.to_owned());
        if let Some(Credentials { user, password }) = credentials {
            request = request.basic_auth(user, Some(password.expose_secret()));
        }
        let mut response = request.send().await.map_err(|error| transport_error(method, &error))?;
        match response.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(NodeError::Unauthorized),
            StatusCode::SERVICE_UNAVAILABLE => return Err(NodeError::Busy { method: method.to_owned() }),
            _ => {}
        }
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| transport_error(method, &error))? {
            if answer.len() + chunk.len() > MAX_ANSWER {
                return Err(bad_answer(method, format!("it is longer than {MAX_ANSWER} bytes")));
            }
            answer.extend_from_slice(&chunk);
        }
        Ok(answer)
    }
}

/// A call of `method`. `params` is a JSON array.
pub(crate) fn request(method: &str, params: &str) -> String {
    numbered(0, method, params)
}

/// Calls of `method`, one for each of `params`, in one request. The caller bounds their number and their answers.
pub(crate) fn batch(method: &str, params: &[String]) -> String {
    let calls: Vec<String> =
        params.iter().enumerate().map(|(id, params)| numbered(id, method, params)).collect();
    format!("[{}]", calls.join(","))
}

fn numbered(id: usize, method: &str, params: &str) -> String {
    format!(r#"{{"jsonrpc":"1.0","id":{id},"method":"{method}","params":{params}}}"#)
}

/// The results of a [`batch`] of `count` calls in their order; `None` where the node gave an error.
pub(crate) fn results<'a>(
    method: &str,
    answer: &'a [u8],
    count: usize,
) -> Result<Vec<Option<&'a RawValue>>, NodeError> {
    let answers: Vec<Numbered<'a>> =
        serde_json::from_slice(answer).map_err(|error| bad_answer(method, error.to_string()))?;
    let mut results = vec![None; count];
    for Numbered { id, result, error } in answers {
        let place = usize::try_from(id).ok().and_then(|id| results.get_mut(id));
        let place = place.ok_or_else(|| bad_answer(method, format!("nobody made call {id}")))?;
        *place = if error.is_none() { result } else { None };
    }
    Ok(results)
}

/// One answer of a batch.
#[derive(Deserialize)]
struct Numbered<'a> {
    id: u64,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(default)]
    error: Option<RpcError>,
}

/// The two things that an answer says, of JSON-RPC 1 and 2 alike.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(default)]
    error: Option<RpcError>,
}

#[derive(Deserialize)]
struct RpcError {
    code: i64,
    #[serde(default)]
    message: String,
}

/// The result in an answer, still as JSON text; `null` when there is none.
pub(crate) fn result<'a>(method: &str, answer: &'a [u8]) -> Result<&'a str, NodeError> {
    let envelope: Envelope<'a> = serde_json::from_slice(answer).map_err(|error| {
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(SHOWN_ANSWER)]);
        bad_answer(method, format!("{error}; it begins with {shown:?}"))
    })?;
    match envelope.error {
        Some(RpcError { code, message }) => Err(NodeError::Rpc { method: method.to_owned(), code, message }),
        None => Ok(envelope.result.map_or("null", RawValue::get)),
    }
}

pub(crate) fn bad_answer(method: &str, reason: String) -> NodeError {
    NodeError::BadAnswer { method: method.to_owned(), reason }
}

fn transport_error(method: &str, error: &reqwest::Error) -> NodeError {
    if error.is_timeout() && !error.is_connect() {
        return NodeError::Timeout { method: method.to_owned() };
    }
    // What the operator needs to know (refused, no such host) is at the end of the chain of causes.
    let mut cause: &dyn Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    NodeError::Unreachable(cause.to_string())
}
