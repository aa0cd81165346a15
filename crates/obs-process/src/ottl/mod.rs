//! Statements and conditions in the collector's transformation language, as far as
//! `docs/collector.md` names it.

mod edit;
mod eval;
mod lexer;
mod parser;

pub(crate) use eval::{Scratch, from_json, groups};
pub(crate) use parser::{condition, enumerated, statement};

use crate::context::{Field, Of};
use obs_model::AttributeValue;
use regex::Regex;

/// What follows a path or a call in brackets.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Key {
    Name(String),
    Index(usize),
}

/// What a path leads to before its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Attributes(Of),
    Field(Of, Field),
    /// What the statements of one record keep for each other.
    Cache,
}

/// Somewhere in a record.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) target: Target,
    pub(crate) keys: Vec<Key>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    Add,
    Sub,
    Mul,
    Div,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

#[derive(Debug, Clone)]
pub(crate) enum Expr {
    Literal(AttributeValue),
    Place(Place),
    List(Vec<Self>),
    Map(Vec<(String, Self)>),
    Math(Box<Self>, Arithmetic, Box<Self>),
    Call { function: Function, args: Vec<Self>, regex: Option<Regex>, keys: Vec<Key> },
}

/// Functions that return a value. Their names are in [`FUNCTIONS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Function {
    Base64Decode,
    Bool,
    Concat,
    ContainsValue,
    ConvertCase,
    Double,
    Duration,
    ExtractPatterns,
    Fnv,
    HasPrefix,
    HasSuffix,
    Hex,
    Index,
    Int,
    IsBool,
    IsDouble,
    IsInt,
    IsList,
    IsMap,
    IsMatch,
    IsRootSpan,
    IsString,
    Keys,
    Len,
    Log,
    Lower,
    ParseJson,
    ParseKeyValue,
    Sha1,
    Sha256,
    SpanId,
    Split,
    String,
    Substring,
    TraceId,
    Trim,
    TrimPrefix,
    TrimSuffix,
    Upper,
    Values,
}

/// Name, function, and how many arguments it takes at least and at most.
pub(crate) const FUNCTIONS: &[(&str, Function, usize, usize)] = &[
    ("Base64Decode", Function::Base64Decode, 1, 1),
    ("Bool", Function::Bool, 1, 1),
    ("Concat", Function::Concat, 2, 2),
    ("ContainsValue", Function::ContainsValue, 2, 2),
    ("ConvertCase", Function::ConvertCase, 2, 2),
    ("Double", Function::Double, 1, 1),
    ("Duration", Function::Duration, 1, 1),
    ("ExtractPatterns", Function::ExtractPatterns, 2, 2),
    ("FNV", Function::Fnv, 1, 1),
    ("HasPrefix", Function::HasPrefix, 2, 2),
    ("HasSuffix", Function::HasSuffix, 2, 2),
    ("Hex", Function::Hex, 1, 1),
    ("Index", Function::Index, 2, 2),
    ("Int", Function::Int, 1, 1),
    ("IsBool", Function::IsBool, 1, 1),
    ("IsDouble", Function::IsDouble, 1, 1),
    ("IsInt", Function::IsInt, 1, 1),
    ("IsList", Function::IsList, 1, 1),
    ("IsMap", Function::IsMap, 1, 1),
    ("IsMatch", Function::IsMatch, 2, 2),
    ("IsRootSpan", Function::IsRootSpan, 0, 0),
    ("IsString", Function::IsString, 1, 1),
    ("Keys", Function::Keys, 1, 1),
    ("Len", Function::Len, 1, 1),
    ("Log", Function::Log, 1, 1),
    ("ParseJSON", Function::ParseJson, 1, 1),
    ("ParseKeyValue", Function::ParseKeyValue, 1, 3),
    ("SHA1", Function::Sha1, 1, 1),
    ("SHA256", Function::Sha256, 1, 1),
    ("SpanID", Function::SpanId, 1, 1),
    ("Split", Function::Split, 2, 2),
    ("String", Function::String, 1, 1),
    ("Substring", Function::Substring, 3, 3),
    ("ToLowerCase", Function::Lower, 1, 1),
    ("ToUpperCase", Function::Upper, 1, 1),
    ("TraceID", Function::TraceId, 1, 1),
    ("Trim", Function::Trim, 1, 2),
    ("TrimPrefix", Function::TrimPrefix, 2, 2),
    ("TrimSuffix", Function::TrimSuffix, 2, 2),
    ("Values", Function::Values, 1, 1),
];

#[derive(Debug, Clone)]
pub(crate) enum Cond {
    Or(Vec<Self>),
    And(Vec<Self>),
    Not(Box<Self>),
    Compare(Expr, Comparison, Expr),
    /// A function that says whether something holds, or `true`.
    Is(Expr),
}

/// What a statement does.
#[derive(Debug, Clone)]
pub(crate) enum Editor {
    Append(Place, Expr),
    DeleteKeys(Place, Vec<Expr>),
    DeleteMatching(Place, Regex),
    Flatten(Place, Option<String>),
    KeepKeys(Place, Vec<Expr>),
    KeepMatching(Place, Regex),
    Limit(Place, usize, Vec<String>),
    Merge(Place, Expr, Strategy),
    /// A value that matches as a whole is replaced.
    ReplaceMatch(Place, Regex, Expr),
    ReplaceAllMatches(Place, Regex, Expr),
    ReplacePattern(Place, Regex, Expr),
    /// Of keys when `true`, otherwise of values.
    ReplaceAllPatterns(Place, bool, Regex, Expr),
    Set(Place, Expr),
    Truncate(Place, usize),
}

/// What a merge does with keys that both have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strategy {
    Insert,
    Update,
    Upsert,
}

#[derive(Debug, Clone)]
pub(crate) struct Statement {
    pub(crate) editor: Editor,
    pub(crate) condition: Option<Cond>,
}
