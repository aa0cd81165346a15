//! What a price record says, and its file form.

use obs_model::Money;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Keys of a record; others are refused, so that a misspelt price is not a missing one.
const KEYS: &[&str] = &[
    "provider",
    "model",
    "aliases",
    "from",
    "to",
    "currency",
    "region",
    "tiers",
    "modes",
    "included_tokens",
    "overage",
    "source",
    "hours",
    "context_tokens",
];
const RATE_KEYS: &[&str] = &[
    "input",
    "output",
    "cache_read",
    "cache_write",
    "cache_write_1h",
    "reasoning",
    "audio_input",
    "audio_output",
    "image_input",
    "image_output",
    "request",
    "search",
];

/// Amounts in the record's currency per million tokens, or each where it says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rates {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<Money>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<Money>,
    /// Defaults to `input`: a provider that lists no cached price bills the full one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_read: Option<Money>,
    /// Defaults to `input`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_write: Option<Money>,
    /// Defaults to `cache_write`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_write_1h: Option<Money>,
    /// Defaults to `output`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<Money>,
    /// Audio costs a multiple of text: without it, calls with audio stay unpriced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audio_input: Option<Money>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audio_output: Option<Money>,
    /// Defaults to `input`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_input: Option<Money>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_output: Option<Money>,
    /// Each request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<Money>,
    /// Each web search or search unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub search: Option<Money>,
}

impl Rates {
    pub(crate) fn all(&self) -> [(&'static str, Option<Money>); 12] {
        [
            ("input", self.input),
            ("output", self.output),
            ("cache_read", self.cache_read),
            ("cache_write", self.cache_write),
            ("cache_write_1h", self.cache_write_1h),
            ("reasoning", self.reasoning),
            ("audio_input", self.audio_input),
            ("audio_output", self.audio_output),
            ("image_input", self.image_input),
            ("image_output", self.image_output),
            ("request", self.request),
            ("search", self.search),
        ]
    }

    /// Returns these rates, and those that no token amount decides from `base`.
    pub(crate) const fn over(self, base: &Self) -> Self {
        const fn or(a: Option<Money>, b: Option<Money>) -> Option<Money> {
            if a.is_some() { a } else { b }
        }
        Self {
            input: or(self.input, base.input),
            output: or(self.output, base.output),
            audio_input: or(self.audio_input, base.audio_input),
            audio_output: or(self.audio_output, base.audio_output),
            image_output: or(self.image_output, base.image_output),
            request: or(self.request, base.request),
            search: or(self.search, base.search),
            ..self
        }
    }

    pub(crate) fn times(&self, factor: Money) -> Option<Self> {
        let by = |m: Option<Money>| match m {
            None => Some(None),
            Some(m) => m.checked_mul(factor).map(Some),
        };
        Some(Self {
            input: by(self.input)?,
            output: by(self.output)?,
            cache_read: by(self.cache_read)?,
            cache_write: by(self.cache_write)?,
            cache_write_1h: by(self.cache_write_1h)?,
            reasoning: by(self.reasoning)?,
            audio_input: by(self.audio_input)?,
            audio_output: by(self.audio_output)?,
            image_input: by(self.image_input)?,
            image_output: by(self.image_output)?,
            request: by(self.request)?,
            search: self.search,
        })
    }
}

/// Other prices above an input size, cached tokens counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tier {
    pub above_input_tokens: u64,
    /// Only the tokens above the size cost this, input and output each for itself; otherwise the
    /// whole call does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub marginal: bool,
    #[serde(flatten)]
    pub rates: Rates,
}

/// Prices of another way to be served: `batch`, `flex`, `priority`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Mode {
    /// Standard prices times this, where no other is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub factor: Option<Money>,
    #[serde(flatten)]
    pub rates: Rates,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tiers: Vec<Tier>,
}

/// What a model costs, since when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PriceRecord {
    pub provider: String,
    /// A name, or a beginning followed by `*`; `*` alone prices every model of the provider.
    pub model: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// First day on which it holds; empty means always.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub from: String,
    /// Last day on which it holds; empty means until further notice.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub to: String,
    /// Hours of the day in which it holds, UTC, `HH:MM-HH:MM`; empty means all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hours: String,
    /// ISO 4217; empty means USD.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub currency: String,
    /// Holds for calls served there alone; empty means anywhere.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub region: String,
    #[serde(flatten)]
    pub rates: Rates,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tiers: Vec<Tier>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub modes: BTreeMap<String, Mode>,
    /// Tokens that the price of a request includes; those above cost `overage` a million.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub included_tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overage: Option<Money>,
    /// Tokens that the model takes in at most; zero where it is not known.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub context_tokens: u64,
    /// Where the price is written.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
const fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl PriceRecord {
    /// Returns a record of a model with nothing but rates.
    pub fn new(provider: impl Into<String>, model: impl Into<String>, rates: Rates) -> Self {
        Self {
            provider: provider.into(),
            model: model.into(),
            aliases: Vec::new(),
            from: String::new(),
            to: String::new(),
            hours: String::new(),
            currency: String::new(),
            region: String::new(),
            rates,
            tiers: Vec::new(),
            modes: BTreeMap::new(),
            included_tokens: 0,
            overage: None,
            context_tokens: 0,
            source: String::new(),
        }
    }

    /// Returns the name of the first price that is negative.
    pub(crate) fn negative(&self) -> Option<&'static str> {
        let of = |r: &Rates| {
            r.all().into_iter().find(|(_, m)| m.is_some_and(|m| m.is_sign_negative())).map(|x| x.0)
        };
        let tiers = |t: &[Tier]| t.iter().find_map(|t| of(&t.rates));
        of(&self.rates)
            .or_else(|| tiers(&self.tiers))
            .or_else(|| self.modes.values().find_map(|m| of(&m.rates).or_else(|| tiers(&m.tiers))))
            .or_else(|| self.overage.filter(Money::is_sign_negative).map(|_| "overage"))
    }
}

/// A percentage off the list price, agreed with a provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Discount {
    /// Empty fields match every call.
    #[serde(default)]
    pub provider: String,
    /// A name, or a beginning followed by `*`.
    #[serde(default)]
    pub model: String,
    #[serde(default)]
    pub organization: String,
    #[serde(default)]
    pub project: String,
    #[serde(default)]
    pub team: String,
    #[serde(default)]
    pub tag: String,
    pub percent: Money,
    #[serde(default)]
    pub from: String,
    #[serde(default)]
    pub to: String,
}

/// A percentage off what a provider's month brings above an amount, each step for itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    pub provider: String,
    /// USD of the calendar month (UTC) above which it holds.
    pub above_usd: Money,
    pub percent: Money,
}

/// USD for one unit of another currency, from a day on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    pub currency: String,
    pub from: String,
    pub usd: Money,
}

/// A price file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BookFile {
    pub version: String,
    #[serde(default)]
    pub prices: Vec<PriceRecord>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub discounts: Vec<Discount>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volume: Vec<Volume>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fx: Vec<Rate>,
}

/// Returns the first key that no record has.
pub(crate) fn unknown_key(record: &serde_json::Value) -> Option<String> {
    let object = record.as_object()?;
    let strange = |v: &serde_json::Value, more: &[&str]| {
        let o = v.as_object()?;
        o.keys().find(|k| !RATE_KEYS.contains(&k.as_str()) && !more.contains(&k.as_str())).cloned()
    };
    let tiers = |v: &serde_json::Value| {
        let list = v.get("tiers")?.as_array()?;
        list.iter().find_map(|t| strange(t, &["above_input_tokens", "marginal"]))
    };
    strange(record, KEYS).or_else(|| tiers(record)).or_else(|| {
        let modes = object.get("modes")?.as_object()?;
        modes.values().find_map(|m| strange(m, &["factor", "tiers"]).or_else(|| tiers(m)))
    })
}
