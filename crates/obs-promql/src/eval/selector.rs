//! Instant and range selectors, subqueries.

use crate::ast::{Expr, Extension, Selector};
use crate::eval::extended::{extended_window, interpolate};
use crate::eval::range_functions::Window;
use crate::eval::{Column, Evaluated, Evaluator, Slot, Steps, Value, execution};
use obs_model::{
    Budget, ColumnSeries, Floats, Histogram, Labels, ResetHint, Sample, SampleValue, Samples,
    SelectError, Series, SeriesSelection, TimestampMs, is_stale,
};
use std::sync::Arc;

/// Series with the samples that the windows of all steps may need, and the windows.
pub(crate) struct RangeVector {
    /// Without samples where they are in `columns`.
    pub(crate) series: Vec<Series>,
    /// Of the series that have floats alone, until [`Self::single`] takes them.
    pub(crate) columns: Vec<Option<Floats>>,
    pub(crate) range_ms: i64,
    /// End of the window at each step.
    pub(crate) ends: Vec<i64>,
    pub(crate) extension: Option<Extension>,
    /// How far past the edges of a window its samples reach, in milliseconds.
    pub(crate) reach: (i64, i64),
    /// Samples that the steps of a subquery looked at, if that is counted.
    inner: Option<u64>,
    /// Places of series of a subquery whose names go at the end of the query.
    pub(crate) nameless: Vec<usize>,
}

/// How far an extended selector looks before and after.
const fn reach(extension: Option<Extension>, lookback_ms: i64) -> (i64, i64) {
    match extension {
        None => (0, 0),
        Some(Extension::Anchored) => (lookback_ms, 0),
        Some(Extension::Smoothed) => (lookback_ms, lookback_ms),
    }
}

impl RangeVector {
    fn new(
        found: Vec<ColumnSeries>,
        (range_ms, ends): (i64, Vec<i64>),
        (extension, reach): (Option<Extension>, (i64, i64)),
    ) -> Self {
        let mut series = Vec::with_capacity(found.len());
        let mut columns = Vec::with_capacity(found.len());
        for s in found {
            let (samples, floats) = match s.samples {
                Samples::Floats(f) => (Vec::new(), Some(f)),
                Samples::Mixed(list) => (list, None),
            };
            series.push(Series { labels: s.labels, samples });
            columns.push(floats);
        }
        Self {
            series,
            columns,
            range_ms,
            ends,
            extension,
            reach,
            inner: None,
            nameless: Vec::new(),
        }
    }

    /// Returns how many samples the windows of each step hold.
    fn count(&self) -> Vec<u64> {
        let mut out = vec![0; self.ends.len()];
        for (s, floats) in self.series.iter().zip(&self.columns) {
            let samples: Vec<(i64, u64)> = match floats {
                Some(f) => {
                    let weigh = |(t, v): (&i64, &f64)| (*t, u64::from(!is_stale(*v)));
                    f.times.iter().zip(f.values.iter()).map(weigh).collect()
                }
                None => {
                    s.samples.iter().map(|x| (x.timestamp.millis(), weight(&x.value))).collect()
                }
            };
            let (mut from, mut to, mut sum) = (0, 0, 0);
            for (end, n) in self.ends.iter().zip(&mut out) {
                let start = end - self.range_ms - self.reach.0;
                while let Some((_, w)) = samples.get(to).filter(|x| x.0 <= end + self.reach.1) {
                    (to, sum) = (to + 1, sum + w);
                }
                while from < to
                    && let Some((_, w)) = samples.get(from).filter(|x| x.0 <= start)
                {
                    (from, sum) = (from + 1, sum - w);
                }
                *n += sum;
            }
        }
        out
    }

    /// Makes single samples of a series' columns, without markers of staleness.
    pub(crate) fn single(&mut self, index: usize, budget: &Budget) -> Result<(), SelectError> {
        let Some(s) = self.series.get_mut(index) else { return Ok(()) };
        if let Some(floats) = self.columns.get_mut(index).and_then(Option::take) {
            budget.take(0, floats.values.len() * size_of::<Sample>())?;
            s.samples = floats.iter().collect();
        }
        without_stale(s);
        Ok(())
    }

    /// Calls `f` for each series and step that has samples in its left-open window, extended by
    /// what the selector reaches. Gives the series' index, the step's index and the samples.
    pub(crate) fn each_window<E>(
        &self,
        f: impl FnMut(usize, usize, &[Sample]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.each_window_of(|_| true, f)
    }

    /// Like [`Self::each_window`], of the series that `wanted` picks by index.
    pub(crate) fn each_window_of<E>(
        &self,
        wanted: impl Fn(usize) -> bool,
        mut f: impl FnMut(usize, usize, &[Sample]) -> Result<(), E>,
    ) -> Result<(), E> {
        for (index, series) in self.series.iter().enumerate().filter(|(i, _)| wanted(*i)) {
            let samples = series.samples.as_slice();
            let (mut from, mut to) = (0, 0);
            for (step, end) in self.ends.iter().enumerate() {
                let start = end - self.range_ms - self.reach.0;
                let end = end + self.reach.1;
                while samples.get(to).is_some_and(|s| s.timestamp.millis() <= end) {
                    to += 1;
                }
                while from < to && samples.get(from).is_some_and(|s| s.timestamp.millis() <= start)
                {
                    from += 1;
                }
                if let Some(window) = samples.get(from..to).filter(|w| !w.is_empty()) {
                    f(index, step, window)?;
                }
            }
        }
        Ok(())
    }
}

/// Returns a histogram that counts up.
fn counter(s: &Sample) -> Option<&Arc<Histogram>> {
    match &s.value {
        SampleValue::Histogram(h) if !s.value.is_stale() && h.reset_hint != ResetHint::Gauge => {
            Some(h)
        }
        _ => None,
    }
}

/// Returns for how many samples one counts.
fn weight(value: &SampleValue) -> u64 {
    match value {
        SampleValue::Float(v) => u64::from(!is_stale(*v)),
        SampleValue::Histogram(_) if value.is_stale() => 0,
        SampleValue::Histogram(h) => (h.size_bytes() as u64 + 8) / 16,
    }
}

/// Takes the markers of staleness out of a series.
fn without_stale(s: &mut Series) {
    // Most series never end: looking is cheaper than moving.
    if s.samples.iter().any(|x| x.value.is_stale()) {
        s.samples.retain(|x| !x.value.is_stale());
    }
}

/// Returns the last sample before or at each time that is younger than the look-back, and when it
/// was.
fn latest(
    references: &[i64],
    lookback: i64,
    time: impl Fn(usize) -> Option<i64>,
    value: impl Fn(usize) -> Option<SampleValue>,
) -> (Vec<Slot>, Vec<i64>) {
    let mut values = Vec::with_capacity(references.len());
    let mut times = Vec::with_capacity(references.len());
    let mut next = 0;
    for at in references {
        while time(next).is_some_and(|t| t <= *at) {
            next += 1;
        }
        let found = next.checked_sub(1).and_then(|i| {
            let t = time(i).filter(|t| *t > at - lookback)?;
            Some((value(i)?, t))
        });
        times.push(found.as_ref().map_or(0, |f| f.1));
        values.push(found.map(|f| f.0));
    }
    (values, times)
}

impl Evaluator<'_> {
    /// The value of a smoothed selector lies between the samples around each step; after the last
    /// sample it stays.
    fn smoothed_samples(&mut self, selector: &Selector) -> Evaluated<Vec<(Column, Vec<i64>)>> {
        let (from, to) = self.reference_bounds(selector);
        let lookback = self.options.lookback_ms;
        let series = self.fetch(selector, from - lookback + 1, to + lookback)?;
        self.budget.take(0, series.len().saturating_mul(self.steps.count).saturating_mul(24))?;
        let times: Vec<i64> = self
            .steps
            .times()
            .map(|t| self.reference_time(selector.at, t) - selector.offset_ms)
            .collect();
        let mut out = Vec::with_capacity(series.len());
        for s in series {
            let mut s = Series::from(s);
            without_stale(&mut s);
            let value = |t: &i64| {
                let after = s.samples.partition_point(|x| x.timestamp.millis() <= *t);
                let before = after.checked_sub(1).and_then(|i| s.samples.get(i));
                let before = before.filter(|x| x.timestamp.millis() > t - lookback)?;
                let next = s.samples.get(after).filter(|x| x.timestamp.millis() <= t + lookback);
                match next {
                    Some(next) if before.timestamp.millis() < *t => {
                        Some(interpolate(before, next, *t, None))
                    }
                    _ => Some(before.value.clone()),
                }
            };
            let values: Vec<_> = times.iter().map(value).collect();
            if values.iter().any(Option::is_some) {
                out.push((Column::new(s.labels, values), times.clone()));
            }
        }
        Ok(out)
    }

    fn fetch(&self, selector: &Selector, start: i64, end: i64) -> Evaluated<Vec<ColumnSeries>> {
        let selection = SeriesSelection {
            matchers: &selector.matchers,
            start: TimestampMs::from_millis(start),
            end: TimestampMs::from_millis(end),
        };
        let mut series = self.source.select_columns(self.tenant, &selection, self.budget)?;
        if self.skips_buckets && series.iter().any(|s| matches!(s.samples, Samples::Mixed(_))) {
            self.hint_resets(&selection, &mut series)?;
        }
        Ok(series)
    }

    /// Tells of each native histogram whether its counter was reset since the one before, as Prometheus
    /// does where it reads counts and sums alone. What stands before the samples is looked for within the look-back.
    fn hint_resets(
        &self,
        selection: &SeriesSelection<'_>,
        series: &mut [ColumnSeries],
    ) -> Evaluated<()> {
        let earlier = SeriesSelection {
            matchers: selection.matchers,
            start: TimestampMs::from_millis(selection.start.millis() - self.options.lookback_ms),
            end: TimestampMs::from_millis(selection.start.millis() - 1),
        };
        let earlier = self.source.select_columns(self.tenant, &earlier, self.budget)?;
        for s in series {
            let Samples::Mixed(list) = &mut s.samples else { continue };
            let place = earlier.binary_search_by(|e| e.labels.cmp(&s.labels));
            let mut before = match place.ok().and_then(|i| earlier.get(i)).map(|e| &e.samples) {
                Some(Samples::Mixed(list)) => list.last().and_then(counter).cloned(),
                _ => None,
            };
            for sample in list {
                let Some(h) = counter(sample) else {
                    before = None;
                    continue;
                };
                let hint = match (h.reset_hint, &before) {
                    (ResetHint::Reset, _) => ResetHint::Reset,
                    (_, None) => ResetHint::Unknown,
                    (_, Some(before)) => h.hint_after(before),
                };
                let told = if h.reset_hint == hint {
                    h.clone()
                } else {
                    Arc::new(Histogram { reset_hint: hint, ..(**h).clone() })
                };
                before = Some(told.clone());
                sample.value = SampleValue::Histogram(told);
            }
        }
        Ok(())
    }

    pub(crate) fn selector(&mut self, selector: &Selector) -> Evaluated<Vec<Column>> {
        Ok(self.selector_samples(selector)?.into_iter().map(|(c, _)| c).collect())
    }

    /// Returns columns and, for each slot, the time of the sample it came from.
    pub(crate) fn selector_samples(
        &mut self,
        selector: &Selector,
    ) -> Evaluated<Vec<(Column, Vec<i64>)>> {
        let columns = if selector.extension == Some(Extension::Smoothed) {
            self.smoothed_samples(selector)?
        } else {
            self.latest_samples(selector)?
        };
        if self.options.count_samples {
            for (column, _) in &columns {
                for (step, value) in column.values.iter().enumerate() {
                    self.count(step, value.as_ref().map_or(0, weight));
                }
            }
        }
        Ok(columns)
    }

    fn latest_samples(&mut self, selector: &Selector) -> Evaluated<Vec<(Column, Vec<i64>)>> {
        let (from, to) = self.reference_bounds(selector);
        // Left-open: a sample exactly one look-back old is too old.
        let series = self.fetch(selector, from - self.options.lookback_ms + 1, to)?;
        self.budget.take(0, series.len().saturating_mul(self.steps.count).saturating_mul(24))?;
        let lookback = self.options.lookback_ms;
        let references: Vec<i64> = self
            .steps
            .times()
            .map(|t| self.reference_time(selector.at, t) - selector.offset_ms)
            .collect();
        let mut out = Vec::with_capacity(series.len());
        for s in series {
            let (values, times) = match &s.samples {
                Samples::Floats(f) => {
                    let value = |i: usize| {
                        let v = f.values.get(i).copied().filter(|v| !is_stale(*v))?;
                        Some(SampleValue::Float(v))
                    };
                    latest(&references, lookback, |i| f.times.get(i).copied(), value)
                }
                Samples::Mixed(list) => {
                    let value = |i: usize| {
                        let v = &list.get(i)?.value;
                        (!v.is_stale()).then(|| v.clone())
                    };
                    let time = |i: usize| list.get(i).map(|x| x.timestamp.millis());
                    latest(&references, lookback, time, value)
                }
            };
            let column = Column::new(s.labels, values);
            if column.values.iter().any(Option::is_some) {
                out.push((column, times));
            }
        }
        Ok(out)
    }

    /// Evaluates a range selector or subquery.
    pub(crate) fn range_vector(&mut self, expr: &Expr) -> Evaluated<RangeVector> {
        let mut ranges = self.raw_range_vector(expr)?;
        for i in 0..ranges.series.len() {
            ranges.single(i, self.budget)?;
        }
        Ok(ranges)
    }

    /// Like [`Self::range_vector`]; markers of staleness are still among the samples.
    pub(crate) fn raw_range_vector(&mut self, expr: &Expr) -> Evaluated<RangeVector> {
        let ranges = self.windows_of(expr)?;
        if self.options.count_samples {
            for (step, n) in ranges.count().into_iter().enumerate() {
                self.count(step, n);
            }
        }
        Ok(ranges)
    }

    fn windows_of(&mut self, expr: &Expr) -> Evaluated<RangeVector> {
        match expr.unwrap_parens() {
            Expr::Matrix { selector, range_ms, .. } => {
                let (from, to) = self.reference_bounds(selector);
                let reach = reach(selector.extension, self.options.lookback_ms);
                let series = self.fetch(selector, from - range_ms - reach.0 + 1, to + reach.1)?;
                let ends = self
                    .steps
                    .times()
                    .map(|t| self.reference_time(selector.at, t) - selector.offset_ms)
                    .collect();
                let extension = selector.extension;
                Ok(RangeVector::new(series, (*range_ms, ends), (extension, reach)))
            }
            Expr::Subquery { expr, range_ms, step_ms, offset_ms, at, .. } => {
                let ends: Vec<i64> =
                    self.steps.times().map(|t| self.reference_time(*at, t) - offset_ms).collect();
                let (first, last) =
                    (ends.first().copied().unwrap_or(0), ends.last().copied().unwrap_or(0));
                let step = step_ms.unwrap_or(self.options.default_step_ms);
                // Aligned to the step, whatever the query's start; left-open.
                let mut start = (first - range_ms).div_euclid(step) * step;
                if start <= first - range_ms {
                    start += step;
                }
                let count = if last < start { 0 } else { ((last - start) / step) as usize + 1 };
                let steps = Steps { start, step, count };
                self.budget.take(count, 0)?;
                let (value, inner) = if count == 0 {
                    (Value::Vector(Vec::new()), 0)
                } else {
                    self.with_steps(steps, |ev| ev.eval(expr))?
                };
                let columns = match value {
                    Value::Vector(v) => v,
                    Value::Scalar(v) => {
                        let values = v.into_iter().map(|f| Some(SampleValue::Float(f))).collect();
                        vec![Column::new(Labels::default(), values)]
                    }
                    Value::String(_) => return execution("subquery over a string"),
                };
                let cells = columns.len().saturating_mul(count);
                self.budget.take(0, cells.saturating_mul(size_of::<Sample>()))?;
                let point = |(t, v): (i64, Option<SampleValue>)| {
                    let value = match v? {
                        // A sample may be there twice, and the one before it may not.
                        SampleValue::Histogram(h) if h.reset_hint != ResetHint::Gauge => {
                            let reset_hint = ResetHint::Unknown;
                            let h = Histogram { reset_hint, ..(*h).clone() };
                            SampleValue::Histogram(h.into())
                        }
                        other => other,
                    };
                    Some(Sample { timestamp: TimestampMs::from_millis(t), value })
                };
                let nameless = columns.iter().enumerate().filter(|(_, c)| c.drops_name);
                let nameless = nameless.map(|(i, _)| i).collect();
                let series = columns.into_iter().map(|c| {
                    let samples = steps.times().zip(c.values).filter_map(point);
                    let samples = samples.collect::<Vec<_>>().into();
                    ColumnSeries { labels: c.labels, samples }
                });
                let ranges = RangeVector::new(series.collect(), (*range_ms, ends), (None, (0, 0)));
                Ok(RangeVector { inner: Some(inner), nameless, ..ranges })
            }
            _ => execution("expected a range vector"),
        }
    }

    /// Evaluates a range vector as the result of an instant query.
    pub(crate) fn instant_matrix(&mut self, expr: &Expr) -> Evaluated<Vec<Series>> {
        let ranges = self.range_vector(expr)?;
        // Nothing looks at the windows of a subquery that is the result itself.
        if let (Some(inner), Some(n)) = (ranges.inner, self.annotations.samples.first_mut()) {
            *n = inner;
        }
        let mut out = Vec::new();
        ranges
            .each_window(|i, step, samples| {
                let end = ranges.ends.get(step).copied().unwrap_or(0);
                let window = Window { start: end - ranges.range_ms, end };
                let samples = match ranges.extension {
                    None => samples.to_vec(),
                    Some(extension) => extended_window(samples, window, extension),
                };
                if let Some(s) = ranges.series.get(i).filter(|_| !samples.is_empty()) {
                    out.push(Series { labels: s.labels.clone(), samples });
                }
                Ok::<_, std::convert::Infallible>(())
            })
            .unwrap_or_else(|e| match e {});
        out.sort_by(|a, b| a.labels.cmp(&b.labels));
        Ok(out)
    }
}
