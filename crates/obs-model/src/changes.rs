//! What changed of the past, for those who keep answers about it.

use crate::{TenantId, TimestampMs};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A moment in the life of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

/// Notes which times samples had that were written, replaced or deleted although somebody had read
/// up to a later time. Only tenants that are watched cost anything.
#[derive(Debug)]
pub struct Changes {
    /// The latest time that is watched, of any tenant; the least if none is.
    watched: AtomicI64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    now: u64,
    tenants: HashMap<TenantId, Log>,
}

#[derive(Debug)]
struct Log {
    /// When watching began: of what was before nothing is known.
    since: u64,
    until: i64,
    /// When, and the earliest time that changed then or later: both ascend.
    list: VecDeque<(u64, i64)>,
}

impl Default for Changes {
    fn default() -> Self {
        Self { watched: AtomicI64::new(i64::MIN), state: Mutex::default() }
    }
}

impl Changes {
    const TENANTS_MAX: usize = 1_024;
    /// Changes of one tenant that are told apart.
    const LIST_MAX: usize = 1_024;

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches a tenant's samples up to a time, from now on.
    pub fn watch(&self, tenant: &TenantId, until: TimestampMs) -> Moment {
        let state = &mut *self.state();
        if state.tenants.len() >= Self::TENANTS_MAX && !state.tenants.contains_key(tenant) {
            // Whoever kept something finds that all may have changed.
            state.now += 1;
            state.tenants.clear();
        }
        let fresh = || Log { since: state.now, until: i64::MIN, list: VecDeque::new() };
        let log = state.tenants.entry(tenant.clone()).or_insert_with(fresh);
        log.until = log.until.max(until.millis());
        self.watched.fetch_max(log.until, Ordering::SeqCst);
        Moment(state.now)
    }

    /// Notes that samples changed, the earliest of them at a time; what nobody watches is not noted.
    /// To be called when queries see the change, or while none can begin to read.
    pub fn note(&self, tenant: &TenantId, earliest: TimestampMs) {
        let time = earliest.millis();
        if time > self.watched.load(Ordering::SeqCst) {
            return;
        }
        let state = &mut *self.state();
        let Some(log) = state.tenants.get_mut(tenant).filter(|l| time <= l.until) else { return };
        state.now += 1;
        while log.list.pop_back_if(|(_, t)| *t >= time).is_some() {}
        log.list.push_back((state.now, time));
        if log.list.len() > Self::LIST_MAX
            && let Some((_, oldest)) = log.list.pop_front()
            && let Some((_, next)) = log.list.front_mut()
        {
            *next = oldest;
        }
    }

    /// Returns the time before which no watched sample changed since a moment; `None` if none did.
    pub fn since(&self, tenant: &TenantId, moment: Moment) -> Option<TimestampMs> {
        let state = self.state();
        let unknown = Some(TimestampMs::from_millis(i64::MIN));
        let Some(log) = state.tenants.get(tenant) else { return unknown };
        if moment.0 < log.since {
            return unknown;
        }
        let first = log.list.partition_point(|(when, _)| *when <= moment.0);
        log.list.get(first).map(|(_, time)| TimestampMs::from_millis(*time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(ms: i64) -> TimestampMs {
        TimestampMs::from_millis(ms)
    }

    #[test]
    fn the_earliest_change_since_a_moment_is_known() {
        let c = Changes::default();
        let t = TenantId::default();
        c.note(&t, at(1));
        let first = c.watch(&t, at(100));
        assert_eq!(c.since(&t, first), None);
        c.note(&t, at(101));
        assert_eq!(c.since(&t, first), None, "later than what is watched");
        c.note(&t, at(50));
        let second = c.watch(&t, at(70));
        assert_eq!((c.since(&t, first), c.since(&t, second)), (Some(at(50)), None));
        c.note(&t, at(80));
        assert_eq!((c.since(&t, first), c.since(&t, second)), (Some(at(50)), Some(at(80))));
        c.note(&t, at(60));
        let third = c.watch(&t, at(10));
        c.note(&t, at(90));
        let all = [first, second, third].map(|m| c.since(&t, m));
        assert_eq!(all, [Some(at(50)), Some(at(60)), Some(at(90))]);
        // Of another tenant nothing was known before it was watched.
        let other = TenantId::new("other").unwrap();
        assert_eq!(c.since(&other, third), Some(at(i64::MIN)));
        let fresh = c.watch(&other, at(100));
        assert_eq!(c.since(&other, fresh), None);
        assert_eq!(c.since(&other, first), Some(at(i64::MIN)));
    }

    #[test]
    fn what_is_noted_is_bounded_and_forgets_towards_caution() {
        let c = Changes::default();
        let t = TenantId::default();
        let mut moments = vec![c.watch(&t, at(1 << 40))];
        let many = Changes::LIST_MAX as i64 + 10;
        for i in 0..many {
            c.note(&t, at(i));
            moments.push(c.watch(&t, at(0)));
        }
        for (i, m) in moments.iter().enumerate().take(many as usize) {
            let known = c.since(&t, *m).unwrap().millis();
            assert_eq!(known, if i <= 10 { 0 } else { i as i64 }, "{i}");
        }
        assert_eq!(c.since(&t, moments[many as usize]), None);
        for i in 0..Changes::TENANTS_MAX {
            c.watch(&TenantId::new(&format!("t{i}")).unwrap(), at(5));
        }
        let last = c.watch(&TenantId::new("t9").unwrap(), at(5));
        assert_eq!(c.since(&t, last), Some(at(i64::MIN)));
    }
}
