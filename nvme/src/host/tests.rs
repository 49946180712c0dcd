//! The host against a target of a few lines ([`super::fake`]), in virtual time.

use std::collections::BTreeMap;
use std::time::Duration;

use moorline_stack::Instant;
use moorline_stack::mem::{Arena, IoBuf};
use moorline_stack::pipe::PipeOptions;
use moorline_stack::transport::{Cause as TcpCause, ConnOptions};

use super::fake::{BLOCK, BLOCKS, Hook, World, config};
use super::*;
use crate::pdu::{Pdu, R2T, TermReq};
use crate::spec::{Cqe, Sqe, Status};

fn io(op: IoOp, lba: u64, blocks: u32, buf: Option<IoBuf>) -> Io {
    Io { tag: lba, op, nsid: 1, lba, blocks, buf, buf_offset: 0 }
}

fn buf(len: usize) -> IoBuf {
    Arena::new(len).take(len).unwrap()
}

const WRITE: IoOp = IoOp::Write { fua: false };

fn filled(len: usize, seed: u8) -> IoBuf {
    let mut buf = buf(len);
    buf.iter_mut().enumerate().for_each(|(i, byte)| *byte = seed ^ (i / 7) as u8);
    buf
}

fn done(world: &mut World) -> IoDone {
    world.until(|world| world.host.poll_io())
}

fn world() -> World {
    World::new(1, PipeOptions::default())
}

fn failure(world: &mut World) -> Failure {
    match world.event() {
        HostEvent::Failed { failure, .. } => failure,
        event => panic!("{event:?}"),
    }
}

/// Runs for a while.
fn run_for(world: &mut World, time: Duration) {
    let end = world.now + time;
    while world.now < end {
        world.turn();
        world.now = world.next().map_or(end, |next| next.clamp(world.now, end));
    }
    world.turn();
}

#[test]
fn connects_identifies_and_reads() {
    let mut world = world();
    let id = world.live(CtrlConfig { io_queues: 2, ..config() });
    let info = world.host.controller(id).clone();
    assert_eq!((info.cntlid, info.io_queues, info.commands_max), (0x17, 2, 127));
    assert_eq!((info.serial.as_str(), info.model.as_str()), ("SERIAL", "fake"));
    assert_eq!((info.transfer_max, info.in_capsule_max), (128 << 10, 4096));
    assert_eq!(info.kato, Duration::from_secs(5));
    let [namespace] = info.namespaces[..] else { panic!("{:?}", info.namespaces) };
    assert_eq!((namespace.nsid, namespace.block_size), (1, 512));
    assert_eq!((namespace.nguid, namespace.uuid), ([0xAB; 16], [0xCD; 16]));

    world.fake.storage[7 * BLOCK..8 * BLOCK].fill(0x77);
    world.host.submit(world.now, id, 1, io(IoOp::Read, 7, 1, Some(buf(BLOCK)))).unwrap();
    let done = done(&mut world);
    assert_eq!((done.ctrl, done.qpair, done.tag), (id, 1, 7));
    assert_eq!(done.status, Status::SUCCESS);
    assert!(done.buf.unwrap().iter().all(|byte| *byte == 0x77));
}

#[test]
fn bring_up_waits_for_no_timer() {
    for io_queues in 1..=3 {
        let mut world = world();
        let started = world.now;
        world.live(CtrlConfig { io_queues, ..config() });
        let took = world.now - started;
        assert!(took < Duration::from_millis(50), "{io_queues} I/O queues: {took:?}");
    }
}

/// Writes and reads back 300 KiB: in capsules and by R2T, split by MDTS, in both directions.
fn round_trip(config: CtrlConfig, set: impl Fn(&mut World)) -> World {
    let mut world = World::new(3, PipeOptions { cut_max: 900, ..PipeOptions::default() });
    set(&mut world);
    let id = world.live(config);
    let len = 600 * BLOCK;
    for (lba, blocks) in [(0, 600), (1000, 8), (1008, 1)] {
        let mut write = io(WRITE, lba, blocks, Some(filled(len + 100, lba as u8)));
        write.buf_offset = 100;
        world.host.submit(world.now, id, 0, write).unwrap();
        assert_eq!(done(&mut world).status, Status::SUCCESS);
        let mut read = io(IoOp::Read, lba, blocks, Some(buf(len + 4)));
        read.buf_offset = 4;
        world.host.submit(world.now, id, 0, read).unwrap();
        let done = done(&mut world);
        assert_eq!(done.status, Status::SUCCESS);
        let bytes = blocks as usize * BLOCK;
        let buf = done.buf.unwrap();
        assert!(buf[4..4 + bytes] == filled(len + 100, lba as u8)[100..100 + bytes]);
        assert!(buf[..4].iter().chain(&buf[4 + bytes..]).all(|byte| *byte == 0));
    }
    world
}

#[test]
fn io_beyond_mdts_is_split_over_one_buffer() {
    let world = round_trip(config(), |_| {});
    let lens = |opcode| {
        let of = world.fake.commands(1, opcode);
        of.iter().map(|sqe| (sqe.cdw10_11(), sqe.cdw12.get() + 1)).collect::<Vec<_>>()
    };
    let expected = [(0, 256), (256, 256), (512, 88), (1000, 8), (1008, 1)];
    assert_eq!(lens(0x01), expected);
    assert_eq!(lens(0x02), expected);
    // 4 KiB fits in the capsule, 44 KiB does not; MAXH2CDATA 8 KiB cuts the R2Ts' data.
    let ids: Vec<_> = world.fake.commands(1, 0x01).iter().map(|sqe| sqe.sgl_id).collect();
    assert_eq!(ids, [0x5A, 0x5A, 0x5A, 0x01, 0x01]);
    assert_eq!(world.fake.h2c_pdus, 300 * 1024 / 8192 + 1);
}

#[test]
fn digests_alignment_and_flow_control_change_nothing_for_the_data() {
    let digests = || CtrlConfig { hdgst: true, ddgst: true, ..config() };
    round_trip(digests(), |_| {});
    round_trip(CtrlConfig { hpda: 31, ..digests() }, |world| world.fake.knobs.cpda = 31);
    round_trip(CtrlConfig { hpda: 3, ..config() }, |world| world.fake.knobs.cpda = 7);
    round_trip(CtrlConfig { sq_flow_control: true, queue_size: 2, ..config() }, |_| {});
    round_trip(CtrlConfig { queue_size: 3, ..config() }, |world| {
        world.fake.knobs.flow_control = true;
        world.fake.knobs.chunk = 5000;
    });
    round_trip(config(), |world| world.fake.knobs.success_flag = false);
    round_trip(config(), |world| world.fake.knobs.ioccsz = 4);
}

#[test]
fn queue_depth_is_one_less_than_its_size() {
    let mut world = world();
    world.fake.knobs.hook = Box::new(|_| Hook::Ignore);
    let id = world.live(CtrlConfig { queue_size: 5, ..config() });
    for lba in 0..4 {
        world.host.submit(world.now, id, 0, io(IoOp::Read, lba, 1, Some(buf(BLOCK)))).unwrap();
    }
    let refused = io(IoOp::Read, 9, 1, Some(buf(BLOCK)));
    assert_eq!(world.host.submit(world.now, id, 0, refused).unwrap_err().tag, 9);
    run_for(&mut world, Duration::from_secs(1));
    assert_eq!(world.fake.commands(1, 0x02).len(), 4);
}

#[test]
fn sqhd_that_stands_still_stalls_nothing() {
    for sq_flow_control in [false, true] {
        let mut world = world();
        world.fake.knobs.stuck_sqhd = true;
        let config = CtrlConfig { queue_size: 4, sq_flow_control, ..config() };
        let id = world.live(config);
        for lba in 0..20 {
            let write = io(WRITE, lba, 1, Some(buf(BLOCK)));
            world.host.submit(world.now, id, 0, write).unwrap();
            assert_eq!(done(&mut world).status, Status::SUCCESS);
        }
    }
}

#[test]
fn work_without_room_for_all_its_commands_goes_on_as_they_end() {
    let mut world = world();
    world.fake.knobs.mdts = 1; // 8 KiB
    let id = world.live(CtrlConfig { queue_size: 3, ..config() });
    world.host.submit(world.now, id, 0, io(IoOp::Read, 0, 160, Some(buf(80 << 10)))).unwrap();
    let more = io(IoOp::Read, 1, 1, Some(buf(BLOCK)));
    assert!(world.host.submit(world.now, id, 0, more).is_err(), "works stay in order");
    assert_eq!(done(&mut world).status, Status::SUCCESS);
    assert_eq!(world.fake.commands(1, 0x02).len(), 10);
}

#[test]
fn first_failure_is_the_status_of_a_split_io() {
    let mut world = world();
    let mut count = 0;
    world.fake.knobs.hook = Box::new(move |_| {
        count += 1;
        if count == 2 { Hook::Fail(Status::UNRECOVERED_READ) } else { Hook::Serve }
    });
    let id = world.live(config());
    world.host.submit(world.now, id, 0, io(IoOp::Read, 0, 1024, Some(buf(512 << 10)))).unwrap();
    assert_eq!(done(&mut world).status, Status::UNRECOVERED_READ);
    assert_eq!(world.fake.commands(1, 0x02).len(), 4);
    assert!(world.host.poll_io().is_none());
}

#[test]
fn flush_zeroes_and_deallocate_are_single_commands() {
    let mut world = world();
    let id = world.live(config());
    world.fake.storage.fill(0xEE);
    let fua = IoOp::Write { fua: true };
    for (op, blocks) in
        [(IoOp::Flush, 0), (IoOp::WriteZeroes, 16), (IoOp::Deallocate, 20), (fua, 1)]
    {
        let memory = Some(buf(BLOCK));
        world.host.submit(world.now, id, 0, io(op, 32, blocks, memory)).unwrap();
        let done = done(&mut world);
        assert_eq!((done.status, done.buf.is_some()), (Status::SUCCESS, true), "{op:?}");
        match op {
            IoOp::WriteZeroes => assert_eq!(world.fake.storage[47 * BLOCK..][..513][512], 0xEE),
            IoOp::Deallocate => {
                assert!(world.fake.storage[32 * BLOCK..52 * BLOCK].iter().all(|byte| *byte == 0));
                assert_eq!(world.fake.storage[52 * BLOCK], 0xEE);
            }
            _ => {}
        }
    }
    assert_eq!(world.fake.commands(1, 0x00)[0].nsid.get(), 1);
    assert_eq!(world.fake.commands(1, 0x09)[0].cdw11.get(), 1 << 2);
    assert_eq!(world.fake.commands(1, 0x01)[0].cdw12.get(), 1 << 30);
}

#[test]
fn io_that_cannot_be_is_completed_without_a_command() {
    let mut world = world();
    let id = world.live(config());
    let beyond = io(IoOp::Read, BLOCKS - 1, 2, Some(buf(2 * BLOCK)));
    world.host.submit(world.now, id, 0, beyond).unwrap();
    assert!(done(&mut world).status.is(Status::LBA_OUT_OF_RANGE));
    let wraps = io(IoOp::Read, u64::MAX, 2, Some(buf(2 * BLOCK)));
    world.host.submit(world.now, id, 0, wraps).unwrap();
    assert!(done(&mut world).status.is(Status::LBA_OUT_OF_RANGE));
    let nowhere = Io { nsid: 5, ..io(IoOp::Read, 0, 1, Some(buf(BLOCK))) };
    world.host.submit(world.now, id, 0, nowhere).unwrap();
    let ended = done(&mut world);
    assert!(ended.status.is(Status::INVALID_NAMESPACE) && ended.buf.is_some());
    let nothing = io(IoOp::Read, 0, 0, Some(buf(BLOCK)));
    world.host.submit(world.now, id, 0, nothing).unwrap();
    assert_eq!(done(&mut world).status, Status::SUCCESS);
    assert!(world.fake.commands(1, 0x02).is_empty());
}

// What the target does wrong.

fn ok(cid: u16) -> Pdu {
    Pdu::CapsuleResp { cqe: Cqe::new(cid, Status::SUCCESS) }
}

#[test]
fn garbage_and_term_req_end_the_controller() {
    let mut world = world();
    world.live(config());
    world.fake.inject_bytes(1, b"HTTP/1.1 400 Bad Request\r\n\r\n");
    assert!(matches!(failure(&mut world).cause, Cause::Protocol(_)));
    assert_eq!(world.until(|world| world.fake.term_reqs.pop()).fes, 1);

    let mut world = self::world();
    world.live(config());
    let term = TermReq { fes: 3, fei: 0x1234 };
    world.fake.inject(0, &Pdu::C2HTermReq(term));
    let failure = failure(&mut world);
    assert_eq!(failure.cause, Cause::Terminated(term));
    assert_eq!(
        failure.to_string(),
        "target 10.0.0.2:4420: live: the target ended the connection with FES 3 (Header Digest \
         Error), FEI 0x1234"
    );
    run_for(&mut world, Duration::from_millis(100));
    assert!(world.fake.term_reqs.is_empty(), "a TermReq is never answered with one");
}

#[test]
fn failed_write_under_way_returns_its_buffer_only_when_its_pdu_is_out() {
    let mut world = world();
    world.fake.knobs.maxh2cdata = 1 << 20;
    let id = world.live(CtrlConfig {
        conn: ConnOptions { tx_buffer: 4096, ..ConnOptions::default() },
        ..config()
    });
    // R2T for everything, then a failure while the one H2CData PDU is half sent.
    world.fake.knobs.hook = Box::new(|sqe: &Sqe| {
        let r2t = R2T { cccid: sqe.cid.get(), ttag: 1, r2to: 0, r2tl: 64 << 10 };
        Hook::Send(vec![Pdu::R2T(r2t)])
    });
    world.fake.tolerate_stray_data = true;
    world.host.submit(world.now, id, 0, io(WRITE, 0, 128, Some(filled(64 << 10, 1)))).unwrap();
    world.until(|world| (world.fake.stray_bytes > 0).then_some(()));
    assert!(world.fake.stray_bytes < 64 << 10);
    let cid = world.fake.commands(1, 0x01)[0].cid.get();
    let failed = Cqe::new(cid, Status::WRITE_FAULT);
    world.fake.inject(1, &Pdu::CapsuleResp { cqe: failed });
    assert_eq!(done(&mut world).status, Status::WRITE_FAULT);
    world.fake.knobs.hook = Box::new(|_| Hook::Serve);
    world.host.submit(world.now, id, 0, io(IoOp::Read, 0, 1, Some(buf(BLOCK)))).unwrap();
    assert_eq!(done(&mut world).status, Status::SUCCESS, "framing is intact");
    assert_eq!(world.fake.stray_bytes, 64 << 10, "the PDU was finished");
}

// What takes too long.

#[test]
fn each_stage_has_its_deadline() {
    let second = Duration::from_secs(1);
    type Set = fn(&mut World);
    let rows: [(Set, Stage, &str, Duration, Duration); 6] = [
        (|w| w.fake.knobs.silent_ic = true, Stage::InitializeConnection, "ICResp", second, second),
        (
            |w| w.fake.knobs.silent_connect = true,
            Stage::Connect,
            "Connect response",
            2 * second,
            2 * second,
        ),
        (|w| w.fake.knobs.never_ready = true, Stage::Enable, "CSTS.RDY = 1", second, second),
        (
            |w| w.fake.knobs.silent_admin = Some(0x06),
            Stage::Identify,
            "Identify Controller",
            3 * second,
            3 * second,
        ),
        (
            |w| w.fake.knobs.silent_admin = Some(0x09),
            Stage::Identify,
            "Set Features Asynchronous Event Configuration",
            3 * second,
            3 * second,
        ),
        (
            |w| w.host.transport_mut().options_mut().blackhole = true,
            Stage::Tcp,
            "TCP connection",
            second,
            second,
        ),
    ];
    for (set, stage, awaited, at_least, nearly) in rows {
        let mut world = world();
        set(&mut world);
        let start = world.now;
        world.connect(config());
        let failure = failure(&mut world);
        let after = world.now - start;
        assert_eq!((failure.stage, failure.awaited), (stage, awaited), "{failure}");
        assert!(after >= at_least && after < nearly + Duration::from_millis(25), "{after:?}");
        assert!(failure.after <= after && failure.is_retryable());
        run_for(&mut world, Duration::from_secs(2));
        assert!(world.events.is_empty(), "told once");
        assert_eq!(world.host.transport().conns(), 0);
    }
}

#[test]
fn refused_connect_says_what_is_wrong() {
    let refused = |status, dw0| {
        let mut world = world();
        world.fake.knobs.refuse = Some((status, dw0));
        world.connect(config());
        failure(&mut world)
    };
    let wrong_nqn = refused(Status::CONNECT_INVALID_PARAMETERS.with_dnr(), 256 | 1 << 16);
    assert_eq!(
        wrong_nqn.to_string(),
        "target 10.0.0.2:4420: Connect refused: invalid parameters, in SUBNQN (no such subsystem \
         there) (data byte 256)"
    );
    assert!(!wrong_nqn.is_retryable());
    let busy = refused(Status::CONNECT_CONTROLLER_BUSY, 0);
    assert_eq!(busy.to_string(), "target 10.0.0.2:4420: Connect refused: controller busy");
    assert!(busy.is_retryable());
}

#[test]
fn closed_port_is_refused_at_once() {
    let mut world = world();
    let addr = "10.0.0.2:1".parse().unwrap();
    world.connect(CtrlConfig { addr, ..config() });
    let failure = failure(&mut world);
    assert!(matches!(&failure.cause, Cause::Tcp(why) if why.cause == TcpCause::Reset));
    assert!(
        failure.to_string().starts_with("target 10.0.0.2:1: TCP connect: connection refused"),
        "{failure}"
    );
}

#[test]
fn unanswered_io_fails_the_controller_after_its_timeout() {
    let mut world = world();
    world.fake.knobs.hook = Box::new(|_| Hook::Ignore);
    let id = world.live(config());
    let start = world.now;
    world.host.submit(world.now, id, 0, io(IoOp::Read, 0, 1, Some(buf(BLOCK)))).unwrap();
    run_for(&mut world, Duration::from_secs(10));
    world.host.submit(world.now, id, 0, io(IoOp::Read, 1, 1, Some(buf(BLOCK)))).unwrap();
    let failure = failure(&mut world);
    // Its timeout, and one second for its Abort, which the fake answers with "not aborted".
    assert_eq!(world.now - start, Duration::from_secs(31));
    assert_eq!(failure.awaited, "completion of an I/O command");
    assert_eq!(failure.after, Duration::from_secs(31));
    for tag in 0..2 {
        let done = done(&mut world);
        assert!(done.tag == tag && done.status.is(Status::HOST_PATHING_ERROR));
    }
    assert!(world.host.poll_io().is_none());
}

#[test]
fn keep_alive_is_sent_at_half_kato_and_its_answer_is_due() {
    let mut world = world();
    let start = world.now;
    world.live(config());
    run_for(&mut world, Duration::from_secs(10));
    assert_eq!(world.fake.commands(0, 0x18).len(), 4);
    world.fake.knobs.silent_keep_alive = true;
    let failure = failure(&mut world);
    assert_eq!(failure.awaited, "answer to Keep Alive");
    assert_eq!(failure.after, Duration::from_secs(5));
    assert!(world.now - start <= Duration::from_millis(17_600), "{:?}", world.now - start);
}

#[test]
fn traffic_stands_for_keep_alives_where_the_controller_counts_it() {
    let mut world = world();
    world.fake.knobs.tbkas = true;
    let id = world.live(config());
    assert!(world.host.controller(id).tbkas);
    // A command every second, KATO/4 being 1.25 s: no pause without traffic.
    for lba in 0..20 {
        world.host.submit(world.now, id, 0, io(IoOp::Read, lba, 1, Some(buf(BLOCK)))).unwrap();
        assert!(done(&mut world).status.is_success());
        run_for(&mut world, Duration::from_secs(1));
    }
    assert_eq!(world.fake.commands(0, 0x18).len(), 0);
    // Without traffic keep alives go out: every other pause, for an answer is traffic too.
    run_for(&mut world, Duration::from_secs(10));
    let sent = world.fake.commands(0, 0x18).len();
    assert!((3..=5).contains(&sent), "{sent}");
}

/// Commands that end late are old news: their controller may not have heard of us since.
#[test]
fn late_completions_do_not_stand_for_keep_alives() {
    let mut world = world();
    world.fake.knobs.tbkas = true;
    let id = world.live(config());
    world.fake.knobs.hook = Box::new(|_| Hook::Ignore);
    for tag in 0..10 {
        world.host.submit(world.now, id, 0, io(IoOp::Flush, tag, 0, None)).unwrap();
    }
    run_for(&mut world, Duration::from_millis(1));
    let cids: Vec<_> = world.fake.commands(1, 0x00).iter().map(|sqe| sqe.cid.get()).collect();
    for cid in cids {
        run_for(&mut world, Duration::from_secs(1));
        world.fake.inject(1, &ok(cid));
        assert!(done(&mut world).status.is_success());
    }
    let sent = world.fake.commands(0, 0x18).len();
    assert!((3..=5).contains(&sent), "{sent}: every other pause, for an answer is traffic too");
}

#[test]
fn kato_in_use_is_the_one_read_back() {
    let mut world = world();
    world.fake.knobs.kas = 100; // 10 s
    let id = world.live(config());
    assert_eq!(world.host.controller(id).kato, Duration::from_secs(10));
    let set: Vec<_> = world.fake.commands(0, 0x09).iter().map(|sqe| sqe.cdw11.get()).collect();
    assert!(set.contains(&10_000), "{set:?}");
    world.fake.seen.clear();
    run_for(&mut world, Duration::from_secs(21));
    assert!((4..=5).contains(&world.fake.commands(0, 0x18).len()));
}

// Loss, and the end.

#[test]
fn lost_connection_ends_everything_once() {
    for qid in [0, 1, 2] {
        let mut world = world();
        world.fake.knobs.hook = Box::new(|_| Hook::Ignore);
        let id = world.live(CtrlConfig { io_queues: 2, ..config() });
        for tag in 0..20 {
            let op = if tag % 2 == 0 { IoOp::Read } else { WRITE };
            let io = io(op, tag, 300, Some(buf(300 * BLOCK)));
            world.host.submit(world.now, id, tag as usize % 2, io).unwrap();
        }
        world.fake.knobs.silent_admin = Some(0x02);
        let log = AdminCommand::log_page(2, 0, false, 0, 512);
        world.host.admin(world.now, id, 77, log).unwrap();
        run_for(&mut world, Duration::from_millis(5));
        world.fake.reset(world.now, qid);
        let failure = failure(&mut world);
        assert_eq!((failure.qid, failure.stage), (qid, Stage::Live));
        assert!(matches!(&failure.cause, Cause::Tcp(why) if why.cause == TcpCause::Reset));
        let mut seen = BTreeMap::new();
        while let Some(done) = world.host.poll_io() {
            assert!(done.status.is(Status::HOST_PATHING_ERROR) && done.buf.is_some());
            *seen.entry(done.tag).or_insert(0) += 1;
        }
        assert_eq!(seen.len(), 20);
        assert!(seen.values().all(|times| *times == 1));
        let admin = world.host.poll_admin().unwrap();
        assert!(admin.tag == 77 && admin.status().is(Status::HOST_PATHING_ERROR));
        let late = io(IoOp::Read, 0, 1, Some(buf(BLOCK)));
        assert!(world.host.submit(world.now, id, 0, late).is_err());
        run_for(&mut world, Duration::from_secs(2));
        assert_eq!(world.host.transport().conns(), 0);
        assert!(world.events.is_empty());
    }
}

#[test]
fn disconnect_waits_for_io_then_shuts_down_and_closes() {
    let mut world = world();
    let id = world.live(config());
    world.host.submit(world.now, id, 0, io(IoOp::Read, 0, 8, Some(buf(4096)))).unwrap();
    world.host.disconnect(world.now, id);
    let late = io(IoOp::Read, 0, 1, Some(buf(BLOCK)));
    assert!(world.host.submit(world.now, id, 0, late).is_err());
    assert_eq!(world.event(), HostEvent::Closed { ctrl: id });
    assert_eq!(done(&mut world).status, Status::SUCCESS);
    let cc = world.fake.seen.iter().rev().find(|(_, sqe)| sqe.cdw11.get() == 0x14).unwrap().1;
    assert_eq!(cc.cdw12.get() >> 14 & 3, 1, "CC.SHN");
    assert_eq!(world.host.transport().conns(), 0);
}

#[test]
fn shutdown_is_bounded() {
    let mut world = world();
    world.fake.knobs.hook = Box::new(|_| Hook::Ignore);
    world.fake.knobs.silent_shutdown = true;
    let id = world.live(config());
    world.host.submit(world.now, id, 0, io(IoOp::Read, 0, 1, Some(buf(BLOCK)))).unwrap();
    let start = world.now;
    world.host.disconnect(world.now, id);
    assert_eq!(world.event(), HostEvent::Closed { ctrl: id });
    let after = world.now - start;
    assert!(after >= Duration::from_secs(4) && after < Duration::from_millis(4100), "{after:?}");
    assert!(done(&mut world).status.is(Status::ABORTED_BY_HOST));
}

#[test]
fn disconnect_while_connecting_closes_at_once() {
    let mut world = world();
    world.fake.knobs.silent_ic = true;
    let id = world.connect(config());
    run_for(&mut world, Duration::from_millis(100));
    world.host.disconnect(world.now, id);
    assert_eq!(world.event(), HostEvent::Closed { ctrl: id });
}

#[test]
fn a_place_is_used_again_under_another_generation() {
    let mut world = world();
    let first = world.live(config());
    world.host.disconnect(world.now, first);
    assert_eq!(world.event(), HostEvent::Closed { ctrl: first });
    let second = world.live(config());
    assert_eq!(second.index, first.index);
    assert_ne!(second.generation, first.generation);
}

#[test]
fn events_are_told_and_asked_for_again() {
    let mut world = world();
    let id = world.live(config());
    run_for(&mut world, Duration::from_millis(10));
    assert_eq!(world.fake.aers.len(), 4);
    world.fake.complete_aer(0x0004_0002);
    assert_eq!(world.event(), HostEvent::Aen { ctrl: id, kind: 2, info: 0, lid: 4 });
    run_for(&mut world, Duration::from_millis(10));
    assert_eq!(world.fake.aers.len(), 4);
}

#[test]
fn admin_commands_of_the_caller_pass() {
    let mut world = world();
    let id = world.live(config());
    world.host.admin(world.now, id, 5, AdminCommand::log_page(2, 0, false, 0, 512)).unwrap();
    let done = world.until(|world| world.host.poll_admin());
    assert_eq!((done.tag, done.status()), (5, Status::SUCCESS));
    assert_eq!(done.data, [0x5A; 512]);
    let unknown = AdminCommand { opcode: 0x84, ..AdminCommand::default() };
    world.host.admin(world.now, id, 6, unknown).unwrap();
    assert_eq!(world.until(|world| world.host.poll_admin()).status(), Status::INVALID_OPCODE);
}

#[test]
fn configuration_that_cannot_work_is_an_error() {
    let mut world = world();
    let mut refused = |config: CtrlConfig| {
        let error = world.host.connect(Instant::ZERO, config).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        error.to_string()
    };
    assert!(refused(CtrlConfig { queue_size: 1, ..config() }).contains("queue size 1"));
    assert!(refused(CtrlConfig { io_queues: 999, ..config() }).contains("999"));
    assert!(refused(CtrlConfig { hpda: 32, ..config() }).contains("HPDA"));
    assert!(refused(CtrlConfig { subnqn: "nqn".repeat(90), ..config() }).contains("NQN"));
}

/// Random I/O over a rough network, checked against a model of the blocks.
#[test]
fn random_io_matches_a_model() {
    for seed in 0..6 {
        let rough = PipeOptions {
            cut_max: 1 + 700 * seed as usize,
            stall: 0.01,
            window_max: 9000,
            ..PipeOptions::default()
        };
        let mut world = World::new(seed, rough);
        let digests = seed % 2 == 1;
        let id = world.live(CtrlConfig {
            hdgst: digests,
            ddgst: digests,
            io_queues: 2,
            queue_size: 9,
            ..config()
        });
        let mut random = seed * 2 + 1;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) % below
        };
        let mut model = vec![0u8; BLOCKS as usize]; // each block's fill
        let mut reads = BTreeMap::new();
        let (mut busy, mut ended) = (vec![false; 64], 0);
        for tag in 0..300u64 {
            // Each I/O has a stripe of 128 blocks to itself while it is under way.
            let stripe = loop {
                let stripe = next(64) as usize;
                if !busy[stripe] {
                    break stripe;
                }
                if let Some(done) = world.host.poll_io() {
                    ended += 1;
                    busy[(done.tag % 64) as usize] = false;
                    check(&mut reads, done);
                } else {
                    world.turn();
                    world.now = world.next().unwrap().max(world.now);
                }
            };
            let blocks = 1 + next(127) as u32;
            let first = stripe as u64 * 128 + next(128 - u64::from(blocks) + 1);
            let range = first as usize..first as usize + blocks as usize;
            let mut memory = buf(blocks as usize * BLOCK);
            let key = tag * 64 + stripe as u64;
            let op = match next(3) {
                0 => {
                    memory.fill(tag as u8);
                    model[range.clone()].fill(tag as u8);
                    WRITE
                }
                1 => {
                    model[range.clone()].fill(0);
                    IoOp::WriteZeroes
                }
                _ => {
                    reads.insert(key, model[range.clone()].to_vec());
                    IoOp::Read
                }
            };
            let io = Io { tag: key, ..io(op, first, blocks, Some(memory)) };
            match world.host.submit(world.now, id, (tag % 2) as usize, io) {
                Ok(()) => busy[stripe] = true,
                Err(io) => {
                    // Full: as if it had never been asked for, but for the model.
                    reads.remove(&io.tag);
                    let mut again = Some(io);
                    while let Some(io) = again.take() {
                        if io.op == IoOp::Read {
                            reads.insert(io.tag, model[range.clone()].to_vec());
                        }
                        if let Err(io) = world.host.submit(world.now, id, (tag % 2) as usize, io) {
                            again = Some(io);
                            let done = done(&mut world);
                            ended += 1;
                            busy[(done.tag % 64) as usize] = false;
                            check(&mut reads, done);
                        }
                    }
                    busy[stripe] = true;
                }
            }
        }
        while ended < 300 {
            let done = done(&mut world);
            ended += 1;
            check(&mut reads, done);
        }
        assert!(world.host.poll_io().is_none() && reads.is_empty());
    }
}

fn check(reads: &mut BTreeMap<u64, Vec<u8>>, done: IoDone) {
    assert_eq!(done.status, Status::SUCCESS);
    let Some(expected) = reads.remove(&done.tag) else { return };
    let buf = done.buf.unwrap();
    for (block, fill) in buf.chunks(BLOCK).zip(expected) {
        assert!(block.iter().all(|byte| *byte == fill));
    }
}

#[test]
fn a_deadline_that_a_turn_passed_over_is_counted_as_late() {
    let mut world = World::new(1, PipeOptions::default());
    let id = world.live(config());
    let due = world.host.entry(id).poll_timeout().unwrap();
    world.host.deadlines.set(id.index, None);
    world.host.turn(due);
    world.host.deadlines.set(id.index, Some(due));
    world.host.turn(due + Duration::from_nanos(1));
    assert_eq!(world.host.figures().deadlines_late, 1);
    let pdus = world.host.figures().pdus_per_turn;
    assert!(pdus.max() > 0 && pdus.len() > 3, "each turn is counted");
}
