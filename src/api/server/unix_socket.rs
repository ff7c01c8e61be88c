//! A Unix socket in the file system: bound without replacing a file of another owner, and removed
//! when it is no longer served.
//!
//! The socket is bound under a random temporary name, given its group and mode, and only then
//! linked to its path. So the socket never appears at its path with the mode that the umask left.
//! (Setting the umask would need unsafe code, and would change the whole process.) The link fails
//! if another file has appeared at the path in the meantime. A socket file that no process listens
//! on is stale: a killed process left it behind, and it is removed first. Any other file at the
//! path is refused, above all a symbolic link.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::time;

/// The time limit of the connection that tests for a stale socket. A listener that accepts nothing
/// for so long counts as in use: its queue is full.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The system's list of groups.
const GROUPS: &str = "/etc/group";

/// Which users may connect to a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketAccess {
    /// Permission bits, 0..=0o777.
    pub mode: u32,
    /// The name or number of the socket's group. Without it, the socket has the group of the
    /// process.
    pub group: Option<String>,
}

impl Default for SocketAccess {
    /// Only the user and the group of the process may connect.
    fn default() -> Self {
        Self {
            mode: 0o660,
            group: None,
        }
    }
}

/// The file of a bound socket. Dropping the value removes the file, unless another file has taken
/// its path.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: Identity,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            // If the removal fails, the next process finds a stale socket and removes it.
            drop(std::fs::remove_file(&self.path));
        }
    }
}

/// Device, inode and modification time of a file. The system reuses the inode number of a removed
/// file, so the time is needed.
type Identity = (u64, u64, i64, i64);

fn identity(path: &Path) -> io::Result<Identity> {
    std::fs::symlink_metadata(path).map(|found| identity_of(&found))
}

fn identity_of(found: &Metadata) -> Identity {
    (found.dev(), found.ino(), found.mtime(), found.mtime_nsec())
}

/// Binds a socket at this path, with this access.
///
/// # Errors
///
/// See [`Listener::bind_unix`](super::Listener::bind_unix).
pub(super) async fn bind(path: &Path, access: &SocketAccess) -> io::Result<(UnixListener, SocketFile)> {
    let folder = path.parent().filter(|folder| folder.is_dir());
    let folder = folder.ok_or_else(|| refused(io::ErrorKind::NotFound, "the folder of the socket does not exist"))?;
    remove_stale(path).await?;
    let temporary = TemporaryName(folder.join(format!(".pickd-{:06x}", fastrand::u32(..1 << 24))));
    let listener = UnixListener::bind(&temporary.0)?;
    set_access(&temporary.0, access)?;
    let identity = identity(&temporary.0)?;
    std::fs::hard_link(&temporary.0, path).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => refused(io::ErrorKind::AddrInUse, "another process has just bound it"),
        _ => error,
    })?;
    let path = path.to_owned();
    Ok((listener, SocketFile { path, identity }))
}

/// The temporary name under which a socket is bound. Dropping the value removes the name.
struct TemporaryName(PathBuf);

impl Drop for TemporaryName {
    fn drop(&mut self) {
        // If the removal fails, an unused second name of the socket remains, which does no harm.
        drop(std::fs::remove_file(&self.0));
    }
}

/// Removes a stale socket, on which no process listens. Refuses any other file.
async fn remove_stale(path: &Path) -> io::Result<()> {
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let kind = found.file_type();
    if kind.is_symlink() {
        return Err(refused(io::ErrorKind::AlreadyExists, "the path is a symbolic link"));
    }
    if !kind.is_socket() {
        return Err(refused(
            io::ErrorKind::AlreadyExists,
            "the path exists and is not a socket",
        ));
    }
    match time::timeout(CONNECT_TIMEOUT, UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
        _ => return Err(refused(io::ErrorKind::AddrInUse, "a process listens on this socket")),
    }
    if identity(path)? != identity_of(&found) {
        return Err(refused(io::ErrorKind::AddrInUse, "another process has just bound it"));
    }
    std::fs::remove_file(path)
}

/// Sets the group and the mode of a socket file. The group is set first, so that the mode never
/// admits the wrong group.
///
/// # Errors
///
/// When the group does not exist, or this process may not give the file to the group.
pub fn set_access(path: &Path, access: &SocketAccess) -> io::Result<()> {
    if let Some(group) = &access.group {
        let number = group_number(group)?;
        lchown(path, None, Some(number)).map_err(|error| {
            refused(
                error.kind(),
                &format!("the socket cannot be given to group {group}: {error}"),
            )
        })?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(access.mode))
}

fn group_number(group: &str) -> io::Result<u32> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let groups = std::fs::read_to_string(GROUPS)?;
    group_number_in(&groups, group)
        .ok_or_else(|| refused(io::ErrorKind::NotFound, &format!("{GROUPS} lists no group {group:?}")))
}

fn group_number_in(groups: &str, group: &str) -> Option<u32> {
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
    async fn a_socket_has_its_mode_and_is_removed_with_its_listener() {
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
    async fn a_stale_socket_is_replaced_and_a_socket_in_use_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let in_use = Blocking::bind(&path).unwrap();
        assert_eq!(refusal(&path).await, "a process listens on this socket");
        drop(in_use);
        assert!(path.exists(), "a killed process leaves its socket behind");
        let bound = bind(&path, &access(0o660)).await.unwrap();
        assert_eq!(refusal(&path).await, "a process listens on this socket");
        drop(bound);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_file_that_is_not_a_socket_is_refused_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link, socket) = (
            folder.path().join("f"),
            folder.path().join("l"),
            folder.path().join("s"),
        );
        std::fs::write(&file, "precious").unwrap();
        assert_eq!(refusal(&file).await, "the path exists and is not a socket");
        // A link is refused even if it leads to a stale socket.
        drop(Blocking::bind(&socket).unwrap());
        for target in [&file, &socket, &folder.path().join("nowhere")] {
            std::os::unix::fs::symlink(target, &link).unwrap();
            assert_eq!(refusal(&link).await, "the path is a symbolic link");
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
    async fn a_file_that_has_replaced_the_socket_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let bound = bind(&path, &access(0o660)).await.unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "of another process").unwrap();
        drop(bound);
        assert!(path.exists());
    }

    #[test]
    fn a_group_is_a_number_or_a_name_in_the_list_of_groups() {
        let groups = "root:x:0:\nstaff:x:50:a,b\nbroken\nodd:x:z:\n";
        assert_eq!(group_number_in(groups, "staff"), Some(50));
        assert_eq!(group_number_in(groups, "root"), Some(0));
        assert_eq!(
            (
                group_number_in(groups, "odd"),
                group_number_in(groups, "a"),
                group_number_in(groups, "")
            ),
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
