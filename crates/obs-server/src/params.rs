//! Parameters from the query string and, for POST, a form body.

use axum::extract::{FromRequest, Request};
use axum::response::{IntoResponse, Response};
use http::{Method, StatusCode, header};
use obs_model::{TenantId, TimestampNs};
use obs_promql::duration::parse_api_ms;

/// Form bodies past which a request is refused, in bytes.
const FORM_BYTES_MAX: usize = 1 << 20;

/// All parameters of a request in order, its tenant, and whether it wants an answer that was not kept.
#[derive(Debug, Clone)]
pub(crate) struct Params {
    pairs: Vec<(String, String)>,
    pub(crate) tenant: TenantId,
    pub(crate) no_store: bool,
}

fn parse_pairs(text: &str) -> Vec<(String, String)> {
    serde_urlencoded::from_str(text).unwrap_or_default()
}

impl<S: Send + Sync> FromRequest<S> for Params {
    type Rejection = Response;

    async fn from_request(req: Request, _: &S) -> Result<Self, Response> {
        let refuse = |status: StatusCode, text: String| (status, text).into_response();
        let tenant =
            crate::tenant::tenant(req.headers()).map_err(|e| refuse(StatusCode::BAD_REQUEST, e))?;
        let control = req.headers().get_all(header::CACHE_CONTROL).iter();
        let mut control = control.filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
        let no_store = control.any(|v| v.trim().eq_ignore_ascii_case("no-store"));
        let mut pairs = parse_pairs(req.uri().query().unwrap_or_default());
        let is_form = req
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|v| v.to_str().ok())
            .is_some_and(|t| t.starts_with("application/x-www-form-urlencoded"));
        if req.method() == Method::POST && is_form {
            let body = axum::body::to_bytes(req.into_body(), FORM_BYTES_MAX).await;
            let body = body.map_err(|_| {
                refuse(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("form is longer than {FORM_BYTES_MAX} bytes"),
                )
            })?;
            pairs.extend(parse_pairs(&String::from_utf8_lossy(&body)));
        }
        Ok(Self { pairs, tenant, no_store })
    }
}

impl Params {
    /// Returns the first value of a parameter, unless it is empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(n, v)| n == name && !v.is_empty()).map(|(_, v)| v.as_str())
    }

    /// Returns all parameters in order.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(n, v)| (n.as_str(), v.as_str()))
    }

    /// Returns all values of a parameter.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Parses an integer parameter, or says which one is wrong.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str, default: T) -> Result<T, String> {
        match self.get(name) {
            None => Ok(default),
            Some(text) => text
                .parse()
                .map_err(|_| format!("invalid parameter {name:?}: cannot parse {text:?}")),
        }
    }
}

/// Parses a Prometheus time: Unix seconds with fraction, or RFC 3339. Milliseconds.
pub(crate) fn prometheus_time(text: &str) -> Option<i64> {
    if let Ok(seconds) = text.parse::<f64>() {
        let ms = (seconds * 1000.0).round();
        return (ms.is_finite() && ms.abs() < 9.2e15).then_some(ms as i64);
    }
    TimestampNs::parse_rfc3339(text).map(|t| t.to_millis().millis())
}

/// Parses a Loki time: nanoseconds (ten digits or fewer are seconds), fractional seconds or RFC
/// 3339.
pub(crate) fn loki_time(text: &str) -> Option<TimestampNs> {
    if let Ok(n) = text.parse::<i64>() {
        let is_seconds = text.trim_start_matches('-').len() <= 10;
        return if is_seconds {
            n.checked_mul(1_000_000_000).map(TimestampNs::from_nanos)
        } else {
            Some(TimestampNs::from_nanos(n))
        };
    }
    if let Ok(seconds) = text.parse::<f64>() {
        return (seconds.abs() < 9.2e9).then(|| TimestampNs::from_nanos((seconds * 1e9) as i64));
    }
    TimestampNs::parse_rfc3339(text)
}

/// Parses a step: a duration or seconds. Milliseconds.
pub(crate) fn step_ms(text: &str) -> Option<i64> {
    parse_api_ms(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_both_apis() {
        assert_eq!(prometheus_time("1609746000.5"), Some(1_609_746_000_500));
        assert_eq!(prometheus_time("2021-01-04T07:40:00Z"), Some(1_609_746_000_000));
        assert_eq!(prometheus_time("NaN"), None);
        assert_eq!(
            loki_time("1609746000"),
            Some(TimestampNs::from_nanos(1_609_746_000_000_000_000))
        );
        assert_eq!(
            loki_time("1609746000000000001"),
            Some(TimestampNs::from_nanos(1_609_746_000_000_000_001))
        );
        assert_eq!(loki_time("soon"), None);
    }
}
