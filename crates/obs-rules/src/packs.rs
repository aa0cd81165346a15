//! Rule packs that are built in, switched on by name.

use crate::file::{RuleGroup, read};

/// Name, file name and text of each pack.
pub const PACKS: [(&str, &str, &str); 7] = [
    ("storage", "storage.yml", include_str!("../packs/storage.yml")),
    ("ai-platform", "ai-platform.yml", include_str!("../packs/ai-platform.yml")),
    ("cost-ops", "cost-ops.yml", include_str!("../packs/cost-ops.yml")),
    ("optimizer", "optimizer.yml", include_str!("../packs/optimizer.yml")),
    ("k8s", "k8s.yml", include_str!("../packs/k8s.yml")),
    ("llm", "llm.yml", include_str!("../packs/llm.yml")),
    ("observatory", "observatory.yml", include_str!("../packs/observatory.yml")),
];

/// Returns the groups of a pack, `None` when there is no such pack.
pub fn pack(name: &str) -> Option<Vec<RuleGroup>> {
    let (name, _, text) = PACKS.iter().find(|p| p.0 == name)?;
    let mut groups = read(text).groups;
    for g in &mut groups {
        g.pack = Some(name);
    }
    Some(groups)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::Rule;
    use crate::lint;
    use crate::unit_test::simulate;
    use serde::Deserialize;
    use std::collections::{BTreeMap, BTreeSet};

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Case {
        alert: Option<String>,
        record: Option<String>,
        at: Option<String>,
        #[serde(default)]
        fires: Vec<String>,
        #[serde(default)]
        quiet: Vec<String>,
        /// Whether it is to fire on any input.
        #[serde(default)]
        always: bool,
        #[serde(default)]
        input: Vec<String>,
        #[serde(default)]
        gives: BTreeMap<String, f64>,
    }

    /// A group of the rule and the recording rules that it reads, directly or not.
    fn alone(groups: &[RuleGroup], rule: &Rule) -> RuleGroup {
        let mut wanted = vec![rule.clone()];
        let mut at = 0;
        while let Some(r) = wanted.get(at).cloned() {
            at += 1;
            for name in r.query.expr.iter().flat_map(lint::metric_names).flatten() {
                let all = groups.iter().flat_map(|g| &g.rules);
                for found in all.filter(|r| !r.is_alert() && r.name() == name) {
                    if !wanted.iter().any(|w| w.name() == name) {
                        wanted.push(found.clone());
                    }
                }
            }
        }
        wanted.reverse();
        RuleGroup {
            name: "alone".into(),
            interval_ms: Some(60_000),
            query_offset_ms: None,
            limit: 0,
            rules: wanted,
            pack: None,
        }
    }

    fn split(series: &[String]) -> Vec<(String, String)> {
        series
            .iter()
            .map(|s| {
                let at = s.find('}').map_or_else(|| s.find(' ').unwrap_or(0), |i| i + 1);
                (s[..at].to_owned(), s[at..].trim().to_owned())
            })
            .collect()
    }

    fn cases(text: &str) -> Vec<Case> {
        serde_saphyr::from_str(text).unwrap()
    }

    fn check(name: &str, text: &str) {
        let groups = pack(name).unwrap();
        let mut tested = BTreeSet::new();
        for case in cases(text) {
            let wanted = case.alert.as_ref().or(case.record.as_ref()).unwrap();
            let rule = groups
                .iter()
                .flat_map(|g| &g.rules)
                .find(|r| r.name() == wanted && r.is_alert() == case.alert.is_some())
                .unwrap_or_else(|| panic!("{name}: no rule is called {wanted}"));
            tested.insert(wanted.clone());
            let group = alone(&groups, rule);
            let at = case.at.as_deref().unwrap_or("30m");
            let at = obs_promql::duration::parse_ms(at).unwrap();
            if case.record.is_some() {
                let got = simulate(&group, &split(&case.input), at, Some(wanted));
                let want: BTreeMap<String, f64> = case
                    .gives
                    .iter()
                    .map(|(l, v)| {
                        let labels = crate::series_text::labels(l).unwrap();
                        (labels.with("pack", name).with("__name__", wanted).to_string(), *v)
                    })
                    .collect();
                assert_eq!(got.series.len(), want.len(), "{name}: {wanted} gives {:?}", got.series);
                for ((gl, gv), (wl, wv)) in got.series.iter().zip(&want) {
                    let close = (gv - wv).abs() <= 1e-9 * wv.abs().max(1.0);
                    assert!(gl == wl && close, "{name}: {gl} is {gv}, not {wl} {wv}");
                }
                continue;
            }
            let got = simulate(&group, &split(&case.fires), at, None);
            assert!(!got.firing.is_empty(), "{name}: {wanted} does not fire");
            for (labels, annotations) in &got.firing {
                assert_eq!(labels.get("pack"), name, "{wanted}");
                for text in annotations.values() {
                    assert!(!text.contains("<error") && !text.contains("{{"), "{wanted}: {text}");
                }
            }
            if case.always {
                continue;
            }
            let quiet = simulate(&group, &split(&case.quiet), at, None);
            assert!(quiet.firing.is_empty(), "{name}: {wanted} fires on quiet input");
        }
        let all: BTreeSet<String> =
            groups.iter().flat_map(|g| &g.rules).map(|r| r.name().to_owned()).collect();
        assert_eq!(all, tested, "{name}: every rule has a case");
    }

    #[test]
    fn every_rule_fires_when_it_should_and_not_else() {
        check("storage", include_str!("../packs/storage.cases.yml"));
        check("ai-platform", include_str!("../packs/ai-platform.cases.yml"));
        check("cost-ops", include_str!("../packs/cost-ops.cases.yml"));
        check("optimizer", include_str!("../packs/optimizer.cases.yml"));
        check("k8s", include_str!("../packs/k8s.cases.yml"));
        check("llm", include_str!("../packs/llm.cases.yml"));
        check("observatory", include_str!("../packs/observatory.cases.yml"));
    }

    #[test]
    fn packs_are_valid_and_lint_finds_nothing() {
        for (name, _, text) in PACKS {
            let file = read(text);
            assert_eq!(file.errors, [], "{name}");
            let found = lint::lint(&file, None);
            assert_eq!(found, [], "{name}");
        }
        let count = |name: &str| {
            let groups = pack(name).unwrap();
            let rules: Vec<Rule> = groups.into_iter().flat_map(|g| g.rules).collect();
            let alerts = rules.iter().filter(|r| r.is_alert()).count();
            (alerts, rules.len() - alerts)
        };
        assert_eq!(count("storage"), (51, 56));
        assert_eq!(count("ai-platform"), (19, 0));
        assert_eq!(count("cost-ops"), (7, 2));
        assert_eq!(count("optimizer"), (24, 0));
        assert_eq!(count("k8s"), (14, 17));
        assert_eq!(count("llm"), (7, 0));
        assert_eq!(count("observatory"), (6, 0));
    }
}
