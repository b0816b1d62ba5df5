//! Patterns over names: `*` stands for any text, `?` for one letter, everything else for itself.
//!
//! Matching takes time that grows with the product of both lengths at most, whatever the pattern.

/// The longest pattern, in bytes.
pub const MAX_PATTERN: usize = 255;

/// Whether a name matches a pattern, from its first letter to its last.
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut place) = (0, 0);
    // Where to go on when what follows the last star does not match: one letter further.
    let mut star: Option<(usize, usize)> = None;
    while place < name.len() {
        if at < pattern.len() && pattern[at] == '*' {
            star = Some((at + 1, place));
            at += 1;
        } else if at < pattern.len() && (pattern[at] == '?' || pattern[at] == name[place]) {
            at += 1;
            place += 1;
        } else if let Some((after, from)) = star {
            star = Some((after, from + 1));
            (at, place) = (after, from + 1);
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(|letter| *letter == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_marks_stand_for_letters() {
        for (pattern, name) in
            [("*", ""), ("farm.*", "farm.a"), ("f?rm.*7", "farm.rig17"), ("*.a*b*", "x.aab"), ("ü?", "üä")]
        {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("", "a"), ("farm.*", "farms"), ("?", ""), ("a*b", "abc"), ("*.a*b", "x.ab.")]
        {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
        // Stars that could be tried in very many ways are not.
        assert!(!matches(&"*a".repeat(100), &"a".repeat(99)));
    }
}
