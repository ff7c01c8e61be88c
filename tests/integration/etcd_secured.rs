//! An etcd with authentication: users and short-lived tokens, TLS, certificates on both sides.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

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
fn with_users(arguments: &[&str]) -> Etcd {
    let mut etcd = Etcd::start_with(arguments);
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

fn errors(agent: &Agent, reason: &str) -> f64 {
    let series = format!(r#"pickd_source_errors_total{{reason="{reason}",source="etcd"}}"#);
    agent.metric(&series).unwrap()
}

fn denied(agent: &Agent) -> f64 {
    errors(agent, "denied")
}

fn relists(agent: &Agent, reason: &str) -> f64 {
    let series = format!(r#"pickd_source_relists_total{{reason="{reason}",source="etcd"}}"#);
    agent.metric(&series).unwrap_or_default()
}

/// An agent that logs in as `pickd`, with these further lines of configuration.
fn as_pickd(etcd: &Etcd, folder: &Folder, lines: &str) -> Agent {
    folder.write("password", "s3cret\n");
    let text = format!(
        "[etcd]\nendpoints = [\"{}\"]\nusername = \"pickd\"\npassword_file = \"password\"\n{lines}",
        etcd.url(0)
    );
    Agent::run(["--config", folder.write("pickd.toml", &text).to_str().unwrap()])
}

fn up(agent: &Agent) -> bool {
    agent.metric(r#"pickd_source_up{source="etcd"}"#) == Some(1.0)
}

#[test]
fn scenario_31_a_token_of_three_seconds_and_rights_that_come_and_go() {
    let mut etcd = with_users(TOKEN);
    let folder = Folder::new();
    let agent = as_pickd(&etcd, &folder, "refresh = \"4s\"").ready();
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
fn of_two_prefixes_with_rights_for_one_that_one_is_followed() {
    let etcd = with_users(&[]);
    etcd.put("/others/db/d", "10.0.0.9:80");
    let grant = |verb: &str| {
        let mut words = vec!["role", verb, "services", "--prefix=true"];
        words.extend((verb == "grant-permission").then_some("read"));
        words.push("/others/");
        etcd.ctl(words);
    };
    let folder = Folder::new();
    let agent = as_pickd(
        &etcd,
        &folder,
        "prefixes = [{ prefix = \"/services/\" }, { prefix = \"/others/\" }]\nrefresh = \"2s\"",
    );
    until_picked(&agent, "web", &["a"], SOON);
    etcd.put("/services/web/b", "10.0.0.2:80");
    until_picked(&agent, "web", &["a", "b"], SOON);
    // Not synced: what is missing may be below the other prefix.
    let readiness = agent.get("/readyz");
    let source = &readiness.json()["sources"][0];
    let error = source["last_error"].as_str().unwrap();
    assert!(error.contains("\"/others/\"") && error.contains("denied"), "{error}");
    assert!(!error.contains("\"/services/\""), "{error}");
    assert_eq!((readiness.status, source["up"].as_bool()), (503, Some(true)));
    assert_eq!(agent.get("/pick/db").json()["code"], "not_synced");
    assert!(denied(&agent) >= 1.0);
    let lists = relists(&agent, "start") + relists(&agent, "reconnect");
    assert_eq!(lists, 1.0, "what can be read is not listed again for what cannot");

    grant("grant-permission");
    let agent = agent.ready();
    until_picked(&agent, "db", &["d"], SOON);
    assert_eq!(
        agent.get("/readyz").json()["sources"][0]["last_error"],
        serde_json::Value::Null
    );
    assert_eq!(relists(&agent, "granted"), 1.0);
    etcd.put("/others/db/e", "10.0.0.8:80");
    until_picked(&agent, "db", &["d", "e"], SOON);

    // Rights that are revoked take nothing away, and cost the other prefix nothing.
    let before = denied(&agent);
    grant("revoke-permission");
    until(LATER, "it is denied", || (denied(&agent) > before).then_some(()));
    etcd.delete("/services/web/b");
    until_picked(&agent, "web", &["a"], SOON);
    assert_eq!(ids(&agent, "db"), ["d", "e"]);
    assert!(up(&agent) && agent.get("/readyz").status == 200);
    let error = agent.get("/readyz").json()["sources"][0]["last_error"].to_string();
    assert!(error.contains("/others/"), "{error}");
    etcd.delete("/others/db/e");
    grant("grant-permission");
    until_picked(&agent, "db", &["d"], LATER);
    let log = agent.program.stderr.all().join("\n");
    assert!(!log.contains("s3cret"), "{log}");
}

/// The arguments of an etcd that issues JWTs, with keys below this folder.
fn json_web_tokens(folder: &Folder) -> [String; 2] {
    let (private, public) = (folder.path("jwt-key.pem"), folder.path("jwt.pem"));
    let (private, public) = (private.to_str().unwrap(), public.to_str().unwrap());
    for arguments in [
        vec!["genrsa", "-out", private, "2048"],
        vec!["rsa", "-in", private, "-pubout", "-out", public],
    ] {
        let output = Command::new("openssl")
            .args(arguments)
            .output()
            .expect("openssl is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let token = format!("jwt,pub-key={public},priv-key={private},sign-method=RS256,ttl=10m");
    ["--auth-token".to_owned(), token]
}

#[test]
fn a_jwt_that_is_old_since_roles_changed_costs_a_login_and_no_list() {
    let folder = Folder::new();
    let arguments = json_web_tokens(&folder);
    let etcd = with_users(&arguments.each_ref().map(String::as_str));
    let agent = as_pickd(&etcd, &folder, "refresh = \"2s\"").ready();
    let oracle = Oracle::new(Duration::from_secs(1), ["10.0.0.1:80".to_owned()]);
    let picker = Picker::start(agent.address, "/pick/web", 300, &oracle);
    for round in 1..=3 {
        let (tokens, lists) = (errors(&agent, "token"), relists(&agent, "periodic"));
        // Any change of users and roles makes all tokens old.
        etcd.ctl(["role", "add", &format!("other-{round}")]);
        until(LATER, "the old token is refused", || {
            (errors(&agent, "token") > tokens).then_some(())
        });
        until(LATER, "the list is repeated with a new token", || {
            (relists(&agent, "periodic") > lists).then_some(())
        });
        assert!(up(&agent));
    }
    for reason in ["reconnect", "token", "canceled"] {
        assert_eq!(relists(&agent, reason), 0.0, "{reason}");
    }
    for reason in ["protocol", "denied"] {
        assert_eq!(errors(&agent, reason), 0.0, "{reason}");
    }
    oracle.add("10.0.0.2:80");
    etcd.put("/services/web/b", "10.0.0.2:80");
    until_picked(&agent, "web", &["a", "b"], SOON);
    eprintln!("{} tokens were refused", errors(&agent, "token"));
    picker.check("old tokens", 300);
}

/// How long roles are changed without a pause, at most.
const CHURN: Duration = Duration::from_secs(90);

#[test]
fn while_roles_change_all_the_time_new_connections_still_watch() {
    let folder = Folder::new();
    let arguments = json_web_tokens(&folder);
    let etcd = with_users(&arguments.each_ref().map(String::as_str));
    let agent = as_pickd(&etcd, &folder, "").ready();
    let (done, started) = (AtomicBool::new(false), Instant::now());
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (etcd, done) = (&etcd, &done);
            scope.spawn(move || {
                let mut number = 0;
                while !done.load(Ordering::Relaxed) && started.elapsed() < CHURN {
                    number += 1;
                    etcd.try_ctl(["role", "add", &format!("other-{thread}-{number}")]);
                }
            });
        }
        let mut port = 1_000;
        loop {
            // Each start of an agent logs in, lists, and creates a watch.
            let agent = as_pickd(&etcd, &folder, "").ready();
            port += 1;
            let address = format!("10.0.1.1:{port}");
            until(LATER, "a key is put between two changes", || {
                let put = etcd.try_ctl(["put", "/services/web/b", &address]);
                put.status.success().then_some(())
            });
            until(LATER, "the watch delivers it", || {
                agent.get("/services/web").text().contains(&address).then_some(())
            });
            assert_eq!((errors(&agent, "protocol"), errors(&agent, "denied")), (0.0, 0.0));
            let again = agent.program.logged("watching again with a new token").len();
            eprintln!(
                "{} tokens refused, {again} watches created again, {} lists for a token",
                errors(&agent, "token"),
                relists(&agent, "token"),
            );
            if again > 0 {
                break;
            }
            assert!(started.elapsed() < CHURN, "no watch was refused for its token");
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(up(&agent));
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
