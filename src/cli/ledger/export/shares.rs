//! Rows of single shares: all that was written down of each.

use std::collections::HashMap;
use std::sync::Arc;

use accounting::{BatchNumber, DeviceRow, Entry, Fate, ShareRecord, Verdict, codec};
use stratum::DeviceId;

use super::{Cell, ExportArgs, Row, Rows};
use crate::cli::ledger::{LedgerFailure, Progress};
use crate::ledger::{Reader, SqliteReader};

/// Writes the shares of the period, in the order of the stream; those of one device if one is asked for.
pub(super) fn write(
    reader: &SqliteReader,
    args: &ExportArgs,
    devices: &[DeviceRow],
    rows: &mut dyn Rows,
) -> Result<u64, LedgerFailure> {
    let names: HashMap<DeviceId, Arc<str>> =
        devices.iter().map(|device| (device.id, Arc::clone(&device.name))).collect();
    let head = reader.opening()?.head.number.0;
    let (from_us, to_us) = (args.from.saturating_mul(1_000_000), args.to.saturating_mul(1_000_000));
    let mut progress = Progress::new("batches");
    let mut first = None;
    let mut count = 0;
    for batch in reader.batches_between(from_us, to_us)? {
        let batch = batch?;
        for (place, entry) in codec::entries(&batch.payload).enumerate() {
            let entry = entry.map_err(|error| {
                LedgerFailure::Refused(format!(
                    "entry {place} of batch {} cannot be read: {error}",
                    batch.number.0
                ))
            })?;
            let Entry::Share(share) = entry else { continue };
            let is_wanted = args.device.is_none() || share.device.is_some_and(|id| names.contains_key(&id));
            if is_wanted && (from_us..to_us).contains(&(share.judged.utc.as_micros() as u64)) {
                rows.row(row(batch.number, place, &share, &names))?;
                count += 1;
            }
        }
        let number = batch.number.0;
        let first = *first.get_or_insert(number);
        progress.at(number + 1 - first, head.max(number) + 1 - first);
    }
    Ok(count)
}

fn row(batch: BatchNumber, place: usize, share: &ShareRecord, names: &HashMap<DeviceId, Arc<str>>) -> Row {
    let name = share.device.and_then(|id| names.get(&id));
    let (verdict, reason) = match share.verdict {
        Verdict::Accepted => ("accepted", ""),
        Verdict::BlockFound => ("block_found", ""),
        Verdict::Rejected(reason) => ("rejected", reason.name()),
    };
    let text = |text: &str| Cell::Text(text.to_owned());
    let number = |number: u32| Cell::Count(number.into());
    let cells = [
        ("batch", Cell::Count(batch.0)),
        ("entry", Cell::Count(place as u64)),
        ("time", Cell::Moment(share.judged.utc.as_micros() as u64)),
        ("device", text(name.map_or("", |name| name))),
        ("device_id", Cell::Maybe(share.device.map(|id| id.0.into()))),
        ("connection", Cell::Count(share.connection.0)),
        ("channel", number(share.channel.0)),
        ("upstream", Cell::Maybe(share.upstream.map(|id| id.0.into()))),
        ("upstream_channel", Cell::Maybe(share.upstream_channel.map(|id| id.0.into()))),
        ("job", Cell::Maybe(share.job.map(|job| job.0))),
        ("verdict", text(verdict)),
        ("rejected_for", text(reason)),
        ("fate", text(fate_name(share.fate))),
        ("dropped_for", text(if let Fate::Dropped(reason) = share.fate { reason.name() } else { "" })),
        ("sequence_number", Cell::Maybe(share.sequence_number.map(|number| number.0.into()))),
        ("submitted_hashes", Cell::Hashes(share.submitted.0)),
        ("accepted_hashes", Cell::Hashes(share.credited().0)),
        ("upstream_hashes", Cell::Hashes(share.upstream_work.0)),
        ("share_difficulty", Cell::Number(share.difficulty.map(|difficulty| difficulty.0))),
        ("job_age_ms", number(share.job_age_ms)),
        ("version", number(share.version)),
        ("ntime", number(share.ntime)),
        ("nonce", number(share.nonce)),
        ("rollable_extranonce", Cell::Text(hex::encode(&share.rollable))),
    ];
    cells.into_iter().map(|(name, cell)| (name.to_owned(), cell)).collect()
}

const fn fate_name(fate: Fate) -> &'static str {
    match fate {
        Fate::Refused => "refused",
        Fate::BelowUpstreamTarget => "below_upstream_target",
        Fate::Forwarded => "forwarded",
        Fate::Dropped(_) => "dropped",
        Fate::Kept => "kept",
    }
}
