//! `lqx network`.

use api::client::Client;
use api::networks::{NetworkCreate, NetworkKind};

use super::finish;
use crate::failure::Failure;
use crate::options::Network;
use crate::output::{Output, word};

pub(super) async fn run(client: &Client, command: Network, output: Output) -> Result<(), Failure> {
    match command {
        Network::Ls => {
            let networks = client.network_list().await?.items;
            output.list(
                &networks,
                &["name", "phase", "kind", "nics", "why"],
                |network| {
                    let why = network
                        .condition
                        .as_ref()
                        .map(|condition| condition.cause.clone());
                    vec![
                        network.name.to_string(),
                        word(&network.phase),
                        match &network.kind {
                            NetworkKind::Uplink { uplink } => format!("on {uplink}"),
                            NetworkKind::Isolated { subnet, dhcp: true } => {
                                format!("isolated {subnet}")
                            }
                            NetworkKind::Isolated {
                                subnet,
                                dhcp: false,
                            } => format!("isolated {subnet}, no DHCP"),
                        },
                        network.nics.to_string(),
                        why.unwrap_or_default(),
                    ]
                },
            )
        }
        Network::Create {
            name,
            subnet,
            no_dhcp,
            uplink,
            wait,
        } => {
            let kind = match (subnet, uplink) {
                (Some(subnet), _) => NetworkKind::Isolated {
                    subnet,
                    dhcp: !no_dhcp,
                },
                (None, Some(uplink)) => NetworkKind::Uplink { uplink },
                (None, None) => return Err(Failure::Usage("say --subnet or --uplink".to_owned())),
            };
            let accepted = client.network_create(&NetworkCreate { name, kind }).await?;
            let name = &accepted.object.name;
            finish(client, accepted.task, &wait, &format!("creating {name}")).await?;
            output.object(&accepted.object, format!("network {name} created"))
        }
        Network::Rm { network, wait } => {
            let removal = client.network_delete(&network).await?;
            finish(client, removal.task, &wait, &format!("removing {network}")).await?;
            output.object(&removal, format!("network {network} removed"))
        }
    }
}
