//! Deadlines of many owners in one indexed heap.
//!
//! Each owner, a small integer, has at most one deadline. Setting, clearing and popping cost
//! O(log n); memory grows only with the largest id ever set. Deadlines that fall on the same
//! instant come out in the order of their ids, so that a run can be repeated.

use crate::Instant;

const ABSENT: u32 = u32::MAX;

/// The deadlines of owners named by small integers.
#[derive(Clone, Debug, Default)]
pub struct Deadlines {
    /// A binary min-heap; `places[heap[i].1] == i` for each `i`.
    heap: Vec<(Instant, u32)>,
    /// Where each id stands in the heap, or `ABSENT`.
    places: Vec<u32>,
}

impl Deadlines {
    /// Sets, moves or clears (`None`) the deadline of `id`.
    pub fn set(&mut self, id: u32, deadline: Option<Instant>) {
        let place = self.place(id);
        match (place, deadline) {
            (None, None) => {}
            (Some(place), None) => self.remove(place),
            (Some(place), Some(at)) => {
                if self.heap[place].0 != at {
                    self.heap[place].0 = at;
                    self.restore(place);
                }
            }
            (None, Some(at)) => {
                if self.places.len() <= id as usize {
                    self.places.resize(id as usize + 1, ABSENT);
                }
                self.heap.push((at, id));
                self.sift_up(self.heap.len() - 1);
            }
        }
    }

    /// The deadline of `id`.
    pub fn of(&self, id: u32) -> Option<Instant> {
        self.place(id).map(|place| self.heap[place].0)
    }

    /// The earliest deadline.
    pub fn next(&self) -> Option<Instant> {
        self.heap.first().map(|&(at, _)| at)
    }

    /// Takes out the owner of the earliest deadline, if that is `now` or before.
    pub fn pop_due(&mut self, now: Instant) -> Option<u32> {
        let &(at, id) = self.heap.first()?;
        if at > now {
            return None;
        }
        self.remove(0);
        Some(id)
    }

    fn place(&self, id: u32) -> Option<usize> {
        let place = *self.places.get(id as usize)?;
        (place != ABSENT).then_some(place as usize)
    }

    fn remove(&mut self, place: usize) {
        let (_, id) = self.heap.swap_remove(place);
        self.places[id as usize] = ABSENT;
        if place < self.heap.len() {
            self.restore(place);
        }
    }

    /// Moves the item at `place`, the only one that may be out of order, to where it belongs.
    fn restore(&mut self, place: usize) {
        let place = self.sift_up(place);
        self.sift_down(place);
    }

    fn sift_up(&mut self, mut place: usize) -> usize {
        let item = self.heap[place];
        while place > 0 {
            let parent = (place - 1) / 2;
            if self.heap[parent] <= item {
                break;
            }
            self.put(place, self.heap[parent]);
            place = parent;
        }
        self.put(place, item);
        place
    }

    fn sift_down(&mut self, mut place: usize) {
        let item = self.heap[place];
        loop {
            let mut child = 2 * place + 1;
            if child + 1 < self.heap.len() && self.heap[child + 1] < self.heap[child] {
                child += 1;
            }
            if child >= self.heap.len() || item <= self.heap[child] {
                break;
            }
            self.put(place, self.heap[child]);
            place = child;
        }
        self.put(place, item);
    }

    fn put(&mut self, place: usize, item: (Instant, u32)) {
        self.heap[place] = item;
        self.places[item.1 as usize] = place as u32;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        Set(u32, Option<u64>),
        Pop(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0..40u32, proptest::option::weighted(0.8, 0..100u64))
                .prop_map(|(id, at)| Op::Set(id, at)),
            1 => (0..100u64).prop_map(Op::Pop),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_an_oracle(ops in proptest::collection::vec(op(), 0..400)) {
            let mut heap = Deadlines::default();
            let mut oracle = BTreeMap::<u32, Instant>::new();
            for op in ops {
                match op {
                    Op::Set(id, at) => {
                        let at = at.map(Instant::from_nanos);
                        heap.set(id, at);
                        match at {
                            Some(at) => oracle.insert(id, at),
                            None => oracle.remove(&id),
                        };
                    }
                    Op::Pop(now) => {
                        let now = Instant::from_nanos(now);
                        let first = oracle.iter().map(|(&id, &at)| (at, id)).min();
                        let due = first.filter(|&(at, _)| at <= now).map(|(_, id)| id);
                        prop_assert_eq!(heap.pop_due(now), due);
                        due.map(|id| oracle.remove(&id));
                    }
                }
                prop_assert_eq!(heap.next(), oracle.values().min().copied());
                prop_assert_eq!(heap.heap.len(), oracle.len());
                for id in 0..40 {
                    prop_assert_eq!(heap.of(id), oracle.get(&id).copied());
                }
            }
        }
    }

    #[test]
    fn ties_come_out_in_the_order_of_ids() {
        let mut heap = Deadlines::default();
        for id in [3, 1, 2] {
            heap.set(id, Some(Instant::from_nanos(7)));
        }
        assert_eq!(heap.pop_due(Instant::from_nanos(6)), None);
        let out: Vec<_> = std::iter::from_fn(|| heap.pop_due(Instant::from_nanos(7))).collect();
        assert_eq!(out, [1, 2, 3]);
        assert_eq!(heap.next(), None);
    }
}
