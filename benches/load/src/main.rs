//! The command line of the load program.

use std::io;
use std::num::NonZeroUsize;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use load::compare::{self, CompareOptions};
use load::floor::{self, FloorKind, FloorOptions};
use load::scenario::{self, RunOptions};
use load::target;

/// What a shell says of a program that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// Measures SV1 proxies: miners that mine, a pool that counts, and floors to compare with.
#[derive(Debug, Parser)]
#[command(
    name = "load",
    arg_required_else_help = true,
    after_help = "\
Examples:
  load run --scenario shares --target checkweigh --miners 1000 --outstanding 4
  load run --scenario fanout --target translator --mode per-device --miners 8000
  load run --scenario connect --target floor-epoll --miners 8000
  load compare --quick"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Play one scenario on one target, and print what was measured as one JSON object
    Run(RunOptions),
    /// Play every scenario on every target in turn, and print one table
    Compare(CompareOptions),
    /// Serve miners with the least that a server can do; a line "block" on standard input is a new block
    Floor {
        /// Which floor
        #[arg(long, value_enum)]
        kind: FloorKind,
        /// Threads that serve connections
        #[arg(long, default_value = "2")]
        threads: NonZeroUsize,
        /// The difficulty of every share is two to the power of this
        #[arg(long, default_value_t = -28, allow_hyphen_values = true)]
        exponent: i32,
    },
}

fn main() -> ExitCode {
    let done = raise_open_files().and_then(|()| match Cli::parse().command {
        Command::Run(options) => {
            kill_children_when_interrupted()?;
            let report = scenario::run(&options)?;
            println!("{}", serde_json::to_string_pretty(&report)?);
            Ok(())
        }
        Command::Compare(options) => compare::run(&options),
        Command::Floor { kind, threads, exponent } => {
            floor::run(FloorOptions { kind, threads, difficulty_exponent: exponent })
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Thousands of miners need as many open files; targets inherit the limit.
fn raise_open_files() -> io::Result<()> {
    let limit = rlimit::increase_nofile_limit(u64::MAX)?;
    if limit < 20_000 {
        eprintln!("load: only {limit} open files are allowed");
    }
    Ok(())
}

/// Without this, Ctrl-C would leave the target running.
fn kill_children_when_interrupted() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    std::thread::Builder::new().name("interrupt".to_owned()).spawn(move || {
        runtime.block_on(interrupted());
        target::kill_all();
        std::process::exit(INTERRUPTED);
    })?;
    Ok(())
}

async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        // Without handlers both signals end the process by themselves.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
