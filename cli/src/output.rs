//! Printing: a table for people or what the API said for programs.

use std::io::Write;

use serde::Serialize;

use crate::failure::Failure;
use crate::options::Format;

/// Where results go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output(pub(crate) Format);

impl Output {
    /// A list: its items as JSON, or rows under headers.
    pub(crate) fn list<T: Serialize>(
        self,
        items: &[T],
        headers: &[&str],
        row: impl Fn(&T) -> Vec<String>,
    ) -> Result<(), Failure> {
        match self.0 {
            Format::Json => json(&items),
            Format::Table => say(table(headers, items.iter().map(row).collect()).trim_end()),
        }
    }

    /// One object: as JSON, or a sentence.
    pub(crate) fn object<T: Serialize>(
        self,
        object: &T,
        sentence: impl Into<String>,
    ) -> Result<(), Failure> {
        match self.0 {
            Format::Json => json(object),
            Format::Table => say(&sentence.into()),
        }
    }
}

fn json<T: Serialize + ?Sized>(value: &T) -> Result<(), Failure> {
    let text =
        serde_json::to_string_pretty(value).map_err(|error| Failure::Usage(error.to_string()))?;
    say(&text)
}

/// One line, or several, to standard output. Whoever closed it has had enough.
pub(crate) fn say(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.map_err(Failure::here("could not write to standard output")),
    }
}

/// Columns as wide as their widest cell, two spaces apart.
fn table(headers: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut all = vec![
        headers
            .iter()
            .map(|header| header.to_uppercase())
            .collect::<Vec<_>>(),
    ];
    all.extend(rows);
    let width = |column: usize| {
        let cells = all.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headers.len()).map(width).collect();
    let mut text = String::new();
    for row in &all {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A word for a unit enum as the API spells it.
pub(crate) fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        // An enum with fields: its tag.
        Ok(serde_json::Value::Object(map)) => map.keys().next().cloned().unwrap_or_default(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use api::tasks::TaskPhase;
    use api::vms::VmExit;
    use api::{ApiError, ErrorCode};
    use expect_test::expect;

    use super::*;

    #[test]
    fn a_table_is_as_wide_as_it_must_be() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let text = table(
            &["name", "phase", "why"],
            vec![
                row(["web", "running", ""]),
                row(["ä-longer", "failed", "no memory"]),
            ],
        );
        expect![[r#"
            NAME      PHASE    WHY
            web       running
            ä-longer  failed   no memory
        "#]]
        .assert_eq(&text);
    }

    #[test]
    fn words_are_those_of_the_api() {
        let failed = TaskPhase::Failed {
            error: ApiError::new(ErrorCode::Internal, "m", "h"),
        };
        assert_eq!(word(&failed), "failed");
        assert_eq!(word(&VmExit::GuestPowerOff), "guest_power_off");
    }
}
