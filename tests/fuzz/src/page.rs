//! Data that are parsed where they lie: commands, Connect data, Identify data, log pages, NQNs.
//!
//! What is asserted: lists end, and within what the data can hold; what was parsed writes back.

use moorline_nvme::spec::identify::text;
use moorline_nvme::spec::log::{DiscoveryLogEntry, DiscoveryLogHeader, ana_groups};
use moorline_nvme::spec::{
    AsyncEvent, BlockCommand, Connect, ConnectData, ConnectResponse, Cqe, GetLogPage, HostId,
    IdentifyController, IdentifyNamespace, InvalidParameter, Nqn, NsDescriptor, NsidList, Property,
    Sqe,
};
use zerocopy::FromBytes;

use crate::input::Input;

/// One page of a kind that the first byte chooses.
pub fn pages(data: &[u8]) {
    let mut input = Input(data);
    match input.byte() % 9 {
        0 => connect(&input.array()),
        1 => discovery(input.0),
        2 => ana(input.0),
        3 => descriptors(input.0),
        4 => identify(&input.array()),
        5 => namespace(&input.array()),
        6 => names(input.0),
        7 => command(&input.array()),
        _ => completion(&input.array()),
    }
}

fn name(field: &[u8; 256]) {
    if let Ok(nqn) = Nqn::from_field(field) {
        assert!(nqn.as_str().len() <= 223);
        assert_eq!(Nqn::from_field(&nqn.to_field()), Ok(nqn));
    }
}

fn connect(bytes: &[u8; 1024]) {
    let data = ConnectData::ref_from_bytes(bytes).expect("1024 bytes");
    name(&data.subnqn);
    name(&data.hostnqn);
    let hostid = HostId::from_bytes(data.hostid);
    assert_eq!(hostid.to_string().parse::<HostId>(), Ok(hostid));
}

fn discovery(bytes: &[u8]) {
    let Ok((header, rest)) = DiscoveryLogHeader::ref_from_prefix(bytes) else { return };
    let _ = (header.genctr.get(), header.numrec.get());
    for entry in rest.as_chunks::<1024>().0 {
        let told = format!("{:?}", moorline::commands::discover::parse(entry));
        assert!(!told.contains(char::is_control), "{told}");
        let entry = DiscoveryLogEntry::ref_from_bytes(entry).expect("1024 bytes");
        name(&entry.subnqn);
        assert!(text(&entry.traddr).len() <= 256 && text(&entry.trsvcid).len() <= 32);
    }
}

fn ana(bytes: &[u8]) {
    let mut listed = 0;
    for (group, nsids) in ana_groups(bytes) {
        assert_eq!(group.nnsids.get() as usize, nsids.len());
        listed += 32 + nsids.len() * 4;
    }
    assert!(listed <= bytes.len());
}

fn descriptors(bytes: &[u8]) {
    let found: Vec<_> = NsDescriptor::iter(bytes).collect();
    assert!(found.len() <= bytes.len() / 5);
    let mut page = [0; 4096];
    if NsDescriptor::encode(&found, &mut page).is_ok() {
        assert!(NsDescriptor::iter(&page).eq(found));
    }
}

fn identify(bytes: &[u8; 4096]) {
    let identify = IdentifyController::ref_from_bytes(bytes).expect("4096 bytes");
    let _ = (identify.in_capsule_max(), text(&identify.sn), text(&identify.mn));
    name(&identify.subnqn);
    for mpsmin in 0..16 {
        let _ = identify.mdts_bytes(mpsmin);
    }
    let list = NsidList::ref_from_bytes(bytes).expect("4096 bytes");
    assert!(list.iter().count() <= 1024);
}

fn namespace(bytes: &[u8; 4096]) {
    let identify = IdentifyNamespace::ref_from_bytes(bytes).expect("4096 bytes");
    let _ = identify.format();
    if let Some(size) = identify.block_size() {
        assert!(size.is_power_of_two());
    }
}

fn names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(nqn) = Nqn::new(text) {
        assert_eq!(nqn.as_str(), text);
        name(&nqn.to_field());
    }
    if let Ok(id) = text.parse::<HostId>() {
        assert_eq!(id.to_string().parse(), Ok(id));
    }
}

fn command(bytes: &[u8; 64]) {
    let sqe = Sqe::read_from_bytes(bytes).expect("64 bytes");
    let connect = Connect::from_sqe(&sqe);
    assert_eq!(Connect::from_sqe(&connect.to_sqe()), connect);
    let page = GetLogPage::from_sqe(&sqe);
    assert_eq!(GetLogPage::from_sqe(&page.to_sqe()), page);
    let block = BlockCommand::from_sqe(&sqe);
    assert_eq!(BlockCommand::from_sqe(&block.to_sqe(sqe.opcode)), block);
    let _ = Property::from_sqe(&sqe);
    let _ = sqe.sgl();
}

fn completion(bytes: &[u8; 16]) {
    let cqe = Cqe::read_from_bytes(bytes).expect("16 bytes");
    let (_, _) = (cqe.status().to_string(), cqe.status().dnr());
    let _ = (ConnectResponse::from_cqe(&cqe), InvalidParameter::from_cqe(&cqe));
    let event = AsyncEvent::from_dw0(cqe.dw0.get());
    assert_eq!(AsyncEvent::from_dw0(event.to_dw0()), event);
}
