//! Token counts of all dialects as one disjoint vector.
//!
//! Counts overlap differently by source: OpenTelemetry's input includes cached tokens, raw
//! Anthropic usage and Langfuse's `usage_details` exclude them. Where a total is given, the sums
//! decide; where nothing decides and it matters, the result is marked ambiguous. Nothing is ever
//! clamped: a part larger than its whole proves that the whole excludes it.

use obs_model::{Attributes, Dialect, TokenUsage};

const INPUT: &[&str] = &[
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.prompt_tokens",
    "llm.token_count.prompt",
    "llm.usage.prompt_tokens",
    "ai.usage.promptTokens",
    "ai.usage.inputTokens",
    "ai.usage.tokens",
];
const OUTPUT: &[&str] = &[
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.completion_tokens",
    "llm.token_count.completion",
    "llm.usage.completion_tokens",
    "ai.usage.completionTokens",
    "ai.usage.outputTokens",
];
const TOTAL: &[&str] = &[
    "gen_ai.usage.total_tokens",
    "llm.usage.total_tokens",
    "llm.token_count.total",
    "ai.usage.totalTokens",
];
const CACHE_READ: &[&str] = &[
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.cache_read_input_tokens",
    "gen_ai.usage.cache_read_tokens",
    "gen_ai.usage.details.cache_read_tokens",
    "gen_ai.usage.details.cache_read_input_tokens",
    "gen_ai.usage.input_cached_tokens",
    "llm.token_count.prompt_details.cache_read",
    "ai.usage.cachedInputTokens",
];
const CACHE_WRITE: &[&str] = &[
    "gen_ai.usage.cache_creation.input_tokens",
    "gen_ai.usage.cache_creation_input_tokens",
    "gen_ai.usage.cache_write_tokens",
    "gen_ai.usage.details.cache_write_tokens",
    "gen_ai.usage.details.cache_creation_input_tokens",
    "gen_ai.usage.input_cache_creation",
    "llm.token_count.prompt_details.cache_write",
];
const REASONING: &[&str] = &[
    "gen_ai.usage.reasoning.output_tokens",
    "gen_ai.usage.reasoning_tokens",
    "llm.token_count.completion_details.reasoning",
    "ai.usage.reasoningTokens",
];
const AUDIO_IN: &[&str] =
    &["gen_ai.usage.audio.input_tokens", "llm.token_count.prompt_details.audio"];
const AUDIO_OUT: &[&str] =
    &["gen_ai.usage.audio.output_tokens", "llm.token_count.completion_details.audio"];

/// What was read, and how sure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) tokens: TokenUsage,
    /// The other reading, when nothing tells which is right.
    pub(crate) alternative: Option<TokenUsage>,
}

/// Raw counts before overlaps are solved.
#[derive(Debug, Clone, Copy, Default)]
struct Raw {
    input: u64,
    output: u64,
    total: Option<u64>,
    cache_read: u64,
    cache_write: u64,
    cache_write_1h: u64,
    reasoning: u64,
    audio_in: u64,
    audio_out: u64,
    exclusive: bool,
}

fn count(a: &Attributes, keys: &[&str]) -> Option<u64> {
    keys.iter().find_map(|k| a.get(k).and_then(|v| v.as_i64()).and_then(|n| u64::try_from(n).ok()))
}

/// Reads a span's usage; `None` when it carries no counts.
pub(crate) fn usage(a: &Attributes, dialect: Dialect) -> Option<Usage> {
    if let Some(raw) = a.get_str("langfuse.observation.usage_details").and_then(langfuse) {
        return Some(solve(raw));
    }
    let (input, output) = (count(a, INPUT), count(a, OUTPUT));
    let total = count(a, TOTAL);
    if input.is_none() && output.is_none() && total.is_none() {
        return None;
    }
    let output_known = output.unwrap_or(0);
    Some(solve(Raw {
        // Embeddings often report a total alone.
        input: input.unwrap_or_else(|| total.unwrap_or(0).saturating_sub(output_known)),
        output: output_known,
        total,
        cache_read: count(a, CACHE_READ).unwrap_or(0),
        cache_write: count(a, CACHE_WRITE).unwrap_or(0),
        cache_write_1h: 0,
        reasoning: count(a, REASONING).unwrap_or(0),
        audio_in: count(a, AUDIO_IN).unwrap_or(0),
        audio_out: count(a, AUDIO_OUT).unwrap_or(0),
        exclusive: dialect == Dialect::Langfuse,
    }))
}

fn langfuse(json: &str) -> Option<Raw> {
    let v: serde_json::Value = serde_json::from_str(json).ok()?;
    let n = |keys: &[&str]| {
        keys.iter().find_map(|k| v.get(k).and_then(serde_json::Value::as_u64)).unwrap_or(0)
    };
    Some(Raw {
        input: n(&["input"]),
        output: n(&["output"]),
        total: v.get("total").and_then(serde_json::Value::as_u64),
        cache_read: n(&["input_cached_tokens", "input_cache_read"]),
        cache_write: n(&["input_cache_creation_5m", "input_cache_creation"]),
        cache_write_1h: n(&["input_cache_creation_1h"]),
        reasoning: n(&["output_reasoning_tokens", "output_reasoning"]),
        audio_in: n(&["input_audio_tokens"]),
        audio_out: n(&["output_audio_tokens"]),
        exclusive: true,
    })
}

fn solve(r: Raw) -> Usage {
    let input_parts = r.cache_read + r.cache_write + r.cache_write_1h + r.audio_in;
    let output_parts = r.reasoning + r.audio_out;
    let build = |input_exclusive: bool, output_exclusive: bool| {
        Some(TokenUsage {
            input: if input_exclusive { r.input } else { r.input.checked_sub(input_parts)? },
            cache_read: r.cache_read,
            cache_write: r.cache_write,
            cache_write_1h: r.cache_write_1h,
            audio_input: r.audio_in,
            output: if output_exclusive { r.output } else { r.output.checked_sub(output_parts)? },
            reasoning: r.reasoning,
            audio_output: r.audio_out,
        })
    };
    let readings: Vec<TokenUsage> = [
        (r.exclusive, r.exclusive),
        (!r.exclusive, r.exclusive),
        (r.exclusive, !r.exclusive),
        (!r.exclusive, !r.exclusive),
    ]
    .into_iter()
    .filter_map(|(i, o)| build(i, o))
    .collect();
    let fallback = TokenUsage { input: r.input, output: r.output, ..TokenUsage::default() };
    let first = readings.first().copied().unwrap_or(fallback);
    let certain = |tokens| Usage { tokens, alternative: None };
    match r.total {
        None => certain(first),
        Some(total) => match readings.iter().find(|u| u.total() == total) {
            Some(fits) => certain(*fits),
            // The total fits no reading: keep the convention's, and the other as the alternative.
            None => Usage {
                tokens: first,
                alternative: readings.iter().find(|u| u.total() != first.total()).copied(),
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use obs_model::AttributeValue;
    use proptest::prelude::*;

    fn of(pairs: &[(&str, i64)]) -> Usage {
        let a: Attributes = pairs.iter().map(|(k, v)| (*k, AttributeValue::Int(*v))).collect();
        usage(&a, Dialect::OtelGenAi).unwrap()
    }

    #[test]
    fn three_conventions_give_the_same_vector() {
        let want = TokenUsage {
            input: 16,
            cache_read: 8,
            output: 6,
            reasoning: 3,
            ..TokenUsage::default()
        };
        let otel = of(&[
            ("gen_ai.usage.input_tokens", 24),
            ("gen_ai.usage.output_tokens", 9),
            ("gen_ai.usage.cache_read.input_tokens", 8),
            ("gen_ai.usage.reasoning.output_tokens", 3),
        ]);
        let inference = of(&[
            ("llm.token_count.prompt", 24),
            ("llm.token_count.completion", 9),
            ("llm.token_count.total", 33),
            ("llm.token_count.prompt_details.cache_read", 8),
            ("llm.token_count.completion_details.reasoning", 3),
        ]);
        let exclusive = of(&[
            ("gen_ai.usage.input_tokens", 16),
            ("gen_ai.usage.output_tokens", 9),
            ("gen_ai.usage.total_tokens", 33),
            ("gen_ai.usage.cache_read_input_tokens", 8),
            ("gen_ai.usage.reasoning_tokens", 3),
        ]);
        for got in [otel, inference, exclusive] {
            assert_eq!(got, Usage { tokens: want, alternative: None });
        }
    }

    #[test]
    fn a_part_larger_than_its_whole_is_exclusive() {
        let u = of(&[
            ("gen_ai.usage.input_tokens", 24),
            ("gen_ai.usage.output_tokens", 9),
            ("gen_ai.usage.cache_read.input_tokens", 100),
        ]);
        assert_eq!((u.tokens.input, u.tokens.cache_read), (24, 100));
    }

    #[test]
    fn a_total_that_fits_nothing_is_ambiguous() {
        let u = of(&[
            ("gen_ai.usage.input_tokens", 24),
            ("gen_ai.usage.output_tokens", 9),
            ("gen_ai.usage.total_tokens", 99),
            ("gen_ai.usage.cache_read.input_tokens", 8),
        ]);
        assert!(u.alternative.is_some());
    }

    proptest! {
        #[test]
        fn parts_sum_to_the_total_that_was_sent(plain in 0_u64..10_000, read in 0_u64..10_000, write in 0_u64..10_000, out in 0_u64..10_000, think in 0_u64..10_000, inclusive: bool) {
            let input = if inclusive { plain + read + write } else { plain };
            let total = plain + read + write + out + think;
            let a: Attributes = [("gen_ai.usage.input_tokens", input), ("gen_ai.usage.output_tokens", out + think), ("gen_ai.usage.total_tokens", total), ("gen_ai.usage.cache_read.input_tokens", read), ("gen_ai.usage.cache_creation.input_tokens", write), ("gen_ai.usage.reasoning.output_tokens", think)]
                .into_iter().map(|(k, v)| (k, AttributeValue::Int(v as i64))).collect();
            let u = usage(&a, Dialect::OtelGenAi).unwrap();
            prop_assert_eq!(u.tokens.total(), total);
            prop_assert_eq!(u.alternative, None);
        }
    }
}
