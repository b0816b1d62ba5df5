//! `checkweigh ledger` as a person or a script meets it: the real binary, beside a process that writes.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use accounting::{
    BatchNumber, DeviceRow, Entry, Fate, Level, Point, RejectReason, RollUp, SealedBatch, Subject, Sums,
    UpstreamAnswer, UpstreamVerdict, Verdict, codec,
};
use checkweigh::ledger::{Head, SqliteStore, SqliteViews, Store, Views};
use serde_json::Value;
use stratum::{DeviceId, Now, SequenceNumber, UpstreamChannelId, UpstreamId, Work};

use crate::chain;

/// 2026-11-25T10:00:00Z.
const TEN: u64 = 1_795_600_800;

fn ledger(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_checkweigh"))
        .args(["ledger", "--path"])
        .arg(folder)
        .args(arguments)
        .env_remove("RUST_LOG")
        .output()
        .expect("the binary runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

pub(crate) fn succeeds(folder: &Path, arguments: &[&str]) -> String {
    let output = ledger(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    stdout(&output)
}

fn sums(shares: u64, work: u128) -> Sums {
    let mut sums = Sums::default();
    sums.shares.submitted = shares + 1;
    sums.shares.rejected[0] = 1;
    (sums.shares.accepted, sums.shares.kept) = (shares, shares);
    sums.shares.credited = Work(work);
    sums.shares.submitted_work = Work(work);
    sums
}

fn device(id: u32, name: &str) -> DeviceRow {
    DeviceRow {
        id: DeviceId(id),
        name: name.into(),
        worker_name: "".into(),
        groups: Vec::new(),
        first_seen_us: TEN * 1_000_000,
        last_seen_us: (TEN + 7200) * 1_000_000,
        last_share_us: 0,
        best_difficulty: 0.0,
        address: "10.0.0.7".to_owned(),
        user_agent: String::new(),
        device_id: String::new(),
    }
}

/// Twenty accepted shares of each of two devices in two hours, and two stale ones.
fn shares() -> (u32, Vec<u8>) {
    let (mut count, mut payload) = (0, Vec::new());
    let stale = Verdict::Rejected(RejectReason::Stale);
    for (device, hour) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
        let device = DeviceId(device);
        let now = Now { monotonic: Duration::ZERO, utc: Duration::from_secs(TEN + hour * 3600) };
        for number in 0..11 {
            let (verdict, work) =
                if number < 10 { (Verdict::Accepted, Work(360_000_000_000_000)) } else { (stale, Work(0)) };
            codec::write_entry(&mut payload, &Entry::Share(chain::share(now, device, verdict, work)));
            count += 1;
        }
    }
    (count, payload)
}

/// A ledger with one batch and two devices with two hours each.
fn example(folder: &Path) -> (SqliteStore, SqliteViews) {
    let (mut store, mut views, opening) = SqliteStore::open(folder, chain::KEEP_ALL).expect("it opens");
    let times = (TEN * 1_000_000, (TEN + 7200) * 1_000_000);
    let (count, payload) = shares();
    let batch = SealedBatch::seal(opening.ledger, BatchNumber(1), times, count, payload, Head::NONE.hash);
    store.append(&batch).expect("it is appended");
    let subject = |id: u32| Subject::Device(DeviceId(id));
    let mut roll_up = RollUp { watermark: BatchNumber(1), ..RollUp::default() };
    let mut fleet = Sums::default();
    for (id, name) in [(0, "farm.rig7"), (1, "=odd, \"name\"")] {
        roll_up.devices.push(device(id, name));
        let mut whole = sums(20, 7_200_000_000_000_000);
        (whole.shares.rejected[0], whole.shares.submitted) = (2, 22);
        roll_up.points.push(Point {
            subject: subject(id),
            level: Level::Day,
            start: Level::Day.start(TEN),
            sums: whole.clone().into(),
        });
        fleet.add(&whole);
        roll_up.sums.push((subject(id), whole.into()));
        for hour in 0..2 {
            let start = TEN + hour * 3600;
            let sums = sums(10, 3_600_000_000_000_000).into();
            roll_up.points.push(Point { subject: subject(id), level: Level::Hour, start, sums });
        }
    }
    let start = Level::Day.start(TEN);
    roll_up.points.push(Point {
        subject: Subject::Fleet,
        level: Level::Day,
        start,
        sums: fleet.clone().into(),
    });
    roll_up.sums.push((Subject::Fleet, fleet.into()));
    views.roll_up(&roll_up).expect("it is kept");
    (store, views)
}

#[test]
fn devices_are_listed_and_shown_beside_the_process_that_writes() {
    let folder = tempfile::tempdir().expect("a folder");
    let _writer = example(folder.path());
    let text = succeeds(folder.path(), &["devices"]);
    assert!(text.contains("farm.rig7") && text.contains("2026-11-25T12:00:00Z"), "{text}");
    assert!(text.contains("7200") && text.contains("2 devices, summed up to 2026-11-25T12:00:00"), "{text}");
    let json: Value = serde_json::from_str(&succeeds(folder.path(), &["devices", "--json"])).expect("JSON");
    assert_eq!(json["devices"][1]["name"], "=odd, \"name\"");
    assert_eq!(json["devices"][1]["sums"]["accepted_hashes"], "7200000000000000");
    assert_eq!(json["devices"][0]["sums"]["rejected_stale"], 2);
    assert_eq!(json["devices"][0]["user_agent"], Value::Null);

    let text = succeeds(folder.path(), &["show", "farm.rig7"]);
    assert!(text.contains("2026-11-25T11:00:00Z") && text.contains("1.00 TH/s"), "{text}");
    assert!(
        text.contains("rejected, stale       2") && text.contains("user agent            unknown"),
        "{text}"
    );
    assert!(
        text.contains("bad work") && text.contains("rejected, stale       2  0.000  unknown  unknown"),
        "{text}"
    );
    let arguments = ["show", "farm.rig7", "--json", "--from", "2026-11-25T11:00:00Z"];
    let json: Value = serde_json::from_str(&succeeds(folder.path(), &arguments)).expect("JSON");
    assert_eq!(json["history"].as_array().map(Vec::len), Some(1));
    assert_eq!(
        (&json["cost"]["by_cause"][0]["reason"], &json["cost"]["value_sats"]),
        (&"stale".into(), &Value::Null)
    );
    assert_eq!(json["history"][0]["sums"]["accepted_hash_rate_hs"], 1e12);

    let output = ledger(folder.path(), &["show", "farm.rgi7"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("did you mean farm.rig7?"), "{}", stderr(&output));
}

#[test]
fn what_is_exported_has_every_row_of_its_period() {
    let folder = tempfile::tempdir().expect("a folder");
    let _writer = example(folder.path());
    let period = ["--from", "2026-11-25", "--to", "2026-11-25T11:00:00Z"];
    let export = |format: &str, more: &[&str]| {
        let arguments = [&["export", "--format", format], &period[..], more].concat();
        succeeds(folder.path(), &arguments)
    };
    let csv = export("csv", &[]);
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines.len(), 3, "{csv}");
    assert!(lines[0].starts_with("device,device_number,start,seconds,submitted,accepted,"), "{csv}");
    assert!(lines[1].starts_with("farm.rig7,0,2026-11-25T10:00:00Z,3600,11,10,0,1,1,"), "{csv}");
    assert!(lines[2].starts_with("\"'=odd, \"\"name\"\"\",1,"), "{csv}");
    let json = export("json", &["--device", "farm.rig7"]);
    let row: Value = serde_json::from_str(json.trim()).expect("one line");
    assert_eq!(
        (&row["start"], &row["accepted_hashes"]),
        (&"2026-11-25T10:00:00Z".into(), &"3600000000000000".into())
    );

    let shares = export("csv", &["--of", "shares", "--device", "farm.rig7"]);
    let lines: Vec<&str> = shares.lines().collect();
    assert_eq!(lines.len(), 1 + 11, "{shares}");
    assert!(lines[0].starts_with("batch,entry,time,device,device_number,connection,"), "{shares}");
    assert!(
        lines[1].starts_with("1,0,2026-11-25T10:00:00.000000Z,farm.rig7,0,0,0,,,,accepted,,kept,"),
        "{shares}"
    );
    assert!(lines[11].contains(",rejected,stale,refused,"), "{shares}");

    let file = folder.path().join("rows.csv");
    let name = file.to_str().expect("a plain path");
    assert_eq!(export("csv", &["--out", name]), "");
    assert_eq!(fs::read_to_string(&file).expect("it was made"), csv);
    let again = [&["export", "--format", "csv", "--out", name], &period[..]].concat();
    let output = ledger(folder.path(), &again);
    assert_eq!(output.status.code(), Some(1), "nothing is written over");
    assert!(stderr(&output).contains(name), "{}", stderr(&output));
    assert_eq!(fs::read_to_string(&file).expect("it is there"), csv);
}

/// Three shares that an upstream answers, two of them after the period, and one that it never does.
#[test]
fn exported_shares_say_how_long_their_answers_took() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut store, _views, opening) = SqliteStore::open(folder.path(), chain::KEEP_ALL).expect("it opens");
    let at = |milliseconds: u64| {
        let utc = Duration::from_millis(TEN * 1000 + milliseconds);
        Now { monotonic: utc, utc }
    };
    let (upstream, channel) = (UpstreamId(0), UpstreamChannelId(7));
    let share = |number: u32, milliseconds: u64| {
        let mut share = chain::share(at(milliseconds), DeviceId(0), Verdict::Accepted, Work(5));
        (share.fate, share.sequence_number) = (Fate::Forwarded, Some(SequenceNumber(number)));
        (share.upstream, share.upstream_channel) = (Some(upstream), Some(channel));
        Entry::Share(share)
    };
    let answer = |milliseconds: u64, verdict: UpstreamVerdict| {
        Entry::Answer(UpstreamAnswer { received: at(milliseconds), upstream, channel, verdict })
    };
    let (last, work) = (SequenceNumber(1), Work(10));
    let taken = UpstreamVerdict::Acknowledged { last, count: 2, claimed: 2, shares_sum: 2, work };
    let code = "stale-share".to_owned();
    let refused = UpstreamVerdict::Rejected { sequence_number: SequenceNumber(2), code, work };
    let late = chain::share(at(1500), DeviceId(0), Verdict::Accepted, Work(5));
    let batches = [
        // Numbers wrap.
        vec![share(u32::MAX, 0), share(1, 250), share(2, 500), share(3, 600)],
        vec![answer(1000, taken), Entry::Share(late)],
        vec![answer(2000, refused)],
    ];
    let mut head = Head::NONE;
    for entries in batches {
        let mut payload = Vec::new();
        entries.iter().for_each(|entry| codec::write_entry(&mut payload, entry));
        let times: Vec<u64> = entries.iter().map(Entry::at_us).collect();
        let times = (times[0], times[times.len() - 1]);
        let count = entries.len() as u32;
        let batch = SealedBatch::seal(opening.ledger, head.number.next(), times, count, payload, head.hash);
        store.append(&batch).expect("it is appended");
        head = Head { number: batch.number, hash: batch.hash };
    }
    let period = ["--from", "2026-11-25T10:00:00Z", "--to", "2026-11-25T10:00:01Z"];
    let csv =
        succeeds(folder.path(), &[&["export", "--format", "csv", "--of", "shares"], &period[..]].concat());
    let mut lines = csv.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let header = lines.next().expect("a header");
    let rows: Vec<_> = lines.collect();
    let column = |name: &str| {
        let place = header.iter().position(|known| *known == name).expect("it is there");
        rows.iter().map(|row| row[place]).collect::<Vec<_>>()
    };
    assert_eq!(column("ack_ms"), ["1000", "750", "1500", ""], "{csv}");
    assert_eq!(column("answer"), ["acknowledged", "acknowledged", "refused", ""], "{csv}");
    assert_eq!(column("answer_reason"), ["", "", "stale-share", ""], "{csv}");
}

#[cfg(feature = "parquet")]
#[test]
fn a_parquet_file_goes_to_a_file_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let _writer = example(folder.path());
    let period = ["export", "--format", "parquet", "--from", "2026-11-25", "--to", "2026-11-26"];
    let output = ledger(folder.path(), &period);
    assert!(stderr(&output).contains("--out FILE"), "{}", stderr(&output));
    let file = folder.path().join("rows.parquet");
    succeeds(folder.path(), &[&period[..], &["--out", file.to_str().expect("a plain path")]].concat());
    same_rows(folder.path(), &period[3..], &file);
    let file = folder.path().join("shares.parquet");
    let out = ["--of", "shares", "--out", file.to_str().expect("a plain path")];
    succeeds(folder.path(), &[&period[..], &out].concat());
    same_rows(folder.path(), &[&period[3..], &out[..2]].concat(), &file);
}

/// A Parquet file has what the same export as JSON has: every column, every row, every value.
#[cfg(feature = "parquet")]
fn same_rows(folder: &Path, period: &[&str], file: &Path) {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    let json = succeeds(folder, &[&["export", "--format", "json"], period].concat());
    let reader = SerializedFileReader::new(fs::File::open(file).expect("it was made")).expect("Parquet");
    let columns: Vec<String> = reader
        .metadata()
        .file_metadata()
        .schema_descr()
        .columns()
        .iter()
        .map(|c| c.name().to_owned())
        .collect();
    let mut rows = reader.get_row_iter(None).expect("rows");
    let mut count = 0;
    for line in json.lines() {
        let truth: serde_json::Map<String, Value> = serde_json::from_str(line).expect("an object");
        let row = rows.next().expect("as many rows").expect("it can be read");
        let found: Vec<(&String, &parquet::record::Field)> = row.get_column_iter().collect();
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert!(truth.keys().all(|name| names.contains(&name.as_str())) && truth.len() == names.len());
        assert_eq!(names, columns);
        for (name, field) in found {
            assert_eq!(as_json(name, field), truth[name.as_str()], "{name} of row {count}");
        }
        count += 1;
    }
    assert!(count > 0 && rows.next().is_none(), "{count} rows");
}

#[cfg(feature = "parquet")]
fn as_json(name: &str, field: &parquet::record::Field) -> Value {
    use parquet::record::Field;
    match field {
        Field::Null => Value::Null,
        Field::Str(text) => text.as_str().into(),
        Field::ULong(number) => (*number).into(),
        Field::Double(number) => (*number).into(),
        Field::TimestampMicros(us) => {
            let time = std::time::UNIX_EPOCH + Duration::from_micros(*us as u64);
            match name {
                "start" => humantime::format_rfc3339_seconds(time).to_string().into(),
                _ => humantime::format_rfc3339_micros(time).to_string().into(),
            }
        }
        Field::Decimal(decimal) => {
            let bytes: [u8; 16] = decimal.data().try_into().expect("sixteen bytes");
            u128::from_be_bytes(bytes).to_string().into()
        }
        Field::Long(change) => match name {
            "held" => (*change).into(),
            _ => change.to_string().into(),
        },
        other => panic!("a kind of value that no column has: {other:?}"),
    }
}

#[test]
fn a_ledger_that_is_not_there_or_not_sound_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = ledger(&folder.path().join("elsewhere"), &["devices"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("there is no ledger here"), "{}", stderr(&output));

    let writer = example(folder.path());
    let text = succeeds(folder.path(), &["verify"]);
    assert!(text.contains("1 batches") && text.contains("all of it is sound"), "{text}");
    drop(writer);
    let day = folder.path().join("records-2026-11-25.db");
    let bytes = fs::read(&day).expect("it is there");
    let hash = bytes.windows(8).position(|window| window == (TEN * 1_000_000).to_be_bytes());
    // The engine writes a whole number of six bytes as such.
    let hash = hash.or_else(|| {
        let times = &(TEN * 1_000_000).to_be_bytes()[2..];
        bytes.windows(6).position(|window| window == times)
    });
    let mut broken = bytes.clone();
    broken[hash.expect("its time is in the row")] ^= 1;
    fs::write(&day, broken).expect("it can be written");
    let output = ledger(folder.path(), &["verify", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let json: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert_eq!(json["is_sound"], false);
    let fault = json["faults"][0].as_str().expect("a text");
    assert!(fault.contains("batch 1 has not the hash"), "{fault}");
}
