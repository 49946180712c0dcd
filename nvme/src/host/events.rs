//! What the host has to tell and the caller has not polled.
//!
//! What always holds: a caller that does not poll makes nothing grow. Of each place for a
//! controller the newest of `Live`, `Disconnected`, `Failed` and `Closed` each is kept, and the
//! newest [`AENS_MAX`] asynchronous events; an older one of the same kind is dropped. So who polls
//! late learns the last outage and its end, not how many there were (`CtrlStatus::reconnects`
//! counts them). The order of what is kept does not change.

use std::collections::VecDeque;

use super::keep_alive::AERS_MAX;
use super::{CtrlId, HostEvent};

/// Asynchronous events kept of one controller: as many as it can send us before we ask again.
const AENS_MAX: u8 = AERS_MAX;

const KINDS: usize = 5;

/// Events to be polled.
#[derive(Debug)]
pub(super) struct Events {
    list: VecDeque<HostEvent>,
    /// How many of each kind are in the list, by place.
    counts: Box<[[u8; KINDS]]>,
}

impl Events {
    /// None yet, for as many places.
    pub(super) fn new(places: usize) -> Self {
        Self { list: VecDeque::new(), counts: vec![[0; KINDS]; places].into() }
    }

    /// Adds an event; where there are too many of its kind, the oldest goes. Only then the list
    /// is searched.
    pub(super) fn push(&mut self, event: HostEvent) {
        let (ctrl, kind, most) = sort(&event);
        let count = &mut self.counts[ctrl.index as usize][kind];
        *count += 1;
        if *count > most {
            *count -= 1;
            let same = |other: &HostEvent| {
                let (other, other_kind, _) = sort(other);
                (other.index, other_kind) == (ctrl.index, kind)
            };
            if let Some(oldest) = self.list.iter().position(same) {
                self.list.remove(oldest);
            }
        }
        self.list.push_back(event);
    }

    /// The oldest event.
    pub(super) fn pop(&mut self) -> Option<HostEvent> {
        let event = self.list.pop_front()?;
        let (ctrl, kind, _) = sort(&event);
        self.counts[ctrl.index as usize][kind] -= 1;
        Some(event)
    }
}

/// Whose an event is, of which kind, and how many of that kind are kept.
fn sort(event: &HostEvent) -> (CtrlId, usize, u8) {
    match event {
        HostEvent::Live { ctrl, .. } => (*ctrl, 0, 1),
        HostEvent::Disconnected { ctrl, .. } => (*ctrl, 1, 1),
        HostEvent::Failed { ctrl, .. } => (*ctrl, 2, 1),
        HostEvent::Closed { ctrl } => (*ctrl, 3, 1),
        HostEvent::Aen { ctrl, .. } => (*ctrl, 4, AENS_MAX),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const A: CtrlId = CtrlId { index: 0, generation: 1 };
    const B: CtrlId = CtrlId { index: 1, generation: 1 };

    fn live(ctrl: CtrlId, ms: u64) -> HostEvent {
        HostEvent::Live { ctrl, after: Duration::from_millis(ms) }
    }

    fn aen(ctrl: CtrlId, lid: u8) -> HostEvent {
        HostEvent::Aen { ctrl, kind: 2, info: 0, lid }
    }

    #[test]
    fn the_newest_of_a_kind_is_kept_and_order_with_it() {
        let mut events = Events::new(2);
        for event in [live(A, 1), live(B, 2), HostEvent::Closed { ctrl: A }, live(A, 3)] {
            events.push(event);
        }
        let told: Vec<_> = std::iter::from_fn(|| events.pop()).collect();
        assert_eq!(told, [live(B, 2), HostEvent::Closed { ctrl: A }, live(A, 3)]);
        assert!(events.counts.iter().flatten().all(|count| *count == 0));
    }

    #[test]
    fn a_caller_that_never_polls_makes_nothing_grow() {
        let mut events = Events::new(2);
        for turn in 0..=255 {
            for ctrl in [A, B, CtrlId { generation: 2, ..A }] {
                events.push(live(ctrl, u64::from(turn)));
                events.push(aen(ctrl, turn));
                events.push(HostEvent::Closed { ctrl });
            }
        }
        assert_eq!(events.list.len(), 2 * (1 + usize::from(AENS_MAX) + 1));
        let lids = events.list.iter().filter_map(|event| match event {
            HostEvent::Aen { ctrl, lid, .. } if *ctrl == B => Some(*lid),
            _ => None,
        });
        assert_eq!(lids.collect::<Vec<_>>(), [252, 253, 254, 255]);
    }
}
