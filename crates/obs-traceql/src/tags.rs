//! What there is to search for: names of attributes, and their values.

use crate::ast::Field;
use crate::eval::{Env as _, Fields, Node, Wanted};
use crate::plan::Row;
use crate::{QueryError, TraceQl, parser};
use obs_model::{
    Budget, FieldValue, SelectError, SelectSpans, SpanRow, SpanScan, TenantId, TimestampNs,
    VisitSpans,
};
use std::collections::HashSet;
use std::ops::ControlFlow;

/// Returns the names of what spans have without attributes, as pages offer them.
pub const fn intrinsics() -> &'static [&'static str] {
    &[
        "duration",
        "event:name",
        "event:timeSinceStart",
        "instrumentation:name",
        "instrumentation:version",
        "kind",
        "link:spanID",
        "link:traceID",
        "name",
        "rootName",
        "rootServiceName",
        "span:duration",
        "span:id",
        "span:kind",
        "span:name",
        "span:parentID",
        "span:status",
        "span:statusMessage",
        "status",
        "statusMessage",
        "trace:duration",
        "trace:id",
        "trace:rootName",
        "trace:rootService",
        "traceDuration",
    ]
}

/// Whose values are asked for, where.
#[derive(Debug, Clone, Copy)]
pub struct TagValues<'a> {
    /// As TraceQL writes it, such as `resource.service.name`; a plain key means any scope.
    pub tag: &'a str,
    /// Only values of spans that satisfy this.
    pub query: Option<&'a TraceQl>,
    pub start: TimestampNs,
    pub end: TimestampNs,
    /// Values at most.
    pub limit: usize,
}

struct Collector<'a> {
    wanted: Wanted,
    filter: Option<&'a Node>,
    limit: usize,
    budget: &'a Budget,
    seen: HashSet<String>,
    values: Vec<FieldValue<'static>>,
}

impl Collector<'_> {
    fn add(&mut self, v: &FieldValue<'_>) -> Result<(), SelectError> {
        if let FieldValue::List(l) = v {
            return l.iter().try_for_each(|v| self.add(v));
        }
        if v.is_nil() || self.values.len() >= self.limit {
            return Ok(());
        }
        let text = v.text();
        if !self.seen.contains(text.as_ref()) {
            self.budget.take(0, v.size_bytes() + text.len())?;
            self.seen.insert(text.into_owned());
            self.values.push(v.lend().into_owned());
        }
        Ok(())
    }
}

impl VisitSpans for Collector<'_> {
    fn visit(&mut self, row: &dyn SpanRow) -> Result<ControlFlow<()>, SelectError> {
        let env = Row(row);
        if self.filter.is_none_or(|f| f.holds(&env)) {
            self.add(&env.read(self.wanted))?;
        }
        Ok(if self.values.len() < self.limit {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        })
    }
}

/// Returns the field that a tag names: as written, or the attribute of that key in any scope.
fn field_of(tag: &str) -> Option<Field> {
    parser::field(tag).or_else(|| parser::field(&format!(".{tag}")))
}

/// Returns distinct values, those of the latest spans first.
///
/// # Errors
/// When there can be no such tag, the store cannot be read or the budget ends.
pub fn tag_values(
    source: &dyn SelectSpans,
    tenant: &TenantId,
    of: &TagValues<'_>,
    budget: &Budget,
) -> Result<Vec<FieldValue<'static>>, QueryError> {
    let bad = || QueryError::Bad(format!("tag {:?} is not a name that spans can have", of.tag));
    let field = match field_of(of.tag).ok_or_else(bad)? {
        // The root is a span too: what it is called is among the names.
        Field::RootName => Field::Name,
        Field::RootService => {
            let scope = crate::ast::Scope::Of(obs_model::AttributeScope::Resource);
            Field::Attribute { parent: false, scope, key: "service.name".into() }
        }
        f => f,
    };
    // Only filters that need no trace narrow the values; others would cost more than they help.
    let filter = of.query.and_then(|q| q.plan.only_filter());
    let mut fields = Fields::default();
    if let Some(q) = of.query.filter(|_| filter.is_some()) {
        fields.stored.clone_from(&q.plan.fields.stored);
    }
    let wanted = fields.want(&field);
    if wanted.needs_trace() {
        return Ok(Vec::new());
    }
    let equal = of.query.filter(|_| filter.is_some()).map(|q| q.plan.equal()).unwrap_or_default();
    let scan = SpanScan {
        start: of.start,
        end: of.end,
        fields: &fields.stored,
        traces: &[],
        equal: &equal,
    };
    let mut collector = Collector {
        wanted,
        filter,
        limit: of.limit,
        budget,
        seen: HashSet::new(),
        values: Vec::new(),
    };
    source.scan_spans(tenant, &scan, budget, &mut collector)?;
    Ok(collector.values)
}
