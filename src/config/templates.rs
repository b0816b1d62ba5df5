//! `[templates]`: where block templates come from, and which of them are worth a job.

use std::path::PathBuf;
use std::time::Duration;

use stratum::sv2::url::PoolUrl;
use template::PublishPolicy;

use super::reader::{Findings, Section};
use super::render::Page;
use crate::node::SourceKind;
use crate::node::source::{DEFAULT_MIN_GAIN, DEFAULT_MIN_INTERVAL};

/// How often the node is asked when the file does not say.
const DEFAULT_POLL_SECONDS: u32 = 30;

/// What is said of `source = "ipc"` where it cannot be had.
pub const NO_IPC: &str = "\"ipc\" needs a program that was built with `cargo build --release --features ipc`";

/// The longest path of a Unix socket on Linux, of whose 108 bytes one ends it.
const MAX_SOCKET_PATH: usize = 107;

/// `[templates]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplatesConfig {
    /// Where templates come from.
    pub source: SourceConfig,
    /// Which of them are published.
    pub policy: PublishPolicy,
    /// How often a node is asked over JSON-RPC even though it announces nothing.
    pub poll: Duration,
    /// Whether a new tip gets an empty template at once, until the full one is there.
    pub empty_first: bool,
}

/// Where templates come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceConfig {
    /// The node of `[node]`, over JSON-RPC.
    Rpc,
    /// A template provider.
    Sv2 {
        /// Where it is, and its key.
        url: PoolUrl,
    },
    /// A node's interprocess interface.
    Ipc {
        /// Its socket.
        socket: PathBuf,
    },
}

impl SourceConfig {
    /// Its kind.
    pub fn kind(&self) -> SourceKind {
        match self {
            SourceConfig::Rpc => SourceKind::Rpc,
            SourceConfig::Sv2 { .. } => SourceKind::Sv2,
            SourceConfig::Ipc { .. } => SourceKind::Ipc,
        }
    }
}

impl Default for TemplatesConfig {
    fn default() -> Self {
        TemplatesConfig {
            source: SourceConfig::Rpc,
            policy: PublishPolicy { min_gain: DEFAULT_MIN_GAIN, min_interval: DEFAULT_MIN_INTERVAL },
            poll: Duration::from_secs(DEFAULT_POLL_SECONDS.into()),
            empty_first: true,
        }
    }
}

impl TemplatesConfig {
    pub(super) fn read(document: &mut Section<'_>, findings: &mut Findings<'_>) -> Option<Self> {
        let mut section = document.section(findings, "templates");
        let source = read_source(&mut section, findings);
        let default = TemplatesConfig::default();
        let min_gain = section.integer(findings, "min_fee_gain_sats", 0..=100_000_000);
        let min_interval = section.integer(findings, "min_interval_seconds", 0..=3600);
        let poll = section.integer(findings, "poll_seconds", 1..=600);
        let empty_first = section.boolean(findings, "empty_first_template");
        section.finish(findings);
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        Some(TemplatesConfig {
            source: source?,
            policy: PublishPolicy {
                min_gain: min_gain.map_or(default.policy.min_gain, u64::from),
                min_interval: min_interval.map_or(default.policy.min_interval, seconds),
            },
            poll: poll.map_or(default.poll, seconds),
            empty_first: empty_first.unwrap_or(default.empty_first),
        })
    }

    pub(super) fn render(&self, page: &mut Page, title: &str) {
        page.section(title);
        page.key("source", self.source.kind().name());
        match &self.source {
            SourceConfig::Rpc => {}
            SourceConfig::Sv2 { url } => page.key("sv2_url", url.to_string()),
            SourceConfig::Ipc { socket } => page.key("ipc_socket", socket.display().to_string()),
        }
        page.key("min_fee_gain_sats", i64::try_from(self.policy.min_gain).unwrap_or(i64::MAX));
        page.key("min_interval_seconds", self.policy.min_interval.as_secs() as i64);
        page.key("poll_seconds", self.poll.as_secs() as i64);
        page.key("empty_first_template", self.empty_first);
    }
}

fn read_source(section: &mut Section<'_>, findings: &mut Findings<'_>) -> Option<SourceConfig> {
    let kind = section.parsed(findings, "source", |text| match text {
        "rpc" => Ok(SourceKind::Rpc),
        "sv2" => Ok(SourceKind::Sv2),
        "ipc" if cfg!(feature = "ipc") => Ok(SourceKind::Ipc),
        "ipc" => Err(NO_IPC.to_owned()),
        _ => Err(format!("{text:?} is neither \"rpc\" nor \"sv2\" nor \"ipc\"")),
    });
    let url = section
        .parsed(findings, "sv2_url", |text| text.parse::<PoolUrl>().map_err(|error| error.to_string()));
    let socket = section.string(findings, "ipc_socket");
    let socket = socket.and_then(|text| read_socket(section, findings, text));
    if section.has("source") && kind.is_none() {
        return None;
    }
    let kind = kind.unwrap_or(SourceKind::Rpc);
    for (key, of) in [("sv2_url", SourceKind::Sv2), ("ipc_socket", SourceKind::Ipc)] {
        let place = section.place_of(findings, key);
        match (section.has(key), kind == of) {
            (true, false) => {
                findings.note(place, format!("is not used: templates come from \"{kind}\""));
            }
            (false, true) => {
                findings.problem(place, format!("is missing: source = \"{kind}\" needs it"));
            }
            _ => {}
        }
    }
    match kind {
        SourceKind::Rpc => Some(SourceConfig::Rpc),
        SourceKind::Sv2 => Some(SourceConfig::Sv2 { url: url? }),
        SourceKind::Ipc => Some(SourceConfig::Ipc { socket: socket? }),
    }
}

fn read_socket(section: &Section<'_>, findings: &mut Findings<'_>, text: &str) -> Option<PathBuf> {
    let socket = findings.path(text);
    let length = socket.as_os_str().len();
    if length > MAX_SOCKET_PATH {
        let place = section.place_of(findings, "ipc_socket");
        let what = format!("has {length} bytes with its folder; the system takes {MAX_SOCKET_PATH} at most");
        findings.problem(place, what);
        return None;
    }
    Some(socket)
}
