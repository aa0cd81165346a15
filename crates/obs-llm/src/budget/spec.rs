//! What somebody decided of a budget, and the period that a moment is in.

use chrono::{Datelike as _, Days, Months, NaiveDate, NaiveTime, TimeZone as _};
use chrono_tz::Tz;
use obs_model::{DAY_NS, Money};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::report::{Dimension, fits};

/// What a budget counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    #[default]
    Usd,
    Tokens,
    Requests,
}

/// Periods by the calendar begin at midnight of the budget's time zone; `rolling` ends now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Period {
    Daily,
    Weekly,
    #[default]
    Monthly,
    Quarterly,
    Yearly,
    Rolling,
    /// From the beginning of time: a purse that is not refilled.
    Total,
}

const fn yes() -> bool {
    true
}

fn warning() -> f64 {
    0.80
}

fn critical() -> f64 {
    0.95
}

fn gating() -> f64 {
    1.0
}

fn utc() -> String {
    "UTC".to_owned()
}

fn usd() -> String {
    "USD".to_owned()
}

/// What somebody decided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BudgetSpec {
    /// Defaults to the name.
    #[serde(default)]
    pub id: String,
    pub name: String,
    pub limit: Money,
    #[serde(default)]
    pub unit: Unit,
    #[serde(default = "usd")]
    pub currency: String,
    /// Dimension → value, or value ending in `*`; all must hold. Empty: everything.
    #[serde(default)]
    pub scope: BTreeMap<String, String>,
    #[serde(default)]
    pub period: Period,
    /// Length of a rolling period.
    #[serde(default)]
    pub rolling_days: u32,
    #[serde(default = "utc")]
    pub time_zone: String,
    /// Whether a reservation beyond the limit is refused, or only told of.
    #[serde(default = "yes")]
    pub hard: bool,
    #[serde(default = "warning")]
    pub warning: f64,
    #[serde(default = "critical")]
    pub critical: f64,
    #[serde(default = "gating")]
    pub gating: f64,
}

impl BudgetSpec {
    /// Fills in what is derived, and tells what cannot be.
    ///
    /// # Errors
    /// With what is wrong.
    pub fn checked(mut self) -> Result<Self, String> {
        if self.name.trim().is_empty() {
            return Err("a budget needs a name".into());
        }
        if self.id.is_empty() {
            let lower = self.name.to_lowercase();
            let words = lower.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty());
            self.id = words.collect::<Vec<_>>().join("-");
        }
        let is_word = |c: char| c.is_alphanumeric() || "-_.:".contains(c);
        if self.id.is_empty() || self.id.len() > 128 || !self.id.chars().all(is_word) {
            return Err(format!("id {:?}: letters, digits and -_.: only, 1 to 128", self.id));
        }
        if self.limit <= Money::ZERO {
            return Err("limit must be above zero".into());
        }
        if self.currency != "USD" {
            return Err("amounts of budgets are in USD".into());
        }
        for name in self.scope.keys() {
            match Dimension::parse(name) {
                None => {
                    let known = Dimension::names();
                    return Err(format!("scope {name:?} is none of {known}"));
                }
                Some(
                    Dimension::Hour
                    | Dimension::Day
                    | Dimension::Week
                    | Dimension::Month
                    | Dimension::CostState
                    | Dimension::Status
                    | Dimension::PriceId,
                ) => return Err(format!("{name:?} is known after a call only")),
                Some(_) => {}
            }
        }
        self.zone()?;
        if self.period == Period::Rolling && !(1..=366).contains(&self.rolling_days) {
            return Err("a rolling period needs rolling_days of 1 to 366".into());
        }
        let ordered = 0.0 < self.warning
            && self.warning <= self.critical
            && self.critical <= self.gating
            && self.gating <= 10.0;
        if !ordered {
            return Err("warning, critical and gating must be above 0 and in this order".into());
        }
        Ok(self)
    }

    fn zone(&self) -> Result<Tz, String> {
        self.time_zone.parse().map_err(|_| format!("{:?} is no time zone", self.time_zone))
    }

    /// Returns the period that holds a moment: from, and to (excluded), ns.
    pub fn period_at(&self, now: i64) -> (i64, i64) {
        let zone = self.zone().unwrap_or(Tz::UTC);
        let today = zone.timestamp_nanos(now).date_naive();
        let midnight = |d: Option<NaiveDate>| {
            let d = d.unwrap_or(today);
            let local = d.and_time(NaiveTime::MIN);
            // A day that begins in the gap of a clock change begins with the first moment after it.
            let at = (0..24).find_map(|h| {
                zone.from_local_datetime(&(local + chrono::TimeDelta::hours(h))).earliest()
            });
            at.and_then(|t| t.timestamp_nanos_opt()).unwrap_or(now)
        };
        let first = |month: u32| NaiveDate::from_ymd_opt(today.year(), month, 1);
        match self.period {
            Period::Rolling => (now - i64::from(self.rolling_days) * DAY_NS, i64::MAX),
            Period::Total => (i64::MIN, i64::MAX),
            Period::Daily => {
                (midnight(Some(today)), midnight(today.checked_add_days(Days::new(1))))
            }
            Period::Weekly => {
                let back = today.weekday().num_days_from_monday().into();
                let monday = today.checked_sub_days(Days::new(back));
                (midnight(monday), midnight(monday.and_then(|d| d.checked_add_days(Days::new(7)))))
            }
            Period::Monthly | Period::Quarterly | Period::Yearly => {
                let (start, months) = match self.period {
                    Period::Monthly => (first(today.month()), 1),
                    Period::Quarterly => (first((today.month() - 1) / 3 * 3 + 1), 3),
                    _ => (first(1), 12),
                };
                let end = start.and_then(|d| d.checked_add_months(Months::new(months)));
                (midnight(start), midnight(end))
            }
        }
    }

    /// Returns the scope as it is compared.
    pub(super) fn parsed_scope(&self) -> Scope {
        let one = |(name, want): (&String, &String)| Some((Dimension::parse(name)?, want.clone()));
        Scope(self.scope.iter().map(one).collect())
    }

    /// Returns the further attributes that the scope names.
    pub fn attributes(&self) -> Vec<String> {
        let of = |name: &String| Some(Dimension::parse(name)?.attribute()?.to_owned());
        self.scope.keys().filter_map(of).collect()
    }

    /// Returns the scope as text: `team=search,model=gpt-*`.
    pub fn scope_text(&self) -> String {
        let parts: Vec<String> = self.scope.iter().map(|(k, v)| format!("{k}={v}")).collect();
        parts.join(",")
    }
}

/// What a budget covers, names read; `None` is of a budget that names what there is not.
#[derive(Debug)]
pub(super) struct Scope(Option<Vec<(Dimension, String)>>);

impl Scope {
    /// Whether all of it holds. `any` tells whether something holds of a value of a dimension.
    pub(super) fn covers(&self, any: impl Fn(&Dimension, &dyn Fn(&str) -> bool) -> bool) -> bool {
        let all = |s: &Vec<(Dimension, String)>| {
            s.iter().all(|(d, want)| any(d, &|have| fits(have, want)))
        };
        self.0.as_ref().is_some_and(all)
    }
}
