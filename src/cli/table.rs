//! Tables of text.

use super::output::escaped;

/// The heading of a column, and the alignment of its cells.
#[derive(Clone, Copy, Debug)]
pub(super) enum Column {
    /// Aligned to the left, for words.
    Left(&'static str),
    /// Aligned to the right, for numbers.
    Right(&'static str),
}

/// Lays out rows below their headings. Columns are two spaces apart, and lines have no spaces at
/// their ends.
///
/// The text of cells may come from registries, so characters that are not printable are escaped.
pub(super) fn aligned<const N: usize>(columns: [Column; N], rows: &[[String; N]]) -> String {
    let headings = columns.map(|column| match column {
        Column::Left(heading) | Column::Right(heading) => heading.to_owned(),
    });
    let lines: Vec<[String; N]> = std::iter::once(&headings)
        .chain(rows)
        .map(|row| row.each_ref().map(|cell| shown(cell)))
        .collect();
    let mut widths = [0; N];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for line in &lines {
        let cells = line
            .iter()
            .zip(widths)
            .zip(columns)
            .map(|((cell, width), column)| match column {
                Column::Left(_) => format!("{cell:<width$}"),
                Column::Right(_) => format!("{cell:>width$}"),
            });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A number with at most this many digits behind the point, without zeros at its end: 2, 0.25.
pub(super) fn decimal(number: f64, digits: usize) -> String {
    let text = format!("{number:.digits$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The text of a cell: a dash for an empty cell.
fn shown(cell: &str) -> String {
    if cell.is_empty() {
        return "-".to_owned();
    }
    escaped(cell)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_aligned_left_and_numbers_right() {
        let row = |name: &str, count: &str, note: &str| [name.to_owned(), count.to_owned(), note.to_owned()];
        assert_eq!(
            aligned(
                [Column::Left("NAME"), Column::Right("N"), Column::Left("NOTE")],
                &[row("a", "1", "x"), row("größer", "100", ""), row("b\x1b[2J", "12", "z")],
            ),
            "NAME          N  NOTE\n\
             a             1  x\n\
             größer      100  -\n\
             b\\u{1b}[2J   12  z\n"
        );
        assert_eq!(aligned([Column::Left("NAME"), Column::Right("N")], &[]), "NAME  N\n");
    }
}
