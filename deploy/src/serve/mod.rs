//! `moorline serve`: holds the controllers that a file names, whatever their targets do: one
//! reactor for all of them and for the control socket ([`proto`], `deploy/CTL.md`).
//!
//! A turn takes in what has arrived and is due, answers one request at most, and puts on the wire
//! what came of it; only then it sleeps. Targets that are not there are tried again like any that
//! was lost.

pub mod config;
pub mod held;
pub mod proto;
pub mod server;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use moorline_nvme::host::{Host, HostIdentity, HostLimits};
use moorline_stack::time::earliest;
use moorline_stack::{Instant, Transport};

use self::config::Config;
use self::held::Held;
use self::server::Server;
use crate::cli::PollMode;
use crate::exit::Exit;
use crate::identity::identity_of;
use crate::out;
use crate::signals::Stop;
use crate::stackup::{self, Job, Path};

/// Room for controllers that are connected later.
const MORE_CONTROLLERS: usize = 256;
/// The control socket is looked at no more often, so that a busy loop is not full of system calls.
const CTL_EVERY: Duration = Duration::from_micros(200);
/// Longest sleep, so that a signal just before it is not missed for long.
const TICK: Duration = Duration::from_millis(100);
/// More than an orderly shutdown may take: outstanding I/O, CSTS.SHST, connections.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(8);

/// Options of `serve`.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// The configuration: our end of the network, and the controllers.
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// Check the configuration, and do nothing.
    #[arg(long)]
    pub check: bool,
}

/// Runs `serve`.
///
/// # Errors
/// When the configuration is wrong, or the environment does not allow it.
pub fn run(args: &ServeArgs) -> Result<Exit> {
    let config = Config::load(&args.config)?;
    let identity = identity_of(config.hostnqn.as_deref(), config.hostid.as_deref());
    let count = config.controllers.len();
    if args.check {
        identity.context("[host]")?;
        out::line(format_args!("{}: ok, {count} controller(s)", args.config.display()))?;
        return Ok(Exit::Ok);
    }
    let stop = Stop::on_signals()?;
    let server = Server::open(&config.socket)?;
    let lane = config.lane.clone();
    let job = Serve { config, identity: identity?, server, stop: stop.clone() };
    stackup::run(&lane, job)?;
    Ok(stop.exit())
}

struct Serve {
    config: Config,
    identity: HostIdentity,
    server: Server,
    stop: Stop,
}

impl Job for Serve {
    type Out = ();

    fn run<T: Transport>(self, transport: T, _: Path) -> Result<()> {
        let Self { config, identity, server, stop } = self;
        let count = config.controllers.len();
        let limits = HostLimits { controllers: count + MORE_CONTROLLERS, ..HostLimits::default() };
        let mut held = Held::new(Host::new(transport, identity, limits), config.defaults)?;
        let now = Instant::monotonic();
        for (name, controller) in config.controllers {
            let told = format!("controller {name:?}");
            held.connect(now, name, controller).context(told)?;
        }
        let socket = config.socket.display();
        out::line(format_args!("holding {count} controller(s); control socket {socket}"))?;
        let mut reactor = Reactor { held, server, poll: config.lane.poll, ctl_due: now };
        while !stop.requested() {
            reactor.turn(None)?;
        }
        reactor.leave()
    }
}

struct Reactor<T: Transport> {
    held: Held<T>,
    server: Server,
    poll: PollMode,
    /// When the control socket is looked at next.
    ctl_due: Instant,
}

impl<T: Transport> Reactor<T> {
    /// One turn, and the sleep after it, to `until` at most.
    fn turn(&mut self, until: Option<Instant>) -> Result<()> {
        let now = Instant::monotonic();
        self.held.turn(now, &mut self.server);
        if now >= self.ctl_due {
            self.server.turn(now, &mut self.held);
            self.ctl_due = now + CTL_EVERY;
        }
        self.held.host_mut().flush(now);
        self.held.took(Instant::monotonic() - now);
        if self.poll == PollMode::Busy {
            return Ok(());
        }
        let until = earliest(until, Some(now + TICK));
        let until = earliest(until, earliest(self.held.poll_timeout(), self.server.poll_timeout()));
        self.held.host_mut().wait(until, &[self.server.fd()]).context("waiting for targets")
    }

    /// Shuts all controllers down in order, as far as there is time.
    fn leave(mut self) -> Result<()> {
        let started = Instant::monotonic();
        let end = started + LEAVE_TIMEOUT;
        self.held.leave(started);
        while !self.held.is_empty() {
            if Instant::monotonic() >= end {
                tracing::warn!("not all controllers were shut down within {LEAVE_TIMEOUT:?}");
                break;
            }
            self.turn(Some(end))?;
        }
        // What followers are to be told of the end is on its way.
        self.server.turn(Instant::monotonic(), &mut self.held);
        Ok(())
    }
}
