//! What a person sees while a run lasts: a bar on a terminal, a line now and then elsewhere.
//! Both go to standard error; results alone go to standard output.

use std::io::IsTerminal;
use std::time::Duration;

use crate::out;

use indicatif::{ProgressBar, ProgressStyle};

use super::report::rate;

/// Between two lines, where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// A run's progress.
#[derive(Debug)]
pub enum Progress {
    /// Nobody looks.
    Quiet,
    /// A bar that is drawn again and again.
    Bar(ProgressBar),
    /// A line every few seconds.
    Lines {
        /// Which run it is.
        name: String,
        /// When the next line is due, from the start of the run.
        next: Duration,
    },
}

/// Where a run stands.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// Since the run began.
    pub elapsed: Duration,
    /// Share of its time, 0 to 1.
    pub share: f64,
    /// I/Os per second of late.
    pub iops: f64,
    /// Payload bytes per second of late.
    pub bytes_per_s: f64,
    /// I/Os that failed so far.
    pub errors: u64,
}

impl Progress {
    /// That of a run called `name`; a bar if standard error is a terminal.
    pub fn new(name: &str, quiet: bool) -> Self {
        if quiet {
            return Self::Quiet;
        }
        if !std::io::stderr().is_terminal() {
            return Self::Lines { name: name.to_owned(), next: LINE_EVERY };
        }
        let bar = ProgressBar::new(1000).with_prefix(name.to_owned());
        let style = ProgressStyle::with_template("{prefix}  {bar:24} {percent:>3} %  {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self::Bar(bar)
    }

    /// Shows where the run stands.
    pub fn show(&mut self, standing: &Standing) {
        match self {
            Self::Quiet => {}
            Self::Bar(bar) => {
                bar.set_position((standing.share * 1000.0) as u64);
                bar.set_message(standing.words());
            }
            Self::Lines { name, next } if standing.elapsed >= *next => {
                *next = standing.elapsed + LINE_EVERY;
                let percent = standing.share * 100.0;
                out::note(format_args!("{name}  {percent:.0} %  {}", standing.words()));
            }
            Self::Lines { .. } => {}
        }
    }

    /// Leaves the line to what comes after.
    pub fn finish(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

impl Standing {
    fn words(&self) -> String {
        let mb = self.bytes_per_s / 1e6;
        let errors = match self.errors {
            0 => String::new(),
            n => format!(", {n} errors"),
        };
        format!("{} IOPS, {mb:.0} MB/s{errors}", rate(self.iops))
    }
}
