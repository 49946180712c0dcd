//! Plays a script: our [`Tcp`] at one end of a wire without delay, the text at the other.
//!
//! Time is virtual and goes from deadline to deadline. What comes of a step is looked for in order,
//! at its very instant; what is left over when time goes on is a failure.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use moorline_stack::eth::{Frame as Ethernet, Packet};
use moorline_stack::link::sim::{SimLink, WireOptions};
use moorline_stack::route::Cidr;
use moorline_stack::segment::Segment;
use moorline_stack::tcp::{Tcp, TcpConfig};
use moorline_stack::transport::{ConnOptions, ListenOptions};
use moorline_stack::{ConnId, Event, Instant, Link, LinkTx, Transport};
use smoltcp::wire::TcpPacket;

use super::text::{self, Act, FLAGS, Frame, Script, Step, number};
use super::wire::{Place, Wire, ip, options_of, pattern};

/// The port that listens.
const PORT: u16 = 4420;

/// The peer's first initial sequence number: soon to wrap.
const THEIR_ISN: u32 = u32::MAX - 99;

/// Turns at one instant; more are a loop.
const TURNS_MAX: usize = 1000;

/// A connection, by the name that the script has for it.
struct Named {
    name: String,
    place: Place,
    our_isn: Option<u32>,
    conn: Option<ConnId>,
    /// Stream bytes sent and read by our driver.
    written: u32,
    read: u32,
}

/// A frame of ours.
struct Sent {
    at: Instant,
    /// Its words; a segment is compared part by part.
    text: String,
    segment: Option<(Segment, Vec<String>)>,
    name: String,
}

struct Player<'a> {
    tcp: Tcp<SimLink>,
    peer: SimLink,
    wire: Wire,
    now: Instant,
    conn: ConnOptions,
    listen: ListenOptions,
    named: Vec<Named>,
    sent: VecDeque<Sent>,
    told: VecDeque<(Instant, String, Vec<String>)>,
    /// No turn is taken.
    stalled: bool,
    trace: bool,
    script: &'a Script,
}

/// Plays a script; why it fails.
pub fn play(script: &Script, trace: bool) -> Result<(), String> {
    let mut player = Player::new(script, trace)?;
    for step in &script.steps {
        let place = format!("line {}", step.line);
        player.step(step).map_err(|error| format!("{place}: {error}"))?;
    }
    player.nothing_left(None).map_err(|error| format!("at its end: {error}"))
}

impl<'a> Player<'a> {
    fn new(script: &'a Script, trace: bool) -> Result<Self, String> {
        let mut config = TcpConfig { seed: Some(1), ..TcpConfig::default() };
        config.neighbour_options.announcements = 0;
        let mut options =
            WireOptions { delay: Duration::ZERO, ring_frames: 4096, ..WireOptions::default() };
        let mut wire = Wire { sums: true, ..Wire::default() };
        let (mut conn, mut listen) = (ConnOptions::default(), ListenOptions::default());
        let mut resolve = false;
        for (key, value, line) in &script.settings {
            let mut set = || -> Result<(), String> {
                match key.as_str() {
                    "mtu" => options.mtu = number(value)? as usize,
                    "ip" => wire.v6 = number(value)? == 6,
                    "vlan" => wire.vlan = Some(number(value)? as u16),
                    "resolve" => resolve = value == "yes",
                    "probe" => config.probe_addresses = value == "yes",
                    "checksums" => {
                        wire.sums = value == "yes";
                        config.no_tcp_checksums = !wire.sums;
                    }
                    "reno" => config.reno = value == "yes",
                    "half_open_max" => listen.half_open_max = number(value)? as usize,
                    "open_max" => listen.open_max = number(value)? as usize,
                    "half_open_timeout" => listen.half_open_timeout = text::duration(value)?,
                    _ => set_conn(&mut conn, key, value)?,
                }
                Ok(())
            };
            set().map_err(|error| format!("line {line}: {error}"))?;
        }
        listen.conn = conn.clone();
        let (link, peer) = SimLink::pair(&options);
        let prefix = if wire.v6 { 64 } else { 24 };
        config.addresses.push(Cidr { ip: ip(wire.v6, 1), prefix });
        config.vlan = wire.vlan;
        if !resolve {
            config.neighbours.push((ip(wire.v6, 2), [2, 0, 0, 0, 0, 2]));
        }
        let tcp = Tcp::new(Instant::ZERO, link, &config).map_err(|error| error.to_string())?;
        Ok(Self {
            tcp,
            peer,
            wire,
            now: Instant::ZERO,
            conn,
            listen,
            named: Vec::new(),
            sent: VecDeque::new(),
            told: VecDeque::new(),
            stalled: false,
            trace,
            script,
        })
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        let at = Instant::ZERO + step.at;
        // What arrives at an instant is there before what is due then is looked at.
        let looks = matches!(step.act, Act::Out(_) | Act::Event(_) | Act::See(_));
        self.run(at, looks)?;
        if self.trace {
            eprintln!("{:?} line {} {}: {:?}", step.at, step.line, step.name, step.act);
        }
        self.nothing_left(Some(at))?;
        match &step.act {
            Act::In(frame) => self.arrives(&step.name, frame),
            Act::Out(frame) => self.leaves(at, &step.name, frame),
            Act::Event(words) => self.hears(at, &step.name, words),
            Act::See(words) => self.sees(&step.name, words),
            Act::Call(words) => self.call(&step.name, words),
        }
    }

    /// Time goes on to `at`; what is due then is done, if `with` says so.
    fn run(&mut self, at: Instant, with: bool) -> Result<(), String> {
        while !self.stalled
            && let Some(next) = self.tcp.poll_timeout()
            && (next < at || (with && next <= at))
        {
            self.now = self.now.max(next);
            self.turns()?;
        }
        self.now = self.now.max(at);
        Ok(())
    }

    /// Turns until nothing more is to be done now.
    fn turns(&mut self) -> Result<(), String> {
        for _ in 0..TURNS_MAX {
            if self.stalled {
                return Ok(());
            }
            let now = self.now;
            self.tcp.turn(now);
            while let Some(event) = self.tcp.poll_event() {
                self.note(&event);
            }
            self.tcp.flush(now);
            let mut frames = Vec::new();
            self.peer.receive(now, usize::MAX, &mut |bytes, _| frames.push(bytes.to_vec()));
            for frame in frames {
                self.read(&frame)?;
            }
            if self.tcp.poll_timeout().is_none_or(|at| at > now) {
                return Ok(());
            }
        }
        Err(format!("{TURNS_MAX} turns at {:?}", self.now))
    }

    /// What happened before `at`, or at all, and no step has asked for.
    fn nothing_left(&self, at: Option<Instant>) -> Result<(), String> {
        let is_late = |happened: &Instant| at.is_none_or(|at| *happened < at);
        let sent = self.sent.front().filter(|sent| is_late(&sent.at));
        let sent = sent.map(|sent| format!("{:?} > {}: {}", sent.at, sent.name, sent.text));
        let told = self.told.front().filter(|(at, ..)| is_late(at));
        let told = told.map(|(at, name, words)| format!("{at:?} ! {name}: {}", words.join(" ")));
        match sent.or(told) {
            Some(what) => Err(format!("nobody foresaw {what}")),
            None => Ok(()),
        }
    }

    /// The connection of that name, which is made if there is none.
    fn named(&mut self, name: &str) -> &mut Named {
        let at = self.named.iter().position(|named| named.name == name).unwrap_or_else(|| {
            let theirs = 10_000 + self.named.len() as u16;
            let place = Place { ours: PORT, theirs, our_isn: 0, their_isn: THEIR_ISN };
            let name = name.to_owned();
            self.named.push(Named { name, place, our_isn: None, conn: None, written: 0, read: 0 });
            self.named.len() - 1
        });
        &mut self.named[at]
    }

    fn arrives(&mut self, name: &str, frame: &Frame) -> Result<(), String> {
        let wire = self.wire;
        let place = self.named(name).place;
        let bytes = match frame {
            Frame::Tcp(tcp) => wire.segment(tcp, place)?,
            Frame::Other(words) => wire.other(words, place)?,
        };
        self.peer.tx().transmit(bytes.len(), |out| out.copy_from_slice(&bytes));
        self.peer.flush(self.now).map_err(|error| error.to_string())?;
        self.turns()
    }

    /// Notes a frame of ours.
    fn read(&mut self, bytes: &[u8]) -> Result<(), String> {
        let frame = Ethernet::parse(bytes).map_err(|error| format!("we sent {error}"))?;
        if frame.vlan != self.wire.vlan {
            return Err(format!("we sent on VLAN {:?}", frame.vlan));
        }
        let (segment, packet) = match frame.packet {
            Packet::Tcp(segment, packet) => (segment, packet),
            Packet::Arp(arp) => return self.note_other(format!("arp {:?}", arp.op)),
            Packet::Icmp(datagram) => {
                let text = match datagram.message[0] {
                    0 | 129 => "echo Reply".to_owned(),
                    135 => "nd Request".to_owned(),
                    kind => format!("icmp {kind}"),
                };
                return self.note_other(text);
            }
            Packet::Other => return Err("we sent something unheard of".into()),
        };
        let (ours, theirs) = (segment.tuple.remote.port(), segment.tuple.local.port());
        let named = self.named.iter_mut().rev();
        let mut named = named.filter(|n| (n.place.ours, n.place.theirs) == (ours, theirs));
        let named = named.next().ok_or(format!("we sent from {ours} to {theirs}"))?;
        if segment.flags.syn() && named.our_isn.is_none() {
            named.our_isn = Some(segment.seq);
            named.place.our_isn = segment.seq;
        }
        let tcp = &packet[usize::from(segment.tcp_offset)..];
        let header = TcpPacket::new_unchecked(tcp);
        let addresses = [segment.tuple.remote.ip(), segment.tuple.local.ip()].map(Into::into);
        if self.wire.sums && !header.verify_checksum(&addresses[0], &addresses[1]) {
            return Err("we sent a wrong checksum".into());
        }
        let options = options_of(tcp, named.place.their_isn);
        let mut segment = segment;
        // A RST without a number of ours has 0.
        if !(segment.flags.rst() && segment.seq == 0) {
            segment.seq = segment.seq.wrapping_sub(named.place.our_isn);
        }
        segment.ack = segment.ack.wrapping_sub(named.place.their_isn);
        let start = segment.seq.wrapping_sub(u32::from(!segment.flags.syn()));
        let data = header.payload().iter().enumerate();
        if data.into_iter().any(|(at, &byte)| byte != pattern(start.wrapping_add(at as u32))) {
            return Err(format!("we sent other bytes at {}", segment.seq));
        }
        let sent = Sent {
            at: self.now,
            text: written(&segment, &options),
            name: named.name.clone(),
            segment: Some((segment, options)),
        };
        if self.trace {
            eprintln!("    {:?} > {}: {}", sent.at, sent.name, sent.text);
        }
        self.sent.push_back(sent);
        Ok(())
    }

    fn note_other(&mut self, text: String) -> Result<(), String> {
        if self.trace {
            eprintln!("    {:?} > {text}", self.now);
        }
        self.sent.push_back(Sent { at: self.now, text, name: String::new(), segment: None });
        Ok(())
    }

    /// Our next frame is the one foreseen.
    fn leaves(&mut self, at: Instant, name: &str, frame: &Frame) -> Result<(), String> {
        let expected = match frame {
            Frame::Tcp(tcp) => {
                let flags = letters(tcp.flags);
                format!("{name}: {flags} {}:({}) ack {:?}", tcp.seq as i32, tcp.len, tcp.ack)
            }
            Frame::Other(words) => words.join(" "),
        };
        let Some(sent) = self.sent.pop_front() else {
            return Err(format!("expected {expected}, nothing left at {at:?}"));
        };
        let is_it = match (frame, &sent.segment) {
            (Frame::Tcp(tcp), Some((segment, options))) => {
                let ack = segment.flags.ack().then_some(segment.ack);
                sent.name == name
                    && tcp.flags & !8 == segment.flags.0 & !8
                    && (tcp.seq, tcp.len) == (segment.seq, segment.payload_bytes)
                    && tcp.ack == ack
                    && tcp.win.is_none_or(|win| win == segment.window)
                    && tcp.options.as_ref().is_none_or(|wanted| wanted == options)
            }
            (Frame::Other(words), None) => words.join(" ") == sent.text.to_lowercase(),
            _ => false,
        };
        match is_it {
            true => Ok(()),
            false => Err(format!("expected {expected}, got {}: {}", sent.name, sent.text)),
        }
    }

    fn note(&mut self, event: &Event) {
        let id = match event {
            Event::Accepted { conn, peer, .. } => {
                let port = peer.port();
                let mut named = self.named.iter_mut().rev();
                if let Some(named) = named.find(|named| named.place.theirs == port) {
                    named.conn = Some(*conn);
                }
                Some(*conn)
            }
            Event::Connected(id) | Event::Readable(id) | Event::Writable(id) => Some(*id),
            Event::PeerClosed(id) | Event::Closed(id, _) => Some(*id),
            Event::Reachable(_) | Event::LinkUp => None,
        };
        let named = self.named.iter().rev().find(|named| id.is_some() && named.conn == id);
        let name = named.map_or(String::new(), |named| named.name.clone());
        let text = format!("{event:?}");
        let kind = text.split(['(', ' ']).next().unwrap_or_default();
        let mut words = vec![kind.to_owned()];
        if let Event::Closed(_, why) = event {
            words.push(format!("why={:?}", why.cause));
            words.push(format!("stage={:?}", why.stage));
            words.push(format!("after={:?}", why.after));
            words.push(format!("retransmits={}", why.retransmits));
            words.extend(why.rto.map(|rto| format!("rto={rto:?}")));
            words.extend(why.hint.map(|hint| format!("hint={hint:?}")));
            words.iter_mut().for_each(|word| word.retain(|letter| letter != ' '));
        }
        if self.trace {
            eprintln!("    {:?} ! {name}: {}", self.now, words.join(" "));
        }
        self.told.push_back((self.now, name, words));
    }

    /// The next event is the one foreseen; of `Closed`, in what is said of it.
    fn hears(&mut self, at: Instant, name: &str, words: &[String]) -> Result<(), String> {
        let expected = words.join(" ");
        let Some((_, about, told)) = self.told.pop_front() else {
            return Err(format!("expected {expected}, nothing was told at {at:?}"));
        };
        let of_node = told[0] == "Reachable" || told[0] == "LinkUp";
        let is_it = told[0] == words[0] && words.iter().all(|word| told.contains(word));
        match is_it && (about == name || of_node) {
            true => Ok(()),
            false => Err(format!("expected {name}: {expected}, got {about}: {}", told.join(" "))),
        }
    }

    fn sees(&mut self, name: &str, words: &[String]) -> Result<(), String> {
        let id = self.named(name).conn;
        let tcp = &self.tcp;
        let conn = tcp.connections().find(|conn| Some(conn.id) == id);
        let (icmp, drops) = (tcp.icmp_errors(), tcp.drops());
        let seen = match words[0].as_str() {
            "connections" => tcp.connections().count().to_string(),
            "retransmits" => tcp.stats().retransmits.to_string(),
            "syns" => tcp.stats().syns.to_string(),
            "stage" => conn.map_or("none".into(), |conn| format!("{:?}", conn.stage)),
            "unacknowledged" => conn.map_or(0, |conn| conn.send_queue).to_string(),
            "unread" => conn.map_or(0, |conn| conn.recv_queue).to_string(),
            "hint" => format!("{:?}", conn.and_then(|conn| conn.hint)).replace(' ', ""),
            "icmp" => format!("{}/{}/{}", icmp.ended, icmp.hints, icmp.ignored),
            "drops" => format!("{}/{}/{}", drops.not_ours, drops.malformed, drops.other),
            "idle" => format!("{}", tcp.poll_timeout().is_none()),
            what => return Err(format!("{what:?} cannot be seen")),
        };
        match words.get(1).is_some_and(|wanted| *wanted == seen) {
            true => Ok(()),
            false => Err(format!("{} is {seen}, expected {}", words[0], words[1..].join(" "))),
        }
    }

    fn call(&mut self, name: &str, words: &[String]) -> Result<(), String> {
        let now = self.now;
        let amount = match (words.len(), words[0].as_str()) {
            (2, "send" | "recv" | "room") => number(&words[1])? as usize,
            (1, "send" | "recv" | "room") => return Err("how many bytes?".into()),
            _ => 0,
        };
        let local = SocketAddr::new(ip(self.wire.v6, 1), PORT);
        let remote = SocketAddr::new(ip(self.wire.v6, 2), PORT);
        if !matches!(&words[0][..], "connect" | "listen" | "unlisten" | "renew")
            && !matches!(&words[0][..], "stall" | "go" | "quiet")
        {
            self.named(name).conn.ok_or(format!("there is no connection {name}"))?;
        }
        let conn = self.named(name).conn;
        let id = conn.unwrap_or(ConnId { index: u32::MAX, generation: 0 });
        let io = |error: std::io::Error| error.to_string();
        match words[0].as_str() {
            "connect" => self.connect(name, remote)?,
            "listen" => self.tcp.listen(now, local, &self.listen.clone()).map_err(io)?,
            "unlisten" => self.tcp.unlisten(local).map_err(io)?,
            "send" => self.send(name, id, amount)?,
            "recv" => self.recv(name, id, amount)?,
            "room" if self.tcp.send_room(id) != amount => {
                return Err(format!("room for {}", self.tcp.send_room(id)));
            }
            "ack" => self.tcp.ack(id),
            "close" => self.tcp.close(now, id),
            "abort" => self.tcp.abort(now, id),
            "set" => {
                let [_, key, value] = words else { return Err("set KEY VALUE".into()) };
                let mut options = self.conn.clone();
                set_conn(&mut options, key, value)?;
                if !self.tcp.set_timeouts(id, &options) {
                    return Err("it is gone".into());
                }
            }
            "renew" => {
                // The peer goes on with other numbers, and we may do so too.
                let named = self.named(name);
                named.our_isn = None;
                named.place.their_isn = named.place.their_isn.wrapping_add(1 << 20);
            }
            "stall" => self.stalled = true,
            "go" => self.stalled = false,
            _ => {}
        }
        self.turns()
    }

    fn connect(&mut self, name: &str, remote: SocketAddr) -> Result<(), String> {
        let options = self.conn.clone();
        let id = self.tcp.connect(self.now, remote, &options).map_err(|e| e.to_string())?;
        let info = self.tcp.connections().find(|conn| conn.id == id);
        let ours = info.map(|conn| conn.local.port()).ok_or("it ended at once")?;
        let named = self.named(name);
        (named.place.ours, named.place.theirs) = (ours, PORT);
        named.conn = Some(id);
        (named.our_isn, named.written, named.read) = (None, 0, 0);
        Ok(())
    }

    fn send(&mut self, name: &str, id: ConnId, amount: usize) -> Result<(), String> {
        let start = self.named(name).written;
        let bytes: Vec<u8> = (0..amount as u32).map(|at| pattern(start + at)).collect();
        let taken = self.tcp.send(id, &bytes);
        if taken != amount {
            return Err(format!("it took {taken} of {amount} bytes"));
        }
        self.named(name).written += amount as u32;
        Ok(())
    }

    fn recv(&mut self, name: &str, id: ConnId, amount: usize) -> Result<(), String> {
        let start = self.named(name).read;
        let mut bytes = Vec::new();
        self.tcp.recv(id, &mut |shown| {
            let taken = shown.len().min(amount - bytes.len());
            bytes.extend_from_slice(&shown[..taken]);
            taken
        });
        if bytes.len() != amount {
            return Err(format!("recv gave {} of {amount} bytes", bytes.len()));
        }
        if bytes.iter().zip(start..).any(|(&byte, at)| byte != pattern(at)) {
            return Err(format!("recv gave other bytes, from offset {start} on"));
        }
        self.named(name).read += amount as u32;
        Ok(())
    }
}

impl Drop for Player<'_> {
    fn drop(&mut self) {
        if self.trace {
            eprintln!("    {:?} end of {} steps", self.now, self.script.steps.len());
        }
    }
}

fn set_conn(options: &mut ConnOptions, key: &str, value: &str) -> Result<(), String> {
    match key {
        "connect_timeout" => options.connect_timeout = text::duration(value)?,
        "ack_timeout" => options.ack_timeout = text::duration(value)?,
        "drain_timeout" => options.drain_timeout = text::duration(value)?,
        "rx_buffer" => options.rx_buffer = number(value)? as usize,
        "tx_buffer" => options.tx_buffer = number(value)? as usize,
        "clock_factor" => options.clock_factor = number(value)? as u32,
        _ => return Err(format!("{key:?} cannot be set")),
    }
    Ok(())
}

fn letters(flags: u8) -> String {
    let set = FLAGS.iter().filter(|(_, bit)| flags & bit != 0);
    let text: String = set.map(|(letter, _)| letter).collect();
    if text.is_empty() { "-".into() } else { text }
}

/// A segment of ours as a script would have it.
fn written(segment: &Segment, options: &[String]) -> String {
    let (seq, len) = (segment.seq as i32, segment.payload_bytes as i32);
    let mut text = format!("{} {seq}:{}({len})", letters(segment.flags.0 & !8), seq + len);
    if segment.flags.ack() {
        text += &format!(" ack {}", segment.ack as i32);
    }
    text += &format!(" win {}", segment.window);
    if !options.is_empty() {
        text += &format!(" <{}>", options.join(","));
    }
    text
}
