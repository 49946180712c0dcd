//! Each fault of a target, met by our own host over a pipe, in virtual time: each wait ends at its
//! own deadline with the failure that says what was awaited, and the host is back when the fault
//! is gone.

use std::collections::BTreeSet;
use std::time::Duration;

use moorline_stack::pipe::PipeOptions;
use moorline_stack::rng::Rng;
use moorline_stack::transport::{Cause as TcpCause, Stage as TcpStage};

use super::tests::{Pair, config, io, ms};
use super::{Fault, FaultScope, Hold, TargetConfig};
use crate::host::{
    Cause, CtrlConfig, CtrlId, CtrlState, Failure, HostEvent, Io, IoOp, Reconnect, Stage, Timeouts,
};
use crate::pdu::{Fatal, TermReq};
use crate::spec::Status;

const NAME: u64 = 7;
const PORT: u16 = 4420;

fn pair() -> Pair {
    Pair::new(1, PipeOptions::default(), TargetConfig::default())
}

impl Pair {
    fn add(&mut self, fault: Fault) -> u64 {
        let scope = FaultScope { port: Some(PORT), ..FaultScope::default() };
        self.target.add_fault(self.now, NAME, fault, scope).unwrap()
    }

    fn clear(&mut self) {
        self.target.remove_fault(self.now, NAME).unwrap();
        assert!(self.target.core.faults.is_none());
    }

    /// What becomes of a controller that is lost or never live, and after how long.
    fn lost(&mut self) -> (Failure, Duration) {
        let start = self.now;
        let failure = self.run_until(|pair| match pair.host.poll_event()? {
            HostEvent::Disconnected { failure, .. } | HostEvent::Failed { failure, .. } => {
                Some(failure)
            }
            event => panic!("{event:?}"),
        });
        (failure, self.now - start)
    }

    /// A controller that tries again: why its first attempt fails, and after how long.
    fn tried(&mut self, config: CtrlConfig) -> (CtrlId, Failure, Duration) {
        let config = CtrlConfig { reconnect: Some(Reconnect::default()), ..config };
        let ctrl = self.host.connect(self.now, config).unwrap();
        let (failure, after) = self.lost();
        (ctrl, failure, after)
    }

    fn until_live(&mut self) {
        self.run_until(|pair| {
            matches!(pair.host.poll_event()?, HostEvent::Live { .. }).then_some(())
        });
    }

    /// Write and read work.
    fn works(&mut self, ctrl: CtrlId) {
        let buf = self.buf(512, 7);
        let done = self.io(ctrl, io(IoOp::Write { fua: false }, 1, 9, 1, Some(buf)));
        assert_eq!(done.status, Status::SUCCESS);
        let buf = self.buf(512, 0);
        let done = self.io(ctrl, io(IoOp::Read, 1, 9, 1, Some(buf)));
        assert_eq!((done.status, done.buf.unwrap()[511]), (Status::SUCCESS, 7));
        assert!(self.target.core.pool.is_whole());
    }

    /// The fault goes, and the controller that it kept away is there again.
    fn heals(&mut self, ctrl: CtrlId) {
        self.clear();
        self.until_live();
        self.works(ctrl);
    }
}

/// A little later than at once, and no more.
fn is_at(after: Duration, deadline: Duration) -> bool {
    (deadline..deadline + ms(1)).contains(&after)
}

#[test]
fn each_stage_that_is_held_ends_at_its_own_deadline_and_heals() {
    let t = Timeouts::default();
    for (hold, stage, awaited, deadline) in [
        (Hold::IcReq, Stage::InitializeConnection, "ICResp", t.icresp),
        (Hold::Connect, Stage::Connect, "Connect response", t.connect),
        (Hold::Property, Stage::Enable, "Property Get CAP", t.connect_total),
    ] {
        let mut pair = pair();
        pair.add(Fault::Hold(hold));
        let (ctrl, failure, after) = pair.tried(config());
        assert_eq!((failure.stage, failure.awaited), (stage, awaited), "{failure}");
        assert_eq!(failure.cause, Cause::Timeout);
        assert!(is_at(after, deadline), "{hold:?}: {after:?}");
        assert!(pair.target.fault_hits(NAME) > 0);
        pair.heals(ctrl);
    }
}

#[test]
fn a_controller_that_is_busy_or_whose_port_is_closed_is_tried_until_it_is_not() {
    let mut pair = pair();
    pair.add(Fault::Busy);
    let (ctrl, failure, _) = pair.tried(config());
    let status = Status::CONNECT_CONTROLLER_BUSY;
    assert_eq!(failure.cause, Cause::ConnectRefused { status, dw0: 0 });
    pair.run_for(ms(10_000));
    assert!(pair.target.fault_hits(NAME) > 5);
    pair.heals(ctrl);

    let mut pair = self::pair();
    pair.add(Fault::PortClosed);
    let (ctrl, failure, _) = pair.tried(config());
    let Cause::Tcp(why) = &failure.cause else { panic!("{failure}") };
    assert_eq!((why.cause, why.stage), (TcpCause::Reset, TcpStage::SynSent));
    pair.heals(ctrl);
}

#[test]
fn a_port_that_two_faults_closed_is_open_when_both_are_gone() {
    let mut pair = pair();
    let port = Some(PORT);
    for (name, port) in [(1, port), (2, None), (3, Some(PORT + 1))] {
        let scope = FaultScope { port, ..FaultScope::default() };
        pair.target.add_fault(pair.now, name, Fault::PortClosed, scope).unwrap();
    }
    for name in [1, 2] {
        let (_, failure, _) = pair.tried(config());
        assert!(matches!(failure.cause, Cause::Tcp(_)), "{failure}");
        pair.target.remove_fault(pair.now, name).unwrap();
    }
    pair.until_live();
}

#[test]
fn connections_that_are_reset_are_made_again() {
    let mut pair = pair();
    let reconnect = Some(Reconnect::default());
    let ctrl = pair.connect(CtrlConfig { reconnect, ..config() });
    let elsewhere = FaultScope { port: Some(PORT + 1), ..FaultScope::default() };
    assert_eq!(pair.target.add_fault(pair.now, 1, Fault::Reset, elsewhere).unwrap(), 0);
    assert_eq!(pair.add(Fault::Reset), 2);
    let (failure, _) = pair.lost();
    let Cause::Tcp(why) = &failure.cause else { panic!("{failure}") };
    assert_eq!(why.cause, TcpCause::Reset);
    assert!(pair.target.core.faults.is_none(), "it is over at once");
    pair.until_live();
    pair.works(ctrl);
}

#[test]
fn keep_alives_that_are_not_answered_end_the_controller_at_kato() {
    let mut pair = pair();
    let kato = ms(2000);
    let reconnect = Some(Reconnect::default());
    let ctrl = pair.connect(CtrlConfig { kato, reconnect, ..config() });
    pair.works(ctrl);
    pair.add(Fault::Hold(Hold::KeepAlive));
    let (failure, after) = pair.lost();
    assert_eq!((failure.stage, &failure.cause), (Stage::Live, &Cause::Timeout), "{failure}");
    assert!((kato..kato * 3 / 2 + ms(1)).contains(&after), "{after:?}");
    assert_eq!(pair.target.stats().keep_alive_expired, 0, "the target heard them");
    pair.heals(ctrl);
}

#[test]
fn io_that_is_held_is_never_executed_and_ends_at_the_io_timeout() {
    for hold in [Hold::Io, Hold::Completions] {
        for blocks in [1, 64] {
            let mut pair = pair();
            let timeouts = Timeouts { io: ms(1000), admin: ms(500), ..Timeouts::default() };
            let reconnect = Some(Reconnect::default());
            let ctrl = pair.connect(CtrlConfig { timeouts, reconnect, ..config() });
            pair.works(ctrl);
            let before = pair.target.stats();
            pair.add(Fault::Hold(hold));
            let len = blocks as usize * 512;
            let buf = pair.buf(len, 0xAA);
            let write = io(IoOp::Write { fua: false }, 1, 0, blocks, Some(buf));
            pair.host.submit(pair.now, ctrl, 0, write).unwrap();
            let buf = pair.buf(len, 0);
            pair.host.submit(pair.now, ctrl, 0, io(IoOp::Read, 1, 0, blocks, Some(buf))).unwrap();
            let (failure, after) = pair.lost();
            assert_eq!(failure.cause, Cause::Timeout, "{failure}");
            // The abort gets what is left of it, and the controller is reset.
            assert!((ms(1000)..ms(2001)).contains(&after), "{after:?}");
            for _ in 0..2 {
                let done = pair.run_until(|pair| pair.host.poll_io());
                assert!(!done.status.is_success());
            }
            let done = pair.target.stats().writes - before.writes;
            assert_eq!(done, u64::from(hold == Hold::Completions));
            assert_eq!(pair.target.fault_hits(NAME), 2);
            pair.heals(ctrl);
        }
    }
}

#[test]
fn completions_come_so_much_later_and_in_order() {
    let mut pair = pair();
    let ctrl = pair.connect(config());
    pair.works(ctrl);
    pair.add(Fault::Late(ms(50)));
    for blocks in [1, 64] {
        for tag in 0..8 {
            let buf = Some(pair.buf(blocks as usize * 512, 0));
            let read = Io { tag, ..io(IoOp::Read, 1, tag, blocks, buf) };
            pair.host.submit(pair.now, ctrl, 0, read).unwrap();
        }
        pair.run_for(ms(50));
        assert!(pair.host.poll_io().is_none());
        pair.run_for(ms(1));
        for tag in 0..8 {
            let done = pair.host.poll_io().unwrap();
            assert_eq!((done.tag, done.status), (tag, Status::SUCCESS));
        }
    }
    // What is held back when the fault goes is let go at once.
    let start = pair.now;
    pair.host.submit(start, ctrl, 0, io(IoOp::Flush, 1, 0, 1, None)).unwrap();
    pair.run_for(ms(1));
    assert!(pair.host.poll_io().is_none());
    pair.clear();
    pair.run_until(|pair| pair.host.poll_io());
    assert!(is_at(pair.now - start, ms(1)));
    pair.works(ctrl);
}

#[test]
fn a_connection_that_ends_within_a_pdu_is_lost_with_its_io() {
    for (op, blocks) in [(IoOp::Read, 64), (IoOp::Write { fua: false }, 64), (IoOp::Flush, 1)] {
        let mut pair = pair();
        let reconnect = Some(Reconnect::default());
        let ctrl = pair.connect(CtrlConfig { reconnect, ddgst: true, ..config() });
        pair.add(Fault::CloseMidPdu);
        let buf = (op != IoOp::Flush).then(|| pair.buf(64 * 512, 1));
        pair.host.submit(pair.now, ctrl, 0, io(op, 1, 0, blocks, buf)).unwrap();
        let (failure, after) = pair.lost();
        assert_eq!((failure.stage, &failure.cause), (Stage::Live, &Cause::PeerClosed), "{failure}");
        assert!(after < ms(1), "{after:?}");
        let done = pair.run_until(|pair| pair.host.poll_io());
        assert!(done.status.is(Status::HOST_PATHING_ERROR), "{op:?}: {}", done.status);
        pair.clear();
        pair.until_live();
        pair.works(ctrl);
    }
}

#[test]
fn a_target_that_is_frozen_is_lost_when_that_takes_longer_than_the_ack_timeout() {
    for (time, survives) in [(ms(2000), true), (ms(8000), false)] {
        let mut pair = pair();
        let reconnect = Some(Reconnect::default());
        let ctrl = pair.connect(CtrlConfig { reconnect, ..config() });
        pair.works(ctrl);
        let start = pair.now;
        pair.add(Fault::Freeze(time));
        assert_eq!(pair.target.frozen_until(), Some(start + time));
        pair.host.submit(pair.now, ctrl, 0, io(IoOp::Flush, 1, 0, 1, None)).unwrap();
        let done = pair.run_until(|pair| pair.host.poll_io());
        assert_eq!(done.status.is_success(), survives, "{}", done.status);
        if survives {
            assert!(is_at(pair.now - start, time), "{:?}", pair.now - start);
        } else {
            let (failure, _) = pair.lost();
            assert!(matches!(failure.cause, Cause::Tcp(_) | Cause::Timeout), "{failure}");
            pair.until_live();
            assert!(pair.now >= start + time);
        }
        pair.clear();
        pair.works(ctrl);
    }
}

#[test]
fn a_window_that_is_withheld_ends_at_the_hosts_deadlines_and_heals() {
    let mut pair = pair();
    let reconnect = Some(Reconnect::default());
    let kato = ms(2000);
    let ctrl = pair.connect(CtrlConfig { reconnect, kato, ..config() });
    pair.works(ctrl);
    pair.add(Fault::WithholdWindow);
    pair.host.submit(pair.now, ctrl, 0, io(IoOp::Flush, 1, 0, 1, None)).unwrap();
    let (failure, after) = pair.lost();
    assert_eq!((failure.stage, &failure.cause), (Stage::Live, &Cause::Timeout), "{failure}");
    assert!((kato..kato * 3 / 2 + ms(1)).contains(&after), "{after:?}");
    pair.run_until(|pair| pair.host.poll_io());
    pair.run_for(ms(20_000));
    assert_eq!(pair.target.stats().keep_alive_expired, 0, "what was not read is not judged");
    assert!(pair.target.fault_hits(NAME) > 2);
    pair.heals(ctrl);
}

#[test]
fn a_window_that_is_withheld_for_a_while_harms_nobody() {
    let mut pair = pair();
    let ctrl = pair.connect(config());
    pair.add(Fault::WithholdWindow);
    for tag in 0..50 {
        let buf = Some(pair.buf(4096, 5));
        pair.host
            .submit(pair.now, ctrl, 0, io(IoOp::Write { fua: false }, 1, tag, 8, buf))
            .unwrap();
    }
    pair.run_for(ms(1000));
    assert!(pair.host.poll_io().is_none());
    pair.clear();
    for _ in 0..50 {
        let done = pair.run_until(|pair| pair.host.poll_io());
        assert_eq!(done.status, Status::SUCCESS);
    }
    pair.works(ctrl);
}

#[test]
fn a_wrong_data_digest_fails_its_command_and_a_wrong_header_digest_its_connection() {
    let mut pair = pair();
    let ctrl = pair.connect(CtrlConfig { hdgst: true, ddgst: true, ..config() });
    pair.add(Fault::FlipDigest);
    for blocks in [1, 600] {
        let buf = pair.buf(blocks as usize * 512, 0);
        let done = pair.io(ctrl, io(IoOp::Read, 1, 0, blocks, Some(buf)));
        assert!(done.status.is(Status::TRANSIENT_TRANSPORT), "{}", done.status);
    }
    pair.clear();
    pair.works(ctrl);
    pair.add(Fault::FlipDigest);
    pair.host.submit(pair.now, ctrl, 0, io(IoOp::Flush, 1, 0, 1, None)).unwrap();
    let (failure, _) = pair.lost();
    let wrong = matches!(failure.cause, Cause::Protocol(Fatal::HeaderDigest(_)));
    assert!(wrong, "{failure}");
    assert_eq!(pair.target.stats().fatal, 0);
}

#[test]
fn an_offset_that_is_wrong_ends_the_connection() {
    for op in [IoOp::Read, IoOp::Write { fua: false }] {
        let mut pair = pair();
        let reconnect = Some(Reconnect::default());
        let ctrl = pair.connect(CtrlConfig { reconnect, ..config() });
        pair.add(Fault::WrongDatao);
        let buf = pair.buf(64 * 512, 0);
        pair.host.submit(pair.now, ctrl, 0, io(op, 1, 0, 64, Some(buf))).unwrap();
        let (failure, _) = pair.lost();
        assert!(matches!(failure.cause, Cause::Protocol(_)), "{op:?}: {failure}");
        let done = pair.run_until(|pair| pair.host.poll_io());
        assert!(!done.status.is_success());
        pair.heals(ctrl);
    }
}

#[test]
fn each_fatal_error_status_is_told_and_the_controller_is_tried_again() {
    for fes in [1, 2, 3, 4, 5, 6, 99] {
        let mut pair = pair();
        let reconnect = Some(Reconnect::default());
        let ctrl = pair.connect(CtrlConfig { reconnect, ..config() });
        pair.add(Fault::TermReq(fes));
        pair.host.submit(pair.now, ctrl, 0, io(IoOp::Flush, 1, 0, 1, None)).unwrap();
        let (failure, _) = pair.lost();
        assert_eq!(failure.cause, Cause::Terminated(TermReq { fes, fei: 0 }), "{failure}");
        pair.run_until(|pair| pair.host.poll_io());
        pair.heals(ctrl);
    }
}

#[test]
fn a_share_is_drawn_from_its_seed_and_only_a_listeners_commands_meet_it() {
    let held = |seed, port| {
        let mut pair = pair();
        let ctrl = pair.connect(config());
        let scope = FaultScope { port, share: 0.25, seed };
        pair.target.add_fault(pair.now, NAME, Fault::Late(ms(1)), scope).unwrap();
        let late: Vec<bool> = (0..400)
            .map(|lba| {
                let start = pair.now;
                let buf = Some(pair.buf(512, 0));
                pair.io(ctrl, io(IoOp::Read, 1, lba, 1, buf));
                pair.now - start >= ms(1)
            })
            .collect();
        let count = late.iter().filter(|&&late| late).count() as u64;
        assert_eq!(pair.target.fault_hits(NAME), count);
        (late, count)
    };
    let (late, count) = held(1, Some(PORT));
    assert!((60..140).contains(&count), "{count}");
    assert_eq!(held(1, None).0, late);
    assert_ne!(held(2, None).0, late);
    assert_eq!(held(1, Some(PORT + 1)).1, 0);
}

/// A fault of any kind, as the dice fall.
fn any(rng: &mut Rng) -> (Fault, FaultScope) {
    let time = Duration::from_micros(rng.below(2_000_000));
    let hold =
        [Hold::IcReq, Hold::Connect, Hold::Property, Hold::KeepAlive, Hold::Io, Hold::Completions]
            [rng.below(6) as usize];
    let fault = [
        Fault::PortClosed,
        Fault::Reset,
        Fault::WithholdWindow,
        Fault::Hold(hold),
        Fault::Late(time / 8),
        Fault::CloseMidPdu,
        Fault::Freeze(time),
        Fault::FlipDigest,
        Fault::WrongDatao,
        Fault::TermReq(rng.below(8) as u16),
        Fault::Busy,
    ][rng.below(11) as usize];
    let share = [1.0, 0.5, 0.1][rng.below(3) as usize];
    (fault, FaultScope { port: None, share, seed: rng.bits() })
}

/// A read or a write of a few blocks, or what has no data.
fn any_io(rng: &mut Rng, pair: &mut Pair, tag: u64) -> Io {
    let blocks = [1, 16, 100, 600][rng.below(4) as usize];
    let (op, moves) = [
        (IoOp::Read, true),
        (IoOp::Write { fua: false }, true),
        (IoOp::Flush, false),
        (IoOp::WriteZeroes, false),
    ][rng.below(4) as usize];
    let buf = moves.then(|| pair.buf(blocks as usize * 512, tag as u8));
    Io { tag, ..io(op, 1, rng.below(1000), blocks, buf) }
}

#[test]
fn whatever_mixture_of_faults_comes_and_goes_each_io_ends_once_and_the_controller_is_back() {
    for seed in 0..40 {
        let mut rng = Rng::new(seed);
        let pipe = PipeOptions { cut_max: 3000, ..PipeOptions::default() };
        let mut pair = Pair::new(seed, pipe, TargetConfig::default());
        let timeouts = Timeouts { io: ms(300), admin: ms(300), ..Timeouts::default() };
        let (hdgst, ddgst) = (rng.chance(0.5), rng.chance(0.5));
        let sq_flow_control = rng.chance(0.5);
        let reconnect = Some(Reconnect::default());
        let kato = ms(1000);
        let config =
            CtrlConfig { timeouts, reconnect, kato, hdgst, ddgst, sq_flow_control, ..config() };
        let ctrl = pair.connect(config);
        let (mut tag, mut open) = (0, BTreeSet::new());
        for name in 0..60 {
            if rng.chance(0.5) {
                let (fault, scope) = any(&mut rng);
                pair.target.add_fault(pair.now, name, fault, scope).unwrap();
            } else {
                let name = rng.below(name + 1);
                pair.target.remove_fault(pair.now, name).unwrap();
            }
            for _ in 0..rng.below(8) {
                let io = any_io(&mut rng, &mut pair, tag);
                if pair.host.submit(pair.now, ctrl, 0, io).is_ok() {
                    open.insert(tag);
                }
                tag += 1;
            }
            pair.run_for(Duration::from_micros(rng.below(300_000)));
            while pair.host.poll_event().is_some() {}
            while let Some(done) = pair.host.poll_io() {
                assert!(open.remove(&done.tag), "{seed}: {} ended twice", done.tag);
            }
        }
        for name in 0..60 {
            pair.target.remove_fault(pair.now, name).unwrap();
        }
        assert!(pair.target.core.faults.is_none());
        pair.run_for(ms(5000));
        while let Some(done) = pair.host.poll_io() {
            assert!(open.remove(&done.tag), "{seed}: {} ended twice", done.tag);
        }
        assert!(open.is_empty(), "{seed}: {open:?}");
        assert_eq!(pair.host.status(ctrl).state, CtrlState::Live, "{seed}");
        pair.works(ctrl);
    }
}
