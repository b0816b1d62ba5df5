//! `checkweigh ledger verify`: rechecks everything, and lists what is wrong.

use std::io::Write;
use std::path::Path;

use clap::Args;
use serde_json::json;

use super::{LedgerFailure, Output, Progress, hexadecimal};
use crate::ledger::SqliteReader;
use crate::ledger::verify::verify;

/// Arguments of `ledger verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  checkweigh ledger --path ledger verify
  checkweigh ledger --path ledger verify --json

Exit code 0 when everything is sound, 1 with a list of what is not.")]
pub struct VerifyArgs {
    /// One JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(
    reader: &SqliteReader,
    path: &Path,
    args: &VerifyArgs,
    output: &mut Output<'_>,
) -> Result<(), LedgerFailure> {
    let mut progress = Progress::new("batches");
    let found = verify(reader, |done, total| progress.at(done, total))?;
    let ledger = hexadecimal(reader.ledger()?);
    if args.json {
        let page = json!({
            "ledger": ledger,
            "batches": found.batches,
            "entries": found.entries,
            "bytes": found.bytes,
            "sums_compared": found.sums,
            "points_compared": found.points,
            "is_sound": found.faults_total == 0,
            "faults_total": found.faults_total,
            "faults": found.faults,
            "notes": found.notes,
        });
        writeln!(output, "{page}")?;
    } else {
        writeln!(output, "ledger {ledger}")?;
        writeln!(
            output,
            "{} batches with {} entries ({} bytes) read",
            found.batches, found.entries, found.bytes
        )?;
        writeln!(output, "{} sums and {} points computed again", found.sums, found.points)?;
        for note in &found.notes {
            writeln!(output, "note: {note}")?;
        }
        for fault in &found.faults {
            writeln!(output, "fault: {fault}")?;
        }
        let untold = found.faults_total - found.faults.len() as u64;
        if untold > 0 {
            writeln!(output, "and {untold} more")?;
        }
        if found.faults_total == 0 {
            writeln!(output, "all of it is sound")?;
        }
    }
    if found.faults_total == 0 {
        return Ok(());
    }
    Err(LedgerFailure::Unsound { path: path.to_owned(), faults: found.faults_total })
}
