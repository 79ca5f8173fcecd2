//! Our side of the helper inside an appliance: one question, one answer, in lines of JSON.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::helper::{Answer, Process, Question};

/// The line to the helper of one machine.
pub struct Agent {
    lines: BufReader<UnixStream>,
}

impl Agent {
    /// Takes the line. The helper may not be up yet: QEMU keeps what is sent until it reads.
    pub fn connect(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        Ok(Self {
            lines: BufReader::new(stream),
        })
    }

    /// Asks.
    pub fn ask(&mut self, question: &Question) -> Result<Answer> {
        let mut line = serde_json::to_vec(question)?;
        line.push(b'\n');
        self.lines
            .get_mut()
            .write_all(&line)
            .context("asking the helper")?;
        let mut answer = String::new();
        self.lines
            .read_line(&mut answer)
            .with_context(|| format!("waiting for the helper's answer to {question:?}"))?;
        match serde_json::from_str(&answer)
            .with_context(|| format!("reading the helper's answer `{answer}`"))?
        {
            Answer::Failed(reason) => bail!("{question:?}: {reason}"),
            answer => Ok(answer),
        }
    }

    /// All processes.
    pub fn processes(&mut self) -> Result<Vec<Process>> {
        match self.ask(&Question::Processes)? {
            Answer::Processes(processes) => Ok(processes),
            other => bail!("not processes: {other:?}"),
        }
    }

    /// The processes whose command line has `words` in it.
    pub fn processes_with(&mut self, words: &str) -> Result<Vec<Process>> {
        let mut all = self.processes()?;
        all.retain(|process| process.arguments.join(" ").contains(words));
        Ok(all)
    }

    /// `kill -9`.
    pub fn kill(&mut self, pid: i32) -> Result<()> {
        self.ask(&Question::Kill { pid }).map(drop)
    }

    /// A file as PID 1 sees it.
    pub fn read(&mut self, path: &str) -> Result<String> {
        match self.ask(&Question::Read {
            path: path.to_owned(),
        })? {
            Answer::Text(text) => Ok(text),
            other => bail!("not a text: {other:?}"),
        }
    }

    /// What the appliance's kernel said since it booted.
    pub fn kernel_log(&mut self) -> Result<String> {
        match self.ask(&Question::KernelLog)? {
            Answer::Text(text) => Ok(text),
            other => bail!("not a text: {other:?}"),
        }
    }

    /// Fills the file system of `path` with a file there until only `leave_mib` are free.
    pub fn fill(&mut self, path: &str, leave_mib: u64) -> Result<()> {
        let path = path.to_owned();
        self.ask(&Question::Fill { path, leave_mib }).map(drop)
    }

    /// Removes a file.
    pub fn remove(&mut self, path: &str) -> Result<()> {
        self.ask(&Question::Remove {
            path: path.to_owned(),
        })
        .map(drop)
    }

    /// Connects from the appliance's own network, says `send` and returns what comes back until the other side closes.
    pub fn tcp(&mut self, address: &str, send: &str) -> Result<String> {
        let (address, send) = (address.to_owned(), send.to_owned());
        match self.ask(&Question::Tcp { address, send })? {
            Answer::Text(text) => Ok(text),
            other => bail!("not a text: {other:?}"),
        }
    }

    /// One ICMP echo from the appliance's own network; the milliseconds it took.
    pub fn ping(&mut self, address: &str) -> Result<f64> {
        match self.ask(&Question::Ping {
            address: address.to_owned(),
        })? {
            Answer::Milliseconds(ms) => Ok(ms),
            other => bail!("not a time: {other:?}"),
        }
    }
}
