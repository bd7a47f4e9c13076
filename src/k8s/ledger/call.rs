//! Requests to the API server: each with a deadline, again where it may help,
//! and never for longer than an operation may take.

use std::future::Future;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

use kube::core::Status;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::super::error::unauthorized;
use crate::domain::text::{causes, shown};
use crate::engine::ports::LedgerError;

/// How long requests are waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// One request.
    pub(super) request: Duration,
    /// An operation with all its requests.
    pub(super) whole: Duration,
    /// The first pause before a request is made again; doubled each time.
    pub(super) pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(10),
            whole: Duration::from_secs(30),
            pause: Duration::from_millis(200),
        }
    }
}

/// The longest pause before a request is made again.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// No such object.
    Missing(String),
    /// It is not the version that was to be changed.
    Conflict(String),
    /// An object of that name is there.
    Exists(String),
    /// It may do better the next time. Whether it was carried out is unknown.
    Passing {
        /// For people.
        text: String,
        /// What the API server asks to wait.
        after: Option<Duration>,
    },
    /// A quota is used up.
    Quota(String),
    /// It will not be carried out.
    Refused(String),
}

impl Trouble {
    /// For people.
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Missing(text)
            | Self::Conflict(text)
            | Self::Exists(text)
            | Self::Passing { text, .. }
            | Self::Quota(text)
            | Self::Refused(text) => text,
        }
    }

    /// As the trouble of a ledger.
    pub(super) fn of(self, what: &str) -> LedgerError {
        let text = format!("{what}: {}", self.text());
        match self {
            Self::Quota(_) => LedgerError::Full(text),
            _ => LedgerError::Unavailable(text),
        }
    }
}

impl From<kube::Error> for Trouble {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => of_status(&status),
            // Sent or not, answered in part or not: nobody knows.
            kube::Error::HyperError(_)
            | kube::Error::Service(_)
            | kube::Error::SerdeError(_)
            | kube::Error::FromUtf8(_)
            | kube::Error::ReadEvents(_)
            | kube::Error::HttpError(_)
            | kube::Error::Auth(_) => Self::Passing {
                text: format!("the API server cannot be asked: {}", causes(&error)),
                after: None,
            },
            other => Self::Refused(causes(&other)),
        }
    }
}

fn of_status(status: &Status) -> Trouble {
    let text = shown(&status.message);
    let details = status.details.as_ref();
    let terminating = details
        .is_some_and(|details| details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating"));
    match status.code {
        404 => Trouble::Missing(text),
        409 if status.reason == "AlreadyExists" => Trouble::Exists(text),
        409 => Trouble::Conflict(text),
        403 if terminating => Trouble::Refused(format!("the namespace is being deleted ({text})")),
        403 if status.message.contains("exceeded quota") => Trouble::Quota(text),
        // A token that expired is read anew.
        401 => Trouble::Passing { text: unauthorized(&text), after: None },
        408 | 429 | 500.. => {
            let seconds = details.map_or(0, |details| details.retry_after_seconds);
            let after = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
            Trouble::Passing { text: format!("the API server says {}: {text}", status.code), after }
        }
        _ => Trouble::Refused(text),
    }
}

/// The time that one operation has left.
#[derive(Clone, Debug)]
pub(super) struct Tries {
    patience: Patience,
    until: Instant,
    pause: Duration,
}

impl Tries {
    pub(super) fn new(patience: Patience) -> Self {
        Self { patience, until: Instant::now() + patience.whole, pause: patience.pause }
    }

    /// Makes a request, once.
    pub(super) async fn once<T>(
        &self,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Trouble> {
        let deadline = self.until.min(Instant::now() + self.patience.request);
        match timeout_at(deadline, request).await {
            Ok(answer) => Ok(answer?),
            Err(_) => {
                Err(Trouble::Passing { text: "the API server does not answer".to_owned(), after: None })
            }
        }
    }

    /// Makes a request that changes nothing, or that may well be carried out
    /// twice, until it is answered.
    pub(super) async fn again<T, F>(&mut self, mut request: impl FnMut() -> F) -> Result<T, Trouble>
    where
        F: Future<Output = Result<T, kube::Error>>,
    {
        loop {
            match self.once(request()).await {
                Err(trouble) => self.wait(trouble).await?,
                answered => return answered,
            }
        }
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// The trouble itself, if it does not pass or there is no time left.
    pub(super) async fn wait(&mut self, trouble: Trouble) -> Result<(), Trouble> {
        let Trouble::Passing { after, .. } = &trouble else { return Err(trouble) };
        let jitter = f64::from(u32::try_from(random() >> 32).unwrap_or_default()) / f64::from(u32::MAX);
        let pause = self.pause.mul_f64(0.5 + jitter).max(after.unwrap_or_default());
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        let next = Instant::now() + pause;
        if next >= self.until {
            return Err(trouble);
        }
        sleep_until(next).await;
        Ok(())
    }
}

/// Randomness for salts and nonces, by way of the keys that the standard
/// library draws from the system for its hash tables.
pub(super) fn random() -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u64(0x7270_6f70);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    fn api(code: u16, reason: &str, message: &str) -> kube::Error {
        kube::Error::Api(Status::failure(message, reason).with_code(code).boxed())
    }

    #[test]
    fn answers_are_told_apart() {
        let of = |code, reason| Trouble::from(api(code, reason, "m"));
        assert!(matches!(of(404, "NotFound"), Trouble::Missing(_)));
        assert!(matches!(of(409, "AlreadyExists"), Trouble::Exists(_)));
        assert!(matches!(of(409, "Conflict"), Trouble::Conflict(_)));
        assert!(matches!(of(403, "Forbidden"), Trouble::Refused(_)));
        let unknown = Trouble::from(api(401, "Unauthorized", "Unauthorized")).of("x");
        assert!(
            matches!(unknown, LedgerError::Unavailable(text) if text.contains("ServiceAccount still exists"))
        );
        for code in [401, 429, 500, 503, 504] {
            assert!(matches!(of(code, ""), Trouble::Passing { .. }), "{code}");
        }
        let quota = Trouble::from(api(403, "Forbidden", "exceeded quota: small, requested: configmaps=1"));
        assert!(matches!(quota.of("x"), LedgerError::Full(text) if text.contains("quota: small")));
        let details = serde_json::json!({"causes": [{"reason": "NamespaceTerminating"}]});
        let details = serde_json::from_value(details).unwrap();
        let status = Status::failure("m", "Forbidden").with_code(403).with_details(details);
        let error = Trouble::from(kube::Error::Api(status.boxed())).of("ConfigMap a/b");
        assert!(
            matches!(error, LedgerError::Unavailable(text) if text.contains("namespace is being deleted"))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_passes_is_tried_again_and_not_for_ever() {
        let patience = Patience::default();
        let mut tries = Tries::new(patience);
        let mut count = 0;
        let answer = tries
            .again(|| {
                count += 1;
                ready(if count < 4 { Err(api(503, "", "m")) } else { Ok(7) })
            })
            .await;
        assert_eq!((answer, count), (Ok(7), 4));
        let began = Instant::now();
        let mut tries = Tries::new(patience);
        let answer = tries.again(|| ready(Err::<(), _>(api(429, "", "too many")))).await;
        assert!(matches!(answer, Err(Trouble::Passing { text, .. }) if text.contains("too many")));
        assert!(began.elapsed() <= patience.whole && began.elapsed() > patience.whole / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_never_answers_is_left_in_the_end() {
        let began = Instant::now();
        let mut tries = Tries::new(Patience::default());
        let answer = tries.again(std::future::pending::<Result<(), kube::Error>>).await;
        assert!(matches!(answer, Err(Trouble::Passing { text, .. }) if text.contains("does not answer")));
        assert!(began.elapsed() <= Duration::from_secs(30));
    }

    #[tokio::test(start_paused = true)]
    async fn the_pause_that_the_api_server_asks_for_is_kept() {
        let mut tries = Tries::new(Patience::default());
        let began = Instant::now();
        let busy = |seconds| Trouble::Passing { text: "t".into(), after: Some(Duration::from_secs(seconds)) };
        tries.wait(busy(7)).await.unwrap();
        assert!(began.elapsed() >= Duration::from_secs(7));
        tries.wait(busy(3600)).await.unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(8));
    }
}
