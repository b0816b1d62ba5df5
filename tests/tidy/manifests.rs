//! The dependencies of the project's crates.

use toml::{Table, Value};

use crate::{File, files, no_findings};

/// The edges between our crates: whose manifest, and what it may name.
const EDGES: [(&str, &[&str]); 7] = [
    ("roles/stratum", &[]),
    ("roles/template", &["stratum"]),
    ("roles/accounting", &["stratum"]),
    ("roles/fleet", &["stratum"]),
    ("roles/mining-server", &["stratum", "accounting"]),
    ("roles/job-declarator", &["stratum", "template"]),
    ("roles/mining-proxy", &["stratum", "template", "mining-server", "job-declarator"]),
];

/// The crates of others that a role may need: data, encodings and hashes. None of them reads a clock, opens a file
/// or a socket, or starts a thread.
const PURE: [&str; 8] = ["arrayvec", "bitcoin", "bs58", "hex", "serde", "serde_json", "sha2", "thiserror"];

/// What one role needs beyond them: the SV2 wire layer, its cipher and the traits of random sources have one place
/// each.
const PURE_IN_STRATUM: [&str; 3] = ["stratum-core", "ring", "rand"];

/// What the tests of a role may need beyond that.
const FOR_TESTS: [&str; 2] = ["proptest", "stratum-core"];

fn role_manifests() -> Vec<(String, Table)> {
    let is_role = |file: &File| file.path.starts_with("roles/") && file.path.ends_with("/Cargo.toml");
    let manifests: Vec<_> = files(&["Cargo.toml"])
        .into_iter()
        .filter(is_role)
        .map(|file| {
            let folder = file.path.trim_end_matches("/Cargo.toml").to_owned();
            (folder, file.text.parse::<Table>().expect("cargo reads it too"))
        })
        .collect();
    assert!(manifests.len() >= 4, "the roles have moved");
    manifests
}

/// The load program is no role: it touches the world, and nothing of ours depends on it. It keeps to the same lints.
fn load_manifest() -> (String, Table) {
    let folder = "benches/load";
    let manifest =
        files(&["Cargo.toml"]).into_iter().find(|file| file.path == format!("{folder}/Cargo.toml"));
    let manifest = manifest.expect("the load program has moved");
    (folder.to_owned(), manifest.text.parse::<Table>().expect("cargo reads it too"))
}

/// The dependencies of a manifest by kind, those of single targets included.
fn dependencies<'a>(manifest: &'a Table, kind: &str) -> Vec<&'a str> {
    let of = |table: &'a Table| table.get(kind).and_then(Value::as_table).into_iter().flatten();
    let targets = manifest.get("target").and_then(Value::as_table).into_iter().flatten();
    let targets = targets.filter_map(|(_, target)| target.as_table());
    std::iter::once(manifest)
        .chain(targets)
        .flat_map(of)
        .map(|(name, value)| {
            let renamed = value.as_table().and_then(|table| table.get("package")).and_then(Value::as_str);
            renamed.unwrap_or(name)
        })
        .collect()
}

fn edges_of(folder: &str) -> Option<&'static [&'static str]> {
    EDGES.iter().find(|(of, _)| *of == folder).map(|(_, edges)| *edges)
}

#[test]
fn roles_depend_on_nothing_that_touches_the_world() {
    let ours: Vec<&str> = EDGES.iter().filter_map(|(folder, _)| folder.strip_prefix("roles/")).collect();
    let mut findings = Vec::new();
    for (folder, manifest) in role_manifests() {
        let Some(edges) = edges_of(&folder) else {
            findings.push(format!("{folder}: a role that the design does not know"));
            continue;
        };
        let in_stratum: &[&str] = if folder == "roles/stratum" { &PURE_IN_STRATUM } else { &[] };
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for name in dependencies(&manifest, kind) {
                let allowed = match ours.contains(&name) {
                    true => edges.contains(&name),
                    false => {
                        PURE.contains(&name)
                            || in_stratum.contains(&name)
                            || (kind == "dev-dependencies" && FOR_TESTS.contains(&name))
                    }
                };
                if !allowed {
                    findings.push(format!("{folder}: [{kind}] {name} is not allowed"));
                }
            }
        }
    }
    no_findings(&findings);
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    let mut findings = Vec::new();
    for (folder, manifest) in role_manifests().into_iter().chain([load_manifest()]) {
        let inherited =
            manifest.get("lints").and_then(|lints| lints.get("workspace")).and_then(Value::as_bool);
        if inherited != Some(true) {
            findings.push(format!("{folder}: [lints] workspace = true is missing"));
        }
    }
    no_findings(&findings);
}
