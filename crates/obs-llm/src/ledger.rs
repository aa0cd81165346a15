//! The ledger: every amount as an entry that is never changed, only reversed.
//!
//! The rows of the store are the ledger's source: a call's first row charges its parts, each
//! revision reverses what the one before charged and charges anew. Summing entries up to any
//! moment gives what was known then.

use crate::call::price;
use crate::price::PriceBook;
use crate::tokens;
use obs_model::{CostState, LlmCall, Money, TimestampNs};

/// One amount.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry<'a> {
    /// When it was written.
    pub booked_at: TimestampNs,
    pub call: &'a LlmCall,
    /// `charge` or `reversal`.
    pub kind: &'static str,
    /// `input`, `cache_read`, `cache_write`, `output` or `request`.
    pub part: &'static str,
    /// USD; negative when it reverses.
    pub amount: Money,
    /// The price record that the amount came from.
    pub price_id: &'a str,
    pub revision: u32,
    pub reason: &'a str,
}

/// Returns the parts of a call's cost that are not zero.
pub fn parts(c: &LlmCall) -> Vec<(&'static str, Money)> {
    let Some(cost) = &c.cost else { return Vec::new() };
    cost.parts().into_iter().filter(|(_, m)| !m.is_zero()).collect()
}

/// Returns the entries of one call from all its rows, in order of revision.
pub fn entries<'a>(rows: &[&'a LlmCall]) -> Vec<Entry<'a>> {
    let mut rows = rows.to_vec();
    rows.sort_by_key(|c| c.revision);
    rows.dedup_by_key(|c| c.revision);
    let mut out = Vec::new();
    let mut before: Option<&LlmCall> = None;
    for now in rows {
        let reverse = before.into_iter().flat_map(|b| parts(b).into_iter().map(move |p| (b, p)));
        let charge = parts(now).into_iter().map(|p| (now, p));
        let reversal = reverse.map(|(c, (part, m))| (c, "reversal", part, -m));
        for (c, kind, part, amount) in
            reversal.chain(charge.map(|(c, (part, m))| (c, "charge", part, m)))
        {
            out.push(Entry {
                booked_at: if now.revision == 0 && now.booked_at.nanos() == 0 {
                    now.end
                } else {
                    now.booked_at
                },
                call: c,
                kind,
                part,
                amount,
                price_id: c.cost.as_ref().map_or("", |x| x.price_id.as_str()),
                revision: now.revision,
                reason: &now.reason,
            });
        }
        before = Some(now);
    }
    out
}

/// Returns what a call costs by another book, as a revision; `None` if nothing changes. Calls that
/// others count for are left as they are.
pub fn reprice(c: &LlmCall, book: &PriceBook, now: TimestampNs, reason: &str) -> Option<LlmCall> {
    // A call without counts has nothing to price, whatever the book.
    let uncounted = c.cost.is_none() && c.tokens.total() == 0 && c.tokens.search_units == 0;
    if c.is_repeated() || uncounted {
        return None;
    }
    let mut next = c.clone();
    let other = (c.cost_state == CostState::Ambiguous || c.evidence.contains("ambiguous:"))
        .then(|| tokens::exclusive_reading(&c.tokens));
    price(&mut next, other, book);
    let same_cost = next.cost_usd() == c.cost_usd() && next.cost_max == c.cost_max;
    if same_cost && next.cost_state == c.cost_state {
        return None;
    }
    next.revision = c.revision.checked_add(1)?;
    next.booked_at = now;
    reason.clone_into(&mut next.reason);
    Some(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage_call;
    use obs_model::TokenUsage;
    use proptest::prelude::*;

    fn book(input: &str) -> PriceBook {
        let mut b = PriceBook::default();
        let text = format!(
            r#"{{"version":"v{input}","prices":[{{"provider":"p","model":"m","input":"{input}","output":"10","cache_read":"0.1"}}]}}"#
        );
        b.add_json(&text).unwrap();
        b
    }

    fn call(tokens: TokenUsage, b: &PriceBook) -> LlmCall {
        let mut c = usage_call("p", "m", TimestampNs::from_nanos(1));
        c.tokens = tokens;
        price(&mut c, None, b);
        c
    }

    proptest! {
        #[test]
        fn entries_sum_to_the_latest_revision_and_repricing_twice_changes_nothing(
            input in 0_u64..1 << 40, cache_read in 0_u64..1 << 40, output in 0_u64..1 << 40,
            prices in proptest::collection::vec(0_u32..500, 1..5)
        ) {
            let t = TokenUsage { input, cache_read, output, ..TokenUsage::default() };
            let first = book("3");
            let mut rows = vec![call(t, &first)];
            for p in prices {
                let b = book(&p.to_string());
                let last = rows.last().unwrap().clone();
                if let Some(next) = reprice(&last, &b, TimestampNs::from_nanos(9), "r") {
                    prop_assert_eq!(reprice(&next, &b, TimestampNs::from_nanos(10), "r"), None);
                    rows.push(next);
                } else {
                    prop_assert_eq!(call(t, &b).cost_usd(), last.cost_usd());
                }
            }
            let refs: Vec<_> = rows.iter().collect();
            let sum: Money = entries(&refs).iter().map(|e| e.amount).sum();
            prop_assert_eq!(sum, rows.last().unwrap().cost_usd());
            // As it was known before the last revision.
            let (_, before) = refs.split_last().unwrap();
            let sum: Money = entries(before).iter().map(|e| e.amount).sum();
            prop_assert_eq!(sum, before.last().map_or(Money::ZERO, |c| c.cost_usd()));
        }
    }

    #[test]
    fn an_unknown_model_is_priced_later_and_a_lost_price_takes_back() {
        let t = TokenUsage { input: 1_000_000, ..TokenUsage::default() };
        let unpriced = call(t, &PriceBook::default());
        assert_eq!((unpriced.cost_state, unpriced.cost.is_none()), (CostState::Unpriced, true));
        let priced = reprice(&unpriced, &book("3"), TimestampNs::from_nanos(5), "new").unwrap();
        assert_eq!((priced.cost_state, priced.cost_usd()), (CostState::Priced, Money::from(3)));
        let gone =
            reprice(&priced, &PriceBook::default(), TimestampNs::from_nanos(6), "x").unwrap();
        let e = entries(&[&gone, &unpriced, &priced]);
        let kinds: Vec<_> = e.iter().map(|e| (e.kind, e.revision, e.amount)).collect();
        assert_eq!(kinds, [("charge", 1, Money::from(3)), ("reversal", 2, Money::from(-3))]);
        assert_eq!(e[1].price_id, "v3/p/m");
    }
}
