//! What a test needs from the machine it runs on. What is missing is said, counted, and leads to a skip.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

/// A program in the search path or where system programs usually are.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// Prints that a test is skipped and why, and counts it for the totals (`LQX_SKIPS` names the file they are gathered in).
pub fn skip(test: &str, reason: &str) {
    println!("skipped {test}: {reason}");
    let Some(file) = std::env::var_os("LQX_SKIPS") else {
        return;
    };
    let line = format!("{test}: {}\n", reason.replace('\n', " "));
    let written = OpenOptions::new()
        .append(true)
        .create(true)
        .open(&file)
        .and_then(|mut file| file.write_all(line.as_bytes()));
    if let Err(error) = written {
        eprintln!("could not record the skip in {}: {error}", file.display());
    }
}
