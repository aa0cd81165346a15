//! Log frames: series definitions and write batches in binary form.

use crate::batch::Batch;
use crate::bin::{Decoder, Encoder, Malformed};
use crate::records::{get_histogram, get_labels, put_histogram, put_labels};
use crate::segment::Operations;
use crate::segment::columns::{get_packed, put_packed};
use crate::wal::{FRAME_BATCH, FRAME_SERIES};
use foldhash::HashMap;
use obs_model::{
    Labels, LlmCall, LogRecord, MetricKind, MetricMetadata, Sample, SampleValue, Span, TenantId,
    TimestampMs,
};
use std::sync::Arc;

/// The records of a write in the form that log and head share.
#[derive(Debug)]
pub(crate) struct Records {
    pub(crate) logs: Batch<LogRecord>,
    pub(crate) spans: Batch<Span>,
    pub(crate) calls: Batch<LlmCall>,
    pub(crate) operations: Operations,
    pub(crate) metadata: Vec<MetricMetadata>,
}

impl Records {
    pub(crate) fn memory(&self) -> usize {
        self.logs.memory() + self.spans.memory() + self.calls.memory()
    }
}

/// Writes a batch's payload; samples by the numbers of their series.
pub(crate) fn put_batch<'a>(
    out: &mut Vec<u8>,
    tenant: &TenantId,
    records: &Records,
    samples: usize,
    list: impl Iterator<Item = (u32, &'a Sample)>,
) {
    let mut e = Encoder { bytes: std::mem::take(out) };
    e.str(tenant.as_str());
    e.raw(records.logs.bytes());
    e.raw(records.spans.bytes());
    e.raw(records.calls.bytes());
    e.len(records.operations.len());
    for (service, operation, kind) in &records.operations {
        e.str(service);
        e.str(operation);
        e.int((*kind).into());
    }
    e.len(records.metadata.len());
    for m in &records.metadata {
        for s in [&m.name, m.kind.as_str(), &m.help, &m.unit] {
            e.str(s);
        }
    }
    e.len(samples);
    let (mut last_series, mut last_time) = (0_i64, 0_i64);
    for (series, s) in list {
        let t = s.timestamp.millis();
        e.int(i64::from(series) - last_series);
        e.int(t.wrapping_sub(last_time));
        (last_series, last_time) = (series.into(), t);
        match &s.value {
            SampleValue::Float(f) => {
                e.u8(0);
                e.f64(*f);
            }
            SampleValue::Histogram(h) => {
                e.u8(1);
                put_histogram(&mut e, h);
            }
        }
    }
    *out = e.bytes;
}

/// A decoded batch.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) tenant: TenantId,
    pub(crate) records: Records,
    pub(crate) samples: Vec<(u32, Sample)>,
}

fn get_batch(payload: &[u8]) -> Result<Decoded, Malformed> {
    let mut d = Decoder::new(payload);
    let tenant = TenantId::new(d.str()?).map_err(|_| d.bad())?;
    let logs = Batch::read(d.raw()?.to_vec())?;
    let spans = Batch::read(d.raw()?.to_vec())?;
    let calls = Batch::read(d.raw()?.to_vec())?;
    let mut operations = Operations::new();
    for _ in 0..d.len()? {
        let (service, operation) = (d.string()?, d.string()?);
        operations.insert((service, operation, i32::try_from(d.int()?).map_err(|_| d.bad())?));
    }
    let mut metadata = Vec::new();
    for _ in 0..d.len()? {
        metadata.push(MetricMetadata {
            name: d.string()?,
            kind: MetricKind::parse(d.str()?),
            help: d.string()?,
            unit: d.string()?,
        });
    }
    let n = d.len()?;
    let mut samples = Vec::with_capacity(n);
    let (mut series, mut time) = (0_i64, 0_i64);
    for _ in 0..n {
        series = series.wrapping_add(d.int()?);
        time = time.wrapping_add(d.int()?);
        let value = match d.u8()? {
            0 => SampleValue::Float(d.f64()?),
            1 => SampleValue::Histogram(Arc::new(get_histogram(&mut d)?)),
            _ => return Err(d.bad()),
        };
        let number = u32::try_from(series).map_err(|_| d.bad())?;
        samples.push((number, Sample { timestamp: TimestampMs::from_millis(time), value }));
    }
    let records = Records { logs, spans, calls, operations, metadata };
    Ok(Decoded { tenant, records, samples })
}

/// Writes definitions of series: number and labels.
pub(crate) fn put_series(tenant: &TenantId, list: &[(u32, Labels)]) -> Vec<u8> {
    let mut body = Encoder::default();
    body.len(list.len());
    for (number, labels) in list {
        body.uint((*number).into());
        put_labels(&mut body, labels);
    }
    let mut e = Encoder::default();
    e.str(tenant.as_str());
    put_packed(&mut e, &body.bytes);
    e.bytes
}

/// A series, as a log file defines it.
#[derive(Debug)]
struct Definition {
    labels: Labels,
    /// Its number in the head that the file is read into, once that is known. Looking up labels
    /// for every sample took most of the time.
    reference: Option<u32>,
}

/// Series of a tenant by number, as one log file defines them.
#[derive(Debug, Default)]
pub(crate) struct Definitions {
    list: Vec<Definition>,
    /// By number: one more than the place in the list.
    places: Vec<u32>,
    /// Places of numbers that are too large for such a table.
    others: HashMap<u32, u32>,
}

impl Definitions {
    /// Numbers are those of a head: dense, and hardly ever as large as this.
    const DENSE: usize = 1 << 24;

    fn find(&mut self, number: u32) -> Option<&mut Definition> {
        let place = self.place(number)?;
        self.list.get_mut(place)
    }

    fn place(&self, number: u32) -> Option<usize> {
        let place = self.places.get(number as usize).or_else(|| self.others.get(&number));
        place?.checked_sub(1).map(|p| p as usize)
    }

    fn define(&mut self, number: u32, labels: Labels) {
        if let Some(known) = self.find(number) {
            if known.labels != labels {
                *known = Definition { labels, reference: None };
            }
            return;
        }
        self.list.push(Definition { labels, reference: None });
        let place = self.list.len() as u32;
        let at = number as usize;
        if at >= Self::DENSE {
            self.others.insert(number, place);
            return;
        }
        if self.places.len() <= at {
            self.places.resize(at + 1, 0);
        }
        if let Some(slot) = self.places.get_mut(at) {
            *slot = place;
        }
    }

    pub(crate) fn contains(&self, number: u32) -> bool {
        self.place(number).is_some()
    }

    /// Returns the series' number in the head, which `find` knows by its labels.
    pub(crate) fn reference(
        &mut self,
        number: u32,
        find: impl FnOnce(&Labels) -> u32,
    ) -> Option<u32> {
        let known = self.find(number)?;
        Some(*known.reference.get_or_insert_with(|| find(&known.labels)))
    }
}

/// What one log file defines, by tenant.
#[derive(Debug, Default)]
pub(crate) struct Dictionary(HashMap<TenantId, Definitions>);

impl Dictionary {
    pub(crate) fn define(&mut self, series: Series) {
        let known = self.0.entry(series.tenant).or_default();
        for (number, labels) in series.list {
            known.define(number, labels);
        }
    }

    pub(crate) fn get(&self, tenant: &TenantId) -> Option<&Definitions> {
        self.0.get(tenant)
    }

    pub(crate) fn get_mut(&mut self, tenant: &TenantId) -> Option<&mut Definitions> {
        self.0.get_mut(tenant)
    }
}

/// A decoded frame of definitions: numbers and labels.
#[derive(Debug)]
pub(crate) struct Series {
    tenant: TenantId,
    list: Vec<(u32, Labels)>,
}

fn get_series(payload: &[u8]) -> Result<Series, Malformed> {
    let mut d = Decoder::new(payload);
    let tenant = TenantId::new(d.str()?).map_err(|_| d.bad())?;
    let body = get_packed(&mut d)?;
    let mut b = Decoder::new(&body);
    let one = |b: &mut Decoder<'_>| {
        let number = u32::try_from(b.uint()?).map_err(|_| b.bad())?;
        Ok((number, get_labels(b)?))
    };
    let list = (0..b.len()?).map(|_| one(&mut b)).collect::<Result<_, _>>()?;
    Ok(Series { tenant, list })
}

/// What a frame of the log says.
#[derive(Debug)]
pub(crate) enum Entry {
    Series(Series),
    Batch(Box<Decoded>),
}

/// Why a frame whose checksum is right says nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadEntry {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("frame of unknown type {0}")]
    Unknown(u8),
}

/// Decodes the frames of a log file, in their order.
#[derive(Debug, Default)]
pub(crate) struct Entries {
    /// The definitions taken last: most are followed by their copy.
    last: Vec<u8>,
}

impl Entries {
    /// Returns what a frame says; nothing for a copy of the definitions before it.
    pub(crate) fn read(&mut self, kind: u8, payload: &[u8]) -> Result<Option<Entry>, BadEntry> {
        match kind {
            FRAME_SERIES if self.last == payload => Ok(None),
            FRAME_SERIES => {
                let series = get_series(payload)?;
                self.last.clear();
                self.last.extend_from_slice(payload);
                Ok(Some(Entry::Series(series)))
            }
            FRAME_BATCH => Ok(Some(Entry::Batch(Box::new(get_batch(payload)?)))),
            other => Err(BadEntry::Unknown(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_means_what_the_last_definition_says() {
        let tenant = TenantId::default();
        let mut all = Dictionary::default();
        let labels = |v: &str| Labels::from_pairs([("l", v)]);
        let large = 1 << 30;
        let frame = |list: &[(u32, Labels)]| put_series(&tenant, list);
        let first = frame(&[(0, labels("a")), (7, labels("b")), (large, labels("c"))]);
        let mut entries = Entries::default();
        let mut read = |payload: &[u8]| match entries.read(FRAME_SERIES, payload).unwrap() {
            Some(Entry::Series(series)) => Some(series),
            Some(Entry::Batch(_)) => unreachable!(),
            None => None,
        };
        all.define(read(&first).unwrap());
        assert!(read(&first).is_none(), "a copy");
        let known = all.get_mut(&tenant).unwrap();
        let found = |known: &mut Definitions, number, is: &str, there| {
            known.reference(number, |l| {
                assert_eq!(*l, labels(is));
                there
            })
        };
        for (number, is) in [(0, "a"), (7, "b"), (large, "c")] {
            assert!(known.contains(number));
            assert_eq!(found(known, number, is, number + 1), Some(number + 1));
            // Asked for once.
            assert_eq!(known.reference(number, |_| unreachable!()), Some(number + 1));
        }
        assert!(!known.contains(1) && !known.contains(8) && !known.contains(large + 1));
        assert_eq!(known.reference(1, |_| 5), None);
        all.define(read(&frame(&[(7, labels("d")), (0, labels("a"))])).unwrap());
        let known = all.get_mut(&tenant).unwrap();
        assert_eq!(found(known, 7, "d", 70), Some(70));
        assert_eq!(known.reference(0, |_| unreachable!()), Some(1));
    }
}
