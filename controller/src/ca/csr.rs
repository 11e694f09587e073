//! Certificate signing requests: what a workload may ask for.
//!
//! Nothing of a request goes into a certificate but its public key; the rest is only compared, so
//! that a request for something else is refused instead of being answered differently.

use rcgen::SubjectPublicKeyInfo;
use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject as _};
use weft_api::model::Identity;
use x509_parser::{
    certification_request::X509CertificationRequest,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer as _,
};

/// A request that parses and is signed by its own key.
#[derive(Debug)]
pub struct Csr {
    key: SubjectPublicKeyInfo,
    dns_names: Vec<String>,
    has_other_names: bool,
    common_names: Vec<String>,
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CsrError {
    /// It is no request.
    #[error("certificate signing request cannot be parsed")]
    Malformed,
    /// Its signature was not made with its key.
    #[error("certificate signing request is not signed with its own key")]
    Signature,
    /// Its key is none that peers accept.
    #[error("public key must be ECDSA P-256 or P-384")]
    Key,
    /// It does not ask for exactly one DNS name.
    #[error("exactly one DNS name is allowed, found {0}")]
    NameCount(usize),
    /// It asks for another name.
    #[error("DNS name {found:?} is not the identity {expected:?}")]
    OtherName {
        /// What it asks for.
        found: String,
        /// What it may ask for.
        expected: String,
    },
    /// Its common name is another name.
    #[error("common name {found:?} is neither empty nor the identity {expected:?}")]
    CommonName {
        /// What it asks for.
        found: String,
        /// What it may ask for.
        expected: String,
    },
    /// It asks for names that are no DNS names.
    #[error("names other than DNS names (IP addresses, URIs, e-mail addresses) are not allowed")]
    OtherKinds,
}

/// An honest request has a few hundred bytes.
const MAX_BYTES: usize = 16 * 1024;
const EC_PUBLIC_KEY: &str = "1.2.840.10045.2.1";

impl Csr {
    /// Parses DER or PEM.
    ///
    /// # Errors
    /// When it is no request, or not signed with its own key.
    pub fn parse(bytes: &[u8]) -> Result<Self, CsrError> {
        if bytes.len() > MAX_BYTES {
            return Err(CsrError::Malformed);
        }
        let pem;
        let der = match bytes.starts_with(b"-----BEGIN") {
            true => {
                pem = CertificateSigningRequestDer::from_pem_slice(bytes)
                    .map_err(|_error| CsrError::Malformed)?;
                pem.as_ref()
            }
            false => bytes,
        };
        let (rest, request) =
            X509CertificationRequest::from_der(der).map_err(|_error| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::Malformed);
        }
        request
            .verify_signature()
            .map_err(|_error| CsrError::Signature)?;
        let info = &request.certification_request_info;
        let spki = &info.subject_pki;
        if spki.algorithm.algorithm.to_id_string() != EC_PUBLIC_KEY {
            return Err(CsrError::Key);
        }
        let key = SubjectPublicKeyInfo::from_der(spki.raw).map_err(|_error| CsrError::Key)?;
        let mut csr = Self {
            key,
            dns_names: Vec::new(),
            has_other_names: info.subject.iter_email().next().is_some(),
            common_names: info
                .subject
                .iter_common_name()
                .map(|name| name.as_str().unwrap_or("?").to_owned())
                .collect(),
        };
        for extension in request.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(names) = extension {
                csr.add_names(&names.general_names);
            }
        }
        Ok(csr)
    }

    fn add_names(&mut self, names: &[GeneralName<'_>]) {
        for name in names {
            if let GeneralName::DNSName(name) = name {
                self.dns_names.push((*name).to_owned());
            } else {
                self.has_other_names = true;
            }
        }
    }

    /// Checks that it asks for this identity and nothing else.
    ///
    /// # Errors
    /// Says what else it asks for.
    pub fn check(&self, identity: &Identity) -> Result<(), CsrError> {
        let expected = identity.as_str();
        if self.has_other_names {
            return Err(CsrError::OtherKinds);
        }
        let [name] = &self.dns_names[..] else {
            return Err(CsrError::NameCount(self.dns_names.len()));
        };
        if name != expected {
            return Err(CsrError::OtherName {
                found: name.clone(),
                expected: expected.to_owned(),
            });
        }
        let mut common_names = self.common_names.iter();
        match common_names.find(|name| !name.is_empty() && *name != expected) {
            None => Ok(()),
            Some(name) => Err(CsrError::CommonName {
                found: name.clone(),
                expected: expected.to_owned(),
            }),
        }
    }

    pub(super) const fn key(&self) -> &SubjectPublicKeyInfo {
        &self.key
    }
}
