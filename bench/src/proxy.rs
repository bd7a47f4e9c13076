//! A delaying proxy: each octet arrives `delay` after it was sent, in each
//! direction; no limit of bandwidth, TCP_NODELAY. Connecting costs a round
//! trip too, by delaying the first octets of the server as long again.

use std::io::Result;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use crate::args::Args;

/// Octets on their way in one direction before the sender has to wait: what a
/// well tuned path would hold, far above what any contender keeps in flight.
const IN_FLIGHT: usize = 64 * 1024 * 1024;
const CHUNK: usize = 64 * 1024;

pub fn run(args: &Args) -> Result<()> {
    let delay = Duration::from_micros(args.number("delay-us", None) as u64);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        for map in args.all("map") {
            let (listen, target) = map.split_once('=').unwrap_or((map, ""));
            let listener = TcpListener::bind(listen).await?;
            tokio::spawn(accept(listener, target.to_owned(), delay));
        }
        println!("ready");
        std::future::pending::<Result<()>>().await
    })
}

async fn accept(listener: TcpListener, target: String, delay: Duration) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                let target = target.clone();
                tokio::spawn(async move {
                    // A real handshake takes a round trip before anything can
                    // flow; ours with the client is over at once.
                    tokio::time::sleep(delay * 2).await;
                    let Ok(server) = TcpStream::connect(target).await else { return };
                    if client.set_nodelay(true).is_err() || server.set_nodelay(true).is_err() {
                        return;
                    }
                    let (client_in, client_out) = client.into_split();
                    let (server_in, server_out) = server.into_split();
                    tokio::spawn(carry(client_in, server_out, delay));
                    carry(server_in, client_out, delay).await;
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// One direction: reads at once, writes when each chunk's time has come.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let room = Arc::new(Semaphore::new(IN_FLIGHT));
    let (sender, mut receiver) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let reader = {
        let room = Arc::clone(&room);
        async move {
            loop {
                let mut chunk = Vec::with_capacity(CHUNK);
                match from.read_buf(&mut chunk).await {
                    Ok(got) if got > 0 => {
                        let Ok(permit) = room.acquire_many(u32::try_from(got).unwrap_or(u32::MAX)).await
                        else {
                            return;
                        };
                        permit.forget();
                        if got < CHUNK / 4 {
                            chunk.shrink_to_fit();
                        }
                        if sender.send((Instant::now() + delay, chunk)).is_err() {
                            return;
                        }
                    }
                    _ => {
                        // The end travels as long as the octets do.
                        let _ = sender.send((Instant::now() + delay, Vec::new()));
                        return;
                    }
                }
            }
        }
    };
    let writer = async move {
        while let Some((when, chunk)) = receiver.recv().await {
            if when > Instant::now() {
                tokio::time::sleep_until(when).await;
            }
            if chunk.is_empty() {
                let _ = to.shutdown().await;
                return;
            }
            if to.write_all(&chunk).await.is_err() {
                return;
            }
            room.add_permits(chunk.len());
        }
    };
    tokio::join!(reader, writer);
}
