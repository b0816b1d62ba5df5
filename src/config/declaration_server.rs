//! `[job_declaration]` of the pool: where clients declare jobs of their own templates, or where the server is that they
//! declare them to.

use std::net::SocketAddr;
use std::path::PathBuf;

use job_declarator::server::Mode;

use super::listen::ListenKey;
use super::parts::DownstreamConfig;
use super::reader::{Findings, Section};
use super::render::Page;

/// Both modes as the file names them, in the order in which they are shown.
const MODES: [(&str, Mode); 2] =
    [("full-template", Mode::FullTemplate), ("coinbase-only", Mode::CoinbaseOnly)];

/// Clients that are served at once when the file does not say: one for each farm that declares.
const DEFAULT_MAX_CONNECTIONS: u32 = 64;

/// The most that the file may say: what tokens are there for.
const MOST_CONNECTIONS: u32 = 4096;

/// How clients may declare; Full-Template mode is always among them, since its clients show more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Modes(pub Vec<Mode>);

impl Modes {
    /// Whether clients must show their transactions.
    pub fn requires_transactions(&self) -> bool {
        !self.0.contains(&Mode::CoinbaseOnly)
    }

    pub(super) fn render(&self, page: &mut Page) {
        let modes = MODES.iter().filter(|(_, mode)| self.0.contains(mode));
        page.key("modes", modes.map(|(name, _)| (*name).to_owned()).collect::<Vec<String>>());
    }
}

/// What a pool that takes declared jobs is told: one of the first two is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclarationServerConfig {
    /// Where clients connect.
    pub listen: Option<SocketAddr>,
    /// Where a job declaration server that is a process of its own connects.
    pub control_socket: Option<PathBuf>,
    /// How clients may declare.
    pub modes: Modes,
    /// Clients that are served at once. Each may hold the transactions of some blocks.
    pub max_connections: u32,
}

impl DeclarationServerConfig {
    /// Whether clients must show their transactions.
    pub fn requires_transactions(&self) -> bool {
        self.modes.requires_transactions()
    }

    /// `None` when there is no such section, or a part of it is wrong.
    pub(super) fn read(
        document: &mut Section<'_>,
        findings: &mut Findings<'_>,
        downstream: Option<&DownstreamConfig>,
    ) -> Option<Self> {
        let mut section = document.section(findings, "job_declaration");
        let listen = section.listen(findings, "listen", ListenKey::Declarations);
        let control_socket = section.string(findings, "control_socket").map(|path| findings.path(path));
        let place = section.place_of(findings, "listen");
        let (has_listen, has_socket) = (section.has("listen"), section.has("control_socket"));
        if section.is_present() && !has_listen && !has_socket {
            findings
                .problem(place, "is missing; or control_socket, for a server that is a process of its own");
        }
        if (has_listen || has_socket) && downstream.is_some_and(|downstream| downstream.authority.is_none()) {
            let key = if has_listen { "listen" } else { "control_socket" };
            findings.problem(
                section.place_of(findings, key),
                "needs downstream.authority_secret_key_file: the connection proves who we are",
            );
        }
        if has_listen && has_socket {
            let what = "cannot stand beside listen: the server is in the pool, or a process of its own";
            findings.problem(section.place_of(findings, "control_socket"), what);
        }
        for key in ["modes", "max_connections"] {
            if has_socket && section.has(key) {
                let what = "is not used: the server behind control_socket has its own";
                findings.note(section.place_of(findings, key), what);
            }
        }
        let modes = read_modes(&mut section, findings);
        let max_connections = read_max_connections(&mut section, findings);
        section.finish(findings);
        if listen.is_none() && control_socket.is_none() {
            return None;
        }
        Some(DeclarationServerConfig { listen, control_socket, modes: modes?, max_connections })
    }

    pub(super) fn render(&self, page: &mut Page) {
        page.section("[job_declaration]");
        if let Some(listen) = self.listen {
            page.key("listen", listen.to_string());
            self.modes.render(page);
            page.key("max_connections", i64::from(self.max_connections));
        }
        page.optional("control_socket", self.control_socket.as_ref().map(|path| path.display().to_string()));
    }
}

/// How many clients are served at once.
pub(super) fn read_max_connections(section: &mut Section<'_>, findings: &mut Findings<'_>) -> u32 {
    let said = section.integer(findings, "max_connections", 1..=MOST_CONNECTIONS);
    said.unwrap_or(DEFAULT_MAX_CONNECTIONS)
}

/// Both when the file does not say.
pub(super) fn read_modes(section: &mut Section<'_>, findings: &mut Findings<'_>) -> Option<Modes> {
    let both = Modes(MODES.map(|(_, mode)| mode).to_vec());
    let Some(names) = section.strings(findings, "modes") else { return Some(both) };
    let place = section.place_of(findings, "modes");
    let mut modes = Vec::new();
    for name in names {
        match MODES.iter().find(|(known, _)| *known == name) {
            Some((_, mode)) if !modes.contains(mode) => modes.push(*mode),
            Some(_) => {}
            None => {
                let what = format!("{name:?} is neither \"full-template\" nor \"coinbase-only\"");
                findings.problem(place, what);
                return None;
            }
        }
    }
    if !modes.contains(&Mode::FullTemplate) {
        findings.problem(place, "must contain \"full-template\": who shows more is not turned away");
        return None;
    }
    Some(Modes(modes))
}
