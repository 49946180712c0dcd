//! The PDU decoder in both roles, and ICReq and ICResp through it.
//!
//! What is asserted: the same PDUs, data and errors however the stream is cut; an error stays and
//! can be told; no more items than bytes allow; and what was decoded encodes to the same PDU.

use moorline_nvme::pdu::{
    Decoder, Fatal, HeaderBuf, Item, Limits, MAXH2CDATA_MIN, PDA_MAX, Params, Pdu, Role, crc32c,
};

use crate::input::Input;

/// What a decoder made of a stream.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    pdus: Vec<Pdu>,
    /// All data, one after the other, and where each PDU's end.
    data: Vec<u8>,
    ends: Vec<(usize, bool)>,
    fatal: Option<Fatal>,
}

/// How a connection is set up before, or while, it is fuzzed.
#[derive(Clone, Copy)]
struct Setup {
    role: Role,
    params: Params,
    limits: Limits,
    /// ICReq or ICResp were exchanged before the stream begins.
    ready: bool,
}

/// A stream to a decoder whose role, parameters and cuts the first bytes choose.
pub fn decoder(data: &[u8]) {
    let mut input = Input(data);
    let choice = input.byte();
    let bit = |n: u8| choice & 1 << n != 0;
    let setup = Setup {
        role: if bit(0) { Role::Host } else { Role::Controller },
        params: Params { hdgst: bit(1), ddgst: bit(2), pda: input.byte() % (PDA_MAX + 1) },
        limits: Limits {
            in_capsule_max: u32::from(input.word()),
            h2c_data_max: u32::from(input.word()),
        },
        ready: bit(3),
    };
    let cuts = input.array::<4>();
    let mut stream = input.0.to_vec();
    if bit(4) {
        mend_digests(&mut stream, &setup.params);
    }
    compare(&setup, &stream, &cuts);
}

/// The one PDU that begins a connection, with some of its bytes changed.
pub fn ic(data: &[u8]) {
    let mut input = Input(data);
    let role = if input.byte() & 1 == 0 { Role::Controller } else { Role::Host };
    let mut header = vec![0; 128];
    (header[0], header[2], header[4]) = (u8::from(role == Role::Host), 128, 128);
    header[13] = 0x20; // MAXH2CDATA 8192, or a MAXR2T that is as large
    while !input.is_empty() {
        let at = usize::from(input.byte()) % 16;
        header[at] = input.byte();
    }
    let setup = Setup { role, params: Params::default(), limits: Limits::default(), ready: false };
    let read = compare(&setup, &header, &[1, 7, 0, 64]);
    match read.pdus.first() {
        Some(Pdu::ICReq(ic)) => {
            assert!(role == Role::Controller && ic.pfv == 0 && ic.hpda <= PDA_MAX);
        }
        Some(Pdu::ICResp(ic)) => {
            assert!(role == Role::Host && ic.pfv == 0 && ic.cpda <= PDA_MAX);
            assert!(ic.maxh2cdata >= MAXH2CDATA_MIN && ic.maxh2cdata.is_multiple_of(4));
        }
        Some(Pdu::H2CTermReq(_) | Pdu::C2HTermReq(_)) => {}
        Some(other) => panic!("{other:?} begins no connection"),
        None => assert!(read.fatal.is_some() || header[4..8] != [128, 0, 0, 0]),
    }
}

/// Reads a stream whole and cut, and compares.
fn compare(setup: &Setup, stream: &[u8], cuts: &[u8; 4]) -> Read {
    let whole = read(setup, stream, &[0; 4]);
    let cut = read(setup, stream, cuts);
    assert_eq!(whole, cut, "cut at {cuts:?}");
    whole
}

/// Reads a stream in pieces whose lengths are those of `cuts`, in turn; 0 is "all the rest".
fn read(setup: &Setup, stream: &[u8], cuts: &[u8; 4]) -> Read {
    let mut decoder = Decoder::new(setup.role, setup.limits);
    if setup.ready {
        make_ready(&mut decoder, setup);
    }
    let mut read = Read { pdus: vec![], data: vec![], ends: vec![], fatal: None };
    let mut rest = stream;
    for cut in cuts.iter().cycle() {
        let most = if *cut == 0 { rest.len() } else { usize::from(*cut).min(rest.len()) };
        let (mut piece, behind) = rest.split_at(most);
        rest = behind;
        if !read.piece(&mut decoder, setup, &mut piece) || rest.is_empty() {
            break;
        }
    }
    assert!(read.pdus.len() <= stream.len() / 24 + 1 && read.data.len() <= stream.len());
    assert!(read.ends.len() <= read.pdus.len());
    read
}

impl Read {
    /// Takes in one piece; returns whether to go on.
    fn piece(&mut self, decoder: &mut Decoder, setup: &Setup, piece: &mut &[u8]) -> bool {
        loop {
            let before = piece.len();
            let item = decoder.next(piece);
            assert!(piece.len() <= before);
            match item {
                Ok(None) => {
                    assert!(piece.is_empty(), "more is wanted, and there is more");
                    return true;
                }
                Ok(Some(Item::Pdu(pdu))) => {
                    if matches!(pdu, Pdu::ICReq(_) | Pdu::ICResp(_)) {
                        decoder.set_params(setup.params);
                    }
                    encodes_to_itself(&pdu, setup);
                    self.pdus.push(pdu);
                }
                Ok(Some(Item::Data(data))) => {
                    assert!(!data.is_empty());
                    self.data.extend_from_slice(data);
                }
                Ok(Some(Item::DataEnd { digest_ok })) => {
                    self.ends.push((self.data.len(), digest_ok));
                }
                Err(fatal) => {
                    assert_eq!(decoder.next(&mut &[0u8; 200][..]), Err(fatal), "forgotten");
                    if let Some(term) = decoder.term_req(fatal) {
                        assert_eq!(term.plen() as usize, term.bytes().len());
                    }
                    self.fatal = Some(fatal);
                    return false;
                }
            }
        }
    }
}

/// Exchanges ICReq or ICResp.
fn make_ready(decoder: &mut Decoder, setup: &Setup) {
    let mut ic = [0; 128];
    (ic[0], ic[2], ic[4], ic[13]) = (u8::from(setup.role == Role::Host), 128, 128, 0x20);
    let mut input = &ic[..];
    assert!(matches!(decoder.next(&mut input), Ok(Some(Item::Pdu(_)))));
    decoder.set_params(setup.params);
}

fn encodes_to_itself(pdu: &Pdu, setup: &Setup) {
    let header = HeaderBuf::encode(pdu, &setup.params);
    let mut decoder = Decoder::new(setup.role, setup.limits);
    if !matches!(pdu, Pdu::ICReq(_) | Pdu::ICResp(_) | Pdu::H2CTermReq(_) | Pdu::C2HTermReq(_)) {
        make_ready(&mut decoder, setup);
    }
    assert_eq!(decoder.next(&mut header.bytes()), Ok(Some(Item::Pdu(*pdu))));
}

/// Makes the digests right wherever the stream's lengths can be followed, so that what lies behind
/// them is reached.
fn mend_digests(stream: &mut [u8], params: &Params) {
    let mut rest = stream;
    while rest.len() >= 8 {
        let hlen = usize::from(rest[2]);
        let pdo = usize::from(rest[3]);
        let plen = u32::from_le_bytes([rest[4], rest[5], rest[6], rest[7]]) as usize;
        if plen < 8 || plen > rest.len() {
            return;
        }
        let (pdu, behind) = rest.split_at_mut(plen);
        rest = behind;
        if pdu[0] < 4 {
            continue;
        }
        if params.ddgst && pdo >= 24 && pdo + 4 < plen {
            let digest = crc32c(&pdu[pdo..plen - 4]);
            pdu[plen - 4..].copy_from_slice(&digest.to_le_bytes());
        }
        if params.hdgst && hlen + 4 <= plen {
            let digest = crc32c(&pdu[..hlen]);
            pdu[hlen..hlen + 4].copy_from_slice(&digest.to_le_bytes());
        }
    }
}
