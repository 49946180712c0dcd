//! Who owns which rig: one file a rig under `/run/moorline`, locked for as long as its owner
//! lives. The lock is the kernel's (`flock`), so it ends with the process however that ends.
//! Whoever makes, removes or sweeps rigs holds the lock of the directory meanwhile.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

const DIR: &str = "/run/moorline";
const KEPT: &str = "kept";

/// Whose rig it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A living process.
    Process(u32),
    /// Nobody's, on purpose: it was kept.
    Kept,
    /// A process that died without removing it.
    Dead,
}

/// A rig that has a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Prefix of its namespaces.
    pub name: String,
    /// Whose it is.
    pub owner: Owner,
}

/// Shuts out all others who make or remove rigs, until dropped.
pub(crate) fn lock_all() -> Result<File> {
    fs::create_dir_all(DIR).with_context(|| format!("creating {DIR} (run as root)"))?;
    let path = Path::new(DIR).join("lock");
    let file = open(&path)?;
    flock(&file, FlockOperation::LockExclusive)
        .with_context(|| format!("locking {}", path.display()))?;
    Ok(file)
}

/// Makes a record of ours, and holds it. Under [`lock_all`].
pub(crate) fn claim(name: &str) -> Result<File> {
    if let Some(owner) = owner(name)? {
        match owner {
            Owner::Process(pid) => bail!("rig {name:?} is in use by process {pid}"),
            Owner::Kept | Owner::Dead => bail!(
                "rig {name:?} is in use: it was kept open; `moorline rig down --name {name}` \
                 removes it"
            ),
        }
    }
    let mut file = open(&path(name))?;
    // Those who only look hold it for a moment.
    flock(&file, FlockOperation::LockExclusive)
        .with_context(|| format!("locking the record of rig {name:?}"))?;
    write!(file, "{}", std::process::id()).context("writing the rig's record")?;
    Ok(file)
}

/// Turns a held record into one that stays.
pub(crate) fn mark_kept(record: &mut File) -> Result<()> {
    record
        .set_len(0)
        .and_then(|()| record.rewind())
        .and_then(|()| record.write_all(KEPT.as_bytes()))
        .context("writing the rig's record")
}

/// Whose the rig is; `None` without a record.
pub(crate) fn owner(name: &str) -> Result<Option<Owner>> {
    let path = path(name);
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("opening {}", path.display())),
    };
    let mut text = String::new();
    file.read_to_string(&mut text).with_context(|| format!("reading {}", path.display()))?;
    // A shared lock, so that two lookers-on do not take each other for the owner.
    let held = flock(&file, FlockOperation::NonBlockingLockShared).is_err();
    Ok(Some(match (held, text.trim()) {
        (_, KEPT) => Owner::Kept,
        (true, pid) => Owner::Process(pid.parse().unwrap_or(0)),
        (false, _) => Owner::Dead,
    }))
}

/// Removes a record.
pub(crate) fn forget(name: &str) {
    // What is not there needs no removing.
    let _ = fs::remove_file(path(name));
}

/// All records.
pub(crate) fn list() -> Result<Vec<Status>> {
    let entries = match fs::read_dir(DIR) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context("reading /run/moorline"),
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let file = entry.file_name();
        let Some(name) = file.to_str().and_then(|f| f.strip_suffix(".rig")) else { continue };
        // It may have gone since it was listed.
        if let Some(owner) = owner(name)? {
            found.push(Status { name: name.to_owned(), owner });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn path(name: &str) -> PathBuf {
    Path::new(DIR).join(format!("{name}.rig"))
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("opening {} (run as root)", path.display()))
}
