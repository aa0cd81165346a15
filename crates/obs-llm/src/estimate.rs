//! Token counts of texts that came without any.

use bpe_openai::Tokenizer;

/// Text that is counted exactly; what is longer is counted in proportion.
const TEXT_MAX: usize = 1 << 20;

/// The tokenizer of a model, where it is public.
fn tokenizer(model: &str) -> Option<(&'static Tokenizer, &'static str)> {
    let name = model.rsplit('/').next().unwrap_or(model);
    let o200k =
        ["gpt-4o", "gpt-4.1", "gpt-4.5", "gpt-5", "o1", "o3", "o4", "chatgpt-4o", "gpt-oss"];
    let cl100k = ["gpt-4", "gpt-3.5", "text-embedding-"];
    let is = |list: &[&str]| list.iter().any(|p| name.starts_with(p));
    if is(&o200k) {
        Some((bpe_openai::o200k_base(), "o200k_base"))
    } else if is(&cl100k) {
        Some((bpe_openai::cl100k_base(), "cl100k_base"))
    } else {
        None
    }
}

/// Returns how tokens of a model's texts are counted.
pub(crate) fn method(model: &str) -> &'static str {
    tokenizer(model).map_or("characters/4", |(_, name)| name)
}

/// Returns the number of tokens of a text, rounded up.
pub(crate) fn tokens(model: &str, text: &str) -> u64 {
    let by_length = |t: &str| t.chars().count().div_ceil(4) as u64;
    let Some((tokenizer, _)) = tokenizer(model) else { return by_length(text) };
    if text.len() <= TEXT_MAX {
        return tokenizer.count(text) as u64;
    }
    let end = (0..=TEXT_MAX).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    let head = text.get(..end).unwrap_or_default();
    let counted = tokenizer.count(head) as u128;
    let scaled = counted * text.len() as u128 / head.len().max(1) as u128;
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_families_are_counted_and_others_guessed() {
        // Counts of the public tokenizers.
        assert_eq!(tokens("gpt-4o-mini", "hello world"), 2);
        assert_eq!(tokens("gpt-4", "tiktoken is great!"), 6);
        assert_eq!(tokens("claude-sonnet-4-5", "hello world"), 3);
        assert_eq!((tokens("gpt-4o", ""), tokens("x", "")), (0, 0));
        let long = "word ".repeat(500_000);
        let n = tokens("gpt-4o", &long);
        assert!((499_000..501_500).contains(&n), "{n}");
    }
}
