//! The state machines that face miners, driven by operations: bytes and requests of a miner, work of an upstream, and
//! time.
//!
//! What must hold is written beside the operations: no share is credited twice or across epochs, every request is
//! answered once, reserved values are neither lost nor held twice, and what a call puts out has a bound.

#![no_main]

mod records;
mod sv1;
mod sv2;

#[expect(dead_code, reason = "the tests of the same state machine need more of it")]
#[path = "../../../roles/mining-server/tests/sv2/support.rs"]
mod support;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use mining_server::{Settings, ShareUse};
use stratum::Target;
use stratum::vardiff::VardiffConfig;

/// One run of one connection.
#[derive(Debug, Arbitrary)]
struct Input<'a> {
    options: Options,
    operations: Operations<'a>,
}

#[derive(Debug, Arbitrary)]
enum Operations<'a> {
    Sv1(Vec<sv1::Operation<'a>>),
    Sv2(Vec<sv2::Operation<'a>>),
}

#[derive(Clone, Copy, Debug, Arbitrary)]
struct Options {
    pool: bool,
    channel_per_device: bool,
    vardiff_enabled: bool,
    minimum_is_firm: bool,
    proxy_protocol: bool,
    custom_jobs: bool,
    batch: u8,
    initial: u8,
}

/// What the upstream does to its work.
#[derive(Clone, Copy, Debug, Arbitrary)]
enum Change {
    Job,
    Block { easy: bool },
    Redial { rollable: u8 },
    Live(bool),
    UpstreamTarget(i8),
    VersionRolling(bool),
    Nothing,
}

fuzz_target!(|input: Input<'_>| {
    let settings = settings(input.options);
    let takes_custom_jobs = input.options.custom_jobs;
    match input.operations {
        Operations::Sv1(operations) => sv1::run(settings, &operations),
        Operations::Sv2(operations) => sv2::run(settings, takes_custom_jobs, &operations),
    }
});

/// Difficulties at which nearly every hash is a share: random ones must get past the first check.
fn settings(options: Options) -> Settings {
    let initial_exponent = -32 + i32::from(options.initial % 16);
    Settings {
        share_use: if options.pool { ShareUse::Keep } else { ShareUse::Forward },
        vardiff_enabled: options.vardiff_enabled,
        minimum_is_firm: options.minimum_is_firm,
        vardiff: VardiffConfig { minimum_exponent: -32, initial_exponent, shares_per_minute: 8.0 },
        channel_per_device: options.channel_per_device && !options.pool,
        proxy_protocol: options.proxy_protocol,
        share_batch_size: u32::from(options.batch).max(1),
    }
}

/// A target that some hashes meet, or one that none does.
fn target(exponent: i8) -> Target {
    Target::from_difficulty_exponent(i32::from(exponent).max(-32))
}

/// Work after a change; `None` when nothing is to be published.
fn change(
    source: &mut support::Source,
    has_work: bool,
    change: Change,
    now: stratum::Now,
) -> Option<std::sync::Arc<mining_server::Work>> {
    match change {
        Change::Job => Some(source.job(now)),
        Change::Block { easy } => {
            source.nbits = if easy { 0x207f_ffff } else { 0x1d00_ffff };
            Some(source.block(now))
        }
        Change::Redial { rollable } => {
            // The upstream's prefix and what it leaves to roll: an SV2 channel has at most 32 bytes in all.
            let rollable = 8 + usize::from(rollable % 25);
            Some(source.redialled(&[rollable as u8], rollable, now))
        }
        Change::Live(live) if has_work => Some(source.set_live(live)),
        Change::UpstreamTarget(exponent) => {
            source.upstream_target = target(exponent);
            None
        }
        Change::VersionRolling(allowed) => {
            source.version_rolling_allowed = allowed;
            None
        }
        Change::Live(_) | Change::Nothing => None,
    }
}
