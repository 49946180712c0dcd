//! The reactor of `rig-host`: a turn of the host, what came of it, what is submitted next, and
//! one request of the control socket.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use moorline_nvme::host::{CtrlId, Host, HostEvent, Io, IoDone, IoOp};
use moorline_stack::time::earliest;
use moorline_stack::{Instant, Transport};
use serde_json::json;

use super::load::Load;
use super::tally::Tally;
use super::us;
use super::verify::Verify;
use crate::cli::PollMode;
use crate::out;
use crate::serve::control::Control;
use crate::signals::Stop;

/// How long an adaptive loop spins before it sleeps.
const SPIN: Duration = Duration::from_micros(50);
/// More than commands may take to end, and blocks to be read, once all targets are there.
pub const READ_BACK_TIMEOUT: Duration = Duration::from_secs(40);
/// More connections than there are.
const CONNS_MAX: usize = 1 << 16;

/// A host, its loads, and what is told of them.
pub struct Reactor<T: Transport> {
    host: Host<T>,
    /// In the order of their ids; the one under load is the first.
    ctrls: Vec<CtrlId>,
    healthy: SocketAddr,
    /// The slots of its connections; none of kernel sockets.
    slots: Vec<u32>,
    load: Load,
    /// Of the controllers after the first, or none.
    verifies: Vec<Verify>,
    control: Option<Control>,
    /// How long turns took, microseconds.
    turns: Histogram<u64>,
    /// Times that the one under load was lost.
    losses: u64,
    /// SYNs sent until the last tick.
    syns: u64,
    busy_at: Instant,
    /// When the last turn was over.
    turn_end: Instant,
}

impl<T: Transport> Reactor<T> {
    /// A reactor of a host whose controllers are being connected.
    ///
    /// # Errors
    /// None that can happen: the histogram's bounds are fixed.
    pub fn new(
        host: Host<T>,
        ctrls: Vec<CtrlId>,
        healthy: SocketAddr,
        load: Load,
        verifies: Vec<Verify>,
        control: Option<Control>,
    ) -> Result<Self> {
        Ok(Self {
            host,
            ctrls,
            healthy,
            slots: Vec::new(),
            load,
            verifies,
            control,
            turns: Histogram::new_with_bounds(1, 10_000_000, 2)?,
            losses: 0,
            syns: 0,
            busy_at: Instant::ZERO,
            turn_end: Instant::monotonic(),
        })
    }

    /// Runs until it is stopped; then reads back what was written, unless it is orphaned.
    ///
    /// # Errors
    /// When nobody hears what is told, or the host cannot wait.
    pub fn until(mut self, stop: &Stop, orphaned: &AtomicBool, poll: PollMode) -> Result<()> {
        while !stop.requested() {
            self.turn(poll)?;
        }
        self.verifies.iter_mut().for_each(Verify::finish);
        let end = Instant::monotonic() + READ_BACK_TIMEOUT;
        while !self.verifies.iter().all(Verify::is_done)
            && !orphaned.load(Ordering::Relaxed)
            && Instant::monotonic() < end
        {
            self.turn(poll)?;
        }
        self.end()
    }

    fn turn(&mut self, poll: PollMode) -> Result<()> {
        let now = Instant::monotonic();
        self.load.turn_begins(now - self.turn_end);
        self.host.turn(now);
        while let Some(done) = self.host.poll_io() {
            self.busy_at = now;
            self.ended(now, done);
        }
        self.events(now)?;
        self.submit(now);
        if let Some(control) = &mut self.control {
            control.turn(now, &mut self.host);
        }
        self.host.flush(now);
        self.turn_end = Instant::monotonic();
        let took = self.turn_end - now;
        self.turns.saturating_record(took.as_micros() as u64);
        self.load.turn_ended(took);
        if let Some(control) = &mut self.control {
            control.took(took);
        }
        self.tick(now)?;
        if poll == PollMode::Adaptive && now.since(self.busy_at) > SPIN {
            self.wait()?;
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<()> {
        let mut until = Some(self.load.next_tick);
        for verify in &self.verifies {
            until = earliest(until, verify.poll_timeout());
        }
        let also = self.control.as_ref().map(|control| {
            until = earliest(until, control.poll_timeout());
            control.fd()
        });
        self.host.wait(until, also.as_slice()).context("waiting")?;
        self.turn_end = Instant::monotonic();
        Ok(())
    }

    fn tick(&mut self, now: Instant) -> Result<()> {
        let (host, slots) = (&self.host, &self.slots);
        let Some(mut line) = self.load.tick(now, Instant::monotonic, || retransmits(host, slots))
        else {
            return Ok(());
        };
        let syns = self.host.transport().stats().syns;
        line["syns"] = (syns - self.syns).into();
        self.syns = syns;
        out::line(format_args!("{line}"))
    }

    fn ended(&mut self, now: Instant, done: IoDone) {
        match self.ctrls.binary_search(&done.ctrl) {
            Ok(0) => {
                let (host, slots) = (&self.host, &self.slots);
                self.load.ended(now, done, || retransmits(host, slots));
            }
            Ok(index) => self.verifies[index - 1].ended(done.tag, done.status, done.buf),
            Err(_) => unreachable!("I/O is submitted to our controllers only"),
        }
    }

    fn events(&mut self, now: Instant) -> Result<()> {
        while let Some(event) = self.host.poll_event() {
            if let Some(control) = &mut self.control {
                control.event(now, &event);
            }
            let (ctrl, what, why) = match event {
                HostEvent::Live { ctrl, .. } => (ctrl, "live", None),
                HostEvent::Disconnected { ctrl, failure } => (ctrl, "disconnected", Some(failure)),
                HostEvent::Failed { ctrl, failure } => (ctrl, "failed", Some(failure)),
                HostEvent::Closed { .. } | HostEvent::Aen { .. } => continue,
            };
            let Ok(index) = self.ctrls.binary_search(&ctrl) else { continue };
            let is_live = what == "live";
            self.losses += u64::from(index == 0 && !is_live);
            if index == 0 && is_live {
                let conns = self.host.transport().connections_from(0, CONNS_MAX).into_iter();
                let ours = conns.filter(|conn| conn.remote == self.healthy);
                self.slots = ours.map(|conn| conn.conn.index).collect();
            }
            if let Some(verify) = index.checked_sub(1).and_then(|k| self.verifies.get_mut(k)) {
                if is_live { verify.live() } else { verify.lost() }
            }
            let why = why.map(|failure| failure.to_string());
            let line = json!({ "event": what, "ctrl": index, "t_us": us(now), "why": why });
            out::line(format_args!("{line}"))?;
        }
        Ok(())
    }

    fn submit(&mut self, now: Instant) {
        let Self { host, ctrls, load, verifies, .. } = self;
        let blocks = |host: &Host<T>, ctrl| host.controller(ctrl).namespace(1).map(|ns| ns.blocks);
        if let Some(blocks) = blocks(host, ctrls[0]) {
            while let Some(io) = load.next_io(blocks) {
                if let Err(io) = host.submit(now, ctrls[0], 0, io) {
                    load.refused(io);
                    break;
                }
            }
        }
        for (verify, &ctrl) in verifies.iter_mut().zip(&ctrls[1..]) {
            while let Some(next) = verify.next_command(now) {
                let (tag, lba) = (next.tag, next.lba);
                let op = if next.is_read { IoOp::Read } else { IoOp::Write { fua: false } };
                let buf = Some(next.buf);
                let io = Io { tag, op, nsid: 1, lba, blocks: 1, buf, buf_offset: 0 };
                if let Err(io) = host.submit(now, ctrl, 0, io) {
                    verify.refused(tag, io.buf.expect("it was submitted with one"));
                    break;
                }
            }
        }
    }

    fn end(self) -> Result<()> {
        let f = self.host.figures();
        let mut tally = Tally::default();
        self.verifies.iter().for_each(|verify| tally.add(verify.tally()));
        let verify = (!self.verifies.is_empty()).then(|| tally.report());
        let line = json!({
            "event": "end", "t_us": us(Instant::monotonic()),
            "healthy_retransmits": retransmits(&self.host, &self.slots),
            "ios": self.load.ios_all, "errors": self.load.errors, "losses": self.losses,
            "keep_alives": f.keep_alives,
            "ka_late_max_us": f.keep_alive_late_max.as_micros() as u64,
            "deadlines": f.deadlines, "deadlines_early": f.deadlines_early,
            "deadlines_late": f.deadlines_late,
            "deadline_late_us_p999": f.deadline_late_us.quantile(0.999),
            "deadline_late_max_us": f.deadline_late_max.as_micros() as u64,
            "events_per_turn_max": f.events_per_turn_max,
            "deadlines_per_turn_max": f.deadlines_per_turn_max, "attempts": f.attempts,
            "turn_us_p999": self.turns.value_at_quantile(0.999), "turn_us_max": self.turns.max(),
            "syns": self.host.transport().stats().syns, "verify": verify,
        });
        out::line(format_args!("{line}"))
    }
}

/// Segments that the healthy controller's connections have sent again.
fn retransmits<T: Transport>(host: &Host<T>, slots: &[u32]) -> u64 {
    let conns = slots.iter().flat_map(|&slot| host.transport().connections_from(slot, 1));
    conns.map(|conn| u64::from(conn.retransmits)).sum()
}
