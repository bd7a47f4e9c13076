//! The `rpop` binary: parses the command line and runs what it names.

fn main() -> std::process::ExitCode {
    rpop::cli::main()
}
