//! A VM's serial console over a WebSocket.

use std::fmt::Display;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};

use super::connection::Stream;
use super::{Client, ClientError, refused, uri};
use crate::endpoints as table;

type Socket = WebSocketStream<Box<dyn Stream>>;

/// A serial console: first what was printed since power-on, then what comes.
pub struct Serial {
    sender: SerialSender,
    receiver: SerialReceiver,
}

/// The half that types.
pub struct SerialSender(SplitSink<Socket, Message>);

/// The half that reads.
pub struct SerialReceiver(SplitStream<Socket>);

impl Client {
    /// Opens a VM's serial console.
    pub async fn vm_serial(&self, vm: impl Display + Sync) -> Result<Serial, ClientError> {
        let info = &table::vm_serial.info;
        let address = format!("ws://{}{}", self.connections.host(), uri(info, &[&vm], &[]));
        let invalid = |e: tungstenite::Error| ClientError::Invalid(e.to_string());
        let mut request = address.into_client_request().map_err(invalid)?;
        if let Some(authorization) = self.authorization()? {
            request
                .headers_mut()
                .insert(hyper::header::AUTHORIZATION, authorization);
        }
        let stream = self.connections.connect().await?;
        let upgrade = async {
            match tokio_tungstenite::client_async(request, stream).await {
                Ok((socket, _)) => Ok(socket),
                Err(tungstenite::Error::Http(reply)) => {
                    let body = reply.body().as_deref().unwrap_or_default();
                    Err(refused(reply.status(), body))
                }
                Err(other) => Err(ClientError::Broken(Box::new(other))),
            }
        };
        let (sink, stream) = self.limited(upgrade).await?.split();
        Ok(Serial {
            sender: SerialSender(sink),
            receiver: SerialReceiver(stream),
        })
    }
}

impl Serial {
    /// Types.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        self.sender.send(bytes).await
    }

    /// What the guest printed next; `None` when the console has closed.
    pub async fn receive(&mut self) -> Result<Option<Bytes>, ClientError> {
        self.receiver.receive().await
    }

    /// In two, for two tasks.
    pub fn split(self) -> (SerialSender, SerialReceiver) {
        (self.sender, self.receiver)
    }
}

impl SerialSender {
    /// Types.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        let message = Message::Binary(Bytes::copy_from_slice(bytes));
        self.0
            .send(message)
            .await
            .map_err(|e| ClientError::Broken(Box::new(e)))
    }

    /// Hangs up.
    pub async fn close(&mut self) -> Result<(), ClientError> {
        self.0
            .close()
            .await
            .map_err(|e| ClientError::Broken(Box::new(e)))
    }
}

impl SerialReceiver {
    /// What the guest printed next; `None` when the console has closed.
    pub async fn receive(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            match self.0.next().await {
                None | Some(Ok(Message::Close(_))) => return Ok(None),
                Some(Ok(Message::Binary(bytes))) => return Ok(Some(bytes)),
                Some(Ok(Message::Text(text))) => return Ok(Some(Bytes::from(text))),
                Some(Ok(_)) => {}
                Some(Err(tungstenite::Error::ConnectionClosed)) => return Ok(None),
                Some(Err(error)) => return Err(ClientError::Broken(Box::new(error))),
            }
        }
    }
}
