//! Blocks reach a node that is slow to take them, and the disk.

use super::*;
use crate::node::fake::{Answer, FakeNode};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU32, Ordering};

fn submitter(node: &FakeNode, directory: &Path, deadline: Duration) -> BlockSubmitter {
    let settings = SubmitterSettings { directory: directory.to_owned(), deadline };
    BlockSubmitter::new(Arc::new(node.client()), settings)
}

#[tokio::test]
async fn a_block_is_submitted_until_it_is_judged_and_saved() {
    let attempts = AtomicU32::new(0);
    let node = FakeNode::start(move |_, _| match attempts.fetch_add(1, Ordering::Relaxed) {
        0 => Answer::Error(-28, "Loading block index..."),
        1 => Answer::Raw(axum::http::StatusCode::SERVICE_UNAVAILABLE, String::new()),
        _ => Answer::Result(Value::Null),
    })
    .await;
    let directory = tempfile::tempdir().expect("a folder");
    let blocks = directory.path().join("made/when/missing");
    let block = vec![7; 300];
    let report = submitter(&node, &blocks, DEFAULT_DEADLINE).submit(12, block.clone()).await;
    assert_eq!(report.outcome, SubmitOutcome::Accepted);
    let path = report.saved.await.expect("no panic").expect("saved");
    let hash = displayed(&stratum::hash::sha256d(&block[..80]));
    assert_eq!(path, blocks.join(format!("12-{hash}.block")));
    assert_eq!(std::fs::read_to_string(path).expect("is there"), hex::encode(block));
}

#[tokio::test]
async fn a_full_disk_does_not_stop_a_block() {
    let node = FakeNode::start(|_, _| Answer::Result(json!("duplicate"))).await;
    let directory = tempfile::tempdir().expect("a folder");
    let file = directory.path().join("a-file-where-the-folder-should-be");
    std::fs::write(&file, "").expect("written");
    let report = submitter(&node, &file, DEFAULT_DEADLINE).submit(12, vec![7; 300]).await;
    assert_eq!(report.outcome, SubmitOutcome::AlreadyKnown);
    assert!(report.saved.await.expect("no panic").is_err());
}

#[tokio::test]
async fn a_judgement_is_final() {
    for (answer, reason) in [("bad-cb-amount", "bad-cb-amount"), ("inconclusive", "inconclusive")] {
        let node = FakeNode::start(move |_, _| Answer::Result(json!(answer))).await;
        let directory = tempfile::tempdir().expect("a folder");
        let report = submitter(&node, directory.path(), DEFAULT_DEADLINE).submit(1, vec![7; 300]).await;
        assert_eq!(report.outcome, SubmitOutcome::Rejected(reason.to_owned()));
        assert!(!report.outcome.is_accepted());
    }
}

#[tokio::test]
async fn a_node_that_never_judges_is_given_up() {
    let directory = tempfile::tempdir().expect("a folder");
    for silent in [true, false] {
        let node = FakeNode::start(move |_, _| {
            if silent { Answer::Never } else { Answer::Error(-28, "Loading block index...") }
        })
        .await;
        let submitter = submitter(&node, directory.path(), Duration::from_millis(250));
        let report = submitter.submit(1, vec![7; 300]).await;
        assert!(matches!(report.outcome, SubmitOutcome::Failed(_)), "{:?}", report.outcome);
        assert!(report.saved.await.expect("no panic").is_ok());
    }
}
