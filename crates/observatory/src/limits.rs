//! The `limits` section of the configuration: of requests, records, series, queries and memory.

use crate::config::duration;
use crate::memory;
use obs_ingest::{Limits, TenantLimits};
use obs_model::TenantId;
use obs_server::ServerLimits;
use obs_storage::StoreConfig;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawLimits {
    query_timeout: Option<String>,
    query_samples: Option<i64>,
    query_bytes: Option<i64>,
    query_concurrency: Option<usize>,
    results_cache_bytes: Option<u64>,
    memory_bytes: Option<u64>,
    series: Option<usize>,
    series_per_tenant: Option<usize>,
    body_bytes: Option<usize>,
    decompressed_bytes: Option<usize>,
    labels_per_series: Option<usize>,
    label_name_bytes: Option<usize>,
    label_value_bytes: Option<usize>,
    log_line_bytes: Option<usize>,
    attributes: Option<usize>,
    future: Option<String>,
    tenants: BTreeMap<String, RawTenant>,
}

/// What a tenant can have of its own.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTenant {
    series: Option<usize>,
    body_bytes: Option<usize>,
    decompressed_bytes: Option<usize>,
    labels_per_series: Option<usize>,
    label_name_bytes: Option<usize>,
    label_value_bytes: Option<usize>,
    log_line_bytes: Option<usize>,
    attributes: Option<usize>,
    future: Option<String>,
}

/// Returns limits of records: those given, and those of `base` for the rest.
fn of_records(place: &str, r: &RawTenant, base: &Limits) -> Result<Limits, String> {
    let future_ns = match &r.future {
        None => base.future_ns,
        Some(text) => duration(text)
            .and_then(|d| i64::try_from(d.as_nanos()).ok())
            .ok_or_else(|| format!("{place}future: {text:?} is no duration; write 10m or 1h"))?,
    };
    Ok(Limits {
        labels_max: r.labels_per_series.unwrap_or(base.labels_max),
        label_name_bytes_max: r.label_name_bytes.unwrap_or(base.label_name_bytes_max),
        label_value_bytes_max: r.label_value_bytes.unwrap_or(base.label_value_bytes_max),
        log_line_bytes_max: r.log_line_bytes.unwrap_or(base.log_line_bytes_max),
        attributes_max: r.attributes.unwrap_or(base.attributes_max),
        future_ns,
        ..*base
    })
}

/// Returns the limits of requests and of records; those of the store are set in `store`.
pub(crate) fn read(
    raw: RawLimits,
    store: &mut StoreConfig,
) -> Result<(ServerLimits, TenantLimits), String> {
    let d = ServerLimits::default();
    let query_timeout = match &raw.query_timeout {
        Some(text) => duration(text).ok_or_else(|| {
            format!("limits.query_timeout: {text:?} is no duration; write 30s or 2m")
        })?,
        None => d.query_timeout,
    };
    let mut server = ServerLimits {
        body_bytes_max: raw.body_bytes.unwrap_or(d.body_bytes_max),
        decompressed_bytes_max: raw.decompressed_bytes.unwrap_or(d.decompressed_bytes_max),
        query_timeout,
        query_samples_max: raw.query_samples.unwrap_or(d.query_samples_max),
        query_bytes_max: raw.query_bytes.unwrap_or(d.query_bytes_max),
        query_concurrency: raw.query_concurrency.unwrap_or(d.query_concurrency).max(1),
        ..d
    };
    store.memory = Arc::new(memory::divide(raw.memory_bytes, &mut server));
    server.results_cache_bytes =
        raw.results_cache_bytes.unwrap_or_else(|| memory::for_results(&store.memory));
    store.replay_bytes_max = memory::for_replay(&store.memory).max(store.head_bytes_max);
    store.series_max = raw.series.unwrap_or(store.series_max);
    store.tenant_series_max = raw.series_per_tenant.unwrap_or(store.tenant_series_max);
    let general = RawTenant {
        labels_per_series: raw.labels_per_series,
        label_name_bytes: raw.label_name_bytes,
        label_value_bytes: raw.label_value_bytes,
        log_line_bytes: raw.log_line_bytes,
        attributes: raw.attributes,
        future: raw.future,
        ..RawTenant::default()
    };
    let mut records = TenantLimits::from(of_records("limits.", &general, &Limits::default())?);
    for (name, own) in raw.tenants {
        let place = format!("limits.tenants.{name}.");
        let tenant = TenantId::new(&name).map_err(|e| format!("{place} {e}"))?;
        records.own.insert(tenant.clone(), of_records(&place, &own, &records.all)?);
        if let Some(series) = own.series {
            store.own_series_max.insert(tenant.clone(), series);
        }
        if own.body_bytes.or(own.decompressed_bytes).is_some() {
            let bytes = (
                own.body_bytes.unwrap_or(server.body_bytes_max),
                own.decompressed_bytes.unwrap_or(server.decompressed_bytes_max),
            );
            server.own_bytes_max.insert(tenant, bytes);
        }
    }
    Ok((server, records))
}
