//! What the control socket shows of a host: controllers, connections, figures. Nothing here
//! changes anything; lists come in pages.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::time::Duration;

use anyhow::{Context, Result};
use moorline_nvme::host::{Errors, Host, Transition};
use moorline_stack::buckets::Buckets;
use moorline_stack::{Instant, Transport};
use serde_json::{Value, json};

use super::held::{Held, One};
use super::proto::{Conn, Conns, Ctrl, List, PAGE, Step, Timer, V, Whole};

/// A page of the controllers, those after `after`.
pub(super) fn list<T: Transport>(
    held: &Held,
    host: &Host<T>,
    now: Instant,
    after: Option<&str>,
) -> List {
    let from = after.map_or(Unbounded, Excluded);
    let mut rest = held.ctrls.range::<str, _>((from, Unbounded));
    let page = rest.by_ref().take(PAGE);
    let controllers: Vec<_> = page.map(|(name, one)| ctrl(host, now, name, one)).collect();
    let more = rest.next().is_some();
    let next = controllers.last().filter(|_| more).map(|last| last.name.clone());
    List { v: V, ok: true, controllers, next }
}

fn ctrl<T: Transport>(host: &Host<T>, now: Instant, name: &str, one: &One) -> Ctrl {
    let shown = Ctrl {
        name: name.to_owned(),
        addr: one.config.addr.to_string(),
        nqn: one.config.subnqn.clone(),
        ..Ctrl::default()
    };
    if let Some((since, reason)) = &one.given_up {
        return Ctrl {
            state: "lost".to_owned(),
            since_ms: ms(now - *since),
            awaited: "a reset".to_owned(),
            reach: "unknown".to_owned(),
            reason: Some(reason.clone()),
            ..shown
        };
    }
    let status = host.status(one.ctrl);
    // Who waits for an address is tried when that is found, by the next test of it.
    let test = status.timers.iter().find(|(name, _)| *name == "probe").map(|&(_, at)| at);
    let next = status.next_attempt.or(test);
    Ctrl {
        state: status.state.to_string(),
        since_ms: ms(now - status.since),
        awaited: status.awaited.to_owned(),
        attempts: status.attempts,
        reconnects: status.reconnects,
        standby: status.standby,
        keep_alives_lost: status.keep_alives_lost,
        waiting: status.waiting,
        quiescing: status.quiescing,
        reach: status.reach.to_string(),
        reason: status.failure.map(|failure| failure.to_string()),
        next_attempt_ms: next.map(|at| left(now, at)),
        timers: timers(now, &status.timers),
        ..shown
    }
}

/// All that is known of one controller.
pub(super) fn one<T: Transport>(host: &Host<T>, now: Instant, name: &str, one: &One) -> Whole {
    let step = |t: &Transition| Step {
        state: t.state.to_string(),
        ago_ms: ms(now - t.at),
        first_ago_ms: ms(now - t.first),
        times: t.times,
        kind: t.failure.as_ref().map(|failure| failure.kind().name().to_owned()),
        reason: t.failure.as_ref().map(ToString::to_string),
    };
    let kato = one.given_up.is_none().then(|| host.controller(one.ctrl).kato);
    Whole {
        controller: ctrl(host, now, name, one),
        kato_ms: kato.map(ms),
        history: host.history(one.ctrl).map(step).collect(),
        errors: errors(&host.errors(one.ctrl)),
    }
}

fn errors(errors: &Errors) -> BTreeMap<String, u64> {
    errors.iter().map(|(kind, count)| (kind.name().to_owned(), count)).collect()
}

/// A page of the TCP connections, those in slots after `after`.
///
/// # Errors
/// When `after` is no slot.
pub(crate) fn connections<T: Transport>(
    transport: &T,
    now: Instant,
    after: Option<&str>,
) -> Result<Conns> {
    let from = match after {
        None => 0,
        Some(slot) => slot.parse::<u32>().context("\"after\" is a slot")?.saturating_add(1),
    };
    let mut page = transport.connections_from(from, PAGE + 1);
    let more = page.len() > PAGE;
    page.truncate(PAGE);
    let connections = page.into_iter().map(|report| Conn {
        slot: report.conn.index,
        local: report.local.to_string(),
        remote: report.remote.to_string(),
        stage: report.stage.to_string(),
        since_ms: ms(now - report.since),
        send_queue: report.send_queue,
        recv_queue: report.recv_queue,
        retransmits: report.retransmits,
        icmp: report.hint.map(|hint| hint.to_string()),
        timers: timers(now, &report.timers),
    });
    let connections: Vec<_> = connections.collect();
    let next = connections.last().filter(|_| more).map(|last| last.slot.to_string());
    Ok(Conns { v: V, ok: true, connections, next })
}

/// Counters and latenesses.
pub(super) fn figures<T: Transport>(held: &Held, host: &Host<T>) -> Value {
    let f = host.figures();
    let quantile = |q| held.turn_us.value_at_quantile(q);
    let mut work = json!({
        "events": buckets(&f.events_per_turn),
        "pdus": buckets(&f.pdus_per_turn),
        "deadlines": buckets(&f.deadlines_per_turn),
        "qpairs": buckets(&f.qpairs_per_flush),
    });
    let mut tcp = Value::Null;
    if let Some(w) = host.transport().work() {
        work["rx_frames"] = buckets(&w.rx_frames);
        work["tx_segments"] = buckets(&w.tx_segments);
        work["connections"] = buckets(&w.connections);
        work["tcp_deadlines"] = buckets(&w.deadlines);
        tcp = buckets(&w.deadline_late_us);
    }
    json!({
        "controllers": held.ctrls.len(),
        "attempts": f.attempts,
        "errors": errors(&f.errors),
        "syns": host.transport().stats().syns,
        "probes": f.probes,
        "probes_under_way_max": f.probes_under_way_max,
        "echoes": f.echoes,
        "announcements": f.announcements,
        "standby": f.standby,
        "standby_taken": f.standby_taken,
        "standby_lost": f.standby_lost,
        "keep_alives": f.keep_alives,
        "keep_alives_lost": f.keep_alives_lost,
        "keep_alive_late_us": buckets(&f.keep_alive_late_us),
        "deadlines": f.deadlines,
        "deadlines_early": f.deadlines_early,
        "deadlines_late": f.deadlines_late,
        "deadline_late_us": buckets(&f.deadline_late_us),
        "tcp_deadline_late_us": tcp,
        "work_per_turn": work,
        "turns": held.turn_us.len(),
        "turn_us": {
            "p50": quantile(0.5),
            "p99": quantile(0.99),
            "p999": quantile(0.999),
            "max": held.turn_us.max(),
        },
    })
}

/// A histogram: how many, quantiles, the largest, and the buckets themselves.
fn buckets(buckets: &Buckets) -> Value {
    json!({
        "count": buckets.len(),
        "p50": buckets.quantile(0.5),
        "p99": buckets.quantile(0.99),
        "p999": buckets.quantile(0.999),
        "max": buckets.max(),
        "counts": buckets.iter().map(|(_, count)| count).collect::<Vec<_>>(),
    })
}

pub(crate) fn timers(now: Instant, armed: &[(&'static str, Instant)]) -> Vec<Timer> {
    let timer = |&(name, at): &(&str, _)| Timer { name: name.to_owned(), left_ms: left(now, at) };
    armed.iter().map(timer).collect()
}

/// Milliseconds, to the microsecond.
pub(super) fn ms(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e3
}

/// Milliseconds until `at`, below zero when it is past.
fn left(now: Instant, at: Instant) -> f64 {
    if at >= now { ms(at - now) } else { -ms(now - at) }
}
