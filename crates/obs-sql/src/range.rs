//! The time range that a query's conditions on `ts` allow.

use datafusion::common::ScalarValue;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};

/// Nanoseconds, half open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimeRange {
    pub(crate) start: i64,
    pub(crate) end: i64,
}

/// Returns whether a filter narrows the time range.
pub(crate) fn is_time_filter(e: &Expr) -> bool {
    let all = TimeRange { start: i64::MIN, end: i64::MAX };
    narrowed(all, e) != all
}

/// Intersects with everything that the conjunction of filters says about `ts`.
pub(crate) fn of(filters: &[Expr]) -> TimeRange {
    filters.iter().fold(TimeRange { start: i64::MIN, end: i64::MAX }, narrowed)
}

fn narrowed(r: TimeRange, e: &Expr) -> TimeRange {
    match e {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            narrowed(narrowed(r, left), right)
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => match (nanos(left), nanos(right)) {
            (None, Some(t)) if is_ts(left) => bound(r, *op, t),
            (Some(t), None) if is_ts(right) => op.swap().map_or(r, |op| bound(r, op, t)),
            _ => r,
        },
        Expr::Between(b) if !b.negated && is_ts(&b.expr) => match (nanos(&b.low), nanos(&b.high)) {
            (Some(low), Some(high)) => bound(bound(r, Operator::GtEq, low), Operator::LtEq, high),
            _ => r,
        },
        _ => r,
    }
}

fn bound(r: TimeRange, op: Operator, t: i64) -> TimeRange {
    let after = t.saturating_add(1);
    match op {
        Operator::Gt => TimeRange { start: r.start.max(after), ..r },
        Operator::GtEq => TimeRange { start: r.start.max(t), ..r },
        Operator::Lt => TimeRange { end: r.end.min(t), ..r },
        Operator::LtEq => TimeRange { end: r.end.min(after), ..r },
        Operator::Eq => TimeRange { start: r.start.max(t), end: r.end.min(after) },
        _ => r,
    }
}

fn is_ts(e: &Expr) -> bool {
    match e {
        Expr::Column(c) => c.name == "ts",
        Expr::Cast(c) => is_ts(&c.expr),
        _ => false,
    }
}

fn nanos(e: &Expr) -> Option<i64> {
    let Expr::Literal(v, _) = e else { return None };
    match v {
        ScalarValue::TimestampNanosecond(t, _) => *t,
        ScalarValue::TimestampMicrosecond(t, _) => t.and_then(|t| t.checked_mul(1000)),
        ScalarValue::TimestampMillisecond(t, _) => t.and_then(|t| t.checked_mul(1_000_000)),
        ScalarValue::TimestampSecond(t, _) => t.and_then(|t| t.checked_mul(1_000_000_000)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::prelude::col;

    #[test]
    fn bounds_come_from_either_side() {
        let t = |n| Expr::Literal(ScalarValue::TimestampNanosecond(Some(n), None), None);
        let e = col("ts").gt_eq(t(5)).and(t(9).gt(col("ts"))).and(col("x").eq(t(3)));
        assert_eq!(of(&[e]), TimeRange { start: 5, end: 9 });
        assert!(!is_time_filter(&col("x").eq(t(3))));
        assert_eq!(of(&[col("ts").between(t(1), t(2))]), TimeRange { start: 1, end: 3 });
    }
}
