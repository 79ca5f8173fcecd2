//! All that is known; changed only in the loop.
//!
//! ```text
//!   install mode:  Disks ──Enter──► Confirm ──Enter──► Progress ──failed──► Disks
//!   run mode:      Status · VMs · Network · Logs · Power, by their digits
//! ```

use std::collections::VecDeque;

use api::install::{InstallPhase, InstallRequest, InstallStatus};
use api::system::{LogLine, Mode, NetworkSettings, PowerAction, System};
use api::users::SetupStatus;
use api::vms::Vm;

use super::action::Action;
use super::event::Event;
use super::keys::{self, Key};
use super::screens::network::NetworkForm;

/// Log lines kept for the log screen.
pub const LOG_LINES_MAX: usize = 500;

/// Which screen is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Screen {
    /// Waiting for the daemon's first answer.
    Waiting,
    /// Pick a disk.
    InstallDisks,
    /// Name the disk again when it is not blank, then install.
    InstallConfirm {
        /// The disk's kernel name.
        disk: String,
        /// It has something on it.
        erase: bool,
        /// What was typed so far.
        typed: String,
    },
    /// The progress bar.
    InstallProgress,
    /// Addresses, fingerprint, setup token, health.
    Status,
    /// The VMs.
    Vms,
    /// The management address.
    Network,
    /// The log.
    Logs,
    /// Restart or switch off.
    Power,
}

/// Everything the console knows.
#[derive(Debug)]
pub struct State {
    /// The screen shown.
    pub screen: Screen,
    /// The chosen row of lists.
    pub selected: usize,
    /// This host.
    pub system: Option<System>,
    /// Enrolment.
    pub setup: Option<SetupStatus>,
    /// VMs.
    pub vms: Vec<Vm>,
    /// Installer.
    pub install: Option<InstallStatus>,
    /// Management address as it is.
    pub network: Option<NetworkSettings>,
    /// Management address as it is being typed.
    pub network_form: NetworkForm,
    /// The last log lines.
    pub logs: VecDeque<LogLine>,
    /// The status line: what came of the last action.
    pub message: Option<String>,
    /// Why the daemon does not answer.
    pub unreachable: Option<String>,
    /// A power action waiting for its second key.
    pub power_armed: Option<PowerAction>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            screen: Screen::Waiting,
            selected: 0,
            system: None,
            setup: None,
            vms: Vec::new(),
            install: None,
            network: None,
            network_form: NetworkForm::default(),
            logs: VecDeque::new(),
            message: None,
            unreachable: None,
            power_armed: None,
        }
    }
}

impl State {
    /// The highest log line seen: the next question starts after it.
    pub fn log_seq(&self) -> u64 {
        self.logs.back().map_or(0, |line| line.seq)
    }

    /// Takes one event in; what has to be asked of the API in turn is returned.
    pub fn on(&mut self, event: Event) -> Option<Action> {
        match event {
            Event::Key(key) => return keys::translate(key).and_then(|key| self.on_key(key)),
            Event::Resize | Event::TerminalGone(_) => {}
            Event::System(system) => {
                self.unreachable = None;
                if self.screen == Screen::Waiting {
                    self.screen = match system.mode {
                        Mode::Install => Screen::InstallDisks,
                        Mode::Run => Screen::Status,
                    };
                }
                self.system = Some(*system);
            }
            Event::Setup(setup) => self.setup = Some(setup),
            Event::Vms(vms) => {
                self.vms = vms;
                if self.screen == Screen::Vms {
                    self.selected = self.selected.min(self.vms.len().saturating_sub(1));
                }
            }
            Event::Install(status) => self.on_install(status),
            Event::Network(settings) => {
                if self.network.is_none() {
                    self.network_form = NetworkForm::from_settings(&settings);
                }
                self.network = Some(settings);
            }
            Event::Logs(lines) => {
                self.logs.extend(lines);
                let over = self.logs.len().saturating_sub(LOG_LINES_MAX);
                self.logs.drain(..over);
            }
            Event::Accepted(sentence) => self.message = Some(sentence),
            Event::Refused(error) => {
                self.message = Some(format!("{}. {}", error.message, error.hint));
                if self.screen == Screen::InstallProgress {
                    self.screen = Screen::InstallDisks;
                }
            }
            Event::Unreachable(why) => self.unreachable = Some(why),
        }
        None
    }

    fn on_install(&mut self, status: InstallStatus) {
        match &status.phase {
            InstallPhase::Running { .. } | InstallPhase::Done => {
                self.screen = Screen::InstallProgress
            }
            // Once, when it has failed anew: an unattended install may fail before anybody has seen it run.
            InstallPhase::Failed { step, error }
                if self.install.as_ref().map(|install| &install.phase) != Some(&status.phase) =>
            {
                self.message = Some(format!(
                    "{step:?} failed: {}. {}",
                    error.message, error.hint
                ));
                if self.screen == Screen::InstallProgress {
                    self.screen = Screen::InstallDisks;
                }
            }
            InstallPhase::Failed { .. } | InstallPhase::Waiting => {}
        }
        self.selected = match self.screen {
            Screen::InstallDisks => self.selected.min(status.disks.len().saturating_sub(1)),
            _ => self.selected,
        };
        self.install = Some(status);
    }

    fn on_key(&mut self, key: Key) -> Option<Action> {
        match &mut self.screen {
            Screen::Waiting | Screen::InstallProgress => None,
            Screen::InstallDisks => self.on_key_disks(key),
            Screen::InstallConfirm { .. } => self.on_key_confirm(key),
            Screen::Network => self.on_key_network(key),
            Screen::Status | Screen::Logs => {
                self.switch(key);
                None
            }
            Screen::Vms => self.on_key_vms(key),
            Screen::Power => self.on_key_power(key),
        }
    }

    /// The digits choose a screen.
    fn switch(&mut self, key: Key) {
        let screen = match key {
            Key::Char('1') | Key::Back => Screen::Status,
            Key::Char('2') => Screen::Vms,
            Key::Char('3') => Screen::Network,
            Key::Char('4') => Screen::Logs,
            Key::Char('5') => Screen::Power,
            _ => return,
        };
        self.selected = 0;
        self.message = None;
        self.power_armed = None;
        self.screen = screen;
    }

    fn move_selection(&mut self, key: Key, rows: usize) {
        match key {
            Key::Up => self.selected = self.selected.saturating_sub(1),
            Key::Down if self.selected + 1 < rows => self.selected += 1,
            _ => {}
        }
    }

    fn on_key_disks(&mut self, key: Key) -> Option<Action> {
        let disks = self
            .install
            .as_ref()
            .map_or(&[][..], |install| &install.disks);
        if let (Key::Enter, Some(disk)) = (key, disks.get(self.selected)) {
            self.screen = Screen::InstallConfirm {
                disk: disk.name.clone(),
                erase: !disk.blank,
                typed: String::new(),
            };
            self.message = None;
            return None;
        }
        let rows = disks.len();
        self.move_selection(key, rows);
        None
    }

    fn on_key_confirm(&mut self, key: Key) -> Option<Action> {
        let Screen::InstallConfirm { disk, erase, typed } = &mut self.screen else {
            return None;
        };
        match key {
            Key::Back => self.screen = Screen::InstallDisks,
            Key::Erase => {
                typed.pop();
            }
            Key::Char(c) if typed.len() < 64 => typed.push(c),
            Key::Enter if *typed == *disk => {
                let request = InstallRequest {
                    disk: disk.clone(),
                    erase: erase.then(|| disk.clone()),
                    hostname: None,
                    network: None,
                    dry_run: false,
                };
                self.screen = Screen::InstallProgress;
                return Some(Action::Install(request));
            }
            Key::Enter => {
                self.message = Some(format!(
                    "type the disk's name, `{disk}`, to go on; Esc goes back"
                ))
            }
            _ => {}
        }
        None
    }

    fn on_key_vms(&mut self, key: Key) -> Option<Action> {
        let vm = self.vms.get(self.selected).map(|vm| vm.id.to_string());
        match (key, vm) {
            (Key::Char('s'), Some(vm)) => return Some(Action::VmStart(vm)),
            (Key::Char('o'), Some(vm)) => return Some(Action::VmStop(vm)),
            (Key::Up | Key::Down, _) => self.move_selection(key, self.vms.len()),
            _ => self.switch(key),
        }
        None
    }

    fn on_key_network(&mut self, key: Key) -> Option<Action> {
        match key {
            Key::Back => {
                if let Some(settings) = &self.network {
                    self.network_form = NetworkForm::from_settings(settings);
                }
                self.switch(key);
                None
            }
            Key::Enter => match self.network_form.settings() {
                Ok(settings) => Some(Action::NetworkSet(settings)),
                Err(why) => {
                    self.message = Some(why);
                    None
                }
            },
            _ => {
                self.network_form.on(key);
                None
            }
        }
    }

    fn on_key_power(&mut self, key: Key) -> Option<Action> {
        let wanted = match key {
            Key::Char('r') => PowerAction::Reboot,
            Key::Char('o') => PowerAction::PowerOff,
            Key::Enter => return self.power_armed.take().map(Action::Power),
            _ => {
                self.switch(key);
                return None;
            }
        };
        self.power_armed = Some(wanted);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::hosts::DiskInfo;

    fn installer(blank: bool) -> State {
        let disk = DiskInfo {
            name: "vda".into(),
            size_bytes: 8 << 30,
            blank,
            ..DiskInfo::default()
        };
        let mut state = State {
            screen: Screen::InstallDisks,
            ..State::default()
        };
        state.on(Event::Install(InstallStatus {
            version: "0.1.0".into(),
            disks: vec![disk],
            phase: InstallPhase::Waiting,
        }));
        state
    }

    fn type_text(state: &mut State, text: &str) -> Option<Action> {
        let mut last = None;
        for c in text.chars() {
            last = state.on_key(if c == '\n' { Key::Enter } else { Key::Char(c) });
        }
        last
    }

    #[test]
    fn an_unattended_install_that_failed_before_anybody_looked_says_why_once() {
        let mut state = installer(false);
        let mut status = state.install.clone().unwrap();
        status.phase = InstallPhase::Failed {
            step: api::install::InstallStep::Check,
            error: api::ApiError::new(api::ErrorCode::ConsentRequired, "vda is not blank", "h"),
        };
        state.on(Event::Install(status.clone()));
        let message = state.message.take().unwrap();
        assert!(
            message.contains("Check failed: vda is not blank"),
            "{message}"
        );
        state.on(Event::Install(status));
        assert_eq!(state.message, None);
    }

    #[test]
    fn a_disk_is_installed_only_after_its_name_was_typed() {
        let mut state = installer(false);
        assert_eq!(type_text(&mut state, "\nvdb\n"), None);
        assert_eq!(type_text(&mut state, ""), None);
        state.on_key(Key::Erase);
        let action = type_text(&mut state, "a\n");
        let Some(Action::Install(request)) = action else {
            panic!("{action:?}")
        };
        assert_eq!(
            (request.disk.as_str(), request.erase.as_deref()),
            ("vda", Some("vda"))
        );
    }

    #[test]
    fn a_blank_disk_needs_no_consent_to_erase() {
        let mut state = installer(true);
        let Some(Action::Install(request)) = type_text(&mut state, "\nvda\n") else {
            panic!("not installed")
        };
        assert_eq!(request.erase, None);
    }

    #[test]
    fn power_needs_two_keys_and_another_screen_disarms() {
        let mut state = State {
            screen: Screen::Power,
            ..State::default()
        };
        assert_eq!(type_text(&mut state, "\n"), None);
        assert_eq!(type_text(&mut state, "r15\n"), None);
        assert_eq!(
            type_text(&mut state, "o\n"),
            Some(Action::Power(PowerAction::PowerOff))
        );
    }
}
