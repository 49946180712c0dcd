//! Standby connections against the fake target, in virtual time: what is counted are connections.

use std::time::Duration;

use moorline_stack::Instant;
use moorline_stack::pipe::PipeOptions;

use super::fake::{World, address, config as once};
use super::*;

const MS: Duration = Duration::from_millis(1);

fn config(standby: u16) -> CtrlConfig {
    CtrlConfig { reconnect: Some(Reconnect::default()), standby, ..once() }
}

fn run_for(world: &mut World, time: Duration) {
    let end = world.now + time;
    while world.now < end {
        world.turn();
        world.now = world.next().map_or(end, |next| next.clamp(world.now, end));
    }
    world.turn();
}

/// A live controller, its standby connections ready; nothing of that in `events`.
fn ready(standby: u16) -> (World, CtrlId) {
    let mut world = World::new(1, PipeOptions::default());
    let id = world.live(config(standby));
    run_for(&mut world, 10 * MS);
    assert_eq!(world.host.status(id).standby, usize::from(standby));
    (world, id)
}

/// Runs until the controller is live again; returns after how long.
fn again(world: &mut World) -> Duration {
    let since = world.now;
    world.until(|world| {
        world.events.iter().any(|event| matches!(event, HostEvent::Live { .. })).then_some(())
    });
    world.events.clear();
    world.now - since
}

#[test]
fn standby_connections_say_icreq_and_no_more() {
    let (mut world, id) = ready(2);
    run_for(&mut world, Duration::from_secs(60));
    assert_eq!((world.fake.accepted, world.fake.waiters()), (4, 2));
    assert_eq!(world.fake.commands(0, crate::spec::opcode::FABRICS).len(), 7, "one controller's");
    let figures = world.host.figures();
    assert_eq!((figures.standby, figures.standby_opened, figures.standby_lost), (2, 2, 0));
    assert_eq!(world.host.status(id).standby, 2);
}

#[test]
fn a_lost_queue_is_replaced_at_once_without_a_new_connection() {
    for qid in [0, 1] {
        let (mut world, id) = ready(2);
        let (now, accepted) = (world.now, world.fake.accepted);
        world.fake.reset(now, qid);
        let after = again(&mut world);
        assert!(after < Reconnect::default().delay_min, "{after:?}, and no back-off");
        let figures = world.host.figures();
        assert_eq!((figures.standby_taken, figures.attempts), (2, 2));
        // What is accepted after it is live are the next two.
        assert_eq!(world.fake.accepted - accepted, 0);
        run_for(&mut world, 10 * MS);
        assert_eq!(world.host.status(id).standby, 2);
        assert_eq!((world.fake.accepted - accepted, world.host.figures().standby), (2, 2));
    }
}

#[test]
fn an_attempt_takes_what_there_is_and_connects_the_rest() {
    let (mut world, _) = ready(1);
    let (now, accepted) = (world.now, world.fake.accepted);
    world.fake.reset(now, 1);
    let after = again(&mut world);
    assert!(after < Reconnect::default().delay_min, "{after:?}");
    assert_eq!(world.host.figures().standby_taken, 1);
    assert_eq!(world.fake.accepted - accepted, 1);
}

#[test]
fn a_caller_that_resets_a_controller_gets_it_back_on_standby_connections() {
    let (mut world, id) = ready(2);
    world.host.reset(world.now, id);
    again(&mut world);
    assert_eq!(world.host.figures().standby_taken, 2);
}

#[test]
fn a_path_that_fell_silent_leaves_no_standby_connection() {
    let (mut world, id) = ready(2);
    world.fake.pipe.options_mut().dark.push(address());
    let event = world.event();
    assert!(matches!(event, HostEvent::Disconnected { .. }), "{event:?}");
    assert_eq!(world.host.status(id).standby, 0);
    world.fake.pipe.options_mut().dark.clear();
    again(&mut world);
    let figures = world.host.figures();
    assert_eq!((figures.standby_taken, figures.standby_lost), (0, 0), "dropped by us");
    run_for(&mut world, 100 * MS);
    assert_eq!(world.host.status(id).standby, 2);
}

#[test]
fn a_target_that_restarts_takes_its_standby_connections_with_it() {
    let (mut world, id) = ready(2);
    let now = world.now;
    world.fake.reset_all(now);
    let after = again(&mut world);
    // As without any: the shortest back-off, then TCP.
    assert!(after >= Reconnect::default().delay_min, "{after:?}");
    assert_eq!(world.host.figures().standby_taken, 0);
    run_for(&mut world, 100 * MS);
    assert_eq!((world.host.status(id).standby, world.host.figures().standby), (2, 2));
}

#[test]
fn a_standby_connection_that_the_target_has_forgotten_costs_a_round_trip_and_the_back_off() {
    let (mut world, id) = ready(1);
    world.fake.knobs.forgets_waiters = true;
    let now = world.now;
    world.fake.reset(now, 1);
    let after = again(&mut world);
    assert!(after < Duration::from_millis(100), "{after:?}");
    let figures = world.host.figures();
    assert_eq!((figures.standby_taken, figures.attempts), (1, 3));
    assert_eq!(world.host.status(id).reconnects, 1);
}

#[test]
fn a_target_that_ends_waiting_connections_is_learned_and_they_are_renewed_before() {
    let (mut world, id) = ready(1);
    world.fake.knobs.patience = Some(Duration::from_secs(5));
    let mut without = Duration::ZERO;
    let end = world.now + Duration::from_secs(600);
    while world.now < end {
        let before = world.now;
        world.turn();
        world.now = world.next().map_or(end, |next| next.clamp(world.now, end));
        if world.host.status(id).standby == 0 {
            without += world.now - before;
        }
    }
    let figures = world.host.figures();
    assert_eq!(figures.standby_lost, 1, "the first");
    // Every 3.75 s from then on.
    assert!((155..=161).contains(&figures.standby_opened), "{figures:?}");
    assert!(without < Duration::from_secs(1), "{without:?}");
}

#[test]
fn a_target_that_lets_none_wait_is_asked_less_and_less_often() {
    let (mut world, id) = ready(1);
    world.fake.knobs.patience = Some(10 * MS);
    run_for(&mut world, Duration::from_secs(3600));
    let figures = world.host.figures();
    // 100 ms, doubled ten times, then one a minute.
    assert!((60..=72).contains(&figures.standby_opened), "{figures:?}");
    assert!(world.events.is_empty() && world.host.status(id).state == CtrlState::Live);
}

#[test]
fn standby_connections_that_cannot_be_made_do_not_harm_the_controller() {
    let mut world = World::new(1, PipeOptions::default());
    let id = world.live(config(2));
    world.fake.knobs.silent_ic = true;
    run_for(&mut world, Duration::from_secs(600));
    let figures = world.host.figures();
    // Each is given up after a second; two at a time.
    assert!((20..=50).contains(&figures.standby_opened), "{figures:?}");
    assert!(world.events.is_empty() && world.host.status(id).state == CtrlState::Live);
    world.fake.knobs.silent_ic = false;
    run_for(&mut world, Duration::from_secs(61));
    assert_eq!(world.host.status(id).standby, 2);
}

#[test]
fn a_standby_connection_on_which_anything_was_said_is_not_used() {
    // A keep alive's answer, out of place; and the beginning of something.
    for bytes in [&[5, 0, 24, 0, 24, 0, 0, 0][..], &[5]] {
        let (mut world, id) = ready(1);
        world.fake.address_waiters(bytes);
        run_for(&mut world, MS);
        assert_eq!((world.host.status(id).standby, world.host.figures().standby_lost), (0, 1));
        run_for(&mut world, Duration::from_secs(1));
        assert_eq!(world.host.status(id).standby, 1);
        assert_eq!(world.fake.term_reqs.len(), 0);
    }
}

#[test]
fn icresp_may_come_in_pieces() {
    for seed in 0..20 {
        let options = PipeOptions { cut_max: 7, ..PipeOptions::default() };
        let mut world = World::new(seed, options);
        let id = world.live(config(2));
        run_for(&mut world, 10 * MS);
        assert_eq!((world.host.status(id).standby, world.host.figures().standby_lost), (2, 0));
        let now = world.now;
        world.fake.reset(now, 1);
        again(&mut world);
        assert_eq!(world.host.figures().standby_taken, 2);
    }
}

#[test]
fn a_host_holds_as_many_as_its_limit_says() {
    let limits = HostLimits { standby: 3, ..HostLimits::default() };
    let mut world = World::with_limits(1, PipeOptions::default(), limits);
    let ids: Vec<_> = (0..4).map(|_| world.connect(config(2))).collect();
    run_for(&mut world, Duration::from_secs(10));
    assert_eq!((world.host.figures().standby, world.fake.waiters()), (3, 3));
    let first = ids.iter().find(|&&id| world.host.status(id).standby > 0).unwrap();
    world.host.disconnect(world.now, *first);
    run_for(&mut world, Duration::from_secs(10));
    assert_eq!((world.host.figures().standby, world.fake.waiters()), (3, 3));
    let own: usize = ids.iter().map(|&id| world.host.status(id).standby).sum();
    assert_eq!(own, 3);
}

#[test]
fn standby_connections_go_with_their_controller() {
    let (mut world, id) = ready(2);
    world.host.disconnect(world.now, id);
    assert_eq!(world.host.figures().standby, 0, "at once");
    run_for(&mut world, Duration::from_secs(10));
    assert_eq!((world.fake.pipe.conns(), world.fake.waiters()), (0, 0));
    let at: Instant = world.now;
    assert!(world.next().is_none_or(|next| next > at), "nothing is left to do");
}
