//! The raw ceiling of the POP3 side: RETR pipelined, everything discarded.

use std::io::{Result, Write};
use std::time::Instant;

use memchr::memmem;

use crate::args::Args;
use crate::lines::Lines;

pub fn run(args: &Args) -> Result<()> {
    let window = args.number("window", Some(4096)).max(1);
    let began = Instant::now();
    let mut server = Lines::connect(args.text("addr"))?;
    server.ok()?;
    server.send(format!("USER {}\r\n", args.text("user")).as_bytes())?;
    server.ok()?;
    server.send(format!("PASS {}\r\n", args.text("pass")).as_bytes())?;
    server.ok()?;
    server.send(b"STAT\r\n")?;
    let count: usize = server.line(|line| {
        let text = String::from_utf8_lossy(line);
        text.split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
    })?;

    let finder = memmem::Finder::new(b"\r\n.\r\n");
    let mut octets = 0;
    let mut sent = 0;
    let mut commands = Vec::new();
    for done in 0..count {
        // Refilled by halves, so that commands go out in few writes.
        if sent < count && sent - done <= window / 2 {
            commands.clear();
            while sent < count && sent - done < window {
                sent += 1;
                write!(commands, "RETR {sent}\r\n")?;
            }
            server.send(&commands)?;
        }
        server.ok()?;
        octets += server.until_dot(&finder)?;
    }
    if args.flag("delete") {
        commands.clear();
        for number in 1..=count {
            write!(commands, "DELE {number}\r\n")?;
        }
        server.send(&commands)?;
        for _ in 0..count {
            server.ok()?;
        }
    }
    server.send(b"QUIT\r\n")?;
    server.ok()?;
    report(count, octets, began);
    Ok(())
}

/// One line of JSON for the harness.
pub fn report(messages: usize, octets: u64, began: Instant) {
    println!(
        r#"{{"messages": {messages}, "octets": {octets}, "seconds": {:.6}}}"#,
        began.elapsed().as_secs_f64()
    );
}
