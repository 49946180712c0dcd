//! Exit codes, the same for every command: scripts rely on them.

use std::process::ExitCode;

/// How a command ended, when it could run. An `Err` beside it counts as [`Exit::Environment`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All as expected: 0.
    Ok,
    /// It ran, and something fell short (I/O errors, miscompare, a failed check): 1.
    FellShort,
    /// Wrong usage, or the environment does not allow it; the message says what to do: 2.
    Environment,
    /// Ctrl-C or SIGTERM; results were printed: 130.
    Interrupted,
}

impl Exit {
    /// The process's exit code.
    pub const fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::FellShort => 1,
            Self::Environment => 2,
            Self::Interrupted => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
