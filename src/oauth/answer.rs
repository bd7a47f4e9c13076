//! What a token endpoint answers (RFC 6749, sections 5.1 and 5.2). Without
//! I/O: octets in, a token or the reason why there is none out.

use std::time::Duration;

use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::error::Error;
use crate::domain::text::{escape, shown};

/// Octets of an answer that are read; those of large providers have 5 KiB.
pub const MOST_OCTETS: usize = 128 * 1024;
/// Octets of an access token; what a login can send.
const MOST_ACCESS: usize = 32 * 1024;
/// Octets of a refresh token.
pub const MOST_REFRESH: usize = 16 * 1024;
/// However long a provider says that a token lasts, it is not kept longer.
const LONGEST: Duration = Duration::from_hours(24);
/// Redirects are not followed; their targets are named.
const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];

/// An answer as it came in.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The value of Content-Type.
    pub content_type: Option<String>,
    /// Of Location.
    pub location: Option<String>,
    /// Of Retry-After, where it is a number of seconds.
    pub retry_after: Option<Duration>,
    /// The content.
    pub body: Zeroizing<Vec<u8>>,
}

/// A token.
pub struct Granted {
    /// The access token: printable ASCII.
    pub access: Zeroizing<String>,
    /// How long it lasts, from the moment at which it was asked for. `None`
    /// where the provider does not say.
    pub lasts: Option<Duration>,
    /// The refresh token to use from now on.
    pub refresh: Option<Zeroizing<String>>,
}

impl std::fmt::Debug for Granted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Granted")
            .field("lasts", &self.lasts)
            .field("refresh", &self.refresh.is_some())
            .finish_non_exhaustive()
    }
}

/// Reads the answer of a token endpoint at `host`. `secrets` are what was sent:
/// a provider that repeats them in its texts does not bring them into logs.
///
/// # Errors
/// [`Error::Refused`] with the provider's word; [`Error::Unavailable`] for all
/// that is neither that nor a token.
pub fn token(host: &str, answer: &Answer, secrets: &[&str]) -> Result<Granted, Error> {
    let mut object = object(host, answer, secrets)?;
    let wrong = |what: &str| Error::unavailable(format!("the answer of {host} is no token: {what}"));
    match object.get("token_type") {
        Some(Value::String(kind)) if kind.eq_ignore_ascii_case("bearer") => {}
        Some(Value::String(kind)) => {
            return Err(wrong(&format!("token_type is `{}`, and only Bearer can be used", escape(kind))));
        }
        Some(_) => return Err(wrong("token_type is no text")),
        None => return Err(wrong("token_type is missing")),
    }
    let access = match object.remove("access_token") {
        Some(Value::String(text)) => Zeroizing::new(text),
        Some(_) => return Err(wrong("access_token is no text")),
        None => return Err(wrong("access_token is missing")),
    };
    if access.is_empty() || !access.bytes().all(|octet| octet.is_ascii_graphic()) {
        return Err(wrong("access_token is empty, or holds what no token has"));
    }
    if access.len() > MOST_ACCESS {
        return Err(wrong("access_token is longer than 32768 octets"));
    }
    let refresh = match object.remove("refresh_token") {
        Some(Value::String(text)) if text.is_empty() => None,
        Some(Value::String(text)) => Some(Zeroizing::new(text)),
        Some(Value::Null) | None => None,
        Some(_) => return Err(wrong("refresh_token is no text")),
    };
    if refresh.as_deref().is_some_and(|refresh| !is_refresh_token(refresh)) {
        return Err(wrong("refresh_token is too long, or holds what no token has"));
    }
    let lasts = match object.get("expires_in") {
        None | Some(Value::Null) => None,
        Some(value) => Some(seconds(value).ok_or_else(|| wrong("expires_in is no number of seconds"))?),
    };
    Ok(Granted { access, lasts: lasts.map(|lasts| lasts.min(LONGEST)), refresh })
}

/// Whether a text can be a refresh token: printable ASCII (RFC 6749, A.17).
pub fn is_refresh_token(text: &str) -> bool {
    !text.is_empty() && text.len() <= MOST_REFRESH && text.bytes().all(|octet| matches!(octet, b' '..=b'~'))
}

/// The JSON object of a successful answer.
pub(super) fn object(host: &str, answer: &Answer, secrets: &[&str]) -> Result<Map<String, Value>, Error> {
    let status = answer.status;
    if REDIRECTS.contains(&status) {
        let place = answer.location.as_deref().map_or_else(String::new, |at| format!(" to {}", shown(at)));
        return Err(Error::unavailable(format!(
            "{host} redirects{place}, which is not followed, since the request holds secrets: if that is the \
             provider's token endpoint, write it as tokenUrl"
        )));
    }
    if status == 429 || status >= 500 {
        let message = format!("{host} is not well: it answers with HTTP status {status}");
        return Err(Error::passing(message, answer.retry_after));
    }
    let json = is_json(answer.content_type.as_deref());
    let parsed = if json { serde_json::from_slice::<Map<String, Value>>(&answer.body).ok() } else { None };
    if !(200..300).contains(&status) {
        return Err(match parsed {
            Some(object) if object.get("error").is_some_and(Value::is_string) => {
                refused(host, &object, secrets)
            }
            _ => Error::unavailable(format!(
                "{host} answers with HTTP status {status} and {}: is tokenUrl right?",
                what(answer, json)
            )),
        });
    }
    let Some(object) = parsed else {
        return Err(Error::unavailable(format!(
            "{host} answers with {} where a JSON object is due: is tokenUrl right?",
            what(answer, json)
        )));
    };
    // Some providers say no under status 200.
    if object.get("error").is_some_and(Value::is_string) {
        return Err(refused(host, &object, secrets));
    }
    Ok(object)
}

fn what(answer: &Answer, json: bool) -> String {
    match &answer.content_type {
        _ if answer.body.is_empty() => "nothing".to_owned(),
        _ if json => "what is no JSON object".to_owned(),
        Some(kind) => escape(kind),
        None => "content of no type".to_owned(),
    }
}

fn is_json(content_type: Option<&str>) -> bool {
    let Some(kind) = content_type else { return false };
    let kind = kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}

fn refused(host: &str, object: &Map<String, Value>, secrets: &[&str]) -> Error {
    let text = |name: &str| {
        let text = object.get(name).and_then(Value::as_str).unwrap_or("");
        shown(redacted(text, secrets))
    };
    let error = text("error");
    let description = text("error_description");
    if matches!(&*error, "server_error" | "temporarily_unavailable") {
        return Error::passing(format!("{host} is not well: {error}"), None);
    }
    Error::Refused { host: host.to_owned(), error, description, advice: String::new() }
}

fn redacted(text: &str, secrets: &[&str]) -> String {
    let mut text = text.to_owned();
    for secret in secrets.iter().filter(|secret| secret.len() >= 4) {
        text = text.replace(secret, "***");
    }
    text
}

/// Seconds: a number, or (as some providers have it) one in quotes. What is
/// negative is over already.
pub(super) fn seconds(value: &Value) -> Option<Duration> {
    let seconds = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) if text.len() <= 20 => text.trim().parse().ok()?,
        _ => return None,
    };
    if seconds.is_nan() {
        return None;
    }
    Some(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::code::Code;

    fn answer(status: u16, kind: &str, body: impl AsRef<[u8]>) -> Answer {
        Answer {
            status,
            content_type: (!kind.is_empty()).then(|| kind.to_owned()),
            location: None,
            retry_after: None,
            body: Zeroizing::new(body.as_ref().to_vec()),
        }
    }

    fn read(status: u16, kind: &str, body: impl AsRef<[u8]>) -> Result<Granted, Error> {
        token("login.example", &answer(status, kind, body), &["s3cret", "r3fresh"])
    }

    const JSON: &str = "application/json; charset=utf-8";

    #[test]
    fn a_token_is_read() {
        let body = r#"{"token_type":"bEarer","access_token":"a.b-c","expires_in":3599,"ext_expires_in":0,
            "refresh_token":"r2","scope":"x y","id_token":"x"}"#;
        let granted = read(200, JSON, body).unwrap();
        assert_eq!(&**granted.access, "a.b-c");
        assert_eq!(granted.lasts, Some(Duration::from_secs(3599)));
        assert_eq!(granted.refresh.as_deref().map(|text| &**text), Some("r2"));
        assert!(!format!("{granted:?}").contains("a.b-c"));
        let lasts = |value: &str| {
            let body = format!(r#"{{"token_type":"Bearer","access_token":"a","expires_in":{value}}}"#);
            read(200, "application/vnd.x+json", body).map(|granted| granted.lasts.map(|it| it.as_secs()))
        };
        assert_eq!(lasts("\"3600\"").unwrap(), Some(3600));
        assert_eq!(lasts("59.9").unwrap(), Some(59));
        assert_eq!(lasts("-5").unwrap(), Some(0));
        assert_eq!(lasts("1e300").unwrap(), Some(86_400));
        assert_eq!(lasts("null").unwrap(), None);
        for bad in ["\"soon\"", "[]", "true", "\"NaN\""] {
            assert!(lasts(bad).unwrap_err().to_string().contains("expires_in"), "{bad}");
        }
    }

    #[test]
    fn wrong_answers_say_what_is_wrong_with_them() {
        let long = format!(r#"{{"token_type":"Bearer","access_token":"{}"}}"#, "x".repeat(40_000));
        for (status, kind, body, said) in [
            (200, "text/html", "<html>login</html>", "text/html"),
            (200, "", "{}", "no type"),
            (200, JSON, "", "nothing"),
            (200, JSON, "<html>", "no JSON object"),
            (200, JSON, "[1]", "no JSON object"),
            (200, JSON, "{\"access_token\":\"a\"", "no JSON object"),
            (200, JSON, "{}", "token_type is missing"),
            (200, JSON, r#"{"token_type":"mac","access_token":"a"}"#, "only Bearer"),
            (200, JSON, r#"{"token_type":1,"access_token":"a"}"#, "no text"),
            (200, JSON, r#"{"token_type":"Bearer"}"#, "access_token is missing"),
            (200, JSON, r#"{"token_type":"Bearer","access_token":7}"#, "access_token is no text"),
            (200, JSON, r#"{"token_type":"Bearer","access_token":""}"#, "empty"),
            (200, JSON, r#"{"token_type":"Bearer","access_token":"a\r\nDELE 1"}"#, "no token has"),
            (200, JSON, &long, "longer than 32768"),
            (200, JSON, r#"{"token_type":"Bearer","access_token":"a","refresh_token":{}}"#, "refresh_token"),
            (
                200,
                JSON,
                r#"{"token_type":"Bearer","access_token":"a","refresh_token":"\n"}"#,
                "refresh_token",
            ),
            (404, "text/html", "<html>", "HTTP status 404"),
            (404, JSON, "{}", "HTTP status 404"),
            (401, JSON, r#"{"error":{"code":1}}"#, "HTTP status 401"),
            (204, "", "", "nothing"),
        ] {
            let error = read(status, kind, body).unwrap_err();
            assert!(error.to_string().contains(said), "{status} {body:.80}: {error}");
            assert_eq!(error.code(), Code::TokenUnavailable, "{error}");
            assert!(error.to_string().contains("login.example"), "{error}");
        }
    }

    #[test]
    fn refusals_are_told_and_cannot_harm_a_log() {
        let body = "{\"error\":\"invalid_grant\",\"error_description\":\"AADSTS70008: \\u001b[2J r3fresh \
                    has\\r\\nexpired\",\"error_uri\":\"https://x\"}";
        let error = read(400, JSON, body).unwrap_err();
        assert!(error.is_invalid_grant());
        assert_eq!((error.code(), error.is_transient()), (Code::AuthFailed, false));
        let text = error.to_string();
        assert!(text.contains("invalid_grant (AADSTS70008: \\u{1b}[2J *** has\\r\\nexpired)"), "{text}");
        let long = format!(r#"{{"error":"{0}","error_description":"{0}"}}"#, "x".repeat(9000));
        assert!(read(400, JSON, long).unwrap_err().to_string().chars().count() < 500);
        assert!(read(200, JSON, r#"{"error":"invalid_client"}"#).unwrap_err().is_invalid_client());
    }

    #[test]
    fn what_passes_is_told_from_what_does_not() {
        for (status, body) in [
            (500, ""),
            (503, r#"{"error":"invalid_grant"}"#),
            (429, ""),
            (400, r#"{"error":"temporarily_unavailable"}"#),
        ] {
            let error = read(status, JSON, body).unwrap_err();
            assert!(matches!(error, Error::Unavailable { passing: true, .. }), "{error}");
        }
        let mut moved = answer(307, "", "");
        moved.location = Some("https://elsewhere.example/token\u{1b}".to_owned());
        let error = token("login.example", &moved, &[]).unwrap_err();
        assert!(error.to_string().contains("elsewhere.example/token\\u{1b}"), "{error}");
        assert!(matches!(error, Error::Unavailable { passing: false, .. }));
    }
}
