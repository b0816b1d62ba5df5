//! `checkweigh ledger show`: one device, its sums and its history.

use std::collections::VecDeque;
use std::io::Write;

use accounting::entry::{ConnectionEntry, Entry};
use accounting::{Costs, DeviceRow, Level, Subject, Sums, codec};
use clap::Args;
use serde_json::{Value, json};
use stratum::{DeviceId, Work};

use super::cost::{costs_json, costs_table};
use super::figures::{device_json, hash_rate, sums_json, terahashes};
use super::table::{Table, plain};
use super::{LedgerFailure, LevelName, Output, time};
use crate::config::distance;
use crate::ledger::{Reader, SqliteReader, revival, times};

/// Beginnings and ends of connections that are shown.
const MAX_CONNECTIONS: usize = 100;

/// Names that are offered in place of one that is not there.
const OFFERED: usize = 5;

/// What is shown when nobody says from when on.
const SHOWN_SECONDS: u64 = times::DAY;

/// Arguments of `ledger show`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  checkweigh ledger --path ledger show farm.rig7
  checkweigh ledger --path ledger show farm.rig7 --level day --from 2026-01-01
  checkweigh ledger --path ledger show farm.rig7 --level minute --from 2026-11-25T10:00:00Z --connections --json")]
pub struct ShowArgs {
    /// The device's name, as `devices` lists it.
    pub device: String,
    /// How long the spans of its history are.
    #[arg(long, value_enum, default_value = "hour")]
    level: LevelName,
    /// Where the history begins; a day before its end when not given.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub from: Option<u64>,
    /// Where it ends; when the device was last seen when not given.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub to: Option<u64>,
    /// Also when connections of it began and ended in that time, the latest first; reads every record of the time.
    #[arg(long)]
    pub connections: bool,
    /// One JSON object instead of tables.
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(
    reader: &SqliteReader,
    args: &ShowArgs,
    output: &mut Output<'_>,
) -> Result<(), LedgerFailure> {
    let (books, _) = revival::books(&reader.opening()?, reader)?;
    let device = find(books.device_rows().collect(), &args.device)?;
    let subject = Subject::Device(device.id);
    let sums = books.view(subject, 0).map(|view| view.sums).unwrap_or_default();
    let worth = books.worth(None).map(|worth| worth.sats_per_hash());
    let costs = Costs::of(&sums, worth);
    let level = args.level.level();
    let to = args.to.unwrap_or(device.last_seen_us / 1_000_000 + level.seconds());
    let from = args.from.unwrap_or(to.saturating_sub(SHOWN_SECONDS));
    let points = reader.points(subject, level, from, to)?;
    let connections = args.connections.then(|| connections(reader, device.id, from, to)).transpose()?;
    if args.json {
        let mut object = device_json(&device);
        object.insert("sums".to_owned(), sums_json(&sums, 0));
        object.insert("cost".to_owned(), costs_json(&costs));
        object.insert("level".to_owned(), level.name().into());
        let history: Vec<Value> = points
            .iter()
            .map(|(start, sums)| {
                json!({ "start": times::seconds(*start), "sums": sums_json(sums, level.seconds()) })
            })
            .collect();
        object.insert("history".to_owned(), history.into());
        if let Some(connections) = connections {
            object.insert("connections".to_owned(), connections.iter().map(connection_json).collect());
        }
        writeln!(output, "{}", Value::Object(object))?;
        return Ok(());
    }
    print_device(&device, &sums, output)?;
    if costs.total.shares > 0 {
        writeln!(output)?;
        costs_table(&costs).print(output)?;
    }
    writeln!(output, "\nEach {}, {} to {}:", words(level), times::seconds(from), times::seconds(to))?;
    history(level, &points).print(output)?;
    if let Some(connections) = connections {
        writeln!(output, "\nIts latest connections in that time:")?;
        connection_table(&connections).print(output)?;
    }
    Ok(())
}

/// What the stream says of a device's connections from one unix second to another, the latest first.
fn connections(
    reader: &SqliteReader,
    device: DeviceId,
    from: u64,
    to: u64,
) -> Result<Vec<ConnectionEntry>, LedgerFailure> {
    let (from_us, to_us) = (from.saturating_mul(1_000_000), to.saturating_mul(1_000_000));
    let mut latest = VecDeque::new();
    for batch in reader.batches_between(from_us, to_us)? {
        // What cannot be read is `verify`'s business.
        for entry in codec::entries(&batch?.payload).map_while(Result::ok) {
            let Entry::Connection(entry) = entry else { continue };
            if entry.device == device && (from_us..to_us).contains(&entry.at_us) {
                if latest.len() == MAX_CONNECTIONS {
                    latest.pop_back();
                }
                latest.push_front(entry);
            }
        }
    }
    Ok(latest.into())
}

fn connection_json(entry: &ConnectionEntry) -> Value {
    json!({
        "at": times::microseconds(entry.at_us),
        "connection": entry.id.0,
        "channel": entry.channel.0,
        "is_open": entry.is_open,
        "connections": entry.connections,
    })
}

fn connection_table(entries: &[ConnectionEntry]) -> Table {
    let mut table = Table::new(2, &["time", "what", "connection", "channel", "open then"]);
    for entry in entries {
        table.row(vec![
            times::microseconds(entry.at_us),
            if entry.is_open { "began" } else { "ended" }.to_owned(),
            entry.id.0.to_string(),
            entry.channel.0.to_string(),
            entry.connections.to_string(),
        ]);
    }
    table
}

const fn words(level: Level) -> &'static str {
    match level {
        Level::Minute => "minute",
        Level::TenMinutes => "ten minutes",
        Level::Hour => "hour",
        Level::Day => "day",
    }
}

fn print_device(device: &DeviceRow, sums: &Sums, output: &mut Output<'_>) -> std::io::Result<()> {
    let known = |text: &str| if text.is_empty() { "unknown".to_owned() } else { plain(text) };
    writeln!(output, "{}", plain(&device.name))?;
    if !device.worker_name.is_empty() {
        writeln!(output, "  worker name           {}", plain(&device.worker_name))?;
    }
    writeln!(output, "  address               {}", known(&device.address))?;
    writeln!(output, "  user agent            {}", known(&device.user_agent))?;
    if !device.device_id.is_empty() {
        writeln!(output, "  device id             {}", plain(&device.device_id))?;
    }
    writeln!(output, "  first seen            {}", times::microseconds(device.first_seen_us))?;
    writeln!(output, "  last seen             {}", times::microseconds(device.last_seen_us))?;
    writeln!(output, "  best difficulty       {}", device.best_difficulty)?;
    let (shares, answers) = (&sums.shares, &sums.answers);
    writeln!(output, "Since the ledger began:")?;
    writeln!(output, "  submitted             {}", shares.submitted)?;
    writeln!(output, "  accepted              {}", shares.accepted)?;
    writeln!(output, "  blocks                {}", shares.blocks)?;
    for (reason, count) in shares.rejected_by_reason().filter(|(_, count)| *count > 0) {
        writeln!(output, "  rejected, {:<12}{count}", reason.name())?;
    }
    writeln!(output, "  below upstream target {}", shares.below_upstream_target)?;
    writeln!(output, "  forwarded             {}", shares.forwarded)?;
    for (reason, count) in shares.dropped_by_reason().filter(|(_, count)| *count > 0) {
        writeln!(output, "  dropped, {:<13}{count}", reason.name())?;
    }
    if shares.held > 0 {
        writeln!(output, "  held for their job    {}, of them released {}", shares.held, shares.released)?;
    }
    writeln!(output, "  acknowledged          {}", answers.acknowledged)?;
    writeln!(output, "  refused by upstream   {}", answers.refused)?;
    writeln!(output, "  lost                  {}", answers.lost_total())?;
    writeln!(output, "  work at the device's difficulty, and at the upstream's target, in TH:")?;
    let works = [
        ("submitted", shares.submitted_work, None),
        ("accepted", shares.credited, Some(shares.upstream_work)),
        ("forwarded", Work(0), Some(shares.forwarded_work)),
        ("acknowledged", Work(0), Some(answers.acknowledged_work)),
    ];
    for (name, device, upstream) in works {
        let own = if device.0 > 0 || upstream.is_none() { terahashes(device) } else { String::new() };
        let theirs = upstream.map(terahashes).unwrap_or_default();
        writeln!(output, "    {name:<20}{own:>14}{theirs:>16}")?;
    }
    match sums.energy.joules_per_terahash() {
        Some(efficiency) => writeln!(output, "  efficiency            {efficiency:.2} J/TH"),
        None => writeln!(output, "  efficiency            unknown"),
    }
}

fn history(level: Level, points: &[(u64, Sums)]) -> Table {
    let header = [
        "start",
        "submitted",
        "accepted",
        "rejected",
        "acknowledged",
        "accepted hash rate",
        "+/-",
        "acknowledged work rate",
        "J/TH",
    ];
    let mut table = Table::new(1, &header);
    for (start, sums) in points {
        let unknown = || "unknown".to_owned();
        table.row(vec![
            times::seconds(*start),
            sums.shares.submitted.to_string(),
            sums.shares.accepted.to_string(),
            sums.shares.rejected_total().to_string(),
            sums.answers.acknowledged.to_string(),
            hash_rate(sums.shares.credited.0 as f64 / level.seconds() as f64),
            sums.uncertainty().map_or_else(unknown, |error| format!("{:.1} %", error * 100.0)),
            hash_rate(sums.answers.acknowledged_work.0 as f64 / level.seconds() as f64),
            sums.energy.joules_per_terahash().map_or_else(unknown, |efficiency| format!("{efficiency:.2}")),
        ]);
    }
    table
}

/// The device of this name, or the names that could have been meant.
pub(super) fn find(devices: Vec<DeviceRow>, name: &str) -> Result<DeviceRow, LedgerFailure> {
    let near = nearest(&devices, name);
    let count = devices.len();
    let found = devices.into_iter().find(|device| &*device.name == name);
    found.ok_or_else(|| {
        let name = plain(name);
        LedgerFailure::Refused(if near.is_empty() {
            format!("there is no device {name:?} among the {count} of this ledger; `devices` lists them")
        } else {
            format!("there is no device {name:?}; did you mean {}?", near.join(", "))
        })
    })
}

/// Names that contain the one that was asked for, or that differ from it by a slip.
fn nearest(devices: &[DeviceRow], name: &str) -> Vec<String> {
    let wanted = name.to_lowercase();
    let score = |device: &DeviceRow| {
        let name = device.name.to_lowercase();
        if !wanted.is_empty() && name.contains(&wanted) {
            return Some(0);
        }
        let distance = distance(&wanted, &name);
        (distance * 3 <= name.chars().count()).then_some(distance)
    };
    let mut near: Vec<(usize, String)> =
        devices.iter().filter_map(|device| Some((score(device)?, plain(&device.name)))).collect();
    near.sort();
    near.truncate(OFFERED);
    near.into_iter().map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str) -> DeviceRow {
        DeviceRow {
            id: stratum::DeviceId(0),
            name: name.into(),
            worker_name: "".into(),
            groups: Vec::new(),
            first_seen_us: 0,
            last_seen_us: 0,
            last_share_us: 0,
            best_difficulty: 0.0,
            address: String::new(),
            user_agent: String::new(),
            device_id: String::new(),
        }
    }

    #[test]
    fn a_name_that_is_not_there_is_answered_with_those_that_were_meant() {
        let devices = || ["farm.rig7", "farm.rig17", "hall.asic1"].map(device).to_vec();
        let refused = |name: &str| find(devices(), name).expect_err("it is not there").to_string();
        assert_eq!(&*find(devices(), "farm.rig7").expect("it is there").name, "farm.rig7");
        assert!(
            refused("farm.rig8").ends_with("did you mean farm.rig7, farm.rig17?"),
            "{}",
            refused("farm.rig8")
        );
        assert!(refused("RIG").contains("farm.rig17, farm.rig7"), "{}", refused("RIG"));
        assert!(refused("elsewhere").contains("among the 3 of this ledger"), "{}", refused("elsewhere"));
    }
}
