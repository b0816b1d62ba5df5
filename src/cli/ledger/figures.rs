//! Sums as columns and as JSON: the same names everywhere, each with its unit.

use accounting::{DeviceRow, PowerSource, Sums};
use serde_json::{Map, Value, json};
use stratum::Work;

use crate::ledger::times;

/// A value of a column.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell {
    Text(String),
    Count(u64),
    /// `None` where there is none.
    Maybe(Option<u64>),
    /// Unix seconds.
    Time(u64),
    /// Unix microseconds.
    Moment(u64),
    /// Expected hashes.
    Hashes(u128),
    /// `None` where it is not known.
    Number(Option<f64>),
}

/// The columns of sums over a number of seconds, in their order.
pub(super) fn columns(sums: &Sums, seconds: u64) -> Vec<(String, Cell)> {
    let (shares, answers) = (&sums.shares, &sums.answers);
    let mut columns = Vec::with_capacity(64);
    let mut add = |name: &str, cell: Cell| columns.push((name.to_owned(), cell));
    let hashes = |work: Work| Cell::Hashes(work.0);
    add("submitted", Cell::Count(shares.submitted));
    add("accepted", Cell::Count(shares.accepted));
    add("blocks", Cell::Count(shares.blocks));
    add("rejected", Cell::Count(shares.rejected_total()));
    for (reason, count) in shares.rejected_by_reason() {
        add(&format!("rejected_{}", reason.name()), Cell::Count(count));
    }
    add("below_upstream_target", Cell::Count(shares.below_upstream_target));
    add("forwarded", Cell::Count(shares.forwarded));
    for (reason, count) in shares.dropped_by_reason() {
        add(&format!("dropped_{}", reason.name()), Cell::Count(count));
    }
    add("kept", Cell::Count(shares.kept));
    add("held", Cell::Count(shares.held));
    add("released", Cell::Count(shares.released));
    add("acknowledged", Cell::Count(answers.acknowledged));
    add("refused_by_upstream", Cell::Count(answers.refused));
    for (reason, count) in answers.lost_by_reason() {
        add(&format!("lost_{}", reason.name()), Cell::Count(count));
    }
    let sum = |works: &[Work]| Cell::Hashes(works.iter().map(|work| work.0).sum());
    add("submitted_hashes", hashes(shares.submitted_work));
    add("accepted_hashes", hashes(shares.credited));
    add("rejected_hashes", sum(&shares.rejected_work));
    add("upstream_hashes", hashes(shares.upstream_work));
    add("forwarded_hashes", hashes(shares.forwarded_work));
    add("dropped_hashes", sum(&shares.dropped_work));
    add("held_hashes", hashes(shares.held_work));
    add("released_hashes", hashes(shares.released_work));
    add("acknowledged_hashes", hashes(answers.acknowledged_work));
    add("refused_by_upstream_hashes", hashes(answers.refused_work));
    add("lost_hashes", sum(&answers.lost_work));
    let rate = (seconds > 0).then(|| shares.credited.0 as f64 / seconds as f64);
    add("accepted_hash_rate_hs", Cell::Number(rate));
    add("hash_rate_relative_error", Cell::Number(sums.uncertainty()));
    let joules = sums.energy.joules();
    add("energy_j", Cell::Number((joules > 0.0).then_some(joules)));
    for (source, energy) in PowerSource::ALL.into_iter().zip(sums.energy.millijoules) {
        let energy = (joules > 0.0).then_some(energy as f64 / 1000.0);
        add(&format!("energy_j_{}", source.name()), Cell::Number(energy));
    }
    add("covered_hashes", hashes(sums.energy.covered_work));
    add("efficiency_j_per_th", Cell::Number(sums.energy.joules_per_terahash()));
    columns
}

/// Sums as a JSON object. Hashes are texts: they are too great for the numbers of most readers.
pub(super) fn sums_json(sums: &Sums, seconds: u64) -> Value {
    let object: Map<String, Value> =
        columns(sums, seconds).into_iter().map(|(name, cell)| (name, cell.to_json())).collect();
    Value::Object(object)
}

impl Cell {
    /// As JSON.
    pub(super) fn to_json(&self) -> Value {
        match self {
            Cell::Text(text) => text.as_str().into(),
            Cell::Count(count) => (*count).into(),
            Cell::Maybe(number) => json!(number),
            Cell::Time(seconds) => times::seconds(*seconds).into(),
            Cell::Moment(us) => times::microseconds(*us).into(),
            Cell::Hashes(hashes) => hashes.to_string().into(),
            Cell::Number(number) => json!(number),
        }
    }

    /// As a field of a CSV file.
    pub(super) fn to_csv(&self) -> String {
        match self {
            Cell::Text(text) => quoted(text),
            Cell::Count(count) => count.to_string(),
            Cell::Maybe(number) => number.map(|number| number.to_string()).unwrap_or_default(),
            Cell::Time(seconds) => times::seconds(*seconds),
            Cell::Moment(us) => times::microseconds(*us),
            Cell::Hashes(hashes) => hashes.to_string(),
            Cell::Number(number) => number.map(|number| number.to_string()).unwrap_or_default(),
        }
    }
}

/// In quotes where it must be (RFC 4180). What a spreadsheet would take for a formula gets an apostrophe: worker
/// names are anybody's text.
fn quoted(text: &str) -> String {
    let is_formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let text = if is_formula { format!("'{text}") } else { text.to_owned() };
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

/// What is known of a device, as a JSON object.
pub(super) fn device_json(device: &DeviceRow) -> Map<String, Value> {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let time = |us: u64| (us > 0).then(|| times::microseconds(us));
    let known = json!({
        "id": device.id.0,
        "name": &*device.name,
        "worker_name": if device.worker_name.is_empty() { &*device.name } else { &*device.worker_name },
        "address": text(&device.address),
        "user_agent": text(&device.user_agent),
        "device_id": text(&device.device_id),
        "first_seen": time(device.first_seen_us),
        "last_seen": time(device.last_seen_us),
        "last_accepted_share": time(device.last_share_us),
        "best_difficulty": (device.best_difficulty > 0.0).then_some(device.best_difficulty),
    });
    match known {
        Value::Object(object) => object,
        _ => unreachable!("an object was written"),
    }
}

/// Work in terahashes, for people.
pub(super) fn terahashes(work: Work) -> String {
    let terahashes = work.0 as f64 / 1e12;
    match terahashes {
        // What processors mine in a demo is not nothing.
        tiny if tiny > 0.0 && tiny < 0.001 => format!("{tiny:.2e}"),
        some if some < 1000.0 => format!("{some:.3}"),
        many => format!("{many:.0}"),
    }
}

/// A hash rate with the unit that suits it, for people.
pub(super) fn hash_rate(hashes_per_second: f64) -> String {
    let units = [(1e18, "EH/s"), (1e15, "PH/s"), (1e12, "TH/s"), (1e9, "GH/s"), (1e6, "MH/s"), (1e3, "kH/s")];
    let unit = units.into_iter().find(|(size, _)| hashes_per_second >= *size);
    let (size, unit) = unit.unwrap_or((1.0, "H/s"));
    format!("{:.2} {unit}", hashes_per_second / size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_csv_cannot_break_their_line_or_become_formulas() {
        for (text, field) in [
            ("farm.rig7", "farm.rig7"),
            ("a,b", "\"a,b\""),
            ("say \"hi\"", "\"say \"\"hi\"\"\""),
            ("two\nlines", "\"two\nlines\""),
            ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
            ("@x,y", "\"'@x,y\""),
        ] {
            assert_eq!(quoted(text), field);
        }
    }

    #[test]
    fn unknown_stays_unknown() {
        let json = sums_json(&Sums::default(), 60);
        assert_eq!(json["efficiency_j_per_th"], Value::Null);
        assert_eq!(json["accepted_hash_rate_hs"], 0.0);
        assert_eq!(json["accepted_hashes"], "0");
        assert_eq!(hash_rate(1.5e14), "150.00 TH/s");
        assert_eq!(hash_rate(12.0), "12.00 H/s");
        assert_eq!(terahashes(Work(1_500_000_000_000)), "1.500");
        assert_eq!((&*terahashes(Work(4_489_216)), &*terahashes(Work(0))), ("4.49e-6", "0.000"));
    }
}
