//! The repository's own rules, checked without a network and without a lab.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Past this a file usually holds a second idea.
const LINES_MAX: usize = 900;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("testbed/ lies in the repository")
        .to_path_buf()
}

/// What git tracks, or would track: ignored files are nobody's business here.
fn files() -> Vec<PathBuf> {
    let listing = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git runs");
    assert!(listing.status.success(), "git ls-files failed");
    let listing = String::from_utf8(listing.stdout).expect("paths are UTF-8");
    let files: Vec<PathBuf> = listing.lines().map(PathBuf::from).collect();
    assert!(files.len() > 50, "git lists only {} files", files.len());
    files
}

fn text(path: &Path) -> Option<String> {
    std::fs::read_to_string(root().join(path)).ok()
}

/// Every package that is linked or run while building, as (name, version, licence).
fn packages() -> Vec<(String, String, String)> {
    let tree = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--workspace",
            "--offline",
            "--locked",
            "--target",
            TARGET,
        ])
        .args([
            "--edges",
            "normal,build",
            "--prefix",
            "none",
            "--format",
            "{p}|{l}",
        ])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        tree.status.success(),
        "{}",
        String::from_utf8_lossy(&tree.stderr)
    );
    let tree = String::from_utf8(tree.stdout).expect("cargo prints UTF-8");
    let all: BTreeSet<(String, String, String)> = tree
        .lines()
        .filter_map(|line| {
            let (package, licence) = line.split_once('|')?;
            let mut words = package.split_whitespace();
            let name = words.next()?.to_owned();
            let version = words.next()?.to_owned();
            let licence = licence.trim_end_matches("(*)").trim();
            Some((name, version, licence.to_owned()))
        })
        .collect();
    assert!(
        all.len() > 100,
        "cargo tree lists only {} packages",
        all.len()
    );
    all.into_iter().collect()
}

fn deny() -> toml::Table {
    text(Path::new("deny.toml"))
        .expect("deny.toml")
        .parse()
        .expect("deny.toml is TOML")
}

fn strings(value: &toml::Value) -> BTreeSet<String> {
    value
        .as_array()
        .expect("a list")
        .iter()
        .map(|item| item.as_str().expect("a string").to_owned())
        .collect()
}

/// Is an SPDX expression satisfied by the allowed licences? `/` is the old spelling of `OR`.
fn allowed(expression: &str, allow: &BTreeSet<String>) -> bool {
    let expression = expression.replace('/', " OR ");
    let expression = expression.trim();
    // Split at the operator outside parentheses that binds least: AND under OR.
    for (operator, all) in [(" OR ", false), (" AND ", true)] {
        let parts = split_outside(expression, operator);
        if parts.len() > 1 {
            let mut verdicts = parts.iter().map(|part| allowed(part, allow));
            return if all {
                verdicts.all(|v| v)
            } else {
                verdicts.any(|v| v)
            };
        }
    }
    match expression
        .strip_prefix('(')
        .and_then(|inner| inner.strip_suffix(')'))
    {
        Some(inner) => allowed(inner, allow),
        None => allow.contains(expression),
    }
}

fn split_outside<'a>(text: &'a str, operator: &str) -> Vec<&'a str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ if depth == 0 && at >= start && text[at..].starts_with(operator) => {
                parts.push(text[start..at].trim());
                start = at + operator.len();
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts
}

#[test]
fn licence_expressions_are_judged_as_spdx_says() {
    let allow = BTreeSet::from(["MIT".to_owned(), "ISC".to_owned()]);
    for good in [
        "MIT",
        "MIT/GPL-3.0",
        "GPL-3.0 OR MIT",
        "ISC AND (GPL-2.0 OR MIT)",
        "(MIT)",
    ] {
        assert!(allowed(good, &allow), "{good}");
    }
    for bad in [
        "GPL-3.0",
        "MIT AND GPL-3.0",
        "ISC AND (GPL-2.0 OR LGPL-2.1)",
        "",
    ] {
        assert!(!allowed(bad, &allow), "{bad}");
    }
}

#[test]
fn every_dependency_has_an_allowed_licence() {
    let allow = strings(&deny()["licenses"]["allow"]);
    let refused: Vec<_> = packages()
        .into_iter()
        .filter(|(_, _, licence)| !allowed(licence, &allow))
        .collect();
    assert!(refused.is_empty(), "{refused:#?}");
}

#[test]
fn no_banned_crate_is_linked() {
    let deny = deny();
    let banned: BTreeMap<&str, &str> = deny["bans"]["deny"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|ban| {
            (
                ban["crate"].as_str().expect("a name"),
                ban["reason"].as_str().expect("a reason"),
            )
        })
        .collect();
    let found: Vec<_> = packages()
        .into_iter()
        .filter_map(|(name, ..)| {
            banned
                .get(name.as_str())
                .map(|why| format!("{name}: {why}"))
        })
        .collect();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn crates_whose_types_cross_our_seams_have_one_version() {
    let single = strings(&deny()["metadata"]["single-version"]["crates"]);
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, version, _) in packages() {
        versions.entry(name).or_default().insert(version);
    }
    for name in single {
        let found = versions.get(&name).cloned().unwrap_or_default();
        assert_eq!(found.len(), 1, "{name} is linked in versions {found:?}");
    }
}

#[test]
fn unsafe_modules_say_what_is_not_possible_otherwise() {
    for path in files()
        .iter()
        .filter(|p| p.extension().is_some_and(|e| e == "rs"))
    {
        let Some(text) = text(path) else { continue };
        for (number, line) in text.lines().enumerate() {
            let opts_in = line.trim_start().starts_with("#![allow(unsafe_code")
                || line.trim_start().starts_with("#[allow(unsafe_code");
            let lines: Vec<&str> = text.lines().collect();
            let near = &lines[number.saturating_sub(3)..(number + 3).min(lines.len())];
            let explained = near.iter().any(|line| line.contains("UNSAFETY:"));
            assert!(
                !opts_in || explained,
                "{}:{}: unsafe without `UNSAFETY:`",
                path.display(),
                number + 1
            );
        }
    }
}

#[test]
fn a_rust_file_opens_by_saying_what_it_is_for_and_stays_readable() {
    for path in files()
        .iter()
        .filter(|p| p.extension().is_some_and(|e| e == "rs"))
    {
        let Some(text) = text(path) else { continue };
        let first = text
            .lines()
            .find(|line| !line.trim().is_empty())
            .unwrap_or_default();
        assert!(
            first.starts_with("//!") || first.starts_with("#!["),
            "{} has no header",
            path.display()
        );
        let lines = text.lines().count();
        assert!(
            lines <= LINES_MAX,
            "{} has {lines} lines: is there a second idea in it?",
            path.display()
        );
    }
}

#[test]
fn the_readme_names_only_targets_that_exist() {
    let makefile = text(Path::new("Makefile")).expect("Makefile");
    let readme = text(Path::new("README.md")).expect("README.md");
    let targets: BTreeSet<&str> = makefile
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name)
        .filter(|name| {
            name.chars()
                .all(|c| c.is_ascii_lowercase() || c == '-' || c.is_ascii_digit())
        })
        .collect();
    let named = readme
        .split("make ")
        .skip(1)
        .filter_map(|rest| {
            rest.split(|c: char| !(c.is_ascii_lowercase() || c == '-' || c.is_ascii_digit()))
                .next()
        })
        .filter(|name| !name.is_empty());
    let quoted: Vec<&str> = named
        .filter(|name| {
            readme.contains(&format!("`make {name}")) || readme.contains(&format!("\nmake {name}"))
        })
        .collect();
    assert!(!quoted.is_empty(), "the README shows no make command");
    for name in quoted {
        assert!(
            targets.contains(name),
            "README.md says `make {name}`, the Makefile does not have it"
        );
    }
}
