//! A disk in virtual time: requests that take their time, come late, fail or stick, in any order;
//! and a volatile cache, of which a crash loses what was not flushed.
//!
//! The target owns a [`SimDisk`], the world its [`Platter`]: that one outlives the target. A
//! request is executed at the very time at which it is due, by the first poll from then on.

use std::cell::{Cell, RefCell};
use std::io::Stderr;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::Duration;

use moorline_nvme::bdev::{Bdev, Done, Op, Request};
use moorline_nvme::spec::Status;
use moorline_stack::Instant;
use moorline_stack::rng::Rng;

use crate::BLOCK;

/// What a disk does to requests.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// Requests take up to this.
    pub latency: Duration,
    /// Requests that it takes at once.
    pub depth: usize,
    /// Share of requests that take `slow_by` more.
    pub slow: f64,
    /// How much more, at most.
    pub slow_by: Duration,
    /// Share of requests that fail; nothing of them is executed.
    pub errors: f64,
    /// It has a cache that a crash empties.
    pub volatile: bool,
}

impl Default for DiskOptions {
    fn default() -> Self {
        let (latency, slow_by) = (Duration::from_micros(50), Duration::from_millis(50));
        Self { latency, depth: 256, slow: 0.0, slow_by, errors: 0.0, volatile: false }
    }
}

/// Requests that met each fault.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskCounts {
    /// Executed.
    pub requests: u64,
    /// Slow ones.
    pub slow: u64,
    /// Failed ones.
    pub errors: u64,
    /// Times that it was full.
    pub full: u64,
    /// Blocks that a crash took back.
    pub lost: u64,
}

#[derive(Debug)]
struct State {
    now: Rc<Cell<Instant>>,
    rng: Rng,
    options: DiskOptions,
    bytes: Vec<u8>,
    durable: Vec<u8>,
    /// Under way, and when each is due.
    pending: Vec<(Instant, bool, Request)>,
    /// Nothing ends before.
    stuck_until: Instant,
    counts: DiskCounts,
}

/// The disk as the world sees it.
#[derive(Clone, Debug)]
pub struct Platter(Rc<RefCell<State>>);

/// The disk as the target sees it.
#[derive(Debug)]
pub struct SimDisk {
    state: Rc<RefCell<State>>,
    /// A descriptor, so that the target sleeps while requests are under way. Nobody waits for it:
    /// the world knows when something is due.
    fd: Stderr,
}

impl Platter {
    /// A disk of `blocks` blocks, all zeroes, by the world's clock.
    pub fn new(now: Rc<Cell<Instant>>, seed: u64, blocks: u64, options: DiskOptions) -> Self {
        let len = blocks as usize * BLOCK;
        Self(Rc::new(RefCell::new(State {
            now,
            rng: Rng::new(seed),
            options,
            bytes: vec![0; len],
            durable: vec![0; len],
            pending: Vec::new(),
            stuck_until: Instant::ZERO,
            counts: DiskCounts::default(),
        })))
    }

    /// A device for a target.
    pub fn device(&self) -> SimDisk {
        SimDisk { state: self.0.clone(), fd: std::io::stderr() }
    }

    /// When the next request ends.
    pub fn next(&self) -> Option<Instant> {
        let state = self.0.borrow();
        state.pending.iter().map(|&(at, ..)| at.max(state.stuck_until)).min()
    }

    /// Whether a write is under way.
    pub fn has_writes(&self) -> bool {
        let state = self.0.borrow();
        state.pending.iter().any(|(_, _, request)| !matches!(request.op, Op::Read | Op::Flush))
    }

    /// Lets nothing end before.
    pub fn stick(&self, until: Instant) {
        self.0.borrow_mut().stuck_until = until;
    }

    /// Changes what it does.
    pub fn change(&self, change: impl FnOnce(&mut DiskOptions)) {
        change(&mut self.0.borrow_mut().options);
    }

    /// Power fails: what is under way is executed or not, what was not flushed may be lost.
    pub fn crash(&self) {
        let state = &mut *self.0.borrow_mut();
        for (_, fails, request) in std::mem::take(&mut state.pending) {
            if !fails && !matches!(request.op, Op::Read | Op::Flush) && state.rng.chance(0.5) {
                state.execute(request);
            }
        }
        let State { rng, options, bytes, durable, counts, .. } = state;
        if !options.volatile {
            return;
        }
        let keep = rng.chance(0.3);
        for (block, safe) in bytes.chunks_mut(BLOCK).zip(durable.chunks_mut(BLOCK)) {
            if block != safe {
                match keep || rng.chance(0.5) {
                    true => safe.copy_from_slice(block),
                    false => {
                        block.copy_from_slice(safe);
                        counts.lost += 1;
                    }
                }
            }
        }
    }

    /// Another disk is in its place, an empty one.
    pub fn replace(&self) {
        let mut state = self.0.borrow_mut();
        state.pending.clear();
        state.bytes.fill(0);
        state.durable.fill(0);
    }

    /// What it has done.
    pub fn counts(&self) -> DiskCounts {
        self.0.borrow().counts
    }
}

impl State {
    fn execute(&mut self, mut request: Request) -> Done {
        let from = request.lba as usize * BLOCK;
        let len = request.blocks as usize * BLOCK;
        let Self { bytes, durable, .. } = self;
        match (request.op, &mut request.buf) {
            (Op::Read, Some(buf)) => buf[..len].copy_from_slice(&bytes[from..from + len]),
            (Op::Write { fua }, Some(buf)) => {
                bytes[from..from + len].copy_from_slice(&buf[..len]);
                if fua {
                    durable[from..from + len].copy_from_slice(&buf[..len]);
                }
            }
            (Op::WriteZeroes, _) => bytes[from..from + len].fill(0),
            (Op::Flush, _) => durable.copy_from_slice(bytes),
            (Op::Read | Op::Write { .. } | Op::Discard, _) => {}
        }
        Done { tag: request.tag, status: Status::SUCCESS, buf: request.buf }
    }
}

impl Bdev for SimDisk {
    fn block_size(&self) -> u32 {
        BLOCK as u32
    }

    fn blocks(&self) -> u64 {
        (self.state.borrow().bytes.len() / BLOCK) as u64
    }

    fn submit(&mut self, request: Request) -> Result<(), Request> {
        let state = &mut *self.state.borrow_mut();
        let State { rng, options, counts, .. } = state;
        if state.pending.len() >= options.depth {
            counts.full += 1;
            return Err(request);
        }
        let mut takes = rng.duration(options.latency);
        if rng.chance(options.slow) {
            counts.slow += 1;
            takes += rng.duration(options.slow_by);
        }
        let fails = rng.chance(options.errors);
        state.pending.push((state.now.get() + takes, fails, request));
        Ok(())
    }

    fn poll(&mut self, done: &mut dyn FnMut(Done)) {
        let state = &mut *self.state.borrow_mut();
        let now = state.now.get();
        if now < state.stuck_until {
            return;
        }
        loop {
            // In the order in which they are due: what is polled late was executed in time.
            let due = (0..state.pending.len()).filter(|&n| state.pending[n].0 <= now);
            let Some(at) = due.min_by_key(|&n| state.pending[n].0) else { return };
            let (_, fails, request) = state.pending.remove(at);
            state.counts.requests += 1;
            if !fails {
                done(state.execute(request));
                continue;
            }
            state.counts.errors += 1;
            let status = match request.op {
                Op::Read => Status::UNRECOVERED_READ,
                _ => Status::WRITE_FAULT,
            };
            done(Done { tag: request.tag, status, buf: request.buf });
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }
}
