//! The kinds of log lines of a block: what is looked at of each template's lines, and what tells
//! rows apart of which the same is looked at.

use crate::bin::Malformed;
use crate::segment::SegmentError;
use crate::segment::columns::{Form, RowIds, Strings};
use crate::segment::lines::{HOLE, Lines, Place, Template};
use crate::segment::logs::LogColumns;
use crate::segment::members::Member;
use crate::segment::shapes::{Key, MemberHead};
use foldhash::HashMap;
use memchr::memmem::Finder;
use obs_model::{LineMembers, LineRun};
use std::ops::Range;

/// A piece of a line that is built.
#[derive(Debug, Clone)]
pub(crate) enum Piece {
    Mark(u8),
    /// Text of the template.
    Text(Range<usize>),
    /// The value of a kept variable.
    Value(usize),
}

/// What is built of a template's lines.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) pieces: Vec<Piece>,
    /// The variables that are looked at, by number.
    kept: Vec<usize>,
    /// The place in `kept` of the one of which only the number counts.
    number: Option<usize>,
}

impl Plan {
    /// Adds a stretch of the template with the variables in it, the first of which is numbered.
    fn keep(&mut self, t: &Template, stretch: Range<usize>, mut hole: usize) {
        let mut at = stretch.start;
        let text = t.all.get(stretch.clone()).unwrap_or_default();
        for i in memchr::memchr_iter(HOLE, text) {
            self.pieces.push(Piece::Text(at..stretch.start + i));
            self.pieces.push(Piece::Value(self.kept.len()));
            self.kept.push(hole);
            at = stretch.start + i + 1;
            hole += 1;
        }
        self.pieces.push(Piece::Text(at..stretch.end));
    }

    /// Plans for a template; `kept` are its members that are looked at, if those are.
    fn new(
        t: &Template,
        part: Part,
        kept: &[(&MemberHead, &Member)],
        keys: &[Key],
        scan: &LineMembers<'_>,
    ) -> Self {
        let mut out = Self::default();
        match part {
            Part::Nothing => return out,
            Part::Whole => {
                out.keep(t, 0..t.all.len(), 0);
                return out;
            }
            Part::Members => {}
        }
        out.pieces.push(Piece::Mark(b'{'));
        for (i, (_, m)) in kept.iter().enumerate() {
            if i > 0 {
                out.pieces.push(Piece::Mark(b','));
            }
            out.keep(t, m.all.clone(), m.holes.start);
        }
        out.pieces.push(Piece::Mark(b'}'));
        // Only the number counts if nothing else can be taken for the member.
        let key = |head: &MemberHead| keys.get(head.key as usize);
        let is_plain =
            |(h, _): &(&MemberHead, &Member)| !h.has_inside && key(h).is_some_and(|k| k.is_plain);
        if let Some(n) = scan.number.filter(|_| kept.iter().all(is_plain)) {
            let mut named = kept.iter().filter(|(h, _)| key(h).is_some_and(|k| k.text == n.key));
            let first = named.next().filter(|(_, m)| m.is_variable);
            if let (Some((_, m)), None) = (first, named.next()) {
                out.number = out.kept.iter().position(|h| *h == m.holes.start);
            }
        }
        out
    }
}

/// What of a template's lines is looked at.
#[derive(Clone, Copy)]
pub(crate) enum Part {
    Nothing,
    Whole,
    /// The members that [`Looks::kept`] names.
    Members,
}

/// Tells what is looked at, and remembers what it was told of keys.
struct Looks<'a, 's> {
    lines: Lines<'a>,
    /// By key, whether it is wanted without and with something inside of it.
    wanted: Vec<[bool; 2]>,
    /// Of the last template, the places of its members that are looked at, and what each is like.
    kept: Vec<usize>,
    alike: Vec<u32>,
    runs: Vec<Run<'s>>,
    /// Whether the block's values outside of quotes are what JSON has there.
    is_sound: bool,
}

/// A run that is looked for.
struct Run<'s> {
    finder: Finder<'s>,
    is_needed: bool,
    /// By column, whether a value of it may hold the run.
    columns: Vec<Option<bool>>,
    /// Whether the text of the template that is looked at has it.
    is_in_text: bool,
}

impl Run<'_> {
    /// Returns whether a value of any of some columns may hold the run.
    fn may_be_in_any(
        &mut self,
        lines: &Lines<'_>,
        columns: Option<&[usize]>,
    ) -> Result<bool, SegmentError> {
        for column in columns.unwrap_or_default() {
            let slot = self.columns.get_mut(*column).ok_or(Malformed(*column))?;
            let known = match slot {
                Some(known) => *known,
                None => *slot.insert(lines.may_hold(*column, &self.finder)?),
            };
            if known {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn may_be_in(
        &mut self,
        lines: &Lines<'_>,
        t: &Template,
        m: &Member,
    ) -> Result<bool, SegmentError> {
        let text = t.all.get(m.all.clone()).unwrap_or_default();
        if self.is_in_text && self.finder.find(text).is_some() {
            return Ok(true);
        }
        self.may_be_in_any(lines, t.columns.get(m.holes.clone()))
    }
}

impl<'a, 's> Looks<'a, 's> {
    fn new(lines: Lines<'a>, scan: &'s LineMembers<'s>) -> Result<Self, SegmentError> {
        let run = |r: &'s LineRun| Run {
            finder: Finder::new(r.text.as_bytes()),
            is_needed: r.is_needed,
            columns: vec![None; lines.all.len()],
            is_in_text: false,
        };
        let keys = lines.all.shapes().keys.iter();
        let wanted = keys.map(|k| [(scan.wants)(&k.text, false), (scan.wants)(&k.text, true)]);
        let runs = scan.runs.iter().map(run).collect();
        let (wanted, is_sound) = (wanted.collect(), lines.is_sound()?);
        Ok(Self { lines, wanted, kept: Vec::new(), alike: Vec::new(), runs, is_sound })
    }

    /// Returns what is looked at of a template's lines; `number` is the template's. `None` if there are
    /// none, or they lack what wanted lines have.
    fn of(&mut self, number: usize, t: &Template) -> Result<Option<Part>, SegmentError> {
        match t.all.first() {
            // Those that have no template, if there are any.
            Some(&HOLE) if t.all.len() == 1 => {
                let is_empty = t.columns.iter().all(|c| self.lines.is_empty(*c));
                return Ok((!is_empty).then_some(Part::Whole));
            }
            Some(b' ' | b'\n' | b'\r' | b'\t') => return Ok(Some(Part::Whole)),
            Some(b'{') => {}
            // No object: a variable begins with a letter, digit, sign or point.
            _ if self.runs.is_empty() => return Ok(Some(Part::Nothing)),
            _ => return Ok(Some(Part::Whole)),
        }
        let lines = self.lines;
        let Some(shape) = lines.all.shapes().of(number) else { return Ok(Some(Part::Whole)) };
        if !self.runs.is_empty() && !shape.is_all {
            return Ok(Some(Part::Whole));
        }
        for run in &mut self.runs {
            run.is_in_text = run.finder.find(&t.all).is_some();
            if run.is_needed && !run.is_in_text && !run.may_be_in_any(&lines, Some(&t.columns))? {
                return Ok(None);
            }
        }
        if !self.is_sound {
            for column in shape.literals(t) {
                if !lines.are_literals(column)? {
                    return Ok(Some(Part::Whole));
                }
            }
        }
        self.kept.clear();
        self.alike.clear();
        for (place, head) in shape.heads.iter().enumerate() {
            let key = head.key as usize;
            let wanted = self.wanted.get(key).ok_or(Malformed(key))?;
            let mut is_wanted = if head.has_inside { wanted[1] } else { wanted[0] };
            for run in &mut self.runs {
                let m = shape.members.get(place).ok_or(Malformed(place))?;
                is_wanted = is_wanted || run.may_be_in(&lines, t, m)?;
            }
            if is_wanted {
                self.kept.push(place);
                self.alike.push(head.alike);
            }
        }
        Ok(Some(Part::Members))
    }

    /// Returns the members that are looked at of a template.
    fn kept(&self, number: usize) -> Vec<(&'a MemberHead, &'a Member)> {
        let shape = self.lines.all.shapes().of(number);
        let member = |place: &usize| Some((shape?.heads.get(*place)?, shape?.members.get(*place)?));
        self.kept.iter().filter_map(member).collect()
    }
}

/// What tells the values of a column apart.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Codes<'a> {
    One,
    /// Numbers of texts, and of how many.
    Dict {
        ids: &'a [u16],
        count: u64,
    },
    /// Values less the least, and the number of possible ones.
    Few {
        values: &'a [i64],
        least: i64,
        count: u64,
    },
    /// Numbers that are told apart by how many digits they are written with.
    Digits {
        values: &'a [i64],
        form: Form,
    },
    /// Each is taken for different from all others.
    Many,
}

/// More than there are codes of [`Codes::Digits`].
const DIGITS: u64 = 64;

/// Returns a number that is the same for values that are written alike but for which digits they have;
/// `None` if there is none.
fn digits_code(v: i64, form: Form) -> Option<u64> {
    let digits = |n: u64| u64::from(n.checked_ilog10().unwrap_or(0)) + 1;
    let (v, sign) = (v.unsigned_abs(), u64::from(v < 0));
    let written = match form {
        Form::Decimal => digits(v),
        Form::Padded(width) => digits(v).max(width as u64),
        Form::Point(places) => digits(v / 10_u64.checked_pow(u32::try_from(places).ok()?)?),
    };
    (written < DIGITS / 2).then_some(2 * written + sign)
}

/// Numbers of a column that are compared as such at most this apart.
const FEW: u64 = 4096;

impl<'a> Codes<'a> {
    /// Returns `None` for a column whose values are derived from the row.
    fn of(column: &'a Strings, digits_alike: bool) -> Option<Self> {
        Some(match column {
            Strings::Empty | Strings::Const(_) => Self::One,
            Strings::Number { values, form, .. } if digits_alike => {
                Self::Digits { values, form: *form }
            }
            Strings::Dict { entries, ids } => Self::Dict { ids, count: entries.len() as u64 },
            Strings::Number { values, .. } => {
                let least = values.iter().min().copied().unwrap_or_default();
                let most = values.iter().max().copied().unwrap_or_default();
                match most.checked_sub(least).and_then(|n| u64::try_from(n).ok()) {
                    Some(n) if n < FEW => Self::Few { values, least, count: n + 1 },
                    _ => Self::Many,
                }
            }
            Strings::Hex { .. } | Strings::Raw(_) => Self::Many,
            Strings::Time { .. } | Strings::Trace | Strings::Span => return None,
        })
    }
}

/// A column whose values are all numbers as people write them.
#[derive(Debug)]
pub(crate) enum Numbers<'a> {
    One(f64),
    /// Integers that are exact as floats, and what to divide them by, which is exact too.
    Ints {
        values: &'a [i64],
        divisor: f64,
    },
    Dict {
        ids: &'a [u16],
        floats: Vec<f64>,
    },
    Each(Vec<f64>),
}

/// Reads digits with a sign and a point, if that is all there is: every language reads the same float.
fn decimal(v: &[u8]) -> Option<f64> {
    let digits = v.strip_prefix(b"-").unwrap_or(v);
    let ends = [digits.first()?, digits.last()?].into_iter().all(u8::is_ascii_digit);
    let points = digits.iter().filter(|b| **b == b'.').count();
    let plain = digits.iter().all(|b| b.is_ascii_digit() || *b == b'.');
    let text = std::str::from_utf8(v).ok().filter(|_| ends && plain && points <= 1)?;
    text.parse().ok()
}

impl<'a> Numbers<'a> {
    fn of(column: &'a Strings) -> Option<Self> {
        const EXACT: i64 = 1 << 53;
        if let Some((values, divisor)) = column.numbers()
            && values.iter().all(|v| (-EXACT..=EXACT).contains(v))
        {
            return Some(Self::Ints { values, divisor });
        }
        match column {
            Strings::Const(v) => decimal(v).map(Self::One),
            Strings::Dict { entries, ids } => {
                let floats = entries.iter().map(decimal).collect::<Option<_>>()?;
                Some(Self::Dict { ids, floats })
            }
            Strings::Raw(t) => t.iter().map(decimal).collect::<Option<_>>().map(Self::Each),
            Strings::Number { values, .. } => {
                let mut text = Vec::new();
                let one = |i| {
                    text.clear();
                    column.append(i, RowIds::default(), &mut text)?;
                    decimal(&text)
                };
                (0..values.len()).map(one).collect::<Option<_>>().map(Self::Each)
            }
            _ => None,
        }
    }

    pub(crate) fn get(&self, i: usize) -> Option<f64> {
        Some(match self {
            Self::One(v) => *v,
            Self::Ints { values, divisor } => *values.get(i)? as f64 / divisor,
            Self::Dict { ids, floats } => *floats.get(usize::from(*ids.get(i)?))?,
            Self::Each(floats) => *floats.get(i)?,
        })
    }
}

/// A row, and the number of those before it that are of its kind: that is counted where rows are
/// listed by kind.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowOf {
    pub(crate) row: usize,
    pub(crate) nth: usize,
}

/// A variable that is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Looked<'a> {
    pub(crate) column: &'a Strings,
    /// `None` where the n-th row of the kind has the n-th value.
    place: Option<Place<'a>>,
    codes: Codes<'a>,
}

impl Looked<'_> {
    /// Returns where a row's value is in the column.
    #[inline]
    pub(crate) fn at(&self, row: RowOf) -> Option<usize> {
        self.place.map_or(Some(row.nth), |place| place.of(row.row))
    }
}

/// Templates of whose lines the same is built, of the same columns.
pub(crate) struct Kind<'a> {
    /// One of them.
    pub(crate) template: &'a Template,
    pub(crate) plan: Plan,
    /// Those that the plan keeps.
    pub(crate) looked: Vec<Looked<'a>>,
    /// The numbers of the one that counts as such.
    numbers: Option<Numbers<'a>>,
}

/// What tells rows of a kind apart, where that is simple.
pub(crate) enum Told<'a> {
    ByNothing,
    /// By the numbers of texts, one a row, of which there are so many.
    ByText(&'a [u16], usize),
}

impl<'a> Kind<'a> {
    /// Returns what tells the rows apart, if it is at most one text in every row.
    pub(crate) fn told(&self) -> Option<Told<'a>> {
        let mut many = self.looked.iter().filter(|l| !matches!(l.codes, Codes::One));
        match (many.next(), many.next()) {
            (None, _) => Some(Told::ByNothing),
            (Some(Looked { place, codes: Codes::Dict { ids, count }, .. }), None)
                if place.is_some_and(|p| p.is_row()) =>
            {
                Some(Told::ByText(ids, usize::try_from(*count).ok()?))
            }
            _ => None,
        }
    }
}

impl Kind<'_> {
    /// Returns the one that counts as a number, and its numbers; of a stream where that is so.
    pub(crate) fn number(&self, counts: bool) -> Option<(usize, &Numbers<'_>)> {
        self.plan.number.zip(self.numbers.as_ref()).filter(|_| counts)
    }

    /// Returns the number of a row's combination of values; `None` if it is like no other.
    #[inline]
    pub(crate) fn key(&self, row: RowOf, but: Option<usize>) -> Result<Option<u64>, Malformed> {
        let bad = Malformed(row.row);
        let mut key = 0_u64;
        for (p, l) in self.looked.iter().enumerate() {
            if but == Some(p) {
                continue;
            }
            let (code, count) = match l.codes {
                Codes::One => continue,
                Codes::Dict { ids, count } => {
                    let at = l.at(row).ok_or(bad)?;
                    (u64::from(*ids.get(at).ok_or(bad)?), count)
                }
                Codes::Few { values, least, count } => {
                    let at = l.at(row).ok_or(bad)?;
                    (values.get(at).ok_or(bad)?.wrapping_sub(least) as u64, count)
                }
                Codes::Digits { values, form } => {
                    let at = l.at(row).ok_or(bad)?;
                    let code = digits_code(*values.get(at).ok_or(bad)?, form);
                    let Some(code) = code else { return Ok(None) };
                    (code, DIGITS)
                }
                Codes::Many => return Ok(None),
            };
            let next = key.checked_mul(count).and_then(|k| k.checked_add(code));
            let Some(next) = next else { return Ok(None) };
            key = next;
        }
        Ok(Some(key))
    }
}

/// Rows of kinds are listed where there are this many times as many others.
const RARE: usize = 4;

/// What is done with the rows of a block.
pub(crate) struct Kinds<'a> {
    pub(crate) all: Vec<Kind<'a>>,
    /// By template, the number of its kind; none of those that no wanted line has.
    pub(crate) of: Vec<Option<usize>>,
    /// Whether all wanted rows are of the first.
    pub(crate) is_one: bool,
    /// By kind, its rows in ascending order, where they are a small part of all; otherwise nothing.
    pub(crate) listed: Vec<&'a [u32]>,
}

impl<'a> Kinds<'a> {
    /// Plans what to do with each template that a wanted row has; `None` where what is looked at
    /// is derived from the row.
    pub(crate) fn plan(
        all: &LogColumns,
        stretches: &[(usize, Range<usize>)],
        lines: Lines<'a>,
        scan: &LineMembers<'_>,
    ) -> Result<Option<Self>, SegmentError> {
        let bad = Malformed(0);
        let templates = &lines.all.templates;
        // Mostly all rows are wanted.
        let rows: usize = stretches.iter().map(|(_, rows)| rows.len()).sum();
        let is_whole = rows == all.times.len();
        let counts = &lines.all.shapes().rows;
        let mut is_used: Vec<bool> = counts.iter().map(|n| *n > 0).collect();
        if !is_whole {
            is_used.fill(false);
            for row in stretches.iter().flat_map(|(_, rows)| rows.clone()) {
                *is_used.get_mut(lines.all.template_of(row)?).ok_or(bad)? = true;
            }
        }
        // Of what is built alike there is one kind.
        let mut known: HashMap<Vec<u32>, usize> = HashMap::default();
        let mut nothing: Option<usize> = None;
        let mut looks = Looks::new(lines, scan)?;
        let of = vec![None; templates.len()];
        let mut out = Self { all: Vec::new(), of, is_one: true, listed: Vec::new() };
        // By kind, the number of its first template.
        let mut firsts = Vec::new();
        // Rows of kinds, and whether each kind has one template.
        let (mut of_kinds, mut is_each_one) = (0, true);
        for (number, t) in templates.iter().enumerate() {
            if is_used.get(number) != Some(&true) {
                continue;
            }
            let Some(part) = looks.of(number, t)? else {
                out.is_one = false;
                continue;
            };
            let of = out.of.get_mut(number).ok_or(bad)?;
            let next = out.all.len();
            let same = match part {
                Part::Nothing => *nothing.get_or_insert(next),
                Part::Whole => next,
                Part::Members => match known.get(&*looks.alike) {
                    Some(same) => *same,
                    None => {
                        known.insert(looks.alike.clone(), next);
                        next
                    }
                },
            };
            *of = Some(same);
            of_kinds += counts.get(number).map_or(0, |n| *n as usize);
            if same != next {
                is_each_one = false;
                continue;
            }
            let kept = if matches!(part, Part::Members) { looks.kept(number) } else { Vec::new() };
            let plan = Plan::new(t, part, &kept, &lines.all.shapes().keys, scan);
            firsts.push(number);
            out.all.push(Kind { template: t, plan, looked: Vec::new(), numbers: None });
        }
        out.is_one &= out.all.len() == 1;
        let list = (is_each_one && of_kinds < rows / RARE).then(|| lines.template_rows());
        let list = list.transpose()?;
        let mut codes: Vec<Option<Codes<'a>>> = vec![None; lines.all.len()];
        for (kind, template) in out.all.iter_mut().zip(firsts) {
            for hole in &kind.plan.kept {
                let number = *kind.template.columns.get(*hole).ok_or(bad)?;
                let column = lines.column(number)?;
                let slot = codes.get_mut(number).ok_or(bad)?;
                if slot.is_none() {
                    *slot = Codes::of(column, scan.digits_alike);
                }
                let Some(codes) = *slot else { return Ok(None) };
                let is_nth = list.is_some_and(|l| l.is_own(template, number));
                let place = (!is_nth).then(|| lines.place(kind.template, *hole)).transpose()?;
                kind.looked.push(Looked { column, place, codes });
            }
            let numbered = kind.plan.number.and_then(|p| kind.looked.get(p));
            kind.numbers = numbered.and_then(|l| Numbers::of(l.column));
            if let Some(list) = list {
                out.listed.push(list.of(template).ok_or(bad)?);
            }
        }
        Ok(Some(out))
    }
}
