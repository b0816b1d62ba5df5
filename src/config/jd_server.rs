//! The configuration of a job declaration server that is a process of its own.

use std::net::SocketAddr;
use std::path::PathBuf;

use stratum::sv2::AuthoritySecretKey;

use super::declaration_server::{Modes, read_max_connections, read_modes};
use super::listen::ListenKey;
use super::load::{Role, RoleConfig};
use super::parts::LogConfig;
use super::pool::{NodeConfig, read_blocks_dir};
use super::reader::{Findings, Section};
use super::render::Page;
use super::template_provider::read_authority;
use super::templates::TemplatesConfig;

/// What a job declaration server is told.
#[derive(Clone, Debug)]
pub struct JdServerConfig {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// The key that certificates are signed with.
    pub authority: AuthoritySecretKey,
    /// The file it came from.
    pub authority_file: PathBuf,
    /// The socket that the pool listens on.
    pub control_socket: PathBuf,
    /// How clients may declare.
    pub modes: Modes,
    /// Clients that are served at once. Each may hold the transactions of some blocks.
    pub max_connections: u32,
    /// The folder that found blocks are written to; made when it does not exist.
    pub blocks_dir: PathBuf,
    /// The node that judges what is declared, and that blocks go to.
    pub node: NodeConfig,
    /// Where templates come from, whose transactions clients need not send.
    pub templates: TemplatesConfig,
    /// Where `/metrics` and `/healthz` are served, if anywhere.
    pub metrics_listen: Option<SocketAddr>,
    /// What is logged.
    pub log: LogConfig,
}

impl RoleConfig for JdServerConfig {
    const ROLE: Role = Role::JdServer;

    fn read(document: &mut Section<'_>, findings: &mut Findings<'_>) -> Option<Self> {
        let mut section = document.section(findings, "jd_server");
        for key in ["listen", "authority_secret_key_file", "control_socket"] {
            if !section.has(key) {
                findings.problem(section.place_of(findings, key), "is missing");
            }
        }
        let listen = section.listen(findings, "listen", ListenKey::JdServer);
        let authority = read_authority(&mut section, findings);
        let control_socket = section.string(findings, "control_socket").map(|path| findings.path(path));
        let modes = read_modes(&mut section, findings);
        let max_connections = read_max_connections(&mut section, findings);
        let blocks_dir = read_blocks_dir(&mut section, findings);
        section.finish(findings);
        let node = NodeConfig::read(document, findings);
        let templates = TemplatesConfig::read(document, findings);
        let mut section = document.section(findings, "metrics");
        section.require(findings, "listen");
        let metrics_listen = section.listen(findings, "listen", ListenKey::Metrics);
        section.finish(findings);
        let log = LogConfig::read(document, findings);
        let (authority_file, authority) = authority?;
        Some(JdServerConfig {
            listen: listen?,
            authority,
            authority_file,
            control_socket: control_socket?,
            modes: modes?,
            max_connections,
            blocks_dir,
            node: node?,
            templates: templates?,
            metrics_listen,
            log,
        })
    }

    fn effective(&self) -> String {
        let mut page = Page::default();
        page.section("[jd_server]");
        page.key("listen", self.listen.to_string());
        page.key("authority_secret_key_file", self.authority_file.display().to_string());
        page.comment(&format!("authority public key: {}", self.authority.public()));
        page.hidden("authority secret key");
        page.key("control_socket", self.control_socket.display().to_string());
        self.modes.render(&mut page);
        page.key("max_connections", i64::from(self.max_connections));
        page.key("blocks_dir", self.blocks_dir.display().to_string());
        self.node.render(&mut page, "[node]");
        self.templates.render(&mut page, "[templates]");
        if let Some(listen) = self.metrics_listen {
            page.section("[metrics]");
            page.key("listen", listen.to_string());
        }
        self.log.render(&mut page);
        page.finish()
    }
}
