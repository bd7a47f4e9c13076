//! Commands and events in the transaction state, pipelined where the server
//! announces it (RFC 2449, 6.8).

use std::fmt;
use std::io::Write as _;

use tokio::io::{AsyncRead, AsyncWrite};

use super::client::{Client, no_status};
use super::error::{Error, NOTHING};
use super::reply::{Reply, Status};
use super::transport::{Ended, Watch};
use crate::domain::text::shown;
use crate::domain::wire::{Decoder, Piece, Tally};

/// A command of the transaction state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// RETR: answered with [`Event::Begin`], data and [`Event::End`], or with
    /// a refusing [`Event::Reply`].
    Retr(u32),
    /// DELE.
    Dele(u32),
    /// NOOP.
    Noop,
    /// RSET.
    Rset,
    /// LIST with a number; see [`Reply::numbers`].
    ListOne(u32),
    /// QUIT.
    Quit,
}

impl Command {
    /// The command without its argument.
    pub fn verb(self) -> &'static str {
        match self {
            Self::Retr(_) => "RETR",
            Self::Dele(_) => "DELE",
            Self::Noop => "NOOP",
            Self::Rset => "RSET",
            Self::ListOne(_) => "LIST",
            Self::Quit => "QUIT",
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Retr(number) | Self::Dele(number) | Self::ListOne(number) => {
                write!(f, "{} {number}", self.verb())
            }
            Self::Noop | Self::Rset | Self::Quit => f.write_str(self.verb()),
        }
    }
}

/// What the server did.
#[derive(Clone, Debug)]
pub enum Event {
    /// It answered a command in one line; also `-ERR` to RETR.
    Reply {
        /// Which.
        command: Command,
        /// How.
        reply: Reply,
    },
    /// A message begins.
    Begin {
        /// Its number.
        number: u32,
    },
    /// Octets of it.
    Data(Piece),
    /// It has ended.
    End(BodyEnd),
}

/// What a message was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyEnd {
    /// Its number.
    pub number: u32,
    /// Octets and lines; [`Tally::agrees_with`] compares them with LIST.
    pub tally: Tally,
}

/// A command that was written, or soon will be.
#[derive(Debug)]
pub(super) struct Sent {
    command: Command,
    /// Where it ends among all octets that were ever written.
    end: u64,
}

/// A message that flows.
#[derive(Debug)]
pub(super) struct Body {
    number: u32,
    decoder: Decoder,
}

impl<S> Client<S> {
    /// Commands that are sent and not fully answered, those that wait for
    /// their turn included, and one more while [`Client::event`] has
    /// something to tell at once: 0 means that nothing is to be heard.
    pub fn in_flight(&self) -> usize {
        self.flight.len() + self.queue.len() + usize::from(!self.ready.is_empty())
    }

    /// The message that flows, as far as it was read; `None` between messages.
    pub fn flowing(&self) -> Option<BodyEnd> {
        self.body.as_ref().map(|body| BodyEnd { number: body.number, tally: body.decoder.tally() })
    }

    /// Queues a command; [`Client::event`] writes it. Where PIPELINING is not
    /// announced each waits for the answer to the one before it.
    pub fn send(&mut self, command: Command) {
        self.queue.push_back(command);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Client<S> {
    /// Commands that are written ahead of their answers, at most.
    pub const WINDOW: usize = 1024;

    /// Whether octets have come although nothing is in flight.
    pub fn unsolicited(&self) -> bool {
        self.flight.is_empty() && self.ready.is_empty() && !self.io.input.is_empty()
    }

    /// Writes what is queued and waits for what the server does next.
    /// Cancel-safe: nothing is lost when the future is dropped. Deadlines
    /// count the time spent in here since the last event. With nothing in
    /// flight it waits until the server says something all the same, or
    /// closes the connection, which are errors.
    ///
    /// # Errors
    /// After any error the session must be dropped.
    pub async fn event(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            self.decode()?;
            if !self.ready.is_empty() {
                continue;
            }
            self.write_ahead();
            let watch = match (&self.body, self.flight.is_empty()) {
                (Some(_), _) => Watch::Data,
                (None, false) => Watch::Reply,
                (None, true) => Watch::Idle,
            };
            if let Err(ended) = self.io.pump(watch).await {
                return Err(self.event_error(ended));
            }
        }
    }

    fn write_ahead(&mut self) {
        let window = if self.pipelines() { Self::WINDOW } else { 1 };
        while self.flight.len() < window
            && let Some(command) = self.queue.pop_front()
        {
            if self.flight.is_empty() {
                self.io.progress();
            }
            let mut line = [0; 24];
            let mut rest = &mut line[..];
            // A verb and ten digits always fit.
            let _fits = write!(rest, "{command}\r\n");
            let left = rest.len();
            let end = self.io.queue(&line[..line.len() - left]);
            tracing::debug!(target: "rpop::transcript", ">> {command}");
            self.flight.push_back(Sent { command, end });
        }
    }

    /// Makes events of what was read; none if it is too little.
    fn decode(&mut self) -> Result<(), Error> {
        if let Some(body) = &mut self.body {
            let ready = &mut self.ready;
            let ended = body.decoder.decode(&mut self.io.input, |piece| ready.push_back(Event::Data(piece)));
            if ended {
                let end = BodyEnd { number: body.number, tally: body.decoder.tally() };
                self.ready.push_back(Event::End(end));
                self.body = None;
                self.answered();
            }
            return Ok(());
        }
        if self.io.input.is_empty() {
            return Ok(());
        }
        // A reply to what has not been written is a reply to nothing.
        let Some(command) = self.flight.front().filter(|sent| sent.end <= self.io.written()) else {
            return Err(Error::OutOfStep(shown(self.showable(&self.io.input))));
        };
        let command = command.command;
        let line = match self.io.take_line(Reply::MAX_LINE) {
            Ok(Some((line, _))) => self.censored(line),
            Ok(None) => return Ok(()),
            Err(()) => return Err(no_status(command.verb(), self.showable(&self.io.input))),
        };
        tracing::debug!(target: "rpop::transcript", "<< {}", shown(&line));
        let reply = match Reply::parse(&line) {
            Some(reply) => reply,
            // A deletion that is answered with rubbish has not happened; that
            // is no reason to give up those that did.
            None if matches!(command, Command::Dele(_)) => {
                Reply { status: Status::Err, code: None, text: line }
            }
            None => return Err(no_status(command.verb(), &line)),
        };
        match command {
            Command::Retr(number) if reply.is_ok() => {
                self.io.flow();
                self.body = Some(Body { number, decoder: Decoder::new() });
                self.ready.push_back(Event::Begin { number });
            }
            _ => {
                self.ready.push_back(Event::Reply { command, reply: reply.detached() });
                self.answered();
            }
        }
        Ok(())
    }

    /// The first command in flight is done with.
    fn answered(&mut self) {
        self.flight.pop_front();
        self.io.progress();
        if self.flight.is_empty() && self.queue.is_empty() {
            self.io.rest();
        }
    }

    fn event_error(&self, ended: Ended) -> Error {
        match (ended, &self.body) {
            (Ended::Late { silent, .. }, Some(body)) => Error::Stalled {
                number: body.number,
                octets: body.decoder.tally().octets,
                ends_with_dot_crlf: self.io.input.is_empty() && body.decoder.ends_with_dot_crlf(),
                silent,
            },
            (ended, _) => {
                let during = self.flight.front().map_or(NOTHING, |sent| sent.command.verb());
                self.ended(ended, during)
            }
        }
    }
}
