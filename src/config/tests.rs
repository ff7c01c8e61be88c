use std::path::Path;
use std::time::Duration;

use super::*;
use crate::balancer::{Choices, LoadBalancerConfig, LoadBalancingStrategy};
use crate::discovery::consul;
use crate::http_client::Tls;

pub(super) fn config_sources(environment: &[(&str, &str)], flags: Flags) -> ConfigSources {
    let pairs = environment
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    ConfigSources {
        flags,
        environment: pairs.collect(),
        file: None,
    }
}

pub(super) fn with(text: &str, environment: &[(&str, &str)], flags: Flags) -> Result<Config, ConfigError> {
    Config::parse(
        Path::new("/etc/pickd/pickd.toml"),
        text.as_bytes(),
        &config_sources(environment, flags),
    )
}

pub(super) fn read(text: &str) -> Config {
    with(text, &[], Flags::default()).unwrap()
}

/// Each refusal without its excerpt, and the file named `p.toml`.
pub(super) fn refused(text: &str) -> Vec<String> {
    match Config::parse(Path::new("p.toml"), text.as_bytes(), &ConfigSources::default()) {
        Err(ConfigError::Refused(refusals)) => refusals
            .iter()
            .map(|refusal| refusal.to_string().lines().next().unwrap().to_owned())
            .collect(),
        other => panic!("not refused: {other:?}"),
    }
}

#[track_caller]
pub(super) fn refused_once(text: &str) -> String {
    let mut refusals = refused(text);
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    refusals.remove(0)
}

pub(super) fn consul(config: &Config) -> &consul::ConsulSettings {
    config
        .sources
        .iter()
        .find_map(|source| match source {
            SourceConfig::Consul(settings) => Some(&**settings),
            SourceConfig::Etcd(_) | SourceConfig::File(_) => None,
        })
        .unwrap()
}

pub(super) fn consul_flag(address: &str) -> Flags {
    Flags {
        consul: Some(address.parse().unwrap()),
        ..Flags::default()
    }
}

#[test]
fn an_empty_consul_table_gets_every_default() {
    let config = read("[consul]");
    assert_eq!(config.api.listen, [listen("127.0.0.1:7425").unwrap()]);
    assert_eq!(config.api.ready_timeout, Duration::from_secs(30));
    assert!(config.api.allowed_hosts.is_empty());
    assert_eq!(config.services.defaults, LoadBalancerConfig::default());
    assert!(config.services.services.is_empty());
    let settings = consul::ConsulSettings::new("http://127.0.0.1:8500");
    assert_eq!(config.sources, [SourceConfig::Consul(Box::new(settings))]);
}

#[test]
fn every_key_is_read() {
    let config = read(
        r#"
        [api]
        listen = ["localhost:80", "[::1]:0", "[::1]:0"]
        allowed_hosts = ["Pickd.local"]
        ready_timeout = 5

        [file]
        path = "services.toml"
        required = false
        service = "node"

        [consul]
        address = "consul.local:8501"
        services = ["user-*", "orders"]
        exclude = []
        token_file = "secrets/token"
        datacenter = "dc-1"
        namespace = "team-a"
        partition = "blue"
        filter = "web in Service.Tags"
        kinds = ["", "api-gateway"]
        tagged_address = "wan"
        wait = "1m"
        max_watches = 8
        refresh = "1h"
        max_stale = "1500ms"
        hold = 0
        required = false
        ca_file = "/ca.pem"
        cert_file = "cert.pem"
        key_file = "key.pem"
        tls_server_name = "server.dc-1.consul"
        tls_verify = false

        [defaults]
        strategy = "weighted_round_robin"
        degraded_factor = 1
        choices = "all"
        lease_ttl = "90s"
        max_leases = 5000

        [services.user-service]
        strategy = "consistent_hash"
        virtual_nodes = 200
        hash_balance_factor = 1.25

        [services."a.b"]
        choices = 3
        lease_ttl = 1.5
        max_leases = 10
        "#,
    );
    assert_eq!(config.api.listen.len(), 3);
    assert_eq!(config.api.listen[0], listen("127.0.0.1:80").unwrap());
    assert_eq!(config.api.allowed_hosts, ["pickd.local"]);
    assert_eq!(config.api.ready_timeout, Duration::from_secs(5));
    let file = FileConfig {
        path: "/etc/pickd/services.toml".into(),
        required: false,
        service: Some("node".parse().unwrap()),
    };
    let mut settings = consul::ConsulSettings::new("http://consul.local:8501");
    settings.services = consul::Names::new::<&str, &str>(&["user-*", "orders"], &[]).unwrap();
    settings.token = Some(consul::Token::File("/etc/pickd/secrets/token".into()));
    settings.tls = Tls {
        ca_file: Some("/ca.pem".into()),
        identity: Some(("/etc/pickd/cert.pem".into(), "/etc/pickd/key.pem".into())),
        server_name: Some("server.dc-1.consul".to_owned()),
        unverified: true,
        ..Tls::default()
    };
    settings.datacenter = Some("dc-1".to_owned());
    settings.namespace = Some("team-a".to_owned());
    settings.partition = Some("blue".to_owned());
    settings.filter = Some("web in Service.Tags".to_owned());
    settings.kinds = vec![String::new(), "api-gateway".to_owned()];
    settings.tagged_address = Some("wan".to_owned());
    settings.wait = Duration::from_secs(60);
    settings.max_watches = 8;
    settings.refresh = Duration::from_secs(3600);
    settings.max_stale = Duration::from_millis(1500);
    settings.hold = Duration::ZERO;
    settings.required = false;
    // In the order of the file.
    assert_eq!(
        config.sources,
        [SourceConfig::File(file), SourceConfig::Consul(Box::new(settings))]
    );
    let defaults = LoadBalancerConfig::new(LoadBalancingStrategy::WeightedRoundRobin)
        .with_degraded_factor(1.0)
        .unwrap()
        .with_choices(Choices::All)
        .with_lease_ttl(Duration::from_secs(90))
        .and_then(|config| config.with_max_leases(5_000))
        .unwrap();
    assert_eq!(config.services.defaults, defaults);
    assert_eq!(
        *config.services.of(&"user-service".parse().unwrap()),
        defaults
            .clone()
            .with_strategy(LoadBalancingStrategy::ConsistentHash)
            .with_virtual_nodes(200)
            .unwrap()
            .with_hash_balance_factor(1.25)
            .unwrap()
    );
    assert_eq!(
        *config.services.of(&"a.b".parse().unwrap()),
        defaults
            .clone()
            .with_choices(Choices::Random(3))
            .with_lease_ttl(Duration::from_millis(1_500))
            .and_then(|config| config.with_max_leases(10))
            .unwrap()
    );
    assert_eq!(*config.services.of(&"other".parse().unwrap()), defaults);
}

#[test]
fn a_refusal_shows_the_line_and_marks_the_value() {
    let error = Config::parse(
        Path::new("p.toml"),
        b"[consul]\nwait = \"55x\"\n",
        &ConfigSources::default(),
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "p.toml:2:8: consul.wait \"55x\": expected a duration such as \"250ms\", \"30s\", \"5m\" or \"1h\", \
         or seconds as a number\n  |\n2 | wait = \"55x\"\n  |        ^^^^^"
    );
}

#[test]
fn an_unknown_key_is_refused_where_it_stands() {
    for (text, place, name) in [
        (
            "[consul]\nadress = \"a\"",
            "p.toml:2:1: ",
            "`adress`, expected one of `address`",
        ),
        (
            "[api]\nlisten = []\nadmin_token = \"\"",
            "p.toml:3:1: ",
            "`admin_token`",
        ),
        (
            "[etcd]\nendpoint = \"a:1\"",
            "p.toml:2:1: ",
            "`endpoint`, expected one of `endpoints`",
        ),
        ("[state]\ndirectory = \"\"", "p.toml:1:2: ", "`state`"),
        ("[alerts]", "p.toml:1:2: ", "`alerts`"),
        ("[file]\npath = \"a\"\nwatch = true", "p.toml:3:1: ", "`watch`"),
        ("[defaults]\nretry_limit = 0.2", "p.toml:2:1: ", "`retry_limit`"),
        (
            "[services.a]\nsticky_session = true",
            "p.toml:2:1: ",
            "`sticky_session`",
        ),
        ("listen = 1", "p.toml:1:1: ", "`listen`"),
    ] {
        let refusal = refused_once(text);
        assert!(
            refusal.starts_with(&format!("{place}unknown field ")) && refusal.contains(name),
            "{text}: {refusal}"
        );
    }
}

#[test]
fn what_is_not_toml_is_refused_where_it_breaks() {
    for (text, place) in [
        ("[consul\n", "p.toml:1:8: "),
        ("[consul]\n\nwait = ", "p.toml:3:8: "),
        ("[consul]\nwait = 1\nwait = 2", "p.toml:3:1: "),
        ("[consul]\n[consul]", "p.toml:2:2: "),
    ] {
        let refusal = refused_once(text);
        assert!(refusal.starts_with(place), "{text:?}: {refusal}");
    }
}

#[test]
fn a_value_of_the_wrong_type_is_refused_where_it_stands() {
    for (text, refusal) in [
        ("consul = 3", "p.toml:1:10: invalid type: integer `3`, expected a table"),
        (
            "[consul]\nrequired = \"yes\"",
            "p.toml:2:12: invalid type: string \"yes\", expected a boolean",
        ),
        (
            "[consul]\nservices = \"*\"",
            "p.toml:2:12: invalid type: string \"*\", expected a list",
        ),
        (
            "[consul]\nmax_watches = 1.5",
            "p.toml:2:15: invalid type: floating point `1.5`, expected a whole number",
        ),
        ("[file]\n", "p.toml:1:1: missing field `path`"),
    ] {
        assert_eq!(refused_once(text), refusal, "{text}");
    }
}

#[test]
fn a_file_that_is_not_text_is_refused_at_the_first_bad_byte() {
    let error = Config::parse(Path::new("p.toml"), b"[consul]\na\xff", &ConfigSources::default()).unwrap_err();
    assert!(error.to_string().starts_with("p.toml:2:2: not UTF-8"), "{error}");
}

#[test]
fn a_byte_order_mark_is_not_part_of_the_text() {
    assert_eq!(read("\u{feff}[consul]"), read("[consul]"));
    assert!(refused_once("\u{feff}x = 1").starts_with("p.toml:1:1: "));
}

#[test]
fn every_wrong_setting_is_told_in_the_order_of_the_file() {
    let text =
        "[defaults]\nvirtual_nodes = 0\n[services.b]\nchoices = 1\n[services.a]\nchoices = 0\n[api]\nlisten = []";
    let places: Vec<_> = refused(text).iter().map(|refusal| refusal[..10].to_owned()).collect();
    assert_eq!(places, ["p.toml:2:1", "p.toml:4:1", "p.toml:6:1", "p.toml:8:1"]);
}

#[test]
fn without_a_source_it_says_what_to_do() {
    for text in ["", "[api]\nlisten = [\"127.0.0.1:1\"]"] {
        let error = with(text, &[("CONSUL_HTTP_ADDR", "127.0.0.1:8500")], Flags::default()).unwrap_err();
        assert!(matches!(error, ConfigError::NoSource));
        for flag in ["--consul", "--etcd", "--file"] {
            assert!(error.to_string().contains(flag));
        }
    }
    assert!(matches!(
        Config::load(&ConfigSources::default()),
        Err(ConfigError::NoSource)
    ));
}

#[test]
fn flags_beat_the_environment_then_the_file_then_the_defaults() {
    let file = "[consul]\naddress = \"http://file:1\"";
    let variables = [("CONSUL_HTTP_ADDR", "environment:2")];
    let address = |text, environment: &[_], flags| {
        let config = with(text, environment, flags).unwrap();
        consul(&config).address.clone()
    };
    assert_eq!(address(file, &variables, consul_flag("flag:3")), "http://flag:3");
    assert_eq!(address(file, &variables, Flags::default()), "http://environment:2");
    assert_eq!(address(file, &[], Flags::default()), "http://file:1");
    assert_eq!(address("[consul]", &[], Flags::default()), "http://127.0.0.1:8500");
    assert_eq!(address("", &variables, consul_flag("flag:3")), "http://flag:3");
    assert_eq!(
        address(file, &[("CONSUL_HTTP_ADDR", "")], Flags::default()),
        "http://file:1"
    );
}

#[test]
fn flags_replace_lists_and_set_defaults() {
    let text = "[api]\nlisten = [\"127.0.0.1:1\"]\n[consul]\nservices = [\"a\"]\n[file]\npath = \"a.toml\"\nrequired = false\n\
                [services.s]\nstrategy = \"random\"";
    let flags = Flags {
        listen: vec![listen("127.0.0.1:2").unwrap(), listen("127.0.0.1:2").unwrap()],
        consul: None,
        consul_services: vec!["b-*".to_owned()],
        etcd: Vec::new(),
        etcd_prefixes: Vec::new(),
        file: Some("b.toml".into()),
        strategy: Some(LoadBalancingStrategy::LeastConnections),
    };
    let config = with(text, &[], flags).unwrap();
    assert_eq!(config.api.listen, [listen("127.0.0.1:2").unwrap()]);
    assert_eq!(
        consul(&config).services,
        consul::Names::new(&["b-*"], &["consul"]).unwrap()
    );
    let file = FileConfig {
        path: "b.toml".into(),
        required: false,
        service: None,
    };
    assert_eq!(config.sources[1], SourceConfig::File(file));
    assert_eq!(
        config.services.defaults.strategy(),
        LoadBalancingStrategy::LeastConnections
    );
    assert_eq!(
        config.services.of(&"s".parse().unwrap()).strategy(),
        LoadBalancingStrategy::Random
    );
}

#[test]
fn sources_of_flags_come_consul_first() {
    let flags = Flags {
        file: Some("a.toml".into()),
        ..consul_flag("a:1")
    };
    let config = with("", &[], flags).unwrap();
    assert!(matches!(
        config.sources.as_slice(),
        [SourceConfig::Consul(_), SourceConfig::File(_)]
    ));
}

#[test]
fn a_reload_can_tell_what_changed() {
    let one = read("[consul]\nwait = \"60s\" # a minute");
    assert_eq!(one, read("[consul]\nwait = \"1m\""));
    assert_ne!(one, read("[consul]\nwait = \"2m\""));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let config_sources = ConfigSources {
        file: Some("/nowhere/pickd.toml".into()),
        ..ConfigSources::default()
    };
    let error = Config::load(&config_sources).unwrap_err();
    assert!(
        error.to_string().starts_with("/nowhere/pickd.toml: No such file"),
        "{error}"
    );
}

#[test]
fn relative_paths_start_at_the_file_that_names_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pickd.toml");
    std::fs::write(&file, "[file]\npath = \"services.toml\"").unwrap();
    let config = Config::load(&ConfigSources {
        file: Some(file),
        ..ConfigSources::default()
    })
    .unwrap();
    let expected = FileConfig {
        path: folder.path().join("services.toml"),
        required: true,
        service: None,
    };
    assert_eq!(config.sources, [SourceConfig::File(expected)]);
}
