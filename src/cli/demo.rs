//! `pickd demo`: a small world to try the agent in.
//!
//! Five real HTTP backends of two services, a file registry in a temporary folder that names them, and an agent that watches
//! it. Each backend can be stopped with a request, which also takes it out of the registry.

use std::fmt::Write as _;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::Exit;
use super::output::{data, say};
use super::run::{self, LogArguments};
use crate::agent::{Agent, AgentError};
use crate::balancer::{Context, Directory, LoadBalancingStrategy};
use crate::config::{self, Config, Layers, Listen, Overrides};

const EXAMPLES: &str = "\
Example:
  pickd demo";

/// The port that spells PICK; the next free one is taken if it is not to be had.
const FIRST_PORT: u16 = 7425;
const LAST_PORT: u16 = 7525;

/// Start small backends and an agent that picks among them, and print what to try.
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
pub(super) struct DemoArguments {
    /// Listen here; without it, on 127.0.0.1:7425 or the next port that is free
    #[arg(long, value_name = "ADDR", value_parser = config::listen_tcp)]
    listen: Option<SocketAddr>,
    #[command(flatten)]
    log: LogArguments,
}

/// Service, id, weight, milliseconds an answer takes.
const BACKENDS: [(&str, &str, u16, u64); 5] = [
    ("user-service", "user-1", 1, 20),
    ("user-service", "user-2", 2, 5),
    ("user-service", "user-3", 1, 20),
    ("order-service", "order-1", 1, 40),
    ("order-service", "order-2", 3, 10),
];

/// A backend that runs.
#[derive(Clone, Debug)]
struct Backend {
    service: &'static str,
    id: &'static str,
    weight: u16,
    latency: Duration,
    address: SocketAddr,
}

/// The backends that run, and the file that names them.
#[derive(Debug)]
struct World {
    folder: PathBuf,
    backends: Mutex<Vec<Backend>>,
}

pub(super) fn execute(arguments: &DemoArguments) -> Exit {
    if let Err(error) = arguments.log.start() {
        say(error);
        return Exit::Usage;
    }
    let folder = std::env::temp_dir().join(format!("pickd-demo-{}", std::process::id()));
    let exit = run::in_runtime(demo(arguments, folder.clone()));
    // What is left of it if the folder could not be made, or not be removed, is a few files in the system's own attic.
    drop(std::fs::remove_dir_all(&folder));
    exit
}

async fn demo(arguments: &DemoArguments, folder: PathBuf) -> anyhow::Result<()> {
    std::fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let world = Arc::new(World {
        folder,
        backends: Mutex::default(),
    });
    let mut listeners = Vec::new();
    for (service, id, weight, milliseconds) in BACKENDS {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let latency = Duration::from_millis(milliseconds);
        let backend = Backend {
            service,
            id,
            weight,
            latency,
            address: listener.local_addr()?,
        };
        world.lock().push(backend.clone());
        listeners.push((listener, backend));
    }
    world.register()?;
    let agent = agent(arguments.listen, &world.registry()).await?;
    let directory = Arc::clone(&agent.api().directory);
    let address = agent
        .addresses()
        .into_iter()
        .next()
        .context("the agent listens nowhere")?;
    let mut backends = tokio::task::JoinSet::new();
    for (listener, backend) in listeners {
        backends.spawn(serve(listener, backend, Arc::clone(&world), Arc::clone(&directory)));
    }
    let ready = async {
        for (service, ..) in BACKENDS {
            known(&directory, service).await;
        }
        data(&world.introduction(&address));
    };
    let introduced = async {
        ready.await;
        std::future::pending::<anyhow::Result<()>>().await
    };
    tokio::select! {
        outcome = run::run(agent, Layers::default()) => outcome,
        outcome = introduced => outcome,
    }
}

/// Binds the agent where asked, or on the first free port.
async fn agent(listen: Option<SocketAddr>, registry: &Path) -> anyhow::Result<Agent> {
    let bind = async |address: SocketAddr| {
        let overrides = Overrides {
            listen: vec![address.into()],
            file: Some(registry.to_owned()),
            strategy: Some(LoadBalancingStrategy::WeightedRoundRobin),
            ..Overrides::default()
        };
        let config = Config::load(&Layers {
            overrides,
            ..Layers::default()
        })?;
        anyhow::Ok(Agent::bind(config).await?)
    };
    if let Some(address) = listen {
        return bind(address).await;
    }
    for port in FIRST_PORT..=LAST_PORT {
        match bind((Ipv4Addr::LOCALHOST, port).into()).await {
            Ok(agent) => return Ok(agent),
            Err(error) if is_taken(&error) => say(format_args!("127.0.0.1:{port} is taken, trying the next port")),
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

/// Waits until the agent has read of the service.
async fn known(directory: &Directory, service: &str) {
    while directory
        .get(service)
        .is_none_or(|balancer| balancer.instances().is_empty())
    {
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

    /// Writes the registry as an operator's tool should: a new file, moved over the old one.
    fn register(&self) -> io::Result<()> {
        let mut text = String::new();
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
                // Writing to a string does not fail.
                let _ = writeln!(text, "[[service]]\nname = \"{service}\"\n");
            }
            let (host, port) = (address.ip(), address.port());
            let _ = writeln!(
                text,
                "[[service.instance]]\nid = \"{id}\"\nhost = \"{host}\"\nport = {port}\nweight = {weight}\n"
            );
        }
        let new = self.folder.join("services.toml.new");
        std::fs::write(&new, text)?;
        std::fs::rename(new, self.registry())
    }

    fn introduction(&self, agent: &Listen) -> String {
        let heaviest = self
            .lock()
            .iter()
            .find(|backend| backend.id == "user-2")
            .map(|backend| backend.address);
        let stop = heaviest.map(|address| address.to_string()).unwrap_or_default();
        let commands = [
            (
                format!("curl {agent}/pick/user-service"),
                "who should take the next request?",
            ),
            (
                format!("curl '{agent}/pick/user-service?n=3&format=text'"),
                "and who if that one fails?",
            ),
            (format!("curl -X POST {stop}/stop"), "stop user-2"),
            (format!("curl {agent}/pick/user-service"), "the pick has moved on"),
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

/// What a backend's routes look at.
#[derive(Clone)]
struct Serving {
    backend: Backend,
    world: Arc<World>,
    directory: Arc<Directory>,
    stop: CancellationToken,
}

async fn serve(
    listener: TcpListener,
    backend: Backend,
    world: Arc<World>,
    directory: Arc<Directory>,
) -> io::Result<()> {
    let stop = CancellationToken::new();
    let serving = Serving {
        backend,
        world,
        directory,
        stop: stop.clone(),
    };
    let router = Router::new()
        .route("/", get(hello))
        .route("/stop", post(stop_backend))
        .with_state(serving);
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

async fn hello(State(serving): State<Serving>) -> String {
    time::sleep(serving.backend.latency).await;
    format!("hello from {} of {}\n", serving.backend.id, serving.backend.service)
}

/// Stops this backend, takes it out of the registry, and shows where picks go now.
async fn stop_backend(State(serving): State<Serving>) -> String {
    let Backend { service, id, .. } = serving.backend;
    serving.stop.cancel();
    serving.world.lock().retain(|backend| backend.id != id);
    if let Err(error) = serving.world.register() {
        return format!("{id} stops, but the registry could not be written: {error}\n");
    }
    let gone = async {
        let listed = |directory: &Directory| {
            directory
                .get(service)
                .is_some_and(|balancer| balancer.instances().iter().any(|(it, _)| it.id().as_str() == id))
        };
        while listed(&serving.directory) {
            time::sleep(Duration::from_millis(1)).await;
        }
    };
    let mut text = format!(
        "{id} has stopped, and the demo took it out of {}.\n",
        serving.world.registry().display()
    );
    if time::timeout(Duration::from_secs(5), gone).await.is_err() {
        text.push_str("The agent has not noticed within 5 s.\n");
    }
    let next = |_| match serving
        .directory
        .get(service)
        .map(|balancer| balancer.select_instance(&Context::new()))
    {
        Some(Ok(pick)) => pick.id().to_string(),
        Some(Err(error)) => error.to_string(),
        None => format!("service {service} is unknown"),
    };
    let picks: Vec<String> = (0..4).map(next).collect();
    let _ = writeln!(text, "The next picks of {service}: {}", picks.join(", "));
    data(&text);
    text
}
