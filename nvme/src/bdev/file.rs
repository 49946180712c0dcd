//! A regular file or block device, through io_uring.
//!
//! `O_DIRECT` where the file system takes it, buffered I/O with a warning otherwise. A request
//! lives in a slot from its submission until the kernel has given its completion back, and its
//! buffer with it: the kernel never writes to memory that is not in a slot. A poll makes one
//! system call if something is to be submitted, and none otherwise.
//!
//! Unsafe fence: memory is handed to the kernel by address, here only.
#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io::{self, Seek, SeekFrom};
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::rc::Rc;

use io_uring::types::{Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use moorline_stack::mem::{Arena, IoBuf};
use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use super::{Bdev, Done, Op, Request};
use crate::spec::Status;

/// The one registered file.
const FILE: Fixed = Fixed(0);

/// Complete a write when it is durable (`RWF_DSYNC`, `linux/fs.h`).
const RWF_DSYNC: i32 = 2;

/// Zeros written at once, where the file system cannot zero a range by itself.
const ZEROES_LEN: usize = 256 << 10;

/// Times that a request interrupted or refused for now is tried again.
const RETRIES_MAX: u8 = 100;

/// How long closing waits for requests under way; after that their buffers are leaked.
const CLOSE_TIMEOUT_S: u64 = 5;

/// How to open a file.
#[derive(Clone, Copy, Debug)]
pub struct FileOptions {
    /// Bytes per block: 512 or 4096.
    pub block_size: u32,
    /// Requests under way at once.
    pub depth: u16,
    /// Try `O_DIRECT`.
    pub direct: bool,
}

impl Default for FileOptions {
    fn default() -> Self {
        Self { block_size: 4096, depth: 128, direct: true }
    }
}

/// A file or block device as a device.
pub struct File {
    ring: IoUring,
    /// Kept open for the ring.
    _file: std::fs::File,
    block_size: u32,
    blocks: u64,
    direct: bool,
    slots: Box<[Option<Slot>]>,
    free: Vec<u16>,
    /// Entries in the submission queue that the kernel has not been told of.
    staged: usize,
    zeroes: Rc<IoBuf>,
}

/// A request under way. The kernel may use its buffer until its completion is taken.
struct Slot {
    request: Request,
    /// Bytes done, by earlier short reads or writes.
    progress: u64,
    retries: u8,
    /// `WriteZeroes` only: by writing zeros, since the file system cannot do it.
    by_writing: bool,
}

impl File {
    /// Opens a regular file or block device; its size is what is there.
    ///
    /// # Errors
    /// Of opening it, or when io_uring cannot be used here; the message says what to do.
    pub fn open(path: &Path, options: &FileOptions) -> io::Result<Self> {
        Self::with(path, options, OpenOptions::new().read(true).write(true))
    }

    /// Opens a regular file, creating it with `size` bytes if there is none.
    ///
    /// # Errors
    /// As [`File::open`]; and when there is one of another size, which is left alone.
    pub fn create(path: &Path, size: u64, options: &FileOptions) -> io::Result<Self> {
        let mut open = OpenOptions::new();
        let file = open
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|e| context(&e, path, "cannot create"))?;
        let len = file.metadata()?.len();
        if len == 0 {
            file.set_len(size).map_err(|e| context(&e, path, "cannot give it its size"))?;
        } else if len != size {
            let error = io::Error::from(io::ErrorKind::AlreadyExists);
            let what = format!("has {len} bytes, not {size}; remove it, or give its size for");
            return Err(context(&error, path, &what));
        }
        Self::open(path, options)
    }

    fn with(path: &Path, options: &FileOptions, open: &mut OpenOptions) -> io::Result<Self> {
        let FileOptions { block_size, depth, direct } = *options;
        assert!(matches!(block_size, 512 | 4096), "block size is 512 or 4096");
        assert!(depth > 0, "a device takes at least one request");
        let mut arena = Arena::new(ZEROES_LEN);
        let mut zeroes = arena.take(ZEROES_LEN).expect("the arena was made for it");
        let mut file = open.open(path).map_err(|e| context(&e, path, "cannot open"))?;
        let size = file.seek(SeekFrom::End(0)).map_err(|e| context(&e, path, "has no size:"))?;
        let blocks = size / u64::from(block_size);
        if blocks == 0 {
            let error = io::Error::from(io::ErrorKind::InvalidInput);
            return Err(context(&error, path, "is smaller than one block:"));
        }
        let mut is_direct = false;
        if direct {
            let block = &mut zeroes[..block_size as usize];
            match open_direct(open, path, block, (blocks - 1) * u64::from(block_size)) {
                Ok(direct) => (file, is_direct) = (direct, true),
                Err(why) => {
                    tracing::warn!(path = %path.display(), %why, "no O_DIRECT; buffered I/O");
                }
            }
            zeroes.fill(0);
        }
        let ring = IoUring::new(u32::from(depth)).map_err(|e| ring_error(&e))?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        Ok(Self {
            ring,
            _file: file,
            block_size,
            blocks,
            direct: is_direct,
            slots: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            staged: 0,
            zeroes: Rc::new(zeroes),
        })
    }

    /// Whether I/O bypasses the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Puts a slot's next step into the submission queue.
    fn stage(&mut self, index: u16) {
        let slot = self.slots[usize::from(index)].as_mut().expect("staged slots are in use");
        let request = &mut slot.request;
        let (offset, len) = request.extent(self.block_size, self.blocks);
        let (at, left) = (offset + slot.progress, len - slot.progress);
        let fallocate = |mode: FallocateFlags| {
            let mode = (mode | FallocateFlags::KEEP_SIZE).bits() as i32;
            opcode::Fallocate::new(FILE, left).offset(at).mode(mode).build()
        };
        let entry = match (request.op, &mut request.buf) {
            (Op::Read, Some(buf)) => {
                let part = &mut buf[slot.progress as usize..len as usize];
                opcode::Read::new(FILE, part.as_mut_ptr(), part.len() as u32).offset(at).build()
            }
            (Op::Write { fua }, Some(buf)) => {
                let part = &buf[slot.progress as usize..len as usize];
                opcode::Write::new(FILE, part.as_ptr(), part.len() as u32)
                    .offset(at)
                    .rw_flags(if fua { RWF_DSYNC } else { 0 })
                    .build()
            }
            (Op::WriteZeroes, _) if slot.by_writing => {
                let part = left.min(ZEROES_LEN as u64) as u32;
                opcode::Write::new(FILE, self.zeroes.as_ptr(), part).offset(at).build()
            }
            (Op::WriteZeroes, _) => fallocate(FallocateFlags::ZERO_RANGE),
            (Op::Discard, _) => fallocate(FallocateFlags::PUNCH_HOLE),
            (Op::Flush, _) => opcode::Fsync::new(FILE).flags(FsyncFlags::DATASYNC).build(),
            (Op::Read | Op::Write { .. }, None) => unreachable!("extent() asked for a buffer"),
        };
        self.push(&entry.user_data(u64::from(index)));
    }

    fn push(&mut self, entry: &squeue::Entry) {
        let mut queue = self.ring.submission();
        // SAFETY: the entry names memory of a `Slot`'s buffer (or of `zeroes`), which stays in
        // place until the entry's completion was taken (see `Slot`, and `drop`); its file is
        // registered with the ring.
        let pushed = unsafe { queue.push(entry) };
        pushed.expect("the queue has an entry for each slot, and a slot uses one at a time");
        self.staged += 1;
    }

    /// Tells the kernel of what is staged.
    fn enter(&mut self) {
        if self.staged == 0 {
            return;
        }
        // On an error (EINTR, EAGAIN, EBUSY: all passing) the rest stays staged until the next.
        if let Ok(taken) = self.ring.submit() {
            self.staged = self.staged.saturating_sub(taken);
        }
    }

    /// A completion: the request's end, or its next step.
    fn complete(&mut self, index: u16, result: i32) -> Option<Done> {
        let slot = self.slots[usize::from(index)].as_mut().expect("completions name slots in use");
        let (_, len) = slot.request.extent(self.block_size, self.blocks);
        let status = match (slot.request.op, u32::try_from(result)) {
            (Op::Read | Op::Write { .. }, Ok(0)) if len > 0 => Some(slot.failure(Errno::IO)),
            (Op::Read | Op::Write { .. }, Ok(moved)) => slot.advance(u64::from(moved), len),
            (Op::WriteZeroes, Ok(moved)) if slot.by_writing => slot.advance(u64::from(moved), len),
            (Op::Flush | Op::WriteZeroes | Op::Discard, Ok(_)) => Some(Status::SUCCESS),
            (_, Err(_)) => slot.failed(Errno::from_raw_os_error(-result)),
        };
        let Some(status) = status else {
            self.stage(index);
            return None;
        };
        let slot = self.slots[usize::from(index)].take()?;
        self.free.push(index);
        Some(Done { tag: slot.request.tag, status, buf: slot.request.buf })
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

impl Slot {
    /// Bytes were moved: the end, or `None` if more are left.
    fn advance(&mut self, moved: u64, len: u64) -> Option<Status> {
        self.progress += moved;
        (self.progress >= len).then_some(Status::SUCCESS)
    }

    /// A step failed: the end, or `None` to take another step.
    fn failed(&mut self, errno: Errno) -> Option<Status> {
        match errno {
            Errno::INTR | Errno::AGAIN if self.retries < RETRIES_MAX => {
                self.retries += 1;
                None
            }
            Errno::OPNOTSUPP if self.request.op == Op::Discard => Some(Status::SUCCESS), // a hint
            Errno::OPNOTSUPP if self.request.op == Op::WriteZeroes && !self.by_writing => {
                self.by_writing = true;
                None
            }
            errno => Some(self.failure(errno)),
        }
    }

    /// The status that says what errno said.
    fn failure(&self, errno: Errno) -> Status {
        match (errno, self.request.op) {
            (Errno::NOSPC | Errno::DQUOT | Errno::FBIG, _) => Status::CAPACITY_EXCEEDED,
            (Errno::ROFS | Errno::PERM | Errno::ACCESS, _) => Status::NS_WRITE_PROTECTED,
            (Errno::NOMEM | Errno::AGAIN | Errno::INTR, _) => Status::INTERNAL_ERROR,
            (_, Op::Read) => Status::UNRECOVERED_READ,
            (_, _) => Status::WRITE_FAULT,
        }
    }
}

impl Bdev for File {
    fn block_size(&self) -> u32 {
        self.block_size
    }

    fn blocks(&self) -> u64 {
        self.blocks
    }

    fn submit(&mut self, request: Request) -> Result<(), Request> {
        request.extent(self.block_size, self.blocks);
        let Some(index) = self.free.pop() else { return Err(request) };
        let slot = Slot { request, progress: 0, retries: 0, by_writing: false };
        self.slots[usize::from(index)] = Some(slot);
        self.stage(index);
        Ok(())
    }

    fn poll(&mut self, done: &mut dyn FnMut(Done)) {
        self.enter();
        for _ in 0..self.in_flight() {
            let Some(end) = self.ring.completion().next() else { break };
            if let Some(end) = self.complete(end.user_data() as u16, end.result()) {
                done(end);
            }
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the ring owns the descriptor and lives at least as long as this borrow of it.
        Some(unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) })
    }
}

impl Drop for File {
    /// Waits for what is under way: its buffers are the kernel's until then.
    fn drop(&mut self) {
        let second = Timespec::new().sec(1);
        let patience = SubmitArgs::new().timespec(&second);
        for _ in 0..CLOSE_TIMEOUT_S {
            self.poll(&mut |_| ());
            if self.in_flight() == 0 {
                return;
            }
            let _ = self.ring.submitter().submit_with_args(1, &patience);
        }
        for _ in 0..self.in_flight() {
            self.poll(&mut |_| ());
        }
        if self.in_flight() > 0 {
            tracing::error!(requests = self.in_flight(), "I/O does not end; leaking its buffers");
            mem::forget(mem::take(&mut self.slots));
            mem::forget(self.zeroes.clone());
        }
    }
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("File")
            .field("block_size", &self.block_size)
            .field("blocks", &self.blocks)
            .field("direct", &self.direct)
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

/// Opens with `O_DIRECT` and tries it on the last block: some file systems refuse only then.
fn open_direct(
    open: &mut OpenOptions,
    path: &Path,
    block: &mut [u8],
    offset: u64,
) -> io::Result<std::fs::File> {
    let file = open.custom_flags(OFlags::DIRECT.bits() as i32).open(path)?;
    file.read_exact_at(block, offset)?;
    Ok(file)
}

fn context(error: &io::Error, path: &Path, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
}

fn ring_error(error: &io::Error) -> io::Error {
    let hint = match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::PERM) => {
            "not permitted here; allow it (sysctl kernel.io_uring_disabled=0, or the container's \
             seccomp profile), or use a RAM namespace"
        }
        Some(Errno::NOSYS) => "this kernel has none; use a RAM namespace",
        Some(Errno::NOMEM) => "locked memory is used up; raise `ulimit -l`",
        _ => "cannot be set up",
    };
    io::Error::new(error.kind(), format!("io_uring: {hint}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bdev::tests::run;

    const SMALL: FileOptions = FileOptions { block_size: 512, depth: 4, direct: true };

    /// A device on a new file of 1 MiB, or `None` where io_uring is not allowed.
    fn device(options: &FileOptions) -> Option<(tempfile::TempDir, File)> {
        let dir = tempfile::tempdir().unwrap();
        match File::create(&dir.path().join("disk"), 1 << 20, options) {
            Ok(file) => Some((dir, file)),
            Err(e) if e.to_string().starts_with("io_uring") => {
                assert!(std::env::var_os("MOORLINE_REQUIRE_RIG").is_none(), "{e}");
                eprintln!("SKIPPED: {e}");
                None
            }
            Err(e) => panic!("{e}"),
        }
    }

    #[test]
    fn what_is_written_is_in_the_file() {
        for direct in [true, false] {
            let Some((dir, mut dev)) = device(&FileOptions { direct, ..SMALL }) else { return };
            assert_eq!((dev.block_size(), dev.blocks()), (512, 2048));
            assert!(direct || !dev.is_direct());
            let mut arena = Arena::new(8192);
            let mut buf = arena.take(4096).unwrap();
            buf.fill(0xA5);
            let (status, _) = run(&mut dev, Op::Write { fua: true }, 3, 8, Some(buf));
            assert_eq!(status, Status::SUCCESS);
            assert_eq!(run(&mut dev, Op::Flush, 0, 0, None).0, Status::SUCCESS);
            let bytes = std::fs::read(dir.path().join("disk")).unwrap();
            assert!(bytes[3 * 512..11 * 512].iter().all(|&b| b == 0xA5));
            assert_eq!((bytes[3 * 512 - 1], bytes[11 * 512]), (0, 0));
            let (status, buf) = run(&mut dev, Op::Read, 4, 7, arena.take(4096));
            assert_eq!(status, Status::SUCCESS);
            assert!(buf.unwrap()[..7 * 512].iter().all(|&b| b == 0xA5));
        }
    }

    #[test]
    fn ranges_are_zeroed_and_discarded() {
        let Some((dir, mut dev)) = device(&SMALL) else { return };
        let path = dir.path().join("disk");
        std::fs::write(&path, vec![0xEE; 1 << 20]).unwrap();
        assert_eq!(run(&mut dev, Op::WriteZeroes, 1, 16, None).0, Status::SUCCESS);
        assert_eq!(run(&mut dev, Op::Discard, 2000, 48, None).0, Status::SUCCESS);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 1 << 20);
        assert!(bytes[512..17 * 512].iter().all(|&b| b == 0));
        assert_eq!((bytes[511], bytes[17 * 512]), (0xEE, 0xEE));
    }

    #[test]
    fn zeroes_are_written_where_the_file_system_cannot() {
        let Some((dir, mut dev)) = device(&SMALL) else { return };
        let path = dir.path().join("disk");
        std::fs::write(&path, vec![0xEE; 1 << 20]).unwrap();
        dev.submit(Request { tag: 5, op: Op::WriteZeroes, lba: 1, blocks: 2047, buf: None })
            .unwrap();
        let index = dev.slots.iter().position(Option::is_some).unwrap();
        let slot = dev.slots[index].as_mut().unwrap();
        assert_eq!(slot.failed(Errno::OPNOTSUPP), None);
        assert!(slot.by_writing);
        let mut end = None;
        while end.is_none() {
            dev.poll(&mut |done| end = Some(done.status)); // the ZERO_RANGE of the submit
        }
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes[512..].iter().all(|&b| b == 0));
        assert_eq!(bytes[511], 0xEE);
    }

    #[test]
    fn a_full_device_gives_the_request_back() {
        let Some((_dir, mut dev)) = device(&SMALL) else { return };
        let flush = |tag| Request { tag, op: Op::Flush, lba: 0, blocks: 0, buf: None };
        for tag in 0..4 {
            dev.submit(flush(tag)).unwrap();
        }
        assert_eq!(dev.submit(flush(4)).unwrap_err().tag, 4);
        let mut ends = Vec::new();
        while ends.len() < 4 {
            dev.poll(&mut |done| ends.push(done.tag));
        }
        ends.sort_unstable();
        assert_eq!(ends, [0, 1, 2, 3]);
        dev.submit(flush(4)).unwrap(); // and dropping waits for it
    }

    #[test]
    fn a_truncated_file_is_a_media_error() {
        let Some((dir, mut dev)) = device(&FileOptions { direct: false, ..SMALL }) else { return };
        let file = OpenOptions::new().write(true).open(dir.path().join("disk")).unwrap();
        file.set_len(512).unwrap();
        let (status, buf) = run(&mut dev, Op::Read, 0, 8, Arena::new(4096).take(4096));
        assert_eq!(status, Status::UNRECOVERED_READ);
        assert!(buf.is_some());
    }

    #[test]
    fn errno_becomes_a_status() {
        let slot = |op| Slot {
            request: Request { tag: 0, op, lba: 0, blocks: 0, buf: None },
            progress: 0,
            retries: RETRIES_MAX,
            by_writing: false,
        };
        let write = Op::Write { fua: false };
        assert_eq!(slot(write).failed(Errno::NOSPC), Some(Status::CAPACITY_EXCEEDED));
        assert_eq!(slot(write).failed(Errno::IO), Some(Status::WRITE_FAULT));
        assert_eq!(slot(Op::Read).failed(Errno::IO), Some(Status::UNRECOVERED_READ));
        assert_eq!(slot(Op::Read).failed(Errno::AGAIN), Some(Status::INTERNAL_ERROR));
        assert_eq!(slot(Op::Discard).failed(Errno::OPNOTSUPP), Some(Status::SUCCESS));
    }

    #[test]
    fn a_file_of_another_size_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, [1; 1000]).unwrap();
        let error = File::create(&path, 4096, &SMALL).unwrap_err().to_string();
        assert!(error.contains("has 1000 bytes, not 4096"), "{error}");
        assert!(File::open(&dir.path().join("none"), &SMALL).is_err());
    }
}
