//! Happy eyeballs (RFC 8305, section 5): the addresses of both families in
//! turn, a new attempt every quarter of a second or as soon as one fails, and
//! the first that answers is taken.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};

use crate::domain::work::Source;

/// Connection Attempt Delay (RFC 8305, section 8).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// A connection that was lost without a word is noticed within 2 minutes even
/// while nobody waits for a reply.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_mins(1))
    .with_interval(Duration::from_secs(20))
    .with_retries(3);

/// Why no address could be connected to.
#[derive(Debug)]
pub(super) enum DialError {
    /// This source address could not be bound.
    Source(io::Error, IpAddr),
    /// The most telling attempt's error and address.
    Failed(io::Error, SocketAddr),
}

impl DialError {
    /// There is no route, or no address of that family.
    fn is_no_way(&self) -> bool {
        let kind = match self {
            Self::Source(..) => return false,
            Self::Failed(error, _) => error.kind(),
        };
        matches!(
            kind,
            io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::AddrNotAvailable
                | io::ErrorKind::Unsupported
        )
    }
}

/// Connects to the first of `addresses` (not empty) that answers. `source` has
/// an address for each family that is among them.
pub(super) async fn dial(addresses: &[SocketAddr], source: Option<Source>) -> Result<TcpStream, DialError> {
    let order = interleaved(addresses);
    // Not only when a family's turn comes: it must not depend on which host
    // answers first whether a missing address is noticed.
    for peer in [order.iter().find(|peer| peer.is_ipv4()), order.iter().find(|peer| peer.is_ipv6())] {
        drop(peer.map(|peer| bound(*peer, source)).transpose()?);
    }
    let mut waiting = order.iter().copied();
    let mut attempts = FuturesUnordered::new();
    let mut more = true;
    let mut worst: Option<DialError> = None;
    loop {
        match waiting.next() {
            Some(address) => attempts.push(attempt(address, source)),
            None => more = false,
        }
        let failed = tokio::select! {
            biased;
            done = attempts.next() => match done {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(error)) => Some(error),
                None => Some(DialError::Failed(io::ErrorKind::AddrNotAvailable.into(), SocketAddr::from(([0; 4], 0)))),
            },
            () = tokio::time::sleep(ATTEMPT_DELAY), if more => None,
        };
        match failed {
            Some(error @ DialError::Source(..)) => return Err(error),
            // That this machine lacks a family says less than a refusal.
            Some(error) if worst.is_none() || !error.is_no_way() => worst = Some(error),
            _ => {}
        }
        if attempts.is_empty()
            && waiting.len() == 0
            && let Some(error) = worst
        {
            return Err(error);
        }
    }
}

/// A socket that connects to `peer` from where it is to.
fn bound(peer: SocketAddr, source: Option<Source>) -> Result<TcpSocket, DialError> {
    let made = if peer.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = made.map_err(|error| DialError::Failed(error, peer))?;
    if let Some(address) = source.and_then(|source| source.towards(peer.ip())) {
        socket.bind(SocketAddr::new(address, 0)).map_err(|error| DialError::Source(error, address))?;
    }
    Ok(socket)
}

async fn attempt(address: SocketAddr, source: Option<Source>) -> Result<TcpStream, DialError> {
    let failed = |error| DialError::Failed(error, address);
    let socket = bound(address, source)?;
    let stream = socket.connect(address).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE).map_err(failed)?;
    Ok(stream)
}

/// The families in turn, beginning with the family that the resolver put
/// first (RFC 8305, section 4).
fn interleaved(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let mut first = addresses.iter().filter(|a| a.is_ipv6() == first_is_v6);
    let mut second = addresses.iter().filter(|a| a.is_ipv6() != first_is_v6);
    let mut order = Vec::with_capacity(addresses.len());
    loop {
        let (a, b) = (first.next(), second.next());
        if a.is_none() && b.is_none() {
            return order;
        }
        order.extend(a.into_iter().chain(b).copied());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    #[test]
    fn families_take_turns() {
        let list: Vec<SocketAddr> =
            ["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"].map(|a| a.parse().unwrap()).into();
        let order: Vec<String> = interleaved(&list).iter().map(ToString::to_string).collect();
        assert_eq!(order, ["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"]);
    }

    #[tokio::test]
    async fn a_dead_address_does_not_hold_up_a_living_one() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dead = closed.local_addr().unwrap();
        drop(closed);
        let living = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = living.local_addr().unwrap();
        let stream = dial(&[dead, address], None).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), address);
        assert!(stream.nodelay().unwrap());
        assert!(SockRef::from(&stream).keepalive().unwrap());
    }

    #[tokio::test]
    async fn a_silent_address_costs_a_quarter_of_a_second() {
        // A full backlog drops further SYNs: silent, as a filtered host is.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let full = socket.listen(0).unwrap();
        let silent = full.local_addr().unwrap();
        let _fill = TcpStream::connect(silent).await.unwrap();
        let living = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = living.local_addr().unwrap();
        let began = Instant::now();
        let stream = dial(&[silent, address], None).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), address);
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn the_last_error_is_reported_when_all_fail() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dead = closed.local_addr().unwrap();
        drop(closed);
        let error = dial(&[dead], None).await.unwrap_err();
        assert!(
            matches!(error, DialError::Failed(e, a) if a == dead && e.kind() == io::ErrorKind::ConnectionRefused)
        );
    }

    #[tokio::test]
    async fn a_refusal_says_more_than_a_missing_family() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dead = closed.local_addr().unwrap();
        drop(closed);
        // TCP has no broadcast: refused by the system itself, at once.
        let nowhere = "255.255.255.255:9".parse().unwrap();
        let error = dial(&[dead, nowhere], None).await.unwrap_err();
        assert!(matches!(error, DialError::Failed(_, a) if a == dead), "{error:?}");
    }

    #[tokio::test]
    async fn a_source_address_that_is_not_ours_is_an_error() {
        let living = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = living.local_addr().unwrap();
        let source = |all: &[&str]| Source::first_of(all.iter().map(|text| text.parse().unwrap()));
        let error = dial(&[address], source(&["192.0.2.77"])).await.unwrap_err();
        assert!(matches!(error, DialError::Source(_, missing) if missing.to_string() == "192.0.2.77"));
        let stream = dial(&[address], source(&["127.0.0.3"])).await.unwrap();
        assert_eq!(stream.local_addr().unwrap().ip(), "127.0.0.3".parse::<IpAddr>().unwrap());
        // Also where the other family would have been faster.
        let both = [address, SocketAddr::new("::1".parse().unwrap(), address.port())];
        let error = dial(&both, source(&["127.0.0.3", "2001:db8::77"])).await.unwrap_err();
        assert!(matches!(error, DialError::Source(_, missing) if missing.is_ipv6()), "{error:?}");
    }
}
