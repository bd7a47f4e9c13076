//! A blocking connection with a large read buffer.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::TcpStream;

use memchr::{memchr, memmem};

/// Octets read at a time: large, so that system calls are not what is measured.
const CHUNK: usize = 256 * 1024;

/// A stream and what was read from it.
pub struct Lines {
    pub stream: TcpStream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Lines {
    pub fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; 2 * CHUNK], start: 0, end: 0 })
    }

    pub fn connect(addr: &str) -> Result<Self> {
        Self::new(TcpStream::connect(addr)?)
    }

    pub fn send(&mut self, octets: &[u8]) -> Result<()> {
        self.stream.write_all(octets)
    }

    /// What is buffered and not consumed.
    pub fn filled(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    pub fn consume(&mut self, octets: usize) {
        self.start += octets;
    }

    /// Reads more; `Ok(0)` is the end of the stream.
    pub fn fill(&mut self) -> Result<usize> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.buffer.len() - self.end < CHUNK {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.buffer.len() {
            return Err(Error::new(ErrorKind::InvalidData, "line too long"));
        }
        let got = self.stream.read(&mut self.buffer[self.end..])?;
        self.end += got;
        Ok(got)
    }

    /// The next line without its end, handed to `see`.
    pub fn line<T>(&mut self, see: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let mut looked = 0;
        loop {
            let filled = &self.buffer[self.start..self.end];
            if let Some(at) = memchr(b'\n', &filled[looked..]) {
                let length = looked + at;
                let line = &filled[..length];
                let seen = see(line.strip_suffix(b"\r").unwrap_or(line));
                self.start += length + 1;
                return Ok(seen);
            }
            looked = filled.len();
            if self.fill()? == 0 {
                return Err(Error::new(ErrorKind::UnexpectedEof, "the server closed the connection"));
            }
        }
    }

    /// A POP3 `+OK` line, or an error with what was said instead.
    pub fn ok(&mut self) -> Result<()> {
        self.line(|line| if line.starts_with(b"+OK") { Ok(()) } else { Err(refused(line)) })?
    }

    /// An SMTP reply of one or more lines whose first digit is `class`.
    pub fn reply(&mut self, class: u8) -> Result<()> {
        loop {
            let last = self.line(|line| match line {
                [first, _, _, b'-', ..] if *first == class => Ok(false),
                [first, ..] if *first == class => Ok(true),
                _ => Err(refused(line)),
            })??;
            if last {
                return Ok(());
            }
        }
    }

    /// Discards up to and including a lone dot; the octets before it.
    pub fn until_dot(&mut self, finder: &memmem::Finder<'_>) -> Result<u64> {
        let mut octets = 0;
        while self.filled().len() < 3 {
            self.more()?;
        }
        if self.filled().starts_with(b".\r\n") {
            self.consume(3);
            return Ok(0);
        }
        loop {
            if let Some(at) = finder.find(self.filled()) {
                self.consume(at + 5);
                return Ok(octets + at as u64 + 2);
            }
            let gone = self.filled().len().saturating_sub(4);
            self.consume(gone);
            octets += gone as u64;
            self.more()?;
        }
    }

    fn more(&mut self) -> Result<()> {
        match self.fill()? {
            0 => Err(Error::new(ErrorKind::UnexpectedEof, "the server closed the connection")),
            _ => Ok(()),
        }
    }
}

fn refused(line: &[u8]) -> Error {
    Error::other(format!("unexpected reply: {}", String::from_utf8_lossy(line)))
}
