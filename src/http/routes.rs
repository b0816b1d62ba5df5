//! Every path that is served beside the API, and what it takes to ask for it. The contract tests hold this list
//! against the OpenAPI document.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRef};
use axum::handler::Handler;
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get, post};
use tokio::sync::Semaphore;

use super::access::{Access, Gate, admit, check_token};
use super::problem::Problem;
use super::{Served, api, device_metrics, healthz, interop, live, metrics};
use crate::config::ApiConfig;

/// Bytes of a body: a power reading for each of some thousand devices.
pub(super) const MAX_BODY: usize = 1024 * 1024;

/// What the handlers of the API have.
#[derive(Clone)]
pub(super) struct ApiState {
    pub(super) served: Served,
    /// One for each stream that may be open.
    pub(super) streams: Arc<Semaphore>,
}

impl FromRef<ApiState> for Served {
    fn from_ref(state: &ApiState) -> Served {
        state.served.clone()
    }
}

/// Routes, and a list of them.
pub(super) struct Routes {
    router: Router<ApiState>,
    gate: Arc<Gate>,
    /// Method and path of each, as the OpenAPI document writes them.
    pub(super) list: Vec<(&'static str, &'static str)>,
}

impl Routes {
    fn get<H: Handler<T, ApiState>, T: 'static>(
        self,
        access: Access,
        path: &'static str,
        handler: H,
    ) -> Self {
        self.add("get", access, path, get(handler))
    }

    fn post<H: Handler<T, ApiState>, T: 'static>(
        self,
        access: Access,
        path: &'static str,
        handler: H,
    ) -> Self {
        self.add("post", access, path, post(handler))
    }

    fn add(
        mut self,
        method: &'static str,
        access: Access,
        path: &'static str,
        handler: MethodRouter<ApiState>,
    ) -> Self {
        let gate = (Arc::clone(&self.gate), access);
        self.router = self.router.route(path, handler.route_layer(from_fn_with_state(gate, check_token)));
        self.list.push((method, path));
        self
    }
}

/// All routes.
pub(super) fn routes(gate: Arc<Gate>) -> Routes {
    use Access::{Admin, Public, Read};
    let routes = Routes { router: Router::new(), gate, list: Vec::new() };
    routes
        .get(Read, "/metrics", metrics)
        .get(Read, "/metrics/devices", device_metrics)
        .get(Public, "/healthz", healthz)
        .get(Public, "/api/v1/", api::reference)
        .get(Public, "/api/v1/openapi.json", api::openapi)
        .get(Read, "/api/v1/fleet", api::fleet)
        .get(Read, "/api/v1/fleet/series", api::fleet_series)
        .get(Read, "/api/v1/devices", api::devices)
        .get(Read, "/api/v1/devices/{name}", api::device)
        .get(Read, "/api/v1/devices/{name}/series", api::device_series)
        .get(Read, "/api/v1/groups", api::groups)
        .get(Read, "/api/v1/groups/{name}/series", api::group_series)
        .get(Read, "/api/v1/upstreams", api::upstreams)
        .get(Read, "/api/v1/upstreams/{name}/series", api::upstream_series)
        .get(Read, "/api/v1/jobs", api::jobs)
        .get(Read, "/api/v1/rejects", api::rejects)
        .get(Read, "/api/v1/blocks", api::blocks)
        .get(Read, "/api/v1/events", api::events)
        .get(Read, "/api/v1/ledger", api::ledger)
        .get(Read, "/api/v1/live", live::live)
        .post(Admin, "/api/v1/power", api::power)
        .get(Public, "/api/v1/health", interop::health)
        .get(Read, "/api/v1/global", interop::global)
        .get(Read, "/api/v1/server", interop::server)
        .get(Read, "/api/v1/server/channels", interop::server_channels)
        .get(Read, "/api/v1/clients", interop::clients)
        .get(Read, "/api/v1/clients/{client_id}", interop::client)
        .get(Read, "/api/v1/clients/{client_id}/channels", interop::client_channels)
        .get(Read, "/api/v1/sv1/clients", interop::sv1_clients)
        .get(Read, "/api/v1/sv1/clients/{client_id}", interop::sv1_client)
        .get(Read, "/interop/miningos/stats", interop::miningos_stats)
        .get(Read, "/interop/miningos/workers", interop::miningos_workers)
        .get(Read, "/interop/miningos/transactions", interop::miningos_transactions)
}

/// The router of the API's listener.
pub(super) fn router(served: Served, config: &ApiConfig) -> Router {
    let gate = Arc::new(Gate::new(config, served.clock));
    let state = ApiState { served, streams: Arc::new(Semaphore::new(live::MAX_STREAMS)) };
    routes(Arc::clone(&gate))
        .router
        .fallback(async || {
            Problem::not_found("there is nothing at this path; /api/v1/ says what there is").into_response()
        })
        .method_not_allowed_fallback(async || Problem::wrong_method().into_response())
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn_with_state(gate, admit))
        .with_state(state)
}
