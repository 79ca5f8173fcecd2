//! The control socket: newline-delimited JSON, the whole public face at run time.
//!
//! ```text
//! → {"id":1,"op":"pause"}            ← {"id":1,"result":{"kind":"done"}}
//! → {"id":2,"op":"status"}           ← {"id":2,"result":{"kind":"status","state":"paused",…}}
//!                                    ← {"event":"exiting","reason":{"kind":"guest_power_off"}}
//! ```
//! Several connections at once; a reply goes to who asked, an event to everybody.

pub mod server;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The longest request line; a connection that sends more without a newline is closed.
pub const REQUEST_MAX_BYTES: usize = 4096;

/// What a connection may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Chosen by the asker, repeated in the reply.
    pub id: u64,
    /// What to do.
    pub op: Operation,
}

/// The operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Operation {
    /// Where the machine stands.
    Status,
    /// Stop all vCPUs where they are; answered once they stand.
    Pause,
    /// Let them go on.
    Resume,
    /// Press the ACPI power button: a guest that listens shuts down.
    PowerButton,
    /// Pull the reset line: the process ends with [`ExitReason::GuestReset`] and its supervisor starts it anew.
    Reset,
    /// Pull the plug: the process ends with [`ExitReason::Stopped`].
    Stop,
    /// All counters.
    Metrics,
    /// A disk's volume has grown: let the disk, and the guest that uses it. It never shrinks.
    ResizeDisk {
        /// Its place in the configuration, from 0 on.
        disk: u8,
        /// What it is to have; the volume has it already.
        bytes: u64,
    },
}

/// The answer to the request with the same `id`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The request's; 0 if the request could not be read.
    pub id: u64,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Success or refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was done.
    Result(Answer),
    /// It was not.
    Error(Refusal),
}

/// What a successful request answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Answer {
    /// Done; nothing to tell.
    Done,
    /// For [`Operation::Status`].
    Status(Status),
    /// For [`Operation::Metrics`]: counters by name, units in the name.
    Metrics {
        /// Name to value.
        counters: BTreeMap<String, u64>,
    },
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// A word a program can match on.
    pub code: RefusalCode,
    /// A sentence for people.
    pub message: String,
}

/// Kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// The line is not a request.
    Malformed,
    /// The machine is not in a state for it, for example paused already.
    WrongState,
    /// It was tried and did not work.
    Failed,
}

/// Told to every connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The vCPUs run for the first time. Also the greeting of a new connection to a running machine.
    Running,
    /// All vCPUs stand. Also the greeting of a new connection to a paused machine.
    Paused,
    /// They run again.
    Resumed,
    /// The process is about to end.
    Exiting {
        /// Why.
        reason: ExitReason,
    },
}

/// A line from the VM process: a reply or an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Message {
    /// Unasked.
    Event(Event),
    /// An answer.
    Reply(Reply),
}

/// Where a machine stands; also the content of the status file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The machine's name.
    pub name: String,
    /// The process.
    pub pid: u32,
    /// Running, paused, or over.
    pub state: State,
    /// Why it ended, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExitReason>,
    /// Since the process began to build the machine.
    pub uptime_ms: u64,
}

impl Status {
    /// Reads a status file: one JSON document, followed by blanks.
    pub fn from_file(content: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(content)
    }
}

/// The states of [`crate::vm`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Not yet at the first guest instruction.
    Building,
    /// vCPUs run.
    Running,
    /// vCPUs stand.
    Paused,
    /// Over.
    Exited,
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest switched itself off (ACPI S5).
    GuestPowerOff,
    /// The guest asked for a reset, or [`Operation::Reset`] did; the supervisor starts the machine anew.
    GuestReset,
    /// A vCPU could not deliver a fault (a crashed guest, or its last resort to reset).
    TripleFault,
    /// [`Operation::Stop`].
    Stopped,
    /// It could not be built or run.
    Error {
        /// The chain of causes.
        message: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_form_is_what_the_module_says() {
        let request: Request = serde_json::from_str(r#"{"id":1,"op":"power_button"}"#).unwrap();
        assert_eq!(
            request,
            Request {
                id: 1,
                op: Operation::PowerButton
            }
        );
        let line = r#"{"id":4,"op":{"resize_disk":{"disk":1,"bytes":4096}}}"#;
        let request: Request = serde_json::from_str(line).unwrap();
        let (disk, bytes) = (1, 4096);
        assert_eq!(request.op, Operation::ResizeDisk { disk, bytes });
        assert_eq!(serde_json::to_string(&request).unwrap(), line);
        let done = Message::Reply(Reply {
            id: 1,
            outcome: Outcome::Result(Answer::Done),
        });
        assert_eq!(
            serde_json::to_string(&done).unwrap(),
            r#"{"id":1,"result":{"kind":"done"}}"#
        );
        let over = Message::Event(Event::Exiting {
            reason: ExitReason::GuestPowerOff,
        });
        let line = r#"{"event":"exiting","reason":{"kind":"guest_power_off"}}"#;
        assert_eq!(serde_json::to_string(&over).unwrap(), line);
        assert_eq!(serde_json::from_str::<Message>(line).unwrap(), over);
        let refused = Message::Reply(Reply {
            id: 2,
            outcome: Outcome::Error(Refusal {
                code: RefusalCode::WrongState,
                message: "m".into(),
            }),
        });
        let line = r#"{"id":2,"error":{"code":"wrong_state","message":"m"}}"#;
        assert_eq!(serde_json::to_string(&refused).unwrap(), line);
        assert_eq!(serde_json::from_str::<Message>(line).unwrap(), refused);
        let status = Message::Reply(Reply {
            id: 3,
            outcome: Outcome::Result(Answer::Status(Status {
                name: "web".into(),
                pid: 7,
                state: State::Exited,
                exit: Some(ExitReason::Error {
                    message: "no".into(),
                }),
                uptime_ms: 5,
            })),
        });
        let line = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Message>(&line).unwrap(), status);
    }
}
