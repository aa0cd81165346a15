//! Forecasts of a series of equal steps, with intervals, and points that stand out of it.
//!
//! The models and thresholds are those of Cost Ops; the intervals are of the error that each model
//! made one step ahead in the past, grown with the distance, not of the spread of the series.

use std::f64::consts::FRAC_1_SQRT_2;

/// Fewest points to forecast from, and to look for anomalies in.
pub const POINTS_MIN: usize = 7;
pub const ANOMALY_POINTS_MIN: usize = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    Linear,
    MovingAverage,
    Smoothing,
    /// The average of the same step of earlier periods, on a trend.
    Seasonal {
        period: usize,
    },
}

impl Model {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear_trend",
            Self::MovingAverage => "moving_average",
            Self::Smoothing => "exponential_smoothing",
            Self::Seasonal { .. } => "seasonal",
        }
    }
}

/// A value to come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Forecast {
    pub model: Model,
    pub points: Vec<Point>,
    /// Of the last fifth of the points, forecast from those before: mean absolute percentage error
    /// over points that are not zero.
    pub mape: Option<f64>,
    /// Share of the variance that the model explains one step ahead; may be negative.
    pub r2: Option<f64>,
}

/// Returns the z-score of a two-sided interval.
pub fn z_of(confidence: f64) -> f64 {
    // Bisection of the error function's complement: exact enough, and without a table.
    let p = confidence.clamp(0.5, 0.9999);
    let (mut low, mut high) = (0.0_f64, 6.0_f64);
    for _ in 0..60 {
        let mid = f64::midpoint(low, high);
        if erf(mid * FRAC_1_SQRT_2) < p { low = mid } else { high = mid }
    }
    low
}

/// The error function (Abramowitz and Stegun 7.1.26; error below 1.5e-7).
fn erf(x: f64) -> f64 {
    let t = 1.0 / 0.327_591_1_f64.mul_add(x, 1.0);
    let c = [0.254_829_592, -0.284_496_736, 1.421_413_741, -1.453_152_027, 1.061_405_429];
    let poly = c.iter().rev().fold(0.0, |acc, c| (acc + c) * t);
    1.0 - poly * (-x * x).exp()
}

fn mean(v: &[f64]) -> f64 {
    if v.is_empty() { 0.0 } else { v.iter().sum::<f64>() / v.len() as f64 }
}

/// Least squares over steps 0, 1, 2, …: intercept and slope.
pub fn line(v: &[f64]) -> (f64, f64) {
    let n = v.len() as f64;
    let mx = (n - 1.0) / 2.0;
    let my = mean(v);
    let sxx: f64 = (0..v.len()).map(|i| (i as f64 - mx).powi(2)).sum();
    let sxy: f64 = v.iter().enumerate().map(|(i, y)| (i as f64 - mx) * (y - my)).sum();
    let slope = if sxx > 0.0 { sxy / sxx } else { 0.0 };
    (slope.mul_add(-mx, my), slope)
}

/// Correlation of a series with itself `lag` steps before.
pub fn autocorrelation(v: &[f64], lag: usize) -> f64 {
    let m = mean(v);
    let var: f64 = v.iter().map(|x| (x - m).powi(2)).sum();
    if lag == 0 || lag >= v.len() || var <= 0.0 {
        return 0.0;
    }
    let pairs = v.iter().zip(v.iter().skip(lag));
    pairs.map(|(a, b)| (a - m) * (b - m)).sum::<f64>() / var
}

/// Chooses a model: a season that is there beats a trend, a trend the averages.
pub fn choose(v: &[f64], season: Option<usize>) -> Model {
    if let Some(period) = season.filter(|p| *p > 1 && v.len() >= p * 2) {
        let (a, b) = line(v);
        let flat: Vec<f64> =
            v.iter().enumerate().map(|(i, y)| y - b.mul_add(i as f64, a)).collect();
        if autocorrelation(&flat, period) > 0.3 {
            return Model::Seasonal { period };
        }
    }
    let (first, second) = v.split_at(v.len() / 2);
    let (a, b) = (mean(first), mean(second));
    let moved = if a == 0.0 { b != 0.0 } else { !(0.95..=1.05).contains(&(b / a)) };
    // A difference within the noise is no trend.
    let noise = deviation(v) * (4.0 / v.len() as f64).sqrt();
    if moved && (b - a).abs() > noise {
        Model::Linear
    } else if v.len() >= 10 {
        Model::MovingAverage
    } else {
        Model::Smoothing
    }
}

fn deviation(v: &[f64]) -> f64 {
    if v.len() < 2 {
        return 0.0;
    }
    let m = mean(v);
    (v.iter().map(|x| (x - m).powi(2)).sum::<f64>() / (v.len() - 1) as f64).sqrt()
}

/// Forecasts `ahead` steps (0 is the next one) from a history.
fn value(model: Model, v: &[f64], ahead: usize) -> f64 {
    match model {
        Model::Linear => {
            let (a, b) = line(v);
            b.mul_add((v.len() + ahead) as f64, a)
        }
        Model::MovingAverage => {
            let window = (v.len() / 2).max(3).min(v.len());
            mean(v.get(v.len() - window..).unwrap_or(v))
        }
        Model::Smoothing => {
            const ALPHA: f64 = 0.3;
            let mut list = v.iter();
            let first = list.next().copied().unwrap_or(0.0);
            list.fold(first, |s, x| ALPHA.mul_add(*x, (1.0 - ALPHA) * s))
        }
        Model::Seasonal { period } => {
            // Differences of whole periods, in which the season is not seen.
            let pairs = v.iter().zip(v.iter().skip(period));
            let rises: Vec<f64> = pairs.map(|(a, b)| (b - a) / period as f64).collect();
            let slope = mean(&rises);
            let at = v.len() + ahead;
            let same = v.iter().enumerate().filter(|(i, _)| i % period == at % period);
            let rest: Vec<f64> = same.map(|(i, y)| slope.mul_add(-(i as f64), *y)).collect();
            slope.mul_add(at as f64, mean(&rest))
        }
    }
}

/// Forecasts `steps` values. `None` with fewer than [`POINTS_MIN`] points, or values that are not
/// finite. No bound is below zero when no value is.
pub fn forecast(v: &[f64], steps: usize, confidence: f64, model: Model) -> Option<Forecast> {
    if v.len() < POINTS_MIN || v.iter().any(|x| !x.is_finite()) {
        return None;
    }
    let floor = if v.iter().all(|x| *x >= 0.0) { 0.0 } else { f64::NEG_INFINITY };
    // The errors that the model would have made one step ahead.
    let start = match model {
        Model::Seasonal { period } => (period * 2).max(v.len() * 2 / 3).min(v.len() - 1).max(3),
        _ => 3.max(v.len() / 3),
    };
    let errors: Vec<(f64, f64)> =
        (start..v.len()).filter_map(|i| Some((*v.get(i)?, value(model, v.get(..i)?, 0)))).collect();
    let n = errors.len().max(1) as f64;
    let spread = (errors.iter().map(|(y, f)| (y - f).powi(2)).sum::<f64>() / n).sqrt();
    // With few errors to learn from the interval is wider: the t-distribution's, nearly.
    let z = z_of(confidence);
    let few = if n > 2.0 { 1.0 + (z * z + 1.0) / (4.0 * (n - 1.0)) } else { 3.0 };
    let total: f64 = {
        let list: Vec<f64> = errors.iter().map(|x| x.0).collect();
        let m = mean(&list);
        list.iter().map(|y| (y - m).powi(2)).sum()
    };
    let r2 = (total > 0.0).then(|| 1.0 - spread * spread * n / total);
    let points = (0..steps)
        .map(|h| {
            let value = value(model, v, h).max(floor);
            let length = v.len() as f64;
            let grown = match model {
                // The uncertainty of the fitted line, beyond its data.
                Model::Linear | Model::Seasonal { .. } => {
                    let far = length + h as f64 - (length - 1.0) / 2.0;
                    let sxx = length * (length * length - 1.0) / 12.0;
                    (1.0 + 1.0 / length + far * far / sxx).sqrt()
                }
                Model::MovingAverage => 1.0,
                Model::Smoothing => (0.09_f64.mul_add(h as f64, 1.0)).sqrt(),
            };
            let half = z * few * spread * grown;
            Point { value, low: (value - half).max(floor), high: value + half }
        })
        .collect();
    let hold = v.len() - v.len().div_ceil(5);
    let past = v.get(..hold)?;
    let misses: Vec<f64> = v
        .iter()
        .skip(hold)
        .enumerate()
        .filter(|(_, y)| **y != 0.0)
        .map(|(h, y)| ((y - value(model, past, h)) / y).abs())
        .collect();
    let mape = (!misses.is_empty() && past.len() >= 3).then(|| mean(&misses) * 100.0);
    Some(Forecast { model, points, mape, r2 })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    ZScore,
    Iqr,
    ModifiedZ,
    MovingAverage,
}

impl Method {
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "z_score" | "zscore" | "z" => Self::ZScore,
            "iqr" => Self::Iqr,
            "modified_z" | "modified_z_score" | "mad" => Self::ModifiedZ,
            "moving_average" => Self::MovingAverage,
            _ => return None,
        })
    }
}

/// A point that stands out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Anomaly {
    pub index: usize,
    pub value: f64,
    pub expected: f64,
    /// How far out, in units of the threshold: 1 is just beyond.
    pub ratio: f64,
}

impl Anomaly {
    pub fn severity(&self) -> &'static str {
        match self.ratio {
            r if r >= 2.0 => "critical",
            r if r >= 1.5 => "high",
            r if r >= 1.2 => "medium",
            _ => "low",
        }
    }
}

fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * sorted.len().saturating_sub(1) as f64;
    let low = sorted.get(at.floor() as usize).copied().unwrap_or(0.0);
    let high = sorted.get(at.ceil() as usize).copied().unwrap_or(low);
    (high - low).mul_add(at.fract(), low)
}

/// Finds points that stand out; none of fewer than [`ANOMALY_POINTS_MIN`]. The threshold is in the
/// method's unit: standard deviations, or quartile ranges for [`Method::Iqr`]. A point is judged
/// against the others, so that it cannot hide behind the spread that it makes itself.
pub fn anomalies(v: &[f64], method: Method, threshold: f64) -> Vec<Anomaly> {
    if v.len() < ANOMALY_POINTS_MIN || threshold <= 0.0 || v.iter().any(|x| !x.is_finite()) {
        return Vec::new();
    }
    let mut sorted = v.to_vec();
    sorted.sort_by(f64::total_cmp);
    let median = quantile(&sorted, 0.5);
    let judge = |i: usize, x: f64| -> (f64, f64) {
        let others = || -> Vec<f64> {
            v.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, y)| *y).collect()
        };
        // Equal values all around: any other value is out, by how much it differs in itself.
        let over = |distance: f64, spread: f64, expected: f64| match (distance, spread) {
            (d, _) if d <= 0.0 => 0.0,
            (d, s) if s > 0.0 => d / s / threshold,
            (d, _) => 1.0 + d / expected.abs().max(f64::MIN_POSITIVE),
        };
        match method {
            Method::ZScore => {
                let o = others();
                let m = mean(&o);
                (m, over((x - m).abs(), deviation(&o), m))
            }
            Method::ModifiedZ => {
                let mut d: Vec<f64> = v.iter().map(|y| (y - median).abs()).collect();
                d.sort_by(f64::total_cmp);
                (median, over((x - median).abs(), quantile(&d, 0.5) / 0.6745, median))
            }
            Method::Iqr => {
                let (q1, q3) = (quantile(&sorted, 0.25), quantile(&sorted, 0.75));
                let outside = (q1 - x).max(x - q3);
                (median, over(outside, q3 - q1, median))
            }
            Method::MovingAverage => {
                const WINDOW: usize = 7;
                let before = v.get(i.saturating_sub(WINDOW)..i).unwrap_or_default();
                if before.len() < 3 {
                    return (x, 0.0);
                }
                let m = mean(before);
                (m, over((x - m).abs(), deviation(before), m))
            }
        }
    };
    let found = v.iter().enumerate().map(|(index, value)| {
        let (expected, ratio) = judge(index, *value);
        Anomaly { index, value: *value, expected, ratio }
    });
    found.filter(|a| a.ratio > 1.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Noise;

    #[test]
    fn z_scores_are_the_tables() {
        for (c, z) in [(0.9, 1.645), (0.95, 1.960), (0.99, 2.576)] {
            assert!((z_of(c) - z).abs() < 1e-3, "{c}: {}", z_of(c));
        }
    }

    #[test]
    fn intervals_cover_as_they_claim() {
        let mut noise = Noise(88_172_645_463_325_252);
        for (name, trend, season) in
            [("flat", 0.0_f64, 0.0_f64), ("trend", 3.0, 0.0), ("week", 0.5, 30.0)]
        {
            for n in [14_usize, 28, 60] {
                let (mut inside, mut all) = (0, 0);
                for _ in 0..400 {
                    let mut at = |i: usize| {
                        let wave = (i as f64 * std::f64::consts::TAU / 7.0).sin();
                        5.0_f64.mul_add(noise.normal(), season.mul_add(wave, trend * i as f64))
                            + 100.0
                    };
                    let history: Vec<f64> = (0..n).map(&mut at).collect();
                    let model = choose(&history, Some(7));
                    let f = forecast(&history, 7, 0.95, model).unwrap();
                    for (h, p) in f.points.iter().enumerate() {
                        let real = at(n + h);
                        inside += usize::from(p.low <= real && real <= p.high);
                        all += 1;
                    }
                }
                let share = f64::from(inside as u32) / f64::from(all as u32);
                assert!((0.88..=0.995).contains(&share), "{name} of {n}: {share}");
            }
        }
    }

    #[test]
    fn a_line_is_continued_and_too_little_is_refused() {
        let v: Vec<f64> = (0..20).map(|i| 10.0 + 2.0 * f64::from(i)).collect();
        let f = forecast(&v, 3, 0.95, choose(&v, None)).unwrap();
        assert_eq!(f.model, Model::Linear);
        assert!((f.points[2].value - 54.0).abs() < 1e-9, "{:?}", f.points);
        assert!(f.mape.unwrap() < 1e-9 && f.r2.unwrap() > 0.999);
        assert_eq!(forecast(&v[..6], 3, 0.95, Model::Linear), None);
        // Falling spend does not go below nothing.
        let down: Vec<f64> = (0..10).map(|i| 9.0 - f64::from(i)).collect();
        let f = forecast(&down, 5, 0.95, Model::Linear).unwrap();
        assert!(f.points.iter().all(|p| p.value >= 0.0 && p.low >= 0.0));
    }

    #[test]
    fn outliers_are_found_by_every_method_and_noise_is_not() {
        let mut noise = Noise(0x1234_5678_9abc_def1);
        let methods = [
            (Method::ZScore, 3.0),
            (Method::Iqr, 1.5),
            (Method::ModifiedZ, 3.5),
            (Method::MovingAverage, 6.0),
        ];
        for (method, threshold) in methods {
            let mut v: Vec<f64> = (0..40).map(|_| 100.0 + noise.normal()).collect();
            v[30] = 150.0;
            let found = anomalies(&v, method, threshold);
            let worst = found.iter().max_by(|a, b| a.ratio.total_cmp(&b.ratio)).unwrap();
            assert_eq!((worst.index, worst.severity()), (30, "critical"), "{method:?}");
            assert!(found.len() <= 3, "{method:?}: {found:?}");
            assert!(anomalies(&v[..9], method, threshold).is_empty());
            // Without any spread a difference is still one.
            let mut even = vec![5.0; 20];
            assert!(anomalies(&even, method, threshold).is_empty(), "{method:?}");
            even[15] = 10.0;
            assert!(anomalies(&even, method, threshold).iter().any(|a| a.index == 15));
        }
    }
}
