//! The order in which a proxy turns to its sources of work.
//!
//! Each pool in the order of the configuration, with jobs declared to it where it has a job declaration server; then
//! the own jobs of those, where the configuration allows it; then nobody's pool but our own, in this process, which
//! pays to the address that the configuration names. Each is an upstream like any other.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use job_declarator::client::ClientConfig;
use mining_proxy::UpstreamConfig as UpstreamRules;
use rand::RngCore;
use rand::rngs::OsRng;
use stratum::UpstreamId;
use stratum::sv2::{AuthoritySecretKey, PoolUrl};

use super::REFRESH_INTERVAL;
use crate::clock::Clock;
use crate::config::{
    CoinbaseOutput, DownstreamConfig, HttpConfig, JobDeclarationConfig, Listeners, ProxyConfig,
    UpstreamConfig,
};
use crate::error::RunError;
use crate::node::BlockSource;
use crate::pool::{self, PoolParts};
use crate::role::Role;
use crate::shutdown::Shutdown;
use crate::sink::DeviceRules;
use crate::upstream::UpstreamEntry;

/// What the upstream without a pool is called.
const SOLO: &str = "solo";

/// Connections that our own pool takes: ours, and one that it has not yet noticed to be over.
const SOLO_CONNECTIONS: u32 = 4;

/// Shares that our own pool acknowledges together.
const SOLO_BATCH: u32 = 10;

/// One source of work.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    pub(super) name: Arc<str>,
    pub(super) account: Arc<str>,
    pub(super) entry: UpstreamEntry,
}

/// All pools.
pub(super) fn pools(config: &ProxyConfig) -> Vec<Planned> {
    let mut planned: Vec<Planned> = Vec::new();
    for upstream in &config.upstreams {
        let declared = upstream.job_declaration_url.as_ref().zip(config.job_declaration.as_ref());
        let client = declared.map(|(_, declaration)| client(declaration, upstream));
        let declaration = declared.map(|(url, _)| url.clone());
        add(&mut planned, config, upstream, client, declaration, "");
    }
    if config.job_declaration.as_ref().is_some_and(|declaration| declaration.pool_templates) {
        for upstream in config.upstreams.iter().filter(|upstream| upstream.job_declaration_url.is_some()) {
            add(&mut planned, config, upstream, None, None, "/templates");
        }
    }
    planned
}

fn add(
    planned: &mut Vec<Planned>,
    config: &ProxyConfig,
    upstream: &UpstreamConfig,
    job_declaration: Option<ClientConfig>,
    declaration: Option<PoolUrl>,
    suffix: &str,
) {
    // Several may be at one address: those after the first are told apart by their place in the list.
    let mut name = format!("{}:{}{suffix}", upstream.url.host, upstream.url.port);
    if planned.iter().any(|other| *other.name == *name) {
        name = format!("{name}~{}", planned.len() + 1);
    }
    let id = UpstreamId(planned.len() as u16);
    planned.push(Planned {
        name: name.into(),
        account: upstream.user_identity.as_str().into(),
        entry: UpstreamEntry {
            config: UpstreamRules { job_declaration, ..rules(config, id, upstream) },
            url: upstream.url.clone(),
            declaration,
        },
    });
}

fn rules(config: &ProxyConfig, id: UpstreamId, upstream: &UpstreamConfig) -> UpstreamRules {
    UpstreamRules {
        id,
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

fn client(declaration: &JobDeclarationConfig, upstream: &UpstreamConfig) -> ClientConfig {
    ClientConfig {
        user_identifier: upstream.user_identity.clone(),
        mode: declaration.mode,
        tag: declaration.coinbase_tag.as_bytes().to_vec(),
        vendor: "Checkweigh".to_owned(),
        hardware_version: "mining-proxy".to_owned(),
        firmware: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

fn fresh_authority() -> AuthoritySecretKey {
    let mut secret = [0; 32];
    loop {
        OsRng.fill_bytes(&mut secret);
        if let Ok(key) = AuthoritySecretKey::from_bytes(secret) {
            return key;
        }
    }
}

/// Starts our own pool in this process, and returns the upstream that it is.
pub(super) fn solo(
    config: &ProxyConfig,
    declaration: &JobDeclarationConfig,
    payout: &CoinbaseOutput,
    (place, source): (usize, &BlockSource),
    clock: Clock,
    shutdown: &Shutdown,
    role: &mut Role,
) -> Result<Planned, RunError> {
    // Of which chain an address is does not change whom it pays.
    let (script, account) = match payout {
        CoinbaseOutput::Script(script) => (script.clone(), script.to_hex_string()),
        CoinbaseOutput::Address(address) => {
            let address = address.clone().assume_checked();
            (address.script_pubkey(), address.to_string())
        }
    };
    let authority = fresh_authority();
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = TcpListener::bind(local).map_err(RunError::io("listen for ourselves"))?;
    listener.set_nonblocking(true).map_err(RunError::io("listen for ourselves"))?;
    let address = listener.local_addr().map_err(RunError::io("listen for ourselves"))?;
    let public = authority.public();
    let parts = PoolParts {
        source: source.clone(),
        source_name: SOLO.to_owned(),
        rules: pool::coinbase_rules(script.into_bytes(), &declaration.coinbase_tag)?,
        downstream: DownstreamConfig {
            sv1_listen: None,
            sv1_profiles: Vec::new(),
            sv2_listen: Some(address),
            authority: Some((std::path::PathBuf::new(), authority)),
            proxy_protocol: false,
            max_connections: SOLO_CONNECTIONS,
        },
        vardiff: config.vardiff,
        share_batch_size: SOLO_BATCH,
        job_declaration: None,
        ledger: None,
        device_rules: DeviceRules::default(),
        http: HttpConfig::default(),
    };
    let listeners = Listeners { sv2: Some(listener), ..Listeners::default() };
    let own = pool::start(parts, listeners, clock, shutdown.clone())?;
    role.spawn("own pool", async move {
        if let Err(error) = own.role.run().await {
            tracing::error!(%error, "our own pool ended");
        }
    });
    let upstream = UpstreamConfig {
        url: PoolUrl { host: address.ip().to_string(), port: address.port(), authority: Some(public) },
        user_identity: account.clone(),
        job_declaration_url: None,
        forward_worker_names: false,
    };
    Ok(Planned {
        name: SOLO.into(),
        account: account.into(),
        entry: UpstreamEntry {
            config: rules(config, UpstreamId(place as u16), &upstream),
            url: upstream.url,
            declaration: None,
        },
    })
}
