//! The configurations that the README shows, so that tests can run what it says.
#![expect(dead_code, reason = "each test program uses its own part of this file")]

/// Never called, so that the expectation above holds where everything else is used.
fn unused() {}

const README: &str = include_str!("../../README.md");

/// A configuration that is shown, under the name of its file, which its first line says.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) file: String,
    pub(crate) text: String,
}

/// Everything that is shown as TOML, in its order.
pub(crate) fn all_shown() -> Vec<Shown> {
    let blocks = README.split("```toml\n").skip(1);
    let text = |block: &str| block.split_once("```").expect("a block ends").0.to_owned();
    let shown = blocks.map(text).map(|text| {
        let first = text.lines().next().and_then(|line| line.strip_prefix("# "));
        Shown { file: first.expect("the first line names the file").to_owned(), text }
    });
    shown.collect()
}

/// The configuration of this file, with other ports and paths: each of `instead` is a text that is there, and what is put
/// in its place.
pub(crate) fn shown(file: &str, instead: &[(&str, &str)]) -> String {
    let shown = all_shown().into_iter().find(|shown| shown.file == file);
    let mut text = shown.unwrap_or_else(|| panic!("the README shows no {file}")).text;
    for (there, other) in instead {
        assert!(text.contains(there), "{file} of the README has no {there}:\n{text}");
        text = text.replace(there, other);
    }
    text
}
