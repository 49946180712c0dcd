//! What the kernel says about a network interface, in the calling thread's network namespace.
//!
//! By `ioctl`, not `/sys`: a thread that has entered another namespace still sees the old
//! namespace's interfaces there.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The index of the interface called `name`.
///
/// # Errors
/// `ENODEV` when there is none.
pub fn index(name: &str) -> io::Result<u32> {
    let name = CString::new(name).map_err(|_| no_device())?;
    // SAFETY: `name` is a C string.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// The name of the interface with that index.
///
/// # Errors
/// `ENXIO` when there is none.
pub fn name(index: u32) -> io::Result<String> {
    let mut name = [0 as c_char; libc::IF_NAMESIZE];
    // SAFETY: `name` has room for IF_NAMESIZE bytes, which is all that is written.
    if unsafe { libc::if_indextoname(index, name.as_mut_ptr()) }.is_null() {
        return Err(io::Error::last_os_error());
    }
    Ok(to_string(&name))
}

/// The MTU: the largest IP packet, bytes.
///
/// # Errors
/// Of the `ioctl`; `ENODEV` when there is no such interface.
pub fn mtu(name: &str) -> io::Result<usize> {
    View::here()?.mtu(name)
}

/// The hardware address.
///
/// # Errors
/// Of the `ioctl`; `ENODEV` when there is no such interface.
pub fn mac(name: &str) -> io::Result<[u8; 6]> {
    let request = View::here()?.ioctl(name, libc::SIOCGIFHWADDR, |_| {})?;
    // SAFETY: SIOCGIFHWADDR has filled in this member.
    let addr = unsafe { request.ifr_ifru.ifru_hwaddr };
    let mut mac = [0; 6];
    for (to, from) in mac.iter_mut().zip(addr.sa_data) {
        *to = from as u8;
    }
    Ok(mac)
}

/// Whether the interface is up.
///
/// # Errors
/// Of the `ioctl`; `ENODEV` when there is no such interface.
pub fn is_up(name: &str) -> io::Result<bool> {
    View::here()?.is_up(name)
}

/// The driver, as `ethtool -i` names it.
///
/// # Errors
/// Of the `ioctl`; `EOPNOTSUPP` when the driver does not tell.
pub fn driver(name: &str) -> io::Result<String> {
    // struct ethtool_drvinfo: cmd, then driver[32] and more, 196 bytes in all.
    let mut info = [0u32; 49];
    info[0] = 0x3; // ETHTOOL_GDRVINFO
    let data = (&raw mut info).cast::<c_char>();
    let operation = libc::SIOCETHTOOL as libc::Ioctl;
    View::here()?.ioctl(name, operation, |ifru| ifru.ifru_data = data)?;
    let bytes: Vec<u8> = info[1..9].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let driver = CStr::from_bytes_until_nul(&bytes).map_err(io::Error::other)?;
    Ok(driver.to_string_lossy().into_owned())
}

/// The interfaces of one network namespace, seen from wherever its owner is: an open socket. A look
/// is one system call, and takes no lock.
#[derive(Debug)]
pub struct View(OwnedFd);

impl AsFd for View {
    /// A socket on which nothing ever arrives.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl View {
    /// Of the calling thread's network namespace.
    ///
    /// # Errors
    /// When no socket can be opened.
    pub fn here() -> io::Result<Self> {
        // SAFETY: no pointers are passed.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The MTU, as [`mtu`].
    ///
    /// # Errors
    /// As [`mtu`].
    pub fn mtu(&self, name: &str) -> io::Result<usize> {
        let request = self.ioctl(name, libc::SIOCGIFMTU, |_| {})?;
        // SAFETY: SIOCGIFMTU has filled in this member.
        let mtu = unsafe { request.ifr_ifru.ifru_mtu };
        Ok(mtu as usize)
    }

    /// Whether the interface is up.
    ///
    /// # Errors
    /// As [`is_up`].
    pub fn is_up(&self, name: &str) -> io::Result<bool> {
        let request = self.ioctl(name, libc::SIOCGIFFLAGS, |_| {})?;
        // SAFETY: SIOCGIFFLAGS has filled in this member.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        Ok(i32::from(flags) & libc::IFF_UP != 0)
    }

    /// One `ioctl` about `name`, with its argument set by `fill`.
    fn ioctl(
        &self,
        name: &str,
        operation: libc::Ioctl,
        fill: impl FnOnce(&mut libc::__c_anonymous_ifr_ifru),
    ) -> io::Result<libc::ifreq> {
        if name.is_empty() || name.len() >= libc::IF_NAMESIZE {
            return Err(no_device());
        }
        let ifru_data = std::ptr::null_mut();
        let mut request = libc::ifreq {
            ifr_name: [0; libc::IF_NAMESIZE],
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data },
        };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as c_char;
        }
        fill(&mut request.ifr_ifru);
        let argument = (&raw mut request).cast::<c_void>();
        // SAFETY: the operations used here read and write one `ifreq`, and what its `ifru_data`
        // points to, which `driver` keeps alive and large enough.
        let ret = unsafe { libc::ioctl(self.0.as_raw_fd(), operation, argument) };
        if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(request) }
    }
}

fn to_string(name: &[c_char]) -> String {
    name.iter().take_while(|&&c| c != 0).map(|&c| c as u8 as char).collect()
}

fn no_device() -> io::Error {
    io::Error::from_raw_os_error(libc::ENODEV)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_known_by_name_and_index() {
        let index = index("lo").unwrap();
        assert_eq!(name(index).unwrap(), "lo");
        assert_eq!(mtu("lo").unwrap(), 65536);
        assert_eq!(mac("lo").unwrap(), [0; 6]);
    }

    #[test]
    fn an_interface_that_does_not_exist_is_enodev() {
        for name in ["", "nosuch0", "a-name-longer-than-any-interface"] {
            assert_eq!(mtu(name).unwrap_err().raw_os_error(), Some(libc::ENODEV));
            assert!(index(name).is_err());
        }
    }
}
