//! Log lines as templates and columns of what varies.
//!
//! A line is split into fixed text and variables: values of JSON members, and elsewhere words
//! that contain a digit. Lines of one template differ in their variables alone; a variable's
//! column is chosen by the text before it, so that one JSON member is one column in all
//! templates. Joining the pieces gives the line back byte for byte.
//!
//! Every border between text and variable lies beside a character that is no letter or digit, so
//! a run of letters and digits is found either in the text or in one variable: searches look at
//! dictionaries and columns before they build a line.

use crate::bin::{Decoder, Encoder, Malformed};
use crate::segment::SegmentError;
use crate::segment::columns::{
    Context, Head, RowIds, Strings, get_ints, get_numbers, get_strings, get_texts, head, put_ints,
    put_strings, put_texts,
};
use crate::segment::kept::{LazyBlock, Measured, Taken};
use crate::segment::members::Member;
use crate::segment::shapes::Shapes;
use crate::segment::template_rows::TemplateRows;
use foldhash::HashMap;
use memchr::memmem::Finder;
use std::hash::{DefaultHasher, Hasher};
use std::ops::Range;
use std::sync::OnceLock;

/// Stands for a variable in a template; lines that contain it are kept whole.
pub(crate) const HOLE: u8 = 0;

/// What a byte is to [`split_text`].
const CLASS: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let b = i as u8;
        if b.is_ascii_digit() {
            table[i] = WORD | DIGIT;
        } else if b.is_ascii_alphabetic() || matches!(b, b'_' | b'-' | b'.') || b >= 0x80 {
            table[i] = WORD;
        }
        i += 1;
    }
    table
};
const WORD: u8 = 1;
const DIGIT: u8 = 2;

fn class(b: u8) -> u8 {
    CLASS.get(usize::from(b)).copied().unwrap_or(0)
}

/// Finds the variables of free text.
fn split_text(line: &[u8], range: Range<usize>, out: &mut Vec<Range<usize>>) {
    let mut at = range.start;
    while at < range.end {
        let rest = line.get(at..range.end).unwrap_or_default();
        let skip = rest.iter().position(|b| class(*b) != 0).unwrap_or(rest.len());
        let (mut end, mut seen) = (skip, 0);
        while let Some(c) = rest.get(end).map(|b| class(*b)).filter(|c| *c != 0) {
            seen |= c;
            end += 1;
        }
        if seen & DIGIT != 0 {
            out.push(at + skip..at + end);
        }
        at += end;
    }
}

/// Finds the variables of a JSON object; of text that only begins like one, some.
fn split_json(line: &[u8], out: &mut Vec<Range<usize>>) {
    let mut at = 0;
    while let Some(b) = line.get(at) {
        match b {
            b'"' => {
                let start = at + 1;
                let mut end = start;
                loop {
                    let rest = line.get(end..).unwrap_or_default();
                    match memchr::memchr2(b'"', b'\\', rest) {
                        Some(n) if rest.get(n) == Some(&b'\\') => end += n + 2,
                        Some(n) => {
                            end += n;
                            break;
                        }
                        None => {
                            end = line.len();
                            break;
                        }
                    }
                }
                let end = end.min(line.len());
                at = end + 1;
                let after = line.get(at..).unwrap_or_default();
                let next = after.iter().find(|b| !b.is_ascii_whitespace());
                let content = line.get(start..end).unwrap_or_default();
                if next == Some(&b':') || content.is_empty() {
                    continue;
                }
                if memchr::memchr(b' ', content).is_some() {
                    split_text(line, start..end, out);
                } else {
                    out.push(start..end);
                }
            }
            b'0'..=b'9' | b'-' | b'a'..=b'z' | b'A'..=b'Z' => {
                let run = line.get(at..).unwrap_or_default();
                let run = run
                    .iter()
                    .take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'+' | b'-'))
                    .count();
                out.push(at..at + run);
                at += run;
            }
            _ => at += 1,
        }
    }
}

fn split(line: &[u8], out: &mut Vec<Range<usize>>) {
    out.clear();
    if line.first() == Some(&b'{') {
        split_json(line, out);
    } else {
        split_text(line, 0..line.len(), out);
    }
}

#[derive(Default)]
struct Column<'a> {
    values: Vec<&'a [u8]>,
    rows: Vec<u32>,
}

fn text_key(text: &[u8]) -> u64 {
    // Fixed keys: the same text must meet the same column in one block only; a collision joins
    // two columns, which costs bytes and no correctness.
    let mut h = DefaultHasher::new();
    h.write(text);
    h.finish()
}

/// Writes the lines of a block.
pub(crate) fn put_lines(e: &mut Encoder, lines: &[&[u8]], rows: Context<'_>) {
    let templates_max = (lines.len() / 4).max(16);
    let mut templates: HashMap<Vec<u8>, usize> = HashMap::default();
    templates.insert(vec![HOLE], 0);
    let mut template_columns: Vec<Vec<usize>> = vec![vec![0]];
    let mut columns: Vec<Column<'_>> = vec![Column::default()];
    let mut by_text: HashMap<u64, usize> = HashMap::default();
    let mut ids = Vec::with_capacity(lines.len());
    let (mut variables, mut scratch) = (Vec::new(), Vec::new());
    for (row, line) in lines.iter().enumerate() {
        split(line, &mut variables);
        scratch.clear();
        let mut at = 0;
        for v in &variables {
            scratch.extend_from_slice(line.get(at..v.start).unwrap_or_default());
            scratch.push(HOLE);
            at = v.end;
        }
        scratch.extend_from_slice(line.get(at..).unwrap_or_default());
        let holes = memchr::memchr_iter(HOLE, &scratch).count();
        let known = templates.get(&scratch).copied();
        let is_raw =
            holes != variables.len() || (known.is_none() && templates.len() > templates_max);
        if is_raw {
            ids.push(0);
            if let Some(c) = columns.first_mut() {
                c.values.push(line);
                c.rows.push(row as u32);
            }
            continue;
        }
        let id = known.unwrap_or_else(|| {
            let mut list = Vec::with_capacity(variables.len());
            let mut at = 0;
            for v in &variables {
                let key = text_key(line.get(at..v.start).unwrap_or_default());
                list.push(*by_text.entry(key).or_insert_with(|| {
                    columns.push(Column::default());
                    columns.len() - 1
                }));
                at = v.end;
            }
            template_columns.push(list);
            let id = templates.len();
            templates.insert(scratch.clone(), id);
            id
        });
        ids.push(id as i64);
        for (v, c) in variables.iter().zip(template_columns.get(id).into_iter().flatten()) {
            if let Some(c) = columns.get_mut(*c) {
                c.values.push(line.get(v.clone()).unwrap_or_default());
                c.rows.push(row as u32);
            }
        }
    }
    let mut texts: Vec<_> = templates.iter().collect();
    texts.sort_unstable_by_key(|(_, id)| **id);
    put_texts(e, &texts.iter().map(|(t, _)| t.as_slice()).collect::<Vec<_>>());
    let uses: Vec<i64> = template_columns.iter().flatten().map(|c| *c as i64).collect();
    put_ints(e, &uses);
    put_ints(e, &ids);
    e.len(columns.len());
    for c in &columns {
        let mut body = Encoder::default();
        put_column(&mut body, c, rows);
        e.raw(&body.bytes);
    }
}

fn put_column(e: &mut Encoder, c: &Column<'_>, rows: Context<'_>) {
    fn pick<T: Clone>(list: &[T], rows: &[u32]) -> Vec<T> {
        rows.iter().filter_map(|r| list.get(*r as usize).cloned()).collect()
    }
    let first = c.values.first().copied().unwrap_or_default();
    let times = if (20..=30).contains(&first.len()) { pick(rows.times, &c.rows) } else { vec![] };
    let trace = if first.len() == 32 { pick(rows.trace, &c.rows) } else { vec![] };
    let span = if first.len() == 16 { pick(rows.span, &c.rows) } else { vec![] };
    put_strings(e, &c.values, Context { times: &times, trace: &trace, span: &span });
}

#[derive(Debug, Default)]
pub(crate) struct Template {
    /// Fixed text before each variable, and behind the last.
    texts: Vec<Range<usize>>,
    /// All text, with a mark for each variable.
    pub(crate) all: Vec<u8>,
    /// The column of each variable.
    pub(crate) columns: Vec<usize>,
}

/// Takes a row's number and line.
pub(crate) type VisitLine<'a> = &'a mut dyn FnMut(usize, &[u8]) -> Result<(), SegmentError>;

/// Templates and columns of a block's lines, each column unpacked when it is needed.
#[derive(Debug)]
pub(crate) struct LineColumns {
    pub(crate) templates: Vec<Template>,
    /// The number of each row's template.
    ids: Vec<u32>,
    places: Vec<Range<usize>>,
    heads: Vec<Head>,
    columns: Vec<OnceLock<Strings>>,
    /// By column, where each row's first value is, or would be if it had one.
    firsts: Vec<OnceLock<Vec<u32>>>,
    /// By column, whether its values stand outside of quotes in JSON.
    literals: Vec<OnceLock<bool>>,
    /// Whether all values outside of quotes are such.
    is_sound: OnceLock<bool>,
    shapes: OnceLock<Shapes>,
    rows: OnceLock<TemplateRows>,
}

impl Measured for LineColumns {
    fn bytes(&self) -> usize {
        const COLUMN: usize = size_of::<(Range<usize>, Head, Strings, Vec<u32>)>();
        let template = |t: &Template| {
            // Members have a variable each, mostly.
            let texts = t.texts.len() * size_of::<(Range<usize>, usize, Member)>();
            size_of::<Template>() + texts + t.all.len() + t.columns.bytes()
        };
        let templates = self.templates.iter().map(template).sum::<usize>();
        templates + self.ids.bytes() + self.places.len() * COLUMN
    }
}

impl LineColumns {
    /// Reads what [`put_lines`] wrote at a place of a block.
    pub(crate) fn read(block: &[u8], at: &Range<usize>) -> Result<Self, Malformed> {
        let d = &mut Decoder::new(block.get(at.clone()).ok_or(Malformed(at.start))?);
        let texts = get_texts(d)?;
        let uses = get_ints(d)?;
        let most = u32::try_from(texts.len()).map_err(|_| d.bad())?;
        let ids = get_numbers(d, most)?;
        if ids.contains(&most) {
            return Err(d.bad());
        }
        let (mut places, mut heads) = (Vec::new(), Vec::new());
        for _ in 0..d.len()? {
            let packed = d.raw()?;
            heads.push(head(packed)?);
            let end = at.start + d.at();
            places.push(end - packed.len()..end);
        }
        let mut uses = uses.into_iter();
        let mut templates = Vec::with_capacity(texts.len());
        for t in texts.iter() {
            let mut parts = Vec::new();
            let mut at = 0;
            for part in t.split(|b| *b == HOLE) {
                parts.push(at..at + part.len());
                at += part.len() + 1;
            }
            let columns = uses
                .by_ref()
                .take(parts.len() - 1)
                .map(|c| usize::try_from(c).ok().filter(|c| *c < places.len()).ok_or(d.bad()))
                .collect::<Result<Vec<_>, _>>()?;
            if columns.len() + 1 != parts.len() {
                return Err(d.bad());
            }
            templates.push(Template { texts: parts, all: t.to_vec(), columns });
        }
        let columns = places.iter().map(|_| OnceLock::new()).collect();
        let firsts = places.iter().map(|_| OnceLock::new()).collect();
        let literals = places.iter().map(|_| OnceLock::new()).collect();
        Ok(Self {
            templates,
            ids,
            places,
            heads,
            columns,
            firsts,
            literals,
            is_sound: OnceLock::new(),
            shapes: OnceLock::new(),
            rows: OnceLock::new(),
        })
    }

    /// Returns the number of a row's template.
    pub(crate) fn template_of(&self, row: usize) -> Result<usize, Malformed> {
        self.ids.get(row).map(|id| *id as usize).ok_or(Malformed(row))
    }

    /// Returns the numbers of rows' templates.
    pub(crate) fn templates_of(&self, rows: Range<usize>) -> Result<&[u32], Malformed> {
        self.ids.get(rows.clone()).ok_or(Malformed(rows.start))
    }

    pub(crate) fn shapes(&self) -> &Shapes {
        self.shapes.get_or_init(|| Shapes::new(&self.templates, &self.ids))
    }

    /// Returns the number of columns.
    pub(crate) const fn len(&self) -> usize {
        self.places.len()
    }
}

/// The lines of a block, built on demand.
#[derive(Clone, Copy)]
pub(crate) struct Lines<'a> {
    pub(crate) all: &'a LineColumns,
    bytes: &'a LazyBlock<'a>,
    taken: &'a Taken,
}

impl<'a> Lines<'a> {
    pub(crate) const fn new(
        all: &'a LineColumns,
        bytes: &'a LazyBlock<'a>,
        taken: &'a Taken,
    ) -> Self {
        Self { all, bytes, taken }
    }

    pub(crate) fn column(&self, i: usize) -> Result<&'a Strings, SegmentError> {
        let cell = self.all.columns.get(i).ok_or(Malformed(i))?;
        let place = self.all.places.get(i).ok_or(Malformed(i))?;
        self.taken.read(cell, self.bytes, place, get_strings)
    }

    /// Returns where the values of a template's variable are, by its number.
    pub(crate) fn place(&self, t: &Template, variable: usize) -> Result<Place<'a>, SegmentError> {
        let bad = Malformed(variable);
        let (before, rest) = t.columns.split_at_checked(variable).ok_or(bad)?;
        let column = rest.first().ok_or(bad)?;
        let earlier = before.iter().filter(|c| *c == column).count();
        Ok(Place { firsts: self.firsts(*column)?, earlier })
    }

    /// Returns where each row's first value of a column is; what has no value there stands at the
    /// next row's. `None` where every row has one.
    fn firsts(&self, column: usize) -> Result<Option<&'a [u32]>, SegmentError> {
        let cell = self.all.firsts.get(column).ok_or(Malformed(column))?;
        let made = self.taken.once(cell, || {
            let count = |t: &Template| t.columns.iter().filter(|c| **c == column).count() as u32;
            let counts: Vec<u32> = self.all.templates.iter().map(count).collect();
            let rows = &self.all.shapes().rows;
            if counts.iter().zip(rows).all(|(n, rows)| *n == 1 || *rows == 0) {
                return Ok(Vec::new());
            }
            let mut at = 0_u32;
            let one = |id: &u32| {
                let here = at;
                at = at.saturating_add(counts.get(*id as usize).copied().unwrap_or(0));
                here
            };
            Ok(self.all.ids.iter().map(one).collect())
        })?;
        Ok((made.len() == self.all.ids.len()).then_some(made.as_slice()))
    }

    /// Returns which rows have which template.
    pub(crate) fn template_rows(&self) -> Result<&'a TemplateRows, SegmentError> {
        let LineColumns { templates, ids, .. } = self.all;
        let rows = &self.all.shapes().rows;
        self.taken
            .once(&self.all.rows, || Ok(TemplateRows::new(templates, rows, ids, self.all.len())))
    }

    /// Returns whether all values of a column are what JSON has outside of quotes: numbers, as far
    /// as their beginning tells, `true`, `false` or `null`.
    pub(crate) fn are_literals(&self, i: usize) -> Result<bool, SegmentError> {
        let cell = self.all.literals.get(i).ok_or(Malformed(i))?;
        if let Some(known) = cell.get() {
            return Ok(*known);
        }
        let is_one = |v: &[u8]| {
            matches!(v, b"true" | b"false" | b"null")
                || v.first().is_some_and(|b| b.is_ascii_digit() || *b == b'-')
        };
        let all = match self.all.heads.get(i).ok_or(Malformed(i))? {
            // What the values have in common before their digits may be digits too.
            Head::Digits { prefix, .. } => prefix.is_empty() || is_one(prefix),
            Head::Any => match self.column(i)? {
                Strings::Const(v) => is_one(v),
                Strings::Dict { entries, .. } => entries.iter().all(is_one),
                Strings::Raw(t) => t.iter().all(is_one),
                _ => false,
            },
            _ => false,
        };
        Ok(*cell.get_or_init(|| all))
    }

    /// Returns whether that is so of all values that stand outside of quotes in members of objects.
    pub(crate) fn is_sound(&self) -> Result<bool, SegmentError> {
        if let Some(known) = self.all.is_sound.get() {
            return Ok(*known);
        }
        let shapes = self.all.shapes();
        for (number, t) in self.all.templates.iter().enumerate() {
            for column in shapes.of(number).into_iter().flat_map(|s| s.literals(t)) {
                if !self.are_literals(column)? {
                    return Ok(*self.all.is_sound.get_or_init(|| false));
                }
            }
        }
        Ok(*self.all.is_sound.get_or_init(|| true))
    }

    /// Returns whether a column has no values.
    pub(crate) fn is_empty(&self, i: usize) -> bool {
        matches!(self.all.heads.get(i), Some(Head::Empty))
    }

    /// Returns whether any value of a column may hold what `run` finds, a run of letters and digits.
    pub(crate) fn may_hold(&self, i: usize, run: &Finder<'_>) -> Result<bool, SegmentError> {
        if !may_contain(self.all.heads.get(i).ok_or(Malformed(i))?, run.needle()) {
            return Ok(false);
        }
        Ok(match self.column(i)? {
            Strings::Empty => false,
            Strings::Const(v) => run.find(v).is_some(),
            Strings::Dict { entries: t, .. } | Strings::Raw(t) => run.find(t.all()).is_some(),
            _ => true,
        })
    }

    /// Calls `visit` with every wanted row's line, in order.
    pub(crate) fn visit(
        &self,
        wanted: &[bool],
        ids: &dyn Fn(usize) -> RowIds,
        visit: VisitLine<'_>,
    ) -> Result<(), SegmentError> {
        let templates = &self.all.templates;
        let mut cursors = vec![0_usize; self.all.len()];
        // Rows passed over since the last wanted one, by template, and the templates that they have.
        let (mut passed, mut of) = (vec![0_usize; templates.len()], Vec::new());
        let mut line = Vec::new();
        let last = wanted.iter().rposition(|w| *w).map_or(0, |i| i + 1);
        for (row, is_wanted) in wanted.iter().enumerate().take(last) {
            let id = self.all.template_of(row)?;
            if !is_wanted {
                let n = passed.get_mut(id).ok_or(Malformed(row))?;
                if *n == 0 {
                    of.push(id);
                }
                *n += 1;
                continue;
            }
            for id in of.drain(..) {
                let n = passed.get_mut(id).map(std::mem::take).unwrap_or_default();
                for c in templates.get(id).into_iter().flat_map(|t| &t.columns) {
                    *cursors.get_mut(*c).ok_or(Malformed(row))? += n;
                }
            }
            let t = templates.get(id).ok_or(Malformed(row))?;
            line.clear();
            let row_ids = ids(row);
            let mut texts = t.texts.iter();
            for c in &t.columns {
                let text = texts.next().cloned().unwrap_or_default();
                line.extend_from_slice(t.all.get(text).unwrap_or_default());
                let cursor = cursors.get_mut(*c).ok_or(Malformed(row))?;
                self.column(*c)?.append(*cursor, row_ids, &mut line).ok_or(Malformed(row))?;
                *cursor += 1;
            }
            let text = texts.next().cloned().unwrap_or_default();
            line.extend_from_slice(t.all.get(text).unwrap_or_default());
            visit(row, &line)?;
        }
        Ok(())
    }

    /// Returns what tells lines that cannot contain `run`, a run of ASCII letters and digits; `None` if
    /// none can.
    pub(crate) fn sieve<'r>(&self, run: &'r [u8]) -> Result<Option<Sieve<'a, 'r>>, SegmentError> {
        let finder = Finder::new(run);
        // What each column's values say.
        let mut masks: Vec<Option<Mask>> =
            std::iter::repeat_with(|| None).take(self.all.len()).collect();
        let mut verdicts = Vec::with_capacity(self.all.templates.len());
        for t in &self.all.templates {
            let text = |r: &Range<usize>| t.all.get(r.clone()).unwrap_or_default();
            let mut hit = t.texts.iter().any(|r| finder.find(text(r)).is_some());
            let mut looks = Vec::new();
            for (i, c) in t.columns.iter().enumerate() {
                if hit {
                    break;
                }
                let bad = Malformed(*c);
                if !may_contain(self.all.heads.get(*c).ok_or(bad)?, run) {
                    continue;
                }
                let slot = masks.get_mut(*c).ok_or(bad)?;
                let mask = match slot {
                    Some(mask) => mask,
                    None => slot.insert(Mask::of(self.column(*c)?, run, &finder)),
                };
                match mask {
                    Mask::Every(yes) => hit = *yes,
                    _ => looks.push((*c, self.place(t, i)?)),
                }
            }
            verdicts.push(if hit { Verdict::Same(true) } else { Verdict::of(looks) });
        }
        let is_empty = verdicts.iter().all(|v| matches!(v, Verdict::Same(false)));
        Ok((!is_empty).then_some(Sieve { lines: *self, finder, masks, verdicts }))
    }
}

/// Tells which lines of a block cannot contain a run of ASCII letters and digits.
pub(crate) struct Sieve<'a, 'r> {
    lines: Lines<'a>,
    finder: Finder<'r>,
    /// What each column's values say, of those that were looked at.
    masks: Vec<Option<Mask>>,
    /// By template.
    verdicts: Vec<Verdict<'a>>,
}

impl Sieve<'_, '_> {
    /// Clears `wanted` of the rows that cannot contain it.
    pub(crate) fn narrow(
        &self,
        ids: &dyn Fn(usize) -> RowIds,
        traces: &[[u8; 16]],
        wanted: &mut [bool],
    ) -> Result<(), SegmentError> {
        let Self { lines, finder, masks, verdicts } = self;
        let mut scratch = Vec::new();
        for (row, want) in wanted.iter_mut().enumerate().filter(|(_, want)| **want) {
            let bad = Malformed(row);
            let looks = match verdicts.get(lines.all.template_of(row)?).ok_or(bad)? {
                Verdict::Same(hit) => {
                    *want = *hit;
                    continue;
                }
                Verdict::Look(looks) => looks,
            };
            *want = false;
            for (c, place) in looks {
                let at = place.of(row).ok_or(bad)?;
                *want = match masks.get(*c).and_then(Option::as_ref).ok_or(bad)? {
                    Mask::Every(yes) => *yes,
                    Mask::Each(list) => list.get(at).copied().unwrap_or(true),
                    Mask::Trace(id) => {
                        traces.get(row).is_none_or(|t| t.as_slice() == id.as_slice())
                    }
                    Mask::Print => {
                        scratch.clear();
                        lines.column(*c)?.append(at, ids(row), &mut scratch);
                        finder.find(&scratch).is_some()
                    }
                };
                if *want {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Where each row's value of a variable is in its column.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// `None` where every row has one value.
    firsts: Option<&'a [u32]>,
    /// Values of the column that stand before it in the same row.
    earlier: usize,
}

impl Place<'_> {
    /// Returns whether a row's value stands at the row's number.
    pub(crate) const fn is_row(&self) -> bool {
        self.firsts.is_none()
    }

    #[inline]
    pub(crate) fn of(&self, row: usize) -> Option<usize> {
        let Some(firsts) = self.firsts else { return Some(row) };
        firsts.get(row).map(|first| *first as usize + self.earlier)
    }
}

/// What is known of the lines of a template.
enum Verdict<'a> {
    Same(bool),
    /// Some columns decide.
    Look(Vec<(usize, Place<'a>)>),
}

impl<'a> Verdict<'a> {
    fn of(looks: Vec<(usize, Place<'a>)>) -> Self {
        if looks.is_empty() { Self::Same(false) } else { Self::Look(looks) }
    }
}

enum Mask {
    Every(bool),
    Each(Vec<bool>),
    /// The row's trace id, if it is this.
    Trace(Vec<u8>),
    /// Values have to be printed to know.
    Print,
}

impl Mask {
    fn of(column: &Strings, run: &[u8], finder: &Finder<'_>) -> Self {
        let has = |v: &[u8]| finder.find(v).is_some();
        match column {
            Strings::Empty => Self::Every(false),
            Strings::Const(v) => Self::Every(has(v)),
            // One search in all texts costs a fraction of one in each.
            Strings::Dict { entries: t, .. } | Strings::Raw(t) if !has(t.all()) => {
                Self::Every(false)
            }
            Strings::Dict { entries, ids } => {
                let hits: Vec<bool> = entries.iter().map(has).collect();
                let hit = |id: &u16| hits.get(usize::from(*id)).copied().unwrap_or(true);
                Self::Each(ids.iter().map(hit).collect())
            }
            Strings::Raw(t) => Self::Each(t.iter().map(has).collect()),
            // Whole ids are compared as bytes: printing thousands would cost more than the rest.
            Strings::Hex { prefix, suffix, width, bytes }
                if run.len() == 2 * width && !touches(prefix, suffix) =>
            {
                match unhex(run) {
                    _ if has(prefix) || has(suffix) => Self::Every(true),
                    Some(id) => Self::Each(bytes.chunks_exact(*width).map(|v| v == id).collect()),
                    None => Self::Every(false),
                }
            }
            Strings::Trace if run.len() == 32 => match unhex(run) {
                Some(id) => Self::Trace(id),
                None => Self::Every(false),
            },
            Strings::Hex { .. }
            | Strings::Number { .. }
            | Strings::Time { .. }
            | Strings::Trace
            | Strings::Span => Self::Print,
        }
    }
}

/// Tells whether a run could reach from the digits into what is around them.
fn touches(prefix: &[u8], suffix: &[u8]) -> bool {
    let is_word = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    is_word(prefix.last()) || is_word(suffix.first())
}

/// Reads lower-case hexadecimal digits, as [`Strings::Hex`] prints them.
fn unhex(digits: &[u8]) -> Option<Vec<u8>> {
    let value = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let pair = |p: &[u8]| Some(value(*p.first()?)? << 4 | value(*p.last()?)?);
    digits.chunks_exact(2).map(pair).collect()
}

/// Tells from a column's head alone whether any value may hold a run.
fn may_contain(head: &Head, run: &[u8]) -> bool {
    match head {
        Head::Empty => false,
        Head::Any => true,
        Head::Digits { prefix, suffix } => {
            run.iter().all(|b| b.is_ascii_hexdigit() || prefix.contains(b) || suffix.contains(b))
        }
        Head::Ids => run.iter().all(u8::is_ascii_hexdigit),
        Head::Time => run.iter().all(|b| b.is_ascii_digit() || matches!(b, b'T' | b'Z')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(lines: &[String], runs: &[&str]) -> usize {
        let bytes: Vec<&[u8]> = lines.iter().map(|l| l.as_bytes()).collect();
        let times: Vec<i64> = (0..lines.len() as i64).collect();
        let trace: Vec<String> = (0..lines.len()).map(|i| format!("{:032x}", i / 8)).collect();
        let span = trace.iter().map(|t| t[16..].to_owned()).collect::<Vec<_>>();
        let rows = Context { times: &times, trace: &trace, span: &span };
        let mut e = Encoder::default();
        put_lines(&mut e, &bytes, rows);
        let columns = LineColumns::read(&e.bytes, &(0..e.bytes.len())).unwrap();
        let (block, taken) = (LazyBlock::whole(&e.bytes), Taken::default());
        let read = Lines::new(&columns, &block, &taken);
        let ids_of: Vec<[u8; 16]> =
            trace.iter().map(|t| u128::from_str_radix(t, 16).unwrap().to_be_bytes()).collect();
        let ids = |i: usize| {
            let span = ids_of[i][8..].try_into().unwrap();
            RowIds { time: times[i], trace: ids_of[i], span }
        };
        let mut got = Vec::new();
        let all = vec![true; lines.len()];
        let mut keep = |_: usize, l: &[u8]| {
            got.push(String::from_utf8(l.to_vec()).unwrap());
            Ok(())
        };
        read.visit(&all, &ids, &mut keep).unwrap();
        assert_eq!(got, lines);
        for run in runs {
            let mut wanted = all.clone();
            match read.sieve(run.as_bytes()).unwrap() {
                Some(sieve) => sieve.narrow(&ids, &ids_of, &mut wanted).unwrap(),
                None => wanted.fill(false),
            }
            let want: Vec<bool> = lines.iter().map(|l| l.contains(run)).collect();
            assert_eq!(wanted, want, "{run}");
        }
        e.bytes.len()
    }

    #[test]
    fn json_text_and_odd_lines_come_back_and_are_searched() {
        let mut lines: Vec<String> = (0..400_u64)
            .map(|i| {
                format!(
                    r#"{{"ts":"2026-11-21T14:00:{:02}.{:06}Z","msg":"took {} ms for user-{} \"x\"","trace_id":"{:032x}","n":{},"ok":{},"nested":{{"a":[1,{i}]}}}}"#,
                    i % 60, i, i * 3, i % 9, i / 8, i * i, i % 2 == 0
                )
            })
            .collect();
        lines.extend(["", "{", "{\"a", "\0", "plain", "a=1 b=2 ÿé9", "{\"a\\"].map(str::to_owned));
        lines.extend((0..50).map(|i| format!("GET /v1/items/{i} 200 timeout after {}ms", i * 7)));
        let size = round_trip(
            &lines,
            &[
                "timeout",
                "x",
                "14",
                "user",
                "true",
                "00000000000000000000000000000012",
                "9",
                "ms",
                "zz",
            ],
        );
        assert!(size < 8000, "{size}");
    }

    proptest! {
        #[test]
        fn any_lines_come_back(
            lines in prop::collection::vec(r#"[ -~\x00é"{}:,0-9a]{0,40}|\{("[a-c]":("[ -~]{0,6}"|-?[0-9]{1,4}|true),?){0,4}\}"#, 1..80),
            run in "[a-c0-9]{1,2}",
        ) {
            round_trip(&lines, &[&run]);
        }
    }
}
