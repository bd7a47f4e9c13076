//! Requests to a provider: a form goes out, a bounded answer comes in. One
//! connection a request, no redirects, a deadline for all of it.

use std::fmt::Write as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION,
    RETRY_AFTER, USER_AGENT,
};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::answer::{Answer, MOST_OCTETS};
use super::error::Error;
use super::url::Url;
use crate::domain::code::Code;
use crate::domain::text::{causes, shown};
use crate::domain::work::{SecretKind, SecretRef, TlsMode, TlsPolicy};
use crate::net::{AddressPolicy, ConnectOptions, Connector, TlsMaterial};

/// The header of an answer.
const MOST_HEADER: usize = 64 * 1024;

/// What holds for the requests to one provider.
#[derive(Clone, Debug)]
pub struct Reach {
    /// Certificates to trust in place of the platform's, in PEM.
    pub ca_pem: Option<Vec<u8>>,
    /// Which addresses may be connected to.
    pub policy: AddressPolicy,
    /// TCP and TLS.
    pub connect: Duration,
    /// From the request to the end of the answer.
    pub reply: Duration,
}

/// The fields of a form (`application/x-www-form-urlencoded`); wiped when it is
/// dropped.
#[derive(Clone, Default)]
pub struct Form(Zeroizing<String>);

impl std::fmt::Debug for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Form(***)")
    }
}

impl Form {
    /// With one more field.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        // Growing would leave copies behind: there is room for all of it.
        let mut longer =
            Zeroizing::new(String::with_capacity(self.0.len() + name.len() + 3 * value.len() + 2));
        longer.push_str(&self.0);
        if !longer.is_empty() {
            longer.push('&');
        }
        longer.push_str(name);
        longer.push('=');
        encode(&mut longer, value);
        self.0 = longer;
        self
    }

    /// As a query.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

fn encode(to: &mut String, text: &str) {
    for octet in text.bytes() {
        match octet {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' => to.push(char::from(octet)),
            // Writing to a String does not fail.
            _ => drop(write!(to, "%{octet:02X}")),
        }
    }
}

/// The value of Authorization for a client that proves itself by HTTP Basic:
/// both parts are form-encoded first (RFC 6749, section 2.3.1).
pub(super) fn basic(client_id: &str, secret: &str) -> Zeroizing<String> {
    let mut pair = Zeroizing::new(String::with_capacity(3 * (client_id.len() + secret.len()) + 1));
    encode(&mut pair, client_id);
    pair.push(':');
    encode(&mut pair, secret);
    let coded = Zeroizing::new(STANDARD.encode(pair.as_bytes()));
    Zeroizing::new(format!("Basic {}", &**coded))
}

/// Posts `form` to `url` and reads the answer, whatever it is.
///
/// # Errors
/// [`Error::Unavailable`] when there is none within the deadlines of `reach`,
/// or a larger one than is read.
pub async fn post(
    connector: &Connector,
    url: &Url,
    reach: &Reach,
    form: &Form,
    authorization: Option<&str>,
) -> Result<Answer, Error> {
    let mode = if url.tls { TlsMode::Implicit } else { TlsMode::None };
    // That there is material is what the reference stands for here.
    let ca = reach.ca_pem.as_ref().map(|_| SecretRef {
        kind: SecretKind::Secret,
        namespace: "".into(),
        name: "".into(),
        key: "".into(),
    });
    let tls = TlsPolicy { mode, ca, ..TlsPolicy::default() };
    let material = TlsMaterial { ca_pem: reach.ca_pem.clone(), client_pem: None };
    let options = ConnectOptions { policy: Some(&reach.policy), source: None };
    let opened = connector.open(&url.host, url.port, &options, &tls, &material, reach.connect).await;
    let stream = opened.map_err(|error| Error::Unavailable {
        // Whoever wrote the URL is to know that the address was refused, and
        // nothing more of it.
        code: match error.code() {
            code @ (Code::AddressRefused | Code::TlsFailed | Code::SecretInvalid) => code,
            _ => Code::TokenUnavailable,
        },
        message: format!("the token endpoint cannot be asked: {}", causes(&error)),
        passing: error.is_transient(),
        retry_after: None,
    })?;
    if !url.tls && !stream.peer().is_some_and(|peer| peer.ip().is_loopback()) {
        return Err(Error::unavailable(format!(
            "{url} is not on this machine: write an https:// address as tokenUrl"
        )));
    }
    let request = request(url, form, authorization)?;
    match timeout(reach.reply, exchange(TokioIo::new(stream), request, url)).await {
        Ok(answer) => answer,
        Err(_) => {
            Err(Error::passing(format!("{url} does not answer within {} s", reach.reply.as_secs_f32()), None))
        }
    }
}

fn request(url: &Url, form: &Form, authorization: Option<&str>) -> Result<Request<Full<Bytes>>, Error> {
    let wrong = |_| Error::local(Code::ConfigInvalid, format!("no request can be made for {url}"));
    let mut request = Request::post(&url.path)
        .header(HOST, &url.authority)
        .header(ACCEPT, "application/json")
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .header(CONNECTION, "close")
        .header(USER_AGENT, concat!("rpop/", env!("CARGO_PKG_VERSION")));
    if let Some(authorization) = authorization {
        let mut value = HeaderValue::from_str(authorization).map_err(|error| wrong(error.into()))?;
        value.set_sensitive(true);
        request = request.header(AUTHORIZATION, value);
    }
    request.body(Full::new(Bytes::copy_from_slice(form.as_str().as_bytes()))).map_err(wrong)
}

async fn exchange(
    stream: TokioIo<crate::net::Stream>,
    request: Request<Full<Bytes>>,
    url: &Url,
) -> Result<Answer, Error> {
    let broke = |error: &hyper::Error| {
        if error.is_parse() || error.is_parse_too_large() {
            let what = shown(error.to_string());
            Error::unavailable(format!("{url} does not speak HTTP, or more of it than is read: {what}"))
        } else {
            Error::passing(format!("the connection to {url} broke: {}", causes(error)), None)
        }
    };
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MOST_HEADER)
        .handshake(stream)
        .await
        .map_err(|error| broke(&error))?;
    let talk = async {
        let response = sender.send_request(request).await.map_err(|error| broke(&error))?;
        read(response, url, broke).await
    };
    let mut talk = std::pin::pin!(talk);
    tokio::select! {
        answer = &mut talk => answer,
        // The connection's end is told to the request, too.
        _ = connection => talk.await,
    }
}

async fn read(
    response: Response<Incoming>,
    url: &Url,
    broke: impl Fn(&hyper::Error) -> Error,
) -> Result<Answer, Error> {
    let (head, mut body) = response.into_parts();
    let mut octets = Zeroizing::new(Vec::with_capacity(8 * 1024));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broke(&error))?;
        let Some(data) = frame.data_ref() else { continue };
        if octets.len() + data.len() > MOST_OCTETS {
            return Err(Error::unavailable(format!(
                "{url} answers with more than {} KiB: is tokenUrl right?",
                MOST_OCTETS / 1024
            )));
        }
        octets.extend_from_slice(data);
    }
    Ok(Answer {
        status: head.status.as_u16(),
        content_type: text(&head.headers, &CONTENT_TYPE),
        location: text(&head.headers, &LOCATION),
        retry_after: text(&head.headers, &RETRY_AFTER)
            .and_then(|text| text.trim().parse().ok())
            .map(Duration::from_secs),
        body: octets,
    })
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_encoded_and_hide_what_they_hold() {
        let form =
            Form::default().with("grant_type", "refresh_token").with("refresh_token", "a+b/c=&d é\r\n");
        assert_eq!(form.as_str(), "grant_type=refresh_token&refresh_token=a%2Bb%2Fc%3D%26d%20%C3%A9%0D%0A");
        assert!(!format!("{form:?}").contains("refresh"));
        // "a:b" and "c d", each encoded.
        assert_eq!(&**basic("a:b", "c d"), format!("Basic {}", STANDARD.encode("a%3Ab:c%20d")).as_str());
    }
}
