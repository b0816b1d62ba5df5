//! What `verify` finds when somebody has been at the files.

use std::fs;
use std::path::Path;
use std::time::Duration;

use accounting::entry::PowerEntry;
use accounting::{BatchNumber, Books, Entry, PowerSource, SealedBatch, Subject, Verdict, codec};
use checkweigh::ledger::verify::{Findings, verify};
use checkweigh::ledger::{Head, Retention, SqliteReader, SqliteStore, Store, Views};
use stratum::{DeviceId, Now, Work};

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
        if head.number.0 > 0 {
            views.roll_up(&chain::roll_up(head.number)).expect("it is kept");
        }
        if day == lasts.len() {
            return lasts;
        }
        store.append(&batch).expect("it is appended");
        head = Head { number: batch.number, hash: batch.hash };
        lasts[day] = head.number.0;
    }
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
    assert_eq!(whole.entries, lasts[2] * u64::from(chain::DEVICES));
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
    assert_eq!(found.notes.len(), 2, "{:?}", found.notes);
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

#[test]
fn sums_that_do_not_add_up_are_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut store, mut views, opening) =
        SqliteStore::open(folder.path(), chain::KEEP_ALL).expect("it opens");
    store.append(&chain::next(opening.ledger, Head::NONE)).expect("it is appended");
    let mut roll_up = chain::roll_up(BatchNumber(1));
    let mut sums = roll_up.sums[3].1.sums();
    sums.shares.accepted += 1;
    roll_up.sums[3].1 = sums.into();
    views.roll_up(&roll_up).expect("it is kept");
    let faults = found(folder.path()).faults;
    let [entries, itself, days, fleet] = faults.as_slice() else { panic!("four: {faults:?}") };
    assert!(entries.starts_with("the sums of device 2 are not those of the entries"), "{entries}");
    assert!(itself.starts_with("the sums of device 2: submitted is not accepted + rejected"), "{itself}");
    assert!(days.starts_with("the days of device 2 are not its sums"), "{days}");
    assert!(fleet.starts_with("the devices do not add up to the fleet"), "{fleet}");
}

/// A point is altered by hand, while all sums and all days stay as they were.
#[test]
fn a_forged_point_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    three_days(folder.path());
    let whole = found(folder.path());
    assert!(whole.points > 1000 && whole.faults_total == 0, "{whole:?}");
    let path = folder.path().join("ledger.db");
    let forge = |change: &str| {
        let kept = fs::read(&path).expect("it is there");
        let connection = rusqlite::Connection::open(&path).expect("it opens");
        connection.pragma_update(None, "journal_mode", "DELETE").expect("it can be changed");
        let rows = connection.execute(change, []).expect("it can be changed");
        drop(connection);
        let found = found(folder.path());
        fs::write(&path, kept).expect("it can be put back");
        (rows, found.faults_total, found.faults)
    };
    // The points of device 3 (4 << 32 | 3) take the place of the fleet's, which are twenty times as many.
    for (level, name) in [(0, "minute"), (1, "ten_minutes"), (2, "hour")] {
        let (rows, count, faults) = forge(&format!(
            "UPDATE point SET sums = (SELECT sums FROM point AS other WHERE other.level = point.level
             AND other.start = point.start AND other.subject = (4 << 32 | 3))
             WHERE level = {level} AND subject = 0"
        ));
        assert_eq!(rows as u64, count, "{faults:?}");
        let text = format!("the {name} of the fleet from 2026-11-2");
        assert!(faults.iter().all(|fault| fault.starts_with(&text)), "{faults:?}");
        assert!(faults[0].contains("is not that of the entries"), "{faults:?}");
    }
    // An hour in which nothing happened.
    let (_, _, faults) = forge(
        "INSERT INTO point SELECT level, start - 7 * 86400, subject, sums FROM point
         WHERE level = 2 AND subject = (4 << 32 | 3) LIMIT 1",
    );
    assert!(matches!(&faults[..], [fault] if fault.starts_with("the hour of device 3 from")), "{faults:?}");
    // One that is missing among others.
    let (_, _, faults) = forge(
        "DELETE FROM point WHERE level = 2 AND subject = (4 << 32 | 3) AND start =
         (SELECT max(start) FROM point WHERE level = 2)",
    );
    assert!(matches!(&faults[..], [fault] if fault.starts_with("the hour of device 3 from")), "{faults:?}");
}

/// Two devices on three days, an hour each, as a process writes it: with the ends of minutes and what power is known.
fn three_hours(folder: &Path) {
    let (mut store, mut views, opening) = SqliteStore::open(folder, chain::KEEP_ALL).expect("it opens");
    let (mut books, mut head) = (Books::default(), Head::NONE);
    for minute in (0..3).flat_map(|day| (0..60).map(move |minute| day * 1440 + minute)) {
        let start = FIRST_DAY * 86_400 + minute * 60;
        let utc = Duration::from_secs(start + 7);
        let mut entries = Vec::new();
        for device in [DeviceId(0), DeviceId(1)] {
            let now = Now { monotonic: utc, utc };
            entries.push(Entry::Share(chain::share(now, device, Verdict::Accepted, Work(1 << 40))));
        }
        let (subject, source) = (Subject::Device(DeviceId(0)), PowerSource::Meter);
        let (at_us, valid_for_s, milliwatts) = (utc.as_micros() as u64, 600, 3_000_000 + minute);
        entries.push(Entry::Power(PowerEntry { subject, at_us, valid_for_s, milliwatts, source }));
        entries.push(Entry::MinuteEnded(start));
        let number = head.number.next();
        books.begin_batch(number);
        let mut payload = Vec::new();
        for entry in &entries {
            books.apply(entry);
            codec::write_entry(&mut payload, entry);
        }
        let (times, count) = ((at_us, (start + 60) * 1_000_000 - 1), entries.len() as u32);
        let batch = SealedBatch::seal(opening.ledger, number, times, count, payload, head.hash);
        store.append(&batch).expect("it is appended");
        head = Head { number, hash: batch.hash };
        views.roll_up(&books.roll_up(number)).expect("it is kept");
    }
}

/// Energy is counted anew from the first batch on; without it, shares still are, wherever batches are left.
#[test]
fn points_are_counted_from_what_is_left_of_the_batches() {
    let folder = tempfile::tempdir().expect("a folder");
    three_hours(folder.path());
    let whole = found(folder.path());
    assert_eq!((whole.faults, whole.notes), (Vec::new(), Vec::<String>::new()));
    let forge = |change: &str| {
        let path = folder.path().join("ledger.db");
        let kept = fs::read(&path).expect("it is there");
        let connection = rusqlite::Connection::open(&path).expect("it opens");
        connection.pragma_update(None, "journal_mode", "DELETE").expect("it can be changed");
        assert!(connection.execute(change, []).expect("it can be changed") > 0);
        drop(connection);
        let found = found(folder.path());
        fs::write(&path, kept).expect("it can be put back");
        found.faults
    };
    // Device 1 takes the place of device 0: the same shares, but no energy.
    let of_device = |start: &str| {
        format!(
            "UPDATE point SET sums = (SELECT sums FROM point AS other WHERE other.level = point.level
             AND other.start = point.start AND other.subject = (4 << 32 | 1))
             WHERE level = 2 AND subject = (4 << 32 | 0) AND start {start}"
        )
    };
    let first = format!("= {}", FIRST_DAY * 86_400);
    let faults = forge(&of_device(&first));
    assert!(
        matches!(&faults[..], [fault] if fault.starts_with("the hour of device 0 from 2026-11-25")),
        "{faults:?}"
    );

    let little = Retention { records_bytes: 1, ..chain::KEEP_ALL };
    let (_store, mut views, _) = SqliteStore::open(folder.path(), little).expect("it opens");
    assert_eq!(views.retain(1_800_000_000).expect("it can be removed").files.len(), 2);
    drop((_store, views));
    let rest = found(folder.path());
    assert_eq!((rest.faults, rest.notes.len()), (Vec::new(), 2));
    assert!(rest.points > 100, "{}", rest.points);
    assert_eq!(forge(&of_device("> 0")), Vec::<String>::new(), "of energy nothing is known here");
    // The first minute of the last day has twice the shares.
    let last = FIRST_DAY * 86_400 + 2 * 86_400;
    let faults = forge(&format!(
        "UPDATE point SET sums = (SELECT sums FROM point AS other WHERE other.level = 0
         AND other.start = point.start AND other.subject = 0)
         WHERE level = 0 AND subject = (4 << 32 | 1) AND start = {}",
        last + 300
    ));
    assert!(
        matches!(&faults[..], [fault] if fault.starts_with("the minute of device 1 from 2026-11-27T00:05:00Z")),
        "{faults:?}"
    );
}
