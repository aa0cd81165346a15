//! Drift checks: on a schedule and on demand, their results as series, incidents kept durably.

use crate::derive::{Family, metadata};
use crate::pipeline::Ingest;
use crate::purses::PurseError;
use obs_llm::drift::{self, Accuracy, Drift, Sample};
use obs_llm::{SCORE_NAME, Scored, Verdicts};
use obs_model::{
    Budget, CallSelection, DAY_NS, Direction, KeepState, Labels, LabelsBuilder, LogSelection,
    METRIC_NAME, MatchOp, Matcher, MetricKind, MetricMetadata, SelectError, SelectLogs,
    SelectSpans, Series, StateChange, TenantId, TimestampMs, TimestampNs,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const SPACE: &str = "drift_incidents";
/// The scope of all calls of a model.
const EVERYWHERE: &str = "global";
/// Model and scope pairs that are checked, the busiest first; and calls kept of each.
const GROUPS_MAX: usize = 500;
const SAMPLES_MAX: usize = drift::CURRENT_CALLS + drift::BASELINE_CALLS;
/// Scores that one check looks at, the newest, and ratings kept of each group.
const SCORES_MAX: usize = 200_000;
/// How long after a call of a pinned baseline its scores are looked for, ns.
const SCORED_WITHIN: i64 = 7 * DAY_NS;

/// What is compared with what.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriftAsk {
    /// One model alone.
    #[serde(default)]
    pub model: String,
    /// How far back calls are looked for.
    #[serde(default)]
    pub window_days: u32,
    /// A pinned baseline: calls from here …
    #[serde(default)]
    pub baseline_from: String,
    /// … to here; without it, the calls before the latest.
    #[serde(default)]
    pub baseline_to: String,
}

/// One check's outcome.
#[derive(Debug, Clone)]
pub struct Checked {
    pub model: String,
    /// `global`, or `project=NAME`.
    pub scope: String,
    pub at: TimestampNs,
    /// `None` with too few calls.
    pub drift: Option<Drift>,
    /// What people's ratings say; `None` with too few of them.
    pub accuracy: Option<Accuracy>,
    pub calls: usize,
}

impl Checked {
    /// Returns the worse of what calls and ratings say, or `skipped` with too few of either.
    pub fn status(&self) -> &'static str {
        let calls = self.drift.as_ref().map(Drift::status);
        let found = [calls, self.accuracy.as_ref().map(Accuracy::status)];
        let worst = |s: &&str| found.contains(&Some(*s));
        ["critical", "warning", "normal"].into_iter().find(worst).unwrap_or("skipped")
    }

    /// Returns what drifted, in words.
    fn summary(&self) -> String {
        let calls = self.drift.as_ref().map(summary).filter(|s| !s.is_empty());
        let ratings = self.accuracy.filter(|a| a.status() != "normal").map(|a| {
            format!("accuracy ({:.0} % to {:.0} %)", a.baseline * 100.0, a.current * 100.0)
        });
        calls.into_iter().chain(ratings).collect::<Vec<_>>().join(", ")
    }

    fn score(&self) -> f64 {
        let lost = self.accuracy.map_or(0.0, |a| a.drop().max(0.0));
        self.drift.as_ref().map_or(lost, |d| d.score)
    }
}

/// A drift that lasts until a check finds it gone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    pub id: String,
    /// `open` or `resolved`.
    pub status: String,
    pub severity: String,
    pub model: String,
    pub scope: String,
    pub score: f64,
    pub summary: String,
    pub opened_at: String,
    pub updated_at: String,
    pub resolved_at: String,
}

#[derive(Debug, Default)]
struct State {
    /// The latest outcome by tenant, model and scope.
    latest: BTreeMap<(TenantId, String, String), Checked>,
    checks: BTreeMap<(TenantId, String, &'static str), u64>,
    detected: BTreeMap<(TenantId, &'static str), u64>,
    took: BTreeMap<TenantId, Took>,
}

/// Bounds of `drift_detection_duration_seconds`.
const TOOK_BOUNDS: [f64; 5] = [1.0, 5.0, 10.0, 30.0, 60.0];

/// How long checks took.
#[derive(Debug, Default)]
struct Took {
    /// By bound, cumulative.
    buckets: [u64; TOOK_BOUNDS.len()],
    count: u64,
    seconds: f64,
}

impl Took {
    fn observe(&mut self, d: Duration) {
        let seconds = d.as_secs_f64();
        for (n, bound) in self.buckets.iter_mut().zip(TOOK_BOUNDS) {
            *n += u64::from(seconds <= bound);
        }
        self.count += 1;
        self.seconds += seconds;
    }
}

/// The drift checks of all tenants. Clone it freely.
#[derive(Debug, Clone)]
pub struct Drifts {
    state: Arc<Mutex<State>>,
    control: Arc<dyn KeepState>,
    ingest: Ingest,
}

impl Drifts {
    pub fn new(control: Arc<dyn KeepState>, ingest: Ingest) -> Self {
        Self { state: Arc::default(), control, ingest }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the tenants to check on schedule: the default one, and those with calls of late.
    pub fn tenants(&self) -> BTreeSet<TenantId> {
        let mut all = self.ingest.tenants_with_calls();
        all.insert(TenantId::default());
        all
    }

    /// Compares every model's latest calls with those before them, over everything and by project.
    /// Returns the outcomes and what changes about incidents, to be made durable by
    /// [`Self::keep`].
    ///
    /// # Errors
    /// When the ask is not valid, or the calls cannot be read.
    pub fn check<S: SelectSpans + SelectLogs + ?Sized>(
        &self,
        tenant: &TenantId,
        source: &S,
        ask: &DriftAsk,
        now: TimestampNs,
    ) -> Result<(Vec<Checked>, Vec<Incident>), PurseError> {
        let began = Instant::now();
        let days = if ask.window_days == 0 { 14 } else { ask.window_days };
        if days > 366 {
            return Err(PurseError::Invalid("window_days is 1 to 366".into()));
        }
        let time = |text: &str| {
            let at = TimestampNs::parse_day(text).or_else(|| TimestampNs::parse_rfc3339(text));
            at.ok_or_else(|| PurseError::Invalid(format!("{text:?} is not a time")))
        };
        let pinned = match (ask.baseline_from.as_str(), ask.baseline_to.as_str()) {
            ("", "") => None,
            (from, to) => Some((time(from)?, time(to)?)),
        };
        let start = TimestampNs::from_nanos(now.nanos() - i64::from(days) * DAY_NS);
        let mut current = read(source, tenant, (start, now), &ask.model)?;
        let mut reference = match pinned {
            None => BTreeMap::new(),
            Some(range) => read(source, tenant, range, &ask.model)?,
        };
        let mut keys: Vec<(String, String)> = current.keys().cloned().collect();
        keys.sort_by_key(|k| std::cmp::Reverse(current.get(k).map_or(0, |g| g.samples.len())));
        keys.truncate(GROUPS_MAX);
        let mut out = Vec::new();
        // Ratings are few: one half of the window is compared with the other.
        let half = TimestampNs::from_nanos(now.nanos() - i64::from(days) * DAY_NS / 2);
        for key in keys {
            let Some(Group { mut samples, ratings }) = current.remove(&key) else { continue };
            let calls = samples.len();
            let good = |list: &[(TimestampNs, bool)], from: TimestampNs, to: TimestampNs| {
                let inside = list.iter().filter(|(at, _)| (from..to).contains(at));
                inside.map(|(_, good)| *good).collect::<Vec<bool>>()
            };
            let latest = TimestampNs::from_nanos(i64::MAX);
            let (found, accuracy) = match pinned {
                None => (
                    drift::latest(&mut samples),
                    Accuracy::of(&good(&ratings, start, half), &good(&ratings, half, latest)),
                ),
                Some((from, _)) => {
                    samples.sort_by_key(|s| s.time);
                    let cut = samples.len().saturating_sub(drift::CURRENT_CALLS);
                    let before = reference.remove(&key).unwrap_or_default();
                    let found = samples.get(cut..);
                    (
                        found.and_then(|now| drift::compare(&before.samples, now)),
                        Accuracy::of(
                            &good(&before.ratings, from, latest),
                            &good(&ratings, start, latest),
                        ),
                    )
                }
            };
            let (model, scope) = key;
            out.push(Checked { model, scope, at: now, drift: found, accuracy, calls });
        }
        let incidents = self.note(tenant, &out);
        self.lock().took.entry(tenant.clone()).or_default().observe(began.elapsed());
        Ok((out, incidents))
    }

    /// Remembers outcomes; returns the incidents that begin, change or end with them.
    fn note(&self, tenant: &TenantId, outcomes: &[Checked]) -> Vec<Incident> {
        let open: Vec<Incident> =
            self.incidents(tenant).into_iter().filter(|i| i.status == "open").collect();
        let mut state = self.lock();
        let mut changed = Vec::new();
        for c in outcomes {
            let status = c.status();
            *state.checks.entry((tenant.clone(), c.model.clone(), status)).or_default() += 1;
            let mine = open.iter().find(|i| i.model == c.model && i.scope == c.scope);
            if status != "skipped" {
                let at = c.at.to_string();
                let drifted = status != "normal";
                match (mine, drifted) {
                    (None, true) => {
                        *state.detected.entry((tenant.clone(), status)).or_default() += 1;
                        changed.push(Incident {
                            id: format!("{:020}-{:x}", c.at.nanos(), changed.len()),
                            status: "open".into(),
                            severity: status.into(),
                            model: c.model.clone(),
                            scope: c.scope.clone(),
                            score: c.score(),
                            summary: c.summary(),
                            opened_at: at.clone(),
                            updated_at: at,
                            resolved_at: String::new(),
                        });
                    }
                    (Some(i), true) => changed.push(Incident {
                        severity: status.into(),
                        score: c.score(),
                        summary: c.summary(),
                        updated_at: at,
                        ..i.clone()
                    }),
                    (Some(i), false) => changed.push(Incident {
                        status: "resolved".into(),
                        updated_at: at.clone(),
                        resolved_at: at,
                        ..i.clone()
                    }),
                    (None, false) => {}
                }
            }
            let key = (tenant.clone(), c.model.clone(), c.scope.clone());
            state.latest.insert(key, c.clone());
        }
        changed
    }

    /// Makes incidents durable.
    ///
    /// # Errors
    /// When they cannot be kept.
    pub async fn keep(
        &self,
        tenant: &TenantId,
        incidents: Vec<Incident>,
    ) -> Result<(), PurseError> {
        let change = |i: &Incident| {
            let value = serde_json::to_vec(i).map_err(|e| PurseError::Invalid(e.to_string()))?;
            let key = format!("{tenant}/{}", i.id);
            Ok(StateChange { space: SPACE.into(), key, value: Some(value) })
        };
        let changes: Vec<StateChange> =
            incidents.iter().map(change).collect::<Result<_, PurseError>>()?;
        if !changes.is_empty() {
            self.control.put(changes).await?;
        }
        Ok(())
    }

    /// Returns a tenant's incidents, the newest first.
    pub fn incidents(&self, tenant: &TenantId) -> Vec<Incident> {
        let prefix = format!("{tenant}/");
        let all = self.control.list(SPACE);
        let mine = all.iter().filter(|(k, _)| k.starts_with(&prefix));
        let mut out: Vec<Incident> =
            mine.filter_map(|(_, v)| serde_json::from_slice(v).ok()).collect();
        out.sort_by(|a, b| b.id.cmp(&a.id));
        out
    }

    /// Returns the latest outcome of each model and scope.
    pub fn latest(&self, tenant: &TenantId) -> Vec<Checked> {
        let state = self.lock();
        state.latest.iter().filter(|(k, _)| k.0 == *tenant).map(|(_, c)| c.clone()).collect()
    }

    /// Returns the series of all checks, by tenant.
    pub fn series(&self, now: TimestampMs) -> Vec<(TenantId, Vec<Series>, Vec<MetricMetadata>)> {
        let state = self.lock();
        let mut out: BTreeMap<TenantId, Vec<Series>> = BTreeMap::new();
        let mut add = |tenant: &TenantId, name: &str, labels: &[(&str, &str)], value: f64| {
            let mut b = LabelsBuilder::default();
            b.set(METRIC_NAME, name);
            for (n, v) in labels {
                b.set(n, v);
            }
            let labels: Labels = b.build();
            let samples = vec![obs_model::Sample::float(now.millis(), value)];
            out.entry(tenant.clone()).or_default().push(Series { labels, samples });
        };
        for ((tenant, model, scope), c) in &state.latest {
            let base = [("model", model.as_str()), ("scope", scope.as_str())];
            if let Some(a) = &c.accuracy {
                add(tenant, "drift_baseline_accuracy", &base, a.baseline);
                add(tenant, "drift_current_accuracy", &base, a.current);
            }
            let Some(d) = &c.drift else { continue };
            let combined = drift::combined(d, c.accuracy.as_ref());
            add(tenant, "drift_combined_score", &base, combined);
            add(tenant, "drift_score", &base, d.score);
            for f in &d.features {
                let labels = [base[0], base[1], ("feature", f.name.as_str())];
                add(tenant, "drift_psi", &labels, f.psi_corrected);
                add(tenant, "drift_kl_divergence", &labels, f.kl);
            }
            let share: f64 = d.served_anew.iter().map(|(_, s)| s).sum();
            add(tenant, "drift_served_anew_ratio", &base, share);
        }
        for ((tenant, model, status), n) in &state.checks {
            let labels = [("model", model.as_str()), ("status", *status)];
            add(tenant, "drift_checks_total", &labels, *n as f64);
        }
        for ((tenant, severity), n) in &state.detected {
            add(tenant, "drift_detected_total", &[("severity", severity)], *n as f64);
        }
        for (tenant, took) in &state.took {
            let name = "drift_detection_duration_seconds";
            for (bound, n) in TOOK_BOUNDS.iter().zip(took.buckets) {
                add(tenant, &format!("{name}_bucket"), &[("le", &bound.to_string())], n as f64);
            }
            add(tenant, &format!("{name}_bucket"), &[("le", "+Inf")], took.count as f64);
            add(tenant, &format!("{name}_count"), &[], took.count as f64);
            add(tenant, &format!("{name}_sum"), &[], took.seconds);
        }
        out.into_iter().map(|(t, s)| (t, s, metadata(&FAMILIES))).collect()
    }
}

fn summary(d: &Drift) -> String {
    let moved = d.features.iter().filter(|f| f.psi_corrected >= drift::WARNING);
    let names: Vec<String> = moved
        .map(|f| {
            let top = f.top_bins.first();
            let top = top.map_or_else(String::new, |(bin, before, now)| {
                format!(" ({bin}: {:.0} % to {:.0} %)", before * 100.0, now * 100.0)
            });
            format!("{}{top}", f.name)
        })
        .collect();
    names.join(", ")
}

const FAMILIES: [Family; 10] = [
    ("drift_score", MetricKind::Gauge, "Corrected PSI of the feature that moved most."),
    ("drift_psi", MetricKind::Gauge, "Corrected population stability index of a feature."),
    ("drift_kl_divergence", MetricKind::Gauge, "Divergence of the current calls, nats."),
    (
        "drift_served_anew_ratio",
        MetricKind::Gauge,
        "Share of calls answered by a model or fingerprint not seen before.",
    ),
    ("drift_checks_total", MetricKind::Counter, "Checks by outcome."),
    ("drift_detected_total", MetricKind::Counter, "Incidents that began."),
    (
        "drift_combined_score",
        MetricKind::Gauge,
        "Mean of divergence over 0.1, index over 0.2 and lost accuracy over 0.25.",
    ),
    ("drift_baseline_accuracy", MetricKind::Gauge, "Share of good ratings before."),
    ("drift_current_accuracy", MetricKind::Gauge, "Share of good ratings now."),
    ("drift_detection_duration_seconds", MetricKind::Histogram, "How long checks took."),
];

/// The calls of one model and scope.
#[derive(Debug, Default)]
struct Group {
    samples: Vec<Sample>,
    ratings: Vec<(TimestampNs, bool)>,
}

type Groups = BTreeMap<(String, String), Group>;

/// Reads what was said of the calls of a range.
fn verdicts<S: SelectLogs + ?Sized>(
    source: &S,
    tenant: &TenantId,
    range: (TimestampNs, TimestampNs),
) -> Result<Verdicts, PurseError> {
    let named = Matcher::new(SCORE_NAME, MatchOp::NotEqual, "")
        .map_err(|e| SelectError::TooMuch(e.to_string()))?;
    let matchers = [named];
    let selection = LogSelection {
        matchers: &matchers,
        start: range.0,
        end: range.1.add_nanos(SCORED_WITHIN),
        direction: Direction::Backward,
        trace_id: None,
        needles: &[],
    };
    let mut scores = Vec::new();
    let budget = Budget::new(i64::MAX, i64::MAX);
    source.select_logs(tenant, &selection, &budget, &mut |r| {
        scores.extend(Scored::read(r));
        if scores.len() < SCORES_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(Verdicts::of(scores))
}

/// Reads the calls of a range by requested model and scope, the latest of each.
fn read<S: SelectSpans + SelectLogs + ?Sized>(
    source: &S,
    tenant: &TenantId,
    range: (TimestampNs, TimestampNs),
    model: &str,
) -> Result<Groups, PurseError> {
    let selection =
        CallSelection { start: range.0, end: range.1, trace_id: None, revisions_only: false };
    let mut out = Groups::new();
    let mut verdicts = verdicts(source, tenant, range)?;
    let budget = Budget::new(i64::MAX, i64::MAX);
    source.current_calls(tenant, &selection, &budget, &mut |c| {
        let asked = if c.request_model.is_empty() { c.model() } else { &c.request_model };
        if c.is_repeated() || asked.is_empty() || (!model.is_empty() && asked != model) {
            return ControlFlow::Continue(());
        }
        let said = verdicts.take(c);
        let project = (!c.project.is_empty()).then(|| format!("project={}", c.project));
        for scope in [Some(EVERYWHERE.to_owned()), project].into_iter().flatten() {
            let key = (asked.to_owned(), scope);
            if out.len() >= GROUPS_MAX * 4 && !out.contains_key(&key) {
                continue;
            }
            let group = out.entry(key).or_default();
            if group.ratings.len() < SCORES_MAX {
                group.ratings.extend(said.iter().flat_map(|s| &s.ratings));
            }
            let list = &mut group.samples;
            list.push(Sample::of(c, said.as_ref()));
            if list.len() >= SAMPLES_MAX * 2 {
                list.sort_by_key(|s| std::cmp::Reverse(s.time));
                list.truncate(SAMPLES_MAX);
            }
        }
        ControlFlow::Continue(())
    })?;
    Ok(out)
}
