//! The processor `span`: names made of attributes, attributes taken out of names, and the status.

use crate::context::{Context, Field, Of};
use obs_model::{AttributeValue, go_regex};
use regex::Regex;
use serde::Deserialize;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawSpan {
    name: RawName,
    status: Option<RawStatus>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawName {
    from_attributes: Vec<String>,
    separator: String,
    to_attributes: Option<RawRules>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawRules {
    rules: Vec<String>,
    break_after_match: bool,
    keep_original_name: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStatus {
    code: String,
    #[serde(default)]
    description: String,
}

#[derive(Debug, Clone)]
pub(crate) struct SpanName {
    from: Vec<String>,
    separator: String,
    rules: Vec<Regex>,
    breaks: bool,
    keeps_name: bool,
    status: Option<(i64, String)>,
}

impl SpanName {
    pub(crate) fn read(raw: RawSpan) -> Result<Self, String> {
        let rules = raw.name.to_attributes.unwrap_or_default();
        let regex =
            |p: &String| go_regex(p).map_err(|e| format!("{p:?} is no regular expression: {e}"));
        let status = |s: RawStatus| {
            let code = ["Unset", "Ok", "Error"].iter().position(|c| *c == s.code);
            let code =
                code.ok_or_else(|| format!("status.code {:?} is not Unset, Ok or Error", s.code))?;
            Ok::<_, String>((code as i64, s.description))
        };
        let out = Self {
            from: raw.name.from_attributes,
            separator: raw.name.separator,
            rules: rules.rules.iter().map(regex).collect::<Result<_, _>>()?,
            breaks: rules.break_after_match,
            keeps_name: rules.keep_original_name,
            status: raw.status.map(status).transpose()?,
        };
        if out.from.is_empty() && out.rules.is_empty() && out.status.is_none() {
            return Err(
                "one of name.from_attributes, name.to_attributes and status is wanted".into()
            );
        }
        Ok(out)
    }

    pub(crate) fn run(&self, c: &mut dyn Context) {
        let of = Of::Span;
        let parts = c.attributes(of).and_then(|a| {
            self.from
                .iter()
                .map(|k| a.get(k).map(AttributeValue::to_string))
                .collect::<Option<Vec<_>>>()
        });
        // A name is made only when every attribute is there.
        if let Some(parts) = parts.filter(|p| !p.is_empty()) {
            c.set_field(of, Field::Name, parts.join(&self.separator).into());
        }
        for rule in &self.rules {
            let name = c.field(of, Field::Name).to_string();
            let Some(found) = rule.captures(&name) else { continue };
            let (mut new, mut last, mut values) = (String::new(), 0, Vec::new());
            for group in rule.capture_names().flatten() {
                let Some(m) = found.name(group) else { continue };
                if m.start() >= last {
                    new.push_str(name.get(last..m.start()).unwrap_or_default());
                    new.push_str(&format!("{{{group}}}"));
                    last = m.end();
                }
                values.push((group, m.as_str()));
            }
            new.push_str(name.get(last..).unwrap_or_default());
            if let Some(a) = c.attributes_mut(of) {
                values.into_iter().for_each(|(k, v)| a.set(k, v));
            }
            if !self.keeps_name {
                c.set_field(of, Field::Name, new.into());
            }
            if self.breaks {
                break;
            }
        }
        if let Some((code, description)) = &self.status {
            c.set_field(of, Field::StatusCode, (*code).into());
            c.set_field(of, Field::StatusMessage, description.as_str().into());
        }
    }
}
