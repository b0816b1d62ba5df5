//! The page for Prometheus: every number about shares comes from the accounts, so the page and they cannot differ.
//!
//! Counters count from the start of the process, also where a ledger counts on: Prometheus takes a counter that is less
//! than before for one that began anew, and a process that is killed may lose its last shares.
//!
//! No label holds a worker name, an address of a miner, or anything else that a peer can make up without end; only
//! `/metrics/devices` has names, for as many devices as the configuration allows.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use accounting::{AnswerSums, PowerSource};
use mining_proxy::Standing;
use stratum::Target;

use super::Status;
use super::page::Page;
use super::view::{AtStart, Device, Fleet, Group, Ledger, Overview, Rate, Rates, Upstream, WINDOWS};
use crate::declarations::DeclarationFigures;
use crate::latency::Latencies;
use crate::node::source::SourceFigures;
use crate::sink::DeviceAtStart;
use crate::template_provider::ProviderStatus;

/// Devices whose lines are made at once, so that a page of a hundred megabytes never is in memory as a whole.
const DEVICES_A_PIECE: usize = 256;

/// The commit that the program was built from, where the build was told.
pub(super) const COMMIT: &str = match option_env!("CHECKWEIGH_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// The page of a job declaration server that is a process of its own, which keeps no accounts either.
pub(super) fn render_jd_server(
    pool_is_there: bool,
    figures: &DeclarationFigures,
    source: Option<SourceFigures>,
) -> String {
    let mut page = Page::default();
    page.gauge("checkweigh_build_info", "Always 1; which version runs, and the commit it was built from.");
    page.labelled_twice([("version", env!("CARGO_PKG_VERSION")), ("commit", COMMIT)], 1);
    let help = "Whether the pool is there, for which jobs are declared.";
    page.gauge("checkweigh_job_declaration_server_pool_up", help);
    page.value(u8::from(pool_is_there));
    render_declaration_server(&mut page, figures);
    if let Some(source) = source {
        render_template_source(&mut page, &source);
    }
    page.text
}

/// The page of a template provider, which keeps no accounts.
pub(super) fn render_provider(status: &ProviderStatus, source: Option<SourceFigures>) -> String {
    let mut page = Page::default();
    page.gauge("checkweigh_build_info", "Always 1; which version runs, and the commit it was built from.");
    page.labelled_twice([("version", env!("CARGO_PKG_VERSION")), ("commit", COMMIT)], 1);
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    page.gauge("checkweigh_template_clients", "Open connections of template clients.");
    page.value(of(&status.connections));
    let counters = [
        ("checkweigh_template_clients_accepted_total", "Connections of template clients.", &status.accepted),
        (
            "checkweigh_template_clients_refused_total",
            "Connections turned away because there were too many.",
            &status.refused,
        ),
        (
            "checkweigh_template_clients_closed_for_fault_total",
            "Connections closed for what the client did.",
            &status.closed_for_fault,
        ),
        ("checkweigh_template_blocks_found_total", "Blocks that clients solved.", &status.blocks_found),
        ("checkweigh_template_blocks_accepted_total", "Those that the node took.", &status.blocks_accepted),
    ];
    for (name, help, count) in counters {
        page.counter(name, help);
        page.value(of(count));
    }
    if let Some(source) = source {
        render_template_source(&mut page, &source);
    }
    page.text
}

/// The whole page in the text format of Prometheus, version 0.0.4.
pub(super) fn render(overview: &Overview, ledger: &Ledger, latencies: &Latencies, status: &Status) -> String {
    let mut page = Page::default();
    page.gauge("checkweigh_build_info", "Always 1; which version runs, and the commit it was built from.");
    page.labelled_twice([("version", env!("CARGO_PKG_VERSION")), ("commit", COMMIT)], 1);
    page.gauge("checkweigh_start_time_seconds", "When the process started; unix seconds.");
    page.value(overview.started_us as f64 / 1e6);
    render_shares(&mut page, overview);
    render_work(&mut page, overview);
    render_answers(&mut page, overview);
    render_upstreams(&mut page, &overview.upstreams);
    render_switches(&mut page, status);
    render_declarations(&mut page, status);
    render_ledger(&mut page, ledger);
    render_connections(&mut page, status);
    render_version_rolling(&mut page, status);
    if let Some(source) = &status.template_source {
        render_template_source(&mut page, source);
    }
    if let Some(server) = &status.declaration_server {
        render_declaration_server(&mut page, server);
    }
    page.gauge("checkweigh_devices", "Devices seen since the start.");
    page.value(overview.devices);
    let help = "Worker names under which several machines mine at present; each machine is a device.";
    page.gauge("checkweigh_shared_worker_names", help);
    page.value(status.shared_worker_names);
    render_rates(&mut page, &overview.rates);
    render_worth(&mut page, overview);
    render_energy(&mut page, overview);
    render_groups(&mut page, &overview.groups);
    let latency = "Time from a share read to its answer written.";
    page.histogram("checkweigh_share_ack_latency_seconds", latency, &latencies.share_ack.snapshot());
    let latency =
        "Time from a new block read, at the upstream or node, to the job for it written to a miner.";
    page.histogram("checkweigh_new_block_latency_seconds", latency, &latencies.new_block.snapshot());
    let latency = "Time from a share judged to the upstream's answer, by upstream.";
    page.start_histogram("checkweigh_upstream_ack_seconds", latency);
    for upstream in &overview.upstreams {
        page.acks_of("upstream", &upstream.name, &upstream.acks);
    }
    page.text
}

fn render_shares(page: &mut Page, overview: &Overview) {
    let shares = &overview.totals.shares;
    page.counter("checkweigh_shares_submitted_total", "Shares judged: accepted and rejected ones.");
    page.value(shares.submitted);
    page.counter("checkweigh_shares_accepted_total", "Shares that met their target, blocks included.");
    page.value(shares.accepted);
    page.counter("checkweigh_shares_rejected_total", "Shares refused, by reason.");
    for (reason, count) in shares.rejected_by_reason() {
        page.labelled("reason", reason.name(), count);
    }
    page.counter("checkweigh_blocks_found_total", "Accepted shares that met the network's target.");
    page.value(shares.blocks);
    let help = "Accepted shares that were worth nothing at the upstream's target.";
    page.counter("checkweigh_shares_below_upstream_target_total", help);
    page.value(shares.below_upstream_target);
    page.counter("checkweigh_shares_kept_total", "Accepted shares that a pool kept.");
    page.value(shares.kept);
    page.counter(
        "checkweigh_shares_dropped_total",
        "Accepted shares that were worth forwarding but not sent, by reason.",
    );
    for (reason, count) in shares.dropped_by_reason() {
        page.labelled("reason", reason.name(), count);
    }
    let help =
        "Accepted shares that had to wait for the upstream's answer to their job, whatever became of them.";
    page.counter("checkweigh_shares_held_total", help);
    page.value(shares.held);
    let help = "Held shares of which it is known what became of them; they are counted there too.";
    page.counter("checkweigh_shares_released_total", help);
    page.value(shares.released);
    let help = "Records whose detail was lost to a full queue; their sums are in all the other counters.";
    page.counter("checkweigh_records_folded_total", help);
    page.value(overview.totals.folded);
}

fn render_work(page: &mut Page, overview: &Overview) {
    let shares = &overview.totals.shares;
    let work = "Work that devices claimed, good or not, in expected hashes at their difficulty.";
    page.counter("checkweigh_work_submitted_hashes_total", work);
    page.value(shares.submitted_work.0);
    let work = "Work credited to devices, in expected hashes.";
    page.counter("checkweigh_work_accepted_hashes_total", work);
    page.value(shares.credited.0);
    let work = "Credited work in units of difficulty 1.";
    page.counter("checkweigh_work_accepted_difficulty_total", work);
    page.value(shares.credited.0 as f64 / Target::DIFFICULTY_1.work().0 as f64);
    let work = "Work that refused shares would have been credited, in expected hashes, by reason.";
    page.counter("checkweigh_work_rejected_hashes_total", work);
    for ((reason, _), work) in shares.rejected_by_reason().zip(shares.rejected_work) {
        page.labelled("reason", reason.name(), work.0);
    }
    let work = "Work of accepted shares at the upstream's target, in expected hashes, forwarded or not.";
    page.counter("checkweigh_work_upstream_target_hashes_total", work);
    page.value(shares.upstream_work.0);
    let work = "Work of forwarded shares at the upstream's target, in expected hashes.";
    page.counter("checkweigh_work_forwarded_hashes_total", work);
    page.value(shares.forwarded_work.0);
    let work = "Work at the upstream's target of shares that were worth forwarding but not sent, by reason.";
    page.counter("checkweigh_work_dropped_hashes_total", work);
    for ((reason, _), work) in shares.dropped_by_reason().zip(shares.dropped_work) {
        page.labelled("reason", reason.name(), work.0);
    }
    let work = "Work at the upstream's target of shares that had to wait for their job, in expected hashes.";
    page.counter("checkweigh_work_held_hashes_total", work);
    page.value(shares.held_work.0);
    let work = "Work at the upstream's target of held shares that were forwarded or dropped since.";
    page.counter("checkweigh_work_released_hashes_total", work);
    page.value(shares.released_work.0);
}

fn render_answers(page: &mut Page, overview: &Overview) {
    let totals = &overview.totals;
    page.counter("checkweigh_shares_acknowledged_total", "Forwarded shares that the upstream says it took.");
    page.value(totals.answers.acknowledged);
    page.counter(
        "checkweigh_shares_refused_upstream_total",
        "Forwarded shares that the upstream refused, by its code.",
    );
    for (code, count) in &totals.refused_by_code {
        page.labelled("code", code, count);
    }
    let help = "Forwarded shares that were never answered, by what ended the wait.";
    page.counter("checkweigh_shares_lost_upstream_total", help);
    for (reason, count) in totals.answers.lost_by_reason() {
        page.labelled("reason", reason.name(), count);
    }
    let help = "Work of acknowledged shares at the upstream's target, in expected hashes.";
    page.counter("checkweigh_work_acknowledged_hashes_total", help);
    page.value(totals.answers.acknowledged_work.0);
    let help = "Work of shares that the upstream refused, at its target, in expected hashes.";
    page.counter("checkweigh_work_refused_upstream_hashes_total", help);
    page.value(totals.answers.refused_work.0);
    let help =
        "Work of shares that were never answered, at the upstream's target, in expected hashes, by reason.";
    page.counter("checkweigh_work_lost_upstream_hashes_total", help);
    for ((reason, _), work) in totals.answers.lost_by_reason().zip(totals.answers.lost_work) {
        page.labelled("reason", reason.name(), work.0);
    }
}

fn render_upstreams(page: &mut Page, upstreams: &[Upstream]) {
    page.counter("checkweigh_shares_forwarded_total", "Shares sent upstream, by upstream.");
    by_upstream(page, upstreams, |answers| answers.forwarded.into());
    let help = "Forwarded shares that the upstream says it took, by upstream.";
    page.counter("checkweigh_upstream_shares_acknowledged_total", help);
    by_upstream(page, upstreams, |answers| answers.acknowledged.into());
    let help = "Forwarded shares that the upstream refused, by upstream.";
    page.counter("checkweigh_upstream_shares_refused_total", help);
    by_upstream(page, upstreams, |answers| answers.refused.into());
    let help = "Forwarded shares that were never answered, by upstream.";
    page.counter("checkweigh_upstream_shares_lost_total", help);
    by_upstream(page, upstreams, |answers| answers.lost_total().into());
    page.gauge(
        "checkweigh_upstream_shares_pending",
        "Forwarded shares that wait for an answer, by upstream.",
    );
    by_upstream(page, upstreams, |answers| answers.pending().into());
    let help = "Work of acknowledged shares at the upstream's target, in expected hashes, by upstream.";
    page.counter("checkweigh_upstream_work_acknowledged_hashes_total", help);
    by_upstream(page, upstreams, |answers| answers.acknowledged_work.0);
    let help = "Work of forwarded shares at the upstream's target, in expected hashes, by upstream.";
    page.counter("checkweigh_upstream_work_forwarded_hashes_total", help);
    by_upstream(page, upstreams, |answers| answers.forwarded_work.0);
    let help = "Work of shares that the upstream refused, at its target, in expected hashes, by upstream.";
    page.counter("checkweigh_upstream_work_refused_hashes_total", help);
    by_upstream(page, upstreams, |answers| answers.refused_work.0);
    let help =
        "Work of shares that were never answered, at the upstream's target, in expected hashes, by upstream.";
    page.counter("checkweigh_upstream_work_lost_hashes_total", help);
    by_upstream(page, upstreams, |answers| answers.lost_work.iter().map(|work| work.0).sum());
    let help = "Work credited to devices for shares of the upstream's jobs, in expected hashes, by upstream.";
    page.counter("checkweigh_upstream_work_accepted_hashes_total", help);
    for upstream in upstreams {
        page.labelled("upstream", &upstream.name, upstream.sums.shares.credited.0);
    }
    page.gauge("checkweigh_upstream_up", "Whether the upstream, or the node of a pool, gives work.");
    for upstream in upstreams {
        page.labelled("upstream", &upstream.name, u8::from(upstream.is_live));
    }
    let help = "1 for what an upstream is used for now, by upstream.";
    page.gauge("checkweigh_upstream_standing", help);
    for upstream in upstreams {
        for standing in Standing::ALL.map(Standing::name) {
            let is_so = u8::from(upstream.standing == standing);
            page.labelled_twice([("upstream", &upstream.name), ("standing", standing)], is_so);
        }
    }
    let help = "Forwarded shares that the upstream refused, by upstream and its code.";
    page.counter("checkweigh_upstream_refusals_total", help);
    for upstream in upstreams {
        for (code, count) in &upstream.refused_by_code {
            page.labelled_twice([("upstream", &upstream.name), ("code", code)], count);
        }
    }
}

fn render_declarations(page: &mut Page, status: &Status) {
    let Some(view) = status.declarations else { return };
    let help =
        "Jobs of our own templates: given to miners, declared, taken by the pool, refused by either side.";
    page.counter("checkweigh_job_declaration_jobs_total", help);
    let tally = view.tally;
    for (state, count) in [
        ("published", tally.published),
        ("declared", tally.declared),
        ("acknowledged", tally.acknowledged),
        ("refused", tally.refused),
    ] {
        page.labelled("state", state, count);
    }
    let help = "Blocks of declared jobs that were pushed to job declaration servers.";
    page.counter("checkweigh_job_declaration_solutions_pushed_total", help);
    page.value(tally.solutions_pushed);
    page.gauge(
        "checkweigh_job_declaration_shares_held",
        "Shares that wait until the pool has taken their job.",
    );
    page.value(view.held);
    let help = "Shares of declared jobs that waited: sent in the end, or never.";
    page.counter("checkweigh_job_declaration_held_shares_total", help);
    page.labelled("fate", "released", tally.released);
    page.labelled("fate", "dropped", tally.dropped);
    page.counter(
        "checkweigh_job_declaration_blocks_total",
        "Blocks of our own templates, and those in our node's chain.",
    );
    page.labelled("state", "found", view.blocks_found);
    page.labelled("state", "accepted", view.blocks_accepted);
}

fn render_switches(page: &mut Page, status: &Status) {
    let help = "How often work came to be from another upstream, by reason.";
    page.counter("checkweigh_upstream_switches_total", help);
    for (reason, count) in &status.switches {
        page.labelled("reason", reason, count);
    }
}

fn render_ledger(page: &mut Page, ledger: &Ledger) {
    if !ledger.is_kept {
        return;
    }
    page.gauge(
        "checkweigh_ledger_failing",
        "Whether the ledger cannot be written; what comes meanwhile waits.",
    );
    page.value(u8::from(ledger.alarm.is_some()));
    page.gauge("checkweigh_ledger_unwritten_bytes", "Records that wait for the disk.");
    page.value(ledger.unwritten_bytes.unwrap_or(0));
    page.gauge("checkweigh_ledger_durable_batch", "The number of the last batch that is on the disk.");
    page.value(ledger.head_batch.unwrap_or(0));
    page.gauge("checkweigh_ledger_rolled_up_batch", "The last batch that is in the sums on the disk.");
    page.value(ledger.watermark_batch.unwrap_or(0));
}

fn by_upstream(page: &mut Page, upstreams: &[Upstream], value: fn(&AnswerSums) -> u128) {
    for upstream in upstreams {
        page.labelled("upstream", &upstream.name, value(&upstream.sums.answers));
    }
}

fn render_worth(page: &mut Page, overview: &Overview) {
    let help = "What a terahash is worth by the latest job: its block's value over the work of a block; absent when \
                unknown.";
    page.gauge("checkweigh_work_value_sats_per_terahash", help);
    if let Some(sats) = overview.sats_per_terahash {
        page.value(sats);
    }
}

fn render_rates(page: &mut Page, rates: &Rates) {
    let help = "Hash rate proved by accepted shares; absent when unknown.";
    page.gauge("checkweigh_hash_rate_hashes_per_second", help);
    for (window, rate) in known(&rates.accepted) {
        page.labelled("window", window, rate.hash_rate_hs);
    }
    page.gauge("checkweigh_hash_rate_uncertainty_ratio", "Relative standard error of the hash rate.");
    for (window, rate) in known(&rates.accepted) {
        page.labelled("window", window, rate.uncertainty);
    }
    let help = "Hash rate that all shares claimed, refused ones included; absent when unknown.";
    page.gauge("checkweigh_hash_rate_submitted_hashes_per_second", help);
    for (window, rate) in known(&rates.submitted) {
        page.labelled("window", window, rate.hash_rate_hs);
    }
}

fn known(rates: &[Option<Rate>; WINDOWS.len()]) -> impl Iterator<Item = (&'static str, Rate)> {
    WINDOWS.into_iter().zip(*rates).filter_map(|((window, _), rate)| Some((window, rate?)))
}

fn render_energy(page: &mut Page, overview: &Overview) {
    page.counter(
        "checkweigh_energy_joules_total",
        "Energy used, where it is known, by where the figure comes from.",
    );
    for (source, millijoules) in PowerSource::ALL.into_iter().zip(overview.energy.millijoules) {
        page.labelled("source", source.name(), millijoules as f64 / 1000.0);
    }
    let help = "Credited work of the devices and times whose energy is known: what efficiency divides by.";
    page.counter("checkweigh_energy_covered_work_hashes_total", help);
    page.value(overview.energy.covered_work.0);
    page.gauge("checkweigh_power_watts", "Power of all devices whose power is known; absent when none is.");
    if let Some(power) = overview.power_w {
        page.value(power);
    }
}

fn render_groups(page: &mut Page, groups: &[Group]) {
    page.gauge("checkweigh_group_devices", "Devices of the group.");
    for group in groups {
        page.labelled("group", &group.name, group.devices);
    }
    page.counter("checkweigh_group_shares_accepted_total", "Shares that met their target, by group.");
    for group in groups {
        page.labelled("group", &group.name, group.sums.shares.accepted);
    }
    page.counter("checkweigh_group_shares_rejected_total", "Shares refused, by group and reason.");
    for group in groups {
        for (reason, count) in group.sums.shares.rejected_by_reason() {
            page.labelled_twice([("group", &group.name), ("reason", reason.name())], count);
        }
    }
    page.counter(
        "checkweigh_group_work_accepted_hashes_total",
        "Work credited, in expected hashes, by group.",
    );
    for group in groups {
        page.labelled("group", &group.name, group.sums.shares.credited.0);
    }
    let help = "Work of accepted shares at the upstream's target, in expected hashes, by group.";
    page.counter("checkweigh_group_work_upstream_target_hashes_total", help);
    for group in groups {
        page.labelled("group", &group.name, group.sums.shares.upstream_work.0);
    }
    let help = "Work of acknowledged shares at the upstream's target, in expected hashes, by group.";
    page.counter("checkweigh_group_work_acknowledged_hashes_total", help);
    for group in groups {
        page.labelled("group", &group.name, group.sums.answers.acknowledged_work.0);
    }
    page.counter("checkweigh_group_energy_joules_total", "Energy used, where it is known, by group.");
    for group in groups {
        page.labelled("group", &group.name, group.sums.energy.joules());
    }
    let help = "Hash rate proved by accepted shares, by group; absent when unknown.";
    page.gauge("checkweigh_group_hash_rate_hashes_per_second", help);
    for group in groups {
        for (window, rate) in known(&group.rates.accepted) {
            page.labelled_twice([("group", &group.name), ("window", window)], rate.hash_rate_hs);
        }
    }
}

/// How a family of devices has its name and explanation, and its lines.
type Family = (fn(&mut Page), fn(&mut Page, &Device, &DeviceAtStart));

/// What a series of a device counts, of its sums now and of those at the start of the process.
fn counted(page: &mut Page, device: &Device, now: u128, at_start: u128) {
    page.labelled("device", &device.name, now.saturating_sub(at_start));
}

/// What each device shows. Reasons are summed: apart, they would be ten series more for each device.
const FAMILIES: [Family; 9] = [
    (
        |page| page.counter("checkweigh_device_shares_submitted_total", "Shares judged, by device."),
        |page, device, before| {
            counted(page, device, device.sums.shares.submitted.into(), before.submitted.into())
        },
    ),
    (
        |page| {
            let help = "Shares that met their target, by device.";
            page.counter("checkweigh_device_shares_accepted_total", help);
        },
        |page, device, before| {
            counted(page, device, device.sums.shares.accepted.into(), before.accepted.into())
        },
    ),
    (
        |page| page.counter("checkweigh_device_shares_rejected_total", "Shares refused, by device."),
        |page, device, before| {
            counted(page, device, device.sums.shares.rejected_total().into(), before.rejected.into());
        },
    ),
    (
        |page| {
            let help = "Work credited, in expected hashes, by device.";
            page.counter("checkweigh_device_work_accepted_hashes_total", help);
        },
        |page, device, before| counted(page, device, device.sums.shares.credited.0, before.works[0].0),
    ),
    (
        |page| {
            let help = "Work of accepted shares at the upstream's target, in expected hashes, by device.";
            page.counter("checkweigh_device_work_upstream_target_hashes_total", help);
        },
        |page, device, before| counted(page, device, device.sums.shares.upstream_work.0, before.works[1].0),
    ),
    (
        |page| {
            let help = "Work of acknowledged shares at the upstream's target, in expected hashes, by device.";
            page.counter("checkweigh_device_work_acknowledged_hashes_total", help);
        },
        |page, device, before| {
            counted(page, device, device.sums.answers.acknowledged_work.0, before.works[2].0);
        },
    ),
    (
        |page| {
            let help = "Energy used, where it is known, by device.";
            page.counter("checkweigh_device_energy_joules_total", help);
        },
        |page, device, before| {
            let now: u128 = device.sums.energy.millijoules.iter().sum();
            let joules = now.saturating_sub(before.millijoules) as f64 / 1000.0;
            page.labelled("device", &device.name, joules);
        },
    ),
    (
        |page| {
            let help = "Hash rate proved by accepted shares in ten minutes, by device; absent when unknown.";
            page.gauge("checkweigh_device_hash_rate_hashes_per_second", help);
        },
        |page, device, _| {
            if let Some(rate) = device.rates.accepted[1] {
                page.labelled("device", &device.name, rate.hash_rate_hs);
            }
        },
    ),
    (
        |page| {
            let help = "When the latest accepted share came; unix seconds.";
            page.gauge("checkweigh_device_last_share_time_seconds", help);
        },
        |page, device, _| {
            if let Some(last) = device.last_share_us {
                page.labelled("device", &device.name, last as f64 / 1e6);
            }
        },
    ),
];

/// The page of devices in pieces; at most `max` devices, those that were seen first.
pub(super) fn device_pieces(
    fleet: Arc<Fleet>,
    at_start: Arc<AtStart>,
    max: usize,
) -> impl Iterator<Item = String> + Send + 'static {
    let shown = fleet.devices.len().min(max);
    let mut page = Page::default();
    page.gauge(
        "checkweigh_device_series_omitted",
        "Devices that have no series, because max_device_series is reached.",
    );
    page.value(fleet.devices.len() - shown);
    let families = FAMILIES.into_iter().flat_map(move |(start, line)| {
        let (fleet, at_start) = (Arc::clone(&fleet), Arc::clone(&at_start));
        let pieces = (0..shown.max(1)).step_by(DEVICES_A_PIECE);
        pieces.map(move |first| {
            let mut page = Page::default();
            start(&mut page);
            if first > 0 {
                page.text.clear();
            }
            let last = (first + DEVICES_A_PIECE).min(shown);
            let none = DeviceAtStart::default();
            for device in &fleet.devices[first.min(shown)..last] {
                line(&mut page, device, at_start.devices.get(&device.id).unwrap_or(&none));
            }
            page.text
        })
    });
    std::iter::once(page.text).chain(families)
}

fn render_connections(page: &mut Page, status: &Status) {
    page.gauge("checkweigh_connections", "Open connections of miners, by protocol.");
    page.labelled("protocol", "sv1", status.sv1_connections);
    page.labelled("protocol", "sv2", status.sv2_connections);
    page.counter("checkweigh_connections_accepted_total", "Connections of miners since the start.");
    page.value(status.connections_accepted);
    page.counter(
        "checkweigh_connections_refused_total",
        "Connections turned away because there were too many.",
    );
    page.value(status.connections_refused);
    page.counter(
        "checkweigh_connections_closed_for_fault_total",
        "Connections closed for what the peer did.",
    );
    page.value(status.connections_closed_for_fault);
    page.counter("checkweigh_connections_panicked_total", "Connections that ended by a bug of the program.");
    page.value(status.connections_panicked);
}

fn render_version_rolling(page: &mut Page, status: &Status) {
    let help =
        "Open SV1 connections that negotiated version rolling: whether they may roll, or the job forbids it.";
    page.gauge("checkweigh_sv1_version_rolling_connections", help);
    page.labelled("state", "granted", status.rolling_granted);
    page.labelled("state", "withheld", status.rolling_withheld);
    let help =
        "Times that an SV1 miner was told an empty mask for the one it negotiated; some leave at once.";
    page.counter("checkweigh_sv1_version_rolling_withheld_total", help);
    page.value(status.rolling_withheld_total);
    let help = "SV1 connections whose miner rolled version bits outside its mask; those shares are refused.";
    page.counter("checkweigh_sv1_rolled_outside_mask_connections_total", help);
    page.value(status.rolled_outside_mask);
}

/// What a source of templates does.
fn render_declaration_server(page: &mut Page, server: &DeclarationFigures) {
    page.gauge("checkweigh_job_declaration_server_connections", "Open connections of clients.");
    page.value(server.connections);
    let tally = server.tally;
    page.counter(
        "checkweigh_job_declaration_server_jobs_total",
        "Jobs that were declared to us, by their fate.",
    );
    for (state, count) in [
        ("declared", tally.declared),
        ("acknowledged", tally.acknowledged),
        ("refused", tally.refused),
        ("abandoned", tally.abandoned),
        ("custom_taken", tally.custom_jobs),
        ("custom_refused", tally.custom_jobs_refused),
    ] {
        page.labelled("state", state, count);
    }
    let help = "Declared jobs of which the client was asked for transactions.";
    page.counter("checkweigh_job_declaration_server_missing_asked_total", help);
    page.value(tally.asked_for_transactions);
    page.counter("checkweigh_job_declaration_server_solutions_total", "Pushed solutions that were blocks.");
    page.value(tally.solutions_pushed);
}

fn render_template_source(page: &mut Page, source: &SourceFigures) {
    page.gauge("checkweigh_template_source_up", "Whether the source gives templates, by its kind.");
    page.labelled("source", source.kind.name(), u8::from(source.is_live));
    let times: [(&str, &str, u64); 2] = [
        (
            "checkweigh_template_source_heard_time_seconds",
            "When the source last gave a template, or said that nothing is new; unix seconds.",
            source.heard_us,
        ),
        (
            "checkweigh_template_received_time_seconds",
            "When the template that is mined on reached us; unix seconds.",
            source.received_us,
        ),
    ];
    for (name, help, us) in times.into_iter().filter(|(.., us)| *us > 0) {
        page.gauge(name, help);
        page.value(us as f64 / 1e6);
    }
    let gauges = [
        ("checkweigh_template_height", "Height of the block to find.", source.height),
        ("checkweigh_template_fees_sats", "Fees of the template that is mined on.", source.fees),
        ("checkweigh_template_transactions", "Its transactions besides the coinbase.", source.transactions),
    ];
    for (name, help, value) in gauges {
        page.gauge(name, help);
        page.value(value);
    }
    let counters = [
        ("checkweigh_template_heard_total", "Templates that the source brought.", source.heard),
        ("checkweigh_template_published_total", "Templates that were worth a job.", source.published),
        (
            "checkweigh_template_new_tips_total",
            "Templates that were the first on their tip.",
            source.new_tips,
        ),
        (
            "checkweigh_template_empty_first_total",
            "Those that were empty, before a full one came.",
            source.empty_first,
        ),
        ("checkweigh_template_failures_total", "Times that the source failed.", source.failures),
        (
            "checkweigh_template_block_notices_total",
            "New blocks that the node announced ahead of a template.",
            source.block_notices,
        ),
        (
            "checkweigh_template_dropped_transactions_total",
            "Transactions that made room for outputs of the coinbase.",
            source.dropped_transactions,
        ),
        ("checkweigh_template_dropped_fees_sats_total", "The fees that went with them.", source.dropped_fees),
    ];
    for (name, help, value) in counters {
        page.counter(name, help);
        page.value(value);
    }
}
