//! How long a proposal takes on a cluster of one, against what the same disk needs for an fsync.
//!
//! `cargo bench --bench propose` in a temporary directory, or in `PROPOSE_DIR` on the disk to measure. Prints
//! percentiles; with `PROPOSE_SAMPLES=FILE` all samples in microseconds are kept, one a line with its kind.
//! Not criterion: the question is the 99th percentile under 32 clients, not the mean of one.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use api::hosts::Inventory;
use api::ids::{HostId, TaskId, VolumeId};
use api::units::{Mib, Millis};
use api::volumes::VolumeCreate;
use hostd::cluster::{Cluster, ClusterConfig};
use hostd_state::{Command, Meta};

const CLIENTS: usize = 32;

fn main() -> anyhow::Result<()> {
    let mut rounds = 100;
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            // The harness is asked for its tests: there are none here.
            "--list" => return Ok(()),
            "--test" => rounds = 2,
            _ => {}
        }
    }
    let dir = match std::env::var_os("PROPOSE_DIR") {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir()?,
    };
    let mut samples = vec![("fsync", fsyncs(dir.path(), rounds * 5)?)];
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let config = ClusterConfig {
            dir: dir.path().join("raft"),
            host: HostId::mint(),
            heartbeat: Duration::from_millis(500),
            election_min: Duration::from_secs(5),
            election_max: Duration::from_secs(10),
        };
        let host = config.host;
        let cluster = Cluster::start(config).await?;
        cluster
            .propose(Meta::host(Millis::now()), register(host))
            .await?;
        samples.push((
            "propose, 1 client",
            client(cluster.clone(), host, rounds * 5).await?,
        ));
        let clients = (0..CLIENTS).map(|_| client(cluster.clone(), host, rounds));
        let clients: Vec<_> = clients.map(tokio::spawn).collect();
        let mut all = Vec::new();
        for client in clients {
            all.extend(client.await??);
        }
        samples.push(("propose, 32 clients", all));
        cluster.shutdown().await;
        anyhow::Ok(())
    })?;
    let mut base = Duration::ZERO;
    for (kind, samples) in &mut samples {
        samples.sort_unstable();
        let at = |percent: usize| samples.get(samples.len() * percent / 100).copied();
        let (p50, p99) = (at(50).unwrap_or_default(), at(99).unwrap_or_default());
        if base == Duration::ZERO {
            base = p50;
        }
        let ratio = p99.as_secs_f64() / base.as_secs_f64();
        println!(
            "{kind:20} n={:5}  p50 {:7.2} ms  p99 {:7.2} ms  p99/fsync {ratio:.1}",
            samples.len(),
            p50.as_secs_f64() * 1e3,
            p99.as_secs_f64() * 1e3,
        );
    }
    if let Some(path) = std::env::var_os("PROPOSE_SAMPLES") {
        let mut file = File::create(path)?;
        for (kind, samples) in &samples {
            for sample in samples {
                writeln!(file, "{}\t{kind}", sample.as_micros())?;
            }
        }
    }
    Ok(())
}

/// A page rewritten and synced, as the disk can at best.
fn fsyncs(dir: &Path, count: usize) -> io::Result<Vec<Duration>> {
    let path = dir.join("fsync");
    let file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .open(path)?;
    file.set_len(1 << 20)?;
    file.sync_all()?;
    let mut samples = Vec::with_capacity(count);
    for at in 0..count {
        let page = [u8::try_from(at % 251).unwrap_or(0); 4096];
        let start = Instant::now();
        file.write_all_at(&page, 4096 * (at as u64 % 256))?;
        file.sync_data()?;
        samples.push(start.elapsed());
    }
    Ok(samples)
}

fn register(host: HostId) -> Command {
    Command::HostRegister {
        host,
        name: "alpha".parse().expect("a name"),
        version: "0".to_owned(),
        inventory: Inventory::default(),
        fingerprint: String::new(),
    }
}

/// One client, one command after the other: a volume made and taken as ready.
async fn client(cluster: Cluster, host: HostId, rounds: usize) -> anyhow::Result<Vec<Duration>> {
    let mut samples = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let volume = VolumeId::mint();
        let create = Command::VolumeCreate {
            volume,
            task: TaskId::mint(),
            host,
            spec: VolumeCreate {
                name: format!("v{}", volume.0.simple()).parse()?,
                size: Mib(1),
                from_image: None,
            },
        };
        let ready = Command::VolumeObserved {
            volume,
            report: hostd_state::Report::Ready,
        };
        for command in [create, ready] {
            let start = Instant::now();
            cluster.propose(Meta::host(Millis::now()), command).await?;
            samples.push(start.elapsed());
        }
    }
    Ok(samples)
}
