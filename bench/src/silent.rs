//! Servers that accept a connection and never say anything.

use std::io::Result;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};

use crate::args::Args;

/// Listens on `--count` addresses of 127.77.0.0/16 at `--port`, and holds every
/// connection open for ever.
pub fn run(args: &Args) -> Result<()> {
    let port = u16::try_from(args.number("port", None)).unwrap_or_default();
    let count = args.number("count", None);
    let mut listeners = Vec::new();
    for index in 0..count {
        let [high, low] = u16::try_from(index + 1).unwrap_or(u16::MAX).to_be_bytes();
        listeners.push(TcpListener::bind(SocketAddrV4::new(Ipv4Addr::new(127, 77, high, low), port))?);
    }
    println!("ready");
    // The kernel completes the handshakes of a listener's backlog by itself.
    loop {
        std::thread::park();
    }
}
