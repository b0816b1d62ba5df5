//! How often one address may ask: a bucket for each that fills at a steady rate.
//!
//! Behind a lock that is held for some hundred nanoseconds at each request, and never for a share.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Addresses that have a bucket of their own, in a quarter of a megabyte. Full buckets are forgotten; when all are
/// in use, further addresses share one.
const MAX_ADDRESSES: usize = 4096;

/// The time in which a full bucket's worth of requests comes back.
const REFILL: Duration = Duration::from_secs(60);

/// The buckets of all addresses.
#[derive(Debug)]
pub(super) struct RateLimit {
    /// The time that one request costs.
    cost: Duration,
    /// For each address the time at which its bucket is full again.
    full_at: Mutex<HashMap<IpAddr, Duration>>,
}

impl RateLimit {
    pub(super) fn new(requests_per_minute: u32) -> Self {
        RateLimit { cost: REFILL / requests_per_minute.max(1), full_at: Mutex::default() }
    }

    /// Takes one request of `address` out of its bucket at the monotonic time `now`; if that is empty, says how long
    /// to wait.
    pub(super) fn take(&self, address: IpAddr, now: Duration) -> Result<(), Duration> {
        let mut buckets = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = key_of(address);
        if buckets.len() >= MAX_ADDRESSES && !buckets.contains_key(&key) {
            buckets.retain(|_, full_at| *full_at > now);
            if buckets.len() >= MAX_ADDRESSES {
                key = Ipv6Addr::UNSPECIFIED.into();
            }
        }
        let full_at = buckets.entry(key).or_default();
        let after = (*full_at).max(now) + self.cost;
        match after.checked_sub(now + REFILL) {
            None | Some(Duration::ZERO) => {
                *full_at = after;
                Ok(())
            }
            Some(wait) => Err(wait),
        }
    }
}

/// An IPv6 host has a network of 64 bits to choose addresses from.
fn key_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 1).into()
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(0x0a00_0000 + last).into()
    }

    #[test]
    fn a_bucket_empties_and_fills_again() {
        let limit = RateLimit::new(60);
        let at = Duration::from_secs;
        for _ in 0..60 {
            limit.take(address(1), at(100)).expect("the bucket was full");
        }
        assert_eq!(limit.take(address(1), at(100)), Err(at(1)));
        assert_eq!(limit.take(address(2), at(100)), Ok(()), "another address has its own");
        assert_eq!(limit.take(address(1), at(101)), Ok(()));
        assert_eq!(limit.take(address(1), at(101)), Err(at(1)));
    }

    #[test]
    fn more_addresses_than_buckets_share_one() {
        let limit = RateLimit::new(2);
        let now = Duration::from_secs(100);
        for last in 0..MAX_ADDRESSES as u32 {
            limit.take(address(last), now).expect("each has its own");
        }
        for _ in 0..2 {
            limit.take(address(1_000_000), now).expect("the shared one was full");
        }
        assert!(limit.take(address(2_000_000), now).is_err());
        let buckets = limit.full_at.lock().expect("nobody panicked").len();
        assert!(buckets <= MAX_ADDRESSES + 1, "{buckets}");
        limit.take(address(2_000_000), now + REFILL * 2).expect("the others are full and forgotten");
        assert_eq!(limit.full_at.lock().expect("nobody panicked").len(), 1);
    }

    #[test]
    fn a_host_cannot_hide_in_its_own_network() {
        let key = |text: &str| key_of(text.parse().expect("an address"));
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:1"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_eq!(key("::ffff:10.0.0.1"), key("10.0.0.1"));
    }
}
