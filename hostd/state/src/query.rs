//! The API's views of the records: what lists and detail pages show.

use api::hosts::{Host, HostPhase};
use api::images::Image;
use api::networks::Network;
use api::units::Mib;
use api::users::{Token, User};
use api::vms::Vm;
use api::volumes::Volume;

use crate::can;
use crate::hosts::HostRecord;
use crate::images::ImageRecord;
use crate::networks::NetworkRecord;
use crate::state::State;
use crate::users::{TokenRecord, UserRecord};
use crate::vms::VmRecord;
use crate::volumes::VolumeRecord;

impl State {
    /// A VM as the API shows it; `nics[].address` is for the caller to fill in.
    pub fn vm_view(&self, vm: &VmRecord) -> Vm {
        Vm {
            id: vm.id,
            name: vm.name.clone(),
            memory: vm.memory,
            vcpus: vm.vcpus,
            machine: vm.machine.clone(),
            boot: vm.boot.clone(),
            disks: vm.disks.clone(),
            nics: vm.nics.clone(),
            on_crash: vm.on_crash,
            autostart: vm.autostart,
            host: vm.host,
            intent: vm.intent,
            phase: vm.phase,
            generation: vm.generation,
            last_exit: vm.last_exit.clone(),
            condition: vm.condition.clone(),
            can: can::all(self, vm),
            created_at: vm.created_at,
            revision: vm.revision,
        }
    }

    /// A volume as the API shows it.
    pub fn volume_view(&self, volume: &VolumeRecord) -> Volume {
        let users = self.usage.volumes.get(&volume.id);
        Volume {
            id: volume.id,
            name: volume.name.clone(),
            host: volume.host,
            size: volume.size,
            growing_to: volume.growing_to,
            from_image: volume.from_image,
            phase: volume.phase,
            attached_to: users.and_then(|vms| vms.first().copied()),
            condition: volume.condition.clone(),
            created_at: volume.created_at,
            revision: volume.revision,
        }
    }

    /// A network as the API shows it.
    pub fn network_view(&self, network: &NetworkRecord) -> Network {
        let nics = self.usage.networks.get(&network.id);
        Network {
            id: network.id,
            name: network.name.clone(),
            kind: network.kind.clone(),
            phase: network.phase,
            nics: nics.map_or(0, |vms| vms.values().sum()),
            condition: network.condition.clone(),
            created_at: network.created_at,
            revision: network.revision,
        }
    }

    /// An image as the API shows it.
    pub fn image_view(&self, image: &ImageRecord) -> Image {
        Image {
            id: image.id,
            name: image.name.clone(),
            kind: image.kind,
            format: image.format,
            host: image.host,
            size_bytes: image.size_bytes,
            virtual_bytes: image.virtual_bytes,
            sha256: image.sha256.clone(),
            phase: image.phase,
            condition: image.condition.clone(),
            created_at: image.created_at,
            revision: image.revision,
        }
    }

    /// A host as the API shows it. With one host, whoever can ask, asks a host that is up.
    pub fn host_view(&self, host: &HostRecord) -> Host {
        Host {
            id: host.id,
            name: host.name.clone(),
            phase: HostPhase::Up,
            version: host.version.clone(),
            inventory: host.inventory.clone(),
            fingerprint: host.fingerprint.clone(),
            memory_promised: self.memory_promised(host),
            condition: None,
            revision: host.revision,
        }
    }

    /// Guest memory promised to the VMs that are up on a host.
    pub fn memory_promised(&self, host: &HostRecord) -> Mib {
        let promised = self.usage.promised.get(&host.id);
        promised.map_or(Mib(0), |p| p.memory)
    }

    /// A user as the API shows it, without its password hash.
    pub fn user_view(&self, user: &UserRecord) -> User {
        User {
            id: user.id,
            name: user.name.clone(),
            role: user.role,
            created_at: user.created_at,
        }
    }

    /// A token as the API shows it, without its hash.
    pub fn token_view(&self, token: &TokenRecord) -> Token {
        Token {
            id: token.id,
            kind: token.kind,
            name: token.name.clone(),
            user: token.user,
            role: token.role,
            created_at: token.created_at,
            expires_at: token.expires_at,
        }
    }
}
