//! `moorline serve`: holds the controllers that a file names, whatever their targets do: one
//! reactor for all of them and for the control socket ([`proto`], `deploy/CTL.md`).
//!
//! A turn takes in what has arrived and is due, answers one request at most, and puts on the wire
//! what came of it; only then it sleeps. Targets that are not there are tried again like any that
//! was lost.

pub mod config;
pub mod control;
pub mod held;
pub mod log;
pub mod proto;
pub mod server;
pub(crate) mod show;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use moorline_nvme::host::{Host, HostIdentity, HostLimits};
use moorline_stack::time::earliest;
use moorline_stack::{Instant, Transport};

use self::config::Config;
use self::control::Control;
use crate::cli::PollMode;
use crate::exit::Exit;
use crate::identity::identity_of;
use crate::out;
use crate::signals::Stop;
use crate::stackup::{self, Job, Path};

/// Room for controllers that are connected later.
const MORE_CONTROLLERS: usize = 256;
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
    let control = Control::open(&config.socket, config.defaults.clone())?;
    let lane = config.lane.clone();
    let job = Serve { config, identity: identity?, control, stop: stop.clone() };
    stackup::run(&lane, job)?;
    Ok(stop.exit())
}

struct Serve {
    config: Config,
    identity: HostIdentity,
    control: Control,
    stop: Stop,
}

impl Job for Serve {
    type Out = ();

    fn run<T: Transport>(self, transport: T, _: Path) -> Result<()> {
        let Self { config, identity, mut control, stop } = self;
        let count = config.controllers.len();
        let limits = HostLimits { controllers: count + MORE_CONTROLLERS, ..HostLimits::default() };
        let mut host = Host::new(transport, identity, limits);
        let now = Instant::monotonic();
        for (name, controller) in config.controllers {
            let told = format!("controller {name:?}");
            control.connect(now, &mut host, name, controller).context(told)?;
        }
        let socket = config.socket.display();
        out::line(format_args!("holding {count} controller(s); control socket {socket}"))?;
        let mut reactor = Reactor { host, control, poll: config.lane.poll };
        while !stop.requested() {
            reactor.turn(None)?;
        }
        reactor.leave()
    }
}

struct Reactor<T: Transport> {
    host: Host<T>,
    control: Control,
    poll: PollMode,
}

impl<T: Transport> Reactor<T> {
    /// One turn, and the sleep after it, to `until` at most.
    fn turn(&mut self, until: Option<Instant>) -> Result<()> {
        let Self { host, control, poll } = self;
        let now = Instant::monotonic();
        host.turn(now);
        // At most a few for each controller.
        while let Some(event) = host.poll_event() {
            control.event(now, &event);
        }
        control.turn(now, host);
        host.flush(now);
        control.took(Instant::monotonic() - now);
        if *poll == PollMode::Busy {
            return Ok(());
        }
        let until = earliest(until, earliest(Some(now + TICK), control.poll_timeout()));
        host.wait(until, &[control.fd()]).context("waiting for targets")
    }

    /// Shuts all controllers down in order, as far as there is time.
    fn leave(mut self) -> Result<()> {
        let started = Instant::monotonic();
        let end = started + LEAVE_TIMEOUT;
        self.control.leave(started, &mut self.host);
        while !self.control.is_empty() {
            if Instant::monotonic() >= end {
                tracing::warn!("not all controllers were shut down within {LEAVE_TIMEOUT:?}");
                break;
            }
            self.turn(Some(end))?;
        }
        self.control.say_last(Instant::monotonic(), &mut self.host);
        Ok(())
    }
}
