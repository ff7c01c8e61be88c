//! Local health of one address: what outcomes and active checks say.
//!
//! [`AddressHealth`] holds three independent layers: passive grade, breaker, active checks. No
//! layer overwrites another: a passing check does not close a breaker, and a closing breaker does
//! not override a check.

use super::breaker::{Breaker, BreakerState, BreakerStep, Evidence, Trial};
use super::checks::{Active, ActiveState, Check, CheckFailure};
use super::grade::{Passive, PassiveState};
use super::layers::Layers;
use super::window::{OutcomeWindow, Totals};
use crate::balancer::clock::Timestamp;
use crate::balancer::config::LoadBalancerConfig;
use crate::balancer::outcome::Outcome;

/// Local health of one address, from outcomes and active checks.
#[derive(Debug, Default)]
pub(crate) struct AddressHealth {
    window: OutcomeWindow,
    pub(crate) passive: Passive,
    pub(crate) breaker: Breaker,
    pub(crate) active: Active,
    /// The breaker is open, and the ejection cap keeps the address in the pool.
    pub(crate) held_by_cap: bool,
}

/// A change of state in one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// `first`: the layer had no state before.
    Active {
        state: ActiveState,
        first: bool,
    },
    Passive {
        grade: PassiveState,
        first: bool,
    },
    Breaker(BreakerStep),
}

impl AddressHealth {
    /// Adds the local layers to the layers of admin and registry.
    pub(crate) fn add_to(&self, layers: Layers) -> Layers {
        Layers {
            active: self.active.since(),
            passive: self.passive.since(),
            breaker: self.breaker.since(),
            held_by_cap: self.held_by_cap,
            ..layers
        }
    }

    /// Records an outcome and its latency in seconds. `pool_latency` is the typical latency of the
    /// pool; `entropy` is in 0.0..1.0.
    #[expect(
        clippy::too_many_arguments,
        reason = "time, entropy and what the pool knows come in from outside"
    )]
    pub(crate) fn record(
        &mut self,
        outcome: Outcome,
        seconds: Option<f32>,
        trial: Trial,
        pool_latency: Option<f32>,
        config: &LoadBalancerConfig,
        entropy: f64,
        now: Timestamp,
    ) -> [Option<Step>; 2] {
        let evidence = match outcome {
            Outcome::Cancelled => return [None, None],
            Outcome::Success => Evidence::Success,
            Outcome::Rejected => Evidence::Rejected,
            Outcome::RejectedFor(time) => Evidence::RejectedFor(time),
            Outcome::Failure | Outcome::Timeout | Outcome::ConnectError => {
                Evidence::Failure(outcome.failures_in_a_row())
            }
        };
        let totals = self
            .window
            .count(evidence != Evidence::Success, config.breaker().window(), now);
        // Only successes count as latency: a fast failure is not a fast answer.
        if let Some(seconds) = seconds.filter(|_| evidence == Evidence::Success) {
            self.passive.observe_latency(seconds, pool_latency);
        }
        let passive = self.grade(totals, pool_latency, config, now);
        let step = self.breaker.record(evidence, totals, trial, config, entropy, now);
        let was_reset = self.reset_if_closed(step);
        [passive.filter(|_| !was_reset), step.map(Step::Breaker)]
    }

    /// Makes the state changes that are due at `now`.
    pub(crate) fn advance(
        &mut self,
        trial: Trial,
        pool_latency: Option<f32>,
        config: &LoadBalancerConfig,
        now: Timestamp,
    ) -> [Option<Step>; 2] {
        let step = self.breaker.advance(trial, config, now);
        self.reset_if_closed(step);
        let passive = if self.passive.is_degraded() {
            let totals = self.window.totals(config.breaker().window(), now);
            self.grade(totals, pool_latency, config, now)
        } else {
            None
        };
        [passive, step.map(Step::Breaker)]
    }

    /// When [`advance`](Self::advance) should be called next; `None` if no state changes with time.
    pub(crate) fn next(&self, trial: Trial, config: &LoadBalancerConfig, now: Timestamp) -> Option<Timestamp> {
        let graded = self
            .passive
            .is_degraded()
            .then(|| now + OutcomeWindow::step(config.breaker().window()));
        self.breaker.next(trial, now).into_iter().chain(graded).min()
    }

    /// Records the result of an active check.
    pub(crate) fn observe(&mut self, check: Check, config: &LoadBalancerConfig, now: Timestamp) -> Option<Step> {
        let first = self.active.since().is_none();
        let state = self.active.observe(check, config, now)?;
        Some(Step::Active { state, first })
    }

    fn grade(
        &mut self,
        totals: Totals,
        pool_latency: Option<f32>,
        config: &LoadBalancerConfig,
        now: Timestamp,
    ) -> Option<Step> {
        let first = self.passive.since().is_none();
        let grade = self
            .passive
            .update(totals, pool_latency, config.breaker().min_outcomes(), now)?;
        Some(Step::Passive { grade, first })
    }

    /// Clears window and grade if the breaker has closed: older outcomes do not describe the
    /// recovered address. Returns whether they were cleared.
    fn reset_if_closed(&mut self, step: Option<BreakerStep>) -> bool {
        let closed = matches!(step, Some(BreakerStep::Closed(_)));
        if closed {
            self.window.clear();
            self.passive.reset();
        }
        closed
    }

    /// The breaker's severity and state while the breaker is open or half open.
    pub(crate) fn tripped(&self) -> Option<Tripped> {
        let half_open = match self.breaker.state() {
            BreakerState::Closed => return None,
            BreakerState::Open { .. } => false,
            BreakerState::HalfOpen { .. } => true,
        };
        let (severity, tripped_at) = self.breaker.severity();
        Some(Tripped {
            severity,
            tripped_at,
            half_open,
        })
    }

    /// Whether active checks of the address fail.
    pub(crate) fn is_down(&self) -> bool {
        self.active
            .since()
            .is_some_and(|active| active.state != ActiveState::Up)
    }

    /// Whether a check found that the address is in a denied network.
    pub(crate) fn is_refused(&self) -> bool {
        let refused = ActiveState::Down(CheckFailure::AddressRefused);
        self.active.since().is_some_and(|active| active.state == refused)
    }
}

/// A breaker that is open or half open.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Tripped {
    /// The failure ratio at the time of the trip.
    pub(crate) severity: f32,
    pub(crate) tripped_at: Timestamp,
    pub(crate) half_open: bool,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// A naive model of the breaker: computed from the list of all past events instead of a state.
    #[derive(Default)]
    struct Naive {
        /// Each outcome that the breaker recorded while closed, since the breaker last closed.
        outcomes: Vec<(Timestamp, Outcome)>,
        /// When the breaker opened, and until when; `None` while closed or half open.
        open: Option<(Timestamp, Timestamp)>,
        half_open: bool,
        unknown_trials: u8,
        openings: Vec<Timestamp>,
        /// The breaker is open for the time that the address asked for.
        asked: bool,
        closings: Vec<Timestamp>,
    }

    impl Naive {
        fn failures_in_a_row(&self) -> u32 {
            let since_success = self.outcomes.iter().rev().map_while(|(_, outcome)| match outcome {
                Outcome::Success => None,
                outcome => Some(outcome.failures_in_a_row()),
            });
            since_success.sum()
        }

        fn trips(&self, config: &LoadBalancerConfig, now: Timestamp) -> bool {
            let step = (config.breaker().window() / 12).as_nanos() as u64;
            let is_recent = |at: &Timestamp| at.as_nanos() / step + 12 > now.as_nanos() / step;
            let recent: Vec<_> = self.outcomes.iter().filter(|(at, _)| is_recent(at)).collect();
            let failed = recent
                .iter()
                .filter(|(_, outcome)| *outcome != Outcome::Success)
                .count();
            let enough = recent.len() >= config.breaker().min_outcomes() as usize;
            self.failures_in_a_row() >= config.max_consecutive_failures()
                || enough && failed as f64 / recent.len() as f64 >= config.breaker().failure_ratio()
        }

        fn close(&mut self, now: Timestamp) {
            (self.open, self.half_open, self.unknown_trials) = (None, false, 0);
            self.outcomes.clear();
            self.closings.push(now);
        }
    }

    #[derive(Clone, Debug)]
    enum Event {
        Outcome(Outcome),
        Wait(u64),
        /// A pick is let through as the trial.
        Trial,
    }

    fn event() -> impl Strategy<Value = Event> {
        let outcome = prop_oneof![
            4 => Just(Outcome::Success),
            3 => Just(Outcome::Failure),
            1 => Just(Outcome::Timeout),
            1 => Just(Outcome::ConnectError),
            1 => Just(Outcome::Rejected),
            1 => (0_u64..90).prop_map(|seconds| Outcome::RejectedFor(Duration::from_secs(seconds))),
            1 => Just(Outcome::Cancelled),
        ];
        prop_oneof![
            5 => outcome.prop_map(Event::Outcome),
            3 => (1_u64..4_000).prop_map(Event::Wait),
            1 => (4_000_u64..90_000).prop_map(Event::Wait),
            2 => Just(Event::Trial),
        ]
    }

    proptest! {
        #[test]
        fn the_breaker_equals_the_naive_model_after_every_event(
            events in prop::collection::vec(event(), 1..120),
            enabled: bool,
            entropy in 0.0..1.0_f64,
        ) {
            let config = LoadBalancerConfig::default().with_circuit_breaker_enabled(enabled);
            let (mut health, mut naive) = (AddressHealth::default(), Naive::default());
            let mut now = Timestamp::default() + Duration::from_secs(1_000_000);
            let mut trial = Trial::None;
            for event in events {
                match event {
                    Event::Wait(milliseconds) => {
                        // In small steps, as the agent's timer advances time.
                        for _ in 0..milliseconds.div_ceil(500) {
                            now = now + Duration::from_millis(500);
                            let [_, step] = health.advance(trial, None, &config, now);
                            match naive.open {
                                Some((_, until)) if until <= now => {
                                    naive.open = None;
                                    if enabled {
                                        naive.half_open = true;
                                    } else {
                                        naive.close(now);
                                    }
                                }
                                _ => {}
                            }
                            if let Trial::Since(then) = trial && naive.half_open && now.since(then) >= Duration::from_secs(5) {
                                naive.unknown_trials += 1;
                                if naive.unknown_trials == 3 {
                                    naive.close(now);
                                }
                            }
                            if step.is_some() {
                                trial = Trial::None;
                            }
                        }
                    }
                    Event::Trial if naive.half_open && trial == Trial::None => trial = Trial::Since(now),
                    Event::Trial => {}
                    Event::Outcome(outcome) => {
                        let [_, step] = health.record(outcome, None, trial, None, &config, entropy, now);
                        let has_trial = trial != Trial::None || naive.unknown_trials > 0;
                        let mut opens = false;
                        let in_a_row = naive.half_open
                            || naive.closings.last().is_some_and(|&at| now.since(at) < config.breaker().window());
                        let asked_for = match outcome {
                            Outcome::RejectedFor(time) if !time.is_zero() => Some(time.min(Duration::from_secs(60))),
                            _ => None,
                        };
                        if outcome == Outcome::Cancelled {
                        } else if let Some((since, until)) = naive.open {
                            if let (true, Some(time)) = (naive.asked, asked_for) {
                                naive.open = Some((since, until.max(now + time)));
                            }
                        } else if let (Some(time), false) = (asked_for, naive.half_open && !has_trial) {
                            if !naive.half_open {
                                naive.outcomes.push((now, outcome));
                            }
                            if !in_a_row {
                                naive.openings.clear();
                            }
                            naive.open = Some((now, now + time));
                            (naive.half_open, naive.unknown_trials, naive.asked) = (false, 0, true);
                        } else if naive.half_open {
                            match outcome {
                                _ if !has_trial => {}
                                Outcome::Success => naive.close(now),
                                _ => opens = true,
                            }
                        } else {
                            naive.outcomes.push((now, outcome));
                            opens = outcome != Outcome::Success && naive.trips(&config, now);
                        }
                        if opens {
                            if !in_a_row {
                                naive.openings.clear();
                            }
                            naive.openings.push(now);
                            let times = naive.openings.len() as i32;
                            let seconds = if enabled {
                                2_f64.powi(times - 1).min(60.0) * (0.5 + entropy)
                            } else {
                                f64::from(30 * times).min(300.0)
                            };
                            naive.open = Some((now, now + Duration::from_secs_f64(seconds)));
                            (naive.half_open, naive.unknown_trials, naive.asked) = (false, 0, false);
                        }
                        if step.is_some() {
                            trial = Trial::None;
                        }
                    }
                }
                match (health.breaker.state(), naive.open) {
                    (BreakerState::Open { until, .. }, Some((_, expected))) => {
                        let difference = until.since(expected) + expected.since(until);
                        prop_assert!(difference < Duration::from_millis(1), "{:?} {:?}", until, expected);
                    }
                    (BreakerState::HalfOpen { .. }, None) => prop_assert!(naive.half_open),
                    (BreakerState::Closed, None) => prop_assert!(!naive.half_open),
                    other => prop_assert!(false, "{:?}", other),
                }
            }
        }
    }
}
