//! The plainest client: lines out, lines in.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// A connection to a line-oriented server on a loopback port.
pub struct Raw {
    reader: BufReader<TcpStream>,
}

impl Raw {
    /// Connects.
    pub fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("a listener");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a deadline");
        stream.set_nodelay(true).expect("no delay");
        Self { reader: BufReader::new(stream) }
    }

    /// Sends octets.
    pub fn send(&mut self, octets: &[u8]) {
        self.reader.get_mut().write_all(octets).expect("the server reads");
    }

    /// The next line without CRLF; empty at the end of the stream.
    pub fn line(&mut self) -> String {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line).expect("a line");
        String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned()
    }

    /// Sends a command and reads one line.
    pub fn ask(&mut self, command: &str) -> String {
        self.send(format!("{command}\r\n").as_bytes());
        self.line()
    }

    /// Reads lines to the one of a single dot; they come un-stuffed.
    pub fn until_dot(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let line = self.line();
            if line == "." {
                return lines;
            }
            lines.push(line.strip_prefix('.').map_or(line.clone(), str::to_owned));
        }
    }

    /// Reads SMTP reply lines to the last one.
    pub fn reply(&mut self) -> String {
        loop {
            let line = self.line();
            if line.as_bytes().get(3) != Some(&b'-') {
                return line;
            }
        }
    }

    /// Delivers a message by LMTP or SMTP; the reply behind the dot.
    pub fn deliver(&mut self, hello: &str, from: &str, to: &str, message: &[u8]) -> String {
        self.reply();
        for command in
            [hello.to_owned(), format!("MAIL FROM:<{from}>"), format!("RCPT TO:<{to}>"), "DATA".into()]
        {
            self.send(format!("{command}\r\n").as_bytes());
            let reply = self.reply();
            assert!(reply.starts_with(['2', '3']), "{command}: {reply}");
        }
        let mut stuffed = Vec::new();
        for line in message.split_inclusive(|octet| *octet == b'\n') {
            if line.first() == Some(&b'.') {
                stuffed.push(b'.');
            }
            stuffed.extend_from_slice(line);
        }
        stuffed.extend_from_slice(b".\r\n");
        self.send(&stuffed);
        self.reply()
    }
}
