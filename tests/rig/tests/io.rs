//! Our host reads and writes our target: over AF_XDP, in every shape that a user may ask for.

use std::fs;
use std::thread;

use crate::support::{finish, lane, moorline, rig};
use crate::target::{Target, clean, kernel_lane, perf, start_perf};

#[test]
fn every_mtu_carries_reads_and_writes_over_ipv4_and_ipv6() {
    for mtu in [1500, 3506, 9000] {
        let Some(rig) = rig(mtu) else { return };
        let target = Target::xdp(&rig, "--backend ram:64M");
        for v6 in [false, true] {
            let to = rig.target().xdp_addr(v6);
            let args = "--rw randrw --bs 16k --iodepth 8 --number-ios 500 --verify --size 16m";
            let report = clean(finish(start_perf(&lane(rig.host()), to, args)));
            assert_eq!(report["transport"], "xdp");
            assert_eq!(report["conditions"]["mtu"], mtu);
            let copies = if mtu > 3506 { 3.0 } else { 2.0 };
            for way in ["copies_in", "copies_out"] {
                let seen = report["counts"][way].as_f64().unwrap();
                assert!(seen <= copies, "{way} at MTU {mtu}: {report}");
            }
        }
        let end = target.stop();
        assert_eq!(end["errors"], 0, "{end}");
        assert_eq!(end["fatal"], 0, "{end}");
        assert!(end["written_bytes"].as_u64().unwrap() > 0, "{end}");
    }
}

#[test]
fn digests_hold_in_every_combination() {
    let Some(rig) = rig(9000) else { return };
    let target = Target::xdp(&rig, "--backend ram:64M");
    for digests in ["", "--hdr-digest", "--data-digest", "--hdr-digest --data-digest"] {
        let args = "--rw randrw --bs 20k --iodepth 4 --number-ios 300 --verify --size 8000k";
        let report = clean(perf(&rig, &format!("{args} {digests}")));
        assert_eq!(report["conditions"]["hdgst"], digests.contains("hdr"), "{digests}");
        assert_eq!(report["conditions"]["ddgst"], digests.contains("data"), "{digests}");
    }
    assert_eq!(target.stop()["digest_errors"], 0);
}

#[test]
fn sizes_from_512_bytes_to_1_mib_at_depths_from_1_to_128() {
    let Some(rig) = rig(9000) else { return };
    let target = Target::xdp(&rig, "--backend ram:256M --block-size 512");
    for (bs, depth, ios) in [
        ("512", 1, 500),
        ("512", 128, 3000),
        ("4k", 32, 2000),
        ("64k", 16, 300),
        ("1m", 1, 20),
        ("1m", 8, 40),
        ("4k", 128, 3000),
    ] {
        let args = format!("--bs {bs} --iodepth {depth} --number-ios {ios} --queue-size 129");
        clean(perf(&rig, &format!("{args} --rw randrw --verify --size 64m")));
        clean(perf(&rig, &format!("{args} --rw write --verify --size 64m")));
    }
    target.stop();
}

#[test]
fn several_queues_share_the_work() {
    let Some(rig) = rig(1500) else { return };
    let _target = Target::xdp(&rig, "--backend ram:64M --backend null:1G");
    let report = clean(perf(
        &rig,
        "-i 4 --iodepth 8 --rw randrw --bs 4k --number-ios 2000 --verify --size 16m",
    ));
    assert_eq!(report["qpairs"], 4);
    clean(perf(&rig, "-i 3 --nsid 2 --iodepth 16 --rw randread --bs 8k --number-ios 2000"));
}

#[test]
fn two_hosts_at_once_do_not_see_each_other() {
    let Some(rig) = rig(1500) else { return };
    // The second host uses kernel sockets towards our stack: its checksums must be real.
    rig.host().offloads(false).unwrap();
    let target = Target::xdp(&rig, "--backend ram:64M");
    let to = rig.target().xdp_addr(false);
    let args = "--rw randrw --bs 4k --iodepth 8 --number-ios 2000 --verify --size 16m";
    let xdp = start_perf(&lane(rig.host()), to, &format!("{args} --offset 0"));
    let kernel = start_perf(&kernel_lane(rig.host()), to, &format!("{args} --offset 32m"));
    let kernel = thread::spawn(|| finish(kernel));
    clean(finish(xdp));
    clean(kernel.join().unwrap());
    assert!(target.stop()["accepted"].as_u64().unwrap() >= 4);
}

#[test]
fn kernel_sockets_carry_the_same_work() {
    let Some(rig) = rig(1500) else { return };
    let target = Target::kernel(&rig, "--backend ram:64M");
    let to = rig.target().kernel_addr(false);
    let args = "--rw randrw --bs 16k --iodepth 16 -i 2 --number-ios 1000 --verify --data-digest";
    let report = clean(finish(start_perf(&kernel_lane(rig.host()), to, args)));
    assert_eq!(report["transport"], "kernel");
    assert_eq!(target.stop()["errors"], 0);
}

#[test]
fn a_file_holds_what_was_written_whatever_carried_it() {
    let Some(rig) = rig(9000) else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let backend = |name: &str| format!("--backend file:{}:16M", file(name).display());
    let work = "--rw write --bs 64k --iodepth 8 --number-ios 256 --randseed 7 --verify";
    let target = Target::xdp(&rig, &backend("xdp"));
    clean(perf(&rig, work));
    target.stop();
    let target = Target::kernel(&rig, &backend("kernel"));
    let to = rig.target().kernel_addr(false);
    clean(finish(start_perf(&kernel_lane(rig.host()), to, work)));
    target.stop();
    let (a, b) = (fs::read(file("xdp")).unwrap(), fs::read(file("kernel")).unwrap());
    assert_eq!(a.len(), 16 << 20);
    assert!(a == b, "the two files differ");
    assert!(a.chunks(4096).all(|block| block.iter().any(|&byte| byte != 0)), "a hole");
}

#[test]
fn one_percent_of_loss_costs_time_and_nothing_else() {
    let Some(rig) = rig(1500) else { return };
    let faulty = |end| format!("{} --allow-faults --drop 0.01", lane(end));
    let target = Target::start(&faulty(rig.target()), "--backend ram:64M");
    let args = "--rw randrw --bs 16k --iodepth 8 --number-ios 400 --verify --size 16m";
    let to = rig.target().xdp_addr(false);
    let report = clean(finish(start_perf(&faulty(rig.host()), to, args)));
    assert!(report["counts"]["retransmits"].as_u64().unwrap() > 0, "{report}");
    target.stop();
}

#[test]
fn discover_and_identify_tell_what_is_there() {
    let Some(rig) = rig(1500) else { return };
    let nqn = "nqn.2026-11.io.moorline:test";
    let _target = Target::xdp(&rig, &format!("--nqn {nqn} --backend ram:64M --backend null:1G"));
    let host = lane(rig.host());
    for v6 in [false, true] {
        let to = rig.target().xdp_addr(v6);
        let log = moorline(&format!("discover --json {host} -a {to}")).ok().json();
        let entries = log["entries"].as_array().unwrap();
        // One entry a listener; each can be reached where it says.
        let is_it = |e: &&serde_json::Value| {
            e["subtype"] == "nvm" && e["traddr"] == to.to_string() && e["trsvcid"] == "4420"
        };
        let nvm = entries.iter().find(is_it).unwrap_or_else(|| panic!("{log}"));
        assert_eq!(nvm["subnqn"], nqn);
        let id = moorline(&format!("identify --json {host} -a {to} -n {nqn}")).ok().json();
        let namespaces = id["namespaces"].as_array().unwrap();
        assert_eq!(namespaces.len(), 2, "{id}");
        assert_eq!(namespaces[0]["bytes"], 64 << 20);
        assert_eq!(namespaces[1]["bytes"], 1 << 30);
    }
}
