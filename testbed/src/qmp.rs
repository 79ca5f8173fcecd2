//! QEMU's machine protocol, as far as we need it: one command, one answer, events ignored.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// A connection to one QEMU.
#[derive(Debug)]
pub struct Qmp {
    lines: BufReader<UnixStream>,
}

impl Qmp {
    /// Takes over a connected socket: reads the greeting and leaves negotiation mode.
    pub fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        let mut qmp = Self {
            lines: BufReader::new(stream),
        };
        let mut greeting = String::new();
        qmp.lines
            .read_line(&mut greeting)
            .context("reading QEMU's greeting")?;
        qmp.call("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// One command.
    pub fn call(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.lines.get_mut(), "{request}").with_context(|| format!("QMP {command}"))?;
        loop {
            let mut line = String::new();
            if self
                .lines
                .read_line(&mut line)
                .with_context(|| format!("QMP {command}"))?
                == 0
            {
                bail!("QMP {command}: QEMU ended");
            }
            let mut answer: Value =
                serde_json::from_str(&line).with_context(|| format!("QMP {command}"))?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                bail!("QMP {command}: {error}");
            }
        }
    }

    /// Saves the devices' state of the stopped machine to `file`. RAM is a shared file already and is left where it is.
    pub fn save_devices(&mut self, file: &str) -> Result<()> {
        self.ignore_shared_memory()?;
        self.call("migrate", json!({ "uri": format!("exec:cat > {file}") }))?;
        self.migration_done()
    }

    /// Loads what [`Self::save_devices`] saved into a machine started with `-incoming defer`, and lets it run.
    pub fn load_devices(&mut self, file: &str) -> Result<()> {
        self.ignore_shared_memory()?;
        self.call(
            "migrate-incoming",
            json!({ "uri": format!("exec:cat {file}") }),
        )?;
        self.migration_done()?;
        self.call("cont", json!({}))?;
        Ok(())
    }

    fn ignore_shared_memory(&mut self) -> Result<()> {
        let wanted =
            json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": true }] });
        self.call("migrate-set-capabilities", wanted)?;
        Ok(())
    }

    fn migration_done(&mut self) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(120);
        loop {
            let answer = self.call("query-migrate", json!({}))?;
            match answer.get("status").and_then(Value::as_str) {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => {
                    bail!("QEMU could not save or load the machine: {answer}")
                }
                _ if Instant::now() > until => {
                    bail!("QEMU did not save or load the machine in time: {answer}")
                }
                // QEMU has no event we could wait for without one more capability; this is 100 rounds at most.
                _ => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}
