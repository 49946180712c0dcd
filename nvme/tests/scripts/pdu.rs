//! PDUs as tables of fields, to be built, read and compared by name. It shares no code with the
//! library: what the scripts say is laid out by these tables, and nothing else.

/// A field: `bits` bits from bit `bit` of the byte at `at`, little-endian.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub name: &'static str,
    pub at: usize,
    pub bit: u32,
    pub bits: u32,
}

const fn f(name: &'static str, at: usize, bytes: u32) -> Field {
    Field { name, at, bit: 0, bits: bytes * 8 }
}

const fn b(name: &'static str, at: usize, bit: u32, bits: u32) -> Field {
    Field { name, at, bit, bits }
}

/// What every PDU begins with.
pub const COMMON: &[Field] = &[
    f("type", 0, 1),
    f("flags", 1, 1),
    b("hdgstf", 1, 0, 1),
    b("ddgstf", 1, 1, 1),
    b("last", 1, 2, 1),
    b("success", 1, 3, 1),
    f("hlen", 2, 1),
    f("pdo", 3, 1),
    f("plen", 4, 4),
];

/// A PDU type.
#[derive(Debug)]
pub struct Kind {
    pub name: &'static str,
    pub pdu_type: u8,
    pub hlen: usize,
    pub fields: &'static [Field],
}

const TERM: &[Field] = &[f("fes", 8, 2), f("fei", 10, 4)];

const DATA: &[Field] = &[f("cccid", 8, 2), f("ttag", 10, 2), f("datao", 12, 4), f("datal", 16, 4)];

pub const KINDS: &[Kind] = &[
    Kind {
        name: "ICReq",
        pdu_type: 0,
        hlen: 128,
        fields: &[f("pfv", 8, 2), f("hpda", 10, 1), f("dgst", 11, 1), f("maxr2t", 12, 4)],
    },
    Kind {
        name: "ICResp",
        pdu_type: 1,
        hlen: 128,
        fields: &[f("pfv", 8, 2), f("cpda", 10, 1), f("dgst", 11, 1), f("maxh2cdata", 12, 4)],
    },
    Kind { name: "H2CTermReq", pdu_type: 2, hlen: 24, fields: TERM },
    Kind { name: "C2HTermReq", pdu_type: 3, hlen: 24, fields: TERM },
    Kind {
        name: "CapsuleCmd",
        pdu_type: 4,
        hlen: 72,
        fields: &[
            f("op", 8, 1),
            f("cmdflags", 9, 1),
            b("fuse", 9, 0, 2),
            b("psdt", 9, 6, 2),
            f("cid", 10, 2),
            f("nsid", 12, 4),
            f("addr", 32, 8),
            f("len", 40, 4),
            f("sgl", 47, 1),
            f("cdw10", 48, 4),
            f("cdw11", 52, 4),
            f("cdw12", 56, 4),
            f("cdw13", 60, 4),
            f("cdw14", 64, 4),
            f("cdw15", 68, 4),
        ],
    },
    Kind {
        name: "CapsuleResp",
        pdu_type: 5,
        hlen: 24,
        fields: &[
            f("dw0", 8, 4),
            f("dw1", 12, 4),
            f("result", 8, 8),
            f("cntlid", 8, 2),
            f("ipo", 8, 2),
            b("iattr", 10, 0, 1),
            f("sqhd", 16, 2),
            f("cid", 20, 2),
            f("status", 22, 2),
            b("sc", 22, 1, 8),
            b("sct", 22, 9, 3),
            b("dnr", 22, 15, 1),
        ],
    },
    Kind { name: "H2CData", pdu_type: 6, hlen: 24, fields: DATA },
    Kind { name: "C2HData", pdu_type: 7, hlen: 24, fields: DATA },
    Kind {
        name: "R2T",
        pdu_type: 9,
        hlen: 24,
        fields: &[f("cccid", 8, 2), f("ttag", 10, 2), f("r2to", 12, 4), f("r2tl", 16, 4)],
    },
];

/// A command: a CapsuleCmd with some fields given, and with names for its own.
#[derive(Debug)]
pub struct Command {
    pub name: &'static str,
    pub op: u8,
    pub fctype: Option<u8>,
    pub fields: &'static [Field],
    /// Fields of its data.
    pub data: &'static [Field],
}

const fn command(name: &'static str, op: u8, fields: &'static [Field]) -> Command {
    Command { name, op, fctype: None, fields, data: &[] }
}

const fn fabrics(name: &'static str, fctype: u8, fields: &'static [Field]) -> Command {
    Command { name, op: 0x7F, fctype: Some(fctype), fields, data: &[] }
}

const PROPERTY: &[Field] = &[b("attrib", 48, 0, 3), f("ofst", 52, 4), f("value", 56, 8)];
const FEATURE: &[Field] = &[f("fid", 48, 1), b("sv", 51, 7, 1), f("value", 52, 4)];
const BLOCKS: &[Field] = &[f("slba", 48, 8), f("nlb", 56, 2), b("fua", 59, 6, 1)];

pub const COMMANDS: &[Command] = &[
    Command {
        data: &[f("hostid", 0, 8), f("cntlid", 16, 2)],
        ..fabrics(
            "Connect",
            1,
            &[
                f("recfmt", 48, 2),
                f("qid", 50, 2),
                f("sqsize", 52, 2),
                f("cattr", 54, 1),
                f("kato", 56, 4),
            ],
        )
    },
    fabrics("PropertySet", 0, PROPERTY),
    fabrics("PropertyGet", 4, PROPERTY),
    fabrics("AuthSend", 5, &[]),
    fabrics("Disconnect", 8, &[]),
    command("GetLogPage", 0x02, &[f("lid", 48, 1), f("numdl", 50, 2)]),
    command("Identify", 0x06, &[f("cns", 48, 1), f("cntid", 50, 2)]),
    command("Abort", 0x08, &[f("sqid", 48, 2), f("victim", 50, 2)]),
    command("SetFeatures", 0x09, FEATURE),
    command("GetFeatures", 0x0A, FEATURE),
    command("AsyncEventRequest", 0x0C, &[]),
    command("KeepAlive", 0x18, &[]),
    command("Flush", 0x00, &[]),
    command("Write", 0x01, BLOCKS),
    command("Read", 0x02, BLOCKS),
    command("Compare", 0x05, BLOCKS),
    command("WriteZeroes", 0x08, BLOCKS),
];

pub const SUBNQN_AT: usize = 256;
pub const HOSTNQN_AT: usize = 512;

pub fn kind_named(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name == name)
}

pub fn kind_of(pdu_type: u8) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.pdu_type == pdu_type)
}

pub fn command_named(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name)
}

/// The field's bytes as a number, and its mask.
fn word(field: &Field, bytes: &[u8]) -> u64 {
    let len = (field.bit + field.bits).div_ceil(8) as usize;
    let bytes = &bytes[field.at..field.at + len];
    bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
}

fn mask(field: &Field) -> u64 {
    u64::MAX >> (64 - field.bits)
}

/// A field's value; `None` when the bytes end before it.
pub fn load(field: &Field, bytes: &[u8]) -> Option<u64> {
    let end = field.at + (field.bit + field.bits).div_ceil(8) as usize;
    (end <= bytes.len()).then(|| word(field, bytes) >> field.bit & mask(field))
}

pub fn store(field: &Field, bytes: &mut [u8], value: u64) {
    assert!(value <= mask(field), "{} has {} bits", field.name, field.bits);
    let len = (field.bit + field.bits).div_ceil(8) as usize;
    let word = word(field, bytes) & !(mask(field) << field.bit) | value << field.bit;
    bytes[field.at..field.at + len].copy_from_slice(&word.to_le_bytes()[..len]);
}

/// CRC32C, bit by bit.
pub fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            crc >> 1 ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 }
        })
    })
}

/// What ICReq and ICResp agreed on, for one direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Terms {
    pub hdgst: bool,
    pub ddgst: bool,
    /// HPDA or CPDA.
    pub pda: u8,
}

impl Terms {
    pub fn alignment(&self) -> usize {
        (usize::from(self.pda) + 1) * 4
    }
}

/// A PDU that came, whole and well-formed.
#[derive(Clone, Debug)]
pub struct Received {
    pub header: Vec<u8>,
    pub data: Vec<u8>,
}

impl Received {
    pub fn kind(&self) -> &'static Kind {
        kind_of(self.header[0]).expect("checked when it was taken")
    }

    /// The command that it is, if it is one that has a name. Admin and I/O commands share
    /// opcodes; the name that is `wanted` is preferred.
    pub fn is_command(&self, command: &Command) -> bool {
        let fctype = (command.op == 0x7F).then(|| self.header[12]);
        self.header[0] == 4 && self.header[8] == command.op && fctype == command.fctype
    }

    /// Takes the next PDU off `bytes`; `None` when it is not there in full.
    pub fn take(bytes: &mut Vec<u8>, terms: &Terms) -> Result<Option<Self>, String> {
        if bytes.len() < 8 {
            return Ok(None);
        }
        let plen = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as usize;
        let kind = kind_of(bytes[0]).ok_or_else(|| format!("PDU type {:#04x}", bytes[0]))?;
        if plen < kind.hlen || plen > 4 << 20 {
            return Err(format!("{} with PLEN {plen}", kind.name));
        }
        if bytes.len() < plen {
            return Ok(None);
        }
        let pdu: Vec<u8> = bytes.drain(..plen).collect();
        Self::check(kind, &pdu, terms).map(Some).map_err(|what| format!("{}: {what}", kind.name))
    }

    /// Lengths, flags, offsets and digests, as the spec has them.
    fn check(kind: &Kind, pdu: &[u8], terms: &Terms) -> Result<Self, String> {
        let header = pdu[..kind.hlen].to_vec();
        if usize::from(pdu[2]) != kind.hlen {
            return Err(format!("HLEN {}", pdu[2]));
        }
        let (flags, pdo) = (pdu[1], usize::from(pdu[3]));
        let is_term = matches!(kind.pdu_type, 2 | 3);
        let digests = kind.pdu_type >= 4;
        let hdgst = digests && terms.hdgst;
        let head = kind.hlen + if hdgst { 4 } else { 0 };
        let has_data = !is_term && pdu.len() > head;
        let ddgst = has_data && terms.ddgst;
        if (flags & 1 == 1, flags & 2 == 2) != (hdgst, ddgst) {
            return Err(format!("FLAGS {flags:#04x}"));
        }
        if hdgst && pdu[kind.hlen..head] != crc32c(&header).to_le_bytes() {
            return Err("header digest".into());
        }
        if is_term {
            return Ok(Self { header, data: pdu[24..].to_vec() });
        }
        if !has_data {
            return if pdo == 0 { Ok(Self { header, data: vec![] }) } else { Err("PDO".into()) };
        }
        if !matches!(kind.pdu_type, 4 | 6 | 7) {
            return Err(format!("PLEN {}", pdu.len()));
        }
        let end = pdu.len() - if ddgst { 4 } else { 0 };
        if pdo < head || pdo >= end || !pdo.is_multiple_of(terms.alignment()) {
            return Err(format!("PDO {pdo}"));
        }
        let data = pdu[pdo..end].to_vec();
        if ddgst && pdu[end..] != crc32c(&data).to_le_bytes() {
            return Err("data digest".into());
        }
        if kind.pdu_type != 4 && load(&f("", 16, 4), &header) != Some(data.len() as u64) {
            return Err("DATAL and PLEN differ".into());
        }
        Ok(Self { header, data })
    }
}

impl std::fmt::Display for Received {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = self.kind();
        let command = COMMANDS.iter().find(|command| self.is_command(command));
        out.write_str(command.map_or(kind.name, |command| command.name))?;
        let own = command.map_or(&[][..], |command| command.fields);
        for field in COMMON[3..6].iter().chain(kind.fields).chain(own) {
            match load(field, &self.header) {
                Some(0) | None => {}
                Some(value) if value < 10 => write!(out, " {}={value}", field.name)?,
                Some(value) => write!(out, " {}={value:#x}", field.name)?,
            }
        }
        if self.data.is_empty() { Ok(()) } else { write!(out, " data={}", self.data.len()) }
    }
}

#[test]
fn the_tables_agree_with_the_vectors_of_the_spec() {
    assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    assert_eq!(crc32c(&[0; 32]).to_le_bytes(), [0xAA, 0x36, 0x91, 0x8A]);
    assert_eq!(crc32c(&[0xFF; 32]).to_le_bytes(), [0x43, 0xAB, 0xA8, 0x62]);
    let r2t = [9, 1, 24, 0, 28, 0, 0, 0, 5, 0, 7, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0];
    let mut bytes = r2t.to_vec();
    bytes.extend([0x8F, 0xB2, 0x6C, 0x0B]);
    let terms = Terms { hdgst: true, ..Terms::default() };
    let pdu = Received::take(&mut bytes, &terms).unwrap().unwrap();
    assert_eq!(pdu.to_string(), "R2T cccid=5 ttag=7 r2tl=0x2000");
}
