//! The `mining-proxy` role: miners in, pool out.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mining_proxy::UpstreamConfig as UpstreamRules;
use mining_server::{Settings, ShareUse, Work};
use stratum::{JobNumber, UpstreamId, coinbase};

use crate::clock::Clock;
use crate::config::{Listeners, ProxyConfig, UpstreamConfig};
use crate::error::RunError;
use crate::http::UpstreamState;
use crate::http::view::Job;
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
    // The first entry is the preferred one; the others wait for failover, which comes with job declaration.
    let Some(preferred) = config.upstreams.first() else {
        return Err(RunError::Failed("there is no upstream".to_owned()));
    };
    if config.upstreams.len() > 1 {
        tracing::warn!("only the first upstream is used: failover to the others is not built yet");
    }
    let mut role = Role::start(clock, shutdown.clone(), config.ledger.as_ref(), config.rules.clone())?;
    let (owner, inbox) = owner();
    let upstream_status = Arc::new(UpstreamStatus::default());
    let name = format!("{}:{}", preferred.url.host, preferred.url.port);
    let account = preferred.user_identity.as_str();
    role.observed.sink.writer().upstream(UpstreamId(0), &name, account, clock.now());
    let task = UpstreamTask {
        config: rules(config, preferred),
        url: preferred.url.clone(),
        inbox,
        writer: role.observed.sink.writer(),
        clock,
        latencies: Arc::clone(&role.observed.latencies),
        registry: role.observed.registry.clone(),
        status: Arc::clone(&upstream_status),
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
    let (shared, of_jobs): (_, Arc<str>) = (owner.work.clone(), name.as_str().into());
    role.listen(&mut listeners, &config.downstream, settings, owner)?;
    let account: Arc<str> = preferred.user_identity.as_str().into();
    let upstreams = move || {
        let is_live = upstream_status.live.load(Ordering::Relaxed);
        vec![UpstreamState { name: name.clone(), account: Some(Arc::clone(&account)), is_live }]
    };
    let jobs = move || shared.borrow().as_deref().map(|work| job(work, &of_jobs)).into_iter().collect();
    role.serve_http(&mut listeners, &config.http, upstreams, jobs)?;
    Ok(role)
}

/// What the API shows of the job that all devices work on.
fn job(work: &Work, upstream: &Arc<str>) -> Job {
    let job = &work.active().job;
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
        version_rolling: Some(job.version_rolling_allowed),
        upstream_target: Some(job.upstream_target),
        rollable_size: Some(job.rollable_size),
    }
}

fn rules(config: &ProxyConfig, upstream: &UpstreamConfig) -> UpstreamRules {
    UpstreamRules {
        id: UpstreamId(0),
        user_identity: upstream.user_identity.clone(),
        aggregate: config.aggregate,
        forward_worker_names: upstream.forward_worker_names,
        vendor: "Checkweigh".to_owned(),
        hardware_version: "mining-proxy".to_owned(),
        firmware: env!("CARGO_PKG_VERSION").to_owned(),
        refresh_interval: REFRESH_INTERVAL,
    }
}
