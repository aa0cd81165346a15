//! The syntax tree.

use crate::ip::IpFilter;
use crate::parse::{JsonPath, Pattern};
use crate::template::LineTemplate;
use obs_model::{LineRun, Matcher};
use regex::Regex;
use regex_syntax::hir::{Class, Hir, HirKind};

/// A parsed query.
#[derive(Debug, Clone)]
pub enum Query {
    Log(LogExpr),
    Metric(MetricExpr),
}

/// A stream selector and its pipeline.
#[derive(Debug, Clone, Default)]
pub struct LogExpr {
    pub matchers: Vec<Matcher>,
    pub stages: Vec<Stage>,
}

impl LogExpr {
    /// Returns whether a stage names an id that records carry beside their labels.
    pub(crate) fn names_ids(&self) -> bool {
        self.stages.iter().any(|s| {
            let text = crate::printer::stage(s);
            text.contains("trace_id") || text.contains("span_id")
        })
    }

    /// Returns texts that every line of the result contains: what line filters say before any
    /// stage that changes the line.
    pub fn needles(&self) -> Vec<String> {
        let before_change = self.stages.iter().take_while(|s| !s.changes_line());
        let filters = before_change.filter_map(|s| match s {
            Stage::Line(f) if !f.negated => Some(f),
            _ => None,
        });
        filters
            .filter_map(|f| match f.any.as_slice() {
                [LineMatch::Contains(text)] if !text.is_empty() => Some(text.clone()),
                [LineMatch::Regex(compiled, _)] => {
                    required_text(&regex_syntax::parse(compiled.as_str()).ok()?)
                }
                _ => None,
            })
            .collect()
    }
}

/// Returns the longest text that every match of a regular expression contains, if there is one
/// worth looking for.
fn required_text(regex: &Hir) -> Option<String> {
    const WORTH: usize = 3;
    fn longest(h: &Hir) -> Option<&[u8]> {
        match h.kind() {
            HirKind::Literal(l) => Some(&l.0),
            HirKind::Capture(c) => longest(&c.sub),
            HirKind::Repetition(r) if r.min > 0 => longest(&r.sub),
            HirKind::Concat(parts) => parts.iter().filter_map(longest).max_by_key(|l| l.len()),
            _ => None,
        }
    }
    let text = std::str::from_utf8(longest(regex)?).ok()?;
    (text.len() >= WORTH).then(|| text.to_owned())
}

/// Returns a run of letters and digits that every match of a filter's part contains, if no match
/// contains what parts the members of an object, or depends on what is around it.
fn run_of(m: &LineMatch) -> Option<String> {
    fn is_inside(h: &Hir) -> bool {
        let parts = |c: char| LineRun::PARTING.contains(&c);
        match h.kind() {
            HirKind::Empty => true,
            HirKind::Literal(l) => std::str::from_utf8(&l.0).is_ok_and(|t| !t.contains(parts)),
            HirKind::Class(Class::Unicode(c)) => {
                let holds = |p: &char| c.ranges().iter().any(|r| (r.start()..=r.end()).contains(p));
                !LineRun::PARTING.iter().any(holds)
            }
            HirKind::Class(Class::Bytes(_)) | HirKind::Look(_) => false,
            HirKind::Repetition(r) => is_inside(&r.sub),
            HirKind::Capture(c) => is_inside(&c.sub),
            HirKind::Concat(all) | HirKind::Alternation(all) => all.iter().all(is_inside),
        }
    }
    const WORTH: usize = 3;
    let text = match m {
        LineMatch::Contains(text) if !text.contains(LineRun::PARTING) => text.clone(),
        LineMatch::Regex(compiled, _) => {
            let hir = regex_syntax::parse(compiled.as_str()).ok()?;
            if !is_inside(&hir) {
                return None;
            }
            required_text(&hir)?
        }
        _ => return None,
    };
    let runs = text.split(|c: char| !c.is_ascii_alphanumeric());
    let longest = runs.max_by_key(|r| r.len())?;
    (longest.len() >= WORTH).then(|| longest.to_owned())
}

/// Returns whether a regular expression matches a text whichever digits stand where it has digits.
fn is_blind_to_digits(h: &Hir) -> bool {
    match h.kind() {
        // All digits are parts of words.
        HirKind::Empty | HirKind::Look(_) => true,
        HirKind::Literal(l) => !l.0.iter().any(u8::is_ascii_digit),
        HirKind::Class(Class::Unicode(c)) => {
            let of = |d: char| c.ranges().iter().any(|r| (r.start()..=r.end()).contains(&d));
            ('0'..='9').all(|d| of(d) == of('0'))
        }
        HirKind::Class(Class::Bytes(c)) => {
            let of = |d: u8| c.ranges().iter().any(|r| (r.start()..=r.end()).contains(&d));
            (b'0'..=b'9').all(|d| of(d) == of(b'0'))
        }
        HirKind::Repetition(r) => is_blind_to_digits(&r.sub),
        HirKind::Capture(c) => is_blind_to_digits(&c.sub),
        HirKind::Concat(all) | HirKind::Alternation(all) => all.iter().all(is_blind_to_digits),
    }
}

impl LineFilter {
    /// Returns whether it passes the same lines whichever digits stand where they have digits.
    pub(crate) fn is_blind_to_digits(&self) -> bool {
        self.any.iter().all(|m| match m {
            LineMatch::Contains(text) => !text.bytes().any(|b| b.is_ascii_digit()),
            LineMatch::Regex(r, _) => {
                regex_syntax::parse(r.as_str()).is_ok_and(|h| is_blind_to_digits(&h))
            }
            LineMatch::Pattern(_) | LineMatch::Ip(_) => false,
        })
    }

    /// Returns a run for each part of the filter: only lines with one of them in a member can pass,
    /// or be refused, for what they hold. `None` when more of a line counts.
    pub fn runs(&self) -> Option<Vec<LineRun>> {
        let is_needed = !self.negated && self.any.len() == 1;
        let one = |m| run_of(m).map(|text| LineRun { text, is_needed });
        self.any.iter().map(one).collect()
    }
}

#[derive(Debug, Clone)]
pub enum Stage {
    Line(LineFilter),
    /// Without expressions, every field becomes a label.
    Json(Vec<(String, JsonPath)>),
    Logfmt {
        strict: bool,
        keep_empty: bool,
        /// (label, key); without any, every key becomes a label.
        fields: Vec<(String, String)>,
    },
    Regexp(Regex),
    Pattern(Pattern),
    Unpack,
    Label(LabelFilter),
    LineFormat(LineTemplate),
    LabelFormat(Vec<LabelFormat>),
    Decolorize,
    Drop(Vec<LabelChoice>),
    Keep(Vec<LabelChoice>),
    Distinct(Vec<String>),
}

impl Stage {
    fn changes_line(&self) -> bool {
        matches!(self, Self::LineFormat(_) | Self::Unpack | Self::Decolorize)
    }
}

/// A line filter; the line must (not) match any of the alternatives.
#[derive(Debug, Clone)]
pub struct LineFilter {
    pub negated: bool,
    pub any: Vec<LineMatch>,
}

#[derive(Debug, Clone)]
pub enum LineMatch {
    Contains(String),
    Regex(Regex, String),
    Pattern(Pattern),
    Ip(IpFilter),
}

#[derive(Debug, Clone)]
pub enum LabelFilter {
    Matches(Matcher),
    Compare {
        name: String,
        op: CompareOp,
        value: Quantity,
        /// The quantity as written.
        text: String,
    },
    Ip {
        name: String,
        negated: bool,
        ip: IpFilter,
    },
    And(Box<Self>, Box<Self>),
    Or(Box<Self>, Box<Self>),
}

impl LabelFilter {
    /// Adds the names of the labels that are looked at.
    pub(crate) fn names<'a>(&'a self, out: &mut Vec<&'a str>) {
        match self {
            Self::Matches(m) => out.push(&m.name),
            Self::Compare { name, .. } | Self::Ip { name, .. } => out.push(name),
            Self::And(a, b) | Self::Or(a, b) => {
                a.names(out);
                b.names(out);
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompareOp {
    Equal,
    NotEqual,
    Greater,
    GreaterEqual,
    Less,
    LessEqual,
}

impl CompareOp {
    pub(crate) fn holds(self, left: f64, right: f64) -> bool {
        match self {
            Self::Equal => left == right,
            Self::NotEqual => left != right,
            Self::Greater => left > right,
            Self::GreaterEqual => left >= right,
            Self::Less => left < right,
            Self::LessEqual => left <= right,
        }
    }

    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Equal => "==",
            Self::NotEqual => "!=",
            Self::Greater => ">",
            Self::GreaterEqual => ">=",
            Self::Less => "<",
            Self::LessEqual => "<=",
        }
    }
}

/// The right side of a numeric label filter: how the label's text is read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Quantity {
    Number(f64),
    /// Nanoseconds.
    Duration(f64),
    Bytes(f64),
}

/// One part of `label_format`.
#[derive(Debug, Clone)]
pub enum LabelFormat {
    Rename { to: String, from: String },
    Template { to: String, template: LineTemplate },
}

impl LabelFormat {
    pub(crate) fn target(&self) -> &str {
        match self {
            Self::Rename { to, .. } | Self::Template { to, .. } => to,
        }
    }
}

/// A label of `drop` or `keep`, perhaps only when its value matches.
#[derive(Debug, Clone)]
pub enum LabelChoice {
    Name(String),
    Matching(Matcher),
}

impl LabelChoice {
    pub(crate) fn holds(&self, name: &str, value: &str) -> bool {
        match self {
            Self::Name(n) => n == name,
            Self::Matching(m) => m.name == name && m.matches(value),
        }
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Name(n) => n,
            Self::Matching(m) => &m.name,
        }
    }
}

/// A label whose value is the sample.
#[derive(Debug, Clone)]
pub struct Unwrap {
    pub label: String,
    pub conversion: Conversion,
    /// Filters behind the unwrap; they see its errors.
    pub filters: Vec<LabelFilter>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conversion {
    Number,
    /// Seconds of a Go duration; the flag says that it was written `duration_seconds`.
    Duration(bool),
    Bytes,
}

macro_rules! range_ops {
    ($($variant:ident $name:literal;)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum RangeOp { $($variant),* }

        impl RangeOp {
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            pub(crate) fn find(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

range_ops! {
    Rate "rate"; RateCounter "rate_counter"; Count "count_over_time"; BytesRate "bytes_rate";
    Bytes "bytes_over_time"; Avg "avg_over_time"; Sum "sum_over_time"; Min "min_over_time";
    Max "max_over_time"; Stdvar "stdvar_over_time"; Stddev "stddev_over_time";
    Quantile "quantile_over_time"; First "first_over_time"; Last "last_over_time";
    Absent "absent_over_time";
}

impl RangeOp {
    pub(crate) fn takes_grouping(self) -> bool {
        matches!(
            self,
            Self::Avg
                | Self::Stddev
                | Self::Stdvar
                | Self::Quantile
                | Self::Max
                | Self::Min
                | Self::First
                | Self::Last
        )
    }

    pub(crate) fn takes_unwrap(self) -> bool {
        !matches!(self, Self::Count | Self::Bytes | Self::BytesRate)
    }

    pub(crate) fn takes_lines(self) -> bool {
        matches!(self, Self::Count | Self::Bytes | Self::BytesRate | Self::Rate | Self::Absent)
    }
}

/// Which labels a result keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    pub without: bool,
    pub labels: Vec<String>,
}

/// An aggregation over log ranges; its result at each step is a series of the metric expression.
#[derive(Debug, Clone)]
pub struct RangeAggregation {
    pub op: RangeOp,
    /// The quantile.
    pub param: Option<f64>,
    pub expr: LogExpr,
    pub unwrap: Option<Unwrap>,
    pub range_ms: i64,
    pub offset_ms: i64,
    pub groups: Option<Groups>,
    /// The grouping of the sum around it: fewer series to hold, and fields that nothing asks for
    /// are not parsed (nor fail).
    pub pushed: Option<Groups>,
}

/// PromQL expressions whose selectors name entries of `ranges`.
#[derive(Debug, Clone)]
pub struct MetricExpr {
    /// The expression, or all of a `variants` query.
    pub exprs: Vec<obs_promql::ast::Expr>,
    pub ranges: Vec<RangeAggregation>,
    /// What the expressions of `variants (…) of (…)` are of.
    pub of: Option<LogRange>,
}

/// The lines that all variants of a query read, before their own pipelines.
#[derive(Debug, Clone)]
pub struct LogRange {
    pub expr: LogExpr,
    pub range_ms: i64,
    pub offset_ms: i64,
}

impl RangeAggregation {
    /// Returns this aggregation over those lines alone that `of` lets through.
    pub(crate) fn within(&self, of: &LogRange) -> Self {
        let mut out = self.clone();
        out.expr = of.expr.clone();
        for m in &self.expr.matchers {
            if !out.expr.matchers.contains(m) {
                out.expr.matchers.push(m.clone());
            }
        }
        out.expr.stages.extend(self.expr.stages.iter().cloned());
        out
    }
}

/// Returns the range aggregation that a selector of a [`MetricExpr`] stands for.
pub(crate) fn range_index(matchers: &[Matcher]) -> Option<usize> {
    matchers.first()?.value.strip_prefix("range_")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_at_digits_is_known() {
        for (regex, want) in [
            ("retry in [0-9]+ ms", true),
            (r"took \d{2,}\b", true),
            (r"\w+ [^a-z]x", true),
            ("(a|.)*$", true),
            ("took 1", false),
            ("took [1-9]", false),
            ("[^7]", false),
            ("(a|b[0-8])+", false),
        ] {
            let regex = obs_model::go_regex(regex).unwrap();
            let any = vec![LineMatch::Regex(regex.clone(), regex.as_str().to_owned())];
            assert_eq!(LineFilter { negated: false, any }.is_blind_to_digits(), want, "{regex}");
        }
    }

    #[test]
    fn what_a_regex_requires_is_looked_for() {
        for (regex, want) in [
            ("retry in [0-9]+ ms", Some("retry in ")),
            ("(timeout)+|x", None),
            ("(?:a(timeout)+)b", Some("timeout")),
            ("(?i)timeout", None),
            ("ab", None),
            ("err(or)?", Some("err")),
            ("^start.*finish$", Some("finish")),
        ] {
            let hir = regex_syntax::parse(regex).unwrap();
            assert_eq!(required_text(&hir).as_deref(), want, "{regex}");
        }
    }
}
