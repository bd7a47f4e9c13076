//! A proxy that makes the network worse: it delays each direction without
//! limiting the bandwidth, cuts connections, hides capabilities.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, tcp};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// What is done to the traffic.
#[derive(Debug, Clone, Default)]
pub struct Weather {
    /// How much later octets arrive, in each direction; a round trip is twice
    /// this.
    pub delay: Duration,
    /// The server's octets after which a connection is cut.
    pub cut_after: Option<u64>,
    /// A line of the server that is not passed on, without CRLF.
    pub hide: Option<&'static str>,
    /// A line of the client in whose place another one is passed on, both
    /// without CRLF. Only for sessions in clear text whose client sends lines.
    pub translate: Option<(&'static str, &'static str)>,
}

/// A running proxy on a loopback port.
pub struct Proxy {
    /// Where it listens.
    pub port: u16,
    counts: Arc<Counts>,
    down: watch::Sender<bool>,
    runtime: Option<Runtime>,
}

#[derive(Debug, Default)]
struct Counts {
    connections: AtomicUsize,
    upwards: AtomicU64,
    downwards: AtomicU64,
    /// The delay, in microseconds: it can change on the way.
    delay: AtomicU64,
}

impl Counts {
    fn delay(&self) -> Duration {
        Duration::from_micros(self.delay.load(Ordering::Relaxed))
    }

    fn set_delay(&self, delay: Duration) {
        let micros = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        self.delay.store(micros, Ordering::Relaxed);
    }
}

impl Proxy {
    /// One before the server on loopback port `to`.
    pub fn start(to: u16, weather: Weather) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let counts = Arc::new(Counts::default());
        counts.set_delay(weather.delay);
        let (down, is_down) = watch::channel(false);
        runtime.spawn(listen(
            listener,
            SocketAddr::from(([127, 0, 0, 1], to)),
            weather,
            Arc::clone(&counts),
            is_down,
        ));
        Self { port, counts, down, runtime: Some(runtime) }
    }

    /// One that only delays; a round trip takes twice `each_way` longer.
    pub fn delaying(to: u16, each_way: Duration) -> Self {
        Self::start(to, Weather { delay: each_way, ..Weather::default() })
    }

    /// Delays what comes from now on by so much in each direction.
    pub fn delay(&self, each_way: Duration) {
        self.counts.set_delay(each_way);
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.counts.connections.load(Ordering::Relaxed)
    }

    /// Octets so far, to the server and from it.
    pub fn octets(&self) -> (u64, u64) {
        (self.counts.upwards.load(Ordering::Relaxed), self.counts.downwards.load(Ordering::Relaxed))
    }

    /// Cuts all connections, and new ones as soon as they come.
    pub fn go_down(&self) {
        self.down.send_replace(true);
    }

    /// Works again.
    pub fn come_up(&self) {
        self.down.send_replace(false);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn listen(
    listener: TcpListener,
    to: SocketAddr,
    weather: Weather,
    counts: Arc<Counts>,
    is_down: watch::Receiver<bool>,
) {
    while let Ok((client, _)) = listener.accept().await {
        counts.connections.fetch_add(1, Ordering::Relaxed);
        let (weather, counts, mut is_down) = (weather.clone(), Arc::clone(&counts), is_down.clone());
        tokio::spawn(async move {
            let cut = async move {
                drop(is_down.wait_for(|down| *down).await);
            };
            tokio::select! {
                () = cut => {}
                () = relay(client, to, weather, counts) => {}
            }
        });
    }
}

async fn relay(client: TcpStream, to: SocketAddr, weather: Weather, counts: Arc<Counts>) {
    let Ok(server) = TcpStream::connect(to).await else { return };
    drop((client.set_nodelay(true), server.set_nodelay(true)));
    let ((client_in, client_out), (server_in, server_out)) = (client.into_split(), server.into_split());
    let translates = Filter { translate: weather.translate, ..Filter::default() };
    let up = pump(client_in, server_out, translates, &counts, &counts.upwards);
    let filter = Filter { cut_after: weather.cut_after, hide: weather.hide, ..Filter::default() };
    let down = pump(server_in, client_out, filter, &counts, &counts.downwards);
    let cuts = weather.cut_after.is_some();
    let up = async {
        up.await;
        if cuts {
            std::future::pending::<()>().await;
        }
    };
    if cuts {
        tokio::select! { () = up => {}, () = down => {} }
    } else {
        tokio::join!(up, down);
    }
}

/// Reads at once, writes as much later as the delay says: a pipe with a latency, and with room
/// for as much as lies between.
async fn pump(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    mut filter: Filter,
    counts: &Counts,
    count: &AtomicU64,
) {
    let (later, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(4096);
    let reading = async move {
        let mut buffer = vec![0; 65536];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let (piece, cut) = filter.pass(buffer.get(..read).unwrap_or_default());
            if later.send((Instant::now() + counts.delay(), piece)).await.is_err() || cut {
                break;
            }
        }
    };
    let writing = async move {
        while let Some((at, piece)) = due.recv().await {
            // A timer's granularity must not be added to no delay at all.
            if at > Instant::now() {
                tokio::time::sleep_until(at).await;
            }
            count.fetch_add(piece.len() as u64, Ordering::Relaxed);
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        drop(to.shutdown().await);
    };
    tokio::join!(reading, writing);
}

#[derive(Default)]
struct Filter {
    cut_after: Option<u64>,
    hide: Option<&'static str>,
    translate: Option<(&'static str, &'static str)>,
    held: Vec<u8>,
}

impl Filter {
    /// What goes on of `piece`, and whether the connection is cut behind it.
    fn pass(&mut self, piece: &[u8]) -> (Vec<u8>, bool) {
        let mut out = piece.to_vec();
        if let Some((from, to)) = self.translate {
            self.held.extend_from_slice(&out);
            let whole = self.held.iter().rposition(|octet| *octet == b'\n').map_or(0, |end| end + 1);
            out.clear();
            for line in self.held.drain(..whole).collect::<Vec<u8>>().split_inclusive(|octet| *octet == b'\n')
            {
                if line.trim_ascii_end() == from.as_bytes() {
                    out.extend_from_slice(format!("{to}\r\n").as_bytes());
                } else {
                    out.extend_from_slice(line);
                }
            }
        }
        if let Some(line) = self.hide {
            // Only ever a few lines at the start of a session: found whole or
            // split over pieces, then passed on without a further look.
            self.held.extend_from_slice(&out);
            let needle = format!("\r\n{line}\r\n");
            out = std::mem::take(&mut self.held);
            if let Some(at) = memchr::memmem::find(&out, needle.as_bytes()) {
                out.drain(at..at + needle.len() - 2);
            } else if let Some(start) = partial(&out, needle.as_bytes()) {
                self.held = out.split_off(start);
                // A lone CRLF at the end is the usual end of a reply: it must
                // not wait for what follows it.
                if self.held == b"\r\n" || self.held == b"\r" {
                    out.append(&mut self.held);
                }
            }
        }
        if let Some(left) = &mut self.cut_after {
            out.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= out.len() as u64;
            return (out, *left == 0);
        }
        (out, false)
    }
}

/// Where the longest end of `text` that is a start of `needle` begins.
fn partial(text: &[u8], needle: &[u8]) -> Option<usize> {
    let from = text.len().saturating_sub(needle.len());
    (from..text.len()).find(|at| needle.starts_with(text.get(*at..).unwrap_or_default()))
}
