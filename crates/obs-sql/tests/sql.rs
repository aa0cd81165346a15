//! SQL over an in-memory store.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test fails by panicking"
)]

use obs_model::*;
use obs_sql::{SqlError, SqlLimits, query};
use obs_testkit::MemoryStore;
use std::sync::Arc;

fn store() -> Arc<MemoryStore> {
    let mut store = MemoryStore::default();
    for i in 0..10_i64 {
        let labels = Labels::from_pairs([("__name__", "m".to_owned()), ("i", (i % 2).to_string())]);
        store.series.push(Series { labels, samples: vec![Sample::float(i * 1000, i as f64)] });
        store.logs.push(Arc::new(LogRecord {
            stream: Labels::from_pairs([("service_name", "api")]),
            timestamp: TimestampNs::from_nanos(i * 1_000_000_000),
            line: format!("line {i} 你好"),
            severity_number: 9,
            ..LogRecord::default()
        }));
    }
    Arc::new(store)
}

async fn run(sql: &str) -> Result<serde_json::Value, SqlError> {
    let budget = Arc::new(Budget::new(1 << 20, 1 << 30));
    let out = query(
        store(),
        &TenantId::default(),
        sql,
        SqlLimits { rows_max: 100, ..SqlLimits::default() },
        budget,
    )
    .await?;
    Ok(serde_json::json!(out.rows))
}

#[tokio::test]
async fn tables_answer() {
    assert_eq!(
        run("SELECT count(*) AS n, sum(value) AS s FROM metrics WHERE name = 'm'").await.unwrap(),
        serde_json::json!([{"n": 10, "s": 45.0}])
    );
    assert_eq!(
        run("SELECT line, level, service FROM logs WHERE ts >= '1970-01-01T00:00:03Z' AND ts < '1970-01-01T00:00:05Z' ORDER BY ts").await.unwrap(),
        serde_json::json!([{"line": "line 3 你好", "level": "info", "service": "api"}, {"line": "line 4 你好", "level": "info", "service": "api"}])
    );
    assert_eq!(
        run("SELECT count(*) AS n, sum(cost_usd) AS c FROM llm_calls").await.unwrap(),
        serde_json::json!([{"n": 0, "c": null}])
    );
    assert_eq!(
        run("SELECT CAST('0.000000000001' AS DECIMAL(28,12)) AS d").await.unwrap(),
        serde_json::json!([{"d": "0.000000000001"}])
    );
    assert_eq!(
        run("SELECT count(*) AS n FROM spans").await.unwrap(),
        serde_json::json!([{"n": 0}])
    );
}

#[tokio::test]
async fn columns_are_read_alone_as_beside_all_others() {
    let all = run("SELECT * FROM logs ORDER BY ts").await.unwrap();
    let rows = all.as_array().unwrap();
    let first = rows[0].as_object().unwrap();
    assert_eq!(first["stream"], r#"{"service_name":"api"}"#);
    for name in first.keys() {
        let alone = run(&format!("SELECT {name} FROM logs ORDER BY ts")).await.unwrap();
        let want: Vec<_> = rows.iter().map(|r| serde_json::json!({name: r[name]})).collect();
        assert_eq!(alone, serde_json::json!(want));
    }
    // In another order than the table's, and none at all.
    assert_eq!(
        run("SELECT stream, line, ts FROM logs ORDER BY ts LIMIT 1").await.unwrap(),
        serde_json::json!([{"stream": first["stream"], "line": first["line"], "ts": first["ts"]}])
    );
    assert_eq!(
        run("SELECT count(*) AS n FROM logs").await.unwrap(),
        serde_json::json!([{"n": 10}])
    );
    assert_eq!(
        run("SELECT labels, value FROM metrics ORDER BY value LIMIT 2").await.unwrap(),
        serde_json::json!([
            {"labels": r#"{"i":"0"}"#, "value": 0.0},
            {"labels": r#"{"i":"1"}"#, "value": 1.0}
        ])
    );
}

#[tokio::test]
async fn only_reads_within_limits() {
    for sql in [
        "DROP TABLE logs",
        "CREATE TABLE x (a INT)",
        "INSERT INTO logs VALUES (1)",
        "SET datafusion.x = 1",
        "SELEC 1",
        "SELECT * FROM nope",
        "COPY logs TO '/tmp/x.csv'",
    ] {
        assert!(matches!(run(sql).await, Err(SqlError::Query(_))), "{sql}");
    }
    assert!(matches!(
        run("SELECT * FROM metrics CROSS JOIN logs a CROSS JOIN logs b").await,
        Err(SqlError::TooManyRows(100))
    ));
}
