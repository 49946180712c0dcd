//! The table of connections, and what is to be told about each.
//!
//! A slot outlives its connection until `Closed` has been told; then its generation goes up and it
//! may be used again. A connection stands in the queue of events at most once, with a set of flags,
//! so events are bounded by connections and told in one order: made, readable, writable, closed.

use std::collections::VecDeque;

use super::conn::Conn;
use crate::ConnId;
use crate::transport::{Event, Why};

/// Something to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Edge {
    Accepted = 1,
    Connected = 2,
    Readable = 4,
    Writable = 8,
    PeerClosed = 16,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    conn: Option<Box<Conn>>,
    edges: u8,
    queued: bool,
    closed: Option<Why>,
}

/// Connections by slot.
#[derive(Default)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
    events: VecDeque<u32>,
}

impl Slots {
    /// The id that the next connection will have; [`Slots::insert`] makes it.
    pub(super) fn vacant(&self) -> ConnId {
        match self.free.last() {
            Some(&index) => ConnId { index, generation: self.slots[index as usize].generation },
            None => ConnId { index: self.slots.len() as u32, generation: 0 },
        }
    }

    pub(super) fn insert(&mut self, conn: Conn) {
        let id = conn.id;
        assert_eq!(id, self.vacant());
        if self.free.pop().is_none() {
            self.slots.push(Slot::default());
            // So that telling never allocates.
            self.events.reserve(self.slots.len() - self.events.len());
            self.free.reserve(self.slots.len());
        }
        self.slots[id.index as usize].conn = Some(Box::new(conn));
    }

    pub(super) fn at(&self, index: u32) -> Option<&Conn> {
        self.slots.get(index as usize)?.conn.as_deref()
    }

    pub(super) fn at_mut(&mut self, index: u32) -> Option<&mut Conn> {
        self.slots.get_mut(index as usize)?.conn.as_deref_mut()
    }

    pub(super) fn of(&self, id: ConnId) -> Option<&Conn> {
        self.at(id.index).filter(|conn| conn.id == id)
    }

    pub(super) fn of_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.at_mut(id.index).filter(|conn| conn.id == id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Conn> {
        self.slots.iter().filter_map(|slot| slot.conn.as_deref())
    }

    /// Slots ever used.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Tells of something, once however often it happens before it is heard.
    pub(super) fn tell(&mut self, index: u32, edge: Edge) {
        self.slots[index as usize].edges |= edge as u8;
        self.queue(index);
    }

    /// Ends a connection, and tells why unless it was never told of.
    pub(super) fn remove(&mut self, index: u32, why: Option<Why>) -> Box<Conn> {
        let slot = &mut self.slots[index as usize];
        let conn = slot.conn.take().expect("the caller has just looked at it");
        match why {
            Some(why) if slot.edges & Edge::Accepted as u8 == 0 => {
                slot.closed = Some(why);
                self.queue(index);
            }
            _ => self.vacate(index),
        }
        conn
    }

    pub(super) fn poll_event(&mut self) -> Option<Event> {
        loop {
            let &index = self.events.front()?;
            let event = self.next_of(index);
            let slot = &mut self.slots[index as usize];
            if slot.edges == 0 && slot.closed.is_none() {
                slot.queued = false;
                self.events.pop_front();
                if matches!(event, Some(Event::Closed(..))) {
                    self.vacate(index);
                }
            }
            if event.is_some() {
                return event;
            }
        }
    }

    fn next_of(&mut self, index: u32) -> Option<Event> {
        let slot = &mut self.slots[index as usize];
        let id = ConnId { index, generation: slot.generation };
        let Some(conn) = &slot.conn else {
            // Nothing can be read or written any more.
            slot.edges = 0;
            return slot.closed.take().map(|why| Event::Closed(id, why));
        };
        let edges = &mut slot.edges;
        let mut take = |edge: Edge| {
            let set = *edges & edge as u8 != 0;
            *edges &= !(edge as u8);
            set
        };
        if take(Edge::Accepted) {
            let (local, peer) = (conn.tuple.local, conn.tuple.remote);
            return Some(Event::Accepted { conn: id, local, peer });
        }
        if take(Edge::Connected) {
            return Some(Event::Connected(id));
        }
        if take(Edge::Readable) {
            return Some(Event::Readable(id));
        }
        if take(Edge::Writable) {
            return Some(Event::Writable(id));
        }
        take(Edge::PeerClosed).then_some(Event::PeerClosed(id))
    }

    fn queue(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if !slot.queued {
            slot.queued = true;
            self.events.push_back(index);
        }
    }

    fn vacate(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.edges = 0;
        self.free.push(index);
    }
}
