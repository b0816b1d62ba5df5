//! Who may ask: tokens, rate limits, origins and the length of what is asked.
//!
//! A token is compared with all that are known, in a time that does not depend on any of them, and never logged.

use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use super::limit::RateLimit;
use super::listener::Peer;
use super::problem::Problem;
use crate::clock::Clock;
use crate::config::{ApiConfig, Tokens};

/// Bytes of a path and its query: room for the longest worker name with every letter escaped.
const MAX_URI: usize = 4096;

/// What a request may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Access {
    /// See what is no secret: the reference, and whether the service is well.
    Public,
    /// See the accounts.
    Read,
    /// Write power readings as well.
    Admin,
}

/// What requests are checked against.
#[derive(Debug)]
pub(super) struct Gate {
    read: Option<Tokens>,
    admin: Option<Tokens>,
    origins: Vec<HeaderValue>,
    limit: RateLimit,
    clock: Clock,
}

impl Gate {
    pub(super) fn new(config: &ApiConfig, clock: Clock) -> Self {
        let tokens = |tokens: &Option<(_, Tokens)>| tokens.as_ref().map(|(_, tokens)| tokens.clone());
        let origins = config.cors_origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
        Gate {
            read: tokens(&config.read_tokens),
            admin: tokens(&config.admin_tokens),
            origins: origins.collect(),
            limit: RateLimit::new(config.requests_per_minute),
            clock,
        }
    }

    /// Whether a request with these headers may do what takes `wanted`.
    fn check(&self, headers: &HeaderMap, wanted: Access) -> Result<(), Problem> {
        if wanted == Access::Public {
            return Ok(());
        }
        if self.read.is_none() && self.admin.is_none() {
            return check_without_token(headers, wanted);
        }
        let token = bearer(headers).ok_or_else(Problem::unauthorised)?;
        let hash = Sha256::digest(token);
        let is_admin = is_one_of(&self.admin, &hash);
        let may_read = is_one_of(&self.read, &hash) | is_admin;
        match (wanted, bool::from(is_admin), bool::from(may_read)) {
            (Access::Admin, true, _) | (Access::Read | Access::Public, _, true) => Ok(()),
            (_, _, false) => Err(Problem::unauthorised()),
            (Access::Admin, false, true) => {
                Err(Problem::forbidden("this takes a token of api.admin_token_file"))
            }
        }
    }
}

/// Without tokens only this machine can connect. A web page that runs on it must not read along by calling itself
/// by our address, and nobody may write.
fn check_without_token(headers: &HeaderMap, wanted: Access) -> Result<(), Problem> {
    if wanted == Access::Admin {
        return Err(Problem::forbidden("this takes a token, and api.admin_token_file is not set"));
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    if name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback()) {
        return Ok(());
    }
    Err(Problem::forbidden("without a token this server answers to 127.0.0.1, [::1] and localhost only"))
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

fn is_one_of(tokens: &Option<Tokens>, hash: &[u8]) -> Choice {
    let hashes = tokens.iter().flat_map(Tokens::hashes);
    hashes.fold(Choice::from(0), |found, known| found | known.as_slice().ct_eq(hash))
}

/// Refuses requests that may not do what their route takes.
pub(super) async fn check_token(
    State((gate, wanted)): State<(Arc<Gate>, Access)>,
    request: Request,
    next: Next,
) -> Response {
    match gate.check(request.headers(), wanted) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

/// Refuses what is too long or comes too often, before anything else looks at it, and answers browsers that ask
/// whether they may ask.
pub(super) async fn admit(
    State(gate): State<Arc<Gate>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let origin =
        request.headers().get(header::ORIGIN).filter(|origin| gate.origins.contains(origin)).cloned();
    let is_preflight = request.method() == Method::OPTIONS && origin.is_some();
    let mut response = match gate.limit.take(peer.address.ip(), gate.clock.now().monotonic) {
        Err(wait) => Problem::too_many_requests(wait).into_response(),
        Ok(()) if request.uri().path_and_query().is_some_and(|uri| uri.as_str().len() > MAX_URI) => {
            Problem::too_long(StatusCode::URI_TOO_LONG, format!("path and query may have {MAX_URI} bytes"))
                .into_response()
        }
        Ok(()) if is_preflight => StatusCode::NO_CONTENT.into_response(),
        Ok(()) => next.run(request).await,
    };
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::VARY, HeaderValue::from_static("Origin"));
        if is_preflight {
            let methods = HeaderValue::from_static("GET, POST");
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
            let allowed = HeaderValue::from_static("Authorization, Content-Type");
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
        }
    }
    response
}
