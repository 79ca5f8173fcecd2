//! Addresses, fingerprint, setup token, VMs, health.

use api::vms::VmPhase;
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph, Wrap};

use crate::console::state::State;

pub(super) fn draw(state: &State, frame: &mut Frame<'_>, area: Rect) {
    let block = Block::bordered().title(" Status ");
    frame.render_widget(
        Paragraph::new(lines(state))
            .block(block)
            .wrap(Wrap { trim: false }),
        area,
    );
}

fn lines(state: &State) -> Vec<Line<'static>> {
    let Some(system) = &state.system else {
        return vec![Line::from("waiting for hostd …")];
    };
    let mut lines = Vec::new();
    let mut field =
        |name: &str, value: String| lines.push(Line::from(format!("{name:<13}{value}")));
    if system.addresses.is_empty() {
        field(
            "Address",
            "none yet (waiting for DHCP; press 3 to set one)".to_owned(),
        );
    }
    for (index, address) in system.addresses.iter().enumerate() {
        field(if index == 0 { "Address" } else { "" }, address.clone());
    }
    if let Some(fingerprint) = &system.fingerprint {
        let (first, second) = fingerprint.split_at(fingerprint.len().min(32));
        field("Fingerprint", first.to_owned());
        field("", second.to_owned());
    }
    field(
        "Kernel",
        format!("{}   up {}", system.kernel, uptime(system.uptime_seconds)),
    );
    field(
        "Memory",
        format!(
            "{} of {} promised to VMs",
            system.memory_promised, system.memory_total
        ),
    );
    let running = state
        .vms
        .iter()
        .filter(|vm| vm.phase == VmPhase::Running)
        .count();
    field(
        "VMs",
        format!("{running} running, {} in all", state.vms.len()),
    );
    if let Some(setup) = state.setup.as_ref().filter(|setup| !setup.done) {
        field("", String::new());
        field("Setup token", setup.token.clone().unwrap_or_default());
        field(
            "",
            "No administrator exists yet. Enrol one from your desk:".to_owned(),
        );
        let url = system
            .addresses
            .first()
            .map_or("https://ADDRESS", |address| address.as_str());
        field("", format!("lqx setup {url} --token TOKEN"));
    }
    field("", String::new());
    if system.conditions.is_empty() {
        field("Health", "ok".to_owned());
    }
    for condition in &system.conditions {
        field(
            "Health",
            format!("{}: {} {}", condition.code, condition.cause, condition.next),
        );
    }
    lines
}

fn uptime(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    if days > 0 {
        format!("{days} d {hours} h")
    } else {
        format!("{hours} h {minutes} min")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::testing::rendered;
    use super::*;
    use crate::console::state::Screen;
    use api::system::{Mode, System};
    use api::units::Mib;
    use api::users::SetupStatus;

    pub(crate) fn system() -> System {
        System {
            version: "0.1.0".into(),
            mode: Mode::Run,
            host: None,
            hostname: "lqx-a1".parse().ok(),
            kernel: "6.1.0".into(),
            uptime_seconds: 3700,
            fingerprint: Some("ab".repeat(32)),
            addresses: vec!["https://192.0.2.7".into()],
            revision: 3,
            memory_promised: Mib(256),
            memory_total: Mib(2048),
            secure_boot: false,
            tpm: false,
            conditions: vec![],
        }
    }

    #[test]
    fn the_status_screen_shows_what_an_administrator_needs_to_enrol() {
        let setup = Some(SetupStatus {
            done: false,
            token: Some("7QXK-22FM".into()),
        });
        let state = State {
            screen: Screen::Status,
            system: Some(system()),
            setup,
            ..State::default()
        };
        let text = rendered(&state);
        for part in [
            "https://192.0.2.7",
            &"ab".repeat(16),
            "Setup token  7QXK-22FM",
            "Health       ok",
            "lqx-a1",
        ] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
    }

    #[test]
    fn the_token_is_gone_once_an_administrator_exists() {
        let setup = Some(SetupStatus {
            done: true,
            token: None,
        });
        let state = State {
            screen: Screen::Status,
            system: Some(system()),
            setup,
            ..State::default()
        };
        assert!(!rendered(&state).contains("Setup token"));
    }
}
