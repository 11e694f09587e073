//! Join tokens: how a node without a cluster shows which node it is.
//!
//! A token is `weft-join-v1:<node>:<secret>`. The state folder holds one file per node, readable
//! by the controller alone; deleting the file ends the token's validity for new calls.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_lc_rs::constant_time;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::{TryRngCore as _, rngs::OsRng};

use crate::source::is_dns_subdomain;

/// The tokens in a state folder.
#[derive(Clone, Debug)]
pub struct JoinTokens {
    folder: PathBuf,
}

/// Why a token is not accepted, or none can be made.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It has not the form of a token.
    #[error("this is no join token (weft-join-v1:<node>:<secret>)")]
    Malformed,
    /// It is not the token of the node that it names.
    #[error(
        "the join token of node {node} is not valid; make one with \
         weft-controller join-token --state DIR --node {node}"
    )]
    Unknown {
        /// The node it names.
        node: String,
    },
    /// A node cannot have this name.
    #[error("{0:?} is no node name (lower case letters, digits, hyphens and dots)")]
    NodeName(String),
    /// A file cannot be read or written.
    #[error("token file {file}")]
    File {
        /// The file.
        file: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

const PREFIX: &str = "weft-join-v1";
const SECRET_BYTES: usize = 32;

impl JoinTokens {
    /// Uses the folder `join-tokens` of a state folder.
    pub fn new(state: &Path) -> Self {
        Self {
            folder: state.join("join-tokens"),
        }
    }

    /// Makes the token of a node, or finds the one it has.
    ///
    /// # Errors
    /// When the name is none of a node, or the file cannot be written.
    pub fn create(&self, node: &str) -> Result<String, TokenError> {
        if !is_dns_subdomain(node) {
            return Err(TokenError::NodeName(node.to_owned()));
        }
        let file = self.folder.join(node);
        let failed = |source| TokenError::File {
            file: file.clone(),
            source,
        };
        if let Some(token) = read(&file).map_err(failed)? {
            return Ok(token);
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .map_err(failed)?;
        let token = format!("{PREFIX}:{node}:{}", secret().map_err(failed)?);
        match write_new(&self.folder, &file, &token) {
            Ok(()) => Ok(token),
            // Another process was faster; its token is the one.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                read(&file).map_err(failed)?.ok_or(TokenError::Unknown {
                    node: node.to_owned(),
                })
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// The node that a token was made for.
    ///
    /// # Errors
    /// When it is not the token of the node that it names.
    pub fn verify(&self, token: &str) -> Result<Arc<str>, TokenError> {
        let mut parts = token.splitn(3, ':');
        let (Some(PREFIX), Some(node), Some(_secret)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Malformed);
        };
        if !is_dns_subdomain(node) {
            return Err(TokenError::Malformed);
        }
        let file = self.folder.join(node);
        let known = read(&file).map_err(|source| TokenError::File { file, source })?;
        let is_same = known.is_some_and(|known| {
            constant_time::verify_slices_are_equal(known.as_bytes(), token.as_bytes()).is_ok()
        });
        match is_same {
            true => Ok(node.into()),
            false => Err(TokenError::Unknown {
                node: node.to_owned(),
            }),
        }
    }
}

fn read(file: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(file) {
        Ok(text) if text.trim().is_empty() => Ok(None),
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn secret() -> io::Result<String> {
    let mut bytes = [0; SECRET_BYTES];
    OsRng.try_fill_bytes(&mut bytes).map_err(io::Error::other)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// Makes the file with all its contents or not at all, and never over another one.
fn write_new(folder: &Path, file: &Path, token: &str) -> io::Result<()> {
    let mut temporary = tempfile::Builder::new()
        .prefix(".tmp-")
        .permissions(fs::Permissions::from_mode(0o600))
        .tempfile_in(folder)?;
    writeln!(temporary, "{token}")?;
    temporary.as_file().sync_all()?;
    temporary.persist_noclobber(file)?;
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_keeps_its_token_and_tokens_are_worth_nothing_for_others() {
        let state = tempfile::tempdir().unwrap();
        let tokens = JoinTokens::new(state.path());
        let token = tokens.create("n1").unwrap();
        assert_eq!(tokens.create("n1").unwrap(), token);
        assert_eq!(&*tokens.verify(&token).unwrap(), "n1");
        let mode = fs::metadata(state.path().join("join-tokens/n1"))
            .unwrap()
            .permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        tokens.create("n2").unwrap();
        let renamed = token.replace(":n1:", ":n2:");
        for (token, expected) in [
            (renamed.as_str(), "the join token of node n2 is not valid"),
            (
                "weft-join-v1:n3:x",
                "the join token of node n3 is not valid",
            ),
            ("weft-join-v1:../n1:x", "this is no join token"),
            ("weft-join-v1:n1", "this is no join token"),
            ("", "this is no join token"),
        ] {
            let error = tokens.verify(token).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{token}: {error}");
        }
        fs::remove_file(state.path().join("join-tokens/n1")).unwrap();
        assert!(
            tokens.verify(&token).is_err(),
            "a deleted token is not valid"
        );
        assert!(matches!(tokens.create("a/b"), Err(TokenError::NodeName(_))));
    }
}
