//! What the benchmarks measure: one strategy in a known state, asked for one instance after the
//! other.
//!
//! Everything is seeded, so that two runs make the same picks.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use pickd::balancer::{Clock, Environment, Manual, Mode, Monotonic, RegistryStatus};
use pickd::{Context, LoadBalancer, LoadBalancerConfig, LoadBalancingStrategy, Outcome, ServiceInstance, Weight};

/// Numbers of instances.
pub(crate) const SIZES: [usize; 5] = [3, 10, 100, 1_000, 10_000];

/// A strategy, and the state of the pool that leads it down one of its paths.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) strategy: LoadBalancingStrategy,
    weights: Weights,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum Weights {
    /// 1.
    Equal,
    /// 1 to 4 in turn: a sequence.
    Small,
    /// Up to 10,000: too long a period for a sequence, so an alias table.
    Large,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    /// Every pick has another key.
    Keyed,
    /// Two requests in flight for each instance.
    InFlight,
    /// Every instance has reported response times, and time stands still.
    Reported,
    /// The same on the machine's clock.
    ReportedOnRealClock,
}

impl Case {
    pub(crate) const ALL: [Self; 9] = {
        use LoadBalancingStrategy::*;
        use State::*;
        [
            Self::new("round_robin", RoundRobin, Weights::Equal, Idle),
            Self::new("random", Random, Weights::Equal, Idle),
            Self::new("weighted_round_robin", WeightedRoundRobin, Weights::Small, Idle),
            Self::new("weighted_round_robin, alias", WeightedRoundRobin, Weights::Large, Idle),
            Self::new("consistent_hash", ConsistentHash, Weights::Equal, Keyed),
            Self::new("least_connections", LeastConnections, Weights::Small, InFlight),
            Self::new("least_connections, idle", LeastConnections, Weights::Small, Idle),
            Self::new("least_response_time", LeastResponseTime, Weights::Small, Reported),
            Self::new(
                "least_response_time, clock",
                LeastResponseTime,
                Weights::Small,
                ReportedOnRealClock,
            ),
        ]
    };

    const fn new(name: &'static str, strategy: LoadBalancingStrategy, weights: Weights, state: State) -> Self {
        Self {
            name,
            strategy,
            weights,
            state,
        }
    }

    /// The instances of this case.
    pub(crate) fn instances(&self, count: usize) -> Vec<Arc<ServiceInstance>> {
        (0..count)
            .map(|number| Arc::new(self.instance(number, count)))
            .collect()
    }

    /// One of `count` instances.
    pub(crate) fn instance(&self, number: usize, count: usize) -> ServiceInstance {
        let weight = match self.weights {
            Weights::Equal => 1,
            Weights::Small => 1 + number as i64 % 4,
            // Few instances need large weights for a long period, and no two alike.
            Weights::Large => 10_000 - number as i64 * if count > 1_000 { 1 } else { 7 } % 9_999,
        };
        let host = format!("10.{}.{}.{}", number >> 16, number >> 8 & 255, number & 255);
        ServiceInstance::new(&format!("user-{number}@node-{}", number % 100), &host, 8080)
            .and_then(|instance| instance.with_tags(["v2"]))
            .expect("a valid instance")
            .with_weight(Weight::new(weight).expect("a weight in range"))
            .with_status(RegistryStatus::Passing)
            .with_metadata([("zone", "us-west")])
    }

    /// An empty balancer with this strategy.
    pub(crate) fn balancer(&self, clock: Arc<dyn Clock>) -> LoadBalancer {
        let tools = Environment {
            clock,
            ..Environment::default()
        };
        let service = "user-service".parse().expect("a valid name");
        LoadBalancer::with_environment(service, LoadBalancerConfig::new(self.strategy), tools, 0)
    }

    /// A pool of `count` instances, in the state in which it is asked.
    pub(crate) fn pool(&self, count: usize) -> Pool {
        fastrand::seed(42);
        let manual = Arc::new(Manual::default());
        manual.advance(Duration::from_secs(1_000));
        let balancer = match self.state {
            State::ReportedOnRealClock => self.balancer(Arc::new(Monotonic::start())),
            _ => self.balancer(manual.clone()),
        };
        balancer.apply(self.instances(count));
        match self.state {
            State::Idle | State::Keyed => {}
            State::InFlight => (0..2 * count).for_each(|_| std::mem::forget(acquire(&balancer))),
            State::Reported | State::ReportedOnRealClock => report(&balancer, &manual, count),
        }
        let normal = matches!(self.name, "least_connections, idle") == (balancer.mode() == Mode::NothingInFlight);
        assert!(normal, "{}: {:?}", self.name, balancer.mode());
        Pool {
            balancer,
            keyed: self.state == State::Keyed,
        }
    }
}

fn acquire(balancer: &LoadBalancer) -> pickd::Acquired {
    balancer.acquire(&Context::new()).expect("an instance")
}

/// Every instance answers a few times, in 1 to 20 ms, over 5 seconds.
fn report(balancer: &LoadBalancer, clock: &Manual, count: usize) {
    let reports = 4 * count;
    let held: Vec<_> = (0..reports).map(|_| acquire(balancer)).collect();
    for acquired in held {
        clock.advance(Duration::from_secs(5) / reports as u32);
        let latency = Duration::from_micros(fastrand::u64(1_000..20_000));
        acquired.finish(Outcome::Success, latency);
    }
}

/// A balancer to be asked.
pub(crate) struct Pool {
    pub(crate) balancer: LoadBalancer,
    keyed: bool,
}

impl Pool {
    /// Makes this many picks. Hashed keys are numbered from `from`, and none comes twice: a place
    /// on the ring is as good as never in a cache because the last lap has been there.
    #[inline(never)]
    pub(crate) fn make_picks(&self, from: usize, picks: usize) {
        if !self.keyed {
            return (0..picks).for_each(|_| self.pick(&Context::new()));
        }
        let mut key = *b"session-00000000";
        for number in from..from + picks {
            key[8..].copy_from_slice(&(number as u64).to_be_bytes());
            self.pick(&Context::new().with_key(&key));
        }
    }

    #[inline]
    fn pick(&self, context: &Context<'_>) {
        let pick = self.balancer.select_instance(black_box(context)).expect("an instance");
        black_box(&pick);
    }
}
