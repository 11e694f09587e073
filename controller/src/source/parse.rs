//! One manifest file: YAML documents to objects, with line and column of whatever is wrong.
//!
//! A file is read twice: once for the kinds of its documents, once into the types of those kinds.
//! Going through an untyped value instead would lose the place of an error.

use k8s_openapi::{
    Metadata, api::core::v1, api::discovery::v1 as discovery,
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use tracing::debug;

use super::kinds::{self, Known};
use crate::{
    index::{Kind, NsName, Object, ObjectKey},
    problems::Severity,
};

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    /// Objects that can be used.
    pub(super) objects: Vec<(ObjectKey, Object)>,
    /// What is wrong.
    pub(super) findings: Vec<Finding>,
}

/// Something wrong in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    pub(super) at: Option<(usize, usize)>,
    pub(super) object: Option<String>,
    pub(super) message: String,
}

/// The part of a document that says what the rest is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    api_version: Option<String>,
    kind: Option<String>,
}

/// `kubectl get -o yaml` of several objects.
#[derive(Deserialize)]
struct List {
    #[serde(default)]
    items: Vec<serde_norway::Value>,
}

impl Parsed {
    /// Whether something of the file could not be used.
    pub(super) fn is_broken(&self) -> bool {
        self.findings
            .iter()
            .any(|finding| finding.severity == Severity::Error)
    }

    fn error(&mut self, at: Option<(usize, usize)>, message: impl Into<String>) {
        self.findings
            .push(Finding::new(Severity::Error, at, message));
    }

    fn warning(&mut self, at: Option<(usize, usize)>, message: impl Into<String>) {
        self.findings
            .push(Finding::new(Severity::Warning, at, message));
    }

    fn yaml_error(&mut self, error: &serde_norway::Error) {
        let at = error
            .location()
            .map(|location| (location.line(), location.column()));
        let mut message = error.to_string();
        if let Some((line, column)) = at {
            let place = format!(" at line {line} column {column}");
            message = message.replace(&place, "");
        }
        self.error(at, message);
    }
}

impl Finding {
    pub(super) fn new(
        severity: Severity,
        at: Option<(usize, usize)>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            severity,
            at,
            object: None,
            message: message.into(),
        }
    }
}

/// Parses a file.
pub(super) fn parse(bytes: &[u8]) -> Parsed {
    let mut parsed = Parsed::default();
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let good = &bytes[..error.valid_up_to()];
            let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
            parsed.error(Some((line, 1)), "not UTF-8 text");
            return parsed;
        }
    };
    let lines = document_lines(text);
    let headers: Vec<_> = serde_norway::Deserializer::from_str(text)
        .take(MAX_DOCUMENTS)
        .map(Option::<Header>::deserialize)
        .scan(None, |last, header| {
            // Behind a syntax error there is nothing but the same error, again and again.
            let error = header.as_ref().err().map(ToString::to_string);
            let is_stuck = error.is_some() && error == *last;
            *last = error;
            (!is_stuck).then_some(header)
        })
        .collect();
    let documents = serde_norway::Deserializer::from_str(text);
    for (number, (header, document)) in headers.into_iter().zip(documents).enumerate() {
        let at = lines.get(number).map(|line| (*line, 1));
        match header {
            Ok(Some(header)) => read_document(&header, document, at, &mut parsed),
            Ok(None) => {}
            Err(error) => parsed.yaml_error(&error),
        }
    }
    parsed
}

/// A bound for the work that one file can make.
const MAX_DOCUMENTS: usize = 100_000;

fn read_document(
    header: &Header,
    document: serde_norway::Deserializer<'_>,
    at: Option<(usize, usize)>,
    parsed: &mut Parsed,
) {
    let (Some(api_version), Some(kind)) = (&header.api_version, &header.kind) else {
        parsed.error(at, "apiVersion or kind is missing");
        return;
    };
    if is_list(api_version, kind) {
        match List::deserialize(document) {
            Ok(list) => read_items(list, at, parsed),
            Err(error) => parsed.yaml_error(&error),
        }
        return;
    }
    if let Err(error) = read_object(api_version, kind, document, at, parsed) {
        parsed.yaml_error(&error);
    }
}

fn is_list(api_version: &str, kind: &str) -> bool {
    api_version == "v1" && matches!(kind, "List" | "PodList" | "ServiceList" | "NamespaceList")
}

fn read_items(list: List, at: Option<(usize, usize)>, parsed: &mut Parsed) {
    for (number, item) in list.items.into_iter().enumerate() {
        let text = |field: &str| item.get(field)?.as_str().map(ToOwned::to_owned);
        let (Some(api_version), Some(kind)) = (text("apiVersion"), text("kind")) else {
            parsed.error(
                at,
                format!("items[{number}]: apiVersion or kind is missing"),
            );
            continue;
        };
        if let Err(error) = read_object(&api_version, &kind, item, at, parsed) {
            parsed.error(at, format!("items[{number}]: {error}"));
        }
    }
}

fn read_object<'de, D>(
    api_version: &str,
    kind: &str,
    document: D,
    at: Option<(usize, usize)>,
    parsed: &mut Parsed,
) -> Result<(), D::Error>
where
    D: Deserializer<'de>,
{
    let (key, object) = match (api_version, kind) {
        ("v1", "Namespace") => {
            let object: v1::Namespace = typed(document, at, parsed)?;
            (
                name(Kind::Namespace, object.metadata()),
                Object::Namespace(object),
            )
        }
        ("v1", "ServiceAccount") => {
            let object: v1::ServiceAccount = typed(document, at, parsed)?;
            let key = name(Kind::ServiceAccount, object.metadata());
            (key, Object::ServiceAccount(object))
        }
        ("v1", "Service") => {
            let object: Box<v1::Service> = typed(document, at, parsed)?;
            (
                name(Kind::Service, object.metadata()),
                Object::Service(object),
            )
        }
        ("discovery.k8s.io/v1", "EndpointSlice") => {
            let object: Box<discovery::EndpointSlice> = typed(document, at, parsed)?;
            let key = name(Kind::EndpointSlice, object.metadata());
            (key, Object::EndpointSlice(object))
        }
        ("v1", "Pod") => {
            let object: Box<v1::Pod> = typed(document, at, parsed)?;
            (name(Kind::Pod, object.metadata()), Object::Pod(object))
        }
        _ => {
            other_kind(api_version, kind, at, parsed);
            return Ok(());
        }
    };
    match key {
        Ok(key) => parsed.objects.push((key, object)),
        Err(message) => parsed.error(at, format!("{kind}: {message}")),
    }
    Ok(())
}

fn other_kind(api_version: &str, kind: &str, at: Option<(usize, usize)>, parsed: &mut Parsed) {
    match kinds::find(api_version, kind) {
        Some(Known::Ignored) => debug!(api_version, kind, "document ignored"),
        Some(Known::NotApplied) => parsed.warning(
            at,
            format!("{kind} ({api_version}) has no effect: this version does not apply it"),
        ),
        None => parsed.warning(
            at,
            format!("unknown kind {kind} ({api_version}) is ignored"),
        ),
    }
}

/// Reads a type and reports the fields that it does not have.
fn typed<'de, T, D>(
    document: D,
    at: Option<(usize, usize)>,
    parsed: &mut Parsed,
) -> Result<T, D::Error>
where
    T: DeserializeOwned,
    D: Deserializer<'de>,
{
    let mut unknown = Vec::new();
    let object = serde_ignored::deserialize(document, |path| {
        unknown.push(path.to_string().replace("?.", ""))
    })?;
    for path in unknown {
        parsed.warning(at, format!("unknown field {path} is ignored"));
    }
    Ok(object)
}

fn name(kind: Kind, metadata: &ObjectMeta) -> Result<ObjectKey, String> {
    let name = metadata.name.as_deref().unwrap_or_default();
    if name.is_empty() {
        return Err("metadata.name is missing".to_owned());
    }
    let is_name = match kind {
        Kind::Namespace | Kind::Service => is_dns_label,
        Kind::ServiceAccount | Kind::EndpointSlice | Kind::Pod => is_dns_subdomain,
    };
    if !is_name(name) {
        return Err(format!(
            "metadata.name {name:?} is not a DNS name (lower case letters, digits, hyphens)"
        ));
    }
    if kind == Kind::Namespace {
        return Ok(ObjectKey::new(kind, NsName::cluster_wide(name)));
    }
    let namespace = metadata
        .namespace
        .as_deref()
        .filter(|name| !name.is_empty());
    let namespace = namespace.unwrap_or("default");
    if !is_dns_label(namespace) {
        return Err(format!(
            "metadata.namespace {namespace:?} is not a DNS label"
        ));
    }
    Ok(ObjectKey::new(kind, NsName::new(namespace, name)))
}

pub(crate) fn is_dns_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_dns_label)
}

fn is_dns_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// The line on which each document begins, for problems that have no place of their own.
fn document_lines(text: &str) -> Vec<usize> {
    let mut lines = Vec::new();
    let mut is_begun = false;
    for (number, line) in text.lines().enumerate() {
        if line == "---" || line.starts_with("--- ") {
            if is_begun {
                lines.push(number + 2);
            } else {
                lines.clear();
                lines.push(number + 2);
            }
            is_begun = true;
        } else if !is_begun && !line.trim().is_empty() && !line.trim_start().starts_with('#') {
            lines.push(number + 1);
            is_begun = true;
        }
    }
    lines
}
