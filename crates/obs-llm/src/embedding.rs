//! Embeddings of what was said, made small: their projection on fixed axes.
//!
//! Whoever wants drift to look at meaning sends a vector with the call. Random directions keep
//! angles and distances nearly as they were (Johnson and Lindenstrauss), so 32 numbers are kept of
//! however many came, and the vectors of different calls stay comparable: the axes never change.

use obs_model::{AttributeValue, Attributes};

/// Numbers that are kept of a vector.
pub(crate) const AXES: usize = 32;
/// Numbers that a vector may have.
const LENGTH_MAX: usize = 65_536;

/// `drift.embedding` is ours; the others are what dialects write for embeddings.
const NAMES: [&str; 3] =
    ["drift.embedding", "embedding.embeddings.0.embedding.vector", "ai.embedding"];

/// Returns the small form of the vector among a call's attributes; empty without one.
pub(crate) fn embedding(a: &Attributes) -> Vec<f32> {
    let vector = NAMES.iter().find_map(|n| match a.get(n)? {
        AttributeValue::Array(list) if list.len() <= LENGTH_MAX => {
            list.iter().map(AttributeValue::as_f64).collect::<Option<Vec<f64>>>()
        }
        AttributeValue::String(s) if s.starts_with('[') => {
            serde_json::from_str::<Vec<f64>>(s).ok().filter(|v| v.len() <= LENGTH_MAX)
        }
        _ => None,
    });
    vector.map_or_else(Vec::new, |v| small(&v))
}

/// Projects a vector of unit length on [`AXES`] directions of ±1; shorter ones are only scaled to
/// unit length. One without a direction, or with what is no number, is none.
fn small(vector: &[f64]) -> Vec<f32> {
    let norm = vector.iter().map(|v| v * v).sum::<f64>().sqrt();
    if !norm.is_normal() {
        return Vec::new();
    }
    if vector.len() <= AXES {
        return vector.iter().map(|v| (v / norm) as f32).collect();
    }
    let mut sums = [0.0; AXES];
    for (i, v) in vector.iter().enumerate() {
        // One sign an axis.
        let signs = mixed(i as u64);
        for (axis, sum) in sums.iter_mut().enumerate() {
            *sum += if signs >> axis & 1 == 1 { *v } else { -v };
        }
    }
    let scale = norm * (AXES as f64).sqrt();
    sums.iter().map(|s| (s / scale) as f32).collect()
}

/// SplitMix64: the same bits for the same number, for ever.
const fn mixed(i: u64) -> u64 {
    let mut z = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn angles_stay_nearly_as_they_were() {
        let vector = |seed: u64| -> Vec<f64> {
            (0..384).map(|i| (mixed(seed * 1000 + i) as f64 / u64::MAX as f64) - 0.5).collect()
        };
        let cosine = |a: &[f32], b: &[f32]| -> f32 {
            let dot: f32 = a.iter().zip(b).map(|(x, y)| x * y).sum();
            let norm = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>().sqrt();
            dot / norm(a) / norm(b)
        };
        let (a, b) = (vector(1), vector(2));
        let near: Vec<f64> = a.iter().zip(&b).map(|(x, y)| x + y / 10.0).collect();
        assert!(cosine(&small(&a), &small(&near)) > 0.95);
        assert!(cosine(&small(&a), &small(&b)).abs() < 0.5);
        assert_eq!(small(&[3.0, 4.0]), [0.6, 0.8]);
        for none in [&[][..], &[0.0, 0.0], &[f64::NAN], &[f64::INFINITY, 1.0]] {
            assert!(small(none).is_empty());
        }
    }

    #[test]
    fn vectors_are_read_as_lists_and_as_text() {
        let list = AttributeValue::Array(vec![3.into(), AttributeValue::Double(4.0)]);
        for v in [list, AttributeValue::from("[3, 4.0]")] {
            let a: Attributes = [("drift.embedding", v)].into_iter().collect();
            assert_eq!(embedding(&a), [0.6, 0.8]);
        }
        let bad: Attributes =
            [("drift.embedding", AttributeValue::from("[3, \"x\"]"))].into_iter().collect();
        assert!(embedding(&bad).is_empty());
    }
}
