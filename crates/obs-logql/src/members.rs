//! What a metric query looks at of a JSON line, as far as it can be told beforehand: a store that
//! keeps members as columns need not build the rest, and decides by itself about numbers.

use crate::ast::{
    CompareOp, Conversion, Groups, LabelFilter, Quantity, RangeAggregation, Stage, Unwrap,
};
use crate::labels::may_become;
use obs_model::{Labels, LineRun};

/// What is looked at.
#[derive(Debug)]
pub(crate) struct Read<'a> {
    /// Whether lines are only read as JSON objects, or for what one member may hold.
    pub(crate) is_by_member: bool,
    /// What line filters look for.
    pub(crate) runs: Vec<LineRun>,
    wanted: &'a [String],
    pub(crate) number: Option<Number<'a>>,
}

/// A label of which only the number counts.
#[derive(Debug)]
pub(crate) struct Number<'a> {
    pub(crate) name: &'a str,
    /// What it must be, where it is compared.
    test: Option<(CompareOp, f64)>,
}

impl Number<'_> {
    pub(crate) fn holds(&self, v: f64) -> bool {
        self.test.is_none_or(|(op, want)| op.holds(v, want))
    }

    /// Whether a stream leaves the name to what is parsed.
    pub(crate) fn is_of(&self, stream: &Labels) -> bool {
        stream.get(self.name).is_empty()
    }
}

/// Returns the comparison of a filter that all records pass through, and whether there are others
/// beside it, or filters by address, whose faults may let records pass.
fn compared<'a>(
    f: &'a LabelFilter,
    is_sure: bool,
    out: &mut Vec<Option<(CompareOp, &'a str, f64)>>,
) {
    match f {
        LabelFilter::Matches(_) => {}
        LabelFilter::And(a, b) => {
            compared(a, is_sure, out);
            compared(b, is_sure, out);
        }
        LabelFilter::Or(a, b) => {
            compared(a, false, out);
            compared(b, false, out);
        }
        LabelFilter::Compare { name, op, value: Quantity::Number(v), .. } if is_sure => {
            out.push(Some((*op, name, *v)));
        }
        LabelFilter::Compare { .. } | LabelFilter::Ip { .. } => out.push(None),
    }
}

/// Adds the names that are looked at as texts.
fn matched<'a>(f: &'a LabelFilter, out: &mut Vec<&'a str>) {
    match f {
        LabelFilter::Matches(m) => out.push(&m.name),
        LabelFilter::And(a, b) | LabelFilter::Or(a, b) => {
            matched(a, out);
            matched(b, out);
        }
        LabelFilter::Compare { .. } | LabelFilter::Ip { .. } => {}
    }
}

impl<'a> Read<'a> {
    pub(crate) fn new(
        r: &'a RangeAggregation,
        groups: Option<&'a Groups>,
        wanted: Option<&'a [String]>,
    ) -> Self {
        let stages = &r.expr.stages;
        let mut runs = Vec::new();
        let mut is_plain = |s: &Stage| match s {
            Stage::Label(_) => true,
            Stage::Json(fields) => fields.is_empty(),
            Stage::Line(f) => f.runs().map(|r| runs.extend(r)).is_some(),
            _ => false,
        };
        let all_plain = stages.iter().all(&mut is_plain);
        let is_by_member = all_plain
            && match stages.iter().filter(|s| matches!(s, Stage::Json(_))).count() {
                0 => !runs.is_empty(),
                1 => wanted.is_some(),
                _ => false,
            };
        // A filter may look at the number too.
        let number = (is_by_member && runs.is_empty()).then(|| number(r, groups)).flatten();
        Self { is_by_member, runs, wanted: wanted.unwrap_or_default(), number }
    }

    pub(crate) fn wants(&self, key: &str, has_inside: bool) -> bool {
        may_become(self.wanted, key, has_inside)
    }
}

/// Finds the one label of which only the number counts.
fn number<'a>(r: &'a RangeAggregation, groups: Option<&'a Groups>) -> Option<Number<'a>> {
    let (mut compares, mut texts) = (Vec::new(), Vec::new());
    let mut has_parsed = false;
    for s in &r.expr.stages {
        match s {
            Stage::Json(_) => has_parsed = true,
            Stage::Label(f) => {
                // Before the parser there is no member to compare.
                compared(f, has_parsed, &mut compares);
                matched(f, &mut texts);
            }
            _ => {}
        }
    }
    texts.extend(groups.iter().flat_map(|g| &g.labels).map(String::as_str));
    let test = match compares.as_slice() {
        [] => None,
        [Some(one)] => Some(*one),
        _ => return None,
    };
    let name = match &r.unwrap {
        None => test?.1,
        Some(Unwrap { label, conversion: Conversion::Number, filters }) if filters.is_empty() => {
            label
        }
        Some(_) => return None,
    };
    // A test of another label is left to the stages.
    let test = match test {
        Some((op, n, v)) if n == name => Some((op, v)),
        Some(_) => return None,
        None => None,
    };
    (!texts.contains(&name)).then_some(Number { name, test })
}
