//! Kernel sockets out of descriptors. Alone in its process: the limit is the process's.
#![allow(clippy::disallowed_methods, reason = "drives real devices")]
#![allow(clippy::unwrap_used)]

use std::os::fd::AsRawFd;
use std::time::Duration;

use moorline_stack::kernel::KernelSockets;
use moorline_stack::transport::{ConnOptions, ListenOptions};
use moorline_stack::{Event, Instant, Transport};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[test]
fn without_descriptors_accepting_pauses_instead_of_spinning() {
    let start = Instant::monotonic();
    let (mut client, mut server) = (KernelSockets::new(4).unwrap(), KernelSockets::new(4).unwrap());
    server.listen(start, "127.0.0.1:0".parse().unwrap(), &ListenOptions::default()).unwrap();
    let to = server.listening().next().unwrap();
    client.connect(start, to, &ConnOptions::default()).unwrap();

    let limit = getrlimit(Resource::Nofile);
    let next = std::fs::File::open("/dev/null").unwrap().as_raw_fd() as u64;
    setrlimit(Resource::Nofile, Rlimit { current: Some(next), ..limit }).unwrap();
    server.turn(start);
    let again = start + Duration::from_millis(100);
    assert_eq!(server.poll_timeout(), Some(again));
    let before = server.stats().syscalls;
    for ms in 1..100 {
        server.turn(start + Duration::from_millis(ms));
        assert_eq!(server.poll_timeout(), Some(again));
    }
    assert_eq!(server.stats().syscalls - before, 99, "one question to epoll per turn");
    server.turn(again);
    assert_eq!(server.poll_timeout(), Some(again + Duration::from_millis(100)), "still none");

    setrlimit(Resource::Nofile, limit).unwrap();
    server.turn(again + Duration::from_millis(100));
    assert!(matches!(server.poll_event(), Some(Event::Accepted { .. })));
}
