//! The VM process's side of the control socket: lines in, lines out, never waiting for anybody.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};

use super::{Message, Outcome, REQUEST_MAX_BYTES, Refusal, RefusalCode, Reply, Request};
use crate::event_loop::{EventLoop, Interest, Ready, Token};

/// Most connections at once; a further one is closed at once.
pub const CONNECTIONS_MAX: usize = 16;
/// A connection that lets more than this pile up is closed.
pub const BACKLOG_MAX_BYTES: usize = 256 << 10;

struct Connection {
    socket: OwnedFd,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    interest: Interest,
}

/// The listening socket and its connections.
pub struct Server {
    listener: OwnedFd,
    connections: BTreeMap<u32, Connection>,
    next: u32,
}

impl Server {
    /// Takes over a listening socket.
    pub fn new(listener: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&listener, true)?;
        Ok(Self {
            listener,
            connections: BTreeMap::new(),
            next: 0,
        })
    }

    /// The listening socket, to wait for.
    pub fn listener(&self) -> &OwnedFd {
        &self.listener
    }

    /// Takes all waiting connections and returns their numbers, so that each can be greeted.
    pub fn accept(&mut self, events: &EventLoop) -> Vec<u32> {
        let mut new = Vec::new();
        while let Ok(socket) =
            rustix::net::accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)
        {
            let id = self.next;
            let full = self.connections.len() >= CONNECTIONS_MAX;
            if full
                || events
                    .add(&socket, Token::Control(id), Interest::READ)
                    .is_err()
            {
                continue;
            }
            self.next = self.next.wrapping_add(1);
            let connection = Connection {
                socket,
                inbox: vec![],
                outbox: vec![],
                interest: Interest::READ,
            };
            self.connections.insert(id, connection);
            new.push(id);
        }
        new
    }

    /// A connection is ready. Returns the requests it sent; lines that are none are answered here.
    pub fn ready(&mut self, events: &EventLoop, id: u32, ready: Ready) -> Vec<Request> {
        let Some(connection) = self.connections.get_mut(&id) else {
            return vec![];
        };
        let mut requests = vec![];
        let mut alive = !ready.read || receive(connection);
        while let Some(end) = connection.inbox.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = connection.inbox.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(request) => requests.push(request),
                Err(error) => {
                    let refusal = Refusal {
                        code: RefusalCode::Malformed,
                        message: error.to_string(),
                    };
                    let reply = Message::Reply(Reply {
                        id: 0,
                        outcome: Outcome::Error(refusal),
                    });
                    append(connection, &reply);
                }
            }
        }
        alive &= connection.inbox.len() <= REQUEST_MAX_BYTES;
        alive &= flush(events, connection, id);
        if !alive {
            // What it had asked before it left is still done.
            self.connections.remove(&id);
        }
        requests
    }

    /// Sends to one connection.
    pub fn send(&mut self, events: &EventLoop, id: u32, message: &Message) {
        if let Some(connection) = self.connections.get_mut(&id) {
            append(connection, message);
            if !flush(events, connection, id) {
                self.connections.remove(&id);
            }
        }
    }

    /// Sends to all.
    pub fn broadcast(&mut self, events: &EventLoop, message: &Message) {
        self.connections.retain(|id, connection| {
            append(connection, message);
            flush(events, connection, *id)
        });
    }

    /// Whether everything has been sent.
    pub fn is_idle(&self) -> bool {
        self.connections
            .values()
            .all(|connection| connection.outbox.is_empty())
    }
}

fn append(connection: &mut Connection, message: &Message) {
    // Serializing our own types to memory cannot fail; a line that did would be left out.
    if let Ok(mut line) = serde_json::to_vec(message) {
        line.push(b'\n');
        connection.outbox.append(&mut line);
    }
}

/// False when the other side is gone.
fn receive(connection: &mut Connection) -> bool {
    let mut chunk = [0; REQUEST_MAX_BYTES];
    match rustix::net::recv(connection.socket.as_fd(), &mut chunk, RecvFlags::empty()) {
        Ok((_, 0)) => false,
        Ok((_, count)) => {
            connection.inbox.extend_from_slice(&chunk[..count]);
            true
        }
        Err(errno) => matches!(errno, Errno::AGAIN | Errno::INTR),
    }
}

/// False when the other side is gone or does not read.
fn flush(events: &EventLoop, connection: &mut Connection, id: u32) -> bool {
    while !connection.outbox.is_empty() {
        match rustix::net::send(
            connection.socket.as_fd(),
            &connection.outbox,
            SendFlags::NOSIGNAL,
        ) {
            Ok(sent) => drop(connection.outbox.drain(..sent)),
            Err(Errno::AGAIN) => break,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    let interest = Interest {
        read: true,
        write: !connection.outbox.is_empty(),
    };
    if interest != connection.interest
        && events
            .change(&connection.socket, Token::Control(id), interest)
            .is_ok()
    {
        connection.interest = interest;
    }
    connection.outbox.len() <= BACKLOG_MAX_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Answer, Event, Operation};
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
    use std::time::Duration;

    struct Bench {
        events: EventLoop,
        server: Server,
        address: SocketAddr,
    }

    fn bench(name: &str) -> Bench {
        let address =
            SocketAddr::from_abstract_name(format!("lqx-control-{name}-{}", std::process::id()))
                .unwrap();
        let server = Server::new(UnixListener::bind_addr(&address).unwrap().into()).unwrap();
        Bench {
            events: EventLoop::new().unwrap(),
            server,
            address,
        }
    }

    impl Bench {
        fn connect(&mut self) -> UnixStream {
            let stream = UnixStream::connect_addr(&self.address).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
            self.server.accept(&self.events);
            stream
        }

        fn turn(&mut self) -> Vec<(u32, Request)> {
            let mut all = vec![];
            for ready in self.events.wait(Some(Duration::from_millis(50))).unwrap() {
                if let Token::Control(id) = ready.token {
                    all.extend(
                        self.server
                            .ready(&self.events, id, ready)
                            .into_iter()
                            .map(|r| (id, r)),
                    );
                }
            }
            all
        }
    }

    #[test]
    fn requests_may_come_in_pieces_and_several_at_once() {
        let mut bench = bench("pieces");
        let mut client = bench.connect();
        client.write_all(b"{\"id\":1,\"op\":\"st").unwrap();
        assert!(bench.turn().is_empty());
        client
            .write_all(b"atus\"}\n{\"id\":2,\"op\":\"stop\"}\n")
            .unwrap();
        let asked: Vec<_> = bench
            .turn()
            .into_iter()
            .map(|(_, request)| request.op)
            .collect();
        assert_eq!(asked, [Operation::Status, Operation::Stop]);
    }

    #[test]
    fn what_is_no_request_is_answered_as_malformed() {
        let mut bench = bench("malformed");
        let mut client = bench.connect();
        client
            .write_all(
                b"{\"id\":1,\"op\":\"explode\"}\n{\"id\":1,\"op\":\"stop\",\"force\":true}\n\n",
            )
            .unwrap();
        assert!(bench.turn().is_empty());
        let mut lines = BufReader::new(client).lines();
        for _ in 0..3 {
            let line = lines.next().unwrap().unwrap();
            assert!(
                line.starts_with(r#"{"id":0,"error":{"code":"malformed""#),
                "{line}"
            );
        }
    }

    #[test]
    fn an_endless_line_and_a_reader_that_never_reads_are_closed() {
        let mut bench = bench("limits");
        let mut client = bench.connect();
        client.write_all(&[b'x'; REQUEST_MAX_BYTES + 1]).unwrap();
        bench.turn();
        bench.turn();
        assert!(bench.server.connections.is_empty());
        assert_eq!(client.read(&mut [0]).unwrap_or(0), 0);

        let _lazy = bench.connect();
        for _ in 0..100_000 {
            bench
                .server
                .broadcast(&bench.events, &Message::Event(Event::Running));
        }
        assert!(bench.server.connections.is_empty());
    }

    #[test]
    fn events_reach_everybody_and_replies_who_asked() {
        let mut bench = bench("events");
        let (one, two) = (bench.connect(), bench.connect());
        bench
            .server
            .broadcast(&bench.events, &Message::Event(Event::Paused));
        bench.server.send(
            &bench.events,
            1,
            &Message::Reply(Reply {
                id: 9,
                outcome: Outcome::Result(Answer::Done),
            }),
        );
        let first = |stream| BufReader::new(stream).lines().map_while(Result::ok);
        assert_eq!(
            first(one).take(1).collect::<Vec<_>>(),
            [r#"{"event":"paused"}"#]
        );
        let both: Vec<_> = first(two).take(2).collect();
        assert_eq!(
            both,
            [
                r#"{"event":"paused"}"#,
                r#"{"id":9,"result":{"kind":"done"}}"#
            ]
        );
    }
}
