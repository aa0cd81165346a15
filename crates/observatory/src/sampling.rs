//! The `sampling` section: a strategies file as Jaeger reads it, or a profile that is built in; and
//! traces that wait for their decision, over restarts.

use crate::config::ConfigError;
use crate::serve::wall_clock;
use anyhow::Context as _;
use obs_ingest::{Ingest, RawTail, Strategies, TailConfig};
use obs_model::{
    Budget, CallSelection, DeleteScope, LlmCall, SelectError, SelectSpans as _, Span,
    SpanSelection, TenantId, TimestampNs,
};
use obs_storage::Store;
use serde::Deserialize;
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawSampling {
    strategies_file: Option<PathBuf>,
    profile: Option<String>,
    calculation_interval_seconds: Option<u32>,
    tail: Option<RawTail>,
}

/// Which strategies hold; the file is read at start and at each reload.
#[derive(Debug, Clone, Default)]
pub(crate) struct SamplingSettings {
    file: Option<PathBuf>,
    profile: String,
    interval: Option<u32>,
    tail: Option<RawTail>,
}

impl SamplingSettings {
    pub(crate) fn read(raw: RawSampling, base: &Path) -> Result<Self, String> {
        let profile = raw.profile.unwrap_or_else(|| Strategies::PROFILES[0].to_owned());
        if !Strategies::PROFILES.contains(&profile.as_str()) {
            let known = Strategies::PROFILES.join(", ");
            return Err(format!("sampling.profile: {profile:?} is unknown; there are {known}"));
        }
        let settings = Self {
            file: raw.strategies_file.map(|f| base.join(f)),
            profile,
            interval: raw.calculation_interval_seconds,
            tail: raw.tail,
        };
        settings.tail(None)?;
        Ok(settings)
    }

    /// Returns the rules of tail sampling, if there are any: ours, or those of a collector's file.
    pub(crate) fn tail(&self, other: Option<TailConfig>) -> Result<Option<TailConfig>, String> {
        let read = |raw| TailConfig::read(raw).map_err(|e| format!("sampling.tail: {e}"));
        let own = self.tail.clone().map(read).transpose()?;
        match (own, other) {
            (Some(_), Some(_)) => {
                Err("sampling.tail: the collector's file samples too; keep one of them".into())
            }
            (own, other) => Ok(own.or(other)),
        }
    }

    /// Reads and checks the strategies.
    pub(crate) fn load(&self) -> Result<Strategies, ConfigError> {
        let own = |message| ConfigError { file: "sampling".into(), place: None, message };
        let strategies = self.strategies(&own)?;
        let Some(seconds) = self.interval else { return Ok(strategies) };
        let named = |e: String| own(format!("calculation_interval_seconds: {e}"));
        strategies.every(seconds).map_err(named)
    }

    fn strategies(&self, own: &dyn Fn(String) -> ConfigError) -> Result<Strategies, ConfigError> {
        let Some(file) = &self.file else {
            return Strategies::of_profile(&self.profile).map_err(own);
        };
        let fail = |message: String| ConfigError {
            file: file.display().to_string(),
            place: None,
            message,
        };
        let text =
            std::fs::read_to_string(file).map_err(|e| fail(format!("cannot be read: {e}")))?;
        Strategies::parse(&text).map_err(fail)
    }
}

/// Takes up the spans that were undecided when the server stopped, and the calls of their traces.
pub(crate) fn restore_undecided(
    store: &Store,
    ingest: &Ingest,
    config: Option<&TailConfig>,
) -> anyhow::Result<()> {
    let default = [TenantId::default()];
    let budget = Budget::new(i64::MAX, i64::MAX);
    // When sampling was switched off meanwhile, all of them are kept.
    for tenant in config.map_or(&default[..], |c| c.tenants()) {
        let mut spans = Vec::new();
        for name in Ingest::undecided_names(tenant) {
            store
                .select_spans(&name, &SpanSelection::ALL, &budget, &mut |s| {
                    spans.push((**s).clone());
                    ControlFlow::Continue(())
                })
                .context("failed to read undecided spans")?;
        }
        if spans.is_empty() {
            continue;
        }
        tracing::info!(%tenant, spans = spans.len(), "undecided spans are sampled again");
        let calls = calls_of(store, tenant, &spans, &budget);
        let calls = calls.context("failed to read the calls of undecided spans")?;
        ingest.restore_undecided(tenant, spans, &calls, wall_clock());
    }
    Ok(())
}

/// Returns the calls that are stored of the traces of some spans.
fn calls_of(
    store: &Store,
    tenant: &TenantId,
    spans: &[Span],
    budget: &Budget,
) -> Result<Vec<Arc<LlmCall>>, SelectError> {
    let starts = || spans.iter().map(|s| s.start.nanos());
    let traces: HashSet<_> = spans.iter().map(|s| s.trace_id).collect();
    let end = starts().max().map_or(i64::MAX, |t| t.saturating_add(1));
    let selection = CallSelection {
        start: TimestampNs::from_nanos(starts().min().unwrap_or(i64::MIN)),
        end: TimestampNs::from_nanos(end),
        trace_id: None,
        revisions_only: false,
    };
    let mut out = Vec::new();
    store.current_calls(tenant, &selection, budget, &mut |c| {
        if traces.contains(&c.trace_id) {
            out.push(c.clone());
        }
        ControlFlow::Continue(())
    })?;
    Ok(out)
}

/// Decides traces that are complete, and deletes what is decided from where it waited.
pub(crate) async fn decide(store: &Store, ingest: &Ingest) {
    match ingest.decide(wall_clock().to_millis()).await {
        Ok(done) => {
            for name in done {
                if let Err(e) = store.delete(&name, DeleteScope::Tenant).await {
                    tracing::warn!(%name, error = e, "decided spans are deleted later");
                }
            }
        }
        Err(e) => {
            tracing::warn!(error = %e, "decided traces were not stored; they are tried again")
        }
    }
}
