//! All that can come in.

use api::ApiError;
use api::install::InstallStatus;
use api::system::{LogLine, NetworkSettings, System};
use api::users::SetupStatus;
use api::vms::Vm;
use ratatui::crossterm::event::KeyEvent;

/// One thing that happened.
#[derive(Debug)]
pub enum Event {
    /// A key was pressed.
    Key(KeyEvent),
    /// The terminal has another size now.
    Resize,
    /// What the daemon said of this host.
    System(Box<System>),
    /// Whether an administrator exists, and the setup token while not.
    Setup(SetupStatus),
    /// The VMs of the cluster.
    Vms(Vec<Vm>),
    /// The disks and where the installer is.
    Install(InstallStatus),
    /// The management address.
    Network(NetworkSettings),
    /// New lines of the log.
    Logs(Vec<LogLine>),
    /// An action was accepted; a sentence for the status line.
    Accepted(String),
    /// The daemon refused an action.
    Refused(ApiError),
    /// The daemon does not answer; why.
    Unreachable(String),
    /// Reading keys failed: the terminal is gone.
    TerminalGone(String),
}
