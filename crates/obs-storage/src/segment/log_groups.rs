//! Log rows that a counting scan cannot tell apart, taken together.
//!
//! What a scan looks at of a JSON line are a few members, and those are columns. Rows of one stream
//! and one template that have the same values there are one group, for which one line is built,
//! of these members alone.

use crate::bin::{Decoder, Malformed};
use crate::records::get_labels;
use crate::segment::SegmentError;
use crate::segment::attrs::AttributesReader;
use crate::segment::columns::{RowIds, Strings, get_ints, skip_ints, skip_packed, skip_strings};
use crate::segment::ids::skip_ids;
use crate::segment::lines::{HOLE, Lines, Template};
use crate::segment::logs::{VisitRows, get_resources, get_table};
use crate::segment::members::{Member, members};
use crate::segment::rows::RowFilter;
use foldhash::HashMap;
use obs_model::{Labels, LineMembers, LogRecord, LogRows, LogScan, Matcher, TimestampNs};
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

    /// The line as it is.
    fn whole(t: &Template) -> Self {
        let mut out = Self::default();
        out.keep(t, 0..t.all.len(), 0);
        out
    }

    fn of(lines: &Lines<'_>, t: &Template, scan: &LineMembers<'_>) -> Result<Self, Malformed> {
        match t.all.first() {
            // Those that have no template.
            Some(&HOLE) if t.all.len() == 1 => return Ok(Self::whole(t)),
            Some(b' ' | b'\n' | b'\r' | b'\t') => return Ok(Self::whole(t)),
            Some(b'{') => {}
            // No object: a variable begins with a letter, digit, sign or point.
            _ => return Ok(Self::default()),
        }
        let Some(all) = members(&t.all) else { return Ok(Self::whole(t)) };
        let key = |m: &Member| t.all.get(m.key.clone()).and_then(|k| std::str::from_utf8(k).ok());
        let mut kept = Vec::new();
        for m in all {
            let column = t.columns.get(m.holes.start).copied();
            if m.is_literal && !lines.are_literals(column.unwrap_or(usize::MAX))? {
                return Ok(Self::whole(t));
            }
            let Some(k) = key(&m) else { return Ok(Self::whole(t)) };
            if (scan.wants)(k, m.has_inside) {
                kept.push(m);
            }
        }
        let mut out = Self::default();
        out.pieces.push(Piece::Mark(b'{'));
        for (i, m) in kept.iter().enumerate() {
            if i > 0 {
                out.pieces.push(Piece::Mark(b','));
            }
            out.keep(t, m.all.clone(), m.holes.start);
        }
        out.pieces.push(Piece::Mark(b'}'));
        // Only the number counts if nothing else can be taken for the member.
        let is_plain = |m: &Member| {
            let plain = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
            !m.has_inside && t.all.get(m.key.clone()).is_some_and(|k| k.iter().all(plain))
        };
        if let Some(n) = scan.number.filter(|_| kept.iter().all(is_plain)) {
            let mut named = kept.iter().filter(|m| key(m) == Some(n.key));
            if let (Some(m), None) = (named.next().filter(|m| m.is_variable), named.next()) {
                out.number = out.kept.iter().position(|h| *h == m.holes.start);
            }
        }
        Ok(out)
    }
}

/// What tells the values of a column apart.
#[derive(Debug)]
enum Codes<'a> {
    One,
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
            Strings::Dict { entries, ids } => {
                Self::Few { values: ids, least: 0, count: entries.len() as u64 }
            }
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

/// A template with what is done with its rows.
struct Task<'a> {
    plan: Plan,
    /// The numbers of the column that counts as such.
    numbers: Option<Numbers<'a>>,
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
        ids: &'a [i64],
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
            Self::Dict { ids, floats } => *floats.get(usize::try_from(*ids.get(i)?).ok()?)?,
            Self::Each(floats) => *floats.get(i)?,
        })
    }
}

/// What is done with the rows of a block.
struct Tasks<'a> {
    /// By template; none where no row is wanted.
    by_template: Vec<Option<Task<'a>>>,
    /// By template, the columns that any task looks at, in the order of the template's variables, with
    /// the place in `kept` of what its own task looks at.
    steps: Vec<Vec<(usize, Option<usize>)>>,
    /// By column; none where nobody looks at it.
    codes: Vec<Option<Codes<'a>>>,
}

/// Rows that a scan cannot tell apart.
struct Group {
    stream: usize,
    template: usize,
    /// Where the values of the first row's kept variables are in their columns.
    at: Vec<usize>,
    times: Vec<i64>,
    values: Vec<f64>,
}

/// Returns whether nothing comes with the records of a block beside their lines that may tell one
/// from another; looked at before anything is unpacked.
fn is_lines_alone(mut d: Decoder<'_>) -> Result<bool, Malformed> {
    // Streams and times, ids of traces and spans, lines, observed times and severities.
    skip_packed(&mut d)?;
    skip_ints(&mut d)?;
    skip_ints(&mut d)?;
    skip_ids(&mut d)?;
    skip_ids(&mut d)?;
    d.raw()?;
    skip_ints(&mut d)?;
    skip_ints(&mut d)?;
    skip_strings(&mut d)?;
    skip_strings(&mut d)?;
    let (resources, _) = get_resources(&mut d)?;
    Ok(resources.iter().all(|r| r.attributes.is_empty())
        && AttributesReader::read(&mut d)?.keys().next().is_none())
}

/// Visits the wanted rows of a block in groups; `None` where they must be looked at one by one.
pub(crate) fn visit(
    block: &[u8],
    filter: &RowFilter<'_>,
    scan: LogScan<'_>,
    visit: VisitRows<'_>,
) -> Result<Option<ControlFlow<()>>, SegmentError> {
    if scan.ids || !filter.needles.is_empty() || !filter.traces.is_empty() {
        return Ok(None);
    }
    if scan.line && scan.members.is_none() {
        return Ok(None);
    }
    let mut d = Decoder::new(block);
    let n = d.len_free()?;
    if !is_lines_alone(d.clone())? {
        return Ok(None);
    }
    let (streams, stream_of) = get_table(&mut d, get_labels)?;
    let admitted = |s: &Labels| Matcher::all_match(filter.matchers, s) && (scan.accept)(s);
    let matching: Vec<bool> = streams.iter().map(admitted).collect();
    if !matching.contains(&true) {
        return Ok(Some(ControlFlow::Continue(())));
    }
    let times = get_ints(&mut d)?;
    skip_ids(&mut d)?;
    skip_ids(&mut d)?;
    let lines = d.raw()?;
    if [stream_of.len(), times.len()] != [n; 2] {
        return Err(d.bad().into());
    }
    let rows =
        Rows { streams: &streams, stream_of: &stream_of, times: &times, matching: &matching };
    match scan.members.filter(|_| scan.line) {
        None => rows.by_stream(filter, visit).map(Some),
        Some(members) => {
            rows.by_members(&Lines::read(&mut Decoder::new(lines))?, filter, &members, visit)
        }
    }
}

/// The columns that decide which rows are wanted.
struct Rows<'a> {
    streams: &'a [Labels],
    stream_of: &'a [usize],
    times: &'a [i64],
    matching: &'a [bool],
}

impl Rows<'_> {
    /// Returns the stream of a row and its time, if it is wanted.
    fn wanted(&self, i: usize, filter: &RowFilter<'_>) -> Option<(usize, i64)> {
        let (s, t) = (*self.stream_of.get(i)?, *self.times.get(i)?);
        (self.matching.get(s) == Some(&true) && filter.admits(t, &[0; 16])).then_some((s, t))
    }

    /// Rows of one stream stand together.
    fn by_stream(
        &self,
        filter: &RowFilter<'_>,
        visit: VisitRows<'_>,
    ) -> Result<ControlFlow<()>, SegmentError> {
        let mut record = LogRecord::default();
        let mut from = 0;
        for run in self.stream_of.chunk_by(|a, b| a == b) {
            let to = from + run.len();
            let times = self.times.get(from..to).unwrap_or_default();
            from = to;
            let of = run.first().copied().unwrap_or_default();
            let Some(stream) =
                self.streams.get(of).filter(|_| self.matching.get(of) == Some(&true))
            else {
                continue;
            };
            let inside: Vec<i64>;
            let times = if times.iter().all(|t| filter.admits(*t, &[0; 16])) {
                times
            } else {
                inside = times.iter().copied().filter(|t| filter.admits(*t, &[0; 16])).collect();
                &inside
            };
            let Some(first) = times.first() else { continue };
            record.stream.clone_from(stream);
            record.timestamp = TimestampNs::from_nanos(*first);
            if visit(&record, LogRows { times, values: &[] })?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn by_members(
        &self,
        lines: &Lines<'_>,
        filter: &RowFilter<'_>,
        scan: &LineMembers<'_>,
        visit: VisitRows<'_>,
    ) -> Result<Option<ControlFlow<()>>, SegmentError> {
        let bad = Malformed(0);
        let Some(tasks) = self.tasks(lines, filter, scan)? else { return Ok(None) };
        let Tasks { by_template: tasks, steps, codes } = tasks;
        let number = scan.number;
        let counts: Vec<bool> =
            self.streams.iter().map(|s| number.is_some_and(|n| (n.of)(s))).collect();
        let (record, line) = (LogRecord::default(), Vec::new());
        let mut out = Building { lines, streams: self.streams, record, line };
        let mut cursors = vec![0_usize; lines.columns.len()];
        let mut groups: Vec<Group> = Vec::new();
        let mut known: HashMap<u64, usize> = HashMap::default();
        let (mut at, mut last) = (Vec::new(), None);
        let kinds = (self.streams.len() * tasks.len()) as u64;
        for i in 0..self.times.len() {
            let template = lines.template_of(i)?;
            let task = tasks.get(template).ok_or(bad)?.as_ref();
            at.resize(task.map_or(0, |t| t.plan.kept.len()), 0);
            // Also a template of which no row is wanted may use columns that others look at.
            for (column, place) in steps.get(template).ok_or(bad)? {
                let cursor = cursors.get_mut(*column).ok_or(bad)?;
                if let Some(slot) = place.and_then(|p| at.get_mut(p)) {
                    *slot = *cursor;
                }
                *cursor += 1;
            }
            let (Some(task), Some((stream, time))) = (task, self.wanted(i, filter)) else {
                continue;
            };
            let numbers = task.numbers.as_ref().filter(|_| counts.get(stream) == Some(&true));
            let mut value = None;
            if let (Some(list), Some(n), Some(p)) = (numbers, number, task.plan.number) {
                let v = list.get(*at.get(p).ok_or(bad)?).ok_or(bad)?;
                if !(n.holds)(v) {
                    continue;
                }
                value = n.is_value.then_some(v);
            }
            // The number of this combination of values.
            let mut key = Some(0_u64);
            for (p, (hole, at)) in task.plan.kept.iter().zip(&at).enumerate() {
                if numbers.is_some() && task.plan.number == Some(p) {
                    continue;
                }
                let columns = &lines.templates.get(template).ok_or(bad)?.columns;
                let column = *columns.get(*hole).ok_or(bad)?;
                key = match codes.get(column).and_then(Option::as_ref).ok_or(bad)? {
                    Codes::One => key,
                    Codes::Few { values, least, count } => {
                        let code = values.get(*at).ok_or(bad)?.wrapping_sub(*least) as u64;
                        key.and_then(|k| k.checked_mul(*count)?.checked_add(code))
                    }
                    Codes::Many => None,
                };
            }
            let kind = (stream * tasks.len() + template) as u64;
            let Some(key) = key.and_then(|k| k.checked_mul(kinds)?.checked_add(kind)) else {
                let rows = LogRows { times: &[time], values: value.as_slice() };
                if out.visit(stream, template, task, &at, rows, visit)?.is_break() {
                    return Ok(Some(ControlFlow::Break(())));
                }
                continue;
            };
            let same = last.filter(|(k, _)| *k == key).map(|(_, g)| g);
            let group = same.unwrap_or_else(|| {
                *known.entry(key).or_insert_with(|| {
                    let (times, values) = (Vec::new(), Vec::new());
                    groups.push(Group { stream, template, at: at.clone(), times, values });
                    groups.len() - 1
                })
            });
            last = Some((key, group));
            let group = groups.get_mut(group).ok_or(bad)?;
            group.times.push(time);
            group.values.extend(value);
        }
        for g in groups {
            let task = tasks.get(g.template).and_then(Option::as_ref).ok_or(bad)?;
            let rows = LogRows { times: &g.times, values: &g.values };
            if out.visit(g.stream, g.template, task, &g.at, rows, visit)?.is_break() {
                return Ok(Some(ControlFlow::Break(())));
            }
        }
        Ok(Some(ControlFlow::Continue(())))
    }

    /// Plans what to do with each template that a wanted row has; `None` where what is looked at
    /// is derived from the row.
    fn tasks<'l>(
        &self,
        lines: &'l Lines<'_>,
        filter: &RowFilter<'_>,
        scan: &LineMembers<'_>,
    ) -> Result<Option<Tasks<'l>>, SegmentError> {
        let bad = Malformed(0);
        let mut is_used = vec![false; lines.templates.len()];
        for i in 0..self.times.len() {
            if self.wanted(i, filter).is_some() {
                *is_used.get_mut(lines.template_of(i)?).ok_or(bad)? = true;
            }
        }
        let mut tasks: Vec<Option<Task<'l>>> = Vec::with_capacity(is_used.len());
        let mut codes: Vec<Option<Codes<'l>>> =
            std::iter::repeat_with(|| None).take(lines.columns.len()).collect();
        for (t, is_used) in lines.templates.iter().zip(&is_used) {
            if !is_used {
                tasks.push(None);
                continue;
            }
            let plan = Plan::of(lines, t, scan)?;
            for hole in &plan.kept {
                let column = *t.columns.get(*hole).ok_or(bad)?;
                let slot = codes.get_mut(column).ok_or(bad)?;
                if slot.is_none() {
                    let Some(c) = Codes::of(lines.column(column)?) else { return Ok(None) };
                    *slot = Some(c);
                }
            }
            let numbered = plan.number.and_then(|p| t.columns.get(*plan.kept.get(p)?));
            let numbers = match numbered {
                Some(c) => Numbers::of(lines.column(*c)?),
                None => None,
            };
            tasks.push(Some(Task { plan, numbers }));
        }
        let looked_at = |column: &usize| codes.get(*column).is_some_and(Option::is_some);
        let steps = lines.templates.iter().zip(&tasks).map(|(t, task)| {
            let place = |hole: usize| task.as_ref()?.plan.kept.iter().position(|k| *k == hole);
            let all = t.columns.iter().enumerate().filter(|(_, c)| looked_at(c));
            all.map(|(hole, c)| (*c, place(hole))).collect()
        });
        let steps = steps.collect();
        Ok(Some(Tasks { by_template: tasks, steps, codes }))
    }
}

/// Builds the lines of groups.
struct Building<'a> {
    lines: &'a Lines<'a>,
    streams: &'a [Labels],
    record: LogRecord,
    line: Vec<u8>,
}

impl Building<'_> {
    fn visit(
        &mut self,
        stream: usize,
        template: usize,
        task: &Task<'_>,
        at: &[usize],
        rows: LogRows<'_>,
        visit: VisitRows<'_>,
    ) -> Result<ControlFlow<()>, SegmentError> {
        let bad = Malformed(template);
        let t = self.lines.templates.get(template).ok_or(bad)?;
        self.line.clear();
        for piece in &task.plan.pieces {
            match piece {
                Piece::Mark(b) => self.line.push(*b),
                Piece::Text(r) => self.line.extend_from_slice(t.all.get(r.clone()).ok_or(bad)?),
                Piece::Value(p) => {
                    let hole = task.plan.kept.get(*p).ok_or(bad)?;
                    let column = *t.columns.get(*hole).ok_or(bad)?;
                    let at = *at.get(*p).ok_or(bad)?;
                    let column = self.lines.column(column)?;
                    column.append(at, RowIds::default(), &mut self.line).ok_or(bad)?;
                }
            }
        }
        let line = std::str::from_utf8(&self.line).map_err(|_| bad)?;
        self.record.line.clear();
        self.record.line.push_str(line);
        let labels = self.streams.get(stream).ok_or(bad)?;
        if self.record.stream != *labels {
            self.record.stream.clone_from(labels);
        }
        let first = rows.times.first().copied().unwrap_or_default();
        self.record.timestamp = TimestampNs::from_nanos(first);
        visit(&self.record, rows)
    }
}
