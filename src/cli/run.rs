//! `pickd run`: runs an agent until a signal stops it.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Exit;
use super::output::{bare_message, message};
use crate::agent::{Agent, Reload, ServiceManager};
use crate::balancer::LoadBalancingStrategy;
use crate::config::{self, Config, ConfigSources, ConsulAddress, EtcdAddress, Flags, Listen};
use crate::telemetry::{self, TelemetryError};

const EXAMPLES: &str = "\
Examples:
  pickd run --consul http://127.0.0.1:8500  beside a Consul agent
  pickd run --etcd http://127.0.0.1:2379 --etcd-prefix /services/
  pickd run --file services.toml            from a file, read again on changes
  pickd run --config pickd.toml             as configured; SIGHUP reloads
  pickd run --config pickd.toml --listen 127.0.0.1:0";

const LAYERS: &str = "\
Flags override the environment, and the environment overrides the file. At least one registry is needed: --consul, --etcd, \
--file, or a [consul], [etcd] or [file] table. If Consul is configured, pickd also reads CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN, CONSUL_HTTP_TOKEN_FILE, CONSUL_HTTP_AUTH, CONSUL_HTTP_SSL, \
CONSUL_HTTP_SSL_VERIFY, CONSUL_CACERT, CONSUL_CAPATH, CONSUL_CLIENT_CERT, CONSUL_CLIENT_KEY, CONSUL_TLS_SERVER_NAME, \
CONSUL_NAMESPACE and CONSUL_PARTITION. If etcd is configured, pickd also reads ETCDCTL_ENDPOINTS, ETCDCTL_USER, \
ETCDCTL_PASSWORD, ETCDCTL_CACERT, ETCDCTL_CERT and ETCDCTL_KEY, and refuses ETCDCTL_DISCOVERY_SRV and \
ETCDCTL_INSECURE_SKIP_TLS_VERIFY. These variables alone do not configure a registry.";

/// Run an agent.
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = LAYERS)]
pub(super) struct RunArguments {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", env = "PICKD_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// Listen on this address instead of api.listen; may be repeated
    #[arg(long, value_name = "ADDR", env = "PICKD_LISTEN", hide_env_values = true, value_delimiter = ',', value_parser = config::listen)]
    listen: Vec<Listen>,
    /// Watch the Consul agent at this address
    #[arg(long, value_name = "URL", env = "PICKD_CONSUL", hide_env_values = true)]
    consul: Option<ConsulAddress>,
    /// Watch only Consul services that match this name or glob; may be repeated
    #[arg(
        long,
        value_name = "GLOB",
        env = "PICKD_CONSUL_SERVICE",
        hide_env_values = true,
        value_delimiter = ','
    )]
    consul_service: Vec<String>,
    /// Watch the etcd cluster of this member; may be repeated
    #[arg(
        long,
        value_name = "URL",
        env = "PICKD_ETCD",
        hide_env_values = true,
        value_delimiter = ','
    )]
    etcd: Vec<EtcdAddress>,
    /// Watch the etcd keys <PREFIX>/<service>/<instance>; may be repeated
    #[arg(
        long,
        value_name = "PREFIX",
        env = "PICKD_ETCD_PREFIX",
        hide_env_values = true,
        value_delimiter = ','
    )]
    etcd_prefix: Vec<String>,
    /// Watch this file registry (TOML, JSON or YAML)
    #[arg(long, value_name = "PATH", env = "PICKD_FILE", hide_env_values = true)]
    file: Option<PathBuf>,
    /// Strategy of services without a configured strategy
    #[arg(long, value_name = "NAME", env = "PICKD_STRATEGY", hide_env_values = true, value_parser = strategies())]
    strategy: Option<LoadBalancingStrategy>,
    #[command(flatten)]
    pub(crate) log: LogArguments,
}

/// The level and the format of log lines.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct LogArguments {
    /// Log level, or levels by module
    #[arg(
        long = "log",
        value_name = "FILTER",
        env = "PICKD_LOG",
        hide_env_values = true,
        default_value = "info"
    )]
    pub(crate) filter: String,
    /// Log format; auto is human on a terminal, else JSON lines
    #[arg(
        long = "log-format",
        value_name = "FORMAT",
        env = "PICKD_LOG_FORMAT",
        hide_env_values = true,
        value_enum,
        default_value_t = LogFormat::Auto
    )]
    pub(crate) format: LogFormat,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    Auto,
    Human,
    Json,
}

fn strategies() -> impl TypedValueParser<Value = LoadBalancingStrategy> {
    PossibleValuesParser::new(LoadBalancingStrategy::ALL.map(LoadBalancingStrategy::as_str))
        .try_map(|name| name.parse::<LoadBalancingStrategy>())
}

impl LogArguments {
    /// Starts logging with these settings.
    pub(super) fn start(&self) -> Result<(), TelemetryError> {
        let format = match self.format {
            LogFormat::Auto => telemetry::LogFormat::Auto,
            LogFormat::Human => telemetry::LogFormat::Human,
            LogFormat::Json => telemetry::LogFormat::Json,
        };
        telemetry::start(&self.filter, format)
    }
}

impl RunArguments {
    /// The sources of the agent's configuration: the flags, the environment and the configuration
    /// file.
    pub(crate) fn config_sources(&self) -> ConfigSources {
        ConfigSources {
            flags: Flags {
                listen: self.listen.clone(),
                consul: self.consul.clone(),
                consul_services: self.consul_service.clone(),
                etcd: self.etcd.clone(),
                etcd_prefixes: self.etcd_prefix.clone(),
                file: self.file.clone(),
                strategy: self.strategy,
            },
            environment: super::environment(),
            file: self.config.clone(),
        }
    }
}

pub(super) fn execute(arguments: &RunArguments) -> Exit {
    if let Err(error) = arguments.log.start() {
        message(error);
        return Exit::Usage;
    }
    let config_sources = arguments.config_sources();
    let config = match Config::load(&config_sources) {
        Ok(config) => config,
        Err(error) => {
            bare_message(error);
            return Exit::Usage;
        }
    };
    in_runtime(async move {
        let agent = Agent::bind(config).await?;
        run(agent, config_sources).await
    })
}

/// Runs an agent until SIGTERM or SIGINT. SIGHUP makes the agent read its configuration again.
pub(super) async fn run(agent: Agent, config_sources: ConfigSources) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let (requests, inbox) = mpsc::channel(1);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let reload = Reload {
        config_sources,
        requests: inbox,
    };
    let agent = agent.with_service_manager(ServiceManager::from_environment());
    let mut running = std::pin::pin!(agent.run(reload, stop.clone()));
    loop {
        tokio::select! {
            outcome = &mut running => return Ok(outcome?),
            _ = terminate.recv() => stop.cancel(),
            _ = interrupt.recv() => stop.cancel(),
            // While one request waits, further requests are dropped: one reload serves them all.
            _ = hangup.recv() => drop(requests.try_send(())),
        }
    }
}

/// Runs a future on a runtime of its own. Blocked threads of the runtime do not keep the process
/// alive when the future has ended.
pub(super) fn in_runtime(work: impl Future<Output = anyhow::Result<()>>) -> Exit {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            message(format_args!("cannot start threads: {error}"));
            return Exit::Failed;
        }
    };
    let outcome = runtime.block_on(work);
    runtime.shutdown_timeout(Duration::from_millis(500));
    match outcome {
        Ok(()) => Exit::Success,
        Err(error) => {
            message(format_args!("{error:#}"));
            Exit::Failed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::parsed;
    use super::*;

    #[test]
    fn flags_become_overrides() {
        let arguments: RunArguments = parsed(&[
            "--config",
            "pickd.toml",
            "--listen",
            "localhost:1,[::1]:2",
            "--listen",
            "0.0.0.0:0,unix:/run/pickd.sock",
            "--consul",
            "consul:8500",
            "--consul-service",
            "a-*",
            "--consul-service",
            "b",
            "--etcd",
            "etcd:2379,https://etcd-2:2379",
            "--etcd-prefix",
            "/services/",
            "--etcd-prefix",
            "user.rpc",
            "--file",
            "services.toml",
            "--strategy",
            "random",
        ])
        .unwrap();
        let config_sources = arguments.config_sources();
        assert_eq!(config_sources.file, Some("pickd.toml".into()));
        assert_eq!(
            config_sources.flags,
            Flags {
                listen: vec![
                    config::listen("127.0.0.1:1").unwrap(),
                    config::listen("[::1]:2").unwrap(),
                    config::listen("0.0.0.0:0").unwrap(),
                    config::listen("unix:/run/pickd.sock").unwrap(),
                ],
                consul: Some("consul:8500".parse().unwrap()),
                consul_services: vec!["a-*".to_owned(), "b".to_owned()],
                etcd: vec!["etcd:2379".parse().unwrap(), "https://etcd-2:2379".parse().unwrap()],
                etcd_prefixes: vec!["/services/".to_owned(), "user.rpc".to_owned()],
                file: Some("services.toml".into()),
                strategy: Some(LoadBalancingStrategy::Random),
            }
        );
    }

    #[test]
    fn an_invalid_flag_is_refused_with_the_valid_values() {
        for (words, expected) in [
            (["--listen", ":7425"], "localhost:port"),
            (["--listen", "unix:pickd.sock"], "absolute path"),
            (["--consul", "consul"], "http://host:port"),
            (["--etcd", "unix:///run/etcd"], "http://host:port"),
            (["--strategy", "fastest"], "least_response_time"),
            (["--log-format", "xml"], "human"),
        ] {
            let error = parsed::<RunArguments>(&words).err().unwrap();
            assert_eq!(error.exit_code(), i32::from(Exit::Usage as u8));
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
