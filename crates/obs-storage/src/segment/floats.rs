//! Runs of floats as residuals of a prediction, in steps for the entropy coder.
//!
//! Most metrics are integers or decimals: a run is scaled to integers when that is exact (up to a
//! few units in the last place, which are kept), predicted from its past, and what the prediction
//! missed is coded under a context that follows the size of recent misses.

use crate::bin::{Decoder, Encoder, Malformed, unzigzag, zigzag};
use crate::segment::ans::{Sequence, Step};

/// Contexts of residuals: twice the mean bits of recent ones.
pub(crate) const CONTEXTS: usize = 48;
/// Decimal places tried.
const PLACES_MAX: u32 = 9;
/// Largest distance in units of the last place that still counts as a decimal.
const ULPS_MAX: i64 = 4096;
/// Residuals below this are a symbol each.
const SMALL: u64 = 16;

const POWERS: [f64; 10] = [1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];

/// Follows the size of residuals, in sixteenths of a bit.
#[derive(Debug, Clone, Copy)]
struct Mean(u32);

impl Mean {
    const fn context(self) -> u8 {
        let c = self.0 / 8;
        if c >= CONTEXTS as u32 { CONTEXTS as u8 - 1 } else { c as u8 }
    }

    const fn observe(&mut self, z: u64) {
        let bits = 64 - z.leading_zeros();
        self.0 = (self.0 * 3 + bits * 16 + 2) / 4;
    }
}

fn step(mean: &mut Mean, residual: i64) -> Step {
    let z = zigzag(residual);
    let context = mean.context();
    mean.observe(z);
    if z < SMALL {
        return Step { context, symbol: z as u8, raw_bits: 0, raw: 0 };
    }
    // The two bits below the highest are part of the symbol, the rest is raw.
    let bits = 64 - z.leading_zeros();
    let raw_bits = bits - 3;
    let symbol = SMALL as u32 + (bits - 5) * 4 + ((z >> raw_bits) & 3) as u32;
    Step { context, symbol: symbol as u8, raw_bits: raw_bits as u8, raw: z & ((1 << raw_bits) - 1) }
}

#[inline]
fn unstep(mean: &mut Mean, s: &mut Sequence<'_>) -> Result<i64, Malformed> {
    let symbol = u32::from(s.symbol(mean.context())?);
    let z = match symbol.checked_sub(SMALL as u32) {
        None => u64::from(symbol),
        Some(n) => {
            let bits = 5 + n / 4;
            let raw_bits = bits - 3;
            ((4 | u64::from(n & 3)) << raw_bits) | s.raw(raw_bits)
        }
    };
    mean.observe(z);
    Ok(unzigzag(z))
}

/// How integers are predicted from those before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Predictor {
    /// Around a constant: gauges that jump about.
    Level,
    /// The last value plus a constant: counters.
    Step,
    /// The last step again: what grows evenly.
    Slope,
}

const PREDICTORS: [Predictor; 3] = [Predictor::Level, Predictor::Step, Predictor::Slope];

/// Predicts integers; encoder and decoder run the same one.
#[derive(Debug, Clone, Copy)]
struct State {
    constant: i64,
    last: i64,
    delta: i64,
    /// All bits of what the prediction adds up, none of what it leaves out: several runs are
    /// decoded side by side, and branches of each would mislead those of the others.
    uses_last: i64,
    uses_delta: i64,
}

impl State {
    const fn new(predictor: Predictor, constant: i64, first: i64) -> Self {
        let (uses_last, uses_delta, constant) = match predictor {
            Predictor::Level => (0, 0, constant),
            Predictor::Step => (-1, 0, constant),
            Predictor::Slope => (-1, -1, 0),
        };
        Self { constant, last: first, delta: 0, uses_last, uses_delta }
    }

    const fn predict(&self) -> i64 {
        let moved = self.constant.wrapping_add(self.delta & self.uses_delta);
        moved.wrapping_add(self.last & self.uses_last)
    }

    const fn observe(&mut self, v: i64) {
        self.delta = v.wrapping_sub(self.last);
        self.last = v;
    }
}

/// Steps of integers, with the parameters that the decoder needs in `e`.
fn put_ints(values: &[i64], e: &mut Encoder, steps: &mut Vec<Step>) {
    let first = values.first().copied().unwrap_or_default();
    let n = values.len().max(2) as i128;
    let sum = |it: &mut dyn Iterator<Item = i64>| it.map(i128::from).sum::<i128>();
    let level = (sum(&mut values.iter().copied()) / n.min(values.len().max(1) as i128)) as i64;
    let last = values.last().copied().unwrap_or_default();
    let mean_step = ((i128::from(last) - i128::from(first)) / (n - 1)) as i64;
    let run = |predictor, constant| {
        let mut s = State::new(predictor, constant, first);
        let skip = usize::from(predictor != Predictor::Level);
        values.iter().skip(skip).map(move |v| {
            let r = v.wrapping_sub(s.predict());
            s.observe(*v);
            r
        })
    };
    let constants = [level, mean_step, 0];
    let cost = |p: Predictor, c: i64| -> u64 {
        run(p, c).map(|r| u64::from(64 - zigzag(r).leading_zeros())).sum()
    };
    let mut best = (u64::MAX, Predictor::Step, 0);
    for (p, c) in PREDICTORS.into_iter().zip(constants).chain([(Predictor::Step, 0)]) {
        let bits = cost(p, c);
        if bits < best.0 {
            best = (bits, p, c);
        }
    }
    let (bits, predictor, constant) = best;
    let mean = (bits * 16 / values.len().max(1) as u64).min(1024) as u32;
    e.u8(predictor as u8);
    e.int(constant);
    e.uint(mean.into());
    if predictor != Predictor::Level {
        e.int(first);
    }
    let mut mean = Mean(mean);
    steps.extend(run(predictor, constant).map(|r| step(&mut mean, r)));
}

/// Parameters of [`put_ints`].
#[derive(Debug, Clone)]
struct Ints {
    state: State,
    mean: Mean,
    first: Option<i64>,
}

impl Ints {
    fn read(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        let predictor = *PREDICTORS.get(usize::from(d.u8()?)).ok_or(d.bad())?;
        let constant = d.int()?;
        let mean = Mean(u32::try_from(d.uint()?).ok().filter(|m| *m <= 1024).ok_or(d.bad())?);
        let first = if predictor == Predictor::Level { None } else { Some(d.int()?) };
        let state = State::new(predictor, constant, first.unwrap_or(0));
        Ok(Self { state, mean, first })
    }

    #[inline]
    fn next(&mut self, s: &mut Sequence<'_>) -> Result<i64, Malformed> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        let v = self.state.predict().wrapping_add(unstep(&mut self.mean, s)?);
        self.state.observe(v);
        Ok(v)
    }
}

const CONSTANT: u8 = 255;
const BITS: u8 = 254;
/// Added to the places when corrections in units of the last place follow.
const CORRECTED: u8 = 32;

fn scaled(v: f64, power: f64) -> Option<(i64, i64)> {
    let d = (v * power).round();
    // -0 would come back as 0.
    if d.is_nan() || d.abs() >= 9e15 || (d == 0.0 && v.to_bits() != 0) {
        return None;
    }
    let back = d / power;
    let ulps = (v.to_bits() as i64).wrapping_sub(back.to_bits() as i64);
    (ulps.abs() <= ULPS_MAX).then_some((d as i64, ulps))
}

/// Finds the fewest places at which all values are decimals, exactly or nearly.
fn find_places(values: &[f64]) -> Option<(u32, bool)> {
    let exact = |v: &f64, p: u32| {
        POWERS.get(p as usize).and_then(|w| scaled(*v, *w)).is_some_and(|(_, u)| u == 0)
    };
    let mut places = 0;
    let all_exact = values.iter().all(|v| {
        while places <= PLACES_MAX && !exact(v, places) {
            places += 1;
        }
        places <= PLACES_MAX
    });
    if all_exact && values.iter().all(|v| exact(v, places)) {
        return Some((places, false));
    }
    // Sums of decimals carry rounding errors: a few units in the last place.
    let near = |p: u32| {
        let w = POWERS.get(p as usize).copied().unwrap_or(1.0);
        values.iter().all(|v| scaled(*v, w).is_some_and(|(_, u)| u.abs() <= ULPS_MAX))
    };
    (2..=PLACES_MAX).find(|p| near(*p)).map(|p| (p, true))
}

/// Steps of floats, with the parameters that the decoder needs in `e`. Every bit pattern comes
/// back.
pub(crate) fn put_floats(values: &[f64], e: &mut Encoder, steps: &mut Vec<Step>) {
    let first = values.first().copied().unwrap_or_default();
    if values.iter().all(|v| v.to_bits() == first.to_bits()) {
        e.u8(CONSTANT);
        e.f64(first);
        return;
    }
    // Markers and infinities stand apart so that they do not spoil the rest.
    let odd = |v: &f64| !v.is_finite() || (*v == 0.0 && v.to_bits() != 0);
    let exceptions: Vec<(usize, f64)> =
        values.iter().copied().enumerate().filter(|(_, v)| odd(v)).collect();
    let mut cleaned = Vec::new();
    let values = if exceptions.is_empty() {
        values
    } else {
        let mut last = values.iter().copied().find(|v| !odd(v)).unwrap_or_default();
        for v in values {
            if !odd(v) {
                last = *v;
            }
            cleaned.push(last);
        }
        cleaned.as_slice()
    };
    let mut ints = Vec::with_capacity(values.len());
    match find_places(values) {
        Some((places, corrected)) => {
            let power = POWERS.get(places as usize).copied().unwrap_or(1.0);
            let mut ulps = Vec::new();
            for v in values {
                let (d, u) = scaled(*v, power).unwrap_or_default();
                ints.push(d);
                if corrected {
                    ulps.push(u);
                }
            }
            e.u8(places as u8 + if corrected { CORRECTED } else { 0 });
            put_exceptions(&exceptions, e);
            put_ints(&ints, e, steps);
            if corrected {
                put_ints(&ulps, e, steps);
            }
        }
        None => {
            e.u8(BITS);
            put_exceptions(&exceptions, e);
            ints.extend(values.iter().map(|v| v.to_bits() as i64));
            put_ints(&ints, e, steps);
        }
    }
}

fn put_exceptions(list: &[(usize, f64)], e: &mut Encoder) {
    e.len(list.len());
    let mut last = 0;
    for (i, v) in list {
        e.len(*i - last);
        last = *i;
        e.f64(*v);
    }
}

/// Parameters of [`put_floats`]; decodes values in order.
#[derive(Debug, Clone)]
pub(crate) enum Floats {
    Constant(f64),
    Coded { power: Option<f64>, exceptions: Vec<(usize, f64)>, ints: Ints2 },
}

/// The integers of a run and, when decimals are not exact, the corrections behind them.
#[derive(Debug, Clone)]
pub(crate) struct Ints2 {
    main: Ints,
    ulps: Option<Ints>,
}

impl Floats {
    pub(crate) fn read(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        let kind = d.u8()?;
        if kind == CONSTANT {
            return Ok(Self::Constant(d.f64()?));
        }
        let mut at = 0;
        let exceptions = (0..d.len()?)
            .map(|_| {
                at += d.len_free()?;
                Ok((at, d.f64()?))
            })
            .collect::<Result<_, Malformed>>()?;
        let power = match kind {
            BITS => None,
            _ => Some(*POWERS.get(usize::from(kind % CORRECTED)).ok_or(d.bad())?),
        };
        let main = Ints::read(d)?;
        let corrected = power.is_some() && kind >= CORRECTED;
        let ulps = if corrected { Some(Ints::read(d)?) } else { None };
        Ok(Self::Coded { power, exceptions, ints: Ints2 { main, ulps } })
    }

    /// Returns whether a coded sequence follows the parameters.
    pub(crate) const fn is_coded(&self) -> bool {
        matches!(self, Self::Coded { .. })
    }

    /// Returns what [`decode_lanes`] needs of a coded run, `None` when it has corrections.
    pub(crate) fn lane<'a>(&self, sequence: Sequence<'a>) -> Option<Lane<'a>> {
        match self {
            Self::Coded { power, ints: Ints2 { main, ulps: None }, .. } => {
                Some(Lane { ints: main.clone(), power: *power, sequence })
            }
            _ => None,
        }
    }

    /// Puts the values that stand apart in their places.
    pub(crate) fn put_exceptions(&self, values: &mut [f64]) {
        if let Self::Coded { exceptions, .. } = self {
            for (i, v) in exceptions {
                if let Some(place) = values.get_mut(*i) {
                    *place = *v;
                }
            }
        }
    }

    /// Appends `count` values.
    pub(crate) fn decode(
        self,
        count: usize,
        sequence: Option<Sequence<'_>>,
        out: &mut Vec<f64>,
    ) -> Result<(), Malformed> {
        let (power, exceptions, mut ints) = match self {
            Self::Constant(v) => {
                out.extend(std::iter::repeat_n(v, count));
                return Ok(());
            }
            Self::Coded { power, exceptions, ints } => (power, exceptions, ints),
        };
        let mut s = sequence.ok_or(Malformed(0))?;
        let start = out.len();
        for _ in 0..count {
            let v = ints.main.next(&mut s)?;
            out.push(power.map_or_else(|| f64::from_bits(v as u64), |p| v as f64 / p));
        }
        if let Some(mut ulps) = ints.ulps {
            for v in out.iter_mut().skip(start) {
                let u = ulps.next(&mut s)?;
                *v = f64::from_bits((v.to_bits() as i64).wrapping_add(u) as u64);
            }
        }
        for (i, v) in exceptions {
            *out.get_mut(start + i).ok_or(Malformed(0))? = v;
        }
        Ok(())
    }
}

/// A run of floats that is decoded beside others.
#[derive(Debug)]
pub(crate) struct Lane<'a> {
    ints: Ints,
    power: Option<f64>,
    sequence: Sequence<'a>,
}

impl Lane<'_> {
    #[inline]
    fn next(&mut self) -> Result<f64, Malformed> {
        let v = self.ints.next(&mut self.sequence)?;
        Ok(self.power.map_or_else(|| f64::from_bits(v as u64), |p| v as f64 / p))
    }
}

/// Decodes the first values of several runs, as many of each as its place in `out` is long.
///
/// A symbol can be looked up when the one before is known: one run alone waits for memory most of
/// the time, and others fill that time.
pub(crate) fn decode_lanes<const N: usize>(
    mut lanes: [Lane<'_>; N],
    mut out: [&mut [f64]; N],
) -> Result<(), Malformed> {
    let together = out.iter().map(|o| o.len()).min().unwrap_or(0);
    for i in 0..together {
        for (lane, out) in lanes.iter_mut().zip(&mut out) {
            if let Some(place) = out.get_mut(i) {
                *place = lane.next()?;
            }
        }
    }
    for (lane, out) in lanes.iter_mut().zip(&mut out) {
        for place in out.iter_mut().skip(together) {
            *place = lane.next()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::ans::{Counts, Tables};
    use proptest::prelude::*;

    fn round_trip(values: &[f64]) -> usize {
        let (mut e, mut steps) = (Encoder::default(), Vec::new());
        put_floats(values, &mut e, &mut steps);
        let mut counts = Counts::new(CONTEXTS);
        counts.add(&steps);
        let mut head = Encoder::default();
        let tables = Tables::write(&counts, &mut head);
        let mut coded = Vec::new();
        tables.encode(&steps, &mut coded);
        let floats = Floats::read(&mut Decoder::new(&e.bytes)).unwrap();
        let mut out = Vec::new();
        let sequence = floats.is_coded().then(|| tables.decoder(&coded).unwrap());
        floats.decode(values.len(), sequence, &mut out).unwrap();
        let bits = |v: &[f64]| v.iter().map(|f| f.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(values), bits(&out));
        coded.len()
    }

    #[test]
    fn decimals_and_their_sums_take_few_bytes() {
        let counter: Vec<f64> = (0..480).map(|i| f64::from(i * 100 + (i * 7) % 13)).collect();
        assert!(round_trip(&counter) < 300);
        let mut sum = 0.0;
        let cost: Vec<f64> = (0..480)
            .map(|i| {
                sum += f64::from(i % 17) * 0.000_25;
                sum
            })
            .collect();
        assert!(round_trip(&cost) < 480 * 2, "{}", round_trip(&cost));
        round_trip(&[0.0, -0.0, f64::NAN, f64::INFINITY, 1.5, f64::MIN_POSITIVE, -1e300]);
        round_trip(&[f64::NAN, f64::NEG_INFINITY]);
        round_trip(&[1.0]);
    }

    proptest! {
        #[test]
        fn any_floats_come_back(bits in prop::collection::vec(any::<u64>(), 1..200)) {
            round_trip(&bits.into_iter().map(f64::from_bits).collect::<Vec<_>>());
        }

        #[test]
        fn any_decimals_come_back(v in prop::collection::vec(-1_000_000_i64..1_000_000, 1..200), p in 0_u32..12) {
            round_trip(&v.into_iter().map(|x| x as f64 / 10_f64.powi(p as i32)).collect::<Vec<_>>());
        }
    }
}
