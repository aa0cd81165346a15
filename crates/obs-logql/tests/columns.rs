//! Metric queries over a store that keeps members of JSON lines as columns say what they say over
//! one that keeps lines.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use obs_logql::ast::Query;
use obs_logql::{parse, run_range};
use obs_model::{
    Append as _, Budget, Labels, LogRecord, SelectLogs, TenantId, TimestampNs, WriteBatch,
};
use obs_promql::Output;
use obs_storage::vfs::OsVfs;
use obs_storage::{Store, StoreConfig};
use obs_testkit::MemoryStore;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use std::sync::Arc;

const QUERIES: &[&str] = &[
    r#"sum by (level) (count_over_time({app=~".+"} | json [20s]))"#,
    r#"sum by (level, app) (count_over_time({app=~".+"} | json | level="error" [20s]))"#,
    r#"sum(count_over_time({app=~".+"} | json | took > 20 [20s]))"#,
    r#"sum by (model) (count_over_time({app="a"} | json | took <= 20 and model!="m1" [15s]))"#,
    r#"sum by (took) (count_over_time({app="a"} | json | took > 5 [15s]))"#,
    r#"sum(count_over_time({app=~".+"} | json | took > 5 or level="info" [15s]))"#,
    r#"sum(count_over_time({app=~".+"} | json | took > 5 | n < 4 [15s]))"#,
    r#"sum(count_over_time({app=~".+"} | json | took != 10 | __error__="" [15s]))"#,
    r#"sum by (__error__) (count_over_time({app=~".+"} | json [15s]))"#,
    r#"quantile_over_time(0.95, {app="a"} | json | unwrap took [20s]) by (model)"#,
    r#"sum by (level) (sum_over_time({app=~".+"} | json | unwrap took | __error__="" [20s]))"#,
    r#"max_over_time({app=~".+"} | json | took > 3 | unwrap took [20s]) by (app)"#,
    r#"avg_over_time({app=~".+"} | json | __error__="" | unwrap took [20s]) by (took)"#,
    r#"sum by (deep_level) (count_over_time({app=~".+"} | json [20s]))"#,
    r#"sum by (level_extracted) (count_over_time({app=~".+"} | json [20s]))"#,
    r#"count_over_time({app="a"}[10s])"#,
    r#"sum(rate({app=~".+"} |= "error" | json | took > 5 [15s]))"#,
    r#"sum(count_over_time({app=~".+"} |~ "took [0-9]+ ms" [15s]))"#,
    r#"sum by (app) (count_over_time({app=~".+"} |~ "took [0-9]+" != "123" [15s]))"#,
    r#"sum(count_over_time({app=~".+"} |~ "took [0-9]{2} ms" [15s]))"#,
    r#"sum by (app) (count_over_time({app=~".+"} |= "took" !~ "took [0-9]{1,2}( |$)" [15s]))"#,
    r#"sum(count_over_time({app=~".+"} |~ "took [1-9]" [15s]))"#,
    r#"sum by (level) (count_over_time({app=~".+"} |= "error" [15s]))"#,
    r#"sum(count_over_time({app=~".+"} !~ "took +[1-3]|nope" [15s]))"#,
    r#"count_over_time({app="a"} |= "took" or "level" [15s])"#,
    r#"sum(count_over_time({app=~".+"} |~ "info.*m1" [15s]))"#,
    r#"sum(count_over_time({app=~".+"} |~ "rror$|^.level" [15s]))"#,
    r#"sum by (level) (count_over_time({app=~".+"} |~ "err|warn" | json | took > 5 [15s]))"#,
    r#"sum by (model) (count_over_time({app=~".+"} | json |= "error" != "deep" [15s]))"#,
    r#"sum(bytes_over_time({app=~".+"} |= "info" [15s]))"#,
    r#"sum(sum_over_time({app=~".+"} |= "level" | json | unwrap took | __error__="" [20s]))"#,
    r#"sum by (trace_id) (count_over_time({app="a"} | json [20s]))"#,
    r#"sum by (at) (count_over_time({app="a"} | json [20s]))"#,
    r#"sum(count_over_time({app=~".+"} |~ "retry in [0-9]+ ms" [15s]))"#,
    r#"sum by (tries) (count_over_time({app=~"b|c"} |= "retry" | json | tries > 3 [3s]))"#,
    r#"sum by (tries, wait) (sum_over_time({app=~".+"} |= "retry" | json | unwrap wait [15s]))"#,
];

/// A value, mostly of few kinds, so that columns are coded in every way.
fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => (0_i32..40).prop_map(|n| n.to_string()),
        4 => (0_i32..4000).prop_map(|n| format!("{}.{:02}", n / 100, n % 100)),
        2 => (0_i32..40).prop_map(|n| format!("\"{n}\"")),
        4 => prop_oneof![Just("error"), Just("info"), Just("m1"), Just("m2")].prop_map(|s| format!("{s:?}")),
        1 => "[0-9a-f]{32}".prop_map(|s| format!("{s:?}")),
        1 => prop_oneof![Just("true"), Just("null"), Just("-"), Just("007"), Just("1e3"), Just("nope"), Just("\"a \\\" 7\""), Just("\"\""), Just("[1,{\"took\":3}]"), Just("{\"level\":\"error\",\"n\":4}"), Just("{\"level\":")].prop_map(str::to_owned),
    ]
}

fn regular() -> impl Strategy<Value = String> {
    (0_i32..3, 0_i32..4000, 0_i32..3).prop_map(|(level, took, model)| {
        let level = ["error", "info", "warn"].get(level as usize).copied().unwrap_or_default();
        format!(
            "{{\"level\":{level:?},\"msg\":\"took {took} ms\",\"model\":\"m{model}\",\"took\":{}.{:02}}}",
            took / 100,
            took % 100
        )
    })
}

/// A line of a template that has columns of its own.
fn rare() -> impl Strategy<Value = String> {
    (0_i32..200, 0_i32..9, 0_i32..30).prop_map(|(wait, tries, n)| {
        format!("{{\"msg\":\"retry in {wait} ms\",\"tries\":{tries},\"wait\":{wait}.5,\"n\":{n}}}")
    })
}

fn line() -> impl Strategy<Value = String> {
    let key = prop_oneof![
        4 => Just("took"), 4 => Just("level"), 3 => Just("model"), 2 => Just("n"), 1 => Just("deep"),
        1 => Just("trace_id"), 1 => Just("msg"), 1 => Just("took ms"), 1 => Just("app"), 1 => Just("at"),
    ];
    let member = (key, value()).prop_map(|(k, v)| format!("{k:?}:{v}"));
    prop_oneof![
        6 => regular(),
        1 => rare(),
        4 => proptest::collection::vec(member, 0..5).prop_map(|m| format!("{{{}}}", m.join(","))),
        1 => Just("level=error took=7".to_owned()),
        1 => Just(" {\"took\": 9}".to_owned()),
        1 => Just("{\"took\":30} and more".to_owned()),
    ]
}

fn answer(source: &dyn SelectLogs, query: &str) -> Result<String, String> {
    let Query::Metric(expr) = parse(query).unwrap() else { panic!("{query} is no metric query") };
    let budget = Budget::new(i64::MAX, i64::MAX);
    let at = |s: i64| TimestampNs::from_nanos(s * 1_000_000_000);
    match run_range(source, &TenantId::default(), &expr, (at(100), at(160)), 10_000, &budget) {
        Ok(Output::Matrix(all)) => Ok(format!("{all:#?}")),
        Ok(other) => panic!("{query}: {other:?}"),
        // Which of several faulty records is told of is anybody's guess.
        Err(e) => Err(e.to_string().split(':').next().unwrap_or_default().to_owned()),
    }
}

/// Writes lines to a store, and compares what it answers with what the lines themselves do.
fn compare(lines: Vec<(String, u8, bool)>) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { disk_reserve_bytes: 0, ..StoreConfig::new(dir.path()) };
    let store = Store::open(config, Arc::new(OsVfs)).unwrap();
    let mut batch = WriteBatch::default();
    for (i, (line, app, has_level)) in lines.into_iter().enumerate() {
        let time = TimestampNs::from_nanos(90_000_000_000 + i as i64 * 500_000_000);
        let app = ["a", "b", "c"].get(usize::from(app)).copied().unwrap_or_default();
        let mut stream = vec![("app", app)];
        if has_level {
            stream.push(("level", "error"));
        }
        batch.logs.push(LogRecord {
            stream: Labels::from_pairs(stream),
            timestamp: time,
            observed: time,
            line,
            ..LogRecord::default()
        });
    }
    let plain = MemoryStore {
        logs: batch.logs.iter().cloned().map(Arc::new).collect(),
        ..MemoryStore::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
    runtime.block_on(async {
        store.append(&TenantId::default(), batch).await.unwrap();
        store.flush().await.unwrap();
    });
    for query in QUERIES {
        prop_assert_eq!(answer(&store, query), answer(&plain, query), "{}", query);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn columns_and_lines_agree(
        lines in proptest::collection::vec((line(), 0_u8..3, any::<bool>()), 1..120),
    ) {
        compare(lines)?;
    }

    /// The rows of templates that few have are listed; no odd line stands beside them.
    #[test]
    fn rows_that_are_listed_and_lines_agree(
        lines in proptest::collection::vec(
            (prop_oneof![8 => regular(), 1 => rare()], 0_u8..3, any::<bool>()), 60..150),
    ) {
        compare(lines)?;
    }
}
