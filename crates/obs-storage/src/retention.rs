//! Dropping what is too old or too much.
//!
//! Segments do not cross days, so that a rule drops whole files: a day of any size goes with one
//! manifest edit.

use crate::manifest::Edit;
use crate::segment::Signal;
use crate::segments::OpenSegment;
use crate::store::Inner;
use obs_model::{MatchOp, Matcher, TenantId, TimestampNs};
use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// A kind of data that a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetentionSignal {
    Metrics,
    Logs,
    /// Spans and the LLM calls found in them.
    Traces,
}

/// How long or how much of some data is kept. Of several ages for the same data that of the most
/// specific rule applies (a tenant's before a signal's before the general one); of several byte
/// limits each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RetentionRule {
    /// All tenants but archives when absent; `max_bytes` then counts them together.
    pub tenant: Option<TenantId>,
    /// All signals when absent.
    pub signal: Option<RetentionSignal>,
    pub max_age: Option<Duration>,
    /// Bytes on disk.
    pub max_bytes: Option<u64>,
    /// Selectors of labels (name, operator, value) that rows must match; such a rule has an age
    /// and no bytes. Of several the first of those about the tenant, then the first, applies,
    /// before any rule without.
    pub matchers: Vec<(String, MatchOp, String)>,
}

impl RetentionRule {
    fn covers(&self, s: &OpenSegment) -> bool {
        let signal = match s.meta.signal {
            Signal::Metrics => RetentionSignal::Metrics,
            Signal::Logs => RetentionSignal::Logs,
            Signal::Spans | Signal::Calls => RetentionSignal::Traces,
        };
        // What somebody keeps goes by a rule of its own alone.
        self.tenant.as_ref().map_or(!s.meta.tenant.is_archive(), |t| *t == s.meta.tenant)
            && self.signal.is_none_or(|x| x == signal)
    }

    /// Returns the matchers; the configuration was refused if one does not compile.
    pub(crate) fn compiled(&self) -> Vec<Matcher> {
        self.matchers.iter().filter_map(|(n, op, v)| Matcher::new(n, *op, v).ok()).collect()
    }
}

/// Returns how long rows of a segment are kept that no rule with labels matches.
pub(crate) fn age_of(rules: &[RetentionRule], s: &OpenSegment) -> Option<Duration> {
    let specific = |r: &&RetentionRule| (r.tenant.is_some(), r.signal.is_some());
    let general = |r: &&RetentionRule| r.max_age.is_some() && r.matchers.is_empty();
    let of_age = rules.iter().filter(|r| general(r) && r.covers(s));
    of_age.max_by_key(specific).and_then(|r| r.max_age)
}

/// Returns the rules with labels for a segment, in the order in which they apply.
pub(crate) fn covering<'a>(
    rules: &'a [RetentionRule],
    s: &'a OpenSegment,
) -> impl Iterator<Item = &'a RetentionRule> {
    let of = move |own: bool| {
        let kind = move |r: &&RetentionRule| {
            !r.matchers.is_empty() && r.max_age.is_some() && r.tenant.is_some() == own
        };
        rules.iter().filter(kind).filter(|r| r.covers(s))
    };
    of(true).chain(of(false))
}

/// Returns how long a segment is kept whole or in part.
fn longest(rules: &[RetentionRule], s: &OpenSegment) -> Option<Duration> {
    let by_label = covering(rules, s).filter_map(|r| r.max_age).max();
    age_of(rules, s).map(|age| by_label.map_or(age, |l| l.max(age)))
}

/// Returns whether all of a segment is older than an age.
pub(crate) fn is_over(s: &OpenSegment, age: Option<Duration>, now: TimestampNs) -> bool {
    age.is_some_and(|age| {
        let age = i64::try_from(age.as_nanos()).unwrap_or(i64::MAX);
        s.end_ns() < now.nanos().saturating_sub(age)
    })
}

/// Returns which segments the rules no longer keep.
fn expired(
    rules: &[RetentionRule],
    segments: &[Arc<OpenSegment>],
    now: TimestampNs,
) -> HashSet<u64> {
    let is_old = |s: &&Arc<OpenSegment>| is_over(s, longest(rules, s), now);
    let mut out: HashSet<u64> = segments.iter().filter(is_old).map(|s| s.meta.id).collect();
    for rule in rules {
        // Bytes are counted for rules without labels only: `max_bytes` is absent in the others.
        let mut covered: Vec<_> = segments.iter().filter(|s| rule.covers(s)).collect();
        if let Some(max) = rule.max_bytes {
            covered.retain(|s| !out.contains(&s.meta.id));
            covered.sort_by_key(|s| std::cmp::Reverse(s.end_ns()));
            let mut bytes = 0_u64;
            for s in covered {
                bytes = bytes.saturating_add(s.meta.bytes);
                if bytes > max {
                    out.insert(s.meta.id);
                }
            }
        }
    }
    out
}

/// Drops what the rules no longer keep; returns the number of segments.
pub(crate) fn apply(inner: &Inner, now: TimestampNs) -> std::io::Result<u64> {
    // What expires by label is taken out by the next merges.
    inner.retain_now.store(now.nanos(), Ordering::Relaxed);
    let segments = {
        let view = inner.view.read().unwrap_or_else(PoisonError::into_inner);
        view.segments.clone()
    };
    let gone = expired(&inner.config.retention, &segments, now);
    if gone.is_empty() {
        return Ok(0);
    }
    let edits = gone.iter().map(|id| Edit::Remove(*id)).collect();
    inner.edit(edits, |view| view.segments.retain(|s| !gone.contains(&s.meta.id)))?;
    for s in segments.iter().filter(|s| gone.contains(&s.meta.id)) {
        inner.note_lost(s);
        s.doom();
    }
    inner.stats.segments_dropped.fetch_add(gone.len() as u64, Ordering::Relaxed);
    Ok(gone.len() as u64)
}
