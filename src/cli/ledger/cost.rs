//! What bad work cost, for people and as JSON.

use accounting::{Cost, Costs};
use serde_json::{Value, json};

use super::table::Table;

/// Costs as a JSON object; what is unknown is null.
pub(super) fn costs_json(costs: &Costs) -> Value {
    let by_cause: Vec<Value> = costs
        .by_cause
        .iter()
        .map(|(cause, cost)| {
            json!({
                "fate": cause.fate(),
                "reason": cause.reason(),
                "shares": cost.shares,
                "work_hashes": cost.work.0.to_string(),
                "work_th": cost.terahashes(),
                "energy_kwh": cost.kilowatt_hours,
                "value_sats": cost.sats,
            })
        })
        .collect();
    json!({
        "shares": costs.total.shares,
        "work_th": costs.total.terahashes(),
        "energy_kwh": costs.total.kilowatt_hours,
        "value_sats": costs.total.sats,
        "by_cause": by_cause,
    })
}

/// Costs as a table, a cause a line.
pub(super) fn costs_table(costs: &Costs) -> Table {
    let mut table = Table::new(1, &["bad work", "shares", "TH", "kWh", "sats"]);
    for (cause, cost) in &costs.by_cause {
        let fate = cause.fate().replace('_', " ");
        let name = cause.reason().map_or_else(|| fate.clone(), |reason| format!("{fate}, {reason}"));
        table.row(row(name, cost));
    }
    table.row(row("all".to_owned(), &costs.total));
    table
}

fn row(name: String, cost: &Cost) -> Vec<String> {
    let known = |number: Option<f64>, digits: usize| {
        number.map_or_else(|| "unknown".to_owned(), |number| format!("{number:.digits$}"))
    };
    vec![
        name,
        cost.shares.to_string(),
        known(Some(cost.terahashes()), 3),
        known(cost.kilowatt_hours, 3),
        known(cost.sats, 0),
    ]
}
