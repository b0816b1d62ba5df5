//! A node for unit tests that answers whatever the test wants.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::client::{NodeAuth, NodeClient, NodeClientSettings};

/// The HTTP header of the user `u` with the password `a`.
pub(crate) const BASIC_U_A: &str = "Basic dTph";

/// The HTTP header of the user `u` with the password `b`.
pub(crate) const BASIC_U_B: &str = "Basic dTpi";

/// What the fake does with one call.
pub(crate) enum Answer {
    /// JSON-RPC success.
    Result(Value),
    /// JSON-RPC failure, with the HTTP status that Bitcoin Core gives it.
    Error(i64, &'static str),
    /// Anything else.
    Raw(StatusCode, String),
    /// Silence.
    Never,
}

type Behaviour = dyn Fn(&str, &Value) -> Answer + Send + Sync;

/// A listening fake; it is gone when this is dropped.
pub(crate) struct FakeNode {
    pub(crate) address: SocketAddr,
    /// The header that callers must send.
    pub(crate) authorization: Arc<Mutex<String>>,
    server: JoinHandle<()>,
}

impl FakeNode {
    pub(crate) async fn start(behaviour: impl Fn(&str, &Value) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback can be bound");
        let address = listener.local_addr().expect("bound");
        let authorization = Arc::new(Mutex::new(BASIC_U_A.to_owned()));
        let expected = authorization.clone();
        let behaviour: Arc<Behaviour> = Arc::new(behaviour);
        let router = Router::new().fallback(move |headers: HeaderMap, body: String| {
            let expected = expected.lock().expect("unpoisoned").clone();
            answer(behaviour.clone(), expected, headers, body)
        });
        let server = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("serves");
        });
        FakeNode { address, authorization, server }
    }

    pub(crate) fn client(&self) -> NodeClient {
        self.client_with(NodeAuth::UserPassword { user: "u".to_owned(), password: SecretString::from("a") })
    }

    pub(crate) fn client_with(&self, auth: NodeAuth) -> NodeClient {
        let settings = NodeClientSettings { url: format!("http://{}", self.address), auth };
        NodeClient::new(settings).expect("the URL is one")
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn answer(
    behaviour: Arc<Behaviour>,
    expected: String,
    headers: HeaderMap,
    body: String,
) -> (StatusCode, String) {
    if headers.get("authorization").is_none_or(|header| header != expected.as_str()) {
        return (StatusCode::UNAUTHORIZED, String::new());
    }
    let call: Value = serde_json::from_str(&body).expect("a call is JSON");
    let method = call["method"].as_str().expect("a call has a method");
    match behaviour(method, &call["params"]) {
        Answer::Result(result) => {
            (StatusCode::OK, json!({ "result": result, "error": null, "id": 0 }).to_string())
        }
        Answer::Error(code, message) => {
            let error = json!({ "code": code, "message": message });
            let body = json!({ "result": null, "error": error, "id": 0 });
            (StatusCode::INTERNAL_SERVER_ERROR, body.to_string())
        }
        Answer::Raw(status, body) => (status, body),
        Answer::Never => std::future::pending().await,
    }
}

/// The result of `getblocktemplate` for an empty block on a made-up tip.
pub(crate) fn empty_template(height: u32, tip: u8, long_poll_id: &str) -> Value {
    json!({
        "version": 0x2000_0000,
        "previousblockhash": hex::encode([tip; 32]),
        "transactions": [],
        "coinbasevalue": 5_000_000_000u64,
        "longpollid": long_poll_id,
        "mintime": 1_700_000_000,
        "curtime": 1_700_000_100,
        "bits": "207fffff",
        "height": height,
    })
}
