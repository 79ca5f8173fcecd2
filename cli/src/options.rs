//! What can be said on the command line. The doc comments are the manual.

use std::path::PathBuf;
use std::time::Duration;

use api::ids::{TaskId, TokenId};
use api::images::{ImageFormat, ImageKind};
use api::names::{Name, Ref};
use api::units::Mib;
use api::users::Role;
use api::vms::OnCrash;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::size;

/// Works with a limiquantix appliance.
///
/// Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 not reachable or not the pinned appliance, 4 not in time.
#[derive(Debug, Parser)]
#[command(name = "lqx", version, propagate_version = true)]
pub(crate) struct Options {
    /// How to print.
    #[arg(
        long,
        short,
        global = true,
        value_enum,
        default_value = "table",
        env = "LQX_OUTPUT"
    )]
    pub(crate) output: Format,
    /// Which of the appliances signed in to; the last one if not said.
    #[arg(
        long,
        global = true,
        env = "LQX_APPLIANCE",
        hide_env_values = true,
        value_name = "NAME"
    )]
    pub(crate) appliance: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs: what the API said.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Enrol the first administrator of a fresh appliance, and sign in
    Setup(Setup),
    /// Sign in; its certificate is pinned
    Login(Login),
    /// Forget an appliance and end the session there
    Logout,
    /// Virtual machines
    #[command(subcommand)]
    Vm(Vm),
    /// Images: kernels, initramfs, disks
    #[command(subcommand)]
    Image(Image),
    /// Volumes: what guests see as disks
    #[command(subcommand)]
    Volume(Volume),
    /// Networks
    #[command(subcommand)]
    Network(Network),
    /// Hosts
    #[command(subcommand)]
    Host(Host),
    /// Operations that take longer than a request
    #[command(subcommand)]
    Task(Task),
    /// API tokens for programs
    #[command(subcommand)]
    Token(Token),
    /// Print changes as they happen
    Events(Events),
    /// Our version and the appliance's
    Version,
    /// Print a completion script
    Completions {
        /// For this shell
        shell: Shell,
    },
}

/// Which appliance, and how it proves that it is the one.
#[derive(Debug, Args)]
pub(crate) struct Where {
    /// Host name or address, with a port if it is not 443
    pub(crate) address: String,
    /// SHA-256 of its certificate, as shown on its console; without it, the one it presents is shown and confirmed
    #[arg(long, env = "LQX_FINGERPRINT")]
    pub(crate) fingerprint: Option<String>,
    /// Keep it under this name
    #[arg(long = "as", value_name = "NAME", default_value = "default")]
    pub(crate) name: String,
}

/// Who signs in.
#[derive(Debug, Args)]
pub(crate) struct Who {
    /// User name
    #[arg(long, default_value = "admin")]
    pub(crate) user: Name,
    /// Read the password from the first line of standard input; else `LQX_PASSWORD`, else it is asked for
    #[arg(long)]
    pub(crate) password_stdin: bool,
}

/// `lqx setup`.
#[derive(Debug, Args)]
pub(crate) struct Setup {
    #[command(flatten)]
    pub(crate) to: Where,
    /// The one-time token shown on the appliance's console
    #[arg(long, env = "LQX_SETUP_TOKEN", hide_env_values = true)]
    pub(crate) token: String,
    #[command(flatten)]
    pub(crate) who: Who,
}

/// `lqx login`.
#[derive(Debug, Args)]
pub(crate) struct Login {
    #[command(flatten)]
    pub(crate) to: Where,
    #[command(flatten)]
    pub(crate) who: Who,
}

/// How long to wait for what was asked to be done.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Return as soon as it is agreed, not when it is done
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// Wait at most so many seconds
    #[arg(long, default_value = "300", value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: u64 = text
        .parse()
        .map_err(|_| format!("`{text}` is not a number of seconds"))?;
    Ok(Duration::from_secs(seconds))
}

/// `lqx vm`.
#[derive(Debug, Subcommand)]
pub(crate) enum Vm {
    /// List
    Ls,
    /// Everything about one
    Show {
        /// Its name or id
        vm: Ref,
    },
    /// Make one; it stays down until started
    Create(VmCreate),
    /// Start
    Start {
        /// Its name or id
        vm: Ref,
        #[command(flatten)]
        wait: Wait,
    },
    /// Ask the guest to shut down
    Stop {
        /// Its name or id
        vm: Ref,
        #[command(flatten)]
        wait: Wait,
    },
    /// Stop at once, as by pulling the plug
    Kill {
        /// Its name or id
        vm: Ref,
        #[command(flatten)]
        wait: Wait,
    },
    /// Stop and start again
    Reboot {
        /// Its name or id
        vm: Ref,
        #[command(flatten)]
        wait: Wait,
    },
    /// Remove; its volumes stay
    Delete {
        /// Its name or id
        vm: Ref,
        #[command(flatten)]
        wait: Wait,
    },
    /// Its serial console, beginning with what it printed since power-on; Ctrl-] leaves
    Console(Console),
}

/// `lqx vm create`.
#[derive(Debug, Args)]
pub(crate) struct VmCreate {
    /// Its name
    pub(crate) name: Name,
    /// Guest memory: 256M, 2G
    #[arg(long, value_parser = size::parse, default_value = "512M")]
    pub(crate) memory: Mib,
    /// Number of vCPUs
    #[arg(long, default_value = "1")]
    pub(crate) vcpus: u8,
    /// Boot this kernel image, instead of what UEFI firmware finds on the disks
    #[arg(long, value_name = "IMAGE")]
    pub(crate) kernel: Option<Ref>,
    /// With this initramfs image
    #[arg(long, value_name = "IMAGE", requires = "kernel")]
    pub(crate) initrd: Option<Ref>,
    /// And this kernel command line
    #[arg(long, default_value = "console=ttyS0", requires = "kernel")]
    pub(crate) cmdline: String,
    /// A disk, in guest order: a volume, with `:ro` to keep the guest from writing, and limits: bytes_per_second,
    /// bytes_burst, operations_per_second, operations_burst
    #[arg(long = "disk", value_name = "VOLUME[:ro][,LIMIT=50M]...")]
    pub(crate) disks: Vec<String>,
    /// A NIC, in guest order: a network, with a MAC address if it shall have that one, and limits of each direction:
    /// receive.bytes_per_second, transmit.operations_burst and so on
    #[arg(long = "network", value_name = "NETWORK[,MAC][,receive.LIMIT=50M]...")]
    pub(crate) networks: Vec<String>,
    /// Start it again when it crashes
    #[arg(long, value_enum, default_value = "stay")]
    pub(crate) on_crash: Crash,
    /// Start it with its host
    #[arg(long)]
    pub(crate) autostart: bool,
    /// Start it now
    #[arg(long)]
    pub(crate) start: bool,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

/// What happens after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Crash {
    /// It stays down and says why.
    Stay,
    /// It is started again.
    Restart,
}

impl From<Crash> for OnCrash {
    fn from(crash: Crash) -> Self {
        match crash {
            Crash::Stay => Self::Stay,
            Crash::Restart => Self::Restart,
        }
    }
}

/// `lqx vm console`.
#[derive(Debug, Args)]
pub(crate) struct Console {
    /// Its name or id
    pub(crate) vm: Ref,
    /// For scripts: print until this regular expression matches, then leave with 0
    #[arg(long = "for", value_name = "REGEX")]
    pub(crate) marker: Option<regex::Regex>,
    /// With --for: leave with 4 after so many seconds
    #[arg(long, default_value = "300", value_name = "SECONDS", value_parser = seconds, requires = "marker")]
    pub(crate) timeout: Duration,
    /// Type this line first
    #[arg(long, value_name = "LINE")]
    pub(crate) send: Option<String>,
}

/// `lqx image`.
#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// List
    Ls,
    /// Upload a file; its length and SHA-256 are checked there
    Upload {
        /// The file
        file: PathBuf,
        /// What it is
        #[arg(long, value_enum)]
        kind: Kind,
        /// How a disk's bytes are understood; raw if not said
        #[arg(long, value_enum)]
        format: Option<DiskFormat>,
        /// Its name; the file's name if not said
        #[arg(long)]
        name: Option<Name>,
    },
    /// Remove
    Rm {
        /// Its name or id
        image: Ref,
        #[command(flatten)]
        wait: Wait,
    },
}

/// What an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// A bzImage or ELF kernel.
    Kernel,
    /// An initramfs.
    Initrd,
    /// A disk.
    Disk,
}

impl From<Kind> for ImageKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Kernel => Self::Kernel,
            Kind::Initrd => Self::Initrd,
            Kind::Disk => Self::Disk,
        }
    }
}

/// How a disk image's bytes are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DiskFormat {
    /// The disk's bytes as they are.
    Raw,
    /// A complete qcow2 image.
    Qcow2,
}

impl From<DiskFormat> for ImageFormat {
    fn from(format: DiskFormat) -> Self {
        match format {
            DiskFormat::Raw => Self::Raw,
            DiskFormat::Qcow2 => Self::Qcow2,
        }
    }
}

/// `lqx volume`.
#[derive(Debug, Subcommand)]
pub(crate) enum Volume {
    /// List
    Ls,
    /// Make one
    Create {
        /// Its name
        name: Name,
        /// Its size: 512M, 10G
        #[arg(long, value_parser = size::parse)]
        size: Mib,
        /// Filled from this disk image
        #[arg(long = "from-image", alias = "from", value_name = "IMAGE")]
        from: Option<Ref>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Make it larger, also while a VM has it; file systems on it are the guest's to grow
    Grow {
        /// Its name or id
        volume: Ref,
        /// What it is to have: 512M, 10G
        #[arg(long, value_parser = size::parse)]
        size: Mib,
        #[command(flatten)]
        wait: Wait,
    },
    /// Remove
    Rm {
        /// Its name or id
        volume: Ref,
        #[command(flatten)]
        wait: Wait,
    },
}

/// `lqx network`.
#[derive(Debug, Subcommand)]
pub(crate) enum Network {
    /// List
    Ls,
    /// Make one: a bridge on a NIC, or one of its own with the host as gateway
    Create {
        /// Its name
        name: Name,
        /// Isolated, with this subnet: 10.77.0.0/24
        #[arg(long, required_unless_present = "uplink", conflicts_with = "uplink")]
        subnet: Option<String>,
        /// Isolated: the host hands out no addresses
        #[arg(long, conflicts_with = "uplink")]
        no_dhcp: bool,
        /// On this NIC of the host
        #[arg(long, value_name = "NIC")]
        uplink: Option<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Remove
    Rm {
        /// Its name or id
        network: Ref,
        #[command(flatten)]
        wait: Wait,
    },
}

/// `lqx host`.
#[derive(Debug, Subcommand)]
pub(crate) enum Host {
    /// List
    Ls,
    /// The log of the appliance we talk to
    Logs,
    /// Restart the appliance we talk to
    Reboot,
    /// Switch the appliance we talk to off
    PowerOff,
}

/// `lqx task`.
#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// List, newest first
    Ls,
    /// Wait until one has ended; 1 when it failed
    Wait {
        /// Its id
        task: TaskId,
        /// At most so many seconds
        #[arg(long, default_value = "300", value_name = "SECONDS", value_parser = seconds)]
        timeout: Duration,
    },
}

/// `lqx token`.
#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// List
    Ls,
    /// Make one; its secret is printed once
    Create {
        /// What it is for
        name: Name,
        /// What it may do, at most what you may
        #[arg(long, value_enum, default_value = "viewer")]
        role: TokenRole,
        /// Days until it ends
        #[arg(long, default_value = "90")]
        days: u32,
    },
    /// End one
    Revoke {
        /// Its id
        token: TokenId,
    },
}

/// What a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TokenRole {
    /// Look.
    Viewer,
    /// Work with VMs, volumes, images.
    Operator,
    /// Everything.
    Admin,
}

impl From<TokenRole> for Role {
    fn from(role: TokenRole) -> Self {
        match role {
            TokenRole::Viewer => Self::Viewer,
            TokenRole::Operator => Self::Operator,
            TokenRole::Admin => Self::Admin,
        }
    }
}

/// `lqx events`.
#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Begin after this revision, not now
    #[arg(long, value_name = "REVISION")]
    pub(crate) since: Option<u64>,
    /// Leave after so many
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use expect_test::expect;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn the_list_of_commands() {
        let help = Options::command().render_help().to_string();
        expect![[r#"
            Works with a limiquantix appliance

            Usage: lqx [OPTIONS] <COMMAND>

            Commands:
              setup        Enrol the first administrator of a fresh appliance, and sign in
              login        Sign in; its certificate is pinned
              logout       Forget an appliance and end the session there
              vm           Virtual machines
              image        Images: kernels, initramfs, disks
              volume       Volumes: what guests see as disks
              network      Networks
              host         Hosts
              task         Operations that take longer than a request
              token        API tokens for programs
              events       Print changes as they happen
              version      Our version and the appliance's
              completions  Print a completion script
              help         Print this message or the help of the given subcommand(s)

            Options:
              -o, --output <OUTPUT>   How to print [env: LQX_OUTPUT=] [default: table] [possible values: table, json]
                  --appliance <NAME>  Which of the appliances signed in to; the last one if not said [env: LQX_APPLIANCE]
              -h, --help              Print help (see more with '--help')
              -V, --version           Print version
        "#]].assert_eq(&help);
    }

    #[test]
    fn a_network_is_isolated_or_on_an_uplink() {
        let parse = |line: &str| Options::try_parse_from(line.split(' ')).is_ok();
        assert!(parse("lqx network create lab --subnet 10.77.0.0/24"));
        assert!(parse("lqx network create lan --uplink eth0"));
        assert!(!parse("lqx network create lab"));
        assert!(!parse(
            "lqx network create lab --subnet 10.77.0.0/24 --uplink eth0"
        ));
        assert!(!parse("lqx network create lan --uplink eth0 --no-dhcp"));
    }
}
