//! Identities in certificates: the subject's alternative names.

use rustls_pki_types::CertificateDer;
use weft_api::model::Identity;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

/// Who a client's certificate says it is: its first DNS or URI name that is an identity.
///
/// Says nothing about whether the certificate may be believed.
pub fn identity(leaf: &CertificateDer<'_>) -> Option<Identity> {
    find(leaf, parse)
}

/// Whether a server's certificate names the identity, among others maybe.
pub fn names(leaf: &CertificateDer<'_>, expected: &Identity) -> bool {
    find(leaf, |name| {
        (parse(name).as_ref() == Some(expected)).then_some(())
    })
    .is_some()
}

/// The names in a certificate, for an error message.
pub(super) fn describe(leaf: &CertificateDer<'_>) -> String {
    let mut names = Vec::new();
    let _nothing: Option<()> = find(leaf, |name| {
        if let GeneralName::DNSName(text) | GeneralName::URI(text) = name {
            names.push((*text).to_owned());
        }
        None
    });
    match names.is_empty() {
        true => "no name".to_owned(),
        false => names.join(", "),
    }
}

fn find<T>(
    leaf: &CertificateDer<'_>,
    mut check: impl FnMut(&GeneralName<'_>) -> Option<T>,
) -> Option<T> {
    let (_rest, certificate) = X509Certificate::from_der(leaf).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(&mut check)
}

/// A DNS name with a trailing dot is no identity: `Identity` does not parse it.
fn parse(name: &GeneralName<'_>) -> Option<Identity> {
    match name {
        GeneralName::DNSName(text) => match text.parse() {
            Ok(identity @ Identity::Dns(_)) => Some(identity),
            Ok(Identity::Spiffe(_)) | Err(_) => None,
        },
        GeneralName::URI(text) => match text.parse() {
            Ok(identity @ Identity::Spiffe(_)) => Some(identity),
            Ok(Identity::Dns(_)) | Err(_) => None,
        },
        GeneralName::OtherName(..)
        | GeneralName::RFC822Name(_)
        | GeneralName::X400Address(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EDIPartyName(_)
        | GeneralName::IPAddress(_)
        | GeneralName::RegisteredID(_)
        | GeneralName::Invalid(..) => None,
    }
}
