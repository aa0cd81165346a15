//! Which span is inside which. Parents that are not there, and loops, make roots: every span has
//! its place.

use obs_model::{Span, SpanId};
use std::collections::HashMap;
use std::sync::Arc;

#[derive(Debug, Default)]
pub(crate) struct Tree {
    pub(crate) parent: Vec<Option<usize>>,
    /// In the order of the spans.
    pub(crate) children: Vec<Vec<usize>>,
    /// Every span, parents before children.
    pub(crate) order: Vec<usize>,
}

impl Tree {
    pub(crate) fn of(spans: &[Arc<Span>]) -> Self {
        let index: HashMap<SpanId, usize> =
            spans.iter().enumerate().map(|(i, s)| (s.span_id, i)).collect();
        let up = |(i, s): (usize, &Arc<Span>)| {
            s.parent_id.and_then(|p| index.get(&p).copied()).filter(|p| *p != i)
        };
        let parent: Vec<Option<usize>> = spans.iter().enumerate().map(up).collect();
        let mut children = vec![Vec::new(); spans.len()];
        for (i, p) in parent.iter().enumerate() {
            if let Some(list) = p.and_then(|p| children.get_mut(p)) {
                list.push(i);
            }
        }
        let mut tree = Self { parent, children, order: Vec::with_capacity(spans.len()) };
        let mut seen = vec![false; spans.len()];
        let roots: Vec<usize> = (0..spans.len()).filter(|i| tree.parent_of(*i).is_none()).collect();
        roots.into_iter().for_each(|r| tree.walk(r, &mut seen));
        // What is left hangs in a loop, which is cut where it is met.
        for i in 0..spans.len() {
            if seen.get(i) == Some(&false) {
                if let Some(list) = tree.parent_of(i).and_then(|p| tree.children.get_mut(p)) {
                    list.retain(|c| *c != i);
                }
                if let Some(p) = tree.parent.get_mut(i) {
                    *p = None;
                }
                tree.walk(i, &mut seen);
            }
        }
        tree
    }

    pub(crate) fn parent_of(&self, i: usize) -> Option<usize> {
        self.parent.get(i).copied().flatten()
    }

    pub(crate) fn children_of(&self, i: usize) -> &[usize] {
        self.children.get(i).map_or(&[], Vec::as_slice)
    }

    fn walk(&mut self, root: usize, seen: &mut [bool]) {
        let mut stack = vec![root];
        while let Some(i) = stack.pop() {
            let Some(mark) = seen.get_mut(i).filter(|m| !**m) else { continue };
            *mark = true;
            self.order.push(i);
            stack.extend(self.children_of(i).iter().rev());
        }
    }
}
