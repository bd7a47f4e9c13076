//! A private Dovecot: POP3 (plain, STLS, TLS) and LMTP (TCP, unix socket).

use std::fmt::Write as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;

use super::authority::{Authority, Identity};
use super::mail::Maildir;
use super::process::Daemon;

/// The password of every account.
pub const PASSWORD: &str = "correct horse";

/// The key that access tokens are signed with (HS256).
pub const TOKEN_KEY: &[u8] = b"an issuer's key, of 32 octets at least";

/// What is usually offered.
const USUAL: &str = "plain login apop";
/// Everything that Dovecot has for passwords, tokens, and (with Samba) NTLM.
const EVERYTHING: &str = "plain login apop cram-md5 scram-sha-256 xoauth2 oauthbearer ntlm";

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
    mechanisms: &'static str,
    folder: tempfile::TempDir,
}

/// What a Dovecot does beside what all do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The most messages that an account may hold: further ones are refused
    /// for good, by LMTP after DATA.
    pub most_messages: Option<u32>,
    /// See [`Dovecot::with_all_mechanisms`].
    pub every_mechanism: bool,
}

impl Dovecot {
    /// Starts one; `None` (said loudly, a failure in CI) where Dovecot or one
    /// of its protocols is not installed.
    pub fn start(test: &str) -> Option<Self> {
        Self::start_with(test, Options::default())
    }

    /// One that offers every mechanism. Access tokens are those signed with
    /// [`TOKEN_KEY`]; NTLM is Samba's, for the one account `alice`, and with
    /// NTLMv2 only.
    pub fn with_all_mechanisms(test: &str) -> Option<Self> {
        if super::program("ntlm_auth").is_none() {
            super::skipped(test, "Samba's ntlm_auth is not installed; scripts/bootstrap installs it");
            return None;
        }
        if super::program("dovecot").is_some_and(|program| is_modern(&program)) {
            super::skipped(
                test,
                "this Dovecot is configured otherwise than 2.3, which the test is written for",
            );
            return None;
        }
        Self::start_with(test, Options { every_mechanism: true, ..Options::default() })
    }

    /// The same as [`Self::start`] with further settings.
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
            mechanisms: if options.every_mechanism { EVERYTHING } else { USUAL },
            folder,
        };
        for name in ["run", "state", "mail"] {
            std::fs::create_dir(dovecot.path(name)).expect("a folder");
        }
        dovecot.give(&dovecot.path("mail"));
        std::fs::write(dovecot.path("users"), "").expect("the user file");
        let mut configuration = dovecot.configuration(is_modern(program), options);
        if options.every_mechanism {
            configuration += &dovecot.tokens();
            configuration += &dovecot.samba();
        }
        std::fs::write(dovecot.path("dovecot.conf"), configuration).expect("the configuration");
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
        let stored = format!("{{PLAIN}}{PASSWORD}");
        self.add_lines(accounts.into_iter().map(|account| format!("{}:{stored}", account.as_ref())));
    }

    /// Adds an account of whose password only a hash is stored.
    pub fn add_hashed(&self, account: &str) {
        let hashed = Command::new(super::program("doveadm").expect("it comes with Dovecot"))
            .args(["pw", "-s", "SHA512-CRYPT", "-p", PASSWORD])
            .output()
            .expect("doveadm");
        self.add_lines([format!("{account}:{}", String::from_utf8_lossy(&hashed.stdout).trim())]);
    }

    fn add_lines(&self, lines: impl IntoIterator<Item = String>) {
        let mut text = std::fs::read_to_string(self.path("users")).expect("the user file");
        for line in lines {
            writeln!(text, "{line}").expect("a line");
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

    /// From now on nothing can be stored for an account, as when its disk is
    /// away: LMTP refuses its mail for now.
    pub fn close(&self, account: &str) {
        self.set_mode(account, 0o000);
    }

    /// It can again.
    pub fn open(&self, account: &str) {
        self.set_mode(account, 0o700);
    }

    fn set_mode(&self, account: &str, mode: u32) {
        let home = self.path("mail").join(account);
        std::fs::create_dir_all(&home).expect("the home");
        self.give(&home);
        std::fs::set_permissions(&home, std::fs::Permissions::from_mode(mode)).expect("its mode");
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
        let listen =
            if std::net::TcpListener::bind("[::1]:0").is_ok() { "127.0.0.1, ::1" } else { "127.0.0.1" };
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
             listen = {listen}\nssl = yes\nfirst_valid_uid = 1\nfirst_valid_gid = 1\nmail_fsync = never\n\
             recipient_delimiter = +\nlmtp_save_to_detail_mailbox = yes\nlda_mailbox_autocreate = yes\n\
             mail_max_userip_connections = 0\nauth_mechanisms = {}\nauth_failure_delay = 0\n\
             default_client_limit = 20000\ndefault_process_limit = 1000\n",
            self.mechanisms
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

impl Dovecot {
    /// Access tokens are checked here, with a key; nobody is asked about them.
    fn tokens(&self) -> String {
        let keys = self.path("keys/default/HS256");
        std::fs::create_dir_all(&keys).expect("a folder");
        let key = base64::engine::general_purpose::STANDARD.encode(TOKEN_KEY);
        std::fs::write(keys.join("default"), key).expect("the key");
        let at = self.folder.path().display();
        std::fs::write(
            self.path("oauth2.conf"),
            format!(
                "introspection_mode = local\nlocal_validation_key_dict = fs:posix:prefix={at}/keys/\n\
                 username_attribute = sub\nscope = pop\n"
            ),
        )
        .expect("a file");
        format!(
            "passdb {{\n  driver = oauth2\n  mechanisms = xoauth2 oauthbearer\n  args = {at}/oauth2.conf\n}}\n"
        )
    }

    /// NTLM by Samba's `ntlm_auth`, which is given the one password it checks
    /// and hence needs no domain controller.
    fn samba(&self) -> String {
        let (at, program) =
            (self.folder.path().display(), super::program("ntlm_auth").expect("it was there"));
        let samba = self.path("samba");
        std::fs::create_dir(&samba).expect("a folder");
        // Dovecot's own user runs it.
        std::fs::set_permissions(&samba, std::fs::Permissions::from_mode(0o777)).expect("its mode");
        let folders: String = ["private dir", "state directory", "cache directory", "lock directory"]
            .map(|name| format!("{name} = {at}/samba\n"))
            .concat();
        std::fs::write(
            samba.join("smb.conf"),
            format!("[global]\nworkgroup = TEST\nnetbios name = POPHOST\nntlm auth = ntlmv2-only\n{folders}"),
        )
        .expect("a file");
        let helper = self.path("helper");
        let script = format!(
            "#!/bin/sh\nexec {} \"$@\" --configfile={at}/samba/smb.conf --password='{PASSWORD}'\n",
            program.display()
        );
        std::fs::write(&helper, script).expect("a script");
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).expect("its mode");
        format!("auth_use_winbind = yes\nauth_winbind_helper_path = {at}/helper\n")
    }
}

/// An access token for `account`, a JWT (RFC 7519) that ends so many seconds
/// from now.
pub fn token(account: &str, key: &[u8], seconds: i64) -> String {
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use hmac::{KeyInit as _, Mac as _};
    let now = jiff::Timestamp::now().as_second();
    let claims = serde_json::json!({
        "sub": account, "scope": "pop", "iat": now - 3600, "nbf": now - 3600, "exp": now + seconds,
    });
    let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = serde_json::json!({"alg": "HS256", "typ": "JWT"});
    let signed = format!("{}.{}", part(&header), part(&claims));
    let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(key).expect("any key");
    mac.update(signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

impl Drop for Dovecot {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- Dovecot's log\n{}", self.log());
        }
    }
}

/// Dovecot 2.4 has another language for its configuration.
fn is_modern(program: &Path) -> bool {
    let version = Command::new(program).arg("--version").output().expect("its version");
    !String::from_utf8_lossy(&version.stdout).starts_with("2.3")
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
