//! `checkweigh ledger devices`: all devices, with their sums since the ledger began.

use std::collections::HashMap;
use std::io::Write;

use accounting::{DeviceRow, Subject, Sums};
use clap::Args;
use serde_json::{Value, json};

use super::figures::{device_json, sums_json, terahashes};
use super::table::{Table, plain};
use super::{LedgerFailure, Output, as_of, hexadecimal};
use crate::ledger::{Reader, SqliteReader, revival, times};

/// Arguments of `ledger devices`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  checkweigh ledger --path ledger devices
  checkweigh ledger --path ledger devices --json | jq '.devices[] | select(.sums.rejected > 100) | .name'")]
pub struct DevicesArgs {
    /// One JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(
    reader: &SqliteReader,
    args: &DevicesArgs,
    output: &mut Output<'_>,
) -> Result<(), LedgerFailure> {
    let opening = reader.opening()?;
    let (books, _) = revival::books(&opening, reader)?;
    let devices: Vec<DeviceRow> = books.device_rows().collect();
    let sums: HashMap<Subject, Sums> =
        books.device_views(0, 0).map(|device| (Subject::Device(device.id), device.sums)).collect();
    let as_of = as_of(reader, &opening)?;
    let none = Sums::default();
    let sums_of = |id| sums.get(&Subject::Device(id)).unwrap_or(&none);
    if args.json {
        let devices: Vec<Value> = devices
            .iter()
            .map(|device| {
                let mut object = device_json(device);
                object.insert("sums".to_owned(), sums_json(sums_of(device.id), 0));
                Value::Object(object)
            })
            .collect();
        let page = json!({ "ledger": hexadecimal(reader.ledger()?), "as_of": as_of, "devices": devices });
        writeln!(output, "{page}")?;
        return Ok(());
    }
    let header = [
        "device",
        "last seen",
        "accepted",
        "rejected",
        "forwarded",
        "acknowledged",
        "accepted work (TH)",
        "energy (kWh)",
    ];
    let mut table = Table::new(2, &header);
    for device in &devices {
        let sums = sums_of(device.id);
        let kwh = sums.energy.joules() / 3.6e6;
        table.row(vec![
            plain(&device.name),
            times::seconds(device.last_seen_us / 1_000_000),
            sums.shares.accepted.to_string(),
            sums.shares.rejected_total().to_string(),
            sums.shares.forwarded.to_string(),
            sums.answers.acknowledged.to_string(),
            terahashes(sums.shares.credited),
            if kwh > 0.0 { format!("{kwh:.3}") } else { "unknown".to_owned() },
        ]);
    }
    table.print(output)?;
    match as_of {
        Some(time) => writeln!(output, "\n{} devices, summed up to {time}", devices.len())?,
        None => writeln!(output, "\n{} devices", devices.len())?,
    }
    Ok(())
}
