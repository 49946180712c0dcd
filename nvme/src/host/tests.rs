//! The host against a target of a few lines ([`super::fake`]), in virtual time.

use std::collections::BTreeMap;
use std::time::Duration;

use moorline_stack::mem::{Arena, IoBuf};
use moorline_stack::pipe::PipeOptions;

use super::fake::{BLOCK, Hook, World, config};
use super::*;
use crate::pdu::{Data, Fatal, Pdu, R2T};
use crate::spec::{Cqe, Sqe, Status};

fn io(op: IoOp, lba: u64, blocks: u32, buf: Option<IoBuf>) -> Io {
    Io { tag: lba, op, nsid: 1, lba, blocks, buf, buf_offset: 0 }
}

fn buf(len: usize) -> IoBuf {
    Arena::new(len).take(len).unwrap()
}

fn done(world: &mut World) -> IoDone {
    world.until(|world| world.host.poll_io())
}

#[test]
fn connects_identifies_and_reads() {
    let mut world = World::new(1, PipeOptions::default());
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
