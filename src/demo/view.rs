//! What the demo shows while it runs: a table that is drawn anew on a terminal, a line now and then elsewhere.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Demo;
use super::summary::accepted_difficulty;
use crate::sink::Snapshot;
use crate::upstream::DeclarationView;

/// How often a terminal is drawn.
const FRAME: Duration = Duration::from_millis(500);

/// How often a line is printed where there is no terminal.
const LINE: Duration = Duration::from_secs(5);

/// Devices that fit a screen; the rest is summed up.
const MAX_ROWS: usize = 16;

/// Shows the demo until it is dropped. With JSON, standard output is kept for the summary.
pub(super) async fn show(demo: &Demo, json: bool) {
    let draws = std::io::stdout().is_terminal() && !json;
    loop {
        tokio::time::sleep(if draws { FRAME } else { LINE }).await;
        let now = demo.clock.now();
        let Ok(snapshot) = demo.proxy.role.observed.sink.snapshot(now).await else { return };
        if draws {
            // Clears the screen and goes to its corner.
            print!("\x1b[2J\x1b[H{}", screen(demo, &snapshot, now.monotonic));
            // A terminal that is gone is no reason to stop.
            let _ = std::io::stdout().flush();
        } else {
            eprintln!("{}", line(demo, &snapshot, now.monotonic));
        }
    }
}

fn line(demo: &Demo, snapshot: &Snapshot, elapsed: Duration) -> String {
    let shares = &snapshot.overview.totals.shares;
    let (blocks_found, blocks_accepted) = demo.blocks();
    let mut line = format!(
        "{:>4} s  {} devices  {} shares accepted, {} rejected  {blocks_accepted} blocks accepted of {blocks_found} found",
        elapsed.as_secs(),
        snapshot.devices.len(),
        shares.accepted,
        shares.rejected_total(),
    );
    if let Some(DeclarationView { tally, .. }) = demo.declarations() {
        let _ = write!(line, "  {} jobs declared, {} taken", tally.declared, tally.acknowledged);
    }
    line
}

fn screen(demo: &Demo, snapshot: &Snapshot, elapsed: Duration) -> String {
    let mut text = String::new();
    let height = demo.pool.status.height.load(Ordering::Relaxed);
    let _ = writeln!(
        text,
        "Checkweigh demo: CPU miners -> SV1 -> mining-proxy -> SV2 -> pool -> block {height}\n"
    );
    if demo.declares {
        let _ = writeln!(
            text,
            "The farm's node makes the templates; the proxy declares them, and the pool's node judges them.\n"
        );
    }
    let _ = writeln!(text, "{}\n", line(demo, snapshot, elapsed));
    let _ = writeln!(
        text,
        "{:<18}{:>10}{:>10}{:>14}{:>16}",
        "device", "accepted", "rejected", "difficulty", "hash rate"
    );
    for device in snapshot.devices.iter().take(MAX_ROWS) {
        let rate = device.rates[0].accepted.as_ref().map_or("unknown".to_owned(), |estimate| {
            format!("{:.1} kH/s ±{:.0}%", estimate.rate.0 / 1e3, estimate.uncertainty * 100.0)
        });
        let _ = writeln!(
            text,
            "{:<18}{:>10}{:>10}{:>14.5}{rate:>16}",
            device.name.as_deref().unwrap_or("?"),
            device.sums.shares.accepted,
            device.sums.shares.rejected_total(),
            accepted_difficulty(device),
        );
    }
    if snapshot.devices.len() > MAX_ROWS {
        let _ = writeln!(text, "and {} more", snapshot.devices.len() - MAX_ROWS);
    }
    for (what, latency) in [
        ("share to answer, as miners saw it", demo.figures.share_ack.snapshot()),
        ("new block to miners", demo.proxy.role.observed.latencies.new_block.snapshot()),
    ] {
        if let (Some(half), Some(most)) = (latency.quantile(0.5), latency.quantile(0.99)) {
            let (half, most) = (half.as_secs_f64() * 1e3, most.as_secs_f64() * 1e3);
            let _ = writeln!(text, "\n{what}: half within {half:.2} ms, 99 % within {most:.2} ms");
        }
    }
    text.push_str("\nCtrl-C ends it with a summary.\n");
    text
}
