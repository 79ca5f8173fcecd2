//! Which disk is meant, and may it be overwritten? Pure: looked up in what was found before.
//!
//! The rule: a disk with anything on it is only overwritten when the request says `erase` and that names the very
//! same disk. An `erase` that names another disk is refused even for a blank one: somebody is mistaken.

use api::error::{ApiError, ErrorCode};
use api::install::InstallRequest;

use crate::host::blocks::Block;
use crate::host::content::Content;
use crate::host::partitions::{DISK_LEN_MIN, MIB, block_size};

/// A disk and what is on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The disk.
    pub block: Block,
    /// What is on it.
    pub content: Content,
}

/// Why a disk is not installed to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nothing of that name.
    #[error("there is no disk `{0}`")]
    NoSuchDisk(String),
    /// More than one has that serial number.
    #[error("`{0}` names more than one disk: {1}")]
    Ambiguous(String, String),
    /// We came from it.
    #[error("{0} is the medium this machine was booted from")]
    Medium(String),
    /// Somebody uses it.
    #[error("{0} is in use: {1}")]
    InUse(String, String),
    /// Write-protected.
    #[error("{0} is read-only")]
    ReadOnly(String),
    /// Too small.
    #[error("{0} has {1} MiB; at least {min} MiB are needed", min = DISK_LEN_MIN / MIB)]
    TooSmall(String, u64),
    /// Neither 512 nor 4096.
    #[error("{0} has sectors of {1} bytes, which no partition table here can have")]
    Sector(String, u64),
    /// It cannot be read.
    #[error("{0} cannot be read: {1}")]
    Unreadable(String, String),
    /// Not blank and no consent.
    #[error("{0} is not blank: {1}")]
    NotBlank(String, String),
    /// Consent for another disk.
    #[error("`erase` names {1}, but the disk is {0}")]
    ConsentForAnother(String, String),
}

impl From<&Refusal> for ApiError {
    fn from(refusal: &Refusal) -> Self {
        let (code, hint) = match refusal {
            Refusal::NoSuchDisk(_) => (
                ErrorCode::NotFound,
                "`GET /install` lists the disks".to_owned(),
            ),
            Refusal::Ambiguous(..) => (ErrorCode::Invalid, "use the kernel name".to_owned()),
            Refusal::Medium(_) => (ErrorCode::InUse, "choose another disk".to_owned()),
            Refusal::InUse(..) => (
                ErrorCode::InUse,
                "choose another disk, or stop what uses it".to_owned(),
            ),
            Refusal::ReadOnly(_) | Refusal::TooSmall(..) | Refusal::Sector(..) => {
                (ErrorCode::Invalid, "choose another disk".to_owned())
            }
            Refusal::Unreadable(..) => (ErrorCode::Invalid, "replace the disk".to_owned()),
            Refusal::NotBlank(name, _) => (
                ErrorCode::ConsentRequired,
                format!("everything on it would be lost; to consent, give `erase`: \"{name}\""),
            ),
            Refusal::ConsentForAnother(name, _) => (
                ErrorCode::ConsentRequired,
                format!("`disk` and `erase` must name the same disk, for instance \"{name}\""),
            ),
        };
        ApiError::new(code, refusal.to_string(), hint)
    }
}

/// The disk to install to. `media` are the disks we came from.
pub fn choose<'a>(
    request: &InstallRequest,
    disks: &'a [Candidate],
    media: &[String],
) -> Result<&'a Candidate, Refusal> {
    let chosen = named(&request.disk, disks)?;
    let block = &chosen.block;
    let name = block.name.clone();
    if media.contains(&name) {
        return Err(Refusal::Medium(name));
    }
    if let Some(why) = &block.used_by {
        return Err(Refusal::InUse(name, why.clone()));
    }
    if block.read_only {
        return Err(Refusal::ReadOnly(name));
    }
    if block.len < DISK_LEN_MIN {
        return Err(Refusal::TooSmall(name, block.len / MIB));
    }
    if block_size(block.sector).is_none() {
        return Err(Refusal::Sector(name, block.sector));
    }
    if let Content::Unreadable(why) = &chosen.content {
        return Err(Refusal::Unreadable(name, why.clone()));
    }
    match &request.erase {
        Some(erase) => match named(erase, disks) {
            Ok(same) if same.block.name == name => Ok(chosen),
            Ok(other) => Err(Refusal::ConsentForAnother(name, other.block.name.clone())),
            Err(_) => Err(Refusal::ConsentForAnother(
                name,
                format!("`{erase}`, which is no disk here"),
            )),
        },
        None if chosen.content.is_blank() => Ok(chosen),
        None => Err(Refusal::NotBlank(name, chosen.content.to_string())),
    }
}

/// By kernel name, `/dev` path or serial number.
fn named<'a>(text: &str, disks: &'a [Candidate]) -> Result<&'a Candidate, Refusal> {
    let text = text.trim();
    let name = text.strip_prefix("/dev/").unwrap_or(text);
    if let Some(found) = disks.iter().find(|disk| disk.block.name == name) {
        return Ok(found);
    }
    let of_serial: Vec<&Candidate> = disks
        .iter()
        .filter(|disk| !text.is_empty() && disk.block.serial == text)
        .collect();
    match of_serial[..] {
        [one] => Ok(one),
        [] => Err(Refusal::NoSuchDisk(text.to_owned())),
        _ => {
            let names: Vec<&str> = of_serial.iter().map(|d| d.block.name.as_str()).collect();
            Err(Refusal::Ambiguous(text.to_owned(), names.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn disk(name: &str, serial: &str, content: Content) -> Candidate {
        Candidate {
            block: Block {
                name: name.to_owned(),
                path: format!("/dev/{name}").into(),
                len: 8192 * MIB,
                sector: 512,
                read_only: false,
                removable: false,
                model: String::new(),
                serial: serial.to_owned(),
                partition: None,
                used_by: None,
            },
            content,
        }
    }

    fn request(disk: &str, erase: Option<&str>) -> InstallRequest {
        InstallRequest {
            disk: disk.to_owned(),
            erase: erase.map(str::to_owned),
            hostname: None,
            network: None,
            dry_run: false,
        }
    }

    #[test]
    fn consent_is_needed_exactly_when_something_is_there_and_must_name_the_same_disk() {
        let ours = Content::Install(Uuid::from_u128(7));
        let cut = Content::Interrupted(Uuid::from_u128(8));
        let disks = [
            disk("vda", "S1", Content::Blank),
            disk("vdb", "S2", ours),
            disk("vdc", "S3", cut),
            disk("sdd", "", Content::Unknown),
        ];
        let table = [
            ("vda", None, "vda"),
            ("/dev/vda", Some("vda"), "vda"),
            ("S1", Some("/dev/vda"), "vda"),
            ("vda", Some("vdb"), "`erase` names vdb, but the disk is vda"),
            (
                "vda",
                Some("vdx"),
                "`erase` names `vdx`, which is no disk here, but the disk is vda",
            ),
            (
                "vdb",
                None,
                "vdb is not blank: limiquantix install 00000000-0000-0000-0000-000000000007",
            ),
            ("vdb", Some("S1"), "`erase` names vda, but the disk is vdb"),
            ("vdb", Some("S2"), "vdb"),
            ("vdb", Some("vdb"), "vdb"),
            ("vdc", None, "vdc"),
            ("sdd", None, "sdd is not blank: unknown data"),
            (
                "sdd",
                Some(""),
                "`erase` names ``, which is no disk here, but the disk is sdd",
            ),
            ("", None, "there is no disk ``"),
            ("vd", None, "there is no disk `vd`"),
            ("S9", None, "there is no disk `S9`"),
        ];
        for (name, erase, expected) in table {
            let found = match choose(&request(name, erase), &disks, &[]) {
                Ok(chosen) => chosen.block.name.clone(),
                Err(refusal) => refusal.to_string(),
            };
            assert_eq!(found, expected, "disk {name} erase {erase:?}");
        }
    }

    #[test]
    fn consent_does_not_help_where_a_disk_cannot_be_used() {
        let mut disks = [
            disk("vda", "SAME", Content::Unknown),
            disk("vdb", "SAME", Content::Unknown),
        ];
        let judge = |disks: &[Candidate], name: &str, media: &[String]| {
            choose(&request(name, Some(name)), disks, media)
                .map(|chosen| chosen.block.name.clone())
                .map_err(|refusal| refusal.to_string())
        };
        assert_eq!(
            judge(&disks, "SAME", &[]).unwrap_err(),
            "`SAME` names more than one disk: vda, vdb"
        );
        assert_eq!(
            judge(&disks, "vda", &["vda".to_owned()]).unwrap_err(),
            "vda is the medium this machine was booted from"
        );
        disks[0].block.used_by = Some("mounted on /x".into());
        assert_eq!(
            judge(&disks, "vda", &[]).unwrap_err(),
            "vda is in use: mounted on /x"
        );
        disks[0].block.used_by = None;
        disks[0].block.read_only = true;
        assert_eq!(judge(&disks, "vda", &[]).unwrap_err(), "vda is read-only");
        disks[0].block.read_only = false;
        disks[0].block.len = 100 * MIB;
        assert_eq!(
            judge(&disks, "vda", &[]).unwrap_err(),
            "vda has 100 MiB; at least 4096 MiB are needed"
        );
        disks[0].block.len = 8192 * MIB;
        disks[0].block.sector = 520;
        assert!(judge(&disks, "vda", &[]).is_err());
        disks[0].block.sector = 4096;
        assert_eq!(judge(&disks, "vda", &[]).unwrap(), "vda");
        disks[0].content = Content::Unreadable("I/O error".into());
        assert_eq!(
            judge(&disks, "vda", &[]).unwrap_err(),
            "vda cannot be read: I/O error"
        );
    }
}
