//! Ping-pong over plain kernel sockets: what the kernel's TCP takes for an exchange of the same
//! sizes, without framing, commands or polling of anything else. The yardstick that says whether
//! our kernel-socket transport is an honest opponent.
//!
//! Both ends spin on non-blocking sockets with TCP_NODELAY. The client begins a connection with
//! the number of legs and their sizes (32 bits each, little endian); what follows is counted only.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;

use super::exchange::Exchange;
use super::floor::Floor;
use crate::signals::Stop;

/// Legs of an exchange, at most.
const LEGS_MAX: usize = 8;
/// Bytes of a leg, at most.
const LEG_MAX: usize = 4 << 20;
/// How long a ping-pong may stand still.
const STALL: Duration = Duration::from_secs(2);

/// Answers one client after the other, until `stop`.
///
/// # Errors
/// When the address cannot be listened on. A client's errors end that client only.
pub fn serve(listen: SocketAddr, stop: &Stop, ready: impl FnOnce(SocketAddr)) -> Result<()> {
    let listener = TcpListener::bind(listen)
        .with_context(|| format!("cannot listen on {listen} for the plain-socket ping-pong"))?;
    listener.set_nonblocking(true)?;
    ready(listener.local_addr()?);
    while !stop.requested() {
        match listener.accept() {
            Ok((stream, peer)) => {
                if let Err(error) = serve_one(stream, stop) {
                    tracing::debug!(%peer, %error, "plain ping-pong ended");
                }
            }
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    Ok(())
}

fn serve_one(stream: TcpStream, stop: &Stop) -> Result<()> {
    let mut end = End::new(stream, stop)?;
    let mut count = [0; 4];
    end.stream.read_exact(&mut count).context("reading the number of legs")?;
    let count = u32::from_le_bytes(count) as usize;
    if count > LEGS_MAX {
        bail!("{count} legs");
    }
    let mut legs = Vec::with_capacity(count);
    for _ in 0..count {
        let mut size = [0; 4];
        end.stream.read_exact(&mut size).context("reading a leg's size")?;
        legs.push(u32::from_le_bytes(size) as usize);
    }
    let exchange = Exchange::from_legs(legs).context("legs that make no exchange")?;
    end.prepare(&exchange)?;
    loop {
        for (index, &leg) in exchange.legs().iter().enumerate() {
            if index % 2 == 0 { end.receive(leg)? } else { end.send(leg)? }
        }
    }
}

/// Plays ping-pong with a server for a time.
///
/// # Errors
/// When the server cannot be reached, or stands still for two seconds.
pub fn run(
    server: SocketAddr,
    exchange: &Exchange,
    runtime: Duration,
    stop: &Stop,
) -> Result<Floor> {
    let stream = TcpStream::connect(server)
        .with_context(|| format!("plain-socket ping-pong with {server}"))?;
    let mut end = End::new(stream, stop)?;
    end.stream.write_all(&(exchange.legs().len() as u32).to_le_bytes())?;
    for &leg in exchange.legs() {
        end.stream.write_all(&(leg as u32).to_le_bytes())?;
    }
    end.prepare(exchange)?;
    let mut nanos = Histogram::new_with_bounds(1, 60_000_000_000, 3)?;
    let begin = Instant::now();
    let mut last = begin;
    while last.duration_since(begin) < runtime && !stop.requested() {
        for (index, &leg) in exchange.legs().iter().enumerate() {
            if index % 2 == 0 { end.send(leg)? } else { end.receive(leg)? }
        }
        let now = Instant::now();
        nanos.saturating_record(now.duration_since(last).as_nanos() as u64);
        last = now;
    }
    Ok(Floor::new(&nanos, last.duration_since(begin), 0))
}

/// One end of a ping-pong.
struct End<'a> {
    stream: TcpStream,
    buffer: Vec<u8>,
    stop: &'a Stop,
}

impl<'a> End<'a> {
    fn new(stream: TcpStream, stop: &'a Stop) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(false)?; // for the preamble
        stream.set_read_timeout(Some(STALL))?;
        Ok(Self { stream, buffer: Vec::new(), stop })
    }

    fn prepare(&mut self, exchange: &Exchange) -> Result<()> {
        if exchange.leg_max() > LEG_MAX {
            bail!("a leg of {} bytes", exchange.leg_max());
        }
        self.buffer = vec![0; exchange.leg_max()];
        self.stream.set_nonblocking(true).context("non-blocking socket")
    }

    fn send(&mut self, bytes: usize) -> Result<()> {
        let mut sent = 0;
        let mut spin = Spin::new(self.stop);
        while sent < bytes {
            match self.stream.write(&self.buffer[sent..bytes]) {
                Ok(n) => sent += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => spin.turn()?,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn receive(&mut self, bytes: usize) -> Result<()> {
        let mut left = bytes;
        let mut spin = Spin::new(self.stop);
        while left > 0 {
            match self.stream.read(&mut self.buffer[..left]) {
                Ok(0) => bail!("the other end has closed"),
                Ok(n) => left -= n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => spin.turn()?,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

/// Spins, but neither for ever nor past `stop`; looks at the clock only now and then.
struct Spin<'a> {
    turns: u32,
    since: Option<Instant>,
    stop: &'a Stop,
}

impl<'a> Spin<'a> {
    const fn new(stop: &'a Stop) -> Self {
        Self { turns: 0, since: None, stop }
    }

    fn turn(&mut self) -> Result<()> {
        self.turns += 1;
        if !self.turns.is_multiple_of(1024) {
            return Ok(());
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        if self.stop.requested() || since.elapsed() > STALL {
            bail!("the plain-socket ping-pong stands still");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn legs_of_any_size_go_to_and_fro() {
        let stop = Stop::default();
        std::thread::scope(|scope| {
            let (tx, rx) = mpsc::channel();
            let stop = &stop;
            let server = scope.spawn(move || {
                serve("127.0.0.1:0".parse().unwrap(), stop, |addr| tx.send(addr).unwrap())
            });
            let addr = rx.recv().unwrap();
            for exchange in [Exchange::of(true, 4096), Exchange::of(false, 128 << 10)] {
                let floor = run(addr, &exchange, Duration::from_millis(20), stop).unwrap();
                assert!(floor.rate > 0.0 && floor.p50_us > 0.0, "{floor:?}");
            }
            stop.request();
            server.join().unwrap().unwrap();
        });
    }

    #[test]
    fn no_server_is_an_error_that_names_it() {
        let stop = Stop::default();
        let exchange = Exchange::of(true, 512);
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = run(free, &exchange, Duration::from_millis(1), &stop).unwrap_err();
        assert!(format!("{error:#}").contains(&free.to_string()), "{error:#}");
    }
}
