//! Standard output: all results go through here. Whoever reads them may stop early (`| head`);
//! then the command ends as for an error, in its own order, but quietly. The macros that print
//! would panic instead.

use std::fmt::{self, Arguments};
use std::io::{self, ErrorKind, Write};

use anyhow::{Context, Result};

/// The reader of our results went away: a reason to end, and nothing to complain of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nobody reads the output")
    }
}

impl std::error::Error for Closed {}

/// Writes a line of results.
///
/// # Errors
/// [`Closed`], or why it could not be written.
pub fn line(what: Arguments<'_>) -> Result<()> {
    write(&mut io::stdout().lock(), format_args!("{what}\n"))
}

/// Writes text that ends its own lines.
///
/// # Errors
/// [`Closed`], or why it could not be written.
pub fn text(what: &str) -> Result<()> {
    write(&mut io::stdout().lock(), format_args!("{what}"))
}

/// Takes a closed output for a written one: where the exit code tells more than the text does.
///
/// # Errors
/// All others.
pub fn unless_closed(written: Result<()>) -> Result<()> {
    match written {
        Err(error) if error.is::<Closed>() => Ok(()),
        written => written,
    }
}

/// Tells a person something beside the results; where nobody reads it, nobody misses it.
pub fn note(what: Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{what}");
}

fn write(to: &mut impl Write, what: Arguments<'_>) -> Result<()> {
    match to.write_fmt(what).and_then(|()| to.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Closed.into()),
        done => done.context("writing to standard output"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fails(ErrorKind);

    impl Write for Fails {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_went_away_is_told_from_a_full_disk() {
        let gone = write(&mut Fails(ErrorKind::BrokenPipe), format_args!("x")).unwrap_err();
        assert!(gone.is::<Closed>());
        let full = write(&mut Fails(ErrorKind::StorageFull), format_args!("x")).unwrap_err();
        assert!(!full.is::<Closed>());
    }

    #[test]
    fn a_closed_output_is_forgiven_and_nothing_else() {
        assert!(unless_closed(Err(Closed.into())).is_ok());
        assert!(unless_closed(Err(anyhow::anyhow!("disk full"))).is_err());
    }
}
