//! The `mining-proxy` role: miners in, pool out.

use std::sync::Arc;
use std::time::Duration;

use mining_proxy::{SwitchReason, UpstreamConfig as UpstreamRules};
use mining_server::{Settings, ShareUse, Work};
use stratum::{JobNumber, UpstreamId, coinbase};

use crate::clock::Clock;
use crate::config::{Listeners, ProxyConfig, UpstreamConfig};
use crate::error::RunError;
use crate::http::view::Job;
use crate::http::{UpstreamState, UpstreamStates};
use crate::owner::owner;
use crate::role::{self, Role};
use crate::shutdown::Shutdown;
use crate::upstream::{self, UpstreamStatus, UpstreamTask};

/// Miners get fresh work at least this often when the upstream sends none: cgminer drops a pool that says nothing
/// for 90 seconds, and a difficulty change waits for the next job.
const REFRESH_INTERVAL: Duration = Duration::from_secs(20);

/// Runs a mining proxy until the end is asked for.
pub async fn run(config: ProxyConfig, listeners: Listeners, shutdown: Shutdown) -> Result<(), RunError> {
    start(&config, listeners, Clock::start(), shutdown)?.run().await
}

/// Starts a mining proxy and returns at once.
pub fn start(
    config: &ProxyConfig,
    mut listeners: Listeners,
    clock: Clock,
    shutdown: Shutdown,
) -> Result<Role, RunError> {
    if config.upstreams.is_empty() {
        return Err(RunError::Failed("there is no upstream".to_owned()));
    }
    let mut role = Role::start(clock, shutdown.clone(), config.ledger.as_ref(), config.rules.clone())?;
    let (owner, inbox) = owner();
    let named = named(&config.upstreams);
    for (id, (name, account)) in (0..).zip(&named) {
        role.observed.sink.writer().upstream(UpstreamId(id), name, account, clock.now());
    }
    let status = Arc::new(UpstreamStatus::new(named.len()));
    let configs = (0..).zip(&config.upstreams);
    let task = UpstreamTask {
        upstreams: configs
            .map(|(id, upstream)| (rules(config, id, upstream), upstream.url.clone()))
            .collect(),
        patience: config.patience,
        inbox,
        writer: role.observed.sink.writer(),
        clock,
        latencies: Arc::clone(&role.observed.latencies),
        registry: role.observed.registry.clone(),
        status: Arc::clone(&status),
    };
    if !config.aggregate {
        // Every device has a prefix of its own from the upstream: no reserved value can clash.
        role.observed.registry.set_oldest_live_job(JobNumber(u64::MAX));
    }
    role.spawn("upstream", upstream::run(task, shutdown));
    let settings = Settings {
        channel_per_device: !config.aggregate,
        ..role::settings(ShareUse::Forward, &config.vardiff, &config.downstream)
    };
    // Where every device has jobs of its own, there is none that all work on, and none is shown.
    let (shared, of_jobs) = (owner.work.clone(), named.clone());
    role.listen(&mut listeners, &config.downstream, settings, owner)?;
    let upstreams = move || upstream_states(&named, &status);
    let jobs = move || shared.borrow().as_deref().map(|work| job(work, &of_jobs)).into_iter().collect();
    role.serve_http(&mut listeners, &config.http, upstreams, jobs)?;
    Ok(role)
}

/// What each upstream is called, and its account. Several may be at one address: those after the first are told apart
/// by their place in the list.
fn named(upstreams: &[UpstreamConfig]) -> Vec<(Arc<str>, Arc<str>)> {
    let mut named: Vec<(Arc<str>, Arc<str>)> = Vec::with_capacity(upstreams.len());
    for (place, upstream) in upstreams.iter().enumerate() {
        let mut name = format!("{}:{}", upstream.url.host, upstream.url.port);
        if named.iter().any(|(other, _)| **other == *name) {
            name = format!("{name}~{}", place + 1);
        }
        named.push((name.into(), upstream.user_identity.as_str().into()));
    }
    named
}

fn upstream_states(named: &[(Arc<str>, Arc<str>)], status: &UpstreamStatus) -> UpstreamStates {
    let states = named.iter().zip(status.views()).map(|((name, account), view)| UpstreamState {
        name: name.to_string(),
        account: Some(Arc::clone(account)),
        is_live: view.is_live,
        standing: view.standing.name(),
    });
    let reasons = SwitchReason::ALL.into_iter().map(SwitchReason::name);
    UpstreamStates { states: states.collect(), switches: reasons.zip(status.switches()).collect() }
}

/// What the API shows of the job that all devices work on.
fn job(work: &Work, upstreams: &[(Arc<str>, Arc<str>)]) -> Job {
    let job = &work.active().job;
    let (upstream, _) = &upstreams[usize::from(job.origin.upstream.0)];
    let facts = coinbase::read(&job.coinbase_prefix, job.rollable_size, &job.coinbase_suffix);
    let mut previous_hash = job.tip.previous_hash;
    previous_hash.reverse();
    Job {
        upstream: Arc::clone(upstream),
        number: Some(job.number.0),
        received_us: u64::try_from(job.received.utc.as_micros()).ok(),
        previous_hash: Some(hex::encode(previous_hash)),
        height: facts.and_then(|facts| facts.height),
        version: Some(job.version),
        nbits: Some(job.tip.nbits),
        value_sats: facts.map(|facts| facts.value_sats),
        // A pool says no more of them than the merkle path.
        transactions: None,
    }
}

fn rules(config: &ProxyConfig, id: u16, upstream: &UpstreamConfig) -> UpstreamRules {
    UpstreamRules {
        id: UpstreamId(id),
        user_identity: upstream.user_identity.clone(),
        aggregate: config.aggregate,
        forward_worker_names: upstream.forward_worker_names,
        vendor: "Checkweigh".to_owned(),
        hardware_version: "mining-proxy".to_owned(),
        firmware: env!("CARGO_PKG_VERSION").to_owned(),
        refresh_interval: REFRESH_INTERVAL,
        job_declaration: None,
    }
}
