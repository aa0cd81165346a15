//! Compressed runs of samples: delta-of-delta times and XORed values (after Gorilla, Facebook
//! 2015), or whole native histograms.
//!
//! Layout: kind (0 floats, 1 histograms), count, first time, then the body (`docs/format/chunk.md`).

use crate::bin::{Decoder, Encoder, Malformed};
use crate::records::{get_histogram, put_histogram};
use obs_model::{Sample, SampleValue, TimestampMs};
use std::sync::Arc;

/// A sealed run of samples of one kind, in time order.
#[derive(Debug, Clone)]
pub(crate) struct Chunk {
    pub(crate) min: i64,
    pub(crate) max: i64,
    pub(crate) count: usize,
    pub(crate) bytes: Arc<[u8]>,
}

#[derive(Default)]
struct BitWriter {
    bytes: Vec<u8>,
    free: u32,
}

impl BitWriter {
    /// Appends the low `n` bits of `v`, most significant first.
    fn put(&mut self, v: u64, mut n: u32) {
        while n > 0 {
            if self.free == 0 {
                self.bytes.push(0);
                self.free = 8;
            }
            let take = n.min(self.free);
            let part = (v >> (n - take)) & ((1 << take) - 1);
            if let Some(last) = self.bytes.last_mut() {
                *last |= (part << (self.free - take)) as u8;
            }
            self.free -= take;
            n -= take;
        }
    }
}

struct BitReader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl BitReader<'_> {
    fn get(&mut self, mut n: u32) -> Result<u64, Malformed> {
        let mut v = 0_u64;
        while n > 0 {
            let byte = *self.bytes.get(self.at / 8).ok_or(Malformed(self.at / 8))?;
            let left = 8 - (self.at % 8) as u32;
            let take = n.min(left);
            let part = (u64::from(byte) >> (left - take)) & ((1 << take) - 1);
            v = (v << take) | part;
            self.at += take as usize;
            n -= take;
        }
        Ok(v)
    }
}

fn put_floats(e: &mut Encoder, samples: &[Sample]) {
    let (mut last_time, mut last_delta) = (0, 0);
    for (i, s) in samples.iter().enumerate() {
        let t = s.timestamp.millis();
        if i == 0 {
            e.int(t);
        } else {
            let delta = t.wrapping_sub(last_time);
            e.int(delta.wrapping_sub(last_delta));
            last_delta = delta;
        }
        last_time = t;
    }
    let mut w = BitWriter::default();
    let (mut previous, mut leading, mut trailing) = (0_u64, 65_u32, 0_u32);
    for s in samples {
        let SampleValue::Float(f) = s.value else { continue };
        let xor = f.to_bits() ^ previous;
        previous = f.to_bits();
        if xor == 0 {
            w.put(0, 1);
            continue;
        }
        let (lead, trail) = (xor.leading_zeros().min(31), xor.trailing_zeros());
        if leading <= lead && trailing <= trail {
            w.put(0b10, 2);
        } else {
            (leading, trailing) = (lead, trail);
            w.put(0b11, 2);
            w.put(leading.into(), 5);
            // 64 significant bits are written as 0.
            w.put(u64::from(64 - leading - trailing) & 63, 6);
        }
        w.put(xor >> trailing, 64 - leading - trailing);
    }
    e.raw(&w.bytes);
}

fn get_floats(d: &mut Decoder<'_>, count: usize) -> Result<Vec<Sample>, Malformed> {
    let mut times = Vec::with_capacity(count);
    let (mut time, mut delta) = (0_i64, 0_i64);
    for i in 0..count {
        if i == 0 {
            time = d.int()?;
        } else {
            delta = delta.wrapping_add(d.int()?);
            time = time.wrapping_add(delta);
        }
        times.push(time);
    }
    let mut r = BitReader { bytes: d.raw()?, at: 0 };
    let (mut previous, mut leading, mut width) = (0_u64, 0_u32, 0_u32);
    let mut out = Vec::with_capacity(count);
    for t in times {
        if r.get(1)? == 1 {
            if r.get(1)? == 1 {
                leading = r.get(5)? as u32;
                width = r.get(6)? as u32;
                if width == 0 {
                    width = 64;
                }
            }
            let trailing = 64_u32.checked_sub(leading + width).ok_or(d.bad())?;
            previous ^= r.get(width)? << trailing;
        }
        out.push(Sample::float(t, f64::from_bits(previous)));
    }
    Ok(out)
}

impl Chunk {
    /// Encodes samples of any kinds, sorted by time, as one or more chunks.
    pub(crate) fn encode(samples: &[Sample]) -> Vec<Self> {
        let same_kind = |a: &Sample, b: &Sample| {
            matches!(a.value, SampleValue::Float(_)) == matches!(b.value, SampleValue::Float(_))
        };
        samples.chunk_by(same_kind).filter_map(Self::encode_run).collect()
    }

    fn encode_run(samples: &[Sample]) -> Option<Self> {
        let (first, last) = (samples.first()?, samples.last()?);
        let mut e = Encoder::default();
        let is_float = matches!(first.value, SampleValue::Float(_));
        e.u8(u8::from(!is_float));
        e.len(samples.len());
        if is_float {
            put_floats(&mut e, samples);
        } else {
            for s in samples {
                if let SampleValue::Histogram(h) = &s.value {
                    e.int(s.timestamp.millis());
                    put_histogram(&mut e, h);
                }
            }
        }
        Some(Self {
            min: first.timestamp.millis(),
            max: last.timestamp.millis(),
            count: samples.len(),
            bytes: e.bytes.into(),
        })
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<Sample>, Malformed> {
        let mut d = Decoder::new(bytes);
        let kind = d.u8()?;
        let count = d.len()?;
        if kind == 0 {
            return get_floats(&mut d, count);
        }
        (0..count)
            .map(|_| {
                let timestamp = TimestampMs::from_millis(d.int()?);
                Ok(Sample {
                    timestamp,
                    value: SampleValue::Histogram(Arc::new(get_histogram(&mut d)?)),
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use obs_model::Histogram;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn floats_survive_bit_for_bit(values in prop::collection::vec((any::<i32>(), any::<u64>()), 1..200)) {
            let mut samples: Vec<_> = values.iter().map(|(t, v)| Sample::float((*t).into(), f64::from_bits(*v))).collect();
            samples.sort_by_key(|s| s.timestamp);
            let chunks = Chunk::encode(&samples);
            prop_assert_eq!(Chunk::decode(&chunks[0].bytes).unwrap(), samples);
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Chunk::decode(&bytes);
        }
    }

    #[test]
    fn a_regular_counter_takes_little() {
        let samples: Vec<_> = (0..120)
            .map(|i| Sample::float(1_700_000_000_000 + i * 15_000, (i * 3) as f64))
            .collect();
        let bytes = Chunk::encode(&samples)[0].bytes.len();
        assert!(bytes < 120 * 4, "{bytes}");
    }

    #[test]
    fn kinds_are_kept_apart() {
        let h = Sample {
            timestamp: TimestampMs::from_millis(5),
            value: SampleValue::Histogram(Arc::new(Histogram {
                count: 2.0,
                positive: vec![(1, 2.0)],
                ..Histogram::default()
            })),
        };
        let samples = [Sample::float(1, 1.0), h, Sample::float(9, 2.0)];
        let chunks = Chunk::encode(&samples);
        assert_eq!(chunks.len(), 3);
        let back: Vec<_> = chunks.iter().flat_map(|c| Chunk::decode(&c.bytes).unwrap()).collect();
        assert_eq!(back, samples);
    }
}
