//! Log rows that a counting scan cannot tell apart, taken together.
//!
//! What a scan looks at of a JSON line are a few members, and those are columns. Rows of one stream of
//! whose templates the same is built, and that have the same values there, are one group, for which
//! one line is built, of these members alone.

use crate::bin::Malformed;
use crate::segment::SegmentError;
use crate::segment::columns::RowIds;
use crate::segment::lines::Lines;
use crate::segment::log_kinds::{Kind, Kinds, Numbers, Piece, RowOf, Told};
use crate::segment::logs::{LogBlock, LogColumns, VisitRows};
use crate::segment::rows::RowFilter;
use foldhash::HashMap;
use obs_model::{Labels, LineMembers, LogRecord, LogRows, LogScan, Matcher, TimestampNs};
use std::ops::{ControlFlow, Range};

/// Rows of a stream that a scan cannot tell apart.
struct Group {
    kind: usize,
    /// The first of them.
    row: RowOf,
    /// What the visitor said to the first.
    is_wanted: bool,
    /// Of those behind the first, if they are wanted.
    times: Vec<i64>,
    values: Vec<f64>,
    left_out: usize,
}

impl Group {
    fn add(&mut self, time: i64, value: Option<f64>) {
        if self.is_wanted {
            self.times.push(time);
            self.values.extend(value);
        } else {
            self.left_out += 1;
        }
    }
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

    /// Returns the group of a row, and whether the row is its first.
    fn get(&mut self, kind: usize, key: u64, row: RowOf) -> Option<(&mut Group, bool)> {
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
            let (times, values) = (Vec::new(), Vec::new());
            self.all.push(Group { kind, row, is_wanted: true, times, values, left_out: 0 });
        }
        Some((self.all.get_mut(at)?, at == next))
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
            if visit(&record, LogRows::at(times))?.is_break() {
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
        let Some(kinds) = Kinds::plan(self.all, &self.stretches, lines, scan)? else {
            return Ok(None);
        };
        if kinds.all.is_empty() {
            return Ok(Some(ControlFlow::Continue(())));
        }
        let mut counting = Counting {
            times: &self.all.times,
            kinds: &kinds,
            scan,
            numbers: Vec::new(),
            groups: Groups::default(),
            out: Building::default(),
        };
        for (stream, rows) in &self.stretches {
            let stream = self.stream(*stream)?;
            counting.begin(stream);
            if let ([kind], [None], true) = (&*kinds.all, &*counting.numbers, kinds.is_one)
                && let Some(told) =
                    kind.told().filter(|t| scan.may_refuse || matches!(t, Told::ByNothing))
            {
                let out = &mut counting.out;
                let flow = match told {
                    Told::ByNothing => {
                        let times = self.all.times.get(rows.clone()).ok_or(bad)?;
                        let first = RowOf { row: rows.start, nth: 0 };
                        out.visit(kind, first, LogRows::at(times), visit)?.map_continue(|_| ())
                    }
                    Told::ByText(ids, count) => {
                        self.by_text(kind, (ids, count), rows.clone(), out, visit)?
                    }
                };
                if flow.is_break() {
                    return Ok(Some(flow));
                }
                continue;
            }
            if kinds.listed.is_empty() {
                let templates = lines.all.templates_of(rows.clone())?;
                for (row, template) in rows.clone().zip(templates) {
                    let of = kinds.of.get(*template as usize);
                    let Some(number) = *of.ok_or(bad)? else { continue };
                    if counting.row(number, RowOf { row, nth: 0 }, visit)?.is_break() {
                        return Ok(Some(ControlFlow::Break(())));
                    }
                }
            }
            for (number, listed) in kinds.listed.iter().enumerate() {
                let before = |row: usize| listed.partition_point(|r| (*r as usize) < row);
                for nth in before(rows.start)..before(rows.end) {
                    let row = RowOf { row: *listed.get(nth).ok_or(bad)? as usize, nth };
                    if counting.row(number, row, visit)?.is_break() {
                        return Ok(Some(ControlFlow::Break(())));
                    }
                }
            }
            if counting.end(visit)?.is_break() {
                return Ok(Some(ControlFlow::Break(())));
            }
        }
        Ok(Some(ControlFlow::Continue(())))
    }

    /// Visits rows that one text tells apart; most are of groups that nobody wants, and cost a look.
    fn by_text(
        &self,
        kind: &Kind<'_>,
        (ids, count): (&[u16], usize),
        rows: Range<usize>,
        out: &mut Building,
        visit: VisitRows<'_>,
    ) -> Result<ControlFlow<()>, SegmentError> {
        let bad = Malformed(rows.start);
        let (ids, times) = (ids.get(rows.clone()), self.all.times.get(rows.clone()));
        let (ids, times) = ids.zip(times).ok_or(bad)?;
        // By text, the first row and the times of the others, where they are wanted.
        let mut groups: Vec<Option<(usize, Vec<i64>)>> = vec![None; count];
        let mut is_unwanted = vec![false; count];
        let (mut left_out, mut last_unwanted) = (0, rows.start);
        for ((row, id), time) in rows.zip(ids).zip(times) {
            let id = usize::from(*id);
            if *is_unwanted.get(id).ok_or(bad)? {
                left_out += 1;
                continue;
            }
            let slot = groups.get_mut(id).ok_or(bad)?;
            if let Some((_, times)) = slot {
                times.push(*time);
                continue;
            }
            match out.visit(kind, RowOf { row, nth: 0 }, LogRows::one(time), visit)? {
                ControlFlow::Continue(true) => *slot = Some((row, Vec::new())),
                ControlFlow::Continue(false) => {
                    *is_unwanted.get_mut(id).ok_or(bad)? = true;
                    last_unwanted = row;
                }
                ControlFlow::Break(()) => return Ok(ControlFlow::Break(())),
            }
        }
        let wanted = groups.iter().flatten().filter(|(_, times)| !times.is_empty());
        let wanted = wanted.map(|(row, times)| (*row, LogRows::at(times)));
        let others = (last_unwanted, LogRows { left_out, ..LogRows::at(&[]) });
        for (row, rows) in wanted.chain((left_out > 0).then_some(others)) {
            if out.visit(kind, RowOf { row, nth: 0 }, rows, visit)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// Puts the rows of one stream after another into groups.
struct Counting<'a> {
    times: &'a [i64],
    kinds: &'a Kinds<'a>,
    scan: &'a LineMembers<'a>,
    /// By kind, of this stream: what counts as a number, and the numbers.
    numbers: Vec<Option<(usize, &'a Numbers<'a>)>>,
    groups: Groups,
    out: Building,
}

impl Counting<'_> {
    /// Goes on with rows of another stream.
    fn begin(&mut self, stream: &Labels) {
        let counts = self.scan.number.is_some_and(|n| (n.of)(stream));
        self.numbers.clear();
        self.numbers.extend(self.kinds.all.iter().map(|k| k.number(counts)));
        self.groups.clear(self.kinds.all.len());
        self.out.begin(stream);
    }

    /// Adds a row of a kind to its group, or visits it.
    #[inline]
    fn row(
        &mut self,
        number: usize,
        row: RowOf,
        visit: VisitRows<'_>,
    ) -> Result<ControlFlow<()>, SegmentError> {
        let bad = Malformed(row.row);
        let (kind, numbers) =
            self.kinds.all.get(number).zip(self.numbers.get(number)).ok_or(bad)?;
        let mut value = None;
        if let (Some((p, list)), Some(n)) = (numbers, self.scan.number) {
            let at = kind.looked.get(*p).and_then(|l| l.at(row)).ok_or(bad)?;
            let v = list.get(at).ok_or(bad)?;
            if !(n.holds)(v) {
                return Ok(ControlFlow::Continue(()));
            }
            value = n.is_value.then_some(v);
        }
        let time = *self.times.get(row.row).ok_or(bad)?;
        let one = LogRows { values: value.as_slice(), ..LogRows::one(&time) };
        let Some(key) = kind.key(row, numbers.map(|(p, _)| p))? else {
            return Ok(self.out.visit(kind, row, one, visit)?.map_continue(|_| ()));
        };
        let (group, is_first) = self.groups.get(number, key, row).ok_or(bad)?;
        if !is_first || !self.scan.may_refuse {
            group.add(time, value);
            return Ok(ControlFlow::Continue(()));
        }
        let flow = self.out.visit(kind, row, one, visit)?;
        Ok(flow.map_continue(|is_wanted| group.is_wanted = is_wanted))
    }

    /// Visits the groups of the stream.
    fn end(&mut self, visit: VisitRows<'_>) -> Result<ControlFlow<()>, SegmentError> {
        for g in &self.groups.all {
            let kind = self.kinds.all.get(g.kind).ok_or(Malformed(g.row.row))?;
            let rows = LogRows { times: &g.times, values: &g.values, left_out: g.left_out };
            if rows.count() > 0 && self.out.visit(kind, g.row, rows, visit)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
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
        row: RowOf,
        rows: LogRows<'_>,
        visit: VisitRows<'_>,
    ) -> Result<ControlFlow<(), bool>, SegmentError> {
        let bad = Malformed(row.row);
        self.line.clear();
        for piece in &kind.plan.pieces {
            match piece {
                Piece::Mark(b) => self.line.push(*b),
                Piece::Text(r) => {
                    self.line.extend_from_slice(kind.template.all.get(r.clone()).ok_or(bad)?);
                }
                Piece::Value(p) => {
                    let l = kind.looked.get(*p).ok_or(bad)?;
                    let at = l.at(row).ok_or(bad)?;
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
