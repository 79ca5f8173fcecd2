//! What this machine has.

use api::hosts::{DiskInfo, Inventory, NicInfo};
use api::units::Mib;

use super::blocks::{self, Block};
use super::content::Content;
use super::read_at::Device;
use super::{Roots, text};

/// Everything, looked at now. Reads the edges of every disk: call it from a blocking task.
pub fn inventory(roots: &Roots) -> Inventory {
    let (cpu_model, cpus) = cpus(roots);
    Inventory {
        cpu_model,
        cpus,
        memory: memory(roots),
        kvm: kvm(roots),
        product: product(roots),
        disks: disks(roots),
        nics: nics(roots),
    }
}

/// Model and number of logical CPUs.
pub fn cpus(roots: &Roots) -> (String, u32) {
    let info = text(roots.proc.join("cpuinfo"));
    let value = |line: &str| line.split_once(':').map(|(_, v)| v.trim().to_owned());
    let model = info.lines().find(|line| line.starts_with("model name"));
    let count = info
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    (
        model.and_then(value).unwrap_or_default(),
        u32::try_from(count).unwrap_or(u32::MAX),
    )
}

/// Memory the kernel has.
pub fn memory(roots: &Roots) -> Mib {
    let info = text(roots.proc.join("meminfo"));
    let kib = info
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    Mib(kib.unwrap_or(0) / 1024)
}

/// `/dev/kvm` opens.
pub fn kvm(roots: &Roots) -> bool {
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(roots.dev.join("kvm"))
        .is_ok()
}

/// Vendor and product from SMBIOS.
pub fn product(roots: &Roots) -> String {
    let id = roots.sys.join("class/dmi/id");
    let both = format!(
        "{} {}",
        text(id.join("sys_vendor")),
        text(id.join("product_name"))
    );
    both.trim().to_owned()
}

/// The disks, with what is on them.
pub fn disks(roots: &Roots) -> Vec<DiskInfo> {
    let disks = blocks::all(roots).into_iter().filter(Block::is_disk);
    disks.map(|block| disk(&block)).collect()
}

/// One disk, as the API shows it.
pub fn disk(block: &Block) -> DiskInfo {
    let content = match Device::open(&block.path) {
        Ok(device) => Content::of(&device, block.sector),
        Err(error) => Content::Unreadable(error.to_string()),
    };
    let words = match &block.used_by {
        Some(why) => format!("{content}, in use ({why})"),
        None => content.to_string(),
    };
    DiskInfo {
        name: block.name.clone(),
        size_bytes: block.len,
        model: block.model.clone(),
        serial: block.serial.clone(),
        removable: block.removable,
        content: words,
        blank: content.is_blank() && block.used_by.is_none(),
    }
}

/// The physical NICs (and virtio ones): those with a device behind them.
pub fn nics(roots: &Roots) -> Vec<NicInfo> {
    let class = roots.sys.join("class/net");
    let mut found: Vec<NicInfo> = std::fs::read_dir(&class)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| class.join(name).join("device").exists())
        .map(|name| NicInfo {
            mac: text(class.join(&name).join("address")),
            carrier: text(class.join(&name).join("carrier")) == "1",
            // Addresses come from rtnetlink: `network::address` fills them in.
            addresses: Vec::new(),
            name,
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}
