//! What one allowed connection moves: counted as it happens, logged once when it is over.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use std::{fmt, io};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use super::Who;
use crate::host::Host;

/// One allowed connection. Whoever holds it last ends it, and that is when its line is logged.
pub(super) struct Visit {
    pub(super) who: Who,
    pub(super) method: &'static str,
    pub(super) host: Host,
    pub(super) port: u16,
    pub(super) address: SocketAddr,
    pub(super) meter: Arc<Meter>,
}

/// Bytes both ways on the far side (heads included), and when the last of them moved.
pub(super) struct Meter {
    begun: Instant,
    up: AtomicU64,
    down: AtomicU64,
    /// Milliseconds from `begun` to the last byte.
    last: AtomicU64,
}

impl Meter {
    pub(super) fn new() -> Arc<Self> {
        let zero = AtomicU64::default;
        Arc::new(Self { begun: Instant::now(), up: zero(), down: zero(), last: zero() })
    }

    fn count(&self, counter: &AtomicU64, bytes: usize) {
        if bytes > 0 {
            counter.fetch_add(bytes as u64, Relaxed);
            self.touch();
        }
    }

    /// Something moved.
    pub(super) fn touch(&self) {
        self.last.store(self.elapsed_ms(), Relaxed);
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns once nothing has moved for this long.
    pub(super) async fn idle(&self, time_max: Duration) {
        loop {
            let deadline = self.begun + Duration::from_millis(self.last.load(Relaxed)) + time_max;
            if deadline <= Instant::now() {
                return;
            }
            sleep_until(deadline).await;
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let Self { who, method, host, port, address, meter } = self;
        tracing::debug!(
            target: "egress",
            {
            sandbox.id = %who.sandbox,
            session.id = who.session.as_deref(),
            method,
            %host,
            port,
            %address,
            bytes_up = meter.up.load(Relaxed),
            bytes_down = meter.down.load(Relaxed),
            duration_ms = meter.elapsed_ms()
            },
            "a connection out of a sandbox is over"
        );
    }
}

impl fmt::Debug for Visit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Visit").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

/// A connection to the far side, with its meter.
#[derive(Debug)]
pub(super) struct Metered {
    stream: TcpStream,
    visit: Arc<Visit>,
}

impl Metered {
    pub(super) fn new(stream: TcpStream, visit: Arc<Visit>) -> Self {
        Self { stream, visit }
    }

    pub(super) fn visit(&self) -> &Arc<Visit> {
        &self.visit
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let meter = &self.visit.meter;
        meter.count(&meter.down, buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        let meter = &self.visit.meter;
        meter.count(&meter.up, written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
