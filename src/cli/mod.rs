//! The command line.

mod check;
mod cluster;
mod oauth;
mod process;
mod progress;
mod run;
mod status;
mod table;

use std::ffi::OsString;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::domain::work::LogLevel;
use crate::telemetry::logs;

/// Retrieves mail from remote POP3 mailboxes and forwards it to your own mail
/// system.
#[derive(Debug, Parser)]
#[command(name = "rpop", version, arg_required_else_help = true, max_term_width = 100, after_help = EXAMPLES)]
struct Arguments {
    /// What is logged: crash-only, failures, major, problems, low-level or
    /// all-info; wins over RpopSettings
    #[arg(long, global = true, env = "RPOP_LOG_LEVEL", value_name = "LEVEL", value_parser = logs::parse_level)]
    log_level: Option<LogLevel>,

    /// How log lines look
    #[arg(long, global = true, env = "RPOP_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    log_format: logs::Format,

    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  rpop check -f examples/ --connect   are the manifests and passwords right?
  rpop run -f examples/ --once        fetch everything once, with progress
  rpop run -f /etc/rpop               go on fetching; edits are taken up live
  rpop status                         how each record is doing";

#[derive(Debug, Subcommand)]
enum Command {
    /// Fetch mail as the manifests say
    Run(Run),
    /// Say whether the manifests are right, and with --connect the passwords
    Check(Check),
    /// Show how each record is doing
    Status(Status),
    /// In a cluster: make work of the records, and give it to workers
    Controller(cluster::Process),
    /// In a cluster: take a share of the records, poll and deliver
    Worker(cluster::Process),
    /// In a small cluster: controller and worker in one process
    Combined(cluster::Process),
    /// Sign in at an OAuth 2.0 provider, for mailboxes that take no passwords
    #[command(name = "oauth")]
    OAuth(oauth::OAuth),
    /// Print the CustomResourceDefinitions, for kubectl apply -f -
    Crds,
    /// Print a completion script for a shell
    Completions {
        /// Whose
        shell: clap_complete::Shell,
    },
}

/// Where manifests are.
#[derive(Debug, Args)]
pub(crate) struct Manifests {
    /// Files or folders of YAML: RpopRecord, RpopDomain, RpopSettings, Secret
    #[arg(short, long = "file", value_name = "PATH", num_args = 1.., required = true)]
    pub(crate) file: Vec<PathBuf>,
}

/// Where the state is.
#[derive(Debug, Args)]
pub(crate) struct State {
    /// The folder that remembers what was fetched
    /// [default: $STATE_DIRECTORY, or ./rpop-state]
    #[arg(long = "state", env = "RPOP_STATE", value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// `rpop run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) manifests: Manifests,
    #[command(flatten)]
    pub(crate) state: State,
    /// Poll every enabled record once, whatever delays earlier runs left, and
    /// exit: 0 all good, 1 a record failed or a message was refused, 2 the
    /// configuration is wrong
    #[arg(long)]
    pub(crate) once: bool,
    /// Where /metrics, /livez and /readyz are served, or off
    /// [default: 127.0.0.1:9465; off with --once]
    #[arg(long, env = "RPOP_LISTEN", value_name = "ADDR", value_parser = parse_listen)]
    pub(crate) listen: Option<Listen>,
}

/// `rpop check`.
#[derive(Debug, Args)]
pub(crate) struct Check {
    #[command(flatten)]
    pub(crate) manifests: Manifests,
    /// Log in everywhere, count the messages and change nothing
    #[arg(long)]
    pub(crate) connect: bool,
    #[command(flatten)]
    pub(crate) state: State,
}

/// `rpop status`.
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Files or folders of YAML; without them only what the state folder knows
    /// is shown
    #[arg(short, long = "file", value_name = "PATH", num_args = 1..)]
    pub(crate) file: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) state: State,
    /// How
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Output,
}

/// How `rpop status` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// The columns of kubectl get rpop
    Table,
    /// All there is
    Json,
}

/// `--listen`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listen {
    /// Nothing is served.
    Off,
    /// Here.
    At(SocketAddr),
}

/// Where metrics are served when nothing is said.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9465);

fn parse_listen(text: &str) -> Result<Listen, String> {
    if text.eq_ignore_ascii_case("off") {
        return Ok(Listen::Off);
    }
    let text = text.strip_prefix(':').map_or_else(|| text.to_owned(), |port| format!("[::]:{port}"));
    text.parse().map(Listen::At).map_err(|_| {
        "expected ADDRESS:PORT (127.0.0.1:9465, [::1]:9465, :9465 for all addresses) or off".to_owned()
    })
}

impl Run {
    /// Where to serve, if anywhere.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        match self.listen {
            Some(Listen::At(address)) => Some(address),
            Some(Listen::Off) => None,
            None => (!self.once).then_some(LISTEN),
        }
    }
}

impl State {
    /// `--state`, or where systemd's `StateDirectory=` put it, or here.
    pub(crate) fn path(&self) -> PathBuf {
        let systemd = || {
            // More than one is separated by colons; ours is the first.
            let all = std::env::var_os("STATE_DIRECTORY")?;
            std::env::split_paths(&all).next().filter(|path| !path.as_os_str().is_empty())
        };
        self.dir.clone().or_else(systemd).unwrap_or_else(|| PathBuf::from("rpop-state"))
    }
}

/// The exit codes of `run --once` and `check`; 2 is also clap's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All good.
    Good,
    /// Some record failed, or some message was refused.
    Failed,
    /// The configuration or the command line is wrong.
    Misconfigured,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Good => Self::SUCCESS,
            Exit::Failed => Self::from(1),
            Exit::Misconfigured => Self::from(2),
        }
    }
}

/// Parses the command line and runs what it names.
pub fn main() -> ExitCode {
    dispatch(std::env::args_os())
}

fn dispatch(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are such errors too, with their own exit code.
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    logs::start(arguments.log_level, arguments.log_format);
    process::log_panics();
    match arguments.command {
        Command::Crds => print(crate::api::crds_yaml().as_bytes()),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "rpop", &mut script);
            print(&script)
        }
        Command::Run(arguments) => block_on(run::run(arguments)),
        Command::Check(arguments) => block_on(check::check(arguments)),
        Command::Status(arguments) => status::status(&arguments),
        Command::OAuth(arguments) => block_on(oauth::run(arguments)),
        Command::Controller(arguments) => block_on(cluster::run(cluster::Part::Controller, arguments)),
        Command::Worker(arguments) => block_on(cluster::run(cluster::Part::Worker, arguments)),
        Command::Combined(arguments) => block_on(cluster::run(cluster::Part::Combined, arguments)),
    }
    .into()
}

fn block_on(command: impl Future<Output = Exit>) -> Exit {
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let exit = runtime.block_on(command);
            // What still runs in the blocking pool (a name that is being looked
            // up) is not waited for.
            runtime.shutdown_background();
            exit
        }
        Err(error) => {
            tracing::error!(target: logs::CRASH, "no threads: {error}");
            Exit::Failed
        }
    }
}

/// To standard output; a reader that has enough (`| head`) is no error.
fn print(bytes: &[u8]) -> Exit {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Exit::Good,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Exit::Good,
        Err(error) => {
            tracing::error!(target: logs::CRASH, "standard output: {error}");
            Exit::Failed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(std::iter::once("rpop").chain(line.split_whitespace()))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn run_takes_files_and_folders() {
        let Command::Run(run) = parse("run -f a.yaml -f b --once --log-level LowLevel").unwrap().command
        else {
            panic!("not run");
        };
        assert_eq!(run.manifests.file, [PathBuf::from("a.yaml"), PathBuf::from("b")]);
        assert_eq!(run.address(), None, "--once serves nothing unless told");
        let Command::Run(run) = parse("run -f a b").unwrap().command else { panic!("not run") };
        assert_eq!(run.manifests.file.len(), 2);
        assert_eq!(run.address(), Some(LISTEN));
        let Command::Run(run) = parse("run -f a --once --listen [::1]:1").unwrap().command else {
            panic!("not run");
        };
        assert_eq!(run.address(), Some("[::1]:1".parse().unwrap()));
        assert!(parse("run").is_err(), "without manifests there is nothing to do");
    }

    #[test]
    fn the_processes_of_a_cluster_share_their_arguments() {
        for name in ["controller", "worker", "combined"] {
            assert!(parse(name).is_ok());
            assert!(parse(&format!("{name} --timing fast --shards 8 --listen off")).is_ok());
            let error = parse(&format!("{name} --timing quick")).unwrap_err().to_string();
            assert!(error.contains("`default` or `fast`"), "{error}");
            assert!(parse(&format!("{name} --shards 0")).is_err());
        }
    }

    #[test]
    fn mistakes_are_explained() {
        let error = parse("run -f a --listen here").unwrap_err().to_string();
        assert!(error.contains("127.0.0.1:9465"), "{error}");
        let error = parse("run -f a --log-level chatty").unwrap_err().to_string();
        assert!(error.contains("low-level"), "{error}");
        let error = parse("rum").unwrap_err().to_string();
        assert!(error.contains("run"), "{error}");
    }

    #[test]
    fn every_error_code_has_a_section_that_says_what_to_do() {
        let page = include_str!("../../docs/errors.md");
        let sections: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        let codes: Vec<&str> = crate::domain::code::Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(sections, codes);
        for section in page.split("\n## ").skip(1) {
            assert!(section.len() > 80 && section.contains("Waits: "), "{section}");
        }
    }
}
