//! Log rows that a counting scan cannot tell apart, taken together.
//!
//! What a scan looks at of a JSON line are a few members, and those are columns. Rows of one stream of
//! whose templates the same is built, and that have the same values there, are one group, for which
//! one line is built, of these members alone.

use crate::bin::Malformed;
use crate::segment::SegmentError;
use crate::segment::columns::{RowIds, Strings};
use crate::segment::lines::{HOLE, Key, Lines, Place, Template};
use crate::segment::logs::{LogBlock, LogColumns, VisitRows};
use crate::segment::members::Member;
use crate::segment::rows::RowFilter;
use foldhash::HashMap;
use memchr::memmem::Finder;
use obs_model::{Labels, LineMembers, LineRun, LogRecord, LogRows, LogScan, Matcher, TimestampNs};
use std::ops::{ControlFlow, Range};

/// A piece of a line that is built.
#[derive(Debug, Clone)]
enum Piece {
    Mark(u8),
    /// Text of the template.
    Text(Range<usize>),
    /// The value of a kept variable.
    Value(usize),
}

/// What is built of a template's lines.
#[derive(Debug, Default)]
struct Plan {
    pieces: Vec<Piece>,
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

    fn new(t: &Template, part: &Part<'_>, keys: &[Key], scan: &LineMembers<'_>) -> Self {
        let mut out = Self::default();
        let kept = match part {
            Part::Nothing => return out,
            Part::Whole => {
                out.keep(t, 0..t.all.len(), 0);
                return out;
            }
            Part::Members(kept) => kept,
        };
        out.pieces.push(Piece::Mark(b'{'));
        for (i, (_, m)) in kept.iter().enumerate() {
            if i > 0 {
                out.pieces.push(Piece::Mark(b','));
            }
            out.keep(t, m.all.clone(), m.holes.start);
        }
        out.pieces.push(Piece::Mark(b'}'));
        // Only the number counts if nothing else can be taken for the member.
        let key = |number: usize| keys.get(number);
        let is_plain =
            |(k, m): &&(usize, Member)| !m.has_inside && key(*k).is_some_and(|k| k.is_plain);
        if let Some(n) = scan.number.filter(|_| kept.iter().all(is_plain)) {
            let mut named = kept.iter().filter(|(k, _)| key(*k).is_some_and(|k| k.text == n.key));
            if let (Some((_, m)), None) = (named.next().filter(|m| m.1.is_variable), named.next()) {
                out.number = out.kept.iter().position(|h| *h == m.holes.start);
            }
        }
        out
    }
}

/// What of a template's lines is looked at.
enum Part<'a> {
    Nothing,
    Whole,
    /// Members, with the numbers of their keys.
    Members(Vec<&'a (usize, Member)>),
}

/// Tells what is looked at, and remembers what it was told of keys.
struct Looks<'a, 's> {
    lines: Lines<'a>,
    scan: &'s LineMembers<'s>,
    /// By key, whether it is wanted without and with something inside of it.
    wanted: Vec<[Option<bool>; 2]>,
    runs: Vec<Run<'s>>,
}

/// A run that is looked for.
struct Run<'s> {
    finder: Finder<'s>,
    is_needed: bool,
    /// By column, whether a value of it may hold the run.
    columns: Vec<Option<bool>>,
}

impl Run<'_> {
    fn may_be_in(
        &mut self,
        lines: &Lines<'_>,
        t: &Template,
        m: &Member,
    ) -> Result<bool, SegmentError> {
        if self.finder.find(t.all.get(m.all.clone()).unwrap_or_default()).is_some() {
            return Ok(true);
        }
        for column in t.columns.get(m.holes.clone()).unwrap_or_default() {
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
}

/// Returns whether letters or digits of an object stand in its members alone, and nothing behind a
/// value could be taken for a part of it.
fn is_all_in_members(t: &Template, all: &[(usize, Member)]) -> bool {
    let from = |at: usize| t.all.get(at..).unwrap_or_default();
    let spaced = |(_, m): &(usize, Member)| {
        m.is_literal && from(m.all.end).first().is_some_and(u8::is_ascii_whitespace)
    };
    let end = all.last().map_or(1, |(_, m)| m.all.end);
    from(end).trim_ascii() == b"}" && !all.iter().any(spaced)
}

impl<'a, 's> Looks<'a, 's> {
    fn new(lines: Lines<'a>, scan: &'s LineMembers<'s>) -> Self {
        let run = |r: &'s LineRun| Run {
            finder: Finder::new(r.text.as_bytes()),
            is_needed: r.is_needed,
            columns: vec![None; lines.all.len()],
        };
        let wanted = vec![[None; 2]; lines.all.shapes().keys.len()];
        Self { lines, scan, wanted, runs: scan.runs.iter().map(run).collect() }
    }

    fn wants(&mut self, key: usize, has_inside: bool) -> Option<bool> {
        let text = &self.lines.all.shapes().keys.get(key)?.text;
        let slot = self.wanted.get_mut(key)?.get_mut(usize::from(has_inside))?;
        Some(*slot.get_or_insert_with(|| (self.scan.wants)(text, has_inside)))
    }

    /// Returns what is looked at of a template's lines; `number` is the template's. `None` if there are
    /// none, or they lack what wanted lines have.
    fn of(&mut self, number: usize, t: &Template) -> Result<Option<Part<'a>>, SegmentError> {
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
        let Some(all) = self.lines.all.shapes().of(number) else { return Ok(Some(Part::Whole)) };
        if !self.runs.is_empty() && !is_all_in_members(t, all) {
            return Ok(Some(Part::Whole));
        }
        let mut kept = Vec::new();
        let mut found = vec![false; self.runs.len()];
        for one @ (key, m) in all {
            let column = t.columns.get(m.holes.start).copied();
            if m.is_literal && !self.lines.are_literals(column.unwrap_or(usize::MAX))? {
                return Ok(Some(Part::Whole));
            }
            let mut is_wanted = self.wants(*key, m.has_inside).ok_or(Malformed(*key))?;
            for (run, found) in self.runs.iter_mut().zip(&mut found) {
                let may = run.may_be_in(&self.lines, t, m)?;
                *found |= may;
                is_wanted |= may;
            }
            if is_wanted {
                kept.push(one);
            }
        }
        let lacks = self.runs.iter().zip(found).any(|(run, found)| run.is_needed && !found);
        Ok((!lacks).then_some(Part::Members(kept)))
    }

    /// Writes what tells the lines that are built apart from those of other templates: their text,
    /// with marks for variables, and of each variable the column, and how many values of it stand
    /// before in a row.
    fn describe(t: &Template, part: &Part<'_>, out: &mut Vec<u8>) -> Option<()> {
        out.clear();
        let mut stretch = |text: Range<usize>, holes: Range<usize>| -> Option<()> {
            let text = t.all.get(text)?;
            out.extend_from_slice(&u32::try_from(text.len()).ok()?.to_le_bytes());
            out.extend_from_slice(text);
            for hole in holes {
                let (before, rest) = t.columns.split_at_checked(hole)?;
                let column = *rest.first()?;
                let earlier = before.iter().filter(|c| **c == column).count();
                out.extend_from_slice(&u32::try_from(column).ok()?.to_le_bytes());
                out.extend_from_slice(&u32::try_from(earlier).ok()?.to_le_bytes());
            }
            Some(())
        };
        match part {
            Part::Nothing => {}
            Part::Whole => {
                stretch(0..t.all.len(), 0..t.columns.len())?;
                // A whole line is no single member.
                out.push(b'=');
            }
            Part::Members(kept) => {
                stretch(0..0, 0..0)?;
                for (_, m) in kept {
                    stretch(m.all.clone(), m.holes.clone())?;
                }
            }
        }
        Some(())
    }
}

/// What tells the values of a column apart.
#[derive(Debug, Clone, Copy)]
enum Codes<'a> {
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
    /// Each is taken for different from all others.
    Many,
}

/// Numbers of a column that are compared as such at most this apart.
const FEW: u64 = 4096;

impl<'a> Codes<'a> {
    /// Returns `None` for a column whose values are derived from the row.
    fn of(column: &'a Strings) -> Option<Self> {
        Some(match column {
            Strings::Empty | Strings::Const(_) => Self::One,
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
enum Numbers<'a> {
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

    fn get(&self, i: usize) -> Option<f64> {
        Some(match self {
            Self::One(v) => *v,
            Self::Ints { values, divisor } => *values.get(i)? as f64 / divisor,
            Self::Dict { ids, floats } => *floats.get(usize::from(*ids.get(i)?))?,
            Self::Each(floats) => *floats.get(i)?,
        })
    }
}

/// A variable that is looked at.
#[derive(Debug, Clone, Copy)]
struct Looked<'a> {
    column: &'a Strings,
    place: Place<'a>,
    codes: Codes<'a>,
}

/// Templates of whose lines the same is built, of the same columns.
struct Kind<'a> {
    /// One of them.
    template: &'a Template,
    plan: Plan,
    /// Those that the plan keeps.
    looked: Vec<Looked<'a>>,
    /// The numbers of the one that counts as such.
    numbers: Option<Numbers<'a>>,
}

impl Kind<'_> {
    /// Returns the one that counts as a number, and its numbers; of a stream where that is so.
    fn number(&self, counts: bool) -> Option<(usize, &Numbers<'_>)> {
        self.plan.number.zip(self.numbers.as_ref()).filter(|_| counts)
    }

    /// Returns the number of a row's combination of values; `None` if it is like no other.
    #[inline]
    fn key(&self, row: usize, but: Option<usize>) -> Result<Option<u64>, Malformed> {
        let bad = Malformed(row);
        let mut key = 0_u64;
        for (p, l) in self.looked.iter().enumerate() {
            if but == Some(p) {
                continue;
            }
            let (code, count) = match l.codes {
                Codes::One => continue,
                Codes::Dict { ids, count } => {
                    let at = l.place.of(row).ok_or(bad)?;
                    (u64::from(*ids.get(at).ok_or(bad)?), count)
                }
                Codes::Few { values, least, count } => {
                    let at = l.place.of(row).ok_or(bad)?;
                    (values.get(at).ok_or(bad)?.wrapping_sub(least) as u64, count)
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

/// What is done with the rows of a block.
struct Kinds<'a> {
    all: Vec<Kind<'a>>,
    /// By template, the number of its kind; none of those that no wanted line has.
    of: Vec<Option<usize>>,
}

/// Rows of a stream that a scan cannot tell apart.
struct Group {
    kind: usize,
    /// The first of them.
    row: usize,
    times: Vec<i64>,
    values: Vec<f64>,
}

/// The groups of a stream, found by kind and number of the combination.
#[derive(Default)]
struct Groups {
    all: Vec<Group>,
    /// Of low numbers, by kind.
    few: Vec<[u32; Self::FEW]>,
    others: HashMap<(usize, u64), usize>,
}

impl Groups {
    const FEW: usize = 64;
    const NONE: u32 = u32::MAX;

    fn clear(&mut self, kinds: usize) {
        self.all.clear();
        self.few.clear();
        self.few.resize(kinds, [Self::NONE; Self::FEW]);
        self.others.clear();
    }

    fn get(&mut self, kind: usize, key: u64, row: usize) -> Option<&mut Group> {
        let next = self.all.len();
        let slot = usize::try_from(key).ok().and_then(|k| self.few.get_mut(kind)?.get_mut(k));
        let at = match slot {
            Some(slot) => {
                if *slot == Self::NONE {
                    *slot = u32::try_from(next).ok()?;
                }
                *slot as usize
            }
            None => *self.others.entry((kind, key)).or_insert(next),
        };
        if at == next {
            self.all.push(Group { kind, row, times: Vec::new(), values: Vec::new() });
        }
        self.all.get_mut(at)
    }
}

/// Visits the wanted rows of a block in groups; `None` where they must be looked at one by one.
pub(crate) fn visit(
    block: LogBlock<'_>,
    filter: &RowFilter<'_>,
    scan: LogScan<'_>,
    visit: VisitRows<'_>,
) -> Result<Option<ControlFlow<()>>, SegmentError> {
    if scan.ids || !filter.traces.is_empty() {
        return Ok(None);
    }
    // Who looks for something in members leaves out the lines that lack it.
    if !filter.needles.is_empty() && scan.members.is_none_or(|m| m.runs.is_empty()) {
        return Ok(None);
    }
    if (scan.line && scan.members.is_none()) || !block.is_lines_alone()? {
        return Ok(None);
    }
    let admitted = |s: &Labels| Matcher::all_match(filter.matchers, s) && (scan.accept)(s);
    let matching: Vec<bool> = block.columns.streams.iter().map(admitted).collect();
    if !matching.contains(&true) {
        return Ok(Some(ControlFlow::Continue(())));
    }
    let rows = Rows { all: block.columns, stretches: stretches(block.columns, &matching, filter) };
    match scan.members.filter(|_| scan.line) {
        None => rows.by_stream(visit).map(Some),
        Some(members) => rows.by_members(block.lines()?, &members, visit),
    }
}

/// Returns the wanted rows: stretches of one stream each.
fn stretches(
    all: &LogColumns,
    matching: &[bool],
    filter: &RowFilter<'_>,
) -> Vec<(usize, Range<usize>)> {
    let admits = |t: i64| filter.admits(t, &[0; 16]);
    let is_whole = admits(all.bounds.0) && admits(all.bounds.1);
    let mut out = Vec::new();
    for (stream, rows) in all.runs() {
        let stream = *stream as usize;
        if matching.get(stream) != Some(&true) {
            continue;
        }
        if is_whole {
            out.push((stream, rows.clone()));
            continue;
        }
        let mut at = rows.start;
        let times = all.times.get(rows.clone()).unwrap_or_default();
        for part in times.chunk_by(|a, b| admits(*a) == admits(*b)) {
            if part.first().is_some_and(|t| admits(*t)) {
                out.push((stream, at..at + part.len()));
            }
            at += part.len();
        }
    }
    out
}

/// The wanted rows of a block.
struct Rows<'a> {
    all: &'a LogColumns,
    stretches: Vec<(usize, Range<usize>)>,
}

impl Rows<'_> {
    fn stream(&self, number: usize) -> Result<&Labels, Malformed> {
        self.all.streams.get(number).ok_or(Malformed(number))
    }

    fn by_stream(&self, visit: VisitRows<'_>) -> Result<ControlFlow<()>, SegmentError> {
        let mut record = LogRecord::default();
        for (stream, rows) in &self.stretches {
            let times = self.all.times.get(rows.clone()).unwrap_or_default();
            let Some(first) = times.first() else { continue };
            record.stream.clone_from(self.stream(*stream)?);
            record.timestamp = TimestampNs::from_nanos(*first);
            if visit(&record, LogRows { times, values: &[] })?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn by_members(
        &self,
        lines: Lines<'_>,
        scan: &LineMembers<'_>,
        visit: VisitRows<'_>,
    ) -> Result<Option<ControlFlow<()>>, SegmentError> {
        let bad = Malformed(0);
        let Some(kinds) = self.kinds(lines, scan)? else { return Ok(None) };
        if kinds.all.is_empty() {
            return Ok(Some(ControlFlow::Continue(())));
        }
        let mut out = Building::default();
        let mut groups = Groups::default();
        for (stream, rows) in &self.stretches {
            let stream = self.stream(*stream)?;
            let counts = scan.number.is_some_and(|n| (n.of)(stream));
            let numbers: Vec<_> = kinds.all.iter().map(|k| k.number(counts)).collect();
            groups.clear(kinds.all.len());
            out.begin(stream);
            for row in rows.clone() {
                let of = kinds.of.get(lines.all.template_of(row)?);
                let Some(number) = *of.ok_or(bad)? else { continue };
                let (kind, numbers) = kinds.all.get(number).zip(numbers.get(number)).ok_or(bad)?;
                let mut value = None;
                if let (Some((p, list)), Some(n)) = (numbers, scan.number) {
                    let at = kind.looked.get(*p).and_then(|l| l.place.of(row)).ok_or(bad)?;
                    let v = list.get(at).ok_or(bad)?;
                    if !(n.holds)(v) {
                        continue;
                    }
                    value = n.is_value.then_some(v);
                }
                let time = *self.all.times.get(row).ok_or(bad)?;
                let Some(key) = kind.key(row, numbers.map(|(p, _)| p))? else {
                    let rows = LogRows { times: &[time], values: value.as_slice() };
                    if out.visit(kind, row, rows, visit)?.is_break() {
                        return Ok(Some(ControlFlow::Break(())));
                    }
                    continue;
                };
                let group = groups.get(number, key, row).ok_or(bad)?;
                group.times.push(time);
                group.values.extend(value);
            }
            for g in &groups.all {
                let kind = kinds.all.get(g.kind).ok_or(bad)?;
                let rows = LogRows { times: &g.times, values: &g.values };
                if out.visit(kind, g.row, rows, visit)?.is_break() {
                    return Ok(Some(ControlFlow::Break(())));
                }
            }
        }
        Ok(Some(ControlFlow::Continue(())))
    }

    /// Plans what to do with each template that a wanted row has; `None` where what is looked at
    /// is derived from the row.
    fn kinds<'l>(
        &self,
        lines: Lines<'l>,
        scan: &LineMembers<'_>,
    ) -> Result<Option<Kinds<'l>>, SegmentError> {
        let bad = Malformed(0);
        let templates = &lines.all.templates;
        // Mostly all rows are wanted, and every template has some.
        let rows: usize = self.stretches.iter().map(|(_, rows)| rows.len()).sum();
        let is_whole = rows == self.all.times.len();
        let mut is_used = vec![is_whole; templates.len()];
        if !is_whole {
            for row in self.stretches.iter().flat_map(|(_, rows)| rows.clone()) {
                *is_used.get_mut(lines.all.template_of(row)?).ok_or(bad)? = true;
            }
        }
        let mut codes: Vec<Option<Codes<'l>>> = vec![None; lines.all.len()];
        let mut known: HashMap<Vec<u8>, usize> = HashMap::default();
        let mut looks = Looks::new(lines, scan);
        let mut text = Vec::new();
        let mut out = Kinds { all: Vec::new(), of: vec![None; templates.len()] };
        for (number, t) in templates.iter().enumerate() {
            if is_used.get(number) != Some(&true) {
                continue;
            }
            let Some(part) = looks.of(number, t)? else { continue };
            Looks::describe(t, &part, &mut text).ok_or(bad)?;
            let of = out.of.get_mut(number).ok_or(bad)?;
            if let Some(same) = known.get(&text) {
                *of = Some(*same);
                continue;
            }
            *of = Some(out.all.len());
            known.insert(text.clone(), out.all.len());
            let plan = Plan::new(t, &part, &lines.all.shapes().keys, scan);
            let mut looked = Vec::with_capacity(plan.kept.len());
            for hole in &plan.kept {
                let number = *t.columns.get(*hole).ok_or(bad)?;
                let column = lines.column(number)?;
                let slot = codes.get_mut(number).ok_or(bad)?;
                if slot.is_none() {
                    *slot = Codes::of(column);
                }
                let Some(codes) = *slot else { return Ok(None) };
                looked.push(Looked { column, place: lines.place(t, *hole)?, codes });
            }
            let numbered = plan.number.and_then(|p| looked.get(p));
            let numbers = numbered.and_then(|l| Numbers::of(l.column));
            out.all.push(Kind { template: t, plan, looked, numbers });
        }
        Ok(Some(out))
    }
}

/// Builds the lines of groups.
#[derive(Default)]
struct Building {
    record: LogRecord,
    line: Vec<u8>,
}

impl Building {
    /// Goes on with groups of another stream.
    fn begin(&mut self, stream: &Labels) {
        self.record.stream.clone_from(stream);
    }

    fn visit(
        &mut self,
        kind: &Kind<'_>,
        row: usize,
        rows: LogRows<'_>,
        visit: VisitRows<'_>,
    ) -> Result<ControlFlow<()>, SegmentError> {
        let bad = Malformed(row);
        self.line.clear();
        for piece in &kind.plan.pieces {
            match piece {
                Piece::Mark(b) => self.line.push(*b),
                Piece::Text(r) => {
                    self.line.extend_from_slice(kind.template.all.get(r.clone()).ok_or(bad)?);
                }
                Piece::Value(p) => {
                    let l = kind.looked.get(*p).ok_or(bad)?;
                    let at = l.place.of(row).ok_or(bad)?;
                    l.column.append(at, RowIds::default(), &mut self.line).ok_or(bad)?;
                }
            }
        }
        let line = std::str::from_utf8(&self.line).map_err(|_| bad)?;
        self.record.line.clear();
        self.record.line.push_str(line);
        let first = rows.times.first().copied().unwrap_or_default();
        self.record.timestamp = TimestampNs::from_nanos(first);
        visit(&self.record, rows)
    }
}
