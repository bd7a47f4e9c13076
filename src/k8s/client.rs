//! The way to the API server: whose words we speak, and how long we wait.

use std::fmt;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Frame, SizeHint};
use hyper::{Request, Response};
use kube::client::{ClientBuilder, DynBody};
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use rustix::time::{ClockId, clock_gettime};
use tokio::time::{Instant, Sleep};
use tower::{BoxError, Layer, Service};

use crate::domain::shards::Incarnation;
use crate::domain::shards::timing::Boot;
use crate::domain::text::shown;

/// How long the API server may think about a request, and how long it may
/// pause within an answer (but for watches, whose silence means nothing new).
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// For a connection, TLS included.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// A watch is asked to end after less than five minutes; silence beyond that
/// is a dead connection.
const WATCH_SILENCE: Duration = Duration::from_secs(330);

/// In a pod: its namespace.
const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// Why there is no way to the API server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// A worker or controller must know which pod it is.
    #[error(
        "POD_NAME is not set: it must hold the name of this pod (or any name of its own, outside of one)"
    )]
    NoPodName,
    /// Such a name would not fit into names of objects.
    #[error("POD_NAME or POD_NAMESPACE is not a name of a Kubernetes object")]
    BadName,
    /// A worker or controller must know where shards, slices and leases are:
    /// by guessing, two of an installation might not find each other.
    #[error(
        "the namespace of RPOP is not known: set POD_NAMESPACE to the one that it is installed in, like \
         POD_NAMESPACE=rpop-system (there is no ServiceAccount of a pod here, and the kubeconfig's context names none)"
    )]
    NoNamespace,
    /// Neither a kubeconfig nor a pod.
    #[error(
        "no API server is known: set KUBECONFIG to a kubeconfig (there is none in ~/.kube/config, and this is no \
         pod: KUBERNETES_SERVICE_HOST is not set)"
    )]
    NoServer,
    /// A kubeconfig that does not lead to an API server.
    #[error("the kubeconfig cannot be used: {}", first_line(_0))]
    Kubeconfig(Box<KubeconfigError>),
    /// A pod without the files that it needs.
    #[error("this pod cannot talk to the API server (does it have its ServiceAccount's token mounted?)")]
    InCluster(#[source] Box<InClusterError>),
    /// These do not fit together.
    #[error("the settings for the API server cannot be used")]
    Client(#[source] Box<kube::Error>),
}

impl ClientError {
    /// Whether a later try may succeed without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        false
    }

    /// A word of a closed list, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoPodName | Self::BadName | Self::NoNamespace => "pod",
            Self::NoServer | Self::Kubeconfig(_) | Self::InCluster(_) | Self::Client(_) => "config",
        }
    }
}

/// One process in a cluster.
#[derive(Clone)]
pub struct Cluster {
    /// Every request has a deadline; none is repeated behind the caller's back.
    pub client: Client,
    /// Where shards, slices and leases are.
    pub namespace: Arc<str>,
    /// The pod of this process.
    pub pod: Arc<str>,
    /// This process.
    pub me: Incarnation,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("namespace", &self.namespace)
            .field("me", &self.me)
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// By `KUBECONFIG` or as a pod, with `POD_NAME` and `POD_NAMESPACE`. No
    /// request is made.
    ///
    /// Without `POD_NAMESPACE` it is the namespace of the kubeconfig's context,
    /// or the pod's own.
    ///
    /// # Errors
    /// When these do not say enough.
    pub async fn connect() -> Result<Self, ClientError> {
        let pod = variable("POD_NAME").ok_or(ClientError::NoPodName)?;
        let (config, context) = configuration().await?;
        let file = || std::fs::read_to_string(NAMESPACE_FILE).ok();
        let namespace = namespace(variable("POD_NAMESPACE"), context, file)?;
        Self::with(config, &pod, &namespace)
    }

    /// As `pod` of `namespace`, by a configuration of the caller's.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn with(mut config: Config, pod: &str, namespace: &str) -> Result<Self, ClientError> {
        if !is_name(pod, 253 - "rpop-worker-".len()) || !is_name(namespace, 63) {
            return Err(ClientError::BadName);
        }
        config.connect_timeout = Some(CONNECT_DEADLINE);
        config.write_timeout = Some(REQUEST_DEADLINE);
        // A write that was repeated unseen would meet its own traces and be
        // taken for a conflict; and callers have deadlines.
        config.default_retry = false;
        let builder =
            ClientBuilder::try_from(config).map_err(|error| ClientError::Client(Box::new(error)))?;
        Ok(Self {
            client: builder.with_layer(&Deadlines).build(),
            namespace: namespace.into(),
            pod: pod.into(),
            me: Incarnation::new(pod, draw_boot()),
        })
    }
}

/// A variable of the environment that is set to something.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The way to the API server, and the namespace that the kubeconfig's context
/// names. A kubeconfig goes before a pod's own rights, as with kubectl.
async fn configuration() -> Result<(Config, Option<String>), ClientError> {
    let broken = |error| ClientError::Kubeconfig(Box::new(error));
    let (mut config, context) = match Kubeconfig::read() {
        Ok(kubeconfig) => {
            let context = context_namespace(&kubeconfig);
            let options = KubeConfigOptions::default();
            (Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(broken)?, context)
        }
        // Whoever names one does not want another way to be taken in silence.
        Err(error) if variable("KUBECONFIG").is_some() => return Err(broken(error)),
        Err(KubeconfigError::FindPath) => (in_pod()?, None),
        Err(KubeconfigError::ReadConfig(cause, _)) if cause.kind() == std::io::ErrorKind::NotFound => {
            (in_pod()?, None)
        }
        Err(error) => return Err(broken(error)),
    };
    config.apply_debug_overrides();
    Ok((config, context))
}

fn in_pod() -> Result<Config, ClientError> {
    Config::incluster().map_err(|error| match error {
        InClusterError::ReadEnvironmentVariable(_) => ClientError::NoServer,
        error => ClientError::InCluster(Box::new(error)),
    })
}

fn context_namespace(kubeconfig: &Kubeconfig) -> Option<String> {
    let current = kubeconfig.current_context.as_ref()?;
    let named = kubeconfig.contexts.iter().find(|named| named.name == *current)?;
    named.context.as_ref()?.namespace.clone()
}

/// Where shards, slices and leases are. What says it, if not `POD_NAMESPACE`,
/// is logged.
fn namespace(
    variable: Option<String>,
    context: Option<String>,
    file: impl FnOnce() -> Option<String>,
) -> Result<String, ClientError> {
    if let Some(namespace) = variable {
        return Ok(namespace);
    }
    let trimmed = |text: String| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
    let context = context.and_then(trimmed).map(|namespace| (namespace, "the kubeconfig's context"));
    let found = context.or_else(|| Some((trimmed(file()?)?, "the pod's ServiceAccount")));
    let (namespace, source) = found.ok_or(ClientError::NoNamespace)?;
    tracing::info!("POD_NAMESPACE is not set: the namespace of RPOP is {} by {source}", shown(&namespace));
    Ok(namespace)
}

/// What a parser says further down quotes the text, and with it perhaps a token.
fn first_line(error: &KubeconfigError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// A DNS subdomain, as the API server wants names of objects to be.
/// Whether it is a name of an object, and no longer than that.
pub(super) fn is_name(text: &str, longest: usize) -> bool {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.len() <= longest
        && text.split('.').all(|part| {
            part.starts_with(word) && part.ends_with(word) && part.chars().all(|c| word(c) || c == '-')
        })
}

/// Tells this process from those before it in the same pod.
fn draw_boot() -> u32 {
    // The keys of the standard library's hash tables are drawn from the system.
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u64(boot_now().0);
    hasher.write_u32(std::process::id());
    u32::try_from(hasher.finish() >> 32).unwrap_or(0)
}

/// Now, by the clock that goes on while the machine sleeps and that nobody
/// sets.
pub fn boot_now() -> Boot {
    let now = clock_gettime(ClockId::Boottime);
    let (seconds, nanos) = (u64::try_from(now.tv_sec), u64::try_from(now.tv_nsec));
    Boot(seconds.unwrap_or(0) * 1_000 + nanos.unwrap_or(0) / 1_000_000)
}

/// No answer, or a pause within one, beyond the deadline.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("no answer within {} s", after.as_secs())]
pub(super) struct TooSlow {
    pub(super) after: Duration,
}

/// Gives every request a deadline.
struct Deadlines;

impl<S> Layer<S> for Deadlines {
    type Service = Deadlined<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Deadlined { inner }
    }
}

struct Deadlined<S> {
    inner: S,
}

impl<S, R> Service<Request<R>> for Deadlined<S>
where
    S: Service<Request<R>, Response = Response<Box<DynBody>>, Error = BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response<PatientBody>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<R>) -> Self::Future {
        let watches =
            request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"));
        let silence = if watches { WATCH_SILENCE } else { REQUEST_DEADLINE };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = tokio::time::timeout(REQUEST_DEADLINE, answer)
                .await
                .map_err(|_| TooSlow { after: REQUEST_DEADLINE })??;
            Ok(answer.map(|inner| PatientBody {
                inner,
                silence,
                until: Box::pin(tokio::time::sleep(silence)),
            }))
        })
    }
}

/// An answer that may pause for so long, not longer.
struct PatientBody {
    inner: Box<DynBody>,
    silence: Duration,
    until: Pin<Box<Sleep>>,
}

impl Body for PatientBody {
    type Data = bytes::Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, BoxError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut *this.inner).poll_frame(context) {
            this.until.as_mut().reset(Instant::now() + this.silence);
            return Poll::Ready(frame);
        }
        ready!(this.until.as_mut().poll(context));
        Poll::Ready(Some(Err(TooSlow { after: this.silence }.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_processes_of_a_pod_are_two() {
        let boots: std::collections::BTreeSet<_> = (0..50).map(|_| draw_boot()).collect();
        assert!(boots.len() > 45);
    }

    #[test]
    fn the_clock_goes_on() {
        let before = boot_now();
        std::thread::sleep(Duration::from_millis(20));
        let passed = boot_now().since(before);
        assert!((19..5_000).contains(&passed.as_millis()), "{passed:?}");
    }

    #[test]
    fn a_pod_must_have_a_name_that_fits_into_names() {
        for (name, fits) in [
            ("rpop-worker-7d9f-x2", true),
            ("a.b", true),
            ("", false),
            ("-a", false),
            ("A", false),
            ("a/b", false),
        ] {
            assert_eq!(is_name(name, 241), fits, "{name}");
        }
        assert!(!is_name(&"a".repeat(242), 241));
    }

    #[test]
    fn the_namespace_is_the_variables_or_the_contexts_or_the_pods_and_never_guessed() {
        let some = |text: &str| Some(text.to_owned());
        let of = |variable, context, file: Option<String>| namespace(variable, context, || file).ok();
        assert_eq!(of(some("a"), some("b"), some("c")), some("a"));
        assert_eq!(of(None, some("b"), some("c")), some("b"));
        assert_eq!(of(None, None, some("c\n")), some("c"));
        assert_eq!(of(None, some(""), some(" \n")), None);
        let error = namespace(None, None, || None).unwrap_err().to_string();
        assert!(error.contains("set POD_NAMESPACE"), "{error}");
    }

    #[test]
    fn the_context_in_use_names_the_namespace() {
        let text = "current-context: b\ncontexts:\n- {name: a, context: {cluster: c, namespace: mail}}\n";
        let other = "- {name: b, context: {cluster: c, namespace: rpop}}\n";
        let kubeconfig = Kubeconfig::from_yaml(&format!("{text}{other}")).unwrap();
        assert_eq!(context_namespace(&kubeconfig).as_deref(), Some("rpop"));
        assert_eq!(context_namespace(&Kubeconfig::from_yaml(text).unwrap()), None);
    }

    #[test]
    fn a_broken_kubeconfig_is_told_once_and_none_of_it_is_shown() {
        for text in [
            "users: [{name: a, user: {token: sesam}}\ncontexts: [",
            "users:\n- name: a\n  user: {token: [sesam]}\n",
            "users: sesam\n",
            "current-context: a\nusers: [{name: a, user: {token: \"sesam}}]\n",
        ] {
            let error = Kubeconfig::from_yaml(text).unwrap_err();
            let error = crate::domain::text::causes(&ClientError::Kubeconfig(Box::new(error)));
            assert!(error.starts_with("the kubeconfig cannot be used: "), "{error}");
            assert!(!error.contains("sesam"), "{error}");
        }
    }

    struct Slow {
        before: Duration,
        within: Duration,
    }

    impl Service<Request<()>> for Slow {
        type Response = Response<Box<DynBody>>;
        type Error = BoxError;
        type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<()>) -> Self::Future {
            let (before, within) = (self.before, self.within);
            Box::pin(async move {
                tokio::time::sleep(before).await;
                let frames = futures_util::stream::unfold(0, move |at| async move {
                    tokio::time::sleep(within).await;
                    (at < 2)
                        .then(|| (Ok::<_, BoxError>(Frame::data(bytes::Bytes::from_static(b"x"))), at + 1))
                });
                let body = http_body_util::StreamBody::new(Box::pin(frames));
                let body: Box<DynBody> = Box::new(body);
                Ok(Response::new(body))
            })
        }
    }

    async fn read(slow: Slow, uri: &str) -> Result<usize, String> {
        use http_body_util::BodyExt as _;
        let request = Request::builder().uri(uri).body(()).unwrap();
        let answer = Deadlines.layer(slow).call(request).await.map_err(|error| error.to_string())?;
        let body = answer.into_body().collect().await.map_err(|error| error.to_string())?;
        Ok(body.to_bytes().len())
    }

    #[tokio::test(start_paused = true)]
    async fn every_request_has_a_deadline_and_watches_may_be_silent() {
        let slow = |before, within| Slow {
            before: Duration::from_secs(before),
            within: Duration::from_secs(within),
        };
        let too_slow = Err("no answer within 10 s".to_owned());
        assert_eq!(read(slow(9, 9), "/api/v1/pods").await, Ok(2));
        assert_eq!(read(slow(11, 0), "/api/v1/pods").await, too_slow);
        assert_eq!(read(slow(0, 11), "/api/v1/pods?watch=no").await, too_slow);
        assert_eq!(read(slow(0, 100), "/api/v1/pods?&watch=true&x=y").await, Ok(2));
        assert_eq!(
            read(slow(0, 400), "/api/v1/pods?watch=true").await,
            Err("no answer within 330 s".to_owned())
        );
    }
}
