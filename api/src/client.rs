//! A connection to the controller, as nodes, agents and the CLI make it.
//!
//! TLS with the given trust anchors and the controller's own identity as server name; a bearer
//! token goes with every call. Connects when first used and again after every failure.

use std::time::Duration;

use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue, errors::InvalidMetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Error as TransportError},
};

/// Where the controller is and how to speak to it.
#[derive(Clone)]
pub struct Controller {
    /// `HOST:PORT`.
    pub addr: String,
    /// DNS name that the controller's certificate must hold.
    pub server_name: String,
    /// PEM certificates that vouch for it; `None` speaks plaintext, for a controller on loopback.
    pub trust_anchors: Option<Vec<u8>>,
    /// The caller's credential.
    pub token: Option<String>,
}

/// A channel that sends the caller's token along.
pub type Authorized = InterceptedService<Channel, Bearer>;

/// Adds `authorization: Bearer <token>` to every call.
#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

/// Why no connection to the controller can even be tried.
#[derive(Debug, thiserror::Error)]
pub enum InvalidController {
    /// The address or the trust anchors cannot be used.
    #[error("controller address {addr:?} or its trust anchors cannot be used")]
    Endpoint {
        /// The address as given.
        addr: String,
        /// What is wrong with it.
        source: TransportError,
    },
    /// The token holds characters that a header must not.
    #[error("token for the controller is no header value")]
    Token(#[source] InvalidMetadataValue),
}

impl Controller {
    /// Makes the channel. No packet is sent before the first call.
    ///
    /// # Errors
    /// When an argument cannot be used; not when the controller cannot be reached.
    pub fn connect(&self) -> Result<Authorized, InvalidController> {
        let invalid = |source| InvalidController::Endpoint {
            addr: self.addr.clone(),
            source,
        };
        let scheme = if self.trust_anchors.is_some() {
            "https"
        } else {
            "http"
        };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{}", self.addr))
            .map_err(invalid)?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        if let Some(anchors) = &self.trust_anchors {
            let tls = ClientTlsConfig::new()
                .ca_certificate(Certificate::from_pem(anchors))
                .domain_name(&self.server_name);
            endpoint = endpoint.tls_config(tls).map_err(invalid)?;
        }
        let bearer = match &self.token {
            None => None,
            Some(token) => {
                let mut value = MetadataValue::try_from(format!("Bearer {token}"))
                    .map_err(InvalidController::Token)?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(InterceptedService::new(
            endpoint.connect_lazy(),
            Bearer(bearer),
        ))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// Shorter than the patience of anyone who waits for an answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// As Linkerd's proxies do: a controller that vanished is noticed within 13 s.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
