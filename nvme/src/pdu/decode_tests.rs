//! The decoder's tests: conversations, cut anywhere; and every way to break the rules, by FES.

use proptest::prelude::*;
use zerocopy::little_endian::{U16, U32};

use super::*;
use crate::spec::Status;

/// What a decoder said, with adjacent data merged.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    Pdu(Pdu),
    Data(Vec<u8>),
    DataEnd(bool),
}

/// Feeds `input` to the decoder, and sets parameters as soon as it has seen ICReq or ICResp.
fn feed(
    decoder: &mut Decoder,
    params: Params,
    mut input: &[u8],
    said: &mut Vec<Said>,
) -> Result<(), Fatal> {
    while let Some(item) = decoder.next(&mut input)? {
        match item {
            Item::Pdu(pdu) => {
                if matches!(pdu, Pdu::ICReq(_) | Pdu::ICResp(_)) {
                    decoder.set_params(params);
                }
                said.push(Said::Pdu(pdu));
            }
            Item::Data(data) => {
                assert!(!data.is_empty());
                match said.last_mut() {
                    Some(Said::Data(before)) => before.extend_from_slice(data),
                    _ => said.push(Said::Data(data.to_vec())),
                }
            }
            Item::DataEnd { digest_ok } => said.push(Said::DataEnd(digest_ok)),
        }
    }
    assert!(input.is_empty(), "None means that all input is consumed");
    Ok(())
}

/// All that a new decoder says to the pieces of a conversation.
fn said<'a>(
    role: Role,
    params: Params,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Vec<Said>, Fatal> {
    let mut decoder = Decoder::new(role, Limits::default());
    let mut said = Vec::new();
    for piece in pieces {
        feed(&mut decoder, params, piece, &mut said)?;
    }
    Ok(said)
}

/// A PDU as a sender puts it on the wire.
fn wire(pdu: &Pdu, params: &Params, data: &[u8]) -> Vec<u8> {
    let mut bytes = HeaderBuf::encode(pdu, params).bytes().to_vec();
    bytes.extend_from_slice(data);
    if params.ddgst && !data.is_empty() {
        let mut digest = DataDigest::new();
        digest.update(data);
        bytes.extend_from_slice(&digest.finish().to_le_bytes());
    }
    bytes
}

fn ic(role: Role) -> Vec<u8> {
    let pdu = match role {
        Role::Controller => Pdu::ICReq(ICReq::default()),
        Role::Host => Pdu::ICResp(ICResp { maxh2cdata: 131_072, ..ICResp::default() }),
    };
    wire(&pdu, &Params::default(), &[])
}

const PLAIN: Params = Params { hdgst: false, ddgst: false, pda: 0 };
const DIGESTS: Params = Params { hdgst: true, ddgst: true, pda: 0 };

fn h2c(datal: u32) -> Data {
    Data { cccid: 1, ttag: 2, datao: 0, datal, last: true, success: false }
}

fn write_cmd(data_len: u32) -> Pdu {
    Pdu::CapsuleCmd { sqe: Sqe::new(1, 1).with_in_capsule(data_len), data_len }
}

#[test]
fn a_write_in_its_capsule_is_header_data_and_end() {
    let data = [0xA5; 512];
    let conversation = [ic(Role::Controller), wire(&write_cmd(512), &DIGESTS, &data)].concat();
    let said = said(Role::Controller, DIGESTS, [&conversation[..]]).unwrap();
    let expected = [Said::Pdu(write_cmd(512)), Said::Data(data.to_vec()), Said::DataEnd(true)];
    assert_eq!(said[1..], expected);
}

#[test]
fn data_are_handed_out_in_place() {
    let bytes = wire(&Pdu::H2CData(h2c(64)), &PLAIN, &[7; 64]);
    let mut decoder = Decoder::new(Role::Controller, Limits::default());
    feed(&mut decoder, PLAIN, &ic(Role::Controller), &mut Vec::new()).unwrap();
    let mut input = &bytes[..];
    assert!(matches!(decoder.next(&mut input), Ok(Some(Item::Pdu(_)))));
    let Ok(Some(Item::Data(data))) = decoder.next(&mut input) else { panic!("data") };
    assert!(std::ptr::eq(data, &bytes[24..]));
    assert_eq!(decoder.next(&mut input), Ok(Some(Item::DataEnd { digest_ok: true })));
    assert_eq!(decoder.next(&mut input), Ok(None));
}

#[test]
fn digested_data_come_in_blocks_that_fit_the_cache() {
    let bytes = wire(&Pdu::H2CData(h2c(10_000)), &DIGESTS, &[7; 10_000]);
    let mut decoder = Decoder::new(Role::Controller, Limits::default());
    feed(&mut decoder, DIGESTS, &ic(Role::Controller), &mut Vec::new()).unwrap();
    let mut input = &bytes[..];
    let mut lens = Vec::new();
    while let Some(item) = decoder.next(&mut input).unwrap() {
        match item {
            Item::Data(data) => lens.push(data.len()),
            Item::Pdu(_) => {}
            Item::DataEnd { digest_ok } => assert!(digest_ok),
        }
    }
    assert_eq!(lens, [4096, 4096, 1808]);
}

#[test]
fn a_bad_data_digest_is_not_fatal() {
    let mut bad = wire(&write_cmd(512), &DIGESTS, &[1; 512]);
    bad[100] ^= 1;
    let good = wire(&write_cmd(512), &DIGESTS, &[1; 512]);
    let conversation = [ic(Role::Controller), bad, good].concat();
    let said = said(Role::Controller, DIGESTS, [&conversation[..]]).unwrap();
    let ends: Vec<_> = said.iter().filter(|said| matches!(said, Said::DataEnd(_))).collect();
    assert_eq!(ends, [&Said::DataEnd(false), &Said::DataEnd(true)]);
}

#[test]
fn more_padding_than_needed_is_passed_over() {
    let mut bytes = wire(&Pdu::H2CData(h2c(64)), &PLAIN, &[]);
    bytes[3] = 24 + 128;
    bytes[4..8].copy_from_slice(&(24u32 + 128 + 64).to_le_bytes());
    bytes.resize(24 + 128, 0xEE);
    bytes.resize(24 + 128 + 64, 7);
    let conversation = [ic(Role::Controller), bytes].concat();
    let said = said(Role::Controller, PLAIN, [&conversation[..]]).unwrap();
    assert_eq!(said[2], Said::Data(vec![7; 64]));
}

#[test]
fn a_term_req_is_taken_at_any_time_and_its_copy_skipped() {
    let term = Fatal::InvalidHeaderField(4).term_req(Role::Host, &[0xFF; 128]);
    let expected = Said::Pdu(Pdu::H2CTermReq(TermReq { fes: 1, fei: 4 }));
    let first = said(Role::Controller, PLAIN, [term.bytes()]).unwrap();
    assert_eq!(first, std::slice::from_ref(&expected));
    let later = [&ic(Role::Controller)[..], term.bytes()].concat();
    assert_eq!(said(Role::Controller, DIGESTS, [&later[..]]).unwrap()[1..], [expected]);
}

#[test]
fn reserved_flags_and_fields_are_not_looked_at() {
    let cqe = Cqe::new(1, Status::SUCCESS);
    let mut bytes = wire(&Pdu::CapsuleResp { cqe }, &PLAIN, &[]);
    bytes[1] |= 0xF0;
    bytes[3] = 24;
    let conversation = [ic(Role::Host), bytes].concat();
    let said = said(Role::Host, PLAIN, [&conversation[..]]).unwrap();
    assert_eq!(said[1], Said::Pdu(Pdu::CapsuleResp { cqe }));
}

#[test]
fn a_decoder_that_failed_goes_on_failing() {
    let mut decoder = Decoder::new(Role::Controller, Limits::default());
    let mut input = &[0xFF; 8][..];
    let fatal = Err(Fatal::InvalidHeaderField(offset::TYPE));
    assert_eq!(decoder.next(&mut input), fatal);
    let good = ic(Role::Controller);
    assert_eq!(decoder.next(&mut &good[..]), fatal);
    assert_eq!(decoder.next(&mut &[][..]), fatal);
    let term = decoder.term_req(Fatal::InvalidHeaderField(0)).unwrap();
    assert_eq!(term.bytes()[24..], [0xFF; 8]);
}

#[test]
fn a_term_req_is_never_answered_with_one() {
    let mut bytes = Fatal::PduSequence.term_req(Role::Host, &[0; 128]).bytes().to_vec();
    bytes[4] = 153;
    let mut decoder = Decoder::new(Role::Controller, Limits::default());
    let fatal = decoder.next(&mut &bytes[..]).unwrap_err();
    assert_eq!(fatal, Fatal::InvalidHeaderField(offset::PLEN));
    assert!(decoder.term_req(fatal).is_none());
}

#[test]
fn the_last_header_stays_for_a_qpair_that_finds_fault_with_it() {
    let command = wire(&write_cmd(0), &DIGESTS, &[]);
    let conversation = [ic(Role::Controller), command.clone()].concat();
    let mut decoder = Decoder::new(Role::Controller, Limits::default());
    feed(&mut decoder, DIGESTS, &conversation, &mut Vec::new()).unwrap();
    let term = decoder.term_req(Fatal::UnsupportedParameter(offset::SGL_ID)).unwrap();
    assert_eq!(term.bytes()[24..], command[..72]);
}

/// One malformed PDU: whose receiver, under which parameters, the bytes, and what they are.
struct Bad {
    name: &'static str,
    role: Role,
    params: Params,
    /// Before it, ICReq or ICResp.
    after_ic: bool,
    bytes: Vec<u8>,
    fatal: Fatal,
}

/// Bytes of a good PDU to be overwritten.
type Changes = &'static [(usize, u8)];

/// A good PDU with some bytes changed.
fn spoilt(pdu: &Pdu, params: &Params, data: &[u8], changes: &[(usize, u8)]) -> Vec<u8> {
    let mut bytes = wire(pdu, params, data);
    changes.iter().for_each(|(at, value)| bytes[*at] = *value);
    bytes
}

fn bad_before_ic() -> Vec<Bad> {
    let field = Fatal::InvalidHeaderField;
    let req = Pdu::ICReq(ICReq::default());
    let resp = Pdu::ICResp(ICResp { maxh2cdata: 4096, ..ICResp::default() });
    let rows: [(&'static str, Role, &Pdu, Changes, Fatal); _] = [
        ("ICReq HLEN", Role::Controller, &req, &[(2, 127)], field(offset::HLEN)),
        ("ICReq PLEN", Role::Controller, &req, &[(4, 129)], field(offset::PLEN)),
        ("ICReq HDGSTF", Role::Controller, &req, &[(1, 1)], field(offset::FLAGS)),
        ("ICReq PFV", Role::Controller, &req, &[(9, 1)], field(offset::PFV)),
        ("HPDA 32", Role::Controller, &req, &[(10, 32)], field(offset::PDA)),
        ("ICResp PFV", Role::Host, &resp, &[(8, 1)], field(offset::PFV)),
        ("CPDA 255", Role::Host, &resp, &[(10, 255)], field(offset::PDA)),
        ("MAXH2CDATA 4092", Role::Host, &resp, &[(12, 0xFC), (13, 15)], field(offset::MAXH2CDATA)),
        ("MAXH2CDATA 4098", Role::Host, &resp, &[(12, 2)], field(offset::MAXH2CDATA)),
        ("MAXH2CDATA 0", Role::Host, &resp, &[(13, 0)], field(offset::MAXH2CDATA)),
        ("ICResp to a controller", Role::Controller, &resp, &[], Fatal::PduSequence),
        ("ICReq to a host", Role::Host, &req, &[], Fatal::PduSequence),
    ];
    let bad = |(name, role, pdu, changes, fatal): (_, _, &Pdu, Changes, _)| {
        let bytes = spoilt(pdu, &PLAIN, &[], changes);
        Bad { name, role, params: PLAIN, after_ic: false, bytes, fatal }
    };
    rows.into_iter().map(bad).collect()
}

fn bad_towards_controller() -> Vec<Bad> {
    let field = Fatal::InvalidHeaderField;
    let read = Pdu::CapsuleCmd { sqe: Sqe::new(2, 1), data_len: 0 };
    let write = write_cmd(512);
    let data = Pdu::H2CData(h2c(512));
    let aligned = Params { pda: 31, ..PLAIN };
    let rows: [(&'static str, Params, &Pdu, Changes, Fatal); _] = [
        ("unknown type 8", PLAIN, &read, &[(0, 8)], field(offset::TYPE)),
        ("unknown type 0Ah", PLAIN, &read, &[(0, 10)], field(offset::TYPE)),
        ("unknown type FFh", PLAIN, &read, &[(0, 255)], field(offset::TYPE)),
        ("CapsuleResp to a controller", PLAIN, &read, &[(0, 5)], Fatal::PduSequence),
        ("C2HData to a controller", PLAIN, &data, &[(0, 7)], Fatal::PduSequence),
        ("R2T to a controller", PLAIN, &data, &[(0, 9)], Fatal::PduSequence),
        ("C2HTermReq to a controller", PLAIN, &data, &[(0, 3)], Fatal::PduSequence),
        ("CapsuleCmd HLEN 255", PLAIN, &read, &[(2, 255)], field(offset::HLEN)),
        ("CapsuleCmd HLEN 0", PLAIN, &read, &[(2, 0)], field(offset::HLEN)),
        ("H2CData HLEN 72", PLAIN, &data, &[(2, 72)], field(offset::HLEN)),
        ("CapsuleCmd PLEN 0", PLAIN, &read, &[(4, 0)], field(offset::PLEN)),
        ("CapsuleCmd PLEN below digest", DIGESTS, &read, &[(4, 75)], field(offset::PLEN)),
        ("CapsuleCmd PLEN 73, no PDO", PLAIN, &read, &[(4, 73)], field(offset::PDO)),
        ("PLEN ends at PDO", PLAIN, &write, &[(4, 76), (5, 0), (3, 76)], field(offset::PLEN)),
        ("PLEN without room for DDGST", DIGESTS, &data, &[(4, 32), (5, 0)], field(offset::PLEN)),
        ("PLEN 4 GiB", PLAIN, &data, &[(6, 255), (7, 255)], field(offset::DATAL)),
        ("DATAL beyond PLEN", PLAIN, &data, &[(17, 4)], field(offset::DATAL)),
        ("DATAL 0", PLAIN, &data, &[(17, 0)], field(offset::DATAL)),
        ("PDO inside the header", PLAIN, &write, &[(3, 68)], field(offset::PDO)),
        ("PDO inside the digest", DIGESTS, &write, &[(3, 72)], field(offset::PDO)),
        ("PDO misaligned", PLAIN, &write, &[(3, 74)], field(offset::PDO)),
        ("PDO not on 128", aligned, &write, &[(3, 96)], field(offset::PDO)),
        ("PDO too far", PLAIN, &data, &[(3, 156)], field(offset::PDO)),
        ("HDGSTF cleared", DIGESTS, &read, &[(1, 0)], field(offset::FLAGS)),
        ("DDGSTF cleared", DIGESTS, &write, &[(1, 1)], field(offset::FLAGS)),
        ("HDGSTF not agreed on", PLAIN, &read, &[(1, 1)], field(offset::FLAGS)),
        ("DDGSTF not agreed on", PLAIN, &data, &[(1, 6)], field(offset::FLAGS)),
        ("DDGSTF without data", DIGESTS, &read, &[(1, 3)], field(offset::FLAGS)),
        ("LAST_PDU on a command", PLAIN, &read, &[(1, 4)], field(offset::FLAGS)),
        ("SUCCESS on H2CData", PLAIN, &data, &[(1, 12)], field(offset::FLAGS)),
        ("DATAO wraps", PLAIN, &data, &[(13, 254), (14, 255), (15, 255)], Fatal::DataOutOfRange),
    ];
    let mut all: Vec<Bad> = Vec::new();
    for (name, params, pdu, changes, fatal) in rows {
        let len = pdu.data_len() as usize;
        let bytes = spoilt(pdu, &params, &vec![0; len], changes);
        all.push(Bad { name, role: Role::Controller, params, after_ic: true, bytes, fatal });
    }
    all
}

fn bad_limits_and_digests() -> Vec<Bad> {
    let limit = Limits::default();
    let fabrics = |data_len| Pdu::CapsuleCmd { sqe: Sqe::fabrics(1), data_len };
    let flipped = |pdu: &Pdu, at: usize| {
        let mut bytes = wire(pdu, &DIGESTS, &[]);
        bytes[at] ^= 0x10;
        bytes
    };
    let read = Pdu::CapsuleCmd { sqe: Sqe::new(2, 1), data_len: 0 };
    let received = HeaderBuf::encode(&read, &DIGESTS).bytes()[72..].try_into().unwrap();
    let received = u32::from_le_bytes(received);
    let rows = [
        ("in-capsule data too long", wire(&write_cmd(limit.in_capsule_max + 4), &PLAIN, &[])),
        ("Connect data too long", wire(&fabrics(8196), &PLAIN, &[])),
        ("DATAL beyond MAXH2CDATA", wire(&Pdu::H2CData(h2c(limit.h2c_data_max + 4)), &PLAIN, &[])),
    ];
    let mut all: Vec<Bad> = Vec::new();
    for (name, bytes) in rows {
        let (params, fatal) = (PLAIN, Fatal::LimitExceeded);
        all.push(Bad { name, role: Role::Controller, params, after_ic: true, bytes, fatal });
    }
    for (name, at, fatal) in [
        ("header bit flipped", 60, Fatal::HeaderDigest(received)),
        ("digest bit flipped", 73, Fatal::HeaderDigest(received ^ 0x1000)),
    ] {
        let bytes = flipped(&read, at);
        let (role, params) = (Role::Controller, DIGESTS);
        all.push(Bad { name, role, params, after_ic: true, bytes, fatal });
    }
    for (name, bytes) in [
        ("command before ICReq", wire(&read, &PLAIN, &[])),
        ("data before ICReq", wire(&Pdu::H2CData(h2c(4)), &PLAIN, &[0; 4])),
    ] {
        let (params, fatal) = (PLAIN, Fatal::PduSequence);
        all.push(Bad { name, role: Role::Controller, params, after_ic: false, bytes, fatal });
    }
    for (name, role) in [("second ICReq", Role::Controller), ("second ICResp", Role::Host)] {
        let (params, fatal, bytes) = (DIGESTS, Fatal::PduSequence, ic(role));
        all.push(Bad { name, role, params, after_ic: true, bytes, fatal });
    }
    all
}

fn bad_towards_host() -> Vec<Bad> {
    let field = Fatal::InvalidHeaderField;
    let cqe = Cqe::new(1, Status::SUCCESS);
    let resp = Pdu::CapsuleResp { cqe };
    let data = Pdu::C2HData(Data { ttag: 0, ..h2c(512) });
    let r2t = Pdu::R2T(R2T { cccid: 1, ttag: 1, r2to: 0, r2tl: 4096 });
    let rows: [(&'static str, &Pdu, Changes, Fatal); _] = [
        ("CapsuleCmd to a host", &resp, &[(0, 4)], Fatal::PduSequence),
        ("H2CData to a host", &data, &[(0, 6)], Fatal::PduSequence),
        ("H2CTermReq to a host", &resp, &[(0, 2)], Fatal::PduSequence),
        ("CapsuleResp PLEN", &resp, &[(4, 28)], field(offset::PLEN)),
        ("R2T PLEN", &r2t, &[(5, 1)], field(offset::PLEN)),
        ("R2T HLEN", &r2t, &[(2, 16)], field(offset::HLEN)),
        ("R2TL 0", &r2t, &[(17, 0)], field(offset::DATAL)),
        ("R2TO wraps", &r2t, &[(13, 255), (14, 255), (15, 255)], Fatal::DataOutOfRange),
        ("SUCCESS without LAST_PDU", &data, &[(1, 8)], field(offset::FLAGS)),
        ("LAST_PDU on R2T", &r2t, &[(1, 4)], field(offset::FLAGS)),
        ("C2HData without data", &data, &[(4, 24), (5, 0)], field(offset::PLEN)),
        ("C2HData PDO 0", &data, &[(3, 0)], field(offset::PDO)),
    ];
    let mut all: Vec<Bad> = Vec::new();
    for (name, pdu, changes, fatal) in rows {
        let bytes = spoilt(pdu, &PLAIN, &vec![0; pdu.data_len() as usize], changes);
        all.push(Bad { name, role: Role::Host, params: PLAIN, after_ic: true, bytes, fatal });
    }
    let mut short = wire(&Pdu::C2HTermReq(TermReq { fes: 1, fei: 0 }), &PLAIN, &[]);
    short[4] = 23;
    all.push(Bad {
        name: "TermReq PLEN 23",
        role: Role::Host,
        params: PLAIN,
        after_ic: true,
        bytes: short,
        fatal: field(offset::PLEN),
    });
    all
}

#[test]
fn every_malformed_pdu_is_the_fatal_error_of_its_row() {
    let tables =
        [bad_before_ic(), bad_towards_controller(), bad_limits_and_digests(), bad_towards_host()];
    let all: Vec<Bad> = tables.into_iter().flatten().collect();
    assert!(all.len() >= 20);
    for bad in &all {
        let start = if bad.after_ic { ic(bad.role) } else { Vec::new() };
        let whole = [&start[..], &bad.bytes].concat();
        let got = said(bad.role, bad.params, [&whole[..]]);
        assert_eq!(got, Err(bad.fatal), "{}", bad.name);
        let got = said(bad.role, bad.params, whole.chunks(1));
        assert_eq!(got, Err(bad.fatal), "{}, byte by byte", bad.name);
    }
    for fes in 1..=5 {
        assert!(all.iter().any(|bad| bad.fatal.fes() == fes), "no row for FES {fes}");
    }
}

prop_compose! {
    fn any_params()(
        hdgst in any::<bool>(), ddgst in any::<bool>(), pda in 0..=PDA_MAX,
    ) -> Params {
        Params { hdgst, ddgst, pda }
    }
}

prop_compose! {
    fn any_sqe()(bytes in any::<[u8; 32]>(), more in any::<[u8; 32]>()) -> Sqe {
        Sqe::read_from_bytes(&[bytes, more].concat()).unwrap()
    }
}

prop_compose! {
    fn any_cqe()(dw0: u32, dw1: u32, sqhd: u16, cid: u16, status: u16) -> Cqe {
        Cqe {
            dw0: U32::new(dw0),
            dw1: U32::new(dw1),
            sqhd: U16::new(sqhd),
            sqid: U16::new(0),
            cid: U16::new(cid),
            status: U16::new(status),
        }
    }
}

prop_compose! {
    fn any_data(c2h: bool)(
        cccid in any::<u16>(), ttag in any::<u16>(), datao in 0u32..1 << 31,
        datal in 1u32..9000, last in any::<bool>(), ok in any::<bool>(),
    ) -> Data {
        let ttag = if c2h { 0 } else { ttag };
        Data { cccid, ttag, datao, datal, last, success: c2h && last && ok }
    }
}

/// Any PDU that `role` may receive once connected.
fn any_pdu(role: Role) -> BoxedStrategy<Pdu> {
    let r2t = (any::<u16>(), any::<u16>(), 0u32..1 << 31, 1u32..1 << 31)
        .prop_map(|(cccid, ttag, r2to, r2tl)| Pdu::R2T(R2T { cccid, ttag, r2to, r2tl }));
    let term = (any::<u16>(), any::<u32>()).prop_map(|(fes, fei)| TermReq { fes, fei });
    match role {
        Role::Controller => prop_oneof![
            4 => (any_sqe(), prop_oneof![Just(0u32), 1u32..=8192])
                .prop_map(|(sqe, data_len)| Pdu::CapsuleCmd { sqe, data_len }),
            4 => any_data(false).prop_map(Pdu::H2CData),
            1 => term.prop_map(Pdu::H2CTermReq),
        ]
        .boxed(),
        Role::Host => prop_oneof![
            4 => any_cqe().prop_map(|cqe| Pdu::CapsuleResp { cqe }),
            4 => any_data(true).prop_map(Pdu::C2HData),
            4 => r2t,
            1 => term.prop_map(Pdu::C2HTermReq),
        ]
        .boxed(),
    }
}

/// A conversation towards a role: its bytes, and what a decoder has to say to them.
#[derive(Clone, Debug)]
struct Conversation {
    role: Role,
    params: Params,
    bytes: Vec<u8>,
    expected: Vec<Said>,
}

prop_compose! {
    fn any_ic()(role in prop_oneof![Just(Role::Host), Just(Role::Controller)])(
        pda in 0..=PDA_MAX, hdgst in any::<bool>(), ddgst in any::<bool>(),
        maxr2t in any::<u32>(), dwords in 1024u32..1 << 30,
        role in Just(role),
    ) -> (Role, Pdu) {
        let maxh2cdata = dwords * 4;
        let pdu = match role {
            Role::Controller => Pdu::ICReq(ICReq { pfv: 0, hpda: pda, hdgst, ddgst, maxr2t }),
            Role::Host => Pdu::ICResp(ICResp { pfv: 0, cpda: pda, hdgst, ddgst, maxh2cdata }),
        };
        (role, pdu)
    }
}

fn any_conversation(pdus: std::ops::Range<usize>) -> impl Strategy<Value = Conversation> {
    (any_ic(), any_params()).prop_flat_map(move |((role, ic), params)| {
        let pdus = prop::collection::vec((any_pdu(role), any::<u8>()), pdus.clone());
        pdus.prop_map(move |pdus| {
            let mut bytes = wire(&ic, &Params::default(), &[]);
            let mut expected = vec![Said::Pdu(ic)];
            for (pdu, seed) in pdus {
                let fill = |at: u32| (at as u8).wrapping_mul(31).wrapping_add(seed);
                let data: Vec<u8> = (0..pdu.data_len()).map(fill).collect();
                bytes.extend(wire(&pdu, &params, &data));
                expected.push(Said::Pdu(pdu));
                if !data.is_empty() {
                    expected.push(Said::Data(data));
                    expected.push(Said::DataEnd(true));
                }
            }
            Conversation { role, params, bytes, expected }
        })
    })
}

/// Cuts `bytes` after each of `lens`, again and again.
fn cut<'a>(mut bytes: &'a [u8], lens: &[usize]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for len in lens.iter().cycle() {
        if bytes.is_empty() {
            break;
        }
        pieces.push(take(&mut bytes, *len));
    }
    pieces
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_is_encoded_is_decoded(talk in any_conversation(0..12)) {
        let got = said(talk.role, talk.params, [&talk.bytes[..]]).unwrap();
        prop_assert_eq!(got, talk.expected);
    }

    #[test]
    fn random_cuts_change_nothing(
        talk in any_conversation(1..8),
        lens in prop::collection::vec(prop_oneof![1usize..4, 1usize..200, 1usize..5000], 1..20),
    ) {
        let got = said(talk.role, talk.params, cut(&talk.bytes, &lens)).unwrap();
        prop_assert_eq!(got, talk.expected);
    }

    #[test]
    fn random_bytes_never_panic(
        role in prop_oneof![Just(Role::Host), Just(Role::Controller)],
        params in any_params(),
        with_ic in any::<bool>(),
        bytes in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let start = if with_ic { ic(role) } else { Vec::new() };
        let whole = [&start[..], &bytes].concat();
        let once = said(role, params, [&whole[..]]);
        prop_assert_eq!(once, said(role, params, whole.chunks(1)));
    }

    #[test]
    fn a_spoilt_byte_never_panics(
        talk in any_conversation(1..4),
        at in any::<prop::sample::Index>(),
        with in any::<u8>(),
    ) {
        let mut bytes = talk.bytes.clone();
        bytes[at.index(talk.bytes.len())] ^= with;
        let once = said(talk.role, talk.params, [&bytes[..]]);
        prop_assert_eq!(once, said(talk.role, talk.params, bytes.chunks(7)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    #[test]
    fn every_single_cut_changes_nothing(talk in any_conversation(2..4)) {
        for at in 0..=talk.bytes.len() {
            let (one, two) = talk.bytes.split_at(at);
            let got = said(talk.role, talk.params, [one, two]).unwrap();
            prop_assert_eq!(&got, &talk.expected, "cut at {}", at);
        }
    }
}
