//! Identify data structures (NVMe Base 2.x, "Identify command").

use zerocopy::FromBytes;

use super::controller::{AERS_MAX, Controller, KAS, VERSION};
use super::subsystem::{NSID_MAX, Namespace};
use super::{Subsystem, TargetConfig};
use crate::spec::features::async_event;
use crate::spec::identify::{
    IDENTIFY_BYTES, NSID_ALL, cns, cntrltype, ctratt, oncs, sgls, text_field, vwc,
};
use crate::spec::{
    DISCOVERY_NQN, Identify, IdentifyController, IdentifyNamespace, NsDescriptor, Sqe, Status,
};

/// LPA: the effects log, and offsets in Get Log Page.
const LPA_EFFECTS: u8 = 1 << 1;
const LPA_OFFSETS: u8 = 1 << 2;

/// Fills `out`, which is zero, as CNS asks; `subsystem` is none for discovery.
///
/// # Errors
/// Invalid Field for a CNS that we do not have, Invalid Namespace for an NSID that cannot be.
pub(super) fn identify(
    sqe: &Sqe,
    controller: &Controller,
    subsystem: Option<&Subsystem>,
    config: &TargetConfig,
    out: &mut [u8; IDENTIFY_BYTES],
) -> Result<(), Status> {
    let Identify { cns, nsid, csi, .. } = Identify::from_sqe(sqe);
    match (cns, csi, subsystem) {
        (cns::CONTROLLER, _, None) => discovery_controller(controller, config, out),
        (cns::CONTROLLER, _, Some(subsystem)) => {
            io_controller(controller, subsystem, config, out);
        }
        (cns::NAMESPACE, _, Some(subsystem)) => of_namespace(subsystem, nsid, out, namespace)?,
        (cns::ACTIVE_NSIDS, _, Some(subsystem)) | (cns::CSI_ACTIVE_NSIDS, 0, Some(subsystem)) => {
            active_nsids(subsystem, nsid, out)?
        }
        (cns::NS_DESCRIPTORS, _, Some(subsystem)) => {
            of_namespace(subsystem, nsid, out, descriptors)?;
        }
        // The NVM command set's own: no protection information, no limits beyond MDTS.
        (cns::CSI_NAMESPACE, 0, Some(subsystem)) => {
            of_namespace(subsystem, nsid, out, |_, _| ())?;
        }
        (cns::CSI_CONTROLLER, 0, Some(_)) => {}
        (cns::INDEPENDENT_NAMESPACE, _, Some(subsystem)) => {
            of_namespace(subsystem, nsid, out, independent)?;
        }
        _ => return Err(Status::INVALID_FIELD.with_dnr()),
    }
    Ok(())
}

/// Fills in what is said of a namespace; an inactive one gives zeros.
fn of_namespace(
    subsystem: &Subsystem,
    nsid: u32,
    out: &mut [u8; IDENTIFY_BYTES],
    fill: fn(&Namespace, &mut [u8; IDENTIFY_BYTES]),
) -> Result<(), Status> {
    if nsid == 0 || nsid > NSID_MAX {
        return Err(Status::INVALID_NAMESPACE.with_dnr());
    }
    if let Some(namespace) = subsystem.namespace(nsid) {
        fill(namespace, out);
    }
    Ok(())
}

fn namespace(ns: &Namespace, out: &mut [u8; IDENTIFY_BYTES]) {
    let id = IdentifyNamespace::mut_from_bytes(out).expect("it has just this size");
    let blocks = ns.bdev.blocks();
    id.nsze.set(blocks);
    id.ncap.set(blocks);
    id.nuse.set(blocks);
    id.nmic = 1; // may be shared, or a Linux host builds no multipath head
    id.nguid = ns.uuid;
    id.lbaf[0].lbads = ns.bdev.block_size().trailing_zeros() as u8;
}

/// CNS 08h: NMIC at byte 1, NSTAT (bit 0: ready) at byte 14.
fn independent(_: &Namespace, out: &mut [u8; IDENTIFY_BYTES]) {
    out[1] = 1;
    out[14] = 1;
}

fn descriptors(ns: &Namespace, out: &mut [u8; IDENTIFY_BYTES]) {
    let ids = [NsDescriptor::Nguid(ns.uuid), NsDescriptor::Uuid(ns.uuid), NsDescriptor::Csi(0)];
    NsDescriptor::encode(&ids, out).expect("three fit");
}

fn active_nsids(
    subsystem: &Subsystem,
    after: u32,
    out: &mut [u8; IDENTIFY_BYTES],
) -> Result<(), Status> {
    if after >= NSID_ALL - 1 {
        return Err(Status::INVALID_NAMESPACE.with_dnr());
    }
    let nsids = subsystem.nsids().filter(|&nsid| nsid > after);
    for (entry, nsid) in out.chunks_exact_mut(4).zip(nsids) {
        entry.copy_from_slice(&nsid.to_le_bytes());
    }
    Ok(())
}

/// What I/O and discovery controllers have in common.
fn controller<'a>(
    controller: &Controller,
    nqn: &str,
    config: &TargetConfig,
    out: &'a mut [u8; IDENTIFY_BYTES],
) -> &'a mut IdentifyController {
    let id = IdentifyController::mut_from_bytes(out).expect("it has just this size");
    id.fr = text_field(env!("CARGO_PKG_VERSION"));
    id.mdts = config.mdts;
    id.cntlid.set(controller.cntlid);
    id.ver.set(VERSION.0);
    let tbkas = if config.tbkas { ctratt::TBKAS } else { 0 };
    id.ctratt.set(ctratt::HOST_ID_128 | tbkas);
    id.aerl = AERS_MAX as u8 - 1;
    id.kas.set(KAS);
    id.maxcmd.set(config.mqes + 1);
    id.sgls.set(sgls::SUPPORTED | sgls::OFFSET);
    id.subnqn[..nqn.len()].copy_from_slice(nqn.as_bytes());
    id
}

fn io_controller(
    of: &Controller,
    subsystem: &Subsystem,
    config: &TargetConfig,
    out: &mut [u8; IDENTIFY_BYTES],
) {
    let id = controller(of, &subsystem.nqn, config, out);
    id.sn = text_field(&subsystem.serial);
    id.mn = text_field(&subsystem.model);
    id.cmic = 0b11; // several ports, several controllers
    id.cntrltype = cntrltype::IO;
    id.acl = 3;
    id.frmw = 0b11; // one slot, read only
    id.lpa = LPA_EFFECTS | LPA_OFFSETS;
    (id.sqes, id.cqes) = (0x66, 0x44);
    id.nn.set(NSID_MAX);
    id.mnan.set(NSID_MAX);
    id.oncs.set(oncs::COMPARE | oncs::DATASET_MANAGEMENT | oncs::WRITE_ZEROES);
    id.vwc = vwc::PRESENT | vwc::NO_FLUSH_ALL;
    id.ioccsz.set((64 + config.in_capsule_bytes) / 16);
    id.iorcsz.set(1);
    id.msdbd = 1;
    id.ofcs.set(1); // Disconnect
}

fn discovery_controller(of: &Controller, config: &TargetConfig, out: &mut [u8; IDENTIFY_BYTES]) {
    let id = controller(of, DISCOVERY_NQN, config, out);
    id.sn = text_field("");
    id.mn = text_field("moorline discovery");
    id.oaes.set(async_event::DISCOVERY_LOG);
    id.cntrltype = cntrltype::DISCOVERY;
    id.lpa = LPA_OFFSETS;
}
