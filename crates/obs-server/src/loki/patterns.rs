//! What forms the lines of a query have, and how often.

use super::{Api, bounds, check_points, parsed_log, step, success};
use crate::params::Params;
use crate::run::{QueryFailure, blocking};
use crate::state::AppState;
use axum::extract::State;
use axum::response::Response;
use obs_logql::Forms;
use serde_json::json;
use std::ops::ControlFlow;

/// Lines looked at, and forms told.
const LINES_MAX: usize = 200_000;
const FORMS_MAX: usize = 300;

pub(super) async fn patterns(State(state): State<AppState>, p: Params) -> Api<Response> {
    let range = bounds(&state, &p)?;
    let expr = parsed_log(&p)?;
    let step_ms = step(&p, range)?;
    check_points(&state, range, step_ms)?;
    let tenant = p.tenant.clone();
    let forms = blocking(&state, "log_repository", "patterns", move |s, budget| {
        let mut selection = super::streams::selection(&expr.matchers, range);
        let needles = expr.needles();
        selection.needles = &needles;
        let mut forms = Forms::new(step_ms / 1000);
        let mut left = LINES_MAX;
        s.source
            .select_logs(&tenant, &selection, budget, &mut |r| {
                forms.see(&r.line, r.level(), r.timestamp);
                left -= 1;
                if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .map_err(QueryFailure::from)?;
        Ok(forms)
    })
    .await?;
    let rows: Vec<_> = forms
        .most_frequent(FORMS_MAX)
        .into_iter()
        .map(|f| json!({"pattern": f.pattern, "level": f.level, "samples": f.counts}))
        .collect();
    Ok(success(rows))
}
