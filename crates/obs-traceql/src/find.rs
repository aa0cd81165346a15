//! Search: traces whose spans satisfy a query, the latest first.

use crate::ast::Field;
use crate::eval::Env as _;
use crate::plan::{Plan, Row};
use crate::trace::{At, Kept, Spanset, Trace, run};
use crate::{QueryError, TraceQl};
use foldhash::HashMap;
use obs_model::{
    Budget, FieldValue, SelectError, SelectSpans, SpanField, SpanId, SpanRow, SpanScan, StatusCode,
    TenantId, TimestampNs, TraceId, VisitSpans,
};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// Where and how much to search.
#[derive(Debug, Clone, Copy)]
pub struct SearchRange {
    /// Spans that start in `[start, end)`.
    pub start: TimestampNs,
    pub end: TimestampNs,
    /// Traces.
    pub limit: usize,
    /// Spans shown of each set.
    pub spans_per_set: usize,
}

/// A trace that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    pub id: TraceId,
    /// Of the span without parent; none while it has not come.
    pub root: Option<(String, String)>,
    pub start: TimestampNs,
    pub duration_ns: i64,
    pub sets: Vec<FoundSet>,
    /// Spans, and those with an error, by service.
    pub services: BTreeMap<String, (u32, u32)>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct FoundSet {
    pub spans: Vec<FoundSpan>,
    /// Spans in the set, shown or not.
    pub matched: usize,
    /// What stages computed: `count()`, `by(…)`.
    pub attributes: Vec<(String, FieldValue<'static>)>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct FoundSpan {
    pub id: SpanId,
    /// When the query asks for names.
    pub name: Option<String>,
    pub start: TimestampNs,
    pub duration_ns: i64,
    /// What the query asks for.
    pub attributes: Vec<(String, FieldValue<'static>)>,
}

/// Traces put together at once.
const AT_ONCE: usize = 64;
/// Traces with a gap that are looked at again whole.
const GAPS_MAX: usize = 512;

/// Latest span of each trace, no more than are wanted.
#[derive(Default)]
pub(crate) struct Latest {
    of: HashMap<TraceId, i64>,
}

impl Latest {
    pub(crate) fn add(&mut self, id: TraceId, start: i64) {
        let at = self.of.entry(id).or_insert(start);
        *at = (*at).max(start);
    }

    /// Whether spans at `latest` or before may belong to one of the latest `limit` traces.
    pub(crate) fn may_grow(&mut self, limit: usize, latest: TimestampNs) -> bool {
        if self.of.len() < limit {
            return true;
        }
        let mut times: Vec<i64> = self.of.values().copied().collect();
        let last = times.len() - limit;
        let (_, bar, _) = times.select_nth_unstable(last);
        let bar = *bar;
        self.of.retain(|_, t| *t >= bar);
        latest.nanos() >= bar
    }

    /// Returns the traces, the latest first.
    pub(crate) fn ranked(self) -> Vec<TraceId> {
        let mut all: Vec<(i64, TraceId)> = self.of.into_iter().map(|(id, t)| (t, id)).collect();
        all.sort_unstable_by(|a, b| b.cmp(a));
        all.into_iter().map(|(_, id)| id).collect()
    }
}

/// Collects traces that have a span which satisfies a filter.
struct Newest<'a> {
    filter: &'a crate::eval::Node,
    limit: usize,
    found: Latest,
}

impl VisitSpans for Newest<'_> {
    fn wants(&mut self, latest: TimestampNs) -> bool {
        self.found.may_grow(self.limit, latest)
    }

    fn visit(&mut self, row: &dyn SpanRow) -> Result<ControlFlow<()>, SelectError> {
        if self.filter.holds(&Row(row)) {
            self.found.add(row.trace_id(), row.start().nanos());
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// Collects fields of spans, by trace.
pub(crate) struct Keeper<'a> {
    /// Whose spans are kept; without one all are.
    plan: Option<&'a Plan>,
    /// How many fields are kept of a span.
    fields: usize,
    budget: &'a Budget,
    pub(crate) traces: HashMap<TraceId, Vec<Kept>>,
}

impl<'a> Keeper<'a> {
    /// Keeps what may play a part in a query.
    pub(crate) fn of_plan(plan: &'a Plan, budget: &'a Budget) -> Self {
        let fields = plan.fields.stored.len();
        Self { plan: Some(plan), fields, budget, traces: HashMap::default() }
    }

    /// Keeps every span.
    fn of_all(fields: usize, budget: &'a Budget) -> Self {
        Self { plan: None, fields, budget, traces: HashMap::default() }
    }

    /// Sorts each trace's spans by start, and drops those that were sent twice.
    pub(crate) fn drop_repeated(&mut self) {
        self.traces.values_mut().for_each(sort_unique);
    }
}

fn sort_unique(rows: &mut Vec<Kept>) {
    rows.sort_by_key(|r| (r.start, r.span_id));
    rows.dedup_by_key(|r| (r.start, r.span_id));
}

impl VisitSpans for Keeper<'_> {
    fn visit(&mut self, row: &dyn SpanRow) -> Result<ControlFlow<()>, SelectError> {
        if self.plan.is_none_or(|p| p.keeps(row)) {
            let kept = Kept::of(row, self.fields);
            self.budget.take(0, kept.size_bytes())?;
            self.traces.entry(row.trace_id()).or_default().push(kept);
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// Runs the stages over a trace's spans.
pub(crate) fn sets_of(plan: &Plan, trace: &Trace<'_>) -> Vec<Spanset> {
    let all = Spanset { rows: (0..trace.rows.len()).collect(), attributes: Vec::new() };
    run(&plan.steps, trace, vec![all])
}

/// Whole traces, with the fields that answers are made of.
struct Whole<'a> {
    source: &'a dyn SelectSpans,
    tenant: &'a TenantId,
    plan: &'a Plan,
    budget: &'a Budget,
    /// Those of the plan, then what every answer shows.
    fields: Vec<SpanField>,
    service: usize,
    name: usize,
    status: usize,
}

impl<'a> Whole<'a> {
    fn new(
        source: &'a dyn SelectSpans,
        tenant: &'a TenantId,
        plan: &'a Plan,
        budget: &'a Budget,
    ) -> Self {
        let mut fields = plan.fields.stored.clone();
        let mut place = |f: SpanField| {
            fields.iter().position(|x| *x == f).unwrap_or_else(|| {
                fields.push(f);
                fields.len() - 1
            })
        };
        let service = place(SpanField::Service);
        let (name, status) = (place(SpanField::Name), place(SpanField::Status));
        Self { source, tenant, plan, budget, fields, service, name, status }
    }

    /// Returns the spans of traces, in the order of the ids.
    fn read(&self, ids: &[TraceId]) -> Result<Vec<(TraceId, Vec<Kept>)>, SelectError> {
        let mut keeper = Keeper::of_all(self.fields.len(), self.budget);
        let scan = SpanScan {
            start: TimestampNs::MIN,
            end: TimestampNs::MAX,
            fields: &self.fields,
            traces: ids,
            equal: &[],
        };
        self.source.scan_spans(self.tenant, &scan, self.budget, &mut keeper)?;
        keeper.drop_repeated();
        Ok(ids.iter().filter_map(|id| Some((*id, keeper.traces.remove(id)?))).collect())
    }
}

/// Returns the latest traces that satisfy a query, by their latest matching span.
///
/// # Errors
/// When the query makes series, the store cannot be read or the budget ends.
pub fn find(
    source: &dyn SelectSpans,
    tenant: &TenantId,
    query: &TraceQl,
    range: &SearchRange,
    budget: &Budget,
) -> Result<Vec<Found>, QueryError> {
    let plan = &query.plan;
    if plan.metric.is_some() {
        let text = "a metrics query makes series: ask for it at /api/metrics/query_range";
        return Err(QueryError::Bad(text.into()));
    }
    let equal = plan.equal();
    let scan = SpanScan {
        start: range.start,
        end: range.end,
        fields: &plan.fields.stored,
        traces: &[],
        equal: &equal,
    };
    let whole = Whole::new(source, tenant, plan, budget);
    let candidates = match plan.only_filter() {
        Some(filter) => {
            let mut newest = Newest { filter, limit: range.limit, found: Latest::default() };
            source.scan_spans(tenant, &scan, budget, &mut newest)?;
            newest.found.ranked()
        }
        None => matching(&whole, &scan)?,
    };
    let mut out = Vec::new();
    for ids in candidates.chunks(range.limit.clamp(1, AT_ONCE)) {
        for (id, rows) in whole.read(ids)? {
            out.extend(found(id, &rows, &whole, range));
        }
        if out.len() >= range.limit {
            break;
        }
    }
    out.truncate(range.limit);
    Ok(out)
}

/// Returns the traces that satisfy a query as far as spans of the range tell, the latest first.
fn matching(whole: &Whole<'_>, scan: &SpanScan<'_>) -> Result<Vec<TraceId>, QueryError> {
    let (plan, budget) = (whole.plan, whole.budget);
    let mut keeper = Keeper::of_plan(plan, budget);
    whole.source.scan_spans(whole.tenant, scan, budget, &mut keeper)?;
    keeper.drop_repeated();
    let mut latest = Latest::default();
    let mut gaps = Vec::new();
    for (id, rows) in &keeper.traces {
        budget.check()?;
        let trace = Trace::new(*id, rows, &plan.fields);
        let sets = sets_of(plan, &trace);
        let starts = sets.iter().flat_map(|s| &s.rows).filter_map(|i| rows.get(*i));
        match starts.map(|r| r.start).max() {
            Some(start) => latest.add(*id, start),
            // What is missing may lie outside of the range.
            None if plan.whole && trace.has_gaps() => gaps.push(*id),
            None => {}
        }
    }
    gaps.truncate(GAPS_MAX);
    for ids in gaps.chunks(AT_ONCE) {
        for (id, rows) in whole.read(ids)? {
            let sets = sets_of(plan, &Trace::new(id, &rows, &plan.fields));
            let inside = |t: i64| t >= scan.start.nanos() && t < scan.end.nanos();
            let starts = sets.iter().flat_map(|s| &s.rows).filter_map(|i| rows.get(*i));
            if let Some(start) = starts.map(|r| r.start).filter(|t| inside(*t)).max() {
                latest.add(id, start);
            }
        }
    }
    Ok(latest.ranked())
}

/// Describes a trace, if it satisfies the query as a whole.
fn found(id: TraceId, rows: &[Kept], whole: &Whole<'_>, range: &SearchRange) -> Option<Found> {
    let plan = whole.plan;
    let trace = Trace::new(id, rows, &plan.fields);
    let sets = sets_of(plan, &trace);
    if sets.is_empty() {
        return None;
    }
    let start = rows.iter().map(|r| r.start).min()?;
    let end = rows.iter().map(|r| r.start.saturating_add(r.duration)).max()?;
    let text = |r: &Kept, place: usize| {
        r.values.get(place).map(|v| v.text().into_owned()).unwrap_or_default()
    };
    let root = rows.iter().filter(|r| r.parent_id.is_none()).min_by_key(|r| r.start);
    let mut services: BTreeMap<String, (u32, u32)> = BTreeMap::new();
    for r in rows {
        let (all, errors) = services.entry(text(r, whole.service)).or_default();
        *all += 1;
        let is_error = r.values.get(whole.status) == Some(&FieldValue::Status(StatusCode::Error));
        *errors += u32::from(is_error);
    }
    Some(Found {
        id,
        root: root.map(|r| (text(r, whole.service), text(r, whole.name))),
        start: TimestampNs::from_nanos(start),
        duration_ns: end.saturating_sub(start),
        sets: sets.iter().map(|s| set(s, &trace, plan, range)).collect(),
        services,
    })
}

/// Returns the name that answers give a field, unless they have a place of its own for it.
fn shown_name(f: &Field) -> Option<String> {
    Some(match f {
        Field::Attribute { key, .. } => key.clone(),
        Field::Name
        | Field::Duration
        | Field::TraceDuration
        | Field::RootName
        | Field::RootService
        | Field::TraceId
        | Field::SpanId
        | Field::TraceStart
        | Field::SpanStart => return None,
        other => crate::eval::spelled(other),
    })
}

fn set(s: &Spanset, trace: &Trace<'_>, plan: &Plan, range: &SearchRange) -> FoundSet {
    let mut order = s.rows.clone();
    order.sort_by_key(|i| trace.rows.get(*i).map_or(0, |r| r.start));
    let span = |i: &usize| {
        let row = trace.rows.get(*i)?;
        let at = At { trace, row: *i };
        let mut span = FoundSpan {
            id: row.span_id,
            name: None,
            start: TimestampNs::from_nanos(row.start),
            duration_ns: row.duration,
            attributes: Vec::new(),
        };
        for (wanted, field) in &plan.shown {
            let value = at.read(*wanted).into_owned();
            if *field == Field::Name {
                span.name = Some(value.text().into_owned());
            } else if let Some(name) = shown_name(field)
                && !value.is_nil()
            {
                span.attributes.push((name, value));
            }
        }
        Some(span)
    };
    FoundSet {
        spans: order.iter().take(range.spans_per_set).filter_map(span).collect(),
        matched: s.rows.len(),
        attributes: s.attributes.clone(),
    }
}
