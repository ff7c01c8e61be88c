//! Picks at a fixed rate, independent of the answers. Each pick is compared with the registrations.
//!
//! The load is open loop: pick number i is due at start + i / rate, and its time counts from then,
//! so an agent that stalls is charged for every pick that was due meanwhile. A pick is *lost* if
//! its answer is not a 200 within a second, or if its address is not registered.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::http::{Connection, Response};
use super::until;

/// Bound for an answer, from the time at which the pick was due.
const DEADLINE: Duration = Duration::from_secs(1);
/// Connections that share the rate, so that a lost connection does not delay all picks.
const CONNECTIONS: u32 = 4;

/// The registered addresses, and the times at which removed addresses were removed.
#[derive(Clone, Default)]
pub(crate) struct Oracle {
    addresses: Arc<Mutex<HashMap<String, Option<Instant>>>>,
    grace: Duration,
}

impl Oracle {
    /// Addresses may be picked for `grace` after their removal.
    pub(crate) fn new(grace: Duration, addresses: impl IntoIterator<Item = String>) -> Self {
        let addresses = addresses.into_iter().map(|address| (address, None)).collect();
        Self {
            addresses: Arc::new(Mutex::new(addresses)),
            grace,
        }
    }

    /// Call this before the address is registered.
    pub(crate) fn add(&self, address: &str) {
        self.addresses.lock().unwrap().insert(address.to_owned(), None);
    }

    /// Call this once the address is no longer registered.
    pub(crate) fn remove(&self, address: &str) {
        self.addresses
            .lock()
            .unwrap()
            .insert(address.to_owned(), Some(Instant::now()));
    }

    fn allows(&self, address: &str, sent: Instant) -> bool {
        match self.addresses.lock().unwrap().get(address) {
            Some(Some(until)) => sent < *until + self.grace,
            Some(None) => true,
            None => false,
        }
    }
}

/// The result of a load.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) picks: u64,
    pub(crate) lost: u64,
    /// The first few losses, to explain a failure.
    pub(crate) losses: Vec<String>,
    pub(crate) by_address: BTreeMap<String, u64>,
    /// Answers that carried `stale_seconds`.
    pub(crate) stale: u64,
    pub(crate) reconnects: u64,
    pub(crate) slowest: Duration,
}

impl Tally {
    /// Prints the counts. Fails the test if there were fewer picks, or if a pick was lost.
    pub(crate) fn check(&self, what: &str, least: u64) {
        eprintln!(
            "{what}: {} picks, {} lost, slowest {:.1} ms, {} with stale_seconds, {} reconnects",
            self.picks,
            self.lost,
            self.slowest.as_secs_f64() * 1_000.0,
            self.stale,
            self.reconnects
        );
        assert!(self.picks >= least, "{what}: only {} picks", self.picks);
        assert_eq!(self.lost, 0, "{what}: {:#?}", self.losses);
    }

    fn lose(&mut self, why: String) {
        self.lost += 1;
        if self.losses.len() < 10 {
            self.losses.push(why);
        }
    }

    fn add(&mut self, other: Self) {
        self.picks += other.picks;
        self.lost += other.lost;
        self.losses.extend(other.losses);
        self.stale += other.stale;
        self.reconnects += other.reconnects;
        self.slowest = self.slowest.max(other.slowest);
        for (address, picks) in other.by_address {
            *self.by_address.entry(address).or_default() += picks;
        }
    }
}

/// A load that picks until it is stopped.
pub(crate) struct Picker {
    stop: Arc<AtomicBool>,
    picks: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Tally>>,
}

impl Picker {
    /// Starts to request `target` (`/pick/...`, answered as JSON) at a rate per second.
    pub(crate) fn start(agent: SocketAddr, target: &str, rate: u32, oracle: &Oracle) -> Self {
        let (stop, picks) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let start = Instant::now();
        let threads = (0..CONNECTIONS).map(|number| {
            let mut worker = Worker {
                agent,
                target: target.to_owned(),
                oracle: oracle.clone(),
                connection: None,
                tally: Tally::default(),
            };
            let (stop, picks) = (Arc::clone(&stop), Arc::clone(&picks));
            std::thread::spawn(move || {
                let mut due = start + Duration::from_secs(1) * number / rate;
                while !stop.load(Ordering::Relaxed) {
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    worker.pick(due);
                    picks.fetch_add(1, Ordering::Relaxed);
                    due += Duration::from_secs(1) * CONNECTIONS / rate;
                }
                worker.tally
            })
        });
        Self {
            threads: threads.collect(),
            stop,
            picks,
        }
    }

    /// Picks so far.
    pub(crate) fn picks(&self) -> u64 {
        self.picks.load(Ordering::Relaxed)
    }

    /// Continues until there are this many picks, then stops and checks the counts.
    pub(crate) fn check(self, what: &str, least: u64) {
        let bound = Duration::from_secs(45);
        until(bound, &format!("{what}: {least} picks"), || {
            (self.picks() >= least).then_some(())
        });
        self.stop().check(what, least);
    }

    pub(crate) fn stop(mut self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let mut tally = Tally::default();
        for thread in self.threads.drain(..) {
            tally.add(thread.join().unwrap());
        }
        tally
    }
}

impl Drop for Picker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

struct Worker {
    agent: SocketAddr,
    target: String,
    oracle: Oracle,
    connection: Option<Connection>,
    tally: Tally,
}

impl Worker {
    fn pick(&mut self, due: Instant) {
        let sent = Instant::now();
        let answer = self.ask(due);
        let took = due.elapsed();
        self.tally.picks += 1;
        self.tally.slowest = self.tally.slowest.max(took);
        match answer {
            Err(error) => {
                self.connection = None;
                self.tally.lose(format!("{error} after {took:?}"));
            }
            Ok(_) if took > DEADLINE => self.tally.lose(format!("answered after {took:?}")),
            Ok(answer) if answer.status != 200 => {
                self.tally.lose(format!("{}: {}", answer.status, answer.text()));
            }
            Ok(answer) => self.judge(&answer, sent),
        }
    }

    fn judge(&mut self, answer: &Response, sent: Instant) {
        let answer = answer.json();
        let address = answer["address"].as_str().unwrap_or_default();
        if !self.oracle.allows(address, sent) {
            self.tally.lose(format!("{address} is not registered"));
        }
        if answer.get("stale_seconds").is_some() {
            self.tally.stale += 1;
        }
        *self.tally.by_address.entry(address.to_owned()).or_default() += 1;
    }

    fn ask(&mut self, due: Instant) -> io::Result<Response> {
        let left = || (due + DEADLINE).saturating_duration_since(Instant::now());
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => {
                self.tally.reconnects += u64::from(self.tally.picks > 0);
                none.insert(Connection::open(self.agent)?)
            }
        };
        connection.set_timeout(left().max(Duration::from_millis(1)))?;
        connection.ask("GET", &self.target, &[])
    }
}
