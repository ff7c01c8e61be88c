use super::*;
use crate::balancer::{Choices, LoadBalancerConfig};

fn layers(environment: &[(&str, &str)], overrides: Overrides) -> Layers {
    let pairs = environment
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Layers {
        overrides,
        environment: pairs.collect(),
        file: None,
    }
}

pub(super) fn with(text: &str, environment: &[(&str, &str)], overrides: Overrides) -> Result<Config, ConfigError> {
    Config::parse(
        Path::new("/etc/pickd/pickd.toml"),
        text.as_bytes(),
        &layers(environment, overrides),
    )
}

pub(super) fn read(text: &str) -> Config {
    with(text, &[], Overrides::default()).unwrap()
}

/// Each refusal without its excerpt, and the file named `p.toml`.
pub(super) fn refused(text: &str) -> Vec<String> {
    match Config::parse(Path::new("p.toml"), text.as_bytes(), &Layers::default()) {
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

fn consul(config: &Config) -> &consul::Settings {
    config
        .sources
        .iter()
        .find_map(|source| match source {
            SourceConfig::Consul(settings) => Some(&**settings),
            SourceConfig::Etcd(_) | SourceConfig::File(_) => None,
        })
        .unwrap()
}

fn consul_flag(address: &str) -> Overrides {
    Overrides {
        consul: Some(address.parse().unwrap()),
        ..Overrides::default()
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
    let settings = consul::Settings::new("http://127.0.0.1:8500");
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

        [consul]
        address = "consul.local:8501"
        services = ["user-*", "orders"]
        exclude = []
        token_file = "secrets/token"
        datacenter = "dc-1"
        wait = "1m"
        max_watches = 8
        refresh = "1h"
        max_stale = "1500ms"
        required = false
        ca_file = "/ca.pem"
        cert_file = "cert.pem"
        key_file = "key.pem"

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
    };
    let mut settings = consul::Settings::new("http://consul.local:8501");
    settings.services = consul::Names::new::<&str, &str>(&["user-*", "orders"], &[]).unwrap();
    settings.token = Some(consul::Token::File("/etc/pickd/secrets/token".into()));
    settings.tls = Tls {
        ca_file: Some("/ca.pem".into()),
        identity: Some(("/etc/pickd/cert.pem".into(), "/etc/pickd/key.pem".into())),
    };
    settings.datacenter = Some("dc-1".to_owned());
    settings.wait = Duration::from_secs(60);
    settings.max_watches = 8;
    settings.refresh = Duration::from_secs(3600);
    settings.max_stale = Duration::from_millis(1500);
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
    let error = Config::parse(Path::new("p.toml"), b"[consul]\nwait = \"55x\"\n", &Layers::default()).unwrap_err();
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
        ("[defaults]\nretry_budget = 0.2", "p.toml:2:1: ", "`retry_budget`"),
        (
            "[services.a]\nsticky_sessions = true",
            "p.toml:2:1: ",
            "`sticky_sessions`",
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
    let error = Config::parse(Path::new("p.toml"), b"[consul]\na\xff", &Layers::default()).unwrap_err();
    assert!(error.to_string().starts_with("p.toml:2:2: not UTF-8"), "{error}");
}

#[test]
fn a_byte_order_mark_is_not_part_of_the_text() {
    assert_eq!(read("\u{feff}[consul]"), read("[consul]"));
    assert!(refused_once("\u{feff}x = 1").starts_with("p.toml:1:1: "));
}

#[test]
fn settings_of_the_api_are_checked() {
    for (text, refusal) in [
        (
            "[api]\nlisten = []",
            "p.toml:2:10: api.listen: expected at least one address",
        ),
        (
            "[api]\nlisten = [\n  \"127.0.0.1:1\",\n  \":7425\",\n]",
            "p.toml:4:3: api.listen \":7425\": expected \"ip:port\" or \"localhost:port\", such as \"127.0.0.1:7425\" \
             or \"[::]:7425\", or \"unix:/path/to/socket\"",
        ),
        (
            "[api]\nlisten = [\"unix:pickd.sock\"]",
            "p.toml:2:11: api.listen \"unix:pickd.sock\": expected \"unix:/path/to/socket\", an absolute path of at most 90 \
             bytes",
        ),
        (
            "[api]\nlisten = [\"unix:/run/p\", \"unix:///run/p\"]",
            "p.toml:2:26: api.listen: unix:/run/p is listed twice",
        ),
        (
            "[api]\nlisten = [\"unix:/p\"]\nsocket_mode = \"0880\"",
            "p.toml:3:15: api.socket_mode \"0880\": expected permissions in octal, such as \"0660\"",
        ),
        (
            "[api]\nlisten = [\"unix:/p\"]\nsocket_mode = \"4660\"",
            "p.toml:3:15: api.socket_mode \"4660\": expected permissions in octal, such as \"0660\"",
        ),
        (
            "[api]\nlisten = [\"unix:/p\"]\nsocket_group = \"a b\"",
            "p.toml:3:16: api.socket_group \"a b\": expected a group's name or number",
        ),
        (
            "[api]\nsocket_mode = \"0600\"",
            "p.toml:2:15: there is no Unix socket in api.listen that this could be for",
        ),
        (
            "[api]\nsocket_group = \"ops\"",
            "p.toml:2:16: there is no Unix socket in api.listen that this could be for",
        ),
        (
            "[api]\nlisten = [\"127.0.0.1:1\", \"localhost:1\"]",
            "p.toml:2:26: api.listen: 127.0.0.1:1 is listed twice",
        ),
        (
            "[api]\nallowed_hosts = [\"a:80\"]",
            "p.toml:2:18: api.allowed_hosts: host \"a:80\": expected an IP address or a host name, without a port",
        ),
        (
            "[metrics]\ninstance_series = -1",
            "p.toml:2:19: metrics.instance_series -1: expected 0 (off) to 100000",
        ),
        (
            "[api]\nready_timeout = \"25h\"",
            "p.toml:2:17: api.ready_timeout \"25h\": expected 0s to 24h",
        ),
    ] {
        assert_eq!(refused_once(text), refusal, "{text}");
    }
}

#[test]
fn settings_of_consul_are_checked() {
    for (text, refusal) in [
        (
            "[consul]\naddress = \"consul\"",
            "p.toml:2:11: consul.address \"consul\": expected \"http://host:port\", \"https://host:port\", \
             \"host:port\" or \"unix:///path/to/socket\"",
        ),
        (
            "[consul]\naddress = \"http://a:b@c:1\"",
            "p.toml:2:11: consul.address a user and password do not belong in the address: set CONSUL_HTTP_AUTH",
        ),
        (
            "[consul]\nservices = []",
            "p.toml:2:12: consul.services: expected at least one name or glob, such as \"*\"",
        ),
        (
            "[consul]\nservices = [\"a\", \"b[\"]",
            "p.toml:2:18: consul.services \"b[\": unclosed character class; missing ']'",
        ),
        (
            "[consul]\nexclude = [\"\"]",
            "p.toml:2:12: consul.exclude \"\": expected a service's name or a glob, such as \"*\" or \"user-*\"",
        ),
        (
            "[consul]\ndatacenter = \"dc 1\"",
            "p.toml:2:14: consul.datacenter \"dc 1\": expected letters, digits, - and _ only",
        ),
        ("[consul]\nwait = 0", "p.toml:2:8: consul.wait 0: expected 1s to 10m"),
        (
            "[consul]\nwait = \"11m\"",
            "p.toml:2:8: consul.wait \"11m\": expected 1s to 10m",
        ),
        (
            "[consul]\nmax_watches = 0",
            "p.toml:2:15: consul.max_watches 0: expected 1 to 64",
        ),
        (
            "[consul]\nmax_watches = 65",
            "p.toml:2:15: consul.max_watches 65: expected 1 to 64",
        ),
        (
            "[consul]\nrefresh = 0.5",
            "p.toml:2:11: consul.refresh 0.5: expected 1s to 24h",
        ),
        (
            "[consul]\nmax_stale = true",
            "p.toml:2:13: consul.max_stale true: expected a duration such as \"250ms\", \"30s\", \"5m\" or \"1h\", \
             or seconds as a number",
        ),
        (
            "[consul]\ncert_file = \"a\"",
            "p.toml:2:13: a certificate without its key: set consul.key_file (or CONSUL_CLIENT_KEY), too",
        ),
        (
            "[consul]\nkey_file = \"a\"",
            "p.toml:2:12: a key without its certificate: set consul.cert_file (or CONSUL_CLIENT_CERT), too",
        ),
        (
            "[file]\npath = \"\"",
            "p.toml:2:8: file.path \"\": expected the path of a file",
        ),
    ] {
        assert_eq!(refused_once(text), refusal, "{text}");
    }
}

#[test]
fn settings_of_services_are_checked_and_named_with_their_service() {
    let expected = "expected one of round_robin, random, least_connections, weighted_round_robin, consistent_hash, \
                    least_response_time";
    for (text, refusal) in [
        (
            "[defaults]\nstrategy = \"fastest\"",
            format!("p.toml:2:12: defaults.strategy \"fastest\": {expected}"),
        ),
        (
            "[services.a]\nstrategy = \"fastest\"",
            format!("p.toml:2:12: services.a.strategy \"fastest\": {expected}"),
        ),
        (
            "[services.a]\ndegraded_factor = 1.5",
            "p.toml:2:19: services.a.degraded_factor 1.5: expected 0.0 to 1.0".to_owned(),
        ),
        (
            "[services.a]\nvirtual_nodes = 0",
            "p.toml:2:17: services.a.virtual_nodes 0: expected 1 to 10000".to_owned(),
        ),
        (
            "[services.a]\nhash_balance_factor = 0.5",
            "p.toml:2:23: services.a.hash_balance_factor 0.5: expected 0 (off) or 1.0 to 100.0".to_owned(),
        ),
        (
            "[services.a]\nchoices = \"some\"",
            "p.toml:2:11: services.a.choices \"some\": expected \"auto\", \"all\" or a number from 2 to 32".to_owned(),
        ),
        (
            "[services.a]\nchoices = 1",
            "p.toml:2:11: services.a.choices 1: expected \"auto\", \"all\" or a number from 2 to 32".to_owned(),
        ),
        (
            "[services.a]\nlease_ttl = \"500ms\"",
            "p.toml:2:13: services.a.lease_ttl \"500ms\": expected 1s to 1h".to_owned(),
        ),
        (
            "[defaults]\nlease_ttl = 3601",
            "p.toml:2:13: defaults.lease_ttl 3601: expected 1s to 1h".to_owned(),
        ),
        (
            "[services.a]\nmax_leases = 0",
            "p.toml:2:14: services.a.max_leases 0: expected 1 to 1000000".to_owned(),
        ),
        (
            "[services.a]\nchoices = 2.5",
            "p.toml:2:11: services.a.choices 2.5: expected \"auto\", \"all\" or a number from 2 to 32".to_owned(),
        ),
        (
            "[services.\"a b\"]",
            "p.toml:1:11: service name \"a b\": expected 1 to 253 characters of A-Z a-z 0-9 . _ : @ ~ -, \
             and not \".\" or \"..\""
                .to_owned(),
        ),
    ] {
        assert_eq!(refused_once(text), refusal, "{text}");
    }
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
        let error = with(text, &[("CONSUL_HTTP_ADDR", "127.0.0.1:8500")], Overrides::default()).unwrap_err();
        assert!(matches!(error, ConfigError::NoSource));
        for flag in ["--consul", "--etcd", "--file"] {
            assert!(error.to_string().contains(flag));
        }
    }
    assert!(matches!(Config::load(&Layers::default()), Err(ConfigError::NoSource)));
}

#[test]
fn flags_beat_the_environment_then_the_file_then_the_defaults() {
    let file = "[consul]\naddress = \"http://file:1\"";
    let variables = [("CONSUL_HTTP_ADDR", "environment:2")];
    let address = |text, environment: &[_], overrides| {
        let config = with(text, environment, overrides).unwrap();
        consul(&config).address.clone()
    };
    assert_eq!(address(file, &variables, consul_flag("flag:3")), "http://flag:3");
    assert_eq!(address(file, &variables, Overrides::default()), "http://environment:2");
    assert_eq!(address(file, &[], Overrides::default()), "http://file:1");
    assert_eq!(address("[consul]", &[], Overrides::default()), "http://127.0.0.1:8500");
    assert_eq!(address("", &variables, consul_flag("flag:3")), "http://flag:3");
    assert_eq!(
        address(file, &[("CONSUL_HTTP_ADDR", "")], Overrides::default()),
        "http://file:1"
    );
}

#[test]
fn flags_replace_lists_and_set_defaults() {
    let text = "[api]\nlisten = [\"127.0.0.1:1\"]\n[consul]\nservices = [\"a\"]\n[file]\npath = \"a.toml\"\nrequired = false\n\
                [services.s]\nstrategy = \"random\"";
    let overrides = Overrides {
        listen: vec![listen("127.0.0.1:2").unwrap(), listen("127.0.0.1:2").unwrap()],
        consul: None,
        consul_services: vec!["b-*".to_owned()],
        etcd: Vec::new(),
        etcd_prefixes: Vec::new(),
        file: Some("b.toml".into()),
        strategy: Some(LoadBalancingStrategy::LeastConnections),
    };
    let config = with(text, &[], overrides).unwrap();
    assert_eq!(config.api.listen, [listen("127.0.0.1:2").unwrap()]);
    assert_eq!(
        consul(&config).services,
        consul::Names::new(&["b-*"], &["consul"]).unwrap()
    );
    let file = FileConfig {
        path: "b.toml".into(),
        required: false,
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
    let overrides = Overrides {
        file: Some("a.toml".into()),
        ..consul_flag("a:1")
    };
    let config = with("", &[], overrides).unwrap();
    assert!(matches!(
        config.sources.as_slice(),
        [SourceConfig::Consul(_), SourceConfig::File(_)]
    ));
}

#[test]
fn conventional_variables_fill_consul_and_its_secrets_are_not_shown() {
    let variables = [
        ("CONSUL_HTTP_TOKEN", "s3cret"),
        ("CONSUL_HTTP_AUTH", "me:pass:word"),
        ("CONSUL_CACERT", "ca.pem"),
        ("CONSUL_CLIENT_CERT", "cert.pem"),
        ("CONSUL_CLIENT_KEY", "key.pem"),
    ];
    let config = with("[consul]\ntoken_file = \"t\"", &variables, Overrides::default()).unwrap();
    let settings = consul(&config);
    assert_eq!(settings.token, Some(consul::Token::Value("s3cret".to_owned())));
    assert_eq!(settings.basic_auth, Some(consul::BasicAuth::new("me", "pass:word")));
    assert_eq!(
        settings.tls,
        Tls {
            ca_file: Some("ca.pem".into()),
            identity: Some(("cert.pem".into(), "key.pem".into()))
        }
    );
    let layers = layers(&variables, Overrides::default());
    for shown in [format!("{config:?}"), format!("{layers:?}")] {
        assert!(!shown.contains("s3cret") && !shown.contains("pass:word"), "{shown}");
    }

    let variables = [("CONSUL_HTTP_TOKEN", "s3cret"), ("CONSUL_HTTP_TOKEN_FILE", "token")];
    let config = with("[consul]", &variables, Overrides::default()).unwrap();
    assert_eq!(consul(&config).token, Some(consul::Token::File("token".into())));
}

#[test]
fn consul_http_ssl_asks_for_tls_unless_a_flag_says_http() {
    let address = |text, ssl, overrides| {
        with(text, &[("CONSUL_HTTP_SSL", ssl)], overrides).map(|config| consul(&config).address.clone())
    };
    let file = "[consul]\naddress = \"http://a:1\"";
    assert_eq!(address(file, "true", Overrides::default()).unwrap(), "https://a:1");
    assert_eq!(address(file, "0", Overrides::default()).unwrap(), "http://a:1");
    assert_eq!(
        address("[consul]", "1", Overrides::default()).unwrap(),
        "https://127.0.0.1:8500"
    );
    assert_eq!(address(file, "1", consul_flag("http://b:1")).unwrap(), "http://b:1");
    assert_eq!(address(file, "1", consul_flag("b:1")).unwrap(), "https://b:1");
    assert_eq!(
        address(file, "maybe", Overrides::default()).unwrap_err().to_string(),
        "CONSUL_HTTP_SSL: \"maybe\": expected true or false"
    );
}

#[test]
fn a_wrong_variable_or_flag_is_named() {
    let error = |environment: &[_], overrides| with("[consul]", environment, overrides).unwrap_err().to_string();
    assert!(
        error(&[("CONSUL_HTTP_ADDR", "consul")], Overrides::default())
            .starts_with("CONSUL_HTTP_ADDR: \"consul\": expected")
    );
    assert_eq!(
        error(&[("CONSUL_CLIENT_CERT", "a.pem")], Overrides::default()),
        "CONSUL_CLIENT_CERT: a certificate without its key: set consul.key_file (or CONSUL_CLIENT_KEY), too"
    );
    let services = Overrides {
        consul_services: vec!["a[".to_owned()],
        ..Overrides::default()
    };
    assert!(error(&[], services.clone()).starts_with("--consul-service: \"a[\": unclosed character class"));
    let error = with("[file]\npath = \"a\"", &[], services).unwrap_err().to_string();
    assert!(error.starts_with("--consul-service: there is no Consul"), "{error}");
}

#[test]
fn a_wrong_variable_of_a_source_that_is_off_is_no_matter() {
    let config = with(
        "[file]\npath = \"a\"",
        &[("CONSUL_HTTP_ADDR", "consul")],
        Overrides::default(),
    );
    assert!(config.is_ok());
}

#[test]
fn a_reload_can_tell_what_changed() {
    let one = read("[consul]\nwait = \"60s\" # a minute");
    assert_eq!(one, read("[consul]\nwait = \"1m\""));
    assert_ne!(one, read("[consul]\nwait = \"2m\""));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let layers = Layers {
        file: Some("/nowhere/pickd.toml".into()),
        ..Layers::default()
    };
    let error = Config::load(&layers).unwrap_err();
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
    let config = Config::load(&Layers {
        file: Some(file),
        ..Layers::default()
    })
    .unwrap();
    let expected = FileConfig {
        path: folder.path().join("services.toml"),
        required: true,
    };
    assert_eq!(config.sources, [SourceConfig::File(expected)]);
}

#[test]
fn sockets_and_the_admin_token_are_read() {
    let config = read(
        "[api]\nlisten = [\"127.0.0.1:1\", \"unix:/run/pickd/pickd.sock\"]\nsocket_mode = \"0600\"\n\
         socket_group = \"ops\"\nadmin_token_file = \"secrets/admin\"\n[consul]",
    );
    assert_eq!(config.api.listen[1], Listen::Unix("/run/pickd/pickd.sock".into()));
    let socket = SocketAccess {
        mode: 0o600,
        group: Some("ops".to_owned()),
    };
    assert_eq!(config.api.socket, socket);
    assert_eq!(config.api.admin_token_file, Some("/etc/pickd/secrets/admin".into()));
    let config = read("[api]\nadmin_token_file = \"\"\n[consul]");
    assert_eq!((config.api.admin_token_file, config.api.socket.mode), (None, 0o660));
}

#[test]
fn settings_of_sockets_stand_while_a_flag_listens_elsewhere() {
    let overrides = Overrides {
        listen: vec![listen("127.0.0.1:2").unwrap()],
        ..Overrides::default()
    };
    let text = "[api]\nlisten = [\"unix:/p\"]\nsocket_mode = \"0600\"\n[consul]";
    assert!(with(text, &[], overrides).is_ok());
    let overrides = Overrides {
        listen: vec![listen("unix:/p").unwrap()],
        ..Overrides::default()
    };
    assert!(with("[api]\nsocket_mode = \"0600\"\n[consul]", &[], overrides).is_ok());
}
