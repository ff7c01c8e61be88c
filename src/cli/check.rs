//! `pickd check`: whether a file is valid, and what the keys of an etcd become. The command uses no
//! agent, no network and no environment variables, so its result is the same on every machine.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::Exit;
use super::output::{self, bare_message};
use super::table::{Column, aligned};
use crate::balancer::ServiceName;
use crate::config::{Config, ConfigError, ConfigSources, Flags, SourceConfig};
use crate::discovery::etcd::{Explained, KeyOutcome, Pair, Prefix, explain, parse_dump};
use crate::discovery::file;

const EXAMPLES: &str = "\
Examples:
  pickd check pickd.toml     a configuration, and the file registry it names
  pickd check services.toml  a file registry (TOML, JSON or YAML)
  etcdctl get --prefix /services/ -w json | pickd check --etcd-dump - pickd.toml
                             what each key registers, or why not";

/// Check a configuration file or a file registry.
#[derive(Debug, clap::Args)]
#[command(
    before_help = EXAMPLES,
    after_help = "Exit codes: 0 the file is valid, 1 the file is not valid; stderr has file:line:column and the reason. With \
                  --etcd-dump: 1 also if a key is refused."
)]
pub(super) struct CheckArguments {
    /// The file; with --etcd-dump, a configuration with the prefixes of etcd
    #[arg(required_unless_present = "etcd_dump")]
    file: Option<PathBuf>,
    /// Show what these keys of etcd register, or why not: the output of `etcdctl get -w json`; - is
    /// standard input
    #[arg(long, value_name = "FILE")]
    etcd_dump: Option<PathBuf>,
    /// The prefix of the keys, if no configuration is given; may be repeated
    #[arg(long, value_name = "PREFIX", requires = "etcd_dump", conflicts_with = "file")]
    etcd_prefix: Vec<String>,
}

pub(super) fn execute(arguments: &CheckArguments) -> Exit {
    let file = arguments.file.as_deref();
    if let Some(dump) = &arguments.etcd_dump {
        return match explained(dump, file, &arguments.etcd_prefix) {
            Ok((table, 0)) => output::data(&table),
            Ok((table, _)) => match output::data(&table) {
                Exit::Success => Exit::Failed,
                exit => exit,
            },
            Err(refusal) => {
                bare_message(refusal);
                Exit::Failed
            }
        };
    }
    match checked(file.unwrap_or(Path::new(""))) {
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

/// A table with what each key of a dump registers, and how many keys are refused.
fn explained(dump: &Path, config: Option<&Path>, prefixes: &[String]) -> Result<(String, usize), String> {
    let prefixes = watched(config, prefixes)?;
    let text = match dump == Path::new("-") {
        true => {
            let mut text = Vec::new();
            let read = std::io::stdin().lock().read_to_end(&mut text);
            read.map(|_| text).map_err(|error| format!("standard input: {error}"))?
        }
        false => read(dump)?,
    };
    let pairs = parse_dump(&text).map_err(|error| {
        format!(
            "{}: expected what `etcdctl get --prefix PREFIX -w json` prints: {error}",
            dump.display()
        )
    })?;
    let (mut rows, mut instances, mut refused, mut moved) = (Vec::new(), 0, 0, 0);
    for pair in &pairs {
        let Explained { outcome, formerly, .. } = explain(&prefixes, pair);
        let formerly = formerly.map(|(service, id)| format!("instance {id} of {service} until pickd 0.1"));
        moved += usize::from(formerly.is_some());
        let note = match &outcome {
            KeyOutcome::Registers(it) if it.instances.is_empty() => "no instance".to_owned(),
            KeyOutcome::Registers(it) => it.ignored.join("; "),
            KeyOutcome::Ignored(why) => format!("ignored: {why}"),
            KeyOutcome::Refused(why) => {
                refused += 1;
                format!("refused: {why}")
            }
            KeyOutcome::NotWatched => "below no prefix that is watched".to_owned(),
        };
        let notes: Vec<String> = [note]
            .into_iter()
            .filter(|note| !note.is_empty())
            .chain(formerly)
            .collect();
        let (service, found) = match outcome {
            KeyOutcome::Registers(it) => (it.service.to_string(), it.instances),
            _ => (String::new(), Vec::new()),
        };
        instances += found.len();
        let row = |cells: [String; 5]| {
            let [id, address, weight, status, notes] = cells;
            [key(pair), service.clone(), id, address, weight, status, notes]
        };
        if found.is_empty() {
            rows.push(row([
                String::new(),
                String::new(),
                String::new(),
                String::new(),
                notes.join("; "),
            ]));
        }
        for instance in found {
            rows.push(row([
                instance.id().to_string(),
                instance.address().to_string(),
                instance.weight().get().to_string(),
                instance.registry_status().as_str().to_owned(),
                notes.join("; "),
            ]));
        }
    }
    let columns = [
        Column::Left("KEY"),
        Column::Left("SERVICE"),
        Column::Left("INSTANCE"),
        Column::Left("ADDRESS"),
        Column::Right("WEIGHT"),
        Column::Left("STATUS"),
        Column::Left("NOTE"),
    ];
    let summary = format!(
        "{} with {}, {refused} refused, {moved} moved since pickd 0.1",
        counted(pairs.len(), "key"),
        counted(instances, "instance")
    );
    Ok((format!("{}{summary}", aligned(columns, &rows)), refused))
}

fn key(pair: &Pair) -> String {
    String::from_utf8_lossy(&pair.key).into_owned()
}

/// The prefixes of a configuration, or these prefixes, or the default.
fn watched(config: Option<&Path>, prefixes: &[String]) -> Result<Vec<Prefix>, String> {
    let (path, bytes, flags) = match config {
        Some(path) => (path, read(path)?, Flags::default()),
        None => {
            let etcd = "127.0.0.1:2379".parse().into_iter().collect();
            let etcd_prefixes = prefixes.to_vec();
            let flags = Flags {
                etcd,
                etcd_prefixes,
                ..Flags::default()
            };
            (Path::new(""), Vec::new(), flags)
        }
    };
    let from = ConfigSources {
        flags,
        ..ConfigSources::default()
    };
    let config = Config::parse(path, &bytes, &from).map_err(|error| error.to_string())?;
    let etcd = config.sources.into_iter().find_map(|source| match source {
        SourceConfig::Etcd(settings) => Some(settings.prefixes),
        _ => None,
    });
    etcd.ok_or_else(|| format!("{}: there is no [etcd] table with prefixes", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// Whether the file is a file registry. A TOML file may be a registry or a configuration: only a
/// registry has `[[service]]`. Refusals of a configuration repeat the line, those of a registry do
/// not, so a registry is also recognized if it cannot be parsed.
fn is_registry(path: &Path, bytes: &[u8]) -> bool {
    let extension = path
        .extension()
        .and_then(|extension| extension.to_str())
        .map(str::to_ascii_lowercase);
    match extension.as_deref() {
        Some("json" | "yaml" | "yml") => true,
        _ => std::str::from_utf8(bytes).is_ok_and(|text| match text.parse::<toml::Table>() {
            Ok(table) => table.get("service").is_some_and(toml::Value::is_array),
            Err(_) => text.lines().any(|line| line.trim_start().starts_with("[[service]")),
        }),
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
            ("a.toml", "[[service]", true),
            ("a.toml", "[[service]]\nname = web", true),
            ("a.toml", "[consul\n", false),
            ("a", "\u{feff}", false),
        ] {
            assert_eq!(is_registry(Path::new(path), text.as_bytes()), expected, "{path} {text}");
        }
    }

    /// `/services/web/a`, `/services/team-a/payments/evil` and `/services/db/password`.
    const DUMP: &str = r#"{"header":{},"kvs":[{"key":"L3NlcnZpY2VzL3dlYi9h","value":"MTAuMC4wLjE6ODA="},{"key":"L3NlcnZpY2VzL3RlYW0tYS9wYXltZW50cy9ldmls","value":"MTAuMC4wLjE6ODA="},{"key":"L3NlcnZpY2VzL2RiL3Bhc3N3b3Jk","value":"UzNjcjN0"}]}"#;

    #[test]
    fn a_dump_of_etcd_is_shown_key_by_key() {
        let folder = Folder::new();
        let dump = folder.path("dump.json");
        std::fs::write(&dump, DUMP).unwrap();
        let (table, refused) = explained(&dump, None, &[]).unwrap();
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[0].starts_with("KEY "), "{table}");
        let words: Vec<&str> = lines[1].split_whitespace().collect();
        assert_eq!(
            words,
            ["/services/web/a", "web", "a", "10.0.0.1:80", "1", "unknown", "-"]
        );
        assert!(
            lines[2].contains("refused: deeper than")
                && lines[2].ends_with("; instance evil of payments until pickd 0.1"),
            "{table}"
        );
        assert!(
            lines[3].contains("refused: host: expected") && lines[3].ends_with("(6 bytes)"),
            "{table}"
        );
        assert_eq!(lines[4], "3 keys with 1 instance, 2 refused, 1 moved since pickd 0.1");
        assert_eq!(refused, 2);
        assert!(!table.contains("S3cr3t"), "{table}");

        let config = folder.path("p.toml");
        let text = "[etcd]\nprefixes = [{ prefix = \"/services\", path = \"*/{service}/{instance}\" }]";
        std::fs::write(&config, text).unwrap();
        let (table, refused) = explained(&dump, Some(&config), &[]).unwrap();
        assert!(table.contains("payments  team-a/evil") && refused == 0, "{table}");
        let (table, _) = explained(&dump, None, &["/other".to_owned()]).unwrap();
        assert!(table.contains("below no prefix that is watched"), "{table}");
        std::fs::write(&config, "[consul]").unwrap();
        let refusal = explained(&dump, Some(&config), &[]).unwrap_err();
        assert!(refusal.ends_with("there is no [etcd] table with prefixes"), "{refusal}");
        std::fs::write(&dump, "no dump").unwrap();
        let refusal = explained(&dump, None, &[]).unwrap_err();
        assert!(refusal.contains("expected what `etcdctl get"), "{refusal}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let refusal = checked(Path::new("/nowhere/p.toml")).unwrap_err();
        assert!(refusal.starts_with("/nowhere/p.toml: No such file"), "{refusal}");
    }
}
