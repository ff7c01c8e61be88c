//! Text in columns.

/// A column's heading, and the side its cells lean to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Column {
    /// Words.
    Left(&'static str),
    /// Numbers.
    Right(&'static str),
}

/// Lays rows out below their headings, two spaces apart, without spaces at line ends.
///
/// Cells come from registries by way of the agent: what could move a terminal's cursor is shown as `?`.
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

fn shown(cell: &str) -> String {
    if cell.is_empty() {
        return "-".to_owned();
    }
    cell.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_lean_left_and_numbers_right() {
        let row = |name: &str, count: &str, note: &str| [name.to_owned(), count.to_owned(), note.to_owned()];
        assert_eq!(
            aligned(
                [Column::Left("NAME"), Column::Right("N"), Column::Left("NOTE")],
                &[row("a", "1", "x"), row("größer", "100", ""), row("b\x1b[2J", "12", "z")],
            ),
            "NAME      N  NOTE\n\
             a         1  x\n\
             größer  100  -\n\
             b?[2J    12  z\n"
        );
        assert_eq!(aligned([Column::Left("NAME"), Column::Right("N")], &[]), "NAME  N\n");
    }
}
