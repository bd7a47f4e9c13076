//! A stream that is read and written at once, so that neither side can block
//! the other for ever when both have much to say.

use std::collections::VecDeque;
use std::future::Future;
use std::io::IoSlice;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use super::Error;
use super::reply::{Decoder, Reply};
use crate::domain::text::shown;

/// Below this a copy is cheaper than a segment of a vectored write.
const SMALL: usize = 512;
/// Segments of one vectored write.
const SEGMENTS: usize = 64;
const READ: usize = 4096;
/// The target of transcripts.
const TRANSCRIPT: &str = "rpop::transcript";

/// Tells the connections of a transcript apart.
static CONNECTIONS: AtomicU64 = AtomicU64::new(1);

/// The two directions of a connection: octets queued for the server, and
/// replies decoded from it. All methods named `poll_…` may be dropped and
/// called again without loss.
#[derive(Debug)]
pub struct Wire<S> {
    stream: S,
    decoder: Decoder,
    input: BytesMut,
    output: VecDeque<Bytes>,
    /// The tail of the output, still growing.
    tail: BytesMut,
    queued: u64,
    written: u64,
    unflushed: bool,
    /// In transcripts.
    number: u64,
    /// The next reply is not for the transcript as it is.
    hushed: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Nothing is sent or read yet.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            decoder: Decoder::default(),
            input: BytesMut::new(),
            output: VecDeque::new(),
            tail: BytesMut::new(),
            queued: 0,
            written: 0,
            unflushed: false,
            number: CONNECTIONS.fetch_add(1, Ordering::Relaxed),
            hushed: false,
        }
    }

    /// The stream.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// The stream alone, what was read and not decoded with it.
    pub fn into_parts(self) -> (S, BytesMut) {
        (self.stream, self.input)
    }

    /// Queues the command line that `write` appends, and tells the transcript.
    pub fn say(&mut self, write: impl FnOnce(&mut BytesMut)) {
        let before = self.tail.len();
        self.put(write);
        let connection = self.number;
        tracing::debug!(
            target: TRANSCRIPT,
            connection,
            ">> {}",
            shown(self.tail.get(before..).unwrap_or_default().trim_ascii_end())
        );
    }

    /// Queues a line of which the transcript gets no more than `verb`, and
    /// whose reply it gets by [`told`](Self::told) only: some servers repeat
    /// what they did not understand.
    pub fn say_secret(&mut self, verb: &str, write: impl FnOnce(&mut BytesMut)) {
        self.put(write);
        self.hushed = true;
        let (connection, blank) = (self.number, if verb.is_empty() { "" } else { " " });
        tracing::debug!(target: TRANSCRIPT, connection, ">> {verb}{blank}***");
    }

    /// Tells the transcript of octets of a message, which it does not get.
    pub fn note_octets(&self, octets: u64, whole: bool) {
        let (connection, end) = (self.number, if whole { "" } else { ", and then broken off" });
        tracing::debug!(target: TRANSCRIPT, connection, ">> ({octets} octets{end})");
    }

    /// Tells the transcript of a reply.
    pub fn told(&self, reply: &Reply) {
        let connection = self.number;
        if !tracing::enabled!(target: TRANSCRIPT, tracing::Level::DEBUG) {
            return;
        }
        let mut lines = reply.lines().peekable();
        while let Some(line) = lines.next() {
            let mark = if lines.peek().is_some() { "-" } else { " " };
            tracing::debug!(target: TRANSCRIPT, connection, "<< {}{mark}{}", reply.code(), shown(line));
        }
    }

    /// Queues what `write` appends: nothing that the transcript should have.
    pub fn put(&mut self, write: impl FnOnce(&mut BytesMut)) {
        let before = self.tail.len();
        write(&mut self.tail);
        self.queued += (self.tail.len() - before) as u64;
    }

    /// Queues octets without copying them, unless they are few.
    pub fn push(&mut self, octets: Bytes) {
        if octets.len() < SMALL {
            return self.put(|tail| tail.extend_from_slice(&octets));
        }
        self.queued += octets.len() as u64;
        self.seal();
        self.output.push_back(octets);
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.output.push_back(self.tail.split().freeze());
        }
    }

    /// Octets queued since the connection was made.
    pub fn queued(&self) -> u64 {
        self.queued
    }

    /// Octets of these that the stream has taken.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Octets that the stream has not taken yet.
    pub fn backlog(&self) -> u64 {
        self.queued - self.written
    }

    /// Whether octets have been read that no reply has used up.
    pub fn has_input(&self) -> bool {
        !self.input.is_empty() || self.decoder.is_amid()
    }

    /// Writes until all is out. Ready when nothing is left.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.seal();
        while !self.output.is_empty() {
            let mut segments = [IoSlice::new(&[]); SEGMENTS];
            let mut count = 0;
            for (slot, octets) in segments.iter_mut().zip(&self.output) {
                *slot = IoSlice::new(octets);
                count += 1;
            }
            let slices = segments.get(..count).unwrap_or_default();
            let mut taken =
                ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, slices)).map_err(Error::Io)?;
            if taken == 0 {
                return Poll::Ready(Err(Error::Io(std::io::ErrorKind::WriteZero.into())));
            }
            self.unflushed = true;
            self.written += taken as u64;
            while let Some(front) = self.output.front_mut() {
                if taken < front.len() {
                    front.advance(taken);
                    break;
                }
                taken -= front.len();
                self.output.pop_front();
            }
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx)).map_err(Error::Io)?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// The next reply.
    ///
    /// # Errors
    /// [`Error::Closed`] at the end of the stream, also amid a reply;
    /// [`Error::Io`]; [`Error::Reply`].
    pub fn poll_reply(&mut self, cx: &mut Context<'_>) -> Poll<Result<Reply, Error>> {
        loop {
            if !self.input.is_empty()
                && let Some(reply) = self.decoder.decode(&mut self.input)?
            {
                if !std::mem::take(&mut self.hushed) {
                    self.told(&reply);
                }
                return Poll::Ready(Ok(reply));
            }
            self.input.reserve(READ);
            let count = ready!(pin!(self.stream.read_buf(&mut self.input)).poll(cx)).map_err(Error::Io)?;
            if count == 0 {
                return Poll::Ready(Err(Error::Closed));
            }
        }
    }

    /// Sends all that is queued and awaits one reply.
    ///
    /// # Errors
    /// Also [`Error::TimedOut`] after `within`.
    pub async fn exchange(&mut self, awaited: &'static str, within: Duration) -> Result<Reply, Error> {
        let both = std::future::poll_fn(|cx| {
            // A server that refuses may close before it has read everything:
            // its words count, so a failed write waits for them.
            let broken = match self.poll_write(cx) {
                Poll::Ready(Err(error)) => Some(error),
                _ => None,
            };
            match (self.poll_reply(cx), broken) {
                (Poll::Ready(Ok(reply)), _) => Poll::Ready(Ok(reply)),
                (_, Some(error)) | (Poll::Ready(Err(error)), None) => Poll::Ready(Err(error)),
                (Poll::Pending, None) => Poll::Pending,
            }
        });
        tokio::time::timeout(within, both).await.unwrap_or(Err(Error::TimedOut { awaited, after: within }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn reads_while_the_other_side_does_not_read() {
        // The pipe holds 64 octets each way: a client that only wrote would
        // wait for a server that waits for the client to read.
        let (ours, mut theirs) = tokio::io::duplex(64);
        let server = tokio::spawn(async move {
            for _ in 0..100 {
                theirs.write_all(b"250 a reply that is not short at all\r\n").await.unwrap();
            }
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).await.unwrap();
            all.len()
        });
        let mut wire = Wire::new(ours);
        wire.push(Bytes::from(vec![b'x'; 10_000]));
        for _ in 0..100 {
            wire.exchange("reply", Duration::from_secs(5)).await.unwrap();
        }
        std::future::poll_fn(|cx| wire.poll_write(cx)).await.unwrap();
        drop(wire);
        assert_eq!(server.await.unwrap(), 10_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_meets_a_deadline() {
        let (ours, _theirs) = tokio::io::duplex(64);
        let error = Wire::new(ours).exchange("greeting", Duration::from_mins(1)).await.unwrap_err();
        assert_eq!(error.to_string(), "no greeting within 60 s");
        assert!(error.is_transient());
    }

    // quirks: "`+OK` without text; ... EOF anywhere"
    #[tokio::test]
    async fn an_end_amid_a_reply_is_no_reply() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        theirs.write_all(b"250-one\r\n250 tw").await.unwrap();
        drop(theirs);
        let error = Wire::new(ours).exchange("reply", Duration::from_mins(1)).await.unwrap_err();
        assert!(matches!(error, Error::Closed));
    }

    #[tokio::test]
    async fn counts_what_the_stream_has_taken() {
        let (ours, mut theirs) = tokio::io::duplex(1000);
        let mut wire = Wire::new(ours);
        wire.put(|out| out.extend_from_slice(b"MAIL\r\n"));
        wire.push(Bytes::from(vec![b'y'; 2000]));
        assert_eq!((wire.queued(), wire.written()), (2006, 0));
        let once = |wire: &mut Wire<_>| {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            wire.poll_write(&mut cx).is_ready()
        };
        assert!(!once(&mut wire));
        assert_eq!(wire.backlog(), 1006);
        let mut sink = vec![0; 1500];
        theirs.read_exact(&mut sink[..1000]).await.unwrap();
        assert!(!once(&mut wire));
        theirs.read_exact(&mut sink[..1000]).await.unwrap();
        assert!(once(&mut wire));
        assert_eq!(wire.backlog(), 0);
    }
}
