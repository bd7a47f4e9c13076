//! One type for every transport that mail travels on.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use super::binding::ChannelBindings;
use super::error::TlsError;
use crate::domain::work::{TlsMode, TlsPolicy};

/// What any other transport must be able to do.
pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// A connection: TCP, a unix socket or anything else, with or without TLS.
///
/// A TLS peer that closes without `close_notify` is read as an end of file,
/// as on clear TCP: POP3, SMTP and LMTP mark the end of everything they send
/// (RFC 1939, section 3; RFC 5321, section 4.1.1.4), so a cut is noticed
/// by them.
pub struct Stream {
    pub(super) kind: Kind,
    peer: Option<SocketAddr>,
}

pub(super) enum Kind {
    Tcp(TcpStream),
    Unix(UnixStream),
    Other(Box<dyn Transport>),
    Tls(Box<TlsStream<TcpStream>>),
    TlsOther(Box<TlsStream<Box<dyn Transport>>>),
}

impl Stream {
    pub(super) fn tcp(stream: TcpStream) -> Self {
        let peer = stream.peer_addr().ok();
        Self { kind: Kind::Tcp(stream), peer }
    }

    pub(super) fn unix(stream: UnixStream) -> Self {
        Self { kind: Kind::Unix(stream), peer: None }
    }

    pub(super) fn tls(kind: Kind, peer: Option<SocketAddr>) -> Self {
        Self { kind, peer }
    }

    /// Any other transport, taken as not encrypted: a pair in memory, a proxy.
    pub fn other(transport: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self { kind: Kind::Other(Box::new(transport)), peer: None }
    }

    /// Whether TLS protects it.
    pub fn is_encrypted(&self) -> bool {
        matches!(self.kind, Kind::Tls(_) | Kind::TlsOther(_))
    }

    /// The address connected to, of TCP.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    /// `TLSv1.3` or `TLSv1.2`, where TLS protects it.
    pub fn tls_version(&self) -> Option<&'static str> {
        let version = match &self.kind {
            Kind::Tls(stream) => stream.get_ref().1.protocol_version(),
            Kind::TlsOther(stream) => stream.get_ref().1.protocol_version(),
            Kind::Tcp(_) | Kind::Unix(_) | Kind::Other(_) => None,
        };
        match version? {
            rustls::ProtocolVersion::TLSv1_3 => Some("TLSv1.3"),
            rustls::ProtocolVersion::TLSv1_2 => Some("TLSv1.2"),
            _ => Some("TLS"),
        }
    }

    /// Whether the TLS session was resumed from an earlier connection.
    pub fn tls_resumed(&self) -> bool {
        let kind = match &self.kind {
            Kind::Tls(stream) => stream.get_ref().1.handshake_kind(),
            Kind::TlsOther(stream) => stream.get_ref().1.handshake_kind(),
            Kind::Tcp(_) | Kind::Unix(_) | Kind::Other(_) => None,
        };
        kind == Some(rustls::HandshakeKind::Resumed)
    }

    /// What identifies this TLS connection on both ends; nothing where there
    /// is none.
    pub fn channel_bindings(&self) -> ChannelBindings {
        match &self.kind {
            Kind::Tls(stream) => ChannelBindings::of(stream.get_ref().1),
            Kind::TlsOther(stream) => ChannelBindings::of(stream.get_ref().1),
            Kind::Tcp(_) | Kind::Unix(_) | Kind::Other(_) => ChannelBindings::default(),
        }
    }

    /// The proof that `policy` is kept on this connection as it is now.
    ///
    /// # Errors
    /// [`TlsError::Required`] when the policy demands TLS and there is none:
    /// STLS was refused, stripped or not yet done.
    pub fn clearance(&self, policy: &TlsPolicy) -> Result<Clearance, TlsError> {
        let encrypted = self.is_encrypted();
        match policy.mode {
            TlsMode::Implicit | TlsMode::StartTls if !encrypted => Err(TlsError::Required),
            TlsMode::Implicit | TlsMode::StartTls | TlsMode::Opportunistic | TlsMode::None => {
                Ok(Clearance { encrypted })
            }
        }
    }
}

/// The proof that a connection is as safe as its [`TlsPolicy`] demands. Only
/// [`Stream::clearance`] makes one, so what takes a clearance cannot be
/// reached on a connection that lacks the TLS it must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a clearance is to be handed to what sends credentials"]
pub struct Clearance {
    encrypted: bool,
}

impl Clearance {
    /// Whether TLS protects the connection.
    pub fn encrypted(self) -> bool {
        self.encrypted
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.kind {
            Kind::Tcp(_) => "tcp",
            Kind::Unix(_) => "unix",
            Kind::Other(_) => "other",
            Kind::Tls(_) | Kind::TlsOther(_) => "tls",
        };
        f.debug_struct("Stream").field("kind", &kind).field("peer", &self.peer).finish_non_exhaustive()
    }
}

macro_rules! each {
    ($self:ident, $stream:ident => $what:expr) => {
        match &mut $self.get_mut().kind {
            Kind::Tcp($stream) => $what,
            Kind::Unix($stream) => $what,
            Kind::Other($stream) => $what,
            Kind::Tls($stream) => $what,
            Kind::TlsOther($stream) => $what,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let result = ready!(each!(self, stream => Pin::new(stream).poll_read(cx, buf)));
        Poll::Ready(match result {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            result => result,
        })
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.kind {
            Kind::Tcp(stream) => stream.is_write_vectored(),
            Kind::Unix(stream) => stream.is_write_vectored(),
            Kind::Other(stream) => stream.is_write_vectored(),
            Kind::Tls(stream) => stream.is_write_vectored(),
            Kind::TlsOther(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
