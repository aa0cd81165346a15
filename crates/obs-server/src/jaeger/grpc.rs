//! Jaeger's gRPC services: the collector and sampling on one port, queries on another.

use super::{TRACES_MAX, all_operations, receive};
use crate::archive;
use crate::grpc::{serve, streaming, unary, unary_of};
use crate::otlp_grpc::{admit, status, tenant};
use crate::run::{QueryFailure, blocking};
use crate::sampling;
use crate::state::AppState;
use axum::Router;
use futures_util::stream::{self, Stream};
use obs_codec::jaeger::proto::{
    self, Dependencies, DependencyLink, Empty, FindTracesRequest, GetDependenciesRequest,
    GetOperationsRequest, GetTraceRequest, GetTraceV3Request, Operation, Operations, OperationsV3,
    PostSpansRequest, SamplingParameters, SamplingResponse, Services, SpansChunk, Time, TraceQuery,
};
use obs_codec::otlp::encode_traces;
use obs_model::{DAY_NS, Span, TenantId, TimestampNs, TraceId};
use obs_process::Source;
use obs_traceql::{TagFilter, TraceSearch, adjust, dependencies, search, tell_apart};
use opentelemetry_proto::tonic::trace::v1::TracesData;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

/// Spans of one message of a stream.
const CHUNK_SPANS: usize = 500;

fn failed(f: &QueryFailure) -> Status {
    let code = match f {
        QueryFailure::Bad(_) | QueryFailure::TooMuch(_) => Code::InvalidArgument,
        QueryFailure::Busy => Code::ResourceExhausted,
        QueryFailure::Timeout => Code::DeadlineExceeded,
        QueryFailure::Internal(_) => Code::Internal,
    };
    Status::new(code, f.message())
}

async fn post_spans(
    state: AppState,
    r: Request<PostSpansRequest>,
) -> Result<Response<Empty>, Status> {
    let (tenant, held) = admit(&state, &r).await?;
    let batch = r.into_inner().batch.unwrap_or_default();
    let own = state.clone();
    let work = async move {
        receive::store(&own, &tenant, Source::Jaeger, Ok(proto::decode(batch))).await
    };
    held.work(&state, work).await.map_err(|e| status(&e))?;
    Ok(Response::new(Empty {}))
}

async fn sampling_strategy(
    state: AppState,
    r: Request<SamplingParameters>,
) -> Result<Response<SamplingResponse>, Status> {
    Ok(Response::new(sampling::proto(&state, &r.into_inner().service_name)))
}

/// Serves Jaeger's collector until the token is cancelled.
///
/// # Errors
/// When the transport fails.
pub async fn serve_collector(
    state: AppState,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let max = state.limits.expanded_bytes_max();
    let s = state.clone();
    let routes =
        unary_of(Router::new(), "/jaeger.api_v2.CollectorService/PostSpans", max, move |r| {
            post_spans(s.clone(), r)
        });
    let routes = unary(routes, "/jaeger.api_v2.SamplingManager/GetSamplingStrategy", move |r| {
        sampling_strategy(state.clone(), r)
    });
    serve(routes, listener, stop).await
}

async fn one_trace(
    state: &AppState,
    tenant: TenantId,
    id: TraceId,
) -> Result<Vec<Arc<Span>>, Status> {
    let spans = blocking(state, "trace_repository", "get_by_id", move |s, b| {
        Ok(archive::find_trace(s, &tenant, id, b)?.1)
    });
    let spans = spans.await.map_err(|f| failed(&f))?;
    if spans.is_empty() { Err(Status::not_found("trace not found")) } else { Ok(spans) }
}

fn search_of(q: TraceQuery, now: TimestampNs) -> TraceSearch {
    const HOUR_NS: i64 = 3_600_000_000_000;
    let some = |t: String| Some(t).filter(|t| !t.is_empty());
    let length = |t: Option<Time>| t.map(|t| t.ns()).filter(|ns| *ns > 0);
    let (start, end) = q.range();
    let end = end.unwrap_or(now);
    let limit = usize::try_from(q.limit).unwrap_or(0);
    TraceSearch {
        start: start.unwrap_or_else(|| end.add_nanos(-HOUR_NS)),
        end: end.add_nanos(1),
        service: some(q.service_name),
        operation: some(q.operation_name),
        tags: q.tags.into_iter().map(|(key, value)| TagFilter { key, value }).collect(),
        duration_min_ns: length(q.duration_min),
        duration_max_ns: length(q.duration_max),
        limit: if limit == 0 { 100 } else { limit.min(TRACES_MAX) },
    }
}

async fn found(
    state: &AppState,
    tenant: TenantId,
    r: FindTracesRequest,
) -> Result<Vec<Vec<Arc<Span>>>, Status> {
    let query = r.query.ok_or_else(|| Status::invalid_argument("missing query"))?;
    let query = search_of(query, state.now());
    let found = blocking(state, "trace_repository", "search", move |s, b| {
        Ok(search(&*s.source, &tenant, &query, b)?)
    });
    found.await.map_err(|f| failed(&f))
}

type Chunks<T> = stream::Iter<std::vec::IntoIter<Result<T, Status>>>;

/// Cuts traces into messages, none of which has spans of two traces.
fn chunks(traces: Vec<Vec<Arc<Span>>>, skew_max_ns: i64) -> Chunks<SpansChunk> {
    let mut out = Vec::new();
    for spans in traces {
        let adjusted = adjust(spans, skew_max_ns);
        let encoded: Vec<_> = adjusted
            .spans
            .iter()
            .zip(adjusted.warnings)
            .map(|(s, warnings)| proto::ProtoSpan { warnings, ..proto::encode(s) })
            .collect();
        out.extend(encoded.chunks(CHUNK_SPANS).map(|c| Ok(SpansChunk { spans: c.to_vec() })));
    }
    stream::iter(out)
}

fn otlp_chunks(traces: Vec<Vec<Arc<Span>>>) -> Chunks<TracesData> {
    let mut out = Vec::new();
    for spans in traces.into_iter().map(tell_apart) {
        out.extend(spans.chunks(CHUNK_SPANS).map(|c| Ok(encode_traces(c))));
    }
    stream::iter(out)
}

async fn get_trace(
    state: AppState,
    r: Request<GetTraceRequest>,
) -> Result<Response<impl Stream<Item = Result<SpansChunk, Status>> + Send + 'static>, Status> {
    let tenant = tenant(&state, &r)?;
    let id = r.into_inner().trace_id;
    let id = TraceId::from_slice(&id).ok_or_else(|| Status::invalid_argument("bad trace id"))?;
    let spans = one_trace(&state, tenant, id).await?;
    Ok(Response::new(chunks(vec![spans], state.limits.clock_skew_max_ns)))
}

async fn archive_trace(
    state: AppState,
    r: Request<GetTraceRequest>,
) -> Result<Response<Empty>, Status> {
    let tenant = tenant(&state, &r)?;
    let id = r.into_inner().trace_id;
    let id = TraceId::from_slice(&id).ok_or_else(|| Status::invalid_argument("bad trace id"))?;
    archive::keep(&state, &tenant, id).await.map_err(|r| status(&r))?;
    Ok(Response::new(Empty {}))
}

async fn find_traces(
    state: AppState,
    r: Request<FindTracesRequest>,
) -> Result<Response<impl Stream<Item = Result<SpansChunk, Status>> + Send + 'static>, Status> {
    let tenant = tenant(&state, &r)?;
    let traces = found(&state, tenant, r.into_inner()).await?;
    Ok(Response::new(chunks(traces, state.limits.clock_skew_max_ns)))
}

async fn get_trace_v3(
    state: AppState,
    r: Request<GetTraceV3Request>,
) -> Result<Response<impl Stream<Item = Result<TracesData, Status>> + Send + 'static>, Status> {
    let tenant = tenant(&state, &r)?;
    let id = TraceId::parse(&r.into_inner().trace_id);
    let id = id.ok_or_else(|| Status::invalid_argument("malformed trace ID"))?;
    Ok(Response::new(otlp_chunks(vec![one_trace(&state, tenant, id).await?])))
}

async fn find_traces_v3(
    state: AppState,
    r: Request<FindTracesRequest>,
) -> Result<Response<impl Stream<Item = Result<TracesData, Status>> + Send + 'static>, Status> {
    let tenant = tenant(&state, &r)?;
    Ok(Response::new(otlp_chunks(found(&state, tenant, r.into_inner()).await?)))
}

async fn services(state: AppState, r: Request<Empty>) -> Result<Response<Services>, Status> {
    let tenant = tenant(&state, &r)?;
    let all = all_operations(&state, &tenant).await.map_err(|f| failed(&f))?;
    Ok(Response::new(Services { services: all.into_keys().collect() }))
}

async fn operations_of(
    state: &AppState,
    r: Request<GetOperationsRequest>,
) -> Result<Vec<Operation>, Status> {
    let tenant = tenant(state, &r)?;
    let r = r.into_inner();
    let all = all_operations(state, &tenant).await.map_err(|f| failed(&f))?.remove(&r.service);
    let wanted = |k: &str| r.span_kind.is_empty() || r.span_kind == k;
    let list = all.unwrap_or_default().into_iter().filter(|(_, k)| wanted(k.as_str()));
    Ok(list.map(|(name, k)| Operation { name, span_kind: k.as_str().to_owned() }).collect())
}

async fn operations(
    state: AppState,
    r: Request<GetOperationsRequest>,
) -> Result<Response<Operations>, Status> {
    let operations = operations_of(&state, r).await?;
    let mut names: Vec<String> = operations.iter().map(|o| o.name.clone()).collect();
    names.dedup();
    Ok(Response::new(Operations { names, operations }))
}

async fn operations_v3(
    state: AppState,
    r: Request<GetOperationsRequest>,
) -> Result<Response<OperationsV3>, Status> {
    Ok(Response::new(OperationsV3 { operations: operations_of(&state, r).await? }))
}

async fn get_dependencies(
    state: AppState,
    r: Request<GetDependenciesRequest>,
) -> Result<Response<Dependencies>, Status> {
    let tenant = tenant(&state, &r)?;
    let r = r.into_inner();
    let at = |t: Option<Time>| t.map(|t| TimestampNs::from_nanos(t.ns()));
    let end = at(r.end_time).unwrap_or_else(|| state.now());
    let start = at(r.start_time).unwrap_or_else(|| end.add_nanos(-DAY_NS));
    let list = blocking(&state, "trace_repository", "dependencies", move |s, b| {
        Ok(dependencies(&*s.source, &tenant, start, end, b)?)
    });
    let link = |d: obs_traceql::Dependency| DependencyLink {
        parent: d.parent,
        child: d.child,
        call_count: d.calls,
        source: String::new(),
    };
    let list = list.await.map_err(|f| failed(&f))?;
    Ok(Response::new(Dependencies { dependencies: list.into_iter().map(link).collect() }))
}

/// Serves Jaeger's queries until the token is cancelled.
///
/// # Errors
/// When the transport fails.
pub async fn serve_query(
    state: AppState,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    /// A handler with a state of its own.
    macro_rules! with {
        ($f:path) => {{
            let state = state.clone();
            move |r| $f(state.clone(), r)
        }};
    }
    const V2: &str = "/jaeger.api_v2.QueryService/";
    const V3: &str = "/jaeger.api_v3.QueryService/";
    let mut r = Router::new();
    r = streaming(r, &format!("{V2}GetTrace"), with!(get_trace));
    r = streaming(r, &format!("{V2}FindTraces"), with!(find_traces));
    // Asks for a trace as GetTrace does, with times that are of no use here.
    r = unary(r, &format!("{V2}ArchiveTrace"), with!(archive_trace));
    r = unary(r, &format!("{V2}GetServices"), with!(services));
    r = unary(r, &format!("{V2}GetOperations"), with!(operations));
    r = unary(r, &format!("{V2}GetDependencies"), with!(get_dependencies));
    r = streaming(r, &format!("{V3}GetTrace"), with!(get_trace_v3));
    r = streaming(r, &format!("{V3}FindTraces"), with!(find_traces_v3));
    r = unary(r, &format!("{V3}GetServices"), with!(services));
    r = unary(r, &format!("{V3}GetOperations"), with!(operations_v3));
    serve(r, listener, stop).await
}
