//! What the tests from outside share: agreement without a cluster, namespaces, and a host that can run VMs.
// UNSAFETY: entering a namespace is an unsafe call in rustix, because it changes what the thread sees.
#![allow(unsafe_code)]
#![allow(dead_code)] // each test binary uses its part

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::hosts::Inventory;
use api::ids::HostId;
use api::names::Name;
use api::units::{Mib, Millis};
use hostd::cluster::ProposeError;
use hostd::reconcile::Agreed;
use hostd::vms::launch::LaunchConfig;
use hostd_state::{Command, Meta, Outcome, State, invariants};
use tokio::sync::watch;

/// Agreement without a cluster: commands are applied at once.
#[derive(Clone)]
pub struct Alone {
    state: Arc<Mutex<State>>,
    told: watch::Sender<u64>,
}

impl Default for Alone {
    fn default() -> Self {
        Self {
            state: Arc::default(),
            told: watch::Sender::new(0),
        }
    }
}

impl Alone {
    /// Applies a command that is not refused.
    pub fn apply(&self, command: Command) -> Outcome {
        let shown = format!("{command:?}");
        let mut state = self.state.lock().unwrap();
        let revision = state.revision() + 1;
        let applied = state.apply(revision, &Meta::host(Millis::now()), &command);
        let wrong = invariants::violations(&state);
        assert!(wrong.is_empty(), "after {shown}: {wrong:?}");
        self.told.send_replace(revision);
        applied
            .unwrap_or_else(|refused| panic!("{shown}: {refused}"))
            .outcome
    }

    /// Waits until the state is so.
    pub async fn until(&self, so: impl Fn(&State) -> bool, patience: Duration) {
        let mut told = self.told.subscribe();
        let waiting = async {
            while !self.read(&so) {
                told.changed().await.unwrap();
            }
        };
        tokio::time::timeout(patience, waiting)
            .await
            .expect("the state comes to be so in time");
    }
}

impl Agreed for Alone {
    fn read<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(&self.state.lock().unwrap())
    }
    async fn report(&self, command: Command) -> Result<(), ProposeError> {
        self.apply(command);
        Ok(())
    }
    fn watch(&self) -> watch::Receiver<u64> {
        self.told.subscribe()
    }
}

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// A host of 4 GiB, up.
pub fn host(agreed: &Alone) -> HostId {
    let host = HostId::mint();
    let inventory = Inventory {
        memory: Mib(4096),
        cpus: 2,
        kvm: true,
        ..Inventory::default()
    };
    agreed.apply(Command::HostRegister {
        host,
        name: name("alpha"),
        version: "1".into(),
        inventory,
        fingerprint: "00".repeat(32),
    });
    agreed.apply(Command::HostBooted {
        host,
        boot_id: "boot".into(),
    });
    host
}

/// Runs a test in a network namespace of its own, or says why not.
pub fn in_namespace(test: impl AsyncFnOnce() + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: not root");
    }
    let thread = std::thread::spawn(move || {
        let own = rustix::thread::UnshareFlags::NEWNET;
        // SAFETY: the thread is new and shares nothing that depends on its network namespace.
        let entered = unsafe { rustix::thread::unshare_unsafe(own) };
        if let Err(errno) = entered {
            return println!("skipped: no network namespaces: {errno}");
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test());
    });
    thread.join().unwrap();
}

/// Where VMs run in a test; `None`, with a printed reason, when they can not.
pub fn launch_config(folder: &Path) -> Option<LaunchConfig> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: not root");
        return None;
    }
    if let Err(error) = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
    {
        println!("skipped: /dev/kvm: {error}");
        return None;
    }
    let cgroup_root = cgroup2();
    if cgroup_root.is_none() {
        println!("without limits: no cgroup2 with memory, pids and cpu here");
    }
    Some(LaunchConfig {
        run: folder.join("vms"),
        cgroup_root,
        program: env!("CARGO_BIN_EXE_hostd").into(),
        kvm: "/dev/kvm".into(),
    })
}

/// Where cgroup2 is mounted with the controllers that VMs need.
fn cgroup2() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    let mut points = mounts.lines().map(|line| line.split(' '));
    let point = points.find_map(|mut fields| {
        let point = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(point))
    })?;
    let controllers = fs::read_to_string(point.join("cgroup.controllers")).ok()?;
    let have = |one: &str| controllers.split_whitespace().any(|have| have == one);
    ["memory", "pids", "cpu"]
        .into_iter()
        .all(have)
        .then_some(point)
}
