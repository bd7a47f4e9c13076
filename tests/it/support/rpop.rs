//! The `rpop` binary, run as a user runs it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::time::Instant;

use super::manifest::{self, Record};
use super::process;

/// A folder with manifests and a state folder.
pub struct Site {
    folder: tempfile::TempDir,
    /// Runs with this as `--state`.
    pub state: PathBuf,
}

/// What a finished run left behind.
#[derive(Debug)]
pub struct Run {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it logged.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Run {
    /// The exit code; -1 when a signal ended it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// Fails with everything that was printed unless the exit code is `code`.
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code(),
            code,
            "{}\n--- stdout\n{}--- stderr\n{}",
            self.status,
            self.stdout,
            self.stderr
        );
        self
    }

    /// Everything that was printed.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// Fails unless `text` was printed.
    pub fn says(&self, text: &str) {
        assert!(self.text().contains(text), "{text:?} is missing in:\n{}\n{}", self.stdout, self.stderr);
    }
}

impl Site {
    /// An empty one with the settings that loopback tests need.
    pub fn new() -> Self {
        let folder = super::folder("site");
        let state = folder.path().join("state");
        std::fs::create_dir(folder.path().join("manifests")).expect("a folder");
        let site = Self { folder, state };
        site.settings(&[]);
        site.secret("password", "password", super::dovecot::PASSWORD);
        site
    }

    /// One for a domain with this `delivery`, e.g. [`lmtp`].
    pub fn for_delivery(delivery: &str) -> Self {
        let site = Self::new();
        site.write("domain.yaml", &manifest::domain("local.test", delivery));
        site
    }

    /// Where the manifests are.
    pub fn manifests(&self) -> PathBuf {
        self.folder.path().join("manifests")
    }

    /// A place for other files of the test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a manifest.
    pub fn write(&self, name: &str, yaml: &str) -> PathBuf {
        let path = self.manifests().join(name);
        std::fs::write(&path, yaml).expect("a manifest");
        path
    }

    /// Removes a manifest.
    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.manifests().join(name)).expect("it was there");
    }

    /// Writes the settings: those for loopback, and `lines` of `spec`.
    pub fn settings(&self, lines: &[&str]) {
        let mut all = vec!["allowSelfPoll: true"];
        all.extend_from_slice(lines);
        self.write("settings.yaml", &manifest::settings(&all));
    }

    /// Writes a Secret.
    pub fn secret(&self, name: &str, key: &str, value: &str) {
        self.write(&format!("secret-{name}.yaml"), &manifest::secret(name, key, value));
    }

    /// Writes a record.
    pub fn record(&self, record: &Record) {
        self.write(&format!("record-{}.yaml", record.name), &record.yaml());
    }

    /// The ledger's file of a record.
    pub fn ledger(&self, record: &str) -> PathBuf {
        self.state.join("rpopids/mail").join(record)
    }

    /// `rpop run -f … --state … --once`, to its end.
    pub fn once(&self) -> Run {
        self.start_once().wait()
    }

    /// The same, without waiting.
    pub fn start_once(&self) -> Running {
        self.start(&["--once"])
    }

    /// `rpop run -f … --state … ARGS`, no HTTP unless asked for.
    pub fn start(&self, args: &[&str]) -> Running {
        let mut all: Vec<&OsStr> = vec!["run".as_ref()];
        let (manifests, state) = (self.manifests(), self.state.clone());
        all.extend(["-f".as_ref(), manifests.as_os_str(), "--state".as_ref(), state.as_os_str()]);
        all.extend(args.iter().map(OsStr::new));
        if !args.contains(&"--once") && !args.contains(&"--listen") {
            all.extend(["--listen".as_ref(), OsStr::new("off")]);
        }
        Running::start(&binary(), &all, self.folder.path())
    }

    /// [`Self::start`] with the clock set to `time` (`2026-03-28 16:59:50`,
    /// UTC), from which it goes on; timers are not touched. `None`, said
    /// loudly, where `faketime` is not installed.
    pub fn start_at(&self, test: &str, time: &str, args: &[&str]) -> Option<Running> {
        let folders = std::fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path());
        let library =
            folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|path| path.exists());
        let Some(library) = library else {
            super::skipped(test, "faketime is not installed; scripts/bootstrap installs it");
            return None;
        };
        let (manifests, state) = (self.manifests(), self.state.clone());
        let variables = [
            format!("LD_PRELOAD={}", library.display()),
            format!("FAKETIME=@{time}"),
            "TZ=UTC".to_owned(),
            "DONT_FAKE_MONOTONIC=1".to_owned(),
            "NO_FAKE_STAT=1".to_owned(),
        ];
        let mut all: Vec<&OsStr> = variables.iter().map(OsStr::new).collect();
        let rpop = binary();
        all.extend([rpop.as_os_str(), "run".as_ref(), "-f".as_ref(), manifests.as_os_str()]);
        all.extend(["--state".as_ref(), state.as_os_str(), "--listen".as_ref(), OsStr::new("off")]);
        all.extend(args.iter().map(OsStr::new));
        Some(Running::start(&super::program("env").expect("env(1)"), &all, self.folder.path()))
    }

    /// `rpop ARGS`, to its end.
    pub fn rpop(&self, args: &[&str]) -> Run {
        Running::start(&binary(), args, self.folder.path()).wait()
    }
}

/// The `delivery` that goes to an LMTP server on a loopback port.
pub fn lmtp(port: u16) -> String {
    format!("{{lmtp: {{host: 127.0.0.1, port: {port}, tls: {{mode: None}}}}}}")
}

/// The `delivery` that goes to an SMTP server on a loopback port.
pub fn smtp(port: u16) -> String {
    format!("{{smtp: {{host: 127.0.0.1, port: {port}, tls: {{mode: None}}}}}}")
}

/// The binary: what `RPOP_BINARY` names (to try a release build), or the one
/// built beside the tests, or beside the example that asks.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("RPOP_BINARY") {
        return path.into();
    }
    if let Some(path) = option_env!("CARGO_BIN_EXE_rpop") {
        return path.into();
    }
    let own = std::env::current_exe().expect("our own path");
    let folder = own.parent().and_then(Path::parent).expect("target/PROFILE/examples");
    folder.join("rpop")
}

/// A running `rpop`. Killed when dropped.
pub struct Running {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
    since: Instant,
    folder: tempfile::TempDir,
}

impl Running {
    /// Starts a program with its output kept; the environment is clean of
    /// what would change its ways.
    pub fn start<S: AsRef<OsStr>>(program: &Path, args: &[S], work: &Path) -> Self {
        let folder = super::folder("run");
        let (stdout, stderr) = (folder.path().join("stdout"), folder.path().join("stderr"));
        let mut command = process::command(program, "KILL");
        command
            .args(args)
            .current_dir(work)
            .env_remove("STATE_DIRECTORY")
            .env_remove("RUST_LOG")
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(File::create(&stdout).expect("a file"))
            .stderr(File::create(&stderr).expect("a file"))
            .process_group(0);
        let child = process::spawn(command).expect("rpop starts");
        Self { child, stdout, stderr, since: Instant::now(), folder }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended yet.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it has printed so far, both streams.
    pub fn text(&self) -> String {
        read(&self.stdout) + &read(&self.stderr)
    }

    /// Waits until it has printed `text`.
    pub fn wait_to_say(&mut self, text: &str) {
        super::wait_until(text, || {
            let found = self.text().contains(text);
            assert!(found || self.runs(), "it ended without {text:?}:\n{}", self.text());
            found
        });
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let _ = rustix::process::kill_process(Pid::from_child(&self.child), signal);
    }

    /// kill -9, and wait until it is gone.
    pub fn kill(mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }

    /// Waits for its end; a run of two minutes has failed.
    pub fn wait(self) -> Run {
        self.wait_at_most(Duration::from_mins(2))
    }

    /// Waits for its end.
    pub fn wait_at_most(mut self, limit: Duration) -> Run {
        let until = Instant::now() + limit;
        let status = loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                break status;
            }
            assert!(Instant::now() < until, "rpop did not end in {limit:?}:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(2));
        };
        Run { status, stdout: read(&self.stdout), stderr: read(&self.stderr), took: self.since.elapsed() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.runs() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

fn read(path: &Path) -> String {
    let mut octets = Vec::new();
    if let Ok(mut file) = File::open(path) {
        drop(file.read_to_end(&mut octets));
    }
    String::from_utf8_lossy(&octets).into_owned()
}
