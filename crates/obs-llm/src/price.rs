//! The price book: what a token of a model costs, since when, and where that is written.

use obs_model::{CallCost, LlmCall, Money, TimestampNs, TokenUsage};
use serde::Deserialize;
use std::collections::HashMap;

const EMBEDDED: &str = include_str!("../prices/book.json");
/// Decimal places of a stored amount.
const PLACES: u32 = 12;

#[derive(Debug, thiserror::Error)]
pub enum PriceBookError {
    #[error("price file is not valid: {0}")]
    Json(#[from] serde_json::Error),
    #[error("price of {provider}/{model}: {field} is not a date (YYYY-MM-DD)")]
    Date { provider: String, model: String, field: &'static str },
    #[error("price of {provider}/{model}: {field} is negative")]
    Negative { provider: String, model: String, field: &'static str },
}

/// Prices of a model, USD per million tokens.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceRecord {
    pub provider: String,
    /// Exact name; `*` prices every model of the provider (self-hosted ones).
    pub model: String,
    #[serde(default)]
    pub aliases: Vec<String>,
    /// First day on which it holds; empty means always.
    #[serde(default)]
    pub from: String,
    /// Last day on which it holds; empty means until further notice.
    #[serde(default)]
    pub to: String,
    pub input: Money,
    pub output: Money,
    /// Defaults to `input`: a provider that lists no cached price bills the full one.
    pub cache_read: Option<Money>,
    pub cache_write: Option<Money>,
    pub cache_write_1h: Option<Money>,
    /// Defaults to `output`.
    pub reasoning: Option<Money>,
    pub audio_input: Option<Money>,
    pub audio_output: Option<Money>,
    /// USD a request.
    pub request: Option<Money>,
    /// Other prices for requests whose whole input (cached tokens included) is larger.
    #[serde(default)]
    pub tiers: Vec<Tier>,
    #[serde(default)]
    pub source: String,
}

/// Prices of the whole request above an input size.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tier {
    pub above_input_tokens: u64,
    pub input: Money,
    pub output: Money,
    pub cache_read: Option<Money>,
    pub cache_write: Option<Money>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BookFile {
    version: String,
    prices: Vec<PriceRecord>,
}

#[derive(Debug, Clone)]
struct Entry {
    id: String,
    /// Nanoseconds, half open.
    from: i64,
    to: i64,
    record: PriceRecord,
}

/// All prices; of several that match, the one added last wins.
#[derive(Debug, Clone, Default)]
pub struct PriceBook {
    version: String,
    /// (provider, model or alias) → entries in order of addition.
    by_name: HashMap<(String, String), Vec<Entry>>,
    records: usize,
}

fn day(text: &str) -> Option<i64> {
    TimestampNs::parse_rfc3339(&format!("{text}T00:00:00Z")).map(TimestampNs::nanos)
}

const DAY_NS: i64 = 86_400_000_000_000;

impl PriceBook {
    /// Returns the book that the program carries.
    pub fn embedded() -> Self {
        let mut book = Self::default();
        // A test loads it, so a broken book cannot be released; an empty one prices nothing.
        if book.add_json(EMBEDDED).is_err() {
            return Self::default();
        }
        book
    }

    /// Adds the records of a price file; they win over those already there.
    ///
    /// # Errors
    /// When the file does not have the form of `prices/book.json`.
    pub fn add_json(&mut self, text: &str) -> Result<(), PriceBookError> {
        let file: BookFile = serde_json::from_str(text)?;
        for record in file.prices {
            self.add(&file.version, record)?;
        }
        self.version = file.version;
        Ok(())
    }

    fn add(&mut self, version: &str, record: PriceRecord) -> Result<(), PriceBookError> {
        let (provider, model) = (record.provider.clone(), record.model.clone());
        let bound = |text: &str, field, default: i64| match text {
            "" => Ok(default),
            text => day(text).ok_or(PriceBookError::Date {
                provider: provider.clone(),
                model: model.clone(),
                field,
            }),
        };
        let from = bound(&record.from, "from", i64::MIN)?;
        let to = bound(&record.to, "to", i64::MAX)?.saturating_add(DAY_NS);
        for (field, price) in [("input", record.input), ("output", record.output)] {
            if price.is_sign_negative() {
                return Err(PriceBookError::Negative { provider, model, field });
            }
        }
        let id = format!("{version}/{provider}/{model}");
        for name in record.aliases.iter().chain([&record.model]) {
            let key = (provider.clone(), name.to_ascii_lowercase());
            self.by_name.entry(key).or_default().push(Entry {
                id: id.clone(),
                from,
                to,
                record: record.clone(),
            });
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
        let mut out: Vec<_> =
            self.by_name.values().flatten().map(|e| (e.id.as_str(), &e.record)).collect();
        out.sort_by(|a, b| a.0.cmp(b.0));
        out.dedup_by(|a, b| a.0 == b.0 && a.1 == b.1);
        out
    }

    /// Prices a call's tokens at its time. `None` when no record fits, or none of the record's
    /// prices covers a part of the usage.
    pub fn price(&self, call: &LlmCall, tokens: &TokenUsage) -> Option<CallCost> {
        let found =
            [&call.response_model, &call.request_model].into_iter().filter(|m| !m.is_empty());
        let entry =
            found.into_iter().find_map(|m| self.find(&call.provider, m, call.start.nanos()))?;
        compute(entry, tokens)
    }

    fn find(&self, provider: &str, model: &str, time: i64) -> Option<&Entry> {
        let model = bare_model(model);
        let at = |provider: &str, name: &str| {
            let entries = self.by_name.get(&(provider.to_owned(), name.to_owned()))?;
            entries.iter().rev().find(|e| e.from <= time && time < e.to)
        };
        for p in price_providers(provider, &model) {
            if let Some(e) = at(p, &model) {
                return Some(e);
            }
            // Longest name of which the model is a dated or tagged version.
            for (i, _) in model.char_indices().rev().filter(|(_, c)| matches!(c, '-' | '@' | ':')) {
                let (name, suffix) = model.split_at(i);
                if is_version(suffix)
                    && let Some(e) = at(p, name)
                {
                    return Some(e);
                }
            }
            if let Some(e) = at(p, "*") {
                return Some(e);
            }
        }
        None
    }
}

/// Strips the decorations of hosts and routers: `models/`, `openai/`, `us.anthropic.`, `-v1:0`.
fn bare_model(model: &str) -> String {
    let lower = model.to_ascii_lowercase();
    let tail = lower.rsplit('/').next().unwrap_or(&lower);
    let vendors = ["anthropic.", "meta.", "mistral.", "cohere.", "amazon.", "deepseek."];
    let tail = vendors
        .iter()
        .find_map(|v| tail.find(v).and_then(|i| tail.get(i + v.len()..)))
        .unwrap_or(tail);
    let cut = tail
        .rsplit_once("-v")
        .filter(|(_, v)| v.starts_with(|c: char| c.is_ascii_digit()) && v.contains(':'))
        .map_or(tail, |(m, _)| m);
    cut.to_owned()
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

fn compute(entry: &Entry, t: &TokenUsage) -> Option<CallCost> {
    let r = &entry.record;
    let tier = r
        .tiers
        .iter()
        .filter(|tier| t.input_total() > tier.above_input_tokens)
        .max_by_key(|tier| tier.above_input_tokens);
    let (input, output) = tier.map_or((r.input, r.output), |t| (t.input, t.output));
    let cache_read = tier.map_or(r.cache_read, |t| t.cache_read).unwrap_or(input);
    let cache_write = tier.map_or(r.cache_write, |t| t.cache_write).unwrap_or(input);
    let cache_write_1h = r.cache_write_1h.unwrap_or(cache_write);
    let reasoning = if tier.is_some() { output } else { r.reasoning.unwrap_or(output) };
    // Audio costs a multiple of text: without its price the amount would be wrong, not close.
    let audio = |tokens: u64, price: Option<Money>| match (tokens, price) {
        (0, _) => Some(Money::ZERO),
        (_, None) => None,
        (n, Some(p)) => part(n, p),
    };
    let sum = |a: Money, b: Money| a.checked_add(b);
    Some(CallCost {
        input: sum(part(t.input, input)?, audio(t.audio_input, r.audio_input)?)?,
        cache_read: part(t.cache_read, cache_read)?,
        cache_write: sum(
            part(t.cache_write, cache_write)?,
            part(t.cache_write_1h, cache_write_1h)?,
        )?,
        output: sum(
            sum(part(t.output, output)?, part(t.reasoning, reasoning)?)?,
            audio(t.audio_output, r.audio_output)?,
        )?,
        request: r.request.unwrap_or(Money::ZERO),
        price_id: entry.id.clone(),
    })
}

/// Tokens × price per million, in USD; `None` on overflow.
fn part(tokens: u64, per_million: Money) -> Option<Money> {
    let exact =
        Money::from(tokens).checked_mul(per_million)?.checked_div(Money::from(1_000_000))?;
    Some(exact.round_dp(PLACES))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'a>(b: &'a PriceBook, provider: &str, model: &str) -> Option<&'a str> {
        b.find(provider, model, day("2026-06-01").unwrap()).map(|e| e.record.model.as_str())
    }

    #[test]
    fn the_embedded_book_loads_and_knows_the_common_models() {
        let b = PriceBook::embedded();
        assert!(b.len() >= 80, "{}", b.len());
        let cases = [
            ("openai", "gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
            ("azure.ai.openai", "gpt-4o", "gpt-4o"),
            ("anthropic", "claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
            ("aws.bedrock", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", "claude-sonnet-4-5"),
            ("gcp.vertex_ai", "gemini-2.5-flash", "gemini-2.5-flash"),
            ("gcp.gemini", "models/gemini-2.5-pro", "gemini-2.5-pro"),
            ("ollama", "llama3:8b", "*"),
            ("mistral_ai", "mistral-large-latest", "mistral-large"),
            ("deepseek", "deepseek-chat", "deepseek-chat"),
            ("openai", "text-embedding-3-small", "text-embedding-3-small"),
            ("cohere", "command-r-plus", "command-r-plus"),
        ];
        for (provider, model, want) in cases {
            assert_eq!(find(&b, provider, model), Some(want), "{provider}/{model}");
        }
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
        let e = b.find("p", "m", 0)?;
        compute(e, &t).map(|c| c.total().normalize().to_string())
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
            b.find("p", "m", day(date).unwrap()).unwrap().record.input.to_string()
        };
        assert_eq!((price(&b, "2025-12-31"), price(&b, "2026-01-01")), ("1".into(), "2".into()));
        b.add_json(r#"{"version":"mine","prices":[{"provider":"p","model":"m","input":"9","output":"9"}]}"#).unwrap();
        assert_eq!(price(&b, "2025-06-01"), "9");
        assert!(b.add_json(r#"{"version":"x","prices":[{"provider":"p","model":"m","from":"soon","input":"9","output":"9"}]}"#).is_err());
    }
}
