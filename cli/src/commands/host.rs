//! `lqx host` and `lqx version`.

use api::client::Client;
use api::system::{PowerAction, PowerRequest};
use serde_json::json;

use crate::failure::Failure;
use crate::options::Host;
use crate::output::{Output, word};

pub(super) async fn run(client: &Client, command: Host, output: Output) -> Result<(), Failure> {
    match command {
        Host::Ls => {
            let hosts = client.host_list().await?.items;
            output.list(
                &hosts,
                &[
                    "name", "phase", "version", "cpus", "memory", "promised", "kvm", "why",
                ],
                |host| {
                    let why = host
                        .condition
                        .as_ref()
                        .map(|condition| condition.cause.clone());
                    vec![
                        host.name.to_string(),
                        word(&host.phase),
                        host.version.clone(),
                        host.inventory.cpus.to_string(),
                        host.inventory.memory.to_string(),
                        host.memory_promised.to_string(),
                        if host.inventory.kvm { "yes" } else { "no" }.to_owned(),
                        why.unwrap_or_default(),
                    ]
                },
            )
        }
        Host::Logs => {
            let lines = client.system_logs(None).await?.items;
            output.list(&lines, &["level", "message"], |line| {
                vec![line.level.clone(), line.message.clone()]
            })
        }
        Host::Reboot => power(client, PowerAction::Reboot, "restarting", output).await,
        Host::PowerOff => power(client, PowerAction::PowerOff, "switching off", output).await,
    }
}

async fn power(
    client: &Client,
    action: PowerAction,
    doing: &str,
    output: Output,
) -> Result<(), Failure> {
    client.system_power(&PowerRequest { action }).await?;
    output.object(&json!({ "action": action }), doing)
}

/// Ours, and the appliance's when one is signed in to and answers.
pub(super) async fn version(client: Option<Client>, output: Output) -> Result<(), Failure> {
    let ours = env!("CARGO_PKG_VERSION");
    let theirs = match client {
        Some(client) => client.health_get().await.ok().map(|health| health.version),
        None => None,
    };
    let about = json!({ "lqx": ours, "appliance": theirs });
    let sentence = match &theirs {
        Some(theirs) => format!("lqx {ours}, appliance {theirs}"),
        None => format!("lqx {ours}, no appliance answers"),
    };
    output.object(&about, sentence)
}
