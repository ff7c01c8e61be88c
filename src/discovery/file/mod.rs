//! The file registry: services in a TOML, JSON or YAML file, read again whenever it changes.
//!
//! ```text
//! directories ──events──► Signals ──┐
//!                                   ├──► due ──► read, parse ──► compare with what was sent
//! every 30 s, in any case ──────────┘                                   └──► updates
//! ```
//!
//! *Directories* are watched, not the file: editors write a new file and rename it over the old
//! one, and deployments swap a link that is part of the path. Every directory on the way to the
//! file in which a change can lead to another file is watched. A file that was closed or renamed is
//! read at once. A file that is open for writing is left alone until it is closed. Some changes
//! trigger no event (NFS, a directory that is mounted later). The periodic read finds those, and
//! counts a content only if a second read a second later finds the same.
//!
//! A file is written by an operator, so a file is accepted as a whole ([`Trust::Steady`]) or
//! refused as a whole. If it is refused, the last valid version stays in force. A file without any
//! text counts as one that is being written.
//!
//! Does not know what the updates are for, and writes nothing. `mod` imports `format`, which
//! parses, and `watch`, which follows the path.

mod format;
mod targets;
mod watch;

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{self, Instant};
use xxhash_rust::xxh3::xxh3_128;

pub use format::{FileError, SOURCE, parse};

use self::watch::{CLOSE_IS_TOLD, PathWatch, Signal, Signals};
use super::watcher::{Reading, Reason, Trust, Update, WatchError, Watcher};
use crate::balancer::{Clock, ServiceInstance, ServiceName, Source, SourceStatus, Timestamp};

/// How often the file is read without an event.
const POLL_EVERY: Duration = Duration::from_secs(30);
/// The same while its directory cannot be watched, or the file is empty.
const POLL_EVERY_UNWATCHED: Duration = Duration::from_secs(1);
/// A path that is being changed is followed when there was no event for this long ...
const DEBOUNCE: Duration = Duration::from_millis(30);
/// ... or this long after the first event.
const DEBOUNCE_AT_MOST: Duration = Duration::from_millis(500);
/// A file that is open for writing is read when it was not written for this long.
const OPEN_AT_MOST: Duration = Duration::from_secs(60);
/// A content that no event announced counts if a second read after this long finds the same.
const CONFIRM_AFTER: Duration = Duration::from_secs(1);
/// A file that is empty for longer than this no longer counts as one that is being written.
const EMPTY_AT_MOST: Duration = Duration::from_secs(5);
/// The largest file that is read: half a million instances.
const LARGEST_FILE: u64 = 64 << 20;

/// Watches one file.
pub struct FileWatcher {
    path: PathBuf,
    default_service: Option<ServiceName>,
    status: Arc<SourceStatus>,
    clock: Arc<dyn Clock>,
    signals: Arc<Signals>,
    /// `None` while a read is in progress, which has it.
    watch: Option<PathWatch>,
    due: Due,
    /// The read in progress: a field, so that a cancelled `next` does not lose it.
    reading: Option<(Trigger, Read)>,
    /// The content in force.
    accepted: Option<Digest>,
    /// A content that one read found and no event announced.
    unconfirmed: Option<Digest>,
    /// Why the file could not be used when it was read last.
    problem: Option<Problem>,
    empty_since: Option<Instant>,
    /// What was sent, which is the content in force.
    sent: BTreeMap<ServiceName, Vec<ServiceInstance>>,
    synced: bool,
    pending: VecDeque<Update>,
}

type Digest = u128;
/// Gives the watch back, and says whether it tells of every change.
type Read = JoinHandle<(PathWatch, bool, FileRead)>;
type Services = Vec<(ServiceName, Vec<ServiceInstance>)>;

/// Why a file cannot be used. Each problem is reported once, and again only after another one or a
/// valid file.
#[derive(Debug, PartialEq)]
enum Problem {
    Unreadable(String),
    Empty,
    Refused(Digest),
}

/// Why the file is read.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Trigger {
    /// The system told that the file is another, and complete.
    Complete,
    /// Any other event, or none.
    Poll,
}

/// The result of reading the file.
#[derive(Debug)]
enum FileRead {
    Unreadable(io::Error),
    Empty,
    /// A known content: the one in force, or one that was refused.
    Known(Digest),
    New {
        digest: Digest,
        read_at: Timestamp,
        services: Result<Services, FileError>,
    },
}

impl FileWatcher {
    /// Watches the file at `path`, whose extension names its format. The file may not exist yet.
    /// Nothing is read before the first `next`.
    #[must_use]
    pub fn new(path: PathBuf, status: Arc<SourceStatus>, clock: Arc<dyn Clock>) -> Self {
        let signals = Arc::new(Signals::default());
        Self {
            watch: Some(PathWatch::new(&path, Arc::clone(&signals))),
            signals,
            path,
            default_service: None,
            status,
            clock,
            due: Due::at(Instant::now()),
            reading: None,
            accepted: None,
            unconfirmed: None,
            problem: None,
            empty_since: None,
            sent: BTreeMap::new(),
            synced: false,
            pending: VecDeque::new(),
        }
    }

    /// Sets the service of targets without the label `job`.
    #[must_use]
    pub fn with_default_service(mut self, service: Option<ServiceName>) -> Self {
        self.default_service = service;
        self
    }

    async fn until_due(&mut self) {
        loop {
            tokio::select! {
                biased;
                () = time::sleep_until(self.due.at) => return,
                signal = self.signals.next() => {
                    if signal == Signal::Lost {
                        self.place_anew();
                    }
                    self.due.signal(signal, Instant::now());
                }
            }
        }
    }

    fn place_anew(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.forget();
        }
    }

    fn start_read(&mut self) -> (Trigger, Read) {
        let trigger = if CLOSE_IS_TOLD && self.due.first_event.is_some() && !self.due.is_open {
            Trigger::Complete
        } else {
            Trigger::Poll
        };
        self.due = Due::at(Instant::now() + POLL_EVERY);
        let (path, default_service) = (self.path.clone(), self.default_service.clone());
        let clock = Arc::clone(&self.clock);
        let refused = match self.problem {
            Some(Problem::Refused(digest)) => Some(digest),
            _ => None,
        };
        let known = [self.accepted, refused];
        let new = || PathWatch::new(&self.path, Arc::clone(&self.signals));
        let mut watch = self.watch.take().unwrap_or_else(new);
        let read = tokio::task::spawn_blocking(move || {
            // First the watch, then the read, so that no change falls between them.
            let is_watched = watch.place();
            let found = read_file(&path, default_service.as_ref(), known, &*clock);
            (watch, is_watched, found)
        });
        (trigger, read)
    }

    /// Handles what was read. Returns an error if there is a new problem to report.
    fn take(&mut self, trigger: Trigger, found: FileRead) -> Result<(), WatchError> {
        if !matches!(found, FileRead::Empty) {
            self.empty_since = None;
        }
        match found {
            FileRead::Unreadable(error) => {
                let error = error.to_string();
                let detail = format!("{}: {error}", self.path.display());
                self.refuse(Problem::Unreadable(error), detail)
            }
            FileRead::Empty => {
                let now = Instant::now();
                self.due.at = self.due.at.min(now + POLL_EVERY_UNWATCHED);
                if now.duration_since(*self.empty_since.get_or_insert(now)) < EMPTY_AT_MOST {
                    return Ok(());
                }
                let detail = format!("{}: empty, still waiting for it to be written", self.path.display());
                self.refuse(Problem::Empty, detail)
            }
            FileRead::Known(digest) => {
                self.unconfirmed = None;
                if self.accepted == Some(digest) {
                    self.accept();
                }
                Ok(())
            }
            // A write began during the read. The file is read again when it ends.
            FileRead::New { .. } if self.synced && self.signals.is_writing() => Ok(()),
            FileRead::New { digest, .. }
                if self.synced && trigger == Trigger::Poll && self.unconfirmed != Some(digest) =>
            {
                // The watch may be on another directory by now.
                self.place_anew();
                self.unconfirmed = Some(digest);
                self.due.at = self.due.at.min(Instant::now() + CONFIRM_AFTER);
                Ok(())
            }
            FileRead::New {
                digest,
                read_at,
                services,
            } => {
                self.unconfirmed = None;
                match services {
                    Err(error) => self.refuse(Problem::Refused(digest), error.to_string()),
                    Ok(services) => {
                        self.accepted = Some(digest);
                        self.accept();
                        self.send(services, read_at);
                        Ok(())
                    }
                }
            }
        }
    }

    fn accept(&mut self) {
        self.problem = None;
        self.status.heard(self.clock.now());
    }

    fn refuse(&mut self, problem: Problem, detail: String) -> Result<(), WatchError> {
        if self.problem.as_ref() == Some(&problem) {
            return Ok(());
        }
        self.problem = Some(problem);
        Err(WatchError {
            reason: Reason::InvalidFile,
            detail,
        })
    }

    /// Queues what differs from what was sent.
    fn send(&mut self, services: Services, read_at: Timestamp) {
        let trust = Trust::Steady;
        let mut before = std::mem::take(&mut self.sent);
        for (service, instances) in services {
            if before.remove(&service).as_ref() != Some(&instances) {
                let reading = Reading {
                    service: service.clone(),
                    instances: instances.clone(),
                    read_at,
                    trust,
                };
                self.pending.push_back(Update::Service(reading));
            }
            self.sent.insert(service, instances);
        }
        self.pending.extend(before.into_keys().map(|service| Update::Gone {
            service,
            read_at,
            trust,
        }));
        if !self.synced {
            self.synced = true;
            self.pending.push_back(Update::Synced);
        }
    }
}

/// A file that cannot be used is reported once, as [`Reason::InvalidFile`]. The next call waits
/// for another version of it.
impl Watcher for FileWatcher {
    fn source(&self) -> Source {
        SOURCE
    }

    async fn next(&mut self) -> Result<Update, WatchError> {
        loop {
            if let Some(update) = self.pending.pop_front() {
                return Ok(update);
            }
            if self.reading.is_none() {
                self.until_due().await;
            }
            let started = self.reading.take().unwrap_or_else(|| self.start_read());
            let (trigger, reading) = self.reading.insert(started);
            let (trigger, reading) = (*trigger, reading.await);
            self.reading = None;
            match reading {
                Ok((watch, is_watched, found)) => {
                    self.watch = Some(watch);
                    if !is_watched {
                        self.due.at = self.due.at.min(Instant::now() + POLL_EVERY_UNWATCHED);
                    }
                    self.take(trigger, found)?;
                }
                Err(error) => {
                    let detail = format!("{}: the task that reads it failed: {error}", self.path.display());
                    return Err(WatchError {
                        reason: Reason::InvalidFile,
                        detail,
                    });
                }
            }
        }
    }
}

/// Reads the file, and parses it unless its content is known. Blocks.
fn read_file(
    path: &Path,
    default_service: Option<&ServiceName>,
    known: [Option<Digest>; 2],
    clock: &dyn Clock,
) -> FileRead {
    let bytes = match read(path) {
        Ok(bytes) => bytes,
        Err(error) => return FileRead::Unreadable(error),
    };
    let read_at = clock.now();
    if format::is_blank(&bytes) {
        return FileRead::Empty;
    }
    let digest = xxh3_128(&bytes);
    if known.contains(&Some(digest)) {
        return FileRead::Known(digest);
    }
    FileRead::New {
        digest,
        read_at,
        services: parse(path, &bytes, default_service),
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Opening a pipe would wait for its writer.
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(LARGEST_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(io::Error::other(format!("larger than {LARGEST_FILE} bytes")));
    }
    Ok(bytes)
}

/// When the file is read next.
#[derive(Debug)]
struct Due {
    at: Instant,
    /// The time of the first event since the last read.
    first_event: Option<Instant>,
    /// Whether the last event says that the file is open for writing.
    is_open: bool,
}

impl Due {
    fn at(at: Instant) -> Self {
        Self {
            at,
            first_event: None,
            is_open: false,
        }
    }

    fn signal(&mut self, signal: Signal, now: Instant) {
        let first = *self.first_event.get_or_insert(now);
        self.is_open = signal == Signal::Writing;
        self.at = match signal {
            Signal::Writing => now + OPEN_AT_MOST,
            Signal::Changed => (now + DEBOUNCE).min(first + DEBOUNCE_AT_MOST),
            Signal::Complete | Signal::Lost => now,
        };
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use std::io::Write as _;
    use std::sync::atomic::Ordering;

    use tempfile::TempDir;

    use super::*;
    use crate::balancer::Monotonic;

    /// A wait of this length has failed, however slow the machine is.
    const BOUND: Duration = Duration::from_secs(10);

    /// A watched directory with a file in it.
    struct Bench {
        directory: TempDir,
        path: PathBuf,
        status: Arc<SourceStatus>,
        watcher: FileWatcher,
    }

    fn watcher(path: &Path) -> (Arc<SourceStatus>, FileWatcher) {
        let status = Arc::new(SourceStatus::new(SOURCE, true, Box::new(|_| true)));
        let watcher = FileWatcher::new(path.to_owned(), Arc::clone(&status), Arc::new(Monotonic::start()));
        (status, watcher)
    }

    impl Bench {
        fn new() -> Self {
            let directory = TempDir::new().unwrap();
            let path = directory.path().join("services.toml");
            let (status, watcher) = watcher(&path);
            Self {
                directory,
                path,
                status,
                watcher,
            }
        }

        /// A watcher that has sent the content of the file.
        async fn synced(content: &str) -> Self {
            let mut bench = Self::new();
            bench.write(content);
            while bench.next().await != "synced" {}
            bench
        }

        fn write(&self, content: &str) {
            fs::write(&self.path, toml(content)).unwrap();
        }

        async fn next(&mut self) -> String {
            describe(time::timeout(BOUND, self.watcher.next()).await.expect("no news"))
        }

        /// Runs the watcher until the condition holds. There must be no update meanwhile.
        async fn until(&mut self, mut so: impl FnMut(&FileWatcher) -> bool) {
            let bound = Instant::now() + BOUND;
            while !so(&self.watcher) {
                assert!(
                    Instant::now() < bound,
                    "it did not become so: {:?}",
                    self.watcher.problem
                );
                if let Ok(outcome) = time::timeout(Duration::from_millis(5), self.watcher.next()).await {
                    panic!("unexpected: {}", describe(outcome));
                }
            }
        }

        fn is_watched(&self) -> bool {
            self.watcher.watch.as_ref().is_some_and(PathWatch::is_placed_on_a_file)
        }

        /// No event comes before the next read.
        fn lose_events(&mut self) {
            self.watcher.watch = None;
            self.watcher.signals = Arc::default();
        }

        fn signals(&self) -> usize {
            self.watcher.signals.count.load(Ordering::Relaxed)
        }
    }

    /// `web: a b; db: c` as a file.
    fn toml(content: &str) -> String {
        let mut text = String::from("# services\n");
        for service in content.split("; ").filter(|service| !service.is_empty()) {
            let (name, hosts) = service.split_once(':').unwrap_or((service, ""));
            text += &format!("[[service]]\nname = \"{name}\"\n");
            for host in hosts.split_whitespace() {
                text += &format!("[[service.instance]]\nhost = \"{host}\"\nport = 80\n");
            }
        }
        text
    }

    fn describe(outcome: Result<Update, WatchError>) -> String {
        match outcome {
            Ok(Update::Service(reading)) => {
                assert_eq!(reading.trust, Trust::Steady);
                let hosts = reading.instances.iter().map(|instance| format!(" {}", instance.host()));
                format!("{}:{}", reading.service, hosts.collect::<String>())
            }
            Ok(Update::Gone { service, trust, .. }) => {
                assert_eq!(trust, Trust::Steady);
                format!("gone {service}")
            }
            Ok(Update::Synced) => "synced".to_owned(),
            Err(error) => {
                assert_eq!(error.reason, Reason::InvalidFile);
                error.to_string()
            }
        }
    }

    #[tokio::test]
    async fn everything_is_sent_once_and_then_each_change() {
        let mut bench = Bench::new();
        bench.write("web: a b; db: c; empty");
        assert_eq!(bench.next().await, "web: a b");
        assert_eq!(bench.next().await, "db: c");
        assert_eq!(bench.next().await, "empty:");
        assert_eq!(bench.next().await, "synced");
        assert!(
            bench.status.is_up() && !bench.status.is_synced(),
            "the agent marks the source as synced"
        );

        bench.write("web: a b; db: d");
        assert_eq!(bench.next().await, "db: d");
        assert_eq!(bench.next().await, "gone empty");
    }

    #[tokio::test]
    async fn a_file_that_is_renamed_over_the_old_one_is_seen() {
        let mut bench = Bench::synced("web: a").await;
        for host in ["b", "c", "d"] {
            let new = bench.directory.path().join("services.toml.new");
            fs::write(&new, toml(&format!("web: {host}"))).unwrap();
            fs::rename(&new, &bench.path).unwrap();
            assert_eq!(bench.next().await, format!("web: {host}"));
        }
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_mounted_config_map_is_followed_through_its_links() {
        use std::os::unix::fs::symlink;

        let bench = Bench::new();
        let root = bench.directory.path();
        let publish = |version: &str, content: &str| {
            fs::create_dir(root.join(version)).unwrap();
            fs::write(root.join(version).join("services.toml"), toml(content)).unwrap();
            symlink(version, root.join("..data_tmp")).unwrap();
            fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
        };
        publish("..v1", "web: a");
        symlink("..data/services.toml", &bench.path).unwrap();
        let (_status, mut watcher) = watcher(&bench.path);
        let mut next = async || describe(time::timeout(BOUND, watcher.next()).await.expect("no news"));
        assert_eq!((next().await.as_str(), next().await.as_str()), ("web: a", "synced"));
        publish("..v2", "web: b");
        fs::remove_dir_all(root.join("..v1")).unwrap();
        assert_eq!(next().await, "web: b");
        publish("..v3", "web: c");
        assert_eq!(next().await, "web: c");
    }

    #[tokio::test]
    async fn an_empty_file_counts_as_a_write_in_progress() {
        let mut bench = Bench::synced("web: a; db: b").await;
        fs::write(&bench.path, " \n").unwrap();
        bench.until(|watcher| watcher.empty_since.is_some()).await;
        assert!(bench.status.is_up());
        bench.write("web: a; db: c");
        assert_eq!(bench.next().await, "db: c");
        assert_eq!(bench.watcher.empty_since, None);
    }

    #[tokio::test]
    async fn a_file_that_stays_empty_is_reported_after_a_while() {
        let mut bench = Bench::synced("web: a").await;
        fs::write(&bench.path, "").unwrap();
        bench.until(|watcher| watcher.empty_since.is_some()).await;
        let long_ago = bench.watcher.empty_since.unwrap() - EMPTY_AT_MOST;
        bench.watcher.empty_since = Some(long_ago);
        bench.watcher.due.at = Instant::now();
        let error = bench.next().await;
        assert!(
            error.ends_with("services.toml: empty, still waiting for it to be written"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn an_invalid_file_is_reported_once_and_the_last_valid_one_stays() {
        let mut bench = Bench::synced("web: a").await;
        fs::write(&bench.path, "[[service]]\nname = \"web\"\nweight = 3\n").unwrap();
        let error = bench.next().await;
        assert!(error.starts_with("invalid_file: "), "{error}");
        assert!(
            error.ends_with("services.toml:3:1: unknown field `weight`, expected `name` or `instance`"),
            "{error}"
        );

        // The same content again is read, and not reported again.
        let before = bench.signals();
        fs::write(&bench.path, "[[service]]\nname = \"web\"\nweight = 3\n").unwrap();
        bench
            .until(|watcher| watcher.signals.count.load(Ordering::Relaxed) > before)
            .await;
        fs::write(&bench.path, "[[service]]\n").unwrap();
        assert!(bench.next().await.contains("services.toml:1:1: missing field `name`"));

        bench.status.lost(Timestamp::default(), &"as the supervisor does");
        bench.write("web: a");
        let status = Arc::clone(&bench.status);
        bench.until(|_| status.is_up()).await;
        bench.write("web: b");
        assert_eq!(
            bench.next().await,
            "web: b",
            "a valid file that equals the last one leads to no update"
        );
    }

    #[tokio::test]
    async fn a_file_that_is_deleted_changes_nothing_until_it_is_there_again() {
        let mut bench = Bench::synced("web: a").await;
        fs::remove_file(&bench.path).unwrap();
        let error = bench.next().await;
        assert!(error.contains("services.toml: No such file"), "{error}");
        bench.status.lost(Timestamp::default(), &error);
        bench.write("web: a");
        let status = Arc::clone(&bench.status);
        bench.until(|_| status.is_up()).await;
        fs::remove_file(&bench.path).unwrap();
        assert!(
            bench.next().await.contains("No such file"),
            "reported again, because the file was valid in between"
        );
        bench.write("web: b");
        assert_eq!(bench.next().await, "web: b");
    }

    #[tokio::test]
    async fn a_file_that_is_created_later_is_waited_for() {
        let mut bench = Bench::new();
        assert!(bench.next().await.contains("No such file"));
        bench.write("web: a");
        assert_eq!(bench.next().await, "web: a");
        assert_eq!(bench.next().await, "synced");
    }

    #[tokio::test]
    async fn a_directory_that_is_created_later_is_polled_then_watched() {
        let mut bench = Bench::new();
        let directory = bench.directory.path().join("mounted");
        bench.path = directory.join("services.toml");
        (bench.status, bench.watcher) = watcher(&bench.path);
        assert!(bench.next().await.contains("No such file"));
        assert!(!bench.is_watched());
        fs::create_dir(&directory).unwrap();
        bench.write("web: a");
        assert_eq!(
            (bench.next().await.as_str(), bench.next().await.as_str()),
            ("web: a", "synced")
        );
        assert!(bench.is_watched());

        fs::remove_dir_all(&directory).unwrap();
        assert!(bench.next().await.contains("No such file"));
        fs::create_dir(&directory).unwrap();
        bench.write("web: b");
        assert_eq!(bench.next().await, "web: b");
    }

    #[tokio::test]
    async fn a_change_without_an_event_is_found_by_the_periodic_read() {
        let mut bench = Bench::synced("web: a").await;
        let until_net = bench.watcher.due.at.duration_since(Instant::now());
        assert!(until_net > POLL_EVERY / 2 && until_net <= POLL_EVERY, "{until_net:?}");
        bench.lose_events();
        bench.write("web: b");
        bench.watcher.due.at = Instant::now();
        assert_eq!(bench.next().await, "web: b");
        bench.write("web: c");
        assert_eq!(bench.next().await, "web: c", "the directory is watched again");
    }

    #[tokio::test]
    async fn reading_the_file_causes_no_signal() {
        let mut bench = Bench::synced("web: a").await;
        let before = bench.signals();
        for _ in 0..200 {
            fs::read(&bench.path).unwrap();
            fs::read_dir(bench.directory.path()).unwrap().count();
            fs::write(bench.directory.path().join("neighbour"), "x").unwrap();
        }
        // Events come in order: once this change was sent, all earlier events were handled.
        let new = bench.directory.path().join("new");
        fs::write(&new, toml("web: b")).unwrap();
        fs::rename(&new, &bench.path).unwrap();
        assert_eq!(bench.next().await, "web: b");
        assert!(bench.signals() - before <= 2, "{} signals", bench.signals() - before);
    }

    #[test]
    fn events_without_end_do_not_put_off_the_read() {
        let start = Instant::now();
        let mut due = Due::at(start + POLL_EVERY);
        for step in 0..100 {
            let now = start + step * Duration::from_millis(10);
            due.signal(Signal::Changed, now);
            assert!(due.at <= start + DEBOUNCE_AT_MOST);
            assert!(due.at >= (now + DEBOUNCE).min(start + DEBOUNCE_AT_MOST));
        }
        due.signal(Signal::Complete, start);
        assert_eq!(due.at, start);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_file_that_is_open_for_writing_is_left_alone_until_it_is_closed() {
        let mut bench = Bench::synced("web: a; db: b").await;
        let (half, rest) = (toml("web: a"), toml("db: c").replace("# services\n", ""));
        let mut open = File::create(&bench.path).unwrap();
        for text in [half.as_str(), rest.as_str()] {
            open.write_all(text.as_bytes()).unwrap();
            let written = bench.signals();
            bench
                .until(|watcher| watcher.due.is_open && watcher.signals.count.load(Ordering::Relaxed) >= written)
                .await;
            assert!(bench.watcher.due.at > Instant::now() + OPEN_AT_MOST / 2);
        }
        drop(open);
        assert_eq!(bench.next().await, "db: c", "the half without db was never in force");
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_file_that_stays_open_counts_when_it_no_longer_changes() {
        let mut bench = Bench::synced("web: a").await;
        let mut open = File::create(&bench.path).unwrap();
        open.write_all(toml("web: b").as_bytes()).unwrap();
        bench.until(|watcher| watcher.due.is_open).await;
        bench.watcher.due.at = Instant::now();
        bench.until(|watcher| watcher.unconfirmed.is_some()).await;
        assert_eq!(bench.next().await, "web: b");
        drop(open);
    }

    #[tokio::test]
    async fn half_a_file_that_no_event_announced_is_read_twice() {
        let mut bench = Bench::synced("web: a; db: b").await;
        bench.lose_events();
        bench.write("web: a");
        bench.watcher.due.at = Instant::now();
        bench.until(|watcher| watcher.unconfirmed.is_some()).await;
        bench.lose_events();
        bench.write("web: a; db: c");
        assert_eq!(bench.next().await, "db: c");
        assert_eq!(bench.watcher.unconfirmed, None);
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_file_behind_links_is_seen_at_once_wherever_the_change_is() {
        use std::os::unix::fs::symlink;

        let mut bench = Bench::new();
        let root = bench.directory.path().to_owned();
        for (release, host) in [("1", "a"), ("2", "d")] {
            let shared = root.join("releases").join(release);
            fs::create_dir_all(&shared).unwrap();
            fs::write(shared.join("real.toml"), toml(&format!("web: {host}"))).unwrap();
        }
        fs::create_dir(root.join("etc")).unwrap();
        symlink("releases/1", root.join("current")).unwrap();
        symlink("../current/real.toml", root.join("etc/services.toml")).unwrap();
        bench.path = root.join("etc/services.toml");
        (bench.status, bench.watcher) = watcher(&bench.path);
        assert_eq!(
            (bench.next().await.as_str(), bench.next().await.as_str()),
            ("web: a", "synced")
        );
        // Far away, so that only an event can lead to a read.
        let put_off = |bench: &mut Bench| bench.watcher.due.at = Instant::now() + POLL_EVERY * 10;

        put_off(&mut bench);
        fs::write(root.join("releases/1/real.toml"), toml("web: b")).unwrap();
        assert_eq!(bench.next().await, "web: b", "written in place, in the other directory");

        put_off(&mut bench);
        fs::write(root.join("releases/1/new"), toml("web: c")).unwrap();
        fs::rename(root.join("releases/1/new"), root.join("releases/1/real.toml")).unwrap();
        assert_eq!(bench.next().await, "web: c", "renamed over, in the other directory");

        put_off(&mut bench);
        symlink("releases/2", root.join("next")).unwrap();
        fs::rename(root.join("next"), root.join("current")).unwrap();
        assert_eq!(bench.next().await, "web: d", "a directory on the way is another");

        put_off(&mut bench);
        fs::remove_file(root.join("current")).unwrap();
        assert!(bench.next().await.contains("No such file"));
        put_off(&mut bench);
        symlink("releases/1", root.join("current")).unwrap();
        assert_eq!(
            bench.next().await,
            "web: c",
            "the link is there again, to another directory"
        );

        put_off(&mut bench);
        fs::write(root.join("elsewhere.toml"), toml("web: e")).unwrap();
        symlink(root.join("elsewhere.toml"), root.join("etc/new")).unwrap();
        fs::rename(root.join("etc/new"), &bench.path).unwrap();
        assert_eq!(bench.next().await, "web: e", "the last link leads elsewhere");
    }

    #[tokio::test]
    async fn a_cancelled_next_loses_nothing() {
        let mut bench = Bench::new();
        bench.write("web: a; db: b");
        let mut heard = Vec::new();
        let bound = Instant::now() + BOUND;
        while heard.len() < 3 && Instant::now() < bound {
            // Polled once, and dropped.
            tokio::select! {
                biased;
                outcome = bench.watcher.next() => heard.push(describe(outcome)),
                () = tokio::task::yield_now() => {}
            }
        }
        assert_eq!(heard, ["web: a", "db: b", "synced"]);
    }

    #[tokio::test]
    async fn after_many_mistakes_a_correct_file_is_still_read_at_once() {
        let Bench {
            directory: _directory,
            path,
            status,
            watcher,
        } = Bench::new();
        let (out, mut updates) = tokio::sync::mpsc::channel(8);
        let stop = tokio_util::sync::CancellationToken::new();
        let clock = Arc::new(Monotonic::start());
        let task = tokio::spawn(crate::discovery::supervise::supervise(
            watcher,
            Arc::clone(&status),
            clock,
            out,
            stop.clone(),
        ));
        let bound = Instant::now() + BOUND;
        for mistake in 1..=10 {
            // Renamed into place, so that each version is read whole.
            fs::write(path.with_extension("new"), format!("mistake = {mistake}")).unwrap();
            fs::rename(path.with_extension("new"), &path).unwrap();
            let reported = || {
                status
                    .last_error()
                    .is_some_and(|error| error.contains("unknown field `mistake`"))
            };
            let seen = || {
                status
                    .errors()
                    .get("invalid_file")
                    .is_some_and(|count| *count >= mistake)
            };
            while !(reported() && seen()) {
                assert!(
                    Instant::now() < bound,
                    "mistake {mistake} was not reported: {:?}",
                    status.last_error()
                );
                time::sleep(Duration::from_millis(2)).await;
            }
            assert!(!status.is_up());
        }
        fs::write(&path, toml("web: a")).unwrap();
        let (_, update) = time::timeout(BOUND, updates.recv())
            .await
            .expect("the fix was not seen")
            .unwrap();
        assert_eq!((describe(Ok(update)).as_str(), status.is_up()), ("web: a", true));
        stop.cancel();
        time::timeout(BOUND, task).await.expect("it did not stop").unwrap();
    }

    #[tokio::test]
    async fn a_path_that_is_not_a_regular_file_is_an_error() {
        let mut bench = Bench::new();
        fs::create_dir(&bench.path).unwrap();
        assert!(bench.next().await.contains("services.toml: not a regular file"));
    }
}
