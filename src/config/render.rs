//! Writes the effective configuration as TOML.
//!
//! It is never handed a secret: secrets are comments that say that there is one.

use toml::Value;

/// A TOML document that grows section by section.
#[derive(Default)]
pub(super) struct Page(String);

impl Page {
    /// Starts a table; `header` with its brackets.
    pub(super) fn section(&mut self, header: &str) {
        if !self.0.is_empty() {
            self.0.push('\n');
        }
        self.0.push_str(header);
        self.0.push('\n');
    }

    /// A key of the table.
    pub(super) fn key(&mut self, key: &str, value: impl Into<Value>) {
        let value: Value = value.into();
        self.0.push_str(&format!("{key} = {value}\n"));
    }

    /// A key that may be absent.
    pub(super) fn optional(&mut self, key: &str, value: Option<String>) {
        if let Some(value) = value {
            self.key(key, value);
        }
    }

    /// Something that the reader may know.
    pub(super) fn comment(&mut self, text: &str) {
        self.0.push_str(&format!("# {text}\n"));
    }

    /// Something that the reader may only know of.
    pub(super) fn hidden(&mut self, what: &str) {
        self.comment(&format!("{what}: <hidden>"));
    }

    pub(super) fn finish(self) -> String {
        self.0
    }
}
