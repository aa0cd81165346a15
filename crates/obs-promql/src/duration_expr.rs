//! Durations that are computed: `[step() + 1m]`, `offset (2 * 5m)`.
//!
//! They are numbers of seconds until the query's step and range are known; [`resolve`] then puts
//! milliseconds in their places.

use crate::ast::{DurationExpr, DurationOp, Expr, Selector};

/// The query that durations may refer to. Milliseconds; both 0 for an instant query.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame {
    pub(crate) step_ms: i64,
    pub(crate) range_ms: i64,
}

impl DurationExpr {
    /// Returns whether the value depends on the query.
    fn is_open(&self) -> bool {
        match self {
            Self::Seconds(_) => false,
            Self::Step | Self::Range => true,
            Self::Negate(e) => e.is_open(),
            Self::Binary(_, a, b) => a.is_open() || b.is_open(),
        }
    }

    fn seconds(&self, frame: Frame) -> Result<f64, String> {
        Ok(match self {
            Self::Seconds(s) => *s,
            Self::Step => frame.step_ms as f64 / 1000.0,
            Self::Range => frame.range_ms as f64 / 1000.0,
            Self::Negate(e) => -e.seconds(frame)?,
            Self::Binary(op, a, b) => {
                let (a, b) = (a.seconds(frame)?, b.seconds(frame)?);
                match op {
                    DurationOp::Add => a + b,
                    DurationOp::Sub => a - b,
                    DurationOp::Mul => a * b,
                    DurationOp::Div if b == 0.0 => return Err("division by zero".into()),
                    DurationOp::Div => a / b,
                    DurationOp::Mod if b == 0.0 => return Err("modulo by zero".into()),
                    DurationOp::Mod => a % b,
                    DurationOp::Pow => a.powf(b),
                    DurationOp::Min => a.min(b),
                    DurationOp::Max => a.max(b),
                }
            }
        })
    }

    /// Returns milliseconds.
    ///
    /// # Errors
    /// On a division by zero, and past what a time can be.
    pub(crate) fn millis(&self, frame: Frame) -> Result<i64, String> {
        let ms = (self.seconds(frame)? * 1000.0).round();
        if ms.is_nan() || ms.abs() > 9e15 {
            return Err("duration out of range".into());
        }
        Ok(ms as i64)
    }

    /// Returns the milliseconds now if they do not depend on the query.
    pub(crate) fn constant(&self) -> Option<Result<i64, String>> {
        (!self.is_open()).then(|| self.millis(Frame { step_ms: 0, range_ms: 0 }))
    }
}

fn positive(ms: i64) -> Result<i64, String> {
    if ms > 0 { Ok(ms) } else { Err("duration must be greater than 0".into()) }
}

fn of_selector(s: &mut Selector, frame: Frame) -> Result<(), String> {
    if let Some(e) = s.offset_expr.take() {
        s.offset_ms = e.millis(frame)?;
    }
    Ok(())
}

/// Puts computed durations in their places.
pub(crate) fn resolve(expr: &mut Expr, frame: Frame) -> Result<(), String> {
    match expr {
        Expr::Number(..) | Expr::String(..) => Ok(()),
        Expr::Selector(s) => of_selector(s, frame),
        Expr::Matrix { selector, range_ms, range_expr, .. } => {
            if let Some(e) = range_expr.take() {
                *range_ms = positive(e.millis(frame)?)?;
            }
            of_selector(selector, frame)
        }
        Expr::Subquery {
            expr,
            range_ms,
            step_ms,
            offset_ms,
            range_expr,
            step_expr,
            offset_expr,
            ..
        } => {
            if let Some(e) = range_expr.take() {
                *range_ms = positive(e.millis(frame)?)?;
            }
            if let Some(e) = step_expr.take() {
                *step_ms = Some(positive(e.millis(frame)?)?);
            }
            if let Some(e) = offset_expr.take() {
                *offset_ms = e.millis(frame)?;
            }
            resolve(expr, frame)
        }
        Expr::Paren(e) | Expr::Negate(e, _) => resolve(e, frame),
        Expr::Binary { lhs, rhs, .. } => {
            resolve(lhs, frame)?;
            resolve(rhs, frame)
        }
        Expr::Aggregate { expr, param, .. } => {
            if let Some(p) = param {
                resolve(p, frame)?;
            }
            resolve(expr, frame)
        }
        Expr::Call { args, .. } => args.iter_mut().try_for_each(|a| resolve(a, frame)),
    }
}
