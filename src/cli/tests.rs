use super::*;

/// Parses the arguments of one command.
pub(super) fn parsed<A: clap::Args>(words: &[&str]) -> Result<A, clap::Error> {
    #[derive(Parser)]
    struct Line<A: clap::Args> {
        #[command(flatten)]
        arguments: A,
    }
    Line::try_parse_from([&["pickd"], words].concat()).map(|line| line.arguments)
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn help_starts_with_examples() {
    let help = Cli::command().render_help().to_string();
    assert!(help.starts_with("Examples:\n  pickd demo "), "{help}");
    for command in Cli::command().get_subcommands_mut() {
        let help = command.render_help().to_string();
        assert!(
            help.starts_with("Examples:\n  pickd ") || help.starts_with("Example:\n  pickd "),
            "{help}"
        );
    }
}

#[test]
fn help_fits_a_terminal() {
    for command in Cli::command().get_subcommands().chain([&Cli::command()]) {
        let examples = command.get_before_help().unwrap().to_string();
        let widest = examples.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(80), "{examples}");
    }
}

#[test]
fn an_empty_variable_is_ignored() {
    let empty = |name: &OsStr| (name == "PICKD_CONSUL").then(OsString::new);
    let command = without_empty_variables(Cli::command(), &empty);
    let run = command.find_subcommand("run").unwrap();
    let variable = |id: &str| {
        run.get_arguments()
            .find(|argument| argument.get_id() == id)
            .unwrap()
            .get_env()
    };
    assert_eq!(variable("consul"), None);
    assert_eq!(variable("config"), Some(OsStr::new("PICKD_CONFIG")));
}

#[test]
fn exit_codes_are_the_documented_numbers() {
    let codes = [
        Exit::Success,
        Exit::Failed,
        Exit::Usage,
        Exit::UnknownService,
        Exit::NothingToPick,
        Exit::Unreachable,
        Exit::NotSynced,
    ];
    assert_eq!(codes.map(|exit| exit as u8), [0, 1, 2, 3, 4, 69, 75]);
}

mod with_an_agent {
    //! The commands against the real routes, over TCP.

    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::time::Duration;

    use crate::api::server::Listener;
    use crate::api::{Admin, AllowedHosts, Api, JsonBodies, Readiness};
    use crate::balancer::{
        Clock, Directory, Environment, Manual, RegistryStatus, ServiceConfigs, ServiceInstance, Source, SourceStatus,
        Sources,
    };
    use crate::cli::{Cli, Command, Exit, healthcheck, pick, services};
    use crate::metrics::Metrics;
    use clap::Parser;
    use tokio_util::sync::CancellationToken;

    /// An agent with the service `web` (one healthy instance, one critical). Its second source has
    /// not synced yet.
    struct Agent {
        url: String,
        late: Arc<SourceStatus>,
        stop: CancellationToken,
        server: Option<std::thread::JoinHandle<()>>,
    }

    impl Agent {
        fn start() -> Self {
            let manual = Manual::default();
            let clock: Arc<dyn Clock> = Arc::new(manual);
            let status = |name| Arc::new(SourceStatus::new(Source::new(name), true, Box::new(|_| true)));
            let (early, late) = (status("early"), status("late"));
            early.heard(clock.now());
            early.mark_synced();
            let tools = Environment {
                clock: clock.clone(),
                render: Arc::new(JsonBodies),
                ..Environment::default()
            };
            let sources = Sources::new(vec![early, late.clone()]);
            let directory = Directory::new(ServiceConfigs::default(), sources, tools);
            let critical = ServiceInstance::new("web/2,b", "10.0.0.2", 80)
                .unwrap()
                .with_status(RegistryStatus::Critical);
            let healthy = ServiceInstance::new("web-1", "10.0.0.1", 80).unwrap();
            directory.apply(&"web".parse().unwrap(), [healthy, critical].map(Arc::new));
            let api = Api {
                directory: Arc::new(directory),
                readiness: Arc::new(Readiness::new(clock.now(), Duration::from_secs(30))),
                metrics: Arc::new(Metrics::new([]).unwrap()),
                admin: Admin::default(),
                clock,
            };

            let stop = CancellationToken::new();
            let (sender, address) = std::sync::mpsc::channel();
            let stopped = stop.clone();
            let server = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    let listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
                    sender.send(listener.address()).unwrap();
                    listener.serve(api.router(), AllowedHosts::new([]), stopped).await;
                });
            });
            Self {
                url: format!("http://{}", address.recv().unwrap()),
                late,
                stop,
                server: Some(server),
            }
        }

        fn command(&self, words: &[&str]) -> Command {
            let line = [&["pickd"], words, &["--agent", &self.url]].concat();
            Cli::try_parse_from(line).unwrap().command
        }

        /// The output of `pick`, or its exit code.
        fn pick(&self, words: &[&str]) -> Result<String, Exit> {
            match self.command(&[&["pick"], words].concat()) {
                Command::Pick(arguments) => pick::picked(&arguments).map_err(|error| error.exit()),
                other => panic!("{other:?}"),
            }
        }

        fn services(&self, words: &[&str]) -> Result<(String, Vec<String>), Exit> {
            match self.command(&[&["services"], words].concat()) {
                Command::Services(arguments) => services::shown(&arguments).map_err(|error| error.exit()),
                other => panic!("{other:?}"),
            }
        }

        fn healthcheck(&self, words: &[&str]) -> Exit {
            match self.command(&[&["healthcheck"], words].concat()) {
                Command::Healthcheck(arguments) => healthcheck::execute(&arguments),
                other => panic!("{other:?}"),
            }
        }
    }

    impl Drop for Agent {
        fn drop(&mut self) {
            self.stop.cancel();
            if let Some(server) = self.server.take() {
                server.join().unwrap();
            }
        }
    }

    #[test]
    fn a_pick_is_an_address_or_an_exit_code() {
        let agent = Agent::start();
        assert_eq!(agent.pick(&["web"]).unwrap(), "10.0.0.1:80\n");
        assert_eq!(
            agent
                .pick(&["web", "--key", "a&b", "--n", "2", "--exclude", "web/2,b"])
                .unwrap(),
            "10.0.0.1:80\n"
        );
        let body = agent.pick(&["web", "--output", "json"]).unwrap();
        assert!(body.starts_with("{\"service\":\"web\",\"id\":\"web-1\""), "{body}");
        assert_eq!(agent.pick(&["web", "--exclude", "web-1"]), Err(Exit::NothingToPick));
        assert_eq!(agent.pick(&["web", "--tag", "v1"]), Err(Exit::NothingToPick));
        assert_eq!(agent.pick(&["api"]), Err(Exit::NotSynced));
        agent.late.mark_synced();
        assert_eq!(agent.pick(&["api"]), Err(Exit::UnknownService));
    }

    #[test]
    fn services_are_shown_with_the_sources_that_have_not_synced() {
        let agent = Agent::start();
        let (table, messages) = agent.services(&[]).unwrap();
        let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[1], ["web", "round_robin", "1", "2", "0", "0", "library"]);
        assert_eq!(messages, ["source late: not synced yet, away for 0 s"]);

        let (table, _) = agent.services(&["web"]).unwrap();
        assert!(
            table.lines().any(|line| line.starts_with("web-1    10.0.0.1:80  ")),
            "{table}"
        );
        assert!(table.contains("web/2,b  10.0.0.2:80  unhealthy"), "{table}");
        assert_eq!(agent.services(&["api"]), Err(Exit::NotSynced));
    }

    #[test]
    fn the_healthcheck_distinguishes_alive_from_ready() {
        let agent = Agent::start();
        assert_eq!(agent.healthcheck(&["--live"]), Exit::Success);
        assert_eq!(agent.healthcheck(&[]), Exit::Failed);
        agent.late.mark_synced();
        assert_eq!(agent.healthcheck(&[]), Exit::Success);
    }
}
