//! Identify data structures (NVMe Base 2.x "Identify command"; offsets in `spec` terms).

use super::Subsystem;
use super::TargetConfig;
use super::controller::{AEN_DISCOVERY, AERS_MAX, Controller, KAS, VERSION};
use super::subsystem::{NSID_MAX, Namespace};
use crate::spec::{Sqe, Status};

/// Every Identify answers with this much.
pub(super) const IDENTIFY_BYTES: usize = 4096;

/// ONCS: Compare, Dataset Management, Write Zeroes.
const ONCS: u16 = 1 << 0 | 1 << 2 | 1 << 3;
/// SGLS: SGLs supported; in-capsule data at an offset in the SGL.
const SGLS: u32 = 1 | 1 << 20;
/// CTRATT: 128-bit host identifiers.
const CTRATT: u32 = 1;
/// Largest NSID that means one namespace.
const NSID_BROADCAST: u32 = 0xFFFF_FFFF;

/// Fills `out`, which is zero, as CNS asks.
///
/// # Errors
/// Invalid Field for a CNS that we do not have, Invalid Namespace for an NSID that cannot be.
pub(super) fn identify(
    sqe: &Sqe,
    controller: &Controller,
    subsystem: Option<&Subsystem>,
    nqn: &str,
    config: &TargetConfig,
    out: &mut [u8],
) -> Result<(), Status> {
    let out = Fields(&mut out[..IDENTIFY_BYTES]);
    let (cns, nsid) = (sqe.cdw10.get() as u8, sqe.nsid.get());
    let csi = (sqe.cdw11.get() >> 24) as u8;
    let Some(subsystem) = subsystem else {
        return match cns {
            0x01 => Ok(discovery_controller(controller, nqn, config, out)),
            _ => Err(Status::INVALID_FIELD.with_dnr()),
        };
    };
    match (cns, csi) {
        (0x00, _) => of_namespace(subsystem, nsid, out, namespace),
        (0x01, _) => Ok(io_controller(controller, subsystem, config, out)),
        (0x02, _) | (0x07, 0) => active_list(subsystem, nsid, out),
        (0x03, _) => of_namespace(subsystem, nsid, out, descriptors),
        // NVM command set specific: no protection information, no limits beyond MDTS.
        (0x05, 0) => of_namespace(subsystem, nsid, out, |_, _| ()),
        (0x06, 0) => Ok(()),
        (0x08, _) => of_namespace(subsystem, nsid, out, independent),
        _ => Err(Status::INVALID_FIELD.with_dnr()),
    }
}

/// Fills in what is said of a namespace; an inactive one gives zeros.
fn of_namespace(
    subsystem: &Subsystem,
    nsid: u32,
    out: Fields<'_>,
    fill: fn(&Namespace, Fields<'_>),
) -> Result<(), Status> {
    if nsid == 0 || nsid > NSID_MAX {
        return Err(Status::INVALID_NAMESPACE.with_dnr());
    }
    if let Some(namespace) = subsystem.namespace(nsid) {
        fill(namespace, out);
    }
    Ok(())
}

fn namespace(ns: &Namespace, mut out: Fields<'_>) {
    let blocks = ns.bdev.blocks();
    for at in [0, 8, 16] {
        out.put(at, &blocks.to_le_bytes()); // NSZE, NCAP, NUSE
    }
    out.put(30, &[1]); // NMIC: may be shared, or a Linux host builds no multipath head
    out.put(104, &ns.uuid); // NGUID
    out.put(130, &[ns.bdev.block_size().trailing_zeros() as u8]); // LBAF 0: LBADS
}

fn independent(_: &Namespace, mut out: Fields<'_>) {
    out.put(1, &[1]); // NMIC
    out.put(14, &[1]); // NSTAT: ready
}

fn descriptors(ns: &Namespace, mut out: Fields<'_>) {
    let mut at = 0;
    for (kind, id) in [(2, &ns.uuid[..]), (3, &ns.uuid[..]), (4, &[0][..])] {
        out.put(at, &[kind, id.len() as u8, 0, 0]); // NGUID, UUID, CSI
        out.put(at + 4, id);
        at += 4 + id.len();
    }
}

fn active_list(subsystem: &Subsystem, after: u32, mut out: Fields<'_>) -> Result<(), Status> {
    if after >= NSID_BROADCAST - 1 {
        return Err(Status::INVALID_NAMESPACE.with_dnr());
    }
    let nsids = subsystem.nsids().filter(|&nsid| nsid > after);
    for (at, nsid) in (0..IDENTIFY_BYTES).step_by(4).zip(nsids) {
        out.put(at, &nsid.to_le_bytes());
    }
    Ok(())
}

/// What is the same for I/O and discovery controllers.
fn any_controller(controller: &Controller, nqn: &str, config: &TargetConfig, out: &mut Fields<'_>) {
    out.text(64, 8, env!("CARGO_PKG_VERSION")); // FR
    out.put(77, &[config.mdts]);
    out.put(78, &controller.cntlid.to_le_bytes());
    out.put(80, &VERSION.0.to_le_bytes());
    out.put(96, &CTRATT.to_le_bytes());
    out.put(259, &[AERS_MAX as u8 - 1]); // AERL
    out.put(320, &KAS.to_le_bytes());
    out.put(514, &(config.mqes + 1).to_le_bytes()); // MAXCMD
    out.put(536, &SGLS.to_le_bytes());
    out.put(768, nqn.as_bytes()); // SUBNQN
}

fn io_controller(
    controller: &Controller,
    subsystem: &Subsystem,
    config: &TargetConfig,
    mut out: Fields<'_>,
) {
    any_controller(controller, &subsystem.nqn, config, &mut out);
    out.text(4, 20, &subsystem.serial);
    out.text(24, 40, &subsystem.model);
    out.put(76, &[0b11]); // CMIC: several ports, several controllers
    out.put(111, &[1]); // CNTRLTYPE: I/O
    out.put(258, &[3]); // ACL
    out.put(260, &[0b11]); // FRMW: one slot, read only
    out.put(261, &[0b110]); // LPA: effects log, offsets in Get Log Page
    out.put(512, &[0x66, 0x44]); // SQES, CQES
    out.put(516, &NSID_MAX.to_le_bytes()); // NN
    out.put(520, &ONCS.to_le_bytes());
    out.put(525, &[1 | 0b10 << 1]); // VWC: present; Flush takes one namespace
    out.put(540, &NSID_MAX.to_le_bytes()); // MNAN
    out.put(1792, &((64 + config.in_capsule_bytes) / 16).to_le_bytes()); // IOCCSZ
    out.put(1796, &1u32.to_le_bytes()); // IORCSZ
    out.put(1803, &[1]); // MSDBD
    out.put(1804, &1u16.to_le_bytes()); // OFCS: Disconnect
}

fn discovery_controller(
    controller: &Controller,
    nqn: &str,
    config: &TargetConfig,
    mut out: Fields<'_>,
) {
    any_controller(controller, nqn, config, &mut out);
    out.text(4, 20, "");
    out.text(24, 40, "moorline discovery");
    out.put(92, &AEN_DISCOVERY.to_le_bytes()); // OAES
    out.put(111, &[2]); // CNTRLTYPE: discovery
    out.put(261, &[0b100]); // LPA: offsets in Get Log Page
}

/// A data structure to be filled in by offset.
struct Fields<'a>(&'a mut [u8]);

impl Fields<'_> {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// ASCII, padded with spaces.
    fn text(&mut self, at: usize, len: usize, text: &str) {
        self.0[at..at + len].fill(b' ');
        self.put(at, &text.as_bytes()[..text.len().min(len)]);
    }
}
