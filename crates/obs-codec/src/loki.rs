//! Loki push: JSON and snappy-compressed protobuf.

use crate::{DecodeError, Decoded, Rejected};
use obs_model::{
    Attributes, Labels, LabelsBuilder, LogRecord, Resource, SpanId, TimestampNs, TraceId,
    go_unquote,
};
use prost::Message;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Deserialize)]
struct JsonPush {
    streams: Vec<JsonStream>,
}

#[derive(Deserialize)]
struct JsonStream {
    stream: BTreeMap<String, String>,
    values: Vec<Vec<serde_json::Value>>,
}

#[derive(Clone, PartialEq, Message)]
struct PushRequest {
    #[prost(message, repeated, tag = "1")]
    streams: Vec<StreamAdapter>,
}

#[derive(Clone, PartialEq, Message)]
struct StreamAdapter {
    #[prost(string, tag = "1")]
    labels: String,
    #[prost(message, repeated, tag = "2")]
    entries: Vec<EntryAdapter>,
}

#[derive(Clone, PartialEq, Message)]
struct EntryAdapter {
    #[prost(message, optional, tag = "1")]
    timestamp: Option<Timestamp>,
    #[prost(string, tag = "2")]
    line: String,
    #[prost(message, repeated, tag = "3")]
    metadata: Vec<LabelPair>,
}

#[derive(Clone, PartialEq, Message)]
struct Timestamp {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

#[derive(Clone, PartialEq, Message)]
struct LabelPair {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// Decodes the JSON form.
///
/// # Errors
/// When the body is not a push at all; single bad entries are counted.
pub fn decode_json(body: &[u8]) -> Result<Decoded<Vec<LogRecord>>, DecodeError> {
    let push: JsonPush = serde_json::from_slice(body)
        .map_err(|e| DecodeError { format: "Loki push JSON", reason: e.to_string() })?;
    let mut out = Builder::default();
    for s in push.streams {
        let stream = Labels::from_pairs(&s.stream);
        if let Some(name) = s.stream.keys().find(|n| !is_label_name(n)) {
            out.wrong_labels(s.values.len(), &stream.to_string(), name);
            continue;
        }
        for entry in s.values {
            match json_entry(&entry) {
                Some((t, line, metadata)) => out.push(&stream, t, line, metadata),
                None => out
                    .rejected
                    .add("entry is not [\"<unix nanoseconds>\", \"<line>\", {metadata}?]"),
            }
        }
    }
    Ok(out.finish())
}

fn json_entry(entry: &[serde_json::Value]) -> Option<(i64, String, Attributes)> {
    let (time, line, metadata) = match entry {
        [t, l] => (t, l, None),
        [t, l, m] => (t, l, Some(m.as_object()?)),
        _ => return None,
    };
    let time = time.as_str()?.parse().ok()?;
    let pair = |(k, v): (&String, &serde_json::Value)| Some((k.clone(), v.as_str()?.to_owned()));
    let metadata = metadata.map(|m| m.iter().map(pair).collect::<Option<Attributes>>());
    Some((time, line.as_str()?.to_owned(), metadata.unwrap_or(Some(Attributes::default()))?))
}

/// Decodes the protobuf form, after snappy.
///
/// # Errors
/// When the body is not a push at all; single bad streams and entries are counted.
pub fn decode_protobuf(body: &[u8]) -> Result<Decoded<Vec<LogRecord>>, DecodeError> {
    let push = PushRequest::decode(body)
        .map_err(|e| DecodeError { format: "Loki push protobuf", reason: e.to_string() })?;
    let mut out = Builder::default();
    for s in push.streams {
        let stream = match parse_labels(&s.labels) {
            Ok(stream) => stream,
            Err(at) => {
                out.wrong_labels(s.entries.len(), &s.labels, at);
                continue;
            }
        };
        for e in s.entries {
            let t = e.timestamp.unwrap_or_default();
            match t.seconds.checked_mul(1_000_000_000).and_then(|s| s.checked_add(t.nanos.into())) {
                Some(ns) => out.push(
                    &stream,
                    ns,
                    e.line,
                    e.metadata.into_iter().map(|p| (p.name, p.value)).collect(),
                ),
                None => out.rejected.add("timestamp is out of range"),
            }
        }
    }
    Ok(out.finish())
}

#[derive(Default)]
struct Builder {
    items: Vec<LogRecord>,
    rejected: Rejected,
    resource: Arc<Resource>,
}

impl Builder {
    fn wrong_labels(&mut self, entries: usize, labels: &str, at: &str) {
        let text = format!("error parsing labels '{labels}' with error: unexpected {at:?}");
        self.rejected.add_many(entries as u64, text);
    }

    fn push(&mut self, stream: &Labels, ns: i64, line: String, attributes: Attributes) {
        if stream.is_empty() {
            return self.rejected.add("error at least one label pair is required per stream");
        }
        let text =
            |names: [&str; 3]| names.iter().find_map(|n| attributes.get_str(n)).map(str::to_owned);
        let trace_id = text(["trace_id", "traceID", "traceId"]).and_then(|t| TraceId::parse(&t));
        let span_id = text(["span_id", "spanID", "spanId"]).and_then(|t| SpanId::parse(&t));
        let level = stream.get("level");
        let severity_text = if level.is_empty() {
            text(["level", "detected_level", "severity_text"]).unwrap_or_default()
        } else {
            level.to_owned()
        };
        let timestamp = TimestampNs::from_nanos(ns);
        self.items.push(LogRecord {
            stream: stream.clone(),
            timestamp,
            observed: timestamp,
            line,
            severity_number: 0,
            severity_text,
            event_name: String::new(),
            trace_id,
            span_id,
            attributes,
            resource: self.resource.clone(),
        });
    }

    fn finish(self) -> Decoded<Vec<LogRecord>> {
        Decoded { items: self.items, rejected: self.rejected }
    }
}

/// Returns whether Loki takes this as the name of a stream's label.
fn is_label_name(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Parses `{a="b", c="d"}`, with values as Go quotes them; else returns what is wrong.
fn parse_labels(text: &str) -> Result<Labels, &str> {
    let text = text.trim();
    let mut rest = text.strip_prefix('{').ok_or(text)?.trim_start();
    let mut b = LabelsBuilder::default();
    while !rest.starts_with('}') {
        let (name, tail) = rest.split_once('=').ok_or(rest)?;
        let name = name.trim();
        if !is_label_name(name) {
            return Err(name);
        }
        let tail = tail.trim_start();
        let (value, len) = go_unquote(tail).ok_or(tail)?;
        b.set(name, &value);
        let tail = tail.get(len..).unwrap_or_default().trim_start();
        rest = match tail.strip_prefix(',') {
            Some(more) => more.trim_start(),
            None if tail.starts_with('}') => tail,
            None => return Err(tail),
        };
    }
    match rest.get(1..).unwrap_or_default().trim() {
        "" => Ok(b.build()),
        more => Err(more),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_carry_labels_lines_and_metadata() {
        let json = r#"{"streams":[{"stream":{"app":"a"},"values":[["5","hello"],["6","meta",{"trace_id":"0af7651916cd43dd8448eb211c80319c","x":"y"}],[7,"number"],["8"]]},{"stream":{},"values":[["1","no labels"]]}]}"#;
        let d = decode_json(json.as_bytes()).unwrap();
        assert_eq!(
            d.items.iter().map(|r| (r.timestamp.nanos(), r.line.as_str())).collect::<Vec<_>>(),
            [(5, "hello"), (6, "meta")]
        );
        assert!(d.items[1].trace_id.is_some());
        assert_eq!(d.rejected.count, 3);

        let push = PushRequest {
            streams: vec![
                StreamAdapter {
                    labels: r#"{app="a\"b", env="x"}"#.into(),
                    entries: vec![EntryAdapter {
                        timestamp: Some(Timestamp { seconds: 1, nanos: 2 }),
                        line: "l".into(),
                        metadata: vec![],
                    }],
                },
                StreamAdapter { labels: "{oops".into(), entries: vec![EntryAdapter::default()] },
            ],
        };
        let d = decode_protobuf(&push.encode_to_vec()).unwrap();
        assert_eq!(d.items[0].stream, Labels::from_pairs([("app", "a\"b"), ("env", "x")]));
        assert_eq!(d.items[0].timestamp.nanos(), 1_000_000_002);
        assert_eq!(d.rejected.count, 1);
        assert!(decode_json(b"[]").is_err());
    }

    #[test]
    fn labels_are_as_go_writes_them() {
        for (text, want) in [
            (
                r#"{a="\x1b[0m\a\u00e4\U0001F600", b=`c\d` , }"#,
                Ok(vec![("a", "\x1b[0m\x07ä😀"), ("b", r"c\d")]),
            ),
            ("{}", Ok(vec![])),
            (r#"{a b="c"}"#, Err("a b")),
            (r#"{a.b="c"}"#, Err("a.b")),
            (r#"{a="b" c="d"}"#, Err(r#"c="d"}"#)),
            (r#"{a="b"} x"#, Err("x")),
            (r#"{a="b""#, Err("")),
            (r#"{1a="b"}"#, Err("1a")),
        ] {
            assert_eq!(parse_labels(text), want.map(Labels::from_pairs), "{text}");
        }
        let json = r#"{"streams":[{"stream":{"a b":"c"},"values":[["1","x"],["2","y"]]},{"stream":{"a":"c"},"values":[["1","z"]]}]}"#;
        let d = decode_json(json.as_bytes()).unwrap();
        assert_eq!((d.items.len(), d.rejected.count), (1, 2));
        assert_eq!(
            d.rejected.reasons,
            [r#"error parsing labels '{a b="c"}' with error: unexpected "a b""#]
        );
    }
}
