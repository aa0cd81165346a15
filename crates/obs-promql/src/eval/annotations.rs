//! Warnings, infos and counts that a query returns beside its result.

use crate::ast::Pos;
use crate::eval::{QueryOptions, Steps};
use obs_model::{CUSTOM_BUCKETS_SCHEMA, Histogram, ResetHint};

/// What is said of a counter's name, before the name itself.
const ODD_NAME: &str =
    "metric might not be a counter, name does not end in _total/_sum/_count/_bucket";

/// What is said when histograms of different custom buckets meet.
pub(crate) fn reconciled(operation: &str) -> String {
    format!("mismatched custom buckets were reconciled during {operation}")
}

/// Returns whether two histograms have custom buckets with different bounds.
pub(crate) fn is_mismatch(a: &Histogram, b: &Histogram) -> bool {
    a.schema == CUSTOM_BUCKETS_SCHEMA
        && b.schema == CUSTOM_BUCKETS_SCHEMA
        && a.custom_bounds != b.custom_bounds
}

/// Says what is odd about histograms that are added up: bounds that differ, and hints that both
/// tell of a reset and of none.
pub(crate) fn of_sum<'h>(
    list: impl Iterator<Item = &'h Histogram>,
    pos: Pos,
    annotations: &mut Annotations,
) {
    let (mut first, mut reset, mut none): (Option<&Histogram>, bool, bool) = (None, false, false);
    for h in list {
        reset |= h.reset_hint == ResetHint::Reset;
        none |= h.reset_hint == ResetHint::NoReset;
        match first {
            None => first = Some(h),
            Some(f) if is_mismatch(f, h) => annotations.info(reconciled("aggregation"), pos),
            Some(_) => {}
        }
    }
    if reset && none {
        annotations.warn("conflicting counter resets during histogram aggregation", pos);
    }
}

/// Texts in the order in which they arose, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotations {
    pub warnings: Vec<(String, Pos)>,
    pub infos: Vec<(String, Pos)>,
    /// Samples that each step looked at, as Prometheus counts them: one in the windows of two steps
    /// counts for both, a native histogram for about as many as it has 16 bytes. Empty unless wanted.
    pub samples: Vec<u64>,
}

impl Annotations {
    /// Returns those of a query that begins.
    pub(crate) fn of(steps: Steps, options: QueryOptions) -> Self {
        let samples = if options.count_samples { vec![0; steps.count] } else { Vec::new() };
        Self { samples, ..Self::default() }
    }

    pub(crate) fn warn(&mut self, text: impl Into<String>, pos: Pos) {
        let item = (format!("PromQL warning: {}", text.into()), pos);
        if !self.warnings.contains(&item) {
            self.warnings.push(item);
        }
    }

    pub(crate) fn info(&mut self, text: impl Into<String>, pos: Pos) {
        let item = (format!("PromQL info: {}", text.into()), pos);
        if !self.infos.contains(&item) {
            self.infos.push(item);
        }
    }

    /// Says that a name is not one of a counter.
    pub(crate) fn odd_name(&mut self, name: &str, pos: Pos) {
        self.info(format!("{ODD_NAME}: {name:?}"), pos);
    }

    /// Returns whether nothing is said but what names of metrics tell, whatever their samples are.
    pub(crate) fn is_of_names(&self) -> bool {
        let of_name = |(text, _): &(String, Pos)| text.contains(ODD_NAME);
        self.warnings.is_empty() && self.infos.iter().all(of_name)
    }

    /// Takes over what others say of the same query. One odd name at a place is enough.
    pub(crate) fn extend(&mut self, others: Self) {
        for (own, more) in [(&mut self.warnings, others.warnings), (&mut self.infos, others.infos)]
        {
            for (text, pos) in more {
                let is_odd = text.contains(ODD_NAME);
                let says = |(t, p): &(String, Pos)| {
                    *p == pos && (*t == text || is_odd && t.contains(ODD_NAME))
                };
                if !own.iter().any(says) {
                    own.push((text, pos));
                }
            }
        }
    }

    /// Returns warnings and infos with line and column of the query, as Prometheus prints them.
    pub fn print(&self, query: &str) -> (Vec<String>, Vec<String>) {
        let one = |(text, pos): &(String, Pos)| {
            let before = query.get(..pos.start).unwrap_or(query);
            let line = before.matches('\n').count() + 1;
            let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
            format!("{text} ({line}:{column})")
        };
        (self.warnings.iter().map(one).collect(), self.infos.iter().map(one).collect())
    }
}
