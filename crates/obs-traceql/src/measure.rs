//! Metrics queries: spans counted and measured over time.

use crate::ast::MetricKind;
use crate::eval::{Env, Wanted};
use crate::find::{Keeper, sets_of};
use crate::plan::{MetricPlan, Plan, Row};
use crate::series::{Buckets, Exemplar, Steps, TraceSeries, bucket_of, quantile, second_stage};
use crate::trace::{At, Trace};
use crate::{QueryError, TraceQl};
use foldhash::{HashMap, HashSet};
use obs_model::{
    AttributeScope, Budget, FieldValue, SelectError, SelectSpans, SpanRow, SpanScan, SpanSelection,
    TenantId, TimestampNs, TraceId, VisitSpans, WholeSpan,
};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// The time that a metrics query covers.
#[derive(Debug, Clone, Copy)]
pub struct MeasureRange {
    pub start: TimestampNs,
    pub end: TimestampNs,
    /// Nanoseconds, above zero; none for one point over the whole range.
    pub step_ns: Option<i64>,
    /// Traces named per series at most.
    pub exemplars: usize,
}

/// Points of a query at most: series times steps.
const POINTS_MAX: usize = 2_000_000;
/// Series of a query at most.
const SERIES_MAX: usize = 10_000;

/// What one series gathers in one step.
#[derive(Debug, Clone)]
enum Cells {
    Counts(Vec<f64>),
    /// Sum and count of values.
    Sums(Vec<(f64, f64)>),
    /// Least or greatest value so far.
    Extremes(Vec<f64>),
    Buckets(Vec<Buckets>),
}

#[derive(Debug)]
struct Group {
    labels: Vec<(String, FieldValue<'static>)>,
    cells: Cells,
    exemplars: Vec<Exemplar>,
}

/// Counts spans into series.
struct Meter<'a> {
    metric: &'a MetricPlan,
    steps: Steps,
    exemplars: usize,
    groups: Vec<Group>,
    places: HashMap<Vec<u8>, usize>,
    key: Vec<u8>,
    /// The group of the last span, and its key.
    last: Option<usize>,
    last_key: Vec<u8>,
}

/// Appends a form of the value that is the same for the same value alone.
fn put_key(out: &mut Vec<u8>, v: &FieldValue<'_>) {
    match v {
        FieldValue::Str(s) => {
            out.push(1);
            out.extend_from_slice(&(s.len() as u64).to_le_bytes());
            out.extend_from_slice(s.as_bytes());
        }
        FieldValue::Nil => out.push(0),
        FieldValue::Bool(b) => out.extend_from_slice(&[2, u8::from(*b)]),
        FieldValue::Int(i) => {
            out.push(3);
            out.extend_from_slice(&i.to_le_bytes());
        }
        FieldValue::Float(f) => {
            out.push(4);
            out.extend_from_slice(&f.to_bits().to_le_bytes());
        }
        FieldValue::Duration(d) => {
            out.push(5);
            out.extend_from_slice(&d.to_le_bytes());
        }
        FieldValue::Status(s) => out.extend_from_slice(&[6, *s as u8]),
        FieldValue::Kind(k) => out.extend_from_slice(&[7, k.to_otlp() as u8]),
        FieldValue::List(l) => {
            out.push(8);
            out.extend_from_slice(&(l.len() as u64).to_le_bytes());
            l.iter().for_each(|v| put_key(out, v));
        }
    }
}

impl<'a> Meter<'a> {
    fn new(metric: &'a MetricPlan, steps: Steps, exemplars: usize) -> Self {
        Self {
            metric,
            steps,
            exemplars,
            groups: Vec::new(),
            places: HashMap::default(),
            key: Vec::new(),
            last: None,
            last_key: Vec::new(),
        }
    }

    fn cells(&self) -> Cells {
        let n = self.steps.count;
        match self.metric.kind {
            MetricKind::Rate | MetricKind::CountOverTime | MetricKind::Compare => {
                Cells::Counts(vec![0.0; n])
            }
            MetricKind::SumOverTime | MetricKind::AvgOverTime => Cells::Sums(vec![(0.0, 0.0); n]),
            MetricKind::MinOverTime | MetricKind::MaxOverTime => Cells::Extremes(vec![f64::NAN; n]),
            MetricKind::QuantileOverTime | MetricKind::HistogramOverTime => {
                Cells::Buckets(vec![Buckets::new(); n])
            }
        }
    }

    /// Counts a span that starts at `start`, Unix ns, for as many as it stands for.
    fn add(
        &mut self,
        env: &dyn Env,
        start: i64,
        trace: &dyn Fn() -> TraceId,
        weight: f64,
    ) -> Result<(), SelectError> {
        if self.steps.of(start).is_none() {
            return Ok(());
        }
        let value = match self.metric.of {
            None => f64::NAN,
            Some(of) => match env.read(of) {
                FieldValue::Duration(ns) => ns as f64 / 1e9,
                v => match v.as_f64() {
                    Some(x) => x,
                    // Spans without the field are not measured.
                    None => return Ok(()),
                },
            },
        };
        let place = self.place(env)?;
        self.count(place, start, trace, weight, value);
        Ok(())
    }

    /// Returns the group of a span.
    fn place(&mut self, env: &dyn Env) -> Result<usize, SelectError> {
        self.key.clear();
        for (w, _) in &self.metric.by {
            put_key(&mut self.key, &env.read(*w));
        }
        // Spans of one kind come in runs.
        let known = match self.last {
            Some(place) if self.last_key == self.key => Some(place),
            _ => self.places.get(self.key.as_slice()).copied(),
        };
        let place = match known {
            Some(p) => p,
            None => {
                let n = self.groups.len() + 1;
                if n > SERIES_MAX || n.saturating_mul(self.steps.count) > POINTS_MAX {
                    let text = format!("{SERIES_MAX} series or {POINTS_MAX} points");
                    return Err(SelectError::TooMuch(text));
                }
                let by = self.metric.by.iter();
                let labels = by.map(|(w, name)| (name.clone(), env.read(*w).into_owned()));
                let group =
                    Group { labels: labels.collect(), cells: self.cells(), exemplars: Vec::new() };
                self.groups.push(group);
                self.places.insert(self.key.clone(), n - 1);
                n - 1
            }
        };
        if self.last != Some(place) {
            self.last = Some(place);
            self.last_key.clone_from(&self.key);
        }
        Ok(place)
    }

    /// Counts a span of a group.
    fn count(
        &mut self,
        place: usize,
        start: i64,
        trace: &dyn Fn() -> TraceId,
        weight: f64,
        value: f64,
    ) {
        let kind = self.metric.kind;
        let (Some(step), Some(group)) = (self.steps.of(start), self.groups.get_mut(place)) else {
            return;
        };
        match &mut group.cells {
            Cells::Counts(c) => c.get_mut(step).into_iter().for_each(|c| *c += weight),
            Cells::Sums(c) => c.get_mut(step).into_iter().for_each(|(sum, n)| {
                *sum += value * weight;
                *n += weight;
            }),
            Cells::Extremes(c) => c.get_mut(step).into_iter().for_each(|x| {
                *x = if kind == MetricKind::MinOverTime { x.min(value) } else { x.max(value) };
            }),
            Cells::Buckets(c) => {
                if let (Some(n), Some(b)) = (bucket_of(value), c.get_mut(step)) {
                    *b.entry(n).or_default() += weight;
                }
            }
        }
        // A few of the first; the latest blocks come first.
        if group.exemplars.len() < self.exemplars {
            let timestamp_ms = start / 1_000_000;
            group.exemplars.push(Exemplar { trace_id: trace(), value, timestamp_ms });
        }
    }

    fn finish(self) -> Vec<TraceSeries> {
        let mut out = Vec::new();
        let ms = |i: usize| self.steps.timestamp_ms(i);
        for g in self.groups {
            let named = |name: &str| {
                if g.labels.is_empty() {
                    vec![("__name__".to_owned(), FieldValue::Str(name.to_owned().into()))]
                } else {
                    g.labels.clone()
                }
            };
            let mut push = |labels, samples: Vec<(i64, f64)>, exemplars| {
                if !samples.is_empty() {
                    out.push(TraceSeries { labels, samples, exemplars });
                }
            };
            match (&g.cells, self.metric.kind) {
                (Cells::Counts(c), kind) => {
                    let is_rate = kind == MetricKind::Rate;
                    let per = if is_rate { self.steps.seconds() } else { 1.0 };
                    let samples = c.iter().enumerate().map(|(i, n)| (ms(i), n / per)).collect();
                    let name = if is_rate { "rate" } else { "count_over_time" };
                    push(named(name), samples, g.exemplars);
                }
                (Cells::Sums(c), kind) => {
                    let is_avg = kind == MetricKind::AvgOverTime;
                    let value = |(sum, n): &(f64, f64)| if is_avg { sum / n } else { *sum };
                    let some = c.iter().enumerate().filter(|(_, (_, n))| *n > 0.0);
                    let samples = some.map(|(i, c)| (ms(i), value(c))).collect();
                    let name = if is_avg { "avg_over_time" } else { "sum_over_time" };
                    push(named(name), samples, g.exemplars);
                }
                (Cells::Extremes(c), kind) => {
                    let some = c.iter().enumerate().filter(|(_, v)| !v.is_nan());
                    let samples = some.map(|(i, v)| (ms(i), *v)).collect();
                    let is_min = kind == MetricKind::MinOverTime;
                    let name = if is_min { "min_over_time" } else { "max_over_time" };
                    push(named(name), samples, g.exemplars);
                }
                (Cells::Buckets(c), MetricKind::HistogramOverTime) => {
                    let mut all: Vec<i32> = c.iter().flat_map(|b| b.keys().copied()).collect();
                    all.sort_unstable();
                    all.dedup();
                    for n in all {
                        let bound = FieldValue::Float(f64::from(n).exp2());
                        let mut labels = g.labels.clone();
                        labels.push(("__bucket".into(), bound));
                        let at = |b: &Buckets| b.get(&n).copied().unwrap_or(0.0);
                        let samples = c.iter().enumerate().map(|(i, b)| (ms(i), at(b))).collect();
                        let fits = |e: &&Exemplar| bucket_of(e.value) == Some(n);
                        push(labels, samples, g.exemplars.iter().filter(fits).cloned().collect());
                    }
                }
                (Cells::Buckets(c), _) => {
                    for q in &self.metric.quantiles {
                        let mut labels = g.labels.clone();
                        labels.push(("p".into(), FieldValue::Float(*q)));
                        let samples =
                            c.iter().enumerate().map(|(i, b)| (ms(i), quantile(*q, b))).collect();
                        push(labels, samples, g.exemplars.clone());
                    }
                }
            }
        }
        for stage in &self.metric.second {
            out = second_stage(out, *stage);
        }
        out.sort_by_cached_key(TraceSeries::prometheus);
        out
    }
}

/// Measures spans as they are scanned.
struct Direct<'a> {
    filter: &'a crate::eval::Node,
    meter: Meter<'a>,
    seen: Seen,
    budget: &'a Budget,
    /// What is known of the spans of this part, if fields alone decide.
    coded: Option<Coded>,
    /// Spans that the budget was asked for.
    charged: usize,
}

/// What the codes of a part's fields decide: no field is read twice for the same codes.
#[derive(Default)]
struct Coded {
    /// Fields that filter and groups read.
    fields: Vec<usize>,
    /// The group of the spans with these codes, or that the filter leaves them out.
    known: HashMap<u128, Option<usize>>,
    last: Option<(u128, Option<usize>)>,
}

impl Coded {
    /// Codes that fit into a key.
    const FIELDS_MAX: usize = 4;

    /// `None` if more than a few stored fields decide which spans are counted, and where.
    fn new(filter: &crate::eval::Node, metric: &MetricPlan) -> Option<Self> {
        if metric.of.is_some() {
            return None;
        }
        let mut wanted: Vec<Wanted> = metric.by.iter().map(|(w, _)| *w).collect();
        filter.reads(&mut |w| wanted.push(w));
        let mut fields = Vec::new();
        for w in wanted {
            let Wanted::Stored(place) = w else { return None };
            if !fields.contains(&place) {
                fields.push(place);
            }
        }
        (fields.len() <= Self::FIELDS_MAX).then(|| Self { fields, ..Self::default() })
    }

    fn key(&self, row: &dyn SpanRow) -> Option<u128> {
        let add = |key: u128, field: &usize| Some((key << 32) | u128::from(row.code(*field)?));
        self.fields.iter().try_fold(0, add)
    }
}

/// Spans between two looks at the budget.
const REMEMBERED: usize = 4096;
/// Bytes that one of them takes in a set.
const BYTES_OF_ONE: usize = 2 * size_of::<u64>();

/// Spans that were counted: one that was sent twice has the same start.
enum Seen {
    /// As long as no two spans start at the same time, none was sent twice, and no id need be read.
    Starts(Starts),
    /// Two did.
    Clash,
    /// A hash stands for a span: among ten million, two are the same by chance once in three
    /// hundred thousand queries.
    Spans(HashSet<u64>),
}

/// Mixes what tells a span from others.
fn identity(row: &dyn SpanRow, start: i64) -> u64 {
    let (trace, span) = (row.trace_id(), row.span_id());
    let trace = u128::from_le_bytes(*trace.as_bytes());
    let low = (trace as u64) ^ u64::from_le_bytes(*span.as_bytes()).rotate_left(32);
    let high = (trace >> 64) as u64 ^ start as u64;
    let wide = u128::from(low ^ 0x9e37_79b9_7f4a_7c15) * u128::from(high ^ 0xd6e8_feb8_6659_fd93);
    (wide as u64) ^ (wide >> 64) as u64
}

impl Seen {
    fn is_new(&mut self, row: &dyn SpanRow) -> bool {
        let start = row.start().nanos();
        match self {
            Self::Spans(all) => all.insert(identity(row, start)),
            Self::Clash => false,
            Self::Starts(all) => {
                let is_new = all.set.insert(start);
                if !is_new {
                    *self = Self::Clash;
                }
                is_new
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Starts(all) => all.set.len(),
            Self::Spans(all) => all.len(),
            Self::Clash => 0,
        }
    }

    /// Forgets what cannot come again once spans start at `latest` or before: a small set is a
    /// fast one.
    fn go_on(&mut self, latest: i64) {
        if let Self::Starts(all) = self
            && all.set.len() > all.floor
        {
            all.set.retain(|start| *start <= latest);
            // Not again before it has doubled, so that each is looked at a few times only.
            all.floor = (2 * all.set.len()).max(REMEMBERED);
        }
    }
}

/// Starts of spans, as far as they can come again.
#[derive(Default)]
struct Starts {
    set: HashSet<i64>,
    /// Up to this many none is forgotten.
    floor: usize,
}

impl Direct<'_> {
    /// Returns the group of a span, or that it is left out.
    fn judge(&mut self, row: &dyn SpanRow) -> Result<Option<usize>, SelectError> {
        let env = Row(row);
        if self.filter.holds(&env) { self.meter.place(&env).map(Some) } else { Ok(None) }
    }

    /// The same by the codes of its fields; `None` if they have none.
    fn judge_coded(&mut self, row: &dyn SpanRow) -> Result<Option<Option<usize>>, SelectError> {
        let Some(coded) = &self.coded else { return Ok(None) };
        let Some(key) = coded.key(row) else { return Ok(None) };
        if let Some((_, judged)) = coded.last.filter(|(last, _)| *last == key) {
            return Ok(Some(judged));
        }
        let known = coded.known.get(&key).copied();
        let judged = match known {
            Some(judged) => judged,
            // A span outside of the steps makes no series.
            None if self.meter.steps.of(row.start().nanos()).is_none() => return Ok(None),
            None => self.judge(row)?,
        };
        if let Some(coded) = &mut self.coded {
            coded.last = Some((key, judged));
            if known.is_none() {
                coded.known.insert(key, judged);
            }
        }
        Ok(Some(judged))
    }

    /// Whether a span was not counted yet; breaks when the scan must begin again.
    fn is_new(&mut self, row: &dyn SpanRow) -> Result<ControlFlow<(), bool>, SelectError> {
        if !self.seen.is_new(row) {
            let clash = matches!(self.seen, Seen::Clash);
            return Ok(if clash { ControlFlow::Break(()) } else { ControlFlow::Continue(false) });
        }
        // The budget is shared by threads: not for every span.
        if self.seen.len() > self.charged {
            self.charged += REMEMBERED;
            self.budget.take(0, REMEMBERED * BYTES_OF_ONE)?;
        }
        Ok(ControlFlow::Continue(true))
    }
}

impl VisitSpans for Direct<'_> {
    fn wants(&mut self, latest: TimestampNs) -> bool {
        self.seen.go_on(latest.nanos());
        if let Some(coded) = &mut self.coded {
            coded.known.clear();
            coded.last = None;
        }
        true
    }

    fn visit(&mut self, row: &dyn SpanRow) -> Result<ControlFlow<()>, SelectError> {
        let judged = self.judge_coded(row)?;
        let holds = match judged {
            Some(judged) => judged.is_some(),
            None => self.filter.holds(&Row(row)),
        };
        if !holds {
            return Ok(ControlFlow::Continue(()));
        }
        match self.is_new(row)? {
            ControlFlow::Break(()) => return Ok(ControlFlow::Break(())),
            ControlFlow::Continue(false) => {}
            ControlFlow::Continue(true) => {
                let (start, weight) = (row.start().nanos(), row.weight());
                match judged.flatten() {
                    Some(place) => {
                        self.meter.count(place, start, &|| row.trace_id(), weight, f64::NAN);
                    }
                    None => self.meter.add(&Row(row), start, &|| row.trace_id(), weight)?,
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// Runs a metrics query.
///
/// # Errors
/// When the query makes no series, asks for too many points, or the store cannot be read.
pub fn measure(
    source: &dyn SelectSpans,
    tenant: &TenantId,
    query: &TraceQl,
    range: &MeasureRange,
    budget: &Budget,
) -> Result<Vec<TraceSeries>, QueryError> {
    let plan = &query.plan;
    let Some(metric) = &plan.metric else {
        let text = "not a metrics query: end it with rate() or another function over time";
        return Err(QueryError::Bad(text.into()));
    };
    let (start, end) = (range.start.nanos(), range.end.nanos());
    if end <= start {
        return Err(QueryError::Bad("end must be after start".into()));
    }
    let steps = match range.step_ns {
        Some(step) if step > 0 => Steps::new(start, end, step, true),
        Some(_) => return Err(QueryError::Bad("step must be above zero".into())),
        None => Steps::new(start, end, end - start, false),
    };
    if steps.count > POINTS_MAX / 10 {
        return Err(QueryError::Bad(format!(
            "{} steps are too many; ask for longer ones",
            steps.count
        )));
    }
    if metric.kind == MetricKind::Compare {
        return compare(source, tenant, plan, metric, steps, budget);
    }
    let (from, to) = steps.bounds();
    let equal = plan.equal();
    let scan = SpanScan {
        start: TimestampNs::from_nanos(from),
        end: TimestampNs::from_nanos(to),
        fields: &plan.fields.stored,
        traces: &[],
        equal: &equal,
    };
    if let Some(filter) = plan.only_filter() {
        let mut seen = Seen::Starts(Starts::default());
        loop {
            let meter = Meter::new(metric, steps, range.exemplars);
            let coded = Coded::new(filter, metric);
            let mut direct = Direct { filter, meter, seen, budget, coded, charged: 0 };
            source.scan_spans(tenant, &scan, budget, &mut direct)?;
            if !matches!(direct.seen, Seen::Clash) {
                return Ok(direct.meter.finish());
            }
            seen = Seen::Spans(HashSet::default());
        }
    }
    let mut meter = Meter::new(metric, steps, range.exemplars);
    let mut keeper = Keeper::of_plan(plan, budget);
    source.scan_spans(tenant, &scan, budget, &mut keeper)?;
    keeper.drop_repeated();
    for (id, rows) in &keeper.traces {
        budget.check()?;
        let trace = Trace::new(*id, rows, &plan.fields);
        for set in sets_of(plan, &trace) {
            for i in set.rows {
                let (start, weight) = rows.get(i).map_or((0, 1.0), |r| (r.start, r.weight));
                meter.add(&At { trace: &trace, row: i }, start, &|| *id, weight)?;
            }
        }
    }
    Ok(meter.finish())
}

/// Values of one attribute that are told apart.
const VALUES_MAX: usize = 1_000;

/// A value, and how often each step has it.
type Counted = (FieldValue<'static>, Vec<f64>);

/// Counts of one attribute's values, by whether the span is selected.
#[derive(Default)]
struct Distribution {
    values: [HashMap<Vec<u8>, Counted>; 2],
    totals: [Vec<f64>; 2],
    too_many: [bool; 2],
}

const SIDES: [[&str; 2]; 2] = [["baseline", "baseline_total"], ["selection", "selection_total"]];

/// Compares what attributes the selected spans have with those that the others have.
fn compare(
    source: &dyn SelectSpans,
    tenant: &TenantId,
    plan: &Plan,
    metric: &MetricPlan,
    steps: Steps,
    budget: &Budget,
) -> Result<Vec<TraceSeries>, QueryError> {
    let (Some(filter), Some(selection)) = (plan.only_filter(), metric.selection.as_ref()) else {
        let text = "compare() takes the spans of one filter, which needs no other spans to decide";
        return Err(QueryError::Bad(text.into()));
    };
    let (from, to) = steps.bounds();
    let spans = SpanSelection {
        start: TimestampNs::from_nanos(from),
        end: TimestampNs::from_nanos(to),
        service: None,
        operation: None,
    };
    let mut found: BTreeMap<String, Distribution> = BTreeMap::new();
    let mut failure = None;
    let mut key = Vec::new();
    source.select_spans(tenant, &spans, budget, &mut |span| {
        let row = WholeSpan { span, fields: &plan.fields.stored };
        let env = Row(&row);
        let start = span.start.nanos();
        let Some(step) = steps.of(start).filter(|_| filter.holds(&env)) else {
            return ControlFlow::Continue(());
        };
        let in_range = metric.range.is_none_or(|(a, b)| start >= a && start < b);
        let side = usize::from(in_range && selection.holds(&env));
        let mut count = |name: String, value: FieldValue<'_>| {
            let d = found.entry(name).or_default();
            if let Some(t) = d.totals.get_mut(side) {
                t.resize(steps.count, 0.0);
                t.get_mut(step).into_iter().for_each(|n| *n += 1.0);
            }
            key.clear();
            put_key(&mut key, &value);
            let Some(values) = d.values.get_mut(side) else { return };
            if values.len() >= VALUES_MAX && !values.contains_key(key.as_slice()) {
                d.too_many.get_mut(side).into_iter().for_each(|t| *t = true);
                return;
            }
            if !values.contains_key(key.as_slice()) {
                let bytes = value.size_bytes() + steps.count * 8;
                if let Err(e) = budget.take(0, bytes) {
                    failure = Some(e);
                    return;
                }
                let cells = vec![0.0; steps.count];
                values.insert(key.clone(), (value.into_owned(), cells));
            }
            if let Some((_, cells)) = values.get_mut(key.as_slice()) {
                cells.get_mut(step).into_iter().for_each(|n| *n += 1.0);
            }
        };
        let attributes = |scope: AttributeScope| match scope {
            AttributeScope::Resource => &span.resource.attributes,
            _ => &span.attributes,
        };
        for scope in [AttributeScope::Resource, AttributeScope::Span] {
            for (k, v) in attributes(scope).iter() {
                count(format!("{}.{k}", crate::eval::scope_name(scope)), v.into());
            }
        }
        count("name".into(), FieldValue::str(span.name.as_str()));
        count("kind".into(), FieldValue::Kind(span.kind));
        count("status".into(), FieldValue::Status((&span.status).into()));
        if failure.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if let Some(e) = failure {
        return Err(e.into());
    }
    let ms = |cells: &[f64]| -> Vec<(i64, f64)> {
        cells.iter().enumerate().map(|(i, n)| (steps.timestamp_ms(i), *n)).collect()
    };
    let text = |t: &str| FieldValue::Str(t.to_owned().into());
    let mut out = Vec::new();
    for (name, d) in found {
        let sides = SIDES.iter().zip(d.values).zip(d.totals).zip(d.too_many);
        for ((([kind, total], values), totals), too_many) in sides {
            let mut values: Vec<_> = values.into_values().collect();
            values.sort_by(|(a, x), (b, y)| {
                let (x, y) = (x.iter().sum::<f64>(), y.iter().sum::<f64>());
                y.total_cmp(&x).then_with(|| a.total_cmp(b))
            });
            for (value, cells) in values.into_iter().take(metric.top) {
                let labels = vec![("__meta_type".into(), text(kind)), (name.clone(), value)];
                out.push(TraceSeries { labels, samples: ms(&cells), exemplars: Vec::new() });
            }
            let with_nil = |meta: &str| {
                vec![("__meta_type".to_owned(), text(meta)), (name.clone(), FieldValue::Nil)]
            };
            if !totals.is_empty() {
                let labels = with_nil(total);
                out.push(TraceSeries { labels, samples: ms(&totals), exemplars: Vec::new() });
            }
            if too_many {
                let mut labels = with_nil(kind);
                labels.push(("__meta_error".into(), text("__too_many_values__")));
                out.push(TraceSeries { labels, samples: Vec::new(), exemplars: Vec::new() });
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use obs_model::SpanId;
    use proptest::prelude::*;

    /// A span of a part whose codes are its own.
    struct Fake {
        span: u64,
        start: i64,
        service: &'static str,
        model: Option<&'static str>,
        codes: Option<u32>,
    }

    impl SpanRow for Fake {
        fn trace_id(&self) -> TraceId {
            TraceId::from_slice(&[1; 16]).unwrap()
        }
        fn span_id(&self) -> SpanId {
            SpanId::from_slice(&(self.span + 1).to_be_bytes()).unwrap()
        }
        fn parent_id(&self) -> Option<SpanId> {
            None
        }
        fn start(&self) -> TimestampNs {
            TimestampNs::from_nanos(self.start)
        }
        fn duration_ns(&self) -> i64 {
            0
        }
        fn get(&self, field: usize) -> FieldValue<'_> {
            match (field, self.model) {
                (0, _) => FieldValue::str(self.service),
                (_, Some(m)) => FieldValue::str(m),
                _ => FieldValue::Nil,
            }
        }
        fn code(&self, field: usize) -> Option<u32> {
            // Another part numbers the same values otherwise.
            let salt = self.codes?;
            let value = match field {
                0 => self.service.len(),
                _ => self.model.map_or(0, |m| 1 + usize::from(m == "b")),
            };
            Some((value as u32).wrapping_add(salt))
        }
        fn weight(&self) -> f64 {
            1.0
        }
    }

    const SECOND: i64 = 1_000_000_000;

    proptest! {
        /// Spans are counted once, whether codes decide or values, however parts overlap.
        #[test]
        fn codes_decide_as_values_do(
            spans in prop::collection::vec((0..60 * SECOND, 0..3_u8, 0..2_u8), 0..60),
            again in prop::collection::vec((0..60_usize, 0..4_usize), 0..12),
            same_start in any::<bool>(),
        ) {
            let q = TraceQl::parse(r#"{ resource.service.name = "app" } | rate() by (span.m)"#).unwrap();
            let (filter, metric) = (q.plan.only_filter().unwrap(), q.plan.metric.as_ref().unwrap());
            let steps = Steps::new(-1, 60 * SECOND, 10 * SECOND, true);
            let start = |i: usize, t: i64| if same_start && i.is_multiple_of(5) { 7 * SECOND } else { t * 100 / 60 };
            // A span is in the part of its time, and some in others once more.
            let mut parts: Vec<Vec<usize>> = vec![Vec::new(); 4];
            for (i, (t, ..)) in spans.iter().enumerate() {
                parts[(start(i, *t) / (25 * SECOND)).min(3) as usize].push(i);
            }
            for (i, part) in again.iter().filter(|(i, _)| *i < spans.len()) {
                parts[*part].push(*i);
            }
            let mut rows: Vec<Vec<Fake>> = parts.iter().enumerate().map(|(n, part)| {
                part.iter().map(|i| {
                    let (t, model, service) = spans[*i];
                    Fake {
                        span: *i as u64,
                        start: start(*i, t),
                        service: if service == 0 { "app" } else { "other" },
                        model: [None, Some("a"), Some("b")][usize::from(model)],
                        codes: Some(n as u32 * 100),
                    }
                }).collect()
            }).collect();
            let latest = |part: &[Fake]| part.iter().map(|r| r.start).max();
            rows.retain(|p| !p.is_empty());
            rows.sort_by_key(|p| std::cmp::Reverse(latest(p)));
            let budget = Budget::new(i64::MAX, i64::MAX);
            let mut run = |coded: bool| {
                for row in rows.iter_mut().flatten() {
                    row.codes = row.codes.or(Some(0)).filter(|_| coded);
                }
                let mut seen = Seen::Starts(Starts::default());
                loop {
                    let meter = Meter::new(metric, steps, 0);
                    let coded = Coded::new(filter, metric);
                    assert!(coded.is_some());
                    let mut direct = Direct { filter, meter, seen, budget: &budget, coded, charged: 0 };
                    'scan: for part in &rows {
                        direct.wants(TimestampNs::from_nanos(latest(part).unwrap()));
                        for row in part {
                            if direct.visit(row).unwrap().is_break() {
                                break 'scan;
                            }
                        }
                    }
                    if !matches!(direct.seen, Seen::Clash) {
                        let mut out: Vec<_> = direct.meter.finish().into_iter().map(|s| (s.prometheus(), s.samples)).collect();
                        out.sort_by(|a, b| a.0.cmp(&b.0));
                        break out;
                    }
                    seen = Seen::Spans(HashSet::default());
                }
            };
            let by_codes = run(true);
            let total: f64 = by_codes.iter().flat_map(|s| &s.1).map(|(_, v)| v * 10.0).sum();
            let app = spans.iter().enumerate().filter(|(i, (t, _, s))| *s == 0 && steps.of(start(*i, *t)).is_some()).count();
            prop_assert_eq!(total.round() as usize, app);
            prop_assert_eq!(by_codes, run(false));
        }
    }

    #[test]
    fn only_what_can_come_again_is_remembered() {
        let mut seen = Starts { floor: 2, ..Starts::default() };
        seen.set.extend([10, 20, 30]);
        let mut seen = Seen::Starts(seen);
        seen.go_on(20);
        let Seen::Starts(left) = &seen else { panic!("no clash") };
        assert_eq!((left.set.len(), left.set.contains(&30), left.floor), (2, false, REMEMBERED));
        seen.go_on(0);
        assert_eq!(seen.len(), 2, "few enough");
    }
}
