//! Attributes, resources and scopes.

use obs_model::{AttributeValue, Attributes, Resource, Scope};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource as ProtoResource;
use std::sync::Arc;

/// Nesting below which values are cut.
const DEPTH_MAX: usize = 16;
/// Longest text of an attribute that is kept, in bytes: prompts with documents and pictures in them
/// are the longest that are legitimate.
const VALUE_BYTES_MAX: usize = 16 << 20;
const TRUNCATED: &str = "…[truncated]";

/// Cuts a string at a character boundary and marks the cut.
fn clip(mut s: String) -> String {
    if s.len() > VALUE_BYTES_MAX {
        let at = (0..=VALUE_BYTES_MAX).rev().find(|i| s.is_char_boundary(*i)).unwrap_or(0);
        s.truncate(at);
        s.push_str(TRUNCATED);
    }
    s
}

pub(super) fn value(v: Option<AnyValue>, depth: usize) -> AttributeValue {
    let Some(v) = v.and_then(|v| v.value) else { return AttributeValue::Empty };
    if depth > DEPTH_MAX {
        return AttributeValue::String(TRUNCATED.to_owned());
    }
    match v {
        Value::StringValue(s) => AttributeValue::String(clip(s)),
        Value::BoolValue(b) => AttributeValue::Bool(b),
        Value::IntValue(i) => AttributeValue::Int(i),
        Value::DoubleValue(d) => AttributeValue::Double(d),
        Value::BytesValue(b) => AttributeValue::Bytes(b),
        Value::ArrayValue(a) => {
            AttributeValue::Array(a.values.into_iter().map(|v| value(Some(v), depth + 1)).collect())
        }
        Value::KvlistValue(l) => AttributeValue::Map(
            l.values.into_iter().map(|kv| (kv.key, value(kv.value, depth + 1))).collect(),
        ),
        // References into a string table exist in the profiles signal alone.
        #[allow(
            unreachable_patterns,
            reason = "the variant exists in some versions of the protocol crate"
        )]
        _ => AttributeValue::Empty,
    }
}

/// Reads a list of attributes; values are cut where they are too long or too deep.
pub fn attributes(list: Vec<KeyValue>) -> Attributes {
    let pairs: Vec<_> = list
        .into_iter()
        .filter(|kv| !kv.key.is_empty())
        .map(|kv| (kv.key, value(kv.value, 0)))
        .collect();
    pairs.into()
}

pub(super) fn resource(r: Option<ProtoResource>) -> Arc<Resource> {
    Arc::new(Resource { attributes: attributes(r.map(|r| r.attributes).unwrap_or_default()) })
}

pub(super) fn scope(s: Option<InstrumentationScope>) -> Arc<Scope> {
    let s = s.unwrap_or_default();
    Arc::new(Scope { name: s.name, version: s.version, attributes: attributes(s.attributes) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_cut_at_a_character_and_marked() {
        let cut = clip("é".repeat(VALUE_BYTES_MAX));
        assert!(cut.len() <= VALUE_BYTES_MAX + TRUNCATED.len() && cut.ends_with(TRUNCATED));
        assert_eq!(clip("short".into()), "short");
    }
}
