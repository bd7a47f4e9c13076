//! Thousands of maildrops behind one port: a POP3 server that lets anybody in
//! at any time, as the worst of servers would, and remembers what locking
//! would have hidden: a command obeyed for a session after another one of the
//! same maildrop had logged in.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::parts::mail::message;
use crate::parts::pop3::stuffed;

/// Two sessions at one maildrop.
#[derive(Debug, Clone)]
#[allow(dead_code, reason = "printed")]
pub struct Double {
    pub account: String,
    /// What was obeyed for the older session.
    pub command: String,
    /// When the newer one had logged in.
    pub newer: Duration,
}

/// A maildrop.
#[derive(Default)]
struct Drop {
    /// Marks of its messages, which are their UIDs.
    mail: Vec<String>,
    logins: u64,
    open: usize,
    last_login: Option<Instant>,
    /// The longest time between two logins, and when it ended.
    gaps: Vec<Duration>,
}

#[derive(Default)]
struct State {
    drops: HashMap<String, Drop>,
    deleted: BTreeSet<String>,
    doubles: Vec<Double>,
    logins: u64,
}

/// The server.
#[derive(Clone)]
pub struct Maildrops {
    pub port: u16,
    state: Arc<Mutex<State>>,
    open: Arc<AtomicUsize>,
}

/// How long a login, a message or the end takes: sessions shall be open often
/// enough to be hit.
const PACE: Duration = Duration::from_millis(60);
const OCTETS: usize = 700;

impl Maildrops {
    /// A server for these accounts, on all of loopback.
    pub async fn start(accounts: impl Iterator<Item = String>) -> Self {
        let listener = TcpListener::bind("0.0.0.0:0").await.expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let drops = accounts.map(|account| (account, Drop::default())).collect();
        let state = Arc::new(Mutex::new(State { drops, ..State::default() }));
        let open = Arc::new(AtomicUsize::new(0));
        let (serving, counted) = (Arc::clone(&state), Arc::clone(&open));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, open) = (Arc::clone(&serving), Arc::clone(&counted));
                tokio::spawn(async move {
                    let mut session = Session {
                        state,
                        account: String::new(),
                        login: 0,
                        mail: None,
                        deleted: BTreeSet::new(),
                    };
                    open.fetch_add(1, Ordering::SeqCst);
                    drop(session.serve(stream).await);
                    session.over();
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { port, state, open }
    }

    /// Puts a message into a maildrop.
    pub fn put(&self, account: &str, mark: &str) {
        let mut state = self.state.lock().unwrap();
        state.drops.get_mut(account).expect("an account").mail.push(mark.to_owned());
    }

    /// Connections now.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Logins so far.
    pub fn logins(&self) -> u64 {
        self.state.lock().unwrap().logins
    }

    /// Two sessions at one maildrop, so far.
    pub fn doubles(&self) -> Vec<Double> {
        self.state.lock().unwrap().doubles.clone()
    }

    /// Which messages were deleted.
    pub fn deleted(&self) -> BTreeSet<String> {
        self.state.lock().unwrap().deleted.clone()
    }

    /// Maildrops that nobody has logged in to.
    pub fn untouched(&self) -> usize {
        self.state.lock().unwrap().drops.values().filter(|drop| drop.logins == 0).count()
    }

    /// Messages that are still there.
    pub fn left(&self) -> usize {
        self.state.lock().unwrap().drops.values().map(|drop| drop.mail.len()).sum()
    }

    /// Times between two logins of the same maildrop since the last call,
    /// sorted.
    pub fn take_gaps(&self) -> Vec<Duration> {
        let mut state = self.state.lock().unwrap();
        let mut gaps: Vec<_> =
            state.drops.values_mut().flat_map(|drop| std::mem::take(&mut drop.gaps)).collect();
        gaps.sort_unstable();
        gaps
    }
}

struct Session {
    state: Arc<Mutex<State>>,
    account: String,
    login: u64,
    /// The listing of this session.
    mail: Option<Vec<String>>,
    deleted: BTreeSet<usize>,
}

impl Session {
    async fn serve(&mut self, stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        write.write_all(b"+OK ready\r\n").await?;
        while let Some(line) = lines.next_line().await? {
            let (verb, argument) = line.split_once(' ').unwrap_or((&line, ""));
            if matches!(verb, "PASS" | "RETR" | "QUIT") {
                tokio::time::sleep(PACE).await;
            }
            let answer = self.obey(verb, argument);
            write.write_all(&answer).await?;
            if verb == "QUIT" {
                break;
            }
        }
        Ok(())
    }

    fn obey(&mut self, verb: &str, argument: &str) -> Vec<u8> {
        if self.mail.is_some() {
            self.watch(verb);
        }
        let at = argument.trim().parse::<usize>().ok().and_then(|number| number.checked_sub(1));
        let line = |text: &str| format!("{text}\r\n").into_bytes();
        let ok = || line("+OK");
        let Some(mail) = &self.mail else {
            return match verb {
                "CAPA" => line("+OK\r\nUIDL\r\nPIPELINING\r\nUSER\r\nRESP-CODES\r\n."),
                "USER" => {
                    argument.clone_into(&mut self.account);
                    ok()
                }
                "PASS" => self.log_in(),
                "QUIT" => ok(),
                _ => line("-ERR not now"),
            };
        };
        let size = |mark: &String| message(mark, OCTETS).len();
        let live = mail.iter().enumerate().filter(|(at, _)| !self.deleted.contains(at));
        let list = |what: &mut dyn FnMut(&String) -> String| {
            let mut text = String::from("+OK\r\n");
            for (at, mark) in mail.iter().enumerate().filter(|(at, _)| !self.deleted.contains(at)) {
                write!(text, "{} {}\r\n", at + 1, what(mark)).expect("text");
            }
            text += ".\r\n";
            text.into_bytes()
        };
        match (verb, at.filter(|at| *at < mail.len() && !self.deleted.contains(at))) {
            ("CAPA", _) => line("+OK\r\nUIDL\r\nPIPELINING\r\nUSER\r\nRESP-CODES\r\n."),
            ("NOOP", _) => ok(),
            ("STAT", _) => line(&format!(
                "+OK {} {}",
                live.clone().count(),
                live.map(|(_, mark)| size(mark)).sum::<usize>()
            )),
            ("LIST", None) if argument.is_empty() => list(&mut |mark| size(mark).to_string()),
            ("UIDL", None) if argument.is_empty() => list(&mut Clone::clone),
            ("LIST", Some(at)) => line(&format!("+OK {} {}", at + 1, size(&mail[at]))),
            ("UIDL", Some(at)) => line(&format!("+OK {} {}", at + 1, mail[at])),
            ("RETR", Some(at)) => {
                let mut answer = ok();
                answer.extend(stuffed(&message(&mail[at], OCTETS)));
                answer
            }
            ("DELE", Some(at)) => {
                self.deleted.insert(at);
                ok()
            }
            ("RSET", _) => {
                self.deleted.clear();
                ok()
            }
            ("QUIT", _) => {
                self.quit();
                ok()
            }
            _ => line("-ERR no such thing"),
        }
    }

    /// Whether somebody else has logged in since.
    fn watch(&self, verb: &str) {
        let mut state = self.state.lock().unwrap();
        let drop = &state.drops[&self.account];
        if drop.logins > self.login {
            let newer = drop.last_login.map(|at| at.elapsed()).unwrap_or_default();
            let (account, command) = (self.account.clone(), verb.to_owned());
            state.doubles.push(Double { account, command, newer });
        }
    }

    fn log_in(&mut self) -> Vec<u8> {
        let mut state = self.state.lock().unwrap();
        let Some(drop) = state.drops.get_mut(&self.account) else { return b"-ERR [AUTH] who?\r\n".to_vec() };
        drop.logins += 1;
        drop.open += 1;
        if let Some(before) = drop.last_login.replace(Instant::now()) {
            drop.gaps.push(before.elapsed());
        }
        self.login = drop.logins;
        self.mail = Some(drop.mail.clone());
        state.logins += 1;
        b"+OK\r\n".to_vec()
    }

    fn quit(&mut self) {
        let Some(mail) = &self.mail else { return };
        let mut state = self.state.lock().unwrap();
        for at in &self.deleted {
            let mark = &mail[*at];
            state.drops.get_mut(&self.account).expect("its maildrop").mail.retain(|there| there != mark);
            state.deleted.insert(mark.clone());
        }
    }

    fn over(&mut self) {
        if self.mail.take().is_some() {
            let mut state = self.state.lock().unwrap();
            state.drops.get_mut(&self.account).expect("its maildrop").open -= 1;
        }
    }
}
