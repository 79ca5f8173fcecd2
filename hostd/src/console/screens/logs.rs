//! The last lines of the log.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph};

use crate::console::state::State;

pub(super) fn draw(state: &State, frame: &mut Frame<'_>, area: Rect) {
    let block = Block::bordered().title(" Log ");
    let rows = usize::from(block.inner(area).height);
    let skip = state.logs.len().saturating_sub(rows);
    let lines: Vec<Line<'_>> = state
        .logs
        .iter()
        .skip(skip)
        .map(|line| Line::from(format!("{:<5} {}", line.level, printable(&line.message))))
        .collect();
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

/// A log line may carry what a guest or a peer sent: no control character reaches the terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '·' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_line_cannot_drive_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\n"), "a·[2Jb·");
    }
}
