//! A mail server in memory that can be told to misbehave, and tests against it.

mod chunking;
mod faults;
mod floor;
mod lanes;
mod network;
mod protocol;
mod recipients;
mod tls_and_auth;
mod transcripts;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::*;
use crate::domain::envelope::{Envelope, Mailbox, Notify, Recipient, ReversePath};
use crate::domain::wire::{Piece, stuff};
use crate::domain::work::{Destination, Endpoint, MailHost, SecretRef, Timeouts, TlsMode, TlsPolicy};
use crate::engine::ports::{Content, Job, Part, Verdict};

/// What the server does instead of what it should.
pub(super) enum Act {
    /// Answers this (lines with CRLF).
    Say(String),
    /// Answers this and closes.
    Bye(String),
    /// Closes without a word.
    Close,
    /// Never answers again.
    Hang,
}

#[expect(clippy::unnecessary_wraps, reason = "what a rule yields")]
pub(super) fn say(text: &str) -> Option<Act> {
    Some(Act::Say(format!("{text}\r\n")))
}

/// A message that the server accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) from: String,
    pub(super) to: Vec<String>,
    pub(super) body: Vec<u8>,
    pub(super) connection: usize,
}

impl Taken {
    /// Of the [`job`] that it was.
    pub(super) fn id(&self) -> u64 {
        self.from.trim_start_matches('s').trim_end_matches("@x").parse().unwrap()
    }
}

type Rule = dyn FnMut(usize, &str) -> Option<Act> + Send;

/// The server, all connections together.
#[derive(Clone)]
pub(super) struct Fake(Arc<Mutex<State>>);

struct State {
    announces: Vec<&'static str>,
    /// Consulted for each command (`.` is the end of a message, `HI` the
    /// connection); `None` is the usual answer.
    rule: Box<Rule>,
    commands: Vec<String>,
    taken: Vec<Taken>,
    connections: usize,
    open: usize,
    most_open: usize,
    secured: usize,
    /// One way.
    delay: Duration,
    refuse: VecDeque<Trouble>,
    /// How long the server works on each message.
    works: Duration,
    pipe: usize,
    /// Octets that the server reads in a second; 0: as many as there are.
    rate: Arc<AtomicUsize>,
    /// It has never heard of BDAT, and reads what follows as commands.
    no_bdat: bool,
    /// What becomes of STARTTLS over a real network.
    tls: Option<Tls>,
}

/// How the server makes handshakes.
#[derive(Clone)]
pub(super) enum Tls {
    Works(tokio_rustls::TlsAcceptor),
    /// It says 220, and never a word of TLS.
    Stalls,
}

pub(super) const ALL: &[&str] = &["PIPELINING", "CHUNKING", "SIZE 10000000", "8BITMIME", "SMTPUTF8", "DSN"];
pub(super) const NO_CHUNKING: &[&str] = &["PIPELINING", "SIZE 10000000", "8BITMIME", "SMTPUTF8", "DSN"];
pub(super) const PLAIN: &[&str] = &[];
/// The ways in which a session can run.
pub(super) const WAYS: &[&[&str]] = &[ALL, NO_CHUNKING, PLAIN, &["CHUNKING"]];

impl Fake {
    pub(super) fn new(announces: &[&'static str]) -> Self {
        Self::with(announces, |_, _| None)
    }

    pub(super) fn with(
        announces: &[&'static str],
        rule: impl FnMut(usize, &str) -> Option<Act> + Send + 'static,
    ) -> Self {
        Self(Arc::new(Mutex::new(State {
            announces: announces.to_vec(),
            rule: Box::new(rule),
            commands: Vec::new(),
            taken: Vec::new(),
            connections: 0,
            open: 0,
            most_open: 0,
            secured: 0,
            delay: Duration::ZERO,
            refuse: VecDeque::new(),
            works: Duration::ZERO,
            pipe: 64 * 1024,
            rate: Arc::default(),
            no_bdat: false,
            tls: None,
        })))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(super) fn taken(&self) -> Vec<Taken> {
        self.state().taken.clone()
    }

    pub(super) fn connections(&self) -> usize {
        self.state().connections
    }

    pub(super) fn commands(&self, prefix: &str) -> Vec<String> {
        self.state().commands.iter().filter(|line| line.starts_with(prefix)).cloned().collect()
    }

    pub(super) fn pool(&self) -> Pool<Self> {
        Pool::over(self.clone())
    }

    fn act(&self, connection: usize, what: &str) -> Option<Act> {
        let mut state = self.state();
        state.commands.push(what.to_owned());
        (state.rule)(connection, what)
    }

    async fn serve(self, stream: impl Line, connection: usize) {
        let mut serving = Serving {
            fake: self.clone(),
            connection,
            stream: BufReader::new(Box::new(stream)),
            open: None,
            lmtp: false,
        };
        serving.run().await;
        self.state().open -= 1;
    }
}

impl Dial for Fake {
    type Stream = DuplexStream;

    async fn connect(&self, _: &MailHost, _: Duration) -> Result<DuplexStream, Trouble> {
        let (delay, refused, pipe, rate) = {
            let mut state = self.state();
            (state.delay, state.refuse.pop_front(), state.pipe, Arc::clone(&state.rate))
        };
        tokio::time::sleep(delay * 2).await;
        if let Some(trouble) = refused {
            return Err(trouble);
        }
        let (ours, theirs) = tokio::io::duplex(pipe);
        let ours = if pipe < 1024 { throttled(ours, rate) } else { ours };
        let ours = if delay.is_zero() { ours } else { delayed(ours, delay) };
        let connection = {
            let mut state = self.state();
            state.connections += 1;
            state.open += 1;
            state.most_open = state.most_open.max(state.open);
            state.connections
        };
        tokio::spawn(self.clone().serve(theirs, connection));
        Ok(ours)
    }

    async fn secure(
        &self,
        stream: DuplexStream,
        host: &MailHost,
        _: Duration,
    ) -> Result<DuplexStream, Trouble> {
        if let Some(Act::Close) = self.act(0, "HANDSHAKE") {
            return Err(Trouble::new(Code::TlsFailed, host, "no shared cipher"));
        }
        self.state().secured += 1;
        Ok(stream)
    }

    async fn secret(&self, at: &SecretRef) -> Result<Zeroizing<Vec<u8>>, Trouble> {
        Ok(Zeroizing::new(at.key.as_bytes().to_vec()))
    }

    fn host_name(&self) -> Arc<str> {
        "client.example".into()
    }
}

/// Any stream.
pub(super) trait Line: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static {}

impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static> Line for T {}

struct Serving {
    fake: Fake,
    connection: usize,
    stream: BufReader<Box<dyn Line>>,
    open: Option<Taken>,
    lmtp: bool,
}

impl Serving {
    /// False when the connection is over.
    async fn answer(&mut self, what: &str, usual: &str) -> Option<bool> {
        let (text, on, done) = match self.fake.act(self.connection, what) {
            None => (format!("{usual}\r\n"), true, false),
            Some(Act::Say(text)) => (text, true, true),
            Some(Act::Bye(text)) => (text, false, true),
            Some(Act::Close) => return None,
            Some(Act::Hang) => {
                std::future::pending::<()>().await;
                return None;
            }
        };
        self.stream.write_all(text.as_bytes()).await.ok()?;
        self.stream.flush().await.ok()?;
        on.then_some(done)
    }

    async fn run(&mut self) -> Option<()> {
        self.answer("HI", "220 fake ready").await?;
        let mut line = String::new();
        loop {
            line.clear();
            if self.stream.read_line(&mut line).await.ok()? == 0 {
                return None;
            }
            let command = line.strip_suffix("\r\n").expect("lines end in CRLF").to_owned();
            let verb = command.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
            match verb.as_str() {
                "EHLO" | "LHLO" => {
                    self.lmtp = verb == "LHLO";
                    let announces = self.fake.state().announces.clone();
                    let mut text = String::from("250-fake");
                    for keyword in announces {
                        text.push_str("\r\n250-");
                        text.push_str(keyword);
                    }
                    text += "\r\n250 HELP";
                    self.answer(&command, &text).await?;
                }
                "STARTTLS" if self.fake.state().tls.is_some() => self.start_tls().await?,
                "RSET" => {
                    self.open = None;
                    self.answer(&command, "250 reset").await?;
                }
                "MAIL" if self.open.is_some() => {
                    self.answer(&command, "503 nested MAIL").await?;
                }
                "MAIL" => {
                    if !self.answer(&command, "250 sender ok").await? {
                        let connection = self.connection;
                        self.open = Some(Taken {
                            from: path(&command),
                            to: Vec::new(),
                            body: Vec::new(),
                            connection,
                        });
                    }
                }
                "RCPT" if self.open.is_none() => {
                    self.answer(&command, "503 need MAIL").await?;
                }
                "RCPT" => {
                    if !self.answer(&command, "250 recipient ok").await?
                        && let Some(open) = &mut self.open
                    {
                        open.to.push(path(&command));
                    }
                }
                "DATA" if self.recipients() == 0 => {
                    self.answer(&command, "554 no valid recipients").await?;
                }
                "DATA" => {
                    if !self.answer(&command, "354 go on").await? {
                        let body = self.data().await?;
                        self.end(body).await?;
                    }
                }
                "BDAT" if !self.fake.state().no_bdat => self.bdat(&command).await?,
                "QUIT" => {
                    self.answer(&command, "221 bye").await?;
                    return None;
                }
                _ => {
                    self.answer(&command, "500 what?").await?;
                }
            }
        }
    }

    async fn start_tls(&mut self) -> Option<()> {
        if self.answer("STARTTLS", "220 go ahead").await? {
            return Some(());
        }
        let how = self.fake.state().tls.clone()?;
        let plain = std::mem::replace(&mut self.stream, BufReader::new(Box::new(tokio::io::empty())));
        match how {
            Tls::Works(acceptor) => {
                let secured = acceptor.accept(plain.into_inner()).await.ok()?;
                self.fake.state().secured += 1;
                self.stream = BufReader::new(Box::new(secured));
            }
            Tls::Stalls => {
                std::future::pending::<()>().await;
            }
        }
        Some(())
    }

    fn recipients(&self) -> usize {
        self.open.as_ref().map_or(0, |open| open.to.len())
    }

    async fn data(&mut self) -> Option<Vec<u8>> {
        let (mut body, mut line) = (Vec::new(), Vec::new());
        loop {
            line.clear();
            if self.stream.read_until(b'\n', &mut line).await.ok()? == 0 {
                return None;
            }
            assert!(line.ends_with(b"\r\n") || !line.ends_with(b"\n"), "a bare LF on the wire");
            match line.as_slice() {
                b".\r\n" => return Some(body),
                [b'.', rest @ ..] => body.extend_from_slice(rest),
                whole => body.extend_from_slice(whole),
            }
        }
    }

    async fn bdat(&mut self, command: &str) -> Option<()> {
        let mut words = command.split(' ').skip(1);
        let octets: usize = words.next().unwrap().parse().unwrap();
        let last = words.next() == Some("LAST");
        let mut chunk = vec![0; octets];
        self.stream.read_exact(&mut chunk).await.ok()?;
        if self.recipients() == 0 {
            // As RFC 3030 has it: the octets are taken, the transaction stays.
            self.answer("BDAT", "554 no valid recipients").await?;
            return Some(());
        }
        self.open.as_mut()?.body.extend(chunk);
        if last {
            let body = std::mem::take(&mut self.open.as_mut()?.body);
            self.end(body).await?;
        } else {
            self.answer("BDAT", "250 octets taken").await?;
        }
        Some(())
    }

    async fn end(&mut self, body: Vec<u8>) -> Option<()> {
        let works = self.fake.state().works;
        if !works.is_zero() {
            tokio::time::sleep(works).await;
        }
        let mut open = self.open.take()?;
        open.body = body;
        let lmtp = self.lmtp;
        let asked: Vec<_> = if lmtp { open.to.clone() } else { vec![String::new()] };
        let mut refused = Vec::new();
        for to in &asked {
            let what = if to.is_empty() { ".".to_owned() } else { format!(". {to}") };
            if self.answer(&what, "250 taken").await? {
                refused.push(to.clone());
            }
        }
        open.to.retain(|to| !refused.contains(to));
        if refused.len() < asked.len() {
            self.fake.state().taken.push(open);
        }
        Some(())
    }
}

fn path(command: &str) -> String {
    let (_, rest) = command.split_once('<').unwrap();
    rest.split_once('>').unwrap().0.to_owned()
}

/// The near end of a line that takes `delay` in each direction.
pub(super) fn delayed(far: DuplexStream, delay: Duration) -> DuplexStream {
    let (near, middle) = tokio::io::duplex(64 * 1024);
    let (far_read, far_write) = tokio::io::split(far);
    let (middle_read, middle_write) = tokio::io::split(middle);
    tokio::spawn(carry(far_read, middle_write, delay));
    tokio::spawn(carry(middle_read, far_write, delay));
    near
}

/// The near end of a line that carries `rate` octets a second to the far end.
fn throttled(far: DuplexStream, rate: Arc<AtomicUsize>) -> DuplexStream {
    let (near, middle) = tokio::io::duplex(64);
    let (far_read, mut far_write) = tokio::io::split(far);
    let (mut middle_read, middle_write) = tokio::io::split(middle);
    tokio::spawn(carry(far_read, middle_write, Duration::ZERO));
    tokio::spawn(async move {
        let mut buffer = [0; 64];
        loop {
            let rate = rate.load(Ordering::Relaxed);
            let most = if rate == 0 { 64 } else { rate.min(64) };
            let Ok(count @ 1..) = middle_read.read(&mut buffer[..most]).await else { break };
            if far_write.write_all(&buffer[..count]).await.is_err() {
                break;
            }
            if rate > 0 {
                tokio::time::sleep(
                    Duration::from_secs(1) * u32::try_from(count).unwrap() / u32::try_from(rate).unwrap(),
                )
                .await;
            }
        }
        far_write.shutdown().await.ok();
    });
    near
}

async fn carry(
    mut from: impl tokio::io::AsyncRead + Unpin + Send + 'static,
    mut to: impl tokio::io::AsyncWrite + Unpin + Send + 'static,
    delay: Duration,
) {
    let (send, mut receive) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    tokio::spawn(async move {
        while let Some((at, octets)) = receive.recv().await {
            tokio::time::sleep_until(at).await;
            if to.write_all(&octets).await.is_err() {
                return;
            }
        }
        to.shutdown().await.ok();
    });
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if send.send((Instant::now() + delay, buffer[..count].to_vec())).is_err() {
            return;
        }
    }
}

pub(super) fn host() -> MailHost {
    MailHost {
        endpoint: Endpoint::Tcp("mail.example".into(), 25),
        ehlo_name: None,
        tls: TlsPolicy { mode: TlsMode::None, ..TlsPolicy::default() },
        auth: None,
        detail_separator: "+".into(),
        null_sender_without_dsn: true,
    }
}

pub(super) fn route(via: Via, host: MailHost) -> Route {
    let mut destination = Destination { domain: "example.com".into(), ..Destination::default() };
    match via {
        Via::Lmtp => destination.lmtp = Some(host),
        _ => destination.smtp = Some(host),
    }
    Route {
        destination: Arc::new(destination),
        via,
        mailbox: None,
        unified: false,
        timeouts: Timeouts::default(),
    }
}

pub(super) fn smtp(fake: &Fake) -> Courier {
    fake.pool().open(route(Via::Smtp, host()))
}

pub(super) fn lmtp(fake: &Fake) -> Courier {
    fake.pool().open(route(Via::Lmtp, host()))
}

pub(super) fn envelope(from: &str, to: &[&str]) -> Envelope {
    let address = |text: &str| Mailbox::parse(text).unwrap();
    Envelope {
        sender: ReversePath((!from.is_empty()).then(|| address(from))),
        recipients: to.iter().map(|to| Recipient { address: address(to), notify: Notify::Unsaid }).collect(),
        size: None,
        utf8_header: false,
        envid: None,
        await_recipients: false,
    }
}

pub(super) fn whole(body: &str) -> Content {
    Content::Whole(vec![stuff(body.as_bytes())].into())
}

pub(super) fn piece(wire: &'static [u8], at_line_start: bool) -> Piece {
    Piece::new(Bytes::from_static(wire), at_line_start)
}

/// A message from `sN@x` to `to`.
pub(super) fn job(id: u64, to: &[&str]) -> Job {
    Job {
        id,
        envelope: envelope(&format!("s{id}@x"), to),
        content: whole(&format!("Subject: {id}\n\n.dot {id}\n")),
        leave: None,
    }
}

pub(super) fn body_of(id: u64) -> Vec<u8> {
    format!("Subject: {id}\r\n\r\n.dot {id}\r\n").into_bytes()
}

/// Sends jobs, waits for the outcomes of all, in the order of their ids.
pub(super) async fn deliver(courier: Courier, jobs: Vec<Job>) -> Vec<Result<Vec<Verdict>, Undelivered>> {
    let Courier { jobs: sender, mut outcomes } = courier;
    let feed = tokio::spawn(async move {
        for job in jobs {
            sender.send(job).await.unwrap();
        }
    });
    let mut all = Vec::new();
    while let Some(outcome) = outcomes.recv().await {
        all.push(outcome);
    }
    feed.await.unwrap();
    all.sort_by_key(|outcome| outcome.id);
    all.into_iter().map(|outcome| outcome.result).collect()
}

pub(super) fn accepted(count: usize) -> Vec<Verdict> {
    vec![Verdict::Accepted; count]
}

pub(super) fn code_of(verdict: &Verdict) -> (u16, &'static str) {
    match verdict {
        Verdict::Accepted => (250, ""),
        Verdict::Deferred(refusal) | Verdict::Refused(refusal) => (refusal.code, refusal.at),
        Verdict::Unknown { message } => panic!("{message}"),
    }
}

/// A stream job, and the way to feed it.
pub(super) fn streamed(id: u64) -> (mpsc::Sender<Part>, Job) {
    let (parts, incoming) = mpsc::channel(4);
    (parts, Job { content: Content::Stream(incoming), ..job(id, &["a@b"]) })
}

/// A courier with a connection that has taken one message (id 0), hence takes
/// streams by BDAT where CHUNKING is announced. The message is forgotten.
pub(super) async fn proven(fake: &Fake) -> Courier {
    let mut courier = smtp(fake);
    courier.jobs.send(job(0, &["a@b"])).await.unwrap();
    assert_eq!(courier.outcomes.recv().await.unwrap().result, Ok(accepted(1)));
    let mut state = fake.state();
    state.taken.clear();
    state.commands.clear();
    drop(state);
    courier
}
