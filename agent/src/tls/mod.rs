//! Mesh TLS on both sides.

use std::sync::Arc;

use weft_api::model::Identity;

/// Whom a client expects to meet, and under which name it asks for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerId {
    /// What the peer's certificate has to say.
    pub identity: Identity,
    /// The SNI.
    pub server_name: Arc<str>,
}
