//! Range aggregations over log records.

use crate::ast::{Groups, LabelFilter, RangeAggregation, RangeOp, Stage};
use crate::labels::{ERROR, Entry};
use crate::members::Read;
use crate::pipeline::{Pipeline, unwrap};
use crate::query::QueryError;
use obs_model::{
    Budget, Direction, Labels, LabelsBuilder, LineMembers, LogRecord, LogRows, LogScan,
    LogSelection, MatchOp, NumberMember, Sample, SelectError, SelectLogs, Series, TenantId,
    TimestampNs,
};
use std::collections::HashMap;
use std::ops::ControlFlow;

const MS: i64 = 1_000_000;

/// The steps of an evaluation, in milliseconds; samples stand exactly there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Steps {
    pub(crate) start: i64,
    pub(crate) step: i64,
    pub(crate) count: usize,
}

/// Tells the steps whose left-open window `(t - range, t]` holds a time. Nanoseconds.
#[derive(Debug)]
struct Windows {
    start: i64,
    step: i64,
    count: i64,
    range: i64,
    /// The last answer, and the times that have the same one: records of a stream follow each
    /// other in time.
    last: (usize, usize),
    valid: Option<(i64, i64)>,
}

impl Windows {
    fn new(steps: Steps, range: i64) -> Self {
        Self {
            start: steps.start.saturating_mul(MS),
            step: steps.step.saturating_mul(MS).max(1),
            count: steps.count as i64,
            range,
            last: (0, 0),
            valid: None,
        }
    }

    /// Returns the first step and the one behind the last, for a time less the offset.
    fn of(&mut self, ns: i64) -> (usize, usize) {
        if self.valid.is_some_and(|(low, high)| low < ns && ns <= high) {
            return self.last;
        }
        // The first step at or behind a time, and between which times that is so.
        let up = |n: i64| {
            let at = n.saturating_add(self.step - 1).div_euclid(self.step);
            (
                at.clamp(0, self.count) as usize,
                at.saturating_sub(1).saturating_mul(self.step),
                at.saturating_mul(self.step),
            )
        };
        let n = ns.saturating_sub(self.start);
        let (first, low, high) = up(n);
        let (end, end_low, end_high) = up(n.saturating_add(self.range));
        self.last = (first, end);
        let low = low.max(end_low.saturating_sub(self.range)).saturating_add(self.start);
        let high = high.min(end_high.saturating_sub(self.range)).saturating_add(self.start);
        self.valid = Some((low, high));
        self.last
    }
}

/// What is gathered of one series.
enum Gathered {
    /// Differences from step to step: of the number of records and of the sum.
    Sums { records: Vec<i32>, sums: Vec<f64> },
    /// Times in nanoseconds, less the offset, and values, in order of time.
    Samples(Vec<(i64, f64)>),
}

impl Gathered {
    fn new(is_sum: bool, steps: usize) -> Self {
        if is_sum {
            Self::Sums { records: vec![0; steps + 1], sums: vec![0.0; steps + 1] }
        } else {
            Self::Samples(Vec::new())
        }
    }

    fn bytes(is_sum: bool, steps: usize) -> usize {
        if is_sum { (steps + 1) * 12 } else { 64 }
    }

    /// Adds records: their times, less the offset, and the value of each, or of all.
    fn add(&mut self, windows: &mut Windows, offset: i64, rows: LogRows<'_>, value: f64) {
        let times = rows.times.iter().map(|t| t.saturating_add(offset));
        match self {
            Self::Samples(list) if rows.values.is_empty() => list.extend(times.map(|t| (t, value))),
            Self::Samples(list) => list.extend(times.zip(rows.values.iter().copied())),
            Self::Sums { records, sums } => {
                let mut add = |(from, to): (usize, usize), n: i32| {
                    for (at, sign) in [(from, n), (to, -n)] {
                        if from < to
                            && let (Some(r), Some(s)) = (records.get_mut(at), sums.get_mut(at))
                        {
                            *r += sign;
                            *s += f64::from(sign) * value;
                        }
                    }
                };
                let (mut run, mut n) = ((0, 0), 0);
                for t in times {
                    let of = windows.of(t);
                    if of != run {
                        add(run, n);
                        (run, n) = (of, 0);
                    }
                    n += 1;
                }
                add(run, n);
            }
        }
    }

    /// Computes the value at each step that has any record.
    fn values(&self, r: &RangeAggregation, steps: Steps) -> Vec<Sample> {
        let time = |i: usize| steps.start + steps.step * i as i64;
        match self {
            Self::Sums { records, sums } => {
                let per = match r.op {
                    RangeOp::Rate | RangeOp::BytesRate => r.range_ms as f64 / 1000.0,
                    _ => 1.0,
                };
                let (mut n, mut sum) = (0, 0.0);
                let all = records.iter().zip(sums).take(steps.count).enumerate();
                all.filter_map(|(i, (dn, ds))| {
                    n += dn;
                    sum += ds;
                    (n > 0).then(|| Sample::float(time(i), sum / per))
                })
                .collect()
            }
            Self::Samples(list) => {
                let (mut from, mut to) = (0, 0);
                let range_ns = r.range_ms.saturating_mul(MS);
                (0..steps.count)
                    .filter_map(|i| {
                        let end = time(i).saturating_mul(MS);
                        let left = end.saturating_sub(range_ns);
                        while list.get(to).is_some_and(|(t, _)| *t <= end) {
                            to += 1;
                        }
                        while list.get(from).is_some_and(|(t, _)| *t <= left) {
                            from += 1;
                        }
                        let window = list.get(from..to).filter(|w| !w.is_empty())?;
                        Some(Sample::float(time(i), aggregate(r, window)))
                    })
                    .collect()
            }
        }
    }
}

/// Computes an aggregation of one window, which is not empty.
fn aggregate(r: &RangeAggregation, window: &[(i64, f64)]) -> f64 {
    let values = || window.iter().map(|(_, v)| *v);
    let seconds = r.range_ms as f64 / 1000.0;
    match r.op {
        RangeOp::Count | RangeOp::Bytes | RangeOp::BytesRate | RangeOp::Absent => {
            window.len() as f64
        }
        RangeOp::Sum => values().sum(),
        RangeOp::Rate => values().sum::<f64>() / seconds,
        RangeOp::RateCounter => rate_counter(window, r.range_ms),
        RangeOp::Avg => mean(window),
        RangeOp::Min => values().fold(f64::NAN, |m, v| if v < m || m.is_nan() { v } else { m }),
        RangeOp::Max => values().fold(f64::NAN, |m, v| if v > m || m.is_nan() { v } else { m }),
        RangeOp::Stdvar => variance(window),
        RangeOp::Stddev => variance(window).sqrt(),
        RangeOp::Quantile => quantile(r.param.unwrap_or(f64::NAN), values().collect()),
        RangeOp::First => window.first().map_or(f64::NAN, |w| w.1),
        RangeOp::Last => window.last().map_or(f64::NAN, |w| w.1),
    }
}

fn mean(window: &[(i64, f64)]) -> f64 {
    let (mut mean, mut count) = (0.0_f64, 0.0);
    for (_, v) in window {
        count += 1.0;
        if mean.is_infinite() {
            let stays = v.is_infinite() && (mean > 0.0) == (*v > 0.0);
            if stays || !(v.is_infinite() || v.is_nan()) {
                continue;
            }
        }
        mean += v / count - mean / count;
    }
    mean
}

fn variance(window: &[(i64, f64)]) -> f64 {
    let (mut aux, mut count, mut mean) = (0.0, 0.0, 0.0);
    for (_, v) in window {
        count += 1.0;
        let delta = v - mean;
        mean += delta / count;
        aux += delta * (v - mean);
    }
    aux / count
}

fn quantile(q: f64, mut values: Vec<f64>) -> f64 {
    if q.is_nan() {
        return f64::NAN;
    }
    if q < 0.0 {
        return f64::NEG_INFINITY;
    }
    if q > 1.0 {
        return f64::INFINITY;
    }
    // NaN sorts first. Only two values are looked at: the others need no order.
    let order = |a: &f64, b: &f64| {
        let nan_first = b.is_nan().cmp(&a.is_nan());
        nan_first.then(a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal))
    };
    let rank = q * (values.len() as f64 - 1.0);
    let low = rank.floor().max(0.0) as usize;
    if low >= values.len() {
        return f64::NAN;
    }
    let (_, a, above) = values.select_nth_unstable_by(low, order);
    // The next one, or the last itself.
    let b = above.iter().copied().min_by(order).unwrap_or(*a);
    let weight = rank - rank.floor();
    *a * (1.0 - weight) + b * weight
}

/// Extrapolates a counter's increase to the range as Loki does: from the window's own first sample,
/// with times in nanoseconds where milliseconds are meant, so that next to nothing is added.
fn rate_counter(window: &[(i64, f64)], range_ms: i64) -> f64 {
    let (Some(first), Some(last)) = (window.first(), window.last()) else { return 0.0 };
    if window.len() < 2 {
        return 0.0;
    }
    let mut increase = last.1 - first.1;
    let mut before = 0.0;
    for (_, v) in window {
        if *v < before {
            increase += before;
        }
        before = *v;
    }
    let mut to_start = range_ms as f64 / 1000.0;
    let sampled = (last.0 - first.0) as f64 / 1000.0;
    let average = sampled / (window.len() - 1) as f64;
    if increase > 0.0 && first.1 >= 0.0 {
        to_start = to_start.min(sampled * (first.1 / increase));
    }
    let threshold = average * 1.1;
    // The window ends at its last sample, which adds nothing.
    let interval = sampled + if to_start < threshold { to_start } else { average / 2.0 };
    increase * (interval / sampled) / (range_ms as f64 / 1000.0)
}

/// Returns the labels that anything in the query asks for, when that is known: then parsers can
/// stop early. `None`: all are needed.
fn wanted(r: &RangeAggregation, groups: Option<&Groups>) -> Option<Vec<String>> {
    let groups = groups.filter(|g| !g.without)?;
    let mut names: Vec<&str> = groups.labels.iter().map(String::as_str).collect();
    for stage in &r.expr.stages {
        match stage {
            Stage::Label(f) => f.names(&mut names),
            Stage::Line(_) | Stage::Regexp(_) | Stage::Pattern(_) | Stage::Decolorize => {}
            Stage::Json(f) if f.is_empty() => {}
            Stage::Logfmt { fields, .. } if fields.is_empty() => {}
            _ => return None,
        }
    }
    if let Some(u) = &r.unwrap {
        names.push(&u.label);
        u.filters.iter().for_each(|f| f.names(&mut names));
    }
    names.sort_unstable();
    names.dedup();
    Some(names.into_iter().map(str::to_owned).collect())
}

/// Returns whether the query asks about errors itself, so that they are results like others.
fn asks_for_errors(r: &RangeAggregation, groups: Option<&Groups>) -> bool {
    let mut names = Vec::new();
    let mut add = |f: &'_ LabelFilter| {
        let mut found = Vec::new();
        f.names(&mut found);
        names.extend(found.into_iter().map(str::to_owned));
    };
    for stage in &r.expr.stages {
        if let Stage::Label(f) = stage {
            add(f);
        }
    }
    r.unwrap.iter().flat_map(|u| &u.filters).for_each(&mut add);
    names.iter().any(|n| n == ERROR)
        || groups.is_some_and(|g| !g.without && g.labels.iter().any(|l| l == ERROR))
}

fn pipeline_error(entry: &Entry<'_>) -> QueryError {
    let kind = entry.error();
    let all = entry.all();
    let pairs: Vec<String> = all.iter().map(|(n, v)| format!("{n}={v:?}")).collect();
    let series = pairs.join(", ");
    QueryError::Pipeline(format!(
        "pipeline error: '{kind}' for series: '{{{series}}}'.\n\
         Use a label filter to intentionally skip this error. (e.g | __error__!=\"{kind}\").\n\
         To skip all potential errors you can match empty errors.(e.g __error__=\"\")\n\
         The label filter can also be specified after unwrap. (e.g | unwrap latency | __error__=\"\" )\n"
    ))
}

/// Computes an aggregation at all steps.
pub(crate) fn run(
    source: &dyn SelectLogs,
    tenant: &TenantId,
    r: &RangeAggregation,
    steps: Steps,
    budget: &Budget,
) -> Result<Vec<Series>, QueryError> {
    let groups = r.groups.as_ref().or(r.pushed.as_ref());
    let wanted = wanted(r, groups);
    let errors_are_results = asks_for_errors(r, groups);
    let unwrapped = r.unwrap.as_ref().map(|u| u.label.as_str());
    let is_sum = r.unwrap.is_none();
    let is_bytes = matches!(r.op, RangeOp::Bytes | RangeOp::BytesRate);
    let (offset_ns, range_ns) = (r.offset_ms.saturating_mul(MS), r.range_ms.saturating_mul(MS));
    let last = steps.start + steps.step * (steps.count as i64 - 1);
    let from = steps.start.saturating_mul(MS).saturating_sub(offset_ns).saturating_sub(range_ns);
    let to = last.saturating_mul(MS).saturating_sub(offset_ns);
    let needles = r.expr.needles();
    let selection = LogSelection {
        matchers: &r.expr.matchers,
        start: TimestampNs::from_nanos(from.saturating_add(1)),
        end: TimestampNs::from_nanos(to.saturating_add(1)),
        direction: Direction::Forward,
        trace_id: None,
        needles: &needles,
    };
    let mut pipeline = Pipeline::new(&r.expr.stages);
    let names_ids = r.expr.names_ids();
    let mut plain: HashMap<Labels, usize> = HashMap::new();
    let mut index: HashMap<Labels, usize> = HashMap::new();
    let mut gathered: Vec<Gathered> = Vec::new();
    let mut failure = None;
    let mut windows = Windows::new(steps, range_ns);
    // The series of the stream before, which mostly is the stream of the next record too.
    let mut last: Option<(Labels, usize)> = None;
    let mut take = |record: &LogRecord, rows: LogRows<'_>| {
        if rows.times.is_empty() {
            return ControlFlow::Continue(false);
        }
        let mut entry = Entry::new(record, wanted.as_deref());
        if names_ids {
            entry = entry.with_ids(record);
        }
        let line = pipeline.run(&record.line, record.timestamp, &mut entry);
        let Some(line) = line else { return ControlFlow::Continue(false) };
        let value = match &r.unwrap {
            None if is_bytes => line.len() as f64,
            None => 1.0,
            Some(u) => match unwrap(u, &mut entry) {
                Some(v) => v,
                // The number of another may be one.
                None => return ControlFlow::Continue(true),
            },
        };
        if entry.has_error() && !errors_are_results {
            failure = Some(pipeline_error(&entry));
            return ControlFlow::Break(());
        }
        let is_plain = entry.is_plain();
        let same = last.as_ref().filter(|(l, _)| is_plain && l == entry.stream()).map(|l| l.1);
        let known = same.or_else(|| plain.get(entry.stream()).filter(|_| is_plain).copied());
        let at = known.unwrap_or_else(|| {
            let labels = entry.grouped(groups, unwrapped);
            let next = gathered.len();
            let at = *index.entry(labels).or_insert(next);
            if is_plain {
                plain.insert(entry.stream().clone(), at);
            }
            at
        });
        if is_plain && same.is_none() {
            last = Some((entry.stream().clone(), at));
        }
        if at == gathered.len() {
            let bytes = Gathered::bytes(is_sum, steps.count) + 300;
            if budget.take(0, bytes).is_err() {
                failure = Some(too_much());
                return ControlFlow::Break(());
            }
            gathered.push(Gathered::new(is_sum, steps.count));
        }
        let n = rows.times.len();
        if !is_sum && budget.take(n, 16 * n).is_err() {
            failure = Some(too_much());
            return ControlFlow::Break(());
        }
        if let Some(g) = gathered.get_mut(at) {
            g.add(&mut windows, offset_ns, rows, value);
        }
        ControlFlow::Continue(true)
    };
    let ordered = r.expr.stages.iter().any(|s| matches!(s, Stage::Distinct(_)));
    if ordered {
        source.select_logs(tenant, &selection, budget, &mut |r| {
            take(r, LogRows::one(&r.timestamp.nanos())).map_continue(|_| ())
        })?;
    } else {
        let skips_parsers = wanted.as_ref().is_some_and(Vec::is_empty);
        let reads_line = |s: &Stage| match s {
            Stage::Label(_) | Stage::Drop(_) | Stage::Keep(_) => false,
            Stage::Json(_) | Stage::Logfmt { .. } | Stage::Regexp(_) | Stage::Pattern(_) => {
                !skips_parsers
            }
            _ => true,
        };
        let line = is_bytes || r.expr.stages.iter().any(reads_line);
        let accept = |stream: &Labels| may_pass(&r.expr.stages, stream);
        let read = Read::new(r, groups, wanted.as_deref());
        let of = |stream: &Labels| read.number.as_ref().is_some_and(|n| n.is_of(stream));
        let holds = |v: f64| read.number.as_ref().is_none_or(|n| n.holds(v));
        let wants = |key: &str, has_inside: bool| read.wants(key, has_inside);
        let number = read.number.as_ref().map(|n| NumberMember {
            key: n.name,
            holds: &holds,
            is_value: !is_sum,
            of: &of,
        });
        let filters = |s: &Stage| matches!(s, Stage::Line(_) | Stage::Label(_));
        let may_refuse = r.expr.stages.iter().any(filters);
        let is_blind = |s: &Stage| matches!(s, Stage::Line(f) if f.is_blind_to_digits());
        let digits_alike = r.unwrap.is_none() && r.expr.stages.iter().all(is_blind);
        let members =
            LineMembers { wants: &wants, number, runs: &read.runs, digits_alike, may_refuse };
        let members = read.is_by_member.then_some(members);
        let members = members.filter(|_| !is_bytes);
        let scan = LogScan { accept: &accept, line, ids: names_ids, members };
        source.scan_logs(tenant, &selection, scan, budget, &mut take)?;
        for g in &mut gathered {
            if let Gathered::Samples(list) = g {
                list.sort_by_key(|s| s.0);
            }
        }
    }
    if let Some(e) = failure {
        return Err(e);
    }
    let series = index.into_iter().filter_map(|(labels, i)| {
        let samples = gathered.get(i)?.values(r, steps);
        Some(Series { labels, samples })
    });
    let mut out: Vec<Series> = series.filter(|s| !s.samples.is_empty()).collect();
    out.sort_by(|a, b| a.labels.cmp(&b.labels));
    if r.op == RangeOp::Absent {
        return Ok(absent(r, steps, &out));
    }
    Ok(out)
}

/// Returns whether any line of a stream may pass the stages: what filters a label that the stream
/// itself has is known beforehand, as parsers leave such labels alone.
fn may_pass(stages: &[Stage], stream: &Labels) -> bool {
    let keeps_labels = |s: &&Stage| {
        !matches!(s, Stage::LabelFormat(_) | Stage::Drop(_) | Stage::Keep(_) | Stage::Distinct(_))
    };
    stages.iter().take_while(keeps_labels).all(|s| match s {
        Stage::Label(LabelFilter::Matches(m)) => {
            let value = stream.get(&m.name);
            value.is_empty() || m.matches(value)
        }
        _ => true,
    })
}

fn too_much() -> QueryError {
    QueryError::Select(SelectError::TooMuch("the memory of a query for its series".into()))
}

/// Returns one series with 1 wherever none has a sample; its labels are what the selector says
/// for certain.
fn absent(r: &RangeAggregation, steps: Steps, present: &[Series]) -> Vec<Series> {
    let mut b = LabelsBuilder::default();
    let matchers = &r.expr.matchers;
    for m in matchers {
        let others = matchers.iter().filter(|o| o.name == m.name).count();
        if m.op == MatchOp::Equal && others == 1 {
            b.set(&m.name, &m.value);
        }
    }
    let mut is_there = vec![false; steps.count];
    for sample in present.iter().flat_map(|s| &s.samples) {
        let at = (sample.timestamp.millis() - steps.start) / steps.step;
        if let Some(slot) = usize::try_from(at).ok().and_then(|i| is_there.get_mut(i)) {
            *slot = true;
        }
    }
    let gone = is_there.iter().enumerate().filter(|(_, there)| !**there);
    let samples: Vec<Sample> =
        gone.map(|(i, _)| Sample::float(steps.start + steps.step * i as i64, 1.0)).collect();
    if samples.is_empty() {
        return Vec::new();
    }
    vec![Series { labels: b.build(), samples }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_left_open() {
        let steps = Steps { start: 10_000, step: 1000, count: 5 };
        let mut w = Windows::new(steps, 2000 * MS);
        // In any order: what is remembered of one time must hold for the next.
        for _ in 0..2 {
            for (ns, want) in [
                (10_000 * MS, (0, 2)),
                (8000 * MS, (0, 0)),
                (8000 * MS + 1, (0, 1)),
                (9_500 * MS, (0, 2)),
                (10_000 * MS + 1, (1, 3)),
                (14_000 * MS, (4, 5)),
                (14_000 * MS + 1, (5, 5)),
                (0, (0, 0)),
                (i64::MAX, (5, 5)),
            ] {
                let (from, to) = w.of(ns);
                assert_eq!((from, to.max(from)), want, "{ns}");
            }
        }
    }

    #[test]
    fn counter_rates_are_as_odd_as_lokis() {
        let window: Vec<(i64, f64)> = (46..=60).map(|s| (s * 1_000_000_000, s as f64)).collect();
        assert_eq!(rate_counter(&window, 30_000), 0.46666766666666665);
    }

    #[test]
    fn quantiles() {
        let list = || vec![3.0, 1.0, 2.0, 4.0];
        assert_eq!(quantile(0.5, list()), 2.5);
        assert_eq!(quantile(1.0, list()), 4.0);
        assert_eq!(quantile(2.0, list()), f64::INFINITY);
        assert!(quantile(f64::NAN, list()).is_nan());
    }
}
