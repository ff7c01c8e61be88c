//! Adaptive weights: a simulation on a clock that the test moves, and the agent with real backends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fastrand::Rng;
use pickd::balancer::{
    AdaptiveFormula, Address, Check, CheckFailure, Clock, Environment, Explanation, Manual, MeasuredBy, Order,
    Transitioned,
};
use pickd::{
    Acquired, Context, LoadBalancer, LoadBalancerConfig, LoadBalancingStrategy, Outcome, ServiceInstance, Weight,
};
use serde_json::Value;

use crate::support::agent::Agent;
use crate::support::backend::Backend;
use crate::support::folder::Folder;
use crate::support::http::Connection;
use crate::support::until;

use LoadBalancingStrategy::{
    ConsistentHash, LeastConnections, LeastResponseTime, Random, RoundRobin, WeightedRoundRobin,
};

/// How a simulated backend answers.
#[derive(Clone, Copy)]
enum Speed {
    /// The mean response time in milliseconds, whatever the load.
    Fixed(f64),
    /// The mean service time in milliseconds of a single server with a queue.
    Queue(f64),
}

struct Simulated {
    speed: Speed,
    failure_ratio: f64,
    /// When a queue is empty, in seconds.
    free_at: f64,
}

/// A pool with simulated backends and requests at random times, from one seed.
struct Simulation {
    balancer: LoadBalancer,
    clock: Arc<Manual>,
    rng: Rng,
    backends: BTreeMap<String, Simulated>,
    /// Seconds.
    now: f64,
    next_arrival: f64,
    per_second: f64,
    in_flight: BTreeMap<(u64, u64), (Acquired, Outcome, f64)>,
    started: u64,
}

const TICK: f64 = 0.05;
const IDS: [&str; 5] = ["a", "b", "c", "d", "e"];

impl Simulation {
    fn new(config: LoadBalancerConfig, speeds: &[Speed], weights: &[i64], per_second: f64, seed: u64) -> Self {
        // The core draws from the generator of the thread.
        fastrand::seed(seed);
        let clock = Arc::new(Manual::default());
        clock.advance(Duration::from_secs(10_000));
        let environment = Environment {
            clock: clock.clone(),
            ..Environment::default()
        };
        let balancer = LoadBalancer::with_environment("web".parse().unwrap(), config, environment, seed);
        let instances = IDS.iter().zip(speeds).zip(weights).enumerate();
        balancer.apply(instances.map(|(place, ((id, _), weight))| {
            let address = format!("10.0.0.{}", place + 1);
            let instance = ServiceInstance::new(id, &address, 80).unwrap();
            Arc::new(instance.with_weight(Weight::new(*weight).unwrap()))
        }));
        let backend = |speed: &Speed| Simulated {
            speed: *speed,
            failure_ratio: 0.0,
            free_at: 0.0,
        };
        Self {
            balancer,
            clock,
            rng: Rng::with_seed(seed),
            backends: IDS
                .iter()
                .zip(speeds)
                .map(|(id, speed)| ((*id).to_owned(), backend(speed)))
                .collect(),
            now: 0.0,
            next_arrival: 0.0,
            per_second,
            in_flight: BTreeMap::new(),
            started: 0,
        }
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.rng.f64()).ln()
    }

    /// Runs for this many seconds. Returns the share of the picks of each instance.
    fn run(&mut self, seconds: f64) -> Vec<f64> {
        let mut picks = vec![0_u32; self.backends.len()];
        let end = self.now + seconds;
        while self.now < end - TICK / 2.0 {
            self.now += TICK;
            self.clock.advance(Duration::from_secs_f64(TICK));
            while self.next_arrival < self.now {
                let at = self.next_arrival;
                self.next_arrival += self.exponential(1.0 / self.per_second);
                let request = self.balancer.acquire(&Context::new()).unwrap();
                let id = request.id().to_string();
                picks[IDS.iter().position(|known| *known == id).unwrap()] += 1;
                self.serve(&id, request, at);
            }
            while let Some(entry) = self.in_flight.first_entry()
                && entry.key().0 <= (self.now * 1e9) as u64
            {
                let (request, outcome, took) = entry.remove();
                request.finish(outcome, Duration::from_secs_f64(took));
            }
            self.balancer.advance(self.clock.now());
        }
        let all: u32 = picks.iter().sum();
        picks
            .into_iter()
            .map(|count| f64::from(count) / f64::from(all.max(1)))
            .collect()
    }

    fn serve(&mut self, id: &str, request: Acquired, at: f64) {
        let (speed, failure_ratio) = {
            let backend = &self.backends[id];
            (backend.speed, backend.failure_ratio)
        };
        let ends = match speed {
            Speed::Fixed(milliseconds) => at + milliseconds / 1e3 * (0.5 + self.rng.f64()),
            Speed::Queue(milliseconds) => {
                let work = self.exponential(milliseconds / 1e3);
                let backend = self.backends.get_mut(id).unwrap();
                backend.free_at = backend.free_at.max(at) + work;
                backend.free_at
            }
        };
        let outcome = if self.rng.f64() < failure_ratio {
            Outcome::Failure
        } else {
            Outcome::Success
        };
        self.started += 1;
        self.in_flight
            .insert(((ends * 1e9) as u64, self.started), (request, outcome, ends - at));
    }

    fn set_speed(&mut self, id: &str, speed: Speed) {
        self.backends.get_mut(id).unwrap().speed = speed;
    }

    /// Shares by effective weight: those of picks at random, without their noise.
    fn expected_shares(&self) -> Vec<f64> {
        let explained = self.balancer.explain(None);
        let weights = || explained.instances.iter().map(|instance| instance.effective_weight);
        let sum: f64 = weights().sum();
        weights().map(|weight| weight / sum).collect()
    }

    fn factors(&self) -> Vec<f64> {
        let explained = self.balancer.explain(None);
        explained
            .instances
            .iter()
            .map(|instance| instance.factors.adaptive)
            .collect()
    }
}

fn config(strategy: LoadBalancingStrategy) -> LoadBalancerConfig {
    LoadBalancerConfig::new(strategy)
        .with_adaptive_weights(true)
        .with_slow_start(Duration::ZERO)
        .unwrap()
}

fn rounded(shares: &[f64]) -> Vec<f64> {
    shares.iter().map(|share| (share * 1e3).round() / 1e3).collect()
}

/// Shares by weight and speed.
fn ideal(weights: &[i64], milliseconds: &[f64]) -> Vec<f64> {
    let parts: Vec<f64> = weights
        .iter()
        .zip(milliseconds)
        .map(|(weight, time)| *weight as f64 / time)
        .collect();
    let sum: f64 = parts.iter().sum();
    parts.into_iter().map(|part| part / sum).collect()
}

/// Runs for two minutes, and then for eight more in parts of 20 seconds. Each of these parts has to be
/// within `most` of the ideal shares.
fn converges(name: &str, simulation: &mut Simulation, ideal: &[f64], most: f64, swing: f64) {
    let mut reached = None;
    let mut parts = Vec::new();
    for part in 0..30 {
        let mut shares = simulation.run(20.0);
        if simulation.balancer.config().strategy() == Random {
            shares = simulation.expected_shares();
        }
        let off = shares
            .iter()
            .zip(ideal)
            .map(|(share, ideal)| (share / ideal - 1.0).abs());
        let off = off.fold(0.0, f64::max);
        if off > most {
            reached = None;
        } else if reached.is_none() {
            reached = Some(part * 20);
        }
        parts.push((off, shares));
    }
    let settled = &parts[6..];
    let worst = settled.iter().map(|(off, _)| *off).fold(0.0, f64::max);
    let widest = (0..ideal.len())
        .map(|index| {
            let shares = || settled.iter().map(|(_, shares)| shares[index]);
            let (least, most) = (shares().fold(1.0, f64::min), shares().fold(0.0, f64::max));
            (most - least) / ideal[index]
        })
        .fold(0.0, f64::max);
    let before = simulation.balancer.adjustment_counts();
    eprintln!(
        "{name}: ideal {:?}, within {} % from {reached:?} s, last {:?}, off by {:.1} % at most after 2 min, \
         swings by {:.1} %, factors {:?}, {before:?}",
        rounded(ideal),
        most * 100.0,
        rounded(&parts[29].1),
        worst * 100.0,
        widest * 100.0,
        rounded(&simulation.factors())
    );
    assert!(reached.is_some_and(|seconds| seconds <= 120), "{name}: {parts:?}");
    assert!(worst <= most, "{name}: {parts:?}");
    assert!(widest <= swing, "{name}: swings by {widest}: {parts:?}");
}

const TWO: [f64; 2] = [10.0, 50.0];

fn fixed(milliseconds: &[f64]) -> Vec<Speed> {
    milliseconds.iter().map(|time| Speed::Fixed(*time)).collect()
}

#[test]
fn shares_follow_the_speed_in_every_strategy_that_adapts() {
    for (strategy, weights) in [
        (RoundRobin, [1, 1]),
        (Random, [1, 1]),
        (WeightedRoundRobin, [1, 1]),
        (WeightedRoundRobin, [3, 6]),
        (RoundRobin, [3, 6]),
    ] {
        for seed in [1, 2] {
            let mut simulation = Simulation::new(config(strategy), &fixed(&TWO), &weights, 200.0, seed);
            let counted = if strategy == RoundRobin { [1, 1] } else { weights };
            let name = format!("{strategy} {weights:?} seed {seed}");
            converges(&name, &mut simulation, &ideal(&counted, &TWO), 0.15, 0.1);
        }
    }
}

#[test]
fn one_slow_instance_of_several_gets_its_share() {
    for slow in [30.0, 40.0] {
        let speeds = [10.0, 10.0, 10.0, 10.0, slow];
        let mut simulation = Simulation::new(config(RoundRobin), &fixed(&speeds), &[1; 5], 200.0, 3);
        converges(
            &format!("one at {slow} ms"),
            &mut simulation,
            &ideal(&[1; 5], &speeds),
            0.15,
            0.1,
        );
    }
}

#[test]
fn queues_become_equally_busy_and_shares_do_not_swing() {
    for (times, busy, most) in [
        ([1.0, 3.0], 0.5, 0.15),
        ([1.0, 3.0], 0.8, 0.15),
        ([1.0, 1.5], 0.8, 0.15),
        // So few requests that their random times show.
        ([10.0, 30.0], 0.3, 0.2),
        ([10.0, 50.0], 0.5, 0.2),
        ([10.0, 30.0], 0.8, 0.25),
    ] {
        let capacity: f64 = times.iter().map(|time| 1e3 / time).sum();
        let speeds = times.map(Speed::Queue);
        // With random picks, and so random arrivals, equally busy queues are those of shares by
        // capacity.
        let mut simulation = Simulation::new(config(Random), &speeds, &[1; 2], capacity * busy, 4);
        let name = format!("queues of {times:?} ms, {busy} busy");
        converges(&name, &mut simulation, &ideal(&[1; 2], &times), most, 2.0 * most);
    }
}

#[test]
fn the_factor_of_an_instance_that_recovers_decays_to_one() {
    let speeds = fixed(&[10.0, 10.0, 10.0, 50.0]);
    let mut simulation = Simulation::new(config(RoundRobin), &speeds, &[1; 4], 100.0, 1);
    simulation.run(150.0);
    assert!(simulation.factors()[3] < 0.26, "{:?}", simulation.factors());
    simulation.set_speed("d", Speed::Fixed(10.0));
    let shares = simulation.run(240.0);
    assert!(shares[3] < 0.25, "{shares:?}");
    assert_eq!(simulation.factors(), [1.0; 4]);
    let shares = simulation.run(20.0);
    assert!(shares.iter().all(|share| (share - 0.25).abs() < 0.001), "{shares:?}");
}

#[test]
fn errors_lower_the_share_of_an_instance_that_answers_fast() {
    // Below the failure ratio at which outcomes degrade the instance.
    let speeds = fixed(&[10.0, 10.0, 10.0, 5.0]);
    let config = config(RoundRobin).with_max_consecutive_failures(1_000).unwrap();
    let mut simulation = Simulation::new(config, &speeds, &[1; 4], 200.0, 1);
    simulation.backends.get_mut("d").unwrap().failure_ratio = 0.12;
    simulation.run(180.0);
    let explained = simulation.balancer.explain(None);
    let d = &explained.instances[3];
    let measured = d.measured.unwrap();
    assert!((0.05..0.25).contains(&measured.error_ratio), "{measured:?}");
    assert!(d.factors.adaptive < 0.85 && d.factors.degraded == 1.0, "{d:?}");
}

#[test]
fn other_strategies_and_a_service_that_is_not_asked_do_not_adapt() {
    let off = config(RoundRobin).with_adaptive_weights(false);
    for config in [off, config(LeastResponseTime), config(ConsistentHash)] {
        let is_on = config.adaptive_weights();
        let mut simulation = Simulation::new(config, &fixed(&TWO), &[1; 2], 100.0, 1);
        simulation.run(60.0);
        assert_eq!(simulation.factors(), [1.0; 2]);
        let explained = simulation.balancer.explain(None);
        assert_eq!(
            explained.adaptive.map(|adaptive| adaptive.active),
            is_on.then_some(false)
        );
        assert_eq!(simulation.balancer.statistics().instances["a"].adaptive_factor, None);
    }
    let mut simulation = Simulation::new(config(LeastConnections), &fixed(&TWO), &[1; 2], 100.0, 1);
    let shares = simulation.run(120.0);
    assert!(simulation.factors()[1] < 0.7 && shares[1] < 0.3, "{shares:?}");
}

#[test]
fn factors_go_when_the_strategy_changes_or_adaptive_weights_end() {
    let mut simulation = Simulation::new(config(RoundRobin), &fixed(&TWO), &[1; 2], 100.0, 1);
    simulation.run(60.0);
    assert!(simulation.factors()[1] < 1.0);
    let history = simulation.balancer.adjustments();
    simulation.balancer.configure(config(LeastResponseTime));
    assert_eq!(simulation.factors(), [1.0; 2]);
    simulation.balancer.configure(config(WeightedRoundRobin));
    assert_eq!(simulation.factors(), [1.0; 2], "the loop begins again");
    assert_eq!(simulation.balancer.adjustments(), history, "the history stays");
    simulation.run(60.0);
    assert!(simulation.factors()[1] < 1.0);
}

#[test]
fn the_weight_of_an_operator_is_not_adapted() {
    let mut simulation = Simulation::new(config(WeightedRoundRobin), &fixed(&TWO), &[1; 2], 100.0, 1);
    simulation.run(60.0);
    let learned = simulation.factors()[1];
    assert!(learned < 0.8, "{learned}");
    let (balancer, id) = (simulation.balancer.clone(), "b".parse().unwrap());
    balancer
        .set_weight(&id, Weight::new(2).unwrap(), Order::by("ops"))
        .unwrap();
    let until_now = balancer.adjustments().len();
    simulation.run(60.0);
    let b = balancer.explain_instance(&id).unwrap();
    assert_eq!((b.effective_weight, b.factors.adaptive), (2.0, 1.0));
    assert_eq!(balancer.statistics().instances["b"].adaptive_factor, Some(1.0));
    assert!(b.measured.unwrap().relative_score < Some(0.8), "{:?}", b.measured);
    let moved = balancer.adjustments().split_off(until_now);
    assert!(
        moved.iter().all(|adjustment| adjustment.instances[0].as_str() == "a"),
        "{moved:?}"
    );
    balancer.clear_weight(&id).unwrap();
    assert_eq!(simulation.factors()[1], learned);
}

#[test]
fn more_than_ten_requests_are_needed_and_they_may_come_slowly() {
    // The slow instance gets one request in three seconds: more than ten need half a minute.
    let mut simulation = Simulation::new(config(RoundRobin), &fixed(&TWO), &[1; 2], 0.66, 1);
    simulation.run(15.0);
    assert_eq!(simulation.balancer.adjustments(), []);
    let unmeasured = simulation.balancer.explain(None).instances;
    assert!(unmeasured.iter().all(|instance| instance.measured.is_none()));
    simulation.run(225.0);
    let measured = simulation.balancer.explain_instance(&"b".parse().unwrap()).unwrap();
    assert!(measured.measured.unwrap().requests > 10, "{:?}", measured.measured);
    assert!(simulation.factors()[1] < 0.7, "{:?}", simulation.factors());
}

#[test]
fn the_history_and_the_transitions_tell_each_adjustment() {
    let mut simulation = Simulation::new(config(RoundRobin), &fixed(&[10.0, 10.0, 40.0]), &[1; 3], 200.0, 1);
    simulation.run(150.0);
    let told = simulation.balancer.take_transitions();
    let adjusted = told.iter().filter_map(|transition| match transition.what {
        Transitioned::Adjusted { before, now, .. } => Some((transition.instances[0].clone(), before, now)),
        _ => None,
    });
    let adjusted: Vec<_> = adjusted.collect();
    let history = simulation.balancer.adjustments();
    let kept: Vec<_> = history
        .iter()
        .map(|adjustment| (adjustment.instances[0].clone(), adjustment.before, adjustment.now))
        .collect();
    assert_eq!(adjusted, kept);
    assert!((10..40).contains(&kept.len()), "{kept:?}");
    for pair in history.windows(2) {
        assert_eq!(pair[0].now, pair[1].before);
        let ratio = pair[1].now.get() / pair[1].before.get();
        assert!((0.897..1.103).contains(&ratio), "steps of at most 10 %: {ratio}");
    }
    let last = history.last().unwrap();
    assert!(last.now.get() < 0.26, "{last:?}");
    assert_eq!(last.measured_by, Some(MeasuredBy::Reports));
    assert!(last.relative_score.unwrap().get() < 0.6);
    let counts = simulation.balancer.adjustment_counts();
    assert_eq!((counts.up, counts.down), (0, kept.len() as u64));

    // The speeds change again and again.
    for round in 0..6 {
        let slow = if round % 2 == 0 { 10.0 } else { 40.0 };
        simulation.set_speed("c", Speed::Fixed(slow));
        simulation.run(120.0);
    }
    assert_eq!(simulation.balancer.adjustments().len(), 50);
}

fn address(place: u8) -> Address {
    Address::new(&format!("10.0.0.{place}"), 80).unwrap()
}

/// Runs checks of two instances for this many seconds, one a second.
fn check(simulation: &mut Simulation, seconds: usize, took: [u64; 2]) {
    for _ in 0..seconds {
        for (place, took) in [1, 2].into_iter().zip(took) {
            let took = Duration::from_millis(took);
            simulation.balancer.observe_timed(&address(place), Check::Pass, took);
        }
        simulation.run(1.0);
    }
}

#[test]
fn active_checks_count_where_no_caller_reports() {
    let mut simulation = Simulation::new(config(RoundRobin), &fixed(&TWO), &[1; 2], 1e-9, 1);
    simulation.next_arrival = f64::INFINITY;
    let measured_by = |explained: &Explanation| explained.adaptive.as_ref().unwrap().measured_by;
    check(&mut simulation, 120, [10, 50]);
    let explained = simulation.balancer.explain(None);
    assert_eq!(measured_by(&explained), Some(MeasuredBy::Checks));
    let factors = simulation.factors();
    assert!((factors[0] / factors[1] / 5.0 - 1.0).abs() < 0.15, "{factors:?}");

    // Without checks nothing is known, and the factors decay.
    simulation.balancer.forget_checks();
    simulation.run(5.0);
    assert_eq!(measured_by(&simulation.balancer.explain(None)), None);
    check(&mut simulation, 60, [10, 50]);

    // Reports of callers take over, and say the opposite.
    simulation.set_speed("a", Speed::Fixed(50.0));
    simulation.set_speed("b", Speed::Fixed(10.0));
    simulation.per_second = 100.0;
    simulation.next_arrival = simulation.now;
    check(&mut simulation, 180, [10, 50]);
    assert_eq!(
        measured_by(&simulation.balancer.explain(None)),
        Some(MeasuredBy::Reports)
    );
    let factors = simulation.factors();
    assert!((factors[1] / factors[0] / 5.0 - 1.0).abs() < 0.15, "{factors:?}");
}

#[test]
fn fast_checks_are_equal_and_an_instance_that_is_out_is_not_judged() {
    let mut simulation = Simulation::new(config(RoundRobin), &fixed(&TWO), &[1; 2], 1e-9, 1);
    simulation.next_arrival = f64::INFINITY;
    for _ in 0..60 {
        for (place, micros) in [(1, 100), (2, 900)] {
            let took = Duration::from_micros(micros);
            simulation.balancer.observe_timed(&address(place), Check::Pass, took);
        }
        simulation.run(1.0);
    }
    assert_eq!(simulation.factors(), [1.0; 2]);
    let refused = Check::Fail(CheckFailure::ConnectionRefused);
    for _ in 0..60 {
        simulation
            .balancer
            .observe_timed(&address(1), Check::Pass, Duration::from_millis(1));
        simulation.balancer.observe_timed(&address(2), refused, Duration::ZERO);
        simulation.run(1.0);
    }
    let b = simulation.balancer.explain_instance(&"b".parse().unwrap()).unwrap();
    assert!(!b.unavailable_reasons.is_empty() && b.measured.is_none(), "{b:?}");
    // The few failures before the instance was out.
    assert!(b.factors.adaptive > 0.8, "{b:?}");
}

#[test]
fn an_instance_that_is_not_picked_hides_no_other_at_its_address() {
    let mut simulation = Simulation::new(config(RoundRobin), &fixed(&TWO), &[1; 2], 1e-9, 1);
    simulation.next_arrival = f64::INFINITY;
    let instances = simulation.balancer.instances().into_iter();
    let mut instances: Vec<_> = instances.map(|(instance, _)| instance).collect();
    let drained = ServiceInstance::new("a-drained", "10.0.0.2", 80).unwrap();
    instances.push(Arc::new(drained.with_weight(Weight::new(0).unwrap())));
    simulation.balancer.apply(instances);
    check(&mut simulation, 120, [10, 50]);
    let factor_of = |id: &str| {
        let explained = simulation.balancer.explain_instance(&id.parse().unwrap()).unwrap();
        explained.factors.adaptive
    };
    let factors = [factor_of("a"), factor_of("b")];
    assert!((factors[0] / factors[1] / 5.0 - 1.0).abs() < 0.15, "{factors:?}");
}

#[test]
fn each_tier_is_compared_with_itself() {
    let mut simulation = Simulation::new(config(RoundRobin), &fixed(&[10.0; 4]), &[1; 4], 1e-9, 1);
    simulation.next_arrival = f64::INFINITY;
    // Two instances near, two far away.
    let instances = simulation.balancer.instances().into_iter();
    let instances = instances.map(|(instance, _)| {
        let priority = if instance.id().as_str() < "c" { "0" } else { "1" };
        Arc::new(ServiceInstance::clone(&instance).with_metadata([("priority", priority)]))
    });
    simulation.balancer.apply(instances.collect::<Vec<_>>());
    for _ in 0..60 {
        for (place, took) in [(1, 10), (2, 10), (3, 50), (4, 200)] {
            let took = Duration::from_millis(took);
            simulation.balancer.observe_timed(&address(place), Check::Pass, took);
        }
        simulation.run(1.0);
    }
    let factors = simulation.factors();
    assert_eq!(factors[..2], [1.0; 2]);
    assert!(factors[2] > 1.5 && factors[3] < 0.8, "{factors:?}");
}

#[test]
fn the_formula_of_the_seed_is_kept_with_its_limits() {
    let by_seed = |strategy| config(strategy).with_adaptive_formula(AdaptiveFormula::Seed);
    // 10 ms against 100 ms never leaves its band.
    let mut simulation = Simulation::new(by_seed(WeightedRoundRobin), &fixed(&[10.0, 100.0]), &[4; 2], 100.0, 1);
    simulation.run(300.0);
    assert_eq!(simulation.factors(), [1.0; 2]);
    // 10 ms against 2 s does: 1 / 1.01 and 1 / 3 are 1.5 and 0.5 of their mean.
    let speeds = fixed(&[10.0, 2_000.0]);
    let mut simulation = Simulation::new(by_seed(WeightedRoundRobin), &speeds, &[1, 7], 100.0, 1);
    simulation.run(300.0);
    // A weight of 1 never rises: 1.1 is 1. 7 falls by 0.9 in whole numbers: 6, 5, 4, 3, 2, 1.
    assert_eq!(simulation.factors(), [1.0, 1.0 / 7.0]);
    let mut simulation = Simulation::new(by_seed(WeightedRoundRobin), &speeds, &[10, 20], 100.0, 1);
    simulation.run(20.0);
    let history = simulation.balancer.adjustments();
    assert_eq!((history[0].before.get(), history[0].now.get()), (1.0, 0.9), "18 of 20");
    simulation.run(280.0);
    assert_eq!(
        simulation.factors(),
        [1.0, 0.05],
        "10 is the largest weight of the rule, 1 the least"
    );
    // Where weights do not count, the rule has nothing to change.
    let simulation = Simulation::new(by_seed(RoundRobin), &speeds, &[1, 7], 100.0, 1);
    assert!(!simulation.balancer.explain(None).adaptive.unwrap().active);
}

/// The registered service of two backends, and an agent that balances them by these settings.
struct Served {
    backends: [Backend; 2],
    agent: Agent,
    _folder: Folder,
}

const SLOW: Duration = Duration::from_millis(200);

impl Served {
    fn start(settings: &str) -> Self {
        let backends = [Backend::start(), Backend::start()];
        backends[0].takes(SLOW / 5);
        backends[1].takes(SLOW);
        let instances = ["fast", "slow"].iter().zip(&backends).map(|(id, backend)| {
            let port = backend.address.port();
            format!("[[service.instance]]\nid = \"{id}\"\nhost = \"127.0.0.1\"\nport = {port}\n")
        });
        let folder = Folder::new();
        let services = format!("[[service]]\nname = \"web\"\n{}", instances.collect::<String>());
        let file = folder.write("services.toml", &services);
        let config = format!(
            "[file]\npath = {:?}\n[services.web]\nadaptive_weights = true\nadaptive_interval = \"500ms\"\n{settings}",
            file.to_str().unwrap()
        );
        let config = folder.write("pickd.toml", &config);
        let agent = Agent::run(["--config", config.to_str().unwrap()]).ready();
        Self {
            backends,
            agent,
            _folder: folder,
        }
    }

    fn explain(&self) -> Value {
        self.agent.get("/explain/web").json()
    }

    /// The share of the slow instance by effective weight.
    fn slow_share(&self) -> f64 {
        let explained = self.explain();
        let weight = |index: usize| explained["instances"][index]["effective_weight"].as_f64().unwrap();
        weight(1) / (weight(0) + weight(1))
    }

    /// Waits until the shares are within 15 % of those by speed, and stay there for ten rounds.
    fn converges(&self, measured_by: &str) {
        let is_near = || (self.slow_share() * 6.0 - 1.0).abs() <= 0.15;
        let started = std::time::Instant::now();
        until(
            Duration::from_secs(120),
            "the share of the slow backend is a sixth",
            || is_near().then_some(()),
        );
        let (took, begun) = (started.elapsed(), std::time::Instant::now());
        while begun.elapsed() < Duration::from_secs(5) {
            assert!(is_near(), "{}", self.explain());
            std::thread::sleep(Duration::from_millis(100));
        }
        let picks = (0..240).map(|_| self.agent.get("/pick/web").json()["id"].clone());
        let slow = picks.filter(|id| id == "slow").count();
        let explained = self.explain();
        eprintln!(
            "{measured_by}: after {took:?}, {slow} of 240 picks are slow, {}",
            explained["instances"]
        );
        assert!((30..=50).contains(&slow), "{slow}");
        let adaptive = &explained["adaptive"];
        assert_eq!(adaptive["measured_by"], measured_by);
        assert_eq!(
            (&adaptive["active"], &adaptive["formula"]),
            (&true.into(), &"relative".into())
        );
        let history = adaptive["history"].as_array().unwrap();
        assert!((10..=50).contains(&history.len()), "{adaptive}");
        let slow = &explained["instances"][1];
        assert_eq!(slow["why"].as_array().unwrap().last().unwrap(), "adaptive_weight");
        assert!(
            slow["measured"]["response_seconds"].as_f64() >= Some(SLOW.as_secs_f64()),
            "{slow}"
        );
        let logged = self
            .agent
            .program
            .wait_for_log("adaptive weight adjusted", |line| line["instance"] == "slow");
        assert_eq!(
            (&logged["service"], &logged["measured_by"]),
            (&"web".into(), &measured_by.into())
        );
        let down = self
            .agent
            .metric(r#"pickd_adaptive_adjustments_total{service="web",direction="down"}"#);
        assert!(down > Some(3.0), "{down:?}");
        let factor = self
            .agent
            .metric(r#"pickd_instance_adaptive_factor{service="web",endpoint="slow"}"#);
        assert!(factor < Some(0.8), "{factor:?}");
    }
}

#[test]
fn an_agent_learns_from_reports_that_a_backend_is_five_times_slower() {
    let served = Served::start("");
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut agent = Connection::open(served.agent.address).unwrap();
                let mut backends = served
                    .backends
                    .each_ref()
                    .map(|backend| Connection::open(backend.address).unwrap());
                while !ended.load(Ordering::Relaxed) {
                    let pick = agent.ask("GET", "/pick/web", &[]).unwrap().json();
                    let backend = &mut backends[usize::from(pick["id"] == "slow")];
                    let begun = std::time::Instant::now();
                    assert_eq!(backend.ask("GET", "/", &[]).unwrap().status, 200);
                    let latency = begun.elapsed().as_secs_f64() * 1e3;
                    let report = format!(
                        r#"{{"service":"web","instance":{},"outcome":"success","latency_ms":{latency}}}"#,
                        pick["id"]
                    );
                    assert_eq!(agent.post("/report", &report).unwrap().status, 200);
                }
            });
        }
        // The threads end even if the test fails.
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| served.converges("reports")));
        ended.store(true, Ordering::Relaxed);
        caught.unwrap();
    });
}

#[test]
fn an_agent_learns_from_active_checks_alone_that_a_backend_is_slower() {
    let served = Served::start("health_check = { type = \"http\", path = \"/\" }\nhealth_check_interval = \"500ms\"\n");
    served.converges("checks");
}
