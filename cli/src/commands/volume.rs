//! `lqx volume`.

use api::client::Client;
use api::volumes::{VolumeCreate, VolumeUpdate};

use super::finish;
use crate::failure::Failure;
use crate::options::Volume;
use crate::output::{Output, word};

pub(super) async fn run(client: &Client, command: Volume, output: Output) -> Result<(), Failure> {
    match command {
        Volume::Ls => {
            let volumes = client.volume_list().await?.items;
            output.list(
                &volumes,
                &["name", "phase", "size", "attached to", "why"],
                |volume| {
                    let why = volume
                        .condition
                        .as_ref()
                        .map(|condition| condition.cause.clone());
                    vec![
                        volume.name.to_string(),
                        word(&volume.phase),
                        volume.size.to_string(),
                        volume
                            .attached_to
                            .map(|vm| vm.to_string())
                            .unwrap_or_default(),
                        why.unwrap_or_default(),
                    ]
                },
            )
        }
        Volume::Create {
            name,
            size,
            from,
            wait,
        } => {
            let request = VolumeCreate {
                name,
                size,
                from_image: from,
            };
            let accepted = client.volume_create(&request).await?;
            let name = &accepted.object.name;
            finish(client, accepted.task, &wait, &format!("creating {name}")).await?;
            output.object(&accepted.object, format!("volume {name} created"))
        }
        Volume::Grow { volume, size, wait } => {
            let request = VolumeUpdate {
                revision: None,
                size,
            };
            let accepted = client.volume_update(&volume, &request).await?;
            let name = &accepted.object.name;
            finish(client, accepted.task, &wait, &format!("growing {name}")).await?;
            output.object(&accepted.object, format!("volume {name} grown"))
        }
        Volume::Rm { volume, wait } => {
            let removal = client.volume_delete(&volume).await?;
            finish(client, removal.task, &wait, &format!("removing {volume}")).await?;
            output.object(&removal, format!("volume {volume} removed"))
        }
    }
}
