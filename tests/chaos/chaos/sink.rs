//! An SMTP server that takes everything and remembers when it took what.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::parts::mail::MARK;

/// Each message's mark, with the moments at which it was accepted.
pub type Accepted = HashMap<String, Vec<Instant>>;

/// The server.
pub struct Sink {
    pub port: u16,
    accepted: Arc<Mutex<Accepted>>,
}

impl Sink {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let accepted = Arc::new(Mutex::new(Accepted::new()));
        let taking = Arc::clone(&accepted);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let accepted = Arc::clone(&taking);
                tokio::spawn(async move { drop(serve(stream, &accepted).await) });
            }
        });
        Self { port, accepted }
    }

    pub fn accepted(&self) -> Accepted {
        self.accepted.lock().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        self.accepted.lock().unwrap().len()
    }
}

async fn serve(stream: TcpStream, accepted: &Mutex<Accepted>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    write.write_all(b"220 sink.test\r\n").await?;
    while let Some(line) = lines.next_line().await? {
        let verb = line.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
        let answer: &[u8] = match verb.as_str() {
            "EHLO" => b"250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 DSN\r\n",
            "DATA" => {
                write.write_all(b"354 go on\r\n").await?;
                let mut mark = String::new();
                // Nothing of a message that ends in the middle is accepted.
                loop {
                    let Some(line) = lines.next_line().await? else { return Ok(()) };
                    if line == "." {
                        break;
                    }
                    if let Some(value) = line.strip_prefix(MARK)
                        && mark.is_empty()
                    {
                        value.trim_start_matches(':').trim().clone_into(&mut mark);
                    }
                }
                // From here on it counts, whether the answer is heard or not.
                accepted.lock().unwrap().entry(mark).or_default().push(Instant::now());
                b"250 2.0.0 taken\r\n"
            }
            "QUIT" => {
                write.write_all(b"221 bye\r\n").await?;
                return Ok(());
            }
            _ => b"250 2.0.0 fine\r\n",
        };
        write.write_all(answer).await?;
    }
    Ok(())
}
