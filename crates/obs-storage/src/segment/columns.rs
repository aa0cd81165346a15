//! Columns of integers and strings inside a block.
//!
//! A column is coded by what its values look like: strings of fixed hexadecimal digits as bytes,
//! decimal numbers and times as integers, few distinct values as a dictionary. Each column is
//! compressed alone, so that a reader expands only those it needs.

use crate::bin::{Decoder, Encoder, Malformed, unzigzag, zigzag};
use crate::segment::kept::Measured;
use crate::segment::time_text;
use foldhash::HashMap;
use std::cell::RefCell;
use std::ops::Range;

/// Expanded bytes of one column at most; more is damage.
const COLUMN_BYTES_MAX: usize = 256 << 20;

thread_local! {
    static PACKER: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
    static UNPACKER: RefCell<Option<zstd::bulk::Decompressor<'static>>> =
        const { RefCell::new(None) };
}

fn zstd_pack(raw: &[u8]) -> Option<Vec<u8>> {
    PACKER.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = zstd::bulk::Compressor::new(1).ok();
        }
        slot.as_mut().and_then(|c| c.compress(raw).ok())
    })
}

pub(crate) fn zstd_unpack(packed: &[u8], raw_len: usize) -> Option<Vec<u8>> {
    UNPACKER.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = zstd::bulk::Decompressor::new().ok();
        }
        slot.as_mut().and_then(|c| c.decompress(packed, raw_len).ok())
    })
}

/// Writes bytes behind their length, compressed if that is smaller.
pub(crate) fn put_packed(e: &mut Encoder, raw: &[u8]) {
    const WORTH: usize = 48;
    let packed = if raw.len() >= WORTH { zstd_pack(raw) } else { None };
    match packed.filter(|p| p.len() + 2 < raw.len()) {
        Some(p) => {
            e.len(raw.len() * 2 + 1);
            e.raw(&p);
        }
        None => {
            e.len(raw.len() * 2);
            e.bytes.extend_from_slice(raw);
        }
    }
}

pub(crate) fn get_packed(d: &mut Decoder<'_>) -> Result<Vec<u8>, Malformed> {
    let head = d.len_free()?;
    let len = head / 2;
    if head % 2 == 0 {
        return d.bytes(len).map(<[u8]>::to_vec);
    }
    let packed = d.raw()?;
    let raw = Some(len).filter(|n| *n <= COLUMN_BYTES_MAX).and_then(|n| zstd_unpack(packed, n));
    raw.filter(|r| r.len() == len).ok_or(d.bad())
}

/// Writes integers: differences or distances from the least, whichever is narrower, in planes of
/// bytes.
pub(crate) fn put_ints(e: &mut Encoder, values: &[i64]) {
    e.len(values.len());
    let Some(first) = values.first().copied() else { return };
    let (mut min, mut max) = (first, first);
    let (mut last, mut delta_bits, mut level_bits) = (first, 0_u64, 0_u64);
    for v in values {
        min = min.min(*v);
        max = max.max(*v);
        delta_bits += u64::from(64 - zigzag(v.wrapping_sub(last)).leading_zeros());
        last = *v;
    }
    for v in values {
        level_bits += u64::from(64 - (v.wrapping_sub(min) as u64).leading_zeros());
    }
    if min == max {
        e.u8(0);
        e.int(first);
        return;
    }
    let by_delta = delta_bits < level_bits;
    let coded: Vec<u64> = if by_delta {
        let mut last = first;
        values
            .iter()
            .map(|v| {
                let d = zigzag(v.wrapping_sub(last));
                last = *v;
                d
            })
            .collect()
    } else {
        values.iter().map(|v| v.wrapping_sub(min) as u64).collect()
    };
    let widest = coded.iter().fold(0, |a, b| a | b);
    let width = (64 - widest.leading_zeros()).div_ceil(8).max(1) as usize;
    e.u8(width as u8 | if by_delta { 0x80 } else { 0 });
    e.int(if by_delta { first } else { min });
    let mut planes = Vec::with_capacity(width * coded.len());
    for plane in 0..width {
        planes.extend(coded.iter().map(|c| (c >> (8 * plane)) as u8));
    }
    put_packed(e, &planes);
}

pub(crate) fn get_ints(d: &mut Decoder<'_>) -> Result<Vec<i64>, Malformed> {
    get_mapped(d, |v| v)
}

/// Reads numbers of things that are fewer than `most`; a higher one is `most`, and nothing's number.
pub(crate) fn get_numbers(d: &mut Decoder<'_>, most: u32) -> Result<Vec<u32>, Malformed> {
    get_mapped(d, |v| u32::try_from(v).map_or(most, |v| v.min(most)))
}

/// Reads integers as what `f` makes of them.
fn get_mapped<T: Clone>(d: &mut Decoder<'_>, f: impl Fn(i64) -> T) -> Result<Vec<T>, Malformed> {
    let n = d.len_free()?;
    if n == 0 {
        return Ok(Vec::new());
    }
    if n > COLUMN_BYTES_MAX {
        return Err(d.bad());
    }
    let kind = d.u8()?;
    let base = d.int()?;
    if kind == 0 {
        return Ok(vec![f(base); n]);
    }
    let width = usize::from(kind & 0x7f);
    let planes = get_packed(d)?;
    if width > 8 || planes.len() != width * n {
        return Err(d.bad());
    }
    let is_difference = kind & 0x80 != 0;
    let mut rest = planes.chunks_exact(n);
    let Some(lowest) = rest.next() else { return Ok(vec![f(base); n]) };
    if width == 1 && !is_difference {
        // Numbers of a dictionary: most columns.
        return Ok(lowest.iter().map(|b| f(base.wrapping_add(i64::from(*b)))).collect());
    }
    let mut coded: Vec<u64> = lowest.iter().map(|b| u64::from(*b)).collect();
    for (plane, bytes) in rest.enumerate() {
        for (c, b) in coded.iter_mut().zip(bytes) {
            *c |= u64::from(*b) << (8 * (plane + 1));
        }
    }
    if !is_difference {
        return Ok(coded.into_iter().map(|c| f(base.wrapping_add(c as i64))).collect());
    }
    let mut last = base;
    Ok(coded
        .into_iter()
        .map(|c| {
            last = last.wrapping_add(unzigzag(c));
            f(last)
        })
        .collect())
}

/// What a column's strings may be derived from, row by row.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Context<'a> {
    /// The row's time, ns.
    pub(crate) times: &'a [i64],
    /// The row's trace and span id in hexadecimal; empty when it has none.
    pub(crate) trace: &'a [String],
    pub(crate) span: &'a [String],
}

const CONST: u8 = 0;
const DICT: u8 = 1;
const HEX: u8 = 2;
const DECIMAL: u8 = 3;
const PADDED: u8 = 4;
const POINT: u8 = 5;
const TIME: u8 = 6;
const RAW: u8 = 7;
const TRACE: u8 = 8;
const SPAN: u8 = 9;

/// Distinct values up to which a dictionary is kept; their numbers have 16 bits.
const DICT_MAX: usize = 4096;

fn common_prefix(values: &[&[u8]]) -> usize {
    let Some((first, rest)) = values.split_first() else { return 0 };
    let mut n = first.len();
    for v in rest {
        n = first.iter().take(n).zip(v.iter()).take_while(|(a, b)| a == b).count();
        if n == 0 {
            return 0;
        }
    }
    // Digits belong to the number that they begin.
    while n > 0 && first.get(n - 1).is_some_and(u8::is_ascii_hexdigit) {
        n -= 1;
    }
    n
}

fn common_suffix(values: &[&[u8]], prefix: usize) -> usize {
    let Some((first, rest)) = values.split_first() else { return 0 };
    let tail = |v: &[u8]| v.iter().rev().take_while(|b| !b.is_ascii_hexdigit()).count();
    let mut n = tail(first).min(first.len() - prefix);
    for v in rest {
        let most = n.min(v.len() - prefix);
        n = first.iter().rev().zip(v.iter().rev()).take(most).take_while(|(a, b)| a == b).count();
    }
    n
}

fn lower_hex(v: &[u8]) -> bool {
    v.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

const fn nibble(b: u8) -> u8 {
    if b <= b'9' { b.wrapping_sub(b'0') } else { b.wrapping_sub(b'a').wrapping_add(10) }
}

fn digits(v: &[u8]) -> Option<i64> {
    if v.is_empty() || v.len() > 18 || !v.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(v.iter().fold(0, |n, b| n * 10 + i64::from(b - b'0')))
}

/// Reads a decimal that prints back as it was: no leading zero, no sign but `-`.
fn canonical(v: &[u8]) -> Option<i64> {
    let (negative, body) = match v.split_first() {
        Some((b'-', rest)) => (true, rest),
        _ => (false, v),
    };
    let n = digits(body)?;
    let is_plain = body.len() == 1 || body.first() != Some(&b'0');
    (is_plain && !(negative && n == 0)).then_some(if negative { -n } else { n })
}

/// Reads a decimal with `places` digits after its point.
fn pointed(v: &[u8], places: usize) -> Option<i64> {
    let at = v.len().checked_sub(places + 1)?;
    let (whole, rest) = v.split_at_checked(at)?;
    let (point, fraction) = rest.split_first()?;
    if *point != b'.' {
        return None;
    }
    let (whole, fraction) = (canonical(whole)?, digits(fraction)?);
    let power = 10_i64.checked_pow(places as u32)?;
    // "-0.5" would lose its sign.
    if whole < 0 { None } else { whole.checked_mul(power)?.checked_add(fraction) }
}

/// Writes a column of strings.
pub(crate) fn put_strings(e: &mut Encoder, values: &[&[u8]], rows: Context<'_>) {
    e.len(values.len());
    let Some(first) = values.first() else { return };
    if values.iter().all(|v| v == first) {
        e.u8(CONST);
        e.raw(first);
        return;
    }
    let mut dictionary: HashMap<&[u8], u16> = HashMap::default();
    let mut ids: Vec<i64> = Vec::with_capacity(values.len());
    let mut previous: Option<(&[u8], i64)> = None;
    // A dictionary pays when values repeat; the limit also bounds the work on those that do not.
    let limit = (values.len() / 3).clamp(8, DICT_MAX);
    for v in values {
        // Runs are common: rows of one trace or stream follow one another.
        if let Some((last, id)) = previous
            && last == *v
        {
            ids.push(id);
            continue;
        }
        let next = dictionary.len() as u16;
        let id = i64::from(*dictionary.entry(v).or_insert(next));
        previous = Some((v, id));
        ids.push(id);
        if dictionary.len() > limit {
            break;
        }
    }
    if dictionary.len() <= limit {
        let mut entries: Vec<_> = dictionary.into_iter().collect();
        entries.sort_unstable_by_key(|(_, id)| *id);
        e.u8(DICT);
        put_texts(e, &entries.into_iter().map(|(v, _)| v).collect::<Vec<_>>());
        put_ints(e, &ids);
        return;
    }
    if put_derived(e, values, rows) || put_numbers(e, values) {
        return;
    }
    e.u8(RAW);
    put_texts(e, values);
}

/// Writes lengths, then all bytes.
pub(crate) fn put_texts(e: &mut Encoder, values: &[&[u8]]) {
    put_ints(e, &values.iter().map(|v| v.len() as i64).collect::<Vec<_>>());
    put_packed(e, &values.concat());
}

/// Strings joined, with the end of each.
#[derive(Debug)]
pub(crate) struct Texts {
    ends: Vec<u32>,
    text: Vec<u8>,
}

pub(crate) fn get_texts(d: &mut Decoder<'_>) -> Result<Texts, Malformed> {
    let lengths = get_ints(d)?;
    let text = get_packed(d)?;
    let mut end = 0_i64;
    let ends = lengths
        .into_iter()
        .map(|n| {
            end = end.checked_add(n).filter(|_| n >= 0)?;
            u32::try_from(end).ok()
        })
        .collect::<Option<Vec<_>>>()
        .ok_or(d.bad())?;
    if ends.last().copied().unwrap_or(0) as usize == text.len() {
        Ok(Texts { ends, text })
    } else {
        Err(d.bad())
    }
}

impl Measured for Texts {
    fn bytes(&self) -> usize {
        self.ends.bytes() + self.text.bytes()
    }
}

impl Measured for Strings {
    fn bytes(&self) -> usize {
        match self {
            Self::Empty | Self::Trace | Self::Span => 0,
            Self::Const(v) => v.bytes(),
            Self::Dict { entries, ids } => entries.bytes() + ids.bytes(),
            Self::Hex { bytes, .. } => bytes.bytes(),
            Self::Number { values, .. } | Self::Time { values, .. } => values.bytes(),
            Self::Raw(t) => t.bytes(),
        }
    }
}

impl Texts {
    pub(crate) fn get(&self, i: usize) -> Option<&[u8]> {
        let start = if i == 0 { 0 } else { *self.ends.get(i - 1)? };
        self.text.get(start as usize..*self.ends.get(i)? as usize)
    }

    /// Returns all texts, one behind the other.
    pub(crate) fn all(&self) -> &[u8] {
        &self.text
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).filter_map(|i| self.get(i))
    }
}

fn put_derived(e: &mut Encoder, values: &[&[u8]], rows: Context<'_>) -> bool {
    let equal = |list: &[String]| {
        list.len() == values.len() && list.iter().zip(values).all(|(a, b)| a.as_bytes() == *b)
    };
    for (kind, list) in [(TRACE, rows.trace), (SPAN, rows.span)] {
        if equal(list) {
            e.u8(kind);
            return true;
        }
    }
    if rows.times.len() != values.len() {
        return false;
    }
    let Some(shape) = values.first().and_then(|v| time_text::Shape::of(v)) else { return false };
    let parse = |(v, t): (&&[u8], &i64)| Some(shape.parse(v)?.wrapping_sub(shape.units(*t)));
    let Some(list) = values.iter().zip(rows.times).map(parse).collect::<Option<Vec<_>>>() else {
        return false;
    };
    e.u8(TIME);
    e.u8(shape.to_byte());
    put_ints(e, &list);
    true
}

fn put_numbers(e: &mut Encoder, values: &[&[u8]]) -> bool {
    let prefix = common_prefix(values);
    let suffix = common_suffix(values, prefix);
    let core = |v: &&'_ [u8]| -> Range<usize> { prefix..v.len() - suffix };
    let cores: Vec<&[u8]> = values.iter().filter_map(|v| v.get(core(v))).collect();
    let Some(first) = cores.first() else { return false };
    let affixes = |e: &mut Encoder, kind: u8| {
        e.u8(kind);
        let v = values.first().copied().unwrap_or_default();
        e.raw(v.get(..prefix).unwrap_or_default());
        e.raw(v.get(v.len() - suffix..).unwrap_or_default());
    };
    let same_length = cores.iter().all(|c| c.len() == first.len());
    if let Some(list) = cores.iter().map(|c| canonical(c)).collect::<Option<Vec<_>>>() {
        affixes(e, DECIMAL);
        put_ints(e, &list);
        return true;
    }
    if same_length && let Some(list) = cores.iter().map(|c| digits(c)).collect::<Option<Vec<_>>>() {
        affixes(e, PADDED);
        e.len(first.len());
        put_ints(e, &list);
        return true;
    }
    if same_length && first.len() % 2 == 0 && first.len() >= 4 && cores.iter().all(|c| lower_hex(c))
    {
        affixes(e, HEX);
        e.len(first.len() / 2);
        let bytes: Vec<u8> = cores
            .iter()
            .flat_map(|c| c.chunks_exact(2))
            .filter_map(|p| Some(nibble(*p.first()?) << 4 | nibble(*p.last()?)))
            .collect();
        put_packed(e, &bytes);
        return true;
    }
    let point = first.iter().rev().position(|b| *b == b'.');
    if let Some(places) = point.filter(|p| (1..=12).contains(p))
        && let Some(list) = cores.iter().map(|c| pointed(c, places)).collect::<Option<Vec<_>>>()
    {
        affixes(e, POINT);
        e.len(places);
        put_ints(e, &list);
        return true;
    }
    false
}

/// A decoded column of strings.
#[derive(Debug)]
pub(crate) enum Strings {
    Empty,
    Const(Vec<u8>),
    Dict {
        entries: Texts,
        ids: Vec<u16>,
    },
    Hex {
        prefix: Vec<u8>,
        suffix: Vec<u8>,
        width: usize,
        bytes: Vec<u8>,
    },
    Number {
        prefix: Vec<u8>,
        suffix: Vec<u8>,
        form: Form,
        values: Vec<i64>,
    },
    Time {
        shape: time_text::Shape,
        values: Vec<i64>,
    },
    Raw(Texts),
    /// The row's trace or span id.
    Trace,
    Span,
}

/// Which values of a column are equal to some text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SameAs {
    None,
    All,
    /// Those with this number.
    Number(i64),
    /// Each must be looked at.
    Unknown,
}

/// How an integer is printed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Form {
    Decimal,
    Padded(usize),
    Point(usize),
}

/// What derived values of a row are made of.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RowIds {
    pub(crate) time: i64,
    /// All zero for none, as text empty.
    pub(crate) trace: [u8; 16],
    pub(crate) span: [u8; 8],
}

pub(crate) fn get_strings(d: &mut Decoder<'_>) -> Result<Strings, Malformed> {
    if d.len_free()? == 0 {
        return Ok(Strings::Empty);
    }
    let kind = d.u8()?;
    Ok(match kind {
        CONST => Strings::Const(d.raw()?.to_vec()),
        DICT => {
            let entries = get_texts(d)?;
            // None is the number of an entry that there cannot be.
            let ids = get_mapped(d, |v| u16::try_from(v).unwrap_or(u16::MAX))?;
            Strings::Dict { entries, ids }
        }
        TRACE => Strings::Trace,
        SPAN => Strings::Span,
        TIME => {
            let shape = time_text::Shape::from_byte(d.u8()?).ok_or(d.bad())?;
            Strings::Time { shape, values: get_ints(d)? }
        }
        RAW => Strings::Raw(get_texts(d)?),
        DECIMAL | PADDED | POINT | HEX => {
            let (prefix, suffix) = (d.raw()?.to_vec(), d.raw()?.to_vec());
            let width = if kind == DECIMAL { 0 } else { d.len_free()? };
            if width > 64 << 10 {
                return Err(d.bad());
            }
            match kind {
                HEX => Strings::Hex { prefix, suffix, width, bytes: get_packed(d)? },
                _ => {
                    let form = match kind {
                        DECIMAL => Form::Decimal,
                        PADDED => Form::Padded(width),
                        _ => Form::Point(width),
                    };
                    Strings::Number { prefix, suffix, form, values: get_ints(d)? }
                }
            }
        }
        _ => return Err(d.bad()),
    })
}

/// Passes over bytes written by [`put_packed`].
pub(crate) fn skip_packed(d: &mut Decoder<'_>) -> Result<(), Malformed> {
    let head = d.len_free()?;
    if head % 2 == 0 { d.bytes(head / 2) } else { d.raw() }.map(|_| ())
}

/// Passes over a column of integers.
pub(crate) fn skip_ints(d: &mut Decoder<'_>) -> Result<(), Malformed> {
    if d.len_free()? == 0 {
        return Ok(());
    }
    let kind = d.u8()?;
    d.int()?;
    if kind == 0 { Ok(()) } else { skip_packed(d) }
}

/// Passes over texts written by [`put_texts`].
pub(crate) fn skip_texts(d: &mut Decoder<'_>) -> Result<(), Malformed> {
    skip_ints(d)?;
    skip_packed(d)
}

/// Passes over a column of strings.
pub(crate) fn skip_strings(d: &mut Decoder<'_>) -> Result<(), Malformed> {
    if d.len_free()? == 0 {
        return Ok(());
    }
    let kind = d.u8()?;
    match kind {
        CONST => d.raw().map(|_| ()),
        DICT => skip_texts(d).and_then(|()| skip_ints(d)),
        TRACE | SPAN => Ok(()),
        TIME => d.u8().and_then(|_| skip_ints(d)),
        RAW => skip_texts(d),
        DECIMAL | PADDED | POINT | HEX => {
            d.raw()?;
            d.raw()?;
            if kind != DECIMAL {
                d.len_free()?;
            }
            if kind == HEX { skip_packed(d) } else { skip_ints(d) }
        }
        _ => Err(d.bad()),
    }
}

/// What the head of a column of strings says about its values.
#[derive(Debug)]
pub(crate) enum Head {
    Empty,
    /// Anything.
    Any,
    /// Digits (hexadecimal ones too), signs and points between a prefix and a suffix.
    Digits {
        prefix: Vec<u8>,
        suffix: Vec<u8>,
    },
    /// Hexadecimal ids.
    Ids,
    Time,
}

/// Reads the head of a column alone.
pub(crate) fn head(bytes: &[u8]) -> Result<Head, Malformed> {
    let mut d = Decoder::new(bytes);
    if d.len_free()? == 0 {
        return Ok(Head::Empty);
    }
    Ok(match d.u8()? {
        TRACE | SPAN => Head::Ids,
        TIME => Head::Time,
        DECIMAL | PADDED | POINT | HEX => {
            Head::Digits { prefix: d.raw()?.to_vec(), suffix: d.raw()?.to_vec() }
        }
        _ => Head::Any,
    })
}

fn push_decimal(mut v: u64, width: usize, out: &mut Vec<u8>) {
    let mut buf = [b'0'; 20];
    let mut at = buf.len();
    loop {
        at -= 1;
        if let Some(b) = buf.get_mut(at) {
            *b = b'0' + (v % 10) as u8;
        }
        v /= 10;
        if v == 0 || at == 0 {
            break;
        }
    }
    let at = at.min(buf.len().saturating_sub(width));
    out.extend_from_slice(buf.get(at..).unwrap_or_default());
}

/// Appends bytes as hexadecimal digits, as ids are printed.
pub(crate) fn push_hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |n: u8| DIGITS.get(usize::from(n)).copied().unwrap_or_default();
    out.extend(bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]));
}

impl Strings {
    /// Appends value `i`; nothing if there is none.
    #[inline]
    pub(crate) fn append(&self, i: usize, row: RowIds, out: &mut Vec<u8>) -> Option<()> {
        match self {
            Self::Empty => return None,
            Self::Const(v) => out.extend_from_slice(v),
            Self::Dict { entries, ids } => {
                out.extend_from_slice(entries.get(usize::from(*ids.get(i)?))?);
            }
            Self::Raw(t) => out.extend_from_slice(t.get(i)?),
            Self::Trace if row.trace == [0; 16] => {}
            Self::Trace => push_hex(&row.trace, out),
            Self::Span if row.span == [0; 8] => {}
            Self::Span => push_hex(&row.span, out),
            Self::Hex { prefix, suffix, width, bytes } => {
                out.extend_from_slice(prefix);
                push_hex(bytes.get(i * width..(i + 1) * width)?, out);
                out.extend_from_slice(suffix);
            }
            Self::Number { prefix, suffix, form, values } => {
                let v = *values.get(i)?;
                out.extend_from_slice(prefix);
                match form {
                    Form::Decimal => {
                        if v < 0 {
                            out.push(b'-');
                        }
                        push_decimal(v.unsigned_abs(), 0, out);
                    }
                    Form::Padded(width) => push_decimal(v.unsigned_abs(), *width, out),
                    Form::Point(places) => {
                        let power = 10_u64.checked_pow(*places as u32)?;
                        push_decimal(v.unsigned_abs() / power, 0, out);
                        out.push(b'.');
                        push_decimal(v.unsigned_abs() % power, *places, out);
                    }
                }
                out.extend_from_slice(suffix);
            }
            Self::Time { shape, values } => {
                shape.print(shape.units(row.time).wrapping_add(*values.get(i)?), out);
            }
        }
        Some(())
    }

    /// Returns a number that is the same for the same text alone; `None` if there is none.
    pub(crate) fn code(&self, i: usize) -> Option<u32> {
        match self {
            Self::Const(_) => Some(0),
            Self::Dict { ids, .. } => Some(u32::from(*ids.get(i)?)),
            _ => None,
        }
    }

    /// Returns the integers of a column of plain numbers, and what to divide them by.
    pub(crate) fn numbers(&self) -> Option<(&[i64], f64)> {
        let Self::Number { prefix, suffix, form, values } = self else { return None };
        if !prefix.is_empty() || !suffix.is_empty() {
            return None;
        }
        let divisor = match form {
            Form::Decimal | Form::Padded(_) => 1.0,
            // Powers of ten are exact this far.
            Form::Point(places) if *places <= 22 => 10_f64.powi(*places as i32),
            Form::Point(_) => return None,
        };
        Some((values, divisor))
    }

    /// Returns value `i` where it lies as it is.
    pub(crate) fn lent(&self, i: usize) -> Option<&[u8]> {
        match self {
            Self::Const(v) => Some(v),
            Self::Dict { entries, ids } => entries.get(usize::from(*ids.get(i)?)),
            Self::Raw(t) => t.get(i),
            _ => None,
        }
    }

    /// Returns how to tell the values that are a text.
    pub(crate) fn equal_to(&self, text: &[u8]) -> SameAs {
        match self {
            Self::Empty => SameAs::None,
            Self::Const(v) if v == text => SameAs::All,
            Self::Const(_) => SameAs::None,
            Self::Dict { entries, .. } => entries
                .iter()
                .position(|e| e == text)
                .map_or(SameAs::None, |n| SameAs::Number(n as i64)),
            Self::Number { prefix, suffix, form, values } => {
                let core = text.strip_prefix(&**prefix).and_then(|t| t.strip_suffix(&**suffix));
                let number = core.and_then(|c| match form {
                    Form::Decimal => canonical(c),
                    Form::Padded(width) => digits(c).filter(|_| c.len() == *width),
                    Form::Point(places) => pointed(c, *places),
                });
                number.filter(|n| values.contains(n)).map_or(SameAs::None, SameAs::Number)
            }
            _ => SameAs::Unknown,
        }
    }

    /// Returns whether value `i` is the one that [`Self::equal_to`] numbered.
    pub(crate) fn is_number(&self, i: usize, number: i64) -> bool {
        match self {
            Self::Dict { ids, .. } => ids.get(i).is_some_and(|id| i64::from(*id) == number),
            Self::Number { values, .. } => values.get(i) == Some(&number),
            _ => false,
        }
    }

    /// Returns value `i` as text.
    pub(crate) fn string(&self, i: usize, row: RowIds) -> Result<String, Malformed> {
        let mut out = Vec::new();
        self.append(i, row, &mut out).ok_or(Malformed(i))?;
        String::from_utf8(out).map_err(|_| Malformed(i))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(values: &[&str], rows: Context<'_>) -> (u8, usize) {
        let mut e = Encoder::default();
        let bytes: Vec<&[u8]> = values.iter().map(|v| v.as_bytes()).collect();
        put_strings(&mut e, &bytes, rows);
        let s = get_strings(&mut Decoder::new(&e.bytes)).unwrap();
        for (i, v) in values.iter().enumerate() {
            let id = |s: &String| u128::from_str_radix(s, 16).unwrap().to_be_bytes();
            let row = RowIds {
                time: rows.times.get(i).copied().unwrap_or_default(),
                trace: rows.trace.get(i).map(id).unwrap_or_default(),
                span: [0; 8],
            };
            assert_eq!(s.string(i, row).unwrap(), *v);
        }
        (
            e.bytes.get(1..).and_then(|b| b.get(usize::from(values.len() > 127))).copied().unwrap(),
            e.bytes.len(),
        )
    }

    #[test]
    fn columns_are_coded_by_what_they_hold() {
        let list = |f: &dyn Fn(u64) -> String| (0..100).map(f).collect::<Vec<_>>();
        let noise = |i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let cases: [(u8, Vec<String>); 8] = [
            (CONST, list(&|_| "x".into())),
            (DICT, list(&|i| format!("v{}", i % 7))),
            (HEX, list(&|i| format!("req_{:016x}-x", noise(i)))),
            (DECIMAL, list(&|i| format!("{}", noise(i) as i64 / 1000))),
            (DECIMAL, list(&|i| format!("{}ms", i * i))),
            (PADDED, list(&|i| format!("u_{:05}", noise(i) % 99_999))),
            (POINT, list(&|i| format!("{}.{:06}", i % 3, noise(i) % 1_000_000))),
            (RAW, list(&|i| format!("{} is {}", noise(i), i))),
        ];
        for (kind, values) in cases {
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            assert_eq!(round_trip(&values, Context::default()).0, kind, "{values:?}");
        }
        let times: Vec<i64> =
            (0..100).map(|i| 1_790_000_000_000_000_000 + i * 1_234_567_890).collect();
        let texts: Vec<String> = times
            .iter()
            .map(|t| {
                let mut out = Vec::new();
                let shape = time_text::Shape::of(b"2026-01-01T00:00:00.000000Z").unwrap();
                shape.print(shape.units(*t), &mut out);
                String::from_utf8(out).unwrap()
            })
            .collect();
        let values: Vec<&str> = texts.iter().map(String::as_str).collect();
        let (kind, size) = round_trip(&values, Context { times: &times, ..Context::default() });
        assert_eq!(kind, TIME);
        assert!(size < 12, "{size}");
        let ids = list(&|i| format!("{:032x}", noise(i + 1)));
        let values: Vec<&str> = ids.iter().map(String::as_str).collect();
        let rows = Context { trace: &ids, ..Context::default() };
        assert_eq!(round_trip(&values, rows).0, TRACE);
    }

    proptest! {
        #[test]
        fn any_strings_come_back(values in prop::collection::vec("[ -~é]{0,12}|-?[0-9]{1,19}|0?[0-9]\\.[0-9]{2}|[0-9a-f]{8}", 1..60)) {
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            round_trip(&values, Context::default());
        }

        #[test]
        fn any_integers_come_back(values in prop::collection::vec(any::<i64>(), 0..60)) {
            let mut e = Encoder::default();
            put_ints(&mut e, &values);
            prop_assert_eq!(get_ints(&mut Decoder::new(&e.bytes)).unwrap(), values);
        }
    }
}
