//! No allocation per segment, counted over two engines on a simulated wire. Alone in its process,
//! because the counter sees all of it.
#![allow(clippy::unwrap_used)]

use std::alloc::System;
use std::time::Duration;

use moorline_stack::link::sim::{SimLink, WireOptions};
use moorline_stack::route::Cidr;
use moorline_stack::tcp::{Tcp, TcpConfig};
use moorline_stack::transport::{ConnOptions, ListenOptions};
use moorline_stack::{Event, Instant, Transport};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

#[test]
fn segments_are_sent_and_received_without_allocation() {
    let (a, b) = SimLink::pair(&WireOptions::default());
    let mut now = Instant::ZERO;
    let mut ends = [(a, 1), (b, 2)].map(|(link, n)| {
        let address = Cidr { ip: [10, 0, 0, n].into(), prefix: 24 };
        let config = TcpConfig { addresses: vec![address], seed: Some(1), ..TcpConfig::default() };
        Tcp::new(now, link, &config).unwrap()
    });
    let remote = "10.0.0.2:4420".parse().unwrap();
    ends[1].listen(now, remote, &ListenOptions::default()).unwrap();
    ends[0].connect(now, remote, &ConnOptions::default()).unwrap();
    let mut conns = [None, None];
    let chunk = vec![1; 4096];
    let mut run = |turns: usize| {
        for _ in 0..turns {
            for (tcp, conn) in ends.iter_mut().zip(&mut conns) {
                tcp.turn(now);
                while let Some(event) = tcp.poll_event() {
                    match event {
                        Event::Accepted { conn: id, .. } | Event::Connected(id) => *conn = Some(id),
                        Event::Closed(_, why) => panic!("{why}"),
                        _ => {}
                    }
                }
                if let Some(id) = *conn {
                    tcp.recv(id, &mut |bytes| bytes.len());
                    tcp.send(id, &chunk);
                }
                tcp.flush(now);
            }
            now += Duration::from_micros(10);
        }
    };
    run(10_000);
    let region = Region::new(ALLOCATOR);
    run(10_000);
    let change = region.change();
    assert_eq!((change.allocations, change.reallocations), (0, 0), "{change:?}");
    assert!(ends[1].stats().rx_bytes > 40 << 20, "{:?}", ends[1].stats());
}
