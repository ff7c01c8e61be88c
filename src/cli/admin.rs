//! What the commands share that change something at an agent: its address, the admin token, and what
//! is printed.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::agent_client::{AgentArguments, AgentClient, AgentError, Change, Method};
use super::output::Output;

/// The agent to change, the right to do so, and the form of the answer.
#[derive(Debug, clap::Args)]
pub(super) struct AdminArguments {
    /// The result in a few words, or the JSON answer of the agent
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// File with the admin token, for agents on other machines
    #[arg(long, value_name = "FILE", env = "PICKD_ADMIN_TOKEN_FILE", hide_env_values = true)]
    admin_token_file: Option<PathBuf>,
    #[command(flatten)]
    pub(super) agent: AgentArguments,
}

impl AdminArguments {
    /// Sends the request, and returns the text to print.
    pub(super) fn change(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        text: impl Fn(&Value) -> String,
    ) -> Result<String, AgentError> {
        let token = self.admin_token_file.as_deref().map(read_token).transpose()?;
        let client = AgentClient::new(&self.agent)?;
        let body = client.change(&Change {
            method,
            path,
            body,
            token: token.as_deref(),
        })?;
        let answer = client.parsed(&body)?;
        Ok(match self.output {
            Output::Json => body,
            Output::Text => text(&answer),
        })
    }
}

/// The admin token in this file, without white space around it.
fn read_token(path: &Path) -> Result<String, AgentError> {
    match std::fs::read_to_string(path) {
        Ok(token) => Ok(token.trim().to_owned()),
        // The message has the name of the file, never its content.
        Err(error) => Err(AgentError::Local(format!("{}: {error}", path.display()))),
    }
}
