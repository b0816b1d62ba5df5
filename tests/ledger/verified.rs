//! What `verify` finds when somebody has been at the files.

use std::fs;
use std::path::Path;

use accounting::{BatchNumber, RollUp};
use checkweigh::ledger::verify::{Findings, verify};
use checkweigh::ledger::{Head, Retention, SqliteReader, SqliteStore, Store, Views};

use crate::chain;

/// Days from 1970 to the first day of the chain.
const FIRST_DAY: u64 = 20_782;

/// A ledger of three days. Returns the last number of each.
fn three_days(folder: &Path) -> [u64; 3] {
    let (mut store, mut views, opening) = SqliteStore::open(folder, chain::KEEP_ALL).expect("it opens");
    let mut head = Head::NONE;
    let mut lasts = [0; 3];
    loop {
        let batch = chain::next(opening.ledger, head);
        let day = (batch.last_us / 86_400_000_000 - FIRST_DAY) as usize;
        if day == lasts.len() {
            break;
        }
        store.append(&batch).expect("it is appended");
        head = Head { number: batch.number, hash: batch.hash };
        lasts[day] = head.number.0;
    }
    views.roll_up(&RollUp { watermark: head.number, ..RollUp::default() }).expect("it is kept");
    lasts
}

fn found(folder: &Path) -> Findings {
    let reader = SqliteReader::open(folder).expect("it can be read");
    verify(&reader, |_, _| {}).expect("it can be read")
}

#[test]
fn a_day_that_was_taken_away_is_missed() {
    let folder = tempfile::tempdir().expect("a folder");
    let lasts = three_days(folder.path());
    let whole = found(folder.path());
    assert_eq!((whole.batches, whole.faults_total, &whole.notes), (lasts[2], 0, &Vec::new()));
    assert_eq!(whole.entries, lasts[2] * 7);
    fs::remove_file(folder.path().join("records-2026-11-26.db")).expect("it is there");
    let (from, to) = (lasts[0] + 1, lasts[1]);
    assert_eq!(found(folder.path()).faults, [format!("batches {from} to {to} are missing")]);
    fs::remove_file(folder.path().join("records-2026-11-27.db")).expect("it is there");
    let to = lasts[2];
    assert_eq!(found(folder.path()).faults, [format!("batches {from} to {to} are missing")]);
}

#[test]
fn days_that_retention_took_away_are_only_noted() {
    let folder = tempfile::tempdir().expect("a folder");
    let lasts = three_days(folder.path());
    let little = Retention { records_bytes: 1, ..chain::KEEP_ALL };
    let (_store, mut views, _) = SqliteStore::open(folder.path(), little).expect("it opens");
    assert_eq!(views.retain(1_800_000_000).expect("it can be removed").files.len(), 2);
    let found = found(folder.path());
    assert_eq!((found.batches, found.faults_total), (lasts[2] - lasts[1], 0), "{:?}", found.faults);
    assert_eq!(found.notes.len(), 1);
    assert!(
        found.notes[0].contains(&format!("batches up to {} were removed", lasts[1])),
        "{:?}",
        found.notes
    );
}

#[test]
fn files_of_another_ledger_are_told() {
    let (folder, other) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let lasts = three_days(folder.path());
    three_days(other.path());
    let day = "records-2026-11-26.db";
    fs::copy(other.path().join(day), folder.path().join(day)).expect("they are there");
    let found = found(folder.path());
    assert!(
        found.faults[0].contains("another ledger") && found.faults[0].contains(day),
        "{:?}",
        found.faults
    );
    assert_eq!(found.batches, lasts[0]);
    assert_eq!(BatchNumber(lasts[0]).next().0 + 143, lasts[1], "a day has 144 batches");
}
