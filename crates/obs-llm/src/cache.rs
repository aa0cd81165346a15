//! What prompt caches saved, what writing to them cost, and what a longer lifetime would change.

use crate::price::PriceBook;
use obs_model::{LlmCall, Money, TokenUsage};
use std::collections::BTreeMap;

const MINUTE_NS: i64 = 60_000_000_000;
/// Lifetimes of caches that providers sell.
const SHORT_NS: i64 = 5 * MINUTE_NS;
const LONG_NS: i64 = 60 * MINUTE_NS;

/// Calls that may share a prefix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    pub provider: String,
    pub model: String,
    /// The prompt's name; without one the service stands for it.
    pub prompt: String,
}

/// One call, as far as caches see it.
#[derive(Debug, Clone)]
struct Use {
    start: i64,
    written: u64,
    /// USD: what its short-lived writes cost, what they would cost long-lived, and as reads.
    as_written: Money,
    as_long: Money,
    as_read: Money,
}

/// What caching did for the calls of a prefix, USD by the book in force.
#[derive(Debug, Clone, Default)]
pub struct Economics {
    pub calls: u64,
    pub input_tokens: u64,
    pub read_tokens: u64,
    pub written_tokens: u64,
    /// What reads would have cost as plain input, less what they cost.
    pub saved_usd: Money,
    /// What writes cost beyond plain input.
    pub write_premium_usd: Money,
    uses: Vec<Use>,
}

/// Uses remembered of a prefix for the lifetime's sake.
const USES_MAX: usize = 200_000;

impl Economics {
    /// Share of the input that was read from a cache.
    pub fn hit_ratio(&self) -> f64 {
        if self.input_tokens == 0 {
            0.0
        } else {
            self.read_tokens as f64 / self.input_tokens as f64
        }
    }

    /// Returns the tokens that were written and not read within their lifetime: no call of the
    /// prefix followed soon enough.
    pub fn wasted_tokens(&mut self) -> u64 {
        self.uses.sort_by_key(|u| u.start);
        let next = self.uses.iter().skip(1).map(|u| Some(u.start)).chain([None]);
        let lost = self
            .uses
            .iter()
            .zip(next)
            .filter(|(u, next)| next.is_none_or(|n| n - u.start > SHORT_NS));
        lost.map(|(u, _)| u.written).sum()
    }

    /// Returns what an hour's lifetime would have saved against five minutes; negative where its
    /// dearer writes outweigh the reads they allow. `None` where the book has no such price.
    pub fn hour_would_save(&mut self) -> Option<Money> {
        self.uses.sort_by_key(|u| u.start);
        let mut saved = Money::ZERO;
        let mut last: Option<i64> = None;
        for u in &self.uses {
            if u.written == 0 {
                // A read keeps what is there alive.
                last = Some(u.start);
                continue;
            }
            if u.as_long.is_zero() {
                return None;
            }
            let gap = last.map(|t| u.start - t);
            saved = match gap {
                // Expired after five minutes, but not after an hour: it would have been read.
                Some(g) if g > SHORT_NS && g <= LONG_NS => saved + u.as_written - u.as_read,
                _ => saved + u.as_written - u.as_long,
            };
            last = Some(u.start);
        }
        Some(saved)
    }
}

/// Sums calls by prefix.
#[derive(Debug, Clone, Default)]
pub struct Caches {
    pub prefixes: BTreeMap<Prefix, Economics>,
}

/// Prefixes told apart; further ones are left out and counted.
const PREFIXES_MAX: usize = 10_000;

impl Caches {
    /// Adds a call. Returns false when there are too many prefixes.
    pub fn add(&mut self, c: &LlmCall, book: &PriceBook) -> bool {
        if c.is_repeated() || c.cost.is_none() {
            return true;
        }
        let prompt = if c.prompt_name.is_empty() { &c.service } else { &c.prompt_name };
        let key = Prefix {
            provider: c.provider.clone(),
            model: c.model().to_owned(),
            prompt: prompt.clone(),
        };
        if self.prefixes.len() >= PREFIXES_MAX && !self.prefixes.contains_key(&key) {
            return false;
        }
        let e = self.prefixes.entry(key).or_default();
        let t = &c.tokens;
        let written = t.cache_write.saturating_add(t.cache_write_1h);
        e.calls += 1;
        e.input_tokens = e.input_tokens.saturating_add(t.input_total());
        e.read_tokens = e.read_tokens.saturating_add(t.cache_read);
        e.written_tokens = e.written_tokens.saturating_add(written);
        let usd = |t: TokenUsage| book.price(c, &t).map(|x| x.total());
        let plain = |tokens: u64| TokenUsage { input: t.input.saturating_add(tokens), ..*t };
        if let Some(now) = usd(*t) {
            if t.cache_read > 0
                && let Some(without) = usd(TokenUsage { cache_read: 0, ..plain(t.cache_read) })
            {
                e.saved_usd = e.saved_usd.saturating_add(without - now);
            }
            if written > 0
                && let Some(without) =
                    usd(TokenUsage { cache_write: 0, cache_write_1h: 0, ..plain(written) })
            {
                e.write_premium_usd = e.write_premium_usd.saturating_add(now - without);
            }
        }
        if e.uses.len() < USES_MAX {
            let of = |t: TokenUsage| usd(t).unwrap_or_default();
            let n = t.cache_write;
            let none = TokenUsage::default();
            let long = book.explain(c).and_then(|m| m.record.rates.cache_write_1h).is_some();
            e.uses.push(Use {
                start: c.start.nanos(),
                written: n,
                as_written: of(TokenUsage { cache_write: n, ..none }),
                as_long: if long {
                    of(TokenUsage { cache_write_1h: n, ..none })
                } else {
                    Money::ZERO
                },
                as_read: of(TokenUsage { cache_read: n, ..none }),
            });
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{price_call, usage_call};
    use obs_model::TimestampNs;

    #[test]
    fn reads_save_writes_cost_and_an_hour_may_pay() {
        let mut book = PriceBook::default();
        book.add_json(r#"{"version":"t","prices":[{"provider":"p","model":"m","input":"3","output":"15","cache_read":"0.3","cache_write":"3.75","cache_write_1h":"6"}]}"#).unwrap();
        let mut all = Caches::default();
        // Written, read soon; after twenty minutes written again; after two hours again.
        for (minute, write, read) in
            [(0, 1_000_000, 0), (2, 0, 1_000_000), (22, 1_000_000, 0), (142, 1_000_000, 0)]
        {
            let mut c = usage_call("p", "m", TimestampNs::from_nanos(minute * MINUTE_NS));
            c.tokens.cache_write = write;
            c.tokens.cache_read = read;
            price_call(&mut c, &book);
            assert!(all.add(&c, &book));
        }
        let e = all.prefixes.values_mut().next().unwrap();
        assert_eq!((e.saved_usd, e.write_premium_usd), (Money::new(27, 1), Money::new(225, 2)));
        assert_eq!(e.hit_ratio(), 0.25);
        assert_eq!(e.wasted_tokens(), 2_000_000);
        // Twice 2.25 more for a write, once 3.45 less for a read instead of one.
        assert_eq!(e.hour_would_save(), Some(Money::new(-105, 2)));
    }
}
