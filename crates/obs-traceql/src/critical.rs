//! The critical path of a trace: what its length would shrink by.
//!
//! Seen from the end of the root, time belongs to the child that finished last, down to a span
//! whose children were all done, and from where that began on to whatever finished before. This is
//! Jaeger's definition; children are cut to their parents.

use crate::tree::Tree;
use obs_model::Span;
use std::cmp::Reverse;
use std::sync::Arc;

/// A stretch of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Index of the span.
    pub span: usize,
    /// Nanoseconds since 1970.
    pub start: i64,
    pub end: i64,
}

/// Returns the stretches of the critical path, the latest first: without a gap from the end to the
/// start of the longest root. `spans` are those of one trace, no id twice.
pub fn critical_path(spans: &[Arc<Span>]) -> Vec<Stretch> {
    let tree = Tree::of(spans);
    let of = |i: usize| spans.get(i).map_or((0, 0), |s| (s.start.nanos(), s.end.nanos()));
    let roots = tree.order.iter().copied().filter(|i| tree.parent_of(*i).is_none());
    let longest = |i: &usize| {
        let (start, end) = of(*i);
        (end - start, Reverse(start))
    };
    let Some(root) = roots.max_by_key(longest) else { return Vec::new() };
    // Times within the parent's; what lies outside of it altogether is on no path.
    let mut times: Vec<Option<(i64, i64)>> = vec![None; spans.len()];
    for &i in &tree.order {
        let (start, end) = of(i);
        let cut = match tree.parent_of(i) {
            None => Some((start, end)),
            Some(p) => times.get(p).copied().flatten().and_then(|(from, to)| {
                (start < to && end >= from).then(|| (start.max(from), end.min(to)))
            }),
        };
        if let Some(slot) = times.get_mut(i) {
            *slot = cut;
        }
    }
    // Children by their end, the last first; taken from the back.
    let mut waiting: Vec<Vec<usize>> = tree.children.clone();
    for list in &mut waiting {
        list.retain(|i| times.get(*i).copied().flatten().is_some());
        list.sort_by_key(|i| times.get(*i).copied().flatten().map(|(start, end)| (end, start)));
    }
    let mut out = Vec::new();
    let mut push = |span, start, end| {
        if end > start {
            out.push(Stretch { span, start, end });
        }
    };
    let mut now = root;
    let (begin, mut until) = of(root);
    loop {
        let list = waiting.get_mut(now);
        let child = list.and_then(|l| {
            while let Some(c) = l.pop() {
                let time = times.get(c).copied().flatten();
                if let Some((start, end)) = time.filter(|t| t.1 <= until) {
                    return Some((c, start, end));
                }
            }
            None
        });
        match child {
            Some((c, _, end)) => {
                push(now, end, until);
                (now, until) = (c, end);
            }
            None => {
                let start = times.get(now).copied().flatten().map_or(begin, |t| t.0);
                push(now, start, until);
                until = until.min(start);
                match tree.parent_of(now) {
                    Some(p) => now = p,
                    None => return out,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::span;

    #[test]
    fn time_belongs_to_who_finished_last() {
        // Spans as id, parent, start, end; then the path as id, start, end.
        type Case = (&'static [(u8, u8, i64, i64)], &'static [(u8, i64, i64)]);
        let cases: [Case; 8] = [
            (&[(1, 0, 0, 10)], &[(1, 0, 10)]),
            // One after the other, with gaps that are the parent's.
            (
                &[(1, 0, 0, 100), (2, 1, 10, 30), (3, 1, 40, 90)],
                &[(1, 90, 100), (3, 40, 90), (1, 30, 40), (2, 10, 30), (1, 0, 10)],
            ),
            // Side by side: only the one that finished last counts.
            (&[(1, 0, 0, 100), (2, 1, 0, 50), (3, 1, 0, 100)], &[(3, 0, 100)]),
            // What overlaps the later one is left out for what finished before it began.
            (
                &[(1, 0, 0, 100), (2, 1, 0, 40), (3, 1, 30, 80), (4, 1, 60, 100)],
                &[(4, 60, 100), (1, 40, 60), (2, 0, 40)],
            ),
            // Deeper.
            (
                &[(1, 0, 0, 100), (2, 1, 20, 80), (3, 2, 30, 70)],
                &[(1, 80, 100), (2, 70, 80), (3, 30, 70), (2, 20, 30), (1, 0, 20)],
            ),
            // A child that outlives its parent is cut, one outside of it is not on the path.
            (&[(1, 0, 0, 50), (2, 1, 40, 90), (3, 1, 60, 80)], &[(2, 40, 50), (1, 0, 40)]),
            // Of several roots the longest; instants take no time.
            (&[(1, 9, 0, 10), (2, 8, 5, 90), (3, 2, 50, 50)], &[(2, 50, 90), (2, 5, 50)]),
            // A loop.
            (&[(1, 2, 0, 10), (2, 1, 0, 8)], &[(1, 8, 10), (2, 0, 8)]),
        ];
        for (spans, path) in cases {
            let spans: Vec<Arc<Span>> =
                spans.iter().map(|(id, up, start, end)| span(*id, *up, *start, *end)).collect();
            let got: Vec<(u8, i64, i64)> = critical_path(&spans)
                .iter()
                .map(|s| (spans[s.span].span_id.as_bytes()[7], s.start, s.end))
                .collect();
            assert_eq!(got, path, "{spans:?}");
        }
        assert!(critical_path(&[]).is_empty());
    }

    #[test]
    fn a_hundred_thousand_spans_in_a_row_are_no_problem() {
        let spans: Vec<Arc<Span>> = (0..100_000_u64)
            .map(|i| {
                let mut s = Span::clone(&span(1, 0, 0, 1_000_000));
                s.span_id = obs_model::SpanId::from_slice(&(i + 1).to_be_bytes()).unwrap();
                s.parent_id = obs_model::SpanId::from_slice(&i.to_be_bytes());
                s.start = obs_model::TimestampNs::from_nanos(i as i64);
                Arc::new(s)
            })
            .collect();
        let path = critical_path(&spans);
        assert_eq!(path.iter().map(|s| s.end - s.start).sum::<i64>(), 1_000_000);
    }
}
