//! The server's end of a connection, plain or TLS, for the scripted servers.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A connection with a buffer for reading lines.
pub struct Wire {
    stream: Kind,
    buffer: Vec<u8>,
    at: usize,
    /// Octets still to be sent before the connection is cut.
    pub fuse: Option<usize>,
}

enum Kind {
    Plain(TcpStream),
    Unix(UnixStream),
    Tls(Box<StreamOwned<ServerConnection, TcpStream>>),
    Gone,
}

impl Wire {
    /// Over TCP.
    pub fn tcp(stream: TcpStream) -> Self {
        drop(stream.set_nodelay(true));
        Self { stream: Kind::Plain(stream), buffer: Vec::new(), at: 0, fuse: None }
    }

    /// Over a unix socket.
    pub fn unix(stream: UnixStream) -> Self {
        Self { stream: Kind::Unix(stream), buffer: Vec::new(), at: 0, fuse: None }
    }

    /// Starts TLS; what was buffered is forgotten, as a careful server does.
    pub fn secure(&mut self, config: &Arc<ServerConfig>) -> io::Result<()> {
        self.buffer.clear();
        self.at = 0;
        let Kind::Plain(tcp) = std::mem::replace(&mut self.stream, Kind::Gone) else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let server = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
        let mut tls = StreamOwned::new(server, tcp);
        while tls.conn.is_handshaking() {
            tls.conn.complete_io(&mut tls.sock)?;
        }
        self.stream = Kind::Tls(Box::new(tls));
        Ok(())
    }

    /// Whether nothing has been received beyond what was read.
    pub fn drained(&self) -> bool {
        self.at == self.buffer.len()
    }

    /// The next line without its line end; `None` at the end of the stream.
    pub fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let rest = self.buffer.get(self.at..).unwrap_or_default();
            if let Some(end) = memchr::memchr(b'\n', rest) {
                let mut line = rest.get(..end).unwrap_or_default().to_vec();
                self.at += end + 1;
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                return Ok(Some(line));
            }
            if !self.more()? {
                return Ok(None);
            }
        }
    }

    /// Exactly `count` octets.
    pub fn octets(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() - self.at < count {
            if !self.more()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let taken = self.buffer.get(self.at..self.at + count).unwrap_or_default().to_vec();
        self.at += count;
        Ok(taken)
    }

    /// Reads on until the peer closes.
    pub fn linger(&mut self) {
        while matches!(self.more(), Ok(true)) {
            self.at = self.buffer.len();
        }
    }

    /// Cuts the connection.
    pub fn close(&mut self) {
        match &mut self.stream {
            Kind::Plain(tcp) => drop(tcp.shutdown(Shutdown::Both)),
            Kind::Unix(unix) => drop(unix.shutdown(Shutdown::Both)),
            Kind::Tls(tls) => drop(tls.sock.shutdown(Shutdown::Both)),
            Kind::Gone => {}
        }
    }

    fn more(&mut self) -> io::Result<bool> {
        if self.at == self.buffer.len() {
            self.buffer.clear();
            self.at = 0;
        }
        let mut piece = vec![0; 65536];
        let read = match &mut self.stream {
            Kind::Plain(tcp) => tcp.read(&mut piece)?,
            Kind::Unix(unix) => unix.read(&mut piece)?,
            Kind::Tls(tls) => tls.read(&mut piece)?,
            Kind::Gone => 0,
        };
        self.buffer.extend_from_slice(piece.get(..read).unwrap_or_default());
        Ok(read > 0)
    }
}

impl Write for Wire {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        let octets = match self.fuse {
            Some(0) => {
                self.close();
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            Some(left) => octets.get(..left.min(octets.len())).unwrap_or_default(),
            None => octets,
        };
        let written = match &mut self.stream {
            Kind::Plain(tcp) => tcp.write(octets)?,
            Kind::Unix(unix) => unix.write(octets)?,
            Kind::Tls(tls) => tls.write(octets)?,
            Kind::Gone => return Err(io::ErrorKind::NotConnected.into()),
        };
        if let Some(left) = &mut self.fuse {
            *left -= written;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.stream {
            Kind::Tls(tls) => tls.flush(),
            _ => Ok(()),
        }
    }
}
