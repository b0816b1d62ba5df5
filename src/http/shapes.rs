//! Figures as the API shows them: times in RFC 3339, units in names, unknown as null.
//!
//! Work is shown in expected hashes, as exact whole numbers of up to 39 digits. Nothing here computes more than a
//! quotient of two sums.

mod cost;

use accounting::{AckSums, AnswerSums, EnergySums, LossReason, PowerSource, ShareSums, Sums};
use serde::{Serialize, Serializer};
use stratum::Target;

use super::view::{
    Block, Device, Event, Group, Job, Ledger, Overview, Point, Protocol, Rate, Rates, Span, Upstream, WINDOWS,
};
use crate::upstream::DeclarationView;

pub(super) use cost::{CostShape, CostsShape};

/// The last microsecond of the year 9999: RFC 3339 has no later one.
const LAST_US: u64 = 253_402_300_799_999_999;

/// A time; unix microseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Time(pub(super) u64);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_micros(self.0.min(LAST_US));
        serializer.collect_str(&humantime::format_rfc3339_micros(time))
    }
}

/// An object whose keys are names of ours.
#[derive(Clone, Debug)]
pub(super) struct Named<T>(pub(super) Vec<(&'static str, T)>);

impl<T: Serialize> Serialize for Named<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

/// Shares by what became of them. The upstream's answers are unknown where nobody keeps them apart.
#[derive(Serialize)]
pub(super) struct SharesShape {
    submitted: u64,
    accepted: u64,
    blocks_found: u64,
    rejected: Named<u64>,
    below_upstream_target: u64,
    forwarded: u64,
    kept: u64,
    dropped: Named<u64>,
    held: u64,
    released: u64,
    acknowledged: Option<u64>,
    rejected_by_upstream: Option<u64>,
    lost: Option<Named<u64>>,
    pending: Option<u64>,
}

impl SharesShape {
    pub(super) fn of(shares: &ShareSums, answers: Option<&AnswerSums>) -> Self {
        SharesShape {
            submitted: shares.submitted,
            accepted: shares.accepted,
            blocks_found: shares.blocks,
            rejected: Named(
                shares.rejected_by_reason().map(|(reason, count)| (reason.name(), count)).collect(),
            ),
            below_upstream_target: shares.below_upstream_target,
            forwarded: shares.forwarded,
            kept: shares.kept,
            dropped: Named(
                shares.dropped_by_reason().map(|(reason, count)| (reason.name(), count)).collect(),
            ),
            held: shares.held,
            released: shares.released,
            acknowledged: answers.map(|answers| answers.acknowledged),
            rejected_by_upstream: answers.map(|answers| answers.refused),
            lost: answers.map(|answers| by_loss(answers.lost)),
            pending: answers.map(AnswerSums::pending),
        }
    }
}

fn by_loss<T>(values: [T; LossReason::ALL.len()]) -> Named<T> {
    Named(LossReason::ALL.into_iter().map(LossReason::name).zip(values).collect())
}

/// Work, what the device did and what the pool can confirm apart.
#[derive(Serialize)]
pub(super) struct WorkShape {
    device_difficulty: DeviceWork,
    upstream_target: UpstreamWork,
}

#[derive(Serialize)]
struct DeviceWork {
    submitted_hashes: u128,
    accepted_hashes: u128,
    rejected_hashes: Named<u128>,
}

#[derive(Serialize)]
struct UpstreamWork {
    accepted_hashes: u128,
    forwarded_hashes: u128,
    dropped_hashes: Named<u128>,
    held_hashes: u128,
    released_hashes: u128,
    acknowledged_hashes: Option<u128>,
    rejected_by_upstream_hashes: Option<u128>,
    lost_hashes: Option<Named<u128>>,
    pending_hashes: Option<u128>,
}

impl WorkShape {
    pub(super) fn of(shares: &ShareSums, answers: Option<&AnswerSums>) -> Self {
        let rejected = shares.rejected_by_reason().zip(shares.rejected_work);
        let dropped = shares.dropped_by_reason().zip(shares.dropped_work);
        WorkShape {
            device_difficulty: DeviceWork {
                submitted_hashes: shares.submitted_work.0,
                accepted_hashes: shares.credited.0,
                rejected_hashes: Named(rejected.map(|((reason, _), work)| (reason.name(), work.0)).collect()),
            },
            upstream_target: UpstreamWork {
                accepted_hashes: shares.upstream_work.0,
                forwarded_hashes: shares.forwarded_work.0,
                dropped_hashes: Named(dropped.map(|((reason, _), work)| (reason.name(), work.0)).collect()),
                held_hashes: shares.held_work.0,
                released_hashes: shares.released_work.0,
                acknowledged_hashes: answers.map(|answers| answers.acknowledged_work.0),
                rejected_by_upstream_hashes: answers.map(|answers| answers.refused_work.0),
                lost_hashes: answers.map(|answers| by_loss(answers.lost_work.map(|work| work.0))),
                pending_hashes: answers.map(|answers| answers.pending_work().0),
            },
        }
    }
}

/// The three hash rates by window.
#[derive(Serialize)]
pub(super) struct RatesShape {
    accepted: Named<Option<RateShape>>,
    submitted: Named<Option<RateShape>>,
    reported: Option<ReportedShape>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct RateShape {
    hash_rate_hs: f64,
    window_seconds: f64,
    uncertainty: f64,
}

#[derive(Serialize)]
struct ReportedShape {
    hash_rate_hs: f64,
}

impl From<Rate> for RateShape {
    fn from(Rate { hash_rate_hs, window_seconds, uncertainty }: Rate) -> Self {
        RateShape { hash_rate_hs, window_seconds, uncertainty }
    }
}

impl RatesShape {
    pub(super) fn of(rates: &Rates) -> Self {
        let named = |rates: &[Option<Rate>; WINDOWS.len()]| {
            Named(
                WINDOWS
                    .into_iter()
                    .zip(rates)
                    .map(|((name, _), rate)| (name, rate.map(RateShape::from)))
                    .collect(),
            )
        };
        RatesShape {
            accepted: named(&rates.accepted),
            submitted: named(&rates.submitted),
            reported: rates.reported_hs.map(|hash_rate_hs| ReportedShape { hash_rate_hs }),
        }
    }
}

/// What accepted shares proved in a span of time.
pub(super) fn rate_of(sums: &Sums, seconds: f64) -> Option<RateShape> {
    let uncertainty = sums.uncertainty()?;
    let hash_rate_hs = sums.shares.credited.0 as f64 / seconds;
    (seconds > 0.0).then_some(RateShape { hash_rate_hs, window_seconds: seconds, uncertainty })
}

/// Energy and efficiency; null where no reading covers anything.
#[derive(Serialize)]
pub(super) struct EnergyShape {
    power_w: Option<f64>,
    power_source: Option<&'static str>,
    energy_j: Option<f64>,
    energy_j_by_source: Option<Named<f64>>,
    covered_hashes: Option<u128>,
    /// The part of the accepted work whose energy is known.
    covered_ratio: Option<f64>,
    efficiency_j_per_th: Option<f64>,
}

impl EnergyShape {
    pub(super) fn of(
        sums: &EnergySums,
        shares: &ShareSums,
        power: Option<(f64, Option<PowerSource>)>,
    ) -> Self {
        let is_known = sums.millijoules.iter().any(|energy| *energy > 0);
        let by_source = PowerSource::ALL.into_iter().zip(sums.millijoules);
        let by_source = by_source.map(|(source, energy)| (source.name(), energy as f64 / 1000.0));
        let accepted = shares.credited.0;
        EnergyShape {
            power_w: power.map(|(power, _)| power),
            power_source: power.and_then(|(_, source)| source).map(PowerSource::name),
            energy_j: is_known.then(|| sums.joules()),
            energy_j_by_source: is_known.then(|| Named(by_source.collect())),
            covered_hashes: is_known.then_some(sums.covered_work.0),
            covered_ratio: (is_known && accepted > 0).then(|| sums.covered_work.0 as f64 / accepted as f64),
            efficiency_j_per_th: sums.joules_per_terahash(),
        }
    }
}

/// One device.
#[derive(Serialize)]
pub(super) struct DeviceShape<'a> {
    name: &'a str,
    worker_name: &'a str,
    number: u32,
    connections: u32,
    groups: Vec<&'a str>,
    address: Option<&'a str>,
    user_agent: Option<&'a str>,
    device_id: Option<&'a str>,
    protocol: Option<&'static str>,
    first_seen: Time,
    last_seen: Time,
    last_share: Option<Time>,
    /// What the latest accepted share was judged by.
    difficulty: Option<f64>,
    best_difficulty: Option<f64>,
    shares: SharesShape,
    work: WorkShape,
    hash_rate: RatesShape,
    energy: EnergyShape,
    /// What the device proved in the period that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    period_hash_rate: Option<Option<RateShape>>,
    /// Only where a single device is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<CostsShape>,
}

impl<'a> DeviceShape<'a> {
    /// A device with the sums since counting began, or with those of a period.
    pub(super) fn of(device: &'a Device, has_answers: bool, period: Option<(Span, &Sums)>) -> Self {
        let sums = period.map_or(&device.sums, |(_, sums)| sums);
        let answers = (has_answers || period.is_some()).then_some(&sums.answers);
        let power = device.power_w.map(|(power, source)| (power, Some(source)));
        DeviceShape {
            name: &device.name,
            worker_name: &device.worker_name,
            number: device.id.0,
            connections: device.connections,
            groups: device.groups.iter().map(|group| &**group).collect(),
            address: device.address.as_deref(),
            user_agent: device.user_agent.as_deref(),
            device_id: device.device_id.as_deref(),
            protocol: device.protocol.map(name_of),
            first_seen: Time(device.first_seen_us),
            last_seen: Time(device.last_seen_us),
            last_share: device.last_share_us.map(Time),
            difficulty: device.latest_work.map(|work| Target::of_work(work).difficulty().0),
            best_difficulty: device.best_difficulty,
            shares: SharesShape::of(&sums.shares, answers),
            work: WorkShape::of(&sums.shares, answers),
            hash_rate: RatesShape::of(&device.rates),
            energy: EnergyShape::of(&sums.energy, &sums.shares, power),
            period_hash_rate: period.map(|(span, sums)| rate_of(sums, seconds_of(span))),
            cost: None,
        }
    }

    /// With what its bad work cost.
    pub(super) fn with_cost(self, cost: CostsShape) -> Self {
        DeviceShape { cost: Some(cost), ..self }
    }
}

fn name_of(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Sv1 => "sv1",
        Protocol::Sv2 => "sv2",
    }
}

fn seconds_of(span: Span) -> f64 {
    span.to_us.saturating_sub(span.from_us) as f64 / 1e6
}

/// A span of time.
#[derive(Serialize)]
pub(super) struct SpanShape {
    from: Time,
    to: Time,
}

impl From<Span> for SpanShape {
    fn from(span: Span) -> Self {
        SpanShape { from: Time(span.from_us), to: Time(span.to_us) }
    }
}

/// The fleet as a whole.
#[derive(Serialize)]
pub(super) struct FleetShape<'a> {
    taken: Time,
    since: Time,
    devices: usize,
    shares: SharesShape,
    work: WorkShape,
    hash_rate: RatesShape,
    energy: EnergyShape,
    cost: CostsShape,
    value_sats_per_th: Option<f64>,
    rejected_by_upstream_code: &'a std::collections::BTreeMap<String, u64>,
    records_without_detail: u64,
}

impl<'a> FleetShape<'a> {
    pub(super) fn of(overview: &'a Overview) -> Self {
        let totals = &overview.totals;
        FleetShape {
            taken: Time(overview.taken_us),
            since: Time(overview.since_us),
            devices: overview.devices,
            shares: SharesShape::of(&totals.shares, Some(&totals.answers)),
            work: WorkShape::of(&totals.shares, Some(&totals.answers)),
            hash_rate: RatesShape::of(&overview.rates),
            energy: EnergyShape::of(
                &overview.energy,
                &totals.shares,
                overview.power_w.map(|power| (power, None)),
            ),
            cost: CostsShape::of(&overview.sums(), overview.sats_per_hash()),
            value_sats_per_th: overview.sats_per_terahash,
            rejected_by_upstream_code: &totals.refused_by_code,
            records_without_detail: totals.folded,
        }
    }
}

/// A group of devices.
#[derive(Serialize)]
pub(super) struct GroupShape<'a> {
    name: &'a str,
    devices: usize,
    shares: SharesShape,
    work: WorkShape,
    hash_rate: RatesShape,
    energy: EnergyShape,
    cost: CostsShape,
}

impl<'a> GroupShape<'a> {
    pub(super) fn of(group: &'a Group, sats_per_hash: Option<f64>) -> Self {
        let sums = &group.sums;
        GroupShape {
            name: &group.name,
            devices: group.devices,
            shares: SharesShape::of(&sums.shares, Some(&sums.answers)),
            work: WorkShape::of(&sums.shares, Some(&sums.answers)),
            hash_rate: RatesShape::of(&group.rates),
            energy: EnergyShape::of(&sums.energy, &sums.shares, None),
            cost: CostsShape::of(sums, sats_per_hash),
        }
    }
}

/// An upstream, the shares of its jobs, and what it was sent and answered.
#[derive(Serialize)]
pub(super) struct UpstreamShape<'a> {
    name: &'a str,
    account: Option<&'a str>,
    is_live: bool,
    standing: &'static str,
    shares: SharesShape,
    work: WorkShape,
    hash_rate: RatesShape,
    rejected_by_upstream_code: &'a std::collections::BTreeMap<String, u64>,
    cost: CostsShape,
    value_sats_per_th: Option<f64>,
    ack_latency: AckShape,
}

/// How job declaration goes, since the process started.
#[derive(Serialize)]
pub(super) struct DeclarationShape {
    published: u64,
    declared: u64,
    acknowledged: u64,
    refused: u64,
    solutions_pushed: u64,
    shares_held: u64,
    shares_released: u64,
    shares_dropped: u64,
    blocks_found: u64,
    blocks_accepted: u64,
}

impl DeclarationShape {
    pub(super) fn of(view: &DeclarationView) -> Self {
        let tally = view.tally;
        DeclarationShape {
            published: tally.published,
            declared: tally.declared,
            acknowledged: tally.acknowledged,
            refused: tally.refused,
            solutions_pushed: tally.solutions_pushed,
            shares_held: view.held,
            shares_released: tally.released,
            shares_dropped: tally.dropped,
            blocks_found: view.blocks_found,
            blocks_accepted: view.blocks_accepted,
        }
    }
}

/// Time from a share judged to the upstream's answer.
#[derive(Serialize)]
struct AckShape {
    answers: u64,
    mean_seconds: Option<f64>,
    longest_seconds: Option<f64>,
}

impl AckShape {
    fn of(acks: &AckSums) -> Self {
        AckShape {
            answers: acks.count(),
            mean_seconds: acks.mean_seconds(),
            longest_seconds: acks.longest_seconds(),
        }
    }
}

impl<'a> UpstreamShape<'a> {
    /// An upstream, its bad work in energy at the fleet's efficiency.
    pub(super) fn of(upstream: &'a Upstream, energy: &EnergySums) -> Self {
        let Sums { shares, answers, .. } = &upstream.sums;
        UpstreamShape {
            name: &upstream.name,
            account: upstream.account.as_deref(),
            is_live: upstream.is_live,
            standing: upstream.standing,
            shares: SharesShape::of(shares, Some(answers)),
            work: WorkShape::of(shares, Some(answers)),
            hash_rate: RatesShape::of(&upstream.rates),
            rejected_by_upstream_code: &upstream.refused_by_code,
            cost: CostsShape::of(&upstream.sums_at(energy), upstream.sats_per_hash),
            value_sats_per_th: upstream.sats_per_hash.map(|sats| sats * 1e12),
            ack_latency: AckShape::of(&upstream.acks),
        }
    }
}

/// One point of a time series.
#[derive(Serialize)]
pub(super) struct PointShape {
    start: Time,
    shares: SharesShape,
    work: WorkShape,
    hash_rate: Option<RateShape>,
    energy: EnergyShape,
}

impl PointShape {
    pub(super) fn of(point: &Point, seconds: u64) -> Self {
        let sums = &point.sums;
        PointShape {
            start: Time(point.start.saturating_mul(1_000_000)),
            shares: SharesShape::of(&sums.shares, Some(&sums.answers)),
            work: WorkShape::of(&sums.shares, Some(&sums.answers)),
            hash_rate: rate_of(sums, seconds as f64),
            energy: EnergyShape::of(&sums.energy, &sums.shares, None),
        }
    }
}

/// A found block.
#[derive(Serialize)]
pub(super) struct BlockShape<'a> {
    number: u64,
    found: Time,
    device: Option<&'a str>,
    upstream: Option<&'a str>,
    hash: Option<&'a str>,
    height: Option<u32>,
    difficulty: Option<f64>,
    value_sats: Option<u64>,
}

impl<'a> From<&'a Block> for BlockShape<'a> {
    fn from(block: &'a Block) -> Self {
        BlockShape {
            number: block.number,
            found: Time(block.found_us),
            device: block.device.as_deref(),
            upstream: block.upstream.as_deref(),
            hash: block.hash.as_deref(),
            height: block.height,
            difficulty: block.difficulty,
            value_sats: block.value_sats,
        }
    }
}

/// Something that happened.
#[derive(Serialize)]
pub(super) struct EventShape<'a> {
    number: u64,
    at: Time,
    kind: &'static str,
    subject: Option<&'a str>,
    text: &'a str,
}

impl<'a> From<&'a Event> for EventShape<'a> {
    fn from(event: &'a Event) -> Self {
        EventShape {
            number: event.number,
            at: Time(event.at_us),
            kind: event.kind,
            subject: event.subject.as_deref(),
            text: &event.text,
        }
    }
}

/// A job that miners work on.
#[derive(Serialize)]
pub(super) struct JobShape<'a> {
    upstream: &'a str,
    number: Option<u64>,
    received: Option<Time>,
    previous_hash: Option<&'a str>,
    height: Option<u32>,
    version: Option<u32>,
    nbits: Option<String>,
    value_sats: Option<u64>,
    transactions: Option<u64>,
    version_rolling: Option<bool>,
    upstream_difficulty: Option<f64>,
}

impl<'a> From<&'a Job> for JobShape<'a> {
    fn from(job: &'a Job) -> Self {
        JobShape {
            upstream: &job.upstream,
            number: job.number,
            received: job.received_us.map(Time),
            previous_hash: job.previous_hash.as_deref(),
            height: job.height,
            version: job.version,
            nbits: job.nbits.map(|nbits| format!("{nbits:08x}")),
            value_sats: job.value_sats,
            transactions: job.transactions,
            version_rolling: job.version_rolling,
            upstream_difficulty: job.upstream_target.map(|target| target.difficulty().0),
        }
    }
}

/// How the ledger is.
#[derive(Serialize)]
pub(super) struct LedgerShape {
    is_kept: bool,
    id: Option<String>,
    since: Option<Time>,
    head_batch: Option<u64>,
    head_hash: Option<String>,
    watermark_batch: Option<u64>,
    unwritten_bytes: Option<u64>,
    records_without_detail: u64,
    alarm: Option<String>,
}

impl From<Ledger> for LedgerShape {
    fn from(ledger: Ledger) -> Self {
        LedgerShape {
            is_kept: ledger.is_kept,
            id: ledger.id,
            since: ledger.since_us.map(Time),
            head_batch: ledger.head_batch,
            head_hash: ledger.head_hash,
            watermark_batch: ledger.watermark_batch,
            unwritten_bytes: ledger.unwritten_bytes,
            records_without_detail: ledger.records_without_detail,
            alarm: ledger.alarm,
        }
    }
}
