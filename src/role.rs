//! What every role with miners is made of: listeners, the sink of its records, metrics, and supervision.
//!
//! A connection that panics is closed and counted. A panic of anything here, an owner of work or the sink, ends the
//! role, and with it the process: what it owned cannot be trusted any more.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use accounting::entry::microseconds;
use mining_server::{Settings, ShareUse};
use stratum::vardiff::VardiffConfig;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

use crate::background;
use crate::clock::Clock;
use crate::config::{DownstreamConfig, HttpConfig, LedgerConfig, Listeners, Sv1Profile, VardiffSettings};
use crate::declarations::Declarations;
use crate::downstream::{self, ConnectionCounts, Context, Patience, Protocol};
use crate::error::RunError;
use crate::http::view::History;
use crate::http::view::{self, RecordedView};
use crate::http::{self, Served, Sources, Status, UpstreamStates};
use crate::latency::Latencies;
use crate::ledger::LedgerThreads;
use crate::ledger::revival::{revive, started};
use crate::node::SourceStatus;
use crate::owner::Owner;
use crate::registry::SharedRegistry;
use crate::shutdown::Shutdown;
use crate::sink::{DeviceRules, RecordSink};

/// How long all tasks of a role have to end once the end was asked for.
const END_GRACE: Duration = Duration::from_secs(4);

/// How long the ledger has to write what it was handed over.
const LEDGER_GRACE: Duration = Duration::from_secs(10);

/// Open files besides the connections of miners: listeners, the node, upstreams, metrics, the standard streams.
const OTHER_FILES: u64 = 100;

/// What a running role lets the rest of the program see.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The records' sums.
    pub sink: RecordSink,
    /// Who is who.
    pub registry: SharedRegistry,
    /// What is measured.
    pub latencies: Arc<Latencies>,
    /// Connections.
    pub counts: Arc<ConnectionCounts>,
    /// The clocks.
    pub clock: Clock,
}

/// A running role: its tasks, and what can be seen of it.
#[derive(Debug)]
pub struct Role {
    tasks: JoinSet<&'static str>,
    /// Outlives all writers of records, so that it is waited for last.
    sink_task: JoinHandle<()>,
    /// The ledger's, which end after the sink has handed over its last.
    threads: Option<LedgerThreads>,
    /// Where to look for what was before.
    history: Option<History>,
    shutdown: Shutdown,
    /// What can be seen of it.
    pub observed: Observed,
    /// What its source of templates does, where it has one. To be set before HTTP is served.
    pub template_source: Option<Arc<SourceStatus>>,
    /// Where it takes declared jobs. To be set before HTTP is served.
    pub declarations: Option<Declarations>,
    /// Where SV1 miners connect, where there is a listener for them.
    pub sv1_address: Option<SocketAddr>,
    /// Where SV1 miners of profiles connect, in the order of the configuration.
    pub sv1_profile_addresses: Vec<SocketAddr>,
    /// Where SV2 miners connect, where there is a listener for them.
    pub sv2_address: Option<SocketAddr>,
    /// Where the API is, where there is a listener for it.
    pub api_address: Option<SocketAddr>,
}

impl Role {
    /// A role with nothing but its sink, and the ledger behind it if one is configured.
    pub fn start(
        clock: Clock,
        shutdown: Shutdown,
        ledger: Option<&LedgerConfig>,
        mut rules: DeviceRules,
    ) -> Result<Self, RunError> {
        let identities = std::mem::take(&mut rules.identities);
        let revived = ledger.map(|config| revive(config, rules.clone(), clock)).transpose()?;
        let (mut threads, mut devices, mut history) = (None, Vec::new(), None);
        let (sink, sink_task) = match revived {
            None => RecordSink::start_in_memory(rules),
            Some(revived) => {
                let folder = ledger.map(|config| config.path.clone()).unwrap_or_default();
                let status = Arc::clone(revived.to_ledger.writer.status());
                history = Some(History::new(folder, revived.to_ledger.id, revived.began_us, status));
                threads = Some(revived.threads);
                devices = revived.devices;
                RecordSink::start_with_ledger(revived.to_ledger, clock)
            }
        };
        sink.writer().event(started(microseconds(clock.now().utc)));
        let registry = SharedRegistry::with_rules(identities, clock, sink.writer_of_devices());
        registry.restore(&devices);
        let observed = Observed { sink, registry, latencies: Arc::default(), counts: Arc::default(), clock };
        let tasks = JoinSet::new();
        let (sv1_address, sv1_profile_addresses, sv2_address, api_address) = Default::default();
        Ok(Role {
            tasks,
            sink_task,
            threads,
            history,
            shutdown,
            observed,
            template_source: None,
            declarations: None,
            sv1_address,
            sv1_profile_addresses,
            sv2_address,
            api_address,
        })
    }

    /// Adds a task without which the role cannot go on.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(async move {
            task.await;
            name
        });
    }

    /// Lets miners in.
    pub fn listen(
        &mut self,
        listeners: &mut Listeners,
        config: &DownstreamConfig,
        settings: Settings,
        owner: Owner,
    ) -> Result<(), RunError> {
        let context = Context {
            settings: Arc::new(settings),
            registry: self.observed.registry.clone(),
            owner,
            sink: self.observed.sink.clone(),
            clock: self.observed.clock,
            latencies: Arc::clone(&self.observed.latencies),
            counts: Arc::clone(&self.observed.counts),
            slots: Arc::new(Semaphore::new(config.max_connections as usize)),
            patience: Patience::default(),
        };
        raise_open_files(config.max_connections, 1 + config.sv1_profiles.len());
        if let Some(listener) = listeners.sv1.take() {
            let address = self.listen_sv1("SV1 listener", listener, context.clone())?;
            self.sv1_address = Some(address);
            tracing::info!(%address, "SV1 miners may connect");
        }
        let profiles = std::mem::take(&mut listeners.sv1_profiles).into_iter().zip(&config.sv1_profiles);
        for (listener, profile) in profiles {
            let settings = Arc::new(profile_settings(&context.settings, profile));
            let context = Context { settings, ..context.clone() };
            let address = self.listen_sv1("SV1 listener of a profile", listener, context)?;
            self.sv1_profile_addresses.push(address);
            let minimum_difficulty = 2f64.powi(profile.minimum_exponent);
            tracing::info!(%address, minimum_difficulty, "SV1 miners of a profile may connect");
        }
        if let (Some(listener), Some((_, key))) = (listeners.sv2.take(), &config.authority) {
            let (listener, address) = listener_of(listener)?;
            self.sv2_address = Some(address);
            tracing::info!(%address, authority_key = %key.public(), "SV2 miners may connect");
            let protocol = Protocol::Sv2(Arc::new(key.clone()));
            self.spawn("SV2 listener", downstream::serve(listener, protocol, context, self.shutdown.clone()));
        }
        Ok(())
    }

    fn listen_sv1(
        &mut self,
        name: &'static str,
        listener: std::net::TcpListener,
        context: Context,
    ) -> Result<SocketAddr, RunError> {
        let (listener, address) = listener_of(listener)?;
        self.spawn(name, downstream::serve(listener, Protocol::Sv1, context, self.shutdown.clone()));
        Ok(address)
    }

    /// Serves metrics and the API, where there are listeners for them. `upstreams` looks at what work comes from, and
    /// `jobs` at what miners work on.
    pub fn serve_http(
        &mut self,
        listeners: &mut Listeners,
        config: &HttpConfig,
        upstreams: impl Fn() -> UpstreamStates + Send + Sync + 'static,
        jobs: impl Fn() -> Vec<view::Job> + Send + Sync + 'static,
    ) -> Result<(), RunError> {
        let served = self.served(config, upstreams, jobs);
        if let Some(listener) = listeners.metrics.take() {
            let address = address_of(&listener)?;
            tracing::info!(%address, "metrics at /metrics, health at /healthz");
            let (served, shutdown) = (served.clone(), self.shutdown.clone());
            let serving = background::run("metrics", move || async move {
                let served =
                    async { http::serve_metrics(TcpListener::from_std(listener)?, served, shutdown).await };
                if let Err(error) = served.await {
                    tracing::error!(%error, "metrics are no longer served");
                }
            });
            self.spawn("metrics", serving);
        }
        if let (Some(listener), Some(config)) = (listeners.api.take(), &config.api) {
            let address = address_of(&listener)?;
            let needs_token = config.read_tokens.is_some() || config.admin_tokens.is_some();
            tracing::info!(%address, needs_token, "API at /api/v1/");
            self.api_address = Some(address);
            let (config, shutdown) = (config.clone(), self.shutdown.clone());
            let serving = background::run("API", move || async move {
                let served = async {
                    http::serve_api(TcpListener::from_std(listener)?, served, &config, shutdown).await
                };
                if let Err(error) = served.await {
                    tracing::error!(%error, "the API is no longer served");
                }
            });
            self.spawn("API", serving);
        }
        Ok(())
    }

    fn served(
        &self,
        config: &HttpConfig,
        upstreams: impl Fn() -> UpstreamStates + Send + Sync + 'static,
        jobs: impl Fn() -> Vec<view::Job> + Send + Sync + 'static,
    ) -> Served {
        let counts = Arc::clone(&self.observed.counts);
        let registry = self.observed.registry.clone();
        let templates = self.template_source.clone();
        let declared = self.declarations.clone();
        let sources = Sources {
            sink: self.observed.sink.clone(),
            clock: self.observed.clock,
            status: Arc::new(move || Status {
                template_source: templates.as_ref().map(|source| source.figures()),
                declaration_server: declared.as_ref().map(Declarations::figures),
                ..status(&counts, &registry, upstreams())
            }),
            jobs: Arc::new(jobs),
            history: self.history.clone(),
        };
        let (clock, status) = (sources.clock, Arc::clone(&sources.status));
        Served {
            view: Arc::new(RecordedView::new(sources)),
            latencies: Arc::clone(&self.observed.latencies),
            clock,
            status,
            max_device_series: config.max_device_series,
        }
    }

    /// Waits for the end. An error when a task ended that should not have.
    pub async fn run(mut self) -> Result<(), RunError> {
        let mut shutdown = self.shutdown.clone();
        tokio::select! {
            biased;
            () = shutdown.requested() => {}
            Some(ended) = self.tasks.join_next() => {
                // The tasks hear of the end one after the other: one may have ended before this one heard of it.
                if ended.is_err() || !shutdown.is_requested() {
                    return Err(unexpected_end(ended));
                }
            }
            ended = &mut self.sink_task => return Err(unexpected_end(ended.map(|()| "record sink"))),
        }
        let mut failure = None;
        let all = async {
            while let Some(ended) = self.tasks.join_next().await {
                if ended.is_err() {
                    failure.get_or_insert(unexpected_end(ended));
                }
            }
        };
        if tokio::time::timeout(END_GRACE, all).await.is_err() {
            tracing::warn!("some tasks did not end in time");
        }
        // An answer means that the sink has handed over everything that was written before it was asked.
        if self.observed.sink.finish().await.is_err() {
            let ended = self.sink_task.await;
            failure.get_or_insert(unexpected_end(ended.map(|()| "record sink")));
        }
        if let Some(threads) = self.threads.take() {
            let ended = tokio::task::spawn_blocking(|| threads.end(LEDGER_GRACE)).await;
            match ended {
                Ok(Ok(())) => tracing::info!("the ledger is closed, with everything in it"),
                Ok(Err(unwritten)) => {
                    failure.get_or_insert(RunError::Failed(unwritten.to_string()));
                }
                Err(_) => {
                    let what = "the ledger ended by a bug of ours; please report it";
                    failure.get_or_insert(RunError::Failed(what.to_owned()));
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }
}

/// What the state machines of connections must know.
pub fn settings(share_use: ShareUse, vardiff: &VardiffSettings, downstream: &DownstreamConfig) -> Settings {
    Settings {
        share_use,
        vardiff_enabled: vardiff.enabled,
        vardiff: vardiff.config,
        minimum_is_firm: false,
        channel_per_device: false,
        proxy_protocol: downstream.proxy_protocol,
        share_batch_size: 1,
    }
}

/// What a profile changes for the miners on its listener.
fn profile_settings(settings: &Settings, profile: &Sv1Profile) -> Settings {
    let vardiff = VardiffConfig {
        minimum_exponent: profile.minimum_exponent,
        initial_exponent: profile.initial_exponent,
        ..settings.vardiff
    };
    Settings { vardiff, minimum_is_firm: true, ..settings.clone() }
}

/// Every connection needs an open file, and systems start processes with room for a thousand.
fn raise_open_files(connections: u32, sv1_listeners: usize) {
    let of_listeners = sv1_listeners * downstream::files_of_sv1_listener();
    let wanted = u64::from(connections) + OTHER_FILES + of_listeners as u64;
    let limit = rlimit::increase_nofile_limit(wanted).unwrap_or(0);
    if limit < wanted {
        tracing::warn!(
            limit,
            wanted,
            "downstream.max_connections needs more open files than the system allows (LimitNOFILE of systemd, ulimit -n)"
        );
    }
}

fn address_of(listener: &std::net::TcpListener) -> Result<SocketAddr, RunError> {
    listener.local_addr().map_err(RunError::io("find the address of a listener"))
}

fn listener_of(listener: std::net::TcpListener) -> Result<(TcpListener, SocketAddr), RunError> {
    let listener = TcpListener::from_std(listener).map_err(RunError::io("use a listener"))?;
    let address = listener.local_addr().map_err(RunError::io("find the address of a listener"))?;
    Ok((listener, address))
}

fn status(counts: &ConnectionCounts, registry: &SharedRegistry, upstreams: UpstreamStates) -> Status {
    Status {
        sv1_connections: counts.sv1.load(Ordering::Relaxed),
        sv2_connections: counts.sv2.load(Ordering::Relaxed),
        connections_accepted: counts.accepted.load(Ordering::Relaxed),
        connections_refused: counts.refused.load(Ordering::Relaxed),
        connections_closed_for_fault: counts.closed_for_fault.load(Ordering::Relaxed),
        connections_panicked: counts.panicked.load(Ordering::Relaxed),
        rolling_granted: counts.rolling_granted.load(Ordering::Relaxed),
        rolling_withheld: counts.rolling_withheld.load(Ordering::Relaxed),
        rolling_withheld_total: counts.rolling_withheld_total.load(Ordering::Relaxed),
        rolled_outside_mask: counts.rolled_outside_mask.load(Ordering::Relaxed),
        shared_worker_names: registry.shared_names() as u64,
        upstreams: upstreams.states,
        switches: upstreams.switches,
        declarations: upstreams.declarations,
        template_source: None,
        declaration_server: None,
    }
}

fn unexpected_end(ended: Result<&'static str, tokio::task::JoinError>) -> RunError {
    RunError::Failed(match ended {
        Ok(name) => format!("the {name} ended too early"),
        Err(error) => format!("a task ended by a bug of ours; please report it: {error}"),
    })
}
