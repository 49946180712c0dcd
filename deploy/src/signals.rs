//! SIGINT and SIGTERM as a flag that loops look at, so that every command ends in its own order:
//! results printed, connections shut down, rigs removed. A second signal ends the process at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::exit::Exit;

/// Whether the user wants an end. The default is one that no signal sets.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    requested: Arc<AtomicBool>,
    interrupted: Arc<AtomicBool>,
}

impl Stop {
    /// Listens to SIGINT and SIGTERM from now on.
    ///
    /// # Errors
    /// When the kernel refuses the handlers.
    pub fn on_signals() -> Result<Self> {
        let stop = Self::default();
        let twice = i32::from(Exit::Interrupted.code());
        let listen = || {
            for signal in [SIGINT, SIGTERM] {
                // In this order: the first signal finds the flag unset, the second finds it set.
                flag::register_conditional_shutdown(signal, twice, stop.requested.clone())?;
                flag::register(signal, stop.requested.clone())?;
            }
            flag::register(SIGINT, stop.interrupted.clone()).map(drop)
        };
        listen().context("installing signal handlers")?;
        Ok(stop)
    }

    /// How a command ends that runs until it is told to: by Ctrl-C it counts as interrupted, by
    /// SIGTERM it has done what it should.
    pub fn exit(&self) -> Exit {
        if self.interrupted.load(Ordering::Relaxed) { Exit::Interrupted } else { Exit::Ok }
    }

    /// Asks for the end from within the program, as a signal would.
    pub fn request(&self) {
        self.requested.store(true, Ordering::Relaxed);
    }

    /// Whether the end was asked for.
    pub fn requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }
}
