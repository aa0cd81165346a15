//! What an operator may set about PromQL: the parts that Prometheus has behind `--enable-feature`,
//! the look-back, the step of subqueries that name none.

use crate::ast::Expr;
use crate::eval::QueryOptions;
use crate::parser::{ParseError, parse_with};
use std::sync::{Arc, PoisonError, RwLock};

/// Parts of the language that can be switched, by Prometheus' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    pub experimental_functions: bool,
    pub duration_expressions: bool,
    pub extended_range_selectors: bool,
    pub fill_modifiers: bool,
    pub delayed_name_removal: bool,
}

impl Default for Features {
    /// All of the language; what would change results is off.
    fn default() -> Self {
        Self {
            experimental_functions: true,
            duration_expressions: true,
            extended_range_selectors: true,
            fill_modifiers: true,
            delayed_name_removal: false,
        }
    }
}

impl Features {
    /// Prometheus' names of the features, in the order of the fields.
    pub const NAMES: [&str; 5] = [
        "promql-experimental-functions",
        "promql-duration-expr",
        "promql-extended-range-selectors",
        "promql-binop-fill-modifiers",
        "promql-delayed-name-removal",
    ];

    fn slots(&mut self) -> [&mut bool; 5] {
        [
            &mut self.experimental_functions,
            &mut self.duration_expressions,
            &mut self.extended_range_selectors,
            &mut self.fill_modifiers,
            &mut self.delayed_name_removal,
        ]
    }

    /// Switches a feature; returns whether there is one of that name.
    #[must_use]
    pub fn set(&mut self, name: &str, on: bool) -> bool {
        let slot = Self::NAMES.iter().zip(self.slots()).find(|(n, _)| **n == name);
        slot.map(|(_, slot)| *slot = on).is_some()
    }

    /// Returns the names of what is on.
    pub fn enabled(mut self) -> Vec<&'static str> {
        let slots = self.slots();
        Self::NAMES.into_iter().zip(slots).filter(|(_, on)| **on).map(|(n, _)| n).collect()
    }
}

/// Settings of all queries. Milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    pub features: Features,
    pub lookback_ms: i64,
    /// Step of subqueries that name none: the interval of rules, as in Prometheus.
    pub default_step_ms: i64,
}

impl Default for Settings {
    fn default() -> Self {
        let QueryOptions { lookback_ms, default_step_ms, .. } = QueryOptions::default();
        Self { features: Features::default(), lookback_ms, default_step_ms }
    }
}

/// The settings in force, shared by all who read and evaluate queries.
#[derive(Debug, Clone, Default)]
pub struct Dialect(Arc<RwLock<Settings>>);

impl Dialect {
    pub fn set(&self, settings: Settings) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = settings;
    }

    /// Returns the settings in force.
    pub fn settings(&self) -> Settings {
        *self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Parses and type-checks a query.
    ///
    /// # Errors
    /// As [`parse`](crate::parse); also where a part of the language is switched off.
    pub fn parse(&self, text: &str) -> Result<Expr, ParseError> {
        parse_with(text, self.settings().features)
    }

    /// Returns the options of a query that sets none.
    pub fn options(&self) -> QueryOptions {
        let s = self.settings();
        QueryOptions {
            lookback_ms: s.lookback_ms,
            default_step_ms: s.default_step_ms,
            delay_name_removal: s.features.delayed_name_removal,
            ..QueryOptions::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_switched_off_is_refused_by_name() {
        let cases = [
            (0, "sum(info(up))", "1:5: parse error: function \"info\" is not enabled"),
            (
                0,
                "limitk(2, up)",
                "1:1: parse error: limitk() is experimental and must be enabled with --enable-feature=promql-experimental-functions",
            ),
            (1, "rate(up[2 * 1m])", "experimental duration expression is not enabled"),
            (1, "up offset (step() + 1m)", "experimental duration expression is not enabled"),
            (1, "rate(up[1h:step()])", "experimental duration expression is not enabled"),
            (2, "rate(up[5m] smoothed)", "smoothed modifier is experimental and not enabled"),
            (2, "up anchored", "anchored modifier is experimental and not enabled"),
            (3, "up + fill(0) up", "binop fill modifiers are experimental and not enabled"),
        ];
        for (feature, text, want) in cases {
            let mut off = Features::default();
            assert!(off.set(Features::NAMES[feature], false));
            let got = parse_with(text, off).unwrap_err().to_string();
            assert!(got.contains(want), "{text}: {got}");
            for other in (0..Features::NAMES.len()).filter(|i| *i != feature) {
                let mut others = Features::default();
                assert!(others.set(Features::NAMES[other], false));
                let refused = parse_with(text, others).err().map(|e| e.to_string());
                // `anchored` needs a range whatever is on.
                assert!(refused.is_none() || text == "up anchored", "{text}: {refused:?}");
            }
        }
        let mut none = Features::default();
        for name in Features::NAMES {
            assert!(none.set(name, false));
        }
        assert!(!none.set("promql-other", true));
        assert!(none.enabled().is_empty());
        for text in ["rate(up[5m] offset -1m)", "max_over_time(up[1h:] @ end())", "up + on() up"] {
            assert!(parse_with(text, none).is_ok(), "{text}");
        }
    }
}
