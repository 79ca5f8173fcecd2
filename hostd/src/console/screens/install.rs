//! Pick a disk, confirm, watch.

use api::hosts::DiskInfo;
use api::install::InstallPhase;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::Line;
use ratatui::widgets::{Block, Gauge, Paragraph, Row, Table, Wrap};

use super::{reversed, size};
use crate::console::state::State;

pub(super) fn draw_disks(state: &State, frame: &mut Frame<'_>, area: Rect) {
    let block = Block::bordered().title(" Install: choose the disk ");
    let disks = state
        .install
        .as_ref()
        .map_or(&[][..], |install| &install.disks);
    if disks.is_empty() {
        let text = "No disk was found. Attach one of 4 GiB or more; it appears here by itself.";
        frame.render_widget(
            Paragraph::new(text).block(block).wrap(Wrap { trim: true }),
            area,
        );
        return;
    }
    let rows = disks.iter().enumerate().map(|(index, disk)| {
        let row = Row::new([
            disk.name.clone(),
            size(disk.size_bytes),
            disk.serial.clone(),
            disk.content.clone(),
        ]);
        if index == state.selected {
            row.style(reversed())
        } else {
            row
        }
    });
    let widths = [
        Constraint::Length(10),
        Constraint::Length(9),
        // As long as serial numbers are in practice: a person tells disks apart by them.
        Constraint::Length(20),
        Constraint::Min(20),
    ];
    let head = Row::new(["disk", "size", "serial", "what is on it"]);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let [table, chosen] =
        Layout::vertical([Constraint::Min(2), Constraint::Length(4)]).areas(inner);
    frame.render_widget(Table::new(rows, widths).header(head), table);
    if let Some(disk) = disks.get(state.selected) {
        let about = format!("{}  {}: {}", disk.name, label(disk), disk.content);
        frame.render_widget(Paragraph::new(about).wrap(Wrap { trim: true }), chosen);
    }
}

fn label(disk: &DiskInfo) -> String {
    [disk.model.as_str(), disk.serial.as_str()]
        .join(" ")
        .trim()
        .to_owned()
}

pub(super) fn draw_confirm(
    state: &State,
    disk: &str,
    erase: bool,
    typed: &str,
    frame: &mut Frame<'_>,
    area: Rect,
) {
    let found = state
        .install
        .as_ref()
        .and_then(|install| install.disks.iter().find(|d| d.name == disk));
    let about = found.map_or(String::new(), |d| {
        format!("{}  {}  {}", d.name, size(d.size_bytes), label(d))
    });
    let content = found.map_or(String::new(), |d| d.content.clone());
    let warning = if erase {
        format!("This disk is NOT blank: {content}. Everything on it will be ERASED.")
    } else {
        "This disk is blank.".to_owned()
    };
    let lines = vec![
        Line::from(about),
        Line::from(""),
        Line::from(warning),
        Line::from(""),
        Line::from(format!(
            "Type {disk} and press Enter to install onto it: {typed}_"
        )),
    ];
    let block = Block::bordered().title(" Install: confirm ");
    frame.render_widget(
        Paragraph::new(lines).block(block).wrap(Wrap { trim: true }),
        area,
    );
}

pub(super) fn draw_progress(state: &State, frame: &mut Frame<'_>, area: Rect) {
    let block = Block::bordered().title(" Installing ");
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let [text, bar] = Layout::vertical([Constraint::Length(3), Constraint::Length(3)]).areas(inner);
    let (percent, sentence) = match state.install.as_ref().map(|install| &install.phase) {
        Some(InstallPhase::Running {
            step,
            progress,
            detail,
        }) => (progress.0, format!("{step:?}: {detail}")),
        Some(InstallPhase::Done) => (
            100,
            "Installed. The machine restarts from its disk.".to_owned(),
        ),
        Some(InstallPhase::Waiting | InstallPhase::Failed { .. }) | None => {
            (0, "starting …".to_owned())
        }
    };
    frame.render_widget(Paragraph::new(sentence).wrap(Wrap { trim: true }), text);
    frame.render_widget(
        Gauge::default()
            .percent(u16::from(percent.min(100)))
            .block(Block::bordered()),
        bar,
    );
}

#[cfg(test)]
mod tests {
    use super::super::testing::rendered;
    use super::*;
    use crate::console::event::Event;
    use crate::console::state::Screen;
    use api::install::InstallStatus;

    #[test]
    fn a_disk_with_data_is_shown_with_what_is_on_it_and_a_warning() {
        let mut state = State {
            screen: Screen::InstallDisks,
            ..State::default()
        };
        let disk = DiskInfo {
            name: "nvme0n1".into(),
            size_bytes: 500 << 30,
            model: "Samsung SSD 980 PRO 1TB".into(),
            serial: "S5GXNX0R123456".into(),
            content: "ext4 file system".into(),
            ..DiskInfo::default()
        };
        let phase = InstallPhase::Waiting;
        state.on(Event::Install(InstallStatus {
            version: "0.1.0".into(),
            disks: vec![disk],
            phase,
        }));
        let text = rendered(&state);
        assert!(
            text.contains("nvme0n1    500 GiB   S5GXNX0R123456       ext4 file system"),
            "{text}"
        );
        assert!(
            text.contains("nvme0n1  Samsung SSD 980 PRO 1TB S5GXNX0R123456: ext4 file system"),
            "{text}"
        );
        state.screen = Screen::InstallConfirm {
            disk: "nvme0n1".into(),
            erase: true,
            typed: "nv".into(),
        };
        let text = rendered(&state);
        assert!(
            text.contains("NOT blank: ext4 file system. Everything on it will be ERASED"),
            "{text}"
        );
        assert!(text.contains("install onto it: nv_"), "{text}");
    }
}
