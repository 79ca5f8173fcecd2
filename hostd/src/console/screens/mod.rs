//! One file per screen: what it draws. Keys are handled in `state`.

pub mod install;
pub mod logs;
pub mod network;
pub mod power;
pub mod status;
pub mod vms;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph, Wrap};

use super::state::{Screen, State};

/// Draws everything.
pub fn draw(state: &State, frame: &mut Frame<'_>) {
    let [title, body, message, help] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(3),
        Constraint::Length(2),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(title_line(state)).style(reversed()), title);
    draw_body(state, frame, body);
    if let Some(why) = &state.unreachable {
        frame.render_widget(
            Paragraph::new(format!("hostd does not answer: {why}")).wrap(Wrap { trim: true }),
            message,
        );
    } else if let Some(text) = &state.message {
        frame.render_widget(
            Paragraph::new(text.as_str()).wrap(Wrap { trim: true }),
            message,
        );
    }
    frame.render_widget(
        Paragraph::new(help_line(&state.screen)).style(reversed()),
        help,
    );
}

fn draw_body(state: &State, frame: &mut Frame<'_>, area: Rect) {
    match &state.screen {
        Screen::Waiting => frame.render_widget(
            Paragraph::new("waiting for hostd …").block(Block::bordered()),
            area,
        ),
        Screen::InstallDisks => install::draw_disks(state, frame, area),
        Screen::InstallConfirm { disk, erase, typed } => {
            install::draw_confirm(state, disk, *erase, typed, frame, area);
        }
        Screen::InstallProgress => install::draw_progress(state, frame, area),
        Screen::Status => status::draw(state, frame, area),
        Screen::Vms => vms::draw(state, frame, area),
        Screen::Network => network::draw(state, frame, area),
        Screen::Logs => logs::draw(state, frame, area),
        Screen::Power => power::draw(state, frame, area),
    }
}

fn title_line(state: &State) -> Line<'static> {
    let (name, version) = state
        .system
        .as_ref()
        .map_or((String::new(), String::new()), |system| {
            let name = system
                .hostname
                .as_ref()
                .map_or(String::new(), |name| format!(" · {name}"));
            (name, format!(" {}", system.version))
        });
    Line::from(format!(" limiquantix{version}{name}"))
}

fn help_line(screen: &Screen) -> &'static str {
    match screen {
        Screen::Waiting | Screen::InstallProgress => "",
        Screen::InstallDisks => " ↑↓ choose   Enter install onto this disk",
        Screen::InstallConfirm { .. } => " type the disk's name, then Enter   Esc back",
        Screen::Network => " Tab next field   Space DHCP/static   Enter apply   Esc back",
        Screen::Vms => " ↑↓ choose  s start  o power off │ 1 Status 2 VMs 3 Network 4 Logs 5 Power",
        Screen::Power => {
            " r restart  o switch off, then Enter │ 1 Status 2 VMs 3 Network 4 Logs 5 Power"
        }
        Screen::Status | Screen::Logs => " 1 Status  2 VMs  3 Network  4 Logs  5 Power",
    }
}

pub(crate) fn reversed() -> Style {
    Style::default().add_modifier(Modifier::REVERSED)
}

/// A size an administrator reads: whole units, one decimal from 10 GiB down.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut tenths = u128::from(bytes) * 10;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    if tenths < 100 && unit > 0 {
        format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    } else {
        format!("{} {}", tenths / 10, UNITS[unit])
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    /// The screen as an 80×25 terminal shows it.
    pub(crate) fn rendered(state: &State) -> String {
        let mut terminal = Terminal::new(TestBackend::new(80, 25)).expect("a test backend");
        terminal.draw(|frame| draw(state, frame)).expect("drawn");
        let buffer = terminal.backend().buffer();
        let row = |y| (0..80).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..25)
            .map(|y| row(y).trim_end().to_owned() + "\n")
            .collect()
    }
}
