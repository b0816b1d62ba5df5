//! `checkweigh ledger`: looks into a ledger folder, also while a process writes it. Never changes it.
//!
//! Results go to standard output, as tables for people or as JSON for scripts; everything else goes to standard
//! error.

mod check_statement;
mod cost;
mod devices;
mod export;
mod figures;
mod show;
mod statement;
mod table;
mod verify;

use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};
use std::path::PathBuf;
use std::time::Duration;

use accounting::Level;
use clap::{Args, Subcommand};

use crate::clock::Clock;
use crate::ledger::{Opening, Reader, SqliteReader, StoreError, times};

/// Long work says how far it is this often.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);

/// Arguments of `ledger`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  checkweigh ledger --path ledger devices                     what every device has proved since the ledger began
  checkweigh ledger --path ledger show farm.rig7              one device, with its last 24 hours
  checkweigh ledger --path ledger export --format csv --from 2026-11-01 --to 2026-12-01 --out november.csv
  checkweigh ledger --path ledger verify                      recheck every hash, and every sum
  checkweigh ledger --path ledger statement --device farm.rig7 --from 2026-11-01 --to 2026-12-01 --key ledger.key --out rig7.json
  checkweigh ledger check-statement rig7.json --key PUBLIC_KEY

All of them work beside a running process, and change nothing. Times are UTC (RFC 3339).")]
pub struct LedgerArgs {
    /// The ledger's folder: [ledger] path of the configuration. Only check-statement needs none.
    #[arg(long, value_name = "DIR")]
    pub path: Option<PathBuf>,
    /// What to do with it.
    #[command(subcommand)]
    pub command: LedgerCommand,
}

/// What can be done with a ledger. Each command is a module of its own, with its arguments.
#[derive(Debug, Subcommand)]
pub enum LedgerCommand {
    /// List the devices, with what each has proved since the ledger began
    Devices(devices::DevicesArgs),
    /// Show one device: who it is, its sums, and its history
    Show(show::ShowArgs),
    /// Write the sums of every device over time to a file: CSV, Parquet or JSON
    Export(export::ExportArgs),
    /// Recheck every hash, the chain of batches, and every sum
    Verify(verify::VerifyArgs),
    /// Sign what a device, a group or an account did in a period, with a sample that anybody can hash again
    Statement(statement::StatementArgs),
    /// Check a statement of work, and say what it proves and what not
    CheckStatement(check_statement::CheckStatementArgs),
}

/// Why a command on a ledger failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum LedgerFailure {
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("cannot write the result: {0}")]
    Output(#[from] io::Error),
    /// What was asked for is not there, or cannot be done.
    #[error("{0}")]
    Refused(String),
    /// An argument is missing.
    #[error("the following required argument was not provided: --path <DIR>, the ledger's folder")]
    NoPath,
    #[error("the ledger in {} is not sound: {faults} faults", path.display())]
    Unsound { path: PathBuf, faults: u64 },
}

/// Does what the command line asks for.
pub(super) fn run(args: LedgerArgs) -> Result<(), LedgerFailure> {
    let LedgerArgs { path, command } = args;
    let mut output = BufWriter::new(io::stdout().lock());
    let done = match command {
        LedgerCommand::CheckStatement(args) => check_statement::run(&args, &mut output),
        command => look_into(path, command, &mut output),
    };
    match done.and_then(|()| Ok(output.flush()?)) {
        // Whoever read the output has enough, as `head` does.
        Err(LedgerFailure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

fn look_into(
    path: Option<PathBuf>,
    command: LedgerCommand,
    output: &mut Output<'_>,
) -> Result<(), LedgerFailure> {
    let path = path.ok_or(LedgerFailure::NoPath)?;
    let reader = SqliteReader::open(&path)?;
    match command {
        LedgerCommand::Devices(args) => devices::run(&reader, &args, output),
        LedgerCommand::Show(args) => show::run(&reader, &args, output),
        LedgerCommand::Export(args) => export::run(&reader, &args, output),
        LedgerCommand::Verify(args) => verify::run(&reader, &path, &args, output),
        LedgerCommand::Statement(args) => statement::run(&reader, args, output),
        LedgerCommand::CheckStatement(args) => check_statement::run(&args, output),
    }
}

/// Standard output.
type Output<'o> = BufWriter<StdoutLock<'o>>;

/// Says on standard error how far long work is.
struct Progress {
    clock: Clock,
    next: Duration,
    what: &'static str,
}

impl Progress {
    /// `what` is counted, as in "batches".
    fn new(what: &'static str) -> Self {
        let clock = Clock::start();
        Progress { clock, next: PROGRESS_INTERVAL, what }
    }

    fn at(&mut self, done: u64, total: u64) {
        let now = self.clock.now().monotonic;
        if now < self.next {
            return;
        }
        self.next = now + PROGRESS_INTERVAL;
        // On a terminal, one line that changes.
        let end = if io::stderr().is_terminal() { "\r" } else { "\n" };
        eprint!("{done} of {total} {}{end}", self.what);
    }
}

/// A level as the command line names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LevelName {
    Minute,
    TenMinutes,
    Hour,
    Day,
}

impl LevelName {
    const fn level(self) -> Level {
        match self {
            LevelName::Minute => Level::Minute,
            LevelName::TenMinutes => Level::TenMinutes,
            LevelName::Hour => Level::Hour,
            LevelName::Day => Level::Day,
        }
    }
}

/// A time of the command line, in unix seconds.
fn time(text: &str) -> Result<u64, String> {
    times::parse(text).map(|us| us / 1_000_000)
}

fn hexadecimal(id: accounting::LedgerId) -> String {
    hex::encode(id.0)
}

/// When the newest entry is from, in words.
fn as_of(reader: &SqliteReader, opening: &Opening) -> Result<Option<String>, StoreError> {
    let batch = reader.batches(opening.head.number)?.next().transpose()?;
    Ok(batch.map(|batch| times::microseconds(batch.last_us)))
}
