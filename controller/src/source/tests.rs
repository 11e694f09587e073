//! Reading and following a folder of manifests, broken ones among them.

use std::{fs, path::Path};

use super::*;
use crate::{
    index::{Kind, NsName, ObjectKey},
    problems::Problem,
};

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  namespace: shop\n\
                   spec:\n  containers:\n  - name: app\n";

fn key(name: &str) -> ObjectKey {
    ObjectKey::new(Kind::Pod, NsName::new("shop", name))
}

fn named(name: &str) -> String {
    POD.replace("name: web", &format!("name: {name}"))
}

fn changes(scanned: &Scanned) -> Vec<String> {
    let changes = scanned.changes.iter();
    changes
        .map(|change| match change {
            Change::Apply(key, _) => format!("+{key}"),
            Change::Delete(key) => format!("-{key}"),
        })
        .collect()
}

fn problems(scanned: &Scanned, root: &Path) -> Vec<String> {
    let root = format!("{}/", root.display());
    let shown = |problem: &Problem| problem.to_string().replace(&root, "");
    scanned.problems.iter().map(shown).collect()
}

#[test]
fn documents_are_read_or_what_is_wrong_is_said_with_its_place() {
    for (text, objects, findings) in [
        (POD.to_owned(), 1, vec![]),
        (
            format!("# only\n---\n{POD}---\n---\n# a comment\n"),
            1,
            vec![],
        ),
        (String::new(), 0, vec![]),
        (
            POD.replace("  containers:", "  containerz:"),
            1,
            vec!["Warning 1:1: unknown field spec.containerz is ignored"],
        ),
        (
            POD.replace("- name: app", "- name: [app]"),
            0,
            vec!["Error 8:11: spec.containers[0].name: invalid type: sequence, expected a string"],
        ),
        (
            format!("{POD}  hostnetwork: true\n"),
            1,
            vec!["Warning 1:1: unknown field spec.hostnetwork is ignored"],
        ),
        (
            format!("{POD}---\napiVersion: v1\nkind: Pood\nmetadata: {{name: x}}\n"),
            1,
            vec!["Warning 10:1: unknown kind Pood (v1) is ignored"],
        ),
        (
            "apiVersion: apps/v1\nkind: Deployment\nanything: {goes: here}\n".to_owned(),
            0,
            vec![],
        ),
        (
            "apiVersion: policy.linkerd.io/v1beta1\nkind: Server\n".to_owned(),
            0,
            vec![
                "Warning 1:1: Server (policy.linkerd.io/v1beta1) has no effect: \
                 this version does not apply it",
            ],
        ),
        (
            "kind: Pod\n".to_owned(),
            0,
            vec!["Error 1:1: apiVersion or kind is missing"],
        ),
        (
            named("Web_1"),
            0,
            vec![
                "Error 1:1: Pod: metadata.name \"Web_1\" is not a DNS name \
                 (lower case letters, digits, hyphens)",
            ],
        ),
        (
            "just text\n".to_owned(),
            0,
            vec!["Error 1:1: invalid type: string \"just text\", expected struct Header"],
        ),
        (
            format!(
                "apiVersion: v1\nkind: List\nitems:\n- {}",
                POD.trim_end().replace('\n', "\n  ")
            ),
            1,
            vec![],
        ),
    ] {
        let parsed = parse::parse(text.as_bytes());
        let found: Vec<_> = parsed
            .findings
            .iter()
            .map(|one| {
                let (line, column) = one.at.unwrap_or_default();
                format!("{:?} {line}:{column}: {}", one.severity, one.message)
            })
            .collect();
        assert_eq!(found, findings, "{text}");
        assert_eq!(parsed.objects.len(), objects, "{text}");
    }
}

#[test]
fn syntax_errors_and_bytes_that_are_no_text_name_their_line() {
    let broken = format!("{POD}---\nkind: 'open\n");
    let parsed = parse::parse(broken.as_bytes());
    assert_eq!(parsed.objects.len(), 1);
    assert_eq!(parsed.findings.len(), 1, "{:?}", parsed.findings);
    assert_eq!(parsed.findings[0].at.map(|(line, _)| line), Some(11));
    let parsed = parse::parse(b"a: b\n\xff\n");
    assert_eq!(parsed.findings[0].at, Some((2, 1)));
}

#[test]
fn files_come_change_and_go() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("sub")).unwrap();
    let file = root.path().join("sub/a.yaml");
    fs::write(&file, POD).unwrap();
    fs::write(root.path().join("notes.txt"), "not: [yaml").unwrap();
    fs::write(root.path().join(".hidden.yaml"), named("hidden")).unwrap();
    let mut dir = Dir::new(root.path());
    assert_eq!(changes(&dir.scan()), ["+Pod shop/web"]);
    assert_eq!(changes(&dir.scan()), [""; 0], "nothing has changed");
    fs::write(&file, format!("# comment\n{POD}")).unwrap();
    assert_eq!(changes(&dir.scan()), [""; 0], "only a comment has changed");
    fs::write(&file, POD.replace("spec:\n", "spec:\n  nodeName: n2\n")).unwrap();
    assert_eq!(changes(&dir.scan()), ["+Pod shop/web"]);
    let moved = root.path().join("b.yaml");
    fs::rename(&file, &moved).unwrap();
    let scanned = dir.scan();
    assert!(
        changes(&scanned)
            .iter()
            .all(|change| change.starts_with('+')),
        "a move is no delete"
    );
    fs::write(&moved, named("db")).unwrap();
    assert_eq!(changes(&dir.scan()), ["-Pod shop/web", "+Pod shop/db"]);
    fs::remove_file(&moved).unwrap();
    assert_eq!(changes(&dir.scan()), ["-Pod shop/db"]);
}

#[test]
fn what_a_broken_file_defined_stays_until_it_is_whole_or_gone() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("a.yaml");
    let both = format!("{}---\n{}", named("a"), named("b"));
    fs::write(&file, &both).unwrap();
    let mut dir = Dir::new(root.path());
    assert_eq!(dir.scan().changes.len(), 2);

    fs::write(&file, both.replacen("- name: app", "- name: [app]", 1)).unwrap();
    let scanned = dir.scan();
    assert_eq!(changes(&scanned), [""; 0]);
    assert_eq!(
        problems(&scanned, root.path()),
        ["a.yaml:8:11: error: spec.containers[0].name: invalid type: sequence, expected a string"]
    );

    fs::write(&file, "").unwrap();
    let scanned = dir.scan();
    assert_eq!(changes(&scanned), [""; 0]);
    assert_eq!(
        problems(&scanned, root.path()),
        ["a.yaml: error: is empty; delete it to remove what it defined"]
    );

    fs::write(&file, named("b")).unwrap();
    let scanned = dir.scan();
    assert_eq!(changes(&scanned), ["-Pod shop/a"]);
    assert_eq!(problems(&scanned, root.path()), [""; 0]);

    fs::write(&file, "{").unwrap();
    assert_eq!(changes(&dir.scan()), [""; 0]);
    fs::remove_file(&file).unwrap();
    assert_eq!(changes(&dir.scan()), ["-Pod shop/b"]);
}

#[test]
fn a_folder_that_is_away_takes_nothing_with_it() {
    let parent = tempfile::tempdir().unwrap();
    let root = parent.path().join("manifests");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("a.yaml"), POD).unwrap();
    let mut dir = Dir::new(&root);
    assert_eq!(dir.scan().changes.len(), 1);
    fs::rename(&root, parent.path().join("elsewhere")).unwrap();
    let scanned = dir.scan();
    assert_eq!(changes(&scanned), [""; 0]);
    assert_eq!(scanned.problems.len(), 1);
    fs::create_dir(&root).unwrap();
    assert_eq!(changes(&dir.scan()), ["-Pod shop/web"]);
}

#[test]
fn the_first_file_by_name_wins_and_the_other_is_reported() {
    let root = tempfile::tempdir().unwrap();
    let second = POD.replace("spec:\n", "spec:\n  nodeName: second\n");
    fs::write(root.path().join("b.yaml"), second).unwrap();
    fs::write(root.path().join("a.yaml"), POD).unwrap();
    let mut dir = Dir::new(root.path());
    let scanned = dir.scan();
    let Change::Apply(found, object) = &scanned.changes[0] else {
        panic!("{:?}", scanned.changes);
    };
    assert_eq!(*found, key("web"));
    assert_eq!(**object, objects(POD).remove(0).1);
    let shown = problems(&scanned, root.path());
    assert_eq!(shown.len(), 1);
    assert!(
        shown[0].starts_with("b.yaml: error: Pod shop/web: is defined in"),
        "{shown:?}"
    );
    fs::remove_file(root.path().join("a.yaml")).unwrap();
    assert_eq!(
        changes(&dir.scan()),
        ["+Pod shop/web"],
        "the other one counts now"
    );
}
