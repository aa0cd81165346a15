//! `/api/v1/export/openmetrics`: samples as they are stored, in the text that `promtool tsdb
//! dump-openmetrics` writes and `promtool tsdb create-blocks-from openmetrics` reads.

use super::federate::series_text;
use super::{Api, ApiError, selectors, time_param};
use crate::params::Params;
use crate::run::{QueryFailure, blocking};
use crate::state::AppState;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header;
use obs_model::{Labels, Sample, SampleValue, SeriesSelection, TimestampMs};
use obs_promql::format_float;
use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::io;
use tokio::sync::mpsc;

/// Bytes of a piece of the answer.
const PIECE: usize = 256 << 10;

type Piece = Result<Bytes, io::Error>;

/// Writes the samples of one series; native histograms have no form in the text.
fn write_series(out: &mut String, labels: &Labels, samples: &[Sample]) {
    let series = series_text(labels, std::iter::empty());
    for s in samples.iter().filter(|s| !s.value.is_stale()) {
        let SampleValue::Float(f) = s.value else { continue };
        let ms = s.timestamp.millis();
        let (sign, ms) = (if ms < 0 { "-" } else { "" }, ms.unsigned_abs());
        let _ = writeln!(out, "{series} {} {sign}{}.{:03}", format_float(f), ms / 1000, ms % 1000);
    }
}

pub(super) async fn openmetrics(State(state): State<AppState>, p: Params) -> Api<Response> {
    let selectors = selectors(&p, true)?;
    let time =
        |name, or| Ok::<_, ApiError>(TimestampMs::from_millis(time_param(&p, name)?.unwrap_or(or)));
    let (start, end) = (time("start", i64::MIN)?, time("end", i64::MAX)?);
    let tenant = p.tenant.clone();
    let (sender, mut pieces) = mpsc::channel::<Piece>(4);
    let run = tokio::spawn(async move {
        let failed = sender.clone();
        let work = move |s: &AppState, budget: &obs_model::Budget| {
            let gone = |_| QueryFailure::Timeout;
            let mut text = String::new();
            let mut seen: HashSet<Labels> = HashSet::new();
            for matchers in &selectors {
                let selection = SeriesSelection { matchers, start, end };
                // A family's series stand together.
                let mut families: BTreeMap<String, Vec<_>> = BTreeMap::new();
                for series in s.source.select(&tenant, &selection, budget)? {
                    let name = series.labels.metric_name().to_owned();
                    families.entry(name).or_default().push(series);
                }
                for series in families.into_values().flatten() {
                    if selectors.len() > 1 && !seen.insert(series.labels.clone()) {
                        continue;
                    }
                    // Pieces of a series too: one may have millions of samples.
                    for samples in series.samples.chunks(PIECE / 64) {
                        write_series(&mut text, &series.labels, samples);
                        if text.len() >= PIECE {
                            budget.check()?;
                            let piece = std::mem::take(&mut text);
                            sender.blocking_send(Ok(piece.into())).map_err(gone)?;
                        }
                    }
                }
            }
            text.push_str("# EOF\n");
            sender.blocking_send(Ok(text.into())).map_err(gone)
        };
        let result = blocking(&state, "metric_repository", "export", work).await;
        if let Err(f) = &result {
            // An answer that has begun ends without its last piece: the client sees that it is not
            // whole.
            let _ = failed.try_send(Err(io::Error::other(f.message())));
        }
        result
    });
    let first = match pieces.recv().await {
        Some(Ok(first)) => first,
        Some(Err(_)) | None => {
            let result = run.await.map_err(|e| QueryFailure::Internal(e.to_string()));
            result.and_then(|r| r).map_err(ApiError::from)?;
            Bytes::new()
        }
    };
    let pieces = futures_util::stream::unfold((Some(first), pieces), |(first, mut rest)| async {
        let piece = match first {
            Some(first) => Ok(first),
            None => rest.recv().await?,
        };
        Some((piece, (None, rest)))
    });
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], Body::from_stream(pieces)).into_response())
}
