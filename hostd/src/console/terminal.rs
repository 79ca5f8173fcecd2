//! The loop: a thread reads keys, a thread speaks to the API, this one draws.

use std::io::{self, Stdout};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use api::ErrorCode;
use api::client::{Client, ClientError};
use api::system::Mode;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{self as input, Event as Input, KeyEventKind};
use ratatui::crossterm::terminal::{disable_raw_mode, enable_raw_mode};
use ratatui::layout::Rect;
use rustix::fs::{Mode as FileMode, OFlags};
use rustix::termios::Winsize;

use super::action::Action;
use super::event::Event;
use super::keys::{self, Key};
use super::screens;
use super::state::{Screen, State};

/// How often the daemon is asked while nothing happens.
const POLL_EVERY: Duration = Duration::from_secs(2);
/// How often while an installation runs.
const POLL_INSTALL_EVERY: Duration = Duration::from_millis(500);
/// What a terminal is taken for that does not say: a serial line.
const SIZE_DEFAULT: (u16, u16) = (80, 25);

/// Why the console ends.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The terminal could not be taken over.
    #[error("could not use the terminal `{path}`")]
    Terminal {
        /// Which one; empty for the one it was started on.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Drawing failed: the line is gone.
    #[error("could not draw")]
    Draw(#[source] io::Error),
}

/// Runs until the terminal is gone. With `tty` it becomes the session leader of that terminal, else it uses the one it
/// was started on. `socket` is the daemon's local one.
pub fn run(tty: Option<&Path>, socket: &Path) -> Result<(), ConsoleError> {
    let failed = |source| ConsoleError::Terminal {
        path: tty.map(Path::to_path_buf).unwrap_or_default(),
        source,
    };
    if let Some(tty) = tty {
        take_over(tty).map_err(failed)?;
    }
    enable_raw_mode().map_err(failed)?;
    let mut terminal = Terminal::new(CrosstermBackend::new(io::stdout())).map_err(failed)?;
    clear(&mut terminal).map_err(failed)?;
    let outcome = interact(&mut terminal, socket);
    // The terminal may be gone: then nobody sees that it was not restored.
    drop(disable_raw_mode());
    outcome
}

/// Makes `tty` this process's controlling terminal, standard input, output and error.
fn take_over(tty: &Path) -> io::Result<()> {
    // Fails for a process that already leads its session, which is as good.
    let _ = rustix::process::setsid();
    let line = rustix::fs::open(tty, OFlags::RDWR | OFlags::NOCTTY, FileMode::empty())?;
    rustix::process::ioctl_tiocsctty(&line)?;
    rustix::stdio::dup2_stdin(&line)?;
    rustix::stdio::dup2_stdout(&line)?;
    rustix::stdio::dup2_stderr(&line)?;
    let size = rustix::termios::tcgetwinsize(line.as_fd())?;
    if size.ws_col == 0 || size.ws_row == 0 {
        let (ws_col, ws_row) = SIZE_DEFAULT;
        let size = Winsize {
            ws_row,
            ws_col,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(line.as_fd(), size)?;
    }
    Ok(())
}

/// Clears and draws everything anew. Not `Terminal::clear`: that asks where the cursor is, and a serial line with
/// nobody at its other end does not answer.
fn clear(terminal: &mut Terminal<CrosstermBackend<Stdout>>) -> io::Result<()> {
    let size = terminal.size()?;
    terminal.resize(Rect::new(0, 0, size.width, size.height))
}

fn interact(
    terminal: &mut Terminal<CrosstermBackend<Stdout>>,
    socket: &Path,
) -> Result<(), ConsoleError> {
    let (events, inbox) = mpsc::sync_channel(64);
    let (actions, asked) = tokio::sync::mpsc::channel(16);
    let from_keys = events.clone();
    thread::spawn(move || read_keys(&from_keys));
    let client = Client::unix(socket);
    thread::spawn(move || speak(&client, asked, &events));

    let mut state = State::default();
    loop {
        terminal
            .draw(|frame| screens::draw(&state, frame))
            .map_err(ConsoleError::Draw)?;
        let Ok(first) = inbox.recv() else {
            return Ok(());
        };
        for event in std::iter::once(first).chain(inbox.try_iter()) {
            match event {
                Event::TerminalGone(why) => {
                    return Err(ConsoleError::Draw(io::Error::other(why)));
                }
                Event::Key(key) if keys::translate(key) == Some(Key::Redraw) => {
                    clear(terminal).map_err(ConsoleError::Draw)?;
                }
                event => {
                    if let Some(action) = state.on(event)
                        && actions.try_send(action).is_err()
                    {
                        state.message = Some("too many requests wait already".to_owned());
                    }
                }
            }
        }
        if matches!(state.screen, Screen::InstallProgress) {
            state.power_armed = None;
        }
    }
}

fn read_keys(events: &mpsc::SyncSender<Event>) {
    loop {
        let event = match input::read() {
            Ok(Input::Key(key)) if key.kind != KeyEventKind::Release => Event::Key(key),
            Ok(Input::Resize(..)) => Event::Resize,
            Ok(_) => continue,
            Err(error) => Event::TerminalGone(error.to_string()),
        };
        let last = matches!(event, Event::TerminalGone(_));
        if events.send(event).is_err() || last {
            return;
        }
    }
}

/// Asks for what the screens show, and for what keys ask.
fn speak(
    client: &Client,
    mut asked: tokio::sync::mpsc::Receiver<Action>,
    events: &mpsc::SyncSender<Event>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            drop(events.send(Event::Unreachable(error.to_string())));
            return;
        }
    };
    runtime.block_on(async {
        let mut log_seq = 0;
        loop {
            let every = match poll(client, events, &mut log_seq).await {
                Ok(Mode::Install) => POLL_INSTALL_EVERY,
                Ok(Mode::Run) => POLL_EVERY,
                Err(error) => {
                    drop(events.send(Event::Unreachable(error.to_string())));
                    POLL_EVERY
                }
            };
            match tokio::time::timeout(every, asked.recv()).await {
                Ok(Some(action)) => {
                    if events.send(perform(client, action).await).is_err() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(_) => {}
            }
        }
    });
}

async fn poll(
    client: &Client,
    events: &mpsc::SyncSender<Event>,
    log_seq: &mut u64,
) -> Result<Mode, ClientError> {
    let tell = |event| drop(events.send(event));
    let system = client.system_get().await?;
    let mode = system.mode;
    tell(Event::System(Box::new(system)));
    match mode {
        Mode::Install => tell(Event::Install(client.install_get().await?)),
        Mode::Run => {
            tell(Event::Setup(client.setup_get().await?));
            tell(Event::Vms(client.vm_list().await?.items));
            tell(Event::Network(client.system_network_get().await?));
        }
    }
    let logs = client.system_logs(Some(*log_seq)).await?.items;
    if let Some(last) = logs.last() {
        *log_seq = last.seq;
        tell(Event::Logs(logs));
    }
    Ok(mode)
}

async fn perform(client: &Client, action: Action) -> Event {
    let outcome = match &action {
        Action::Install(request) => client
            .install_start(request)
            .await
            .map(|_| "The installation has begun."),
        Action::Power(power) => client
            .system_power(&api::system::PowerRequest { action: *power })
            .await
            .map(|()| "The host goes down."),
        Action::NetworkSet(settings) => client
            .system_network_set(settings)
            .await
            .map(|_| "The management address is set."),
        Action::VmStart(vm) => client
            .vm_start(vm)
            .await
            .map(|_| "The VM is being started."),
        Action::VmStop(vm) => client
            .vm_stop(vm)
            .await
            .map(|_| "The guest is asked to power off."),
    };
    match outcome {
        Ok(sentence) => Event::Accepted(sentence.to_owned()),
        Err(ClientError::Refused { error, .. }) => Event::Refused(error),
        Err(error) => Event::Refused(api::ApiError::new(
            ErrorCode::Unavailable,
            error.to_string(),
            "Try again.",
        )),
    }
}
