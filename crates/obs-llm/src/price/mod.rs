//! The price book: what a token of a model costs, since when, and where that is written.

mod compute;
pub(crate) mod import;
mod record;

pub(crate) use compute::PLACES;
pub use import::{Imported, import_csv, import_litellm, import_origin};
pub use record::{BookFile, Discount, Mode, PriceRecord, Rate, Rates, Tier, Volume};

use obs_model::{CallCost, DAY_NS, LlmCall, Money, TimestampNs, TokenUsage};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

const EMBEDDED: &str = include_str!("../../prices/book.json");

#[derive(Debug, thiserror::Error)]
pub enum PriceBookError {
    #[error("price file is not valid: {0}")]
    Json(#[from] serde_json::Error),
    #[error("price of {provider}/{model}: {field} is not a date (YYYY-MM-DD)")]
    Date { provider: String, model: String, field: &'static str },
    #[error("price of {provider}/{model}: {field} is negative")]
    Negative { provider: String, model: String, field: &'static str },
    #[error("price of {provider}/{model}: {problem}")]
    Record { provider: String, model: String, problem: String },
    #[error("{0}")]
    Other(String),
}

/// A period, ns, half open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Days {
    from: i64,
    to: i64,
}

impl Days {
    const fn contains(self, time: i64) -> bool {
        self.from <= time && time < self.to
    }
}

#[derive(Debug, Clone)]
struct Entry {
    id: String,
    days: Days,
    /// ns of the day, half open; an end before the start is of the next day.
    hours: Option<(i64, i64)>,
    record: Arc<PriceRecord>,
}

impl Entry {
    fn holds(&self, time: i64) -> bool {
        let of_day = time.rem_euclid(DAY_NS);
        let inside = |(from, to): (i64, i64)| {
            if from <= to { from <= of_day && of_day < to } else { of_day >= from || of_day < to }
        };
        self.days.contains(time) && self.hours.is_none_or(inside)
    }
}

/// All prices; of several that match, the one added last wins.
#[derive(Debug, Clone, Default)]
pub struct PriceBook {
    version: String,
    /// Provider → model or alias → entries in order of addition.
    by_name: HashMap<String, HashMap<String, Vec<Entry>>>,
    records: usize,
    /// Providers that have records of beginnings.
    with_beginnings: HashSet<String>,
    discounts: Vec<(Days, Discount)>,
    volume: Vec<Volume>,
    /// Currency → USD for one, by the day from which it holds.
    fx: HashMap<String, Vec<(i64, Money)>>,
}

/// Why a price was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match<'a> {
    pub id: &'a str,
    pub record: &'a PriceRecord,
    /// `exact`, `version`, `prefix` or `any`.
    pub how: &'static str,
}

fn day(text: &str) -> Option<i64> {
    TimestampNs::parse_day(text).map(TimestampNs::nanos)
}

fn days(from: &str, to: &str) -> Result<Days, &'static str> {
    let bound = |text: &str, field, default: i64| match text {
        "" => Ok(default),
        text => day(text).ok_or(field),
    };
    Ok(Days {
        from: bound(from, "from", i64::MIN)?,
        to: bound(to, "to", i64::MAX)?.saturating_add(DAY_NS),
    })
}

/// Parses `HH:MM-HH:MM` into ns of the day.
fn hours(text: &str) -> Option<(i64, i64)> {
    let minute = |t: &str| {
        let (h, m) = t.split_once(':')?;
        let (h, m) = (h.parse::<i64>().ok()?, m.parse::<i64>().ok()?);
        ((0..24).contains(&h) && (0..60).contains(&m)).then_some((h * 60 + m) * 60_000_000_000)
    };
    let (from, to) = text.split_once('-')?;
    Some((minute(from)?, minute(to)?))
}

/// Returns whether a name is `pattern`, or begins with what stands before its final `*`.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => pattern == name,
    }
}

impl PriceBook {
    /// Returns the book that the program carries.
    pub fn embedded() -> Self {
        let mut book = Self::default();
        // A test loads it, so a broken book cannot be released; an empty one prices nothing.
        let read = serde_json::from_str(EMBEDDED).map_err(PriceBookError::from);
        if read.and_then(|file| book.add_file(file)).is_err() {
            return Self::default();
        }
        book
    }

    /// Adds the records of a price file; they win over those already there.
    ///
    /// # Errors
    /// When the file does not have the form of `prices/book.json`; then nothing was added.
    pub fn add_json(&mut self, text: &str) -> Result<(), PriceBookError> {
        let raw: serde_json::Value = serde_json::from_str(text)?;
        let records = raw.get("prices").and_then(serde_json::Value::as_array);
        for r in records.into_iter().flatten() {
            if let Some(key) = record::unknown_key(r) {
                let of = |k: &str| {
                    r.get(k).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned()
                };
                let problem = format!("unknown key {key:?}");
                let (provider, model) = (of("provider"), of("model"));
                return Err(PriceBookError::Record { provider, model, problem });
            }
        }
        // From the text again: numbers keep all their digits that way.
        self.add_file(serde_json::from_str(text)?)
    }

    /// Adds the records of a price file; they win over those already there.
    ///
    /// # Errors
    /// When a record is not valid; then nothing was added.
    pub fn add_file(&mut self, file: BookFile) -> Result<(), PriceBookError> {
        let mut next = self.clone();
        for r in file.prices {
            next.add(&file.version, r)?;
        }
        for d in file.discounts {
            let bad = |field| PriceBookError::Other(format!("discount: {field} is not a date"));
            if d.percent > Money::ONE_HUNDRED || d.percent.is_sign_negative() {
                let text = format!("discount of {} percent", d.percent);
                return Err(PriceBookError::Other(text));
            }
            next.discounts.push((days(&d.from, &d.to).map_err(bad)?, d));
        }
        for r in file.fx {
            let bad = || PriceBookError::Other(format!("rate of {}: not a date", r.currency));
            let from = day(&r.from).ok_or_else(bad)?;
            let list = next.fx.entry(r.currency.to_ascii_uppercase()).or_default();
            list.push((from, r.usd));
            list.sort_by_key(|x| x.0);
        }
        next.volume.extend(file.volume);
        next.volume.sort_by_key(|v| v.above_usd);
        next.version = file.version;
        *self = next;
        Ok(())
    }

    fn add(&mut self, version: &str, record: PriceRecord) -> Result<(), PriceBookError> {
        let (provider, model) = (record.provider.clone(), record.model.to_ascii_lowercase());
        let days = days(&record.from, &record.to).map_err(|field| PriceBookError::Date {
            provider: provider.clone(),
            model: model.clone(),
            field,
        })?;
        if let Some(field) = record.negative() {
            return Err(PriceBookError::Negative { provider, model, field });
        }
        let hours = match record.hours.as_str() {
            "" => None,
            text => Some(hours(text).ok_or_else(|| PriceBookError::Record {
                provider: provider.clone(),
                model: model.clone(),
                problem: format!("{text:?} is not HH:MM-HH:MM"),
            })?),
        };
        let mut id = format!("{version}/{provider}/{}", record.model);
        for (mark, part) in [("@", &record.from), ("#", &record.region), ("+", &record.hours)] {
            if !part.is_empty() {
                id.push_str(mark);
                id.push_str(part);
            }
        }
        if model.len() > 1 && model.ends_with('*') {
            self.with_beginnings.insert(provider.clone());
        }
        let names = self.by_name.entry(provider).or_default();
        let record = Arc::new(record);
        // A name behind a path is found without it too, unless another model has that name.
        let tail = model.rsplit_once('/').map(|(_, tail)| tail.to_owned());
        let tail = tail.filter(|t| {
            let held = names.get(t.as_str());
            held.is_none_or(|list| list.iter().all(|e| e.record.model == record.model))
        });
        let aliases = record.aliases.iter().map(|a| a.to_ascii_lowercase());
        for name in aliases.chain([model]).chain(tail) {
            let entry = Entry { id: id.clone(), days, hours, record: record.clone() };
            names.entry(name).or_default().push(entry);
        }
        self.records += 1;
        Ok(())
    }

    pub fn version(&self) -> &str {
        &self.version
    }

    /// Returns the number of price records.
    pub const fn len(&self) -> usize {
        self.records
    }

    pub const fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Returns every record with its id, sorted, for listing.
    pub fn records(&self) -> Vec<(&str, &PriceRecord)> {
        let entries = self.by_name.values().flat_map(HashMap::values).flatten();
        let mut out: Vec<_> = entries.map(|e| (e.id.as_str(), &*e.record)).collect();
        out.sort_by(|a, b| a.0.cmp(b.0));
        out.dedup_by(|a, b| a.0 == b.0 && a.1 == b.1);
        out
    }

    /// Agreed percentages off.
    pub fn discounts(&self) -> impl Iterator<Item = &Discount> {
        self.discounts.iter().map(|(_, d)| d)
    }

    /// Prices a call's tokens at its time, in USD, discounts taken off. `None` when no record
    /// fits, a part that was used has no price, or its currency no rate.
    pub fn price(&self, call: &LlmCall, tokens: &TokenUsage) -> Option<CallCost> {
        let entry = self.entry_of(call)?.0;
        let cost = compute::compute(&entry.record, &call.service_tier, tokens)?;
        let factor = self.factor(call, &entry.record)?;
        let scaled = |m: Money| Some(m.checked_mul(factor)?.round_dp(PLACES));
        let cost = CallCost { price_id: entry.id.clone(), ..cost };
        if factor == Money::ONE {
            return Some(cost);
        }
        Some(CallCost {
            input: scaled(cost.input)?,
            cache_read: scaled(cost.cache_read)?,
            cache_write: scaled(cost.cache_write)?,
            output: scaled(cost.output)?,
            request: scaled(cost.request)?,
            price_id: cost.price_id,
        })
    }

    /// Returns the record that prices a call, and how it was found.
    pub fn explain(&self, call: &LlmCall) -> Option<Match<'_>> {
        let (e, how) = self.entry_of(call)?;
        Some(Match { id: &e.id, record: &e.record, how })
    }

    /// Returns the record that prices a model on the days around `time`.
    pub fn lookup(&self, provider: &str, model: &str, time: TimestampNs) -> Option<&PriceRecord> {
        Some(&self.find(provider, model, "", time.nanos())?.0.record)
    }

    /// USD for an amount of a record's currency, what was agreed taken off.
    fn factor(&self, call: &LlmCall, record: &PriceRecord) -> Option<Money> {
        let time = call.start.nanos();
        let mut factor = match record.currency.to_ascii_uppercase().as_str() {
            "" | "USD" => Money::ONE,
            other => self.fx.get(other)?.iter().rev().find(|(from, _)| *from <= time)?.1,
        };
        let tagged = |t: &str| t.is_empty() || call.tags.iter().any(|x| x == t);
        let is = |want: &str, have: &str| want.is_empty() || want == have;
        let fitting = self.discounts.iter().filter(|(days, d)| {
            days.contains(time)
                && is(&d.provider, &call.provider)
                && (d.model.is_empty() || fits(&d.model, call.model()))
                && is(&d.organization, &call.organization)
                && is(&d.project, &call.project)
                && is(&d.team, &call.team)
                && tagged(&d.tag)
        });
        // The best of several agreements, not their sum.
        if let Some(best) = fitting.map(|(_, d)| d.percent).max() {
            let rest = Money::ONE_HUNDRED.checked_sub(best)?.checked_div(Money::ONE_HUNDRED)?;
            factor = factor.checked_mul(rest)?;
        }
        Some(factor)
    }

    /// What a provider takes off a month's sum, each step for itself, in USD.
    pub fn volume_discount(&self, provider: &str, month_usd: Money) -> Money {
        let steps: Vec<&Volume> = self.volume.iter().filter(|v| v.provider == provider).collect();
        let mut off = Money::ZERO;
        for (i, step) in steps.iter().enumerate() {
            let end = steps.get(i + 1).map_or(month_usd, |next| next.above_usd.min(month_usd));
            let inside = end.saturating_sub(step.above_usd).max(Money::ZERO);
            let part = inside.saturating_mul(step.percent) / Money::ONE_HUNDRED;
            off = off.saturating_add(part);
        }
        off.round_dp(PLACES)
    }

    fn entry_of(&self, call: &LlmCall) -> Option<(&Entry, &'static str)> {
        let named = [&call.response_model, &call.request_model];
        named
            .into_iter()
            .filter(|m| !m.is_empty())
            .find_map(|m| self.find(&call.provider, m, &call.region, call.start.nanos()))
    }

    fn find(
        &self,
        provider: &str,
        model: &str,
        region: &str,
        time: i64,
    ) -> Option<(&Entry, &'static str)> {
        let lower = model.to_ascii_lowercase();
        let (own_region, bare) = bare_model(&lower);
        let region = if region.is_empty() { own_region } else { region };
        let find = |p: &str| {
            let names = self.by_name.get(p)?;
            let at = |name: &str| {
                let held = names.get(name)?.iter().rev().filter(|e| e.holds(time));
                let mut held = held.filter(|e| {
                    e.record.region.is_empty() || e.record.region.eq_ignore_ascii_case(region)
                });
                let first = held.next()?;
                // A price of the very region beats one of anywhere.
                let exact = (first.record.region.is_empty() && !region.is_empty())
                    .then(|| held.find(|e| !e.record.region.is_empty()));
                exact.flatten().or(Some(first))
            };
            if let Some(e) = at(&lower).or_else(|| at(bare)) {
                return Some((e, "exact"));
            }
            // Longest name of which the model is a dated or tagged version.
            for (i, _) in bare.char_indices().rev().filter(|(_, c)| matches!(c, '-' | '@' | ':')) {
                let (name, suffix) = bare.split_at(i);
                if is_version(suffix)
                    && let Some(e) = at(name)
                {
                    return Some((e, "version"));
                }
            }
            // The longest beginning that a record names.
            let beginnings = self.with_beginnings.contains(p).then(|| bare.char_indices().rev());
            for (i, c) in beginnings.into_iter().flatten() {
                let end = i + c.len_utf8();
                let pattern = format!("{}*", bare.get(..end)?);
                if let Some(e) = at(&pattern) {
                    return Some((e, "prefix"));
                }
            }
            at("*").map(|e| (e, "any"))
        };
        price_providers(provider, bare).into_iter().find_map(find)
    }
}

/// Strips the decorations of hosts and routers: `models/`, `openai/`, `us.anthropic.`, `-v1:0`.
/// Returns the region that they name, and the rest.
fn bare_model(lower: &str) -> (&str, &str) {
    let tail = lower.rsplit('/').next().unwrap_or(lower);
    let vendors = ["anthropic.", "meta.", "mistral.", "cohere.", "amazon.", "deepseek.", "ai21."];
    let found = vendors.iter().find_map(|v| tail.find(v).map(|i| tail.split_at(i)));
    let (before, tail) = found.map_or(("", tail), |(before, rest)| {
        (before, rest.split_once('.').map_or(rest, |(_, name)| name))
    });
    let cut = tail
        .rsplit_once("-v")
        .filter(|(_, v)| v.starts_with(|c: char| c.is_ascii_digit()) && v.contains(':'))
        .map_or(tail, |(m, _)| m);
    (before.trim_end_matches('.'), cut)
}

/// Whose list prices hold for calls through a provider.
fn price_providers<'a>(provider: &'a str, model: &str) -> Vec<&'a str> {
    let vendor = if model.starts_with("claude") {
        "anthropic"
    } else if model.starts_with("gemini") {
        "gcp.gemini"
    } else if model.starts_with("mistral")
        || model.starts_with("codestral")
        || model.starts_with("ministral")
    {
        "mistral_ai"
    } else if model.starts_with("command")
        || model.starts_with("embed-")
        || model.starts_with("rerank-")
    {
        "cohere"
    } else {
        "openai"
    };
    match provider {
        "" => vec![vendor],
        "azure.ai.openai" | "azure.ai.inference" => vec![provider, "openai"],
        "gcp.vertex_ai" | "gcp.gen_ai" | "aws.bedrock" => vec![provider, vendor],
        other => vec![other],
    }
}

/// Whether what follows a name is a date or tag of the same model, not another model:
/// `-2024-07-18`, `-20250929`, `-0613`, `-001`, `-latest`, `@20250514`.
fn is_version(suffix: &str) -> bool {
    let rest = suffix.get(1..).unwrap_or_default();
    rest == "latest" || (rest.len() >= 3 && rest.chars().all(|c| c.is_ascii_digit() || c == '-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'a>(b: &'a PriceBook, provider: &str, model: &str) -> Option<&'a str> {
        b.find(provider, model, "", day("2026-06-01").unwrap()).map(|e| e.0.record.model.as_str())
    }

    #[test]
    fn the_embedded_book_loads_and_knows_the_common_models() {
        let mut b = PriceBook::embedded();
        assert!(b.len() >= 2000, "{}", b.len());
        assert!(b.add_json(EMBEDDED).is_ok());
        let cases = [
            ("openai", "gpt-4o-mini-2024-09-01", "gpt-4o-mini"),
            ("azure.ai.openai", "gpt-4o", "gpt-4o"),
            ("anthropic", "claude-sonnet-4-5-20250930", "claude-sonnet-4-5"),
            (
                "aws.bedrock",
                "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
                "claude-sonnet-4-5-20250929",
            ),
            ("gcp.vertex_ai", "gemini-2.5-flash", "gemini-2.5-flash"),
            ("gcp.gemini", "models/gemini-2.5-pro", "gemini-2.5-pro"),
            ("ollama", "llama3:8b", "*"),
            ("mistral_ai", "mistral-large-latest", "mistral-large-latest"),
            ("deepseek", "deepseek-chat", "deepseek-chat"),
            ("openai", "text-embedding-3-small", "text-embedding-3-small"),
            ("cohere", "command-r-plus", "command-r-plus"),
        ];
        for (provider, model, want) in cases {
            assert_eq!(find(&b, provider, model), Some(want), "{provider}/{model}");
        }
    }

    #[test]
    fn hours_of_the_day_discounts_currencies_and_volumes() {
        let mut b = PriceBook::default();
        b.add_json(
            r#"{"version": "t",
            "prices": [{"provider": "p", "model": "m", "input": "1"}, {"provider": "p", "model": "m", "hours": "22:00-04:00", "input": "3"},
                       {"provider": "p", "model": "e", "input": "2", "currency": "EUR"}, {"provider": "p", "model": "fam-*", "input": "7"}],
            "discounts": [{"provider": "p", "team": "search", "percent": "20"}, {"tag": "trial", "percent": "50", "to": "2026-06-30"}],
            "fx": [{"currency": "EUR", "from": "2026-01-01", "usd": "1.1"}, {"currency": "EUR", "from": "2026-05-01", "usd": "1.2"}],
            "volume": [{"provider": "p", "above_usd": "100", "percent": "10"}, {"provider": "p", "above_usd": "200", "percent": "20"}]}"#,
        )
        .unwrap();
        let cost = |model: &str, at: &str, team: &str, tags: &[&str]| {
            let mut c = crate::usage_call("p", model, TimestampNs::parse_rfc3339(at).unwrap());
            c.team = team.into();
            c.tags = tags.iter().map(|t| (*t).to_owned()).collect();
            let t = TokenUsage { input: 1_000_000, ..TokenUsage::default() };
            b.price(&c, &t).map(|c| c.total().normalize().to_string())
        };
        let is = |v: Option<String>, want: &str| assert_eq!(v.as_deref(), Some(want));
        is(cost("m", "2026-06-01T21:59:59Z", "", &[]), "1");
        is(cost("m", "2026-06-01T22:00:00Z", "", &[]), "3");
        is(cost("m", "2026-06-01T03:59:59Z", "", &[]), "3");
        is(cost("m", "2026-06-01T12:00:00Z", "search", &[]), "0.8");
        is(cost("m", "2026-06-30T12:00:00Z", "search", &["trial"]), "0.5");
        is(cost("m", "2026-07-01T12:00:00Z", "search", &["trial"]), "0.8");
        is(cost("e", "2026-04-30T12:00:00Z", "", &[]), "2.2");
        is(cost("e", "2026-05-01T00:00:00Z", "", &[]), "2.4");
        assert_eq!(cost("e", "2025-12-31T00:00:00Z", "", &[]), None);
        is(cost("fam-large", "2026-05-01T00:00:00Z", "", &[]), "7");
        let off = |usd: i64| b.volume_discount("p", Money::from(usd)).normalize().to_string();
        assert_eq!([off(100), off(150), off(300)], ["0", "5", "30"]);
        assert_eq!(b.volume_discount("q", Money::from(1000)), Money::ZERO);
    }

    #[test]
    fn marginal_tiers_price_each_stretch_for_itself() {
        let b = record(
            r#"{"provider":"p","model":"m","input":"1","output":"2","tiers":[{"above_input_tokens":100,"marginal":true,"input":"10","output":"20"}]}"#,
        );
        let t = |input, output| TokenUsage { input, output, ..TokenUsage::default() };
        // 100 at 1 and 50 at 10; 100 at 2 and 20 at 20, dollars a million.
        assert_eq!(cost(&b, t(150, 120)).unwrap(), "0.0012");
        assert_eq!(cost(&b, t(100, 100)).unwrap(), "0.0003");
        let split = TokenUsage { input: 50, cache_read: 100, ..TokenUsage::default() };
        assert_eq!(cost(&b, split), cost(&b, t(150, 0)));
    }

    #[test]
    fn another_model_is_not_a_version() {
        let b = PriceBook::embedded();
        for model in ["gpt-4o-super-preview", "gpt-4o-mini-ultra", "gpt", "claude"] {
            assert_eq!(find(&b, "openai", model), None, "{model}");
        }
    }

    fn record(json: &str) -> PriceBook {
        let mut b = PriceBook::default();
        b.add_json(&format!(r#"{{"version":"t","prices":[{json}]}}"#)).unwrap();
        b
    }

    fn cost(b: &PriceBook, t: TokenUsage) -> Option<String> {
        let (e, _) = b.find("p", "m", "", 0)?;
        compute::compute(&e.record, "", &t).map(|c| c.total().normalize().to_string())
    }

    #[test]
    fn parts_tiers_and_missing_prices() {
        let b = record(
            r#"{"provider":"p","model":"m","input":"1.25","output":"10","cache_read":"0.125","tiers":[{"above_input_tokens":100,"input":"2.5","output":"15","cache_read":"0.25"}]}"#,
        );
        let t = TokenUsage { input: 90, cache_read: 10, output: 10, ..TokenUsage::default() };
        assert_eq!(cost(&b, t).unwrap(), "0.00021375");
        // One token more, cached, puts the whole request into the upper tier.
        assert_eq!(cost(&b, TokenUsage { cache_read: 11, ..t }).unwrap(), "0.00037775");
        assert_eq!(cost(&b, TokenUsage { audio_input: 1, ..t }), None);
        assert_eq!(cost(&b, TokenUsage { input: u64::MAX, ..t }).map(|c| c.len() > 10), Some(true));
    }

    #[test]
    fn the_record_of_the_day_counts_and_files_override() {
        let mut b = record(
            r#"{"provider":"p","model":"m","to":"2025-12-31","input":"1","output":"1"},{"provider":"p","model":"m","from":"2026-01-01","input":"2","output":"2"}"#,
        );
        let price = |b: &PriceBook, date: &str| {
            b.find("p", "m", "", day(date).unwrap())
                .unwrap()
                .0
                .record
                .rates
                .input
                .unwrap()
                .to_string()
        };
        assert_eq!((price(&b, "2025-12-31"), price(&b, "2026-01-01")), ("1".into(), "2".into()));
        b.add_json(r#"{"version":"mine","prices":[{"provider":"p","model":"m","input":"9","output":"9"}]}"#).unwrap();
        assert_eq!(price(&b, "2025-06-01"), "9");
        assert!(b.add_json(r#"{"version":"x","prices":[{"provider":"p","model":"m","from":"soon","input":"9","output":"9"}]}"#).is_err());
    }
}
