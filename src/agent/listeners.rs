//! The listeners of the agent: bound, served, and closed when the configuration no longer lists
//! them.

use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::api::server::{Listen, Listener, SocketAccess, set_access};
use crate::config::Config;

use super::tasks::Job;
use super::{AgentError, Running};

/// A listener that serves.
pub(super) struct ServingListener {
    /// The address as configured, which may have port 0.
    configured: Listen,
    stop: CancellationToken,
}

impl ServingListener {
    pub(super) fn stop(&self) {
        self.stop.cancel();
    }
}

pub(super) async fn bind(address: &Listen, access: &SocketAccess) -> Result<Listener, AgentError> {
    let bound = match address {
        Listen::Tcp(address) => Listener::bind(*address).await,
        Listen::Unix(path) => Listener::bind_unix(path, access).await,
    };
    bound.map_err(|source| AgentError::Listen {
        address: address.clone(),
        source,
    })
}

impl Running {
    /// Serves a bound listener.
    pub(super) fn serve(&mut self, configured: Listen, listener: Listener) {
        let stop = CancellationToken::new();
        let job = Job::Serve(listener.address());
        let listener = listener.with_peer_for(Api::checks_client);
        let work = listener.serve(self.api.clone().router(), self.hosts.clone(), stop.clone());
        self.tasks.spawn(job, stop.clone(), work);
        self.listeners.push(ServingListener { configured, stop });
    }

    /// Binds the addresses of a new configuration that are not served yet, and gives Unix sockets
    /// their new access.
    pub(super) async fn prepare_listeners(&self, config: &Config) -> Result<Vec<(Listen, Listener)>, AgentError> {
        let mut missing = config.api.listen.clone();
        for serving in &self.listeners {
            remove_one(&mut missing, &serving.configured);
        }
        let mut bound = Vec::new();
        for address in missing {
            let listener = bind(&address, &config.api.socket).await?;
            bound.push((address, listener));
        }
        if config.api.socket != self.config.api.socket {
            for serving in &self.listeners {
                if let Listen::Unix(path) = &serving.configured {
                    set_access(path, &config.api.socket).map_err(|source| AgentError::Listen {
                        address: serving.configured.clone(),
                        source,
                    })?;
                }
            }
        }
        Ok(bound)
    }

    /// Closes the listeners that a new configuration does not list, and serves the ones that were
    /// bound for it.
    pub(super) fn replace_listeners(&mut self, config: &Config, bound: Vec<(Listen, Listener)>) {
        let mut listed = config.api.listen.clone();
        self.listeners.retain(|serving| {
            let keep = remove_one(&mut listed, &serving.configured);
            if !keep {
                serving.stop();
            }
            keep
        });
        for (configured, listener) in bound {
            tracing::info!(address = %listener.address(), "listening");
            self.serve(configured, listener);
        }
    }
}

/// Removes an address once, and returns whether the list had it. A configuration may list
/// `127.0.0.1:0` several times.
fn remove_one(addresses: &mut Vec<Listen>, address: &Listen) -> bool {
    let found = addresses.iter().position(|listed| listed == address);
    found.map(|index| addresses.swap_remove(index)).is_some()
}
