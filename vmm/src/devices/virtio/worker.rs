//! Threads that process queues.
//!
//! A worker thread is started with its device and lives as long. It restricts its system calls before it sees anything of
//! a guest's, then waits for queues. That it exists beforehand matters: a thread made when the guest activates a device
//! would be made by a vCPU thread, inherit that one's filter, and that one would have to be allowed to make threads.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::chain::BrokenQueue;
use super::device::{ActivateError, Activation, ActiveQueue};
use super::wait::{Trigger, Waiter};
use crate::seccomp::{self, ThreadKind};

/// What a worker thread does between activation and stop.
pub trait QueueWorker: Send + 'static {
    /// Processes the queues until `stop` becomes readable, finishes what is in flight, and gives them back.
    fn run(&mut self, activation: Activation, stop: &EventFd) -> Vec<ActiveQueue>;

    /// Its [`Bell`] was rung, and it has no queues.
    fn called(&mut self) {}
}

/// What a worker thread is told while it has no queues.
#[derive(Debug)]
enum Order {
    Run(Activation),
    Call,
    End,
}

/// Calls a worker that has no queues; one that has hears it once it has not.
#[derive(Debug, Clone)]
pub struct Bell(Sender<Order>);

impl Bell {
    /// Calls it; false if it is gone.
    pub fn ring(&self) -> bool {
        self.0.send(Order::Call).is_ok()
    }
}

/// Why a worker stands still until its device is reset.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The driver has made a queue unusable.
    #[error(transparent)]
    Queue(#[from] BrokenQueue),
    /// The host's kernel refused something.
    #[error("the host refused: {0}")]
    Host(#[from] io::Error),
}

/// Does nothing until `stop` is signalled: all that is left to do for a device whose queue is broken.
pub fn idle_until(stop: &EventFd) {
    let wait = || {
        let mut waiter = Waiter::new()?;
        waiter.add(stop, 0, Trigger::Level)?;
        waiter.wait().map(drop)
    };
    // If even that is refused the queues go back early, and the device is failed all the same.
    let _: io::Result<()> = wait();
}

/// A worker thread as its device holds it.
#[derive(Debug)]
pub struct Worker {
    orders: Sender<Order>,
    stopped: Receiver<Vec<ActiveQueue>>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    running: bool,
}

impl Worker {
    /// Starts a thread called `name` (of which the kernel keeps 15 bytes) and returns once it has restricted itself.
    pub fn spawn(name: &str, mut worker: impl QueueWorker) -> io::Result<Self> {
        let (orders, to_do) = channel();
        let (give_back, stopped) = channel();
        let (ready, readiness) = channel();
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let told_to_stop = stop.clone();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let filtered = seccomp::apply(ThreadKind::Worker);
                let go = filtered.is_ok();
                // The receiver waits for exactly this.
                let _ = ready.send(filtered);
                if !go {
                    return;
                }
                while let Ok(order) = to_do.recv() {
                    let activation = match order {
                        Order::Run(activation) => activation,
                        Order::Call => {
                            worker.called();
                            continue;
                        }
                        Order::End => return,
                    };
                    let queues = worker.run(activation, &told_to_stop);
                    // Empty already if the worker read it.
                    let _ = told_to_stop.read();
                    if give_back.send(queues).is_err() {
                        return;
                    }
                }
            })?;
        let filtered = readiness.recv().map_err(io::Error::other)?;
        filtered.map_err(io::Error::other)?;
        Ok(Self {
            orders,
            stopped,
            stop,
            thread: Some(thread),
            running: false,
        })
    }

    /// Hands queues over.
    pub fn start(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.orders
            .send(Order::Run(activation))
            .map_err(|_| ActivateError::WorkerGone)?;
        self.running = true;
        Ok(())
    }

    /// A way to call it.
    pub fn bell(&self) -> Bell {
        Bell(self.orders.clone())
    }

    /// Takes the queues back; none if there are none.
    pub fn stop(&mut self) -> Vec<ActiveQueue> {
        if !std::mem::take(&mut self.running) {
            return Vec::new();
        }
        // Cannot fail: nobody else writes to it, so the counter is zero.
        let _ = self.stop.write(1);
        self.stopped.recv().unwrap_or_default()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.stop());
        // Bells may outlive the device.
        let _ = self.orders.send(Order::End);
        if let Some(thread) = self.thread.take() {
            // A worker that panicked has said so on standard error.
            let _ = thread.join();
        }
    }
}
