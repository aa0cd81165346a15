//! Finds the trace that a log line belongs to, when nothing but the line says so.

use memchr::memmem::Finder;
use obs_model::{LogRecord, SpanId, TraceId};
use std::sync::LazyLock;

/// The middle of `trace_id`, `traceId`, `TraceID`, `traceparent` and their like.
static MARK: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("race"));

/// How a value may follow its key: `"trace_id":"…"`, `traceID=…`, `trace_id: …`.
fn value(after_key: &str) -> Option<&str> {
    let rest = after_key.strip_prefix(['"', '\\']).unwrap_or(after_key);
    let rest = rest.trim_start_matches(['"', ' ']).strip_prefix([':', '='])?;
    Some(rest.trim_start_matches([' ', '"', '\\', '\'']))
}

fn hex(text: &str) -> &str {
    let len = text.bytes().take_while(u8::is_ascii_hexdigit).count();
    text.get(..len).unwrap_or_default()
}

/// Returns the ids after a key that ends where `rest` begins: `_id`, `Id`, `ID`, `-id`, `id`.
fn id_of(rest: &str) -> Option<&str> {
    let ends = ["_id", "Id", "ID", "-id", "-Id", "id", ".id"];
    let rest = ends.iter().find_map(|e| rest.strip_prefix(e))?;
    value(rest).map(hex)
}

/// Returns the ids of trace and span that a line carries, in JSON, as `key=value`, or as W3C's
/// `traceparent`. A trace id has 32 digits and is not zero.
fn find(line: &str) -> Option<(TraceId, Option<SpanId>)> {
    let bytes = line.as_bytes();
    for at in MARK.find_iter(bytes) {
        let is_trace = at.checked_sub(1).and_then(|i| bytes.get(i));
        if !is_trace.is_some_and(|b| matches!(b, b't' | b'T')) {
            continue;
        }
        let rest = line.get(at + 4..)?;
        if let Some(rest) = rest.strip_prefix("parent") {
            // 00-TRACE-SPAN-FLAGS
            let mut parts = value(rest).unwrap_or_default().split('-');
            let (_, trace, span) = (parts.next(), parts.next(), parts.next());
            let trace = trace.filter(|t| t.len() == 32).and_then(TraceId::parse);
            if let Some(trace) = trace {
                return Some((trace, span.map(hex).and_then(SpanId::parse)));
            }
            continue;
        }
        let trace = id_of(rest).filter(|h| h.len() == 32).and_then(TraceId::parse);
        if let Some(trace) = trace {
            return Some((trace, span(line)));
        }
    }
    None
}

fn span(line: &str) -> Option<SpanId> {
    let mut from = 0;
    while let Some(at) = line.get(from..)?.find("span") {
        from += at + 4;
        let id = line.get(from..).and_then(id_of).filter(|h| h.len() == 16);
        if let Some(id) = id.and_then(SpanId::parse) {
            return Some(id);
        }
    }
    None
}

/// Sets the ids of a record that came without any.
pub(crate) fn correlate(r: &mut LogRecord) {
    if r.trace_id.is_none()
        && let Some((trace, span)) = find(&r.line)
    {
        r.trace_id = Some(trace);
        r.span_id = r.span_id.or(span);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_in_every_notation() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let both = "b7ad6b7169203331";
        for (line, has_span) in [
            (format!(r#"{{"msg":"x","trace_id":"{trace}","span_id":"{both}"}}"#), true),
            (format!(r#"{{"traceId" : "{trace}"}}"#), false),
            (format!("level=info traceID={trace} spanID={both} x"), true),
            (format!("trace retraced trace_id: {trace}"), false),
            (format!("TraceId={trace} span=none spanid={both}"), true),
            (format!("traceparent=00-{trace}-{both}-01"), true),
            (format!(r#"{{"headers":"{{\"traceparent\":\"00-{trace}-{both}-01\"}}"}}"#), true),
        ] {
            let (t, s) = find(&line).unwrap_or_else(|| panic!("{line}"));
            assert_eq!((t.to_string().as_str(), s.is_some()), (trace, has_span), "{line}");
        }
        for line in [
            "trace_id=",
            "trace_id=0af7",
            "trace_id=00000000000000000000000000000000",
            &format!("trace={trace}"),
            &format!("grace_id={trace}x"),
            &format!("trace_id={trace}0"),
            "traceparent=00-x",
            "",
        ] {
            assert_eq!(find(line), None, "{line}");
        }
    }
}
