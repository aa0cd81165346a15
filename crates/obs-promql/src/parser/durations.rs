//! Durations in brackets and after `offset`: literals, and what is computed from them.

use super::{DEPTH_MAX, Parsed, Parser};
use crate::ast::{DurationExpr, DurationOp};
use crate::lexer::Token;

impl Parser<'_> {
    /// Parses a sum of durations, or tighter operators from `min` on.
    fn duration(&mut self, context: &str, min: u8) -> Parsed<DurationExpr> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            let text = format!("duration is nested deeper than {DEPTH_MAX} levels");
            return self.fail(self.pos().start, text);
        }
        let mut lhs = self.duration_operand(context)?;
        loop {
            let (op, precedence) = match self.peek() {
                Token::Op("+") => (DurationOp::Add, 1),
                Token::Op("-") => (DurationOp::Sub, 1),
                Token::Op("*") => (DurationOp::Mul, 2),
                Token::Op("/") => (DurationOp::Div, 2),
                Token::Op("%") => (DurationOp::Mod, 2),
                Token::Op("^") => (DurationOp::Pow, 4),
                _ => break,
            };
            if precedence < min {
                break;
            }
            self.at += 1;
            // `^` associates to the right, all else to the left.
            let next = if op == DurationOp::Pow { precedence } else { precedence + 1 };
            let rhs = self.duration(context, next)?;
            lhs = DurationExpr::Binary(op, Box::new(lhs), Box::new(rhs));
        }
        self.depth -= 1;
        Ok(lhs)
    }

    /// Parses one duration: a literal, a sign before one, parentheses, or a function.
    pub(super) fn duration_operand(&mut self, context: &str) -> Parsed<DurationExpr> {
        let at = self.pos().start;
        match self.next() {
            Token::Duration(ms) => Ok(DurationExpr::Seconds(ms as f64 / 1000.0)),
            // Plain numbers are seconds, as everywhere in Prometheus 3.
            Token::Number(n) if n.is_finite() && n.abs() < 9e12 => Ok(DurationExpr::Seconds(n)),
            Token::Op("-") => {
                // Binds like the sign of a number, but looser than `^` inside parentheses.
                let inner = if context == "offset" {
                    self.duration_operand(context)
                } else {
                    self.duration(context, 3)
                };
                Ok(DurationExpr::Negate(Box::new(inner?)))
            }
            Token::Op("+") => self.duration_operand(context),
            Token::Op("(") => {
                let inner = self.duration("duration expression", 0)?;
                self.expect(")", "duration expression")?;
                Ok(inner)
            }
            Token::Ident(word) => {
                let lower = word.to_ascii_lowercase();
                let op = match lower.as_str() {
                    "step" | "range" => None,
                    "min" | "min_of" => Some(DurationOp::Min),
                    "max" | "max_of" => Some(DurationOp::Max),
                    _ => {
                        return self.fail(
                            at,
                            format!(
                                "unexpected identifier {word:?} in {context}, expected duration"
                            ),
                        );
                    }
                };
                self.expect("(", "duration expression")?;
                let value = match op {
                    None if lower == "step" => DurationExpr::Step,
                    None => DurationExpr::Range,
                    Some(op) => {
                        let a = self.duration("duration expression", 0)?;
                        self.expect(",", "duration expression")?;
                        let b = self.duration("duration expression", 0)?;
                        DurationExpr::Binary(op, Box::new(a), Box::new(b))
                    }
                };
                self.expect(")", "duration expression")?;
                Ok(value)
            }
            _ => {
                self.at -= 1;
                Err(self.unexpected(&format!("{context}, expected duration")))
            }
        }
    }

    /// Returns milliseconds now, or the expression if they depend on the query.
    pub(super) fn settle(&self, e: DurationExpr, at: usize) -> Parsed<(i64, Option<DurationExpr>)> {
        let is_plain = match &e {
            DurationExpr::Seconds(_) => true,
            DurationExpr::Negate(inner) => matches!(**inner, DurationExpr::Seconds(_)),
            _ => false,
        };
        if !is_plain && !self.features.duration_expressions {
            return self.fail(at, "experimental duration expression is not enabled");
        }
        match e.constant() {
            Some(Ok(ms)) => Ok((ms, None)),
            Some(Err(text)) => self.fail(at, text),
            None => Ok((0, Some(e))),
        }
    }

    /// Parses a duration in brackets, which must be positive.
    pub(super) fn range(
        &mut self,
        context: &str,
        start: usize,
    ) -> Parsed<(i64, Option<DurationExpr>)> {
        let e = self.duration(context, 0)?;
        let (ms, open) = self.settle(e, start)?;
        if open.is_none() && ms <= 0 {
            return self.fail(start, "duration must be greater than 0");
        }
        Ok((ms, open))
    }
}
