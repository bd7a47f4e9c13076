//! The command line.

use std::process::ExitCode;

/// Parses the command line and runs what it names.
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
