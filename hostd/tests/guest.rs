//! A real Linux in a jailed VM process, with a disk and a network, started and stopped by the reconcilers.
//!
//! Needs root, a `/dev/kvm` on which Linux boots, and by environment a guest that says `LQX-GUEST-READY boots=N ip=A`:
//! - `LQX_TEST_KERNEL`, `LQX_TEST_INITRD`: what `image guest` makes
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::ids::{ImageId, NetworkId, TaskId, VmId, VolumeId};
use api::images::{ImageCreate, ImageKind};
use api::names::Ref;
use api::networks::{NetworkCreate, NetworkKind};
use api::units::{Mib, Millis};
use api::vms::{BootSpec, DiskSpec, NicSpec, OnCrash, VmCreate, VmExit, VmPhase};
use api::volumes::VolumeCreate;
use common::{Alone, host, launch_config, name};
use futures_util::stream;
use hostd::fake::NoHostAddress;
use hostd::http::hands::Consoles;
use hostd::network::bridge::BridgeLinks;
use hostd::reconcile::{Agreed, Hands, Reconcilers};
use hostd::storage::file::FileVolumes;
use hostd::storage::images::{FileImages, Promise};
use hostd::vms::Supervisors;
use hostd_state::{Command, Report};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

/// A guest under emulation takes its time.
const PATIENCE: Duration = Duration::from_secs(300);

fn artifact(variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        println!("skipped: {variable} is not set");
    }
    path
}

#[test]
fn linux_boots_writes_to_its_disk_gets_an_address_and_listens_to_its_power_button() {
    let (Some(kernel), Some(initrd)) = (artifact("LQX_TEST_KERNEL"), artifact("LQX_TEST_INITRD"))
    else {
        return;
    };
    common::in_namespace(async move || {
        let folder = tempfile::tempdir().unwrap();
        let Some(config) = launch_config(folder.path()) else {
            return;
        };
        let data = folder.path().join("data");
        let images = FileImages::open_store(&data).unwrap();
        let volumes = FileVolumes::open_pool(&data).unwrap();
        let links = BridgeLinks::open(Arc::new(NoHostAddress)).unwrap();
        let supervisors = Supervisors::start(config).unwrap();
        let consoles = supervisors.consoles(links.leases());
        let leases = links.leases();

        let agreed = Alone::default();
        let host = host(&agreed);
        let upload = async |kind: ImageKind, path: PathBuf| {
            let bytes = fs::read(path).unwrap();
            let sha256: String = Sha256::digest(&bytes)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            let promise = Promise {
                size_bytes: bytes.len() as u64,
                sha256: sha256.clone(),
            };
            let image = ImageId::mint();
            let label = format!("{kind:?}").to_lowercase();
            let spec = ImageCreate {
                name: name(&label),
                kind,
                size_bytes: promise.size_bytes,
                sha256,
            };
            agreed.apply(Command::ImageCreate {
                image,
                task: TaskId::mint(),
                host,
                spec,
            });
            let body = stream::iter([Ok::<_, io::Error>(bytes.into())]);
            images.receive_stream(image, &promise, body).await.unwrap();
            agreed.apply(Command::ImageObserved {
                image,
                report: Report::Ready,
            });
            image
        };
        let kernel = upload(ImageKind::Kernel, kernel).await;
        let initrd = upload(ImageKind::Initrd, initrd).await;

        let (network, volume, vm) = (NetworkId::mint(), VolumeId::mint(), VmId::mint());
        let kind = NetworkKind::Isolated {
            subnet: "10.77.0.0/24".into(),
            dhcp: true,
        };
        let spec = NetworkCreate {
            name: name("lan"),
            kind,
        };
        agreed.apply(Command::NetworkCreate {
            network,
            task: TaskId::mint(),
            spec,
        });
        let spec = VolumeCreate {
            name: name("root"),
            size: Mib(16),
            from_image: None,
        };
        agreed.apply(Command::VolumeCreate {
            volume,
            task: TaskId::mint(),
            host,
            spec,
        });
        let reconcilers = Reconcilers::spawn(
            &agreed,
            host,
            Hands {
                launcher: supervisors.clone(),
                volumes,
                images,
                links,
            },
        );

        let boot = BootSpec::Kernel {
            kernel: Ref::Id(kernel.0),
            initrd: Some(Ref::Id(initrd.0)),
            cmdline: "console=ttyS0 no_timer_check panic=-1".into(),
        };
        let spec = VmCreate {
            name: name("web"),
            memory: Mib(256),
            vcpus: 1,
            boot,
            disks: vec![DiskSpec {
                volume: Ref::Id(volume.0),
                read_only: false,
            }],
            nics: vec![NicSpec {
                network: Ref::Id(network.0),
                mac: None,
            }],
            on_crash: OnCrash::Stay,
            autostart: false,
        };
        let macs = vec!["02:00:00:00:00:01".into()];
        agreed.apply(Command::VmCreate {
            vm,
            host,
            spec,
            macs,
        });
        agreed
            .until(
                |state| state.volume(volume).unwrap().phase == api::volumes::VolumePhase::Ready,
                PATIENCE,
            )
            .await;
        agreed
            .until(
                |state| state.network(network).unwrap().phase == api::networks::NetworkPhase::Ready,
                PATIENCE,
            )
            .await;

        for boots in 1..=2 {
            let begun = Instant::now();
            agreed.apply(Command::VmStart {
                vm,
                task: TaskId::mint(),
            });
            agreed
                .until(
                    |state| {
                        let vm = state.vm(vm).unwrap();
                        assert_ne!(vm.phase, VmPhase::Failed, "{:?}", vm.condition);
                        vm.phase == VmPhase::Running
                    },
                    PATIENCE,
                )
                .await;
            let running = begun.elapsed();
            let mut serial = consoles.connect(vm).await.unwrap();
            let mut said = String::new();
            let marker = format!("LQX-GUEST-READY boots={boots} ip=10.77.0.");
            let reading = async {
                let mut buffer = [0; 4096];
                // To the end of its line: the address may come in pieces.
                while said
                    .split_once(&marker)
                    .is_none_or(|(_, rest)| !rest.contains('\n'))
                {
                    let length = serial.read(&mut buffer).await.unwrap();
                    assert_ne!(length, 0, "the console ended");
                    said.push_str(&String::from_utf8_lossy(&buffer[..length]));
                }
            };
            if tokio::time::timeout(PATIENCE, reading).await.is_err() {
                panic!("no `{marker}` in:\n{said}");
            }
            println!(
                "boot {boots}: running after {running:?}, ready after {:?}",
                begun.elapsed()
            );
            let leased = leases.address([2, 0, 0, 0, 0, 1]).unwrap();
            assert!(said.contains(&format!("ip={leased}")));
            let echoed = tokio::net::TcpStream::connect((leased, 80)).await;
            assert!(echoed.is_ok(), "the guest's web server answers the host");

            let deadline = Millis(Millis::now().0 + 120_000);
            agreed.apply(Command::VmStop {
                vm,
                task: TaskId::mint(),
                deadline,
            });
            agreed
                .until(
                    |state| state.vm(vm).unwrap().phase == VmPhase::Stopped,
                    PATIENCE,
                )
                .await;
            let exit = agreed.read(|state| state.vm(vm).unwrap().last_exit.clone());
            assert_eq!(
                exit,
                Some(VmExit::GuestPowerOff),
                "it listened to its power button"
            );
        }
        reconcilers.shutdown().await;
        drop(File::open(&data).unwrap());
    });
}
