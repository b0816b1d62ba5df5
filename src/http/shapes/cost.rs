//! What bad work cost, as the API shows it. What is unknown is null: energy where no power was read, value where no job
//! says it.

use accounting::cost::joules_per_hash;
use accounting::{Cause, Cost, Costs, Sums};
use serde::Serialize;

/// What work of one cause cost.
#[derive(Serialize)]
pub(in crate::http) struct CostShape<'a> {
    reason: &'a str,
    shares: u64,
    /// Unknown where only shares are counted.
    work_hashes: Option<u128>,
    work_th: Option<f64>,
    energy_kwh: Option<f64>,
    value_sats: Option<f64>,
}

impl<'a> CostShape<'a> {
    /// The cost of a cause within sums, under the name of its reason or, without one, of its fate.
    pub(in crate::http) fn of(cause: Cause, sums: &Sums, sats_per_hash: Option<f64>) -> Self {
        let (shares, work) = cause.of(sums);
        let cost = Cost::of(shares, work, joules_per_hash(&sums.energy), sats_per_hash);
        CostShape {
            reason: cause.reason().unwrap_or(cause.fate()),
            shares,
            work_hashes: Some(work.0),
            work_th: Some(cost.terahashes()),
            energy_kwh: cost.kilowatt_hours,
            value_sats: cost.sats,
        }
    }

    /// Shares whose work nobody keeps apart.
    pub(in crate::http) fn counted(reason: &'a str, shares: u64) -> Self {
        let (work_hashes, work_th, energy_kwh, value_sats) = Default::default();
        CostShape { reason, shares, work_hashes, work_th, energy_kwh, value_sats }
    }
}

/// What all bad work of a subject cost.
#[derive(Serialize)]
pub(in crate::http) struct CostsShape {
    shares: u64,
    work_th: f64,
    energy_kwh: Option<f64>,
    value_sats: Option<f64>,
    by_cause: Vec<CauseShape>,
}

#[derive(Serialize)]
struct CauseShape {
    fate: &'static str,
    reason: Option<&'static str>,
    shares: u64,
    work_th: f64,
    energy_kwh: Option<f64>,
    value_sats: Option<f64>,
}

impl CostsShape {
    /// The costs in some sums, energy at their own efficiency.
    pub(in crate::http) fn of(sums: &Sums, sats_per_hash: Option<f64>) -> Self {
        let Costs { total, by_cause } = Costs::of(sums, sats_per_hash);
        let by_cause = by_cause.into_iter().map(|(cause, cost)| CauseShape {
            fate: cause.fate(),
            reason: cause.reason(),
            shares: cost.shares,
            work_th: cost.terahashes(),
            energy_kwh: cost.kilowatt_hours,
            value_sats: cost.sats,
        });
        CostsShape {
            shares: total.shares,
            work_th: total.terahashes(),
            energy_kwh: total.kilowatt_hours,
            value_sats: total.sats,
            by_cause: by_cause.collect(),
        }
    }
}
