//! A real Consul over TLS: which certificates are trusted, what an error says, and files that are
//! replaced.

use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use crate::support::agent::{Agent, SOON, pickd};
use crate::support::certificates::{Certificates, FOR_LOOPBACK};
use crate::support::consul::Consul;
use crate::support::folder::Folder;
use crate::support::pool::{ids, until_picked};
use crate::support::until;

/// Bound for events that wait for a timer of the watcher.
const LATER: Duration = Duration::from_secs(60);

/// A Consul with the certificate `server` of this folder. With an authority, clients need a
/// certificate that it has issued.
async fn consul(certificates: &Certificates, clients: Option<&str>) -> Consul {
    let mut settings = json!({
        "cert_file": certificates.path("server.pem"), "key_file": certificates.path("server-key.pem"),
    });
    if let Some(authority) = clients {
        settings["ca_file"] = json!(certificates.path(authority));
        settings["verify_incoming_https"] = json!(true);
    }
    let consul = Consul::start_with(settings).await;
    consul.register("n1", "web", "w1", 80, json!({})).await;
    consul
}

fn certificates() -> (TempDir, Certificates) {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::new(folder.path());
    (folder, certificates)
}

/// An agent with these lines in `[consul]`.
fn agent(address: &str, lines: &str) -> Agent {
    let folder = Folder::new();
    let config = folder.write("pickd.toml", &format!("[consul]\naddress = \"{address}\"\n{lines}\n"));
    Agent::run(["--config", config.to_str().unwrap()])
}

fn last_error(agent: &Agent) -> Option<String> {
    let source = agent.get("/readyz").json()["sources"][0].clone();
    source["last_error"].as_str().map(str::to_owned)
}

fn until_error(agent: &Agent, words: &[&str]) {
    let found = until(LATER, "an error", || last_error(agent));
    for word in words {
        assert!(found.contains(word), "{word:?} in {found}");
    }
    assert_eq!(agent.get("/pick/web").json()["code"], "not_synced");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_self_signed_certificate_is_trusted_if_it_is_in_the_ca_file() {
    let (folder, certificates) = certificates();
    // `req -x509` alone makes a CA certificate, which webpki refuses as one of a server.
    certificates.self_signed("server", &["-addext", "subjectAltName=IP:127.0.0.1,DNS:consul.example"]);
    certificates.self_signed("other", &["-addext", "subjectAltName=IP:127.0.0.1"]);
    let consul = consul(&certificates, None).await;
    let address = consul.https_address();
    let own = format!("ca_file = {:?}", certificates.path("server.pem"));
    until_picked(&agent(&address, &own).ready(), "web", &["w1@n1"], SOON);

    // A folder has it, among other files.
    std::fs::create_dir(folder.path().join("cas")).unwrap();
    for (from, to) in [
        ("other.pem", "a.crt"),
        ("server.pem", "b.pem"),
        ("server-key.pem", "key.pem"),
    ] {
        std::fs::copy(folder.path().join(from), folder.path().join("cas").join(to)).unwrap();
    }
    let whole = format!("ca_path = {:?}", certificates.path("cas"));
    until_picked(&agent(&address, &whole).ready(), "web", &["w1@n1"], SOON);

    // Another certificate of the same kind, and no certificate at all.
    let other = format!("ca_file = {:?}", certificates.path("other.pem"));
    for lines in [other.as_str(), ""] {
        let advice = "put this very certificate into ca_file";
        until_error(&agent(&address, lines), &["CaUsedAsEndEntity", advice]);
    }
    // It is trusted for its own names alone.
    let named = |name: &str| agent(&address, &format!("{own}\ntls_server_name = \"{name}\""));
    until_picked(&named("consul.example").ready(), "web", &["w1@n1"], SOON);
    until_error(&named("other.example"), &["not valid for name \"other.example\""]);
    until_error(&named("127.0.0.2"), &["not valid for name"]);
    // Unless nothing is verified, which is logged.
    let unverified = agent(&address, "tls_verify = false").ready();
    until_picked(&unverified, "web", &["w1@n1"], SOON);
    unverified
        .program
        .wait_for_log("the certificate of the server is not verified", |line| {
            line["level"] == "WARN"
        });
}

/// What the advice says is true: with `CA:FALSE` a self-signed certificate is trusted by webpki.
#[tokio::test(flavor = "multi_thread")]
async fn a_self_signed_certificate_that_is_no_ca_is_trusted() {
    let (_folder, certificates) = certificates();
    let options = [
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
    ];
    certificates.self_signed("server", &options);
    let consul = consul(&certificates, None).await;
    let own = format!("ca_file = {:?}", certificates.path("server.pem"));
    until_picked(&agent(&consul.https_address(), &own).ready(), "web", &["w1@n1"], SOON);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_about_a_certificate_says_what_to_do() {
    let leaf = "basicConstraints=CA:FALSE\nsubjectAltName=";
    for (what, extensions, days, words) in [
        (
            "another name",
            format!("{leaf}DNS:server.dc1.consul"),
            2,
            ["not valid for name \"127.0.0.1\"", "as tls_server_name"],
        ),
        (
            "no name",
            "basicConstraints=CA:FALSE".to_owned(),
            2,
            ["not valid for", "has no subjectAltName"],
        ),
        (
            "expired",
            format!("{leaf}IP:127.0.0.1"),
            -1,
            ["expired", "has expired: renew it"],
        ),
        (
            "another purpose",
            format!("{leaf}IP:127.0.0.1\nextendedKeyUsage=clientAuth"),
            2,
            [
                "certificate does not allow extended key usage for server authentication",
                "",
            ],
        ),
    ] {
        let (_folder, certificates) = certificates();
        certificates.authority("ca");
        certificates.issued("server", "ca", &extensions, days);
        let consul = consul(&certificates, None).await;
        let ca = format!("ca_file = {:?}", certificates.path("ca.pem"));
        let refused = agent(&consul.https_address(), &ca);
        eprintln!("{what}");
        until_error(&refused, &words);
        if what == "another name" {
            let named = format!("{ca}\ntls_server_name = \"server.dc1.consul\"");
            until_picked(&agent(&consul.https_address(), &named).ready(), "web", &["w1@n1"], SOON);
            // The variable does the same.
            let mut command = pickd();
            command
                .args(["run", "--listen", "127.0.0.1:0", "--consul", &consul.https_address()])
                .env("CONSUL_CACERT", certificates.path("ca.pem"))
                .env("CONSUL_TLS_SERVER_NAME", "server.dc1.consul");
            until_picked(&Agent::start(&mut command).ready(), "web", &["w1@n1"], SOON);
            let stranger = agent(&consul.https_address(), "");
            until_error(&stranger, &["UnknownIssuer", "put the CA's certificate into ca_file"]);
            // The other port of the same server speaks plain HTTP.
            let plain = consul.address().replace("http:", "https:");
            until_error(&agent(&plain, &ca), &["does not speak TLS at this port"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_replaced_are_used_without_a_restart() {
    let (_folder, certificates) = certificates();
    for authority in ["old-ca", "new-ca", "ca"] {
        certificates.authority(authority);
    }
    for age in ["old", "new"] {
        let authority = format!("{age}-ca");
        certificates.issued(&format!("{age}-server"), &authority, FOR_LOOPBACK, 2);
        certificates.issued(&format!("{age}-client"), &authority, "extendedKeyUsage=clientAuth", 2);
    }
    let replace = |age: &str, names: &[&str]| {
        for name in names {
            certificates.replace(name, &format!("{age}-{name}"));
        }
    };
    replace("old", &["ca", "server", "client"]);
    std::fs::copy(certificates.path("old-ca.pem"), certificates.path("clients.pem")).unwrap();
    let mut consul = consul(&certificates, Some("clients.pem")).await;
    let lines = format!(
        "ca_file = {:?}\ncert_file = {:?}\nkey_file = {:?}",
        certificates.path("ca.pem"),
        certificates.path("client.pem"),
        certificates.path("client-key.pem")
    );
    let agent = agent(&consul.https_address(), &lines).ready();
    until_picked(&agent, "web", &["w1@n1"], SOON);

    // The server gets a certificate of another authority, and trusts that authority alone.
    let rotate_server = |consul: &mut Consul, age: &str| {
        consul.kill();
        replace(age, &["server"]);
        std::fs::copy(
            certificates.path(&format!("{age}-ca.pem")),
            certificates.path("clients.pem"),
        )
        .unwrap();
    };
    rotate_server(&mut consul, "new");
    consul.restart().await;
    until(LATER, "the new certificate is not trusted", || {
        last_error(&agent)?.contains("UnknownIssuer").then_some(())
    });
    assert_eq!(ids(&agent, "web"), ["w1@n1"]);

    // Only the certificate is there yet: the old pair stays in use.
    std::fs::copy(certificates.path("new-client.pem"), certificates.path("client.pem")).unwrap();
    agent
        .program
        .wait_for_log("TLS files cannot be used, keeping the previous ones", |line| {
            line["error"].as_str().is_some_and(|error| error.contains("client.pem"))
        });
    replace("new", &["ca", "client"]);
    consul.register("n1", "web", "w2", 81, json!({})).await;
    until_picked(&agent, "web", &["w1@n1", "w2@n1"], LATER);

    // The same again, where the files are replaced while all is well.
    replace("old", &["ca", "client"]);
    rotate_server(&mut consul, "old");
    consul.restart().await;
    consul.register("n1", "web", "w3", 82, json!({})).await;
    until_picked(&agent, "web", &["w1@n1", "w2@n1", "w3@n1"], LATER);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_wants_a_client_certificate_says_so() {
    let (_folder, certificates) = certificates();
    certificates.authority("ca");
    certificates.authority("other-ca");
    certificates.issued("server", "ca", FOR_LOOPBACK, 2);
    certificates.issued("client", "ca", "extendedKeyUsage=clientAuth", 2);
    certificates.issued("stranger", "other-ca", "extendedKeyUsage=clientAuth", 2);
    let consul = consul(&certificates, Some("ca.pem")).await;
    let ca = format!("ca_file = {:?}", certificates.path("ca.pem"));
    let with = |name: &str| {
        let (certificate, key) = (format!("{name}.pem"), format!("{name}-key.pem"));
        let (certificate, key) = (certificates.path(&certificate), certificates.path(&key));
        agent(
            &consul.https_address(),
            &format!("{ca}\ncert_file = {certificate:?}\nkey_file = {key:?}"),
        )
    };
    until_picked(&with("client").ready(), "web", &["w1@n1"], SOON);
    until_error(&agent(&consul.https_address(), &ca), &["client certificate"]);
    until_error(
        &with("stranger"),
        &["the server does not accept the client certificate"],
    );
}
