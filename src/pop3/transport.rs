//! Octets in and out: both directions at once, with deadlines.

use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use memchr::memchr;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

use crate::domain::work::Timeouts;

/// How long a server may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// For a whole reply line.
    pub reply: Duration,
    /// Without any octet while a message or a listing flows.
    pub data: Duration,
    /// Octets a second, averaged over [`Deadlines::WINDOW`], below which a
    /// message or a listing flows too slowly.
    pub floor: u32,
}

impl Deadlines {
    /// Over which the floor is averaged.
    pub const WINDOW: Duration = Duration::from_mins(1);

    /// With the floor of 1 KiB a second.
    pub fn new(reply: Duration, data: Duration) -> Self {
        Self { reply, data, floor: 1024 }
    }

    fn window_floor(&self) -> u64 {
        u64::from(self.floor) * Self::WINDOW.as_secs()
    }
}

impl From<&Timeouts> for Deadlines {
    fn from(timeouts: &Timeouts) -> Self {
        Self::new(timeouts.reply, timeouts.data)
    }
}

/// Which deadline counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watch {
    /// None: nothing is awaited.
    Idle,
    /// A reply is due.
    Reply,
    /// Data flows.
    Data,
}

/// Why nothing more comes.
#[derive(Debug)]
pub(super) enum Ended {
    Closed,
    Io(io::Error),
    /// A deadline has passed.
    Late {
        /// No octet came for as long as the deadline says; otherwise they
        /// came too slowly.
        silent: bool,
        /// The deadline.
        after: Duration,
    },
}

/// Time spent waiting for the server; not what the caller spent elsewhere.
#[derive(Debug, Default)]
struct Waits {
    /// Since the last progress.
    progress: Duration,
    /// In the current window of the floor.
    window: Duration,
    /// Octets in it.
    window_octets: u64,
}

/// Counts a wait also where it is cancelled.
struct Stopwatch<'a> {
    started: Instant,
    waits: &'a mut Waits,
}

impl Drop for Stopwatch<'_> {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        self.waits.progress += took;
        self.waits.window += took;
    }
}

pub(super) struct Transport<S> {
    stream: S,
    /// What was read and not yet taken.
    pub(super) input: BytesMut,
    /// What is to be written, from `out_at` on. Wiped when dropped, since
    /// passwords pass through it.
    out: Zeroizing<Vec<u8>>,
    out_at: usize,
    unflushed: bool,
    write_error: Option<io::Error>,
    /// Octets written since the start.
    written: u64,
    deadlines: Deadlines,
    waits: Waits,
    /// Octets read since the buffer was last given back.
    flowed: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Transport<S> {
    /// Octets that an idle session's buffer holds at most, and the first
    /// thing that is read of anything.
    const SMALL: usize = 4 * 1024;
    /// Octets read at once when much flows.
    const LARGE: usize = 128 * 1024;

    pub(super) fn new(stream: S, deadlines: Deadlines) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            out: Zeroizing::default(),
            out_at: 0,
            unflushed: false,
            write_error: None,
            written: 0,
            deadlines,
            waits: Waits::default(),
            flowed: 0,
        }
    }

    pub(super) fn stream(&self) -> &S {
        &self.stream
    }

    pub(super) fn into_inner(self) -> S {
        self.stream
    }

    /// Queues octets for writing and returns where in all that was ever
    /// written they end.
    pub(super) fn queue(&mut self, octets: &[u8]) -> u64 {
        if self.out_at == self.out.len() {
            self.out.clear();
            self.out_at = 0;
        }
        self.out.extend_from_slice(octets);
        self.queued()
    }

    /// The same for octets that must not stay in memory.
    pub(super) fn queue_secret(&mut self, octets: Zeroizing<Vec<u8>>) -> u64 {
        if self.out_at < self.out.len() {
            let mut all = Zeroizing::new(Vec::with_capacity(self.out.len() - self.out_at + octets.len()));
            all.extend_from_slice(&self.out[self.out_at..]);
            all.extend_from_slice(&octets);
            self.out = all;
        } else {
            self.out = octets;
        }
        self.out_at = 0;
        self.queued()
    }

    fn queued(&self) -> u64 {
        self.written + (self.out.len() - self.out_at) as u64
    }

    /// Octets written since the start.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// A reply came, or a new one is awaited: its deadline begins.
    pub(super) fn progress(&mut self) {
        self.waits.progress = Duration::ZERO;
    }

    /// Data begins to flow: the windows of the floor begin.
    pub(super) fn flow(&mut self) {
        self.waits = Waits::default();
    }

    /// Gives a large buffer back where nothing is expected.
    pub(super) fn rest(&mut self) {
        if self.input.is_empty() {
            self.flowed = 0;
            if self.input.capacity() > 2 * Self::SMALL {
                self.input = BytesMut::new();
            }
        }
    }

    /// Takes a line without its end, or `None` if none is complete; the flag
    /// says that it ended in a bare LF. `Err` if it is longer than `limit`.
    pub(super) fn take_line(&mut self, limit: usize) -> Result<Option<(Bytes, bool)>, ()> {
        let window = self.input.get(..limit).unwrap_or(&self.input);
        let Some(end) = memchr(b'\n', window) else {
            return if self.input.len() >= limit { Err(()) } else { Ok(None) };
        };
        let mut line = self.input.split_to(end + 1).freeze();
        let bare = !line.ends_with(b"\r\n");
        line.truncate(line.len() - if bare { 1 } else { 2 });
        Ok(Some((line, bare)))
    }

    /// Writes what is queued and waits until at least one octet was read.
    /// Cancel-safe.
    pub(super) async fn pump(&mut self, watch: Watch) -> Result<(), Ended> {
        if self.input.capacity() - self.input.len() < Self::SMALL / 2 {
            let size = (self.flowed / 4).clamp(Self::SMALL, Self::LARGE);
            self.input.reserve(size);
        }
        loop {
            let limit = match watch {
                Watch::Idle => None,
                Watch::Reply => Some(self.deadlines.reply.saturating_sub(self.waits.progress)),
                Watch::Data => {
                    let silence = self.deadlines.data.saturating_sub(self.waits.progress);
                    Some(silence.min(Deadlines::WINDOW.saturating_sub(self.waits.window)))
                }
            };
            let read = self.wait(limit).await;
            match read {
                Some(Ok(0)) => {
                    return Err(match self.write_error.take() {
                        Some(error) if !is_closed(&error) => Ended::Io(error),
                        _ => Ended::Closed,
                    });
                }
                Some(Ok(octets)) => {
                    self.flowed = self.flowed.saturating_add(octets);
                    if watch == Watch::Data {
                        self.waits.progress = Duration::ZERO;
                        self.waits.window_octets += octets as u64;
                        self.check_floor()?;
                    }
                    return Ok(());
                }
                Some(Err(error)) if is_closed(&error) => return Err(Ended::Closed),
                Some(Err(error)) => return Err(Ended::Io(error)),
                None if watch == Watch::Data && self.waits.progress < self.deadlines.data => {
                    self.check_floor()?;
                }
                None => {
                    let after = if watch == Watch::Data { self.deadlines.data } else { self.deadlines.reply };
                    return Err(Ended::Late { silent: true, after });
                }
            }
        }
    }

    fn check_floor(&mut self) -> Result<(), Ended> {
        if self.waits.window >= Deadlines::WINDOW {
            if self.waits.window_octets < self.deadlines.window_floor() {
                return Err(Ended::Late { silent: false, after: Deadlines::WINDOW });
            }
            self.waits.window = Duration::ZERO;
            self.waits.window_octets = 0;
        }
        Ok(())
    }

    /// Writes, and reads once; `None` when `limit` has passed.
    async fn wait(&mut self, limit: Option<Duration>) -> Option<io::Result<usize>> {
        let Self { stream, input, out, out_at, unflushed, write_error, written, waits, .. } = self;
        let work = poll_fn(|cx| {
            if write_error.is_none()
                && let Err(error) = poll_write(stream, cx, out, out_at, unflushed, written)
            {
                // What the server still has to say may explain it.
                *write_error = Some(error);
            }
            pin!(stream.read_buf(input)).poll(cx)
        });
        let _counts = Stopwatch { started: Instant::now(), waits };
        match limit {
            None => Some(work.await),
            Some(limit) => timeout(limit, work).await.ok(),
        }
    }

    /// Waits for `how_long` while nothing is expected; `true` when nothing
    /// came.
    pub(super) async fn quiet(&mut self, how_long: Duration) -> Result<bool, Ended> {
        if !self.input.is_empty() {
            return Ok(false);
        }
        match timeout(how_long, self.pump(Watch::Idle)).await {
            Ok(Ok(())) => Ok(false),
            Ok(Err(ended)) => Err(ended),
            Err(_) => Ok(true),
        }
    }
}

/// Writes and flushes as much as goes without waiting.
fn poll_write<S: AsyncWrite + Unpin>(
    stream: &mut S,
    cx: &mut Context<'_>,
    out: &mut Zeroizing<Vec<u8>>,
    at: &mut usize,
    unflushed: &mut bool,
    written: &mut u64,
) -> io::Result<()> {
    while *at < out.len() {
        match Pin::new(&mut *stream).poll_write(cx, &out[*at..]) {
            Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(Ok(octets)) => {
                *at += octets;
                *written += octets as u64;
                *unflushed = true;
            }
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => return Ok(()),
        }
    }
    if *unflushed {
        // Nothing secret stays behind.
        *out = Zeroizing::default();
        *at = 0;
        if let Poll::Ready(flushed) = Pin::new(stream).poll_flush(cx) {
            *unflushed = false;
            flushed?;
        }
    }
    Ok(())
}

/// Whether an error says no more than that the other side has gone.
fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof, WriteZero,
    };
    matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof | WriteZero
    )
}
