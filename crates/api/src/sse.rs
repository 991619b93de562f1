//! Server-sent events, the writing side: one follower becomes one body.
//!
//! Each frame has an `event:` line, without which the official clients drop it, and an `id:` line if the event has a
//! place in the log: that is what a client resumes from. Nothing is buffered beyond one frame: a client that reads
//! slowly is simply not asked for more, its follower stays behind and catches up from the store. Nobody waits for it.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use protocol::event::PreviewKind;
use protocol::position::Position;
use serde::Deserialize;
use store::{Follower, Item};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// How often a quiet stream says that it is there: well under the minute after which proxies give up.
const PING_EVERY: Duration = Duration::from_secs(15);
const PING: Bytes = Bytes::from_static(b"event: ping\ndata: {\"type\":\"ping\"}\n\n");
const END: Bytes = Bytes::from_static(b"\n\n");
/// Up to this size a frame is copied into one piece; a larger one is passed on as it lies in the store.
const COPIED_BYTES_MAX: usize = 16 * 1024;

/// The response that shows what the follower sees until the session is deleted or `stop` is cancelled.
pub(crate) fn respond(follower: Follower, previews: Vec<PreviewKind>, stop: CancellationToken) -> Response {
    let mut ping = interval(PING_EVERY);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ping.reset();
    let frames = Frames {
        follower,
        previews: Previews { wanted: previews, open: None },
        stop,
        ping,
        rest: Vec::new(),
    };
    let body = stream::unfold(frames, |mut frames| async {
        let piece = frames.next_piece().await?;
        Some((Ok::<_, Infallible>(piece), frames))
    });
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // Tells nginx and its kind not to hold frames back.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(body)).into_response()
}

struct Frames {
    follower: Follower,
    previews: Previews,
    stop: CancellationToken,
    ping: Interval,
    /// What of the current frame was not passed on yet, last piece first.
    rest: Vec<Bytes>,
}

/// What may happen next on a stream.
enum Next {
    Stop,
    Ping,
    Item(Option<Item>),
}

impl Frames {
    /// The next bytes of the body; `None` at its end.
    async fn next_piece(&mut self) -> Option<Bytes> {
        loop {
            if let Some(piece) = self.rest.pop() {
                return Some(piece);
            }
            let next = tokio::select! {
                biased;
                () = self.stop.cancelled() => Next::Stop,
                item = self.follower.next() => Next::Item(item),
                _ = self.ping.tick() => Next::Ping,
            };
            match next {
                Next::Stop | Next::Item(None) => return None,
                Next::Ping => return Some(PING),
                Next::Item(Some(item)) => {
                    self.ping.reset();
                    self.write(item);
                }
            }
        }
    }

    fn write(&mut self, item: Item) {
        match item {
            Item::Event { position, kind, json } => {
                self.frame(Some(position), &kind, json);
            }
            Item::Queued { kind, json } => self.frame(None, &kind, json),
            Item::Preview { kind, json } => {
                if let Some(name) = self.previews.admit(kind, &json) {
                    self.frame(None, name, json);
                }
            }
            // The follower gives nothing after this, which ends the stream.
            Item::Deleted { json } => self.frame(None, "session.deleted", json),
        }
    }

    fn frame(&mut self, position: Option<Position>, kind: &str, json: Bytes) {
        debug_assert!(!json.contains(&b'\n'), "stored JSON is one line");
        let mut head = String::with_capacity(64);
        if let Some(position) = position {
            let _ = writeln!(head, "id: {position}");
        }
        let _ = write!(head, "event: {kind}\ndata: ");
        let mut head = head.into_bytes();
        if json.len() <= COPIED_BYTES_MAX {
            head.extend_from_slice(&json);
            head.extend_from_slice(&END);
            self.rest.push(head.into());
        } else {
            self.rest.extend([END, json, head.into()]);
        }
    }
}

/// Which previews a connection sees: of the kinds it asked for, and only from their beginning.
struct Previews {
    wanted: Vec<PreviewKind>,
    /// The message whose beginning was shown. Any other has begun before this connection, or its beginning was shed.
    open: Option<String>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Shape {
    EventStart { event: Started },
    EventDelta { event_id: String },
}

#[derive(Deserialize)]
struct Started {
    id: String,
}

impl Previews {
    /// The name of the frame that shows the preview, if it is shown.
    fn admit(&mut self, kind: PreviewKind, json: &[u8]) -> Option<&'static str> {
        if !self.wanted.contains(&kind) {
            return None;
        }
        match serde_json::from_slice(json).ok()? {
            Shape::EventStart { event } => {
                // Only messages have deltas, and their blocks may go on after a thought.
                if kind == PreviewKind::Message {
                    self.open = Some(event.id);
                }
                Some("event_start")
            }
            Shape::EventDelta { event_id } => {
                (self.open.as_ref() == Some(&event_id)).then_some("event_delta")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use store::{From, NewSession, Options, Store};

    use super::*;

    async fn next(body: &mut Body) -> Option<Bytes> {
        Some(body.frame().await?.expect("never fails").into_data().expect("data"))
    }

    async fn follower(store: &Store) -> Follower {
        let workspace = store.ensure_workspace().await.expect("a workspace");
        let record: session::Record = serde_json::from_value(serde_json::json!({
            "id": "sesn_1", "environment_id": "env_1", "environment": {"type": "self_hosted"}, "title": null,
            "agent": {
                "type": "agent", "id": "agent_1", "version": 1, "name": "a", "description": null, "system": null,
                "model": {"id": "m", "effort": {"type": "high"}, "speed": "standard", "inference_geo": null},
                "tools": [], "mcp_servers": [], "skills": [], "multiagent": null,
                "execution_identity": {"type": "service_account"},
            },
            "metadata": {}, "created_at": store.now(), "updated_at": store.now(), "archived_at": null,
        }))
        .expect("a record");
        let id = record.id.clone();
        let new = NewSession { workspace, record, thread_id: store.ids().make(), initial: Vec::new() };
        store.create_session(new).await.expect("made");
        store.follow(&id, From::Now).await.expect("the store answers").expect("it exists")
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_stream_says_every_fifteen_seconds_that_it_is_there() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path(), Options::default()).expect("opens");
        let follower = follower(&store).await;
        let stop = CancellationToken::new();
        let mut body = respond(follower, Vec::new(), stop.clone()).into_body();
        let opened = tokio::time::Instant::now();
        for count in 1..=3 {
            assert_eq!(
                next(&mut body).await.as_deref(),
                Some(&b"event: ping\ndata: {\"type\":\"ping\"}\n\n"[..])
            );
            assert_eq!(opened.elapsed().as_secs(), 15 * count);
        }
        stop.cancel();
        assert_eq!(next(&mut body).await, None);
    }
}
