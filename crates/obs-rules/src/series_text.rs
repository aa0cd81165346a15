//! Series as rule tests write them: `metric{a="b"} 0+1x10 _ stale {{schema:0 buckets:[1 2]}}`.

use obs_model::{Histogram, Labels, MatchOp, ResetHint, STALE_NAN_BITS, SampleValue};
use obs_promql::ast::Expr;

/// Values past which a series is refused.
const VALUES_MAX: usize = 1_000_000;

/// Reads a series' labels.
///
/// # Errors
/// When the text is not a metric with equality matchers only.
pub fn labels(text: &str) -> Result<Labels, String> {
    let text = text.trim();
    if text == "{}" || text.is_empty() {
        return Ok(Labels::default());
    }
    // `ALERTS{}` and `{a="b"}` are both series.
    let parsed = obs_promql::parse(text).map_err(|e| format!("{text:?}: {e}"))?;
    let Expr::Selector(s) = parsed else { return Err(format!("{text:?} is not a series")) };
    if s.matchers.iter().any(|m| m.op != MatchOp::Equal) {
        return Err(format!("{text:?}: a series has labels, not matchers"));
    }
    Ok(Labels::from_pairs(s.matchers.iter().map(|m| (m.name.as_str(), m.value.as_str()))))
}

fn number(text: &str) -> Result<f64, String> {
    match text.trim_start_matches(['+', '-']).to_ascii_lowercase().as_str() {
        "inf" => Ok(if text.starts_with('-') { f64::NEG_INFINITY } else { f64::INFINITY }),
        "nan" => Ok(f64::NAN),
        "stale" => Ok(f64::from_bits(STALE_NAN_BITS)),
        _ => text.parse().map_err(|_| format!("bad number {text:?}")),
    }
}

/// Reads a histogram between `{{` and `}}`.
///
/// # Errors
/// When a key or number is wrong.
pub fn histogram(text: &str) -> Result<Histogram, String> {
    let mut h = Histogram::default();
    let mut rest = text.trim();
    let (mut offset, mut n_offset) = (0, 0);
    let (mut buckets, mut n_buckets) = (Vec::new(), Vec::new());
    while !rest.is_empty() {
        let (key, tail) = rest.split_once(':').ok_or_else(|| format!("bad histogram {text:?}"))?;
        let (value, tail) = if let Some(list) = tail.strip_prefix('[') {
            list.split_once(']').ok_or_else(|| format!("unclosed list in {text:?}"))?
        } else {
            tail.split_once(' ').unwrap_or((tail, ""))
        };
        let one = || number(value.trim());
        let list = || value.split_whitespace().map(number).collect::<Result<Vec<_>, _>>();
        match key.trim() {
            "schema" => h.schema = one()? as i32,
            "sum" => h.sum = one()?,
            "count" => h.count = one()?,
            "z_bucket" => h.zero_count = one()?,
            "z_bucket_w" => h.zero_threshold = one()?,
            "offset" => offset = one()? as i32,
            "n_offset" => n_offset = one()? as i32,
            "buckets" => buckets = list()?,
            "n_buckets" => n_buckets = list()?,
            "custom_values" => h.custom_bounds = list()?,
            "counter_reset_hint" => {
                h.reset_hint = match value.trim() {
                    "gauge" => ResetHint::Gauge,
                    "reset" => ResetHint::Reset,
                    "not_reset" => ResetHint::NoReset,
                    _ => ResetHint::Unknown,
                }
            }
            other => return Err(format!("unknown key {other:?} in a histogram")),
        }
        rest = tail.trim_start();
    }
    let place = |list: Vec<f64>, offset: i32| {
        let at = |(i, c): (usize, f64)| (i as i32 + offset, c);
        list.into_iter().enumerate().map(at).filter(|b| b.1 != 0.0).collect::<Vec<_>>()
    };
    h.positive = place(buckets, offset);
    h.negative = place(n_buckets, n_offset);
    Ok(h)
}

/// Reads values, one a step; `None` is a gap.
///
/// # Errors
/// When an item is wrong or there are too many.
pub fn values(text: &str) -> Result<Vec<Option<SampleValue>>, String> {
    let mut out = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        if out.len() > VALUES_MAX {
            return Err(format!("more than {VALUES_MAX} values"));
        }
        let (sign, body) = match rest.strip_prefix('-').filter(|r| r.starts_with("{{")) {
            Some(b) => (-1.0, b),
            None => (1.0, rest),
        };
        if let Some(inner) = body.strip_prefix("{{") {
            let (inner, tail) = inner.split_once("}}").ok_or("unclosed histogram")?;
            let mut first = histogram(inner)?;
            first.scale(sign);
            let mut step = None;
            let mut tail = tail;
            for (prefix, sign) in [("+{{", 1.0), ("-{{", -1.0)] {
                if let Some(more) = tail.strip_prefix(prefix) {
                    let (inner, t) = more.split_once("}}").ok_or("unclosed histogram")?;
                    let mut h = histogram(inner)?;
                    h.scale(sign);
                    step = Some(h);
                    tail = t;
                    break;
                }
            }
            let mut times = 0;
            if let Some(n) = tail.strip_prefix('x') {
                let end = n.find(char::is_whitespace).unwrap_or(n.len());
                let (n, t) = n.split_at(end);
                times = n.parse::<usize>().map_err(|_| format!("bad count {n:?}"))?;
                tail = t;
            }
            for i in 0..=times.min(VALUES_MAX) {
                if i > 0
                    && let Some(s) = &step
                {
                    first.add_scaled(s, 1.0);
                }
                out.push(Some(SampleValue::Histogram(first.clone().into())));
            }
            rest = tail.trim_start();
            continue;
        }
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let (item, tail) = rest.split_at(end);
        rest = tail.trim_start();
        let (body, times) = match item.rsplit_once('x') {
            Some((b, n)) if !b.is_empty() && !n.is_empty() => {
                (b, Some(n.parse::<usize>().map_err(|_| format!("bad item {item:?}"))?))
            }
            _ => (item, None),
        };
        let times = times.map(|n| n.min(VALUES_MAX));
        if body == "_" {
            out.extend(std::iter::repeat_n(None, times.unwrap_or(1)));
            continue;
        }
        let Some(times) = times else {
            out.push(Some(SampleValue::Float(number(body)?)));
            continue;
        };
        let split = body
            .char_indices()
            .skip(1)
            .find(|(i, c)| {
                let before = body.as_bytes().get(i - 1);
                matches!(c, '+' | '-') && !matches!(before, Some(b'e' | b'E'))
            })
            .map(|(i, _)| i);
        let (from, by) = split.map_or((body, "0"), |i| body.split_at(i));
        let (mut at, by) = (number(from)?, number(by)?);
        for i in 0..=times {
            if i > 0 {
                at += by;
            }
            out.push(Some(SampleValue::Float(at)));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_expand() {
        let floats = |text: &str| {
            let one = |v: &Option<SampleValue>| match v {
                Some(SampleValue::Float(f)) => *f,
                Some(SampleValue::Histogram(h)) => h.count,
                None => -1.0,
            };
            values(text).unwrap().iter().map(one).collect::<Vec<_>>()
        };
        assert_eq!(
            floats("1+2x3 _ 5 _x2 4x1 1-1x2 -2"),
            [1., 3., 5., 7., -1., 5., -1., -1., 4., 4., 1., 0., -1., -2.]
        );
        assert_eq!(
            floats("{{count:2}}+{{count:3}}x2 {{schema:0 count:9 buckets:[4 5]}}"),
            [2., 5., 8., 9.]
        );
        assert!(matches!(&values("stale").unwrap()[0], Some(v) if v.is_stale()));
        for bad in ["a", "1x", "{{schema:0", "{{nope:1}}", "1+x3"] {
            assert!(values(bad).is_err(), "{bad}");
        }
        assert_eq!(labels("up{a=\"b\"}").unwrap().get("a"), "b");
        assert!(labels("up{a!=\"b\"}").is_err());
    }
}
