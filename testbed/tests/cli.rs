//! `lqx` against a real appliance: whole sessions, exit statuses, what scripts rely on.

use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testbed::artifacts::dist;
use testbed::lab::{ADMIN, Lab, lab_test};
use testbed::media::packed;

struct Lqx {
    program: PathBuf,
    config: PathBuf,
    password: String,
}

impl Lqx {
    fn find(lab: &mut Lab) -> Result<Self> {
        let folder = std::env::var_os("LQX_BINARIES").map(PathBuf::from);
        let here = std::env::current_exe()?;
        let built = here.ancestors().nth(2).map(PathBuf::from);
        let program = [folder, built]
            .into_iter()
            .flatten()
            .map(|folder| folder.join("lqx"))
            .find(|file| file.is_file());
        Ok(Self {
            program: program
                .context("no `lqx` beside the tests: `cargo build --workspace --bin lqx`")?,
            config: lab.file("lqx.toml"),
            password: lab.appliance()?.access.password.clone(),
        })
    }

    fn call(&self, line: &str) -> Result<Output> {
        let output = Command::new(&self.program)
            .args(line.split(' '))
            .env("LQX_CONFIG", &self.config)
            .env("LQX_PASSWORD", &self.password)
            .stdin(std::process::Stdio::null())
            .output();
        let output = output.with_context(|| format!("starting {}", self.program.display()))?;
        println!(
            "$ lqx {line}\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output)
    }

    /// Must end with this status; what it printed.
    fn ends(&self, status: i32, line: &str) -> Result<String> {
        let output = self.call(line)?;
        ensure!(
            output.status.code() == Some(status),
            "`lqx {line}` ended with {}",
            output.status
        );
        let stream = if status == 0 {
            output.stdout
        } else {
            output.stderr
        };
        Ok(String::from_utf8_lossy(&stream).into_owned())
    }

    fn json(&self, line: &str) -> Result<Value> {
        Ok(serde_json::from_str(
            &self.ends(0, &format!("{line} --output json"))?,
        )?)
    }
}

/// Signing in, images, a volume, a network, a VM and its console, tokens; and every exit status there is.
#[test]
fn a_session_at_the_desk() -> Result<()> {
    lab_test("a_session_at_the_desk", async |lab| {
        lab.prepared().await?;
        let lqx = Lqx::find(lab)?;
        let (address, fingerprint) = {
            let appliance = lab.appliance()?;
            (appliance.address()?, appliance.access.fingerprint.clone())
        };

        lqx.ends(2, "vm ls").context("not signed in")?;
        lqx.ends(2, "vm frobnicate")?;
        let wrong = "00".repeat(32);
        lqx.ends(3, &format!("login {address} --fingerprint {wrong}"))
            .context("another certificate")?;
        lqx.ends(3, &format!("login 127.0.0.1:1 --fingerprint {fingerprint}"))
            .context("nobody there")?;
        lqx.ends(2, &format!("login {address}"))
            .context("no terminal to confirm the certificate on")?;
        lqx.ends(
            0,
            &format!("login {address} --fingerprint {fingerprint} --user {ADMIN}"),
        )?;

        ensure!(lqx.json("host ls")?[0]["inventory"]["kvm"] == true);
        let initrd = dist("guest/initrd")?;
        lqx.ends(
            0,
            &format!(
                "image upload {} --kind initrd --name second",
                initrd.display()
            ),
        )?;
        let again = lqx.ends(
            1,
            &format!(
                "image upload {} --kind initrd --name second",
                initrd.display()
            ),
        )?;
        ensure!(again.contains("hint:"), "{again}");
        ensure!(lqx.ends(0, "image ls")?.contains("second"));
        let packed_file = lab.file("packed.qcow2");
        packed(&packed_file, 3)?;
        let upload = format!("image upload {} --kind disk", packed_file.display());
        let not_said = lqx.ends(2, &upload).context("which format it is")?;
        ensure!(not_said.contains("--format qcow2"), "{not_said}");
        lqx.ends(0, &format!("{upload} --format qcow2"))?;
        let small = lqx.ends(1, "volume create small --size 2M --from-image packed.qcow2")?;
        ensure!(small.contains("at least 3 MiB"), "{small}");
        lqx.ends(
            0,
            "volume create unpacked --size 3M --from-image packed.qcow2",
        )?;
        lqx.ends(0, "volume create data --size 64M")?;
        lqx.ends(1, "volume create data --size 64M")
            .context("the name is taken")?;

        let create = "vm create web --memory 256M --kernel guest-kernel --initrd second --disk data --network lab --cmdline console=ttyS0 --start";
        lqx.ends(0, create)?;
        let console = lqx.ends(0, "vm console web --for boots=[0-9]+.ip= --timeout 240")?;
        ensure!(console.contains("LQX-GUEST-READY boots=1"), "{console}");
        lqx.ends(4, "vm console web --for never-printed --timeout 3")?;
        ensure!(lqx.ends(0, "vm ls")?.contains("running"));
        let refused = lqx.ends(1, "vm delete web").context("it runs")?;
        ensure!(refused.contains("hint:"), "{refused}");
        lqx.ends(0, "vm stop web --timeout 120")?;
        ensure!(lqx.json("vm show web")?["phase"] == "stopped");
        lqx.ends(0, "vm delete web")?;
        lqx.ends(1, "vm show web").context("it is gone")?;
        lqx.ends(0, "volume rm data")?;
        lqx.ends(0, "image rm second")?;

        let token = lqx.json("token create ci --role viewer --days 1")?;
        let id = token["id"].as_str().context("no id")?;
        ensure!(
            token["secret"]
                .as_str()
                .is_some_and(|secret| !secret.is_empty())
        );
        lqx.ends(0, &format!("token revoke {id}"))?;
        ensure!(
            lqx.ends(0, "events --since 0 --count 3")
                .is_ok_and(|events| events.lines().count() == 3)
        );
        lqx.ends(0, "logout")?;
        lqx.ends(2, "vm ls").context("signed out")?;
        Ok(())
    })
}
