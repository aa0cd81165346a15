//! Log frames: series definitions and write batches in binary form.

use crate::batch::Batch;
use crate::bin::{Decoder, Encoder, Malformed};
use crate::records::{get_histogram, get_labels, put_histogram, put_labels};
use crate::segment::Operations;
use crate::segment::columns::{get_packed, put_packed};
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

pub(crate) fn get_batch(payload: &[u8]) -> Result<Decoded, Malformed> {
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

/// Series of a tenant by number, as one log file defines them.
#[derive(Debug, Default)]
pub(crate) struct Definitions {
    labels: HashMap<u32, Labels>,
    /// By number: one more than the series' number in the head that the file is read into, once
    /// that is known. Looking up labels for every sample took most of the time.
    references: Vec<u32>,
}

impl Definitions {
    pub(crate) fn contains(&self, number: u32) -> bool {
        self.labels.contains_key(&number)
    }

    /// Returns the series' number in the head, which `find` knows by its labels.
    pub(crate) fn reference(
        &mut self,
        number: u32,
        find: impl FnOnce(&Labels) -> u32,
    ) -> Option<u32> {
        /// Numbers are dense; a larger one is looked up every time.
        const DENSE: usize = 1 << 24;
        let at = number as usize;
        if let Some(known) = self.references.get(at).and_then(|r| r.checked_sub(1)) {
            return Some(known);
        }
        let reference = find(self.labels.get(&number)?);
        if at < DENSE {
            if self.references.len() <= at {
                self.references.resize(at + 1, 0);
            }
            if let Some(slot) = self.references.get_mut(at) {
                *slot = reference + 1;
            }
        }
        Some(reference)
    }
}

/// What one log file defines, by tenant.
#[derive(Debug, Default)]
pub(crate) struct Dictionary {
    tenants: HashMap<TenantId, Definitions>,
    /// The frame taken last: most are followed by their copy.
    last: Vec<u8>,
}

impl Dictionary {
    /// Takes a frame of definitions.
    pub(crate) fn read(&mut self, payload: &[u8]) -> Result<(), Malformed> {
        if self.last == payload {
            return Ok(());
        }
        self.last.clear();
        let mut d = Decoder::new(payload);
        let tenant = TenantId::new(d.str()?).map_err(|_| d.bad())?;
        let body = get_packed(&mut d)?;
        let mut b = Decoder::new(&body);
        let known = self.tenants.entry(tenant).or_default();
        for _ in 0..b.len()? {
            let number = u32::try_from(b.uint()?).map_err(|_| b.bad())?;
            let labels = get_labels(&mut b)?;
            // Every definition is there twice.
            if known.labels.get(&number) != Some(&labels) {
                known.labels.insert(number, labels);
                if let Some(slot) = known.references.get_mut(number as usize) {
                    *slot = 0;
                }
            }
        }
        self.last.extend_from_slice(payload);
        Ok(())
    }

    pub(crate) fn get(&self, tenant: &TenantId) -> Option<&Definitions> {
        self.tenants.get(tenant)
    }

    pub(crate) fn get_mut(&mut self, tenant: &TenantId) -> Option<&mut Definitions> {
        self.tenants.get_mut(tenant)
    }
}
