//! The configuration of the mining proxy.

use std::net::SocketAddr;
use std::time::Duration;

use mining_proxy::Patience;
use stratum::sv2::PoolUrl;

use super::api::{HttpConfig, read_metrics, render_metrics};
use super::declaration::JobDeclarationConfig;
use super::ledger::{LedgerConfig, render_rules};
use super::load::{Role, RoleConfig};
use super::parts::{DownstreamConfig, LogConfig, VardiffSettings};
use super::reader::{Findings, Section};
use super::render::Page;
use crate::sink::DeviceRules;

/// More upstreams than any farm has contracts for; each costs a connection and a set of metrics.
const MAX_UPSTREAMS: usize = 16;

/// SV2 carries a user identity as a text of at most 255 bytes (STR0_255).
const MAX_USER_IDENTITY: usize = 255;

/// The longest time of `[failover]`, in seconds: who is patient for longer than an hour has no use for a second pool.
const LONGEST_PATIENCE: u32 = 3600;

/// What a mining proxy is told.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// Where miners come in.
    pub downstream: DownstreamConfig,
    /// Where work comes from, in order of preference; at least one, at most 16.
    pub upstreams: Vec<UpstreamConfig>,
    /// Where our own templates come from, and how they are declared.
    pub job_declaration: Option<JobDeclarationConfig>,
    /// When to go over from one upstream to another.
    pub patience: Patience,
    /// One upstream channel for all devices; if not, each device has its own.
    pub aggregate: bool,
    /// How the difficulties of channels are controlled.
    pub vardiff: VardiffSettings,
    /// Where the accounts are kept; in memory only when absent.
    pub ledger: Option<LedgerConfig>,
    /// What is said of devices by their names.
    pub rules: DeviceRules,
    /// Where `/metrics` and `/healthz` are served, if anywhere.
    pub metrics_listen: Option<SocketAddr>,
    /// What else is served over HTTP.
    pub http: HttpConfig,
    /// What is logged.
    pub log: LogConfig,
}

/// One `[[upstream]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// Where it is, and the key that it must prove to hold.
    pub url: PoolUrl,
    /// The account that channels are opened for; with a channel per device, the worker name follows it.
    pub user_identity: String,
    /// Where its job declaration server is; jobs of ours are declared there if it is set.
    pub job_declaration_url: Option<PoolUrl>,
    /// Whether the worker names of devices that share a channel go to the pool with their shares, where it takes them
    /// (SV2 extension 2).
    pub forward_worker_names: bool,
}

impl RoleConfig for ProxyConfig {
    const ROLE: Role = Role::MiningProxy;

    fn read(document: &mut Section<'_>, findings: &mut Findings<'_>) -> Option<Self> {
        let downstream = DownstreamConfig::read(document, findings);
        let upstreams = read_upstreams(document, findings);
        let job_declaration = JobDeclarationConfig::read(document, findings);
        let patience = read_failover(document, findings);
        let mut channels = document.section(findings, "channels");
        let aggregate = channels.boolean(findings, "aggregate").unwrap_or(true);
        let declares = upstreams.iter().any(|upstream| upstream.job_declaration_url.is_some());
        if declares && !aggregate {
            let what = "must be true where jobs are declared: a job is declared for one channel";
            findings.problem(channels.place_of(findings, "aggregate"), what);
        }
        if declares && !document.has("job_declaration") {
            let what = "is missing: an upstream has a job_declaration_url";
            findings.problem(document.place_of(findings, "job_declaration"), what);
        }
        channels.finish(findings);
        let vardiff = VardiffSettings::read(document, findings);
        let (ledger, rules) = LedgerConfig::read(document, findings);
        let (metrics_listen, max_device_series) = read_metrics(document, findings);
        let http = HttpConfig::read(document, findings, max_device_series);
        let log = LogConfig::read(document, findings);
        Some(ProxyConfig {
            downstream: downstream?,
            upstreams,
            job_declaration,
            patience,
            aggregate,
            vardiff,
            ledger,
            rules,
            metrics_listen,
            http,
            log,
        })
    }

    fn effective(&self) -> String {
        let mut page = Page::default();
        self.downstream.render(&mut page);
        for upstream in &self.upstreams {
            page.section("[[upstream]]");
            page.key("url", upstream.url.to_string());
            page.key("user_identity", upstream.user_identity.clone());
            page.optional(
                "job_declaration_url",
                upstream.job_declaration_url.as_ref().map(PoolUrl::to_string),
            );
            page.key("forward_worker_names", upstream.forward_worker_names);
        }
        if let Some(declaration) = &self.job_declaration {
            declaration.render(&mut page);
        }
        page.section("[failover]");
        let seconds = |duration: Duration| duration.as_secs() as i64;
        page.key("hold_down_s", seconds(self.patience.hold_down));
        page.key("longest_hold_down_s", seconds(self.patience.longest_hold_down));
        page.key("steady_s", seconds(self.patience.steady));
        page.key("start_grace_s", seconds(self.patience.start_grace));
        page.section("[channels]");
        page.key("aggregate", self.aggregate);
        self.vardiff.render(&mut page);
        if let Some(ledger) = &self.ledger {
            ledger.render(&mut page);
        }
        render_rules(&self.rules, &mut page);
        render_metrics(self.metrics_listen, self.http.max_device_series, &mut page);
        self.http.render(&mut page);
        self.log.render(&mut page);
        page.finish()
    }
}

/// `[failover]`: how patient we are with upstreams.
fn read_failover(document: &mut Section<'_>, findings: &mut Findings<'_>) -> Patience {
    let mut section = document.section(findings, "failover");
    let default = Patience::default();
    let mut seconds = |key: &'static str, least: u32, default: Duration| {
        let read = section.integer(findings, key, least..=LONGEST_PATIENCE);
        read.map_or(default, |seconds| Duration::from_secs(seconds.into()))
    };
    let hold_down = seconds("hold_down_s", 1, default.hold_down);
    let longest_hold_down = seconds("longest_hold_down_s", 1, default.longest_hold_down.max(hold_down));
    let steady = seconds("steady_s", 1, default.steady);
    let start_grace = seconds("start_grace_s", 0, default.start_grace);
    if longest_hold_down < hold_down {
        findings.problem(section.place_of(findings, "longest_hold_down_s"), "is below hold_down_s");
    }
    section.finish(findings);
    Patience { hold_down, longest_hold_down, steady, start_grace }
}

fn read_upstreams(document: &mut Section<'_>, findings: &mut Findings<'_>) -> Vec<UpstreamConfig> {
    let place = document.place_of(findings, "upstream");
    let mut upstreams = Vec::new();
    let mut present = 0;
    for mut section in document.sections(findings, "upstream") {
        present += usize::from(section.is_present());
        section.require(findings, "url");
        section.require(findings, "user_identity");
        let url = section
            .parsed(findings, "url", |text| text.parse::<PoolUrl>().map_err(|error| error.to_string()));
        let user_identity = section.parsed(findings, "user_identity", |text| match text.len() {
            0 => Err("is empty".to_owned()),
            1..=MAX_USER_IDENTITY => Ok(text.to_owned()),
            length => Err(format!("has {length} bytes; SV2 has room for {MAX_USER_IDENTITY}")),
        });
        let job_declaration_url = section.parsed(findings, "job_declaration_url", |text| {
            text.parse::<PoolUrl>().map_err(|error| error.to_string())
        });
        if job_declaration_url.as_ref().is_some_and(|url| url.authority.is_none()) {
            let what = "has no authority key: whoever answers at this address is trusted";
            findings.note(section.place_of(findings, "job_declaration_url"), what);
        }
        let forward_worker_names = section.boolean(findings, "forward_worker_names").unwrap_or(true);
        if url.as_ref().is_some_and(|url| url.authority.is_none()) {
            let what = "has no authority key: whoever answers at this address is trusted";
            findings.note(section.place_of(findings, "url"), what);
        }
        section.finish(findings);
        if let (Some(url), Some(user_identity)) = (url, user_identity) {
            upstreams.push(UpstreamConfig { url, user_identity, job_declaration_url, forward_worker_names });
        }
    }
    match present {
        0 => findings.problem(place, "at least one [[upstream]] is needed"),
        1..=MAX_UPSTREAMS => {}
        _ => findings.problem(place, format!("has {present} entries; at most {MAX_UPSTREAMS} are possible")),
    }
    upstreams
}
