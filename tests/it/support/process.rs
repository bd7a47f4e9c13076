//! Child processes that do not outlive the test.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::sync::{LazyLock, Mutex};

use rustix::process::{Pid, Signal, kill_process_group};

/// A server in the foreground, in a process group of its own. Dropped, the
/// whole group is gone. Where `setpriv` is there, the kernel ends it too when
/// the test process dies without dropping anything.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
}

impl Daemon {
    /// Starts `program args…`; what it prints goes into `log`.
    pub fn start(program: &Path, args: &[&str], log: &Path) -> Self {
        let mut command = command(program, "TERM");
        let out = File::create(log).expect("a log file");
        command.args(args).stdin(Stdio::null()).process_group(0);
        command.stdout(out.try_clone().expect("a second handle")).stderr(out);
        Self { child: spawn(command).expect("the server starts") }
    }

    /// Whether it is still there.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal to the server itself.
    pub fn signal(&self, signal: Signal) {
        let _ = rustix::process::kill_process(Pid::from_child(&self.child), signal);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        drop(self.child.wait());
    }
}

/// Runs `program` so that the kernel sends it `signal` when we die without
/// ending it, where `setpriv` is there to arrange that.
pub fn command(program: &Path, signal: &str) -> Command {
    match super::program("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", signal]).arg(program);
            command
        }
        None => Command::new(program),
    }
}

/// Starts a command from a thread that lives as long as the process: the
/// signal for the parent's death is sent when the starting *thread* ends, and
/// each test has a thread of its own.
pub fn spawn(command: Command) -> std::io::Result<Child> {
    type Order = (Command, mpsc::SyncSender<std::io::Result<Child>>);
    static STARTER: LazyLock<Mutex<mpsc::Sender<Order>>> = LazyLock::new(|| {
        let (orders, todo) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in todo {
                drop(answer.send(command.spawn()));
            }
        });
        Mutex::new(orders)
    });
    let (answer, answered) = mpsc::sync_channel(1);
    STARTER.lock().expect("not poisoned").send((command, answer)).expect("the starter lives");
    answered.recv().expect("the starter answers")
}
