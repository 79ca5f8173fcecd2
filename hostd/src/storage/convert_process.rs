//! A [`Converter`] whose work is done by a process of its own, locked in like a VM's: whatever an image makes our reader
//! do, it is done by somebody who has that image, at most one new volume, and nothing else.
//!
//! The process is born for one job and ends with it. When the daemon goes away it ends at its next word, and what it
//! wrote has no name and goes with it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::process::{WaitId, WaitIdOptions};

use super::Progress;
use super::convert::{ConvertError, Converter, Job, Said};
use crate::convert_child::ConvertConfig;
use crate::vms::jail::{self, Birth, JailConfig};
use crate::vms::launch::UID_FIRST;

/// The id of these processes; no VM's.
const UID: u32 = UID_FIRST - 1;
/// Descriptors it may have: those it is given and a few while it starts.
const FILES_MAX: u64 = 16;
/// A process that says nothing for so long is given up. It has a word for each few megabytes.
const WORD_WITHIN: Duration = Duration::from_secs(120);
/// Longest word.
const WORD_MAX_BYTES: usize = 4096;
/// Longest sentence of it that is passed on.
const CAUSE_MAX: usize = 200;

/// Has the work done by `hostd convert`.
#[derive(Debug, Clone)]
pub struct ConvertProcess {
    /// The program that has the applet.
    pub program: PathBuf,
    /// An empty folder on which each process mounts its own empty root.
    pub root: PathBuf,
}

impl ConvertProcess {
    /// As on the appliance.
    pub fn appliance() -> Self {
        Self {
            program: "/proc/self/exe".into(),
            root: "/run/lqx/convert".into(),
        }
    }

    fn give_birth(
        &self,
        job: Job,
        image: &File,
        volume: Option<&File>,
    ) -> io::Result<(File, OwnedFd)> {
        let mut private = DirBuilder::new();
        private.recursive(true).mode(0o700).create(&self.root)?;
        let config = ConvertConfig {
            jail: JailConfig {
                uid: UID,
                root: self.root.clone(),
                files_max: FILES_MAX,
            },
            job,
        };
        let mut document = File::from(rustix::fs::memfd_create(
            c"convert-config",
            MemfdFlags::CLOEXEC,
        )?);
        document.write_all(&serde_json::to_vec(&config)?)?;
        document.rewind()?;
        let program =
            rustix::fs::open(&self.program, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let null = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")?;
        let (words, words_child) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let mut fds: Vec<BorrowedFd<'_>> =
            vec![document.as_fd(), words_child.as_fd(), image.as_fd()];
        fds.extend(volume.map(AsFd::as_fd));
        let spawned = jail::spawn(&Birth {
            program: program.as_fd(),
            args: &[c"hostd", c"convert"],
            log: null.as_fd(),
            null: null.as_fd(),
            fds: &fds,
            cgroup: None,
        })?;
        Ok((File::from(words), spawned.pidfd))
    }
}

impl Converter for ConvertProcess {
    fn run(
        &self,
        job: Job,
        image: &File,
        volume: Option<&File>,
        progress: Option<&Progress>,
    ) -> Result<u64, ConvertError> {
        let (words, pidfd) = self
            .give_birth(job, image, volume)
            .map_err(|error| ConvertError::host("start the process that reads the image", error))?;
        let last = listen(&words, progress);
        // Its last word is said; it ends now, if it has not, and is not waited for at its pleasure.
        let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
        let ended = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)
            .map_err(|error| {
                ConvertError::host("wait for the process that reads the image", error)
            })?;
        match last? {
            Some(Said::Done(size)) => Ok(size),
            Some(Said::Failed(error)) => Err(plain(error)),
            Some(Said::Progress(_)) | None => {
                let signal = ended.and_then(|status| status.terminating_signal());
                Err(ConvertError::Host {
                    cause: match signal {
                        Some(signal) => {
                            format!("the process that reads the image was ended by signal {signal}")
                        }
                        None => "the process that reads the image ended early".to_owned(),
                    },
                })
            }
        }
    }
}

/// Hears all it says; the last word counts.
fn listen(mut words: &File, progress: Option<&Progress>) -> Result<Option<Said>, ConvertError> {
    let (mut heard, mut last) = (Vec::new(), None);
    let mut buffer = [0; 1024];
    loop {
        let limit = Timespec::try_from(WORD_WITHIN)
            .map_err(|error| ConvertError::host("wait for a word", io::Error::other(error)))?;
        let mut wait = [PollFd::new(&words, PollFlags::IN)];
        match rustix::event::poll(&mut wait, Some(&limit)) {
            Ok(0) => {
                return Err(ConvertError::Host {
                    cause: "the process that reads the image says nothing any more".to_owned(),
                });
            }
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(ConvertError::host("wait for a word", errno)),
        }
        let length = words
            .read(&mut buffer)
            .map_err(|error| ConvertError::host("hear the process that reads the image", error))?;
        if length == 0 {
            return Ok(last);
        }
        heard.extend_from_slice(&buffer[..length]);
        while let Some(end) = heard.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = heard.drain(..=end).collect();
            let said: Said = serde_json::from_slice(&line).map_err(|_| nonsense())?;
            if let (Said::Progress(percent), Some(progress)) = (&said, progress) {
                let percent = (*percent).min(api::units::Percent(99));
                progress.send_if_modified(|told| std::mem::replace(told, percent) != percent);
            }
            last = Some(said);
        }
        if heard.len() > WORD_MAX_BYTES {
            return Err(nonsense());
        }
    }
}

fn nonsense() -> ConvertError {
    ConvertError::Host {
        cause: "the process that reads the image says nonsense".to_owned(),
    }
}

/// Its sentences are passed on to people: short, and in letters.
fn plain(error: ConvertError) -> ConvertError {
    let shorten = |cause: String| -> String {
        let letters = cause.chars().filter(|letter| !letter.is_control());
        letters.take(CAUSE_MAX).collect()
    };
    match error {
        ConvertError::Unsupported { cause } => ConvertError::Unsupported {
            cause: shorten(cause),
        },
        ConvertError::Damaged { cause } => ConvertError::Damaged {
            cause: shorten(cause),
        },
        ConvertError::Host { cause } => ConvertError::Host {
            cause: shorten(cause),
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::units::Percent;
    use tokio::sync::watch;

    fn hear(said: &[u8]) -> (Result<Option<Said>, ConvertError>, Percent) {
        let (words, mut child) = rustix::pipe::pipe()
            .map(|(a, b)| (File::from(a), File::from(b)))
            .unwrap();
        let progress = watch::Sender::new(Percent(0));
        child.write_all(said).unwrap();
        drop(child);
        let heard = listen(&words, Some(&progress));
        let percent = *progress.borrow();
        (heard, percent)
    }

    #[test]
    fn the_last_word_counts_and_nonsense_is_none() {
        let (heard, percent) = hear(b"{\"progress\":7}\n{\"progress\":40}\n{\"done\":9}\n");
        assert_eq!((heard, percent), (Ok(Some(Said::Done(9))), Percent(40)));
        assert_eq!(hear(b""), (Ok(None), Percent(0)));
        assert_eq!(hear(b"{\"done\":9}"), (Ok(None), Percent(0)), "half a word");
        for said in [
            &b"\n"[..],
            b"{\"done\":-1}\n",
            b"{\"progress\":256}\n",
            &[b'x'; 9000],
        ] {
            assert_eq!(hear(said).0, Err(nonsense()));
        }
    }

    #[test]
    fn what_it_says_is_passed_on_in_letters() {
        let cause = format!("\u{1b}[2J{}", "x".repeat(1000));
        let ConvertError::Damaged { cause } = plain(ConvertError::Damaged { cause }) else {
            panic!("another error");
        };
        assert!(cause.starts_with("[2Jxxx") && cause.len() == CAUSE_MAX);
    }
}
