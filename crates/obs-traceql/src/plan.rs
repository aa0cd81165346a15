//! What a query needs of the store: fields of spans, which spans, and whether whole traces.

use crate::ast::{Field, MetricKind, Op, Query, SecondStage, Stage};
use crate::eval::{Env, Fields, Node, Wanted};
use crate::trace::{Spansets, Step};
use obs_model::{Equal, FieldValue, SpanField, SpanRow};

/// The step that makes series, compiled.
#[derive(Debug)]
pub(crate) struct MetricPlan {
    pub(crate) kind: MetricKind,
    pub(crate) of: Option<Wanted>,
    pub(crate) quantiles: Vec<f64>,
    pub(crate) by: Vec<(Wanted, String)>,
    pub(crate) selection: Option<Node>,
    pub(crate) top: usize,
    pub(crate) range: Option<(i64, i64)>,
    pub(crate) second: Vec<SecondStage>,
}

#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) fields: Fields,
    pub(crate) steps: Vec<Step>,
    /// What answers show of a span, under which name.
    pub(crate) shown: Vec<(Wanted, Field)>,
    /// Whether a span cannot be judged without its trace.
    pub(crate) whole: bool,
    pub(crate) metric: Option<MetricPlan>,
}

/// A span of a scan, as an expression sees it.
pub(crate) struct Row<'a>(pub(crate) &'a dyn SpanRow);

impl Env for Row<'_> {
    fn read(&self, w: Wanted) -> FieldValue<'_> {
        match w {
            Wanted::Stored(place) => self.0.get(place),
            Wanted::Duration => FieldValue::Duration(self.0.duration_ns()),
            Wanted::SpanId => FieldValue::str(self.0.span_id().to_string()),
            Wanted::ParentId => {
                FieldValue::str(self.0.parent_id().map_or_else(String::new, |p| p.to_string()))
            }
            Wanted::TraceId => FieldValue::str(self.0.trace_id().to_string()),
            Wanted::SpanStart => FieldValue::Int(self.0.start().nanos()),
            Wanted::RootMark => FieldValue::Int(if self.0.parent_id().is_none() { -1 } else { 1 }),
            // A plan that reads these asks for whole traces.
            _ => FieldValue::Nil,
        }
    }
}

fn each_field(e: &crate::ast::Expr, f: &mut dyn FnMut(&Field)) {
    use crate::ast::Expr;
    match e {
        Expr::Static(_) => {}
        Expr::Field(x) => f(x),
        Expr::Not(a) | Expr::Neg(a) => each_field(a, f),
        Expr::Binary(_, a, b) => {
            each_field(a, f);
            each_field(b, f);
        }
    }
}

fn fields_of_spansets(e: &crate::ast::SpansetExpr, f: &mut dyn FnMut(&Field)) {
    use crate::ast::SpansetExpr;
    match e {
        SpansetExpr::Filter(e) => each_field(e, f),
        SpansetExpr::Binary(_, a, b) => {
            fields_of_spansets(a, f);
            fields_of_spansets(b, f);
        }
        SpansetExpr::Pipeline(p) => p.iter().for_each(|s| fields_of_stage(s, f)),
    }
}

fn fields_of_stage(s: &Stage, f: &mut dyn FnMut(&Field)) {
    match s {
        Stage::Spansets(e) => fields_of_spansets(e, f),
        Stage::Select(list) => list.iter().for_each(f),
        Stage::By(e) => each_field(e, f),
        Stage::Scalar(..) | Stage::Coalesce => {}
    }
}

impl Plan {
    pub(crate) fn new(q: &Query) -> Self {
        let mut fields = Fields::default();
        let steps: Vec<Step> = q.pipeline.iter().map(|s| Step::compile(s, &mut fields)).collect();
        let mut shown = Vec::new();
        for stage in &q.pipeline {
            fields_of_stage(stage, &mut |f| {
                let w = fields.want(f);
                if !shown.iter().any(|(x, _)| *x == w) {
                    shown.push((w, f.clone()));
                }
            });
        }
        let metric = q.metric.as_ref().map(|m| MetricPlan {
            kind: m.kind,
            of: m.of.as_ref().map(|f| fields.want(f)),
            quantiles: m.quantiles.clone(),
            by: m.by.iter().map(|f| (fields.want(f), crate::eval::spelled(f))).collect(),
            selection: m.selection.as_ref().map(|e| Node::compile(e, &mut fields)),
            top: m.top,
            range: m.range,
            second: q.second.clone(),
        });
        let mut structural = false;
        let mut needs = shown.iter().any(|(w, _)| w.needs_trace());
        for step in &steps {
            step.nodes(&mut |n| needs |= n.needs_trace(), &mut || structural = true);
        }
        if let Some(m) = &metric {
            needs |= m.of.is_some_and(Wanted::needs_trace);
            needs |= m.by.iter().any(|(w, _)| w.needs_trace());
            needs |= m.selection.as_ref().is_some_and(Node::needs_trace);
        }
        Self { fields, steps, shown, whole: structural || needs, metric }
    }

    /// Returns the filter, if a single one is all there is before series are made.
    pub(crate) fn only_filter(&self) -> Option<&Node> {
        let mut steps = self.steps.iter().filter(|s| !matches!(s, Step::Select));
        match (steps.next(), steps.next()) {
            (Some(Step::Spansets(Spansets::Filter(n))), None) if !self.whole => Some(n),
            _ => None,
        }
    }

    /// Whether a span may play a part: all of a trace when it counts whole.
    pub(crate) fn keeps(&self, row: &dyn SpanRow) -> bool {
        if self.whole || !matches!(self.steps.first(), Some(Step::Spansets(_))) {
            return true;
        }
        let env = Row(row);
        let mut any = false;
        if let Some(first) = self.steps.first() {
            first.filters(&mut |n| any = any || n.holds(&env));
        }
        any
    }

    /// Returns texts that fields of every wanted span are equal to.
    pub(crate) fn equal(&self) -> Vec<Equal<'_>> {
        fn of<'n>(n: &'n Node, fields: &Fields, out: &mut Vec<Equal<'n>>) {
            match n {
                Node::And(a, b) => {
                    of(a, fields, out);
                    of(b, fields, out);
                }
                Node::Binary(Op::Eq, a, b) => {
                    let (Node::Read(Wanted::Stored(place)), Node::Constant(FieldValue::Str(s))) =
                        (&**a, &**b)
                    else {
                        return;
                    };
                    let known = matches!(
                        fields.stored.get(*place),
                        Some(
                            SpanField::Name
                                | SpanField::Service
                                | SpanField::Attribute(..)
                                | SpanField::AnyAttribute(_)
                                | SpanField::EventNames
                        )
                    );
                    if known {
                        out.push(Equal { fields: vec![*place], text: s, by_text: false });
                    }
                }
                _ => {}
            }
        }
        let mut out = Vec::new();
        if let Some(n) = self.only_filter() {
            of(n, &self.fields, &mut out);
        }
        out
    }
}
