//! Results of range queries, kept and continued.
//!
//! A dashboard asks the same queries again and again, each time for a range that has moved a
//! little. What a query gave at a step depends on samples up to that step's time alone, unless it
//! says otherwise; so the steps that were evaluated before are taken from memory, up to the first
//! of which a sample changed since, and the others are evaluated. The answer is that of an evaluation of
//! the whole range: the store says what was written late, replaced or deleted.

use crate::ast::{DurationExpr, Expr, Selector};
use crate::eval::{Annotations, EvalError, Output, QueryOptions, evaluate_range};
use obs_model::{
    Budget, Lru, MemoryPool, MemoryShare, Moment, Sample, SampleValue, SelectSeries, Series,
    TenantId, TimestampMs,
};
use std::cmp::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A query over a range.
#[derive(Debug, Clone, Copy)]
pub struct RangeQuery<'a> {
    pub tenant: &'a TenantId,
    /// What `expr` was parsed from.
    pub text: &'a str,
    pub expr: &'a Expr,
    pub start: TimestampMs,
    /// Not before `start`.
    pub end: TimestampMs,
    /// Above zero.
    pub step_ms: i64,
    pub options: QueryOptions,
}

impl RangeQuery<'_> {
    /// Evaluates all steps, or those of a part of the range.
    ///
    /// # Errors
    /// See [`evaluate_range`].
    pub fn evaluate(
        &self,
        source: &dyn SelectSeries,
        (first, last): (TimestampMs, TimestampMs),
        budget: &Budget,
    ) -> Result<(Output, Annotations), EvalError> {
        let range = (first, last);
        evaluate_range(source, self.tenant, self.expr, range, self.step_ms, self.options, budget)
    }

    /// Returns the last step at or before a time that is not before the start.
    const fn step_before(&self, time: i64) -> i64 {
        time - (time - self.start.millis()) % self.step_ms
    }
}

/// How much of an answer was known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    All,
    Part,
    Nothing,
    /// The query is not one whose answers are kept.
    Never,
}

impl Reuse {
    /// Returns the value of the label by which this is counted.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::All => "hit",
            Self::Part => "partial",
            Self::Nothing => "miss",
            Self::Never => "uncacheable",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    tenant: TenantId,
    text: String,
    step_ms: i64,
    /// What is left of a step's time after whole steps.
    phase_ms: i64,
    options: QueryOptions,
}

/// The answer for some steps. Times are milliseconds.
#[derive(Debug)]
struct Kept {
    moment: Moment,
    first: i64,
    last: i64,
    /// Sorted by labels.
    series: Vec<Series>,
    /// Says nothing but what names tell.
    annotations: Annotations,
}

/// Answers that were used last, within a bound of memory.
#[derive(Debug)]
pub struct ResultsCache {
    kept: Mutex<Lru<Key, Arc<Kept>>>,
    share: MemoryShare,
}

impl ResultsCache {
    /// Keeps answers of `bytes_max` bytes, which count in the pool; with zero none are kept.
    pub fn new(bytes_max: u64, pool: &Arc<MemoryPool>) -> Self {
        Self { kept: Mutex::new(Lru::new(bytes_max)), share: pool.share() }
    }

    fn kept(&self) -> MutexGuard<'_, Lru<Key, Arc<Kept>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the bytes in use, and how many may be.
    pub fn bytes(&self) -> (u64, u64) {
        let kept = self.kept();
        (kept.bytes(), kept.bytes_max())
    }

    /// Evaluates a query, of whose steps after `now` nothing is kept.
    ///
    /// # Errors
    /// See [`evaluate_range`].
    pub fn evaluate(
        &self,
        source: &dyn SelectSeries,
        query: &RangeQuery<'_>,
        now: TimestampMs,
        budget: &Budget,
    ) -> Result<(Output, Annotations, Reuse), EvalError> {
        let whole = || {
            let (output, said) = query.evaluate(source, (query.start, query.end), budget)?;
            Ok((output, said, Reuse::Never))
        };
        if self.bytes().1 == 0 || now < query.start || !is_keepable(query.expr) {
            return whole();
        }
        let (start, end) = (query.start.millis(), query.step_before(query.end.millis()));
        // Of what is answered now, the last step that is kept.
        let settled = query.step_before(end.min(now.millis()));
        let Some(moment) = source.watch(query.tenant, TimestampMs::from_millis(settled)) else {
            return whole();
        };
        let key = Key {
            tenant: query.tenant.clone(),
            text: query.text.to_owned(),
            step_ms: query.step_ms,
            phase_ms: start.rem_euclid(query.step_ms),
            options: query.options,
        };
        let known = self.known(source, query, &key);
        let overlap = known.as_ref().and_then(|(kept, last)| {
            let (from, to) = (kept.first.max(start), (*last).min(end));
            if from > to {
                return None;
            }
            let series = within(&kept.series, (from, to));
            // Whether something is said of names can be told by the results alone.
            let is_told = !series.is_empty() || kept.annotations.infos.is_empty();
            is_told.then_some((kept, series, (from, to)))
        });
        let Some((kept, mut series, (from, to))) = overlap else {
            let (output, said) = query.evaluate(source, (query.start, query.end), budget)?;
            if let Output::Matrix(series) = &output
                && self.may_keep(series, &said, budget)
            {
                let answer = Kept {
                    moment,
                    first: start,
                    last: settled,
                    series: within(series, (start, settled)),
                    annotations: said.clone(),
                };
                self.keep(key, answer);
            }
            return Ok((output, said, Reuse::Nothing));
        };
        let mut said = Annotations::default();
        budget.take(0, series.iter().map(size_bytes).sum())?;
        if !series.is_empty() {
            said.extend(kept.annotations.clone());
        }
        let step = query.step_ms;
        let mut reuse = Reuse::All;
        for (first, last) in [(start, from - step), (to + step, end)] {
            if first > last {
                continue;
            }
            reuse = Reuse::Part;
            let part = (TimestampMs::from_millis(first), TimestampMs::from_millis(last));
            let (output, more) = query.evaluate(source, part, budget)?;
            said.extend(more);
            if let Output::Matrix(part) = output {
                series = if first < from { joined(part, series) } else { joined(series, part) };
            }
        }
        if reuse == Reuse::Part && self.may_keep(&series, &said, budget) {
            // Who looks at a range looks at what is around it next.
            let span = end - start;
            let first = kept.first.max(start - span).min(start);
            let last = known.as_ref().map_or(settled, |(_, l)| (*l).min(end + span).max(settled));
            let first = first + (start - first) % step;
            let last = query.step_before(last);
            let before = within(&kept.series, (first, start - step));
            let after = within(&kept.series, (settled + step, last));
            let now = within(&series, (start, settled));
            let answer = Kept {
                moment,
                first,
                last,
                series: joined(joined(before, now), after),
                annotations: said.clone(),
            };
            self.keep(key, answer);
        }
        Ok((Output::Matrix(series), said, reuse))
    }

    /// Returns what is kept of a query, and the last step that still holds.
    fn known(
        &self,
        source: &dyn SelectSeries,
        query: &RangeQuery<'_>,
        key: &Key,
    ) -> Option<(Arc<Kept>, i64)> {
        let kept = self.kept().get(key)?.clone();
        let last = match source.changed_since(query.tenant, kept.moment) {
            None => kept.last,
            Some(changed) => {
                let steps = changed.millis().checked_sub(1 + kept.first)?.div_euclid(query.step_ms);
                kept.last.min(kept.first + steps.saturating_mul(query.step_ms))
            }
        };
        (last >= kept.first).then_some((kept, last))
    }

    /// Returns the bytes that one answer may take: it must not drive out all others.
    fn answer_bytes_max(&self) -> usize {
        usize::try_from(self.bytes().1 / 4).unwrap_or(usize::MAX)
    }

    /// Returns whether an answer is worth a copy: it is not too large, nothing of it was missing, and
    /// nothing was said of it that need not hold for other ranges.
    fn may_keep(&self, series: &[Series], said: &Annotations, budget: &Budget) -> bool {
        let bytes: usize = series.iter().map(size_bytes).sum();
        bytes <= self.answer_bytes_max() && said.is_of_names() && budget.missing().is_empty()
    }

    /// Keeps an answer that may be kept, unless what was kept before makes it too large.
    fn keep(&self, key: Key, answer: Kept) {
        /// Of an entry without series.
        const ENTRY_BYTES: usize = 256;
        let series: usize = answer.series.iter().map(size_bytes).sum();
        let bytes = ENTRY_BYTES + key.text.len() + series;
        let is_small = bytes <= self.answer_bytes_max();
        let mut kept = self.kept();
        if is_small {
            kept.put(key, Arc::new(answer), bytes as u64);
        }
        self.share.set(usize::try_from(kept.bytes()).unwrap_or(usize::MAX));
    }
}

fn size_bytes(s: &Series) -> usize {
    let histogram = |x: &Sample| match &x.value {
        SampleValue::Float(_) => 0,
        SampleValue::Histogram(h) => h.size_bytes(),
    };
    let samples: usize = s.samples.iter().map(histogram).sum();
    s.labels.size_bytes() + s.samples.len() * size_of::<Sample>() + samples + size_of::<Series>()
}

/// Returns the samples in `[first, last]`, of the series that have any.
fn within(series: &[Series], (first, last): (i64, i64)) -> Vec<Series> {
    let part = |s: &Series| {
        let from = s.samples.partition_point(|x| x.timestamp.millis() < first);
        let to = s.samples.partition_point(|x| x.timestamp.millis() <= last);
        let samples = s.samples.get(from..to).filter(|part| !part.is_empty())?;
        Some(Series { labels: s.labels.clone(), samples: samples.to_vec() })
    };
    series.iter().filter_map(part).collect()
}

/// Joins an answer with that of later steps; both are sorted by labels.
fn joined(earlier: Vec<Series>, later: Vec<Series>) -> Vec<Series> {
    if earlier.is_empty() {
        return later;
    }
    let mut out = Vec::with_capacity(earlier.len().max(later.len()));
    let mut later = later.into_iter().peekable();
    for mut s in earlier {
        while let Some(only) = later.next_if(|l| l.labels < s.labels) {
            out.push(only);
        }
        if let Some(more) = later.next_if(|l| l.labels.cmp(&s.labels) == Ordering::Equal) {
            s.samples.extend(more.samples);
        }
        out.push(s);
    }
    out.extend(later);
    out
}

/// Returns whether a query reads series, and its value at a step depends on the time of the step
/// and samples up to it alone: not on the query's range, nor on what comes later.
fn is_keepable(expr: &Expr) -> bool {
    reads_series(expr) && is_of_past(expr)
}

fn reads_series(expr: &Expr) -> bool {
    match expr {
        Expr::Number(..) | Expr::String(..) => false,
        Expr::Selector(_) | Expr::Matrix { .. } => true,
        Expr::Subquery { expr, .. } | Expr::Paren(expr) | Expr::Negate(expr, _) => {
            reads_series(expr)
        }
        Expr::Binary { lhs, rhs, .. } => reads_series(lhs) || reads_series(rhs),
        Expr::Aggregate { expr, .. } => reads_series(expr),
        Expr::Call { args, .. } => args.iter().any(reads_series),
    }
}

fn is_of_past(expr: &Expr) -> bool {
    let of_past = |s: &Selector| {
        s.at.is_none() && s.offset_ms >= 0 && s.offset_expr.is_none() && s.extension.is_none()
    };
    let is_plain = |list: [&Option<DurationExpr>; 3]| list.iter().all(|e| e.is_none());
    match expr {
        Expr::Number(..) | Expr::String(..) => true,
        Expr::Selector(s) => of_past(s),
        Expr::Matrix { selector, range_expr, .. } => range_expr.is_none() && of_past(selector),
        Expr::Subquery { expr, offset_ms, range_expr, step_expr, offset_expr, at, .. } => {
            let is_plain = is_plain([range_expr, step_expr, offset_expr]);
            at.is_none() && *offset_ms >= 0 && is_plain && is_of_past(expr)
        }
        Expr::Paren(inner) | Expr::Negate(inner, _) => is_of_past(inner),
        Expr::Binary { lhs, rhs, .. } => is_of_past(lhs) && is_of_past(rhs),
        Expr::Aggregate { expr, param, .. } => {
            is_of_past(expr) && param.as_ref().is_none_or(|p| is_of_past(p))
        }
        Expr::Call { function, args, .. } => {
            // `info` looks over all steps which info series there are.
            let of_range = ["end", "info", "range", "start", "step"];
            !of_range.contains(&function.name) && args.iter().all(is_of_past)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;
    use obs_model::Labels;
    use obs_testkit::MemoryStore;
    use proptest::prelude::*;

    /// Returns the samples of a series, which is made if it is not there.
    fn series(store: &mut MemoryStore, n: usize) -> &mut Vec<Sample> {
        let all = &mut store.series;
        while all.len() <= n {
            let name = ["a_total", "b"][all.len() % 2];
            let i = all.len().to_string();
            let labels = Labels::from_pairs([("__name__", name), ("i", &i)]);
            all.push(Series { labels, samples: Vec::new() });
        }
        &mut all[n].samples
    }

    fn write(store: &mut MemoryStore, n: usize, time: i64, value: f64) {
        let samples = series(store, n);
        samples.retain(|s| s.timestamp.millis() != time);
        let at = samples.partition_point(|s| s.timestamp.millis() < time);
        samples.insert(at, Sample::float(time, value));
        store.changes.note(&TenantId::default(), TimestampMs::from_millis(time));
    }

    fn delete(store: &mut MemoryStore, n: usize, from: i64, to: i64) {
        series(store, n).retain(|s| !(from..=to).contains(&s.timestamp.millis()));
        store.changes.note(&TenantId::default(), TimestampMs::from_millis(from));
    }

    /// Asks a query of the cache; it must give what an evaluation gives.
    fn ask(
        (cache, source): (&ResultsCache, &MemoryStore),
        text: &str,
        (start, end, step_ms): (i64, i64, i64),
        now: i64,
    ) -> Reuse {
        let at = TimestampMs::from_millis;
        let query = RangeQuery {
            tenant: &TenantId::default(),
            text,
            expr: &parse(text).unwrap(),
            start: at(start),
            end: at(end),
            step_ms,
            options: QueryOptions::default(),
        };
        let budget = || Budget::new(i64::MAX, i64::MAX);
        let kept = cache.evaluate(source, &query, at(now), &budget());
        let fresh = query.evaluate(source, (query.start, query.end), &budget());
        let reuse = kept.as_ref().map_or(Reuse::Never, |k| k.2);
        let (kept, fresh) = (kept.map(|(o, a, _)| (o, a)), fresh);
        let (kept, fresh) = (format!("{kept:?}"), format!("{fresh:?}"));
        assert_eq!(kept, fresh, "{text} {start}..{end}/{step_ms} at {now}: {reuse:?}");
        reuse
    }

    fn cache(bytes: u64) -> ResultsCache {
        ResultsCache::new(bytes, &Arc::new(MemoryPool::unlimited()))
    }

    #[test]
    fn steps_are_evaluated_once_until_something_changes() {
        let mut source = MemoryStore::default();
        for t in 0..200 {
            write(&mut source, 0, t * 15_000, t as f64);
        }
        let cache = cache(1 << 20);
        let minute = 60_000;
        let ask = |source: &MemoryStore, text: &str, from: i64, to: i64| {
            ask((&cache, source), text, (from * minute, to * minute, minute), 40 * minute)
        };
        let sum = "sum(rate(a_total[5m]))";
        assert_eq!(ask(&source, sum, 10, 20), Reuse::Nothing);
        assert_eq!(ask(&source, sum, 10, 20), Reuse::All);
        assert_eq!(ask(&source, sum, 12, 18), Reuse::All);
        assert_eq!(ask(&source, sum, 12, 22), Reuse::Part);
        assert_eq!(ask(&source, sum, 10, 22), Reuse::All, "what was before is still there");
        assert_eq!(ask(&source, sum, 8, 24), Reuse::Part);
        assert_eq!(ask(&source, sum, 8, 24), Reuse::All);
        assert_eq!(ask(&source, sum, 26, 30), Reuse::Nothing);
        assert_eq!(ask(&source, sum, 26, 30), Reuse::All);
        // Steps of the future are evaluated each time.
        assert_eq!(ask(&source, sum, 38, 42), Reuse::Nothing);
        assert_eq!(ask(&source, sum, 38, 40), Reuse::All);
        assert_eq!(ask(&source, sum, 38, 42), Reuse::Part);
        // A late sample: what is before it holds.
        write(&mut source, 0, 39 * minute, 7.0);
        assert_eq!(ask(&source, sum, 38, 38), Reuse::All);
        assert_eq!(ask(&source, sum, 38, 40), Reuse::Part);
        assert_eq!(ask(&source, sum, 38, 40), Reuse::All);
        // A name is told of wherever it has samples, also where they give no result.
        for (at, v) in [(30, 1.0), (35, 1.0), (36, 2.0)] {
            write(&mut source, 1, at * minute, v);
        }
        assert_eq!(ask(&source, "increase(b[3m])", 28, 38), Reuse::Nothing);
        assert_eq!(ask(&source, "increase(b[3m])", 29, 31), Reuse::Nothing);
        assert_eq!(ask(&source, "increase(b[3m])", 35, 38), Reuse::Nothing);
        assert_eq!(ask(&source, "increase(b[3m])", 36, 37), Reuse::All);
        delete(&mut source, 0, 0, minute);
        assert_eq!(ask(&source, sum, 38, 40), Reuse::Nothing);
        // What looks elsewhere is never kept.
        for text in [
            "a_total @ start()",
            "a_total @ 60",
            "a_total offset -5m",
            "sum_over_time(a_total[5m:1m] @ end())",
            "info(a_total)",
            "a_total * step()",
            "time()",
        ] {
            assert_eq!(ask(&source, text, 10, 20), Reuse::Never, "{text}");
            assert_eq!(ask(&source, text, 10, 20), Reuse::Never, "{text}");
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut source = MemoryStore::default();
        for t in 0..200 {
            write(&mut source, 0, t * 15_000, t as f64);
        }
        let pool = Arc::new(MemoryPool::unlimited());
        let cache = ResultsCache::new(100_000, &pool);
        for i in 0..100 {
            let text = format!("a_total + {i}");
            ask((&cache, &source), &text, (0, 3_000_000, 15_000), 1 << 40);
            let (bytes, max) = cache.bytes();
            assert!(bytes > 0 && bytes <= max && pool.used() == bytes as i64, "{bytes}");
        }
        // Larger than a quarter of everything.
        assert_eq!(
            ask((&cache, &source), "a_total", (0, 3_000_000, 1_000), 1 << 40),
            Reuse::Nothing
        );
        assert_eq!(
            ask((&cache, &source), "a_total", (0, 3_000_000, 1_000), 1 << 40),
            Reuse::Nothing
        );
        assert_eq!(
            ask((&super::tests::cache(0), &source), "a_total", (0, 10, 1), 20),
            Reuse::Never
        );
    }

    #[derive(Debug, Clone)]
    enum Act {
        Write(usize, i64, f64),
        Delete(usize, i64, i64),
        Ask(usize, i64, i64, i64),
    }

    const QUERIES: [&str; 14] = [
        "a_total",
        "rate(a_total[2m])",
        "sum by (i) (increase(b[3m]))",
        "topk(1, {__name__=~\"a_total|b\"})",
        "quantile_over_time(0.5, b[2m])",
        "absent(a_total{i=\"0\"})",
        "max_over_time(sum(b)[5m:30s] offset 1m)",
        "a_total / on() group_left() b{i=\"1\"}",
        "count_values(\"v\", a_total)",
        "limitk(1, {i=~\".+\"})",
        "timestamp(b) - time()",
        "b > 3 or a_total offset 2m",
        "stddev(b) without (i)",
        "deriv(b[4m])",
    ];

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn answers_are_those_of_an_evaluation(
            acts in prop::collection::vec(prop_oneof![
                4 => (0_usize..4, 0_i64..120, 0_i32..9)
                    .prop_map(|(n, t, v)| Act::Write(n, t * 15_000, f64::from(v))),
                1 => (0_usize..4, 0_i64..120, 0_i64..20)
                    .prop_map(|(n, t, l)| Act::Delete(n, t * 15_000, (t + l) * 15_000)),
                5 => (0_usize..QUERIES.len(), 0_i64..60, 0_i64..60, 0_i64..3)
                    .prop_map(|(q, s, l, p)| Act::Ask(q, s * 30_000 + p % 2, (s + l) * 30_000 + p, 30_000)),
            ], 1..120),
            only in 0_usize..QUERIES.len(),
        ) {
            let mut source = MemoryStore::default();
            let cache = cache(1 << 20);
            let mut now = 0;
            for act in acts {
                match act {
                    // Most of what is written is new.
                    Act::Write(n, t, v) if n % 2 == 0 => {
                        now += t / 30;
                        write(&mut source, n, now, v);
                    }
                    Act::Write(n, t, v) => write(&mut source, n, t, v),
                    Act::Delete(n, from, to) => delete(&mut source, n, from, to),
                    Act::Ask(q, s, e, step) => {
                        // One query more often than others.
                        let q = if q % 2 == 0 { only } else { q };
                        ask((&cache, &source), QUERIES[q], (s, e.max(s), step), now);
                    }
                }
            }
        }
    }
}
