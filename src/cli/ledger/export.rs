//! `checkweigh ledger export`: the sums of devices over time, or each single share, row by row, for other programs.

#[cfg(feature = "parquet")]
mod parquet;
mod shares;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use accounting::{DeviceRow, Level, Subject, Sums};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value};

use super::figures::{Cell, columns};
use super::{LedgerFailure, LevelName, Output, Progress, show, time};
use crate::ledger::{Reader, SqliteReader};

/// Arguments of `ledger export`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  checkweigh ledger --path ledger export --format csv --from 2026-11-01 --to 2026-12-01 --out november.csv
  checkweigh ledger --path ledger export --format json --from 2026-11-25 --to 2026-11-26 --level minute
  checkweigh ledger --path ledger export --format parquet --from 2026-01-01 --to 2027-01-01 --level day --out year.parquet

  checkweigh ledger --path ledger export --format csv --of shares --from 2026-11-25T10:00:00Z --to 2026-11-25T10:01:00Z

Of sums, one row for each device and span with something in it. Hashes are expected hashes (work), exact: whole numbers in CSV,
texts in JSON, decimals in Parquet. What is not known is empty. Of forwarded shares, answer is what became of each:
acknowledged, refused (answer_reason has the upstream's code) or lost (and why); ack_ms is the time from the share judged to
the upstream's answer. They are empty where none came within a minute of the period's end.")]
pub struct ExportArgs {
    /// How rows are written; json is one object a line.
    #[arg(long, value_enum)]
    format: Format,
    /// The first span: those that start at this time or later.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub from: u64,
    /// Where it ends: spans that start at this time are not in it.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub to: u64,
    /// What rows are of: sums over spans of time, or shares, as long as their records are kept.
    #[arg(long, value_enum, default_value = "sums")]
    of: What,
    /// How long the spans of sums are.
    #[arg(long, value_enum, default_value = "hour")]
    level: LevelName,
    /// Only this device.
    #[arg(long, value_name = "NAME")]
    pub device: Option<String>,
    /// The file, which must not exist yet; standard output when not given.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Csv,
    Parquet,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    Sums,
    Shares,
}

/// One row: names of columns and their values.
type Row = Vec<(String, Cell)>;

/// Takes rows. All have the same columns.
trait Rows {
    fn row(&mut self, row: Row) -> io::Result<()>;
    fn finish(self: Box<Self>) -> io::Result<()>;
}

pub(super) fn run(
    reader: &SqliteReader,
    args: &ExportArgs,
    output: &mut Output<'_>,
) -> Result<(), LedgerFailure> {
    if args.from >= args.to {
        return Err(LedgerFailure::Refused("--from is not before --to".to_owned()));
    }
    let devices = match &args.device {
        Some(name) => vec![show::find(reader.devices()?, name)?],
        None => reader.devices()?,
    };
    let Some(path) = &args.out else {
        let rows: Box<dyn Rows + '_> = match args.format {
            Format::Csv => Box::new(Csv { output, has_header: false }),
            Format::Json => Box::new(Json { output }),
            Format::Parquet => {
                let what = "Parquet is not for a terminal or a pipe: say --out FILE".to_owned();
                return Err(LedgerFailure::Refused(what));
            }
        };
        write(reader, args, &devices, rows)?;
        return Ok(());
    };
    let file = File::create_new(path)
        .map_err(|error| LedgerFailure::Refused(format!("cannot make {}: {error}", path.display())))?;
    let written = rows_to_file(args.format, file).and_then(|rows| write(reader, args, &devices, rows));
    match written {
        Ok(count) => {
            eprintln!("{count} rows written to {}", path.display());
            Ok(())
        }
        Err(failure) => Err(discard(path, failure)),
    }
}

/// Half a file would be taken for a whole one.
fn discard(path: &Path, failure: LedgerFailure) -> LedgerFailure {
    let _ = fs::remove_file(path);
    match failure {
        LedgerFailure::Output(error) => {
            LedgerFailure::Refused(format!("cannot write {}: {error}", path.display()))
        }
        failure => failure,
    }
}

fn rows_to_file(format: Format, file: File) -> Result<Box<dyn Rows>, LedgerFailure> {
    let output = BufWriter::new(file);
    match format {
        Format::Csv => Ok(Box::new(Csv { output, has_header: false })),
        Format::Json => Ok(Box::new(Json { output })),
        #[cfg(feature = "parquet")]
        Format::Parquet => Ok(Box::new(parquet::Parquet::new(output))),
        #[cfg(not(feature = "parquet"))]
        Format::Parquet => {
            drop(output);
            let what =
                "this program was built without Parquet (cargo feature `parquet`); csv and json are there";
            Err(LedgerFailure::Refused(what.to_owned()))
        }
    }
}

fn write(
    reader: &SqliteReader,
    args: &ExportArgs,
    devices: &[DeviceRow],
    mut rows: Box<dyn Rows + '_>,
) -> Result<u64, LedgerFailure> {
    let count = match args.of {
        What::Sums => write_sums(reader, args, devices, &mut *rows)?,
        What::Shares => shares::write(reader, args, devices, &mut *rows)?,
    };
    if count == 0 {
        // A file without rows has no columns either, in any of the formats.
        eprintln!("there is nothing in this period");
    }
    rows.finish()?;
    Ok(count)
}

fn write_sums(
    reader: &SqliteReader,
    args: &ExportArgs,
    devices: &[DeviceRow],
    rows: &mut dyn Rows,
) -> Result<u64, LedgerFailure> {
    let level = args.level.level();
    let mut progress = Progress::new("devices");
    let mut count = 0;
    for (place, device) in devices.iter().enumerate() {
        for (start, sums) in reader.points(Subject::Device(device.id), level, args.from, args.to)? {
            rows.row(row(device, level, start, &sums))?;
            count += 1;
        }
        progress.at(place as u64 + 1, devices.len() as u64);
    }
    Ok(count)
}

fn row(device: &DeviceRow, level: Level, start: u64, sums: &Sums) -> Row {
    let mut row: Row = vec![
        ("device".to_owned(), Cell::Text(device.name.to_string())),
        ("device_number".to_owned(), Cell::Count(device.id.0.into())),
        ("start".to_owned(), Cell::Time(start)),
        ("seconds".to_owned(), Cell::Count(level.seconds())),
    ];
    row.extend(columns(sums, level.seconds()));
    row
}

struct Csv<W> {
    output: W,
    has_header: bool,
}

impl<W: Write> Rows for Csv<W> {
    fn row(&mut self, row: Row) -> io::Result<()> {
        if !self.has_header {
            let names: Vec<&str> = row.iter().map(|(name, _)| name.as_str()).collect();
            writeln!(self.output, "{}", names.join(","))?;
            self.has_header = true;
        }
        let cells: Vec<String> = row.iter().map(|(_, cell)| cell.to_csv()).collect();
        writeln!(self.output, "{}", cells.join(","))
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.output.flush()
    }
}

struct Json<W> {
    output: W,
}

impl<W: Write> Rows for Json<W> {
    fn row(&mut self, row: Row) -> io::Result<()> {
        let object: Map<String, Value> = row.into_iter().map(|(name, cell)| (name, cell.to_json())).collect();
        writeln!(self.output, "{}", Value::Object(object))
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.output.flush()
    }
}
