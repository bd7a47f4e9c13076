//! A gate before the API server: counts requests, refuses some, and loses the
//! answers of others.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use kube::client::Body;
use kube::{Client, Config};
use tokio::net::TcpListener;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Pass,
    /// It is answered with this status and not carried out.
    Refuse(u16),
    /// The connection ends; it was not carried out.
    Drop,
    /// The connection ends; it was carried out.
    LoseAnswer,
}

type Judge = Box<dyn FnMut(&Method, &str) -> Fate + Send>;

/// See the module.
#[derive(Clone)]
pub struct Gate {
    port: u16,
    passed: Arc<Mutex<Vec<String>>>,
    judge: Arc<Mutex<Judge>>,
}

impl Gate {
    /// Before what `client` talks to, with its rights.
    pub async fn before(client: Client) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let judge: Judge = Box::new(|_, _| Fate::Pass);
        let gate = Self {
            port: listener.local_addr().unwrap().port(),
            passed: Arc::default(),
            judge: Arc::new(Mutex::new(judge)),
        };
        let this = gate.clone();
        tokio::spawn(async move {
            loop {
                let Ok((socket, _)) = listener.accept().await else { return };
                let (this, client) = (this.clone(), client.clone());
                tokio::spawn(async move {
                    let serve = service_fn(|request| this.answer(&client, request));
                    let mut http = hyper::server::conn::http1::Builder::new();
                    http.timer(TokioTimer::new()).serve_connection(TokioIo::new(socket), serve).await.ok();
                });
            }
        });
        gate
    }

    /// A client that talks through it.
    pub fn client(&self) -> Client {
        let url = format!("http://127.0.0.1:{}", self.port).parse().unwrap();
        Client::try_from(Config::new(url)).unwrap()
    }

    /// Judges requests from now on: by their methods and paths.
    pub fn judge(&self, judge: impl FnMut(&Method, &str) -> Fate + Send + 'static) {
        *self.judge.lock().unwrap() = Box::new(judge);
    }

    /// All requests pass.
    pub fn open(&self) {
        self.judge(|_, _| Fate::Pass);
    }

    /// The requests since it was last asked: `GET /path`.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.passed.lock().unwrap())
    }

    /// Of these the ones that write.
    pub fn writes(&self) -> Vec<String> {
        let mut requests = self.requests();
        requests.retain(|request| !request.starts_with("GET"));
        requests
    }

    async fn answer(
        &self,
        client: &Client,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Lost> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let last = path.rsplit('/').next().unwrap();
        self.passed.lock().unwrap().push(format!("{} {last}", parts.method));
        let fate = (self.judge.lock().unwrap())(&parts.method, &path);
        match fate {
            Fate::Drop => return Err(Lost),
            Fate::Refuse(code) => {
                let status = serde_json::json!({
                    "kind": "Status", "apiVersion": "v1", "status": "Failure",
                    "message": "the gate says no", "reason": "Gate", "code": code,
                });
                let mut answer = Response::new(Full::from(status.to_string()));
                *answer.status_mut() = StatusCode::from_u16(code).unwrap();
                return Ok(answer);
            }
            Fate::Pass | Fate::LoseAnswer => {}
        }
        let octets = body.collect().await.map_err(|_| Lost)?.to_bytes();
        let mut onward = Request::builder().method(parts.method).uri(parts.uri);
        for (name, value) in &parts.headers {
            if name == "content-type" || name == "accept" {
                onward = onward.header(name, value);
            }
        }
        let answer =
            client.send(onward.body(Body::from(octets.to_vec())).unwrap()).await.map_err(|_| Lost)?;
        let (parts, body) = answer.into_parts();
        let octets = body.collect().await.map_err(|_| Lost)?.to_bytes();
        if fate == Fate::LoseAnswer {
            return Err(Lost);
        }
        let mut answer = Response::new(Full::from(octets));
        *answer.status_mut() = parts.status;
        for name in ["content-type", "retry-after"] {
            if let Some(value) = parts.headers.get(name) {
                answer.headers_mut().insert(name, value.clone());
            }
        }
        Ok(answer)
    }
}

/// Ends the connection without an answer.
#[derive(Debug)]
struct Lost;

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("lost")
    }
}

impl std::error::Error for Lost {}

impl From<Infallible> for Lost {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}
