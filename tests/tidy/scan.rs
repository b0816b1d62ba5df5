//! Just enough of Rust's lexical rules to tell code from comments and texts, and to find where functions end.

/// A source file with everything that is no code blanked out, byte for byte, line feeds kept.
pub(crate) fn code_of(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match &bytes[at..] {
            [b'/', b'/', ..] => position(bytes, at, b"\n"),
            [b'/', b'*', ..] => end_of_comment(bytes, at),
            [b'"', ..] => end_of_text(bytes, at),
            [b'\'', ..] => match end_of_character(text, at) {
                Some(end) => end,
                None => {
                    at += 1;
                    continue;
                }
            },
            [b'r', ..] if !continues_a_name(bytes, at) => match end_of_raw_text(bytes, at) {
                Some(end) => end,
                None => {
                    at += 1;
                    continue;
                }
            },
            _ => {
                at += 1;
                continue;
            }
        };
        code[at..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
        at = end;
    }
    String::from_utf8_lossy(&code).into_owned()
}

fn position(bytes: &[u8], from: usize, needle: &[u8]) -> usize {
    let found = bytes[from..].windows(needle.len()).position(|window| window == needle);
    found.map_or(bytes.len(), |offset| from + offset)
}

fn end_of_comment(bytes: &[u8], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0);
    while at < bytes.len() {
        match &bytes[at..] {
            [b'/', b'*', ..] => (at, depth) = (at + 2, depth + 1),
            [b'*', b'/', ..] => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    at
}

fn end_of_text(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// `None` for a lifetime.
fn end_of_character(text: &str, start: usize) -> Option<usize> {
    let mut rest = text[start + 1..].chars();
    match rest.next()? {
        '\\' => Some(position(text.as_bytes(), start + 3, b"'") + 1),
        character => (rest.next() == Some('\'')).then(|| start + 2 + character.len_utf8()),
    }
}

fn end_of_raw_text(bytes: &[u8], start: usize) -> Option<usize> {
    let hashes = bytes[start + 1..].iter().take_while(|byte| **byte == b'#').count();
    (bytes.get(start + 1 + hashes) == Some(&b'"')).then(|| {
        let end = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
        (position(bytes, start + 2 + hashes, &end) + end.len()).min(bytes.len())
    })
}

fn continues_a_name(bytes: &[u8], at: usize) -> bool {
    // br"..." and cr"..." begin with a letter that is no name of its own.
    let before = |back: usize| at.checked_sub(back).map(|index| bytes[index]);
    let is_name = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    match before(1) {
        Some(b'b' | b'c') => is_name(before(2)),
        other => is_name(other),
    }
}

/// Every word of the code, with where it begins.
pub(crate) fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_name = |character: char| character.is_alphanumeric() || character == '_';
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + code[at..].find(is_name)?;
        let length = code[start..].find(|character| !is_name(character)).unwrap_or(code.len() - start);
        at = start + length;
        Some((start, &code[start..at]))
    })
}

/// The line of a byte, counted from 1.
pub(crate) fn line_of(code: &str, at: usize) -> usize {
    code.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1
}

/// The byte after the bracket that closes the one at `open`.
pub(crate) fn end_of_block(code: &str, open: usize) -> usize {
    let mut depth = 0;
    for (offset, byte) in code.as_bytes()[open..].iter().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => continue,
        }
        if depth == 0 {
            return open + offset + 1;
        }
    }
    code.len()
}

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Function<'a> {
    pub(crate) name: &'a str,
    pub(crate) line: usize,
    pub(crate) lines: usize,
}

/// Every function of the code, those within others too.
pub(crate) fn functions(code: &str) -> Vec<Function<'_>> {
    let mut functions = Vec::new();
    let mut words = words(code).peekable();
    while let Some((start, word)) = words.next() {
        // `fn(u8)` is a type.
        let Some((name_start, name)) = words.peek().copied().filter(|_| word == "fn") else { continue };
        if !code[start + 2..name_start].trim().is_empty() {
            continue;
        }
        let body = code[name_start..].find(['{', ';']).map(|offset| name_start + offset);
        let Some(open) = body.filter(|at| code.as_bytes()[*at] == b'{') else { continue };
        let (first, last) = (line_of(code, start), line_of(code, end_of_block(code, open) - 1));
        functions.push(Function { name, line: first, lines: last - first + 1 });
    }
    functions
}

/// The code without its test modules (`#[cfg(test)] mod ... { }`), which are blanked out, and the names of those that
/// are files of their own.
pub(crate) fn without_tests(code: &str) -> (String, Vec<String>) {
    let mut shown = code.as_bytes().to_vec();
    let mut files = Vec::new();
    for (start, _) in code.match_indices("#[cfg(test)]") {
        let Some(end) = code[start..].find(['{', ';']).map(|offset| start + offset) else { continue };
        let is_block = code.as_bytes()[end] == b'{';
        let mut item = words(&code[start..end]).map(|(_, word)| word).skip(2);
        if !is_block && item.by_ref().any(|word| word == "mod") {
            files.extend(item.next().map(str::to_owned));
        }
        let end = if is_block { end_of_block(code, end) } else { end + 1 };
        shown[start..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
    }
    (String::from_utf8_lossy(&shown).into_owned(), files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_texts_are_no_code() {
        let text = r##"a /* b /* c */ d */ e "f\"g" h 'i' '\'' j: &'k r"l" m r#"n"o"# p br"q" // r
é 's' "t
u" v"##;
        let code = code_of(text);
        assert_eq!(code.len(), text.len());
        assert_eq!(code.lines().count(), text.lines().count());
        let words: Vec<&str> = words(&code).map(|(_, word)| word).collect();
        assert_eq!(words, ["a", "e", "h", "j", "k", "m", "p", "b", "é", "v"]);
    }

    #[test]
    fn functions_are_measured_from_their_name_to_their_brace() {
        let code = code_of(
            "fn a() {\n    fn b() {}\n}\ntrait T {\n    fn c();\n    fn d(&self) {\n}\n}\ntype E = fn(u8);\n",
        );
        let found = functions(&code);
        let measured: Vec<_> =
            found.iter().map(|function| (function.name, function.line, function.lines)).collect();
        assert_eq!(measured, [("a", 1, 3), ("b", 2, 1), ("d", 6, 2)]);
    }

    #[test]
    fn test_modules_are_left_out() {
        let (shown, files) =
            without_tests("a\n#[cfg(test)]\nmod tests {\n    { b }\n}\nc\n#[cfg(test)]\nmod d;\ne");
        assert_eq!(words(&shown).map(|(_, word)| word).collect::<Vec<_>>(), ["a", "c", "e"]);
        assert_eq!(files, ["d"]);
    }
}
