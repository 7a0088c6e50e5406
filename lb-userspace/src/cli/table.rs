//! Tables and key-value blocks as text: no borders, aligned, a colour only where it says something.
//!
//! Refuses to know: what is shown, and whether there is a terminal (the caller says so).

use comfy_table::{Attribute, CellAlignment, Color, ContentArrangement, presets};

/// What a value says at a glance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// Nothing in particular.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// Deserves a look.
    Warn,
    /// Broken.
    Bad,
    /// Of little interest.
    Faint,
}

/// A value of a table.
#[derive(Clone, Debug)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), tone: Tone::Plain }
    }
}

impl Cell {
    /// A value with a tone.
    pub fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: text.into(), tone }
    }
}

/// A column's heading; numbers stand to the right.
#[derive(Clone, Copy, Debug)]
pub enum Column {
    /// Words.
    Left(&'static str),
    /// Numbers.
    Right(&'static str),
}

/// Replaces control characters, so that no name or message can steer the terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A table, one line per row, without trailing blanks, with a final newline.
pub fn table(columns: &[Column], rows: Vec<Vec<Cell>>, colour: bool) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if colour {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table.set_header(columns.iter().map(|column| {
        let (Column::Left(text) | Column::Right(text)) = column;
        let cell = comfy_table::Cell::new(text);
        if colour { cell.add_attribute(Attribute::Bold) } else { cell }
    }));
    for row in rows {
        table.add_row(row.into_iter().map(|cell| paint(comfy_table::Cell::new(printable(&cell.text)), cell.tone)));
    }
    for (index, kind) in columns.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
            if matches!(kind, Column::Right(_)) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    let mut out = table.trim_fmt();
    out.push('\n');
    out
}

/// Lines of `key  value`, values aligned.
pub fn block(pairs: &[(&str, Cell)], colour: bool) -> String {
    let width = pairs.iter().map(|(key, _)| key.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for (key, cell) in pairs {
        let value = printable(&cell.text);
        let value = if colour { tinted(&value, cell.tone) } else { value };
        out.push_str(format!("{key:<width$}  {value}").trim_end());
        out.push('\n');
    }
    out
}

/// `text` in the colour of `tone`, as an escape sequence for a terminal.
pub fn tinted(text: &str, tone: Tone) -> String {
    match tone {
        Tone::Plain => text.to_owned(),
        Tone::Good => format!("\x1b[32m{text}\x1b[0m"),
        Tone::Warn => format!("\x1b[33m{text}\x1b[0m"),
        Tone::Bad => format!("\x1b[31m{text}\x1b[0m"),
        Tone::Faint => format!("\x1b[2m{text}\x1b[0m"),
    }
}

fn paint(cell: comfy_table::Cell, tone: Tone) -> comfy_table::Cell {
    match tone {
        Tone::Plain => cell,
        Tone::Good => cell.fg(Color::DarkGreen),
        Tone::Warn => cell.fg(Color::DarkYellow),
        Tone::Bad => cell.fg(Color::DarkRed),
        Tone::Faint => cell.add_attribute(Attribute::Dim),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_to_the_right_and_lines_end_clean() {
        let rows = vec![vec!["a".into(), "1".into(), "x".into()], vec!["bcd".into(), "234".into(), "".into()]];
        let columns = [Column::Left("NAME"), Column::Right("N"), Column::Left("NOTE")];
        assert_eq!(table(&columns, rows, false), "NAME    N  NOTE\na       1  x\nbcd   234\n");
    }

    #[test]
    fn colours_only_when_asked_for() {
        let rows = || vec![vec![Cell::toned("down", Tone::Bad)]];
        assert!(!table(&[Column::Left("H")], rows(), false).contains('\x1b'));
        assert!(table(&[Column::Left("H")], rows(), true).contains("\x1b["));
        assert_eq!(block(&[("node", Cell::toned("a", Tone::Good))], false), "node  a\n");
        assert_eq!(block(&[("node", Cell::toned("a", Tone::Good))], true), "node  \x1b[32ma\x1b[0m\n");
    }

    #[test]
    fn names_cannot_steer_the_terminal() {
        let rows = vec![vec!["\x1b[2Jx\n".into()]];
        assert_eq!(table(&[Column::Left("H")], rows, false), "H\n\u{fffd}[2Jx\u{fffd}\n");
    }
}
