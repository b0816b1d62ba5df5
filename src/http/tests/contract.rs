//! The OpenAPI document and the server say the same: every path and method of the one is asked of the other.

use serde_json::Value;

use super::api::{ADMIN, READ, ask, start_api};
use super::*;
use crate::http::access::Gate;
use crate::http::routes::routes;

fn document() -> Value {
    serde_json::from_str(super::super::api::OPENAPI).expect("the document is JSON")
}

/// Each path with its method and what is said of it.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let paths = document["paths"].as_object().expect("there are paths");
    let methods = |(path, methods): (&String, &Value)| {
        let methods = methods.as_object().expect("methods").clone();
        let path = path.clone();
        methods.into_iter().map(move |(method, operation)| (method, path.clone(), operation))
    };
    paths.iter().flat_map(methods).collect()
}

/// The path with the document's own examples filled in, and those of the query behind it.
fn example_of(path: &str, operation: &Value) -> String {
    let mut path = path.to_owned();
    let mut query = form_urlencoded::Serializer::new(String::new());
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let name = parameter["name"].as_str().expect("a name");
        let example = &parameter["example"];
        match parameter["in"].as_str().expect("a place") {
            "path" => path = path.replace(&format!("{{{name}}}"), &escape(&text(example))),
            "query" if !example.is_null() => drop(query.append_pair(name, &text(example))),
            _ => {}
        }
    }
    match query.finish() {
        query if query.is_empty() => path,
        query => format!("{path}?{query}"),
    }
}

fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

#[test]
fn every_route_is_in_the_document_and_nothing_else() {
    let config = super::api::config(None, None, 600);
    let mut served: Vec<(String, String)> = routes(Arc::new(Gate::new(&config, Clock::start())))
        .list
        .into_iter()
        .map(|(method, path)| (method.to_owned(), path.to_owned()))
        .collect();
    let mut documented: Vec<(String, String)> =
        operations(&document()).into_iter().map(|(method, path, _)| (method, path)).collect();
    served.sort();
    documented.sort();
    assert_eq!(served, documented, "what is served on the left, what is documented on the right");
}

#[tokio::test]
async fn every_answer_is_what_the_document_says() {
    let document = document();
    let server = start_api(Some(READ), Some(ADMIN), 60_000).await;
    for (method, path, operation) in operations(&document) {
        let uri = example_of(&path, &operation);
        let body = &operation["requestBody"]["content"]["application/json"];
        if !body.is_null() {
            let wrong = schema::check(&document, &body["schema"], &body["example"], &path);
            assert!(wrong.is_empty(), "the example of {path}: {wrong:#?}");
        }
        let body = if body.is_null() { String::new() } else { body["example"].to_string() };
        let answer = ask(&server, &method, &uri, Some(ADMIN), &body).await;
        assert_eq!(answer.status, 200, "{method} {uri}: {}", answer.body);
        let contents = operation["responses"]["200"]["content"].as_object().expect("a content");
        let (kind, content) = contents.iter().next().expect("one kind");
        assert!(answer.kind.starts_with(kind.as_str()), "{uri} is {}, not {kind}", answer.kind);
        if kind == "application/json" || kind == "text/event-stream" {
            let value: Value =
                serde_json::from_str(&answer.body).unwrap_or_else(|_| panic!("{uri}: {}", answer.body));
            let wrong = schema::check(&document, &content["schema"], &value, &uri);
            assert!(wrong.is_empty(), "{wrong:#?}");
        }
    }
}

/// Who may ask what is as the document says, and each refusal is a problem that it lists.
#[tokio::test]
async fn every_path_takes_the_token_that_the_document_says() {
    let document = document();
    let server = start_api(Some(READ), Some(ADMIN), 60_000).await;
    for (method, path, operation) in operations(&document) {
        let uri = example_of(&path, &operation);
        let access = operation["x-access"].as_str().expect("each says what it takes");
        for (token, allowed) in [
            (None, &["public"][..]),
            (Some("a-token-of-somebody-else"), &["public"]),
            (Some(READ), &["public", "read"]),
        ] {
            let answer = ask(&server, &method, &uri, token, "[]").await;
            if allowed.contains(&access) {
                assert_eq!(answer.status, 200, "{token:?} {uri}");
                continue;
            }
            let expected = if token == Some(READ) { 403 } else { 401 };
            assert_eq!(answer.status, expected, "{token:?} {uri}");
            let response =
                &operation["responses"][expected.to_string()]["content"]["application/problem+json"];
            assert_eq!(answer.kind, "application/problem+json");
            let value: Value = serde_json::from_str(&answer.body).expect("a problem");
            let wrong = schema::check(&document, &response["schema"], &value, &uri);
            assert!(wrong.is_empty(), "{wrong:#?}");
        }
    }
}

/// An unknown parameter is refused wherever parameters are known.
#[tokio::test]
async fn every_path_refuses_what_it_does_not_know() {
    let document = document();
    let server = start_api(None, None, 60_000).await;
    for (method, path, operation) in operations(&document) {
        if method != "get" || operation["responses"]["400"].is_null() {
            continue;
        }
        let uri = example_of(&path, &operation);
        let uri = format!("{uri}{}colour=red", if uri.contains('?') { '&' } else { '?' });
        let answer = ask(&server, &method, &uri, None, "").await;
        assert_eq!(answer.status, 400, "{uri}");
        assert!(answer.body.contains("colour"), "{}", answer.body);
    }
}

/// Every schema is used, and every reference leads somewhere.
#[test]
fn the_document_has_no_loose_ends() {
    let document = document();
    let text = super::super::api::OPENAPI;
    for name in document["components"]["schemas"].as_object().expect("schemas").keys() {
        assert!(text.contains(&format!("\"#/components/schemas/{name}\"")), "nothing uses {name}");
    }
    let page = include_str!("../reference.html");
    for kind in [
        "bad-request",
        "unauthorised",
        "forbidden",
        "not-found",
        "wrong-method",
        "too-long",
        "too-many-requests",
        "too-many-streams",
        "closed",
        "no-ledger",
        "ledger-failed",
    ] {
        assert!(page.contains(&format!("problem-{kind}")), "the reference explains {kind}");
    }
}
