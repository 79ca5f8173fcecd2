//! A cluster of one: agrees, restarts, snapshots, fails for good.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use api::hosts::Inventory;
use api::ids::{HostId, TaskId, VolumeId};
use api::units::{Mib, Millis};
use api::volumes::VolumeCreate;
use futures_util::{StreamExt, future};
use hostd_state::{Command, Meta, snapshot};
use tempfile::TempDir;
use uuid::Uuid;

use super::cuts;
use crate::cluster::machine::Machine;
use crate::cluster::node::Node;
use crate::cluster::snapshots::Snapshots;
use crate::cluster::{Cluster, ClusterConfig, ProposeError};

const HOST: HostId = HostId(Uuid::from_u128(1));

fn config(dir: &Path) -> ClusterConfig {
    ClusterConfig {
        dir: dir.to_owned(),
        host: HOST,
        heartbeat: Duration::from_millis(100),
        election_min: Duration::from_millis(500),
        election_max: Duration::from_millis(1000),
    }
}

async fn start(dir: &Path) -> Cluster {
    Cluster::start(config(dir)).await.unwrap()
}

fn register() -> Command {
    Command::HostRegister {
        host: HOST,
        name: "alpha".parse().unwrap(),
        version: "0".into(),
        inventory: Inventory::default(),
        fingerprint: String::new(),
    }
}

fn volume(n: u128) -> Command {
    Command::VolumeCreate {
        volume: VolumeId(Uuid::from_u128(n)),
        task: TaskId(Uuid::from_u128(n | 1 << 64)),
        host: HOST,
        spec: VolumeCreate {
            name: format!("v{n}").parse().unwrap(),
            size: Mib(1),
            from_image: None,
        },
    }
}

fn meta() -> Meta {
    Meta::host(Millis(1))
}

fn bytes(cluster: &Cluster) -> Vec<u8> {
    cluster.read(|state| snapshot::encode(state).unwrap())
}

#[tokio::test]
async fn a_new_host_is_a_cluster_of_one_and_a_restart_finds_everything_again() {
    let dir = TempDir::new().unwrap();
    let cluster = start(dir.path()).await;
    let (first, _) = cluster.propose(meta(), register()).await.unwrap();
    let mut last = first;
    for n in 0..20 {
        let (revision, outcome) = cluster.propose(meta(), volume(n)).await.unwrap();
        assert!(revision > last);
        assert_eq!(outcome.object, Some(Uuid::from_u128(n)));
        assert_eq!(cluster.revision(), revision);
        last = revision;
    }
    // A refusal is an answer, too, and costs a revision.
    let refused = cluster.propose(meta(), volume(3)).await.unwrap_err();
    assert!(matches!(refused, ProposeError::Refused(_)), "{refused:?}");
    let before = bytes(&cluster);
    cluster.shutdown().await;

    let cluster = start(dir.path()).await;
    cluster.read(|state| assert_eq!(state.volumes().count(), 20));
    assert_eq!(bytes(&cluster), before);
    let (revision, _) = cluster.propose(meta(), volume(100)).await.unwrap();
    assert!(revision > last);
    cluster.shutdown().await;
}

#[tokio::test]
async fn after_a_snapshot_the_log_is_short_and_a_restart_finds_everything_again() {
    let dir = TempDir::new().unwrap();
    let cluster = start(dir.path()).await;
    cluster.propose(meta(), register()).await.unwrap();
    let many = (0..300).map(|n| cluster.propose(meta(), volume(n)));
    for done in future::join_all(many).await {
        done.unwrap();
    }
    cluster.node.snapshot().await.unwrap();
    let raft = cluster.node.raft();
    let waiting = raft.wait(Some(Duration::from_secs(20)));
    let cut = waiting.metrics(|m| m.snapshot.is_some(), "cut");
    let at = cut.await.unwrap().snapshot.unwrap().index;
    raft.trigger().purge_log(at).await.unwrap();
    let purged = raft.wait(Some(Duration::from_secs(20)));
    purged
        .metrics(|m| m.purged.is_some_and(|id| id.index >= at), "purged")
        .await
        .unwrap();
    cluster.propose(meta(), volume(1000)).await.unwrap();
    cluster.shutdown().await;

    let cluster = start(dir.path()).await;
    cluster.read(|state| assert_eq!(state.volumes().count(), 301));
    cluster.propose(meta(), volume(1001)).await.unwrap();
    cluster.shutdown().await;
}

#[tokio::test]
async fn changes_come_in_order_and_those_before_a_restart_are_told_again_or_said_to_be_gone() {
    let dir = TempDir::new().unwrap();
    let cluster = start(dir.path()).await;
    let from = cluster.revision();
    let mut changes = Box::pin(cluster.changes().since(from).unwrap());
    cluster.propose(meta(), register()).await.unwrap();
    let (revision, _) = cluster.propose(meta(), volume(1)).await.unwrap();
    assert!(cluster.at_least(revision, Duration::ZERO).await);
    assert!(
        !cluster
            .at_least(revision + 100, Duration::from_millis(1))
            .await
    );
    let first = changes.next().await.unwrap().unwrap();
    assert_eq!(first.id, HOST.0);
    let rest: Vec<_> = [changes.next().await, changes.next().await].into();
    assert!(
        rest.iter()
            .all(|c| c.as_ref().unwrap().as_ref().unwrap().revision == revision)
    );
    drop(changes);
    cluster.shutdown().await;

    let cluster = start(dir.path()).await;
    let mut again = Box::pin(cluster.changes().since(from).unwrap());
    assert_eq!(again.next().await.unwrap().unwrap(), first);
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_damaged_snapshot_is_noticed_and_a_half_written_one_is_ignored() {
    let dir = TempDir::new().unwrap();
    let cluster = start(dir.path()).await;
    cluster.propose(meta(), register()).await.unwrap();
    cluster.node.snapshot().await.unwrap();
    let raft = cluster.node.raft();
    let cut = raft.wait(Some(Duration::from_secs(20)));
    cut.metrics(|m| m.snapshot.is_some(), "cut").await.unwrap();
    cluster.shutdown().await;

    std::fs::write(dir.path().join("snapshot.new"), b"half").unwrap();
    let cluster = start(dir.path()).await;
    cluster.shutdown().await;
    assert!(!dir.path().join("snapshot.new").exists());

    let path = dir.path().join("snapshot");
    let good = std::fs::read(&path).unwrap();
    for at in [2, good.len() / 2, good.len() - 3] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&path, bad).unwrap();
        let error = Cluster::start(config(dir.path())).await.unwrap_err();
        assert!(error.to_string().contains("damaged"), "{error}");
    }
}

#[tokio::test]
async fn a_log_whose_making_was_cut_short_is_made_again() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("log.redb.new"), vec![0; 5000]).unwrap();
    let cluster = start(dir.path()).await;
    cluster.propose(meta(), register()).await.unwrap();
    cluster.shutdown().await;
    assert!(!dir.path().join("log.redb.new").exists());
}

#[tokio::test]
async fn a_disk_that_fails_ends_it_and_no_later_write_is_acknowledged() {
    let dir = TempDir::new().unwrap();
    let disk = cuts::Backend::new(Vec::new(), usize::MAX);
    let log = cuts::open(disk.clone()).unwrap();
    let machine = Machine::open(Snapshots::open(dir.path()).unwrap()).unwrap();
    let (node, parts) = Node::run(&config(dir.path()), log, machine).await.unwrap();
    let cluster = Cluster::of(node, parts);
    cluster.propose(meta(), register()).await.unwrap();
    disk.left.store(0, Ordering::SeqCst);
    let error = cluster.propose(meta(), volume(1)).await.unwrap_err();
    assert!(matches!(error, ProposeError::Storage(_)), "{error:?}");
    let reason = tokio::time::timeout(Duration::from_secs(20), cluster.fatal())
        .await
        .unwrap();
    assert!(reason.contains("power cut"), "{reason}");
    disk.left.store(usize::MAX, Ordering::SeqCst);
    let error = cluster.propose(meta(), volume(2)).await.unwrap_err();
    assert!(matches!(error, ProposeError::Storage(_)), "{error:?}");
    cluster.read(|state| assert_eq!(state.volumes().count(), 0));
}

#[tokio::test]
async fn a_handle_that_outlives_the_cluster_finds_it_unavailable() {
    let dir = TempDir::new().unwrap();
    let cluster = start(dir.path()).await;
    let other = cluster.clone();
    cluster.shutdown().await;
    let error = other.propose(meta(), register()).await.unwrap_err();
    assert!(matches!(error, ProposeError::Unavailable(_)), "{error:?}");
}
