//! `moorline discover`: the discovery log page of a discovery controller (NVMe Base, "Discovery
//! Log Page", LID 70h).

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, bail, ensure};
use clap::Args;
use moorline_nvme::host::{AdminCommand, CtrlConfig};
use moorline_nvme::spec::log::lid;
use moorline_stack::Transport;
use serde::Serialize;

use crate::cli::{HostArgs, LaneArgs};
use crate::exit::Exit;
use crate::identity::host_identity;
use crate::out;
use crate::perf::report::{SCHEMA, VERSION};
use crate::session::Session;
use crate::signals::Stop;
use crate::stackup::{self, Job, Path};

/// Length of the log's header, and of each of its entries.
const ENTRY: u32 = 1024;
/// Entries that we read at most: a log is a peer's word.
const ENTRIES_MAX: u64 = 4096;
/// Times that the log may change while it is read.
const TRIES: usize = 5;

/// Options of `discover`.
#[derive(Args, Clone, Debug)]
pub struct DiscoverArgs {
    /// The discovery controller's address.
    #[arg(short = 'a', long, value_name = "IP")]
    pub traddr: IpAddr,
    /// Its TCP port.
    #[arg(short = 's', long, value_name = "PORT", default_value_t = 8009)]
    pub trsvcid: u16,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Who we are.
    #[command(flatten)]
    pub host: HostArgs,
    /// Our end of the network.
    #[command(flatten)]
    pub lane: LaneArgs,
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    trtype: &'static str,
    adrfam: &'static str,
    subtype: &'static str,
    traddr: String,
    trsvcid: String,
    subnqn: String,
    portid: u16,
    cntlid: u16,
    treq: u8,
    sectype: u8,
}

#[derive(Serialize)]
struct Report {
    schema: u32,
    version: &'static str,
    conditions: Conditions,
    entries: Vec<Entry>,
}

#[derive(Serialize)]
struct Conditions {
    transport: &'static str,
    traddr: IpAddr,
    trsvcid: u16,
}

/// Runs `discover`.
///
/// # Errors
/// When the controller cannot be reached, or does not answer as it should.
pub fn run(args: DiscoverArgs) -> Result<Exit> {
    let stop = Stop::on_signals()?;
    let entries = stackup::run(&args.lane, Ask { args: &args, stop })?;
    if args.json {
        let report = Report {
            schema: SCHEMA,
            version: VERSION,
            conditions: Conditions {
                transport: args.lane.transport.name(),
                traddr: args.traddr,
                trsvcid: args.trsvcid,
            },
            entries,
        };
        out::line(format_args!("{}", serde_json::to_string_pretty(&report)?))?;
    } else {
        for e in &entries {
            out::line(format_args!(
                "{:9} {} {:4} {} port {}  {}",
                e.subtype, e.trtype, e.adrfam, e.traddr, e.trsvcid, e.subnqn
            ))?;
        }
        if entries.is_empty() {
            out::line(format_args!("no subsystems"))?;
        }
    }
    Ok(Exit::Ok)
}

struct Ask<'a> {
    args: &'a DiscoverArgs,
    stop: Stop,
}

impl Job for Ask<'_> {
    type Out = Vec<Entry>;

    fn run<T: Transport>(self, transport: T, _path: Path) -> Result<Vec<Entry>> {
        let identity = host_identity(&self.args.host)?;
        let addr = SocketAddr::new(self.args.traddr, self.args.trsvcid);
        let mut config = CtrlConfig::discovery(addr);
        config.hdgst = self.args.host.hdr_digest;
        config.ddgst = self.args.host.data_digest;
        self.args.host.timeouts.apply(&mut config)?;
        let mut session = Session::open(transport, identity, config, self.stop)?;
        let entries = read_log(&mut session);
        session.close();
        entries
    }
}

/// Reads the whole log, again if it changed meanwhile.
fn read_log<T: Transport>(session: &mut Session<T>) -> Result<Vec<Entry>> {
    for _ in 0..TRIES {
        let (generation, count) = read_header(session)?;
        ensure!(count <= ENTRIES_MAX, "the log says {count} entries: too many to be believed");
        let mut entries = Vec::new();
        for index in 0..count {
            let offset = u64::from(ENTRY) * (index + 1);
            entries.push(parse(&read(session, offset)?));
        }
        if read_header(session)? == (generation, count) {
            return Ok(entries);
        }
    }
    bail!("the log changed {TRIES} times while it was read: try again")
}

fn read_header<T: Transport>(session: &mut Session<T>) -> Result<(u64, u64)> {
    let header = read(session, 0)?;
    Ok((u64_at(&header, 0), u64_at(&header, 8)))
}

fn read<T: Transport>(session: &mut Session<T>, offset: u64) -> Result<Vec<u8>> {
    let done = session.admin(AdminCommand::log_page(lid::DISCOVERY, 0, false, offset, ENTRY))?;
    let status = done.status();
    ensure!(
        status.0 == 0 && done.data.len() == ENTRY as usize,
        "reading the discovery log failed: status {:#06x} (is it a discovery controller?)",
        status.0
    );
    Ok(done.data)
}

/// One entry of the log, from its bytes: whatever they are, nothing in it moves a cursor.
///
/// # Panics
/// When they are fewer than 1024.
pub fn parse(entry: &[u8]) -> Entry {
    let u16_at = |at: usize| u16::from_le_bytes([entry[at], entry[at + 1]]);
    Entry {
        trtype: match entry[0] {
            1 => "rdma",
            2 => "fc",
            3 => "tcp",
            0xFE => "loop",
            _ => "?",
        },
        adrfam: match entry[1] {
            1 => "ipv4",
            2 => "ipv6",
            _ => "?",
        },
        subtype: match entry[2] {
            1 => "referral",
            2 => "nvm",
            3 => "discovery",
            _ => "?",
        },
        treq: entry[3],
        portid: u16_at(4),
        cntlid: u16_at(6),
        trsvcid: text(&entry[32..64]),
        subnqn: text(&entry[256..512]),
        traddr: text(&entry[512..768]),
        sectype: entry[768],
    }
}

/// A field of ASCII padded with NULs or spaces. It is a peer's: nothing of it may move a cursor.
fn text(field: &[u8]) -> String {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    let plain = |&b: &u8| if (b' '..0x7F).contains(&b) { char::from(b) } else { '?' };
    field[..end].iter().map(plain).collect::<String>().trim_end().to_owned()
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_read_from_its_fields() {
        let mut raw = vec![0; ENTRY as usize];
        raw[..8].copy_from_slice(&[3, 1, 2, 4, 1, 0, 0xFF, 0xFF]);
        raw[32..36].copy_from_slice(b"4420");
        raw[36..64].fill(b' ');
        raw[256..265].copy_from_slice(b"nqn.x\x1b[2J");
        raw[512..520].copy_from_slice(b"10.0.0.1");
        let entry = parse(&raw);
        assert_eq!((entry.trtype, entry.adrfam, entry.subtype), ("tcp", "ipv4", "nvm"));
        assert_eq!((entry.portid, entry.cntlid), (1, 0xFFFF));
        assert_eq!((entry.traddr.as_str(), entry.trsvcid.as_str()), ("10.0.0.1", "4420"));
        assert_eq!(entry.subnqn, "nqn.x?[2J");
    }
}
