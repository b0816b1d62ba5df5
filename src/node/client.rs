//! The calls that we make to Bitcoin Core.
//!
//! This module never repeats a call, but for one case: a call that fails with a cookie from before the node's
//! restart is made once more with the new cookie.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use stratum::TemplateId;
use stratum::hash::Hash;
use template::BlockTemplate;
use template::block_template::displayed;

use super::error::NodeError;
use super::rpc::{Credentials, Endpoint, bad_answer, batch, request, result, results};
use crate::clock::Clock;

/// How long a call may take. A template of a full block takes a busy node seconds.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a long poll may take. Nodes answer after a minute when transactions came in, and at every new
/// tip; a node that is gone is noticed by the connection's keep-alive.
const LONG_POLL_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// How long the node may wait for a block before it says that there is none; well below [`CALL_TIMEOUT`].
const TIP_WAIT: Duration = Duration::from_secs(45);

/// Most of a cookie file that is read; Bitcoin Core's are 75 bytes.
const MAX_COOKIE: u64 = 1024;

/// The rules that we follow (BIP 9). Nodes on a signet insist on its name, and others do not mind it.
const RULES: [&str; 2] = ["segwit", "signet"];

/// How we prove to the node that we may call it.
#[derive(Clone)]
pub enum NodeAuth {
    /// The file that the node writes at every start (`.cookie` in its data folder). Read again when a call
    /// fails.
    CookieFile(PathBuf),
    /// A user and a password of the node's configuration.
    UserPassword {
        /// The user.
        user: String,
        /// The password; never shown.
        password: SecretString,
    },
}

/// What a client needs to know.
#[derive(Clone, Debug)]
pub struct NodeClientSettings {
    /// Where the node listens, for instance `http://127.0.0.1:8332`.
    pub url: String,
    /// How we prove that we may call it.
    pub auth: NodeAuth,
}

/// One node's JSON-RPC.
pub struct NodeClient {
    endpoint: Endpoint,
    auth: NodeAuth,
    /// The cookie that was read last; forgotten when a call with it fails.
    cookie: Mutex<Option<Credentials>>,
}

/// What a node says to a submitted block (BIP 22).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubmitAnswer {
    /// The block is the new tip.
    Accepted,
    /// The node had the block already, and it is valid.
    Duplicate,
    /// The node had the block already, and it is invalid.
    DuplicateInvalid,
    /// The node had the block already and has not judged it.
    DuplicateInconclusive,
    /// The node keeps the block without having judged it: it does not extend the best chain.
    Inconclusive,
    /// The block is invalid, for this reason.
    Rejected(String),
}

/// What `getblockchaininfo` says, as far as we use it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ChainInfo {
    /// `main`, `test`, `testnet4`, `signet` or `regtest`.
    pub chain: String,
    /// The height of the tip.
    pub blocks: u32,
    /// The hash of the tip, as nodes print it.
    pub bestblockhash: String,
    /// Whether the node still catches up with the chain.
    pub initialblockdownload: bool,
}

/// What `getblockheader` says, as far as we use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHeader {
    /// Blocks of the best chain from this one on: 1 for the tip, -1 for a block that is not on the best chain.
    pub confirmations: i64,
    /// Its height.
    pub height: u32,
    /// Its compact target.
    pub nbits: u32,
    /// Its time; unix seconds.
    pub time: u32,
    /// The median time of it and the ten blocks before; unix seconds.
    pub median_time: u32,
}

#[derive(Deserialize)]
struct HeaderAnswer {
    confirmations: i64,
    height: u32,
    bits: String,
    time: u32,
    mediantime: u32,
}

#[derive(Deserialize)]
struct TipAnswer {
    hash: String,
    height: u32,
}

impl NodeClient {
    /// A client; nothing is dialled and no file is read before the first call.
    pub fn new(settings: NodeClientSettings) -> Result<Self, NodeError> {
        Ok(NodeClient {
            endpoint: Endpoint::new(&settings.url)?,
            auth: settings.auth,
            cookie: Mutex::new(None),
        })
    }

    /// Where the node listens. Holds no secret.
    pub fn url(&self) -> &str {
        self.endpoint.url()
    }

    /// The node's newest template. With the `long_poll_id` of an older one the answer waits until that one is
    /// outdated: at once at a new tip, after a minute when transactions came in.
    pub async fn block_template(
        &self,
        id: TemplateId,
        long_poll_id: Option<&str>,
        clock: &Clock,
    ) -> Result<BlockTemplate, NodeError> {
        const METHOD: &str = "getblocktemplate";
        let mut options = serde_json::json!({ "rules": RULES });
        if let Some(long_poll_id) = long_poll_id {
            options["longpollid"] = long_poll_id.into();
        }
        let timeout = if long_poll_id.is_some() { LONG_POLL_TIMEOUT } else { CALL_TIMEOUT };
        let params = serde_json::json!([options]).to_string();
        let answer = self.call_with_auth(METHOD, &request(METHOD, &params), timeout).await?;
        let received = clock.now();
        Ok(BlockTemplate::from_json(id, result(METHOD, &answer)?.as_bytes(), received)?)
    }

    /// Submits a block.
    pub async fn submit_block(&self, block: &[u8]) -> Result<SubmitAnswer, NodeError> {
        self.submit_block_hex(&hex::encode(block)).await
    }

    /// Submits a block that is hexadecimal already, for those who may have to do it more than once.
    pub async fn submit_block_hex(&self, block: &str) -> Result<SubmitAnswer, NodeError> {
        const METHOD: &str = "submitblock";
        let answer =
            self.call_with_auth(METHOD, &request(METHOD, &format!("[\"{block}\"]")), CALL_TIMEOUT).await?;
        let reason: Option<String> = parsed(METHOD, result(METHOD, &answer)?)?;
        Ok(submit_answer(reason))
    }

    /// Asks whether a block would be valid, proof of work aside (BIP 23): `None` when it would.
    pub async fn propose_block(&self, block: &[u8]) -> Result<Option<String>, NodeError> {
        let proposal =
            serde_json::json!([{ "mode": "proposal", "data": hex::encode(block), "rules": RULES }]);
        self.call("getblocktemplate", proposal).await
    }

    /// What chain the node is on, and how far.
    pub async fn chain_info(&self) -> Result<ChainInfo, NodeError> {
        self.call("getblockchaininfo", serde_json::json!([])).await
    }

    /// The hash of the node's tip, as nodes print it.
    pub async fn best_block_hash(&self) -> Result<String, NodeError> {
        self.call("getbestblockhash", serde_json::json!([])).await
    }

    /// The header of a block that the node has, and where it stands.
    pub async fn block_header(&self, hash: &Hash) -> Result<BlockHeader, NodeError> {
        const METHOD: &str = "getblockheader";
        let answer: HeaderAnswer = self.call(METHOD, serde_json::json!([displayed(hash)])).await?;
        let nbits = u32::from_str_radix(&answer.bits, 16)
            .map_err(|_| bad_answer(METHOD, "bits are not hexadecimal".to_owned()))?;
        Ok(BlockHeader {
            confirmations: answer.confirmations,
            height: answer.height,
            nbits,
            time: answer.time,
            median_time: answer.mediantime,
        })
    }

    /// The hash of the block of this height on the best chain.
    pub async fn block_hash(&self, height: u32) -> Result<Hash, NodeError> {
        const METHOD: &str = "getblockhash";
        let hash: String = self.call(METHOD, serde_json::json!([height])).await?;
        parse_hash(METHOD, &hash)
    }

    /// Waits until the node's tip has this height, and returns the tip. The node says so at once when the block is
    /// validated, before it makes a template for it.
    pub async fn tip_of_height(&self, height: u32) -> Result<Hash, NodeError> {
        const METHOD: &str = "waitforblockheight";
        loop {
            let wait = serde_json::json!([height, TIP_WAIT.as_millis() as u64]);
            let tip: TipAnswer = self.call(METHOD, wait).await?;
            if tip.height >= height {
                return parse_hash(METHOD, &tip.hash);
            }
        }
    }

    /// Any other call. `params` is an array; `method` is a name, not something that a peer sent.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        params: serde_json::Value,
    ) -> Result<T, NodeError> {
        let body = request(method, &params.to_string());
        let answer = self.call_with_auth(method, &body, CALL_TIMEOUT).await?;
        parsed(method, result(method, &answer)?)
    }

    /// Calls `method` with each of `params`, which are arrays, in one request. `None` for a call that the node refuses,
    /// or whose answer is no `T`. The caller bounds what comes back: one answer has at most 32 MiB.
    pub async fn call_each<T: DeserializeOwned>(
        &self,
        method: &str,
        params: &[serde_json::Value],
    ) -> Result<Vec<Option<T>>, NodeError> {
        let params: Vec<String> = params.iter().map(ToString::to_string).collect();
        let answer = self.call_with_auth(method, &batch(method, &params), CALL_TIMEOUT).await?;
        let results = results(method, &answer, params.len())?;
        Ok(results.into_iter().map(|one| serde_json::from_str(one?.get()).ok()).collect())
    }

    async fn call_with_auth(
        &self,
        method: &str,
        body: &str,
        timeout: Duration,
    ) -> Result<Vec<u8>, NodeError> {
        let NodeAuth::CookieFile(path) = &self.auth else {
            let credentials = self.password_credentials();
            return self.endpoint.call(method, body, credentials.as_ref(), timeout).await;
        };
        let known = self.lock_cookie().clone();
        let was_known = known.is_some();
        let credentials = match known {
            Some(cookie) => cookie,
            None => self.read_cookie(path).await?,
        };
        let answer = self.endpoint.call(method, body, Some(&credentials), timeout).await;
        match answer {
            Err(error) if error.may_need_fresh_cookie() => {
                *self.lock_cookie() = None;
                if !(was_known && matches!(error, NodeError::Unauthorized)) {
                    return Err(error);
                }
                let credentials = self.read_cookie(path).await?;
                self.endpoint.call(method, body, Some(&credentials), timeout).await
            }
            answer => answer,
        }
    }

    fn password_credentials(&self) -> Option<Credentials> {
        match &self.auth {
            NodeAuth::UserPassword { user, password } => {
                Some(Credentials { user: user.clone(), password: password.clone() })
            }
            NodeAuth::CookieFile(_) => None,
        }
    }

    async fn read_cookie(&self, path: &Path) -> Result<Credentials, NodeError> {
        use tokio::io::AsyncReadExt;
        let failed = |reason: String| NodeError::Cookie { path: path.to_owned(), reason };
        let file = tokio::fs::File::open(path).await.map_err(|error| failed(error.to_string()))?;
        let mut text = String::new();
        file.take(MAX_COOKIE).read_to_string(&mut text).await.map_err(|error| failed(error.to_string()))?;
        let Some((user, password)) = text.trim_end().split_once(':') else {
            return Err(failed("it is no cookie of Bitcoin Core".to_owned()));
        };
        let credentials = Credentials { user: user.to_owned(), password: password.to_owned().into() };
        *self.lock_cookie() = Some(credentials.clone());
        Ok(credentials)
    }

    /// Held only to copy the cookie, never while a call is under way.
    fn lock_cookie(&self) -> std::sync::MutexGuard<'_, Option<Credentials>> {
        self.cookie.lock().expect("nothing panics while it holds the cookie")
    }
}

fn parsed<T: DeserializeOwned>(method: &str, result: &str) -> Result<T, NodeError> {
    serde_json::from_str(result).map_err(|error| bad_answer(method, error.to_string()))
}

/// A hash as nodes print it.
fn parse_hash(method: &str, text: &str) -> Result<Hash, NodeError> {
    let mut hash = [0; 32];
    match hex::decode_to_slice(text, &mut hash) {
        Ok(()) => {
            hash.reverse();
            Ok(hash)
        }
        Err(_) => Err(bad_answer(method, "it holds no hash of 64 hexadecimal digits".to_owned())),
    }
}

/// What a node's reason for not taking a block means (BIP 22).
pub(super) fn submit_answer(reason: Option<String>) -> SubmitAnswer {
    match reason.as_deref() {
        None => SubmitAnswer::Accepted,
        Some("duplicate") => SubmitAnswer::Duplicate,
        Some("duplicate-invalid") => SubmitAnswer::DuplicateInvalid,
        Some("duplicate-inconclusive") => SubmitAnswer::DuplicateInconclusive,
        Some("inconclusive") => SubmitAnswer::Inconclusive,
        Some(reason) => SubmitAnswer::Rejected(reason.to_owned()),
    }
}

impl fmt::Debug for NodeAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NodeAuth::CookieFile(path) => f.debug_tuple("CookieFile").field(path).finish(),
            NodeAuth::UserPassword { user, .. } => {
                f.debug_struct("UserPassword").field("user", user).finish_non_exhaustive()
            }
        }
    }
}

impl fmt::Debug for NodeClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeClient")
            .field("url", &self.url())
            .field("auth", &self.auth)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
