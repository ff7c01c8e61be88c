//! The HTTP API over the wire: every route, every refusal.

use crate::support::agent::Agent;

#[test]
fn port_0_is_a_free_port_and_it_is_logged() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("services.toml");
    std::fs::write(&file, "").unwrap();
    let agent = Agent::run([std::ffi::OsStr::new("--file"), file.as_os_str()]);
    assert_eq!(agent.get("/healthz").status, 200);
}
