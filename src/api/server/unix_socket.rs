//! A Unix socket in the file system: bound without replacing what is not ours, and removed when it is no longer served.
//!
//! It is bound under a name that nobody knows, given its group and mode, and only then linked to its path. So it is never to be
//! seen there with the mode that the umask left (setting the umask would need unsafe code, and would be the whole process's),
//! and the link refuses to replace what came in between. A socket file that nobody answers on is what a process that was killed
//! leaves behind: it is removed first. Anything else in that place is refused, symbolic links above all.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::time;

/// Who does not take a connection for so long has a full queue, which is somebody, too.
const ANSWER: Duration = Duration::from_secs(1);
const GROUPS: &str = "/etc/group";

/// Who may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketAccess {
    /// Permission bits, 0..=0o777.
    pub mode: u32,
    /// A group's name or number in place of the process's own.
    pub group: Option<String>,
}

impl Default for SocketAccess {
    /// The user and the group of the process.
    fn default() -> Self {
        Self {
            mode: 0o660,
            group: None,
        }
    }
}

/// The file of a bound socket. Removed when dropped, unless somebody else has put something in its place.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: Identity,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            // Whoever comes next finds a socket that nobody answers on, and removes it.
            drop(std::fs::remove_file(&self.path));
        }
    }
}

/// Device, inode and when it was made: a number is given to another file once its own is gone.
type Identity = (u64, u64, i64, i64);

fn identity(path: &Path) -> io::Result<Identity> {
    std::fs::symlink_metadata(path).map(|found| identity_of(&found))
}

fn identity_of(found: &Metadata) -> Identity {
    (found.dev(), found.ino(), found.mtime(), found.mtime_nsec())
}

pub(super) async fn bind(path: &Path, access: &SocketAccess) -> io::Result<(UnixListener, SocketFile)> {
    let folder = path.parent().filter(|folder| folder.is_dir());
    let folder = folder.ok_or_else(|| refused(io::ErrorKind::NotFound, "the folder of the socket does not exist"))?;
    make_way(path).await?;
    let hidden = Hidden(folder.join(format!(".pickd-{:06x}", fastrand::u32(..1 << 24))));
    let listener = UnixListener::bind(&hidden.0)?;
    set_access(&hidden.0, access)?;
    let identity = identity(&hidden.0)?;
    std::fs::hard_link(&hidden.0, path).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => refused(io::ErrorKind::AddrInUse, "somebody else has just bound it"),
        _ => error,
    })?;
    let path = path.to_owned();
    Ok((listener, SocketFile { path, identity }))
}

/// The name under which a socket is bound first.
struct Hidden(PathBuf);

impl Drop for Hidden {
    fn drop(&mut self) {
        // What is left of it if this fails is a name for a socket that is in use or gone.
        drop(std::fs::remove_file(&self.0));
    }
}

/// Removes a socket that nobody answers on, and refuses everything else.
async fn make_way(path: &Path) -> io::Result<()> {
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let kind = found.file_type();
    if kind.is_symlink() {
        return Err(refused(io::ErrorKind::AlreadyExists, "a symbolic link is in its place"));
    }
    if !kind.is_socket() {
        return Err(refused(
            io::ErrorKind::AlreadyExists,
            "a file that is no socket is in its place",
        ));
    }
    match time::timeout(ANSWER, UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
        _ => return Err(refused(io::ErrorKind::AddrInUse, "somebody answers on it")),
    }
    if identity(path)? != identity_of(&found) {
        return Err(refused(io::ErrorKind::AddrInUse, "somebody else has just bound it"));
    }
    std::fs::remove_file(path)
}

/// Sets who may connect. The group first: until then the mode admits nobody whom it should not.
///
/// # Errors
///
/// When there is no such group, or this process may not give the file to it.
pub fn set_access(path: &Path, access: &SocketAccess) -> io::Result<()> {
    if let Some(group) = &access.group {
        let number = group_number(group)?;
        lchown(path, None, Some(number))
            .map_err(|error| refused(error.kind(), &format!("it cannot be given to group {group}: {error}")))?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(access.mode))
}

fn group_number(group: &str) -> io::Result<u32> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let groups = std::fs::read_to_string(GROUPS)?;
    numbered(&groups, group)
        .ok_or_else(|| refused(io::ErrorKind::NotFound, &format!("{GROUPS} lists no group {group:?}")))
}

fn numbered(groups: &str, group: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == group).then(|| fields.nth(1)?.parse().ok())?
    })
}

fn refused(kind: io::ErrorKind, detail: &str) -> io::Error {
    io::Error::new(kind, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener as Blocking;

    fn access(mode: u32) -> SocketAccess {
        SocketAccess { mode, group: None }
    }

    async fn refusal(path: &Path) -> String {
        bind(path, &access(0o660)).await.unwrap_err().to_string()
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[tokio::test]
    async fn a_socket_has_its_mode_and_goes_with_its_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        for mode in [0o600, 0o660, 0o666] {
            let (listener, file) = bind(&path, &access(mode)).await.unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, mode);
            assert_eq!(names(folder.path()), ["s"], "no other name is left");
            let (accepted, connected) = tokio::join!(listener.accept(), UnixStream::connect(&path));
            assert!(accepted.is_ok() && connected.is_ok());
            drop((listener, file));
            assert!(names(folder.path()).is_empty());
        }
    }

    #[tokio::test]
    async fn a_socket_that_nobody_answers_on_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let live = Blocking::bind(&path).unwrap();
        assert_eq!(refusal(&path).await, "somebody answers on it");
        drop(live);
        assert!(path.exists(), "what a killed process leaves behind");
        let bound = bind(&path, &access(0o660)).await.unwrap();
        assert_eq!(refusal(&path).await, "somebody answers on it");
        drop(bound);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_is_no_socket_is_refused_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link, socket) = (
            folder.path().join("f"),
            folder.path().join("l"),
            folder.path().join("s"),
        );
        std::fs::write(&file, "precious").unwrap();
        assert_eq!(refusal(&file).await, "a file that is no socket is in its place");
        // Even to a socket that nobody answers on.
        drop(Blocking::bind(&socket).unwrap());
        for target in [&file, &socket, &folder.path().join("nowhere")] {
            std::os::unix::fs::symlink(target, &link).unwrap();
            assert_eq!(refusal(&link).await, "a symbolic link is in its place");
            std::fs::remove_file(&link).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
        assert!(socket.exists());
        assert_eq!(
            refusal(&folder.path().join("missing/s")).await,
            "the folder of the socket does not exist"
        );
    }

    #[tokio::test]
    async fn what_somebody_else_put_in_its_place_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let bound = bind(&path, &access(0o660)).await.unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "another's").unwrap();
        drop(bound);
        assert!(path.exists());
    }

    #[test]
    fn a_group_is_a_number_or_a_name_of_the_list() {
        let groups = "root:x:0:\nstaff:x:50:a,b\nbroken\nodd:x:z:\n";
        assert_eq!(numbered(groups, "staff"), Some(50));
        assert_eq!(numbered(groups, "root"), Some(0));
        assert_eq!(
            (numbered(groups, "odd"), numbered(groups, "a"), numbered(groups, "")),
            (None, None, None)
        );
        assert_eq!(group_number("123").unwrap(), 123);
        assert!(
            group_number("no-such-group")
                .unwrap_err()
                .to_string()
                .contains("no-such-group")
        );
    }
}
