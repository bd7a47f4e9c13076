//! The raw ceiling for many accounts: each session logs in as a careful client
//! does (CAPA, USER, PASS; then STAT, UIDL and LIST in one flight), takes the
//! one message, hands it over on a connection that it keeps, deletes and quits.

use std::io::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use memchr::memmem;

use crate::args::Args;
use crate::deliver::open;
use crate::lines::Lines;
use crate::retrieve::report;

pub fn run(args: &Args) -> Result<()> {
    let count = args.number("count", None);
    let sessions = args.number("sessions", Some(64)).max(1);
    let next = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let threads: Vec<_> = (0..sessions)
        .map(|_| {
            let next = Arc::clone(&next);
            let pop = args.text("addr").to_owned();
            let sink = args.text("sink").to_owned();
            let lmtp = args.text("proto") == "lmtp";
            let delete = args.flag("delete");
            let rcpt = args.text_or("rcpt", "sink@bench.example").to_owned();
            std::thread::spawn(move || -> Result<()> {
                let mut sink = open(&sink, lmtp)?;
                let opening = format!("MAIL FROM:<a@bench.example>\r\nRCPT TO:<{rcpt}>\r\nDATA\r\n");
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    session(&pop, index, &mut sink, &opening, delete)?;
                }
                sink.send(b"QUIT\r\n")?;
                sink.reply(b'2')
            })
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| std::io::Error::other("a driver thread failed"))??;
    }
    report(count, 0, began);
    Ok(())
}

fn session(pop: &str, index: usize, sink: &mut Lines, opening: &str, delete: bool) -> Result<()> {
    let finder = memmem::Finder::new(b"\r\n.\r\n");
    let mut server = Lines::connect(pop)?;
    server.ok()?;
    server.send(b"CAPA\r\n")?;
    server.ok()?;
    server.until_dot(&finder)?;
    server.send(format!("USER many{index:05}\r\n").as_bytes())?;
    server.ok()?;
    server.send(b"PASS secret\r\n")?;
    server.ok()?;
    server.send(b"STAT\r\nUIDL\r\nLIST\r\n")?;
    server.ok()?;
    server.ok()?;
    server.until_dot(&finder)?;
    server.ok()?;
    server.until_dot(&finder)?;
    server.send(b"RETR 1\r\n")?;
    sink.send(opening.as_bytes())?;
    server.ok()?;
    let mut at = finder.find(server.filled());
    while at.is_none() {
        if server.fill()? == 0 {
            return Err(std::io::Error::other("closed in a message"));
        }
        at = finder.find(server.filled());
    }
    let length = at.unwrap_or_default() + 5;
    sink.reply(b'2')?;
    sink.reply(b'2')?;
    sink.reply(b'3')?;
    sink.send(&server.filled()[..length])?;
    server.consume(length);
    sink.reply(b'2')?;
    server.send(if delete { b"DELE 1\r\nQUIT\r\n" } else { b"NOOP\r\nQUIT\r\n" })?;
    server.ok()?;
    server.ok()
}
