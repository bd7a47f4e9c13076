//! The client against servers that say what a test tells them to.

mod deadlines;
mod listings;
mod login;
mod mechanisms;
mod pipelined;
mod session;

use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream, duplex};
use tokio::task::JoinHandle;

use super::{Client, Deadlines};

/// One thing that the server does: waits for a line (unless that is empty),
/// then says something.
type Step = (&'static str, &'static [u8]);

fn deadlines() -> Deadlines {
    Deadlines::new(Duration::from_mins(1), Duration::from_secs(30))
}

/// The client's end of a connection to a server that goes through `steps`,
/// and the server, which gives its end back when it has come through: while
/// that is held, the connection stays open.
fn server(
    steps: impl IntoIterator<Item = Step> + Send + 'static,
) -> (DuplexStream, JoinHandle<BufReader<DuplexStream>>) {
    let (near, far) = duplex(64 * 1024);
    let steps: Vec<Step> = steps.into_iter().collect();
    let server = tokio::spawn(async move {
        let mut far = BufReader::new(far);
        for (heard, said) in steps {
            if !heard.is_empty() {
                let mut line = String::new();
                far.read_line(&mut line).await.unwrap();
                assert_eq!(line, format!("{heard}\r\n"));
            }
            far.get_mut().write_all(said).await.unwrap();
        }
        far
    });
    (near, server)
}

/// A client that has heard `+OK` of such a server.
async fn client(
    steps: impl IntoIterator<Item = Step> + Send + 'static,
) -> (Client<DuplexStream>, JoinHandle<BufReader<DuplexStream>>) {
    let steps: Vec<Step> = std::iter::once(("", &b"+OK ready\r\n"[..])).chain(steps).collect();
    let (near, server) = server(steps);
    (Client::greet(near, deadlines()).await.unwrap(), server)
}
