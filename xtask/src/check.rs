//! `check`: what can be said about the code without compiling it.
//!
//! Layers between crates, forbidden dependencies, sizes of files, module documentation, and that
//! documents name files which exist.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};

use crate::shell;

/// What a crate must not reach, even through others.
const LAYERS: &[(&str, &[&str])] = &[
    (
        "weft-agent",
        &["kube", "k8s-openapi", "aya", "weft-controller", "weft-node"],
    ),
    ("weft-node", &["kube", "weft-agent", "weft-controller"]),
    ("weft-controller", &["aya", "weft-agent", "weft-node"]),
    (
        "weft",
        &["aya", "weft-agent", "weft-controller", "weft-node"],
    ),
    ("weft-common", &["tokio", "weft-api", "weft-runtime"]),
];
/// What nobody may reach: TLS is rustls, once.
const FORBIDDEN: &[&str] = &["openssl", "native-tls"];
/// Lines of a file without its tests.
const FILE_LIMIT: usize = 600;
const DOCUMENTS: &[&str] = &[
    "README.md",
    "ARCHITECTURE.md",
    "DEVELOPMENT.md",
    "SECURITY.md",
];

/// Runs the command.
pub(crate) fn run() -> Result<()> {
    // Without a platform, crates that only other systems use would count.
    let platform = ["--filter-platform".to_owned(), host()?];
    let metadata = MetadataCommand::new()
        .current_dir(shell::root())
        .other_options(platform)
        .exec()
        .context("cargo metadata")?;
    let mut faults = layers(&metadata);
    let files = sources(shell::root());
    faults.extend(files.iter().flat_map(|path| source_faults(path)));
    faults.extend(DOCUMENTS.iter().flat_map(|name| document_faults(name)));
    for fault in &faults {
        println!("{fault}");
    }
    if !faults.is_empty() {
        bail!("{} faults", faults.len());
    }
    println!(
        "check: {} source files, layers, documents: no faults",
        files.len()
    );
    Ok(())
}

fn host() -> Result<String> {
    let version = shell::ask("rustc", &["-vV"]).context("run rustc")?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc names no host")?.to_owned())
}

fn layers(metadata: &Metadata) -> Vec<String> {
    let names: BTreeMap<&PackageId, &str> = metadata
        .packages
        .iter()
        .map(|package| (&package.id, package.name.as_str()))
        .collect();
    let mut faults = Vec::new();
    for package in metadata.workspace_packages() {
        let name = package.name.as_str();
        let reached = reached(metadata, &package.id);
        let own = LAYERS.iter().find(|(layer, _)| *layer == name);
        let forbidden = own.map_or(&[][..], |(_, forbidden)| forbidden);
        faults.extend(
            reached
                .iter()
                .filter_map(|id| names.get(id))
                .filter(|reached| forbidden.contains(*reached) || FORBIDDEN.contains(*reached))
                .map(|reached| format!("{name} must not depend on {reached}")),
        );
    }
    faults
}

/// Packages that end up in a package's programs: all but what only tests or builds need.
fn reached<'a>(metadata: &'a Metadata, from: &'a PackageId) -> BTreeSet<&'a PackageId> {
    let nodes = metadata.resolve.iter().flat_map(|resolve| &resolve.nodes);
    let nodes: BTreeMap<_, _> = nodes.map(|node| (&node.id, node)).collect();
    let mut reached = BTreeSet::new();
    let mut next = vec![from];
    while let Some(id) = next.pop() {
        let dependencies = nodes.get(id).map_or(&[][..], |node| &node.deps);
        for dependency in dependencies {
            let mut kinds = dependency.dep_kinds.iter();
            let is_normal = kinds.any(|kind| kind.kind == DependencyKind::Normal);
            if is_normal && reached.insert(&dependency.pkg) {
                next.push(&dependency.pkg);
            }
        }
    }
    reached
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            found.extend(sources(&path));
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn source_faults(path: &Path) -> Vec<String> {
    let shown = path.strip_prefix(shell::root()).unwrap_or(path).display();
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut faults = Vec::new();
    if !text.starts_with("//!") {
        faults.push(format!(
            "{shown}: does not begin with a module documentation"
        ));
    }
    let code = text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or(&text);
    let lines = code.lines().count();
    if lines > FILE_LIMIT && !path.ends_with("tests.rs") {
        faults.push(format!("{shown}: {lines} lines, more than {FILE_LIMIT}"));
    }
    faults
}

/// Links to files that do not exist.
fn document_faults(name: &str) -> Vec<String> {
    let Ok(text) = fs::read_to_string(shell::root().join(name)) else {
        return Vec::new();
    };
    links(&text)
        .into_iter()
        .filter(|link| !shell::root().join(link).exists())
        .map(|link| format!("{name}: {link} does not exist"))
        .collect()
}

/// Targets of Markdown links into the repository.
fn links(text: &str) -> Vec<&str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', '#', ' ']).next())
        .filter(|link| !link.is_empty() && !link.contains("://"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_into_the_repository_are_found() {
        let text = "see [a](docs/a.md#part), [b](https://b.example) and [c](#here) [d](src/d.rs)";
        assert_eq!(links(text), ["docs/a.md", "src/d.rs"]);
    }
}
