//! Methods of gRPC services whose messages are written by hand: a route each.

use axum::Router;
use axum::body::Body;
use axum::routing::post;
use futures_util::stream::Stream;
use http::{Request as HttpRequest, Response as HttpResponse};
use std::future::Future;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::codec::CompressionEncoding;
use tonic::server::Grpc;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;

/// Bytes of a request that asks; those that bring spans have limits of their own.
const QUESTION_BYTES_MAX: usize = 1 << 20;

fn server<Req, Res>(bytes_max: usize) -> Grpc<ProstCodec<Res, Req>>
where
    Req: prost::Message + Default + Send + 'static,
    Res: prost::Message + Default + Send + 'static,
{
    Grpc::new(ProstCodec::default())
        .max_decoding_message_size(bytes_max)
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Zstd)
        .send_compressed(CompressionEncoding::Gzip)
}

/// Adds a method that answers with one message; requests may have `bytes_max` bytes.
pub(crate) fn unary_of<Req, Res, F, Fut>(
    router: Router,
    path: &str,
    bytes_max: usize,
    f: F,
) -> Router
where
    Req: prost::Message + Default + Send + Sync + 'static,
    Res: prost::Message + Default + Send + Sync + 'static,
    F: Fn(Request<Req>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Response<Res>, Status>> + Send + 'static,
{
    router.route(
        path,
        post(move |request: HttpRequest<Body>| async move {
            let service = tower::service_fn(f);
            let mut grpc = server::<Req, Res>(bytes_max);
            let answer: HttpResponse<tonic::body::Body> = grpc.unary(service, request).await;
            answer.map(Body::new)
        }),
    )
}

/// Adds a method that answers a question with one message.
pub(crate) fn unary<Req, Res, F, Fut>(router: Router, path: &str, f: F) -> Router
where
    Req: prost::Message + Default + Send + Sync + 'static,
    Res: prost::Message + Default + Send + Sync + 'static,
    F: Fn(Request<Req>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Response<Res>, Status>> + Send + 'static,
{
    unary_of(router, path, QUESTION_BYTES_MAX, f)
}

/// Adds a method that answers a question with several messages.
pub(crate) fn streaming<Req, Res, F, Fut, S>(router: Router, path: &str, f: F) -> Router
where
    Req: prost::Message + Default + Send + Sync + 'static,
    Res: prost::Message + Default + Send + Sync + 'static,
    F: Fn(Request<Req>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Response<S>, Status>> + Send + 'static,
    S: Stream<Item = Result<Res, Status>> + Send + 'static,
{
    router.route(
        path,
        post(move |request: HttpRequest<Body>| async move {
            let service = tower::service_fn(f);
            let mut grpc = server::<Req, Res>(QUESTION_BYTES_MAX);
            let answer: HttpResponse<tonic::body::Body> =
                grpc.server_streaming(service, request).await;
            answer.map(Body::new)
        }),
    )
}

async fn unknown() -> HttpResponse<Body> {
    Status::new(Code::Unimplemented, "no such method").into_http()
}

/// Serves methods until the token is cancelled, then finishes open requests.
///
/// # Errors
/// When the transport fails.
pub(crate) async fn serve(
    router: Router,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    tonic::transport::Server::builder()
        .add_routes(tonic::service::Routes::from(router.fallback(unknown)))
        .serve_with_incoming_shutdown(TcpIncoming::from(listener), stop.cancelled_owned())
        .await
}
