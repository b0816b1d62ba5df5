//! `[job_declaration]` of the mining proxy: jobs of our own templates, declared to pools, and solo without one.

use std::path::PathBuf;

use job_declarator::server::Mode;

use super::pool::{
    CoinbaseOutput, DEFAULT_COINBASE_TAG, NodeConfig, parse_address, parse_script, read_blocks_dir, read_tag,
};
use super::reader::{Findings, Section};
use super::render::Page;
use super::templates::TemplatesConfig;

/// What a proxy with templates of its own is told.
#[derive(Clone, Debug)]
pub struct JobDeclarationConfig {
    /// Where templates come from and blocks go to.
    pub node: NodeConfig,
    /// How templates reach us, and which of them are worth a job.
    pub templates: TemplatesConfig,
    /// Whether pools are shown the transactions.
    pub mode: Mode,
    /// What is written into the coinbase of blocks, at most 32 bytes.
    pub coinbase_tag: String,
    /// Whether the jobs of the pools themselves are mined when no declared one can be.
    pub pool_templates: bool,
    /// Who is paid when there is no pool at all; nobody mines alone without.
    pub solo: Option<CoinbaseOutput>,
    /// The folder that found blocks are written to; made when it does not exist.
    pub blocks_dir: PathBuf,
}

impl JobDeclarationConfig {
    /// `None` when there is no such section, or a part of it is wrong.
    pub(super) fn read(document: &mut Section<'_>, findings: &mut Findings<'_>) -> Option<Self> {
        let mut section = document.section(findings, "job_declaration");
        let is_present = section.is_present();
        let mut node_section = section.section(findings, "node");
        let node = match is_present {
            true => NodeConfig::read_section(&mut node_section, findings),
            false => {
                NodeConfig::name_keys(&mut node_section, findings);
                None
            }
        };
        node_section.finish(findings);
        let templates = TemplatesConfig::read(&mut section, findings);
        let mode = section.parsed(findings, "mode", |text| match text {
            "full-template" => Ok(Mode::FullTemplate),
            "coinbase-only" => Ok(Mode::CoinbaseOnly),
            _ => Err(format!("{text:?} is neither \"full-template\" nor \"coinbase-only\"")),
        });
        let coinbase_tag = read_tag(&mut section, findings);
        let pool_templates = section.boolean(findings, "pool_templates").unwrap_or(true);
        let network = node.as_ref().and_then(|node: &NodeConfig| node.network);
        let address = section.parsed(findings, "solo_address", |text| parse_address(text, network));
        let script = section.parsed(findings, "solo_script", parse_script);
        if section.has("solo_address") && section.has("solo_script") {
            let place = section.place_of(findings, "solo_script");
            findings.problem(place, "cannot stand beside solo_address: choose who is paid");
        }
        let blocks_dir = read_blocks_dir(&mut section, findings);
        section.finish(findings);
        Some(JobDeclarationConfig {
            node: node?,
            templates: templates?,
            mode: mode.unwrap_or(Mode::FullTemplate),
            coinbase_tag: coinbase_tag.unwrap_or_else(|| DEFAULT_COINBASE_TAG.to_owned()),
            pool_templates,
            solo: address.or(script),
            blocks_dir,
        })
    }

    pub(super) fn render(&self, page: &mut Page) {
        page.section("[job_declaration]");
        let mode = match self.mode {
            Mode::FullTemplate => "full-template",
            Mode::CoinbaseOnly => "coinbase-only",
        };
        page.key("mode", mode.to_owned());
        page.key("coinbase_tag", self.coinbase_tag.clone());
        page.key("pool_templates", self.pool_templates);
        match &self.solo {
            Some(CoinbaseOutput::Address(address)) => {
                page.key("solo_address", address.clone().assume_checked().to_string());
            }
            Some(CoinbaseOutput::Script(script)) => page.key("solo_script", script.to_hex_string()),
            None => {}
        }
        page.key("blocks_dir", self.blocks_dir.display().to_string());
        self.node.render(page, "[job_declaration.node]");
        self.templates.render(page, "[job_declaration.templates]");
    }
}
