//! A POP3 server over TLS whose logins GNU SASL judges: an implementation of
//! SCRAM with channel binding that knows nothing of ours.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::dovecot::PASSWORD;

/// What the server is to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ways {
    /// What CAPA lists behind SASL.
    pub offers: &'static str,
    /// The server has channel binding, whatever it offers.
    pub binds: bool,
    /// Somebody sits between: the client's TLS connection is not the server's.
    pub between: bool,
}

/// A running server, with an empty maildrop for any name.
pub struct Gsasl {
    /// Where it listens.
    pub port: u16,
    /// The commands that came, without their arguments but the mechanism.
    commands: Arc<Mutex<Vec<String>>>,
    /// What GNU SASL said last.
    verdict: Arc<Mutex<String>>,
}

impl Gsasl {
    /// Starts one; `None` (said loudly, a failure in CI) where the library is
    /// not installed.
    pub fn start(test: &str, config: Arc<ServerConfig>, ways: Ways) -> Option<Self> {
        let loads = Command::new("python3")
            .args(["-c", "import ctypes; ctypes.CDLL('libgsasl.so.18')"])
            .stderr(Stdio::null())
            .status();
        if !loads.is_ok_and(|status| status.success()) {
            super::skipped(test, "GNU SASL's library is not installed; scripts/bootstrap installs it");
            return None;
        }
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let (commands, verdict) = (Arc::default(), Arc::default());
        let server = Self { port, commands: Arc::clone(&commands), verdict: Arc::clone(&verdict) };
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (config, commands, verdict) =
                    (Arc::clone(&config), Arc::clone(&commands), Arc::clone(&verdict));
                // A client that hangs up ends the session.
                thread::spawn(move || drop(serve(stream, config, ways, &commands, &verdict)));
            }
        });
        Some(server)
    }

    /// The commands that came.
    pub fn commands(&self) -> Vec<String> {
        self.commands.lock().expect("not poisoned").clone()
    }

    /// What GNU SASL said last: `ok USER`, or `no` and why.
    pub fn verdict(&self) -> String {
        self.verdict.lock().expect("not poisoned").clone()
    }
}

fn serve(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    ways: Ways,
    commands: &Mutex<Vec<String>>,
    verdict: &Mutex<String>,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(super::PATIENCE))?;
    let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(connection, stream);
    stream.write_all(b"+OK ready\r\n")?;
    stream.flush()?;
    let mut exporter = [0; 32];
    stream
        .conn
        .export_keying_material(&mut exporter, b"EXPORTER-Channel-Binding", Some(b""))
        .map_err(std::io::Error::other)?;
    if ways.between {
        exporter[0] ^= 1;
    }
    loop {
        let line = line(&mut stream)?;
        let mut words = line.split(' ');
        let (verb, mechanism, first) = (words.next().unwrap_or(""), words.next(), words.next());
        commands.lock().expect("not poisoned").push(match mechanism {
            Some(mechanism) if verb == "AUTH" => format!("{verb} {mechanism}"),
            _ => verb.to_owned(),
        });
        let answer = match (verb, mechanism) {
            ("CAPA", _) => format!("+OK\r\nUIDL\r\nSASL {}\r\n.", ways.offers),
            ("AUTH", Some(mechanism)) => {
                let binding = ways.binds.then_some(&exporter);
                let said = log_in(&mut stream, mechanism, first, binding)?;
                let answer = if said.starts_with("ok") { "+OK in" } else { "-ERR [AUTH] no" };
                *verdict.lock().expect("not poisoned") = said;
                answer.to_owned()
            }
            ("UIDL" | "LIST", _) => "+OK\r\n.".to_owned(),
            ("QUIT", _) => {
                stream.write_all(b"+OK\r\n")?;
                return stream.flush();
            }
            ("STAT", _) => "+OK 0 0".to_owned(),
            _ => "-ERR what?".to_owned(),
        };
        stream.write_all(format!("{answer}\r\n").as_bytes())?;
        stream.flush()?;
    }
}

fn log_in(
    stream: &mut (impl Read + Write),
    mechanism: &str,
    first: Option<&str>,
    exporter: Option<&[u8; 32]>,
) -> std::io::Result<String> {
    let mut judge = Judge::start(mechanism, exporter);
    let mut response = if let Some(first) = first {
        first.to_owned()
    } else {
        stream.write_all(b"+ \r\n")?;
        stream.flush()?;
        line(stream)?
    };
    loop {
        let said = judge.ask(&response)?;
        let Some(challenge) = said.strip_prefix("+ ") else { return Ok(said) };
        stream.write_all(format!("+ {challenge}\r\n").as_bytes())?;
        stream.flush()?;
        response = line(stream)?;
        if response == "*" {
            return Ok("no: cancelled".to_owned());
        }
    }
}

fn line(stream: &mut impl Read) -> std::io::Result<String> {
    let mut line = Vec::new();
    let mut octet = [0];
    while !line.ends_with(b"\r\n") {
        stream.read_exact(&mut octet)?;
        line.push(octet[0]);
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

/// The library, in a process of its own.
struct Judge {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Judge {
    fn start(mechanism: &str, exporter: Option<&[u8; 32]>) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/support/gsasl_server.py");
        let mut child = Command::new("python3")
            .arg(script)
            .args([mechanism, PASSWORD])
            .args(exporter.map(|exporter| STANDARD.encode(exporter)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        let (input, output) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
        Self { child, input, output: BufReader::new(output) }
    }

    fn ask(&mut self, response: &str) -> std::io::Result<String> {
        writeln!(self.input, "{response}")?;
        self.input.flush()?;
        let mut said = String::new();
        self.output.read_line(&mut said)?;
        Ok(said.trim_end().to_owned())
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
