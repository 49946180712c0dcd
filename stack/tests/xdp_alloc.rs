//! No allocation per frame: counted, over both ends of a real link. Alone in its process, because
//! the counter sees all of it.
#![allow(clippy::disallowed_methods, reason = "drives real devices")]
#![allow(clippy::unwrap_used)]

use std::alloc::System;

use moorline_rig::{Rig, RigSpec};
use moorline_stack::lane::{self, LaneOptions};
use moorline_stack::{Instant, Link};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

#[test]
fn frames_are_sent_and_received_without_allocation() {
    if let Err(why) = moorline_rig::possible() {
        assert!(std::env::var_os("MOORLINE_REQUIRE_RIG").is_none(), "{why}");
        eprintln!("SKIPPED: {why}");
        return;
    }
    for mtu in [1500, 9000] {
        let rig = Rig::up(RigSpec::unique("ml-xsk").mtu(mtu)).unwrap();
        let ends = [rig.host(), rig.target()];
        let [mut host, mut target] = ends.map(|end| {
            let options = LaneOptions::new(end.dev(), &[end.xdp_addr(false)]);
            end.run(|| lane::open(&options).unwrap()).unwrap()
        });
        let mut frame = vec![0; mtu as usize + 14];
        frame[..6].copy_from_slice(&target.mac());
        frame[6..12].copy_from_slice(&host.mac());
        frame[12] = 8;
        frame[14] = 0x45;
        frame[26..34].copy_from_slice(&[10, 99, 0, 11, 10, 99, 0, 12]);
        let mut round = |frames: usize| {
            let now = Instant::monotonic();
            for _ in 0..frames {
                host.tx().transmit(frame.len(), |out| out.copy_from_slice(&frame));
            }
            host.flush(now).unwrap();
            let mut received = 0;
            while received < frames {
                target.wait(None, &[]).unwrap();
                received += target.receive(now, 64, &mut |got, _| assert!(got == frame));
            }
            host.receive(now, 64, &mut |_, _| {});
        };
        round(16);
        let region = Region::new(ALLOCATOR);
        for _ in 0..200 {
            round(16);
        }
        let change = region.change();
        assert_eq!((change.allocations, change.reallocations), (0, 0), "MTU {mtu}: {change:?}");
    }
}
