//! `/api/v1/sql`: read-only SQL.

use crate::llm::{native_error, native_failure};
use crate::params::Params;
use crate::run::{QueryFailure, with_budget};
use crate::state::AppState;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use obs_sql::{SqlError, SqlLimits, query};
use serde_json::json;
use tokio::task::JoinSet;

pub(crate) fn routes() -> Router<AppState> {
    Router::new().route("/api/v1/sql", get(sql).post(sql))
}

async fn sql(State(state): State<AppState>, p: Params) -> Response {
    let Some(text) = p.get("q").map(str::to_owned) else {
        return native_error(
            StatusCode::BAD_REQUEST,
            "parameter \"q\" is missing: the SQL statement",
        );
    };
    let begun = state.now();
    let tenant = p.tenant.clone();
    let result = with_budget(&state, "sql", "query", |s, budget| async move {
        let read = budget.clone();
        let source = s.source.clone();
        let run = async move { query(source, &tenant, &text, SqlLimits::default(), budget).await };
        // Ends with the request when that is dropped.
        let mut task = JoinSet::new();
        task.spawn_on(run, &s.work);
        let Some(Ok(out)) = task.join_next().await else {
            return Err(QueryFailure::Internal("the query ended early".into()));
        };
        out.map(|o| (o, read.samples_taken())).map_err(|e| match e {
            SqlError::Query(m) => QueryFailure::Bad(m),
            SqlError::Select(s) => s.into(),
            e @ (SqlError::TooManyRows(_) | SqlError::Memory(_)) => {
                QueryFailure::TooMuch(e.to_string())
            }
        })
    })
    .await;
    match result {
        Err(f) => native_failure(&f),
        Ok((out, records)) => {
            let columns: Vec<_> = out
                .columns
                .iter()
                .map(|(name, kind)| json!({"name": name, "type": kind}))
                .collect();
            let elapsed_ms = (state.now().nanos() - begun.nanos()) as f64 / 1e6;
            let stats =
                json!({"rows": out.rows.len(), "records_read": records, "elapsed_ms": elapsed_ms});
            Json(json!({"columns": columns, "rows": out.rows, "stats": stats})).into_response()
        }
    }
}
