//! Socket options, typed.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Types that any bytes are a value of, and whose values have no padding.
///
/// # Safety
/// That must be so.
pub(crate) unsafe trait Plain: Copy + Default {}

// SAFETY: an integer.
unsafe impl Plain for c_int {}

/// Reads an option.
pub(crate) fn read<T: Plain>(fd: BorrowedFd<'_>, level: c_int, name: c_int) -> io::Result<T> {
    let mut value = T::default();
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: at most `len` bytes are written to `value`; any bytes make a `Plain`.
    let ret = unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len)
    };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// Sets an option.
pub(crate) fn set<T: Plain>(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: T,
) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: `len` bytes are read from `value`, all of them initialised in a `Plain`.
    let ret =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), len) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
