//! The store against folders of its own: order, restarts, packing, retention and damage.

use std::fs;
use std::io::{Seek, SeekFrom, Write};

use accounting::{BatchNumber, DeviceRow, GroupId, Level, Point, RollUp, Sums};
use stratum::Work;
use tempfile::TempDir;

use super::*;
use crate::ledger::store::{Removed, Views};

mod facts;

/// 2026-11-25T00:00:00Z.
const START: u64 = 1_795_564_800;

const KEEP: Retention = Retention {
    records_days: 30,
    records_bytes: 1 << 40,
    minutes_days: 2,
    ten_minutes_days: 10,
    hours_days: 100,
};

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn open(folder: &TempDir) -> (SqliteStore, SqliteViews, Opening) {
    SqliteStore::open(folder.path(), KEEP).expect("it opens")
}

/// The batch after `head`, of one second.
fn next(ledger: LedgerId, head: Head, second: u64) -> SealedBatch {
    let number = head.number.next();
    let payload = vec![number.0 as u8; 300 + number.0 as usize % 7];
    let times = (second * 1_000_000, second * 1_000_000 + 999_999);
    SealedBatch::seal(ledger, number, times, 3, payload, head.hash)
}

/// Appends a batch for each of these seconds.
fn fill(store: &mut SqliteStore, mut head: Head, seconds: &[u64]) -> (Head, Vec<SealedBatch>) {
    let mut batches = Vec::new();
    for second in seconds {
        let batch = next(store.ledger(), head, *second);
        assert_eq!(store.append(&batch).expect("it is appended"), Appended::Written);
        head = Head { number: batch.number, hash: batch.hash };
        batches.push(batch);
    }
    (head, batches)
}

fn read_all(reader: &SqliteReader, from: u64) -> Vec<SealedBatch> {
    let batches = reader.batches(BatchNumber(from)).expect("they can be read");
    batches.collect::<Result<_, _>>().expect("all are whole")
}

fn sums(work: u128) -> Sums {
    let mut sums = Sums::default();
    sums.shares.submitted = 1;
    sums.shares.accepted = 1;
    sums.shares.kept = 1;
    (sums.shares.credited, sums.shares.submitted_work) = (Work(work), Work(work));
    sums.squared_work = work as f64;
    sums
}

fn point(device: u32, level: Level, start: u64, work: u128) -> Point {
    Point { subject: Subject::Device(DeviceId(device)), level, start, sums: sums(work).into() }
}

#[test]
fn batches_come_back_as_they_were_across_days_and_restarts() {
    let folder = folder();
    let (mut store, views, opening) = open(&folder);
    assert_eq!((opening.head, opening.watermark), (Head::NONE, BatchNumber(0)));
    let days = [START, START + 1, START + 86_400, START + 86_401, START + 3 * 86_400];
    let (head, mut written) = fill(&mut store, Head::NONE, &days);
    drop((store, views));
    let (mut store, _views, again) = open(&folder);
    assert_eq!((again.ledger, again.head), (opening.ledger, head));
    written.extend(fill(&mut store, head, &[START + 3 * 86_400 + 1]).1);
    let reader = SqliteReader::open(folder.path()).expect("beside the writer");
    assert_eq!(read_all(&reader, 0), written);
    assert_eq!(read_all(&reader, 4), written[3..]);
    assert_eq!(read_all(&reader, 7), []);
    let names: Vec<String> = file::day_files(folder.path())
        .expect("a folder")
        .into_iter()
        .map(|day| day.path.file_name().expect("a name").to_string_lossy().into_owned())
        .collect();
    assert_eq!(names, ["records-2026-11-25.db", "records-2026-11-26.db", "records-2026-11-28.db"]);
}

#[test]
fn a_range_of_time_has_every_batch_that_touches_it_and_no_other() {
    let folder = folder();
    let (mut store, _views, _) = open(&folder);
    // The clock goes back once, over midnight.
    let seconds = [START + 86_390, START + 86_395, START + 86_401, START + 86_399, START + 86_405];
    let (_, written) = fill(&mut store, Head::NONE, &seconds);
    let reader = SqliteReader::open(folder.path()).expect("beside the writer");
    let second = 1_000_000;
    let ends = [86_380, 86_391, 86_395, 86_396, 86_400, 86_402, 86_500].map(|end| (START + end) * second);
    for from in ends {
        for to in ends {
            let found: Vec<SealedBatch> = reader
                .batches_between(from, to)
                .expect("they can be read")
                .collect::<Result<_, _>>()
                .expect("all are whole");
            let wanted: Vec<SealedBatch> = written
                .iter()
                .filter(|batch| batch.last_us >= from && batch.first_us < to)
                .cloned()
                .collect();
            assert_eq!(found, wanted, "{from} {to}");
        }
    }
}

#[test]
fn a_number_is_written_once() {
    let folder = folder();
    let (mut store, _views, _) = open(&folder);
    let (head, written) = fill(&mut store, Head::NONE, &[START, START + 1, START + 86_400]);
    for batch in &written {
        assert_eq!(store.append(batch).expect("it is the same"), Appended::Already);
    }
    let mut other = written[1].clone();
    other.hash[0] ^= 1;
    assert!(matches!(store.append(&other), Err(StoreError::Conflict { number: BatchNumber(2), .. })));
    let after = next(store.ledger(), head, START + 86_401);
    let gap = next(store.ledger(), Head { number: after.number, hash: after.hash }, START + 86_402);
    let error = store.append(&gap).expect_err("4 is missing");
    let text = error.to_string();
    assert!(text.contains("batch 5 does not follow batch 3"), "{text}");
    assert!(text.contains(folder.path().to_str().expect("a plain path")), "{text}");
    let unchained = next(store.ledger(), Head { hash: [9; 32], ..head }, START + 86_401);
    let error = store.append(&unchained).expect_err("another chain");
    assert!(error.to_string().contains("previous hash"), "{error}");
    assert_eq!(store.append(&after).expect("errors leave no trace"), Appended::Written);
}

#[test]
fn one_folder_belongs_to_one_process() {
    let folder = folder();
    let first = open(&folder);
    let error = SqliteStore::open(folder.path(), KEEP).expect_err("it is taken");
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
    assert!(error.to_string().contains(folder.path().to_str().expect("a plain path")), "{error}");
    drop(first);
    open(&folder);
    let error = SqliteReader::open(&folder.path().join("elsewhere")).expect_err("nothing is there");
    assert!(matches!(error, StoreError::Absent { .. }), "{error}");
}

#[test]
fn what_a_later_version_wrote_is_refused() {
    let folder = folder();
    drop(open(&folder));
    let connection = Connection::open(folder.path().join(file::LEDGER_FILE)).expect("a file");
    file::set_meta(&connection, "layout", &5u32.to_le_bytes()).expect("it can be written");
    drop(connection);
    let error = SqliteStore::open(folder.path(), KEEP).expect_err("too new");
    assert!(error.to_string().contains("later version of checkweigh (layout 5"), "{error}");
    assert!(matches!(SqliteReader::open(folder.path()), Err(StoreError::Newer { .. })));
    let connection = Connection::open(folder.path().join(file::LEDGER_FILE)).expect("a file");
    file::set_meta(&connection, "layout", &3u32.to_le_bytes()).expect("it can be written");
    drop(connection);
    let error = SqliteStore::open(folder.path(), KEEP).expect_err("too old");
    assert!(error.to_string().contains("layout 3, from before the first release"), "{error}");
}

#[test]
fn rollups_are_kept_whole_with_their_watermark() {
    let folder = folder();
    let (mut store, mut views, _) = open(&folder);
    fill(&mut store, Head::NONE, &[START, START + 1]);
    let device = DeviceRow {
        id: DeviceId(7),
        name: "farm.all~7".into(),
        worker_name: "farm.all".into(),
        groups: vec![GroupId(1), GroupId(300)],
        first_seen_us: 5,
        last_seen_us: 6,
        last_share_us: 0,
        best_difficulty: 1.5,
        address: "10.0.0.7".to_owned(),
        user_agent: "cgminer/4.11".to_owned(),
        device_id: "0a1b".to_owned(),
    };
    let subjects =
        [Subject::Fleet, Subject::Untracked, Subject::Upstream(UpstreamId(2)), Subject::Group(GroupId(1))];
    let roll_up = RollUp {
        watermark: BatchNumber(1),
        waiting_from: BatchNumber(1),
        points: Level::ALL.map(|level| point(7, level, START, u128::MAX / 3)).to_vec(),
        sums: subjects.into_iter().map(|subject| (subject, sums(9).into())).collect(),
        devices: vec![device.clone()],
        groups: vec![(GroupId(1), "hall".into())],
        upstreams: vec![(UpstreamId(2), "pool:3333".into(), "account".into())],
        facts: facts::facts(),
    };
    views.roll_up(&roll_up).expect("it is written");
    let too_far = RollUp { watermark: BatchNumber(3), ..RollUp::default() };
    assert!(views.roll_up(&too_far).is_err(), "its batches are not there");
    drop((store, views));
    let (_store, _views, opening) = open(&folder);
    assert_eq!((opening.watermark, opening.head.number), (BatchNumber(1), BatchNumber(2)));
    assert_eq!(opening.waiting_from, BatchNumber(1));
    assert_eq!(opening.sums, roll_up.sums);
    assert_eq!(opening.devices, [device]);
    assert_eq!((opening.groups, opening.upstreams), (roll_up.groups, roll_up.upstreams));
    assert_eq!(opening.open_points, roll_up.points);
    assert_eq!(opening.facts, roll_up.facts);
}

#[test]
fn points_are_the_same_before_and_after_they_are_packed() {
    let folder = folder();
    let (mut store, mut views, _) = open(&folder);
    fill(&mut store, Head::NONE, &[START]);
    let minutes = 150;
    let mut roll_up = RollUp { watermark: BatchNumber(1), ..RollUp::default() };
    // Device 3 has no sums of its own: its points must not be lost for that.
    roll_up.sums = (0..3).map(|device| (Subject::Device(DeviceId(device)), sums(1).into())).collect();
    for minute in (0..minutes).filter(|minute| minute % 7 != 3) {
        let start = START + minute * 60;
        roll_up.points.extend((0..4).map(|device| point(device, Level::Minute, start, minute.into())));
    }
    views.roll_up(&roll_up).expect("it is written");
    let reader = SqliteReader::open(folder.path()).expect("beside the writer");
    let read = |from, to| {
        let device = Subject::Device(DeviceId(3));
        reader.points(device, Level::Minute, from, to).expect("they can be read")
    };
    let all = |from, to| {
        let mut points = reader.all_points(Level::Minute, from, to).expect("they can be read");
        points.retain(|point| point.subject == Subject::Device(DeviceId(3)));
        points.into_iter().map(|point| (point.start, point.sums.sums())).collect::<Vec<_>>()
    };
    let ranges = [(0, u64::MAX), (START + 61, START + 3600), (START + 3540, START + 7260), (5, 6)];
    let before = ranges.map(|(from, to)| read(from, to));
    assert_eq!(before[0].len(), (0..minutes).filter(|minute| minute % 7 != 3).count());
    assert_eq!(before[1].first().map(|(start, _)| *start), Some(START + 120));
    while views.tidy().expect("it can be packed") {
        assert_eq!(ranges.map(|(from, to)| read(from, to)), before, "half-way");
        assert_eq!(ranges.map(|(from, to)| all(from, to)), before, "half-way");
    }
    let pages: i64 = reader_count(&folder, "page");
    assert_eq!(pages, 4 * 2, "two hours are over");
    assert_eq!(ranges.map(|(from, to)| read(from, to)), before);
    assert_eq!(ranges.map(|(from, to)| all(from, to)), before);
    // A point that comes late goes over the one in the page.
    let late = point(3, Level::Minute, START + 60, 1_000_000);
    let roll_up = RollUp { watermark: BatchNumber(1), points: vec![late.clone()], ..RollUp::default() };
    views.roll_up(&roll_up).expect("it is written");
    for _ in 0..2 {
        let points = read(0, u64::MAX);
        assert_eq!(points.len(), before[0].len());
        assert!(points.contains(&(late.start, late.sums.sums())));
        while views.tidy().expect("it can be packed") {}
    }
}

fn reader_count(folder: &TempDir, table: &str) -> i64 {
    let connection = Connection::open(folder.path().join(file::LEDGER_FILE)).expect("a file");
    connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).expect("a table")
}

#[test]
fn old_days_and_points_go_and_leave_where_the_chain_goes_on() {
    let folder = folder();
    let (mut store, mut views, _) = open(&folder);
    let (head, written) = fill(&mut store, Head::NONE, &[START, START + 86_400, START + 40 * 86_400]);
    let long_ago = START + 41 * 86_400;
    assert_eq!(
        views.retain(long_ago).expect("nothing to do"),
        Removed::default(),
        "nothing is summed up yet"
    );
    let points = vec![
        point(1, Level::Minute, START, 1),
        point(1, Level::Minute, START + 39 * 86_400, 2),
        point(1, Level::Hour, START, 3),
        point(1, Level::Day, START, 4),
    ];
    let mut roll_up = RollUp { watermark: head.number, points, ..RollUp::default() };
    roll_up.waiting_from = BatchNumber(1);
    views.roll_up(&roll_up).expect("written");
    assert_eq!(
        views.retain(long_ago).expect("it can be removed").files.len(),
        0,
        "a share waits for its answer"
    );
    roll_up.waiting_from = head.number.next();
    views.roll_up(&roll_up).expect("written");
    while views.tidy().expect("it can be packed") {}
    let removed = views.retain(long_ago).expect("it can be removed");
    assert_eq!((removed.files.len(), removed.is_incomplete), (2, false));
    assert!(removed.bytes > 0 && removed.files.iter().all(|file| !file.exists()));
    let reader = SqliteReader::open(folder.path()).expect("beside the writer");
    assert_eq!(read_all(&reader, 0), written[2..]);
    let opening = reader.opening().expect("it can be read");
    assert_eq!(opening.removed, Head { number: BatchNumber(2), hash: written[1].hash });
    let device = Subject::Device(DeviceId(1));
    let left = |level| reader.points(device, level, 0, u64::MAX).expect("they can be read").len();
    assert_eq!([left(Level::Minute), left(Level::Hour), left(Level::Day)], [1, 1, 1]);
    assert!(matches!(store.append(&written[0]), Err(StoreError::Gone { .. })));
    fill(&mut store, head, &[START + 40 * 86_400 + 1]);
}

#[test]
fn too_many_bytes_cost_the_oldest_days_but_never_the_last() {
    let folder = folder();
    let little = Retention { records_bytes: 1, ..KEEP };
    let (mut store, mut views, _) = SqliteStore::open(folder.path(), little).expect("it opens");
    let (head, _) = fill(&mut store, Head::NONE, &[START, START + 86_400, START + 2 * 86_400]);
    views.roll_up(&RollUp { watermark: head.number, ..RollUp::default() }).expect("written");
    assert_eq!(views.retain(START + 3 * 86_400).expect("it can be removed").files.len(), 2);
    let reader = SqliteReader::open(folder.path()).expect("beside the writer");
    assert_eq!(read_all(&reader, 0).len(), 1);
}

/// Writes over a part of the last day's file, from `at` parts in a hundred on.
fn damage(folder: &TempDir, at: u64) -> String {
    let day = file::day_files(folder.path()).expect("a folder").pop().expect("a file");
    let mut file = fs::File::options().write(true).open(&day.path).expect("it is there");
    let length = file.metadata().expect("a file").len();
    file.seek(SeekFrom::Start(length * at / 100)).expect("within");
    let rest = (length - length * at / 100) as usize;
    file.write_all(&vec![0xa5; rest]).expect("it can be written");
    day.path.display().to_string()
}

#[test]
fn what_is_whole_of_a_damaged_file_goes_on() {
    for (at, summed) in [(0, 2), (50, 2), (0, 20), (50, 199), (90, 190)] {
        let folder = folder();
        let (mut store, mut views, _) = open(&folder);
        let seconds: Vec<u64> =
            (0..200).map(|number| START + 86_400 * u64::from(number > 0) + number).collect();
        let (_, written) = fill(&mut store, Head::NONE, &seconds);
        views
            .roll_up(&RollUp { watermark: BatchNumber(summed), ..RollUp::default() })
            .expect("it is written");
        drop((store, views));
        let name = damage(&folder, at);
        let (mut store, _views, opening) = open(&folder);
        let [found] = opening.damage.as_slice() else { panic!("one damage: {:?}", opening.damage) };
        assert!(found.what.contains(&name) || found.what.contains("records-"), "{found:?}");
        assert!(found.set_aside.exists());
        let reader = SqliteReader::open(folder.path()).expect("beside the writer");
        let whole = read_all(&reader, 0);
        assert_eq!(whole, written[..whole.len()], "a prefix");
        assert_eq!(whole.len() as u64 + 1, found.first_lost.0);
        assert!(at == 0 || whole.len() > 20, "{at}: only {}", whole.len());
        let last = (whole.len() as u64).max(summed);
        assert_eq!(opening.head, Head { number: BatchNumber(last), hash: written[last as usize - 1].hash });
        assert_eq!(found.last_lost, (summed > whole.len() as u64).then_some(BatchNumber(summed)));
        let (head, _) = fill(&mut store, opening.head, &[START + 90_000]);
        drop((store, _views));
        assert_eq!(open(&folder).2.head, head, "it goes on from there");
    }
}

#[test]
fn a_ledger_on_a_disk_that_cannot_be_written_to_can_be_read() {
    let folder = folder();
    let (mut store, views, _) = open(&folder);
    let (_, written) = fill(&mut store, Head::NONE, &[START]);
    drop((store, views));
    // No permission keeps root from writing: what is tried here is the way that needs none.
    let day = file::day_files(folder.path()).expect("a folder").pop().expect("a file");
    let connection = file::open_unchanging(&day.path).expect("it can be read");
    assert_eq!(file::last_of(&connection).expect("it can be read").as_ref(), written.last());
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 3, "nothing was made beside it");
}

#[test]
fn subjects_have_keys_of_their_own() {
    for subject in [
        Subject::Fleet,
        Subject::Untracked,
        Subject::Upstream(UpstreamId(u16::MAX)),
        Subject::Group(GroupId(0)),
        Subject::Device(DeviceId(u32::MAX)),
    ] {
        assert_eq!(subject_of(subject_key(subject)), Some(subject));
    }
    for key in [-1, 5 << 32, 1, 2 << 32 | 0x1_0000, i64::MAX] {
        assert_eq!(subject_of(key), None, "{key}");
    }
}
