//! The messages that open and redirect a connection of any protocol, and extension 1.

use super::*;

/// The wire crates' messages, each under the name that it has here.
mod wire {
    pub(super) use stratum_core::common_messages_sv2::{
        ChannelEndpointChanged, Reconnect, SetupConnection, SetupConnectionError, SetupConnectionSuccess,
    };
    pub(super) use stratum_core::extensions_sv2::{
        RequestExtensions, RequestExtensionsError, RequestExtensionsSuccess,
    };
}

/// The longest host that a message carries (STR0_255), in bytes.
const MAX_HOST: usize = 255;

messages! {
    /// The first message of a connection (client to server, SV2 3.6.1).
    SetupConnection = "SetupConnection", 0, 0x00, false {
        /// The protocol that the client wants to speak.
        protocol: Protocol,
        /// The lowest version that the client speaks.
        min_version: u16,
        /// The highest version that the client speaks.
        max_version: u16,
        /// What the client requires: [`codes::setup_flags`] for the mining protocol.
        flags: u32,
        /// Host name or address that the client connected to; at most 255 bytes, like all texts here.
        endpoint_host: String,
        /// Port that the client connected to.
        endpoint_port: u16,
        /// Manufacturer or developer.
        vendor: String,
        /// Hardware or software package.
        hardware_version: String,
        /// Firmware.
        firmware: String,
        /// Unique identifier of the device; empty when the client gives no telemetry.
        device_id: String,
    }

    /// The connection is accepted (server to client, SV2 3.6.2).
    SetupConnectionSuccess = "SetupConnection.Success", 0, 0x01, false {
        /// The version that both sides speak from here on.
        used_version: u16,
        /// What the server requires: [`codes::success_flags`] for the mining protocol.
        flags: u32,
    }

    /// The connection is refused and will be closed (server to client, SV2 3.6.3).
    SetupConnectionError = "SetupConnection.Error", 0, 0x02, false {
        /// Every flag that the server does not support; 0 when flags were not the reason.
        flags: u32,
        /// One of [`codes::setup_connection`].
        error_code: String,
    }

    /// Another endpoint now serves the channel: state of extensions is void (server to client, SV2 3.6.4).
    ChannelEndpointChanged = "ChannelEndpointChanged", 0, 0x03, true {
        /// The channel.
        channel_id: ChannelId,
    }

    /// Go to another address of the same authority (server to client, SV2 3.6.5).
    Reconnect = "Reconnect", 0, 0x04, false {
        /// The host to go to; empty for the present one.
        new_host: String,
        /// The port to go to; 0 for the present one.
        new_port: u16,
    }

    /// Asks for extensions (client to server, extension 1).
    RequestExtensions = "RequestExtensions", 1, 0x00, false {
        /// Pairs the answer.
        request_id: ExtensionsRequestId,
        /// Extension types; at most 65,535.
        requested_extensions: Vec<u16>,
    }

    /// Extensions are on (server to client, extension 1).
    RequestExtensionsSuccess = "RequestExtensions.Success", 1, 0x01, false {
        /// From the request.
        request_id: ExtensionsRequestId,
        /// Those of the requested extensions that are on; at most 65,535.
        supported_extensions: Vec<u16>,
    }

    /// Extensions stay off (server to client, extension 1).
    RequestExtensionsError = "RequestExtensions.Error", 1, 0x02, false {
        /// From the request.
        request_id: ExtensionsRequestId,
        /// Those of the requested extensions that the server does not know; at most 65,535.
        unsupported_extensions: Vec<u16>,
        /// Those that the server insists on; at most 65,535.
        required_extensions: Vec<u16>,
    }
}

impl Reconnect {
    /// Where it leads a client that is connected to this host and port; `None` when the host can be neither a name nor
    /// an address, so that nobody tries to resolve it. Only the same authority may be trusted there (SV2 3.6.5).
    pub fn endpoint(&self, host: &str, port: u16) -> Option<(String, u16)> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
        if self.new_host.len() > MAX_HOST || !self.new_host.chars().all(allowed) {
            return None;
        }
        let host = if self.new_host.is_empty() { host } else { &self.new_host };
        let port = if self.new_port == 0 { port } else { self.new_port };
        Some((host.to_owned(), port))
    }
}
