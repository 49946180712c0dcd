//! The control socket's server, part of the reactor's turn and never in its way.
//!
//! What always holds: nothing here blocks; a turn answers one request at most, and reads and
//! writes at most [`BYTES_PER_TURN`] of each of at most [`CLIENTS_MAX`] clients; a client that
//! does not read its answers is asked nothing more, and is put out after [`EVICT_AFTER`]; a
//! follower of the events that is too slow for them loses some, and is told how many.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use moorline_stack::Instant;
use rustix::event::{Timespec, epoll};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::geteuid;
use serde_json::{Value, json};

use super::proto::{self, Cmd, Request, V};

/// Clients at once; more are turned away.
pub const CLIENTS_MAX: usize = 16;
/// Bytes read of a client, and written to it, in a turn.
pub const BYTES_PER_TURN: usize = 64 << 10;
/// Longest request.
const LINE_MAX: usize = 8 << 10;
/// Bytes for a client that wait to be written, above which it gets no more events.
const OUT_MAX: usize = 64 << 10;
/// How long a client may leave what we have for it unread.
const EVICT_AFTER: Duration = Duration::from_secs(2);
/// Events kept for followers that are behind.
const EVENTS_MAX: usize = 1024;
/// Events that a follower is given in a turn.
const EVENTS_PER_TURN: usize = 64;
/// The listener's mark among those of the clients, which are their places.
const LISTENER: u64 = u64::MAX;

/// Who knows the answers.
pub trait Answers {
    /// Answers a request, within bounds: a page, never everything.
    fn answer(&mut self, now: Instant, request: &Request) -> Answer;
}

/// An answer, and what is to be answered to the same client in a later turn, unasked.
pub struct Answer {
    /// A line of JSON.
    pub line: String,
    /// Such as the next page of a list.
    pub rest: Option<Box<Request>>,
}

impl From<Value> for Answer {
    fn from(value: Value) -> Self {
        Self { line: value.to_string(), rest: None }
    }
}

/// The server.
pub struct Server {
    path: PathBuf,
    listener: UnixListener,
    poll: OwnedFd,
    clients: Vec<Option<Client>>,
    /// Room for what the kernel tells; empty between turns.
    ready: Vec<epoll::Event>,
    /// Where the search for the next request begins, so that each client has its turn.
    next: usize,
    events: VecDeque<String>,
    /// Number of the first event kept.
    first_event: u64,
}

struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    out: Vec<u8>,
    /// What it is to be answered before anything else.
    rest: Option<Box<Request>>,
    /// Next event to be given, for a follower.
    follows: Option<u64>,
    /// When it last read of what we have for it, or owed us nothing.
    read_at: Instant,
    /// It will ask no more.
    ended: bool,
    /// What the kernel is to tell us of it.
    watched: epoll::EventFlags,
}

/// What became of a client's turn.
#[derive(PartialEq)]
enum Fate {
    Stays,
    Goes,
}

impl Server {
    /// Listens at `path`, with rights for our own user only. A socket that nobody listens at is
    /// replaced.
    ///
    /// # Errors
    /// When another server listens there, or it cannot be made.
    pub fn open(path: &Path) -> Result<Self> {
        let told = || format!("the control socket {}", path.display());
        let listener = listen(path).with_context(told)?;
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).with_context(told)?;
        let data = epoll::EventData::new_u64(LISTENER);
        epoll::add(&poll, &listener, data, epoll::EventFlags::IN).with_context(told)?;
        Ok(Self {
            path: path.to_owned(),
            listener,
            poll,
            clients: (0..CLIENTS_MAX).map(|_| None).collect(),
            ready: Vec::with_capacity(CLIENTS_MAX + 1),
            next: 0,
            events: VecDeque::with_capacity(EVENTS_MAX),
            first_event: 0,
        })
    }

    /// Readable whenever a turn has something to do.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }

    /// When a turn is due even if nobody writes to us.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let owing = self.clients.iter().flatten().filter(|client| !client.out.is_empty());
        owing.map(|client| client.read_at + EVICT_AFTER).min()
    }

    /// Keeps an event for all followers.
    pub fn publish(&mut self, event: &Value) {
        if self.clients.iter().flatten().all(|client| client.follows.is_none()) {
            return;
        }
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
            self.first_event += 1;
        }
        self.events.push_back(event.to_string());
    }

    /// Takes in what clients wrote, answers one request, writes what they take. Whether one asked.
    pub fn turn(&mut self, now: Instant, answers: &mut impl Answers) -> bool {
        self.take_in(now);
        if self.clients.iter().all(Option::is_none) {
            return false;
        }
        let asked = self.answer_one(now, answers);
        for place in 0..self.clients.len() {
            let Some(client) = &mut self.clients[place] else { continue };
            give_events(client, self.first_event, &self.events);
            if client.write(now) == Fate::Goes {
                self.clients[place] = None;
                continue;
            }
            self.watch(place);
        }
        asked
    }

    /// Reads from those that wrote, and lets new ones in.
    fn take_in(&mut self, now: Instant) {
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut ready = std::mem::take(&mut self.ready);
        let buffer = rustix::buffer::spare_capacity(&mut ready);
        // No error but an interruption is possible, and the next turn asks again.
        let _ = epoll::wait(&self.poll, buffer, Some(&at_once));
        for event in ready.drain(..) {
            let place = event.data.u64();
            if place == LISTENER {
                self.accept(now);
            } else if let Some(client) = &mut self.clients[place as usize]
                && client.read() == Fate::Goes
            {
                self.clients[place as usize] = None;
            }
        }
        self.ready = ready;
    }

    /// Lets one client in, if it is our own user's, or root's.
    fn accept(&mut self, now: Instant) {
        let Ok((stream, _)) = self.listener.accept() else { return };
        let ours = net::sockopt::socket_peercred(&stream)
            .is_ok_and(|peer| peer.uid == geteuid() || peer.uid.is_root());
        let free = self.clients.iter().position(Option::is_none);
        let why = match free {
            _ if !ours => "only our own user and root may ask",
            None => "too many clients: try again",
            Some(place) => {
                if stream.set_nonblocking(true).is_ok() {
                    let data = epoll::EventData::new_u64(place as u64);
                    if epoll::add(&self.poll, &stream, data, epoll::EventFlags::IN).is_ok() {
                        self.clients[place] = Some(Client::new(stream, now));
                    }
                }
                return;
            }
        };
        tracing::warn!(why, "control: a client was turned away");
        let _ = stream.set_nonblocking(true);
        let _ =
            (&stream).write_all(format!("{}\n", proto::refused(&anyhow::anyhow!(why))).as_bytes());
    }

    /// Answers the next client that has asked, and has read what we said before, if there is one.
    fn answer_one(&mut self, now: Instant, answers: &mut impl Answers) -> bool {
        let events = self.first_event + self.events.len() as u64;
        for step in 0..self.clients.len() {
            let place = (self.next + step) % self.clients.len();
            let Some(client) = &mut self.clients[place] else { continue };
            let Some(request) = client.next_request() else { continue };
            self.next = place + 1;
            let answer = match request {
                Ok(request) if request.cmd == Cmd::Events => {
                    client.follows = Some(events);
                    proto::done(Cmd::Events).into()
                }
                Ok(request) => answers.answer(now, &request),
                Err(error) => proto::refused(&error).into(),
            };
            client.rest = answer.rest;
            client.say(now, &answer.line);
            return true;
        }
        false
    }

    /// Tells the kernel what a client waits for: room, where it owes us reading; else requests.
    fn watch(&mut self, place: usize) {
        let Some(client) = &mut self.clients[place] else { return };
        let more = client.has_request();
        let mut flags = epoll::EventFlags::empty();
        if !client.out.is_empty() || more {
            flags |= epoll::EventFlags::OUT; // at once, where a request waits for its turn
        }
        if client.wants_input() {
            flags |= epoll::EventFlags::IN;
        }
        if client.watched == flags {
            return;
        }
        client.watched = flags;
        let data = epoll::EventData::new_u64(place as u64);
        // Both descriptors are ours and open.
        let _ = epoll::modify(&self.poll, &client.stream, data, flags);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Whoever finds it left behind replaces it.
        let _ = fs::remove_file(&self.path);
    }
}

/// Binds, narrows the rights, and only then listens.
fn listen(path: &Path) -> Result<UnixListener> {
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    }
    match UnixStream::connect(path) {
        Ok(_) => bail!("another server listens there: end it, or choose another socket"),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path)?,
        Err(_) => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    net::bind(&fd, &SocketAddrUnix::new(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    net::listen(&fd, CLIENTS_MAX as i32)?;
    Ok(UnixListener::from(fd))
}

/// Gives a follower the events that it has not had.
fn give_events(client: &mut Client, first: u64, events: &VecDeque<String>) {
    let Some(next) = &mut client.follows else { return };
    if *next < first {
        let missed = json!({ "v": V, "event": "missed", "count": first - *next });
        client.out.extend_from_slice(format!("{missed}\n").as_bytes());
        *next = first;
    }
    let from = (*next - first) as usize;
    for event in events.iter().skip(from).take(EVENTS_PER_TURN) {
        if client.out.len() > OUT_MAX {
            return;
        }
        client.out.extend_from_slice(event.as_bytes());
        client.out.push(b'\n');
        *next += 1;
    }
}

impl Client {
    fn new(stream: UnixStream, now: Instant) -> Self {
        Self {
            stream,
            input: Vec::new(),
            out: Vec::new(),
            rest: None,
            follows: None,
            read_at: now,
            ended: false,
            watched: epoll::EventFlags::IN,
        }
    }

    /// Whether it may say more: a follower may only leave.
    fn wants_input(&self) -> bool {
        !self.ended && self.input.len() <= LINE_MAX && !self.has_request()
    }

    fn has_request(&self) -> bool {
        self.follows.is_none() && (self.rest.is_some() || self.input.contains(&b'\n'))
    }

    fn read(&mut self) -> Fate {
        if !self.wants_input() {
            return Fate::Stays;
        }
        let mut bytes = [0; LINE_MAX];
        match self.stream.read(&mut bytes) {
            Ok(0) => {
                self.ended = true;
                // What it asked before is still answered.
                if self.has_request() || !self.out.is_empty() { Fate::Stays } else { Fate::Goes }
            }
            Ok(_) if self.follows.is_some() => Fate::Stays, // nothing more is heard
            Ok(len) => {
                self.input.extend_from_slice(&bytes[..len]);
                if self.input.len() > LINE_MAX && !self.has_request() {
                    tracing::warn!("control: a client's request is too long");
                    return Fate::Goes;
                }
                Fate::Stays
            }
            Err(error) if is_later(&error) => Fate::Stays,
            Err(_) => Fate::Goes,
        }
    }

    /// The next request, once it has read our answer to the one before.
    fn next_request(&mut self) -> Option<Result<Box<Request>>> {
        if !self.out.is_empty() || self.follows.is_some() {
            return None;
        }
        if let Some(rest) = self.rest.take() {
            return Some(Ok(rest));
        }
        let end = self.input.iter().position(|&b| b == b'\n')?;
        let request = Request::parse(&self.input[..end]).map(Box::new);
        self.input.drain(..=end);
        Some(request)
    }

    fn say(&mut self, now: Instant, line: &str) {
        self.read_at = now;
        self.out.extend_from_slice(line.as_bytes());
        self.out.push(b'\n');
    }

    fn write(&mut self, now: Instant) -> Fate {
        let len = self.out.len().min(BYTES_PER_TURN);
        if len > 0 {
            match self.stream.write(&self.out[..len]) {
                Ok(taken) => {
                    self.out.drain(..taken);
                    self.read_at = now;
                }
                Err(error) if is_later(&error) => {}
                Err(_) => return Fate::Goes,
            }
        } else {
            self.read_at = now;
        }
        if now >= self.read_at + EVICT_AFTER {
            tracing::warn!("control: a client that does not read was put out");
            return Fate::Goes;
        }
        let over = self.ended && self.out.is_empty() && !self.has_request();
        if over { Fate::Goes } else { Fate::Stays }
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    struct Echo {
        asked: usize,
        long: usize,
    }

    impl Answers for Echo {
        fn answer(&mut self, _: Instant, request: &Request) -> Answer {
            self.asked += 1;
            let answer = json!({ "after": request.after, "filler": "x".repeat(self.long) });
            Answer { rest: request.another_page(Some("b".into())), ..answer.into() }
        }
    }

    struct Bench {
        server: Server,
        answers: Echo,
        now: Instant,
        dir: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let server = Server::open(&dir.path().join("ctl.sock")).unwrap();
            let now = Instant::ZERO + Duration::from_secs(100);
            Self { server, answers: Echo { asked: 0, long: 0 }, now, dir }
        }

        fn client(&mut self) -> UnixStream {
            let stream = UnixStream::connect(self.dir.path().join("ctl.sock")).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            self.turns(1);
            stream
        }

        fn turns(&mut self, turns: usize) {
            for _ in 0..turns {
                self.server.turn(self.now, &mut self.answers);
            }
        }

        fn clients(&self) -> usize {
            self.server.clients.iter().flatten().count()
        }
    }

    fn line(stream: &UnixStream) -> Value {
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    const LIST: &[u8] = b"{\"v\":1,\"cmd\":\"list\",\"after\":\"a\"}\n";

    #[test]
    fn only_our_user_has_rights_on_the_socket_and_it_goes_with_the_server() {
        let bench = Bench::new();
        let path = bench.dir.path().join("ctl.sock");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(Server::open(&path).is_err(), "one listens there");
        drop(bench.server);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_left_behind_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ctl.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        Server::open(&path).unwrap();
    }

    #[test]
    fn a_turn_answers_one_request_and_each_client_has_its_turn() {
        let mut bench = Bench::new();
        let mut clients = [bench.client(), bench.client()];
        clients[0].write_all(&LIST.repeat(3)).unwrap();
        clients[1].write_all(LIST).unwrap();
        for asked in 1..=2 {
            bench.turns(1);
            assert_eq!(bench.answers.asked, asked);
        }
        for client in &clients {
            assert_eq!(line(client)["after"], "a");
        }
        bench.turns(2);
        assert_eq!(bench.answers.asked, 4);
    }

    #[test]
    fn a_list_goes_on_by_itself_a_page_a_turn_as_far_as_was_asked_for() {
        let mut bench = Bench::new();
        let mut client = bench.client();
        client.write_all(b"{\"v\":1,\"cmd\":\"list\",\"pages\":3}\n").unwrap();
        client.write_all(LIST).unwrap();
        for asked in 1..=4 {
            bench.turns(1);
            assert_eq!(bench.answers.asked, asked);
        }
        bench.turns(1);
        let mut lines = BufReader::new(&client).lines();
        let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(
            [next(), next(), next(), next()].map(|v| v["after"].clone()),
            [Value::Null, "b".into(), "b".into(), "a".into()]
        );
        assert_eq!(bench.answers.asked, 4);
    }

    #[test]
    fn a_request_may_come_in_pieces_and_a_wrong_one_is_refused() {
        let mut bench = Bench::new();
        let mut client = bench.client();
        client.write_all(&LIST[..5]).unwrap();
        bench.turns(2);
        assert_eq!(bench.answers.asked, 0);
        client.write_all(&LIST[5..]).unwrap();
        bench.turns(1);
        assert_eq!(line(&client)["after"], "a");
        client.write_all(b"what?\n").unwrap();
        bench.turns(1);
        assert_eq!(line(&client)["ok"], false);
        assert_eq!(bench.clients(), 1);
    }

    #[test]
    fn a_request_without_an_end_ends_its_client() {
        let mut bench = Bench::new();
        let mut client = bench.client();
        client.write_all(&[b'x'; LINE_MAX + 1]).unwrap();
        bench.turns(3);
        assert_eq!(bench.clients(), 0);
    }

    #[test]
    fn clients_beyond_the_limit_are_told_and_turned_away() {
        let mut bench = Bench::new();
        let clients: Vec<_> = (0..=CLIENTS_MAX).map(|_| bench.client()).collect();
        assert_eq!(bench.clients(), CLIENTS_MAX);
        assert!(line(&clients[CLIENTS_MAX])["error"].as_str().unwrap().contains("too many"));
        drop(clients);
        bench.turns(2);
        assert_eq!(bench.clients(), 0);
    }

    #[test]
    fn a_client_that_does_not_read_is_asked_nothing_more_and_put_out() {
        let mut bench = Bench::new();
        bench.answers.long = 1 << 20;
        let mut client = bench.client();
        client.write_all(&LIST.repeat(4)).unwrap();
        bench.turns(100);
        assert_eq!((bench.answers.asked, bench.clients()), (1, 1));
        assert_eq!(bench.server.poll_timeout(), Some(bench.now + EVICT_AFTER));
        bench.now += EVICT_AFTER;
        bench.turns(1);
        assert_eq!(bench.clients(), 0);
        assert_eq!(bench.server.poll_timeout(), None);
    }

    #[test]
    fn a_client_that_sent_all_and_closed_its_half_is_still_answered() {
        let mut bench = Bench::new();
        let mut client = bench.client();
        client.write_all(&LIST.repeat(2)).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        bench.turns(6);
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert_eq!((text.lines().count(), bench.clients()), (2, 0));
    }

    #[test]
    fn a_follower_has_every_event_or_is_told_how_many_it_missed() {
        let mut bench = Bench::new();
        let mut client = bench.client();
        client.write_all(b"{\"v\":1,\"cmd\":\"events\"}\n").unwrap();
        bench.turns(1);
        assert_eq!(line(&client)["ok"], true);
        bench.server.publish(&json!({ "event": "live" }));
        bench.turns(1);
        assert_eq!(line(&client)["event"], "live");
        for number in 0..EVENTS_MAX + 5 {
            bench.server.publish(&json!({ "event": "live", "number": number }));
        }
        bench.turns(EVENTS_MAX / EVENTS_PER_TURN + 1);
        let mut reader = BufReader::new(&client).lines();
        let mut next = || serde_json::from_str::<Value>(&reader.next().unwrap().unwrap()).unwrap();
        assert_eq!(next()["count"], 5);
        assert_eq!(next()["number"], 5);
    }

    #[test]
    fn events_that_nobody_follows_are_not_kept() {
        let mut bench = Bench::new();
        let _client = bench.client();
        bench.server.publish(&json!({}));
        assert!(bench.server.events.is_empty());
    }
}
