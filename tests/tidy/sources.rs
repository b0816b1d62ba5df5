//! What sources must and must not contain.

use std::collections::HashSet;

use crate::scan::{code_of, end_of_block, functions, line_of, without_tests, words};
use crate::{File, files, no_findings};

/// Lines of a function, from its name to its closing brace.
const MAX_FUNCTION_LINES: usize = 70;

/// Lines of a file.
const MAX_FILE_LINES: usize = 900;

/// Modules of the standard library that touch the world.
const WORLDLY_MODULES: [&str; 8] = ["fs", "net", "thread", "process", "env", "io", "os", "random"];

/// Names that mean a clock, a random source, a socket or a task, wherever they come from.
const WORLDLY_NAMES: [&str; 19] = [
    "Instant",
    "SystemTime",
    "thread_rng",
    "OsRng",
    "SystemRandom",
    "ThreadRng",
    "from_entropy",
    "from_os_rng",
    "getrandom",
    "tokio",
    "async",
    "await",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "println",
    "eprintln",
    "print",
    "eprint",
];

/// A Rust file and its code.
struct Source {
    file: File,
    code: String,
    is_test: bool,
}

impl Source {
    /// The code that is part of the program.
    fn program(&self) -> String {
        if self.is_test { String::new() } else { without_tests(&self.code).0 }
    }
}

fn sources() -> Vec<Source> {
    let mut sources: Vec<Source> = files(&[".rs"])
        .into_iter()
        .filter(|file| file.path.ends_with(".rs"))
        .map(|file| {
            let folders: Vec<&str> = file.path.split('/').collect();
            let is_test =
                folders.iter().any(|folder| ["tests", "benches", "fuzz", "fuzz_targets"].contains(folder));
            Source { code: code_of(&file.text), is_test, file }
        })
        .collect();
    let test_files: HashSet<String> = sources.iter().flat_map(test_files_of).collect();
    for source in &mut sources {
        source.is_test |= test_files.contains(&source.file.path);
    }
    assert!(sources.iter().filter(|source| !source.is_test).count() > 40, "the sources have moved");
    sources
}

/// The files of test modules that `source` declares.
fn test_files_of(source: &Source) -> Vec<String> {
    let path = source.file.path.trim_end_matches(".rs");
    let is_root = ["/mod", "/lib", "/main"].iter().any(|name| path.ends_with(name));
    let folder = if is_root { path.rsplit_once('/').map_or("", |(folder, _)| folder) } else { path };
    let (_, names) = without_tests(&source.code);
    let files = |name: String| [format!("{folder}/{name}.rs"), format!("{folder}/{name}/mod.rs")];
    names.into_iter().flat_map(files).collect()
}

fn at(source: &Source, place: usize) -> String {
    format!("{}:{}", source.file.path, line_of(&source.code, place))
}

#[test]
fn functions_and_files_stay_short() {
    let mut findings = Vec::new();
    for source in sources() {
        let lines = source.file.text.lines().count();
        if lines > MAX_FILE_LINES {
            findings.push(format!("{}: {lines} lines", source.file.path));
        }
        for function in functions(&source.code) {
            if function.lines > MAX_FUNCTION_LINES {
                let (name, line, lines) = (function.name, function.line, function.lines);
                findings.push(format!("{}:{line}: fn {name} has {lines} lines", source.file.path));
            }
        }
    }
    no_findings(&findings);
}

#[test]
fn roles_touch_no_clock_no_chance_and_no_world() {
    let mut findings = Vec::new();
    let sources = sources();
    let roles = sources.iter().filter(|source| source.file.path.starts_with("roles/"));
    for source in roles {
        let program = source.program();
        for (place, word) in words(&program) {
            if WORLDLY_NAMES.contains(&word) {
                findings.push(format!("{}: {word}", at(source, place)));
            }
        }
        for (place, module) in modules_of_std(&program) {
            if WORLDLY_MODULES.contains(&module) {
                findings.push(format!("{}: std::{module}", at(source, place)));
            }
        }
    }
    no_findings(&findings);
}

/// What follows each `std::`, alone or in braces, with where.
fn modules_of_std(code: &str) -> Vec<(usize, &str)> {
    let mut modules = Vec::new();
    for (place, _) in code.match_indices("std::") {
        if code[..place].ends_with(|before: char| before.is_alphanumeric() || before == '_') {
            continue;
        }
        let rest = code[place + 5..].trim_start();
        let heads = if rest.starts_with('{') {
            heads_of_group(rest)
        } else {
            words(rest).next().into_iter().collect()
        };
        modules.extend(heads.into_iter().map(|(_, module)| (place, module)));
    }
    modules
}

/// The first word of each element of the braces that `group` starts with.
fn heads_of_group(group: &str) -> Vec<(usize, &str)> {
    let end = end_of_block(group, 0);
    let is_head = |(at, _): &(usize, &str)| {
        let before = &group[..*at];
        let depth = before.matches('{').count() - before.matches('}').count();
        depth == 1 && before.trim_end().ends_with(['{', ','])
    };
    words(&group[..end]).filter(is_head).collect()
}

#[test]
fn grouped_imports_are_read() {
    let code = "use std::{collections::{HashMap, fs}, net::{self, TcpStream}, fmt};\nlet x = std::fs::read(my_std::env);";
    let modules: Vec<&str> = modules_of_std(code).into_iter().map(|(_, module)| module).collect();
    assert_eq!(modules, ["collections", "net", "fmt", "fs"]);
}

#[test]
fn nothing_is_allowed_or_unwrapped() {
    let mut findings = Vec::new();
    for source in sources() {
        for attribute in ["#[allow(", "#![allow("] {
            for (place, _) in source.code.match_indices(attribute) {
                findings.push(format!("{}: {attribute}...)]", at(&source, place)));
            }
        }
        for (place, _) in source.code.match_indices("#[ignore") {
            findings.push(format!("{}: a test that does not run", at(&source, place)));
        }
        for (place, _) in source.program().match_indices(".unwrap()") {
            findings.push(format!("{}: unwrap()", at(&source, place)));
        }
    }
    no_findings(&findings);
}

/// What the compiler cannot check is in one place, where a bench shows that it pays.
#[test]
fn unsafe_code_is_in_one_file() {
    let is_unsafe = |source: &&Source| words(&source.code).any(|(_, word)| word == "unsafe");
    let found: Vec<String> =
        sources().iter().filter(is_unsafe).map(|source| source.file.path.clone()).collect();
    assert_eq!(found, ["roles/stratum/src/hash/lanes.rs"]);
}

#[test]
fn every_file_says_what_it_is_for() {
    let lacks_docs = |source: &Source| !source.file.text.trim_start().starts_with("//!");
    let findings: Vec<String> =
        sources().iter().filter(|source| lacks_docs(source)).map(|source| source.file.path.clone()).collect();
    no_findings(&findings);
}

#[test]
fn nothing_names_the_machine_that_it_was_written_on() {
    // Put together, so that this file does not find itself.
    let strange = [["/wo", "rk/"], ["/ro", "ot/"], ["sha", "red/"], ["/ho", "me/"], ["/tmp", "/"]]
        .map(|parts| parts.concat());
    // A home folder that stands for the reader's own.
    let harmless = ["/home/me/"];
    let mut findings = Vec::new();
    for File { path, text } in files(&[".rs", ".toml", ".sh", ".md", ".yml", ".json"]) {
        for (number, line) in text.lines().enumerate() {
            let line = harmless.iter().fold(line.to_owned(), |line, harmless| line.replace(harmless, ""));
            if let Some(found) = strange.iter().find(|strange| line.contains(strange.as_str())) {
                findings.push(format!("{path}:{}: {found}", number + 1));
            }
        }
    }
    no_findings(&findings);
}
