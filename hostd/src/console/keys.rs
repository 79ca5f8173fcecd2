//! Key bindings and the help line made from them.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// A key, as the screens see it: what a serial terminal can be trusted to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// A printable character.
    Char(char),
    /// Enter.
    Enter,
    /// Escape.
    Back,
    /// Cursor up.
    Up,
    /// Cursor down.
    Down,
    /// To the next field.
    Next,
    /// Delete to the left.
    Erase,
    /// Draw everything again (Ctrl-L).
    Redraw,
}

/// Translates; `None` for keys that mean nothing here.
pub fn translate(key: KeyEvent) -> Option<Key> {
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return match key.code {
            KeyCode::Char('l') => Some(Key::Redraw),
            KeyCode::Char('h') => Some(Key::Erase),
            KeyCode::Char('j' | 'm') => Some(Key::Enter),
            _ => None,
        };
    }
    match key.code {
        KeyCode::Char(c) => Some(Key::Char(c)),
        KeyCode::Enter => Some(Key::Enter),
        KeyCode::Esc => Some(Key::Back),
        KeyCode::Up => Some(Key::Up),
        KeyCode::Down => Some(Key::Down),
        KeyCode::Tab => Some(Key::Next),
        KeyCode::Backspace => Some(Key::Erase),
        _ => None,
    }
}
