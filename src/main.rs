//! The binary: reads the command line and leaves the rest to the library.

use std::process::ExitCode;

use checkweigh::cli::{self, Cli};
use clap::Parser;

fn main() -> ExitCode {
    cli::run(Cli::parse())
}
