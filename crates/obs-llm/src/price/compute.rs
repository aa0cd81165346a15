//! The cost of a call by a price record.

use crate::price::record::{PriceRecord, Rates, Tier};
use obs_model::{CallCost, Money, TokenUsage};

/// Decimal places of a stored amount.
pub(crate) const PLACES: u32 = 12;

/// Prices of one call, in the record's currency; `None` where a part that was used has none.
pub(crate) fn compute(r: &PriceRecord, service_tier: &str, t: &TokenUsage) -> Option<CallCost> {
    let (base, tiers) = rates_of(r, service_tier)?;
    let above = |t: &&Tier, n: u64| n > t.above_input_tokens;
    let (size, out) = (t.input_total(), t.output_total());
    let whole = tiers.iter().filter(|x| !x.marginal && above(x, size));
    let whole = whole.max_by_key(|x| x.above_input_tokens);
    let base = whole.map_or(base, |x| x.rates.over(&base));
    let mut steps: Vec<&Tier> =
        tiers.iter().filter(|x| x.marginal && (above(x, size) || above(x, out))).collect();
    if steps.is_empty() {
        return priced(r, &base, t);
    }
    // Each stretch of the sizes at its own rates.
    steps.sort_by_key(|x| x.above_input_tokens);
    let mut total: Option<CallCost> = None;
    let mut rates = base;
    let mut start = 0;
    for next in steps.iter().map(Some).chain([None]) {
        let end = next.map_or(u64::MAX, |x| x.above_input_tokens);
        let cost = priced_part(r, &rates, t, (start, end), (size, out))?;
        total = Some(match total {
            None => cost,
            Some(sum) => add(sum, &cost)?,
        });
        if let Some(x) = next {
            rates = x.rates.over(&base);
            start = end;
        }
    }
    total
}

/// The rates and tiers of a way to be served. A way that the record does not price is unknown,
/// not the standard one.
fn rates_of(r: &PriceRecord, service_tier: &str) -> Option<(Rates, Vec<Tier>)> {
    if service_tier.is_empty() {
        return Some((r.rates, r.tiers.clone()));
    }
    let mode = r.modes.get(service_tier)?;
    match mode.factor {
        None => Some((mode.rates.over(&r.rates), mode.tiers.clone())),
        Some(factor) => {
            let scaled = |t: &Tier| Some(Tier { rates: t.rates.times(factor)?, ..t.clone() });
            let own = &mode.rates;
            let base = r.rates.times(factor)?;
            let rates = Rates {
                cache_read: own.cache_read.or(base.cache_read),
                cache_write: own.cache_write.or(base.cache_write),
                cache_write_1h: own.cache_write_1h.or(base.cache_write_1h),
                reasoning: own.reasoning.or(base.reasoning),
                image_input: own.image_input.or(base.image_input),
                ..own.over(&base)
            };
            let tiers = if mode.tiers.is_empty() {
                r.tiers.iter().map(scaled).collect::<Option<Vec<_>>>()?
            } else {
                mode.tiers.clone()
            };
            Some((rates, tiers))
        }
    }
}

fn add(a: CallCost, b: &CallCost) -> Option<CallCost> {
    Some(CallCost {
        input: a.input.checked_add(b.input)?,
        cache_read: a.cache_read.checked_add(b.cache_read)?,
        cache_write: a.cache_write.checked_add(b.cache_write)?,
        output: a.output.checked_add(b.output)?,
        request: a.request.checked_add(b.request)?,
        price_id: a.price_id,
    })
}

/// Tokens × price per million; `None` on overflow, or if tokens were used that have no price.
fn part(tokens: Money, per_million: Option<Money>) -> Option<Money> {
    if tokens.is_zero() {
        return Some(Money::ZERO);
    }
    tokens.checked_mul(per_million?)?.checked_div(Money::from(1_000_000))
}

fn parts(t: &TokenUsage) -> [u64; 10] {
    [
        t.input,
        t.audio_input,
        t.image_input,
        t.cache_read,
        t.cache_write,
        t.cache_write_1h,
        t.output,
        t.reasoning,
        t.audio_output,
        t.image_output,
    ]
}

fn of_tokens(r: &Rates, n: [Money; 10]) -> Option<CallCost> {
    let [input, audio_in, image_in, read, write, write_1h, output, reasoning, audio_out, image_out] =
        n;
    let cache_write = r.cache_write.or(r.input);
    let sum = |list: &[Money]| {
        let exact = list.iter().try_fold(Money::ZERO, |a, b| a.checked_add(*b))?;
        Some(exact.round_dp(PLACES))
    };
    Some(CallCost {
        input: sum(&[
            part(input, r.input)?,
            part(audio_in, r.audio_input)?,
            part(image_in, r.image_input.or(r.input))?,
        ])?,
        cache_read: sum(&[part(read, r.cache_read.or(r.input))?])?,
        cache_write: sum(&[
            part(write, cache_write)?,
            part(write_1h, r.cache_write_1h.or(cache_write))?,
        ])?,
        output: sum(&[
            part(output, r.output)?,
            part(reasoning, r.reasoning.or(r.output))?,
            part(audio_out, r.audio_output)?,
            part(image_out, r.image_output)?,
        ])?,
        request: Money::ZERO,
        price_id: String::new(),
    })
}

/// What is billed beside tokens by kind.
fn of_request(r: &PriceRecord, rates: &Rates, t: &TokenUsage) -> Option<Money> {
    let beyond = t.total().saturating_sub(r.included_tokens);
    let overage = match r.overage {
        None => Money::ZERO,
        Some(price) => part(Money::from(beyond), Some(price))?,
    };
    let searches = match t.search_units {
        0 => Money::ZERO,
        n => Money::from(n).checked_mul(rates.search?)?,
    };
    let sum = rates.request.unwrap_or(Money::ZERO).checked_add(overage)?.checked_add(searches)?;
    Some(sum.round_dp(PLACES))
}

fn priced(r: &PriceRecord, rates: &Rates, t: &TokenUsage) -> Option<CallCost> {
    // A price by the request alone leaves tokens without one, and means it.
    let by_request = rates.input.is_none() && rates.output.is_none() && rates.request.is_some();
    let tokens = if by_request { [0; 10] } else { parts(t) };
    let cost = of_tokens(rates, tokens.map(Money::from))?;
    Some(CallCost { request: of_request(r, rates, t)?, ..cost })
}

/// Prices the stretch of a call between two sizes: each part by its share of it.
fn priced_part(
    r: &PriceRecord,
    rates: &Rates,
    t: &TokenUsage,
    (start, end): (u64, u64),
    (size, out): (u64, u64),
) -> Option<CallCost> {
    let share = |total: u64| {
        let inside = total.min(end).saturating_sub(start);
        if total == 0 { Some(Money::ZERO) } else { Money::from(inside).checked_div(total.into()) }
    };
    let (input, output) = (share(size)?, share(out)?);
    let mut n = [Money::ZERO; 10];
    for (i, (slot, tokens)) in n.iter_mut().zip(parts(t)).enumerate() {
        *slot = Money::from(tokens).checked_mul(if i < 6 { input } else { output })?;
    }
    let cost = of_tokens(rates, n)?;
    let request = if start == 0 { of_request(r, rates, t)? } else { Money::ZERO };
    Some(CallCost { request, ..cost })
}
