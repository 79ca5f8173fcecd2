//! A VM on a test appliance, by its serial console and by what reaches it over the network.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::client::{Client, Serial};
use api::ids::VmId;
use api::units::Mib;
use api::vms::{BootSpec, DiskSpec, NicSpec, OnCrash, Vm, VmCreate, VmExit, VmPhase};
use api::volumes::VolumeCreate;
use regex::Regex;
use tokio::time::{Instant, timeout_at};

use crate::expect::{eventually, secs};
use crate::lab::{INITRD, KERNEL, NETWORK};
use crate::serial::Strip;

/// What the demonstration guest prints when it is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// How many boots its disk has seen; `0` without a disk.
    pub boots: u64,
    /// Its address, or `none`.
    pub address: String,
}

/// A VM that boots the demonstration guest.
pub fn demonstration(name: &str) -> Result<VmCreate> {
    Ok(VmCreate {
        name: name.parse()?,
        memory: Mib(256),
        vcpus: 1,
        boot: BootSpec::Kernel {
            kernel: KERNEL.parse()?,
            initrd: Some(INITRD.parse()?),
            cmdline: "console=ttyS0 quiet no_timer_check".to_owned(),
        },
        disks: Vec::new(),
        nics: Vec::new(),
        on_crash: OnCrash::Stay,
        autostart: false,
    })
}

/// The same with a disk of its own and a NIC on the lab's network.
pub async fn demonstration_with_disk(api: &Client, name: &str) -> Result<VmCreate> {
    let volume = format!("{name}-data");
    let request = VolumeCreate {
        name: volume.parse()?,
        size: Mib(64),
        from_image: None,
    };
    let made = api.volume_create(&request).await?;
    api.task_wait(made.task, secs(60))
        .await
        .context("making the guest's volume")?;
    let mut vm = demonstration(name)?;
    vm.disks.push(DiskSpec {
        volume: volume.parse()?,
        read_only: false,
        limits: Default::default(),
    });
    vm.nics.push(NicSpec {
        network: NETWORK.parse()?,
        mac: None,
        limits: Default::default(),
    });
    Ok(vm)
}

/// Creates and starts it; comes back when its vCPUs run.
pub async fn start(api: &Client, request: &VmCreate) -> Result<Vm> {
    let vm = api.vm_create(request).await.context("creating the vm")?;
    let started = api.vm_start(vm.id).await.context("starting the vm")?;
    api.task_wait(started.task, secs(180))
        .await
        .context("waiting for the vm's start")?;
    Ok(api.vm_get(vm.id).await?)
}

/// Waits until the VM is in this phase.
pub async fn phase(api: &Client, vm: VmId, phase: VmPhase, within: Duration) -> Result<Vm> {
    eventually(&format!("the vm is {phase:?}"), within, async || {
        let seen = api.vm_get(vm).await?;
        if seen.phase == phase {
            return Ok(Some(seen));
        }
        bail!("it is {:?}, {:?}", seen.phase, seen.condition)
    })
    .await
}

/// Waits until the guest's own power-off has made the VM stopped, not failed.
pub async fn powered_off(api: &Client, vm: VmId) -> Result<()> {
    let off = phase(api, vm, VmPhase::Stopped, secs(120)).await?;
    if off.last_exit != Some(VmExit::GuestPowerOff) {
        bail!("it is stopped, but by {:?}", off.last_exit);
    }
    Ok(())
}

/// A guest's serial console.
pub struct GuestConsole {
    serial: Serial,
    heard: String,
    /// A shell asks its terminal where the cursor is.
    strip: Strip,
}

impl GuestConsole {
    /// Opens it; what was printed since power-on comes first.
    pub async fn open(api: &Client, vm: VmId) -> Result<Self> {
        let serial = api
            .vm_serial(vm)
            .await
            .context("opening the guest's console")?;
        Ok(Self {
            serial,
            heard: String::new(),
            strip: Strip::default(),
        })
    }

    /// Types a line.
    pub async fn line(&mut self, line: &str) -> Result<()> {
        Ok(self.serial.send(format!("{line}\n").as_bytes()).await?)
    }

    /// Waits for a match in what was heard and not yet looked at; its first group. What is before the match's end is done with.
    pub async fn wait_for(&mut self, pattern: &str, within: Duration) -> Result<Vec<String>> {
        let regex = Regex::new(pattern)?;
        let until = Instant::now() + within;
        loop {
            if let Some(found) = regex.captures(&self.heard) {
                let groups = found
                    .iter()
                    .skip(1)
                    .flatten()
                    .map(|group| group.as_str().to_owned())
                    .collect();
                let end = found.get(0).map_or(0, |whole| whole.end());
                self.heard.drain(..end);
                return Ok(groups);
            }
            match timeout_at(until, self.serial.receive()).await {
                Ok(Ok(Some(bytes))) => self.strip.push(&bytes, &mut self.heard),
                Ok(Ok(None)) => bail!(
                    "the guest's console closed before `{pattern}`; it ended with\n{}",
                    self.heard
                ),
                Ok(Err(error)) => return Err(error).context("listening to the guest's console"),
                Err(_) => bail!(
                    "the guest never said `{pattern}`; it ended with\n{}",
                    self.heard
                ),
            }
        }
    }

    /// Waits for the guest to be up.
    pub async fn ready(&mut self, within: Duration) -> Result<Ready> {
        // The console comes in pieces: only the line's end tells that the address is whole.
        let groups = self
            .wait_for(r"LQX-GUEST-READY boots=(\d+) ip=(\S+)\s*\n", within)
            .await?;
        Ok(Ready {
            boots: groups.first().context("no number of boots")?.parse()?,
            address: groups.get(1).context("no address")?.clone(),
        })
    }

    /// Runs a command in the guest's shell and returns what it printed.
    pub async fn run(&mut self, command: &str, within: Duration) -> Result<String> {
        // What is typed before the shell is there is echoed twice, by the terminal and by the shell: the last echo counts.
        // The marker is put together by the shell, so that the echo of what was typed is not taken for it; and it is another one
        // each time, because a console opened anew begins with what was said before.
        static COMMANDS: AtomicU64 = AtomicU64::new(0);
        let number = COMMANDS.fetch_add(1, Ordering::Relaxed);
        self.line(&format!("{command}; echo lab-''done{number}-$?"))
            .await?;
        let pattern = format!(r"(?s).*lab-''done{number}-\$\?\s*\n(.*?)lab-done{number}-(\d+)");
        let groups = self.wait_for(&pattern, within).await?;
        match groups.as_slice() {
            [output, status] if status == "0" => Ok(output.trim().replace('\r', "")),
            other => bail!("`{command}` in the guest: {other:?}"),
        }
    }
}
