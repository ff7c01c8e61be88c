//! `pickd check`: is this file right? Without an agent, without a network, and without the environment, so that it says the
//! same on every machine.

use std::path::{Path, PathBuf};

use super::Exit;
use super::output::{self, say_plainly};
use crate::config::{Config, ConfigError, Layers, SourceConfig};
use crate::discovery::file;

const EXAMPLES: &str = "\
Examples:
  pickd check pickd.toml     a configuration, and the file registry it names
  pickd check services.toml  a file registry (TOML, JSON or YAML)";

/// Check a configuration file or a file registry.
#[derive(Debug, clap::Args)]
#[command(
    before_help = EXAMPLES,
    after_help = "Exit codes: 0 it is right, 1 it is not, and stderr says file:line:column and why"
)]
pub(super) struct CheckArguments {
    /// The file
    file: PathBuf,
}

pub(super) fn execute(arguments: &CheckArguments) -> Exit {
    match checked(&arguments.file) {
        Ok(summary) => output::data(&summary),
        Err(refusal) => {
            say_plainly(refusal);
            Exit::Failed
        }
    }
}

/// One line about a file that is right, or why it is not.
fn checked(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let bytes = read(path)?;
    if is_registry(path, &bytes) {
        return Ok(format!("{shown}: fine, {}", registry(path, &bytes)?));
    }
    let config = match Config::parse(path, &bytes, &Layers::default()) {
        Ok(config) => config,
        // Flags may still add one, so nothing is wrong with the file.
        Err(ConfigError::NoSource) => {
            return Ok(format!(
                "{shown}: fine, but names no registry: `pickd run` will need --consul, --etcd or --file, too"
            ));
        }
        Err(error) => return Err(error.to_string()),
    };
    let sources = config.sources.iter().map(|source| match source {
        SourceConfig::Consul(consul) => Ok(format!("Consul at {}", consul.address)),
        SourceConfig::Etcd(etcd) => Ok(format!("etcd at {}", etcd.endpoints.join(", "))),
        SourceConfig::File(file) => {
            let summary = registry(&file.path, &read(&file.path)?)?;
            Ok(format!("{} with {summary}", file.path.display()))
        }
    });
    let sources = sources.collect::<Result<Vec<_>, String>>()?;
    Ok(format!("{shown}: fine, {}", sources.join(", ")))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// Registries are known by their content, since both kinds of file are TOML: a configuration has no `[[service]]`.
fn is_registry(path: &Path, bytes: &[u8]) -> bool {
    let extension = path
        .extension()
        .and_then(|extension| extension.to_str())
        .map(str::to_ascii_lowercase);
    match extension.as_deref() {
        Some("json" | "yaml" | "yml") => true,
        _ => std::str::from_utf8(bytes)
            .ok()
            .and_then(|text| text.parse::<toml::Table>().ok())
            .is_some_and(|table| table.get("service").is_some_and(toml::Value::is_array)),
    }
}

fn registry(path: &Path, bytes: &[u8]) -> Result<String, String> {
    let services = file::parse(path, bytes).map_err(|error| error.to_string())?;
    let instances = services.iter().map(|(_, instances)| instances.len()).sum();
    Ok(format!(
        "{} with {}",
        counted(services.len(), "service"),
        counted(instances, "instance")
    ))
}

fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGISTRY: &str = "[[service]]\nname = \"a\"\n[[service.instance]]\nhost = \"10.0.0.1\"\nport = 80\n\
                            [[service.instance]]\nhost = \"10.0.0.2\"\nport = 80\n";

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        /// What `check` says of this file, without the folder's name.
        fn checked(&self, name: &str, text: &str) -> Result<String, String> {
            let path = self.path(name);
            std::fs::write(&path, text).unwrap();
            let folder = format!("{}/", self.0.path().display());
            checked(&path)
                .map(|said| said.replace(&folder, ""))
                .map_err(|said| said.replace(&folder, ""))
        }
    }

    #[test]
    fn a_configuration_that_is_right_is_one_line() {
        let folder = Folder::new();
        assert_eq!(
            folder.checked("p.toml", "[consul]").unwrap(),
            "p.toml: fine, Consul at http://127.0.0.1:8500"
        );
        assert!(
            folder
                .checked("p.toml", "[api]")
                .unwrap()
                .starts_with("p.toml: fine, but names no registry")
        );
    }

    #[test]
    fn a_configuration_that_is_wrong_is_told_with_its_place() {
        let refusal = Folder::new()
            .checked("p.toml", "[consul]\nwait = \"x\"\nrefresh = 0")
            .unwrap_err();
        assert!(refusal.starts_with("p.toml:2:8: consul.wait"), "{refusal}");
        assert!(refusal.contains("\np.toml:3:11: consul.refresh"), "{refusal}");
    }

    #[test]
    fn the_registry_that_a_configuration_names_is_checked_too() {
        let folder = Folder::new();
        let config = "[file]\npath = \"s.toml\"";
        let refusal = folder.checked("p.toml", config).unwrap_err();
        assert!(refusal.starts_with("s.toml: No such file"), "{refusal}");
        std::fs::write(folder.path("s.toml"), REGISTRY).unwrap();
        assert_eq!(
            folder.checked("p.toml", config).unwrap(),
            "p.toml: fine, s.toml with 1 service with 2 instances"
        );
        std::fs::write(folder.path("s.toml"), REGISTRY.replace("80", "0")).unwrap();
        let refusal = folder.checked("p.toml", config).unwrap_err();
        assert!(refusal.starts_with("s.toml:5:"), "{refusal}");
    }

    #[test]
    fn a_registry_is_known_by_its_content_or_its_extension() {
        let folder = Folder::new();
        assert_eq!(
            folder.checked("any.TOML", REGISTRY).unwrap(),
            "any.TOML: fine, 1 service with 2 instances"
        );
        for (path, text, expected) in [
            ("a.json", "", true),
            ("a.YAML", "", true),
            ("a.yml", "", true),
            ("a.toml", "[[service]]", true),
            ("a.toml", "service = []", true),
            ("a.toml", "[service]", false),
            ("a.toml", "[[service]", false),
            ("a", "\u{feff}", false),
        ] {
            assert_eq!(is_registry(Path::new(path), text.as_bytes()), expected, "{path} {text}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let refusal = checked(Path::new("/nowhere/p.toml")).unwrap_err();
        assert!(refusal.starts_with("/nowhere/p.toml: No such file"), "{refusal}");
    }
}
