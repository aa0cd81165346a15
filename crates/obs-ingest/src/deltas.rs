//! Delta points as cumulative series: increments are summed by series.
//!
//! The sums live in memory; after a restart they begin at zero again, which queries read as a
//! counter reset.

use obs_model::{Labels, Sample, SampleValue, Series, TenantId, TimestampMs};
use std::collections::HashMap;
use std::sync::Arc;

/// The sums that an addition replaced.
pub(crate) type Undo = Vec<((TenantId, Labels), Option<Sum>)>;

#[derive(Debug, Clone)]
pub(crate) struct Sum {
    value: SampleValue,
    last: TimestampMs,
}

#[derive(Debug, Default)]
pub(crate) struct Deltas {
    sums: HashMap<(TenantId, Labels), Sum>,
}

impl Deltas {
    /// Adds increments and returns the new cumulative samples, the refused ones' reasons, and what
    /// [`Deltas::undo`] needs if the samples could not be stored.
    ///
    /// A new series begins with a zero just before its first increment, so that rates see it.
    pub(crate) fn add(
        &mut self,
        tenant: &TenantId,
        deltas: Vec<Series>,
        series_max: usize,
    ) -> (Vec<Series>, Vec<&'static str>, Undo) {
        let (mut out, mut refused, mut undo) = (Vec::new(), Vec::new(), Vec::new());
        for s in deltas {
            let key = (tenant.clone(), s.labels.clone());
            undo.push((key.clone(), self.sums.get(&key).cloned()));
            let mut samples = Vec::new();
            for x in s.samples {
                let is_full = self.sums.len() >= series_max;
                match self.sums.get_mut(&key) {
                    None if is_full => refused.push("too many delta series"),
                    None => {
                        if let SampleValue::Float(_) = x.value {
                            samples.push(Sample {
                                timestamp: x.timestamp.add_millis(-1),
                                value: SampleValue::Float(0.0),
                            });
                        }
                        self.sums
                            .insert(key.clone(), Sum { value: x.value.clone(), last: x.timestamp });
                        samples.push(x);
                    }
                    Some(sum) if x.timestamp <= sum.last => {
                        refused.push("delta point is out of order")
                    }
                    Some(sum) => match add(&sum.value, &x.value) {
                        None => refused.push("delta point changes its type or bucket layout"),
                        Some(value) => {
                            *sum = Sum { value: value.clone(), last: x.timestamp };
                            samples.push(Sample { timestamp: x.timestamp, value });
                        }
                    },
                }
            }
            if !samples.is_empty() {
                out.push(Series { labels: s.labels, samples });
            }
        }
        (out, refused, undo)
    }

    /// Takes back an addition whose samples were not stored: the client will send them again.
    pub(crate) fn undo(&mut self, undo: Undo) {
        for (key, before) in undo.into_iter().rev() {
            match before {
                Some(sum) => self.sums.insert(key, sum),
                None => self.sums.remove(&key),
            };
        }
    }

    /// Forgets series that got no increment since `before`.
    pub(crate) fn forget(&mut self, before: TimestampMs) {
        self.sums.retain(|_, s| s.last >= before);
    }
}

fn add(a: &SampleValue, b: &SampleValue) -> Option<SampleValue> {
    match (a, b) {
        (SampleValue::Float(a), SampleValue::Float(b)) => Some(SampleValue::Float(a + b)),
        (SampleValue::Histogram(a), SampleValue::Histogram(b)) => {
            let mut sum = (**a).clone();
            sum.add_scaled(b, 1.0).then(|| SampleValue::Histogram(Arc::new(sum)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn increments_add_up_and_repeats_are_refused() {
        let mut d = Deltas::default();
        let t = TenantId::default();
        let point = |time, v| {
            vec![Series {
                labels: Labels::from_pairs([("__name__", "c")]),
                samples: vec![Sample::float(time, v)],
            }]
        };
        assert_eq!(
            d.add(&t, point(1000, 2.0), 10).0[0].samples,
            [Sample::float(999, 0.0), Sample::float(1000, 2.0)]
        );
        assert_eq!(d.add(&t, point(2000, 3.0), 10).0[0].samples, [Sample::float(2000, 5.0)]);
        let (none, refused, _) = d.add(&t, point(2000, 3.0), 10);
        assert!(none.is_empty() && refused.len() == 1);
        let (_, _, undo) = d.add(&t, point(3000, 4.0), 10);
        d.undo(undo);
        assert_eq!(d.add(&t, point(3000, 4.0), 10).0[0].samples, [Sample::float(3000, 9.0)]);
        let other = vec![Series {
            labels: Labels::from_pairs([("__name__", "d")]),
            samples: vec![Sample::float(1, 1.0)],
        }];
        assert_eq!(d.add(&t, other, 1).1, ["too many delta series"]);
    }
}
