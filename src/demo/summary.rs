//! What a demo came to: for people, and as one JSON object for programs.

use std::fmt;
use std::time::Duration;

use accounting::Window;
use serde_json::{Map, Value, json};
use stratum::Target;
use template::block_template::displayed;

use crate::dev_chain::DevChain;
use crate::error::RunError;
use crate::latency::Latency;
use crate::miner::MinerFigures;
use crate::role::Observed;
use crate::sink::{DeviceView, Snapshot};
use crate::upstream::DeclarationView;

/// Figures of a whole demo.
pub(super) struct Summary {
    snapshot: Snapshot,
    seconds: f64,
    blocks_found: u64,
    blocks_accepted: u64,
    last_rejection: Option<String>,
    declarations: Option<DeclarationView>,
    /// The newest block, where the chain is our own: its height and hash.
    tip: Option<(u32, String)>,
    share_ack: [Option<Duration>; 2],
    new_block: [Option<Duration>; 2],
}

impl Summary {
    pub(super) async fn of(
        observed: &Observed,
        (blocks_found, blocks_accepted): (u64, u64),
        declarations: Option<DeclarationView>,
        miners: &MinerFigures,
        chain: Option<&DevChain>,
    ) -> Result<Self, RunError> {
        let now = observed.clock.now();
        let snapshot =
            observed.sink.snapshot(now).await.map_err(|error| RunError::Failed(error.to_string()))?;
        let quantiles = |latency: &Latency| {
            let latency = latency.snapshot();
            [latency.quantile(0.5), latency.quantile(0.99)]
        };
        let of_chain = chain.map(DevChain::summary);
        Ok(Summary {
            snapshot,
            seconds: now.monotonic.as_secs_f64(),
            blocks_found,
            blocks_accepted,
            last_rejection: of_chain.as_ref().and_then(|chain| chain.last_rejection.clone()),
            declarations,
            tip: of_chain.map(|chain| (chain.height, displayed(&chain.tip))),
            share_ack: quantiles(&miners.share_ack),
            new_block: quantiles(&observed.latencies.new_block),
        })
    }

    /// One object on one line.
    pub(super) fn to_json(&self) -> String {
        let shares = &self.snapshot.overview.totals.shares;
        let rejected = shares.rejected_by_reason().filter(|(_, count)| *count > 0);
        let rejected: Map<String, Value> =
            rejected.map(|(reason, count)| (reason.name().to_owned(), count.into())).collect();
        let devices: Vec<Value> =
            self.snapshot.devices.iter().map(|device| self.device_json(device)).collect();
        let mut summary = json!({
            "seconds": self.seconds,
            "shares": {
                "accepted": shares.accepted,
                "rejected": rejected,
                "forwarded": shares.forwarded,
                "below_upstream_target": shares.below_upstream_target,
                "dropped": shares.dropped_total(),
                "held": shares.held,
                "released": shares.released,
                "acknowledged_upstream": self.snapshot.overview.totals.answers.acknowledged,
                "refused_upstream": self.snapshot.overview.totals.answers.refused,
            },
            "blocks": { "found": self.blocks_found, "accepted": self.blocks_accepted },
            "devices": devices,
            "latency_ms": {
                "share_ack_p50": milliseconds(self.share_ack[0]),
                "share_ack_p99": milliseconds(self.share_ack[1]),
                "new_block_p50": milliseconds(self.new_block[0]),
                "new_block_p99": milliseconds(self.new_block[1]),
            },
        });
        if let Some(DeclarationView { tally, .. }) = &self.declarations {
            summary["job_declaration"] = json!({
                "declared": tally.declared,
                "acknowledged": tally.acknowledged,
                "refused": tally.refused,
                "solutions_pushed": tally.solutions_pushed,
            });
        }
        summary.to_string()
    }

    fn device_json(&self, device: &DeviceView) -> Value {
        json!({
            "name": device.name.as_deref(),
            "shares_accepted": device.sums.shares.accepted,
            "accepted_difficulty": accepted_difficulty(device),
            "hash_rate_hs": device.rates[Window::Day as usize].accepted.map(|estimate| estimate.rate.0),
        })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let totals = &self.snapshot.overview.totals;
        let shares = &totals.shares;
        writeln!(
            f,
            "\nIn {:.0} seconds {} devices submitted {} shares:",
            self.seconds,
            self.snapshot.devices.len(),
            shares.submitted
        )?;
        writeln!(f, "  accepted              {}", shares.accepted)?;
        for (reason, count) in shares.rejected_by_reason().filter(|(_, count)| *count > 0) {
            writeln!(f, "  rejected, {:<12}{count}", reason.name())?;
        }
        writeln!(f, "  forwarded to the pool {}", shares.forwarded)?;
        writeln!(f, "  acknowledged by it    {}", totals.answers.acknowledged)?;
        writeln!(f, "  below its target      {}", shares.below_upstream_target)?;
        writeln!(f, "Blocks found {}, accepted {}", self.blocks_found, self.blocks_accepted)?;
        if let Some(reason) = &self.last_rejection {
            writeln!(f, "  the last one that was not: {reason}")?;
        }
        if let Some(view) = &self.declarations {
            self.write_declarations(f, view)?;
        }
        let text = |latency: Option<Duration>| {
            latency.map_or("unknown".to_owned(), |latency| format!("{:.2} ms", latency.as_secs_f64() * 1e3))
        };
        writeln!(
            f,
            "Share to answer, as miners saw it: half within {}, 99 % within {}",
            text(self.share_ack[0]),
            text(self.share_ack[1])
        )?;
        write!(
            f,
            "New block to miners: half within {}, 99 % within {}",
            text(self.new_block[0]),
            text(self.new_block[1])
        )
    }
}

impl Summary {
    fn write_declarations(&self, f: &mut fmt::Formatter<'_>, view: &DeclarationView) -> fmt::Result {
        let tally = &view.tally;
        writeln!(f, "Jobs of the farm's own templates: {} given to miners at once", tally.published)?;
        writeln!(f, "  declared to the pool  {}", tally.declared)?;
        writeln!(f, "  taken by it           {}", tally.acknowledged)?;
        writeln!(f, "  refused               {}", tally.refused)?;
        writeln!(f, "  blocks pushed to it   {}", tally.solutions_pushed)?;
        writeln!(f, "  shares that waited    {} sent, {} dropped", tally.released, tally.dropped)?;
        if let Some((height, hash)) = &self.tip {
            writeln!(
                f,
                "The chain that the farm's and the pool's node share ends on block {height}, {hash}"
            )?;
        }
        Ok(())
    }
}

/// The credited work of a device in units of difficulty 1.
pub(super) fn accepted_difficulty(device: &DeviceView) -> f64 {
    device.sums.shares.credited.0 as f64 / Target::DIFFICULTY_1.work().0 as f64
}

fn milliseconds(latency: Option<Duration>) -> Option<f64> {
    latency.map(|latency| latency.as_secs_f64() * 1e3)
}
