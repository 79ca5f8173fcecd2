//! Listeners: TLS for the world, a unix socket for the local console. Limits, and an orderly end.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::context::Context;
use super::routes;
use super::tls::{TlsError, TlsIdentity};
use crate::auth::From;
use crate::metrics::Metrics;

/// What strangers may use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections over TLS at once.
    pub connections: usize,
    /// Of these, from one address.
    pub connections_per_address: usize,
    /// For the TLS handshake.
    pub handshake_within: Duration,
    /// For a request's head; also how long an idle HTTP/1.1 connection is kept.
    pub header_within: Duration,
    /// Bytes of a request's head.
    pub header_bytes: usize,
    /// Header lines.
    pub headers: usize,
    /// Requests at once on one HTTP/2 connection.
    pub streams: u32,
    /// For what is under way when the daemon goes down.
    pub drain_within: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            connections_per_address: 128,
            handshake_within: Duration::from_secs(10),
            header_within: Duration::from_secs(20),
            header_bytes: 16 * 1024,
            headers: 64,
            streams: 64,
            drain_within: Duration::from_secs(5),
        }
    }
}

/// What to serve on.
pub struct ServerConfig {
    /// For the world.
    pub tls_listener: Option<TcpListener>,
    /// Who we are there.
    pub tls: Option<TlsIdentity>,
    /// For the local console.
    pub unix_listener: Option<UnixListener>,
    /// What handlers share.
    pub context: Arc<Context>,
    /// What strangers may use up.
    pub limits: Limits,
    /// Ends the server: no new connections, requests under way are finished, streams end.
    pub shutdown: CancellationToken,
}

/// Serves until shutdown, then until everything under way is done.
pub async fn serve(config: ServerConfig) -> Result<(), TlsError> {
    let ServerConfig {
        tls_listener,
        tls,
        unix_listener,
        context,
        limits,
        shutdown,
    } = config;
    if context.setup_done() {
        // Made anew at each start, before it is known whether anybody still needs it.
        context.auth.setup_token.spend();
    }
    let server = Server {
        router: routes::router(context.clone(), shutdown.clone()),
        limits,
        shutdown: shutdown.clone(),
        tasks: TaskTracker::new(),
        total: Arc::new(Semaphore::new(limits.connections)),
        by_address: Arc::new(ByAddress::default()),
        metrics: context.metrics.clone(),
    };
    if let (Some(listener), Some(tls)) = (tls_listener, tls) {
        let acceptor = TlsAcceptor::from(tls.server_config()?);
        server
            .tasks
            .spawn(server.clone().accept_tls(listener, acceptor));
    }
    if let Some(listener) = unix_listener {
        server.tasks.spawn(server.clone().accept_unix(listener));
    }
    shutdown.cancelled().await;
    server.tasks.close();
    if tokio::time::timeout(limits.drain_within, server.tasks.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            left = server.tasks.len(),
            "connections did not end in time and are cut"
        );
    }
    Ok(())
}

#[derive(Clone)]
struct Server {
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    total: Arc<Semaphore>,
    by_address: Arc<ByAddress>,
    metrics: Metrics,
}

impl Server {
    async fn accept_tls(self, listener: TcpListener, acceptor: TlsAcceptor) {
        loop {
            let accepted = tokio::select! {
                () = self.shutdown.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let (tcp, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    pause_after(&error).await;
                    continue;
                }
            };
            let address = address.ip().to_canonical();
            // Over a limit the connection is dropped unanswered: an answer would cost a handshake.
            let Ok(permit) = self.total.clone().try_acquire_owned() else {
                tracing::warn!(%address, "too many connections; one was dropped");
                continue;
            };
            let Some(place) = self
                .by_address
                .enter(address, self.limits.connections_per_address)
            else {
                tracing::warn!(%address, "too many connections from one address; one was dropped");
                continue;
            };
            let _ = tcp.set_nodelay(true);
            let (server, acceptor) = (self.clone(), acceptor.clone());
            self.tasks.spawn(async move {
                let _held: (OwnedSemaphorePermit, Place) = (permit, place);
                match tokio::time::timeout(server.limits.handshake_within, acceptor.accept(tcp))
                    .await
                {
                    Ok(Ok(stream)) => server.converse(stream, From::Address(address)).await,
                    Ok(Err(error)) => tracing::debug!(%address, %error, "a TLS handshake failed"),
                    Err(_) => tracing::debug!(%address, "a TLS handshake took too long"),
                }
            });
        }
    }

    async fn accept_unix(self, listener: UnixListener) {
        loop {
            let accepted = tokio::select! {
                () = self.shutdown.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    // The kernel's word for who connected; when it has none, nobody did.
                    let uid = stream.peer_cred().map_or(u32::MAX, |peer| peer.uid());
                    let server = self.clone();
                    self.tasks
                        .spawn(async move { server.converse(stream, From::Local { uid }).await });
                }
                Err(error) => pause_after(&error).await,
            }
        }
    }

    /// Serves one connection to its end.
    async fn converse(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        from: From,
    ) {
        let router = self.router.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(from);
            router.clone().oneshot(request.map(Body::new))
        });
        let limits = &self.limits;
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_within)
            .max_headers(limits.headers)
            .max_buf_size(limits.header_bytes.max(8192));
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.streams)
            .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(20));
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        self.metrics.connection(1);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        self.metrics.connection(-1);
        if let Err(error) = ended {
            tracing::debug!(%from, %error, "a connection broke");
        }
    }
}

/// Out of descriptors or memory: trying again at once would only burn CPU.
async fn pause_after(error: &io::Error) {
    tracing::warn!(%error, "could not accept a connection");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// How many connections each address has.
#[derive(Debug, Default)]
struct ByAddress(Mutex<HashMap<IpAddr, usize>>);

impl ByAddress {
    fn enter(self: &Arc<Self>, address: IpAddr, max: usize) -> Option<Place> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Place {
            counts: self.clone(),
            address,
        })
    }
}

/// Held while a connection lives.
struct Place {
    counts: Arc<ByAddress>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_its_connection_ends() {
        let counts = Arc::new(ByAddress::default());
        let (one, two): (IpAddr, IpAddr) =
            ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let held = (counts.enter(one, 2), counts.enter(one, 2));
        assert!(held.0.is_some() && held.1.is_some());
        assert!(counts.enter(one, 2).is_none());
        assert!(counts.enter(two, 2).is_some());
        drop(held);
        assert!(counts.enter(one, 2).is_some());
        assert!(counts.0.lock().unwrap().is_empty());
    }
}
