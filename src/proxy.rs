//! The `mining-proxy` role: miners in, pool out.

mod plan;

use std::sync::Arc;
use std::time::Duration;

use mining_proxy::SwitchReason;
use mining_server::{Settings, ShareUse, Work};
use stratum::{JobNumber, UpstreamId, coinbase};

use crate::clock::Clock;
use crate::config::{Listeners, ProxyConfig};
use crate::error::RunError;
use crate::http::view::Job;
use crate::http::{UpstreamState, UpstreamStates};
use crate::node::BlockSource;
use crate::owner::owner;
use crate::pool;
use crate::role::{self, Role};
use crate::shutdown::Shutdown;
use crate::templates;
use crate::upstream::{self, UpstreamStatus, UpstreamTask};
use plan::Planned;

/// Miners get fresh work at least this often when the upstream sends none: cgminer drops a pool that says nothing
/// for 90 seconds, and a difficulty change waits for the next job.
const REFRESH_INTERVAL: Duration = Duration::from_secs(20);

/// A running mining proxy.
pub struct Proxy {
    /// Its tasks.
    pub role: Role,
    /// How its upstreams are, and how job declaration goes.
    pub status: Arc<UpstreamStatus>,
}

/// Runs a mining proxy until the end is asked for.
pub async fn run(config: ProxyConfig, listeners: Listeners, shutdown: Shutdown) -> Result<(), RunError> {
    start(&config, listeners, Clock::start(), shutdown)?.role.run().await
}

/// Starts a mining proxy and returns at once. Where jobs are declared, templates come from the node that the
/// configuration names.
pub fn start(
    config: &ProxyConfig,
    listeners: Listeners,
    clock: Clock,
    shutdown: Shutdown,
) -> Result<Proxy, RunError> {
    let source = match &config.job_declaration {
        Some(declaration) => {
            let client = Arc::new(pool::node_client(&declaration.node)?);
            Some(templates::start(
                &declaration.templates,
                Some((&declaration.node, client)),
                declaration.blocks_dir.clone(),
                clock,
                shutdown.clone(),
            )?)
        }
        None => None,
    };
    start_with(config, source, listeners, clock, shutdown)
}

/// The same, with templates from `source`, which nobody asks where no jobs are declared.
pub fn start_with(
    config: &ProxyConfig,
    source: Option<BlockSource>,
    mut listeners: Listeners,
    clock: Clock,
    shutdown: Shutdown,
) -> Result<Proxy, RunError> {
    if config.upstreams.is_empty() {
        return Err(RunError::Failed("there is no upstream".to_owned()));
    }
    let mut role = Role::start(clock, shutdown.clone(), config.ledger.as_ref(), config.rules.clone())?;
    role.template_source = source.as_ref().and_then(|source| source.status().cloned());
    let (owner, inbox) = owner();
    let mut planned = plan::pools(config);
    if let Some((declaration, source)) = config.job_declaration.as_ref().zip(source.as_ref())
        && let Some(payout) = &declaration.solo
    {
        let place = (planned.len(), source);
        planned.push(plan::solo(config, declaration, payout, place, clock, &shutdown, &mut role)?);
    }
    for (id, planned) in (0..).zip(&planned) {
        let mut writer = role.observed.sink.writer();
        writer.upstream(UpstreamId(id), &planned.name, &planned.account, clock.now());
    }
    let status = Arc::new(UpstreamStatus::new(planned.len()));
    let task = UpstreamTask {
        upstreams: planned.iter().map(|planned| planned.entry.clone()).collect(),
        node: source,
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
    let (shared, of_jobs) = (owner.work.clone(), planned.clone());
    role.listen(&mut listeners, &config.downstream, settings, owner)?;
    let declares = config.job_declaration.is_some();
    let of_states = Arc::clone(&status);
    let upstreams = move || upstream_states(&planned, &of_states, declares);
    let jobs = move || shared.borrow().as_deref().map(|work| job(work, &of_jobs)).into_iter().collect();
    role.serve_http(&mut listeners, &config.http, upstreams, jobs)?;
    Ok(Proxy { role, status })
}

fn upstream_states(planned: &[Planned], status: &UpstreamStatus, declares: bool) -> UpstreamStates {
    let states = planned.iter().zip(status.views()).map(|(planned, view)| UpstreamState {
        name: planned.name.to_string(),
        account: Some(Arc::clone(&planned.account)),
        is_live: view.is_live,
        standing: view.standing.name(),
    });
    let reasons = SwitchReason::ALL.into_iter().map(SwitchReason::name);
    UpstreamStates {
        states: states.collect(),
        switches: reasons.zip(status.switches()).collect(),
        declarations: declares.then(|| status.declarations()),
    }
}

/// What the API shows of the job that all devices work on.
fn job(work: &Work, upstreams: &[Planned]) -> Job {
    let job = &work.active().job;
    let upstream = &upstreams[usize::from(job.origin.upstream.0)].name;
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
