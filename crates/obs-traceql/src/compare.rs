//! Two traces side by side: spans are matched by where they stand, the services and operations from
//! the root down. Equal siblings are counted together.

use crate::tree::Tree;
use obs_model::{Money, Span};
use std::collections::HashMap;
use std::sync::Arc;

/// Places in both traces together past which the rest is left out.
const PLACES_MAX: usize = 20_000;

/// A trace, with what each span's own call took and cost.
#[derive(Debug, Clone, Copy)]
pub struct Weighed<'a> {
    pub spans: &'a [Arc<Span>],
    /// Tokens and cost, one a span.
    pub weights: &'a [(u64, Money)],
}

/// What one trace has at a place.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Side {
    pub spans: u64,
    pub errors: u64,
    /// Of all spans there together, ns.
    pub duration_ns: i64,
    /// The same without what their children took, ns.
    pub self_ns: i64,
    pub tokens: u64,
    pub cost: Money,
    /// Index of the first span there.
    pub first: usize,
}

/// A place in either trace.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    pub depth: usize,
    pub service: String,
    pub name: String,
    pub sides: [Option<Side>; 2],
}

#[derive(Debug, Default)]
struct Node {
    depth: usize,
    service: String,
    name: String,
    sides: [Option<Side>; 2],
    children: Vec<usize>,
}

/// Returns how long a span ran without any child of it running.
fn self_time(spans: &[Arc<Span>], tree: &Tree, i: usize) -> i64 {
    let Some(s) = spans.get(i) else { return 0 };
    let (from, to) = (s.start.nanos(), s.end.nanos());
    let children = tree.children_of(i).iter().filter_map(|c| spans.get(*c));
    let mut covered: Vec<(i64, i64)> = children
        .map(|c| (c.start.nanos().max(from), c.end.nanos().min(to)))
        .filter(|(start, end)| end > start)
        .collect();
    covered.sort_unstable();
    let mut own = to - from;
    let mut until = from;
    for (start, end) in covered {
        own -= (end - start.max(until)).max(0);
        until = until.max(end);
    }
    own
}

/// Returns the places of both traces, parents before children, and whether there were too many.
pub fn compare(traces: [Weighed<'_>; 2]) -> (Vec<Place>, bool) {
    let mut nodes: Vec<Node> = Vec::new();
    let mut roots: Vec<usize> = Vec::new();
    let mut known: HashMap<(Option<usize>, String, String), usize> = HashMap::new();
    let mut is_cut = false;
    for (side, trace) in traces.iter().enumerate() {
        let tree = Tree::of(trace.spans);
        let mut of_span: Vec<Option<usize>> = vec![None; trace.spans.len()];
        for &i in &tree.order {
            let Some(s) = trace.spans.get(i) else { continue };
            let up = tree.parent_of(i);
            let above = up.and_then(|p| of_span.get(p).copied().flatten());
            // Below what was left out.
            if up.is_some() && above.is_none() {
                continue;
            }
            let key = (above, s.service().to_owned(), s.name.clone());
            let node = match known.get(&key) {
                Some(n) => *n,
                None if nodes.len() >= PLACES_MAX => {
                    is_cut = true;
                    continue;
                }
                None => {
                    let n = nodes.len();
                    let depth = above.and_then(|a| nodes.get(a)).map_or(0, |a| a.depth + 1);
                    let (service, name) = (key.1.clone(), key.2.clone());
                    nodes.push(Node { depth, service, name, ..Node::default() });
                    match above.and_then(|a| nodes.get_mut(a)) {
                        Some(a) => a.children.push(n),
                        None => roots.push(n),
                    }
                    known.insert(key, n);
                    n
                }
            };
            if let Some(slot) = of_span.get_mut(i) {
                *slot = Some(node);
            }
            let Some(slot) = nodes.get_mut(node).and_then(|n| n.sides.get_mut(side)) else {
                continue;
            };
            let at = slot.get_or_insert_with(|| Side { first: i, ..Side::default() });
            let (tokens, cost) = trace.weights.get(i).copied().unwrap_or((0, Money::ZERO));
            at.spans += 1;
            at.errors += u64::from(s.status.is_error());
            at.duration_ns = at.duration_ns.saturating_add(s.duration_ns());
            at.self_ns = at.self_ns.saturating_add(self_time(trace.spans, &tree, i));
            at.tokens += tokens;
            at.cost = at.cost.saturating_add(cost);
        }
    }
    let mut out = Vec::with_capacity(nodes.len());
    let mut stack: Vec<usize> = roots.into_iter().rev().collect();
    while let Some(n) = stack.pop() {
        let Some(node) = nodes.get_mut(n) else { continue };
        stack.extend(node.children.iter().rev());
        let Node { depth, service, name, sides, .. } = std::mem::take(node);
        out.push(Place { depth, service, name, sides });
    }
    (out, is_cut)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::span;

    #[test]
    fn spans_are_matched_by_their_place() {
        let named = |id, up, start, end, name: &str| {
            let mut s = Span::clone(&span(id, up, start, end));
            s.name = name.into();
            Arc::new(s)
        };
        let left = [
            named(1, 0, 0, 100, "root"),
            named(2, 1, 0, 40, "get"),
            named(3, 1, 30, 60, "get"),
            named(4, 2, 5, 10, "db"),
        ];
        let right =
            [named(9, 0, 0, 50, "root"), named(8, 9, 0, 20, "get"), named(7, 9, 20, 30, "put")];
        let weights = [(1, Money::ONE), (2, Money::ONE), (3, Money::ONE), (4, Money::ONE)];
        let (places, is_cut) = compare([
            Weighed { spans: &left, weights: &weights },
            Weighed { spans: &right, weights: &[] },
        ]);
        assert!(!is_cut);
        let shown: Vec<_> = places
            .iter()
            .map(|p| {
                let side = |s: &Option<Side>| {
                    s.as_ref().map(|s| (s.spans, s.duration_ns, s.self_ns, s.tokens))
                };
                (p.depth, p.name.as_str(), side(&p.sides[0]), side(&p.sides[1]))
            })
            .collect();
        assert_eq!(
            shown,
            [
                (0, "root", Some((1, 100, 40, 1)), Some((1, 50, 20, 0))),
                (1, "get", Some((2, 70, 65, 5)), Some((1, 20, 20, 0))),
                (2, "db", Some((1, 5, 5, 4)), None),
                (1, "put", None, Some((1, 10, 10, 0))),
            ]
        );
    }
}
