//! The daemon's side of `vmm::control`: newline-delimited JSON over a unix socket.
//!
//! The VM process is not trusted: lines are bounded, and what is not understood ends the connection.

use std::io;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::codec::{FramedRead, LinesCodec};
use vmm::control::{Answer, Event, Message, Operation, Outcome, Reply, Request};

/// The longest line accepted from a VM process.
const LINE_MAX_BYTES: usize = 64 * 1024;
/// How long one question may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to a VM process.
#[derive(Debug)]
pub struct Control {
    lines: FramedRead<OwnedReadHalf, LinesCodec>,
    writer: OwnedWriteHalf,
    next_id: u64,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket.
    #[error("the control socket failed")]
    Io(#[from] io::Error),
    /// It hung up.
    #[error("the VM process hung up")]
    Closed,
    /// It said what is no message.
    #[error("the VM process does not speak the control protocol")]
    Garbage,
    /// It said no.
    #[error("the VM process refused: {0}")]
    Refused(String),
    /// It said nothing.
    #[error("the VM process did not answer in time")]
    Timeout,
}

impl Control {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// Nobody listens.
    pub async fn connect(path: &Path) -> Result<Self, ControlError> {
        let (reader, writer) = UnixStream::connect(path).await?.into_split();
        let lines = FramedRead::new(reader, LinesCodec::new_with_max_length(LINE_MAX_BYTES));
        Ok(Self {
            lines,
            writer,
            next_id: 1,
        })
    }

    /// Sends a request; its reply comes through [`Control::next`]. A request line is far below a socket's buffer, so
    /// this does not wait for the other side.
    ///
    /// # Errors
    /// The other side is gone.
    pub async fn send(&mut self, op: Operation) -> Result<u64, ControlError> {
        let id = self.next_id;
        self.next_id += 1;
        let mut line = serde_json::to_vec(&Request { id, op }).map_err(io::Error::other)?;
        line.push(b'\n');
        self.writer.write_all(&line).await?;
        Ok(id)
    }

    /// The next event or reply. Dropping this future loses nothing.
    ///
    /// # Errors
    /// The other side is gone or talks nonsense.
    pub async fn next(&mut self) -> Result<Message, ControlError> {
        match self.lines.next().await {
            Some(Ok(line)) => serde_json::from_str(&line).map_err(|_| ControlError::Garbage),
            Some(Err(_)) => Err(ControlError::Garbage),
            None => Err(ControlError::Closed),
        }
    }
}

/// Asks one question on a connection of its own: for readers that are not the supervisor, such as the metrics page.
///
/// # Errors
/// No answer, or a refusal.
pub async fn ask(path: &Path, op: Operation) -> Result<Answer, ControlError> {
    let conversation = async {
        let mut control = Control::connect(path).await?;
        let asked = control.send(op).await?;
        loop {
            match control.next().await? {
                Message::Reply(Reply { id, outcome }) if id == asked => {
                    return match outcome {
                        Outcome::Result(answer) => Ok(answer),
                        Outcome::Error(refusal) => Err(ControlError::Refused(refusal.message)),
                    };
                }
                Message::Reply(_)
                | Message::Event(
                    Event::Running | Event::Paused | Event::Resumed | Event::Exiting { .. },
                ) => {}
            }
        }
    };
    tokio::time::timeout(ASK_TIMEOUT, conversation)
        .await
        .map_err(|_| ControlError::Timeout)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncBufReadExt;
    use tokio::net::UnixListener;

    #[tokio::test]
    async fn a_question_finds_its_answer_between_events() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (reader, mut writer) = stream.into_split();
            let line = tokio::io::BufReader::new(reader)
                .lines()
                .next_line()
                .await
                .unwrap()
                .unwrap();
            assert_eq!(line, r#"{"id":1,"op":"metrics"}"#);
            let answer = b"{\"event\":\"running\"}\n{\"id\":1,\"result\":{\"kind\":\"metrics\",\"counters\":{\"exits\":7}}}\n";
            writer.write_all(answer).await.unwrap();
        });
        let answer = ask(&path, Operation::Metrics).await.unwrap();
        assert_eq!(
            answer,
            Answer::Metrics {
                counters: [("exits".to_owned(), 7)].into()
            }
        );
        server.await.unwrap();
    }

    #[tokio::test]
    async fn an_endless_line_ends_the_connection_and_not_the_daemon() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
        });
        let mut control = Control::connect(&path).await.unwrap();
        assert!(matches!(control.next().await, Err(ControlError::Garbage)));
    }
}
