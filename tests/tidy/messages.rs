//! `docs/messages.md`: a row for every message and every code, and no test that does not exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::no_findings;

const TABLE: &str = "docs/messages.md";

/// Where the messages are declared.
const MESSAGES: [&str; 4] = ["common", "mining", "job_declaration", "template_distribution"];

/// Where the codes are, and those that a role has of its own.
const CODES: &str = "roles/stratum/src/sv2/codes.rs";

/// What a row says instead of a test.
const NEVER: &str = "never sent";

fn text(path: &str) -> Option<String> {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).ok()
}

fn read(path: &str) -> String {
    text(path).unwrap_or_else(|| panic!("{path} is missing"))
}

/// The cells of each row whose first cell is code.
fn rows(table: &str) -> Vec<Vec<&str>> {
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    rows.map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

/// Names of tests in a text: the file, and the function in it.
fn tests_of(text: &str) -> Vec<(&str, &str)> {
    text.split('`').filter_map(|code| code.split_once(".rs::").map(|_| code)).map(split).collect()
}

fn split(name: &str) -> (&str, &str) {
    name.rsplit_once("::").expect("it has a file and a function")
}

/// The name of a message and its type, as the table writes them.
fn known_messages() -> BTreeSet<(String, String)> {
    let mut known = BTreeSet::new();
    for module in MESSAGES {
        let source = read(&format!("roles/stratum/src/sv2/messages/{module}.rs"));
        for line in source.lines().filter(|line| line.starts_with("    ") && line.ends_with('{')) {
            let Some((_, declared)) = line.split_once(" = \"") else { continue };
            let fields: Vec<&str> = declared.split(", ").collect();
            let [name, extension, number, _] = fields[..] else { panic!("{line}") };
            let number = match extension {
                "0" => number.to_owned(),
                extension => format!("{number} of 0x000{extension}"),
            };
            known.insert((name.trim_end_matches('"').to_owned(), number));
        }
    }
    assert!(known.len() > 40, "the messages have moved");
    known
}

/// The message that a code is for, the code, and the constant's name.
fn known_codes() -> Vec<(String, String, String)> {
    let source = read(CODES);
    let source = source.split("#[cfg(test)]").next().expect("a first part");
    let (mut known, mut said, mut message) = (Vec::new(), "", "");
    let mut constant = "";
    for line in source.lines() {
        if line.starts_with("pub mod ") {
            message = said.split('`').nth(1).unwrap_or("");
        }
        said = line;
        if let Some((name, _)) = line.trim().strip_prefix("pub const ").and_then(|rest| rest.split_once(": "))
        {
            constant = name;
        }
        if let Some(code) = line.split('"').nth(1) {
            known.push((message.to_owned(), code.to_owned(), constant.to_owned()));
        }
    }
    assert!(known.len() > 40, "the codes have moved");
    known
}

#[test]
fn every_message_has_a_row_and_every_row_a_message() {
    let table = read(TABLE);
    let messages = table.split("## Codes").next().expect("a first part");
    let mut findings = Vec::new();
    let mut missing = known_messages();
    for row in rows(messages) {
        let [name, number, _, shown_by] = row[..] else {
            findings.push(format!("a row has {} cells: {row:?}", row.len()));
            continue;
        };
        let key = (name.trim_matches('`').to_owned(), number.to_owned());
        if !missing.remove(&key) {
            findings.push(format!("{name} {number} is no message, or has two rows"));
        }
        if tests_of(shown_by).is_empty() {
            findings.push(format!("{name} is shown by no test"));
        }
    }
    findings.extend(missing.iter().map(|(name, number)| format!("{name} {number} has no row")));
    no_findings(&findings);
}

#[test]
fn every_code_has_a_row_whose_tests_speak_of_it() {
    let table = read(TABLE);
    let codes = table.split("## Codes").nth(1).expect("a table of codes");
    let rows = rows(codes);
    let mut findings = Vec::new();
    for (message, code, constant) in known_codes() {
        let (said_in, said) = (format!("`{message}`"), format!("`{code}`"));
        let row = rows.iter().find(|row| row[0] == said_in && row[1] == said);
        let Some(shown_by) = row.map(|row| row[3]) else {
            findings.push(format!("{message}: {code} has no row"));
            continue;
        };
        let tests = tests_of(shown_by);
        if tests.is_empty() && shown_by != NEVER {
            findings.push(format!("{message}: {code} is shown by no test"));
        }
        let speaks =
            |file: &str| text(file).is_some_and(|text| text.contains(&code) || text.contains(&constant));
        let silent = tests.iter().filter(|(file, _)| !message.starts_with("CloseChannel") && !speaks(file));
        findings.extend(silent.map(|(file, test)| format!("{file}: {test} does not speak of {code}")));
    }
    no_findings(&findings);
}

#[test]
fn tests_that_are_named_exist() {
    let table = read(TABLE);
    let mut findings = Vec::new();
    for (file, test) in tests_of(&table) {
        let has = |text: String| text.contains(&format!("fn {test}("));
        if !text(file).is_some_and(has) {
            findings.push(format!("{file} has no test {test}"));
        }
    }
    no_findings(&findings);
}
