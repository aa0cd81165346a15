//! Fields of a block's spans, each column unpacked when a field of it is asked for first, and kept
//! for the next query.

use crate::bin::{Decoder, Malformed};
use crate::records::{get_events, get_links, get_scope};
use crate::segment::SegmentError;
use crate::segment::attrs::{AttributeIndex, AttributesReader, KeyColumn, Source, string_field};
use crate::segment::columns::{
    RowIds, SameAs, Strings, Texts, get_ints, get_numbers, get_strings, get_texts,
};
use crate::segment::ids::get_ids;
use crate::segment::kept::{Columns, LazyBlock, Measured, Taken};
use crate::segment::logs::{get_resources, get_table};
use crate::segment::rows::{RowFilter, VisitRow};
use crate::segment::span_places::Places;
use foldhash::HashMap;
use obs_model::{
    AttributeScope, Equal, FieldValue, Resource, Scope, Span, SpanField, SpanId, SpanKind, SpanRow,
    SpanStatus, StatusCode, TimestampNs, TraceId, field_of_events, field_of_links, sampling_weight,
};
use std::cell::{OnceCell, RefCell};
use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

fn get_scopes(d: &mut Decoder<'_>) -> Result<(Vec<Arc<Scope>>, Vec<u32>), Malformed> {
    get_table(d, |d| get_scope(&mut Decoder::new(d.raw()?)).map(Arc::new))
}

/// The table that rows name their resource or scope of by number.
#[derive(Debug, Clone, Copy)]
enum Table {
    Resources,
    Scopes,
}

/// What one wanted field is read from.
#[derive(Debug)]
enum Slot {
    Strings(Strings),
    Kinds(Vec<i64>),
    Statuses(Vec<i64>),
    Key(KeyColumn),
    /// One value a resource or scope, and the number of each row's.
    Shared(Vec<FieldValue<'static>>, Table),
    /// Read from the row's events or links.
    Events,
    Links,
    /// The key of the span itself, of the resource, of the scope.
    Any(KeyColumn, Box<Self>, Box<Self>),
}

/// Which rows are equal to a text.
enum Test<'t> {
    /// By the number of the row's resource or scope.
    Shared(Vec<bool>, &'t [u32]),
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
                of.get(row).and_then(|r| hits.get(*r as usize)).copied().unwrap_or(false)
            }
            Self::Strings(s, SameAs::Number(n)) => s.is_number(row, *n),
            Self::Strings(_, same) => matches!(same, SameAs::All | SameAs::Unknown),
            Self::Key(k, same) => k.is(row, *same),
            Self::Unknown => true,
        }
    }
}

impl Measured for Slot {
    fn bytes(&self) -> usize {
        match self {
            Self::Strings(s) => s.bytes(),
            Self::Kinds(v) | Self::Statuses(v) => v.bytes(),
            Self::Key(k) => k.bytes(),
            Self::Shared(values, _) => values.iter().map(FieldValue::size_bytes).sum(),
            Self::Events | Self::Links => 0,
            Self::Any(own, resource, scope) => own.bytes() + resource.bytes() + scope.bytes(),
        }
    }
}

/// Distances to parents, and the ids of those that are not in the block, with their rows.
type Parents = (Vec<i64>, Vec<(u32, [u8; 8])>);
/// Distinct resources or scopes, and the number of each row's.
type Shared<T> = (Vec<Arc<T>>, Vec<u32>);

impl Measured for Parents {
    fn bytes(&self) -> usize {
        self.0.bytes() + self.1.bytes()
    }
}

impl Measured for Shared<Resource> {
    fn bytes(&self) -> usize {
        self.1.bytes() + self.0.iter().map(|r| r.attributes.size_bytes()).sum::<usize>()
    }
}

impl Measured for Shared<Scope> {
    fn bytes(&self) -> usize {
        let one = |s: &Arc<Scope>| s.name.len() + s.version.len() + s.attributes.size_bytes();
        self.1.bytes() + self.0.iter().map(one).sum::<usize>()
    }
}

/// Columns that whole spans are made of, and that fields have in their slots.
#[derive(Debug)]
struct Whole {
    names: Strings,
    kinds: Vec<u32>,
    statuses: Vec<u32>,
    messages: Strings,
}

impl Measured for Whole {
    fn bytes(&self) -> usize {
        let texts = self.names.bytes() + self.messages.bytes();
        texts + self.kinds.bytes() + self.statuses.bytes()
    }
}

/// What was unpacked of a block of spans.
pub(crate) struct SpanColumns {
    places: Places,
    rows: usize,
    taken: Taken,
    slots: RwLock<HashMap<SpanField, Arc<Slot>>>,
    starts: OnceLock<Vec<i64>>,
    durations: OnceLock<Vec<i64>>,
    states: OnceLock<Strings>,
    traces: OnceLock<Vec<[u8; 16]>>,
    ids: OnceLock<Vec<[u8; 8]>>,
    parents: OnceLock<Parents>,
    attributes: OnceLock<AttributeIndex>,
    resources: OnceLock<Shared<Resource>>,
    scopes: OnceLock<Shared<Scope>>,
    events: OnceLock<Texts>,
    links: OnceLock<Texts>,
    whole: OnceLock<Whole>,
}

impl Columns for SpanColumns {
    fn bytes(&self) -> usize {
        let attributes = self.attributes.get().map_or(0, AttributeIndex::grown);
        size_of::<Self>() + self.taken.get() + attributes
    }
}

impl SpanColumns {
    pub(crate) fn read(block: &[u8]) -> Result<Self, Malformed> {
        let (rows, places) = Places::read(block)?;
        Ok(Self {
            places,
            rows,
            taken: Taken::default(),
            slots: RwLock::default(),
            starts: OnceLock::new(),
            durations: OnceLock::new(),
            states: OnceLock::new(),
            traces: OnceLock::new(),
            ids: OnceLock::new(),
            parents: OnceLock::new(),
            attributes: OnceLock::new(),
            resources: OnceLock::new(),
            scopes: OnceLock::new(),
            events: OnceLock::new(),
            links: OnceLock::new(),
            whole: OnceLock::new(),
        })
    }
}

/// A block of spans, and the fields wanted of it.
pub(crate) struct SpanBlock<'a> {
    columns: &'a SpanColumns,
    bytes: &'a LazyBlock<'a>,
    fields: &'a [SpanField],
    source: RefCell<&'a mut Source<'a>>,
    /// What could not be read, met while a row was looked at.
    fault: RefCell<Option<SegmentError>>,
    slots: Vec<OnceCell<Arc<Slot>>>,
}

impl<'a> SpanBlock<'a> {
    pub(crate) fn new(
        columns: &'a SpanColumns,
        bytes: &'a LazyBlock<'a>,
        fields: &'a [SpanField],
        source: &'a mut Source<'a>,
    ) -> Self {
        Self {
            columns,
            bytes,
            fields,
            source: RefCell::new(source),
            fault: RefCell::new(None),
            slots: fields.iter().map(|_| OnceCell::new()).collect(),
        }
    }

    /// Returns what a cell holds, read from a column at the first call.
    fn once<T: Measured>(
        &self,
        cell: &'a OnceLock<T>,
        place: &Range<usize>,
        read: impl FnOnce(&mut Decoder<'_>) -> Result<T, Malformed>,
    ) -> Result<&'a T, SegmentError> {
        self.columns.taken.read(cell, self.bytes, place, read)
    }

    fn starts(&self) -> Result<&'a [i64], SegmentError> {
        let c = self.columns;
        let all = self.once(&c.starts, &c.places.starts, get_ints)?;
        if all.len() == c.rows { Ok(all) } else { Err(Malformed(all.len()).into()) }
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

    fn resources(&self) -> Result<&'a Shared<Resource>, SegmentError> {
        let c = self.columns;
        self.once(&c.resources, &c.places.resources, get_resources)
    }

    fn scopes(&self) -> Result<&'a Shared<Scope>, SegmentError> {
        let c = self.columns;
        self.once(&c.scopes, &c.places.scopes, get_scopes)
    }

    /// Returns the number of each row's resource or scope.
    fn of(&self, table: Table) -> Result<&'a [u32], SegmentError> {
        Ok(match table {
            Table::Resources => &self.resources()?.1,
            Table::Scopes => &self.scopes()?.1,
        })
    }

    /// Returns the bytes of spans' own attributes.
    fn attribute_bytes(&self) -> Result<&'a [u8], SegmentError> {
        Ok(self.bytes.at(&self.columns.places.attributes)?.rest())
    }

    fn attributes(&self) -> Result<&'a AttributeIndex, SegmentError> {
        let c = self.columns;
        c.taken.once(&c.attributes, || Ok(AttributeIndex::read(self.attribute_bytes()?)?))
    }

    /// Returns the values of spans' own attributes under a key.
    fn under(&self, key: &str) -> Result<KeyColumn, SegmentError> {
        self.attributes()?.under(|| self.attribute_bytes(), key)
    }

    /// Returns what only whole spans are made of.
    fn whole(&self) -> Result<&'a Whole, SegmentError> {
        let c = self.columns;
        c.taken.once(&c.whole, || {
            let at = |p| self.bytes.at(p);
            Ok(Whole {
                names: get_strings(&mut at(&c.places.names)?)?,
                kinds: get_numbers(&mut at(&c.places.kinds)?, u32::MAX)?,
                statuses: get_numbers(&mut at(&c.places.statuses)?, u32::MAX)?,
                messages: get_strings(&mut at(&c.places.messages)?)?,
            })
        })
    }

    /// Visits the spans that a filter lets through, in order.
    pub(crate) fn visit(
        &self,
        filter: &RowFilter<'_>,
        visit: VisitRow<'_, Span>,
    ) -> Result<ControlFlow<()>, SegmentError> {
        let c = self.columns;
        let traces = self.once(&c.traces, &c.places.traces, get_ids)?;
        let starts = self.starts()?;
        if traces.len() != c.rows {
            return Err(Malformed(traces.len()).into());
        }
        let rows = starts.iter().zip(traces).enumerate();
        let mut rows = rows.filter(|(_, (start, t))| filter.admits(**start, t)).peekable();
        if rows.peek().is_none() {
            return Ok(ControlFlow::Continue(()));
        }
        let whole = self.whole()?;
        let states = self.once(&c.states, &c.places.states, get_strings)?;
        let ((resources, resource_of), (scopes, scope_of)) = (self.resources()?, self.scopes()?);
        let (events, links) = (self.events()?, self.links()?);
        let bytes = || self.attribute_bytes();
        let mut attributes = AttributesReader::new(self.attributes()?, &bytes);
        let ids = RowIds::default();
        for (i, (start, _)) in rows {
            let bad = Malformed(i);
            let (event_bytes, link_bytes) = (events.get(i).ok_or(bad)?, links.get(i).ok_or(bad)?);
            let resource = resource_of.get(i).and_then(|r| resources.get(*r as usize));
            let scope = scope_of.get(i).and_then(|s| scopes.get(*s as usize));
            let kind = whole.kinds.get(i).and_then(|k| i32::try_from(*k).ok()).ok_or(bad)?;
            let span = Span {
                trace_id: self.trace_at(i)?,
                span_id: self.id_at(i)?,
                parent_id: self.parent_at(i)?,
                name: whole.names.string(i, ids)?,
                kind: SpanKind::from_otlp(kind),
                start: TimestampNs::from_nanos(*start),
                end: TimestampNs::from_nanos(start.wrapping_add(self.duration_at(i)?)),
                status: match whole.statuses.get(i) {
                    Some(0) => SpanStatus::Unset,
                    Some(1) => SpanStatus::Ok,
                    Some(2) => SpanStatus::Error(whole.messages.string(i, ids)?),
                    _ => return Err(bad.into()),
                },
                trace_state: states.string(i, ids)?,
                attributes: attributes.of(i, &mut self.source.borrow_mut())?,
                events: if event_bytes.is_empty() {
                    Vec::new()
                } else {
                    get_events(&mut Decoder::new(event_bytes), *start)?
                },
                links: if link_bytes.is_empty() {
                    Vec::new()
                } else {
                    get_links(&mut Decoder::new(link_bytes))?
                },
                resource: resource.cloned().ok_or(bad)?,
                scope: scope.cloned().ok_or(bad)?,
            };
            if visit(span)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn of_resources(&self, f: impl Fn(&Resource) -> FieldValue<'_>) -> Result<Slot, SegmentError> {
        let values = self.resources()?.0.iter().map(|r| f(r).into_owned());
        Ok(Slot::Shared(values.collect(), Table::Resources))
    }

    fn of_scopes(&self, f: impl Fn(&Scope) -> FieldValue<'_>) -> Result<Slot, SegmentError> {
        let values = self.scopes()?.0.iter().map(|s| f(s).into_owned());
        Ok(Slot::Shared(values.collect(), Table::Scopes))
    }

    fn slot(&self, place: usize) -> Result<&Slot, SegmentError> {
        let cell = self.slots.get(place).ok_or(Malformed(place))?;
        if let Some(slot) = cell.get() {
            return Ok(slot);
        }
        let field = self.fields.get(place).ok_or(Malformed(place))?;
        let all = &self.columns.slots;
        let known = all.read().unwrap_or_else(PoisonError::into_inner).get(field).cloned();
        let slot = match known {
            Some(slot) => slot,
            None => {
                let made = Arc::new(self.make(field)?);
                let key = match field {
                    SpanField::Attribute(_, key) | SpanField::AnyAttribute(key) => key.len(),
                    _ => 0,
                };
                self.columns.taken.add(size_of::<(SpanField, Slot)>() + key + made.bytes());
                let mut all = all.write().unwrap_or_else(PoisonError::into_inner);
                all.insert(field.clone(), made.clone());
                made
            }
        };
        Ok(cell.get_or_init(|| slot))
    }

    fn make(&self, field: &SpanField) -> Result<Slot, SegmentError> {
        let places = &self.columns.places;
        let strings = |p| Ok(Slot::Strings(get_strings(&mut self.bytes.at(p)?)?));
        let ints = |p| -> Result<_, SegmentError> { Ok(get_ints(&mut self.bytes.at(p)?)?) };
        let value = |a: &obs_model::Attributes, key: &str| {
            a.get(key).map_or(FieldValue::Nil, |v| FieldValue::from(v).into_owned())
        };
        let of_resource = |key: &str| self.of_resources(|r| value(&r.attributes, key));
        let of_scope = |key: &str| self.of_scopes(|s| value(&s.attributes, key));
        match field {
            SpanField::Name => strings(&places.names),
            SpanField::StatusMessage => strings(&places.messages),
            SpanField::Kind => Ok(Slot::Kinds(ints(&places.kinds)?)),
            SpanField::Status => Ok(Slot::Statuses(ints(&places.statuses)?)),
            SpanField::Service => self.of_resources(|r| FieldValue::str(r.service())),
            SpanField::ScopeName => self.of_scopes(|s| FieldValue::str(s.name.as_str())),
            SpanField::ScopeVersion => self.of_scopes(|s| FieldValue::str(s.version.as_str())),
            SpanField::EventNames | SpanField::EventTimes => Ok(Slot::Events),
            SpanField::LinkTraces | SpanField::LinkSpans => Ok(Slot::Links),
            SpanField::Attribute(scope, key) => match scope {
                AttributeScope::Span => Ok(Slot::Key(self.under(key)?)),
                AttributeScope::Resource => of_resource(key),
                AttributeScope::Instrumentation => of_scope(key),
                AttributeScope::Event => Ok(Slot::Events),
                AttributeScope::Link => Ok(Slot::Links),
            },
            SpanField::AnyAttribute(key) => {
                let own = self.under(key)?;
                Ok(Slot::Any(own, Box::new(of_resource(key)?), Box::new(of_scope(key)?)))
            }
        }
    }

    fn events(&self) -> Result<&'a Texts, SegmentError> {
        let c = self.columns;
        self.once(&c.events, &c.places.events, get_texts)
    }

    fn links(&self) -> Result<&'a Texts, SegmentError> {
        let c = self.columns;
        self.once(&c.links, &c.places.links, get_texts)
    }

    fn of_events(&self, field: &SpanField, row: usize) -> Result<FieldValue<'_>, SegmentError> {
        let bytes = self.events()?.get(row).ok_or(Malformed(row))?;
        if bytes.is_empty() {
            return Ok(FieldValue::Nil);
        }
        let start = self.start(row);
        let events = get_events(&mut Decoder::new(bytes), start)?;
        Ok(field_of_events(&events, TimestampNs::from_nanos(start), field).into_owned())
    }

    fn of_links(&self, field: &SpanField, row: usize) -> Result<FieldValue<'_>, SegmentError> {
        let bytes = self.links()?.get(row).ok_or(Malformed(row))?;
        if bytes.is_empty() {
            return Ok(FieldValue::Nil);
        }
        let links = get_links(&mut Decoder::new(bytes))?;
        Ok(field_of_links(&links, field).into_owned())
    }

    /// Returns a row's value of those that rows share.
    fn shared<'s>(&self, slot: &'s Slot, row: usize) -> Result<FieldValue<'s>, SegmentError> {
        let Slot::Shared(values, table) = slot else { return Ok(FieldValue::Nil) };
        let number = self.of(*table)?.get(row).ok_or(Malformed(row))?;
        Ok(values.get(*number as usize).map_or(FieldValue::Nil, FieldValue::lend))
    }

    fn field(&self, place: usize, row: usize) -> Result<FieldValue<'_>, SegmentError> {
        let field = self.fields.get(place).ok_or(Malformed(place))?;
        let at = |list: &[i64]| list.get(row).copied().ok_or(Malformed(row));
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
            slot @ Slot::Shared(..) => self.shared(slot, row)?,
            Slot::Events => self.of_events(field, row)?,
            Slot::Links => self.of_links(field, row)?,
            Slot::Any(own, resource, scope) => {
                let value = own.get(row, &mut self.source.borrow_mut())?;
                if !value.is_nil() {
                    return Ok(value);
                }
                let value = self.shared(resource, row)?;
                if !value.is_nil() {
                    return Ok(value);
                }
                let value = self.of_events(field, row)?;
                if !value.is_nil() {
                    return Ok(value);
                }
                let value = self.of_links(field, row)?;
                if value.is_nil() { self.shared(scope, row)? } else { value }
            }
        })
    }

    /// Returns a number that is the same in this block for the same value alone, if there is one.
    fn code(&self, place: usize, row: usize) -> Result<Option<u32>, SegmentError> {
        Ok(match self.slot(place)? {
            Slot::Strings(s) => s.code(row),
            Slot::Kinds(v) | Slot::Statuses(v) => v.get(row).and_then(|n| u32::try_from(*n).ok()),
            Slot::Key(k) => k.code(row),
            Slot::Shared(_, table) => self.of(*table)?.get(row).copied(),
            Slot::Events | Slot::Links | Slot::Any(..) => None,
        })
    }

    fn trace_at(&self, row: usize) -> Result<TraceId, SegmentError> {
        let c = self.columns;
        let all = self.once(&c.traces, &c.places.traces, get_ids)?;
        Ok(all.get(row).and_then(|t| TraceId::from_slice(t)).ok_or(Malformed(row))?)
    }

    fn id_at(&self, row: usize) -> Result<SpanId, SegmentError> {
        let c = self.columns;
        let all = self.once(&c.ids, &c.places.ids, get_ids)?;
        Ok(all.get(row).and_then(|s| SpanId::from_slice(s)).ok_or(Malformed(row))?)
    }

    fn parent_at(&self, row: usize) -> Result<Option<SpanId>, SegmentError> {
        let c = self.columns;
        let (parents, elsewhere) = c.taken.once(&c.parents, || {
            let parents = get_ints(&mut self.bytes.at(&c.places.parents)?)?;
            let ids = get_ids::<8>(&mut self.bytes.at(&c.places.elsewhere)?)?;
            let is_there = |(_, p): &(u32, &i64)| **p == super::spans::ELSEWHERE;
            let rows = (0_u32..).zip(&parents).filter(is_there).map(|(row, _)| row);
            let elsewhere = rows.zip(ids).collect();
            Ok((parents, elsewhere))
        })?;
        Ok(match *parents.get(row).ok_or(Malformed(row))? {
            0 => None,
            super::spans::ELSEWHERE => {
                let at = elsewhere.binary_search_by_key(&row, |(r, _)| *r as usize).ok();
                at.and_then(|at| elsewhere.get(at)).and_then(|(_, id)| SpanId::from_slice(id))
            }
            back => {
                let at = usize::try_from(row as i64 - back).map_err(|_| Malformed(row))?;
                Some(self.id_at(at)?)
            }
        })
    }

    fn duration_at(&self, row: usize) -> Result<i64, SegmentError> {
        let c = self.columns;
        let all = self.once(&c.durations, &c.places.durations, get_ints)?;
        Ok(all.get(row).copied().ok_or(Malformed(row))?)
    }

    fn weight_at(&self, row: usize) -> Result<f64, SegmentError> {
        let c = self.columns;
        match self.once(&c.states, &c.places.states, get_strings)? {
            Strings::Const(v) if v.is_empty() => Ok(1.0),
            states => match string_field(states, row)? {
                FieldValue::Str(s) => Ok(sampling_weight(&s)),
                _ => Ok(1.0),
            },
        }
    }

    /// Whether any row's event or link may have the key (and, of names, the text).
    fn mentions(&self, slot: &Slot, word: &str) -> Result<bool, SegmentError> {
        let texts = if matches!(slot, Slot::Events) { self.events()? } else { self.links()? };
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
            s @ Slot::Shared(_, table) => out.push(Test::Shared(shared(s), self.of(*table)?)),
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
                    if let Slot::Shared(_, table) = slot {
                        out.push(Test::Shared(shared(slot), self.of(*table)?));
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
        for row in 0..self.columns.rows {
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
    let at = |p: &Range<usize>| block.get(p.clone()).map(Decoder::new).ok_or(Malformed(p.start));
    let mut add = |scope: AttributeScope, key: &str| {
        if !out.contains(&(scope, key.to_owned())) {
            out.insert((scope, key.to_owned()));
        }
    };
    for key in AttributeIndex::read(at(&places.attributes)?.rest())?.keys() {
        add(AttributeScope::Span, key);
    }
    for r in get_resources(&mut at(&places.resources)?)?.0 {
        r.attributes.iter().for_each(|(k, _)| add(AttributeScope::Resource, k));
    }
    for s in get_scopes(&mut at(&places.scopes)?)?.0 {
        s.attributes.iter().for_each(|(k, _)| add(AttributeScope::Instrumentation, k));
    }
    for bytes in get_texts(&mut at(&places.events)?)?.iter().filter(|b| !b.is_empty()) {
        for e in get_events(&mut Decoder::new(bytes), 0)? {
            e.attributes.iter().for_each(|(k, _)| add(AttributeScope::Event, k));
        }
    }
    for bytes in get_texts(&mut at(&places.links)?)?.iter().filter(|b| !b.is_empty()) {
        for l in get_links(&mut Decoder::new(bytes))? {
            l.attributes.iter().for_each(|(k, _)| add(AttributeScope::Link, k));
        }
    }
    Ok(())
}
