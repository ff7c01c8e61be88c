//! The key of session tokens: that of a file, which agents share, or a random key of this process.

use std::path::Path;

use crate::balancer::SessionKey;

use super::AgentError;

/// A random key that only this process knows: its tokens end with it.
pub(super) fn new_key() -> Result<SessionKey, AgentError> {
    Ok(SessionKey::new(super::random_bits()?))
}

/// Replaces the key by that of the file, if there is one. A file without a key leaves the key as it
/// is.
pub(super) async fn read_key(key: &SessionKey, file: Option<&Path>) {
    let Some(file) = file else { return };
    match read(file).await {
        Ok(read) => key.replace(&read),
        Err(detail) => {
            tracing::warn!(file = %file.display(), detail, "the session key cannot be read, keeping the previous key");
        }
    }
}

async fn read(file: &Path) -> Result<SessionKey, String> {
    let text = tokio::fs::read_to_string(file)
        .await
        .map_err(|error| error.to_string())?;
    text.trim().parse().map_err(|error| format!("{error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_without_a_key_leaves_the_key_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, "00112233445566778899aabbccddeeff\n").unwrap();
        assert!(read(&path).await.is_ok());
        for text in [&b"canary"[..], b"", b"\xff\xff"] {
            std::fs::write(&path, text).unwrap();
            let refusal = read(&path).await.unwrap_err();
            assert!(!refusal.contains("canary"), "{refusal}");
        }
        assert!(read(&folder.path().join("none")).await.is_err());
    }
}
