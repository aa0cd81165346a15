//! `info()`: adds the labels of info metrics, such as `target_info`, to the series of the same
//! `instance` and `job`.

use crate::ast::{Expr, Selector};
use crate::eval::{Column, Evaluated, Evaluator, execution, merge_same_labels};
use obs_model::{Labels, LabelsBuilder, METRIC_NAME, MatchOp, Matcher};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The info metric that is meant when none is named.
const TARGET_INFO: &str = "target_info";
/// What an info series and the series it describes have in common.
const IDENTIFYING: [&str; 2] = ["instance", "job"];

/// An info series at all steps: the time of the sample at each, if there is one.
struct Info {
    labels: Labels,
    times: Vec<Option<i64>>,
}

type Identity = (String, [String; 2]);

fn identity(name: &str, labels: &Labels) -> Identity {
    (name.to_owned(), IDENTIFYING.map(|l| labels.get(l).to_owned()))
}

impl Evaluator<'_> {
    pub(crate) fn info(&mut self, arg: &Expr, wanted: Option<&Expr>) -> Evaluated<Vec<Column>> {
        let base = self.vector(arg)?;
        let mut matchers: Vec<Matcher> = match wanted {
            Some(Expr::Selector(s)) => s.matchers.clone(),
            _ => Vec::new(),
        };
        let is_named = matchers.iter().any(|m| m.name == METRIC_NAME);
        if !is_named {
            matchers.push(Matcher::equal(METRIC_NAME, TARGET_INFO));
        }
        let (names, data): (Vec<_>, Vec<_>) =
            matchers.iter().cloned().partition(|m| m.name == METRIC_NAME);
        let is_info = |c: &Column| names.iter().all(|m| m.matches(c.labels.metric_name()));
        let infos = self.info_series(base.iter().filter(|c| !is_info(c)), matchers)?;
        let metrics: BTreeSet<&str> = infos.iter().map(|i| i.labels.metric_name()).collect();
        let mut by_identity: HashMap<Identity, Vec<&Info>> = HashMap::new();
        for i in &infos {
            let id = identity(i.labels.metric_name(), &i.labels);
            by_identity.entry(id).or_default().push(i);
        }
        let kept: BTreeSet<&str> = data.iter().map(|m| m.name.as_str()).collect();
        // A series without info is kept only if every matcher would take an absent label.
        let may_lack = data.iter().all(|m| m.matches(""));
        let mut out: BTreeMap<Labels, Column> = BTreeMap::new();
        let mut budget = 0;
        for c in base {
            if is_info(&c) {
                out.insert(c.labels.clone(), c);
                continue;
            }
            let candidates: Vec<&Vec<&Info>> =
                metrics.iter().filter_map(|m| by_identity.get(&identity(m, &c.labels))).collect();
            let mut last: Option<(Vec<Labels>, Option<Labels>)> = None;
            for (step, value) in c.values.iter().enumerate() {
                let Some(value) = value else { continue };
                let mut found = Vec::new();
                for list in &candidates {
                    if let Some(i) = newest(list, step)? {
                        found.push(i.labels.clone());
                    }
                }
                // The same info series as a step before give the same labels.
                let labels = match last {
                    Some((ref same, ref labels)) if *same == found => labels.clone(),
                    _ => enriched(&c.labels, &found, &kept, may_lack)?,
                };
                last = Some((found, labels.clone()));
                let Some(labels) = labels else { continue };
                let column = out.entry(labels).or_insert_with_key(|labels| {
                    budget += c.values.len() * 24;
                    let values = vec![None; c.values.len()];
                    Column { labels: labels.clone(), values, drops_name: c.drops_name }
                });
                if let Some(slot) = column.values.get_mut(step) {
                    if slot.is_some() {
                        return execution("vector cannot contain metrics with the same labelset");
                    }
                    *slot = Some(value.clone());
                }
            }
            self.budget.take(0, std::mem::take(&mut budget))?;
        }
        merge_same_labels(out.into_values().collect())
    }

    /// Reads the info series that share `instance` and `job` with a series.
    fn info_series<'c>(
        &mut self,
        base: impl Iterator<Item = &'c Column>,
        mut matchers: Vec<Matcher>,
    ) -> Evaluated<Vec<Info>> {
        let mut values: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for c in base {
            for l in IDENTIFYING {
                let value = c.labels.get(l);
                if !value.is_empty() {
                    values.entry(l).or_default().insert(value);
                }
            }
        }
        if values.is_empty() {
            return Ok(Vec::new());
        }
        for (label, values) in values {
            let any: Vec<String> = values.into_iter().map(regex::escape).collect();
            let m = Matcher::new(label, MatchOp::Regex, any.join("|"));
            matchers.push(m.map_err(|e| super::EvalError::Execution(e.to_string()))?);
        }
        let selector = Selector {
            matchers,
            is_named: false,
            offset_ms: 0,
            offset_expr: None,
            at: None,
            extension: None,
            pos: crate::ast::Pos::default(),
        };
        let rows = self.selector_samples(&selector)?;
        let info = |(c, times): (Column, Vec<i64>)| Info {
            labels: c.labels,
            times: c.values.iter().zip(times).map(|(v, t)| v.as_ref().map(|_| t)).collect(),
        };
        Ok(rows.into_iter().map(info).collect())
    }
}

/// Returns the info series with the newest sample at a step.
fn newest<'i>(list: &[&'i Info], step: usize) -> Evaluated<Option<&'i Info>> {
    let mut best: Option<(i64, &Info)> = None;
    for i in list {
        let Some(t) = i.times.get(step).copied().flatten() else { continue };
        match best {
            Some((other, _)) if other > t => {}
            Some((other, info)) if other == t => {
                return execution(format!(
                    "found duplicate series for info metric {}: existing {} @ {t}, new {} @ {t}",
                    i.labels.metric_name(),
                    info.labels,
                    i.labels
                ));
            }
            _ => best = Some((t, i)),
        }
    }
    Ok(best.map(|b| b.1))
}

/// Returns a series' labels with those of its info series, `None` when it is left out.
fn enriched(
    base: &Labels,
    infos: &[Labels],
    kept: &BTreeSet<&str>,
    may_lack: bool,
) -> Evaluated<Option<Labels>> {
    let mut added: BTreeMap<&str, &str> = BTreeMap::new();
    for info in infos {
        for (name, value) in info.iter() {
            if name == METRIC_NAME
                || (!kept.is_empty() && !kept.contains(name))
                || !base.get(name).is_empty()
            {
                continue;
            }
            if added.insert(name, value).is_some_and(|before| before != value) {
                return execution(format!("conflicting label: {name}"));
            }
        }
    }
    if added.is_empty() && !may_lack {
        return Ok(None);
    }
    let mut builder = LabelsBuilder::default();
    for (name, value) in base.iter().chain(added) {
        builder.set(name, value);
    }
    Ok(Some(builder.build()))
}
