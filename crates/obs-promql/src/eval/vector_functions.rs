//! Functions of instant vectors and scalars, and the dispatch of all function calls.

use crate::ast::{Expr, Literal, Pos};
use crate::eval::{
    Column, Evaluated, Evaluator, Slot, Value, execution, histograms, merge_same_labels,
};
use obs_model::{Labels, METRIC_NAME, MatchOp, Matcher, SampleValue, civil_from_days};
use std::cmp::Ordering;
use std::collections::HashMap;

/// Labels of `absent()`'s result: the equality matchers, except of names that appear twice.
pub(crate) fn absent_labels(matchers: &[Matcher]) -> Labels {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for m in matchers {
        *seen.entry(&m.name).or_default() += 1;
    }
    let plain = |m: &&Matcher| {
        m.op == MatchOp::Equal && m.name != METRIC_NAME && seen.get(m.name.as_str()) == Some(&1)
    };
    Labels::from_pairs(matchers.iter().filter(plain).map(|m| (&m.name, &m.value)))
}

fn check_label(role: &str, function: &str, name: &Literal) -> Evaluated<()> {
    if name.is_label_name() {
        return Ok(());
    }
    execution(format!("invalid {role} label name in {function}(): {}", name.text))
}

/// Broken-down UTC time of a Unix timestamp in seconds.
struct Date {
    year: i64,
    month: i64,
    day: i64,
    seconds_of_day: i64,
    days: i64,
}

fn is_leap(year: i64) -> bool {
    (year % 4 == 0 && year % 100 != 0) || year % 400 == 0
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 => 28 + i64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn date(seconds: f64) -> Date {
    /// Seconds from the beginning of Go's calendar to 1970, in which it counts without a sign.
    const BEFORE_1970: u64 = 9_223_372_028_741_760_000;
    // Cut towards zero; what is no such number becomes the least, as on Prometheus' usual machine.
    let is_in = seconds > -9.3e18 && seconds < 9.2e18;
    let s = if is_in { seconds as i64 } else { i64::MIN };
    let since = s.cast_unsigned().wrapping_add(BEFORE_1970);
    let s = i128::from(since) - i128::from(BEFORE_1970);
    let days = s.div_euclid(86_400) as i64;
    let (year, month, day) = civil_from_days(days);
    Date {
        year,
        month: i64::from(month),
        day: i64::from(day),
        seconds_of_day: s.rem_euclid(86_400) as i64,
        days,
    }
}

fn date_part(name: &str, seconds: f64) -> f64 {
    let d = date(seconds);
    let value = match name {
        "year" => d.year,
        "month" => d.month,
        "day_of_month" => d.day,
        "day_of_week" => (d.days + 4).rem_euclid(7),
        "day_of_year" => (1..d.month).map(|m| days_in_month(d.year, m)).sum::<i64>() + d.day,
        "days_in_month" => days_in_month(d.year, d.month),
        "hour" => d.seconds_of_day / 3600,
        _ => d.seconds_of_day / 60 % 60,
    };
    value as f64
}

fn math(name: &str, f: f64) -> Option<f64> {
    Some(match name {
        "abs" => f.abs(),
        "ceil" => f.ceil(),
        "floor" => f.floor(),
        "exp" => f.exp(),
        "ln" => f.ln(),
        "log2" => f.log2(),
        "log10" => f.log10(),
        "sqrt" => f.sqrt(),
        "sgn" if f > 0.0 => 1.0,
        "sgn" if f < 0.0 => -1.0,
        "sgn" => f,
        "acos" => f.acos(),
        "acosh" => f.acosh(),
        "asin" => f.asin(),
        "asinh" => f.asinh(),
        "atan" => f.atan(),
        "atanh" => f.atanh(),
        "cos" => f.cos(),
        "cosh" => f.cosh(),
        "sin" => f.sin(),
        "sinh" => f.sinh(),
        "tan" => f.tan(),
        "tanh" => f.tanh(),
        "deg" => f.to_degrees(),
        "rad" => f.to_radians(),
        _ => return None,
    })
}

/// Compares texts with the numbers in them by value: `a2` before `a10`.
fn natural_order(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    while !a.is_empty() && !b.is_empty() {
        let digits = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
        let (da, db) = (digits(a), digits(b));
        if da > 0 && db > 0 {
            let (na, ra) = a.split_at(da);
            let (nb, rb) = b.split_at(db);
            let (ta, tb) = (na.trim_start_matches('0'), nb.trim_start_matches('0'));
            let order = ta.len().cmp(&tb.len()).then(ta.cmp(tb)).then(da.cmp(&db));
            if order.is_ne() {
                return order;
            }
            (a, b) = (ra, rb);
            continue;
        }
        let (ca, cb) = (a.chars().next(), b.chars().next());
        if ca != cb {
            return ca.cmp(&cb);
        }
        let n = ca.map_or(1, char::len_utf8);
        (a, b) = (a.get(n..).unwrap_or_default(), b.get(n..).unwrap_or_default());
    }
    a.len().cmp(&b.len())
}

impl Evaluator<'_> {
    /// Maps the floats of each column (histograms vanish) and drops the metric name.
    fn map_floats(
        &self,
        columns: Vec<Column>,
        f: impl Fn(usize, f64) -> Slot,
    ) -> Evaluated<Vec<Column>> {
        self.map_values(columns, |i, value| match value {
            SampleValue::Float(v) => f(i, *v),
            SampleValue::Histogram(_) => None,
        })
    }

    /// Maps the samples of each column and drops the metric name.
    fn map_values(
        &self,
        mut columns: Vec<Column>,
        f: impl Fn(usize, &SampleValue) -> Slot,
    ) -> Evaluated<Vec<Column>> {
        for c in &mut columns {
            for (i, slot) in c.values.iter_mut().enumerate() {
                *slot = slot.as_ref().and_then(|v| f(i, v));
            }
            c.drop_name(self.options);
        }
        merge_same_labels(columns)
    }

    pub(crate) fn call(&mut self, name: &str, args: &[Expr], pos: Pos) -> Evaluated<Value> {
        let float = |f: f64| Some(SampleValue::Float(f));
        let first = args.first();
        if name.starts_with("sort") && self.frame.step_ms > 0 {
            let text =
                "sort is ineffective for range queries since results are always ordered by labels";
            self.annotations.warn(text, pos);
        }
        match (name, first) {
            ("time", _) => {
                Ok(Value::Scalar(self.steps.times().map(|t| t as f64 / 1000.0).collect()))
            }
            ("start" | "end" | "step" | "range", _) => {
                let ms = match name {
                    "start" => self.bounds.0,
                    "end" => self.bounds.1,
                    "step" => self.frame.step_ms,
                    _ => self.frame.range_ms,
                };
                Ok(Value::Scalar(vec![ms as f64 / 1000.0; self.steps.count]))
            }
            ("pi", _) => Ok(Value::Scalar(vec![std::f64::consts::PI; self.steps.count])),
            ("vector", Some(arg)) => {
                let values = self.scalar(arg)?.into_iter().map(float).collect();
                Ok(Value::Vector(vec![Column::new(Labels::default(), values)]))
            }
            ("scalar", Some(arg)) => {
                let columns = self.vector(arg)?;
                let only = |step| {
                    let mut there = columns.iter().filter_map(|c| c.float(step));
                    match (there.next(), there.next()) {
                        (Some(f), None) => f,
                        _ => f64::NAN,
                    }
                };
                Ok(Value::Scalar((0..self.steps.count).map(only).collect()))
            }
            ("info", Some(arg)) => self.info(arg, args.get(1)).map(Value::Vector),
            ("absent_over_time", Some(arg)) => self.absent_over_time(arg).map(Value::Vector),
            (_, Some(_))
                if args.iter().any(|a| a.value_type() == crate::ast::ValueType::Matrix) =>
            {
                self.range_function(name, args, pos).map(Value::Vector)
            }
            ("timestamp", Some(arg)) => self.timestamp(arg).map(Value::Vector),
            ("histogram_quantile" | "histogram_fraction", Some(q)) => {
                let lower = self.scalar(q)?;
                let upper = if args.len() == 3 {
                    args.get(1).map(|a| self.scalar(a)).transpose()?
                } else {
                    None
                };
                let Some(last) = args.last() else { return execution("missing argument") };
                let columns = self.vector(last)?;
                match upper {
                    None => self.histogram_quantile(&lower, columns, q.pos()),
                    Some(upper) => self.histogram_fraction(&lower, &upper, columns, pos),
                }
                .map(Value::Vector)
            }
            ("histogram_quantiles", Some(arg)) => {
                self.histogram_quantiles(arg, args).map(Value::Vector)
            }
            ("sort_by_label" | "sort_by_label_desc", Some(arg)) => {
                self.sort_by_label(name == "sort_by_label_desc", arg, args).map(Value::Vector)
            }
            ("label_replace", Some(arg)) => self.label_replace(arg, args).map(Value::Vector),
            ("label_join", Some(arg)) => self.label_join(arg, args).map(Value::Vector),
            (
                "year" | "month" | "day_of_month" | "day_of_week" | "day_of_year" | "days_in_month"
                | "hour" | "minute",
                _,
            ) => {
                let columns = match first {
                    Some(arg) => self.vector(arg)?,
                    None => {
                        let times = self.steps.times().map(|t| float(t as f64 / 1000.0));
                        vec![Column::new(Labels::default(), times.collect())]
                    }
                };
                self.map_floats(columns, |_, f| float(date_part(name, f))).map(Value::Vector)
            }
            (_, Some(arg)) => self.of_vector(name, arg, args).map(Value::Vector),
            (_, None) => execution(format!("function {name} needs an argument")),
        }
    }

    fn of_vector(&mut self, name: &str, arg: &Expr, args: &[Expr]) -> Evaluated<Vec<Column>> {
        let float = |f: f64| Some(SampleValue::Float(f));
        let columns = self.vector(arg)?;
        let params = args.iter().skip(1).map(|a| self.scalar(a)).collect::<Evaluated<Vec<_>>>()?;
        let param = |n: usize, step: usize, default: f64| {
            params.get(n).and_then(|p| p.get(step)).copied().unwrap_or(default)
        };
        match name {
            "absent" => {
                let any =
                    |step| columns.iter().any(|c| matches!(c.values.get(step), Some(Some(_))));
                let values: Vec<Slot> =
                    (0..self.steps.count).map(|s| if any(s) { None } else { float(1.0) }).collect();
                let labels = match arg.unwrap_parens() {
                    Expr::Selector(s) => absent_labels(&s.matchers),
                    _ => Labels::default(),
                };
                Ok(if values.iter().any(Option::is_some) {
                    vec![Column::new(labels, values)]
                } else {
                    Vec::new()
                })
            }
            "clamp" => self.map_floats(columns, |i, f| {
                let (min, max) = (param(0, i, f64::NAN), param(1, i, f64::NAN));
                if max < min {
                    None
                } else if min.is_nan() || max.is_nan() || f.is_nan() {
                    float(f64::NAN)
                } else {
                    float(f.min(max).max(min))
                }
            }),
            "clamp_min" => self.map_floats(columns, |i, f| {
                float(if f.is_nan() || param(0, i, 0.0).is_nan() {
                    f64::NAN
                } else {
                    f.max(param(0, i, 0.0))
                })
            }),
            "clamp_max" => self.map_floats(columns, |i, f| {
                float(if f.is_nan() || param(0, i, 0.0).is_nan() {
                    f64::NAN
                } else {
                    f.min(param(0, i, 0.0))
                })
            }),
            "round" => self.map_floats(columns, |i, f| {
                let inverse = 1.0 / param(0, i, 1.0);
                float((f * inverse + 0.5).floor() / inverse)
            }),
            "sort" | "sort_desc" => {
                let mut columns: Vec<Column> = columns
                    .into_iter()
                    .filter(|c| c.values.iter().any(|v| matches!(v, Some(SampleValue::Float(_)))))
                    .collect();
                columns.sort_by(|a, b| {
                    let (a, b) = (a.float(0).unwrap_or(f64::NAN), b.float(0).unwrap_or(f64::NAN));
                    let order = if name == "sort" { a.partial_cmp(&b) } else { b.partial_cmp(&a) };
                    order.unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
                });
                Ok(columns)
            }
            "histogram_count" | "histogram_sum" | "histogram_avg" | "histogram_stddev"
            | "histogram_stdvar" => self.map_values(columns, |_, value| match value {
                SampleValue::Histogram(h) => float(histograms::part(name, h)),
                SampleValue::Float(_) => None,
            }),
            _ => self.map_floats(columns, |_, f| math(name, f).and_then(float)),
        }
    }

    fn sort_by_label(
        &mut self,
        descending: bool,
        arg: &Expr,
        args: &[Expr],
    ) -> Evaluated<Vec<Column>> {
        let names =
            args.iter().skip(1).map(|a| self.string(Some(a))).collect::<Evaluated<Vec<_>>>()?;
        let mut columns = self.vector(arg)?;
        columns.sort_by(|a, b| {
            let by_name = |n: &Literal| natural_order(a.labels.get(&n.text), b.labels.get(&n.text));
            let order = names.iter().map(by_name).find(|o| o.is_ne());
            let order = order.unwrap_or_else(|| a.labels.cmp(&b.labels));
            if descending { order.reverse() } else { order }
        });
        Ok(columns)
    }

    /// One series a quantile, told apart by a label.
    fn histogram_quantiles(&mut self, arg: &Expr, args: &[Expr]) -> Evaluated<Vec<Column>> {
        let label = self.string(args.get(1))?.text;
        let columns = self.vector(arg)?;
        let mut out = Vec::new();
        for q in args.iter().skip(2) {
            let values = self.scalar(q)?;
            let mut text = values.first().copied().map_or_else(String::new, super::format_float);
            // As label values of `le` and `quantile` are written: a whole number has a fraction.
            if text.bytes().all(|b| b.is_ascii_digit() || b == b'-') {
                text.push_str(".0");
            }
            for mut c in self.histogram_quantile(&values, columns.clone(), q.pos())? {
                c.labels = c.labels.with(&label, &text);
                out.push(c);
            }
        }
        merge_same_labels(out)
    }

    /// Of a plain selector the time of the sample itself, of anything else the evaluation time.
    fn timestamp(&mut self, arg: &Expr) -> Evaluated<Vec<Column>> {
        let seconds = |ms: i64| Some(SampleValue::Float(ms as f64 / 1000.0));
        let Expr::Selector(s) = arg.unwrap_parens() else {
            let columns = self.vector(arg)?;
            let times: Vec<i64> = self.steps.times().collect();
            return self.map_values(columns, |i, _| seconds(*times.get(i)?));
        };
        let rows = self.selector_samples(s)?;
        let column = |(mut c, times): (Column, Vec<i64>)| {
            for (slot, t) in c.values.iter_mut().zip(times) {
                *slot = slot.take().and_then(|_| seconds(t));
            }
            c.drop_name(self.options);
            c
        };
        merge_same_labels(rows.into_iter().map(column).collect())
    }

    fn label_replace(&mut self, arg: &Expr, args: &[Expr]) -> Evaluated<Vec<Column>> {
        let (target, replacement) = (self.string(args.get(1))?, self.string(args.get(2))?.text);
        let (source, pattern) = (self.string(args.get(3))?.text, self.string(args.get(4))?.text);
        let Ok(regex) = obs_model::anchored_regex(&pattern) else {
            return execution(format!("invalid regular expression in label_replace(): {pattern}"));
        };
        check_label("destination", "label_replace", &target)?;
        let mut columns = self.vector(arg)?;
        for c in &mut columns {
            if let Some(captures) = regex.captures(c.labels.get(&source)) {
                let mut value = String::new();
                captures.expand(&replacement, &mut value);
                c.labels = c.labels.with(&target.text, &value);
                c.drops_name &= target.text != METRIC_NAME;
            }
        }
        merge_same_labels(columns)
    }

    fn label_join(&mut self, arg: &Expr, args: &[Expr]) -> Evaluated<Vec<Column>> {
        let (target, separator) = (self.string(args.get(1))?, self.string(args.get(2))?.text);
        let sources =
            args.iter().skip(3).map(|a| self.string(Some(a))).collect::<Evaluated<Vec<_>>>()?;
        for source in &sources {
            check_label("source", "label_join", source)?;
        }
        check_label("destination", "label_join", &target)?;
        let mut columns = self.vector(arg)?;
        for c in &mut columns {
            let parts: Vec<&str> = sources.iter().map(|s| c.labels.get(&s.text)).collect();
            c.labels = c.labels.with(&target.text, &parts.join(&separator));
            c.drops_name &= target.text != METRIC_NAME;
        }
        merge_same_labels(columns)
    }
}
