//! Answers from which something is missing say so.
//!
//! A query notes what it could not read in its budget; [`mark`] adds that to the JSON body in the
//! way of each API, whichever handler made it.

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderName, HeaderValue, header};
use serde_json::{Value, json};
use std::cell::RefCell;

tokio::task_local! {
    static MISSING: RefCell<Vec<String>>;
}

/// Header of an answer that is not whole.
const PARTIAL: HeaderName = HeaderName::from_static("x-observatory-partial");
/// Larger bodies get the header alone.
const BODY_BYTES_MAX: usize = 256 << 20;

/// Remembers what the query of this request could not read.
pub(crate) fn note(missing: Vec<String>) {
    let _ = MISSING.try_with(|m| m.borrow_mut().extend(missing));
}

/// Middleware: adds what the queries of a request could not read to its answer.
pub(crate) async fn mark(request: Request, next: Next) -> Response {
    let (response, missing) = MISSING
        .scope(RefCell::default(), async {
            let response = next.run(request).await;
            (response, MISSING.with(RefCell::take))
        })
        .await;
    if missing.is_empty() { response } else { rewrite(response, missing).await }
}

async fn rewrite(response: Response, missing: Vec<String>) -> Response {
    let (mut parts, body) = response.into_parts();
    parts.headers.insert(PARTIAL, HeaderValue::from_static("true"));
    let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    if !content_type.is_some_and(|t| t.starts_with("application/json")) {
        return Response::from_parts(parts, body);
    }
    let Ok(bytes) = to_bytes(body, BODY_BYTES_MAX).await else {
        return Response::from_parts(parts, Body::empty());
    };
    let Ok(Value::Object(mut object)) = serde_json::from_slice(&bytes) else {
        return Response::from_parts(parts, Body::from(bytes));
    };
    add(&mut object, missing);
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, Body::from(Value::Object(object).to_string()))
}

fn add(object: &mut serde_json::Map<String, Value>, missing: Vec<String>) {
    object.insert("partial".into(), true.into());
    let is_peer = object.get("status").is_some_and(|s| s == "success");
    let is_jaeger = object.get("data").is_some_and(Value::is_array) && !is_peer;
    let said = |text: String| format!("partial answer: {text}");
    if is_peer {
        // Prometheus and Loki: strings under `warnings`.
        let list = object.entry("warnings").or_insert_with(|| json!([]));
        if let Value::Array(list) = list {
            list.extend(missing.into_iter().map(|m| said(m).into()));
        }
    } else if is_jaeger {
        let errors: Vec<Value> =
            missing.into_iter().map(|m| json!({"code": 500, "msg": said(m)})).collect();
        object.insert("errors".into(), errors.into());
    } else {
        object.insert("missing".into(), missing.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_api_is_told_in_its_own_way() {
        let cases = [
            (
                json!({"status": "success", "data": {}, "warnings": ["w"]}),
                json!({"status": "success", "data": {}, "partial": true, "warnings": ["w", "partial answer: x"]}),
            ),
            (
                json!({"data": [], "errors": null}),
                json!({"data": [], "partial": true, "errors": [{"code": 500, "msg": "partial answer: x"}]}),
            ),
            (json!({"rows": []}), json!({"rows": [], "partial": true, "missing": ["x"]})),
        ];
        for (before, after) in cases {
            let Value::Object(mut object) = before else { unreachable!() };
            add(&mut object, vec!["x".into()]);
            assert_eq!(Value::Object(object), after);
        }
    }
}
