//! The layout rules of the project, read from its manifests and sources: which crate may need which, what never reads
//! a clock or a socket, how long functions and files may grow, and what code must not contain.
//!
//! Nothing here runs the program, and no other tool is needed.

mod manifests;
mod messages;
mod scan;
mod sources;

use std::fs;
use std::path::{Path, PathBuf};

/// Folders that are not read: what is built, and what version control keeps.
const SKIPPED: [&str; 3] = ["target", ".git", "seeds"];

/// A file of the project.
struct File {
    /// Relative to the project's root, with `/` between folders.
    path: String,
    text: String,
}

/// Every file of the project whose name ends with one of `endings`, or that is a script without any.
fn files(endings: &[&str]) -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let mut entries: Vec<PathBuf> = fs::read_dir(&folder)
            .expect("a folder of the project")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        entries.sort();
        for path in entries {
            let name = path.file_name().and_then(|name| name.to_str()).expect("a plain name").to_owned();
            if path.is_dir() {
                if !SKIPPED.contains(&name.as_str()) {
                    folders.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) || !name.contains('.') {
                let Ok(text) = fs::read_to_string(&path) else { continue };
                let path = path.strip_prefix(root).expect("below the root");
                files.push(File { path: path.to_str().expect("a plain path").to_owned(), text });
            }
        }
    }
    assert!(!files.is_empty(), "no files ending with {endings:?}");
    files
}

/// Fails with all findings at once.
fn no_findings(findings: &[String]) {
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
}
