//! What is wrong with a configuration, and what is only worth saying.

use std::fmt;
use std::path::PathBuf;

/// One fault. It names its key, and where the key is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The dotted key, such as `downstream.sv1_listen` or `upstream[0].url`; empty for a fault of the whole file.
    pub key: String,
    /// The line of the file, counted from 1, where there is one.
    pub line: Option<usize>,
    /// What is wrong, in lower case and without a full stop. Never contains a secret.
    pub what: String,
}

/// Something that was understood, but perhaps not as it was meant.
pub type Note = Problem;

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)
    }
}

/// All faults of one file; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    /// The file.
    pub file: PathBuf,
    /// Its faults, in the order of its lines, those without a line first.
    pub list: Vec<Problem>,
}

impl Problems {
    /// A single fault of the whole file.
    pub(crate) fn of_file(file: PathBuf, what: String) -> Self {
        Problems { file, list: vec![Problem { key: String::new(), line: None, what }] }
    }

    /// Puts the faults into the order of the file.
    pub(crate) fn sorted(file: PathBuf, mut list: Vec<Problem>) -> Self {
        list.sort_by_key(|problem| problem.line);
        Problems { file, list }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.list.len();
        let problems = if count == 1 { "problem" } else { "problems" };
        write!(f, "{}: {count} {problems}", self.file.display())?;
        for problem in &self.list {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
