//! A trace put together, and what stages of a query make of its spans.

use crate::ast::{Aggregate, Expr, Op, Relation, Scalar, SetOp, SpansetExpr, Stage};
use crate::eval::{Env, Fields, Node, Wanted, binary, spelled};
use obs_model::{FieldValue, SpanField, SpanId, SpanRow, TraceId};
use std::collections::HashMap;
use std::sync::OnceLock;

/// What a query keeps of a span.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) span_id: SpanId,
    pub(crate) parent_id: Option<SpanId>,
    pub(crate) start: i64,
    pub(crate) duration: i64,
    /// How many spans it stands for.
    pub(crate) weight: f64,
    /// The stored fields, in the order of [`Fields`].
    pub(crate) values: Box<[FieldValue<'static>]>,
}

impl Kept {
    pub(crate) fn of(row: &dyn SpanRow, fields: usize) -> Self {
        Self {
            span_id: row.span_id(),
            parent_id: row.parent_id(),
            start: row.start().nanos(),
            duration: row.duration_ns(),
            weight: row.weight(),
            values: (0..fields).map(|i| row.get(i).into_owned()).collect(),
        }
    }

    pub(crate) fn size_bytes(&self) -> usize {
        size_of::<Self>() + self.values.iter().map(FieldValue::size_bytes).sum::<usize>()
    }
}

/// The numbers of a walk through the tree: left, right, and the parent's left.
#[derive(Debug, Clone, Copy, Default)]
struct Nested {
    left: i64,
    right: i64,
    parent: i64,
}

/// A trace's spans, and how they hang together.
#[derive(Debug)]
pub(crate) struct Trace<'a> {
    pub(crate) id: TraceId,
    pub(crate) rows: &'a [Kept],
    parents: Vec<Option<usize>>,
    root: Option<usize>,
    start: i64,
    end: i64,
    name: Option<usize>,
    service: Option<usize>,
    nested: OnceLock<Vec<Nested>>,
    children: OnceLock<Vec<i64>>,
}

impl<'a> Trace<'a> {
    pub(crate) fn new(id: TraceId, rows: &'a [Kept], fields: &Fields) -> Self {
        let at: HashMap<SpanId, usize> =
            rows.iter().enumerate().map(|(i, r)| (r.span_id, i)).collect();
        let parent = |(i, r): (usize, &Kept)| {
            r.parent_id.and_then(|p| at.get(&p).copied()).filter(|p| *p != i)
        };
        let place = |f: &SpanField| fields.stored.iter().position(|x| x == f);
        let roots = rows.iter().enumerate().filter(|(_, r)| r.parent_id.is_none());
        Self {
            id,
            rows,
            parents: rows.iter().enumerate().map(parent).collect(),
            root: roots.min_by_key(|(_, r)| r.start).map(|(i, _)| i),
            start: rows.iter().map(|r| r.start).min().unwrap_or(0),
            end: rows.iter().map(|r| r.start.saturating_add(r.duration)).max().unwrap_or(0),
            name: place(&SpanField::Name),
            service: place(&SpanField::Service),
            nested: OnceLock::new(),
            children: OnceLock::new(),
        }
    }

    /// Whether a span's parent is not among the spans.
    pub(crate) fn has_gaps(&self) -> bool {
        self.rows.iter().zip(&self.parents).any(|(r, p)| r.parent_id.is_some() && p.is_none())
    }

    fn parent(&self, i: usize) -> Option<usize> {
        self.parents.get(i).copied().flatten()
    }

    fn children(&self) -> &[i64] {
        self.children.get_or_init(|| {
            let mut out = vec![0; self.rows.len()];
            for p in self.parents.iter().flatten() {
                if let Some(n) = out.get_mut(*p) {
                    *n += 1;
                }
            }
            out
        })
    }

    fn nested(&self) -> &[Nested] {
        self.nested.get_or_init(|| {
            let mut below: Vec<Vec<usize>> = vec![Vec::new(); self.rows.len()];
            let mut roots = Vec::new();
            for (i, p) in self.parents.iter().enumerate() {
                match p.and_then(|p| below.get_mut(p)) {
                    Some(list) => list.push(i),
                    None => roots.push(i),
                }
            }
            let mut out = vec![Nested::default(); self.rows.len()];
            let mut number = 0;
            // Spans of a loop hang on no root and keep zeros.
            for root in roots {
                // Orphans have no numbers either: their place is not known.
                if self.rows.get(root).is_some_and(|r| r.parent_id.is_some()) {
                    continue;
                }
                let mut stack = vec![(root, -1, false)];
                while let Some((i, parent, done)) = stack.pop() {
                    number += 1;
                    let Some(n) = out.get_mut(i) else { continue };
                    if done {
                        n.right = number;
                        continue;
                    }
                    *n = Nested { left: number, right: 0, parent };
                    let left = number;
                    stack.push((i, parent, true));
                    let list = below.get(i).into_iter().flatten();
                    stack.extend(list.rev().map(|c| (*c, left, false)));
                }
            }
            out
        })
    }
}

/// One span in its trace.
pub(crate) struct At<'t, 'a> {
    pub(crate) trace: &'t Trace<'a>,
    pub(crate) row: usize,
}

impl Env for At<'_, '_> {
    fn read(&self, w: Wanted) -> FieldValue<'_> {
        let t = self.trace;
        let Some(row) = t.rows.get(self.row) else { return FieldValue::Nil };
        let stored = |i: usize, place: usize| {
            let value = t.rows.get(i).and_then(|r| r.values.get(place));
            value.map_or(FieldValue::Nil, FieldValue::lend)
        };
        let of_root = |place: Option<usize>| match (t.root, place) {
            (Some(root), Some(place)) => stored(root, place),
            _ => FieldValue::Nil,
        };
        let nested = |f: fn(&Nested) -> i64| FieldValue::Int(t.nested().get(self.row).map_or(0, f));
        match w {
            Wanted::Stored(place) => stored(self.row, place),
            Wanted::OfParent(place) => {
                t.parent(self.row).map_or(FieldValue::Nil, |p| stored(p, place))
            }
            Wanted::Duration => FieldValue::Duration(row.duration),
            Wanted::SpanId => FieldValue::str(row.span_id.to_string()),
            Wanted::ParentId => {
                FieldValue::str(row.parent_id.map_or_else(String::new, |p| p.to_string()))
            }
            Wanted::TraceId => FieldValue::str(t.id.to_string()),
            Wanted::SpanStart => FieldValue::Int(row.start),
            Wanted::RootMark => FieldValue::Int(if row.parent_id.is_none() { -1 } else { 1 }),
            Wanted::Parent => {
                row.parent_id.map_or(FieldValue::Nil, |p| FieldValue::str(p.to_string()))
            }
            Wanted::ChildCount => FieldValue::Int(t.children().get(self.row).copied().unwrap_or(0)),
            Wanted::RootName => of_root(t.name),
            Wanted::RootService => of_root(t.service),
            Wanted::TraceDuration => FieldValue::Duration(t.end.saturating_sub(t.start)),
            Wanted::TraceStart => FieldValue::Int(t.start),
            Wanted::NestedSetLeft => nested(|n| n.left),
            Wanted::NestedSetRight => nested(|n| n.right),
            Wanted::NestedSetParent => nested(|n| n.parent),
        }
    }
}

/// Some spans of a trace, and what a stage found out about them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Spanset {
    /// Places in the trace, ascending.
    pub(crate) rows: Vec<usize>,
    pub(crate) attributes: Vec<(String, FieldValue<'static>)>,
}

#[derive(Debug)]
pub(crate) enum Spansets {
    Filter(Node),
    Binary(SetOp, Box<Self>, Box<Self>),
    Pipeline(Vec<Step>),
}

#[derive(Debug)]
pub(crate) enum Number {
    Static(FieldValue<'static>),
    Aggregate(Aggregate, Option<Node>, String),
    Binary(Op, Box<Self>, Box<Self>),
}

/// A compiled stage.
#[derive(Debug)]
pub(crate) enum Step {
    Spansets(Spansets),
    Scalar(Op, Number, Number),
    By(Node, String),
    Coalesce,
    Select,
}

/// Writes an expression as answers name it.
fn text(e: &Expr) -> String {
    match e {
        Expr::Static(FieldValue::Str(s)) => format!("`{s}`"),
        Expr::Static(FieldValue::Duration(ns)) => format!("{}s", *ns as f64 / 1e9),
        Expr::Static(v) => v.text().into_owned(),
        Expr::Field(f) => spelled(f),
        Expr::Not(a) => format!("!{}", text(a)),
        Expr::Neg(a) => format!("-{}", text(a)),
        Expr::Binary(op, a, b) => format!("{} {} {}", text(a), op.as_str(), text(b)),
    }
}

impl Number {
    fn compile(s: &Scalar, fields: &mut Fields) -> Self {
        match s {
            Scalar::Static(v) => Self::Static(v.clone()),
            Scalar::Aggregate(kind, of) => {
                let name = match kind {
                    Aggregate::Count => "count",
                    Aggregate::Min => "min",
                    Aggregate::Max => "max",
                    Aggregate::Avg => "avg",
                    Aggregate::Sum => "sum",
                };
                let inner = of.as_ref().map(text).unwrap_or_default();
                let of = of.as_ref().map(|e| Node::compile(e, fields));
                Self::Aggregate(*kind, of, format!("{name}({inner})"))
            }
            Scalar::Binary(op, a, b) => Self::Binary(
                *op,
                Box::new(Self::compile(a, fields)),
                Box::new(Self::compile(b, fields)),
            ),
            Scalar::Neg(a) => Self::Binary(
                Op::Sub,
                Box::new(Self::Static(FieldValue::Int(0))),
                Box::new(Self::compile(a, fields)),
            ),
            Scalar::Pipeline => Self::Static(FieldValue::Nil),
        }
    }

    fn nodes<'n>(&'n self, f: &mut dyn FnMut(&'n Node)) {
        match self {
            Self::Static(_) => {}
            Self::Aggregate(_, of, _) => of.iter().for_each(f),
            Self::Binary(_, a, b) => {
                a.nodes(f);
                b.nodes(f);
            }
        }
    }

    fn value(&self, trace: &Trace<'_>, set: &mut Spanset) -> FieldValue<'static> {
        match self {
            Self::Static(v) => v.clone(),
            Self::Binary(op, a, b) => {
                let (a, b) = (a.value(trace, set), b.value(trace, set));
                binary(*op, a, b).into_owned()
            }
            Self::Aggregate(kind, of, name) => {
                let value = aggregate(*kind, of.as_ref(), trace, &set.rows);
                if !set.attributes.iter().any(|(n, _)| n == name) {
                    set.attributes.push((name.clone(), value.clone()));
                }
                value
            }
        }
    }
}

fn aggregate(
    kind: Aggregate,
    of: Option<&Node>,
    trace: &Trace<'_>,
    rows: &[usize],
) -> FieldValue<'static> {
    let Some(node) = of else { return FieldValue::Int(rows.len() as i64) };
    let (mut integers, mut durations) = (true, true);
    let (mut n, mut sum, mut min, mut max) = (0.0, 0.0, f64::INFINITY, f64::NEG_INFINITY);
    for row in rows {
        let at = At { trace, row: *row };
        let value = node.value(&at);
        let Some(x) = value.as_f64() else { continue };
        integers &= matches!(value, FieldValue::Int(_));
        durations &= matches!(value, FieldValue::Duration(_));
        n += 1.0;
        sum += x;
        min = x.min(min);
        max = x.max(max);
    }
    if n == 0.0 {
        return FieldValue::Nil;
    }
    let result = match kind {
        Aggregate::Min => min,
        Aggregate::Max => max,
        Aggregate::Sum => sum,
        Aggregate::Avg => sum / n,
        Aggregate::Count => n,
    };
    if durations {
        FieldValue::Duration(result as i64)
    } else if integers && kind != Aggregate::Avg {
        FieldValue::Int(result as i64)
    } else {
        FieldValue::Float(result)
    }
}

impl Spansets {
    fn compile(e: &SpansetExpr, fields: &mut Fields) -> Self {
        match e {
            SpansetExpr::Filter(e) => Self::Filter(Node::compile(e, fields)),
            SpansetExpr::Binary(op, a, b) => Self::Binary(
                *op,
                Box::new(Self::compile(a, fields)),
                Box::new(Self::compile(b, fields)),
            ),
            SpansetExpr::Pipeline(p) => {
                Self::Pipeline(p.iter().map(|s| Step::compile(s, fields)).collect())
            }
        }
    }

    fn apply(&self, trace: &Trace<'_>, input: &Spanset) -> Vec<Spanset> {
        match self {
            Self::Filter(node) => {
                let hit = |row: &usize| node.holds(&At { trace, row: *row });
                let rows: Vec<usize> = input.rows.iter().copied().filter(hit).collect();
                if rows.is_empty() {
                    return Vec::new();
                }
                vec![Spanset { rows, attributes: input.attributes.clone() }]
            }
            Self::Pipeline(steps) => run(steps, trace, vec![input.clone()]),
            Self::Binary(op, a, b) => {
                let (left, right) = (a.apply(trace, input), b.apply(trace, input));
                let (l, r) = (union(&left), union(&right));
                let rows = match op {
                    SetOp::And if left.is_empty() || right.is_empty() => Vec::new(),
                    SetOp::And | SetOp::Or => merge(l, &r),
                    SetOp::Structural { relation, not, union } => {
                        let mut hits = related(trace, *relation, &l, &r, *not);
                        if *union {
                            let back = match relation {
                                Relation::Child => Relation::Parent,
                                Relation::Parent => Relation::Child,
                                Relation::Descendant => Relation::Ancestor,
                                Relation::Ancestor => Relation::Descendant,
                                Relation::Sibling => Relation::Sibling,
                            };
                            let others = related(trace, back, &hits, &l, *not);
                            hits = merge(hits, &others);
                        }
                        hits
                    }
                };
                if rows.is_empty() {
                    return Vec::new();
                }
                vec![Spanset { rows, attributes: input.attributes.clone() }]
            }
        }
    }
}

fn merge(mut a: Vec<usize>, b: &[usize]) -> Vec<usize> {
    a.extend_from_slice(b);
    a.sort_unstable();
    a.dedup();
    a
}

fn union(sets: &[Spanset]) -> Vec<usize> {
    merge(sets.iter().flat_map(|s| s.rows.iter().copied()).collect(), &[])
}

/// Returns those of `right` that stand in the relation to one of `left` (to none, if `not`).
fn related(
    trace: &Trace<'_>,
    relation: Relation,
    left: &[usize],
    right: &[usize],
    not: bool,
) -> Vec<usize> {
    let n = trace.rows.len();
    let mut is_left = vec![false; n];
    let mark = |list: &mut Vec<bool>, i: usize| {
        let was = list.get(i).copied().unwrap_or(true);
        if let Some(m) = list.get_mut(i) {
            *m = true;
        }
        !was
    };
    for i in left {
        mark(&mut is_left, *i);
    }
    let is = |list: &[bool], i: usize| list.get(i).copied().unwrap_or(false);
    let mut hits = vec![false; n];
    match relation {
        Relation::Child => {
            for r in right {
                if trace.parent(*r).is_some_and(|p| is(&is_left, p)) {
                    mark(&mut hits, *r);
                }
            }
        }
        Relation::Parent => {
            for p in left.iter().filter_map(|l| trace.parent(*l)) {
                mark(&mut hits, p);
            }
        }
        Relation::Ancestor => {
            for l in left {
                let mut above = trace.parent(*l);
                while let Some(p) = above.filter(|p| mark(&mut hits, *p)) {
                    above = trace.parent(p);
                }
            }
        }
        Relation::Descendant => {
            // Each span once: what its parent's walk found holds for it, too.
            let mut known: Vec<Option<bool>> = vec![None; n];
            for r in right {
                let mut path = Vec::new();
                let mut at = *r;
                let found = loop {
                    if let Some(answer) = known.get(at).copied().flatten() {
                        break answer;
                    }
                    // On the way: a loop ends here.
                    if let Some(k) = known.get_mut(at) {
                        *k = Some(false);
                    }
                    path.push(at);
                    match trace.parent(at) {
                        None => break false,
                        Some(p) if is(&is_left, p) => break true,
                        Some(p) => at = p,
                    }
                };
                for i in path {
                    if let Some(k) = known.get_mut(i) {
                        *k = Some(found);
                    }
                }
                if found {
                    mark(&mut hits, *r);
                }
            }
        }
        Relation::Sibling => {
            let parent_of = |i: usize| trace.rows.get(i).and_then(|r| r.parent_id);
            let mut by_parent: HashMap<SpanId, usize> = HashMap::new();
            for p in left.iter().filter_map(|l| parent_of(*l)) {
                *by_parent.entry(p).or_default() += 1;
            }
            for r in right {
                let others = parent_of(*r).and_then(|p| by_parent.get(&p)).copied().unwrap_or(0);
                if others > usize::from(is(&is_left, *r)) {
                    mark(&mut hits, *r);
                }
            }
        }
    }
    right.iter().copied().filter(|r| is(&hits, *r) != not).collect()
}

impl Step {
    pub(crate) fn compile(stage: &Stage, fields: &mut Fields) -> Self {
        match stage {
            Stage::Spansets(e) => Self::Spansets(Spansets::compile(e, fields)),
            Stage::Scalar(op, a, b) => {
                Self::Scalar(*op, Number::compile(a, fields), Number::compile(b, fields))
            }
            Stage::By(e) => Self::By(Node::compile(e, fields), format!("by({})", text(e))),
            Stage::Coalesce => Self::Coalesce,
            Stage::Select(_) => Self::Select,
        }
    }

    /// Calls `f` with every expression, and `structural` when spans' places in the tree matter.
    pub(crate) fn nodes<'n>(&'n self, f: &mut dyn FnMut(&'n Node), structural: &mut dyn FnMut()) {
        fn of<'n>(s: &'n Spansets, f: &mut dyn FnMut(&'n Node), structural: &mut dyn FnMut()) {
            match s {
                Spansets::Filter(n) => f(n),
                Spansets::Binary(op, a, b) => {
                    if matches!(op, SetOp::Structural { .. }) {
                        structural();
                    }
                    of(a, f, structural);
                    of(b, f, structural);
                }
                Spansets::Pipeline(steps) => {
                    for s in steps {
                        s.nodes(f, structural);
                    }
                }
            }
        }
        match self {
            Self::Spansets(s) => of(s, f, structural),
            Self::Scalar(_, a, b) => {
                a.nodes(f);
                b.nodes(f);
            }
            Self::By(n, _) => f(n),
            Self::Coalesce | Self::Select => {}
        }
    }

    /// Calls `f` with the filters that choose spans.
    pub(crate) fn filters<'n>(&'n self, f: &mut dyn FnMut(&'n Node)) {
        fn of<'n>(s: &'n Spansets, f: &mut dyn FnMut(&'n Node)) {
            match s {
                Spansets::Filter(n) => f(n),
                Spansets::Binary(_, a, b) => {
                    of(a, f);
                    of(b, f);
                }
                Spansets::Pipeline(steps) => {
                    for s in steps {
                        s.filters(f);
                    }
                }
            }
        }
        if let Self::Spansets(s) = self {
            of(s, f);
        }
    }
}

/// Runs stages over sets of a trace's spans; sets that become empty are gone.
pub(crate) fn run(steps: &[Step], trace: &Trace<'_>, mut sets: Vec<Spanset>) -> Vec<Spanset> {
    for step in steps {
        sets = match step {
            Step::Spansets(s) => sets.iter().flat_map(|set| s.apply(trace, set)).collect(),
            Step::Scalar(op, a, b) => sets
                .into_iter()
                .filter_map(|mut set| {
                    let (x, y) = (a.value(trace, &mut set), b.value(trace, &mut set));
                    (binary(*op, x, y) == FieldValue::Bool(true)).then_some(set)
                })
                .collect(),
            Step::By(node, name) => sets.iter().flat_map(|s| by(node, name, trace, s)).collect(),
            Step::Coalesce => {
                let rows = union(&sets);
                if rows.is_empty() {
                    Vec::new()
                } else {
                    vec![Spanset { rows, attributes: Vec::new() }]
                }
            }
            Step::Select => sets,
        };
        if sets.is_empty() {
            break;
        }
    }
    sets
}

fn by(node: &Node, name: &str, trace: &Trace<'_>, set: &Spanset) -> Vec<Spanset> {
    let mut out: Vec<(FieldValue<'static>, Spanset)> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for row in &set.rows {
        let at = At { trace, row: *row };
        let value = node.value(&at).into_owned();
        let key = format!("{value:?}");
        let place = *places.entry(key).or_insert_with(|| {
            let mut attributes = set.attributes.clone();
            attributes.push((name.to_owned(), value.clone()));
            out.push((value, Spanset { rows: Vec::new(), attributes }));
            out.len() - 1
        });
        if let Some((_, set)) = out.get_mut(place) {
            set.rows.push(*row);
        }
    }
    out.into_iter().map(|(_, set)| set).collect()
}
