//! The file registry: services in a TOML, JSON or YAML file, read again whenever it changes.
//!
//! ```text
//!   directory ──events──► Nudges ──┐
//!                                  ├──► due ──► look (read, parse) ──► compare with what was told ──► updates
//!   every 30 s, as a net ──────────┘
//! ```
//!
//! The *directory* is watched, not the file: editors write a new file and rename it over the old one, and Kubernetes swaps the
//! `..data` link that the path leads through. A closed or renamed file is looked at once; one that is being written, or
//! is gone for the moment, when nothing has happened for a few milliseconds. What notify cannot see (NFS, a link into another
//! directory, a directory that is mounted later) is found by looking without a reason.
//!
//! The file is an operator's word: it is believed as a whole ([`Trust::Steady`]) or refused as a whole, and then the last good
//! one stays. A file without any text is taken for one that is being written.
//!
//! Does not know what the updates are for, and writes nothing.

mod format;

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{self, Instant};
use xxhash_rust::xxh3::xxh3_128;

pub use format::{FileError, SOURCE, parse};

use super::watcher::{Reading, Reason, Trust, Update, WatchError, Watcher};
use crate::balancer::{Clock, ServiceInstance, ServiceName, Source, SourceStatus, Timestamp};

/// How often the file is looked at without a reason.
const NET: Duration = Duration::from_secs(30);
/// The same while its directory cannot be watched, or the file is empty.
const NET_WHEN_BLIND: Duration = Duration::from_secs(1);
/// A file that is being written is looked at when nothing has happened for this long ...
const QUIET: Duration = Duration::from_millis(30);
/// ... but not later than this after the first event.
const QUIET_AT_MOST: Duration = Duration::from_millis(500);
/// A file that is empty for longer than this is no longer taken for one that is being written.
const EMPTY_AT_MOST: Duration = Duration::from_secs(5);
/// The largest file that is read: half a million instances.
const LARGEST: u64 = 64 << 20;

/// Watches one file.
pub struct FileWatcher {
    path: PathBuf,
    status: Arc<SourceStatus>,
    clock: Arc<dyn Clock>,
    directory: Directory,
    due: Due,
    /// The look under way: a field, so that a cancelled `next` does not abandon it.
    look: Option<(Cause, JoinHandle<Look>)>,
    /// The content in force.
    good: Option<Digest>,
    /// What was wrong when the file was last looked at.
    trouble: Option<Trouble>,
    empty_since: Option<Instant>,
    /// What has been told, the content in force.
    told: BTreeMap<ServiceName, Vec<ServiceInstance>>,
    synced: bool,
    pending: VecDeque<Update>,
}

type Digest = u128;
type Services = Vec<(ServiceName, Vec<ServiceInstance>)>;

/// Each is told once: again only when something else was seen in between.
#[derive(Debug, PartialEq)]
enum Trouble {
    Unreadable(String),
    Empty,
    Refused(Digest),
}

/// Why a look is taken.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cause {
    Nudge,
    Net,
}

/// What a look found.
#[derive(Debug)]
enum Look {
    Unreadable(io::Error),
    Empty,
    /// What is already known: the content in force, or one that was refused.
    Known(Digest),
    New {
        digest: Digest,
        read_at: Timestamp,
        services: Result<Services, FileError>,
    },
}

impl FileWatcher {
    /// Watches the file at `path`, whose extension names its format. It may be missing as yet; nothing is touched before the
    /// first `next`.
    #[must_use]
    pub fn new(path: PathBuf, status: Arc<SourceStatus>, clock: Arc<dyn Clock>) -> Self {
        Self {
            directory: Directory::of(&path),
            path,
            status,
            clock,
            due: Due {
                at: Instant::now(),
                first_nudge: None,
            },
            look: None,
            good: None,
            trouble: None,
            empty_since: None,
            told: BTreeMap::new(),
            synced: false,
            pending: VecDeque::new(),
        }
    }

    async fn until_due(&mut self) {
        loop {
            tokio::select! {
                biased;
                () = time::sleep_until(self.due.at) => return,
                nudge = self.directory.nudges.next() => {
                    if nudge == Nudge::Lost {
                        self.directory.forget();
                    }
                    self.due.nudge(nudge, Instant::now());
                }
            }
        }
    }

    fn start_look(&mut self) -> (Cause, JoinHandle<Look>) {
        let cause = if self.due.first_nudge.is_some() {
            Cause::Nudge
        } else {
            Cause::Net
        };
        // First the watch, then the look: so no change falls between them.
        let watched = self.directory.watch();
        self.due = Due {
            at: Instant::now() + if watched { NET } else { NET_WHEN_BLIND },
            first_nudge: None,
        };
        let (path, clock) = (self.path.clone(), Arc::clone(&self.clock));
        let refused = match self.trouble {
            Some(Trouble::Refused(digest)) => Some(digest),
            _ => None,
        };
        let known = [self.good, refused];
        (cause, tokio::task::spawn_blocking(move || look(&path, known, &*clock)))
    }

    /// Draws the conclusions. An error is returned when there is one to tell.
    fn take(&mut self, cause: Cause, look: Look) -> Result<(), WatchError> {
        if !matches!(look, Look::Empty) {
            self.empty_since = None;
        }
        match look {
            Look::Unreadable(error) => {
                let error = error.to_string();
                let detail = format!("{}: {error}", self.path.display());
                self.refuse(Trouble::Unreadable(error), detail)
            }
            Look::Empty => {
                let now = Instant::now();
                self.due.at = self.due.at.min(now + NET_WHEN_BLIND);
                if now.duration_since(*self.empty_since.get_or_insert(now)) < EMPTY_AT_MOST {
                    return Ok(());
                }
                let detail = format!("{}: empty, still waiting for it to be written", self.path.display());
                self.refuse(Trouble::Empty, detail)
            }
            Look::Known(digest) => {
                if self.good == Some(digest) {
                    self.accept();
                }
                Ok(())
            }
            Look::New {
                digest,
                services: Err(error),
                ..
            } => self.refuse(Trouble::Refused(digest), error.to_string()),
            Look::New {
                digest,
                read_at,
                services: Ok(services),
            } => {
                if cause == Cause::Net && self.synced {
                    // The net caught what the watch should have told: it looks at another directory by now.
                    self.directory.forget();
                    self.due.at = Instant::now();
                }
                self.good = Some(digest);
                self.accept();
                self.tell(services, read_at);
                Ok(())
            }
        }
    }

    fn accept(&mut self) {
        self.trouble = None;
        self.status.heard(self.clock.now());
    }

    fn refuse(&mut self, trouble: Trouble, detail: String) -> Result<(), WatchError> {
        if self.trouble.as_ref() == Some(&trouble) {
            return Ok(());
        }
        self.trouble = Some(trouble);
        Err(WatchError {
            reason: Reason::InvalidFile,
            detail,
        })
    }

    /// Queues what differs from what was told.
    fn tell(&mut self, services: Services, read_at: Timestamp) {
        let trust = Trust::Steady;
        let mut before = std::mem::take(&mut self.told);
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
            self.told.insert(service, instances);
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

/// A file that cannot be used is told once, as [`Reason::InvalidFile`]; the next call then waits for another version of it.
impl Watcher for FileWatcher {
    fn source(&self) -> Source {
        SOURCE
    }

    async fn next(&mut self) -> Result<Update, WatchError> {
        loop {
            if let Some(update) = self.pending.pop_front() {
                return Ok(update);
            }
            if self.look.is_none() {
                self.until_due().await;
            }
            let started = self.look.take().unwrap_or_else(|| self.start_look());
            let (cause, look) = self.look.insert(started);
            let (cause, look) = (*cause, look.await);
            self.look = None;
            match look {
                Ok(look) => self.take(cause, look)?,
                Err(error) => {
                    let detail = format!("{}: reading it broke off: {error}", self.path.display());
                    return Err(WatchError {
                        reason: Reason::InvalidFile,
                        detail,
                    });
                }
            }
        }
    }
}

/// Reads and, unless its content is known, parses. Blocks.
fn look(path: &Path, known: [Option<Digest>; 2], clock: &dyn Clock) -> Look {
    let bytes = match read(path) {
        Ok(bytes) => bytes,
        Err(error) => return Look::Unreadable(error),
    };
    let read_at = clock.now();
    if format::is_blank(&bytes) {
        return Look::Empty;
    }
    let digest = xxh3_128(&bytes);
    if known.contains(&Some(digest)) {
        return Look::Known(digest);
    }
    Look::New {
        digest,
        read_at,
        services: parse(path, &bytes),
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Opening a pipe would wait for its writer.
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(io::Error::other(format!("larger than {LARGEST} bytes")));
    }
    Ok(bytes)
}

/// When the file is looked at next.
#[derive(Debug)]
struct Due {
    at: Instant,
    /// Since when events keep coming.
    first_nudge: Option<Instant>,
}

impl Due {
    fn nudge(&mut self, nudge: Nudge, now: Instant) {
        let first = *self.first_nudge.get_or_insert(now);
        self.at = match nudge {
            Nudge::Soon => (now + QUIET).min(first + QUIET_AT_MOST),
            Nudge::Now | Nudge::Lost => now,
        };
    }
}

/// What an event means for us, the stronger ones last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Nudge {
    /// Something is happening to the file.
    Soon,
    /// A new version is complete.
    Now,
    /// The watch itself is lost.
    Lost,
}

/// Carries nudges from notify's thread. Holds the strongest one, so it takes no room however many there are.
#[derive(Debug, Default)]
struct Nudges {
    strongest: AtomicU8,
    given: Notify,
    #[cfg(test)]
    count: std::sync::atomic::AtomicUsize,
}

impl Nudges {
    fn give(&self, nudge: Nudge) {
        #[cfg(test)]
        self.count.fetch_add(1, Ordering::Relaxed);
        self.strongest.fetch_max(nudge as u8 + 1, Ordering::AcqRel);
        self.given.notify_one();
    }

    /// Cancel safe: a nudge is taken in the same step in which this returns.
    async fn next(&self) -> Nudge {
        loop {
            self.given.notified().await;
            match self.strongest.swap(0, Ordering::AcqRel) {
                // Its nudge was taken together with the one before.
                0 => {}
                1 => return Nudge::Soon,
                2 => return Nudge::Now,
                _ => return Nudge::Lost,
            }
        }
    }
}

/// The directory of the file, watched as far as it can be.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    file: PathBuf,
    nudges: Arc<Nudges>,
    watch: Option<RecommendedWatcher>,
    /// It has been said that it cannot be watched.
    told: bool,
}

impl Directory {
    fn of(file: &Path) -> Self {
        let path = match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        Self {
            path,
            file: file.to_owned(),
            nudges: Arc::default(),
            watch: None,
            told: false,
        }
    }

    /// Sees to it that the directory is watched, and returns whether it is.
    fn watch(&mut self) -> bool {
        if self.watch.is_none() {
            match self.try_watch() {
                Ok(watch) => {
                    self.watch = Some(watch);
                    self.told = false;
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.told, true) {
                        let directory = self.path.display();
                        tracing::warn!(%directory, %error, "cannot watch the directory, looking at the file every second");
                    }
                }
            }
        }
        self.watch.is_some()
    }

    fn try_watch(&self) -> notify::Result<RecommendedWatcher> {
        let (directory, file, nudges) = (self.path.clone(), self.file.clone(), Arc::clone(&self.nudges));
        let mut watch = notify::recommended_watcher(move |event| {
            if let Some(nudge) = meaning(event, &directory, &file) {
                nudges.give(nudge);
            }
        })?;
        watch.watch(&self.path, RecursiveMode::NonRecursive)?;
        Ok(watch)
    }

    fn forget(&mut self) {
        self.watch = None;
    }
}

/// What an event in the directory means for the file.
fn meaning(event: notify::Result<Event>, directory: &Path, file: &Path) -> Option<Nudge> {
    let Ok(event) = event else { return Some(Nudge::Lost) };
    if event.need_rescan() {
        return Some(Nudge::Soon);
    }
    let nudge = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Modify(ModifyKind::Name(RenameMode::To)) => Nudge::Now,
        // Reading is what we do ourselves: it must not wake us. Nor does a change of rights or times change the content.
        EventKind::Access(_) | EventKind::Modify(ModifyKind::Metadata(_)) | EventKind::Other => return None,
        EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) | EventKind::Any => Nudge::Soon,
    };
    let is_gone = matches!(
        event.kind,
        EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_))
    );
    if is_gone && event.paths.iter().any(|path| path == directory) {
        return Some(Nudge::Lost);
    }
    if event.paths.iter().any(|path| path.file_name() == file.file_name()) {
        return Some(nudge);
    }
    // A neighbour. It matters if the file is a link, which may lead through it: `services.toml -> ..data/services.toml`.
    file.is_symlink().then_some(Nudge::Soon)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use notify::event::{CreateKind, DataChange, MetadataKind, RemoveKind};
    use tempfile::TempDir;

    use super::*;
    use crate::balancer::Monotonic;

    /// However slow the machine: a wait that takes this long has failed.
    const BOUND: Duration = Duration::from_secs(10);

    /// A directory with a file in it, watched.
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

        /// A watcher that has told what is in the file.
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
            told(time::timeout(BOUND, self.watcher.next()).await.expect("no news"))
        }

        /// Lets the watcher work until something is so. It must have nothing to tell.
        async fn until(&mut self, mut so: impl FnMut(&FileWatcher) -> bool) {
            let bound = Instant::now() + BOUND;
            while !so(&self.watcher) {
                assert!(
                    Instant::now() < bound,
                    "it did not become so: {:?}",
                    self.watcher.trouble
                );
                if let Ok(outcome) = time::timeout(Duration::from_millis(5), self.watcher.next()).await {
                    panic!("told {}", told(outcome));
                }
            }
        }

        fn nudges(&self) -> usize {
            self.watcher.directory.nudges.count.load(Ordering::Relaxed)
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

    fn told(outcome: Result<Update, WatchError>) -> String {
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
    async fn everything_is_told_once_and_then_what_changes() {
        let mut bench = Bench::new();
        bench.write("web: a b; db: c; empty");
        assert_eq!(bench.next().await, "web: a b");
        assert_eq!(bench.next().await, "db: c");
        assert_eq!(bench.next().await, "empty:");
        assert_eq!(bench.next().await, "synced");
        assert!(
            bench.status.is_up() && !bench.status.is_synced(),
            "synced is said by who applied it"
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
        let mut next = async || told(time::timeout(BOUND, watcher.next()).await.expect("no news"));
        assert_eq!((next().await.as_str(), next().await.as_str()), ("web: a", "synced"));
        publish("..v2", "web: b");
        fs::remove_dir_all(root.join("..v1")).unwrap();
        assert_eq!(next().await, "web: b");
        publish("..v3", "web: c");
        assert_eq!(next().await, "web: c");
    }

    #[tokio::test]
    async fn an_empty_file_is_a_write_in_progress() {
        let mut bench = Bench::synced("web: a; db: b").await;
        fs::write(&bench.path, " \n").unwrap();
        bench.until(|watcher| watcher.empty_since.is_some()).await;
        assert!(bench.status.is_up());
        bench.write("web: a; db: c");
        assert_eq!(bench.next().await, "db: c");
        assert_eq!(bench.watcher.empty_since, None);
    }

    #[tokio::test]
    async fn a_file_that_stays_empty_is_told_after_a_while() {
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
    async fn a_bad_file_is_told_once_and_the_last_good_one_stays() {
        let mut bench = Bench::synced("web: a").await;
        fs::write(&bench.path, "[[service]]\nname = \"web\"\nweight = 3\n").unwrap();
        let error = bench.next().await;
        assert!(error.starts_with("invalid_file: "), "{error}");
        assert!(
            error.ends_with("services.toml:3:1: unknown field `weight`, expected `name` or `instance`"),
            "{error}"
        );

        // The same content again is looked at, and not told again.
        let before = bench.nudges();
        fs::write(&bench.path, "[[service]]\nname = \"web\"\nweight = 3\n").unwrap();
        bench
            .until(|watcher| watcher.directory.nudges.count.load(Ordering::Relaxed) > before)
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
            "nothing was told of the good file that equals the last one"
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
            "it is told again, for it was there in between"
        );
        bench.write("web: b");
        assert_eq!(bench.next().await, "web: b");
    }

    #[tokio::test]
    async fn a_file_that_comes_later_is_waited_for() {
        let mut bench = Bench::new();
        assert!(bench.next().await.contains("No such file"));
        bench.write("web: a");
        assert_eq!(bench.next().await, "web: a");
        assert_eq!(bench.next().await, "synced");
    }

    #[tokio::test]
    async fn a_directory_that_comes_later_is_polled_for_and_then_watched() {
        let mut bench = Bench::new();
        let directory = bench.directory.path().join("mounted");
        bench.path = directory.join("services.toml");
        (bench.status, bench.watcher) = watcher(&bench.path);
        assert!(bench.next().await.contains("No such file"));
        assert!(bench.watcher.directory.watch.is_none());
        fs::create_dir(&directory).unwrap();
        bench.write("web: a");
        assert_eq!(
            (bench.next().await.as_str(), bench.next().await.as_str()),
            ("web: a", "synced")
        );
        assert!(bench.watcher.directory.watch.is_some());

        fs::remove_dir_all(&directory).unwrap();
        assert!(bench.next().await.contains("No such file"));
        fs::create_dir(&directory).unwrap();
        bench.write("web: b");
        assert_eq!(bench.next().await, "web: b");
    }

    #[tokio::test]
    async fn a_change_that_no_event_tells_is_caught_by_the_net() {
        let mut bench = Bench::synced("web: a").await;
        let until_net = bench.watcher.due.at.duration_since(Instant::now());
        assert!(until_net > NET / 2 && until_net <= NET, "{until_net:?}");
        // Deaf from here on.
        bench.watcher.directory.nudges = Arc::default();
        bench.write("web: b");
        bench.watcher.due.at = Instant::now();
        assert_eq!(bench.next().await, "web: b");
        bench.write("web: c");
        assert_eq!(bench.next().await, "web: c", "the directory is watched anew");
    }

    #[tokio::test]
    async fn reading_the_file_wakes_nobody() {
        let mut bench = Bench::synced("web: a").await;
        let before = bench.nudges();
        for _ in 0..200 {
            fs::read(&bench.path).unwrap();
            fs::read_dir(bench.directory.path()).unwrap().count();
            fs::write(bench.directory.path().join("neighbour"), "x").unwrap();
        }
        // Events come in order: once this change is told, all that came before it has been heard.
        let new = bench.directory.path().join("new");
        fs::write(&new, toml("web: b")).unwrap();
        fs::rename(&new, &bench.path).unwrap();
        assert_eq!(bench.next().await, "web: b");
        assert!(bench.nudges() - before <= 2, "{} nudges", bench.nudges() - before);
    }

    #[test]
    fn only_what_can_change_the_content_is_acted_on() {
        let (directory, file) = (Path::new("/d"), Path::new("/d/services.toml"));
        let of = |kind, path: &str| meaning(Ok(Event::new(kind).add_path(path.into())), directory, file);
        let own = |kind| of(kind, "/d/services.toml");
        use EventKind::{Access, Create, Modify, Remove};
        assert_eq!(own(Access(AccessKind::Close(AccessMode::Write))), Some(Nudge::Now));
        assert_eq!(own(Modify(ModifyKind::Name(RenameMode::To))), Some(Nudge::Now));
        for kind in [
            Create(CreateKind::File),
            Modify(ModifyKind::Data(DataChange::Any)),
            Modify(ModifyKind::Name(RenameMode::From)),
            Modify(ModifyKind::Name(RenameMode::Both)),
            Modify(ModifyKind::Any),
            Remove(RemoveKind::File),
            EventKind::Any,
        ] {
            assert_eq!(own(kind), Some(Nudge::Soon), "{kind:?}");
            assert_eq!(of(kind, "/d/neighbour"), None, "{kind:?}");
        }
        for kind in [
            Access(AccessKind::Open(AccessMode::Any)),
            Access(AccessKind::Read),
            Access(AccessKind::Close(AccessMode::Read)),
            Modify(ModifyKind::Metadata(MetadataKind::Any)),
            EventKind::Other,
        ] {
            assert_eq!(own(kind), None, "{kind:?}");
        }
        assert_eq!(of(Remove(RemoveKind::Folder), "/d"), Some(Nudge::Lost));
        assert_eq!(
            meaning(Err(notify::Error::generic("overrun")), directory, file),
            Some(Nudge::Lost)
        );
    }

    #[test]
    fn a_long_write_is_looked_at_in_the_end() {
        let start = Instant::now();
        let mut due = Due {
            at: start + NET,
            first_nudge: None,
        };
        for step in 0..100 {
            let now = start + step * Duration::from_millis(10);
            due.nudge(Nudge::Soon, now);
            assert!(due.at <= start + QUIET_AT_MOST);
            assert!(due.at >= (now + QUIET).min(start + QUIET_AT_MOST));
        }
        due.nudge(Nudge::Now, start);
        assert_eq!(due.at, start);
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
                outcome = bench.watcher.next() => heard.push(told(outcome)),
                () = tokio::task::yield_now() => {}
            }
        }
        assert_eq!(heard, ["web: a", "db: b", "synced"]);
    }

    #[tokio::test]
    async fn after_many_mistakes_the_fix_is_still_seen_at_once() {
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
            // Renamed into place, so that each version is seen whole.
            fs::write(path.with_extension("new"), format!("mistake = {mistake}")).unwrap();
            fs::rename(path.with_extension("new"), &path).unwrap();
            let told = || {
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
            while !(told() && seen()) {
                assert!(
                    Instant::now() < bound,
                    "mistake {mistake} was not told: {:?}",
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
        assert_eq!((told(Ok(update)).as_str(), status.is_up()), ("web: a", true));
        stop.cancel();
        time::timeout(BOUND, task).await.expect("it did not stop").unwrap();
    }

    #[tokio::test]
    async fn what_is_no_regular_file_is_an_error() {
        let mut bench = Bench::new();
        fs::create_dir(&bench.path).unwrap();
        assert!(bench.next().await.contains("services.toml: not a regular file"));
    }
}
