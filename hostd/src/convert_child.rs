//! The `convert` applet: reads one disk image that a stranger made, locked in. Inherited descriptors, limits, the jail, a
//! filter of system calls, then the work; no thread, no path.
//!
//! What it has to say goes to [`WORDS_FD`], a line of JSON each: [`Said`].

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::process::ExitCode;

use rustix::process::{Resource, Rlimit};
use serde::{Deserialize, Serialize};
use vmm::seccomp::{self, ThreadKind};

use crate::report::chain;
use crate::storage::convert::{ConvertError, Job, Said, work};
use crate::vms::jail::{self, JailConfig};

/// Where the configuration document is.
pub const CONFIG_FD: RawFd = jail::FIRST_FD;
/// Where words go.
pub const WORDS_FD: RawFd = jail::FIRST_FD + 1;
/// The image, open for reading.
pub const IMAGE_FD: RawFd = jail::FIRST_FD + 2;
/// The volume, open for writing; only where there is one.
pub const VOLUME_FD: RawFd = jail::FIRST_FD + 3;

/// Memory it may have, bytes: the program itself and an image's tables at their largest.
const MEMORY_MAX: u64 = 512 << 20;

/// What the daemon hands over on [`CONFIG_FD`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConvertConfig {
    /// How to lock itself in.
    pub jail: JailConfig,
    /// What to do then.
    pub job: Job,
}

/// Does one job. The exit status is 0 when it could say what came of it.
pub fn main() -> ExitCode {
    let mut document = jail::inherited_file(CONFIG_FD);
    let words = jail::inherited_file(WORDS_FD);
    let done = run(&mut document, &words);
    let last = done.map_or_else(Said::Failed, Said::Done);
    match say(&words, &last) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn run(document: &mut File, words: &File) -> Result<u64, ConvertError> {
    let host = |cause| ConvertError::Host { cause };
    let mut text = String::new();
    let config: ConvertConfig = document
        .read_to_string(&mut text)
        .map_err(|error| host(chain(&error)))
        .and_then(|_| serde_json::from_str(&text).map_err(|error| host(chain(&error))))?;
    let image = OwnedFd::from(jail::inherited_file(IMAGE_FD));
    let volume = match config.job {
        Job::Examine => None,
        Job::Convert { .. } => Some(jail::inherited_file(VOLUME_FD)),
    };
    limit(Resource::As, MEMORY_MAX)?;
    limit(
        Resource::Fsize,
        match config.job {
            Job::Examine => 0,
            Job::Convert { size_bytes } => size_bytes,
        },
    )?;
    // An older Landlock, or none, is no reason to end: there is no path to open in an empty root.
    jail::enter(&config.jail).map_err(|error| host(chain(&error)))?;
    let lock_in = || seccomp::apply(ThreadKind::ImageReader).map_err(|error| host(chain(&error)));
    work(config.job, image, volume.as_ref(), lock_in, |said| {
        say(words, &said)
    })
}

fn limit(resource: Resource, most: u64) -> Result<(), ConvertError> {
    let limit = Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    rustix::process::setrlimit(resource, limit).map_err(|errno| ConvertError::Host {
        cause: format!("could not limit itself: {errno}"),
    })
}

fn say(mut words: &File, said: &Said) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(said)?;
    line.push(b'\n');
    words.write_all(&line)
}
