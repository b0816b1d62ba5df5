//! Walks a TOML document key by key and collects every fault on the way.
//!
//! A reader asks for the keys that it knows. What it asked for is the schema: a key that nobody asked for is an
//! unknown one, and the list of all keys is what a read of the empty document asks for. So there is no second
//! list that could differ.
//!
//! It never stops at a fault, and never prints the value of a key that holds a secret.

use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::listen::{ListenAddress, ListenKey};
use super::problem::{Note, Problem};

/// What a read collects besides the configuration itself.
pub struct Findings<'d> {
    text: &'d str,
    /// Relative paths are relative to the folder of the file: a service has no meaningful current folder.
    folder: &'d Path,
    pub(super) problems: Vec<Problem>,
    pub(super) notes: Vec<Note>,
    /// Every key that was asked for, with the place in a list left out (`upstream.url`).
    pub(super) known: Vec<String>,
    pub(super) listen: Vec<ListenAddress>,
}

impl<'d> Findings<'d> {
    /// Nothing found yet in `text`, whose file lies in `folder`.
    pub(super) fn new(text: &'d str, folder: &'d Path) -> Self {
        let (problems, notes, known, listen) = Default::default();
        Findings { text, folder, problems, notes, known, listen }
    }

    /// A fault of the key at `place`.
    pub(super) fn problem(&mut self, place: Place, what: impl Into<String>) {
        self.problems.push(Problem { key: place.key, line: place.line, what: what.into() });
    }

    /// Something to say of the key at `place`.
    pub(super) fn note(&mut self, place: Place, what: impl Into<String>) {
        self.notes.push(Problem { key: place.key, line: place.line, what: what.into() });
    }

    /// A path as the operator means it.
    pub(super) fn path(&self, text: &str) -> PathBuf {
        self.folder.join(text)
    }

    /// The line that a byte of the text is on, counted from 1.
    pub(super) fn line_of(&self, offset: usize) -> usize {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }
}

/// Where a key is, for the messages about it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) key: String,
    pub(super) line: Option<usize>,
}

/// One table of the document, or the place where it could be.
pub struct Section<'d> {
    table: Option<&'d DeTable<'d>>,
    /// Its dotted name with places in lists; empty for the document.
    path: String,
    /// The same without places in lists.
    known_path: String,
    line: Option<usize>,
    asked: Vec<&'static str>,
}

impl<'d> Section<'d> {
    /// The whole document.
    pub(super) fn document(table: &'d DeTable<'d>) -> Self {
        Section {
            table: Some(table),
            path: String::new(),
            known_path: String::new(),
            line: None,
            asked: Vec::new(),
        }
    }

    /// Whether the table is in the document.
    pub(super) fn is_present(&self) -> bool {
        self.table.is_some()
    }

    /// Where the table itself is.
    pub(super) fn place(&self) -> Place {
        Place { key: self.path.clone(), line: self.line }
    }

    /// Where a key of the table is, or would be.
    pub(super) fn place_of(&self, findings: &Findings<'_>, key: &str) -> Place {
        let line = match self.find(key) {
            Some((key, _)) => Some(findings.line_of(key.span().start)),
            None => self.line,
        };
        Place { key: dotted(&self.path, key), line }
    }

    /// Whether the key is written, whatever its value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    /// A fault when the table is there but this key of it is not.
    pub(super) fn require(&self, findings: &mut Findings<'_>, key: &'static str) {
        if self.is_present() && !self.has(key) {
            findings.problem(self.place_of(findings, key), "is missing");
        }
    }

    /// A table within this one; absent ones can be asked as well, and have no keys.
    pub(super) fn section(&mut self, findings: &mut Findings<'_>, key: &'static str) -> Section<'d> {
        self.asked.push(key);
        let found =
            self.find(key).map(|(name, value)| (findings.line_of(name.span().start), value.get_ref()));
        let (line, table) = match found {
            Some((line, DeValue::Table(table))) => (Some(line), Some(table)),
            Some((line, other)) => {
                findings.problem(self.place_of(findings, key), wrong_type("a table", other));
                (Some(line), None)
            }
            None => (None, None),
        };
        let known_path = dotted(&self.known_path, key);
        Section { table, path: dotted(&self.path, key), known_path, line, asked: Vec::new() }
    }

    /// A list of tables within this one. An absent list is one absent table, so that its keys become known.
    pub(super) fn sections(&mut self, findings: &mut Findings<'_>, key: &'static str) -> Vec<Section<'d>> {
        self.asked.push(key);
        let (path, known_path) = (dotted(&self.path, key), dotted(&self.known_path, key));
        let absent = || Section {
            table: None,
            path: path.clone(),
            known_path: known_path.clone(),
            line: None,
            asked: Vec::new(),
        };
        let Some((_, value)) = self.find(key) else { return vec![absent()] };
        let DeValue::Array(entries) = value.get_ref() else {
            let what = wrong_type(&format!("a list of tables, written [[{path}]]"), value.get_ref());
            findings.problem(self.place_of(findings, key), what);
            return vec![absent()];
        };
        let mut sections = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let line = Some(findings.line_of(entry.span().start));
            let path = format!("{path}[{index}]");
            let table = entry.get_ref().as_table();
            if table.is_none() {
                findings.problem(Place { key: path.clone(), line }, wrong_type("a table", entry.get_ref()));
            }
            sections.push(Section { table, path, known_path: known_path.clone(), line, asked: Vec::new() });
        }
        sections
    }

    /// A text.
    pub(super) fn string(&mut self, findings: &mut Findings<'_>, key: &'static str) -> Option<&'d str> {
        let value = self.ask(findings, key)?;
        match value {
            DeValue::String(text) => Some(text),
            other => self.refuse_type(findings, key, "a text in quotation marks", other),
        }
    }

    /// A list of texts.
    pub(super) fn strings(&mut self, findings: &mut Findings<'_>, key: &'static str) -> Option<Vec<&'d str>> {
        let wanted = "a list of texts in quotation marks";
        match self.ask(findings, key)? {
            DeValue::Array(entries) => {
                let texts: Option<Vec<&str>> = entries.iter().map(|entry| entry.get_ref().as_str()).collect();
                if texts.is_none() {
                    findings.problem(self.place_of(findings, key), format!("must be {wanted}"));
                }
                texts
            }
            other => self.refuse_type(findings, key, wanted, other),
        }
    }

    /// True or false.
    pub(super) fn boolean(&mut self, findings: &mut Findings<'_>, key: &'static str) -> Option<bool> {
        let value = self.ask(findings, key)?;
        match value {
            DeValue::Boolean(value) => Some(*value),
            other => self.refuse_type(findings, key, "true or false", other),
        }
    }

    /// A whole number within `range`.
    pub(super) fn integer(
        &mut self,
        findings: &mut Findings<'_>,
        key: &'static str,
        range: std::ops::RangeInclusive<u32>,
    ) -> Option<u32> {
        let value = self.ask(findings, key)?;
        let DeValue::Integer(integer) = value else {
            return self.refuse_type(findings, key, "a whole number", value);
        };
        let number = u32::from_str_radix(integer.as_str(), integer.radix()).ok();
        let within = number.filter(|number| range.contains(number));
        if within.is_none() {
            let what = format!("{integer} is not from {} to {}", range.start(), range.end());
            findings.problem(self.place_of(findings, key), what);
        }
        within
    }

    /// A number, whole or not.
    pub(super) fn number(&mut self, findings: &mut Findings<'_>, key: &'static str) -> Option<f64> {
        let value = self.ask(findings, key)?;
        let number = match value {
            DeValue::Float(float) => float.as_str().parse::<f64>().ok(),
            DeValue::Integer(integer) => {
                i64::from_str_radix(integer.as_str(), integer.radix()).ok().map(|n| n as f64)
            }
            other => return self.refuse_type(findings, key, "a number", other),
        };
        let finite = number.filter(|number| number.is_finite());
        if finite.is_none() {
            findings.problem(self.place_of(findings, key), "is not a number that can be used");
        }
        finite
    }

    /// A text that stands for something. `parse` gives the value or what is wrong, without a secret.
    pub(super) fn parsed<T>(
        &mut self,
        findings: &mut Findings<'_>,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.string(findings, key)?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(what) => {
                findings.problem(self.place_of(findings, key), what);
                None
            }
        }
    }

    /// An address to listen on. It is remembered, so that the listeners can be tried even when something else is
    /// wrong.
    pub(super) fn listen(
        &mut self,
        findings: &mut Findings<'_>,
        key: &'static str,
        of: ListenKey,
    ) -> Option<std::net::SocketAddr> {
        let address = self.parsed(findings, key, |text| {
            text.parse().map_err(|_| format!("{text:?} is not an address and port such as \"0.0.0.0:3333\""))
        })?;
        let place = self.place_of(findings, key);
        if let Some(other) =
            findings.listen.iter().find(|other| other.address == address && address.port() != 0)
        {
            let what = format!("{address} is the address of {} already", other.of.key());
            findings.problem(place, what);
            return None;
        }
        findings.listen.push(ListenAddress { of, address, line: place.line });
        Some(address)
    }

    /// Names the keys that nobody asked for. Call it last.
    pub(super) fn finish(self, findings: &mut Findings<'_>) {
        for (key, _) in self.table.into_iter().flatten() {
            let name: &str = key.get_ref();
            if self.asked.contains(&name) {
                continue;
            }
            let what = match nearest(name, &self.asked) {
                Some(near) => format!("unknown key; did you mean `{near}`?"),
                None => format!("unknown key; known here: {}", self.asked.join(", ")),
            };
            findings.problem(self.place_of(findings, name), what);
        }
    }

    fn ask(&mut self, findings: &mut Findings<'_>, key: &'static str) -> Option<&'d DeValue<'d>> {
        self.asked.push(key);
        findings.known.push(dotted(&self.known_path, key));
        self.find(key).map(|(_, value)| value.get_ref())
    }

    fn find(&self, key: &str) -> Option<(&'d Spanned<std::borrow::Cow<'d, str>>, &'d Spanned<DeValue<'d>>)> {
        self.table?.iter().find(|(name, _)| name.get_ref() == key)
    }

    fn refuse_type<T>(
        &self,
        findings: &mut Findings<'_>,
        key: &str,
        wanted: &str,
        found: &DeValue<'_>,
    ) -> Option<T> {
        findings.problem(self.place_of(findings, key), wrong_type(wanted, found));
        None
    }
}

fn dotted(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn wrong_type(wanted: &str, found: &DeValue<'_>) -> String {
    format!("must be {wanted}, not of the type {}", found.type_str())
}

/// The known key that a mistyped one most likely stands for.
fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let (distance, near) = known.iter().map(|key| (distance(name, key), *key)).min()?;
    // A third of the letters wrong is another word, not a slip.
    (distance * 3 <= near.len()).then_some(near)
}

/// Letters to insert, remove or replace to make one word of the other.
pub(crate) fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, letter) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for j in 0..to.len() {
            let replaced = diagonal + usize::from(to[j] != letter);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_find_the_key_that_was_meant() {
        let known = ["sv1_listen", "sv2_listen", "proxy_protocol", "max_connections"];
        assert_eq!(nearest("sv1_lisen", &known), Some("sv1_listen"));
        assert_eq!(nearest("max_conections", &known), Some("max_connections"));
        assert_eq!(nearest("colour", &known), None);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }

    #[test]
    fn values_of_wrong_types_are_all_named() {
        let text = "a = 1\nb = \"x\"\n[c]\nd = true\ne = nan\nf = 7\n";
        let table = DeTable::parse(text).expect("valid TOML");
        let mut findings = Findings::new(text, Path::new(""));
        let mut document = Section::document(table.get_ref());
        assert_eq!(document.string(&mut findings, "a"), None);
        assert_eq!(document.integer(&mut findings, "b", 0..=9), None);
        let mut section = document.section(&mut findings, "c");
        assert_eq!(section.number(&mut findings, "d"), None);
        assert_eq!(section.number(&mut findings, "e"), None);
        assert_eq!(section.integer(&mut findings, "f", 8..=9), None);
        section.finish(&mut findings);
        document.finish(&mut findings);
        let found: Vec<String> = findings.problems.iter().map(Problem::to_string).collect();
        assert_eq!(
            found,
            [
                "line 1: a: must be a text in quotation marks, not of the type integer",
                "line 2: b: must be a whole number, not of the type string",
                "line 4: c.d: must be a number, not of the type boolean",
                "line 5: c.e: is not a number that can be used",
                "line 6: c.f: 7 is not from 8 to 9",
            ]
        );
        assert_eq!(findings.known, ["a", "b", "c.d", "c.e", "c.f"]);
    }
}
