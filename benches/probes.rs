//! What active checks cost the agent: 1,000 instances checked over HTTP once a second.
//!
//!     cargo bench --bench probes              ten seconds; ends with 1 above 15 % of one processor
//!     cargo bench --bench probes -- 500 20    500 instances, 20 seconds
//!
//! The instances are ports of one other process, so that only the checks count: user and system
//! time of this process, as the kernel has it, over the wall clock. Every check is counted and must
//! pass.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a benchmark that fails has nothing better to do, and prints what it measured"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pickd::balancer::{Address, Check, DeniedNetworks, Monotonic};
use pickd::probe::{HealthCheck, HttpCheck, OnChecked, Plan, ProbeSettings, Prober};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Of one processor.
const BUDGET: f64 = 0.15;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let numbers: Vec<u64> = arguments.iter().filter_map(|word| word.parse().ok()).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    if arguments.first().is_some_and(|word| word == "backends") {
        runtime.block_on(backends(numbers.first().copied().unwrap_or(1)));
        return ExitCode::SUCCESS;
    }
    let instances = numbers.first().copied().unwrap_or(1_000);
    let seconds = numbers.get(1).copied().unwrap_or(10);
    runtime.block_on(measure(instances, Duration::from_secs(seconds)))
}

async fn measure(instances: u64, span: Duration) -> ExitCode {
    let backends = Backends::start(instances);
    let (passed, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let counters = (Arc::clone(&passed), Arc::clone(&failed));
    let count: OnChecked = Arc::new(move |checked| {
        let counter = if checked.check == Check::Pass {
            &counters.0
        } else {
            &counters.1
        };
        counter.fetch_add(1, Ordering::Relaxed);
    });
    let settings = ProbeSettings {
        max_rate: 10_000,
        ..ProbeSettings::default()
    };
    let prober = Prober::new(settings, Arc::new(Monotonic::start()), count);
    let plan = Plan {
        check: Arc::new(HealthCheck::Http(HttpCheck::new("/healthz").expect("a path"))),
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        denied: DeniedNetworks::default(),
    };
    let service = "web".parse().expect("a name");
    prober
        .handle()
        .set(&service, Some(&plan), backends.addresses.iter().cloned());
    let stop = CancellationToken::new();
    let task = tokio::spawn(prober.run(stop.clone()));
    // Connections are open, and the checks are spread.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (started, cpu, before) = (Instant::now(), cpu_time(), passed.load(Ordering::Relaxed));
    tokio::time::sleep(span).await;
    let elapsed = started.elapsed().as_secs_f64();
    let share = (cpu_time() - cpu).as_secs_f64() / elapsed;
    let rate = (passed.load(Ordering::Relaxed) - before) as f64 / elapsed;
    stop.cancel();
    drop(task.await);
    let failures = failed.load(Ordering::Relaxed);
    println!("{instances} instances, checked over HTTP every second");
    println!("checks per second           {rate:9.0}");
    println!("failed                      {failures:9}");
    println!("microseconds per check      {:9.1}", share / rate.max(1.0) * 1e6);
    println!(
        "share of one processor      {:8.1} %   at most {:.0} %",
        share * 100.0,
        BUDGET * 100.0
    );
    let all_checked = rate >= instances as f64 * 0.95 && failures == 0;
    ExitCode::from(u8::from(share > BUDGET || !all_checked))
}

/// User and system time of this process so far.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc/self/stat");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // 14 and 15 of proc(5), in hundredths of a second; two stand before the parenthesis.
    let ticks = [11, 12].map(|index| fields[index].parse::<u64>().expect("ticks"));
    Duration::from_millis((ticks[0] + ticks[1]) * 10)
}

/// The other process.
struct Backends {
    child: Child,
    addresses: Vec<Address>,
}

impl Backends {
    fn start(count: u64) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["backends", &count.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("backends");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let addresses = lines
            .take(count as usize)
            .map(|line| line.expect("a line").parse().expect("an address"));
        let addresses = addresses.collect();
        Self { child, addresses }
    }
}

impl Drop for Backends {
    fn drop(&mut self) {
        // Its input ends, and so does it.
        drop(self.child.stdin.take());
        drop(self.child.wait());
    }
}

/// Serves on so many ports until its input ends.
async fn backends(count: u64) {
    let mut addresses = String::new();
    for _ in 0..count {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        addresses.push_str(&format!("{}\n", listener.local_addr().expect("an address")));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut request = [0; 1_024];
                    while let Ok(1..) = stream.read(&mut request).await {
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                        if stream.write_all(answer).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
    }
    std::io::stdout()
        .write_all(addresses.as_bytes())
        .expect("a listener answers");
    let end = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    drop(end.await);
}
