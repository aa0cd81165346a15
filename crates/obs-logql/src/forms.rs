//! The forms that lines have: words that stay, and places for those that change.

use obs_model::TimestampNs;
use std::collections::{BTreeMap, HashMap};

/// A form and how often lines had it.
#[derive(Debug, Clone)]
pub struct Form {
    pub pattern: String,
    pub level: String,
    /// (start of the step in seconds, lines), in order of time.
    pub counts: Vec<(i64, u64)>,
}

#[derive(Debug)]
struct Cluster {
    words: Vec<Option<String>>,
    level: String,
    counts: BTreeMap<i64, u64>,
    lines: u64,
}

/// Gathers lines into forms: lines of the same number of words and the same first word belong
/// together when most of their other words agree (the idea of Drain).
#[derive(Debug)]
pub struct Forms {
    step_seconds: i64,
    clusters: Vec<Cluster>,
    /// Clusters by level, number of words and first word.
    index: HashMap<(String, usize, String), Vec<usize>>,
}

/// Forms kept, and words looked at in a line.
const CLUSTERS_MAX: usize = 2000;
const WORDS_MAX: usize = 80;
/// The part of the words that must agree.
const SIMILAR: f64 = 0.5;

/// Words that carry a number are taken to change from line to line.
fn fixed(word: &str) -> Option<&str> {
    (!word.bytes().any(|b| b.is_ascii_digit())).then_some(word)
}

impl Forms {
    /// Counts by steps of so many seconds.
    pub fn new(step_seconds: i64) -> Self {
        Self { step_seconds: step_seconds.max(1), clusters: Vec::new(), index: HashMap::new() }
    }

    /// Takes a line.
    pub fn see(&mut self, line: &str, level: &str, at: TimestampNs) {
        let words: Vec<&str> = line.split_whitespace().take(WORDS_MAX).collect();
        let Some(first) = words.first() else { return };
        let key = (level.to_owned(), words.len(), fixed(first).unwrap_or_default().to_owned());
        let likeness = |c: &Cluster| {
            let same = c.words.iter().zip(&words).filter(|(known, word)| match known {
                Some(k) => k == *word,
                None => fixed(word).is_none(),
            });
            same.count() as f64 / words.len() as f64
        };
        let known = self.index.get(&key).into_iter().flatten();
        let best = known
            .filter_map(|i| self.clusters.get(*i).map(|c| (*i, likeness(c))))
            .filter(|(_, l)| *l >= SIMILAR)
            .max_by(|a, b| a.1.total_cmp(&b.1));
        let i = match best {
            Some((i, _)) => i,
            None if self.clusters.len() >= CLUSTERS_MAX => return,
            None => {
                self.clusters.push(Cluster {
                    words: words.iter().map(|w| fixed(w).map(str::to_owned)).collect(),
                    level: level.to_owned(),
                    counts: BTreeMap::new(),
                    lines: 0,
                });
                let i = self.clusters.len() - 1;
                self.index.entry(key).or_default().push(i);
                i
            }
        };
        let Some(cluster) = self.clusters.get_mut(i) else { return };
        for (known, word) in cluster.words.iter_mut().zip(&words) {
            if known.as_deref().is_some_and(|k| k != *word) {
                *known = None;
            }
        }
        let seconds = at.nanos().div_euclid(1_000_000_000);
        let step = seconds - seconds.rem_euclid(self.step_seconds);
        *cluster.counts.entry(step).or_default() += 1;
        cluster.lines += 1;
    }

    /// Returns the forms that most lines have.
    pub fn most_frequent(&self, max: usize) -> Vec<Form> {
        let mut all: Vec<&Cluster> = self.clusters.iter().collect();
        all.sort_by(|a, b| b.lines.cmp(&a.lines).then_with(|| a.words.cmp(&b.words)));
        let form = |c: &Cluster| {
            let words: Vec<&str> = c.words.iter().map(|w| w.as_deref().unwrap_or("<_>")).collect();
            // Places that follow each other are one.
            let mut pattern = words.join(" ");
            while pattern.contains("<_> <_>") {
                pattern = pattern.replace("<_> <_>", "<_>");
            }
            let counts = c.counts.iter().map(|(t, n)| (*t, *n)).collect();
            Form { pattern, level: c.level.clone(), counts }
        };
        all.into_iter().take(max).map(form).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_differ_in_values_have_one_form() {
        let mut forms = Forms::new(10);
        for i in 0..30_i64 {
            let at = TimestampNs::from_nanos(i * 1_000_000_000);
            forms.see(&format!("request {i} from user{i} took {i}ms status ok"), "info", at);
            if i % 3 == 0 {
                forms.see("cache miss for key alpha", "warn", at);
                forms.see("cache miss for key beta", "warn", at);
            }
        }
        let got = forms.most_frequent(10);
        let texts: Vec<&str> = got.iter().map(|f| f.pattern.as_str()).collect();
        assert_eq!(texts, ["request <_> from <_> took <_> status ok", "cache miss for key <_>"]);
        assert_eq!(got[0].counts, [(0, 10), (10, 10), (20, 10)]);
        assert_eq!(got[1].level, "warn");
        assert_eq!(forms.most_frequent(1).len(), 1);
    }
}
