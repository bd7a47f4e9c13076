//! A private Postfix that hands everything to one LMTP server, and what lies
//! in its queue.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process_group};

use super::mail::Arrived;
use super::process::Daemon;

/// A running Postfix with a queue of its own.
pub struct Postfix {
    daemon: Option<Daemon>,
    /// SMTP.
    pub smtp: u16,
    folder: tempfile::TempDir,
}

impl Postfix {
    /// Starts one that delivers all mail, of any domain, to the LMTP server on
    /// loopback port `lmtp`. `None` (said loudly, a failure in CI) where
    /// Postfix is not installed or this process is not root, without which
    /// Postfix does not run.
    pub fn start(test: &str, lmtp: u16) -> Option<Self> {
        Self::open(test, lmtp, &[], "")
    }

    /// One that knows its recipients (all where there are none here), also
    /// with a detail (`alice+lists@…`), and refuses others at RCPT.
    pub fn start_for(test: &str, lmtp: u16, recipients: &[&str]) -> Option<Self> {
        Self::open(test, lmtp, recipients, "")
    }

    /// The same with further lines of `main.cf`, which count more than its
    /// own. A transport `traced` is there that hands over to an LMTP server as
    /// `lmtp` does, and writes X-Original-To.
    pub fn start_with(test: &str, lmtp: u16, settings: &str) -> Option<Self> {
        Self::open(test, lmtp, &[], settings)
    }

    fn open(test: &str, lmtp: u16, recipients: &[&str], settings: &str) -> Option<Self> {
        let why = match super::program("postfix") {
            None => "Postfix is not installed; scripts/bootstrap installs it",
            Some(_) if !super::is_root() => "Postfix runs as root only",
            Some(_) => {
                return Some(Self::prepare(lmtp, super::free_port(), recipients, settings));
            }
        };
        super::skipped(test, why);
        None
    }

    fn prepare(lmtp: u16, smtp: u16, recipients: &[&str], settings: &str) -> Self {
        let folder = super::folder("postfix");
        for name in ["etc", "queue", "data"] {
            std::fs::create_dir(folder.path().join(name)).expect("a folder");
        }
        let user = |name: &str| {
            let output = Command::new("id").args(["-u", name]).output().expect("id(1)");
            String::from_utf8_lossy(&output.stdout).trim().parse().expect("a user of the package")
        };
        chown(folder.path().join("data"), Some(user("postfix")), None).expect("root may give away");
        let daemons = Command::new("postconf").args(["-d", "-h", "daemon_directory"]).output();
        let daemons = daemons.expect("postconf(1)").stdout;
        let daemons = String::from_utf8_lossy(&daemons).trim().to_owned();
        let mut postfix = Self { daemon: None, smtp, folder };
        let at = postfix.folder.path().display().to_string();
        let known = match recipients {
            [] => String::new(),
            known => {
                let pattern = |address: &&str| {
                    let (local, domain) = address.split_once('@').expect("an address");
                    format!("/^{local}(\\+[^@]+)?@{}$/ OK\n", domain.replace('.', "\\."))
                };
                let mut table: String = known.iter().map(pattern).collect();
                table.push_str("/./ 550 5.1.1 User unknown\n");
                std::fs::write(postfix.path("etc/recipients"), table).expect("a table");
                format!("check_recipient_access regexp:{at}/etc/recipients, ")
            }
        };
        let main = format!(
            "compatibility_level = 3.6\nqueue_directory = {at}/queue\ndata_directory = {at}/data\n\
             command_directory = /usr/sbin\ndaemon_directory = {daemons}\nmail_owner = postfix\n\
             setgid_group = postdrop\ninet_interfaces = 127.0.0.1\ninet_protocols = ipv4\n\
             myhostname = queue.test\nmydomain = test\nmydestination =\nmynetworks = 127.0.0.0/8\n\
             relay_domains =\ndefault_transport = lmtp:inet:127.0.0.1:{lmtp}\nalias_maps =\n\
             alias_database =\nlocal_recipient_maps =\n\
             smtpd_recipient_restrictions = {known}permit_mynetworks, reject\nmessage_size_limit = 0\n\
             mailbox_size_limit = 0\nmaillog_file = {at}/log\nmaillog_file_prefixes = {at}\n\
             lmtp_destination_recipient_limit = 1\nminimal_backoff_time = 1s\nmaximal_backoff_time = 2s\n\
             queue_run_delay = 1s\nbiff = no\nappend_dot_mydomain = no\n"
        );
        let main = overridden(&main, settings);
        std::fs::write(postfix.path("etc/main.cf"), main).expect("main.cf");
        let mut master = format!("127.0.0.1:{smtp} inet n - n - - smtpd\n");
        for (name, kind, private, wake, limit, command) in [
            ("pickup", "unix", "n", "60", "1", "pickup"),
            ("cleanup", "unix", "n", "-", "0", "cleanup"),
            ("qmgr", "unix", "n", "300", "1", "qmgr"),
            ("tlsmgr", "unix", "-", "1000?", "1", "tlsmgr"),
            ("rewrite", "unix", "-", "-", "-", "trivial-rewrite"),
            ("bounce", "unix", "-", "-", "0", "bounce"),
            ("defer", "unix", "-", "-", "0", "bounce"),
            ("trace", "unix", "-", "-", "0", "bounce"),
            ("verify", "unix", "-", "-", "1", "verify"),
            ("flush", "unix", "n", "1000?", "0", "flush"),
            ("proxymap", "unix", "-", "-", "-", "proxymap"),
            ("smtp", "unix", "-", "-", "-", "smtp"),
            ("relay", "unix", "-", "-", "-", "smtp"),
            ("showq", "unix", "n", "-", "-", "showq"),
            ("error", "unix", "-", "-", "-", "error"),
            ("retry", "unix", "-", "-", "-", "error"),
            ("discard", "unix", "-", "-", "-", "discard"),
            ("lmtp", "unix", "-", "-", "-", "lmtp"),
            ("traced", "unix", "-", "-", "-", "lmtp flags=O"),
            ("anvil", "unix", "-", "-", "1", "anvil"),
            ("scache", "unix", "-", "-", "1", "scache"),
            ("postlog", "unix-dgram", "n", "-", "1", "postlogd"),
        ] {
            writeln!(master, "{name} {kind} {private} - n {wake} {limit} {command}").expect("text");
        }
        std::fs::write(postfix.path("etc/master.cf"), master).expect("master.cf");
        postfix.resume();
        postfix
    }

    /// Starts it again after [`Self::halt`], on the same port.
    pub fn resume(&mut self) {
        let program = super::program("postfix").expect("it was there");
        let etc = self.path("etc");
        // The script that starts it would find a stale lock's owner by its
        // number only: the queue's pid file goes with the processes.
        drop(std::fs::remove_file(self.path("queue/pid/master.pid")));
        let args = ["-c", etc.to_str().expect("plain text"), "start-fg"];
        self.daemon = Some(Daemon::start(&program, &args, &self.path("out")));
        super::wait_until("Postfix's port", || {
            let runs = self.daemon.as_mut().is_some_and(Daemon::runs);
            assert!(runs, "Postfix ended:\n{}\n{}", super::tail(&self.path("out")), self.log());
            super::greets(self.smtp)
        });
    }

    /// Ends all its processes at once.
    pub fn halt(&mut self) {
        if self.daemon.is_some() {
            // Its master leads a process group of its own, hence the clean way.
            let etc = self.path("etc");
            drop(Command::new("postfix").arg("-c").arg(etc).arg("abort").output());
            // One that stands still does not hear of that.
            let master = std::fs::read_to_string(self.path("queue/pid/master.pid")).unwrap_or_default();
            let own = |pid: &Pid| {
                let at = std::fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero()));
                at.is_ok_and(|at| at.starts_with(self.folder.path()))
            };
            if let Some(group) = master.trim().parse().ok().and_then(Pid::from_raw).filter(own) {
                let _ = kill_process_group(group, Signal::KILL);
            }
        }
        self.daemon = None;
    }

    /// Messages it has not passed on yet.
    pub fn queued(&self) -> usize {
        ["incoming", "active", "deferred", "maildrop", "hold"]
            .iter()
            .map(|queue| files(&self.path("queue").join(queue)))
            .sum()
    }

    /// The messages that it holds back (`HOLD` in an access table), in the
    /// order of their arrival.
    pub fn held(&self) -> Vec<Queued> {
        let mut held: Vec<Queued> = names(&self.path("queue/hold")).iter().map(|id| self.look(id)).collect();
        held.sort_by_key(|queued| self.position(&queued.id));
        held
    }

    /// Lets go what it holds back, and waits until its queue is empty.
    pub fn release(&self) {
        if files(&self.path("queue/hold")) > 0 {
            self.tool("postsuper", &["-H", "ALL"]);
        }
        super::wait_until("the queue to empty", || self.queued() == 0);
    }

    /// Messages that have ever been in its queue, its own bounces included.
    pub fn ever_queued(&self) -> usize {
        let log = self.whole_log();
        let ids = log.lines().filter_map(|line| {
            let (_, rest) = line.split_once("/cleanup[")?;
            Some(rest.split_once("]: ")?.1.split_once(": message-id=")?.0)
        });
        ids.collect::<BTreeSet<_>>().len()
    }

    /// Waits until nobody is connected, so that all that a client sent before
    /// it died is either in the queue or given up.
    pub fn settle(&self) {
        super::wait_until("the clients of Postfix to be gone", || {
            let log = self.whole_log();
            let count = |what: &str| {
                log.lines().filter(|line| line.contains("/smtpd[") && line.contains(what)).count()
            };
            count("]: connect from") == count("]: disconnect from")
        });
        super::wait_until("the queue to empty", || self.queued() == 0);
    }

    /// How often the log holds `text`.
    pub fn logged(&self, text: &str) -> usize {
        self.whole_log().lines().filter(|line| line.contains(text)).count()
    }

    /// What it logged lately.
    pub fn log(&self) -> String {
        super::tail(&self.path("log"))
    }

    fn whole_log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.path("log")).unwrap_or_default()).into_owned()
    }

    /// Where in the log a message appears first.
    fn position(&self, id: &str) -> Option<usize> {
        self.whole_log().find(&format!(": {id}: "))
    }

    fn look(&self, id: &str) -> Queued {
        let envelope = self.tool("postcat", &["-e", "-q", id]);
        let raw = self.tool("postcat", &["-h", "-b", "-q", id]);
        Queued::new(id, &String::from_utf8_lossy(&envelope), Arrived { raw })
    }

    fn tool(&self, name: &str, args: &[&str]) -> Vec<u8> {
        let program = super::program(name).expect("a part of Postfix");
        let output = Command::new(program).arg("-c").arg(self.path("etc")).args(args).output();
        let output = output.expect("it runs");
        assert!(output.status.success(), "{name} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// A message in the queue, as `postcat` shows it.
pub struct Queued {
    /// Its queue id.
    pub id: String,
    /// MAIL FROM; empty is the null sender.
    pub sender: String,
    /// `RET=`, if it was said.
    pub ret: Option<Ret>,
    /// For whom it is, in order.
    pub recipients: Vec<QueuedRecipient>,
    /// Its content.
    pub message: Arrived,
}

/// `RET=` of RFC 3461.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ret {
    Full,
    Headers,
}

/// A recipient of a [`Queued`] message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueuedRecipient {
    /// RCPT TO, before aliases.
    pub said: String,
    /// Where it goes, behind aliases.
    pub address: String,
    /// `NOTIFY=`; empty where it was not said.
    pub notify: String,
    /// `ORCPT=`; what Postfix takes for it where it was not said.
    pub orcpt: String,
}

impl std::fmt::Debug for Queued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { id, sender, ret, recipients, message } = self;
        write!(f, "{id} <{sender}> RET={ret:?} {recipients:?}\n{}", message.text())
    }
}

impl Queued {
    fn new(id: &str, envelope: &str, message: Arrived) -> Self {
        let mut queued =
            Self { id: id.into(), sender: String::new(), ret: None, recipients: Vec::new(), message };
        let mut next = QueuedRecipient::default();
        for line in envelope.lines() {
            let Some((name, value)) = line.split_once(": ") else { continue };
            match (name, value.split_once('=')) {
                ("sender", _) => value.clone_into(&mut queued.sender),
                ("original_recipient", _) => value.clone_into(&mut next.said),
                ("recipient", _) => {
                    value.clone_into(&mut next.address);
                    queued.recipients.push(std::mem::take(&mut next));
                }
                // The numbers of Postfix's dsn.h and dsn_mask.h.
                ("named_attribute", Some(("ret_flags", flags))) => {
                    queued.ret = [("1", Ret::Full), ("2", Ret::Headers)]
                        .iter()
                        .find_map(|(flag, ret)| (*flag == flags).then_some(*ret));
                }
                ("named_attribute", Some(("notify_flags", flags))) => {
                    let flags: u32 = flags.parse().expect("a number");
                    let words = [(1, "NEVER"), (2, "SUCCESS"), (4, "FAILURE"), (8, "DELAY")];
                    let said = words.iter().filter(|(flag, _)| flags & flag != 0).map(|(_, word)| *word);
                    next.notify = said.collect::<Vec<_>>().join(",");
                }
                ("named_attribute", Some(("dsn_orig_rcpt", value))) => value.clone_into(&mut next.orcpt),
                _ => {}
            }
        }
        queued
    }

    /// Whom RCPT named, with `NOTIFY` where it was said.
    pub fn asked(&self) -> Vec<(&str, &str)> {
        self.recipients.iter().map(|to| (to.said.as_str(), to.notify.as_str())).collect()
    }
}

/// `main` with `settings`: of several lines for one name the last one. (Each
/// process of Postfix warns of several, and so many warnings at once find
/// nobody who writes them down while it starts: it stands still.)
fn overridden(main: &str, settings: &str) -> String {
    let lines: Vec<&str> = main.lines().chain(settings.lines()).collect();
    let name = |line: &str| line.split('=').next().unwrap_or_default().trim().to_owned();
    let mut text = String::new();
    for (at, line) in lines.iter().enumerate() {
        let later = lines.iter().skip(at + 1);
        if !later.into_iter().any(|later| name(later) == name(line)) {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

fn files(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let count = |entry: std::fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => files(&entry.path()),
        _ => 1,
    };
    entries.filter_map(Result::ok).map(count).sum()
}

impl Drop for Postfix {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- Postfix's log\n{}", self.log());
        }
        self.halt();
    }
}
