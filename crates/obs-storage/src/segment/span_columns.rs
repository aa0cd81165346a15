//! Fields of a block's spans, each column read when a field of it is asked for first.

use crate::bin::{Decoder, Malformed};
use crate::records::{get_events, get_links, get_scope};
use crate::segment::SegmentError;
use crate::segment::attrs::{AttributesReader, KeyColumn, Source, string_field};
use crate::segment::columns::{
    SameAs, Strings, Texts, get_ints, get_strings, get_texts, skip_ints, skip_packed, skip_strings,
    skip_texts,
};
use crate::segment::ids::{get_ids, skip_ids};
use crate::segment::logs::{get_resources, get_table};
use obs_model::{
    AttributeScope, Equal, FieldValue, Resource, Scope, SpanField, SpanId, SpanKind, SpanRow,
    StatusCode, TimestampNs, TraceId, field_of_events, field_of_links, sampling_weight,
};
use std::cell::{OnceCell, RefCell};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Where the columns of a block lie.
struct Places<'a> {
    traces: &'a [u8],
    starts: &'a [u8],
    ids: &'a [u8],
    parents: &'a [u8],
    elsewhere: &'a [u8],
    names: &'a [u8],
    kinds: &'a [u8],
    durations: &'a [u8],
    statuses: &'a [u8],
    messages: &'a [u8],
    states: &'a [u8],
    resources: &'a [u8],
    scopes: &'a [u8],
    events: &'a [u8],
    links: &'a [u8],
    attributes: &'a [u8],
}

/// Passes over one column and returns its bytes.
fn column<'a>(
    d: &mut Decoder<'a>,
    block: &'a [u8],
    skip: impl Fn(&mut Decoder<'a>) -> Result<(), Malformed>,
) -> Result<&'a [u8], Malformed> {
    let from = d.at();
    skip(d)?;
    block.get(from..d.at()).ok_or(d.bad())
}

fn skip_table(d: &mut Decoder<'_>) -> Result<(), Malformed> {
    skip_packed(d)?;
    skip_ints(d)
}

impl<'a> Places<'a> {
    /// Returns the number of rows, and where everything is.
    fn read(block: &'a [u8]) -> Result<(usize, Self), Malformed> {
        let d = &mut Decoder::new(block);
        let n = d.len_free()?;
        let traces = column(d, block, skip_ids)?;
        let starts = column(d, block, skip_ints)?;
        let ids = column(d, block, skip_ids)?;
        let parents = column(d, block, skip_ints)?;
        let elsewhere = column(d, block, skip_ids)?;
        let names = column(d, block, skip_strings)?;
        let kinds = column(d, block, skip_ints)?;
        let durations = column(d, block, skip_ints)?;
        let statuses = column(d, block, skip_ints)?;
        let messages = column(d, block, skip_strings)?;
        let states = column(d, block, skip_strings)?;
        let resources = column(d, block, skip_table)?;
        let scopes = column(d, block, skip_table)?;
        let events = column(d, block, skip_texts)?;
        let links = column(d, block, skip_texts)?;
        let attributes = block.get(d.at()..).ok_or(d.bad())?;
        let all = Self {
            traces,
            starts,
            ids,
            parents,
            elsewhere,
            names,
            kinds,
            durations,
            statuses,
            messages,
            states,
            resources,
            scopes,
            events,
            links,
            attributes,
        };
        Ok((n, all))
    }
}

fn get_scopes(d: &mut Decoder<'_>) -> Result<(Vec<Arc<Scope>>, Vec<usize>), Malformed> {
    get_table(d, |d| get_scope(&mut Decoder::new(d.raw()?)).map(Arc::new))
}

/// What one wanted field is read from.
enum Slot {
    Strings(Strings),
    Kinds(Vec<i64>),
    Statuses(Vec<i64>),
    Key(KeyColumn),
    /// One value a resource or scope, and each row's.
    Shared(Vec<FieldValue<'static>>, Vec<usize>),
    /// Read from the row's events or links.
    Events,
    Links,
    /// The key of the span itself, of the resource, of the scope.
    Any(KeyColumn, Box<Self>, Box<Self>),
}

/// Which rows are equal to a text.
enum Test<'t> {
    /// By the number of the row's resource or scope.
    Shared(Vec<bool>, &'t [usize]),
    Strings(&'t Strings, SameAs),
    Key(&'t KeyColumn, SameAs),
    /// Each must be looked at.
    Unknown,
}

impl Test<'_> {
    fn is_none(&self) -> bool {
        match self {
            Self::Shared(hits, _) => !hits.contains(&true),
            Self::Strings(_, same) | Self::Key(_, same) => *same == SameAs::None,
            Self::Unknown => false,
        }
    }

    fn holds(&self, row: usize) -> bool {
        match self {
            Self::Shared(hits, of) => {
                of.get(row).and_then(|r| hits.get(*r)).copied().unwrap_or(false)
            }
            Self::Strings(s, SameAs::Number(n)) => s.is_number(row, *n),
            Self::Strings(_, same) => matches!(same, SameAs::All | SameAs::Unknown),
            Self::Key(k, same) => k.is(row, *same),
            Self::Unknown => true,
        }
    }
}

/// Distances to parents, and the ids of those that are not in the block.
type Parents = (Vec<i64>, Vec<Option<[u8; 8]>>);

/// A block of spans, and the fields wanted of it.
pub(crate) struct SpanBlock<'a> {
    places: Places<'a>,
    fields: &'a [SpanField],
    source: RefCell<&'a mut Source<'a>>,
    /// What could not be read, met while a row was looked at.
    fault: RefCell<Option<SegmentError>>,
    slots: Vec<OnceCell<Slot>>,
    rows: usize,
    starts: OnceCell<Vec<i64>>,
    durations: OnceCell<Vec<i64>>,
    states: OnceCell<Strings>,
    traces: OnceCell<Vec<[u8; 16]>>,
    ids: OnceCell<Vec<[u8; 8]>>,
    parents: OnceCell<Parents>,
    attributes: OnceCell<AttributesReader<'a>>,
    resources: OnceCell<(Vec<Arc<Resource>>, Vec<usize>)>,
    scopes: OnceCell<(Vec<Arc<Scope>>, Vec<usize>)>,
    events: OnceCell<Texts>,
    links: OnceCell<Texts>,
}

/// Returns what a cell holds, made at the first call.
fn once<T>(
    cell: &OnceCell<T>,
    make: impl FnOnce() -> Result<T, SegmentError>,
) -> Result<&T, SegmentError> {
    if let Some(v) = cell.get() {
        return Ok(v);
    }
    let made = make()?;
    Ok(cell.get_or_init(|| made))
}

impl<'a> SpanBlock<'a> {
    pub(crate) fn read(
        block: &'a [u8],
        fields: &'a [SpanField],
        source: &'a mut Source<'a>,
    ) -> Result<Self, SegmentError> {
        let (rows, places) = Places::read(block)?;
        Ok(Self {
            places,
            fields,
            source: RefCell::new(source),
            fault: RefCell::new(None),
            slots: fields.iter().map(|_| OnceCell::new()).collect(),
            rows,
            starts: OnceCell::new(),
            durations: OnceCell::new(),
            states: OnceCell::new(),
            traces: OnceCell::new(),
            ids: OnceCell::new(),
            parents: OnceCell::new(),
            attributes: OnceCell::new(),
            resources: OnceCell::new(),
            scopes: OnceCell::new(),
            events: OnceCell::new(),
            links: OnceCell::new(),
        })
    }

    fn starts(&self) -> Result<&[i64], SegmentError> {
        let all = once(&self.starts, || Ok(get_ints(&mut Decoder::new(self.places.starts))?))?;
        if all.len() == self.rows { Ok(all) } else { Err(Malformed(all.len()).into()) }
    }

    fn start(&self, row: usize) -> i64 {
        let start = self.starts().map(|s| s.get(row).copied().unwrap_or(0));
        self.or(start, 0)
    }

    pub(crate) const fn row(&self, row: usize) -> BlockRow<'_, 'a> {
        BlockRow { block: self, row }
    }

    /// Returns what went wrong while rows were looked at.
    pub(crate) fn take_fault(&self) -> Option<SegmentError> {
        self.fault.borrow_mut().take()
    }

    fn or<T>(&self, result: Result<T, SegmentError>, default: T) -> T {
        result.unwrap_or_else(|e| {
            *self.fault.borrow_mut() = Some(e);
            default
        })
    }

    fn resources(&self) -> Result<&(Vec<Arc<Resource>>, Vec<usize>), SegmentError> {
        once(&self.resources, || Ok(get_resources(&mut Decoder::new(self.places.resources))?))
    }

    fn scopes(&self) -> Result<&(Vec<Arc<Scope>>, Vec<usize>), SegmentError> {
        once(&self.scopes, || Ok(get_scopes(&mut Decoder::new(self.places.scopes))?))
    }

    fn attributes(&self) -> Result<&AttributesReader<'a>, SegmentError> {
        once(&self.attributes, || {
            Ok(AttributesReader::read(&mut Decoder::new(self.places.attributes))?)
        })
    }

    fn of_resources(&self, f: impl Fn(&Resource) -> FieldValue<'_>) -> Result<Slot, SegmentError> {
        let (table, of) = self.resources()?;
        Ok(Slot::Shared(table.iter().map(|r| f(r).into_owned()).collect(), of.clone()))
    }

    fn of_scopes(&self, f: impl Fn(&Scope) -> FieldValue<'_>) -> Result<Slot, SegmentError> {
        let (table, of) = self.scopes()?;
        Ok(Slot::Shared(table.iter().map(|r| f(r).into_owned()).collect(), of.clone()))
    }

    fn slot(&self, place: usize) -> Result<&Slot, SegmentError> {
        let cell = self.slots.get(place).ok_or(Malformed(place))?;
        let field = self.fields.get(place).ok_or(Malformed(place))?;
        once(cell, || self.make(field))
    }

    fn make(&self, field: &SpanField) -> Result<Slot, SegmentError> {
        let strings = |bytes| Ok(Slot::Strings(get_strings(&mut Decoder::new(bytes))?));
        let value = |a: &obs_model::Attributes, key: &str| {
            a.get(key).map_or(FieldValue::Nil, |v| FieldValue::from(v).into_owned())
        };
        let of_resource = |key: &str| self.of_resources(|r| value(&r.attributes, key));
        let of_scope = |key: &str| self.of_scopes(|s| value(&s.attributes, key));
        match field {
            SpanField::Name => strings(self.places.names),
            SpanField::StatusMessage => strings(self.places.messages),
            SpanField::Kind => Ok(Slot::Kinds(get_ints(&mut Decoder::new(self.places.kinds))?)),
            SpanField::Status => {
                Ok(Slot::Statuses(get_ints(&mut Decoder::new(self.places.statuses))?))
            }
            SpanField::Service => self.of_resources(|r| FieldValue::str(r.service())),
            SpanField::ScopeName => self.of_scopes(|s| FieldValue::str(s.name.as_str())),
            SpanField::ScopeVersion => self.of_scopes(|s| FieldValue::str(s.version.as_str())),
            SpanField::EventNames | SpanField::EventTimes => Ok(Slot::Events),
            SpanField::LinkTraces | SpanField::LinkSpans => Ok(Slot::Links),
            SpanField::Attribute(scope, key) => match scope {
                AttributeScope::Span => Ok(Slot::Key(self.attributes()?.under(key)?)),
                AttributeScope::Resource => of_resource(key),
                AttributeScope::Instrumentation => of_scope(key),
                AttributeScope::Event => Ok(Slot::Events),
                AttributeScope::Link => Ok(Slot::Links),
            },
            SpanField::AnyAttribute(key) => {
                let own = self.attributes()?.under(key)?;
                Ok(Slot::Any(own, Box::new(of_resource(key)?), Box::new(of_scope(key)?)))
            }
        }
    }

    fn texts<'s>(
        cell: &'s OnceCell<Texts>,
        bytes: &[u8],
        row: usize,
    ) -> Result<&'s [u8], SegmentError> {
        let texts = once(cell, || Ok(get_texts(&mut Decoder::new(bytes))?))?;
        Ok(texts.get(row).ok_or(Malformed(row))?)
    }

    fn of_events(&self, field: &SpanField, row: usize) -> Result<FieldValue<'_>, SegmentError> {
        let bytes = Self::texts(&self.events, self.places.events, row)?;
        if bytes.is_empty() {
            return Ok(FieldValue::Nil);
        }
        let start = self.start(row);
        let events = get_events(&mut Decoder::new(bytes), start)?;
        Ok(field_of_events(&events, TimestampNs::from_nanos(start), field).into_owned())
    }

    fn of_links(&self, field: &SpanField, row: usize) -> Result<FieldValue<'_>, SegmentError> {
        let bytes = Self::texts(&self.links, self.places.links, row)?;
        if bytes.is_empty() {
            return Ok(FieldValue::Nil);
        }
        let links = get_links(&mut Decoder::new(bytes))?;
        Ok(field_of_links(&links, field).into_owned())
    }

    fn field(&self, place: usize, row: usize) -> Result<FieldValue<'_>, SegmentError> {
        let field = self.fields.get(place).ok_or(Malformed(place))?;
        let at = |list: &[i64]| list.get(row).copied().ok_or(Malformed(row));
        let shared = |slot: &'_ Slot| -> FieldValue<'static> {
            match slot {
                Slot::Shared(values, of) => {
                    let value = of.get(row).and_then(|r| values.get(*r));
                    value.cloned().unwrap_or(FieldValue::Nil)
                }
                _ => FieldValue::Nil,
            }
        };
        Ok(match self.slot(place)? {
            Slot::Strings(s) => string_field(s, row)?,
            Slot::Kinds(v) => {
                let number = i32::try_from(at(v)?).map_err(|_| Malformed(row))?;
                FieldValue::Kind(SpanKind::from_otlp(number))
            }
            Slot::Statuses(v) => FieldValue::Status(match at(v)? {
                0 => StatusCode::Unset,
                1 => StatusCode::Ok,
                _ => StatusCode::Error,
            }),
            Slot::Key(k) => k.get(row, &mut self.source.borrow_mut())?,
            Slot::Shared(values, of) => {
                let value = of.get(row).and_then(|r| values.get(*r));
                value.map_or(FieldValue::Nil, FieldValue::lend)
            }
            Slot::Events => self.of_events(field, row)?,
            Slot::Links => self.of_links(field, row)?,
            Slot::Any(own, resource, scope) => {
                let value = own.get(row, &mut self.source.borrow_mut())?;
                if !value.is_nil() {
                    return Ok(value);
                }
                let value = shared(resource);
                if !value.is_nil() {
                    return Ok(value);
                }
                let value = self.of_events(field, row)?;
                if !value.is_nil() {
                    return Ok(value);
                }
                let value = self.of_links(field, row)?;
                if value.is_nil() { shared(scope) } else { value }
            }
        })
    }

    /// Returns a number that is the same in this block for the same value alone, if there is one.
    fn code(&self, place: usize, row: usize) -> Result<Option<u32>, SegmentError> {
        Ok(match self.slot(place)? {
            Slot::Strings(s) => s.code(row),
            Slot::Kinds(v) | Slot::Statuses(v) => v.get(row).and_then(|n| u32::try_from(*n).ok()),
            Slot::Key(k) => k.code(row),
            Slot::Shared(_, of) => of.get(row).and_then(|n| u32::try_from(*n).ok()),
            Slot::Events | Slot::Links | Slot::Any(..) => None,
        })
    }

    fn trace_at(&self, row: usize) -> Result<TraceId, SegmentError> {
        let all = once(&self.traces, || Ok(get_ids(&mut Decoder::new(self.places.traces))?))?;
        Ok(all.get(row).and_then(|t| TraceId::from_slice(t)).ok_or(Malformed(row))?)
    }

    fn id_at(&self, row: usize) -> Result<SpanId, SegmentError> {
        let all = once(&self.ids, || Ok(get_ids(&mut Decoder::new(self.places.ids))?))?;
        Ok(all.get(row).and_then(|s| SpanId::from_slice(s)).ok_or(Malformed(row))?)
    }

    fn parent_at(&self, row: usize) -> Result<Option<SpanId>, SegmentError> {
        let (parents, elsewhere) = once(&self.parents, || {
            let parents = get_ints(&mut Decoder::new(self.places.parents))?;
            let mut ids = get_ids::<8>(&mut Decoder::new(self.places.elsewhere))?.into_iter();
            let elsewhere = parents
                .iter()
                .map(|p| if *p == super::spans::ELSEWHERE { ids.next() } else { None })
                .collect();
            Ok((parents, elsewhere))
        })?;
        Ok(match *parents.get(row).ok_or(Malformed(row))? {
            0 => None,
            super::spans::ELSEWHERE => {
                elsewhere.get(row).copied().flatten().and_then(|id| SpanId::from_slice(&id))
            }
            back => {
                let at = usize::try_from(row as i64 - back).map_err(|_| Malformed(row))?;
                Some(self.id_at(at)?)
            }
        })
    }

    fn duration_at(&self, row: usize) -> Result<i64, SegmentError> {
        let all = once(&self.durations, || Ok(get_ints(&mut Decoder::new(self.places.durations))?));
        Ok(all?.get(row).copied().ok_or(Malformed(row))?)
    }

    fn weight_at(&self, row: usize) -> Result<f64, SegmentError> {
        match once(&self.states, || Ok(get_strings(&mut Decoder::new(self.places.states))?))? {
            Strings::Const(v) if v.is_empty() => Ok(1.0),
            states => match string_field(states, row)? {
                FieldValue::Str(s) => Ok(sampling_weight(&s)),
                _ => Ok(1.0),
            },
        }
    }

    /// Whether any row's event or link may have the key (and, of names, the text).
    fn mentions(&self, slot: &Slot, word: &str) -> Result<bool, SegmentError> {
        let (cell, bytes) = match slot {
            Slot::Events => (&self.events, self.places.events),
            _ => (&self.links, self.places.links),
        };
        let texts = once(cell, || Ok(get_texts(&mut Decoder::new(bytes))?))?;
        Ok(memchr::memmem::find(texts.all(), word.as_bytes()).is_some())
    }

    /// Returns tests, one of which a row passes whose field is equal to a text.
    fn tests(&self, place: usize, equal: &Equal<'_>) -> Result<Vec<Test<'_>>, SegmentError> {
        let text = equal.text;
        let shared = |slot: &'_ Slot| -> Vec<bool> {
            let hit = |v: &FieldValue<'_>| match v {
                FieldValue::Str(s) => s == text,
                // Any element of a list may be.
                FieldValue::List(_) => true,
                v => equal.by_text && v.text() == text,
            };
            match slot {
                Slot::Shared(values, _) => values.iter().map(hit).collect(),
                _ => Vec::new(),
            }
        };
        let word = match self.fields.get(place) {
            Some(SpanField::Attribute(_, key) | SpanField::AnyAttribute(key)) => key.as_str(),
            Some(SpanField::EventNames) => text,
            _ => "",
        };
        let mut out = Vec::new();
        match self.slot(place)? {
            s @ Slot::Shared(_, of) => out.push(Test::Shared(shared(s), of)),
            Slot::Strings(s) => out.push(Test::Strings(s, s.equal_to(text.as_bytes()))),
            Slot::Key(k) => out.push(Test::Key(k, k.equal_to(text, equal.by_text))),
            s @ (Slot::Events | Slot::Links) => {
                if self.mentions(s, word)? {
                    out.push(Test::Unknown);
                }
            }
            Slot::Any(own, resource, scope) => {
                out.push(Test::Key(own, own.equal_to(text, equal.by_text)));
                for slot in [&**resource, &**scope] {
                    if let Slot::Shared(_, of) = slot {
                        out.push(Test::Shared(shared(slot), of));
                    }
                }
                if self.mentions(&Slot::Events, word)? || self.mentions(&Slot::Links, word)? {
                    out.push(Test::Unknown);
                }
            }
            Slot::Kinds(_) | Slot::Statuses(_) => out.push(Test::Unknown),
        }
        out.retain(|t| !t.is_none());
        Ok(out)
    }

    /// Calls `f` with the rows in `[start, end)`, or all without a range, of the traces (ascending)
    /// where there are any, whose fields may be equal to texts; ends early when `f` returns false.
    pub(crate) fn each(
        &self,
        range: Option<(i64, i64)>,
        traces: &[TraceId],
        equal: &[Equal<'_>],
        f: &mut dyn FnMut(usize) -> Result<bool, SegmentError>,
    ) -> Result<(), SegmentError> {
        // Attributes tell spans apart best; what they leave nothing of need not be read further.
        let is_attribute = |e: &&Equal<'_>| {
            let field = e.fields.first().and_then(|f| self.fields.get(*f));
            let own = SpanField::Attribute(AttributeScope::Span, String::new());
            field.is_some_and(|f| std::mem::discriminant(f) == std::mem::discriminant(&own))
        };
        let (first, rest): (Vec<&Equal<'_>>, Vec<_>) = equal.iter().partition(is_attribute);
        let mut all = Vec::new();
        for e in first.into_iter().chain(rest) {
            let mut tests = Vec::new();
            for place in &e.fields {
                tests.append(&mut self.tests(*place, e)?);
            }
            if tests.is_empty() {
                return Ok(());
            }
            all.push(tests);
        }
        let inside = |row: usize| -> Result<bool, SegmentError> {
            let Some((start, end)) = range else { return Ok(true) };
            let t = *self.starts()?.get(row).ok_or(Malformed(row))?;
            Ok(t >= start && (t < end || end == i64::MAX))
        };
        for row in 0..self.rows {
            let hit = inside(row)?
                && all.iter().all(|tests| tests.iter().any(|t| t.holds(row)))
                && (traces.is_empty() || traces.binary_search(&self.trace_at(row)?).is_ok());
            if hit && !f(row)? {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// A span of a block.
#[derive(Clone, Copy)]
pub(crate) struct BlockRow<'b, 'a> {
    block: &'b SpanBlock<'a>,
    row: usize,
}

impl BlockRow<'_, '_> {
    pub(crate) fn trace(&self) -> Result<TraceId, SegmentError> {
        self.block.trace_at(self.row)
    }
}

/// Stands for an id that could not be read; the block's fault is noted.
const DAMAGED_ID: [u8; 16] = [0xff; 16];

impl SpanRow for BlockRow<'_, '_> {
    fn trace_id(&self) -> TraceId {
        let fallback = TraceId::from_slice(&DAMAGED_ID);
        match (self.block.trace_at(self.row), fallback) {
            (Ok(id), _) => id,
            (Err(e), Some(id)) => self.block.or(Err(e), id),
            (Err(_), None) => unreachable!("the constant is a valid id"),
        }
    }

    fn span_id(&self) -> SpanId {
        let fallback = SpanId::from_slice(&DAMAGED_ID[..8]);
        match (self.block.id_at(self.row), fallback) {
            (Ok(id), _) => id,
            (Err(e), Some(id)) => self.block.or(Err(e), id),
            (Err(_), None) => unreachable!("the constant is a valid id"),
        }
    }

    fn parent_id(&self) -> Option<SpanId> {
        self.block.or(self.block.parent_at(self.row), None)
    }

    fn start(&self) -> TimestampNs {
        TimestampNs::from_nanos(self.block.start(self.row))
    }

    fn duration_ns(&self) -> i64 {
        self.block.or(self.block.duration_at(self.row), 0)
    }

    fn get(&self, field: usize) -> FieldValue<'_> {
        self.block.or(self.block.field(field, self.row), FieldValue::Nil)
    }

    fn code(&self, field: usize) -> Option<u32> {
        self.block.or(self.block.code(field, self.row), None)
    }

    fn weight(&self) -> f64 {
        self.block.or(self.block.weight_at(self.row), 1.0)
    }
}

/// Adds the keys of a block's attributes.
pub(crate) fn keys_of(
    block: &[u8],
    out: &mut BTreeSet<(AttributeScope, String)>,
) -> Result<(), SegmentError> {
    let (_, places) = Places::read(block)?;
    let mut add = |scope: AttributeScope, key: &str| {
        if !out.contains(&(scope, key.to_owned())) {
            out.insert((scope, key.to_owned()));
        }
    };
    for key in AttributesReader::read(&mut Decoder::new(places.attributes))?.keys() {
        add(AttributeScope::Span, key);
    }
    for r in get_resources(&mut Decoder::new(places.resources))?.0 {
        r.attributes.iter().for_each(|(k, _)| add(AttributeScope::Resource, k));
    }
    for s in get_scopes(&mut Decoder::new(places.scopes))?.0 {
        s.attributes.iter().for_each(|(k, _)| add(AttributeScope::Instrumentation, k));
    }
    for bytes in get_texts(&mut Decoder::new(places.events))?.iter().filter(|b| !b.is_empty()) {
        for e in get_events(&mut Decoder::new(bytes), 0)? {
            e.attributes.iter().for_each(|(k, _)| add(AttributeScope::Event, k));
        }
    }
    for bytes in get_texts(&mut Decoder::new(places.links))?.iter().filter(|b| !b.is_empty()) {
        for l in get_links(&mut Decoder::new(bytes))? {
            l.attributes.iter().for_each(|(k, _)| add(AttributeScope::Link, k));
        }
    }
    Ok(())
}
