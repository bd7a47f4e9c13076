//! A discarding SMTP and LMTP server that costs next to nothing, so that the
//! ceiling of a delivery is not the sink. One thread a connection; replies go
//! out when the input is exhausted, as pipelining servers do.
//!
//! It counts what it accepted: messages, octets, and the sum of a hash of each
//! `X-Bench` number, by which the harness knows that each message came once.

use std::io::{ErrorKind, Result};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use memchr::memmem;

use crate::args::Args;
use crate::lines::Lines;

#[derive(Default)]
struct Counts {
    messages: AtomicU64,
    octets: AtomicU64,
    sum: AtomicU64,
    connections: AtomicU64,
    /// Microseconds since the last reset at which the last message came.
    last: AtomicU64,
}

#[derive(Clone, Copy, Default)]
struct Kind {
    lmtp: bool,
    chunking: bool,
    quickack: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let counts = Arc::new(Counts::default());
    let began = Instant::now();
    for listen in args.all("listen") {
        let (proto, rest) = listen.split_once('=').unwrap_or(("smtp", listen));
        let mut parts = rest.split(',');
        let listener = TcpListener::bind(parts.next().unwrap_or_default())?;
        let mut kind = Kind { lmtp: proto == "lmtp", ..Kind::default() };
        for option in parts {
            match option {
                "chunking" => kind.chunking = true,
                "quickack" => kind.quickack = true,
                other => eprintln!("sink: unknown option {other}"),
            }
        }
        let counts = Arc::clone(&counts);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let counts = Arc::clone(&counts);
                counts.connections.fetch_add(1, Ordering::Relaxed);
                std::thread::spawn(move || match serve(stream, kind, &counts, began) {
                    Err(error) if !gone(error.kind()) => eprintln!("sink: {error}"),
                    _ => {}
                });
            }
        });
    }
    control(args.text("control"), &counts, began)
}

fn gone(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

/// `STAT` answers with the counts, `RESET` clears them.
fn control(addr: &str, counts: &Counts, began: Instant) -> Result<()> {
    let listener = TcpListener::bind(addr)?;
    println!("ready");
    let mut base = 0;
    for stream in listener.incoming().flatten() {
        let mut lines = Lines::new(stream)?;
        while let Ok(reset) = lines.line(|line| line == b"RESET") {
            if reset {
                for count in
                    [&counts.messages, &counts.octets, &counts.sum, &counts.connections, &counts.last]
                {
                    count.store(0, Ordering::SeqCst);
                }
                base = micros(began);
            }
            let answer = format!(
                "{{\"messages\": {}, \"octets\": {}, \"sum\": {}, \"connections\": {}, \"last\": {}}}\n",
                counts.messages.load(Ordering::SeqCst),
                counts.octets.load(Ordering::SeqCst),
                counts.sum.load(Ordering::SeqCst),
                counts.connections.load(Ordering::SeqCst),
                counts.last.load(Ordering::SeqCst).saturating_sub(base),
            );
            if lines.send(answer.as_bytes()).is_err() {
                break;
            }
        }
    }
    Ok(())
}

fn micros(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Command,
    /// `true` until the header has been looked at.
    Data(bool),
    Chunk {
        left: u64,
        last: bool,
        fresh: bool,
    },
}

fn serve(stream: TcpStream, kind: Kind, counts: &Counts, began: Instant) -> Result<()> {
    let finder = memmem::Finder::new(b"\r\n.\r\n");
    let mut lines = Lines::new(stream)?;
    let mut replies = b"220 sink.bench.example ready\r\n".to_vec();
    let mut state = State::Command;
    let mut recipients = 0u32;
    loop {
        // All that is here is worked off before anything is answered.
        loop {
            let (octets, next) = match state {
                State::Command => {
                    let Some(end) = memchr::memchr(b'\n', lines.filled()) else { break };
                    let line = &lines.filled()[..end];
                    let next = command(line, kind, &mut recipients, &mut replies);
                    (end + 1, next)
                }
                State::Data(fresh) => {
                    let filled = lines.filled();
                    if fresh && filled.starts_with(b".\r\n") {
                        accepted(kind, counts, began, &mut recipients, &mut replies);
                        (3, Some(State::Command))
                    } else if let Some(at) = finder.find(filled) {
                        if fresh {
                            note(&filled[..at], counts);
                        }
                        counts.octets.fetch_add(at as u64 + 2, Ordering::Relaxed);
                        accepted(kind, counts, began, &mut recipients, &mut replies);
                        (at + 5, Some(State::Command))
                    } else if fresh && filled.len() < 4096 {
                        break;
                    } else {
                        if fresh {
                            note(filled, counts);
                        }
                        let octets = filled.len().saturating_sub(4);
                        counts.octets.fetch_add(octets as u64, Ordering::Relaxed);
                        lines.consume(octets);
                        state = State::Data(false);
                        break;
                    }
                }
                State::Chunk { left, last, fresh } => {
                    let filled = lines.filled();
                    let here = filled.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    if fresh && (here as u64) < left.min(4096) {
                        break;
                    }
                    if fresh {
                        note(&filled[..here], counts);
                    }
                    counts.octets.fetch_add(here as u64, Ordering::Relaxed);
                    let left = left - here as u64;
                    if left > 0 {
                        lines.consume(here);
                        state = State::Chunk { left, last, fresh: false };
                        break;
                    }
                    if last {
                        accepted(kind, counts, began, &mut recipients, &mut replies);
                    } else {
                        replies.extend_from_slice(b"250 2.0.0 chunk\r\n");
                    }
                    (here, Some(State::Command))
                }
            };
            lines.consume(octets);
            match next {
                Some(next) => state = next,
                None => return lines.send(&replies),
            }
        }
        if !replies.is_empty() {
            lines.send(&replies)?;
            replies.clear();
        }
        if kind.quickack {
            rustix::net::sockopt::set_tcp_quickack(&lines.stream, true)?;
        }
        if lines.fill()? == 0 {
            return Ok(());
        }
    }
}

/// Answers one command; `None` ends the connection.
fn command(line: &[u8], kind: Kind, recipients: &mut u32, replies: &mut Vec<u8>) -> Option<State> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut verb = [0; 4];
    for (to, from) in verb.iter_mut().zip(line) {
        *to = from.to_ascii_uppercase();
    }
    match &verb {
        b"EHLO" | b"LHLO" => {
            replies.extend_from_slice(
                b"250-sink.bench.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SIZE 0\r\n",
            );
            if kind.chunking {
                replies.extend_from_slice(b"250-CHUNKING\r\n");
            }
            replies.extend_from_slice(b"250 ENHANCEDSTATUSCODES\r\n");
        }
        b"RCPT" => {
            *recipients += 1;
            replies.extend_from_slice(b"250 2.1.5 ok\r\n");
        }
        b"DATA" => {
            replies.extend_from_slice(b"354 go ahead\r\n");
            return Some(State::Data(true));
        }
        b"BDAT" if kind.chunking => {
            let text = String::from_utf8_lossy(line);
            let mut words = text.split_ascii_whitespace().skip(1);
            let left = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
            let last = words.next().is_some_and(|word| word.eq_ignore_ascii_case("LAST"));
            return Some(State::Chunk { left, last, fresh: true });
        }
        b"MAIL" | b"RSET" => {
            *recipients = 0;
            replies.extend_from_slice(b"250 2.0.0 ok\r\n");
        }
        b"HELO" | b"NOOP" => replies.extend_from_slice(b"250 2.0.0 ok\r\n"),
        b"QUIT" => {
            replies.extend_from_slice(b"221 2.0.0 bye\r\n");
            return None;
        }
        _ => replies.extend_from_slice(b"500 5.5.1 unknown\r\n"),
    }
    Some(State::Command)
}

fn accepted(kind: Kind, counts: &Counts, began: Instant, recipients: &mut u32, replies: &mut Vec<u8>) {
    counts.messages.fetch_add(1, Ordering::Relaxed);
    counts.last.store(micros(began), Ordering::Relaxed);
    for _ in 0..if kind.lmtp { *recipients } else { 1 } {
        replies.extend_from_slice(b"250 2.0.0 accepted\r\n");
    }
    *recipients = 0;
}

/// Adds the hash of the message's number to the sum.
fn note(start: &[u8], counts: &Counts) {
    let start = &start[..start.len().min(8192)];
    if let Some(at) = memmem::find(start, b"X-Bench: ") {
        let number = start[at + 9..]
            .iter()
            .take_while(|octet| octet.is_ascii_digit())
            .fold(0u64, |number, octet| number.wrapping_mul(10).wrapping_add(u64::from(octet - b'0')));
        counts.sum.fetch_add(mix(number), Ordering::Relaxed);
    }
}

/// SplitMix64: sums of it tell sets apart.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
