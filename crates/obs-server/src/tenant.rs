//! The tenant of a request.

use http::HeaderMap;
use obs_model::TenantId;

pub(crate) const TENANT_HEADER: &str = "x-scope-orgid";

/// Returns the tenant of the header, the default one without it, or why the header is refused.
pub(crate) fn tenant(headers: &HeaderMap) -> Result<TenantId, String> {
    match headers.get(TENANT_HEADER) {
        None => Ok(TenantId::default()),
        Some(v) => v
            .to_str()
            .map_err(|_| "tenant id is not text".to_owned())
            .and_then(|t| TenantId::new(t).map_err(|e| e.to_string())),
    }
}
