//! kubectl, as a user runs it.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::Server;

/// What a program answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Whether it exited with 0.
    pub success: bool,
    /// What it printed.
    pub stdout: String,
    /// Errors and warnings.
    pub stderr: String,
}

impl Answer {
    /// Its output.
    ///
    /// # Panics
    /// When it failed.
    #[track_caller]
    pub fn succeeds(self) -> String {
        assert!(self.success, "it failed:\n{}{}", self.stdout, self.stderr);
        self.stdout
    }

    /// What it said of its failure.
    ///
    /// # Panics
    /// When it succeeded.
    #[track_caller]
    pub fn fails(self) -> String {
        assert!(!self.success, "it did not fail:\n{}{}", self.stdout, self.stderr);
        self.stderr
    }
}

impl Server {
    /// `kubectl ARGS` as the administrator.
    pub fn kubectl(&self, args: &[&str]) -> Answer {
        self.kubectl_as(&self.admin_kubeconfig, args, "")
    }

    /// `kubectl apply -f -`.
    pub fn apply(&self, yaml: &str) -> Answer {
        self.kubectl_as(&self.admin_kubeconfig, &["apply", "-f", "-"], yaml)
    }

    /// `kubectl ARGS` with another kubeconfig and something to read.
    pub fn kubectl_as(&self, kubeconfig: &Path, args: &[&str], input: &str) -> Answer {
        let mut command = Command::new(self.program("kubectl"));
        command.args(args).env("KUBECONFIG", kubeconfig);
        self.run(command, input)
    }

    /// `helm ARGS` as the administrator.
    pub fn helm(&self, args: &[&str]) -> Answer {
        let mut command = Command::new(self.program("helm"));
        command.args(args).env("KUBECONFIG", &self.admin_kubeconfig);
        for (variable, folder) in
            [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config"), ("HELM_DATA_HOME", "data")]
        {
            command.env(variable, self.folder.join("helm").join(folder));
        }
        self.run(command, "")
    }

    fn run(&self, mut command: Command, input: &str) -> Answer {
        // Discovery is kept in a folder of the server's, not in the user's.
        command.env("KUBECACHEDIR", self.folder.join("kubectl-cache"));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        std::thread::scope(|scope| {
            // A program that does not read all of it says so by its exit code.
            scope.spawn(move || drop(stdin.write_all(input.as_bytes())));
            let output = child.wait_with_output().expect("its output");
            Answer {
                success: output.status.success(),
                stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            }
        })
    }
}
