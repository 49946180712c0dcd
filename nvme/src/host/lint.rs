//! Which timeouts of a [`CtrlConfig`] can work together: a pure check, of one rule after another.
//!
//! The first rule that is broken is named, with both values, so that a person knows which of the
//! two to change. Not a rule: an ack timeout above KATO. Then a silent path is found by keep
//! alive instead, within 1.5 KATO.

use std::time::Duration;

use super::{CtrlConfig, Quiesce, Reconnect, Requeue};

/// No timeout is shorter: a turn may take as long.
const SHORTEST: Duration = Duration::from_millis(1);
/// No timeout is longer; who wants no limit turns it off where that can be done.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// The least KATO that a controller knows, which counts in units of this (KAS).
const KATO_MIN: Duration = Duration::from_millis(100);
/// Longest wait for a connection to go after a TermReq (NVMe/TCP transport, "error handling").
const TERM_MAX: Duration = Duration::from_secs(30);
/// How often an address that does not answer may be tested.
const PROBE_MIN: Duration = Duration::from_millis(10);
/// A connection's RTO is at least this, divided by its clock factor.
const RTO_MIN: Duration = Duration::from_secs(1);

/// A timeout, as configuration names it, and its value.
pub type Named = (&'static str, Duration);

/// A rule that a configuration breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LintError {
    /// The first is below the least that works.
    #[error("{} of {:?} is below {least:?}: {why}", .what.0, .what.1)]
    Below {
        /// What is too short.
        what: Named,
        /// The least that works.
        least: Duration,
        /// The rule.
        why: &'static str,
    },
    /// The first is above the most that makes sense.
    #[error("{} of {:?} is above {most:?}: {why}", .what.0, .what.1)]
    Above {
        /// What is too long.
        what: Named,
        /// The most that is taken.
        most: Duration,
        /// The rule.
        why: &'static str,
    },
    /// The first exceeds the second.
    #[error("{} of {:?} exceeds {} of {:?}: {why}", .what.0, .what.1, .limit.0, .limit.1)]
    Exceeds {
        /// What is too long.
        what: Named,
        /// What it must not exceed.
        limit: Named,
        /// The rule.
        why: &'static str,
    },
    /// More standby connections than an attempt could take.
    #[error("standby of {0} exceeds {1}: {2}")]
    Standby(u16, u16, &'static str),
    /// A clock that stands still.
    #[error("clock factor of 0: the connection's clock would stand still; 1 is real time")]
    ClockFactor,
}

impl CtrlConfig {
    /// Whether the timeouts can work, each by itself and together.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn lint(&self) -> Result<(), LintError> {
        self.lint_ranges()?;
        self.lint_standby()?;
        self.lint_connect()?;
        self.lint_path()?;
        self.reconnect.iter().try_for_each(|reconnect| self.lint_reconnect(reconnect))?;
        self.requeue.iter().try_for_each(|requeue| self.lint_requeue(requeue))
    }

    /// Gives the whole connect `total`, and no stage of it more than that.
    pub fn limit_connect(&mut self, total: Duration) {
        let t = &mut self.timeouts;
        t.connect_total = total;
        for stage in [&mut t.icresp, &mut t.connect, &mut self.conn.connect_timeout] {
            *stage = total.min(*stage);
        }
        if let Some(reconnect) = &mut self.reconnect {
            reconnect.probe_timeout = total.min(reconnect.probe_timeout);
        }
    }

    /// Standby connections are for the queues of another attempt.
    fn lint_standby(&self) -> Result<(), LintError> {
        let (most, why) = match self.reconnect {
            Some(_) => (self.io_queues.saturating_add(1), "a controller has no more queues"),
            None => (0, "they are for a controller that is connected again"),
        };
        match self.standby > most {
            true => Err(LintError::Standby(self.standby, most, why)),
            false => Ok(()),
        }
    }

    /// Each by itself.
    fn lint_ranges(&self) -> Result<(), LintError> {
        let t = &self.timeouts;
        for what in [
            ("connect timeout", t.connect_total),
            ("TCP connect timeout", self.conn.connect_timeout),
            ("ICResp timeout", t.icresp),
            ("Connect command timeout", t.connect),
            ("TermReq timeout", t.term),
            ("admin command timeout", t.admin),
            ("I/O timeout", t.io),
            ("abort timeout", t.abort),
            ("shutdown timeout", t.shutdown),
            ("ack timeout", self.conn.ack_timeout),
            ("drain timeout", self.conn.drain_timeout),
        ] {
            at_least(what, SHORTEST, "a wait that is over at once finds nothing")?;
            at_most(what, LONGEST, "a wait so long is none")?;
        }
        let why = "the TermReq that ended a connection is not waited for longer (NVMe/TCP)";
        at_most(("TermReq timeout", t.term), TERM_MAX, why)?;
        if self.kato > Duration::ZERO {
            let kato = ("keep alive timeout", self.kato);
            at_least(kato, KATO_MIN, "controllers count it in units of that; 0 turns it off")?;
            at_most(kato, LONGEST, "0 turns keep alive off")?;
        }
        Ok(())
    }

    /// The stages of a connect lie within the whole.
    fn lint_connect(&self) -> Result<(), LintError> {
        let t = &self.timeouts;
        let total = ("connect timeout", t.connect_total);
        for stage in [
            ("TCP connect timeout", self.conn.connect_timeout),
            ("ICResp timeout", t.icresp),
            ("Connect command timeout", t.connect),
        ] {
            exceeds_not(stage, total, "a stage ends within the whole connect")?;
        }
        Ok(())
    }

    /// A lost segment is sent again before the path counts as lost.
    fn lint_path(&self) -> Result<(), LintError> {
        let rto = RTO_MIN.checked_div(self.conn.clock_factor).ok_or(LintError::ClockFactor)?;
        let ack = ("ack timeout", self.conn.ack_timeout);
        at_least(ack, 2 * rto, "a lost segment must have been sent again before (twice the RTO)")
    }

    /// Pauses grow up to their most, and that at least once before the controller is lost.
    fn lint_reconnect(&self, reconnect: &Reconnect) -> Result<(), LintError> {
        let delay_min = ("reconnect delay_min", reconnect.delay_min);
        let delay_max = ("reconnect delay_max", reconnect.delay_max);
        at_least(delay_min, SHORTEST, "attempts without a pause are a storm")?;
        exceeds_not(delay_min, delay_max, "a pause lies between the two")?;
        at_most(delay_max, LONGEST, "a wait so long is none")?;
        if let Some(ctrl_loss) = reconnect.ctrl_loss {
            let why = "it would be lost before its next attempt; no ctrl_loss is for ever";
            exceeds_not(delay_max, ("reconnect ctrl_loss", ctrl_loss), why)?;
        }
        let probe_timeout = ("reconnect probe_timeout", reconnect.probe_timeout);
        at_least(probe_timeout, SHORTEST, "a wait that is over at once finds nothing")?;
        let total = ("connect timeout", self.timeouts.connect_total);
        exceeds_not(probe_timeout, total, "a stage ends within the whole connect")?;
        let probe_interval = ("reconnect probe_interval", reconnect.probe_interval);
        at_least(probe_interval, PROBE_MIN, "an address that is down is not to be flooded")?;
        at_most(probe_interval, LONGEST, "a wait so long is none")
    }

    /// I/O waits for a reconnection at least, and not for a controller that is given up; a write
    /// that waits for its old path to be quiet is issued before it would fail. KATO is what is
    /// asked for: of a controller that has another, some writes fail instead.
    fn lint_requeue(&self, requeue: &Requeue) -> Result<(), LintError> {
        let fast_io_fail = ("requeue fast_io_fail", requeue.fast_io_fail);
        at_least(fast_io_fail, SHORTEST, "I/O that waits for nothing is not requeued")?;
        at_most(fast_io_fail, LONGEST, "a wait so long is none")?;
        if let Some(reconnect) = &self.reconnect {
            let delay_max = ("reconnect delay_max", reconnect.delay_max);
            exceeds_not(delay_max, fast_io_fail, "I/O would fail before the next attempt")?;
            if let Some(ctrl_loss) = reconnect.ctrl_loss {
                let why = "all I/O ends when the controller is lost for good";
                exceeds_not(fast_io_fail, ("reconnect ctrl_loss", ctrl_loss), why)?;
            }
        }
        let (quiesce, why) = match requeue.quiesce {
            Quiesce::Auto => {
                (2 * self.kato, "writes of a silent path wait for 2 keep alive timeouts")
            }
            Quiesce::For(time) => (time, "writes of a silent path wait for quiesce"),
            Quiesce::Off => return Ok(()),
        };
        at_most(("requeue quiesce", quiesce), LONGEST, "a wait so long is none")?;
        at_least(fast_io_fail, quiesce + SHORTEST, why)
    }
}

fn at_least(what: Named, least: Duration, why: &'static str) -> Result<(), LintError> {
    if what.1 < least { Err(LintError::Below { what, least, why }) } else { Ok(()) }
}

fn at_most(what: Named, most: Duration, why: &'static str) -> Result<(), LintError> {
    if what.1 > most { Err(LintError::Above { what, most, why }) } else { Ok(()) }
}

fn exceeds_not(what: Named, limit: Named, why: &'static str) -> Result<(), LintError> {
    if what.1 > limit.1 { Err(LintError::Exceeds { what, limit, why }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use moorline_stack::transport::ConnOptions;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// What is said of the defaults after a change.
    fn told(change: impl FnOnce(&mut CtrlConfig)) -> String {
        let mut config = CtrlConfig::new("10.0.0.2:4420".parse().unwrap(), "nqn.2026-01.x:y");
        change(&mut config);
        config.lint().map_or_else(|error| error.to_string(), |()| "fine".into())
    }

    #[test]
    fn defaults_work() {
        assert_eq!(told(|_| {}), "fine");
        let discovery = CtrlConfig::discovery("10.0.0.2:8009".parse().unwrap());
        assert_eq!(discovery.lint(), Ok(()), "KATO 0 is off");
    }

    #[test]
    fn no_wait_is_over_at_once_and_none_lasts_for_ever() {
        let zero = told(|config| config.timeouts.io = Duration::ZERO);
        assert_eq!(
            zero,
            "I/O timeout of 0ns is below 1ms: a wait that is over at once finds nothing"
        );
        let abort = told(|config| config.timeouts.abort = Duration::ZERO);
        assert!(abort.starts_with("abort timeout of 0ns is below 1ms"), "{abort}");
        let days = told(|config| config.timeouts.admin = Duration::from_secs(100_000));
        assert!(days.starts_with("admin command timeout of 100000s is above 86400s"), "{days}");
        let term = told(|config| config.timeouts.term = Duration::from_secs(31));
        assert!(term.starts_with("TermReq timeout of 31s is above 30s"), "{term}");
    }

    #[test]
    fn kato_is_off_or_at_least_its_unit() {
        assert_eq!(told(|config| config.kato = Duration::ZERO), "fine");
        assert_eq!(told(|config| config.kato = ms(100)), "fine");
        let short = told(|config| config.kato = ms(99));
        assert!(short.starts_with("keep alive timeout of 99ms is below 100ms"), "{short}");
    }

    #[test]
    fn a_stage_of_the_connect_does_not_exceed_the_whole() {
        let total = told(|config| config.timeouts.connect_total = ms(900));
        let expected = "TCP connect timeout of 1s exceeds connect timeout of 900ms: \
                        a stage ends within the whole connect";
        assert_eq!(total, expected);
        let stage = told(|config| config.timeouts.icresp = ms(3001));
        assert!(stage.starts_with("ICResp timeout of 3.001s exceeds connect timeout of 3s"));
        let stage = told(|config| config.timeouts.connect = ms(3001));
        assert!(stage.starts_with("Connect command timeout of 3.001s exceeds"), "{stage}");
        assert_eq!(told(|config| config.limit_connect(ms(100))), "fine");
    }

    #[test]
    fn an_ack_timeout_leaves_time_to_send_again() {
        let of_exp = |n| ConnOptions::ack_timeout_of_exp(n).unwrap();
        assert_eq!(told(|config| config.conn.ack_timeout = of_exp(12)), "fine");
        let short = told(|config| config.conn.ack_timeout = of_exp(4));
        assert!(short.starts_with("ack timeout of 16ms is below 20ms"), "{short}");
        let long = told(|config| config.conn.ack_timeout = of_exp(31));
        assert!(long.starts_with("ack timeout of 2147483.648s is above 86400s"), "{long}");
        let still = told(|config| config.conn.clock_factor = 0);
        assert!(still.starts_with("clock factor of 0"), "{still}");
    }

    #[test]
    fn reconnects_pause_and_are_tried_before_the_controller_is_lost() {
        let reconnect = |change: fn(&mut Reconnect)| {
            told(|config| change(config.reconnect.insert(Reconnect::default())))
        };
        assert_eq!(reconnect(|_| {}), "fine");
        assert_eq!(reconnect(|r| r.ctrl_loss = None), "fine");
        let storm = reconnect(|r| r.delay_min = Duration::ZERO);
        assert!(storm.starts_with("reconnect delay_min of 0ns is below 1ms"), "{storm}");
        let order = reconnect(|r| r.delay_min = ms(2001));
        assert!(order.starts_with("reconnect delay_min of 2.001s exceeds reconnect delay_max of"));
        let lost = reconnect(|r| r.ctrl_loss = Some(ms(1999)));
        let expected = "reconnect delay_max of 2s exceeds reconnect ctrl_loss of 1.999s";
        assert!(lost.starts_with(expected), "{lost}");
        let probe = reconnect(|r| r.probe_timeout = ms(3001));
        assert!(probe.starts_with("reconnect probe_timeout of 3.001s exceeds connect timeout"));
        let flood = reconnect(|r| r.probe_interval = ms(9));
        assert!(flood.starts_with("reconnect probe_interval of 9ms is below 10ms"), "{flood}");
    }

    #[test]
    fn standby_connections_are_no_more_than_an_attempt_takes() {
        let standby = |standby, reconnect: Option<Reconnect>| {
            told(|config| {
                (config.standby, config.io_queues, config.reconnect) = (standby, 2, reconnect);
            })
        };
        let again = Some(Reconnect::default());
        assert_eq!(standby(3, again), "fine");
        assert_eq!(standby(4, again), "standby of 4 exceeds 3: a controller has no more queues");
        let none = standby(1, None);
        assert!(none.starts_with("standby of 1 exceeds 0: they are for a controller that"));
    }

    #[test]
    fn io_waits_for_reconnections_but_not_for_a_controller_that_is_given_up() {
        let requeue = |change: fn(&mut CtrlConfig, &mut Requeue)| {
            told(|config| {
                config.reconnect = Some(Reconnect::default());
                let mut requeue = Requeue::default();
                change(config, &mut requeue);
                config.requeue = Some(requeue);
            })
        };
        assert_eq!(requeue(|_, _| {}), "fine");
        assert_eq!(requeue(|config, _| config.reconnect = None), "fine");
        let short = requeue(|_, r| r.fast_io_fail = ms(1999));
        let expected = "reconnect delay_max of 2s exceeds requeue fast_io_fail of 1.999s";
        assert!(short.starts_with(expected), "{short}");
        let long = requeue(|_, r| r.fast_io_fail = ms(600_001));
        let expected = "requeue fast_io_fail of 600.001s exceeds reconnect ctrl_loss of 600s";
        assert!(long.starts_with(expected), "{long}");
        let kato = requeue(|config, _| config.kato = ms(10_000));
        let expected = "requeue fast_io_fail of 20s is below 20.001s: writes of a silent path wait \
                        for 2 keep alive timeouts";
        assert_eq!(kato, expected);
        let quiesce = requeue(|_, r| r.quiesce = Quiesce::For(ms(20_000)));
        let expected = "requeue fast_io_fail of 20s is below 20.001s: writes of a silent path wait \
                        for quiesce";
        assert_eq!(quiesce, expected);
        assert_eq!(requeue(|_, r| r.quiesce = Quiesce::For(ms(19_999))), "fine");
        let off = |config: &mut CtrlConfig, r: &mut Requeue| {
            config.kato = ms(60_000);
            r.quiesce = Quiesce::Off;
        };
        assert_eq!(requeue(off), "fine");
    }
}
