//! Text tables: columns as wide as their widest cell, three spaces between them.

/// Lays out rows under a header. Every line ends in a line break and none in blanks.
pub(crate) fn render<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let widths: [usize; N] = std::array::from_fn(|column| {
        rows.iter()
            .map(|row| row[column].len())
            .fold(header[column].len(), usize::max)
    });
    let line = |cells: [&str; N]| {
        let padded: Vec<String> = cells
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        format!("{}\n", padded.join("   ").trim_end())
    };
    let body = rows
        .iter()
        .map(|row| line(std::array::from_fn(|column| row[column].as_str())));
    std::iter::once(line(header)).chain(body).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["emojivoto".to_owned(), "8080".to_owned()]];
        assert_eq!(
            super::render(["NS", "PORT"], &rows),
            "NS          PORT\nemojivoto   8080\n"
        );
    }
}
