//! The event stream, resumed where it broke off.

use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;

use super::connection::{ReplyStream, RequestStream, whole};
use super::{Client, ClientError, collect, finish, refused, uri};
use crate::endpoints as table;
use crate::events::Event;

/// Longest line we take: events are some two hundred bytes.
const LINE_LEN_MAX: usize = 64 * 1024;

/// Changes as they happen. An error does not end it: the next call of [`Events::next`] connects again and resumes
/// after the last event seen. `gone` is the exception to that: list again and start anew.
pub struct Events {
    client: Client,
    since: Option<u64>,
    open: Option<Open>,
}

struct Open {
    body: Incoming,
    // Dropping it would close the connection.
    _sender: SendRequest<RequestStream>,
    parser: Parser,
}

impl Client {
    /// Changes after `since`, or from now on.
    pub fn events(&self, since: Option<u64>) -> Events {
        Events {
            client: self.clone(),
            since,
            open: None,
        }
    }
}

impl Events {
    /// The revision up to which everything was seen.
    pub fn since(&self) -> Option<u64> {
        self.since
    }

    /// The next change.
    pub async fn next(&mut self) -> Result<Event, ClientError> {
        loop {
            if self.open.is_none() {
                self.open = Some(self.connect().await?);
            }
            let Some(open) = &mut self.open else { continue };
            if let Some(message) = open.parser.next() {
                match self.take(message) {
                    Ok(Some(event)) => return Ok(event),
                    Ok(None) => continue,
                    Err(error) => {
                        self.open = None;
                        return Err(error);
                    }
                }
            }
            let broken = match open.body.frame().await {
                Some(Ok(frame)) => {
                    let fits = frame.data_ref().is_none_or(|data| open.parser.feed(data));
                    if fits {
                        None
                    } else {
                        Some(ClientError::Protocol("an endless event".to_owned()))
                    }
                }
                Some(Err(error)) => Some(ClientError::Broken(Box::new(error))),
                None => Some(ClientError::Broken("the event stream ended".into())),
            };
            if let Some(error) = broken {
                self.open = None;
                return Err(error);
            }
        }
    }

    fn take(&mut self, message: Message) -> Result<Option<Event>, ClientError> {
        let event = match message.data.as_str() {
            "" => None,
            data => {
                Some(serde_json::from_str(data).map_err(|e| ClientError::Protocol(e.to_string()))?)
            }
        };
        if let Some(id) = message.id {
            self.since = Some(id);
        }
        Ok(event)
    }

    async fn connect(&self) -> Result<Open, ClientError> {
        let info = &table::events.info;
        let query: Vec<_> = self
            .since
            .map(|since| ("since", since))
            .into_iter()
            .collect();
        let request = finish(
            self.client.request(info, &uri(info, &[], &query))?,
            whole(Default::default()),
        )?;
        let sent = self
            .client
            .limited(self.client.connections.send(request, false))
            .await?;
        let ReplyStream { reply, sender } = sent;
        if !reply.status().is_success() {
            let (status, bytes) = collect(reply).await?;
            return Err(refused(status, &bytes));
        }
        Ok(Open {
            body: reply.into_body(),
            _sender: sender,
            parser: Parser::default(),
        })
    }
}

/// A message of the stream: HTML Living Standard §9.2.6, of which we use `id` and `data`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Message {
    id: Option<u64>,
    data: String,
}

#[derive(Debug, Default)]
struct Parser {
    bytes: BytesMut,
    current: Message,
}

impl Parser {
    /// Takes bytes in; false when a line is longer than any of ours.
    fn feed(&mut self, bytes: &[u8]) -> bool {
        self.bytes.extend_from_slice(bytes);
        self.bytes.len() <= LINE_LEN_MAX || self.bytes.contains(&b'\n')
    }

    /// The next complete message.
    fn next(&mut self) -> Option<Message> {
        while let Some(end) = self.bytes.iter().position(|b| *b == b'\n') {
            let line = self.bytes.split_to(end);
            self.bytes.advance(1);
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches('\r');
            if line.is_empty() {
                let done = std::mem::take(&mut self.current);
                if done != Message::default() {
                    return Some(done);
                }
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "id" => self.current.id = value.parse().ok(),
                "data" => self.current.data.push_str(value),
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_of_any_cut() {
        let text = ": hello\n\nid: 7\n\ndata: {\"a\":1}\n\nid: 8\r\ndata: x\r\n\r\n";
        for cut in 0..text.len() {
            let mut parser = Parser::default();
            let mut got = Vec::new();
            for part in [&text[..cut], &text[cut..]] {
                assert!(parser.feed(part.as_bytes()));
                got.extend(std::iter::from_fn(|| parser.next()));
            }
            let expected = [
                Message {
                    id: Some(7),
                    data: String::new(),
                },
                Message {
                    id: None,
                    data: "{\"a\":1}".to_owned(),
                },
                Message {
                    id: Some(8),
                    data: "x".to_owned(),
                },
            ];
            assert_eq!(got, expected);
        }
    }

    #[test]
    fn an_endless_line_is_refused() {
        assert!(!Parser::default().feed(&vec![b'x'; LINE_LEN_MAX + 1]));
    }
}
