//! A POP3 server that does what a script says: correct where the script says
//! nothing, and exactly as wrong as the script wants elsewhere.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rustls::ServerConfig;

use super::wire::Wire;

/// What a script decides about one command.
#[derive(Debug, Clone)]
pub enum Act {
    /// What a correct server does.
    Properly,
    /// These octets in the place of the answer; nothing else is done.
    Say(Vec<u8>),
    /// The correct answer, then these octets.
    ProperlyThen(Vec<u8>),
    /// These octets, then the end of the connection.
    SayAndClose(Vec<u8>),
    /// The end of the connection without an answer.
    Close,
    /// Done properly, then the connection ends before the answer.
    ProperlyUnsaid,
    /// No answer, ever; the connection stays open.
    Silence,
    /// These octets, one each `Duration`, for ever again from the start.
    Dribble(Vec<u8>, Duration),
    /// These octets, then again and again without end.
    Flood(Vec<u8>),
}

impl Act {
    /// One line.
    pub fn line(text: &str) -> Self {
        Self::Say(format!("{text}\r\n").into_bytes())
    }
}

/// What a script sees.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    /// Connections are counted from 1.
    pub session: usize,
    /// The command's name in capitals; `CONNECT` is the moment of the banner.
    pub verb: &'a str,
    /// What follows it.
    pub argument: &'a str,
    /// How often this command came in this session, from 1.
    pub nth: usize,
    /// Whether the session is in TLS.
    pub encrypted: bool,
}

impl Call<'_> {
    /// The message number of RETR, DELE and the like.
    pub fn number(&self) -> u32 {
        self.argument.trim().parse().unwrap_or(0)
    }
}

/// A message in the fake maildrop.
#[derive(Debug, Clone)]
pub struct Mail {
    /// Its unique-id, as sent.
    pub uid: Vec<u8>,
    /// Its octets; stuffed and terminated when sent.
    pub octets: Vec<u8>,
    /// What LIST says of its size; `None` is the truth.
    pub size: Option<u64>,
}

type Script = dyn Fn(&Call<'_>) -> Act + Send + Sync;

/// The description of a server.
pub struct Pop3 {
    banner: String,
    capabilities: Option<Vec<String>>,
    capabilities_in_tls: Option<Vec<String>>,
    accounts: Vec<(String, String)>,
    mail: Vec<Mail>,
    tls: Option<(Arc<ServerConfig>, bool)>,
    fuse: Option<usize>,
    script: Box<Script>,
}

impl Pop3 {
    /// A correct server with PIPELINING, UIDL and an empty maildrop of the
    /// account `alice` (password [`super::dovecot::PASSWORD`]).
    pub fn new() -> Self {
        let capabilities =
            ["TOP", "UIDL", "RESP-CODES", "AUTH-RESP-CODE", "PIPELINING", "USER", "SASL PLAIN"];
        Self {
            banner: "+OK ready".into(),
            capabilities: Some(capabilities.map(String::from).to_vec()),
            capabilities_in_tls: None,
            accounts: vec![("alice".into(), super::dovecot::PASSWORD.into())],
            mail: Vec::new(),
            tls: None,
            fuse: None,
            script: Box::new(|_| Act::Properly),
        }
    }

    /// The greeting.
    pub fn banner(mut self, banner: &str) -> Self {
        banner.clone_into(&mut self.banner);
        self
    }

    /// What CAPA lists; `None`: CAPA is unknown.
    pub fn capabilities(mut self, capabilities: Option<&[&str]>) -> Self {
        self.capabilities = capabilities.map(|list| list.iter().map(|&line| line.to_owned()).collect());
        self
    }

    /// What CAPA lists once in TLS.
    pub fn capabilities_in_tls(mut self, capabilities: &[&str]) -> Self {
        self.capabilities_in_tls = Some(capabilities.iter().map(|&line| line.to_owned()).collect());
        self
    }

    /// A further account with the same maildrop.
    pub fn account(mut self, name: &str, password: &str) -> Self {
        self.accounts.push((name.into(), password.into()));
        self
    }

    /// Adds a message whose UID is `uid`.
    pub fn mail(self, uid: &str, octets: &[u8]) -> Self {
        self.mail_with(Mail { uid: uid.as_bytes().to_vec(), octets: octets.to_vec(), size: None })
    }

    /// Adds a message with all its particulars.
    pub fn mail_with(mut self, mail: Mail) -> Self {
        self.mail.push(mail);
        self
    }

    /// Adds `count` generated messages: UIDs `NAME-00000` and so on.
    pub fn generated(mut self, name: &str, count: usize, octets: usize) -> Self {
        for at in 0..count {
            let mark = format!("{name}-{at:05}");
            self = self.mail(&mark, &super::mail::message(&mark, octets));
        }
        self
    }

    /// TLS from the first octet.
    pub fn implicit_tls(mut self, config: Arc<ServerConfig>) -> Self {
        self.tls = Some((config, true));
        self
    }

    /// STLS is offered.
    pub fn stls(mut self, config: Arc<ServerConfig>) -> Self {
        self.tls = Some((config, false));
        if let Some(capabilities) = &mut self.capabilities {
            capabilities.push("STLS".into());
        }
        self
    }

    /// Each connection is cut after so many octets of the server.
    pub fn cut_after(mut self, octets: usize) -> Self {
        self.fuse = Some(octets);
        self
    }

    /// What it does otherwise than a correct server.
    pub fn script(mut self, script: impl Fn(&Call<'_>) -> Act + Send + Sync + 'static) -> Self {
        self.script = Box::new(script);
        self
    }

    /// Starts it on a free loopback port.
    pub fn start(self) -> FakePop3 {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let shared = Arc::new(Shared {
            state: Mutex::new(State { mail: self.mail.clone(), ..State::default() }),
            sessions: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
            fuse: Mutex::new(self.fuse),
            script: self,
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.ended.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let session = serving.sessions.fetch_add(1, Ordering::SeqCst) + 1;
                let shared = Arc::clone(&serving);
                std::thread::spawn(move || {
                    shared.open.fetch_add(1, Ordering::SeqCst);
                    drop(Session::new(&shared, session, stream).serve());
                    shared.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        FakePop3 { address, shared }
    }
}

/// The running server.
pub struct FakePop3 {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

impl FakePop3 {
    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Connections so far.
    pub fn sessions(&self) -> usize {
        self.shared.sessions.load(Ordering::SeqCst)
    }

    /// Connections now.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Successful logins so far.
    pub fn logins(&self) -> usize {
        self.state().logins
    }

    /// All commands so far, in the order of arrival, with their sessions.
    /// Passwords included: this is a test's server.
    pub fn commands(&self) -> Vec<(usize, String)> {
        self.state().commands.clone()
    }

    /// How often a command came, in all sessions.
    pub fn count(&self, verb: &str) -> usize {
        let is = |line: &str| line.split(' ').next().is_some_and(|word| word.eq_ignore_ascii_case(verb));
        self.state().commands.iter().filter(|(_, line)| is(line)).count()
    }

    /// How often each message was asked for by RETR: by UID.
    pub fn retrieved(&self) -> Vec<String> {
        self.state().retrieved.clone()
    }

    /// The UIDs still in the maildrop.
    pub fn uids(&self) -> Vec<String> {
        self.state().mail.iter().map(|mail| String::from_utf8_lossy(&mail.uid).into_owned()).collect()
    }

    /// Puts a message in, for later sessions.
    pub fn put(&self, uid: &str, octets: &[u8]) {
        let mail = Mail { uid: uid.as_bytes().to_vec(), octets: octets.to_vec(), size: None };
        self.state().mail.push(mail);
    }

    /// Changes the maildrop for later sessions.
    pub fn edit(&self, change: impl FnOnce(&mut Vec<Mail>)) {
        change(&mut self.state().mail);
    }

    /// Later connections are cut after so many octets.
    pub fn cut_after(&self, octets: Option<usize>) {
        *self.shared.fuse.lock().expect("not poisoned") = octets;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().expect("not poisoned")
    }
}

impl Drop for FakePop3 {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
    }
}

struct Shared {
    script: Pop3,
    state: Mutex<State>,
    sessions: AtomicUsize,
    open: AtomicUsize,
    ended: AtomicBool,
    fuse: Mutex<Option<usize>>,
}

#[derive(Default)]
struct State {
    mail: Vec<Mail>,
    commands: Vec<(usize, String)>,
    retrieved: Vec<String>,
    logins: usize,
}

struct Session<'a> {
    shared: &'a Shared,
    number: usize,
    wire: Wire,
    encrypted: bool,
    user: String,
    seen: Vec<String>,
    mail: Option<Vec<Mail>>,
    deleted: BTreeSet<usize>,
    out: Vec<u8>,
}

/// The session is over.
struct Over;

impl From<std::io::Error> for Over {
    fn from(_: std::io::Error) -> Self {
        Self
    }
}

impl<'a> Session<'a> {
    fn new(shared: &'a Shared, number: usize, stream: TcpStream) -> Self {
        let mut wire = Wire::tcp(stream);
        wire.fuse = *shared.fuse.lock().expect("not poisoned");
        Self {
            shared,
            number,
            wire,
            encrypted: false,
            user: String::new(),
            seen: Vec::new(),
            mail: None,
            deleted: BTreeSet::new(),
            out: Vec::new(),
        }
    }

    fn serve(mut self) -> Result<(), Over> {
        if let Some((config, true)) = &self.shared.script.tls {
            self.wire.secure(config)?;
            self.encrypted = true;
        }
        self.take("CONNECT")?;
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

    fn flush(&mut self) -> Result<(), Over> {
        let out = std::mem::take(&mut self.out);
        self.wire.write_all(&out)?;
        Ok(self.wire.flush()?)
    }

    fn take(&mut self, line: &str) -> Result<(), Over> {
        let (verb, argument) = line.split_once(' ').unwrap_or((line, ""));
        let verb = verb.to_ascii_uppercase();
        self.seen.push(verb.clone());
        let nth = self.seen.iter().filter(|seen| **seen == verb).count();
        let call = Call { session: self.number, verb: &verb, argument, nth, encrypted: self.encrypted };
        match (self.shared.script.script)(&call) {
            Act::Properly => self.properly(&verb, argument)?,
            Act::Say(octets) => self.out.extend_from_slice(&octets),
            Act::ProperlyThen(octets) => {
                self.properly(&verb, argument)?;
                self.out.extend_from_slice(&octets);
            }
            Act::SayAndClose(octets) => {
                self.out.extend_from_slice(&octets);
                self.flush()?;
                self.wire.close();
                return Err(Over);
            }
            Act::Close => {
                self.flush()?;
                self.wire.close();
                return Err(Over);
            }
            Act::ProperlyUnsaid => {
                self.flush()?;
                drop(self.properly(&verb, argument));
                self.wire.close();
                return Err(Over);
            }
            Act::Silence => {
                self.flush()?;
                self.wire.linger();
                return Err(Over);
            }
            Act::Dribble(octets, pause) => {
                self.flush()?;
                for octet in octets.iter().cycle() {
                    self.wire.write_all(&[*octet])?;
                    self.wire.flush()?;
                    std::thread::sleep(pause);
                }
            }
            Act::Flood(octets) => {
                self.flush()?;
                let block = octets.repeat(65536_usize.div_ceil(octets.len().max(1)));
                loop {
                    self.wire.write_all(&block)?;
                }
            }
        }
        // A large answer goes out before the next command is looked at, as
        // real servers' buffers make it.
        if self.out.len() > 65536 {
            self.flush()?;
        }
        Ok(())
    }

    fn properly(&mut self, verb: &str, argument: &str) -> Result<(), Over> {
        match verb {
            "CONNECT" => self.say(&self.shared.script.banner.clone()),
            "CAPA" => self.capa(),
            "STLS" => {
                let Some((config, false)) = &self.shared.script.tls else {
                    self.say("-ERR unknown command");
                    return Ok(());
                };
                self.say("+OK begin TLS");
                self.flush()?;
                self.wire.secure(config)?;
                self.encrypted = true;
            }
            "USER" => {
                argument.clone_into(&mut self.user);
                self.say("+OK");
            }
            "PASS" => {
                let user = std::mem::take(&mut self.user);
                self.login(&user, argument);
            }
            "AUTH" => self.auth(argument)?,
            "NOOP" | "UTF8" => self.say("+OK"),
            "RSET" => {
                self.deleted.clear();
                self.say("+OK");
            }
            "QUIT" => {
                self.commit();
                self.say("+OK bye");
                self.flush()?;
                self.wire.close();
                return Err(Over);
            }
            _ if self.mail.is_none() => self.say("-ERR log in first"),
            "STAT" | "LIST" | "UIDL" | "RETR" | "DELE" => self.transaction(verb, argument),
            _ => self.say("-ERR unknown command"),
        }
        Ok(())
    }

    fn capa(&mut self) {
        let script = &self.shared.script;
        let list = match (&script.capabilities_in_tls, self.encrypted) {
            (Some(list), true) => Some(list),
            _ => script.capabilities.as_ref(),
        };
        match list {
            None => self.say("-ERR unknown command"),
            Some(list) => {
                let mut text = String::from("+OK\r\n");
                for line in list.iter().filter(|line| !(self.encrypted && *line == "STLS")) {
                    text.push_str(line);
                    text.push_str("\r\n");
                }
                text.push('.');
                self.say(&text);
            }
        }
    }

    fn auth(&mut self, argument: &str) -> Result<(), Over> {
        use base64::Engine as _;
        let mut words = argument.split(' ');
        let (mechanism, initial) = (words.next().unwrap_or_default(), words.next());
        if !mechanism.eq_ignore_ascii_case("PLAIN") {
            self.say("-ERR no such mechanism");
            return Ok(());
        }
        let response = if let Some(initial) = initial {
            initial.to_owned()
        } else {
            self.say("+ ");
            self.flush()?;
            String::from_utf8_lossy(&self.wire.line()?.ok_or(Over)?).into_owned()
        };
        let decoded = base64::engine::general_purpose::STANDARD.decode(&response).unwrap_or_default();
        let decoded = String::from_utf8_lossy(&decoded).into_owned();
        let mut parts = decoded.split('\0').skip(1);
        let (user, password) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        self.login(user, password);
        Ok(())
    }

    fn login(&mut self, user: &str, password: &str) {
        if self.shared.script.accounts.iter().any(|(name, secret)| name == user && secret == password) {
            let mut state = self.shared.state.lock().expect("not poisoned");
            state.logins += 1;
            self.mail = Some(state.mail.clone());
            drop(state);
            self.say("+OK logged in");
        } else {
            self.say("-ERR [AUTH] wrong name or password");
        }
    }

    fn transaction(&mut self, verb: &str, argument: &str) {
        let mail = self.mail.take().unwrap_or_default();
        let size = |mail: &Mail| mail.size.unwrap_or(mail.octets.len() as u64);
        let live = || mail.iter().enumerate().filter(|(at, _)| !self.deleted.contains(at));
        let wanted = argument.trim().parse::<usize>().ok().and_then(|number| number.checked_sub(1));
        let wanted = wanted.filter(|at| *at < mail.len() && !self.deleted.contains(at));
        let mut out = Vec::new();
        match (verb, wanted) {
            ("STAT", _) => {
                let total: u64 = live().map(|(_, mail)| size(mail)).fold(0, u64::saturating_add);
                out.extend_from_slice(format!("+OK {} {total}\r\n", live().count()).as_bytes());
            }
            ("LIST", _) if argument.is_empty() => {
                out.extend_from_slice(b"+OK\r\n");
                for (at, mail) in live() {
                    out.extend_from_slice(format!("{} {}\r\n", at + 1, size(mail)).as_bytes());
                }
                out.extend_from_slice(b".\r\n");
            }
            ("UIDL", _) if argument.is_empty() => {
                out.extend_from_slice(b"+OK\r\n");
                for (at, mail) in live() {
                    out.extend_from_slice(format!("{} ", at + 1).as_bytes());
                    out.extend_from_slice(&mail.uid);
                    out.extend_from_slice(b"\r\n");
                }
                out.extend_from_slice(b".\r\n");
            }
            (_, None) => out.extend_from_slice(b"-ERR no such message\r\n"),
            ("LIST", Some(at)) => {
                out.extend_from_slice(format!("+OK {} {}\r\n", at + 1, size(&mail[at])).as_bytes());
            }
            ("UIDL", Some(at)) => {
                out.extend_from_slice(format!("+OK {} ", at + 1).as_bytes());
                out.extend_from_slice(&mail[at].uid);
                out.extend_from_slice(b"\r\n");
            }
            ("RETR", Some(at)) => {
                let uid = String::from_utf8_lossy(&mail[at].uid).into_owned();
                self.shared.state.lock().expect("not poisoned").retrieved.push(uid);
                out.extend_from_slice(format!("+OK {} octets\r\n", size(&mail[at])).as_bytes());
                out.extend_from_slice(&stuffed(&mail[at].octets));
            }
            (_, Some(at)) => {
                self.deleted.insert(at);
                out.extend_from_slice(b"+OK marked\r\n");
            }
        }
        self.mail = Some(mail);
        self.out.extend_from_slice(&out);
    }

    /// RFC 1939, section 6: only QUIT deletes.
    fn commit(&mut self) {
        let Some(mail) = &self.mail else { return };
        let mut gone: Vec<&[u8]> = self.deleted.iter().map(|at| mail[*at].uid.as_slice()).collect();
        let mut state = self.shared.state.lock().expect("not poisoned");
        state.mail.retain(|mail| match gone.iter().position(|uid| *uid == mail.uid) {
            Some(at) => {
                gone.swap_remove(at);
                false
            }
            None => true,
        });
    }

    fn say(&mut self, line: &str) {
        self.out.extend_from_slice(line.as_bytes());
        self.out.extend_from_slice(b"\r\n");
    }
}

/// The multi-line form of a message: dots doubled, ended by a lone dot. Only
/// what stands behind CRLF is the start of a line.
pub fn stuffed(octets: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(octets.len() + 8);
    let mut start = true;
    for (at, &octet) in octets.iter().enumerate() {
        if start && octet == b'.' {
            out.push(b'.');
        }
        out.push(octet);
        start = octet == b'\n' && at > 0 && octets[at - 1] == b'\r';
    }
    if !out.is_empty() && !out.ends_with(b"\r\n") {
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b".\r\n");
    out
}

/// The whole answer to RETR for `octets`, as a correct server sends it.
pub fn retr_answer(octets: &[u8]) -> Vec<u8> {
    let mut out = b"+OK\r\n".to_vec();
    out.extend_from_slice(&stuffed(octets));
    out
}
