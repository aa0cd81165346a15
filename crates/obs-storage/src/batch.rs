//! Batches of records in the binary form that log and head share.

use crate::bin::{Decoder, Encoder, Malformed};
use crate::records::{
    Record, get_attributes, get_labels, get_scope, put_attributes, put_labels, put_scope,
};
use foldhash::HashMap;
use obs_model::{Labels, Resource, Scope};
use std::borrow::Borrow;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::Arc;

/// Numbers the shared parts of a batch of records: each is written once, in a table.
#[derive(Debug)]
struct Interner<T>(Vec<Arc<T>>);

impl<T: PartialEq> Interner<T> {
    fn number(&mut self, item: &Arc<T>) -> usize {
        /// Records come grouped, so that a match is near the end; looking further would let a
        /// request of many distinct resources cost its square.
        const LOOK_BACK: usize = 8;
        let skip = self.0.len().saturating_sub(LOOK_BACK);
        let near = self.0.iter().skip(skip);
        match near.rev().position(|s| Arc::ptr_eq(s, item) || **s == **item) {
            Some(back) => self.0.len() - 1 - back,
            None => {
                self.0.push(item.clone());
                self.0.len() - 1
            }
        }
    }
}

/// The shared parts met while records are written.
#[derive(Debug)]
pub(crate) struct Shared {
    resources: Interner<Resource>,
    scopes: Interner<Scope>,
    streams: Vec<Labels>,
    stream_numbers: HashMap<Labels, usize>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            resources: Interner(Vec::new()),
            scopes: Interner(Vec::new()),
            streams: Vec::new(),
            stream_numbers: HashMap::default(),
        }
    }
}

impl Shared {
    pub(crate) fn resource(&mut self, r: &Arc<Resource>) -> usize {
        self.resources.number(r)
    }

    pub(crate) fn scope(&mut self, s: &Arc<Scope>) -> usize {
        self.scopes.number(s)
    }

    pub(crate) fn stream(&mut self, labels: &Labels) -> usize {
        if let Some(n) = self.stream_numbers.get(labels) {
            return *n;
        }
        self.streams.push(labels.clone());
        self.stream_numbers.insert(labels.clone(), self.streams.len() - 1);
        self.streams.len() - 1
    }

    fn put(&self, e: &mut Encoder) {
        e.len(self.resources.0.len());
        self.resources.0.iter().for_each(|r| put_attributes(e, &r.attributes));
        e.len(self.scopes.0.len());
        self.scopes.0.iter().for_each(|s| put_scope(e, s));
        e.len(self.streams.len());
        self.streams.iter().for_each(|l| put_labels(e, l));
    }
}

/// The shared parts of records being read.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    resources: Vec<Arc<Resource>>,
    scopes: Vec<Arc<Scope>>,
    pub(crate) streams: Vec<Labels>,
}

impl Tables {
    fn get(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        let mut t = Self::default();
        for _ in 0..d.len()? {
            t.resources.push(Arc::new(Resource { attributes: get_attributes(d)? }));
        }
        for _ in 0..d.len()? {
            t.scopes.push(Arc::new(get_scope(d)?));
        }
        for _ in 0..d.len()? {
            t.streams.push(get_labels(d)?);
        }
        Ok(t)
    }

    pub(crate) fn resource(&self, d: &mut Decoder<'_>) -> Result<&Arc<Resource>, Malformed> {
        self.resources.get(d.len_free()?).ok_or(d.bad())
    }

    pub(crate) fn scope(&self, d: &mut Decoder<'_>) -> Result<&Arc<Scope>, Malformed> {
        self.scopes.get(d.len_free()?).ok_or(d.bad())
    }
}

/// A batch of records in binary form, as the log carries it and the head keeps it: the shared
/// parts, then each row as time, trace id (zero if none), length and body. Any row can be decoded
/// alone.
pub(crate) fn encode_batch<R: Record>(records: &[impl Borrow<R>]) -> Vec<u8> {
    thread_local! {
        /// Rows and one body, kept between batches: their pages are warm and need not grow.
        static BUFFERS: RefCell<(Encoder, Encoder)> = RefCell::default();
    }
    const KEPT: usize = 4 << 20;
    BUFFERS.with_borrow_mut(|(rows, body)| {
        let mut shared = Shared::default();
        rows.bytes.clear();
        for r in records.iter().map(Borrow::borrow) {
            body.bytes.clear();
            r.encode(body, &mut shared);
            rows.bytes.extend_from_slice(&r.time().to_le_bytes());
            rows.bytes.extend_from_slice(&r.trace().map_or([0; 16], |t| *t.as_bytes()));
            rows.raw(&body.bytes);
        }
        let mut e = Encoder { bytes: Vec::with_capacity(rows.bytes.len() + 256) };
        shared.put(&mut e);
        e.len(records.len());
        e.bytes.extend_from_slice(&rows.bytes);
        for buffer in [rows, body] {
            buffer.bytes.clear();
            buffer.bytes.shrink_to(KEPT);
        }
        e.bytes
    })
}

/// Where a row of a batch is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowRef {
    pub(crate) time: i64,
    pub(crate) trace: [u8; 16],
    offset: u32,
    len: u32,
}

/// A batch made by [`encode_batch`], rows decoded on demand.
#[derive(Debug)]
pub(crate) struct Batch<R> {
    bytes: Vec<u8>,
    pub(crate) tables: Tables,
    pub(crate) rows: Vec<RowRef>,
    record: PhantomData<fn() -> R>,
}

impl<R: Record> Batch<R> {
    pub(crate) fn of(records: &[impl Borrow<R>]) -> Result<Self, Malformed> {
        Self::read(encode_batch::<R>(records))
    }

    pub(crate) fn read(bytes: Vec<u8>) -> Result<Self, Malformed> {
        let mut d = Decoder::new(&bytes);
        let tables = Tables::get(&mut d)?;
        let n = d.len()?;
        let mut rows = Vec::with_capacity(n);
        for _ in 0..n {
            let time = i64::from_le_bytes(d.array()?);
            let trace = d.array()?;
            let len = d.len()?;
            let offset = u32::try_from(d.at()).map_err(|_| d.bad())?;
            d.bytes(len)?;
            rows.push(RowRef { time, trace, offset, len: len as u32 });
        }
        Ok(Self { bytes, tables, rows, record: PhantomData })
    }

    pub(crate) fn decode(&self, row: &RowRef) -> Result<R, Malformed> {
        R::decode(&mut Decoder::new(self.body(row)), &self.tables, row.time, row.trace)
    }

    /// Returns a row's bytes, in which its texts lie as they are.
    pub(crate) fn body(&self, row: &RowRef) -> &[u8] {
        let range = row.offset as usize..row.offset as usize + row.len as usize;
        self.bytes.get(range).unwrap_or_default()
    }

    /// Returns the binary form.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the bytes in memory, about.
    pub(crate) fn memory(&self) -> usize {
        if self.rows.is_empty() {
            return 0;
        }
        self.bytes.len() + self.rows.len() * size_of::<RowRef>() + 256
    }

    pub(crate) fn bounds(&self) -> Option<(i64, i64)> {
        let times = || self.rows.iter().map(|r| r.time);
        Some((times().min()?, times().max()?))
    }
}
