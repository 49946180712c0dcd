//! Why a controller was lost or never reached: kept whole, and printed as a person needs it.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use moorline_stack::transport::{Cause as TcpCause, Stage as TcpStage, Why};

use crate::pdu::fes::fes_name;
use crate::pdu::{Fatal, TermReq};
use crate::spec::Status;

/// How far an association had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// TCP handshake.
    Tcp,
    /// ICReq sent.
    InitializeConnection,
    /// Fabrics Connect sent.
    Connect,
    /// Properties: CAP, CC, CSTS.
    Enable,
    /// Identify Controller and features.
    Identify,
    /// I/O queues being connected.
    IoQueues,
    /// Namespaces being read.
    Namespaces,
    /// Takes I/O.
    Live,
    /// Being shut down as asked.
    Shutdown,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP connect",
            Self::InitializeConnection => "initialize connection",
            Self::Connect => "Connect",
            Self::Enable => "enable controller",
            Self::Identify => "identify",
            Self::IoQueues => "I/O queues",
            Self::Namespaces => "namespaces",
            Self::Live => "live",
            Self::Shutdown => "shutdown",
        })
    }
}

/// Why a controller failed.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The target.
    pub addr: SocketAddr,
    /// The queue whose connection it was; 0 is the admin queue.
    pub qid: u16,
    /// How far it had come.
    pub stage: Stage,
    /// What was awaited then ("ICResp", "CSTS.RDY = 1").
    pub awaited: &'static str,
    /// For how long.
    pub after: Duration,
    /// What ended it.
    pub cause: Cause,
}

/// What can end an association.
#[derive(Clone, Debug, PartialEq)]
pub enum Cause {
    /// The TCP connection ended, or could not be made.
    Tcp(Why),
    /// The connection could not even be started: out of connections, no route.
    NotStarted(std::io::ErrorKind),
    /// The peer closed the connection (FIN).
    PeerClosed,
    /// What was awaited did not come within its deadline.
    Timeout,
    /// The peer broke the protocol; it was told with a TermReq.
    Protocol(Fatal),
    /// The peer said with a TermReq that we did.
    Terminated(TermReq),
    /// Connect was refused.
    ConnectRefused {
        /// The completion's status.
        status: Status,
        /// DW0: for Invalid Parameters, the field's offset in bits 15:0, and in bit 16 whether it
        /// is in the data (1) or the command (0).
        dw0: u32,
    },
    /// A command of the bring-up failed.
    Status(Status),
    /// The controller is not one that we can use.
    Unsupported(&'static str),
    /// CSTS.CFS: the controller says it has failed.
    ControllerFatal,
}

impl Failure {
    /// Whether the peer ended the connection: by FIN, or by RST once it was established.
    pub(super) fn is_by_peer(&self) -> bool {
        match &self.cause {
            Cause::PeerClosed => true,
            Cause::Tcp(why) => why.cause == TcpCause::Reset && why.stage != TcpStage::SynSent,
            _ => false,
        }
    }

    /// Whether trying again can help: not for a configuration fault (DNR, invalid parameters,
    /// host not allowed, authentication required), nor for what is not supported.
    pub fn is_retryable(&self) -> bool {
        match self.cause {
            Cause::ConnectRefused { status, .. } => {
                !(status.dnr() || matches!(codes(status), (1, 0x80 | 0x82 | 0x84 | 0x85 | 0x91)))
            }
            Cause::Status(status) => !status.dnr(),
            Cause::Unsupported(_) => false,
            _ => true,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "target {}: {}", self.addr, self.stage)?;
        if self.qid > 0 {
            write!(f, " (queue {})", self.qid)?;
        }
        match &self.cause {
            Cause::Tcp(why) if self.stage == Stage::Tcp => write!(f, ": {why}"),
            Cause::Tcp(why) => write!(f, ": connection lost awaiting {}: {why}", self.awaited),
            Cause::NotStarted(kind) => write!(f, ": cannot start a connection: {kind}"),
            Cause::PeerClosed => {
                write!(f, ": the target closed the connection, awaiting {}", self.awaited)
            }
            Cause::Timeout => write!(f, ": no {} within {:.1?}", self.awaited, self.after),
            Cause::Protocol(fatal) => {
                write!(f, ": the target broke the protocol: {fatal}")
            }
            Cause::Terminated(term) => write!(
                f,
                ": the target ended the connection with FES {} ({}), FEI {:#x}",
                term.fes,
                fes_name(term.fes),
                term.fei
            ),
            Cause::ConnectRefused { status, dw0 } => {
                write!(f, " refused: {}", connect_status(*status))?;
                if codes(*status) == (1, 0x82) {
                    let place = if dw0 & 1 << 16 != 0 { "data" } else { "command" };
                    write!(f, ", in {}", connect_field(*dw0))?;
                    write!(f, " ({place} byte {})", dw0 & 0xFFFF)?;
                }
                Ok(())
            }
            Cause::Status(status) => write!(f, ": {} failed: {}", self.awaited, status),
            Cause::Unsupported(what) => write!(f, ": {what}"),
            Cause::ControllerFatal => write!(f, ": the controller reports a fatal status"),
        }
    }
}

impl std::error::Error for Failure {}

/// A Connect status; 80h and up mean other things after other commands.
fn connect_status(status: Status) -> String {
    let name = match codes(status) {
        (1, 0x80) => "incompatible record format",
        (1, 0x81) => "controller busy",
        (1, 0x82) => "invalid parameters",
        (1, 0x83) => "restart discovery",
        (1, 0x84) => "this host is not allowed (invalid host)",
        (1, 0x85) => "invalid queue type",
        (1, 0x90) => "discover restart",
        (1, 0x91) => "authentication required, which is not supported yet",
        _ => return status.to_string(),
    };
    name.to_owned()
}

/// The field that an Invalid Parameters points at.
fn connect_field(dw0: u32) -> &'static str {
    match (dw0 >> 16 & 1, dw0 & 0xFFFF) {
        (0, 40) => "RECFMT",
        (0, 42) => "QID",
        (0, 44) => "SQSIZE",
        (0, 46) => "CATTR",
        (0, 48) => "KATO",
        (1, 0) => "HOSTID",
        (1, 16) => "CNTLID",
        (1, 256) => "SUBNQN (no such subsystem there)",
        (1, 512) => "HOSTNQN",
        _ => "a field",
    }
}

fn codes(status: Status) -> (u8, u8) {
    (status.sct(), status.sc())
}
