//! The VMs, with why one is not well.

use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::widgets::{Block, Paragraph, Row, Table};

use super::reversed;
use crate::console::state::State;

pub(super) fn draw(state: &State, frame: &mut Frame<'_>, area: Rect) {
    let block = Block::bordered().title(" VMs ");
    if state.vms.is_empty() {
        frame.render_widget(
            Paragraph::new("There is no VM yet. Create one with `lqx vm create`.").block(block),
            area,
        );
        return;
    }
    let rows = state.vms.iter().enumerate().map(|(index, vm)| {
        let phase = format!("{:?}", vm.phase).to_lowercase();
        let why = vm
            .condition
            .as_ref()
            .map_or(String::new(), |condition| condition.cause.clone());
        let row = Row::new([
            vm.name.to_string(),
            phase,
            vm.vcpus.to_string(),
            vm.memory.to_string(),
            why,
        ]);
        if index == state.selected {
            row.style(reversed())
        } else {
            row
        }
    });
    let widths = [
        Constraint::Length(20),
        Constraint::Length(10),
        Constraint::Length(5),
        Constraint::Length(10),
        Constraint::Min(20),
    ];
    let head = Row::new(["name", "phase", "vCPUs", "memory", "why"]);
    frame.render_widget(Table::new(rows, widths).header(head).block(block), area);
}
