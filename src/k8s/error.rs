//! What the API server, or the way to it, had against a request.

use std::time::Duration;

use kube::core::Status;
use kube::runtime::watcher;

use crate::domain::text::shown;

/// Why a request to the API server was not done, as far as a caller would do
/// something else about it. Texts of the server are capped and escaped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// 404: no such object, or no such kind of object.
    #[error("not found: {said}")]
    NotFound {
        /// The server's words.
        said: String,
    },
    /// 409: the object is at another version, or exists already.
    #[error("conflict: {said}")]
    Conflict {
        /// The server's words.
        said: String,
    },
    /// 401: the server does not know who we are, or no longer.
    #[error("{}", unauthorized(said))]
    Unauthorized {
        /// The server's words.
        said: String,
    },
    /// 403: what we may do.
    #[error("not allowed: {said}")]
    Forbidden {
        /// The server's words.
        said: String,
    },
    /// 400, 422: refused by the schema, by a rule or by an admission policy.
    #[error("refused: {said}")]
    Invalid {
        /// The server's words.
        said: String,
    },
    /// 410: the version asked for is forgotten; list again.
    #[error("expired: {said}")]
    Gone {
        /// The server's words.
        said: String,
    },
    /// 429: later, please.
    #[error("the API server is too busy")]
    TooMany {
        /// When to come back, if it said so.
        retry_after: Option<Duration>,
    },
    /// 5xx: it has trouble of its own.
    #[error("the API server has trouble ({code}): {said}")]
    Unavailable {
        /// The HTTP status.
        code: u16,
        /// The server's words.
        said: String,
    },
    /// It could not be reached, or broke off.
    #[error("the API server cannot be reached")]
    Unreachable(#[source] Box<kube::Error>),
    /// No answer in time.
    #[error("the API server did not answer within {:.1} s", after.as_secs_f32())]
    TimedOut {
        /// How long was waited.
        after: Duration,
    },
    /// An answer that cannot be read, or a request that cannot be made.
    #[error("no way to talk to the API server")]
    Other(#[source] Box<kube::Error>),
}

impl ApiError {
    /// Whether a later try may succeed without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::TooMany { .. }
            | Self::Unavailable { .. }
            | Self::Unreachable(_)
            | Self::TimedOut { .. }
            | Self::Conflict { .. }
            // A token that expired is read anew.
            | Self::Unauthorized { .. }
            | Self::Gone { .. } => true,
            Self::NotFound { .. } | Self::Forbidden { .. } | Self::Invalid { .. } | Self::Other(_) => false,
        }
    }

    /// Whether the request may have been carried out in spite of the error.
    pub fn is_uncertain(&self) -> bool {
        matches!(
            self,
            Self::Unavailable { .. } | Self::Unreachable(_) | Self::TimedOut { .. } | Self::Other(_)
        )
    }

    /// A word of a closed list, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not_found",
            Self::Conflict { .. } => "conflict",
            Self::Unauthorized { .. } => "unauthorized",
            Self::Forbidden { .. } => "forbidden",
            Self::Invalid { .. } => "invalid",
            Self::Gone { .. } => "gone",
            Self::TooMany { .. } => "too_many",
            Self::Unavailable { .. } => "unavailable",
            Self::Unreachable(_) => "unreachable",
            Self::TimedOut { .. } => "timeout",
            Self::Other(_) => "other",
        }
    }

    /// How long to wait at least, where the server said so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TooMany { retry_after } => *retry_after,
            _ => None,
        }
    }
}

/// How long a watch that failed is to be left alone at least, where the API
/// server said so: it does while it makes its caches, and when it is busy. At
/// most half a minute.
pub fn patience(error: &watcher::Error) -> Option<Duration> {
    let (watcher::Error::InitialListFailed(kube::Error::Api(status))
    | watcher::Error::WatchStartFailed(kube::Error::Api(status))
    | watcher::Error::WatchFailed(kube::Error::Api(status))
    | watcher::Error::WatchError(status)) = error
    else {
        return None;
    };
    of_status(status).retry_after().map(|asked| asked.min(Duration::from_secs(30)))
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => of_status(&status),
            kube::Error::Service(cause) => match cause.downcast::<super::client::TooSlow>() {
                Ok(slow) => Self::TimedOut { after: slow.after },
                Err(cause) => Self::Unreachable(Box::new(kube::Error::Service(cause))),
            },
            error @ (kube::Error::HyperError(_) | kube::Error::ReadEvents(_) | kube::Error::HttpError(_)) => {
                Self::Unreachable(Box::new(error))
            }
            error => Self::Other(Box::new(error)),
        }
    }
}

impl From<watcher::Error> for ApiError {
    fn from(error: watcher::Error) -> Self {
        match error {
            watcher::Error::InitialListFailed(error)
            | watcher::Error::WatchStartFailed(error)
            | watcher::Error::WatchFailed(error) => error.into(),
            watcher::Error::WatchError(status) => of_status(&status),
            error @ watcher::Error::NoResourceVersion => {
                Self::Unavailable { code: 200, said: shown(error.to_string()) }
            }
        }
    }
}

fn of_status(status: &Status) -> ApiError {
    let said = shown(&status.message);
    match status.code {
        404 => ApiError::NotFound { said },
        409 => ApiError::Conflict { said },
        401 => ApiError::Unauthorized { said },
        403 => ApiError::Forbidden { said },
        400 | 422 => ApiError::Invalid { said },
        410 => ApiError::Gone { said },
        429 => {
            let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
            let retry_after = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
            ApiError::TooMany { retry_after }
        }
        code => ApiError::Unavailable { code, said },
    }
}

/// What a 401 means, which is no matter of rights.
pub(super) fn unauthorized(said: &str) -> String {
    format!(
        "the API server does not accept the credentials, or no longer (401 {said}): in a pod see whether its \
         ServiceAccount still exists and its token is mounted, elsewhere whether the kubeconfig's user is still valid \
         (kubectl auth whoami)"
    )
}

/// A request, given up after `limit`.
///
/// # Errors
/// As the request, or [`ApiError::TimedOut`].
pub async fn within<T>(
    limit: Duration,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ApiError> {
    match tokio::time::timeout(limit, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(ApiError::TimedOut { after: limit }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(code: u16, message: &str) -> ApiError {
        kube::Error::Api(Box::new(Status::failure(message, "Whatever").with_code(code))).into()
    }

    #[test]
    fn a_busy_server_says_when_to_come_back() {
        let details = serde_json::from_value(serde_json::json!({"retryAfterSeconds": 3})).unwrap();
        let status = Status::failure("slow down", "TooManyRequests").with_code(429).with_details(details);
        let error = ApiError::from(kube::Error::Api(Box::new(status)));
        assert_eq!(error.retry_after(), Some(Duration::from_secs(3)));
        assert!(error.is_transient() && !error.is_uncertain());
        assert_eq!(answered(429, "").retry_after(), None);
    }

    #[test]
    fn a_watch_is_opened_again_when_the_server_says() {
        let busy = |seconds: u32| {
            let details = serde_json::from_value(serde_json::json!({"retryAfterSeconds": seconds})).unwrap();
            let text = "storage is (re)initializing";
            let status = Status::failure(text, "TooManyRequests").with_code(429).with_details(details);
            Box::new(status)
        };
        let started = watcher::Error::WatchStartFailed(kube::Error::Api(busy(1)));
        assert_eq!(patience(&started), Some(Duration::from_secs(1)));
        assert_eq!(patience(&watcher::Error::WatchError(busy(3600))), Some(Duration::from_secs(30)));
        let gone = Status::failure("too old", "Expired").with_code(410);
        assert_eq!(patience(&watcher::Error::WatchError(Box::new(gone))), None);
    }

    #[test]
    fn only_what_may_pass_by_itself_is_transient() {
        let told: Vec<_> = [400, 401, 403, 404, 409, 410, 422, 429, 500, 503, 504]
            .map(|code| (code, answered(code, "x").is_transient(), answered(code, "x").reason()))
            .to_vec();
        assert_eq!(
            told,
            [
                (400, false, "invalid"),
                (401, true, "unauthorized"),
                (403, false, "forbidden"),
                (404, false, "not_found"),
                (409, true, "conflict"),
                (410, true, "gone"),
                (422, false, "invalid"),
                (429, true, "too_many"),
                (500, true, "unavailable"),
                (503, true, "unavailable"),
                (504, true, "unavailable"),
            ]
        );
    }

    #[test]
    fn words_of_the_server_are_one_short_line() {
        let said = answered(409, &format!("two\nlines {}", "x".repeat(5_000))).to_string();
        assert!(said.starts_with("conflict: two\\nlines xxx") && said.len() < 300, "{said}");
    }

    #[test]
    fn unknown_credentials_are_no_matter_of_rights_and_nothing_is_dumped() {
        use crate::domain::text::causes;

        let status = || Box::new(Status::failure("Unauthorized", "Unauthorized").with_code(401));
        for error in [
            watcher::Error::InitialListFailed(kube::Error::Api(status())),
            watcher::Error::WatchStartFailed(kube::Error::Api(status())),
            watcher::Error::WatchFailed(kube::Error::Api(status())),
            watcher::Error::WatchError(status()),
        ] {
            let error = ApiError::from(error);
            let text = causes(&error);
            assert_eq!(error.reason(), "unauthorized", "{text}");
            assert!(
                text.contains("does not accept the credentials") && text.contains("401 Unauthorized"),
                "{text}"
            );
            assert!(text.contains("ServiceAccount") && text.contains("kubeconfig"), "{text}");
            assert!(!text.contains("Status {") && !text.contains("not allowed"), "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_given_up_in_time() {
        let never = std::future::pending::<Result<(), kube::Error>>();
        let error = within(Duration::from_millis(2_500), never).await.unwrap_err();
        assert_eq!(error.to_string(), "the API server did not answer within 2.5 s");
        assert!(error.is_uncertain());
    }
}
