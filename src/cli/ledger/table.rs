//! Tables for people: columns as wide as what is in them, texts to the left and numbers to the right.

use std::io::{self, Write};

/// A table that is printed when it is complete.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    /// Columns that are texts.
    texts: usize,
}

impl Table {
    /// The first `texts` columns are texts, the others are numbers.
    pub(super) fn new(texts: usize, header: &[&str]) -> Self {
        Table { rows: vec![header.iter().map(ToString::to_string).collect()], texts }
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub(super) fn print(&self, output: &mut impl Write) -> io::Result<()> {
        let columns = self.rows[0].len();
        let width =
            |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let padding = " ".repeat(widths[column] - cell.chars().count());
                let gap = if column == 0 { "" } else { "  " };
                let (before, after) = if column < self.texts { ("", &*padding) } else { (&*padding, "") };
                line.extend([gap, before, cell, after]);
            }
            writeln!(output, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A text that comes from a peer, without what would move the cursor or change the screen.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(1, &["device", "shares"]);
        table.row(vec!["a".to_owned(), "12".to_owned()]);
        table.row(vec!["longer name".to_owned(), "1234567".to_owned()]);
        let mut output = Vec::new();
        table.print(&mut output).expect("memory");
        let text = String::from_utf8(output).expect("text");
        assert_eq!(text, "device        shares\na                 12\nlonger name  1234567\n");
        assert_eq!(plain("a\u{1b}[2Jb"), "a\u{fffd}[2Jb");
    }
}
