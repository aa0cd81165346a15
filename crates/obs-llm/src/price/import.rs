//! Price tables of others as records: LiteLLM's map, Cost Ops' tables, CSV.

use crate::price::record::{Mode, PriceRecord, Rates, Tier};
use crate::price::{PriceBookError, bare_model};
use crate::provider;
use obs_model::Money;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// What was read, and what was left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    pub records: Vec<PriceRecord>,
    /// (name, reason).
    pub skipped: Vec<(String, String)>,
}

/// Reads an amount exactly, however the number is written.
pub(crate) fn money(v: &Value) -> Option<Money> {
    let text = match v {
        Value::String(s) => s.trim().to_owned(),
        Value::Number(n) => n.to_string(),
        _ => return None,
    };
    Money::from_str_exact(&text).or_else(|_| Money::from_scientific(&text)).ok()
}

/// USD a token → USD a million tokens.
fn per_million(v: Option<&Value>) -> Option<Money> {
    Some(money(v?)?.checked_mul(Money::from(1_000_000))?.normalize())
}

/// The rates under LiteLLM's keys; `above` and `mode` are their endings.
fn litellm_rates(m: &Map<String, Value>, above: &str, mode: &str) -> Rates {
    let token = |key: &str| per_million(m.get(&format!("{key}{above}{mode}")));
    Rates {
        input: token("input_cost_per_token"),
        output: token("output_cost_per_token"),
        cache_read: token("cache_read_input_token_cost"),
        cache_write: token("cache_creation_input_token_cost"),
        cache_write_1h: token("cache_creation_input_token_cost_above_1hr"),
        reasoning: token("output_cost_per_reasoning_token"),
        audio_input: token("input_cost_per_audio_token"),
        audio_output: token("output_cost_per_audio_token"),
        image_input: token("input_cost_per_image_token"),
        image_output: token("output_cost_per_image_token"),
        request: None,
        search: None,
    }
}

fn litellm_tiers(m: &Map<String, Value>, mode: &str) -> Vec<Tier> {
    let sizes = m.keys().filter_map(|k| {
        let rest = k.strip_prefix("input_cost_per_token_above_")?;
        let (size, rest) = rest.split_once("k_tokens")?;
        (rest == mode).then_some(size.parse::<u64>().ok()?)
    });
    let tier = |size: u64| Tier {
        above_input_tokens: size * 1000,
        marginal: false,
        rates: litellm_rates(m, &format!("_above_{size}k_tokens"), mode),
    };
    let mut out: Vec<Tier> = sizes.map(tier).collect();
    if mode.is_empty() {
        // Qwen's shape: stretches of input sizes, the first of which is the base.
        let list = m.get("tiered_pricing").and_then(Value::as_array);
        out.extend(list.into_iter().flatten().filter_map(|t| {
            let t = t.as_object()?;
            let start = t.get("range")?.get(0)?.as_f64()?;
            (start > 0.0).then(|| Tier {
                above_input_tokens: start as u64,
                marginal: false,
                rates: litellm_rates(t, "", ""),
            })
        }));
    }
    out.sort_by_key(|t| t.above_input_tokens);
    out
}

/// Splits LiteLLM's key into region and model.
fn litellm_name(key: &str, provider: &str, litellm_provider: &str) -> (String, String) {
    let family = litellm_provider.split('-').next().unwrap_or(litellm_provider);
    let heads = [litellm_provider, family, "azure", "bedrock", "vertex_ai", "cohere"];
    let rest = heads
        .iter()
        .find_map(|h| key.strip_prefix(h)?.strip_prefix('/'))
        .unwrap_or(key)
        .to_ascii_lowercase();
    if provider == "aws.bedrock" {
        let path_region = rest.split_once('/').map(|(r, _)| r.to_owned());
        let (region, bare) = bare_model(&rest);
        let region =
            if region.is_empty() { path_region.unwrap_or_default() } else { region.into() };
        return (region, bare.to_owned());
    }
    match rest.split_once('/') {
        Some((region, name)) if matches!(region, "eu" | "us" | "global" | "global-standard") => {
            let everywhere = region.starts_with("global");
            (if everywhere { String::new() } else { region.to_owned() }, name.to_owned())
        }
        _ => (String::new(), rest),
    }
}

fn litellm_provider(name: &str) -> String {
    match name {
        "azure" | "azure_text" => "azure.ai.openai",
        "azure_ai" => "azure.ai.inference",
        "text-completion-openai" => "openai",
        "bedrock_converse" | "bedrock_mantle" => "aws.bedrock",
        "cohere_chat" => "cohere",
        n if n.starts_with("vertex_ai") => "gcp.vertex_ai",
        n => return provider::canonical(n, ""),
    }
    .to_owned()
}

/// Reads LiteLLM's `model_prices_and_context_window.json`.
///
/// # Errors
/// When the text is not a JSON object.
pub fn import_litellm(text: &str) -> Result<Imported, PriceBookError> {
    let map: Map<String, Value> = serde_json::from_str(text)?;
    let mut out = Imported::default();
    let mut taken: BTreeMap<(String, String, String), usize> = BTreeMap::new();
    for (key, value) in &map {
        let mut skip = |reason: &str| out.skipped.push((key.clone(), reason.to_owned()));
        let Some(m) = value.as_object().filter(|_| key != "sample_spec") else {
            skip("no model");
            continue;
        };
        let Some(from) = m.get("litellm_provider").and_then(Value::as_str) else {
            skip("no provider");
            continue;
        };
        let mut rates = litellm_rates(m, "", "");
        let mut tiers = litellm_tiers(m, "");
        if rates.input.is_none()
            && let Some(first) = m.get("tiered_pricing").and_then(|t| t.get(0)?.as_object())
        {
            rates = litellm_rates(first, "", "");
        }
        let each = |k: &str| m.get(k).and_then(money);
        rates.request = each("input_cost_per_request").or_else(|| each("input_cost_per_query"));
        rates.search = m
            .get("search_context_cost_per_query")
            .and_then(|s| money(s.get("search_context_size_medium")?));
        if rates.input.is_none() && rates.output.is_none() && rates.request.is_none() {
            skip("no price by token or request");
            continue;
        }
        let free = |m: Option<Money>| m.is_none_or(|m| m.is_zero());
        if free(rates.input) && free(rates.output) && free(rates.request) {
            // Zero stands for "unknown" there as well as for "free".
            skip("price of zero");
            continue;
        }
        tiers.retain(|t| t.rates != Rates::default());
        let mut modes = BTreeMap::new();
        for (name, ending) in [("batch", "_batches"), ("flex", "_flex"), ("priority", "_priority")]
        {
            let rates = litellm_rates(m, "", ending);
            if rates.input.is_some() || rates.output.is_some() {
                let tiers = litellm_tiers(m, ending);
                modes.insert(name.to_owned(), Mode { factor: None, rates, tiers });
            }
        }
        let provider = litellm_provider(from);
        let (region, model) = litellm_name(key, &provider, from);
        let window = m.get("max_input_tokens");
        let source = m.get("source").and_then(Value::as_str).unwrap_or_default().to_owned();
        let record = PriceRecord {
            region,
            tiers,
            modes,
            source,
            context_tokens: window.and_then(Value::as_u64).unwrap_or(0),
            ..PriceRecord::new(provider, model, rates)
        };
        let name = (record.provider.clone(), record.model.clone(), record.region.clone());
        match taken.get(&name) {
            None => {
                taken.insert(name, out.records.len());
                out.records.push(record);
            }
            Some(_) => out.skipped.push((key.clone(), "another entry has this name".to_owned())),
        }
    }
    Ok(out)
}

/// Reads Cost Ops' pricing tables: an array of rows with a `structure` of `per_token`,
/// `per_request` or `tiered`, or of rows with prices by the thousand.
///
/// # Errors
/// When the text is not JSON, or is no array.
pub fn import_origin(text: &str) -> Result<Imported, PriceBookError> {
    let value: Value = serde_json::from_str(text)?;
    let rows = value.as_array().or_else(|| value.get("data")?.as_array());
    let rows = rows.ok_or_else(|| PriceBookError::Other("expected an array of prices".into()))?;
    let mut out = Imported::default();
    for row in rows {
        match origin_row(row) {
            Ok(r) => out.records.push(r),
            Err(problem) => {
                let of = |k: &str| row.get(k).and_then(Value::as_str).unwrap_or_default();
                out.skipped.push((format!("{}/{}", of("provider"), of("model")), problem));
            }
        }
    }
    Ok(out)
}

fn origin_row(row: &Value) -> Result<PriceRecord, String> {
    let text = |k: &str| row.get(k).and_then(Value::as_str).unwrap_or_default();
    let (provider, model) = (text("provider"), text("model"));
    if provider.is_empty() || model.is_empty() {
        return Err("provider and model are needed".into());
    }
    let mut r = PriceRecord::new(provider::canonical(provider, ""), model, Rates::default());
    let date = |k: &str| text(k).get(..10).unwrap_or_default().to_owned();
    (r.from, r.to) = (date("effective_date"), date("end_date"));
    r.currency = text("currency").to_owned();
    r.region = text("region").to_owned();
    if row.get("prompt_cost_per_1k").is_some() {
        let k = |key: &str| money(row.get(key)?)?.checked_mul(Money::ONE_THOUSAND);
        r.rates.input = k("prompt_cost_per_1k");
        r.rates.output = k("completion_cost_per_1k");
        return Ok(r);
    }
    let structure = row.get("structure").or_else(|| row.get("pricing_structure"));
    let structure = structure.ok_or("no structure")?;
    let kinds = ["per_token", "per_request", "tiered"];
    let named = structure.get("type").and_then(Value::as_str);
    let inner = |k: &str| structure.as_object()?.iter().find(|(n, _)| snake(n) == k).map(|x| x.1);
    let kind = match named {
        Some(n) => kinds.into_iter().find(|k| *k == snake(n)),
        None => kinds.into_iter().find(|k| inner(k).is_some()),
    }
    .ok_or("structure is none of per_token, per_request, tiered")?;
    let s = inner(kind).unwrap_or(structure);
    let amount = |k: &str| s.get(k).and_then(money);
    let need = |k: &str| amount(k).ok_or_else(|| format!("{k} is missing"));
    match kind {
        "per_token" => {
            let input = need("input_price_per_million")?;
            r.rates.input = Some(input);
            r.rates.output = Some(need("output_price_per_million")?);
            if let Some(off) = amount("cached_input_discount") {
                let rest = Money::ONE.checked_sub(off).filter(|r| !r.is_sign_negative());
                let rest = rest.ok_or("cached_input_discount is above 1")?;
                r.rates.cache_read = input.checked_mul(rest).map(|m| m.normalize());
            }
        }
        "per_request" => {
            r.rates.request = Some(need("price_per_request")?);
            r.included_tokens = s.get("included_tokens").and_then(Value::as_u64).unwrap_or(0);
            r.overage = amount("overage_price_per_million");
        }
        _ => {
            let list = s.get("tiers").and_then(Value::as_array).ok_or("tiers are missing")?;
            for t in list {
                let rates = Rates {
                    input: t.get("input_price_per_million").and_then(money),
                    output: t.get("output_price_per_million").and_then(money),
                    ..Rates::default()
                };
                match t.get("min_tokens").and_then(Value::as_u64).unwrap_or(0) {
                    0 => r.rates = rates,
                    // A tier begins with its minimum; ours begins above a size.
                    n => r.tiers.push(Tier { above_input_tokens: n - 1, marginal: false, rates }),
                }
            }
        }
    }
    Ok(r)
}

fn snake(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

/// Reads a table with a header of record keys: `provider`, `model`, `from`, `input`, ….
///
/// # Errors
/// When a row cannot be read; the text says which.
pub fn import_csv(text: &str) -> Result<Imported, PriceBookError> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
    let bad = |line: usize, e: &dyn std::fmt::Display| {
        PriceBookError::Other(format!("line {line} of the table: {e}"))
    };
    let header = reader.headers().map_err(|e| bad(1, &e))?.clone();
    let mut out = Imported::default();
    for (i, row) in reader.records().enumerate() {
        let row = row.map_err(|e| bad(i + 2, &e))?;
        let mut object = Map::new();
        for (key, cell) in header.iter().zip(&row).filter(|(_, c)| !c.is_empty()) {
            let value = match key {
                "included_tokens" => Value::from(cell.parse::<u64>().map_err(|e| bad(i + 2, &e))?),
                "aliases" => cell.split_whitespace().map(Value::from).collect(),
                _ => Value::from(cell),
            };
            object.insert(key.to_owned(), value);
        }
        let value = Value::Object(object);
        if let Some(key) = crate::price::record::unknown_key(&value) {
            return Err(bad(1, &format!("unknown column {key:?}")));
        }
        out.records.push(serde_json::from_value(value).map_err(|e| bad(i + 2, &e))?);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::price::PriceBook;
    use crate::price::compute::compute;
    use obs_model::TokenUsage;

    fn usd(r: &PriceRecord, tier: &str, t: TokenUsage) -> String {
        compute(r, tier, &t).map_or("none".into(), |c| c.total().normalize().to_string())
    }

    #[test]
    fn litellm_prices_every_mode_and_tier() {
        let got = import_litellm(
            r#"{"sample_spec": {"litellm_provider": "x"},
            "gemini/g-pro": {"litellm_provider": "gemini", "input_cost_per_token": 1.25e-06, "output_cost_per_token": 1e-05, "cache_read_input_token_cost": 1.25e-07,
              "input_cost_per_token_above_200k_tokens": 2.5e-06, "output_cost_per_token_above_200k_tokens": 1.5e-05, "cache_read_input_token_cost_above_200k_tokens": 2.5e-07,
              "input_cost_per_token_batches": 6.25e-07, "output_cost_per_token_batches": 5e-06},
            "us.anthropic.claude-x-20250929-v1:0": {"litellm_provider": "bedrock_converse", "input_cost_per_token": 3.3e-06, "output_cost_per_token": 1.65e-05},
            "anthropic.claude-x-20250929-v1:0": {"litellm_provider": "bedrock_converse", "input_cost_per_token": 3e-06, "output_cost_per_token": 1.5e-05},
            "dall": {"litellm_provider": "openai", "output_cost_per_image": 0.04}}"#,
        )
        .unwrap();
        assert_eq!(got.records.len(), 3);
        assert_eq!(got.skipped.len(), 2);
        let g = &got.records[0];
        assert_eq!((g.provider.as_str(), g.model.as_str()), ("gcp.gemini", "g-pro"));
        let t = |input, cache_read| TokenUsage {
            input,
            cache_read,
            output: 1_000_000,
            ..TokenUsage::default()
        };
        assert_eq!(usd(g, "", t(100_000, 100_000)), "10.1375");
        // Cached tokens count towards the size.
        assert_eq!(usd(g, "", t(100_000, 100_001)), "15.27500025");
        assert_eq!(usd(g, "batch", t(200_000, 0)), "5.125");
        assert_eq!(usd(g, "priority", t(1, 0)), "none");
        let mut book = PriceBook::default();
        let file = crate::price::BookFile {
            version: "t".into(),
            prices: got.records,
            ..Default::default()
        };
        book.add_file(file).unwrap();
        let find = |m: &str| {
            let r = book.lookup("aws.bedrock", m, obs_model::TimestampNs::from_nanos(0)).unwrap();
            r.rates.input.unwrap().to_string()
        };
        assert_eq!(find("us.anthropic.claude-x-20250929-v1:0"), "3.3");
        assert_eq!(find("anthropic.claude-x-20250929-v1:0"), "3");
        assert_eq!(find("eu.anthropic.claude-x-20250929-v1:0"), "3");
    }

    #[test]
    fn the_three_structures_of_cost_ops_with_its_worked_examples() {
        let got = import_origin(
            r#"[{"provider": "openai", "model": "a", "effective_date": "2025-01-01T00:00:00Z", "structure": {"type": "per_token", "input_price_per_million": 10, "output_price_per_million": "30", "cached_input_discount": 0.9}},
            {"provider": "p", "model": "b", "structure": {"PerRequest": {"price_per_request": 0.01, "included_tokens": 1000, "overage_price_per_million": 2}}},
            {"provider": "p", "model": "c", "pricing_structure": {"tiered": {"tiers": [{"min_tokens": 0, "max_tokens": 1000, "input_price_per_million": 1, "output_price_per_million": 2}, {"min_tokens": 1001, "input_price_per_million": 0.5, "output_price_per_million": 1}]}}},
            {"provider": "p", "model": "d", "prompt_cost_per_1k": 0.03, "completion_cost_per_1k": 0.06},
            {"provider": "p", "model": "e", "structure": {"type": "magic"}}]"#,
        )
        .unwrap();
        assert_eq!(got.skipped.len(), 1);
        let t = |input, cache_read, output| TokenUsage {
            input,
            cache_read,
            output,
            ..TokenUsage::default()
        };
        // 1000 prompt tokens, 500 of them cached, 500 completion: input 0.0055, output 0.015.
        assert_eq!(usd(&got.records[0], "", t(500, 500, 500)), "0.0205");
        assert_eq!(usd(&got.records[1], "", t(600, 0, 300)), "0.01");
        assert_eq!(usd(&got.records[1], "", t(1000, 0, 500)), "0.011");
        // No tokens at all: the peer divides by zero here.
        assert_eq!(usd(&got.records[1], "", t(0, 0, 0)), "0.01");
        assert_eq!(usd(&got.records[2], "", t(1000, 0, 1000)), "0.003");
        assert_eq!(usd(&got.records[2], "", t(1001, 0, 1000)), "0.0015005");
        assert_eq!(usd(&got.records[3], "", t(1000, 0, 1000)), "0.09");
    }

    #[test]
    fn tables_with_a_header_and_their_mistakes() {
        let got = import_csv(
            "provider,model,from,input,output,cache_read\nopenai, x ,2026-01-01,1.5,12,\n",
        )
        .unwrap();
        assert_eq!(
            usd(&got.records[0], "", TokenUsage { input: 2, ..Default::default() }),
            "0.000003"
        );
        assert!(
            import_csv("provider,model,imput\na,b,1\n").unwrap_err().to_string().contains("imput")
        );
        assert!(
            import_csv("provider,model,input\na,b,cheap\n")
                .unwrap_err()
                .to_string()
                .contains("line 2")
        );
    }
}
