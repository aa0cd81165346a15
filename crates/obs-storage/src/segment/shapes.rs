//! The members of a block's templates, as scans ask for them: keys by number, members by place.

use crate::segment::lines::Template;
use crate::segment::members::{Member, members};
use foldhash::HashMap;

/// The key of a member in any template of a block.
#[derive(Debug)]
pub(crate) struct Key {
    /// As it stands, still escaped.
    pub(crate) text: String,
    /// Whether it has letters, digits and low lines alone.
    pub(crate) is_plain: bool,
}

/// The members of a block's templates.
#[derive(Debug, Default)]
pub(crate) struct Shapes {
    pub(crate) keys: Vec<Key>,
    /// By template, if it is an object without faults: see [`members`].
    of: Vec<Option<Shape>>,
    /// By template, how many rows have it.
    pub(crate) rows: Vec<u32>,
}

/// The column of a variable, and how many values of it stand before in the row.
type Value = (usize, usize);

/// The members of a template.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) members: Vec<Member>,
    /// Of each member what a scan asks first, apart from the rest as all of it is read.
    pub(crate) heads: Vec<MemberHead>,
    /// Whether letters or digits stand in members alone, and nothing behind a value could be taken
    /// for a part of it.
    pub(crate) is_all: bool,
}

#[derive(Debug)]
pub(crate) struct MemberHead {
    /// The number of the key.
    pub(crate) key: u32,
    /// As [`Member::has_inside`].
    pub(crate) has_inside: bool,
    /// Members of a block with the same number have the same text, and the same values in it.
    pub(crate) alike: u32,
}

impl Shape {
    fn new(t: &Template, members: Vec<Member>, heads: Vec<MemberHead>) -> Self {
        let from = |at: usize| t.all.get(at..).unwrap_or_default();
        let spaced = |m: &Member| {
            m.is_literal && from(m.all.end).first().is_some_and(u8::is_ascii_whitespace)
        };
        let end = members.last().map_or(1, |m| m.all.end);
        let is_all = from(end).trim_ascii() == b"}" && !members.iter().any(spaced);
        Self { members, heads, is_all }
    }

    /// Returns the columns of values outside of quotes.
    pub(crate) fn literals(&self, t: &Template) -> impl Iterator<Item = usize> {
        let literal = self.members.iter().filter(|m| m.is_literal);
        literal.map(|m| t.columns.get(m.holes.start).copied().unwrap_or(usize::MAX))
    }
}

impl Shapes {
    /// Reads templates, and their numbers of the rows.
    pub(crate) fn new(templates: &[Template], ids: &[u32]) -> Self {
        let mut out = Self { rows: vec![0; templates.len()], ..Self::default() };
        for id in ids {
            if let Some(rows) = out.rows.get_mut(*id as usize) {
                *rows += 1;
            }
        }
        let mut known: HashMap<&str, usize> = HashMap::default();
        let mut alike: HashMap<(&[u8], Vec<Value>), u32> = HashMap::default();
        for t in templates {
            let mut head = |member: &Member| {
                let text = std::str::from_utf8(t.all.get(member.key.clone())?).ok()?;
                let key = *known.entry(text).or_insert_with(|| {
                    let is_plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
                    out.keys.push(Key { text: text.to_owned(), is_plain });
                    out.keys.len() - 1
                });
                let key = u32::try_from(key).ok()?;
                let value = |hole: usize| -> Option<Value> {
                    let (before, rest) = t.columns.split_at_checked(hole)?;
                    let column = *rest.first()?;
                    Some((column, before.iter().filter(|c| **c == column).count()))
                };
                let values = member.holes.clone().map(value).collect::<Option<_>>()?;
                let next = u32::try_from(alike.len()).ok()?;
                let text = t.all.get(member.all.clone())?;
                let alike = *alike.entry((text, values)).or_insert(next);
                Some(MemberHead { key, has_inside: member.has_inside, alike })
            };
            let shape = members(&t.all).and_then(|all| {
                let heads = all.iter().map(&mut head).collect::<Option<_>>()?;
                Some(Shape::new(t, all, heads))
            });
            out.of.push(shape);
        }
        out
    }

    pub(crate) fn of(&self, template: usize) -> Option<&Shape> {
        self.of.get(template)?.as_ref()
    }
}
