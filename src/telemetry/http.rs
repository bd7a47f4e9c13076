//! `/metrics`, `/livez` and `/readyz`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::metrics::Metrics;

/// Connections at once: for a further one the oldest is closed. Whoever asks is
/// answered, however many others are idle.
const CONNECTIONS: usize = 64;
/// From a connection, or the end of a request, to the end of the next header.
const HEADER_TIME: Duration = Duration::from_secs(10);
/// A connection's whole life.
const CONNECTION_TIME: Duration = Duration::from_mins(2);
/// A scheduler that has not come round for so long hangs.
const LONGEST_SILENCE: Duration = Duration::from_mins(1);

/// What `/livez` and `/readyz` answer from.
#[derive(Debug)]
pub struct Health {
    ready: AtomicBool,
    started: Instant,
    beat: AtomicU64,
    /// Another part of the process, which must be well, too.
    other: OnceLock<Arc<Health>>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            ready: AtomicBool::new(false),
            started: Instant::now(),
            beat: AtomicU64::new(0),
            other: OnceLock::new(),
        }
    }
}

impl Health {
    /// Whether work is done: the configuration is read, and no shutdown has
    /// begun.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// The scheduler came round.
    pub fn beat(&self) {
        let passed = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.beat.store(passed, Ordering::Relaxed);
    }

    /// The process is well when this part and the `other` one are; at most one
    /// can be joined.
    pub fn join(&self, other: Arc<Self>) {
        // A second one changes nothing.
        self.other.set(other).ok();
    }

    fn alive(&self) -> bool {
        let beat = Duration::from_millis(self.beat.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(beat) < LONGEST_SILENCE
            && self.other.get().is_none_or(|other| other.alive())
    }

    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed) && self.other.get().is_none_or(|other| other.is_ready())
    }
}

/// Serving is impossible.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics on {address}: {source}; name another address with --listen, or --listen off")]
pub struct ListenError {
    address: SocketAddr,
    source: std::io::Error,
}

/// Takes the address.
///
/// # Errors
/// When it is in use or not ours; the text names `--listen`.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| ListenError { address, source })
}

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>, health: Arc<Health>) {
    let mut open: VecDeque<AbortHandle> = VecDeque::with_capacity(CONNECTIONS);
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = tasks.join_next() => continue,
        };
        let stream = match stream {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("a connection to the metrics endpoint was not accepted: {error}");
                // Without a pause a full table of files would make this spin.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() >= CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        let (metrics, health) = (Arc::clone(&metrics), Arc::clone(&health));
        let connection = tasks.spawn(async move {
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let response = answer(request.method(), request.uri().path(), &metrics, &health);
                std::future::ready(Ok::<_, Infallible>(response))
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIME)
                .max_buf_size(16 * 1024)
                .serve_connection(TokioIo::new(stream), service);
            // How a scraper's connection ends is of no interest.
            drop(tokio::time::timeout(CONNECTION_TIME, connection).await);
        });
        open.push_back(connection);
    }
}

fn answer(method: &Method, path: &str, metrics: &Metrics, health: &Health) -> Response<Full<Bytes>> {
    if method != Method::GET && method != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path {
        "/metrics" => match metrics.encode() {
            Ok(body) => {
                let mut response = Response::new(Full::new(Bytes::from(body)));
                let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                response.headers_mut().insert(CONTENT_TYPE, kind);
                response
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
        },
        "/livez" if health.alive() => text(StatusCode::OK, "ok\n"),
        "/livez" => text(StatusCode::SERVICE_UNAVAILABLE, "the scheduler does not come round\n"),
        "/readyz" if health.is_ready() => text(StatusCode::OK, "ok\n"),
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "starting or shutting down\n"),
        _ => text(StatusCode::NOT_FOUND, "there are /metrics, /livez and /readyz\n"),
    }
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn serving() -> (SocketAddr, Arc<Health>, tokio::task::JoinHandle<()>) {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let health = Arc::new(Health::default());
        let task = tokio::spawn(serve(listener, Arc::new(Metrics::new()), Arc::clone(&health)));
        (address, health, task)
    }

    #[tokio::test]
    async fn metrics_and_health_are_served() {
        let (address, health, task) = serving().await;
        assert!(get(address, "/metrics").await.contains("rpop_build_info"));
        assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 503"));
        health.set_ready(true);
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/").await.starts_with("HTTP/1.1 404"));
        let error = bind(address).await.unwrap_err().to_string();
        assert!(error.contains("--listen"), "{error}");
        task.abort();
    }

    #[tokio::test]
    async fn promtool_has_nothing_to_say_about_the_metrics() {
        let (address, _, task) = serving().await;
        let answer = get(address, "/metrics").await;
        let body = answer.split_once("\r\n\r\n").unwrap().1.to_owned();
        task.abort();
        let promtool = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(mut promtool) = promtool else {
            assert!(std::env::var_os("CI").is_none(), "promtool (Debian: prometheus) is missing");
            eprintln!("SKIPPED: promtool (Debian: prometheus) is missing");
            return;
        };
        std::io::Write::write_all(&mut promtool.stdin.take().unwrap(), body.as_bytes()).unwrap();
        let output = promtool.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && said.is_empty(), "{said}{body}");
    }

    #[tokio::test]
    async fn whoever_asks_is_answered_however_many_others_are_idle() {
        let (address, _, task) = serving().await;
        let mut idle = Vec::new();
        for _ in 0..3 * CONNECTIONS {
            idle.push(TcpStream::connect(address).await.unwrap());
            if idle.len() % CONNECTIONS == 0 {
                let answer = tokio::time::timeout(HEADER_TIME / 2, get(address, "/livez")).await.unwrap();
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            }
        }
        // They are bounded: the first ones were closed, and the last is open.
        let closed = tokio::time::timeout(HEADER_TIME / 2, idle[0].read(&mut [0; 8])).await.unwrap();
        assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
        let last = idle.last_mut().unwrap();
        last.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert!(last.read(&mut [0; 64]).await.unwrap() > 0);
        task.abort();
    }
}
