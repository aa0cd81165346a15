//! Functions of range vectors.

use crate::ast::{Expr, Pos};
use crate::eval::aggregate::{KahanSum, add_histograms, quantile};
use crate::eval::annotations::{is_mismatch, of_sum, reconciled};
use crate::eval::extended::{check_extended, extended_function};
use crate::eval::rates;
use crate::eval::selector::RangeVector;
use crate::eval::{Column, Evaluated, Evaluator, Slot, format_float, merge_same_labels};
use obs_model::{Floats, Histogram, Labels, ResetHint, Sample, SampleValue};
use std::sync::Arc;

fn float(s: &Sample) -> Option<f64> {
    if let SampleValue::Float(f) = s.value { Some(f) } else { None }
}

pub(crate) const MIXED_BUCKETS: &str = "vector contains a mix of histograms with exponential and custom buckets schemas for metric name";

/// A window of floats: (time ms, value).
type Points = Vec<(i64, f64)>;

/// Where a window lies, in milliseconds.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    pub(crate) start: i64,
    pub(crate) end: i64,
}

/// By how much Prometheus extrapolates a window's slope to its edges. Seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extrapolation {
    sampled: f64,
    to_start: f64,
    to_end: f64,
    factor: f64,
}

impl Extrapolation {
    /// Of a window whose first and last sample are at these times.
    pub(crate) fn of(times: (i64, i64), count: usize, window: Window) -> Self {
        let sampled = (times.1 - times.0) as f64 / 1000.0;
        let average = sampled / (count as f64 - 1.0);
        let mut to_start = (times.0 - window.start) as f64 / 1000.0;
        let mut to_end = (window.end - times.1) as f64 / 1000.0;
        let threshold = average * 1.1;
        if to_start >= threshold {
            to_start = average / 2.0;
        }
        if to_end >= threshold {
            to_end = average / 2.0;
        }
        Self { sampled, to_start, to_end, factor: (sampled + to_start + to_end) / sampled }
    }

    /// The factor for an increase. `counter` is the first value and the increase of a counter,
    /// which is never extrapolated below zero.
    #[inline]
    pub(crate) fn factor(&self, counter: Option<(f64, f64)>) -> f64 {
        if let Some((first, delta)) = counter
            && delta > 0.0
            && first >= 0.0
        {
            // The quotient is needed only where it cuts; a little slack for the product's rounding.
            let is_far = self.sampled * first > self.to_start * delta * 1.000_001;
            if !is_far {
                let to_start = self.to_start.min(self.sampled * (first / delta));
                return (self.sampled + to_start + self.to_end) / self.sampled;
            }
        }
        self.factor
    }
}

/// `rate`, `increase` and `delta`.
fn extrapolated(
    samples: &[Sample],
    window: Window,
    counter: bool,
    per_second: bool,
) -> Result<Slot, &'static str> {
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else { return Ok(None) };
    if samples.len() < 2 {
        return Ok(None);
    }
    let times = (first.timestamp.millis(), last.timestamp.millis());
    let seconds = (window.end - window.start) as f64 / 1000.0;
    let per = if per_second { 1.0 / seconds } else { 1.0 };
    match (&first.value, &last.value) {
        (SampleValue::Float(a), SampleValue::Float(b)) => {
            let mut delta = b - a;
            let mut previous = *a;
            for s in samples {
                let Some(f) = float(s) else {
                    return Err("encountered a mix of histograms and floats for metric name");
                };
                if counter && f < previous {
                    delta += previous;
                }
                previous = f;
            }
            let factor = Extrapolation::of(times, samples.len(), window)
                .factor(counter.then_some((*a, delta)));
            Ok(Some(SampleValue::Float(delta * factor * per)))
        }
        (SampleValue::Histogram(a), SampleValue::Histogram(b)) => {
            let mut delta = (**b).clone();
            // Reset right after it, the first sample counts for nothing, whatever its buckets are.
            let second = samples.get(1).map(|s| &s.value);
            let starts_over =
                counter && matches!(second, Some(SampleValue::Histogram(h)) if h.is_reset_after(a));
            if !starts_over && !delta.add_scaled(a, -1.0) {
                return Err(MIXED_BUCKETS);
            }
            let mut previous: &Histogram = a;
            for (i, s) in samples.iter().enumerate().skip(1) {
                let SampleValue::Histogram(h) = &s.value else {
                    return Err("encountered a mix of histograms and floats for metric name");
                };
                let is_reset = counter && h.is_reset_after(previous) && !(i == 1 && starts_over);
                if is_reset && !delta.add_scaled(previous, 1.0) {
                    return Err(MIXED_BUCKETS);
                }
                previous = h;
            }
            let factor = Extrapolation::of(times, samples.len(), window)
                .factor(counter.then_some((a.count, delta.count)));
            delta.scale(factor * per);
            Ok(Some(SampleValue::Histogram(delta.into())))
        }
        _ => Err("encountered a mix of histograms and floats for metric name"),
    }
}

/// The difference of two floats, of a counter a second when `rate`.
fn instant_delta((t0, a): (i64, f64), (t1, b): (i64, f64), rate: bool) -> Option<f64> {
    if t0 == t1 {
        return None;
    }
    // A counter that fell was reset to zero in between.
    let delta = if rate && b < a { b } else { b - a };
    Some(if rate { delta / ((t1 - t0) as f64 / 1000.0) } else { delta })
}

/// `irate` and `idelta`: the last two samples.
fn last_delta(samples: &[Sample], rate: bool) -> Result<Slot, &'static str> {
    let [.., before, last] = samples else { return Ok(None) };
    let seconds = (last.timestamp.millis() - before.timestamp.millis()) as f64 / 1000.0;
    match (&before.value, &last.value) {
        (SampleValue::Histogram(a), SampleValue::Histogram(b)) => {
            let mut delta = (**b).clone();
            if (!rate || !b.is_reset_after(a)) && !delta.add_scaled(a, -1.0) {
                return Err(MIXED_BUCKETS);
            }
            if rate {
                delta.scale(1.0 / seconds);
            }
            delta.reset_hint = ResetHint::Gauge;
            Ok(Some(SampleValue::Histogram(delta.into())))
        }
        (SampleValue::Float(a), SampleValue::Float(b)) => {
            let times = (before.timestamp.millis(), last.timestamp.millis());
            Ok(instant_delta((times.0, *a), (times.1, *b), rate).map(SampleValue::Float))
        }
        _ => Err("encountered a mix of histograms and floats for metric name"),
    }
}

/// How often a series changed, or was reset; from a float to a histogram and back is either.
pub(crate) fn transitions(samples: &[Sample], resets: bool) -> f64 {
    let hit = |a: &SampleValue, b: &SampleValue| match (a, b) {
        (SampleValue::Float(a), SampleValue::Float(b)) if resets => b < a,
        (SampleValue::Float(a), SampleValue::Float(b)) => a != b && !(a.is_nan() && b.is_nan()),
        (SampleValue::Histogram(a), SampleValue::Histogram(b)) if resets => b.is_reset_after(a),
        (SampleValue::Histogram(a), SampleValue::Histogram(b)) => !a.is_equal(b),
        _ => true,
    };
    let pairs = samples.windows(2);
    pairs.filter(|w| matches!(w, [a, b] if hit(&a.value, &b.value))).count() as f64
}

/// Least squares: slope per second, and the value at `at` ms.
fn regression(points: &Points, at: i64) -> Option<(f64, f64)> {
    let (t0, first) = *points.first()?;
    if points.len() < 2 {
        return None;
    }
    if points.iter().all(|(_, v)| *v == first) {
        return if first.is_infinite() { Some((f64::NAN, f64::NAN)) } else { Some((0.0, first)) };
    }
    let origin = if at == i64::MIN { t0 } else { at };
    let n = points.len() as f64;
    let [mut sx, mut sy, mut sxy, mut sxx] = [KahanSum::default(); 4];
    for (t, v) in points {
        let x = (t - origin) as f64 / 1000.0;
        sx.add(x);
        sy.add(*v);
        sxy.add(x * v);
        sxx.add(x * x);
    }
    let cov = sxy.value() - sx.value() * sy.value() / n;
    let var = sxx.value() - sx.value() * sx.value() / n;
    let slope = cov / var;
    Some((slope, sy.value() / n - slope * sx.value() / n))
}

fn sum(points: &Points) -> f64 {
    let mut s = KahanSum::default();
    points.iter().for_each(|p| s.add(p.1));
    s.value()
}

fn variance(points: &Points) -> f64 {
    let (mut mean, mut squares) = (0.0, 0.0);
    for (i, (_, v)) in points.iter().enumerate() {
        let delta = v - mean;
        mean += delta / (i as f64 + 1.0);
        squares += delta * (v - mean);
    }
    squares / points.len() as f64
}

fn fold(points: &Points, better: impl Fn(f64, f64) -> bool) -> Option<f64> {
    let pick = |best: f64, v: f64| if better(v, best) || best.is_nan() { v } else { best };
    points.iter().map(|p| p.1).reduce(pick)
}

/// Time in seconds of the last point that no other beats; NaN loses against any number.
fn extreme_time(points: &Points, better: impl Fn(f64, f64) -> bool) -> Option<f64> {
    let pick = |best: (i64, f64), p: (i64, f64)| {
        if better(p.1, best.1) || best.1.is_nan() { p } else { best }
    };
    points.iter().copied().reduce(pick).map(|p| p.0 as f64 / 1000.0)
}

/// Holt's linear method: level and trend, each smoothed by its factor.
fn smoothed_level(points: &Points, (factor, trend_factor): (f64, f64)) -> Option<f64> {
    let [first, second, ..] = points.as_slice() else { return None };
    let (mut before, mut level, mut trend) = (0.0, first.1, second.1 - first.1);
    for (i, (_, v)) in points.iter().enumerate().skip(1) {
        if i > 1 {
            trend = trend_factor * (level - before) + (1.0 - trend_factor) * trend;
        }
        let next = factor * v + (1.0 - factor) * (level + trend);
        (before, level) = (level, next);
    }
    Some(level)
}

/// Functions that look at the floats of a window only.
fn of_floats(name: &str, points: &Points, param: f64, window_end: i64) -> Option<f64> {
    if points.is_empty() {
        return None;
    }
    let n = points.len() as f64;
    Some(match name {
        "avg_over_time" => {
            let s = sum(points);
            if s.is_finite() { s / n } else { points.iter().map(|p| p.1 / n).sum() }
        }
        "min_over_time" => fold(points, |a, b| a < b)?,
        "max_over_time" => fold(points, |a, b| a > b)?,
        "sum_over_time" => sum(points),
        "stddev_over_time" => variance(points).sqrt(),
        "stdvar_over_time" => variance(points),
        "quantile_over_time" => {
            quantile(param, &mut points.iter().map(|p| p.1).collect::<Vec<_>>())
        }
        "mad_over_time" => {
            let mut values: Vec<f64> = points.iter().map(|p| p.1).collect();
            let median = quantile(0.5, &mut values);
            values.iter_mut().for_each(|v| *v = (*v - median).abs());
            quantile(0.5, &mut values)
        }
        "ts_of_min_over_time" => extreme_time(points, |a, b| a <= b)?,
        "ts_of_max_over_time" => extreme_time(points, |a, b| a >= b)?,
        "deriv" => regression(points, i64::MIN)?.0,
        "predict_linear" => {
            let (slope, value) = regression(points, window_end)?;
            slope * param + value
        }
        _ => return None,
    })
}

/// Functions of a window of histograms only.
fn of_histograms(name: &str, samples: &[Sample]) -> Slot {
    let list: Vec<Arc<Histogram>> = samples
        .iter()
        .filter_map(
            |s| if let SampleValue::Histogram(h) = &s.value { Some(h.clone()) } else { None },
        )
        .collect();
    if !matches!(name, "sum_over_time" | "avg_over_time") {
        return None;
    }
    let total = add_histograms(&list, name == "avg_over_time")?;
    Some(SampleValue::Histogram(total.into()))
}

/// Functions that pass over histograms among floats, and say so.
fn ignores_histograms(name: &str) -> bool {
    matches!(
        name,
        "min_over_time"
            | "max_over_time"
            | "stddev_over_time"
            | "stdvar_over_time"
            | "quantile_over_time"
            | "mad_over_time"
            | "deriv"
            | "predict_linear"
            | "double_exponential_smoothing"
            | "ts_of_min_over_time"
            | "ts_of_max_over_time"
    )
}

const COUNTER_SUFFIXES: [&str; 4] = ["_total", "_sum", "_count", "_bucket"];

impl Evaluator<'_> {
    /// Evaluates a function whose argument at `range_at` is a range vector.
    pub(crate) fn range_function(
        &mut self,
        name: &str,
        args: &[Expr],
        pos: Pos,
    ) -> Evaluated<Vec<Column>> {
        let range_at = usize::from(name == "quantile_over_time");
        let Some(range_arg) = args.get(range_at) else {
            return super::execution("missing argument");
        };
        let is_rate = rates::Kind::of(name).is_some();
        // The fast way reads columns, and looks for markers itself.
        let mut ranges =
            if is_rate { self.raw_range_vector(range_arg)? } else { self.range_vector(range_arg)? };
        if let Some(extension) = ranges.extension {
            check_extended(name, extension)?;
        }
        let params = match args.get(1 - range_at) {
            Some(p) => self.scalar(p)?,
            None => vec![f64::NAN; self.steps.count],
        };
        let second = match args.get(2) {
            Some(p) => self.scalar(p)?,
            None => vec![f64::NAN; self.steps.count],
        };
        if name == "double_exponential_smoothing" {
            for (what, factor) in [("smoothing", &params), ("trend", &second)] {
                if let Some(bad) = factor.iter().find(|f| !(**f > 0.0 && **f < 1.0)) {
                    let short = if what == "smoothing" { "sf" } else { "tf" };
                    return super::execution(format!(
                        "invalid {what} factor. Expected: 0 < {short} < 1, got: {bad:.6}"
                    ));
                }
            }
        }
        let params: Vec<(f64, f64)> = params.into_iter().zip(second).collect();
        if name == "quantile_over_time"
            && let Some((bad, _)) = params.iter().find(|(q, _)| !(0.0..=1.0).contains(q))
        {
            let text =
                format!("quantile value should be between 0 and 1, got {}", format_float(*bad));
            self.annotations.warn(text, args.first().map_or(pos, Expr::pos));
        }
        let mut columns = self.windows(name, &mut ranges, &params, range_arg)?;
        if !matches!(name, "last_over_time" | "first_over_time") {
            for c in &mut columns {
                c.drop_name(self.options);
            }
        }
        merge_same_labels(columns)
    }

    fn windows(
        &mut self,
        name: &str,
        ranges: &mut RangeVector,
        params: &[(f64, f64)],
        arg: &Expr,
    ) -> Evaluated<Vec<Column>> {
        let kind = rates::Kind::of(name).filter(|_| ranges.extension.is_none());
        self.budget
            .take(0, ranges.series.len().saturating_mul(self.steps.count).saturating_mul(24))?;
        let mut columns: Vec<Column> =
            ranges.series.iter().map(|s| Column::new(s.labels.clone(), Vec::new())).collect();
        for i in &ranges.nameless {
            if let Some(c) = columns.get_mut(*i) {
                c.drops_name = true;
            }
        }
        let done = match kind {
            Some(kind) => self.float_rates(ranges, kind, &mut columns)?,
            None => vec![false; ranges.series.len()],
        };
        let mut problems: Vec<(usize, &'static str)> = Vec::new();
        for (i, c) in columns.iter_mut().enumerate() {
            if !done.get(i).copied().unwrap_or(false) {
                c.values.resize(self.steps.count, None);
                ranges.single(i, self.budget)?;
            }
        }
        let ranges = &*ranges;
        let mut ignored: Vec<usize> = Vec::new();
        let mut points = Points::new();
        let budget = self.budget;
        ranges.each_window_of(
            |i| !done.get(i).copied().unwrap_or(false),
            |series, step, samples| {
                budget.check()?;
                let end = ranges.ends.get(step).copied().unwrap_or(0);
                let window = Window { start: end - ranges.range_ms, end };
                let float_result = |f: f64| Some(SampleValue::Float(f));
                let time_of = |s: &Sample| float_result(s.timestamp.millis() as f64 / 1000.0);
                let param = params.get(step).copied().unwrap_or((f64::NAN, f64::NAN));
                let slot = match name {
                    _ if let Some(extension) = ranges.extension => extended_function(
                        name, samples, window, extension,
                    )
                    .unwrap_or_else(|problem| {
                        problems.push((series, problem));
                        None
                    }),
                    "rate" | "increase" | "delta" => {
                        extrapolated(samples, window, name != "delta", name == "rate")
                            .unwrap_or_else(|problem| {
                                problems.push((series, problem));
                                None
                            })
                    }
                    "irate" | "idelta" => {
                        last_delta(samples, name == "irate").unwrap_or_else(|problem| {
                            problems.push((series, problem));
                            None
                        })
                    }
                    "changes" | "resets" => float_result(transitions(samples, name == "resets")),
                    "last_over_time" => samples.last().map(|s| s.value.clone()),
                    "first_over_time" => samples.first().map(|s| s.value.clone()),
                    "ts_of_first_over_time" => samples.first().and_then(&time_of),
                    "ts_of_last_over_time" => samples.last().and_then(time_of),
                    "count_over_time" => float_result(samples.len() as f64),
                    "present_over_time" => float_result(1.0),
                    _ => {
                        points.clear();
                        points.extend(
                            samples.iter().filter_map(|s| Some((s.timestamp.millis(), float(s)?))),
                        );
                        // `predict_linear` predicts from the evaluation time, not from the window's end.
                        let at = if name == "predict_linear" { self.steps.at(step) } else { end };
                        if points.is_empty() {
                            of_histograms(name, samples)
                        } else if points.len() < samples.len()
                            && matches!(name, "sum_over_time" | "avg_over_time")
                        {
                            problems.push((
                                series,
                                "encountered a mix of histograms and floats for metric name",
                            ));
                            None
                        } else {
                            if points.len() < samples.len() && ignores_histograms(name) {
                                ignored.push(series);
                            }
                            let value = if name == "double_exponential_smoothing" {
                                smoothed_level(&points, param)
                            } else {
                                of_floats(name, &points, param.0, at)
                            };
                            value.and_then(float_result)
                        }
                    }
                };
                if let Some(place) = columns.get_mut(series).and_then(|c| c.values.get_mut(step)) {
                    *place = slot;
                }
                Ok::<_, obs_model::SelectError>(())
            },
        )?;
        if !done.iter().all(|d| *d) || done.is_empty() {
            self.note_histograms(name, ranges, arg);
        }
        for series in ignored {
            let metric = ranges.series.get(series).map_or("", |s| s.labels.metric_name());
            let text = format!(
                "ignored histograms in a range containing both floats and histograms for metric name {metric:?}"
            );
            self.annotations.info(text, arg.pos());
        }
        for (series, problem) in problems {
            let metric = ranges.series.get(series).map_or("", |s| s.labels.metric_name());
            self.annotations.warn(format!("{problem} {metric:?}"), arg.pos());
        }
        if matches!(name, "rate" | "increase" | "irate") {
            self.hint_counter(ranges, arg);
        }
        Ok(columns)
    }

    /// Says what is odd about the histograms that a function reads.
    fn note_histograms(&mut self, name: &str, ranges: &RangeVector, arg: &Expr) {
        let (adds, counter, gauge) = match name {
            "sum_over_time" | "avg_over_time" => (true, false, false),
            "rate" | "increase" | "irate" => (false, true, false),
            "delta" | "idelta" => (false, false, true),
            _ => return,
        };
        let is_histogram = |s: &Sample| matches!(s.value, SampleValue::Histogram(_));
        if !ranges.series.iter().any(|s| s.samples.iter().any(is_histogram)) {
            return;
        }
        let mut found: Vec<(bool, String)> = Vec::new();
        let (annotations, pos) = (&mut *self.annotations, arg.pos());
        let visit = |series: usize, _: usize, samples: &[Sample]| {
            let list: Vec<&Histogram> = samples
                .iter()
                .filter_map(|s| match &s.value {
                    SampleValue::Histogram(h) => Some(&**h),
                    SampleValue::Float(_) => None,
                })
                .collect();
            if adds {
                if list.len() == samples.len() {
                    of_sum(list.iter().copied(), pos, annotations);
                }
                return Ok(());
            }
            // The last two samples are all that the instant functions look at.
            let from = if name.starts_with('i') && name != "increase" {
                list.len().saturating_sub(2)
            } else {
                0
            };
            let list = list.get(from..).unwrap_or_default();
            if samples.len() < 2 || list.len() < 2 {
                return Ok(());
            }
            let is_gauge = |h: &&Histogram| h.reset_hint == ResetHint::Gauge;
            let metric = ranges.series.get(series).map_or("", |s| s.labels.metric_name());
            if counter && list.iter().any(is_gauge) {
                let text = format!("this native histogram metric is not a counter: {metric:?}");
                found.push((true, text));
            }
            if gauge && !list.iter().all(is_gauge) {
                let text = format!("this native histogram metric is not a gauge: {metric:?}");
                found.push((true, text));
            }
            // Of two samples nothing is subtracted if the counter was reset between them.
            let subtracts = |a: &Histogram, b: &Histogram| name != "irate" || !b.is_reset_after(a);
            let differs =
                |w: &[&Histogram]| matches!(w, [a, b] if is_mismatch(a, b) && subtracts(a, b));
            if list.windows(2).any(differs) {
                found.push((false, reconciled("subtraction")));
            }
            Ok::<_, std::convert::Infallible>(())
        };
        ranges.each_window(visit).unwrap_or_else(|e| match e {});
        for (is_warning, text) in found {
            if is_warning {
                self.annotations.warn(text, pos);
            } else {
                self.annotations.info(text, pos);
            }
        }
    }

    /// Fills the columns of series of floats, side by side on several threads when there are many;
    /// returns which those are.
    fn float_rates(
        &self,
        ranges: &RangeVector,
        kind: rates::Kind,
        columns: &mut [Column],
    ) -> Evaluated<Vec<bool>> {
        /// Samples and steps that are worth a thread.
        const WORTH: usize = 1 << 20;
        let budget = self.budget;
        let one = |series: &[Option<Floats>], columns: &mut [Column], done: &mut [bool]| {
            let mut windows = rates::Windows::default();
            for ((s, c), done) in series.iter().zip(columns).zip(done) {
                budget.check()?;
                let Some(floats) = s else { continue };
                windows.fit(&floats.times, &ranges.ends, ranges.range_ms);
                if let Some(v) = windows.of_floats(&floats.values, kind) {
                    c.values = v;
                    *done = true;
                }
            }
            Ok::<_, obs_model::SelectError>(())
        };
        let mut done = vec![false; ranges.series.len()];
        let samples: usize = ranges.columns.iter().flatten().map(|f| f.values.len()).sum();
        let work = samples + ranges.series.len() * self.steps.count;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (work / WORTH + 1).min(cores);
        let part = ranges.series.len().div_ceil(threads).max(1);
        if threads == 1 {
            one(&ranges.columns, columns, &mut done)?;
            return Ok(done);
        }
        let one = &one;
        std::thread::scope(|scope| {
            let parts = ranges.columns.chunks(part).zip(columns.chunks_mut(part));
            let running: Vec<_> = parts
                .zip(done.chunks_mut(part))
                .map(|((s, c), d)| scope.spawn(move || one(s, c, d)))
                .collect();
            running.into_iter().try_for_each(|r| match r.join() {
                Ok(result) => result,
                Err(_) => Err(obs_model::SelectError::Storage("a thread of the query died".into())),
            })
        })?;
        Ok(done)
    }

    fn hint_counter(&mut self, ranges: &RangeVector, arg: &Expr) {
        for (s, floats) in ranges.series.iter().zip(&ranges.columns) {
            let name = s.labels.metric_name();
            let is_float = |x: &Sample| matches!(x.value, SampleValue::Float(_));
            if (floats.is_some() || s.samples.iter().any(is_float))
                && !name.is_empty()
                && !COUNTER_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
            {
                self.annotations.odd_name(name, arg.pos());
                return;
            }
        }
    }

    /// `absent_over_time`: one where no series has a sample in its window.
    pub(crate) fn absent_over_time(&mut self, arg: &Expr) -> Evaluated<Vec<Column>> {
        let ranges = self.range_vector(arg)?;
        let mut present = vec![false; self.steps.count];
        ranges.each_window(|_, step, _| {
            if let Some(p) = present.get_mut(step) {
                *p = true;
            }
            Ok::<_, obs_model::SelectError>(())
        })?;
        let labels = match arg.unwrap_parens() {
            Expr::Matrix { selector, .. } => {
                super::vector_functions::absent_labels(&selector.matchers)
            }
            _ => Labels::default(),
        };
        let values: Vec<Slot> =
            present.into_iter().map(|p| (!p).then_some(SampleValue::Float(1.0))).collect();
        Ok(if values.iter().any(Option::is_some) {
            vec![Column::new(labels, values)]
        } else {
            Vec::new()
        })
    }
}
