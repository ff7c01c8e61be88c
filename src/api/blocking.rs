//! Work that would hold up picks runs on a thread of its own.

use super::error::ApiError;

/// Runs work that grows with the number of instances, or reads files, on a thread for blocking
/// work.
pub(super) async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ApiError::Internal)
}
