//! Serving connections by hand: hyper below, the router above, nothing between.
//!
//! Most connections are streams that wait. Served this way such a connection holds its socket, one small buffer and
//! its follower.
//!
//! Shutdown: the listener closes, streams end at once, requests that have begun are finished, idle connections are
//! closed. What is not finished after ten seconds is cut off.

use std::io;
use std::time::Duration;

use axum::Router;
use http::StatusCode;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::health::{self, Health};
use crate::{App, router_until};

/// How long a connection may stay between two requests, or within the head of one. Longer than the common clients
/// keep an idle connection, so that it is they who close it: a request on a connection that the server is just closing
/// is lost.
const HEAD_TIME_MAX: Duration = Duration::from_secs(120);
/// The largest head of a request, and the most that is buffered of a connection.
const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// How many connections there may be. Further ones wait in the listener's queue.
const CONNECTIONS_MAX: usize = 65_536;
/// How long requests may take to finish once the server shuts down.
const GRACE: Duration = Duration::from_secs(10);
/// How long to wait after the system refused a connection, most likely for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the API until `shutdown` is cancelled and what was begun is finished.
pub async fn serve(listener: TcpListener, app: App, shutdown: CancellationToken) -> io::Result<()> {
    let router = router_until(app, shutdown.clone());
    serve_router(listener, router, shutdown).await
}

/// Serves the probes alone, for a process without the API, in the same way.
pub async fn serve_health(
    listener: TcpListener,
    health: Health,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let router = health::router(health).fallback(async || {
        (StatusCode::NOT_FOUND, "this process has no API: it serves /livez, /readyz and /health\n")
    });
    serve_router(listener, router, shutdown).await
}

async fn serve_router(listener: TcpListener, router: Router, shutdown: CancellationToken) -> io::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let next = tokio::select! {
            () = shutdown.cancelled() => Next::Stop,
            Some(_) = connections.join_next() => Next::Finished,
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => Next::Accepted(accepted),
        };
        match next {
            Next::Stop => break,
            Next::Finished => {}
            Next::Accepted(Ok((stream, _))) => {
                connections.spawn(connection(stream, router.clone(), shutdown.clone()));
            }
            Next::Accepted(Err(error)) if is_of_one_connection(&error) => {}
            Next::Accepted(Err(error)) => {
                tracing::warn!(%error, "a connection was refused by the system");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let finished = timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await;
    if finished.is_err() {
        tracing::warn!(connections = connections.len(), "connections were cut off at shutdown");
        connections.shutdown().await;
    }
    Ok(())
}

/// What may happen next to a listener.
enum Next {
    Stop,
    Finished,
    Accepted(io::Result<(TcpStream, std::net::SocketAddr)>),
}

async fn connection(stream: TcpStream, router: Router, shutdown: CancellationToken) {
    // A frame of a stream is small and must leave at once.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_buf_size(BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(serving);
    let served = tokio::select! {
        served = &mut serving => served,
        () = shutdown.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = served {
        // Mostly clients that went away; nobody can act on it.
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Whether the failure concerns only the connection that was to be accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
