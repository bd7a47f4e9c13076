//! The programs of Kubernetes.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::parts;

/// The folder with etcd, kube-apiserver, kube-controller-manager, kubectl and
/// helm. Where they cannot be found or built this says so, once, and fails in
/// CI.
pub fn tools() -> Option<&'static Path> {
    static TOOLS: LazyLock<Result<PathBuf, String>> = LazyLock::new(find);
    match &*TOOLS {
        Ok(folder) => Some(folder),
        Err(why) => {
            static SAID: AtomicBool = AtomicBool::new(false);
            assert!(std::env::var("CI").as_deref() != Ok("true"), "this cannot be skipped in CI: {why}");
            if !SAID.swap(true, Ordering::Relaxed) {
                parts::skipped("the tests on a real API server", why);
            }
            None
        }
    }
}

fn find() -> Result<PathBuf, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kubetools");
    let output = Command::new(&script)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{} does not start: {error}", script.display()))?;
    let says = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(says.lines().last().unwrap_or("scripts/kubetools failed").to_owned());
    }
    if !says.is_empty() {
        drop(std::io::stderr().write_all(says.as_bytes()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().into())
}
