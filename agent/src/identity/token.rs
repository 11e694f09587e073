//! The node's credential towards the controller.

use std::{io, path::PathBuf};

use tonic::metadata::{Ascii, MetadataValue};

/// A file with the node's token. Read anew for every use, because it may be rotated.
#[derive(Clone, Debug)]
pub struct TokenFile(PathBuf);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("read the token file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds nothing, or not one line of ASCII.
    #[error("token file {} holds no token", .0.display())]
    Invalid(PathBuf),
}

/// A token. Has no `Debug`: it is a secret.
pub struct Token(String);

impl TokenFile {
    /// Names the file; does not read it.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Reads the token.
    ///
    /// # Errors
    /// When the file cannot be read or holds no token.
    pub async fn read(&self) -> Result<Token, TokenError> {
        let text = tokio::fs::read_to_string(&self.0)
            .await
            .map_err(|source| TokenError::Read {
                path: self.0.clone(),
                source,
            })?;
        let token = text.trim();
        match !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()) {
            true => Ok(Token(token.to_owned())),
            false => Err(TokenError::Invalid(self.0.clone())),
        }
    }

    /// Reads the token as value of the metadata `authorization`.
    ///
    /// # Errors
    /// When the file cannot be read or holds no token.
    pub async fn bearer(&self) -> Result<MetadataValue<Ascii>, TokenError> {
        self.read()
            .await?
            .bearer()
            .ok_or_else(|| TokenError::Invalid(self.0.clone()))
    }
}

impl Token {
    /// The token's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The value of the metadata `authorization`, marked so that it is never logged.
    pub fn bearer(&self) -> Option<MetadataValue<Ascii>> {
        let mut value = MetadataValue::try_from(format!("Bearer {}", self.0)).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}
