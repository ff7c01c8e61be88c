//! A folder for the files that an agent reads.

use std::path::PathBuf;

use tempfile::TempDir;

/// A folder that is removed when dropped.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a new file, and renames the new file over the old file.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let (new, path) = (self.path(&format!("{name}.new")), self.path(name));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, &path).unwrap();
        path
    }

    /// A file registry with one service, its instances at these addresses.
    pub(crate) fn registry(&self, name: &str, service: &str, addresses: &[&str]) -> PathBuf {
        let mut text = format!("[[service]]\nname = \"{service}\"\n");
        for address in addresses {
            let (host, port) = address.rsplit_once(':').unwrap();
            text.push_str(&format!("[[service.instance]]\nhost = \"{host}\"\nport = {port}\n"));
        }
        self.write(name, &text)
    }
}
