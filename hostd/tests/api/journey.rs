//! The way of a person: from an image to a running VM and back to nothing, through every writing endpoint.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api::client::Client;
use api::images::{Image, ImageCreate, ImageFormat, ImageKind, ImagePhase};
use api::limits::{NicLimits, RateLimits};
use api::system::{AddressMode, Mode, NetworkSettings, PowerAction, PowerRequest};
use api::tasks::TaskPhase;
use api::vms::{BootSpec, DiskSpec, NicSpec, OnCrash, VmCreate, VmPhase};
use api::volumes::VolumeUpdate;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::lab::Lab;

const WITHIN: Duration = Duration::from_secs(10);

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Creates and uploads an image.
pub async fn image(admin: &Client, name: &str, bytes: &'static [u8]) -> Image {
    let spec = ImageCreate {
        name: name.parse().unwrap(),
        kind: ImageKind::Kernel,
        format: ImageFormat::Raw,
        size_bytes: bytes.len() as u64,
        sha256: hex(&Sha256::digest(bytes)),
    };
    admin.image_create(&spec).await.unwrap();
    admin
        .image_upload(name, bytes, bytes.len() as u64, None)
        .await
        .unwrap()
}

/// A VM that needs nothing but the image `kernel`.
pub fn vm_spec() -> VmCreate {
    VmCreate {
        name: "web".parse().unwrap(),
        memory: api::units::Mib(64),
        vcpus: 1,
        boot: BootSpec::Kernel {
            kernel: "kernel".parse().unwrap(),
            initrd: None,
            cmdline: "console=ttyS0".to_owned(),
        },
        disks: Vec::new(),
        nics: Vec::new(),
        on_crash: OnCrash::Stay,
        autostart: false,
    }
}

#[tokio::test]
async fn from_an_image_to_a_running_vm_and_back_to_nothing() {
    let lab = Lab::new().await;
    let admin = lab.admin().await;

    let bytes = vec![5; 1 << 20];
    let spec = ImageCreate {
        name: "disk".parse().unwrap(),
        kind: ImageKind::Disk,
        format: ImageFormat::Raw,
        size_bytes: bytes.len() as u64,
        sha256: hex(&Sha256::digest(&bytes)),
    };
    let upload = admin.image_create(&spec).await.unwrap();
    let sent = Arc::new(AtomicU64::new(0));
    let progress = Box::new({
        let sent = sent.clone();
        move |now| sent.store(now, Ordering::Relaxed)
    });
    let length = bytes.len() as u64;
    let disk = admin
        .image_upload(
            upload.object.id,
            std::io::Cursor::new(bytes),
            length,
            Some(progress),
        )
        .await
        .unwrap();
    assert_eq!(
        (disk.phase, sent.load(Ordering::Relaxed)),
        (ImagePhase::Ready, length)
    );
    admin.task_wait(upload.task, WITHIN).await.unwrap();
    image(&admin, "kernel", b"vmlinuz").await;
    assert_eq!(admin.image_list().await.unwrap().items.len(), 2);

    let volume =
        serde_json::from_value(json!({"name": "root", "size": 16, "from_image": "disk"})).unwrap();
    let volume = admin.volume_create(&volume).await.unwrap();
    admin.task_wait(volume.task, WITHIN).await.unwrap();
    let network = serde_json::from_value(
        json!({"name": "lan", "kind": {"isolated": {"subnet": "10.77.0.0/24"}}}),
    )
    .unwrap();
    let network = admin.network_create(&network).await.unwrap();
    admin.task_wait(network.task, WITHIN).await.unwrap();

    let mut spec = vm_spec();
    spec.disks.push(DiskSpec {
        volume: "root".parse().unwrap(),
        read_only: false,
        limits: RateLimits {
            bytes_per_second: Some(1 << 20),
            bytes_burst: Some(1 << 24),
            ..RateLimits::default()
        },
    });
    spec.nics.push(NicSpec {
        network: "lan".parse().unwrap(),
        mac: None,
        limits: NicLimits {
            transmit: RateLimits {
                operations_per_second: Some(1000),
                ..RateLimits::default()
            },
            ..NicLimits::default()
        },
    });
    let vm = admin.vm_create(&spec).await.unwrap();
    assert_eq!(vm.phase, VmPhase::Stopped);
    assert!(vm.nics[0].mac.starts_with("52:4c:51:"));
    assert_eq!(vm.disks[0].limits.bytes_burst, Some(1 << 24));
    assert_eq!(vm.nics[0].limits.transmit.operations_per_second, Some(1000));
    assert_eq!(vm.nics[0].address.as_deref(), Some("10.77.0.9"));
    assert_eq!(
        admin.volume_get("root").await.unwrap().attached_to,
        Some(vm.id)
    );

    let started = admin.vm_start("web").await.unwrap();
    assert_eq!(started.object.id, vm.id);
    admin.task_wait(started.task, WITHIN).await.unwrap();
    assert_eq!(admin.vm_get(vm.id).await.unwrap().phase, VmPhase::Running);
    let metrics = admin.metrics_get().await.unwrap();
    for sample in [
        "lqx_vms{phase=\"running\"} 1",
        "lqx_vm_disk_reads_total{vm=\"web\",disk=\"root\"} 5",
    ] {
        assert!(metrics.contains(sample), "{sample} is not in\n{metrics}");
    }
    assert_eq!(
        admin.system_get().await.unwrap().memory_promised,
        api::units::Mib(64)
    );
    let size = admin.volume_get("root").await.unwrap().size;
    let update = VolumeUpdate {
        revision: None,
        size: api::units::Mib(size.0 + 1),
    };
    let grown = admin.volume_update("root", &update).await.unwrap();
    admin.task_wait(grown.task, WITHIN).await.unwrap();
    assert_eq!(admin.volume_get("root").await.unwrap().size, update.size);
    let rebooted = admin.vm_reboot("web").await.unwrap();
    admin.task_wait(rebooted.task, WITHIN).await.unwrap();
    let stopped = admin.vm_stop("web").await.unwrap();
    admin.task_wait(stopped.task, WITHIN).await.unwrap();
    let again = admin.vm_start("web").await.unwrap();
    admin.task_wait(again.task, WITHIN).await.unwrap();
    let killed = admin.vm_kill("web").await.unwrap();
    let ended = admin.task_wait(killed.task, WITHIN).await.unwrap();
    assert_eq!(ended.phase, TaskPhase::Succeeded);

    let gone = admin.vm_delete("web").await.unwrap();
    admin.task_wait(gone.task, WITHIN).await.unwrap();
    for removal in [
        admin.volume_delete("root").await,
        admin.network_delete("lan").await,
        admin.image_delete("disk").await,
        admin.image_delete("kernel").await,
    ] {
        admin
            .task_wait(removal.unwrap().task, WITHIN)
            .await
            .unwrap();
    }
    assert!(admin.vm_list().await.unwrap().items.is_empty());
    assert!(admin.volume_list().await.unwrap().items.is_empty());
    assert!(admin.network_list().await.unwrap().items.is_empty());
    assert!(admin.image_list().await.unwrap().items.is_empty());
    let tasks = admin.task_list(Some(1000)).await.unwrap().items;
    assert!(
        tasks.iter().all(|task| task.phase == TaskPhase::Succeeded),
        "{tasks:?}"
    );

    let actions: Vec<_> = admin
        .audit_list(Some(1000))
        .await
        .unwrap()
        .items
        .into_iter()
        .map(|r| r.action)
        .collect();
    for action in [
        "vm_create",
        "vm_start",
        "vm_stop",
        "vm_kill",
        "vm_reboot",
        "vm_delete",
        "image_upload",
    ] {
        assert!(actions.iter().any(|seen| seen == action), "{action}");
    }
    lab.shutdown().await;
}

#[tokio::test]
async fn the_host_tells_of_itself_and_does_as_it_is_told() {
    let lab = Lab::new().await;
    let admin = lab.admin().await;
    let health = lab.stranger().health_get().await.unwrap();
    assert_eq!((health.mode, health.ready), (Mode::Run, true));

    let system = admin.system_get().await.unwrap();
    assert_eq!(system.fingerprint, Some(lab.tls.fingerprint().to_string()));
    assert_eq!(
        (system.mode, system.version.as_str()),
        (Mode::Run, "0.0.0-test")
    );
    let hosts = admin.host_list().await.unwrap().items;
    assert_eq!(Some(hosts[0].id), system.host);
    assert_eq!(admin.host_get("lqx-test").await.unwrap().id, hosts[0].id);

    let settings = NetworkSettings {
        address: AddressMode::Static {
            address: "192.0.2.7/24".to_owned(),
            gateway: None,
        },
        ..NetworkSettings::default()
    };
    admin.system_network_set(&settings).await.unwrap();
    assert_eq!(admin.system_network_get().await.unwrap(), settings);
    let lines = admin.system_logs(Some(1)).await.unwrap().items;
    assert_eq!(
        lines.iter().map(|line| line.seq).collect::<Vec<_>>(),
        [2, 3]
    );
    admin
        .system_power(&PowerRequest {
            action: PowerAction::Reboot,
        })
        .await
        .unwrap();
    assert_eq!(*lab.system.powered.lock().unwrap(), [PowerAction::Reboot]);
    let recorded = admin.audit_list(Some(2)).await.unwrap().items;
    assert_eq!(
        (recorded[0].action.as_str(), recorded[0].object.as_str()),
        ("system_power", "reboot")
    );
}
