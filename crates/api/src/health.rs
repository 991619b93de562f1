//! `GET /livez`, `/readyz` and `/health`: for load balancers and for whoever starts processes again.
//!
//! `/livez` and `/health` say that the process answers, and nothing more: whoever kills a process that does not must not
//! kill a healthy one whose database is away. `/readyz` says whether work should be sent here: each dependency by
//! name, with its state. No key, so nothing that could be secret: states and reasons are words of ours, and what is
//! behind them goes to the trace, once, when it changes.
//!
//! ```text
//!   ready ── a dependency is down, or the process drains ──▶ unready (503)
//!     ▲                                                         │
//!     └───────────────── the dependency is back ────────────────┘   a process that drains never comes back
//! ```

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::future::join_all;
use http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// How long what was seen is believed: probes need no key, and must not become a load on the database.
const FRESH_MAX: Duration = Duration::from_secs(1);
/// How long a look may take. What has not answered by then is down, whatever it is doing.
const LOOK_TIME_MAX: Duration = Duration::from_secs(2);

/// The state of one dependency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It does what it is there for.
    Ok,
    /// The process works on without it, though not as well.
    Degraded(&'static str),
    /// The process cannot do its work without it.
    Down(&'static str),
}

/// Looks at a dependency.
type Look = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Condition> + Send>> + Send + Sync>;

/// What a process depends on, and whether it is about to end.
#[derive(Clone)]
pub struct Health(Arc<Inner>);

struct Inner {
    draining: CancellationToken,
    dependencies: Vec<(&'static str, Look)>,
    /// One look at a time: whoever asks meanwhile gets its answer.
    seen: Mutex<Option<(Instant, Seen)>>,
}

/// Conditions by name.
type Seen = BTreeMap<&'static str, Condition>;

impl Health {
    /// Of a process without dependencies, which is not ready once `draining` is cancelled.
    pub fn new(draining: CancellationToken) -> Self {
        Self(Arc::new(Inner { draining, dependencies: Vec::new(), seen: Mutex::default() }))
    }

    /// With one dependency more, looked at when somebody asks. To be called before the first clone is made.
    #[must_use]
    pub fn with<F>(mut self, name: &'static str, look: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Condition> + Send + 'static,
    {
        let inner = Arc::get_mut(&mut self.0).expect("nobody else has it yet");
        inner.dependencies.push((name, Box::new(move || Box::pin(look()))));
        self
    }

    /// Looks at every dependency, unless somebody just did.
    async fn look(&self) -> Seen {
        let mut last = self.0.seen.lock().await;
        if let Some((_, seen)) = last.as_ref().filter(|(at, _)| at.elapsed() < FRESH_MAX) {
            return seen.clone();
        }
        let looks = self.0.dependencies.iter().map(|(name, look)| async move {
            let condition = timeout(LOOK_TIME_MAX, look()).await;
            (*name, condition.unwrap_or(Condition::Down("it does not answer in time")))
        });
        let seen: Seen = join_all(looks).await.into_iter().collect();
        tell_changes(last.as_ref().map(|(_, seen)| seen), &seen);
        *last = Some((Instant::now(), seen.clone()));
        seen
    }
}

impl Default for Health {
    /// Of a process that depends on nothing.
    fn default() -> Self {
        Self::new(CancellationToken::new())
    }
}

fn tell_changes(before: Option<&Seen>, after: &Seen) {
    for (dependency, condition) in after {
        let was = before.and_then(|seen| seen.get(dependency)).unwrap_or(&Condition::Ok);
        if was == condition {
            continue;
        }
        match condition {
            Condition::Ok => tracing::info!(dependency, "a dependency is well again"),
            Condition::Degraded(reason) => tracing::warn!(dependency, reason, "a dependency is not well"),
            Condition::Down(reason) => tracing::error!(dependency, reason, "a dependency is down"),
        }
    }
}

/// Where it is asked whether work should be sent here.
pub(crate) const READY: &str = "/readyz";

/// The three paths.
pub(crate) fn router(health: Health) -> Router {
    Router::new()
        .route("/livez", get(alive))
        .route(READY, get(ready))
        .with_state(health)
        .route("/health", get(alive))
}

async fn alive() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// The body of `/readyz`.
#[derive(Serialize)]
struct Ready {
    /// `ready` or `unready`.
    status: &'static str,
    /// The process was told to stop.
    draining: bool,
    dependencies: BTreeMap<&'static str, Shown>,
}

#[derive(Serialize)]
struct Shown {
    /// `ok`, `degraded` or `down`.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

async fn ready(State(health): State<Health>) -> Response {
    let seen = health.look().await;
    let draining = health.0.draining.is_cancelled();
    let is_ready = !draining && !seen.values().any(|condition| matches!(condition, Condition::Down(_)));
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = Ready {
        status: if is_ready { "ready" } else { "unready" },
        draining,
        dependencies: seen.into_iter().map(|(name, condition)| (name, shown(condition))).collect(),
    };
    (status, Json(body)).into_response()
}

fn shown(condition: Condition) -> Shown {
    let (state, reason) = match condition {
        Condition::Ok => ("ok", None),
        Condition::Degraded(reason) => ("degraded", Some(reason)),
        Condition::Down(reason) => ("down", Some(reason)),
    };
    Shown { state, reason }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_does_not_answer_is_down() {
        let health = Health::default().with("hands", std::future::pending::<Condition>);
        let expected = Seen::from([("hands", Condition::Down("it does not answer in time"))]);
        assert_eq!(health.look().await, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn however_many_ask_it_looks_once_a_second() {
        let looks = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&looks);
        let health = Health::default().with("database", move || {
            counted.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Condition::Ok)
        });
        join_all((0..100).map(|_| health.look())).await;
        assert_eq!(looks.load(Ordering::Relaxed), 1);
        tokio::time::advance(FRESH_MAX).await;
        health.look().await;
        assert_eq!(looks.load(Ordering::Relaxed), 2);
    }
}
