//! What the engine asks of its surroundings. The embedded run implements
//! these with files (`local`), the cluster with objects of the API server.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

use super::report::Counters;
use crate::domain::code::Code;
use crate::domain::envelope::Envelope;
use crate::domain::ledger::{Change, Ledger};
use crate::domain::wire::Piece;
use crate::domain::work::{Destination, MailHost, RecordKey, SecretRef, Timeouts};

/// A boxed future, so that ports can be trait objects.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Reads Secrets and `ConfigMaps`.
pub trait Secrets: Send + Sync {
    /// The octets under a key.
    ///
    /// # Errors
    /// [`SecretError`] names the object and key that are missing.
    fn get<'a>(&'a self, at: &'a SecretRef) -> Pending<'a, Result<Zeroizing<Vec<u8>>, SecretError>>;
}

/// Why a secret could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// No such object, or it lacks the key.
    #[error("{0}")]
    Missing(String),
    /// It could not be read just now.
    #[error("{0}")]
    Unavailable(String),
}

/// Keeps ledgers.
pub trait LedgerStore: Send + Sync {
    /// Reads a record's ledger; an empty one where there has never been any.
    ///
    /// # Errors
    /// [`LedgerError::Damaged`] for anything that cannot be understood: never
    /// an empty ledger in its place.
    fn load<'a>(&'a self, key: &'a RecordKey) -> Pending<'a, Result<Ledger, LedgerError>>;

    /// Makes sure, as far as the store can, that changes of so many octets can
    /// be written: called before messages are handed over, so that a full disk
    /// costs no repeats. Changes nothing in `ledger` but its mark.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`] where a commit would fail; else as for one.
    fn reserve<'a>(
        &'a self,
        key: &'a RecordKey,
        ledger: &'a mut Ledger,
        octets: u64,
    ) -> Pending<'a, Result<(), LedgerError>> {
        let _ = (key, ledger, octets);
        Box::pin(std::future::ready(Ok(())))
    }

    /// Makes `changes` durable (they are on disk when this returns) and
    /// applies them to `ledger`. On an error `ledger` is unchanged, and it is
    /// unknown whether the store holds the changes.
    ///
    /// # Errors
    /// See [`LedgerError`].
    fn commit<'a>(
        &'a self,
        key: &'a RecordKey,
        ledger: &'a mut Ledger,
        changes: Vec<Change>,
    ) -> Pending<'a, Result<(), LedgerError>>;

    /// Takes what a session could not commit before it was cut off, or whose
    /// commit failed: what became of messages that the destination has, of the
    /// ledger with this `salt`. Whether the store holds some of it is unknown.
    /// Returns at once. A store that forgets it, as this does, has these
    /// messages delivered again.
    fn owe(&self, key: &RecordKey, salt: [u8; 16], changes: Vec<Change>) {
        let _ = (key, salt, changes);
    }
}

/// Why a ledger could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// What is stored cannot be understood.
    #[error("{0}")]
    Damaged(String),
    /// The store cannot be written or read now.
    #[error("{0}")]
    Unavailable(String),
    /// It can grow no more.
    #[error("{0}")]
    Full(String),
    /// Somebody else wrote first.
    #[error("{0}")]
    Conflict(String),
}

impl LedgerError {
    /// The code for status and metrics.
    pub fn code(&self) -> Code {
        match self {
            Self::Damaged(_) => Code::LedgerDamaged,
            Self::Unavailable(_) => Code::LedgerUnwritable,
            Self::Full(_) => Code::LedgerFull,
            Self::Conflict(_) => Code::LedgerConflict,
        }
    }
}

/// Which refresh token: it stands for the one that the user gave, and for all
/// that the provider gave in its place since.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenId {
    /// A digest of token endpoint, client, account and the user's refresh token:
    /// who does not have that token does not come by its successors.
    pub digest: [u8; 20],
    /// The account at the remote server, for people.
    pub account: Arc<str>,
    /// The token endpoint, for people.
    pub token_url: Arc<str>,
}

impl TokenId {
    /// The digest in hexadecimal: 40 digits.
    pub fn hex(&self) -> String {
        use std::fmt::Write as _;
        self.digest.iter().fold(String::with_capacity(40), |mut hex, octet| {
            // Writing to a String does not fail.
            write!(hex, "{octet:02x}").ok();
            hex
        })
    }
}

/// A refresh token as it is kept.
#[derive(Clone)]
pub struct KeptToken {
    /// The token.
    pub token: Zeroizing<String>,
    /// Tells this state of the store from others.
    pub version: String,
}

impl std::fmt::Debug for KeptToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeptToken").field("version", &self.version).finish_non_exhaustive()
    }
}

/// Keeps the refresh tokens that providers give in place of those before.
pub trait TokenStore: Send + Sync {
    /// The newest one; `None` while the provider has given none.
    ///
    /// # Errors
    /// Where it cannot be told: the user's own token, which may be used up, must
    /// not be shown in its place.
    fn load<'a>(&'a self, id: &'a TokenId) -> Pending<'a, Result<Option<KeptToken>, TokenStoreError>>;

    /// Makes `token` durable in place of `before` (its version; `None`: there
    /// is none yet).
    ///
    /// # Errors
    /// [`TokenStoreError::Conflict`] when another one is there.
    fn save<'a>(
        &'a self,
        id: &'a TokenId,
        token: &'a str,
        before: Option<&'a str>,
    ) -> Pending<'a, Result<(), TokenStoreError>>;
}

/// Why a refresh token could not be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum TokenStoreError {
    /// Somebody else wrote first.
    #[error("{0}")]
    Conflict(String),
    /// What is stored cannot be understood.
    #[error("{0}")]
    Damaged(String),
    /// Not now.
    #[error("{0}")]
    Unavailable(String),
}

/// Takes messages: SMTP, LMTP or Maildir.
pub trait MailSink: Send + Sync {
    /// Opens the way to `route` for one poll. Connections may be made (and
    /// taken from a pool) only when the first job arrives; trouble with them
    /// is the outcome of the jobs, not of this call.
    fn open(&self, route: Route) -> Courier;

    /// How many whole messages a courier of `route` prepares ahead, before
    /// they may be delivered (see [`Job::leave`]); 0 where that is of no use.
    fn ahead(&self, route: &Route) -> usize {
        let _ = route;
        0
    }
}

/// Where and how a poll's messages go.
#[derive(Clone, Debug)]
pub struct Route {
    /// The domain's deliveries.
    pub destination: Arc<Destination>,
    /// Which of them.
    pub via: Via,
    /// The folder for [`Via::Maildir`].
    pub mailbox: Option<Arc<str>>,
    /// The record has a unified account: no Maildir is made but in the place
    /// where those of others are.
    pub unified: bool,
    /// Deadlines.
    pub timeouts: Timeouts,
}

/// The three kinds of delivery; the value of the metric label `via`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Via {
    /// Into the mail system's queue.
    Smtp,
    /// Direct storing.
    Lmtp,
    /// Folders on this machine.
    Maildir,
}

impl Via {
    /// As in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Smtp => "smtp",
            Self::Lmtp => "lmtp",
            Self::Maildir => "maildir",
        }
    }
}

impl Route {
    /// The mail server of the route, unless it is a Maildir.
    pub fn host(&self) -> Option<&MailHost> {
        match self.via {
            Via::Smtp => self.destination.smtp.as_ref(),
            Via::Lmtp => self.destination.lmtp.as_ref(),
            Via::Maildir => None,
        }
    }
}

/// One poll's way to its destination: jobs go in, outcomes come out, in any
/// order. The channel of jobs is bounded; a full one is the back-pressure.
/// Dropping `jobs` ends the courier once the outcomes of all jobs are out;
/// dropping the whole aborts: what has not been accepted stays undelivered,
/// and no final dot is sent for it.
#[derive(Debug)]
pub struct Courier {
    /// Jobs in.
    pub jobs: mpsc::Sender<Job>,
    /// Outcomes out; one for each job, always.
    pub outcomes: mpsc::UnboundedReceiver<Outcome>,
}

/// One message to deliver.
#[derive(Debug)]
pub struct Job {
    /// Comes back in the [`Outcome`].
    pub id: u64,
    /// For whom.
    pub envelope: Envelope,
    /// What.
    pub content: Content,
    /// For a sink that prepares messages ahead: nobody may see this one before
    /// it is told so here. If that can never be, the outcome is
    /// [`Undelivered::Aborted`]. `None`: it may be delivered.
    pub leave: Option<oneshot::Receiver<()>>,
}

/// The content of a message, in wire form.
#[derive(Debug)]
pub enum Content {
    /// All of it: known to be whole and in step with the POP3 server. A sink
    /// may try it again on another connection.
    Whole(Arc<[Piece]>),
    /// As it arrives. Sinks must take pieces promptly or let the channel fill
    /// (back-pressure), and must not end the message before [`Part::End`].
    Stream(mpsc::Receiver<Part>),
}

/// An element of [`Content::Stream`].
#[derive(Debug)]
pub enum Part {
    /// More octets.
    Data(Piece),
    /// The message is whole and confirmed: the final dot may go out. Without
    /// it (the channel closed) the message must not be delivered.
    End,
}

/// What became of a job.
#[derive(Debug)]
pub struct Outcome {
    /// The job's.
    pub id: u64,
    /// A result for each recipient of the envelope in its order, or why no
    /// answer about any was had.
    pub result: Result<Vec<Verdict>, Undelivered>,
}

/// The destination's word on one recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has taken responsibility.
    Accepted,
    /// Not now (4yz): enhanced code and text, capped and escaped for logs.
    Deferred(Refusal),
    /// Never (5yz).
    Refused(Refusal),
    /// The connection was lost before its word on this recipient, and behind
    /// that on another: it may or may not have been delivered (LMTP).
    Unknown {
        /// For people.
        message: Arc<str>,
    },
}

/// A reply that refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The SMTP reply code.
    pub code: u16,
    /// Its text, printable and at most 200 characters.
    pub text: Bytes,
    /// The command that it answers: `MAIL`, `RCPT`, `DATA`, `.`.
    pub at: &'static str,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} (to {})", self.code, String::from_utf8_lossy(&self.text), self.at)
    }
}

/// Why a job got no verdicts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Undelivered {
    /// The destination could not be reached, or broke off before it could
    /// have accepted: nothing was delivered.
    Unavailable {
        /// `DestinationUnavailable`, `DestinationRefused` or a TLS code.
        code: Code,
        /// For people.
        message: Arc<str>,
    },
    /// The connection was lost after the final dot and before its reply: the
    /// message may or may not have been delivered.
    Unknown {
        /// For people.
        message: Arc<str>,
    },
    /// The stream ended without [`Part::End`].
    Aborted,
}

/// Hears what polls do: metrics and progress. All methods return at once.
pub trait Observer: Send + Sync {
    /// The maildrop is listed: `unseen` messages of `octets` (0: unknown) are
    /// to be fetched.
    fn surveyed(&self, key: &RecordKey, unseen: u64, octets: u64) {
        let _ = (key, unseen, octets);
    }
    /// A message was retrieved.
    fn fetched(&self, key: &RecordKey, octets: u64) {
        let _ = (key, octets);
    }
    /// A message was accepted.
    fn delivered(&self, key: &RecordKey, via: Via) {
        let _ = (key, via);
    }
    /// A message was refused or set aside; `reason` is from a closed list.
    fn rejected(&self, key: &RecordKey, reason: &'static str) {
        let _ = (key, reason);
    }
    /// A copy was suppressed.
    fn duplicate(&self, key: &RecordKey) {
        let _ = key;
    }
    /// A delivery's outcome is unknown: the connection was lost behind the dot.
    fn uncertain(&self, key: &RecordKey) {
        let _ = key;
    }
    /// A poll was dropped before it could report: what it had done by then.
    fn cut_off(&self, key: &RecordKey, counters: &Counters) {
        let _ = (key, counters);
    }
    /// A ledger commit took this long.
    fn committed(&self, took: std::time::Duration, ok: bool) {
        let _ = (took, ok);
    }
}

/// Hears nothing.
#[derive(Debug, Default, Clone, Copy)]
pub struct Unobserved;

impl Observer for Unobserved {}

/// How far a shutdown, or the end of a record's work, has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Go on.
    #[default]
    Running,
    /// Start nothing new; end at the next message.
    Draining,
    /// Drop everything.
    Aborting,
}
