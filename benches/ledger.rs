//! What the ledger costs, and how fast it answers: `cargo bench --bench ledger`.
//!
//! Prints processor time of the thread that writes, not the time on the wall: that is the disk's. The data lies in
//! the build folder, on whatever disk that is, and is removed at the end. Takes some minutes; `--devices N` makes it
//! shorter.

#[path = "../tests/ledger/year.rs"]
mod year;

use std::path::Path;
use std::time::{Duration, Instant};

use accounting::{
    BatchNumber, Books, Fate, Level, PackedSums, Point, RollUp, SealedBatch, ShareRecord, Subject, Verdict,
};
use checkweigh::ledger::{Head, Reader, Retention, SqliteReader, SqliteStore, Store, Views};
use checkweigh::sink::RecordSink;
use stratum::{ChannelId, ConnectionId, DeviceId, Difficulty, Now, UpstreamChannelId, UpstreamId, Work};

/// A fleet as large as the largest farms'.
const DEVICES: u32 = 20_000;

/// Records of a batch, and bytes of a record.
const RECORDS: usize = 2000;
const RECORD_BYTES: usize = 110;

/// Batches that are appended.
const BATCHES: u64 = 500;

/// Shares that a device has in a minute.
const SHARES_A_MINUTE: u32 = 8;

/// Devices that the sink copies at once.
const PIECE: usize = 64;

const KEEP_ALL: Retention = Retention {
    records_days: 36_500,
    records_bytes: u64::MAX,
    minutes_days: 36_500,
    ten_minutes_days: 36_500,
    hours_days: 36_500,
};

fn main() {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--devices").skip(1);
    let devices = arguments.next().map_or(DEVICES, |number| number.parse().expect("a number of devices"));
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder in the build folder");
    hand_over();
    scattered(100);
    scattered(devices);
    books(devices);
    ingest(&folder.path().join("ingest"));
    roll_ups(&folder.path().join("rollups"), devices);
    year(&folder.path().join("year"), devices);
}

/// Processor time of this thread since it started.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let nanoseconds = text.split_whitespace().next().and_then(|field| field.parse().ok());
    Duration::from_nanos(nanoseconds.expect("nanoseconds come first"))
}

/// What a record costs the thread of the connection that makes it: it goes into the sink's queue, and no further.
fn hand_over() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()
        .expect("a thread");
    let sink = runtime.block_on(async { RecordSink::start().0 });
    let mut writer = sink.writer();
    let mut times = Vec::new();
    for round in 0..200 {
        let utc = Duration::from_secs(year::YEAR) + Duration::from_millis(round);
        let shares: Vec<ShareRecord> = (0..1000).map(|device| share(device, utc)).collect();
        // The system counts processor time too coarsely for this.
        let began = Instant::now();
        shares.into_iter().for_each(|share| writer.share(share));
        times.push(began.elapsed());
        assert!(!writer.is_behind(), "the queue has room for a thousand");
        // Waits until the sink has all of them.
        runtime.block_on(sink.overview(Now { monotonic: utc, utc })).expect("it runs");
    }
    times.sort();
    let each = times[times.len() / 2].as_secs_f64() * 1e3;
    println!("a record handed over: {each:.3} us, half of the rounds within");
}

/// What the sums of a share cost that comes with a few others, each of any device: with the devices fetched together
/// beforehand, as the sink does it, and without, in turn.
fn scattered(devices: u32) {
    const ROUNDS: usize = 200_000;
    const TOGETHER: usize = 6;
    let start = Duration::from_secs(year::YEAR);
    let mut books = Books::default();
    (0..devices).for_each(|device| books.apply_share(&share(device, start)));
    let mut used = [Duration::ZERO; 2];
    let mut random = 1_u64;
    for round in 0..ROUNDS {
        let utc = start + Duration::from_micros(round as u64);
        let shares: [ShareRecord; TOGETHER] = std::array::from_fn(|_| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            share((random >> 33) as u32 % devices, utc)
        });
        let watch = Instant::now();
        if round % 2 == 1 {
            books.fetch(shares.iter().filter_map(|share| share.device));
        }
        shares.iter().for_each(|share| books.apply_share(share));
        used[round % 2] += watch.elapsed();
    }
    let shares = (ROUNDS / 2 * TOGETHER) as u32;
    let [alone, fetched] = used.map(|used| used / shares);
    println!(
        "sums of a share of any of {devices} devices: {alone:?}, and fetched with {} others {fetched:?}",
        TOGETHER - 1
    );
}

/// What the sink does while records wait in its queue: the end of a minute in which every device mined, in pieces between
/// which others have their turn, and a piece of a copy of the fleet.
fn books(devices: u32) {
    let mut books = Books::default();
    let start = Duration::from_secs(year::YEAR);
    let minutes = 5;
    let (mut checks, mut parts, mut ends, mut roll_ups) = <(Laps, Laps, Laps, Laps)>::default();
    let mut pieces = Duration::ZERO;
    for minute in 0..minutes {
        for second in 0..SHARES_A_MINUTE {
            let utc = start
                + Duration::from_secs(60 * minute + u64::from(second) * 60 / u64::from(SHARES_A_MINUTE));
            (0..devices).for_each(|device| books.apply_share(&share(device, utc)));
        }
        let mut check = books.begin_check().expect("the fleet's sums hold");
        checks.measure(|| books.check_some(&mut check, 8 * PIECE));
        assert_eq!(books.end_check(&check), None);
        parts.measure(|| {
            books.end_open_part();
            false
        });
        ends.measure(|| books.close_some(PIECE));
        let now_us = (start + Duration::from_secs(60 * minute + 60)).as_micros() as u64;
        books.turn_to(now_us);
        let mut roll_up = books.begin_roll_up(BatchNumber(minute));
        roll_ups.measure(|| books.roll_up_some(&mut roll_up, PIECE));
        assert_eq!(roll_up.devices.len(), devices as usize);
        let watch = Instant::now();
        assert!(books.device_views(0, now_us).take(PIECE).count() > 0);
        pieces = pieces.max(watch.elapsed());
    }
    println!("a minute's end of {devices} devices, the longest of {minutes}, and the longest piece of any:");
    for (name, laps) in
        [("check", checks), ("energy without readings", parts), ("points", ends), ("rollup", roll_ups)]
    {
        println!("  {name}: {:?}, a piece {:?}", laps.whole, laps.piece);
    }
    println!("{PIECE} devices copied: {pieces:?}");
}

/// The longest whole, and the longest piece of any.
#[derive(Default)]
struct Laps {
    whole: Duration,
    piece: Duration,
}

impl Laps {
    /// Measures one whole: pieces until there are no more.
    fn measure(&mut self, mut piece: impl FnMut() -> bool) {
        let began = Instant::now();
        loop {
            let watch = Instant::now();
            let has_more = piece();
            self.piece = self.piece.max(watch.elapsed());
            if !has_more {
                break;
            }
        }
        self.whole = self.whole.max(began.elapsed());
    }
}

fn share(device: u32, utc: Duration) -> ShareRecord {
    ShareRecord {
        judged: Now { monotonic: utc, utc },
        device: Some(DeviceId(device)),
        connection: ConnectionId(u64::from(device)),
        channel: ChannelId(0),
        upstream: Some(UpstreamId(0)),
        upstream_channel: Some(UpstreamChannelId(1)),
        job: None,
        verdict: Verdict::Accepted,
        fate: Fate::BelowUpstreamTarget,
        sequence_number: None,
        submitted: Work(1 << 50),
        upstream_work: Work(0),
        difficulty: Some(Difficulty(1e6)),
        job_age_ms: 0,
        version: 0,
        ntime: 0,
        nonce: 0,
        rollable: Default::default(),
    }
}

fn ingest(folder: &Path) {
    let (mut store, _views, opening) = SqliteStore::open(folder, KEEP_ALL).expect("it opens");
    let mut head = Head::NONE;
    let mut commits = Vec::new();
    let mut used = Duration::ZERO;
    for number in 1..=BATCHES {
        let payload: Vec<u8> =
            (0..RECORDS * RECORD_BYTES).map(|place| (place as u64 * number) as u8).collect();
        let us = 1_795_564_800_000_000 + number * 100_000;
        let number = BatchNumber(number);
        let batch =
            SealedBatch::seal(opening.ledger, number, (us, us + 99_999), RECORDS as u32, payload, head.hash);
        let (started, cpu_before) = (Instant::now(), cpu());
        store.append(&batch).expect("it is appended");
        used += cpu() - cpu_before;
        commits.push(started.elapsed());
        head = Head { number: batch.number, hash: batch.hash };
    }
    commits.sort();
    let records = BATCHES as f64 * RECORDS as f64;
    println!("append: {:.3} us of CPU a record", used.as_secs_f64() * 1e6 / records);
    let at = |part: f64| commits[(commits.len() as f64 * part) as usize];
    println!(
        "commit of {RECORDS} records: half within {:?}, 99 % within {:?}, longest {:?}",
        at(0.5),
        at(0.99),
        commits[commits.len() - 1]
    );
}

/// A minute's rollup of the whole fleet, at the end of an hour that is a day's end too.
fn roll_ups(folder: &Path, devices: u32) {
    let (mut store, mut views, opening) = SqliteStore::open(folder, KEEP_ALL).expect("it opens");
    let times = (year::YEAR * 1_000_000, year::YEAR * 1_000_000);
    let batch = SealedBatch::seal(opening.ledger, BatchNumber(1), times, 0, Vec::new(), Head::NONE.hash);
    store.append(&batch).expect("it is appended");
    let mut wall = Duration::ZERO;
    let before = cpu();
    let minutes = 10;
    for minute in 0..minutes {
        let now = year::YEAR + minute * 60;
        let subjects = (0..devices).map(|id| Subject::Device(DeviceId(id)));
        let mut roll_up = RollUp { watermark: BatchNumber(1), ..RollUp::default() };
        for subject in subjects {
            let sums = PackedSums::from(year::hour(minute));
            for level in Level::ALL {
                roll_up.points.push(Point { subject, level, start: level.start(now), sums: sums.clone() });
            }
            roll_up.sums.push((subject, sums));
        }
        let started = Instant::now();
        views.roll_up(&roll_up).expect("it is kept");
        wall += started.elapsed();
    }
    let each = (cpu() - before) / minutes as u32;
    println!("rollup of {devices} devices: {:?}, {each:?} of CPU", wall / minutes as u32);
}

fn year(folder: &Path, devices: u32) {
    let (mut store, mut views, _) = SqliteStore::open(folder, KEEP_ALL).expect("it opens");
    let started = Instant::now();
    year::write(&mut store, &mut views, devices, 24);
    println!("a year of {devices} devices written in {:?}", started.elapsed());
    let mut answers = Vec::new();
    for _ in 0..20 {
        let started = Instant::now();
        let reader = SqliteReader::open(folder).expect("beside the writer");
        let device = Subject::Device(year::WHOLE);
        let points = reader.points(device, Level::Hour, year::YEAR, year::YEAR + year::HOURS * 3600);
        answers.push(started.elapsed());
        assert_eq!(points.expect("they can be read").len() as u64, year::HOURS);
    }
    let first = answers[0];
    answers.sort();
    println!(
        "a device over a year of hours: first {first:?}, half within {:?}, longest {:?}",
        answers[answers.len() / 2],
        answers[answers.len() - 1]
    );
}
