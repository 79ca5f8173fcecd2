//! Restart or switch off.

use api::system::PowerAction;
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph, Wrap};

use crate::console::state::State;

pub(super) fn draw(state: &State, frame: &mut Frame<'_>, area: Rect) {
    let armed = match state.power_armed {
        None => "Press r to restart or o to switch off.",
        Some(PowerAction::Reboot) => "Press Enter to RESTART this host. Any screen key cancels.",
        Some(PowerAction::PowerOff) => {
            "Press Enter to SWITCH OFF this host. Any screen key cancels."
        }
    };
    let lines = vec![
        Line::from(format!("{} VMs are known to this host.", state.vms.len())),
        Line::from("Running guests are asked to power off first."),
        Line::from(""),
        Line::from(armed),
    ];
    let block = Block::bordered().title(" Power ");
    frame.render_widget(
        Paragraph::new(lines).block(block).wrap(Wrap { trim: true }),
        area,
    );
}
