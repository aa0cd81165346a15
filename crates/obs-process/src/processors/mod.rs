//! What one processor does to records. Each is read from its part of the file once; records then
//! pass through [`Step::record`], or are dropped by it.

mod actions;
mod conditions;
mod matching;
mod redaction;
mod span_name;

pub(crate) use actions::{Action, RawAction};
pub(crate) use conditions::{filter, transform};
pub(crate) use matching::{Matching, RawMatch};
pub(crate) use redaction::{RawRedaction, Redaction};
pub(crate) use span_name::{RawSpan, SpanName};

use crate::context::{Context, Field, Of};
use crate::ottl::{Cond, Scratch, Statement};
use obs_model::AttributeValue;

/// Statements about one kind of record.
#[derive(Debug, Clone)]
pub(crate) struct Statements {
    pub(crate) of: Of,
    /// All statements run on records of which one of these holds; on all when there are none.
    pub(crate) conditions: Vec<Cond>,
    pub(crate) statements: Vec<Statement>,
}

/// Conditions of which any drops a record.
#[derive(Debug, Clone)]
pub(crate) struct Drops {
    pub(crate) of: Of,
    pub(crate) conditions: Vec<Cond>,
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Attributes(Matching, Vec<Action>),
    Resource(Vec<Action>),
    /// Attributes that a resource is given; those it has are replaced when `true`.
    Detected(Vec<(String, AttributeValue)>, bool),
    Drop(Vec<Drops>),
    Keep(Matching),
    Transform(Vec<Statements>),
    SpanName(Matching, SpanName),
    Redact(Redaction),
    /// What an exporter for Prometheus adds to names and labels.
    Exported {
        namespace: String,
        labels: Vec<(String, String)>,
    },
}

impl Step {
    /// Returns whether the step looks at things of this kind at all.
    pub(crate) fn concerns(&self, of: Of) -> bool {
        match self {
            Self::Attributes(..) => matches!(of, Of::Span | Of::Log | Of::Point),
            Self::Resource(_) | Self::Detected(..) => of == Of::Resource,
            Self::Drop(list) => list.iter().any(|d| d.of == of),
            Self::Keep(_) => matches!(of, Of::Span | Of::Log | Of::Metric),
            Self::Transform(list) => list.iter().any(|s| s.of == of),
            Self::SpanName(..) => of == Of::Span,
            Self::Exported { .. } => matches!(of, Of::Metric | Of::Point),
            Self::Redact(_) => of != Of::Metric && of != Of::Scope,
        }
    }

    /// Processes a record; returns whether it is kept. What goes wrong is told to `fail`, and the
    /// record stays as it is.
    pub(crate) fn record(&self, of: Of, c: &mut dyn Context, fail: &mut dyn FnMut(String)) -> bool {
        match self {
            Self::Attributes(m, actions) => {
                if m.takes(of, c) {
                    actions.iter().for_each(|a| a.run(of, c));
                }
            }
            Self::Resource(actions) => actions.iter().for_each(|a| a.run(of, c)),
            Self::Detected(found, replaces) => {
                for (k, v) in found {
                    let Some(a) = c.attributes_mut(Of::Resource) else { break };
                    if *replaces || a.get(k).is_none() {
                        a.set(k, v.clone());
                    }
                }
            }
            Self::Keep(m) => return m.takes(of, c),
            Self::Drop(list) => {
                let scratch = Scratch::default();
                for condition in list.iter().filter(|d| d.of == of).flat_map(|d| &d.conditions) {
                    match condition.holds(c, &scratch) {
                        Ok(true) => return false,
                        Ok(false) => {}
                        Err(e) => fail(e),
                    }
                }
            }
            Self::Transform(list) => {
                let mut scratch = Scratch::default();
                for group in list.iter().filter(|s| s.of == of) {
                    let met = group.conditions.is_empty()
                        || group.conditions.iter().any(|x| match x.holds(c, &scratch) {
                            Ok(holds) => holds,
                            Err(e) => {
                                fail(e);
                                false
                            }
                        });
                    for s in group.statements.iter().filter(|_| met) {
                        if let Err(e) = s.run(c, &mut scratch) {
                            fail(e);
                        }
                    }
                }
            }
            Self::SpanName(m, s) => {
                if m.takes(of, c) {
                    s.run(c);
                }
            }
            Self::Redact(r) => r.run(of, c),
            Self::Exported { namespace, .. } if of == Of::Metric && !namespace.is_empty() => {
                let name = c.field(of, Field::Name);
                c.set_field(of, Field::Name, format!("{namespace}_{name}").into());
            }
            Self::Exported { labels, .. } => {
                if let Some(a) = c.attributes_mut(of) {
                    labels.iter().for_each(|(k, v)| a.set(k, v.as_str()));
                }
            }
        }
        true
    }
}
