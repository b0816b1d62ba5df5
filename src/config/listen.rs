//! Binds the listeners of a configuration: all of them, with every failure named by its key.
//!
//! It never accepts a connection.

use std::borrow::Cow;
use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

use super::problem::Problem;

/// Connections that the system keeps until we accept them. A farm's miners all dial at once when the power comes
/// back; the system lowers the number to its own limit (`net.core.somaxconn`). More of them dial again later.
pub const BACKLOG: i32 = 4096;

/// Which listener an address is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenKey {
    /// SV1 miners.
    Sv1,
    /// SV1 miners of the profile at this place in the list, counted from 0.
    Sv1Profile(usize),
    /// SV2 miners and proxies.
    Sv2,
    /// `/metrics` and `/healthz`.
    Metrics,
    /// The API.
    Api,
    /// Clients of a template provider.
    Templates,
    /// Job declaration clients of a pool.
    Declarations,
    /// Clients of a job declaration server that is a process of its own.
    JdServer,
}

impl ListenKey {
    /// The dotted key of its address.
    pub fn key(self) -> Cow<'static, str> {
        match self {
            ListenKey::Sv1 => "downstream.sv1_listen".into(),
            ListenKey::Sv1Profile(index) => format!("downstream.sv1_profile[{index}].listen").into(),
            ListenKey::Sv2 => "downstream.sv2_listen".into(),
            ListenKey::Metrics => "metrics.listen".into(),
            ListenKey::Api => "api.listen".into(),
            ListenKey::Templates => "template_provider.listen".into(),
            ListenKey::Declarations => "job_declaration.listen".into(),
            ListenKey::JdServer => "jd_server.listen".into(),
        }
    }
}

/// An address that a configuration names.
#[derive(Clone, Copy, Debug)]
pub struct ListenAddress {
    /// What listens there.
    pub of: ListenKey,
    /// Where. Port 0 lets the system choose one.
    pub address: SocketAddr,
    /// The line of its key, counted from 1.
    pub line: Option<usize>,
}

/// Bound and listening sockets in non-blocking mode, ready for `tokio::net::TcpListener::from_std`.
#[derive(Debug, Default)]
pub struct Listeners {
    /// For SV1 miners.
    pub sv1: Option<TcpListener>,
    /// For SV1 miners of profiles: one for each profile of the configuration, in the same order.
    pub sv1_profiles: Vec<TcpListener>,
    /// For SV2 miners and proxies.
    pub sv2: Option<TcpListener>,
    /// For `/metrics` and `/healthz`.
    pub metrics: Option<TcpListener>,
    /// For the API.
    pub api: Option<TcpListener>,
    /// For clients of a template provider.
    pub templates: Option<TcpListener>,
    /// For job declaration clients.
    pub declarations: Option<TcpListener>,
}

/// Binds every address. Tries all of them even when some fail, and then returns all failures.
pub fn bind_listeners(addresses: &[ListenAddress]) -> Result<Listeners, Vec<Problem>> {
    let mut listeners = Listeners::default();
    let mut problems = Vec::new();
    for ListenAddress { of, address, line } in addresses {
        match (bind(*address), of) {
            (Ok(listener), ListenKey::Sv1) => listeners.sv1 = Some(listener),
            (Ok(listener), ListenKey::Sv1Profile(_)) => listeners.sv1_profiles.push(listener),
            (Ok(listener), ListenKey::Sv2) => listeners.sv2 = Some(listener),
            (Ok(listener), ListenKey::Metrics) => listeners.metrics = Some(listener),
            (Ok(listener), ListenKey::Api) => listeners.api = Some(listener),
            (Ok(listener), ListenKey::Templates) => listeners.templates = Some(listener),
            (Ok(listener), ListenKey::Declarations | ListenKey::JdServer) => {
                listeners.declarations = Some(listener);
            }
            (Err(error), of) => problems.push(Problem {
                key: of.key().into_owned(),
                line: *line,
                what: format!("cannot listen on {address}: {}", in_words(&error)),
            }),
        }
    }
    if problems.is_empty() { Ok(listeners) } else { Err(problems) }
}

/// Binds one address with address reuse, so that a restart need not wait for the last connections of the
/// process before to be forgotten.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // On Windows the same option would let two processes share the port.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The usual failures without the system's numbers and capital letters.
fn in_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::AddrInUse => "the address is in use".to_owned(),
        io::ErrorKind::AddrNotAvailable => "this machine does not have the address".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listener_that_fails_is_named() {
        let holder = bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
        let taken = holder.local_addr().expect("bound");
        // 192.0.2.0/24 is for documentation (RFC 5737): no machine has it.
        let foreign = "192.0.2.1:3333".parse().expect("an address");
        let listen = |of, address| ListenAddress { of, address, line: Some(3) };
        let problems = bind_listeners(&[
            listen(ListenKey::Sv1, taken),
            listen(ListenKey::Sv2, "127.0.0.1:0".parse().expect("an address")),
            listen(ListenKey::Metrics, foreign),
        ])
        .expect_err("two cannot be bound");
        let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(keys, ["downstream.sv1_listen", "metrics.listen"]);
        assert!(problems[0].what.contains("in use"), "{}", problems[0]);
        assert_eq!(
            problems[1].what,
            "cannot listen on 192.0.2.1:3333: this machine does not have the address"
        );
    }
}
