//! A private Dovecot: POP3 (plain, STLS, TLS) and LMTP (TCP, unix socket).

use std::fmt::Write as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::authority::{Authority, Identity};
use super::mail::Maildir;
use super::process::Daemon;

/// The password of every account.
pub const PASSWORD: &str = "correct horse";

/// A running Dovecot. Accounts are local parts: `alice` is `alice@ANYTHING`
/// for LMTP and `alice` for POP3.
pub struct Dovecot {
    daemon: Option<Daemon>,
    /// POP3, STLS offered.
    pub pop3: u16,
    /// POP3 in TLS.
    pub pop3s: u16,
    /// LMTP.
    pub lmtp: u16,
    /// The authority of its certificate.
    pub authority: Authority,
    /// Its certificate, for `127.0.0.1` and `localhost`.
    pub identity: Identity,
    owner: Option<(u32, u32)>,
    folder: tempfile::TempDir,
}

/// What a Dovecot does beside what all do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The most messages that an account may hold: further ones are refused
    /// for good, by LMTP after DATA.
    pub most_messages: Option<u32>,
}

impl Dovecot {
    /// Starts one; `None` (said loudly, a failure in CI) where Dovecot or one
    /// of its protocols is not installed.
    pub fn start(test: &str) -> Option<Self> {
        Self::start_with(test, Options::default())
    }

    /// The same with further settings.
    pub fn start_with(test: &str, options: Options) -> Option<Self> {
        let why = match super::program("dovecot") {
            None => "Dovecot is not installed; scripts/bootstrap installs it",
            Some(_) if !Path::new("/usr/lib/dovecot/pop3-login").exists() => "dovecot-pop3d is not installed",
            Some(_) if !Path::new("/usr/lib/dovecot/lmtp").exists() => "dovecot-lmtpd is not installed",
            Some(program) => return Some(Self::start_program(&program, options)),
        };
        super::skipped(test, why);
        None
    }

    fn start_program(program: &Path, options: Options) -> Self {
        let folder = super::folder("dovecot");
        let authority = Authority::new();
        let identity = authority.server(&["127.0.0.1", "localhost", "::1"]);
        identity.write(folder.path(), "server");
        let owner = super::is_root().then(unprivileged);
        let mut dovecot = Self {
            daemon: None,
            pop3: super::free_port(),
            pop3s: super::free_port(),
            lmtp: super::free_port(),
            authority,
            identity,
            owner,
            folder,
        };
        for name in ["run", "state", "mail"] {
            std::fs::create_dir(dovecot.path(name)).expect("a folder");
        }
        dovecot.give(&dovecot.path("mail"));
        std::fs::write(dovecot.path("users"), "").expect("the user file");
        let version = Command::new(program).arg("--version").output().expect("its version");
        let modern = !String::from_utf8_lossy(&version.stdout).starts_with("2.3");
        std::fs::write(dovecot.path("dovecot.conf"), dovecot.configuration(modern, options))
            .expect("the configuration");
        dovecot.resume();
        dovecot
    }

    /// Starts it again after [`Self::halt`], on the same ports.
    pub fn resume(&mut self) {
        let program = super::program("dovecot").expect("it was there");
        let configuration = self.path("dovecot.conf");
        let args = ["-F", "-c", configuration.to_str().expect("plain text")];
        let mut daemon = Daemon::start(&program, &args, &self.path("out"));
        let log = self.path("log");
        super::wait_until("Dovecot's ports", || {
            assert!(
                daemon.runs(),
                "Dovecot ended:\n{}\n{}",
                super::tail(&self.path("out")),
                super::tail(&log)
            );
            super::greets(self.pop3) && super::greets(self.lmtp)
        });
        self.daemon = Some(daemon);
    }

    /// Ends all its processes at once.
    pub fn halt(&mut self) {
        self.daemon = None;
    }

    /// Adds accounts, all with [`PASSWORD`].
    pub fn add<S: AsRef<str>>(&self, accounts: impl IntoIterator<Item = S>) {
        let mut text = std::fs::read_to_string(self.path("users")).expect("the user file");
        for account in accounts {
            writeln!(text, "{}:{{PLAIN}}{PASSWORD}", account.as_ref()).expect("a line");
        }
        // Dovecot reads the file again when its time or size changes.
        let fresh = self.path("users.new");
        std::fs::write(&fresh, text).expect("the user file");
        std::fs::rename(&fresh, self.path("users")).expect("the user file");
    }

    /// The INBOX of an account, made if it is not there.
    pub fn inbox(&self, account: &str) -> Maildir {
        self.mailbox(account, None)
    }

    /// A folder of an account; `None` is its INBOX.
    pub fn mailbox(&self, account: &str, name: Option<&str>) -> Maildir {
        let home = self.path("mail").join(account);
        let mut path = home.join("Maildir");
        std::fs::create_dir_all(&path).expect("the home");
        self.give(&home);
        self.give(&path);
        if let Some(name) = name {
            path = path.join(format!(".{name}"));
        }
        Maildir::new(path, self.owner)
    }

    /// The LMTP socket.
    pub fn socket(&self) -> PathBuf {
        self.path("run/lmtp")
    }

    /// What it logged lately.
    pub fn log(&self) -> String {
        super::tail(&self.path("log"))
    }

    /// How often the log holds `text`.
    pub fn logged(&self, text: &str) -> usize {
        let log = std::fs::read(self.path("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).lines().filter(|line| line.contains(text)).count()
    }

    /// How many messages were retrieved by POP3, over all sessions, which must
    /// have ended.
    pub fn retrieved(&self) -> usize {
        self.settle();
        let log = std::fs::read(self.path("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let count = |line: &str| line.split_once(" retr=")?.1.split_once('/')?.0.parse::<usize>().ok();
        log.lines().filter_map(count).sum()
    }

    /// Waits until nobody is connected, so that all that a client sent before
    /// it died is stored or given up.
    pub fn settle(&self) {
        super::wait_until("the clients of Dovecot to be gone", || {
            let log = std::fs::read(self.path("log")).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let count = |service: &str, what: &str| {
                log.lines().filter(|line| line.contains(service) && line.contains(what)).count()
            };
            count(" pop3-login: ", " Login: ") == count(" pop3(", ": Disconnected")
                && count(" lmtp(", ": Connect from") == count(" lmtp(", ": Disconnect from")
        });
    }

    /// With `broken` nothing can be stored for an account: LMTP puts its mail
    /// off after DATA. Its INBOX must be there.
    pub fn break_inbox(&self, account: &str, broken: bool) {
        let tmp = self.path("mail").join(account).join("Maildir/tmp");
        let mode = std::fs::Permissions::from_mode(if broken { 0o500 } else { 0o700 });
        std::fs::set_permissions(tmp, mode).expect("its mode");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn give(&self, path: &Path) {
        if let Some((user, group)) = self.owner {
            chown(path, Some(user), Some(group)).expect("root may give away");
        }
    }

    fn configuration(&self, modern: bool, options: Options) -> String {
        let (root, at) = (self.owner.is_some(), self.folder.path().display());
        let mut text = String::new();
        if modern {
            // Dovecot 2.4 starts with the version whose settings are meant.
            text.push_str("dovecot_config_version = 2.4.0\ndovecot_storage_version = 2.4.0\n");
        }
        let ids = self.owner.map_or_else(
            || (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw()),
            |(user, group)| (user, group),
        );
        write!(
            text,
            "base_dir = {at}/run\nstate_dir = {at}/state\nlog_path = {at}/log\nprotocols = pop3 lmtp\n\
             listen = 127.0.0.1\nssl = yes\nfirst_valid_uid = 1\nfirst_valid_gid = 1\nmail_fsync = never\n\
             recipient_delimiter = +\nlmtp_save_to_detail_mailbox = yes\nlda_mailbox_autocreate = yes\n\
             mail_max_userip_connections = 0\nauth_mechanisms = plain login apop\nauth_failure_delay = 0\n\
             default_client_limit = 20000\ndefault_process_limit = 1000\n"
        )
        .expect("text");
        if !root {
            let (user, group) = (own_name("-un"), own_name("-gn"));
            write!(
                text,
                "default_internal_user = {user}\ndefault_login_user = {user}\ndefault_internal_group = {group}\n"
            )
            .expect("text");
        }
        if modern {
            write!(
                text,
                "ssl_server_cert_file = {at}/server.crt\nssl_server_key_file = {at}/server.key\n\
                 auth_allow_cleartext = yes\nauth_username_format = %{{user|username|lower}}\n\
                 mail_driver = maildir\nmail_path = ~/Maildir\nmail_home = {at}/mail/%{{user|username}}\n\
                 mail_uid = {0}\nmail_gid = {1}\n\
                 passdb passwd-file {{\n  passwd_file_path = {at}/users\n }}\n\
                 userdb static {{\n}}\n",
                ids.0, ids.1
            )
            .expect("text");
        } else {
            write!(
                text,
                "ssl_cert = <{at}/server.crt\nssl_key = <{at}/server.key\ndisable_plaintext_auth = no\n\
                 auth_username_format = %Ln\nmail_location = maildir:~/Maildir\n\
                 passdb {{\n  driver = passwd-file\n  args = scheme=plain {at}/users\n}}\n\
                 userdb {{\n  driver = static\n  args = uid={} gid={} home={at}/mail/%n\n}}\n",
                ids.0, ids.1
            )
            .expect("text");
        }
        if let Some(most) = options.most_messages {
            let quota = if modern {
                format!(
                    "mail_plugins {{\n  quota = yes\n}}\nquota User {{\n}}\nquota_message_count = {most}\n"
                )
            } else {
                format!(
                    "mail_plugins = quota\nplugin {{\n  quota = count:User\n  quota_vsizes = yes\n\
                     \x20 quota_rule = *:messages={most}\n}}\n"
                )
            };
            text.push_str(&quota);
        }
        let chroot = if root { "" } else { "  chroot =\n" };
        // Login processes that serve many connections each: a thousand
        // sessions must not be a thousand of them. A wrong password is not
        // to slow down the next test from the same address.
        write!(
            text,
            "service pop3-login {{\n{chroot}  service_count = 0\n  process_min_avail = 1\n\
             \x20 inet_listener pop3 {{\n    port = {}\n  }}\n\
             \x20 inet_listener pop3s {{\n    port = {}\n    ssl = yes\n  }}\n}}\n\
             service pop3 {{\n  process_limit = 2000\n  process_min_avail = 2\n}}\n\
             service lmtp {{\n  inet_listener lmtp {{\n    port = {}\n  }}\n\
             \x20 unix_listener lmtp {{\n    mode = 0666\n  }}\n}}\n\
             service anvil {{\n{chroot}  unix_listener anvil-auth-penalty {{\n    mode = 0\n  }}\n}}\n",
            self.pop3, self.pop3s, self.lmtp
        )
        .expect("text");
        text
    }
}

impl Drop for Dovecot {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- Dovecot's log\n{}", self.log());
        }
    }
}

/// Dovecot refuses mail access to root: mail belongs to `nobody` then.
fn unprivileged() -> (u32, u32) {
    let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    text.lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some("nobody")).then_some(())?;
            Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
        })
        .unwrap_or((65534, 65534))
}

fn own_name(which: &str) -> String {
    let output = Command::new("id").arg(which).output().expect("id(1)");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Lets everybody read what a test wrote as root.
pub fn open_up(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).expect("its mode");
}
