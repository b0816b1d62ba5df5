//! Addresses of SV2 servers as their operators publish them (SV2 4.7).
//!
//! This module never resolves a name.

use std::fmt;
use std::str::FromStr;

use super::keys::{AuthorityPublicKey, InvalidKey};

/// What every address starts with.
const SCHEME: &str = "stratum2+tcp://";

/// The longest host: that of a domain name (RFC 1035).
const MAX_HOST: usize = 253;

/// Where a server is, and whom to trust there: `stratum2+tcp://host:port/AUTHORITY_KEY`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PoolUrl {
    /// A host name or an address; of an IPv6 address without its brackets.
    pub host: String,
    /// The port, not 0.
    pub port: u16,
    /// The key that the server's certificate must be signed with; none to trust whoever answers.
    pub authority: Option<AuthorityPublicKey>,
}

/// A text that is no address of an SV2 server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUrl {
    /// It starts with something else.
    #[error("an SV2 address starts with {SCHEME}")]
    Scheme,
    /// It has no port, or none from 1 to 65535.
    #[error("an SV2 address needs a port from 1 to 65535, as in {SCHEME}host:port")]
    Port,
    /// Its host is empty, too long, or holds characters that hosts do not have.
    #[error("the host of an SV2 address is a name, an IPv4 address, or an IPv6 address in brackets")]
    Host,
    /// What follows the slash is no authority key.
    #[error("the authority key of an SV2 address: {0}")]
    Key(#[from] InvalidKey),
}

impl FromStr for PoolUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        let rest = match text.get(..SCHEME.len()) {
            Some(scheme) if scheme.eq_ignore_ascii_case(SCHEME) => &text[SCHEME.len()..],
            _ => return Err(InvalidUrl::Scheme),
        };
        let (address, key) = rest.split_once('/').unwrap_or((rest, ""));
        let authority = if key.is_empty() { None } else { Some(key.parse()?) };
        let (host, port) = address.rsplit_once(':').ok_or(InvalidUrl::Port)?;
        // `parse` alone would take a sign.
        let port = if port.starts_with('+') { None } else { port.parse().ok() };
        let port = port.filter(|port| *port != 0).ok_or(InvalidUrl::Port)?;
        Ok(PoolUrl { host: parse_host(host)?.to_owned(), port, authority })
    }
}

fn parse_host(host: &str) -> Result<&str, InvalidUrl> {
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return match address.parse::<core::net::Ipv6Addr>() {
            Ok(_) => Ok(address),
            Err(_) => Err(InvalidUrl::Host),
        };
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if host.is_empty() || host.len() > MAX_HOST || !host.bytes().all(allowed) {
        return Err(InvalidUrl::Host);
    }
    Ok(host)
}

impl fmt::Display for PoolUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PoolUrl { host, port, authority } = self;
        match host.contains(':') {
            true => write!(f, "{SCHEME}[{host}]:{port}")?,
            false => write!(f, "{SCHEME}{host}:{port}")?,
        }
        match authority {
            Some(key) => write!(f, "/{key}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "9bXiEd8boQVhq7WddEcERUL5tyyJVFYdU8th3HfbNXK3Yw6GRXh";

    #[test]
    fn addresses_are_read_and_written() {
        let text = format!("stratum2+tcp://thepool.com:34254/{KEY}");
        let url: PoolUrl = text.parse().expect("the specification's example");
        assert_eq!((url.host.as_str(), url.port), ("thepool.com", 34254));
        assert_eq!(url.authority.expect("a key").to_string(), KEY);
        assert_eq!(url.to_string(), text);
        for text in ["stratum2+tcp://127.0.0.1:1", "stratum2+tcp://[::1]:65535"] {
            let url: PoolUrl = text.parse().expect("an address");
            assert_eq!((url.authority, url.to_string().as_str()), (None, text));
        }
        let url: PoolUrl = "Stratum2+TCP://a_b-c.local:3336/".parse().expect("an address");
        assert_eq!(url.to_string(), "stratum2+tcp://a_b-c.local:3336");
    }

    #[test]
    fn wrong_addresses_say_what_is_wrong() {
        let fault = |text: &str| text.parse::<PoolUrl>().expect_err("no address");
        for text in
            ["", "pool:1", "stratum+tcp://pool:1", "stratum2+tcp:/pool:1", "stratum2+tcp:\u{20ac}//pool:1"]
        {
            assert_eq!(fault(text), InvalidUrl::Scheme, "{text}");
        }
        for text in ["pool", "pool:", "pool:0", "pool:65536", "pool:+1", "pool:x", "pool:-1", "[::1]"] {
            assert_eq!(fault(&format!("{SCHEME}{text}")), InvalidUrl::Port, "{text}");
        }
        let long = format!("{}:1", "a".repeat(254));
        for text in
            [":1", "a b:1", "user@pool:1", "::1:1", "[pool]:1", "[::1:1", "p\u{f6}ol:1", long.as_str()]
        {
            assert_eq!(fault(&format!("{SCHEME}{text}")), InvalidUrl::Host, "{text}");
        }
        assert_eq!(fault(&format!("{SCHEME}pool:1/{KEY}x")), InvalidUrl::Key(InvalidKey::Text));
        assert_eq!(fault(&format!("{SCHEME}pool:1/{KEY}/")), InvalidUrl::Key(InvalidKey::Text));
    }
}
