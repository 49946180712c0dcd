//! The steering program, and what attaches it to an interface.
//!
//! `steer.bpf.c` says which frames are ours. A [`Steering`] holds it attached by a `bpf_link`, so
//! that it is gone with the process, however the process ends. An interface that already carries
//! an XDP program is left alone.

mod announce;
pub mod netdev;

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libbpf_rs::libbpf_sys;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapHandle, OpenObject};

#[allow(clippy::all, clippy::undocumented_unsafe_blocks, clippy::multiple_unsafe_ops_per_block)]
#[allow(clippy::unwrap_used, missing_docs, unsafe_code)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/steer.skel.rs"));
}

pub use announce::Announcements;

/// Addresses of one family that a lane can own.
pub const ADDRS_MAX: usize = 32;

/// Receive queues that can have a socket.
pub const QUEUES_MAX: u32 = 256;

const VLAN_NONE: u16 = 0xffff; // in step with steer.bpf.c

/// Where in the kernel's receive path the program runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// SKB on veth, where it is the faster one; elsewhere native, or SKB where the driver has no
    /// native mode.
    #[default]
    Auto,
    /// In the driver.
    Native,
    /// After the driver, on socket buffers ("generic").
    Skb,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Skb => "skb",
        })
    }
}

/// Which frames to take, and where.
#[derive(Clone, Debug)]
pub struct SteeringConfig {
    /// The interface.
    pub ifindex: u32,
    /// Where the program runs.
    pub mode: Mode,
    /// Our addresses, at most [`ADDRS_MAX`] of each family.
    pub addrs: Vec<IpAddr>,
    /// Only frames with this 802.1Q VLAN id are ours (1 to 4094); without one, only untagged
    /// frames are.
    pub vlan: Option<u16>,
}

/// Why the program is not attached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be expressed.
    #[error("{0}")]
    Config(String),
    /// The kernel refused to load the program.
    #[error("cannot load the steering program (root, or CAP_BPF and CAP_NET_ADMIN, is needed)")]
    Load(#[source] libbpf_rs::Error),
    /// There is another XDP program on the interface.
    #[error(
        "interface {ifname} already carries an XDP program (id {program}): stop the process that \
         owns it, or remove it with `ip link set dev {ifname} xdp off`"
    )]
    Occupied {
        /// The interface.
        ifname: String,
        /// The other program's id, as `bpftool prog` shows it; 0 when it cannot be told.
        program: u32,
    },
    /// The kernel refused to attach the program.
    #[error("cannot attach the steering program to {ifname} in {mode} mode: {source}{hint}")]
    Attach {
        /// The interface.
        ifname: String,
        /// The mode asked for.
        mode: Mode,
        /// What to do about it, where that is known.
        hint: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A map operation failed.
    #[error("cannot {what}")]
    Map {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: libbpf_rs::Error,
    },
}

/// Frames by what the program made of them. All but `no_socket` and `unheard` add
/// up to the frames seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Not for us: passed to the kernel.
    pub pass_other: u64,
    /// IPv4, to one of our addresses.
    pub ipv4: u64,
    /// IPv6, to one of our addresses.
    pub ipv6: u64,
    /// ARP that asks for, answers, or claims one of our addresses.
    pub arp: u64,
    /// Neighbour solicitations and advertisements for one of our addresses.
    pub nd: u64,
    /// Cut short, or not what its type says: passed to the kernel.
    pub malformed: u64,
    /// Another node says to all that it is there: passed to the kernel, and copied to us.
    pub announcements: u64,
    /// Of ours (counted above too), on a receive queue without a socket: dropped.
    pub no_socket: u64,
    /// Announcements (counted above too) that we did not hear: they came too fast.
    pub unheard: u64,
}

/// The steering program, attached. Dropping it detaches it.
#[derive(Debug)]
pub struct Steering {
    link: OwnedFd,
    xsks: MapHandle,
    counters: MapHandle,
    announcements: Announcements,
    mode: Mode,
}

impl Steering {
    /// Loads the program and attaches it.
    ///
    /// # Errors
    /// See [`Error`]; nothing is left behind.
    pub fn attach(config: &SteeringConfig) -> Result<Self, Error> {
        let mut object = MaybeUninit::uninit();
        let skel = load(config, &mut object)?;
        let program = skel.progs.steer.as_fd();
        let ifname = netdev::name(config.ifindex).map_err(|e| {
            Error::Config(format!("no interface with index {}: {e}", config.ifindex))
        })?;
        let (link, mode) = match config.mode {
            Mode::Auto if netdev::driver(&ifname).is_ok_and(|driver| driver == "veth") => {
                attach_in(program, config.ifindex, &ifname, Mode::Skb)?
            }
            Mode::Auto => match attach_in(program, config.ifindex, &ifname, Mode::Native) {
                Err(Error::Attach { source, .. })
                    if source.raw_os_error() == Some(libc::EOPNOTSUPP) =>
                {
                    attach_in(program, config.ifindex, &ifname, Mode::Skb)?
                }
                attached => attached?,
            },
            mode => attach_in(program, config.ifindex, &ifname, mode)?,
        };
        let handle = |map| {
            MapHandle::try_from(map).map_err(|source| Error::Map { what: "keep a map", source })
        };
        let (xsks, counters) = (handle(&skel.maps.xsks)?, handle(&skel.maps.counters)?);
        let announcements = Announcements::of(handle(&skel.maps.announcements)?)?;
        Ok(Self { link, xsks, counters, announcements, mode })
    }

    /// The mode in use: never [`Mode::Auto`].
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Sends our frames of receive queue `queue` to `socket` from now on. The kernel forgets the
    /// socket when it is closed.
    ///
    /// # Errors
    /// When the queue is out of range, or the socket is not a bound AF_XDP socket of it.
    pub fn register(&self, queue: u32, socket: BorrowedFd<'_>) -> Result<(), Error> {
        let value = socket.as_raw_fd().to_ne_bytes();
        self.xsks.update(&queue.to_ne_bytes(), &value, MapFlags::ANY).map_err(|source| Error::Map {
            what: "register the AF_XDP socket with the steering program",
            source,
        })
    }

    /// Announcements of other nodes, in the order in which they came.
    pub fn announcements(&self) -> &Announcements {
        &self.announcements
    }

    /// What the program has seen since it was attached.
    ///
    /// # Errors
    /// Of the map look-ups.
    pub fn counters(&self) -> Result<Counters, Error> {
        read_counters(&self.counters)
    }
}

impl Drop for Steering {
    /// Closing the link would do, but for a copy of the descriptor that a `fork` elsewhere in the
    /// process may hold for a moment.
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours, and open.
        let _ = unsafe { libbpf_sys::bpf_link_detach(self.link.as_raw_fd()) }; // or it is gone
    }
}

impl AsFd for Steering {
    /// The `bpf_link`.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}

/// Loads the program with our addresses in its constants.
fn load<'obj>(
    config: &SteeringConfig,
    object: &'obj mut MaybeUninit<OpenObject>,
) -> Result<skeleton::SteerSkel<'obj>, Error> {
    let mut open = skeleton::SteerSkelBuilder::default().open(object).map_err(Error::Load)?;
    let constants = open.maps.rodata_data.as_mut().expect("the program has constants");
    constants.vlan = match config.vlan {
        None => VLAN_NONE,
        Some(vlan @ 1..=4094) => vlan,
        Some(vlan) => return Err(Error::Config(format!("VLAN id {vlan} is not in 1 to 4094"))),
    };
    for addr in &config.addrs {
        let len = match addr {
            IpAddr::V4(_) => &mut constants.addrs4_len,
            IpAddr::V6(_) => &mut constants.addrs6_len,
        };
        let i = *len as usize;
        if i == ADDRS_MAX {
            return Err(Error::Config(format!("more than {ADDRS_MAX} addresses of a family")));
        }
        *len += 1;
        // Compared as they lie in the packet.
        match addr {
            IpAddr::V4(addr) => constants.addrs4[i] = u32::from_ne_bytes(addr.octets()),
            IpAddr::V6(addr) => {
                for (word, bytes) in constants.addrs6[i].iter_mut().zip(addr.octets().chunks(4)) {
                    *word = u32::from_ne_bytes(bytes.try_into().expect("16 is 4 times 4"));
                }
            }
        }
    }
    open.load().map_err(Error::Load)
}

/// Attaches by `bpf_link`; libbpf-rs has no way to say the mode.
#[allow(unsafe_code)]
fn attach_in(
    program: BorrowedFd<'_>,
    ifindex: u32,
    ifname: &str,
    mode: Mode,
) -> Result<(OwnedFd, Mode), Error> {
    let flags = match mode {
        Mode::Skb => libbpf_sys::XDP_FLAGS_SKB_MODE,
        Mode::Native | Mode::Auto => libbpf_sys::XDP_FLAGS_DRV_MODE,
    };
    // A program attached the old way blocks only a link in the same mode: look first.
    if let Some(program) = program_on(ifindex) {
        return Err(Error::Occupied { ifname: ifname.to_owned(), program });
    }
    let opts = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
        flags,
        ..Default::default()
    };
    // SAFETY: `program` is a loaded program; `opts` is initialised, sized, and outlives the call.
    let fd = unsafe {
        libbpf_sys::bpf_link_create(
            program.as_raw_fd(),
            ifindex as i32,
            libbpf_sys::BPF_XDP,
            &raw const opts,
        )
    };
    if fd >= 0 {
        // SAFETY: the call succeeded: `fd` is a new descriptor that nobody else owns.
        return Ok((unsafe { OwnedFd::from_raw_fd(fd) }, mode));
    }
    let ifname = ifname.to_owned();
    Err(match -fd {
        libc::EBUSY | libc::EEXIST => {
            Error::Occupied { ifname, program: program_on(ifindex).unwrap_or(0) }
        }
        errno => Error::Attach {
            ifname,
            mode,
            hint: hint(errno),
            source: io::Error::from_raw_os_error(errno),
        },
    })
}

/// The XDP program on the interface, whatever its mode.
#[allow(unsafe_code)]
fn program_on(ifindex: u32) -> Option<u32> {
    let mut opts = libbpf_sys::bpf_xdp_query_opts {
        sz: size_of::<libbpf_sys::bpf_xdp_query_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    // SAFETY: `opts` is initialised, sized, and outlives the call.
    let ret = unsafe { libbpf_sys::bpf_xdp_query(ifindex as i32, 0, &raw mut opts) };
    let ids = [opts.prog_id, opts.drv_prog_id, opts.skb_prog_id, opts.hw_prog_id];
    if ret == 0 { ids.into_iter().find(|&id| id != 0) } else { None }
}

fn hint(errno: i32) -> &'static str {
    match errno {
        libc::EOPNOTSUPP => "; the driver has no native XDP: use skb mode",
        libc::ENOSPC => {
            "; on veth, an end needs at least as many receive queues as its peer has transmit \
             queues: `ethtool -L DEV rx N`"
        }
        libc::EINVAL | libc::ERANGE => "; the MTU may be too large for native XDP: try skb mode",
        libc::EPERM => "; root, or CAP_BPF and CAP_NET_ADMIN, is needed",
        _ => "",
    }
}

fn read_counters(map: &impl MapCore) -> Result<Counters, Error> {
    let what = "read the steering counters";
    let read = |verdict: u32| -> Result<u64, Error> {
        let per_cpu = map
            .lookup_percpu(&verdict.to_ne_bytes(), MapFlags::ANY)
            .map_err(|source| Error::Map { what, source })?
            .expect("an array map has all its keys");
        let cpu = |bytes: &Vec<u8>| {
            u64::from_ne_bytes(bytes.as_slice().try_into().expect("the value is a u64"))
        };
        Ok(per_cpu.iter().map(cpu).sum())
    };
    // In the order of `enum verdict`.
    Ok(Counters {
        pass_other: read(0)?,
        ipv4: read(1)?,
        ipv6: read(2)?,
        arp: read(3)?,
        nd: read(4)?,
        malformed: read(5)?,
        announcements: read(6)?,
        no_socket: read(7)?,
        unheard: read(8)?,
    })
}

#[cfg(test)]
mod tests;
