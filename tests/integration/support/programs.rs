//! The files of `integrations/`, run as a reader would: by a shell that finds the real programs
//! under their names.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use super::agent::pickd;

/// Links to the programs that scripts call.
fn links() -> &'static Path {
    static LINKS: OnceLock<PathBuf> = OnceLock::new();
    LINKS.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("programs");
        fs::create_dir_all(&folder).unwrap();
        let mut programs = vec![("pickd", PathBuf::from(pickd().get_program()))];
        for (name, variable) in [
            ("consul", "PICKD_TEST_CONSUL"),
            ("etcdctl", "PICKD_TEST_ETCDCTL"),
            ("jq", "PICKD_TEST_JQ"),
        ] {
            programs.push((name, PathBuf::from(server(variable))));
        }
        for (name, program) in programs {
            // Another run of the tests may make the same link at this moment.
            let new = folder.join(format!("{name}.{}", std::process::id()));
            symlink(program, &new).unwrap();
            fs::rename(new, folder.join(name)).unwrap();
        }
        folder
    })
}

/// The path of a real server.
pub(crate) fn server(variable: &str) -> String {
    std::env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} is not set: run tests/run, which finds or fetches the servers"))
}

/// A file or folder of `integrations/`.
pub(crate) fn integration(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("integrations").join(path)
}

pub(crate) fn read_integration(path: &str) -> String {
    let path = integration(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A bash with this script, in a folder of `integrations/`, with nothing from the environment that
/// pickd, Consul or etcd heed.
pub(crate) fn bash(folder: &Path, script: &str) -> Command {
    let mut command = Command::new("bash");
    // What `pickd()` takes out of the environment.
    for (name, value) in pickd().get_envs() {
        assert!(value.is_none());
        command.env_remove(name);
    }
    let path = std::env::var("PATH").unwrap();
    command
        .args(["-c", script])
        .current_dir(folder)
        .env("PATH", format!("{}:{path}", links().display()))
        .stdin(Stdio::null());
    command
}

/// Runs it to its end, which must be a good one, and gives what it printed.
pub(crate) fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", both(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Standard output and error.
pub(crate) fn both(output: &Output) -> String {
    let both = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8_lossy(&both).into_owned()
}

/// The lines of all shell blocks of a README that begin so.
pub(crate) fn commands(readme: &str, starts: &[&str]) -> Vec<String> {
    let text = read_integration(readme);
    let mut shell = false;
    let mut found = Vec::new();
    for line in text.lines() {
        match line {
            "```sh" => shell = true,
            "```" => shell = false,
            line if shell && starts.iter().any(|start| line.starts_with(start)) => found.push(line.to_owned()),
            _ => {}
        }
    }
    found
}

/// The text with each of these in place of the other, which must stand there.
pub(crate) fn replaced(text: &str, pairs: &[(&str, &str)]) -> String {
    let mut text = text.to_owned();
    for (from, to) in pairs {
        assert!(text.contains(from), "{from:?} stands in {text}");
        text = text.replace(from, to);
    }
    text
}
