//! Test networks on one machine: two network namespaces joined by one veth pair.
//!
//! A [`Rig`] is gone when it is dropped. A process that is killed cannot drop it, so each rig has
//! a record under `/run/moorline` whose lock the kernel releases with the process: the next start
//! finds records without an owner and removes what they name ([`Rig::sweep`]). A rig that was
//! [kept](Rig::keep) has no owner and stays until [`Rig::down_named`].
//!
//! ```text
//!   NAME-host                                    NAME-target
//!   kernel 10.99.0.1/24  fd99::1/64   h0 ── t0   kernel 10.99.0.2/24  fd99::2/64
//!   AF_XDP 10.99.0.11    fd99::11                AF_XDP 10.99.0.12    fd99::12
//! ```
//!
//! The AF_XDP addresses are not given to the kernel: they are for our own stack.
#![forbid(unsafe_code)]

mod end;
mod record;
mod run;
mod star;

pub use end::{ADDRS_MAX, End, enter};
pub use record::{Owner, Status};
pub use run::{CAPABILITIES, has_capabilities, possible};
pub use star::{STAR_TARGETS_MAX, Star};

use std::fs::File;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

/// What a rig shall be.
#[derive(Clone, Debug)]
pub struct RigSpec {
    /// Prefix of the namespaces' names: `NAME-host` and `NAME-target`.
    pub name: String,
    /// MTU of both ends, in bytes: 68 to 65535 (IPv6 wants 1280).
    pub mtu: u32,
    /// RX and TX queues of both ends.
    pub queues: u32,
}

impl RigSpec {
    /// The rig of `moorline rig up`: namespaces `moorline-host` and `moorline-target`.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), mtu: 1500, queues: 1 }
    }

    /// A rig of this process only: `name` with a suffix of its own, so that tests can run side by
    /// side.
    pub fn unique(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self::named(&format!("{name}-{}-{count}", std::process::id()))
    }

    /// With another MTU.
    pub fn mtu(self, mtu: u32) -> Self {
        Self { mtu, ..self }
    }
}

impl Default for RigSpec {
    fn default() -> Self {
        Self::named("moorline")
    }
}

/// Two namespaces and the veth pair between them, removed when dropped.
#[derive(Debug)]
pub struct Rig {
    spec: RigSpec,
    host: End,
    target: End,
    /// Our ownership: its lock is held as long as it is open. `None` once given up.
    record: Option<File>,
}

impl Rig {
    /// Makes a rig, after removing those of killed processes. Leaves nothing when it fails.
    ///
    /// # Errors
    /// Without privileges or `ip`, when the name is in use, or for a spec that the kernel refuses;
    /// the message says what to do.
    pub fn up(spec: RigSpec) -> Result<Self> {
        possible().map_err(anyhow::Error::msg)?;
        check(&spec)?;
        let _all = record::lock_all()?;
        sweep_locked()?;
        let record = record::claim(&spec.name)?;
        let rig = Self {
            host: End::host(&spec.name),
            target: End::target(&spec.name),
            record: Some(record),
            spec,
        };
        if let Err(error) = rig.build() {
            rig.remove_locked();
            return Err(error);
        }
        Ok(rig)
    }

    /// What it was made as.
    pub fn spec(&self) -> &RigSpec {
        &self.spec
    }

    /// The host's end.
    pub fn host(&self) -> &End {
        &self.host
    }

    /// The target's end.
    pub fn target(&self) -> &End {
        &self.target
    }

    /// Removes the rig, and ends what still runs in its namespaces. Dropping does the same.
    pub fn down(self) {}

    /// Leaves the rig in place without an owner, until [`Rig::down_named`].
    ///
    /// # Errors
    /// When its record cannot be written; the rig is removed then.
    pub fn keep(mut self) -> Result<()> {
        let record = self.record.as_mut().expect("only `keep` and `drop` take it");
        record::mark_kept(record)?;
        self.record = None;
        Ok(())
    }

    /// Removes a kept rig, or one whose owner is dead. Returns false when there is none.
    ///
    /// # Errors
    /// Without privileges, or when a living process owns it.
    pub fn down_named(name: &str) -> Result<bool> {
        possible().map_err(anyhow::Error::msg)?;
        let _all = record::lock_all()?;
        match record::owner(name)? {
            None => Ok(false),
            Some(Owner::Process(pid)) => anyhow::bail!(
                "rig {name:?} belongs to the running process {pid}: end that first (kill {pid})"
            ),
            Some(Owner::Kept | Owner::Dead) => {
                remove(name);
                Ok(true)
            }
        }
    }

    /// Removes the rigs of killed processes; returns their names.
    ///
    /// # Errors
    /// Without privileges, or when the records cannot be read.
    pub fn sweep() -> Result<Vec<String>> {
        possible().map_err(anyhow::Error::msg)?;
        let _all = record::lock_all()?;
        sweep_locked()
    }

    /// All rigs that have a record.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn list() -> Result<Vec<Status>> {
        record::list()
    }

    fn build(&self) -> Result<()> {
        for end in [&self.host, &self.target] {
            run::ip(&["netns", "add", end.netns()])?;
        }
        self.plug()
    }

    /// Takes the veth pair away, as a driver does that is unloaded: both devices are gone, and
    /// whatever was bound to them is not any more.
    ///
    /// # Errors
    /// When there is none.
    pub fn unplug(&self) -> Result<()> {
        run::ip(&["-n", self.host.netns(), "link", "del", self.host.dev()]).map(drop)
    }

    /// Makes the veth pair again after [`Rig::unplug`]: with the same names and addresses of the
    /// kernel's, but other hardware addresses.
    ///
    /// # Errors
    /// When it is there, or the kernel refuses it.
    pub fn plug(&self) -> Result<()> {
        let (host, target) = (&self.host, &self.target);
        let queues = self.spec.queues.to_string();
        let queues = ["numtxqueues", &queues, "numrxqueues", &queues];
        let mut add = vec!["-n", host.netns(), "link", "add", "name", host.dev()];
        add.extend(queues);
        add.extend(["type", "veth", "peer", "name", target.dev()]);
        add.extend(queues);
        add.extend(["netns", target.netns()]);
        run::ip(&add)?;
        for end in [host, target] {
            end.configure(self.spec.mtu)
                .with_context(|| format!("setting up {} in {}", end.dev(), end.netns()))?;
        }
        Ok(())
    }

    fn remove_locked(mut self) {
        if self.record.take().is_some() {
            remove(&self.spec.name);
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if self.record.is_none() {
            return;
        }
        // Without the common lock we would still remove only what is ours.
        let _all = record::lock_all();
        remove(&self.spec.name);
    }
}

fn check(spec: &RigSpec) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    ensure!(
        !spec.name.is_empty() && spec.name.len() <= 64 && spec.name.chars().all(plain),
        "rig name {:?}: use 1 to 64 letters, digits, '-' and '_'",
        spec.name
    );
    ensure!(
        (1280..=65_535).contains(&spec.mtu),
        "MTU {}: a veth pair with IPv6 takes 1280 to 65535",
        spec.mtu
    );
    ensure!((1..=64).contains(&spec.queues), "{} queues: use 1 to 64", spec.queues);
    Ok(())
}

fn sweep_locked() -> Result<Vec<String>> {
    let dead: Vec<String> = record::list()?
        .into_iter()
        .filter(|status| status.owner == Owner::Dead)
        .map(|status| status.name)
        .collect();
    for name in &dead {
        remove(name);
    }
    Ok(dead)
}

/// Removes everything that a rig of this name consists of; parts that are missing are no error.
fn remove(name: &str) {
    let star = (0..STAR_TARGETS_MAX).map(|k| End::star_target(name, k));
    let mut ends = vec![End::host(name), End::target(name), End::switch(name)];
    ends.extend(star);
    ends.retain(End::exists);
    for end in &ends {
        end.end_processes();
    }
    for end in ends {
        // The pair goes with either end. Deleted by name, because a namespace lives on for as
        // long as a thread is in it.
        run::quiet_ip(&["-n", end.netns(), "link", "del", end.dev()]);
        run::quiet_ip(&["netns", "del", end.netns()]);
    }
    record::forget(name);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rights() -> bool {
        match possible() {
            Ok(()) => true,
            Err(why) if std::env::var_os("MOORLINE_REQUIRE_RIG").is_some() => panic!("{why}"),
            Err(why) => {
                eprintln!("SKIPPED: {why}");
                false
            }
        }
    }

    fn netns_exists(name: &str) -> bool {
        std::path::Path::new("/run/netns").join(name).exists()
    }

    #[test]
    fn a_rig_carries_packets_and_leaves_nothing() {
        if !rights() {
            return;
        }
        let rig = Rig::up(RigSpec::unique("ml-rig").mtu(9000)).unwrap();
        let target = rig.target().kernel_addr(false);
        let listener =
            rig.target().run(|| std::net::TcpListener::bind((target, 0)).unwrap()).unwrap();
        let to = listener.local_addr().unwrap();
        let peer = rig.host().run(|| std::net::TcpStream::connect(to).unwrap()).unwrap();
        assert_eq!(peer.local_addr().unwrap().ip(), rig.host().kernel_addr(false));
        let v6 = rig.target().kernel_addr(true);
        rig.target().run(move || std::net::TcpListener::bind((v6, 0)).unwrap()).unwrap();
        let names = [rig.host().netns().to_owned(), rig.target().netns().to_owned()];
        assert!(names.iter().all(|n| netns_exists(n)));
        drop(rig);
        assert!(!names.iter().any(|n| netns_exists(n)));
    }

    #[test]
    fn a_name_in_use_is_refused() {
        if !rights() {
            return;
        }
        let rig = Rig::up(RigSpec::unique("ml-rig")).unwrap();
        let again = Rig::up(rig.spec().clone()).unwrap_err().to_string();
        assert!(again.contains("in use"), "{again}");
        assert!(Rig::down_named(&rig.spec().name).is_err());
        assert!(netns_exists(rig.host().netns()));
    }

    #[test]
    fn a_kept_rig_stays_until_it_is_taken_down() {
        if !rights() {
            return;
        }
        let rig = Rig::up(RigSpec::unique("ml-rig")).unwrap();
        let name = rig.spec().name.clone();
        rig.keep().unwrap();
        Rig::sweep().unwrap();
        assert!(netns_exists(&format!("{name}-host")));
        assert!(Rig::down_named(&name).unwrap());
        assert!(!netns_exists(&format!("{name}-host")));
        assert!(!Rig::down_named(&name).unwrap());
    }

    #[test]
    #[ignore = "the next test runs it, and kills it"]
    fn hold_a_rig() {
        let name = std::env::var("ML_RIG_HOLD").unwrap();
        let _rig = Rig::up(RigSpec::named(&name)).unwrap();
        println!("up");
        std::thread::sleep(std::time::Duration::from_secs(60));
    }

    #[test]
    fn the_rig_of_a_killed_process_is_removed_by_the_next_start() {
        use std::io::{BufRead, BufReader};
        use std::process::{Command, Stdio};
        if !rights() {
            return;
        }
        let name = RigSpec::unique("ml-rig-killed").name;
        let mut holder = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::hold_a_rig", "--ignored", "--nocapture"])
            .env("ML_RIG_HOLD", &name)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(holder.stdout.take().unwrap()).lines();
        assert!(said.any(|line| line.unwrap().ends_with("up")));
        Rig::sweep().unwrap();
        assert!(netns_exists(&format!("{name}-host")), "its owner lives");
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert!(netns_exists(&format!("{name}-host")), "nobody has looked yet");
        let _next = Rig::up(RigSpec::unique("ml-rig")).unwrap();
        assert!(!netns_exists(&format!("{name}-host")));
        assert!(!netns_exists(&format!("{name}-target")));
    }

    #[test]
    fn a_spec_that_cannot_be_is_refused_in_words() {
        let mut spec = RigSpec::named("a/b");
        assert!(check(&spec).unwrap_err().to_string().contains("letters"));
        spec.name = "a".into();
        assert!(check(&spec.clone().mtu(70_000)).unwrap_err().to_string().contains("1280"));
        assert!(check(&spec).is_ok());
    }
}
