//! The raw ceiling of the delivery side: messages from memory, pipelined as
//! far as the protocol allows. DATA has to wait for its 354 (RFC 2920), so one
//! message a round trip; BDAT (RFC 3030) waits for nothing.

use std::io::{IoSlice, Result, Write};
use std::time::Instant;

use crate::args::Args;
use crate::lines::Lines;
use crate::retrieve::report;

/// Messages in flight with BDAT.
const WINDOW: usize = 1024;

#[derive(Clone)]
struct Job {
    addr: String,
    lmtp: bool,
    chunking: bool,
    rcpt: String,
    body: Vec<u8>,
}

pub fn run(args: &Args) -> Result<()> {
    let count = args.number("count", None);
    let size = args.number("size", None);
    let connections = args.number("connections", Some(1)).max(1);
    let job = Job {
        addr: args.text("addr").to_owned(),
        lmtp: args.text("proto") == "lmtp",
        chunking: args.flag("chunking"),
        rcpt: args.text_or("rcpt", "sink@bench.example").to_owned(),
        body: body(size),
    };
    let began = Instant::now();
    let threads: Vec<_> = (0..connections)
        .map(|index| {
            let job = job.clone();
            let first = count * index / connections;
            let last = count * (index + 1) / connections;
            std::thread::spawn(move || deliver(&job, first + 1, last + 1))
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| std::io::Error::other("a driver thread failed"))??;
    }
    report(count, (count * size) as u64, began);
    Ok(())
}

/// Greets a destination.
pub fn open(addr: &str, lmtp: bool) -> Result<Lines> {
    let mut server = Lines::connect(addr)?;
    server.reply(b'2')?;
    server.send(if lmtp { b"LHLO bench.example\r\n" } else { b"EHLO bench.example\r\n" })?;
    server.reply(b'2')?;
    Ok(server)
}

/// A header that the sink counts by, to be followed by a body.
pub fn header(number: usize) -> Vec<u8> {
    format!("X-Bench: {number:010}\r\nFrom: a@bench.example\r\nSubject: raw\r\n\r\n").into_bytes()
}

/// Lines of 76 characters, about `size` octets.
pub fn body(size: usize) -> Vec<u8> {
    let line = b"The quick brown fox jumps over the lazy dog, and then it does so once more.\r\n";
    let mut body = line.repeat(size.saturating_sub(header(1).len()).div_ceil(line.len()).max(1));
    body.truncate((size.saturating_sub(header(1).len())).max(2));
    let end = body.len();
    body[end - 2..].copy_from_slice(b"\r\n");
    body
}

fn deliver(job: &Job, first: usize, end: usize) -> Result<()> {
    let mut server = open(&job.addr, job.lmtp)?;
    let envelope = format!("MAIL FROM:<a@bench.example>\r\nRCPT TO:<{}>\r\n", job.rcpt);
    if job.chunking {
        chunks(&mut server, job, &envelope, first, end)?;
    } else {
        data(&mut server, job, &envelope, first, end)?;
    }
    server.send(b"QUIT\r\n")?;
    server.reply(b'2')
}

fn data(server: &mut Lines, job: &Job, envelope: &str, first: usize, end: usize) -> Result<()> {
    let opening = format!("{envelope}DATA\r\n");
    if first < end {
        server.send(opening.as_bytes())?;
    }
    for number in first..end {
        server.reply(b'2')?;
        server.reply(b'2')?;
        server.reply(b'3')?;
        let behind: &[u8] = if number + 1 < end { opening.as_bytes() } else { b"" };
        send(&server.stream, &[&header(number), &job.body, b".\r\n", behind])?;
        server.reply(b'2')?;
    }
    Ok(())
}

fn chunks(server: &mut Lines, job: &Job, envelope: &str, first: usize, end: usize) -> Result<()> {
    let stream = server.stream.try_clone()?;
    let (permit, permits) = std::sync::mpsc::sync_channel::<()>(WINDOW);
    let head = format!("{envelope}BDAT {} LAST\r\n", header(1).len() + job.body.len());
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || -> Result<()> {
            for number in first..end {
                // Bounded, so that a slow sink is not buried.
                permit.send(()).map_err(|_| std::io::Error::other("the reader gave up"))?;
                send(&stream, &[head.as_bytes(), &header(number), &job.body])?;
            }
            Ok(())
        });
        for _ in first..end {
            for _ in 0..3 {
                server.reply(b'2')?;
            }
            permits.recv().map_err(|_| std::io::Error::other("the writer gave up"))?;
        }
        writer.join().map_err(|_| std::io::Error::other("the writer failed"))?
    })
}

/// Writes all parts, gathered.
fn send(mut stream: &std::net::TcpStream, parts: &[&[u8]]) -> Result<()> {
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut rest = slices.as_mut_slice();
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        let written = stream.write_vectored(rest)?;
        IoSlice::advance_slices(&mut rest, written);
    }
    Ok(())
}
