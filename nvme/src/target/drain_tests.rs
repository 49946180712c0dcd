//! What ends an association and what does not, and who has to wait for what is left of it: peers
//! written by hand, and a disk that ends nothing until it is told to.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;

use moorline_stack::Transport;
use zerocopy::IntoBytes;

use super::TargetConfig;
use super::raw::{Raw, connect, ms, write};
use crate::bdev::{Bdev, Done, Request};
use crate::pdu::Pdu;
use crate::spec::opcode::fctype;
use crate::spec::{Connect, Cqe, Sqe, Status};

/// Executes nothing: ends what is taken out of `busy` and put to `done`.
#[derive(Debug, Default)]
struct Held {
    busy: Vec<Request>,
    done: Vec<Request>,
}

/// Such a disk. It has a descriptor, so that nobody polls it all the time.
#[derive(Debug)]
struct Disk(Rc<RefCell<Held>>, File);

impl Bdev for Disk {
    fn block_size(&self) -> u32 {
        512
    }

    fn blocks(&self) -> u64 {
        64
    }

    fn submit(&mut self, request: Request) -> Result<(), Request> {
        self.0.borrow_mut().busy.push(request);
        Ok(())
    }

    fn poll(&mut self, done: &mut dyn FnMut(Done)) {
        for Request { tag, buf, .. } in self.0.borrow_mut().done.drain(..) {
            done(Done { tag, status: Status::SUCCESS, buf });
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.1.as_fd())
    }
}

/// A target with such a disk.
fn raw() -> (Raw, Rc<RefCell<Held>>) {
    let held = Rc::new(RefCell::new(Held::default()));
    let disk = Disk(held.clone(), File::open("/dev/null").unwrap());
    (Raw::with(TargetConfig::default(), Box::new(disk)), held)
}

fn release(held: &Rc<RefCell<Held>>) {
    let mut held = held.borrow_mut();
    let busy = std::mem::take(&mut held.busy);
    held.done = busy;
}

/// How a host ends an I/O queue.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Fin,
    Rst,
    Disconnect,
    Violation,
}

impl Raw {
    fn controller(&mut self, cattr: u8) -> (usize, usize) {
        let admin = self.open();
        self.ic(admin, false, false);
        let (mut sqe, data) = connect(0, 0xFFFF, 0);
        sqe.cdw11.set(sqe.cdw11.get() | u32::from(cattr) << 16);
        let cqe = self.command(admin, &sqe, data.as_bytes());
        let enable =
            crate::spec::Property::set(crate::spec::property::CC, crate::spec::Cc::ENABLE.0);
        assert_eq!(self.command(admin, &enable, &[]).status(), Status::SUCCESS);
        (admin, self.io_queue(cqe.dw0.get() as u16, false, false))
    }

    /// A write of a block, which the disk has then.
    fn write(&mut self, peer: usize) {
        let pdu = Pdu::CapsuleCmd { sqe: write(1, 1, true), data_len: 512 };
        self.send_pdu(peer, &pdu, &[1; 512]);
        self.run(ms(2));
    }

    fn end(&mut self, peer: usize, end: End) {
        let id = self.peers[peer].id;
        match end {
            End::Fin => self.pipe.close(self.now, id),
            End::Rst => self.pipe.abort(self.now, id),
            End::Disconnect => {
                let mut sqe = Sqe::fabrics(fctype::DISCONNECT);
                sqe.cid.set(9);
                assert_eq!(self.command(peer, &sqe, &[]).status(), Status::SUCCESS);
                self.run(ms(1100)); // it is closed for us
            }
            End::Violation => self.send(peer, &[0xFF; 8]),
        }
        self.run(ms(5));
    }

    /// A Connect of an admin queue by this host; its completion, if it comes within `within`.
    fn try_admin(&mut self, hostid: u8, within: u64) -> (usize, Option<Cqe>) {
        let peer = self.open();
        self.ic(peer, false, false);
        (peer, self.try_again(peer, hostid, within))
    }

    fn try_again(&mut self, peer: usize, hostid: u8, within: u64) -> Option<Cqe> {
        let (sqe, mut data) = connect(0, 0xFFFF, 0);
        data.hostid = [hostid; 16];
        self.send_pdu(peer, &Pdu::CapsuleCmd { sqe, data_len: 1024 }, data.as_bytes());
        self.run(ms(within));
        self.answer(peer)
    }

    fn answer(&mut self, peer: usize) -> Option<Cqe> {
        match self.peers[peer].pdus.pop()? {
            Pdu::CapsuleResp { cqe } => Some(cqe),
            pdu => panic!("{pdu:?}"),
        }
    }
}

#[test]
fn an_association_is_over_with_any_of_its_queues_unless_that_was_deleted() {
    let alone = Connect::CATTR_IOQ_DELETION;
    for (cattr, busy, end, is_over) in [
        (0, false, End::Fin, false),
        (0, false, End::Rst, true),
        (0, false, End::Disconnect, false),
        (0, false, End::Violation, true),
        (0, true, End::Fin, true),
        (0, true, End::Rst, true),
        (alone, false, End::Rst, false),
        (alone, true, End::Rst, false),
        (alone, false, End::Violation, false),
    ] {
        let (mut raw, held) = raw();
        let (admin, io) = raw.controller(cattr);
        if busy {
            raw.write(io);
        }
        raw.end(io, end);
        let stats = raw.target.stats();
        let is_there = raw.target.controllers_from(0, 1).len() == 1;
        assert_eq!(is_there, !is_over, "{cattr} {busy} {end:?}");
        assert_eq!(stats.stale_writes, u64::from(is_over && busy));
        release(&held);
        // Where the host is told why, it is to close; after a second it is closed for it.
        raw.run(ms(if end == End::Violation { 1100 } else { 0 }));
        assert_eq!(raw.peers[admin].closed, is_over, "{cattr} {busy} {end:?}");
        raw.end(admin, End::Fin);
        let stats = raw.target.stats();
        assert_eq!((stats.conns, stats.controllers, stats.stale_writes), (0, 0, 0));
        assert!(raw.target.core.pool.is_whole());
    }
}

#[test]
fn a_connect_waits_for_the_writes_of_its_hosts_ended_associations_only() {
    let (mut raw, held) = raw();
    let (admin, io) = raw.controller(0);
    raw.write(io);
    raw.end(admin, End::Fin);
    assert_eq!((raw.target.stats().stale_writes, raw.target.stats().controllers), (1, 1));
    // Another host's does not, and this one's does until they are done.
    let (_, answer) = raw.try_admin(8, 2);
    assert_eq!(answer.map(|cqe| cqe.status()), Some(Status::SUCCESS));
    let (waits, answer) = raw.try_admin(7, 1000);
    assert_eq!(answer, None);
    release(&held);
    raw.run(ms(2));
    assert_eq!(raw.answer(waits).map(|cqe| cqe.status()), Some(Status::SUCCESS));
    let stats = raw.target.stats();
    assert_eq!((stats.stale_writes, stats.controllers, stats.connects_held), (0, 2, 1));
}

#[test]
fn a_connect_that_waits_too_long_is_refused_and_may_be_sent_again() {
    let (mut raw, held) = raw();
    let (admin, io) = raw.controller(0);
    raw.write(io);
    raw.end(admin, End::Rst);
    let peer = raw.open();
    raw.ic(peer, false, false);
    // Near the deadline of Connect itself: waiting does not count as silence.
    raw.run(ms(4900));
    assert_eq!(raw.try_again(peer, 7, 1490), None);
    raw.run(ms(20));
    let busy = Some(Status::CONNECT_CONTROLLER_BUSY);
    assert_eq!(raw.answer(peer).map(|cqe| cqe.status()), busy);
    assert_eq!(raw.try_again(peer, 7, 1000), None);
    release(&held);
    raw.run(ms(2));
    assert_eq!(raw.answer(peer).map(|cqe| cqe.status()), Some(Status::SUCCESS));
}

#[test]
fn a_connection_whose_connect_waits_may_end_in_any_way() {
    for end in [End::Fin, End::Rst, End::Violation] {
        let (mut raw, held) = raw();
        let (admin, io) = raw.controller(0);
        raw.write(io);
        raw.end(admin, End::Rst);
        let (peer, answer) = raw.try_admin(7, 100);
        assert_eq!(answer, None);
        raw.end(peer, end);
        release(&held);
        raw.run(ms(1200));
        let stats = raw.target.stats();
        assert_eq!((stats.conns, stats.controllers), (0, 0), "{end:?}");
        assert!(raw.target.core.pool.is_whole());
    }
}

#[test]
fn a_target_that_ends_waits_for_the_writes_that_its_devices_have() {
    let (mut raw, held) = raw();
    let (_, io) = raw.controller(0);
    raw.write(io);
    raw.target.shutdown(raw.now);
    raw.run(ms(1000));
    assert!(raw.peers[io].closed && !raw.target.is_shut());
    release(&held);
    raw.run(ms(2));
    assert!(raw.target.is_shut());
}
