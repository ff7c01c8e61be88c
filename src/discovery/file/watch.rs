//! Follows the path of a file, and signals what happens on it.
//!
//! ```text
//! /etc/pickd/services.toml ─► ..data/services.toml ─► ..v7/services.toml
//!            ▲                  ▲                            ▲
//!            └──────────────────┴── names that are watched ──┘
//! ```
//!
//! A path leads to another file when the last name or a link on the way changes. So the watch
//! covers each of these names, in the directory that has it. The names are looked up again at each
//! read. Everything here blocks, but [`Signals::next`].

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

/// Whether the system tells when a file that was open for writing is closed.
pub(super) const CLOSE_IS_TOLD: bool = cfg!(any(target_os = "linux", target_os = "android"));
/// As many links as Linux follows in one path.
const MOST_LINKS: usize = 40;

/// What an event means for the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Signal {
    /// The path may lead to another file.
    Changed = 1,
    /// The file is open for writing, and was written.
    Writing = 2,
    /// A new version is complete.
    Complete = 3,
    /// The watch does not work any more.
    Lost = 4,
}

/// Carries signals from notify's thread. Holds only the last signal, so the size is constant.
#[derive(Debug, Default)]
pub(super) struct Signals {
    last: AtomicU8,
    given: Notify,
    #[cfg(test)]
    pub(super) count: std::sync::atomic::AtomicUsize,
}

impl Signals {
    fn give(&self, signal: Signal) {
        #[cfg(test)]
        self.count.fetch_add(1, Ordering::Relaxed);
        // A watch that was lost stays lost, whatever its last events are.
        let kept = |last| (last != Signal::Lost as u8).then_some(signal as u8);
        let _ = self.last.fetch_update(Ordering::AcqRel, Ordering::Acquire, kept);
        self.given.notify_one();
    }

    /// Cancel safe: a signal is taken in the same step in which this returns.
    pub(super) async fn next(&self) -> Signal {
        loop {
            self.given.notified().await;
            match self.last.swap(0, Ordering::AcqRel) {
                // This signal was taken together with an earlier one.
                0 => {}
                1 => return Signal::Changed,
                2 => return Signal::Writing,
                3 => return Signal::Complete,
                _ => return Signal::Lost,
            }
        }
    }

    /// Whether the last signal, which was not taken yet, says that the file is open for writing.
    pub(super) fn is_writing(&self) -> bool {
        self.last.load(Ordering::Acquire) == Signal::Writing as u8
    }
}

/// The names on the way to the file, watched if possible.
#[derive(Debug)]
pub(super) struct PathWatch {
    file: PathBuf,
    signals: Arc<Signals>,
    placed: Option<(Arc<Route>, RecommendedWatcher)>,
    /// Whether a failure to watch was logged.
    failure_logged: bool,
}

impl PathWatch {
    pub(super) fn new(file: &Path, signals: Arc<Signals>) -> Self {
        Self {
            file: file.to_owned(),
            signals,
            placed: None,
            failure_logged: false,
        }
    }

    /// Watches the path as it leads now. Returns whether every change of it will be signalled.
    pub(super) fn place(&mut self) -> bool {
        // A link that changes while the watch is placed may be missed once, not for ever.
        for _ in 0..3 {
            let route = Route::of(&self.file);
            if self.placed.as_ref().is_some_and(|(placed, _)| **placed == route) {
                return route.reaches_a_file;
            }
            self.placed = None;
            let route = Arc::new(route);
            match self.try_place(&route) {
                Ok(watcher) => {
                    self.placed = Some((route, watcher));
                    self.failure_logged = false;
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.failure_logged, true) {
                        let file = self.file.display();
                        tracing::warn!(%file, %error, "cannot watch the path of the file, reading it every second");
                    }
                    return false;
                }
            }
        }
        false
    }

    fn try_place(&self, route: &Arc<Route>) -> notify::Result<RecommendedWatcher> {
        let (handled, signals) = (Arc::clone(route), Arc::clone(&self.signals));
        let mut watcher = notify::recommended_watcher(move |event| {
            if let Some(signal) = handled.signal_of(event) {
                signals.give(signal);
            }
        })?;
        for directory in route.directories() {
            watcher.watch(directory, RecursiveMode::NonRecursive)?;
        }
        Ok(watcher)
    }

    /// Places the watch anew with the next `place`.
    pub(super) fn forget(&mut self) {
        self.placed = None;
    }

    #[cfg(test)]
    pub(super) fn is_placed_on_a_file(&self) -> bool {
        self.placed.as_ref().is_some_and(|(route, _)| route.reaches_a_file)
    }
}

/// How a path leads to a file at one time.
#[derive(Debug, PartialEq, Eq)]
struct Route {
    /// The links on the way, and the last name. Each path but its last part is free of links.
    names: BTreeSet<PathBuf>,
    /// Whether the path leads to something that is there.
    reaches_a_file: bool,
}

impl Route {
    fn of(file: &Path) -> Self {
        let absolute = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
        let mut names = BTreeSet::new();
        let mut rest: VecDeque<OsString> = parts(&absolute).collect();
        let (mut at, mut links) = (PathBuf::new(), 0);
        while let Some(part) = rest.pop_front() {
            match Path::new(&part).components().next() {
                Some(Component::ParentDir) => {
                    at.pop();
                    continue;
                }
                Some(Component::Normal(_)) => {}
                // Begins anew at the root.
                _ => {
                    at.push(part);
                    continue;
                }
            }
            let step = at.join(&part);
            let target = match step.symlink_metadata() {
                Ok(found) if found.is_symlink() => step.read_link(),
                Ok(_) if rest.is_empty() => {
                    names.insert(step);
                    return Self {
                        names,
                        reaches_a_file: true,
                    };
                }
                Ok(_) => {
                    at = step;
                    continue;
                }
                Err(error) => Err(error),
            };
            names.insert(step);
            links += 1;
            match target {
                Ok(target) if links <= MOST_LINKS => parts(&target).rev().for_each(|part| rest.push_front(part)),
                _ => break,
            }
        }
        Self {
            names,
            reaches_a_file: false,
        }
    }

    fn directories(&self) -> BTreeSet<&Path> {
        self.names.iter().filter_map(|name| name.parent()).collect()
    }

    /// What an event in a watched directory means for the file.
    fn signal_of(&self, event: notify::Result<Event>) -> Option<Signal> {
        let Ok(event) = event else { return Some(Signal::Lost) };
        if event.need_rescan() {
            return Some(Signal::Changed);
        }
        let is_own = |path: &PathBuf| self.names.contains(path);
        let signal = match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Modify(ModifyKind::Name(RenameMode::To)) => Signal::Complete,
            EventKind::Modify(ModifyKind::Name(RenameMode::Both)) if event.paths.last().is_some_and(is_own) => {
                Signal::Complete
            }
            EventKind::Modify(ModifyKind::Data(_)) if CLOSE_IS_TOLD => Signal::Writing,
            // pickd itself reads the file, and that must not lead to another read. A change of
            // permissions or times does not change the content.
            EventKind::Access(_) | EventKind::Modify(ModifyKind::Metadata(_)) | EventKind::Other => return None,
            EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) | EventKind::Any => Signal::Changed,
        };
        let is_gone = matches!(
            event.kind,
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_))
        );
        if is_gone
            && event
                .paths
                .iter()
                .any(|path| self.directories().contains(path.as_path()))
        {
            return Some(Signal::Lost);
        }
        event.paths.iter().any(is_own).then_some(signal)
    }
}

/// The parts of a path, as names that a loop can take one by one.
fn parts(path: &Path) -> impl DoubleEndedIterator<Item = OsString> + '_ {
    path.components()
        .filter(|part| *part != Component::CurDir)
        .map(|part| part.as_os_str().to_owned())
}

#[cfg(test)]
mod tests {
    use notify::event::{CreateKind, DataChange, MetadataKind, RemoveKind};

    use super::*;

    #[test]
    fn only_what_can_change_the_content_is_acted_on() {
        let route = Route {
            names: [PathBuf::from("/d/services.toml"), PathBuf::from("/e/link")].into(),
            reaches_a_file: true,
        };
        let of = |kind, path: &str| route.signal_of(Ok(Event::new(kind).add_path(path.into())));
        use EventKind::{Access, Create, Modify, Remove};
        let writing = if CLOSE_IS_TOLD {
            Signal::Writing
        } else {
            Signal::Changed
        };
        for (kind, signal) in [
            (Access(AccessKind::Close(AccessMode::Write)), Signal::Complete),
            (Modify(ModifyKind::Name(RenameMode::To)), Signal::Complete),
            (Modify(ModifyKind::Name(RenameMode::Both)), Signal::Complete),
            (Modify(ModifyKind::Data(DataChange::Any)), writing),
            (Create(CreateKind::File), Signal::Changed),
            (Modify(ModifyKind::Name(RenameMode::From)), Signal::Changed),
            (Modify(ModifyKind::Any), Signal::Changed),
            (Remove(RemoveKind::File), Signal::Changed),
            (EventKind::Any, Signal::Changed),
        ] {
            for name in ["/d/services.toml", "/e/link"] {
                assert_eq!(of(kind, name), Some(signal), "{kind:?}");
            }
            for name in ["/d/neighbour", "/e/services.toml", "/services.toml"] {
                assert_eq!(of(kind, name), None, "{kind:?}");
            }
        }
        for kind in [
            Access(AccessKind::Open(AccessMode::Any)),
            Access(AccessKind::Read),
            Access(AccessKind::Close(AccessMode::Read)),
            Modify(ModifyKind::Metadata(MetadataKind::Any)),
            EventKind::Other,
        ] {
            assert_eq!(of(kind, "/d/services.toml"), None, "{kind:?}");
        }
        assert_eq!(of(Remove(RemoveKind::Folder), "/d"), Some(Signal::Lost));
        assert_eq!(of(Modify(ModifyKind::Name(RenameMode::From)), "/e"), Some(Signal::Lost));
        let moved_away = Event::new(Modify(ModifyKind::Name(RenameMode::Both)))
            .add_path("/d/services.toml".into())
            .add_path("/d/old".into());
        assert_eq!(route.signal_of(Ok(moved_away)), Some(Signal::Changed));
        assert_eq!(
            route.signal_of(Err(notify::Error::generic("overrun"))),
            Some(Signal::Lost)
        );
    }

    #[test]
    fn the_last_signal_counts_and_a_loss_stays() {
        let signals = Signals::default();
        for (given, writing) in [
            (Signal::Writing, true),
            (Signal::Complete, false),
            (Signal::Writing, true),
            (Signal::Lost, false),
            (Signal::Writing, false),
        ] {
            signals.give(given);
            assert_eq!(signals.is_writing(), writing, "{given:?}");
        }
        assert_eq!(signals.last.load(Ordering::Relaxed), Signal::Lost as u8);
    }

    #[cfg(unix)]
    #[test]
    fn a_route_has_the_links_and_the_last_name() {
        use std::fs;
        use std::os::unix::fs::symlink;

        let directory = tempfile::TempDir::new().unwrap();
        let root = directory.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("releases/1")).unwrap();
        symlink("releases/1", root.join("current")).unwrap();
        symlink(root.join("current/../2/./real.toml"), root.join("services.toml")).unwrap();
        let names = |of: &[&str]| of.iter().map(|name| root.join(name)).collect::<BTreeSet<_>>();

        let route = Route::of(&root.join("services.toml"));
        assert!(!route.reaches_a_file);
        assert_eq!(route.names, names(&["services.toml", "current", "releases/2"]));
        let watched: BTreeSet<_> = [root.clone(), root.join("releases")].into();
        assert_eq!(route.directories(), watched.iter().map(PathBuf::as_path).collect());

        fs::create_dir(root.join("releases/2")).unwrap();
        fs::write(root.join("releases/2/real.toml"), "").unwrap();
        let route = Route::of(&root.join("services.toml"));
        assert!(route.reaches_a_file);
        assert_eq!(
            route.names,
            names(&["services.toml", "current", "releases/2/real.toml"])
        );

        symlink("loop-b", root.join("loop-a")).unwrap();
        symlink("loop-a", root.join("loop-b")).unwrap();
        let route = Route::of(&root.join("loop-a"));
        assert!(!route.reaches_a_file);
        assert_eq!(route.names, names(&["loop-a", "loop-b"]));
    }
}
