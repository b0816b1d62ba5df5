//! The sections of what is served over HTTP: `[api]`, and the part of `[metrics]` that is not its address.
//!
//! Tokens come from files, are kept as hashes only, and are never printed.

use std::net::SocketAddr;
use std::path::PathBuf;

use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};

use super::file;
use super::listen::ListenKey;
use super::reader::{Findings, Section};
use super::render::Page;

/// Requests a minute that one address may make when the file does not say: a page that asks ten things a second.
const DEFAULT_REQUESTS_PER_MINUTE: u32 = 600;

/// More requests than any reader needs; ten thousand a second would be work for more than one core.
const MOST_REQUESTS_PER_MINUTE: u32 = 600_000;

/// Tokens in one file: one each for some programs, and room to change them one after the other.
const MAX_TOKENS: usize = 16;

/// Shorter tokens could be guessed at the rate that is allowed by default.
const MIN_TOKEN_LENGTH: usize = 16;

/// Web pages of other origins that may ask; each is compared with at every request.
const MAX_CORS_ORIGINS: usize = 16;

/// Devices with series of their own at most: more would be a page of a gigabyte.
const MOST_DEVICE_SERIES: u32 = 1_000_000;

/// What is served over HTTP besides the address of `[metrics]`.
#[derive(Clone, Debug, Default)]
pub struct HttpConfig {
    /// `[api]`; nothing is served without it.
    pub api: Option<ApiConfig>,
    /// `[metrics] max_device_series`: devices that `/metrics/devices` shows at most; 0 turns the page off.
    pub max_device_series: u32,
}

/// `[api]`: who may ask what, and how often.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// Where it is served.
    pub listen: SocketAddr,
    /// Who may read, and the file it came from.
    pub read_tokens: Option<(PathBuf, Tokens)>,
    /// Who may read and write, and the file it came from.
    pub admin_tokens: Option<(PathBuf, Tokens)>,
    /// Origins of web pages that may ask.
    pub cors_origins: Vec<String>,
    /// Requests a minute that one address may make.
    pub requests_per_minute: u32,
}

impl ApiConfig {
    /// An API without tokens, for an address that only this machine reaches.
    pub fn open(listen: SocketAddr) -> Self {
        ApiConfig {
            listen,
            read_tokens: None,
            admin_tokens: None,
            cors_origins: Vec::new(),
            requests_per_minute: DEFAULT_REQUESTS_PER_MINUTE,
        }
    }
}

/// Tokens as their SHA-256 hashes, so that none is in memory and all have one length.
#[derive(Clone)]
pub struct Tokens(Vec<[u8; 32]>);

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokens({} <hidden>)", self.0.len())
    }
}

impl Tokens {
    /// One token a line; empty lines and those that start with # do not count.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let tokens: Vec<&str> = lines.collect();
        if tokens.is_empty() {
            return Err("has no token".to_owned());
        }
        if tokens.len() > MAX_TOKENS {
            return Err(format!("has {} tokens; at most {MAX_TOKENS} are possible", tokens.len()));
        }
        if tokens.iter().any(|token| token.len() < MIN_TOKEN_LENGTH) {
            return Err(format!(
                "has a token of fewer than {MIN_TOKEN_LENGTH} letters (`openssl rand -hex 32` makes a good one)"
            ));
        }
        if tokens.iter().any(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err("has a token with white space or letters outside ASCII".to_owned());
        }
        Ok(Tokens(tokens.into_iter().map(|token| Sha256::digest(token).into()).collect()))
    }

    /// The hashes, for those who compare.
    pub fn hashes(&self) -> &[[u8; 32]] {
        &self.0
    }
}

impl HttpConfig {
    /// Reads `[api]`; `max_device_series` comes from `[metrics]`.
    pub(super) fn read(
        document: &mut Section<'_>,
        findings: &mut Findings<'_>,
        max_device_series: u32,
    ) -> Self {
        let mut section = document.section(findings, "api");
        section.require(findings, "listen");
        let listen = section.listen(findings, "listen", ListenKey::Api);
        let read_tokens = tokens_in(&mut section, findings, "read_token_file");
        let admin_tokens = tokens_in(&mut section, findings, "admin_token_file");
        let cors_origins = read_origins(&mut section, findings);
        let requests = section.integer(findings, "requests_per_minute", 1..=MOST_REQUESTS_PER_MINUTE);
        let has_token = section.has("read_token_file") || section.has("admin_token_file");
        if let Some(listen) = listen
            && !listen.ip().is_loopback()
            && !has_token
        {
            let what = format!(
                "{listen} can be reached from elsewhere: that needs read_token_file or admin_token_file \
                 (without a token, 127.0.0.1 and [::1] are possible)"
            );
            findings.problem(section.place_of(findings, "listen"), what);
        }
        section.finish(findings);
        let requests_per_minute = requests.unwrap_or(DEFAULT_REQUESTS_PER_MINUTE);
        let api = listen.map(|listen| ApiConfig {
            listen,
            read_tokens,
            admin_tokens,
            cors_origins,
            requests_per_minute,
        });
        HttpConfig { api, max_device_series }
    }

    pub(super) fn render(&self, page: &mut Page) {
        let Some(api) = &self.api else { return };
        page.section("[api]");
        page.key("listen", api.listen.to_string());
        for (key, tokens) in [("read_token_file", &api.read_tokens), ("admin_token_file", &api.admin_tokens)]
        {
            if let Some((file, tokens)) = tokens {
                page.key(key, file.display().to_string());
                page.hidden(&format!("{} tokens", tokens.0.len()));
            }
        }
        page.key("cors_origins", api.cors_origins.clone());
        page.key("requests_per_minute", i64::from(api.requests_per_minute));
    }
}

/// `[metrics]`: the address, without which nothing is served there, and how many devices have series.
pub(super) fn read_metrics(
    document: &mut Section<'_>,
    findings: &mut Findings<'_>,
) -> (Option<SocketAddr>, u32) {
    let mut section = document.section(findings, "metrics");
    section.require(findings, "listen");
    let listen = section.listen(findings, "listen", ListenKey::Metrics);
    let series = section.integer(findings, "max_device_series", 0..=MOST_DEVICE_SERIES).unwrap_or(0);
    section.finish(findings);
    (listen, series)
}

pub(super) fn render_metrics(listen: Option<SocketAddr>, max_device_series: u32, page: &mut Page) {
    if let Some(listen) = listen {
        page.section("[metrics]");
        page.key("listen", listen.to_string());
        page.key("max_device_series", i64::from(max_device_series));
    }
}

fn tokens_in(
    section: &mut Section<'_>,
    findings: &mut Findings<'_>,
    key: &'static str,
) -> Option<(PathBuf, Tokens)> {
    let path = section.string(findings, key)?;
    let path = findings.path(path);
    let place = section.place_of(findings, key);
    let tokens = file::read_secret(&path).and_then(|text| {
        Tokens::parse(text.expose_secret()).map_err(|what| format!("{} {what}", path.display()))
    });
    match tokens {
        Ok(tokens) => {
            if file::is_readable_by_others(&path) {
                findings.note(place, format!("{} can be read by others; chmod 600 it", path.display()));
            }
            Some((path, tokens))
        }
        Err(what) => {
            findings.problem(place, what);
            None
        }
    }
}

fn read_origins(section: &mut Section<'_>, findings: &mut Findings<'_>) -> Vec<String> {
    let key = "cors_origins";
    let origins = section.strings(findings, key).unwrap_or_default();
    if origins.len() > MAX_CORS_ORIGINS {
        let what = format!("has {} entries; at most {MAX_CORS_ORIGINS} are possible", origins.len());
        findings.problem(section.place_of(findings, key), what);
    }
    for origin in origins.iter().filter(|origin| !is_origin(origin)) {
        let what = format!("{origin:?} is not an origin such as \"https://farm.example:8443\"");
        findings.problem(section.place_of(findings, key), what);
    }
    origins.into_iter().map(str::to_owned).collect()
}

/// Scheme and host, perhaps a port, and nothing behind: what a browser sends.
fn is_origin(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
    rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(is_host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_line_by_line_and_never_shown() {
        let tokens =
            Tokens::parse("# of the dashboard\n0123456789abcdef\n\n fedcba9876543210 \n").expect("two");
        assert_eq!(tokens.hashes().len(), 2);
        assert_eq!(tokens.hashes()[1], <[u8; 32]>::from(Sha256::digest("fedcba9876543210")));
        assert_eq!(format!("{tokens:?}"), "Tokens(2 <hidden>)");
        assert!(Tokens::parse("short").expect_err("it is").contains("fewer than 16"));
        assert!(Tokens::parse("# none").is_err());
        assert!(Tokens::parse("0123456789 abcdef").is_err());
        assert!(Tokens::parse(&"0123456789abcdef\n".repeat(17)).is_err());
    }

    #[test]
    fn origins_have_no_path_and_no_star() {
        assert!(is_origin("https://farm.example") && is_origin("http://[::1]:8080"));
        for wrong in ["*", "https://", "farm.example", "https://farm.example/", "null"] {
            assert!(!is_origin(wrong), "{wrong}");
        }
    }
}
