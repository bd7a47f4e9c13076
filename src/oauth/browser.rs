//! The sign-in of a person by a browser on this machine (RFC 8252, with RFC
//! 7636): for providers that do not give tokens for mail by a device code, as
//! Google. The browser brings the provider's answer to a port of the loopback
//! interface that is open for nothing else.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use zeroize::Zeroizing;

use super::answer::Granted;
use super::client::Form;
use super::device::Client;
use super::error::Error;
use super::renewal::advised;
use super::url::Url;
use crate::domain::code::Code;
use crate::domain::text::shown;
use crate::net::Connector;

/// A person gets so long.
const LONGEST: Duration = Duration::from_mins(10);
/// One request of the browser.
const REQUEST: Duration = Duration::from_secs(10);
/// Browsers open some connections ahead.
const CONNECTIONS: usize = 16;
/// Octets of the provider's answer in the address.
const MOST_CODE: usize = 8192;

/// A sign-in that waits for its person.
pub struct Started {
    /// Where the person goes.
    pub address: String,
    listener: TcpListener,
    redirect: String,
    state: String,
    verifier: Zeroizing<String>,
}

impl std::fmt::Debug for Started {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Started").field("redirect", &self.redirect).finish_non_exhaustive()
    }
}

/// Opens a port of the loopback interface (0: any) and makes the address.
///
/// # Errors
/// The port is taken.
pub async fn begin(client: &Client, auth_url: &Url, port: u16) -> Result<Started, Error> {
    let local = |error: io::Error| {
        Error::local(Code::ConfigInvalid, format!("port {port} of 127.0.0.1 cannot be opened: {error}"))
    };
    let listener = TcpListener::bind(("127.0.0.1", port)).await.map_err(local)?;
    let redirect = format!("http://127.0.0.1:{}/", listener.local_addr().map_err(local)?.port());
    let random = || {
        let mut octets = Zeroizing::new([0; 32]);
        File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut *octets)).map_err(local)?;
        Ok(URL_SAFE_NO_PAD.encode(*octets))
    };
    let (state, verifier) = (random()?, Zeroizing::new(random()?));
    let form = Form::default()
        .with("response_type", "code")
        .with("client_id", &client.id)
        .with("redirect_uri", &redirect)
        .with("scope", &client.scope)
        .with("state", &state)
        .with("code_challenge", &URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes())))
        .with("code_challenge_method", "S256")
        // Google's way of asking for a refresh token, and for one each time;
        // to others it says nothing.
        .with("access_type", "offline")
        .with("prompt", "consent");
    let scheme = if auth_url.tls { "https" } else { "http" };
    let joint = if auth_url.path.contains('?') { '&' } else { '?' };
    let address = format!("{scheme}://{}{}{joint}{}", auth_url.authority, auth_url.path, form.as_str());
    Ok(Started { address, listener, redirect, state, verifier })
}

/// Waits for the browser, ten minutes at most, and exchanges what it brings for
/// a token.
///
/// # Errors
/// See [`Error`].
pub async fn wait(connector: &Connector, client: &Client, started: Started) -> Result<Granted, Error> {
    let Started { listener, redirect, state, verifier, .. } = started;
    let brought = tokio::time::timeout(LONGEST, serve(listener, state)).await;
    let code = match brought {
        Ok(brought) => brought.map_err(|(error, description)| {
            let host = client.token_url.to_string();
            let advice = "the sign-in was refused: begin again if that was a mistake".to_owned();
            Error::Refused { host, error, description, advice }
        })?,
        Err(_) => {
            return Err(Error::unavailable(format!(
                "nobody signed in within {} minutes: begin again",
                LONGEST.as_secs() / 60
            )));
        }
    };
    let form = client
        .form()
        .with("grant_type", "authorization_code")
        .with("code", &code)
        .with("redirect_uri", &redirect)
        .with("code_verifier", &verifier);
    let granted = client.ask(connector, &form, &[&code, &verifier]).await;
    granted.map_err(|error| advised(error, None))
}

/// The code, or the provider's error and what it says to people.
type Brought = Result<Zeroizing<String>, (String, String)>;

async fn serve(listener: TcpListener, state: String) -> Brought {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let (found, mut brought) = mpsc::channel::<Brought>(1);
    let seen = Arc::new(Mutex::new(Some(found)));
    let state: Arc<str> = state.into();
    // All of them end with this function.
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(code) = brought.recv() => {
                // The browser gets its page.
                drop(tokio::time::timeout(Duration::from_secs(1), tasks.join_next()).await);
                return code;
            }
            Some(_) = tasks.join_next() => continue,
        };
        let Ok((stream, _)) = stream else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let (state, seen) = (Arc::clone(&state), Arc::clone(&seen));
        tasks.spawn(async move {
            let _place = place;
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let (page, brought) = visit(&request, &state);
                if let Some(brought) = brought
                    && let Some(found) = seen.lock().unwrap_or_else(PoisonError::into_inner).take()
                {
                    found.try_send(brought).ok();
                }
                std::future::ready(Ok::<_, Infallible>(page))
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST)
                .max_buf_size(32 * 1024)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // How a browser's connection ends is of no interest.
            drop(tokio::time::timeout(REQUEST, connection).await);
        });
    }
}

/// The answer to a request of the browser, and what it has brought.
fn visit<B>(request: &Request<B>, state: &str) -> (Response<Full<Bytes>>, Option<Brought>) {
    let query = request.uri().query().unwrap_or("");
    let field = |name: &str| {
        query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            (key == name).then(|| decoded(value))
        })
    };
    // Any page of the browser can send it here: only who knows the state was
    // sent by us.
    let ours = request.method() == Method::GET && field("state").is_some_and(|its| its == state);
    let (status, text, brought) = match (ours, field("code"), field("error")) {
        (true, Some(code), None) if !code.is_empty() && code.len() <= MOST_CODE => {
            (200, "Signed in: this page can be closed.\n", Some(Ok(Zeroizing::new(code))))
        }
        (true, _, Some(error)) => {
            let description = shown(field("error_description").unwrap_or_default());
            (200, "The sign-in was refused: RPOP says why.\n", Some(Err((shown(error), description))))
        }
        _ => (404, "Nothing here.\n", None),
    };
    let mut page = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *page.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or_default();
    (page, brought)
}

fn decoded(text: &str) -> String {
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(octet) = rest.next() {
        let digit = |octet: Option<u8>| {
            octet.and_then(|octet| char::from(octet).to_digit(16)).and_then(|digit| u8::try_from(digit).ok())
        };
        match octet {
            b'+' => octets.push(b' '),
            b'%' => {
                let mut ahead = rest.clone();
                if let (Some(high), Some(low)) = (digit(ahead.next()), digit(ahead.next())) {
                    octets.push(high << 4 | low);
                    rest = ahead;
                } else {
                    octets.push(octet);
                }
            }
            octet => octets.push(octet),
        }
    }
    String::from_utf8_lossy(&octets).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visited(method: Method, target: &str) -> (u16, Option<Brought>) {
        let request = Request::builder().method(method).uri(target).body(()).unwrap();
        let (page, brought) = visit(&request, "s-1");
        (page.status().as_u16(), brought)
    }

    #[test]
    fn only_the_provider_brings_a_code() {
        let (status, brought) = visited(Method::GET, "/?state=s-1&code=4%2F0A+b&scope=x");
        assert_eq!((status, brought.unwrap().unwrap().as_str()), (200, "4/0A b"));
        let refusal = "/?error=access_denied&error_description=n%0Ao%1b&state=s-1";
        let (_, brought) = visited(Method::GET, refusal);
        assert_eq!(brought.unwrap().unwrap_err(), ("access_denied".into(), "n\\no\\u{1b}".into()));
        let long = format!("/?state=s-1&code={}", "x".repeat(9000));
        for (method, target) in [
            (Method::GET, "/favicon.ico"),
            (Method::GET, "/?code=forged"),
            (Method::GET, "/?code=forged&state=s-2"),
            (Method::GET, "/?error=x&state="),
            (Method::GET, "/?state=s-1"),
            (Method::GET, "/?state=s-1&code="),
            (Method::POST, "/?state=s-1&code=x"),
            (Method::GET, &long),
        ] {
            let (status, brought) = visited(method, target);
            assert!(status == 404 && brought.is_none(), "{target:.60}");
        }
    }

    #[test]
    fn odd_escapes_stay_as_they_are() {
        assert_eq!(decoded("a%2"), "a%2");
        assert_eq!(decoded("%zz%41%"), "%zzA%");
        assert_eq!(decoded("%ff"), "\u{fffd}");
    }
}
