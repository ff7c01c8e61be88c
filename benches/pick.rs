//! What one pick costs: each strategy at 3 to 10,000 instances, beside its target. See
//! docs/benchmarks.md.
//!
//! ```text
//! cargo bench --bench pick [-- --json]
//! ```
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a benchmark is a program of its own"
)]

mod cases;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use pickd::balancer::{Monotonic, RegistryStatus};
use pickd::{LoadBalancingStrategy, ServiceInstance, Weight};

use cases::{Case, Pool, SIZES};

/// Picks in one round: long enough for the clock, short enough to find a quiet moment on a busy
/// machine.
const PICKS: usize = 4_000;
const ROUNDS: usize = 300;
const PICKS_OF_TWO_THREADS: usize = 20_000;
const ROUNDS_OF_TWO_THREADS: usize = 40;
const REBUILDS: usize = 40;

fn main() {
    let json = std::env::args().any(|argument| argument == "--json");
    let machine = Machine::this();
    let out: &mut dyn Out = if json {
        &mut Json::default()
    } else {
        &mut Text::default()
    };
    out.start(&machine);
    for case in Case::ALL {
        for count in SIZES {
            out.pick(&Picks::of(case, count));
        }
    }
    for rebuild in rebuilds() {
        out.rebuild(&rebuild);
    }
    out.memory(&memory());
    out.end();
}

/// Where the figures come from.
struct Machine {
    cpu: String,
    cores: usize,
    rustc: String,
    load: String,
}

impl Machine {
    fn this() -> Self {
        let first_line = |text: String| text.lines().next().unwrap_or("unknown").to_owned();
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name"));
        let rustc = Command::new("rustc").arg("--version").output();
        Self {
            cpu: cpu
                .map_or("unknown", |name| name.trim_start_matches([':', ' ', '\t']))
                .to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            rustc: first_line(
                rustc
                    .map(|out| String::from_utf8_lossy(&out.stdout).into_owned())
                    .unwrap_or_default(),
            ),
            load: first_line(read("/proc/loadavg"))
                .split(' ')
                .take(3)
                .collect::<Vec<_>>()
                .join(" "),
        }
    }
}

/// The least and the middle one of many rounds.
#[derive(Clone, Copy)]
struct Rounds {
    minimum: f64,
    median: f64,
}

impl Rounds {
    fn of(mut rounds: Vec<f64>) -> Self {
        rounds.sort_by(f64::total_cmp);
        Self {
            minimum: rounds[0],
            median: rounds[rounds.len() / 2],
        }
    }
}

/// The picks of one strategy at one size.
struct Picks {
    case: Case,
    count: usize,
    /// Nanoseconds per pick.
    one_thread: Rounds,
    /// Nanoseconds per pick and thread.
    two_threads: Rounds,
    target: Option<f64>,
    /// In 1,000 picks.
    allocations: u64,
}

impl Picks {
    fn of(case: Case, count: usize) -> Self {
        let pool = case.pool(count);
        pool.make_picks(0, PICKS);
        let allocations = allocation_counter::measure(|| pool.make_picks(0, 1_000)).count_total;
        Self {
            case,
            count,
            one_thread: Rounds::of((0..ROUNDS).map(|round| time(&pool, round)).collect()),
            two_threads: two_threads(&pool),
            target: target(case, count),
            allocations,
        }
    }
}

fn time(pool: &Pool, round: usize) -> f64 {
    let start = Instant::now();
    pool.make_picks(round * PICKS, PICKS);
    start.elapsed().as_secs_f64() * 1e9 / PICKS as f64
}

fn two_threads(pool: &Pool) -> Rounds {
    let arrived = AtomicUsize::new(0);
    let rounds = |thread: usize| {
        let round = |round: usize| {
            // Spinning, not sleeping: a thread that has to be woken starts when the other one is
            // done.
            arrived.fetch_add(1, Ordering::AcqRel);
            while arrived.load(Ordering::Acquire) < 2 * (round + 1) {
                std::hint::spin_loop();
            }
            let start = Instant::now();
            pool.make_picks((2 * round + thread) * PICKS_OF_TWO_THREADS, PICKS_OF_TWO_THREADS);
            (start, Instant::now())
        };
        (0..ROUNDS_OF_TWO_THREADS).map(round).collect::<Vec<_>>()
    };
    let (mine, other) = std::thread::scope(|scope| {
        let other = scope.spawn(|| rounds(1));
        (rounds(0), other.join().expect("the other thread's rounds"))
    });
    // From the first start to the last end: a thread that ran alone for want of a core makes a
    // round long, never short.
    let round = |(mine, other): (&(Instant, Instant), &(Instant, Instant))| {
        let took = mine.1.max(other.1) - mine.0.min(other.0);
        took.as_secs_f64() * 1e9 / PICKS_OF_TWO_THREADS as f64
    };
    Rounds::of(mine.iter().zip(&other).map(round).collect())
}

/// Nanoseconds that a pick may take; none where it is measured for information.
fn target(case: Case, count: usize) -> Option<f64> {
    use LoadBalancingStrategy::*;
    if case.name.ends_with(", clock") {
        return None;
    }
    Some(match (case.strategy, count) {
        (RoundRobin | Random, ..=1_000) => 15.0,
        (RoundRobin | Random, _) => 20.0,
        (WeightedRoundRobin, ..=1_000) => 20.0,
        (WeightedRoundRobin, _) => 30.0,
        (ConsistentHash, ..=1_000) => 50.0,
        (ConsistentHash, _) => 30.0,
        (LeastConnections | LeastResponseTime, ..=10) => 60.0,
        (LeastConnections | LeastResponseTime, ..=1_000) => 120.0,
        (LeastConnections | LeastResponseTime, _) => 220.0,
        _ => return None,
    })
}

fn verdict(figure: f64, target: Option<f64>) -> &'static str {
    match target {
        None => "",
        Some(target) if figure <= target => "met",
        Some(_) => "missed",
    }
}

/// One way in which a pool of 10,000 changes.
struct Rebuild {
    name: &'static str,
    change: &'static str,
    milliseconds: Rounds,
    target: Option<f64>,
}

const LARGE: usize = 10_000;

fn rebuilds() -> Vec<Rebuild> {
    let weight = |instance: ServiceInstance, round: i64| {
        instance.with_weight(Weight::new(1 + round % 4).expect("a weight in range"))
    };
    let status = |instance: ServiceInstance, round: i64| match round % 2 {
        0 => instance.with_status(RegistryStatus::Critical),
        _ => instance,
    };
    let other =
        |instance: ServiceInstance, round: i64| instance.with_id(format!("new-{round}").parse().expect("a valid id"));
    let target = Some(5.0);
    let mut all = Vec::new();
    for case in Case::ALL {
        match case.strategy {
            _ if case.name.ends_with(", idle") || case.name.ends_with(", clock") => {}
            LoadBalancingStrategy::ConsistentHash => {
                all.push(rebuild(case, "one status", target, Reading::Kept, status));
                all.push(rebuild(case, "one weight", None, Reading::Kept, weight));
                all.push(rebuild(case, "one id", None, Reading::Kept, other));
            }
            _ => all.push(rebuild(case, "one weight", target, Reading::Kept, weight)),
        }
    }
    let freeing = "one weight, and freeing the reading before";
    all.push(rebuild(Case::ALL[0], freeing, None, Reading::Freed, weight));
    all
}

/// What becomes of the instances as they were read the time before, 10,000 times half a dozen
/// allocations: the last owner pays for the drop, after the new view is published.
#[derive(Clone, Copy, PartialEq)]
enum Reading {
    Kept,
    Freed,
}

/// Every instance is read again, as from a registry, and one of them has changed.
fn rebuild(
    case: Case,
    change: &'static str,
    target: Option<f64>,
    before: Reading,
    changed: impl Fn(ServiceInstance, i64) -> ServiceInstance,
) -> Rebuild {
    let balancer = case.balancer(Arc::new(Monotonic::start()));
    let mut read_before = case.instances(LARGE);
    balancer.apply(read_before.iter().cloned());
    let mut round = |round| {
        let mut all = case.instances(LARGE);
        all[LARGE / 2] = Arc::new(changed(case.instance(LARGE / 2, LARGE), round));
        // A caller that merges registries keeps the lists that it received.
        let told = all.clone();
        if before == Reading::Freed {
            read_before.clear();
        }
        let start = Instant::now();
        let changes = balancer.apply(all);
        let took = start.elapsed();
        read_before = told;
        assert!(round == 0 || !changes.is_empty(), "{change} is a change");
        took.as_secs_f64() * 1e3
    };
    // The first one may find nothing changed.
    round(0);
    let rounds = (1..=REBUILDS as i64).map(round);
    Rebuild {
        name: case.name,
        change,
        milliseconds: Rounds::of(rounds.collect()),
        target,
    }
}

/// Bytes per instance of a pool of 10,000, all told.
fn memory() -> Vec<(LoadBalancingStrategy, f64)> {
    let plain = Case::ALL.into_iter().filter(|case| !case.name.contains(','));
    let bytes = |case: Case| {
        let mut pool = None;
        let info = allocation_counter::measure(|| {
            let balancer = case.balancer(Arc::new(Monotonic::start()));
            balancer.apply(case.instances(LARGE));
            pool = Some(balancer);
        });
        drop(pool);
        (case.strategy, info.bytes_current as f64 / LARGE as f64)
    };
    plain.map(bytes).collect()
}

/// How the figures are written.
trait Out {
    fn start(&mut self, machine: &Machine);
    fn pick(&mut self, picks: &Picks);
    fn rebuild(&mut self, rebuild: &Rebuild);
    fn memory(&mut self, bytes: &[(LoadBalancingStrategy, f64)]);
    fn end(&mut self);
}

#[derive(Default)]
struct Text {
    rebuilding: bool,
}

impl Out for Text {
    fn start(&mut self, machine: &Machine) {
        let Machine {
            cpu,
            cores,
            rustc,
            load,
        } = machine;
        println!("{cpu}, {cores} cores; {rustc}; load average {load} at the start\n");
        println!("ns per pick: the least (and the middle one) of {ROUNDS} rounds of {PICKS} picks on one thread;");
        println!("two threads: per pick and thread; allocations in 1,000 picks\n");
        println!(
            "{:<28} {:>6} {:>8} {:>9}  {:<13} {:>10}  allocations",
            "strategy", "n", "ns", "(median)", "target", "2 threads"
        );
    }

    fn pick(&mut self, picks: &Picks) {
        let Rounds { minimum, median } = picks.one_thread;
        println!(
            "{:<28} {:>6} {minimum:>8.1} {:>9}  {:<6} {:<6} {:>10.1}  {:>11}",
            picks.case.name,
            picks.count,
            format!("({median:.1})"),
            picks.target.map(|target| format!("<= {target}")).unwrap_or_default(),
            verdict(minimum, picks.target),
            picks.two_threads.minimum,
            picks.allocations,
        );
    }

    fn rebuild(&mut self, rebuild: &Rebuild) {
        if !std::mem::replace(&mut self.rebuilding, true) {
            println!(
                "\nms to rebuild {LARGE} instances, all read again and one changed: the least (the middle one) of {REBUILDS}\n"
            );
            println!(
                "{:<28} {:<42} {:>6} {:>9}  target",
                "strategy", "change", "ms", "(median)"
            );
        }
        let Rounds { minimum, median } = rebuild.milliseconds;
        println!(
            "{:<28} {:<42} {minimum:>6.2} {:>9}  {:<6} {}",
            rebuild.name,
            rebuild.change,
            format!("({median:.2})"),
            rebuild.target.map(|target| format!("<= {target}")).unwrap_or_default(),
            verdict(minimum, rebuild.target),
        );
    }

    fn memory(&mut self, bytes: &[(LoadBalancingStrategy, f64)]) {
        println!("\nmemory at {LARGE} instances with a tag and a metadata entry, no bodies: bytes per instance\n");
        for (strategy, bytes) in bytes {
            println!("{:<28} {bytes:>6.0}", strategy.as_str());
        }
    }

    fn end(&mut self) {}
}

/// One object. Names hold nothing that needs escaping, but for what the system says of itself.
#[derive(Default)]
struct Json {
    picks: Vec<String>,
    rebuilds: Vec<String>,
    memory: Vec<String>,
    machine: String,
}

impl Out for Json {
    fn start(&mut self, machine: &Machine) {
        let Machine {
            cpu,
            cores,
            rustc,
            load,
        } = machine;
        self.machine = format!(r#"{{"cpu":{cpu:?},"cores":{cores},"rustc":{rustc:?},"load":{load:?}}}"#);
    }

    fn pick(&mut self, picks: &Picks) {
        let Rounds { minimum, median } = picks.one_thread;
        self.picks.push(format!(
            r#"{{"case":"{}","instances":{},"ns":{minimum:.2},"ns_median":{median:.2},"ns_two_threads":{:.2},"target_ns":{},"allocations":{}}}"#,
            picks.case.name,
            picks.count,
            picks.two_threads.minimum,
            or_null(picks.target),
            picks.allocations,
        ));
    }

    fn rebuild(&mut self, rebuild: &Rebuild) {
        let Rounds { minimum, median } = rebuild.milliseconds;
        self.rebuilds.push(format!(
            r#"{{"case":"{}","change":"{}","ms":{minimum:.3},"ms_median":{median:.3},"target_ms":{}}}"#,
            rebuild.name,
            rebuild.change,
            or_null(rebuild.target),
        ));
    }

    fn memory(&mut self, bytes: &[(LoadBalancingStrategy, f64)]) {
        let entry = |(strategy, bytes): &(LoadBalancingStrategy, f64)| format!(r#""{strategy}":{bytes:.0}"#);
        self.memory = bytes.iter().map(entry).collect();
    }

    fn end(&mut self) {
        println!(
            "{{\"machine\":{},\n\"picks\":[\n{}],\n\"rebuilds\":[\n{}],\n\"bytes_per_instance\":{{{}}}}}",
            self.machine,
            self.picks.join(",\n"),
            self.rebuilds.join(",\n"),
            self.memory.join(","),
        );
    }
}

fn or_null(target: Option<f64>) -> String {
    target.map_or("null".to_owned(), |target| target.to_string())
}
