//! Errors as RFC 9457 has them: `application/problem+json`.
//!
//! A detail says what the asker can do about it. It never holds a token or a path of this machine.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::view::Unanswered;

/// One error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    status: StatusCode,
    /// The name of its kind, an anchor of the reference page.
    kind: &'static str,
    detail: String,
    retry_after: Option<Duration>,
}

#[derive(Serialize)]
struct Shape<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
}

impl Problem {
    fn new(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Self {
        Problem { status, kind, detail: detail.into(), retry_after: None }
    }

    /// The request makes no sense.
    pub(super) fn bad_request(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, "bad-request", detail)
    }

    /// No token, or one that nobody knows.
    pub(super) fn unauthorised() -> Self {
        let detail = "send a token of this server: \"Authorization: Bearer TOKEN\"";
        Problem::new(StatusCode::UNAUTHORIZED, "unauthorised", detail)
    }

    /// The token is good, but not for this.
    pub(super) fn forbidden(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::FORBIDDEN, "forbidden", detail)
    }

    /// There is no such thing.
    pub(super) fn not_found(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::NOT_FOUND, "not-found", detail)
    }

    /// The path is there, but not for this method.
    pub(super) fn wrong_method() -> Self {
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, "wrong-method", "this path has no such method")
    }

    /// The body or the query is too long.
    pub(super) fn too_long(status: StatusCode, detail: impl Into<String>) -> Self {
        Problem::new(status, "too-long", detail)
    }

    /// This address has asked too often.
    pub(super) fn too_many_requests(retry_after: Duration) -> Self {
        let detail = "this address has made more requests than api.requests_per_minute allows";
        let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", detail);
        Problem { retry_after: Some(retry_after), ..problem }
    }

    /// All streams are taken.
    pub(super) fn too_many_streams() -> Self {
        let detail = "as many streams are open as can be; close one or come back later";
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too-many-streams", detail);
        Problem { retry_after: Some(Duration::from_secs(10)), ..problem }
    }
}

impl From<Unanswered> for Problem {
    fn from(unanswered: Unanswered) -> Self {
        let (status, kind) = match unanswered {
            Unanswered::Closed => (StatusCode::SERVICE_UNAVAILABLE, "closed"),
            Unanswered::NoLedger => (StatusCode::NOT_IMPLEMENTED, "no-ledger"),
            Unanswered::Unknown(_) => (StatusCode::NOT_FOUND, "not-found"),
            Unanswered::Failed(_) => (StatusCode::INTERNAL_SERVER_ERROR, "ledger-failed"),
        };
        Problem::new(status, kind, unanswered.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let shape = Shape {
            r#type: format!("/api/v1/#problem-{}", self.kind),
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: &self.detail,
        };
        let body = serde_json::to_vec(&shape).expect("texts and a number are JSON");
        let mut response =
            (self.status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response();
        let headers = response.headers_mut();
        if let Some(after) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs_f64().ceil() as u64));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
