//! `[job_declaration]` of the pool: where clients declare jobs of their own templates.

use std::net::SocketAddr;

use job_declarator::server::Mode;

use super::listen::ListenKey;
use super::parts::DownstreamConfig;
use super::reader::{Findings, Section};
use super::render::Page;

/// Both modes as the file names them, in the order in which they are shown.
const MODES: [(&str, Mode); 2] =
    [("full-template", Mode::FullTemplate), ("coinbase-only", Mode::CoinbaseOnly)];

/// What a pool that takes declared jobs is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclarationServerConfig {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// How clients may declare; Full-Template mode is always among them, since its clients show more.
    pub modes: Vec<Mode>,
}

impl DeclarationServerConfig {
    /// Whether clients must show their transactions.
    pub fn requires_transactions(&self) -> bool {
        !self.modes.contains(&Mode::CoinbaseOnly)
    }

    /// `None` when there is no such section, or a part of it is wrong.
    pub(super) fn read(
        document: &mut Section<'_>,
        findings: &mut Findings<'_>,
        downstream: Option<&DownstreamConfig>,
    ) -> Option<Self> {
        let mut section = document.section(findings, "job_declaration");
        if section.is_present() {
            section.require(findings, "listen");
        }
        let listen = section.listen(findings, "listen", ListenKey::Declarations);
        if section.has("listen") && downstream.is_some_and(|downstream| downstream.authority.is_none()) {
            let place = section.place_of(findings, "listen");
            findings.problem(
                place,
                "needs downstream.authority_secret_key_file: the connection proves who we are",
            );
        }
        let modes = read_modes(&mut section, findings);
        section.finish(findings);
        Some(DeclarationServerConfig { listen: listen?, modes: modes? })
    }

    pub(super) fn render(&self, page: &mut Page) {
        page.section("[job_declaration]");
        page.key("listen", self.listen.to_string());
        let modes = MODES.iter().filter(|(_, mode)| self.modes.contains(mode));
        page.key("modes", modes.map(|(name, _)| (*name).to_owned()).collect::<Vec<String>>());
    }
}

/// Both when the file does not say.
fn read_modes(section: &mut Section<'_>, findings: &mut Findings<'_>) -> Option<Vec<Mode>> {
    let both = MODES.map(|(_, mode)| mode).to_vec();
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
    Some(modes)
}
