//! The session up to the listing: one request after the other.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use memchr::memmem;
use tokio::io::{AsyncRead, AsyncWrite};
use zeroize::Zeroizing;

use super::apop;
use super::capability::Capabilities;
use super::error::{CAPA, Error, GREETING, NOTHING};
use super::listing::{Lines, Listing, Numbers, entry};
use super::pipeline::{Body, Command, Event, Sent};
use super::reply::{Reply, number};
use super::transport::{Deadlines, Ended, Transport, Watch};
use crate::domain::text::shown;

/// A POP3 session over `S`.
pub struct Client<S> {
    pub(super) io: Transport<S>,
    greeting: Greeting,
    pub(super) capabilities: Option<Capabilities>,
    stat: Option<Stat>,
    pub(super) logged_in: bool,
    /// Questions that were sent ahead of their turn.
    ahead: VecDeque<Question>,
    /// Commands not yet written.
    pub(super) queue: VecDeque<Command>,
    /// Commands that are written, or in the output buffer.
    pub(super) flight: VecDeque<Sent>,
    /// The message that flows.
    pub(super) body: Option<Body>,
    /// Events that are decoded.
    pub(super) ready: VecDeque<Event>,
    /// What no log and no error may show, should the server repeat it.
    pub(super) secrets: Vec<Zeroizing<Vec<u8>>>,
}

impl<S> fmt::Debug for Client<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("greeting", &self.greeting).finish_non_exhaustive()
    }
}

/// What the server said first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// Escaped and capped, for logs.
    pub text: Box<str>,
    /// The APOP challenge, a strict msg-id with its brackets.
    pub challenge: Option<Bytes>,
}

/// The answer to STAT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// Messages in the maildrop.
    pub messages: u32,
    /// Their octets; 0 where the server does not say.
    pub octets: u64,
}

/// A request that may be sent ahead of its turn; see [`Client::ahead`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// [`Client::capabilities`].
    Capabilities,
    /// [`Client::stat`].
    Stat,
    /// [`Client::uidl`].
    Uidl,
    /// [`Client::list`].
    List,
}

impl Question {
    fn verb(self) -> &'static str {
        match self {
            Self::Capabilities => CAPA,
            Self::Stat => "STAT",
            Self::Uidl => "UIDL",
            Self::List => "LIST",
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Client<S> {
    /// Lines that UIDL and LIST may have.
    pub const MAX_LISTING: u64 = 5_000_000;
    /// Octets of the longest UID; a line with a longer one is void. RFC 1939
    /// allows 70.
    pub const MAX_UID: usize = 64 * 1024;

    /// Waits for the greeting (RFC 1939, section 4).
    ///
    /// # Errors
    /// [`Error::Refused`] when the server does not want us, or a broken or
    /// silent connection.
    pub async fn greet(stream: S, deadlines: Deadlines) -> Result<Self, Error> {
        let nothing = Greeting { text: "".into(), challenge: None };
        let mut client = Self::after_tls(stream, nothing, deadlines);
        let (reply, _) = client.reply(GREETING).await?;
        if !reply.is_ok() {
            return Err(Error::Refused { command: GREETING, reply, said: None, login: true });
        }
        client.greeting = Greeting {
            text: shown(&reply.text).into(),
            challenge: apop::challenge(&reply.text).map(Bytes::copy_from_slice),
        };
        Ok(client)
    }

    /// Goes on over the stream that TLS made of what [`Client::start_tls`]
    /// gave back. Capabilities are to be asked again.
    pub fn after_tls(stream: S, greeting: Greeting, deadlines: Deadlines) -> Self {
        Self {
            io: Transport::new(stream, deadlines),
            greeting,
            capabilities: None,
            stat: None,
            logged_in: false,
            ahead: VecDeque::new(),
            queue: VecDeque::new(),
            flight: VecDeque::new(),
            body: None,
            ready: VecDeque::new(),
            secrets: Vec::new(),
        }
    }

    /// What the server said first.
    pub fn greeting(&self) -> &Greeting {
        &self.greeting
    }

    /// The stream below, to ask about: not to read or write.
    pub fn stream(&self) -> &S {
        self.io.stream()
    }

    /// What [`Client::capabilities`] found last.
    pub fn known_capabilities(&self) -> Option<&Capabilities> {
        self.capabilities.as_ref()
    }

    /// The stream, whatever state the session is in.
    pub fn into_inner(self) -> S {
        self.io.into_inner()
    }

    /// Asks for the capabilities (RFC 2449, section 5). A server that does
    /// not know CAPA has [`Capabilities::unknown`] ones; one that refuses the
    /// question after the login keeps those from before it.
    ///
    /// # Errors
    /// [`Error::is_dropped_on_capa`] tells servers apart that hang up on it.
    pub async fn capabilities(&mut self) -> Result<&Capabilities, Error> {
        let (reply, bare) = self.ask(Question::Capabilities).await?;
        let capabilities = if reply.is_ok() {
            let mut found = Capabilities { known: true, ..Capabilities::default() };
            let lines = Lines::new(1024, Capabilities::MAX_LINES, bare);
            self.lines(CAPA, lines, |line| {
                if let Some(line) = line {
                    found.see(line);
                }
            })
            .await?;
            found
        } else {
            self.capabilities.take().filter(|_| self.logged_in).unwrap_or_else(Capabilities::unknown)
        };
        Ok(self.capabilities.insert(capabilities))
    }

    /// Asks for TLS (RFC 2595, section 4) and gives the stream back for the
    /// handshake, whether or not STLS was announced: who takes the
    /// announcement away must not have his way.
    ///
    /// # Errors
    /// [`Error::Tls`] when it is refused, or when anything stands behind the
    /// reply: it was not said under TLS.
    pub async fn start_tls(mut self) -> Result<S, Error> {
        let (reply, _) = self.request("STLS", b"STLS\r\n").await?;
        if !reply.is_ok() {
            return Err(Error::Tls(format!("the server refused STLS: {reply}")));
        }
        if !self.io.input.is_empty() {
            return Err(Error::Tls("octets stand in the clear behind the reply to STLS".to_owned()));
        }
        Ok(self.io.into_inner())
    }

    /// Turns UTF-8 mode on where it is announced (RFC 6856, section 2); to be
    /// called before the login. `false` where there is none.
    ///
    /// # Errors
    /// Those of the connection. A refusal is none.
    pub async fn utf8(&mut self) -> Result<bool, Error> {
        if !self.capabilities.as_ref().is_some_and(|known| known.utf8) {
            return Ok(false);
        }
        let (reply, _) = self.request("UTF8", b"UTF8\r\n").await?;
        Ok(reply.is_ok())
    }

    /// Sends requests ahead of their turn, to save round trips; the methods
    /// that stand for them must then be called in this order, and nothing
    /// between them. Does nothing where PIPELINING is not announced.
    pub fn ahead(&mut self, questions: &[Question]) {
        if !self.pipelines() || self.in_flight() > 0 || !self.ahead.is_empty() {
            return;
        }
        for question in questions {
            tracing::debug!(target: "rpop::transcript", ">> {}", question.verb());
            self.io.queue(question.verb().as_bytes());
            self.io.queue(b"\r\n");
            self.ahead.push_back(*question);
        }
    }

    /// STAT (RFC 1939, section 5).
    ///
    /// # Errors
    /// [`Error::Refused`], or [`Error::Protocol`] for an answer without a
    /// number.
    pub async fn stat(&mut self) -> Result<Stat, Error> {
        let (reply, _) = self.ask(Question::Stat).await?;
        if !reply.is_ok() {
            return Err(Error::Refused { command: "STAT", reply, said: None, login: false });
        }
        let mut words = reply.text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        let messages = words.next().and_then(number).and_then(|count| u32::try_from(count).ok());
        let Some(messages) = messages else {
            return Err(Error::Protocol(format!("the server's answer to STAT holds no count: {reply}")));
        };
        let stat = Stat { messages, octets: words.next().and_then(number).unwrap_or(0) };
        self.stat = Some(stat);
        Ok(stat)
    }

    /// UIDL (RFC 1939, section 7): calls `see` with each message number and
    /// UID, in whatever order it lists them. A line that cannot be true is counted
    /// and passed over.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on `-ERR` without a code that says otherwise.
    pub async fn uidl(&mut self, mut see: impl FnMut(u32, &[u8])) -> Result<Listing, Error> {
        self.listing(Question::Uidl, Self::MAX_UID + 32, |numbers, line| {
            let Some((number, uid)) = entry(line) else { return false };
            if uid.is_empty() || uid.len() > Self::MAX_UID {
                return false;
            }
            numbers.take(number).is_some_and(|number| {
                see(number, uid);
                true
            })
        })
        .await
    }

    /// LIST (RFC 1939, section 5): as [`Client::uidl`], with sizes in octets.
    ///
    /// # Errors
    /// As [`Client::uidl`].
    pub async fn list(&mut self, mut see: impl FnMut(u32, u64)) -> Result<Listing, Error> {
        self.listing(Question::List, Reply::MAX_LINE, |numbers, line| {
            let Some((at, rest)) = entry(line) else { return false };
            let size = rest.split(u8::is_ascii_whitespace).next().and_then(number);
            let Some(size) = size else { return false };
            numbers.take(at).is_some_and(|at| {
                see(at, size);
                true
            })
        })
        .await
    }

    async fn listing(
        &mut self,
        question: Question,
        max_line: usize,
        mut see: impl FnMut(&mut Numbers, &[u8]) -> bool,
    ) -> Result<Listing, Error> {
        let command = question.verb();
        let (reply, bare) = self.ask(question).await?;
        let mut listing = Listing::default();
        if !reply.is_ok() {
            // Some servers refuse to list nothing.
            if self.stat.is_some_and(|stat| stat.messages == 0) {
                return Ok(listing);
            }
            return Err(match reply.code {
                None => Error::Unsupported { command, reply },
                Some(_) => Error::Refused { command, reply, said: None, login: false },
            });
        }
        let mut numbers = Numbers::new(self.stat.map(|stat| stat.messages));
        let lines = Lines::new(max_line, Self::MAX_LISTING, bare);
        self.lines(command, lines, |line| {
            if line.is_some_and(|line| see(&mut numbers, line)) {
                listing.lines += 1;
            } else {
                listing.void_lines += 1;
            }
        })
        .await?;
        Ok(listing)
    }

    async fn lines(
        &mut self,
        command: &'static str,
        mut lines: Lines,
        mut see: impl FnMut(Option<&[u8]>),
    ) -> Result<(), Error> {
        self.io.flow();
        loop {
            match lines.read(&mut self.io.input, &mut see) {
                Ok(true) => break,
                Ok(false) => {}
                Err(_) => {
                    return Err(Error::Protocol(format!("the server's answer to {command} does not end")));
                }
            }
            self.io.pump(Watch::Data).await.map_err(|ended| self.ended(ended, command))?;
        }
        self.io.progress();
        self.io.rest();
        Ok(())
    }

    /// A request that may have been sent ahead.
    async fn ask(&mut self, question: Question) -> Result<(Reply, bool), Error> {
        let verb = question.verb();
        match self.ahead.pop_front() {
            Some(sent) if sent == question => self.reply(verb).await,
            Some(sent) => Err(Error::OutOfStep(format!("{} was asked and not heard", sent.verb()))),
            None => self.request(verb, format!("{verb}\r\n").as_bytes()).await,
        }
    }

    /// Sends a line and waits for the reply; the flag says that it ended in a
    /// bare LF.
    pub(super) async fn request(&mut self, verb: &'static str, line: &[u8]) -> Result<(Reply, bool), Error> {
        self.in_step()?;
        tracing::debug!(target: "rpop::transcript", ">> {}", shown(line.trim_ascii_end()));
        self.io.queue(line);
        self.reply(verb).await
    }

    /// Queues a line that must not be seen anywhere.
    pub(super) fn queue_secret(&mut self, verb: &'static str, parts: &[&[u8]]) {
        tracing::debug!(target: "rpop::transcript", ">> {verb} ***");
        let mut line = Zeroizing::new(Vec::with_capacity(parts.iter().map(|part| part.len()).sum()));
        for part in parts {
            line.extend_from_slice(part);
        }
        self.io.queue_secret(line);
    }

    /// Nothing has come that was not asked for, and nothing is awaited.
    pub(super) fn in_step(&self) -> Result<(), Error> {
        if !self.io.input.is_empty() || !self.ready.is_empty() {
            return Err(Error::OutOfStep(shown(&self.io.input)));
        }
        if self.in_flight() > 0 || !self.ahead.is_empty() {
            return Err(Error::OutOfStep("replies are awaited".to_owned()));
        }
        Ok(())
    }

    /// Waits for a status line.
    pub(super) async fn reply(&mut self, during: &'static str) -> Result<(Reply, bool), Error> {
        let (line, bare) = self.line(during).await?;
        let reply = Reply::parse(&line).ok_or_else(|| no_status(during, &line))?;
        Ok((reply.detached(), bare))
    }

    /// Waits for a line of at most `limit` octets, as it came: it may repeat a
    /// secret.
    pub(super) async fn line_of(
        &mut self,
        during: &'static str,
        limit: usize,
    ) -> Result<(Bytes, bool), Error> {
        self.io.progress();
        loop {
            match self.io.take_line(limit) {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => {}
                Err(()) => return Err(no_status(during, self.showable(&self.io.input))),
            }
            self.io.pump(Watch::Reply).await.map_err(|ended| self.ended(ended, during))?;
        }
    }

    /// Waits for a line.
    pub(super) async fn line(&mut self, during: &'static str) -> Result<(Bytes, bool), Error> {
        let found = self.line_of(during, Reply::MAX_LINE).await?;
        let found = (self.censored(found.0), found.1);
        tracing::debug!(target: "rpop::transcript", "<< {}", shown(&found.0));
        Ok(found)
    }

    /// `octets`, unless they repeat a secret.
    pub(super) fn showable<'a>(&self, octets: &'a [u8]) -> &'a [u8] {
        let repeats = self.secrets.iter().any(|secret| memmem::find(octets, secret).is_some());
        if repeats { b"***" } else { octets }
    }

    /// A reply line of which nothing but the status and the response code is
    /// left where it repeats a secret.
    pub(super) fn censored(&self, line: Bytes) -> Bytes {
        if self.showable(&line) == &line[..] {
            return line;
        }
        let code = line.windows(2).position(|pair| pair == b" [").zip(memchr::memchr(b']', &line));
        let kept = match code {
            Some((5.., _)) | None => line.iter().position(|octet| *octet == b' ').unwrap_or(0),
            Some((_, end)) => end + 1,
        };
        let kept = self.showable(&line[..kept]);
        let blank: &[u8] = if kept.is_empty() { b"" } else { b" " };
        [kept, blank, b"***"].concat().into()
    }

    pub(super) fn pipelines(&self) -> bool {
        self.capabilities.as_ref().is_some_and(|known| known.pipelining)
    }

    /// The error of a session that ended while `during` was awaited.
    pub(super) fn ended(&self, ended: Ended, during: &'static str) -> Error {
        let before_login = !self.logged_in;
        match ended {
            Ended::Closed => Error::Closed { during, before_login },
            Ended::Io(source) => Error::Io { during, before_login, source },
            Ended::Late { after, .. } => Error::TimedOut { during, before_login, after },
        }
    }

    /// Waits for `how_long` while nothing is in flight: `true` when nothing
    /// came, `false` when octets came that belong to no request.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn quiet(&mut self, how_long: Duration) -> Result<bool, Error> {
        if !self.ready.is_empty() {
            return Ok(false);
        }
        self.io.quiet(how_long).await.map_err(|ended| self.ended(ended, NOTHING))
    }
}

pub(super) fn no_status(during: &'static str, line: &[u8]) -> Error {
    Error::Protocol(format!("the server's answer to {during} is no POP3 reply: {}", shown(line)))
}
