//! A private Postfix that hands everything to one LMTP server.

use std::fmt::Write as _;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

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
        Self::start_for(test, lmtp, &[])
    }

    /// One that knows its recipients (all where there are none here), also
    /// with a detail (`alice+lists@…`), and refuses others at RCPT.
    pub fn start_for(test: &str, lmtp: u16, recipients: &[&str]) -> Option<Self> {
        let why = match super::program("postfix") {
            None => "Postfix is not installed; scripts/bootstrap installs it",
            Some(_) if !super::is_root() => "Postfix runs as root only",
            Some(_) => {
                let postfix = Self::prepare(lmtp, super::free_port(), recipients);
                return Some(postfix);
            }
        };
        super::skipped(test, why);
        None
    }

    fn prepare(lmtp: u16, smtp: u16, recipients: &[&str]) -> Self {
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
        let mut daemon = Daemon::start(&program, &args, &self.path("out"));
        super::wait_until("Postfix's port", || {
            assert!(daemon.runs(), "Postfix ended:\n{}\n{}", super::tail(&self.path("out")), self.log());
            super::greets(self.smtp)
        });
        self.daemon = Some(daemon);
    }

    /// Ends all its processes at once.
    pub fn halt(&mut self) {
        if self.daemon.is_some() {
            // Its master leads a process group of its own, hence the clean way.
            let etc = self.path("etc");
            drop(Command::new("postfix").arg("-c").arg(etc).arg("abort").output());
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

    /// What it logged lately.
    pub fn log(&self) -> String {
        super::tail(&self.path("log"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
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
