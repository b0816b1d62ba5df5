//! The sections that both roles have: `[downstream]`, `[vardiff]` and `[log]`.

use std::net::SocketAddr;
use std::path::PathBuf;

use stratum::sv2::AuthoritySecretKey;
use stratum::vardiff::{EASIEST_EXPONENT, HARDEST_EXPONENT, VardiffConfig};

use super::file;
use super::listen::ListenKey;
use super::reader::{Findings, Section};
use super::render::Page;

/// Connections that a role accepts when the file does not say. Each takes an open file and some kilobytes.
const DEFAULT_MAX_CONNECTIONS: u32 = 10_000;

/// More connections than a process has ports and files for on any system that it was tried on.
const MOST_CONNECTIONS: u32 = 1_000_000;

/// Enough shares for a good estimate within minutes, few enough for a pool to serve many devices.
const DEFAULT_SHARES_PER_MINUTE: f64 = 8.0;

/// 2^0: the easiest difficulty that every firmware reads. Smaller ones are for miners without an ASIC.
const DEFAULT_MINIMUM_EXPONENT: i32 = 0;

/// 2^10: right for an ASIC of half a terahash at eight shares a minute, and quickly left by greater ones.
const DEFAULT_INITIAL_EXPONENT: i32 = 10;

/// More rental markets than anybody sells to at once; each costs a listener.
const MAX_SV1_PROFILES: usize = 16;

/// `[downstream]`: where miners come in.
#[derive(Clone, Debug)]
pub struct DownstreamConfig {
    /// Where SV1 miners connect.
    pub sv1_listen: Option<SocketAddr>,
    /// Where SV1 miners connect that need other difficulties; at most 16.
    pub sv1_profiles: Vec<Sv1Profile>,
    /// Where SV2 miners and proxies connect. At least one of the two is set.
    pub sv2_listen: Option<SocketAddr>,
    /// The key that SV2 certificates are signed with, and the file it came from. Set when `sv2_listen` is.
    pub authority: Option<(PathBuf, AuthoritySecretKey)>,
    /// Whether SV1 connections may open with a PROXY protocol header.
    pub proxy_protocol: bool,
    /// Connections of both protocols together; further ones are closed at once.
    pub max_connections: u32,
}

/// One `[[downstream.sv1_profile]]`: a further listener for SV1 miners, with difficulties of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sv1Profile {
    /// Where its miners connect.
    pub listen: SocketAddr,
    /// Exponent of the difficulty that nobody goes below here, whatever miners suggest and the upstream asks for.
    pub minimum_exponent: i32,
    /// Exponent of the difficulty of a miner that suggests none; not below the minimum.
    pub initial_exponent: i32,
}

/// `[vardiff]`: how the difficulties of channels are controlled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VardiffSettings {
    /// If not, miners of a proxy get the upstream's target, and miners of a pool keep the initial difficulty.
    pub enabled: bool,
    /// Checked by [`VardiffConfig::validate`].
    pub config: VardiffConfig,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

/// `[log]`: what the command line does not override.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogConfig {
    /// How lines look.
    pub format: Option<LogFormat>,
    /// What is logged, in the syntax of `RUST_LOG`.
    pub filter: Option<String>,
}

impl DownstreamConfig {
    pub(super) fn read(document: &mut Section<'_>, findings: &mut Findings<'_>) -> Option<Self> {
        let mut section = document.section(findings, "downstream");
        let sv1_listen = section.listen(findings, "sv1_listen", ListenKey::Sv1);
        let sv2_listen = section.listen(findings, "sv2_listen", ListenKey::Sv2);
        if !section.has("sv1_listen") && !section.has("sv2_listen") {
            findings.problem(section.place(), "needs sv1_listen, sv2_listen or both");
        }
        let authority = read_authority(&mut section, findings);
        if section.has("sv2_listen") && !section.has("authority_secret_key_file") {
            let place = section.place_of(findings, "authority_secret_key_file");
            findings
                .problem(place, "is missing: sv2_listen needs it (`checkweigh keygen --out FILE` makes one)");
        }
        let proxy_protocol = section.boolean(findings, "proxy_protocol").unwrap_or(false);
        let max_connections = section.integer(findings, "max_connections", 1..=MOST_CONNECTIONS);
        let max_connections = max_connections.unwrap_or(DEFAULT_MAX_CONNECTIONS);
        let sv1_profiles = read_sv1_profiles(&mut section, findings);
        section.finish(findings);
        Some(DownstreamConfig {
            sv1_listen,
            sv1_profiles,
            sv2_listen,
            authority,
            proxy_protocol,
            max_connections,
        })
    }

    pub(super) fn render(&self, page: &mut Page) {
        page.section("[downstream]");
        page.optional("sv1_listen", self.sv1_listen.map(|address| address.to_string()));
        page.optional("sv2_listen", self.sv2_listen.map(|address| address.to_string()));
        if let Some((file, key)) = &self.authority {
            page.key("authority_secret_key_file", file.display().to_string());
            page.comment(&format!("authority public key: {}", key.public()));
            page.hidden("authority secret key");
        }
        page.key("proxy_protocol", self.proxy_protocol);
        page.key("max_connections", i64::from(self.max_connections));
        for profile in &self.sv1_profiles {
            page.section("[[downstream.sv1_profile]]");
            page.key("listen", profile.listen.to_string());
            page.key("minimum_difficulty", 2f64.powi(profile.minimum_exponent));
            page.key("initial_difficulty", 2f64.powi(profile.initial_exponent));
        }
    }
}

fn read_sv1_profiles(downstream: &mut Section<'_>, findings: &mut Findings<'_>) -> Vec<Sv1Profile> {
    let place = downstream.place_of(findings, "sv1_profile");
    let mut profiles = Vec::new();
    let sections = downstream.sections(findings, "sv1_profile");
    if sections.len() > MAX_SV1_PROFILES {
        let what = format!("has {} entries; at most {MAX_SV1_PROFILES} are possible", sections.len());
        findings.problem(place, what);
    }
    for (index, mut section) in sections.into_iter().enumerate().take(MAX_SV1_PROFILES) {
        section.require(findings, "listen");
        section.require(findings, "minimum_difficulty");
        let listen = section.listen(findings, "listen", ListenKey::Sv1Profile(index));
        let minimum = read_firm_minimum(&mut section, findings);
        let initial = read_difficulty(&mut section, findings, "initial_difficulty");
        if let (Some(minimum), Some(initial)) = (minimum, initial)
            && initial < minimum
        {
            findings.problem(section.place_of(findings, "initial_difficulty"), "is below minimum_difficulty");
        }
        section.finish(findings);
        if let (Some(listen), Some(minimum_exponent)) = (listen, minimum) {
            let initial_exponent = initial.unwrap_or(minimum_exponent);
            profiles.push(Sv1Profile { listen, minimum_exponent, initial_exponent });
        }
    }
    profiles
}

/// A minimum that somebody was promised. It must be a power of two itself: rounded down, it would not be kept.
fn read_firm_minimum(section: &mut Section<'_>, findings: &mut Findings<'_>) -> Option<i32> {
    let (difficulty, exponent) = read_in_range(section, findings, "minimum_difficulty")?;
    let below = 2f64.powi(exponent);
    if below != difficulty {
        let what = format!("{difficulty} is not a power of two; {below} and {} are", below * 2.0);
        findings.problem(section.place_of(findings, "minimum_difficulty"), what);
        return None;
    }
    Some(exponent)
}

fn read_authority(
    section: &mut Section<'_>,
    findings: &mut Findings<'_>,
) -> Option<(PathBuf, AuthoritySecretKey)> {
    let key = "authority_secret_key_file";
    let path = section.string(findings, key)?;
    let path = findings.path(path);
    let secret = file::read_key(&path);
    let place = section.place_of(findings, key);
    match secret {
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

impl VardiffSettings {
    pub(super) fn read(document: &mut Section<'_>, findings: &mut Findings<'_>) -> Self {
        let mut section = document.section(findings, "vardiff");
        let enabled = section.boolean(findings, "enabled").unwrap_or(true);
        let shares_per_minute = section.number(findings, "shares_per_minute").filter(|rate| {
            let within = (0.1..=600.0).contains(rate);
            if !within {
                let place = section.place_of(findings, "shares_per_minute");
                findings.problem(place, format!("{rate} is not from 0.1 to 600"));
            }
            within
        });
        let minimum = read_difficulty(&mut section, findings, "minimum_difficulty");
        let minimum_exponent = minimum.unwrap_or(DEFAULT_MINIMUM_EXPONENT);
        let initial = read_difficulty(&mut section, findings, "initial_difficulty");
        let initial_exponent = initial.unwrap_or(DEFAULT_INITIAL_EXPONENT.max(minimum_exponent));
        if initial_exponent < minimum_exponent {
            findings.problem(section.place_of(findings, "initial_difficulty"), "is below minimum_difficulty");
        }
        section.finish(findings);
        let shares_per_minute = shares_per_minute.unwrap_or(DEFAULT_SHARES_PER_MINUTE);
        VardiffSettings {
            enabled,
            config: VardiffConfig { shares_per_minute, minimum_exponent, initial_exponent },
        }
    }

    pub(super) fn render(&self, page: &mut Page) {
        page.section("[vardiff]");
        page.key("enabled", self.enabled);
        page.key("shares_per_minute", self.config.shares_per_minute);
        page.key("minimum_difficulty", 2f64.powi(self.config.minimum_exponent));
        page.key("initial_difficulty", 2f64.powi(self.config.initial_exponent));
    }
}

/// The exponent of a difficulty, rounded down to a power of two: devices are only sent such, because some firmware
/// misreads others.
fn read_difficulty(section: &mut Section<'_>, findings: &mut Findings<'_>, key: &'static str) -> Option<i32> {
    let (difficulty, exponent) = read_in_range(section, findings, key)?;
    let rounded = 2f64.powi(exponent);
    if rounded != difficulty {
        let what = format!("{difficulty} is rounded down to {rounded}, a power of two");
        findings.note(section.place_of(findings, key), what);
    }
    Some(exponent)
}

/// A difficulty that can be given out, and the exponent of the greatest power of two that is not above it.
fn read_in_range(
    section: &mut Section<'_>,
    findings: &mut Findings<'_>,
    key: &'static str,
) -> Option<(f64, i32)> {
    let difficulty = section.number(findings, key)?;
    let range = 2f64.powi(EASIEST_EXPONENT)..=2f64.powi(HARDEST_EXPONENT);
    if !range.contains(&difficulty) {
        let what = format!("{difficulty} is not from 2^{EASIEST_EXPONENT} to 2^{HARDEST_EXPONENT}");
        findings.problem(section.place_of(findings, key), what);
        return None;
    }
    Some((difficulty, floor_log2(difficulty)))
}

/// Exact, as a logarithm would not be: the exponent field of a normal double.
fn floor_log2(value: f64) -> i32 {
    ((value.to_bits() >> 52) & 0x7ff) as i32 - 1023
}

impl LogConfig {
    pub(super) fn read(document: &mut Section<'_>, findings: &mut Findings<'_>) -> Self {
        let mut section = document.section(findings, "log");
        let format = section.parsed(findings, "format", |text| match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err(format!("{text:?} is neither \"text\" nor \"json\"")),
        });
        let filter = section.parsed(findings, "filter", |text| {
            crate::logging::check_filter(text).map(|()| text.to_owned()).map_err(|error| error.to_string())
        });
        section.finish(findings);
        LogConfig { format, filter }
    }

    pub(super) fn render(&self, page: &mut Page) {
        if *self == LogConfig::default() {
            return;
        }
        page.section("[log]");
        let format = self.format.map(|format| match format {
            LogFormat::Text => "text".to_owned(),
            LogFormat::Json => "json".to_owned(),
        });
        page.optional("format", format);
        page.optional("filter", self.filter.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn difficulties_round_down_to_the_grid() {
        for (value, exponent) in
            [(1.0, 0), (1.5, 0), (2.0, 1), (1023.9, 9), (1024.0, 10), (0.001, -10), (0.5, -1)]
        {
            assert_eq!(floor_log2(value), exponent, "{value}");
        }
    }

    #[test]
    fn the_defaults_are_valid() {
        let config = VardiffConfig {
            shares_per_minute: DEFAULT_SHARES_PER_MINUTE,
            minimum_exponent: DEFAULT_MINIMUM_EXPONENT,
            initial_exponent: DEFAULT_INITIAL_EXPONENT,
        };
        assert_eq!(config.validate(), Ok(()));
    }
}
