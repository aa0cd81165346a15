//! Attributes in columns: rows name their shape (the list of keys and types), and each key and
//! type has a column of its own.

use crate::bin::{Decoder, Encoder, Malformed};
use crate::records::{get_value, put_value};
use crate::segment::SegmentError;
use crate::segment::columns::{
    Context, RowIds, SameAs, Strings, get_ints, get_numbers, get_packed, get_strings, get_texts,
    put_ints, put_packed, put_strings, put_texts,
};
use crate::segment::file::{SegmentFile, SegmentWriter};
use crate::segment::kept::{Keeper, Measured, Taken};
use crate::segment::parts::{LONG_BYTES, PartCache, PartWriter, Parts};
use foldhash::HashMap;
use obs_model::{AttributeValue, Attributes, FieldValue};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

const EMPTY: u8 = 0;
const STRING: u8 = 1;
const BOOL: u8 = 2;
const INT: u8 = 3;
const DOUBLE: u8 = 4;
const OTHER: u8 = 5;
/// A string kept as parts; only in blocks, a value itself is [`STRING`].
const LONG: u8 = 6;

const fn tag(v: &AttributeValue) -> u8 {
    match v {
        AttributeValue::Empty => EMPTY,
        AttributeValue::String(s) if s.len() >= LONG_BYTES => LONG,
        AttributeValue::String(_) => STRING,
        AttributeValue::Bool(_) => BOOL,
        AttributeValue::Int(_) => INT,
        AttributeValue::Double(_) => DOUBLE,
        AttributeValue::Bytes(_) | AttributeValue::Array(_) | AttributeValue::Map(_) => OTHER,
    }
}

/// Where long texts go.
#[derive(Debug)]
pub(crate) struct Sink<'a> {
    pub(crate) out: &'a mut SegmentWriter,
    pub(crate) parts: &'a mut PartWriter,
}

/// Writes doubles: as scaled integers when all are exact decimals, else their bits.
pub(crate) fn put_doubles(e: &mut Encoder, values: &[f64]) {
    for places in 0..=6_i32 {
        let power = 10_f64.powi(places);
        let scaled = |v: &f64| {
            let d = (v * power).round();
            let exact = d.abs() < 9e15 && (d / power).to_bits() == v.to_bits();
            exact.then_some(d as i64)
        };
        if let Some(list) = values.iter().map(scaled).collect::<Option<Vec<_>>>() {
            e.u8(places as u8);
            put_ints(e, &list);
            return;
        }
    }
    e.u8(255);
    put_ints(e, &values.iter().map(|v| v.to_bits() as i64).collect::<Vec<_>>());
}

pub(crate) fn get_doubles(d: &mut Decoder<'_>) -> Result<Vec<f64>, Malformed> {
    let places = d.u8()?;
    let ints = get_ints(d)?;
    if places == 255 {
        return Ok(ints.into_iter().map(|v| f64::from_bits(v as u64)).collect());
    }
    let power = 10_f64.powi(places.into());
    Ok(ints.into_iter().map(|v| v as f64 / power).collect())
}

/// Writes the attributes of a block's rows.
pub(crate) fn put_attributes(
    e: &mut Encoder,
    rows: &[&Attributes],
    sink: &mut Sink<'_>,
) -> Result<(), SegmentError> {
    let mut columns: HashMap<(&str, u8), usize> = HashMap::default();
    let mut names: Vec<(&str, u8)> = Vec::new();
    let mut values: Vec<Vec<&AttributeValue>> = Vec::new();
    let mut shapes: HashMap<Vec<u32>, i64> = HashMap::default();
    let mut shape_list: Vec<Vec<u32>> = Vec::new();
    let mut ids = Vec::with_capacity(rows.len());
    let mut scratch = Vec::new();
    for row in rows {
        scratch.clear();
        for (k, v) in row.iter() {
            let key = (k.as_str(), tag(v));
            let column = *columns.entry(key).or_insert_with(|| {
                names.push(key);
                values.push(Vec::new());
                names.len() - 1
            });
            if let Some(list) = values.get_mut(column) {
                list.push(v);
            }
            scratch.push(column as u32);
        }
        let id = shapes.get(&scratch).copied().unwrap_or_else(|| {
            let id = shape_list.len() as i64;
            shapes.insert(scratch.clone(), id);
            shape_list.push(scratch.clone());
            id
        });
        ids.push(id);
    }
    let mut head = Encoder::default();
    head.len(names.len());
    for (name, tag) in &names {
        head.u8(*tag);
        head.str(name);
    }
    head.len(shape_list.len());
    for s in &shape_list {
        head.len(s.len());
        s.iter().for_each(|c| head.uint(u64::from(*c)));
    }
    put_packed(e, &head.bytes);
    put_ints(e, &ids);
    for ((_, tag), list) in names.iter().zip(&values) {
        let mut body = Encoder::default();
        put_column(&mut body, *tag, list, sink)?;
        e.raw(&body.bytes);
    }
    Ok(())
}

fn put_column(
    e: &mut Encoder,
    tag: u8,
    values: &[&AttributeValue],
    sink: &mut Sink<'_>,
) -> Result<(), SegmentError> {
    let texts =
        || -> Vec<&[u8]> { values.iter().filter_map(|v| v.as_str().map(str::as_bytes)).collect() };
    match tag {
        STRING => put_strings(e, &texts(), Context::default()),
        LONG => {
            let (mut counts, mut numbers) = (Vec::new(), Vec::new());
            for t in texts() {
                counts.push(sink.parts.add(sink.out, t, &mut numbers)? as i64);
            }
            put_ints(e, &counts);
            put_ints(e, &numbers);
        }
        BOOL | INT => {
            let int = |v: &&AttributeValue| match v {
                AttributeValue::Bool(b) => i64::from(*b),
                AttributeValue::Int(i) => *i,
                _ => 0,
            };
            put_ints(e, &values.iter().map(int).collect::<Vec<_>>());
        }
        DOUBLE => {
            let double =
                |v: &&AttributeValue| if let AttributeValue::Double(d) = v { *d } else { 0.0 };
            put_doubles(e, &values.iter().map(double).collect::<Vec<_>>());
        }
        OTHER => {
            let bytes: Vec<Vec<u8>> = values
                .iter()
                .map(|v| {
                    let mut one = Encoder::default();
                    put_value(&mut one, v);
                    one.bytes
                })
                .collect();
            put_texts(e, &bytes.iter().map(Vec::as_slice).collect::<Vec<_>>());
        }
        _ => {}
    }
    Ok(())
}

#[derive(Debug)]
enum Values {
    Empty,
    Strings(Strings),
    /// Number of the first part of each value, and one past the last; the parts' numbers.
    Long {
        starts: Vec<usize>,
        numbers: Vec<i64>,
    },
    Bools(Vec<i64>),
    Ints(Vec<i64>),
    Doubles(Vec<f64>),
    Other(crate::segment::columns::Texts),
}

fn get_column(tag: u8, d: &mut Decoder<'_>) -> Result<Values, Malformed> {
    Ok(match tag {
        EMPTY => Values::Empty,
        STRING => Values::Strings(get_strings(d)?),
        LONG => {
            let mut end = 0_usize;
            let mut starts = vec![0];
            for n in get_ints(d)? {
                let n = usize::try_from(n).map_err(|_| d.bad())?;
                end = end.checked_add(n).ok_or(d.bad())?;
                starts.push(end);
            }
            Values::Long { starts, numbers: get_ints(d)? }
        }
        BOOL => Values::Bools(get_ints(d)?),
        INT => Values::Ints(get_ints(d)?),
        DOUBLE => Values::Doubles(get_doubles(d)?),
        OTHER => Values::Other(get_texts(d)?),
        _ => return Err(d.bad()),
    })
}

impl Measured for Values {
    fn bytes(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Strings(s) => s.bytes(),
            Self::Long { starts, numbers } => starts.bytes() + numbers.bytes(),
            Self::Bools(v) | Self::Ints(v) => v.bytes(),
            Self::Doubles(v) => v.bytes(),
            Self::Other(t) => t.bytes(),
        }
    }
}

/// What is needed to read long texts.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    pub(crate) file: &'a SegmentFile,
    pub(crate) parts: &'a Parts,
    /// The number of the block's first part is relative to this.
    pub(crate) base: i64,
    pub(crate) cache: &'a mut PartCache,
    /// Where what is read stays.
    pub(crate) keeper: Option<&'a Keeper>,
}

impl Source<'_> {
    /// Lends it for as long as a block is looked at.
    pub(crate) fn reborrow(&mut self) -> Source<'_> {
        let Source { file, parts, base, keeper, .. } = *self;
        Source { file, parts, base, cache: &mut *self.cache, keeper }
    }
}

/// One key and type of value, and where its values lie.
#[derive(Debug)]
struct Column {
    name: String,
    tag: u8,
    packed: Range<usize>,
    values: OnceLock<Arc<Values>>,
}

/// Which attributes the rows of a block have; the values are read when they are asked for.
#[derive(Debug)]
pub(crate) struct AttributeIndex {
    columns: Vec<Column>,
    shapes: Vec<Vec<usize>>,
    /// The number of each row's shape.
    ids: Vec<u32>,
    /// Bytes of the values that were read.
    taken: Taken,
}

impl Measured for AttributeIndex {
    fn bytes(&self) -> usize {
        let names: usize = self.columns.iter().map(|c| size_of::<Column>() + c.name.len()).sum();
        names + self.shapes.iter().map(Measured::bytes).sum::<usize>() + self.ids.bytes()
    }
}

impl AttributeIndex {
    /// Reads what [`put_attributes`] wrote.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let d = &mut Decoder::new(bytes);
        let head = get_packed(d)?;
        let mut h = Decoder::new(&head);
        let mut columns = Vec::new();
        for _ in 0..h.len()? {
            let tag = h.u8()?;
            let (packed, values) = (0..0, OnceLock::new());
            columns.push(Column { name: h.string()?, tag, packed, values });
        }
        let shapes: Vec<Vec<usize>> = (0..h.len()?)
            .map(|_| {
                let n = h.len()?;
                (0..n)
                    .map(|_| {
                        h.len_free()
                            .and_then(|c| if c < columns.len() { Ok(c) } else { Err(h.bad()) })
                    })
                    .collect()
            })
            .collect::<Result<_, Malformed>>()?;
        let most = u32::try_from(shapes.len()).map_err(|_| d.bad())?;
        let ids = get_numbers(d, most)?;
        if ids.contains(&most) {
            return Err(d.bad());
        }
        for c in &mut columns {
            let len = d.raw()?.len();
            c.packed = d.at() - len..d.at();
        }
        Ok(Self { columns, shapes, ids, taken: Taken::default() })
    }

    /// Returns the keys of the block's attributes.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().map(|c| c.name.as_str())
    }

    fn shape(&self, id: u32) -> Result<&[usize], Malformed> {
        Ok(self.shapes.get(id as usize).ok_or(Malformed(id as usize))?)
    }

    /// Returns the bytes of values that were read since.
    pub(crate) fn grown(&self) -> usize {
        self.taken.get()
    }

    /// Returns a column's values; `bytes` returns those that the index was read from.
    fn values<'b>(
        &self,
        bytes: impl FnOnce() -> Result<&'b [u8], SegmentError>,
        column: usize,
    ) -> Result<&Arc<Values>, SegmentError> {
        let c = self.columns.get(column).ok_or(Malformed(column))?;
        self.taken.once(&c.values, || {
            let packed = bytes()?.get(c.packed.clone()).ok_or(Malformed(column))?;
            Ok(Arc::new(get_column(c.tag, &mut Decoder::new(packed))?))
        })
    }

    /// Returns what the rows have under one key; `bytes` returns those that the index was read from.
    pub(crate) fn under<'b>(
        &self,
        bytes: impl Fn() -> Result<&'b [u8], SegmentError>,
        key: &str,
    ) -> Result<KeyColumn, SegmentError> {
        let mut out = KeyColumn::default();
        // Number of the column among those of the key.
        let mut local = vec![None; self.columns.len()];
        for (i, (c, place)) in self.columns.iter().zip(&mut local).enumerate() {
            if c.name == key {
                *place = Some(out.columns.len());
                out.columns.push(self.values(&bytes, i)?.clone());
            }
        }
        if out.columns.is_empty() {
            return Ok(out);
        }
        let hits: Vec<Vec<usize>> = self
            .shapes
            .iter()
            .map(|s| s.iter().filter_map(|c| local.get(*c).copied().flatten()).collect())
            .collect();
        out.rows.reserve(self.ids.len());
        // One type of value, once a row: nearly always.
        if out.columns.len() == 1 && hits.iter().all(|h| h.len() <= 1) {
            let has: Vec<bool> = hits.iter().map(|h| !h.is_empty()).collect();
            let mut cursor = 0;
            for id in &self.ids {
                let has = *has.get(*id as usize).ok_or(Malformed(0))?;
                out.rows.push((if has { cursor } else { KeyColumn::ABSENT }, 0));
                cursor += u32::from(has);
            }
            return Ok(out);
        }
        let mut cursors = vec![0_u32; out.columns.len()];
        for id in &self.ids {
            let mut first = (KeyColumn::ABSENT, 0);
            // Of equal keys the first counts; each has a value in its column.
            for (k, c) in hits.get(*id as usize).ok_or(Malformed(0))?.iter().enumerate() {
                let cursor = cursors.get_mut(*c).ok_or(Malformed(*c))?;
                if k == 0 {
                    first = (*cursor, *c as u8);
                }
                *cursor += 1;
            }
            out.rows.push(first);
        }
        Ok(out)
    }
}

/// Reads attributes row by row, in order.
pub(crate) struct AttributesReader<'a> {
    index: &'a AttributeIndex,
    bytes: &'a dyn Fn() -> Result<&'a [u8], SegmentError>,
    /// By column.
    cursors: Vec<usize>,
    row: usize,
}

impl<'a> AttributesReader<'a> {
    /// `bytes` returns those that the index was read from, when values are needed.
    pub(crate) fn new(
        index: &'a AttributeIndex,
        bytes: &'a dyn Fn() -> Result<&'a [u8], SegmentError>,
    ) -> Self {
        Self { index, bytes, cursors: vec![0; index.columns.len()], row: 0 }
    }

    fn next_id(&mut self) -> Result<u32, Malformed> {
        let id = *self.index.ids.get(self.row).ok_or(Malformed(self.row))?;
        self.row += 1;
        Ok(id)
    }

    /// Skips the next row.
    pub(crate) fn skip(&mut self) -> Result<(), Malformed> {
        let id = self.next_id()?;
        for c in self.index.shape(id)? {
            *self.cursors.get_mut(*c).ok_or(Malformed(*c))? += 1;
        }
        Ok(())
    }

    /// Returns the attributes of a row, which is none that was passed already.
    pub(crate) fn of(
        &mut self,
        row: usize,
        source: &mut Source<'_>,
    ) -> Result<Attributes, SegmentError> {
        while self.row < row {
            self.skip()?;
        }
        self.next(source)
    }

    /// Returns the next row's attributes.
    pub(crate) fn next(&mut self, source: &mut Source<'_>) -> Result<Attributes, SegmentError> {
        let id = self.next_id()?;
        let shape = self.index.shape(id)?;
        let mut out = Vec::with_capacity(shape.len());
        for c in shape {
            let bad = Malformed(*c);
            let values = self.index.values(self.bytes, *c)?;
            let cursor = self.cursors.get_mut(*c).ok_or(bad)?;
            let name = &self.index.columns.get(*c).ok_or(bad)?.name;
            out.push((name.clone(), value(values, *cursor, source)?));
            *cursor += 1;
        }
        Ok(out.into())
    }
}

/// What the rows of a block have under one key.
#[derive(Debug, Default)]
pub(crate) struct KeyColumn {
    /// One for each type of value.
    columns: Vec<Arc<Values>>,
    /// Place in the column, and which column; nothing when the key is in no row.
    rows: Vec<(u32, u8)>,
}

impl Measured for KeyColumn {
    fn bytes(&self) -> usize {
        // Its values are the index's.
        self.rows.bytes()
    }
}

impl KeyColumn {
    const ABSENT: u32 = u32::MAX;

    /// Returns a row's value; what cannot be lent is made by reading parts from `source`.
    pub(crate) fn get(
        &self,
        row: usize,
        source: &mut Source<'_>,
    ) -> Result<FieldValue<'_>, SegmentError> {
        let Some((at, column)) = self.rows.get(row).filter(|(at, _)| *at != Self::ABSENT) else {
            return Ok(FieldValue::Nil);
        };
        let i = *at as usize;
        let bad = Malformed(row);
        let values = self.columns.get(usize::from(*column)).ok_or(bad)?;
        Ok(match &**values {
            Values::Empty => FieldValue::Nil,
            Values::Bools(b) => FieldValue::Bool(*b.get(i).ok_or(bad)? != 0),
            Values::Ints(v) => FieldValue::Int(*v.get(i).ok_or(bad)?),
            Values::Doubles(v) => FieldValue::Float(*v.get(i).ok_or(bad)?),
            Values::Strings(s) => string_field(s, i)?,
            other => FieldValue::from(&value(other, i, source)?).into_owned(),
        })
    }

    /// Returns a number that is the same for the same value alone; `None` if there is none.
    pub(crate) fn code(&self, row: usize) -> Option<u32> {
        const BITS: u32 = 24;
        let (at, column) = *self.rows.get(row)?;
        if at == Self::ABSENT {
            return Some(u32::MAX);
        }
        let i = at as usize;
        let code = match &**self.columns.get(usize::from(column))? {
            Values::Empty => 0,
            Values::Bools(b) => u32::try_from(*b.get(i)?).ok()?,
            Values::Strings(s) => s.code(i)?,
            _ => return None,
        };
        (code < 1 << BITS && column < u8::MAX).then_some((u32::from(column) << BITS) | code)
    }

    /// Returns how to tell the rows whose value is a text, or with `by_text` is written as it.
    pub(crate) fn equal_to(&self, text: &str, by_text: bool) -> SameAs {
        let may = |fits: bool| if by_text && fits { SameAs::Unknown } else { SameAs::None };
        let one = |v: &Values| match v {
            Values::Strings(s) => s.equal_to(text.as_bytes()),
            Values::Bools(_) => may(matches!(text, "true" | "false")),
            Values::Ints(v) => may(text.parse().is_ok_and(|n| v.contains(&n))),
            Values::Doubles(_) => may(text.parse::<f64>().is_ok()),
            Values::Empty => SameAs::None,
            Values::Long { .. } | Values::Other(_) => SameAs::Unknown,
        };
        match self.columns.as_slice() {
            [] => SameAs::None,
            [v] => one(v),
            several if several.iter().all(|v| one(v) == SameAs::None) => SameAs::None,
            _ => SameAs::Unknown,
        }
    }

    /// Returns whether the row has the value that [`Self::equal_to`] found.
    pub(crate) fn is(&self, row: usize, same: SameAs) -> bool {
        let at = self.rows.get(row).map_or(Self::ABSENT, |r| r.0);
        match (same, self.columns.first()) {
            (SameAs::Unknown, _) => true,
            (SameAs::None, _) => false,
            _ if at == Self::ABSENT => false,
            (SameAs::All, _) => true,
            (SameAs::Number(n), Some(v)) => match &**v {
                Values::Strings(s) => s.is_number(at as usize, n),
                _ => false,
            },
            _ => false,
        }
    }
}

/// Returns a string of a column, lent if it lies there as it is.
pub(crate) fn string_field(s: &Strings, i: usize) -> Result<FieldValue<'_>, Malformed> {
    Ok(match s.lent(i) {
        Some(bytes) => FieldValue::str(std::str::from_utf8(bytes).map_err(|_| Malformed(i))?),
        None => FieldValue::str(s.string(i, RowIds::default())?),
    })
}

fn value(
    values: &Values,
    i: usize,
    source: &mut Source<'_>,
) -> Result<AttributeValue, SegmentError> {
    let bad = Malformed(i);
    Ok(match values {
        Values::Empty => AttributeValue::Empty,
        Values::Strings(s) => AttributeValue::String(s.string(i, RowIds::default())?),
        Values::Bools(b) => AttributeValue::Bool(*b.get(i).ok_or(bad)? != 0),
        Values::Ints(v) => AttributeValue::Int(*v.get(i).ok_or(bad)?),
        Values::Doubles(v) => AttributeValue::Double(*v.get(i).ok_or(bad)?),
        Values::Other(t) => get_value(&mut Decoder::new(t.get(i).ok_or(bad)?), 0)?,
        Values::Long { starts, numbers } => {
            let (start, end) = (*starts.get(i).ok_or(bad)?, *starts.get(i + 1).ok_or(bad)?);
            let mut text = Vec::new();
            for number in numbers.get(start..end).ok_or(bad)? {
                let number = number.checked_add(source.base).ok_or(bad)?;
                source.parts.append(source.file, number, source.cache, source.keeper, &mut text)?;
            }
            AttributeValue::String(String::from_utf8(text).map_err(|_| bad)?)
        }
    })
}
