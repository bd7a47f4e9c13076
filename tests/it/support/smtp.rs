//! An SMTP or LMTP server that does what a script says, and remembers what it
//! accepted: the sink that counts.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rustls::ServerConfig;

use super::mail::Arrived;
use super::wire::Wire;

/// What a script decides about one command.
#[derive(Debug, Clone)]
pub enum Act {
    /// What a correct server does.
    Properly,
    /// This reply (without CRLF); a message or recipient is not accepted.
    Say(String),
    /// This reply, then the end of the connection.
    SayAndClose(String),
    /// The end of the connection without a reply.
    Close,
    /// Only behind the message (`.`): it is accepted, then the connection
    /// ends before the reply.
    AcceptAndClose,
    /// No reply, ever.
    Silence,
    /// What a correct server does, this much later.
    Later(Duration),
    /// Done and answered properly, then the end of the connection.
    ProperlyAndClose,
}

/// What a script sees.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    /// Connections are counted from 1.
    pub session: usize,
    /// `CONNECT`, `EHLO` (LHLO, HELO too), `MAIL`, `RCPT`, `DATA`, `BDAT`,
    /// `STARTTLS`, `AUTH`, `RSET`, `NOOP`, `QUIT`; `.` is the end of a
    /// message, with LMTP once for each accepted recipient.
    pub verb: &'a str,
    /// What follows the command's name; for `.` the recipient (LMTP) or
    /// nothing.
    pub argument: &'a str,
    /// How often it came in this session, from 1.
    pub nth: usize,
    /// How many messages all sessions have accepted.
    pub accepted: usize,
    /// The message's octets, for `.`.
    pub content: &'a [u8],
}

impl Call<'_> {
    /// Whether the message at hand holds `text`.
    pub fn holds(&self, text: &str) -> bool {
        memchr::memmem::find(self.content, text.as_bytes()).is_some()
    }
}

/// A message that was accepted for one recipient or more.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// The connection that brought it.
    pub session: usize,
    /// The argument of MAIL: `FROM:<…>` and parameters.
    pub mail: String,
    /// The accepted recipients: the arguments of RCPT.
    pub recipients: Vec<String>,
    /// The message, un-stuffed.
    pub message: Arrived,
}

impl Accepted {
    /// The address between the angle brackets of MAIL.
    pub fn sender(&self) -> &str {
        bracketed(&self.mail)
    }

    /// The addresses between the angle brackets of RCPT.
    pub fn addresses(&self) -> Vec<&str> {
        self.recipients.iter().map(|line| bracketed(line)).collect()
    }
}

fn bracketed(line: &str) -> &str {
    line.split_once('<').and_then(|(_, rest)| rest.rsplit_once('>')).map_or("", |(address, _)| address)
}

/// How much of a message a server looks at that only counts.
const KEPT: usize = 65536;

type Script = dyn Fn(&Call<'_>) -> Act + Send + Sync;

/// The description of a server.
pub struct Smtp {
    lmtp: bool,
    extensions: Vec<String>,
    tls: Option<Arc<ServerConfig>>,
    login: Option<(String, String)>,
    keep: bool,
    script: Box<Script>,
}

impl Smtp {
    /// A correct SMTP server with the usual extensions that takes everything.
    pub fn new() -> Self {
        let extensions = ["PIPELINING", "SIZE 0", "8BITMIME", "ENHANCEDSTATUSCODES", "DSN", "SMTPUTF8"];
        Self {
            lmtp: false,
            extensions: extensions.map(String::from).to_vec(),
            tls: None,
            login: None,
            keep: true,
            script: Box::new(|_| Act::Properly),
        }
    }

    /// A correct LMTP server (RFC 2033).
    pub fn lmtp() -> Self {
        Self { lmtp: true, ..Self::new() }
    }

    /// Whether it speaks LMTP.
    pub fn is_lmtp(&self) -> bool {
        self.lmtp
    }

    /// What EHLO announces.
    pub fn extensions(mut self, extensions: &[&str]) -> Self {
        self.extensions = extensions.iter().map(|&line| line.to_owned()).collect();
        self
    }

    /// Announces one more.
    pub fn with(mut self, extension: &str) -> Self {
        self.extensions.push(extension.into());
        self
    }

    /// Offers STARTTLS.
    pub fn starttls(mut self, config: Arc<ServerConfig>) -> Self {
        self.tls = Some(config);
        self
    }

    /// Wants AUTH PLAIN with these.
    pub fn login(mut self, user: &str, password: &str) -> Self {
        self.login = Some((user.into(), password.into()));
        self
    }

    /// Counts messages but keeps none of them: for many, or endless ones.
    pub fn counting_only(mut self) -> Self {
        self.keep = false;
        self
    }

    /// What it does otherwise than a correct server.
    pub fn script(mut self, script: impl Fn(&Call<'_>) -> Act + Send + Sync + 'static) -> Self {
        self.script = Box::new(script);
        self
    }

    /// Starts it on a free loopback port.
    pub fn start(self) -> FakeSmtp {
        self.start_on(0)
    }

    /// Starts it on a given port (0: a free one).
    pub fn start_on(self, port: u16) -> FakeSmtp {
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("a port");
        let address = listener.local_addr().expect("its address");
        let shared = Arc::new(Shared::new(self));
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.ended.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                serve(&serving, Wire::tcp(stream));
            }
        });
        FakeSmtp { address: Some(address), socket: None, shared }
    }

    /// Starts it on a unix socket.
    pub fn start_unix(self, path: &Path) -> FakeSmtp {
        let listener = UnixListener::bind(path).expect("a socket");
        let shared = Arc::new(Shared::new(self));
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.ended.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                serve(&serving, Wire::unix(stream));
            }
        });
        FakeSmtp { address: None, socket: Some(path.to_owned()), shared }
    }
}

fn serve(shared: &Arc<Shared>, wire: Wire) {
    let number = shared.sessions.fetch_add(1, Ordering::SeqCst) + 1;
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        shared.open.fetch_add(1, Ordering::SeqCst);
        drop(Session::new(&shared, number, wire).serve());
        shared.open.fetch_sub(1, Ordering::SeqCst);
    });
}

/// The running server.
pub struct FakeSmtp {
    address: Option<SocketAddr>,
    /// Its unix socket.
    pub socket: Option<PathBuf>,
    shared: Arc<Shared>,
}

impl FakeSmtp {
    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.expect("it listens on TCP").port()
    }

    /// How many messages it has accepted.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Connections so far.
    pub fn sessions(&self) -> usize {
        self.shared.sessions.load(Ordering::SeqCst)
    }

    /// Connections now.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// What it accepted, in order.
    pub fn mail(&self) -> Vec<Accepted> {
        self.state().mail.clone()
    }

    /// The accepted messages.
    pub fn messages(&self) -> Vec<Arrived> {
        self.state().mail.iter().map(|mail| mail.message.clone()).collect()
    }

    /// How often each generated message was accepted, by its mark.
    pub fn marks(&self) -> BTreeMap<String, usize> {
        self.state().marks.clone()
    }

    /// All commands, with their sessions.
    pub fn commands(&self) -> Vec<(usize, String)> {
        self.state().commands.clone()
    }

    /// Messages whose text began to arrive but whose end did not.
    pub fn broken_off(&self) -> usize {
        self.state().broken_off
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().expect("not poisoned")
    }
}

impl Drop for FakeSmtp {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        if let Some(address) = self.address {
            drop(TcpStream::connect(address));
        }
        if let Some(socket) = &self.socket {
            drop(std::os::unix::net::UnixStream::connect(socket));
        }
    }
}

struct Shared {
    script: Smtp,
    state: Mutex<State>,
    accepted: AtomicUsize,
    sessions: AtomicUsize,
    open: AtomicUsize,
    ended: AtomicBool,
}

impl Shared {
    fn new(script: Smtp) -> Self {
        Self {
            script,
            state: Mutex::default(),
            accepted: AtomicUsize::new(0),
            sessions: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        }
    }
}

#[derive(Default)]
struct State {
    mail: Vec<Accepted>,
    marks: BTreeMap<String, usize>,
    commands: Vec<(usize, String)>,
    broken_off: usize,
}

struct Session<'a> {
    shared: &'a Shared,
    number: usize,
    wire: Wire,
    seen: BTreeMap<String, usize>,
    encrypted: bool,
    authenticated: bool,
    mail: Option<String>,
    recipients: Vec<String>,
    chunks: Vec<u8>,
    out: Vec<u8>,
}

struct Over;

impl From<std::io::Error> for Over {
    fn from(_: std::io::Error) -> Self {
        Self
    }
}

impl<'a> Session<'a> {
    fn new(shared: &'a Shared, number: usize, wire: Wire) -> Self {
        Self {
            shared,
            number,
            wire,
            seen: BTreeMap::new(),
            encrypted: false,
            authenticated: false,
            mail: None,
            recipients: Vec::new(),
            chunks: Vec::new(),
            out: Vec::new(),
        }
    }

    fn serve(mut self) -> Result<(), Over> {
        if self.asks("CONNECT", "", &[])? {
            self.say("220 fake.test ready");
        }
        loop {
            if self.wire.drained() {
                self.flush()?;
            }
            let Some(line) = self.wire.line()? else { return Ok(()) };
            let line = String::from_utf8_lossy(&line).into_owned();
            self.shared.state.lock().expect("not poisoned").commands.push((self.number, line.clone()));
            self.take(&line)?;
        }
    }

    fn take(&mut self, line: &str) -> Result<(), Over> {
        let (verb, argument) = line.split_once(' ').unwrap_or((line, ""));
        let verb = verb.to_ascii_uppercase();
        let verb = if matches!(verb.as_str(), "LHLO" | "HELO") { "EHLO".to_owned() } else { verb };
        if verb == "BDAT" {
            return self.bdat(argument);
        }
        if !self.asks(&verb, argument, &[])? {
            return Ok(());
        }
        match verb.as_str() {
            "EHLO" => self.hello(line),
            "STARTTLS" => {
                let Some(config) = &self.shared.script.tls else {
                    self.say("502 5.5.1 not here");
                    return Ok(());
                };
                self.say("220 2.0.0 begin TLS");
                self.flush()?;
                self.wire.secure(config)?;
                self.encrypted = true;
            }
            "AUTH" => self.auth(argument)?,
            "MAIL" if self.shared.script.login.is_some() && !self.authenticated => {
                self.say("530 5.7.0 authentication required");
            }
            "MAIL" if self.mail.is_some() => self.say("503 5.5.1 nested MAIL"),
            "MAIL" => {
                self.mail = Some(argument.to_owned());
                self.recipients.clear();
                self.say("250 2.1.0 sender ok");
            }
            "RCPT" if self.mail.is_none() => self.say("503 5.5.1 MAIL first"),
            "RCPT" => {
                self.recipients.push(argument.to_owned());
                self.say("250 2.1.5 recipient ok");
            }
            "DATA" if self.recipients.is_empty() => self.say("503 5.5.1 no valid recipients"),
            "DATA" => self.data()?,
            "RSET" => {
                self.reset();
                self.say("250 2.0.0 ok");
            }
            "NOOP" => self.say("250 2.0.0 ok"),
            "QUIT" => {
                self.say("221 2.0.0 bye");
                self.flush()?;
                self.wire.close();
                return Err(Over);
            }
            _ => self.say("500 5.5.2 unknown command"),
        }
        Ok(())
    }

    /// Asks the script. `true`: go on properly.
    fn asks(&mut self, verb: &str, argument: &str, content: &[u8]) -> Result<bool, Over> {
        let nth = self.seen.entry(verb.to_owned()).or_default();
        *nth += 1;
        let accepted = self.shared.accepted.load(Ordering::SeqCst);
        let call = Call { session: self.number, verb, argument, nth: *nth, accepted, content };
        match (self.shared.script.script)(&call) {
            Act::Properly => return Ok(true),
            Act::Say(line) => self.say(&line),
            Act::SayAndClose(line) => {
                self.say(&line);
                return self.end();
            }
            Act::Close => return self.end(),
            Act::AcceptAndClose => {
                self.accept(content);
                return self.end();
            }
            Act::Silence => {
                self.flush()?;
                self.wire.linger();
                return Err(Over);
            }
            Act::Later(pause) => {
                self.flush()?;
                std::thread::sleep(pause);
                return Ok(true);
            }
            Act::ProperlyAndClose => {
                if verb == "." {
                    self.accept(content);
                    self.say("250 2.0.0 accepted");
                }
                return self.end();
            }
        }
        Ok(false)
    }

    fn end(&mut self) -> Result<bool, Over> {
        self.flush()?;
        self.wire.close();
        Err(Over)
    }

    fn hello(&mut self, line: &str) {
        self.reset();
        let lmtp = line.get(..4).is_some_and(|verb| verb.eq_ignore_ascii_case("LHLO"));
        if lmtp != self.shared.script.lmtp {
            self.say("500 5.5.1 wrong protocol");
            return;
        }
        let mut lines = vec!["fake.test".to_owned()];
        lines.extend(self.shared.script.extensions.iter().cloned());
        if self.shared.script.tls.is_some() && !self.encrypted {
            lines.push("STARTTLS".into());
        }
        if self.shared.script.login.is_some() {
            lines.push("AUTH PLAIN".into());
        }
        let last = lines.len() - 1;
        for (at, line) in lines.iter().enumerate() {
            self.say(&format!("250{}{line}", if at == last { ' ' } else { '-' }));
        }
    }

    fn auth(&mut self, argument: &str) -> Result<(), Over> {
        use base64::Engine as _;
        let response = if let Some((_, initial)) = argument.split_once(' ') {
            initial.to_owned()
        } else {
            self.say("334 ");
            self.flush()?;
            String::from_utf8_lossy(&self.wire.line()?.ok_or(Over)?).into_owned()
        };
        let decoded = base64::engine::general_purpose::STANDARD.decode(&response).unwrap_or_default();
        let given = String::from_utf8_lossy(&decoded).into_owned();
        let wanted =
            self.shared.script.login.as_ref().map(|(user, password)| format!("\0{user}\0{password}"));
        self.authenticated = wanted.is_some_and(|wanted| wanted == given);
        let reply = if self.authenticated { "235 2.7.0 welcome" } else { "535 5.7.8 wrong" };
        self.say(reply);
        Ok(())
    }

    fn data(&mut self) -> Result<(), Over> {
        self.say("354 go on");
        self.flush()?;
        let mut content = Vec::new();
        loop {
            let Ok(Some(line)) = self.wire.line() else {
                self.shared.state.lock().expect("not poisoned").broken_off += 1;
                return Err(Over);
            };
            if line == b"." {
                break;
            }
            let line = line.strip_prefix(b".").unwrap_or(&line);
            if self.shared.script.keep || content.len() < KEPT {
                content.extend_from_slice(line);
                content.extend_from_slice(b"\r\n");
            }
        }
        self.finish(&content)
    }

    fn bdat(&mut self, argument: &str) -> Result<(), Over> {
        let mut words = argument.split(' ');
        let count = words.next().and_then(|word| word.parse().ok()).ok_or(Over)?;
        let last = words.next().is_some_and(|word| word.eq_ignore_ascii_case("LAST"));
        let Ok(octets) = self.wire.octets(count) else {
            self.shared.state.lock().expect("not poisoned").broken_off += 1;
            return Err(Over);
        };
        if !self.asks("BDAT", argument, &[])? {
            return Ok(());
        }
        if self.recipients.is_empty() {
            self.say("503 5.5.1 no valid recipients");
            return Ok(());
        }
        self.chunks.extend_from_slice(&octets);
        if last {
            let content = std::mem::take(&mut self.chunks);
            self.finish(&content)?;
        } else {
            self.say("250 2.0.0 chunk ok");
        }
        Ok(())
    }

    fn finish(&mut self, content: &[u8]) -> Result<(), Over> {
        if self.shared.script.lmtp {
            let mut kept = Vec::new();
            for recipient in self.recipients.clone() {
                if self.asks(".", &recipient, content)? {
                    self.say(&format!("250 2.0.0 {} stored", bracketed(&recipient)));
                    kept.push(recipient);
                }
            }
            self.recipients = kept;
            if !self.recipients.is_empty() {
                self.accept(content);
            }
        } else if self.asks(".", "", content)? {
            self.accept(content);
            self.say("250 2.0.0 queued");
        }
        self.reset();
        Ok(())
    }

    fn accept(&mut self, content: &[u8]) {
        let message = Arrived { raw: content.to_vec() };
        let mut state = self.shared.state.lock().expect("not poisoned");
        *state.marks.entry(message.mark()).or_default() += 1;
        if self.shared.script.keep {
            let (mail, recipients) = (self.mail.clone().unwrap_or_default(), self.recipients.clone());
            state.mail.push(Accepted { session: self.number, mail, recipients, message });
        }
        drop(state);
        self.shared.accepted.fetch_add(1, Ordering::SeqCst);
    }

    fn reset(&mut self) {
        self.mail = None;
        self.recipients.clear();
        self.chunks.clear();
    }

    fn say(&mut self, line: &str) {
        self.out.extend_from_slice(line.as_bytes());
        self.out.extend_from_slice(b"\r\n");
    }

    fn flush(&mut self) -> Result<(), Over> {
        let out = std::mem::take(&mut self.out);
        self.wire.write_all(&out)?;
        Ok(self.wire.flush()?)
    }
}
