//! How fast POP3 is decoded: messages in wire form, listings, and whole
//! pipelined sessions from memory.

use std::hint::black_box;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use rpop::domain::wire::{Decoder, Piece, stuff};
use rpop::pop3::{Client, Command, Deadlines, Event};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// `size` octets of lines of `width`, each ended by `end`.
fn lines(size: usize, width: usize, end: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(size + width);
    while out.len() < size {
        out.extend(std::iter::repeat_n(b'x', width - end.len()));
        out.extend_from_slice(end);
    }
    out
}

fn decode(c: &mut Criterion) {
    let mut dots = lines(1 << 20, 78, b"\r\n");
    dots.iter_mut().step_by(78 * 4).for_each(|octet| *octet = b'.');
    let mut group = c.benchmark_group("decode");
    for (name, content) in [
        ("base64 lines", lines(1 << 20, 78, b"\r\n")),
        ("short lines", lines(1 << 20, 20, b"\r\n")),
        ("one long line", lines(1 << 20, 1 << 20, b"\r\n")),
        ("a dot every 4 lines", dots),
        ("bare LF", lines(1 << 20, 78, b"\n")),
    ] {
        group.throughput(Throughput::Bytes(content.len() as u64));
        group.bench_function(name, |b| {
            b.iter_batched_ref(
                || content.chunks(128 * 1024).map(BytesMut::from).collect::<Vec<_>>(),
                |chunks| {
                    let mut decoder = Decoder::new();
                    for chunk in chunks {
                        decoder.decode(chunk, |piece| {
                            black_box(piece);
                        });
                    }
                    decoder.tally()
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

fn unstuff(c: &mut Criterion) {
    let mut dots = lines(1 << 20, 78, b"\r\n");
    dots.iter_mut().step_by(78 * 4).for_each(|octet| *octet = b'.');
    let mut group = c.benchmark_group("unstuff");
    group.throughput(Throughput::Bytes(dots.len() as u64));
    let piece = Piece::new(stuff(&dots).bytes, true);
    group.bench_function("a dot every 4 lines", |b| {
        b.iter(|| piece.unstuffed().map(|part| part.len()).sum::<usize>());
    });
    group.finish();
}

/// A server whose answers are all in memory: one after the other, a read
/// never runs over into the next.
struct Turns {
    said: Vec<Vec<u8>>,
    turn: usize,
    at: usize,
}

impl Turns {
    /// Octets that a read gives at most, as of a socket's buffer.
    const MOST: usize = 64 * 1024;
}

impl AsyncRead for Turns {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.said.get(self.turn).is_some_and(|turn| self.at == turn.len()) {
            self.turn += 1;
            self.at = 0;
        }
        if let Some(turn) = self.said.get(self.turn) {
            let rest = &turn[self.at..];
            let len = buf.remaining().min(Self::MOST).min(rest.len());
            buf.put_slice(&rest[..len]);
            self.at += len;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Turns {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A client that has asked for capabilities; `said` is what comes next.
async fn client(said: Vec<u8>) -> Client<Turns> {
    let capa = b"+OK\r\nPIPELINING\r\nUIDL\r\n.\r\n".to_vec();
    let stream = Turns { said: vec![b"+OK ready\r\n".to_vec(), capa, said], turn: 0, at: 0 };
    let second = Duration::from_secs(1);
    let mut client = Client::greet(stream, Deadlines::new(second, second)).await.expect("a greeting");
    client.capabilities().await.expect("capabilities");
    client
}

fn session(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let mut group = c.benchmark_group("session");
    for (name, count, size) in
        [("4 KB messages", 1000, 4096), ("100 KB messages", 40, 100_000), ("50 MB message", 1, 50_000_000)]
    {
        let mut said = Vec::new();
        for _ in 0..count {
            said.extend_from_slice(b"+OK 4096 octets\r\n");
            said.extend_from_slice(&lines(size, 78, b"\r\n"));
            said.extend_from_slice(b".\r\n");
        }
        group.sample_size(20);
        for throughput in [Throughput::Elements(count.into()), Throughput::Bytes(said.len() as u64)] {
            let unit = if matches!(throughput, Throughput::Bytes(_)) { "octets" } else { "messages" };
            group.throughput(throughput);
            group.bench_function(format!("{name}, {unit}"), |b| {
                b.iter_batched(
                    || runtime.block_on(client(said.clone())),
                    |mut client| {
                        runtime.block_on(async {
                            let mut next = 1;
                            let mut done = 0;
                            while done < count {
                                while next <= count && client.in_flight() < 64 {
                                    client.send(Command::Retr(next));
                                    next += 1;
                                }
                                match client.event().await.expect("an event") {
                                    Event::End(_) => done += 1,
                                    event => {
                                        black_box(event);
                                    }
                                }
                            }
                        });
                        client
                    },
                    BatchSize::PerIteration,
                );
            });
        }
    }
    let mut said = b"+OK\r\n".to_vec();
    for number in 1..=50_000 {
        said.extend_from_slice(format!("{number} 0000{number:08x}67a1b2c3\r\n").as_bytes());
    }
    said.extend_from_slice(b".\r\n");
    group.throughput(Throughput::Elements(50_000));
    group.bench_function("UIDL of 50 000", |b| {
        b.iter_batched(
            || runtime.block_on(client(said.clone())),
            |mut client| {
                runtime
                    .block_on(client.uidl(|number, uid| {
                        black_box((number, uid));
                    }))
                    .expect("a listing");
                client
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, decode, unstuff, session);
criterion_main!(benches);
