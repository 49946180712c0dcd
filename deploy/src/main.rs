//! The moorline program: parses the command line, runs one command, turns its end into an exit
//! code. Everything else is in the library.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use moorline::cli::Cli;
use moorline::exit::Exit;
use moorline::out;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

/// Counts allocations, for the reports of `perf`.
#[global_allocator]
static ALLOCATOR: &StatsAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

fn main() -> ExitCode {
    // clap itself exits with 2 on a wrong command line, as we do.
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::builder()
                .with_default_directive(tracing::Level::WARN.into())
                .from_env_lossy(),
        )
        .with_writer(std::io::stderr)
        .log_internal_errors(false)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match cli.command.run() {
        Ok(exit) => exit.into(),
        Err(error) if error.is::<out::Closed>() => Exit::Ok.into(),
        Err(error) => {
            out::note(format_args!("moorline: {error:#}"));
            Exit::Environment.into()
        }
    }
}
