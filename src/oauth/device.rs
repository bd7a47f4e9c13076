//! The sign-in of a person by another device (RFC 8628): RPOP shows an address
//! and a code, the person types the code in there, and RPOP asks until that is
//! done.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::answer::{self, Granted, seconds};
use super::client::{Form, Reach, post};
use super::error::Error;
use super::renewal::advised;
use super::url::Url;
use crate::domain::text::shown;
use crate::net::Connector;

/// Between two questions where the provider does not say (section 3.5).
const INTERVAL: Duration = Duration::from_secs(5);
/// Longer than that nobody waits between two questions.
const LONGEST_INTERVAL: Duration = Duration::from_mins(1);
/// What `slow_down` adds (section 3.5).
const SLOWER: Duration = Duration::from_secs(5);
/// However long a code lasts, it is not waited for longer.
const LONGEST: Duration = Duration::from_hours(1);

/// Who signs in, and where.
#[derive(Clone)]
pub struct Client {
    /// The token endpoint.
    pub token_url: Url,
    /// The client's identifier.
    pub id: String,
    /// Its secret, where the provider demands one.
    pub secret: Option<Zeroizing<String>>,
    /// The scopes, with blanks between.
    pub scope: String,
    /// How the provider is reached.
    pub reach: Reach,
}

impl Client {
    /// A form with what the client proves itself by.
    pub(super) fn form(&self) -> Form {
        let form = Form::default().with("client_id", &self.id);
        match &self.secret {
            Some(secret) => form.with("client_secret", secret),
            None => form,
        }
    }

    pub(super) async fn ask(
        &self,
        connector: &Connector,
        form: &Form,
        secrets: &[&str],
    ) -> Result<Granted, Error> {
        let answer = post(connector, &self.token_url, &self.reach, form, None).await?;
        let secrets: Vec<&str> =
            secrets.iter().copied().chain(self.secret.as_ref().map(|secret| secret.as_str())).collect();
        answer::token(&self.token_url.to_string(), &answer, &secrets)
    }
}

/// A sign-in that waits for its person.
pub struct Started {
    /// What to type in.
    pub user_code: String,
    /// Where.
    pub place: String,
    /// Where the code need not be typed in.
    pub direct: Option<String>,
    /// How long the code is good, from now.
    pub lasts: Duration,
    interval: Duration,
    device_code: Zeroizing<String>,
}

impl std::fmt::Debug for Started {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Started").field("lasts", &self.lasts).finish_non_exhaustive()
    }
}

/// Asks for a code.
///
/// # Errors
/// See [`Error`].
pub async fn begin(connector: &Connector, client: &Client, device_url: &Url) -> Result<Started, Error> {
    // The secret, if there is one, is for the token endpoint (section 3.1 wants
    // it here only of clients that were given one for it).
    let mut form = client.form();
    if !client.scope.is_empty() {
        form = form.with("scope", &client.scope);
    }
    let answer = post(connector, device_url, &client.reach, &form, None).await?;
    started(&device_url.to_string(), &answer).map_err(|error| advised(error, None))
}

/// Reads the answer of a device authorization endpoint (section 3.2).
///
/// # Errors
/// See [`Error`].
pub fn started(host: &str, answer: &answer::Answer) -> Result<Started, Error> {
    let mut object = answer::object(host, answer, &[])?;
    let wrong = |what: &str| Error::unavailable(format!("the answer of {host} begins no sign-in: {what}"));
    let mut text = |names: &[&str]| {
        names.iter().find_map(|name| match object.remove(*name) {
            Some(Value::String(text)) if !text.is_empty() && text.len() <= 8192 => Some(text),
            _ => None,
        })
    };
    let device_code = text(&["device_code"]).ok_or_else(|| wrong("device_code is missing"))?;
    let user_code = text(&["user_code"]).ok_or_else(|| wrong("user_code is missing"))?;
    // Google's name for it is older than the RFC.
    let place = text(&["verification_uri", "verification_url"])
        .ok_or_else(|| wrong("verification_uri is missing"))?;
    let direct = text(&["verification_uri_complete"]);
    for address in [Some(&place), direct.as_ref()].into_iter().flatten() {
        Url::parse(address).map_err(|why| wrong(&format!("verification_uri: {why}")))?;
    }
    let number = |name: &str| match object.get(name) {
        None => Ok(None),
        Some(value) => seconds(value).map(Some).ok_or_else(|| wrong(&format!("{name} is no number"))),
    };
    let lasts = number("expires_in")?.ok_or_else(|| wrong("expires_in is missing"))?;
    let interval = number("interval")?.unwrap_or(INTERVAL);
    Ok(Started {
        user_code: shown(user_code),
        place,
        direct,
        lasts: lasts.min(LONGEST),
        interval: interval.clamp(Duration::from_secs(1), LONGEST_INTERVAL),
        device_code: Zeroizing::new(device_code),
    })
}

/// Asks until the person has signed in, has refused, or the code is over.
///
/// # Errors
/// [`Error::Refused`] when there will be no token any more.
pub async fn wait(connector: &Connector, client: &Client, started: &Started) -> Result<Granted, Error> {
    let form = client
        .form()
        .with("grant_type", "urn:ietf:params:oauth:grant-type:device_code")
        .with("device_code", &started.device_code);
    let secrets = [started.device_code.as_str()];
    poll(started, &client.token_url.to_string(), || client.ask(connector, &form, &secrets)).await
}

async fn poll<F: Future<Output = Result<Granted, Error>>>(
    started: &Started,
    host: &str,
    mut ask: impl FnMut() -> F,
) -> Result<Granted, Error> {
    let until = Instant::now() + started.lasts;
    let mut interval = started.interval;
    let over = || Error::Refused {
        host: host.to_owned(),
        error: "expired_token".to_owned(),
        description: String::new(),
        advice: "nobody typed the code in while it lasted: begin again".to_owned(),
    };
    loop {
        if Instant::now() + interval >= until {
            tokio::time::sleep_until(until).await;
            return Err(over());
        }
        tokio::time::sleep(interval).await;
        match ask().await {
            Ok(granted) => return Ok(granted),
            Err(Error::Refused { host, error, description, .. }) => match &*error {
                "authorization_pending" => {}
                "slow_down" => interval += SLOWER,
                "expired_token" => return Err(over()),
                "access_denied" => {
                    let advice = "the sign-in was refused: begin again if that was a mistake".to_owned();
                    return Err(Error::Refused { host, error, description, advice });
                }
                _ => {
                    let advice = String::new();
                    return Err(advised(Error::Refused { host, error, description, advice }, None));
                }
            },
            // The sign-in goes on meanwhile (section 3.5: back off).
            Err(Error::Unavailable { passing: true, message, .. }) => {
                tracing::warn!("{message}: it is asked again");
                interval = (interval * 2).min(LONGEST_INTERVAL);
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;

    use super::*;
    use crate::domain::code::Code;

    fn answer(body: &str) -> answer::Answer {
        answer::Answer {
            status: 200,
            content_type: Some("application/json".into()),
            location: None,
            retry_after: None,
            body: Zeroizing::new(body.as_bytes().to_vec()),
        }
    }

    #[test]
    fn what_a_provider_begins_with_is_read() {
        // RFC 8628, section 3.2.
        let body = r#"{"device_code":"GmRhmhcxhwAzkoEqiMEg_DnyEysNkuNhszIySk9eS","user_code":"WDJB-MJHT",
            "verification_uri":"https://example.com/device",
            "verification_uri_complete":"https://example.com/device?user_code=WDJB-MJHT",
            "expires_in":1800,"interval":5}"#;
        let read = started("login.example", &answer(body)).unwrap();
        assert_eq!((&*read.user_code, &*read.place), ("WDJB-MJHT", "https://example.com/device"));
        assert_eq!((read.lasts, read.interval), (Duration::from_mins(30), Duration::from_secs(5)));
        assert!(read.direct.unwrap().ends_with("WDJB-MJHT"));
        // Google's.
        let body = r#"{"device_code":"d","user_code":"u","verification_url":"https://g.example/device",
            "expires_in":1e9,"interval":0}"#;
        let read = started("login.example", &answer(body)).unwrap();
        assert_eq!((read.lasts, read.interval), (LONGEST, Duration::from_secs(1)));
        for (bad, said) in [
            ("{}", "device_code"),
            (r#"{"device_code":1}"#, "device_code"),
            (r#"{"device_code":"d"}"#, "user_code"),
            (r#"{"device_code":"d","user_code":"u"}"#, "verification_uri"),
            (
                r#"{"device_code":"d","user_code":"u","verification_uri":"javascript:x","expires_in":1}"#,
                "https://",
            ),
            (r#"{"device_code":"d","user_code":"u","verification_uri":"http://a.example/"}"#, "clear text"),
            (r#"{"device_code":"d","user_code":"u","verification_uri":"https://a/"}"#, "expires_in"),
            (
                r#"{"device_code":"d","user_code":"u","verification_uri":"https://a/","expires_in":1,"interval":"x"}"#,
                "interval",
            ),
        ] {
            let error = started("login.example", &answer(bad)).unwrap_err();
            assert!(error.to_string().contains(said), "{bad}: {error}");
        }
    }

    fn refused(error: &str) -> Result<Granted, Error> {
        let (host, error) = ("login.example".to_owned(), error.to_owned());
        Err(Error::Refused { host, error, description: String::new(), advice: String::new() })
    }

    fn granted() -> Granted {
        Granted { access: Zeroizing::new("a".into()), lasts: None, refresh: None }
    }

    /// How the sign-in ended, and at which seconds was asked.
    async fn play(lasts: u64, script: Vec<Result<Granted, Error>>) -> (Result<Granted, Error>, Vec<u64>) {
        let started = Started {
            user_code: String::new(),
            place: String::new(),
            direct: None,
            lasts: Duration::from_secs(lasts),
            interval: Duration::from_secs(5),
            device_code: Zeroizing::new("d".into()),
        };
        let (begin, asked) = (Instant::now(), RefCell::new(Vec::new()));
        let script = RefCell::new(VecDeque::from(script));
        let result = poll(&started, "login.example", || {
            asked.borrow_mut().push(begin.elapsed().as_secs());
            let next = script.borrow_mut().pop_front();
            async { next.unwrap_or_else(|| refused("authorization_pending")) }
        })
        .await;
        (result, asked.into_inner())
    }

    #[tokio::test(start_paused = true)]
    async fn the_provider_sets_the_pace() {
        let script = vec![
            refused("authorization_pending"),
            refused("slow_down"),
            refused("authorization_pending"),
            Err(Error::passing("away", None)),
            Ok(granted()),
        ];
        let (result, asked) = play(600, script).await;
        assert!(result.is_ok());
        // Every 5 s, then every 10, and 20 after a failure.
        assert_eq!(asked, [5, 10, 20, 30, 50]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sign_in_ends() {
        let begin = Instant::now();
        let (result, asked) = play(23, Vec::new()).await;
        let error = result.unwrap_err();
        assert!(error.to_string().contains("begin again"), "{error}");
        assert_eq!((asked, begin.elapsed().as_secs()), (vec![5, 10, 15, 20], 23));
        for (last, said) in [
            ("expired_token", "begin again"),
            ("access_denied", "refused"),
            ("invalid_client", "clientId"),
            ("invalid_grant", "permissions"),
        ] {
            let (result, asked) = play(600, vec![refused(last), Ok(granted())]).await;
            let error = result.unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
            assert_eq!((error.code(), asked.len()), (Code::AuthFailed, 1));
        }
        let (result, _) = play(600, vec![Err(Error::unavailable("HTML")), Ok(granted())]).await;
        assert_eq!(result.unwrap_err().to_string(), "HTML");
    }
}
