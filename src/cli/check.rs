//! `pickd check`: whether a file is valid. The command uses no agent, no network and no environment
//! variables, so its result is the same on every machine.

use std::path::{Path, PathBuf};

use super::Exit;
use super::output::{self, bare_message};
use crate::balancer::ServiceName;
use crate::config::{Config, ConfigError, ConfigSources, SourceConfig};
use crate::discovery::file;

const EXAMPLES: &str = "\
Examples:
  pickd check pickd.toml     a configuration, and the file registry it names
  pickd check services.toml  a file registry (TOML, JSON or YAML)";

/// Check a configuration file or a file registry.
#[derive(Debug, clap::Args)]
#[command(
    before_help = EXAMPLES,
    after_help = "Exit codes: 0 the file is valid, 1 the file is not valid; stderr has file:line:column and the reason"
)]
pub(super) struct CheckArguments {
    /// The file
    file: PathBuf,
}

pub(super) fn execute(arguments: &CheckArguments) -> Exit {
    match checked(&arguments.file) {
        Ok(summary) => output::data(&summary),
        Err(refusal) => {
            bare_message(refusal);
            Exit::Failed
        }
    }
}

/// One line about a valid file, or the reason for which the file is invalid.
fn checked(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let bytes = read(path)?;
    if is_registry(path, &bytes) {
        return Ok(format!("{shown}: fine, {}", registry(path, &bytes, None)?));
    }
    let config = match Config::parse(path, &bytes, &ConfigSources::default()) {
        Ok(config) => config,
        // Flags may still add a registry, so the file is valid.
        Err(ConfigError::NoSource) => {
            return Ok(format!(
                "{shown}: fine, but names no registry: `pickd run` also needs --consul, --etcd or --file"
            ));
        }
        Err(error) => return Err(error.to_string()),
    };
    let sources = config.sources.iter().map(|source| match source {
        SourceConfig::Consul(consul) => Ok(match &consul.datacenter {
            Some(datacenter) => format!("Consul at {} (datacenter {datacenter})", consul.address),
            None => format!("Consul at {}", consul.address),
        }),
        SourceConfig::Etcd(etcd) => Ok(format!("etcd at {}", etcd.endpoints.join(", "))),
        SourceConfig::File(file) => {
            let summary = registry(&file.path, &read(&file.path)?, file.service.as_ref())?;
            Ok(format!("{} with {summary}", file.path.display()))
        }
    });
    let sources = sources.collect::<Result<Vec<_>, String>>()?;
    Ok(format!("{shown}: fine, {}", sources.join(", ")))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// Whether the file is a file registry. A TOML file may be a registry or a configuration: only a
/// registry has `[[service]]`.
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

fn registry(path: &Path, bytes: &[u8], default_service: Option<&ServiceName>) -> Result<String, String> {
    let services = file::parse(path, bytes, default_service).map_err(|error| error.to_string())?;
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

        /// The result of `check` for this file, without the name of the folder.
        fn checked(&self, name: &str, text: &str) -> Result<String, String> {
            let path = self.path(name);
            std::fs::write(&path, text).unwrap();
            let folder = format!("{}/", self.0.path().display());
            checked(&path)
                .map(|text| text.replace(&folder, ""))
                .map_err(|text| text.replace(&folder, ""))
        }
    }

    #[test]
    fn a_valid_configuration_is_summed_up_in_one_line() {
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
    fn mistakes_are_reported_with_their_line_and_column() {
        let refusal = Folder::new()
            .checked("p.toml", "[consul]\nwait = \"x\"\nrefresh = 0")
            .unwrap_err();
        assert!(refusal.starts_with("p.toml:2:8: consul.wait"), "{refusal}");
        assert!(refusal.contains("\np.toml:3:11: consul.refresh"), "{refusal}");
    }

    #[test]
    fn the_file_registry_of_a_configuration_is_checked_too() {
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
    fn a_registry_is_recognized_by_content_or_extension() {
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
    fn a_missing_file_is_named() {
        let refusal = checked(Path::new("/nowhere/p.toml")).unwrap_err();
        assert!(refusal.starts_with("/nowhere/p.toml: No such file"), "{refusal}");
    }
}
