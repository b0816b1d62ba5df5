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

const COLUMNS: [Column; 6] = [
    Column { title: "Checkweigh, aggregated", target: "checkweigh", mode: "aggregated" },
    Column { title: "Checkweigh, per device", target: "checkweigh", mode: "per-device" },
    Column { title: "translator_sv2, aggregated", target: "translator", mode: "aggregated" },
    Column { title: "translator_sv2, per device", target: "translator", mode: "per-device" },
    Column { title: "epoll floor", target: "floor-epoll", mode: "aggregated" },
    Column { title: "tokio floor", target: "floor-tokio", mode: "aggregated" },
];

/// The columns whose ratio is shown: ours, and the floor that it is compared with.
const OURS: usize = 0;
const FLOOR: usize = 4;

/// One figure out of a run's report.
#[derive(Clone, Copy, Debug)]
struct Figure {
    name: &'static str,
    /// Where it stands in the report.
    pointer: &'static str,
    decimals: usize,
    /// What it is multiplied with to have the unit of its name.
    factor: f64,
}

const fn figure(name: &'static str, pointer: &'static str, decimals: usize) -> Figure {
    Figure { name, pointer, decimals, factor: 1.0 }
}

/// One run and the figures that are taken from it.
#[derive(Clone, Copy, Debug)]
struct Play {
    name: &'static str,
    scenario: &'static str,
    miners: usize,
    outstanding: usize,
    figures: &'static [Figure],
}

const SHARE_COST: &[Figure] = &[figure("CPU per share, µs", "/shares/cpu_us_per_share", 1)];

const SHARE_FLOW: &[Figure] = &[
    figure("CPU per share, µs", "/shares/cpu_us_per_share", 1),
    figure("acknowledged a second", "/shares/acknowledged_per_second", 0),
    figure("forwarded a second", "/shares/forwarded_per_second", 0),
    Figure { name: "forwarding p99, ms", pointer: "/shares/forwarding/p99_us", decimals: 1, factor: 1e-3 },
    figure("accepted, not yet forwarded at the end", "/shares/backlog", 0),
    figure("accepted, never forwarded", "/shares/never_forwarded", 0),
];

const PLAYS: [Play; 7] = [
    Play {
        name: "1,000 miners, 1 outstanding",
        scenario: "shares",
        miners: 1000,
        outstanding: 1,
        figures: SHARE_FLOW,
    },
    Play {
        name: "1,000 miners, 4 outstanding",
        scenario: "shares",
        miners: 1000,
        outstanding: 4,
        figures: SHARE_FLOW,
    },
    Play {
        name: "8,000 miners, new block",
        scenario: "fanout",
        miners: 8000,
        outstanding: 1,
        figures: &[
            figure("CPU per miner, µs", "/blocks/cpu_us_per_miner", 1),
            figure("to the first miner, ms", "/blocks/first_miner_ms_median", 1),
            figure("to the last miner, ms", "/blocks/last_miner_ms_median", 1),
        ],
    },
    Play {
        name: "8,000 miners connect",
        scenario: "connect",
        miners: 8000,
        outstanding: 1,
        figures: &[
            figure("CPU per connection, µs", "/connections/cpu_us_per_connection", 1),
            figure("until all have a job, s", "/connect_seconds", 2),
            Figure {
                name: "memory per idle miner, KiB",
                pointer: "/connections/resident_bytes_per_miner",
                decimals: 1,
                factor: 1.0 / 1024.0,
            },
        ],
    },
    Play {
        name: "100 miners, 4 outstanding",
        scenario: "shares",
        miners: 100,
        outstanding: 4,
        figures: SHARE_COST,
    },
    Play {
        name: "8,000 miners, 1 outstanding",
        scenario: "shares",
        miners: 8000,
        outstanding: 1,
        figures: SHARE_COST,
    },
    Play {
        name: "15,000 miners, 1 outstanding",
        scenario: "shares",
        miners: 15_000,
        outstanding: 1,
        figures: SHARE_COST,
    },
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
            for column in &columns {
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
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new(own)
        .args(["run", "--scenario", play.scenario, "--target", column.target, "--mode", column.mode])
        .args(["--miners", &play.miners.to_string(), "--outstanding", &play.outstanding.to_string()])
        .args(["--seconds", &seconds.to_string(), "--blocks", &blocks.to_string()])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
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
    let _ = writeln!(text, " | Checkweigh / epoll floor |");
    let _ = writeln!(text, "|---|{}", "---:|".repeat(columns.len() + 1));
    for play in plays {
        for figure in play.figures {
            let values: Vec<f64> =
                columns.iter().map(|column| value(comparison, play, figure, column)).collect();
            let _ = write!(text, "| {}: {}", play.name, figure.name);
            for value in &values {
                let _ = write!(text, " | {}", shown(*value, figure.decimals));
            }
            let of = |index: usize| {
                let at = columns.iter().position(|column| *column == COLUMNS[index]);
                at.map_or(f64::NAN, |at| values[at])
            };
            let _ = writeln!(text, " | {} |", shown(of(OURS) / of(FLOOR), 2));
        }
    }
    text
}

/// The median of a figure over the runs of a cell; not a number where it was never measured.
fn value(comparison: &Comparison, play: &Play, figure: &Figure, column: &Column) -> f64 {
    let of_cell = |run: &&Run| run.play == play.name && run.column == column.title;
    let reports = comparison.runs.iter().filter(of_cell).filter_map(|run| run.report.as_ref().ok());
    let values = reports.filter_map(|report| report.pointer(figure.pointer)?.as_f64());
    median(values.map(|value| value * figure.factor).collect())
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

    #[test]
    fn the_table_shows_medians_and_the_ratio() {
        let run = |column: usize, repeat, cost: f64| Run {
            play: PLAYS[0].name,
            column: COLUMNS[column].title,
            repeat,
            report: Ok(json!({"shares": {"cpu_us_per_share": cost}})),
        };
        let mut runs =
            vec![run(0, 0, 30.0), run(4, 0, 10.0), run(0, 1, 20.0), run(4, 1, 10.0), run(0, 2, 90.0)];
        runs.push(Run { report: Err("it failed".to_owned()), ..run(1, 0, 0.0) });
        let comparison = Comparison { machine: "m".to_owned(), commit: "c".to_owned(), repeats: 3, runs };
        let text = table(&comparison, &PLAYS[..1], &COLUMNS);
        let row = text.lines().find(|line| line.contains("CPU per share")).expect("a row");
        assert_eq!(
            row,
            "| 1,000 miners, 1 outstanding: CPU per share, µs | 30.0 | – | – | – | 10.0 | – | 3.00 |"
        );
    }
}
