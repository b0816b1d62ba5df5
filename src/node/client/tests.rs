//! The client against a node that misbehaves.

use super::*;
use crate::node::fake::{Answer, BASIC_U_B, FakeNode, empty_template};
use crate::node::rpc::MAX_ANSWER;
use axum::http::StatusCode;
use serde_json::{Value, json};

#[tokio::test]
async fn a_new_cookie_is_read_when_the_old_one_is_refused() {
    let node = FakeNode::start(|_, _| Answer::Result(json!("tip"))).await;
    let directory = tempfile::tempdir().expect("a folder");
    let cookie = directory.path().join(".cookie");
    let client = node.client_with(NodeAuth::CookieFile(cookie.clone()));

    let error = client.best_block_hash().await.expect_err("there is no cookie yet");
    assert!(matches!(error, NodeError::Cookie { .. }), "{error}");
    std::fs::write(&cookie, "u:a").expect("written");
    assert_eq!(client.best_block_hash().await.expect("answers"), "tip");

    *node.authorization.lock().expect("unpoisoned") = BASIC_U_B.to_owned();
    std::fs::write(&cookie, "u:b\n").expect("written");
    assert_eq!(client.best_block_hash().await.expect("answers"), "tip");

    std::fs::write(&cookie, "nonsense").expect("written");
    assert_eq!(client.best_block_hash().await.expect("the known cookie still works"), "tip");
    *node.authorization.lock().expect("unpoisoned") = String::new();
    assert!(matches!(client.best_block_hash().await, Err(NodeError::Cookie { .. })));
}

#[tokio::test]
async fn wrong_credentials_are_the_configs_fault() {
    let node = FakeNode::start(|_, _| Answer::Result(json!("tip"))).await;
    let password = SecretString::from("a secret that must not be seen");
    let client = node.client_with(NodeAuth::UserPassword { user: "u".to_owned(), password });
    let error = client.best_block_hash().await.expect_err("refused");
    assert!(error.is_config());
    assert!(!format!("{client:?} {error} {error:?}").contains("secret"));
}

#[tokio::test]
async fn every_answer_to_a_block_has_its_meaning() {
    let node = FakeNode::start(|method, params| {
        assert_eq!(method, "submitblock");
        match params[0].as_str().expect("hexadecimal") {
            "00" => Answer::Result(Value::Null),
            "01" => Answer::Result(json!("duplicate")),
            "02" => Answer::Result(json!("duplicate-invalid")),
            "03" => Answer::Result(json!("duplicate-inconclusive")),
            "04" => Answer::Result(json!("inconclusive")),
            "05" => Answer::Result(json!("high-hash")),
            "06" => Answer::Error(-22, "Block decode failed"),
            _ => Answer::Result(json!(5)),
        }
    })
    .await;
    let client = node.client();
    let expected = [
        SubmitAnswer::Accepted,
        SubmitAnswer::Duplicate,
        SubmitAnswer::DuplicateInvalid,
        SubmitAnswer::DuplicateInconclusive,
        SubmitAnswer::Inconclusive,
        SubmitAnswer::Rejected("high-hash".to_owned()),
    ];
    for (block, answer) in (0u8..).zip(expected) {
        assert_eq!(client.submit_block(&[block]).await.expect("answers"), answer);
    }
    assert!(client.submit_block(&[6]).await.expect_err("refused").is_final());
    assert!(matches!(client.submit_block(&[7]).await, Err(NodeError::BadAnswer { .. })));
}

#[tokio::test]
async fn answers_that_no_node_gives_are_errors() {
    let node = FakeNode::start(|method, _| match method {
        "too-long" => Answer::Raw(StatusCode::OK, " ".repeat(MAX_ANSWER + 1)),
        "html" => Answer::Raw(StatusCode::OK, "<html>not a node</html>".to_owned()),
        "empty" => Answer::Raw(StatusCode::OK, String::new()),
        "busy" => Answer::Raw(StatusCode::SERVICE_UNAVAILABLE, "Work queue depth exceeded".to_owned()),
        "redirect" => Answer::Raw(StatusCode::FOUND, String::new()),
        _ => Answer::Error(-28, "Loading block index..."),
    })
    .await;
    let client = node.client();
    for method in ["too-long", "html", "empty", "redirect"] {
        let error = client.call::<Value>(method, json!([])).await.expect_err(method);
        assert!(matches!(error, NodeError::BadAnswer { .. }), "{method}: {error}");
    }
    assert!(matches!(client.call::<Value>("busy", json!([])).await, Err(NodeError::Busy { .. })));
    let starting = client.chain_info().await.expect_err("still starting");
    assert!(matches!(starting, NodeError::Rpc { code: -28, .. }));
    assert!(!starting.is_final() && !starting.is_config());
}

#[tokio::test]
async fn templates_are_asked_for_as_nodes_want_it() {
    let node = FakeNode::start(|method, params| {
        assert_eq!(method, "getblocktemplate");
        assert_eq!(params[0]["rules"], json!(["segwit", "signet"]));
        let id = params[0]["longpollid"].as_str().unwrap_or("none");
        Answer::Result(empty_template(5, 1, id))
    })
    .await;
    let (client, clock) = (node.client(), Clock::start());
    let first = client.block_template(TemplateId(1), None, &clock).await.expect("answers");
    assert_eq!(first.long_poll_id.as_deref(), Some("none"));
    let second = client.block_template(TemplateId(2), Some("x\"y"), &clock).await.expect("answers");
    assert_eq!(second.long_poll_id.as_deref(), Some("x\"y"));
    assert_eq!(second.height, 5);
}

#[tokio::test]
async fn nobody_at_the_address_is_no_fault_of_the_config() {
    let address = FakeNode::start(|_, _| Answer::Never).await.address;
    let auth = NodeAuth::UserPassword { user: "u".to_owned(), password: SecretString::from("a") };
    let settings = NodeClientSettings { url: format!("http://{address}"), auth };
    let client = NodeClient::new(settings).expect("the URL is one");
    let error = client.best_block_hash().await.expect_err("nobody listens");
    assert!(matches!(error, NodeError::Unreachable(_)), "{error}");
}

#[test]
fn urls_that_cannot_work_are_refused() {
    for url in ["https://127.0.0.1:8332", "127.0.0.1:8332", "http://u:secret@127.0.0.1:8332", "", "http://"] {
        let auth = NodeAuth::CookieFile("/nowhere".into());
        let error = NodeClient::new(NodeClientSettings { url: url.to_owned(), auth }).expect_err(url);
        assert!(error.is_config());
        assert!(!error.to_string().contains("secret"));
    }
}
