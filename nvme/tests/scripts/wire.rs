//! A connection's end that is the script's: PDUs to bytes and back, each term of a line a field.

use std::collections::{BTreeMap, VecDeque};

use moorline_stack::ConnId;

use super::pdu::{
    COMMON, Command, Field, HOSTNQN_AT, Kind, Received, SUBNQN_AT, Terms, command_named, crc32c,
    kind_named, load, store,
};
use super::script::{Term, Value};

pub const SUBNQN: &str = "nqn.2026-01.org.moorline:scripts";
pub const HOSTNQN: &str = "nqn.2026-01.org.moorline:host";

type Variables = BTreeMap<String, u64>;

/// What came over a connection.
#[derive(Debug)]
pub enum Came {
    Pdu(Received),
    Fin,
    Reset,
}

pub struct Conn {
    pub name: String,
    pub id: ConnId,
    pub inbox: VecDeque<Came>,
    bytes: Vec<u8>,
    /// Every byte sent by the script, for a TermReq's copy to be found in.
    pub sent: Vec<u8>,
    /// For what the script sends, and for what it receives.
    to_peer: Terms,
    to_us: Terms,
    pub cut: Vec<usize>,
    pub open: bool,
}

impl Conn {
    pub fn new(name: &str, id: ConnId) -> Self {
        Self {
            name: name.to_owned(),
            id,
            inbox: VecDeque::new(),
            bytes: Vec::new(),
            sent: Vec::new(),
            to_peer: Terms::default(),
            to_us: Terms::default(),
            cut: Vec::new(),
            open: true,
        }
    }

    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.bytes.extend_from_slice(bytes);
        while let Some(pdu) = Received::take(&mut self.bytes, &self.to_us)? {
            self.agree(&pdu.header, false);
            if matches!(pdu.header[0], 2 | 3) {
                let copy = &pdu.data[..];
                let known = self.sent.windows(copy.len().max(1)).any(|window| window == copy);
                if copy.is_empty() || !known {
                    return Err(format!("{pdu}: its copy is of nothing that was sent"));
                }
            }
            self.inbox.push_back(Came::Pdu(pdu));
        }
        Ok(())
    }

    /// ICReq says how the host wants its data, ICResp how the controller does, and what digests
    /// there are.
    fn agree(&mut self, header: &[u8], ours: bool) {
        if header[0] > 1 || header.len() < 128 || header[10] > 31 {
            return;
        }
        // The alignment that a side states is for what it receives.
        let terms = if ours { &mut self.to_us } else { &mut self.to_peer };
        terms.pda = header[10];
        if header[0] == 1 {
            for terms in [&mut self.to_us, &mut self.to_peer] {
                (terms.hdgst, terms.ddgst) = (header[11] & 1 == 1, header[11] & 2 == 2);
            }
        }
    }

    /// The bytes of a PDU as the script wants it.
    pub fn build(
        &mut self,
        name: &str,
        terms: &[Term],
        variables: &Variables,
    ) -> Result<Vec<u8>, String> {
        let command = command_named(name);
        let kind = kind_named(if command.is_some() { "CapsuleCmd" } else { name });
        let kind = kind.ok_or_else(|| format!("no PDU is called {name}"))?;
        let number = |name: &str| {
            let term = terms.iter().find(|term| term.name == name);
            term.map(|term| term.value.number(variables)).transpose()
        };
        let length = match kind.name {
            "C2HData" | "H2CData" => number("datal")?.unwrap_or(0),
            "CapsuleCmd" if name == "Connect" => 1024,
            "H2CTermReq" | "C2HTermReq" => 24,
            _ => 0,
        };
        let length = number("data")?.unwrap_or(length) as usize;
        let fill = number("fill")?.unwrap_or(0) as u8;
        let mut header = vec![0; kind.hlen];
        let mut data = vec![fill; length];
        preset(kind, command, &mut header, &mut data);
        let hdgst = self.to_peer.hdgst && kind.pdu_type >= 4;
        let is_data = length > 0 && kind.pdu_type >= 4;
        let ddgst = self.to_peer.ddgst && is_data;
        let head = kind.hlen + if hdgst { 4 } else { 0 };
        let align = self.to_peer.alignment();
        let pdo = if is_data { head.next_multiple_of(align) } else { head };
        header[0] = kind.pdu_type;
        header[1] |= u8::from(hdgst) | u8::from(ddgst) << 1;
        header[2] = kind.hlen as u8;
        header[3] = if is_data { pdo as u8 } else { 0 };
        let plen = pdo + length + if ddgst { 4 } else { 0 };
        header[4..8].copy_from_slice(&(plen as u32).to_le_bytes());
        for term in terms {
            set(kind, command, &mut header, &mut data, term, variables)?;
        }
        let digest = |bytes: &[u8], of: &str| -> Result<[u8; 4], String> {
            let said = terms.iter().find(|term| term.name == of);
            Ok(match said.map(|term| &term.value) {
                None => crc32c(bytes),
                Some(Value::Text(bad)) if bad == "bad" => !crc32c(bytes),
                Some(value) => value.number(variables)? as u32,
            }
            .to_le_bytes())
        };
        let mut bytes = header.clone();
        if hdgst {
            bytes.extend(digest(&header, "hdgst")?);
        }
        if is_data {
            bytes.resize(pdo, 0);
        }
        bytes.extend_from_slice(&data);
        if ddgst {
            bytes.extend(digest(&data, "ddgst")?);
        }
        self.agree(&header, true);
        Ok(bytes)
    }

    /// Whether a PDU that came is the one expected; captures what the script asked for.
    pub fn compare(
        pdu: &Received,
        name: &str,
        terms: &[Term],
        variables: &mut Variables,
    ) -> Result<(), String> {
        let command = command_named(name);
        let kind = pdu.kind();
        let is_it = command.map_or(kind.name == name, |command| pdu.is_command(command));
        if !is_it {
            return Err(format!("this is no {name}"));
        }
        for term in terms {
            if let Value::Text(text) = &term.value {
                let at = if term.name == "subnqn" { SUBNQN_AT } else { HOSTNQN_AT };
                let field = pdu.data.get(at..at + 256).ok_or("no name in it")?;
                let end = field.iter().position(|&byte| byte == 0).unwrap_or(256);
                if &field[..end] != text.as_bytes() {
                    return Err(format!("{} is {:?}", term.name, &field[..end]));
                }
                continue;
            }
            let value = value_in(kind, command, pdu, &term.name)?;
            if let Value::Capture(name) = &term.value {
                variables.insert(name.clone(), value);
                continue;
            }
            let wanted = term.value.number(variables)?;
            let holds = match term.op {
                "=" => value == wanted,
                "!=" => value != wanted,
                ">=" => value >= wanted,
                _ => value <= wanted,
            };
            if !holds {
                return Err(format!(
                    "{} is {value} ({value:#x}), not {} {wanted}",
                    term.name, term.op
                ));
            }
        }
        Ok(())
    }
}

/// What a PDU has that the script does not say.
fn preset(kind: &Kind, command: Option<&Command>, header: &mut [u8], data: &mut [u8]) {
    match kind.name {
        "ICResp" => header[12..16].copy_from_slice(&8192u32.to_le_bytes()),
        "CapsuleCmd" => {
            header[9] = 0x40;
            let in_capsule = !data.is_empty();
            header[47] = if in_capsule { 0x01 } else { 0x5A };
            header[40..44].copy_from_slice(&(data.len() as u32).to_le_bytes());
        }
        _ => {}
    }
    let Some(command) = command else { return };
    header[8] = command.op;
    header[12] = command.fctype.unwrap_or_default();
    match command.name {
        "Connect" if data.len() == 1024 => {
            header[52] = 31;
            data[..16].fill(7);
            data[16..18].fill(0xFF);
            data[SUBNQN_AT..][..SUBNQN.len()].copy_from_slice(SUBNQN.as_bytes());
            data[HOSTNQN_AT..][..HOSTNQN.len()].copy_from_slice(HOSTNQN.as_bytes());
        }
        "Identify" => header[40..44].copy_from_slice(&4096u32.to_le_bytes()),
        "Write" | "Read" | "Compare" | "WriteZeroes" | "Flush" => header[12] = 1,
        _ => {}
    }
}

/// Where a name is: in the header (`true`) or in the data.
fn find(kind: &Kind, command: Option<&Command>, name: &str) -> Result<(bool, Field), String> {
    let own = command.map_or(&[][..], |command| command.fields);
    let of_data = command.map_or(&[][..], |command| command.data);
    if let Some(field) = of_data.iter().find(|field| field.name == name) {
        return Ok((false, *field));
    }
    let mut fields = own.iter().chain(kind.fields).chain(COMMON);
    if let Some(field) = fields.find(|field| field.name == name) {
        return Ok((true, *field));
    }
    let place = name.strip_suffix(']').and_then(|name| name.split_once('['));
    let (of, place) = place.ok_or_else(|| format!("{} has no {name}", kind.name))?;
    let (at, bytes) = place.split_once(':').unwrap_or((place, "1"));
    let number = |text| super::script::number(text);
    let (at, bytes) = (number(at)? as usize, number(bytes)? as u32);
    let field = Field { name: "place", at, bit: 0, bits: bytes * 8 };
    match of {
        "data" => Ok((false, field)),
        "at" => Ok((true, field)),
        _ => Err(format!("{of}[] is neither data[] nor at[]")),
    }
}

fn set(
    kind: &Kind,
    command: Option<&Command>,
    header: &mut [u8],
    data: &mut [u8],
    term: &Term,
    variables: &Variables,
) -> Result<(), String> {
    match (&term.name[..], &term.value) {
        ("data" | "fill" | "hdgst" | "ddgst", _) => return Ok(()),
        (name @ ("subnqn" | "hostnqn"), Value::Text(text)) => {
            let at = if name == "subnqn" { SUBNQN_AT } else { HOSTNQN_AT };
            data[at..at + 256].fill(0);
            data[at..at + text.len()].copy_from_slice(text.as_bytes());
            return Ok(());
        }
        _ => {}
    }
    let (in_header, field) = find(kind, command, &term.name)?;
    let bytes = if in_header { header } else { data };
    if load(&field, bytes).is_none() {
        return Err(format!("{} is beyond its end", term.name));
    }
    store(&field, bytes, term.value.number(variables)?);
    Ok(())
}

fn value_in(
    kind: &Kind,
    command: Option<&Command>,
    pdu: &Received,
    name: &str,
) -> Result<u64, String> {
    match name {
        "data" => return Ok(pdu.data.len() as u64),
        "fill" => {
            let first = *pdu.data.first().ok_or("no data")?;
            let same = pdu.data.iter().all(|&byte| byte == first);
            return if same { Ok(first.into()) } else { Err("data are not all the same".into()) };
        }
        _ => {}
    }
    let (in_header, field) = find(kind, command, name)?;
    let bytes = if in_header { &pdu.header } else { &pdu.data };
    load(&field, bytes).ok_or_else(|| format!("{name} is beyond its end"))
}
