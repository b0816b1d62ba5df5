//! The configuration of the template provider.

use std::net::SocketAddr;
use std::path::PathBuf;

use stratum::sv2::AuthoritySecretKey;

use super::file;
use super::listen::ListenKey;
use super::load::{Role, RoleConfig};
use super::parts::LogConfig;
use super::pool::{DEFAULT_BLOCKS_DIR, NodeConfig};
use super::reader::{Findings, Section};
use super::render::Page;
use super::templates::{SourceConfig, TemplatesConfig};

/// Clients that are served when the file does not say: a few pools and proxies.
const DEFAULT_MAX_CONNECTIONS: u32 = 32;

/// Each client may hold the templates of some minutes, a few megabytes each where it wants other room than others.
const MOST_CONNECTIONS: u32 = 1000;

/// What a template provider is told.
#[derive(Clone, Debug)]
pub struct TemplateProviderConfig {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// The key that certificates are signed with.
    pub authority: AuthoritySecretKey,
    /// The file it came from.
    pub authority_file: PathBuf,
    /// Clients that are served at once.
    pub max_connections: u32,
    /// The folder that found blocks are written to; made when it does not exist.
    pub blocks_dir: PathBuf,
    /// The node that blocks go to; there where templates come from it over JSON-RPC.
    pub node: Option<NodeConfig>,
    /// Where templates come from.
    pub templates: TemplatesConfig,
    /// Where `/metrics` and `/healthz` are served, if anywhere.
    pub metrics_listen: Option<SocketAddr>,
    /// What is logged.
    pub log: LogConfig,
}

impl RoleConfig for TemplateProviderConfig {
    const ROLE: Role = Role::TemplateProvider;

    fn read(document: &mut Section<'_>, findings: &mut Findings<'_>) -> Option<Self> {
        let mut section = document.section(findings, "template_provider");
        for key in ["listen", "authority_secret_key_file"] {
            if !section.has(key) {
                findings.problem(section.place_of(findings, key), "is missing");
            }
        }
        let listen = section.listen(findings, "listen", ListenKey::Templates);
        let authority = read_authority(&mut section, findings);
        let max_connections = section.integer(findings, "max_connections", 1..=MOST_CONNECTIONS);
        let blocks_dir = section.string(findings, "blocks_dir").unwrap_or(DEFAULT_BLOCKS_DIR);
        let blocks_dir = findings.path(blocks_dir);
        section.finish(findings);
        let templates = TemplatesConfig::read(document, findings);
        // Where it is not known where templates come from, nobody knows whether a node is missing.
        let needs_node =
            templates.as_ref().is_some_and(|templates| matches!(templates.source, SourceConfig::Rpc));
        let reads_node = needs_node || document.has("node");
        let node = reads_node.then(|| NodeConfig::read(document, findings));
        let mut section = document.section(findings, "metrics");
        section.require(findings, "listen");
        let metrics_listen = section.listen(findings, "listen", ListenKey::Metrics);
        section.finish(findings);
        let log = LogConfig::read(document, findings);
        let (authority_file, authority) = authority?;
        Some(TemplateProviderConfig {
            listen: listen?,
            authority,
            authority_file,
            max_connections: max_connections.unwrap_or(DEFAULT_MAX_CONNECTIONS),
            blocks_dir,
            // One that is there and wrong ends it; one that is not there need not be.
            node: node.map_or(Some(None), |node| node.map(Some))?,
            templates: templates?,
            metrics_listen,
            log,
        })
    }

    fn effective(&self) -> String {
        let mut page = Page::default();
        page.section("[template_provider]");
        page.key("listen", self.listen.to_string());
        page.key("authority_secret_key_file", self.authority_file.display().to_string());
        page.comment(&format!("authority public key: {}", self.authority.public()));
        page.hidden("authority secret key");
        page.key("max_connections", i64::from(self.max_connections));
        page.key("blocks_dir", self.blocks_dir.display().to_string());
        if let Some(node) = &self.node {
            node.render(&mut page, "[node]");
        }
        self.templates.render(&mut page, "[templates]");
        if let Some(listen) = self.metrics_listen {
            page.section("[metrics]");
            page.key("listen", listen.to_string());
        }
        self.log.render(&mut page);
        page.finish()
    }
}

pub(super) fn read_authority(
    section: &mut Section<'_>,
    findings: &mut Findings<'_>,
) -> Option<(PathBuf, AuthoritySecretKey)> {
    let key = "authority_secret_key_file";
    let path = section.string(findings, key)?;
    let path = findings.path(path);
    let place = section.place_of(findings, key);
    match file::read_key(&path) {
        Ok(secret) => {
            if file::is_readable_by_others(&path) {
                findings.note(place, format!("{} can be read by others; chmod 600 it", path.display()));
            }
            Some((path, secret))
        }
        Err(what) => {
            findings.problem(place, what);
            None
        }
    }
}
