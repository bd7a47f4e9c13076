//! Servers and drivers that the benchmark sets beside rpop and its peers:
//! a sink faster than any real server, a delaying proxy, silent servers, and
//! the raw drivers whose rates are the ceilings of this machine.

mod accounts;
mod args;
mod deliver;
mod lines;
mod proxy;
mod retrieve;
mod silent;
mod sink;

use args::Args;

const USAGE: &str = "usage: rpop-bench COMMAND [--key value]...
  sink      --control ADDR --listen smtp=ADDR[,quickack][,chunking] --listen lmtp=ADDR...
  proxy     --delay MS --map LISTEN=TARGET...
  silent    --port P --count N              (127.77.0.1 and the N - 1 after it)
  retrieve  --addr A --user U --pass P [--window N] [--delete]
  deliver   --addr A --proto smtp|lmtp --count N --size OCTETS [--chunking] [--connections N] [--rcpt R]
  accounts  --addr A --sink A --proto smtp|lmtp --count N [--sessions N] [--rcpt R]";

fn main() -> std::io::Result<()> {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let args = Args::parse(words);
    match command.as_str() {
        "sink" => sink::run(&args),
        "proxy" => proxy::run(&args),
        "silent" => silent::run(&args),
        "retrieve" => retrieve::run(&args),
        "deliver" => deliver::run(&args),
        "accounts" => accounts::run(&args),
        _ => {
            eprintln!("{USAGE}");
            std::process::exit(2);
        }
    }
}
