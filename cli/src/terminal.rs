//! The terminal: passwords without echo, questions, raw mode.

use std::io::{BufRead, IsTerminal, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::failure::Failure;

/// Sets the terminal back when dropped.
pub(crate) struct Changed(Termios);

impl Drop for Changed {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.0);
    }
}

fn change(how: impl FnOnce(&mut Termios)) -> Result<Changed, Failure> {
    let failed =
        |error: rustix::io::Errno| Failure::here("could not set the terminal")(error.into());
    let before = tcgetattr(std::io::stdin()).map_err(failed)?;
    let mut wanted = before.clone();
    how(&mut wanted);
    tcsetattr(std::io::stdin(), OptionalActions::Flush, &wanted).map_err(failed)?;
    Ok(Changed(before))
}

/// Every key goes through as it is, when standard input is a terminal.
pub(crate) fn raw() -> Result<Option<Changed>, Failure> {
    if !std::io::stdin().is_terminal() {
        return Ok(None);
    }
    change(Termios::make_raw).map(Some)
}

/// A password: from `LQX_PASSWORD`, from standard input when `from_stdin`, else asked for without echo.
pub(crate) fn password(from_stdin: bool) -> Result<String, Failure> {
    if !from_stdin {
        if let Ok(password) = std::env::var("LQX_PASSWORD") {
            return Ok(password);
        }
        if !std::io::stdin().is_terminal() {
            let hint = "no terminal to ask for a password: use --password-stdin or LQX_PASSWORD";
            return Err(Failure::Usage(hint.to_owned()));
        }
        eprint!("Password: ");
        let silent = change(|terminal| terminal.local_modes.remove(LocalModes::ECHO))?;
        let line = line()?;
        drop(silent);
        eprintln!();
        return Ok(line);
    }
    line()
}

/// Yes or no; no terminal means no.
pub(crate) fn confirmed(question: &str) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    eprint!("{question} [y/N] ");
    Ok(matches!(line()?.trim(), "y" | "Y" | "yes"))
}

fn line() -> Result<String, Failure> {
    std::io::stderr()
        .flush()
        .map_err(Failure::here("could not write to the terminal"))?;
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    read.map_err(Failure::here("could not read standard input"))?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
