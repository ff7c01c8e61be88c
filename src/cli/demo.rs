//! `pickd demo`: a complete setup to try the agent in.
//!
//! The demo starts five real HTTP backends of two services, a file registry of them in a temporary
//! folder, and an agent that watches the registry and checks the backends. Requests to the demo
//! stop and start each backend. The agent is not told: its health checks detect the change, and a
//! backend that is back gets its full share of picks slowly.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::Body;
use axum::extract::{self, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::Exit;
use super::output::{data, message};
use super::run::{self, LogArguments};
use crate::agent::{Agent, AgentError};
use crate::balancer::{Context, Directory, HealthStatus};
use crate::config::{self, Config, ConfigSources, Flags, Listen};

const EXAMPLES: &str = "\
Example:
  pickd demo";

/// The port that spells PICK on a phone. If the port is taken, the demo uses the next free port.
const FIRST_PORT: u16 = 7425;
const LAST_PORT: u16 = 7525;

/// Start small backends and an agent that picks among them, and print commands to try.
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
pub(super) struct DemoArguments {
    /// Listen on this address [default: 127.0.0.1:7425 or the next free port]
    #[arg(long, value_name = "ADDR", value_parser = config::listen_tcp)]
    listen: Option<SocketAddr>,
    #[command(flatten)]
    log: LogArguments,
}

/// Service, id, weight, and milliseconds until the backend answers.
const BACKENDS: [(&str, &str, u16, u64); 5] = [
    ("user-service", "user-1", 1, 20),
    ("user-service", "user-2", 2, 5),
    ("user-service", "user-3", 1, 20),
    ("order-service", "order-1", 1, 40),
    ("order-service", "order-2", 3, 10),
];

/// Settings of the agent. Checks and slow start are faster than by default, because a person
/// watches the demo.
const SETTINGS: &str = r#"
[file]
path = "services.toml"

[defaults]
strategy = "weighted_round_robin"
health_check_interval = "500ms"
health_check_timeout = "250ms"
max_consecutive_failures = 1
rise = 1
slow_start = "16s"
"#;

/// A backend, running or not.
#[derive(Clone, Debug)]
struct Backend {
    service: &'static str,
    id: &'static str,
    weight: u16,
    latency: Duration,
    address: SocketAddr,
    /// Stops the backend. `None` while the backend is stopped.
    stop: Option<CancellationToken>,
}

/// The backends, and the folder with the registry and the configuration.
#[derive(Debug)]
struct World {
    folder: PathBuf,
    backends: Mutex<Vec<Backend>>,
    /// Backends that have a listener and are to be served.
    started: mpsc::UnboundedSender<(TcpListener, &'static str)>,
}

pub(super) fn execute(arguments: &DemoArguments) -> Exit {
    if let Err(error) = arguments.log.start() {
        message(error);
        return Exit::Usage;
    }
    let folder = std::env::temp_dir().join(format!("pickd-demo-{}", std::process::id()));
    let exit = run::in_runtime(demo(arguments, folder.clone()));
    // If the removal fails, a few small files remain in the temporary folder of the system.
    drop(std::fs::remove_dir_all(&folder));
    exit
}

async fn demo(arguments: &DemoArguments, folder: PathBuf) -> anyhow::Result<()> {
    std::fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let (started, mut starting) = mpsc::unbounded_channel();
    let world = Arc::new(World {
        folder,
        backends: Mutex::default(),
        started: started.clone(),
    });
    for (service, id, weight, milliseconds) in BACKENDS {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let latency = Duration::from_millis(milliseconds);
        let backend = Backend {
            service,
            id,
            weight,
            latency,
            address: listener.local_addr()?,
            stop: None,
        };
        world.lock().push(backend);
        started.send((listener, id))?;
    }
    let config = world.register()?;
    let agent = agent(arguments.listen, &config).await?;
    let directory = Arc::clone(&agent.api().directory);
    let address = agent
        .addresses()
        .into_iter()
        .next()
        .context("the agent has no listener")?;
    let controls = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let controls_at = controls.local_addr()?;
    let serving = Controls {
        world: Arc::clone(&world),
        directory: Arc::clone(&directory),
    };
    let router = Router::new()
        .route("/stop/{id}", post(stop))
        .route("/start/{id}", post(start))
        .with_state(serving);
    let mut backends = JoinSet::new();
    let introduce = async {
        for (service, ..) in BACKENDS {
            wait_until_healthy(&directory, service).await;
        }
        data(&world.introduction(&address, controls_at));
        axum::serve(controls, router).await
    };
    let serve = async {
        loop {
            tokio::select! {
                Some((listener, id)) = starting.recv() => {
                    if let Some((backend, stop)) = world.begin(id) {
                        backends.spawn(serve(listener, backend, stop));
                    }
                }
                Some(_) = backends.join_next() => {}
            }
        }
    };
    tokio::select! {
        outcome = run::run(agent, ConfigSources::default()) => outcome,
        outcome = introduce => Ok(outcome?),
        () = serve => Ok(()),
    }
}

/// Binds the agent to the given address, or to the first free port.
async fn agent(listen: Option<SocketAddr>, config: &Path) -> anyhow::Result<Agent> {
    let bind = async |address: SocketAddr| {
        let flags = Flags {
            listen: vec![address.into()],
            ..Flags::default()
        };
        let config = Config::load(&ConfigSources {
            flags,
            file: Some(config.to_owned()),
            ..ConfigSources::default()
        })?;
        anyhow::Ok(Agent::bind(config).await?)
    };
    if let Some(address) = listen {
        return bind(address).await;
    }
    for port in FIRST_PORT..=LAST_PORT {
        match bind((Ipv4Addr::LOCALHOST, port).into()).await {
            Ok(agent) => return Ok(agent),
            Err(error) if is_taken(&error) => message(format_args!("127.0.0.1:{port} is taken, trying the next port")),
            Err(error) => return Err(error),
        }
    }
    anyhow::bail!("no port from {FIRST_PORT} to {LAST_PORT} is free; choose one with --listen")
}

fn is_taken(error: &anyhow::Error) -> bool {
    match error.downcast_ref() {
        Some(AgentError::Listen { source, .. }) => source.kind() == io::ErrorKind::AddrInUse,
        _ => false,
    }
}

/// Waits until all instances of the service are healthy.
async fn wait_until_healthy(directory: &Directory, service: &str) {
    let healthy = |(_, status): &(_, HealthStatus)| *status == HealthStatus::Healthy;
    while directory.get(service).is_none_or(|balancer| {
        let instances = balancer.instances();
        instances.is_empty() || !instances.iter().all(healthy)
    }) {
        time::sleep(Duration::from_millis(5)).await;
    }
}

impl World {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Backend>> {
        self.backends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn registry(&self) -> PathBuf {
        self.folder.join("services.toml")
    }

    /// Marks a backend as running, and returns the token that stops the backend.
    fn begin(&self, id: &str) -> Option<(Backend, CancellationToken)> {
        let stop = CancellationToken::new();
        let mut backends = self.lock();
        let backend = backends.iter_mut().find(|backend| backend.id == id)?;
        backend.stop = Some(stop.clone());
        Some((backend.clone(), stop))
    }

    fn find(&self, id: &str) -> Result<Backend, String> {
        let backends = self.lock();
        let found = backends.iter().find(|backend| backend.id == id).cloned();
        found.ok_or_else(|| {
            let ids: Vec<_> = backends.iter().map(|backend| backend.id).collect();
            format!("there is no {id}; there are {}\n", ids.join(", "))
        })
    }

    /// Writes the registry and the configuration of the agent. Returns the path of the
    /// configuration.
    fn register(&self) -> io::Result<PathBuf> {
        let mut text = String::new();
        let mut settings = SETTINGS.to_owned();
        let mut last = "";
        for Backend {
            service,
            id,
            weight,
            address,
            ..
        } in &*self.lock()
        {
            if last != *service {
                last = service;
                // Writing to a string cannot fail.
                let _ = writeln!(text, "[[service]]\nname = \"{service}\"\n");
                let check = "{ type = \"http\", path = \"/healthz\" }";
                let _ = writeln!(settings, "\n[services.{service}]\nhealth_check = {check}");
            }
            let (host, port) = (address.ip(), address.port());
            let _ = writeln!(
                text,
                "[[service.instance]]\nid = \"{id}\"\nhost = \"{host}\"\nport = {port}\nweight = {weight}\n"
            );
        }
        std::fs::write(self.registry(), text)?;
        let config = self.folder.join("pickd.toml");
        std::fs::write(&config, settings)?;
        Ok(config)
    }

    fn introduction(&self, agent: &Listen, controls: SocketAddr) -> String {
        let commands = [
            (
                format!("curl {agent}/pick/user-service"),
                "which instance takes the next request?",
            ),
            (
                format!("curl '{agent}/pick/user-service?n=3&format=text'"),
                "and which instances if the first fails?",
            ),
            (
                format!("curl -X POST {controls}/stop/user-2"),
                "stop user-2: health checks detect it",
            ),
            (
                format!("curl {agent}/explain/user-service"),
                "why is user-2 not picked?",
            ),
            (
                format!("curl -X POST {controls}/start/user-2"),
                "start user-2: its share grows slowly",
            ),
        ];
        let width = commands
            .iter()
            .map(|(command, _)| command.len())
            .max()
            .unwrap_or_default();
        let lines: String = commands
            .iter()
            .map(|(command, why)| format!("  {command:width$}  # {why}\n"))
            .collect();
        let registry = self.registry();
        format!(
            "pickd demo: 5 backends of 2 services, registered in {}\n\nTry, in another terminal:\n\n{lines}\nCtrl-C ends it.",
            registry.display()
        )
    }
}

async fn serve(listener: TcpListener, backend: Backend, stop: CancellationToken) -> io::Result<()> {
    let router = Router::new()
        .route("/", get(hello))
        .route("/healthz", get(async || "well\n"))
        .with_state(backend);
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

async fn hello(State(backend): State<Backend>) -> String {
    time::sleep(backend.latency).await;
    format!("hello from {} of {}\n", backend.id, backend.service)
}

/// The state of the routes that stop and start backends.
#[derive(Clone)]
struct Controls {
    world: Arc<World>,
    directory: Arc<Directory>,
}

/// Stops a backend, waits until the agent has detected it, and shows the next picks.
async fn stop(State(controls): State<Controls>, extract::Path(id): extract::Path<String>) -> String {
    let backend = match controls.world.find(&id) {
        Ok(backend) => backend,
        Err(message) => return message,
    };
    let Some(stop) = &backend.stop else {
        return format!("{id} is already stopped\n");
    };
    stop.cancel();
    if let Some(found) = controls.world.lock().iter_mut().find(|found| found.id == id) {
        found.stop = None;
    }
    let took = controls.wait_for_status(&backend, HealthStatus::Unhealthy).await;
    let (service, took) = (backend.service, took.as_millis());
    let picks: Vec<String> = (0..4).map(|_| controls.pick(service)).collect();
    print(format!(
        "{id} has stopped; a check found out after {took} ms.\nThe next picks of {service}: {}\n",
        picks.join(", ")
    ))
}

/// Starts a backend, waits until the agent has detected it, and shows how its share of picks grows,
/// line by line.
async fn start(State(controls): State<Controls>, extract::Path(id): extract::Path<String>) -> Response {
    let backend = match controls.start(&id).await {
        Ok(backend) => backend,
        Err(message) => return message.into_response(),
    };
    let took = controls
        .wait_for_status(&backend, HealthStatus::Healthy)
        .await
        .as_millis();
    let line = move |second: u64| {
        let (controls, backend) = (controls.clone(), backend.clone());
        async move {
            if second > 16 {
                return None;
            }
            let mut text = String::new();
            if second == 0 {
                let _ = writeln!(
                    text,
                    "{} is back; a check found out after {took} ms. It starts slowly.",
                    backend.id
                );
            } else {
                time::sleep(Duration::from_secs(4)).await;
            }
            let own = (0..100).filter(|_| controls.pick(backend.service) == backend.id);
            let _ = writeln!(text, "Of 100 picks it gets {:2} after {second} s", own.count());
            Some((Ok::<_, Infallible>(print(text)), second + 4))
        }
    };
    Body::from_stream(stream::unfold(0, line)).into_response()
}

/// Prints the text in the terminal of the demo as well.
fn print(text: String) -> String {
    data(&text);
    text
}

impl Controls {
    async fn start(&self, id: &str) -> Result<Backend, String> {
        let backend = self.world.find(id)?;
        if backend.stop.is_some() {
            return Err(format!("{id} is already running\n"));
        }
        let listener = TcpListener::bind(backend.address)
            .await
            .map_err(|error| format!("{id} cannot be started again: {error}\n"))?;
        match self.world.started.send((listener, backend.id)) {
            Ok(()) => Ok(backend),
            Err(_) => Err("the demo is ending\n".to_owned()),
        }
    }

    /// Waits until the agent gives a backend this status, for at most ten seconds. Returns the time
    /// that it took.
    async fn wait_for_status(&self, backend: &Backend, status: HealthStatus) -> Duration {
        let started = time::Instant::now();
        let has_status = || {
            let balancer = self.directory.get(backend.service)?;
            let id = backend.id.parse().ok()?;
            Some(balancer.explain_instance(&id)?.status == status)
        };
        while has_status() != Some(true) && started.elapsed() < Duration::from_secs(10) {
            time::sleep(Duration::from_millis(2)).await;
        }
        started.elapsed()
    }

    fn pick(&self, service: &str) -> String {
        match self
            .directory
            .get(service)
            .map(|balancer| balancer.select_instance(&Context::new()))
        {
            Some(Ok(pick)) => pick.id().to_string(),
            Some(Err(error)) => error.to_string(),
            None => format!("service {service} is unknown"),
        }
    }
}
