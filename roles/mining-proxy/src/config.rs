//! What an upstream must be told, and who a device is to it.
//!
//! This module never reads a file: the program fills the struct from its configuration.

use std::time::Duration;

use job_declarator::client::ClientConfig;
use stratum::UpstreamId;

/// The longest text that an SV2 message carries (STR0_255), in bytes.
pub const MAX_TEXT: usize = 255;

/// One entry of the list of upstreams. Never changes while the process runs.
#[derive(Clone, Debug)]
pub struct UpstreamConfig {
    /// Which entry.
    pub id: UpstreamId,
    /// Who we are to the pool: `account.farm`.
    pub user_identity: String,
    /// True: one upstream channel for all devices. False: one for each.
    pub aggregate: bool,
    /// Whether to send the worker names of devices that share a channel, where the upstream takes them (extension 2).
    pub forward_worker_names: bool,
    /// Who made this program (SV2 `SetupConnection.vendor`).
    pub vendor: String,
    /// What it is (SV2 `SetupConnection.hardware_version`).
    pub hardware_version: String,
    /// Its version (SV2 `SetupConnection.firmware`).
    pub firmware: String,
    /// How often miners get fresh work when the upstream sends none.
    pub refresh_interval: Duration,
    /// Set where the jobs are ours and are declared to the pool; then there is one channel for all devices.
    pub job_declaration: Option<ClientConfig>,
}

/// Where a connection leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl UpstreamConfig {
    /// Who a device is to the pool when it has a channel of its own: our identity, a dot, and the part of its
    /// worker name after the first dot, or all of it where there is no dot. Only visible ASCII characters of the
    /// name are kept, and the whole is cut to [`MAX_TEXT`] bytes. A name of which nothing is left is ours alone.
    pub fn device_identity(&self, worker_name: &str) -> String {
        let worker = worker_name.split_once('.').map_or(worker_name, |(_, worker)| worker);
        let worker: String = worker.chars().filter(char::is_ascii_graphic).take(MAX_TEXT).collect();
        let mut identity = self.user_identity.clone();
        if !worker.is_empty() {
            identity.push('.');
            identity.push_str(&worker);
        }
        cut(&identity).to_owned()
    }
}

/// The longest start of a text that an SV2 message carries.
pub(crate) fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(user_identity: &str) -> UpstreamConfig {
        UpstreamConfig {
            id: UpstreamId(1),
            user_identity: user_identity.to_owned(),
            aggregate: false,
            forward_worker_names: false,
            vendor: String::new(),
            hardware_version: String::new(),
            firmware: String::new(),
            refresh_interval: Duration::from_secs(20),
            job_declaration: None,
        }
    }

    #[test]
    fn a_device_is_named_by_what_follows_the_account() {
        let config = config("account.farm");
        assert_eq!(config.device_identity("someone.rig7"), "account.farm.rig7");
        assert_eq!(config.device_identity("someone.rack.7"), "account.farm.rack.7");
        assert_eq!(config.device_identity("rig7"), "account.farm.rig7");
        assert_eq!(config.device_identity("someone.r i\ng\u{7}7\u{e9}"), "account.farm.rig7");
        assert_eq!(config.device_identity("someone."), "account.farm");
        assert_eq!(config.device_identity(""), "account.farm");
    }

    #[test]
    fn an_identity_always_fits_its_field() {
        assert_eq!(config("account").device_identity(&"x".repeat(10_000)).len(), MAX_TEXT);
        assert_eq!(config(&"\u{e9}".repeat(200)).device_identity("x").len(), MAX_TEXT - 1);
    }
}
