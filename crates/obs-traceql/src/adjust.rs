//! A trace as it is shown: ids that two sides share are told apart, and children are moved into
//! their parents where clocks differ. What was stored stays as it was sent.

use obs_model::{Span, SpanId, SpanKind};
use std::collections::HashMap;
use std::sync::Arc;

/// Spans in the order in which they came in, and remarks about each.
#[derive(Debug, Clone, Default)]
pub struct Adjusted {
    pub spans: Vec<Arc<Span>>,
    /// One list a span.
    pub warnings: Vec<Vec<String>>,
}

/// Prepares a trace for showing. Clocks are corrected by up to `skew_max_ns`; zero leaves them, and
/// says by how much they differ.
pub fn adjust(spans: Vec<Arc<Span>>, skew_max_ns: i64) -> Adjusted {
    let spans = tell_apart(spans);
    let warnings = vec![Vec::new(); spans.len()];
    let mut out = Adjusted { spans, warnings };
    correct_clocks(&mut out, skew_max_ns);
    out
}

/// Zipkin's servers take over the id of the client's span. The server's gets a new one, below the
/// client's, and what it called moves along.
pub fn tell_apart(mut spans: Vec<Arc<Span>>) -> Vec<Arc<Span>> {
    let mut clients: HashMap<SpanId, usize> = HashMap::new();
    for (i, s) in spans.iter().enumerate().filter(|(_, s)| s.kind == SpanKind::Client) {
        clients.insert(s.span_id, i);
    }
    let mut renamed: HashMap<SpanId, SpanId> = HashMap::new();
    for s in spans.iter().filter(|s| s.kind == SpanKind::Server) {
        if clients.contains_key(&s.span_id) {
            // Stable from one look to the next, and no one else's.
            let mut bytes = *s.span_id.as_bytes();
            for (i, b) in bytes.iter_mut().enumerate() {
                *b = b.rotate_left(3) ^ 0x5a ^ i as u8;
            }
            if let Some(id) = SpanId::from_slice(&bytes) {
                renamed.insert(s.span_id, id);
            }
        }
    }
    if renamed.is_empty() {
        return spans;
    }
    for s in &mut spans {
        if s.kind == SpanKind::Server
            && let Some(id) = renamed.get(&s.span_id).copied()
        {
            let old = s.span_id;
            let s = Arc::make_mut(s);
            s.span_id = id;
            s.parent_id = Some(old);
        } else if let Some(id) = s.parent_id.and_then(|p| renamed.get(&p)).copied()
            && s.span_id != id
        {
            Arc::make_mut(s).parent_id = Some(id);
        }
    }
    spans
}

/// What tells machines apart; none when a span does not say where it ran.
fn host(s: &Span) -> Option<&str> {
    ["ip", "host.id", "host.name", "hostname"].iter().find_map(|k| s.resource.attributes.get_str(k))
}

/// Returns by how much a child must move so that it fits its parent, ns.
fn skew(child: &Span, parent: &Span) -> i64 {
    let (own, all) = (child.duration_ns(), parent.duration_ns());
    let behind = parent.start.nanos().saturating_sub(child.start.nanos());
    // A child that outlives its parent runs on its own; it cannot begin before it, though.
    if own > all {
        return behind.max(0);
    }
    if child.start >= parent.start && child.end <= parent.end {
        return 0;
    }
    // The way there is taken to be as long as the way back.
    behind.saturating_add((all - own) / 2)
}

fn correct_clocks(out: &mut Adjusted, max_ns: i64) {
    let mut at: HashMap<SpanId, usize> = HashMap::new();
    for (i, s) in out.spans.iter().enumerate() {
        if at.insert(s.span_id, i).is_some()
            && let Some(w) = out.warnings.get_mut(i)
        {
            w.push("duplicate span IDs; skipping clock skew adjustment".into());
        }
    }
    let mut below: Vec<Vec<usize>> = vec![Vec::new(); out.spans.len()];
    let mut roots = Vec::new();
    for (i, s) in out.spans.iter().enumerate() {
        match s.parent_id.map(|p| (p, at.get(&p).copied())) {
            None => roots.push(i),
            Some((_, Some(p))) if p != i => below.get_mut(p).into_iter().for_each(|b| b.push(i)),
            Some((p, _)) => {
                let text = format!("invalid parent span IDs={p}; skipping clock skew adjustment");
                out.warnings.get_mut(i).into_iter().for_each(|w| w.push(text.clone()));
                roots.push(i);
            }
        }
    }
    // Each with its parent and the correction that holds where the parent ran. A loop hangs on no
    // root and is left alone.
    let mut stack: Vec<(usize, Option<usize>, i64)> =
        roots.into_iter().map(|r| (r, None, 0)).collect();
    let mut seen = vec![false; out.spans.len()];
    while let Some((i, parent, inherited)) = stack.pop() {
        if seen.get(i).copied().unwrap_or(true) {
            continue;
        }
        seen.get_mut(i).into_iter().for_each(|s| *s = true);
        let Some(own) = out.spans.get(i) else { continue };
        let above = parent.and_then(|p| out.spans.get(p));
        let mut delta = inherited;
        if let Some(above) = above {
            let elsewhere = host(own).is_none() || host(own) != host(above);
            if elsewhere {
                delta = skew(own, above);
            }
        }
        if delta != 0 {
            let text = if max_ns == 0 {
                let by = go_duration(delta);
                format!("clock skew adjustment disabled; not applying calculated delta of {by}")
            } else if delta.abs() > max_ns {
                let (max, by) = (go_duration(max_ns), go_duration(delta));
                format!(
                    "max clock skew adjustment delta of {max} exceeded; not applying calculated delta of {by}"
                )
            } else {
                if let Some(s) = out.spans.get_mut(i) {
                    let s = Arc::make_mut(s);
                    s.start = s.start.add_nanos(delta);
                    s.end = s.end.add_nanos(delta);
                    for e in &mut s.events {
                        e.timestamp = e.timestamp.add_nanos(delta);
                    }
                }
                format!("This span's timestamps were adjusted by {}", go_duration(delta))
            };
            out.warnings.get_mut(i).into_iter().for_each(|w| w.push(text.clone()));
        }
        let children = below.get(i).into_iter().flatten();
        stack.extend(children.map(|c| (*c, Some(i), delta)));
    }
}

/// Writes a duration as Go does.
pub fn go_duration(ns: i64) -> String {
    let sign = if ns < 0 { "-" } else { "" };
    let abs = ns.unsigned_abs();
    let scaled = |unit: u64| {
        let text = format!("{}.{:0width$}", abs / unit, abs % unit, width = unit.ilog10() as usize);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    let text = match abs {
        0 => return "0s".into(),
        1..1_000 => format!("{abs}ns"),
        1_000..1_000_000 => format!("{}µs", scaled(1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", scaled(1_000_000)),
        _ => {
            const MINUTE: u64 = 60_000_000_000;
            let (hours, minutes) = (abs / (60 * MINUTE), abs / MINUTE % 60);
            let rest = abs % MINUTE;
            let fraction = format!("{}.{:09}", rest / 1_000_000_000, rest % 1_000_000_000);
            let seconds = fraction.trim_end_matches('0').trim_end_matches('.');
            match (hours, minutes) {
                (0, 0) => format!("{seconds}s"),
                (0, m) => format!("{m}m{seconds}s"),
                (h, m) => format!("{h}h{m}m{seconds}s"),
            }
        }
    };
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use obs_model::{Attributes, Resource, SpanStatus, TimestampNs, TraceId};

    fn span(id: u8, parent: u8, kind: SpanKind, host: &str, start: i64, length: i64) -> Arc<Span> {
        let resource = Attributes::from_iter([("service.name", "s"), ("host.name", host)]);
        Arc::new(Span {
            trace_id: TraceId::from_slice(&[1; 16]).unwrap(),
            span_id: SpanId::from_slice(&[id; 8]).unwrap(),
            parent_id: SpanId::from_slice(&[parent; 8]),
            name: "op".into(),
            kind,
            start: TimestampNs::from_nanos(start),
            end: TimestampNs::from_nanos(start + length),
            status: SpanStatus::Unset,
            trace_state: String::new(),
            attributes: Attributes::default(),
            events: vec![],
            links: vec![],
            resource: Arc::new(Resource { attributes: resource }),
            scope: Arc::default(),
        })
    }

    #[test]
    fn two_sides_of_one_id_become_parent_and_child() {
        use SpanKind::{Client, Internal, Server};
        let spans = vec![
            span(1, 0, Client, "a", 0, 10),
            span(1, 0, Server, "b", 2, 6),
            span(2, 1, Internal, "b", 3, 1),
        ];
        let out = tell_apart(spans.clone());
        assert_eq!(out[0], spans[0]);
        assert_eq!(out[1].parent_id, Some(spans[0].span_id));
        assert_ne!(out[1].span_id, spans[0].span_id);
        assert_eq!(out[2].parent_id, Some(out[1].span_id));
        assert_eq!(tell_apart(spans)[1].span_id, out[1].span_id);
    }

    #[test]
    fn clocks_that_differ_are_corrected_within_a_bound() {
        let internal = SpanKind::Internal;
        let spans = vec![
            span(1, 0, internal, "a", 100, 100),
            span(2, 1, internal, "b", 10, 50),
            // On the same machine as its parent: moved by as much.
            span(3, 2, internal, "b", 20, 10),
            span(4, 1, internal, "a", 90, 10),
            span(5, 9, internal, "a", 90, 10),
        ];
        let starts =
            |a: &Adjusted| -> Vec<i64> { a.spans.iter().map(|s| s.start.nanos()).collect() };
        let out = adjust(spans.clone(), 1_000);
        // 25 there, 25 back.
        assert_eq!(starts(&out), [100, 125, 135, 90, 90]);
        assert_eq!(out.warnings[1], ["This span's timestamps were adjusted by 115ns"]);
        assert_eq!(
            out.warnings[4],
            ["invalid parent span IDs=0909090909090909; skipping clock skew adjustment"]
        );
        let out = adjust(spans.clone(), 0);
        assert_eq!(starts(&out), [100, 10, 20, 90, 90]);
        assert!(out.warnings[1][0].starts_with("clock skew adjustment disabled"));
        let out = adjust(spans, 50);
        assert_eq!(starts(&out)[1], 10);
        assert!(out.warnings[1][0].contains("delta of 50ns exceeded"), "{:?}", out.warnings);
    }

    #[test]
    fn durations_are_written_as_go_does() {
        let cases = [
            (0, "0s"),
            (-1_500, "-1.5µs"),
            (2_000_000, "2ms"),
            (1_250_000_000, "1.25s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
        ];
        for (ns, text) in cases {
            assert_eq!(go_duration(ns), text);
        }
    }
}
