//! Retention by label: taking the rows of some labels out of a segment before the rest.
//!
//! A segment holds one day. When that day has expired for some labels and not for others, the
//! segment is read once: if it has rows to lose it is written anew without them, and either way the
//! manifest notes what was decided, so that it is not read for that again.

use crate::records::Record;
use crate::retention::{RetentionRule, age_of, covering, is_over};
use crate::segment::Signal;
use crate::segment::logs::{LogColumns, streams_of};
use crate::segment::rows::{Row, RowFilter};
use crate::segment::{SegmentError, series::SeriesSegment};
use crate::segments::{OpenSegment, SegmentData};
use obs_model::{Labels, LlmCall, Matcher, Span, TimestampNs};
use std::hash::Hasher as _;
use std::ops::ControlFlow;

/// What has expired in one segment: of the first selector that matches a row, or of the rest.
#[derive(Debug)]
pub(crate) struct Sweep {
    selectors: Vec<(Vec<Matcher>, bool)>,
    rest: bool,
    /// Tells decisions apart.
    pub(crate) number: u64,
}

impl Sweep {
    /// Returns what has expired in a segment that was not taken out yet.
    pub(crate) fn due(rules: &[RetentionRule], s: &OpenSegment, now: TimestampNs) -> Option<Self> {
        let rest = is_over(s, age_of(rules, s), now);
        let selectors: Vec<_> =
            covering(rules, s).map(|r| (r.compiled(), is_over(s, r.max_age, now))).collect();
        if !rest && !selectors.iter().any(|(_, over)| *over) || selectors.is_empty() {
            return None;
        }
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        for (matchers, over) in &selectors {
            hash.write_u8(u8::from(*over));
            for m in matchers {
                hash.write(m.to_string().as_bytes());
                hash.write_u8(0xff);
            }
        }
        hash.write_u8(u8::from(rest));
        // Zero says that nothing was decided yet.
        let number = hash.finish().max(1);
        (s.swept() != number).then_some(Self { selectors, rest, number })
    }

    fn drops(&self, holds: impl Fn(&[Matcher]) -> bool) -> bool {
        self.selectors.iter().find(|(m, _)| holds(m)).map_or(self.rest, |(_, over)| *over)
    }

    pub(crate) fn drops_labels(&self, labels: &Labels) -> bool {
        self.drops(|matchers| Matcher::all_match(matchers, labels))
    }

    pub(crate) fn drops_row(&self, row: &impl Record) -> bool {
        self.drops(|matchers| matchers.iter().all(|m| m.matches(&row.label(&m.name))))
    }

    /// Returns whether a segment has rows to lose.
    pub(crate) fn finds(&self, s: &OpenSegment) -> Result<bool, SegmentError> {
        match (s.data()?, s.meta.signal) {
            (SegmentData::Metrics(m), _) => self.finds_series(m),
            (SegmentData::Rows(rows), Signal::Logs) => {
                let mut found = false;
                let mut failure = None;
                let mut damaged = |e: &SegmentError, _: i64, _: i64| failure = Some(e.copy());
                rows.for_blocks(&RowFilter::ALL, &mut damaged, &mut |block| {
                    let columns = LogColumns::read(block)?;
                    streams_of(&columns, &RowFilter::ALL, &mut |l| found |= self.drops_labels(l));
                    Ok(())
                })?;
                failure.map_or(Ok(found), Err)
            }
            (SegmentData::Rows(_), Signal::Calls) => self.finds_rows::<LlmCall>(s),
            (SegmentData::Rows(_), _) => self.finds_rows::<Span>(s),
        }
    }

    fn finds_series(&self, m: &SeriesSegment) -> Result<bool, SegmentError> {
        let mut found = false;
        let mut failure = None;
        let mut damaged = |e: &SegmentError, _: i64, _: i64| failure = Some(e.copy());
        m.label_sets(&[], (i64::MIN, i64::MAX), &mut damaged, &mut |l| {
            found |= self.drops_labels(&l);
        })?;
        failure.map_or(Ok(found), Err)
    }

    fn finds_rows<R: Row>(&self, s: &OpenSegment) -> Result<bool, SegmentError> {
        let Some(rows) = s.rows()? else { return Ok(false) };
        let mut found = false;
        for n in 0..rows.blocks.len() {
            let _ = rows.visit_block::<R>(n, &RowFilter::ALL, &mut |r| {
                found |= self.drops_row(&r);
                Ok(if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            if found {
                break;
            }
        }
        Ok(found)
    }
}
