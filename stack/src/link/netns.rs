//! The network namespace that a link was opened in: it is looked for and opened again there,
//! whatever thread turns it.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use moorline_bpf::netdev::View;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const OURS: &str = "/proc/thread-self/ns/net";

/// A network namespace.
#[derive(Debug)]
pub(super) struct Netns {
    file: File,
    /// Its interfaces.
    pub view: View,
}

impl Netns {
    /// The calling thread's.
    pub(super) fn here() -> io::Result<Self> {
        Ok(Self { file: File::open(OURS)?, view: View::here()? })
    }

    /// The file that names it, for a thread that will [`enter`] it.
    pub(super) fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

/// Moves the calling thread into the namespace, unless it is there: that needs CAP_SYS_ADMIN.
pub(super) fn enter(netns: &File) -> io::Result<()> {
    let name = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    if name(netns.metadata()?) == name(fs::metadata(OURS)?) {
        return Ok(());
    }
    Ok(move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?)
}
