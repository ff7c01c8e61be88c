//! An etcd with authentication: users and short-lived tokens, TLS, certificates on both sides.

use std::time::Duration;

use crate::support::agent::{Agent, SOON};
use crate::support::certificates::Certificates;
use crate::support::etcd::Etcd;
use crate::support::folder::Folder;
use crate::support::load::{Oracle, Picker};
use crate::support::pool::{ids, until_picked};
use crate::support::until;

const LATER: Duration = Duration::from_secs(45);
/// The lifetime of tokens in seconds: short enough to expire during the test.
const TOKEN: &[&str] = &["--auth-token-ttl", "3"];

/// An etcd with a user `pickd` that may read below `/services/`, and root for the test.
fn with_users() -> Etcd {
    let mut etcd = Etcd::start_with(TOKEN);
    etcd.ctl(["user", "add", "root:rootpw"]);
    etcd.ctl(["user", "grant-role", "root", "root"]);
    etcd.ctl(["user", "add", "pickd:s3cret"]);
    etcd.ctl(["role", "add", "services"]);
    etcd.ctl([
        "role",
        "grant-permission",
        "services",
        "--prefix=true",
        "read",
        "/services/",
    ]);
    etcd.ctl(["user", "grant-role", "pickd", "services"]);
    etcd.put("/services/web/a", "10.0.0.1:80");
    etcd.ctl(["auth", "enable"]);
    etcd.credentials = vec!["--user".to_owned(), "root:rootpw".to_owned()];
    etcd
}

fn denied(agent: &Agent) -> f64 {
    agent
        .metric(r#"pickd_source_errors_total{reason="denied",source="etcd"}"#)
        .unwrap()
}

fn up(agent: &Agent) -> bool {
    agent.metric(r#"pickd_source_up{source="etcd"}"#) == Some(1.0)
}

#[test]
fn scenario_31_a_token_of_three_seconds_and_rights_that_come_and_go() {
    let mut etcd = with_users();
    let folder = Folder::new();
    folder.write("password", "s3cret\n");
    let text = format!(
        "[etcd]\nendpoints = [\"{}\"]\nusername = \"pickd\"\npassword_file = \"password\"\nrefresh = \"4s\"",
        etcd.url(0)
    );
    let config = folder.write("pickd.toml", &text);
    let agent = Agent::run(["--config", config.to_str().unwrap()]).ready();
    let oracle = Oracle::new(Duration::from_secs(1), ["10.0.0.1:80".to_owned()]);
    let picker = Picker::start(agent.address, "/pick/web", 300, &oracle);

    // The watch outlives its token, and so do the periodic lists.
    let lists = || agent.metric(r#"pickd_source_relists_total{reason="periodic",source="etcd"}"#);
    until(LATER, "lists beyond the life of the first token", || {
        (lists() >= Some(2.0)).then_some(())
    });
    assert!(up(&agent), "{:?}", agent.get("/readyz").json());
    assert_eq!(denied(&agent), 0.0);
    oracle.add("10.0.0.2:80");
    etcd.put("/services/web/b", "10.0.0.2:80");
    until_picked(&agent, "web", &["a", "b"], SOON);

    // After the permissions are revoked, the pool keeps its instances, and metrics show the cause.
    etcd.ctl(["role", "revoke-permission", "services", "--prefix=true", "/services/"]);
    until(LATER, "it is denied", || {
        (denied(&agent) >= 1.0 && !up(&agent)).then_some(())
    });
    let error = agent.get("/readyz").json()["sources"][0]["last_error"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(error.contains("denied") && !error.contains("s3cret"), "{error}");
    assert_eq!(ids(&agent, "web"), ["a", "b"]);
    oracle.add("10.0.0.3:80");
    etcd.put("/services/web/c", "10.0.0.3:80");
    etcd.ctl([
        "role",
        "grant-permission",
        "services",
        "--prefix=true",
        "read",
        "/services/",
    ]);
    until_picked(&agent, "web", &["a", "b", "c"], LATER);

    // etcd forgets its tokens when it restarts, and the password has changed meanwhile.
    etcd.change_password("pickd", "0ther");
    etcd.kill(0);
    until(SOON, "the loss is noticed", || (!up(&agent)).then_some(()));
    etcd.restart(0);
    until(LATER, "the old password is refused", || {
        let error = agent.get("/readyz").json()["sources"][0]["last_error"]
            .as_str()?
            .to_owned();
        error.contains("authentication failed").then_some(())
    });
    assert_eq!(ids(&agent, "web"), ["a", "b", "c"]);
    folder.write("password", "0ther");
    until(LATER, "the new password is read from its file", || {
        up(&agent).then_some(())
    });
    oracle.add("10.0.0.4:80");
    etcd.put("/services/web/d", "10.0.0.4:80");
    until_picked(&agent, "web", &["a", "b", "c", "d"], SOON);
    picker.check("tokens and rights", 3_000);
    let log = agent.program.stderr.all().join("\n");
    assert!(!log.contains("s3cret") && !log.contains("0ther"), "{log}");
}

#[test]
fn over_tls_the_certificate_is_checked_and_over_mutual_tls_ours_is_too() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::of_authority_server_and_client(folder.path());
    let path = |name| certificates.path(name);
    let (ca, cert, key) = (path("ca.pem"), path("server.pem"), path("server-key.pem"));
    let client = [
        "--cacert".to_owned(),
        ca.clone(),
        "--cert".to_owned(),
        path("client.pem"),
        "--key".to_owned(),
        path("client-key.pem"),
    ];
    for mutual in [false, true] {
        let mut arguments = vec!["--cert-file", &cert, "--key-file", &key];
        if mutual {
            arguments.extend(["--client-cert-auth", "--trusted-ca-file", &ca]);
        }
        let etcd = Etcd::start_with_tls(&arguments, client.to_vec());
        etcd.put("/services/web/a", "10.0.0.1:80");
        let configured = |lines: &[(&str, String)]| {
            let mut text = format!("[etcd]\nendpoints = [\"{}\"]\n", etcd.url(0));
            for (name, value) in lines {
                text += &format!("{name} = \"{value}\"\n");
            }
            let path = etcd.folder().join(format!("pickd-{}.toml", lines.len()));
            std::fs::write(&path, text).unwrap();
            Agent::run(["--config", path.to_str().unwrap()])
        };
        let trusting = ("ca_file", ca.clone());
        let ours = [
            trusting.clone(),
            ("cert_file", path("client.pem")),
            ("key_file", path("client-key.pem")),
        ];
        let agent = configured(&ours).ready();
        until_picked(&agent, "web", &["a"], SOON);
        etcd.put("/services/web/b", "10.0.0.2:80");
        until_picked(&agent, "web", &["a", "b"], SOON);

        let error = |agent: &Agent| {
            until(LATER, "it says why not", || {
                let answer = agent.get("/readyz").json();
                answer["sources"][0]["last_error"].as_str().map(str::to_owned)
            })
        };
        // Without the certificate of the authority, the client does not trust the server.
        let stranger = configured(&[]);
        eprintln!("mutual {mutual}, no authority: {}", error(&stranger));
        assert_eq!(stranger.get("/pick/web").json()["code"], "not_synced");
        // Without a client certificate, the result depends on the server.
        let anonymous = configured(&[trusting]);
        if mutual {
            eprintln!("no certificate of ours: {}", error(&anonymous));
            assert_eq!(anonymous.get("/pick/web").json()["code"], "not_synced");
        } else {
            until_picked(&anonymous, "web", &["a", "b"], SOON);
        }
    }
}

/// What the advice says is true: with `CA:FALSE` a self-signed certificate is trusted.
#[test]
fn a_self_signed_certificate_of_etcd_is_trusted_or_explained() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::new(folder.path());
    let names = ["-addext", "subjectAltName=IP:127.0.0.1"];
    certificates.self_signed("ca-true", &names);
    certificates.self_signed(
        "ca-false",
        &[&names[..], &["-addext", "basicConstraints=critical,CA:FALSE"]].concat(),
    );
    for name in ["ca-true", "ca-false"] {
        let path = |end: &str| certificates.path(&format!("{name}{end}"));
        let (certificate, key) = (path(".pem"), path("-key.pem"));
        let arguments = ["--cert-file", &certificate, "--key-file", &key];
        let etcd = Etcd::start_with_tls(&arguments, vec!["--cacert".to_owned(), certificate.clone()]);
        etcd.put("/services/web/a", "10.0.0.1:80");
        let text = format!("[etcd]\nendpoints = [{:?}]\nca_file = {certificate:?}\n", etcd.url(0));
        let config = etcd.folder().join("pickd.toml");
        std::fs::write(&config, text).unwrap();
        let agent = Agent::run(["--config", config.to_str().unwrap()]);
        if name == "ca-false" {
            until_picked(&agent, "web", &["a"], LATER);
            continue;
        }
        let error = until(LATER, "an error", || {
            let answer = agent.get("/readyz").json();
            answer["sources"][0]["last_error"].as_str().map(str::to_owned)
        });
        assert!(
            error.contains("issue it again with -addext basicConstraints=critical,CA:FALSE"),
            "{error}"
        );
    }
}

#[test]
fn a_certificate_file_that_is_not_there_is_told_before_anything_starts() {
    let folder = Folder::new();
    let config = folder.write(
        "pickd.toml",
        "[etcd]\nendpoints = [\"https://127.0.0.1:1\"]\nca_file = \"nowhere.pem\"",
    );
    let output =
        crate::support::agent::command(["run", "--listen", "127.0.0.1:0", "--config", config.to_str().unwrap()]);
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("etcd") && text.contains("nowhere.pem"), "{text}");
}
