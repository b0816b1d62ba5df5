//! The PROXY protocol header, versions 1 and 2 (HAProxy, "The PROXY protocol"), with which a load balancer names
//! the miner behind a connection.
//!
//! This module never guesses whether a header is present: the specification forbids it, because a miner could
//! then name any source. Checksums, TLVs and addresses of other kinds than IPv4 and IPv6 are skipped.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest version 1 header, its line end included, as the specification works it out.
pub const MAX_V1_BYTES: usize = 107;

/// The longest version 2 header that is taken. The fixed part and two IPv6 addresses need 52 bytes; the rest is
/// room for the TLVs that load balancers of cloud providers add. A longer one closes the connection.
pub const MAX_V2_BYTES: usize = 16 + 1024;

const V1_SIGNATURE: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A whole header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// The miner's address; `None` when the load balancer speaks for itself (a health check) or does not know.
    pub source: Option<SocketAddr>,
    /// Bytes of the header; the miner's own follow.
    pub length: usize,
}

/// The bytes are no PROXY header, or one that is broken or too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no valid PROXY header")]
pub struct Invalid;

impl ProxyHeader {
    /// Reads a header at the start of `bytes`. `None` while it is incomplete.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, Invalid> {
        if begins_like(bytes, V2_SIGNATURE) {
            return v2(bytes);
        }
        if begins_like(bytes, V1_SIGNATURE) {
            return v1(bytes);
        }
        Err(Invalid)
    }
}

fn begins_like(bytes: &[u8], signature: &[u8]) -> bool {
    let known = bytes.len().min(signature.len());
    bytes[..known] == signature[..known]
}

fn v1(bytes: &[u8]) -> Result<Option<ProxyHeader>, Invalid> {
    let window = &bytes[..bytes.len().min(MAX_V1_BYTES)];
    let Some(end) = window.iter().position(|byte| *byte == b'\n') else {
        return if bytes.len() >= MAX_V1_BYTES { Err(Invalid) } else { Ok(None) };
    };
    let line = window[..end].strip_suffix(b"\r").ok_or(Invalid)?;
    let line = core::str::from_utf8(line).map_err(|_| Invalid)?;
    let mut words = line.split(' ').skip(1);
    let mut next = || words.next().ok_or(Invalid);
    let source = match next()? {
        "UNKNOWN" => None,
        family @ ("TCP4" | "TCP6") => {
            let address: IpAddr = next()?.parse().map_err(|_| Invalid)?;
            if address.is_ipv4() != (family == "TCP4") {
                return Err(Invalid);
            }
            next()?;
            Some(SocketAddr::new(address, next()?.parse().map_err(|_| Invalid)?))
        }
        _ => return Err(Invalid),
    };
    Ok(Some(ProxyHeader { source, length: end + 1 }))
}

fn v2(bytes: &[u8]) -> Result<Option<ProxyHeader>, Invalid> {
    let [version_and_command, family, high, low, ..] = bytes.get(V2_SIGNATURE.len()..).unwrap_or(&[]) else {
        return Ok(None);
    };
    let length = V2_SIGNATURE.len() + 4 + usize::from(u16::from_be_bytes([*high, *low]));
    if version_and_command >> 4 != 2 || length > MAX_V2_BYTES {
        return Err(Invalid);
    }
    let Some(addresses) = bytes.get(V2_SIGNATURE.len() + 4..length) else { return Ok(None) };
    let source = match (version_and_command & 15, family) {
        (0, _) => None,
        (1, 0x11) => Some(source_of::<4>(addresses)?),
        (1, 0x21) => Some(source_of::<16>(addresses)?),
        (1, _) => None,
        _ => return Err(Invalid),
    };
    Ok(Some(ProxyHeader { source, length }))
}

/// Source address, destination address, source port, destination port; `SIZE` bytes an address.
fn source_of<const SIZE: usize>(addresses: &[u8]) -> Result<SocketAddr, Invalid> {
    let (address, rest) = addresses.split_first_chunk::<SIZE>().ok_or(Invalid)?;
    let port = rest.get(SIZE..SIZE + 4).ok_or(Invalid)?;
    let address = match address.as_slice() {
        &[a, b, c, d] => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        long => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(long).map_err(|_| Invalid)?)),
    };
    Ok(SocketAddr::new(address, u16::from_be_bytes([port[0], port[1]])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2_bytes(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let length = (addresses.len() as u16).to_be_bytes();
        [V2_SIGNATURE, &[0x20 | command, family], &length, addresses].concat()
    }

    #[test]
    fn headers_of_both_versions() {
        let v4 = [192, 0, 2, 7, 198, 51, 100, 1, 0x30, 0x39, 0x0d, 0x05];
        let mut v6 = [0u8; 36 + 9];
        v6[15] = 1;
        v6[32..34].copy_from_slice(&[0x30, 0x39]);
        for (bytes, source) in [
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 12345 3333\r\n".to_vec(), Some("192.0.2.7:12345")),
            (b"PROXY TCP6 ::1 ::2 12345 3333\r\n".to_vec(), Some("[::1]:12345")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n".to_vec(), None),
            (v2_bytes(1, 0x11, &v4), Some("192.0.2.7:12345")),
            (v2_bytes(1, 0x21, &v6), Some("[::1]:12345")),
            (v2_bytes(0, 0, &[]), None),
            (v2_bytes(1, 0x31, &[1; 216]), None),
        ] {
            let source = source.map(|source| source.parse().expect("an address"));
            let header = ProxyHeader { source, length: bytes.len() };
            let with_more = [bytes.as_slice(), b"{}\n"].concat();
            assert_eq!(ProxyHeader::parse(&with_more), Ok(Some(header)));
            for cut in 0..bytes.len() {
                assert_eq!(ProxyHeader::parse(&bytes[..cut]), Ok(None), "cut at {cut}");
            }
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let long = [b"PROXY ".as_slice(), &[b'x'; MAX_V1_BYTES]].concat();
        for bytes in [
            b"{\"id\":1}".as_slice(),
            b"PROXY TCP4 ::1 ::2 1 2\r\n",
            b"PROXY TCP4 192.0.2.7\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 123456 3333\r\n",
            b"PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n",
            b"PROXY UNKNOWN\n",
            b"PROXY \xff\r\n",
            &long,
            &v2_bytes(2, 0x11, &[0; 12]),
            &v2_bytes(1, 0x11, &[0; 11]),
            &v2_bytes(1, 0x21, &[0; 12]),
            &[V2_SIGNATURE, &[0x31, 0x11, 0, 12], &[0; 12]].concat(),
            &[V2_SIGNATURE, &[0x21, 0x11, 0xff, 0xff]].concat(),
        ] {
            assert_eq!(ProxyHeader::parse(bytes), Err(Invalid), "{bytes:?}");
        }
    }
}
