//! The parts that tests, the demonstration and the benchmark are made of:
//! real servers on free loopback ports, scripted ones, and the `rpop` binary.
//!
//! Every part owns its folder, ports and processes and takes them down when
//! it is dropped. Nothing here needs a system service or touches one.

#![allow(dead_code, reason = "each user of these parts needs some of them")]

pub mod authority;
pub mod dovecot;
pub mod gsasl;
pub mod mail;
pub mod manifest;
pub mod policy;
pub mod pop3;
pub mod postfix;
pub mod process;
pub mod provider;
pub mod proxy;
pub mod raw;
pub mod report;
pub mod rig;
pub mod rpop;
pub mod smtp;
pub mod wire;
pub mod work;

use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

/// Long enough for any condition on a loaded machine; a test that waits this
/// long has failed.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Looks every few milliseconds until `look` finds something.
///
/// # Panics
/// When `limit` has passed; `what` says what was waited for.
pub fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "waited {limit:?} in vain for: {what}");
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// [`wait_for`] a truth.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    wait_for(what, PATIENCE, || holds().then_some(()));
}

/// A loopback port that nothing listens on now, for servers that cannot be
/// told to choose one themselves. Never given out twice by one process.
pub fn free_port() -> u16 {
    use std::collections::HashSet;
    use std::sync::{LazyLock, Mutex};
    static GIVEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);
    loop {
        let probe = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = probe.local_addr().expect("its address").port();
        if GIVEN.lock().expect("not poisoned").insert(port) {
            return port;
        }
    }
}

/// Whether a server on a loopback port says anything: a port that takes
/// connections may belong to a server that is still starting, or failing to.
pub fn greets(port: u16) -> bool {
    use std::io::Read as _;
    let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", port)) else { return false };
    let mut octet = [0];
    stream.set_read_timeout(Some(PATIENCE)).is_ok() && matches!(stream.read(&mut octet), Ok(1))
}

/// A folder of one's own that other users (the servers' children) can enter.
pub fn folder(name: &str) -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let made = tempfile::Builder::new().prefix(&format!("rpop-{name}-")).tempdir().expect("a folder");
    std::fs::set_permissions(made.path(), std::fs::Permissions::from_mode(0o755)).expect("its mode");
    made
}

/// Whether this process may do everything.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says on the terminal (past the capturing of output) that a test did not
/// run and why; where `CI=true` that is a failure.
pub fn skipped(test: &str, why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{test} cannot be skipped in CI: {why}");
    let line = format!("\n*** SKIPPED {test}: {why}\n");
    drop(std::io::stderr().write_all(line.as_bytes()));
}

/// The program, wherever a package may have put it.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/bin", "/sbin", "/usr/local/sbin", "/usr/local/bin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// The last part of a log, for messages of failed tests.
pub fn tail(path: &Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(40)).copied().collect::<Vec<_>>().join("\n")
}
