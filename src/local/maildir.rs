//! Maildir folders as a destination (<https://cr.yp.to/proto/maildir.html>),
//! for people with no mail server at all.
//!
//! A message counts as accepted when its octets and its name are on disk. To
//! wait for the disk once a message would make it slow, so messages of all
//! polls that deliver below one path are written together: whatever has come
//! while one batch was being written is the next batch. Messages are prepared
//! ahead in `tmp`, where nobody sees them, and delivered as far as their polls
//! give leave.

mod accounts;
mod batch;
mod path;
mod sweep;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

use self::accounts::Found;
use self::batch::{Draft, Failure, Letter, Parcel, Postmark};
use self::path::folder;
use self::sweep::Sweeper;
use crate::domain::code::Code;
use crate::domain::envelope::{Envelope, Mailbox};
use crate::domain::wire::Piece;
use crate::engine::ports::{Content, Courier, Job, MailSink, Outcome, Part, Route, Undelivered, Verdict};

/// Jobs that a courier's channel holds.
const JOBS: usize = 64;
/// Messages of one batch, and messages that wait for the next.
const BATCH: usize = 256;
/// Batches on their way at a time: one is written while the other waits for
/// the disk.
const BATCHES: usize = 2;
/// Messages of a poll that are prepared ahead.
const AHEAD: usize = 256;
/// KiB of messages that wait or are being written, all polls together.
const MEMORY: u32 = 8 * 1024;
/// Octets of a stream that are written at a time.
const CHUNK: usize = 256 * 1024;

/// Delivers into Maildirs; one a process.
#[derive(Debug)]
pub struct MaildirSink {
    postmark: Arc<Postmark>,
    /// The way to the writer of each configured path.
    writers: Mutex<HashMap<Arc<str>, Writer>>,
    memory: Arc<Semaphore>,
    sweeper: Arc<Sweeper>,
}

impl MaildirSink {
    /// `host_name` becomes part of the files' names.
    pub fn new(host_name: &str) -> Self {
        Self {
            postmark: Arc::new(Postmark::new(host_name)),
            writers: Mutex::default(),
            memory: Arc::new(Semaphore::new(MEMORY as usize)),
            sweeper: Arc::default(),
        }
    }

    fn writer(&self, template: &Arc<str>) -> Writer {
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        writers.retain(|_, writer| !writer.letters.is_closed() && !writer.parcels.is_closed());
        let open = || {
            let (letters, incoming) = mpsc::channel(BATCH);
            let postmark = Arc::clone(&self.postmark);
            tokio::spawn(in_batches(incoming, BATCHES, move |batch| batch::prepare(batch, &postmark)));
            let (parcels, incoming) = mpsc::channel(BATCH);
            tokio::spawn(in_batches(incoming, 1, batch::deliver));
            Writer { letters, parcels }
        };
        writers.entry(Arc::clone(template)).or_insert_with(open).clone()
    }
}

impl MailSink for MaildirSink {
    /// Must be called within a tokio runtime.
    fn open(&self, route: Route) -> Courier {
        let (jobs, incoming) = mpsc::channel(JOBS);
        let (outgoing, outcomes) = mpsc::unbounded_channel();
        let template = route.destination.maildir.as_ref().map(|path| Arc::clone(&path.0));
        let writer = template.as_ref().map(|template| self.writer(template));
        let post = Post {
            template: template.unwrap_or_else(|| "".into()),
            mailbox: route.mailbox.clone(),
            unified: route.unified,
            writer,
            outcomes: outgoing,
            postmark: Arc::clone(&self.postmark),
            memory: Arc::clone(&self.memory),
            sweeper: Arc::clone(&self.sweeper),
        };
        tokio::spawn(post.run(incoming));
        Courier { jobs, outcomes }
    }

    fn ahead(&self, _: &Route) -> usize {
        AHEAD
    }
}

/// The way to what writes below one path.
#[derive(Clone, Debug)]
struct Writer {
    letters: mpsc::Sender<Letter>,
    parcels: mpsc::Sender<Parcel>,
}

impl Writer {
    /// Delivers what is prepared, once there is leave to.
    async fn deliver(
        &self,
        prepared: oneshot::Receiver<Result<Vec<Draft>, Failure>>,
        leave: Option<oneshot::Receiver<()>>,
    ) -> Result<(), Failure> {
        let drafts = prepared.await.unwrap_or(Err(Failure::Ended))?;
        if let Some(leave) = leave {
            leave.await.map_err(|_| Failure::Aborted)?;
        }
        let (report, reported) = oneshot::channel();
        self.parcels.send(Parcel { drafts, report }).await.map_err(|_| Failure::Ended)?;
        reported.await.unwrap_or(Err(Failure::Ended))
    }
}

/// One poll's way into its folders.
#[derive(Clone)]
struct Post {
    template: Arc<str>,
    mailbox: Option<Arc<str>>,
    unified: bool,
    writer: Option<Writer>,
    outcomes: mpsc::UnboundedSender<Outcome>,
    postmark: Arc<Postmark>,
    memory: Arc<Semaphore>,
    sweeper: Arc<Sweeper>,
}

impl Post {
    async fn run(self, mut jobs: mpsc::Receiver<Job>) {
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                job = jobs.recv() => match job {
                    Some(job) => self.take(job, &mut tasks).await,
                    None => break,
                },
                Some(_) = tasks.join_next() => {}
                () = self.outcomes.closed() => return,
            }
        }
        tokio::select! {
            () = async { while tasks.join_next().await.is_some() {} } => {}
            () = self.outcomes.closed() => {}
        }
    }

    async fn take(&self, job: Job, tasks: &mut JoinSet<()>) {
        let Job { id, envelope, content, leave } = job;
        let Some(writer) = self.writer.clone() else {
            // Before anybody is looked for: nobody is refused by it.
            let failure = Failure::unavailable(Code::ConfigInvalid, "the domain has no Maildir path");
            self.outcomes.send(Outcome { id, result: Err(failure.into_undelivered()) }).ok();
            return;
        };
        let (mut folders, verdicts) = match self.folders(&envelope).await {
            Ok(found) => found,
            Err(failure) => {
                self.outcomes.send(Outcome { id, result: Err(failure.into_undelivered()) }).ok();
                return;
            }
        };
        folders.sort_unstable();
        folders.dedup();
        for folder in &folders {
            self.sweeper.visit(folder);
        }
        let nobody = folders.is_empty();
        let (prepared, drafts) = oneshot::channel();
        let outcomes = self.outcomes.clone();
        let answer = move |result: Result<(), Failure>| {
            let result = result.map(|()| verdicts).map_err(Failure::into_undelivered);
            outcomes.send(Outcome { id, result }).ok();
        };
        if nobody {
            return answer(Ok(()));
        }
        match content {
            Content::Whole(pieces) => {
                let octets = pieces.iter().map(Piece::len).sum::<usize>();
                let size = u32::try_from(octets / 1024 + 1).unwrap_or(MEMORY).min(MEMORY);
                let memory = Arc::clone(&self.memory).acquire_many_owned(size).await.ok();
                let letter = Letter { folders, body: batch::Body::Whole(pieces), prepared, memory };
                if writer.letters.send(letter).await.is_err() {
                    return answer(Err(Failure::Ended));
                }
                tasks.spawn(async move { answer(writer.deliver(drafts, leave).await) });
            }
            Content::Stream(parts) => {
                let postmark = Arc::clone(&self.postmark);
                tasks.spawn(async move {
                    let written = match stream(parts, folders, postmark).await {
                        Ok(Some(written)) => written,
                        Ok(None) => return answer(Err(Failure::Aborted)),
                        Err(failure) => return answer(Err(failure)),
                    };
                    let letter = Letter {
                        folders: Vec::new(),
                        body: batch::Body::Written(written),
                        prepared,
                        memory: None,
                    };
                    if writer.letters.send(letter).await.is_err() {
                        return answer(Err(Failure::Ended));
                    }
                    answer(writer.deliver(drafts, leave).await);
                });
            }
        }
    }
}

impl Post {
    /// The folders that get a message, and what is said to each recipient.
    async fn folders(&self, envelope: &Envelope) -> Result<(Vec<PathBuf>, Vec<Verdict>), Failure> {
        let recipients = envelope.recipients.iter().map(|to| &to.address);
        if !self.unified {
            let wanted: Vec<_> =
                recipients.map(|to| folder(&self.template, to, self.mailbox.as_deref())).collect();
            let verdicts = vec![Verdict::Accepted; wanted.len()];
            return Ok((wanted, verdicts));
        }
        let recipients: Vec<Mailbox> = recipients.cloned().collect();
        let (template, mailbox) = (Arc::clone(&self.template), self.mailbox.clone());
        // The others are for the postmaster.
        let make = !envelope.await_recipients;
        let found =
            blocking(move || accounts::find(&template, mailbox.as_deref(), &recipients, make)).await?;
        let verdicts = found.iter().map(Found::verdict).collect();
        let folders = found.into_iter().filter_map(|found| match found {
            Found::Folder(folder) => Some(folder),
            Found::Nobody | Found::Unclear(_) => None,
        });
        Ok((folders.collect(), verdicts))
    }
}

/// Writes a message to temporary files as it arrives. `None` when it ended
/// without its end: the files are gone again then.
async fn stream(
    mut parts: mpsc::Receiver<Part>,
    folders: Vec<PathBuf>,
    postmark: Arc<Postmark>,
) -> Result<Option<Vec<Draft>>, Failure> {
    let open = move || folders.iter().map(|folder| Draft::create(folder, &postmark)).collect();
    let mut drafts: Vec<Draft> = blocking(open).await?;
    let mut buffer = Vec::with_capacity(CHUNK);
    loop {
        let ended = match parts.recv().await {
            Some(Part::Data(piece)) => {
                local_form(&piece, &mut buffer);
                false
            }
            Some(Part::End) => true,
            None => return Ok(None),
        };
        if buffer.len() >= CHUNK || ended {
            (drafts, buffer) = blocking(move || {
                for draft in &mut drafts {
                    draft.write(&buffer)?;
                }
                buffer.clear();
                Ok((drafts, buffer))
            })
            .await?;
        }
        if ended {
            return Ok(Some(drafts));
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Failure::Ended))
}

/// Appends the octets of `piece` as files have them: without dot-stuffing, and
/// with LF line ends. In wire form a CR stands nowhere but before an LF.
fn local_form(piece: &Piece, out: &mut Vec<u8>) {
    for octets in piece.unstuffed() {
        let mut from = 0;
        for at in memchr::memchr_iter(b'\r', &octets) {
            out.extend_from_slice(octets.get(from..at).unwrap_or_default());
            from = at + 1;
        }
        out.extend_from_slice(octets.get(from..).unwrap_or_default());
    }
}

/// Does batch after batch, `most` at a time.
async fn in_batches<T: Send + 'static>(
    mut incoming: mpsc::Receiver<T>,
    most: usize,
    work: impl Fn(Vec<T>) + Clone + Send + 'static,
) {
    let mut batches = JoinSet::new();
    loop {
        let mut batch = Vec::new();
        if incoming.recv_many(&mut batch, BATCH).await == 0 {
            break;
        }
        if batches.len() >= most {
            batches.join_next().await;
            // What has come meanwhile rides along.
            while batch.len() < BATCH
                && let Ok(more) = incoming.try_recv()
            {
                batch.push(more);
            }
        }
        let work = work.clone();
        // A panic in there drops the messages, and their senders notice.
        batches.spawn_blocking(move || work(batch));
        while batches.try_join_next().is_some() {}
    }
    while batches.join_next().await.is_some() {}
}

impl Failure {
    fn unavailable(code: Code, message: &str) -> Self {
        Self::Unavailable { code, message: message.into() }
    }

    fn into_undelivered(self) -> Undelivered {
        match self {
            Self::Unavailable { code, message } => Undelivered::Unavailable { code, message },
            Self::Unknown { message } => Undelivered::Unknown { message },
            Self::Aborted => Undelivered::Aborted,
            Self::Ended => Undelivered::Unavailable {
                code: Code::Internal,
                message: "the Maildir writer has ended".into(),
            },
        }
    }
}

#[cfg(test)]
mod tests;
