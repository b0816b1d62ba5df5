//! The configuration of the pool.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use bitcoin::address::NetworkUnchecked;
use bitcoin::{Address, Network, ScriptBuf};
use reqwest::Url;
use secrecy::SecretString;

use super::api::{HttpConfig, read_metrics, render_metrics};
use super::declaration_server::DeclarationServerConfig;
use super::file;
use super::ledger::{LedgerConfig, render_rules};
use super::load::{Role, RoleConfig};
use super::parts::{DownstreamConfig, LogConfig, VardiffSettings};
use super::reader::{Findings, Section};
use super::render::Page;
use super::templates::TemplatesConfig;
use crate::sink::DeviceRules;

/// The coinbase input's script has 100 bytes (consensus). Height, extranonce and their lengths take up to 40; the
/// rest stays free for what later versions add.
const MAX_COINBASE_TAG: usize = 32;

/// Every miner gets the coinbase outputs with every job; no payout script in use is longer.
const MAX_COINBASE_SCRIPT: usize = 1000;

/// Who found the blocks of a pool that says nothing else.
pub(super) const DEFAULT_COINBASE_TAG: &str = "/checkweigh/";

/// Where a node listens that was told nothing else.
const DEFAULT_RPC_URL: &str = "http://127.0.0.1:8332/";

/// Where found blocks go when the file does not say.
pub(super) const DEFAULT_BLOCKS_DIR: &str = "blocks";

/// Shares that are acknowledged together when the file does not say: one message for ten keeps answers within
/// about a minute at the default share rate.
const DEFAULT_SHARE_BATCH_SIZE: u32 = 10;

/// A device would wait for hours for its first acknowledgement with more.
const MAX_SHARE_BATCH_SIZE: u32 = 1000;

/// What a pool is told.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// Where miners come in.
    pub downstream: DownstreamConfig,
    /// The node: blocks go to it, and it judges what others declare.
    pub node: NodeConfig,
    /// Where templates come from.
    pub templates: TemplatesConfig,
    /// Who is paid for blocks.
    pub coinbase_output: CoinbaseOutput,
    /// What is written into the coinbase of blocks, at most 32 bytes.
    pub coinbase_tag: String,
    /// The folder that found blocks are written to; made when it does not exist.
    pub blocks_dir: PathBuf,
    /// Shares after which an SV2 channel's accepted ones are acknowledged together; at least 1.
    pub share_batch_size: u32,
    /// Where clients declare jobs of their own, if anywhere.
    pub job_declaration: Option<DeclarationServerConfig>,
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

/// `[node]`: a Bitcoin Core node and how to reach it.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Where its JSON-RPC answers; plain HTTP and without credentials.
    pub rpc_url: Url,
    /// Who we say that we are.
    pub auth: NodeAuth,
    /// The chain that the node must be on; `None` takes whatever chain it is on.
    pub network: Option<Network>,
    /// Where the node announces new blocks over ZeroMQ, as host and port; `None` where it does not.
    pub zmq_hashblock: Option<ZmqEndpoint>,
}

/// A ZeroMQ publisher over TCP: `tcp://host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZmqEndpoint {
    /// A name or an address; of an IPv6 address without its brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl FromStr for ZmqEndpoint {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "is no address such as tcp://127.0.0.1:28332";
        let address = text.strip_prefix("tcp://").ok_or(WRONG)?;
        let (host, port) = address.rsplit_once(':').ok_or(WRONG)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(WRONG)?;
        match host.is_empty() || host.contains(|letter: char| letter.is_whitespace() || letter == '/') {
            true => Err(WRONG),
            false => Ok(ZmqEndpoint { host: host.to_owned(), port }),
        }
    }
}

impl fmt::Display for ZmqEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ZmqEndpoint { host, port } = self;
        if host.contains(':') { write!(f, "tcp://[{host}]:{port}") } else { write!(f, "tcp://{host}:{port}") }
    }
}

/// The two ways to log in at a node.
#[derive(Clone, Debug)]
pub enum NodeAuth {
    /// The file that the node writes at each of its starts; read anew for every connection, and hence not at ours.
    Cookie(PathBuf),
    /// A user of the node's configuration (`rpcauth`).
    Password {
        /// The user.
        user: String,
        /// The password; never shown.
        password: SecretString,
        /// Where it was read from, if from a file.
        file: Option<PathBuf>,
    },
}

/// Who is paid for blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CoinbaseOutput {
    /// An address; of which chain is only certain once the node is asked.
    Address(Address<NetworkUnchecked>),
    /// An output script as it is.
    Script(ScriptBuf),
}

/// The coinbase address is of another chain than the node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the address {address} is not of the chain {network}")]
pub struct WrongNetwork {
    /// The address.
    pub address: String,
    /// The node's chain.
    pub network: Network,
}

impl CoinbaseOutput {
    /// The output script on `network`.
    pub fn script(&self, network: Network) -> Result<ScriptBuf, WrongNetwork> {
        match self {
            CoinbaseOutput::Script(script) => Ok(script.clone()),
            CoinbaseOutput::Address(address) => match address.clone().require_network(network) {
                Ok(address) => Ok(address.script_pubkey()),
                Err(_) => {
                    Err(WrongNetwork { address: address.clone().assume_checked().to_string(), network })
                }
            },
        }
    }
}

/// A text that does not say how to reach a node. Never contains the text, which may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeUrlError {
    /// No URL at all.
    #[error("is not a URL such as http://127.0.0.1:8332")]
    Url,
    /// Another scheme.
    #[error("must start with http://: Bitcoin Core speaks nothing else (use a tunnel across a network)")]
    Scheme,
    /// In a file, credentials have keys of their own.
    #[error("must not contain a user or password: they belong into user and password_file")]
    Credentials,
    /// On the command line, they have not.
    #[error(
        "needs a user and password (http://user:password@host:port) or a cookie file (http://host:port?cookie=FILE)"
    )]
    NoCredentials,
}

impl NodeConfig {
    /// Reads how to reach a node from one text, as on the command line: `http://user:password@host:port` or
    /// `http://host:port?cookie=FILE`.
    pub fn from_url(text: &str) -> Result<Self, NodeUrlError> {
        let mut url = parse_http(text)?;
        let cookie =
            url.query_pairs().find(|(key, _)| key == "cookie").map(|(_, file)| PathBuf::from(&*file));
        url.set_query(None);
        let auth = match (cookie, url.password().map(decode_percent)) {
            (Some(file), _) => NodeAuth::Cookie(file),
            (None, Some(password)) => {
                let user = decode_percent(url.username());
                NodeAuth::Password { user, password: SecretString::from(password), file: None }
            }
            (None, None) => return Err(NodeUrlError::NoCredentials),
        };
        // These fail only for URLs without a host, and http has one.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        Ok(NodeConfig { rpc_url: url, auth, network: None, zmq_hashblock: None })
    }

    pub(super) fn read(document: &mut Section<'_>, findings: &mut Findings<'_>) -> Option<Self> {
        let mut section = document.section(findings, "node");
        let node = NodeConfig::read_section(&mut section, findings);
        section.finish(findings);
        node
    }

    /// Only says which keys there are, where nobody asks for a node.
    pub(super) fn name_keys(section: &mut Section<'_>, findings: &mut Findings<'_>) {
        for key in ["rpc_url", "cookie_file", "user", "password_file", "network", "zmq_hashblock"] {
            section.string(findings, key);
        }
    }

    pub(super) fn read_section(section: &mut Section<'_>, findings: &mut Findings<'_>) -> Option<Self> {
        let url = section
            .parsed(findings, "rpc_url", |text| parse_bare_http(text).map_err(|error| error.to_string()));
        let default = Url::parse(DEFAULT_RPC_URL).expect("the default is a URL");
        let auth = read_auth(section, findings);
        let network = section.parsed(findings, "network", |text| {
            let known = "\"main\", \"test\", \"testnet4\", \"signet\" or \"regtest\"";
            Network::from_core_arg(text)
                .map_err(|_| format!("{text:?} is not a chain that Bitcoin Core names: {known}"))
        });
        let zmq_hashblock = section
            .parsed(findings, "zmq_hashblock", |text| text.parse().map_err(|what: &str| what.to_owned()));
        Some(NodeConfig { rpc_url: url.unwrap_or(default), auth: auth?, network, zmq_hashblock })
    }

    pub(super) fn render(&self, page: &mut Page, title: &str) {
        page.section(title);
        page.key("rpc_url", self.rpc_url.to_string());
        match &self.auth {
            NodeAuth::Cookie(file) => page.key("cookie_file", file.display().to_string()),
            NodeAuth::Password { user, file, .. } => {
                page.key("user", user.clone());
                page.optional("password_file", file.as_ref().map(|file| file.display().to_string()));
                page.hidden("password");
            }
        }
        page.optional("network", self.network.map(|network| network.to_core_arg().to_owned()));
        page.optional("zmq_hashblock", self.zmq_hashblock.as_ref().map(ToString::to_string));
    }
}

fn parse_http(text: &str) -> Result<Url, NodeUrlError> {
    let url = Url::parse(text).map_err(|_| NodeUrlError::Url)?;
    match (url.scheme(), url.has_host()) {
        ("http", true) => Ok(url),
        ("http", false) => Err(NodeUrlError::Url),
        _ => Err(NodeUrlError::Scheme),
    }
}

fn parse_bare_http(text: &str) -> Result<Url, NodeUrlError> {
    let url = parse_http(text)?;
    match url.username().is_empty() && url.password().is_none() {
        true => Ok(url),
        false => Err(NodeUrlError::Credentials),
    }
}

/// The text behind `%40` and the like. What is not valid stays as it is.
fn decode_percent(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn read_auth(section: &mut Section<'_>, findings: &mut Findings<'_>) -> Option<NodeAuth> {
    let cookie = section.string(findings, "cookie_file");
    let user = section.string(findings, "user");
    let password_file = section.string(findings, "password_file").map(|text| findings.path(text));
    let place = |key: &str, findings: &Findings<'_>| section.place_of(findings, key);
    let (has_user, has_password) = (section.has("user"), section.has("password_file"));
    if section.has("cookie_file") {
        for key in ["user", "password_file"].into_iter().filter(|key| section.has(key)) {
            findings
                .problem(place(key, findings), "cannot stand beside cookie_file: choose one way to log in");
        }
        return cookie.map(|file| NodeAuth::Cookie(findings.path(file)));
    }
    match (has_user, has_password) {
        (false, false) => {
            findings.problem(section.place(), "needs cookie_file, or user and password_file");
            return None;
        }
        (true, false) => findings.problem(place("password_file", findings), "is missing beside user"),
        (false, true) => findings.problem(place("user", findings), "is missing beside password_file"),
        (true, true) => {}
    }
    let file = password_file?;
    match file::read_secret(&file) {
        Ok(password) => {
            if file::is_readable_by_others(&file) {
                let what = format!("{} can be read by others; chmod 600 it", file.display());
                findings.note(place("password_file", findings), what);
            }
            Some(NodeAuth::Password { user: user?.to_owned(), password, file: Some(file) })
        }
        Err(what) => {
            findings.problem(place("password_file", findings), what);
            None
        }
    }
}

impl RoleConfig for PoolConfig {
    const ROLE: Role = Role::Pool;

    fn read(document: &mut Section<'_>, findings: &mut Findings<'_>) -> Option<Self> {
        let downstream = DownstreamConfig::read(document, findings);
        let node = NodeConfig::read(document, findings);
        let templates = TemplatesConfig::read(document, findings);
        let mut section = document.section(findings, "pool");
        let network = node.as_ref().and_then(|node| node.network);
        let coinbase_output = read_coinbase_output(&mut section, findings, network);
        let coinbase_tag = read_tag(&mut section, findings);
        let blocks_dir = read_blocks_dir(&mut section, findings);
        let share_batch_size = section.integer(findings, "share_batch_size", 1..=MAX_SHARE_BATCH_SIZE);
        section.finish(findings);
        let job_declaration = DeclarationServerConfig::read(document, findings, downstream.as_ref());
        let vardiff = VardiffSettings::read(document, findings);
        let (ledger, rules) = LedgerConfig::read(document, findings);
        let (metrics_listen, max_device_series) = read_metrics(document, findings);
        let http = HttpConfig::read(document, findings, max_device_series);
        let log = LogConfig::read(document, findings);
        Some(PoolConfig {
            downstream: downstream?,
            node: node?,
            templates: templates?,
            coinbase_output: coinbase_output?,
            coinbase_tag: coinbase_tag.unwrap_or_else(|| DEFAULT_COINBASE_TAG.to_owned()),
            blocks_dir,
            share_batch_size: share_batch_size.unwrap_or(DEFAULT_SHARE_BATCH_SIZE),
            job_declaration,
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
        self.node.render(&mut page, "[node]");
        self.templates.render(&mut page, "[templates]");
        page.section("[pool]");
        match &self.coinbase_output {
            CoinbaseOutput::Address(address) => {
                page.key("coinbase_address", address.clone().assume_checked().to_string());
            }
            CoinbaseOutput::Script(script) => page.key("coinbase_script", script.to_hex_string()),
        }
        page.key("coinbase_tag", self.coinbase_tag.clone());
        page.key("blocks_dir", self.blocks_dir.display().to_string());
        page.key("share_batch_size", i64::from(self.share_batch_size));
        if let Some(job_declaration) = &self.job_declaration {
            job_declaration.render(&mut page);
        }
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

fn read_coinbase_output(
    section: &mut Section<'_>,
    findings: &mut Findings<'_>,
    network: Option<Network>,
) -> Option<CoinbaseOutput> {
    let address = section.parsed(findings, "coinbase_address", |text| parse_address(text, network));
    let script = section.parsed(findings, "coinbase_script", parse_script);
    match (section.has("coinbase_address"), section.has("coinbase_script")) {
        (true, true) => {
            let place = section.place_of(findings, "coinbase_script");
            findings.problem(place, "cannot stand beside coinbase_address: choose who is paid");
            None
        }
        (false, false) => {
            findings.problem(
                section.place(),
                "needs coinbase_address or coinbase_script: who is paid for blocks",
            );
            None
        }
        _ => address.or(script),
    }
}

/// An address of `network`, if that is known.
pub(super) fn parse_address(text: &str, network: Option<Network>) -> Result<CoinbaseOutput, String> {
    let address =
        Address::from_str(text).map_err(|error| format!("{text:?} is not a Bitcoin address: {error}"))?;
    match network {
        Some(network) if !address.is_valid_for_network(network) => Err(format!(
            "{text} is not an address of the chain {}, which node.network names",
            network.to_core_arg()
        )),
        _ => Ok(CoinbaseOutput::Address(address)),
    }
}

/// An output script in hexadecimal.
pub(super) fn parse_script(text: &str) -> Result<CoinbaseOutput, String> {
    match hex::decode(text) {
        Err(error) => Err(format!("is not hexadecimal: {error}")),
        Ok(bytes) if bytes.is_empty() => Err("is empty: anybody could spend the reward".to_owned()),
        Ok(bytes) if bytes.len() > MAX_COINBASE_SCRIPT => {
            Err(format!("has {} bytes; at most {MAX_COINBASE_SCRIPT} are possible", bytes.len()))
        }
        Ok(bytes) => Ok(CoinbaseOutput::Script(ScriptBuf::from_bytes(bytes))),
    }
}

pub(super) fn read_tag(section: &mut Section<'_>, findings: &mut Findings<'_>) -> Option<String> {
    section.parsed(findings, "coinbase_tag", |text| match text.len() {
        0..=MAX_COINBASE_TAG => Ok(text.to_owned()),
        length => Err(format!("has {length} bytes; the coinbase has room for {MAX_COINBASE_TAG}")),
    })
}

pub(super) fn read_blocks_dir(section: &mut Section<'_>, findings: &mut Findings<'_>) -> PathBuf {
    let text = section.string(findings, "blocks_dir").unwrap_or(DEFAULT_BLOCKS_DIR);
    let path = findings.path(text);
    if path.exists() && !path.is_dir() {
        let what = format!("{} is not a folder", path.display());
        findings.problem(section.place_of(findings, "blocks_dir"), what);
    }
    path
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn a_node_is_named_on_the_command_line() {
        let node = NodeConfig::from_url("http://me:p%40ss@127.0.0.1:18443").expect("complete");
        assert_eq!(node.rpc_url.as_str(), "http://127.0.0.1:18443/");
        let NodeAuth::Password { user, password, .. } = &node.auth else { panic!("a password") };
        assert_eq!((user.as_str(), password.expose_secret()), ("me", "p@ss"));
        assert!(!format!("{node:?}").contains("p@ss"));
        let node = NodeConfig::from_url("http://localhost:18443?cookie=/run/node/.cookie").expect("complete");
        assert_eq!(node.rpc_url.as_str(), "http://localhost:18443/");
        assert!(matches!(node.auth, NodeAuth::Cookie(file) if file.as_os_str() == "/run/node/.cookie"));
        for (text, error) in [
            ("127.0.0.1", NodeUrlError::Url),
            ("https://me:pass@127.0.0.1", NodeUrlError::Scheme),
            ("http://127.0.0.1:18443", NodeUrlError::NoCredentials),
        ] {
            assert_eq!(NodeConfig::from_url(text).expect_err("incomplete"), error, "{text}");
        }
    }

    #[test]
    fn percent_codes_never_break() {
        for (text, decoded) in
            [("a%20b", "a b"), ("%", "%"), ("%2", "%2"), ("%zz", "%zz"), ("%\u{20ac}", "%\u{20ac}")]
        {
            assert_eq!(decode_percent(text), decoded);
        }
    }
}
