//! Every scenario on every target in turn, as one Markdown table.
//!
//! Targets take turns within each row, and each row is played several times over, so that whatever else the machine
//! does hits all of them alike; what is shown is the median. This module never measures: each cell is a run of this
//! program in a process of its own.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Serialize;
use serde_json::Value;

use crate::report::median;

/// A cell that takes longer is ended, and shown as not measured: a target that hangs must not hold up the others.
const CELL_LIMIT_SECONDS: u32 = 180;

/// What the command `timeout` says of a program that it ended.
const TIMED_OUT: i32 = 124;

/// How to compare.
#[derive(Clone, Debug, clap::Args)]
pub struct CompareOptions {
    /// A few seconds for each cell, and each only once
    #[arg(long)]
    pub quick: bool,
    /// Times that each cell is played, of which the median is shown; 3 when not quick
    #[arg(long)]
    pub repeats: Option<usize>,
    /// Seconds of each measurement of shares; 8, or 3 when quick
    #[arg(long)]
    pub seconds: Option<u64>,
    /// Where everything that was measured goes, as JSON
    #[arg(long, default_value = "compare.json")]
    pub json: PathBuf,
    /// Leave the reference implementation's translator out
    #[arg(long)]
    pub without_translator: bool,
    /// Only rows whose name contains this
    #[arg(long, default_value = "")]
    pub only: String,
}

/// A column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Column {
    title: &'static str,
    target: &'static str,
    mode: &'static str,
}

const COLUMNS: [Column; 7] = [
    Column { title: "Checkweigh, aggregated", target: "checkweigh", mode: "aggregated" },
    Column { title: "Checkweigh, per device", target: "checkweigh", mode: "per-device" },
    Column { title: "translator_sv2, aggregated", target: "translator", mode: "aggregated" },
    Column { title: "translator_sv2, per device", target: "translator", mode: "per-device" },
    Column { title: "epoll floor", target: "floor-epoll", mode: "aggregated" },
    Column { title: "tokio floor", target: "floor-tokio", mode: "aggregated" },
    // The same as the first, with everything on the disk.
    Column {
        title: "Checkweigh, aggregated, with a ledger",
        target: "checkweigh",
        mode: "aggregated-ledger",
    },
];

/// The columns whose ratio is shown: ours, and the floor that it is compared with.
const OURS: usize = 0;
const PER_DEVICE: usize = 1;
const FLOOR: usize = 4;

/// Where a figure comes from.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// It stands in the report.
    At(&'static str),
    /// The first less the second, of one report.
    Difference(&'static str, &'static str),
    /// The dearest over the cheapest of the plays with these names, in one column.
    Spread(&'static str, &'static [&'static str]),
}

/// What a figure of ours must not be above.
#[derive(Clone, Copy, Debug)]
enum Limit {
    /// So much, in the unit of the figure.
    Value(f64),
    /// So many times the epoll floor in the same run.
    Floor(f64),
}

/// A limit, and the column that must keep it.
#[derive(Clone, Copy, Debug)]
struct Must {
    column: usize,
    limit: Limit,
}

/// One figure out of a run's report.
#[derive(Clone, Copy, Debug)]
struct Figure {
    name: &'static str,
    source: Source,
    decimals: usize,
    /// What it is multiplied with to have the unit of its name.
    factor: f64,
    musts: &'static [Must],
}

const fn figure(name: &'static str, pointer: &'static str, decimals: usize) -> Figure {
    Figure { name, source: Source::At(pointer), decimals, factor: 1.0, musts: &[] }
}

/// A figure of microseconds, shown in milliseconds.
const fn milliseconds(name: &'static str, source: Source) -> Figure {
    Figure { name, source, decimals: 1, factor: 1e-3, musts: &[] }
}

impl Figure {
    const fn times(self, factor: f64) -> Self {
        Figure { factor, ..self }
    }

    const fn must(self, musts: &'static [Must]) -> Self {
        Figure { musts, ..self }
    }
}

const fn ours(limit: Limit) -> Must {
    Must { column: OURS, limit }
}

const fn per_device(limit: Limit) -> Must {
    Must { column: PER_DEVICE, limit }
}

/// One run and the figures that are taken from it.
#[derive(Clone, Copy, Debug)]
struct Play {
    name: &'static str,
    scenario: &'static str,
    miners: usize,
    outstanding: usize,
    /// Seconds that it takes at least, whatever was asked for.
    min_seconds: u64,
    /// The pool sends jobs to a group channel.
    group_channels: bool,
    figures: &'static [Figure],
}

const fn play(name: &'static str, scenario: &'static str, miners: usize, figures: &'static [Figure]) -> Play {
    Play { name, scenario, miners, outstanding: 1, min_seconds: 0, group_channels: false, figures }
}

const COST: &str = "/shares/cpu_us_per_share";
const ACK: &str = "/shares/answered/p99_us";
const ACK_BEFORE: &str = "/shares_before_flood/answered/p99_us";
const JOB: &str = "/blocks/miner/p99_us";
const JOB_BEFORE: &str = "/blocks_before_flood/miner/p99_us";

const FORWARDED: &[Must] = &[ours(Limit::Value(100.0)), per_device(Limit::Value(100.0))];
const DELAYED: &[Must] = &[ours(Limit::Value(10.0)), per_device(Limit::Value(10.0))];
const NONE_LOST: &[Must] = &[ours(Limit::Value(0.0)), per_device(Limit::Value(0.0))];

const fn share_flow(cost: &'static [Must]) -> [Figure; 6] {
    [
        figure("CPU per share, µs", COST, 1).must(cost),
        figure("acknowledged a second", "/shares/acknowledged_per_second", 0),
        figure("forwarded a second", "/shares/forwarded_per_second", 0),
        milliseconds("forwarding p99, ms", Source::At("/shares/forwarding/p99_us")).must(FORWARDED),
        figure("accepted, not yet forwarded at the end", "/shares/backlog", 0),
        figure("accepted, never forwarded", "/shares/never_forwarded", 0).must(NONE_LOST),
    ]
}

const FANOUT: &[Figure] = &[
    figure("CPU per miner, µs", "/blocks/cpu_us_per_miner", 1)
        .must(&[ours(Limit::Floor(1.2)), per_device(Limit::Floor(2.0))]),
    figure("to the first miner, ms", "/blocks/first_miner_ms_median", 1),
    figure("to the last miner, ms", "/blocks/last_miner_ms_median", 1)
        .must(&[ours(Limit::Floor(1.2)), per_device(Limit::Floor(2.0))]),
];

/// One setting for any number of miners: 6,000 shares a second of all together. In a closed loop 15,000 miners would
/// have 150 times the shares of 100 miners on their way, and larger batches make shares cheaper.
const STEADY: [&str; 3] =
    ["100 miners, 6,000 shares/s", "1,000 miners, 6,000 shares/s", "15,000 miners, 6,000 shares/s"];
const STEADY_COST: &[Figure] = &[figure("CPU per share, µs", COST, 1)];

const FARM_MINERS: usize = 8000;

const PLAYS: [Play; 10] = [
    play(
        "1,000 miners, 1 outstanding",
        "shares",
        1000,
        &share_flow(&[ours(Limit::Floor(1.25)), per_device(Limit::Floor(1.25))]),
    ),
    Play {
        outstanding: 4,
        ..play(
            "1,000 miners, 4 outstanding",
            "shares",
            1000,
            &share_flow(&[ours(Limit::Floor(1.5)), per_device(Limit::Floor(1.5))]),
        )
    },
    play("8,000 miners, new block", "fanout", 8000, FANOUT),
    Play {
        group_channels: true,
        ..play("8,000 miners, new block to a group channel", "fanout", 8000, GROUP_FANOUT)
    },
    play(
        "8,000 miners connect",
        "connect",
        8000,
        &[
            figure("CPU per connection, µs", "/connections/cpu_us_per_connection", 1)
                .must(&[ours(Limit::Value(45.0)), per_device(Limit::Value(45.0))]),
            figure("until all have a job, s", "/connect_seconds", 2)
                .must(&[ours(Limit::Value(2.0)), per_device(Limit::Value(2.0))]),
            figure("memory per miner that never mined, KiB", "/connections/resident_bytes_per_miner", 1)
                .times(1.0 / 1024.0),
            figure(
                "memory per idle miner that has mined, KiB",
                "/connections/resident_bytes_per_miner_after_shares",
                1,
            )
            .times(1.0 / 1024.0)
            .must(&[ours(Limit::Value(5.0)), per_device(Limit::Value(5.0))]),
        ],
    ),
    play(STEADY[0], "steady", 100, STEADY_COST),
    play(STEADY[1], "steady", 1000, STEADY_COST),
    play(
        STEADY[2],
        "steady",
        15_000,
        &[
            figure("CPU per share, µs", COST, 1),
            Figure {
                source: Source::Spread(COST, &STEADY),
                ..figure("dearest over cheapest, 100 to 15,000 miners", COST, 2)
            }
            .must(&[ours(Limit::Value(1.15)), per_device(Limit::Value(1.15))]),
        ],
    ),
    Play {
        min_seconds: 20,
        ..play(
            "8,000 miners, a day at the farm",
            "farm",
            FARM_MINERS,
            &[
                // A per cent of a processor is 10,000 microseconds in a second.
                figure("CPU per miner and second, µs", "/shares/cpu_percent", 2)
                    .times(1e4 / FARM_MINERS as f64),
                milliseconds("acknowledged p99, ms", Source::At(ACK)),
                milliseconds("forwarding p99, ms", Source::At("/shares/forwarding/p99_us")),
                milliseconds("job p99, ms", Source::At(JOB)),
            ],
        )
    },
    Play {
        min_seconds: 5,
        ..play(
            "1,000 miners, one floods",
            "flood",
            1000,
            &[
                milliseconds("others' ack p99 without the flood, ms", Source::At(ACK_BEFORE)),
                milliseconds("others' ack p99 with it, ms", Source::At(ACK)),
                milliseconds("added to the ack p99, ms", Source::Difference(ACK, ACK_BEFORE)).must(DELAYED),
                milliseconds("others' job p99 without the flood, ms", Source::At(JOB_BEFORE)),
                milliseconds("others' job p99 with it, ms", Source::At(JOB)),
                milliseconds("added to the job p99, ms", Source::Difference(JOB, JOB_BEFORE)).must(DELAYED),
            ],
        )
    },
];

/// Figures per device are taken with a message for each channel, so that here only that all
/// miners have the block is demanded.
const GROUP_FANOUT: &[Figure] = &[
    figure("CPU per miner, µs", "/blocks/cpu_us_per_miner", 1),
    figure("to the last miner, ms", "/blocks/last_miner_ms_median", 1),
    figure("miners without it", "/blocks/missing", 0).must(NONE_LOST),
];

/// Everything that was measured, for the JSON file.
#[derive(Debug, Serialize)]
struct Comparison {
    machine: String,
    commit: String,
    repeats: usize,
    runs: Vec<Run>,
}

/// One run of one cell.
#[derive(Debug, Serialize)]
struct Run {
    play: &'static str,
    column: &'static str,
    repeat: usize,
    /// The run's report, or why there is none.
    report: Result<Value, String>,
}

/// Plays everything, prints the table, and writes the file.
pub fn run(options: &CompareOptions) -> io::Result<()> {
    let repeats = options.repeats.unwrap_or(if options.quick { 1 } else { 3 });
    let mut comparison = Comparison { machine: machine(), commit: commit(), repeats, runs: Vec::new() };
    let columns: Vec<Column> = COLUMNS
        .into_iter()
        .filter(|column| column.target != "translator" || !options.without_translator)
        .collect();
    let plays: Vec<Play> = PLAYS.into_iter().filter(|play| play.name.contains(&options.only)).collect();
    for play in &plays {
        for repeat in 0..repeats {
            // Floors have no pool that could send to a group.
            let can_play = |column: &&Column| !play.group_channels || !column.target.starts_with("floor");
            for column in columns.iter().filter(can_play) {
                eprintln!("{}: {} ({} of {repeats})", play.name, column.title, repeat + 1);
                let report = play_once(play, column, options);
                if let Err(error) = &report {
                    eprintln!("  {error}");
                }
                let (play, column) = (play.name, column.title);
                comparison.runs.push(Run { play, column, repeat, report });
                // After every run, so that nothing is lost when a long comparison is interrupted.
                fs::write(&options.json, serde_json::to_vec_pretty(&comparison)?)?;
            }
        }
    }
    print!("{}", table(&comparison, &plays, &columns));
    Ok(())
}

fn play_once(play: &Play, column: &Column, options: &CompareOptions) -> Result<Value, String> {
    let seconds = options.seconds.unwrap_or(if options.quick { 3 } else { 8 });
    let blocks = if options.quick { 5 } else { 20 };
    let seconds = seconds.max(play.min_seconds);
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new("timeout")
        .arg(CELL_LIMIT_SECONDS.to_string())
        .arg(own)
        .args(["run", "--scenario", play.scenario, "--target", column.target, "--mode", column.mode])
        .args(["--miners", &play.miners.to_string(), "--outstanding", &play.outstanding.to_string()])
        .args(["--seconds", &seconds.to_string(), "--blocks", &blocks.to_string()])
        .args(play.group_channels.then_some("--group-channels"))
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.code() == Some(TIMED_OUT) {
        return Err(format!("it took more than {CELL_LIMIT_SECONDS} seconds, and was ended"));
    }
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(said.lines().find(|line| line.starts_with("load: ")).unwrap_or("it failed").to_owned());
    }
    serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
}

fn table(comparison: &Comparison, plays: &[Play], columns: &[Column]) -> String {
    let mut text = format!(
        "{}; commit {}; median of {} runs each, targets in turn.\n\n|",
        comparison.machine, comparison.commit, comparison.repeats
    );
    for column in columns {
        let _ = write!(text, " | {}", column.title);
    }
    let _ = writeln!(text, " | Checkweigh / epoll floor | must |");
    let _ = writeln!(text, "|---|{}---|", "---:|".repeat(columns.len() + 1));
    for play in plays {
        for figure in play.figures {
            let of = |column: &Column| value(comparison, play, figure, column);
            let _ = write!(text, "| {}: {}", play.name, figure.name);
            for column in columns {
                let _ = write!(text, " | {}", shown(of(column), figure.decimals));
            }
            let ratio = of(&COLUMNS[OURS]) / of(&COLUMNS[FLOOR]);
            let musts: Vec<String> = figure.musts.iter().map(|must| verdict(*must, figure, of)).collect();
            let _ = writeln!(text, " | {} | {} |", shown(ratio, 2), musts.join("; "));
        }
    }
    text
}

/// A limit, and whether its column keeps it; not measured where there is nothing to compare.
fn verdict(must: Must, figure: &Figure, of: impl Fn(&Column) -> f64) -> String {
    let value = of(&COLUMNS[must.column]);
    let (limit, measured, words) = match must.limit {
        Limit::Value(limit) => (limit, value, ""),
        Limit::Floor(limit) => (limit, value / of(&COLUMNS[FLOOR]), " x floor"),
    };
    let decimals = if words.is_empty() { figure.decimals } else { 2 };
    let whose = if must.column == PER_DEVICE { "per device" } else { "aggregated" };
    if !measured.is_finite() {
        return format!("{whose} ≤ {limit}{words}: not measured");
    }
    let met = if measured <= limit { "met" } else { "**not met**" };
    format!("{whose} ≤ {limit}{words}: {measured:.decimals$} {met}")
}

/// The median of a figure over the runs of a cell; not a number where it was never measured.
fn value(comparison: &Comparison, play: &Play, figure: &Figure, column: &Column) -> f64 {
    let reports = |play: &str| -> Vec<&Value> {
        let of_cell = |run: &&Run| run.play == play && run.column == column.title;
        comparison.runs.iter().filter(of_cell).filter_map(|run| run.report.as_ref().ok()).collect()
    };
    let at = |report: &Value, pointer: &str| report.pointer(pointer).and_then(Value::as_f64);
    let of_play = |play: &str, figure: &dyn Fn(&Value) -> Option<f64>| {
        median(reports(play).into_iter().filter_map(figure).collect())
    };
    let value = match figure.source {
        Source::At(pointer) => of_play(play.name, &|report| at(report, pointer)),
        Source::Difference(more, less) => {
            of_play(play.name, &|report| Some(at(report, more)? - at(report, less)?))
        }
        Source::Spread(pointer, plays) => {
            let values: Vec<f64> =
                plays.iter().map(|play| of_play(play, &|report| at(report, pointer))).collect();
            let most = values.iter().copied().fold(f64::MIN, f64::max);
            let least = values.iter().copied().fold(f64::MAX, f64::min);
            // A play that was not measured leaves nothing to say.
            if values.iter().all(|value| value.is_finite()) { most / least } else { f64::NAN }
        }
    };
    value * figure.factor
}

fn shown(value: f64, decimals: usize) -> String {
    if value.is_finite() { format!("{value:.decimals$}") } else { "–".to_owned() }
}

/// The processor, how many of them, and the kernel.
fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    let model = model.trim_start_matches([' ', '\t', ':']);
    let cores = std::thread::available_parallelism().map_or(0, |cores| cores.get());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{model}, {cores} cores, Linux {}", kernel.trim())
}

/// The commit that is checked out, marked when there are changes.
fn commit() -> String {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let described = Command::new("git").args(["describe", "--always", "--dirty"]).current_dir(root).output();
    described.map_or_else(
        |_| "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(play: usize, column: usize, repeat: usize, report: Value) -> Run {
        let (play, column) = (PLAYS[play].name, COLUMNS[column].title);
        Run { play, column, repeat, report: Ok(report) }
    }

    fn cost(cost: f64) -> Value {
        json!({"shares": {"cpu_us_per_share": cost}})
    }

    fn row(runs: Vec<Run>, part: &str) -> String {
        let comparison = Comparison { machine: "m".to_owned(), commit: "c".to_owned(), repeats: 3, runs };
        let text = table(&comparison, &PLAYS, &COLUMNS);
        text.lines().find(|line| line.contains(part)).expect("a row").to_owned()
    }

    #[test]
    fn the_table_shows_medians_the_ratio_and_whether_it_will_do() {
        let mut runs = vec![
            run(0, 0, 0, cost(30.0)),
            run(0, 4, 0, cost(10.0)),
            run(0, 0, 1, cost(12.5)),
            run(0, 4, 1, cost(10.0)),
            run(0, 0, 2, cost(9.0)),
        ];
        runs.push(Run { report: Err("it failed".to_owned()), ..run(0, 1, 0, Value::Null) });
        assert_eq!(
            row(runs, "1,000 miners, 1 outstanding: CPU per share"),
            "| 1,000 miners, 1 outstanding: CPU per share, µs | 12.5 | – | – | – | 10.0 | – | – | 1.25 | \
             aggregated ≤ 1.25 x floor: 1.25 met; per device ≤ 1.25 x floor: not measured |"
        );
    }

    #[test]
    fn a_flood_adds_the_difference_in_one_run() {
        let p99 = |us: f64| json!({"answered": {"p99_us": us}});
        let report = json!({"shares_before_flood": p99(2000.0), "shares": p99(13_500.0)});
        let row = row(vec![run(9, 0, 0, report)], "added to the ack p99");
        assert!(row.contains("| 11.5 |") && row.contains("aggregated ≤ 10: 11.5 **not met**"), "{row}");
    }

    #[test]
    fn scaling_is_the_dearest_over_the_cheapest() {
        let steady = [5, 6, 7];
        let costs = [10.0, 8.0, 9.0];
        let runs = |count| (0..count).map(|at| run(steady[at], 0, 0, cost(costs[at]))).collect::<Vec<_>>();
        let whole = row(runs(3), "dearest over cheapest");
        assert!(whole.contains("aggregated ≤ 1.15: 1.25 **not met**"), "{whole}");
        // Without one of the three there is nothing to compare.
        assert!(row(runs(2), "dearest over cheapest").contains("aggregated ≤ 1.15: not measured"));
    }
}
