//! Client of Linkerd's `Identity.Certify`.

use std::time::{Duration, SystemTime};

use linkerd2_proxy_api::identity::{CertifyRequest, identity_client::IdentityClient};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use tokio::time::timeout;
use tonic::{Request, Status, transport::Channel};
use weft_api::model::Identity;

use super::{TokenError, TokenFile};

/// An answer that takes longer is not waited for: the backoff is the better place to wait.
const LIMIT: Duration = Duration::from_secs(10);

/// Has keys certified by the controller. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CaClient {
    client: IdentityClient<Channel>,
    token: TokenFile,
}

/// Why the controller did not certify a key.
#[derive(Debug, thiserror::Error)]
pub enum CertifyError {
    /// There is no credential to ask with.
    #[error("no credential for the controller")]
    Token(#[from] TokenError),
    /// The controller refused or was not reached.
    #[error("certification refused or controller not reached")]
    Call(#[source] Box<Status>),
    /// The controller did not answer.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
}

/// What the controller sent, unchecked.
pub(super) struct Answer {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) valid_until: Option<SystemTime>,
}

impl CaClient {
    /// Uses a channel to the controller; the token is read anew for each call.
    pub fn new(channel: Channel, token: TokenFile) -> Self {
        Self {
            client: IdentityClient::new(channel),
            token,
        }
    }

    /// Has one request certified.
    pub(super) async fn certify(
        &self,
        identity: &Identity,
        csr: &CertificateSigningRequestDer<'_>,
    ) -> Result<Answer, CertifyError> {
        let token = self.token.read().await?;
        let mut request = Request::new(CertifyRequest {
            identity: identity.to_string(),
            token: token.as_bytes().to_vec(),
            certificate_signing_request: csr.to_vec(),
        });
        if let Some(bearer) = token.bearer() {
            request.metadata_mut().insert("authorization", bearer);
        }
        let mut client = self.client.clone();
        let answer = timeout(LIMIT, client.certify(request))
            .await
            .map_err(|_elapsed| CertifyError::TimedOut(LIMIT))?
            .map_err(|status| CertifyError::Call(Box::new(status)))?
            .into_inner();
        let mut chain = vec![CertificateDer::from(answer.leaf_certificate)];
        chain.extend(
            answer
                .intermediate_certificates
                .into_iter()
                .map(CertificateDer::from),
        );
        Ok(Answer {
            chain,
            valid_until: answer.valid_until.and_then(|until| until.try_into().ok()),
        })
    }
}
