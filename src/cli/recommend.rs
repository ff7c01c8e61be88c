//! `pickd recommend`: which strategy fits a service. The command needs no agent.

use super::Exit;
use super::output;
use crate::balancer::{Requirements, ServiceType, recommend_strategy};

const EXAMPLES: &str = "\
Examples:
  pickd recommend                            a service without special needs
  pickd recommend database                   few, long connections
  pickd recommend general --session-affinity equal keys to the same instance";

/// Recommend a strategy for a service.
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
pub(super) struct RecommendArguments {
    /// What the service does: database, api_gateway, compute_intensive or general
    #[arg(default_value_t)]
    service_type: ServiceType,
    /// Equal keys must go to the same instance
    #[arg(long)]
    session_affinity: bool,
    /// A pick must cost as little as possible
    #[arg(long)]
    high_throughput: bool,
}

pub(super) fn execute(arguments: &RecommendArguments) -> Exit {
    let mut requirements = Requirements::new();
    requirements.session_affinity = arguments.session_affinity;
    requirements.high_throughput = arguments.high_throughput;
    let recommended = recommend_strategy(arguments.service_type, requirements);
    output::data(&format!(
        "strategy = \"{}\"    # {}",
        recommended.strategy, recommended.because
    ))
}
