//! The `pool` role: miners in, Bitcoin Core out.

pub mod custom_jobs;
pub mod jobs;
pub mod task;

use std::sync::Arc;
use std::time::Duration;

use bitcoin::Network;
use mining_server::{Settings, ShareUse};
use stratum::{JobNumber, UpstreamId};
use template::{BlockTemplate, CoinbaseRules, Output};
use tokio::net::TcpListener;

use crate::clock::Clock;
use crate::config::{
    DownstreamConfig, HttpConfig, LedgerConfig, Listeners, NodeAuth, NodeConfig, PoolConfig, VardiffSettings,
};
use crate::control::pool as control;
use crate::declarations::{DeclarationParts, Declarations, declarations};
use crate::error::RunError;
use crate::http::view::Job;
use crate::http::{UpstreamState, UpstreamStates};
use crate::node::{self, BlockJudge, BlockSource, NodeClient, NodeClientSettings};
use crate::owner::owner;
use crate::role::{self, Role};
use crate::shutdown::Shutdown;
use crate::sink::DeviceRules;
use crate::templates;
use custom_jobs::{CheckCustomJobs, CustomJobs};
use jobs::{EXTRANONCE_SIZE, PoolJobs};
use task::{PoolStatus, PoolTask};

/// The wait before a node that did not answer at the start is asked again.
const NODE_RETRY: Duration = Duration::from_secs(2);

/// What a pool is made of once its node is known.
pub struct PoolParts {
    /// Where templates come from and blocks go.
    pub source: BlockSource,
    /// What that is called in metrics: host and port.
    pub source_name: String,
    /// What coinbases carry.
    pub rules: CoinbaseRules,
    /// Where miners come in.
    pub downstream: DownstreamConfig,
    /// How difficulties are set.
    pub vardiff: VardiffSettings,
    /// Shares that are acknowledged together.
    pub share_batch_size: u32,
    /// Takes declared jobs, where there is a listener for them.
    pub job_declaration: Option<JobDeclaration>,
    /// Where the accounts are kept; in memory only when absent.
    pub ledger: Option<LedgerConfig>,
    /// What is said of devices by their names.
    pub device_rules: DeviceRules,
    /// What is served over HTTP.
    pub http: HttpConfig,
}

/// What a pool needs to take declared jobs, besides an authority key.
pub struct JobDeclaration {
    /// Knows transactions by name.
    pub node: Arc<NodeClient>,
    /// Judges what is declared.
    pub judge: BlockJudge,
    /// Whether clients must show their transactions.
    pub requires_transactions: bool,
    /// Clients that are served at once.
    pub max_connections: usize,
}

/// A running pool.
pub struct Pool {
    /// Its tasks.
    pub role: Role,
    /// How it goes.
    pub status: Arc<PoolStatus>,
}

/// Runs a pool until the end is asked for.
pub async fn run(config: PoolConfig, listeners: Listeners, mut shutdown: Shutdown) -> Result<(), RunError> {
    let clock = Clock::start();
    let client = Arc::new(node_client(&config.node)?);
    let network = tokio::select! {
        () = shutdown.requested() => return Ok(()),
        network = network_of(&client) => network?,
    };
    if config.node.network.is_some_and(|wanted| wanted != network) {
        return Err(RunError::Failed(format!("node.network: the node is on {network}")));
    }
    let script = config
        .coinbase_output
        .script(network)
        .map_err(|error| RunError::Failed(format!("pool.coinbase_address: {error}")))?;
    let rules = coinbase_rules(script.into_bytes(), &config.coinbase_tag)?;
    let socket = config.job_declaration.as_ref().and_then(|declaration| declaration.control_socket.clone());
    let job_declaration = match config.job_declaration {
        Some(declaration) => Some(JobDeclaration {
            node: Arc::clone(&client),
            judge: templates::judge(&config.templates, Arc::clone(&client), shutdown.clone())?,
            requires_transactions: declaration.requires_transactions(),
            max_connections: declaration.max_connections as usize,
        }),
        None => None,
    };
    let of_node = Some((&config.node, client));
    let blocks = config.blocks_dir.clone();
    let source = templates::start(&config.templates, of_node, blocks, clock, shutdown.clone())?;
    let outputs = payout_outputs(&rules);
    let interface = socket.map(|path| control::listen(&path, &outputs, source.clone(), shutdown.clone()));
    let (checker, interface) = interface.transpose()?.unzip();
    let parts = PoolParts {
        source,
        source_name: node_name(&config.node),
        rules,
        downstream: config.downstream,
        vardiff: config.vardiff,
        share_batch_size: config.share_batch_size,
        job_declaration,
        ledger: config.ledger,
        device_rules: config.rules,
        http: config.http,
    };
    let checker = checker.map(|checker| -> Arc<dyn CheckCustomJobs> { Arc::new(checker) });
    let mut role = start_with(parts, checker, listeners, clock, shutdown)?.role;
    if let Some(interface) = interface {
        role.spawn("interface of the job declaration server", interface);
    }
    role.run().await
}

/// What the coinbases of declared jobs must have.
fn payout_outputs(rules: &CoinbaseRules) -> Vec<Output> {
    vec![Output { value: 0, script: rules.payout_script().to_vec() }]
}

/// Starts a pool and returns at once. It takes custom jobs where it has a job declaration server.
pub fn start(
    parts: PoolParts,
    listeners: Listeners,
    clock: Clock,
    shutdown: Shutdown,
) -> Result<Pool, RunError> {
    start_with(parts, None, listeners, clock, shutdown)
}

/// The same, with custom jobs checked by `checker`, where there is one.
pub fn start_with(
    parts: PoolParts,
    checker: Option<Arc<dyn CheckCustomJobs>>,
    mut listeners: Listeners,
    clock: Clock,
    shutdown: Shutdown,
) -> Result<Pool, RunError> {
    let mut role = Role::start(clock, shutdown.clone(), parts.ledger.as_ref(), parts.device_rules)?;
    role.observed.sink.writer().upstream(UpstreamId(0), &parts.source_name, "", clock.now());
    let (mut owner, inbox) = owner();
    let status = Arc::new(PoolStatus::default());
    let templates = parts.source.templates();
    let source = parts.source.clone();
    source.set_constraints(parts.rules.constraints());
    role.template_source = source.status().cloned();
    let declarations =
        listeners.declarations.take().zip(parts.job_declaration).zip(parts.downstream.authority.as_ref());
    let declarations = declarations.map(|((listener, needs), (_, key))| {
        let outputs = payout_outputs(&parts.rules);
        let JobDeclaration { node, judge, requires_transactions, max_connections } = needs;
        let of_server = DeclarationParts {
            outputs,
            requires_transactions,
            max_connections,
            key: key.clone(),
            node,
            judge,
            source: parts.source.clone(),
            blocks: None,
        };
        serve_declarations(&mut role, of_server, listener, clock, shutdown.clone())
    });
    role.declarations = declarations.transpose()?;
    let served = role.declarations.clone().map(|served| -> Arc<dyn CheckCustomJobs> { Arc::new(served) });
    let custom_jobs = checker.or(served).map(|checker| CustomJobs::new(owner.take_custom_jobs(), checker));
    let task = PoolTask {
        jobs: PoolJobs::new(parts.rules, JobNumber::first(clock.now())),
        source: parts.source,
        inbox,
        custom_jobs,
        writer: role.observed.sink.writer(),
        clock,
        registry: role.observed.registry.clone(),
        status: Arc::clone(&status),
    };
    role.spawn("pool", task::run(task, shutdown));
    let settings = Settings {
        share_batch_size: parts.share_batch_size,
        ..role::settings(ShareUse::Keep, &parts.vardiff, &parts.downstream)
    };
    role.listen(&mut listeners, &parts.downstream, settings, owner)?;
    let (name, of_job) = (parts.source_name.clone(), parts.source_name.into());
    let of_jobs = templates.clone();
    let upstreams = move || {
        let is_live = source.is_live() && templates.borrow().is_some();
        let standing = if is_live { "serving" } else { "away" };
        let state = UpstreamState { name: name.clone(), account: None, is_live, standing };
        UpstreamStates { states: vec![state], ..UpstreamStates::default() }
    };
    let jobs =
        move || of_jobs.borrow().as_deref().map(|template| job(template, &of_job)).into_iter().collect();
    role.serve_http(&mut listeners, &parts.http, upstreams, jobs)?;
    Ok(Pool { role, status })
}

fn serve_declarations(
    role: &mut Role,
    parts: DeclarationParts,
    listener: std::net::TcpListener,
    clock: Clock,
    shutdown: Shutdown,
) -> Result<Declarations, RunError> {
    let listener = TcpListener::from_std(listener).map_err(RunError::io("use a listener"))?;
    let (declarations, running) = declarations(parts, listener, clock, shutdown);
    role.spawn("job declaration server", running);
    Ok(declarations)
}

/// What the API shows of a template.
fn job(template: &BlockTemplate, source: &Arc<str>) -> Job {
    let mut previous_hash = template.previous_hash;
    previous_hash.reverse();
    Job {
        upstream: Arc::clone(source),
        number: None,
        received_us: u64::try_from(template.received.utc.as_micros()).ok(),
        previous_hash: Some(hex::encode(previous_hash)),
        height: Some(template.height),
        version: Some(template.version),
        nbits: Some(template.nbits),
        value_sats: Some(template.coinbase_value),
        transactions: Some(template.transactions.len() as u64),
        ..Job::default()
    }
}

/// A client for the node that the configuration names.
pub fn node_client(config: &NodeConfig) -> Result<NodeClient, RunError> {
    let auth = match &config.auth {
        NodeAuth::Cookie(path) => node::NodeAuth::CookieFile(path.clone()),
        NodeAuth::Password { user, password, .. } => {
            node::NodeAuth::UserPassword { user: user.clone(), password: password.clone() }
        }
    };
    NodeClient::new(NodeClientSettings { url: config.rpc_url.to_string(), auth })
        .map_err(|error| RunError::Failed(format!("node.rpc_url: {error}")))
}

/// Coinbases that pay `script` and carry `tag`.
pub fn coinbase_rules(script: Vec<u8>, tag: &str) -> Result<CoinbaseRules, RunError> {
    CoinbaseRules::new(script, tag.as_bytes().to_vec(), EXTRANONCE_SIZE)
        .map_err(|error| RunError::Failed(format!("pool.coinbase_tag: {error}")))
}

/// The chain that the node is on; asks until it answers.
pub async fn network_of(client: &NodeClient) -> Result<Network, RunError> {
    let mut waited = false;
    loop {
        match client.chain_info().await {
            Ok(info) => {
                let network = Network::from_core_arg(&info.chain);
                let unknown =
                    |_| RunError::Failed(format!("the node is on an unknown chain: {}", info.chain));
                return network.map_err(unknown);
            }
            Err(error) if !waited => {
                tracing::warn!(node = client.url(), "waiting for the node: {error}");
                waited = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(NODE_RETRY).await;
    }
}

/// Host and port of the node.
pub fn node_name(config: &NodeConfig) -> String {
    let host = config.rpc_url.host_str().unwrap_or_default();
    format!("{host}:{}", config.rpc_url.port_or_known_default().unwrap_or_default())
}
